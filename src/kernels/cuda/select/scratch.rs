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

/// Room for the selection of one forward pass, used by all layers in turn.
pub struct SelectScratch {
    pub(super) queries: Memory,
    /// Sums of some rows, and how many blocks have added theirs; back at zero after every launch.
    pub(super) parts: Memory,
    pub(super) tickets: Memory,
    pub(super) partial: Memory,
    pub(super) weights: Memory,
    pub(super) histograms: Memory,
    pub(super) votes: Memory,
    pub(super) scores: Memory,
    pub(super) found: Memory,
    pub(super) counts: Memory,
    /// `[chunks][stride]`: the packed lists.
    pub lists: Memory,
    /// Device: `[chunks]` lengths of the lists.
    pub lengths: Memory,
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
    /// Bytes of each part, in the order of the scratch's fields.
    fn sizes(&self, gpu: &Gpu) -> [usize; 12] {
        let multiprocessors = gpu.properties().multiprocessors as usize;
        let (h, kv, chunks) = (self.shape.query_heads, self.shape.kv_heads, self.chunks);
        let columns = kv * Sharing::of(chunks).tiles(self.shape.group()) * 16;
        let blocks = (multiprocessors * MOST_SUM_BLOCKS / kv).max(1);
        let votes = vote_stride(self.capacity);
        // As many slices of the rows as fill the chip twice, or one of every chunk.
        let slices = (chunks * h).max(2 * multiprocessors * query_heads_at_once(h));
        [
            chunks * h * self.shape.head_dim * ELEMENT_BYTES,
            slices * self.shape.head_dim * 4,
            chunks * h * 4,
            blocks * columns * 8,
            columns * 8,
            chunks * HISTOGRAM * 4,
            chunks * votes * 4,
            h * votes * 4,
            chunks * votes * 4,
            chunks * (votes / SEGMENT) * 4,
            chunks * self.settings.longest_list(self.rows) * 4,
            chunks * 4,
        ]
    }

    /// Bytes of all parts.
    pub fn bytes(&self, gpu: &Gpu) -> usize {
        self.sizes(gpu).iter().sum()
    }
}

fn vote_stride(capacity: usize) -> usize {
    capacity.next_multiple_of(4 * SEGMENT)
}

impl SelectScratch {
    /// Room for what `plan` says.
    pub fn new(gpu: &Gpu, plan: &SelectPlan<'_>) -> Self {
        let [
            queries,
            parts,
            tickets,
            partial,
            weights,
            histograms,
            votes,
            scores,
            found,
            counts,
            lists,
            lengths,
        ] = plan.sizes(gpu).map(|bytes| gpu.allocate(bytes));
        Self {
            queries,
            parts,
            tickets,
            partial,
            weights,
            histograms,
            votes,
            scores,
            found,
            counts,
            lists,
            lengths,
            chunks: plan.chunks,
            stride: plan.settings.longest_list(plan.rows),
            vote_stride: vote_stride(plan.capacity),
        }
    }

    /// The selection queries `[chunks][H][D]`; for checks.
    pub fn queries(&self) -> &Memory {
        &self.queries
    }
}
