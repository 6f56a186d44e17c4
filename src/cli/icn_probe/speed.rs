//! `tokselect icn-probe speed`: the same completions three ways, with a check that they say the same.

use super::engine::{Besides, Engine, EngineArgs};
use super::run::{Findings, Run, print_plan};
use crate::cli::Context;
use crate::cli::arguments::{OutputArgs, at_least_one};
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::probe::completion::{Completion, Greedy, Simple, StopRule};
use crate::probe::prompts::Form;
use crate::report::{Cell, Column, Measured, Table};
use clap::Args;
use serde_json::json;
use std::time::Instant;

const COMMAND: &str = "icn-probe speed";

/// Arguments of `tokselect icn-probe speed`.
#[derive(Debug, Args)]
// `--completions -1` is a wrong value, not an unknown flag `-1`.
#[command(allow_negative_numbers = true)]
pub struct SpeedArgs {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Work")]
struct WorkArgs {
    /// What is asked
    #[arg(long, default_value = "Please show me some countries.", value_name = "TEXT")]
    instruction: String,
    /// Completions: the best first tokens, each decoded greedily
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = at_least_one())]
    completions: usize,
    /// Tokens of each; none ends earlier
    #[arg(long, default_value_t = 64, value_name = "TOKENS", value_parser = at_least_one())]
    max_new_tokens: usize,
    /// How many of them are decoded one by one, with and without stored keys [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    singly: Option<usize>,
}

/// One way and its time.
struct Timed {
    way: &'static str,
    completions: Vec<Completion>,
    seconds: f64,
}

/// A row for each way.
fn table(ways: &[Timed]) -> Result<Table> {
    let columns = vec![
        Column::text("way"),
        Column::text("completions"),
        Column::text("tokens"),
        Column::new("wall_s", "s"),
        Column::new("completion_s", "s"),
        Column::text("times_as_fast_as_re_encoding"),
        Column::text("same_as_one_by_one"),
    ];
    let mut table = Table::new("speed", columns);
    let per_completion = |timed: &Timed| timed.seconds / timed.completions.len().max(1) as f64;
    let slowest = ways.last().map_or(0.0, per_completion);
    let single = &ways[1].completions;
    for timed in ways {
        let tokens: usize = timed.completions.iter().map(|c| c.ids.len()).sum();
        let same = timed
            .completions
            .iter()
            .zip(single)
            .filter(|(a, b)| a.ids == b.ids)
            .count();
        table.push(vec![
            timed.way.into(),
            timed.completions.len().into(),
            tokens.into(),
            timed.seconds.into(),
            per_completion(timed).into(),
            (slowest / per_completion(timed)).into(),
            Cell::from(format!("{same} of {}", single.len())),
        ])?;
    }
    Ok(table)
}

pub(super) fn run(args: &SpeedArgs, context: &Context) -> Result<Outcome> {
    let work = &args.work;
    let batch = args.engine.asking.batch.min(work.completions);
    let engine = Engine::plan(&args.engine, work.max_new_tokens, batch, Besides::default(), context)?;
    let prompt = engine.prompts(Form::List).with_list(&work.instruction, &[])?.ids;
    let mut config = engine.config(&args.engine);
    config.insert("instruction".into(), json!(work.instruction));
    config.insert("completions".into(), json!(work.completions));
    config.insert("singly".into(), json!(work.singly));
    if args.output.dry_run {
        let rows = vec![("completions", work.completions.to_string())];
        return print_plan(&engine, &config, rows, &args.output, context);
    }
    let run = Run::open(COMMAND, config, &args.output, context)?;
    let stopped = || context.interrupt.is_raised();
    let decoder = engine.load(context)?;
    let mut completer = engine.completer(&decoder, &stopped)?;
    let mut firsts = completer.texts().ranked(&completer.read(&prompt)?.logits);
    firsts.truncate(work.completions);
    let singly = work.singly.unwrap_or(firsts.len()).min(firsts.len());
    let rule = StopRule::default();
    let most = work.max_new_tokens;
    let mut ways = Vec::new();

    let started = Instant::now();
    let completions = completer.complete(&prompt, &firsts, &rule, most, &mut Greedy::new()?)?;
    ways.push(Timed {
        way: "batched",
        completions,
        seconds: started.elapsed().as_secs_f64(),
    });
    for (way, simple) in [("one by one", Simple::Cached), ("re-encoded", Simple::Reencoded)] {
        let bar = context.printer.progress(singly as u64, way);
        let started = Instant::now();
        let mut completions = Vec::new();
        for &first in &firsts[..singly] {
            completions.push(completer.complete_simply(&prompt, first, &rule, most, simple)?);
            bar.advance(1);
        }
        ways.push(Timed {
            way,
            completions,
            seconds: started.elapsed().as_secs_f64(),
        });
    }

    let table = table(&ways)?;
    let single = &ways[1].completions;
    let mut findings = Findings {
        tables: vec![table],
        ..Findings::default()
    };
    let texts: Vec<String> = ways[0]
        .completions
        .iter()
        .map(|c| engine.tokenizer.decode(&c.ids, false))
        .collect::<Result<_>>()?;
    findings.details.insert("prompt_ids".into(), json!(prompt));
    findings.details.insert("texts".into(), json!(texts));
    let ids: Vec<&Vec<u32>> = ways[0].completions.iter().map(|c| &c.ids).collect();
    findings.details.insert("ids".into(), json!(ids));
    let differing = ways[0]
        .completions
        .iter()
        .zip(single)
        .filter(|(a, b)| a.ids != b.ids)
        .count();
    let outcome = run.finish(&engine, Ok(()), Measured::missing("one instruction"), &[], findings)?;
    if differing > 0 {
        return Err(Error::acceptance(format!(
            "{differing} of {} completions differ between the batch and one-by-one decoding",
            single.len()
        ))
        .note("two likeliest tokens as good as equal may change places, because products are summed in another order")
        .help("compare the texts under `details` of `--format json`"));
    }
    Ok(outcome)
}
