// The decode-step kernel, emulated, against a reference in f64 written from what `layout.cuh` says that the step does.
//
// `kernel.cuh` is the kernel's text, put beside a build of this file by `tests/cuda_emulation.rs`. -D: the shape, as for
// the kernel. One argument: the order of threads. The last line says what ran; the exit code is 0 if all of it was right.
#include "emulator.h"
#include "kernel.cuh"

// What the values of a case look like.
enum class Values {
    spread,      // normal
    all_equal,   // every key the same: all votes tie
    five,        // five different keys
    zeros,       // two of three keys are 0
    not_numbers, // queries of NaN, as a broken model would have them
    clustered,   // the highest votes are of neighbours, and near each other
};

struct Case {
    const char* name;
    int stored;                     // tokens at the first step
    int n_init, n_local, top_k;
    int blocks, flags = 0;
    double spread = 10;             // standard deviation of the scores
    Values values = Values::spread;
    int more_shared = 0;            // bytes beyond the least shared memory
    int sliding = 0;
    float threshold = 2;            // of the selection cache; above 1: none
    bool bounds = false;            // few scores are kept, so votes are bounded first
};

static const Case CASES[] = {
    {.name = "dense", .stored = 50, .n_init = 8, .n_local = 20, .top_k = 40, .blocks = 5},
    {.name = "one more than dense", .stored = 69, .n_init = 8, .n_local = 20, .top_k = 40, .blocks = 6, .flags = LOCAL_OUTSIDE_CHUNK},
    {.name = "plain", .stored = 700, .n_init = 8, .n_local = 20, .top_k = 64, .blocks = 5},
    {.name = "scores in shared memory", .stored = 700, .n_init = 8, .n_local = 20, .top_k = 64, .blocks = 5, .spread = 30, .more_shared = 60000},
    {.name = "some scores in shared memory", .stored = 1500, .n_init = 8, .n_local = 20, .top_k = 64, .blocks = 4, .flags = MODULO_HEADS, .spread = 20, .more_shared = 3000},
    {.name = "cache", .stored = 400, .n_init = 8, .n_local = 20, .top_k = 64, .blocks = 5, .threshold = 0.9f},
    {.name = "cache with gap repair", .stored = 400, .n_init = 8, .n_local = 20, .top_k = 64, .blocks = 5, .flags = GAP_REPAIR | LOCAL_OUTSIDE_CHUNK, .threshold = 0.9f},
    {.name = "equal keys", .stored = 600, .n_init = 8, .n_local = 20, .top_k = 100, .blocks = 5, .values = Values::all_equal},
    {.name = "five keys", .stored = 900, .n_init = 8, .n_local = 20, .top_k = 300, .blocks = 5, .values = Values::five},
    {.name = "zero keys", .stored = 900, .n_init = 8, .n_local = 20, .top_k = 400, .blocks = 5, .values = Values::zeros},
    {.name = "NaN", .stored = 600, .n_init = 8, .n_local = 20, .top_k = 100, .blocks = 5, .values = Values::not_numbers},
    {.name = "sliding window", .stored = 700, .n_init = 8, .n_local = 20, .top_k = 64, .blocks = 5, .sliding = 50},
    {.name = "flat scores", .stored = 3000, .n_init = 16, .n_local = 40, .top_k = 700, .blocks = 7, .spread = 0.02},
    {.name = "long list", .stored = 900, .n_init = 128, .n_local = 100, .top_k = 500, .blocks = 2},
    {.name = "blocks without tokens", .stored = 480, .n_init = 8, .n_local = 20, .top_k = 64, .blocks = 22},
    {.name = "blocks without tokens, flat", .stored = 480, .n_init = 8, .n_local = 20, .top_k = 100, .blocks = 22, .spread = 0.02},
    {.name = "blocks without tokens, equal keys", .stored = 480, .n_init = 8, .n_local = 20, .top_k = 100, .blocks = 22, .values = Values::all_equal},
    {.name = "votes past all numbers", .stored = 480, .n_init = 8, .n_local = 20, .top_k = 20, .blocks = 5, .spread = 10000, .values = Values::all_equal},
    {.name = "selection in one block", .stored = 1500, .n_init = 8, .n_local = 20, .top_k = 300, .blocks = 5, .values = Values::clustered},
    {.name = "many blocks", .stored = 2200, .n_init = 8, .n_local = 20, .top_k = 100, .blocks = 131, .values = Values::clustered},
#if FAST_SCORES
    {.name = "bounds", .stored = 2000, .n_init = 8, .n_local = 20, .top_k = 64, .blocks = 5, .bounds = true},
    {.name = "bounds, few keys matter", .stored = 4000, .n_init = 8, .n_local = 20, .top_k = 64, .blocks = 5, .spread = 30, .more_shared = 60000, .bounds = true},
    {.name = "bounds, most keys matter", .stored = 2500, .n_init = 8, .n_local = 20, .top_k = 64, .blocks = 4, .flags = MODULO_HEADS, .spread = 1, .more_shared = 3000, .bounds = true},
    {.name = "bounds, flat scores", .stored = 2500, .n_init = 16, .n_local = 40, .top_k = 120, .blocks = 7, .spread = 0.02, .bounds = true},
    {.name = "bounds, cache", .stored = 1300, .n_init = 8, .n_local = 20, .top_k = 64, .blocks = 5, .threshold = 0.9f, .bounds = true},
    {.name = "bounds, equal keys", .stored = 1700, .n_init = 8, .n_local = 20, .top_k = 100, .blocks = 5, .values = Values::all_equal, .bounds = true},
    {.name = "bounds, five keys", .stored = 3400, .n_init = 8, .n_local = 20, .top_k = 200, .blocks = 5, .values = Values::five, .bounds = true},
    {.name = "bounds, zero keys", .stored = 3400, .n_init = 8, .n_local = 20, .top_k = 200, .blocks = 5, .values = Values::zeros, .bounds = true},
    {.name = "bounds, NaN", .stored = 1700, .n_init = 8, .n_local = 20, .top_k = 100, .blocks = 5, .values = Values::not_numbers, .bounds = true},
#endif
};

// How far the kernel may be from the reference, relative to the lowest vote that is taken. Scores sum products of elements
// in f32 on both ways, votes up to HEADS exponentials of them. With 8-bit keys on the fast path votes that may decide are
// made exact from the 16-bit keys, but which may is judged by 8-bit scores: there a share of the selection is compared.
#if defined(KEYS8) && FAST_SCORES
constexpr bool VOTES_COMPARE = false;
#else
constexpr bool VOTES_COMPARE = true;
#endif
constexpr double VOTE_TOLERANCE = 3e-5;
constexpr double MISSED_SHARE = 0.02;
// Outputs are rounded to elements: 2^-9 at most for bfloat16, so 1.7e-3 in the mean of squares.
constexpr double ATTENTION_TOLERANCE = 4e-3;

static int failures = 0, steps_checked = 0;
static const char* case_name;

__attribute__((format(printf, 2, 3))) static bool check(bool right, const char* format, ...) {
    if (right) return true;
    if (++failures <= 20) {
        va_list values;
        va_start(values, format);
        printf("WRONG in \"%s\": ", case_name);
        vprintf(format, values);
        printf("\n");
        va_end(values);
    }
    return false;
}

// An array that the kernel writes: ends in bytes that must stay as they are.
template <class T> struct Guarded {
    size_t count;
    std::vector<T> all;
    Guarded(size_t count, T fill) : count(count), all(count + 64, fill) { memset(&all[count], 0xa5, 64 * sizeof(T)); }
    T* data() { return all.data(); }
    T& operator[](size_t i) { return all[i]; }
    void check_end(const char* what) {
        const u8* end = (const u8*)&all[count];
        for (size_t i = 0; i < 64 * sizeof(T); i++)
            if (!check(end[i] == 0xa5, "a write past the end of %s", what)) return;
    }
};

constexpr i64 ROW = (i64)KV_HEADS * D;   // elements of one token

// The sequence of one case, and the selection cache as it should be.
struct Session {
    const Case& c;
    std::mt19937 random;
    std::normal_distribution<float> normal;
    int capacity, positions, stored;
    Guarded<elem> keys, values, out;
    Guarded<i8> keys8;
    Guarded<float> scales8, cache_query, scores;
    Guarded<int> selected, state;
    Guarded<u8> scratch;
    std::vector<elem> qkv;
    std::vector<float> cos_table, sin_table;
    StepArgs args{};
    // Of the last miss.
    std::vector<double> anchor;
    std::vector<int> chosen;
    int local_start = 0, hits = 0, misses = 0;

    Session(const Case& c, int seed);
    void fill_row();
    void fill_keys();
    void cluster_keys();
    void quantize(int token);
    void next_row();
    void step(int order);
    void check_appended(int token);
    bool check_cosine(const std::vector<double>& query);
    std::vector<double> votes(const std::vector<double>& query, int first, int end);
    void check_selection(const std::vector<double>& votes, int first, int end);
    void check_attention(const std::vector<int>& list);
    void rotate(const elem* row, int position, double* to) const;
    int window() const { return c.n_local + (c.flags & LOCAL_OUTSIDE_CHUNK ? 1 : 0); }
};

static size_t count_of_scores(const Case& c, int capacity, int stored_scores) {
    i64 n = capacity + TILE * c.blocks;
    return n + HEADS * std::max(std::min<i64>(n, (i64)stored_scores + TILE * c.blocks), n / TILE);
}

Session::Session(const Case& c, int seed)
    : c(c), random(seed), capacity(c.stored + 40), positions(c.stored + 64), stored(c.stored),
      keys(capacity * ROW, 0), values(capacity * ROW, 0), out(HEADS * D, 0), keys8(capacity * ROW, 0),
      scales8(capacity * KV_HEADS, 0), cache_query(HEADS * D, NAN),
      scores(count_of_scores(c, capacity, c.bounds ? TILE * c.top_k : capacity), NAN), selected(c.top_k, -7), state(16, 0),
      scratch(token_select_sizes[1] + (size_t)token_select_sizes[2] * c.blocks, 0), qkv((HEADS + 2 * KV_HEADS) * D),
      cos_table((i64)positions * HALF), sin_table((i64)positions * HALF) {
    fill_keys();
    fill_row();
    for (int p = 0; p < positions; p++)
        for (int d = 0; d < HALF; d++) {
            double angle = p * pow(1e4, -2.0 * d / D);
            cos_table[(i64)p * HALF + d] = cos(angle), sin_table[(i64)p * HALF + d] = sin(angle);
        }
    if (c.values == Values::clustered) cluster_keys();
    for (int t = 0; t < capacity; t++) quantize(t);
    args.qkv = qkv.data(), args.keys = keys.data(), args.values = values.data(), args.out = out.data();
#ifdef KEYS8
    args.keys8 = keys8.data(), args.scales8 = scales8.data();
#endif
    args.stored = &stored, args.cos_table = cos_table.data(), args.sin_table = sin_table.data();
    args.cache_query = cache_query.data(), args.selected = selected.data(), args.state = state.data();
    args.scratch = scratch.data(), args.scores = scores.data();
    args.score_scale = 1, args.softmax_scale = 1 / sqrt((double)D), args.threshold = c.threshold;
    args.n_init = c.n_init, args.n_local = c.n_local, args.top_k = c.top_k, args.capacity = capacity;
    args.sliding = c.sliding, args.max_list = positions, args.flags = c.flags;
    args.shared_bytes = token_select_sizes[0] + c.more_shared;
    args.stored_scores = c.bounds ? TILE * c.top_k : capacity;
}

void Session::fill_keys() {
    for (i64 i = 0; i < capacity * ROW; i++) keys[i] = from_float(normal(random)), values[i] = from_float(normal(random));
    int different = c.values == Values::all_equal ? 1 : c.values == Values::five ? 5 : capacity;
    for (i64 i = different * ROW; i < capacity * ROW; i++) keys[i] = keys[i % (different * ROW)];
    if (c.values == Values::zeros)
        for (i64 i = 0; i < capacity * ROW; i++)
            if (i / ROW % 3) keys[i] = 0;
}

// Keys of neighbours, half as many again as are selected, lie along the first query of their head.
void Session::cluster_keys() {
    std::vector<double> q(D);
    int first = c.n_init + (c.stored - c.n_init) / 3, some = c.top_k * 3 / 2 + 3;
    for (int kv = 0; kv < KV_HEADS; kv++) {
        rotate(&qkv[kv * GROUP * D], c.n_local, q.data());
        double norm = 0;
        for (int d = 0; d < D; d++) norm += q[d] * q[d];
        for (int t = first; t < std::min(capacity, first + some); t++)
            for (int d = 0; d < D; d++) keys[t * ROW + kv * D + d] = from_float(q[d] * sqrt(D / norm) + 0.003f * normal(random));
    }
}

void Session::fill_row() {
    for (auto& x : qkv) x = from_float(normal(random) * c.spread / sqrt((double)D));
    if (c.values == Values::not_numbers) std::fill_n(qkv.begin(), HEADS * D, from_float(NAN));
}

// The 8-bit copy of a token's key, as quantize_keys.cu makes it.
void Session::quantize(int token) {
    for (int kv = 0; kv < KV_HEADS; kv++) {
        elem* row = &keys[token * ROW + kv * D];
        float most = 0;
        for (int d = 0; d < D; d++) most = fmaxf(most, fabsf(to_float(row[d])));
        scales8[token * KV_HEADS + kv] = most / 127.0f;
        for (int d = 0; d < D; d++) keys8[token * ROW + kv * D + d] = most > 0 ? (i8)(int)rintf(to_float(row[d]) * (127.0f / most)) : 0;
    }
}

// Two of three steps with a selection cache have almost the same queries as the step before.
void Session::next_row() {
    std::vector<elem> before = qkv;
    fill_row();
    if (c.threshold > 1 || (stored - c.stored) % 3 == 0) return;
    std::copy_n(before.begin(), HEADS * D, qkv.begin());
    for (int i = 0; i < HEADS * D; i += 7) qkv[i] = from_float(to_float(qkv[i]) * 1.01f);
}

void Session::rotate(const elem* row, int position, double* to) const {
    for (int d = 0; d < HALF; d++) {
        double x = to_float(row[d]), y = to_float(row[d + HALF]);
        double cos = cos_table[(i64)position * HALF + d], sin = sin_table[(i64)position * HALF + d];
        to[d] = x * cos - y * sin, to[d + HALF] = y * cos + x * sin;
    }
}

void Session::check_appended(int token) {
    for (int i = 0; i < ROW; i++) {
        check(keys[token * ROW + i] == qkv[HEADS * D + i], "key %d is not appended", i);
        check(values[token * ROW + i] == qkv[HEADS * D + ROW + i], "value %d is not appended", i);
    }
#ifdef KEYS8
    std::vector<i8> bytes(&keys8[token * ROW], &keys8[token * ROW] + ROW);
    std::vector<float> scales(&scales8[token * KV_HEADS], &scales8[token * KV_HEADS] + KV_HEADS);
    quantize(token);
    for (int i = 0; i < ROW; i++) check(bytes[i] == keys8[token * ROW + i], "8-bit key %d is not appended", i);
    for (int i = 0; i < KV_HEADS; i++) check(scales[i] == scales8[token * KV_HEADS + i], "scale %d is not appended", i);
#endif
}

// Whether the query is near that of the last miss.
bool Session::check_cosine(const std::vector<double>& query) {
    if (c.threshold > 1 || anchor.empty()) return false;
    double dot = 0, own = 0, other = 0;
    for (int i = 0; i < HEADS * D; i++) dot += query[i] * anchor[i], own += query[i] * query[i], other += anchor[i] * anchor[i];
    double cosine = dot / sqrt(own * other), got = __int_as_float(state[COSINE]);
    check(fabs(cosine - got) < 1e-5, "cosine %g, not %g", got, cosine);
    return cosine >= c.threshold;
}

// Of tokens first .. end.
std::vector<double> Session::votes(const std::vector<double>& query, int first, int end) {
    std::vector<double> votes(end - first, 0), s(end - first);
    if (c.values == Values::not_numbers) return votes;
    for (int h = 0; h < HEADS; h++) {
        int kv = c.flags & MODULO_HEADS ? h % KV_HEADS : h / GROUP;
        float q[D];
        for (int d = 0; d < D; d++) q[d] = to_float(from_float((float)query[h * D + d]));
        double most = -1e300, sum = 0;
        for (int t = first; t < end; t++) {
            double x = 0;
#if defined(KEYS8) && !FAST_SCORES
            for (int d = 0; d < D; d++) x += (double)q[d] * keys8[t * ROW + kv * D + d] * scales8[t * KV_HEADS + kv];
#else
            for (int d = 0; d < D; d++) x += (double)q[d] * to_float(keys[t * ROW + kv * D + d]);
#endif
            s[t - first] = x, most = std::max(most, x);
        }
        for (auto& x : s) x = exp(x - most), sum += x;
        for (int t = 0; t < end - first; t++) votes[t] += s[t] / sum;
    }
    return votes;
}

void Session::check_selection(const std::vector<double>& votes, int first, int end) {
    std::vector<bool> taken(end - first, false);
    for (int i = 0, before = first - 1; i < c.top_k; before = selected[i++]) {
        if (!check(selected[i] > before && selected[i] < end, "selected[%d] = %d after %d", i, selected[i], before)) return;
        taken[selected[i] - first] = true;
    }
    std::vector<int> best(votes.size());
    for (size_t i = 0; i < best.size(); i++) best[i] = i;
    std::stable_sort(best.begin(), best.end(), [&](int x, int y) { return votes[x] > votes[y]; });
    double lowest = votes[best[c.top_k - 1]];
    int missed = 0;
    for (int i = 0; i < c.top_k; i++) missed += !taken[best[i]];
    check(VOTES_COMPARE || missed <= 1 + MISSED_SHARE * c.top_k, "%d of the %d best are not taken", missed, c.top_k);
    for (size_t i = 0; VOTES_COMPARE && i < votes.size(); i++) {
        check(!taken[i] || votes[i] >= lowest * (1 - VOTE_TOLERANCE), "%zu is taken, vote %g below %g", i + first, votes[i], lowest);
        check(taken[i] || votes[i] <= lowest * (1 + VOTE_TOLERANCE), "%zu is left, vote %g above %g", i + first, votes[i], lowest);
    }
    if (c.values == Values::all_equal || c.values == Values::not_numbers)
        for (int i = 0; i < c.top_k; i++) check(selected[i] == first + i, "of equal votes, selected[%d] = %d", i, selected[i]);
}

void Session::check_attention(const std::vector<int>& list) {
    int length = list.size(), first = c.sliding > 0 ? std::max(0, length - c.sliding) : 0;
    check(state[LIST_LENGTH] == length, "a list of %d, not %d", state[LIST_LENGTH], length);
    if (c.values == Values::not_numbers) return;
    double error = 0, square = 0;
    std::vector<double> rotated((size_t)length * D), s(length);
    for (int h = 0; h < HEADS; h++) {
        int kv = h / GROUP;
        if (h % GROUP == 0)
            for (int j = first; j < length; j++) rotate(&keys[list[j] * ROW + kv * D], j, &rotated[(size_t)j * D]);
        double q[D], sums[D] = {}, most = -1e300, sum = 0;
        rotate(&qkv[h * D], length - 1, q);
        for (int j = first; j < length; j++) {
            s[j] = 0;
            for (int d = 0; d < D; d++) s[j] += q[d] * rotated[(size_t)j * D + d];
            s[j] /= sqrt((double)D), most = std::max(most, s[j]);
        }
        for (int j = first; j < length; j++) {
            double p = exp(s[j] - most);
            sum += p;
            for (int d = 0; d < D; d++) sums[d] += p * to_float(values[list[j] * ROW + kv * D + d]);
        }
        for (int d = 0; d < D; d++) {
            double want = sums[d] / sum, off = to_float(out[h * D + d]) - want;
            error += off * off, square += want * want;
        }
    }
    // Not true of NaN either.
    check(sqrt(error / square) < ATTENTION_TOLERANCE, "attention is off by %g", sqrt(error / square));
}

void Session::step(int order) {
    // What only the kernel knows: the row of the current token is not in the cache yet.
    int current = stored - 1;
    const elem nan = from_float(NAN);
    std::fill_n(&keys[current * ROW], ROW, nan), std::fill_n(&values[current * ROW], ROW, nan);
    std::fill_n(&keys8[current * ROW], ROW, 99), std::fill_n(&scales8[current * KV_HEADS], KV_HEADS, NAN);
    std::fill_n(out.data(), HEADS * D, nan);
    emulator::launch([this] { token_select_step(args); }, c.blocks, THREADS, args.shared_bytes, order);
    check_appended(current);
    std::vector<int> list;
    if (stored <= c.n_init + c.top_k + c.n_local) {
        for (int t = 0; t < stored; t++) list.push_back(t);
    } else {
        std::vector<double> query(HEADS * D);
        for (int h = 0; h < HEADS; h++) rotate(&qkv[h * D], c.n_local, &query[h * D]);
        int end = stored - window(), tail = end;
        if (check_cosine(query)) {
            hits++;
            for (int i = 0; i < c.top_k; i++) check(selected[i] == chosen[i], "a hit changed selected[%d]", i);
            if (c.flags & GAP_REPAIR) tail = local_start;
        } else {
            misses++, anchor = query, local_start = end;
            check(!c.bounds || end - c.n_init > args.stored_scores, "too few candidates for bounds");
            check_selection(votes(query, c.n_init, end), c.n_init, end);
            chosen.assign(selected.data(), selected.data() + c.top_k);
            for (int i = 0; i < HEADS * D && c.values != Values::not_numbers; i++)
                check(fabs(cache_query[i] - query[i]) < 1e-5 * (1 + fabs(query[i]) + 1e-2 * c.spread), "query %d of the cache", i);
        }
        check(state[VALID] == 1 && state[LOCAL_START] == local_start && state[HITS] == hits && state[MISSES] == misses,
              "state %d %d %d %d, not 1 %d %d %d", state[VALID], state[LOCAL_START], state[HITS], state[MISSES], local_start, hits, misses);
        for (int t = 0; t < c.n_init; t++) list.push_back(t);
        list.insert(list.end(), chosen.begin(), chosen.end());
        for (int t = tail; t < stored; t++) list.push_back(t);
    }
    // An index out of range was reported above.
    if (std::all_of(list.begin(), list.end(), [this](int t) { return t >= 0 && t < stored; })) check_attention(list);
    keys.check_end("keys"), values.check_end("values"), out.check_end("out"), keys8.check_end("keys8");
    scales8.check_end("scales8"), cache_query.check_end("cache_query"), scores.check_end("scores");
    selected.check_end("selected"), state.check_end("state"), scratch.check_end("scratch");
    steps_checked++;
}

int main(int argc, char** argv) {
    int order = argc > 1 ? atoi(argv[1]) : 0, cases = 0;
    for (const Case& c : CASES) {
        case_name = c.name;
        Session session(c, 77 + cases++);
        bool cached = c.threshold <= 1;
        session.step(order);
        for (int i = 1; i < (cached ? 6 : 2); i++) {
            session.stored++;
            session.next_row();
            session.step(order);
        }
        if (cached) check(session.hits == 4 && session.misses == 2, "%d hits and %d misses, not 4 and 2", session.hits, session.misses);
    }
    printf("%d cases, %d steps, %d wrong\n", cases, steps_checked, failures);
    return failures != 0;
}
