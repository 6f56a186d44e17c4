// Runs a CUDA kernel on the CPU, to test it where there is no GPU. It stands in for `common.cuh` and for the section
// "instructions" of `token_select_step/layout.cuh`: the rest of the kernel is compiled as it is.
//
// Every thread of the grid is a fiber with its own stack. A fiber runs until it must wait for others (a collective of its
// warp, a barrier of its block or grid, an mbarrier), so a launch is one order of threads, the same every time; `order`
// picks another one. Found this way: wrong indices, wrong fragments of matrix products, missing barriers (where the order
// shows them), collectives that not all lanes of a warp reach, waiting without end, asynchronous copies that are read
// before they are waited for or that are never waited for, writes past shared memory, misaligned vectors. Not found: how
// memory orders itself between blocks, and anything about time.
//
// x86-64 Linux: the switch between fibers is assembly.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>
#include <sys/mman.h>

// ---- the language ----------------------------------------------------------------------------------------------------

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef u16 elem;

#define DEVICE static inline
#define __device__
#define __global__
#define __launch_bounds__(...)
#define FULL_MASK 0xffffffffu
#define NEG_INF (-INFINITY)

// Aligned as on the device.
struct alignas(8) float2 { float x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { u32 x, y, z, w; };
DEVICE float2 make_float2(float x, float y) { return {x, y}; }
DEVICE int2 make_int2(int x, int y) { return {x, y}; }
DEVICE uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
DEVICE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
DEVICE int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
DEVICE uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

template <class T, class U> DEVICE auto min(T a, U b) -> decltype(a + b) { return a < b ? a : b; }
template <class T, class U> DEVICE auto max(T a, U b) -> decltype(a + b) { return a > b ? a : b; }
template <class To, class From> DEVICE To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits of another size");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}
DEVICE int __float_as_int(float x) { return same_bits<int>(x); }
DEVICE u32 __float_as_uint(float x) { return same_bits<u32>(x); }
DEVICE float __int_as_float(int x) { return same_bits<float>(x); }
DEVICE float __uint_as_float(u32 x) { return same_bits<float>(x); }
DEVICE int __popc(u32 x) { return __builtin_popcount(x); }
DEVICE int __ffs(int x) { return __builtin_ffs(x); }
DEVICE int __clz(int x) { return x ? __builtin_clz(x) : 32; }
constexpr float LOG2_E = 1.4426950408889634f;
DEVICE float fast_exp2(float x) { return exp2f(x); }
DEVICE float fast_exp(float x) { return fast_exp2(x * LOG2_E); }

// ---- threads ---------------------------------------------------------------------------------------------------------

namespace emulator {

constexpr int WARP = 32;
constexpr size_t STACK_BYTES = 64 * 1024;
constexpr int GUARD_BYTES = 1024;   // around shared memory
constexpr u8 POISON = 0xff;         // what nobody has written yet; a NaN as f32, f16 and bf16

[[noreturn]] static void fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    printf("EMULATOR: ");
    vprintf(format, values);
    printf("\n");
    fflush(stdout);
    _Exit(2);
}

template <class T> static T* aligned(T* p, size_t bytes = alignof(T)) {
    if ((uintptr_t)p % bytes) fail("address %p is not a multiple of %zu", (const void*)p, bytes);
    return p;
}

enum class Collective { none, syncwarp, shuffle, ballot, ldmatrix, product_f32, product_s32 };

// Where the lanes of a warp bring what a collective needs of each, at most 32 bytes.
struct Meeting {
    u64 arrived = 0;   // of all rounds
    Collective what = Collective::none;
    u32 brought[WARP][8];
    union {
        float f[16][8];
        int i[16][8];
    } product;
};

// Rounds of meetings take turns between two places: who arrives at the next one has left the last one but one.
struct Warp {
    Meeting meetings[2];
};

struct Block {
    u64 arrived[2] = {0, 0}, votes[2] = {0, 0};   // at __syncthreads, likewise; votes of __syncthreads_count
    std::vector<Warp> warps;
    std::vector<u8> memory;
    u8* shared;
};

// An mbarrier, in the 8 bytes that it has in shared memory.
struct Mbarrier {
    u32 phase : 1, arrivals : 15, pending : 16;
    int bytes;   // on their way

    void complete_if_due() {
        if (pending == 0 && bytes == 0) pending = arrivals, phase ^= 1;
    }
};
static_assert(sizeof(Mbarrier) == sizeof(u64), "an mbarrier has 8 bytes");

struct Index {
    u32 x = 0, y = 0, z = 0;
};

struct Copy16 {
    void* to;
    uint4 value;
};

struct Fiber {
    void* stack_pointer;
    Index thread, block_index;
    Block* block;
    Warp* warp;
    u64 warp_rounds = 0, block_rounds = 0, votes_seen[2] = {0, 0};
    bool done = false;
    // What it waits for: a count to be reached, a phase of an mbarrier to end, or a number not to be negative.
    const u64* count = nullptr;
    u64 target = 0;
    const Mbarrier* barrier = nullptr;
    u32 parity = 0;
    const int* number = nullptr;
    std::vector<std::vector<Copy16>> copies = {{}};   // cp.async: groups, the last one open

    bool blocked() const { return (count && *count < target) || (barrier && barrier->phase == parity) || (number && *number < 0); }
};

// A copy of the copy engine on its way.
struct BulkCopy {
    void* to;
    const void* from;
    u32 bytes;
    Mbarrier* barrier;
    int rounds;   // of the scheduler until it lands
};

static Fiber* running;
static void* scheduler_stack;
static Index grid, threads_per_block;
static std::vector<BulkCopy> bulk_copies;
static std::function<void()> kernel;

// Saves the registers that a call preserves on this stack, and goes on with those on another one.
extern "C" void emulator_switch(void** save, void* to);
asm(R"(
.text
.globl emulator_switch
emulator_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

static void pause() { emulator_switch(&running->stack_pointer, scheduler_stack); }

static void wait_for(const u64& count, u64 target) {
    if (count >= target) return;
    running->count = &count, running->target = target;
    pause();
    running->count = nullptr;
}

static int lane() { return running->thread.x % WARP; }

// All lanes bring something; `last` runs once all have.
template <class Last> static Meeting& meet(Collective what, const void* brings, size_t bytes, Last last) {
    u64 round = running->warp_rounds++;
    Meeting& meeting = running->warp->meetings[round % 2];
    if (meeting.arrived % WARP == 0) meeting.what = what;
    if (meeting.what != what)
        fail("block %u, thread %u: the lanes of its warp are at different collectives", running->block_index.x, running->thread.x);
    memcpy(meeting.brought[lane()], brings, bytes);
    if (++meeting.arrived % WARP == 0) last(meeting);
    wait_for(meeting.arrived, WARP * (round / 2 + 1));
    return meeting;
}

template <class T> static T from_lane(T value, int source) {
    static_assert(sizeof(T) <= 32, "too much for a meeting");
    Meeting& meeting = meet(Collective::shuffle, &value, sizeof(T), [](Meeting&) {});
    memcpy(&value, meeting.brought[source], sizeof(T));
    return value;
}

static void fiber_main() {
    kernel();
    running->done = true;
    for (;;) pause();
}

// `blocks` blocks of `threads` threads with `shared_bytes` of dynamic shared memory each. `order` 0: threads take turns
// by their index; 1: backwards; others: shuffled, and every fourth warp, by chance, is slow.
static void launch(std::function<void()> body, int blocks, int threads, int shared_bytes, int order) {
    kernel = std::move(body);
    grid.x = blocks, threads_per_block.x = threads;
    std::vector<Block> all_blocks(blocks);
    std::vector<Fiber> fibers((size_t)blocks * threads);
    static u8* stacks = nullptr;
    static size_t stack_count = 0;
    if (stack_count < fibers.size()) {
        if (stacks) munmap(stacks, stack_count * STACK_BYTES);
        stack_count = fibers.size();
        void* p = mmap(nullptr, stack_count * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) fail("no memory for %zu stacks", stack_count);
        stacks = (u8*)p;
    }
    for (int b = 0; b < blocks; b++) {
        Block& block = all_blocks[b];
        block.warps.resize(threads / WARP);
        block.memory.assign(shared_bytes + 2 * GUARD_BYTES + 128, POISON);
        block.shared = (u8*)(((uintptr_t)block.memory.data() + GUARD_BYTES + 127) / 128 * 128);
        for (int t = 0; t < threads; t++) {
            size_t at = (size_t)b * threads + t;
            Fiber& fiber = fibers[at];
            fiber.thread.x = t, fiber.block_index.x = b;
            fiber.block = &block, fiber.warp = &block.warps[t / WARP];
            // As if fiber_main had been called (16-byte aligned but for the return address) and had called the switch.
            void** top = (void**)(stacks + (at + 1) * STACK_BYTES - 16);
            *--top = nullptr;
            *--top = (void*)fiber_main;
            for (int i = 0; i < 6; i++) *--top = nullptr;
            fiber.stack_pointer = top;
        }
    }
    std::vector<int> turns(fibers.size());
    for (size_t i = 0; i < turns.size(); i++) turns[i] = i;
    std::mt19937 random(order);
    if (order == 1) std::reverse(turns.begin(), turns.end());
    if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
    // Warps that advance together hide that one does not wait for another: some get every fourth turn only.
    std::vector<bool> slow(fibers.size() / WARP, false);
    for (size_t i = 0; i < slow.size(); i++) slow[i] = order > 1 && random() % 4 == 0;
    u64 round = 0;
    for (size_t left = fibers.size(); left > 0; round++) {
        bool moved = !bulk_copies.empty();
        for (size_t i = 0; i < bulk_copies.size();) {
            BulkCopy& copy = bulk_copies[i];
            if (copy.rounds-- > 0) {
                i++;
                continue;
            }
            memcpy(copy.to, copy.from, copy.bytes);
            copy.barrier->bytes -= copy.bytes;
            copy.barrier->complete_if_due();
            bulk_copies.erase(bulk_copies.begin() + i);
        }
        for (int turn : turns) {
            Fiber& fiber = fibers[turn];
            if (fiber.done || fiber.blocked()) continue;
            moved = true;
            if (slow[turn / WARP] && round % 4) continue;
            running = &fiber;
            emulator_switch(&scheduler_stack, fiber.stack_pointer);
            left -= fiber.done;
        }
        if (moved) continue;
        for (auto& fiber : fibers)
            if (!fiber.done) fail("%zu threads wait without end, among them thread %u of block %u", left, fiber.thread.x, fiber.block_index.x);
    }
    if (!bulk_copies.empty()) fail("%zu bulk copies were never waited for", bulk_copies.size());
    for (auto& fiber : fibers)
        for (auto& group : fiber.copies)
            if (!group.empty()) fail("thread %u of block %u never waited for its cp.async", fiber.thread.x, fiber.block_index.x);
    for (auto& block : all_blocks)
        for (u8* p = block.memory.data(); p < block.memory.data() + block.memory.size(); p++)
            if ((p < block.shared || p >= block.shared + shared_bytes) && *p != POISON)
                fail("a write outside shared memory, at byte %td of %d", p - block.shared, shared_bytes);
}

} // namespace emulator

#define threadIdx (emulator::running->thread)
#define blockIdx (emulator::running->block_index)
#define gridDim (emulator::grid)
#define blockDim (emulator::threads_per_block)
#define EMULATED_SHARED (emulator::running->block->shared)

// ---- collectives -----------------------------------------------------------------------------------------------------

DEVICE void __syncwarp(u32 = FULL_MASK) { emulator::meet(emulator::Collective::syncwarp, "", 1, [](emulator::Meeting&) {}); }
template <class T> DEVICE T __shfl_sync(u32, T x, int source) { return emulator::from_lane(x, source); }
template <class T> DEVICE T __shfl_xor_sync(u32, T x, int mask) { return emulator::from_lane(x, emulator::lane() ^ mask); }
template <class T> DEVICE T __shfl_up_sync(u32, T x, int by) {
    int lane = emulator::lane();
    return emulator::from_lane(x, lane >= by ? lane - by : lane);
}
DEVICE u32 __ballot_sync(u32, bool x) {
    u32 own = x, all = 0;
    auto& meeting = emulator::meet(emulator::Collective::ballot, &own, 4, [](emulator::Meeting&) {});
    for (int i = 0; i < emulator::WARP; i++) all |= meeting.brought[i][0] << i;
    return all;
}
DEVICE int __reduce_add_sync(u32, int x) {
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(FULL_MASK, x, d);
    return x;
}
DEVICE float warp_sum(float x) {
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(FULL_MASK, x, d);
    return x;
}
DEVICE float warp_max(float x) {
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, d));
    return x;
}
DEVICE int __syncthreads_count(int x) {
    emulator::Fiber& own = *emulator::running;
    u64 round = own.block_rounds++;
    int place = round % 2;
    own.block->votes[place] += x != 0;
    own.block->arrived[place]++;
    emulator::wait_for(own.block->arrived[place], (u64)emulator::threads_per_block.x * (round / 2 + 1));
    u64 before = own.votes_seen[place];
    own.votes_seen[place] = own.block->votes[place];
    return own.votes_seen[place] - before;
}
DEVICE void __syncthreads() { __syncthreads_count(0); }

// ---- elements --------------------------------------------------------------------------------------------------------

#ifdef ELEM_F16
// By hand: not every compiler has a type of 16 bits.
DEVICE float to_float(elem x) {
    u32 sign = (u32)(x & 0x8000) << 16, exponent = x >> 10 & 31, fraction = x & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f;
    return __uint_as_float(sign | (exponent == 31 ? 0xff : exponent + 112) << 23 | fraction << 13);
}
DEVICE elem from_float(float x) {
    u32 bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;   // rounds to 65536 or more
    if (magnitude < 0x38800000) return sign | (u32)rintf(__uint_as_float(magnitude) * 0x1p24f);   // below the normal numbers
    return sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
}
#else
DEVICE float to_float(elem x) { return __uint_as_float((u32)x << 16); }
DEVICE elem from_float(float x) {
    u32 bits = __float_as_uint(x);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#endif
DEVICE u32 pack2(float low, float high) { return (u32)from_float(low) | (u32)from_float(high) << 16; }
DEVICE float2 unpack2(u32 pair) { return {to_float(pair & 0xffff), to_float(pair >> 16)}; }

// ---- memory ----------------------------------------------------------------------------------------------------------

template <class T> DEVICE T __ldg(const T* p) { return *emulator::aligned(p); }
template <class T> DEVICE T load_l2(const T* p) { return *emulator::aligned(p); }
DEVICE void publish(int* p, int x) { *p = x; }
DEVICE int await_number(const int* p) {
    emulator::running->number = emulator::aligned(p);
    while (*p < 0) emulator::pause();
    emulator::running->number = nullptr;
    return *p;
}
DEVICE int4 await_numbers(const int4* p) {
    const int* x = (const int*)emulator::aligned(p);
    return {await_number(x), await_number(x + 1), await_number(x + 2), await_number(x + 3)};
}
DEVICE void prefetch_l2(const void*) {}
DEVICE u64 once_policy() { return 0; }
DEVICE uint4 load_once(const void* p, u64) { return *emulator::aligned((const uint4*)p); }
template <class T> DEVICE T atomicAdd(T* p, T x) {
    T before = *p;
    *p += x;
    return before;
}
DEVICE int opaque(int x) { return x; }

// Lands when it is waited for, with what the source held when it was asked for.
DEVICE void cp_async_16(void* shared, const void* global) {
    uint4 value = *emulator::aligned((const uint4*)global);
    memset(emulator::aligned((uint4*)shared), emulator::POISON, 16);
    emulator::running->copies.back().push_back({shared, value});
}
DEVICE void cp_async_commit() { emulator::running->copies.emplace_back(); }
template <int PENDING> DEVICE void cp_async_wait() {
    auto& groups = emulator::running->copies;
    while ((int)groups.size() - 1 > PENDING) {
        for (auto& copy : groups.front()) memcpy(copy.to, &copy.value, 16);
        groups.erase(groups.begin());
    }
}

DEVICE void barrier_init(u64* barrier, u32 arrivals) {
    auto& b = *(emulator::Mbarrier*)emulator::aligned(barrier);
    b.phase = 0, b.arrivals = b.pending = arrivals, b.bytes = 0;
}
DEVICE void barriers_ready() {}
DEVICE void barrier_arrive(u64* barrier) {
    auto& b = *(emulator::Mbarrier*)barrier;
    if (b.pending == 0) emulator::fail("more arrivals at an mbarrier than it was made for");
    b.pending--;
    b.complete_if_due();
}
DEVICE void barrier_wait(u64* barrier, u32 parity) {
    auto& b = *(emulator::Mbarrier*)barrier;
    if (b.phase != parity) return;
    emulator::running->barrier = &b, emulator::running->parity = parity;
    emulator::pause();
    emulator::running->barrier = nullptr;
}
// Arrives at once and lands some rounds of the scheduler later.
DEVICE void bulk_copy(void* to, const void* from, u32 bytes, u64* barrier, u64) {
    emulator::aligned((uint4*)to), emulator::aligned((const uint4*)from);
    if (bytes % 16) emulator::fail("a bulk copy of %u bytes, not a multiple of 16", bytes);
    auto* b = (emulator::Mbarrier*)barrier;
    b->bytes += bytes;
    barrier_arrive(barrier);
    memset(to, emulator::POISON, bytes);
    emulator::bulk_copies.push_back({to, from, bytes, b, 2});
}

// ---- matrix units ----------------------------------------------------------------------------------------------------

DEVICE void ldmatrix(u32 (&r)[4], const void* shared, bool transposed) {
    u64 own = (u64)emulator::aligned((const uint4*)shared);
    auto& meeting = emulator::meet(emulator::Collective::ldmatrix, &own, 8, [](emulator::Meeting&) {});
    int row = emulator::lane() / 4, column = emulator::lane() % 4 * 2;
    for (int m = 0; m < 4; m++) {
        u32 pair[2];
        for (int x = 0; x < 2; x++) {
            u64 from;
            memcpy(&from, meeting.brought[m * 8 + (transposed ? column + x : row)], 8);
            pair[x] = ((const u16*)from)[transposed ? row : column + x];
        }
        r[m] = pair[0] | pair[1] << 16;
    }
}
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* shared) { ldmatrix(r, shared, false); }
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], const void* shared) { ldmatrix(r, shared, true); }

namespace emulator {

// Row and column of value i of lane 4 g + t in a product: rows {g, g + 8}, columns {2 t, 2 t + 1}.
static int product_row(int i) { return lane() / 4 + i / 2 * 8; }
static int product_column(int i) { return lane() % 4 * 2 + i % 2; }

// Fragments a (registers 0 to 3) and b (4 and 5) of the lanes as matrices [16][K] and [8][K]; a register holds R values.
template <int K, int R, class T, class Read> static void gather(const Meeting& meeting, T (&a)[16][K], T (&b)[8][K], Read read) {
    for (int k = 0; k < K; k++) {
        int t = k % (K / 2) / R, half = k / (K / 2), within = k % R;
        for (int g = 0; g < 8; g++) {
            const u32* of_lane = meeting.brought[4 * g + t];
            a[g][k] = read(of_lane[2 * half], within);
            a[g + 8][k] = read(of_lane[2 * half + 1], within);
            b[g][k] = read(of_lane[4 + half], within);
        }
    }
}

} // namespace emulator

// Sums of products in f64, rounded to f32 before they are added to c.
DEVICE void mma_16816(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    const u32 own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    auto& meeting = emulator::meet(emulator::Collective::product_f32, own, sizeof(own), [](emulator::Meeting& all) {
        float x[16][16], y[8][16];
        emulator::gather<16, 2>(all, x, y, [](u32 pair, int i) { return to_float(i ? pair >> 16 : pair & 0xffff); });
        for (int row = 0; row < 16; row++)
            for (int column = 0; column < 8; column++) {
                double sum = 0;
                for (int k = 0; k < 16; k++) sum += (double)x[row][k] * y[column][k];
                all.product.f[row][column] = (float)sum;
            }
    });
    for (int i = 0; i < 4; i++) c[i] += meeting.product.f[emulator::product_row(i)][emulator::product_column(i)];
}
DEVICE void mma_16832(int (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const u32 own[6] = {a0, a1, a2, a3, b0, b1};
    auto& meeting = emulator::meet(emulator::Collective::product_s32, own, sizeof(own), [](emulator::Meeting& all) {
        int x[16][32], y[8][32];
        emulator::gather<32, 4>(all, x, y, [](u32 bytes, int i) { return (int)(i8)(bytes >> (8 * i)); });
        for (int row = 0; row < 16; row++)
            for (int column = 0; column < 8; column++) {
                int sum = 0;
                for (int k = 0; k < 32; k++) sum += x[row][k] * y[column][k];
                all.product.i[row][column] = sum;
            }
    });
    for (int i = 0; i < 4; i++) c[i] += meeting.product.i[emulator::product_row(i)][emulator::product_column(i)];
}

// ---- order between kernels and blocks --------------------------------------------------------------------------------

DEVICE void wait_for_previous_kernel() {}
DEVICE void let_next_kernel_start() {}
DEVICE u64 arrive(u64* counter) { return (*counter)++; }
DEVICE void arrive_unanswered(u64* counter) { (*counter)++; }
DEVICE void wait_until(u64* counter, u64 target) { emulator::wait_for(*counter, target); }
