// The decode step of one layer under TokenSelect, from the row after the projection to the attended row, as one persistent
// launch. This file: what the step is, its arguments, and where its data lie. `scores.cuh` makes scores and votes,
// `select.cuh` the selection, `attend.cuh` attends, `entry.cuh` is the kernel.
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
// -D: HEAD_DIM, GROUP, KV_HEADS (H = GROUP KV_HEADS), ELEM_F16; KEYS8 scores from the 8-bit copy; NO_RING goes without the
// copy engine; ATTEND_ROWS (64 where shared memory is 99 KB).
//
// StepArgs, 160 bytes:
//   qkv [(H + 2 Hkv) D], un-rotated, biases and norms applied; keys, values [capacity][Hkv][D]; keys8 and scales8 (see
//   quantize_keys.cu; null without); stored: device int, N with the current token; cos_table, sin_table [max_list][D / 2];
//   cache_query f32 [H D], selected int [top_k], state int [16]: the layer's selection cache, state zero = empty; out [H D];
//   scratch: token_select_sizes[1] + [2] * blocks bytes, zeroed once, one per grid size, shared by layers that run one after
//   another; scores: with n = capacity + 16 * blocks, 4 n bytes and after them 4 H max(min(n, stored_scores + 16 * blocks),
//   n / 16) bytes, shared likewise.
//   sliding: 0, or keys at packed positions from |list| - sliding on only. max_list: rows of the rope tables; a hit whose
//   list would be longer (gap repair lets it grow) counts as a miss, so a list has at most
//   max(n_init + top_k + n_local + 1, max_list) entries. threshold > 1: never a hit. stored_scores: candidates up to which all
//   scores are kept; of more, where token_select_sizes[4] is not 0, only maxima are. Must be at least 16 top_k.
//   flags: 1 modulo head map (h % Hkv, scores only); 2 gap repair: the tail begins where it did at the last miss;
//   4 window n_local + 1 instead of n_local.
// State: valid, first local token of the last miss, hits, misses, last cosine (f32 bits), length of the last list.
// n_local >= 1. Steps of one session must not overlap.
//
// Work: a miss reads all keys once: 2 D Hkv bytes per token (Hkv 4, D 128: 28.6 us at 128K, 229 us at 1M on an H200), with
// KEYS8 D + 4 bytes per head (14.8 and 118 us). A hit moves 5.5 MB, 1.3 us; it is a chain of about ten waits for the L2.
//
// A miss, one line for what blocks do between two waits for each other:
//     query and cosine; scores of the block's own run of tokens, their maxima and sums of exponentials; barrier
//     fold of the statistics; votes of all tokens (few), or bounds of the votes of 16 tokens (many); histogram; barrier
//     where votes are not exact yet: those that may decide, from the 16-bit keys; histogram and barrier, unless they are few
//     keys of the class at the threshold, or those few, published; the attention's queries
//     the threshold among all keys; own part of the selection, published
//     attention by (KV head, part of the list), whose partial results the blocks of a head fold once all have arrived
// What is published needs no barrier: every number is there once it is not negative (`publish`, `await_number`).
// Few means `stored_scores`: their scores stay in shared memory and L2. Scores of more would go to memory and back (112 bytes
// a token for 28 heads, half of what the keys are), so only the maximum over 16 tokens is kept of each head. The sum of a
// tile's 28 shares bounds the votes in it, the largest share is reached in it; the top_k-th highest of the latter is below the
// threshold, so tiles whose bound is lower cannot matter, and the keys of the others, few per cent for the spread of scores
// that real queries have, are read again. If scores hardly differ all keys are read twice.
//
// A hit knows its list from the start: rows travel while the cosine is computed, and it meets no barrier of the grid.

#ifndef WARPS
#define WARPS 16
#endif
#define THREADS (32 * WARPS)
// Rows of keys and values that a block holds at once in the attention, a multiple of 32.
#ifndef ATTEND_ROWS
#define ATTEND_ROWS (HEAD_DIM > 128 ? 64 : 128)
#endif
// Batches of key loads in flight per warp, without the copy engine.
#ifndef STAGES
#define STAGES 2
#endif
// Most candidates of the threshold class that are ordered in shared memory; more are split by further histograms.
#ifndef LIST_CAP
#define LIST_CAP 2048
#endif

constexpr int D = HEAD_DIM;
constexpr int HALF = D / 2;
constexpr int HEADS = GROUP * KV_HEADS;
#ifdef KEYS8
constexpr int STATISTICS = HEADS + 1;        // of a block: one of every head, and how far scores are off
#else
constexpr int STATISTICS = HEADS;
#endif
constexpr int BINS = 1024;
constexpr int BINS_PER_THREAD = BINS / THREADS;
constexpr int TILE = 16;                     // tokens of one matrix product
constexpr int COLUMNS = (GROUP + 7) / 8;     // tiles of 8 heads
constexpr int FOLD = 5;                      // statistics per lane in flight: 160 blocks
constexpr float LOWEST = -1e30f;             // a maximum before the first score; finite, so that differences are
constexpr int MODULO_HEADS = 1, GAP_REPAIR = 2, LOCAL_OUTSIDE_CHUNK = 4;

constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int align16(int a) { return (a + 15) / 16 * 16; }
constexpr int align128(int a) { return (a + 127) / 128 * 128; }

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
    int n_init, n_local, top_k, capacity, sliding, max_list, flags, shared_bytes, stored_scores;
};

// Fields of StepArgs::state.
constexpr int VALID = 0, LOCAL_START = 1, HITS = 2, MISSES = 3, COSINE = 4, LIST_LENGTH = 5;

// ---- instructions --------------------------------------------------------------------------------------------------

// Past L1, for what other blocks wrote in this launch.
DEVICE int load_l2(const int* p) {
    int v;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
DEVICE int4 load_l2(const int4* p) {
    int4 v;
    asm volatile("ld.relaxed.gpu.global.v4.s32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
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
DEVICE u64 load_l2(const u64* p) {
    u64 v;
    asm volatile("ld.global.cg.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}
// Numbers for other blocks and from them. Each is its own flag, there once it is not negative, so that neither side waits for
// more than the number itself.
DEVICE void publish(int* p, int v) { asm volatile("st.relaxed.gpu.global.s32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
DEVICE int await_number(const int* p) {
    int v;
    do {
        asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    } while (v < 0);
    return v;
}
DEVICE int4 await_numbers(const int4* p) {
    int4 v;
    do {
        asm volatile("ld.relaxed.gpu.global.v4.s32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    } while ((v.x | v.y | v.z | v.w) < 0);
    return v;
}
// The line of 128 bytes at `p` into L2.
DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

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
// The same without waiting for the answer.
DEVICE void arrive_unanswered(u64* counter) {
    asm volatile("red.release.gpu.global.add.u64 [%0], 1;" ::"l"(counter) : "memory");
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

// ---- scratch -----------------------------------------------------------------------------------------------------------

constexpr int RECORD = 16, INLINE_KEYS = RECORD - 2;
static_assert(LIST_CAP % 4 == 0 && LIST_CAP >= INLINE_KEYS, "lists are cleared by 16 bytes, and begin with what records hold");
constexpr int LEVELS = 5;   // histograms: one for votes that are not exact, four that narrow 31 bits down

// Scratch: [barrier, arrivals per KV head, histograms, counts per block, lists, statistics, partial results].
struct Scratch {
    u64* barrier;
    u64* arrivals;      // [KV_HEADS], each only grows
    u32* histograms;    // [LEVELS][BINS]
    // Published:
    int* counts;        // [blocks][RECORD]: how many above the threshold class, how many inside, keys of the latter plus one
    int* list;          // [blocks][LIST_CAP]: the keys that a record has no room for
    float2* statistics; // [STATISTICS][blocks]: maximum, sum of exponentials; error of the scores, 0
    float2* partial_ml; // [KV_HEADS][splits][GROUP]
    float* partial_o;   // [KV_HEADS][splits][GROUP][D]
};

DEVICE int splits_of(int blocks) { return max(1, min(blocks / KV_HEADS, 256)); }

DEVICE Scratch scratch_of(u8* p, int blocks) {
    Scratch s;
    s.barrier = (u64*)p;
    s.arrivals = (u64*)(p + 128);
    p += 128 + align128(8 * KV_HEADS);
    s.histograms = (u32*)p;
    p += LEVELS * BINS * 4;   // a multiple of 128, as records want
    s.counts = (int*)p;
    p += (i64)blocks * RECORD * 4;
    s.list = (int*)p;         // a multiple of 16, as what clears it wants
    p += (i64)blocks * LIST_CAP * 4;
    s.statistics = (float2*)p;
    p += (i64)blocks * STATISTICS * 8;
    int pairs = KV_HEADS * splits_of(blocks);
    s.partial_ml = (float2*)p;
    p += (i64)pairs * GROUP * 8;
    s.partial_o = (float*)p;
    return s;
}

// All blocks wait for each other. The counter only grows by whole rounds, so that a block that has not arrived yet knows the
// end of the round from any value, and need not wait for what its own arrival answers.
struct GridBarrier {
    u64* counter;
    u64 target;   // thread 0: end of the round
    int blocks;
};
// `arrived`: the counter, as thread 0 has read it in this launch.
DEVICE GridBarrier grid_barrier_of(const Scratch& scratch, int blocks, u64 arrived) {
    return {scratch.barrier, (arrived / blocks + 1) * blocks, blocks};
}
// In two halves, between which a block does what needs nothing of the others.
DEVICE void announce(const GridBarrier& b) {
    __syncthreads();
    if (threadIdx.x == 0) arrive_unanswered(b.counter);
}
DEVICE void await_all(GridBarrier& b) {
    if (threadIdx.x == 0) {
        wait_until(b.counter, b.target);
        b.target += b.blocks;
    }
    __syncthreads();
}
DEVICE void wait_for_all(GridBarrier& b) {
    announce(b);
    await_all(b);
}

// ---- shared memory -----------------------------------------------------------------------------------------------------

#ifdef KEYS8
#define FAST_SCORES (HEAD_DIM % 64 == 0 && HEAD_DIM <= 128)
constexpr int CHUNKS = D / 64;
constexpr int KEY_BYTES = 1;
#else
#define FAST_SCORES (HEAD_DIM % 32 == 0 && HEAD_DIM <= 128)
constexpr int CHUNKS = D / 32; // 16-byte accesses of a lane per key
constexpr int KEY_BYTES = 2;
#endif
constexpr int HEAD_LANES = smaller(KV_HEADS, WARPS);        // KV heads that are read at the same time
constexpr int TILE_LANES = WARPS / HEAD_LANES;              // tiles that are read at the same time
constexpr int TILE_WORDS = HEADS * TILE;                    // scores of one tile, [score row][token]

// Where there is a copy engine, keys come through a ring in shared memory: every tile lane has its own slots, each one
// tile of all KV heads, which is one run of memory. Loads into registers would need L1 for what is in flight, which the
// shared memory leaves little of. Half as many bytes of 8-bit keys are as many tokens, and leave room for more scores.
constexpr int SLOT = TILE * KV_HEADS * D * KEY_BYTES;
constexpr int SLOTS = larger(2, smaller(8, 65536 * KEY_BYTES / (TILE_LANES * SLOT)));
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

// Votes are made exact 16 tokens of one KV head at a time, twice buffered, by as many warps as there is room for; so many
// tokens' shares of all KV heads are kept until they are added up, in the place of a histogram.
constexpr int EXACT_STEP = TILE * D * 2;
constexpr int EXACT_UNITS = larger(1, 2048 / (TILE * KV_HEADS));
constexpr int EXACT_LEAST = FAST_SCORES ? 8 * EXACT_STEP : 0;

// The selection query: elements, rows apart so that eight heads are read without conflicts; then for KEYS8 high and low parts
// [HEADS][D] and scales.
constexpr int QUERY_ROW = D + 8;
constexpr int AT_PARTS = align16(HEADS * QUERY_ROW * 2);
#ifdef KEYS8
constexpr int QUERY_BYTES = AT_PARTS + HEADS * D * 2 + HEADS * 4;
#else
constexpr int QUERY_BYTES = AT_PARTS;
#endif
constexpr int AT_REDUCE = 0;                                         // u32 [64]
constexpr int AT_FOLD = 256;                                         // float2 [STATISTICS]
constexpr int AT_HISTOGRAM = align16(AT_FOLD + STATISTICS * 8);           // u32 [BINS]; before that statistics of the warps
constexpr int AT_LIST = align16(AT_HISTOGRAM + larger(larger(BINS, EXACT_UNITS * TILE * KV_HEADS) * 4, larger(WARPS, KV_HEADS) * GROUP * 8));
constexpr int AT_SUMS = align16(AT_LIST + (LIST_CAP + 4) * 4);        // int [THREADS]
constexpr int AT_QUERY = align16(AT_SUMS + THREADS * 4);
constexpr int AT_BARRIERS = align16(AT_QUERY + QUERY_BYTES);           // u64 [2][TILE_LANES][SLOTS]: full, empty
constexpr int AT_REGION = align128(AT_BARRIERS + 16 * TILE_LANES * SLOTS);   // votes and scores, or the attention's

// The attention's part of the region.
#define FAST_ATTEND (HEAD_DIM % 32 == 0 && GROUP <= 16)
constexpr int PV_PIECES = D / 8;                                     // of 16 bytes in a row, and of 8 dimensions
constexpr int SCORE_ROW = ATTEND_ROWS + 4;                            // floats of one head
constexpr int WEIGHT_ROW = ATTEND_ROWS + 8;                           // elements of one head
constexpr int LOW_STEPS = larger(1, HALF / 16);                       // steps of 16 dimensions in half a row
constexpr int PARTS = FAST_ATTEND ? smaller(larger(1, WARPS * 16 / ATTEND_ROWS), LOW_STEPS) : 1;   // of the sum over dimensions
constexpr int PADDED_HEADS = 8 * COLUMNS;
constexpr int IN_K = 0;                                              // elem [ATTEND_ROWS][D]
constexpr int IN_V = IN_K + align16(larger(ATTEND_ROWS * D * 2, 1024 + THREADS * 4));
constexpr int ROTATED_ROW = D + 16;                                  // elements of one head: four rows are read by 8 bytes without conflicts
constexpr int IN_Q = IN_V + align16(ATTEND_ROWS * D * 2);            // elem [2][PADDED_HEADS][ROTATED_ROW]: high, low; or f32 [GROUP][D]
constexpr int IN_SCORES = IN_Q + align16(larger(2 * PADDED_HEADS * ROTATED_ROW * 2, GROUP * D * 4));   // f32 [PARTS][PADDED_HEADS][SCORE_ROW]
constexpr int IN_WEIGHTS = IN_SCORES + PARTS * PADDED_HEADS * SCORE_ROW * 4;   // elem [2][PADDED_HEADS][WEIGHT_ROW]; or f32 [GROUP][D], sums
constexpr int IN_ML = IN_WEIGHTS + align16(larger(2 * PADDED_HEADS * WEIGHT_ROW * 2, FAST_ATTEND ? 0 : GROUP * D * 4));   // f32 [3][GROUP]: maximum, weight, factor
constexpr int ATTEND_BYTES = align16(IN_ML + 3 * GROUP * 4);

// For the host: least dynamic shared memory; scratch = [1] + [2] * blocks bytes; whether more shared memory serves (1), or
// takes L1 from the loads in flight (0); whether more candidates than `stored_scores` are told apart by maxima.
constexpr int SHARED_LEAST = AT_REGION + larger(larger(ATTEND_BYTES, USED_RING), EXACT_LEAST);
constexpr int PER_PAIR = GROUP * 8 + GROUP * D * 4;
extern "C" __device__ int token_select_sizes[5] = {
    SHARED_LEAST,
    128 + align128(8 * KV_HEADS) + LEVELS * BINS * 4 + KV_HEADS * PER_PAIR,
    RECORD * 4 + STATISTICS * 8 + PER_PAIR + LIST_CAP * 4,
    USED_RING > 0,
    FAST_SCORES,
};

// The tokens of one block, their scores and votes.
struct Slice {
    int lo, count, tiles;   // first token, tokens, tiles
    bool bounds;            // of a tile, only the maxima of the heads are kept
    float* shared_scores;   // of the first `shared_tiles` tiles
    float* scores;          // of the others (addressed as if all were there)
    int shared_tiles;
    float* maxima;          // [HEADS][stride], if `bounds`
    int stride;
    int* votes;             // [count]
    u8* exact;              // buffers for exact votes, while there is no ring
    int exact_warps;        // warps that have one
};

DEVICE Slice slice_of(const StepArgs& a, u8* region, int first, int end) {
    Slice s;
    int blocks = gridDim.x, region_bytes = a.shared_bytes - AT_REGION;
    int per = ((end - first + blocks - 1) / blocks + TILE - 1) / TILE * TILE;
    s.lo = first + per * blockIdx.x;
    s.count = max(0, min(per, end - s.lo));
    s.tiles = (s.count + TILE - 1) / TILE;
    s.bounds = FAST_SCORES && end - first > a.stored_scores;
    // Votes come when the ring is done with. Many votes are made exact where only maxima are kept, which leave more room.
    int maxima_bytes = (HEADS * (per / TILE) * 4 + 127) / 128 * 128;
    int room = s.bounds ? max(USED_RING, (region_bytes - maxima_bytes) / 128 * 128) : USED_RING > 0 ? USED_RING : region_bytes;
    int vote_bytes = (per * 4 + 127) / 128 * 128;
    if (vote_bytes + EXACT_LEAST > room) vote_bytes = 0;
    int taken = max(vote_bytes + EXACT_LEAST, USED_RING);
    if (s.bounds) taken = max(taken, min(vote_bytes + WARPS * 2 * EXACT_STEP, room));
    s.votes = vote_bytes ? (int*)region : (int*)a.scores + per * blockIdx.x;
    s.exact = region + vote_bytes;
    s.exact_warps = max(1, min(WARPS, (taken - vote_bytes) / (2 * EXACT_STEP)));
    float* global_scores = a.scores + (i64)a.capacity + TILE * blocks;
    s.shared_scores = (float*)(region + taken);
    s.shared_tiles = max(0, region_bytes - taken) / (TILE_WORDS * 4);
    s.scores = global_scores + (i64)(per / TILE) * blockIdx.x * TILE_WORDS;
    s.stride = per / TILE;
    s.maxima = maxima_bytes <= region_bytes - taken ? s.shared_scores : global_scores + (i64)s.stride * HEADS * blockIdx.x;
    return s;
}

DEVICE float* tile_at(const Slice& s, int tile) {
    return tile < s.shared_tiles ? s.shared_scores + tile * TILE_WORDS : s.scores + (i64)tile * TILE_WORDS;
}
