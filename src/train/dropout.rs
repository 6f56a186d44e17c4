//! Dropout whose masks follow from seed and place, so that a backward pass, or a resumed run, draws the same ones.

use super::scalar::Scalar;
use crate::random::stream_rng;
use rand::RngCore;
use rayon::prelude::*;

/// Elements that share one random stream.
const CHUNK: usize = 4096;

/// Inverted dropout (Srivastava et al. 2014): an element is 0 with probability `rate`, else divided by `1 - rate`.
#[derive(Debug, Clone, PartialEq)]
pub struct Dropout {
    /// Probability of 0; 0 does nothing.
    pub rate: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Where the mask is used: step, layer, place.
    pub place: String,
}

impl Dropout {
    /// No dropout.
    pub fn none() -> Self {
        Self {
            rate: 0.0,
            seed: 0,
            place: String::new(),
        }
    }

    /// The same at a narrower place.
    #[must_use]
    pub fn at(&self, place: &str) -> Self {
        if self.rate == 0.0 {
            return Self::none();
        }
        Self {
            place: format!("{}/{place}", self.place),
            ..self.clone()
        }
    }

    /// Whether it does anything.
    pub fn is_active(&self) -> bool {
        self.rate > 0.0
    }

    /// Multiplies `x` by the mask of part `part` of this place.
    pub fn apply<T: Scalar>(&self, part: usize, x: &mut [T]) {
        let keep = T::of(1.0 / (1.0 - self.rate));
        let threshold = (self.rate * f64::from(u32::MAX)) as u32;
        let mut rng = stream_rng(self.seed, &format!("dropout/{}/{part}", self.place));
        for x in x {
            *x = if rng.next_u32() < threshold { T::ZERO } else { *x * keep };
        }
    }

    /// [`Dropout::apply`] on a whole tensor, in parallel.
    pub fn apply_all<T: Scalar>(&self, x: &mut [T]) {
        if self.is_active() {
            x.par_chunks_mut(CHUNK)
                .enumerate()
                .for_each(|(part, x)| self.apply(part, x));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_mean_and_repeats() {
        let dropout = Dropout {
            rate: 0.25,
            seed: 3,
            place: "7/0/ffn".into(),
        };
        let mask = |dropout: &Dropout| {
            let mut x = vec![1.0f64; 100_000];
            dropout.apply_all(&mut x);
            x
        };
        let x = mask(&dropout);
        assert_eq!(x, mask(&dropout));
        assert_ne!(x, mask(&dropout.at("1")));
        let zeros = x.iter().filter(|v| **v == 0.0).count() as f64 / 1e5;
        // Four standard errors of a share of 1e5 are 0.0055.
        assert!((zeros - 0.25).abs() < 0.0055, "{zeros}");
        assert!(x.iter().all(|&v| v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-12));
    }
}
