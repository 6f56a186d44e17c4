//! Element-wise pieces that the compiler turns into SIMD code inside a dispatched closure.

/// e^x to about 2 ulp for x in [-87, 88]; smaller arguments give e^-87 (about 1e-38), larger e^88. Branch-free, so that
/// a loop over a slice becomes SIMD code.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    // Adding 1.5 * 2^23 rounds to an integer that sits in the low bits.
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
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

/// Sum of squares.
#[inline(always)]
pub fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0.0; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value * value;
        }
    }
    lanes.iter().sum::<f32>() + tail.iter().map(|v| v * v).sum::<f32>()
}

/// Rotates `x` (one head) by one row of cosines and sines into `out`.
#[inline(always)]
pub fn rotate(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = cos.len();
    let (low, high) = x.split_at(half);
    let (out_low, out_high) = out.split_at_mut(half);
    for d in 0..half {
        out_low[d] = low[d] * cos[d] - high[d] * sin[d];
    }
    for d in 0..half {
        out_high[d] = high[d] * cos[d] + low[d] * sin[d];
    }
}

#[cfg(test)]
mod tests {
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
