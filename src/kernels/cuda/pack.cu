// Movers around attention: packing of the selected tokens (steps 6 and 7 of the selection method: a key at packed index j
// is rotated to position j), rotation of a block's queries, and storing a block's keys and values.
//
// -D constants: HEAD_DIM, GROUP = H / Hkv, KV_HEADS; ELEM_F16 for half; PACK_THREADS (256).
// Rotation of pair d (elements d and d + D/2) at position p: (x, y) -> (x cos - y sin, y cos + x sin), f32, one rounding;
// cos, sin [positions][D / 2]. Fused rows: [(H + 2 Hkv) D], queries, keys, values.
//
// pack_chunks(const elem* keys, const elem* values, const int* list, int list_stride, const int* lengths, const float* cos,
//             const float* sin, elem* packed_keys, elem* packed_values, int max_length)
//     for chunk c and j < lengths[c]: token list[c list_stride + j] of the cache [capacity][Hkv][D], key rotated to j, into
//     [chunks][Hkv][max_length][D]; the rest of the packed buffers is left alone
//   grid (ceil(max_length LANES / PACK_THREADS), chunks)
// rotate_queries(const elem* qkv, const int* first_position, const float* cos, const float* sin, elem* out, int rows, int C)
//     queries of fused row r, rotated at first_position[r / C] + r % C, into [rows][H][D]. attend_prefill_wgmma rotates for
//     itself; this is for attend_prefill_mma
//   grid (ceil(rows LANES / PACK_THREADS), KV_HEADS)
// append(const elem* qkv, const int* first, const float* cos, const float* sin, elem* keys, elem* values, int rows, int rotated)
//     key and value of fused row r into the cache at token *first + r; rotated != 0: key rotated at that position
//   grid (ceil(rows LANES / PACK_THREADS))
// All: block PACK_THREADS, no dynamic shared memory, LANES = threads per row of a head = D / 16 (D / 8 where D is no
// multiple of 16).
//
// Floor: bytes read and written over 4.27 TB/s (copy ceiling): a chunk of 2688 tokens of 4 x 128 is 11 MB, 2.6 us; 8192
// rows of 28 x 128 queries 117 MB, 27.5 us. Measured 2.9 us per chunk (16 batched) and 37 us.
//
// All three are bound by bandwidth, so: 16-byte accesses, a thread takes the same dimensions of several heads (cos and sin
// are read once for them), and all of its loads are issued before the first store.

#define HEADS (GROUP * KV_HEADS)
#define HALF (HEAD_DIM / 2)
// Elements per access. A head size that is no multiple of 16 takes 4.
#define WIDTH (HALF % 8 == 0 ? 8 : 4)
// Threads per row of a head: each holds WIDTH pairs.
#define LANES (HALF / WIDTH)
#ifndef PACK_THREADS
#define PACK_THREADS 256
#endif

struct Piece {
    u32 x[WIDTH / 2];
};
struct Angles {
    float cos[WIDTH], sin[WIDTH];
};

DEVICE Piece load_piece(const elem* p) {
    Piece out;
    if (WIDTH == 8) {
        uint4 v = load_streaming(p);
        out.x[0] = v.x, out.x[1] = v.y, out.x[WIDTH / 2 - 2] = v.z, out.x[WIDTH / 2 - 1] = v.w;
    } else {
        uint2 v = *(const uint2*)p;
        out.x[0] = v.x, out.x[1] = v.y;
    }
    return out;
}
DEVICE void store_piece(elem* p, const Piece& a) {
    if (WIDTH == 8) *(uint4*)p = make_uint4(a.x[0], a.x[1], a.x[WIDTH / 2 - 2], a.x[WIDTH / 2 - 1]);
    else *(uint2*)p = make_uint2(a.x[0], a.x[1]);
}
// HALF may be 4 mod 8, so 16 bytes of f32 are the widest access that is always aligned.
DEVICE Angles load_angles(const float* __restrict__ cos, const float* __restrict__ sin, i64 position, int lane) {
    Angles out;
    const float4* c = (const float4*)(cos + position * HALF + lane * WIDTH);
    const float4* s = (const float4*)(sin + position * HALF + lane * WIDTH);
#pragma unroll
    for (int i = 0; i < WIDTH / 4; i++) {
        float4 a = __ldg(c + i), b = __ldg(s + i);
        out.cos[4 * i] = a.x, out.cos[4 * i + 1] = a.y, out.cos[4 * i + 2] = a.z, out.cos[4 * i + 3] = a.w;
        out.sin[4 * i] = b.x, out.sin[4 * i + 1] = b.y, out.sin[4 * i + 2] = b.z, out.sin[4 * i + 3] = b.w;
    }
    return out;
}
DEVICE void rotate(Piece& low, Piece& high, const Angles& a) {
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) {
        float2 x = unpack2(low.x[i]), y = unpack2(high.x[i]);
        low.x[i] = pack2(x.x * a.cos[2 * i] - y.x * a.sin[2 * i], x.y * a.cos[2 * i + 1] - y.y * a.sin[2 * i + 1]);
        high.x[i] = pack2(y.x * a.cos[2 * i] + x.x * a.sin[2 * i], y.y * a.cos[2 * i + 1] + x.y * a.sin[2 * i + 1]);
    }
}

// Copies `heads` heads of one row, the keys rotated: 4 at a time, so that 16 loads are in flight.
template <bool ROTATE>
DEVICE void move_row(const elem* keys, const elem* values, elem* to_keys, elem* to_values, i64 head_stride, int lane,
                     const Angles& angles) {
    constexpr int AT_ONCE = KV_HEADS % 4 == 0 ? 4 : KV_HEADS % 2 == 0 ? 2 : 1;
#pragma unroll 1
    for (int h = 0; h < KV_HEADS; h += AT_ONCE) {
        Piece k[AT_ONCE][2], v[AT_ONCE][2];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int at = (h + i) * HEAD_DIM + lane * WIDTH;
            k[i][0] = load_piece(keys + at), k[i][1] = load_piece(keys + at + HALF);
            v[i][0] = load_piece(values + at), v[i][1] = load_piece(values + at + HALF);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            i64 at = (h + i) * head_stride + lane * WIDTH;
            if (ROTATE) rotate(k[i][0], k[i][1], angles);
            store_piece(to_keys + at, k[i][0]), store_piece(to_keys + at + HALF, k[i][1]);
            store_piece(to_values + at, v[i][0]), store_piece(to_values + at + HALF, v[i][1]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(PACK_THREADS)
pack_chunks(const elem* __restrict__ keys, const elem* __restrict__ values, const int* __restrict__ list, int list_stride,
            const int* __restrict__ lengths, const float* __restrict__ cos, const float* __restrict__ sin,
            elem* __restrict__ packed_keys, elem* __restrict__ packed_values, int max_length) {
    int chunk = blockIdx.y;
    int j = (blockIdx.x * PACK_THREADS + threadIdx.x) / LANES, lane = (blockIdx.x * PACK_THREADS + threadIdx.x) % LANES;
    // The table is constant: read before the previous kernel has ended.
    Angles angles;
    if (j < max_length) angles = load_angles(cos, sin, j, lane);
    wait_for_previous_kernel();
    let_next_kernel_start();
    if (j >= min(lengths[chunk], max_length)) return;
    i64 token = list[(i64)chunk * list_stride + j];
    i64 to = ((i64)chunk * KV_HEADS * max_length + j) * HEAD_DIM;
    move_row<true>(keys + token * (KV_HEADS * HEAD_DIM), values + token * (KV_HEADS * HEAD_DIM), packed_keys + to,
                   packed_values + to, (i64)max_length * HEAD_DIM, lane, angles);
}

// blockIdx.y: key-value head, whose GROUP query heads a thread takes.
extern "C" __global__ void __launch_bounds__(PACK_THREADS)
rotate_queries(const elem* __restrict__ qkv, const int* __restrict__ first_position, const float* __restrict__ cos,
               const float* __restrict__ sin, elem* __restrict__ out, int rows, int C) {
    i64 thread = (i64)blockIdx.x * PACK_THREADS + threadIdx.x;
    int row = (int)(thread / LANES), lane = (int)(thread % LANES);
    wait_for_previous_kernel();
    let_next_kernel_start();
    if (row >= rows) return;
    int head = blockIdx.y * GROUP;
    const elem* from = qkv + (i64)row * ((HEADS + 2 * KV_HEADS) * HEAD_DIM) + head * HEAD_DIM + lane * WIDTH;
    elem* to = out + ((i64)row * HEADS + head) * HEAD_DIM + lane * WIDTH;
    constexpr int AT_ONCE = GROUP <= 8 ? GROUP : GROUP % 8 == 0 ? 8 : GROUP % 4 == 0 ? 4 : GROUP % 5 == 0 ? 5 : GROUP % 7 == 0 ? 7 : 1;
    Angles angles = load_angles(cos, sin, (i64)first_position[row / C] + row % C, lane);
#pragma unroll 1
    for (int h = 0; h < GROUP; h += AT_ONCE) {
        Piece q[AT_ONCE][2];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            q[i][0] = load_piece(from + (h + i) * HEAD_DIM), q[i][1] = load_piece(from + (h + i) * HEAD_DIM + HALF);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            rotate(q[i][0], q[i][1], angles);
            store_piece(to + (h + i) * HEAD_DIM, q[i][0]), store_piece(to + (h + i) * HEAD_DIM + HALF, q[i][1]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(PACK_THREADS)
append(const elem* __restrict__ qkv, const int* __restrict__ first, const float* __restrict__ cos,
       const float* __restrict__ sin, elem* __restrict__ keys, elem* __restrict__ values, int rows, int rotated) {
    int row = (blockIdx.x * PACK_THREADS + threadIdx.x) / LANES, lane = (blockIdx.x * PACK_THREADS + threadIdx.x) % LANES;
    wait_for_previous_kernel();
    let_next_kernel_start();
    if (row >= rows) return;
    i64 token = (i64)*first + row;
    const elem* from = qkv + (i64)row * ((HEADS + 2 * KV_HEADS) * HEAD_DIM) + HEADS * HEAD_DIM;
    const elem* from_values = from + KV_HEADS * HEAD_DIM;
    i64 to = token * (KV_HEADS * HEAD_DIM);
    if (rotated) {
        Angles angles = load_angles(cos, sin, token, lane);
        move_row<true>(from, from_values, keys + to, values + to, HEAD_DIM, lane, angles);
    } else {
        Angles none;
        move_row<false>(from, from_values, keys + to, values + to, HEAD_DIM, lane, none);
    }
}
