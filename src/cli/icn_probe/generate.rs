//! `tokselect icn-probe generate`: sets of texts for open-ended instructions, how diverse and how valid they are.

use super::engine::{Besides, Engine, EngineArgs, JudgeArgs, JudgeName};
use super::navigate::unrelated;
use super::navigation_arguments::NavigationArgs;
use super::run::{Findings, Run, Verdicts, parsed, print_plan};
use crate::cli::Context;
use crate::cli::arguments::OutputArgs;
use crate::error::{Error, Kind, Result};
use crate::exit::Outcome;
use crate::kernels::cpu::Cpu;
use crate::probe::comparison::{Metric, Value as Number, aggregates, differences, means};
use crate::probe::completion::Completer;
use crate::probe::diversity::Diversity;
use crate::probe::generation::{GeneratedSet, GenerationTask};
use crate::probe::lists::Question;
use crate::probe::navigation::{Explorer, Method, Settings};
use crate::report::{Cell, Column, Measured, Table};
use clap::Args;
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Instant;

const COMMAND: &str = "icn-probe generate";

/// Arguments of `tokselect icn-probe generate`.
#[derive(Debug, Args)]
// `--rounds -1` is a wrong value, not an unknown flag `-1`.
#[command(allow_negative_numbers = true)]
pub struct GenerateArgs {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    tasks: TaskArgs,
    #[command(flatten)]
    navigation: NavigationArgs,
    #[command(flatten)]
    judge: JudgeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Tasks")]
struct TaskArgs {
    /// Open-ended tasks: a JSON file [default: those of datasets/generation]
    #[arg(long, value_name = "FILE", conflicts_with = "instruction")]
    task_file: Option<PathBuf>,
    /// One instruction instead, answered by a numbered list; every text that ends is valid
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,
}

impl TaskArgs {
    fn tasks(&self) -> Result<Vec<GenerationTask>> {
        match (&self.task_file, &self.instruction) {
            (Some(path), _) => GenerationTask::read(path),
            (None, Some(instruction)) => Ok(vec![GenerationTask {
                id: "instruction".into(),
                instruction: instruction.clone(),
                form: crate::probe::prompts::Form::List,
                wanted: Vec::new(),
                unwanted: Vec::new(),
                least_words: 1,
            }]),
            (None, None) => GenerationTask::built_in(),
        }
    }
}

struct Plan {
    engine: Engine,
    tasks: Vec<GenerationTask>,
    methods: Vec<Method>,
    settings: Settings,
    config: Map<String, Value>,
}

fn plan(args: &GenerateArgs, context: &Context) -> Result<Plan> {
    let settings = args.navigation.single()?;
    let judge = args.judge.config()?;
    let tasks = args.tasks.tasks()?;
    // Clusters and keys are for short answers; a text is not in the cluster of its first token.
    let known = [
        Method::Icn,
        Method::IcnContinued,
        Method::IcnPlacebo,
        Method::Top,
        Method::Temperature,
        Method::TopP,
        Method::DiverseBeam,
    ];
    let methods = args.navigation.methods(&known)?;
    let batch = args.navigation.batch(&methods, args.engine.asking.batch);
    let besides = Besides {
        judging: args.judge.is_model(),
        ..Besides::default()
    };
    let engine = Engine::plan(&args.engine, settings.max_new_tokens, batch, besides, context)?;
    for task in &tasks {
        engine.check_instruction(task.form, &task.instruction)?;
    }
    let mut config = engine.config(&args.engine);
    let mut put = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    put("tasks", json!(tasks));
    put("methods", json!(methods));
    put("settings", json!(settings));
    put("seed", json!(args.navigation.seed));
    put("seeds", json!(args.navigation.seeds));
    put(
        "validity",
        if args.judge.name()? == JudgeName::List {
            json!("words")
        } else {
            judge
        },
    );
    Ok(Plan {
        engine,
        tasks,
        methods,
        settings,
        config,
    })
}

fn set(
    plan: &Plan,
    completer: &mut Completer<'_, Cpu>,
    task: &GenerationTask,
    method: Method,
    seed: u64,
    valid: &mut dyn FnMut(&str) -> Result<bool>,
) -> Result<GeneratedSet> {
    // What the set before has left is no merit of this one.
    completer.forget();
    let started = Instant::now();
    let before = completer.cost();
    let question = Question::open(&task.id, &task.instruction);
    let explorer = Explorer {
        prompts: plan.engine.prompts(task.form),
        tokenizer: &plan.engine.tokenizer,
        clusters: None,
        keys: None,
        settings: plan.settings,
    };
    let unrelated = unrelated(&question, plan.settings.answers(), seed)?;
    let found = explorer.explore(completer, method, &question, &unrelated, seed, &mut |_, _| Ok(()))?;
    let (cost, wall_s) = (completer.cost().since(before), started.elapsed().as_secs_f64());
    let texts: Vec<Option<String>> = found.into_iter().map(|found| found.text).collect();
    let finished: Vec<String> = texts
        .iter()
        .flatten()
        .filter(|text| !text.is_empty())
        .cloned()
        .collect();
    let mut embeddings = Vec::with_capacity(finished.len());
    for text in &finished {
        embeddings.push(completer.embed(&plan.engine.tokenizer.encode(text, true)?)?);
    }
    let mut accepted = Vec::with_capacity(texts.len());
    for text in &texts {
        accepted.push(match text {
            Some(text) => valid(text)?,
            None => false,
        });
    }
    let n = texts.len().max(1) as f64;
    let distinct: HashSet<&String> = texts
        .iter()
        .zip(&accepted)
        .filter(|(_, ok)| **ok)
        .filter_map(|(t, _)| t.as_ref())
        .collect();
    Ok(GeneratedSet {
        task: task.id.clone(),
        method: method.name().to_owned(),
        seed,
        validity: accepted.iter().filter(|ok| **ok).count() as f64 / n,
        unique_and_valid: distinct.len() as f64 / n,
        diversity: Diversity::of(&finished, &embeddings),
        valid: accepted,
        texts,
        cost,
        wall_s,
    })
}

fn generate(plan: &Plan, args: &GenerateArgs, run: &mut Run<'_>, context: &Context) -> Result<()> {
    let mut open = Vec::new();
    for task in &plan.tasks {
        for &method in &plan.methods {
            for seed in args.navigation.seeds_of(method) {
                let id = format!("{}/{seed}", method.name());
                if !run.sink().is_done(&task.id, &id) {
                    open.push((task, method, seed, id));
                }
            }
        }
    }
    if open.is_empty() {
        return Ok(());
    }
    let stopped = || context.interrupt.is_raised();
    let decoder = plan.engine.load(context)?;
    let mut completer = plan.engine.completer(&decoder, &stopped)?;
    let by_words = args.judge.name()? == JudgeName::List;
    let mut verdicts = Verdicts::new(args.judge.judge(&plan.engine, &decoder, &stopped)?, run)?;
    let bar = context.printer.progress(open.len() as u64, COMMAND);
    for (task, method, seed, id) in open {
        bar.set_message(&format!("{}, {}", task.id, method.name()));
        let question = Question::open(&task.id, &task.instruction);
        let row = set(plan, &mut completer, task, method, seed, &mut |text| {
            if by_words {
                return Ok(task.accepts(text));
            }
            verdicts.verdict(run, &question, text).map(|verdict| verdict.correct)
        })?;
        let row = serde_json::to_value(row).map_err(|e| Error::bug(format!("a row as JSON: {e}")))?;
        run.sink().append(&task.id, &id, row)?;
        bar.advance(1);
    }
    Ok(())
}

fn metrics(rows: &[&GeneratedSet]) -> Vec<Metric> {
    type Of = fn(&GeneratedSet) -> Option<f64>;
    let all: [(&'static str, Of); 10] = [
        ("validity", |r| Some(r.validity)),
        ("unique_and_valid", |r| Some(r.unique_and_valid)),
        ("unique", |r| Some(r.diversity.unique)),
        ("distinct_1", |r| r.diversity.distinct_1),
        ("distinct_2", |r| r.diversity.distinct_2),
        ("distinct_3", |r| r.diversity.distinct_3),
        ("self_bleu", |r| r.diversity.self_bleu),
        ("hidden_distance", |r| r.diversity.hidden_distance),
        ("mean_words", |r| Some(r.diversity.mean_words)),
        ("generated_tokens", |r| Some(r.cost.generated_tokens as f64)),
    ];
    let metric = |(name, of): (&'static str, Of)| Metric {
        name,
        values: rows
            .iter()
            .filter_map(|row| {
                Some(Number {
                    question: row.task.clone(),
                    method: row.method.clone(),
                    value: of(row)?,
                })
            })
            .collect(),
    };
    all.into_iter().map(metric).collect()
}

/// One table per task, then all of them.
fn tables(rows: &[GeneratedSet], tasks: &[GenerationTask], methods: &[String], seed: u64) -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for task in tasks {
        let here: Vec<&GeneratedSet> = rows.iter().filter(|row| row.task == task.id).collect();
        let metrics = metrics(&here);
        let mut columns = vec![Column::text("method"), Column::text("sets")];
        columns.extend(metrics.iter().map(|metric| Column::text(metric.name)));
        let mut table = Table::new(task.id.as_str(), columns);
        for method in methods {
            let sets = here.iter().filter(|row| row.method == *method).count();
            let mut row: Vec<Cell> = vec![method.as_str().into(), sets.into()];
            row.extend(metrics.iter().map(|metric| {
                let values: Vec<f64> = metric
                    .values
                    .iter()
                    .filter(|v| v.method == *method)
                    .map(|v| v.value)
                    .collect();
                crate::bench::statistics::mean(&values).map_or_else(|| Cell::missing("no text"), Cell::from)
            }));
            table.push(row)?;
        }
        tables.push(table);
    }
    if tasks.len() > 1 {
        let all: Vec<&GeneratedSet> = rows.iter().collect();
        tables.push(means("all_tasks", methods, &metrics(&all), seed)?);
        if let Some(reference) = methods.first() {
            tables.push(differences("differences", reference, methods, &metrics(&all), seed)?);
        }
    }
    Ok(tables)
}

pub(super) fn run(args: &GenerateArgs, context: &Context) -> Result<Outcome> {
    let plan = plan(args, context)?;
    let names: Vec<String> = plan.methods.iter().map(|method| method.name().to_owned()).collect();
    if args.output.dry_run {
        let tasks: Vec<&str> = plan.tasks.iter().map(|task| task.id.as_str()).collect();
        let rows = vec![
            ("tasks", tasks.join(", ")),
            ("methods", names.join(", ")),
            ("texts of each", plan.settings.answers().to_string()),
        ];
        return print_plan(&plan.engine, &plan.config, rows, &args.output, context);
    }
    let mut run = Run::open(COMMAND, plan.config.clone(), &args.output, context)?;
    let outcome = generate(&plan, args, &mut run, context);
    if let Err(error) = &outcome
        && error.kind() != Kind::Interrupted
    {
        return outcome.map(|()| Outcome::Done);
    }
    let rows: Vec<GeneratedSet> = run.samples()?.iter().map(parsed).collect::<Result<_>>()?;
    let all: Vec<&GeneratedSet> = rows.iter().collect();
    let findings = Findings {
        tables: tables(&rows, &plan.tasks, &names, args.navigation.seed)?,
        aggregates: aggregates(&names, &metrics(&all), args.navigation.seed),
        ..Findings::default()
    };
    let data = Measured::Value(GenerationTask::hash(&plan.tasks));
    run.finish(
        &plan.engine,
        outcome,
        data,
        &[("generate", args.navigation.seed)],
        findings,
    )
}
