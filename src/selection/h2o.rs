//! `H2O` (arXiv 2306.14048): tokens that have got most attention so far, and the most recent ones.
//!
//! Each KV head adds up the attention that every token it still has gets from every query (Algorithm 1). Whenever it has
//! more than `n_init + top_k + n_local` tokens, it keeps the first `n_init`, the last `n_local`, and of the rest the `top_k`
//! with the largest sum; what is dropped is never seen again.
//!
//! The paper's code reads a prompt in one dense pass and drops tokens from its end on; that is the default here
//! (`--h2o-prefill dense`), and it does not reach beyond the trained window. With `evict`, tokens are dropped before every
//! prefill chunk, too, so that a chunk sees the budget and itself. Where this goes beyond the paper: it knows no `n_init`
//! (0), and its sums are per query head; with grouped heads those of a KV head are added up. Sums need attention weights,
//! which doubles the cost of attention.

use super::operands::mass_bytes;
use super::{Phase, QueryView, RotatedQueries, Selection, SelectionPolicy};
use crate::error::{Error, Result};
use crate::kernels::{AttentionShape, Backend, Positions};
use crate::kv_cache::KvCache;

/// What happens to a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum H2oPrefill {
    /// It is read densely; tokens are dropped once decoding starts.
    Dense,
    /// Tokens are dropped before every chunk.
    Evict,
}

/// The knobs of the method.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct H2oConfig {
    /// First tokens always kept.
    pub n_init: usize,
    /// Most recent tokens always kept.
    pub n_local: usize,
    /// Heavy hitters.
    pub top_k: usize,
    /// What happens to a prompt.
    pub prefill: H2oPrefill,
    /// Where kept keys and queries are placed.
    pub positions: Positions,
}

impl H2oConfig {
    pub(super) fn validate(&self) -> Result<()> {
        if self.top_k == 0 {
            return Err(Error::user("`--top-k 0` keeps no heavy hitter")
                .help("pass `--top-k 1` or more, or `--policy streaming-llm` for sinks and window only"));
        }
        Ok(())
    }

    fn budget(&self) -> usize {
        self.n_init + self.top_k + self.n_local
    }
}

/// What one KV head has.
#[derive(Default, Clone)]
struct HeadState {
    /// Logical tokens, ascending.
    tokens: Vec<u32>,
    /// Attention that each of them got.
    attention: Vec<f32>,
    /// The heavy hitters of the last eviction.
    heavy: Vec<u32>,
}

impl HeadState {
    /// Forgets tokens from `end` on and counts those before it that were never seen as unattended.
    fn continue_to(&mut self, seen: usize, end: usize) {
        self.tokens
            .truncate(self.tokens.partition_point(|&t| (t as usize) < end));
        self.tokens.extend(seen.min(end) as u32..end as u32);
        self.attention.resize(self.tokens.len(), 0.0);
    }

    fn evict<B: Backend>(&mut self, backend: &B, config: &H2oConfig) {
        let local = self.tokens.len() - config.n_local;
        let mut best = Vec::new();
        backend.top_k(&self.attention[config.n_init..local], config.top_k, &mut best);
        let kept: Vec<usize> = (0..config.n_init)
            .chain(best.iter().map(|&j| config.n_init + j as usize))
            .chain(local..self.tokens.len())
            .collect();
        self.heavy.clear();
        self.heavy
            .extend(best.iter().map(|&j| self.tokens[config.n_init + j as usize]));
        self.tokens = kept.iter().map(|&j| self.tokens[j]).collect();
        self.attention = kept.iter().map(|&j| self.attention[j]).collect();
    }
}

#[derive(Default, Clone)]
struct LayerState {
    heads: Vec<HeadState>,
    /// Tokens of the text so far.
    seen: usize,
    /// Whether anything was dropped.
    evicted: bool,
}

/// The policy: settings, and what every head of every layer has.
pub struct H2o<B: Backend> {
    config: H2oConfig,
    layers: Vec<LayerState>,
    mass: Vec<f32>,
    rotated: Option<RotatedQueries<B>>,
}

impl<B: Backend> H2o<B> {
    /// For a model of `layers` layers.
    pub fn new(config: H2oConfig, layers: usize) -> Self {
        Self {
            config,
            layers: vec![LayerState::default(); layers],
            mass: Vec::new(),
            rotated: None,
        }
    }
}

impl<B: Backend> SelectionPolicy<B> for H2o<B> {
    fn select(
        &mut self,
        backend: &B,
        layer: usize,
        query: &QueryView<'_, B>,
        cache: &KvCache<B>,
        out: &mut Selection,
    ) -> Result<()> {
        let (config, shape, stored) = (&self.config, &query.shape, cache.len());
        if cache.capacity() <= config.budget() {
            return Ok(());
        }
        let before = stored - query.rows;
        let state = &mut self.layers[layer];
        // Heads that dropped different tokens agree on the last `n_local` only: going back further starts afresh.
        if state.heads.is_empty() || before + config.n_local < state.seen {
            state.heads = vec![HeadState::default(); shape.kv_heads];
            (state.seen, state.evicted) = (0, false);
        }
        let evicting = query.phase == Phase::Decode || config.prefill == H2oPrefill::Evict;
        for head in &mut state.heads {
            head.continue_to(state.seen, before);
            if evicting && head.tokens.len() > config.budget() {
                head.evict(backend, config);
                state.evicted = true;
            }
            head.continue_to(before, stored);
        }
        state.seen = stored;
        if state.evicted {
            out.dense = false;
            out.heads = shape.kv_heads;
            out.positions = config.positions;
            out.selected = Some(state.heads.iter().flat_map(|head| head.heavy.iter().copied()).collect());
            for head in &state.heads {
                out.tokens.extend_from_slice(&head.tokens);
            }
        }
        let rotated = match &mut self.rotated {
            Some(rotated) if rotated.rows() >= query.rows => rotated,
            rotated => rotated.insert(RotatedQueries::new(backend, query.rows, shape)),
        };
        backend.attention_mass(&rotated.operands(backend, layer, query, cache, out), &mut self.mass);
        let listed = self.mass.len() / shape.query_heads;
        for (head, mass) in state
            .heads
            .iter_mut()
            .zip(self.mass.chunks_exact(shape.group() * listed))
        {
            for mass in mass.chunks_exact(listed) {
                head.attention.iter_mut().zip(mass).for_each(|(a, m)| *a += m);
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.layers.fill(LayerState::default());
    }

    fn n_init(&self) -> usize {
        self.config.n_init
    }

    fn positions_needed(&self, max_context: usize, _chunk: usize) -> usize {
        max_context
    }

    fn scratch_bytes(&self, shape: &AttentionShape, max_context: usize, chunk: usize) -> usize {
        if max_context <= self.config.budget() {
            return 0;
        }
        let longest = match self.config.prefill {
            H2oPrefill::Dense => max_context,
            H2oPrefill::Evict => max_context.min(self.config.budget() + chunk),
        };
        let per_token = size_of::<u32>() + size_of::<f32>();
        let states = self.layers.len() * shape.kv_heads * (longest * per_token + self.config.top_k * size_of::<u32>());
        let lists = 2 * shape.kv_heads * longest * size_of::<u32>();
        states + lists + RotatedQueries::<B>::bytes(chunk, shape) + mass_bytes(chunk, longest, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::Reference;

    #[test]
    fn eviction_keeps_the_first_the_last_and_the_heaviest_between() {
        let config = H2oConfig {
            n_init: 1,
            n_local: 2,
            top_k: 2,
            prefill: H2oPrefill::Dense,
            positions: Positions::Original,
        };
        let mut head = HeadState {
            tokens: vec![0, 3, 4, 7, 8, 9, 10],
            attention: vec![0.0, 5.0, 1.0, 5.0, 5.0, 0.1, 0.2],
            heavy: Vec::new(),
        };
        head.evict(&Reference, &config);
        // Of three equal sums the two lower positions stay.
        assert_eq!(head.tokens, [0, 3, 7, 9, 10]);
        assert_eq!(head.attention, [0.0, 5.0, 5.0, 0.1, 0.2]);
        assert_eq!(head.heavy, [3, 7]);
        // Two new tokens, then back by three.
        head.continue_to(11, 13);
        assert_eq!(head.tokens, [0, 3, 7, 9, 10, 11, 12]);
        head.continue_to(13, 10);
        assert_eq!(head.tokens, [0, 3, 7, 9]);
        assert_eq!(head.attention.len(), 4);
    }
}
