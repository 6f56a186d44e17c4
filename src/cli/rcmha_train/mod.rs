//! `tokselect rcmha-train`: trains a matrix of attentions and seeds, and compares them.

mod arguments;
mod check;
mod data;
mod figure;
mod watch;

use crate::bytes::human_bytes;
use crate::cli::run_output::RunOutput;
use crate::cli::{Context, device};
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::manifest::{Manifest, config_hash};
use crate::model::sampling::SamplingConfig;
use crate::report::{Aggregate, Column, Format, Measured, Report, SampleSink, Table};
use crate::train::attention::AttentionKind;
use crate::train::comparison;
use crate::train::engine::Place;
use crate::train::memory_forecast::MemoryForecast;
use crate::train::model_config::ModelConfig;
use crate::train::run::{RunOptions, RunResult, run as train};
use crate::train::text::{Streams, Text};
use crate::train::trainer::{TrainConfig, Trainer};
pub use arguments::RcmhaTrainArgs;
use serde_json::{Map, Value, json};
use std::path::Path;
use watch::Watch;

const COMMAND: &str = "rcmha-train";
/// Share of the first loss that `--overfit-batch` must get below.
const OVERFIT_SHARE: f64 = 0.1;

/// One training run of the matrix.
struct Planned {
    model: ModelConfig,
    training: TrainConfig,
    forecast: MemoryForecast,
}

impl Planned {
    fn id(&self) -> String {
        format!("seed-{}", self.training.seed)
    }

    fn name(&self) -> String {
        format!("{}-{}", self.model.attention.name(), self.id())
    }
}

struct Plan {
    text: Text,
    data: String,
    runs: Vec<Planned>,
    kinds: Vec<AttentionKind>,
    reference: AttentionKind,
    place: Place,
}

fn plan(args: &RcmhaTrainArgs) -> Result<Plan> {
    let mut kinds = args.attention.clone();
    let mut seen = std::collections::BTreeSet::new();
    kinds.retain(|kind| seen.insert(*kind));
    let has_rmha = kinds.contains(&AttentionKind::Rmha);
    let default = if has_rmha { AttentionKind::Rmha } else { kinds[0] };
    let reference = args.reference.unwrap_or(default);
    if !kinds.contains(&reference) {
        return Err(Error::user(format!(
            "`--reference {}` is not among the attentions",
            reference.name()
        ))
        .help("name it in `--attention`, too"));
    }
    if args.seed.checked_add(args.seeds as u64).is_none() {
        return Err(Error::user(format!("`--seed {}` is too large", args.seed)).help("pass a smaller number"));
    }
    let data::Named { text, name } = data::load(&args.data)?;
    SamplingConfig {
        temperature: args.output.temperature,
        ..SamplingConfig::default()
    }
    .validate()?;
    if let Some(prompt) = &args.output.prompt
        && text.codec.encode(prompt).is_none_or(|ids| ids.is_empty())
    {
        return Err(Error::user(format!(
            "the prompt `{prompt}` is empty or has characters that the text lacks"
        ))
        .help("pass a `--prompt` made of characters of the text"));
    }
    let place = args.compute.place()?;
    let available = place.available_bytes()?;
    let mut models = Vec::new();
    for &kind in &kinds {
        let model = args.model(kind, text.codec.vocab());
        model.validate()?;
        let streams = Streams::new(&text.train, args.batch(), model.segment, "training")?;
        Streams::new(&text.valid, args.batch(), model.segment, "held-out")?;
        let training = args.training(&model, streams.segments() as u64)?;
        let engine = training.engine()?;
        let forecast = MemoryForecast::new(&model, &engine, place.value_bytes())?;
        if let Some(available) = available {
            forecast.check(&model, &engine, available)?;
        }
        models.push((model, training, forecast));
    }
    // Seed by seed, so that a stopped matrix has whole comparisons.
    let seeds = (0..args.seeds as u64).map(|k| args.seed + k);
    let runs = seeds.flat_map(|seed| {
        models.iter().map(move |(model, training, forecast)| Planned {
            model: *model,
            training: TrainConfig {
                seed,
                ..training.clone()
            },
            forecast: *forecast,
        })
    });
    Ok(Plan {
        runs: runs.collect(),
        text,
        data: name,
        kinds,
        reference,
        place,
    })
}

fn effective_config(plan: &Plan, args: &RcmhaTrainArgs) -> Map<String, Value> {
    let first = &plan.runs[0];
    let config = json!({
        "attention": plan.kinds,
        "reference": plan.reference,
        "seeds": args.seeds,
        "first_seed": args.seed,
        "unit": args.data.unit.to_string(),
        "text_sha256": plan.text.sha256,
        "model": first.model,
        "training": first.training,
        "generate": args.output.generate,
        "prompt": args.output.prompt,
        "temperature": args.output.temperature,
        "device": plan.place.device(),
        "dtype": plan.place.dtype(),
    });
    match config {
        Value::Object(mut map) => {
            // One run's own; the lists above hold those of all.
            for (part, key) in [("model", "attention"), ("training", "seed")] {
                map.get_mut(part)
                    .and_then(Value::as_object_mut)
                    .map(|part| part.shift_remove(key));
            }
            map
        }
        _ => Map::new(),
    }
}

/// Hash of everything that determines one run, so that a checkpoint is continued by no other.
///
/// The device is not among it: f32 means the same everywhere, up to the order of sums.
fn run_hash(plan: &Plan, run: &Planned) -> String {
    let mut determines = json!({"model": run.model, "training": run.training, "text_sha256": plan.text.sha256});
    if plan.place.dtype() != "f32" {
        determines["dtype"] = plan.place.dtype().into();
    }
    config_hash(&determines)
}

fn options(plan: &Plan, args: &RcmhaTrainArgs, run: &Planned) -> RunOptions {
    let steps = run.training.steps;
    let output = &args.output;
    let default_prompt = || {
        // A line break begins a sentence in most texts.
        let ids = plan
            .text
            .codec
            .encode("\n")
            .unwrap_or_else(|| plan.text.train[..1].to_vec());
        plan.text.codec.decode(&ids)
    };
    let sample = (output.generate > 0).then(|| {
        let prompt = output.prompt.clone().unwrap_or_else(default_prompt);
        (prompt, output.generate, output.temperature)
    });
    RunOptions {
        folder: output.output.output.as_ref().map(|folder| folder.join(run.name())),
        checkpoint_every: output.checkpoint_every.unwrap_or(steps.div_ceil(10)),
        keep: output.keep_checkpoints,
        line_every: output.log_every.unwrap_or(steps.div_ceil(200)),
        config_hash: run_hash(plan, run),
        sample,
    }
}

fn print_plan(plan: &Plan, args: &RcmhaTrainArgs, context: &Context) -> Result<Outcome> {
    if args.output.output.format == Some(Format::Json) {
        let runs = plan.runs.iter();
        let runs: Vec<Value> = runs
            .map(|run| json!({"run": run.name(), "parameters": run.forecast.parameters, "forecast_bytes": run.forecast.total_bytes(), "model": run.model, "training": run.training}))
            .collect();
        let value = json!({"config": effective_config(plan, args), "runs": runs});
        let text = serde_json::to_string_pretty(&value).map_err(|e| Error::bug(format!("plan as JSON: {e}")))?;
        return context.printer.line(&text);
    }
    let columns = [
        "run",
        "parameters",
        "weights, gradients, optimiser",
        "with activations, about",
        "steps",
        "symbols a step",
    ];
    let mut table = Table::new("plan", columns.into_iter().map(Column::text).collect());
    for run in &plan.runs {
        table.push(vec![
            run.name().into(),
            run.forecast.parameters.into(),
            human_bytes(run.forecast.state_bytes).into(),
            human_bytes(run.forecast.total_bytes()).into(),
            run.training.steps.into(),
            (run.training.batch * run.model.segment).into(),
        ])?;
    }
    context.printer.line(&format!(
        "{}: {} symbols to learn from, {} held out, {} different",
        plan.data,
        plan.text.train.len(),
        plan.text.valid.len(),
        plan.text.codec.vocab()
    ))?;
    context.printer.table(&table)
}

/// Trains what is not there yet. True if it was stopped.
fn measure(plan: &Plan, args: &RcmhaTrainArgs, sink: &mut dyn SampleSink, context: &Context) -> Result<bool> {
    for run in &plan.runs {
        let (task, id) = (run.model.attention.name(), run.id());
        if sink.is_done(task, &id) {
            continue;
        }
        let mut trainer = Trainer::new(run.model, run.training.clone(), &plan.text, &plan.place)?;
        let mut watch = Watch::new(context, run.training.steps, &run.name());
        let options = options(plan, args, run);
        let result = train(&mut trainer, &plan.text.codec, &options, &mut watch);
        let result = result.map_err(|error| error.note(format!("run {}", run.name())))?;
        drop(watch);
        let Some(result) = result else { return Ok(true) };
        context.printer.status(
            "trained",
            &format!(
                "{}: validation loss {:.4}, accuracy {:.4}",
                run.name(),
                result.valid_loss,
                result.valid_accuracy
            ),
        );
        let row = serde_json::to_value(&result).map_err(|e| Error::bug(format!("a run as JSON: {e}")))?;
        sink.append(task, &id, row)?;
    }
    Ok(false)
}

fn load(sink: &dyn SampleSink) -> Result<Vec<RunResult>> {
    let mut runs = Vec::new();
    sink.for_each(&mut |sample| {
        let run = serde_json::from_value(sample.data);
        runs.push(run.map_err(|e| Error::user(format!("sample `{}` cannot be read: {e}", sample.id)))?);
        Ok(())
    })?;
    Ok(runs)
}

fn aggregates(runs: &[RunResult], kinds: &[AttentionKind]) -> Vec<Aggregate> {
    let of = |kind: AttentionKind, name: &str, unit: &str, measure: fn(&RunResult) -> f64| {
        let values: Vec<f64> = runs.iter().filter(|run| run.attention == kind).map(measure).collect();
        Aggregate::of(format!("{}.{name}", kind.name()), unit, &values)
    };
    let all = kinds.iter().flat_map(|&kind| {
        [
            of(kind, "valid_loss", "nats", |run| run.valid_loss),
            of(kind, "valid_accuracy", "", |run| run.valid_accuracy),
            of(kind, "coded_accuracy", "", |run| run.coded_accuracy),
        ]
    });
    all.collect()
}

pub(super) fn run(args: &RcmhaTrainArgs, context: &Context) -> Result<Outcome> {
    let plan = plan(args)?;
    if args.output.output.dry_run {
        return print_plan(&plan, args, context);
    }
    if args.compute.check_gradients {
        return check::run(&plan, args, context);
    }
    let config = effective_config(&plan, args);
    let mut manifest = Manifest::begin(rayon::current_num_threads());
    let mut output = RunOutput::open(&args.output.output, COMMAND, &config, context)?;
    let sink = output.sink();
    let interrupted = measure(&plan, args, sink, context)?;
    let runs = load(sink)?;
    manifest.data_sha256 = Measured::Value(plan.text.sha256.clone());
    manifest.seeds.insert("first".into(), args.seed);
    if let Place::Cuda(gpu, _) = &plan.place {
        device::record(&mut manifest, gpu);
    }
    manifest.finish();
    let mut report = Report::new(COMMAND, context.command_line.clone(), config, manifest);
    report.tables = vec![comparison::table(&runs, &plan.kinds)?];
    report
        .tables
        .extend(comparison::paired_table(&runs, &plan.kinds, plan.reference)?);
    report.tables.push(comparison::cost_table(&runs, &plan.kinds)?);
    report.aggregates = aggregates(&runs, &plan.kinds);
    report.details = json!({"data": plan.data});
    report.samples.count = runs.len() as u64;
    report.interrupted = interrupted;
    if let Some(directory) = &output.directory {
        if let Some(svg) = figure::curves(&runs, &plan.kinds)? {
            directory.write_file("figure.svg", svg.as_bytes())?;
        }
        directory.write_report(&mut report)?;
    }
    print(&report, &runs, args, context)?;
    if interrupted {
        return Err(interruption(args.output.output.output.as_deref(), runs.len()));
    }
    if args.training.overfit_batch {
        check_overfit(&runs)?;
    }
    Ok(Outcome::Done)
}

fn print(report: &Report, runs: &[RunResult], args: &RcmhaTrainArgs, context: &Context) -> Result<()> {
    if let Some(format) = args.output.output.format {
        context.printer.report(report, format)?;
        return Ok(());
    }
    let mut shown = report.clone();
    shown.aggregates = Vec::new();
    for run in runs {
        if let Some(sample) = &run.sample {
            context
                .printer
                .line(&format!("{} seed {}:\n{sample}\n", run.attention.name(), run.seed))?;
        }
    }
    if let Some(curve) = figure::terminal_curve(runs) {
        context.printer.line(&curve)?;
    }
    context.printer.report(&shown, Format::Table)?;
    Ok(())
}

fn interruption(output: Option<&Path>, finished: usize) -> Error {
    match output {
        Some(path) => Error::interrupted(format!(
            "interrupted; {finished} finished runs and the last checkpoint are kept in `{}`",
            path.display()
        ))
        .help("run the same command again to go on"),
        None => Error::interrupted(format!("interrupted; the {finished} finished runs are in the tables"))
            .help("pass `--output DIR` to keep checkpoints and go on later"),
    }
}

fn check_overfit(runs: &[RunResult]) -> Result<()> {
    for run in runs {
        let learned = run.train_loss < OVERFIT_SHARE * run.first_loss;
        if !learned {
            return Err(Error::acceptance(format!(
                "{} seed {} has not learned one batch by heart: loss {:.4} at first, {:.4} at last",
                run.attention.name(),
                run.seed,
                run.first_loss,
                run.train_loss
            ))
            .help("pass more `--steps`; if that does not help, the model cannot learn as it is"));
        }
    }
    Ok(())
}
