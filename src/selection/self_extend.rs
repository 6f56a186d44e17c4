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

/// The knobs of the method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SelfExtendConfig {
    /// Places that share one position.
    pub group: usize,
    /// Distances below this are exact.
    pub window: usize,
}

impl SelfExtendConfig {
    pub(super) fn validate(self) -> Result<()> {
        if self.group == 0 {
            return Err(Error::user("`--self-extend-group 0` divides by nothing").help("pass 1 or more, such as 8"));
        }
        if self.window == 0 {
            return Err(
                Error::user("`--self-extend-window 0`: a query must see at least itself exactly")
                    .help("pass 1 or more, such as 1024"),
            );
        }
        Ok(())
    }

    /// The largest distance at which a query of a text of `tokens` tokens sees a key.
    pub fn farthest(self, tokens: usize) -> usize {
        if tokens <= self.window {
            tokens.saturating_sub(1)
        } else {
            (tokens - 1) / self.group + self.window - self.window / self.group
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
        out.positions = Positions::Grouped {
            window: self.config.window,
            group: self.config.group,
        };
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

    proptest! {
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
            prop_assert_eq!(last, SelfExtendConfig { group, window }.farthest(tokens));
        }
    }
}
