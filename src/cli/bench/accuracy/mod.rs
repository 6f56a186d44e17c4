//! `tokselect bench passkey` and its like: one suite of tasks, several policies, one accuracy table.
//!
//! A suite brings its tasks and defaults as a [`Suite`]; everything else is shared.

mod benchmark_data;
mod examples;
mod export;
mod figures;
mod infinite_bench;
mod long_bench;
mod plan;
mod ruler;

pub(super) use infinite_bench::{InfiniteBenchArgs, run as run_infinite_bench};
pub(super) use long_bench::{LongBenchArgs, run as run_long_bench};
pub(super) use ruler::{RulerArgs, run as run_ruler};

use super::variants::VariantArgs;
use super::{parse_length, positive};
use crate::cli::Context;
use crate::cli::arguments::{ModelArgs, OutputArgs};
use crate::cli::loading;
use crate::cli::run_output::RunOutput;
use crate::error::{Error, Result};
use crate::eval::Task;
use crate::eval::passkey::Passkey;
use crate::eval::runner::{self, ModelAnswerer, Records, Statistics, Watch};
use crate::exit::Outcome;
use crate::interrupt::Interrupt;
use crate::manifest::Manifest;
use crate::model::chat_template::{ChatTemplate, ChatTemplateChoice};
use crate::model::prompt::PromptEncoder;
use crate::model::tokenizer::Tokenizer;
use crate::printer::Progress;
use crate::report::{KeySink, Measured, Report, SampleSink};
use clap::{Args, ValueEnum};
use plan::Plan;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// The tasks of one subcommand, and what it does when not told otherwise.
struct Suite {
    /// Name of the command in reports, such as `bench passkey`.
    command: &'static str,
    /// Those of its tasks that are asked for.
    tasks: Vec<Box<dyn Task>>,
    /// Lengths in tokens; empty for loaded examples, which are asked as they are.
    lengths: Vec<usize>,
    /// Samples per task, length and depth; a loaded task has no more than its data.
    samples: usize,
    /// Depths; empty where the seed decides.
    depths: Vec<f64>,
    /// Whether the one length is the stated context, to which loaded examples are cut.
    cut_to_context: bool,
}

/// The suite of `bench passkey`.
fn passkey(args: &TaskArgs) -> Result<Suite> {
    Ok(Suite {
        command: "bench passkey",
        tasks: chosen_tasks(vec![Box::new(Passkey)], &args.tasks)?,
        lengths: vec![4096, 8192, 16384],
        // A first look in short time: at 32K each sample read densely takes as long as several under a policy.
        samples: 1,
        depths: vec![0.0, 0.5, 1.0],
        cut_to_context: false,
    })
}

/// Places in `known` of the tasks named on the command line, in the suite's order; a name that the suite does not know is
/// refused.
fn chosen(known: &[&str], names: &[String]) -> Result<Vec<usize>> {
    if let Some(name) = names
        .iter()
        .find(|name| *name != "all" && !known.contains(&name.as_str()))
    {
        return Err(Error::user(format!("`--tasks {name}` is no task of this suite"))
            .help(format!("pass all, or some of: {}", known.join(", "))));
    }
    let asked = |task: &str| names.iter().any(|name| name == "all" || name == task);
    Ok((0..known.len()).filter(|&at| asked(known[at])).collect())
}

/// [`chosen`] of tasks that are there.
fn chosen_tasks(tasks: Vec<Box<dyn Task>>, names: &[String]) -> Result<Vec<Box<dyn Task>>> {
    let known: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
    let chosen = chosen(&known, names)?;
    let tasks = tasks.into_iter().enumerate();
    Ok(tasks
        .filter(|(at, _)| chosen.contains(at))
        .map(|(_, task)| task)
        .collect())
}

/// Arguments that all suites share.
#[derive(Debug, Args)]
// `--limit -1` is a wrong value, not an unknown flag `-1`.
#[command(allow_negative_numbers = true)]
pub struct AccuracyArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    task: TaskArgs,
    #[command(flatten)]
    variants: VariantArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Tokens by which lengths are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CountBy {
    /// The model's tokens
    Model,
    /// Words between white space; needs no model
    Words,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Tasks")]
struct TaskArgs {
    /// Tasks to run, or all
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_value = "all")]
    tasks: Vec<String>,
    /// Tokens that prompt and answer take together, such as 4096 or 4k [default: the suite's own]
    #[arg(long, value_delimiter = ',', value_name = "TOKENS", value_parser = parse_length)]
    lengths: Option<Vec<usize>>,
    /// Samples of every task, length and depth [default: the suite's own]
    #[arg(long, value_name = "N", value_parser = positive)]
    samples: Option<usize>,
    /// Ask no more than the first N samples of each task under each policy
    #[arg(long, value_name = "N", value_parser = positive)]
    limit: Option<usize>,
    /// Where the needle lies, from 0 (start) to 1 (end), for heat maps [default: the suite's own]
    #[arg(long, value_delimiter = ',', value_name = "DEPTHS", value_parser = parse_depth)]
    depths: Option<Vec<f64>>,
    /// Seed of the examples and of the resampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Chat template: auto (the model's own, if any), none, or a Jinja file
    #[arg(long, default_value = "auto", value_name = "auto|none|FILE")]
    chat_template: ChatTemplateChoice,
    /// Write the examples to this directory as JSONL in RULER's field names, and run no model
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "format", "dry_run"])]
    export: Option<PathBuf>,
    /// With --export: what lengths are measured in
    #[arg(long, value_enum, default_value = "model", requires = "export")]
    count: CountBy,
}

fn parse_depth(text: &str) -> std::result::Result<f64, String> {
    text.parse()
        .ok()
        .filter(|depth| (0.0..=1.0).contains(depth))
        .ok_or_else(|| "pass depths from 0 to 1, such as 0,0.5,1".to_owned())
}

pub(super) fn run_passkey(args: &AccuracyArgs, context: &Context) -> Result<Outcome> {
    run(|| passkey(&args.task), args, context)
}

/// Runs the suite that `suite` makes, which is done after the flags are checked: it may take a download.
fn run(suite: impl FnOnce() -> Result<Suite>, args: &AccuracyArgs, context: &Context) -> Result<Outcome> {
    if let Some(folder) = &args.task.export {
        return export::run(suite()?, args, folder, context);
    }
    let plan = plan::plan(suite, args, context)?;
    if args.output.dry_run {
        return plan::print_plan(&plan, args.output.format, context);
    }
    execute(&plan, args, context)
}

struct Watcher<'a> {
    bar: Progress,
    interrupt: &'a Interrupt,
}

impl Watch for Watcher<'_> {
    fn done(&self) {
        self.bar.advance(1);
    }

    fn stopped(&self) -> bool {
        self.interrupt.is_raised()
    }
}

fn answer(plan: &Plan, sink: &mut dyn SampleSink, context: &Context) -> Result<(Records, bool)> {
    let total = plan.grid.samples();
    let done = Records::resumed(&plan.grid, sink)?.len();
    if done > 0 {
        context.printer.warning(&format!(
            "{done} of {total} samples are already there; {} to go",
            total - done
        ));
    }
    let stopped = || context.interrupt.is_raised();
    let watcher = |what: &str| Watcher {
        bar: context.printer.progress(total as u64, what),
        interrupt: &context.interrupt,
    };
    if done == total {
        // Nothing is left to ask: the weights need not be read.
        return Ok((Records::resumed(&plan.grid, sink)?, false));
    }
    let decoder = loading::load(&plan.located, plan.weights.as_ref(), context)?;
    let encoder = PromptEncoder {
        tokenizer: &plan.tokenizer,
        template: plan.template.as_ref(),
    };
    let mut answerer = ModelAnswerer::new(
        &decoder,
        encoder,
        &plan.eos,
        &plan.variants.all,
        plan.max_context,
        &stopped,
    );
    runner::run(&plan.grid, &plan.tokenizer, &mut answerer, sink, &watcher(plan.command))
}

/// Hash of the data behind loaded tasks.
fn data_sha256(plan: &Plan) -> Measured<String> {
    let hashes: Vec<String> = plan
        .grid
        .tasks
        .iter()
        .filter_map(|t| t.data_sha256().map(str::to_owned))
        .collect();
    match hashes.as_slice() {
        [] => Measured::missing("examples are generated"),
        [one] => Measured::Value(one.clone()),
        // One hash of several: that of their list.
        many => Measured::Value(crate::manifest::sha256(many.join("\n"))),
    }
}

fn execute(plan: &Plan, args: &AccuracyArgs, context: &Context) -> Result<Outcome> {
    let config = plan::effective_config(plan, args);
    let mut manifest = Manifest::begin(rayon::current_num_threads());
    let keys = Box::new(KeySink::default());
    let mut output = RunOutput::open_or(keys, &args.output, plan.command, &config, context)?;
    let sink = output.sink();
    let (mut records, interrupted) = answer(plan, sink, context)?;
    let statistics = Statistics::of(&plan.grid, &mut records, plan.variants.reference)?;

    loading::fill_manifest(
        &mut manifest,
        &plan.located,
        &plan.tokenizer,
        plan.template.as_ref(),
        output.directory.is_some(),
    )?;
    manifest.data_sha256 = data_sha256(plan);
    manifest.seeds.insert("examples".into(), plan.grid.seed);
    manifest.finish();
    let mut report = Report::new(plan.command, context.command_line.clone(), config, manifest);
    report.tables = statistics.tables;
    report.aggregates = statistics.aggregates;
    report.details = json!({
        "interval": format!("percentile bootstrap, {} resamples", crate::eval::statistics::RESAMPLES),
        "reference": plan.variants.reference.map(|at| &plan.grid.variants[at]),
        "memory_plan": plan.memory,
        "timing": statistics.timing,
    });
    report.samples.count = records.len() as u64;
    report.interrupted = interrupted;
    if let Some(directory) = &output.directory {
        for (name, svg) in figures::figures(&statistics.lines, &statistics.heats)? {
            directory.write_file(&name, svg.as_bytes())?;
        }
    }
    output.finish(report, Some(statistics.timing))?;
    if interrupted {
        return Err(output.interruption(records.len()));
    }
    Ok(Outcome::Done)
}

/// What the report says of the text side of the model.
fn text_config(tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("tokenizer_sha256".into(), json!(tokenizer.hash()));
    map.insert("chat_template_sha256".into(), json!(template.map(ChatTemplate::hash)));
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_are_read() {
        assert_eq!(parse_depth("0.25"), Ok(0.25));
        assert!(parse_depth("1.5").is_err() && parse_depth("nan").is_err());
    }
}
