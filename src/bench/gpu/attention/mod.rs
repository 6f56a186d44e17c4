//! Attention of one layer on a GPU: decode steps, chunks of a prompt, whole prompts, through the same context that a model
//! runs on. Its layers are the buffer sets that the calls take in turn.

mod checks;
mod measure;

use super::Watch;
use crate::bench::end_to_end::{Ended, append};
use crate::bench::shapes::Shape;
use crate::bench::timing::Rounds;
use crate::error::{Error, Result};
use crate::kernels::cuda::Cuda;
use crate::model::config::ModelConfig;
use crate::model::context::{CudaContext, Stage};
use crate::model::decoder::SessionLimits;
use crate::report::SampleSink;
use crate::report::speed::SpeedKey;
use crate::selection::{CacheThreshold, PolicyConfig, TokenSelectConfig};
use measure::measure;
use serde::Serialize;

/// Name of the bench in sample files.
pub const TASK: &str = "attention";

/// Chunks of one forward pass of a prompt.
const BLOCK_CHUNKS: usize = 16;
/// Largest error of an output of 16-bit operands, relative to f32: one rounding of each operand gives 2e-3.
pub const ERROR_BOUND: f64 = 3e-3;
/// How far beyond the edge a wrong choice may lie, relative to the last vote that counts: sums in another order.
pub const TIE_BOUND: f64 = 1e-5;
/// Share of the best tokens that 8-bit scores must find.
pub const RECALL_BOUND: f64 = 0.99;

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, clap::ValueEnum, Copy)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// One query row
    Decode,
    /// Chunks at the end of a prompt
    Chunk,
    /// A whole prompt, causal
    Causal,
}

/// Everything that decides what is measured.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// Shapes by name.
    #[serde(serialize_with = "names")]
    pub shapes: Vec<Shape>,
    /// N.
    pub lengths: Vec<usize>,
    /// Dense, token-select, or both.
    pub policies: Vec<PolicyConfig>,
    /// What of it.
    pub parts: Vec<Part>,
    /// Rows of a chunk.
    pub prefill_chunk: usize,
    /// Longest whole prompt.
    pub longest_causal: usize,
    /// Repetitions.
    pub rounds: Rounds,
    /// Seed of keys, values and queries.
    pub seed: u64,
    /// Compare what was timed with f32.
    pub checks: bool,
}

fn names<S: serde::Serializer>(shapes: &[Shape], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(shapes.iter().map(|shape| shape.name()))
}

/// How a case calls the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Step,
    Chunks(usize),
    /// One launch of a block of chunks, by itself.
    Stage(Stage),
    Causal,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// What is done.
    pub key: SpeedKey,
    /// How.
    pub method: &'static str,
    shape: Shape,
    policy: PolicyConfig,
    call: Call,
}

impl Case {
    /// Its name in sample files.
    pub fn id(&self) -> String {
        let SpeedKey {
            kind, shape, tokens, ..
        } = &self.key;
        format!("{kind}/{shape}/{tokens}/{}", self.method)
    }

    /// Bytes of keys and values of one buffer set.
    pub fn set_bytes(&self, config: &ModelConfig) -> usize {
        2 * self.key.tokens * config.attention.kv_width() * size_of::<u16>()
    }
}

/// All measurements that `settings` ask for, in their order.
pub fn cases(settings: &Settings) -> Vec<Case> {
    let mut all = Vec::new();
    for &shape in &settings.shapes {
        for &tokens in &settings.lengths {
            let mut push = |kind: &str, rows: usize, method, policy: &PolicyConfig, call| {
                all.push(Case {
                    key: SpeedKey {
                        kind: kind.into(),
                        shape: shape.name().into(),
                        tokens,
                        rows,
                    },
                    method,
                    shape,
                    policy: policy.clone(),
                    call,
                });
            };
            let rows = settings.prefill_chunk;
            for part in &settings.parts {
                for policy in &settings.policies {
                    match (part, policy) {
                        (Part::Decode, PolicyConfig::TokenSelect(config)) => {
                            let with = |cache_threshold, int8_keys| {
                                PolicyConfig::TokenSelect(TokenSelectConfig {
                                    cache_threshold,
                                    int8_keys,
                                    ..config.clone()
                                })
                            };
                            let (miss, miss8) = (with(CacheThreshold::Off, false), with(CacheThreshold::Off, true));
                            push("decode", 1, "token-select miss", &miss, Call::Step);
                            push("decode", 1, "token-select miss, 8-bit keys", &miss8, Call::Step);
                            let hit = with(CacheThreshold::Cosine(-1.0), config.int8_keys);
                            push("decode", 1, "token-select hit", &hit, Call::Step);
                        }
                        (Part::Decode, dense) => push("decode", 1, "dense", dense, Call::Step),
                        (Part::Chunk, _) if rows > tokens => {}
                        (Part::Chunk, policy @ PolicyConfig::TokenSelect(_)) => {
                            push("chunk", rows, "token-select chunk", policy, Call::Chunks(1));
                            if rows * BLOCK_CHUNKS <= tokens {
                                let block = Call::Chunks(BLOCK_CHUNKS);
                                push("chunk", rows, "token-select chunk of a block of 16", policy, block);
                            }
                        }
                        (Part::Chunk, dense) => push("chunk", rows, "dense", dense, Call::Chunks(1)),
                        (Part::Causal, PolicyConfig::Dense) if tokens <= settings.longest_causal => {
                            push("causal", tokens, "dense", policy, Call::Causal);
                        }
                        (Part::Causal, _) => {}
                    }
                }
            }
        }
    }
    all
}

/// The launches of attention, each by itself, at one shape and length: steps, and the stages of a block of chunks.
pub fn kernel_cases(settings: &Settings) -> Vec<Case> {
    let mut all = cases(settings);
    all.retain(|case| case.call == Call::Step || case.call == Call::Chunks(1));
    let stages = [
        ("append", Stage::Append),
        ("prefill_select", Stage::Select),
        ("pack_chunks", Stage::Pack),
        ("attend_prefill", Stage::Attend),
    ];
    let block = cases(settings)
        .into_iter()
        .filter(|case| case.call == Call::Chunks(BLOCK_CHUNKS));
    for case in block {
        for (method, stage) in stages {
            let mut case = case.clone();
            case.key.rows *= BLOCK_CHUNKS;
            all.push(Case {
                method,
                call: Call::Stage(stage),
                ..case
            });
        }
    }
    all
}

/// Measures what `sink` does not have yet: one sample per case.
pub fn run(device: &Cuda, settings: &Settings, watch: &Watch<'_>, sink: &mut dyn SampleSink) -> Result<Ended> {
    run_cases(device, settings, &cases(settings), watch, sink)
}

/// As [`run`], of these cases.
pub fn run_cases(
    device: &Cuda,
    settings: &Settings,
    cases: &[Case],
    watch: &Watch<'_>,
    sink: &mut dyn SampleSink,
) -> Result<Ended> {
    for case in cases {
        let id = case.id();
        if sink.is_done(TASK, &id) {
            continue;
        }
        if (watch.stopped)() {
            return Ok(Ended::Interrupted);
        }
        let SpeedKey {
            kind, shape, tokens, ..
        } = &case.key;
        (watch.status)(&format!("{kind} of {shape}, {tokens} tokens, {}", case.method));
        match measure(device, settings, case, watch)? {
            Some(sample) => append(sink, TASK, &id, &sample)?,
            None => return Ok(Ended::Interrupted),
        }
    }
    Ok(Ended::Finished)
}

/// What the settings cannot ask for.
pub fn validate(settings: &Settings) -> Result<()> {
    for policy in &settings.policies {
        if !matches!(policy, PolicyConfig::Dense | PolicyConfig::TokenSelect(_)) {
            return Err(
                Error::user(format!("`--policies {}` has no kernels on a GPU", policy.name()))
                    .help("pass `dense`, `token-select` or both"),
            );
        }
        for shape in &settings.shapes {
            let config = ModelConfig::from_json(&shape.config(), shape.name())?;
            let limits = SessionLimits {
                max_context: settings.lengths.iter().copied().max().unwrap_or(1),
                prefill_chunk: settings.prefill_chunk,
                diagnose: false,
            };
            CudaContext::runs(&config, policy, limits)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(lengths: &[usize]) -> Settings {
        Settings {
            shapes: vec![Shape::Qwen2Seven],
            lengths: lengths.to_vec(),
            policies: vec![
                PolicyConfig::Dense,
                PolicyConfig::TokenSelect(TokenSelectConfig::default()),
            ],
            parts: vec![Part::Decode, Part::Chunk, Part::Causal],
            prefill_chunk: 512,
            longest_causal: 8192,
            rounds: Rounds {
                warmup: 1,
                repetitions: 2,
            },
            seed: 0,
            checks: true,
        }
    }

    fn methods(cases: &[Case]) -> Vec<(&str, usize, usize, &str)> {
        cases
            .iter()
            .map(|case| (case.key.kind.as_str(), case.key.tokens, case.key.rows, case.method))
            .collect()
    }

    #[test]
    fn a_length_is_measured_in_every_way_that_it_allows() {
        let found = cases(&settings(&[8192]));
        assert_eq!(
            methods(&found),
            [
                ("decode", 8192, 1, "dense"),
                ("decode", 8192, 1, "token-select miss"),
                ("decode", 8192, 1, "token-select miss, 8-bit keys"),
                ("decode", 8192, 1, "token-select hit"),
                ("chunk", 8192, 512, "dense"),
                ("chunk", 8192, 512, "token-select chunk"),
                ("chunk", 8192, 512, "token-select chunk of a block of 16"),
                ("causal", 8192, 8192, "dense"),
            ]
        );
        // No chunk is longer than the text, no block either, and whole prompts end at their limit.
        assert_eq!(cases(&settings(&[256])).len(), 5);
        assert!(
            methods(&cases(&settings(&[4096, 16384])))
                .iter()
                .all(|m| *m != ("causal", 16384, 16384, "dense"))
        );
        let ids: std::collections::BTreeSet<String> = found.iter().map(Case::id).collect();
        assert_eq!(ids.len(), found.len());
    }

    #[test]
    fn kernels_are_the_steps_the_chunks_and_the_stages_of_a_block() {
        let found = kernel_cases(&settings(&[8192]));
        let stages: Vec<_> = methods(&found)
            .into_iter()
            .filter(|m| m.2 == 8192)
            .map(|m| m.3)
            .collect();
        assert_eq!(stages, ["append", "prefill_select", "pack_chunks", "attend_prefill"]);
    }

    #[test]
    fn only_policies_with_kernels_are_measured() {
        let mut wanted = settings(&[8192]);
        validate(&wanted).unwrap();
        wanted.policies.push(PolicyConfig::Ntk { rope_factor: Some(2.0) });
        assert_eq!(validate(&wanted).unwrap_err().exit_code(), 2);
    }
}
