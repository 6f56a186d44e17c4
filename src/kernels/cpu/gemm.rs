//! Matrix products: one register-blocked micro kernel over weights that are packed once, at load.
//!
//! A weight matrix `[out, in]` is stored as panels of [`PANEL`] outputs, each panel `[in, PANEL]`. The same bytes
//! serve a prefill chunk (14 x 32 accumulators in AVX-512 registers) and a single decode row (a stream of panels, no
//! horizontal sums), so nothing is packed per call and nothing is stored twice.

use super::aligned::Aligned;
use super::threads;
use crate::kernels::RowSource;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::cell::RefCell;

/// Outputs per panel: two AVX-512 registers.
pub const PANEL: usize = 32;
/// Rows of the widest micro kernel: with two registers of outputs each, 28 accumulators of the 32 AVX-512 registers.
const TALL: usize = 14;
/// The same for 16 registers (AVX2): 12 accumulators.
const LOW: usize = 6;
/// Rows that one task takes at most: a prefill chunk of 512 is two tasks, each with its rows of one pass (1 MiB) in L2.
const BLOCK_ROWS: usize = 19 * TALL;
/// Inputs per pass over all panels at most.
const DEPTH: usize = 1024;
/// Inputs per micro kernel call: 32 KiB of a panel, which stay in L1 while all rows of the block go by.
const SLICE: usize = 256;

/// A weight matrix `[rows (out), cols (in)]` in panels.
pub struct Packed {
    data: Aligned,
    rows: usize,
    cols: usize,
}

impl Packed {
    /// Packs the rows that `source` supplies, panels in parallel.
    pub fn new(rows: usize, cols: usize, source: &RowSource<'_>) -> Self {
        let mut data = Aligned::zeros(rows.div_ceil(PANEL) * PANEL * cols);
        data.par_chunks_mut(PANEL * cols).enumerate().for_each_init(
            || vec![0.0; PANEL * cols],
            |lanes, (p, panel)| {
                let present = PANEL.min(rows - p * PANEL);
                for (lane, row) in lanes.chunks_exact_mut(cols).take(present).enumerate() {
                    source(p * PANEL + lane, row);
                }
                // Written in order, read in 32 streams: the other way round every store would touch another line.
                for (k, line) in panel.chunks_exact_mut(PANEL).enumerate() {
                    for (lane, value) in line[..present].iter_mut().enumerate() {
                        *value = lanes[lane * cols + k];
                    }
                }
            },
        );
        Self { data, rows, cols }
    }

    /// Bytes of a packed matrix.
    pub fn bytes(rows: usize, cols: usize) -> usize {
        rows.div_ceil(PANEL) * PANEL * cols * 4
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Copies row `index` out (embedding lookup).
    pub fn copy_row(&self, index: usize, out: &mut [f32]) {
        let panel = &self.data[index / PANEL * PANEL * self.cols..][..PANEL * self.cols];
        for (o, lanes) in out.iter_mut().zip(panel.chunks_exact(PANEL)) {
            *o = lanes[index % PANEL];
        }
    }

    fn panel(&self, p: usize) -> &[f32] {
        &self.data[p * PANEL * self.cols..][..PANEL * self.cols]
    }
}

/// `MR` rows times `NV` registers of columns, rows interleaved:
/// `acc[r][v] = sum_k a[k][r] * b[k * ldb + offset + v * lanes ..]`.
#[inline(always)]
pub fn packed_kernel<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    a: &[[f32; MR]],
    b: &[f32],
    ldb: usize,
    offset: usize,
) -> [[S::f32s; NV]; MR] {
    let mut acc = [[simd.splat_f32s(0.0); NV]; MR];
    for (a, line) in a.iter().zip(b.chunks_exact(ldb)) {
        let (line, _) = S::as_simd_f32s(&line[offset..offset + NV * S::F32_LANES]);
        let mut b = [simd.splat_f32s(0.0); NV];
        b.copy_from_slice(&line[..NV]);
        for r in 0..MR {
            let x = simd.splat_f32s(a[r]);
            for v in 0..NV {
                acc[r][v] = simd.mul_add_f32s(x, b[v], acc[r][v]);
            }
        }
    }
    acc
}

/// [`packed_kernel`] with rows where they lie: `acc[r][v] = sum_k a[r][k] * b[..]`.
#[inline(always)]
pub fn strided_kernel<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    mut a: [&[f32]; MR],
    b: &[f32],
    ldb: usize,
    offset: usize,
) -> [[S::f32s; NV]; MR] {
    let depth = a[0].len();
    // One length for all slices, known to bound k, lets the compiler drop every bounds check of the loop.
    for row in &mut a {
        *row = &row[..depth];
    }
    let mut acc = [[simd.splat_f32s(0.0); NV]; MR];
    for (k, line) in (0..depth).zip(b.chunks_exact(ldb)) {
        let (line, _) = S::as_simd_f32s(&line[offset..offset + NV * S::F32_LANES]);
        let mut b = [simd.splat_f32s(0.0); NV];
        b.copy_from_slice(&line[..NV]);
        for r in 0..MR {
            let x = simd.splat_f32s(a[r][k]);
            for v in 0..NV {
                acc[r][v] = simd.mul_add_f32s(x, b[v], acc[r][v]);
            }
        }
    }
    acc
}

/// Up to `MR` rows starting at `first`; missing rows repeat the last one and their results are not used.
#[inline(always)]
pub fn row_slices<const MR: usize>(x: &[f32], stride: usize, first: usize, rows: usize, depth: usize) -> [&[f32]; MR] {
    let mut slices = [&x[..0]; MR];
    for (r, slice) in slices.iter_mut().enumerate() {
        *slice = &x[(first + r.min(rows - 1)) * stride..][..depth];
    }
    slices
}

/// Interleaves groups of `group` rows: `[rows, cols]` to `[ceil(rows / group), cols, group]`. Missing rows are zero.
pub fn interleave(x: &[f32], cols: usize, group: usize, out: &mut Aligned) {
    let rows = x.len() / cols;
    out.reset(rows.div_ceil(group) * group * cols);
    out.par_chunks_mut(group * cols)
        .zip(x.par_chunks(group * cols))
        .for_each(|(out, x)| {
            let present = x.len() / cols;
            for (r, row) in x.chunks_exact(cols).enumerate() {
                for (lines, &value) in out.chunks_exact_mut(group).zip(row) {
                    lines[r] = value;
                }
            }
            for lines in out.chunks_exact_mut(group) {
                lines[present..].fill(0.0);
            }
        });
}

thread_local! {
    /// Interleaved rows of the product in progress; kept, because a fresh one of this size costs page faults.
    static INTERLEAVED: RefCell<Aligned> = RefCell::default();
}

/// How many lanes the dispatched instruction set has.
struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

/// Rows that one micro kernel takes, for a product of `rows` rows on `lanes` lanes.
fn kernel_rows(rows: usize, lanes: usize) -> usize {
    match rows {
        0..=1 => 1,
        2..=4 => 4,
        _ if lanes >= 16 => TALL,
        _ => LOW,
    }
}

/// Reads one element of every cache line of the first `len` elements, so that they are in the cache when they are needed:
/// a prefetch without intrinsics.
#[inline(always)]
fn touch(x: &[f32], len: usize) -> f32 {
    x[..len.min(x.len())].chunks(16).map(|line| line[0]).sum()
}

/// One block of outputs: every row of `out` is a column range of the result.
struct Block<'a, 'b> {
    /// Interleaved rows `[groups, cols, MR]`; a single row is as it is.
    x: &'a [f32],
    w: &'a Packed,
    first_panel: usize,
    bias: Option<&'a [f32]>,
    accumulate: bool,
    out: &'a mut [&'b mut [f32]],
}

impl Block<'_, '_> {
    /// Adds (or sets) one tile of results. `first_pass` is true for the first slice of inputs.
    #[inline(always)]
    fn store<S: Simd, const MR: usize, const NV: usize>(
        &mut self,
        simd: S,
        acc: [[S::f32s; NV]; MR],
        first_row: usize,
        column: usize,
        first_pass: bool,
    ) {
        let width = NV * S::F32_LANES;
        let rows = MR.min(self.out.len() - first_row);
        let fresh = first_pass && !self.accumulate;
        for (row, acc) in self.out[first_row..first_row + rows].iter_mut().zip(&acc) {
            let target = &mut row[column..];
            let valid = width.min(target.len());
            let bias = self
                .bias
                .filter(|_| first_pass)
                .map(|b| &b[self.first_panel * PANEL + column..][..valid]);
            if valid == width {
                let (target, _) = S::as_mut_simd_f32s(&mut target[..width]);
                for v in 0..NV {
                    let mut value = acc[v];
                    if let Some(bias) = bias {
                        value = simd.add_f32s(value, S::as_simd_f32s(bias).0[v]);
                    }
                    target[v] = if fresh { value } else { simd.add_f32s(target[v], value) };
                }
            } else {
                let mut lanes = [0.0; PANEL];
                S::as_mut_simd_f32s(&mut lanes).0[..NV].copy_from_slice(acc);
                for (j, t) in target.iter_mut().enumerate() {
                    let value = lanes[j] + bias.map_or(0.0, |b| b[j]);
                    *t = if fresh { value } else { *t + value };
                }
            }
        }
    }

    /// Offsets of the kernel calls inside panel `p`: those that begin left of the last valid column.
    #[inline(always)]
    fn offsets(&self, p: usize, width: usize) -> impl Iterator<Item = usize> + use<> {
        let columns = self.out.first().map_or(0, |row| row.len());
        (0..PANEL.min(columns - p * PANEL)).step_by(width)
    }

    #[inline(always)]
    fn run<S: Simd, const MR: usize>(&mut self, simd: S) {
        let (w, cols) = (self.w, self.w.cols);
        let panels = self.out.first().map_or(0, |row| row.len()).div_ceil(PANEL);
        let groups = self.out.len().div_ceil(MR);
        let even = cols.div_ceil(cols.div_ceil(DEPTH));
        let mut touched = 0.0;
        for pass in (0..cols).step_by(even) {
            let pass_end = (pass + even).min(cols);
            for p in 0..panels {
                let at = (self.first_panel + p) * PANEL * cols;
                for k0 in (pass..pass_end).step_by(SLICE) {
                    let depth = SLICE.min(pass_end - k0);
                    let panel = &w.data[at + k0 * PANEL..][..depth * PANEL];
                    // Panels lie one after the other, so what follows is what comes next.
                    let next = w.data.get(at + (k0 + depth) * PANEL..).unwrap_or_default();
                    let share = (SLICE * PANEL).div_ceil(groups);
                    for (group, x) in self.x.chunks_exact(cols * MR).enumerate() {
                        touched += touch(next.get(group * share..).unwrap_or_default(), share);
                        let (a, _) = x[k0 * MR..(k0 + depth) * MR].as_chunks::<MR>();
                        for offset in self.offsets(p, 2 * S::F32_LANES) {
                            let acc = packed_kernel::<S, MR, 2>(simd, a, panel, PANEL, offset);
                            self.store(simd, acc, group * MR, p * PANEL + offset, k0 == 0);
                        }
                    }
                }
            }
        }
        // The loads are wanted for their effect on the cache; their sum must count as used.
        std::hint::black_box(touched);
    }

    /// One row: the inputs are split over four sets of accumulators, so that the chain of additions does not bound the
    /// stream of weights.
    #[inline(always)]
    fn run_single<S: Simd, const NV: usize>(&mut self, simd: S) {
        const CHAINS: usize = 4;
        let columns = self.out[0].len();
        for p in 0..columns.div_ceil(PANEL) {
            let panel = self.w.panel(self.first_panel + p);
            for offset in self.offsets(p, NV * S::F32_LANES) {
                let mut acc = [[simd.splat_f32s(0.0); NV]; CHAINS];
                let (xs, x_tail) = self.x.as_chunks::<CHAINS>();
                let (lines, tail) = panel.as_chunks::<PANEL>().0.split_at(xs.len() * CHAINS);
                for (x, lines) in xs.iter().zip(lines.chunks_exact(CHAINS)) {
                    for c in 0..CHAINS {
                        let (line, _) = S::as_simd_f32s(&lines[c][offset..offset + NV * S::F32_LANES]);
                        for v in 0..NV {
                            acc[c][v] = simd.mul_add_f32s(simd.splat_f32s(x[c]), line[v], acc[c][v]);
                        }
                    }
                }
                for (x, line) in x_tail.iter().zip(tail) {
                    let (line, _) = S::as_simd_f32s(&line[offset..offset + NV * S::F32_LANES]);
                    for v in 0..NV {
                        acc[0][v] = simd.mul_add_f32s(simd.splat_f32s(*x), line[v], acc[0][v]);
                    }
                }
                let mut sum = [simd.splat_f32s(0.0); NV];
                for v in 0..NV {
                    let (left, right) = (simd.add_f32s(acc[0][v], acc[1][v]), simd.add_f32s(acc[2][v], acc[3][v]));
                    sum[v] = simd.add_f32s(left, right);
                }
                self.store::<S, 1, NV>(simd, [sum], 0, p * PANEL + offset, true);
            }
        }
    }
}

/// A block with the number of rows per kernel; chosen before the rows are interleaved.
struct Sized<'a, 'b>(Block<'a, 'b>, usize);

impl WithSimd for Sized<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(mut block, kernel_rows) = self;
        match kernel_rows {
            1 => block.run_single::<S, 2>(simd),
            4 => block.run::<S, 4>(simd),
            TALL => block.run::<S, TALL>(simd),
            _ => block.run::<S, LOW>(simd),
        }
    }
}

/// `out = x w^T + bias` (or `out += ..`): x `[rows, in]`, out `[rows, out]`.
pub fn linear(x: &[f32], rows: usize, w: &Packed, bias: Option<&[f32]>, accumulate: bool, out: &mut [f32]) {
    let arch = Arch::new();
    let x = &x[..rows * w.cols];
    let kernel_rows = kernel_rows(rows, arch.dispatch(Lanes));
    // Few row blocks re-read the weights rarely; the columns are cut until every thread has several blocks.
    let row_blocks = rows.div_ceil(BLOCK_ROWS);
    let block_rows = rows.div_ceil(row_blocks).next_multiple_of(kernel_rows);
    let panels = w.rows.div_ceil(PANEL);
    let column_blocks = (threads() * 8).div_ceil(row_blocks).min(panels);
    let block_panels = panels.div_ceil(column_blocks);
    let per_row_block = panels.div_ceil(block_panels);
    let mut tiles: Vec<Vec<&mut [f32]>> = Vec::new();
    for block in out[..rows * w.rows].chunks_mut(block_rows * w.rows) {
        let first = tiles.len();
        tiles.resize_with(first + per_row_block, Vec::new);
        for row in block.chunks_exact_mut(w.rows) {
            for (tile, segment) in tiles[first..].iter_mut().zip(row.chunks_mut(block_panels * PANEL)) {
                tile.push(segment);
            }
        }
    }
    // Taken out while in use: a nested product on this thread would find an empty one, not a borrowed one.
    let mut scratch = INTERLEAVED.take();
    let x = if kernel_rows == 1 {
        x
    } else {
        interleave(x, w.cols, kernel_rows, &mut scratch);
        &scratch
    };
    tiles.par_iter_mut().enumerate().for_each(|(t, out)| {
        let first_row = t / per_row_block * block_rows;
        let rows = out.len().next_multiple_of(kernel_rows);
        let block = Block {
            x: &x[first_row * w.cols..][..rows * w.cols],
            w,
            first_panel: t % per_row_block * block_panels,
            bias,
            accumulate,
            out,
        };
        arch.dispatch(Sized(block, kernel_rows));
    });
    INTERLEAVED.set(scratch);
}
