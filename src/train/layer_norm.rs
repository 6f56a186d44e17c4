//! Layer normalisation (Ba et al. 2016) over rows of d elements, forward and backward.

use super::linear::add;
use super::scalar::Scalar;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows of a piece; pieces have a fixed size so that sums do not depend on the number of threads.
const ROWS: usize = 128;
/// As in `PyTorch`.
const EPSILON: f64 = 1e-5;

/// `out = (x - mean) / deviation * gain + bias`; `statistics` `[rows, 2]` keeps mean and 1 / deviation.
pub fn forward<T: Scalar>(x: &[T], gain: &[T], bias: &[T], out: &mut [T], statistics: &mut [T]) {
    let d = gain.len();
    let arch = Arch::new();
    let pieces = out.par_chunks_mut(ROWS * d).zip(x.par_chunks(ROWS * d));
    pieces
        .zip(statistics.par_chunks_mut(ROWS * 2))
        .for_each(|((out, x), statistics)| {
            arch.dispatch(Forward {
                x,
                gain,
                bias,
                out,
                statistics,
            });
        });
}

/// Some rows forward. (A struct and not a closure: closures of this size are not inlined into the dispatched code.)
struct Forward<'a, T> {
    x: &'a [T],
    gain: &'a [T],
    bias: &'a [T],
    out: &'a mut [T],
    statistics: &'a mut [T],
}

impl<T: Scalar> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let d = self.gain.len();
        let n = T::of(d as f64);
        let rows = self.out.chunks_exact_mut(d).zip(self.x.chunks_exact(d));
        for ((out, x), statistics) in rows.zip(self.statistics.chunks_exact_mut(2)) {
            let mean = row_sum(x) / n;
            let variance = squares(x, mean) / n;
            let inverse = T::ONE / (variance + T::of(EPSILON)).sqrt();
            statistics.copy_from_slice(&[mean, inverse]);
            for (((y, &x), &g), &b) in out.iter_mut().zip(x).zip(self.gain).zip(self.bias) {
                *y = ((x - mean) * inverse).fused(g, b);
            }
        }
    }
}

#[inline(always)]
fn row_sum<T: Scalar>(x: &[T]) -> T {
    let mut lanes = [T::ZERO; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().chain(tail).copied().sum()
}

#[inline(always)]
fn squares<T: Scalar>(x: &[T], mean: T) -> T {
    let mut lanes = [T::ZERO; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = (value - mean).fused(value - mean, *lane);
        }
    }
    lanes
        .iter()
        .copied()
        .chain(tail.iter().map(|&v| (v - mean) * (v - mean)))
        .sum()
}

/// `dx = ...`, or `+=` if `accumulate`; adds to the gradients of gain and bias.
pub fn backward<T: Scalar>(
    x: &[T],
    statistics: &[T],
    gain: &[T],
    dy: &[T],
    accumulate: bool,
    dx: &mut [T],
    d_gain: &mut [T],
    d_bias: &mut [T],
) {
    let d = gain.len();
    let arch = Arch::new();
    let pieces = dx.par_chunks_mut(ROWS * d).zip(dy.par_chunks(ROWS * d));
    let pieces = pieces.zip(x.par_chunks(ROWS * d)).zip(statistics.par_chunks(ROWS * 2));
    let sums: Vec<(Vec<T>, Vec<T>)> = pieces
        .map(|(((dx, dy), x), statistics)| {
            let (mut gains, mut biases) = (vec![T::ZERO; d], vec![T::ZERO; d]);
            arch.dispatch(Backward {
                x,
                statistics,
                gain,
                dy,
                accumulate,
                dx,
                gains: &mut gains,
                biases: &mut biases,
            });
            (gains, biases)
        })
        .collect();
    for (gains, biases) in &sums {
        add(d_gain, gains);
        add(d_bias, biases);
    }
}

/// Some rows backward.
struct Backward<'a, T> {
    x: &'a [T],
    statistics: &'a [T],
    gain: &'a [T],
    dy: &'a [T],
    accumulate: bool,
    dx: &'a mut [T],
    gains: &'a mut [T],
    biases: &'a mut [T],
}

impl<T: Scalar> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let d = self.gain.len();
        let n = T::of(d as f64);
        let rows = self
            .dx
            .chunks_exact_mut(d)
            .zip(self.dy.chunks_exact(d))
            .zip(self.x.chunks_exact(d));
        for (((dx, dy), x), statistics) in rows.zip(self.statistics.chunks_exact(2)) {
            let (mean, inverse) = (statistics[0], statistics[1]);
            // One visible length lets the compiler drop the bounds checks.
            let (x, dy, dx, gain) = (&x[..d], &dy[..d], &mut dx[..d], &self.gain[..d]);
            let (gains, biases) = (&mut self.gains[..d], &mut self.biases[..d]);
            let (mut total, mut along) = ([T::ZERO; 16], [T::ZERO; 16]);
            let whole = d / 16 * 16;
            for first in (0..whole).step_by(16) {
                for lane in 0..16 {
                    let i = first + lane;
                    let normal = (x[i] - mean) * inverse;
                    let g = dy[i] * gain[i];
                    total[lane] += g;
                    along[lane] += g * normal;
                }
            }
            for i in whole..d {
                let g = dy[i] * gain[i];
                total[0] += g;
                along[0] += g * (x[i] - mean) * inverse;
            }
            let total = total.iter().copied().sum::<T>() / n;
            let along = along.iter().copied().sum::<T>() / n;
            for i in 0..d {
                let normal = (x[i] - mean) * inverse;
                gains[i] += dy[i] * normal;
                biases[i] += dy[i];
                let value = (dy[i] * gain[i] - total - normal * along) * inverse;
                dx[i] = if self.accumulate { dx[i] + value } else { value };
            }
        }
    }
}
