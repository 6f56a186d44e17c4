//! Dense attention with a stretched rotary embedding: NTK-aware scaling and `YaRN`.
//!
//! Both change the frequencies once, for the whole text (static scaling), so that positions up to `factor` times the
//! trained window turn no frequency further than training did. Nothing is selected.

use super::{QueryView, Selection, SelectionPolicy};
use crate::error::{Error, Result};
use crate::kernels::{AttentionShape, Backend};
use crate::kv_cache::KvCache;

/// How rotary frequencies are changed. The arithmetic is in [`crate::model::rope::extended`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeExtension {
    /// NTK-aware: the base is multiplied by `factor^(D / (D - 2))`, so that the lowest frequency falls by exactly `factor`
    /// and the highest stays (described in arXiv 2309.00071, section 3.1).
    Ntk {
        /// Stretch; `None`: context over trained window.
        factor: Option<f32>,
    },
    /// NTK-by-parts with an attention factor (`YaRN`, arXiv 2309.00071, sections 3.2 to 3.4): pairs that turn at least 32
    /// times over the trained window are kept, those that turn less than once are interpolated, a ramp between; cosines
    /// and sines are multiplied by `0.1 ln(factor) + 1`.
    Yarn {
        /// Stretch; `None`: context over trained window.
        factor: Option<f32>,
    },
}

impl RopeExtension {
    /// The stretch for a context of `max_context` tokens of a model trained on `trained`; never below 1.
    pub fn factor(self, trained: usize, max_context: usize) -> f32 {
        let (Self::Ntk { factor } | Self::Yarn { factor }) = self;
        factor.unwrap_or((max_context as f32 / trained as f32).max(1.0))
    }

    pub(super) fn validate(self) -> Result<()> {
        let (Self::Ntk { factor } | Self::Yarn { factor }) = self;
        match factor {
            Some(factor) if !(1.0..=1e6).contains(&factor) => {
                Err(Error::user(format!("`--rope-factor {factor}` does not stretch"))
                    .help("pass a number from 1 to 1000000, or leave the flag out"))
            }
            _ => Ok(()),
        }
    }
}

/// Attends to everything, at true positions, with stretched frequencies.
pub struct ExtendedDense {
    /// What becomes of the frequencies.
    pub extension: RopeExtension,
}

impl<B: Backend> SelectionPolicy<B> for ExtendedDense {
    fn select(&mut self, _: &B, _: usize, _: &QueryView<'_, B>, _: &KvCache<B>, _: &mut Selection) -> Result<()> {
        Ok(())
    }

    fn rope_extension(&self) -> Option<RopeExtension> {
        Some(self.extension)
    }

    fn positions_needed(&self, max_context: usize, _chunk: usize) -> usize {
        max_context
    }

    fn scratch_bytes(&self, _shape: &AttentionShape, _max_context: usize, _chunk: usize) -> usize {
        0
    }
}
