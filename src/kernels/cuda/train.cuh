// What every kernel file of training starts with, after common.cuh.
//
// -DTRAIN_F32 stores activations and weights as f32; otherwise as bfloat16. Residual stream, statistics, gradients of
// parameters, and sums are f32 in both. Letters: T rows of a segment, M of memory, N = M + T, B streams, H heads,
// dk elements of a head, d = H dk. Rows lie as [time][stream][d].

#ifdef TRAIN_F32
typedef float value;
DEVICE float load(value x) { return x; }
DEVICE value store(float x) { return x; }
#else
typedef elem value;
DEVICE float load(value x) { return to_float(x); }
DEVICE value store(float x) { return from_float(x); }
#endif

// Four numbers of Philox4x32-10 (Salmon et al. 2011), as `src/train/dropout.rs` draws them.
DEVICE uint4 philox(u64 key, u32 c0, u32 c1) {
    u32 k0 = (u32)key, k1 = (u32)(key >> 32), c2 = 0, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 a = (u64)0xD2511F53u * c0, b = (u64)0xCD9E8D57u * c2;
        u32 n0 = (u32)(b >> 32) ^ c1 ^ k0, n2 = (u32)(a >> 32) ^ c3 ^ k1;
        c0 = n0; c1 = (u32)b; c2 = n2; c3 = (u32)a;
        k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

// Dropout at one place of the model: `keys[place]` is drawn by the host for every step; `threshold` 0: none.
struct Dropout {
    const u64* keys;
    float keep;
    u32 threshold;
};

// The factor on element `i` of part `part`.
DEVICE float dropout_factor(const Dropout& drop, u64 key, u32 part, u32 i) {
    uint4 r = philox(key, i / 4, part);
    u32 word = i % 4 == 0 ? r.x : i % 4 == 1 ? r.y : i % 4 == 2 ? r.z : r.w;
    return word < drop.threshold ? 0.0f : drop.keep;
}
