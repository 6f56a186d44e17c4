//! Seconds per decode step at a number of stored tokens, variants by turns on one KV cache.

use super::{Bench, Ended, Settings, append};
use crate::error::Result;
use crate::kernels::Backend;
use crate::model::decoder::{ForwardTimes, Session};
use crate::report::{Measured, SampleSink};
use crate::selection::{CacheThreshold, Phase, PolicyConfig, SelectionPolicy, TokenSelectConfig};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Name of the part in sample files.
pub const TASK: &str = "decode";

/// Tokens of the short prefill from which made-up keys and values take their scale.
const MODEL_TOKENS: usize = 512;

/// What is timed: a policy, or token-select with the selection cache held at one of its two fates.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Name in tables.
    pub name: &'static str,
    /// Its policy.
    pub policy: PolicyConfig,
}

/// All repetitions at one number of stored tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecodeSample {
    /// N before each step.
    pub stored_tokens: usize,
    /// Where the stored keys and values came from.
    pub stored_by: String,
    /// In the order of their turns; equal indices of the lists are one round.
    pub variants: Vec<VariantTimes>,
}

/// The repetitions of one variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VariantTimes {
    /// Name in tables.
    pub name: String,
    /// One forward pass and its logits.
    pub step_s: Vec<f64>,
    /// Of it: choosing tokens.
    pub select_s: Vec<f64>,
    /// Of it: attending to them.
    pub attend_s: Vec<f64>,
    /// Share of layers and steps that used a selection again.
    pub hit_rate: Measured<f64>,
}

/// The variants that `settings` asks for.
pub fn variants(settings: &Settings) -> Vec<Variant> {
    let mut all = Vec::new();
    for policy in &settings.policies {
        if let PolicyConfig::TokenSelect(config) = policy {
            let with = |cache_threshold| {
                PolicyConfig::TokenSelect(TokenSelectConfig {
                    cache_threshold,
                    ..config.clone()
                })
            };
            for (name, threshold) in [
                ("token-select miss", CacheThreshold::Off),
                ("token-select hit", CacheThreshold::Cosine(-1.0)),
            ] {
                let policy = with(threshold);
                all.push(Variant { name, policy });
            }
        }
        all.push(Variant {
            name: policy.name(),
            policy: policy.clone(),
        });
    }
    all
}

/// Measures what `sink` does not have yet: one sample per number of stored tokens.
pub fn run<B: Backend>(bench: &Bench<'_, B>, sink: &mut dyn SampleSink) -> Result<Ended> {
    let settings = bench.settings;
    let todo: Vec<usize> = settings
        .decode_at
        .iter()
        .copied()
        .filter(|stored| !sink.is_done(TASK, &stored.to_string()))
        .collect();
    let Some(longest) = todo.iter().copied().max() else {
        return Ok(Ended::Finished);
    };
    let ids = bench.ids(longest);
    let mut session = Session::new(bench.decoder, &PolicyConfig::Dense, settings.limits(longest + 1))?;
    for stored in todo {
        bench.status(&format!("decode at {stored} tokens"));
        if store(bench, &mut session, &ids[..stored])? == Ended::Interrupted {
            return Ok(Ended::Interrupted);
        }
        let Some(sample) = measure(bench, &mut session, stored)? else {
            return Ok(Ended::Interrupted);
        };
        append(sink, TASK, &stored.to_string(), &sample)?;
    }
    Ok(Ended::Finished)
}

/// Brings the session to as many stored tokens as there are `ids`, by a dense forward pass of all or of the first ones.
fn store<B: Backend>(bench: &Bench<'_, B>, session: &mut Session<'_, B>, ids: &[u32]) -> Result<Ended> {
    let chunk = bench.settings.prefill_chunk;
    let real = if bench.settings.real_prefill {
        ids.len()
    } else {
        // From the start each time: what is stored must not depend on the lengths measured before.
        session.reset();
        ids.len().min(MODEL_TOKENS)
    };
    while session.stored() < real {
        if bench.stopped() {
            return Ok(Ended::Interrupted);
        }
        let next = session.stored()..real.min(session.stored() + chunk);
        session.forward(&ids[next], Phase::Prefill)?;
    }
    session.fill_random(ids.len(), bench.settings.seed)?;
    Ok(Ended::Finished)
}

/// Hits and consultations of the selection cache so far.
fn consultations<B: Backend>(policy: &dyn SelectionPolicy<B>) -> (usize, usize) {
    let layers = policy.statistics().layers;
    let hits = layers.iter().map(|layer| layer.cache_hits).sum::<usize>();
    (
        hits,
        hits + layers.iter().map(|layer| layer.cache_misses).sum::<usize>(),
    )
}

/// All rounds at `stored` tokens; `None` if stopped.
fn measure<B: Backend>(
    bench: &Bench<'_, B>,
    session: &mut Session<'_, B>,
    stored: usize,
) -> Result<Option<DecodeSample>> {
    let (settings, rounds) = (bench.settings, bench.settings.decode_rounds);
    let variants = variants(settings);
    let ids = bench.ids(rounds.warmup + rounds.repetitions);
    let mut policies: Vec<Box<dyn SelectionPolicy<B>>> = variants
        .iter()
        .map(|v| v.policy.build(bench.decoder.config.layers))
        .collect();
    // The cache's count before the rounds that matter.
    let mut before = vec![(0, 0); variants.len()];
    let stopped = || bench.stopped();
    let steps = rounds.run(variants.len(), &stopped, |turn| {
        let policy = &mut policies[turn.variant];
        if turn.repetition == Some(0) {
            before[turn.variant] = consultations(policy.as_ref());
        }
        let id = ids[turn.repetition.map_or(0, |repetition| rounds.warmup + repetition)];
        session.swap_policy(policy);
        let step = step(session, stored, id)?;
        session.swap_policy(policy);
        Ok(step)
    })?;
    session.truncate(stored);
    let Some(steps) = steps else { return Ok(None) };
    let times = variants.iter().zip(&steps).zip(policies.iter().zip(&before));
    Ok(Some(DecodeSample {
        stored_tokens: stored,
        stored_by: if settings.real_prefill {
            "dense prefill".to_owned()
        } else {
            format!("dense prefill of {} tokens, the rest made up", stored.min(MODEL_TOKENS))
        },
        variants: times
            .map(|((variant, steps), (policy, &(hits_before, all_before)))| {
                let (hits, all) = consultations(policy.as_ref());
                VariantTimes {
                    name: variant.name.to_owned(),
                    step_s: steps.iter().map(|step| step.total_s).collect(),
                    select_s: steps.iter().map(|step| step.select_s).collect(),
                    attend_s: steps.iter().map(|step| step.attend_s).collect(),
                    hit_rate: hit_rate(&variant.policy, hits - hits_before, all - all_before, stored + 1),
                }
            })
            .collect(),
    }))
}

fn hit_rate(policy: &PolicyConfig, hits: usize, all: usize, stored: usize) -> Measured<f64> {
    match policy {
        _ if all > 0 => (hits as f64 / all as f64).into(),
        PolicyConfig::TokenSelect(config) if stored <= config.token_budget() => Measured::missing(format!(
            "{stored} tokens are within the budget of {}: the step is dense",
            config.token_budget()
        )),
        PolicyConfig::TokenSelect(_) => Measured::missing("the selection cache is off"),
        _ => Measured::missing("no selection cache"),
    }
}

/// One step from `stored` tokens, its logits included.
fn step<B: Backend>(session: &mut Session<'_, B>, stored: usize, id: u32) -> Result<ForwardTimes> {
    session.truncate(stored);
    let before = session.times(Phase::Decode);
    let started = Instant::now();
    session.forward(&[id], Phase::Decode)?;
    std::hint::black_box(session.logits(0)?);
    let total_s = started.elapsed().as_secs_f64();
    let after = session.times(Phase::Decode);
    Ok(ForwardTimes {
        total_s,
        select_s: after.select_s - before.select_s,
        attend_s: after.attend_s - before.attend_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::Shape;
    use crate::kernels::cpu::Cpu;
    use crate::model::config::ModelConfig;
    use crate::model::decoder::{Decoder, SessionLimits};
    use crate::model::weights::{ModelWeights, RandomWeights};

    #[test]
    fn token_select_is_timed_at_both_fates_of_its_cache_and_as_configured() {
        let config = TokenSelectConfig::default();
        let rounds = crate::bench::timing::Rounds {
            warmup: 1,
            repetitions: 1,
        };
        let settings = Settings {
            policies: vec![PolicyConfig::Dense, PolicyConfig::TokenSelect(config.clone())],
            prefill_tokens: vec![],
            decode_at: vec![1],
            prefill_chunk: 1,
            prefill_rounds: rounds,
            decode_rounds: rounds,
            real_prefill: false,
            check_tokens: 1,
            memory_context: 2,
            seed: 0,
        };
        let found = variants(&settings);
        let names: Vec<_> = found.iter().map(|variant| variant.name).collect();
        assert_eq!(
            names,
            ["dense", "token-select miss", "token-select hit", "token-select"]
        );
        assert_eq!(found[3].policy, PolicyConfig::TokenSelect(config));
    }

    #[test]
    fn a_missing_hit_rate_has_its_reason() {
        let policy = PolicyConfig::TokenSelect(TokenSelectConfig::default());
        assert_eq!(hit_rate(&policy, 3, 4, 9999), Measured::Value(0.75));
        let within = hit_rate(&policy, 0, 0, 2688);
        assert_eq!(
            within.reason(),
            Some("2688 tokens are within the budget of 2688: the step is dense")
        );
        assert_eq!(
            hit_rate(&policy, 0, 0, 2689).reason(),
            Some("the selection cache is off")
        );
    }

    #[test]
    fn policies_that_take_turns_on_one_text_do_not_disturb_each_other() {
        let config = ModelConfig::from_json(&Shape::Tiny.config(), "tiny").unwrap();
        let source = RandomWeights {
            seed: 0,
            standard_deviation: config.initializer_range,
        };
        let decoder = Decoder {
            weights: ModelWeights::load(&Cpu, &config, &source, &mut |_| {}).unwrap(),
            backend: Cpu,
            config,
        };
        let limits = SessionLimits {
            max_context: 200,
            prefill_chunk: 50,
            diagnose: false,
        };
        let mut select = PolicyConfig::TokenSelect(TokenSelectConfig {
            n_init: 2,
            n_local: 8,
            top_k: 8,
            ..TokenSelectConfig::default()
        })
        .build(decoder.config.layers);
        let mut session = Session::new(&decoder, &PolicyConfig::Dense, limits).unwrap();
        session.forward(&[5; 50], Phase::Prefill).unwrap();
        session.fill_random(150, 1).unwrap();
        let logits = |session: &mut Session<'_, Cpu>| {
            step(session, 150, 7).unwrap();
            session.logits(0).unwrap()
        };
        let dense = logits(&mut session);
        session.swap_policy(&mut select);
        let selected = logits(&mut session);
        session.swap_policy(&mut select);
        assert_eq!(dense, logits(&mut session));
        assert_ne!(dense, selected);
    }
}
