// What prefill_select.cu and the two files of its products (prefill_score*.cu) share; put before the source of each.

#define HEADS (GROUP * KV_HEADS)
#define ROW_ELEMS (KV_HEADS * HEAD_DIM)
#define UNSET -1e30f                                // reference of a sum that is empty

struct Select {
    int chunks;         // of this launch
    int n_init, top_k, n_local;
    int flags;          // 1: the local window lies outside the chunk; 2: head h is scored against KV head h % KV_HEADS
    int list_stride;    // ints per chunk in `list`
    int vote_stride;    // floats per chunk in `votes`: the capacity, rounded up to a multiple of 2048
    float scale_log2;   // scale of the scores (1 or D^-1/2; above 0) times log2(e)
};

struct Span { int begin, end; };

// Candidates of a chunk: none when it attends to every stored token.
DEVICE Span candidates(const Select& s, int stored, int rows) {
    int window = (s.flags & 1) ? s.n_local + rows : max(s.n_local, rows);
    Span c = {s.n_init, s.n_init};
    if (stored > s.n_init + s.top_k + s.n_local) c.end = max(s.n_init, stored - window);
    return c;
}

// The same value with its sum in [1, 2): of such pairs the greater reference belongs to the greater value. Whole references, as all
// are, stay exact. Without this a sum that grew far above its reference is lost beside one that fell far below.
DEVICE float2 normalized(float2 v) {
    if (!(v.y > 0.0f)) return v;
    const int exponent = (int)(__float_as_uint(v.y) >> 23) - 127;
    return make_float2(v.x + (float)exponent, __uint_as_float(__float_as_uint(v.y) - ((u32)exponent << 23)));
}

// Adds (reference, sum) b to a: the value is sum * 2^reference.
DEVICE void add_sums(float2& a, float2 b) {
    float r = fmaxf(a.x, b.x);
    a.y = a.y * fast_exp2(a.x - r) + b.y * fast_exp2(b.x - r);
    a.x = r;
}

// Ends of the candidates of all chunks of the launch into shared memory ends[16]; what they have in common is returned.
struct Bounds { int last_stored, least_end, greatest_end; };
DEVICE Bounds read_spans(int* ends, const Select& s, const int* stored, const int* rows) {
    const int lane = threadIdx.x & 31;
    const int n = lane < s.chunks ? stored[lane] : 0, end = lane < s.chunks ? candidates(s, n, rows[lane]).end : 0;
    if (threadIdx.x < 16) ends[threadIdx.x] = end;
    Bounds b = {n - 1, lane < s.chunks ? end : 0x7fffffff, end};
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        b.last_stored = max(b.last_stored, __shfl_xor_sync(FULL_MASK, b.last_stored, d));
        b.least_end = min(b.least_end, __shfl_xor_sync(FULL_MASK, b.least_end, d));
        b.greatest_end = max(b.greatest_end, __shfl_xor_sync(FULL_MASK, b.greatest_end, d));
    }
    if (b.greatest_end <= s.n_init) b.greatest_end = 0;                     // nothing to score
    __syncthreads();
    return b;
}

// Entry points of a file of products, made of its sums_body<MODE> and votes_body<MODE>, and what their launcher must know: threads
// of a block of score_sums, blocks of it on a multiprocessor, threads of score_votes, then the dynamic shared bytes of
// score_sums_1, _8, _16 and score_votes_8, _16.
#define SCORE_SUMS(MODE, THREADS, BLOCKS)                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) score_sums_##MODE(float2* partial, float* scores,           \
        const elem* queries, const elem* keys, const int* stored, const int* rows, Select s) {                                \
        sums_body<MODE>(partial, scores, queries, keys, stored, rows, s);                                                     \
    }
#define SCORE_VOTES(MODE, THREADS)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) score_votes_##MODE(float* votes, const elem* queries,            \
        const elem* keys, const float2* weights, const int* stored, const int* rows, Select s) {                              \
        votes_body<MODE>(votes, queries, keys, weights, stored, rows, s);                                                     \
    }
#define SCORE_ENTRY_POINTS(SUM_THREADS, SUM_BLOCKS, VOTE_THREADS)                                                             \
    SCORE_SUMS(1, SUM_THREADS, SUM_BLOCKS)                                                                                    \
    SCORE_SUMS(8, SUM_THREADS, SUM_BLOCKS)                                                                                    \
    SCORE_SUMS(16, SUM_THREADS, SUM_BLOCKS)                                                                                   \
    SCORE_VOTES(8, VOTE_THREADS)                                                                                              \
    SCORE_VOTES(16, VOTE_THREADS)                                                                                             \
    extern "C" __device__ int score_launches[8] = {SUM_THREADS, SUM_BLOCKS, VOTE_THREADS, sums_shared<1>(),                   \
        sums_shared<8>(), sums_shared<16>(), votes_shared<8>(), votes_shared<16>()};
