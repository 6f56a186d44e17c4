// Attention of training, forward and backward, with or without the learned relative positions of Transformer-XL.
//
//   score(i, j) = ((q_i + v) . k_j + q_i . R_u + S_u) / sqrt(dk),  u the distance j - M - i <= 0; later keys are hidden
//
// Nothing of size T x N exists: the backward kernels compute the weights again from the logarithm of each row's sum, so
// memory is linear in the segment. Each gradient has a kernel whose blocks own what they sum, in a fixed order and
// without atomics, so a run repeats bit by bit:
//   train_attend                 grid (ceil(T / BQ), H B): out [T][B][d], log_sums [H B][T]
//   train_attend_query_gradient  the same: d_query [T][B][d], delta [H B][T] (the products of out and its gradient), and
//                                partial sums of v's gradient [B ceil(T / BQ)][d]
//   train_attend_key_gradient    grid (ceil(N / BQ), H B): d_key, d_value [N][B][d]
//   train_attend_table_gradient  grid (diagonals, H, splits): partial sums of R and S over the tiles of one diagonal, where
//                                j0 - i0 is constant and so the 2 BQ - 1 distances are the same
//   train_sum_table              grid (rows in reach): those partial sums to the gradients of R and S
// Blocks of 32 WARPS threads; a warp owns 16 of the BQ = 16 WARPS query rows of a tile of BQ x BQ pairs.
//
// The shift: a warp's 16 rows and BQ keys need BQ + 15 distances. Their products with q are one more tile, which goes
// through shared memory to come back one column further per row. Backward, the same in the other direction.
//
// Sums are products of tiles in shared memory: mma.sync for bfloat16, f32 arithmetic in the same layout for f32.
// Compile-time: HEAD_DIM, WARPS (4; 2 where f32 tiles would not fit), RELATIVE 0 or 1.

#ifndef RELATIVE
#define RELATIVE 0
#endif
#ifndef WARPS
#define WARPS 4
#endif
#define THREADS (32 * WARPS)
#define BQ (16 * WARPS)
#define PADDED ((HEAD_DIM + 15) / 16 * 16)
#ifdef TRAIN_F32
#define PAD 4
#else
#define PAD 8
#endif
#define LD (PADDED + PAD)     // of rows of a head in shared memory
#define PLD (BQ + PAD)        // of attention weights
#define XCOLS (BQ + 16)       // distances of a warp
#define XLD (XCOLS + 1)       // of their products, f32
#define SLD (XCOLS + PAD)     // of sheared gradients of a warp
#define ZLD (2 * BQ + PAD)    // of sheared gradients of a block
#define KT (BQ / 8)           // 8-column tiles over keys
#define OT (PADDED / 8)       // and over a head

// Tiles of rows of a head: q, k, v and others take HEAD_TILE, the distances twice that.
#define HEAD_TILE (BQ * LD)

// ---- products of tiles ---------------------------------------------------------------------------------------------

// sum[16][8 NT] += a b on one warp. Element (i, k) of a is a[i lda + k], or a[k lda + i] if A_BY_K; element (k, n) of b is
// b[n ldb + k], or b[k ldb + n] if B_BY_K. Lane 4 g + t holds rows g and g + 8, columns 2t and 2t + 1 of each tile of 8.
template <int NT, int K, bool A_BY_K, bool B_BY_K>
DEVICE void product(float (&sum)[NT][4], const value* a, int lda, const value* b, int ldb) {
    int lane = threadIdx.x % 32;
#ifdef TRAIN_F32
    int g = lane / 4, t = lane % 4;
#pragma unroll 2
    for (int k = 0; k < K; k += 4) {
        float a0[4], a1[4];
        if (A_BY_K) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                a0[e] = a[(k + e) * lda + g];
                a1[e] = a[(k + e) * lda + g + 8];
            }
        } else {
            *(float4*)a0 = *(const float4*)(a + g * lda + k);
            *(float4*)a1 = *(const float4*)(a + (g + 8) * lda + k);
        }
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float b0[4], b1[4];
            if (B_BY_K) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float2 pair = *(const float2*)(b + (k + e) * ldb + 8 * n + 2 * t);
                    b0[e] = pair.x;
                    b1[e] = pair.y;
                }
            } else {
                *(float4*)b0 = *(const float4*)(b + (8 * n + 2 * t) * ldb + k);
                *(float4*)b1 = *(const float4*)(b + (8 * n + 2 * t + 1) * ldb + k);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                sum[n][0] += a0[e] * b0[e];
                sum[n][1] += a0[e] * b1[e];
                sum[n][2] += a1[e] * b0[e];
                sum[n][3] += a1[e] * b1[e];
            }
        }
    }
#else
    int row = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        u32 x[4];
        if (A_BY_K) ldmatrix_x4_trans(x, a + (k + high + row) * lda + low);
        else ldmatrix_x4(x, a + (low + row) * lda + k + high);
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            u32 y[4];
            if (B_BY_K) ldmatrix_x4_trans(y, b + (k + low + row) * ldb + 8 * n + high);
            else ldmatrix_x4(y, b + (8 * n + high + row) * ldb + k + low);
            u32 first[2] = {y[0], y[1]}, second[2] = {y[2], y[3]};
            mma_16816(sum[n], x, first);
            mma_16816(sum[n + 1], x, second);
        }
    }
#endif
}

template <int NT> DEVICE void clear(float (&sum)[NT][4]) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) sum[n][e] = 0.0f;
}

// Place of element e of tile n of this lane.
DEVICE int row_of(int e) { return threadIdx.x % 32 / 4 + 8 * (e / 2); }
DEVICE int column_of(int n, int e) { return 8 * n + 2 * (threadIdx.x % 4) + e % 2; }

// ---- loading -------------------------------------------------------------------------------------------------------

// Rows 0 to `rows` of a head, `stride` elements apart, to shared memory; rows outside [low, high) are zeros, and so are
// columns past HEAD_DIM.
DEVICE void load_rows(value* to, const value* from, i64 stride, int rows, int low, int high) {
    const int step = 16 / sizeof(value);
    if (HEAD_DIM % step == 0) {
        for (int at = threadIdx.x; at < rows * (PADDED / step); at += THREADS) {
            int r = at / (PADDED / step), c = at % (PADDED / step) * step;
            bool there = r >= low && r < high && c < HEAD_DIM;
            *(uint4*)(to + r * LD + c) = there ? *(const uint4*)(from + r * stride + c) : make_uint4(0, 0, 0, 0);
        }
    } else {
        for (int at = threadIdx.x; at < rows * PADDED; at += THREADS) {
            int r = at / PADDED, c = at % PADDED;
            bool there = r >= low && r < high && c < HEAD_DIM;
            to[r * LD + c] = there ? from[r * stride + c] : store(0.0f);
        }
    }
}

// What all kernels are given.
struct Operands {
    const value* query;       // [T][B][d]
    const value* key;         // [N][B][d]
    const value* stored;      // values, [N][B][d]
    const value* table;       // R, [rows][H][dk]
    const float* table_bias;  // S, [rows][H]
    const float* query_bias;  // v, [H][dk]
    Dropout drop;             // of the attention weights
    int place;                // of its key
    int batch, heads, segment, memory;
    int zero;                 // the table's row of distance 0
};

// One head of one stream.
struct Task {
    int head, stream, number, keys;
    i64 stride, offset;
    float scale;
    u64 key;
};

DEVICE Task task_of(const Operands& x, int head, int stream) {
    Task task;
    task.head = head;
    task.stream = stream;
    task.number = head * x.batch + stream;
    task.keys = x.memory + x.segment;
    task.stride = (i64)x.batch * x.heads * HEAD_DIM;
    task.offset = (i64)stream * x.heads * HEAD_DIM + head * HEAD_DIM;
    task.scale = rsqrtf((float)HEAD_DIM);
    task.key = x.drop.threshold ? x.drop.keys[x.place] : 0;
    return task;
}

// The task of a block whose place y in the grid counts heads and streams.
DEVICE Task task_of_block(const Operands& x) { return task_of(x, blockIdx.y / x.batch, blockIdx.y % x.batch); }

// A tile of the task's rows from row `first` on; rows from `end` on are zeros.
DEVICE void load_tile(value* to, const value* from, const Task& task, int first, int end) {
    load_rows(to, from + task.offset + first * task.stride, task.stride, BQ, 0, end - first);
}

// q and q + v of the rows from i0; without relative positions both are q.
DEVICE void load_queries(const Operands& x, const Task& task, int i0, value* q, value* biased) {
    load_tile(q, x.query, task, i0, x.segment);
#if RELATIVE
    __syncthreads();
    for (int at = threadIdx.x; at < BQ * PADDED; at += THREADS) {
        int r = at / PADDED, c = at % PADDED;
        float v = c < HEAD_DIM ? x.query_bias[task.head * HEAD_DIM + c] : 0.0f;
        biased[r * LD + c] = store(load(q[r * LD + c]) + v);
    }
#endif
}

// The table's row of place 0 of a tile: place p is of distance j - M - i with p = (j - j0) - (i - i0) + BQ - 1.
DEVICE int first_row(const Operands& x, int i0, int j0) { return x.zero + j0 - i0 - x.memory - (BQ - 1); }

// R and S of the distances of a tile.
DEVICE void load_distances(const Operands& x, const Task& task, int i0, int j0, value* r, float* bias) {
#if RELATIVE
    int first = first_row(x, i0, j0), oldest = x.zero + 1 - task.keys;
    i64 stride = (i64)x.heads * HEAD_DIM;
    load_rows(r, x.table + first * stride + task.head * HEAD_DIM, stride, 2 * BQ, oldest - first, x.zero + 1 - first);
    for (int p = threadIdx.x; p < 2 * BQ; p += THREADS) {
        int row = first + p;
        bias[p] = row >= oldest && row <= x.zero ? x.table_bias[(i64)row * x.heads + task.head] : 0.0f;
    }
#endif
}

// ---- scores --------------------------------------------------------------------------------------------------------

// Scaled scores of the warp's rows against the keys of the tile at (i0, j0); -inf where a key is hidden. `shift` is the
// warp's own [16][XLD] and free afterwards, once the warp has met.
DEVICE void scores(float (&s)[KT][4], const Operands& x, const Task& task, int i0, int j0, const value* q,
    const value* biased, const value* k, const value* r, const float* bias, float* shift) {
    int warp = threadIdx.x / 32;
    clear(s);
    product<KT, PADDED, false, false>(s, biased + 16 * warp * LD, LD, k, LD);
#if RELATIVE
    // Row r and key c of the warp's tile meet at place start + c - r + 15.
    int start = BQ - 16 - 16 * warp;
    float far[KT + 2][4];
    clear(far);
    product<KT + 2, PADDED, false, false>(far, q + 16 * warp * LD, LD, r + start * LD, LD);
    __syncwarp();
#pragma unroll
    for (int n = 0; n < KT + 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            shift[row_of(e) * XLD + column_of(n, e)] = far[n][e] + bias[start + column_of(n, e)];
    __syncwarp();
#pragma unroll
    for (int n = 0; n < KT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[n][e] += shift[row_of(e) * XLD + column_of(n, e) - row_of(e) + 15];
#endif
#pragma unroll
    for (int n = 0; n < KT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = i0 + 16 * warp + row_of(e), j = j0 + column_of(n, e);
            s[n][e] = i < x.segment && j <= i + x.memory ? s[n][e] * task.scale : NEG_INF;
        }
}

// Factor of dropout on the weight of row i and key j.
DEVICE float weight_factor(const Operands& x, const Task& task, int i, int j) {
    return x.drop.threshold ? dropout_factor(x.drop, task.key, task.number * x.segment + i, j) : 1.0f;
}

// ---- forward -------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS) train_attend(Operands x, value* out, float* log_sums) {
    extern __shared__ __align__(16) u8 shared[];
    value* q = (value*)shared;
    value* biased = RELATIVE ? q + HEAD_TILE : q;
    value* k = biased + HEAD_TILE;
    value* v = k + HEAD_TILE;
    value* r = v + HEAD_TILE;
    float* bias = (float*)(r + RELATIVE * 2 * HEAD_TILE);
    int warp = threadIdx.x / 32;
    float* shift = bias + RELATIVE * 2 * BQ + warp * 16 * XLD;
    value* weights = (value*)shift;

    // Blocks with the most keys first.
    int i0 = (gridDim.x - 1 - blockIdx.x) * BQ;
    Task task = task_of_block(x);
    load_queries(x, task, i0, q, biased);
    float sum[OT][4], largest[2] = {NEG_INF, NEG_INF}, total[2] = {0.0f, 0.0f};
    clear(sum);
    int columns = min(task.keys, x.memory + i0 + BQ);
    for (int j0 = 0; j0 < columns; j0 += BQ) {
        __syncthreads();
        load_tile(k, x.key, task, j0, task.keys);
        load_tile(v, x.stored, task, j0, task.keys);
        load_distances(x, task, i0, j0, r, bias);
        __syncthreads();
        float s[KT][4];
        scores(s, x, task, i0, j0, q, biased, k, r, bias, shift);
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = largest[half];
#pragma unroll
            for (int n = 0; n < KT; n++) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
            most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, 1));
            most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, 2));
            // A row past the segment sees nothing.
            float base = most == NEG_INF ? 0.0f : most, factor = fast_exp(largest[half] - base);
            largest[half] = most;
            total[half] *= factor;
#pragma unroll
            for (int n = 0; n < OT; n++) {
                sum[n][2 * half] *= factor;
                sum[n][2 * half + 1] *= factor;
            }
            int row = row_of(2 * half), i = i0 + 16 * warp + row;
#pragma unroll
            for (int n = 0; n < KT; n++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    float p = fast_exp(s[n][e] - base);
                    total[half] += p;
                    weights[row * PLD + column_of(n, e)] = store(p * weight_factor(x, task, i, j0 + column_of(n, e)));
                }
        }
        __syncwarp();
        product<OT, BQ, false, true>(sum, weights, PLD, v, LD);
        __syncwarp();
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(FULL_MASK, total[half], 1);
        total[half] += __shfl_xor_sync(FULL_MASK, total[half], 2);
        int i = i0 + 16 * warp + row_of(2 * half);
        if (i >= x.segment) continue;
        float inverse = 1.0f / total[half];
#pragma unroll
        for (int n = 0; n < OT; n++)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; e++) {
                int c = column_of(n, e);
                if (c < HEAD_DIM) out[task.offset + i * task.stride + c] = store(sum[n][e] * inverse);
            }
        if (threadIdx.x % 4 == 0) log_sums[(i64)task.number * x.segment + i] = largest[half] + logf(total[half]);
    }
}

// ---- backward ------------------------------------------------------------------------------------------------------

// What the backward kernels are given beside the operands.
struct Backward {
    const value* d_out;     // gradient of the result, [T][B][d]
    const float* log_sums;  // [H B][T]
    float* delta;           // [H B][T]
};

// Weights after dropout into p, and gradients of the scores into ds, of the warp's rows and the tile's keys.
DEVICE void score_gradients(float (&p)[KT][4], float (&ds)[KT][4], const Operands& x, const Task& task, int i0, int j0,
    const float (&log_sum)[2], const float (&delta)[2], const value* d_out, const value* v) {
    int warp = threadIdx.x / 32;
    clear(ds);
    product<KT, PADDED, false, false>(ds, d_out + 16 * warp * LD, LD, v, LD);
#pragma unroll
    for (int n = 0; n < KT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float weight = fast_exp(p[n][e] - log_sum[e / 2]);
            float factor = weight_factor(x, task, i0 + 16 * warp + row_of(e), j0 + column_of(n, e));
            ds[n][e] = weight * (ds[n][e] * factor - delta[e / 2]);
            p[n][e] = weight * factor;
        }
}

// Two numbers of the lane's rows; 0 past the segment.
DEVICE void load_pair(float (&pair)[2], const float* from, const Operands& x, const Task& task, int i0) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int i = i0 + 16 * (threadIdx.x / 32) + row_of(2 * half);
        pair[half] = i < x.segment ? from[(i64)task.number * x.segment + i] : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) train_attend_query_gradient(Operands x, Backward y, const value* out,
    value* d_query, float* d_query_bias) {
    extern __shared__ __align__(16) u8 shared[];
    value* q = (value*)shared;
    value* biased = RELATIVE ? q + HEAD_TILE : q;
    value* d_out = biased + HEAD_TILE;
    value* k = d_out + HEAD_TILE;
    value* v = k + HEAD_TILE;
    value* r = v + HEAD_TILE;
    float* bias = (float*)(r + RELATIVE * 2 * HEAD_TILE);
    int warp = threadIdx.x / 32;
    float* shifts = bias + RELATIVE * 2 * BQ;
    float* shift = shifts + warp * 16 * XLD;
    value* gradient = (value*)shift;
    value* sheared = (value*)(shifts + WARPS * 16 * XLD) + warp * 16 * SLD;

    int block = gridDim.x - 1 - blockIdx.x, i0 = block * BQ;
    Task task = task_of_block(x);
    load_queries(x, task, i0, q, biased);
    load_tile(d_out, y.d_out, task, i0, x.segment);
#if RELATIVE
    for (int at = threadIdx.x % 32; at < 16 * SLD; at += 32) sheared[at] = store(0.0f);
#endif
    __syncthreads();
    {
        // Two threads for each row's product of result and gradient.
        int row = threadIdx.x / 2, i = i0 + row;
        float sum = 0.0f;
        if (i < x.segment) {
            const value* from = out + task.offset + i * task.stride;
            for (int c = threadIdx.x % 2; c < HEAD_DIM; c += 2) sum += load(from[c]) * load(d_out[row * LD + c]);
        }
        sum += __shfl_xor_sync(FULL_MASK, sum, 1);
        if (i < x.segment && threadIdx.x % 2 == 0) y.delta[(i64)task.number * x.segment + i] = sum;
    }
    __syncthreads();
    float log_sum[2], delta[2];
    load_pair(log_sum, y.log_sums, x, task, i0);
    load_pair(delta, y.delta, x, task, i0);
    float near[OT][4], far[OT][4];
    clear(near);
    clear(far);
    int columns = min(task.keys, x.memory + i0 + BQ);
    for (int j0 = 0; j0 < columns; j0 += BQ) {
        __syncthreads();
        load_tile(k, x.key, task, j0, task.keys);
        load_tile(v, x.stored, task, j0, task.keys);
        load_distances(x, task, i0, j0, r, bias);
        __syncthreads();
        float p[KT][4], ds[KT][4];
        scores(p, x, task, i0, j0, q, biased, k, r, bias, shift);
        score_gradients(p, ds, x, task, i0, j0, log_sum, delta, d_out, v);
        __syncwarp();
#pragma unroll
        for (int n = 0; n < KT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = row_of(e), column = column_of(n, e);
                gradient[row * PLD + column] = store(ds[n][e]);
                if (RELATIVE) sheared[row * SLD + column - row + 15] = store(ds[n][e]);
            }
        __syncwarp();
        product<OT, BQ, false, true>(near, gradient, PLD, k, LD);
#if RELATIVE
        product<OT, XCOLS, false, true>(far, sheared, SLD, r + (BQ - 16 - 16 * warp) * LD, LD);
#endif
        __syncwarp();
    }
#pragma unroll
    for (int n = 0; n < OT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = i0 + 16 * warp + row_of(e), c = column_of(n, e);
            if (i < x.segment && c < HEAD_DIM)
                d_query[task.offset + i * task.stride + c] = store((near[n][e] + far[n][e]) * task.scale);
        }
#if RELATIVE
    // The sum over the block's rows: over the lanes of a column, then over the warps.
    __syncthreads();
#pragma unroll
    for (int n = 0; n < OT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float sum = near[n][e] + near[n][e + 2];
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(FULL_MASK, sum, lanes);
            if (threadIdx.x % 32 < 4) shifts[warp * PADDED + column_of(n, e)] = sum;
        }
    __syncthreads();
    for (int c = threadIdx.x; c < HEAD_DIM; c += THREADS) {
        float sum = 0.0f;
        for (int w = 0; w < WARPS; w++) sum += shifts[w * PADDED + c];
        i64 chunk = (i64)task.stream * gridDim.x + block;
        d_query_bias[(chunk * x.heads + task.head) * HEAD_DIM + c] = sum * task.scale;
    }
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS) train_attend_key_gradient(Operands x, Backward y, value* d_key,
    value* d_value) {
    extern __shared__ __align__(16) u8 shared[];
    value* q = (value*)shared;
    value* biased = RELATIVE ? q + HEAD_TILE : q;
    value* d_out = biased + HEAD_TILE;
    value* k = d_out + HEAD_TILE;
    value* v = k + HEAD_TILE;
    value* weights = v + HEAD_TILE;
    value* gradient = weights + BQ * PLD;
    value* r = gradient + BQ * PLD;
    float* bias = (float*)(r + RELATIVE * 2 * HEAD_TILE);
    int warp = threadIdx.x / 32;
    float* shift = bias + RELATIVE * (2 * BQ + warp * 16 * XLD);

    int j0 = blockIdx.x * BQ;
    Task task = task_of_block(x);
    load_tile(k, x.key, task, j0, task.keys);
    load_tile(v, x.stored, task, j0, task.keys);
    float of_key[OT][4], of_value[OT][4];
    clear(of_key);
    clear(of_value);
    // The first rows that see the block's first key.
    for (int i0 = max(0, j0 - x.memory) / BQ * BQ; i0 < x.segment; i0 += BQ) {
        __syncthreads();
        load_tile(d_out, y.d_out, task, i0, x.segment);
        load_distances(x, task, i0, j0, r, bias);
        load_queries(x, task, i0, q, biased);
        float log_sum[2], delta[2];
        load_pair(log_sum, y.log_sums, x, task, i0);
        load_pair(delta, y.delta, x, task, i0);
        __syncthreads();
        float p[KT][4], ds[KT][4];
        scores(p, x, task, i0, j0, q, biased, k, r, bias, shift);
        score_gradients(p, ds, x, task, i0, j0, log_sum, delta, d_out, v);
#pragma unroll
        for (int n = 0; n < KT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int at = (16 * warp + row_of(e)) * PLD + column_of(n, e);
                weights[at] = store(p[n][e]);
                gradient[at] = store(ds[n][e]);
            }
        __syncthreads();
        product<OT, BQ, true, true>(of_value, weights + 16 * warp, PLD, d_out, LD);
        product<OT, BQ, true, true>(of_key, gradient + 16 * warp, PLD, biased, LD);
    }
#pragma unroll
    for (int n = 0; n < OT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int j = j0 + 16 * warp + row_of(e), c = column_of(n, e);
            if (j >= task.keys || c >= HEAD_DIM) continue;
            d_key[task.offset + j * task.stride + c] = store(of_key[n][e] * task.scale);
            d_value[task.offset + j * task.stride + c] = store(of_value[n][e]);
        }
}

#if RELATIVE

// Place x of the grid is the diagonal of tiles with j0 - i0 = (x - (tiles of rows - 1)) BQ. Partial sums:
// [splits][diagonals][H][2 BQ] places, of dk elements for R and one for S.
extern "C" __global__ void __launch_bounds__(THREADS) train_attend_table_gradient(Operands x, Backward y, float* d_table,
    float* d_bias) {
    extern __shared__ __align__(16) u8 shared[];
    value* q = (value*)shared;
    value* biased = q + HEAD_TILE;
    value* d_out = biased + HEAD_TILE;
    value* k = d_out + HEAD_TILE;
    value* v = k + HEAD_TILE;
    value* r = v + HEAD_TILE;
    value* sheared = r + 2 * HEAD_TILE;
    float* bias = (float*)(sheared + BQ * ZLD);
    int warp = threadIdx.x / 32;
    float* shift = bias + 2 * BQ + warp * 16 * XLD;

    int keys = x.memory + x.segment, row_tiles = (x.segment + BQ - 1) / BQ, key_tiles = (keys + BQ - 1) / BQ;
    int diagonal = (int)blockIdx.x - (row_tiles - 1), head = blockIdx.y, split = blockIdx.z;
    int first = x.batch * split / gridDim.z, last = x.batch * (split + 1) / gridDim.z;
    // Places that no pair of a row has stay 0.
    for (int at = threadIdx.x; at < BQ * ZLD; at += THREADS) sheared[at] = store(0.0f);
    {
        Task task = task_of(x, head, first);
        load_distances(x, task, 0, diagonal * BQ, r, bias);
    }
    float sum[2][OT][4], bias_sum = 0.0f;
    clear(sum[0]);
    clear(sum[1]);
    for (int stream = first; stream < last; stream++) {
        Task task = task_of(x, head, stream);
        for (int tile = max(0, -diagonal); tile < row_tiles && tile + diagonal < key_tiles; tile++) {
            int i0 = tile * BQ, j0 = (tile + diagonal) * BQ;
            __syncthreads();
            load_tile(d_out, y.d_out, task, i0, x.segment);
            load_tile(k, x.key, task, j0, keys);
            load_tile(v, x.stored, task, j0, keys);
            load_queries(x, task, i0, q, biased);
            float log_sum[2], delta[2];
            load_pair(log_sum, y.log_sums, x, task, i0);
            load_pair(delta, y.delta, x, task, i0);
            __syncthreads();
            float p[KT][4], ds[KT][4];
            scores(p, x, task, i0, j0, q, biased, k, r, bias, shift);
            score_gradients(p, ds, x, task, i0, j0, log_sum, delta, d_out, v);
#pragma unroll
            for (int n = 0; n < KT; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int row = 16 * warp + row_of(e);
                    sheared[row * ZLD + column_of(n, e) - row + BQ - 1] = store(ds[n][e]);
                }
            __syncthreads();
            for (int row = 0; row < BQ; row++) bias_sum += load(sheared[row * ZLD + threadIdx.x]);
#pragma unroll
            for (int m = 0; m < 2; m++) product<OT, BQ, true, true>(sum[m], sheared + 16 * (2 * warp + m), ZLD, q, LD);
        }
    }
    float scale = rsqrtf((float)HEAD_DIM);
    i64 part = ((i64)split * gridDim.x + blockIdx.x) * x.heads + head;
    d_bias[part * 2 * BQ + threadIdx.x] = bias_sum * scale;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < OT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int p = 16 * (2 * warp + m) + row_of(e), c = column_of(n, e);
                if (c < HEAD_DIM) d_table[(part * 2 * BQ + p) * HEAD_DIM + c] = sum[m][n][e] * scale;
            }
}

// Row `zero - blockIdx.x` of R and S from the partial sums of the diagonals that have its distance. A distance that is
// beyond this call's memory has none and gets 0.
extern "C" __global__ void train_sum_table(const float* d_table, const float* d_bias, float* table, float* table_bias,
    int heads, int segment, int memory, int zero, int diagonals, int splits, int accumulate) {
    int row = zero - blockIdx.x, row_tiles = (segment + BQ - 1) / BQ;
    // Diagonal x of the grid has place 0 of its tiles at x BQ here, less one BQ so that division rounds down.
    int place = row - zero + memory + BQ - 1 + row_tiles * BQ;
    // The diagonal in which the row is among the first BQ places.
    int diagonal = place >= 0 ? place / BQ - 1 : -2;
    for (int at = threadIdx.x; at < heads * (HEAD_DIM + 1); at += blockDim.x) {
        int head = at / (HEAD_DIM + 1), c = at % (HEAD_DIM + 1);
        float sum = 0.0f;
        for (int x = diagonal - 1; x <= diagonal; x++) {
            if (x < 0 || x >= diagonals) continue;
            int p = place - (x + 1) * BQ;
            for (int split = 0; split < splits; split++) {
                i64 part = (((i64)split * diagonals + x) * heads + head) * 2 * BQ + p;
                sum += c < HEAD_DIM ? d_table[part * HEAD_DIM + c] : d_bias[part];
            }
        }
        float* to = c < HEAD_DIM ? table + ((i64)row * heads + head) * HEAD_DIM + c : table_bias + (i64)row * heads + head;
        *to = (accumulate ? *to : 0.0f) + sum;
    }
}

#endif
