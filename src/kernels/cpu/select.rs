//! Scores, votes and top-k.

use super::aligned::Aligned;
use super::math;
use super::narrow::{self, QUERIES};
use crate::kernels::{PAGE_TOKENS, SCORE_BLOCK, ScoreArgs, ScoreDtype, Scores, order_key, round_bf16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Up to [`QUERIES`] score rows that read one KV head, with their queries as a panel.
struct RowGroup {
    kv: usize,
    rows: Vec<usize>,
    queries: Aligned,
}

fn row_groups(args: &ScoreArgs<'_, super::Cpu>) -> Vec<RowGroup> {
    let shape = &args.shape;
    let d = shape.head_dim;
    let mut groups = Vec::new();
    for kv in 0..shape.kv_heads {
        let rows: Vec<usize> = (0..args.query_count * shape.query_heads)
            .filter(|row| args.head_map.kv_head(row % shape.query_heads, shape) == kv)
            .collect();
        for rows in rows.chunks(QUERIES) {
            let queries = narrow::panels(rows.len(), d, |r, k| {
                let q = args.queries[rows[r] * d + k];
                if args.dtype == ScoreDtype::Bf16 {
                    round_bf16(q)
                } else {
                    q
                }
            });
            groups.push(RowGroup {
                kv,
                rows: rows.to_vec(),
                queries,
            });
        }
    }
    groups
}

/// The scores of one block of candidates.
struct ScoreBlock<'a> {
    args: &'a ScoreArgs<'a, super::Cpu>,
    groups: &'a [RowGroup],
    first: usize,
    len: usize,
    out: &'a mut [f32],
}

impl WithSimd for ScoreBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.args.shape.head_dim;
        let bf16 = self.args.dtype == ScoreDtype::Bf16;
        let mut rounded = Vec::new();
        let mut t = 0;
        while t < self.len {
            // A run of candidates inside one page is contiguous for one head.
            let slot = self.args.keys.table.slot(self.first + t);
            let run = (self.len - t).min(PAGE_TOKENS - slot % PAGE_TOKENS);
            let page = &self.args.keys.pages[slot / PAGE_TOKENS];
            for group in self.groups {
                let mut keys = &page[(group.kv * PAGE_TOKENS + slot % PAGE_TOKENS) * d..][..run * d];
                if bf16 {
                    rounded.clear();
                    rounded.extend(keys.iter().map(|&k| round_bf16(k)));
                    keys = &rounded;
                }
                let scale = self.args.scale;
                let out = &mut *self.out;
                narrow::scores(simd, keys, d, &group.queries, |first, count, tile| {
                    for (&row, scores) in group.rows.iter().zip(tile) {
                        let target = &mut out[row * SCORE_BLOCK + t + first..][..count];
                        for (value, score) in target.iter_mut().zip(scores) {
                            let score = score * scale;
                            *value = if bf16 { round_bf16(score) } else { score };
                        }
                    }
                });
            }
            t += run;
        }
    }
}

pub(super) fn score(args: &ScoreArgs<'_, super::Cpu>, scores: &mut Scores) {
    scores.reset(args.query_count * args.shape.query_heads, args.candidates.len());
    if scores.len == 0 {
        return;
    }
    let arch = Arch::new();
    let groups = row_groups(args);
    let (rows, len) = (scores.rows, scores.len);
    scores
        .data
        .par_chunks_mut(rows * SCORE_BLOCK)
        .enumerate()
        .for_each(|(block, out)| {
            arch.dispatch(ScoreBlock {
                args,
                groups: &groups,
                first: args.candidates.start + block * SCORE_BLOCK,
                len: SCORE_BLOCK.min(len - block * SCORE_BLOCK),
                out,
            });
        });
}

/// Folds one value per row and block into one per row.
fn over_blocks(blocks: &[Vec<f32>], rows: usize, start: f32, fold: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    let mut total = vec![start; rows];
    for block in blocks {
        for (t, &value) in total.iter_mut().zip(block) {
            *t = fold(*t, value);
        }
    }
    total
}

/// Softmax over candidates per row, summed over rows. Every block is exponentiated against the row's common maximum, not
/// its own: equal scores must give equal votes wherever they lie, or ties would not go to the lower position.
pub(super) fn soft_vote(scores: &mut Scores, dtype: ScoreDtype, votes: &mut Vec<f32>) {
    votes.clear();
    votes.resize(scores.len, 0.0);
    if scores.len == 0 {
        return;
    }
    let arch = Arch::new();
    let (rows, len) = (scores.rows, scores.len);
    let block_len = |block: usize| SCORE_BLOCK.min(len - block * SCORE_BLOCK);
    let maxima: Vec<Vec<f32>> = scores
        .data
        .par_chunks(rows * SCORE_BLOCK)
        .enumerate()
        .map(|(block, data)| {
            let n = block_len(block);
            arch.dispatch(|| data.chunks_exact(SCORE_BLOCK).map(|row| math::max(&row[..n])).collect())
        })
        .collect();
    let max = over_blocks(&maxima, rows, f32::NEG_INFINITY, f32::max);
    let sums: Vec<Vec<f32>> = scores
        .data
        .par_chunks_mut(rows * SCORE_BLOCK)
        .enumerate()
        .map(|(block, data)| {
            let n = block_len(block);
            let rows = data.chunks_exact_mut(SCORE_BLOCK).zip(&max);
            arch.dispatch(|| rows.map(|(row, &max)| math::exp_sum(&mut row[..n], max)).collect())
        })
        .collect();
    let sum = over_blocks(&sums, rows, 0.0, |total, block| total + block);
    votes
        .par_chunks_mut(SCORE_BLOCK)
        .zip(scores.data.par_chunks(rows * SCORE_BLOCK))
        .for_each(|(votes, data)| {
            arch.dispatch(|| {
                for (row, &sum) in data.chunks_exact(SCORE_BLOCK).zip(&sum) {
                    let factor = 1.0 / sum;
                    match dtype {
                        ScoreDtype::F32 => votes.iter_mut().zip(row).for_each(|(v, &e)| *v += e * factor),
                        ScoreDtype::Bf16 => votes
                            .iter_mut()
                            .zip(row)
                            .for_each(|(v, &e)| *v += round_bf16(e * factor)),
                    }
                }
                if dtype == ScoreDtype::Bf16 {
                    for v in votes.iter_mut() {
                        *v = round_bf16(*v);
                    }
                }
            });
        });
}

pub(super) fn head_vote(scores: &Scores, k: usize, votes: &mut Vec<f32>) {
    let chosen: Vec<Vec<u32>> = (0..scores.rows)
        .into_par_iter()
        .map_init(Vec::new, |line, row| {
            line.clear();
            for block in 0..scores.len.div_ceil(SCORE_BLOCK) {
                let at = scores.at(row, block * SCORE_BLOCK);
                line.extend_from_slice(&scores.data[at..at + scores.block_len(block)]);
            }
            let mut selected = Vec::new();
            top_k(line, k, &mut selected);
            selected
        })
        .collect();
    votes.clear();
    votes.resize(scores.len, 0.0);
    for t in chosen.into_iter().flatten() {
        votes[t as usize] += 1.0;
    }
}

pub(super) fn logit_vote(scores: &Scores, dtype: ScoreDtype, votes: &mut Vec<f32>) {
    votes.clear();
    votes.resize(scores.len, 0.0);
    let arch = Arch::new();
    votes
        .par_chunks_mut(SCORE_BLOCK)
        .zip(scores.data.par_chunks(scores.rows * SCORE_BLOCK))
        .for_each(|(votes, data)| {
            arch.dispatch(|| {
                for row in data.chunks_exact(SCORE_BLOCK) {
                    votes.iter_mut().zip(row).for_each(|(v, &s)| *v += s);
                }
                if dtype == ScoreDtype::Bf16 {
                    for v in votes.iter_mut() {
                        *v = round_bf16(*v);
                    }
                }
            });
        });
}

/// Radix selection: three histograms find the k-th largest key, one pass compacts in index order. No sort, and ties at
/// the threshold go to the lowest positions because the pass meets them first.
pub(super) fn top_k(votes: &[f32], k: usize, selected: &mut Vec<u32>) {
    const DIGITS: [(u32, u32); 3] = [(21, 11), (10, 11), (0, 10)];
    selected.clear();
    if k == 0 {
        return;
    }
    if k >= votes.len() {
        selected.extend(0..votes.len() as u32);
        return;
    }
    let keys: Vec<u32> = votes.iter().map(|&v| order_key(v)).collect();
    let mut prefix = 0u32;
    let mut wanted = k;
    let mut histogram = [0u32; 1 << 11];
    for (shift, bits) in DIGITS {
        histogram.fill(0);
        let high = shift + bits;
        for &key in &keys {
            if high == 32 || key >> high == prefix >> high {
                histogram[(key >> shift) as usize & ((1 << bits) - 1)] += 1;
            }
        }
        for digit in (0..1usize << bits).rev() {
            let count = histogram[digit] as usize;
            if count >= wanted {
                prefix |= (digit as u32) << shift;
                break;
            }
            wanted -= count;
        }
    }
    for (t, &key) in keys.iter().enumerate() {
        if key > prefix {
            selected.push(t as u32);
        } else if key == prefix && wanted > 0 {
            wanted -= 1;
            selected.push(t as u32);
        }
    }
}
