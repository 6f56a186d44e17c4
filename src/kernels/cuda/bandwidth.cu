// What the chip's memory gives, measured by the simplest kernels that reach it: the ceilings that the others are held
// against. Four independent accesses of 16 bytes per thread and round; a grid of a few blocks per multiprocessor.

#define THREADS 512
#define IN_FLIGHT 4

// Reads everything once. The result is written only if it is one value that random data does not give.
extern "C" __global__ void __launch_bounds__(THREADS) read_all(const uint4* from, u64 count, u32* out) {
    wait_for_previous_kernel();
    u64 stride = (u64)gridDim.x * THREADS, i = (u64)blockIdx.x * THREADS + threadIdx.x;
    u32 sum = 0;
    for (; i + (IN_FLIGHT - 1) * stride < count; i += IN_FLIGHT * stride) {
        uint4 v[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) v[j] = load_streaming(from + i + j * stride);
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < count; i += stride) {
        uint4 v = load_streaming(from + i);
        sum ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x5eed5eedu) *out = sum;
}

// Reads everything once and writes it elsewhere.
extern "C" __global__ void __launch_bounds__(THREADS) copy_all(const uint4* from, uint4* to, u64 count) {
    wait_for_previous_kernel();
    u64 stride = (u64)gridDim.x * THREADS, i = (u64)blockIdx.x * THREADS + threadIdx.x;
    for (; i + (IN_FLIGHT - 1) * stride < count; i += IN_FLIGHT * stride) {
        uint4 v[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) v[j] = load_streaming(from + i + j * stride);
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) to[i + j * stride] = v[j];
    }
    for (; i < count; i += stride) to[i] = load_streaming(from + i);
}
