// The products of prefill selection (see prefill_select.cu) on Hopper: sm_90a, HEAD_DIM 64 or 128, GROUP up to 8.
//
//   score_sums_{1,8,16}(partial, scores, queries, keys, stored, rows, Select)   grid (X, Hkv), X = max(1, SMs / Hkv)
//   score_votes_{8,16}(votes, queries, keys, weights, stored, rows, Select)     grid SMs
// Block sizes and shared memory: `score_launches`. keys elem[capacity][Hkv][D], not rotated. Where the shared memory of MODE 16 is
// more than a block may have (H over 43 at D 128), 8 chunks are served at a time.
//
// Floor, Qwen2-7B at 1M, 16 chunks: K once is 229 us a pass; 120 GFLOP, 152 us; 470 million exponentials at 16 a clock and
// multiprocessor, 128 us. All three overlap.
//
// What was tried (us for sums / votes, Qwen2-7B, 16 chunks, at 128K and at 1M):
// - mma.sync with keys straight from global memory to registers (prefill_score.cu): 65 / 64 and 462 / 448. Latency-bound (2 warps
//   a scheduler), tensor pipe 37% busy, and reads of 64 bytes a row load the L2.
// - wgmma with both operands in shared memory, keys by cp.async, 3 and 2 warpgroups: 54 / 58 and 328 / 343. The proxy fence
//   after every cp.async stage drains the fetches in flight: more stages changed nothing.
// - Keys read back by ldmatrix as register operands, each warp fetching for itself (no fence, no barrier): 271 for the sums.
//   The weights of the votes read through L1 instead of shared memory cost 60 us.
// - The two sets of 8 chunks one after the other: half the accumulators, so 4 warpgroups in 128 registers: 46 / 46 and
//   272 / 283.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && GROUP <= 8 && (HEAD_DIM == 64 || HEAD_DIM == 128)

#define SUM_GROUPS (GROUP == 8 ? 3 : 4)             // warpgroups of a block: registers are the limit
#define SUM_STAGES 2
#define VOTE_GROUPS (HEADS * HEAD_DIM <= 39 * 128 ? 4 : 3)                  // and here shared memory
#define VOTE_STAGES 1
#define STAGE_BYTES (16 * HEAD_DIM * 2)             // of one warp

template <int MODE> struct Wide {
    static constexpr int SETS = MODE == 16 ? 2 : 1, TILES = MODE == 1 ? 1 : GROUP;          // per KV head; per set
    static constexpr int USED = SETS * TILES, COLUMNS = MODE == 16 ? 16 * GROUP : MODE == 8 ? (GROUP + 1) / 2 * 16 : 16;
    static constexpr int SET_BYTES = TILES * 8 * HEAD_DIM * 2, QUERY_BYTES = SETS * SET_BYTES;
};

template <int MODE> constexpr int sums_shared() {
    typedef Wide<MODE> W;
    return 1024 + W::QUERY_BYTES + SUM_GROUPS * 4 * (SUM_STAGES * STAGE_BYTES + W::USED * 256);
}
template <int MODE> constexpr int votes_shared() {
    typedef Wide<MODE> W;
    return 1024 + KV_HEADS * (W::QUERY_BYTES + W::USED * 64) + VOTE_GROUPS * 4 * VOTE_STAGES * STAGE_BYTES;
}

#define OT(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define RL1 "%0,%1,%2,%3"
#define RL2 RL1 ",%4,%5,%6,%7"
#define RL3 RL2 ",%8,%9,%10,%11"
#define RL4 RL3 ",%12,%13,%14,%15"
#define RL5 RL4 ",%16,%17,%18,%19"
#define RL6 RL5 ",%20,%21,%22,%23"
#define RL7 RL6 ",%24,%25,%26,%27"
#define RL8 RL7 ",%28,%29,%30,%31"
#define OL1 OT(0)
#define OL2 OL1, OT(1)
#define OL3 OL2, OT(2)
#define OL4 OL3, OT(3)
#define OL5 OL4, OT(4)
#define OL6 OL5, OT(5)
#define OL7 OL6, OT(6)
#define OL8 OL7, OT(7)
#ifdef ELEM_F16
#define WG_TYPES "k16.f32.f16.f16 {"
#else
#define WG_TYPES "k16.f32.bf16.bf16 {"
#endif
// c[T][4] += a b, or = a b when `add` is 0. `b` is the low word of the descriptor; the high word says: 128-byte swizzle,
// groups of 8 rows 1024 bytes apart.
template <int T> DEVICE void wgmma(float (&c)[T][4], const u32 (&a)[4], u32 b, int add);
#define DEFINE_WGMMA(T, N, A0, A1, A2, A3, B, P)                                                                             \
    template <> DEVICE void wgmma<T>(float (&c)[T][4], const u32 (&a)[4], u32 b, int add) {                                  \
        asm volatile("{.reg .pred p; .reg .b64 d; setp.ne.b32 p, %" #P ", 0; mov.b64 d, {%" #B ", 0x40000040};"              \
            "wgmma.mma_async.sync.aligned.m64n" #N WG_TYPES RL##T "}, {%" #A0 ",%" #A1 ",%" #A2 ",%" #A3 "}, d, p, 1, 1, 0;}" \
            : OL##T : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(add));                                         \
    }
DEFINE_WGMMA(1, 8, 4, 5, 6, 7, 8, 9)
DEFINE_WGMMA(2, 16, 8, 9, 10, 11, 12, 13)
DEFINE_WGMMA(3, 24, 12, 13, 14, 15, 16, 17)
DEFINE_WGMMA(4, 32, 16, 17, 18, 19, 20, 21)
DEFINE_WGMMA(5, 40, 20, 21, 22, 23, 24, 25)
DEFINE_WGMMA(6, 48, 24, 25, 26, 27, 28, 29)
DEFINE_WGMMA(7, 56, 28, 29, 30, 31, 32, 33)
DEFINE_WGMMA(8, 64, 32, 33, 34, 35, 36, 37)

DEVICE u32 descriptor(u32 address) { return 1u << 16 | (address & 0x3ffff) >> 4; }

template <int T> DEVICE void multiply(float (&c)[T][4], const u32 (&a)[HEAD_DIM / 16][4], u32 queries) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; k++) wgmma<T>(c, a[k], queries + k / 4 * (T * 8 * 128 >> 4) + k % 4 * 2, k);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// Queries of `heads` KV heads from `kv` on: [KV head][set][64 elements][column][128 bytes], swizzled. Loads four at a time.
template <int MODE> DEVICE void stage_wide(u8* out, const elem* queries, const Select& s, int kv, int heads) {
    typedef Wide<MODE> W;
    const int count = heads * W::USED * HEAD_DIM;
#pragma unroll 1
    for (int base = threadIdx.x; base < count; base += blockDim.x * 4) {
        uint4 v[4];
#pragma unroll
        for (int u = 0; u < 4; u++) {
            int i = base + u * blockDim.x, e = i % (HEAD_DIM / 8), column = i / (HEAD_DIM / 8) % (W::TILES * 8);
            int set = i / (W::TILES * HEAD_DIM) % W::SETS, k = kv + i / (W::USED * HEAD_DIM);
            int chunk = MODE == 1 ? 0 : set * 8 + (column & 7), j = MODE == 1 ? column : column >> 3;
            int head = (s.flags & 2) ? j * KV_HEADS + k : k * GROUP + j;
            v[u] = make_uint4(0, 0, 0, 0);
            if (i < count && chunk < s.chunks && j < GROUP) v[u] = *(const uint4*)(queries + ((i64)chunk * HEADS + head) * HEAD_DIM + e * 8);
        }
#pragma unroll
        for (int u = 0; u < 4; u++) {
            int i = base + u * blockDim.x, e = i % (HEAD_DIM / 8), column = i / (HEAD_DIM / 8) % (W::TILES * 8);
            int at = i / (W::TILES * HEAD_DIM) * W::SET_BYTES + (e >> 3) * W::TILES * 1024 + column * 128 + (((e ^ column) & 7) << 4);
            if (i < count) *(uint4*)(out + at) = v[u];
        }
    }
}

#define LINE (HEAD_DIM / 8)                         // 16-byte pieces of a key
#define TURN_ROWS (32 / LINE)                       // keys that a warp copies at a time

// This lane's piece of the first keys of a stage: rows of HEAD_DIM * 2 bytes, their pieces swizzled by the row.
DEVICE u32 lane_stage(u8* stage) {
    const int lane = threadIdx.x & 31, row = lane / LINE;
    return shared_address(stage) + row * HEAD_DIM * 2 + (((lane % LINE) ^ row) << 4);
}
DEVICE const elem* lane_keys(const elem* keys, int kv) {
    const int lane = threadIdx.x & 31;
    return keys + (u64)(lane / LINE) * ROW_ELEMS + kv * HEAD_DIM + lane % LINE * 8;
}

DEVICE void cp_async_at(u32 shared, const elem* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

// 16 keys of one KV head into a stage of this warp.
DEVICE void fetch_keys(u32 to, const elem* from, u32 token, u32 last) {
    from += (u64)token * ROW_ELEMS;
    if (token + 15 <= last) {
#pragma unroll
        for (int row = 0; row < 16; row += TURN_ROWS)
            cp_async_at((to ^ ((row & 7) << 4)) + row * HEAD_DIM * 2, from + row * ROW_ELEMS);
    } else {
        const int left = (int)last - (int)token - (int)(threadIdx.x & 31) / LINE;           // keys below this lane's first
#pragma unroll 1
        for (int row = 0; row < 16; row += TURN_ROWS)                                       // beyond the last: that again
            cp_async_at((to ^ ((row & 7) << 4)) + row * HEAD_DIM * 2, from + (i64)min(row, left) * ROW_ELEMS);
    }
}

// The warp's 16 keys as A operands of all k16 steps.
DEVICE void read_keys(u32 (&a)[HEAD_DIM / 16][4], u32 stage) {
    const int lane = threadIdx.x & 31, row = lane & 15;
    const u32 at = stage + row * HEAD_DIM * 2 + (((lane >> 4) ^ (row & 7)) << 4);
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; k++)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
            : "=r"(a[k][0]), "=r"(a[k][1]), "=r"(a[k][2]), "=r"(a[k][3]) : "r"(at ^ (k << 5)) : "memory");
}

DEVICE u8* align_1024(void* p) { return (u8*)p + (-shared_address(p) & 1023); }
DEVICE void queries_ready() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");            // written by stores, read by wgmma
    __syncthreads();
}

template <int MODE> DEVICE void sums_body(float2* partial, float* scores, const elem* queries, const elem* keys,
    const int* stored, const int* rows, const Select& s) {
    typedef Wide<MODE> W;
    constexpr int STAGES = SUM_STAGES;
    extern __shared__ uint4 shared[];
    __shared__ int ends[17];
    u8* staged = align_1024(shared);
    u8* ring = staged + W::QUERY_BYTES;
    float2* references = (float2*)(ring + SUM_GROUPS * 4 * STAGES * STAGE_BYTES);           // [warp][tile][lane]
    const int kv = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2;
    let_next_kernel_start();
    Bounds bounds = read_spans(ends, s, stored, rows);
    const u32 stride = gridDim.x * SUM_GROUPS * 64, end = bounds.greatest_end, last = bounds.last_stored;
    u32 token = (s.n_init & ~63) + (blockIdx.x * SUM_GROUPS * 4 + warp) * 16;               // of this warp
    const u32 group_token = 0xffffffc0u;                                                    // token & this: of the group
    if (threadIdx.x == 0) ends[16] = bounds.least_end;                      // out of the registers
    ring += warp * STAGES * STAGE_BYTES;
    const u32 to = lane_stage(ring);
    const elem* from = lane_keys(keys, kv);
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        if (token + i * stride < end) fetch_keys(to + i * STAGE_BYTES, from, token + i * stride, last);
        cp_async_commit();
    }
    wait_for_previous_kernel();                     // the queries; the keys are older
    stage_wide<MODE>(staged, queries, s, kv, 1);
    float2* reference = references + warp * W::USED * 32 + lane;
#pragma unroll
    for (int j = 0; j < W::USED; j++) reference[j * 32] = make_float2(UNSET, UNSET);
    float sum[W::USED][2] = {};
    queries_ready();
    const u32 queries_at = descriptor(shared_address(staged)), ring_at = shared_address(ring);
    for (int stage = 0; (token & group_token) < end; token += stride) {
        cp_async_wait<STAGES - 1>();
        __syncwarp();
        u32 a[HEAD_DIM / 16][4];
        read_keys(a, ring_at + stage * STAGE_BYTES);
        __syncwarp();
        if (token + STAGES * stride < end) fetch_keys(to + stage * STAGE_BYTES, from, token + STAGES * stride, last);
        cp_async_commit();
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        const int t = (int)token + g;
        const bool partly = token + 16 > (u32)ends[16] || (int)token < s.n_init;
#pragma unroll
        for (int set = 0; set < W::SETS; set++) {
            float c[W::TILES][4];
            multiply(c, a, queries_at + set * (W::SET_BYTES >> 4));
            if (MODE == 1) {
#pragma unroll
                for (int k = 0; k < 4; k++)
                    if ((lane & 3) * 2 + (k & 1) < GROUP)
                        scores[(i64)(kv * GROUP + (lane & 3) * 2 + (k & 1)) * s.vote_stride + t + k / 2 * 8] = c[0][k] * s.scale_log2;
            }
            if (partly) {
                int end0 = ends[MODE == 1 ? 0 : set * 8 + (lane & 3) * 2], end1 = ends[MODE == 1 ? 0 : set * 8 + (lane & 3) * 2 + 1];
#pragma unroll
                for (int j = 0; j < W::TILES; j++)
#pragma unroll
                    for (int k = 0; k < 4; k++)
                        if (t + k / 2 * 8 < s.n_init || t + k / 2 * 8 >= (k & 1 ? end1 : end0)) c[j][k] = NEG_INF;
            }
            constexpr int AT_ONCE = 4;                  // tiles between two looks at the sums: as many as registers allow
#pragma unroll
            for (int first = 0; first < W::TILES; first += AT_ONCE) {
                float x[AT_ONCE][2], greatest = 0.0f;
#pragma unroll
                for (int i = 0; i < AT_ONCE && first + i < W::TILES; i++) {
                    const int j = first + i;
                    float2 r = reference[(set * W::TILES + j) * 32];
                    const float* before = sum[set * W::TILES + j];
                    x[i][0] = before[0] + (fast_exp2(fmaf(c[j][0], s.scale_log2, -r.x)) + fast_exp2(fmaf(c[j][2], s.scale_log2, -r.x)));
                    x[i][1] = before[1] + (fast_exp2(fmaf(c[j][1], s.scale_log2, -r.y)) + fast_exp2(fmaf(c[j][3], s.scale_log2, -r.y)));
                    greatest = fmaxf(greatest, fmaxf(x[i][0], x[i][1]));
                }
                if (greatest > 1e30f) {
                    // Scores far above the lane's references (or the first ones): higher references, with room above.
#pragma unroll
                    for (int i = 0; i < AT_ONCE && first + i < W::TILES; i++) {
                        const int j = first + i;
                        float2 r = reference[(set * W::TILES + j) * 32];
                        const float* before = sum[set * W::TILES + j];
                        float a = fmaxf(r.x, ceilf(fmaf(fmaxf(c[j][0], c[j][2]), s.scale_log2, 60.0f)));
                        float b = fmaxf(r.y, ceilf(fmaf(fmaxf(c[j][1], c[j][3]), s.scale_log2, 60.0f)));
                        reference[(set * W::TILES + j) * 32] = make_float2(a, b);
                        x[i][0] = before[0] * fast_exp2(r.x - a) + (fast_exp2(fmaf(c[j][0], s.scale_log2, -a)) + fast_exp2(fmaf(c[j][2], s.scale_log2, -a)));
                        x[i][1] = before[1] * fast_exp2(r.y - b) + (fast_exp2(fmaf(c[j][1], s.scale_log2, -b)) + fast_exp2(fmaf(c[j][3], s.scale_log2, -b)));
                    }
                }
#pragma unroll
                for (int i = 0; i < AT_ONCE && first + i < W::TILES; i++) sum[set * W::TILES + first + i][0] = x[i][0], sum[set * W::TILES + first + i][1] = x[i][1];
            }
        }
    }
    // Lanes of a column, then warps.
    cp_async_wait<0>();
    __syncthreads();
    float2* columns = (float2*)ring - warp * (STAGES * STAGE_BYTES / 8);                    // [warp][USED * 8]
#pragma unroll
    for (int j = 0; j < W::USED; j++) {
        float2 r = reference[j * 32];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float2 v = normalized(make_float2(k ? r.y : r.x, sum[j][k]));
#pragma unroll
            for (int d = 4; d < 32; d <<= 1)
                add_sums(v, make_float2(__shfl_xor_sync(FULL_MASK, v.x, d), __shfl_xor_sync(FULL_MASK, v.y, d)));
            if (lane < 4) columns[(warp * W::USED + j) * 8 + lane * 2 + k] = v;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < W::COLUMNS; i += SUM_GROUPS * 128) {
        float2 v = make_float2(UNSET, 0.0f);
        for (int w = 0; w < SUM_GROUPS * 4 && i < W::USED * 8; w++) add_sums(v, columns[w * W::USED * 8 + i]);
        partial[((i64)blockIdx.x * KV_HEADS + kv) * W::COLUMNS + i] = v;
    }
}

template <int MODE> DEVICE void votes_body(float* votes, const elem* queries, const elem* keys, const float2* weights,
    const int* stored, const int* rows, const Select& s) {
    typedef Wide<MODE> W;
    constexpr int STAGES = VOTE_STAGES;
    extern __shared__ uint4 shared[];
    __shared__ int ends[16];
    u8* staged = align_1024(shared);
    u8* ring = staged + KV_HEADS * W::QUERY_BYTES;
    float4* heads = (float4*)(ring + VOTE_GROUPS * 4 * STAGES * STAGE_BYTES);               // [kv][tile][4]: two columns each
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2;
    let_next_kernel_start();
    Bounds bounds = read_spans(ends, s, stored, rows);
    const u32 stride = gridDim.x * VOTE_GROUPS * 64, end = bounds.greatest_end, last = bounds.last_stored;
    u32 token = (s.n_init & ~63) + (blockIdx.x * VOTE_GROUPS * 4 + warp) * 16;
    const u32 group_token = 0xffffffc0u;
    ring += warp * STAGES * STAGE_BYTES;
    const u32 to = lane_stage(ring);
    const elem* from = lane_keys(keys, 0);
    // The fetches run STAGES (token, KV head) pairs ahead.
    u32 ahead = token;
    int ahead_kv = 0;
    auto fetch_next = [&](int stage) {
        if (ahead < end) fetch_keys(to + stage * STAGE_BYTES, from + ahead_kv * HEAD_DIM, ahead, last);
        cp_async_commit();
        if (++ahead_kv == KV_HEADS) ahead_kv = 0, ahead += stride;
    };
#pragma unroll
    for (int i = 0; i < STAGES; i++) fetch_next(i);
    stage_wide<MODE>(staged, queries, s, 0, KV_HEADS);
    wait_for_previous_kernel();                     // the weights; keys and queries are older
    for (int i = threadIdx.x; i < KV_HEADS * W::USED * 4; i += blockDim.x) {
        float4 w = ((const float4*)weights)[i / (W::USED * 4) * (W::COLUMNS / 2) + i % (W::USED * 4)];
        heads[i] = make_float4(-w.x, w.y, -w.z, w.w);
    }
    queries_ready();
    const u32 queries_at = descriptor(shared_address(staged)), ring_at = shared_address(ring);
    for (int stage = 0; (token & group_token) < end; token += stride) {
        float vote[W::SETS][4] = {};
#pragma unroll 1
        for (int kv = 0; kv < KV_HEADS; kv++) {
            cp_async_wait<STAGES - 1>();
            __syncwarp();
            u32 a[HEAD_DIM / 16][4];
            read_keys(a, ring_at + stage * STAGE_BYTES);
            __syncwarp();
            fetch_next(stage);
            stage = stage == STAGES - 1 ? 0 : stage + 1;
            const float4* head = heads + kv * W::USED * 4 + (lane & 3);
#pragma unroll
            for (int set = 0; set < W::SETS; set++) {
                float c[W::TILES][4];
                multiply(c, a, queries_at + (kv * W::QUERY_BYTES + set * W::SET_BYTES >> 4));
#pragma unroll
                for (int j = 0; j < W::TILES; j++) {
                    float4 w = head[(set * W::TILES + j) * 4];
#pragma unroll
                    for (int k = 0; k < 4; k++)
                        vote[set][k] = fmaf(fast_exp2(fmaf(c[j][k], s.scale_log2, k & 1 ? w.z : w.x)), k & 1 ? w.w : w.y, vote[set][k]);
                }
            }
        }
        const int t = (int)token + g;
#pragma unroll
        for (int i = 0; i < W::SETS * 4; i++) {
            int chunk = i / 4 * 8 + (lane & 3) * 2 + (i & 1);
            if (chunk < s.chunks) votes[(i64)chunk * s.vote_stride + t + (i >> 1 & 1) * 8] = vote[i / 4][i % 4];
        }
    }
    cp_async_wait<0>();
}

SCORE_ENTRY_POINTS(SUM_GROUPS * 128, 1, VOTE_GROUPS * 128)
#endif
