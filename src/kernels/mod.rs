//! Numerical primitives, each in a plain reference form and in fast forms.
//!
//! [`Device`] lists what the layers of a decoder need, [`Backend`] what selection policies and attention need on host
//! memory. [`reference::Reference`] is the truth: one loop per formula, f32, one thread. [`cpu::Cpu`] is the fast CPU form
//! (all cores, SIMD chosen at run time). One test body (`tests` below) runs both on the same random inputs.
//! [`cuda::Cuda`] is a device with its own selection and attention, checked against the reference where it is timed.
//!
//! The three steps of `TokenSelect` are three separate primitives: [`Backend::score`] (query-key products of the
//! candidates), [`Backend::soft_vote`] with its two rivals and [`Backend::top_k`] (select), and [`Backend::attend`]
//! (attention over the packed selection, keys rotated on the way).
//!
//! Letters: C rows of the chunk, N stored tokens, H query heads, Hkv key-value heads, D head dimension, R score rows.

mod attend;
pub mod choice;
pub mod cpu;
pub mod cuda;
pub mod reference;
mod score;
#[cfg(test)]
mod tests;

use crate::error::Result;
pub use attend::{Attend, AttendRows, Part, Positions, TokenList};
pub use choice::{Choice, Chosen};
pub use score::{HeadMap, SCORE_BLOCK, ScoreArgs, ScoreDtype, Scores, order_key, round_bf16, smooth};

/// Head counts and head dimension of one attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct AttentionShape {
    /// H: query heads.
    pub query_heads: usize,
    /// Hkv: key-value heads; divides `query_heads`.
    pub kv_heads: usize,
    /// D: elements per head; even.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Query heads per KV head.
    pub fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    /// Elements of one row of the fused projection: queries, then keys, then values.
    pub fn qkv_width(&self) -> usize {
        (self.query_heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Elements of one query row, H * D.
    pub fn query_width(&self) -> usize {
        self.query_heads * self.head_dim
    }

    /// Elements of one key (or value) row, Hkv * D.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The first element of key row data inside a fused row.
    pub fn key_offset(&self) -> usize {
        self.query_width()
    }

    /// The first element of value row data inside a fused row.
    pub fn value_offset(&self) -> usize {
        self.query_width() + self.kv_width()
    }
}

/// Tokens per page of the KV cache. Large enough that a page is a long sequential read for one head, small enough that
/// a short prompt wastes little.
pub const PAGE_TOKENS: usize = 256;

/// Where a logical token lives: page `pages[t / PAGE_TOKENS]`, row `t % PAGE_TOKENS`.
#[derive(Debug, Clone, Default)]
pub struct PageTable {
    /// Physical page of each logical page.
    pub pages: Vec<u32>,
}

impl PageTable {
    /// Physical slot of logical token `token`: page number times [`PAGE_TOKENS`] plus the row in the page.
    #[inline(always)]
    pub fn slot(&self, token: usize) -> usize {
        self.pages[token / PAGE_TOKENS] as usize * PAGE_TOKENS + token % PAGE_TOKENS
    }
}

/// The stored keys or values of one layer: pages of `[Hkv, PAGE_TOKENS, D]`, and the table that finds them.
pub struct Pages<'a, B: Device> {
    /// Physical pages.
    pub pages: &'a [B::Buffer],
    /// Logical to physical.
    pub table: &'a PageTable,
}

impl<B: Device> Clone for Pages<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Device> Copy for Pages<'_, B> {}

/// Cosines and sines of the rotary embedding, f32, one row of D/2 per position; an attention factor (`YaRN`) is already
/// multiplied in. Pair `d` is elements `d` and `d + D/2` of a head.
#[derive(Debug, Clone, Default)]
pub struct RopeTable {
    /// `[positions, D/2]`.
    pub cos: Vec<f32>,
    /// `[positions, D/2]`.
    pub sin: Vec<f32>,
    /// D/2.
    pub half: usize,
}

impl RopeTable {
    /// Positions the table holds.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(0)
    }

    /// The rows of cosines and sines of `position`.
    #[inline(always)]
    pub fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let at = position * self.half;
        (&self.cos[at..at + self.half], &self.sin[at..at + self.half])
    }
}

/// Which part of a fused qkv row [`Device::norm_heads`] works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvPart {
    /// The H query heads.
    Queries,
    /// The Hkv key heads.
    Keys,
}

/// Supplies row `index` of a weight matrix as f32.
pub type RowSource<'a> = dyn Fn(usize, &mut [f32]) + Sync + 'a;

/// What the layers of a decoder need besides attention, on one device: buffers, weights, projections, norms.
///
/// Work may be queued: a device that computes by itself keeps its first failure for [`Device::status`].
pub trait Device: Send + Sync + Sized + 'static {
    /// Activations.
    type Buffer: Send + Sync;
    /// A weight matrix `[out, in]` in the layout that this device multiplies fastest.
    type Matrix: Send + Sync;
    /// Token ids where the device reads them.
    type Ids: Send;
    /// A queue of work that can be repeated; empty at first.
    type Recording: Default + Send;
    /// What choosing the tokens of one text needs; empty at first.
    type ChoiceRoom: Default + Send;

    /// Name for reports.
    fn name(&self) -> &'static str;
    /// The first failure of queued work so far.
    fn status(&self) -> Result<()> {
        Ok(())
    }
    /// Bytes of one element of an activation.
    fn element_bytes(&self) -> usize {
        size_of::<f32>()
    }

    /// A buffer of `len` zeros.
    fn zeros(&self, len: usize) -> Self::Buffer;
    /// A buffer of `len` zeros in single precision, whatever activations are: residual stream, logits.
    fn zeros_f32(&self, len: usize) -> Self::Buffer {
        self.zeros(len)
    }
    /// Copies host data to the device.
    fn upload(&self, data: &[f32]) -> Self::Buffer;
    /// Copies device data to the host; waits for queued work.
    fn download<'a>(&self, buffer: &'a Self::Buffer) -> std::borrow::Cow<'a, [f32]>;
    /// Builds a weight matrix of `rows` by `cols` from its rows.
    fn matrix(&self, rows: usize, cols: usize, source: &RowSource<'_>) -> Self::Matrix;
    /// Bytes that [`Device::matrix`] allocates.
    fn matrix_bytes(&self, rows: usize, cols: usize) -> usize;
    /// Bytes of working memory of [`Device::linear`] and of attention, for chunks of `rows` rows and matrices of at most
    /// `width` inputs.
    fn working_bytes(&self, rows: usize, width: usize, shape: &AttentionShape) -> usize;
    /// Room for `len` ids.
    fn ids(&self, len: usize) -> Self::Ids;
    /// Puts `ids` at the start of `out`.
    fn set_ids(&self, ids: &[u32], out: &mut Self::Ids);

    /// Runs `body`. A device that can repeat queued work records it in an empty `recording` and afterwards repeats that
    /// without running `body`: it must queue the same work every time, on the same buffers.
    fn recorded(&self, _recording: &mut Self::Recording, body: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        body()
    }

    /// `out[i] = table[ids[i]]` for the first `rows` ids, out `[rows, cols]` in single precision.
    fn embed(&self, table: &Self::Matrix, ids: &Self::Ids, rows: usize, out: &mut Self::Buffer);
    /// `out[i] = w x[i] + bias`, or `out[i] += ..` if `accumulate`. x `[rows, in]`, out `[rows, out]`; what is added to is in
    /// single precision.
    fn linear(
        &self,
        x: &Self::Buffer,
        rows: usize,
        w: &Self::Matrix,
        bias: Option<&Self::Buffer>,
        accumulate: bool,
        out: &mut Self::Buffer,
    );
    /// `out[i] = x[rows.start + i] / rms(..) * weight`, rows of `weight.len()`; x in single precision.
    fn rms_norm(
        &self,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        eps: f32,
        rows: std::ops::Range<usize>,
        out: &mut Self::Buffer,
    );
    /// RMS norm of every head of one part of the fused rows, in place (Qwen3).
    fn norm_heads(
        &self,
        qkv: &mut Self::Buffer,
        rows: usize,
        shape: &AttentionShape,
        part: QkvPart,
        weight: &Self::Buffer,
        eps: f32,
    );
    /// `out[i] = silu(gate[i]) * up[i]` of fused rows `[gate, up]`; out `[rows, width]`.
    fn silu_mul(&self, gate_up: &Self::Buffer, rows: usize, width: usize, out: &mut Self::Buffer);

    /// `out = w rms_norm(x) + bias` for the first `rows` rows of x. `normed` is room for the norm.
    fn norm_linear(
        &self,
        x: &Self::Buffer,
        norm: &Norm<'_, Self>,
        rows: usize,
        w: &Self::Matrix,
        bias: Option<&Self::Buffer>,
        normed: &mut Self::Buffer,
        out: &mut Self::Buffer,
    ) {
        self.rms_norm(x, norm.weight, norm.eps, 0..rows, normed);
        self.linear(normed, rows, w, bias, false, out);
    }

    /// The first half of a gated feed-forward layer: `out = silu(gate) * up` with `[gate, up] = w rms_norm(x) + bias`, rows of
    /// `width`. `normed` and `gate_up` are room for what lies between.
    fn norm_linear_silu_mul(
        &self,
        x: &Self::Buffer,
        norm: &Norm<'_, Self>,
        rows: usize,
        w: &Self::Matrix,
        bias: Option<&Self::Buffer>,
        width: usize,
        normed: &mut Self::Buffer,
        gate_up: &mut Self::Buffer,
        out: &mut Self::Buffer,
    ) {
        self.norm_linear(x, norm, rows, w, bias, normed, gate_up);
        self.silu_mul(gate_up, rows, width, out);
    }

    /// Chooses a token by the first `vocabulary` logits of the last [`Device::norm_logits`] of one row. A repetition penalty is
    /// written into `logits`.
    fn choose(
        &self,
        _room: &mut Self::ChoiceRoom,
        _logits: &mut Self::Buffer,
        _vocabulary: usize,
        _choice: &Choice<'_>,
    ) -> Chosen {
        Chosen {
            id: None,
            logits_changed: false,
        }
    }

    /// Logits `[rows, V]` in single precision: `w rms_norm(x)` of the given rows of x.
    fn norm_logits(
        &self,
        x: &Self::Buffer,
        norm: &Norm<'_, Self>,
        rows: std::ops::Range<usize>,
        w: &Self::Matrix,
        normed: &mut Self::Buffer,
        out: &mut Self::Buffer,
    ) {
        let count = rows.len();
        self.rms_norm(x, norm.weight, norm.eps, rows, normed);
        self.linear(normed, count, w, None, false, out);
    }
}

/// Weight and constant of an RMS norm.
pub struct Norm<'a, D: Device> {
    /// `[width]`.
    pub weight: &'a D::Buffer,
    /// Added to the mean square.
    pub eps: f32,
}

/// The steps of selection and attention on host memory, which the policies of [`crate::selection`] are written against.
pub trait Backend: Device {
    /// Takes the queries of the given fused rows and rotates row `i` at `first_position + i` (`i` counted from the first
    /// row of the buffer, not of the range); out `[range, H, D]`.
    fn rotate_queries(
        &self,
        qkv: &Self::Buffer,
        rows: std::ops::Range<usize>,
        shape: &AttentionShape,
        rope: &RopeTable,
        first_position: usize,
        out: &mut Self::Buffer,
    );
    /// As [`Backend::rotate_queries`], row `rows.start + i` at `positions[i]`.
    fn rotate_queries_at(
        &self,
        qkv: &Self::Buffer,
        rows: std::ops::Range<usize>,
        shape: &AttentionShape,
        rope: &RopeTable,
        positions: &[u32],
        out: &mut Self::Buffer,
    );
    /// Writes keys (un-rotated) and values of fused rows to the pages of tokens `first_token..first_token + rows`.
    fn store_kv(
        &self,
        qkv: &Self::Buffer,
        rows: usize,
        shape: &AttentionShape,
        table: &PageTable,
        first_token: usize,
        keys: &mut [Self::Buffer],
        values: &mut [Self::Buffer],
    );
    /// Means of consecutive groups of `group_rows` rows (the last may be shorter) of `[rows, width]`; out
    /// `[ceil(rows / group_rows), width]`.
    fn group_means(&self, x: &Self::Buffer, rows: usize, width: usize, group_rows: usize, out: &mut Self::Buffer);

    /// Scores: `scores[u * H + h][t] = scale * <queries[u][h], key[candidate t][head_map(h)]>` (`TokenSelect` Eq. 5 to 7).
    fn score(&self, args: &ScoreArgs<'_, Self>, scores: &mut Scores);
    /// Head soft vote (Eq. 7): softmax of every row over the candidates, summed over rows. Overwrites `scores`.
    fn soft_vote(&self, scores: &mut Scores, dtype: ScoreDtype, votes: &mut Vec<f32>);
    /// Head vote (Eq. 6): every row votes for its `k` best candidates.
    fn head_vote(&self, scores: &Scores, k: usize, votes: &mut Vec<f32>);
    /// Sum of raw scores over rows (Eq. 5 with heads concatenated).
    fn logit_vote(&self, scores: &Scores, dtype: ScoreDtype, votes: &mut Vec<f32>);
    /// Positions of the `k` largest votes, ascending; equal votes go to the lower position. NaN counts as lowest.
    fn top_k(&self, votes: &[f32], k: usize, selected: &mut Vec<u32>);
    /// Attention (softmax(q k / sqrt(D)) v) of every chunk row over the listed tokens; out `[C, H, D]`.
    fn attend(&self, args: &Attend<'_, Self>, out: &mut Self::Buffer);
    /// Attention of every row over a list of its own; out `[rows, H, D]`. This form goes row by row through the host; a
    /// backend where that matters has a better one.
    fn attend_rows(&self, args: &AttendRows<'_, Self>, out: &mut Self::Buffer)
    where
        Self: Sized,
    {
        let width = args.shape.query_width();
        let (mut query, mut attended) = (self.zeros(width), self.zeros(width));
        let mut all = self.download(out).into_owned();
        for (row, &position) in args.query_positions().iter().enumerate() {
            self.rotate_queries_at(args.qkv, row..row + 1, &args.shape, args.rope, &[position], &mut query);
            self.attend(&args.one(row, &query), &mut attended);
            all[row * width..(row + 1) * width].copy_from_slice(&self.download(&attended)[..width]);
        }
        *out = self.upload(&all);
    }
    /// How much attention each listed token gets: `mass[h * n + j]` is the sum over the chunk's rows of the softmax weight
    /// that query head h gives to entry j of its list of n. Values are not read. With grouped positions the softmax runs
    /// over all visible keys, but only weights of [`Part::Near`] are added.
    fn attention_mass(&self, args: &Attend<'_, Self>, mass: &mut Vec<f32>);
    /// Element-wise bounds of rotated keys (`Quest`): for each group of `group_tokens` consecutive tokens in `tokens` (whole
    /// groups), its row of `out`, pages of `[Hkv, PAGE_TOKENS, 2 D]` in order: D maxima, then D minima, of the keys rotated
    /// at their places in the text.
    fn key_bounds(
        &self,
        keys: Pages<'_, Self>,
        shape: &AttentionShape,
        rope: &RopeTable,
        tokens: std::ops::Range<usize>,
        group_tokens: usize,
        out: &mut [Self::Buffer],
    );
    /// Means of un-rotated keys (`InfLLM`): row `row` of `out`, pages of `[H, PAGE_TOKENS, D]` in order, becomes for each
    /// query head h the mean key of the tokens `members[h * count..][..count]` in the KV head that h reads.
    fn mean_keys(
        &self,
        keys: Pages<'_, Self>,
        shape: &AttentionShape,
        members: &[u32],
        count: usize,
        row: usize,
        out: &mut [Self::Buffer],
    );
}
