//! `StreamingLLM` (arXiv 2309.17453): attention sinks and a sliding window.

use super::{QueryView, Selection, SelectionPolicy};
use crate::error::Result;
use crate::kernels::{AttentionShape, Backend, Positions};
use crate::kv_cache::KvCache;

/// The first `n_init` tokens and the last `n_local` (the chunk included, always whole).
pub struct StreamingLlm {
    /// First tokens always kept.
    pub n_init: usize,
    /// Most recent tokens kept.
    pub n_local: usize,
    /// Where keys and queries are placed.
    pub positions: Positions,
}

impl<B: Backend> SelectionPolicy<B> for StreamingLlm {
    fn select(
        &mut self,
        _backend: &B,
        _layer: usize,
        query: &QueryView<'_, B>,
        cache: &KvCache<B>,
        out: &mut Selection,
    ) -> Result<()> {
        let stored = cache.len();
        let local_start = stored.saturating_sub(self.n_local.max(query.rows));
        if local_start > self.n_init {
            out.dense = false;
            out.positions = self.positions;
            out.tokens.extend(0..self.n_init as u32);
            out.tokens.extend(local_start as u32..stored as u32);
        }
        Ok(())
    }

    fn n_init(&self) -> usize {
        self.n_init
    }

    fn positions_needed(&self, max_context: usize, chunk: usize) -> usize {
        match self.positions {
            Positions::Packed => max_context.min(self.n_init + self.n_local.max(chunk)),
            Positions::Original | Positions::Grouped { .. } => max_context,
        }
    }

    fn scratch_bytes(&self, _shape: &AttentionShape, max_context: usize, chunk: usize) -> usize {
        max_context.min(self.n_init + self.n_local.max(chunk)) * size_of::<u32>()
    }
}
