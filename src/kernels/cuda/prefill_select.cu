// Selection for the chunks of one prefill block (TokenSelect: the head soft vote of equation 7, then its top k).
//
// A launch serves up to 16 chunks of a layer. MODE is 1 for one chunk, 8 for 2 to 8, 16 for 9 to 16. In order:
//   1 chunk_queries        fused rows -> selection query of each chunk (rotated at n_local + row, mean over the rows)
//   2 score_sums_MODE      keys read once: sums of exponentials per (chunk, head); MODE 1 keeps its scores
//   3 fold_sums            partial sums -> (reference, 1 / sum) per (chunk, head); clears the histograms
//   4 score_votes_MODE     (8, 16) keys read again, the products made once more: votes; or votes_from_scores (1)
//   5 vote_histogram       top 12 bits of the votes
//   6 gather_candidates    positions of all tokens in the bin of the last selected vote or above, compacted within segments
//   7 finish_lists         the exact top k among those, the packed list and its length
// Every kernel may be launched programmatically dependent on the one before it.
//
// D head dim (a multiple of 8), H heads, Hkv KV heads, GROUP = H / Hkv up to 16. Per chunk on the device: int stored[chunks]
// (tokens stored when the chunk attends, its own included), int rows[chunks]. struct Select goes by value, last. Scratch:
//   queries elem[chunks][H][D]; partial float2[X][columns]; weights float2[columns]; histograms u32[chunks][4096];
//   votes f32[chunks][vote_stride]; found int[chunks][vote_stride]; counts int[chunks][vote_stride / 2048];
//   scores f32[H][vote_stride] (MODE 1, else null)
// with t = MODE 16: GROUP, 8: (GROUP + 1) / 2, 1: 1; columns = Hkv * t * 16; X = max(1, 2 SMs / Hkv); P = ceil(D / 32).
//
// Entry points (grid; block; dynamic shared bytes):
//   chunk_queries(queries, qkv, cosines, sines, rows, int chunk_rows, int n_local, int last_only)
//     (H / (H even ? 2 : 1), chunks); 512; 0. Chunk c has the fused rows from c * chunk_rows on.
//   score_sums_{1,8,16}(partial, scores, queries, keys, stored, rows, Select)   (X, Hkv); 128; t * (P * 1024 + 1024)
//   fold_sums(weights, histograms, partial, int X, int columns, int chunks * 4096)   ceil(columns / 8); 256; 0
//   score_votes_{8,16}(votes, queries, keys, weights, stored, rows, Select)   SMs; 256; Hkv * t * (P * 1024 + 128)
//   votes_from_scores(votes, scores, weights, stored, rows, Select)   min(4 SMs, vote_stride / 256); 256; 0
//   vote_histogram(histograms, votes, stored, rows, Select)   (4 SMs / chunks within 1 .. SMs, chunks); 256; 0
//   gather_candidates(found, counts, histograms, votes, stored, rows, Select)   (ceil(vote_stride / 16384), chunks); 256; 0
//   finish_lists(list, lengths, found, counts, histograms, votes, stored, rows, Select)
//     chunks; 1024; 4096 + 8 * 6144 + 4 * (vote_stride / 2048 + 1)
//   list int[chunks][list_stride]: [0 .. n_init), the selected ascending, [stored - window .. stored); lengths int[chunks].
//   All stored tokens when stored <= n_init + top_k + n_local. list_stride >= n_init + top_k + max(n_local, longest window).
// When the shared memory of MODE 16 is more than the chip has, serve 8 chunks at a time.
//
// Floor on an H200 per layer and block of 16 chunks, Qwen2-7B at 1M tokens: K twice at 4.69 TB/s is 457 us; queries 58 MB,
// 12 us; votes out once and in twice, 201 MB, 43 us; 2 x 120 GFLOP, 303 us, beside the traffic. f32 scores out and in would be
// 3.8 GB, 800 us, hence the second pass over K. Measured, 16 chunks: 194 us at 128K (12.1 a chunk), 993 us at 1M (62.0); one
// chunk alone 86 and 429 us. By kernel at 1M: queries 31, sums 462, votes 448, histogram 25, gather 35, the rest 21.
//
// What was tried:
// - Tokens as rows of the product: a 16-byte load does not leave its registers in the order that the instruction wants, and
//   the moves outnumber the products 4 to 1 in the machine code. Tokens as columns need none.
// - Both passes are latency-bound (2 warps a scheduler, tensor pipe 37% busy) and read 64 bytes of a row at a time, which
//   loads the L2: 3.4 TB/s at one chunk. wgmma with keys through shared memory takes 272 and 283 us instead of 462 and 448.

#define HEADS (GROUP * KV_HEADS)
#define PIECES ((HEAD_DIM + 31) / 32)               // 32 elements of a row: two k16 steps, 16 bytes a lane
#define TOKEN_TILES (HEAD_DIM <= 128 ? 4 : 2)       // 8-token tiles of a warp
#define WARP_TOKENS (8 * TOKEN_TILES)
#define ROW_ELEMS (KV_HEADS * HEAD_DIM)
#ifndef SUM_WARPS
#define SUM_WARPS 4
#endif
#ifndef SUM_BLOCKS
#define SUM_BLOCKS 2                                // resident per SM
#endif
#ifndef VOTE_WARPS
#define VOTE_WARPS 8
#endif
#define UNSET -1e30f

struct Select {
    int chunks;         // of this launch
    int n_init, top_k, n_local;
    int flags;          // 1: the local window lies outside the chunk; 2: head h is scored against KV head h % KV_HEADS
    int list_stride;    // ints per chunk in `list`
    int vote_stride;    // floats per chunk in `votes`: the capacity, rounded up to a multiple of 2048
    float scale_log2;   // scale of the scores (1 or D^-1/2; above 0) times log2(e)
};

struct Span { int begin, end; };

// Candidates of a chunk: none when it attends to every stored token.
DEVICE Span candidates(const Select& s, int stored, int rows) {
    int window = (s.flags & 1) ? s.n_local + rows : max(s.n_local, rows);
    Span c = {s.n_init, s.n_init};
    if (stored > s.n_init + s.top_k + s.n_local) c.end = max(s.n_init, stored - window);
    return c;
}

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- queries -------------------------------------------------------------------------------------------------------

#define QUERY_WARPS 16
#define QUERY_HEADS (HEADS % 2 == 0 ? 2 : 1)
#define PER (HEAD_DIM % 16 == 0 ? 8 : 4)            // pairs of a thread
#define ROW_LANES (HEAD_DIM / 2 / PER)
#define WARP_ROWS (32 / ROW_LANES)

extern "C" __global__ void __launch_bounds__(QUERY_WARPS * 32) chunk_queries(elem* queries, const elem* qkv,
    const float* cosines, const float* sines, const int* rows, int chunk_rows, int n_local, int last_only) {
    __shared__ float sums[QUERY_WARPS][QUERY_HEADS * HEAD_DIM];
    wait_for_previous_kernel();
    let_next_kernel_start();
    constexpr int HALF = HEAD_DIM / 2, PITCH = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    const int chunk = blockIdx.y, head = blockIdx.x * QUERY_HEADS;
    const int n = rows[chunk], lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int d = lane % ROW_LANES * PER, lane_row = lane / ROW_LANES;
    const elem* q = qkv + (i64)chunk * chunk_rows * PITCH + head * HEAD_DIM + d;
    float lo[QUERY_HEADS][PER] = {}, hi[QUERY_HEADS][PER] = {};
    if (lane_row < WARP_ROWS) {
#pragma unroll 2
        for (int r = (last_only ? n - 1 : 0) + warp * WARP_ROWS + lane_row; r < n; r += QUERY_WARPS * WARP_ROWS) {
            float c[PER], s[PER];
            const float* cp = cosines + (i64)(n_local + r) * HALF + d;
            const float* sp = sines + (i64)(n_local + r) * HALF + d;
#pragma unroll
            for (int i = 0; i < PER; i += 4) {
                float4 x = *(const float4*)(cp + i), y = *(const float4*)(sp + i);
                c[i] = x.x, c[i + 1] = x.y, c[i + 2] = x.z, c[i + 3] = x.w;
                s[i] = y.x, s[i + 1] = y.y, s[i + 2] = y.z, s[i + 3] = y.w;
            }
#pragma unroll
            for (int h = 0; h < QUERY_HEADS; h++) {
                const elem* row = q + (i64)r * PITCH + h * HEAD_DIM;
#pragma unroll
                for (int i = 0; i < PER; i += 4) {
                    uint2 a = *(const uint2*)(row + i), b = *(const uint2*)(row + HALF + i);
                    float2 a0 = unpack2(a.x), a1 = unpack2(a.y), b0 = unpack2(b.x), b1 = unpack2(b.y);
                    float u[4] = {a0.x, a0.y, a1.x, a1.y}, v[4] = {b0.x, b0.y, b1.x, b1.y};
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        lo[h][i + k] += u[k] * c[i + k] - v[k] * s[i + k];
                        hi[h][i + k] += v[k] * c[i + k] + u[k] * s[i + k];
                    }
                }
            }
        }
    }
    // The rows of a warp one after the other, then the warps: a fixed order.
    for (int turn = 0; turn < WARP_ROWS; turn++) {
        if (lane_row == turn) {
#pragma unroll
            for (int h = 0; h < QUERY_HEADS; h++)
#pragma unroll
                for (int i = 0; i < PER; i++) {
                    float* at = &sums[warp][h * HEAD_DIM + d + i];
                    at[0] = turn ? at[0] + lo[h][i] : lo[h][i];
                    at[HALF] = turn ? at[HALF] + hi[h][i] : hi[h][i];
                }
        }
        __syncwarp();
    }
    __syncthreads();
    const float share = last_only ? 1.0f : 1.0f / (float)n;
    for (int i = threadIdx.x; i < QUERY_HEADS * HEAD_DIM; i += QUERY_WARPS * 32) {
        float x = 0.0f;
        for (int w = 0; w < QUERY_WARPS; w++) x += sums[w][i];
        queries[((i64)chunk * HEADS + head) * HEAD_DIM + i] = from_float(x * share);
    }
}

// ---- scores --------------------------------------------------------------------------------------------------------

// The products run as (16 query rows) x (8 tokens): a lane's 16 bytes of a key are then two B operands as they are loaded,
// k being permuted alike on both sides. A row tile is, by the chunks of the launch (MODE): 16: one head of 16 chunks;
// 8: two heads of 8 chunks; 1: up to 16 heads of one chunk. So the sum over heads stays within a lane for 16 and 8.
template <int MODE> struct Tiles {
    static constexpr int COUNT = MODE == 16 ? GROUP : MODE == 8 ? (GROUP + 1) / 2 : 1;         // per KV head
    // Rows g + 8 hold nothing in this tile.
    static constexpr DEVICE bool half(int j) { return MODE == 8 ? 2 * j + 1 >= GROUP : MODE == 1 ? GROUP <= 8 : false; }
};

// The A operands of KV head `kv` as the lanes want them: [tile][piece][k16 step][lane] 16 bytes.
template <int MODE> DEVICE void stage_queries(uint4* out, const elem* queries, const Select& s, int kv) {
#pragma unroll 1
    for (int i = threadIdx.x; i < Tiles<MODE>::COUNT * PIECES * 64; i += blockDim.x) {
        int lane = i & 31, step = i >> 5 & 1, piece = i / 64 % PIECES, tile = i / 64 / PIECES;
        int e = piece * 32 + (lane & 3) * 8 + step * 4;
        uint2 v[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int row = (lane >> 2) + r * 8;
            int chunk = MODE == 16 ? row : MODE == 8 ? row & 7 : 0;
            int j = MODE == 16 ? tile : MODE == 8 ? tile * 2 + r : row;
            int head = (s.flags & 2) ? j * KV_HEADS + kv : kv * GROUP + j;
            v[r] = make_uint2(0, 0);
            if (chunk < s.chunks && j < GROUP && e < HEAD_DIM)
                v[r] = *(const uint2*)(queries + ((i64)chunk * HEADS + head) * HEAD_DIM + e);
        }
        out[i] = make_uint4(v[0].x, v[1].x, v[0].y, v[1].y);
    }
}

// WARP_TOKENS keys as B operands: lane 4 g + t holds elements 32 p + 8 t .. + 7 of token 8 i + g.
typedef uint4 Keys[TOKEN_TILES][PIECES];

DEVICE void load_keys(Keys& a, const elem* keys, u32 token, u32 last, int kv) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < TOKEN_TILES; i++) {
        u32 t = min(token + i * 8 + (lane >> 2), last);
        const elem* row = keys + (u64)t * ROW_ELEMS + kv * HEAD_DIM + (lane & 3) * 8;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            if (HEAD_DIM % 32 == 0 || p * 32 + (lane & 3) * 8 < HEAD_DIM) a[i][p] = load_streaming(row + p * 32);
            else a[i][p] = make_uint4(0, 0, 0, 0);
        }
    }
}

// c[i]: rows {g, g + 8}, tokens 8 i + {2t, 2t + 1}.
DEVICE void score_tile(float (&c)[TOKEN_TILES][4], const Keys& a, const uint4* q) {
#pragma unroll
    for (int i = 0; i < TOKEN_TILES; i++)
#pragma unroll
        for (int k = 0; k < 4; k++) c[i][k] = 0.0f;
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        uint4 q0 = q[p * 64], q1 = q[p * 64 + 32];
        u32 a0[4] = {q0.x, q0.y, q0.z, q0.w}, a1[4] = {q1.x, q1.y, q1.z, q1.w};
#pragma unroll
        for (int i = 0; i < TOKEN_TILES; i++) {
            u32 b[2] = {a[i][p].x, a[i][p].y};
            mma_16816(c[i], a0, b);
        }
#pragma unroll
        for (int i = 0; i < TOKEN_TILES; i++) {
            u32 b[2] = {a[i][p].z, a[i][p].w};
            mma_16816(c[i], a1, b);
        }
    }
}

DEVICE void copy_keys(Keys& to, const Keys& from) {
#pragma unroll
    for (int i = 0; i < TOKEN_TILES; i++)
#pragma unroll
        for (int p = 0; p < PIECES; p++) to[i][p] = from[i][p];
}

// Ends of the candidates of all chunks of the launch into shared memory; what they have in common is returned.
struct Bounds { int last_stored, least_end, greatest_end; };
DEVICE Bounds read_spans(int* ends, const Select& s, const int* stored, const int* rows) {
    if (threadIdx.x < 16) ends[threadIdx.x] = threadIdx.x < s.chunks ? candidates(s, stored[threadIdx.x], rows[threadIdx.x]).end : 0;
    __syncthreads();
    Bounds b = {0, 0x7fffffff, 0};
    for (int c = 0; c < s.chunks; c++) {
        b.least_end = min(b.least_end, ends[c]), b.greatest_end = max(b.greatest_end, ends[c]);
        b.last_stored = max(b.last_stored, stored[c] - 1);
    }
    if (b.greatest_end <= s.n_init) b.greatest_end = 0;                     // nothing to score
    return b;
}

// Adds (reference, sum) b to a: the value is sum * 2^reference.
DEVICE void add_sums(float2& a, float2 b) {
    float r = fmaxf(a.x, b.x);
    a.y = a.y * exp2_fast(a.x - r) + b.y * exp2_fast(b.x - r);
    a.x = r;
}

// Sums of exponentials of every (chunk, head) over a share of the tokens. grid (x, KV_HEADS): x splits the tokens.
template <int MODE> DEVICE void sums_body(float2* partial, float* scores, const elem* queries, const elem* keys,
    const int* stored, const int* rows, const Select& s) {
    constexpr int TILES = Tiles<MODE>::COUNT;
    extern __shared__ uint4 shared[];
    __shared__ int ends[16];
    float2* references = (float2*)(shared + TILES * PIECES * 64);           // [warp][tile][lane]
    const int kv = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2;
    let_next_kernel_start();
    wait_for_previous_kernel();
    stage_queries<MODE>(shared, queries, s, kv);
    Bounds bounds = read_spans(ends, s, stored, rows);
    float2* reference = references + warp * TILES * 32 + lane;
#pragma unroll
    for (int j = 0; j < TILES; j++) reference[j * 32] = make_float2(UNSET, UNSET);
    const float scale = s.scale_log2;
    const int end0 = ends[MODE == 1 ? 0 : g], end1 = MODE == 16 ? ends[g + 8] : end0;
    float sum[TILES][2] = {};
    const u32 stride = gridDim.x * SUM_WARPS * WARP_TOKENS;
    u32 token = (s.n_init & ~31) + (blockIdx.x * SUM_WARPS + warp) * WARP_TOKENS;
    Keys now, next;
    load_keys(now, keys, token, bounds.last_stored, kv);
#pragma unroll 2
    for (; token < (u32)bounds.greatest_end; token += stride) {
        load_keys(next, keys, token + stride, bounds.last_stored, kv);
        const bool partly = token + WARP_TOKENS > (u32)bounds.least_end || (int)token < s.n_init;
        const int t = (int)token + (lane & 3) * 2;
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            float c[TOKEN_TILES][4];
            score_tile(c, now, shared + j * PIECES * 64 + lane);
            const bool half = Tiles<MODE>::half(j);
            if (MODE == 1) {
#pragma unroll
                for (int i = 0; i < TOKEN_TILES; i++)
#pragma unroll
                    for (int r = 0; r < (half ? 1 : 2); r++)
                        if (g + r * 8 < GROUP)
                            *(float2*)(scores + (i64)(kv * GROUP + g + r * 8) * s.vote_stride + t + i * 8) =
                                make_float2(c[i][r * 2] * scale, c[i][r * 2 + 1] * scale);
            }
            if (partly) {
#pragma unroll
                for (int i = 0; i < TOKEN_TILES; i++)
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        int at = t + i * 8 + (k & 1);
                        if (at < s.n_init || at >= (k < 2 ? end0 : end1)) c[i][k] = NEG_INF;
                    }
            }
            float2 r = reference[j * 32];
            float x = 0.0f, y = 0.0f;
#pragma unroll
            for (int i = 0; i < TOKEN_TILES; i++) {
                x += exp2_fast(fmaf(c[i][0], scale, -r.x)) + exp2_fast(fmaf(c[i][1], scale, -r.x));
                if (!half) y += exp2_fast(fmaf(c[i][2], scale, -r.y)) + exp2_fast(fmaf(c[i][3], scale, -r.y));
            }
            x += sum[j][0], y += sum[j][1];
            if (fmaxf(x, y) > 1e30f) {
                // A score far above the lane's reference (or the first one): a higher reference, with room above.
                float a = r.x, b = r.y;
#pragma unroll
                for (int i = 0; i < TOKEN_TILES; i++) {
                    a = fmaxf(a, fmaf(fmaxf(c[i][0], c[i][1]), scale, 60.0f));
                    b = fmaxf(b, fmaf(fmaxf(c[i][2], c[i][3]), scale, 60.0f));
                }
                reference[j * 32] = make_float2(a, b);
                x = sum[j][0] * exp2_fast(r.x - a), y = sum[j][1] * exp2_fast(r.y - b);
#pragma unroll
                for (int i = 0; i < TOKEN_TILES; i++) {
                    x += exp2_fast(fmaf(c[i][0], scale, -a)) + exp2_fast(fmaf(c[i][1], scale, -a));
                    y += exp2_fast(fmaf(c[i][2], scale, -b)) + exp2_fast(fmaf(c[i][3], scale, -b));
                }
            }
            sum[j][0] = x, sum[j][1] = y;
        }
        copy_keys(now, next);
    }
    // Lanes of a row, then warps.
    __syncthreads();
    float2* columns = (float2*)shared;                                      // [warp][TILES * 16]
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        float2 r = reference[j * 32];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float2 v = make_float2(k ? r.y : r.x, sum[j][k]);
#pragma unroll
            for (int d = 1; d < 4; d <<= 1)
                add_sums(v, make_float2(__shfl_xor_sync(FULL_MASK, v.x, d), __shfl_xor_sync(FULL_MASK, v.y, d)));
            if ((lane & 3) == 0) columns[(warp * TILES + j) * 16 + k * 8 + g] = v;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TILES * 16; i += SUM_WARPS * 32) {
        float2 v = columns[i];
        for (int w = 1; w < SUM_WARPS; w++) add_sums(v, columns[w * TILES * 16 + i]);
        partial[((i64)blockIdx.x * KV_HEADS + kv) * TILES * 16 + i] = v;
    }
}

// Folds the partial sums of all blocks: weights[row] = (reference, 1 / sum) with the sum near 1. One warp a row.
extern "C" __global__ void __launch_bounds__(256) fold_sums(float2* weights, u32* histograms, const float2* partial,
    int parts, int columns, int bins) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (int i = blockIdx.x * 256 + threadIdx.x; i < bins; i += gridDim.x * 256) histograms[i] = 0;
    const int column = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (column >= columns) return;
    float2 v = make_float2(UNSET, 0.0f);
    for (int i = lane; i < parts; i += 32) add_sums(v, partial[(i64)i * columns + column]);
#pragma unroll
    for (int d = 16; d > 0; d >>= 1)
        add_sums(v, make_float2(__shfl_xor_sync(FULL_MASK, v.x, d), __shfl_xor_sync(FULL_MASK, v.y, d)));
    if (lane == 0) {
        float shift = v.y > 0.0f ? rintf(log2f(v.y)) : 0.0f;
        weights[column] = v.y == 0.0f ? make_float2(0.0f, 0.0f) : make_float2(v.x + shift, 1.0f / (v.y * exp2f(-shift)));
    }
}

// Votes of every (chunk, token), the products computed once more. grid x splits the tokens.
template <int MODE> DEVICE void votes_body(float* votes, const elem* queries, const elem* keys, const float2* weights,
    const int* stored, const int* rows, const Select& s) {
    constexpr int TILES = Tiles<MODE>::COUNT;
    extern __shared__ uint4 shared[];
    __shared__ int ends[16];
    float4* heads = (float4*)(shared + KV_HEADS * TILES * PIECES * 64);     // [kv][tile][g]: rows g and g + 8
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2;
    let_next_kernel_start();
    wait_for_previous_kernel();
#pragma unroll 1
    for (int kv = 0; kv < KV_HEADS; kv++) stage_queries<MODE>(shared + kv * TILES * PIECES * 64, queries, s, kv);
    for (int i = threadIdx.x; i < KV_HEADS * TILES * 8; i += blockDim.x) {
        float2 a = weights[(i & ~7) * 2 + (i & 7)], b = weights[(i & ~7) * 2 + (i & 7) + 8];
        heads[i] = make_float4(-a.x, a.y, -b.x, b.y);
    }
    Bounds bounds = read_spans(ends, s, stored, rows);
    const u32 stride = gridDim.x * VOTE_WARPS * WARP_TOKENS;
    u32 token = (s.n_init & ~31) + (blockIdx.x * VOTE_WARPS + warp) * WARP_TOKENS;
    Keys now, next;
    load_keys(now, keys, token, bounds.last_stored, 0);
    for (; token < (u32)bounds.greatest_end; token += stride) {
        float vote[TOKEN_TILES][MODE == 16 ? 4 : 2] = {};
        const uint4* q = shared + lane;
        const float4* head = heads + g;
#pragma unroll (KV_HEADS % 2 == 0 ? 2 : 1)
        for (int kv = 1; kv <= KV_HEADS; kv++, q += TILES * PIECES * 64, head += TILES * 8) {
            const bool wrap = kv == KV_HEADS;
            load_keys(next, keys, wrap ? token + stride : token, bounds.last_stored, wrap ? 0 : kv);
#pragma unroll
            for (int j = 0; j < TILES; j++) {
                float c[TOKEN_TILES][4];
                score_tile(c, now, q + j * PIECES * 64);
                float4 w = head[j * 8];
#pragma unroll
                for (int i = 0; i < TOKEN_TILES; i++)
#pragma unroll
                    for (int k = 0; k < (Tiles<MODE>::half(j) ? 2 : 4); k++) {
                        float& v = vote[i][MODE == 16 ? k : k & 1];
                        v = fmaf(exp2_fast(fmaf(c[i][k], s.scale_log2, k < 2 ? w.x : w.z)), k < 2 ? w.y : w.w, v);
                    }
            }
            copy_keys(now, next);
        }
        float* out = votes + (i64)g * s.vote_stride + token + (lane & 3) * 2;
#pragma unroll
        for (int i = 0; i < TOKEN_TILES; i++) {
            if (g < s.chunks) *(float2*)(out + i * 8) = make_float2(vote[i][0], vote[i][1]);
            if (MODE == 16 && g + 8 < s.chunks)
                *(float2*)(out + (i64)8 * s.vote_stride + i * 8) = make_float2(vote[i][MODE == 16 ? 2 : 0], vote[i][MODE == 16 ? 3 : 0]);
        }
    }
}

#define SUMS_ARGS float2* partial, float* scores, const elem* queries, const elem* keys, const int* stored, const int* rows, Select s
#define VOTES_ARGS float* votes, const elem* queries, const elem* keys, const float2* weights, const int* stored, const int* rows, Select s

extern "C" __global__ void __launch_bounds__(SUM_WARPS * 32, SUM_BLOCKS) score_sums_1(SUMS_ARGS) {
    sums_body<1>(partial, scores, queries, keys, stored, rows, s);
}
extern "C" __global__ void __launch_bounds__(SUM_WARPS * 32, SUM_BLOCKS) score_sums_8(SUMS_ARGS) {
    sums_body<8>(partial, scores, queries, keys, stored, rows, s);
}
extern "C" __global__ void __launch_bounds__(SUM_WARPS * 32, SUM_BLOCKS) score_sums_16(SUMS_ARGS) {
    sums_body<16>(partial, scores, queries, keys, stored, rows, s);
}
extern "C" __global__ void __launch_bounds__(VOTE_WARPS * 32, 1) score_votes_8(VOTES_ARGS) {
    votes_body<8>(votes, queries, keys, weights, stored, rows, s);
}
extern "C" __global__ void __launch_bounds__(VOTE_WARPS * 32, 1) score_votes_16(VOTES_ARGS) {
    votes_body<16>(votes, queries, keys, weights, stored, rows, s);
}

// Votes of one chunk from stored scores. A thread a token.
extern "C" __global__ void __launch_bounds__(256) votes_from_scores(float* votes, const float* scores, const float2* weights,
    const int* stored, const int* rows, Select s) {
    __shared__ float2 heads[KV_HEADS * 16];
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (int i = threadIdx.x; i < KV_HEADS * 16; i += 256) heads[i] = weights[i];
    __syncthreads();
    Span span = candidates(s, stored[0], rows[0]);
    for (int t = span.begin + blockIdx.x * 256 + threadIdx.x; t < span.end; t += gridDim.x * 256) {
        float vote = 0.0f;
#pragma unroll 4
        for (int kv = 0; kv < KV_HEADS; kv++)
#pragma unroll
            for (int j = 0; j < GROUP; j++) {
                float2 w = heads[kv * 16 + j];
                vote = fmaf(exp2_fast(scores[(i64)(kv * GROUP + j) * s.vote_stride + t] - w.x), w.y, vote);
            }
        votes[t] = vote;
    }
}

// ---- top k ---------------------------------------------------------------------------------------------------------

#define BINS 4096                                   // first digit of a vote's bits: 30..19
#define BIN_SHIFT 19
#define SEGMENT 2048                                // tokens that one warp compacts
#define STAGED 6144                                 // candidates that finish_lists keeps in shared memory

// Votes are never negative; what is not a number counts as 0.
DEVICE u32 key_of(float vote) { return vote >= 0.0f ? __float_as_uint(vote) : 0u; }

// Exclusive prefix sum over the block; `total` is the sum of all.
template <int WARPS> DEVICE u32 block_prefix(u32 x, u32* warp_sums, u32& total) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u32 sum = x;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        u32 y = __shfl_up_sync(FULL_MASK, sum, d);
        if (lane >= d) sum += y;
    }
    __syncthreads();
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    u32 before = 0;
    total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        u32 y = warp_sums[w];
        if (w < warp) before += y;
        total += y;
    }
    return before + sum - x;
}

// The highest bin such that it and all above hold `wanted` or more (bin 0 when there are fewer), and the count above it.
template <int COUNT, int WARPS> DEVICE void find_bin(const u32* bins, u32 wanted, u32* warp_sums, u32* found) {
    constexpr int EACH = COUNT / (WARPS * 32);
    u32 mine[EACH], sum = 0, total;
    const int top = COUNT - 1 - threadIdx.x * EACH;
#pragma unroll
    for (int i = 0; i < EACH; i++) sum += mine[i] = bins[top - i];
    u32 above = block_prefix<WARPS>(sum, warp_sums, total);
    if (threadIdx.x == 0 && total < wanted) found[0] = 0, found[1] = total - bins[0];
    if (above < wanted && above + sum >= wanted) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (above < wanted && above + mine[i] >= wanted) found[0] = top - i, found[1] = above;
            above += mine[i];
        }
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(256) vote_histogram(u32* histograms, const float* votes, const int* stored,
    const int* rows, Select s) {
    __shared__ u32 bins[BINS];
    wait_for_previous_kernel();
    let_next_kernel_start();
    const int chunk = blockIdx.y;
    Span span = candidates(s, stored[chunk], rows[chunk]);
    if (span.begin + blockIdx.x * 1024 >= span.end + 1024) return;
    for (int i = threadIdx.x; i < BINS; i += 256) bins[i] = 0;
    __syncthreads();
    const float* row = votes + (i64)chunk * s.vote_stride;
#pragma unroll 2
    for (int t = (span.begin & ~3) + (blockIdx.x * 256 + threadIdx.x) * 4; t < span.end; t += gridDim.x * 1024) {
        float4 v = *(const float4*)(row + t);
        float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (t + i >= span.begin && t + i < span.end) atomicAdd(&bins[key_of(x[i]) >> BIN_SHIFT], 1u);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += 256)
        if (bins[i]) atomicAdd(&histograms[chunk * BINS + i], bins[i]);
}

// Positions of the tokens in or above the bin of the last selected one, compacted in order within each segment of SEGMENT
// tokens: found[chunk][segment * SEGMENT ..], counts[chunk][segment]. A warp a segment; grid (segments / 8, chunks).
extern "C" __global__ void __launch_bounds__(256) gather_candidates(int* found, int* counts, const u32* histograms,
    const float* votes, const int* stored, const int* rows, Select s) {
    __shared__ u32 warp_sums[8], bin[2];
    wait_for_previous_kernel();
    let_next_kernel_start();
    const int chunk = blockIdx.y, lane = threadIdx.x & 31, segment = blockIdx.x * 8 + (threadIdx.x >> 5);
    const int segments = s.vote_stride / SEGMENT;
    Span span = candidates(s, stored[chunk], rows[chunk]);
    if (blockIdx.x * 8 * SEGMENT >= span.end) {
        if (lane == 0 && segment < segments) counts[chunk * segments + segment] = 0;
        return;
    }
    find_bin<BINS, 8>(histograms + chunk * BINS, (u32)s.top_k, warp_sums, bin);
    if (segment >= segments) return;
    const u32 least = bin[0] << BIN_SHIFT;
    const float* row = votes + (i64)chunk * s.vote_stride + segment * SEGMENT;
    int* out = found + (i64)chunk * s.vote_stride + segment * SEGMENT;
    int count = 0;
#pragma unroll 4
    for (int i = 0; i < SEGMENT; i += 128) {
        int t = segment * SEGMENT + i + lane * 4;
        float4 v = *(const float4*)(row + i + lane * 4);
        u32 mask = 0;
        mask |= t >= span.begin && t < span.end && key_of(v.x) >= least ? 1 : 0;
        mask |= t + 1 >= span.begin && t + 1 < span.end && key_of(v.y) >= least ? 2 : 0;
        mask |= t + 2 >= span.begin && t + 2 < span.end && key_of(v.z) >= least ? 4 : 0;
        mask |= t + 3 >= span.begin && t + 3 < span.end && key_of(v.w) >= least ? 8 : 0;
        if (__any_sync(FULL_MASK, mask)) {
            int at = count;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                u32 lanes = __ballot_sync(FULL_MASK, mask >> k & 1);
                at += __popc(lanes & ((1u << lane) - 1)), count += __popc(lanes);
            }
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (mask >> k & 1) out[at++] = t + k;
        }
    }
    if (lane == 0) counts[chunk * segments + segment] = count;
}

// The exact selection among the gathered candidates and the whole list of a chunk. A block a chunk.
extern "C" __global__ void __launch_bounds__(1024) finish_lists(int* list, int* lengths, const int* found, const int* counts,
    const u32* histograms, const float* votes, const int* stored, const int* rows, Select s) {
    extern __shared__ u32 memory[];
    __shared__ u32 warp_sums[32], first[2], second[2], third[2];
    wait_for_previous_kernel();
    let_next_kernel_start();
    const int chunk = blockIdx.x, segments = s.vote_stride / SEGMENT, n = stored[chunk];
    Span span = candidates(s, n, rows[chunk]);
    list += (i64)chunk * s.list_stride;
    votes += (i64)chunk * s.vote_stride, found += (i64)chunk * s.vote_stride;
    if (span.begin == span.end || span.end - span.begin <= s.top_k) {
        for (int i = threadIdx.x; i < n; i += 1024) list[i] = i;            // everything
        if (threadIdx.x == 0) lengths[chunk] = n;
        return;
    }
    u32* bins = memory;                             // 1024
    u32* keys = memory + 1024;                      // STAGED
    int* tokens = (int*)keys + STAGED;              // STAGED
    u32* starts = memory + 1024 + 2 * STAGED;       // segments + 1
    find_bin<BINS, 32>(histograms + chunk * BINS, (u32)s.top_k, warp_sums, first);
    u32 carry = 0, total;
    for (int i = 0; i < segments; i += 1024) {
        int k = i + threadIdx.x;
        u32 x = k < segments ? (u32)counts[chunk * segments + k] : 0, before = block_prefix<32>(x, warp_sums, total);
        if (k < segments) starts[k] = carry + before;
        carry += total;
    }
    bins[threadIdx.x] = 0;
    if (threadIdx.x == 0) starts[segments] = carry;
    __syncthreads();
    const u32 all = carry;
    // Candidate i in the order of positions.
    auto fetch = [&](u32 i, u32& key, int& token) {
        int lo = 0, hi = segments;                  // the last segment that starts at or before i
        while (hi - lo > 1) {
            int mid = (lo + hi) >> 1;
            if (starts[mid] <= i) lo = mid; else hi = mid;
        }
        token = found[lo * SEGMENT + (int)(i - starts[lo])];
        key = key_of(votes[token]);
    };
    auto read = [&](u32 i, u32& key, int& token) {
        if (i < STAGED) key = keys[i], token = tokens[i];
        else fetch(i, key, token);
    };
    for (u32 i = threadIdx.x; i < all; i += 1024) {
        u32 key; int token;
        fetch(i, key, token);
        if (i < STAGED) keys[i] = key, tokens[i] = token;
        if (key >> BIN_SHIFT == first[0]) atomicAdd(&bins[key >> 9 & 1023], 1u);
    }
    __syncthreads();
    const u32 wanted = (u32)s.top_k - first[1];
    find_bin<1024, 32>(bins, wanted, warp_sums, second);
    bins[threadIdx.x] = 0;
    __syncthreads();
    const u32 high = first[0] << 10 | second[0];
    for (u32 i = threadIdx.x; i < all; i += 1024) {
        u32 key; int token;
        read(i, key, token);
        if (key >> 9 == high) atomicAdd(&bins[key & 511], 1u);
    }
    __syncthreads();
    find_bin<1024, 32>(bins, wanted - second[1], warp_sums, third);
    const u32 last = high << 9 | third[0];          // the bits of the last selected vote
    const u32 ties = wanted - second[1] - third[1]; // of its equals, so many are selected: the lowest positions
    const int begin = s.n_init;
    u32 above_before = 0, ties_before = 0;
    for (u32 base = 0; base < all; base += 1024) {
        u32 i = base + threadIdx.x, key = 0; int token = 0;
        if (i < all) read(i, key, token);
        bool above = i < all && key > last, tie = i < all && key == last;
        u32 both = block_prefix<32>((above ? 1u : 0u) | (tie ? 0x10000u : 0u), warp_sums, total);
        u32 a = above_before + (both & 0xffff), e = ties_before + (both >> 16);
        if (above || (tie && e < ties)) list[begin + a + min(e, ties)] = token;
        above_before += total & 0xffff, ties_before += total >> 16;
    }
    for (int i = threadIdx.x; i < begin; i += 1024) list[i] = i;
    for (int i = span.end + threadIdx.x; i < n; i += 1024) list[begin + s.top_k + i - span.end] = i;
    if (threadIdx.x == 0) lengths[chunk] = begin + s.top_k + n - span.end;
}
