//! The truth: every primitive as one plain loop, f32, one thread. Slow on purpose; read it beside the papers.

use super::{
    Attend, AttentionShape, Backend, Device, PAGE_TOKENS, PageTable, Pages, Part, QkvPart, RopeTable, RowSource,
    ScoreArgs, ScoreDtype, Scores, order_key, round_bf16,
};
use std::borrow::Cow;
use std::ops::Range;

/// The plain backend.
#[derive(Debug, Default, Clone, Copy)]
pub struct Reference;

/// A row-major matrix `[rows, cols]`.
pub struct RowMajor {
    data: Vec<f32>,
    cols: usize,
}

/// The D elements of head `kv` of `token` in pages of `[Hkv, PAGE_TOKENS, D]`.
pub(crate) fn head_row<'a>(
    pages: &'a [Vec<f32>],
    table: &PageTable,
    token: usize,
    kv: usize,
    shape: &AttentionShape,
) -> &'a [f32] {
    let slot = table.slot(token);
    let at = (kv * PAGE_TOKENS + slot % PAGE_TOKENS) * shape.head_dim;
    &pages[slot / PAGE_TOKENS][at..at + shape.head_dim]
}

fn rotated(x: &[f32], rope: &RopeTable, position: usize) -> Vec<f32> {
    let half = rope.half;
    let (cos, sin) = rope.row(position);
    let mut out = vec![0.0; x.len()];
    for d in 0..half {
        out[d] = x[d] * cos[d] - x[d + half] * sin[d];
        out[d + half] = x[d + half] * cos[d] + x[d] * sin[d];
    }
    out
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn normalise(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean_square = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (mean_square + eps).sqrt();
    for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * scale * w;
    }
}

impl Device for Reference {
    type Buffer = Vec<f32>;
    type Matrix = RowMajor;
    type Ids = Vec<u32>;
    type Recording = ();
    type ChoiceRoom = ();

    fn name(&self) -> &'static str {
        "reference"
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

    fn matrix(&self, rows: usize, cols: usize, source: &RowSource<'_>) -> RowMajor {
        let mut data = vec![0.0; rows * cols];
        for (r, row) in data.chunks_exact_mut(cols).enumerate() {
            source(r, row);
        }
        RowMajor { data, cols }
    }

    fn matrix_bytes(&self, rows: usize, cols: usize) -> usize {
        rows * cols * 4
    }

    fn working_bytes(&self, _rows: usize, _width: usize, _shape: &AttentionShape) -> usize {
        0
    }

    fn ids(&self, len: usize) -> Vec<u32> {
        vec![0; len]
    }

    fn set_ids(&self, ids: &[u32], out: &mut Vec<u32>) {
        out[..ids.len()].copy_from_slice(ids);
    }

    fn embed(&self, table: &RowMajor, ids: &Vec<u32>, rows: usize, out: &mut Vec<f32>) {
        for (row, &id) in out.chunks_exact_mut(table.cols).zip(&ids[..rows]) {
            row.copy_from_slice(&table.data[id as usize * table.cols..][..table.cols]);
        }
    }

    fn linear(
        &self,
        x: &Vec<f32>,
        rows: usize,
        w: &RowMajor,
        bias: Option<&Vec<f32>>,
        accumulate: bool,
        out: &mut Vec<f32>,
    ) {
        let outputs = w.data.len() / w.cols;
        for i in 0..rows {
            for o in 0..outputs {
                let mut y = dot(&x[i * w.cols..][..w.cols], &w.data[o * w.cols..][..w.cols]);
                y += bias.map_or(0.0, |b| b[o]);
                let target = &mut out[i * outputs + o];
                *target = if accumulate { *target + y } else { y };
            }
        }
    }

    fn rms_norm(&self, x: &Vec<f32>, weight: &Vec<f32>, eps: f32, rows: Range<usize>, out: &mut Vec<f32>) {
        let width = weight.len();
        for (to, i) in rows.enumerate() {
            normalise(&x[i * width..][..width], weight, eps, &mut out[to * width..][..width]);
        }
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
        let (offset, heads) = match part {
            QkvPart::Queries => (0, shape.query_heads),
            QkvPart::Keys => (shape.key_offset(), shape.kv_heads),
        };
        for i in 0..rows {
            for h in 0..heads {
                let head = &mut qkv[i * shape.qkv_width() + offset + h * shape.head_dim..][..shape.head_dim];
                let source = head.to_vec();
                normalise(&source, weight, eps, head);
            }
        }
    }

    fn silu_mul(&self, gate_up: &Vec<f32>, rows: usize, width: usize, out: &mut Vec<f32>) {
        for i in 0..rows {
            for j in 0..width {
                let gate = gate_up[i * 2 * width + j];
                let up = gate_up[i * 2 * width + width + j];
                out[i * width + j] = gate / (1.0 + (-gate).exp()) * up;
            }
        }
    }
}

impl Backend for Reference {
    fn rotate_queries(
        &self,
        qkv: &Vec<f32>,
        rows: Range<usize>,
        shape: &AttentionShape,
        rope: &RopeTable,
        first_position: usize,
        out: &mut Vec<f32>,
    ) {
        for (to, i) in rows.enumerate() {
            for h in 0..shape.query_heads {
                let q = &qkv[i * shape.qkv_width() + h * shape.head_dim..][..shape.head_dim];
                out[(to * shape.query_heads + h) * shape.head_dim..][..shape.head_dim].copy_from_slice(&rotated(
                    q,
                    rope,
                    first_position + i,
                ));
            }
        }
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
        for (to, (i, &position)) in rows.zip(positions).enumerate() {
            for h in 0..shape.query_heads {
                let q = &qkv[i * shape.qkv_width() + h * shape.head_dim..][..shape.head_dim];
                out[(to * shape.query_heads + h) * shape.head_dim..][..shape.head_dim].copy_from_slice(&rotated(
                    q,
                    rope,
                    position as usize,
                ));
            }
        }
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
        for i in 0..rows {
            let slot = table.slot(first_token + i);
            for kv in 0..shape.kv_heads {
                let at = (kv * PAGE_TOKENS + slot % PAGE_TOKENS) * d;
                let row = i * shape.qkv_width();
                let page = slot / PAGE_TOKENS;
                keys[page][at..at + d].copy_from_slice(&qkv[row + shape.key_offset() + kv * d..][..d]);
                values[page][at..at + d].copy_from_slice(&qkv[row + shape.value_offset() + kv * d..][..d]);
            }
        }
    }

    fn group_means(&self, x: &Vec<f32>, rows: usize, width: usize, group_rows: usize, out: &mut Vec<f32>) {
        for (group, target) in x[..rows * width]
            .chunks(group_rows * width)
            .zip(out.chunks_exact_mut(width))
        {
            let n = (group.len() / width) as f32;
            for (j, value) in target.iter_mut().enumerate() {
                *value = group.chunks_exact(width).map(|row| row[j]).sum::<f32>() / n;
            }
        }
    }

    fn score(&self, args: &ScoreArgs<'_, Self>, scores: &mut Scores) {
        let shape = &args.shape;
        let round = |x: f32| match args.dtype {
            ScoreDtype::F32 => x,
            ScoreDtype::Bf16 => round_bf16(x),
        };
        scores.reset(args.query_count * shape.query_heads, args.candidates.len());
        for row in 0..scores.rows {
            let kv = args.head_map.kv_head(row % shape.query_heads, shape);
            let query: Vec<f32> = args.queries[row * shape.head_dim..][..shape.head_dim]
                .iter()
                .map(|&x| round(x))
                .collect();
            for (t, token) in args.candidates.clone().enumerate() {
                let key: Vec<f32> = head_row(args.keys.pages, args.keys.table, token, kv, shape)
                    .iter()
                    .map(|&x| round(x))
                    .collect();
                let at = scores.at(row, t);
                scores.data[at] = round(args.scale * dot(&query, &key));
            }
        }
    }

    fn soft_vote(&self, scores: &mut Scores, dtype: ScoreDtype, votes: &mut Vec<f32>) {
        votes.clear();
        votes.resize(scores.len, 0.0);
        for row in 0..scores.rows {
            let max = (0..scores.len)
                .map(|t| scores.get(row, t))
                .fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = (0..scores.len).map(|t| (scores.get(row, t) - max).exp()).sum();
            for (t, vote) in votes.iter_mut().enumerate() {
                let p = (scores.get(row, t) - max).exp() / sum;
                *vote += if dtype == ScoreDtype::Bf16 { round_bf16(p) } else { p };
            }
        }
        if dtype == ScoreDtype::Bf16 {
            for v in votes.iter_mut() {
                *v = round_bf16(*v);
            }
        }
    }

    fn head_vote(&self, scores: &Scores, k: usize, votes: &mut Vec<f32>) {
        votes.clear();
        votes.resize(scores.len, 0.0);
        let mut chosen = Vec::new();
        for row in 0..scores.rows {
            let line: Vec<f32> = (0..scores.len).map(|t| scores.get(row, t)).collect();
            self.top_k(&line, k, &mut chosen);
            for &t in &chosen {
                votes[t as usize] += 1.0;
            }
        }
    }

    fn logit_vote(&self, scores: &Scores, dtype: ScoreDtype, votes: &mut Vec<f32>) {
        votes.clear();
        votes.extend((0..scores.len).map(|t| {
            let sum: f32 = (0..scores.rows).map(|row| scores.get(row, t)).sum();
            if dtype == ScoreDtype::Bf16 {
                round_bf16(sum)
            } else {
                sum
            }
        }));
    }

    fn top_k(&self, votes: &[f32], k: usize, selected: &mut Vec<u32>) {
        selected.clear();
        selected.extend(0..votes.len() as u32);
        selected.sort_by_key(|&t| (std::cmp::Reverse(order_key(votes[t as usize])), t));
        selected.truncate(k);
        selected.sort_unstable();
    }

    fn attend(&self, args: &Attend<'_, Self>, out: &mut Vec<f32>) {
        let shape = &args.shape;
        let d = shape.head_dim;
        for i in 0..args.rows {
            for h in 0..shape.query_heads {
                let kv = h / shape.group();
                let target = &mut out[(i * shape.query_heads + h) * d..][..d];
                target.fill(0.0);
                for (_, j, weight) in weights(args, i, h) {
                    let value = head_row(
                        args.values.pages,
                        args.values.table,
                        args.tokens.token(kv, j),
                        kv,
                        shape,
                    );
                    for (o, v) in target.iter_mut().zip(value) {
                        *o += weight * v;
                    }
                }
            }
        }
    }

    fn attention_mass(&self, args: &Attend<'_, Self>, mass: &mut Vec<f32>) {
        let n = args.tokens.len();
        mass.clear();
        mass.resize(args.shape.query_heads * n, 0.0);
        for i in 0..args.rows {
            for h in 0..args.shape.query_heads {
                for (part, j, weight) in weights(args, i, h) {
                    if part == Part::Near {
                        mass[h * n + j] += weight;
                    }
                }
            }
        }
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
        let d = shape.head_dim;
        for first in tokens.step_by(group_tokens) {
            let row = first / group_tokens;
            for kv in 0..shape.kv_heads {
                let at = (kv * PAGE_TOKENS + row % PAGE_TOKENS) * 2 * d;
                let (high, low) = out[row / PAGE_TOKENS][at..at + 2 * d].split_at_mut(d);
                high.fill(f32::NEG_INFINITY);
                low.fill(f32::INFINITY);
                for token in first..first + group_tokens {
                    let key = rotated(head_row(keys.pages, keys.table, token, kv, shape), rope, token);
                    for ((high, low), k) in high.iter_mut().zip(low.iter_mut()).zip(key) {
                        *high = high.max(k);
                        *low = low.min(k);
                    }
                }
            }
        }
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
        let d = shape.head_dim;
        for (h, members) in members.chunks_exact(count).enumerate() {
            let mean = &mut out[row / PAGE_TOKENS][(h * PAGE_TOKENS + row % PAGE_TOKENS) * d..][..d];
            mean.fill(0.0);
            for &token in members {
                let key = head_row(keys.pages, keys.table, token as usize, h / shape.group(), shape);
                for (m, k) in mean.iter_mut().zip(key) {
                    *m += k / count as f32;
                }
            }
        }
    }
}

/// Softmax weights of row `i`, query head `h`: part, list entry, weight.
fn weights(args: &Attend<'_, Reference>, i: usize, h: usize) -> Vec<(Part, usize, f32)> {
    let shape = &args.shape;
    let (d, kv) = (shape.head_dim, h / shape.group());
    let mut weights = Vec::new();
    for &part in args.parts() {
        let query = &args.queries(part)[(i * shape.query_heads + h) * d..][..d];
        for j in args.visible(part, kv, i) {
            let key = head_row(args.keys.pages, args.keys.table, args.tokens.token(kv, j), kv, shape);
            let key = rotated(key, args.rope, args.key_position(part, kv, j));
            weights.push((part, j, dot(query, &key) / (d as f32).sqrt()));
        }
    }
    let max = weights.iter().map(|w| w.2).fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = weights.iter().map(|w| (w.2 - max).exp()).sum();
    for (_, _, weight) in &mut weights {
        *weight = (*weight - max).exp() / sum;
    }
    weights
}
