//! Peak memory of one session at the largest context, against what the memory plan foretold.

use super::{Bench, Ended, append};
use crate::bench::peak_memory::{memory_use, reset_peak};
use crate::error::Result;
use crate::kernels::Backend;
use crate::model::decoder::Session;
use crate::model::memory_plan::MemoryPlan;
use crate::report::{Measured, SampleSink};
use crate::selection::{Phase, PolicyConfig};
use serde::{Deserialize, Serialize};

/// Name of the part in sample files.
pub const TASK: &str = "memory";

/// Memory of one policy's session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemorySample {
    /// Name of the policy.
    pub policy: String,
    /// Tokens the session held.
    pub context_tokens: usize,
    /// Parts of the plan.
    pub planned_weights_bytes: usize,
    /// Parts of the plan.
    pub planned_kv_cache_bytes: usize,
    /// Parts of the plan.
    pub planned_prefill_scratch_bytes: usize,
    /// Parts of the plan.
    pub planned_selection_scratch_bytes: usize,
    /// Their sum.
    pub planned_bytes: usize,
    /// Resident memory before the session was made: weights, the program itself, and what the allocator kept of an
    /// earlier session.
    pub rss_before_bytes: Measured<u64>,
    /// Largest resident memory.
    pub peak_rss_bytes: Measured<u64>,
    /// What the peak covers.
    pub peak_of: String,
}

/// Measures the dense and the token-select session, one after the other.
pub fn run<B: Backend>(bench: &Bench<'_, B>, sink: &mut dyn SampleSink) -> Result<Ended> {
    for policy in &bench.settings.policies {
        let measured = matches!(policy, PolicyConfig::Dense | PolicyConfig::TokenSelect(_));
        if !measured || sink.is_done(TASK, policy.name()) {
            continue;
        }
        if bench.stopped() {
            return Ok(Ended::Interrupted);
        }
        bench.status(&format!(
            "memory of {} tokens, {}",
            bench.settings.memory_context,
            policy.name()
        ));
        let Some(sample) = measure(bench, policy)? else {
            return Ok(Ended::Interrupted);
        };
        append(sink, TASK, policy.name(), &sample)?;
    }
    Ok(Ended::Finished)
}

/// Every buffer is used to its end: a first chunk, made-up tokens, a last chunk, one decode step.
fn measure<B: Backend>(bench: &Bench<'_, B>, policy: &PolicyConfig) -> Result<Option<MemorySample>> {
    let settings = bench.settings;
    let context = settings.memory_context;
    let limits = settings.limits(context);
    let plan = MemoryPlan::new(&bench.decoder.backend, &bench.decoder.config, policy, limits);
    let peak_of = match reset_peak() {
        Ok(()) => "this session".to_owned(),
        Err(reason) => format!("the whole process ({reason})"),
    };
    let before = memory_use();

    let prompt = context - 1;
    let first = settings.prefill_chunk.min(prompt);
    let last = settings.prefill_chunk.min(prompt - first);
    let ids = bench.ids(settings.prefill_chunk.max(1));
    let mut session = Session::new(bench.decoder, policy, limits)?;
    if first > 0 {
        session.forward(&ids[..first], Phase::Prefill)?;
    }
    session.fill_random(prompt - last, settings.seed)?;
    if bench.stopped() {
        return Ok(None);
    }
    if last > 0 {
        session.forward(&ids[..last], Phase::Prefill)?;
    }
    session.forward(&ids[..1], Phase::Decode)?;
    std::hint::black_box(session.logits(0)?);
    Ok(Some(MemorySample {
        policy: policy.name().to_owned(),
        context_tokens: context,
        planned_weights_bytes: plan.weights_bytes,
        planned_kv_cache_bytes: plan.kv_cache_bytes,
        planned_prefill_scratch_bytes: plan.prefill_scratch_bytes,
        planned_selection_scratch_bytes: plan.selection_scratch_bytes,
        planned_bytes: plan.total_bytes(),
        rss_before_bytes: before.rss_bytes,
        peak_rss_bytes: memory_use().peak_rss_bytes,
        peak_of,
    }))
}
