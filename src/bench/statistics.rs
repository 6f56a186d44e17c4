//! Mean, spread and order statistics of a list of measurements.

/// What is reported about a non-empty list of finite numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// How many numbers.
    pub n: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation (divisor n - 1); `None` for one number.
    pub standard_deviation: Option<f64>,
    /// Standard error of the mean; `None` for one number.
    pub standard_error: Option<f64>,
    /// 95 % confidence interval of the mean by Student's t; `None` for one number.
    pub ci95: Option<[f64; 2]>,
    /// Smallest.
    pub min: f64,
    /// Middle value, or the mean of the two middle values.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Summary {
    /// Summarises `values`; `None` when there are none or one of them is not finite.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let n = values.len();
        let mean = mean(values)?;
        let standard_deviation = standard_deviation(values);
        let standard_error = standard_deviation.map(|deviation| deviation / (n as f64).sqrt());
        let ci95 = standard_error.map(|error| {
            let half_width = student_t_975(n - 1) * error;
            [mean - half_width, mean + half_width]
        });
        Some(Self {
            n,
            mean,
            standard_deviation,
            standard_error,
            ci95,
            min: percentile(values, 0.0)?,
            median: percentile(values, 50.0)?,
            max: percentile(values, 100.0)?,
        })
    }
}

/// Arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let n = values.len() as f64;
    let first = values.iter().sum::<f64>() / n;
    // The second pass removes the rounding of the first, so that the mean of equal values is that value.
    Some(first + values.iter().map(|value| value - first).sum::<f64>() / n)
}

/// Sample standard deviation (divisor n - 1); `None` below two values.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// Standard error of the mean; `None` below two values.
pub fn standard_error(values: &[f64]) -> Option<f64> {
    standard_deviation(values).map(|deviation| deviation / (values.len() as f64).sqrt())
}

/// Middle value; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    percentile(values, 50.0)
}

/// The `percent`-th percentile (0 to 100), linear between neighbours as in numpy's default; `None` of nothing.
pub fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    let weight = position - below as f64;
    Some(sorted[below] * (1.0 - weight) + sorted[above] * weight)
}

/// The 97.5 % quantile of Student's t with `degrees` degrees of freedom (at least 1).
pub fn student_t_975(degrees: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
        2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    ];
    if let Some(quantile) = degrees.checked_sub(1).and_then(|index| TABLE.get(index)) {
        return *quantile;
    }
    // Cornish-Fisher expansion around the normal quantile; its error above 30 degrees is below 1e-4.
    let z = 1.959_964_f64;
    let degrees = degrees.max(1) as f64;
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    z + first / degrees + second / degrees.powi(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(left: f64, right: f64) -> bool {
        (left - right).abs() <= 1e-9 * right.abs().max(1.0)
    }

    #[test]
    fn summary_of_a_known_list() {
        let summary = Summary::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert!(close(summary.mean, 5.0) && close(summary.median, 4.5));
        // Squared deviations sum to 32; 32 / 7 is the sample variance.
        assert!(close(summary.standard_deviation.unwrap(), (32.0_f64 / 7.0).sqrt()));
        let [low, high] = summary.ci95.unwrap();
        assert!(close(high - low, 2.0 * 2.365 * (32.0_f64 / 7.0 / 8.0).sqrt()));
    }

    #[test]
    fn nothing_and_not_a_number_have_no_summary() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        assert_eq!(Summary::of(&[1.0]).unwrap().standard_error, None);
    }

    #[test]
    fn percentiles_interpolate_as_numpy_does() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert!(close(percentile(&values, 25.0).unwrap(), 1.75));
        assert!(close(percentile(&values, 90.0).unwrap(), 3.7));
        assert!(close(percentile(&values, 100.0).unwrap(), 4.0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn student_t_meets_published_quantiles_beyond_the_table() {
        for (degrees, expected) in [(40, 2.0211), (60, 2.0003), (120, 1.9799), (100_000, 1.95999)] {
            assert!((student_t_975(degrees) - expected).abs() < 2e-4, "{degrees}");
        }
    }

    proptest! {
        #[test]
        fn order_statistics_bound_the_mean(values in prop::collection::vec(-1e6f64..1e6, 1..50)) {
            let summary = Summary::of(&values).unwrap();
            prop_assert!(summary.min <= summary.mean + 1e-6 && summary.mean <= summary.max + 1e-6);
            prop_assert!(summary.min <= summary.median && summary.median <= summary.max);
        }

        #[test]
        fn equal_values_have_no_spread(value in -1e9f64..1e9, n in 2usize..40) {
            let summary = Summary::of(&vec![value; n]).unwrap();
            prop_assert!(close(summary.mean, value));
            prop_assert!(summary.standard_error.unwrap() <= value.abs() * 1e-12);
        }
    }
}
