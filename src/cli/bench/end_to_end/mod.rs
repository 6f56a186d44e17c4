//! `tokselect bench end-to-end`: arguments, run, report.

mod plan;

use crate::bench::end_to_end::{Bench, Ended, Part, Watch, checks, decode, memory, prefill, tables};
use crate::bench::shapes::Shape;
use crate::cli::Context;
use crate::cli::arguments::{ModelArgs, OutputArgs, PolicyArgs, PolicyName};
use crate::cli::bench::gpu::{self, GpuArgs};
use crate::cli::bench::{parse_length, positive};
use crate::cli::loading;
use crate::cli::run_output::RunOutput;
use crate::error::Result;
use crate::exit::Outcome;
use crate::model::memory_plan::available_bytes;
use crate::report::{Report, SampleSink};
use clap::Args;
use plan::Plan;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Name of the command in reports.
const COMMAND: &str = "bench end-to-end";

/// Arguments of `tokselect bench end-to-end`.
#[derive(Debug, Args)]
#[command(mut_arg("policy", |arg| arg.hide(true).value_parser(no_single_policy)))]
pub struct EndToEndArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Without a model: a published shape with random weights
    #[arg(
        long,
        value_enum,
        default_value = "qwen2-0.5b",
        conflicts_with = "model",
        help_heading = "Model"
    )]
    shape: Shape,
    #[command(flatten)]
    gpu: GpuArgs,
    #[command(flatten)]
    measure: MeasureArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Measurement")]
struct MeasureArgs {
    /// Policies to compare, by turns
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "dense,token-select,streaming-llm"
    )]
    policies: Vec<PolicyName>,
    /// Parts to run
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "PARTS",
        default_value = "checks,prefill,decode,memory"
    )]
    parts: Vec<Part>,
    /// Prompt lengths to prefill
    #[arg(long, value_delimiter = ',', value_name = "TOKENS", default_value = "4096", value_parser = parse_length)]
    prefill_tokens: Vec<usize>,
    /// Stored tokens at which to time decode steps
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "TOKENS",
        default_value = "1024,4096,32768",
        value_parser = parse_length
    )]
    decode_at: Vec<usize>,
    /// Counted repetitions of every prefill
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive)]
    prefill_repetitions: usize,
    /// Repetitions of every prefill before those that count
    #[arg(long, value_name = "N", default_value_t = 1)]
    prefill_warmup: usize,
    /// Counted steps of every variant at every length
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive)]
    decode_repetitions: usize,
    /// Steps of every variant before those that count
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = positive)]
    decode_warmup: usize,
    /// Fill the KV cache of decode steps by a dense prefill of all tokens, not of the first 512
    #[arg(long)]
    real_prefill: bool,
    /// Tokens of the prompt on which the backend is checked against the plain one
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = positive)]
    check_tokens: usize,
    /// Seed of token ids and made-up keys and values
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Set these times beside ours: a JSON file of `scripts/bench_transformers.py`
    #[arg(long, value_name = "FILE", conflicts_with = "gpu")]
    compare: Option<PathBuf>,
    /// With --gpu: dense prefills of longer prompts are left out
    #[arg(long, value_name = "TOKENS", default_value = "256k", value_parser = parse_length)]
    longest_dense: usize,
}

/// The group of policy flags brings `--policy` along; here it would be ignored in silence.
fn no_single_policy(text: &str) -> std::result::Result<PolicyName, String> {
    match text {
        "dense" => Ok(PolicyName::Dense),
        _ => Err("this bench compares several; pass `--policies`".to_owned()),
    }
}

pub(super) fn run(args: &EndToEndArgs, context: &Context) -> Result<Outcome> {
    let plan = plan::plan(args, context)?;
    if args.gpu.gpu && !args.output.dry_run {
        let config = plan::effective_config(&plan, args);
        let name = args.model.model.as_deref().unwrap_or_else(|| args.shape.name());
        let mut manifest = plan.manifest;
        manifest.seeds.insert("bench".into(), plan.settings.seed);
        manifest
            .seeds
            .extend(plan.seed_of_weights.map(|seed| ("weights".into(), seed)));
        let wanted = gpu::end_to_end::Wanted {
            args: &args.gpu,
            device: &args.model.device,
            dtype: args.model.gpu_dtype(args.model.model.as_deref().unwrap_or_default()),
            located: &plan.located,
            weights: plan.weights.as_ref(),
            name,
            settings: plan.settings,
            parts: &args.measure.parts,
            longest_dense: args.measure.longest_dense,
            config,
            manifest,
            output: &args.output,
        };
        return gpu::end_to_end::run(wanted, COMMAND, context);
    }
    if args.output.dry_run {
        return plan::print_plan(&plan, args, context);
    }
    if !plan.manifest.build.optimised {
        context
            .printer
            .warning("this build is not optimised: its times mean nothing; build with `--release`");
    }
    let config = plan::effective_config(&plan, args);
    execute(plan, config, args, context)
}

fn measure(plan: &Plan, args: &EndToEndArgs, sink: &mut dyn SampleSink, context: &Context) -> Result<Ended> {
    let decoder = loading::load(&plan.located, plan.weights.as_ref(), context)?;
    let stopped = || context.interrupt.is_raised();
    let status = |what: &str| context.printer.status("Measuring", what);
    let bench = Bench {
        decoder: &decoder,
        settings: &plan.settings,
        watch: Watch {
            stopped: &stopped,
            status: &status,
        },
    };
    // Memory comes first: what later parts leave behind in the allocator would count as theirs.
    for part in [Part::Memory, Part::Checks, Part::Prefill, Part::Decode] {
        if !args.measure.parts.contains(&part) {
            continue;
        }
        let ended = match part {
            Part::Checks => {
                let planned = plan
                    .memory
                    .iter()
                    .map(|(_, plan)| plan.total_bytes())
                    .max()
                    .unwrap_or(0);
                let allowed = args.model.max_memory.map(|most| most.saturating_sub(planned));
                let spare = allowed.or_else(available_bytes);
                let ended = checks::run(&bench, plan.weights.as_ref(), spare, sink)?;
                if checks::verdict(&sink.samples()?).is_err() {
                    // The caller tells it, after the report is written.
                    return Ok(Ended::Finished);
                }
                ended
            }
            Part::Prefill => prefill::run(&bench, sink)?,
            Part::Decode => decode::run(&bench, sink)?,
            Part::Memory => memory::run(&bench, sink)?,
        };
        if ended == Ended::Interrupted {
            return Ok(ended);
        }
    }
    Ok(Ended::Finished)
}

fn execute(mut plan: Plan, config: Map<String, Value>, args: &EndToEndArgs, context: &Context) -> Result<Outcome> {
    let mut output = RunOutput::open(&args.output, COMMAND, &config, context)?;
    let sink = output.sink();
    let ended = measure(&plan, args, sink, context)?;
    let samples = sink.samples()?;

    if output.directory.is_some() {
        loading::record_files(&mut plan.manifest, &plan.located.files, args.model.model.is_some())?;
    }
    plan.manifest.seeds.insert("bench".into(), plan.settings.seed);
    plan.manifest
        .seeds
        .extend(plan.seed_of_weights.map(|seed| ("weights".into(), seed)));
    plan.manifest.finish();
    let mut report = Report::new(COMMAND, context.command_line.clone(), config, plan.manifest.clone());
    (report.tables, report.aggregates) = tables::tables(&samples, plan.baseline.as_ref())?;
    report.details = json!({
        "memory_plans": plan::memory_plans(&plan),
        "compare": plan.baseline.as_ref().map(|baseline| &baseline.provenance),
    });
    report.interrupted = ended == Ended::Interrupted;
    output.finish(report, None)?;
    checks::verdict(&samples)?;
    if ended == Ended::Interrupted {
        return Err(output.interruption(samples.len()));
    }
    Ok(Outcome::Done)
}
