//! Attention of rows that each have a token list of their own: the completions of one prompt.
//!
//! Lists are short (a prompt and a few tokens), so the buffers of the tiled form would cost more than the attention itself:
//! keys are rotated one at a time, and every query head of the group takes its product at once. What costs is to fetch the
//! keys: the tokens that all rows took in one step lie side by side in the store, those of one row far apart. So a task is a
//! block of rows, and goes through the lists place by place; a token that neighbouring rows share is rotated once.

use super::Cpu;
use super::math::{self, dot};
use crate::kernels::{Attend, PAGE_TOKENS, Part};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a task, at most.
const ROWS: usize = 32;

/// Buffers of a task.
#[derive(Default)]
struct Scratch {
    /// `[rows, group, longest list]`.
    weights: Vec<f32>,
    /// `[D]`.
    key: Vec<f32>,
    /// What each row sees of its list.
    visible: Vec<Range<usize>>,
}

/// Where a row's token at place `j` of its list lies: page, and element in it.
#[inline(always)]
fn stored(args: &Attend<'_, Cpu>, kv: usize, j: usize) -> (usize, usize) {
    let slot = args.keys.table.slot(args.tokens.token(kv, j));
    let at = (kv * PAGE_TOKENS + slot % PAGE_TOKENS) * args.shape.head_dim;
    (slot / PAGE_TOKENS, at)
}

/// Some rows, compiled for this machine's vectors. (A closure would be called out of line, in code for any machine.)
struct Block<'a, 's> {
    /// One for each row.
    rows: &'s [Attend<'a, Cpu>],
    /// `[rows, H, D]`, as is `out`.
    queries: &'s [f32],
    scratch: &'s mut Scratch,
    out: &'s mut [f32],
}

impl Block<'_, '_> {
    /// One KV head of all rows.
    #[inline(always)]
    fn head(&mut self, kv: usize) {
        let Self {
            rows,
            queries,
            scratch,
            out,
        } = self;
        let Some(first) = rows.first() else { return };
        let (d, group, width) = (first.shape.head_dim, first.shape.group(), first.shape.query_width());
        // Query heads of this KV head in a row of `queries` and of `out`.
        let heads = kv * group * d..(kv + 1) * group * d;
        let scale = 1.0 / (d as f32).sqrt();
        let Scratch { weights, key, visible } = &mut **scratch;
        visible.clear();
        visible.extend(rows.iter().map(|args| args.visible(Part::Near, kv, 0)));
        let start = visible.iter().map(|seen| seen.start).min().unwrap_or(0);
        let end = visible.iter().map(|seen| seen.end).max().unwrap_or(0);
        key.resize(d, 0.0);
        weights.resize(rows.len() * group * end, 0.0);
        for j in start..end {
            let (cos, sin) = first.rope.row(j);
            let mut rotated = None;
            for (row, (args, seen)) in rows.iter().zip(&*visible).enumerate() {
                if !seen.contains(&j) {
                    continue;
                }
                let place = stored(args, kv, j);
                if rotated != Some(place) {
                    let (page, at) = place;
                    math::rotate(&args.keys.pages[page][at..at + d], cos, sin, key);
                    rotated = Some(place);
                }
                let queries = &queries[row * width..][heads.clone()];
                for (g, query) in queries.chunks_exact(d).enumerate() {
                    weights[(row * group + g) * end + j] = dot(query, key) * scale;
                }
            }
        }
        for (row, seen) in visible.iter().enumerate() {
            out[row * width..][heads.clone()].fill(0.0);
            for g in 0..group {
                let weights = &mut weights[(row * group + g) * end..][seen.clone()];
                let max = math::max(weights);
                let sum = math::exp_sum(weights, max);
                for weight in weights {
                    *weight /= sum;
                }
            }
        }
        for j in start..end {
            for (row, (args, seen)) in rows.iter().zip(&*visible).enumerate() {
                if !seen.contains(&j) {
                    continue;
                }
                let (page, at) = stored(args, kv, j);
                let value = &args.values.pages[page][at..at + d];
                let out = &mut out[row * width..][heads.clone()];
                for (g, out) in out.chunks_exact_mut(d).enumerate() {
                    let weight = weights[(row * group + g) * end + j];
                    out.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
                }
            }
        }
    }
}

impl WithSimd for Block<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) {
        for kv in 0..self.rows.first().map_or(0, |args| args.shape.kv_heads) {
            self.head(kv);
        }
    }
}

/// Attention of `rows` rows; out `[rows, H, D]`. `operands(row)` is that row alone, packed, but its `queries` are those of
/// all rows `[rows, H, D]`.
pub(super) fn attend<'a>(rows: usize, operands: impl Fn(usize) -> Attend<'a, Cpu> + Sync, out: &mut [f32]) {
    let arch = Arch::new();
    let Some(width) = (rows > 0).then(|| operands(0).shape.query_width()) else {
        return;
    };
    // Twice as many tasks as threads, where there are rows enough.
    let block = rows.div_ceil(2 * rayon::current_num_threads()).min(ROWS);
    out[..rows * width]
        .par_chunks_mut(block * width)
        .enumerate()
        .for_each_init(Scratch::default, |scratch, (number, out)| {
            let first = number * block;
            let rows: Vec<Attend<'_, Cpu>> = (first..first + out.len() / width).map(&operands).collect();
            let queries = &rows[0].queries[first * width..][..out.len()];
            arch.dispatch(Block {
                rows: &rows,
                queries,
                scratch,
                out,
            });
        });
}
