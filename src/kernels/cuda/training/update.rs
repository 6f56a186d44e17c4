//! Launches of `train_rows.cu` over all parameters: totals of partial sums, the norm of the gradient, the optimiser.

use super::rows::{blocks, elements};
use super::{Span, Training};
use crate::kernels::cuda::driver::{Argument, Memory};
use crate::train::adam::Adam;
use std::ops::Range;

/// Columns of a job of [`Training::reduce`].
const JOB_COLUMNS: usize = 32;
/// Elements of a piece of the optimiser.
const PIECE: usize = 4096;
/// Bytes of the structure `Job`.
const JOB_BYTES: usize = 48;

/// One tensor's partial sums, and where their total goes.
#[derive(Clone, Copy)]
pub struct Total<'a> {
    /// f32 `[chunks, chunk_stride]`, of which the first `folds * columns` of a chunk count.
    pub from: Span<'a>,
    /// The total, f32.
    pub to: Span<'a>,
    /// Chunks.
    pub chunks: usize,
    /// Distance of chunks, in elements.
    pub chunk_stride: usize,
    /// Elements of the total.
    pub columns: usize,
    /// How many runs of columns of a chunk are added.
    pub folds: usize,
    /// Distance of the elements of the total.
    pub to_stride: usize,
    /// Whether what is there is kept and added to.
    pub accumulate: bool,
}

/// A table of totals for [`Training::reduce`].
pub struct Jobs {
    table: Memory,
    count: usize,
}

/// Ranges of the flat buffers that the optimiser visits.
pub struct Pieces {
    table: Memory,
    squares: Memory,
    count: usize,
    /// Elements of a flat buffer up to the end of the last piece.
    reach: usize,
}

impl Training {
    /// The table of `totals` on the device; empty if one of them is shorter than it says, which fails the device.
    pub fn jobs(&self, totals: &[Total<'_>]) -> Jobs {
        let mut bytes = Vec::new();
        let mut count = 0;
        let inside = |total: &&Total<'_>| {
            let last = (total.chunks.max(1) - 1) * total.chunk_stride;
            let needs = [
                (total.from, 4 * (last + total.folds * total.columns)),
                (total.to, 4 * (total.columns.max(1) - 1) * total.to_stride + 4),
            ];
            self.has(&needs, "a total")
        };
        for total in totals.iter().take_while(inside) {
            for first in (0..total.columns).step_by(JOB_COLUMNS) {
                let columns = JOB_COLUMNS.min(total.columns - first);
                for long in [
                    total.from.address() + 4 * first as u64,
                    total.to.address() + 4 * (first * total.to_stride) as u64,
                    total.chunk_stride as u64,
                ] {
                    bytes.extend_from_slice(&long.to_ne_bytes());
                }
                for int in [
                    total.chunks,
                    columns,
                    total.folds,
                    total.columns,
                    total.to_stride,
                    usize::from(total.accumulate),
                ] {
                    bytes.extend_from_slice(&(int as u32).to_ne_bytes());
                }
                count += 1;
            }
        }
        debug_assert_eq!(bytes.len(), count * JOB_BYTES);
        Jobs {
            table: self.gpu.upload_new(&bytes),
            count,
        }
    }

    /// Adds all chunks of all tensors of a table, in order.
    pub fn reduce(&self, jobs: &Jobs) {
        let arguments = [Argument::from(&jobs.table)];
        // SAFETY: the lengths were checked when the table was made; its maker vouches that the memory is still there.
        unsafe {
            self.launch(
                &self.rows.reduce,
                blocks(jobs.count),
                &arguments,
                &[((&jobs.table).into(), jobs.count * JOB_BYTES)],
            );
        }
    }

    /// Cuts ranges into pieces.
    pub fn pieces(&self, ranges: &[Range<usize>]) -> Pieces {
        let mut bytes = Vec::new();
        for range in ranges {
            for start in range.clone().step_by(PIECE) {
                for word in [start, PIECE.min(range.end - start)] {
                    bytes.extend_from_slice(&(word as u64).to_ne_bytes());
                }
            }
        }
        let count = bytes.len() / 16;
        Pieces {
            table: self.gpu.upload_new(&bytes),
            squares: self.gpu.allocate(8 * count),
            count,
            reach: ranges.iter().map(|range| range.end).max().unwrap_or(0),
        }
    }

    /// The sum of squares of all pieces of f32 `gradients`, as f64 to `out`.
    pub fn sum_squares(&self, gradients: Span<'_>, pieces: &Pieces, out: Span<'_>) {
        let arguments = [gradients.argument(), (&pieces.table).into(), (&pieces.squares).into()];
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(
                &self.rows.squares,
                blocks(pieces.count),
                &arguments,
                &[(gradients, 4 * pieces.reach)],
            );
            self.launch(
                &self.rows.sum_squares,
                blocks(1),
                &[(&pieces.squares).into(), out.argument(), pieces.count.into()],
                &[(out, 8)],
            );
        }
    }

    /// Adam's step `t` on the pieces of the flat f32 buffers; `copy` gets the stored form of the parameters.
    pub fn adam(
        &self,
        [data, gradients, first, second]: [Span<'_>; 4],
        copy: Option<Span<'_>>,
        pieces: &Pieces,
        adam: &Adam,
        (t, rate, factor): (u64, f64, f64),
    ) {
        let t = t.min(1 << 30) as i32;
        let (bias1, bias2) = (1.0 - adam.beta1.powi(t), 1.0 - adam.beta2.powi(t));
        let numbers = [
            factor,
            rate / bias1,
            1.0 / bias2.sqrt(),
            adam.beta1,
            1.0 - adam.beta1,
            adam.beta2,
            1.0 - adam.beta2,
            adam.epsilon,
        ];
        let mut arguments = vec![
            data.argument(),
            gradients.argument(),
            first.argument(),
            second.argument(),
            copy.map_or(Argument::NULL, |copy| copy.argument()),
            (&pieces.table).into(),
        ];
        arguments.extend(numbers.map(|x| Argument::F32(x as f32)));
        let mut needs = [data, gradients, first, second]
            .map(|buffer| (buffer, 4 * pieces.reach))
            .to_vec();
        needs.extend(copy.map(|copy| (copy, self.value_bytes() * pieces.reach)));
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(&self.rows.adam, blocks(pieces.count), &arguments, &needs);
        }
    }

    /// The stored form of `count` f32.
    pub fn copy(&self, from: Span<'_>, to: Span<'_>, count: usize) {
        let arguments = [from.argument(), to.argument(), Argument::I64(count as i64)];
        let needs = [(from, 4 * count), (to, self.value_bytes() * count)];
        // SAFETY: `count` elements of each.
        unsafe {
            self.launch(&self.rows.copy, elements(count), &arguments, &needs);
        }
    }
}
