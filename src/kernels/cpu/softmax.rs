//! The running softmax of a block of query rows.

use super::aligned::Aligned;
use crate::kernels::AttentionShape;

/// Running softmax of R query rows: maximum, sum, and un-normalised output `[R, padded D]`.
pub(super) struct State {
    pub(super) max: Vec<f32>,
    pub(super) sum: Vec<f32>,
    /// Empty where only maximum and sum are wanted.
    pub(super) out: Aligned,
}

impl State {
    /// Of `rows` rows that have seen nothing; `padded` is 0 for no output.
    pub(super) fn new(rows: usize, padded: usize) -> Self {
        Self {
            max: vec![f32::NEG_INFINITY; rows],
            sum: vec![0.0; rows],
            out: Aligned::zeros(rows * padded),
        }
    }

    /// Writes normalised rows to the output segments `[group, D]` of their chunk rows.
    pub(super) fn write(&self, shape: &AttentionShape, segments: &mut [&mut [f32]]) {
        let padded = shape.head_dim.next_multiple_of(16);
        let mut r = 0;
        for segment in segments {
            for head in segment.chunks_exact_mut(shape.head_dim) {
                let inverse = 1.0 / self.sum[r];
                for (o, value) in head.iter_mut().zip(&self.out[r * padded..]) {
                    *o = value * inverse;
                }
                r += 1;
            }
        }
    }

    /// The states of all splits of the keys as one.
    pub(super) fn merge(states: &[Self], padded: usize) -> Self {
        let rows = states[0].max.len();
        let mut total = Self::new(rows, padded);
        for r in 0..rows {
            let max = states.iter().map(|s| s.max[r]).fold(f32::NEG_INFINITY, f32::max);
            total.max[r] = max;
            for state in states.iter().filter(|s| s.max[r] > f32::NEG_INFINITY) {
                let factor = (state.max[r] - max).exp();
                total.sum[r] += state.sum[r] * factor;
                let out = &mut total.out[r * padded..][..padded];
                for (o, value) in out.iter_mut().zip(&state.out[r * padded..]) {
                    *o += value * factor;
                }
            }
        }
        total
    }
}
