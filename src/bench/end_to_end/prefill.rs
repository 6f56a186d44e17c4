//! Seconds per prompt, policies by turns.

use super::{Bench, Ended, append};
use crate::error::Result;
use crate::kernels::Backend;
use crate::model::decoder::{ForwardTimes, Session};
use crate::report::SampleSink;
use crate::selection::{Phase, PolicyConfig, SelectionPolicy};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Name of the part in sample files.
pub const TASK: &str = "prefill";

/// One repetition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrefillSample {
    /// Name of the policy.
    pub policy: String,
    /// N.
    pub prompt_tokens: usize,
    /// Which repetition, from 0; those of one number were measured one after the other.
    pub repetition: usize,
    /// From the empty session to the logits after the last token.
    pub total_s: f64,
    /// Of it: choosing tokens.
    pub select_s: f64,
    /// Of it: attending to them.
    pub attend_s: f64,
}

fn sample_id(tokens: usize, policy: &str, repetition: usize) -> String {
    format!("{tokens}/{policy}/{repetition}")
}

/// Measures what `sink` does not have yet: one sample per length, policy and repetition.
pub fn run<B: Backend>(bench: &Bench<'_, B>, sink: &mut dyn SampleSink) -> Result<Ended> {
    let settings = bench.settings;
    let (rounds, policies) = (settings.prefill_rounds, &settings.policies);
    for &tokens in &settings.prefill_tokens {
        let done: Vec<Vec<bool>> = policies
            .iter()
            .map(|policy| {
                (0..rounds.repetitions)
                    .map(|repetition| sink.is_done(TASK, &sample_id(tokens, policy.name(), repetition)))
                    .collect()
            })
            .collect();
        if done.iter().flatten().all(|&done| done) {
            continue;
        }
        let ids = bench.ids(tokens);
        let mut session = Session::new(bench.decoder, &PolicyConfig::Dense, settings.limits(tokens))?;
        let mut built: Vec<Box<dyn SelectionPolicy<B>>> =
            policies.iter().map(|p| p.build(bench.decoder.config.layers)).collect();
        for turn in rounds.turns(policies.len()) {
            let (variant, name) = (turn.variant, policies[turn.variant].name());
            let skip = match turn.repetition {
                None => done[variant].iter().all(|&done| done),
                Some(repetition) => done[variant][repetition],
            };
            if skip {
                continue;
            }
            bench.status(&format!("prefill of {tokens} tokens, {name}"));
            session.swap_policy(&mut built[variant]);
            let Some(times) = prefill(bench, &mut session, &ids)? else {
                return Ok(Ended::Interrupted);
            };
            session.swap_policy(&mut built[variant]);
            if let Some(repetition) = turn.repetition {
                let sample = PrefillSample {
                    policy: name.to_owned(),
                    prompt_tokens: tokens,
                    repetition,
                    total_s: times.total_s,
                    select_s: times.select_s,
                    attend_s: times.attend_s,
                };
                append(sink, TASK, &sample_id(tokens, name, repetition), &sample)?;
            }
        }
    }
    Ok(Ended::Finished)
}

/// One prefill from nothing, its last logits included; `None` if stopped between two chunks.
fn prefill<B: Backend>(
    bench: &Bench<'_, B>,
    session: &mut Session<'_, B>,
    ids: &[u32],
) -> Result<Option<ForwardTimes>> {
    session.reset();
    let started = Instant::now();
    let mut last = 0;
    for range in session.chunks(ids.len()) {
        if bench.stopped() {
            return Ok(None);
        }
        last = range.len() - 1;
        session.forward(&ids[range], Phase::Prefill)?;
    }
    std::hint::black_box(session.logits(last)?);
    let total_s = started.elapsed().as_secs_f64();
    Ok(Some(ForwardTimes {
        total_s,
        ..session.times(Phase::Prefill)
    }))
}
