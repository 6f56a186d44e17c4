//! Adam (Kingma and Ba 2015) over all tensors at once, with clipping of the gradient's norm.

use super::scalar::Scalar;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Elements of a piece.
const PIECE: usize = 1 << 14;

/// Constants; the defaults are those of the paper's code.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        }
    }
}

/// First and second moments, laid out like the parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments<T> {
    /// Mean of gradients.
    pub first: Vec<T>,
    /// Mean of squared gradients.
    pub second: Vec<T>,
}

/// Pieces of the ranges that have gradients, in order: the unit of parallel work and of sums.
pub fn pieces(reached: &[Range<usize>]) -> Vec<Range<usize>> {
    let cut = |range: &Range<usize>| {
        let range = range.clone();
        range
            .clone()
            .step_by(PIECE)
            .map(move |start| start..range.end.min(start + PIECE))
    };
    reached.iter().flat_map(cut).collect()
}

/// Norm of the gradient over all pieces.
pub fn norm<T: Scalar>(grads: &[T], pieces: &[Range<usize>]) -> f64 {
    let arch = Arch::new();
    let squares: Vec<f64> = pieces
        .par_iter()
        .map(|piece| arch.dispatch(Squares(&grads[piece.clone()])))
        .collect();
    squares.iter().sum::<f64>().sqrt()
}

struct Squares<'a, T>(&'a [T]);

impl<T: Scalar> WithSimd for Squares<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut lanes = [T::ZERO; 16];
        let (chunks, tail) = self.0.as_chunks::<16>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane = value.fused(value, *lane);
            }
        }
        let tail = tail.iter().map(|v| v.f64() * v.f64()).sum::<f64>();
        lanes.iter().map(|lane| lane.f64()).sum::<f64>() + tail
    }
}

/// Parameters, gradients and moments of one piece.
struct Piece<'a, T> {
    data: &'a mut [T],
    grads: &'a [T],
    first: &'a mut [T],
    second: &'a mut [T],
}

/// Cuts a buffer into the pieces, which are sorted and apart.
fn cut<'a, T>(mut data: &'a mut [T], pieces: &[Range<usize>]) -> Vec<&'a mut [T]> {
    let mut at = 0;
    let mut all = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (_, rest) = data.split_at_mut(piece.start - at);
        let (wanted, rest) = rest.split_at_mut(piece.len());
        all.push(wanted);
        data = rest;
        at = piece.end;
    }
    all
}

impl Adam {
    /// Step `t` (from 1) at `rate`, with gradients times `factor`.
    pub fn step<T: Scalar>(
        &self,
        t: u64,
        rate: f64,
        factor: f64,
        data: &mut [T],
        grads: &[T],
        moments: &mut Moments<T>,
        pieces: &[Range<usize>],
    ) {
        let mut work: Vec<Piece<'_, T>> = cut(data, pieces)
            .into_iter()
            .zip(cut(&mut moments.first, pieces))
            .zip(cut(&mut moments.second, pieces))
            .zip(pieces)
            .map(|(((data, first), second), piece)| Piece {
                data,
                grads: &grads[piece.clone()],
                first,
                second,
            })
            .collect();
        let t = t.min(1 << 30) as i32;
        let arch = Arch::new();
        let (bias1, bias2) = (1.0 - self.beta1.powi(t), 1.0 - self.beta2.powi(t));
        work.par_iter_mut().for_each(|piece| {
            arch.dispatch(Update {
                piece,
                adam: *self,
                factor,
                rate: rate / bias1,
                root: 1.0 / bias2.sqrt(),
            });
        });
    }
}

/// One piece. (A struct and not a closure: closures of this size are not inlined into the dispatched code.)
struct Update<'a, 'b, T> {
    piece: &'a mut Piece<'b, T>,
    adam: Adam,
    factor: f64,
    rate: f64,
    root: f64,
}

impl<T: Scalar> WithSimd for Update<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let adam = &self.adam;
        let (beta1, rest1) = (T::of(adam.beta1), T::of(1.0 - adam.beta1));
        let (beta2, rest2) = (T::of(adam.beta2), T::of(1.0 - adam.beta2));
        let (factor, rate) = (T::of(self.factor), T::of(self.rate));
        let (root, epsilon) = (T::of(self.root), T::of(adam.epsilon));
        let n = self.piece.data.len();
        let data = &mut self.piece.data[..n];
        let (grads, first, second) = (
            &self.piece.grads[..n],
            &mut self.piece.first[..n],
            &mut self.piece.second[..n],
        );
        for i in 0..n {
            let g = grads[i] * factor;
            first[i] = first[i].fused(beta1, g * rest1);
            second[i] = second[i].fused(beta2, g * g * rest2);
            data[i] = data[i] - rate * first[i] / second[i].sqrt().fused(root, epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_by_hand_and_what_is_out_of_reach_stays() {
        let adam = Adam::default();
        let pieces = pieces(&[0..1, 2..3]);
        let mut data = vec![1.0f64, 7.0, -1.0];
        let mut moments = Moments {
            first: vec![0.0; 3],
            second: vec![0.0; 3],
        };
        adam.step(1, 0.1, 1.0, &mut data, &[2.0, 9.0, -0.5], &mut moments, &pieces);
        // The first step is the rate in the gradient's direction, whatever its size.
        for (got, expected) in data.iter().zip([0.9, 7.0, -0.9]) {
            assert!((got - expected).abs() < 1e-8);
        }
        adam.step(2, 0.1, 0.5, &mut data, &[2.0, 9.0, -0.5], &mut moments, &pieces);
        // m = 0.9 0.2 + 0.1 = 0.28, over 0.19; v = 0.999 0.004 + 0.001 = 0.004996, over 0.001999.
        let step = 0.1 * (0.28 / 0.19) / ((0.004_996f64 / 0.001_999).sqrt() + 1e-8);
        assert!((data[0] - (0.9 - step)).abs() < 1e-8);
        assert!((norm(&[3.0f32, 100.0, 4.0], &pieces) - 5.0).abs() < 1e-6);
    }
}
