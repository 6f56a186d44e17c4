//! Choosing the next token: what decides it, and the arithmetic that host and GPU do alike.
//!
//! Weights are whole numbers and their sums do not depend on an order, so that a draw from the same logits gives the same
//! token wherever it is made (`model/sampling.rs`, `kernels/cuda/sample.cu`).

/// The likeliest token weighs 2^36. What is lighter than half a unit cannot be drawn.
pub const WEIGHT_BITS: i32 = 36;

/// What decides the next token beside its logits.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// See [`weight_scale`]; 0 takes the largest logit, the lowest id among equals.
    pub scale: f64,
    /// Keep this many of the largest logits, and what ties with the last of them; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest tokens that have this share of the weight; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this share of the largest weight; 0 keeps all.
    pub min_p: f32,
    /// Divide positive and multiply negative logits of tokens in `history` by this; 1 leaves them.
    pub repetition_penalty: f32,
    /// The whole context.
    pub history: &'a [u32],
    /// A uniform random number of 64 bits, of which the share of the kept weight is taken.
    pub bits: u64,
}

impl Choice<'_> {
    /// Whether tokens of the context are treated in another way.
    #[expect(clippy::float_cmp, reason = "only exactly 1 is off")]
    pub fn penalizes(&self) -> bool {
        self.repetition_penalty != 1.0
    }

    /// Whether it is the largest logit as it is.
    pub fn is_greedy(&self) -> bool {
        self.scale == 0.0 && !self.penalizes()
    }
}

/// What became of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The token; `None` where that is left to the host: the device cannot, no logit is finite, or one is NaN or infinite.
    pub id: Option<u32>,
    /// Whether a penalty was written into the logits, so that they are no longer the model's.
    pub logits_changed: bool,
}

/// Factor on differences of logits under `temperature` (above 0), of which powers of two are taken.
pub fn weight_scale(temperature: f32) -> f64 {
    std::f64::consts::LOG2_E / f64::from(temperature)
}

/// `ln(2)^k / k!`.
const POWERS: [f64; 11] = [
    1.0,
    std::f64::consts::LN_2,
    0.240_226_506_959_100_72,
    0.055_504_108_664_821_58,
    0.009_618_129_107_628_477,
    0.001_333_355_814_642_844_3,
    0.000_154_035_303_933_816_1,
    1.525_273_380_405_984_1e-5,
    1.321_548_679_014_431e-6,
    1.017_808_600_923_97e-7,
    7.054_911_620_801_123e-9,
];

/// `e^((logit - largest) / temperature)` in units of 2^-36, rounded: every step is one IEEE operation, none is contracted.
pub fn weight(logit: f32, largest: f32, scale: f64) -> u64 {
    let x = (f64::from(logit) - f64::from(largest)) * scale;
    // Also where it is minus infinity.
    if x.is_nan() || x <= -37.5 {
        return 0;
    }
    let whole = x.round_ties_even();
    let part = x - whole;
    let power = POWERS.iter().rev().copied().reduce(|sum, next| sum * part + next);
    (power.unwrap_or(1.0) * 2f64.powi(whole as i32 + WEIGHT_BITS)).round_ties_even() as u64
}

/// The least weight that `min_p` keeps.
pub fn least_weight(min_p: f32) -> u64 {
    (f64::from(min_p) * 2f64.powi(WEIGHT_BITS)).ceil() as u64
}

/// The weight that the tokens which `top_p` keeps must reach, of `total`.
pub fn wanted_weight(top_p: f32, total: u64) -> u64 {
    ((f64::from(top_p) * total as f64).ceil() as u64).clamp(1, total.max(1))
}

/// Where in `total` the draw of `bits` lies.
pub fn place(bits: u64, total: u64) -> u64 {
    ((u128::from(bits) * u128::from(total)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::{WEIGHT_BITS, place, wanted_weight, weight, weight_scale};

    #[test]
    fn weights_are_powers_to_the_last_unit() {
        let unit = 2f64.powi(WEIGHT_BITS);
        for i in 0..40_000 {
            let logit = 2.0 - i as f32 * 0.001;
            for temperature in [0.3f32, 1.0, 1.7] {
                let exact = ((f64::from(logit) - 2.0) / f64::from(temperature)).exp() * unit;
                let found = weight(logit, 2.0, weight_scale(temperature));
                // Half a unit of rounding, and a few roundings of f64.
                assert!(
                    (found as f64 - exact).abs() <= 0.5 + exact * 1e-12,
                    "{logit} at {temperature}: {found}, {exact}"
                );
            }
        }
    }

    /// A change here would silently change every seeded draw, and part host from GPU.
    #[test]
    fn some_weights_are_pinned() {
        let half = |halves: i32| weight(halves as f32 / 2.0, 0.0, 1.0);
        assert_eq!(
            [0, -1, -2, -72, -74].map(half),
            [1 << 36, 48_592_008_000, 1 << 35, 1, 0]
        );
        assert_eq!(weight(-20.25, 0.0, 1.0), 55_109);
        assert_eq!(weight(f32::NEG_INFINITY, 0.0, 1.0), 0);
        // However small the temperature, nothing overflows.
        assert_eq!(weight(1.0, 3e38, weight_scale(f32::MIN_POSITIVE)), 0);
        assert_eq!(weight(3e38, 3e38, weight_scale(f32::MIN_POSITIVE)), 1 << 36);
    }

    #[test]
    fn draws_and_shares_stay_inside() {
        assert_eq!((place(0, 10), place(u64::MAX, 10), place(1 << 63, 10)), (0, 9, 5));
        assert_eq!(
            (wanted_weight(0.5, 9), wanted_weight(1e-9, 9), wanted_weight(1.0, 9)),
            (5, 1, 9)
        );
    }
}
