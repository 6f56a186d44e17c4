//! Every stored token: what all other policies are measured against.

use super::{QueryView, Selection, SelectionPolicy};
use crate::error::Result;
use crate::kernels::{AttentionShape, Backend};
use crate::kv_cache::KvCache;

/// Attends to everything.
pub struct Dense;

impl<B: Backend> SelectionPolicy<B> for Dense {
    fn select(&mut self, _: &B, _: usize, _: &QueryView<'_, B>, _: &KvCache<B>, _: &mut Selection) -> Result<()> {
        Ok(())
    }

    fn positions_needed(&self, max_context: usize, _chunk: usize) -> usize {
        max_context
    }

    fn scratch_bytes(&self, _shape: &AttentionShape, _max_context: usize, _chunk: usize) -> usize {
        0
    }
}
