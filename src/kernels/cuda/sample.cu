// The next token from logits, on the device: greedy, or drawn after temperature, top-k, top-p and min-p.
//
// Weights are w = e^((logit - largest) / temperature) as whole numbers of 2^-36, made by the very operations of kernels/choice.rs: the
// token is the one that the host would choose of the same logits and the same 64 random bits. Kept are, in this order: the top_k
// largest logits and what ties with the last of them; of these the fewest that reach top_p of their weight, the likelier first,
// among equals the lower id; of these the ones with w >= min_p. One of them is drawn with a probability in proportion to w. The kept
// set is that of a full sort: thresholds are found digit by digit over the 32 bits of the logit, with exact counts and weights, so
// that neither the order of atomics nor the grid changes a result.
//
// Interface. Arguments in order (all blocks of THREADS = 256, no dynamic shared memory):
//   block_best  grid G <= 256: (logits f32 [V], V u32, best u64 [G], bad u32, seen u32 [ceil(V / 32)] or null, penalty f32)
//               best[block] = key of the block's arg max (a larger key is a larger logit, then a lower id; NaN is below all);
//               *bad = 1 where a logit is NaN or plus infinity (never cleared). With `seen`, a bitmap of the tokens in the
//               context, their logits are first divided (negative: multiplied) by the penalty, in place.
//               norm_logits writes the same keys.
//   mark_seen   grid ceil(count / 256): (ids int [count], count u32, V u32, seen)
//   greedy      grid 1: (best, count u32, id int, bad): *id = the arg max; *bad = 1 where no logit is finite.
//   sample      grid G <= min(multiprocessors, 256), V / G <= 8192, all blocks resident at once: (logits, V, best, best_count u32,
//               SampleParams by value, scratch, id, bad). 64 to 128 blocks are good. scale 0 takes the arg max; *bad = 1 where no
//               logit is finite.
// SampleScratch (sample_scratch_bytes, zero before its first use, one for each grid size: its barrier counts blocks) is in device
// memory. 0 switches top_k and min_p off, 1 top_p.
//
// Floor and times (H200, V = 152064, graph): the logits are 0.6 MB in L2; the launch and its barriers are everything.
// block_best 1.9 us, greedy 1.2 us, sample 7.3 us plain, 25 us with top-k or 30 us with top-p, 44 us with both (128 blocks; 24,
// 27 and 39 with 64), with weights of one f32 exponential each time they were needed. Keeping a block's logits in shared memory took
// 10 to 15% off; now their weights, in f64, stay there as well. Not measured since.

#define THREADS 256
// Bins of one radix pass over the 32 bits of a logit: 11, 11 and 10 bits.
#define BINS 2048
#define MAX_BLOCKS 256
// Logits of one block's share that shared memory takes, with their weights.
#define KEPT 1536
// Units of the largest weight. What is lighter than half a unit cannot be drawn.
#define WEIGHT_BITS 36

struct SampleParams {
    double scale;       // log2(e) / temperature
    u64 bits;           // the draw
    float top_p;
    float min_p;
    u32 top_k;
    u32 unused;
};

struct SampleScratch {
    u64 barrier;
    u64 unused;
    u64 masses[5][BINS];
    u32 counts[5][BINS];
    u64 block_mass[MAX_BLOCKS];
    u32 block_equal[MAX_BLOCKS];
};

extern "C" __device__ int sample_scratch_bytes[1] = {(int)sizeof(SampleScratch)};

// ---- logits as ordered integers ------------------------------------------------------------------------------------

// Rises with the logit; NaN below everything. Minus zero counts as zero.
DEVICE u32 ordered(float x) {
    u32 bits = __float_as_uint(x + 0.0f);
    if (x != x) return 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float from_ordered(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The larger logit wins, then the lower id.
DEVICE u64 best_key(float logit, u32 id) { return (u64)ordered(logit) << 32 | (u32)~id; }

DEVICE u64 larger(u64 a, u64 b) { return a > b ? a : b; }

// The largest key of the block, in every thread.
DEVICE u64 block_largest(u64 key) {
    __shared__ u64 keys[THREADS / 32];
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) key = larger(key, __shfl_xor_sync(FULL_MASK, key, d));
    if (threadIdx.x % 32 == 0) keys[threadIdx.x / 32] = key;
    __syncthreads();
    for (u32 w = 0; w < THREADS / 32; ++w) key = larger(key, keys[w]);
    return key;
}

DEVICE u64 largest_of(const u64* best, u32 count) {
    u64 key = 0;
    for (u32 i = threadIdx.x; i < count; i += THREADS) key = larger(key, best[i]);
    return block_largest(key);
}

DEVICE void choose_best(u64 key, int* id, u32* bad) {
    *id = (int)~(u32)key;
    if (!(from_ordered((u32)(key >> 32)) > NEG_INF)) *bad = 1;
}

// ---- greedy --------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS) block_best(float* logits, u32 vocabulary, u64* best, u32* bad,
    const u32* seen, float penalty) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    u32 first = (u32)((u64)blockIdx.x * vocabulary / gridDim.x), end = (u32)((u64)(blockIdx.x + 1) * vocabulary / gridDim.x);
    u64 key = 0;
    bool wrong = false;
    for (u32 i = first + threadIdx.x; i < end; i += THREADS) {
        float logit = logits[i];
        if (seen && (seen[i / 32] >> (i % 32) & 1)) {
            logit = logit < 0.0f ? logit * penalty : logit / penalty;
            logits[i] = logit;
        }
        wrong |= !(logit < __int_as_float(0x7f800000));
        key = larger(key, best_key(logit, i));
    }
    if (wrong) *bad = 1;
    key = block_largest(key);
    if (threadIdx.x == 0) best[blockIdx.x] = key;
}

extern "C" __global__ void __launch_bounds__(THREADS) mark_seen(const int* ids, u32 count, u32 vocabulary, u32* seen) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i < count && (u32)ids[i] < vocabulary) atomicOr(seen + ids[i] / 32, 1u << (ids[i] % 32));
}

extern "C" __global__ void __launch_bounds__(THREADS) greedy(const u64* best, u32 count, int* id, u32* bad) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    u64 key = largest_of(best, count);
    if (threadIdx.x == 0) choose_best(key, id, bad);
}

// ---- sampling ------------------------------------------------------------------------------------------------------

// `weight` of kernels/choice.rs. The intrinsics keep the compiler from contracting a product and a sum.
DEVICE u64 weight_units(float logit, float largest, double scale) {
    const double x = __dmul_rn(__dadd_rn((double)logit, -(double)largest), scale);
    if (!(x > -37.5)) return 0;
    const double whole = rint(x), part = __dadd_rn(x, -whole);
    double sum = 7.054911620801123e-9;
    sum = __dadd_rn(__dmul_rn(sum, part), 1.01780860092397e-7);
    sum = __dadd_rn(__dmul_rn(sum, part), 1.321548679014431e-6);
    sum = __dadd_rn(__dmul_rn(sum, part), 1.525273380405984e-5);
    sum = __dadd_rn(__dmul_rn(sum, part), 0.0001540353039338161);
    sum = __dadd_rn(__dmul_rn(sum, part), 0.0013333558146428443);
    sum = __dadd_rn(__dmul_rn(sum, part), 0.009618129107628477);
    sum = __dadd_rn(__dmul_rn(sum, part), 0.05550410866482158);
    sum = __dadd_rn(__dmul_rn(sum, part), 0.24022650695910072);
    sum = __dadd_rn(__dmul_rn(sum, part), 0.6931471805599453);
    sum = __dadd_rn(__dmul_rn(sum, part), 1.0);
    return __double2ull_rn(__dmul_rn(sum, __hiloint2double((1023 + WEIGHT_BITS + (int)whole) << 20, 0)));
}

DEVICE u64 load_fresh(const u64* p) {
    u64 v;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}
DEVICE u32 load_fresh(const u32* p) {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

// Sum of `x` over the threads before this one; `total` over all.
template <class T> DEVICE T exclusive_sum(T x, T& total) {
    __shared__ T sums[THREADS / 32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    T sum = x;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        T below = __shfl_up_sync(FULL_MASK, sum, d);
        if (lane >= d) sum += below;
    }
    __syncthreads();
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    T before = 0;
    total = 0;
    for (u32 w = 0; w < THREADS / 32; ++w) {
        if (w < warp) before += sums[w];
        total += sums[w];
    }
    return before + sum - x;
}

struct Bins {
    u32 count[BINS];
    u32 low[BINS];
    u32 high[BINS];
};

// What lies above a threshold that is found digit by digit.
struct Threshold {
    u32 key;
    u64 above_mass;
    u32 above_count;
};

DEVICE u32 digit_of(u32 key, int pass) {
    return pass == 0 ? key >> 21 : pass == 1 ? key >> 10 & 2047 : key & 1023;
}
// Whether the digits before `pass` are those of `prefix`.
DEVICE bool under(u32 key, u32 prefix, int pass) {
    return pass == 0 || (pass == 1 ? (key ^ prefix) >> 21 == 0 : (key ^ prefix) >> 10 == 0);
}

struct Draw {
    // This block's logits, in shared memory where they fit, and then their weights; else null.
    const float* logits;
    const u64* weights;
    u32 share;
    float largest;
    double scale;
    SampleScratch* scratch;
    Bins* bins;

    DEVICE u64 weight_of(float logit) const { return weight_units(logit, largest, scale); }
    DEVICE u64 weight(u32 i) const { return weights ? weights[i] : weight_of(logits[i]); }

    // Adds this block's logits under `prefix` to histogram `region` of the grid, and waits for all blocks.
    DEVICE void count(int region, int pass, u32 prefix) {
        for (u32 b = threadIdx.x; b < BINS; b += THREADS) bins->count[b] = bins->low[b] = bins->high[b] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < share; i += THREADS) {
            u32 key = ordered(logits[i]);
            u64 w = weight(i);
            if (w == 0 || !under(key, prefix, pass)) continue;
            u32 b = digit_of(key, pass);
            atomicAdd(&bins->count[b], 1u);
            atomicAdd(&bins->low[b], (u32)w & 0x3ffffu);
            atomicAdd(&bins->high[b], (u32)(w >> 18));
        }
        __syncthreads();
        for (u32 b = threadIdx.x; b < BINS; b += THREADS) {
            if (bins->count[b] == 0) continue;
            atomicAdd(&scratch->counts[region][b], bins->count[b]);
            atomicAdd(&scratch->masses[region][b], ((u64)bins->high[b] << 18) + bins->low[b]);
        }
        __threadfence();
        grid_barrier(&scratch->barrier, gridDim.x);
    }

    // The next digit of the threshold, from the highest bin down: where the count, or the mass, reaches `target`.
    // Returns false where it is never reached.
    template <bool BY_MASS> DEVICE bool descend(Threshold& t, int region, int pass, u64 target) {
        __shared__ u32 found, found_count;
        __shared__ u64 found_mass;
        const u32 EACH = BINS / THREADS;
        u32 top = BINS - 1 - threadIdx.x * EACH;
        u32 counts[EACH], count = 0, counts_total;
        u64 masses[EACH], mass = 0, masses_total;
#pragma unroll
        for (u32 j = 0; j < EACH; ++j) {
            count += counts[j] = load_fresh(&scratch->counts[region][top - j]);
            mass += masses[j] = load_fresh(&scratch->masses[region][top - j]);
        }
        if (threadIdx.x == 0) found = BINS;
        u32 above_count = t.above_count + exclusive_sum(count, counts_total);
        u64 above_mass = t.above_mass + exclusive_sum(mass, masses_total);
#pragma unroll
        for (u32 j = 0; j < EACH; ++j) {
            u64 above = BY_MASS ? above_mass : above_count, here = BY_MASS ? masses[j] : counts[j];
            if (above < target && target <= above + here) {
                found = top - j;
                found_count = above_count;
                found_mass = above_mass;
            }
            above_count += counts[j];
            above_mass += masses[j];
        }
        __syncthreads();
        bool reached = found < BINS;
        if (reached) {
            t.key |= pass == 0 ? found << 21 : pass == 1 ? found << 10 : found;
            t.above_count = found_count;
            t.above_mass = found_mass;
        }
        __syncthreads();
        return reached;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) sample(const float* logits, u32 vocabulary, const u64* best,
    u32 best_count, SampleParams p, SampleScratch* scratch, int* id, u32* bad) {
    __shared__ Bins bins;
    __shared__ float kept_logits[KEPT];
    __shared__ u64 kept_weights[KEPT];
    let_next_kernel_start();
    u32 first = (u32)((u64)blockIdx.x * vocabulary / gridDim.x), end = (u32)((u64)(blockIdx.x + 1) * vocabulary / gridDim.x);
    u32 share = end - first, each = (share + THREADS - 1) / THREADS;
    wait_for_previous_kernel();
    // All loads at once: one latency.
    if (share <= KEPT)
        for (u32 i = threadIdx.x; i < share; i += THREADS)
            asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(kept_logits + i)), "l"(logits + first + i) : "memory");
    cp_async_commit();
    u64 best_of_all = largest_of(best, best_count);
    const float largest = from_ordered((u32)(best_of_all >> 32));
    cp_async_wait<0>();
    if (!(p.scale > 0.0) || !(largest > NEG_INF)) {
        if (blockIdx.x == 0 && threadIdx.x == 0) choose_best(best_of_all, id, bad);
        return;
    }
    const bool kept_here = share <= KEPT;
    const float* mine = kept_here ? kept_logits : logits + first;
    Draw draw = {mine, kept_here ? kept_weights : nullptr, share, largest, p.scale, scratch, &bins};
    if (kept_here) {
        // A thread reads what it has fetched itself.
        for (u32 i = threadIdx.x; i < share; i += THREADS) kept_weights[i] = draw.weight_of(mine[i]);
    }
    __syncthreads();

    // Kept: every key above `t.key`, and the first `take` (by id) of those equal to it.
    Threshold t = {0, 0, 0};
    u32 take = 0xffffffffu;
    bool by_count = p.top_k > 0 && p.top_k < vocabulary, by_mass = p.top_p < 1.0f;
    u64 total = 0;
    if (by_count || by_mass) draw.count(0, 0, 0);
    if (by_count) {
        // Ties with the last of the k stay.
        if (draw.descend<false>(t, 0, 0, p.top_k)) {
            for (int pass = 1; pass < 3; ++pass) {
                draw.count(pass, pass, t.key);
                draw.descend<false>(t, pass, pass, p.top_k);
            }
            total = t.above_mass + load_fresh(&scratch->masses[2][digit_of(t.key, 2)]);
        }
    }
    if (by_mass) {
        if (total == 0) {
            u64 mass = 0;
            for (u32 b = threadIdx.x; b < BINS; b += THREADS) mass += load_fresh(&scratch->masses[0][b]);
            exclusive_sum(mass, total);
        }
        u64 target = (u64)ceil((double)p.top_p * (double)total);
        target = target < 1 ? 1 : target > total ? total : target;
        Threshold by = {0, 0, 0};
        if (draw.descend<true>(by, 0, 0, target)) {
            for (int pass = 1; pass < 3; ++pass) {
                draw.count(2 + pass, pass, by.key);
                draw.descend<true>(by, 2 + pass, pass, target);
            }
            u64 one = draw.weight_of(from_ordered(by.key));
            t = by;
            take = (u32)((target - by.above_mass + one - 1) / one);
        }
    }

    // How much this block keeps, by the ids of its share.
    u64 lightest = (u64)ceil((double)p.min_p * (double)(1ull << WEIGHT_BITS));
    u64 equal_weight = draw.weight_of(from_ordered(t.key));
    if (equal_weight < lightest) equal_weight = 0;
    u64 mass = 0, block_mass;
    u32 equal = 0, block_equal;
    for (u32 i = threadIdx.x; i < share; i += THREADS) {
        u32 key = ordered(mine[i]);
        u64 w = key > t.key ? draw.weight(i) : 0;
        mass += w >= lightest ? w : 0;
        equal += key == t.key;
    }
    exclusive_sum(mass, block_mass);
    exclusive_sum(equal, block_equal);
    if (threadIdx.x == 0) {
        scratch->block_mass[blockIdx.x] = block_mass;
        scratch->block_equal[blockIdx.x] = block_equal;
        __threadfence();
    }
    grid_barrier(&scratch->barrier, gridDim.x);

    // Nobody reads the histograms any more.
    if (by_count || by_mass) {
        for (u32 b = blockIdx.x * THREADS + threadIdx.x; b < 5 * BINS; b += gridDim.x * THREADS) {
            scratch->masses[b / BINS][b % BINS] = 0;
            scratch->counts[b / BINS][b % BINS] = 0;
        }
    }

    // Ids in order: the one in whose piece of the kept mass a uniform number falls.
    __shared__ u64 my_before, my_kept;
    __shared__ u32 my_take;
    bool present = threadIdx.x < gridDim.x;
    u64 kept = present ? load_fresh(&scratch->block_mass[threadIdx.x]) : 0;
    u32 equals = present ? load_fresh(&scratch->block_equal[threadIdx.x]) : 0, equals_total;
    u32 equals_before = exclusive_sum(equals, equals_total);
    u32 taken = equals_before < take ? min(equals, take - equals_before) : 0;
    kept += taken * equal_weight;
    u64 before = exclusive_sum(kept, total);
    if (threadIdx.x == blockIdx.x) {
        my_before = before;
        my_kept = kept;
        my_take = taken;
    }
    __syncthreads();
    // The largest is always kept, so there is something to draw from.
    u64 at = __umul64hi(p.bits, total);
    if (at < my_before || at >= my_before + my_kept) return;
    at -= my_before;
    u32 from = min(threadIdx.x * each, share), to = min(from + each, share);
    u32 own_equal = 0;
    for (u32 i = from; i < to; ++i) own_equal += ordered(mine[i]) == t.key;
    u32 rank = exclusive_sum(own_equal, block_equal);
    u64 own_mass = 0;
    for (u32 i = from, r = rank; i < to; ++i) {
        u32 key = ordered(mine[i]);
        u64 w = key > t.key ? draw.weight(i) : key == t.key && r++ < my_take ? equal_weight : 0;
        own_mass += w >= lightest ? w : 0;
    }
    u64 start = exclusive_sum(own_mass, block_mass);
    if (at < start || at >= start + own_mass) return;
    at -= start;
    for (u32 i = from, r = rank; i < to; ++i) {
        u32 key = ordered(mine[i]);
        u64 w = key > t.key ? draw.weight(i) : key == t.key && r++ < my_take ? equal_weight : 0;
        w = w >= lightest ? w : 0;
        if (at < w) {
            *id = (int)(first + i);
            return;
        }
        at -= w;
    }
}
