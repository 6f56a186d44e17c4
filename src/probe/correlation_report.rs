//! Rankings of many questions as tables.

use super::correlation::{Correlation, Group, RankBin, RankedAnswer, WithShuffles, against_shuffles};
use crate::bench::statistics::mean;
use crate::error::Result;
use crate::eval::statistics::Estimate;
use crate::report::{Cell, Column, Table};
use serde::{Deserialize, Serialize};

/// A question's ranking under one or several clusterings: what a sample holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    /// Which question.
    pub question: String,
    /// Whether its list claims to be complete.
    pub complete_list: bool,
    /// Seed of each clustering, and what it shows.
    pub correlations: Vec<(u64, Correlation)>,
    /// Cluster of each rank in the first clustering.
    pub clusters: Vec<u32>,
    /// The ranks, best first.
    pub ranks: Vec<RankedAnswer>,
}

impl Ranking {
    /// A number of every clustering, averaged over those that have it.
    fn mean_of(&self, of: impl Fn(&Correlation) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.correlations.iter().filter_map(|(_, c)| of(c)).collect();
        mean(&values)
    }
}

fn cell(value: Option<f64>, why: &str) -> Cell {
    value.map_or_else(|| Cell::missing(why), Cell::from)
}

/// The tables of a report.
pub fn tables(rows: &[Ranking], seed: u64) -> Result<Vec<Table>> {
    Ok(vec![
        groups(rows, seed)?,
        differences(rows, seed)?,
        by_rank(rows, seed)?,
        precision_at(rows, seed)?,
        questions(rows)?,
    ])
}

fn groups(rows: &[Ranking], seed: u64) -> Result<Table> {
    type Of = fn(&Correlation) -> &Group;
    let all: [(&str, Of); 4] = [
        ("winners", |c| &c.winners),
        ("inside", |c| &c.inside),
        ("inside_giant", |c| &c.giant),
        ("outside", |c| &c.outside),
    ];
    let columns = ["group", "n", "precision", "low", "high", "mean_rank", "share_of_ranks"];
    let mut table = Table::new("groups", columns.map(Column::text).into());
    for (name, of) in all {
        let values: Vec<f64> = rows.iter().filter_map(|row| row.mean_of(|c| of(c).precision)).collect();
        let estimate = Estimate::of(&values, seed, &format!("groups/{name}"));
        let ranks: Vec<f64> = rows.iter().filter_map(|row| row.mean_of(|c| of(c).mean_rank)).collect();
        let share = |row: &Ranking| row.mean_of(|c| Some(of(c).n as f64 / row.ranks.len().max(1) as f64));
        let shares: Vec<f64> = rows.iter().filter_map(share).collect();
        let why = "no rank in it";
        table.push(vec![
            name.into(),
            values.len().into(),
            cell(estimate.map(|e| e.mean), why),
            cell(estimate.and_then(|e| e.ci95).map(|ci| ci[0]), why),
            cell(estimate.and_then(|e| e.ci95).map(|ci| ci[1]), why),
            cell(mean(&ranks), why),
            cell(mean(&shares), why),
        ])?;
    }
    Ok(table)
}

/// Precision inside less outside, raw and at equal rank, each beside shuffled clusters.
fn differences(rows: &[Ranking], seed: u64) -> Result<Table> {
    type Of = fn(&Correlation) -> Option<f64>;
    type Shuffled = fn(&Correlation) -> &[Option<f32>];
    const NONE: Shuffled = |_| &[];
    let all: [(&str, Of, Shuffled); 3] = [
        ("inside_and_giants_less_outside", |c| c.difference_with_giants, NONE),
        ("inside_less_outside", |c| c.difference, |c| &c.shuffled),
        (
            "inside_less_outside_at_equal_rank",
            |c| c.matched_difference,
            |c| &c.shuffled_matched,
        ),
    ];
    let columns = [
        "comparison",
        "n",
        "difference",
        "low",
        "high",
        "below_0",
        "above_0",
        "of_shuffled_clusters",
        "p_against_shuffles",
    ];
    let mut table = Table::new("differences", columns.map(Column::text).into());
    let clusterings = rows.first().map_or(0, |row| row.correlations.len());
    for (name, of, shuffled) in all {
        let values: Vec<f64> = rows.iter().filter_map(|row| row.mean_of(of)).collect();
        let estimate = Estimate::of(&values, seed, &format!("differences/{name}"));
        // One test for each clustering; the middle one is shown, because p-values are not averaged.
        let of_clustering = |at: usize| {
            let here = rows.iter().filter_map(|row| row.correlations.get(at));
            let here: Vec<WithShuffles<'_>> = here.map(|(_, c)| (of(c), shuffled(c))).collect();
            against_shuffles(&here)
        };
        let tests: Vec<(f64, f64)> = (0..clusterings).filter_map(of_clustering).collect();
        let middle = |values: Vec<f64>| crate::bench::statistics::median(&values);
        let why = "no question has both groups";
        table.push(vec![
            name.into(),
            values.len().into(),
            cell(estimate.map(|e| e.mean), why),
            cell(estimate.and_then(|e| e.ci95).map(|ci| ci[0]), why),
            cell(estimate.and_then(|e| e.ci95).map(|ci| ci[1]), why),
            values.iter().filter(|v| **v < 0.0).count().into(),
            values.iter().filter(|v| **v > 0.0).count().into(),
            cell(middle(tests.iter().map(|t| t.1).collect()), "not shuffled"),
            cell(middle(tests.iter().map(|t| t.0).collect()), "not shuffled"),
        ])?;
    }
    Ok(table)
}

/// Precision inside and outside in bins of ten ranks; the difference is of questions that have both there.
fn by_rank(rows: &[Ranking], seed: u64) -> Result<Table> {
    let columns = [
        "ranks",
        "inside_n",
        "inside",
        "outside_n",
        "outside",
        "n",
        "difference",
        "low",
        "high",
    ];
    let mut table = Table::new("by_rank", columns.map(Column::text).into());
    let of_first = rows.iter().filter_map(|row| Some(&row.correlations.first()?.1.by_rank));
    let longest = of_first.max_by_key(|bins| bins.len());
    for (at, bin) in longest.into_iter().flatten().enumerate() {
        type Of = fn(&RankBin) -> Option<f64>;
        let values = |of: Of| -> Vec<f64> {
            let of_row = |row: &Ranking| row.mean_of(|c| c.by_rank.get(at).and_then(of));
            rows.iter().filter_map(of_row).collect()
        };
        let (inside, outside) = (values(|bin| bin.inside.precision), values(|bin| bin.outside.precision));
        let pairs = values(|bin| Some(bin.inside.precision? - bin.outside.precision?));
        let name = format!("{} to {}", bin.ranks[0], bin.ranks[1]);
        let estimate = Estimate::of(&pairs, seed, &format!("by_rank/{name}"));
        let interval = estimate.and_then(|e| e.ci95);
        let why = "no rank in it";
        table.push(vec![
            name.into(),
            inside.len().into(),
            cell(mean(&inside), why),
            outside.len().into(),
            cell(mean(&outside), why),
            pairs.len().into(),
            cell(estimate.map(|e| e.mean), "no question has both groups"),
            cell(interval.map(|ci| ci[0]), "fewer than 2 questions"),
            cell(interval.map(|ci| ci[1]), "fewer than 2 questions"),
        ])?;
    }
    Ok(table)
}

/// Precision@1..K and MAP as the released code defines it.
fn precision_at(rows: &[Ranking], seed: u64) -> Result<Table> {
    let columns = ["measure", "n", "mean", "low", "high"];
    let mut table = Table::new("precision_at", columns.map(Column::text).into());
    let k = rows
        .first()
        .and_then(|row| row.correlations.first())
        .map_or(0, |(_, c)| c.precision_at.len());
    let mut push = |name: String, values: Vec<f64>| {
        let estimate = Estimate::of(&values, seed, &name);
        table.push(vec![
            name.into(),
            values.len().into(),
            cell(estimate.map(|e| e.mean), "no question"),
            cell(estimate.and_then(|e| e.ci95).map(|ci| ci[0]), "fewer than 2 questions"),
            cell(estimate.and_then(|e| e.ci95).map(|ci| ci[1]), "fewer than 2 questions"),
        ])
    };
    for at in 0..k {
        let of = |row: &Ranking| row.mean_of(|c| c.precision_at.get(at).copied());
        push(format!("precision@{}", at + 1), rows.iter().filter_map(of).collect())?;
    }
    push(
        "map_at_10".into(),
        rows.iter()
            .filter_map(|row| row.mean_of(|c| Some(c.map_at_10)))
            .collect(),
    )?;
    Ok(table)
}

fn questions(rows: &[Ranking]) -> Result<Table> {
    let columns = [
        "question",
        "complete_list",
        "precision_winners",
        "precision_inside",
        "precision_giant",
        "precision_outside",
        "inside",
        "giant",
        "outside",
        "difference",
        "matched_difference",
    ];
    let mut table = Table::new("questions", columns.map(Column::text).into());
    for row in rows {
        let why = "no rank in it";
        let number = |of: fn(&Correlation) -> Option<f64>| cell(row.mean_of(of), why);
        table.push(vec![
            row.question.as_str().into(),
            row.complete_list.into(),
            number(|c| c.winners.precision),
            number(|c| c.inside.precision),
            number(|c| c.giant.precision),
            number(|c| c.outside.precision),
            number(|c| Some(c.inside.n as f64)),
            number(|c| Some(c.giant.n as f64)),
            number(|c| Some(c.outside.n as f64)),
            number(|c| c.difference),
            number(|c| c.matched_difference),
        ])?;
    }
    Ok(table)
}
