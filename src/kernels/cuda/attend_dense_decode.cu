// Attention of one query row over all stored tokens (dense policy, decode).
//
// The cache holds rotated keys, [token][Hkv][D]. For every query head h, with q rotated here at position N - 1:
//     out[h] = sum_j softmax_j(scale <q[h], key[j][h / GROUP]>) value[j][h / GROUP]    over j < N, N - 1 - j < window
//
// -D constants: HEAD_DIM, GROUP = H / Hkv, KV_HEADS; ELEM_F16 for half; WARPS (8 for HEAD_DIM 128, 12 else).
//
// attend_dense_decode(const elem* qkv, const elem* keys, const elem* values, const int* stored, const float* cos,
//                     const float* sin, float* partial, u32* counters, elem* out, int window, float scale)
//     qkv       the fused row [(H + 2 Hkv) D], of which the un-rotated queries are read
//     keys, values  cache of the layer; the current token is stored already
//     stored    N >= 1
//     cos, sin  [positions][D / 2]
//     partial   scratch of KV_HEADS * splits * SLOT floats, SLOT = GROUP D + 2 GROUP rounded up to a multiple of 4; any content
//     counters  KV_HEADS u32, zero before the first launch ever; they return to zero by themselves
//     out       [H][D];   window 0: none;   scale: 1 / sqrt(D)
//   grid (splits, KV_HEADS) with splits = max(1, multiprocessors / KV_HEADS), block 32 WARPS,
//   dynamic shared memory for HEAD_DIM 64 and 128: (WARPS 8 ceil(GROUP / 8) (D + 2) + splits GROUP) 4 bytes, otherwise none.
//
// Floor: 4 N Hkv D bytes: 57.2 us at 128K tokens of 4 x 128, 457 us at 1M, at 4.69 TB/s; flops do not count.
//
// How: a block reads one key-value head for all of its query heads; a warp takes tiles of 16 tokens, the products run on
// matrix units with operands loaded straight from memory into their registers. A tile's loads are issued one tile ahead.
// Blocks leave partial results; the last block of a head folds them, so one launch does it all.
// Measured (4 key-value heads of 128, 7 query heads each; 12 warps): 8.8 us at 1K tokens, 12.4 at 8K, 24.7 at 32K, 69.7 at
// 128K, 475 to 487 at 1M; 8 warps take 8.3 at 1K, 11.9 at 8K, and as long as 12 at 128K and 1M. Of the 8.8, loads and
// products are 3.3 at most, writing the partial result and the counter 1.7, the last fold 2.6.
// Tried and dropped: all key-value heads in one block (4 times the partial results: 8K tokens 18.6 us instead of 12.8);
// clusters that fold through distributed shared memory (not all clusters fit at once, a second wave: 1M 682 us); bulk
// prefetch into the L2 (1M 544 instead of 500 us); 4 warps in 3 blocks per multiprocessor (1M 500 instead of 491 us, 8K 19.6);
// asking for 256-byte lines (1M 536). Handing out tiles by an atomic counter was 30% slower (1M 626 us), but the compiler
// waited for each answer at once; warps do progress at rates that differ by a fifth (128K: 50 to 62 us, median 59), so there
// are up to 4 us in it. Kept: asking for 128-byte lines (128K 72.6 to 69.4 us).

#define HEADS (GROUP * KV_HEADS)
#define HALF (HEAD_DIM / 2)
#define FAST (HEAD_DIM == 64 || HEAD_DIM == 128)
#define NO_SCORE_YET -1e30f

#ifndef WARPS
#define WARPS (HEAD_DIM == 128 ? 8 : 12)
#endif

// 16 bytes of a cache row; a miss brings the whole 128-byte line into the L2, whose other half is asked for next.
DEVICE uint4 load_row(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

// What a block leaves of a key-value head: sums [GROUP][D], then (maximum, weight) [GROUP]; a multiple of 16 bytes.
#define SLOT ((GROUP * HEAD_DIM + 2 * GROUP + 3) / 4 * 4)

// After its slot is written: whether this block is the head's last. The counter is then zero again: it wraps.
DEVICE bool last_of_head(u32* counters, int head) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(counters + head, gridDim.x - 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    return last;
}

#if FAST
// Tiles of 16 tokens. Both operands come from memory straight into registers, 16 bytes at a time: inside a product the
// order of the summed index is free, and so is that of the output columns, so every lane's 8 neighbouring elements serve as they are.
#define TILE 16
#define PIECES (HEAD_DIM / 8)
#define QUADS (PIECES / 4)   // accesses per key of a lane
#define OCTS (PIECES / 8)    // accesses per value of a lane
#define COLUMNS ((GROUP + 7) / 8)

extern "C" __global__ void
__launch_bounds__(32 * WARPS, 1)
attend_dense_decode(const elem* __restrict__ qkv, const elem* __restrict__ keys, const elem* __restrict__ values,
                    const int* __restrict__ stored, const float* __restrict__ cos, const float* __restrict__ sin,
                    float* __restrict__ partial, u32* __restrict__ counters, elem* __restrict__ out, int window, float scale) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int head = blockIdx.y;
    constexpr i64 TOKEN = KV_HEADS * HEAD_DIM;

    wait_for_previous_kernel();
    let_next_kernel_start();
    int N = *stored;
    int begin = window > 0 ? max(N - window, 0) : 0;
    int step = gridDim.x * WARPS * TILE;
    int token = begin + (blockIdx.x * WARPS + warp) * TILE;

    const elem* key_base = keys + head * HEAD_DIM + t * 8;
    const elem* value_base = values + head * HEAD_DIM + g * 8;
    uint4 k[2][QUADS], v[4][OCTS];
    // A token past the end repeats the last one; its weight is zero.
    auto load_keys = [&](int at) {
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const elem* p = key_base + (i64)min(at + 8 * n + g, N - 1) * TOKEN;
#pragma unroll
            for (int i = 0; i < QUADS; i++) k[n][i] = load_row(p + i * 32);
        }
    };
    auto load_values = [&](int at) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const elem* p = value_base + (i64)min(at + n / 2 * 8 + 2 * t + n % 2, N - 1) * TOKEN;
#pragma unroll
            for (int i = 0; i < OCTS; i++) v[n][i] = load_row(p + i * 64);
        }
    };
    if (token < N) {
        load_keys(token);
        load_values(token);
    }

    // The queries, rotated, in the order of summation that the keys come in: rounded, and what rounding left, rounded as well.
    // Without the second part a third of the output's error would come from here.
    u32 q[COLUMNS][QUADS][4], q_rest[COLUMNS][QUADS][4];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        int row = c * 8 + g;
#pragma unroll
        for (int i = 0; i < QUADS / 2; i++) {
            uint4 x = make_uint4(0, 0, 0, 0), y = x;
            if (row < GROUP) {
                const elem* p = qkv + (head * GROUP + row) * HEAD_DIM + (t + 4 * i) * 8;
                x = *(const uint4*)p;
                y = *(const uint4*)(p + HALF);
            }
            const float* co = cos + (i64)(N - 1) * HALF + (t + 4 * i) * 8;
            const float* si = sin + (i64)(N - 1) * HALF + (t + 4 * i) * 8;
            u32 xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float2 a = unpack2(xs[e]), b = unpack2(ys[e]);
                float2 cc = *(const float2*)(co + 2 * e), ss = *(const float2*)(si + 2 * e);
                auto split = [&](int quad, float x, float y) {
                    u32 rounded = pack2(x, y);
                    float2 r = unpack2(rounded);
                    q[c][quad][e] = rounded;
                    q_rest[c][quad][e] = pack2(x - r.x, y - r.y);
                };
                split(i, a.x * cc.x - b.x * ss.x, a.y * cc.y - b.y * ss.y);
                split(i + QUADS / 2, b.x * cc.x + a.x * ss.x, b.y * cc.y + a.y * ss.y);
            }
        }
    }

    // o: dimensions down (rows g, g + 8 of product m are dimensions 8 g + 2 m' and + 1), heads 8 c + {2t, 2t + 1} across.
    float o[COLUMNS][HEAD_DIM / 16][4];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
#pragma unroll
        for (int m = 0; m < HEAD_DIM / 16; m++) o[c][m][0] = o[c][m][1] = o[c][m][2] = o[c][m][3] = 0.0f;
    float top[COLUMNS], sum[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) top[c] = NO_SCORE_YET, sum[c] = 0.0f;
    float log_scale = scale * LOG2_E;

#pragma unroll 1
    for (; token < N; token += step) {
        float s[2][4];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
            for (int i = 0; i < QUADS; i++) {
                u32 b[4] = {k[n][i].x, k[n][i].y, k[n][i].z, k[n][i].w};
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    u32 right[2] = {b[2 * half], b[2 * half + 1]};
#if COLUMNS == 1
                    // Rows g and g + 8 of the left operand: a head's two parts.
                    u32 left[4] = {q[0][i][2 * half], q_rest[0][i][2 * half], q[0][i][2 * half + 1], q_rest[0][i][2 * half + 1]};
                    mma_16816(s[n], left, right);
#else
                    // Two heads, one part after the other.
                    u32 left[4] = {q[0][i][2 * half], q[1][i][2 * half], q[0][i][2 * half + 1], q[1][i][2 * half + 1]};
                    u32 rest[4] = {q_rest[0][i][2 * half], q_rest[1][i][2 * half], q_rest[0][i][2 * half + 1], q_rest[1][i][2 * half + 1]};
                    mma_16816(s[n], left, right);
                    mma_16816(s[n], rest, right);
#endif
                }
            }
#if COLUMNS == 1
            s[n][0] += s[n][2];
            s[n][1] += s[n][3];
#endif
        }
        int next = token + step;
        if (next < N) load_keys(next);

        // A head's scores: its row, two neighbouring tokens in each of four lanes.
        u32 p[COLUMNS][2];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            float x[4] = {s[0][2 * c] * log_scale, s[0][2 * c + 1] * log_scale, s[1][2 * c] * log_scale, s[1][2 * c + 1] * log_scale};
            if (token + TILE > N) {
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (token + e / 2 * 8 + 2 * t + e % 2 >= N) x[e] = NEG_INF;
            }
            float best = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
            best = fmaxf(best, __shfl_xor_sync(FULL_MASK, best, 1));
            best = fmaxf(best, __shfl_xor_sync(FULL_MASK, best, 2));
            // Rare after the first tiles: the sums are rescaled only when some head's maximum grew.
            if (__any_sync(FULL_MASK, best > top[c])) {
                best = fmaxf(best, top[c]);
                float fix = fast_exp2(top[c] - best);
                top[c] = best;
                sum[c] *= fix;
                float fix0 = __shfl_sync(FULL_MASK, fix, 8 * t), fix1 = __shfl_sync(FULL_MASK, fix, 8 * t + 4);
#pragma unroll
                for (int m = 0; m < HEAD_DIM / 16; m++) o[c][m][0] *= fix0, o[c][m][1] *= fix1, o[c][m][2] *= fix0, o[c][m][3] *= fix1;
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                x[e] = fast_exp2(x[e] - top[c]);
                sum[c] += x[e];
            }
            p[c][0] = pack2(x[0], x[1]);
            p[c][1] = pack2(x[2], x[3]);
        }

#pragma unroll
        for (int i = 0; i < OCTS; i++) {
            u32 a0[4] = {v[0][i].x, v[0][i].y, v[0][i].z, v[0][i].w}, a1[4] = {v[1][i].x, v[1][i].y, v[1][i].z, v[1][i].w};
            u32 a2[4] = {v[2][i].x, v[2][i].y, v[2][i].z, v[2][i].w}, a3[4] = {v[3][i].x, v[3][i].y, v[3][i].z, v[3][i].w};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                // Two neighbouring dimensions of two tokens: pairs of tokens per dimension are wanted.
                u32 left[4] = {__byte_perm(a0[e], a1[e], 0x5410), __byte_perm(a0[e], a1[e], 0x7632),
                               __byte_perm(a2[e], a3[e], 0x5410), __byte_perm(a2[e], a3[e], 0x7632)};
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) mma_16816(o[c][4 * i + e], left, p[c]);
            }
        }
        if (next < N) load_values(next);
    }

    // ---- the warps meet in shared memory ----
    extern __shared__ float shared[];
    // Per warp and head a row. Heads 2t and 2t + 1 are rows t and t + 4, and rows are 2 words longer than needed: then the
    // 8-byte stores of a half warp fall into different banks.
    constexpr int ROW = HEAD_DIM + 2, WARP_ROWS = 8 * COLUMNS;
    __shared__ float warp_top[WARPS][WARP_ROWS], warp_weight[WARPS][WARP_ROWS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        sum[c] += __shfl_xor_sync(FULL_MASK, sum[c], 1);
        sum[c] += __shfl_xor_sync(FULL_MASK, sum[c], 2);
        if (t == 0) warp_top[warp][8 * c + g] = top[c], warp_weight[warp][8 * c + g] = sum[c];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float* row = shared + (warp * WARP_ROWS + 8 * c + t + 4 * e) * ROW + g * 8;
#pragma unroll
            for (int m = 0; m < HEAD_DIM / 16; m++) *(float2*)(row + m / 4 * 64 + m % 4 * 2) = make_float2(o[c][m][e], o[c][m][2 + e]);
        }
    }
    __syncthreads();

    // ---- the blocks of a head meet in memory; the last of them finishes ----
    constexpr int SUMS = GROUP * HEAD_DIM;
    float* slots = partial + (i64)head * gridDim.x * SLOT;
    float* mine = slots + (i64)blockIdx.x * SLOT;
#pragma unroll 1
    for (int pair = threadIdx.x; pair < SUMS / 2; pair += 32 * WARPS) {
        int h = pair / HALF;
        const float* row = shared + (h / 8 * 8 + h % 8 / 2 + h % 2 * 4) * ROW + pair % HALF * 2;
        float best = NO_SCORE_YET, weight = 0.0f;
        float2 x = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int w = 0; w < WARPS; w++) best = fmaxf(best, warp_top[w][h]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float fix = fast_exp2(warp_top[w][h] - best);
            float2 y = *(const float2*)(row + w * WARP_ROWS * ROW);
            x.x += fix * y.x, x.y += fix * y.y, weight += fix * warp_weight[w][h];
        }
        *(float2*)(mine + 2 * pair) = x;
        if (pair % HALF == 0) *(float2*)(mine + SUMS + 2 * h) = make_float2(best, weight);
    }
    if (!last_of_head(counters, head)) return;

    // A warp sums every WARPS-th slot, a lane 4 sums of each 128. The first loads are under way while the factors are made.
    constexpr int PARTS = (SUMS + 127) / 128, BATCH = PARTS <= 8 ? 3 : 1;
    float* factors = shared + WARPS * WARP_ROWS * ROW;
    __shared__ float inverse[GROUP];
    float4 x[BATCH][PARTS], total[PARTS];
    auto load_slots = [&](int first) {
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const float4* from = (const float4*)(slots + (i64)min(first + k * WARPS, gridDim.x - 1) * SLOT);
#pragma unroll
            for (int i = 0; i < PARTS; i++) x[k][i] = __ldcg(from + min(i * 32 + lane, SUMS / 4 - 1));
        }
    };
    load_slots(warp);
    for (int h = warp; h < GROUP; h += WARPS) {
        float best = NO_SCORE_YET, weight = 0.0f;
        for (int s = lane; s < gridDim.x; s += 32) best = fmaxf(best, __ldcg(slots + (i64)s * SLOT + SUMS + 2 * h));
        best = warp_max(best);
        for (int s = lane; s < gridDim.x; s += 32) {
            float2 about = __ldcg((const float2*)(slots + (i64)s * SLOT + SUMS + 2 * h));
            float fix = fast_exp2(about.x - best);
            factors[s * GROUP + h] = fix;
            weight += fix * about.y;
        }
        weight = warp_sum(weight);
        if (lane == 0) inverse[h] = weight > 0.0f ? 1.0f / weight : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < PARTS; i++) total[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (int s = warp; s < gridDim.x; s += BATCH * WARPS) {
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            if (s + k * WARPS < gridDim.x) {
#pragma unroll
                for (int i = 0; i < PARTS; i++) {
                    float fix = factors[(s + k * WARPS) * GROUP + min((i * 128 + lane * 4) / HEAD_DIM, GROUP - 1)];
                    total[i].x += fix * x[k][i].x, total[i].y += fix * x[k][i].y;
                    total[i].z += fix * x[k][i].z, total[i].w += fix * x[k][i].w;
                }
            }
        }
        if (s + BATCH * WARPS < gridDim.x) load_slots(s + BATCH * WARPS);
    }
#pragma unroll
    for (int i = 0; i < PARTS; i++)
        if (i * 32 + lane < SUMS / 4) ((float4*)shared)[warp * (SUMS / 4) + i * 32 + lane] = total[i];
    __syncthreads();
#pragma unroll 1
    for (int pair = threadIdx.x; pair < SUMS / 2; pair += 32 * WARPS) {
        float2 y = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float2 z = ((float2*)shared)[w * (SUMS / 2) + pair];
            y.x += z.x, y.y += z.y;
        }
        ((u32*)out)[head * (SUMS / 2) + pair] = pack2(y.x * inverse[pair / HALF], y.y * inverse[pair / HALF]);
    }
}

#else

// Any other head size: plain sums, one warp per query head and token range; right, not fast.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
attend_dense_decode(const elem* __restrict__ qkv, const elem* __restrict__ keys, const elem* __restrict__ values,
                    const int* __restrict__ stored, const float* __restrict__ cos, const float* __restrict__ sin,
                    float* __restrict__ partial, u32* __restrict__ counters, elem* __restrict__ out, int window, float scale) {
    constexpr int EACH = (HEAD_DIM + 31) / 32;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y;
    wait_for_previous_kernel();
    let_next_kernel_start();
    int N = *stored;
    int begin = window > 0 ? max(N - window, 0) : 0;
    float log_scale = scale * LOG2_E;
    float* slots = partial + (i64)head * gridDim.x * SLOT;
    for (int row = warp; row < GROUP; row += WARPS) {
        const elem* from = qkv + (head * GROUP + row) * HEAD_DIM;
        float q[EACH], o[EACH], top = NO_SCORE_YET, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int d = lane + 32 * i;
            o[i] = q[i] = 0.0f;
            if (d < HEAD_DIM) {
                i64 at = (i64)(N - 1) * HALF + d % HALF;
                float x = to_float(from[d]), y = to_float(from[d < HALF ? d + HALF : d - HALF]);
                q[i] = to_float(from_float(d < HALF ? x * cos[at] - y * sin[at] : x * cos[at] + y * sin[at]));
            }
        }
        for (int token = begin + blockIdx.x; token < N; token += gridDim.x) {
            i64 at = ((i64)token * KV_HEADS + head) * HEAD_DIM;
            float s = 0.0f;
#pragma unroll
            for (int i = 0; i < EACH; i++)
                if (lane + 32 * i < HEAD_DIM) s += q[i] * to_float(keys[at + lane + 32 * i]);
            s = warp_sum(s) * log_scale;
            float best = fmaxf(top, s), fix = fast_exp2(top - best), p = fast_exp2(s - best);
            top = best;
            sum = sum * fix + p;
#pragma unroll
            for (int i = 0; i < EACH; i++)
                if (lane + 32 * i < HEAD_DIM) o[i] = o[i] * fix + p * to_float(values[at + lane + 32 * i]);
        }
        float* mine = slots + (i64)blockIdx.x * SLOT;
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (lane + 32 * i < HEAD_DIM) mine[row * HEAD_DIM + lane + 32 * i] = o[i];
        if (lane == 0) mine[GROUP * HEAD_DIM + 2 * row] = top, mine[GROUP * HEAD_DIM + 2 * row + 1] = sum;
    }
    if (!last_of_head(counters, head)) return;
    for (int at = threadIdx.x; at < GROUP * HEAD_DIM; at += 32 * WARPS) {
        float best = NO_SCORE_YET, x = 0.0f, weight = 0.0f;
        for (int s = 0; s < gridDim.x; s++) {
            const float* from = slots + (i64)s * SLOT;
            const float* about = from + GROUP * HEAD_DIM + at / HEAD_DIM * 2;
            float top = __ldcg(about), now = fmaxf(best, top), fix = fast_exp2(best - now), add = fast_exp2(top - now);
            x = x * fix + __ldcg(from + at) * add;
            weight = weight * fix + __ldcg(about + 1) * add;
            best = now;
        }
        out[head * GROUP * HEAD_DIM + at] = from_float(weight > 0.0f ? x / weight : 0.0f);
    }
}

#endif
