// The bandwidth-bound steps of a decoder layer on C rows (prefill), and the embedding.
//
// Interface. Blocks of 256, no dynamic shared memory; W is the width of a row, weights of norms are f32 where weight_is_f32 is
// not 0, else elem. Rows start on 16 bytes where W % 8 == 0; other widths take scalar paths. Arguments in order:
//   embed             grid C: (ids int [C], table elem [V][W], hidden f32 [C][W], W u32, V u32); an id outside gives zeros
//   rms_norm_rows     grid C: (hidden f32 [C][W], weight [W], weight_is_f32 u32, out elem [C][W], W, eps f32)
//   norm_heads        grid ceil(C heads g / 256): (rows elem [C][row_width], C, row_width, offset, heads, head_dim u32, weight
//                     [head_dim], weight_is_f32, eps), in place from element `offset` of each row on. g = 32; where head_dim,
//                     row_width and offset are multiples of 8 and head_dim <= 256, halved while g / 2 >= head_dim / 8
//   silu_mul_rows     grid (ceil(I / 2048), C): (gate_up elem [C][2 I], out elem [C][I], I u32); out = silu(gate) * up
//   add_bias_rows     grid (ceil(W / 2048), C): (rows elem [C][W], bias elem [W], W); in place
//   fill_random       grid 32 * multiprocessors: (to elem [n], n u64, seed u64, deviation f32, mean f32); normal numbers, the
//                     same for the same seed whatever the grid
//
// Bytes, floor and times (H200; copying reaches 4.27 TB/s). 8192 rows of Qwen2-7B: embed 52 us (3.4 TB/s), rms_norm_rows 44 us
// (4.0), silu_mul_rows 226 us (4.1), add_bias_rows 39 us (3.8), norm_heads 36 us (3.2). 512 rows: 6, 4.5, 16, 4 and 4 us, half
// of it the launch. fill_random writes 2.5 TB/s (clearing memory: 3.4): its arithmetic is the limit.
//
// One thread per vector beats loops over a grid that fills the chip once. Half the registers in the norms, so that more rows
// are in flight, gave 5%.

#define THREADS 256

// Four elements as f32.
DEVICE float4 load4(const elem* p) {
    uint2 pairs = *(const uint2*)p;
    float2 a = unpack2(pairs.x), b = unpack2(pairs.y);
    return make_float4(a.x, a.y, b.x, b.y);
}
DEVICE void store4(elem* p, float4 v) { *(uint2*)p = make_uint2(pack2(v.x, v.y), pack2(v.z, v.w)); }

struct Eight {
    float v[8];
};
DEVICE Eight unpack8(uint4 pairs) {
    float2 a = unpack2(pairs.x), b = unpack2(pairs.y), c = unpack2(pairs.z), d = unpack2(pairs.w);
    return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}
DEVICE uint4 pack8(const Eight& e) {
    return make_uint4(pack2(e.v[0], e.v[1]), pack2(e.v[2], e.v[3]), pack2(e.v[4], e.v[5]), pack2(e.v[6], e.v[7]));
}

DEVICE float weight_at(const void* weight, u32 is_f32, u32 i) {
    return is_f32 ? ((const float*)weight)[i] : to_float(((const elem*)weight)[i]);
}
DEVICE float4 weight4_at(const void* weight, u32 is_f32, u32 i) {
    return is_f32 ? *(const float4*)((const float*)weight + i) : load4((const elem*)weight + i);
}

// ---- embedding -----------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS) embed(const int* ids, const elem* table, float* hidden, u32 width,
    u32 vocabulary) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    u32 id = (u32)ids[blockIdx.x];
    // An id outside the table would read foreign memory; it gives zeros.
    bool known = id < vocabulary;
    const elem* from = table + (u64)(known ? id : 0) * width;
    float* to = hidden + (u64)blockIdx.x * width;
    if (width % 8 == 0) {
        for (u32 i = threadIdx.x; i < width / 8; i += THREADS) {
            Eight e = unpack8(known ? ((const uint4*)from)[i] : make_uint4(0, 0, 0, 0));
            ((float4*)to)[2 * i] = make_float4(e.v[0], e.v[1], e.v[2], e.v[3]);
            ((float4*)to)[2 * i + 1] = make_float4(e.v[4], e.v[5], e.v[6], e.v[7]);
        }
    } else {
        for (u32 i = threadIdx.x; i < width; i += THREADS) to[i] = known ? to_float(from[i]) : 0.0f;
    }
}

// ---- norms ---------------------------------------------------------------------------------------------------------

// Sum over the block, the same in every thread.
DEVICE float block_sum(float x) {
    __shared__ float sums[THREADS / 32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < THREADS / 32; ++w) sum += sums[w];
    return sum;
}

// One block normalises one row. Rows of up to 4 * KEPT * THREADS elements stay in registers between the sum and the scaling.
extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_rows(const float* hidden, const void* weight, u32 weight_is_f32,
    elem* out, u32 width, float eps) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const u32 KEPT = 4;
    u64 row = blockIdx.x;
    hidden += row * width;
    out += row * width;
    float squares = 0.0f;
    if (width % 4 == 0) {
        u32 n = width / 4;
        float4 kept[KEPT];
#pragma unroll
        for (u32 k = 0; k < KEPT; ++k) {
            u32 i = threadIdx.x + k * THREADS;
            if (i < n) kept[k] = ((const float4*)hidden)[i];
        }
#pragma unroll
        for (u32 k = 0; k < KEPT; ++k) {
            u32 i = threadIdx.x + k * THREADS;
            if (i < n) {
                float4 v = kept[k];
                squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            }
        }
        for (u32 i = threadIdx.x + KEPT * THREADS; i < n; i += THREADS) {
            float4 v = ((const float4*)hidden)[i];
            squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
        float scale = rsqrtf(block_sum(squares) / (float)width + eps);
#pragma unroll
        for (u32 k = 0; k < KEPT; ++k) {
            u32 i = threadIdx.x + k * THREADS;
            if (i < n) {
                float4 w = weight4_at(weight, weight_is_f32, 4 * i), v = kept[k];
                store4(out + 4 * i, make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w));
            }
        }
        for (u32 i = threadIdx.x + KEPT * THREADS; i < n; i += THREADS) {
            float4 w = weight4_at(weight, weight_is_f32, 4 * i), v = ((const float4*)hidden)[i];
            store4(out + 4 * i, make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w));
        }
    } else {
        for (u32 i = threadIdx.x; i < width; i += THREADS) {
            float v = hidden[i];
            squares += v * v;
        }
        float scale = rsqrtf(block_sum(squares) / (float)width + eps);
        for (u32 i = threadIdx.x; i < width; i += THREADS)
            out[i] = from_float(hidden[i] * scale * weight_at(weight, weight_is_f32, i));
    }
}

// RMS norm of single heads, in place: `heads` heads of `head_dim` elements from element `offset` of every row on. A
// group of lanes, 8 elements each, holds a head (several rounds where head_dim > 256 or not a multiple of 8: one
// element per lane then).
extern "C" __global__ void __launch_bounds__(THREADS) norm_heads(elem* rows, u32 row_count, u32 row_width, u32 offset, u32 heads,
    u32 head_dim, const void* weight, u32 weight_is_f32, float eps) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    u32 vectors = head_dim / 8;
    bool fits = head_dim % 8 == 0 && vectors <= 32 && row_width % 8 == 0 && offset % 8 == 0;
    u32 group = 32;
    if (fits)
        while (group / 2 >= vectors) group /= 2;
    u64 index = ((u64)blockIdx.x * THREADS + threadIdx.x) / group;
    u32 lane = threadIdx.x % group;
    bool real = index < (u64)row_count * heads;
    u64 row = real ? index / heads : 0;
    elem* head = rows + row * row_width + offset + (real ? index - row * heads : 0) * head_dim;
    if (fits) {
        bool mine = real && lane < vectors;
        Eight e = unpack8(mine ? ((const uint4*)head)[lane] : make_uint4(0, 0, 0, 0));
        float squares = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; ++j) squares += e.v[j] * e.v[j];
        for (u32 d = group / 2; d > 0; d >>= 1) squares += __shfl_xor_sync(FULL_MASK, squares, d);
        float scale = rsqrtf(squares / (float)head_dim + eps);
        if (mine) {
            float4 a = weight4_at(weight, weight_is_f32, 8 * lane), b = weight4_at(weight, weight_is_f32, 8 * lane + 4);
            float w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
            for (int j = 0; j < 8; ++j) e.v[j] *= scale * w[j];
            ((uint4*)head)[lane] = pack8(e);
        }
    } else {
        float squares = 0.0f;
        if (real)
            for (u32 i = lane; i < head_dim; i += 32) squares += to_float(head[i]) * to_float(head[i]);
        float scale = rsqrtf(warp_sum(squares) / (float)head_dim + eps);
        if (real)
            for (u32 i = lane; i < head_dim; i += 32)
                head[i] = from_float(to_float(head[i]) * scale * weight_at(weight, weight_is_f32, i));
    }
}

// ---- products and sums --------------------------------------------------------------------------------------------

DEVICE float silu(float x) { return x / (1.0f + __expf(-x)); }

extern "C" __global__ void __launch_bounds__(THREADS) silu_mul_rows(const elem* gate_up, elem* out, u32 width) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const elem* gate = gate_up + (u64)blockIdx.y * 2 * width;
    const elem* up = gate + width;
    elem* to = out + (u64)blockIdx.y * width;
    u32 start = blockIdx.x * THREADS + threadIdx.x, stride = gridDim.x * THREADS;
    if (width % 8 == 0) {
        for (u32 i = start; i < width / 8; i += stride) {
            Eight g = unpack8(load_streaming((const uint4*)gate + i)), u = unpack8(load_streaming((const uint4*)up + i));
#pragma unroll
            for (int j = 0; j < 8; ++j) g.v[j] = silu(g.v[j]) * u.v[j];
            ((uint4*)to)[i] = pack8(g);
        }
    } else {
        for (u32 i = start; i < width; i += stride) to[i] = from_float(silu(to_float(gate[i])) * to_float(up[i]));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) add_bias_rows(elem* rows, const elem* bias, u32 width) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    elem* row = rows + (u64)blockIdx.y * width;
    u32 start = blockIdx.x * THREADS + threadIdx.x, stride = gridDim.x * THREADS;
    if (width % 8 == 0) {
        for (u32 i = start; i < width / 8; i += stride) {
            Eight v = unpack8(((const uint4*)row)[i]), b = unpack8(((const uint4*)bias)[i]);
#pragma unroll
            for (int j = 0; j < 8; ++j) v.v[j] += b.v[j];
            ((uint4*)row)[i] = pack8(v);
        }
    } else {
        for (u32 i = start; i < width; i += stride) row[i] = from_float(to_float(row[i]) + to_float(bias[i]));
    }
}

// ---- random numbers ------------------------------------------------------------------------------------------------

// Philox 4x32 with 7 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"): the fewest that pass the
// statistical batteries.
DEVICE uint4 philox7(u64 counter, u32 stream, u64 seed) {
    u32 c0 = (u32)counter, c1 = (u32)(counter >> 32), c2 = stream, c3 = 0;
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 7; ++round) {
        u64 a = (u64)0xD2511F53u * c0, b = (u64)0xCD9E8D57u * c2;
        u32 n0 = (u32)(b >> 32) ^ c1 ^ k0, n2 = (u32)(a >> 32) ^ c3 ^ k1;
        c1 = (u32)b;
        c3 = (u32)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

DEVICE float approximate_root(float x) {
    float out;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// Two normal numbers from 32 random bits (Box and Muller): a 16-bit radius, so nothing beyond 4.9 deviations, which is
// as fine as 16-bit elements deserve.
DEVICE float2 two_normals(u32 bits, float deviation) {
    float u = ((float)(bits & 0xffffu) + 0.5f) * (1.0f / 65536.0f);
    float angle = (float)(bits >> 16) * (6.283185307f / 65536.0f);
    float radius = deviation * approximate_root(-2.0f * __logf(u));
    return make_float2(radius * __cosf(angle), radius * __sinf(angle));
}

extern "C" __global__ void __launch_bounds__(THREADS) fill_random(elem* to, u64 count, u64 seed, float deviation, float mean) {
    wait_for_previous_kernel();
    u64 stride = (u64)gridDim.x * THREADS, start = (u64)blockIdx.x * THREADS + threadIdx.x;
    for (u64 i = start; 8 * i < count; i += stride) {
        uint4 bits = philox7(i, 0, seed);
        float2 a = two_normals(bits.x, deviation), b = two_normals(bits.y, deviation);
        float2 c = two_normals(bits.z, deviation), d = two_normals(bits.w, deviation);
        uint4 out = make_uint4(pack2(a.x + mean, a.y + mean), pack2(b.x + mean, b.y + mean), pack2(c.x + mean, c.y + mean),
            pack2(d.x + mean, d.y + mean));
        if (8 * i + 8 <= count) {
            ((uint4*)to)[i] = out;
        } else {
            u32 words[4] = {out.x, out.y, out.z, out.w};
#pragma unroll
            for (int j = 0; j < 8; ++j)
                if (8 * i + j < count) to[8 * i + j] = (elem)(words[j / 2] >> (j % 2 * 16));
        }
    }
}
