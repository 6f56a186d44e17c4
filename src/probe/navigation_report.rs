//! Explorations of many questions as tables.

use super::comparison::{Metric, Value, aggregates, differences, means};
use super::completion::Cost;
use super::geometry::{Against, QueryGeometry, RoundGeometry};
use super::scores::{Answer, Scores, within};
use crate::bench::statistics::mean;
use crate::error::Result;
use crate::eval::statistics::Estimate;
use crate::report::svg::{Axes, Line, lines};
use crate::report::{Aggregate, Cell, Column, Table};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// One exploration: what a sample holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exploration {
    /// Which question.
    pub question: String,
    /// Name of the method.
    pub method: String,
    /// Seed of its draws.
    pub seed: u64,
    /// Members of the list.
    pub list_size: usize,
    /// Distinct first tokens of its members: a method that takes every first token once finds no more.
    pub first_tokens: usize,
    /// Whether the list claims to be complete.
    pub complete_list: bool,
    /// Scores of all answers.
    pub scores: Scores,
    /// Tokens read and generated.
    pub cost: Cost,
    /// Seconds, judging and geometry left out.
    pub wall_s: f64,
    /// The answers in their order.
    pub answers: Vec<Answer>,
    /// Of a navigated exploration whose geometry was asked for.
    pub geometry: Option<Vec<RoundGeometry>>,
}

/// Everything that a report shows.
pub struct NavigationReport {
    /// Printed and exported.
    pub tables: Vec<Table>,
    /// Exported only: long.
    pub more: Vec<Table>,
    /// Seconds.
    pub timing: Table,
    /// Means of all methods.
    pub aggregates: Vec<Aggregate>,
    /// Recall by the number of answers.
    pub figure: Option<String>,
}

fn metric(name: &'static str, rows: &[&Exploration], of: impl Fn(&Exploration) -> f64) -> Metric {
    let value = |row: &&Exploration| Value {
        question: row.question.clone(),
        method: row.method.clone(),
        value: of(row),
    };
    Metric {
        name,
        values: rows.iter().map(value).collect(),
    }
}

/// All numbers of the explorations. Equal cost: the first answers, as many as fit into the fewest generated tokens that any
/// method needed for the question.
fn metrics(rows: &[&Exploration]) -> Vec<Metric> {
    let mut budgets: HashMap<&str, usize> = HashMap::new();
    for row in rows {
        let budget = budgets.entry(row.question.as_str()).or_insert(usize::MAX);
        *budget = (*budget).min(row.cost.generated_tokens);
    }
    let at_equal_cost = |row: &Exploration| {
        let budget = budgets.get(row.question.as_str()).copied().unwrap_or(0);
        Scores::of(within(&row.answers, budget), row.list_size)
    };
    vec![
        metric("precision", rows, |r| r.scores.precision),
        metric("recall", rows, |r| r.scores.recall),
        metric("recall_at_equal_cost", rows, |r| at_equal_cost(r).recall),
        metric("distinct", rows, |r| r.scores.distinct),
        metric("precision_at_equal_cost", rows, |r| at_equal_cost(r).precision),
        metric("distinct_at_equal_cost", rows, |r| at_equal_cost(r).distinct),
        metric("new_and_right", rows, |r| r.scores.new_and_right),
        metric("map_at_10", rows, |r| r.scores.map_at_10),
        metric("unclosed", rows, |r| r.scores.unclosed),
        metric("recall_by_first_tokens", rows, |r| {
            r.first_tokens.min(r.answers.len()) as f64 / r.list_size.max(1) as f64
        }),
        metric("generated_tokens", rows, |r| r.cost.generated_tokens as f64),
        metric("read_tokens", rows, |r| r.cost.read_tokens as f64),
    ]
}

/// Tables of `rows`, methods in the order of `methods`, differences to the first of them.
pub fn report(rows: &[Exploration], methods: &[String], seed: u64) -> Result<NavigationReport> {
    let all: Vec<&Exploration> = rows.iter().collect();
    let complete: Vec<&Exploration> = rows.iter().filter(|row| row.complete_list).collect();
    let all_metrics = metrics(&all);
    let (first, rest) = all_metrics.split_at(FIRST);
    let mut tables = vec![
        means("methods", methods, first, seed)?,
        means("methods_more", methods, rest, seed)?,
    ];
    if let Some(reference) = methods.first() {
        let compared = &all_metrics[..COMPARED];
        tables.push(differences("differences", reference, methods, compared, seed)?);
    }
    let mut more = Vec::new();
    if !complete.is_empty() && complete.len() < all.len() {
        more.push(means(
            "methods_on_complete_lists",
            methods,
            &metrics(&complete)[..FIRST],
            seed,
        )?);
    }
    more.extend(geometry(rows, seed)?);
    Ok(NavigationReport {
        tables,
        more,
        timing: timing(&all, methods)?,
        aggregates: aggregates(methods, &all_metrics, seed),
        figure: figure(rows, methods)?,
    })
}

/// Metrics of the first table.
const FIRST: usize = 4;
/// Metrics whose differences are shown.
const COMPARED: usize = 6;

fn timing(rows: &[&Exploration], methods: &[String]) -> Result<Table> {
    let columns = [
        Column::text("method"),
        Column::text("n"),
        Column::new("wall_mean_s", "s"),
        Column::new("tokens_per_s", "1/s"),
    ];
    let mut table = Table::new("timing", columns.into());
    for method in methods {
        let here: Vec<&&Exploration> = rows.iter().filter(|row| row.method == *method).collect();
        let seconds: f64 = here.iter().map(|row| row.wall_s).sum();
        let tokens: f64 = here.iter().map(|row| row.cost.generated_tokens as f64).sum();
        let why = || Cell::missing("not asked");
        table.push(vec![
            method.as_str().into(),
            here.len().into(),
            if here.is_empty() {
                why()
            } else {
                (seconds / here.len() as f64).into()
            },
            if here.is_empty() {
                why()
            } else {
                (tokens / seconds).into()
            },
        ])?;
    }
    Ok(table)
}

/// What a list does to the query, round by round: means over questions and seeds, paired with the unrelated list.
fn geometry(rows: &[Exploration], seed: u64) -> Result<Option<Table>> {
    type Of = fn(&QueryGeometry) -> Option<f64>;
    fn explored(of: fn(&Against) -> f64, query: &QueryGeometry) -> Option<f64> {
        query.explored.as_ref().map(of)
    }
    fn open(of: fn(&Against) -> f64, query: &QueryGeometry) -> Option<f64> {
        query.open.as_ref().map(of)
    }
    let measures: [(&str, Of); 8] = [
        ("norm", |q| Some(q.norm)),
        ("cosine_to_start", |q| Some(q.cosine_to_start)),
        ("explored_dot", |q| explored(|a| a.dot, q)),
        ("explored_cosine", |q| explored(|a| a.cosine, q)),
        ("explored_mass", |q| explored(|a| a.mass, q)),
        ("open_dot", |q| open(|a| a.dot, q)),
        ("open_cosine", |q| open(|a| a.cosine, q)),
        ("open_mass", |q| open(|a| a.mass, q)),
    ];
    let all: Vec<&RoundGeometry> = rows.iter().flat_map(|row| row.geometry.iter().flatten()).collect();
    let rounds = all.iter().map(|g| g.round + 1).max().unwrap_or(0);
    if rounds < 2 {
        return Ok(None);
    }
    let columns = [
        "round",
        "measure",
        "n",
        "start",
        "navigated",
        "placebo",
        "navigated_minus_placebo",
        "low",
        "high",
    ];
    let mut table = Table::new("geometry", columns.map(Column::text).into());
    for round in 1..rounds {
        for (name, of) in measures {
            let here: Vec<[f64; 3]> = all
                .iter()
                .filter(|g| g.round == round)
                .filter_map(|g| Some([of(&g.start)?, of(&g.navigated)?, of(&g.placebo)?]))
                .collect();
            let column = |at: usize| mean(&here.iter().map(|values| values[at]).collect::<Vec<_>>());
            let pairs: Vec<f64> = here.iter().map(|values| values[1] - values[2]).collect();
            let estimate = Estimate::of(&pairs, seed, &format!("geometry/{round}/{name}"));
            let interval = estimate.and_then(|e| e.ci95);
            let cell = |value: Option<f64>| value.map_or_else(|| Cell::missing("no such token is left"), Cell::from);
            table.push(vec![
                round.into(),
                name.into(),
                here.len().into(),
                cell(column(0)),
                cell(column(1)),
                cell(column(2)),
                cell(estimate.map(|e| e.mean)),
                cell(interval.map(|ci| ci[0])),
                cell(interval.map(|ci| ci[1])),
            ])?;
        }
    }
    Ok(Some(table))
}

/// Recall after every tenth of the answers, mean over questions and seeds.
fn figure(rows: &[Exploration], methods: &[String]) -> Result<Option<String>> {
    let most = rows.iter().map(|row| row.answers.len()).max().unwrap_or(0);
    let step = most.div_ceil(10).max(1);
    let counts: Vec<usize> = (1..=most / step).map(|tenth| tenth * step).collect();
    if counts.len() < 2 {
        return Ok(None);
    }
    let line = |method: &String| {
        let here: Vec<&Exploration> = rows.iter().filter(|row| row.method == *method).collect();
        let point = |(place, &count): (usize, &usize)| {
            let of =
                |row: &&Exploration| Scores::of(&row.answers[..count.min(row.answers.len())], row.list_size).recall;
            let recalls: Vec<f64> = here.iter().map(of).collect();
            let error = crate::bench::statistics::standard_error(&recalls);
            mean(&recalls).map(|mean| (place, mean, error))
        };
        Line {
            name: method.clone(),
            points: counts.iter().enumerate().filter_map(point).collect(),
        }
    };
    let axes = Axes {
        title: "Recall of the closed list by the number of answers",
        x: "answers",
        y: "recall, with standard error over questions",
    };
    let labels: Vec<String> = counts.iter().map(usize::to_string).collect();
    lines(axes, &labels, &methods.iter().map(line).collect::<Vec<_>>()).map(Some)
}
