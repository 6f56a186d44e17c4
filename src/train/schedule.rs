//! Learning rate by step.

use serde::{Deserialize, Serialize};

/// How the learning rate moves. Steps count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Schedule {
    /// factor d^-0.5 min(t^-0.5, t warmup^-1.5) (Vaswani et al. 2017, equation 3).
    Noam {
        /// Factor on the whole.
        factor: f64,
        /// Steps of linear rise.
        warmup: u64,
        /// d.
        d_model: usize,
    },
    /// Linear rise to `peak`, then half a cosine down to a tenth of it at `steps` (Loshchilov and Hutter 2017).
    Cosine {
        /// Largest rate.
        peak: f64,
        /// Steps of linear rise.
        warmup: u64,
        /// Step of the lowest rate.
        steps: u64,
    },
}

impl Schedule {
    /// The rate of step `t`.
    pub fn rate(&self, t: u64) -> f64 {
        let at = t.max(1) as f64;
        match *self {
            Self::Noam {
                factor,
                warmup,
                d_model,
            } => {
                let rise = at * (warmup.max(1) as f64).powf(-1.5);
                factor * (d_model as f64).powf(-0.5) * at.powf(-0.5).min(rise)
            }
            Self::Cosine { peak, warmup, steps } => {
                if t < warmup {
                    return peak * at / warmup as f64;
                }
                let length = steps.saturating_sub(warmup).max(1) as f64;
                let done = (t.saturating_sub(warmup) as f64 / length).min(1.0);
                let low = 0.1 * peak;
                low + (peak - low) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noam_peaks_at_the_published_rate() {
        let noam = Schedule::Noam {
            factor: 1.0,
            warmup: 2000,
            d_model: 128,
        };
        // 128^-0.5 2000^-0.5.
        assert!((noam.rate(2000) - 1.976_423_5e-3).abs() < 1e-9);
        assert!((noam.rate(1000) / noam.rate(2000) - 0.5).abs() < 1e-12);
        assert!((noam.rate(8000) / noam.rate(2000) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn cosine_rises_and_falls_to_a_tenth() {
        let cosine = Schedule::Cosine {
            peak: 1e-3,
            warmup: 10,
            steps: 110,
        };
        let at = |t| cosine.rate(t) * 1e3;
        for (t, rate) in [(1, 0.1), (5, 0.5), (10, 1.0), (60, 0.55), (110, 0.1), (500, 0.1)] {
            assert!((at(t) - rate).abs() < 1e-12, "{t}: {}", at(t));
        }
    }
}
