//! Samples as tables: `prefill`, `decode`, `ratios`, `checks`, `memory`.

use super::baseline::Baseline;
use super::checks::{self, CheckSample};
use super::memory::{self, MemorySample};
use super::series::{Parts, Series, collect};
use super::{decode, prefill, samples_of};
use crate::bench::statistics::Summary;
use crate::bench::timing::Ratio;
use crate::error::Result;
use crate::report::{Aggregate, Cell, Column, Measured, Sample, Table};

const NOT_APART: &str = "not told apart by that program";

/// All tables of the bench, those of parts without samples left out, and the aggregates beside them.
pub fn tables(samples: &[Sample], baseline: Option<&Baseline>) -> Result<(Vec<Table>, Vec<Aggregate>)> {
    let series = collect(samples, baseline)?;
    let tables = [
        prefill_table(&series)?,
        decode_table(&series)?,
        ratio_table(&series)?,
        check_table(&samples_of(samples, checks::TASK)?)?,
        memory_table(&samples_of(samples, memory::TASK)?)?,
    ];
    let aggregates = series
        .iter()
        .map(|s| Aggregate::of(format!("{}/{}/{}_s", s.phase, s.tokens, s.name), "s", &s.total_s))
        .collect();
    Ok((
        tables.into_iter().filter(|table| !table.rows.is_empty()).collect(),
        aggregates,
    ))
}

fn seconds(keys: &[&str]) -> Vec<Column> {
    keys.iter().map(|key| Column::new(*key, "s")).collect()
}

/// n, median, least and most of `values`.
fn spread(values: &[f64]) -> Vec<Cell> {
    match Summary::of(values) {
        Some(s) => vec![s.n.into(), s.median.into(), s.min.into(), s.max.into()],
        None => vec![Cell::missing("no finite repetitions"); 4],
    }
}

fn median(values: &[f64]) -> Cell {
    Summary::of(values).map_or_else(|| Cell::missing("no finite repetitions"), |s| s.median.into())
}

/// Medians of select, attend and their sum.
fn part_cells(parts: Option<&Parts>) -> Vec<Cell> {
    match parts {
        Some(parts) => vec![
            median(&parts.select_s),
            median(&parts.attend_s),
            median(&parts.attention_s()),
        ],
        None => vec![Cell::missing(NOT_APART); 3],
    }
}

fn prefill_table(series: &[Series]) -> Result<Table> {
    let mut columns = vec![Column::text("prompt_tokens"), Column::text("policy"), Column::text("n")];
    columns.extend(seconds(&["prefill_s", "min_s", "max_s"]));
    columns.push(Column::new("prefill_tokens_per_s", "tokens/s"));
    columns.extend(seconds(&["select_s", "attend_s", "attention_s"]));
    columns.push(Column::text("measured_by"));
    let mut table = Table::new("prefill", columns);
    for s in series.iter().filter(|s| s.phase == prefill::TASK) {
        let mut row = vec![s.tokens.into(), s.name.as_str().into()];
        row.extend(spread(&s.total_s));
        row.push(per_second(s.tokens, &s.total_s));
        row.extend(part_cells(s.parts.as_ref()));
        row.push(s.source.as_str().into());
        table.push(row)?;
    }
    Ok(table)
}

fn decode_table(series: &[Series]) -> Result<Table> {
    let mut columns = vec![Column::text("stored_tokens"), Column::text("policy"), Column::text("n")];
    columns.extend(seconds(&["step_s", "min_s", "max_s"]));
    columns.push(Column::new("decode_tokens_per_s", "tokens/s"));
    columns.extend(seconds(&["select_s", "attend_s", "attention_s"]));
    columns.push(Column::text("hit_rate"));
    columns.push(Column::text("measured_by"));
    let mut table = Table::new("decode", columns);
    for s in series.iter().filter(|s| s.phase == decode::TASK) {
        let mut row = vec![s.tokens.into(), s.name.as_str().into()];
        row.extend(spread(&s.total_s));
        row.push(per_second(1, &s.total_s));
        row.extend(part_cells(s.parts.as_ref()));
        row.push(s.hit_rate.clone().into());
        row.push(s.source.as_str().into());
        table.push(row)?;
    }
    Ok(table)
}

fn per_second(tokens: usize, values: &[f64]) -> Cell {
    match Summary::of(values) {
        Some(s) if s.median > 0.0 => (tokens as f64 / s.median).into(),
        _ => Cell::missing("no finite repetitions"),
    }
}

/// Dense over every other policy, for the whole and for its attention part; the other program over every policy.
fn ratio_table(series: &[Series]) -> Result<Table> {
    let text = |keys: &[&str]| keys.iter().map(|key| Column::text(*key)).collect::<Vec<_>>();
    let mut columns = text(&["phase", "tokens", "part", "numerator", "denominator"]);
    columns.extend(seconds(&["numerator_s", "denominator_s"]));
    columns.extend(text(&[
        "ratio",
        "paired_ratio_median",
        "paired_ratio_min",
        "paired_ratio_max",
    ]));
    let mut table = Table::new("ratios", columns);
    for numerator in series {
        if ![Baseline::NAME, "dense"].contains(&numerator.name.as_str()) {
            continue;
        }
        let others = series.iter().filter(|s| {
            (s.phase, s.tokens) == (numerator.phase, numerator.tokens)
                && s.name != numerator.name
                && s.name != Baseline::NAME
        });
        for other in others {
            let totals = (&numerator.total_s, &other.total_s);
            push_ratio(&mut table, "whole", numerator, other, totals.0, totals.1)?;
            // Those of another program do not tell its parts apart.
            if let (Some(above), Some(below)) = (&numerator.parts, &other.parts) {
                let parts = (above.attention_s(), below.attention_s());
                push_ratio(&mut table, "attention", numerator, other, &parts.0, &parts.1)?;
            }
        }
    }
    Ok(table)
}

fn push_ratio(table: &mut Table, part: &str, a: &Series, b: &Series, above: &[f64], below: &[f64]) -> Result<()> {
    let ratio = Ratio::of(above, below);
    let mut row: Vec<Cell> = vec![
        a.phase.into(),
        a.tokens.into(),
        part.into(),
        a.name.as_str().into(),
        b.name.as_str().into(),
        median(above),
        median(below),
        ratio.map_or_else(|| Cell::missing("no finite repetitions"), |r| r.of_medians.into()),
    ];
    let paired = ratio.and_then(|r| r.paired).filter(|_| a.source == b.source);
    row.extend(match paired {
        Some(values) => values.map(Cell::from).to_vec(),
        None if a.source == b.source => vec![Cell::missing("repetitions do not pair up"); 3],
        None => vec![Cell::missing("measured by two programs, not by turns"); 3],
    });
    table.push(row)
}

fn check_table(samples: &[CheckSample]) -> Result<Table> {
    let keys = [
        "check",
        "passed",
        "relative_difference",
        "bound",
        "max_abs_difference",
        "logit_scale",
        "logits",
    ];
    let mut table = Table::new("checks", keys.into_iter().map(Column::text).collect());
    for sample in samples {
        let why = sample.relative_difference.reason().unwrap_or("not run");
        table.push(vec![
            sample.check.as_str().into(),
            sample.passed.map_or_else(|| Cell::missing(why), Cell::from),
            sample.relative_difference.clone().into(),
            sample.bound.into(),
            sample.max_abs_difference.clone().into(),
            sample.logit_scale.clone().into(),
            sample.logits.into(),
        ])?;
    }
    Ok(table)
}

fn memory_table(samples: &[MemorySample]) -> Result<Table> {
    let bytes = |key: &str| Column::new(key, "B");
    let mut table = Table::new(
        "memory",
        vec![
            Column::text("policy"),
            Column::text("context_tokens"),
            bytes("planned_bytes"),
            bytes("peak_rss_bytes"),
            Column::text("measured_over_planned"),
            bytes("rss_before_bytes"),
            Column::text("peak_of"),
        ],
    );
    for sample in samples {
        let over = match &sample.peak_rss_bytes {
            Measured::Value(peak) => (*peak as f64 / sample.planned_bytes as f64).into(),
            Measured::Missing(reason) => Cell::missing(reason.as_str()),
        };
        table.push(vec![
            sample.policy.as_str().into(),
            sample.context_tokens.into(),
            sample.planned_bytes.into(),
            sample.peak_rss_bytes.clone().into(),
            over,
            sample.rss_before_bytes.clone().into(),
            sample.peak_of.as_str().into(),
        ])?;
    }
    Ok(table)
}
