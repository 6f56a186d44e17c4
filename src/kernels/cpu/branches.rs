//! Attention of rows that each have a token list of their own: the completions of one prompt.
//!
//! A row is a task. Its lists are short (a prompt and a few tokens), so the buffers of the tiled form would cost more than
//! the attention itself: keys are rotated one at a time, and every query head of the group takes its product at once.

use super::Cpu;
use super::math::{self, dot};
use crate::kernels::{Attend, PAGE_TOKENS, Part};
use pulp::Arch;
use rayon::prelude::*;

/// Buffers of a row.
#[derive(Default)]
struct Scratch {
    /// `[group, n]`.
    weights: Vec<f32>,
    /// `[D]`.
    key: Vec<f32>,
}

/// One KV head of one row: `queries` and `out` are `[group, D]`.
#[inline(always)]
fn head(args: &Attend<'_, Cpu>, kv: usize, queries: &[f32], scratch: &mut Scratch, out: &mut [f32]) {
    let d = args.shape.head_dim;
    let visible = args.visible(Part::Near, kv, 0);
    let (first, n) = (visible.start, visible.len());
    let scale = 1.0 / (d as f32).sqrt();
    let place = |j: usize| {
        let slot = args.keys.table.slot(args.tokens.token(kv, j));
        (slot / PAGE_TOKENS, (kv * PAGE_TOKENS + slot % PAGE_TOKENS) * d)
    };
    scratch.key.resize(d, 0.0);
    scratch.weights.resize(queries.len() / d * n, 0.0);
    for j in visible.clone() {
        let (page, at) = place(j);
        let (cos, sin) = args.rope.row(j);
        math::rotate(&args.keys.pages[page][at..at + d], cos, sin, &mut scratch.key);
        for (g, query) in queries.chunks_exact(d).enumerate() {
            scratch.weights[g * n + j - first] = dot(query, &scratch.key) * scale;
        }
    }
    for weights in scratch.weights.chunks_exact_mut(n) {
        let max = math::max(weights);
        let sum = math::exp_sum(weights, max);
        for weight in weights {
            *weight /= sum;
        }
    }
    out.fill(0.0);
    for j in visible {
        let (page, at) = place(j);
        let value = &args.values.pages[page][at..at + d];
        for (g, out) in out.chunks_exact_mut(d).enumerate() {
            let weight = scratch.weights[g * n + j - first];
            out.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
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
    out[..rows * width]
        .par_chunks_exact_mut(width)
        .enumerate()
        .for_each_init(Scratch::default, |scratch, (row, out)| {
            let args = operands(row);
            let segment = args.shape.group() * args.shape.head_dim;
            let queries = &args.queries[row * width..(row + 1) * width];
            arch.dispatch(|| {
                let heads = queries.chunks_exact(segment).zip(out.chunks_exact_mut(segment));
                for (kv, (queries, out)) in heads.enumerate() {
                    head(&args, kv, queries, scratch, out);
                }
            });
        });
}
