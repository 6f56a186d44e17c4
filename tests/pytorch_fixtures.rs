//! Selection and attention against values computed by `PyTorch` (`scripts/make_fixtures.py`), on both CPU backends.

use serde::Deserialize;
use std::collections::BTreeMap;
use tokselect::attention::attend;
use tokselect::kernels::cpu::Cpu;
use tokselect::kernels::reference::Reference;
use tokselect::kernels::{
    AttentionShape, Backend, HeadMap, Positions, RopeTable, ScoreArgs, ScoreDtype, Scores, smooth,
};
use tokselect::kv_cache::KvCache;
use tokselect::model::config::ModelConfig;
use tokselect::model::rope;
use tokselect::selection::{
    ChunkQuery, Phase, QueryView, RotatedQueries, ScoreScale, Selection, SelectionPolicy, TokenSelect,
    TokenSelectConfig, Vote,
};

#[derive(Deserialize)]
struct Fixtures {
    cases: Vec<Case>,
    top_k: Vec<TopK>,
    smoothing: Vec<Smoothing>,
    rope: Vec<Rope>,
}

#[derive(Deserialize)]
struct Case {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    chunk: usize,
    n_stored: usize,
    n_init: usize,
    n_local: usize,
    top_k: usize,
    head_map: String,
    score_scale: String,
    score_dtype: String,
    chunk_query: String,
    smoothing: usize,
    local_outside_chunk: bool,
    positions: String,
    sliding_window: Option<usize>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    window: usize,
    queries: Vec<f32>,
    scores: Vec<f32>,
    votes: BTreeMap<String, Votes>,
    packed: Vec<u32>,
    attention: Vec<f32>,
}

#[derive(Deserialize)]
struct Votes {
    vote: Vec<f32>,
    selected: Vec<u32>,
}

#[derive(Deserialize)]
struct TopK {
    values: Vec<f32>,
    k: usize,
    selected: Vec<u32>,
}

#[derive(Deserialize)]
struct Smoothing {
    values: Vec<f32>,
    kernel: usize,
    smoothed: Vec<f32>,
}

#[derive(Deserialize)]
struct Rope {
    config: serde_json::Value,
    head_dim: usize,
    positions: Vec<usize>,
    x: Vec<f32>,
    rotated: Vec<f32>,
}

fn fixtures() -> Fixtures {
    serde_json::from_str(include_str!("fixtures/token_select.json")).expect("the committed fixtures")
}

/// Stated in `scripts/make_fixtures.py`: sums of the same f32 products in another order.
fn close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * w.abs().max(1.0),
            "{what}, element {i}: {g} against {w}"
        );
    }
}

fn model(attention: AttentionShape, rope: &serde_json::Value) -> ModelConfig {
    let mut value = serde_json::json!({"model_type": "llama", "hidden_size": attention.query_width(),
        "intermediate_size": 8, "num_attention_heads": attention.query_heads,
        "num_key_value_heads": attention.kv_heads, "head_dim": attention.head_dim, "num_hidden_layers": 1,
        "vocab_size": 8, "rms_norm_eps": 1e-6, "max_position_embeddings": 512});
    for (key, entry) in rope.as_object().expect("rope settings") {
        value[key] = entry.clone();
    }
    ModelConfig::from_json(&value, "fixture").expect("a valid config")
}

impl Case {
    fn shape(&self) -> AttentionShape {
        AttentionShape {
            query_heads: self.n_heads,
            kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
        }
    }

    fn config(&self, vote: Vote) -> TokenSelectConfig {
        TokenSelectConfig {
            n_init: self.n_init,
            n_local: self.n_local,
            top_k: self.top_k,
            vote,
            head_map: if self.head_map == "modulo" {
                HeadMap::Modulo
            } else {
                HeadMap::Grouped
            },
            score_scale: if self.score_scale == "sqrt-d" {
                ScoreScale::SqrtD
            } else {
                ScoreScale::None
            },
            smoothing: self.smoothing,
            chunk_query: match self.chunk_query.as_str() {
                "mean" => ChunkQuery::Mean,
                "last" => ChunkQuery::Last,
                other => ChunkQuery::Subchunk(other["subchunk:".len()..].parse().expect("rows")),
            },
            score_dtype: self.dtype(),
            local_outside_chunk: self.local_outside_chunk,
            positions: if self.positions == "original" {
                Positions::Original
            } else {
                Positions::Packed
            },
            ..TokenSelectConfig::default()
        }
    }

    fn dtype(&self) -> ScoreDtype {
        if self.score_dtype == "bf16" {
            ScoreDtype::Bf16
        } else {
            ScoreDtype::F32
        }
    }

    /// Fused rows of all tokens; only the chunk has queries.
    fn fused(&self, tokens: std::ops::Range<usize>) -> Vec<f32> {
        let (query, kv) = (self.shape().query_width(), self.shape().kv_width());
        let first = self.n_stored - self.chunk;
        tokens
            .flat_map(|t| {
                let queries = if t >= first {
                    self.q[(t - first) * query..][..query].to_vec()
                } else {
                    vec![0.0; query]
                };
                [
                    queries,
                    self.k[t * kv..][..kv].to_vec(),
                    self.v[t * kv..][..kv].to_vec(),
                ]
                .concat()
            })
            .collect()
    }
}

fn check_case<B: Backend<Buffer = Vec<f32>>>(backend: &B, case: &Case, number: usize) {
    let shape = case.shape();
    let table = rope::table(&model(shape, &serde_json::json!({})), 128);
    let mut cache = KvCache::new(1, shape, 1000);
    // In two parts, so that the page table is not the identity it would be otherwise.
    cache.extend(backend, 700).expect("room");
    cache.truncate(0);
    cache.extend(backend, case.n_stored).expect("room");
    cache.store(backend, 0, &case.fused(0..case.n_stored), case.n_stored);
    let qkv = case.fused(case.n_stored - case.chunk..case.n_stored);
    let query = QueryView {
        qkv: &qkv,
        rows: case.chunk,
        phase: Phase::Prefill,
        shape,
        window: case.sliding_window,
        rope: &table,
    };

    let mut scores = Scores::default();
    let args = ScoreArgs {
        shape,
        queries: &case.queries,
        query_count: case.queries.len() / shape.query_width(),
        keys: cache.keys(0),
        candidates: case.n_init..case.n_stored - case.window,
        head_map: case.config(Vote::Soft).head_map,
        scale: if case.score_scale == "sqrt-d" {
            1.0 / (case.head_dim as f32).sqrt()
        } else {
            1.0
        },
        dtype: case.dtype(),
    };
    backend.score(&args, &mut scores);
    let flat: Vec<f32> = (0..scores.rows)
        .flat_map(|r| (0..scores.len).map(move |t| (r, t)))
        .map(|(r, t)| scores.get(r, t))
        .collect();
    close(&flat, &case.scores, 1e-5, &format!("scores of case {number}"));
    let mut votes = Vec::new();
    backend.soft_vote(&mut scores, case.dtype(), &mut votes);
    close(
        &votes,
        &case.votes["soft"].vote,
        1e-6,
        &format!("soft votes of case {number}"),
    );

    for (name, vote) in [("head", Vote::Head), ("logit", Vote::Logit), ("soft", Vote::Soft)] {
        let mut selection = Selection::default();
        let mut policy = TokenSelect::new(case.config(vote), 1);
        policy
            .select(backend, 0, &query, &cache, &mut selection)
            .expect("selects");
        assert_eq!(
            selection.selected.as_ref(),
            Some(&case.votes[name].selected),
            "case {number}, vote {name}"
        );
        if vote == Vote::Soft {
            assert_eq!(selection.tokens, case.packed, "case {number}");
            let mut scratch = RotatedQueries::new(backend, case.chunk, &shape);
            let mut out = vec![0.0; case.chunk * shape.query_width()];
            attend(backend, 0, &query, &cache, &selection, &mut scratch, &mut out);
            close(&out, &case.attention, 1e-5, &format!("attention of case {number}"));
        }
    }
}

#[test]
fn selection_and_attention_equal_pytorch() {
    for (number, case) in fixtures().cases.iter().enumerate() {
        check_case(&Cpu, case, number);
        check_case(&Reference, case, number);
    }
}

#[test]
fn top_k_and_smoothing_equal_pytorch() {
    for case in fixtures().top_k {
        let mut selected = Vec::new();
        Cpu.top_k(&case.values, case.k, &mut selected);
        assert_eq!(selected, case.selected, "{:?}", case.values);
    }
    for case in fixtures().smoothing {
        let mut votes = case.values.clone();
        smooth(&mut votes, case.kernel);
        assert_eq!(votes, case.smoothed, "{:?} by {}", case.values, case.kernel);
    }
}

#[test]
fn rotation_of_every_scaling_equals_pytorch() {
    for case in fixtures().rope {
        let d = case.head_dim;
        let shape = AttentionShape {
            query_heads: 1,
            kv_heads: 1,
            head_dim: d,
        };
        let longest = case.positions.iter().max().expect("positions") + 1;
        let table: RopeTable = rope::table(&model(shape, &case.config), longest);
        for (row, &position) in case.positions.iter().enumerate() {
            let mut fused = case.x[row * d..][..d].to_vec();
            fused.resize(3 * d, 0.0);
            let mut out = vec![0.0; d];
            Cpu.rotate_queries(&fused, 0..1, &shape, &table, position, &mut out);
            close(
                &out,
                &case.rotated[row * d..][..d],
                2e-5,
                &format!("{} at {position}", case.config),
            );
        }
    }
}
