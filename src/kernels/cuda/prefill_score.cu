// The products of prefill selection (see prefill_select.cu) by mma.sync: any chip from sm_80, any HEAD_DIM that 8 divides, any
// GROUP up to 16. prefill_score_wgmma.cu has the same entry points for Hopper.
//
//   score_sums_{1,8,16}(partial, scores, queries, keys, stored, rows, Select)   grid (X, Hkv), X = max(1, 2 SMs / Hkv)
//   score_votes_{8,16}(votes, queries, keys, weights, stored, rows, Select)     grid SMs
// Block sizes and shared memory: `score_launches`. keys elem[capacity][Hkv][D], not rotated. Where the shared memory of MODE 16 or 8
// is more than a block may have, fewer chunks are served at a time.
//
// Tokens as columns, query rows as rows of the product: with the tokens as rows a 16-byte load does not leave its registers in
// the order that the instruction wants, and the moves outnumber the products 4 to 1. Keys are fetched one tile ahead into
// registers. 65 / 64 us (sums / votes) on an H200 for 16 chunks of Qwen2-7B at 128K, 462 / 448 us at 1M.

#define PIECES ((HEAD_DIM + 31) / 32)               // 32 elements of a row: two k16 steps, 16 bytes a lane
#define TOKEN_TILES (HEAD_DIM <= 128 ? 4 : 2)       // 8-token tiles of a warp
#define WARP_TOKENS (8 * TOKEN_TILES)
#define SUM_WARPS 4
#define VOTE_WARPS 8

// ---- scores --------------------------------------------------------------------------------------------------------

// The products run as (16 query rows) x (8 tokens): a lane's 16 bytes of a key are then two B operands as they are loaded,
// k being permuted alike on both sides. A row tile is, by the chunks of the launch (MODE): 16: one head of 16 chunks;
// 8: two heads of 8 chunks; 1: up to 16 heads of one chunk. So the sum over heads stays within a lane for 16 and 8.
template <int MODE> struct Tiles {
    static constexpr int COUNT = MODE == 16 ? GROUP : MODE == 8 ? (GROUP + 1) / 2 : 1;         // per KV head
    // Rows g + 8 hold nothing in this tile.
    static constexpr DEVICE bool half(int j) { return MODE == 8 ? 2 * j + 1 >= GROUP : MODE == 1 ? GROUP <= 8 : false; }
};

// Operands, then two floats per lane, tile and warp (sums) or four per tile and row (votes).
template <int MODE> constexpr int sums_shared() { return Tiles<MODE>::COUNT * (PIECES * 1024 + SUM_WARPS * 256); }
template <int MODE> constexpr int votes_shared() { return KV_HEADS * Tiles<MODE>::COUNT * (PIECES * 1024 + 128); }

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

// `keys` is this lane's: of token g, elements 8 t .. + 7.
DEVICE const elem* lane_keys(const elem* keys) {
    const int lane = threadIdx.x & 31;
    return keys + (lane >> 2) * ROW_ELEMS + (lane & 3) * 8;
}
DEVICE void load_keys(Keys& a, const elem* keys, u32 token, u32 last, int kv) {
    const int lane = threadIdx.x & 31;
    keys += (u64)token * ROW_ELEMS + kv * HEAD_DIM;
    const bool whole = token + WARP_TOKENS - 1 <= last;
    const int left = (int)last - (int)token - (lane >> 2);                  // keys below this lane's first
#pragma unroll
    for (int i = 0; i < TOKEN_TILES; i++) {
        const elem* row = keys + i * 8 * ROW_ELEMS;
        if (!whole) row = keys + (i64)min(i * 8, left) * ROW_ELEMS;         // beyond the last: that again
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
    keys = lane_keys(keys);
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
                x += fast_exp2(fmaf(c[i][0], scale, -r.x)) + fast_exp2(fmaf(c[i][1], scale, -r.x));
                if (!half) y += fast_exp2(fmaf(c[i][2], scale, -r.y)) + fast_exp2(fmaf(c[i][3], scale, -r.y));
            }
            x += sum[j][0], y += sum[j][1];
            if (fmaxf(x, y) > 1e30f) {
                // A score far above the lane's reference (or the first one): a higher reference, with room above.
                float a = r.x, b = r.y;
#pragma unroll
                for (int i = 0; i < TOKEN_TILES; i++) {
                    a = fmaxf(a, ceilf(fmaf(fmaxf(c[i][0], c[i][1]), scale, 60.0f)));
                    b = fmaxf(b, ceilf(fmaf(fmaxf(c[i][2], c[i][3]), scale, 60.0f)));
                }
                reference[j * 32] = make_float2(a, b);
                x = sum[j][0] * fast_exp2(r.x - a), y = sum[j][1] * fast_exp2(r.y - b);
#pragma unroll
                for (int i = 0; i < TOKEN_TILES; i++) {
                    x += fast_exp2(fmaf(c[i][0], scale, -a)) + fast_exp2(fmaf(c[i][1], scale, -a));
                    y += fast_exp2(fmaf(c[i][2], scale, -b)) + fast_exp2(fmaf(c[i][3], scale, -b));
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
            float2 v = normalized(make_float2(k ? r.y : r.x, sum[j][k]));
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
    keys = lane_keys(keys);
    Keys now, next;
    load_keys(now, keys, token, bounds.last_stored, 0);
    for (; token < (u32)bounds.greatest_end; token += stride) {
        float vote[TOKEN_TILES][MODE == 16 ? 4 : 2] = {};
        const uint4* q = shared + lane;
        const float4* head = heads + g;
#pragma unroll 1
        for (int kv = 1; kv <= KV_HEADS; kv++, q += TILES * PIECES * 64, head += TILES * 8) {
            const bool wrap = kv == KV_HEADS;
            load_keys(next, keys, wrap ? token + stride : token, bounds.last_stored, wrap ? 0 : kv);
#pragma unroll (MODE == 16 || GROUP % 2 == 0 ? 4 : TILES)
            for (int j = 0; j < TILES; j++) {
                float c[TOKEN_TILES][4];
                score_tile(c, now, q + j * PIECES * 64);
                float4 w = head[j * 8];
#pragma unroll
                for (int i = 0; i < TOKEN_TILES; i++)
#pragma unroll
                    for (int k = 0; k < (Tiles<MODE>::half(j) ? 2 : 4); k++) {
                        float& v = vote[i][MODE == 16 ? k : k & 1];
                        v = fmaf(fast_exp2(fmaf(c[i][k], s.scale_log2, k < 2 ? w.x : w.z)), k < 2 ? w.y : w.w, v);
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

SCORE_ENTRY_POINTS(SUM_WARPS * 32, 2, VOTE_WARPS * 32)
