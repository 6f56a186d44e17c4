//! Affine maps `y = x W + b` over rows, forward and backward. Weights are stored `[in, out]`.
//!
//! Work is cut into pieces of fixed size, each on one thread and summed in a fixed order, so that results do not depend
//! on the number of threads.

use super::scalar::{Scalar, View};
use rayon::prelude::*;

/// Rows of a piece.
const ROWS: usize = 256;
/// Inputs of a piece of a weight gradient.
const INPUTS: usize = 64;

/// What happens to a result while it is in cache.
#[derive(Debug, Clone, Copy)]
pub enum Finish<'a, T> {
    /// Nothing.
    Plain,
    /// max(0, y).
    Relu,
    /// y + residual.
    Add(&'a [T]),
}

/// `out = finish(x W + b)`, `[rows, outputs]`.
pub fn forward<T: Scalar>(
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    inputs: usize,
    outputs: usize,
    finish: Finish<'_, T>,
    out: &mut [T],
) {
    let pieces = out.par_chunks_mut(ROWS * outputs).zip(x.par_chunks(ROWS * inputs));
    pieces.enumerate().for_each(|(piece, (out, x))| {
        let rows = x.len() / inputs;
        let mut accumulate = true;
        match (finish, bias) {
            (Finish::Add(residual), bias) => {
                out.copy_from_slice(&residual[piece * ROWS * outputs..][..out.len()]);
                for row in out.chunks_exact_mut(outputs) {
                    for (y, &b) in row.iter_mut().zip(bias.unwrap_or_default()) {
                        *y += b;
                    }
                }
            }
            (_, Some(bias)) => out.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias)),
            (_, None) => accumulate = false,
        }
        T::product(
            out,
            &View::new(x, rows, inputs),
            &View::new(weight, inputs, outputs),
            accumulate,
        );
        if let Finish::Relu = finish {
            for y in out {
                *y = if *y > T::ZERO { *y } else { T::ZERO };
            }
        }
    });
}

/// `dx = dy W^T`, or `+=`.
pub fn backward_input<T: Scalar>(
    dy: &[T],
    weight: &[T],
    inputs: usize,
    outputs: usize,
    accumulate: bool,
    dx: &mut [T],
) {
    let pieces = dx.par_chunks_mut(ROWS * inputs).zip(dy.par_chunks(ROWS * outputs));
    pieces.for_each(|(dx, dy)| {
        let rows = dy.len() / outputs;
        T::product(
            dx,
            &View::new(dy, rows, outputs),
            &View::new(weight, inputs, outputs).t(),
            accumulate,
        );
    });
}

/// `dW += x^T dy`.
pub fn backward_weight<T: Scalar>(x: &[T], dy: &[T], inputs: usize, outputs: usize, d_weight: &mut [T]) {
    let rows = dy.len() / outputs;
    d_weight
        .par_chunks_mut(INPUTS * outputs)
        .enumerate()
        .for_each(|(piece, d_weight)| {
            let count = d_weight.len() / outputs;
            let left = View::new(x, rows, inputs).columns(piece * INPUTS, count).t();
            T::product(d_weight, &left, &View::new(dy, rows, outputs), true);
        });
}

/// `db += sum over rows of dy`.
pub fn backward_bias<T: Scalar>(dy: &[T], d_bias: &mut [T]) {
    let outputs = d_bias.len();
    let partial: Vec<Vec<T>> = dy
        .par_chunks(ROWS * outputs)
        .map(|dy| {
            let mut sum = vec![T::ZERO; outputs];
            for row in dy.chunks_exact(outputs) {
                add(&mut sum, row);
            }
            sum
        })
        .collect();
    for sum in &partial {
        add(d_bias, sum);
    }
}

/// `dy = 0` where the activation was cut to 0.
pub fn backward_relu<T: Scalar>(y: &[T], dy: &mut [T]) {
    dy.par_chunks_mut(ROWS * 64)
        .zip(y.par_chunks(ROWS * 64))
        .for_each(|(dy, y)| {
            for (d, &y) in dy.iter_mut().zip(y) {
                *d = if y > T::ZERO { *d } else { T::ZERO };
            }
        });
}

/// `sum += x`.
#[inline(always)]
pub fn add<T: Scalar>(sum: &mut [T], x: &[T]) {
    for (s, &x) in sum.iter_mut().zip(x) {
        *s += x;
    }
}

/// [`add`] of whole tensors, in parallel.
pub fn add_all<T: Scalar>(sum: &mut [T], x: &[T]) {
    sum.par_chunks_mut(ROWS * 64)
        .zip(x.par_chunks(ROWS * 64))
        .for_each(|(sum, x)| add(sum, x));
}
