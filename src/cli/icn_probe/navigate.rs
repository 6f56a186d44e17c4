//! `tokselect icn-probe navigate`: many answers to list questions, by several methods.

use super::engine::{Besides, ClusterChoice, Engine, EngineArgs, JudgeArgs, QuestionArgs};
use super::navigation_arguments::NavigationArgs;
use super::run::{Findings, Run, Verdicts, parsed, print_plan};
use super::sweep::{self, Arm};
use crate::cli::Context;
use crate::cli::arguments::{OutputArgs, Switch};
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::kernels::cpu::Cpu;
use crate::probe::clusters::Clustering;
use crate::probe::completion::{Completer, Reading};
use crate::probe::geometry::{RoundGeometry, measure};
use crate::probe::key_space::Rows;
use crate::probe::lists::{Question, Questions};
use crate::probe::navigation::{Explorer, Found, Method, Round, Settings};
use crate::probe::navigation_report::{Exploration, report};
use crate::probe::prompts::Form;
use crate::probe::scores::{Answer, Scores};
use crate::random::stream_rng;
use crate::report::{Measured, Sample};
use clap::Args;
use rand::seq::SliceRandom;
use serde_json::{Map, Value, json};
use std::time::Instant;

const COMMAND: &str = "icn-probe navigate";
/// Asked where nothing else was said: enough for a first look, of several sizes.
const QUICK: [&str; 10] = [
    "countries",
    "us_states",
    "chemical_elements",
    "european_capitals",
    "languages",
    "mammals",
    "fruits",
    "sports",
    "colours",
    "trees",
];

/// Arguments of `tokselect icn-probe navigate`.
#[derive(Debug, Args)]
// `--rounds -1` is a wrong value, not an unknown flag `-1`.
#[command(allow_negative_numbers = true)]
pub struct NavigateArgs {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    questions: QuestionArgs,
    #[command(flatten)]
    navigation: NavigationArgs,
    #[command(flatten)]
    clusters: ClusterChoice,
    #[command(flatten)]
    judge: JudgeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

struct Plan {
    engine: Engine,
    questions: Questions,
    arms: Vec<Arm>,
    /// One, or those of a sweep.
    sizes: Vec<Settings>,
    config: Map<String, Value>,
}

/// Whether the geometry is measured: of icn alone.
fn measures_geometry(methods: &[Method], args: &NavigateArgs) -> bool {
    args.navigation.geometry == Switch::On && methods.contains(&Method::Icn)
}

/// Whether the keys are looked at.
fn needs_keys(methods: &[Method], args: &NavigateArgs) -> bool {
    let by_method = [Method::KeyProjection, Method::ClusterPenalty];
    measures_geometry(methods, args) || methods.iter().any(|method| by_method.contains(method))
}

fn plan(args: &NavigateArgs, context: &Context) -> Result<Plan> {
    let sizes = args.navigation.sweep()?;
    let judge = args.judge.config()?;
    let questions = args.questions.questions(&QUICK)?;
    let methods = args.navigation.methods(&Method::ALL)?;
    let arms = sweep::arms(&methods, &args.clusters.k)?;
    let batch = args.navigation.batch(&methods, args.engine.asking.batch);
    let besides = Besides {
        keys: needs_keys(&methods, args),
        clusters: args
            .clusters
            .made()
            .filter(|_| methods.contains(&Method::ClusterPenalty)),
        judging: args.judge.is_model(),
    };
    let engine = Engine::plan(&args.engine, sizes[0].max_new_tokens, batch, besides, context)?;
    for question in &questions.all {
        engine.check_instruction(Form::List, &question.instruction)?;
    }
    let mut config = engine.config(&args.engine);
    let mut put = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    put("questions", questions.all.iter().map(|q| json!(q.id)).collect());
    put("questions_sha256", json!(questions.sha256));
    put("methods", json!(methods));
    match &sizes[..] {
        [settings] => put("settings", json!(settings)),
        all => put("sizes", json!(all)),
    }
    put("geometry", json!(args.navigation.geometry == Switch::On));
    put("seed", json!(args.navigation.seed));
    put("seeds", json!(args.navigation.seeds));
    put("judge", judge);
    if methods.contains(&Method::ClusterPenalty) {
        put("clusters", args.clusters.config(&engine)?);
    }
    Ok(Plan {
        engine,
        questions,
        arms,
        sizes,
        config,
    })
}

/// Things that are no answer to `question`, in an order of the seed: members of the other built-in lists.
pub(super) fn unrelated(question: &Question, count: usize, seed: u64) -> Result<Vec<String>> {
    let mut names: Vec<String> = Questions::built_in()?
        .all
        .into_iter()
        .filter(|other| other.id != question.id)
        .flat_map(|other| other.answers)
        .filter(|name| question.find(name).is_none())
        .collect();
    names.sort();
    names.dedup();
    names.shuffle(&mut stream_rng(seed, &format!("placebo/{}", question.id)));
    // With more answers than there are names, the list comes round again.
    Ok(names.iter().cycle().take(count).cloned().collect())
}

/// What one exploration of a run needs.
struct Exploring<'a> {
    explorer: Explorer<'a>,
    keys: Option<&'a Rows>,
}

impl Exploring<'_> {
    fn explore(
        &self,
        completer: &mut Completer<'_, Cpu>,
        question: &Question,
        arm: &Arm,
        seed: u64,
    ) -> Result<(Vec<Found>, Exploration)> {
        let method = arm.method;
        // What the method before has left is no merit of this one.
        completer.forget();
        let started = Instant::now();
        let before = completer.cost();
        let unrelated = unrelated(question, self.explorer.settings.answers(), seed)?;
        let measured = self.keys.filter(|_| method == Method::Icn);
        let openings = self.first_tokens(question)?;
        let mut geometry = Vec::new();
        let (mut aside_s, mut aside) = (0.0, 0);
        let prompts = &self.explorer.prompts;
        let found = self.explorer.explore(
            completer,
            method,
            question,
            &unrelated,
            seed,
            &mut |completer, round| {
                let Some(keys) = measured else { return Ok(()) };
                let (started, before) = (Instant::now(), completer.cost());
                let start = completer.read(&prompts.with_list(&question.instruction, &[])?.ids)?;
                let placebo = prompts.with_list(&question.instruction, &unrelated[..round.listed])?;
                let placebo = completer.read(&placebo.ids)?;
                geometry.push(compared(keys, round, &start, &placebo, &openings));
                aside_s += started.elapsed().as_secs_f64();
                aside += completer.cost().since(before).read_tokens;
                Ok(())
            },
        )?;
        let mut cost = completer.cost().since(before);
        cost.read_tokens -= aside;
        let exploration = Exploration {
            question: question.id.clone(),
            method: arm.name.clone(),
            seed,
            list_size: question.answers.len(),
            first_tokens: openings.len(),
            complete_list: question.complete,
            scores: Scores::of(&[], question.answers.len()),
            cost,
            wall_s: started.elapsed().as_secs_f64() - aside_s,
            answers: Vec::new(),
            geometry: measured.is_some().then_some(geometry),
        };
        Ok((found, exploration))
    }

    /// First tokens of all members of the list, each once.
    fn first_tokens(&self, question: &Question) -> Result<Vec<u32>> {
        let prompts = &self.explorer.prompts;
        let start = prompts.with_list(&question.instruction, &[])?.ids;
        let mut firsts = Vec::new();
        for answer in &question.answers {
            firsts.extend(prompts.first_token(&question.instruction, &start, answer)?);
        }
        firsts.sort_unstable();
        firsts.dedup();
        Ok(firsts)
    }
}

fn compared(keys: &Rows, round: &Round<'_>, start: &Reading, placebo: &Reading, openings: &[u32]) -> RoundGeometry {
    let open: Vec<u32> = openings
        .iter()
        .copied()
        .filter(|id| !round.explored.contains(id))
        .collect();
    let of = |reading: &Reading| measure(reading, start, keys, round.explored, &open);
    RoundGeometry {
        round: round.number,
        listed: round.listed,
        explored: round.explored.len(),
        open: open.len(),
        start: of(start),
        navigated: of(round.navigated),
        placebo: of(placebo),
    }
}

/// Judges what was found and completes the exploration.
fn judged(
    found: Vec<Found>,
    mut exploration: Exploration,
    question: &Question,
    completer: &Completer<'_, Cpu>,
    verdicts: &mut Verdicts<'_>,
    run: &mut Run<'_>,
) -> Result<Exploration> {
    for found in found {
        let verdict = match &found.text {
            Some(text) => Some(verdicts.verdict(run, question, text)?),
            None => None,
        };
        exploration.answers.push(Answer {
            round: found.round,
            first_id: found.first,
            first: completer.texts().get(found.first).unwrap_or_default().to_owned(),
            tokens: found.tokens,
            correct: verdict.as_ref().is_some_and(|v| v.correct),
            member: verdict
                .and_then(|v| v.member)
                .filter(|member| found.text.as_ref() != Some(member)),
            text: found.text,
        });
    }
    exploration.scores = Scores::of(&exploration.answers, exploration.list_size);
    Ok(exploration)
}

/// An exploration that is still to be made.
struct Open<'a> {
    settings: &'a Settings,
    question: &'a Question,
    arm: &'a Arm,
    seed: u64,
    id: String,
}

fn open<'a>(plan: &'a Plan, args: &NavigateArgs, run: &mut Run<'_>) -> Vec<Open<'a>> {
    let mut all = Vec::new();
    for settings in &plan.sizes {
        for question in &plan.questions.all {
            for arm in &plan.arms {
                for seed in args.navigation.seeds_of(arm.method) {
                    let id = format!("{}{}/{seed}", sweep::prefix(&plan.sizes, settings), arm.name);
                    if !run.sink().is_done(&question.id, &id) {
                        all.push(Open {
                            settings,
                            question,
                            arm,
                            seed,
                            id,
                        });
                    }
                }
            }
        }
    }
    all
}

/// Explores whatever is not there yet.
fn explore(plan: &Plan, args: &NavigateArgs, run: &mut Run<'_>, context: &Context) -> Result<()> {
    let open = open(plan, args, run);
    if open.is_empty() {
        return Ok(());
    }
    let stopped = || context.interrupt.is_raised();
    let decoder = plan.engine.load(context)?;
    let methods: Vec<Method> = plan.arms.iter().map(|arm| arm.method).collect();
    let geometry = measures_geometry(&methods, args);
    let keys = needs_keys(&methods, args).then(|| plan.engine.keys()).transpose()?;
    let mut clusters: Vec<(&str, Clustering)> = Vec::new();
    for arm in plan.arms.iter().filter(|arm| arm.method == Method::ClusterPenalty) {
        if let Some(keys) = &keys {
            let first = args.navigation.seed;
            let made = args
                .clusters
                .clustering(arm.clusters, &plan.engine, keys, first, context)?;
            clusters.push((&arm.name, made));
        }
    }
    let mut completer = plan.engine.completer(&decoder, &stopped)?;
    let judge = args.judge.judge(&plan.engine, &decoder, &stopped)?;
    let mut verdicts = Verdicts::new(judge, run)?;
    let bar = context.printer.progress(open.len() as u64, COMMAND);
    for one in open {
        bar.set_message(&format!("{}, {}", one.question.id, one.arm.name));
        let of_arm = clusters.iter().find(|(name, _)| *name == one.arm.name);
        let exploring = Exploring {
            explorer: Explorer {
                prompts: plan.engine.prompts(Form::List),
                tokenizer: &plan.engine.tokenizer,
                clusters: of_arm.map(|(_, clustering)| clustering),
                keys: keys.as_ref(),
                settings: *one.settings,
            },
            keys: keys.as_ref().filter(|_| geometry),
        };
        let (found, exploration) = exploring.explore(&mut completer, one.question, one.arm, one.seed)?;
        let row = judged(found, exploration, one.question, &completer, &mut verdicts, run)?;
        let row = serde_json::to_value(row).map_err(|e| Error::bug(format!("a row as JSON: {e}")))?;
        run.sink().append(&one.question.id, &one.id, row)?;
        bar.advance(1);
    }
    Ok(())
}

/// What a run of one size shows.
fn findings(rows: &[Exploration], names: &[String], seed: u64) -> Result<Findings> {
    let mut found = report(rows, names, seed)?;
    Ok(Findings {
        timing: Some(found.timing),
        aggregates: found.aggregates,
        files: found
            .figure
            .take()
            .map(|svg| ("figure.svg".to_owned(), svg.into_bytes()))
            .into_iter()
            .collect(),
        tables: found.tables,
        more: found.more,
        ..Findings::default()
    })
}

/// What a sweep shows: the first table of every size in one, differences beside it.
fn sweep_findings(plan: &Plan, samples: &[Sample], names: &[String], seed: u64) -> Result<Findings> {
    let (mut means, mut differences, mut aggregates) = (Vec::new(), Vec::new(), Vec::new());
    for settings in &plan.sizes {
        let prefix = sweep::prefix(&plan.sizes, settings);
        let of_size = samples.iter().filter(|sample| sample.id.starts_with(&prefix));
        let rows: Vec<Exploration> = of_size.map(parsed).collect::<Result<_>>()?;
        let found = report(&rows, names, seed)?;
        for table in found.tables {
            match table.name.as_str() {
                "methods" => means.push((*settings, table)),
                "differences" => differences.push((*settings, table)),
                _ => {}
            }
        }
        aggregates.extend(found.aggregates.into_iter().map(|mut aggregate| {
            aggregate.name = format!("{prefix}{}", aggregate.name);
            aggregate
        }));
    }
    Ok(Findings {
        tables: vec![sweep::table("sweep", means)?],
        more: vec![sweep::table("sweep_differences", differences)?],
        aggregates,
        ..Findings::default()
    })
}

pub(super) fn run(args: &NavigateArgs, context: &Context) -> Result<Outcome> {
    let plan = plan(args, context)?;
    let names: Vec<String> = plan.arms.iter().map(|arm| arm.name.clone()).collect();
    if args.output.dry_run {
        let of = |size: &Settings| format!("{} x {} = {}", size.rounds, size.step, size.answers());
        let answers: Vec<String> = plan.sizes.iter().map(of).collect();
        let rows = vec![
            ("questions", plan.questions.all.len().to_string()),
            ("methods", names.join(", ")),
            ("answers of each", answers.join(", ")),
        ];
        return print_plan(&plan.engine, &plan.config, rows, &args.output, context);
    }
    let mut run = Run::open(COMMAND, plan.config.clone(), &args.output, context)?;
    let outcome = explore(&plan, args, &mut run, context);
    if let Err(error) = &outcome
        && error.kind() != crate::error::Kind::Interrupted
    {
        return outcome.map(|()| Outcome::Done);
    }
    let samples = run.samples()?;
    let seed = args.navigation.seed;
    let mut findings = if plan.sizes.len() == 1 {
        let rows: Vec<Exploration> = samples.iter().map(parsed).collect::<Result<_>>()?;
        findings(&rows, &names, seed)?
    } else {
        sweep_findings(&plan, &samples, &names, seed)?
    };
    findings.details.insert(
        "interval".into(),
        json!("percentile bootstrap over questions, 10000 resamples"),
    );
    let data = Measured::Value(plan.questions.sha256.clone());
    run.finish(
        &plan.engine,
        outcome,
        data,
        &[("navigate", args.navigation.seed)],
        findings,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unrelated_list_holds_no_answer_and_follows_the_seed() {
        let questions = Questions::built_in().expect("well formed");
        for question in &questions.all {
            let names = unrelated(question, 150, 3).expect("names");
            assert_eq!(names.len(), 150);
            assert!(
                names.iter().all(|name| question.find(name).is_none()),
                "{}",
                question.id
            );
        }
        let first = &questions.all[0];
        assert_eq!(
            unrelated(first, 9, 1).expect("names"),
            unrelated(first, 9, 1).expect("names")
        );
        assert_ne!(
            unrelated(first, 9, 1).expect("names"),
            unrelated(first, 9, 2).expect("names")
        );
    }
}
