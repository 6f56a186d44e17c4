//! `tokselect icn-probe navigate`: many answers to list questions, by several methods.

use super::engine::{ClusterChoice, Engine, EngineArgs, JudgeArgs, QuestionArgs};
use super::run::{Findings, Run, Verdicts, parsed, print_plan};
use crate::cli::Context;
use crate::cli::arguments::{OutputArgs, Switch, at_least_one};
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::kernels::cpu::Cpu;
use crate::model::sampling::SamplingConfig;
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
use crate::report::Measured;
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

#[derive(Debug, Args)]
#[command(next_help_heading = "Navigation")]
pub(super) struct NavigationArgs {
    /// Methods to compare; differences are to the first [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METHODS")]
    methods: Vec<Method>,
    /// Queries; after each, what was found counts as explored
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = at_least_one())]
    rounds: usize,
    /// Answers of a round
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = at_least_one())]
    step: usize,
    /// Tokens that an answer may take
    #[arg(long, default_value_t = 64, value_name = "TOKENS", value_parser = at_least_one())]
    max_new_tokens: usize,
    /// Of the method temperature
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    temperature: f32,
    /// Of the method top-p, at temperature 1
    #[arg(long, default_value_t = 0.9, value_name = "P")]
    top_p: f32,
    /// Of the method diverse-beam: logarithm of probability per earlier group with the same token
    #[arg(long, default_value_t = 0.5, value_name = "X")]
    beam_penalty: f32,
    /// Of the method cluster-penalty: logits per explored token of the same cluster
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    cluster_penalty: f32,
    /// Of the method key-projection: share of the query's part in the span of explored keys that is taken away
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    projection: f32,
    /// Measure what the list does to the query, beside an unrelated list
    #[arg(long, value_enum, default_value = "on")]
    geometry: Switch,
    /// Seeds of the random methods, counted up from --seed; the others are asked once
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one())]
    pub seeds: usize,
    /// First seed, also of clusters and resampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

struct Plan {
    engine: Engine,
    questions: Questions,
    methods: Vec<Method>,
    settings: Settings,
    config: Map<String, Value>,
}

impl NavigationArgs {
    /// Sizes and strengths, checked.
    pub fn settings(&self) -> Result<Settings> {
        settings(self)
    }

    /// The methods in the order of the command line, each once; all of `known` where none was named.
    pub fn methods(&self, known: &[Method]) -> Result<Vec<Method>> {
        if let Some(other) = self.methods.iter().find(|method| !known.contains(method)) {
            let names: Vec<&str> = known.iter().map(|method| method.name()).collect();
            return Err(
                Error::user(format!("`--methods {}` is no method of this command", other.name()))
                    .help(format!("pass some of: {}", names.join(", "))),
            );
        }
        let asked = if self.methods.is_empty() { known } else { &self.methods };
        let mut methods = Vec::new();
        for method in asked {
            if !methods.contains(method) {
                methods.push(*method);
            }
        }
        Ok(methods)
    }

    /// Completions in one pass. The groups of a diverse beam choose one after the other, so all must be there.
    pub fn batch(&self, methods: &[Method], wanted: usize) -> usize {
        let answers = self.rounds * self.step;
        if methods.contains(&Method::DiverseBeam) {
            answers
        } else {
            wanted.min(answers)
        }
    }

    /// The seeds that `method` is asked with.
    pub fn seeds_of(&self, method: Method) -> std::ops::Range<u64> {
        let count = if method.is_random() { self.seeds as u64 } else { 1 };
        self.seed..self.seed.saturating_add(count)
    }
}

fn settings(args: &NavigationArgs) -> Result<Settings> {
    for (flag, value) in [
        ("--beam-penalty", args.beam_penalty),
        ("--cluster-penalty", args.cluster_penalty),
        ("--projection", args.projection),
    ] {
        if !value.is_finite() || value < 0.0 {
            return Err(Error::user(format!("`{flag} {value}` is out of range")).help("pass 0 or a positive number"));
        }
    }
    if args.temperature == 0.0 {
        return Err(Error::user("`--temperature 0` samples the same answer again and again")
            .help("pass a positive number such as 1"));
    }
    let sampling = SamplingConfig {
        temperature: args.temperature,
        top_p: Some(args.top_p),
        ..SamplingConfig::default()
    };
    sampling.validate()?;
    Ok(Settings {
        rounds: args.rounds,
        step: args.step,
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        beam_penalty: args.beam_penalty,
        cluster_penalty: args.cluster_penalty,
        projection: args.projection,
    })
}

fn plan(args: &NavigateArgs, context: &Context) -> Result<Plan> {
    let settings = args.navigation.settings()?;
    let judge = args.judge.config()?;
    let questions = args.questions.questions(&QUICK)?;
    let methods = args.navigation.methods(&Method::ALL)?;
    let batch = args.navigation.batch(&methods, args.engine.asking.batch);
    let engine = Engine::plan(&args.engine, settings.max_new_tokens, batch, context)?;
    let mut config = engine.config(&args.engine);
    let mut put = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    put("questions", questions.all.iter().map(|q| json!(q.id)).collect());
    put("questions_sha256", json!(questions.sha256));
    put("methods", json!(methods));
    put("settings", json!(settings));
    put("geometry", json!(args.navigation.geometry == Switch::On));
    put("seed", json!(args.navigation.seed));
    put("seeds", json!(args.navigation.seeds));
    put("judge", judge);
    if methods.contains(&Method::ClusterPenalty) {
        let choice = &args.clusters;
        let imported = choice.clusters.as_deref().map(Clustering::load).transpose()?;
        let imported = imported.map(|clustering| clustering.hash());
        put(
            "clusters",
            json!({"imported": imported, "k": choice.k, "distance": choice.distance}),
        );
    }
    Ok(Plan {
        engine,
        questions,
        methods,
        settings,
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
    plan: &'a Plan,
    explorer: Explorer<'a>,
    keys: Option<&'a Rows>,
}

impl Exploring<'_> {
    fn explore(
        &self,
        completer: &mut Completer<'_, Cpu>,
        question: &Question,
        method: Method,
        seed: u64,
    ) -> Result<(Vec<Found>, Exploration)> {
        // What the method before has left is no merit of this one.
        completer.forget();
        let started = Instant::now();
        let before = completer.cost();
        let unrelated = unrelated(question, self.plan.settings.answers(), seed)?;
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
            method: method.name().to_owned(),
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

/// Explores whatever is not there yet.
fn explore(plan: &Plan, args: &NavigateArgs, run: &mut Run<'_>, context: &Context) -> Result<()> {
    let first = args.navigation.seed;
    let mut open = Vec::new();
    for question in &plan.questions.all {
        for &method in &plan.methods {
            for seed in args.navigation.seeds_of(method) {
                let id = format!("{}/{seed}", method.name());
                if !run.sink().is_done(&question.id, &id) {
                    open.push((question, method, seed, id));
                }
            }
        }
    }
    if open.is_empty() {
        return Ok(());
    }
    let stopped = || context.interrupt.is_raised();
    let decoder = plan.engine.load(context)?;
    let needs = |method: Method| plan.methods.contains(&method);
    let geometry = args.navigation.geometry == Switch::On && needs(Method::Icn);
    let keys = (geometry || needs(Method::KeyProjection) || needs(Method::ClusterPenalty))
        .then(|| plan.engine.keys())
        .transpose()?;
    let clusters = match keys.as_ref().filter(|_| needs(Method::ClusterPenalty)) {
        Some(keys) => Some(args.clusters.clustering(&plan.engine, keys, first, context)?),
        None => None,
    };
    let exploring = Exploring {
        plan,
        explorer: Explorer {
            prompts: plan.engine.prompts(Form::List),
            tokenizer: &plan.engine.tokenizer,
            clusters: clusters.as_ref(),
            keys: keys.as_ref(),
            settings: plan.settings,
        },
        keys: keys.as_ref().filter(|_| geometry),
    };
    let mut completer = plan.engine.completer(&decoder, &stopped)?;
    let judge = args.judge.judge(&plan.engine, &decoder, &stopped)?;
    let mut verdicts = Verdicts::new(judge, run)?;
    let bar = context.printer.progress(open.len() as u64, COMMAND);
    for (question, method, seed, id) in open {
        bar.set_message(&format!("{}, {}", question.id, method.name()));
        let (found, exploration) = exploring.explore(&mut completer, question, method, seed)?;
        let row = judged(found, exploration, question, &completer, &mut verdicts, run)?;
        let row = serde_json::to_value(row).map_err(|e| Error::bug(format!("a row as JSON: {e}")))?;
        run.sink().append(&question.id, &id, row)?;
        bar.advance(1);
    }
    Ok(())
}

pub(super) fn run(args: &NavigateArgs, context: &Context) -> Result<Outcome> {
    let plan = plan(args, context)?;
    let names: Vec<String> = plan.methods.iter().map(|method| method.name().to_owned()).collect();
    if args.output.dry_run {
        let rows = vec![
            ("questions", plan.questions.all.len().to_string()),
            ("methods", names.join(", ")),
            ("answers of each", plan.settings.answers().to_string()),
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
    let rows: Vec<Exploration> = run
        .samples()?
        .iter()
        .map(parsed::<Exploration>)
        .collect::<Result<_>>()?;
    let mut found = report(&rows, &names, args.navigation.seed)?;
    let mut findings = Findings {
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
