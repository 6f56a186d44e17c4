// 8-bit copy of the keys: for every token t and KV head h, scale[t][h] = max_d |key[t][h][d]| / 127 and
// copy[t][h][d] = round(key[t][h][d] / scale[t][h]) (nearest even), all zero for a zero key. It serves the scores only.
//
// Rows [*first, *first + *count) of the layer's cache, both counts in device memory; rows past `capacity` are left out.
// (In a decode step token_select_step writes the row of the current token by itself, with the same formula.)
//
//   quantize_keys(const elem* keys [capacity][Hkv][D], i8* keys8 [capacity][Hkv][D], float* scales8 [capacity][Hkv],
//                 const int* first, const int* count, int capacity)
//   grid: any (rows are dealt out), say 4 blocks per SM; block 256; no dynamic shared memory. -DHEAD_DIM -DKV_HEADS.
//
// Moves 3 D + 4 bytes per row and head: a floor of 0.33 ns per token for 4 heads of 128, 0.17 us per 512-token chunk,
// so a launch is all it costs; 1M rows at once take 330 us or more.

constexpr int D = HEAD_DIM;

// Lanes that share a row: 8 elements each, rounded up to a power of two. Wide heads (256) take a whole warp.
constexpr int PIECES = D / 8;
constexpr int LANES = PIECES <= 1 ? 1 : PIECES <= 2 ? 2 : PIECES <= 4 ? 4 : PIECES <= 8 ? 8 : PIECES <= 16 ? 16 : 32;
constexpr int ROWS = 256 / LANES;

extern "C" __global__ void __launch_bounds__(256) quantize_keys(const elem* __restrict__ keys, i8* __restrict__ keys8,
    float* __restrict__ scales8, const int* __restrict__ first, const int* __restrict__ count, int capacity) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    int begin = *first;
    i64 row = (i64)begin * KV_HEADS, end = (i64)min(begin + *count, capacity) * KV_HEADS;
    int piece = threadIdx.x % LANES;
    // All lanes of a warp go round together, for the shuffles.
    for (i64 base = row + (i64)blockIdx.x * ROWS; base < end; base += (i64)gridDim.x * ROWS) {
        i64 at = base + threadIdx.x / LANES;
        bool valid = at < end && piece < PIECES;
        uint4 v = valid ? load_streaming(keys + at * D + piece * 8) : make_uint4(0, 0, 0, 0);
        float2 x[4] = {unpack2(v.x), unpack2(v.y), unpack2(v.z), unpack2(v.w)};
        float most = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) most = fmaxf(most, fmaxf(fabsf(x[i].x), fabsf(x[i].y)));
#pragma unroll
        for (int d = LANES / 2; d > 0; d >>= 1) most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, d));
        float inverse = most > 0.0f ? 127.0f / most : 0.0f;
        u32 packed[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 a = (u32)(int)rintf(x[2 * i].x * inverse) & 255, b = (u32)(int)rintf(x[2 * i].y * inverse) & 255;
            u32 c = (u32)(int)rintf(x[2 * i + 1].x * inverse) & 255, d = (u32)(int)rintf(x[2 * i + 1].y * inverse) & 255;
            packed[i] = a | b << 8 | c << 16 | d << 24;
        }
        if (valid) {
            *(uint2*)(keys8 + at * D + piece * 8) = make_uint2(packed[0], packed[1]);
            if (piece == 0) scales8[at] = most / 127.0f;
        }
    }
}
