//! Rows, tables and the plan of `tokselect infer`.

use super::{Encoded, Finished, InferArgs, Plan};
use crate::bench::peak_memory::memory_use;
use crate::bytes::human_bytes;
use crate::cli::Context;
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::manifest::Manifest;
use crate::model::chat_template::ChatTemplate;
use crate::model::context::Engine;
use crate::model::decoder::Session;
use crate::model::generate::Generation;
use crate::model::tokenizer::Tokenizer;
use crate::printer::Printer;
use crate::report::{Aggregate, Cell, Column, Format, Measured, Report, Sample, Table};
use crate::selection::Phase;
use serde_json::{Map, Value, json};

/// Every option that bears on the result; a run with another one is another run.
pub(super) fn effective_config(args: &InferArgs, plan: &Plan) -> Map<String, Value> {
    let config = json!({
        "model": plan.located.files.reference,
        "source": plan.located.files.source,
        "random_weights": args.model.random_weights,
        "device": plan.device.name(),
        "dtype": plan.device.dtype(),
        "policy": plan.policy,
        "prefill_chunk": plan.limits.prefill_chunk,
        "max_context": plan.limits.max_context,
        "diagnose": plan.limits.diagnose,
        "sampling": plan.sampling,
        "max_new_tokens": args.generation.max_new_tokens,
        "eos_token_ids": plan.eos,
        "stop": args.generation.stop,
        "system": args.prompt.system,
        "chat_template_sha256": plan.template.as_ref().map(ChatTemplate::hash),
        "tokenizer_sha256": plan.tokenizer.as_ref().map(Tokenizer::hash),
        "prompts_sha256": plan.data_sha256,
    });
    match config {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Provenance beside the model files.
pub(super) fn fill_manifest(manifest: &mut Manifest, plan: &Plan) {
    let known = |hash: Option<&str>, reason: &str| {
        hash.map_or_else(|| Measured::missing(reason), |hash| Measured::Value(hash.to_owned()))
    };
    manifest.tokenizer_sha256 = known(plan.tokenizer.as_ref().map(Tokenizer::hash), "no tokenizer");
    manifest.chat_template_sha256 = known(plan.template.as_ref().map(ChatTemplate::hash), "no chat template");
    manifest.data_sha256 = Measured::Value(plan.data_sha256.clone());
    manifest.seeds.insert("sampling".into(), plan.sampling.seed);
}

fn rate(count: usize, seconds: f64) -> Option<f64> {
    (count > 0 && seconds > 0.0).then(|| count as f64 / seconds)
}

fn mean(values: &[f64]) -> Option<f64> {
    crate::bench::statistics::mean(values)
}

/// One row of samples.jsonl.
pub(super) fn sample<E: Engine>(prompt: &Encoded, generation: &Generation, session: &Session<'_, E>) -> Value {
    let statistics = session.statistics();
    json!({
        "prompt_tokens": prompt.ids.len(),
        "generated_tokens": generation.ids.len(),
        "finish": generation.finish,
        "text": generation.text,
        "generated_ids": generation.ids,
        "ttft_s": generation.ttft_s,
        "tpot_s": mean(&generation.decode_s),
        "prefill_tokens_per_s": rate(prompt.ids.len(), generation.prefill_s),
        "decode_tokens_per_s": rate(generation.decode_s.len(), generation.decode_s.iter().sum()),
        "prefill_times": session.times(Phase::Prefill),
        "decode_times": session.times(Phase::Decode),
        "cache_hit_rate": statistics.hit_rate(),
        "selection": statistics,
        "peak_rss_bytes": memory_use().peak_rss_bytes.get(),
    })
}

/// Aggregates over samples, per-layer tables of the run, the memory plan.
pub(super) fn fill_report(report: &mut Report, plan: &Plan, finished: &Finished, samples: &[Sample]) {
    let over = |key: &str, unit: &str| {
        let values: Vec<f64> = samples.iter().filter_map(|s| s.data[key].as_f64()).collect();
        if values.is_empty() {
            Aggregate::missing(key, unit, "no sample has a value")
        } else {
            Aggregate::of(key, unit, &values)
        }
    };
    report.aggregates = [
        ("ttft_s", "s"),
        ("tpot_s", "s"),
        ("prefill_tokens_per_s", "tokens/s"),
        ("decode_tokens_per_s", "tokens/s"),
        ("prompt_tokens", "tokens"),
        ("generated_tokens", "tokens"),
        ("cache_hit_rate", ""),
    ]
    .iter()
    .map(|(key, unit)| over(key, unit))
    .collect();
    let peak = memory_use().peak_rss_bytes;
    report.aggregates.push(match peak.get() {
        Some(&bytes) => Aggregate::of("peak_rss_bytes", "B", &[bytes as f64]),
        None => Aggregate::missing("peak_rss_bytes", "B", peak.reason().unwrap_or("not measured")),
    });
    if let Some(table) = selection_table(samples, finished) {
        report.tables.push(table);
    }
    report.details = json!({
        "memory_plan": plan.memory,
        "memory_plan_total_bytes": plan.memory.total_bytes(),
        "partial": finished.partial,
    });
    report.interrupted = finished.interrupted;
}

/// Per layer: cache hits, cosines, recall and attention mass; `None` for a policy that selects nothing.
fn selection_table(samples: &[Sample], finished: &Finished) -> Option<Table> {
    let quality = finished.diagnosis.layers();
    let layers_of = |s: &Sample| s.data["selection"]["layers"].as_array().cloned().unwrap_or_default();
    let count = samples
        .iter()
        .map(|s| layers_of(s).len())
        .max()
        .unwrap_or(0)
        .max(quality.len());
    if count == 0 {
        return None;
    }
    let mut table = Table::new(
        "selection",
        vec![
            Column::new("layer", ""),
            Column::new("cache_hits", ""),
            Column::new("cache_misses", ""),
            Column::new("cosine_to_previous_mean", ""),
            Column::new("cosine_to_last_miss_mean", ""),
            Column::new("recall_at_k", ""),
            Column::new("attention_mass", ""),
            Column::new("attention_mass_min", ""),
        ],
    );
    for layer in 0..count {
        let rows: Vec<Value> = samples
            .iter()
            .filter_map(|s| layers_of(s).get(layer).cloned())
            .collect();
        let total = |key: &str| rows.iter().filter_map(|r| r[key].as_u64()).sum::<u64>();
        let cosine = |key: &str| {
            let weighted: Vec<(f64, f64)> = rows
                .iter()
                .filter_map(|r| Some((r[key]["mean"].as_f64()?, r[key]["n"].as_f64()?)))
                .collect();
            let n: f64 = weighted.iter().map(|(_, n)| n).sum();
            (n > 0.0).then(|| weighted.iter().map(|(mean, n)| mean * n).sum::<f64>() / n)
        };
        let found = quality.get(layer);
        let cell = |value: Option<f64>, reason: &str| value.map_or_else(|| Cell::missing(reason), Cell::from);
        let not_diagnosed = "not measured; pass --diagnose";
        let row = vec![
            layer.into(),
            total("cache_hits").into(),
            total("cache_misses").into(),
            cell(cosine("cosine_to_previous"), "fewer than two decode steps that select"),
            cell(cosine("cosine_to_last_miss"), "the selection cache was not consulted"),
            cell(found.and_then(|q| q.recall_at_k), not_diagnosed),
            cell(found.and_then(|q| q.attention_mass), not_diagnosed),
            cell(found.and_then(|q| q.attention_mass_min), not_diagnosed),
        ];
        // The row has as many cells as there are columns.
        table.push(row).ok()?;
    }
    Some(table)
}

/// `--dry-run`: tokens and memory.
pub(super) fn print_plan(plan: &Plan, format: Option<Format>, context: &Context) -> Result<Outcome> {
    let longest = plan.prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0);
    if format == Some(Format::Json) {
        let value = json!({
            "model": plan.located.files.reference,
            "prompts": plan.prompts.len(),
            "longest_prompt_tokens": longest,
            "max_context_tokens": plan.limits.max_context,
            "policy": plan.policy,
            "memory_plan": plan.memory,
            "memory_plan_total_bytes": plan.memory.total_bytes(),
        });
        let text = serde_json::to_string_pretty(&value).map_err(|e| Error::bug(format!("plan as JSON: {e}")))?;
        return context.printer.line(&text);
    }
    let mut table = Table::new(
        "plan",
        vec![
            Column::new("part", ""),
            Column::new("bytes", "B"),
            Column::new("size", ""),
        ],
    );
    for (part, bytes) in [
        ("weights", plan.memory.weights_bytes),
        ("kv cache", plan.memory.kv_cache_bytes),
        ("prefill scratch", plan.memory.prefill_scratch_bytes),
        ("selection scratch", plan.memory.selection_scratch_bytes),
        ("total", plan.memory.total_bytes()),
    ] {
        table.push(vec![part.into(), bytes.into(), human_bytes(bytes).as_str().into()])?;
    }
    context.printer.status(
        "Planned",
        &format!(
            "{} prompts, the longest of {longest} tokens, in a context of {}",
            plan.prompts.len(),
            plan.limits.max_context
        ),
    );
    context.printer.table(&table)
}

/// One status line per answer.
pub(super) fn print_speed(generation: &Generation, prompt_tokens: usize, printer: &Printer) {
    let prefill = rate(prompt_tokens, generation.prefill_s).unwrap_or(0.0);
    let decode = rate(generation.decode_s.len(), generation.decode_s.iter().sum());
    printer.status(
        "Finished",
        &format!(
            "{prompt_tokens} prompt tokens at {prefill:.0} tokens/s, {} new tokens{}",
            generation.ids.len(),
            decode.map_or(String::new(), |d| format!(" at {d:.1} tokens/s"))
        ),
    );
}

/// Ids for a model without tokenizer.
pub(super) fn ids_as_text(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}
