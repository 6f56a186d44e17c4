// Attention of query chunks (step 7 of the selection method; also the dense policy's prefill).
//
// Problem c of `chunks` independent ones: rows[c] <= C queries, rotated, [H][D] each, against lengths[c] stored keys.
// Query i sees key j where j <= last(i) = lengths[c] - rows[c] + i, and last(i) - j < window if window > 0:
//     out[i][h] = sum_j softmax_j(scale <q[i][h], key[j][h / GROUP]>) value[j][h / GROUP]
//
// -D constants: HEAD_DIM, GROUP = H / Hkv, KV_HEADS; ELEM_F16 for half; STAGES (2).
//
// Nothing past lengths[c] has to be initialised in keys or values, but it must be allocated; out rows past rows[c] are not
// written. lengths and rows are read from device memory; rows[c] = 0 is allowed.
//
// attend_prefill_wgmma (sm_90a, HEAD_DIM 64 and 128)
//     (q_map, key_map, value_map: tensor maps by value; const int* lengths, const int* rows, const int* first_position,
//      const float* cos, const float* sin, elem* out [chunks C][H][D], int chunks, int C, int window, float scale)
//   cos = null: the queries are rotated already. Otherwise row i of chunk c is rotated here at first_position[c] + i.
//   grid min(multiprocessors, ceil(C / 128) H chunks) or any other number, block 384,
//   dynamic shared memory 1024 + (2 + 2 STAGES) 256 D bytes.
//   Maps: cuTensorMapEncodeTiled with rank 5, 128-byte swizzle, no interleave, L2 promotion 128 bytes, no fill, element
//   strides 1, box {64, 128, D / 64, 1, 1}, type bfloat16 or float16, and for
//     keys, values  sizes {64, tokens, D / 64, Hkv, chunks}, strides in bytes {2 token_stride, 128, 2 head_stride, 2 chunk_stride}
//                   packed [chunks][Hkv][Lmax][D]: tokens Lmax; cache [capacity][Hkv][D]: tokens capacity, chunks 1
//     queries       sizes {64, C, D / 64, H, chunks}, strides {2 W, 128, 2 D, 2 C W}; W elements per row: H D, or that of the
//                   fused rows; the buffer must be allocated for chunks C rows
// attend_prefill_mma (sm_80 and up, HEAD_DIM any multiple of 8 up to 256)
//     (const elem* q, i64 q_row_stride, i64 q_chunk_stride, const elem* keys, const elem* values, i64 token_stride,
//      i64 head_stride, i64 chunk_stride, const int* lengths, const int* rows, elem* out, int C, int window, float scale)
//   queries rotated; strides in elements; grid (ceil(C / 64), H, chunks), block 128,
//   dynamic shared memory 384 (D rounded up to a multiple of 16, + 8) bytes: 99 KB for D 256.
//
// Floor: 4 H D flops per visible pair. 512 queries over 2688 keys, 28 x 128: 17.85 GFLOP, 22.5 us at 793 TFLOP/s.
//
// How: one warpgroup feeds two that multiply, 64 query rows each against tiles of 128 keys. The scores of the next tile are
// multiplied together with the values of this one, also across the boundary of two blocks of queries, and the two
// warpgroups take turns, so that one is at its exponentials while the other multiplies. Blocks with most keys go first.
// What it took (512 queries over 2688 keys, 16 chunks, median of interleaved rounds at the power limit):
//   plain pipeline 33.8 us per chunk; descriptors in uniform registers and rescaling only where the maximum has grown by
//   2^8 30.9; blocks without a gap between them 30.1; queries rotated here by the feeding warpgroup's idle warps 31.0,
//   which saves a pass of 2.3 us. Three stages instead of two: no gain.

#define HEADS (GROUP * KV_HEADS)

// The maximum starts here, not at -inf: a fully masked row then gives exp2(-inf - finite) = 0 and never inf - inf.
#define NO_SCORE_YET -1e30f

// ====================================================================================================================
// Hopper: wgmma, tensor copy engine
// ====================================================================================================================

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && (HEAD_DIM == 64 || HEAD_DIM == 128)

// Warpgroups that multiply, 64 query rows each; one more warpgroup feeds them.
#define CONSUMERS 2
#ifndef STAGES
#define STAGES 2
#endif
#define BLOCK_ROWS (64 * CONSUMERS)
#define BLOCK_KEYS 128
#define PANELS (HEAD_DIM / 64)
// Bytes: a panel row is 64 elements, one 128-byte swizzle row.
#define Q_BYTES (BLOCK_ROWS * HEAD_DIM * 2)
#define KV_BYTES (BLOCK_KEYS * HEAD_DIM * 2)
#define OUT_REGS (HEAD_DIM / 2)

// cuTensorMapEncodeTiled's result, passed by value.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

DEVICE void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
DEVICE void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
DEVICE void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
DEVICE void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(barrier), "r"(parity) : "memory");
}
DEVICE void load_tile(u32 shared, const TensorMap* map, u32 barrier, int row, int head, int chunk) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %3, %5, %6}], [%2];"
        ::"r"(shared), "l"(map), "r"(barrier), "r"(0), "r"(row), "r"(head), "r"(chunk) : "memory");
}
// Named barriers 1..: a turn is taken by `sync` of the own 128 threads and given by `arrive` of another 128.
DEVICE void turn_take(int id) { asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory"); }
DEVICE void turn_give(int id) { asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory"); }

// Matrix descriptor of a 128-byte-swizzled tile. Stride: bytes between groups of 8 panel rows. Leading: bytes between
// panels, which only the operand whose output axis is contiguous (values) has to know.
DEVICE u64 matrix_descriptor(u32 shared, u32 leading, u32 stride) {
    return (u64)((shared & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | 1ull << 62;
}

// Only the low half of a descriptor changes from product to product.
DEVICE u64 with_low(u64 descriptor, u32 low) { return (descriptor & 0xffffffff00000000ull) | low; }
// A value that all lanes have anyway, in a form that tells the compiler so: descriptors then stay in uniform registers.
DEVICE u32 uniform(u32 x) { return __shfl_sync(FULL_MASK, x, 0); }

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// Values of an asynchronous product exist only after its wait: ties their uses to this place.
template <int COUNT> DEVICE void pin(float (&x)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(x[i])::"memory");
}
template <int COUNT> DEVICE void pin(u32 (&x)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+r"(x[i])::"memory");
}

#ifdef ELEM_F16
#define TYPES ".f32.f16.f16 "
#else
#define TYPES ".f32.bf16.bf16 "
#endif
#define REGS32                                                                                                         \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "   \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define REGS64                                                                                                         \
    REGS32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, "    \
    "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BIND4(x, i) "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3])
#define BIND16(x, i) BIND4(x, i), BIND4(x, i + 4), BIND4(x, i + 8), BIND4(x, i + 12)
#define BIND32(x) BIND16(x, 0), BIND16(x, 16)
#define BIND64(x) BIND32(x), BIND16(x, 32), BIND16(x, 48)

// s[64 x 128] (+)= q[64 x 16] key[128 x 16]^T, both in shared memory.
DEVICE void wgmma_scores(float (&s)[64], u64 q, u64 key, int accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16" TYPES "{" REGS64 "}, %64, %65, p, 1, 1, 0, 0;}\n"
        : BIND64(s) : "l"(q), "l"(key), "r"(accumulate));
}
// o[64 x D] (+)= p[64 x 16] value[16 x D], p in registers.
DEVICE void wgmma_values(float (&o)[64], u32 p0, u32 p1, u32 p2, u32 p3, u64 value, int accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16" TYPES "{" REGS64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;}\n"
        : BIND64(o) : "r"(p0), "r"(p1), "r"(p2), "r"(p3), "l"(value), "r"(accumulate));
}
DEVICE void wgmma_values(float (&o)[32], u32 p0, u32 p1, u32 p2, u32 p3, u64 value, int accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16" TYPES "{" REGS32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;}\n"
        : BIND32(o) : "r"(p0), "r"(p1), "r"(p2), "r"(p3), "l"(value), "r"(accumulate));
}

// Eight dimensions of a query and their eight partners, in shared memory.
DEVICE void rotate_pieces(u32 low, u32 high, const float* cos, const float* sin) {
    u32 x[4], y[4];
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(low) : "memory");
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3]) : "r"(high) : "memory");
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float4 c = __ldg((const float4*)cos + i), s = __ldg((const float4*)sin + i);
        float2 a = unpack2(x[2 * i]), b = unpack2(y[2 * i]);
        x[2 * i] = pack2(a.x * c.x - b.x * s.x, a.y * c.y - b.y * s.y);
        y[2 * i] = pack2(b.x * c.x + a.x * s.x, b.y * c.y + a.y * s.y);
        a = unpack2(x[2 * i + 1]), b = unpack2(y[2 * i + 1]);
        x[2 * i + 1] = pack2(a.x * c.z - b.x * s.z, a.y * c.w - b.y * s.w);
        y[2 * i + 1] = pack2(b.x * c.z + a.x * s.z, b.y * c.w + a.y * s.w);
    }
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(low), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(high), "r"(y[0]), "r"(y[1]), "r"(y[2]), "r"(y[3]) : "memory");
}

// One block of queries of one head: which keys it needs. The same for the feeding and the multiplying warps.
struct Work {
    int chunk, head, row, rows, length, last, tiles, first_tile;
};

DEVICE bool find_work(Work& w, int id, int C, int window, const int* lengths, const int* rows) {
    int per_chunk = (C + BLOCK_ROWS - 1) / BLOCK_ROWS;
    int within = id % (per_chunk * HEADS);
    w.chunk = id / (per_chunk * HEADS);
    // The last rows of a chunk see most keys: they go first.
    w.row = (per_chunk - 1 - within / HEADS) * BLOCK_ROWS;
    w.head = within % HEADS;
    w.rows = rows[w.chunk];
    w.length = lengths[w.chunk];
    if (w.row >= w.rows) return false;
    w.last = w.length - w.rows + w.row;  // last key that the block's first query sees
    int end = min(w.last + BLOCK_ROWS, w.length);
    w.first_tile = window > 0 ? max(w.last - window + 1, 0) / BLOCK_KEYS : 0;
    w.tiles = (end + BLOCK_KEYS - 1) / BLOCK_KEYS - w.first_tile;
    return w.tiles > 0;
}

extern "C" __global__ void __launch_bounds__(128 * (CONSUMERS + 1), 1)
attend_prefill_wgmma(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap key_map,
                     const __grid_constant__ TensorMap value_map, const int* __restrict__ lengths,
                     const int* __restrict__ rows, const int* __restrict__ first_position, const float* __restrict__ cos,
                     const float* __restrict__ sin, elem* __restrict__ out, int chunks, int C, int window, float scale) {
    extern __shared__ u8 raw[];
    __shared__ u64 barriers[6 + 4 * STAGES];
    // 128-byte swizzle repeats every 1024 bytes.
    u32 base = (shared_address(raw) + 1023) & ~1023u;
    u32 q_tiles = base, key_tiles = base + 2 * Q_BYTES, value_tiles = key_tiles + STAGES * KV_BYTES;
    u32 bars = shared_address(barriers);
    u32 q_loaded = bars, q_full = bars + 16, q_empty = bars + 32, key_full = bars + 48, key_empty = key_full + 8 * STAGES;
    u32 value_full = key_empty + 8 * STAGES, value_empty = value_full + 8 * STAGES;

    int group = uniform(threadIdx.x / 128);
    int works = (C + BLOCK_ROWS - 1) / BLOCK_ROWS * HEADS * chunks;

    if (threadIdx.x == 0) {
        for (int s = 0; s < 2; s++) {
            barrier_init(q_loaded + 8 * s, 1);
            barrier_init(q_full + 8 * s, 3);
            barrier_init(q_empty + 8 * s, 4 * CONSUMERS);
        }
        for (int s = 0; s < STAGES; s++) {
            barrier_init(key_full + 8 * s, 1);
            barrier_init(value_full + 8 * s, 1);
            barrier_init(key_empty + 8 * s, 4 * CONSUMERS);
            barrier_init(value_empty + 8 * s, 4 * CONSUMERS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    wait_for_previous_kernel();

    // The next block of queries that has something to see, from `id` on.
    auto next_work = [&](Work& w, int& id) {
        for (; id < works; id += gridDim.x)
            if (find_work(w, id, C, window, lengths, rows)) return true;
        return false;
    };
    int id = blockIdx.x;

    if (group == 0) {
        // ---- feeding ----
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        if (threadIdx.x == 0) {
            int stage = 0, q_count = 0;
            u32 phase = 0;
            Work w = {};
            auto load_queries = [&]() {
                u32 at = q_count % 2;
                barrier_wait(q_empty + 8 * at, (q_count / 2 % 2) ^ 1);
                barrier_expect(q_loaded + 8 * at, Q_BYTES);
                load_tile(q_tiles + at * Q_BYTES, &q_map, q_loaded + 8 * at, w.row, w.head, w.chunk);
                q_count++;
            };
            bool more = next_work(w, id);
            if (more) load_queries();
            while (more) {
                int kv = w.head / GROUP, chunk = w.chunk, tiles = w.tiles, tile = w.first_tile + w.tiles - 1;
                id += gridDim.x;
                more = next_work(w, id);
#pragma unroll 1
                for (int i = 0; i < tiles; i++) {
                    int token = (tile - i) * BLOCK_KEYS;
                    barrier_wait(key_empty + 8 * stage, phase ^ 1);
                    barrier_expect(key_full + 8 * stage, KV_BYTES);
                    load_tile(key_tiles + stage * KV_BYTES, &key_map, key_full + 8 * stage, token, kv, chunk);
                    barrier_wait(value_empty + 8 * stage, phase ^ 1);
                    barrier_expect(value_full + 8 * stage, KV_BYTES);
                    load_tile(value_tiles + stage * KV_BYTES, &value_map, value_full + 8 * stage, token, kv, chunk);
                    if (++stage == STAGES) stage = 0, phase ^= 1;
                    // The next queries, so early that they are rotated in time, but not before their place is free anyway.
                    if (more && i == min(STAGES, tiles - 1)) load_queries();
                }
            }
        } else if (threadIdx.x >= 32) {
            // Three warps rotate the queries of the next block while this one's are in use.
            Work w;
            for (int q_count = 0; next_work(w, id); q_count++, id += gridDim.x) {
                u32 at = q_count % 2, tile = q_tiles + at * Q_BYTES;
                barrier_wait(q_loaded + 8 * at, q_count / 2 % 2);
                if (cos) {
                    i64 position = first_position[w.chunk] + w.row;
                    int count = min(w.rows - w.row, BLOCK_ROWS);
#pragma unroll 2
                    for (int i = threadIdx.x - 32; i < count * (HEAD_DIM / 16); i += 96) {
                        int r = i / (HEAD_DIM / 16), piece = i % (HEAD_DIM / 16);
                        i64 angle = (position + r) * (HEAD_DIM / 2) + piece * 8;
                        u32 low = tile + r * 128 + (piece ^ (r & 7)) * 16;
                        u32 high = HEAD_DIM == 128 ? low + BLOCK_ROWS * 128 : tile + r * 128 + ((piece + 4) ^ (r & 7)) * 16;
                        rotate_pieces(low, high, cos + angle, sin + angle);
                    }
                    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                }
                __syncwarp();
                if (threadIdx.x % 32 == 0) barrier_arrive(q_full + 8 * at);
            }
        }
    } else {
        // ---- multiplying ----
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        int wg = group - 1;
        int lane = threadIdx.x % 32;
        int row_in_block = wg * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
        float log_scale = scale * LOG2_E;
        u64 q_desc = matrix_descriptor(q_tiles + wg * 64 * 128, 16, 1024);
        u64 key_desc = matrix_descriptor(key_tiles, 16, 1024);
        u64 value_desc = matrix_descriptor(value_tiles, BLOCK_KEYS * 128, 1024);

        float o[OUT_REGS], s[64];
        u32 p[32];
        float max0 = NO_SCORE_YET, max1 = NO_SCORE_YET, sum0 = 0.0f, sum1 = 0.0f, fix0 = 1.0f, fix1 = 1.0f;
        // Where this thread's first row goes, and how many rows there are from it on.
        elem* to;
        int rows_left;
        // Last visible key of this thread's two rows; of this warpgroup's first and last row.
        int last0, last1, last_min, last_max, tile, length;
        u32 q_low;
        int stage = 0, q_count = 0;
        u32 phase = 0;

        auto key_at = [&](int at) { return uniform((u32)key_desc + at * (KV_BYTES / 16)); };
        auto value_at = [&](int at) { return uniform((u32)value_desc + at * (KV_BYTES / 16)); };
        auto start_scores = [&](u32 key_low) {
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < HEAD_DIM / 16; k++) {
                wgmma_scores(s, with_low(q_desc, q_low + (k / 4 * BLOCK_ROWS * 128 + k % 4 * 32) / 16),
                             with_low(key_desc, key_low + (k / 4 * BLOCK_KEYS * 128 + k % 4 * 32) / 16), k > 0);
            }
            wgmma_commit();
        };
        auto start_values = [&](u32 value_low, int accumulate) {
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < BLOCK_KEYS / 16; k++) {
                wgmma_values(o, p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3],
                             with_low(value_desc, value_low + k * 16 * 128 / 16), k > 0 ? 1 : accumulate);
            }
            wgmma_commit();
        };
        auto mask = [&](int token) {
            if (token + BLOCK_KEYS - 1 > last_min) {
#pragma unroll
                for (int i = 0; i < 16; i++) {
                    int j = token + 8 * i + 2 * (lane % 4);
                    if (j > last0) s[4 * i] = NEG_INF;
                    if (j + 1 > last0) s[4 * i + 1] = NEG_INF;
                    if (j > last1) s[4 * i + 2] = NEG_INF;
                    if (j + 1 > last1) s[4 * i + 3] = NEG_INF;
                }
            }
            if (window > 0 && token <= last_max - window) {
#pragma unroll
                for (int i = 0; i < 16; i++) {
                    int j = token + 8 * i + 2 * (lane % 4);
                    if (j <= last0 - window) s[4 * i] = NEG_INF;
                    if (j + 1 <= last0 - window) s[4 * i + 1] = NEG_INF;
                    if (j <= last1 - window) s[4 * i + 2] = NEG_INF;
                    if (j + 1 <= last1 - window) s[4 * i + 3] = NEG_INF;
                }
            }
        };
        // s becomes 2^(scores - reference). Returns whether the sums so far have to be multiplied with fix0, fix1. Any
        // reference does, as long as 2^(score - reference) stays small: it follows the maximum only when that is 2^8 above
        // it, so the sums are rescaled in few tiles.
        auto softmax = [&]() {
            float new0 = max0, new1 = max1;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                new0 = fmaxf(new0, fmaxf(s[4 * i], s[4 * i + 1]));
                new1 = fmaxf(new1, fmaxf(s[4 * i + 2], s[4 * i + 3]));
            }
            new0 = fmaxf(new0, __shfl_xor_sync(FULL_MASK, new0, 1));
            new1 = fmaxf(new1, __shfl_xor_sync(FULL_MASK, new1, 1));
            new0 = fmaxf(new0, __shfl_xor_sync(FULL_MASK, new0, 2));
            new1 = fmaxf(new1, __shfl_xor_sync(FULL_MASK, new1, 2));
            bool grows = __any_sync(FULL_MASK, fmaxf(new0 - max0, new1 - max1) * log_scale > 8.0f);
            if (grows) {
                fix0 = fast_exp2((max0 - new0) * log_scale);
                fix1 = fast_exp2((max1 - new1) * log_scale);
                max0 = new0;
                max1 = new1;
                sum0 *= fix0;
                sum1 *= fix1;
            }
            float shift0 = max0 * log_scale, shift1 = max1 * log_scale;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                s[4 * i] = fast_exp2(fmaf(s[4 * i], log_scale, -shift0));
                s[4 * i + 1] = fast_exp2(fmaf(s[4 * i + 1], log_scale, -shift0));
                s[4 * i + 2] = fast_exp2(fmaf(s[4 * i + 2], log_scale, -shift1));
                s[4 * i + 3] = fast_exp2(fmaf(s[4 * i + 3], log_scale, -shift1));
                sum0 += s[4 * i] + s[4 * i + 1];
                sum1 += s[4 * i + 2] + s[4 * i + 3];
            }
            return grows;
        };
        // The accumulator of scores has the layout of the left operand of the next product.
        auto to_operand = [&]() {
#pragma unroll
            for (int i = 0; i < 32; i++) p[i] = pack2(s[2 * i], s[2 * i + 1]);
        };
        auto release = [&](u32 barrier) {
            if (lane == 0) barrier_arrive(barrier);
        };
        auto start_work = [&](const Work& w) {
            to = out + (((i64)w.chunk * C + w.row + row_in_block) * HEADS + w.head) * HEAD_DIM;
            rows_left = w.rows - w.row - row_in_block;
            last0 = w.last + row_in_block, last1 = last0 + 8;
            last_min = w.last + wg * 64, last_max = last_min + 63;
            tile = w.first_tile + w.tiles - 1;
            length = w.length;
            u32 at = q_count % 2;
            barrier_wait(q_full + 8 * at, q_count / 2 % 2);
            q_low = uniform((u32)q_desc + at * (Q_BYTES / 16));
            q_count++;
        };
        // Values past the end may be anything, NaN too, and 0 NaN = NaN: they become 0. Only a block's first tile has any.
        auto clear_past_end = [&](int at, u32 parity) {
            if ((tile + 1) * BLOCK_KEYS > length) {
                barrier_wait(value_full + 8 * at, parity);
                int begin = length - tile * BLOCK_KEYS;
                for (int i = threadIdx.x - 128; i < (BLOCK_KEYS - begin) * HEAD_DIM / 8; i += 128 * CONSUMERS) {
                    int r = begin + i / (8 * PANELS), piece = i % (8 * PANELS);
                    u32 place = value_tiles + at * KV_BYTES + piece / 8 * BLOCK_KEYS * 128 + r * 128 + piece % 8 * 16;
                    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(place), "r"(0) : "memory");
                }
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                asm volatile("bar.sync 7, %0;" ::"n"(128 * CONSUMERS) : "memory");
            }
        };
        auto finish_work = [&](elem* to, int rows_left, float sum0, float sum1) {
            sum0 += __shfl_xor_sync(FULL_MASK, sum0, 1);
            sum1 += __shfl_xor_sync(FULL_MASK, sum1, 1);
            sum0 += __shfl_xor_sync(FULL_MASK, sum0, 2);
            sum1 += __shfl_xor_sync(FULL_MASK, sum1, 2);
            float inverse0 = sum0 > 0.0f ? __fdividef(1.0f, sum0) : 0.0f, inverse1 = sum1 > 0.0f ? __fdividef(1.0f, sum1) : 0.0f;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float inverse = half ? inverse1 : inverse0;
                int t = lane % 4;
#pragma unroll
                for (int m = 0; m < HEAD_DIM / 32; m++) {
                    // Four lanes hold 4 bytes each of four 16-byte pieces; after the exchange, a piece each.
                    u32 a[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int r = 4 * (4 * m + i) + 2 * half;
                        a[i] = pack2(o[r] * inverse, o[r + 1] * inverse);
                    }
                    u32 x = __shfl_xor_sync(FULL_MASK, t & 1 ? a[0] : a[1], 1);
                    u32 y = __shfl_xor_sync(FULL_MASK, t & 1 ? a[2] : a[3], 1);
                    if (t & 1) a[0] = x, a[2] = y; else a[1] = x, a[3] = y;
                    x = __shfl_xor_sync(FULL_MASK, t & 2 ? a[0] : a[2], 2);
                    y = __shfl_xor_sync(FULL_MASK, t & 2 ? a[1] : a[3], 2);
                    if (t & 2) a[0] = x, a[1] = y; else a[2] = x, a[3] = y;
                    if (8 * half < rows_left)
                        *(uint4*)(to + (i64)(8 * half) * HEADS * HEAD_DIM + (4 * m + t) * 8) = make_uint4(a[0], a[1], a[2], a[3]);
                }
            }
        };

        Work w;
        if (next_work(w, id)) {
            if (wg == CONSUMERS - 1) turn_give(1);
            start_work(w);
            int left = w.tiles - 1;
            barrier_wait(key_full, 0);
            start_scores(key_at(0));
            wgmma_wait<0>();
            pin(s);
            release(key_empty);
            if (left == 0) release(q_empty);
            mask(tile * BLOCK_KEYS);
            softmax();
            to_operand();
            clear_past_end(0, 0);
            if (++stage == STAGES) stage = 0, phase ^= 1;
            if (left > 0) barrier_wait(key_full + 8 * stage, phase);
            int value_stage = 0, accumulate = 0;
            u32 value_phase = 0;

            // One endless row of tiles: scores of the next tile and values of this one are multiplied together, also where
            // the next tile is the first of the next block.
#pragma unroll 1
            while (true) {
                bool boundary = left == 0;
                elem* old_to = to;
                int old_rows_left = rows_left;
                if (boundary) {
                    id += gridDim.x;
                    if (!next_work(w, id)) break;
                    start_work(w);
                    left = w.tiles;
                    barrier_wait(key_full + 8 * stage, phase);
                } else {
                    tile--;
                }
                left--;
                u32 key_low = key_at(stage), value_low = value_at(value_stage);
                // One warpgroup multiplies while another is at its softmax.
                turn_take(1 + wg);
                pin(s);
                pin(p);
                start_scores(key_low);
                barrier_wait(value_full + 8 * value_stage, value_phase);
                start_values(value_low, accumulate);
                turn_give(1 + (wg + 1) % CONSUMERS);
                wgmma_wait<1>();
                pin(s);
                release(key_empty + 8 * stage);
                if (left == 0) release(q_empty + 8 * ((q_count - 1) % 2));
                mask(tile * BLOCK_KEYS);
                float old_sum0 = sum0, old_sum1 = sum1;
                if (boundary) max0 = max1 = NO_SCORE_YET, sum0 = sum1 = 0.0f;
                bool grows = softmax();
                pin(s);
                int key_stage = stage;
                u32 key_phase = phase;
                if (++stage == STAGES) stage = 0, phase ^= 1;
                // The next keys are waited for here because the wait is a loop: without a branch between them the
                // compiler moves the exponentials behind wgmma_wait, and they no longer run beside the product.
                if (left > 0) barrier_wait(key_full + 8 * stage, phase);
                wgmma_wait<0>();
                pin(o);
                pin(p);
                release(value_empty + 8 * value_stage);
                to_operand();
                value_stage = key_stage;
                value_phase = key_phase;
                accumulate = !boundary;
                if (boundary) {
                    finish_work(old_to, old_rows_left, old_sum0, old_sum1);
                    clear_past_end(value_stage, value_phase);
                } else if (grows) {
#pragma unroll
                    for (int k = 0; k < OUT_REGS / 4; k++) {
                        o[4 * k] *= fix0;
                        o[4 * k + 1] *= fix0;
                        o[4 * k + 2] *= fix1;
                        o[4 * k + 3] *= fix1;
                    }
                }
            }
            barrier_wait(value_full + 8 * value_stage, value_phase);
            pin(p);
            start_values(value_at(value_stage), accumulate);
            wgmma_wait<0>();
            pin(o);
            finish_work(to, rows_left, sum0, sum1);
        }
    }
    let_next_kernel_start();
}

#endif

// ====================================================================================================================
// Any chip from sm_80 on, any head size: mma.sync
// ====================================================================================================================

#define ROWS 64
#define KEYS 64
// A head size of 8 mod 16 is filled up with zeros. The 16 extra bytes keep ldmatrix free of bank conflicts.
#define PADDED ((HEAD_DIM + 15) / 16 * 16)
#define PITCH (PADDED + 8)

// Rows [first, first + 64) of a matrix into shared memory; rows past `end` repeat the last one (finite, masked later).
DEVICE void load_rows(elem* tile, const elem* from, i64 stride, int first, int end) {
    constexpr int PIECES = PADDED / 8;
    for (int i = threadIdx.x; i < 64 * PIECES; i += 128) {
        int r = i / PIECES, piece = i % PIECES;
        elem* to = tile + r * PITCH + piece * 8;
        if (piece < HEAD_DIM / 8) cp_async_16(to, from + (i64)min(first + r, end - 1) * stride + piece * 8);
        else *(uint4*)to = make_uint4(0, 0, 0, 0);
    }
}

extern "C" __global__ void __launch_bounds__(128)
attend_prefill_mma(const elem* __restrict__ q, i64 q_row_stride, i64 q_chunk_stride, const elem* __restrict__ keys,
                   const elem* __restrict__ values, i64 token_stride, i64 head_stride, i64 chunk_stride,
                   const int* __restrict__ lengths, const int* __restrict__ rows, elem* __restrict__ out, int C,
                   int window, float scale) {
    extern __shared__ elem tiles[];
    elem *q_tile = tiles, *key_tile = tiles + ROWS * PITCH, *value_tile = key_tile + KEYS * PITCH;
    constexpr int STEPS = PADDED / 16;
    // Query operands stay in registers where there is room.
    constexpr bool KEEP = PADDED <= 128;

    wait_for_previous_kernel();
    int chunk = blockIdx.z, head = blockIdx.y, row = (gridDim.x - 1 - blockIdx.x) * ROWS;
    int row_end = rows[chunk], length = lengths[chunk];
    if (row >= row_end) return;
    int last = length - row_end + row;
    int end = min(last + ROWS, length);
    int first_tile = window > 0 ? max(last - window + 1, 0) / KEYS : 0;
    int tile = (end + KEYS - 1) / KEYS - 1;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

    q += chunk * q_chunk_stride + (i64)head * HEAD_DIM;
    keys += chunk * chunk_stride + head / GROUP * head_stride;
    values += chunk * chunk_stride + head / GROUP * head_stride;

    load_rows(q_tile, q, q_row_stride, row, row_end);
    load_rows(key_tile, keys, token_stride, tile * KEYS, length);
    cp_async_commit();

    float o[PADDED / 8][4];
#pragma unroll
    for (int i = 0; i < PADDED / 8; i++) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
    float top[2] = {NO_SCORE_YET, NO_SCORE_YET}, sum[2] = {0.0f, 0.0f};
    float log_scale = scale * LOG2_E;
    u32 kept[KEEP ? STEPS : 1][4];
    const elem* q_lane = q_tile + (warp * 16 + lane % 16) * PITCH + lane / 16 * 8;
    const elem* key_lane = key_tile + (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 8;
    const elem* value_lane = value_tile + lane % 16 * PITCH + lane / 16 * 8;
    bool first = true;

    for (; tile >= first_tile; tile--) {
        load_rows(value_tile, values, token_stride, tile * KEYS, length);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        if (KEEP && first) {
#pragma unroll
            for (int k = 0; k < STEPS; k++) ldmatrix_x4(kept[k], q_lane + k * 16);
        }
        first = false;

        float s[KEYS / 8][4];
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0.0f;
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            u32 a[4];
            if (KEEP) a[0] = kept[k][0], a[1] = kept[k][1], a[2] = kept[k][2], a[3] = kept[k][3];
            else ldmatrix_x4(a, q_lane + k * 16);
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++) {
                u32 b[4];
                ldmatrix_x4(b, key_lane + i * 16 * PITCH + k * 16);
                u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
                mma_16816(s[2 * i], a, b0);
                mma_16816(s[2 * i + 1], a, b1);
            }
        }
        __syncthreads();
        if (tile > first_tile) load_rows(key_tile, keys, token_stride, (tile - 1) * KEYS, length);
        cp_async_commit();

        float fix[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int visible = last + warp * 16 + g + 8 * half;
            float best = top[half];
#pragma unroll
            for (int i = 0; i < KEYS / 8; i++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int j = tile * KEYS + 8 * i + 2 * t + e;
                    if (j > visible || (window > 0 && j <= visible - window)) s[i][2 * half + e] = NEG_INF;
                    best = fmaxf(best, s[i][2 * half + e]);
                }
            }
            best = fmaxf(best, __shfl_xor_sync(FULL_MASK, best, 1));
            best = fmaxf(best, __shfl_xor_sync(FULL_MASK, best, 2));
            fix[half] = fast_exp2((top[half] - best) * log_scale);
            top[half] = best;
            sum[half] *= fix[half];
            float shift = best * log_scale;
#pragma unroll
            for (int i = 0; i < KEYS / 8; i++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    s[i][2 * half + e] = fast_exp2(fmaf(s[i][2 * half + e], log_scale, -shift));
                    sum[half] += s[i][2 * half + e];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < PADDED / 8; i++) o[i][0] *= fix[0], o[i][1] *= fix[0], o[i][2] *= fix[1], o[i][3] *= fix[1];

        cp_async_wait<1>();
        __syncthreads();
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            u32 a[4] = {pack2(s[2 * k][0], s[2 * k][1]), pack2(s[2 * k][2], s[2 * k][3]),
                        pack2(s[2 * k + 1][0], s[2 * k + 1][1]), pack2(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
            for (int i = 0; i < PADDED / 16; i++) {
                u32 b[4];
                ldmatrix_x4_trans(b, value_lane + k * 16 * PITCH + i * 16);
                u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
                mma_16816(o[2 * i], a, b0);
                mma_16816(o[2 * i + 1], a, b1);
            }
        }
        __syncthreads();
    }
    let_next_kernel_start();

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = sum[half];
        total += __shfl_xor_sync(FULL_MASK, total, 1);
        total += __shfl_xor_sync(FULL_MASK, total, 2);
        float inverse = total > 0.0f ? 1.0f / total : 0.0f;
        int r = row + warp * 16 + g + 8 * half;
        elem* to = out + (((i64)chunk * C + r) * HEADS + head) * HEAD_DIM + 2 * t;
        if (r < row_end) {
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 8; i++) {
                *(u32*)(to + i * 8) = pack2(o[i][2 * half] * inverse, o[i][2 * half + 1] * inverse);
            }
        }
    }
}
