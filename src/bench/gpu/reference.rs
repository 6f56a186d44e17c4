//! What a GPU kernel must find, computed on the host in f32 from the very bits that it read.
//!
//! Keys and values are those of one layer, token-major `[N][Hkv][D]`. Products are summed in 16 lanes, so that the
//! compiler vectorises them; softmax sums are f64.

use crate::kernels::cpu::math::dot;
use crate::kernels::cuda::Element;
use crate::kernels::{AttentionShape, HeadMap, RopeTable};
use rayon::prelude::*;
use std::ops::Range;

/// Tokens per task.
const BLOCK: usize = 4096;

/// Keys or values of one layer as stored, `[N][Hkv][D]`.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// Elements.
    pub bits: &'a [u16],
    /// Their type.
    pub element: Element,
    /// H, Hkv, D.
    pub shape: AttentionShape,
}

impl Stored<'_> {
    /// N.
    pub fn tokens(&self) -> usize {
        self.bits.len() / self.shape.kv_width()
    }

    /// Head `kv` of `token`.
    fn read(&self, token: usize, kv: usize, out: &mut [f32]) {
        let at = (token * self.shape.kv_heads + kv) * self.shape.head_dim;
        for (out, &bits) in out.iter_mut().zip(&self.bits[at..]) {
            *out = self.element.value(bits);
        }
    }
}

/// Rotates a head in place.
fn rotate(head: &mut [f32], rope: &RopeTable, position: usize) {
    let (cos, sin) = rope.row(position);
    let (low, high) = head.split_at_mut(rope.half);
    for (((x, y), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*x, *y) = (*x * c - *y * s, *y * c + *x * s);
    }
}

/// Query heads of fused row `row` of `qkv`, rotated at `position`; `[H, D]`.
pub fn rotated_query(qkv: &[f32], row: usize, shape: &AttentionShape, rope: &RopeTable, position: usize) -> Vec<f32> {
    let mut query = qkv[row * shape.qkv_width()..][..shape.query_width()].to_vec();
    query
        .chunks_exact_mut(shape.head_dim)
        .for_each(|head| rotate(head, rope, position));
    query
}

/// The query that selects for fused rows `rows` (arXiv 2411.02886, section 4.2): row i rotated at `n_local + i`, the mean
/// over rows.
pub fn selection_query(
    qkv: &[f32],
    rows: Range<usize>,
    shape: &AttentionShape,
    rope: &RopeTable,
    n_local: usize,
) -> Vec<f32> {
    let count = rows.len() as f64;
    let mut sums = vec![0.0f64; shape.query_width()];
    for (i, row) in rows.enumerate() {
        let query = rotated_query(qkv, row, shape, rope, n_local + i);
        sums.iter_mut().zip(query).for_each(|(sum, x)| *sum += f64::from(x));
    }
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// Head soft votes (Eq. 7) of the candidates: softmax of every head's scores, summed over heads.
pub fn soft_votes(
    query: &[f32],
    keys: Stored<'_>,
    candidates: Range<usize>,
    head_map: HeadMap,
    scale: f32,
) -> Vec<f64> {
    let (shape, n) = (keys.shape, candidates.len());
    let (d, heads) = (shape.head_dim, shape.query_heads);
    let mut scores = vec![0.0f32; n * heads];
    scores
        .par_chunks_mut(BLOCK * heads)
        .enumerate()
        .for_each(|(block, scores)| {
            let mut key = vec![0.0; d];
            for (i, scores) in scores.chunks_exact_mut(heads).enumerate() {
                for kv in 0..shape.kv_heads {
                    keys.read(candidates.start + block * BLOCK + i, kv, &mut key);
                    for (h, score) in scores.iter_mut().enumerate() {
                        if head_map.kv_head(h, &shape) == kv {
                            *score = scale * dot(&query[h * d..][..d], &key);
                        }
                    }
                }
            }
        });
    let top = scores
        .par_chunks(BLOCK * heads)
        .map(|scores| largest(scores, heads))
        .reduce(
            || vec![f32::NEG_INFINITY; heads],
            |a, b| a.iter().zip(&b).map(|(a, b)| a.max(*b)).collect(),
        );
    let sums = scores
        .par_chunks(BLOCK * heads)
        .map(|scores| {
            let mut sums = vec![0.0f64; heads];
            for row in scores.chunks_exact(heads) {
                for ((sum, score), top) in sums.iter_mut().zip(row).zip(&top) {
                    *sum += f64::from(score - top).exp();
                }
            }
            sums
        })
        .reduce(
            || vec![0.0; heads],
            |a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect(),
        );
    let vote = |row: &[f32]| -> f64 {
        let parts = row.iter().zip(&top).zip(&sums);
        parts
            .map(|((score, top), sum)| f64::from(score - top).exp() / sum)
            .sum()
    };
    scores.par_chunks_exact(heads).map(vote).collect()
}

fn largest(scores: &[f32], heads: usize) -> Vec<f32> {
    let mut top = vec![f32::NEG_INFINITY; heads];
    for row in scores.chunks_exact(heads) {
        top.iter_mut().zip(row).for_each(|(top, score)| *top = top.max(*score));
    }
    top
}

/// How a kernel's choice stands to the votes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Share of the `k` best candidates that were chosen.
    pub recall: f64,
    /// How far beyond the last vote that is still chosen the worst wrong choice lies, relative to it; 0 where the sets are
    /// equal.
    pub worst: f64,
}

/// Compares `chosen` (indices of candidates, ascending, unique) with the `k` largest votes.
pub fn compare_choice(votes: &[f64], k: usize, chosen: &[usize]) -> Choice {
    let k = k.min(votes.len());
    if k == 0 {
        return Choice {
            recall: 1.0,
            worst: 0.0,
        };
    }
    let mut order: Vec<usize> = (0..votes.len()).collect();
    let better = |a: &usize, b: &usize| votes[*b].total_cmp(&votes[*a]).then(a.cmp(b));
    order.select_nth_unstable_by(k - 1, better);
    let threshold = votes[order[k - 1]];
    let mut best = order[..k].to_vec();
    best.sort_unstable();
    let off = |i: &usize| (votes[*i] - threshold).abs() / threshold;
    let missing = best.iter().filter(|i| chosen.binary_search(i).is_err());
    let missing: Vec<f64> = missing.map(off).collect();
    let surplus = chosen.iter().filter(|i| best.binary_search(i).is_err()).map(off);
    let strange = chosen.len() != k || chosen.windows(2).any(|pair| pair[0] >= pair[1]);
    Choice {
        recall: 1.0 - missing.len() as f64 / k as f64,
        worst: missing
            .iter()
            .copied()
            .chain(surplus)
            .fold(if strange { f64::INFINITY } else { 0.0 }, f64::max),
    }
}

/// Where the keys of a list are placed.
#[derive(Clone, Copy)]
pub enum Placed<'a> {
    /// Stored rotated.
    AsStored,
    /// Entry j of the list is rotated to position j.
    Packed(&'a RopeTable),
    /// The same, and stored in the type of the keys, which is what the matrix units are given.
    PackedRounded(&'a RopeTable),
}

/// Rounds to what `element` can hold.
pub fn round(values: &mut [f32], element: Element) {
    for x in values {
        *x = element.value(element.bits(*x));
    }
}

/// Per head: largest score, sum of weights, weighted values.
type Part = Vec<(f32, f64, Vec<f64>)>;

/// Attention of one row, `query` `[H, D]` rotated, over the listed tokens; `[H, D]`.
pub fn attend_row(query: &[f32], keys: Stored<'_>, values: Stored<'_>, list: &[usize], placed: Placed<'_>) -> Vec<f32> {
    let shape = keys.shape;
    let (d, heads, group) = (shape.head_dim, shape.query_heads, shape.group());
    let scale = 1.0 / (d as f32).sqrt();
    let empty = || -> Part { vec![(f32::NEG_INFINITY, 0.0, vec![0.0; d]); heads] };
    let merged = list
        .par_chunks(BLOCK)
        .enumerate()
        .map(|(block, list)| {
            let mut part = empty();
            let (mut key, mut value) = (vec![0.0; d], vec![0.0; d]);
            for (i, &token) in list.iter().enumerate() {
                for kv in 0..shape.kv_heads {
                    keys.read(token, kv, &mut key);
                    values.read(token, kv, &mut value);
                    match placed {
                        Placed::AsStored => {}
                        Placed::Packed(rope) => rotate(&mut key, rope, block * BLOCK + i),
                        Placed::PackedRounded(rope) => {
                            rotate(&mut key, rope, block * BLOCK + i);
                            round(&mut key, keys.element);
                        }
                    }
                    for h in kv * group..(kv + 1) * group {
                        let score = scale * dot(&query[h * d..][..d], &key);
                        let (top, sum, out) = &mut part[h];
                        if score > *top {
                            let shrink = f64::from(*top - score).exp();
                            *top = score;
                            *sum *= shrink;
                            for x in out.iter_mut() {
                                *x *= shrink;
                            }
                        }
                        let weight = f64::from(score - *top).exp();
                        *sum += weight;
                        out.iter_mut()
                            .zip(&value)
                            .for_each(|(x, v)| *x += weight * f64::from(*v));
                    }
                }
            }
            part
        })
        .reduce(empty, |a, b| a.into_iter().zip(b).map(|(a, b)| merge(a, &b)).collect());
    merged
        .into_iter()
        .flat_map(|(_, sum, out)| out.into_iter().map(move |x| (x / sum) as f32))
        .collect()
}

fn merge(mut a: (f32, f64, Vec<f64>), b: &(f32, f64, Vec<f64>)) -> (f32, f64, Vec<f64>) {
    let top = a.0.max(b.0);
    if top == f32::NEG_INFINITY {
        return a;
    }
    let (left, right) = (f64::from(a.0 - top).exp(), f64::from(b.0 - top).exp());
    a.0 = top;
    a.1 = a.1 * left + b.1 * right;
    a.2.iter_mut().zip(&b.2).for_each(|(x, y)| *x = *x * left + y * right);
    a
}

/// Norm of the difference over the norm of `expected`; NaN where `found` holds one.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let pairs = found.iter().zip(expected);
    let difference: f64 = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|x| square(f64::from(*x))).sum();
    if found.len() == expected.len() {
        (difference / norm).sqrt()
    } else {
        f64::NAN
    }
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
