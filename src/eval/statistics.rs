//! How sure a mean over samples is, and how sure the difference of two variants is that answered the same samples.

use crate::bench::statistics::{mean, percentile, standard_error};
use crate::random::stream_rng;
use rand::{Rng, RngCore};

/// Resamples of every interval.
pub const RESAMPLES: usize = 10_000;

/// A mean with what is known of its error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// How many values.
    pub n: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation over the square root of n; `None` for one value.
    pub standard_error: Option<f64>,
    /// 95 % percentile bootstrap interval of the mean (Efron 1979); `None` for one value.
    pub ci95: Option<[f64; 2]>,
}

impl Estimate {
    /// The estimate over `values`; `None` of nothing. Depends on the values in their order, the seed and `stream` alone.
    pub fn of(values: &[f64], seed: u64, stream: &str) -> Option<Self> {
        Some(Self {
            n: values.len(),
            mean: mean(values)?,
            standard_error: standard_error(values),
            ci95: interval(values, &mut stream_rng(seed, stream)),
        })
    }
}

/// The mean difference of pairs `(variant, reference)`, each pair one sample that both answered.
///
/// Whole pairs are resampled, so what makes a sample hard for both cancels: the interval is far narrower than that of
/// two unrelated means.
pub fn paired(pairs: &[(f64, f64)], seed: u64, stream: &str) -> Option<Estimate> {
    let differences: Vec<f64> = pairs.iter().map(|(variant, reference)| variant - reference).collect();
    Estimate::of(&differences, seed, stream)
}

/// The 2.5th and 97.5th percentile of the means of [`RESAMPLES`] resamples with replacement.
fn interval(values: &[f64], rng: &mut impl RngCore) -> Option<[f64; 2]> {
    let n = u32::try_from(values.len()).ok().filter(|&n| n > 1)?;
    let first = values[0];
    if values.iter().all(|value| value.to_bits() == first.to_bits()) {
        // Every resample is the same; their sums would differ by rounding.
        return Some([first, first]);
    }
    let means: Vec<f64> = (0..RESAMPLES)
        // u32, because usize would draw other numbers on other machines.
        .map(|_| (0..n).map(|_| values[rng.random_range(0..n) as usize]).sum::<f64>() / f64::from(n))
        .collect();
    Some([percentile(&means, 2.5)?, percentile(&means, 97.5)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(left: f64, right: f64, tolerance: f64) -> bool {
        (left - right).abs() <= tolerance
    }

    #[test]
    fn a_hand_computed_estimate() {
        // Mean 0.75; squared deviations 3 x 0.0625 + 0.5625 = 0.75, over 3 is 0.25; 0.5 / sqrt(4) is 0.25.
        let estimate = Estimate::of(&[1.0, 0.0, 1.0, 1.0], 0, "t").unwrap();
        assert_eq!(
            (estimate.n, estimate.mean, estimate.standard_error),
            (4, 0.75, Some(0.25))
        );
        // The mean of a resample is j/4 with j binomial(4, 3/4): P(j = 0) = 0.4 %, P(j <= 1) = 5.1 %, P(j = 4) = 31.6 %.
        assert_eq!(estimate.ci95, Some([0.25, 1.0]));
    }

    #[test]
    fn nothing_one_value_and_equal_values() {
        assert_eq!(Estimate::of(&[], 0, "t"), None);
        let one = Estimate::of(&[0.3], 0, "t").unwrap();
        assert_eq!((one.n, one.standard_error, one.ci95), (1, None, None));
        let equal = Estimate::of(&[0.1; 7], 0, "t").unwrap();
        assert_eq!((equal.mean, equal.ci95), (0.1, Some([0.1, 0.1])));
    }

    #[test]
    fn a_constant_shift_is_certain_although_both_means_are_not() {
        let hard = [0.0, 0.9, 0.3, 0.6, 0.1, 0.75];
        let pairs: Vec<(f64, f64)> = hard.iter().map(|&score| (score + 0.125, score)).collect();
        let shift = paired(&pairs, 0, "t").unwrap();
        let [low, high] = shift.ci95.unwrap();
        assert!(close(shift.mean, 0.125, 1e-12) && close(low, high, 1e-12));
        let [low, high] = Estimate::of(&hard, 0, "t").unwrap().ci95.unwrap();
        assert!(high - low > 0.3);
    }

    #[test]
    fn a_hand_computed_paired_difference() {
        // Differences 1, 0, 0, -1: mean 0; squared deviations sum to 2; 2 / 3; over 4 is 1/6.
        let difference = paired(&[(1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (0.0, 1.0)], 0, "t").unwrap();
        assert_eq!(difference.mean.to_bits(), 0.0f64.to_bits());
        assert!(close(difference.standard_error.unwrap(), (1.0f64 / 6.0).sqrt(), 1e-12));
        let [low, high] = difference.ci95.unwrap();
        assert!(close(low, -high, 0.26), "{low} {high}");
    }

    #[test]
    fn seed_and_stream_decide_the_interval() {
        let values: Vec<f64> = (0..50).map(|i| f64::from(i).sqrt()).collect();
        let of = |seed, stream| Estimate::of(&values, seed, stream);
        assert_eq!(of(1, "a"), of(1, "a"));
        assert_ne!(of(1, "a"), of(2, "a"));
        assert_ne!(of(1, "a"), of(1, "b"));
    }

    #[test]
    fn the_interval_covers_the_truth_about_as_often_as_it_says() {
        let mut rng = stream_rng(3, "coverage");
        let (trials, n, truth) = (300, 50, 0.2);
        let covered = (0..trials)
            .filter(|trial| {
                // A shift of 0.2 in the mean of a coin against an independent coin per sample.
                let pairs: Vec<(f64, f64)> = (0..n)
                    .map(|_| (f64::from(rng.random_bool(0.7)), f64::from(rng.random_bool(0.5))))
                    .collect();
                let [low, high] = paired(&pairs, *trial, "coverage").unwrap().ci95.unwrap();
                (low..=high).contains(&truth)
            })
            .count();
        let share = covered as f64 / trials as f64;
        // Three standard errors of the share around 0.95 are 0.038; the percentile interval is a little short at n = 50.
        assert!((0.90..=0.99).contains(&share), "{share}");
    }
}
