//! `TokenSelect` (arXiv 2411.02886): the tokens that the query heads together vote for.
//!
//! Per layer and chunk: rotate the queries at positions `n_local + i`, average them, take their products with every
//! un-rotated candidate key, softmax per head, sum over heads, keep the `top_k` best (Eq. 7). The packed list is the
//! first `n_init` tokens, the chosen ones, and the local window; it is attended to at packed positions. In decode a
//! selection is reused while the query's cosine to the query that made it stays at or above a threshold (Alg. 1).

use super::statistics::{CosineSummary, LayerStatistics, SelectionStatistics};
use super::{CacheOutcome, Phase, QueryView, Selection, SelectionPolicy};
use crate::error::{Error, Result};
use crate::kernels::{AttentionShape, Backend, HeadMap, Positions, ScoreArgs, ScoreDtype, Scores, smooth};
use crate::kv_cache::KvCache;

/// How head scores become one vote per token (paper, Table 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Vote {
    /// Softmax per head, summed (Eq. 7).
    Soft,
    /// One vote of each head for each of its own top-k (Eq. 6).
    Head,
    /// Raw scores, summed (Eq. 5).
    Logit,
}

/// Factor on the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum ScoreScale {
    /// 1, as in the paper.
    #[serde(rename = "none")]
    None,
    /// 1/sqrt(D), as in attention.
    #[serde(rename = "sqrt-d")]
    SqrtD,
}

/// Which queries of a chunk are averaged into selection queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase", tag = "kind", content = "rows")]
pub enum ChunkQuery {
    /// The mean of all rows, one vote.
    Mean,
    /// The last row alone.
    Last,
    /// Means of this many consecutive rows, one vote each, votes summed.
    Subchunk(usize),
}

/// When a decode step may reuse a selection.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum CacheThreshold {
    /// Never.
    #[serde(serialize_with = "off")]
    Off,
    /// At this cosine or above.
    Cosine(f32),
}

fn off<S: serde::Serializer>(serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str("off")
}

/// Every knob of the method.
#[expect(clippy::struct_excessive_bools, reason = "independent switches of the method")]
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct TokenSelectConfig {
    /// First tokens always kept.
    pub n_init: usize,
    /// Most recent tokens always kept.
    pub n_local: usize,
    /// Tokens chosen in between.
    pub top_k: usize,
    /// Selection cache.
    pub cache_threshold: CacheThreshold,
    /// Vote.
    pub vote: Vote,
    /// Query head to KV head, for scoring.
    pub head_map: HeadMap,
    /// Factor on scores.
    pub score_scale: ScoreScale,
    /// Max-pool kernel over the votes; 0 and 1 are off.
    pub smoothing: usize,
    /// Selection queries of a chunk.
    pub chunk_query: ChunkQuery,
    /// The last prompt token is a chunk of its own.
    pub last_token_alone: bool,
    /// On a hit, tokens that left the local window since the last miss stay visible.
    pub cache_gap_repair: bool,
    /// Precision of scores and votes.
    pub score_dtype: ScoreDtype,
    /// In decode, scores are made from an 8-bit copy of the keys: half the bytes of a pass over them, some other tokens. On
    /// a GPU only.
    pub int8_keys: bool,
    /// The local window is `n_local` tokens before the chunk, not including it.
    pub local_outside_chunk: bool,
    /// Where keys and queries are placed.
    pub positions: Positions,
}

/// Sizes of a policy that packs what it keeps, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// First tokens always kept.
    pub n_init: usize,
    /// Most recent tokens always kept.
    pub n_local: usize,
    /// Tokens chosen in between.
    pub top_k: usize,
    /// Prompt tokens per forward pass; they are packed with the others.
    pub prefill_chunk: usize,
}

impl Budget {
    /// The paper's (arXiv 2411.02886, section 4.1), for models trained on 4096 tokens and more.
    pub const PUBLISHED: Self = Self {
        n_init: 128,
        n_local: 512,
        top_k: 2048,
        prefill_chunk: 512,
    };

    /// The published sizes, all halved until together they fit a trained window of `trained` tokens: packed positions beyond
    /// it mean nothing to a model. None falls below 1.
    pub fn for_window(trained: usize) -> Self {
        let mut budget = Self::PUBLISHED;
        while budget.prefill_chunk > 1 && budget.total() > trained {
            budget = Self {
                n_init: (budget.n_init / 2).max(1),
                n_local: (budget.n_local / 2).max(1),
                top_k: (budget.top_k / 2).max(1),
                prefill_chunk: (budget.prefill_chunk / 2).max(1),
            };
        }
        budget
    }

    fn total(self) -> usize {
        self.n_init + self.n_local + self.top_k + self.prefill_chunk
    }
}

impl Default for TokenSelectConfig {
    fn default() -> Self {
        let Budget {
            n_init, n_local, top_k, ..
        } = Budget::PUBLISHED;
        Self {
            n_init,
            n_local,
            top_k,
            cache_threshold: CacheThreshold::Cosine(0.9),
            vote: Vote::Soft,
            head_map: HeadMap::Grouped,
            score_scale: ScoreScale::None,
            smoothing: 0,
            chunk_query: ChunkQuery::Mean,
            last_token_alone: true,
            cache_gap_repair: true,
            score_dtype: ScoreDtype::F32,
            int8_keys: false,
            local_outside_chunk: true,
            positions: Positions::Packed,
        }
    }
}

impl TokenSelectConfig {
    /// The published code's behaviour, as section (e) of the project's specification lists it. (That code also rounds
    /// scores to bf16, pools votes by a kernel tuned per data set, and has its selection cache switched off; each has a
    /// flag of its own.)
    #[must_use]
    pub fn paper() -> Self {
        Self {
            head_map: HeadMap::Modulo,
            score_scale: ScoreScale::None,
            chunk_query: ChunkQuery::Mean,
            last_token_alone: false,
            cache_gap_repair: false,
            local_outside_chunk: false,
            positions: Positions::Packed,
            ..Self::default()
        }
    }

    /// `n_init + top_k + n_local`: with this many tokens or fewer, everything is attended to.
    pub fn token_budget(&self) -> usize {
        self.n_init + self.top_k + self.n_local
    }

    /// The effective local window of a chunk of `rows` rows; the chunk is always inside it.
    fn window(&self, rows: usize) -> usize {
        if self.local_outside_chunk {
            self.n_local + rows
        } else {
            self.n_local.max(rows)
        }
    }

    /// Longest packed list for chunks of `rows` rows; on hits the repaired gap comes on top.
    fn longest_list(&self, rows: usize) -> usize {
        self.n_init + self.top_k + self.window(rows)
    }

    pub(super) fn validate(&self) -> Result<()> {
        if self.top_k == 0 {
            return Err(Error::user("`--top-k 0` selects nothing")
                .help("pass `--top-k 1` or more, or `--policy streaming-llm` for sinks and window only"));
        }
        if let CacheThreshold::Cosine(threshold) = self.cache_threshold
            && !(-1.0..=1.0).contains(&threshold)
        {
            return Err(Error::user(format!("`--cache-threshold {threshold}` is not a cosine"))
                .help("pass a number from -1 to 1, or `off`"));
        }
        if self.chunk_query == ChunkQuery::Subchunk(0) {
            return Err(Error::user("`--chunk-query subchunk:0` averages nothing").help("pass `subchunk:1` or more"));
        }
        Ok(())
    }
}

/// What a layer remembers of its last miss.
struct Remembered {
    query: Vec<f32>,
    selected: Vec<u32>,
    local_start: usize,
}

#[derive(Default)]
struct LayerState {
    last_miss: Option<Remembered>,
    previous_query: Vec<f32>,
    hits: usize,
    misses: usize,
    to_last_miss: Vec<f32>,
    to_previous: Vec<f32>,
}

/// The policy: settings, per-layer memory, and scratch.
pub struct TokenSelect {
    config: TokenSelectConfig,
    layers: Vec<LayerState>,
    scores: Scores,
    votes: Vec<f32>,
}

impl TokenSelect {
    /// For a model of `layers` layers.
    pub fn new(config: TokenSelectConfig, layers: usize) -> Self {
        let mut policy = Self {
            config,
            layers: Vec::new(),
            scores: Scores::default(),
            votes: Vec::new(),
        };
        policy.layers.resize_with(layers, LayerState::default);
        policy
    }

    /// U selection queries `[U, H, D]`, rotated at `n_local + i` before averaging (reading 5).
    fn selection_queries<B: Backend>(&self, backend: &B, query: &QueryView<'_, B>) -> (B::Buffer, usize) {
        let width = query.shape.query_width();
        let rotate = |rows: std::ops::Range<usize>| {
            let mut out = backend.zeros(rows.len() * width);
            backend.rotate_queries(query.qkv, rows, &query.shape, query.rope, self.config.n_local, &mut out);
            out
        };
        let group = match self.config.chunk_query {
            ChunkQuery::Last => return (rotate(query.rows - 1..query.rows), 1),
            ChunkQuery::Mean => query.rows,
            ChunkQuery::Subchunk(rows) => rows.min(query.rows),
        };
        let rotated = rotate(0..query.rows);
        if group == 1 {
            return (rotated, query.rows);
        }
        let count = query.rows.div_ceil(group);
        let mut means = backend.zeros(count * width);
        backend.group_means(&rotated, query.rows, width, group, &mut means);
        (means, count)
    }

    /// The `top_k` candidates, ascending, as logical tokens.
    fn choose<B: Backend>(
        &mut self,
        backend: &B,
        layer: usize,
        queries: &B::Buffer,
        query_count: usize,
        candidates: std::ops::Range<usize>,
        cache: &KvCache<B>,
    ) -> Vec<u32> {
        let config = &self.config;
        let shape = *cache.shape();
        let args = ScoreArgs {
            shape,
            queries,
            query_count,
            keys: cache.keys(layer),
            candidates: candidates.clone(),
            head_map: config.head_map,
            scale: match config.score_scale {
                ScoreScale::None => 1.0,
                ScoreScale::SqrtD => 1.0 / (shape.head_dim as f32).sqrt(),
            },
            dtype: config.score_dtype,
        };
        backend.score(&args, &mut self.scores);
        match config.vote {
            Vote::Soft => backend.soft_vote(&mut self.scores, config.score_dtype, &mut self.votes),
            Vote::Head => backend.head_vote(&self.scores, config.top_k, &mut self.votes),
            Vote::Logit => backend.logit_vote(&self.scores, config.score_dtype, &mut self.votes),
        }
        smooth(&mut self.votes, config.smoothing);
        let mut selected = Vec::new();
        backend.top_k(&self.votes, config.top_k, &mut selected);
        for t in &mut selected {
            *t += candidates.start as u32;
        }
        selected
    }
}

/// Cosine of two vectors; 0 if either is zero.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let (mut ab, mut aa, mut bb) = (0.0f64, 0.0f64, 0.0f64);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    if aa == 0.0 || bb == 0.0 {
        0.0
    } else {
        (ab / (aa * bb).sqrt()) as f32
    }
}

impl<B: Backend> SelectionPolicy<B> for TokenSelect {
    fn select(
        &mut self,
        backend: &B,
        layer: usize,
        query: &QueryView<'_, B>,
        cache: &KvCache<B>,
        out: &mut Selection,
    ) -> Result<()> {
        let stored = cache.len();
        if stored <= self.config.token_budget() {
            return Ok(());
        }
        let local_start = stored
            .saturating_sub(self.config.window(query.rows))
            .max(self.config.n_init);
        let candidates = self.config.n_init..local_start;
        let (queries, query_count) = self.selection_queries(backend, query);

        // The selection cache belongs to decode (reading 2): the last prompt token neither reads nor fills it.
        let host_query = (query.phase == Phase::Decode).then(|| backend.download(&queries));
        let mut gap_start = local_start;
        let mut reused = None;
        if let Some(host_query) = &host_query {
            let state = &mut self.layers[layer];
            if !state.previous_query.is_empty() {
                state.to_previous.push(cosine(&state.previous_query, host_query));
            }
            state.previous_query.clear();
            state.previous_query.extend_from_slice(host_query);
            if let (CacheThreshold::Cosine(threshold), Some(last)) = (self.config.cache_threshold, &state.last_miss) {
                let cosine = cosine(&last.query, host_query);
                state.to_last_miss.push(cosine);
                if cosine >= threshold {
                    state.hits += 1;
                    reused = Some(last.selected.clone());
                    if self.config.cache_gap_repair {
                        gap_start = last.local_start;
                    }
                }
            }
        }
        let selected = if let Some(selected) = reused {
            out.cache = CacheOutcome::Hit;
            selected
        } else {
            let selected = self.choose(backend, layer, &queries, query_count, candidates, cache);
            if let (Some(host_query), CacheThreshold::Cosine(_)) = (host_query, self.config.cache_threshold) {
                out.cache = CacheOutcome::Miss;
                let state = &mut self.layers[layer];
                state.misses += 1;
                state.last_miss = Some(Remembered {
                    query: host_query.into_owned(),
                    selected: selected.clone(),
                    local_start,
                });
            }
            selected
        };
        out.dense = false;
        out.positions = self.config.positions;
        out.tokens.extend(0..self.config.n_init.min(stored) as u32);
        out.tokens.extend_from_slice(&selected);
        out.tokens.extend(gap_start as u32..stored as u32);
        out.selected = Some(selected);
        Ok(())
    }

    fn reset(&mut self) {
        self.layers.iter_mut().for_each(|layer| *layer = LayerState::default());
    }

    fn n_init(&self) -> usize {
        self.config.n_init
    }

    fn last_token_alone(&self) -> bool {
        self.config.last_token_alone
    }

    fn positions_needed(&self, max_context: usize, chunk: usize) -> usize {
        let packed = self.config.longest_list(chunk).max(self.config.n_local + chunk);
        match self.config.positions {
            // A hit with a repaired gap can reach further than one list; the table follows the context then.
            Positions::Packed
                if self.config.cache_threshold == CacheThreshold::Off || !self.config.cache_gap_repair =>
            {
                packed.min(max_context.max(self.config.n_local + chunk))
            }
            _ => max_context.max(self.config.n_local + chunk),
        }
    }

    fn scratch_bytes(&self, shape: &AttentionShape, max_context: usize, chunk: usize) -> usize {
        let queries = match self.config.chunk_query {
            ChunkQuery::Subchunk(rows) => chunk.div_ceil(rows.max(1)),
            ChunkQuery::Mean | ChunkQuery::Last => 1,
        };
        let candidates = max_context.saturating_sub(self.config.n_init);
        let scores = Scores::elements(queries * shape.query_heads, candidates) * size_of::<f32>();
        let votes_and_keys = candidates * (size_of::<f32>() + size_of::<u32>());
        let lists = self.config.longest_list(chunk) * size_of::<u32>() * 2 * self.layers.len();
        let rotated = (chunk + queries) * shape.query_width() * size_of::<f32>();
        scores + votes_and_keys + lists + rotated
    }

    fn statistics(&self) -> SelectionStatistics {
        SelectionStatistics {
            layers: self
                .layers
                .iter()
                .map(|layer| LayerStatistics {
                    cache_hits: layer.hits,
                    cache_misses: layer.misses,
                    cosine_to_last_miss: CosineSummary::of(&layer.to_last_miss),
                    cosine_to_previous: CosineSummary::of(&layer.to_previous),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_fit_the_trained_window_and_are_the_published_where_those_fit() {
        assert_eq!(Budget::for_window(3200), Budget::PUBLISHED);
        let demo = Budget::for_window(1024);
        assert_eq!(
            (demo.n_init, demo.n_local, demo.top_k, demo.prefill_chunk),
            (32, 128, 512, 128)
        );
        for trained in 32..4000 {
            assert!(Budget::for_window(trained).total() <= trained, "{trained}");
        }
        assert_eq!(Budget::for_window(0).prefill_chunk, 1);
    }
}
