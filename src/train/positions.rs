//! Sinusoidal positions (Vaswani et al. 2017, section 3.5).

use super::linear::add;
use super::scalar::Scalar;
use rayon::prelude::*;

/// Encodings of the places of a window, `[positions, d]`, computed once.
#[derive(Debug, Clone, PartialEq)]
pub struct Sinusoids {
    d: usize,
    table: Vec<f64>,
}

impl Sinusoids {
    /// Encodings of `positions` places: sine in even elements, cosine in odd ones.
    pub fn new(positions: usize, d: usize) -> Self {
        let element = |at: usize| {
            let (position, c) = (at / d, at % d);
            let angle = position as f64 / 10_000f64.powf((c / 2 * 2) as f64 / d as f64);
            if c.is_multiple_of(2) { angle.sin() } else { angle.cos() }
        };
        Self {
            d,
            table: (0..positions * d).map(element).collect(),
        }
    }

    /// The encodings, `[positions, d]`.
    pub fn table(&self) -> &[f64] {
        &self.table
    }

    /// Adds positions to rows `[time, B, d]`. The last row in time stands at `window - 1`, so that the segment keeps its
    /// positions while the memory before it grows.
    pub fn add_to<T: Scalar>(&self, rows: &mut [T], batch: usize, window: usize) {
        let d = self.d;
        let count = rows.len() / (batch * d);
        rows.par_chunks_mut(batch * d).enumerate().for_each(|(t, rows)| {
            let encoding = &self.table[(window - count + t) * d..][..d];
            let encoding: Vec<T> = encoding.iter().map(|&value| T::of(value)).collect();
            rows.chunks_exact_mut(d).for_each(|row| add(row, &encoding));
        });
    }
}
