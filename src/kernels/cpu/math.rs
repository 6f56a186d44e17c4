//! Element-wise pieces that the compiler turns into SIMD code inside a dispatched closure.

use pulp::Simd;

/// Range of [`exp`].
const LOWEST: f32 = -87.0;
const HIGHEST: f32 = 88.0;
/// Adding 1.5 * 2^23 rounds to an integer that sits in the low bits.
const MAGIC: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Of (e^r - 1 - r) / r^2 on half an ln 2 around 0, highest power first.
const COEFFICIENTS: [f32; 6] = [
    1.987_569_1e-4,
    1.398_199_9e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    0.5,
];

/// e^x to about 2 ulp for x in [-87, 88]; smaller arguments give e^-87 (about 1e-38), larger e^88. Branch-free, so that
/// a loop over a slice becomes SIMD code.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(LOWEST, HIGHEST);
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = COEFFICIENTS[1..].iter().fold(COEFFICIENTS[0], |p, c| p * r + c);
    let value = p * r * r + r + 1.0;
    f32::from_bits(value.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// Replaces `x` by `exp(x - max)` and returns the sum.
#[inline(always)]
pub fn exp_sum(x: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0; 16];
    let (chunks, tail) = x.as_chunks_mut::<16>();
    for chunk in chunks {
        for (value, lane) in chunk.iter_mut().zip(&mut lanes) {
            *value = exp(*value - max);
            *lane += *value;
        }
    }
    let mut sum: f32 = lanes.iter().sum();
    for value in tail {
        *value = exp(*value - max);
        sum += *value;
    }
    sum
}

/// [`exp_sum`] with fused multiply-adds where the instruction set has them.
#[inline(always)]
pub fn exp_sum_simd<S: Simd>(simd: S, x: &mut [f32], max: f32) -> f32 {
    let (lanes, tail) = S::as_mut_simd_f32s(x);
    let max_lanes = simd.splat_f32s(max);
    let mut sum = simd.splat_f32s(0.0);
    for value in lanes {
        *value = exp_simd(simd, simd.sub_f32s(*value, max_lanes));
        sum = simd.add_f32s(sum, *value);
    }
    simd.reduce_sum_f32s(sum) + exp_sum(tail, max)
}

/// [`exp`] on a register.
#[inline(always)]
fn exp_simd<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |v| simd.splat_f32s(v);
    let x = simd.min_f32s(simd.max_f32s(x, splat(LOWEST)), splat(HIGHEST));
    let shifted = simd.mul_add_f32s(x, splat(std::f32::consts::LOG2_E), splat(MAGIC));
    let n = simd.sub_f32s(shifted, splat(MAGIC));
    let r = simd.mul_add_f32s(n, splat(-LN2_HIGH), x);
    let r = simd.mul_add_f32s(n, splat(-LN2_LOW), r);
    let mut p = splat(COEFFICIENTS[0]);
    for coefficient in &COEFFICIENTS[1..] {
        p = simd.mul_add_f32s(p, r, splat(*coefficient));
    }
    let value = simd.add_f32s(simd.mul_add_f32s(simd.mul_f32s(p, r), r, r), splat(1.0));
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(value), exponent))
}

/// Largest element; -inf for none.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Product of two vectors of one length: as many independent sums as the widest registers hold, so that additions need no
/// order among them.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; 16];
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + tail
}

/// Sum of squares.
#[inline(always)]
pub fn sum_of_squares(x: &[f32]) -> f32 {
    dot(x, x)
}

/// Rotates `x` (one head) by one row of cosines and sines into `out`.
#[inline(always)]
pub fn rotate(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = cos.len();
    let (low, high) = x.split_at(half);
    let (out_low, out_high) = out.split_at_mut(half);
    // All of one visible length: without that the loop keeps its bounds checks and stays scalar, four times slower.
    let (sin, high, out_high) = (&sin[..half], &high[..half], &mut out_high[..half]);
    for d in 0..half {
        out_low[d] = low[d] * cos[d] - high[d] * sin[d];
        out_high[d] = high[d] * cos[d] + low[d] * sin[d];
    }
}

#[cfg(test)]
mod tests {
    use pulp::{Simd, WithSimd};

    struct ExpSum<'a>(&'a mut [f32], f32);

    impl WithSimd for ExpSum<'_> {
        type Output = f32;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            super::exp_sum_simd(simd, self.0, self.1)
        }
    }

    #[test]
    fn fused_exponentials_equal_plain_ones() {
        let plain: Vec<f32> = (0..203).map(|i| i as f32 / 7.0 - 20.0).collect();
        let (mut a, mut b) = (plain.clone(), plain);
        let sum = pulp::Arch::new().dispatch(ExpSum(&mut a, 9.0));
        let expected = super::exp_sum(&mut b, 9.0);
        assert!((sum - expected).abs() < 1e-6 * expected);
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() <= 5e-7 * b, "{a} against {b}");
        }
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "exp(0) is exactly 1")]
    fn exp_is_close_over_its_range() {
        for i in -8700..=8800 {
            let x = i as f32 / 100.0;
            let want = f64::from(x).exp();
            let error = (f64::from(super::exp(x)) - want).abs() / want;
            // 4 units in the last place.
            assert!(error < 5e-7, "exp({x}): relative error {error}");
        }
        assert_eq!(super::exp(0.0), 1.0);
        assert!(super::exp(f32::NEG_INFINITY) < 2e-38);
    }
}
