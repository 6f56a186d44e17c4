//! `tokselect icn-probe reason`: several paths of thought, and the answer that most of them give.

use super::engine::{Besides, Engine, EngineArgs};
use super::run::{Findings, Run, parsed, print_plan};
use crate::cli::Context;
use crate::cli::arguments::{OutputArgs, at_least_one};
use crate::error::{Error, Kind, Result};
use crate::eval::demo_corpus::Level;
use crate::exit::Outcome;
use crate::hub::DEMO;
use crate::model::sampling::SamplingConfig;
use crate::probe::comparison::{Metric, Value as Number, aggregates, differences, means};
use crate::probe::problems::{ProblemSet, Problems};
use crate::probe::reasoning::{PathMethod, PathSettings, Reasoned, Reasoner, Wording};
use crate::report::{Cell, Column, Measured, Table};
use clap::Args;
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::path::PathBuf;

const COMMAND: &str = "icn-probe reason";

/// Arguments of `tokselect icn-probe reason`.
#[derive(Debug, Args)]
// `--paths -1` is a wrong value, not an unknown flag `-1`.
#[command(allow_negative_numbers = true)]
pub struct ReasonArgs {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    problems: ProblemArgs,
    #[command(flatten)]
    paths: PathArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Problems")]
struct ProblemArgs {
    /// Which problems
    #[arg(long, value_enum, default_value = "templated", value_name = "SET")]
    set_name: ProblemSet,
    /// Their file: JSONL, or a JSON list; not needed for templated
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// How hard templated problems are, in turn: 1 as taught to the demo model, 2 to 4 with larger and larger numbers, 5 with a
    /// step more [default: 1,2,3,4]
    #[arg(long, value_delimiter = ',', value_name = "LEVELS", value_parser = level)]
    levels: Vec<Level>,
    /// Ask the first N of them [default: 100 templated ones, all of a file]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    limit: Option<usize>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Paths")]
struct PathArgs {
    /// Methods to compare; differences are to the first [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METHODS")]
    methods: Vec<PathMethod>,
    /// Paths of each problem
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = at_least_one())]
    paths: usize,
    /// Tokens that a path may take [default: 256; 512 for aqua]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one())]
    path_tokens: Option<usize>,
    /// Tokens that the final answer may take
    #[arg(long, default_value_t = 8, value_name = "TOKENS", value_parser = at_least_one())]
    answer_tokens: usize,
    /// Of the method sampling
    #[arg(long, default_value_t = 0.7, value_name = "T")]
    temperature: f32,
    /// Spacing of the prompts [default: taught for the demo model, else released]
    #[arg(long, value_enum)]
    wording: Option<Wording>,
    /// Seeds of sampling, counted up from --seed; the other methods are asked once
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one())]
    seeds: usize,
    /// First seed, also of templated problems and resampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn level(text: &str) -> std::result::Result<Level, String> {
    let known = text.parse().ok().and_then(Level::new);
    known.ok_or_else(|| format!("there are levels {} to {}", Level::TAUGHT, Level::MORE_STEPS))
}

struct Plan {
    engine: Engine,
    problems: Problems,
    methods: Vec<PathMethod>,
    settings: PathSettings,
    config: Map<String, Value>,
}

fn problems(args: &ReasonArgs) -> Result<Problems> {
    let ProblemArgs {
        set_name,
        data,
        levels,
        limit,
    } = &args.problems;
    if *set_name != ProblemSet::Templated && !levels.is_empty() {
        return Err(
            Error::user("`--levels` is given, but only templated problems have levels").help("leave out `--levels`"),
        );
    }
    let mut problems = match (set_name, data) {
        (ProblemSet::Templated, None) => {
            let all = [1, 2, 3, 4].map(Level::new);
            let usual: Vec<Level> = all.into_iter().flatten().collect();
            let levels = if levels.is_empty() { &usual } else { levels };
            Problems::templated(limit.unwrap_or(100), levels, args.paths.seed)
        }
        (ProblemSet::Templated, Some(_)) => {
            return Err(
                Error::user("`--data` is given, but templated problems are made from the seed")
                    .help("name the data set, such as `--set-name gsm8k`"),
            );
        }
        (_, None) => {
            return Err(Error::user("this set of problems is read from a file")
                .help("pass `--data FILE`, the set's public JSONL or JSON file"));
        }
        (set, Some(path)) => Problems::read(*set, path)?,
    };
    problems.all.truncate(limit.unwrap_or(usize::MAX));
    Ok(problems)
}

fn reasoner(engine: &Engine, settings: PathSettings) -> Reasoner<'_> {
    Reasoner {
        encoder: engine.encoder(),
        settings,
        context_tokens: engine.limits.prompt_tokens + engine.limits.completion_tokens,
    }
}

fn plan(args: &ReasonArgs, context: &Context) -> Result<Plan> {
    let paths = &args.paths;
    let sampling = SamplingConfig {
        temperature: paths.temperature,
        ..SamplingConfig::default()
    };
    sampling.validate()?;
    let problems = problems(args)?;
    let is_demo = args.engine.model.reference() == DEMO;
    let aqua = args.problems.set_name == ProblemSet::Aqua;
    let settings = PathSettings {
        paths: paths.paths,
        path_tokens: paths.path_tokens.unwrap_or(if aqua { 512 } else { 256 }),
        answer_tokens: paths.answer_tokens,
        temperature: paths.temperature,
        wording: paths
            .wording
            .unwrap_or(if is_demo { Wording::Taught } else { Wording::Released }),
    };
    let mut methods: Vec<PathMethod> = Vec::new();
    let asked = if paths.methods.is_empty() {
        &PathMethod::ALL[..]
    } else {
        &paths.methods
    };
    for method in asked {
        if !methods.contains(method) {
            methods.push(*method);
        }
    }
    if methods.contains(&PathMethod::Sampling) && settings.temperature == 0.0 {
        return Err(Error::user("`--temperature 0` samples the same path again and again")
            .help("pass a positive number such as 0.7, or leave sampling out of `--methods`"));
    }
    let batch = args.engine.asking.batch.min(settings.paths);
    let longest = settings.path_tokens.max(settings.answer_tokens);
    let engine = Engine::plan(&args.engine, longest, batch, Besides::default(), context)?;
    let reasoner = reasoner(&engine, settings);
    for problem in &problems.all {
        let place = || format!("problem {} of the set", problem.id);
        reasoner.check(problem).map_err(|error| error.note(place()))?;
    }
    let mut config = engine.config(&args.engine);
    let mut put = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    put("set", json!(args.problems.set_name));
    put("problems", json!(problems.all.len()));
    put("levels", json!(problems.levels()));
    put("data_sha256", json!(problems.sha256));
    put("methods", json!(methods));
    put("settings", json!(settings));
    put("seed", json!(paths.seed));
    put("seeds", json!(paths.seeds));
    Ok(Plan {
        engine,
        problems,
        methods,
        settings,
        config,
    })
}

fn reason(plan: &Plan, args: &ReasonArgs, run: &mut Run<'_>, context: &Context) -> Result<()> {
    let first = args.paths.seed;
    let mut open = Vec::new();
    for problem in &plan.problems.all {
        for &method in &plan.methods {
            let seeds = if method == PathMethod::Sampling {
                args.paths.seeds as u64
            } else {
                1
            };
            for seed in first..first.saturating_add(seeds) {
                let id = format!("{}/{}/{seed}", problem.id, method.name());
                if !run.sink().is_done("reason", &id) {
                    open.push((problem, method, seed, id));
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
    let reasoner = reasoner(&plan.engine, plan.settings);
    let bar = context.printer.progress(open.len() as u64, COMMAND);
    for (problem, method, seed, id) in open {
        let row = reasoner.reason(&mut completer, method, problem, seed)?;
        let row = serde_json::to_value(row).map_err(|e| Error::bug(format!("a row as JSON: {e}")))?;
        run.sink().append("reason", &id, row)?;
        bar.advance(1);
    }
    Ok(())
}

fn share(row: &Reasoned, of: impl Fn(&crate::probe::reasoning::Path) -> bool) -> f64 {
    row.paths.iter().filter(|path| of(path)).count() as f64 / row.paths.len().max(1) as f64
}

fn metrics(rows: &[Reasoned]) -> Vec<Metric> {
    type Of = fn(&Reasoned) -> f64;
    let all: [(&'static str, Of); 9] = [
        ("majority", |r| f64::from(u8::from(r.majority_corrected))),
        ("per_path", |r| share(r, |p| p.corrected.correct)),
        ("majority_released_parser", |r| f64::from(u8::from(r.majority_released))),
        ("per_path_released_parser", |r| share(r, |p| p.released.correct)),
        ("any_path", |r| {
            f64::from(u8::from(r.paths.iter().any(|p| p.corrected.correct)))
        }),
        ("distinct_paths", |r| {
            r.paths.iter().map(|p| &p.text).collect::<HashSet<_>>().len() as f64 / r.paths.len().max(1) as f64
        }),
        ("closed", |r| share(r, |p| p.closed)),
        ("generated_tokens", |r| r.cost.generated_tokens as f64),
        ("read_tokens", |r| r.cost.read_tokens as f64),
    ];
    all.into_iter()
        .map(|(name, of)| Metric {
            name,
            values: rows
                .iter()
                .map(|row| Number {
                    question: row.problem.clone(),
                    method: row.method.clone(),
                    value: of(row),
                })
                .collect(),
        })
        .collect()
}

/// Majority and paths of every level; nothing for problems without levels.
fn by_level(problems: &Problems, rows: &[Reasoned], methods: &[String], seed: u64) -> Result<Option<Table>> {
    let mut all: Option<Table> = None;
    for level in problems.levels() {
        let of_level: HashSet<&str> = problems
            .all
            .iter()
            .filter(|problem| problem.level == Some(level))
            .map(|problem| problem.id.as_str())
            .collect();
        let here: Vec<Reasoned> = rows
            .iter()
            .filter(|row| of_level.contains(row.problem.as_str()))
            .cloned()
            .collect();
        let part = means("levels", methods, &metrics(&here)[..2], seed)?;
        let all = all.get_or_insert_with(|| {
            let first = std::iter::once(Column::text("level"));
            Table::new("levels", first.chain(part.columns.iter().cloned()).collect())
        });
        for row in part.rows {
            let first = Cell::from(level.to_string());
            all.push(std::iter::once(first).chain(row).collect())?;
        }
    }
    Ok(all)
}

fn timing(rows: &[Reasoned], methods: &[String]) -> Result<Table> {
    let columns = vec![
        Column::text("method"),
        Column::text("n"),
        Column::new("wall_mean_s", "s"),
    ];
    let mut table = Table::new("timing", columns);
    for method in methods {
        let times: Vec<f64> = rows
            .iter()
            .filter(|row| row.method == *method)
            .map(|row| row.wall_s)
            .collect();
        let mean = crate::bench::statistics::mean(&times);
        table.push(vec![
            method.as_str().into(),
            times.len().into(),
            mean.map_or_else(|| Cell::missing("not asked"), Cell::from),
        ])?;
    }
    Ok(table)
}

pub(super) fn run(args: &ReasonArgs, context: &Context) -> Result<Outcome> {
    let plan = plan(args, context)?;
    let names: Vec<String> = plan.methods.iter().map(|method| method.name().to_owned()).collect();
    if args.output.dry_run {
        let rows = vec![
            ("problems", plan.problems.all.len().to_string()),
            ("methods", names.join(", ")),
            ("paths of each", plan.settings.paths.to_string()),
        ];
        return print_plan(&plan.engine, &plan.config, rows, &args.output, context);
    }
    let mut run = Run::open(COMMAND, plan.config.clone(), &args.output, context)?;
    let outcome = reason(&plan, args, &mut run, context);
    if let Err(error) = &outcome
        && error.kind() != Kind::Interrupted
    {
        return outcome.map(|()| Outcome::Done);
    }
    let rows: Vec<Reasoned> = run.samples()?.iter().map(parsed).collect::<Result<_>>()?;
    let metrics = metrics(&rows);
    let seed = args.paths.seed;
    let mut tables = vec![means("methods", &names, &metrics, seed)?];
    tables.extend(by_level(&plan.problems, &rows, &names, seed)?);
    if let Some(reference) = names.first() {
        tables.push(differences("differences", reference, &names, &metrics[..6], seed)?);
    }
    let findings = Findings {
        tables,
        timing: Some(timing(&rows, &names)?),
        aggregates: aggregates(&names, &metrics, seed),
        ..Findings::default()
    };
    let data = match &plan.problems.sha256 {
        Some(hash) => Measured::Value(hash.clone()),
        None => Measured::missing("problems are made from the seed"),
    };
    run.finish(&plan.engine, outcome, data, &[("reason", seed)], findings)
}
