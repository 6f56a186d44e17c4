// Products of one activation row (or a few, ROWS) with a weight matrix, for decoding.
//
//   norm_linear           out = W norm(hidden) + bias                                     (q, k, v)
//   norm_linear_silu_mul  out = silu(G norm(hidden) + bias) * (U norm(hidden) + bias)     (gate and up)
//   linear_add            hidden += W x + bias                                            (o, down)
//   norm_logits           logits = W norm(hidden) + bias, and the arg max of every block  (unembedding)
//
// with norm(h) = h / sqrt(mean(h^2) + eps) * weight, rounded to elem as in prefill; W is [out][in] elem, row-major. `hidden`
// is the residual stream in f32. All four are deterministic: a row is summed by fixed lanes, warps and order.
//
// Interface. Arguments in order:
//   norm_linear          (weights [out][in], bias [out] or null, hidden [in], norm [in], out [out] elem, in, out_width,
//                         norm_is_f32, eps, tile_rows, column_warps, slots)
//   norm_linear_silu_mul (weights [2 I][in], gate rows first, bias [2 I] or null, hidden, norm, out [I] elem, in, out_width = I,
//                         norm_is_f32, eps, tile_rows, column_warps, slots)
//   linear_add           (weights, bias or null, x [in] elem, hidden [out], in, out_width, tile_rows, column_warps, slots)
//   norm_logits          (weights, bias or null, hidden, norm, logits [V] f32, best [grid] u64 or null, bad u32 or null, in,
//                         out_width = V, norm_is_f32, eps, tile_rows, column_warps, slots)
// `norm` is f32 where norm_is_f32 is not 0, else elem. best[block] is what the sampler reduces. *bad becomes 1 where a logit is
// NaN or plus infinity. Weights, norm, x and hidden start on 16 bytes. With ROWS > 1, x, hidden, out and logits are [ROWS][width],
// best is [ROWS][grid].
//
// Launch. Block 32 * CONSUMERS + 32. Shapes (S = 2 for silu_mul, else 1; V = ADD_VECTORS for linear_add, else NORM_VECTORS):
//   column_warps  the smallest divisor w of CONSUMERS with ceil(ceil(in / 8 / w) / 32) <= V; 1 where in % 8 != 0 or ROWS > 1.
//                 If there is none, compile with V = ceil(in / (256 * CONSUMERS)).
//   tile_rows     max(R, min(R * max(1, round(28672 / (2 in R))), R * floor(out / (multiprocessors * R)))) with
//                 R = CONSUMERS / column_warps: a tile is about 28 KB, and every block has one where there are rows enough.
//   grid          min(multiprocessors, ceil(out / tile_rows))
//   slots         3 (1 to 8): fewer where shared memory does not hold them.
//   shared        384 + 128 ceil(S ceil(ceil(out / tile_rows) / grid) tile_rows ROWS column_warps / 32)
//                 + (ROWS > 1: 2 in ROWS up to a multiple of 128) + (in % 8 == 0: 2 in tile_rows slots)
//                 linear_add takes at least half of the multiprocessor's, see below.
// Every entry wants the largest shared-memory carve-out, so that two blocks fit on a multiprocessor. Any `in` works; widths
// that are no multiple of 8 take a scalar path.
//
// Bytes and floor. The weights once: 14.14 GB per token of Qwen2-7B, 3.02 ms at 4.69 TB/s. Nothing else matters.
//
// Design. One warp fetches, with one bulk copy per tile: many small copies in flight read memory some 4% slower than few of
// 16 KB and more. The others multiply; each keeps its columns of x in registers. Weights do not depend on the kernel before,
// so the ring is filled before waiting for it; and the next kernel is let in at the very start, when this one has exactly
// one block on every multiprocessor, so that the next gets exactly one as well. Let in later, blocks go where others have just
// left, two on one multiprocessor and none on another: the chain then took 5.2 ms. Attention fills the multiprocessors, so the
// product after it is let in late whatever it does; it takes more than half of the shared memory, and the pattern starts anew.
// With 28 hits of token_select_step in the chain: 4.73 ms without, 4.09 with that; with misses at 128K 6.16 and 5.49.
//
// What was tried (H200; 28 layers of Qwen2-7B without attention and the unembedding, one graph; cuBLAS alone 3.92 to 3.98 ms):
//   a ring of small copies for each warp, no overlap of kernels             3.86 ms
//   the same, row tiles dealt to the blocks in turn, overlap from the start 3.43 ms
//   one fetching warp, tiles of 28 KB (the lm head 254 -> 249 us)           3.44 ms
//   slots handed back once in registers, four sums reduced together         3.48 ms where cuBLAS took 3.98
//   without overlap                                                         3.75 ms
//   worse: prefetching the next matrix, or the next tiles, into L2 (each byte costs as if read twice); filling a part of the
//   ring after the wait; tiles of 14 KB; 12 or 15 multiplying warps; loads straight into registers; columns before rows.
// What is left over the floor is mostly between kernels: x arrives 1 to 3 us after the wait, behind the ring of the kernel
// after next, and the first refill only then leaves.

#ifndef ROWS
#define ROWS 1
#endif
// Warps that multiply; one more fetches.
#ifndef CONSUMERS
#define CONSUMERS 8
#endif
#define THREADS (CONSUMERS * 32 + 32)
// Vectors of 8 elements that one lane holds of x at most: `in` is at most 256 * vectors * column warps.
#ifndef NORM_VECTORS
#define NORM_VECTORS 4
#endif
#ifndef ADD_VECTORS
#define ADD_VECTORS 10
#endif
// Rows that a warp sums up together.
#define TOGETHER 4
// Two, where the next kernel's blocks should find registers beside this one's.
#ifndef BLOCKS_PER_SM
#if ROWS == 1 && __CUDA_ARCH__ >= 900
#define BLOCKS_PER_SM 2
#else
#define BLOCKS_PER_SM 1
#endif
#endif

extern __shared__ uint4 shared_memory[];

// ---- barriers and copies -------------------------------------------------------------------------------------------

DEVICE void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

DEVICE void barrier_arrive(u32 barrier) {
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(barrier) : "memory");
}

DEVICE void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
        asm volatile(
#if __CUDA_ARCH__ >= 900
            "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
#else
            "{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
#endif
            : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    } while (!done);
}

// How often a barrier that waits for a copy is arrived at, and the copy itself, by a whole warp: `bytes` (a multiple of
// 16) from global to shared memory.
#if __CUDA_ARCH__ >= 900
#define COPY_ARRIVALS 1
DEVICE void copy_tile(u32 barrier, u32 to, const void* from, u32 bytes) {
    if (threadIdx.x % 32 != 0) return;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
DEVICE void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
#else
#define COPY_ARRIVALS 32
DEVICE void copy_tile(u32 barrier, u32 to, const void* from, u32 bytes) {
#pragma unroll 4
    for (u32 i = threadIdx.x % 32 * 16; i < bytes; i += 512)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i), "l"((const u8*)from + i) : "memory");
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}
DEVICE void barrier_init_done() { __syncwarp(); }
#endif

// What another kernel wrote while this one was already resident: past L1.
DEVICE uint4 load_fresh(const void* p) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
DEVICE float load_fresh_float(const float* p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}
DEVICE elem load_fresh_elem(const elem* p) {
    elem v;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
    return v;
}

// ---- activations ---------------------------------------------------------------------------------------------------

struct Eight {
    float v[8];
};
DEVICE Eight eight_floats(uint4 a, uint4 b) {
    return {{__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(a.z), __uint_as_float(a.w), __uint_as_float(b.x),
        __uint_as_float(b.y), __uint_as_float(b.z), __uint_as_float(b.w)}};
}
DEVICE Eight unpack8(uint4 pairs) {
    float2 a = unpack2(pairs.x), b = unpack2(pairs.y), c = unpack2(pairs.z), d = unpack2(pairs.w);
    return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}
DEVICE uint4 pack8(const Eight& e) {
    return make_uint4(pack2(e.v[0], e.v[1]), pack2(e.v[2], e.v[3]), pack2(e.v[4], e.v[5]), pack2(e.v[6], e.v[7]));
}
DEVICE float sum_of_squares(const Eight& e) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) sum = fmaf(e.v[j], e.v[j], sum);
    return sum;
}

DEVICE float norm_weight(const void* weight, u32 is_f32, u32 i) {
    return is_f32 ? ((const float*)weight)[i] : to_float(((const elem*)weight)[i]);
}

// Sum over the block, the same in every thread; all threads call it.
DEVICE float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < CONSUMERS + 1; ++w) sum += scratch[w];
    return sum;
}

// ---- the product ---------------------------------------------------------------------------------------------------

enum Kind { NORM_LINEAR, NORM_SILU_MUL, ADD, LOGITS };

// The larger logit wins, then the lower id; NaN never wins.
DEVICE u64 best_key(float value, u32 index) {
    u32 bits = __float_as_uint(value + 0.0f);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (value != value) bits = 0;
    return (u64)bits << 32 | (u32)~index;
}

// Eight products; two chains, or their latency would show.
DEVICE void multiply(float& even, float& odd, const uint4& weights, const Eight& x) {
    Eight w = unpack8(weights);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
        even = fmaf(w.v[j], x.v[j], even);
        odd = fmaf(w.v[j + 1], x.v[j + 1], odd);
    }
}

// x of one lane: as f32 where registers allow, else packed.
template <int VECTORS, bool F32 = (CONSUMERS <= 8 && VECTORS <= 4)> struct Columns;
template <int VECTORS> struct Columns<VECTORS, true> {
    Eight x[VECTORS];
    DEVICE void set(int v, uint4 e) { x[v] = unpack8(e); }
    DEVICE Eight get(int v) const { return x[v]; }
};
template <int VECTORS> struct Columns<VECTORS, false> {
    uint4 x[VECTORS];
    DEVICE void set(int v, uint4 e) { x[v] = e; }
    DEVICE Eight get(int v) const {
        uint4 e = x[v];
        // Unpacked anew for every row: the compiler would keep it all in twice the registers.
        asm volatile("" : "+r"(e.x), "+r"(e.y), "+r"(e.z), "+r"(e.w));
        return unpack8(e);
    }
};

// Everything that the entry points share; see their interfaces above.
template <Kind KIND>
DEVICE void linear_row(const elem* weights, const elem* bias, const void* input, const void* norm, u32 norm_is_f32, float eps,
    void* out, u64* best, u32* bad, u32 in, u32 out_width, u32 tile_rows, u32 column_warps, u32 slots) {
    const u32 SEGMENTS = KIND == NORM_SILU_MUL ? 2 : 1;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    let_next_kernel_start();

    // Tiles of `tile_rows` weight rows, dealt to the blocks in turn (of gate and up alternately).
    u32 all_tiles = (out_width + tile_rows - 1) / tile_rows;
    u32 groups = all_tiles > blockIdx.x ? (all_tiles - blockIdx.x + gridDim.x - 1) / gridDim.x : 0;
    u32 tiles = groups * SEGMENTS;
    bool vectors = in % 8 == 0;
    u32 slot_bytes = vectors ? tile_rows * in * 2 : 0;

    // Shared memory: barriers [full, empty][slot], scratch, partial sums [segment][group][tile row][ROWS][column warp], x
    // where there are several rows, ring of tiles.
    u64* barriers = (u64*)shared_memory;
    float* scratch = (float*)(barriers + 16);
    float* partial = scratch + 64;
    u32 segment_stride = (all_tiles + gridDim.x - 1) / gridDim.x * tile_rows * ROWS * column_warps;
    u8* after = (u8*)(partial + (SEGMENTS * segment_stride + 31) / 32 * 32);
#if ROWS > 1
    elem* x = (elem*)after;
    after += (ROWS * in * 2 + 127) / 128 * 128;
#endif
    u8* ring = after;
    u32 full = shared_address(barriers), empty = full + 64;

    // Weights do not depend on the previous kernel: get them on their way before waiting for it.
    bool fetcher = warp == CONSUMERS;
    auto first_row_of = [&](u32 k) { return (blockIdx.x + k / SEGMENTS * gridDim.x) * tile_rows; };
    auto tile_address = [&](u32 k) {
        return weights + (u64)(first_row_of(k) + (SEGMENTS == 2 && k % 2 ? out_width : 0)) * in;
    };
    auto tile_bytes = [&](u32 k) { return min(tile_rows, out_width - first_row_of(k)) * in * 2; };
    auto fetch = [&](u32 k, u32 slot) {
        copy_tile(full + 8 * slot, shared_address(ring) + slot * slot_bytes, tile_address(k), tile_bytes(k));
    };
    if (fetcher && vectors) {
        if (lane == 0) {
            for (u32 s = 0; s < slots; ++s) {
                barrier_init(full + 8 * s, COPY_ARRIVALS);
                barrier_init(empty + 8 * s, CONSUMERS);
            }
        }
        barrier_init_done();
#pragma unroll 1
        for (u32 k = 0; k < min(slots, tiles); ++k) fetch(k, k);
    }

    // What this thread adds to at the end is on its way early too.
    u32 position = threadIdx.x;
    auto row_at = [&](u32 p) { return (blockIdx.x + p / tile_rows * gridDim.x) * tile_rows + p % tile_rows; };
    float old = 0.0f;

    // This warp's columns, in vectors, and its rows within a tile.
    u32 column_warp = warp % column_warps, row_warp = warp / column_warps, row_step = CONSUMERS / column_warps;
    u32 slice = (in / 8 + column_warps - 1) / column_warps;
    u32 start = min(column_warp * slice, in / 8), count = fetcher ? 0 : min(slice, in / 8 - start);
    // Warps left over where column_warps does not divide CONSUMERS do nothing.
    u32 first_row = row_warp < row_step ? row_warp : tile_rows;
    float scale = 1.0f;

    if (vectors) {
#if ROWS == 1
        const int VECTORS = KIND == ADD ? ADD_VECTORS : NORM_VECTORS;
        Columns<VECTORS> columns;
        if (KIND == ADD) {
            wait_for_previous_kernel();
            if (position < groups * tile_rows && row_at(position) < out_width)
                old = load_fresh_float((const float*)out + row_at(position));
#pragma unroll
            for (int v = 0; v < VECTORS; ++v)
                if (lane + 32 * v < count) columns.set(v, load_fresh((const elem*)input + 8 * (start + lane + 32 * v)));
            __syncthreads();
        } else {
            // The weights of the norm do not depend on the previous kernel either.
            uint4 norms[VECTORS];
#pragma unroll
            for (int v = 0; v < VECTORS; ++v)
                if (lane + 32 * v < count && !norm_is_f32) norms[v] = ((const uint4*)norm)[start + lane + 32 * v];
            wait_for_previous_kernel();
            Eight hidden[VECTORS];
            float squares = 0.0f;
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) {
                if (lane + 32 * v >= count) continue;
                const uint4* from = (const uint4*)input + 2 * (start + lane + 32 * v);
                hidden[v] = eight_floats(load_fresh(from), load_fresh(from + 1));
            }
#pragma unroll
            for (int v = 0; v < VECTORS; ++v)
                if (lane + 32 * v < count && row_warp == 0) squares += sum_of_squares(hidden[v]);
            scale = rsqrtf(block_sum(squares, scratch) / (float)in + eps);
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) {
                if (lane + 32 * v >= count) continue;
                const uint4* from = (const uint4*)norm + 2 * (start + lane + 32 * v);
                Eight w = norm_is_f32 ? eight_floats(from[0], from[1]) : unpack8(norms[v]);
#pragma unroll
                for (int j = 0; j < 8; ++j) w.v[j] *= hidden[v].v[j] * scale;
                columns.set(v, pack8(w));
            }
        }
#else
        wait_for_previous_kernel();
#pragma unroll 1
        for (u32 r = 0; r < ROWS; ++r) {
            if (KIND == ADD) {
                for (u32 i = threadIdx.x; i < in / 8; i += THREADS)
                    ((uint4*)(x + r * in))[i] = load_fresh((const elem*)input + r * in + 8 * i);
            } else {
                const uint4* from = (const uint4*)((const float*)input + (u64)r * in);
                float squares = 0.0f;
                for (u32 i = threadIdx.x; i < in / 8; i += THREADS)
                    squares += sum_of_squares(eight_floats(load_fresh(from + 2 * i), load_fresh(from + 2 * i + 1)));
                float s = rsqrtf(block_sum(squares, scratch + r % 2 * (CONSUMERS + 1)) / (float)in + eps);
                for (u32 i = threadIdx.x; i < in / 8; i += THREADS) {
                    Eight h = eight_floats(load_fresh(from + 2 * i), load_fresh(from + 2 * i + 1));
#pragma unroll
                    for (int j = 0; j < 8; ++j) h.v[j] *= s * norm_weight(norm, norm_is_f32, 8 * i + j);
                    ((uint4*)(x + r * in))[i] = pack8(h);
                }
            }
        }
        __syncthreads();
#endif

        u32 slot = 0, parity = 0;
        if (fetcher) {
#pragma unroll 1
            for (u32 k = 0; k + slots < tiles; ++k) {
                barrier_wait(empty + 8 * slot, parity);
                fetch(k + slots, slot);
                if (++slot == slots) {
                    slot = 0;
                    parity ^= 1;
                }
            }
        } else {
#pragma unroll 1
            for (u32 k = 0; k < tiles; ++k) {
                u32 rows = min(tile_rows, out_width - first_row_of(k));
                const uint4* data = (const uint4*)(ring + slot * slot_bytes) + start + lane;
                float* to = partial + k % SEGMENTS * segment_stride + k / SEGMENTS * tile_rows * ROWS * column_warps + column_warp;
                barrier_wait(full + 8 * slot, parity);
                // The slot is given back as soon as its last row is in registers.
                auto give_back = [&]() {
                    __syncwarp();
                    if (lane == 0) barrier_arrive(empty + 8 * slot);
                };
                if (first_row >= rows) give_back();
#if ROWS == 1
#pragma unroll 1
                for (u32 r0 = first_row; r0 < rows; r0 += TOGETHER * row_step) {
                    float sums[TOGETHER];
#pragma unroll
                    for (int t = 0; t < TOGETHER; ++t) {
                        u32 r = r0 + t * row_step;
                        sums[t] = 0.0f;
                        if (r >= rows) continue;
                        const uint4* row = data + r * (in / 8);
                        float even = 0.0f, odd = 0.0f;
                        // Compared anew in every row: the predicates of all vectors would not fit in registers.
                        u32 n = count;
                        asm volatile("" : "+r"(n));
#pragma unroll
                        for (int from = 0; from < VECTORS; from += 5) {
                            uint4 w[5];
#pragma unroll
                            for (int v = 0; v < 5; ++v)
                                if (from + v < VECTORS && lane + 32 * (from + v) < n) w[v] = row[32 * (from + v)];
                            if (from + 5 >= VECTORS && r + row_step >= rows) give_back();
#pragma unroll
                            for (int v = 0; v < 5; ++v)
                                if (from + v < VECTORS && lane + 32 * (from + v) < n)
                                    multiply(even, odd, w[v], columns.get(from + v));
                        }
                        sums[t] = even + odd;
                    }
                    // Four sums at once: each exchange halves how many a lane carries on.
                    float a = lane & 16 ? sums[2] : sums[0], b = lane & 16 ? sums[3] : sums[1];
                    a += __shfl_xor_sync(FULL_MASK, lane & 16 ? sums[0] : sums[2], 16);
                    b += __shfl_xor_sync(FULL_MASK, lane & 16 ? sums[1] : sums[3], 16);
                    float sum = (lane & 8 ? b : a) + __shfl_xor_sync(FULL_MASK, lane & 8 ? a : b, 8);
                    sum += __shfl_xor_sync(FULL_MASK, sum, 4);
                    sum += __shfl_xor_sync(FULL_MASK, sum, 2);
                    sum += __shfl_xor_sync(FULL_MASK, sum, 1);
                    u32 r = r0 + lane / 8 * row_step;
                    if (lane % 8 == 0 && r < rows) to[r * column_warps] = sum;
                }
#else
#pragma unroll 1
                for (u32 r = first_row; r < rows; r += row_step) {
                    const uint4* row = data + r * (in / 8);
                    float even[ROWS], odd[ROWS];
#pragma unroll
                    for (int a = 0; a < ROWS; ++a) even[a] = odd[a] = 0.0f;
#pragma unroll 1
                    for (u32 i = lane; i < count; i += 32) {
                        uint4 w = row[i - lane];
#pragma unroll
                        for (int a = 0; a < ROWS; ++a)
                            multiply(even[a], odd[a], w, unpack8(((const uint4*)(x + a * in))[start + i]));
                    }
                    if (r + row_step >= rows) give_back();
#pragma unroll
                    for (int a = 0; a < ROWS; ++a) {
                        float sum = warp_sum(even[a] + odd[a]);
                        if (lane == 0) to[(r * ROWS + a) * column_warps] = sum;
                    }
                }
#endif
                if (++slot == slots) {
                    slot = 0;
                    parity ^= 1;
                }
            }
        }
    } else {
        // Rows that do not start on 16 bytes: one warp per row, element by element.
        wait_for_previous_kernel();
#pragma unroll 1
        for (u32 a = 0; a < ROWS; ++a) {
            const float* hidden = (const float*)input + (u64)a * in;
            if (KIND != ADD) {
                float squares = 0.0f;
#pragma unroll 1
                for (u32 i = threadIdx.x; i < in; i += THREADS) {
                    float h = load_fresh_float(hidden + i);
                    squares += h * h;
                }
                scale = rsqrtf(block_sum(squares, scratch + a % 2 * (CONSUMERS + 1)) / (float)in + eps);
            }
#pragma unroll 1
            for (u32 v = warp; v < SEGMENTS * groups * tile_rows; v += CONSUMERS + 1) {
                u32 segment = v / (groups * tile_rows), p = v - segment * groups * tile_rows;
                float sum = 0.0f;
                if (row_at(p) < out_width) {
                    const elem* row = weights + (u64)(segment * out_width + row_at(p)) * in;
#pragma unroll 1
                    for (u32 i = lane; i < in; i += 32) {
                        float e = KIND == ADD ? to_float(load_fresh_elem((const elem*)input + (u64)a * in + i))
                                              : to_float(from_float(load_fresh_float(hidden + i) * scale * norm_weight(norm, norm_is_f32, i)));
                        sum = fmaf(to_float(row[i]), e, sum);
                    }
                }
                sum = warp_sum(sum);
                if (lane == 0) partial[segment * segment_stride + p * ROWS + a] = sum;
            }
        }
    }
    __syncthreads();

#pragma unroll 1
    for (u32 a = 0; a < ROWS; ++a) {
        u64 key = 0;
#pragma unroll 1
        for (u32 p = threadIdx.x; p < groups * tile_rows; p += THREADS) {
            u32 row = row_at(p);
            if (row >= out_width) continue;
            // Partial sums in a fixed order: the result does not depend on which warp was first.
            const float* parts = partial + (p * ROWS + a) * column_warps;
            float sum = 0.0f, up = 0.0f;
#pragma unroll 4
            for (u32 c = 0; c < column_warps; ++c) {
                sum += parts[c];
                if (SEGMENTS == 2) up += parts[segment_stride + c];
            }
            u64 o = (u64)a * out_width + row;
            if (bias) {
                sum += to_float(bias[row]);
                if (SEGMENTS == 2) up += to_float(bias[out_width + row]);
            }
            if (KIND == NORM_LINEAR) ((elem*)out)[o] = from_float(sum);
            if (KIND == NORM_SILU_MUL) ((elem*)out)[o] = from_float(sum / (1.0f + __expf(-sum)) * up);
            if (KIND == ADD) {
                bool early = ROWS == 1 && vectors && p == position;
                ((float*)out)[o] = sum + (early ? old : load_fresh_float((const float*)out + o));
            }
            if (KIND == LOGITS) {
                ((float*)out)[o] = sum;
                u64 k = best_key(sum, row);
                key = k > key ? k : key;
                if (bad && !(sum < __int_as_float(0x7f800000))) *bad = 1;
            }
        }
        if (KIND == LOGITS && best) {
#pragma unroll
            for (int d = 16; d > 0; d >>= 1) {
                u64 other = __shfl_xor_sync(FULL_MASK, key, d);
                key = other > key ? other : key;
            }
            // The barriers' and the scratch's place: they have served.
            __syncthreads();
            if (lane == 0) barriers[warp] = key;
            __syncthreads();
            if (threadIdx.x == 0) {
                for (u32 w = 1; w < CONSUMERS + 1; ++w) key = barriers[w] > key ? barriers[w] : key;
                best[a * gridDim.x + blockIdx.x] = key;
            }
            __syncthreads();
        }
    }
}

// ---- entry points --------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) norm_linear(const elem* weights, const elem* bias,
    const float* hidden, const void* norm, elem* out, u32 in, u32 out_width, u32 norm_is_f32, float eps, u32 tile_rows,
    u32 column_warps, u32 slots) {
    linear_row<NORM_LINEAR>(weights, bias, hidden, norm, norm_is_f32, eps, out, nullptr, nullptr, in, out_width, tile_rows,
        column_warps, slots);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) norm_linear_silu_mul(const elem* weights,
    const elem* bias, const float* hidden, const void* norm, elem* out, u32 in, u32 out_width, u32 norm_is_f32, float eps,
    u32 tile_rows, u32 column_warps, u32 slots) {
    linear_row<NORM_SILU_MUL>(weights, bias, hidden, norm, norm_is_f32, eps, out, nullptr, nullptr, in, out_width, tile_rows,
        column_warps, slots);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) linear_add(const elem* weights, const elem* bias,
    const elem* x, float* hidden, u32 in, u32 out_width, u32 tile_rows, u32 column_warps, u32 slots) {
    linear_row<ADD>(weights, bias, x, nullptr, 0, 0.0f, hidden, nullptr, nullptr, in, out_width, tile_rows, column_warps, slots);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) norm_logits(const elem* weights, const elem* bias,
    const float* hidden, const void* norm, float* logits, u64* best, u32* bad, u32 in, u32 out_width, u32 norm_is_f32,
    float eps, u32 tile_rows, u32 column_warps, u32 slots) {
    linear_row<LOGITS>(weights, bias, hidden, norm, norm_is_f32, eps, logits, best, bad, in, out_width, tile_rows, column_warps,
        slots);
}
