//! Scores of cached keys and the votes made of them: operands, precision, layout, order.

use super::{AttentionShape, Device, Pages};

/// Candidates per block of [`Scores`].
pub const SCORE_BLOCK: usize = 512;

/// Which query head is scored against which KV head (`TokenSelect`, Algorithm 2; spec section (c) item 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadMap {
    /// `h / group`: the model's own map.
    Grouped,
    /// `h mod Hkv`: what the published kernel does.
    Modulo,
}

impl HeadMap {
    /// The KV head of query head `h`.
    pub fn kv_head(self, h: usize, shape: &AttentionShape) -> usize {
        match self {
            Self::Grouped => h / shape.group(),
            Self::Modulo => h % shape.kv_heads,
        }
    }
}

/// Precision of scores, softmax and vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreDtype {
    /// Single precision throughout.
    F32,
    /// Queries, keys, scores, probabilities and votes are each rounded to bfloat16; sums accumulate in f32.
    Bf16,
}

/// Operands of [`Backend::score`](super::Backend::score).
pub struct ScoreArgs<'a, B: Device> {
    /// H, Hkv, D.
    pub shape: AttentionShape,
    /// `[U, H, D]`: U selection queries, rotated and averaged.
    pub queries: &'a B::Buffer,
    /// U.
    pub query_count: usize,
    /// Un-rotated keys.
    pub keys: Pages<'a, B>,
    /// Logical tokens to score.
    pub candidates: std::ops::Range<usize>,
    /// Which KV head a query head reads.
    pub head_map: HeadMap,
    /// Multiplies every product: 1, or 1/sqrt(D).
    pub scale: f32,
    /// Precision.
    pub dtype: ScoreDtype,
}

/// Scores of R = U * H rows (row `u * H + h`) over n candidates, in blocks of [`SCORE_BLOCK`] candidates:
/// `[ceil(n / SCORE_BLOCK), R, SCORE_BLOCK]`, so that one block is a contiguous task. The tail of the last block is
/// unspecified.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// Block storage.
    pub data: Vec<f32>,
    /// R.
    pub rows: usize,
    /// n.
    pub len: usize,
}

impl Scores {
    /// Resizes for `rows` by `len`, keeping the allocation.
    pub fn reset(&mut self, rows: usize, len: usize) {
        self.rows = rows;
        self.len = len;
        self.data.resize(Self::elements(rows, len), 0.0);
    }

    /// Elements stored for `rows` by `len`.
    pub fn elements(rows: usize, len: usize) -> usize {
        len.div_ceil(SCORE_BLOCK) * rows * SCORE_BLOCK
    }

    /// Score of row `r`, candidate `t` (counted from the first candidate).
    #[inline(always)]
    pub fn get(&self, r: usize, t: usize) -> f32 {
        self.data[self.at(r, t)]
    }

    /// Index of row `r`, candidate `t` in `data`.
    #[inline(always)]
    pub fn at(&self, r: usize, t: usize) -> usize {
        (t / SCORE_BLOCK * self.rows + r) * SCORE_BLOCK + t % SCORE_BLOCK
    }

    /// Candidates in block `block`.
    pub fn block_len(&self, block: usize) -> usize {
        SCORE_BLOCK.min(self.len - block * SCORE_BLOCK)
    }
}

/// Max-pool with stride 1 and padding `(kernel - 1) / 2`, as the published code smooths its votes (spec (c) item 2).
/// An even kernel leaves the last vote without a value (the result is one shorter). 0 and 1 change nothing.
pub fn smooth(votes: &mut Vec<f32>, kernel: usize) {
    if kernel <= 1 || votes.is_empty() {
        return;
    }
    let padding = (kernel - 1) / 2;
    let len = (votes.len() + 2 * padding + 1).saturating_sub(kernel);
    let source = std::mem::take(votes);
    // Monotone queue of indices: linear in the number of votes whatever the kernel.
    let mut queue: std::collections::VecDeque<usize> = std::collections::VecDeque::new();
    let mut next = 0;
    for i in 0..len {
        let end = (i + kernel).saturating_sub(padding).min(source.len());
        while next < end {
            while queue.back().is_some_and(|&b| source[b] <= source[next]) {
                queue.pop_back();
            }
            queue.push_back(next);
            next += 1;
        }
        while queue.front().is_some_and(|&f| f + padding < i) {
            queue.pop_front();
        }
        votes.push(queue.front().map_or(f32::NEG_INFINITY, |&f| source[f]));
    }
}

/// Rounds to bfloat16 and back, to nearest even.
#[inline(always)]
pub fn round_bf16(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    let bits = x.to_bits();
    f32::from_bits((bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) & 0xffff_0000)
}

/// A total order for top-k as an unsigned key: larger score, larger key; NaN lowest; -0 equals +0.
#[inline(always)]
pub fn order_key(score: f32) -> u32 {
    if score.is_nan() {
        return 0;
    }
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits }
}
