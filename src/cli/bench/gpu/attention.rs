//! `tokselect bench attention`: arguments, plan, run.

use super::{Found, GpuArgs, Run};
use crate::bench::gpu::attention::{Part, Settings, TASK, cases, run as measure, validate};
use crate::bench::gpu::samples_of;
use crate::bench::shapes::Shape;
use crate::bench::timing::Rounds;
use crate::bytes::human_bytes;
use crate::cli::Context;
use crate::cli::arguments::{Dtype, OutputArgs, PolicyArgs, PolicyName};
use crate::cli::bench::{parse_length, positive};
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::model::config::ModelConfig;
use crate::report::{Column, Format, Table};
use clap::Args;
use serde_json::{Map, Value, json};

const COMMAND: &str = "bench attention";

/// Arguments of `tokselect bench attention`.
#[derive(Debug, Args)]
#[command(mut_arg("policy", |arg| arg.hide(true)))]
pub struct AttentionArgs {
    #[command(flatten)]
    gpu: GpuArgs,
    /// Where to compute: cuda or cuda:N
    #[arg(long, default_value = "cuda", value_name = "DEVICE", help_heading = "GPU")]
    device: String,
    /// Type of keys, values and queries: bf16 or f16
    #[arg(long, value_enum, default_value = "auto", help_heading = "GPU")]
    dtype: Dtype,
    #[command(flatten)]
    measure: MeasureArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Measurement")]
pub(super) struct MeasureArgs {
    /// Model shapes
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "qwen2-7b,llama-3-8b"
    )]
    shapes: Vec<Shape>,
    /// Stored tokens, such as 8k or 1m
    #[arg(long, value_delimiter = ',', value_name = "TOKENS", default_value = "8k,32k,128k,512k,1m", value_parser = parse_length)]
    lengths: Vec<usize>,
    /// Policies: dense, token-select
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "dense,token-select"
    )]
    policies: Vec<PolicyName>,
    /// Parts to run
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "PARTS",
        default_value = "decode,chunk,causal"
    )]
    parts: Vec<Part>,
    /// Whole prompts longer than this are left out
    #[arg(long, value_name = "TOKENS", default_value = "128k", value_parser = parse_length)]
    longest_causal: usize,
    /// Counted repetitions at most; long ones stop after 3 when they took 0.4 s
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = positive)]
    repetitions: usize,
    /// Repetitions before those that count
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = positive)]
    warmup: usize,
    /// Seed of made-up keys, values and queries
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(super) fn settings(measure: &MeasureArgs, policy_args: &PolicyArgs) -> Result<Settings> {
    let mut policies = Vec::new();
    for &name in &measure.policies {
        let policy = policy_args.named(name, None)?;
        if !policies.contains(&policy) {
            policies.push(policy);
        }
    }
    let mut lengths = measure.lengths.clone();
    lengths.sort_unstable();
    lengths.dedup();
    let mut shapes = Vec::new();
    for &shape in &measure.shapes {
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    let settings = Settings {
        shapes,
        lengths,
        policies,
        parts: measure.parts.clone(),
        prefill_chunk: policy_args.prefill_chunk(None),
        longest_causal: measure.longest_causal,
        rounds: Rounds {
            warmup: measure.warmup,
            repetitions: measure.repetitions,
        },
        seed: measure.seed,
        checks: true,
    };
    validate(&settings)?;
    if cases(&settings).is_empty() {
        return Err(Error::user("these options leave nothing to measure")
            .help("pass longer `--lengths`, more `--parts` or more `--policies`"));
    }
    Ok(settings)
}

pub(in crate::cli::bench) fn run(args: &AttentionArgs, context: &Context) -> Result<Outcome> {
    args.gpu.require(COMMAND)?;
    let settings = settings(&args.measure, &args.policy)?;
    let run = Run {
        peers: args.gpu.load_peers()?,
        kinds: &["chunk"],
        ..Run::of_layer(COMMAND, &settings, &args.output, context)
    };
    if args.output.dry_run {
        return print_plan(&settings, &run.config, args, context);
    }
    run.measure(&args.device, args.dtype, &settings, measure, &|samples| {
        Ok(Found {
            speeds: samples_of(samples, TASK)?,
            tables: Vec::new(),
            rivals: true,
        })
    })
}

/// `--dry-run`: every measurement, and the memory of one buffer set.
fn print_plan(
    settings: &Settings,
    config: &Map<String, Value>,
    args: &AttentionArgs,
    context: &Context,
) -> Result<Outcome> {
    if args.output.format == Some(Format::Json) {
        let ids: Vec<String> = cases(settings)
            .iter()
            .map(crate::bench::gpu::attention::Case::id)
            .collect();
        let value = json!({ "config": config, "measurements": ids });
        let text = serde_json::to_string_pretty(&value).map_err(|e| Error::bug(format!("plan as JSON: {e}")))?;
        return context.printer.line(&text);
    }
    let columns = ["kind", "shape", "tokens", "rows", "method", "keys and values"];
    let mut table = Table::new("plan", columns.map(Column::text).into());
    for case in cases(settings) {
        let shape = settings.shapes.iter().find(|shape| shape.name() == case.key.shape);
        let bytes = match shape {
            Some(shape) => case.set_bytes(&ModelConfig::from_json(&shape.config(), shape.name())?),
            None => 0,
        };
        table.push(vec![
            case.key.kind.as_str().into(),
            case.key.shape.as_str().into(),
            case.key.tokens.into(),
            case.key.rows.into(),
            case.method.into(),
            human_bytes(bytes).into(),
        ])?;
    }
    context.printer.table(&table)
}
