// The decode step of one layer under TokenSelect, from the row after the projection to the attended row, as one persistent
// launch.
//
// With q rotated at position n_local and keys as cached (un-rotated), over candidates t in [n_init, N - window):
//     s[h, t] = score_scale <q[h], key[t][map(h)]>,  p = softmax over t,  vote[t] = sum_h p[h, t]           (head soft vote)
//     selected = the top_k highest votes (ties: lower position), ascending
//     list = [0, n_init) ++ selected ++ [N - window, N)
//     out[h] = sum_j softmax_j(softmax_scale <R(|list| - 1) q[h], R(j) key[list[j]]>) value[list[j]]        j = packed position
// Selection cache: if the cosine of q with the q of the last miss reaches `threshold`, its selection serves again. N of at
// most n_init + top_k + n_local is dense. The current token's key and value are read from the row; the step appends them to
// the cache, with their 8-bit copy if there is one.
//
// Entry point: token_select_step, one argument, StepArgs by value. Grid: one block per multiprocessor, at most THREADS blocks,
// all resident at once; THREADS (512) threads; dynamic shared memory `shared_bytes`, at least token_select_sizes[0].
// -D: HEAD_DIM, GROUP, KV_HEADS (H = GROUP KV_HEADS), ELEM_F16; KEYS8 scores from the 8-bit copy; HALF_SCORES keeps scores
// in 16 bits; NO_RING goes without the copy engine; ATTEND_ROWS (64 where shared memory is 99 KB).
//
// StepArgs, 160 bytes:
//   qkv [(H + 2 Hkv) D], un-rotated, biases and norms applied; keys, values [capacity][Hkv][D]; keys8 and scales8 (see
//   quantize_keys.cu; null without); stored: device int, N with the current token; cos_table, sin_table [max_list][D / 2];
//   cache_query f32 [H D], selected int [top_k], state int [16]: the layer's selection cache, state zero = empty; out [H D];
//   scratch: token_select_sizes[1] + [2] * blocks bytes, zeroed once, one per grid size, shared by layers that run one after
//   another; scores: token_select_sizes[4] * (capacity + 16 * blocks) bytes (4 H per token at most), shared likewise.
//   sliding: 0, or keys at packed positions from |list| - sliding on only. max_list: rows of the rope tables; a hit whose
//   list would be longer (gap repair lets it grow) counts as a miss, so a list has at most
//   max(n_init + top_k + n_local + 1, max_list) entries. threshold > 1: never a hit.
//   flags: 1 modulo head map (h % Hkv, scores only); 2 gap repair: the tail begins where it did at the last miss;
//   4 window n_local + 1 instead of n_local; 8 early start: everything but qkv was final before the kernel before this one
//   began, so it is touched before the wait for that kernel.
// State: valid, first local token of the last miss, hits, misses, last cosine (f32 bits), length of the last list.
// n_local >= 1. Steps of one session must not overlap.
//
// Work: a miss reads all keys once: 2 D Hkv bytes per token (Hkv 4, D 128: 28.6 us at 128K, 229 us at 1M on an H200), with
// KEYS8 D + 4 bytes per head (14.8 and 118 us); f32 scores out and in are 8 H bytes per token where they do not fit shared
// memory (50 us at 1M for 28 heads). A hit moves 5.5 MB, 1.3 us; it is a chain of about ten waits for the L2.
//
// Order of a miss: query and cosine | scores of the block's own run of tokens, maxima and sums of exponentials | barrier |
// fold, votes, histogram of their first 11 bits | barrier | threshold bin, what is in it to a list | barrier | threshold
// inside the list, own part of the selection | barrier | attention by (KV head, part of the list), whose partial results the
// blocks of a head fold once all have arrived. A hit knows its list from the start: rows travel while the cosine is computed,
// and it meets no barrier of the grid. Votes that crowd one bin go through further levels of the histogram, one barrier each;
// equal votes are settled by position.
//
// Rounded scores (KEYS8, HALF_SCORES): halves relative to the maximum of 16 tokens. All votes within their possible error
// of the threshold are then computed anew from the 16-bit keys, so that with HALF_SCORES the selection is that of f32 scores;
// with KEYS8 the error of the keys themselves is allowed for by its mean only.
//
// What was tried (28 heads of 128, 4 KV heads; us per layer at 128K / 1M):
//   keys straight into registers, 226 KB of shared memory     miss 81 / 515, hit 15.7, 8-bit miss 66 at 128K
//     of which at 128K: query 1.5, scores 46.6, vote and selection 14.6, attention 10, barriers 1 each
//   the same with 132 KB                                      67 / 396: loads in flight need L1, which shared memory takes
//   runs of tokens interleaved over the blocks or shifted against each other, 3 batches in flight: no gain
//   without storing f32 scores, scores alone at 1M            260 instead of 330: hence HALF_SCORES
//   since then, by analysis, to be measured: keys through a ring filled by the copy engine; all loads of a wait issued
//   together (fold, list, partial results had loops of dependent waits); rows and rotation factors of a hit fetched ahead.

#ifndef WARPS
#define WARPS 16
#endif
#define THREADS (32 * WARPS)
// Rows of keys and values that a block holds at once in the attention.
#ifndef ATTEND_ROWS
#define ATTEND_ROWS (HEAD_DIM > 128 ? 64 : 128)
#endif
// Batches of key loads in flight per warp.
#ifndef STAGES
#define STAGES 2
#endif
// Most candidates of one threshold bin that are ordered in shared memory; more are split by further histogram levels.
#ifndef LIST_CAP
#define LIST_CAP 2048
#endif

constexpr int D = HEAD_DIM;
constexpr int HALF = D / 2;
constexpr int HEADS = GROUP * KV_HEADS;
constexpr int BINS = 2048;
constexpr int BINS_PER_THREAD = BINS / THREADS;
constexpr int TILE = 16;                     // tokens of one matrix product
constexpr int GROUP_PADDED = (GROUP + 3) / 4 * 4;
constexpr int FOLD = 5;                      // statistics per lane in flight: 160 blocks
constexpr float LOWEST = -1e30f;             // a maximum before the first score; finite, so that differences are
constexpr int MODULO_HEADS = 1, GAP_REPAIR = 2, LOCAL_OUTSIDE_CHUNK = 4, EARLY_START = 8;

constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int align16(int a) { return (a + 15) / 16 * 16; }

struct StepArgs {
    const elem* qkv;
    elem* keys;
    elem* values;
    i8* keys8;
    float* scales8;
    const int* stored;
    const float* cos_table;
    const float* sin_table;
    float* cache_query;
    int* selected;
    int* state;
    elem* out;
    u8* scratch;
    float* scores;
    float score_scale, softmax_scale, threshold;
    int n_init, n_local, top_k, capacity, sliding, max_list, flags, shared_bytes, pad;
};

// Fields of StepArgs::state.
constexpr int VALID = 0, LOCAL_START = 1, HITS = 2, MISSES = 3, COSINE = 4, LIST_LENGTH = 5;

// ---- instructions --------------------------------------------------------------------------------------------------

// Past L1, for what other blocks wrote in this launch.
DEVICE int load_l2(const int* p) {
    int v;
    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
DEVICE int2 load_l2(const int2* p) {
    int2 v;
    asm volatile("ld.global.cg.v2.s32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
    return v;
}
DEVICE int4 load_l2(const int4* p) {
    int4 v;
    asm volatile("ld.global.cg.v4.s32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
DEVICE float load_l2(const float* p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}
DEVICE float2 load_l2(const float2* p) {
    float2 v;
    asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
    return v;
}

// Keys are read once per step: first to leave L2, so that the scores stay.
DEVICE u64 once_policy() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
DEVICE uint4 load_once(const void* p, u64 policy) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p), "l"(policy));
    return v;
}

// c[16 x 8] += a[16 x 32] b[32 x 8] in integers; the layout is that of mma_16816 with 4 bytes where it has 2 elements.
DEVICE void mma_16832(int (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two f32 as IEEE halves, whatever the elements are.
DEVICE u32 pack_half(float lo, float hi) {
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
    return out;
}
DEVICE float2 unpack_half(u32 pair) {
    float2 out;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(out.x), "=f"(out.y) : "r"(pair));
    return out;
}

#if __CUDA_ARCH__ >= 900
// Copies of the copy engine, counted in at a barrier in shared memory.
DEVICE void barrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
DEVICE void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void barrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
DEVICE void barrier_wait(u64* barrier, u32 parity) {
    asm volatile("{.reg .pred p; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra AGAIN;}"
        ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}
DEVICE void bulk_copy(void* to, const void* from, u32 bytes, u64* barrier, u64 policy) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
        ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy) : "memory");
}
#endif

// One more arrival; what this block wrote before is visible to whoever sees it.
DEVICE u64 arrive(u64* counter) {
    u64 before;
    asm volatile("atom.add.acq_rel.gpu.global.u64 %0, [%1], 1;" : "=l"(before) : "l"(counter) : "memory");
    return before;
}
DEVICE void wait_until(u64* counter, u64 target) {
    u64 now;
    do {
        asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(counter) : "memory");
    } while (now < target);
}

// The same number, of which the compiler knows nothing: what depends on it is not computed ahead of a loop, where it
// would hold registers.
DEVICE int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// ---- scratch and shared memory ---------------------------------------------------------------------------------------

// Scratch: [barrier, arrivals per KV head, histograms, counts per block, lists, statistics, partial results].
struct Scratch {
    u64* barrier;
    u64* arrivals;      // [KV_HEADS], each only grows
    u32* histogram;     // [LEVELS][BINS]
    int* margin;        // largest relative error of a vote, as bits
    int* counts;        // [blocks][RECORD]: above the threshold class, inside it, the first keys inside it
    int* list;          // [blocks][LIST_CAP]: the votes inside it
    float2* statistics; // [HEADS][blocks]: maximum, sum of exponentials
    float2* partial_ml; // [KV_HEADS][splits][GROUP]
    float* partial_o;   // [KV_HEADS][splits][GROUP][D]
};

constexpr int RECORD = 16, INLINE_KEYS = RECORD - 2;
constexpr int LEVELS = 6;

DEVICE int splits_of(int blocks) { return max(1, min(blocks / KV_HEADS, 256)); }

DEVICE Scratch scratch_of(u8* p, int blocks) {
    Scratch s;
    s.barrier = (u64*)p;
    s.arrivals = (u64*)(p + 128);
    p += 128 + (8 * KV_HEADS + 127) / 128 * 128;
    s.histogram = (u32*)p;
    s.margin = (int*)(p + LEVELS * BINS * 4);
    p += LEVELS * BINS * 4 + 128;   // a multiple of 128, as records want
    s.counts = (int*)p;
    p += (i64)blocks * RECORD * 4;
    s.statistics = (float2*)p;
    p += (i64)blocks * HEADS * 8;
    int pairs = KV_HEADS * splits_of(blocks);
    s.partial_ml = (float2*)p;
    p += (i64)pairs * GROUP * 8;
    s.partial_o = (float*)p;
    p += (i64)pairs * GROUP * D * 4;
    s.list = (int*)p;
    return s;
}

#ifdef KEYS8
#define FAST_SCORES (HEAD_DIM % 64 == 0 && HEAD_DIM <= 128)
constexpr int CHUNKS = D / 64;
constexpr int KEY_BYTES = 1;
#else
#define FAST_SCORES (HEAD_DIM % 32 == 0 && HEAD_DIM <= 128)
constexpr int CHUNKS = D / 32; // 16-byte accesses of a lane per key
constexpr int KEY_BYTES = 2;
#endif
constexpr int COLUMNS = (GROUP + 7) / 8;                    // tiles of 8 heads
constexpr int HEAD_LANES = smaller(KV_HEADS, WARPS);        // KV heads that are read at the same time
constexpr int TILE_LANES = WARPS / HEAD_LANES;              // tiles that are read at the same time
// Scores of one tile, [score row][token] in f32. In the 8-bit mode, whose keys are rounded anyway, they are halves relative
// to the tile's maximum, [score row][8] pairs of tokens {g, g + 8}, then the maxima [score row] in f32: off by 2^-11 of the
// distance to the maximum.
#if FAST_SCORES && (defined(KEYS8) || defined(HALF_SCORES)) && !defined(FULL_SCORES)
#define HALVES 1
#else
#define HALVES 0
#endif
#if HALVES
constexpr int TILE_WORDS = larger(TILE, HEADS * (TILE / 2 + 1));
#else
constexpr int TILE_WORDS = HEADS * TILE;
#endif

// Where there is a copy engine, keys come through a ring in shared memory: every tile lane has its own slots, each one
// tile of all KV heads, which is one run of memory. Loads into registers would need L1 for what is in flight, which the
// shared memory leaves little of.
constexpr int SLOT = TILE * KV_HEADS * D * KEY_BYTES;
constexpr int SLOTS = larger(2, smaller(8, 131072 / (TILE_LANES * SLOT)));
constexpr int RING_BYTES = SLOTS * TILE_LANES * SLOT;
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200 && FAST_SCORES && KV_HEADS <= WARPS && KV_HEADS * HEAD_DIM <= 2048 && !defined(NO_RING)
#define RING 1
#else
#define RING 0
#endif
#if RING
constexpr int UNIT = 1;
constexpr int USED_RING = RING_BYTES;
#else
constexpr int UNIT = CHUNKS <= 2 ? 4 / larger(CHUNKS, 1) : 1;  // tiles of one batch of loads: about 32 registers
constexpr int USED_RING = 0;
#endif

#ifdef KEYS8
constexpr int QUERY_BYTES = HEADS * D * 6 + HEADS * 4;  // f32, then high and low parts, then scales
#else
constexpr int QUERY_BYTES = HEADS * D * 2;
#endif
constexpr int AT_REDUCE = 0;                                         // u32 [64]
constexpr int AT_FOLD = 256;                                         // float2 [HEADS]
constexpr int AT_HISTOGRAM = align16(AT_FOLD + HEADS * 8);           // u32 [BINS]; before that statistics of the warps
constexpr int AT_LIST = align16(AT_HISTOGRAM + larger(BINS * 4, larger(WARPS, KV_HEADS) * GROUP * 8));
constexpr int AT_PREFIX = AT_LIST + LIST_CAP * 4;                     // int [THREADS + 1]
constexpr int AT_QUERY = align16(AT_PREFIX + THREADS * 4 + 16);
constexpr int AT_BARRIERS = align16(AT_QUERY + QUERY_BYTES);           // u64 [2][TILE_LANES][SLOTS]: full, empty
constexpr int AT_REGION = (AT_BARRIERS + 16 * TILE_LANES * SLOTS + 127) / 128 * 128;           // votes and scores, or the attention's
constexpr int PV_HEADS = smaller(GROUP, 8);                          // heads reduced at once
constexpr int IN_Q = 0;                                              // float [GROUP][D]
constexpr int IN_K = IN_Q + GROUP * D * 4;                           // elem [ATTEND_ROWS][D], or float2 [PV_HEADS][THREADS]
constexpr int IN_V = IN_K + align16(larger(ATTEND_ROWS * D * 2, THREADS * 8 * PV_HEADS));
constexpr int IN_P = IN_V + align16(ATTEND_ROWS * D * 2);            // float [ATTEND_ROWS][GROUP_PADDED]
constexpr int IN_ML = IN_P + ATTEND_ROWS * GROUP_PADDED * 4;         // float [3][GROUP]: maximum, weight, factor
constexpr int ATTEND_BYTES = align16(IN_ML + 3 * GROUP * 4);

// For the host: least dynamic shared memory; scratch = [1] + [2] * blocks bytes; whether more shared memory serves (1), or
// takes L1 from the loads in flight (0); bytes of scores per token of capacity (+ 16 tokens per block).
constexpr int SHARED_LEAST = AT_REGION + larger(ATTEND_BYTES, USED_RING);
constexpr int PER_PAIR = GROUP * 8 + GROUP * D * 4;
extern "C" __device__ int token_select_sizes[5] = {
    SHARED_LEAST,
    128 + (8 * KV_HEADS + 127) / 128 * 128 + LEVELS * BINS * 4 + 128 + KV_HEADS * PER_PAIR,
    RECORD * 4 + HEADS * 8 + PER_PAIR + LIST_CAP * 4,
    USED_RING > 0,
    TILE_WORDS * 4 / TILE,
};

// The tokens of one block, their scores and votes.
struct Slice {
    int lo, count, tiles;   // first token, tokens, tiles
    float* shared_scores;   // of the first `shared_tiles` tiles
    float* scores;          // of the others (addressed as if all were there)
    int shared_tiles;
    int* votes;             // in shared memory, or null: then in the place of the tile's first score row
};

DEVICE Slice slice_of(const StepArgs& a, u8* region, int region_bytes, int first, int end) {
    Slice s;
    int blocks = gridDim.x;
    int per = ((end - first + blocks - 1) / blocks + TILE - 1) / TILE * TILE;
    s.lo = first + per * blockIdx.x;
    s.count = max(0, min(per, end - s.lo));
    s.tiles = (s.count + TILE - 1) / TILE;
    s.scores = a.scores + (i64)(per / TILE) * blockIdx.x * TILE_WORDS;
    int vote_bytes = per * 4 <= region_bytes ? per * 4 : 0;
    s.votes = vote_bytes ? (int*)region : nullptr;
    // Votes come when the ring is done with.
    int taken = max(vote_bytes, USED_RING);
    s.shared_scores = (float*)(region + taken);
    s.shared_tiles = max(0, region_bytes - taken) / (TILE_WORDS * 4);
    return s;
}

DEVICE float* tile_at(const Slice& s, int tile) {
    return tile < s.shared_tiles ? s.shared_scores + tile * TILE_WORDS : s.scores + (i64)tile * TILE_WORDS;
}
DEVICE int* vote_at(const Slice& s, int i) {
    return s.votes ? s.votes + i : (int*)tile_at(s, i / TILE) + i % TILE;
}

// ---- selection query -------------------------------------------------------------------------------------------------

DEVICE float2 rotated(const elem* row, int d, float c, float s) {
    float x = to_float(row[d]), y = to_float(row[d + HALF]);
    return make_float2(x * c - y * s, y * c + x * s);
}

// Four rotation pairs: elements d .. d + 3 and their partners.
struct Four {
    float4 x, y;
};
DEVICE Four rotated4(uint2 low, uint2 high, float4 c, float4 s) {
    float2 x0 = unpack2(low.x), x1 = unpack2(low.y), y0 = unpack2(high.x), y1 = unpack2(high.y);
    return {make_float4(x0.x * c.x - y0.x * s.x, x0.y * c.y - y0.y * s.y, x1.x * c.z - y1.x * s.z, x1.y * c.w - y1.y * s.w),
            make_float4(y0.x * c.x + x0.x * s.x, y0.y * c.y + x0.y * s.y, y1.x * c.z + x1.x * s.z, y1.y * c.w + x1.y * s.w)};
}
// Of head row `row` rotated at position `position`, d a multiple of 4.
DEVICE Four rotated_at(const StepArgs& a, const elem* row, int d, int position) {
    i64 at = (i64)position * HALF + d;
    return rotated4(*(const uint2*)(row + d), *(const uint2*)(row + d + HALF), __ldg((const float4*)(a.cos_table + at)),
                    __ldg((const float4*)(a.sin_table + at)));
}
DEVICE float dot4(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// The query of every head rotated at position n_local, into shared memory as elements (or in two 8-bit parts); returns its
// cosine with the query of the last miss if `compare`. All blocks compute the same bits, so all decide alike.
DEVICE float selection_query(const StepArgs& a, u8* shared, bool compare) {
    float dot = 0.0f, own = 0.0f, other = 0.0f;
    for (int i = threadIdx.x; i < HEADS * HALF / 4; i += THREADS) {
        int h = i / (HALF / 4), d = i % (HALF / 4) * 4;
        float4 x = make_float4(0, 0, 0, 0), y = x;
        if (compare) {
            x = *(const float4*)(a.cache_query + h * D + d);
            y = *(const float4*)(a.cache_query + h * D + d + HALF);
        }
        Four q = rotated_at(a, a.qkv + h * D, d, a.n_local);
        dot += dot4(q.x, x) + dot4(q.y, y);
        own += dot4(q.x, q.x) + dot4(q.y, q.y);
        other += dot4(x, x) + dot4(y, y);
        uint2 low = make_uint2(pack2(q.x.x, q.x.y), pack2(q.x.z, q.x.w)), high = make_uint2(pack2(q.y.x, q.y.y), pack2(q.y.z, q.y.w));
#ifdef KEYS8
        float* to = (float*)(shared + AT_QUERY) + h * D;
        float2 e = unpack2(low.x), f = unpack2(low.y);
        *(float4*)(to + d) = make_float4(e.x, e.y, f.x, f.y);
        e = unpack2(high.x), f = unpack2(high.y);
        *(float4*)(to + d + HALF) = make_float4(e.x, e.y, f.x, f.y);
#else
        elem* to = (elem*)(shared + AT_QUERY) + h * D;
        *(uint2*)(to + d) = low;
        *(uint2*)(to + d + HALF) = high;
#endif
    }
    float* reduce = (float*)(shared + AT_REDUCE);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    dot = warp_sum(dot), own = warp_sum(own), other = warp_sum(other);
    if (lane == 0) reduce[warp] = dot, reduce[WARPS + warp] = own, reduce[2 * WARPS + warp] = other;
    if (threadIdx.x == 0) reduce[60] = 0.0f;
    __syncthreads();
    dot = own = other = 0.0f;
    for (int w = 0; w < WARPS; w++) dot += reduce[w], own += reduce[WARPS + w], other += reduce[2 * WARPS + w];
#ifdef KEYS8
    // q = scale (high + low / 254), both parts in [-127, 127]: exact to scale / 508.
    const float* full = (const float*)(shared + AT_QUERY);
    i8* high = (i8*)(shared + AT_QUERY + HEADS * D * 4);
    i8* low = high + HEADS * D;
    float* scales = (float*)(low + HEADS * D);
    for (int h = warp; h < HEADS; h += WARPS) {
        float most = 0.0f, norm = 0.0f;
        for (int d = lane; d < D; d += 32) most = fmaxf(most, fabsf(full[h * D + d])), norm += full[h * D + d] * full[h * D + d];
        most = warp_max(most), norm = warp_sum(norm);
        if (lane == 0) atomicMax((int*)reduce + 60, __float_as_int(norm));
        float inverse = most > 0.0f ? 127.0f / most : 0.0f;
        for (int d = lane; d < D; d += 32) {
            float x = full[h * D + d] * inverse, r = rintf(x);
            high[h * D + d] = (i8)(int)r;
            low[h * D + d] = (i8)(int)rintf((x - r) * 254.0f);
        }
        if (lane == 0) scales[h] = most / 127.0f;
    }
#endif
    __syncthreads();
    return compare ? dot / sqrtf(own * other) : 0.0f;
}

// The head whose scores are in column `column` of KV head `kv`.
DEVICE int query_head(const StepArgs& a, int kv, int column) {
    return a.flags & MODULO_HEADS ? column * KV_HEADS + kv : kv * GROUP + column;
}

// ---- scores ----------------------------------------------------------------------------------------------------------

#if FAST_SCORES
struct Batch {
    uint4 key[UNIT][2][CHUNKS];
#ifdef KEYS8
    float scale[UNIT][2];
#endif
};

// Unit `unit` of this warp: tiles lane + (unit * UNIT + u) * TILE_LANES. Tokens past the end repeat the last one.
DEVICE void load_batch(Batch& b, const StepArgs& a, const Slice& s, int kv, int tile_lane, int unit, u64 policy) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#ifdef KEYS8
    const u8* base = (const u8*)a.keys8;
#else
    const u8* base = (const u8*)a.keys;
#endif
#pragma unroll
    for (int u = 0; u < UNIT; u++) {
        int tile = tile_lane + (unit * UNIT + u) * TILE_LANES;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int token = s.lo + min(tile * TILE + half * 8 + g, s.count - 1);
            i64 row = (i64)token * KV_HEADS + kv;
            const u8* p = base + row * (D * KEY_BYTES) + t * 16;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) b.key[u][half][c] = load_once(p + c * 64, policy);
#ifdef KEYS8
            b.scale[u][half] = __ldg(a.scales8 + row);
#endif
        }
    }
}
#endif

#if RING
DEVICE u64* slot_barrier(u8* shared, int which, int tile_lane, int slot) {
    return (u64*)(shared + AT_BARRIERS) + (which * TILE_LANES + tile_lane) * SLOTS + slot;
}
// Unit `unit` of a tile lane on its way into its slot; by one thread.
DEVICE void fill_slot(const StepArgs& a, u8* shared, const Slice& s, int tile_lane, int unit, u64 policy) {
    int tile = tile_lane + unit * TILE_LANES, slot = unit % SLOTS;
#ifdef KEYS8
    const u8* base = (const u8*)a.keys8;
#else
    const u8* base = (const u8*)a.keys;
#endif
    constexpr int ROW = KV_HEADS * D * KEY_BYTES;
    bulk_copy(shared + AT_REGION + (tile_lane * SLOTS + slot) * SLOT, base + (i64)(s.lo + tile * TILE) * ROW,
              min(TILE, s.count - tile * TILE) * ROW, slot_barrier(shared, 0, tile_lane, slot), policy);
}
#endif

// First loads of the keys. The block's shared region is the ring's from here to the end of score.
DEVICE void start_scores(const StepArgs& a, u8* shared, const Slice& s) {
#if RING
    int tile_lane = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0 && tile_lane < TILE_LANES) {
        for (int slot = 0; slot < SLOTS; slot++) {
            barrier_init(slot_barrier(shared, 0, tile_lane, slot), 1);
            barrier_init(slot_barrier(shared, 1, tile_lane, slot), HEAD_LANES);
        }
        barriers_ready();
        u64 policy = once_policy();
        for (int unit = 0; unit < SLOTS; unit++)
            if (tile_lane + unit * TILE_LANES < s.tiles) fill_slot(a, shared, s, tile_lane, unit, policy);
    }
    __syncthreads();
#endif
}

// Raw scores of the block's slice into its tiles; maxima and sums of exponentials per score row to scratch.
DEVICE void score(const StepArgs& a, u8* shared, const Slice& s, const Scratch& scratch) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float2* statistics = (float2*)(shared + AT_HISTOGRAM);   // [TILE_LANES][HEADS]
    if (s.count > 0) {
#if FAST_SCORES
        u64 policy = once_policy();
        int g = lane / 4, t = lane % 4;
        int tile_lane = warp / HEAD_LANES;
        if (tile_lane < TILE_LANES)
            for (int kv = warp % HEAD_LANES; kv < KV_HEADS; kv += HEAD_LANES) {
                // Any order of the summed index serves if keys and query share it: a lane's 16 neighbouring bytes of each
                // 64 are its part of two products.
#ifdef KEYS8
                const u8* high = shared + AT_QUERY + HEADS * D * 4;
                const float* query_scales = (const float*)(high + 2 * HEADS * D);
                uint4 part[2][COLUMNS][CHUNKS];
                float query_scale[COLUMNS][2];
#pragma unroll
                for (int n = 0; n < COLUMNS; n++) {
                    int column = n * 8 + g;
#pragma unroll
                    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                        for (int x = 0; x < 2; x++)
                            part[x][n][c] = column < GROUP
                                ? *(const uint4*)(high + x * HEADS * D + query_head(a, kv, column) * D + c * 64 + t * 16)
                                : make_uint4(0, 0, 0, 0);
#pragma unroll
                    for (int x = 0; x < 2; x++) {
                        int own = n * 8 + 2 * t + x;
                        query_scale[n][x] = own < GROUP ? query_scales[query_head(a, kv, own)] * a.score_scale : 0.0f;
                    }
                }
#else
                const elem* query = (const elem*)(shared + AT_QUERY);
                uint4 part[COLUMNS][CHUNKS];
#pragma unroll
                for (int n = 0; n < COLUMNS; n++) {
                    int column = n * 8 + g;
#pragma unroll
                    for (int c = 0; c < CHUNKS; c++)
                        part[n][c] = column < GROUP
                            ? *(const uint4*)(query + query_head(a, kv, column) * D + c * 32 + t * 8)
                            : make_uint4(0, 0, 0, 0);
                }
#endif
                float most[COLUMNS][2], sum[COLUMNS][2];
#pragma unroll
                for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                    for (int x = 0; x < 2; x++) most[n][x] = LOWEST, sum[n][x] = 0.0f;

                int tiles = tile_lane < s.tiles ? (s.tiles - tile_lane + TILE_LANES - 1) / TILE_LANES : 0;
                int units = (tiles + UNIT - 1) / UNIT;
                auto multiply = [&](const Batch& b, float (&c)[UNIT][COLUMNS][4]) {
#pragma unroll
                    for (int u = 0; u < UNIT; u++)
#pragma unroll
                        for (int n = 0; n < COLUMNS; n++) {
#ifdef KEYS8
                            int high_sum[4] = {0, 0, 0, 0}, low_sum[4] = {0, 0, 0, 0};
#pragma unroll
                            for (int k = 0; k < CHUNKS; k++) {
                                uint4 x = b.key[u][0][k], y = b.key[u][1][k], p = part[0][n][k], q = part[1][n][k];
                                mma_16832(high_sum, x.x, y.x, x.y, y.y, p.x, p.y);
                                mma_16832(low_sum, x.x, y.x, x.y, y.y, q.x, q.y);
                                mma_16832(high_sum, x.z, y.z, x.w, y.w, p.z, p.w);
                                mma_16832(low_sum, x.z, y.z, x.w, y.w, q.z, q.w);
                            }
#pragma unroll
                            for (int i = 0; i < 4; i++)
                                c[u][n][i] = ((float)high_sum[i] + (float)low_sum[i] * (1.0f / 254.0f)) *
                                             (query_scale[n][i & 1] * b.scale[u][i >> 1]);
#else
                            float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                            for (int k = 0; k < CHUNKS; k++) {
                                uint4 x = b.key[u][0][k], y = b.key[u][1][k], p = part[n][k];
                                const u32 a1[4] = {x.x, y.x, x.y, y.y}, a2[4] = {x.z, y.z, x.w, y.w};
                                const u32 b1[2] = {p.x, p.y}, b2[2] = {p.z, p.w};
                                mma_16816(acc, a1, b1);
                                mma_16816(acc, a2, b2);
                            }
#pragma unroll
                            for (int i = 0; i < 4; i++) c[u][n][i] = acc[i] * a.score_scale;
#endif
                        }
                };
                auto finish = [&](const float (&c)[UNIT][COLUMNS][4], int unit) {
#pragma unroll
                    for (int u = 0; u < UNIT; u++) {
                        int tile = tile_lane + (unit * UNIT + u) * TILE_LANES;
                        if (UNIT > 1 && tile >= s.tiles) break;
                        float* to = tile_at(s, tile) + kv * GROUP * (HALVES ? TILE / 2 : TILE) + g;
                        int left = s.count - tile * TILE - g;
#pragma unroll
                        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                            for (int x = 0; x < 2; x++) {
                                int column = n * 8 + 2 * t + x;
                                float lower = left > 0 ? c[u][n][x] : NEG_INF, upper = left > 8 ? c[u][n][x + 2] : NEG_INF;
#if HALVES
                                float top = fmaxf(lower, upper);
#pragma unroll
                                for (int d = 4; d < 32; d <<= 1) top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, d));
                                if (column < GROUP) {
                                    ((u32*)to)[column * (TILE / 2)] = pack_half(lower - top, upper - top);
                                    if (g == 0) tile_at(s, tile)[HEADS * (TILE / 2) + kv * GROUP + column] = top;
                                }
#else
                                if (column < GROUP) {
                                    to[column * TILE] = lower;
                                    to[column * TILE + 8] = upper;
                                }
#endif
                                float now = fmaxf(most[n][x], fmaxf(lower, upper));
                                sum[n][x] = sum[n][x] * fast_exp(most[n][x] - now) + fast_exp(lower - now) + fast_exp(upper - now);
                                most[n][x] = now;
                            }
                    }
                };
#if RING
                Batch b;
#ifdef KEYS8
                float scale[2];
                auto load_scales = [&](int unit) {
                    for (int half = 0; half < 2; half++) {
                        int at = (tile_lane + unit * TILE_LANES) * TILE + half * 8 + g;
                        scale[half] = __ldg(a.scales8 + (i64)(s.lo + min(at, s.count - 1)) * KV_HEADS + kv);
                    }
                };
                if (units > 0) load_scales(0);
#endif
                for (int unit = 0; unit < units; unit++) {
                    int slot = unit % SLOTS;
                    barrier_wait(slot_barrier(shared, 0, tile_lane, slot), unit / SLOTS & 1);
                    const u8* from = shared + AT_REGION + (tile_lane * SLOTS + slot) * SLOT + (g * KV_HEADS + kv) * (D * KEY_BYTES) + t * 16;
#pragma unroll
                    for (int half = 0; half < 2; half++)
#pragma unroll
                        for (int k = 0; k < CHUNKS; k++)
                            b.key[0][half][k] = *(const uint4*)(from + half * (8 * KV_HEADS * D * KEY_BYTES) + k * 64);
#ifdef KEYS8
                    b.scale[0][0] = scale[0], b.scale[0][1] = scale[1];
                    if (unit + 1 < units) load_scales(unit + 1);
#endif
                    __syncwarp();
                    if (lane == 0) barrier_arrive(slot_barrier(shared, 1, tile_lane, slot));
                    float c[UNIT][COLUMNS][4];
                    multiply(b, c);
                    finish(c, unit);
                    if (kv == 0 && lane == 0 && unit + SLOTS < units) {
                        barrier_wait(slot_barrier(shared, 1, tile_lane, slot), unit / SLOTS & 1);
                        fill_slot(a, shared, s, tile_lane, unit + SLOTS, policy);
                    }
                    __syncwarp();
                }
#else
                Batch batch[STAGES];
#pragma unroll
                for (int i = 0; i < STAGES; i++)
                    if (i < units) load_batch(batch[i], a, s, kv, tile_lane, i, policy);
                for (int first = 0; first < units; first += STAGES) {
#pragma unroll
                    for (int stage = 0; stage < STAGES; stage++) {
                        int unit = first + stage;
                        if (unit >= units) break;
                        float c[UNIT][COLUMNS][4];
                        multiply(batch[stage], c);
                        if (unit + STAGES < units) load_batch(batch[stage], a, s, kv, tile_lane, unit + STAGES, policy);
                        finish(c, unit);
                    }
                }
#endif
#pragma unroll
                for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                    for (int x = 0; x < 2; x++) {
#pragma unroll
                        for (int d = 4; d < 32; d <<= 1) {
                            float m = __shfl_xor_sync(FULL_MASK, most[n][x], d), l = __shfl_xor_sync(FULL_MASK, sum[n][x], d);
                            float now = fmaxf(most[n][x], m);
                            sum[n][x] = sum[n][x] * fast_exp(most[n][x] - now) + l * fast_exp(m - now);
                            most[n][x] = now;
                        }
                        int column = n * 8 + 2 * t + x;
                        if (g == 0 && column < GROUP)
                            statistics[tile_lane * HEADS + kv * GROUP + column] = make_float2(most[n][x], sum[n][x]);
                    }
            }
#else
        // Any head dimension: a warp per token and KV head, lanes over the dimension.
        for (int i = warp; i < s.tiles * TILE * KV_HEADS; i += WARPS) {
            int at = i / KV_HEADS, kv = i % KV_HEADS;
            i64 row = (i64)(s.lo + min(at, s.count - 1)) * KV_HEADS + kv;
            for (int column = 0; column < GROUP; column++) {
                float x = 0.0f;
                int h = query_head(a, kv, column);
                for (int d = lane; d < D; d += 32)
#ifdef KEYS8
                    x += (float)a.keys8[row * D + d] * ((const float*)(shared + AT_QUERY))[h * D + d];
                x = warp_sum(x) * a.scales8[row] * a.score_scale;
#else
                    x += to_float(a.keys[row * D + d]) * to_float(((const elem*)(shared + AT_QUERY))[h * D + d]);
                x = warp_sum(x) * a.score_scale;
#endif
                if (lane == 0) tile_at(s, at / TILE)[(kv * GROUP + column) * TILE + at % TILE] = at < s.count ? x : NEG_INF;
            }
        }
        __syncthreads();
        for (int row = warp; row < HEADS; row += WARPS) {
            float most = LOWEST, sum = 0.0f;
            for (int i = lane; i < s.count; i += 32) most = fmaxf(most, tile_at(s, i / TILE)[row * TILE + i % TILE]);
            most = warp_max(most);
            for (int i = lane; i < s.count; i += 32) sum += fast_exp(tile_at(s, i / TILE)[row * TILE + i % TILE] - most);
            sum = warp_sum(sum);
            if (lane < TILE_LANES) statistics[lane * HEADS + row] = lane ? make_float2(LOWEST, 0.0f) : make_float2(most, sum);
        }
#endif
    }
    __syncthreads();
    for (int row = threadIdx.x; row < HEADS; row += THREADS) {
        float most = LOWEST, sum = 0.0f;
        if (s.count > 0)
            for (int i = 0; i < TILE_LANES; i++) {
                float2 x = statistics[i * HEADS + row];
                float now = fmaxf(most, x.x);
                sum = sum * fast_exp(most - now) + x.y * fast_exp(x.x - now);
                most = now;
            }
        scratch.statistics[(i64)row * gridDim.x + blockIdx.x] = make_float2(most, sum);
    }
}

// ---- vote and selection ----------------------------------------------------------------------------------------------

DEVICE void clear_histogram(u32* histogram) {
    for (int i = threadIdx.x; i < BINS; i += THREADS) histogram[i] = 0;
}

// The bin at which the counts, summed from the top bin down, reach `need`; how many are above it, how many inside.
struct Bin {
    int bin, above, count;
};
DEVICE Bin find_bin(const u32 (&mine)[BINS_PER_THREAD], int need, u32* reduce) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int total = 0;
#pragma unroll
    for (int i = 0; i < BINS_PER_THREAD; i++) total += (int)mine[i];
    int sum = total;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        int x = __shfl_up_sync(FULL_MASK, sum, d);
        if (lane >= d) sum += x;
    }
    if (lane == 31) reduce[warp] = (u32)sum;
    __syncthreads();
    int before = sum - total;
    for (int w = 0; w < warp; w++) before += (int)reduce[w];
    if (before < need && need <= before + total) {
        int bin = BINS - 1 - (int)threadIdx.x * BINS_PER_THREAD, i = 0;
        while (before + (int)mine[i] < need && i < BINS_PER_THREAD - 1) before += (int)mine[i++];
        reduce[32] = (u32)(bin - i);
        reduce[33] = (u32)before;
        reduce[34] = mine[i];
    }
    __syncthreads();
    return {(int)reduce[32], (int)reduce[33], (int)reduce[34]};
}

// How many before this thread's element, inside the block, counted in order of position: every warp has its own run.
struct Run {
    int first, last;
};
DEVICE Run run_of(const Slice& s) {
    int warp = threadIdx.x / 32;
    int length = ((s.count + WARPS - 1) / WARPS + 31) / 32 * 32;
    return {min(s.count, warp * length), min(s.count, (warp + 1) * length)};
}

// Counts of keys above (first) and inside (second) a class in the runs of the warps before this one, and in all.
template <class Above, class Inside>
DEVICE void count_runs(const Slice& s, u32* reduce, Above above, Inside inside, int2& before, int2& all) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Run run = run_of(s);
    int x = 0, y = 0;
    for (int i = run.first; i < run.last; i += 32) {
        bool valid = i + lane < run.last;
        int key = valid ? *vote_at(s, i + lane) : -1;
        x += __popc(__ballot_sync(FULL_MASK, valid && above(key)));
        y += __popc(__ballot_sync(FULL_MASK, valid && inside(key)));
    }
    __syncthreads();
    if (lane == 0) reduce[warp] = (u32)x, reduce[32 + warp] = (u32)y;
    __syncthreads();
    before = all = make_int2(0, 0);
    for (int w = 0; w < WARPS; w++) {
        int2 n = make_int2((int)reduce[w], (int)reduce[32 + w]);
        if (w < warp) before.x += n.x, before.y += n.y;
        all.x += n.x, all.y += n.y;
    }
    __syncthreads();
}

#if HALVES
constexpr int SURE = 0x7f800000;   // above every vote
// The vote of one token from its 16-bit key, by a warp.
DEVICE float exact_vote(const StepArgs& a, const u8* shared, const float2* fold, int token) {
    int lane = threadIdx.x % 32;
    float vote = 0.0f;
    for (int kv = 0; kv < KV_HEADS; kv++) {
        const elem* key = a.keys + ((i64)token * KV_HEADS + kv) * D;
        float k[D / 32];
#pragma unroll
        for (int n = 0; n < D / 32; n++) k[n] = to_float(key[lane + 32 * n]);
#pragma unroll
        for (int column = 0; column < GROUP; column++) {
            int h = query_head(a, kv, column);
            float dot = 0.0f;
#pragma unroll
            for (int n = 0; n < D / 32; n++)
#ifdef KEYS8
                dot += k[n] * ((const float*)(shared + AT_QUERY))[h * D + lane + 32 * n];
#else
                dot += k[n] * to_float(((const elem*)(shared + AT_QUERY))[h * D + lane + 32 * n]);
#endif
            dot = warp_sum(dot) * a.score_scale;
            float2 f = fold[kv * GROUP + column];
            vote += fast_exp(dot - f.x) * f.y;
        }
    }
    return vote;
}
#else
constexpr int SURE = 0x7f800000;
#endif

// Votes of the slice from its scores and the statistics of all blocks; the top_k highest to `selected`, ascending.
// Two grid barriers where the threshold bin fits the list, one more per further level where it does not.
DEVICE void vote_and_select(const StepArgs& a, u8* shared, const Slice& s, const Scratch& scratch) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int blocks = gridDim.x;
    u32* reduce = (u32*)(shared + AT_REDUCE);
    float2* fold = (float2*)(shared + AT_FOLD);
    u32* histogram = (u32*)(shared + AT_HISTOGRAM);
    int* list = (int*)(shared + AT_LIST);

    clear_histogram(histogram);
#if HALVES && defined(KEYS8)
    // What rounding a key to 8 bits puts its scores off by, in the mean: scale / sqrt(12) times the norm of the query.
    if (blockIdx.x < 8 && threadIdx.x < KV_HEADS && s.count > 0) {
        float off = 0.29f * sqrtf(__int_as_float((int)reduce[60])) * fabsf(a.score_scale) * __ldg(a.scales8 + (i64)s.lo * KV_HEADS + threadIdx.x);
        atomicMax(scratch.margin, __float_as_int(fminf(off, 0.12f) * 2048.0f));
    }
#endif
    // Every wait for the L2 costs more than the arithmetic: all loads of a row before the first use.
#pragma unroll 2
    for (int row = warp; row < HEADS; row += WARPS) {
        float most = LOWEST, sum = 0.0f;
        for (int from = 0; from < blocks; from += 32 * FOLD) {
            float2 x[FOLD];
#pragma unroll
            for (int i = 0; i < FOLD; i++) {
                int b = from + 32 * i + lane;
                x[i] = make_float2(LOWEST, 0.0f);
                if (b < blocks) x[i] = load_l2(scratch.statistics + (i64)row * blocks + b);
            }
            float now = most;
#pragma unroll
            for (int i = 0; i < FOLD; i++) now = fmaxf(now, x[i].x);
            sum *= fast_exp(most - now);
#pragma unroll
            for (int i = 0; i < FOLD; i++) sum += x[i].y * fast_exp(x[i].x - now);
            most = now;
        }
        float top = warp_max(most);
        sum = warp_sum(sum * fast_exp(most - top));
        if (lane == 0) fold[row] = make_float2(top, 1.0f / sum);
    }
    __syncthreads();

    // A warp reads 32 neighbouring words at a time: two rows of 16 tokens, or four of 8 pairs.
    constexpr int ROWS = HALVES ? 4 : 2, LANES = 32 / ROWS;
    constexpr int LINES = (HEADS + ROWS - 1) / ROWS;
    constexpr int AT_ONCE = LINES <= 10 ? 4 : LINES <= 20 ? 2 : 1;   // tiles
    float worst = 0.0f;
    for (int first = warp; first < s.tiles; first += WARPS * AT_ONCE) {
        float x[AT_ONCE][LINES];
#if HALVES
        float top[AT_ONCE][LINES];
#endif
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            const float* p = tile_at(s, min(first + n * WARPS, s.tiles - 1));
#pragma unroll
            for (int i = 0; i < LINES; i++) {
                int row = min(ROWS * i + lane / LANES, HEADS - 1);
                x[n][i] = p[row * LANES + lane % LANES];
#if HALVES
                top[n][i] = p[HEADS * LANES + row];
#endif
            }
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            int tile = first + n * WARPS;
            if (tile >= s.tiles) break;
            float vote = 0.0f, upper = 0.0f, error = 0.0f, upper_error = 0.0f;
#pragma unroll
            for (int i = 0; i < LINES; i++) {
                int row = ROWS * i + lane / LANES;
                float2 f = fold[min(row, HEADS - 1)];
                float weight = row < HEADS ? f.y : 0.0f;
#if HALVES
                float2 pair = unpack_half(__float_as_uint(x[n][i]));
                float p = fast_exp(top[n][i] - f.x + pair.x) * weight, q = fast_exp(top[n][i] - f.x + pair.y) * weight;
                vote += p;
                upper += q;
                if (p > 0.0f) error -= p * pair.x;   // a score is off by 2^-11 of its distance to the tile's maximum
                if (q > 0.0f) upper_error -= q * pair.y;
#else
                vote += fast_exp(x[n][i] - f.x) * weight;
#endif
            }
#pragma unroll
            for (int d = LANES; d < 32; d <<= 1) {
                vote += __shfl_xor_sync(FULL_MASK, vote, d);
                if (HALVES) {
                    upper += __shfl_xor_sync(FULL_MASK, upper, d);
                    error += __shfl_xor_sync(FULL_MASK, error, d);
                    upper_error += __shfl_xor_sync(FULL_MASK, upper_error, d);
                }
            }
            if (HALVES && lane & 8) vote = upper, error = upper_error;
            int at = tile * TILE + lane;
            if (lane < TILE && at < s.count) {
                int key = vote > 0.0f ? __float_as_int(vote) : 0;   // positive floats order as integers; NaN counts as zero
                *vote_at(s, at) = key;
                atomicAdd(histogram + (key >> 20), 1u);
                if (HALVES && key > 0) worst = fmaxf(worst, error / vote);
            }
        }
    }
    if (HALVES) {
        worst = warp_max(worst);
        if (lane == 0) atomicMax(scratch.margin, __float_as_int(worst));
    }
    __syncthreads();

    // The class that decides: keys from `low` to `high`. Those above it are in, `need` of the `count` inside it are.
    int low, high, need, count, shift, prefix, above_before;
    bool whole, ordered;
    int* inside_before = (int*)(shared + AT_PREFIX);    // [blocks + 1]
    int2 before, all;
    for (int pass = 0;; pass++) {
        bool refined = HALVES && pass == 0;
        need = a.top_k, count = 0, shift = 20, prefix = 0;
        for (int level = 0;; level++) {
            u32* counts = scratch.histogram + (3 * pass + level) * BINS;
            for (int i = threadIdx.x; i < BINS; i += THREADS)
                if (histogram[i]) atomicAdd(counts + i, histogram[i]);
            grid_barrier(scratch.barrier, blocks);
            u32 mine[BINS_PER_THREAD];
#pragma unroll
            for (int i = 0; i < BINS_PER_THREAD; i++) mine[i] = (u32)load_l2((const int*)counts + BINS - 1 - ((int)threadIdx.x * BINS_PER_THREAD + i));
            Bin found = find_bin(mine, need, reduce);
            need -= found.above;
            count = found.count;
            prefix = level == 0 ? found.bin : prefix << (level == 1 ? 11 : 9) | found.bin;
            if (count <= LIST_CAP || (count == need && !refined) || shift == 0) break;
            int next = shift == 20 ? 9 : 0, mask = (1 << (shift - next)) - 1;
            clear_histogram(histogram);
            __syncthreads();
            for (int i = threadIdx.x; i < s.count; i += THREADS) {
                int key = *vote_at(s, i);
                if (key >> shift == prefix) atomicAdd(histogram + (key >> next & mask), 1u);
            }
            __syncthreads();
            shift = next;
        }
        low = prefix << shift, high = low + (int)((1u << shift) - 1);
#if HALVES
        if (refined) {
            // Votes of rounded scores: the class is widened by what they may be off, once for the vote and once for the
            // threshold, and votes inside it are computed anew from the 16-bit keys.
            float margin = fminf(2.25f / 2048.0f * __int_as_float(load_l2(scratch.margin)) + 1e-5f, 0.9f);
            low = __float_as_int(__int_as_float(low) * (1.0f - margin));
            high = __float_as_int(fminf(__int_as_float(high), 1e30f) * (1.0f + margin));
            Run run = run_of(s);
            for (int i = run.first; i < run.last; i += 32) {
                bool valid = i + lane < run.last;
                int key = valid ? *vote_at(s, i + lane) : -1;
                u32 inside = __ballot_sync(FULL_MASK, valid && key >= low && key <= high);
                if (valid && key > high) *vote_at(s, i + lane) = SURE;
                if (valid && key < low) *vote_at(s, i + lane) = -1;
                while (inside) {
                    int at = i + __ffs(inside) - 1;
                    inside &= inside - 1;
                    float vote = exact_vote(a, shared, fold, s.lo + at);
                    if (lane == 0) *vote_at(s, at) = vote > 0.0f ? __float_as_int(vote) : 0;
                }
            }
            __syncthreads();
            low = 0, high = SURE - 1;
        }
#endif
        whole = count == need && !refined;            // everything inside is in
        ordered = refined || (!whole && shift > 0);   // the list decides; else equal votes, and position does
        count_runs(s, reduce, [&](int key) { return key > high; }, [&](int key) { return key >= low && key <= high; }, before, all);
        int* record = scratch.counts + blockIdx.x * RECORD;
        if (threadIdx.x == 0) *(int2*)record = all;
        if (ordered && all.y > 0) {
            Run run = run_of(s);
            int rank = before.y;
            for (int i = run.first; i < run.last; i += 32) {
                bool valid = i + lane < run.last;
                int key = valid ? *vote_at(s, i + lane) : -1;
                bool inside = valid && key >= low && key <= high;
                u32 vote = __ballot_sync(FULL_MASK, inside);
                int at = rank + __popc(vote & ((1u << lane) - 1));
                if (inside && at < LIST_CAP) (at < INLINE_KEYS ? record + 2 : scratch.list + (i64)blockIdx.x * LIST_CAP)[at] = key;
                rank += __popc(vote);
            }
        }
        grid_barrier(scratch.barrier, blocks);

        // Counts of the blocks before each block. The list is then the classes of all blocks in order of position.
        int4 part[RECORD / 4];
#pragma unroll
        for (int i = 0; i < RECORD / 4; i++) {
            part[i] = make_int4(0, 0, 0, 0);
            if ((int)threadIdx.x < blocks) part[i] = load_l2((const int4*)scratch.counts + threadIdx.x * (RECORD / 4) + i);
        }
        int2 n = make_int2(part[0].x, part[0].y);
        int2 sum = n;
#pragma unroll
        for (int d = 1; d < 32; d <<= 1) {
            int x = __shfl_up_sync(FULL_MASK, sum.x, d), y = __shfl_up_sync(FULL_MASK, sum.y, d);
            if (lane >= d) sum.x += x, sum.y += y;
        }
        if (lane == 31) reduce[warp] = (u32)sum.x, reduce[32 + warp] = (u32)sum.y;
        __syncthreads();
        int2 prior = make_int2(sum.x - n.x, sum.y - n.y);
        for (int w = 0; w < warp; w++) prior.x += (int)reduce[w], prior.y += (int)reduce[32 + w];
        __syncthreads();
        if ((int)threadIdx.x < blocks) inside_before[threadIdx.x] = prior.y;
        if ((int)threadIdx.x == blocks - 1) inside_before[blocks] = prior.y + n.y, reduce[49] = (u32)(prior.x + n.x);
        if (threadIdx.x == blockIdx.x) reduce[48] = (u32)prior.x;
        if (ordered) {
#pragma unroll
            for (int i = 0; i < INLINE_KEYS; i++) {
                int4 quad = part[(i + 2) / 4];
                int key = i % 4 == 0 ? quad.z : i % 4 == 1 ? quad.w : i % 4 == 2 ? quad.x : quad.y;
                if (i < n.y && prior.y + i < LIST_CAP) list[prior.y + i] = key;
            }
        }
        __syncthreads();
        above_before = (int)reduce[48];
        if (!refined) break;
        need = a.top_k - (int)reduce[49];
        count = inside_before[blocks];
        whole = count == need;
        ordered = !whole;
        if (whole || count <= LIST_CAP) break;
        // Too many for the list: all of them by their new votes, level by level.
        clear_histogram(histogram);
        __syncthreads();
        for (int i = threadIdx.x; i < s.count; i += THREADS) {
            int key = *vote_at(s, i);
            if (key >= 0) atomicAdd(histogram + (key >> 20), 1u);
        }
        __syncthreads();
    }

    int limit, offset, take;   // keys > limit are in, and the first `take` of those equal to it
    int own_before = inside_before[blockIdx.x];
    if (whole) {
        limit = low - 1;
        take = 0;
        offset = above_before + own_before;
    } else if (!ordered) {
        limit = low;
        take = max(0, need - own_before);
        offset = above_before + min(need, own_before);
    } else {
        for (int b = warp; b < blocks; b += WARPS) {
            int n = inside_before[b + 1] - inside_before[b];
            for (int i = INLINE_KEYS + lane; i < n; i += 32) list[inside_before[b] + i] = load_l2(scratch.list + (i64)b * LIST_CAP + i);
        }
        __syncthreads();
        int wanted;   // how many of those equal to the limit are in, over all blocks
        if (count <= 96) {
            // Few: every thread ranks one by comparison with all. Equal ones rank by position, which is their order here.
            int at = threadIdx.x, key = at < count ? list[at] : -1, rank = 0, same = 0;
            if (at < count)
#pragma unroll 8
                for (int i = 0; i < count; i++) {
                    int other = list[i];
                    rank += other > key;
                    same += other == key && i <= at;
                }
            if (at < count && rank + same == need) reduce[56] = (u32)key, reduce[57] = (u32)same;
            __syncthreads();
            limit = (int)reduce[56];
            wanted = (int)reduce[57];
        } else {
            // The first eleven bits, which a class that was not widened shares, then ten, then the last ten.
            bool shares = !HALVES || high < SURE - 1;
            limit = shares ? low >> 20 : 0;
            for (int level = shares ? 1 : 0; level < 3; level++) {
                __syncthreads();
                clear_histogram(histogram);
                __syncthreads();
                for (int i = threadIdx.x; i < count; i += THREADS) {
                    int key = list[i];
                    if (level == 0) atomicAdd(histogram + (key >> 20), 1u);
                    else if (level == 1 ? key >> 20 == limit : key >> 10 == limit) atomicAdd(histogram + (key >> (level == 1 ? 10 : 0) & 1023), 1u);
                }
                __syncthreads();
                u32 mine[BINS_PER_THREAD];
#pragma unroll
                for (int i = 0; i < BINS_PER_THREAD; i++) mine[i] = histogram[BINS - 1 - ((int)threadIdx.x * BINS_PER_THREAD + i)];
                Bin found = find_bin(mine, need, reduce);
                need -= found.above;
                limit = level == 0 ? found.bin : limit << 10 | found.bin;
            }
            wanted = need;
        }
        int above = 0, equal = 0;
        for (int i = 0; i < own_before; i += THREADS) {
            int at = i + threadIdx.x;
            int key = at < own_before ? list[at] : -1;
            above += __syncthreads_count(at < own_before && key > limit);
            equal += __syncthreads_count(at < own_before && key == limit);
        }
        take = max(0, wanted - equal);
        offset = above_before + above + min(wanted, equal);
    }

    count_runs(s, reduce, [&](int key) { return key > limit; }, [&](int key) { return key == limit; }, before, all);
    if (all.x > 0 || (all.y > 0 && take > 0)) {
        Run run = run_of(s);
        for (int i = run.first; i < run.last; i += 32) {
            bool valid = i + lane < run.last;
            int key = valid ? *vote_at(s, i + lane) : -1;
            u32 above = __ballot_sync(FULL_MASK, valid && key > limit), equal = __ballot_sync(FULL_MASK, valid && key == limit);
            u32 lower = (1u << lane) - 1;
            int rank = before.x + __popc(above & lower), same = before.y + __popc(equal & lower);
            if (valid && (key > limit || (key == limit && same < take)))
                a.selected[offset + rank + min(same, take)] = s.lo + i + lane;
            before.x += __popc(above);
            before.y += __popc(equal);
        }
    }
}

// ---- attention -------------------------------------------------------------------------------------------------------

// The packed list: [0, n_init), the selected, [tail, ...); position in it is position for the rotation.
struct List {
    int length, n_init, n_selected, tail;
};

// Without branches, so that several are looked up at once.
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

// Rows [first, first + count) of the packed list on their way into shared memory, all but the current token's.
DEVICE void load_rows(const StepArgs& a, u8* region, const List& list, int kv, int first, int count) {
    constexpr int PIECES = D / 8;
    elem* k = (elem*)(region + IN_K);
    elem* v = (elem*)(region + IN_V);
    count = min(count, list.length - 1 - first);
    constexpr int PASSES = (ATTEND_ROWS * PIECES + THREADS - 1) / THREADS;
    int token[PASSES];
#pragma unroll
    for (int n = 0; n < PASSES; n++) token[n] = token_of(a, list, first + min((int)(n * THREADS + threadIdx.x) / PIECES, ATTEND_ROWS - 1));
#pragma unroll
    for (int n = 0; n < PASSES; n++) {
        int row = (n * THREADS + threadIdx.x) / PIECES, piece = (n * THREADS + threadIdx.x) % PIECES;
        if (row < count) {
            i64 at = ((i64)token[n] * KV_HEADS + kv) * D + piece * 8;
            cp_async_16(k + row * D + piece * 8, a.keys + at);
            cp_async_16(v + row * D + piece * 8, a.values + at);
        }
    }
    cp_async_commit();
}

// The current token is the last of the list; its key and value come from the projection.
DEVICE void load_current(const StepArgs& a, u8* region, const List& list, int kv, int first, int count) {
    int row = list.length - 1 - first;
    if (row < 0 || row >= count) return;
    const elem* from = a.qkv + (HEADS + kv) * D;
    for (int i = threadIdx.x; i < D; i += THREADS) {
        ((elem*)(region + IN_K))[row * D + i] = from[i];
        ((elem*)(region + IN_V))[row * D + i] = from[KV_HEADS * D + i];
    }
}

// Lanes of one key: 4 rotation pairs each, where that divides a warp.
#define FAST_ATTEND (HEAD_DIM == 32 || HEAD_DIM == 64 || HEAD_DIM == 128 || HEAD_DIM == 256)
constexpr int KEY_LANES = FAST_ATTEND ? HALF / 4 : 32;
constexpr int KEYS_AT_ONCE = THREADS / KEY_LANES;
constexpr int PV_LANES = THREADS / HALF;   // tokens at once in the sum over values

constexpr int TURNS = FAST_ATTEND ? (ATTEND_ROWS + KEYS_AT_ONCE - 1) / KEYS_AT_ONCE : 1;

// What rotates this thread's keys of a chunk of the list: cosines and sines.
struct Factors {
    float4 c[TURNS], s[TURNS];
};
DEVICE void load_factors(Factors& f, const StepArgs& a, int from, int end) {
#if FAST_ATTEND
    int part = threadIdx.x % KEY_LANES, own = threadIdx.x / KEY_LANES;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        i64 at = (i64)min(from + turn * KEYS_AT_ONCE + own, end - 1) * HALF + part * 4;
        f.c[turn] = __ldg((const float4*)(a.cos_table + at));
        f.s[turn] = __ldg((const float4*)(a.sin_table + at));
    }
#endif
}

// What attend loads first: worth starting before it is known that the list is right.
DEVICE void prefetch_rows(const StepArgs& a, u8* shared, const List& list, Factors& factors) {
    Share s = share_of(a, list, blockIdx.x);
    if (s.kv >= KV_HEADS || s.begin >= s.end) return;
    load_rows(a, shared + AT_REGION, list, s.kv, s.begin, min(ATTEND_ROWS, s.end - s.begin));
    load_factors(factors, a, s.begin, s.end);
}

// `loaded`: prefetch_rows was called for this list.
DEVICE void attend(const StepArgs& a, u8* shared, const Scratch& scratch, const List& list, Factors& factors, bool loaded) {
    int blocks = gridDim.x, splits = splits_of(blocks);
    u8* region = shared + AT_REGION;
    float* q = (float*)(region + IN_Q);
    const elem* k = (const elem*)(region + IN_K);
    const elem* v = (const elem*)(region + IN_V);
    float* p = (float*)(region + IN_P);
    float* most = (float*)(region + IN_ML);
    float* weight = most + GROUP;
    float* factor = weight + GROUP;
    float2* partial = (float2*)(region + IN_K);   // [PV_HEADS][THREADS] once the keys are used

    for (int pair = blockIdx.x; pair < KV_HEADS * splits; pair += blocks) {
        Share share = share_of(a, list, pair);
        int thread = opaque(threadIdx.x);
        int kv = share.kv, split = pair % splits, begin = share.begin, end = share.end;
        if (!loaded) {
            __syncthreads();
            if (begin < end) {
                load_rows(a, region, list, kv, begin, min(ATTEND_ROWS, end - begin));
                load_factors(factors, a, begin, end);
            }
        }
        loaded = false;
        if (begin < end) load_current(a, region, list, kv, begin, min(ATTEND_ROWS, end - begin));
        for (int i = thread; i < GROUP * HALF / 4; i += THREADS) {
            int h = i / (HALF / 4), d = i % (HALF / 4) * 4;
            Four x = rotated_at(a, a.qkv + (kv * GROUP + h) * D, d, list.length - 1);
            float f = a.softmax_scale;
            *(float4*)(q + h * D + d) = make_float4(x.x.x * f, x.x.y * f, x.x.z * f, x.x.w * f);
            *(float4*)(q + h * D + d + HALF) = make_float4(x.y.x * f, x.y.y * f, x.y.z * f, x.y.w * f);
        }
        if (thread < GROUP) most[thread] = LOWEST, weight[thread] = 0.0f;
        float2 sum[GROUP];
#pragma unroll
        for (int h = 0; h < GROUP; h++) sum[h] = make_float2(0.0f, 0.0f);

        for (int from = begin; from < end; from += ATTEND_ROWS) {
            int count = min(ATTEND_ROWS, end - from);
            int thread = opaque(threadIdx.x), warp = thread / 32, lane = thread % 32;
            int pv_pair = thread % HALF, pv_lane = thread / HALF;
            if (from > begin) {
                __syncthreads();
                load_rows(a, region, list, kv, from, count);
                load_current(a, region, list, kv, from, count);
                load_factors(factors, a, from, end);
            }
#if FAST_ATTEND
            int part = thread % KEY_LANES, own = thread / KEY_LANES;
            int turns = (count + KEYS_AT_ONCE - 1) / KEYS_AT_ONCE;
            cp_async_wait<0>();
            __syncthreads();
            Four key[TURNS];
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++) {
                const elem* row = k + min(turn * KEYS_AT_ONCE + own, count - 1) * D + part * 4;
                key[turn] = rotated4(*(const uint2*)row, *(const uint2*)(row + HALF), factors.c[turn], factors.s[turn]);
            }
            // Not unrolled further: the query would be kept in registers for all heads at once.
#pragma unroll 2
            for (int h = 0; h < GROUP; h++) {
                float4 u = *(const float4*)(q + h * D + part * 4), w = *(const float4*)(q + h * D + HALF + part * 4);
                float dot[TURNS];
#pragma unroll
                for (int turn = 0; turn < TURNS; turn++) {
                    if (turn >= turns) break;
                    dot[turn] = dot4(u, key[turn].x) + dot4(w, key[turn].y);
                }
#pragma unroll
                for (int d = KEY_LANES / 2; d > 0; d >>= 1)
#pragma unroll
                    for (int turn = 0; turn < TURNS; turn++)
                        if (turn < turns) dot[turn] += __shfl_xor_sync(FULL_MASK, dot[turn], d);
#pragma unroll
                for (int turn = 0; turn < TURNS; turn++) {
                    int row = turn * KEYS_AT_ONCE + own;
                    if (part == turn && row < count) p[row * GROUP_PADDED + h] = dot[turn];
                }
            }
#else
            cp_async_wait<0>();
            __syncthreads();
            for (int row = warp; row < count; row += WARPS)
                for (int h = 0; h < GROUP; h++) {
                    float dot = 0.0f;
                    for (int d = lane; d < HALF; d += 32) {
                        i64 at = (i64)(from + row) * HALF + d;
                        float2 x = rotated(k + row * D, d, a.cos_table[at], a.sin_table[at]);
                        dot += q[h * D + d] * x.x + q[h * D + d + HALF] * x.y;
                    }
                    dot = warp_sum(dot);
                    if (lane == 0) p[row * GROUP_PADDED + h] = dot;
                }
#endif
            __syncthreads();
            for (int h = warp; h < GROUP; h += WARPS) {
                float before = most[h], m = before, l = 0.0f;
                for (int i = lane; i < count; i += 32) m = fmaxf(m, p[i * GROUP_PADDED + h]);
                m = warp_max(m);
                for (int i = lane; i < count; i += 32) {
                    float x = fast_exp(p[i * GROUP_PADDED + h] - m);
                    p[i * GROUP_PADDED + h] = x;
                    l += x;
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
            __syncthreads();
            if (pv_lane < PV_LANES) {
#pragma unroll
                for (int h = 0; h < GROUP; h++) sum[h].x *= factor[h], sum[h].y *= factor[h];
#pragma unroll 4
                for (int i = pv_lane; i < count; i += PV_LANES) {
                    float2 x = unpack2(*(const u32*)(v + i * D + pv_pair * 2));
#pragma unroll
                    for (int h = 0; h < GROUP; h += 4) {
                        float4 w = *(const float4*)(p + i * GROUP_PADDED + h);
                        sum[h].x += w.x * x.x, sum[h].y += w.x * x.y;
                        if (h + 1 < GROUP) sum[h + 1 < GROUP ? h + 1 : 0].x += w.y * x.x, sum[h + 1 < GROUP ? h + 1 : 0].y += w.y * x.y;
                        if (h + 2 < GROUP) sum[h + 2 < GROUP ? h + 2 : 0].x += w.z * x.x, sum[h + 2 < GROUP ? h + 2 : 0].y += w.z * x.y;
                        if (h + 3 < GROUP) sum[h + 3 < GROUP ? h + 3 : 0].x += w.w * x.x, sum[h + 3 < GROUP ? h + 3 : 0].y += w.w * x.y;
                    }
                }
            }
        }

        // Sum over the token lanes, PV_HEADS heads at a time.
#pragma unroll
        for (int base = 0; base < GROUP; base += PV_HEADS) {
            __syncthreads();
#pragma unroll
            for (int h = 0; h < PV_HEADS; h++)
                if (base + h < GROUP) partial[h * THREADS + thread] = sum[base + h < GROUP ? base + h : 0];
            __syncthreads();
            for (int i = thread; i < min(PV_HEADS, GROUP - base) * HALF; i += THREADS) {
                int h = i / HALF, d = i % HALF;
                float2 x = make_float2(0.0f, 0.0f);
                for (int j = 0; j < PV_LANES; j++) {
                    float2 y = partial[h * THREADS + j * HALF + d];
                    x.x += y.x, x.y += y.y;
                }
                *(float2*)(scratch.partial_o + ((i64)pair * GROUP + base + h) * D + 2 * d) = x;
            }
        }
        if (thread < GROUP)
            scratch.partial_ml[pair * GROUP + thread] = make_float2(most[thread], weight[thread]);

        // The splits of a KV head share its heads out once all of them have arrived.
        __syncthreads();
        u64* arrived = (u64*)(shared + AT_REDUCE);
        if (thread == 0) *arrived = arrive(scratch.arrivals + kv);
        if (split >= GROUP) continue;
        if (thread == 0) wait_until(scratch.arrivals + kv, (*arrived / splits + 1) * splits);
        __syncthreads();
        float* weights = (float*)(region + IN_K);        // [splits]
        float* sums = weights + 256;                     // [THREADS / D][D]
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
                if (thread == 0) factor[0] = 1.0f / total;
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
                a.out[(kv * GROUP + h) * D + thread] = from_float(x * factor[0]);
            }
            __syncthreads();
        }
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

// ---- entry points ------------------------------------------------------------------------------------------------------

DEVICE int window_of(const StepArgs& a) { return a.n_local + (a.flags & LOCAL_OUTSIDE_CHUNK ? 1 : 0); }
DEVICE bool is_dense(const StepArgs& a, int stored) { return stored <= a.n_init + a.top_k + a.n_local; }

DEVICE void clear_scratch(const Scratch& scratch) {
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < LEVELS * BINS + 1; i += gridDim.x * THREADS) scratch.histogram[i] = 0;   // and the margin
}

// After a barrier that all blocks pass with their decision made.
DEVICE void remember(const StepArgs& a, int local_start) {
    if (blockIdx.x != 0) return;
    for (int i = threadIdx.x; i < HEADS * HALF / 4; i += THREADS) {
        int h = i / (HALF / 4), d = i % (HALF / 4) * 4;
        Four q = rotated_at(a, a.qkv + h * D, d, a.n_local);
        *(float4*)(a.cache_query + h * D + d) = q.x;
        *(float4*)(a.cache_query + h * D + d + HALF) = q.y;
    }
    if (threadIdx.x == 0) a.state[VALID] = 1, a.state[LOCAL_START] = local_start;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) token_select_step(StepArgs a) {
    extern __shared__ __align__(16) u8 shared[];
    if (!(a.flags & EARLY_START)) wait_for_previous_kernel();
    int blocks = gridDim.x;
    Scratch scratch = scratch_of(a.scratch, blocks);
    int stored = *a.stored, valid = a.state[VALID], cached_start = a.state[LOCAL_START];
    int local_start = stored - window_of(a);
    bool dense = is_dense(a, stored);
    bool compare = !dense && a.threshold <= 1.0f && valid != 0;
    List list = {stored, 0, 0, 0};
    if (!dense) {
        int tail = compare && a.flags & GAP_REPAIR ? cached_start : local_start;
        list = {a.n_init + a.top_k + stored - tail, a.n_init, a.top_k, tail};
        compare = compare && list.length <= a.max_list;
    }
    // A hit is bet on: its rows travel while the cosine is computed.
    bool loaded = dense || compare;
    Factors factors;
    Slice slice = slice_of(a, shared + AT_REGION, a.shared_bytes - AT_REGION, a.n_init, local_start);
    if (loaded) prefetch_rows(a, shared, list, factors);
    else start_scores(a, shared, slice);
    if (a.flags & EARLY_START) wait_for_previous_kernel();
    if (!dense) {
        float cosine = selection_query(a, shared, compare);
        bool hit = compare && cosine >= a.threshold;
        if (!hit) {
            if (loaded) {
                cp_async_wait<0>();
                __syncthreads();
                loaded = false;
                start_scores(a, shared, slice);
            }
            clear_scratch(scratch);
            score(a, shared, slice, scratch);
            grid_barrier(scratch.barrier, blocks);
            remember(a, local_start);
            vote_and_select(a, shared, slice, scratch);
            grid_barrier(scratch.barrier, blocks);
            list = {a.n_init + a.top_k + stored - local_start, a.n_init, a.top_k, local_start};
            factors = Factors();   // loaded anew: none to keep until here
        }
        // Nobody else looks at these in this launch.
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            a.state[hit ? HITS : MISSES] += 1;
            a.state[COSINE] = __float_as_int(cosine);
        }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) a.state[LIST_LENGTH] = list.length;
    let_next_kernel_start();
    attend(a, shared, scratch, list, factors, loaded);
    append(a, stored - 1);
}
