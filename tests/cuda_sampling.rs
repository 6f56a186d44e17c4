//! Tokens that a GPU draws are those that the host draws of the same logits. Needs an NVIDIA GPU and NVRTC.
//!
//! Without them the tests say so and pass; with `TOKSELECT_REQUIRE_GPU=1` they fail.
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

use std::path::Path;
use tokselect::hub::{DEMO, HubEnvironment, HubOptions, Need, resolve_with};
use tokselect::kernels::Device;
use tokselect::kernels::cuda::driver::device_count;
use tokselect::kernels::cuda::{Cuda, Element};
use tokselect::model::checkpoint::Checkpoint;
use tokselect::model::config::ModelConfig;
use tokselect::model::decoder::{Decoder, Session, SessionLimits};
use tokselect::model::generate::{Request, Unobserved, generate};
use tokselect::model::sampling::{Sampler, SamplingConfig};
use tokselect::model::weights::ModelWeights;
use tokselect::random::stream_rng;
use tokselect::selection::{Phase, PolicyConfig};

use rand::Rng;

fn gpu() -> Option<Cuda> {
    let there = device_count().is_ok_and(|count| count > 0) && tokselect::kernels::cuda::compile::is_available();
    if there {
        return Some(Cuda::open(0, Element::Bf16, None).expect("a GPU"));
    }
    assert!(
        std::env::var_os("TOKSELECT_REQUIRE_GPU").is_none(),
        "a GPU with NVRTC is required"
    );
    eprintln!("skipped: no NVIDIA GPU with NVRTC was found");
    None
}

/// Settings from none to all.
fn settings(seed: u64) -> Vec<SamplingConfig> {
    let at = |temperature| SamplingConfig {
        temperature,
        seed,
        ..SamplingConfig::default()
    };
    vec![
        at(0.0),
        at(1.0),
        at(0.3),
        SamplingConfig {
            top_k: Some(40),
            ..at(0.8)
        },
        SamplingConfig {
            top_p: Some(0.9),
            ..at(1.1)
        },
        SamplingConfig {
            min_p: Some(0.05),
            ..at(1.5)
        },
        SamplingConfig {
            repetition_penalty: Some(1.3),
            ..at(0.0)
        },
        SamplingConfig {
            top_k: Some(50),
            top_p: Some(0.95),
            min_p: Some(0.02),
            repetition_penalty: Some(1.2),
            ..at(0.9)
        },
    ]
}

/// `V` logits: normal, in steps of a quarter so that there are ties, or with excluded tokens.
fn logits(vocabulary: usize, kind: usize, seed: u64) -> Vec<f32> {
    let mut rng = stream_rng(seed, "logits");
    (0..vocabulary)
        .map(|id| {
            let x: f32 = (0..6).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 5.0;
            match kind {
                0 => x,
                1 => (x * 4.0).round() / 4.0,
                _ if id % 3 == 0 => f32::NEG_INFINITY,
                _ => x,
            }
        })
        .collect()
}

#[test]
fn random_logits_give_the_tokens_of_the_host() {
    let Some(device) = gpu() else { return };
    let mut compared = 0;
    for vocabulary in [7, 600, 2304, 32_000, 152_064, 300_000] {
        for (kind, config) in settings(vocabulary as u64).into_iter().enumerate() {
            let mut room = <Cuda as Device>::ChoiceRoom::default();
            let (mut on_device, mut on_host) = (
                Sampler::new(config.clone()).unwrap(),
                Sampler::new(config.clone()).unwrap(),
            );
            let mut history: Vec<u32> = (0..20).map(|i| i * 13 % vocabulary as u32).collect();
            for step in 0..12 {
                let mut values = logits(vocabulary, (kind + step) % 3, step as u64);
                let mut buffer = device.upload(&values);
                let found = on_device.choose_on(&history, |choice| {
                    device.choose(&mut room, &mut buffer, vocabulary, choice).id
                });
                let expected = on_host.sample(&mut values, &history).unwrap();
                assert_eq!(found, Some(expected), "V {vocabulary}, step {step}, {config:?}");
                history.push(expected);
                compared += 1;
            }
        }
    }
    eprintln!("{compared} tokens compared");
}

#[test]
fn what_cannot_be_chosen_from_is_left_to_the_host() {
    let Some(device) = gpu() else { return };
    for config in settings(1) {
        let mut room = <Cuda as Device>::ChoiceRoom::default();
        for bad in [
            vec![1.0, f32::NAN, 2.0],
            vec![f32::INFINITY, 0.0],
            vec![f32::NEG_INFINITY; 5],
        ] {
            let mut buffer = device.upload(&bad);
            let mut sampler = Sampler::new(config.clone()).unwrap();
            let found = sampler.choose_on(&[], |choice| {
                let chosen = device.choose(&mut room, &mut buffer, bad.len(), choice);
                // The host then chooses from the model's logits, not from what a penalty was written into.
                assert_eq!(chosen.logits_changed, choice.penalizes(), "{config:?}");
                chosen.id
            });
            assert_eq!(found, None, "{bad:?}, {config:?}");
            assert!(sampler.sample(&mut bad.clone(), &[]).is_err());
        }
        // And the next text is not taken for a bad one.
        let mut buffer = device.upload(&[0.0, 5.0]);
        let mut sampler = Sampler::new(SamplingConfig {
            repetition_penalty: Some(1.1),
            ..config
        })
        .unwrap();
        let found = sampler.choose_on(&[], |choice| device.choose(&mut room, &mut buffer, 2, choice).id);
        assert!(found.is_some_and(|id| id < 2));
    }
}

fn demo(folder: &Path, device: Cuda) -> Decoder<Cuda> {
    let environment = HubEnvironment {
        endpoint: "http://127.0.0.1:9".into(),
        cache_dir: folder.join("hub"),
        own_cache_dir: folder.join("own"),
        token: None,
        offline: true,
    };
    let files = resolve_with(&environment, DEMO, Need::All, &HubOptions::default()).expect("the built-in model");
    let config = ModelConfig::load(&files.config).expect("a config");
    let checkpoint = Checkpoint::open(&files.weights, None).expect("weights");
    let weights = ModelWeights::load(&device, &config, &checkpoint, &mut |_| {}).expect("loads");
    Decoder {
        config,
        weights,
        backend: device,
    }
}

#[test]
fn the_demo_model_writes_the_same_text_wherever_it_is_drawn() {
    let Some(device) = gpu() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let decoder = demo(folder.path(), device);
    let limits = SessionLimits {
        max_context: 512,
        prefill_chunk: 128,
        diagnose: false,
    };
    let prompt: Vec<u32> = (0..90).map(|i| 3 + i * 37 % 2000).collect();
    let mut session = Session::new(&decoder, &PolicyConfig::Dense, limits).expect("session");
    let mut compared = 0;
    for seed in 0..4 {
        for config in settings(seed) {
            session.reset();
            let request = Request {
                ids: &prompt,
                max_new_tokens: 64,
                eos: &[],
                stop: &[],
                tokenizer: None,
            };
            let mut sampler = Sampler::new(config.clone()).unwrap();
            let made = generate(&mut session, &request, &mut sampler, &mut Unobserved).expect("generates");
            // The same by hand, every logit on the host.
            session.reset();
            let mut sampler = Sampler::new(config.clone()).unwrap();
            let mut last = 0..0;
            for range in session.chunks(prompt.len()) {
                session
                    .forward(&prompt[range.clone()], Phase::Prefill)
                    .expect("prefill");
                last = range;
            }
            let mut logits = session.logits(last.len() - 1).expect("logits");
            let (mut history, mut ids) = (prompt.clone(), Vec::new());
            for _ in 0..64 {
                let id = sampler.sample(&mut logits, &history).expect("a token");
                history.push(id);
                ids.push(id);
                session.forward(&[id], Phase::Decode).expect("decode");
                logits = session.logits(0).expect("logits");
            }
            assert_eq!(made.ids, ids, "{config:?}");
            compared += ids.len();
        }
    }
    eprintln!("{compared} tokens compared");
}
