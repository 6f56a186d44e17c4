//! Matrix products: one register-blocked micro kernel over weights that are packed once, at load.
//!
//! A weight matrix `[out, in]` is stored as panels of [`PANEL`] outputs, each panel `[in, PANEL]`. The same bytes
//! serve a prefill chunk (14 x 32 accumulators in AVX-512 registers) and a single decode row (a stream of panels, no
//! horizontal sums), so nothing is packed per call and nothing is stored twice.

use super::threads;
use crate::kernels::RowSource;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Outputs per panel: two AVX-512 registers.
pub const PANEL: usize = 32;
/// Rows of the widest micro kernel: with two registers of outputs each, 28 accumulators of the 32 AVX-512 registers.
const TALL: usize = 14;
/// Inputs per pass over the accumulators; a panel slice of 512 inputs is 64 KiB, read from L2 while the rows stay in L1.
const DEPTH: usize = 512;

/// A weight matrix `[rows (out), cols (in)]` in panels.
pub struct Packed {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Packed {
    /// Packs the rows that `source` supplies, panels in parallel.
    pub fn new(rows: usize, cols: usize, source: &RowSource<'_>) -> Self {
        let mut data = vec![0.0; rows.div_ceil(PANEL) * PANEL * cols];
        data.par_chunks_mut(PANEL * cols).enumerate().for_each_init(
            || vec![0.0; cols],
            |row, (p, panel)| {
                for lane in 0..PANEL.min(rows - p * PANEL) {
                    source(p * PANEL + lane, row);
                    for (k, &value) in row.iter().enumerate() {
                        panel[k * PANEL + lane] = value;
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

/// `MR` rows times `NV` registers of columns: `acc[r][v] = sum_k a[r][k] * b[k * ldb + offset + v * lanes ..]`.
#[inline(always)]
pub fn micro_kernel<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    a: [&[f32]; MR],
    b: &[f32],
    ldb: usize,
    offset: usize,
) -> [[S::f32s; NV]; MR] {
    let depth = a[0].len();
    // One length for all slices lets the compiler drop every bounds check of the loop.
    let a = a.map(|row| &row[..depth]);
    let mut acc = [[simd.splat_f32s(0.0); NV]; MR];
    for (k, line) in b.chunks_exact(ldb).take(depth).enumerate() {
        let (line, _) = S::as_simd_f32s(&line[offset..offset + NV * S::F32_LANES]);
        let line: [S::f32s; NV] = std::array::from_fn(|v| line[v]);
        for r in 0..MR {
            let x = simd.splat_f32s(a[r][k]);
            for v in 0..NV {
                acc[r][v] = simd.mul_add_f32s(x, line[v], acc[r][v]);
            }
        }
    }
    acc
}

/// Up to `MR` rows starting at `first`; missing rows repeat the last one and their results are not used.
#[inline(always)]
pub fn row_slices<const MR: usize>(x: &[f32], stride: usize, first: usize, rows: usize, depth: usize) -> [&[f32]; MR] {
    std::array::from_fn(|r| &x[(first + r.min(rows - 1)) * stride..][..depth])
}

/// One block of outputs: every row of `out` (a column range of the result) for rows of `x`.
struct Block<'a, 'b> {
    x: &'a [f32],
    stride: usize,
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
        for (row, acc) in self.out[first_row..first_row + rows].iter_mut().zip(acc) {
            let valid = width.min(row.len().saturating_sub(column));
            let target = &mut row[column.min(column + valid)..column + valid];
            let fresh = first_pass && !self.accumulate;
            let bias = self
                .bias
                .filter(|_| first_pass)
                .map(|b| &b[self.first_panel * PANEL + column..][..valid]);
            if valid == width {
                let (target, _) = S::as_mut_simd_f32s(target);
                for v in 0..NV {
                    let mut value = acc[v];
                    if let Some(bias) = bias {
                        value = simd.add_f32s(value, S::as_simd_f32s(bias).0[v]);
                    }
                    target[v] = if fresh { value } else { simd.add_f32s(target[v], value) };
                }
            } else {
                let mut lanes = [0.0; PANEL];
                S::as_mut_simd_f32s(&mut lanes).0[..NV].copy_from_slice(&acc);
                for (j, t) in target.iter_mut().enumerate() {
                    let value = lanes[j] + bias.map_or(0.0, |b| b[j]);
                    *t = if fresh { value } else { *t + value };
                }
            }
        }
    }

    #[inline(always)]
    fn run<S: Simd, const MR: usize, const NV: usize>(&mut self, simd: S) {
        let columns = self.out.first().map_or(0, |row| row.len());
        let cols = self.w.cols;
        for k0 in (0..cols).step_by(DEPTH) {
            let depth = DEPTH.min(cols - k0);
            for p in 0..columns.div_ceil(PANEL) {
                let panel = &self.w.panel(self.first_panel + p)[k0 * PANEL..][..depth * PANEL];
                for first_row in (0..self.out.len()).step_by(MR) {
                    let a = row_slices::<MR>(&self.x[k0..], self.stride, first_row, self.out.len() - first_row, depth);
                    for offset in (0..PANEL).step_by(NV * S::F32_LANES) {
                        let acc = micro_kernel::<S, MR, NV>(simd, a, panel, PANEL, offset);
                        self.store(simd, acc, first_row, p * PANEL + offset, k0 == 0);
                    }
                }
            }
        }
    }

    /// One row: the inputs are split over four sets of accumulators, so that the chain of additions does not bound the
    /// stream of weights.
    #[inline(always)]
    fn run_single<S: Simd, const NV: usize>(&mut self, simd: S) {
        const CHAINS: usize = 4;
        let columns = self.out[0].len();
        for p in 0..columns.div_ceil(PANEL) {
            let panel = self.w.panel(self.first_panel + p);
            for offset in (0..PANEL).step_by(NV * S::F32_LANES) {
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
                let sum: [S::f32s; NV] = std::array::from_fn(|v| {
                    simd.add_f32s(simd.add_f32s(acc[0][v], acc[1][v]), simd.add_f32s(acc[2][v], acc[3][v]))
                });
                self.store::<S, 1, NV>(simd, [sum], 0, p * PANEL + offset, true);
            }
        }
    }
}

impl WithSimd for Block<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        match self.out.len() {
            0 => {}
            1 => self.run_single::<S, 2>(simd),
            2..=4 => self.run::<S, 4, 2>(simd),
            _ if S::F32_LANES >= 16 => self.run::<S, TALL, 2>(simd),
            _ => self.run::<S, 6, 2>(simd),
        }
    }
}

/// `out = x w^T + bias` (or `out += ..`): x `[rows, in]`, out `[rows, out]`.
pub fn linear(x: &[f32], rows: usize, w: &Packed, bias: Option<&[f32]>, accumulate: bool, out: &mut [f32]) {
    let arch = Arch::new();
    let padded;
    let (mut x, mut stride) = (&x[..rows * w.cols], w.cols);
    if rows >= TALL && (stride * 4).is_multiple_of(4096) {
        // Rows a multiple of 4 KiB apart fall into one set of the L1 cache; shift them.
        stride += 16;
        let mut copy = vec![0.0; rows * stride];
        for (to, from) in copy.chunks_exact_mut(stride).zip(x.chunks_exact(w.cols)) {
            to[..w.cols].copy_from_slice(from);
        }
        padded = copy;
        x = &padded;
    }
    // Blocks of about 250 rows re-read the weights rarely; the columns are cut until every thread has several blocks.
    let row_blocks = rows.div_ceil(18 * TALL);
    let block_rows = if rows <= TALL {
        rows
    } else {
        rows.div_ceil(row_blocks).next_multiple_of(TALL)
    };
    let panels = w.rows.div_ceil(PANEL);
    let column_blocks = (threads() * 4).div_ceil(row_blocks).min(panels);
    let block_panels = panels.div_ceil(column_blocks);
    let mut tiles: Vec<Vec<&mut [f32]>> = Vec::new();
    for block in out[..rows * w.rows].chunks_mut(block_rows * w.rows) {
        let first = tiles.len();
        tiles.resize_with(first + panels.div_ceil(block_panels), Vec::new);
        for row in block.chunks_exact_mut(w.rows) {
            for (tile, segment) in tiles[first..].iter_mut().zip(row.chunks_mut(block_panels * PANEL)) {
                tile.push(segment);
            }
        }
    }
    let per_row_block = panels.div_ceil(block_panels);
    tiles.par_iter_mut().enumerate().for_each(|(t, tile)| {
        let first_row = t / per_row_block * block_rows;
        arch.dispatch(Block {
            x: &x[first_row * stride..],
            stride,
            w,
            first_panel: t % per_row_block * block_panels,
            bias,
            accumulate,
            out: tile,
        });
    });
}
