//! Between rows `[time, stream, d]` and heads `[head, stream, time, dk]`, with the depth-wise causal convolution along
//! time and the rotary embedding on the way.
//!
//! The convolution of width k is `y_t[c] = bias[c] + sum over j of w[c, j] x_(t - k + 1 + j)[c]`, zeros before
//! the first row: shifted multiply-adds over one head's rows while they are in cache. Rows before the first wanted
//! output (`skip`) only feed it.

use crate::train::linear::add;
use crate::train::scalar::Scalar;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Sizes of a tensor between rows and heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// B.
    pub batch: usize,
    /// H.
    pub heads: usize,
    /// dk.
    pub head_dim: usize,
    /// Rows in time that only feed the convolution.
    pub skip: usize,
    /// Rows in time that come out.
    pub len: usize,
}

/// Weights of a convolution, `[dk or H dk, kernel]` and `[dk or H dk]`.
#[derive(Debug, Clone, Copy)]
pub struct Kernel<'a, T> {
    /// Width along time.
    pub width: usize,
    /// By channel, oldest row first.
    pub weight: &'a [T],
    /// By channel.
    pub bias: &'a [T],
}

impl<T: Scalar> Kernel<'_, T> {
    /// The weights of a head as `[kernel, dk]`, and its bias.
    fn of_head(&self, head: usize, head_dim: usize) -> (Vec<T>, &[T]) {
        let shared = self.bias.len() == head_dim;
        let first = if shared { 0 } else { head * head_dim };
        let mut by_shift = vec![T::ZERO; self.width * head_dim];
        for c in 0..head_dim {
            for j in 0..self.width {
                by_shift[j * head_dim + c] = self.weight[(first + c) * self.width + j];
            }
        }
        (by_shift, &self.bias[first..first + head_dim])
    }
}

/// Angles of the rotary embedding: element pair (c, c + dk/2) turns by position * 10000^(-2c/dk).
#[derive(Debug, Clone)]
pub struct Rotary<T> {
    half: usize,
    /// `[positions, dk/2]`.
    pub(in crate::train) cos: Vec<T>,
    /// The same of sines.
    pub(in crate::train) sin: Vec<T>,
}

impl<T: Scalar> Rotary<T> {
    /// Angles of `positions` places.
    pub fn new(positions: usize, head_dim: usize) -> Self {
        let half = head_dim / 2;
        let angle = |at: usize| {
            let (position, c) = ((at / half) as f64, (at % half) as f64);
            position * 10_000f64.powf(-2.0 * c / head_dim as f64)
        };
        Self {
            half,
            cos: (0..positions * half).map(|at| T::of(angle(at).cos())).collect(),
            sin: (0..positions * half).map(|at| T::of(angle(at).sin())).collect(),
        }
    }

    /// Turns the row at `position`, back if `backward` (the transpose of a rotation).
    #[inline(always)]
    fn turn(&self, position: usize, row: &mut [T], backward: bool) {
        let at = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        let (low, high) = row.split_at_mut(self.half);
        for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let s = if backward { -s } else { s };
            (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
        }
    }
}

/// What happens to one projection between rows and heads.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a, T> {
    /// Sizes.
    pub split: Split,
    /// The convolution, if it is convolved.
    pub kernel: Option<Kernel<'a, T>>,
    /// Angles, and the position of the first row that comes out.
    pub rotary: Option<(&'a Rotary<T>, usize)>,
}

impl Split {
    /// Tasks: heads times streams.
    pub fn tasks(&self) -> usize {
        self.heads * self.batch
    }

    /// Tasks of one piece of parallel work, all of the same head: a fixed share, so that sums over pieces do not depend
    /// on the number of threads.
    pub fn unit(&self) -> usize {
        let most = self.batch.div_ceil(4);
        (1..=most).rev().find(|g| self.batch.is_multiple_of(*g)).unwrap_or(1)
    }

    /// Copies one task's column of rows into `[skip + len, dk]`.
    #[inline(always)]
    fn gather<T: Scalar>(&self, task: usize, rows: &[T], out: &mut [T]) {
        let (head, stream) = (task / self.batch, task % self.batch);
        let d = self.heads * self.head_dim;
        for (t, out) in out.chunks_exact_mut(self.head_dim).enumerate() {
            let at = (t * self.batch + stream) * d + head * self.head_dim;
            out.copy_from_slice(&rows[at..at + self.head_dim]);
        }
    }
}

impl<T: Scalar> Path<'_, T> {
    /// Rows `[skip + len, B, d]` to heads `[H, B, len, dk]`.
    pub fn forward(&self, rows: &[T], heads: &mut [T]) {
        let split = &self.split;
        let (unit, task_len) = (split.unit(), split.len * split.head_dim);
        let arch = Arch::new();
        heads
            .par_chunks_mut(unit * task_len)
            .enumerate()
            .for_each(|(number, out)| {
                arch.dispatch(Forward {
                    path: self,
                    first: number * unit,
                    rows,
                    out,
                });
            });
    }

    /// Gradients of heads (destroyed) to gradients of rows as heads, `[H, B, skip + len, dk]`; adds to those of the
    /// kernel. `rows` as in [`Path::forward`], read only with a convolution.
    pub fn backward(&self, rows: &[T], d_heads: &mut [T], d_pre: &mut [T], d_kernel: Option<(&mut [T], &mut [T])>) {
        let split = &self.split;
        let (unit, task_len) = (split.unit(), split.len * split.head_dim);
        let pre_len = (split.skip + split.len) * split.head_dim;
        let arch = Arch::new();
        let pieces = d_heads
            .par_chunks_mut(unit * task_len)
            .zip(d_pre.par_chunks_mut(unit * pre_len));
        let sums: Vec<Option<KernelSum<T>>> = pieces
            .enumerate()
            .map(|(number, (d_heads, d_pre))| {
                arch.dispatch(Backward {
                    path: self,
                    first: number * unit,
                    rows,
                    d_heads,
                    d_pre,
                })
            })
            .collect();
        let (Some((d_weight, d_bias)), Some(kernel)) = (d_kernel, &self.kernel) else {
            return;
        };
        let d = split.head_dim;
        for (number, sum) in sums.iter().enumerate() {
            let Some(sum) = sum else { continue };
            let head = number * unit / split.batch;
            let first = if kernel.bias.len() == d { 0 } else { head * d };
            add(&mut d_bias[first..first + d], &sum.bias);
            for c in 0..d {
                for j in 0..kernel.width {
                    d_weight[(first + c) * kernel.width + j] += sum.weight[j * d + c];
                }
            }
        }
    }
}

/// Heads `[H, B, len, dk]` to rows `[len, B, d]`.
pub fn merge<T: Scalar>(split: &Split, len: usize, heads: &[T], rows: &mut [T]) {
    let (batch, dk) = (split.batch, split.head_dim);
    let d = split.heads * dk;
    rows.par_chunks_mut(batch * d).enumerate().for_each(|(t, rows)| {
        for (stream, row) in rows.chunks_exact_mut(d).enumerate() {
            for (head, out) in row.chunks_exact_mut(dk).enumerate() {
                let at = ((head * batch + stream) * len + t) * dk;
                out.copy_from_slice(&heads[at..at + dk]);
            }
        }
    });
}

/// Some tasks forward. (A struct and not a closure: closures of this size are not inlined into the dispatched code.)
struct Forward<'a, 'b, T> {
    path: &'a Path<'b, T>,
    first: usize,
    rows: &'a [T],
    out: &'a mut [T],
}

impl<T: Scalar> WithSimd for Forward<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Path { split, kernel, rotary } = self.path;
        let d = split.head_dim;
        let head = self.first / split.batch;
        let kernel = kernel.as_ref().map(|kernel| kernel.of_head(head, d));
        let mut before = vec![
            T::ZERO;
            if kernel.is_some() {
                (split.skip + split.len) * d
            } else {
                0
            }
        ];
        for (at, out) in self.out.chunks_exact_mut(split.len * d).enumerate() {
            let task = self.first + at;
            if let Some((weight, bias)) = &kernel {
                split.gather(task, self.rows, &mut before);
                convolve(&before, weight, bias, split.skip, out);
            } else {
                split.gather(task, self.rows, out);
            }
            if let Some((rotary, first)) = rotary {
                for (t, row) in out.chunks_exact_mut(d).enumerate() {
                    rotary.turn(first + t, row, false);
                }
            }
        }
    }
}

/// Outputs from row `skip` on; `weight` `[kernel, dk]`.
#[inline(always)]
fn convolve<T: Scalar>(x: &[T], weight: &[T], bias: &[T], skip: usize, out: &mut [T]) {
    let d = bias.len();
    let width = weight.len() / d;
    for (t, y) in out.chunks_exact_mut(d).enumerate() {
        y.copy_from_slice(bias);
        for (j, weight) in weight.chunks_exact(d).enumerate() {
            // Row skip + t - (width - 1) + j, if there is one.
            let Some(row) = (skip + t + j + 1).checked_sub(width) else {
                continue;
            };
            for ((y, &w), &x) in y.iter_mut().zip(weight).zip(&x[row * d..(row + 1) * d]) {
                *y = w.fused(x, *y);
            }
        }
    }
}

/// Gradients of one head's kernel, `[kernel, dk]` and `[dk]`.
struct KernelSum<T> {
    weight: Vec<T>,
    bias: Vec<T>,
}

/// Some tasks backward.
struct Backward<'a, 'b, T> {
    path: &'a Path<'b, T>,
    first: usize,
    rows: &'a [T],
    d_heads: &'a mut [T],
    d_pre: &'a mut [T],
}

impl<T: Scalar> WithSimd for Backward<'_, '_, T> {
    type Output = Option<KernelSum<T>>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Option<KernelSum<T>> {
        let Path { split, kernel, rotary } = self.path;
        let d = split.head_dim;
        let head = self.first / split.batch;
        let kernel = kernel.as_ref().map(|kernel| kernel.of_head(head, d).0);
        let mut sum = kernel.as_ref().map(|weight| KernelSum {
            weight: vec![T::ZERO; weight.len()],
            bias: vec![T::ZERO; d],
        });
        let pre_len = (split.skip + split.len) * d;
        let mut before = vec![T::ZERO; if kernel.is_some() { pre_len } else { 0 }];
        let tasks = self
            .d_heads
            .chunks_exact_mut(split.len * d)
            .zip(self.d_pre.chunks_exact_mut(pre_len));
        for (at, (d_out, d_pre)) in tasks.enumerate() {
            if let Some((rotary, first)) = rotary {
                for (t, row) in d_out.chunks_exact_mut(d).enumerate() {
                    rotary.turn(first + t, row, true);
                }
            }
            let (Some(weight), Some(sum)) = (&kernel, &mut sum) else {
                d_pre.copy_from_slice(d_out);
                continue;
            };
            split.gather(self.first + at, self.rows, &mut before);
            convolve_backward(&before, weight, split.skip, d_out, d_pre, sum);
        }
        sum
    }
}

#[inline(always)]
fn convolve_backward<T: Scalar>(
    x: &[T],
    weight: &[T],
    skip: usize,
    d_out: &[T],
    d_x: &mut [T],
    sum: &mut KernelSum<T>,
) {
    let d = sum.bias.len();
    let width = weight.len() / d;
    d_x.fill(T::ZERO);
    for (t, dy) in d_out.chunks_exact(d).enumerate() {
        add(&mut sum.bias, dy);
        for j in 0..width {
            let Some(row) = (skip + t + j + 1).checked_sub(width) else {
                continue;
            };
            let (w, dw) = (&weight[j * d..(j + 1) * d], &mut sum.weight[j * d..(j + 1) * d]);
            let (x, dx) = (&x[row * d..(row + 1) * d], &mut d_x[row * d..(row + 1) * d]);
            let dy = &dy[..d];
            for c in 0..d {
                dx[c] = w[c].fused(dy[c], dx[c]);
                dw[c] = x[c].fused(dy[c], dw[c]);
            }
        }
    }
}
