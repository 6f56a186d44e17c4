// Everything of a training step but attention and the large products: embedding, norms, activations, convolution, loss, and
// the optimiser. Blocks of 256 threads unless said otherwise.
//
// Sums over rows (gradients of biases, gains, convolutions, embeddings) are made in two steps without atomics, so that a
// run repeats bit by bit: a kernel writes one partial sum per chunk of CHUNK rows, and `train_reduce` adds the chunks of all
// tensors in one launch.
//
// Compile-time: CONV_WIDTH, the width of the convolution.

#ifndef CONV_WIDTH
#define CONV_WIDTH 3
#endif
#define THREADS 256
#define CHUNK 64
#define WARP_ROWS (THREADS / 32)

// ---- embedding -----------------------------------------------------------------------------------------------------

// grid rows: x[r] = table[ids[r]]
extern "C" __global__ void __launch_bounds__(THREADS) train_embed(const int* ids, const float* table, float* x, int d) {
    const float* from = table + (i64)ids[blockIdx.x] * d;
    for (int c = threadIdx.x; c < d; c += THREADS) x[(i64)blockIdx.x * d + c] = from[c];
}

// grid (vocabulary, chunks): sums of the rows of one id, in the order of rows, over one share of the rows. `to`
// [chunks][vocabulary][d]; with `accumulate` it is added to.
extern "C" __global__ void __launch_bounds__(THREADS) train_embed_gradient(const int* ids, const float* dx, float* to,
    int rows, int d, int accumulate) {
    __shared__ int found[THREADS], counts[WARP_ROWS];
    int first = (i64)rows * blockIdx.y / gridDim.y, last = (i64)rows * (blockIdx.y + 1) / gridDim.y;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* out = to + ((i64)blockIdx.y * gridDim.x + blockIdx.x) * d;
    if (!accumulate)
        for (int c = threadIdx.x; c < d; c += THREADS) out[c] = 0.0f;
    for (int start = first; start < last; start += THREADS) {
        int r = start + threadIdx.x;
        bool mine = r < last && ids[r] == blockIdx.x;
        u32 votes = __ballot_sync(FULL_MASK, mine);
        if (lane == 0) counts[warp] = __popc(votes);
        __syncthreads();
        int before = 0, total = 0;
        for (int w = 0; w < WARP_ROWS; w++) {
            if (w < warp) before += counts[w];
            total += counts[w];
        }
        if (mine) found[before + __popc(votes & ((1u << lane) - 1))] = r;
        __syncthreads();
        for (int c = threadIdx.x; c < d && total > 0; c += THREADS) {
            float sum = out[c];
            for (int n = 0; n < total; n++) sum += dx[(i64)found[n] * d + c];
            out[c] = sum;
        }
        __syncthreads();
    }
}

// ---- norms ---------------------------------------------------------------------------------------------------------

// grid ceil(rows / 8), a warp per row: x = residual + dropout(y + bias), or residual if y is null; x to `sum` unless y is
// null; its layer norm, plus the sinusoid of its time, to `normal`; mean and 1 / deviation to `statistics`.
extern "C" __global__ void __launch_bounds__(THREADS) train_norm(const float* residual, const value* y, const float* bias,
    Dropout drop, int place, const float* gain, const float* shift, const float* sinusoid, float* sum, value* normal,
    float* statistics, int rows, int d, int batch) {
    int r = blockIdx.x * WARP_ROWS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= rows) return;
    const float* x = residual + (i64)r * d;
    float total = 0.0f;
    if (y != nullptr) {
        u64 key = drop.threshold ? drop.keys[place] : 0;
        float* to = sum + (i64)r * d;
        for (int c = lane; c < d; c += 32) {
            float branch = load(y[(i64)r * d + c]) + bias[c];
            if (drop.threshold) branch *= dropout_factor(drop, key, 0, (u32)r * d + c);
            float whole = x[c] + branch;
            to[c] = whole;
            total += whole;
        }
        x = to;
    } else {
        for (int c = lane; c < d; c += 32) total += x[c];
    }
    float mean = warp_sum(total) / d, squares = 0.0f;
    for (int c = lane; c < d; c += 32) squares += (x[c] - mean) * (x[c] - mean);
    float inverse = 1.0f / sqrtf(warp_sum(squares) / d + 1e-5f);
    const float* position = sinusoid == nullptr ? nullptr : sinusoid + (i64)(r / batch) * d;
    for (int c = lane; c < d; c += 32) {
        float out = (x[c] - mean) * inverse * gain[c] + shift[c];
        normal[(i64)r * d + c] = store(position == nullptr ? out : out + position[c]);
    }
    if (lane == 0) {
        statistics[2 * (i64)r] = mean;
        statistics[2 * (i64)r + 1] = inverse;
    }
}

// grid ceil(rows / CHUNK). The first `remembered` rows are those of `memory`, which gets no gradient; to `dx` of the others
// theirs is added, or it is set with `replace`. Partial sums of gain and bias: [chunks][2][d].
extern "C" __global__ void __launch_bounds__(THREADS) train_norm_gradient(const float* memory, const float* x,
    const float* statistics, const float* gain, const float* dy, float* dx, float* partial, int rows, int remembered, int d,
    int replace) {
    int first = blockIdx.x * CHUNK, last = min(rows, first + CHUNK), lane = threadIdx.x % 32;
    for (int r = first + threadIdx.x / 32; r < last; r += WARP_ROWS) {
        if (r < remembered) continue;
        const float* row = x + (i64)(r - remembered) * d;
        const float* from = dy + (i64)r * d;
        float mean = statistics[2 * (i64)r], inverse = statistics[2 * (i64)r + 1], total = 0.0f, along = 0.0f;
        for (int c = lane; c < d; c += 32) {
            float g = from[c] * gain[c];
            total += g;
            along += g * (row[c] - mean) * inverse;
        }
        total = warp_sum(total) / d;
        along = warp_sum(along) / d;
        float* to = dx + (i64)(r - remembered) * d;
        for (int c = lane; c < d; c += 32) {
            float g = (from[c] * gain[c] - total - (row[c] - mean) * inverse * along) * inverse;
            to[c] = replace ? g : to[c] + g;
        }
    }
    float* out = partial + (i64)blockIdx.x * 2 * d;
    for (int c = threadIdx.x; c < d; c += THREADS) {
        float gains = 0.0f, biases = 0.0f;
        for (int r = first; r < last; r++) {
            const float* row = r < remembered ? memory + (i64)r * d : x + (i64)(r - remembered) * d;
            float g = dy[(i64)r * d + c];
            gains += g * (row[c] - statistics[2 * (i64)r]) * statistics[2 * (i64)r + 1];
            biases += g;
        }
        out[c] = gains;
        out[d + c] = biases;
    }
}

// ---- activations and branches --------------------------------------------------------------------------------------

// grid ceil(count / 256): h = dropout(relu(h + bias)) in place, rows of `width`.
extern "C" __global__ void __launch_bounds__(THREADS) train_relu(value* h, const float* bias, Dropout drop, int place,
    u32 count, u32 width) {
    u32 at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= count) return;
    float x = fmaxf(load(h[at]) + bias[at % width], 0.0f);
    if (drop.threshold) x *= dropout_factor(drop, drop.keys[place], 0, at);
    h[at] = store(x);
}

// Adds what the eight rows of threads hold for 32 columns, and writes it for those that exist.
DEVICE void write_sums(float sum, float* to, int c, int columns) {
    __shared__ float sums[THREADS];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < 32 && c < columns) {
        float all = 0.0f;
        for (int row = 0; row < WARP_ROWS; row++) all += sums[row * 32 + threadIdx.x];
        to[c] = all;
    }
    __syncthreads();
}

// The three below: grid (ceil(width / 32), ceil(rows / CHUNK)); partial sums of columns [chunks][width].

// Gradient of a branch behind dropout: dx times its mask.
extern "C" __global__ void __launch_bounds__(THREADS) train_branch_gradient(const float* dx, value* out, float* partial,
    Dropout drop, int place, int rows, int width) {
    int c = blockIdx.x * 32 + threadIdx.x % 32, first = blockIdx.y * CHUNK;
    u64 key = drop.threshold ? drop.keys[place] : 0;
    float sum = 0.0f;
    for (int r = first + threadIdx.x / 32; r < min(rows, first + CHUNK) && c < width; r += WARP_ROWS) {
        u32 at = (u32)r * width + c;
        float g = dx[at];
        if (drop.threshold) g *= dropout_factor(drop, key, 0, at);
        out[at] = store(g);
        sum += g;
    }
    write_sums(sum, partial + (i64)blockIdx.y * width, c, width);
}

// Gradient through relu and dropout, in place: what was dropped or cut is 0 in h.
extern "C" __global__ void __launch_bounds__(THREADS) train_relu_gradient(const value* h, value* dh, float* partial,
    float keep, int rows, int width) {
    int c = blockIdx.x * 32 + threadIdx.x % 32, first = blockIdx.y * CHUNK;
    float sum = 0.0f;
    for (int r = first + threadIdx.x / 32; r < min(rows, first + CHUNK) && c < width; r += WARP_ROWS) {
        i64 at = (i64)r * width + c;
        float g = load(h[at]) > 0.0f ? load(dh[at]) * keep : 0.0f;
        dh[at] = store(g);
        sum += g;
    }
    write_sums(sum, partial + (i64)blockIdx.y * width, c, width);
}

extern "C" __global__ void __launch_bounds__(THREADS) train_column_sums(const value* x, float* partial, int rows,
    int width) {
    int c = blockIdx.x * 32 + threadIdx.x % 32, first = blockIdx.y * CHUNK;
    float sum = 0.0f;
    for (int r = first + threadIdx.x / 32; r < min(rows, first + CHUNK) && c < width; r += WARP_ROWS)
        sum += load(x[(i64)r * width + c]);
    write_sums(sum, partial + (i64)blockIdx.y * width, c, width);
}

// ---- convolution and rotation --------------------------------------------------------------------------------------

// grid ceil(rows d / 256): y_t[c] = bias[c] + sum over j of w[c][j] x_(skip + t - width + 1 + j)[c], zeros before row 0.
// Rows [time][stream][d]; `channels` is dk where heads share weights, else d.
extern "C" __global__ void __launch_bounds__(THREADS) train_convolve(const value* x, const float* weight, const float* bias,
    value* y, int rows, int skip, int batch, int d, int channels) {
    i64 at = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (i64)rows * d) return;
    int c = at % d % channels, t = at / d / batch;
    float sum = bias[c];
#pragma unroll
    for (int j = 0; j < CONV_WIDTH; j++) {
        int back = CONV_WIDTH - 1 - j;
        if (skip + t >= back) sum += weight[c * CONV_WIDTH + j] * load(x[at + (i64)(skip - back) * batch * d]);
    }
    y[at] = store(sum);
}

// grid (ceil(d / 32), ceil(rows / CHUNK)) over rows [skip + len][B] of x: their gradients to dx, and partial sums
// [chunks][CONV_WIDTH + 2][d]: of each weight, of the bias, and of dx (the gradient of the projection's bias).
extern "C" __global__ void __launch_bounds__(THREADS) train_convolve_gradient(const value* x, const value* dy,
    const float* weight, value* dx, float* partial, int rows, int skip, int batch, int d, int channels) {
    int column = blockIdx.x * 32 + threadIdx.x % 32, first = blockIdx.y * CHUNK;
    float sums[CONV_WIDTH + 2], w[CONV_WIDTH];
#pragma unroll
    for (int j = 0; j < CONV_WIDTH + 2; j++) sums[j] = 0.0f;
#pragma unroll
    for (int j = 0; j < CONV_WIDTH; j++) w[j] = column < d ? weight[column % channels * CONV_WIDTH + j] : 0.0f;
    int skipped = skip * batch;
    for (int r = first + threadIdx.x / 32; r < min(rows, first + CHUNK) && column < d; r += WARP_ROWS) {
        float g = 0.0f;
#pragma unroll
        for (int j = 0; j < CONV_WIDTH; j++) {
            // Row r is input j of the output this many rows later.
            int out = r - skipped + (CONV_WIDTH - 1 - j) * batch;
            if (out >= 0 && out < rows - skipped) g += w[j] * load(dy[(i64)out * d + column]);
        }
        dx[(i64)r * d + column] = store(g);
        sums[CONV_WIDTH + 1] += g;
        if (r < skipped) continue;
        float own = load(dy[(i64)(r - skipped) * d + column]);
        sums[CONV_WIDTH] += own;
#pragma unroll
        for (int j = 0; j < CONV_WIDTH; j++) {
            int from = r - (CONV_WIDTH - 1 - j) * batch;
            if (from >= 0) sums[j] += own * load(x[(i64)from * d + column]);
        }
    }
#pragma unroll
    for (int j = 0; j < CONV_WIDTH + 2; j++)
        write_sums(sums[j], partial + ((i64)blockIdx.y * (CONV_WIDTH + 2) + j) * d, column, d);
}

// grid ceil(rows d / 2 / 256): turns pairs (c, c + dk / 2) of each head by the angle of the row's time, back with
// sign -1. cos and sin: [positions][dk / 2], from the position of the first row on.
extern "C" __global__ void __launch_bounds__(THREADS) train_rotate(value* x, const float* cosines, const float* sines,
    float sign, int rows, int batch, int d, int head_dim) {
    i64 at = (i64)blockIdx.x * THREADS + threadIdx.x;
    int half = head_dim / 2;
    if (at >= (i64)rows * d / 2) return;
    int r = at / (d / 2), pair = at % (d / 2), c = pair % half;
    value* low = x + (i64)r * d + pair / half * head_dim + c;
    float cosine = cosines[(i64)(r / batch) * half + c], sine = sines[(i64)(r / batch) * half + c] * sign;
    float a = load(low[0]), b = load(low[half]);
    low[0] = store(a * cosine - b * sine);
    low[half] = store(a * sine + b * cosine);
}

// ---- loss ----------------------------------------------------------------------------------------------------------

// grid rows, blocks of 128: softmax cross-entropy of logits + bias against targets; the gradient of `scale` times the
// summed loss to `gradient`, unless it is null. Of equal logits the first counts as the prediction.
extern "C" __global__ void __launch_bounds__(128) train_cross_entropy(const float* logits, const float* bias,
    const int* targets, value* gradient, float* losses, int* correct, int vocabulary, float scale) {
    __shared__ float values[4];
    __shared__ int places[4];
    const float* row = logits + (i64)blockIdx.x * vocabulary;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, target = targets[blockIdx.x], best = vocabulary;
    float most = NEG_INF;
    for (int c = threadIdx.x; c < vocabulary; c += 128) {
        float x = row[c] + bias[c];
        if (x > most) {
            most = x;
            best = c;
        }
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) {
        float other = __shfl_xor_sync(FULL_MASK, most, lanes);
        int place = __shfl_xor_sync(FULL_MASK, best, lanes);
        if (other > most || (other == most && place < best)) {
            most = other;
            best = place;
        }
    }
    if (lane == 0) {
        values[warp] = most;
        places[warp] = best;
    }
    __syncthreads();
    for (int w = 0; w < 4; w++)
        if (values[w] > most || (values[w] == most && places[w] < best)) {
            most = values[w];
            best = places[w];
        }
    __syncthreads();
    float sum = 0.0f;
    for (int c = threadIdx.x; c < vocabulary; c += 128) sum += expf(row[c] + bias[c] - most);
    sum = warp_sum(sum);
    if (lane == 0) values[warp] = sum;
    __syncthreads();
    sum = values[0] + values[1] + values[2] + values[3];
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = most - (row[target] + bias[target]) + logf(sum);
        correct[blockIdx.x] = best == target;
    }
    if (gradient == nullptr) return;
    float factor = scale / sum;
    for (int c = threadIdx.x; c < vocabulary; c += 128) {
        float g = expf(row[c] + bias[c] - most) * factor - (c == target ? scale : 0.0f);
        gradient[(i64)blockIdx.x * vocabulary + c] = store(g);
    }
}

// Sum of 256 doubles, in a fixed order.
DEVICE double block_sum(double x) {
    __shared__ double sums[THREADS];
    __syncthreads();
    sums[threadIdx.x] = x;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    return sums[0];
}

// grid 1: outcome[0] and [1] become, or with `accumulate` grow by, the summed loss and the number of correct rows.
extern "C" __global__ void __launch_bounds__(THREADS) train_outcome(const float* losses, const int* correct,
    double* outcome, int rows, int accumulate) {
    double loss = 0.0, right = 0.0;
    for (int r = threadIdx.x; r < rows; r += THREADS) {
        loss += losses[r];
        right += correct[r];
    }
    loss = block_sum(loss);
    right = block_sum(right);
    if (threadIdx.x == 0) {
        outcome[0] = (accumulate ? outcome[0] : 0.0) + loss;
        outcome[1] = (accumulate ? outcome[1] : 0.0) + right;
    }
}

// ---- sums of chunks ------------------------------------------------------------------------------------------------

// Up to 32 neighbouring columns of one tensor's partial sums.
struct Job {
    const float* from;   // [chunks][chunk_stride], in it `folds` times columns that are fold_stride apart
    float* to;           // columns to_stride apart
    i64 chunk_stride;
    int chunks, columns, folds, fold_stride, to_stride, accumulate;
};

// grid jobs.
extern "C" __global__ void __launch_bounds__(THREADS) train_reduce(const Job* jobs) {
    Job job = jobs[blockIdx.x];
    __shared__ float sums[THREADS];
    int c = threadIdx.x % 32;
    float sum = 0.0f;
    if (c < job.columns)
        for (int at = threadIdx.x / 32; at < job.chunks * job.folds; at += WARP_ROWS)
            sum += job.from[(at / job.folds) * job.chunk_stride + at % job.folds * job.fold_stride + c];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= job.columns) return;
    float all = 0.0f;
    for (int row = 0; row < WARP_ROWS; row++) all += sums[row * 32 + c];
    float* to = job.to + (i64)c * job.to_stride;
    *to = (job.accumulate ? *to : 0.0f) + all;
}

// ---- memory --------------------------------------------------------------------------------------------------------

// grid (ceil(segment / 256), layers), counted in elements of B d rows: every layer's memory [rows_kept] moves up by a
// segment, and the segment's rows follow it. A thread moves what is a whole number of segments apart, oldest first, so
// nothing is overwritten before it is read.
extern "C" __global__ void __launch_bounds__(THREADS) train_remember(float* memory, const float* x, i64 kept, i64 segment) {
    i64 at = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (at >= segment) return;
    float* to = memory + blockIdx.y * kept;
    const float* rows = x + blockIdx.y * segment;
    for (i64 i = at; i < kept; i += segment) {
        i64 from = i + segment;
        to[i] = from < kept ? to[from] : rows[from - kept];
    }
}

// ---- optimiser -----------------------------------------------------------------------------------------------------

// Elements of the flat buffers that an optimiser visits.
struct Piece {
    i64 start;
    i64 count;
};

// grid pieces: the sum of each piece's squared gradients.
extern "C" __global__ void __launch_bounds__(THREADS) train_squares(const float* gradients, const Piece* pieces,
    double* squares) {
    Piece piece = pieces[blockIdx.x];
    double sum = 0.0;
    for (i64 i = threadIdx.x; i < piece.count; i += THREADS) {
        float g = gradients[piece.start + i];
        sum += (double)g * g;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

// grid 1: their sum.
extern "C" __global__ void __launch_bounds__(THREADS) train_sum_squares(const double* squares, double* out, int count) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += squares[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *out = sum;
}

// grid pieces: Adam, as `src/train/adam.rs`. `copy` gets the stored form of the parameters, unless it is null.
extern "C" __global__ void __launch_bounds__(THREADS) train_adam(float* data, const float* gradients, float* first,
    float* second, value* copy, const Piece* pieces, float factor, float rate, float root, float beta1, float rest1,
    float beta2, float rest2, float epsilon) {
    Piece piece = pieces[blockIdx.x];
    for (i64 i = piece.start + threadIdx.x; i < piece.start + piece.count; i += THREADS) {
        float g = gradients[i] * factor;
        float m = first[i] = fmaf(first[i], beta1, g * rest1);
        float v = second[i] = fmaf(second[i], beta2, g * g * rest2);
        float x = data[i] = data[i] - rate * m / fmaf(sqrtf(v), root, epsilon);
        if (copy != nullptr) copy[i] = store(x);
    }
}

// grid ceil(count / 256): the stored form of f32.
extern "C" __global__ void __launch_bounds__(THREADS) train_copy(const float* from, value* to, i64 count) {
    i64 at = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (at < count) to[at] = store(from[at]);
}
