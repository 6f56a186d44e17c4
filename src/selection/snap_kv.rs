//! `SnapKV` (arXiv 2404.14469): what the end of the prompt looks at is kept, the rest of the prompt is dropped.
//!
//! The prompt is read densely at true positions, so that the method does not reach beyond the trained window. When decoding
//! starts, the last `observation_window` prompt queries vote in each layer: their attention to each earlier token is summed,
//! pooled over neighbours, and the `top_k` best are kept, together with the first `n_init` and the last `n_local` tokens of
//! the prompt. Generated tokens are all kept (Listing 1 of the paper). Decode steps before that moment do not exist, so the
//! first generated token is that of dense attention. A prompt that goes on after decoding is compressed anew, as a whole.
//!
//! Where this goes beyond the paper: it keeps the observation window only (`n_init` 0, `n_local` equal to it). The paper
//! pools by maximum, its released code by mean; the default is the code's. It selects per query head; with grouped heads
//! that would store every key several times, so that here the votes of the query heads of a KV head are summed.

use super::operands::mass_bytes;
use super::{Phase, QueryView, RotatedQueries, Selection, SelectionPolicy};
use crate::error::{Error, Result};
use crate::kernels::{Attend, AttentionShape, Backend, Positions, TokenList, smooth};
use crate::kv_cache::KvCache;

/// How votes are spread over neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Mean over the kernel, zeros beyond the ends: the released code's default.
    Mean,
    /// Largest in the kernel: the paper.
    Max,
}

/// The knobs of the method.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SnapKvConfig {
    /// First tokens always kept.
    pub n_init: usize,
    /// Last tokens of the prompt always kept; the observation window is always among them.
    pub n_local: usize,
    /// Prompt tokens chosen in between.
    pub top_k: usize,
    /// Prompt queries that vote.
    pub observation_window: usize,
    /// Tokens that are pooled; odd.
    pub kernel: usize,
    /// How they are pooled.
    pub pooling: Pooling,
    /// Where kept keys and queries are placed in decode.
    pub positions: Positions,
}

impl SnapKvConfig {
    pub(super) fn validate(&self) -> Result<()> {
        if self.observation_window == 0 {
            return Err(Error::user("`--snap-kv-window 0`: nobody votes").help("pass 1 or more, such as 32"));
        }
        if self.kernel.is_multiple_of(2) {
            return Err(Error::user(format!("`--snap-kv-kernel {}` has no middle", self.kernel))
                .help("pass an odd number; 1 does not pool"));
        }
        if self.top_k == 0 {
            return Err(Error::user("`--top-k 0` selects nothing").help("pass `--top-k 1` or more"));
        }
        Ok(())
    }

    fn budget(&self) -> usize {
        self.n_init + self.top_k + self.n_local.max(self.observation_window)
    }
}

/// What a layer keeps.
#[derive(Default)]
enum Kept {
    /// Not decided: the prompt is still being read.
    #[default]
    Reading,
    /// Everything: the prompt was within the budget, or no prompt query is known.
    Whole,
    /// Of a prompt of `prompt` tokens the `lists` `[Hkv, n]`, and `selected` `[Hkv, top_k]` of these by vote.
    Compressed {
        prompt: usize,
        lists: Vec<u32>,
        selected: Vec<u32>,
    },
}

#[derive(Default)]
struct LayerState {
    /// The last prompt queries, rotated at their places, `[up to observation_window, H, D]`.
    queries: Vec<f32>,
    kept: Kept,
}

/// The policy: settings, and what every layer keeps.
pub struct SnapKv {
    config: SnapKvConfig,
    layers: Vec<LayerState>,
    mass: Vec<f32>,
}

impl SnapKv {
    /// For a model of `layers` layers.
    pub fn new(config: SnapKvConfig, layers: usize) -> Self {
        let mut policy = Self {
            config,
            layers: Vec::new(),
            mass: Vec::new(),
        };
        policy.layers.resize_with(layers, LayerState::default);
        policy
    }

    /// Remembers the last rows of a prompt chunk.
    fn observe<B: Backend>(&mut self, backend: &B, layer: usize, query: &QueryView<'_, B>, first: usize) {
        let (window, width) = (self.config.observation_window, query.shape.query_width());
        let start = query.rows.saturating_sub(window);
        let mut rotated = backend.zeros((query.rows - start) * width);
        backend.rotate_queries(
            query.qkv,
            start..query.rows,
            &query.shape,
            query.rope,
            first,
            &mut rotated,
        );
        let queries = &mut self.layers[layer].queries;
        queries.extend_from_slice(&backend.download(&rotated));
        queries.drain(..queries.len().saturating_sub(window * width));
    }

    /// Decides what to keep of the first `prompt` tokens.
    fn compress<B: Backend>(
        &mut self,
        backend: &B,
        layer: usize,
        query: &QueryView<'_, B>,
        cache: &KvCache<B>,
        prompt: usize,
    ) -> Kept {
        let (config, shape) = (&self.config, query.shape);
        let observed = self.layers[layer].queries.len() / shape.query_width();
        if prompt <= config.budget() || observed == 0 {
            return Kept::Whole;
        }
        let args = Attend {
            shape,
            queries: &backend.upload(&self.layers[layer].queries),
            far_queries: None,
            rows: observed,
            keys: cache.keys(layer),
            values: cache.values(layer),
            tokens: TokenList::All(prompt),
            positions: Positions::Original,
            first_query_position: prompt - observed,
            window: query.window,
            rope: query.rope,
        };
        backend.attention_mass(&args, &mut self.mass);
        let local = prompt - config.n_local.max(observed);
        let (mut lists, mut selected, mut best) = (Vec::new(), Vec::new(), Vec::new());
        for mass in self.mass.chunks_exact(shape.group() * prompt) {
            let mut votes = vec![0.0; prompt - observed];
            for head in mass.chunks_exact(prompt) {
                votes.iter_mut().zip(head).for_each(|(v, m)| *v += m);
            }
            match config.pooling {
                Pooling::Mean => mean_pool(&mut votes, config.kernel),
                Pooling::Max => smooth(&mut votes, config.kernel),
            }
            backend.top_k(&votes[config.n_init..local], config.top_k, &mut best);
            let start = selected.len();
            selected.extend(best.iter().map(|t| t + config.n_init as u32));
            lists.extend(0..config.n_init as u32);
            lists.extend_from_slice(&selected[start..]);
            lists.extend(local as u32..prompt as u32);
        }
        Kept::Compressed {
            prompt,
            lists,
            selected,
        }
    }
}

/// Mean over `kernel` neighbours (odd), zeros beyond the ends.
fn mean_pool(votes: &mut Vec<f32>, kernel: usize) {
    let half = kernel / 2;
    let mut padded = vec![0.0; half];
    padded.append(votes);
    padded.resize(padded.len() + half, 0.0);
    votes.extend(
        padded
            .windows(kernel)
            .map(|window| window.iter().sum::<f32>() / kernel as f32),
    );
}

impl<B: Backend> SelectionPolicy<B> for SnapKv {
    fn select(
        &mut self,
        backend: &B,
        layer: usize,
        query: &QueryView<'_, B>,
        cache: &KvCache<B>,
        out: &mut Selection,
    ) -> Result<()> {
        let stored = cache.len();
        let before = stored - query.rows;
        if cache.capacity() <= self.config.budget() {
            return Ok(());
        }
        if query.phase == Phase::Prefill {
            self.layers[layer].kept = Kept::Reading;
            self.observe(backend, layer, query, before);
            return Ok(());
        }
        // A bench may have gone back into the prompt.
        if let Kept::Compressed { prompt, .. } = self.layers[layer].kept
            && prompt > before
        {
            self.layers[layer].kept = Kept::Whole;
        }
        if let Kept::Reading = self.layers[layer].kept {
            self.layers[layer].kept = self.compress(backend, layer, query, cache, before);
        }
        if let Kept::Compressed {
            prompt,
            lists,
            selected,
        } = &self.layers[layer].kept
        {
            let kv_heads = query.shape.kv_heads;
            for list in lists.chunks_exact(lists.len() / kv_heads) {
                out.tokens.extend_from_slice(list);
                out.tokens.extend(*prompt as u32..stored as u32);
            }
            out.dense = false;
            out.heads = kv_heads;
            out.positions = self.config.positions;
            out.selected = Some(selected.clone());
        }
        Ok(())
    }

    fn reset(&mut self) {
        for state in &mut self.layers {
            state.queries.clear();
            state.kept = Kept::Reading;
        }
    }

    fn n_init(&self) -> usize {
        self.config.n_init
    }

    fn positions_needed(&self, max_context: usize, _chunk: usize) -> usize {
        max_context
    }

    fn scratch_bytes(&self, shape: &AttentionShape, max_context: usize, chunk: usize) -> usize {
        let config = &self.config;
        if max_context <= config.budget() {
            return 0;
        }
        let window = config.observation_window.min(max_context);
        let queries = self.layers.len() * RotatedQueries::<B>::bytes(window, shape);
        let kept = self.layers.len() * shape.kv_heads * (config.budget() + config.top_k) * size_of::<u32>();
        // Kept and generated tokens can be the whole context, and so can the votes.
        let lists = 2 * shape.kv_heads * max_context * size_of::<u32>() + 3 * max_context * size_of::<f32>();
        let rotated = 2 * RotatedQueries::<B>::bytes(window.min(chunk), shape);
        queries + kept + lists + rotated + mass_bytes(window, max_context, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::mean_pool;

    #[test]
    fn the_mean_counts_zeros_beyond_the_ends() {
        let mut votes = vec![3.0, 0.0, 6.0, 9.0];
        mean_pool(&mut votes, 3);
        assert_eq!(votes, [1.0, 3.0, 5.0, 5.0]);
        mean_pool(&mut votes, 1);
        assert_eq!(votes, [1.0, 3.0, 5.0, 5.0]);
    }
}
