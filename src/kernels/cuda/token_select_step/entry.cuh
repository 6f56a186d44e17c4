// ---- entry point -------------------------------------------------------------------------------------------------------

DEVICE int window_of(const StepArgs& a) { return a.n_local + (a.flags & LOCAL_OUTSIDE_CHUNK ? 1 : 0); }
DEVICE bool is_dense(const StepArgs& a, int stored) { return stored <= a.n_init + a.top_k + a.n_local; }

DEVICE void clear_histograms(const Scratch& scratch) {
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < LEVELS * BINS; i += gridDim.x * THREADS) scratch.histograms[i] = 0;
}

// Before a barrier after which blocks publish.
DEVICE void unpublish(const StepArgs& a, const Scratch& scratch) {
    constexpr int NONE = -1;
    int* record = scratch.counts + blockIdx.x * RECORD;
    int* list = scratch.list + (i64)blockIdx.x * LIST_CAP;
    if (threadIdx.x < RECORD) record[threadIdx.x] = NONE;
    for (int i = threadIdx.x * 4; i < LIST_CAP; i += THREADS * 4) *(int4*)(list + i) = make_int4(NONE, NONE, NONE, NONE);
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < a.top_k; i += gridDim.x * THREADS) a.selected[i] = NONE;
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

// The rows that every list has, into L2 once the keys have passed through it.
DEVICE void prefetch_fixed_rows(const StepArgs& a, int local_start, int stored) {
    constexpr int LINES = (KV_HEADS * D * 2 + 127) / 128;
    int rows = a.n_init + stored - 1 - local_start;
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < rows * LINES; i += gridDim.x * THREADS) {
        int row = i / LINES, token = row < a.n_init ? row : local_start + row - a.n_init;
        i64 at = (i64)token * KV_HEADS * D + i % LINES * 64;
        prefetch_l2(a.keys + at);
        prefetch_l2(a.values + at);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) token_select_step(StepArgs a) {
    extern __shared__ __align__(128) u8 shared[];
    wait_for_previous_kernel();
    // Asked for ahead of the keys, behind which they would wait.
    Unrotated query = start_selection_query(a);
    int blocks = gridDim.x;
    Scratch scratch = scratch_of(a.scratch, blocks);
    u64 arrived = threadIdx.x == 0 ? load_l2((const u64*)scratch.barrier) : 0;
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
    bool started = dense || compare;
    Factors factors;
    Slice slice = slice_of(a, shared + AT_REGION, a.n_init, local_start);
    if (started) {
        start_rows(a, shared, list, false);
        start_queries(a, shared, list);
        start_factors(a, list, factors);
    } else {
        start_scores(a, shared, slice);
    }
    if (!dense) {
        float cosine = selection_query(a, shared, compare, query);
        bool hit = compare && cosine >= a.threshold;
        if (!hit) {
            if (started) {
                cp_async_wait<0>();
                __syncthreads();
                start_scores(a, shared, slice);
            }
            GridBarrier all = grid_barrier_of(scratch, blocks, arrived);
            clear_histograms(scratch);
            unpublish(a, scratch);
            score(a, shared, slice, scratch);
            announce(all);
            prefetch_fixed_rows(a, local_start, stored);
            await_all(all);
            remember(a, local_start);
            Class edge = vote(a, shared, slice, scratch, all);
            list = {a.n_init + a.top_k + stored - local_start, a.n_init, a.top_k, local_start};
            // Votes are still where rows come, and may be where queries come.
            bool room = slice.exact <= shared + AT_REGION + IN_Q;
            select(a, shared, slice, scratch, edge, [&] { if (room) start_queries(a, shared, list); });
            __syncthreads();
            factors = Factors();   // loaded anew: none to keep until here
            start_factors(a, list, factors);
            start_rows(a, shared, list, true);
            if (!room) start_queries(a, shared, list);
        }
        // Nobody else looks at these in this launch.
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            a.state[hit ? HITS : MISSES] += 1;
            a.state[COSINE] = __float_as_int(cosine);
        }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) a.state[LIST_LENGTH] = list.length;
    let_next_kernel_start();
    attend(a, shared, scratch, list, factors);
    append(a, stored - 1);
}
