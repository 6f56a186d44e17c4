//! The decoder against transformers: logits, greedy ids, and every way of cutting a prompt, on six small checkpoints of
//! all supported families.

mod common;

use std::path::Path;
use tokselect::hub::{HubOptions, Need, resolve};
use tokselect::kernels::Backend;
use tokselect::kernels::cpu::Cpu;
use tokselect::kernels::reference::Reference;
use tokselect::model::checkpoint::Checkpoint;
use tokselect::model::config::ModelConfig;
use tokselect::model::decoder::{Decoder, Session, SessionLimits};
use tokselect::model::tokenizer::{Tokenizer, TokenizerFiles};
use tokselect::model::weights::ModelWeights;
use tokselect::selection::{Phase, PolicyConfig, TokenSelectConfig};

/// Absolute, on f32 logits (stated by the models' README).
const TOLERANCE: f32 = 1e-3;

fn load<B: Backend>(backend: B, dir: &Path) -> Decoder<B> {
    let files = resolve(dir.to_str().expect("UTF-8"), Need::All, &HubOptions::default()).expect("files");
    let config = ModelConfig::load(&files.config).expect("config");
    let checkpoint = Checkpoint::open(&files.weights, files.weights_index.as_deref()).expect("weights");
    checkpoint.check(&config).expect("tensors match the config");
    let weights = ModelWeights::load(&backend, &config, &checkpoint, &mut |_| {}).expect("loads");
    Decoder {
        config,
        weights,
        backend,
    }
}

fn limits(prefill_chunk: usize) -> SessionLimits {
    SessionLimits {
        max_context: 2048,
        prefill_chunk,
        diagnose: false,
    }
}

/// Logits after the prompt, cut into chunks of `chunk`.
fn prefill<B: Backend>(session: &mut Session<'_, B>, ids: &[u32]) -> Vec<f32> {
    let mut last = 0;
    for range in session.chunks(ids.len()) {
        last = range.len() - 1;
        session.forward(&ids[range], Phase::Prefill).expect("prefill");
    }
    session.logits(last).expect("logits")
}

#[expect(clippy::float_cmp, reason = "the maximum is one of the numbers")]
fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&l| l == best).expect("some logit") as u32
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

struct Prompt {
    name: String,
    ids: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
    margin: Vec<f32>,
}

fn prompts(dir: &Path) -> Vec<Prompt> {
    let text = std::fs::read_to_string(dir.join("expected.json")).expect("expected.json");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let floats = |v: &serde_json::Value| -> Vec<f32> {
        v.as_array()
            .expect("list")
            .iter()
            .map(|x| x.as_f64().expect("number") as f32)
            .collect()
    };
    let ids = |v: &serde_json::Value| -> Vec<u32> {
        v.as_array()
            .expect("list")
            .iter()
            .map(|x| x.as_u64().expect("id") as u32)
            .collect()
    };
    value["prompts"]
        .as_array()
        .expect("prompts")
        .iter()
        .map(|p| Prompt {
            name: p["name"].as_str().expect("name").to_owned(),
            ids: ids(&p["input_ids"]),
            logits: floats(&p["last_logits"]),
            greedy: ids(&p["greedy"]),
            margin: floats(&p["greedy_margin"]),
        })
        .collect()
}

fn models() -> Vec<std::path::PathBuf> {
    let Some(root) = common::shared("data/reference_models") else {
        return Vec::new();
    };
    let mut dirs: Vec<_> = std::fs::read_dir(root)
        .expect("folder")
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.is_dir())
        .collect();
    dirs.sort();
    assert_eq!(dirs.len(), 6, "all six reference models");
    dirs
}

#[test]
fn logits_and_greedy_ids_equal_transformers() {
    for dir in models() {
        let decoder = load(Cpu, &dir);
        for prompt in prompts(&dir) {
            for chunk in [2048, 512, 37, 1] {
                let mut session = Session::new(&decoder, &PolicyConfig::Dense, limits(chunk)).expect("session");
                let mut logits = prefill(&mut session, &prompt.ids);
                let difference = largest_difference(&logits, &prompt.logits);
                assert!(
                    difference < TOLERANCE,
                    "{} {} chunk {chunk}: {difference}",
                    dir.display(),
                    prompt.name
                );
                for (step, (&expected, &margin)) in prompt.greedy.iter().zip(&prompt.margin).enumerate() {
                    // Below the tolerance two ids are equally right, and the texts part.
                    if margin <= TOLERANCE {
                        break;
                    }
                    assert_eq!(
                        argmax(&logits),
                        expected,
                        "{} {} step {step}",
                        dir.display(),
                        prompt.name
                    );
                    session.forward(&[expected], Phase::Decode).expect("decode");
                    logits = session.logits(0).expect("logits");
                }
            }
        }
    }
}

#[test]
fn the_plain_backend_agrees_too() {
    for dir in models() {
        let decoder = load(Reference, &dir);
        for prompt in prompts(&dir).iter().filter(|p| p.ids.len() <= 150) {
            let mut session = Session::new(&decoder, &PolicyConfig::Dense, limits(64)).expect("session");
            let difference = largest_difference(&prefill(&mut session, &prompt.ids), &prompt.logits);
            assert!(
                difference < TOLERANCE,
                "{} {}: {difference}",
                dir.display(),
                prompt.name
            );
        }
    }
}

#[test]
fn a_budget_of_the_whole_text_is_dense_to_the_last_bit() {
    for dir in models() {
        let decoder = load(Cpu, &dir);
        for prompt in prompts(&dir) {
            // The same cuts on both sides: the last token by itself.
            let config = TokenSelectConfig {
                n_init: 4,
                n_local: 64,
                top_k: 2048,
                ..TokenSelectConfig::default()
            };
            let mut selecting =
                Session::new(&decoder, &PolicyConfig::TokenSelect(config), limits(100)).expect("session");
            let chunks = selecting.chunks(prompt.ids.len());
            let mut dense = Session::new(&decoder, &PolicyConfig::Dense, limits(100)).expect("session");
            let mut next = 0;
            for range in chunks {
                let last = range.len() - 1;
                dense
                    .forward(&prompt.ids[range.clone()], Phase::Prefill)
                    .expect("dense");
                selecting
                    .forward(&prompt.ids[range], Phase::Prefill)
                    .expect("token-select");
                let (a, b) = (
                    dense.logits(last).expect("logits"),
                    selecting.logits(last).expect("logits"),
                );
                assert_eq!(a, b, "{} {}", dir.display(), prompt.name);
                next = argmax(&a);
            }
            for _ in 0..4 {
                dense.forward(&[next], Phase::Decode).expect("dense");
                selecting.forward(&[next], Phase::Decode).expect("token-select");
                let (a, b) = (dense.logits(0).expect("logits"), selecting.logits(0).expect("logits"));
                assert_eq!(a, b, "{} {}", dir.display(), prompt.name);
                next = argmax(&a);
            }
        }
    }
}

/// Known from the README of the model: greedy decoding from BOS.
#[test]
fn stories_open_with_their_known_sentence() {
    let Some(dir) = common::shared("data/stories260K/hf") else {
        return;
    };
    let decoder = load(Cpu, &dir);
    let tokenizer = Tokenizer::load(TokenizerFiles {
        tokenizer: &dir.join("tokenizer.json"),
        tokenizer_config: Some(&dir.join("tokenizer_config.json")),
    })
    .expect("tokenizer");
    let mut session = Session::new(&decoder, &PolicyConfig::Dense, limits(64)).expect("session");
    let mut ids = vec![1];
    session.forward(&ids, Phase::Prefill).expect("prefill");
    for _ in 0..40 {
        let next = argmax(&session.logits(0).expect("logits"));
        ids.push(next);
        session.forward(&[next], Phase::Decode).expect("decode");
    }
    let text = tokenizer.decode(&ids, true).expect("text");
    let opening = "Once upon a time, there was a little girl named Lily.";
    assert!(text.starts_with(opening), "{text}");
}
