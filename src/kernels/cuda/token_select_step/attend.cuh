// ---- rows of the list ------------------------------------------------------------------------------------------------

// The packed list: [0, n_init), the selected, [tail, ...); position in it is position for the rotation.
struct List {
    int length, n_init, n_selected, tail;
};

// Without branches, so that several are looked up at once. Negative where nobody has published it yet.
DEVICE int token_of(const StepArgs& a, const List& list, int j) {
    int i = j - list.n_init, chosen = load_l2(a.selected + max(0, min(i, list.n_selected - 1)));
    return i < 0 ? j : i < list.n_selected ? chosen : list.tail + (i - list.n_selected);
}

// The share of the list that a (KV head, split) pair attends to.
struct Share {
    int kv, begin, end;
};
DEVICE Share share_of(const StepArgs& a, const List& list, int pair) {
    int splits = splits_of(gridDim.x);
    int first = a.sliding > 0 ? max(0, list.length - a.sliding) : 0;
    int per = (list.length - first + splits - 1) / splits;
    int begin = first + pair % splits * per;
    return {pair / splits, begin, min(list.length, begin + per)};
}

// Where piece `piece` of 8 elements of row `row` is: eight rows of a piece lie in different banks.
constexpr int ROW_SWIZZLE = PV_PIECES % 8 == 0 ? 7 : PV_PIECES % 4 == 0 ? 3 : 0;
DEVICE int at_piece(int row, int piece) { return row * D + (piece ^ (row & ROW_SWIZZLE)) * 8; }
DEVICE int at_element(int row, int d) { return at_piece(row, d / 8) + d % 8; }
// Of keys, of which four rows are read by halves of two pieces.
constexpr int KEY_SWIZZLE = PV_PIECES % 8 == 0 ? 3 : PV_PIECES % 4 == 0 ? 1 : 0;
DEVICE int at_key_piece(int row, int piece) { return row * D + (piece ^ (row & KEY_SWIZZLE) * 2) * 8; }
DEVICE int at_key_element(int row, int d) { return at_key_piece(row, d / 8) + d % 8; }

// Rows [first, first + count) of the packed list on their way into shared memory, all but the current token's. Values are
// zero from there to a whole tile, since they are multiplied by weights of zero. Without `wait`, for a list that may be given
// up: others may already unpublish it.
DEVICE void load_rows(const StepArgs& a, u8* region, const List& list, int kv, int first, int count, bool wait) {
    elem* k = (elem*)(region + IN_K);
    elem* v = (elem*)(region + IN_V);
    int filled = (count + TILE - 1) / TILE * TILE;
    count = min(count, list.length - 1 - first);
    constexpr int PASSES = (ATTEND_ROWS * PV_PIECES + THREADS - 1) / THREADS;
    int token[PASSES];
#pragma unroll
    for (int n = 0; n < PASSES; n++) token[n] = token_of(a, list, first + min((int)(n * THREADS + threadIdx.x) / PV_PIECES, ATTEND_ROWS - 1));
#pragma unroll
    for (int n = 0; n < PASSES; n++) {
        int row = (n * THREADS + threadIdx.x) / PV_PIECES, piece = (n * THREADS + threadIdx.x) % PV_PIECES;
        if (row < count) {
            if (token[n] < 0) token[n] = wait ? await_number(a.selected + first + row - list.n_init) : 0;
            i64 at = ((i64)token[n] * KV_HEADS + kv) * D + piece * 8;
            cp_async_16(k + at_key_piece(row, piece), a.keys + at);
            cp_async_16(v + at_piece(row, piece), a.values + at);
        } else if (row < filled) {
            *(uint4*)(v + at_piece(row, piece)) = make_uint4(0, 0, 0, 0);
        }
    }
    cp_async_commit();
}

// The current token is the last of the list; its key and value come from the projection. After load_rows, by threads that
// filled its row with zeros.
DEVICE void load_current(const StepArgs& a, u8* region, const List& list, int kv, int first, int count) {
    int row = list.length - 1 - first;
    if (row < 0 || row >= count) return;
    __syncthreads();
    const elem* from = a.qkv + (HEADS + kv) * D;
    for (int i = threadIdx.x; i < D; i += THREADS) {
        ((elem*)(region + IN_K))[at_key_element(row, i)] = from[i];
        ((elem*)(region + IN_V))[at_element(row, i)] = from[KV_HEADS * D + i];
    }
}

// ---- scores by matrix products -----------------------------------------------------------------------------------------

#if FAST_ATTEND
constexpr int ROW_TILES = ATTEND_ROWS / TILE;
constexpr int OWN_STEPS = (LOW_STEPS + PARTS - 1) / PARTS;   // steps of 16 dimensions of a warp, and their partners

// What rotates this lane's elements of its tile of rows: cosines and sines, [step][row g, row g + 8], of four dimensions from 4t on. Any
// order of the summed index serves if keys and query share it: a lane's four are its two pairs of a product.
struct Factors {
    float4 c[OWN_STEPS][2], s[OWN_STEPS][2];
};
DEVICE void load_factors(Factors& f, const StepArgs& a, int from, int end) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = warp / PARTS, part = warp % PARTS;
#pragma unroll
    for (int i = 0; i < OWN_STEPS; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = min(from + tile * TILE + half * 8 + lane / 4, end - 1);
            i64 at = (i64)row * HALF + min(part + i * PARTS, LOW_STEPS - 1) * 16 + lane % 4 * 4;
            f.c[i][half] = __ldg((const float4*)(a.cos_table + at));
            f.s[i][half] = __ldg((const float4*)(a.sin_table + at));
        }
}

// Two numbers as elements, and what these leave of them: the products of high and low parts are exact to 2^-16.
DEVICE void in_high_and_low(float x, float y, u32& high, u32& low) {
    high = pack2(x, y);
    float2 kept = unpack2(high);
    low = pack2(x - kept.x, y - kept.y);
}

// The queries of a KV head, rotated and scaled, as high and low parts.
DEVICE void load_queries(const StepArgs& a, u8* region, int kv, int position) {
    elem* q = (elem*)(region + IN_Q);
    for (int i = threadIdx.x; i < GROUP * HALF / 4; i += THREADS) {
        int h = i / (HALF / 4), d = i % (HALF / 4) * 4;
        Four x = rotated_at(a, a.qkv + (kv * GROUP + h) * D, d, position);
        float f = a.softmax_scale;
        float4 parts[2] = {x.x, x.y};
#pragma unroll
        for (int n = 0; n < 2; n++) {
            uint2 high, low;
            in_high_and_low(parts[n].x * f, parts[n].y * f, high.x, low.x);
            in_high_and_low(parts[n].z * f, parts[n].w * f, high.y, low.y);
            *(uint2*)(q + h * ROTATED_ROW + d + n * HALF) = high;
            *(uint2*)(q + (PADDED_HEADS + h) * ROTATED_ROW + d + n * HALF) = low;
        }
    }
}

// Scores of this warp's tile of rows over its part of the dimensions.
DEVICE void multiply_keys(u8* region, const Factors& factors, int count) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int tile = warp / PARTS, part = warp % PARTS;
    if (tile >= ROW_TILES || tile * TILE >= count) return;
    const elem* k = (const elem*)(region + IN_K);
    const elem* q = (const elem*)(region + IN_Q);
    float* scores = (float*)(region + IN_SCORES) + part * PADDED_HEADS * SCORE_ROW;
    float c[COLUMNS][4];
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
#pragma unroll
    for (int i = 0; i < OWN_STEPS; i++) {
        int step = part + i * PARTS;
        if (step >= LOW_STEPS) break;
        u32 high[2][4], low[2][4];   // [own step, partner][register]
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = tile * TILE + half * 8 + g, d = step * 16 + 4 * t;
            uint2 own = *(const uint2*)(k + at_key_element(row, d)), partner = *(const uint2*)(k + at_key_element(row, d + HALF));
            Four r = rotated({own, partner, factors.c[i][half], factors.s[i][half]});
            in_high_and_low(r.x.x, r.x.y, high[0][half], low[0][half]);
            in_high_and_low(r.x.z, r.x.w, high[0][half + 2], low[0][half + 2]);
            in_high_and_low(r.y.x, r.y.y, high[1][half], low[1][half]);
            in_high_and_low(r.y.z, r.y.w, high[1][half + 2], low[1][half + 2]);
        }
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int x = 0; x < 2; x++) {
                const elem* from = q + (n * 8 + g) * ROTATED_ROW + step * 16 + 4 * t + x * HALF;
                uint2 both = *(const uint2*)from, rest = *(const uint2*)(from + PADDED_HEADS * ROTATED_ROW);
                const u32 q_high[2] = {both.x, both.y}, q_low[2] = {rest.x, rest.y};
                mma_16816(c[n], high[x], q_high);
                mma_16816(c[n], high[x], q_low);
                mma_16816(c[n], low[x], q_high);
            }
    }
#pragma unroll
    for (int n = 0; n < COLUMNS; n++)
#pragma unroll
        for (int x = 0; x < 4; x++) scores[(n * 8 + 2 * t + x % 2) * SCORE_ROW + tile * TILE + g + x / 2 * 8] = c[n][x];
}

// Exponentials of the scores of `count` rows, as high and low parts, zero up to a whole tile; running maxima and sums.
DEVICE void weigh(u8* region, int count, float* most, float* weight, float* factor) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    constexpr int OWN = ATTEND_ROWS / 32;
    for (int h = warp; h < GROUP; h += WARPS) {
        const float* scores = (const float*)(region + IN_SCORES) + h * SCORE_ROW;
        elem* high = (elem*)(region + IN_WEIGHTS) + h * WEIGHT_ROW;
        elem* low = high + PADDED_HEADS * WEIGHT_ROW;
        float x[OWN], before = most[h], m = before, l = 0.0f;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            int row = i * 32 + lane;
            x[i] = NEG_INF;
            if (row < count) {
                x[i] = scores[row];
#pragma unroll
                for (int part = 1; part < PARTS; part++) x[i] += scores[part * PADDED_HEADS * SCORE_ROW + row];
            }
            m = fmaxf(m, x[i]);
        }
        m = warp_max(m);
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            float p = fast_exp(x[i] - m);
            l += p;
            elem rounded = from_float(p);
            high[i * 32 + lane] = rounded;
            low[i * 32 + lane] = from_float(p - to_float(rounded));
        }
        l = warp_sum(l);
        // Every lane has read `most`: the sums depend on it, and now the order of memory says so, too.
        __syncwarp();
        if (lane == 0) {
            float f = fast_exp(before - m);
            factor[h] = f;
            weight[h] = weight[h] * f + l;
            most[h] = m;
        }
    }
}

constexpr int OWN_PIECES = (PV_PIECES + WARPS - 1) / WARPS;   // of 8 dimensions of a warp
struct Sums {
    float c[OWN_PIECES][COLUMNS][2];   // [piece][head g, head g + 8][dimensions 2t, 2t + 1]
};

// Adds the weighted values.
DEVICE void add_values(Sums& sums, u8* region, int count, const float* factor) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const elem* v = (const elem*)(region + IN_V);
    const elem* high = (const elem*)(region + IN_WEIGHTS) + 2 * t;
    const elem* low = high + PADDED_HEADS * WEIGHT_ROW;
#pragma unroll
    for (int i = 0; i < OWN_PIECES; i++) {
        int piece = warp + i * WARPS;
        if (piece >= PV_PIECES) break;
        float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 2
        for (int from = 0; from < count; from += 32) {
            u32 values[4];
            ldmatrix_x4_trans(values, v + at_piece(from + lane, piece));
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int first = from + half * 16;
                if (first >= count) break;
                const u32 b[2] = {values[2 * half], values[2 * half + 1]};
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    const elem* p = (part ? low : high) + g * WEIGHT_ROW + first;
                    u32 a[4] = {*(const u32*)p, 0, *(const u32*)(p + 8), 0};
                    if (COLUMNS > 1) a[1] = *(const u32*)(p + 8 * WEIGHT_ROW), a[3] = *(const u32*)(p + 8 * WEIGHT_ROW + 8);
                    mma_16816(c, a, b);
                }
            }
        }
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            float f = factor[min(n * 8 + g, GROUP - 1)];
#pragma unroll
            for (int x = 0; x < 2; x++) sums.c[i][n][x] = sums.c[i][n][x] * f + c[2 * n + x];
        }
    }
}

DEVICE void store_sums(const Sums& sums, float* to) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < OWN_PIECES; i++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
            if (warp + i * WARPS < PV_PIECES && n * 8 + g < GROUP)
                *(float2*)(to + (n * 8 + g) * D + (warp + i * WARPS) * 8 + 2 * t) = make_float2(sums.c[i][n][0], sums.c[i][n][1]);
}

#else
// ---- any head dimension --------------------------------------------------------------------------------------------------

struct Factors {};
DEVICE void load_factors(Factors&, const StepArgs&, int, int) {}

DEVICE void load_queries(const StepArgs& a, u8* region, int kv, int position) {
    float* q = (float*)(region + IN_Q);
    for (int i = threadIdx.x; i < GROUP * HALF / 4; i += THREADS) {
        int h = i / (HALF / 4), d = i % (HALF / 4) * 4;
        Four x = rotated_at(a, a.qkv + (kv * GROUP + h) * D, d, position);
        float f = a.softmax_scale;
        *(float4*)(q + h * D + d) = make_float4(x.x.x * f, x.x.y * f, x.x.z * f, x.x.w * f);
        *(float4*)(q + h * D + d + HALF) = make_float4(x.y.x * f, x.y.y * f, x.y.z * f, x.y.w * f);
    }
}

// A warp per row, lanes over the dimensions. `from`: position of the first row.
DEVICE void multiply_keys(const StepArgs& a, u8* region, int from, int count) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const elem* k = (const elem*)(region + IN_K);
    const float* q = (const float*)(region + IN_Q);
    float* scores = (float*)(region + IN_SCORES);
    for (int row = warp; row < count; row += WARPS)
        for (int h = 0; h < GROUP; h++) {
            float dot = 0.0f;
            for (int d = lane; d < HALF; d += 32) {
                i64 at = (i64)(from + row) * HALF + d;
                float x = to_float(k[at_key_element(row, d)]), y = to_float(k[at_key_element(row, d + HALF)]);
                float c = a.cos_table[at], s = a.sin_table[at];
                dot += q[h * D + d] * (x * c - y * s) + q[h * D + d + HALF] * (y * c + x * s);
            }
            dot = warp_sum(dot);
            if (lane == 0) scores[h * SCORE_ROW + row] = dot;
        }
}

// Exponentials in the place of the scores; running maxima and sums.
DEVICE void weigh(u8* region, int count, float* most, float* weight, float* factor) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int h = warp; h < GROUP; h += WARPS) {
        float* scores = (float*)(region + IN_SCORES) + h * SCORE_ROW;
        float before = most[h], m = before, l = 0.0f;
        for (int i = lane; i < count; i += 32) m = fmaxf(m, scores[i]);
        m = warp_max(m);
        for (int i = lane; i < count; i += 32) {
            scores[i] = fast_exp(scores[i] - m);
            l += scores[i];
        }
        l = warp_sum(l);
        __syncwarp();
        if (lane == 0) {
            float f = fast_exp(before - m);
            factor[h] = f;
            weight[h] = weight[h] * f + l;
            most[h] = m;
        }
    }
}

// Sums are in shared memory, each element of one thread.
struct Sums {
    float* own;
};
DEVICE void add_values(Sums& sums, u8* region, int count, const float* factor) {
    const elem* v = (const elem*)(region + IN_V);
    const float* scores = (const float*)(region + IN_SCORES);
    for (int i = threadIdx.x; i < GROUP * D; i += THREADS) {
        float x = sums.own[i] * factor[i / D];
        for (int row = 0; row < count; row++) x += scores[i / D * SCORE_ROW + row] * to_float(v[at_element(row, i % D)]);
        sums.own[i] = x;
    }
}
DEVICE void store_sums(const Sums& sums, float* to) {
    for (int i = threadIdx.x; i < GROUP * D; i += THREADS) to[i] = sums.own[i];
}
#endif

DEVICE void clear_sums(Sums& sums, u8* region) {
#if FAST_ATTEND
#pragma unroll
    for (int i = 0; i < OWN_PIECES; i++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) sums.c[i][n][0] = sums.c[i][n][1] = 0.0f;
#else
    sums.own = (float*)(region + IN_WEIGHTS);
    for (int i = threadIdx.x; i < GROUP * D; i += THREADS) sums.own[i] = 0.0f;
#endif
}

// ---- attention -------------------------------------------------------------------------------------------------------

// What attend starts with, for this block's first share of the list: the keys and values, once the list is known, ..
DEVICE void start_rows(const StepArgs& a, u8* shared, const List& list, bool wait) {
    Share s = share_of(a, list, blockIdx.x);
    if (s.kv < KV_HEADS && s.begin < s.end) load_rows(a, shared + AT_REGION, list, s.kv, s.begin, min(ATTEND_ROWS, s.end - s.begin), wait);
}
// .. and the query and what rotates the keys, once its length is.
DEVICE void start_queries(const StepArgs& a, u8* shared, const List& list) {
    Share s = share_of(a, list, blockIdx.x);
    if (s.kv < KV_HEADS) load_queries(a, shared + AT_REGION, s.kv, list.length - 1);
}
DEVICE void start_factors(const StepArgs& a, const List& list, Factors& factors) {
    Share s = share_of(a, list, blockIdx.x);
    if (s.kv < KV_HEADS && s.begin < s.end) load_factors(factors, a, s.begin, s.end);
}

// The heads of KV head `kv` from the partial results of all its splits: split `split` takes heads split, split + splits, ..
DEVICE void combine(const StepArgs& a, u8* region, const Scratch& scratch, int kv, int split, int splits) {
    float* weights = (float*)(region + IN_K);        // [splits]
    float* sums = weights + 256;                     // [THREADS / D][D]
    float* total_at = (float*)(region + IN_ML);
    int thread = opaque(threadIdx.x);
    for (int h = split; h < GROUP; h += splits) {
        // Maxima and sums are all on their way before the first is used.
        constexpr int SUM_LANES = THREADS / D, SUMS = 12;
        int d = thread % D, j = thread / D;
        const float* from = scratch.partial_o + ((i64)kv * splits * GROUP + h) * D + d;
        float o[SUMS];
        auto load = [&](int base) {
#pragma unroll
            for (int n = 0; n < SUMS; n++) {
                int i = base + j + n * SUM_LANES;
                o[n] = j < SUM_LANES && i < splits ? load_l2(from + (i64)i * GROUP * D) : 0.0f;
            }
        };
        load(0);
        if (thread < 32) {
            float2 ml[8];
            float top = LOWEST, total = 0.0f;
#pragma unroll
            for (int n = 0; n < 8; n++) {
                int i = n * 32 + thread;
                ml[n] = i < splits ? load_l2(scratch.partial_ml + (kv * splits + i) * GROUP + h) : make_float2(LOWEST, 0.0f);
            }
#pragma unroll
            for (int n = 0; n < 8; n++) top = fmaxf(top, ml[n].x);
            top = warp_max(top);
#pragma unroll
            for (int n = 0; n < 8; n++) {
                float w = fast_exp(ml[n].x - top);
                if (n * 32 + thread < splits) weights[n * 32 + thread] = w;
                total += w * ml[n].y;
            }
            total = warp_sum(total);
            if (thread == 0) *total_at = 1.0f / total;
        }
        __syncthreads();
        float x = 0.0f;
        for (int base = 0; base < splits; base += SUMS * SUM_LANES) {
            if (base > 0) load(base);
#pragma unroll
            for (int n = 0; n < SUMS; n++) {
                int i = base + j + n * SUM_LANES;
                if (i < splits) x += weights[i] * o[n];
            }
        }
        if (j < SUM_LANES) sums[j * D + d] = x;
        __syncthreads();
        if (thread < D) {
            float x = 0.0f;
            for (int i = 0; i < SUM_LANES; i++) x += sums[i * D + thread];
            a.out[(kv * GROUP + h) * D + thread] = from_float(x * *total_at);
        }
        __syncthreads();
    }
}

// After start_rows and start_queries.
DEVICE void attend(const StepArgs& a, u8* shared, const Scratch& scratch, const List& list, Factors& factors) {
    int blocks = gridDim.x, splits = splits_of(blocks);
    u8* region = shared + AT_REGION;
    float* most = (float*)(region + IN_ML);
    float* weight = most + GROUP;
    float* factor = weight + GROUP;

    for (int pair = blockIdx.x; pair < KV_HEADS * splits; pair += blocks) {
        Share share = share_of(a, list, pair);
        int kv = share.kv, split = pair % splits, begin = share.begin, end = share.end;
        if (pair != blockIdx.x) {
            __syncthreads();
            if (begin < end) {
                load_rows(a, region, list, kv, begin, min(ATTEND_ROWS, end - begin), true);
                load_factors(factors, a, begin, end);
            }
            load_queries(a, region, kv, list.length - 1);
        }
        if (begin < end) load_current(a, region, list, kv, begin, min(ATTEND_ROWS, end - begin));
        if (threadIdx.x < GROUP) most[threadIdx.x] = LOWEST, weight[threadIdx.x] = 0.0f;
        Sums sums;
        clear_sums(sums, region);
        for (int from = begin; from < end; from += ATTEND_ROWS) {
            int count = min(ATTEND_ROWS, end - from);
            if (from > begin) {
                __syncthreads();
                load_rows(a, region, list, kv, from, count, true);
                load_current(a, region, list, kv, from, count);
                load_factors(factors, a, from, end);
            }
            cp_async_wait<0>();
            __syncthreads();
#if FAST_ATTEND
            multiply_keys(region, factors, count);
#else
            multiply_keys(a, region, from, count);
#endif
            __syncthreads();
            weigh(region, count, most, weight, factor);
            __syncthreads();
            add_values(sums, region, count, factor);
        }
        store_sums(sums, scratch.partial_o + (i64)pair * GROUP * D);
        if (threadIdx.x < GROUP)
            scratch.partial_ml[pair * GROUP + threadIdx.x] = make_float2(most[threadIdx.x], weight[threadIdx.x]);

        // The splits of a KV head share its heads out once all of them have arrived.
        __syncthreads();
        if (threadIdx.x == 0) {
            u64* counter = scratch.arrivals + kv;
            u64 arrived = arrive(counter);
            if (split < GROUP) wait_until(counter, (arrived / splits + 1) * splits);
        }
        if (split >= GROUP) continue;
        __syncthreads();
        combine(a, region, scratch, kv, split, splits);
    }
}

// ---- the current token -------------------------------------------------------------------------------------------------

// Its key and value into the cache, and the 8-bit copy of the key where there is one: by the last block.
DEVICE void append(const StepArgs& a, int current) {
    if (blockIdx.x != gridDim.x - 1 || current >= a.capacity) return;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const elem* key = a.qkv + HEADS * D;
    for (int i = threadIdx.x; i < KV_HEADS * D; i += THREADS) {
        a.keys[(i64)current * KV_HEADS * D + i] = key[i];
        a.values[(i64)current * KV_HEADS * D + i] = key[KV_HEADS * D + i];
    }
    if (a.keys8)
        for (int kv = warp; kv < KV_HEADS; kv += WARPS) {
            float most = 0.0f;
            for (int d = lane; d < D; d += 32) most = fmaxf(most, fabsf(to_float(key[kv * D + d])));
            most = warp_max(most);
            float inverse = most > 0.0f ? 127.0f / most : 0.0f;
            i64 row = (i64)current * KV_HEADS + kv;
            for (int d = lane; d < D; d += 32) a.keys8[row * D + d] = (i8)(int)rintf(to_float(key[kv * D + d]) * inverse);
            if (lane == 0) a.scales8[row] = most / 127.0f;
        }
}
