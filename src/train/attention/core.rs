//! Softmax attention of one layer over memory and segment, forward and backward, with or without relative position.
//!
//! `score(i, j) = ((Q_i + v) . K_j + Q_i . R_d + S_d) / sqrt(dk)`, with d = j - M - i the distance of key j from query i
//! (0 or below: the causal mask hides the rest), R, S and v learned per head (Dai et al. 2019, with a free table in
//! place of their sinusoids). A task is one head of one stream and works through blocks of query rows, so that scores,
//! shift, mask, softmax and both products happen in cache. The shift never exists as a tensor: the table is laid out by
//! falling distance, and a row of Q R is added to a row of Q K at an offset. Of each, only the columns that some row of
//! the block sees are computed.
//!
//! [`Keep::Weights`] stores the attention weights `[T, N]` of every task for the backward pass, as autograd does.
//! [`Keep::Statistics`] stores maximum and sum of every row instead and computes the weights again (Dao et al. 2022):
//! memory linear in the segment. Both give the same bits.

use super::scratch::{BLOCK, LINE, Scratch, transpose, transpose_back};
use crate::train::block_product::{Strides, block_product};
use crate::train::dropout::Dropout;
use crate::train::scalar::Scalar;

/// Sizes of one call: T queries and N = M + T keys in each of B streams and H heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// B.
    pub batch: usize,
    /// H.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// M, keys before the segment.
    pub memory: usize,
    /// T.
    pub segment: usize,
}

impl Shape {
    /// N = M + T.
    pub fn keys(&self) -> usize {
        self.memory + self.segment
    }

    /// One per head and stream; head h of stream b is task h B + b.
    pub fn tasks(&self) -> usize {
        self.batch * self.heads
    }

    /// Elements of a task's queries.
    pub fn query_len(&self) -> usize {
        self.segment * self.head_dim
    }

    /// Elements of a task's keys or values.
    pub fn key_len(&self) -> usize {
        self.keys() * self.head_dim
    }

    /// Distance of rows of N elements in scratch.
    pub fn stride(&self) -> usize {
        self.keys().next_multiple_of(LINE) + LINE
    }
}

/// What the backward pass of attention finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All attention weights.
    Weights,
    /// Two numbers per row.
    Statistics,
    /// Nothing: evaluation.
    Nothing,
}

/// The learned relative parameters of one head in the order of the kernels: place u stands for distance u - (N - 1).
#[derive(Debug, Clone, Copy)]
pub struct Relative<'a, T> {
    /// R, `[N, dk]`.
    pub table: &'a [T],
    /// R transposed, `[dk, stride]`.
    pub table_t: &'a [T],
    /// S, `[N]`.
    pub bias: &'a [T],
    /// v, `[dk]`.
    pub query_bias: &'a [T],
}

/// One task's operands.
#[derive(Debug, Clone, Copy)]
pub struct Operands<'a, T> {
    /// `[T, dk]`.
    pub query: &'a [T],
    /// `[N, dk]`.
    pub key: &'a [T],
    /// `[N, dk]`.
    pub value: &'a [T],
    /// `None` for plain scaled dot products.
    pub relative: Option<Relative<'a, T>>,
    /// On the attention weights.
    pub dropout: &'a Dropout,
    /// Number of the task, for the dropout mask.
    pub task: usize,
}

/// Gradients of one task.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// `[T, dk]`, set.
    pub query: &'a mut [T],
    /// `[N, dk]`, set.
    pub key: &'a mut [T],
    /// `[N, dk]`, set.
    pub value: &'a mut [T],
}

/// Gradients of the relative parameters of one head, summed over its streams.
#[derive(Debug, Clone)]
pub struct RelativeGradients<T> {
    /// Of R transposed, `[dk, stride]`.
    pub table_t: Vec<T>,
    /// Of S, `[N]`.
    pub bias: Vec<T>,
    /// Of v, `[dk]`.
    pub query_bias: Vec<T>,
}

impl<T: Scalar> RelativeGradients<T> {
    /// Zeros.
    pub fn zeros(shape: &Shape) -> Self {
        Self {
            table_t: vec![T::ZERO; shape.head_dim * shape.stride()],
            bias: vec![T::ZERO; shape.keys()],
            query_bias: vec![T::ZERO; shape.head_dim],
        }
    }
}

/// Largest element.
#[inline(always)]
fn maximum<T: Scalar>(x: &[T]) -> T {
    let mut lanes = [T::LOWEST; LINE];
    let (chunks, tail) = x.as_chunks::<LINE>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    let larger = |a: T, &b: &T| if b > a { b } else { a };
    lanes.iter().chain(tail).fold(T::LOWEST, larger)
}

/// Replaces x by e^(x - max) and returns the sum.
#[inline(always)]
fn exponentials<T: Scalar>(x: &mut [T], max: T) -> T {
    let mut lanes = [T::ZERO; LINE];
    let (chunks, tail) = x.as_chunks_mut::<LINE>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = (*value - max).exp();
            *lane += *value;
        }
    }
    let mut sum = lanes.iter().copied().sum::<T>();
    for value in tail {
        *value = (*value - max).exp();
        sum += *value;
    }
    sum
}

/// A block of query rows: rows `first..first + rows`, which see at most `columns` keys.
#[derive(Clone, Copy)]
struct Rows {
    first: usize,
    count: usize,
    columns: usize,
    /// Keys that the first row sees; each further row sees one more.
    visible: usize,
}

fn blocks(shape: &Shape) -> impl Iterator<Item = Rows> + use<> {
    let (memory, segment) = (shape.memory, shape.segment);
    (0..segment).step_by(BLOCK).map(move |first| {
        let rows = BLOCK.min(segment - first);
        Rows {
            first,
            count: rows,
            columns: memory + first + rows,
            visible: memory + first + 1,
        }
    })
}

/// The scaled queries of a block into `scratch.query` and, with their bias v, into `scratch.positioned`.
#[inline(always)]
fn block_queries<T: Scalar>(shape: &Shape, block: Rows, operands: &Operands<'_, T>, scratch: &mut Scratch<T>) {
    let d = shape.head_dim;
    let scale = T::ONE / T::of(d as f64).sqrt();
    let queries = &operands.query[block.first * d..][..block.count * d];
    for (scaled, &q) in scratch.query.iter_mut().zip(queries) {
        *scaled = q * scale;
    }
    if let Some(relative) = &operands.relative {
        let rows = scratch.positioned.chunks_exact_mut(d).zip(queries.chunks_exact(d));
        for (out, row) in rows {
            for ((out, &q), &v) in out.iter_mut().zip(row).zip(relative.query_bias) {
                *out = (q + v) * scale;
            }
        }
    } else {
        scratch.positioned[..queries.len()].copy_from_slice(&scratch.query[..queries.len()]);
    }
}

/// The scaled, shifted scores of a block into `scratch.scores`; columns that a row does not see are unspecified.
/// Leaves the queries as [`block_queries`] does.
#[inline(always)]
fn block_scores<T: Scalar>(shape: &Shape, block: Rows, operands: &Operands<'_, T>, scratch: &mut Scratch<T>) {
    let (d, stride) = (shape.head_dim, shape.stride());
    let scale = T::ONE / T::of(d as f64).sqrt();
    block_queries(shape, block, operands, scratch);
    let strides = Strides {
        left: d,
        right: stride,
        out: stride,
    };
    let size = (block.count, d, block.columns);
    block_product::<T, false>(
        scratch.scores.get(),
        &scratch.positioned,
        scratch.key_t.get(),
        size,
        strides,
    );
    let Some(relative) = &operands.relative else { return };
    // The smallest place that the block needs belongs to its last row and the oldest key.
    let start = shape.segment - block.first - block.count;
    let places = &relative.table_t[start..];
    block_product::<T, false>(scratch.other.get(), &scratch.query, places, size, strides);
    let (scores, shifted) = (scratch.scores.get(), scratch.other.get());
    for r in 0..block.count {
        let (visible, offset) = (block.visible + r, block.count - 1 - r);
        let row = &mut scores[r * stride..][..visible];
        let positions = &shifted[r * stride + offset..][..visible];
        let bias = &relative.bias[start + offset..][..visible];
        for ((score, &position), &bias) in row.iter_mut().zip(positions).zip(bias) {
            *score += bias.fused(scale, position);
        }
    }
}

/// Attention of one task: `out` `[T, dk]`, `statistics` `[T, 2]` (maximum, 1 / sum), `weights` `[T, N]` if kept.
#[inline(always)]
pub fn forward<T: Scalar>(
    shape: &Shape,
    operands: &Operands<'_, T>,
    out: &mut [T],
    mut statistics: Option<&mut [T]>,
    mut weights: Option<&mut [T]>,
    scratch: &mut Scratch<T>,
) {
    let (d, stride, keys) = (shape.head_dim, shape.stride(), shape.keys());
    transpose(operands.key, d, stride, scratch.key_t.get());
    for block in blocks(shape) {
        block_scores(shape, block, operands, scratch);
        let scores = scratch.scores.get();
        for r in 0..block.count {
            let row = &mut scores[r * stride..][..block.columns];
            let (seen, hidden) = row.split_at_mut(block.visible + r);
            let max = maximum(seen);
            let inverse = T::ONE / exponentials(seen, max);
            for p in seen.iter_mut() {
                *p *= inverse;
            }
            hidden.fill(T::ZERO);
            let i = block.first + r;
            if let Some(statistics) = &mut statistics {
                statistics[2 * i..2 * i + 2].copy_from_slice(&[max, inverse]);
            }
            if let Some(weights) = &mut weights {
                weights[i * keys..][..block.columns].copy_from_slice(row);
            }
            if operands.dropout.is_active() {
                operands.dropout.apply(operands.task * shape.segment + i, 0, row);
            }
        }
        let size = (block.count, block.columns, d);
        let strides = Strides {
            left: stride,
            right: d,
            out: d,
        };
        block_product::<T, false>(
            &mut out[block.first * d..],
            scratch.scores.get(),
            operands.value,
            size,
            strides,
        );
    }
}

/// What [`forward`] left for [`backward`].
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a, T> {
    /// Its result, `[T, dk]`.
    pub out: &'a [T],
    /// `[T, 2]`.
    pub statistics: &'a [T],
    /// `[T, N]`, or `None` to compute them again.
    pub weights: Option<&'a [T]>,
}

/// Gradients of one task from that of its result, `[T, dk]`.
#[expect(
    clippy::too_many_lines,
    reason = "one pass over a block's scores while they are in cache"
)]
#[inline(always)]
pub fn backward<T: Scalar>(
    shape: &Shape,
    operands: &Operands<'_, T>,
    kept: &Kept<'_, T>,
    gradient: &[T],
    gradients: &mut Gradients<'_, T>,
    mut relative_gradients: Option<&mut RelativeGradients<T>>,
    scratch: &mut Scratch<T>,
) {
    let (d, stride) = (shape.head_dim, shape.stride());
    let scale = T::ONE / T::of(d as f64).sqrt();
    transpose(operands.key, d, stride, scratch.key_t.get());
    transpose(operands.value, d, stride, scratch.value_t.get());
    scratch.key_sum.get().fill(T::ZERO);
    scratch.value_sum.get().fill(T::ZERO);
    let to_rows = Strides {
        left: stride,
        right: d,
        out: d,
    };
    let to_keys = Strides {
        left: BLOCK,
        right: stride,
        out: stride,
    };
    for block in blocks(shape) {
        let (first, rows, columns) = (block.first, block.count, block.columns);
        let d_out = &gradient[first * d..][..rows * d];
        block_weights(shape, block, operands, kept, scratch);
        // dP = dO V^T.
        let size = (rows, d, columns);
        let strides = Strides {
            left: d,
            right: stride,
            out: stride,
        };
        block_product::<T, false>(scratch.other.get(), d_out, scratch.value_t.get(), size, strides);
        transpose(d_out, d, BLOCK, &mut scratch.transposed);
        let by_keys = (d, rows, columns);
        if operands.dropout.is_active() {
            let (weights, masked, other) = (scratch.scores.get(), scratch.gradient.get(), scratch.other.get());
            for r in 0..rows {
                let part = operands.task * shape.segment + first + r;
                let at = r * stride..r * stride + columns;
                masked[at.clone()].copy_from_slice(&weights[at.clone()]);
                operands.dropout.apply(part, 0, &mut masked[at.clone()]);
                operands.dropout.apply(part, 0, &mut other[at]);
            }
            block_product::<T, true>(scratch.value_sum.get(), &scratch.transposed, masked, by_keys, to_keys);
        } else {
            let weights = scratch.scores.get();
            block_product::<T, true>(scratch.value_sum.get(), &scratch.transposed, weights, by_keys, to_keys);
        }
        // dS = P (dP - dO . O), the gradient of softmax.
        let (scores, other) = (scratch.scores.get(), scratch.other.get());
        for r in 0..rows {
            let at = (first + r) * d;
            let products = gradient[at..at + d].iter().zip(&kept.out[at..at + d]);
            let total = products.map(|(&g, &o)| g * o).sum::<T>();
            let row = &mut scores[r * stride..][..columns];
            for (p, &g) in row.iter_mut().zip(&other[r * stride..][..columns]) {
                *p *= g - total;
            }
        }
        transpose(&scratch.positioned[..rows * d], d, BLOCK, &mut scratch.transposed);
        block_product::<T, true>(scratch.key_sum.get(), &scratch.transposed, scores, by_keys, to_keys);
        let size = (rows, columns, d);
        block_product::<T, false>(&mut scratch.partial, scores, operands.key, size, to_rows);
        let d_query = &mut gradients.query[first * d..][..rows * d];
        for (out, &x) in d_query.iter_mut().zip(&scratch.partial) {
            *out = x * scale;
        }
        let (Some(relative), Some(sums)) = (&operands.relative, &mut relative_gradients) else {
            continue;
        };
        for row in d_query.chunks_exact(d) {
            for (sum, &x) in sums.query_bias.iter_mut().zip(row) {
                *sum += x;
            }
        }
        // Back through the shift: column c of the block is place start + c of the table.
        let start = shape.segment - first - rows;
        let sheared = scratch.gradient.get();
        for r in 0..rows {
            let (visible, offset) = (block.visible + r, rows - 1 - r);
            let row = &mut sheared[r * stride..][..columns];
            row[..offset].fill(T::ZERO);
            row[offset..].copy_from_slice(&scores[r * stride..][..visible]);
            for (sum, &x) in sums.bias[start..start + columns].iter_mut().zip(&*row) {
                *sum = x.fused(scale, *sum);
            }
        }
        transpose(&scratch.query[..rows * d], d, BLOCK, &mut scratch.transposed);
        block_product::<T, true>(
            &mut sums.table_t[start..],
            &scratch.transposed,
            sheared,
            by_keys,
            to_keys,
        );
        block_product::<T, false>(
            &mut scratch.partial,
            sheared,
            &relative.table[start * d..],
            size,
            to_rows,
        );
        for (out, &x) in d_query.iter_mut().zip(&scratch.partial) {
            *out = x.fused(scale, *out);
        }
    }
    transpose_back(scratch.key_sum.get(), d, stride, gradients.key);
    transpose_back(scratch.value_sum.get(), d, stride, gradients.value);
}

/// The weights of a block into `scratch.scores`, read or computed again, 0 where a row does not see; and the scaled
/// queries as [`block_scores`] leaves them.
#[inline(always)]
fn block_weights<T: Scalar>(
    shape: &Shape,
    block: Rows,
    operands: &Operands<'_, T>,
    kept: &Kept<'_, T>,
    scratch: &mut Scratch<T>,
) {
    let (stride, keys) = (shape.stride(), shape.keys());
    if let Some(weights) = kept.weights {
        block_queries(shape, block, operands, scratch);
        let scores = scratch.scores.get();
        for r in 0..block.count {
            let row = &weights[(block.first + r) * keys..][..block.columns];
            scores[r * stride..][..block.columns].copy_from_slice(row);
        }
        return;
    }
    block_scores(shape, block, operands, scratch);
    let scores = scratch.scores.get();
    for r in 0..block.count {
        let row = &mut scores[r * stride..][..block.columns];
        let (seen, hidden) = row.split_at_mut(block.visible + r);
        let (max, inverse) = (
            kept.statistics[2 * (block.first + r)],
            kept.statistics[2 * (block.first + r) + 1],
        );
        for p in seen {
            *p = (*p - max).exp() * inverse;
        }
        hidden.fill(T::ZERO);
    }
}
