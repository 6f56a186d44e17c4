// What every kernel file starts with: it is put before the source of each before compilation (NVRTC, no headers).
//
// Compile-time choices (-D): ELEM_F16 stores activations, weights, keys and values as IEEE half; otherwise bfloat16.
// Sums accumulate in f32 everywhere. Letters: C rows, N stored tokens, H query heads, Hkv key-value heads, D head dim.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// One stored element, as bits.
typedef u16 elem;

#define DEVICE __device__ __forceinline__
#define FULL_MASK 0xffffffffu
#define NEG_INF __int_as_float(0xff800000)

// ---- elements ------------------------------------------------------------------------------------------------------

// Two f32 rounded to nearest even into one register, `lo` in the lower half.
DEVICE u32 pack2(float lo, float hi) {
    u32 out;
#ifdef ELEM_F16
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
#endif
    return out;
}

DEVICE float2 unpack2(u32 pair) {
    float2 out;
#ifdef ELEM_F16
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
        : "=f"(out.x), "=f"(out.y) : "r"(pair));
#else
    out.x = __uint_as_float(pair << 16);
    out.y = __uint_as_float(pair & 0xffff0000u);
#endif
    return out;
}

DEVICE float to_float(elem x) { return unpack2((u32)x).x; }
DEVICE elem from_float(float x) { return (elem)(pack2(x, 0.0f) & 0xffffu); }

// ---- memory --------------------------------------------------------------------------------------------------------

// 16 bytes that are read once: no place in L1.
DEVICE uint4 load_streaming(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

DEVICE void cp_async_16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

DEVICE void ldmatrix_x4(u32 (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(shared)) : "memory");
}
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(shared)) : "memory");
}

// ---- matrix units --------------------------------------------------------------------------------------------------

// c[16 x 8] += a[16 x 16] b[16 x 8]. Lane l = 4 g + t: a = rows {g, g + 8}, columns {2t, 2t+1} then {2t + 8, 2t + 9};
// b = rows {2t, 2t+1} then {2t + 8, 2t + 9}, column g; c = rows {g, g + 8}, columns {2t, 2t + 1}.
DEVICE void mma_16816(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef ELEM_F16
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- reductions ----------------------------------------------------------------------------------------------------

DEVICE float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(FULL_MASK, x, d);
    return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, d));
    return x;
}

// 2^x and e^x, exact enough for softmax (2 ulp); of -inf 0.
DEVICE float fast_exp2(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
constexpr float LOG2_E = 1.4426950408889634f;
DEVICE float fast_exp(float x) { return fast_exp2(x * LOG2_E); }

// ---- order between kernels and blocks ------------------------------------------------------------------------------

// Programmatic dependent launch (sm_90 and up): a kernel launched with the attribute starts while its predecessor drains;
// nothing that the predecessor wrote may be read, and nothing it reads may be written, before this returns. Without the
// attribute, and on older chips, both are free.
DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel start its prologue.
DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until all `blocks` blocks of the grid are here; all of them must be resident at once. `counter` is zero before
// its first use ever and is never reset: 64 bits do not wrap.
DEVICE void grid_barrier(u64* counter, u32 blocks) {
    __syncthreads();
    if (threadIdx.x == 0) {
        u64 before, now;
        asm volatile("atom.add.acq_rel.gpu.global.u64 %0, [%1], 1;" : "=l"(before) : "l"(counter) : "memory");
        u64 target = (before / blocks + 1) * blocks;
        do {
            asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(counter) : "memory");
        } while (now < target);
    }
    __syncthreads();
}
