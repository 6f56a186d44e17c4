//! `tokselect icn-probe correlate`: are tokens near the winners' keys over-ranked?

use super::engine::{Besides, ClusterChoice, Engine, EngineArgs, JudgeArgs, QuestionArgs};
use super::run::{Findings, Run, Verdicts, parsed, print_plan};
use crate::cli::Context;
use crate::cli::arguments::{OutputArgs, at_least_one};
use crate::error::{Error, Kind, Result};
use crate::exit::Outcome;
use crate::kernels::cpu::Cpu;
use crate::probe::clusters::Clustering;
use crate::probe::completion::{Completer, Greedy};
use crate::probe::correlation::{CorrelationSettings, RankedAnswer, correlate, shuffle_rng};
use crate::probe::correlation_report::{Ranking, tables};
use crate::probe::key_space::Rows;
use crate::probe::lists::{Question, Questions};
use crate::probe::prompts::Form;
use crate::report::Measured;
use clap::Args;
use serde_json::{Map, Value, json};

const COMMAND: &str = "icn-probe correlate";

/// Arguments of `tokselect icn-probe correlate`.
#[derive(Debug, Args)]
// `--top -1` is a wrong value, not an unknown flag `-1`.
#[command(allow_negative_numbers = true)]
pub struct CorrelateArgs {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    questions: QuestionArgs,
    #[command(flatten)]
    ranking: RankingArgs,
    #[command(flatten)]
    clusters: ClusterChoice,
    #[command(flatten)]
    judge: JudgeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Ranking")]
struct RankingArgs {
    /// N: ranks that are completed and judged
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = at_least_one())]
    top: usize,
    /// K: ranks whose clusters are the winners'
    #[arg(long, default_value_t = 10, value_name = "K", value_parser = at_least_one())]
    winners: usize,
    /// Ranks at most this far apart are compared as equal
    #[arg(long, default_value_t = 5, value_name = "RANKS", value_parser = at_least_one())]
    window: usize,
    /// A cluster with more than this many times the mean size is a giant, counted apart
    #[arg(long, default_value_t = 5.0, value_name = "TIMES", value_parser = times)]
    giant: f64,
    /// Shuffled clusterings of equal sizes
    #[arg(long, default_value_t = 1000, value_name = "N")]
    shuffles: usize,
    /// Tokens that an answer may take
    #[arg(long, default_value_t = 64, value_name = "TOKENS", value_parser = at_least_one())]
    max_new_tokens: usize,
    /// Clusterings, of seeds counted up from --seed
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one())]
    seeds: usize,
    /// First seed, also of shuffles and resampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn times(text: &str) -> std::result::Result<f64, String> {
    text.parse()
        .ok()
        .filter(|x: &f64| *x > 0.0 && !x.is_nan())
        .ok_or_else(|| "pass a number above 0, such as 5".to_owned())
}

struct Plan {
    engine: Engine,
    questions: Questions,
    settings: CorrelationSettings,
    config: Map<String, Value>,
}

fn plan(args: &CorrelateArgs, context: &Context) -> Result<Plan> {
    let ranking = &args.ranking;
    if ranking.winners >= ranking.top {
        return Err(Error::user(format!(
            "`--winners {}` leaves no rank of `--top {}` to compare",
            ranking.winners, ranking.top
        ))
        .help("pass fewer winners or more ranks"));
    }
    if args.clusters.clusters.is_some() && ranking.seeds > 1 {
        return Err(Error::user(format!(
            "`--seeds {}` asks for several clusterings, and `--clusters` names the one to use",
            ranking.seeds
        ))
        .help("leave out one of the two"));
    }
    args.clusters.single()?;
    let judge = args.judge.config()?;
    let questions = args.questions.questions(&[])?;
    let batch = args.engine.asking.batch.min(ranking.top);
    let besides = Besides {
        keys: true,
        clusters: args.clusters.made(),
        judging: args.judge.is_model(),
    };
    let engine = Engine::plan(&args.engine, ranking.max_new_tokens, batch, besides, context)?;
    for question in &questions.all {
        engine.check_instruction(Form::List, &question.instruction)?;
    }
    let settings = CorrelationSettings {
        winners: ranking.winners,
        window: ranking.window,
        giant: ranking.giant,
        shuffles: ranking.shuffles,
    };
    let mut config = engine.config(&args.engine);
    let mut put = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    put("questions", questions.all.iter().map(|q| json!(q.id)).collect());
    put("questions_sha256", json!(questions.sha256));
    put("top", json!(ranking.top));
    put("settings", json!(settings));
    put("max_new_tokens", json!(ranking.max_new_tokens));
    put("seed", json!(ranking.seed));
    put("seeds", json!(ranking.seeds));
    put("judge", judge);
    put("clusters", args.clusters.config(&engine)?);
    Ok(Plan {
        engine,
        questions,
        settings,
        config,
    })
}

/// The ranks of a question, completed and judged.
fn rank(
    plan: &Plan,
    args: &RankingArgs,
    completer: &mut Completer<'_, Cpu>,
    question: &Question,
    judge: &mut dyn FnMut(&str) -> Result<bool>,
) -> Result<Vec<RankedAnswer>> {
    let prompt = plan
        .engine
        .prompts(Form::List)
        .with_list(&question.instruction, &[])?
        .ids;
    let logits = completer.read(&prompt)?.logits;
    let mut firsts = completer.texts().ranked(&logits);
    firsts.truncate(args.top);
    let completions = completer.complete(
        &prompt,
        &firsts,
        &Form::List.rule(),
        args.max_new_tokens,
        &mut Greedy::new()?,
    )?;
    let mut ranks = Vec::with_capacity(firsts.len());
    for (first, completion) in firsts.into_iter().zip(completions) {
        let said = plan.engine.tokenizer.decode(&completion.ids, true)?;
        let answer = Form::List.item(&said, completion.finish).map(str::to_owned);
        ranks.push(RankedAnswer {
            token: first,
            text: completer.texts().get(first).unwrap_or_default().to_owned(),
            correct: match &answer {
                Some(answer) => judge(answer)?,
                None => false,
            },
            answer,
        });
    }
    Ok(ranks)
}

fn clusterings(plan: &Plan, args: &CorrelateArgs, context: &Context) -> Result<Vec<(u64, Clustering)>> {
    let first = args.ranking.seed;
    let keys: Rows = plan.engine.keys()?;
    let seeds = first..first.saturating_add(args.ranking.seeds as u64);
    seeds
        .map(|seed| {
            let count = args.clusters.single()?;
            Ok((
                seed,
                args.clusters.clustering(count, &plan.engine, &keys, seed, context)?,
            ))
        })
        .collect()
}

fn measure(plan: &Plan, args: &CorrelateArgs, run: &mut Run<'_>, context: &Context) -> Result<()> {
    let open: Vec<&Question> = plan
        .questions
        .all
        .iter()
        .filter(|q| !run.sink().is_done(&q.id, "ranking"))
        .collect();
    if open.is_empty() {
        return Ok(());
    }
    let stopped = || context.interrupt.is_raised();
    let decoder = plan.engine.load(context)?;
    let clusterings = clusterings(plan, args, context)?;
    let mut completer = plan.engine.completer(&decoder, &stopped)?;
    let mut verdicts = Verdicts::new(args.judge.judge(&plan.engine, &decoder, &stopped)?, run)?;
    let bar = context.printer.progress(open.len() as u64, COMMAND);
    for question in open {
        bar.set_message(&question.id);
        let ranks = rank(plan, &args.ranking, &mut completer, question, &mut |answer| {
            verdicts.verdict(run, question, answer).map(|verdict| verdict.correct)
        })?;
        let of = |(seed, clustering): &(u64, Clustering)| {
            let mut rng = shuffle_rng(*seed, &question.id);
            let found = correlate(&ranks, &clustering.ids, clustering.clusters, &plan.settings, &mut rng);
            (*seed, found)
        };
        let ranking = Ranking {
            question: question.id.clone(),
            complete_list: question.complete,
            correlations: clusterings.iter().map(of).collect(),
            clusters: clusterings
                .first()
                .map(|(_, c)| ranks.iter().map(|rank| c.ids[rank.token as usize]).collect())
                .unwrap_or_default(),
            ranks,
        };
        let row = serde_json::to_value(ranking).map_err(|e| Error::bug(format!("a row as JSON: {e}")))?;
        run.sink().append(&question.id, "ranking", row)?;
        bar.advance(1);
    }
    Ok(())
}

pub(super) fn run(args: &CorrelateArgs, context: &Context) -> Result<Outcome> {
    let plan = plan(args, context)?;
    if args.output.dry_run {
        let rows = vec![
            ("questions", plan.questions.all.len().to_string()),
            ("ranks of each", args.ranking.top.to_string()),
            ("clusterings", args.ranking.seeds.to_string()),
        ];
        return print_plan(&plan.engine, &plan.config, rows, &args.output, context);
    }
    let mut run = Run::open(COMMAND, plan.config.clone(), &args.output, context)?;
    let outcome = measure(&plan, args, &mut run, context);
    if let Err(error) = &outcome
        && error.kind() != Kind::Interrupted
    {
        return outcome.map(|()| Outcome::Done);
    }
    let rows: Vec<Ranking> = run.samples()?.iter().map(parsed).collect::<Result<_>>()?;
    let findings = Findings {
        tables: tables(&rows, args.ranking.seed)?,
        ..Findings::default()
    };
    let data = Measured::Value(plan.questions.sha256.clone());
    run.finish(
        &plan.engine,
        outcome,
        data,
        &[("correlate", args.ranking.seed)],
        findings,
    )
}
