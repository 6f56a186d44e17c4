//! Room for the selection of one forward pass.

use super::{SelectSettings, Sharing, query_heads_at_once};
use crate::kernels::AttentionShape;
use crate::kernels::cuda::ELEMENT_BYTES;
use crate::kernels::cuda::driver::{Gpu, Memory};

/// Tokens that one warp compacts.
pub(super) const SEGMENT: usize = 512;
/// Room of a chunk in the histograms: the bins of a vote's first digit, then what the last block found.
pub(super) const HISTOGRAM: usize = 4096 + 16;
/// Blocks of the pass that sums on one multiprocessor, at most.
pub(super) const MOST_SUM_BLOCKS: usize = 2;

/// Room for the selection of one forward pass, used by all layers in turn; `M` is what a part of it is.
pub struct SelectScratch<M = Memory> {
    pub(super) queries: M,
    /// Sums of some rows, and how many blocks have added theirs; back at zero after every launch.
    pub(super) parts: M,
    pub(super) tickets: M,
    pub(super) partial: M,
    pub(super) weights: M,
    pub(super) histograms: M,
    pub(super) votes: M,
    pub(super) scores: M,
    pub(super) found: M,
    pub(super) counts: M,
    /// `[chunks][stride]`: the packed lists.
    pub lists: M,
    /// Device: `[chunks]` lengths of the lists.
    pub lengths: M,
    pub(super) chunks: usize,
    /// Room of one list.
    pub stride: usize,
    pub(super) vote_stride: usize,
}

/// What room is made for.
#[derive(Debug, Clone, Copy)]
pub struct SelectPlan<'a> {
    /// H, Hkv, D.
    pub shape: &'a AttentionShape,
    /// What is selected.
    pub settings: &'a SelectSettings,
    /// Most tokens stored.
    pub capacity: usize,
    /// Most chunks of a forward pass.
    pub chunks: usize,
    /// Most rows of a chunk.
    pub rows: usize,
}

impl SelectPlan<'_> {
    /// The scratch, each part of it made by `part` from its bytes.
    fn parts<M>(&self, gpu: &Gpu, mut part: impl FnMut(usize) -> M) -> SelectScratch<M> {
        let multiprocessors = gpu.properties().multiprocessors as usize;
        let (h, kv, chunks) = (self.shape.query_heads, self.shape.kv_heads, self.chunks);
        let columns = kv * Sharing::of(chunks).tiles(self.shape.group()) * 16;
        let blocks = (multiprocessors * MOST_SUM_BLOCKS / kv).max(1);
        let votes = self.capacity.next_multiple_of(4 * SEGMENT);
        // As many slices of the rows as fill the chip twice, or one of every chunk.
        let slices = (chunks * h).max(2 * multiprocessors * query_heads_at_once(h));
        let stride = self.settings.longest_list(self.rows);
        SelectScratch {
            queries: part(chunks * h * self.shape.head_dim * ELEMENT_BYTES),
            parts: part(slices * self.shape.head_dim * 4),
            tickets: part(chunks * h * 4),
            partial: part(blocks * columns * 8),
            weights: part(columns * 8),
            histograms: part(chunks * HISTOGRAM * 4),
            votes: part(chunks * votes * 4),
            scores: part(h * votes * 4),
            found: part(chunks * votes * 4),
            counts: part(chunks * (votes / SEGMENT) * 4),
            lists: part(chunks * stride * 4),
            lengths: part(chunks * 4),
            chunks,
            stride,
            vote_stride: votes,
        }
    }

    /// Bytes of all parts.
    pub fn bytes(&self, gpu: &Gpu) -> usize {
        let mut all = 0;
        self.parts(gpu, |bytes| all += bytes);
        all
    }
}

impl SelectScratch {
    /// Room for what `plan` says.
    pub fn new(gpu: &Gpu, plan: &SelectPlan<'_>) -> Self {
        plan.parts(gpu, |bytes| gpu.allocate(bytes))
    }

    /// The selection queries `[chunks][H][D]`; for checks.
    pub fn queries(&self) -> &Memory {
        &self.queries
    }
}
