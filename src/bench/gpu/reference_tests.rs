//! The reference of the bench against the reference of the program: the policy and the plain backend on the same bits.

use super::*;
use crate::attention;
use crate::kernels::Device;
use crate::kernels::reference::Reference;
use crate::kv_cache::KvCache;
use crate::model::rope;
use crate::random::stream_rng;
use crate::selection::{Phase, PolicyConfig, QueryView, RotatedQueries, Selection, TokenSelectConfig};
use rand::RngCore;

const SHAPE: AttentionShape = AttentionShape {
    query_heads: 6,
    kv_heads: 2,
    head_dim: 24,
};
const N: usize = 700;

/// Elements of the type, as f32.
fn random(name: &str, count: usize) -> Vec<f32> {
    let mut rng = stream_rng(0, name);
    let draw = |_| Element::Bf16.value(Element::Bf16.bits(rng.next_u32() as f32 / u32::MAX as f32 * 4.0 - 2.0));
    (0..count).map(draw).collect()
}

fn rope_table() -> RopeTable {
    let config = serde_json::json!({
        "model_type": "qwen2", "hidden_size": 144, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 8, "tie_word_embeddings": true,
        "rope_theta": 1e4, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096,
    });
    let config = crate::model::config::ModelConfig::from_json(&config, "test").unwrap();
    rope::table(&config, N)
}

/// Fused rows of N tokens, and their keys and values as stored.
fn stored() -> (Vec<f32>, Vec<u16>, Vec<u16>) {
    let width = SHAPE.qkv_width();
    let qkv = random("qkv", N * width);
    let part = |offset: usize| -> Vec<u16> {
        let rows = qkv.chunks_exact(width);
        rows.flat_map(|row| {
            row[offset..offset + SHAPE.kv_width()]
                .iter()
                .map(|x| Element::Bf16.bits(*x))
        })
        .collect()
    };
    let (keys, values) = (part(SHAPE.key_offset()), part(SHAPE.value_offset()));
    (qkv, keys, values)
}

fn view(bits: &[u16]) -> Stored<'_> {
    Stored {
        bits,
        element: Element::Bf16,
        shape: SHAPE,
    }
}

/// Selection and attention of the last `rows` rows as the policy and the plain backend have them.
fn program(policy: &PolicyConfig, qkv: &[f32], rows: usize) -> (Option<Vec<u32>>, Vec<f32>) {
    let (backend, rope) = (Reference, rope_table());
    let mut cache = KvCache::new(1, SHAPE, N);
    cache.extend(&backend, N).unwrap();
    cache.store(&backend, 0, &qkv.to_vec(), N);
    let last = qkv[(N - rows) * SHAPE.qkv_width()..].to_vec();
    let query = QueryView {
        qkv: &last,
        rows,
        phase: Phase::Prefill,
        shape: SHAPE,
        window: None,
        rope: &rope,
    };
    let mut selection = Selection::default();
    selection.clear();
    let mut policy = policy.build(1);
    policy.select(&backend, 0, &query, &cache, &mut selection).unwrap();
    let mut out = backend.zeros(rows * SHAPE.query_width());
    let mut scratch = RotatedQueries::new(&backend, rows, &SHAPE);
    attention::attend(&backend, 0, &query, &cache, &selection, &mut scratch, &mut out);
    (selection.selected, out)
}

#[test]
fn selection_and_attention_are_those_of_the_policy() {
    let settings = TokenSelectConfig {
        n_init: 8,
        n_local: 32,
        top_k: 64,
        ..TokenSelectConfig::default()
    };
    let (qkv, keys, values) = stored();
    let rope = rope_table();
    for rows in [1, 20] {
        let (selected, out) = program(&PolicyConfig::TokenSelect(settings.clone()), &qkv, rows);
        let selected: Vec<usize> = selected.unwrap().iter().map(|&t| t as usize).collect();
        let candidates = 8..N - 32 - rows;
        let query = selection_query(&qkv, N - rows..N, &SHAPE, &rope, 32);
        let votes = soft_votes(&query, view(&keys), candidates.clone(), HeadMap::Grouped, 1.0);
        assert!((votes.iter().sum::<f64>() - 6.0).abs() < 1e-6);
        let chosen: Vec<usize> = selected.iter().map(|t| t - candidates.start).collect();
        let choice = compare_choice(&votes, 64, &chosen);
        assert!(choice.recall > 0.95 && choice.worst < 1e-5, "{choice:?}");

        // The last row sees the whole list; the first of a chunk does not see those after it.
        for row in [0, rows - 1] {
            let list: Vec<usize> = (0..8)
                .chain(selected.iter().copied())
                .chain(candidates.end..N - (rows - 1 - row))
                .collect();
            let position = list.len() - 1;
            let query = rotated_query(&qkv, N - rows + row, &SHAPE, &rope, position);
            let expected = attend_row(&query, view(&keys), view(&values), &list, Placed::Packed(&rope));
            let found = &out[row * SHAPE.query_width()..][..SHAPE.query_width()];
            assert!(relative_error(found, &expected) < 1e-5, "row {row} of {rows}");
        }
    }
}

#[test]
fn dense_attention_of_rotated_keys_is_that_of_the_program() {
    let (qkv, keys, values) = stored();
    let rope = rope_table();
    let (_, out) = program(&PolicyConfig::Dense, &qkv, 1);
    let all: Vec<usize> = (0..N).collect();
    let query = rotated_query(&qkv, N - 1, &SHAPE, &rope, N - 1);
    let expected = attend_row(&query, view(&keys), view(&values), &all, Placed::Packed(&rope));
    assert!(relative_error(&out, &expected) < 1e-5);
    // The same over keys that were stored rotated, up to the rounding of the store.
    let mut rotated = Vec::new();
    for (token, row) in keys.chunks_exact(SHAPE.kv_width()).enumerate() {
        for head in row.chunks_exact(SHAPE.head_dim) {
            let mut head: Vec<f32> = head.iter().map(|&bits| Element::Bf16.value(bits)).collect();
            rotate(&mut head, &rope, token);
            rotated.extend(head.iter().map(|&x| Element::Bf16.bits(x)));
        }
    }
    let stored = attend_row(&query, view(&rotated), view(&values), &all, Placed::AsStored);
    assert!(relative_error(&stored, &expected) < 1e-2);
}

#[test]
fn a_wrong_choice_is_told_by_its_distance_from_the_edge() {
    let votes = [0.5, 0.1, 0.4, 0.300_001, 0.3, 0.2];
    let exact = compare_choice(&votes, 3, &[0, 2, 3]);
    assert_eq!(
        exact,
        Choice {
            recall: 1.0,
            worst: 0.0
        }
    );
    let tie = compare_choice(&votes, 3, &[0, 2, 4]);
    assert!(tie.worst < 1e-5 && (tie.recall - 2.0 / 3.0).abs() < 1e-12, "{tie:?}");
    assert!(compare_choice(&votes, 3, &[0, 2, 5]).worst > 0.3);
    // Too few, twice the same, or out of order.
    for chosen in [&[0, 2][..], &[0, 2, 2], &[2, 0, 3]] {
        assert!(compare_choice(&votes, 3, chosen).worst.is_infinite());
    }
    assert!(compare_choice(&votes, 9, &[0, 1, 2, 3, 4, 5]).worst.abs() < 1e-12);
}

#[test]
fn not_a_number_is_no_small_error() {
    assert!(relative_error(&[1.0, f32::NAN], &[1.0, 1.0]).is_nan());
    assert!(relative_error(&[1.0], &[1.0, 1.0]).is_nan());
    assert!(relative_error(&[3.0, 4.0], &[3.0, 4.0]).abs() < 1e-12);
}
