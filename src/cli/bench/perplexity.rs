//! `tokselect bench perplexity`: one text, several policies, side by side.

use super::variants::{VariantArgs, Variants};
use super::{parse_length, positive};
use crate::bytes::human_bytes;
use crate::cli::Context;
use crate::cli::arguments::{ModelArgs, OutputArgs, tokens};
use crate::cli::loading::{self, Language, Located};
use crate::cli::prompts::{name, read_text};
use crate::cli::run_output::RunOutput;
use crate::error::{Error, Result};
use crate::eval::perplexity::{Reading, WindowRecord, generated_text, score_window, tables};
use crate::eval::runner::Variant;
use crate::exit::Outcome;
use crate::kernels::cpu::Cpu;
use crate::manifest::{Manifest, sha256};
use crate::model::chat_template::ChatTemplateChoice;
use crate::model::decoder::{Session, SessionLimits};
use crate::model::memory_plan::{MemoryPlan, available_bytes};
use crate::model::tokenizer::Tokenizer;
use crate::model::weights::TensorSource;
use crate::report::{Column, Format, Measured, Report, SampleSink, Table};
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

const COMMAND: &str = "bench perplexity";
/// Name of the task in sample files.
const TASK: &str = "perplexity";

/// Arguments of `tokselect bench perplexity`.
#[derive(Debug, Args)]
// `--windows -1` is a wrong value, not an unknown flag `-1`.
#[command(allow_negative_numbers = true)]
pub struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    variants: VariantArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Text")]
struct TextArgs {
    /// The text: a UTF-8 file, `-` for stdin [default: sentences made from the seed]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a window, such as 4096 or 4k
    #[arg(long, value_delimiter = ',', value_name = "TOKENS", default_value = "4k", value_parser = parse_length)]
    lengths: Vec<usize>,
    /// Windows of every length at most, from the start of the text on
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    windows: usize,
    /// Tokens of a window that are read first and not predicted [default: none; half of the window with --step]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    prefix: Option<usize>,
    /// Tokens per forward pass after the prefix; 1 decodes token by token [default: --prefill-chunk]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    step: Option<usize>,
    /// Seed of the resampling, and of the sentences where no text is given
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Windows of one length.
struct Length {
    tokens: usize,
    reading: Reading,
    windows: Vec<Vec<u32>>,
}

struct Plan {
    located: Located,
    weights: Box<dyn TensorSource>,
    tokenizer: Tokenizer,
    variants: Variants,
    lengths: Vec<Length>,
    text_sha256: String,
    max_context: usize,
    memory: MemoryPlan,
}

impl Plan {
    fn names(&self) -> Vec<String> {
        self.variants.all.iter().map(|variant| variant.name.clone()).collect()
    }

    fn windows(&self) -> usize {
        self.lengths.iter().map(|length| length.windows.len()).sum()
    }
}

fn plan(args: &PerplexityArgs, context: &Context) -> Result<Plan> {
    args.variants.variants(args.model.max_context, None)?;
    // Before files are looked for: a wrong path should not cost a download.
    let given = args.text.text.as_deref().map(read_text).transpose()?;
    args.model.check_cpu()?;
    let located = loading::locate(&args.model, true, context)?;
    let trained = located.config.max_position_embeddings;
    let variants = args.variants.variants(args.model.max_context, Some(trained))?;
    variants.warn_of_unread(&context.printer);
    let prefill_chunk = variants.all[0].prefill_chunk;
    if let Some(other) = variants.all.iter().find(|v| v.prefill_chunk != prefill_chunk) {
        return Err(Error::user(format!(
            "`--policies {}` has a prefill chunk of its own, but all policies read a window side by side",
            other.name
        ))
        .help("pass `--prefill-chunk` for all of them"));
    }
    let Language { tokenizer, .. } = loading::language(&located, &ChatTemplateChoice::None, false)?;
    let tokenizer = tokenizer.ok_or_else(|| Error::bug("a required tokenizer was not located"))?;
    let special = tokenizer.encode("", true)?;
    let text = if let Some(text) = given {
        text
    } else {
        let longest = args.text.lengths.iter().max().copied().unwrap_or(0);
        generated_text(longest.saturating_mul(args.text.windows), args.text.seed, &tokenizer)?
    };
    let ids = tokenizer.encode(&text, false)?;
    let mut stated = args.text.lengths.clone();
    stated.sort_unstable();
    stated.dedup();
    let mut lengths = Vec::new();
    for tokens in stated {
        let prefix = args
            .text
            .prefix
            .unwrap_or(if args.text.step.is_some() { tokens / 2 } else { 0 });
        if tokens < 2 || prefix + 1 > tokens - 1 {
            return Err(Error::user(format!(
                "a window of {tokens} tokens with a prefix of {prefix} predicts nothing"
            ))
            .help("pass longer `--lengths` or a shorter `--prefix`"));
        }
        let body = tokens.saturating_sub(special.len()).max(1);
        let windows: Vec<Vec<u32>> = ids
            .chunks_exact(body)
            .take(args.text.windows)
            .map(|body| [&special[..], body].concat())
            .collect();
        if windows.is_empty() {
            return Err(Error::user(format!(
                "{} has {} tokens, fewer than one window of {tokens}",
                args.text.text.as_deref().map_or_else(|| "the text".to_owned(), name),
                ids.len() + special.len()
            ))
            .help("pass a longer text or shorter `--lengths`"));
        }
        lengths.push(Length {
            tokens,
            reading: Reading {
                prefix,
                prefill_chunk,
                step: args.text.step.unwrap_or(prefill_chunk),
            },
            windows,
        });
    }
    let longest = lengths.iter().map(|length| length.tokens).max().unwrap_or(0);
    let max_context = match args.model.max_context {
        Some(stated) if stated < longest => {
            return Err(Error::user(format!(
                "`--max-context {stated}` is less than a window of {longest} tokens"
            ))
            .help("pass shorter `--lengths`, or leave `--max-context` out"));
        }
        stated => stated.unwrap_or(longest),
    };
    let memory = plan_memory(args, &located, &variants, max_context)?;
    Ok(Plan {
        weights: loading::open_weights(&args.model, &located)?,
        located,
        tokenizer,
        variants,
        lengths,
        text_sha256: sha256(&text),
        max_context,
        memory,
    })
}

fn limits(max_context: usize, prefill_chunk: usize) -> SessionLimits {
    SessionLimits {
        max_context,
        prefill_chunk,
        diagnose: false,
    }
}

/// One model, and a session for each policy beside the others.
fn plan_memory(
    args: &PerplexityArgs,
    located: &Located,
    variants: &Variants,
    max_context: usize,
) -> Result<MemoryPlan> {
    let mut all: Option<MemoryPlan> = None;
    for variant in &variants.all {
        let limits = limits(max_context, variant.prefill_chunk);
        let one = loading::plan_memory(&args.model, located, &variant.policy, limits)?;
        all = Some(match all {
            None => one,
            Some(sum) => MemoryPlan {
                weights_bytes: sum.weights_bytes,
                kv_cache_bytes: sum.kv_cache_bytes.saturating_add(one.kv_cache_bytes),
                prefill_scratch_bytes: sum.prefill_scratch_bytes + one.prefill_scratch_bytes,
                selection_scratch_bytes: sum.selection_scratch_bytes + one.selection_scratch_bytes,
            },
        });
    }
    let plan = all.ok_or_else(|| Error::bug("a run without policies"))?;
    match args.model.max_memory.or_else(available_bytes) {
        Some(available) if plan.total_bytes() > available => Err(Error::environment(format!(
            "{} policies side by side with {max_context} tokens need {}, but {} are available",
            variants.all.len(),
            human_bytes(plan.total_bytes()),
            human_bytes(available)
        ))
        .note(plan.parts())
        .help("pass shorter `--lengths` or fewer `--policies`; two suffice to compare")),
        _ => Ok(plan),
    }
}

fn effective_config(plan: &Plan, args: &PerplexityArgs) -> Map<String, Value> {
    let length =
        |length: &Length| json!({"tokens": length.tokens, "windows": length.windows.len(), "reading": length.reading});
    let config = json!({
        "model": plan.located.files.reference,
        "source": plan.located.files.source,
        "random_weights": args.model.random_weights,
        "device": "cpu",
        "dtype": "f32",
        "policies": plan.variants.all,
        "reference": plan.variants.reference.map(|at| &plan.variants.all[at].name),
        "lengths": plan.lengths.iter().map(length).collect::<Vec<_>>(),
        "max_context": plan.max_context,
        "text_sha256": plan.text_sha256,
        "tokenizer_sha256": plan.tokenizer.hash(),
        "seed": args.text.seed,
    });
    match config {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn sample_id(length: usize, window: usize, variant: &str) -> String {
    format!("{length}/{window:04}/{variant}")
}

/// Bytes of the text that a window's predicted tokens spell.
fn predicted_bytes(tokenizer: &Tokenizer, ids: &[u32], prefix: usize) -> Result<usize> {
    let first = prefix.max(1);
    let all = tokenizer.decode(ids, true)?.len();
    let before = tokenizer.decode(&ids[..first], true)?.len();
    // A character cut in two at the border counts for one side; at least one byte is predicted.
    Ok(all.saturating_sub(before).max(1))
}

/// Scores every window that is not there yet. True if it was stopped.
fn measure(plan: &Plan, sink: &mut dyn SampleSink, context: &Context) -> Result<bool> {
    let names = plan.names();
    let missing = |sink: &dyn SampleSink, tokens: usize, window: usize| {
        names
            .iter()
            .any(|name| !sink.is_done(TASK, &sample_id(tokens, window, name)))
    };
    let is_complete = plan
        .lengths
        .iter()
        .all(|length| (0..length.windows.len()).all(|window| !missing(sink, length.tokens, window)));
    if is_complete {
        return Ok(false);
    }
    let decoder = loading::load(&plan.located, plan.weights.as_ref(), context)?;
    // What stretches rotary frequencies or groups positions goes by the length of the text, not by the longest of the run.
    let trained = decoder.config.max_position_embeddings;
    let session = |variant: &Variant, tokens: usize| {
        let policy = variant.policy.clone().for_context(trained, tokens);
        Session::new(&decoder, &policy, limits(plan.max_context, variant.prefill_chunk))
    };
    let stopped = || context.interrupt.is_raised();
    let bar = context.printer.progress(plan.windows() as u64, COMMAND);
    for length in &plan.lengths {
        let variants = plan.variants.all.iter();
        let mut sessions: Vec<Session<'_, Cpu>> = variants.map(|v| session(v, length.tokens)).collect::<Result<_>>()?;
        for (window, ids) in length.windows.iter().enumerate() {
            if missing(sink, length.tokens, window) {
                let scores = score_window(&mut sessions, plan.variants.reference, ids, &length.reading, &stopped)?;
                let Some(scores) = scores else {
                    return Ok(true);
                };
                let bytes = predicted_bytes(&plan.tokenizer, ids, length.reading.prefix)?;
                for (variant, score) in names.iter().zip(&scores) {
                    let id = sample_id(length.tokens, window, variant);
                    // A run that was killed between two of these rows has the first already.
                    if !sink.is_done(TASK, &id) {
                        let record = WindowRecord::new(length.tokens, window, variant, bytes, score);
                        let row = serde_json::to_value(record);
                        sink.append(TASK, &id, row.map_err(|e| Error::bug(format!("a row as JSON: {e}")))?)?;
                    }
                }
            }
            bar.advance(1);
        }
    }
    Ok(false)
}

fn print_plan(plan: &Plan, args: &PerplexityArgs, context: &Context) -> Result<Outcome> {
    if args.output.format == Some(Format::Json) {
        let value = json!({
            "config": effective_config(plan, args),
            "windows": plan.windows(),
            "memory_plan": plan.memory,
            "memory_plan_total_bytes": plan.memory.total_bytes(),
        });
        let text = serde_json::to_string_pretty(&value).map_err(|e| Error::bug(format!("plan as JSON: {e}")))?;
        return context.printer.line(&text);
    }
    let mut table = Table::new("plan", vec![Column::text("what"), Column::text("value")]);
    let windows = |length: &Length| format!("{} of {} tokens", length.windows.len(), length.tokens);
    for (what, value) in [
        ("model", plan.located.files.reference.clone()),
        ("policies", plan.names().join("; ")),
        (
            "windows",
            plan.lengths.iter().map(windows).collect::<Vec<_>>().join(", "),
        ),
        ("context in tokens", plan.max_context.to_string()),
        (
            "memory",
            format!("{} ({})", human_bytes(plan.memory.total_bytes()), plan.memory.parts()),
        ),
    ] {
        table.push(vec![what.into(), value.into()])?;
    }
    context.printer.table(&table)
}

pub(super) fn run(args: &PerplexityArgs, context: &Context) -> Result<Outcome> {
    let plan = plan(args, context)?;
    if args.output.dry_run {
        return print_plan(&plan, args, context);
    }
    let config = effective_config(&plan, args);
    let mut manifest = Manifest::begin(rayon::current_num_threads());
    // One row per window and policy: few enough to keep in memory.
    let mut output = RunOutput::open(&args.output, COMMAND, &config, context)?;
    let sink = output.sink();
    let interrupted = measure(&plan, sink, context)?;
    let mut records = Vec::new();
    sink.for_each(&mut |sample| {
        records.push(WindowRecord::of(sample)?);
        Ok(())
    })?;
    let (table, timing, aggregates) = tables(&mut records, &plan.names(), plan.variants.reference, args.text.seed)?;
    loading::fill_manifest(
        &mut manifest,
        &plan.located,
        &plan.tokenizer,
        None,
        output.directory.is_some(),
    )?;
    manifest.data_sha256 = Measured::Value(plan.text_sha256.clone());
    manifest.seeds.insert("resampling".into(), args.text.seed);
    manifest.finish();
    let mut report = Report::new(COMMAND, context.command_line.clone(), config, manifest);
    report.tables = vec![table];
    report.aggregates = aggregates;
    report.details = json!({"memory_plan": plan.memory, "timing": timing});
    report.samples.count = records.len() as u64;
    report.interrupted = interrupted;
    output.finish(report, Some(timing))?;
    if interrupted {
        return Err(output.interruption(records.len()));
    }
    Ok(Outcome::Done)
}
