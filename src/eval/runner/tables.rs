//! From records to tables: accuracy with its error, difference to the reference, accuracy by depth, times.

use super::{Grid, Record, Records};
use crate::bench::statistics::mean;
use crate::error::Result;
use crate::eval::statistics::{Estimate, paired};
use crate::report::{Aggregate, Cell, Column, Table};
use rayon::prelude::*;
use std::collections::HashMap;

/// Everything a report says about a run. All but `timing` is a function of the answers alone.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// `accuracy`, `summary` where there are several tasks or lengths, `by_depth` where depths were asked for.
    pub tables: Vec<Table>,
    /// One per variant, over all its samples.
    pub aggregates: Vec<Aggregate>,
    /// Median times by task, length and variant.
    pub timing: Table,
    /// Accuracy over length; empty with fewer than two lengths.
    pub lines: Vec<Lines>,
    /// Accuracy over length and depth.
    pub heats: Vec<Heat>,
}

/// Accuracy of one variant over length, averaged over tasks: for a line plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines {
    /// The variant.
    pub variant: String,
    /// (length in tokens, score, standard error), by length.
    pub points: Vec<(usize, f64, Option<f64>)>,
}

/// Scores by length and depth of one variant in one task.
#[derive(Debug, Clone, PartialEq)]
pub struct Heat {
    /// The task.
    pub task: String,
    /// The variant.
    pub variant: String,
    /// Lengths in tokens, ascending: the columns.
    pub lengths: Vec<usize>,
    /// Depths, ascending: the rows.
    pub depths: Vec<f64>,
    /// Mean score by `[depth][length]`; `None` where nothing was answered.
    pub scores: Vec<Vec<Option<f64>>>,
}

/// Samples of one task and length (all depths) with the records of each variant.
struct Cells<'a> {
    grid: &'a Grid,
    task: usize,
    length: Option<usize>,
    /// By variant, in the order of cell and index.
    records: Vec<Vec<&'a Record>>,
}

impl<'a> Cells<'a> {
    /// Records by task and length, in the order of the grid.
    fn of(grid: &'a Grid, records: &'a mut Records) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        let mut group_of = Vec::with_capacity(grid.cells.len());
        for cell in &grid.cells {
            let known = groups
                .iter()
                .position(|g| g.task == cell.task && g.length == cell.length);
            group_of.push(known.unwrap_or_else(|| {
                groups.push(Self {
                    grid,
                    task: cell.task,
                    length: cell.length,
                    records: vec![Vec::new(); grid.variants.len()],
                });
                groups.len() - 1
            }));
        }
        for record in records.in_order() {
            groups[group_of[record.cell as usize]].records[record.variant as usize].push(record);
        }
        groups
    }

    fn task_name(&self) -> &str {
        self.grid.tasks[self.task].name()
    }

    fn scores(&self, variant: usize, metric: usize) -> Vec<f64> {
        let records = self.records[variant].iter();
        records
            .filter_map(|r| r.scores.as_ref()?.get(metric).copied())
            .collect()
    }

    /// Scores of `variant` beside those of `reference` for the samples that both have.
    fn pairs(&self, variant: usize, reference: usize, metric: usize) -> Vec<(f64, f64)> {
        let score = |record: &Record| record.scores.as_ref()?.get(metric).copied();
        let others: HashMap<(u32, u32), f64> = self.records[reference]
            .iter()
            .filter_map(|r| Some(((r.cell, r.index), score(r)?)))
            .collect();
        let records = self.records[variant].iter();
        records
            .filter_map(|r| Some((score(r)?, *others.get(&(r.cell, r.index))?)))
            .collect()
    }

    fn label(&self) -> Vec<Cell> {
        vec![self.task_name().into(), length_cell(self.length)]
    }

    fn stream(&self, what: &str, variant: usize, metric: &str) -> String {
        let length = self.length.unwrap_or(0);
        format!(
            "{what}/{}/{length}/{}/{metric}",
            self.task_name(),
            self.grid.variants[variant]
        )
    }
}

fn length_cell(length: Option<usize>) -> Cell {
    length.map_or_else(|| Cell::missing("as loaded"), Cell::from)
}

fn number(value: Option<f64>, why: &str) -> Cell {
    value.map_or_else(|| Cell::missing(why), Cell::from)
}

impl Statistics {
    /// Statistics of `records`; differences are taken to the variant `reference`.
    pub fn of(grid: &Grid, records: &mut Records, reference: Option<usize>) -> Result<Self> {
        let groups = Cells::of(grid, records);
        let mut tables = vec![accuracy(&groups, reference)?];
        tables.extend(summary(grid, &groups)?);
        tables.extend(by_depth(grid, &groups)?);
        Ok(Self {
            tables,
            aggregates: aggregates(grid, &groups),
            timing: timing(&groups)?,
            lines: lines(grid, &groups),
            heats: heats(grid, &groups),
        })
    }
}

fn accuracy(groups: &[Cells<'_>], reference: Option<usize>) -> Result<Table> {
    let columns = [
        ("task", ""),
        ("length_tokens", "tokens"),
        ("variant", ""),
        ("metric", ""),
        ("n", ""),
        ("mean", ""),
        ("standard_error", ""),
        ("ci95_low", ""),
        ("ci95_high", ""),
        ("difference", ""),
        ("difference_ci95_low", ""),
        ("difference_ci95_high", ""),
        ("pairs", ""),
        ("empty_answers", ""),
        ("not_asked", ""),
    ];
    let mut table = Table::new("accuracy", columns.map(|(key, unit)| Column::new(key, unit)).into());
    // Ten thousand resamples each; the order of rows is kept.
    let rows: Vec<Vec<Vec<Cell>>> = groups
        .par_iter()
        .map(|group| {
            (0..group.records.len())
                .flat_map(|variant| accuracy_rows(group, variant, reference))
                .collect()
        })
        .collect();
    for row in rows.into_iter().flatten() {
        table.push(row)?;
    }
    Ok(table)
}

/// The rows of one variant, one per metric.
fn accuracy_rows(group: &Cells<'_>, variant: usize, reference: Option<usize>) -> Vec<Vec<Cell>> {
    let seed = group.grid.seed;
    let metrics = group.grid.tasks[group.task].metrics().iter().enumerate();
    let records = &group.records[variant];
    let rows = metrics.map(|(at, metric)| {
        let estimate = Estimate::of(
            &group.scores(variant, at),
            seed,
            &group.stream("mean", variant, metric.name),
        );
        let (difference, why) = match reference {
            None => (None, "no reference"),
            Some(reference) if reference == variant => (None, "the reference"),
            Some(reference) => {
                let pairs = group.pairs(variant, reference, at);
                let stream = group.stream("difference", variant, metric.name);
                (paired(&pairs, seed, &stream), "no sample in common")
            }
        };
        let none = "no answer";
        let few = "fewer than 2 samples";
        let bound = |estimate: Option<Estimate>, side: usize, why: &str| match estimate {
            None => Cell::missing(why),
            Some(estimate) => number(estimate.ci95.map(|ci| ci[side]), few),
        };
        let mut row = group.label();
        row.extend([
            group.grid.variants[variant].as_str().into(),
            metric.name.into(),
            estimate.map_or(0, |e| e.n).into(),
            number(estimate.map(|e| e.mean), none),
            estimate.map_or_else(|| Cell::missing(none), |e| number(e.standard_error, few)),
            bound(estimate, 0, none),
            bound(estimate, 1, none),
            number(difference.map(|d| d.mean), why),
            bound(difference, 0, why),
            bound(difference, 1, why),
            difference.map_or_else(|| Cell::missing(why), |d| d.n.into()),
            records.iter().filter(|r| r.empty).count().into(),
            records.iter().filter(|r| r.scores.is_none()).count().into(),
        ]);
        row
    });
    rows.collect()
}

/// Mean of a variant at one length: over tasks, of each task's mean of its first metric. With the standard error that
/// independent tasks give.
fn over_tasks(groups: &[Cells<'_>], length: Option<usize>, variant: usize) -> Option<(f64, Option<f64>)> {
    let here = groups.iter().filter(|group| group.length == length);
    let estimates: Vec<(f64, Option<f64>)> = here
        .map(|group| {
            let scores = group.scores(variant, 0);
            Some((mean(&scores)?, crate::bench::statistics::standard_error(&scores)))
        })
        // A mean over some of the tasks is not comparable with one over all of them.
        .collect::<Option<_>>()?;
    let means: Vec<f64> = estimates.iter().map(|(mean, _)| *mean).collect();
    let variance: Option<f64> = estimates.iter().map(|(_, error)| error.map(|e| e * e)).sum();
    Some((
        mean(&means)?,
        variance.map(|variance| variance.sqrt() / means.len() as f64),
    ))
}

fn lengths(groups: &[Cells<'_>]) -> Vec<Option<usize>> {
    let mut lengths: Vec<_> = groups.iter().map(|group| group.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// Variant x length, averaged over tasks.
fn summary(grid: &Grid, groups: &[Cells<'_>]) -> Result<Option<Table>> {
    let lengths = lengths(groups);
    if groups.len() < 2 {
        return Ok(None);
    }
    let mut columns = vec![Column::text("variant")];
    columns.extend(lengths.iter().map(|length| match length {
        Some(length) => Column::text(format!("{length}")),
        None => Column::text("as loaded"),
    }));
    columns.push(Column::text("mean"));
    let mut table = Table::new("summary", columns);
    for (variant, name) in grid.variants.iter().enumerate() {
        let means: Vec<Option<f64>> = lengths
            .iter()
            .map(|&length| over_tasks(groups, length, variant).map(|(mean, _)| mean))
            .collect();
        let overall = means.iter().copied().collect::<Option<Vec<f64>>>();
        let why = "not all tasks were answered";
        let mut row = vec![name.as_str().into()];
        row.extend(means.iter().map(|&mean| number(mean, why)));
        row.push(number(overall.and_then(|means| mean(&means)), why));
        table.push(row)?;
    }
    Ok(Some(table))
}

fn by_depth(grid: &Grid, groups: &[Cells<'_>]) -> Result<Option<Table>> {
    if grid.cells.iter().all(|cell| cell.depth.is_none()) {
        return Ok(None);
    }
    let columns = [
        ("task", ""),
        ("length_tokens", "tokens"),
        ("depth", ""),
        ("variant", ""),
        ("n", ""),
        ("mean", ""),
    ];
    let mut table = Table::new("by_depth", columns.map(|(key, unit)| Column::new(key, unit)).into());
    for group in groups {
        for (at, cell) in (0u32..).zip(&grid.cells) {
            let (true, Some(depth)) = (cell.task == group.task && cell.length == group.length, cell.depth) else {
                continue;
            };
            for (variant, name) in grid.variants.iter().enumerate() {
                let scores = scores_of_cell(group, variant, at);
                let mut row = group.label();
                row.extend([
                    depth.into(),
                    name.as_str().into(),
                    scores.len().into(),
                    number(mean(&scores), "no answer"),
                ]);
                table.push(row)?;
            }
        }
    }
    Ok(Some(table))
}

fn scores_of_cell(group: &Cells<'_>, variant: usize, cell: u32) -> Vec<f64> {
    let records = group.records[variant].iter().filter(|r| r.cell == cell);
    records.filter_map(|r| r.scores.as_ref()?.first().copied()).collect()
}

fn aggregates(grid: &Grid, groups: &[Cells<'_>]) -> Vec<Aggregate> {
    let over_all = |(variant, name): (usize, &String)| {
        let scores: Vec<f64> = groups.iter().flat_map(|group| group.scores(variant, 0)).collect();
        let mut aggregate = Aggregate::of(format!("score/{name}"), "", &scores);
        let estimate = Estimate::of(&scores, grid.seed, &format!("all/{name}"));
        aggregate.ci95 = estimate.and_then(|estimate| estimate.ci95);
        aggregate
    };
    grid.variants.iter().enumerate().map(over_all).collect()
}

fn timing(groups: &[Cells<'_>]) -> Result<Table> {
    let columns = [
        ("task", ""),
        ("length_tokens", "tokens"),
        ("variant", ""),
        ("n", ""),
        ("wall_median_s", "s"),
        ("prefill_median_s", "s"),
        ("ttft_median_s", "s"),
        ("tpot_median_s", "s"),
        ("peak_rss_bytes", "bytes"),
    ];
    let mut table = Table::new("timing", columns.map(|(key, unit)| Column::new(key, unit)).into());
    for group in groups {
        for (variant, name) in group.grid.variants.iter().enumerate() {
            let median = |of: fn(&Record) -> Option<f64>| {
                let values: Vec<f64> = group.records[variant].iter().filter_map(|r| of(r)).collect();
                number(crate::bench::statistics::median(&values), "not measured")
            };
            let peaks = group.records[variant].iter().filter_map(|r| r.cost.peak_rss_bytes);
            let largest = peaks.max();
            let mut row = group.label();
            row.extend([
                name.as_str().into(),
                group.records[variant].len().into(),
                median(|r| r.cost.wall_s),
                median(|r| r.cost.prefill_s),
                median(|r| r.cost.ttft_s),
                median(|r| r.cost.tpot_s),
                number(largest.map(|bytes| bytes as f64), "not measured"),
            ]);
            table.push(row)?;
        }
    }
    Ok(table)
}

fn lines(grid: &Grid, groups: &[Cells<'_>]) -> Vec<Lines> {
    let lengths: Vec<usize> = lengths(groups).into_iter().flatten().collect();
    if lengths.len() < 2 {
        return Vec::new();
    }
    let line = |(variant, name): (usize, &String)| {
        let point = |&length: &usize| {
            let (mean, error) = over_tasks(groups, Some(length), variant)?;
            Some((length, mean, error))
        };
        Lines {
            variant: name.clone(),
            points: lengths.iter().filter_map(point).collect(),
        }
    };
    grid.variants.iter().enumerate().map(line).collect()
}

fn heats(grid: &Grid, groups: &[Cells<'_>]) -> Vec<Heat> {
    let mut heats = Vec::new();
    for (task, asked) in grid.tasks.iter().enumerate() {
        let cells = || (0u32..).zip(&grid.cells).filter(move |(_, cell)| cell.task == task);
        let mut lengths: Vec<usize> = cells().filter_map(|(_, cell)| cell.length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let mut depths: Vec<f64> = cells().filter_map(|(_, cell)| cell.depth).collect();
        depths.sort_by(f64::total_cmp);
        depths.dedup();
        if lengths.is_empty() || depths.is_empty() {
            continue;
        }
        for (variant, name) in grid.variants.iter().enumerate() {
            let score = |depth: f64, length: usize| {
                let (at, _) = cells().find(|(_, c)| c.length == Some(length) && c.depth == Some(depth))?;
                let group = groups.iter().find(|g| g.task == task && g.length == Some(length))?;
                mean(&scores_of_cell(group, variant, at))
            };
            heats.push(Heat {
                task: asked.name().to_owned(),
                variant: name.clone(),
                scores: depths
                    .iter()
                    .map(|&depth| lengths.iter().map(|&length| score(depth, length)).collect())
                    .collect(),
                lengths: lengths.clone(),
                depths: depths.clone(),
            });
        }
    }
    heats
}
