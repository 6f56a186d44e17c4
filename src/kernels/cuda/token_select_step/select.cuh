// ---- classes of votes --------------------------------------------------------------------------------------------------

// First histograms have bins of equal ratio; votes below the lowest edge share one, and so do those above the highest.
struct Scale {
    int lowest, shift;   // key of the lowest edge; a bin is 2^(shift - 23) of an octave
};
constexpr int HIGHEST = 133 << 23;                                              // 2^6
constexpr Scale ALL_VOTES = {HIGHEST - (BINS << 19), 19}, USUAL_VOTES = {HIGHEST - (BINS << 18), 18};   // from 2^-122; from 2^-58
constexpr int IN = 0x7f800000, OUT = -1;                  // keys of votes that are known to be in, or out
constexpr int RANKED = 256;                               // keys that are put in order by comparison

// The keys from `low` to `high`, `count` of them; `need` of these are in, and all above.
struct Class {
    int low, high, need, count;
};

DEVICE void clear_histogram(u32* histogram) {
    for (int i = threadIdx.x; i < BINS; i += THREADS) histogram[i] = 0;
}

// First histogram: over all keys.
DEVICE void count_first(u32* histogram, const Scale& scale, int key) {
    atomicAdd(histogram + (max(0, min(key - scale.lowest, (BINS << scale.shift) - 1)) >> scale.shift), 1u);
}

// Later ones: over a class, in equal parts.
DEVICE int shift_of(const Class& c) { return max(0, 21 - __clz(c.high - c.low)); }
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
// The same in a histogram in shared memory, or in one that all blocks have added to.
DEVICE Bin find_own_bin(const u32* histogram, int need, u32* reduce) {
    u32 mine[BINS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < BINS_PER_THREAD; i++) mine[i] = histogram[BINS - 1 - ((int)threadIdx.x * BINS_PER_THREAD + i)];
    return find_bin(mine, need, reduce);
}
DEVICE Bin find_common_bin(const u32* histogram, u32* common, GridBarrier& all, int need, u32* reduce) {
    for (int i = threadIdx.x; i < BINS; i += THREADS)
        if (histogram[i]) atomicAdd(common + i, histogram[i]);
    wait_for_all(all);
    u32 mine[BINS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < BINS_PER_THREAD; i++) mine[i] = (u32)load_l2((const int*)common + BINS - 1 - ((int)threadIdx.x * BINS_PER_THREAD + i));
    return find_bin(mine, need, reduce);
}
DEVICE Class class_of_first(const Scale& scale, const Bin& b, int need) {
    int low = scale.lowest + (b.bin << scale.shift);
    return {b.bin == 0 ? 0 : low, b.bin == BINS - 1 ? 0x7fffffff : low + ((1 << scale.shift) - 1), need - b.above, b.count};
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
    for (int w = 0; w < WARPS; w++) {
        int2 n = make_int2((int)reduce[w], (int)reduce[32 + w]);
        if (w < warp) before.x += n.x, before.y += n.y;
        all.x += n.x, all.y += n.y;
    }
    __syncthreads();
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

// Votes from rounded keys: those above `c` by more than they may be off are in, those below it are out, others are computed.
DEVICE void votes_near(const StepArgs& a, u8* shared, const Slice& s, const Class& c, float margin) {
    const int* list = (const int*)(shared + AT_LIST);
    int low = __float_as_int(__int_as_float(c.low) * (1.0f - margin));
    int high = __float_as_int(fminf(__int_as_float(min(c.high, IN - 1)), 1e30f) * (1.0f + margin));
    for_wanted(shared, s.count, [&](int i) {
        int key = s.votes[i];
        bool near = key >= low && key <= high;
        if (!near) s.votes[i] = key > high ? IN : OUT;
        return near;
    }, [&](int count) {
        exact_votes(a, shared, s, (count + TILE - 1) / TILE, [&](int unit, int row) { return s.lo + list[min(unit * TILE + row, count - 1)]; },
            [&](int unit, int row, float vote) {
                if (unit * TILE + row < count) s.votes[list[unit * TILE + row]] = key_of(vote);
            });
    });
}

// How far the logarithm of a share is off where keys are rounded to 8 bits, in the mean, for the longest query of a head and the largest
// scale of this block's keys: scale / sqrt(12) times the query's norm.
DEVICE float rounding_error(const StepArgs& a, u8* shared, float largest_scale) {
#ifdef KEYS8
    float* reduce = (float*)(shared + AT_REDUCE);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    largest_scale = warp_max(largest_scale);
    __syncthreads();
    if (lane == 0) reduce[warp] = largest_scale;
    __syncthreads();
    float longest = 0.0f;
    for (int w = 0; w < WARPS; w++) largest_scale = fmaxf(largest_scale, reduce[w]), longest = fmaxf(longest, reduce[3 * WARPS + w]);
    __syncthreads();
    return fminf(0.29f * sqrtf(longest) * fabsf(a.score_scale) * largest_scale, 0.25f);
#else
    return 0.0f;
#endif
}
#endif

// ---- selection ---------------------------------------------------------------------------------------------------------

// Keys of the slice, and the class of keys at which the top_k-th highest of all blocks is.
DEVICE Class vote(const StepArgs& a, u8* shared, const Slice& s, const Scratch& scratch, GridBarrier& all, float error) {
    u32* reduce = (u32*)(shared + AT_REDUCE);
    u32* histogram = (u32*)(shared + AT_HISTOGRAM);
    const float2* fold = (const float2*)(shared + AT_FOLD);
    u32* common = scratch.histograms;
    Scale scale = USUAL_VOTES;
    auto count = [&](int key) { count_first(histogram, scale, key); };

    clear_histogram(histogram);
    fold_statistics(shared, scratch);
#if FAST_SCORES
    if (s.bounds || KEY_BYTES == 1) {
        scale = ALL_VOTES;
        if (s.bounds) bounds_of_maxima(s, fold, fast_exp(2.0f * error), count);
        else votes_of_scores(s, fold, count);
        __syncthreads();
        Class rough = class_of_first(scale, find_common_bin(histogram, common, all, a.top_k, reduce), a.top_k);
        // Bounds and votes add up in other orders: more than they differ by is left below the least.
        if (s.bounds) votes_of_tiles(a, shared, s, __int_as_float(rough.low) * 0.9999f);
        else votes_near(a, shared, s, rough, 1.25f * error);
        common += BINS;
        // The threshold is not far above: finer bins, from an octave below.
        scale = {max(0, rough.low - (1 << 23)), 17};
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
    Class c = class_of_first(scale, find_common_bin(histogram, common, all, a.top_k, reduce), a.top_k);
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

// The cut through a class whose keys are in the shared list in order of position.
DEVICE Cut cut_of_list(u8* shared, Class c) {
    u32* reduce = (u32*)(shared + AT_REDUCE);
    u32* histogram = (u32*)(shared + AT_HISTOGRAM);
    const int* list = (const int*)(shared + AT_LIST);
    int keys = c.count;
    while (c.count > RANKED && c.count != c.need && c.low < c.high) {
        clear_histogram(histogram);
        __syncthreads();
        for (int i = threadIdx.x; i < keys; i += THREADS) count_inside(histogram, c, list[i]);
        __syncthreads();
        c = class_inside(c, find_own_bin(histogram, c.need, reduce));
    }
    if (c.count == c.need) return {c.low - 1, 0};
    if (c.low == c.high) return {c.low, c.need};
    // Few: every thread ranks one by comparison with all, equal ones by position.
    auto rank = [&](auto member) {
        if ((int)threadIdx.x < c.count) {
            int2 own = member(threadIdx.x);
            int above = 0, same = 0;
#pragma unroll 8
            for (int i = 0; i < c.count; i++) {
                int2 other = member(i);
                above += other.x > own.x;
                same += other.x == own.x && other.y <= own.y;
            }
            if (above + same == c.need) reduce[41] = (u32)own.x, reduce[42] = (u32)same;
        }
        __syncthreads();
        return Cut{(int)reduce[41], (int)reduce[42]};
    };
    if (c.count == keys) return rank([&](int i) { return make_int2(list[i], i); });
    int2* members = (int2*)histogram;
    if (threadIdx.x == 0) reduce[40] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < keys; i += THREADS)
        if (list[i] >= c.low && list[i] <= c.high) members[atomicAdd(reduce + 40, 1u)] = make_int2(list[i], i);
    __syncthreads();
    return rank([&](int i) { return members[i]; });
}

// The top_k highest keys to `selected`, ascending in position; between two barriers of the grid, of which it meets the first.
DEVICE void select(const StepArgs& a, u8* shared, const Slice& s, const Scratch& scratch, GridBarrier& grid, const Class& c) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, blocks = gridDim.x;
    u32* reduce = (u32*)(shared + AT_REDUCE);
    int* list = (int*)(shared + AT_LIST);
    int* inside_before = (int*)(shared + AT_PREFIX);    // [blocks + 1]
    bool whole = c.count == c.need;                      // all of the class are in
    bool ordered = !whole && c.low < c.high;             // the list decides; else equal votes, and position does
    int2 before, all;
    count_runs(s, reduce, [&](int key) { return key > c.high; }, [&](int key) { return key >= c.low && key <= c.high; }, before, all);
    int* record = scratch.counts + blockIdx.x * RECORD;
    if (threadIdx.x == 0) *(int2*)record = all;
    if (ordered && all.y > 0) {
        Run run = run_of(s);
        int rank = before.y;
        for (int i = run.first; i < run.last; i += 32) {
            bool valid = i + lane < run.last;
            int key = valid ? s.votes[i + lane] : OUT;
            bool inside = valid && key >= c.low && key <= c.high;
            u32 those = __ballot_sync(FULL_MASK, inside);
            int at = rank + __popc(those & ((1u << lane) - 1));
            if (inside && at < LIST_CAP) (at < INLINE_KEYS ? record + 2 : scratch.list + (i64)blockIdx.x * LIST_CAP)[at] = key;
            rank += __popc(those);
        }
    }
    wait_for_all(grid);

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
    if ((int)threadIdx.x < blocks) inside_before[threadIdx.x] = prior.y;
    if ((int)threadIdx.x == blocks - 1) inside_before[blocks] = prior.y + n.y;
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
    int above_before = (int)reduce[48], own_before = inside_before[blockIdx.x];
    Cut cut = {c.low - 1, 0};
    int offset, take = 0;   // place of the block's first; how many equal to the limit it takes
    if (whole) {
        offset = above_before + own_before;
    } else if (!ordered) {
        cut.limit = c.low;
        take = max(0, c.need - own_before);
        offset = above_before + min(c.need, own_before);
    } else {
        for (int b = warp; b < blocks; b += WARPS) {
            int n = inside_before[b + 1] - inside_before[b];
            for (int i = INLINE_KEYS + lane; i < n; i += 32) list[inside_before[b] + i] = load_l2(scratch.list + (i64)b * LIST_CAP + i);
        }
        __syncthreads();
        cut = cut_of_list(shared, c);
        int above = 0, equal = 0;
        for (int i = 0; i < own_before; i += THREADS) {
            int at = i + threadIdx.x;
            int key = at < own_before ? list[at] : OUT;
            above += __syncthreads_count(at < own_before && key > cut.limit);
            equal += __syncthreads_count(at < own_before && key == cut.limit);
        }
        take = max(0, cut.wanted - equal);
        offset = above_before + above + min(cut.wanted, equal);
    }

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
                a.selected[offset + rank + min(same, take)] = token;
                // Whoever attends to it reads it after the next barrier.
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
