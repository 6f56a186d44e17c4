//! `SelfExtend` (arXiv 2401.01325): every stored token, far ones at grouped positions.
//!
//! A query sees keys less than `window` behind it at their true distance. Beyond that, positions of queries and keys are
//! divided by `group`, rounded down, and the query's is shifted by `window - window / group`, so that the two pieces join
//! (Eq. 3 and 4, Algorithm 1). Nothing is selected; the largest distance of a text of N tokens is about
//! `window + (N - window) / group`, which has to stay within the trained window. It holds for prompt and generated tokens
//! alike, and does not depend on how a prompt is cut.

use super::{QueryView, RotatedQueries, Selection, SelectionPolicy};
use crate::error::{Error, Result};
use crate::kernels::{AttentionShape, Backend, Positions};
use crate::kv_cache::KvCache;

/// The knobs of the method; `None` is chosen by [`SelfExtendConfig::for_context`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SelfExtendConfig {
    /// Places that share one position.
    pub group: Option<usize>,
    /// Distances below this are exact.
    pub window: Option<usize>,
}

impl SelfExtendConfig {
    pub(super) fn validate(self) -> Result<()> {
        if self.group == Some(0) {
            return Err(Error::user("`--self-extend-group 0` divides by nothing")
                .help("pass 1 or more, such as 8, or leave the flag out"));
        }
        if self.window == Some(0) {
            return Err(
                Error::user("`--self-extend-window 0`: a query must see at least itself exactly")
                    .help("pass 1 or more, such as 1024, or leave the flag out"),
            );
        }
        Ok(())
    }

    /// Chooses what is left open for a text of `tokens` tokens: a quarter of the trained window exact (1024 of 4096, as the
    /// paper has it), and the smallest group that keeps the farthest key within two thirds of the trained window (the
    /// authors' rule of thumb); a text within the trained window is not grouped.
    #[must_use]
    pub fn for_context(self, trained: usize, tokens: usize) -> Self {
        let window = self.window.unwrap_or((trained / 4).max(1));
        let group = self.group.unwrap_or_else(|| {
            let room = (trained * 2 / 3).saturating_sub(window);
            if tokens <= trained {
                1
            } else {
                tokens.saturating_sub(window).div_ceil(room.max(1)).max(1)
            }
        });
        Self {
            group: Some(group),
            window: Some(window),
        }
    }

    /// Group and window; the paper's for a trained window of 4096 where they were left open.
    fn grouping(self) -> (usize, usize) {
        (self.group.unwrap_or(8), self.window.unwrap_or(1024))
    }

    /// The largest distance at which a query of a text of `tokens` tokens sees a key.
    pub fn farthest(self, tokens: usize) -> usize {
        let (group, window) = self.grouping();
        if tokens <= window {
            tokens.saturating_sub(1)
        } else {
            (tokens - 1) / group + window - window / group
        }
    }
}

/// The policy.
pub struct SelfExtend {
    /// Its settings.
    pub config: SelfExtendConfig,
}

impl<B: Backend> SelectionPolicy<B> for SelfExtend {
    fn select(
        &mut self,
        _backend: &B,
        _layer: usize,
        _query: &QueryView<'_, B>,
        _cache: &KvCache<B>,
        out: &mut Selection,
    ) -> Result<()> {
        let (group, window) = self.config.grouping();
        out.positions = Positions::Grouped { window, group };
        Ok(())
    }

    fn positions_needed(&self, max_context: usize, _chunk: usize) -> usize {
        max_context
    }

    fn scratch_bytes(&self, shape: &AttentionShape, _max_context: usize, chunk: usize) -> usize {
        // The second rotation, and its positions.
        RotatedQueries::<B>::bytes(chunk, shape) + chunk * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Part;
    use proptest::prelude::*;

    const OPEN: SelfExtendConfig = SelfExtendConfig {
        group: None,
        window: None,
    };

    #[test]
    fn a_text_within_the_trained_window_is_not_grouped() {
        let chosen = OPEN.for_context(1024, 1024);
        assert_eq!((chosen.group, chosen.window), (Some(1), Some(256)));
        assert_eq!(chosen.farthest(1024), 1023);
    }

    proptest! {
        #[test]
        fn what_is_left_open_keeps_the_farthest_key_within_two_thirds_of_the_window(
            trained in 64usize..5000,
            times in 1.01f64..100.0,
        ) {
            let tokens = (trained as f64 * times) as usize + 1;
            prop_assert!(OPEN.for_context(trained, tokens).farthest(tokens) <= trained * 2 / 3 + 1);
        }

        #[test]
        fn distances_are_exact_then_grow_and_end_at_the_farthest(
            group in 1usize..20,
            window in 1usize..200,
            tokens in 1usize..2000,
        ) {
            let positions = Positions::Grouped { window, group };
            let query = tokens - 1;
            let distance = |behind: usize| {
                if behind < window {
                    behind
                } else {
                    positions.of_query(Part::Far, query) - (query - behind) / group
                }
            };
            let mut last = 0;
            for behind in 0..tokens {
                let d = distance(behind);
                prop_assert!(d >= last && d <= last + 2, "{} after {}", d, last);
                last = d;
            }
            prop_assert_eq!(last, SelfExtendConfig { group: Some(group), window: Some(window) }.farthest(tokens));
        }
    }
}
