//! Whole models on a GPU: time to first token, time per output token, and peak memory against the memory plan.

use super::timing::span;
use super::{Check, SpeedSample, Watch};
use crate::bench::end_to_end::decode::variants;
use crate::bench::end_to_end::{Ended, Settings, append};
use crate::bytes::human_bytes;
use crate::error::Result;
use crate::kernels::cuda::Cuda;
use crate::model::decoder::{Decoder, Session};
use crate::model::memory_plan::MemoryPlan;
use crate::random::stream_rng;
use crate::report::speed::{SpeedKey, SpeedRow};
use crate::report::{Cell, Column, SampleSink, Table};
use crate::selection::{Phase, PolicyConfig};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Names of the parts in sample files.
pub const PREFILL: &str = "model-prefill";
/// Steps.
pub const DECODE: &str = "model-decode";
/// Memory of the sessions of both.
pub const MEMORY: &str = "memory";

/// Steps of one repetition, queued without the host in between.
const STEPS: usize = 8;
/// Seconds of prefill after which no further repetition of a length is started.
const ENOUGH_S: f64 = 10.0;
/// Measured memory may exceed the plan by this factor.
pub const MEMORY_BOUND: f64 = 1.05;

/// The device memory of one session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemorySample {
    /// `model-prefill` or `model-decode`.
    pub kind: String,
    /// Tokens that the session may hold.
    pub context_tokens: usize,
    /// Policy and fate of its cache.
    pub method: String,
    /// What the plan foretold, weights included.
    pub planned_bytes: usize,
    /// Largest sum of allocations, weights included.
    pub peak_bytes: usize,
    /// What the driver counts as used, the program's code and other processes included.
    pub driver_used_bytes: usize,
}

/// What is measured, on which model.
pub struct Bench<'a> {
    /// The model.
    pub decoder: &'a Decoder<Cuda>,
    /// Its name in tables.
    pub name: &'a str,
    /// What to measure.
    pub settings: &'a Settings,
    /// Longest prompt of a dense prefill.
    pub longest_dense: usize,
    /// Who watches.
    pub watch: Watch<'a>,
}

impl Bench<'_> {
    fn key(&self, kind: &str, tokens: usize, rows: usize) -> SpeedKey {
        SpeedKey {
            kind: kind.to_owned(),
            shape: self.name.to_owned(),
            tokens,
            rows,
        }
    }

    fn ids(&self, count: usize) -> Vec<u32> {
        let vocab = self.decoder.config.vocab_size as u32;
        let mut rng = stream_rng(self.settings.seed, "bench");
        (0..count).map(|_| rng.next_u32() % vocab).collect()
    }

    /// A session for `context` tokens and its plan; a reason where it does not fit.
    fn session(
        &self,
        policy: &PolicyConfig,
        context: usize,
    ) -> Result<std::result::Result<(Session<'_, Cuda>, MemoryPlan), String>> {
        let (device, limits) = (&self.decoder.backend, self.settings.limits(context));
        let plan = MemoryPlan::new(device, &self.decoder.config, policy, limits);
        let free = device.gpu().memory()?.0;
        let needed = plan.total_bytes().saturating_sub(plan.weights_bytes);
        if needed > free {
            return Ok(Err(format!(
                "OOM: {} beside the weights are needed, {} are free",
                human_bytes(needed),
                human_bytes(free)
            )));
        }
        device.gpu().reset_peak();
        Ok(Ok((Session::new(self.decoder, policy, limits)?, plan)))
    }

    fn memory(&self, key: &SpeedKey, context: usize, method: &str, plan: &MemoryPlan) -> Result<MemorySample> {
        let gpu = self.decoder.backend.gpu();
        let (free, total) = gpu.memory()?;
        Ok(MemorySample {
            kind: key.kind.clone(),
            context_tokens: context,
            method: method.to_owned(),
            planned_bytes: plan.total_bytes(),
            peak_bytes: gpu.peak_bytes(),
            driver_used_bytes: total - free,
        })
    }
}

/// Time to first token: what `sink` does not have yet.
pub fn prefill(bench: &Bench<'_>, sink: &mut dyn SampleSink) -> Result<Ended> {
    for &tokens in &bench.settings.prefill_tokens {
        for policy in &bench.settings.policies {
            let (key, method) = (bench.key(PREFILL, tokens, tokens), policy.name());
            let id = format!("{tokens}/{method}");
            if sink.is_done(PREFILL, &id) {
                continue;
            }
            if (bench.watch.stopped)() {
                return Ok(Ended::Interrupted);
            }
            if *policy == PolicyConfig::Dense && tokens > bench.longest_dense {
                let why = format!("not run: longer than --longest-dense {}", bench.longest_dense);
                append(sink, PREFILL, &id, &SpeedSample::missing(key, method, why))?;
                continue;
            }
            (bench.watch.status)(&format!("prefill of {tokens} tokens, {method}"));
            let (mut session, plan) = match bench.session(policy, tokens)? {
                Ok(made) => made,
                Err(why) => {
                    append(sink, PREFILL, &id, &SpeedSample::missing(key, method, why))?;
                    continue;
                }
            };
            let Some((times, finite)) = time_prefill(bench, &mut session, tokens)? else {
                return Ok(Ended::Interrupted);
            };
            let memory = bench.memory(&key, tokens, method, &plan)?;
            let checks = vec![finite, memory.check()];
            let sample = SpeedSample {
                row: SpeedRow::of(key, method, &times),
                buffer_sets: 1,
                bytes: None,
                flops: None,
                checks,
            };
            append(sink, MEMORY, &format!("{PREFILL}/{id}"), &memory)?;
            append(sink, PREFILL, &id, &sample)?;
        }
    }
    Ok(Ended::Finished)
}

/// Seconds from the empty session to the logits on the host, and whether those are numbers.
fn time_prefill(
    bench: &Bench<'_>,
    session: &mut Session<'_, Cuda>,
    tokens: usize,
) -> Result<Option<(Vec<f64>, Check)>> {
    let ids = bench.ids(tokens);
    let chunks = session.chunks(tokens);
    // What the first pass of each width compiles and plans is not timed.
    for range in [chunks.first(), chunks.last()].into_iter().flatten() {
        session.reset();
        session.forward(&ids[range.clone()], Phase::Prefill)?;
        std::hint::black_box(session.logits(range.len() - 1)?);
    }
    let (mut times, mut broken) = (Vec::new(), 0);
    while times.len() < bench.settings.prefill_rounds.repetitions
        && (times.is_empty() || times.iter().sum::<f64>() < ENOUGH_S)
    {
        session.reset();
        let started = Instant::now();
        let mut last = 0;
        for range in &chunks {
            if (bench.watch.stopped)() {
                return Ok(None);
            }
            last = range.len() - 1;
            session.forward(&ids[range.clone()], Phase::Prefill)?;
        }
        let logits = session.logits(last)?;
        times.push(started.elapsed().as_secs_f64());
        broken += logits.iter().filter(|logit| !logit.is_finite()).count();
    }
    Ok(Some((
        times,
        Check::at_most("logits that are no numbers", broken as f64, 0.0),
    )))
}

/// Time per output token: what `sink` does not have yet.
pub fn decode(bench: &Bench<'_>, sink: &mut dyn SampleSink) -> Result<Ended> {
    for &tokens in &bench.settings.decode_at {
        for variant in variants(bench.settings) {
            let (key, method) = (bench.key(DECODE, tokens, 1), variant.name);
            let id = format!("{tokens}/{method}");
            if sink.is_done(DECODE, &id) {
                continue;
            }
            if (bench.watch.stopped)() {
                return Ok(Ended::Interrupted);
            }
            (bench.watch.status)(&format!("decode at {tokens} tokens, {method}"));
            let context = tokens + STEPS + 1;
            let (mut session, plan) = match bench.session(&variant.policy, context)? {
                Ok(made) => made,
                Err(why) => {
                    append(sink, DECODE, &id, &SpeedSample::missing(key, method, why))?;
                    continue;
                }
            };
            let Some(times) = time_steps(bench, &mut session, tokens)? else {
                return Ok(Ended::Interrupted);
            };
            let logits = session.logits(0)?;
            let broken = logits.iter().filter(|logit| !logit.is_finite()).count();
            let memory = bench.memory(&key, context, method, &plan)?;
            let mut row = SpeedRow::of(key, method, &times);
            row.note = cache_note(&session);
            let sample = SpeedSample {
                row,
                buffer_sets: bench.decoder.config.layers,
                bytes: None,
                flops: None,
                checks: vec![
                    Check::at_most("logits that are no numbers", broken as f64, 0.0),
                    memory.check(),
                ],
            };
            append(sink, MEMORY, &format!("{DECODE}/{id}"), &memory)?;
            append(sink, DECODE, &id, &sample)?;
        }
    }
    Ok(Ended::Finished)
}

/// Share of layers and steps that used a selection again.
fn cache_note(session: &Session<'_, Cuda>) -> String {
    let layers = session.statistics().layers;
    let hits: usize = layers.iter().map(|layer| layer.cache_hits).sum();
    let all = hits + layers.iter().map(|layer| layer.cache_misses).sum::<usize>();
    if all == 0 {
        String::new()
    } else {
        format!("{:.1} % hits of the selection cache", 100.0 * hits as f64 / all as f64)
    }
}

/// Seconds per step from `tokens` made-up tokens on; each repetition is [`STEPS`] steps.
fn time_steps(bench: &Bench<'_>, session: &mut Session<'_, Cuda>, tokens: usize) -> Result<Option<Vec<f64>>> {
    session.fill_random_keys(tokens, bench.settings.seed)?;
    let id = bench.ids(1);
    let rounds = bench.settings.decode_rounds;
    let gpu = bench.decoder.backend.gpu().clone();
    let warmup = rounds.warmup.max(1);
    let mut times = Vec::new();
    for round in 0..warmup + rounds.repetitions {
        if (bench.watch.stopped)() {
            return Ok(None);
        }
        // The step before the timed ones records the graph, and with a cache that always hits it fills it.
        session.truncate(tokens);
        session.forward(&id, Phase::Decode)?;
        gpu.synchronize()?;
        let seconds = span(&gpu, &mut || session.queue_steps(STEPS))?;
        if round >= warmup {
            times.push(seconds / STEPS as f64);
        }
    }
    Ok(Some(times))
}

impl MemorySample {
    fn check(&self) -> Check {
        let over = self.peak_bytes as f64 / self.planned_bytes as f64;
        Check::at_most("peak memory over plan", over, MEMORY_BOUND)
    }
}

/// Plan and peak of every session.
pub fn memory_table(samples: &[MemorySample]) -> Result<Table> {
    let bytes = |key: &str| Column::new(key, "B");
    let mut table = Table::new(
        MEMORY,
        vec![
            Column::text("kind"),
            Column::text("context_tokens"),
            Column::text("method"),
            bytes("planned_bytes"),
            bytes("peak_bytes"),
            Column::text("measured_over_planned"),
            bytes("driver_used_bytes"),
        ],
    );
    for sample in samples {
        table.push(vec![
            sample.kind.as_str().into(),
            sample.context_tokens.into(),
            sample.method.as_str().into(),
            sample.planned_bytes.into(),
            sample.peak_bytes.into(),
            Cell::from(sample.peak_bytes as f64 / sample.planned_bytes as f64),
            sample.driver_used_bytes.into(),
        ])?;
    }
    Ok(table)
}
