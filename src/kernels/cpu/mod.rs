//! The fast CPU backend: rayon over tasks, SIMD chosen at run time (AVX-512, AVX2 with FMA, NEON, or none).

mod aligned;
mod attend;
mod branches;
mod gemm;
mod mass;
pub(crate) mod math;
mod narrow;
mod rows;
mod select;
mod softmax;

pub use gemm::Packed;

use super::{
    Attend, AttendRows, AttentionShape, Backend, Device, PAGE_TOKENS, PageTable, Pages, QkvPart, RopeTable, RowSource,
    ScoreArgs, ScoreDtype, Scores,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// The CPU, all threads of the global rayon pool.
#[derive(Debug, Default, Clone, Copy)]
pub struct Cpu;

/// Threads that kernels run on.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// The widest vector instructions of this processor that the kernels are compiled for.
pub fn simd_level() -> &'static str {
    match Arch::new() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Arch::V4(_) => "x86-64-v4 (AVX-512)",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Arch::V3(_) => "x86-64-v3 (AVX2 and FMA)",
        #[cfg(target_arch = "aarch64")]
        Arch::Neon(_) => "NEON",
        _ => "none",
    }
}

/// Elements below which a loop is not worth a parallel task.
const SERIAL: usize = 1 << 14;

/// Some rows of [`for_rows`]. A dispatched closure is called out of line, in code for any machine; this is part of the code for
/// the vectors of this one, and so is `body`, which it calls at one place.
struct Block<'a, F> {
    first: usize,
    width: usize,
    out: &'a mut [f32],
    body: &'a F,
}

impl<F: Fn(usize, &mut [f32])> WithSimd for Block<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (i, row) in self.out.chunks_exact_mut(self.width).enumerate() {
            (self.body)(self.first + i, row);
        }
    }
}

/// Runs `body(row index, row of out)` over rows, in parallel where there is enough work.
fn for_rows(out: &mut [f32], width: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
    let arch = Arch::new();
    let body = &body;
    let block = |first: usize, out: &mut [f32]| {
        arch.dispatch(Block {
            first,
            width,
            out,
            body,
        });
    };
    let rows = if out.len() <= SERIAL {
        out.len() / width
    } else {
        (SERIAL / width).max(1)
    };
    if rows * width >= out.len() {
        block(0, out);
    } else {
        out.par_chunks_mut(rows * width)
            .enumerate()
            .for_each(|(b, out)| block(b * rows, out));
    }
}

#[inline(always)]
fn normalise(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = 1.0 / (math::sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * scale * w;
    }
}

impl Device for Cpu {
    type Buffer = Vec<f32>;
    type Matrix = Packed;
    type Ids = Vec<u32>;
    type Recording = ();
    type ChoiceRoom = ();

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn zeros(&self, len: usize) -> Vec<f32> {
        vec![0.0; len]
    }

    fn upload(&self, data: &[f32]) -> Vec<f32> {
        data.to_vec()
    }

    fn download<'a>(&self, buffer: &'a Vec<f32>) -> Cow<'a, [f32]> {
        Cow::Borrowed(buffer)
    }

    fn matrix(&self, rows: usize, cols: usize, source: &RowSource<'_>) -> Packed {
        Packed::new(rows, cols, source)
    }

    fn matrix_bytes(&self, rows: usize, cols: usize) -> usize {
        Packed::bytes(rows, cols)
    }

    fn working_bytes(&self, rows: usize, width: usize, shape: &AttentionShape) -> usize {
        // The interleaved input of a product, and one attention task per thread.
        rows.next_multiple_of(14) * width * 4 + threads() * attend::task_bytes(rows, shape)
    }

    fn ids(&self, len: usize) -> Vec<u32> {
        vec![0; len]
    }

    fn set_ids(&self, ids: &[u32], out: &mut Vec<u32>) {
        out[..ids.len()].copy_from_slice(ids);
    }

    fn embed(&self, table: &Packed, ids: &Vec<u32>, rows: usize, out: &mut Vec<f32>) {
        out.par_chunks_exact_mut(table.cols())
            .zip(&ids[..rows])
            .for_each(|(row, &id)| table.copy_row(id as usize, row));
    }

    fn linear(
        &self,
        x: &Vec<f32>,
        rows: usize,
        w: &Packed,
        bias: Option<&Vec<f32>>,
        accumulate: bool,
        out: &mut Vec<f32>,
    ) {
        gemm::linear(x, rows, w, bias.map(Vec::as_slice), accumulate, out);
    }

    fn rms_norm(&self, x: &Vec<f32>, weight: &Vec<f32>, eps: f32, rows: Range<usize>, out: &mut Vec<f32>) {
        let width = weight.len();
        let x = &x[rows.start * width..rows.end * width];
        for_rows(&mut out[..x.len()], width, |i, out| {
            normalise(&x[i * width..][..width], weight, eps, out);
        });
    }

    fn norm_heads(
        &self,
        qkv: &mut Vec<f32>,
        rows: usize,
        shape: &AttentionShape,
        part: QkvPart,
        weight: &Vec<f32>,
        eps: f32,
    ) {
        let range = match part {
            QkvPart::Queries => 0..shape.key_offset(),
            QkvPart::Keys => shape.key_offset()..shape.value_offset(),
        };
        for_rows(&mut qkv[..rows * shape.qkv_width()], shape.qkv_width(), |_, row| {
            for head in row[range.clone()].chunks_exact_mut(shape.head_dim) {
                let scale = 1.0 / (math::sum_of_squares(head) / head.len() as f32 + eps).sqrt();
                head.iter_mut().zip(weight).for_each(|(x, w)| *x *= scale * w);
            }
        });
    }

    fn silu_mul(&self, gate_up: &Vec<f32>, rows: usize, width: usize, out: &mut Vec<f32>) {
        for_rows(&mut out[..rows * width], width, |i, out| {
            let (gate, up) = gate_up[i * 2 * width..][..2 * width].split_at(width);
            for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *o = g / (1.0 + math::exp(-g)) * u;
            }
        });
    }
}

impl Backend for Cpu {
    fn rotate_queries(
        &self,
        qkv: &Vec<f32>,
        rows: Range<usize>,
        shape: &AttentionShape,
        rope: &RopeTable,
        first_position: usize,
        out: &mut Vec<f32>,
    ) {
        let d = shape.head_dim;
        let width = shape.query_width();
        for_rows(&mut out[..rows.len() * width], width, |i, out| {
            let i = rows.start + i;
            let (cos, sin) = rope.row(first_position + i);
            let row = &qkv[i * shape.qkv_width()..][..width];
            for (head, out) in row.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
                math::rotate(head, cos, sin, out);
            }
        });
    }

    fn rotate_queries_at(
        &self,
        qkv: &Vec<f32>,
        rows: Range<usize>,
        shape: &AttentionShape,
        rope: &RopeTable,
        positions: &[u32],
        out: &mut Vec<f32>,
    ) {
        let d = shape.head_dim;
        let width = shape.query_width();
        for_rows(&mut out[..rows.len() * width], width, |i, out| {
            let (cos, sin) = rope.row(positions[i] as usize);
            let row = &qkv[(rows.start + i) * shape.qkv_width()..][..width];
            for (head, out) in row.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
                math::rotate(head, cos, sin, out);
            }
        });
    }

    fn store_kv(
        &self,
        qkv: &Vec<f32>,
        rows: usize,
        shape: &AttentionShape,
        table: &PageTable,
        first_token: usize,
        keys: &mut [Vec<f32>],
        values: &mut [Vec<f32>],
    ) {
        let d = shape.head_dim;
        for (i, row) in qkv.chunks_exact(shape.qkv_width()).take(rows).enumerate() {
            let slot = table.slot(first_token + i);
            let (page, at) = (slot / PAGE_TOKENS, slot % PAGE_TOKENS);
            for kv in 0..shape.kv_heads {
                let to = (kv * PAGE_TOKENS + at) * d;
                keys[page][to..to + d].copy_from_slice(&row[shape.key_offset() + kv * d..][..d]);
                values[page][to..to + d].copy_from_slice(&row[shape.value_offset() + kv * d..][..d]);
            }
        }
    }

    fn group_means(&self, x: &Vec<f32>, rows: usize, width: usize, group_rows: usize, out: &mut Vec<f32>) {
        let arch = Arch::new();
        for (group, out) in x[..rows * width]
            .chunks(group_rows * width)
            .zip(out.chunks_exact_mut(width))
        {
            arch.dispatch(|| {
                out.fill(0.0);
                for row in group.chunks_exact(width) {
                    out.iter_mut().zip(row).for_each(|(o, x)| *o += x);
                }
                let n = (group.len() / width) as f32;
                for o in out.iter_mut() {
                    *o /= n;
                }
            });
        }
    }

    fn score(&self, args: &ScoreArgs<'_, Self>, scores: &mut Scores) {
        select::score(args, scores);
    }

    fn soft_vote(&self, scores: &mut Scores, dtype: ScoreDtype, votes: &mut Vec<f32>) {
        select::soft_vote(scores, dtype, votes);
    }

    fn head_vote(&self, scores: &Scores, k: usize, votes: &mut Vec<f32>) {
        select::head_vote(scores, k, votes);
    }

    fn logit_vote(&self, scores: &Scores, dtype: ScoreDtype, votes: &mut Vec<f32>) {
        select::logit_vote(scores, dtype, votes);
    }

    fn top_k(&self, votes: &[f32], k: usize, selected: &mut Vec<u32>) {
        select::top_k(votes, k, selected);
    }

    fn attend(&self, args: &Attend<'_, Self>, out: &mut Vec<f32>) {
        attend::attend(args, out);
    }

    fn attend_rows(&self, args: &AttendRows<'_, Self>, out: &mut Vec<f32>) {
        let positions = args.query_positions();
        let rows = positions.len();
        let mut queries = vec![0.0; rows * args.shape.query_width()];
        self.rotate_queries_at(args.qkv, 0..rows, &args.shape, args.rope, &positions, &mut queries);
        branches::attend(rows, |row| args.one(row, &queries), out);
    }

    fn attention_mass(&self, args: &Attend<'_, Self>, mass: &mut Vec<f32>) {
        mass::attention_mass(args, mass);
    }

    fn key_bounds(
        &self,
        keys: Pages<'_, Self>,
        shape: &AttentionShape,
        rope: &RopeTable,
        tokens: Range<usize>,
        group_tokens: usize,
        out: &mut [Vec<f32>],
    ) {
        rows::key_bounds(keys, shape, rope, tokens, group_tokens, out);
    }

    fn mean_keys(
        &self,
        keys: Pages<'_, Self>,
        shape: &AttentionShape,
        members: &[u32],
        count: usize,
        row: usize,
        out: &mut [Vec<f32>],
    ) {
        rows::mean_keys(keys, shape, members, count, row, out);
    }
}
