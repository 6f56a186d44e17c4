//! Attention over a token list: online softmax over tiles of keys, so that no N x N matrix ever exists.
//!
//! A task is one KV head and a block of chunk rows (prefill), or one KV head and a split of the keys (decode). All
//! query heads of the group share each gathered, rotated key tile. In prefill the tile is transposed once and
//! multiplied like a weight panel; in decode the few query rows are the panel and the keys stay as they lie.
//! Splits have a fixed length, so results do not depend on the number of threads.

use super::aligned::Aligned;
use super::gemm::{PANEL, packed_kernel, row_slices, strided_kernel};
use super::narrow::{self, QUERIES};
use super::softmax::State;
use super::{Cpu, math};
use crate::kernels::{Attend, AttentionShape, PAGE_TOKENS, Part, TokenList};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Keys per tile in prefill.
const WIDE_TILE: usize = 256;
/// Keys per tile in decode: rotated keys and values of a tile fit the L1 cache.
const NARROW_TILE: usize = 64;
/// Query rows (chunk rows times group) per prefill task.
const TASK_ROWS: usize = 768;
/// Up to this many query rows are worth the decode form.
pub(super) const NARROW_ROWS: usize = 64;
/// Keys per decode task.
pub(super) const SPLIT: usize = 512;
/// Distance of weight rows beyond the tile; keeps rows out of one L1 set.
const PAD: usize = 16;

/// Bytes of scratch of one task, for chunks of `rows` rows.
pub(super) fn task_bytes(rows: usize, shape: &AttentionShape) -> usize {
    let padded = shape.head_dim.next_multiple_of(16);
    let task_rows = (task_chunk_rows(shape) * shape.group()).min(rows * shape.group());
    4 * (task_rows * (WIDE_TILE + PAD + padded + 2) + 3 * WIDE_TILE * padded)
}

pub(super) fn task_chunk_rows(shape: &AttentionShape) -> usize {
    TASK_ROWS.div_ceil(shape.group())
}

/// The rows `first..first + count` of the chunk, for the query heads of one KV head, over a range of the token list.
pub(super) struct Task<'a> {
    pub(super) args: &'a Attend<'a, Cpu>,
    pub(super) kv: usize,
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) keys: Range<usize>,
    pub(super) narrow: bool,
}

/// Buffers of one running task.
pub(super) struct Scratch {
    keys: Aligned,
    panels: Aligned,
    values: Aligned,
    pub(super) weights: Aligned,
}

/// What the rows of a task see in one part, and how its tiles lie.
pub(super) struct Pass {
    part: Part,
    /// Queries in the layout of the task's form.
    queries: Aligned,
    /// Per chunk row.
    pub(super) visible: Vec<Range<usize>>,
    /// From the first tile's start to the last visible key.
    pub(super) keys: Range<usize>,
}

impl Task<'_> {
    pub(super) fn tile_len(&self) -> usize {
        if self.narrow { NARROW_TILE } else { WIDE_TILE }
    }

    /// Distance of weight rows.
    pub(super) fn stride(&self) -> usize {
        self.tile_len() + PAD
    }

    /// Buffers; values are gathered in rows of `padded` elements, 0 for a task that reads none.
    pub(super) fn scratch(&self, padded: usize) -> Scratch {
        let keys = self.tile_len() * self.args.shape.head_dim;
        Scratch {
            keys: Aligned::zeros(keys),
            panels: Aligned::zeros(if self.narrow { 0 } else { keys }),
            values: Aligned::zeros(self.tile_len() * padded),
            weights: Aligned::zeros(self.rows() * self.stride()),
        }
    }

    /// `None` if no row sees a key of this task in `part`.
    #[inline(always)]
    pub(super) fn pass<S: Simd>(&self, _: S, part: Part) -> Option<Pass> {
        let rows = self.first..self.first + self.count;
        let visible: Vec<Range<usize>> = rows.map(|i| self.args.visible(part, self.kv, i)).collect();
        let end = self.keys.end.min(visible.last()?.end);
        // Tiles start at multiples of their length, whatever the window, so that they do not straddle pages.
        let start = self.keys.start.max(visible.first()?.start) / self.tile_len() * self.tile_len();
        if start >= end {
            return None;
        }
        let d = self.args.shape.head_dim;
        let scale = 1.0 / (d as f32).sqrt();
        let queries = match (self.narrow, S::F32_LANES >= 16) {
            (true, _) => narrow::panels(self.rows(), d, |r, k| self.query(part, r)[k] * scale),
            (false, true) => self.wide_queries(part, 14),
            (false, false) => self.wide_queries(part, 6),
        };
        Some(Pass {
            part,
            queries,
            visible,
            keys: start..end,
        })
    }

    /// Scaled products of all query rows with the keys of `tile`, into the weights `[R, stride]`.
    #[inline(always)]
    pub(super) fn tile_scores<S: Simd>(&self, simd: S, pass: &Pass, tile: Range<usize>, scratch: &mut Scratch) {
        let (n, stride) = (tile.len(), self.stride());
        self.gather_keys(pass.part, tile, &mut scratch.keys);
        if self.narrow {
            self.narrow_scores(simd, n, stride, &pass.queries, scratch);
        } else {
            self.wide_scores(simd, n, stride, &pass.queries, scratch);
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.count * self.args.shape.group()
    }

    /// Query row `r`: chunk row `first + r / group`, head `r % group` of the group.
    #[inline(always)]
    fn query(&self, part: Part, r: usize) -> &[f32] {
        let shape = &self.args.shape;
        let head = self.kv * shape.group() + r % shape.group();
        let row = self.first + r / shape.group();
        &self.args.queries(part)[(row * shape.query_heads + head) * shape.head_dim..][..shape.head_dim]
    }

    /// Rotated keys of list entries `tile` as rows `[n, D]`.
    #[inline(always)]
    fn gather_keys(&self, part: Part, tile: Range<usize>, out: &mut [f32]) {
        let d = self.args.shape.head_dim;
        for (j, out) in tile.zip(out.chunks_exact_mut(d)) {
            let slot = self.args.keys.table.slot(self.args.tokens.token(self.kv, j));
            let at = (self.kv * PAGE_TOKENS + slot % PAGE_TOKENS) * d;
            let key = &self.args.keys.pages[slot / PAGE_TOKENS][at..at + d];
            let (cos, sin) = self.args.rope.row(self.args.key_position(part, self.kv, j));
            math::rotate(key, cos, sin, out);
        }
    }

    /// Values of list entries `tile` as rows `[n, padded D]`: in place where they lie so, gathered otherwise.
    #[inline(always)]
    fn values<'s>(&'s self, tile: Range<usize>, padded: usize, scratch: &'s mut [f32]) -> &'s [f32] {
        let d = self.args.shape.head_dim;
        let place = |j: usize| {
            let slot = self.args.values.table.slot(self.args.tokens.token(self.kv, j));
            (slot / PAGE_TOKENS, (self.kv * PAGE_TOKENS + slot % PAGE_TOKENS) * d)
        };
        if matches!(self.args.tokens, TokenList::All(_))
            && padded == d
            && tile.start / PAGE_TOKENS == (tile.end - 1) / PAGE_TOKENS
        {
            let (page, at) = place(tile.start);
            return &self.args.values.pages[page][at..at + tile.len() * d];
        }
        for (j, out) in tile.zip(scratch.chunks_exact_mut(padded)) {
            let (page, at) = place(j);
            out[..d].copy_from_slice(&self.args.values.pages[page][at..at + d]);
        }
        scratch
    }

    /// Weights `[R, stride]` of a tile: products of queries and keys, keys transposed into panels.
    #[inline(always)]
    fn wide_scores<S: Simd>(&self, simd: S, n: usize, stride: usize, queries: &[f32], scratch: &mut Scratch) {
        let d = self.args.shape.head_dim;
        let scale = 1.0 / (d as f32).sqrt();
        for (p, panel) in scratch
            .panels
            .chunks_exact_mut(PANEL * d)
            .take(n.div_ceil(PANEL))
            .enumerate()
        {
            let keys = &scratch.keys[p * PANEL * d..][..PANEL * d];
            for (k, line) in panel.chunks_exact_mut(PANEL).enumerate() {
                for (lane, value) in line.iter_mut().enumerate() {
                    *value = keys[lane * d + k] * scale;
                }
            }
            if S::F32_LANES >= 16 {
                self.wide_panel::<S, 14>(simd, queries, panel, p, stride, &mut scratch.weights);
            } else {
                self.wide_panel::<S, 6>(simd, queries, panel, p, stride, &mut scratch.weights);
            }
        }
    }

    #[inline(always)]
    fn wide_panel<S: Simd, const MR: usize>(
        &self,
        simd: S,
        queries: &[f32],
        panel: &[f32],
        p: usize,
        stride: usize,
        weights: &mut [f32],
    ) {
        let d = self.args.shape.head_dim;
        for (group, queries) in queries.chunks_exact(d * MR).enumerate() {
            let first = group * MR;
            let (a, _) = queries.as_chunks::<MR>();
            for offset in (0..PANEL).step_by(2 * S::F32_LANES) {
                let acc = packed_kernel::<S, MR, 2>(simd, a, panel, PANEL, offset);
                for (r, acc) in acc.iter().take(self.rows() - first).enumerate() {
                    let line = &mut weights[(first + r) * stride + p * PANEL + offset..][..2 * S::F32_LANES];
                    S::as_mut_simd_f32s(line).0.copy_from_slice(acc);
                }
            }
        }
    }

    /// Query rows interleaved by `group`: `[ceil(R / group), D, group]`.
    fn wide_queries(&self, part: Part, group: usize) -> Aligned {
        let d = self.args.shape.head_dim;
        let mut out = Aligned::zeros(self.rows().div_ceil(group) * group * d);
        for r in 0..self.rows() {
            let lines = &mut out[r / group * group * d..][..group * d];
            for (line, &q) in lines.chunks_exact_mut(group).zip(self.query(part, r)) {
                line[r % group] = q;
            }
        }
        out
    }

    /// The same for few query rows: `queries` are their panels, already scaled.
    #[inline(always)]
    fn narrow_scores<S: Simd>(&self, simd: S, n: usize, stride: usize, queries: &[f32], scratch: &mut Scratch) {
        let d = self.args.shape.head_dim;
        let keys = &scratch.keys[..n * d];
        for (g, panel) in queries.chunks_exact(d * QUERIES).enumerate() {
            let lanes = QUERIES.min(self.rows() - g * QUERIES);
            let weights = &mut scratch.weights[g * QUERIES * stride..];
            narrow::scores(simd, keys, d, panel, |first, count, tile| {
                for (line, scores) in weights.chunks_mut(stride).zip(&tile[..lanes]) {
                    line[first..first + count].copy_from_slice(&scores[..count]);
                }
            });
        }
    }

    /// Softmax weights of a tile in place, and the state brought to the new maxima.
    #[inline(always)]
    pub(super) fn update<S: Simd>(
        &self,
        simd: S,
        tile: &Range<usize>,
        visible: &[Range<usize>],
        stride: usize,
        weights: &mut [f32],
        state: &mut State,
    ) {
        let padded = self.args.shape.head_dim.next_multiple_of(16);
        let group = self.args.shape.group();
        for (r, line) in weights.chunks_exact_mut(stride).take(self.rows()).enumerate() {
            let seen = &visible[r / group];
            let low = seen.start.clamp(tile.start, tile.end) - tile.start;
            let high = seen.end.clamp(tile.start, tile.end) - tile.start;
            let line = &mut line[..tile.len()];
            if low >= high {
                line.fill(0.0);
                continue;
            }
            let max = state.max[r].max(math::max(&line[low..high]));
            // exp(-inf - max) must be 0, not e^-87: the state may hold nothing yet.
            let keep = if state.max[r] == f32::NEG_INFINITY {
                0.0
            } else {
                math::exp(state.max[r] - max)
            };
            line[..low].fill(0.0);
            line[high..].fill(0.0);
            state.sum[r] = state.sum[r] * keep + math::exp_sum_simd(simd, &mut line[low..high], max);
            #[expect(clippy::float_cmp, reason = "exp(0) is exactly 1: the maximum has not moved")]
            if keep != 1.0
                && let Some(out) = state.out.get_mut(r * padded..(r + 1) * padded)
            {
                for o in out {
                    *o *= keep;
                }
            }
            state.max[r] = max;
        }
    }

    /// `state.out += weights values` for a tile of `n` keys and up to `MR` rows; how many rows were done.
    #[inline(always)]
    fn accumulate<S: Simd, const MR: usize, const NV: usize>(
        &self,
        simd: S,
        first: usize,
        n: usize,
        stride: usize,
        weights: &[f32],
        values: &[f32],
        out: &mut [f32],
    ) -> usize {
        let padded = self.args.shape.head_dim.next_multiple_of(16);
        let count = MR.min(self.rows() - first);
        let a = row_slices::<MR>(weights, stride, first, count, n);
        let mut column = 0;
        while column < padded {
            if padded - column >= NV * S::F32_LANES {
                let acc = strided_kernel::<S, MR, NV>(simd, a, values, padded, column);
                add::<S, MR, NV>(simd, &acc, &mut out[first * padded + column..], padded, count);
                column += NV * S::F32_LANES;
            } else {
                let acc = strided_kernel::<S, MR, 1>(simd, a, values, padded, column);
                add::<S, MR, 1>(simd, &acc, &mut out[first * padded + column..], padded, count);
                column += S::F32_LANES;
            }
        }
        MR
    }
}

#[inline(always)]
fn add<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    acc: &[[S::f32s; NV]; MR],
    out: &mut [f32],
    stride: usize,
    count: usize,
) {
    for (r, acc) in acc.iter().take(count).enumerate() {
        let (line, _) = S::as_mut_simd_f32s(&mut out[r * stride..][..NV * S::F32_LANES]);
        for v in 0..NV {
            line[v] = simd.add_f32s(line[v], acc[v]);
        }
    }
}

impl WithSimd for Task<'_> {
    type Output = State;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> State {
        let padded = self.args.shape.head_dim.next_multiple_of(16);
        let (rows, stride) = (self.rows(), self.stride());
        let mut state = State::new(rows, padded);
        let mut scratch = self.scratch(padded);
        for &part in self.args.parts() {
            let Some(pass) = self.pass(simd, part) else {
                continue;
            };
            for start in pass.keys.clone().step_by(self.tile_len()) {
                let tile = start..pass.keys.end.min(start + self.tile_len());
                let n = tile.len();
                self.tile_scores(simd, &pass, tile.clone(), &mut scratch);
                self.update(simd, &tile, &pass.visible, stride, &mut scratch.weights, &mut state);
                let values = self.values(tile, padded, &mut scratch.values);
                let (weights, out) = (&scratch.weights, &mut state.out);
                let mut first = 0;
                while first < rows {
                    first += match rows - first {
                        1..=4 => self.accumulate::<S, 4, 2>(simd, first, n, stride, weights, values, out),
                        5..=8 => self.accumulate::<S, 8, 2>(simd, first, n, stride, weights, values, out),
                        // Few rows by many registers: more row pointers than this would not fit the general registers.
                        _ if S::F32_LANES >= 16 => {
                            self.accumulate::<S, 6, 4>(simd, first, n, stride, weights, values, out)
                        }
                        _ => self.accumulate::<S, 6, 2>(simd, first, n, stride, weights, values, out),
                    };
                }
            }
        }
        state
    }
}

pub(super) fn attend(args: &Attend<'_, Cpu>, out: &mut [f32]) {
    let arch = Arch::new();
    let shape = &args.shape;
    let keys = args.tokens.len();
    let segments = out[..args.rows * shape.query_width()].chunks_exact_mut(shape.group() * shape.head_dim);
    if args.rows * shape.group() <= NARROW_ROWS {
        let splits = keys.div_ceil(SPLIT);
        let states: Vec<State> = (0..shape.kv_heads * splits)
            .into_par_iter()
            .map(|task| {
                let start = task % splits * SPLIT;
                arch.dispatch(Task {
                    args,
                    kv: task / splits,
                    first: 0,
                    count: args.rows,
                    keys: start..(start + SPLIT).min(keys),
                    narrow: true,
                })
            })
            .collect();
        let padded = shape.head_dim.next_multiple_of(16);
        let mut by_head: Vec<Vec<&mut [f32]>> = Vec::new();
        by_head.resize_with(shape.kv_heads, Vec::new);
        for (at, segment) in segments.enumerate() {
            by_head[at % shape.kv_heads].push(segment);
        }
        for (states, segments) in states.chunks(splits).zip(&mut by_head) {
            State::merge(states, padded).write(shape, segments);
        }
        return;
    }
    let task_rows = task_chunk_rows(shape);
    let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
    tasks.resize_with(args.rows.div_ceil(task_rows) * shape.kv_heads, Vec::new);
    for (at, segment) in segments.enumerate() {
        tasks[at / shape.kv_heads / task_rows * shape.kv_heads + at % shape.kv_heads].push(segment);
    }
    tasks.par_iter_mut().enumerate().for_each(|(task, segments)| {
        let state = arch.dispatch(Task {
            args,
            kv: task % shape.kv_heads,
            first: task / shape.kv_heads * task_rows,
            count: segments.len(),
            keys: 0..keys,
            narrow: false,
        });
        state.write(shape, segments);
    });
}
