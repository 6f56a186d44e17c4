//! `InfLLM` (arXiv 2402.04617): a sliding window, and blocks of the past looked up by representative keys.
//!
//! A query sees the last `n_local` tokens at their true distance. Tokens that have left the window lie in blocks of
//! `block_size`; each query head remembers of a block the mean of the `representatives` keys that got most of its attention
//! while they were in the window (Eq. 3). The blocks with the largest product with the chunk's mean query, summed over heads
//! (Eq. 2), are attended to by all heads, together with the first `n_init` tokens and what has left the window but does not
//! fill a block. All of these lie at one fixed distance, `n_local` (section 3.2, "positional encoding").
//!
//! Read off the released code where the paper leaves room: keys are compared un-rotated with the query rotated at
//! `n_local`; attention counts towards a representative after the softmax over near and far keys; blocks are looked up once
//! per prefill chunk and once per generated token; the last prompt token is a chunk of its own. `top_k` counts tokens,
//! `top_k / block_size` blocks; loading of blocks from host memory has no counterpart here.

use super::operands::mass_bytes;
use super::row_store::RowStore;
use super::{QueryView, RotatedQueries, Selection, SelectionPolicy};
use crate::error::{Error, Result};
use crate::kernels::{AttentionShape, Backend, HeadMap, Positions, ScoreArgs, ScoreDtype, Scores};
use crate::kv_cache::KvCache;

/// The knobs of the method.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct InfLlmConfig {
    /// First tokens always kept.
    pub n_init: usize,
    /// Distances below this are exact, and seen by every query.
    pub n_local: usize,
    /// Tokens chosen in between, in whole blocks.
    pub top_k: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Keys that stand for a block in each query head.
    pub representatives: usize,
}

impl InfLlmConfig {
    pub(super) fn validate(&self) -> Result<()> {
        if self.block_size == 0 {
            return Err(Error::user("`--inf-llm-block-size 0` holds nothing").help("pass 1 or more, such as 128"));
        }
        if !(1..=self.block_size).contains(&self.representatives) {
            return Err(Error::user(format!(
                "`--inf-llm-representatives {}`: a block has {} tokens",
                self.representatives, self.block_size
            ))
            .help(format!("pass a number from 1 to {}", self.block_size)));
        }
        if self.top_k < self.block_size {
            return Err(Error::user(format!(
                "`--top-k {}` is less than one block of {} tokens",
                self.top_k, self.block_size
            ))
            .help(format!(
                "pass `--top-k {}` or more, or a smaller `--inf-llm-block-size`",
                self.block_size
            )));
        }
        Ok(())
    }

    /// The first token that is in no block if there are `blocks`.
    fn remainder(&self, blocks: usize) -> usize {
        self.n_init + blocks * self.block_size
    }

    /// Blocks that the first `stored` tokens make.
    fn blocks(&self, stored: usize) -> usize {
        stored.saturating_sub(self.n_init + self.n_local) / self.block_size
    }
}

struct LayerState<B: Backend> {
    /// One row per block: the mean representative key of each query head.
    means: RowStore<B>,
    /// Blocks made.
    blocks: usize,
    /// `[H][..]`: attention that each token after the blocks got while it was near.
    attention: Vec<Vec<f32>>,
}

/// The policy: settings, blocks of every layer, and scratch.
pub struct InfLlm<B: Backend> {
    config: InfLlmConfig,
    layers: Vec<Option<LayerState<B>>>,
    scores: Scores,
    votes: Vec<f32>,
    mass: Vec<f32>,
    rotated: Option<RotatedQueries<B>>,
}

impl<B: Backend> InfLlm<B> {
    /// For a model of `layers` layers.
    pub fn new(config: InfLlmConfig, layers: usize) -> Self {
        Self {
            config,
            layers: (0..layers).map(|_| None).collect(),
            scores: Scores::default(),
            votes: Vec::new(),
            mass: Vec::new(),
            rotated: None,
        }
    }

    /// The blocks to attend to, ascending.
    fn look_up(&mut self, backend: &B, layer: usize, query: &QueryView<'_, B>) -> Vec<u32> {
        let Some(state) = &self.layers[layer] else {
            return Vec::new();
        };
        let (shape, wanted) = (query.shape, self.config.top_k / self.config.block_size);
        let mut chosen = Vec::new();
        if state.blocks <= wanted {
            chosen.extend(0..state.blocks as u32);
            return chosen;
        }
        let width = shape.query_width();
        let mut rotated = backend.zeros(query.rows * width);
        let positions = vec![self.config.n_local as u32; query.rows];
        backend.rotate_queries_at(query.qkv, 0..query.rows, &shape, query.rope, &positions, &mut rotated);
        let mut mean = backend.zeros(width);
        backend.group_means(&rotated, query.rows, width, query.rows, &mut mean);
        let args = ScoreArgs {
            // Every query head has representatives of its own.
            shape: AttentionShape {
                kv_heads: shape.query_heads,
                ..shape
            },
            queries: &mean,
            query_count: 1,
            keys: state.means.keys(),
            candidates: 0..state.blocks,
            head_map: HeadMap::Grouped,
            scale: 1.0,
            dtype: ScoreDtype::F32,
        };
        backend.score(&args, &mut self.scores);
        backend.logit_vote(&self.scores, ScoreDtype::F32, &mut self.votes);
        backend.top_k(&self.votes, wanted, &mut chosen);
        chosen
    }

    /// Counts the attention of the chunk over `selection`, then makes the blocks that are complete.
    fn remember(
        &mut self,
        backend: &B,
        layer: usize,
        query: &QueryView<'_, B>,
        cache: &KvCache<B>,
        selection: &Selection,
    ) {
        let (config, shape, stored) = (&self.config, &query.shape, cache.len());
        let Some(state) = &mut self.layers[layer] else {
            return;
        };
        let rotated = match &mut self.rotated {
            Some(rotated) if rotated.rows() >= query.rows => rotated,
            rotated => rotated.insert(RotatedQueries::new(backend, query.rows, shape)),
        };
        backend.attention_mass(
            &rotated.operands(backend, layer, query, cache, selection),
            &mut self.mass,
        );
        let listed = self.mass.len() / shape.query_heads;
        let remainder = stored.saturating_sub(config.remainder(state.blocks));
        for (attention, mass) in state.attention.iter_mut().zip(self.mass.chunks_exact(listed)) {
            attention.resize(remainder, 0.0);
            for (a, m) in attention.iter_mut().zip(&mass[listed - remainder..]) {
                *a += m;
            }
        }
        let blocks = config.blocks(stored);
        let mut best = Vec::new();
        while state.blocks < blocks {
            let first = config.remainder(state.blocks) as u32;
            let mut members = Vec::with_capacity(shape.query_heads * config.representatives);
            for attention in &mut state.attention {
                backend.top_k(&attention[..config.block_size], config.representatives, &mut best);
                members.extend(best.iter().map(|&t| first + t));
                attention.drain(..config.block_size);
            }
            let row = state.blocks;
            let store = state.means.reserve(backend, row + 1);
            backend.mean_keys(cache.keys(layer), shape, &members, config.representatives, row, store);
            state.blocks += 1;
        }
    }
}

impl<B: Backend> SelectionPolicy<B> for InfLlm<B> {
    fn select(
        &mut self,
        backend: &B,
        layer: usize,
        query: &QueryView<'_, B>,
        cache: &KvCache<B>,
        out: &mut Selection,
    ) -> Result<()> {
        let stored = cache.len();
        out.positions = Positions::Grouped {
            window: self.config.n_local,
            group: usize::MAX,
        };
        if self.config.blocks(cache.capacity()) == 0 {
            return Ok(());
        }
        let shape = &query.shape;
        let state = self.layers[layer].get_or_insert_with(|| LayerState {
            means: RowStore::new(shape.query_width()),
            blocks: 0,
            attention: vec![Vec::new(); shape.query_heads],
        });
        // After a bench has gone back, blocks that the text no longer fills are forgotten.
        let before = stored - query.rows;
        state.blocks = state.blocks.min(self.config.blocks(before));
        let remainder = self.config.remainder(state.blocks);
        for attention in &mut state.attention {
            attention.resize(before.saturating_sub(remainder), 0.0);
        }
        let blocks = state.blocks;
        let chosen = self.look_up(backend, layer, query);
        if chosen.len() < blocks {
            let selected: Vec<u32> = chosen
                .iter()
                .flat_map(|&block| {
                    let first = self.config.remainder(block as usize);
                    first as u32..(first + self.config.block_size) as u32
                })
                .collect();
            out.dense = false;
            out.tokens.extend(0..self.config.n_init as u32);
            out.tokens.extend_from_slice(&selected);
            out.tokens.extend(remainder as u32..stored as u32);
            out.selected = Some(selected);
        }
        self.remember(backend, layer, query, cache, out);
        Ok(())
    }

    fn reset(&mut self) {
        for state in self.layers.iter_mut().flatten() {
            state.blocks = 0;
            state.attention.iter_mut().for_each(Vec::clear);
        }
    }

    fn n_init(&self) -> usize {
        self.config.n_init
    }

    fn last_token_alone(&self) -> bool {
        true
    }

    fn positions_needed(&self, max_context: usize, _chunk: usize) -> usize {
        max_context
    }

    fn scratch_bytes(&self, shape: &AttentionShape, max_context: usize, chunk: usize) -> usize {
        let config = &self.config;
        // The second rotation of the attention itself, then those of the mass and of the look-up.
        let rotated = 4 * RotatedQueries::<B>::bytes(chunk, shape) + 2 * chunk * size_of::<u32>();
        let blocks = config.blocks(max_context);
        if blocks == 0 {
            return rotated;
        }
        let means = self.layers.len() * RowStore::<B>::bytes(blocks, shape.query_width());
        let near = (config.n_local + config.block_size + chunk).min(max_context);
        let attention = self.layers.len() * shape.query_heads * near * size_of::<f32>();
        let scores = (Scores::elements(shape.query_heads, blocks) + 2 * blocks) * size_of::<f32>();
        let listed = (config.n_init + config.top_k + near).min(max_context);
        // The list and its chosen part; the mass, and the parts of it that tasks sum.
        let lists = 2 * listed * size_of::<u32>();
        means + attention + scores + lists + rotated + mass_bytes(chunk, listed, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::InfLlmConfig;

    #[test]
    fn a_block_is_made_when_all_of_it_has_left_the_window() {
        let config = InfLlmConfig {
            n_init: 128,
            n_local: 512,
            top_k: 2048,
            block_size: 100,
            representatives: 4,
        };
        for (stored, blocks) in [(0, 0), (640, 0), (739, 0), (740, 1), (839, 1), (840, 2)] {
            assert_eq!(config.blocks(stored), blocks, "{stored}");
            assert!(config.remainder(blocks) + config.n_local <= stored || blocks == 0);
        }
    }
}
