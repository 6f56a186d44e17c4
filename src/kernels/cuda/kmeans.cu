// The steps of k-means around its matrix products: nearest centre, sums of clusters, new centres, distances.
//
// Letters: N keys, K clusters, W elements of a row in memory (the key's d and zeros up to a multiple of 4). A product of
// keys and centres comes from cuBLASLt in f32; all that is here reads memory once and computes little:
//   nearest_centres  N x K x 4 bytes of products      a warp per key
//   sum_clusters     N x W x 4 bytes of keys          a block per cluster and 512 columns
//   move_centres     K x W x 16 bytes                 a block per cluster
//   key_distances    N x W x 4 bytes of keys          a warp per key
//
// Everything repeats bit for bit: no atomics, every sum in one order. Sums of clusters and all that follows from them run
// in f64 in the order of the CPU (ascending keys, ascending columns, no fused multiply-add), so that equal labels give
// equal centres on both.

// ---- nearest centre ------------------------------------------------------------------------------------------------

#define NEAREST_WARPS 8

DEVICE void keep_nearer(float value, u32 cluster, float& best, u32& label) {
    // Clusters come in ascending order: a later one must be strictly nearer. NaN never is.
    if (value < best) {
        best = value;
        label = cluster;
    }
}

// Of each key the cluster with the least |c|^2 - 2 <x, c>, the lowest of equal ones, and |x|^2 plus that, never below 0.
// products [N][stride], stride a multiple of 4 that is at least K; centre_norms has as many.
extern "C" __global__ void __launch_bounds__(32 * NEAREST_WARPS) nearest_centres(const float* products, int count,
    int clusters, int stride, const float* centre_norms, const float* key_norms, u32* labels, float* distances) {
    int key = blockIdx.x * NEAREST_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (key >= count) return;
    const float4* row = (const float4*)(products + (i64)key * stride);
    const float4* norms = (const float4*)centre_norms;
    float best = -NEG_INF;
    u32 label = 0;
    for (int i = lane; 4 * i < clusters; i += 32) {
        float4 p = row[i], n = norms[i];
        u32 first = 4 * i;
        keep_nearer(n.x - 2.0f * p.x, first, best, label);
        if (4 * i + 1 < clusters) keep_nearer(n.y - 2.0f * p.y, first + 1, best, label);
        if (4 * i + 2 < clusters) keep_nearer(n.z - 2.0f * p.z, first + 2, best, label);
        if (4 * i + 3 < clusters) keep_nearer(n.w - 2.0f * p.w, first + 3, best, label);
    }
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        float other = __shfl_xor_sync(FULL_MASK, best, d);
        u32 theirs = __shfl_xor_sync(FULL_MASK, label, d);
        if (other < best || (other == best && theirs < label)) {
            best = other;
            label = theirs;
        }
    }
    if (lane == 0) {
        labels[key] = label;
        distances[key] = fmaxf(key_norms[key] + best, 0.0f);
    }
}

// ---- sums ----------------------------------------------------------------------------------------------------------

#define SUM_THREADS 128
// Keys whose loads are under way at once.
#define SUM_AHEAD 8

// sums[c] = the sum of the keys members[starts[c] .. starts[c + 1]], in that order, in f64; [K][W].
extern "C" __global__ void __launch_bounds__(SUM_THREADS) sum_clusters(const float* keys, int width, const u32* members,
    const u32* starts, double* sums) {
    int column = 4 * (blockIdx.y * SUM_THREADS + threadIdx.x);
    if (column >= width) return;
    u32 at = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    double sum[4] = {0.0, 0.0, 0.0, 0.0};
    for (; at + SUM_AHEAD <= end; at += SUM_AHEAD) {
        float4 x[SUM_AHEAD];
#pragma unroll
        for (int i = 0; i < SUM_AHEAD; ++i) x[i] = *(const float4*)(keys + (i64)members[at + i] * width + column);
#pragma unroll
        for (int i = 0; i < SUM_AHEAD; ++i) {
            sum[0] += (double)x[i].x;
            sum[1] += (double)x[i].y;
            sum[2] += (double)x[i].z;
            sum[3] += (double)x[i].w;
        }
    }
    for (; at < end; ++at) {
        float4 x = *(const float4*)(keys + (i64)members[at] * width + column);
        sum[0] += (double)x.x;
        sum[1] += (double)x.y;
        sum[2] += (double)x.z;
        sum[3] += (double)x.w;
    }
    double* out = sums + (i64)blockIdx.x * width + column;
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = sum[i];
}

// ---- new centres ---------------------------------------------------------------------------------------------------

#define MOVE_THREADS 128
// Columns that lie in shared memory at a time.
#define MOVE_COLUMNS 1024

DEVICE double add_square(double sum, double x) { return __dadd_rn(sum, __dmul_rn(x, x)); }

// centres[c] = sums[c] / members, or for cosines sums[c] / |sums[c]|; a cluster without members, or whose members cancel
// out, keeps its centre. centre_norms[c] = |centres[c]|^2, moved[c] = the squared way from the old centre.
extern "C" __global__ void __launch_bounds__(MOVE_THREADS) move_centres(const double* sums, const u32* starts, int cosine,
    int width, float* centres, float* centre_norms, double* moved) {
    __shared__ double scale;
    __shared__ double total[MOVE_COLUMNS];
    __shared__ float before[MOVE_COLUMNS], after[MOVE_COLUMNS];
    u32 size = starts[blockIdx.x + 1] - starts[blockIdx.x];
    const double* sum = sums + (i64)blockIdx.x * width;
    float* centre = centres + (i64)blockIdx.x * width;
    if (threadIdx.x == 0) scale = cosine ? 0.0 : (double)size;
    if (cosine) {
        double square = 0.0;
        for (int first = 0; first < width; first += MOVE_COLUMNS) {
            int columns = min(MOVE_COLUMNS, width - first);
            __syncthreads();
            for (int i = threadIdx.x; i < columns; i += MOVE_THREADS) total[i] = sum[first + i];
            __syncthreads();
            if (threadIdx.x == 0)
                for (int i = 0; i < columns; ++i) square = add_square(square, total[i]);
        }
        if (threadIdx.x == 0) scale = __dsqrt_rn(square);
    }
    __syncthreads();
    bool moves = size > 0 && scale > 0.0;
    double way = 0.0, norm = 0.0;
    for (int first = 0; first < width; first += MOVE_COLUMNS) {
        int columns = min(MOVE_COLUMNS, width - first);
        for (int i = threadIdx.x; i < columns; i += MOVE_THREADS) {
            before[i] = centre[first + i];
            after[i] = moves ? (float)(sum[first + i] / scale) : before[i];
            centre[first + i] = after[i];
        }
        __syncthreads();
        // One thread per sum: the order counts, not the speed.
        if (threadIdx.x == 0)
            for (int i = 0; i < columns; ++i) way = add_square(way, (double)(after[i] - before[i]));
        if (threadIdx.x == 32)
            for (int i = 0; i < columns; ++i) norm = add_square(norm, (double)after[i]);
        __syncthreads();
    }
    if (threadIdx.x == 0) moved[blockIdx.x] = way;
    if (threadIdx.x == 32) centre_norms[blockIdx.x] = (float)norm;
}

// ---- distances -----------------------------------------------------------------------------------------------------

#define DISTANCE_WARPS 8

// Of each key |x - c|^2 from differences, or for cosines 1 - <x, c>, to the centre of its label, in f64.
extern "C" __global__ void __launch_bounds__(32 * DISTANCE_WARPS) key_distances(const float* keys, int count, int width,
    const u32* labels, const float* centres, int cosine, double* distances) {
    int key = blockIdx.x * DISTANCE_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (key >= count) return;
    const float4* x = (const float4*)(keys + (i64)key * width);
    const float4* c = (const float4*)(centres + (i64)labels[key] * width);
    double sum = 0.0;
    for (int i = lane; 4 * i < width; i += 32) {
        float4 a = x[i], b = c[i];
        if (cosine) {
            sum += (double)a.x * (double)b.x + (double)a.y * (double)b.y;
            sum += (double)a.z * (double)b.z + (double)a.w * (double)b.w;
        } else {
            double dx = a.x - b.x, dy = a.y - b.y, dz = a.z - b.z, dw = a.w - b.w;
            sum += dx * dx + dy * dy;
            sum += dz * dz + dw * dw;
        }
    }
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(FULL_MASK, sum, d);
    if (lane == 0) distances[key] = cosine ? 1.0 - sum : sum;
}
