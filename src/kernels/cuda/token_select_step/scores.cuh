// ---- selection query -------------------------------------------------------------------------------------------------

// Four rotation pairs: elements d .. d + 3 and their partners.
struct Four {
    float4 x, y;
};
// What they are made of.
struct Unrotated {
    uint2 low, high;
    float4 c, s;
};
// Of head row `row` at position `position`, d a multiple of 4.
DEVICE Unrotated unrotated_at(const StepArgs& a, const elem* row, int d, int position) {
    i64 at = (i64)position * HALF + d;
    return {*(const uint2*)(row + d), *(const uint2*)(row + d + HALF), __ldg((const float4*)(a.cos_table + at)),
            __ldg((const float4*)(a.sin_table + at))};
}
DEVICE Four rotated(const Unrotated& u) {
    float2 x0 = unpack2(u.low.x), x1 = unpack2(u.low.y), y0 = unpack2(u.high.x), y1 = unpack2(u.high.y);
    const float4 &c = u.c, &s = u.s;
    return {make_float4(x0.x * c.x - y0.x * s.x, x0.y * c.y - y0.y * s.y, x1.x * c.z - y1.x * s.z, x1.y * c.w - y1.y * s.w),
            make_float4(y0.x * c.x + x0.x * s.x, y0.y * c.y + x0.y * s.y, y1.x * c.z + x1.x * s.z, y1.y * c.w + x1.y * s.w)};
}
DEVICE Four rotated_at(const StepArgs& a, const elem* row, int d, int position) { return rotated(unrotated_at(a, row, d, position)); }
DEVICE float dot4(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

#ifdef KEYS8
// Four numbers in units of `scale` as bytes, high and low part: x = scale (high + low / 254), exact to scale / 508.
DEVICE void in_two_parts(float4 x, float inverse, u32& high, u32& low) {
    float v[4] = {x.x * inverse, x.y * inverse, x.z * inverse, x.w * inverse};
    high = low = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float r = rintf(v[i]);
        high |= ((u32)(int)r & 255u) << (8 * i);
        low |= ((u32)(int)rintf((v[i] - r) * 254.0f) & 255u) << (8 * i);
    }
}
#endif

constexpr int QUERY_LANES = HALF / 4;   // threads of one head

// The part of the query that each thread rotates first, which may be asked for early.
DEVICE Unrotated start_selection_query(const StepArgs& a) {
    int h = min((int)threadIdx.x / QUERY_LANES, HEADS - 1);
    return unrotated_at(a, a.qkv + h * D, threadIdx.x % QUERY_LANES * 4, a.n_local);
}

// The query of every head rotated at position n_local, into shared memory as elements (and in two 8-bit parts); returns its
// cosine with the query of the last miss if `compare`. All blocks compute the same bits, so all decide alike.
DEVICE float selection_query(const StepArgs& a, u8* shared, bool compare, const Unrotated& started) {
    constexpr int LANES = QUERY_LANES;
    float dot = 0.0f, own = 0.0f, other = 0.0f, longest = 0.0f;
    for (int first = 0; first < HEADS * LANES; first += THREADS) {
        int i = first + threadIdx.x, h = min(i / LANES, HEADS - 1), d = i % LANES * 4;
        bool mine = i < HEADS * LANES;
        float4 x = make_float4(0, 0, 0, 0), y = x;
        if (compare && mine) {
            x = *(const float4*)(a.cache_query + h * D + d);
            y = *(const float4*)(a.cache_query + h * D + d + HALF);
        }
        Four q = rotated(first == 0 ? started : unrotated_at(a, a.qkv + h * D, d, a.n_local));
        float square = dot4(q.x, q.x) + dot4(q.y, q.y);
        dot += dot4(q.x, x) + dot4(q.y, y);
        own += mine ? square : 0.0f;
        other += dot4(x, x) + dot4(y, y);
        uint2 low = make_uint2(pack2(q.x.x, q.x.y), pack2(q.x.z, q.x.w)), high = make_uint2(pack2(q.y.x, q.y.y), pack2(q.y.z, q.y.w));
        elem* to = (elem*)(shared + AT_QUERY) + h * QUERY_ROW + d;
        if (mine) *(uint2*)to = low, *(uint2*)(to + HALF) = high;
#if defined(KEYS8) && FAST_SCORES
        float most = fmaxf(fmaxf(fmaxf(fabsf(q.x.x), fabsf(q.x.y)), fmaxf(fabsf(q.x.z), fabsf(q.x.w))),
                           fmaxf(fmaxf(fabsf(q.y.x), fabsf(q.y.y)), fmaxf(fabsf(q.y.z), fabsf(q.y.w))));
#pragma unroll
        for (int n = 1; n < LANES; n <<= 1) {
            most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, n));
            square += __shfl_xor_sync(FULL_MASK, square, n);
        }
        longest = fmaxf(longest, square);
        u8* parts = shared + AT_QUERY + AT_PARTS;
        float inverse = most > 0.0f ? 127.0f / most : 0.0f;
        u32 x_high, x_low, y_high, y_low;
        in_two_parts(q.x, inverse, x_high, x_low);
        in_two_parts(q.y, inverse, y_high, y_low);
        if (mine) {
            *(u32*)(parts + h * D + d) = x_high, *(u32*)(parts + h * D + d + HALF) = y_high;
            *(u32*)(parts + (HEADS + h) * D + d) = x_low, *(u32*)(parts + (HEADS + h) * D + d + HALF) = y_low;
            if (d == 0) ((float*)(parts + 2 * HEADS * D))[h] = most / 127.0f;
        }
#endif
    }
    float* reduce = (float*)(shared + AT_REDUCE);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    dot = warp_sum(dot), own = warp_sum(own), other = warp_sum(other), longest = warp_max(longest);
    if (lane == 0) reduce[warp] = dot, reduce[WARPS + warp] = own, reduce[2 * WARPS + warp] = other, reduce[3 * WARPS + warp] = longest;
    __syncthreads();
    dot = own = other = 0.0f;
    for (int w = 0; w < WARPS; w++) dot += reduce[w], own += reduce[WARPS + w], other += reduce[2 * WARPS + w];
    return compare ? dot / sqrtf(own * other) : 0.0f;
}

// The head whose scores are in column `column` of KV head `kv`.
DEVICE int query_head(const StepArgs& a, int kv, int column) {
    return a.flags & MODULO_HEADS ? column * KV_HEADS + kv : kv * GROUP + column;
}

// ---- scores ----------------------------------------------------------------------------------------------------------

#if FAST_SCORES
struct Batch {
    uint4 key[UNIT][2][CHUNKS];
#ifdef KEYS8
    float scale[UNIT][2];
#endif
};

#if !RING
// Unit `unit` of this warp: tiles lane + (unit * UNIT + u) * TILE_LANES. Tokens past the end repeat the last one.
DEVICE void load_batch(Batch& b, const StepArgs& a, const Slice& s, int kv, int tile_lane, int unit, u64 policy) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#ifdef KEYS8
    const u8* base = (const u8*)a.keys8;
#else
    const u8* base = (const u8*)a.keys;
#endif
#pragma unroll
    for (int u = 0; u < UNIT; u++) {
        int tile = tile_lane + (unit * UNIT + u) * TILE_LANES;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int token = s.lo + min(tile * TILE + half * 8 + g, s.count - 1);
            i64 row = (i64)token * KV_HEADS + kv;
            const u8* p = base + row * (D * KEY_BYTES) + t * 16;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) b.key[u][half][c] = load_once(p + c * 64, policy);
#ifdef KEYS8
            b.scale[u][half] = __ldg(a.scales8 + row);
#endif
        }
    }
}
#endif
#endif

#if RING
DEVICE u64* slot_barrier(u8* shared, int which, int tile_lane, int slot) {
    return (u64*)(shared + AT_BARRIERS) + (which * TILE_LANES + tile_lane) * SLOTS + slot;
}
// Unit `unit` of a tile lane on its way into its slot; by one thread.
DEVICE void fill_slot(const StepArgs& a, u8* shared, const Slice& s, int tile_lane, int unit, u64 policy) {
    int tile = tile_lane + unit * TILE_LANES, slot = unit % SLOTS;
#ifdef KEYS8
    const u8* base = (const u8*)a.keys8;
#else
    const u8* base = (const u8*)a.keys;
#endif
    constexpr int ROW = KV_HEADS * D * KEY_BYTES;
    bulk_copy(shared + AT_REGION + (tile_lane * SLOTS + slot) * SLOT, base + (i64)(s.lo + tile * TILE) * ROW,
              min(TILE, s.count - tile * TILE) * ROW, slot_barrier(shared, 0, tile_lane, slot), policy);
}
#endif

// First loads of the keys. The block's shared region is the ring's from here to the end of score.
DEVICE void start_scores(const StepArgs& a, u8* shared, const Slice& s) {
#if RING
    int tile_lane = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0 && tile_lane < TILE_LANES) {
        for (int slot = 0; slot < SLOTS; slot++) {
            barrier_init(slot_barrier(shared, 0, tile_lane, slot), 1);
            barrier_init(slot_barrier(shared, 1, tile_lane, slot), HEAD_LANES);
        }
        barriers_ready();
        u64 policy = once_policy();
        for (int unit = 0; unit < SLOTS; unit++)
            if (tile_lane + unit * TILE_LANES < s.tiles) fill_slot(a, shared, s, tile_lane, unit, policy);
    }
#ifdef KEYS8
    // Scales are asked for one tile ahead, less than the memory takes: they come from L2.
    constexpr int LINE = 32 / KV_HEADS > 0 ? 32 / KV_HEADS : 1;   // tokens whose scales fill 128 bytes
    for (int i = threadIdx.x * LINE; i < s.count; i += THREADS * LINE) prefetch_l2(a.scales8 + (i64)(s.lo + i) * KV_HEADS);
#endif
    __syncthreads();
#endif
}

#ifdef KEYS8
// How far the logarithm of a share is off where keys are rounded to 8 bits, in the mean, for the largest scale of a key and the
// longest query of a head: scale / sqrt(12) times the query's norm. From the largest of every warp, lengths squared.
DEVICE float rounding_error(const StepArgs& a, const float* scales, const float* lengths) {
    float scale = 0.0f, length = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) scale = fmaxf(scale, scales[w]), length = fmaxf(length, lengths[w]);
    return fminf(0.29f * sqrtf(length) * fabsf(a.score_scale) * scale, 0.25f);
}
#endif

// Scores of the block's slice into its tiles, or their maxima over every tile; statistics per score row to scratch: maximum and sum
// of exponentials; for KEYS8 how far scores are off.
DEVICE void score(const StepArgs& a, u8* shared, const Slice& s, const Scratch& scratch) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float2* statistics = (float2*)(shared + AT_HISTOGRAM);   // [TILE_LANES][HEADS]
    float largest_scale = 0.0f;
    if (s.count > 0) {
#if FAST_SCORES
        u64 policy = once_policy();
        int g = lane / 4, t = lane % 4;
        int tile_lane = warp / HEAD_LANES;
        if (tile_lane < TILE_LANES)
            for (int kv = warp % HEAD_LANES; kv < KV_HEADS; kv += HEAD_LANES) {
                // Any order of the summed index serves if keys and query share it: a lane's 16 neighbouring bytes of each
                // 64 are its part of two products.
#ifdef KEYS8
                const u8* high = shared + AT_QUERY + AT_PARTS;
                const float* query_scales = (const float*)(high + 2 * HEADS * D);
                uint4 part[2][COLUMNS][CHUNKS];
                float query_scale[COLUMNS][2];
#pragma unroll
                for (int n = 0; n < COLUMNS; n++) {
                    int column = n * 8 + g;
#pragma unroll
                    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                        for (int x = 0; x < 2; x++)
                            part[x][n][c] = column < GROUP
                                ? *(const uint4*)(high + x * HEADS * D + query_head(a, kv, column) * D + c * 64 + t * 16)
                                : make_uint4(0, 0, 0, 0);
#pragma unroll
                    for (int x = 0; x < 2; x++) {
                        int own = n * 8 + 2 * t + x;
                        query_scale[n][x] = own < GROUP ? query_scales[query_head(a, kv, own)] * a.score_scale : 0.0f;
                    }
                }
#else
                const elem* query = (const elem*)(shared + AT_QUERY);
                uint4 part[COLUMNS][CHUNKS];
#pragma unroll
                for (int n = 0; n < COLUMNS; n++) {
                    int column = n * 8 + g;
#pragma unroll
                    for (int c = 0; c < CHUNKS; c++)
                        part[n][c] = column < GROUP
                            ? *(const uint4*)(query + query_head(a, kv, column) * QUERY_ROW + c * 32 + t * 8)
                            : make_uint4(0, 0, 0, 0);
                }
#endif
                float most[COLUMNS][2], sum[COLUMNS][2];
#pragma unroll
                for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                    for (int x = 0; x < 2; x++) most[n][x] = LOWEST, sum[n][x] = 0.0f;

                int tiles = tile_lane < s.tiles ? (s.tiles - tile_lane + TILE_LANES - 1) / TILE_LANES : 0;
                int units = (tiles + UNIT - 1) / UNIT;
                auto multiply = [&](const Batch& b, float (&c)[UNIT][COLUMNS][4]) {
#pragma unroll
                    for (int u = 0; u < UNIT; u++)
#pragma unroll
                        for (int n = 0; n < COLUMNS; n++) {
#ifdef KEYS8
                            int high_sum[4] = {0, 0, 0, 0}, low_sum[4] = {0, 0, 0, 0};
#pragma unroll
                            for (int k = 0; k < CHUNKS; k++) {
                                uint4 x = b.key[u][0][k], y = b.key[u][1][k], p = part[0][n][k], q = part[1][n][k];
                                mma_16832(high_sum, x.x, y.x, x.y, y.y, p.x, p.y);
                                mma_16832(low_sum, x.x, y.x, x.y, y.y, q.x, q.y);
                                mma_16832(high_sum, x.z, y.z, x.w, y.w, p.z, p.w);
                                mma_16832(low_sum, x.z, y.z, x.w, y.w, q.z, q.w);
                            }
#pragma unroll
                            for (int i = 0; i < 4; i++)
                                c[u][n][i] = ((float)high_sum[i] + (float)low_sum[i] * (1.0f / 254.0f)) *
                                             (query_scale[n][i & 1] * b.scale[u][i >> 1]);
#else
                            float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                            for (int k = 0; k < CHUNKS; k++) {
                                uint4 x = b.key[u][0][k], y = b.key[u][1][k], p = part[n][k];
                                const u32 a1[4] = {x.x, y.x, x.y, y.y}, a2[4] = {x.z, y.z, x.w, y.w};
                                const u32 b1[2] = {p.x, p.y}, b2[2] = {p.z, p.w};
                                mma_16816(acc, a1, b1);
                                mma_16816(acc, a2, b2);
                            }
#pragma unroll
                            for (int i = 0; i < 4; i++) c[u][n][i] = acc[i] * a.score_scale;
#endif
                        }
                };
                auto finish = [&](const float (&c)[UNIT][COLUMNS][4], int unit) {
#pragma unroll
                    for (int u = 0; u < UNIT; u++) {
                        int tile = tile_lane + (unit * UNIT + u) * TILE_LANES;
                        if (UNIT > 1 && tile >= s.tiles) break;
                        float* to = tile_at(s, tile) + kv * GROUP * TILE + g;
                        float* top_to = s.maxima + kv * GROUP * s.stride + tile;
                        int left = s.count - tile * TILE - g;
#pragma unroll
                        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                            for (int x = 0; x < 2; x++) {
                                int column = n * 8 + 2 * t + x;
                                float lower = left > 0 ? c[u][n][x] : NEG_INF, upper = left > 8 ? c[u][n][x + 2] : NEG_INF;
                                float top = fmaxf(lower, upper), now = fmaxf(most[n][x], top);
                                sum[n][x] = sum[n][x] * fast_exp(most[n][x] - now) + fast_exp(lower - now) + fast_exp(upper - now);
                                most[n][x] = now;
                                if (s.bounds) {
#pragma unroll
                                    for (int d = 4; d < 32; d <<= 1) top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, d));
                                    if (g == 0 && column < GROUP) top_to[column * s.stride] = top;
                                } else if (column < GROUP) {
                                    to[column * TILE] = lower;
                                    to[column * TILE + 8] = upper;
                                }
                            }
                    }
                };
#if RING
                Batch b;
#ifdef KEYS8
                float scale[2];
                auto load_scales = [&](int unit) {
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        int at = (tile_lane + unit * TILE_LANES) * TILE + half * 8 + g;
                        scale[half] = __ldg(a.scales8 + (i64)(s.lo + min(at, s.count - 1)) * KV_HEADS + kv);
                    }
                };
                load_scales(0);
#endif
                for (int unit = 0; unit < units; unit++) {
                    int slot = unit % SLOTS;
                    barrier_wait(slot_barrier(shared, 0, tile_lane, slot), unit / SLOTS & 1);
                    const u8* from = shared + AT_REGION + (tile_lane * SLOTS + slot) * SLOT + (g * KV_HEADS + kv) * (D * KEY_BYTES) + t * 16;
#pragma unroll
                    for (int half = 0; half < 2; half++)
#pragma unroll
                        for (int k = 0; k < CHUNKS; k++)
                            b.key[0][half][k] = *(const uint4*)(from + half * (8 * KV_HEADS * D * KEY_BYTES) + k * 64);
#ifdef KEYS8
                    b.scale[0][0] = scale[0], b.scale[0][1] = scale[1];
                    largest_scale = fmaxf(largest_scale, fmaxf(scale[0], scale[1]));
                    load_scales(unit + 1);
#endif
                    __syncwarp();
                    if (lane == 0) barrier_arrive(slot_barrier(shared, 1, tile_lane, slot));
                    float c[UNIT][COLUMNS][4];
                    multiply(b, c);
                    finish(c, unit);
                    if (kv == 0 && lane == 0 && unit + SLOTS < units) {
                        barrier_wait(slot_barrier(shared, 1, tile_lane, slot), unit / SLOTS & 1);
                        fill_slot(a, shared, s, tile_lane, unit + SLOTS, policy);
                    }
                    __syncwarp();
                }
#else
                Batch batch[STAGES];
#pragma unroll
                for (int i = 0; i < STAGES; i++)
                    if (i < units) load_batch(batch[i], a, s, kv, tile_lane, i, policy);
                for (int first = 0; first < units; first += STAGES) {
#pragma unroll
                    for (int stage = 0; stage < STAGES; stage++) {
                        int unit = first + stage;
                        if (unit >= units) break;
                        float c[UNIT][COLUMNS][4];
                        multiply(batch[stage], c);
#ifdef KEYS8
                        for (int u = 0; u < UNIT; u++) largest_scale = fmaxf(largest_scale, fmaxf(batch[stage].scale[u][0], batch[stage].scale[u][1]));
#endif
                        if (unit + STAGES < units) load_batch(batch[stage], a, s, kv, tile_lane, unit + STAGES, policy);
                        finish(c, unit);
                    }
                }
#endif
#pragma unroll
                for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                    for (int x = 0; x < 2; x++) {
#pragma unroll
                        for (int d = 4; d < 32; d <<= 1) {
                            float m = __shfl_xor_sync(FULL_MASK, most[n][x], d), l = __shfl_xor_sync(FULL_MASK, sum[n][x], d);
                            float now = fmaxf(most[n][x], m);
                            sum[n][x] = sum[n][x] * fast_exp(most[n][x] - now) + l * fast_exp(m - now);
                            most[n][x] = now;
                        }
                        int column = n * 8 + 2 * t + x;
                        if (g == 0 && column < GROUP)
                            statistics[tile_lane * HEADS + kv * GROUP + column] = make_float2(most[n][x], sum[n][x]);
                    }
            }
#else
        // Any head dimension: a warp per token and KV head, lanes over the dimension.
        for (int i = warp; i < s.tiles * TILE * KV_HEADS; i += WARPS) {
            int at = i / KV_HEADS, kv = i % KV_HEADS;
            i64 row = (i64)(s.lo + min(at, s.count - 1)) * KV_HEADS + kv;
            for (int column = 0; column < GROUP; column++) {
                float x = 0.0f;
                const elem* query = (const elem*)(shared + AT_QUERY) + query_head(a, kv, column) * QUERY_ROW;
                for (int d = lane; d < D; d += 32)
#ifdef KEYS8
                    x += (float)a.keys8[row * D + d] * to_float(query[d]);
                x = warp_sum(x) * a.scales8[row] * a.score_scale;
#else
                    x += to_float(a.keys[row * D + d]) * to_float(query[d]);
                x = warp_sum(x) * a.score_scale;
#endif
                if (lane == 0) tile_at(s, at / TILE)[(kv * GROUP + column) * TILE + at % TILE] = at < s.count ? x : NEG_INF;
            }
        }
        __syncthreads();
        for (int row = warp; row < HEADS; row += WARPS) {
            float most = LOWEST, sum = 0.0f;
            for (int i = lane; i < s.count; i += 32) most = fmaxf(most, tile_at(s, i / TILE)[row * TILE + i % TILE]);
            most = warp_max(most);
            for (int i = lane; i < s.count; i += 32) sum += fast_exp(tile_at(s, i / TILE)[row * TILE + i % TILE] - most);
            sum = warp_sum(sum);
            if (lane < TILE_LANES) statistics[lane * HEADS + row] = lane ? make_float2(LOWEST, 0.0f) : make_float2(most, sum);
        }
#endif
    }
#ifdef KEYS8
    float* reduce = (float*)(shared + AT_REDUCE);
    largest_scale = warp_max(largest_scale);
    if (lane == 0) reduce[warp] = largest_scale;
#endif
    __syncthreads();
#ifdef KEYS8
    if (threadIdx.x == THREADS - 1)
        scratch.statistics[(i64)HEADS * gridDim.x + blockIdx.x] = make_float2(rounding_error(a, reduce, reduce + 3 * WARPS), 0.0f);
#endif
    for (int row = threadIdx.x; row < HEADS; row += THREADS) {
        float most = LOWEST, sum = 0.0f;
        if (s.count > 0)
            for (int i = 0; i < TILE_LANES; i++) {
                float2 x = statistics[i * HEADS + row];
                float now = fmaxf(most, x.x);
                sum = sum * fast_exp(most - now) + x.y * fast_exp(x.x - now);
                most = now;
            }
        scratch.statistics[(i64)row * gridDim.x + blockIdx.x] = make_float2(most, sum);
    }
}

// ---- votes -------------------------------------------------------------------------------------------------------------

// Statistics of all blocks: maximum and 1 / sum of every score row, and the largest error, to shared memory. Every wait for the L2
// costs more than the arithmetic: all loads of a row before the first use.
DEVICE void fold_statistics(u8* shared, const Scratch& scratch) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, blocks = gridDim.x;
    float2* fold = (float2*)(shared + AT_FOLD);
#pragma unroll 2
    for (int row = warp; row < STATISTICS; row += WARPS) {
        float most = LOWEST, sum = 0.0f;
        for (int from = 0; from < blocks; from += 32 * FOLD) {
            float2 x[FOLD];
#pragma unroll
            for (int i = 0; i < FOLD; i++) {
                int b = from + 32 * i + lane;
                x[i] = make_float2(LOWEST, 0.0f);
                if (b < blocks) x[i] = load_l2(scratch.statistics + (i64)row * blocks + b);
            }
            float now = most;
#pragma unroll
            for (int i = 0; i < FOLD; i++) now = fmaxf(now, x[i].x);
            sum *= fast_exp(most - now);
#pragma unroll
            for (int i = 0; i < FOLD; i++) sum += x[i].y * fast_exp(x[i].x - now);
            most = now;
        }
        float top = warp_max(most);
        sum = warp_sum(sum * fast_exp(most - top));
        if (lane == 0) fold[row] = make_float2(top, 1.0f / sum);
    }
    __syncthreads();
}

// A vote as a key: positive floats order as integers; NaN counts as zero, what is past all numbers as the highest of them.
constexpr int HIGHEST_KEY = 0x7f7fffff;
DEVICE int key_of(float vote) { return vote > 0.0f ? min(__float_as_int(vote), HIGHEST_KEY) : 0; }

// Votes of the slice from its scores, counted by `count(key)`.
template <class Count>
DEVICE void votes_of_scores(const Slice& s, const float2* fold, Count count) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // A warp reads 32 neighbouring words at a time: two rows of 16 tokens.
    constexpr int LINES = (HEADS + 1) / 2;
    constexpr int AT_ONCE = LINES <= 10 ? 4 : LINES <= 20 ? 2 : 1;   // tiles
    float most[LINES], weight[LINES];
#pragma unroll
    for (int i = 0; i < LINES; i++) {
        int row = 2 * i + lane / TILE;
        float2 f = fold[min(row, HEADS - 1)];
        most[i] = f.x * LOG2_E, weight[i] = row < HEADS ? f.y : 0.0f;
    }
    for (int first = warp; first < s.tiles; first += WARPS * AT_ONCE) {
        float x[AT_ONCE][LINES];
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            const float* p = tile_at(s, min(first + n * WARPS, s.tiles - 1));
#pragma unroll
            for (int i = 0; i < LINES; i++) x[n][i] = p[min(2 * i + lane / TILE, HEADS - 1) * TILE + lane % TILE];
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            int tile = first + n * WARPS;
            if (tile >= s.tiles) break;
            float vote = 0.0f;
#pragma unroll
            for (int i = 0; i < LINES; i++) vote += fast_exp2(fmaf(x[n][i], LOG2_E, -most[i])) * weight[i];
            vote += __shfl_xor_sync(FULL_MASK, vote, TILE);
            int at = tile * TILE + lane;
            if (lane < TILE && at < s.count) count(s.votes[at] = key_of(vote));
        }
    }
}

#if FAST_SCORES
// From the maxima of a tile: what no vote in it exceeds, in the place of the first maximum; `count` gets what one reaches.
// Both allow for scores that are off by ln `slack`.
template <class Count>
DEVICE void bounds_of_maxima(const Slice& s, const float2* fold, float slack, Count count) {
    for (int tile = threadIdx.x; tile < s.tiles; tile += THREADS) {
        float all = 0.0f, one = 0.0f;
#pragma unroll 4
        for (int row = 0; row < HEADS; row++) {
            float2 f = fold[row];
            float share = fast_exp(s.maxima[row * s.stride + tile] - f.x) * f.y;
            all += share;
            one = fmaxf(one, share);
        }
        s.maxima[tile] = all * slack;
        count(key_of(one / slack));
    }
}

// Votes of 16 tokens each of `units` units from the 16-bit keys: `token(unit, row)` says which, `put(unit, row, vote)` takes them.
// A warp takes one KV head of a unit at a time. In shared memory, all shares of a token are added up in the order of the heads.
template <class Token, class Put>
DEVICE void exact_votes(const StepArgs& a, u8* shared, const Slice& s, int units, Token token, Put put) {
    constexpr int PIECES = D / 8;                                      // of 16 bytes in a row
    constexpr int SWIZZLE = PIECES % 8 == 0 ? 7 : PIECES % 4 == 0 ? 3 : 1;   // keeps eight rows of a piece in different banks
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const float2* fold = (const float2*)(shared + AT_FOLD);
    const elem* query = (const elem*)(shared + AT_QUERY);
    float* shares = (float*)(shared + AT_HISTOGRAM);   // [units][KV_HEADS][TILE]
    elem* buffer = (elem*)(s.exact + warp * 2 * EXACT_STEP);
    for (int from = 0; from < units; from += EXACT_UNITS) {
        int count = min(EXACT_UNITS, units - from);
        int steps = warp < s.exact_warps ? (count * KV_HEADS - warp + s.exact_warps - 1) / s.exact_warps : 0;
        auto load = [&](int step) {
            if (step < steps) {
                int at = warp + step * s.exact_warps, unit = from + at / KV_HEADS, kv = at % KV_HEADS;
                elem* to = buffer + step % 2 * (TILE * D);
#pragma unroll
                for (int i = 0; i < TILE * PIECES / 32; i++) {
                    int row = (i * 32 + lane) / PIECES, piece = (i * 32 + lane) % PIECES;
                    cp_async_16(to + row * D + (piece ^ (row & SWIZZLE)) * 8, a.keys + ((i64)token(unit, row) * KV_HEADS + kv) * D + piece * 8);
                }
            }
            cp_async_commit();
        };
        load(0);
        for (int step = 0; step < steps; step++) {
            load(step + 1);
            cp_async_wait<1>();
            __syncwarp();
            int at = warp + step * s.exact_warps, kv = at % KV_HEADS;
            const elem* keys = buffer + step % 2 * (TILE * D);
            float c[COLUMNS][4];
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
#pragma unroll
            for (int k = 0; k < D / 32; k++) {
                u32 x[4], y[4];
                int row = lane % 16, piece = 4 * k + lane / 16;
                ldmatrix_x4(x, keys + row * D + (piece ^ (row & SWIZZLE)) * 8);
                ldmatrix_x4(y, keys + row * D + ((piece + 2) ^ (row & SWIZZLE)) * 8);
#pragma unroll
                for (int n = 0; n < COLUMNS; n++) {
                    u32 q[4];   // rows past the group repeat its last; their columns are not used
                    ldmatrix_x4(q, query + query_head(a, kv, min(n * 8 + lane % 8, GROUP - 1)) * QUERY_ROW + (4 * k + lane / 8) * 8);
                    const u32 first[2] = {q[0], q[1]}, second[2] = {q[2], q[3]};
                    mma_16816(c[n], x, first);
                    mma_16816(c[n], y, second);
                }
            }
            float lower = 0.0f, upper = 0.0f;
#pragma unroll
            for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                for (int x = 0; x < 2; x++) {
                    int column = n * 8 + 2 * t + x;
                    float2 f = fold[kv * GROUP + min(column, GROUP - 1)];
                    float weight = column < GROUP ? f.y : 0.0f;
                    lower += fast_exp(c[n][x] * a.score_scale - f.x) * weight;
                    upper += fast_exp(c[n][x + 2] * a.score_scale - f.x) * weight;
                }
#pragma unroll
            for (int d = 1; d < 4; d <<= 1) {
                lower += __shfl_xor_sync(FULL_MASK, lower, d);
                upper += __shfl_xor_sync(FULL_MASK, upper, d);
            }
            if (t == 0) shares[at * TILE + g] = lower, shares[at * TILE + g + 8] = upper;
            __syncwarp();
        }
        cp_async_wait<0>();
        __syncthreads();
        for (int i = threadIdx.x; i < count * TILE; i += THREADS) {
            float vote = 0.0f;
#pragma unroll 4
            for (int kv = 0; kv < KV_HEADS; kv++) vote += shares[(i / TILE * KV_HEADS + kv) * TILE + i % TILE];
            put(from + i / TILE, i % TILE, vote);
        }
        __syncthreads();
    }
}
#endif
