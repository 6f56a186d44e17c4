// Selection for the chunks of one prefill block (TokenSelect: the head soft vote of equation 7, then its top k), without the
// products with the keys: those are in prefill_score_wgmma.cu and prefill_score.cu, two files with the same entry points.
//
// A launch serves up to 16 chunks of a layer. MODE is 1 for one chunk, 8 for 2 to 8, 16 for 9 to 16. In order:
//   1 chunk_queries        fused rows -> selection query of each chunk (rotated at n_local + row, mean over the rows)
//   2 score_sums_MODE      keys read once: sums of exponentials per (chunk, head); MODE 1 keeps its scores
//   3 fold_sums            partial sums -> (reference, 1 / sum) per (chunk, head); clears the histograms
//   4 score_votes_MODE     (8, 16) keys read again, the products made once more: votes; or votes_from_scores (1)
//   5 vote_histogram       top 12 bits of the votes; its last block finds the bin of the last selected vote
//   6 gather_candidates    positions of all tokens in that bin or above, compacted within segments of 512 tokens
//   7 finish_lists         the exact top k among those, the packed list and its length
// Every kernel may be launched programmatically dependent on the one before it. Keys, `stored` and `rows` must have been
// written by kernels before chunk_queries.
//
// D head dim, H heads, Hkv KV heads. Per-chunk inputs on the device: int stored[chunks] (tokens stored when the chunk attends,
// its own included) and int rows[chunks]. struct Select goes by value, last. Scratch, not initialised unless said so:
//   queries elem[chunks][H][D]; parts f32[chunks][H][Z][D]; tickets u32[chunks * H], zero before the first use ever;
//   partial float2[X][columns]; weights float2[columns]; histograms u32[chunks][4112]; votes f32[chunks][vote_stride];
//   found int[chunks][vote_stride]; counts int[chunks][vote_stride / 512]; scores f32[H][vote_stride] (MODE 1, else null)
// with columns = Hkv * 16 * (MODE 16: GROUP, 8: (GROUP + 1) / 2, 1: 1) and X = the grid of score_sums in x.
//
// Entry points (grid; block; dynamic shared bytes):
//   chunk_queries(queries, parts, tickets, qkv, cosines, sines, rows, int chunk_rows, int n_local, int last_only)
//     (H / QUERY_HEADS, chunks, Z); 256; 0. QUERY_HEADS = 4, 2 or 1, the first that divides H. Z slices of the rows, any number
//     from 1 (best: 2 SMs / (H / QUERY_HEADS * chunks), within 1 .. chunk_rows / 64). Chunk c has the fused rows from
//     c * chunk_rows on.
//   fold_sums(weights, histograms, partial, int X, int columns, int chunks * 4112)   ceil(columns / 8); 256; 0
//   votes_from_scores(votes, scores, weights, stored, rows, Select)   min(4 SMs, vote_stride / 1024); 256; 0
//   vote_histogram(histograms, votes, stored, rows, Select)   (4 SMs / chunks within 1 .. SMs, chunks); 256; 0
//   gather_candidates(found, counts, histograms, votes, stored, rows, Select)   (ceil(vote_stride / 4096), chunks); 256; 0
//   finish_lists(list, lengths, found, counts, histograms, votes, stored, rows, Select)
//     chunks; 1024; 4096 + 8 * 6144 + 4 * (vote_stride / 512 + 1)
//   list int[chunks][list_stride]: [0 .. n_init), the selected ascending, [stored - window .. stored); lengths int[chunks].
//   All stored tokens when stored <= n_init + top_k + n_local. list_stride >= n_init + top_k + max(n_local, longest window).
//
// Floor on an H200 per layer and block of 16 chunks, Qwen2-7B at 1M tokens: K twice at 4.69 TB/s is 457 us; queries 58 MB,
// 12 us; votes out once and in twice, 201 MB, 43 us. f32 scores out and in would be 3.8 GB, 800 us, hence the second pass over
// K (229 us of traffic, 150 us of matrix work). One chunk alone: K once, its scores out and in (235 MB), 280 us.
//
// What was tried:
// - The digit: 12 bits (4 of the mantissa) leave a few hundred candidates beyond top_k in the last bin; the histogram kernel
//   is bound by shared-memory atomics, the two vote readers by latency. Segments of 2048 tokens a warp and a threshold search
//   in every block: 34 us at 1M (16 chunks); 512 tokens and one search by the last block of the histogram: 21 us.
// - finish_lists: every thread adding up 32 warp sums costs 1 us a time; by shuffles it went from 17.9 to 11.9 us.
// - chunk_queries: one block a (chunk, 2 heads) takes 29 us; slices of rows, 4 heads sharing the sines: 21 us, and 5.9
//   instead of 10.4 us for one chunk.
// - votes_from_scores: four tokens a thread instead of one, 52 -> 34 us at 1M.


// ---- queries -------------------------------------------------------------------------------------------------------

#define QUERY_WARPS 8
#define QUERY_HEADS (HEADS % 4 == 0 ? 4 : HEADS % 2 == 0 ? 2 : 1)
#define PER (HEAD_DIM % 16 == 0 ? 8 : 4)            // pairs of a thread
#define ROW_LANES (HEAD_DIM / 2 / PER)
#define WARP_ROWS (32 / ROW_LANES)

// PER elements as f32.
DEVICE void read_elems(float (&x)[PER], const elem* p) {
#if HEAD_DIM % 16 == 0
    uint4 v = *(const uint4*)p;
    u32 w[4] = {v.x, v.y, v.z, v.w};
#else
    uint2 v = *(const uint2*)p;
    u32 w[2] = {v.x, v.y};
#endif
#pragma unroll
    for (int i = 0; i < PER / 2; i++) {
        float2 f = unpack2(w[i]);
        x[2 * i] = f.x, x[2 * i + 1] = f.y;
    }
}

// grid (HEADS / QUERY_HEADS, chunks, slices of the rows). The block that ends last adds up the slices, in order.
extern "C" __global__ void __launch_bounds__(QUERY_WARPS * 32, HEAD_DIM == 64 || HEAD_DIM == 128 ? 2 : 1) chunk_queries(elem* queries, float* parts, u32* tickets,
    const elem* qkv, const float* cosines, const float* sines, const int* rows, int chunk_rows, int n_local, int last_only) {
    constexpr int HALF = HEAD_DIM / 2, PITCH = (HEADS + 2 * KV_HEADS) * HEAD_DIM, WIDTH = QUERY_HEADS * HEAD_DIM;
    __shared__ float sums[QUERY_WARPS][WIDTH];
    __shared__ u32 ticket;
    wait_for_previous_kernel();
    let_next_kernel_start();
    const int chunk = blockIdx.y, head = blockIdx.x * QUERY_HEADS, n = rows[chunk];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, d = lane % ROW_LANES * PER, lane_row = lane / ROW_LANES;
    const int slice_rows = (chunk_rows + gridDim.z - 1) / gridDim.z, slices = last_only ? 1 : (n + slice_rows - 1) / slice_rows;
    if (blockIdx.z >= slices) return;
    const int begin = last_only ? n - 1 : blockIdx.z * slice_rows, end = min(n, begin + slice_rows);
    const elem* q = qkv + (i64)chunk * chunk_rows * PITCH + head * HEAD_DIM + d;
    float lo[QUERY_HEADS][PER] = {}, hi[QUERY_HEADS][PER] = {};
    if (lane_row < WARP_ROWS) {
#pragma unroll 1
        for (int r = begin + warp * WARP_ROWS + lane_row; r < end; r += QUERY_WARPS * WARP_ROWS) {
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
                float u[PER], v[PER];
                read_elems(u, q + (i64)r * PITCH + h * HEAD_DIM);
                read_elems(v, q + (i64)r * PITCH + h * HEAD_DIM + HALF);
#pragma unroll
                for (int i = 0; i < PER; i++) {
                    lo[h][i] += u[i] * c[i] - v[i] * s[i];
                    hi[h][i] += v[i] * c[i] + u[i] * s[i];
                }
            }
        }
    }
    // The rows of a warp, then the warps, then the slices, always in the same order.
    constexpr bool even = 32 % ROW_LANES == 0 && (ROW_LANES & (ROW_LANES - 1)) == 0;
    if (even) {
#pragma unroll
        for (int h = 0; h < QUERY_HEADS; h++)
#pragma unroll
            for (int i = 0; i < PER; i++)
#pragma unroll
                for (int x = ROW_LANES; x < 32; x <<= 1) {
                    lo[h][i] += __shfl_xor_sync(FULL_MASK, lo[h][i], x);
                    hi[h][i] += __shfl_xor_sync(FULL_MASK, hi[h][i], x);
                }
    }
    for (int turn = 0; turn < (even ? 1 : WARP_ROWS); turn++) {
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
    const int group = chunk * (HEADS / QUERY_HEADS) + blockIdx.x;
    float* part = parts + (i64)group * gridDim.z * WIDTH;
    for (int i = threadIdx.x; i < WIDTH; i += QUERY_WARPS * 32) {
        float x = 0.0f;
        for (int w = 0; w < QUERY_WARPS; w++) x += sums[w][i];
        part[blockIdx.z * WIDTH + i] = x;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) ticket = atomicAdd(&tickets[group], 1u);
    __syncthreads();
    if (ticket != slices - 1) return;
    __threadfence();
    if (threadIdx.x == 0) tickets[group] = 0;
    const float share = last_only ? 1.0f : 1.0f / (float)n;
    for (int i = threadIdx.x; i < WIDTH; i += QUERY_WARPS * 32) {
        float x = 0.0f;
#pragma unroll 8
        for (int z = 0; z < slices; z++) x += __ldcg(part + z * WIDTH + i);
        queries[((i64)chunk * HEADS + head) * HEAD_DIM + i] = from_float(x * share);
    }
}

// ---- votes ----------------------------------------------------------------------------------------------------------

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

// Votes of one chunk from stored scores. Four tokens a thread.
extern "C" __global__ void __launch_bounds__(256) votes_from_scores(float* votes, const float* scores, const float2* weights,
    const int* stored, const int* rows, Select s) {
    __shared__ float2 heads[KV_HEADS * 16];
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (int i = threadIdx.x; i < KV_HEADS * 16; i += 256) heads[i] = weights[i];
    __syncthreads();
    Span span = candidates(s, stored[0], rows[0]);
    for (int t = (span.begin & ~3) + (blockIdx.x * 256 + threadIdx.x) * 4; t < span.end; t += gridDim.x * 1024) {
        float4 vote = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 2
        for (int kv = 0; kv < KV_HEADS; kv++)
#pragma unroll
            for (int j = 0; j < GROUP; j++) {
                float2 w = heads[kv * 16 + j];
                float4 x = *(const float4*)(scores + (i64)(kv * GROUP + j) * s.vote_stride + t);
                vote.x = fmaf(fast_exp2(x.x - w.x), w.y, vote.x);
                vote.y = fmaf(fast_exp2(x.y - w.x), w.y, vote.y);
                vote.z = fmaf(fast_exp2(x.z - w.x), w.y, vote.z);
                vote.w = fmaf(fast_exp2(x.w - w.x), w.y, vote.w);
            }
        *(float4*)(votes + t) = vote;
    }
}

// ---- top k ---------------------------------------------------------------------------------------------------------

#define BINS 4096                                   // first digit of a vote's bits: 30..19
#define BIN_SHIFT 19
#define CHUNK_BINS (BINS + 16)                      // per chunk: the bins, a ticket, then the bin of the last selected vote
                                                    // and how many votes lie above it
#define SEGMENT 512                                 // tokens that one warp compacts
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
    u32 sums = lane < WARPS ? warp_sums[lane] : 0;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        u32 y = __shfl_up_sync(FULL_MASK, sums, d);
        if (lane >= d) sums += y;
    }
    total = __shfl_sync(FULL_MASK, sums, 31);
    u32 before = __shfl_sync(FULL_MASK, sums, warp ? warp - 1 : 0);
    if (warp == 0) before = 0;
    return before + sum - x;
}

// The highest bin such that it and all above hold `wanted` or more (bin 0 when there are fewer), and the count above it.
template <int COUNT, int WARPS, bool SHARED> DEVICE void find_bin(const u32* bins, u32 wanted, u32* warp_sums, u32* found) {
    constexpr int EACH = COUNT / (WARPS * 32);
    u32 mine[EACH], sum = 0, total;
    const int top = COUNT - 1 - threadIdx.x * EACH;
#pragma unroll
    for (int i = 0; i < EACH; i++) sum += mine[i] = SHARED ? bins[top - i] : __ldcg(bins + top - i);
    u32 above = block_prefix<WARPS>(sum, warp_sums, total);
    if (threadIdx.x == WARPS * 32 - 1 && total < wanted) found[0] = 0, found[1] = total - mine[EACH - 1];
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
    __shared__ u32 bins[BINS], warp_sums[8], found[2], ticket;
    wait_for_previous_kernel();
    let_next_kernel_start();
    const int chunk = blockIdx.y;
    Span span = candidates(s, stored[chunk], rows[chunk]);
    const int begin = (span.begin & ~3) + blockIdx.x * 1024;
    u32* all = histograms + chunk * CHUNK_BINS;
    if (begin < span.end) {
        for (int i = threadIdx.x; i < BINS; i += 256) bins[i] = 0;
        __syncthreads();
        const float* row = votes + (i64)chunk * s.vote_stride;
#pragma unroll 4
        for (int t = begin + threadIdx.x * 4; t < span.end; t += gridDim.x * 1024) {
            float4 v = *(const float4*)(row + t);
            float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (t + i >= span.begin && t + i < span.end) atomicAdd(&bins[key_of(x[i]) >> BIN_SHIFT], 1u);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < BINS; i += 256)
            if (bins[i]) atomicAdd(&all[i], bins[i]);
    }
    // The last block of the chunk finds the bin of the last selected vote.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) ticket = atomicAdd(&all[BINS], 1u);
    __syncthreads();
    if (ticket != gridDim.x - 1) return;
    __threadfence();
    find_bin<BINS, 8, false>(all, (u32)s.top_k, warp_sums, found);
    if (threadIdx.x < 2) all[BINS + 1 + threadIdx.x] = found[threadIdx.x];
}

// Positions of the tokens in or above the bin of the last selected one, compacted in order within each segment of SEGMENT
// tokens: found[chunk][segment * SEGMENT ..], counts[chunk][segment]. A warp a segment; grid (segments / 8, chunks).
extern "C" __global__ void __launch_bounds__(256) gather_candidates(int* found, int* counts, const u32* histograms,
    const float* votes, const int* stored, const int* rows, Select s) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    const int chunk = blockIdx.y, lane = threadIdx.x & 31, segment = blockIdx.x * 8 + (threadIdx.x >> 5);
    const int segments = s.vote_stride / SEGMENT;
    if (segment >= segments) return;
    const float4* row = (const float4*)(votes + (i64)chunk * s.vote_stride + segment * SEGMENT) + lane;
    float4 v[SEGMENT / 128];
    Span span = candidates(s, stored[chunk], rows[chunk]);
    int count = 0;
    if (segment * SEGMENT < span.end) {
#pragma unroll
        for (int i = 0; i < SEGMENT / 128; i++) v[i] = row[i * 32];
        const u32 least = histograms[chunk * CHUNK_BINS + BINS + 1] << BIN_SHIFT;
        int* out = found + (i64)chunk * s.vote_stride + segment * SEGMENT;
#pragma unroll
        for (int i = 0; i < SEGMENT / 128; i++) {
            const int t = segment * SEGMENT + i * 128 + lane * 4;
            float x[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
            u32 mask = 0;
#pragma unroll
            for (int k = 0; k < 4; k++) mask |= t + k >= span.begin && t + k < span.end && key_of(x[k]) >= least ? 1u << k : 0u;
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
    }
    if (lane == 0) counts[chunk * segments + segment] = count;
}

// The exact selection among the gathered candidates and the whole list of a chunk. A block a chunk.
extern "C" __global__ void __launch_bounds__(1024) finish_lists(int* list, int* lengths, const int* found, const int* counts,
    const u32* histograms, const float* votes, const int* stored, const int* rows, Select s) {
    extern __shared__ u32 memory[];
    __shared__ u32 warp_sums[32], second[2], third[2];
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
    const u32 first[2] = {histograms[chunk * CHUNK_BINS + BINS + 1], histograms[chunk * CHUNK_BINS + BINS + 2]};
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
    // Where candidate i lies, in the order of positions: the last segment that starts at or before it.
    auto place = [&](u32 i) {
        int lo = 0, hi = segments;
        while (hi - lo > 1) {
            int mid = (lo + hi) >> 1;
            if (starts[mid] <= i) lo = mid; else hi = mid;
        }
        return lo * SEGMENT + (int)(i - starts[lo]);
    };
    auto read = [&](u32 i, u32& key, int& token) {
        if (i < STAGED) key = keys[i], token = tokens[i];
        else token = found[place(i)], key = key_of(votes[token]);
    };
    for (u32 base = threadIdx.x; base < all; base += 3072) {
        int token[3];
        float vote[3];
#pragma unroll
        for (int u = 0; u < 3; u++) token[u] = base + u * 1024 < all ? found[place(base + u * 1024)] : span.begin;
#pragma unroll
        for (int u = 0; u < 3; u++) vote[u] = votes[token[u]];
#pragma unroll
        for (int u = 0; u < 3; u++) {
            u32 i = base + u * 1024, key = key_of(vote[u]);
            if (i < STAGED) keys[i] = key, tokens[i] = token[u];
            if (i < all && key >> BIN_SHIFT == first[0]) atomicAdd(&bins[key >> 9 & 1023], 1u);
        }
    }
    __syncthreads();
    const u32 wanted = (u32)s.top_k - first[1];
    find_bin<1024, 32, true>(bins, wanted, warp_sums, second);
    bins[threadIdx.x] = 0;
    __syncthreads();
    const u32 high = first[0] << 10 | second[0];
    for (u32 i = threadIdx.x; i < all; i += 1024) {
        u32 key; int token;
        read(i, key, token);
        if (key >> 9 == high) atomicAdd(&bins[key & 511], 1u);
    }
    __syncthreads();
    find_bin<1024, 32, true>(bins, wanted - second[1], warp_sums, third);
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
