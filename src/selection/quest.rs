//! `Quest` (arXiv 2406.10774): the pages whose keys could score highest for the query.
//!
//! Keys, rotated at their places, are summarised in pages of 16 tokens by their element-wise maximum and minimum. For a
//! query q a page can score at most `sum_d max(q_d max_d, q_d min_d)` (Eq. in section 3.3, Algorithm 1); the pages with the
//! largest bound are attended to. Only decode selects, and not in the first two layers, as in the paper; prompts are read
//! densely at true positions, so that the method does not reach beyond the trained window.
//!
//! Where this goes beyond the paper: `n_init` and `n_local` tokens are always kept, in whole pages (the paper keeps the
//! page in progress only: `n_init` 0, `n_local` 1), and `top_k` counts tokens, `top_k / page_size` pages. The paper selects
//! per head in models whose query heads have a KV head each; with grouped heads each KV head has one list, by the largest
//! bound among its query heads.

use super::row_store::RowStore;
use super::{Phase, QueryView, Selection, SelectionPolicy};
use crate::error::{Error, Result};
use crate::kernels::{AttentionShape, Backend, HeadMap, Positions, SCORE_BLOCK, ScoreArgs, ScoreDtype, Scores};
use crate::kv_cache::KvCache;

/// The knobs of the method.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct QuestConfig {
    /// First tokens always kept.
    pub n_init: usize,
    /// Most recent tokens always kept.
    pub n_local: usize,
    /// Tokens chosen in between, in whole pages.
    pub top_k: usize,
    /// Tokens per page.
    pub page_size: usize,
    /// First layers that attend to everything.
    pub dense_layers: usize,
    /// Where attended keys and queries are placed; bounds are always of true places.
    pub positions: Positions,
}

impl QuestConfig {
    pub(super) fn validate(&self) -> Result<()> {
        if self.page_size == 0 {
            return Err(Error::user("`--quest-page-size 0` holds nothing").help("pass 1 or more, such as 16"));
        }
        if self.top_k < self.page_size {
            return Err(Error::user(format!(
                "`--top-k {}` is less than one page of {} tokens",
                self.top_k, self.page_size
            ))
            .help(format!(
                "pass `--top-k {}` or more, or a smaller `--quest-page-size`",
                self.page_size
            )));
        }
        Ok(())
    }

    fn budget(&self) -> usize {
        self.n_init + self.top_k + self.n_local
    }
}

struct LayerState<B: Backend> {
    /// One row per page: maxima, then minima, of each KV head.
    bounds: RowStore<B>,
    /// Pages whose bounds are made.
    pages: usize,
}

/// The policy: settings, bounds of every layer, and scratch.
pub struct Quest<B: Backend> {
    config: QuestConfig,
    layers: Vec<Option<LayerState<B>>>,
    scores: Scores,
    votes: Vec<f32>,
}

impl<B: Backend> Quest<B> {
    /// For a model of `layers` layers.
    pub fn new(config: QuestConfig, layers: usize) -> Self {
        Self {
            config,
            layers: (0..layers).map(|_| None).collect(),
            scores: Scores::default(),
            votes: Vec::new(),
        }
    }

    /// Brings the bounds of `layer` up to the last whole page.
    fn update_bounds(&mut self, backend: &B, layer: usize, query: &QueryView<'_, B>, cache: &KvCache<B>) {
        let (shape, size) = (&query.shape, self.config.page_size);
        let state = self.layers[layer].get_or_insert_with(|| LayerState {
            bounds: RowStore::new(2 * shape.kv_width()),
            pages: 0,
        });
        // What is known of a page that the chunk (re)wrote is out of date.
        let known = state.pages.min((cache.len() - query.rows) / size);
        let pages = cache.len() / size;
        let store = state.bounds.reserve(backend, pages);
        backend.key_bounds(
            cache.keys(layer),
            shape,
            query.rope,
            known * size..pages * size,
            size,
            store,
        );
        state.pages = pages;
    }

    /// Upper bounds of the candidate pages, `[H, pages]`, into the scores.
    fn score_pages(
        &mut self,
        backend: &B,
        layer: usize,
        query: &QueryView<'_, B>,
        stored: usize,
        candidates: std::ops::Range<usize>,
    ) {
        let shape = query.shape;
        let d = shape.head_dim;
        let mut rotated = backend.zeros(shape.query_width());
        let last = query.rows - 1..query.rows;
        backend.rotate_queries(query.qkv, last, &shape, query.rope, stored - query.rows, &mut rotated);
        // max(q max, q min) is q max for positive q and q min for negative q: one product of twice the width.
        let mut signed = Vec::with_capacity(2 * shape.query_width());
        for head in backend.download(&rotated).chunks_exact(d) {
            signed.extend(head.iter().map(|q| q.max(0.0)));
            signed.extend(head.iter().map(|q| q.min(0.0)));
        }
        let signed = backend.upload(&signed);
        if let Some(state) = &self.layers[layer] {
            let args = ScoreArgs {
                shape: AttentionShape {
                    head_dim: 2 * d,
                    ..shape
                },
                queries: &signed,
                query_count: 1,
                keys: state.bounds.keys(),
                candidates,
                head_map: HeadMap::Grouped,
                scale: 1.0,
                dtype: ScoreDtype::F32,
            };
            backend.score(&args, &mut self.scores);
        }
    }

    /// For each candidate the largest score among the query heads of `kv`, into the votes.
    fn vote(&mut self, kv: usize, group: usize) {
        self.votes.clear();
        self.votes.resize(self.scores.len, f32::NEG_INFINITY);
        for (block, votes) in self.votes.chunks_mut(SCORE_BLOCK).enumerate() {
            for head in kv * group..(kv + 1) * group {
                let row = &self.scores.data[self.scores.at(head, block * SCORE_BLOCK)..][..votes.len()];
                for (vote, &score) in votes.iter_mut().zip(row) {
                    *vote = if score > *vote { score } else { *vote };
                }
            }
        }
    }
}

impl<B: Backend> SelectionPolicy<B> for Quest<B> {
    fn select(
        &mut self,
        backend: &B,
        layer: usize,
        query: &QueryView<'_, B>,
        cache: &KvCache<B>,
        out: &mut Selection,
    ) -> Result<()> {
        let (stored, size) = (cache.len(), self.config.page_size);
        if layer < self.config.dense_layers || cache.capacity() <= self.config.budget() {
            return Ok(());
        }
        self.update_bounds(backend, layer, query, cache);
        let init = self.config.n_init.div_ceil(size);
        let local = stored.saturating_sub(self.config.n_local.max(query.rows)) / size;
        let chosen_pages = self.config.top_k / size;
        if query.phase == Phase::Prefill || local <= init + chosen_pages {
            return Ok(());
        }
        self.score_pages(backend, layer, query, stored, init..local);
        let (kv_heads, group) = (query.shape.kv_heads, query.shape.group());
        let mut selected = Vec::with_capacity(kv_heads * chosen_pages * size);
        let mut pages = Vec::new();
        for kv in 0..kv_heads {
            self.vote(kv, group);
            backend.top_k(&self.votes, chosen_pages, &mut pages);
            let start = selected.len();
            selected.extend(pages.iter().flat_map(|&page| {
                let first = (init + page as usize) * size;
                first as u32..(first + size) as u32
            }));
            out.tokens.extend(0..(init * size) as u32);
            out.tokens.extend_from_slice(&selected[start..]);
            out.tokens.extend((local * size) as u32..stored as u32);
        }
        out.dense = false;
        out.heads = kv_heads;
        out.positions = self.config.positions;
        out.selected = Some(selected);
        Ok(())
    }

    fn reset(&mut self) {
        for state in self.layers.iter_mut().flatten() {
            state.pages = 0;
        }
    }

    fn n_init(&self) -> usize {
        self.config.n_init.next_multiple_of(self.config.page_size)
    }

    fn positions_needed(&self, max_context: usize, _chunk: usize) -> usize {
        max_context
    }

    fn scratch_bytes(&self, shape: &AttentionShape, max_context: usize, _chunk: usize) -> usize {
        if max_context <= self.config.budget() {
            return 0;
        }
        let pages = max_context / self.config.page_size;
        let layers = self.layers.len().saturating_sub(self.config.dense_layers);
        let bounds = layers * RowStore::<B>::bytes(pages, 2 * shape.kv_width());
        let scores = Scores::elements(shape.query_heads, pages) * size_of::<f32>();
        let votes_and_keys = pages * (size_of::<f32>() + size_of::<u32>());
        // Rounding up to whole pages at both ends of what is always kept.
        let lists = 2 * shape.kv_heads * (self.config.budget() + 2 * self.config.page_size) * size_of::<u32>();
        bounds + scores + votes_and_keys + lists + 5 * shape.query_width() * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::Cpu;
    use crate::model::config::ModelConfig;
    use crate::model::rope;
    use crate::random::stream_rng;
    use rand::Rng;

    #[test]
    fn no_key_scores_above_the_bound_of_its_page() {
        const SHAPE: AttentionShape = AttentionShape {
            query_heads: 4,
            kv_heads: 2,
            head_dim: 8,
        };
        let value = serde_json::json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 8,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 512});
        let table = rope::table(&ModelConfig::from_json(&value, "test").expect("valid"), 300);
        let mut rng = stream_rng(1, "quest");
        let (stored, size, d) = (300, 16, SHAPE.head_dim);
        let fused: Vec<f32> = (0..stored * SHAPE.qkv_width())
            .map(|_| rng.random_range(-2.0..2.0))
            .collect();
        let mut cache = KvCache::new(1, SHAPE, stored);
        cache.extend(&Cpu, stored).expect("room");
        cache.store(&Cpu, 0, &fused, stored);
        let query = QueryView {
            qkv: &fused,
            rows: stored,
            phase: Phase::Prefill,
            shape: SHAPE,
            window: None,
            rope: &table,
        };
        let mut policy = Quest::<Cpu>::new(
            QuestConfig {
                n_init: 0,
                n_local: 1,
                top_k: 16,
                page_size: size,
                dense_layers: 0,
                positions: Positions::Original,
            },
            1,
        );
        policy.update_bounds(&Cpu, 0, &query, &cache);
        policy.score_pages(&Cpu, 0, &query, stored, 0..stored / size);

        // One head as a fused row of its own, rotated by the same kernel.
        let one = AttentionShape {
            query_heads: 1,
            kv_heads: 1,
            head_dim: d,
        };
        let rotated = |offset: usize, token: usize| {
            let mut row = fused[token * SHAPE.qkv_width() + offset..][..d].to_vec();
            row.resize(3 * d, 0.0);
            let mut out = vec![0.0; d];
            Cpu.rotate_queries(&row, 0..1, &one, &table, token, &mut out);
            out
        };
        let mut tight = 0;
        for head in 0..SHAPE.query_heads {
            let q = rotated(head * d, stored - 1);
            for token in 0..stored / size * size {
                let k = rotated(SHAPE.key_offset() + head / SHAPE.group() * d, token);
                let product: f32 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
                let bound = policy.scores.get(head, token / size);
                assert!(
                    product <= bound + 1e-4,
                    "head {head}, token {token}: {product} above {bound}"
                );
                tight += usize::from(product > 0.5 * bound);
            }
        }
        // The bound is of these keys: some come near it.
        assert!(tight > 0);
    }
}
