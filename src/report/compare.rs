//! Reports of several runs beside each other, and beside what a paper prints.

use super::paper_table::{Paper, PaperColumn, PaperRow, PaperTable};
use super::speed::{self, Peers, SpeedRow};
use super::{Aggregate, Cell, Column, Report, Table, json};
use crate::error::Result;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// The table of a run's report that holds its scores.
const ACCURACY: &str = "accuracy";
/// Of the normal distribution, for a mean over tasks.
const NORMAL_95: f64 = 1.959_963_984_540_054;

/// One run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its directory as typed.
    pub name: String,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    config: Map<String, Value>,
    aggregates: Vec<Aggregate>,
    cells: Vec<Measured>,
    speeds: Vec<SpeedRow>,
}

/// A score of one task, length and variant.
#[derive(Debug, Clone, PartialEq)]
struct Measured {
    task: String,
    length_tokens: Option<u64>,
    variant: String,
    metric: String,
    n: u64,
    mean: f64,
    standard_error: Option<f64>,
    ci95: Option<[f64; 2]>,
}

/// How a measured score stands to a printed one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The printed number lies in the 95 % interval of the measured one (widened by its rounding).
    Within,
    /// The whole interval lies below the printed number.
    Below,
    /// The whole interval lies above it.
    Above,
    /// Both are there, but not of the same thing.
    NotComparable(String),
    /// Nothing was measured.
    NotRun(String),
}

impl Verdict {
    fn reason(&self) -> &str {
        match self {
            Self::Within | Self::Below | Self::Above => "",
            Self::NotComparable(reason) | Self::NotRun(reason) => reason,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Within => "within",
            Self::Below => "below",
            Self::Above => "above",
            Self::NotComparable(_) => "not comparable",
            Self::NotRun(_) => "not run",
        })
    }
}

impl Run {
    /// Reads the report in a run directory, or the times of other libraries in a file of `scripts/peers.py`.
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = path.is_file().then(|| std::fs::read(path).ok()).flatten();
        let value: Option<Value> = text.and_then(|text| serde_json::from_slice(&text).ok());
        if value.is_some_and(|value| Peers::is(&value)) {
            return Ok(Self::of_peers(name, Peers::load(path)?));
        }
        Ok(Self::new(name, json::load(path)?))
    }

    fn of_peers(name: String, peers: Peers) -> Self {
        Self {
            name,
            interrupted: false,
            config: Map::new(),
            aggregates: Vec::new(),
            cells: Vec::new(),
            speeds: peers.rows,
        }
    }

    /// A run by name.
    pub fn new(name: String, report: Report) -> Self {
        let cells = report
            .tables
            .iter()
            .filter(|table| table.name == ACCURACY)
            .flat_map(measured)
            .collect();
        let speeds = report.tables.iter().filter(|table| table.name == speed::SPEED);
        Self {
            name,
            interrupted: report.interrupted,
            speeds: speeds.flat_map(speed::read_table).collect(),
            config: report.config,
            aggregates: report.aggregates,
            cells,
        }
    }

    fn config(&self, key: &str) -> &Value {
        self.config.get(key).unwrap_or(&Value::Null)
    }

    fn task(&self, task: &str) -> &Value {
        &self.config("tasks")[task]
    }

    fn suite(&self, task: &str) -> &str {
        self.task(task)["suite"].as_str().unwrap_or_default()
    }

    /// Names of the variants whose policy is the row's.
    fn variants(&self, row: &PaperRow) -> Vec<&str> {
        let policies = self.config("policies").as_array().map_or(&[][..], Vec::as_slice);
        policies
            .iter()
            .filter(|variant| {
                let policy = &variant["policy"];
                row.policy.as_deref() == policy["name"].as_str()
                    && row.settings.iter().all(|(key, value)| same(value, &policy[key]))
            })
            .filter_map(|variant| variant["name"].as_str())
            .collect()
    }

    /// Why scores of this run cannot stand beside a row of the paper.
    fn hindrance(&self, paper: &Paper, row: &PaperRow) -> Option<String> {
        if !self.config("random_weights").is_null() {
            return Some("random weights".into());
        }
        let model = self.config("model").as_str().unwrap_or_default();
        if !paper.is_model(&row.model, model) {
            return Some(format!("another model: {model}"));
        }
        self.interrupted.then(|| "the run was interrupted".into())
    }
}

/// Settings are equal up to the precision in which they are kept.
fn same(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => (left - right).abs() < 1e-6,
        _ => left == right,
    }
}

/// The scores in a table of accuracies. Rows that lack one of the columns, or the mean, are passed over.
fn measured(table: &Table) -> Vec<Measured> {
    let number = |row: &[Cell], key: &str| table.cell(row, key)?.number();
    let text = |row: &[Cell], key: &str| table.cell(row, key)?.text().map(str::to_owned);
    let read = |row: &Vec<Cell>| {
        Some(Measured {
            task: text(row, "task")?,
            length_tokens: number(row, "length_tokens").map(|length| length as u64),
            variant: text(row, "variant")?,
            metric: text(row, "metric")?,
            n: number(row, "n")? as u64,
            mean: number(row, "mean")?,
            standard_error: number(row, "standard_error"),
            ci95: number(row, "ci95_low")
                .zip(number(row, "ci95_high"))
                .map(|(low, high)| [low, high]),
        })
    };
    table.rows.iter().filter_map(read).collect()
}

/// The runs beside each other: settings that differ, scores by task and variant, else their aggregates.
pub fn beside_each_other(runs: &[Run]) -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    tables.extend(differing_settings(runs)?);
    if runs.iter().any(|run| !run.cells.is_empty()) {
        let mut rows = Vec::new();
        for (at, run) in runs.iter().enumerate() {
            for cell in &run.cells {
                let label = vec![
                    Cell::from(cell.task.as_str()),
                    cell.length_tokens
                        .map_or_else(|| Cell::missing("as loaded"), Cell::from),
                    cell.variant.as_str().into(),
                    cell.metric.as_str().into(),
                ];
                rows.push((label, at, cell.mean));
            }
        }
        let labels = ["task", "length_tokens", "variant", "metric"];
        tables.push(pivot(ACCURACY, &labels, runs, rows)?);
    }
    let speeds: Vec<(&str, &[SpeedRow])> = runs.iter().map(|run| (run.name.as_str(), &run.speeds[..])).collect();
    tables.extend(speed::side_by_side(&speeds)?);
    let mut rows = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        for aggregate in &run.aggregates {
            if let Some(mean) = aggregate.mean {
                let label = vec![aggregate.name.as_str().into(), aggregate.unit.as_str().into()];
                rows.push((label, at, mean));
            }
        }
    }
    if !rows.is_empty() {
        tables.push(pivot("aggregates", &["name", "unit"], runs, rows)?);
    }
    Ok(tables)
}

/// One column per run; rows with the same label become one.
fn pivot(name: &str, labels: &[&str], runs: &[Run], rows: Vec<(Vec<Cell>, usize, f64)>) -> Result<Table> {
    let mut columns: Vec<Column> = labels.iter().map(|label| Column::text(*label)).collect();
    columns.extend(runs.iter().map(|run| Column::text(&run.name)));
    let mut merged: Vec<(Vec<Cell>, Vec<Option<f64>>)> = Vec::new();
    for (label, at, mean) in rows {
        let known = merged.iter().position(|(other, _)| *other == label);
        let place = known.unwrap_or_else(|| {
            merged.push((label, vec![None; runs.len()]));
            merged.len() - 1
        });
        merged[place].1[at] = Some(mean);
    }
    let mut table = Table::new(name, columns);
    for (mut row, means) in merged {
        row.extend(
            means
                .into_iter()
                .map(|mean| mean.map_or_else(|| Cell::missing("not run"), Cell::from)),
        );
        table.push(row)?;
    }
    Ok(table)
}

/// Settings that are not the same in all runs, by their path; none with one run. Files of other programs have none.
fn differing_settings(runs: &[Run]) -> Result<Option<Table>> {
    let runs: Vec<&Run> = runs.iter().filter(|run| !run.config.is_empty()).collect();
    let flat: Vec<Map<String, Value>> = runs
        .iter()
        .map(|run| {
            let mut flat = Map::new();
            flatten("", &Value::Object(run.config.clone()), &mut flat);
            flat
        })
        .collect();
    let keys: BTreeSet<&String> = flat.iter().flat_map(Map::keys).collect();
    let mut columns = vec![Column::text("setting")];
    columns.extend(runs.iter().map(|run| Column::text(&run.name)));
    let mut table = Table::new("settings that differ", columns);
    for key in keys {
        let values: Vec<Option<&Value>> = flat.iter().map(|settings| settings.get(key)).collect();
        if values.iter().all(|value| *value == values[0]) {
            continue;
        }
        let mut row: Vec<Cell> = vec![key.as_str().into()];
        row.extend(values.into_iter().map(|value| match value {
            None => Cell::missing("not there"),
            Some(Value::String(text)) => text.as_str().into(),
            Some(value) => value.to_string().as_str().into(),
        }));
        table.push(row)?;
    }
    Ok((!table.rows.is_empty()).then_some(table))
}

fn flatten(path: &str, value: &Value, flat: &mut Map<String, Value>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                flatten(&path, value, flat);
            }
        }
        _ => {
            flat.insert(path.to_owned(), value.clone());
        }
    }
}

/// What was measured for one column of a paper's table.
struct Found {
    /// Percent.
    mean: f64,
    ci95: Option<[f64; 2]>,
    n: u64,
    /// Why it cannot be compared, though it was measured.
    hindrance: Option<String>,
}

/// One table of `paper` with the runs' scores beside its cells and a verdict for each; `None` where none of the runs
/// asked anything of the table. Rows of methods that this program does not have, and columns of times, are left out.
pub fn beside_paper(paper: &Paper, printed: &PaperTable, runs: &[Run]) -> Result<Option<Table>> {
    let columns = [
        "model",
        "method",
        "column",
        "paper",
        "measured",
        "ci95_low",
        "ci95_high",
        "n",
        "variant",
        "run",
        "verdict",
        "reason",
    ];
    let mut table = Table::new(printed.heading(paper), columns.map(Column::text).into());
    let asked = |run: &Run, column: &PaperColumn| run.cells.iter().any(|cell| belongs(run, printed, column, cell));
    let touched = |column: &&PaperColumn| runs.iter().any(|run| asked(run, column));
    if printed.columns.iter().find(touched).is_none() {
        return Ok(None);
    }
    for row in printed.rows.iter().filter(|row| row.policy.is_some()) {
        let cells = printed.columns.iter().zip(&row.cells);
        for (column, &cell) in cells.filter(|(column, _)| column.unit == "percent") {
            let label = [
                Cell::from(row.model.as_str()),
                row.method.as_str().into(),
                column.name.as_str().into(),
                cell.into(),
            ];
            let mut found_any = false;
            for run in runs {
                for variant in run.variants(row) {
                    let Some(found) = found(paper, printed, row, column, run, variant) else {
                        continue;
                    };
                    found_any = true;
                    let verdict = judge(cell, printed.decimals, &found);
                    let bound = |at: usize| {
                        found
                            .ci95
                            .map_or_else(|| Cell::missing("too few samples"), |bounds| bounds[at].into())
                    };
                    let mut line = label.to_vec();
                    line.extend([found.mean.into(), bound(0), bound(1), found.n.into()]);
                    line.extend([variant.into(), run.name.as_str().into()]);
                    line.extend([verdict.to_string().as_str().into(), verdict.reason().into()]);
                    table.push(line)?;
                }
            }
            if !found_any {
                let reason = if touched(&column) {
                    "no run with these settings"
                } else {
                    "no run of the task"
                };
                let verdict = Verdict::NotRun(reason.into());
                let mut line = label.to_vec();
                line.extend((0..6).map(|_| Cell::missing("not run")));
                line.extend([verdict.to_string().as_str().into(), verdict.reason().into()]);
                table.push(line)?;
            }
        }
    }
    Ok(Some(table))
}

/// Whether a measured score is of what the column is about, whatever the metric.
fn belongs(run: &Run, printed: &PaperTable, column: &PaperColumn, cell: &Measured) -> bool {
    run.suite(&cell.task) == printed.suite
        && column.task.as_ref().is_none_or(|task| *task == cell.task)
        && (column.length_tokens.is_none() || column.length_tokens == cell.length_tokens)
}

fn found(
    paper: &Paper,
    printed: &PaperTable,
    row: &PaperRow,
    column: &PaperColumn,
    run: &Run,
    variant: &str,
) -> Option<Found> {
    let cells: Vec<&Measured> = run
        .cells
        .iter()
        .filter(|cell| cell.variant == variant && belongs(run, printed, column, cell))
        .collect();
    let hindrance = run.hindrance(paper, row);
    if let Some(tasks) = column.tasks {
        return mean_of_tasks(&cells, tasks, hindrance);
    }
    let cell = cells
        .iter()
        .find(|cell| column.scorer.as_deref() == Some(cell.metric.as_str()))
        .or(cells.first())?;
    Some(Found {
        mean: 100.0 * cell.mean,
        ci95: cell.ci95.map(|bounds| bounds.map(|bound| 100.0 * bound)),
        n: cell.n,
        hindrance: hindrance.or_else(|| other_question(paper, column, run, cell)),
    })
}

/// Why a score of a task is not of the paper's question.
fn other_question(paper: &Paper, column: &PaperColumn, run: &Run, cell: &Measured) -> Option<String> {
    let task = run.task(&cell.task);
    let prompts = task["settings"]["prompts"].as_str();
    if task["data_sha256"].is_null() {
        Some("generated examples, not the benchmark's own".into())
    } else if prompts.is_some_and(|prompts| prompts != paper.paper.prompts) {
        Some(format!("other prompts: {}", prompts.unwrap_or_default()))
    } else if let Some(length) = cell.length_tokens.filter(|_| column.length_tokens.is_none()) {
        Some(format!("contexts were cut to {length} tokens"))
    } else if column.scorer.as_deref() != Some(cell.metric.as_str()) {
        Some(format!("another metric: {}", cell.metric))
    } else {
        None
    }
}

/// The mean over tasks, each with the same weight and its first metric; its interval follows from their standard errors.
fn mean_of_tasks(cells: &[&Measured], tasks: usize, hindrance: Option<String>) -> Option<Found> {
    let mut seen = BTreeSet::new();
    let first: Vec<&&Measured> = cells.iter().filter(|cell| seen.insert(&cell.task)).collect();
    if first.is_empty() {
        return None;
    }
    let count = first.len() as f64;
    let mean = 100.0 * first.iter().map(|cell| cell.mean).sum::<f64>() / count;
    let variance: Option<f64> = first
        .iter()
        .map(|cell| cell.standard_error.map(|error| error * error))
        .sum();
    let half = variance.map(|variance| NORMAL_95 * 100.0 * variance.sqrt() / count);
    let partial = (first.len() != tasks).then(|| format!("{} of {tasks} tasks", first.len()));
    Some(Found {
        mean,
        ci95: half.map(|half| [mean - half, mean + half]),
        n: first.iter().map(|cell| cell.n).sum(),
        hindrance: hindrance.or(partial),
    })
}

fn judge(printed: f64, decimals: u32, found: &Found) -> Verdict {
    if let Some(reason) = &found.hindrance {
        return Verdict::NotComparable(reason.clone());
    }
    let Some([low, high]) = found.ci95 else {
        return Verdict::NotComparable(format!("{} samples give no interval", found.n));
    };
    // Some of the paper's numbers are cut off instead of rounded, so a whole last digit is open.
    let rounding = 0.1_f64.powi(decimals as i32);
    if high + rounding < printed {
        Verdict::Below
    } else if low - rounding > printed {
        Verdict::Above
    } else {
        Verdict::Within
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
