//! Softmax cross-entropy over rows of logits, with its gradient in one pass.

use super::scalar::Scalar;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows of a piece.
const ROWS: usize = 32;

/// Sums over the rows of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Outcome {
    /// Negative log-likelihood in nats, summed.
    pub loss: f64,
    /// Rows whose largest logit is the target's; of equal ones the first counts.
    pub correct: u64,
    /// Rows.
    pub count: u64,
}

impl Outcome {
    /// Loss of a row.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.count as f64
    }

    /// Share of correct rows.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.count as f64
    }

    /// Adds the rows of another batch.
    pub fn add(&mut self, other: Self) {
        self.loss += other.loss;
        self.correct += other.correct;
        self.count += other.count;
    }
}

/// Loss of logits `[rows, vocab]` against `targets`; the logits become the gradient of `scale` times the summed loss.
pub fn with_gradient<T: Scalar>(logits: &mut [T], targets: &[u32], vocab: usize, scale: f64) -> Outcome {
    let arch = Arch::new();
    let pieces = logits.par_chunks_mut(ROWS * vocab).zip(targets.par_chunks(ROWS));
    let parts: Vec<Outcome> = pieces
        .map(|(logits, targets)| {
            arch.dispatch(Rows {
                logits,
                targets,
                vocab,
                scale,
            })
        })
        .collect();
    let mut all = Outcome::default();
    for part in parts {
        all.add(part);
    }
    all
}

/// Some rows. (A struct and not a closure: closures of this size are not inlined into the dispatched code.)
struct Rows<'a, T> {
    logits: &'a mut [T],
    targets: &'a [u32],
    vocab: usize,
    scale: f64,
}

impl<T: Scalar> WithSimd for Rows<'_, T> {
    type Output = Outcome;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Outcome {
        let mut all = Outcome::default();
        for (row, &target) in self.logits.chunks_exact_mut(self.vocab).zip(self.targets) {
            all.add(row_with_gradient(row, target as usize, T::of(self.scale)));
        }
        all
    }
}

#[inline(always)]
fn row_with_gradient<T: Scalar>(row: &mut [T], target: usize, scale: T) -> Outcome {
    let mut max = T::LOWEST;
    let mut best = 0;
    for (at, &value) in row.iter().enumerate() {
        if value > max {
            (max, best) = (value, at);
        }
    }
    let own = row[target];
    let mut lanes = [T::ZERO; 16];
    let (chunks, tail) = row.as_chunks_mut::<16>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = (*value - max).exp();
            *lane += *value;
        }
    }
    for value in tail.iter_mut() {
        *value = (*value - max).exp();
        lanes[0] += *value;
    }
    let sum = lanes.iter().copied().sum::<T>();
    let factor = scale / sum;
    for value in row.iter_mut() {
        *value *= factor;
    }
    row[target] = row[target] - scale;
    Outcome {
        loss: (max - own).f64() + sum.ln().f64(),
        correct: u64::from(best == target),
        count: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_computed_row() {
        // Softmax of (0, ln 3) is (1/4, 3/4).
        let mut logits = [0.0f64, 3.0f64.ln(), 5.0, 5.0];
        let outcome = with_gradient(&mut logits, &[0, 0], 2, 0.5);
        assert!((outcome.loss - 4.0f64.ln() - 2.0f64.ln()).abs() < 1e-12);
        // Of the equal logits in the second row the first is taken.
        assert_eq!((outcome.correct, outcome.count), (1, 2));
        for (got, expected) in logits.iter().zip([-0.375, 0.375, -0.25, 0.25]) {
            assert!((got - expected).abs() < 1e-12);
        }
    }
}
