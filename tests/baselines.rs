//! The policies that `TokenSelect` is compared with, on a small random model: whole budgets against dense, plain against
//! fast kernels, cuts of the prompt, and what a session forgets.

use proptest::prelude::*;
use rand::Rng;
use tokselect::kernels::cpu::Cpu;
use tokselect::kernels::reference::Reference;
use tokselect::kernels::{Backend, Positions};
use tokselect::model::config::ModelConfig;
use tokselect::model::decoder::{Decoder, LayerTrace, Session, SessionLimits};
use tokselect::model::memory_plan::MemoryPlan;
use tokselect::model::weights::{ModelWeights, RandomWeights};
use tokselect::random::stream_rng;
use tokselect::selection::{
    H2oConfig, H2oPrefill, InfLlmConfig, Phase, PolicyConfig, Pooling, QuestConfig, SelfExtendConfig, SnapKvConfig,
};

const VOCABULARY: usize = 97;
const KV_HEADS: usize = 2;
const LAYERS: usize = 3;

fn decoder<B: Backend>(backend: B, window: Option<usize>) -> Decoder<B> {
    let value = serde_json::json!({"model_type": "mistral", "hidden_size": 48, "intermediate_size": 64,
        "num_attention_heads": 6, "num_key_value_heads": KV_HEADS, "head_dim": 8, "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY, "rms_norm_eps": 1e-6, "max_position_embeddings": 128, "sliding_window": window});
    let config = ModelConfig::from_json(&value, "test").expect("valid");
    // Large weights, so that attention is far from uniform and every choice matters.
    let source = RandomWeights {
        seed: 5,
        standard_deviation: 0.3,
    };
    let weights = ModelWeights::load(&backend, &config, &source, &mut |_| {}).expect("random weights");
    Decoder {
        config,
        weights,
        backend,
    }
}

fn ids(seed: u64, len: usize) -> Vec<u32> {
    let mut rng = stream_rng(seed, "text");
    (0..len).map(|_| rng.random_range(0..VOCABULARY as u32)).collect()
}

fn limits(prefill_chunk: usize) -> SessionLimits {
    SessionLimits {
        max_context: 600,
        prefill_chunk,
        diagnose: true,
    }
}

/// Logits after the prompt and after each of `decode`, and what every pass selected.
struct Run {
    logits: Vec<Vec<f32>>,
    traces: Vec<Vec<LayerTrace>>,
}

fn run<B: Backend>(session: &mut Session<'_, B>, prompt: &[u32], decode: &[u32]) -> Run {
    session.keep_trace();
    let (mut last, mut traces) = (0, Vec::new());
    for range in session.chunks(prompt.len()) {
        last = range.len() - 1;
        session.forward(&prompt[range], Phase::Prefill).expect("prefill");
        traces.push(session.take_trace().expect("kept"));
    }
    let mut logits = vec![session.logits(last).expect("logits")];
    for &id in decode {
        session.forward(&[id], Phase::Decode).expect("decode");
        traces.push(session.take_trace().expect("kept"));
        logits.push(session.logits(0).expect("logits"));
    }
    Run { logits, traces }
}

/// Every policy with a budget of `n_init`, `n_local` and `top_k` tokens.
fn policies(n_init: usize, n_local: usize, top_k: usize) -> Vec<PolicyConfig> {
    let mut all = vec![
        PolicyConfig::Ntk { rope_factor: Some(2.5) },
        PolicyConfig::Yarn { rope_factor: Some(2.5) },
        PolicyConfig::SelfExtend(SelfExtendConfig {
            group: Some(3),
            window: Some(n_local),
        }),
        PolicyConfig::InfLlm(InfLlmConfig {
            n_init,
            n_local,
            top_k,
            block_size: 8,
            representatives: 2,
        }),
    ];
    for positions in [Positions::Original, Positions::Packed] {
        all.push(PolicyConfig::Quest(QuestConfig {
            n_init,
            n_local,
            top_k,
            page_size: 4,
            dense_layers: 1,
            positions,
        }));
        all.push(PolicyConfig::SnapKv(SnapKvConfig {
            n_init,
            n_local,
            top_k,
            observation_window: 6,
            kernel: 3,
            pooling: if positions == Positions::Packed {
                Pooling::Max
            } else {
                Pooling::Mean
            },
            positions,
        }));
        for prefill in [H2oPrefill::Dense, H2oPrefill::Evict] {
            all.push(PolicyConfig::H2o(H2oConfig {
                n_init,
                n_local,
                top_k,
                prefill,
                positions,
            }));
        }
    }
    all
}

fn largest_difference(a: &Run, b: &Run) -> f32 {
    assert_eq!(a.logits.len(), b.logits.len());
    let pairs = a.logits.iter().flatten().zip(b.logits.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_budget_of_the_whole_text_is_dense_to_the_last_bit() {
    for window in [None, Some(40)] {
        let decoder = decoder(Cpu, window);
        let (prompt, decode) = (ids(1, 150), ids(2, 4));
        for policy in policies(4, 600, 600) {
            if policy.rope_extension().is_some() {
                continue;
            }
            let mut session = Session::new(&decoder, &policy, limits(37)).expect("session");
            let got = run(&mut session, &prompt, &decode);
            // The same cuts on both sides.
            let mut dense = Session::new(&decoder, &PolicyConfig::Dense, limits(37)).expect("session");
            for range in session.chunks(prompt.len()) {
                dense.forward(&prompt[range], Phase::Prefill).expect("prefill");
            }
            for (id, got) in decode.iter().zip(&got.logits[1..]) {
                dense.forward(&[*id], Phase::Decode).expect("decode");
                assert_eq!(&dense.logits(0).expect("logits"), got, "{}", policy.name());
            }
        }
    }
}

#[test]
fn a_factor_of_one_is_dense_to_the_last_bit() {
    let decoder = decoder(Cpu, None);
    let (prompt, decode) = (ids(1, 100), ids(2, 3));
    let roomy = SessionLimits {
        max_context: 128,
        ..limits(40)
    };
    let dense = run(
        &mut Session::new(&decoder, &PolicyConfig::Dense, roomy).expect("session"),
        &prompt,
        &decode,
    );
    for policy in [
        PolicyConfig::Ntk { rope_factor: None },
        PolicyConfig::Yarn { rope_factor: None },
    ] {
        let got = run(
            &mut Session::new(&decoder, &policy, roomy).expect("session"),
            &prompt,
            &decode,
        );
        assert_eq!(got.logits, dense.logits, "{}", policy.name());
        // Beyond the trained window of 128 they differ.
        let got = run(
            &mut Session::new(&decoder, &policy, limits(40)).expect("session"),
            &prompt,
            &decode,
        );
        assert!(largest_difference(&got, &dense) > 1e-3, "{}", policy.name());
    }
}

#[test]
fn plain_and_fast_kernels_agree() {
    for window in [None, Some(50)] {
        let (fast, plain) = (decoder(Cpu, window), decoder(Reference, window));
        let (prompt, decode) = (ids(3, 170), ids(4, 12));
        let dense = run(
            &mut Session::new(&fast, &PolicyConfig::Dense, limits(32)).expect("session"),
            &prompt,
            &decode,
        );
        for policy in policies(4, 16, 24) {
            let got = run(
                &mut Session::new(&fast, &policy, limits(32)).expect("session"),
                &prompt,
                &decode,
            );
            let want = run(
                &mut Session::new(&plain, &policy, limits(32)).expect("session"),
                &prompt,
                &decode,
            );
            for (got, want) in got.traces.iter().flatten().zip(want.traces.iter().flatten()) {
                assert_eq!(got.selected, want.selected, "{policy:?}");
            }
            // Three layers of sums in another order, on logits of size 10.
            let difference = largest_difference(&got, &want);
            assert!(difference < 2e-3, "{policy:?}: {difference}");
            // None of them is dense attention in disguise.
            let difference = largest_difference(&got, &dense);
            assert!(difference > 1e-2, "{policy:?}: {difference}");
        }
    }
}

#[test]
fn what_is_selected_is_sorted_unique_and_in_range() {
    let decoder = decoder(Cpu, None);
    let prompt = ids(5, 200);
    for policy in policies(5, 16, 24) {
        let mut session = Session::new(&decoder, &policy, limits(32)).expect("session");
        let out = run(&mut session, &prompt, &ids(6, 10));
        let mut seen = 0;
        for (step, trace) in out.traces.iter().rev().take(10).enumerate() {
            let stored = 210 - step;
            for layer in trace {
                let Some(selected) = &layer.selected else { continue };
                seen += 1;
                let lists = selected.len() / 24;
                assert_eq!(selected.len() % 24, 0, "{policy:?}");
                assert!([1, KV_HEADS].contains(&lists), "{policy:?}");
                for list in selected.chunks(24) {
                    assert!(list.is_sorted_by(|a, b| a < b), "{policy:?}: {list:?}");
                    assert!(list[0] >= 5, "{policy:?}: {list:?}");
                    // SnapKV leaves prompt tokens in place; everything else slides.
                    assert!((list[23] as usize) < stored, "{policy:?}: {list:?}");
                }
            }
        }
        let expected = match policy {
            PolicyConfig::Ntk { .. } | PolicyConfig::Yarn { .. } | PolicyConfig::SelfExtend(_) => 0,
            PolicyConfig::Quest(_) => 10 * (LAYERS - 1),
            _ => 10 * LAYERS,
        };
        assert_eq!(seen, expected, "{policy:?}");
        if expected > 0 {
            let layers = session.diagnosis().expect("kept on the CPU").layers();
            let last = layers.last().expect("a layer");
            let mass = last.attention_mass.expect("selections were measured");
            assert!(mass > 0.0 && mass < 1.0 + 1e-6, "{policy:?}: {mass}");
            assert!(last.recall_at_k.is_some_and(|recall| recall <= 1.0), "{policy:?}");
        }
    }
}

#[test]
fn the_cut_of_the_prompt_does_not_matter_where_it_should_not() {
    let decoder = decoder(Cpu, None);
    let (prompt, decode) = (ids(7, 180), ids(8, 6));
    for policy in policies(4, 16, 24) {
        let independent = match &policy {
            // Looks blocks up, or drops tokens, once per chunk.
            PolicyConfig::InfLlm(_) => false,
            PolicyConfig::H2o(config) => config.prefill == H2oPrefill::Dense,
            _ => true,
        };
        if !independent {
            continue;
        }
        let whole = run(
            &mut Session::new(&decoder, &policy, limits(600)).expect("session"),
            &prompt,
            &decode,
        );
        for chunk in [1, 7, 64] {
            let cut = run(
                &mut Session::new(&decoder, &policy, limits(chunk)).expect("session"),
                &prompt,
                &decode,
            );
            let difference = largest_difference(&cut, &whole);
            assert!(difference < 2e-3, "{policy:?}, chunks of {chunk}: {difference}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn a_reset_leaves_nothing_behind(seed: u64, first in 1usize..220, second in 1usize..220, steps in 0usize..30) {
        let decoder = decoder(Cpu, None);
        let (a, b, decode) = (ids(seed, first), ids(seed ^ 1, second), ids(seed ^ 2, steps));
        for policy in policies(3, 12, 16) {
            let alone = run(&mut Session::new(&decoder, &policy, limits(32)).expect("session"), &b, &decode);
            let mut session = Session::new(&decoder, &policy, limits(32)).expect("session");
            run(&mut session, &a, &decode);
            session.reset();
            let after = run(&mut session, &b, &decode);
            prop_assert_eq!(&after.logits, &alone.logits, "{:?}", policy);
            for (after, alone) in after.traces.iter().flatten().zip(alone.traces.iter().flatten()) {
                prop_assert_eq!(&after.selected, &alone.selected, "{:?}", policy);
            }
        }
    }

    #[test]
    fn going_back_repeats_a_step(seed: u64, prompt in 60usize..200) {
        // What a bench does: one step at the same place again and again, under a policy that never saw the prompt.
        let decoder = decoder(Cpu, None);
        let ids = ids(seed, prompt);
        for policy in policies(3, 12, 16) {
            let mut session = Session::new(&decoder, &PolicyConfig::Dense, limits(32)).expect("session");
            for range in session.chunks(prompt) {
                session.forward(&ids[range], Phase::Prefill).expect("prefill");
            }
            let mut policy: Box<dyn tokselect::selection::SelectionPolicy<Cpu>> = policy.build(LAYERS);
            session.swap_policy(&mut policy);
            for _ in 0..3 {
                session.forward(&[1], Phase::Decode).expect("decode");
                session.truncate(prompt);
            }
            // And further back than any window.
            session.truncate(prompt / 3);
            session.forward(&[2], Phase::Decode).expect("decode");
            session.forward(&ids[..20], Phase::Prefill).expect("prefill");
            prop_assert!(session.logits(0).expect("logits").iter().all(|l| l.is_finite()));
        }
    }
}

#[test]
fn the_memory_plan_grows_with_the_context_for_every_policy_that_remembers() {
    let config = decoder(Cpu, None).config;
    let scratch = |policy: &PolicyConfig, max_context| {
        let limits = SessionLimits {
            max_context,
            ..limits(32)
        };
        MemoryPlan::new(&Cpu, &config, policy, limits).selection_scratch_bytes
    };
    for policy in policies(3, 12, 16) {
        let (short, long) = (scratch(&policy, 1000), scratch(&policy, 100_000));
        match policy {
            PolicyConfig::Ntk { .. } | PolicyConfig::Yarn { .. } => assert_eq!((short, long), (0, 0)),
            // Evicting as it goes, h2o never holds more than the budget and a chunk.
            PolicyConfig::SelfExtend(_)
            | PolicyConfig::H2o(H2oConfig {
                prefill: H2oPrefill::Evict,
                ..
            }) => assert!(short == long && short > 0),
            _ => assert!(long > 2 * short, "{policy:?}: {short}, {long}"),
        }
    }
}
