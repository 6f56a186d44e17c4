// ---- classes of votes --------------------------------------------------------------------------------------------------

// First histograms have eight bins an octave, from 2^-122 to 2^6; votes below share the lowest one, those above the highest. Few
// bins, as each that a block has votes in is an addition that all blocks wait for.
constexpr int VOTE_SHIFT = 20, LOWEST_VOTE = (133 << 23) - (BINS << VOTE_SHIFT);
constexpr int IN = HIGHEST_KEY + 1, OUT = -1;             // keys of votes that are known to be in, or out

// The keys from `low` to `high`, `count` of them; `need` of these are in, and all above. With UNCOUNTED all keys but IN and OUT,
// whose number the list tells; then `low` and `high` are where the threshold is looked for first.
struct Class {
    int low, high, need, count;
};
constexpr int UNCOUNTED = -1;

DEVICE void clear_histogram(u32* histogram) {
    for (int i = threadIdx.x; i < BINS; i += THREADS) histogram[i] = 0;
}

// First histogram: over all keys.
DEVICE int first_bin(int key) { return max(0, min(key - LOWEST_VOTE, (BINS << VOTE_SHIFT) - 1)) >> VOTE_SHIFT; }
DEVICE void count_first(u32* histogram, int key) { atomicAdd(histogram + first_bin(key), 1u); }

// Later ones: over a class, in equal parts.
DEVICE int shift_of(const Class& c) { return max(0, 22 - __clz(c.high - c.low)); }
DEVICE void count_inside(u32* histogram, const Class& c, int key) {
    if (key >= c.low && key <= c.high) atomicAdd(histogram + ((key - c.low) >> shift_of(c)), 1u);
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
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        int n = (int)reduce[w];
        if (w < warp) before += n;
    }
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
// The same in a histogram that all blocks have added to, which takes the place of the block's own.
DEVICE Bin find_common_bin(u32* histogram, u32* common, GridBarrier& all, int need, u32* reduce) {
    for (int i = threadIdx.x; i < BINS; i += THREADS)
        if (histogram[i]) atomicAdd(common + i, histogram[i]);
    wait_for_all(all);
    u32 mine[BINS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < BINS_PER_THREAD; i++) mine[i] = (u32)load_l2((const int*)common + BINS - 1 - ((int)threadIdx.x * BINS_PER_THREAD + i));
#pragma unroll
    for (int i = 0; i < BINS_PER_THREAD; i++) histogram[BINS - 1 - ((int)threadIdx.x * BINS_PER_THREAD + i)] = mine[i];
    return find_bin(mine, need, reduce);
}
DEVICE Class class_of_first(const Bin& b, int need) {
    int low = LOWEST_VOTE + (b.bin << VOTE_SHIFT);
    return {b.bin == 0 ? 0 : low, b.bin == BINS - 1 ? 0x7fffffff : low + ((1 << VOTE_SHIFT) - 1), need - b.above, b.count};
}
DEVICE Class class_inside(const Class& c, const Bin& b) {
    int shift = shift_of(c), low = c.low + (b.bin << shift);
    return {low, (int)min((u32)c.high, (u32)low + ((1u << shift) - 1)), c.need - b.above, b.count};
}

// ---- runs of a block's tokens ------------------------------------------------------------------------------------------

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
        int key = valid ? s.votes[i + lane] : OUT;
        x += __popc(__ballot_sync(FULL_MASK, valid && above(key)));
        y += __popc(__ballot_sync(FULL_MASK, valid && inside(key)));
    }
    __syncthreads();
    if (lane == 0) reduce[warp] = (u32)x, reduce[32 + warp] = (u32)y;
    __syncthreads();
    before = all = make_int2(0, 0);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        int2 n = make_int2((int)reduce[w], (int)reduce[32 + w]);
        if (w < warp) before.x += n.x, before.y += n.y;
        all.x += n.x, all.y += n.y;
    }
    __syncthreads();
}

// ---- what blocks tell each other of a class ----------------------------------------------------------------------------

// Sums over the block, to all threads. Sums that follow each other take turns 0 and 1, so that one barrier serves.
template <int N>
DEVICE void sum_over_block(int (&x)[N], u8* shared, int turn) {
    static_assert(2 * N * WARPS <= THREADS, "no room");
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int* room = (int*)(shared + AT_SUMS) + turn * (THREADS / 2);
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = __reduce_add_sync(FULL_MASK, x[i]);
        if (lane == 0) room[i * WARPS + warp] = x[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = __reduce_add_sync(FULL_MASK, lane < WARPS ? room[i * WARPS + lane] : 0);
}

// Key number `i` of the block's, in any order: plus one, since zero stands for none.
DEVICE void publish_key(const Scratch& scratch, int i, int key) {
    int* record = scratch.counts + blockIdx.x * RECORD;
    if (i < LIST_CAP) publish((i < INLINE_KEYS ? record + 2 : scratch.list + (i64)blockIdx.x * LIST_CAP) + i, key + 1);
}
// How many are above the class and inside; `keys` of the latter are published one by one.
DEVICE void publish_counts(const Scratch& scratch, int above, int inside, int keys) {
    int* record = scratch.counts + blockIdx.x * RECORD;
    if (threadIdx.x < 2) publish(record + threadIdx.x, threadIdx.x ? inside : above);
    if (threadIdx.x < INLINE_KEYS && (int)threadIdx.x >= keys) publish(record + 2 + threadIdx.x, 0);
}

DEVICE void publish_class(u8* shared, const Slice& s, const Scratch& scratch, const Class& c, bool with_keys) {
    int* found = (int*)(shared + AT_REDUCE) + 40;
    if (threadIdx.x == 0) *found = 0;
    __syncthreads();
    int above[1] = {0};
    for (int i = threadIdx.x; i < s.count; i += THREADS) {
        int key = s.votes[i];
        above[0] += key > c.high;
        if (key < c.low || key > c.high) continue;
        int at = atomicAdd(found, 1);
        if (with_keys) publish_key(scratch, at, key);
    }
    sum_over_block(above, shared, 1);
    publish_counts(scratch, above[0], *found, with_keys ? *found : 0);
}

// ---- votes that are not exact yet --------------------------------------------------------------------------------------

#if FAST_SCORES
// Calls `use(count)` for those of `items` that `wanted`, by their numbers in the shared list, in turns of at most LIST_CAP.
template <class Wanted, class Use>
DEVICE void for_wanted(u8* shared, int items, Wanted wanted, Use use) {
    int* list = (int*)(shared + AT_LIST);
    int* found = (int*)(shared + AT_REDUCE) + 40;
    for (int first = 0; first < items; first += LIST_CAP) {
        if (threadIdx.x == 0) *found = 0;
        __syncthreads();
        for (int i = first + threadIdx.x; i < min(items, first + LIST_CAP); i += THREADS)
            if (wanted(i)) list[atomicAdd(found, 1)] = i;
        __syncthreads();
        use(*found);
        __syncthreads();
    }
}

// Votes of all tokens whose tile's bound reaches `least` or is not a number; the others are out.
DEVICE void votes_of_tiles(const StepArgs& a, u8* shared, const Slice& s, float least) {
    const int* list = (const int*)(shared + AT_LIST);
    for (int i = threadIdx.x; i < s.count; i += THREADS)
        if (s.maxima[i / TILE] < least) s.votes[i] = OUT;
    for_wanted(shared, s.tiles, [&](int tile) { return !(s.maxima[tile] < least); }, [&](int count) {
        exact_votes(a, shared, s, count, [&](int unit, int row) { return s.lo + min(list[unit] * TILE + row, s.count - 1); },
            [&](int unit, int row, float vote) {
                int at = list[unit] * TILE + row;
                if (at < s.count) s.votes[at] = key_of(vote);
            });
    });
}

// Keys of votes that may be in class `c` if they are off by the share `margin`.
struct Near {
    int low, high;
};
DEVICE Near near_class(const Class& c, float margin) {
    return {__float_as_int(__int_as_float(c.low) * (1.0f - margin)),
            __float_as_int(fminf(__int_as_float(min(c.high, IN - 1)), 1e30f) * (1.0f + margin))};
}

// Votes from rounded keys: those above `near` are in, those below it are out, others are computed. With `tell`, what the other
// blocks need to know is published at once.
DEVICE void votes_near(const StepArgs& a, u8* shared, const Slice& s, const Scratch& scratch, const Near& near, bool tell) {
    const int* list = (const int*)(shared + AT_LIST);
    int above[1] = {0}, before = 0;   // before: of earlier turns
    for_wanted(shared, s.count, [&](int i) {
        int key = s.votes[i];
        bool wanted = key >= near.low && key <= near.high;
        if (!wanted) above[0] += key > near.high, s.votes[i] = key > near.high ? IN : OUT;
        return wanted;
    }, [&](int count) {
        exact_votes(a, shared, s, (count + TILE - 1) / TILE, [&](int unit, int row) { return s.lo + list[min(unit * TILE + row, count - 1)]; },
            [&](int unit, int row, float vote) {
                int at = unit * TILE + row, key = key_of(vote);
                if (at >= count) return;
                s.votes[list[at]] = key;
                if (tell) publish_key(scratch, before + at, key);
            });
        before += count;
    });
    if (!tell) return;
    sum_over_block(above, shared, 1);
    publish_counts(scratch, above[0], before, before);
}

// Votes are looked at again that are off by so many mean errors.
constexpr float MARGIN = 1.25f;
#endif

// ---- selection ---------------------------------------------------------------------------------------------------------

// Keys of the slice, and the class of keys at which the top_k-th highest of all blocks is.
DEVICE Class vote(const StepArgs& a, u8* shared, const Slice& s, const Scratch& scratch, GridBarrier& all) {
    u32* reduce = (u32*)(shared + AT_REDUCE);
    u32* histogram = (u32*)(shared + AT_HISTOGRAM);
    const float2* fold = (const float2*)(shared + AT_FOLD);
    u32* common = scratch.histograms;
    auto count = [&](int key) { count_first(histogram, key); };

    clear_histogram(histogram);
    fold_statistics(shared, scratch);
#if FAST_SCORES
    if (s.bounds || KEY_BYTES == 1) {
        float error = KEY_BYTES == 1 ? fold[STATISTICS - 1].x : 0.0f;
        if (s.bounds) bounds_of_maxima(s, fold, fast_exp(2.0f * error), count);
        else votes_of_scores(s, fold, count);
        __syncthreads();
        Class rough = class_of_first(find_common_bin(histogram, common, all, a.top_k, reduce), a.top_k);
        // Bounds and votes add up in other orders: more than they differ by is left below the least.
        if (s.bounds) {
            votes_of_tiles(a, shared, s, __int_as_float(rough.low) * 0.9999f);
        } else {
            Near near = near_class(rough, MARGIN * error);
            int most = 0;
            for (int bin = first_bin(near.low); bin <= first_bin(near.high); bin++) most += (int)histogram[bin];
            // Few enough to do without a second histogram, which all blocks know.
            bool few = most <= LIST_CAP;
            __syncthreads();   // a block without tokens meets no other barrier before the histogram is cleared
            votes_near(a, shared, s, scratch, near, few);
            if (few) return {near.low, near.high, UNCOUNTED, UNCOUNTED};
        }
        common += BINS;
        clear_histogram(histogram);
        __syncthreads();
        for (int i = threadIdx.x; i < s.count; i += THREADS)
            if (s.votes[i] != OUT) count(s.votes[i]);
    } else {
        votes_of_scores(s, fold, count);
    }
#else
    votes_of_scores(s, fold, count);
#endif
    __syncthreads();
    Class c = class_of_first(find_common_bin(histogram, common, all, a.top_k, reduce), a.top_k);
    while (c.count > LIST_CAP && c.count != c.need && c.low < c.high) {
        common += BINS;
        clear_histogram(histogram);
        __syncthreads();
        for (int i = threadIdx.x; i < s.count; i += THREADS) count_inside(histogram, c, s.votes[i]);
        __syncthreads();
        c = class_inside(c, find_common_bin(histogram, common, all, c.need, reduce));
    }
    return c;
}

// Where a class is cut: keys above `limit` are in, and of those equal to it the first `wanted` in order of position.
struct Cut {
    int limit, wanted;
};

// The cut through a class, from `count` keys of it in the shared list in any order. Every round counts the keys from 32 places in
// the range on, a lane each, and leaves the part of the range between two of them. The first places are those from `c.low` to
// `c.high`; with UNCOUNTED the cut may be elsewhere.
DEVICE Cut cut_of_list(u8* shared, const Class& c, bool uncounted, int count) {
    static_assert(2 * WARPS * 32 <= larger(BINS, EXACT_UNITS * TILE * KV_HEADS), "no room for counts");
    int* list = (int*)(shared + AT_LIST);
    int* counts = (int*)(shared + AT_HISTOGRAM);   // [2][WARPS][32]
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // As many as needed are `low` or higher; `above`, too few, are higher than `high`.
    int low = uncounted ? 0 : c.low, high = uncounted ? IN - 1 : c.high, above = 0;
    int first = max(low + 1, c.low), last = max(first, min(high, c.high));
    // The list is read four keys at a time.
    if (threadIdx.x < 4) list[count + threadIdx.x] = OUT;
    __syncthreads();
    for (int turn = 0; low < high; turn ^= WARPS * 32) {
        u32 step = (u32)(last - first) / 31 + 1;
        int place = (int)min((u32)first + (u32)lane * step, (u32)high), n = 0;
#pragma unroll 4
        for (int i = warp * 4; i < count; i += WARPS * 4) {
            int4 keys = *(const int4*)(list + i);
            n += (keys.x >= place) + (keys.y >= place) + (keys.z >= place) + (keys.w >= place);
        }
        counts[turn + warp * 32 + lane] = n;
        __syncthreads();
        n = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) n += counts[turn + w * 32 + lane];
        u32 exact = __ballot_sync(FULL_MASK, n == c.need);
        if (exact) return {__shfl_sync(FULL_MASK, place, __ffs((int)exact) - 1) - 1, 0};
        int enough = __popc(__ballot_sync(FULL_MASK, n > c.need));   // places, the lowest ones
        int next_low = __shfl_sync(FULL_MASK, place, max(0, enough - 1)), next_high = __shfl_sync(FULL_MASK, place, min(31, enough)) - 1,
            next_above = __shfl_sync(FULL_MASK, n, min(31, enough));
        if (enough > 0) low = next_low;
        if (enough < 32) high = next_high, above = next_above;
        first = low + 1, last = high;
    }
    return {low, c.need - above};
}

// The block's part of the top_k highest keys to `selected`, ascending in position: published one by one. Does `meanwhile` where
// it would wait for others.
template <class Meanwhile>
DEVICE void select(const StepArgs& a, u8* shared, const Slice& s, const Scratch& scratch, Class c, Meanwhile meanwhile) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, blocks = gridDim.x, own = blockIdx.x;
    u32* reduce = (u32*)(shared + AT_REDUCE);
    bool uncounted = c.count == UNCOUNTED;
    bool with_keys = uncounted || (c.low < c.high && c.count != c.need);   // else all of the class are in, or position decides
    if (!uncounted) publish_class(shared, s, scratch, c, with_keys);
    int* list = (int*)(shared + AT_LIST);
    int* listed = (int*)reduce + 41;
    if (threadIdx.x == 0) *listed = 0;
    meanwhile();
    __syncthreads();

    // Records of all blocks, by pieces of which each thread keeps its own.
    constexpr int PIECES = RECORD / 4;
    int pieces = blocks * PIECES;
    int4 piece[PIECES];
#pragma unroll
    for (int n = 0; n < PIECES; n++) {
        int at = n * THREADS + threadIdx.x;
        piece[n] = make_int4(0, 0, 0, 0);
        if (at < pieces) piece[n] = load_l2((const int4*)scratch.counts + at);
    }
    int sums[5] = {0, 0, 0, 0, 0};   // above, inside; those of earlier blocks; blocks with further keys
#pragma unroll
    for (int n = 0; n < PIECES; n++) {
        int at = n * THREADS + threadIdx.x;
        int4& p = piece[n];
        if (at < pieces && (p.x | p.y | p.z | p.w) < 0) p = await_numbers((const int4*)scratch.counts + at);
        if (at < pieces && at % PIECES == 0) {
            bool earlier = at / PIECES < own;
            sums[0] += p.x, sums[1] += p.y, sums[2] += earlier ? p.x : 0, sums[3] += earlier ? p.y : 0, sums[4] += p.y > INLINE_KEYS;
            p.x = p.y = 0;
        }
        p.x--, p.y--, p.z--, p.w--;   // no key becomes OUT
        if (!with_keys || n * THREADS >= pieces) continue;
        // Keys to the list, in any order.
        u32 x = __ballot_sync(FULL_MASK, p.x >= 0), y = __ballot_sync(FULL_MASK, p.y >= 0), z = __ballot_sync(FULL_MASK, p.z >= 0),
            w = __ballot_sync(FULL_MASK, p.w >= 0), lower = (1u << lane) - 1;
        int place = 0;
        if (lane == 0) place = atomicAdd(listed, __popc(x) + __popc(y) + __popc(z) + __popc(w));
        place = __shfl_sync(FULL_MASK, place, 0);
        auto put = [&](int key, u32 those) {
            if (key >= 0) list[place + __popc(those & lower)] = key;
            place += __popc(those);
        };
        put(p.x, x), put(p.y, y), put(p.z, z), put(p.w, w);
    }
    sum_over_block(sums, shared, 0);
    int above_before = sums[2], inside_before = sums[3];
    if (uncounted) c.count = sums[1], c.need = a.top_k - sums[0];

    Cut cut = {uncounted ? OUT : c.low - 1, 0};
    int offset = above_before + inside_before, take = 0;   // place of the block's first; how many equal to the limit it takes
    if (c.count != c.need && !with_keys) {
        cut.limit = c.low;
        take = max(0, c.need - inside_before);
        offset = above_before + min(c.need, inside_before);
    } else if (c.count != c.need) {
        // Keys that a record has no room for.
        auto each_further = [&](int end, auto use) {
            for (int b = warp; b < end; b += WARPS) {
                int n = load_l2(scratch.counts + b * RECORD + 1);
                for (int i = INLINE_KEYS + lane; i < n; i += 32) use(await_number(scratch.list + (i64)b * LIST_CAP + i) - 1);
            }
        };
        if (sums[4] > 0) {
            each_further(blocks, [&](int key) { list[atomicAdd(listed, 1)] = key; });
            __syncthreads();
        }
        cut = cut_of_list(shared, c, uncounted, *listed);
        int before[2] = {0, 0};   // of earlier blocks: above the limit, equal to it
        auto compare = [&](int key) { before[0] += key > cut.limit, before[1] += key == cut.limit; };
#pragma unroll
        for (int n = 0; n < PIECES; n++)
            if ((n * THREADS + (int)threadIdx.x) / PIECES < own) compare(piece[n].x), compare(piece[n].y), compare(piece[n].z), compare(piece[n].w);
        if (sums[4] > 0) each_further(own, compare);
        sum_over_block(before, shared, 1);
        take = max(0, cut.wanted - before[1]);
        offset = above_before + before[0] + min(cut.wanted, before[1]);
    }

    int2 before, all;
    count_runs(s, reduce, [&](int key) { return key > cut.limit; }, [&](int key) { return key == cut.limit; }, before, all);
    if (all.x > 0 || (all.y > 0 && take > 0)) {
        Run run = run_of(s);
        for (int i = run.first; i < run.last; i += 32) {
            bool valid = i + lane < run.last;
            int key = valid ? s.votes[i + lane] : OUT;
            u32 above = __ballot_sync(FULL_MASK, valid && key > cut.limit), equal = __ballot_sync(FULL_MASK, valid && key == cut.limit);
            u32 lower = (1u << lane) - 1;
            int rank = before.x + __popc(above & lower), same = before.y + __popc(equal & lower);
            if (valid && (key > cut.limit || (key == cut.limit && same < take))) {
                int token = s.lo + i + lane;
                publish(a.selected + offset + rank + min(same, take), token);
                // Whoever attends to it reads it next.
#pragma unroll 4
                for (int line = 0; line < KV_HEADS * D * 2; line += 128) {
                    prefetch_l2((const u8*)(a.keys + (i64)token * KV_HEADS * D) + line);
                    prefetch_l2((const u8*)(a.values + (i64)token * KV_HEADS * D) + line);
                }
            }
            before.x += __popc(above);
            before.y += __popc(equal);
        }
    }
}
