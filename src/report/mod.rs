//! The one result format of every command.
//!
//! A command opens a [`RunDirectory`] (or a [`MemorySink`] without `--output`), appends one sample after the other,
//! and closes with a [`Report`]. The directory then holds
//!
//! - `config.json`: the effective configuration, written first; it decides whether a later run may resume here;
//! - `samples.jsonl`: one line per sample, appended and flushed one by one;
//! - `table.csv`, `table.md`: the tables for spreadsheets and for reading;
//! - `*.svg`: figures, where the command draws some;
//! - `report.json`: everything, written last, so that its presence marks a closed run.
//!
//! Keys carry SI units (`_s`, `_bytes`, `_tokens`); a missing value is null with its reason ([`Measured`]).

pub mod compare;
pub mod csv;
mod curves;
pub mod json;
pub mod markdown;
mod measured;
pub(crate) mod number;
pub mod paper_table;
mod run_config;
mod run_directory;
mod samples;
pub mod schema;
pub mod speed;
pub mod svg;
mod table;
pub mod terminal;

pub use measured::{Measured, OUT_OF_MEMORY};
pub use run_directory::RunDirectory;
pub(crate) use run_directory::replace_file;
pub use samples::{KeySink, MemorySink, Sample, SampleSink};
pub use table::{Cell, Column, MissingCell, Table};

use crate::bench::statistics::Summary;
use crate::error::Result;
use crate::manifest::{Manifest, config_hash};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Version of the report format; raised when a reader of the old one would misread the new one.
pub const SCHEMA_VERSION: u32 = 1;

/// What one run of one command found, and everything needed to run it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Version of this format.
    pub schema_version: u32,
    /// The command: `infer`, `bench`, ...
    pub command: String,
    /// The arguments as typed.
    pub command_line: Vec<String>,
    /// The effective configuration: every option that bears on the result, with its value.
    pub config: Map<String, Value>,
    /// Hash of `config`; samples carry it.
    pub config_hash: String,
    /// Program, files and machine that made the report.
    pub manifest: Manifest,
    /// Statistics over samples.
    pub aggregates: Vec<Aggregate>,
    /// Tables.
    pub tables: Vec<Table>,
    /// Objects of the command's own, such as the memory plan.
    pub details: Value,
    /// The sample file beside the report.
    pub samples: SampleFile,
    /// Whether the run was stopped before its end; what is here is then partial.
    pub interrupted: bool,
}

/// Where the samples of a report are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SampleFile {
    /// File name beside the report; null when the run had no directory.
    pub file: Option<String>,
    /// Number of samples.
    pub count: u64,
    /// How many of them an earlier, interrupted run had already made.
    pub resumed_count: u64,
}

/// Statistics of one measured quantity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Aggregate {
    /// Name with the SI unit as its last part.
    pub name: String,
    /// Unit; empty for plain numbers.
    pub unit: String,
    /// Number of samples.
    pub n: u64,
    /// Arithmetic mean; null with `reason`.
    pub mean: Option<f64>,
    /// Standard error of the mean; null below two samples.
    pub standard_error: Option<f64>,
    /// 95 % confidence interval of the mean (Student's t unless `details` says otherwise).
    pub ci95: Option<[f64; 2]>,
    /// Smallest.
    pub min: Option<f64>,
    /// Middle.
    pub median: Option<f64>,
    /// Largest.
    pub max: Option<f64>,
    /// Why the mean is null.
    pub reason: Option<String>,
}

/// How a result is written to stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns for reading.
    #[default]
    Table,
    /// The whole report.
    Json,
    /// Comma-separated values.
    Csv,
    /// Markdown tables.
    Md,
}

impl Report {
    /// A report without results yet.
    pub fn new(command: &str, command_line: Vec<String>, config: Map<String, Value>, manifest: Manifest) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            command: command.into(),
            command_line,
            config_hash: config_hash(&Value::Object(config.clone())),
            config,
            manifest,
            aggregates: Vec::new(),
            tables: Vec::new(),
            details: Value::Object(Map::new()),
            samples: SampleFile::default(),
            interrupted: false,
        }
    }

    /// The report as `format` writes it; `terminal` is used by [`Format::Table`] only.
    pub fn render(&self, format: Format, terminal: &terminal::Style) -> Result<String> {
        match format {
            Format::Table => Ok(terminal::report(self, terminal)),
            Format::Json => json::report(self),
            Format::Csv => csv::report(self),
            Format::Md => Ok(markdown::report(self)),
        }
    }

    /// The tables for export; the aggregates when the command made no table.
    pub fn tables_or_aggregates(&self) -> Vec<Table> {
        if self.tables.is_empty() {
            vec![aggregate_table(&self.aggregates)]
        } else {
            self.tables.clone()
        }
    }
}

impl Aggregate {
    /// Statistics of `values`; null with the reason when there are none or one is not finite.
    pub fn of(name: impl Into<String>, unit: impl Into<String>, values: &[f64]) -> Self {
        let Some(summary) = Summary::of(values) else {
            let broken = values.iter().filter(|value| !value.is_finite()).count();
            let reason = if broken == 0 {
                "no samples".into()
            } else {
                format!("{broken} of {} values are not finite", values.len())
            };
            let mut aggregate = Self::missing(name, unit, reason);
            aggregate.n = values.len() as u64;
            return aggregate;
        };
        Self {
            name: name.into(),
            unit: unit.into(),
            n: summary.n as u64,
            mean: Some(summary.mean),
            standard_error: summary.standard_error,
            ci95: summary.ci95,
            min: Some(summary.min),
            median: Some(summary.median),
            max: Some(summary.max),
            reason: None,
        }
    }

    /// A quantity that was not measured; `reason` is `OOM` or `not run: ...`.
    pub fn missing(name: impl Into<String>, unit: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            unit: unit.into(),
            n: 0,
            mean: None,
            standard_error: None,
            ci95: None,
            min: None,
            median: None,
            max: None,
            reason: Some(reason.into()),
        }
    }
}

/// Tables without a report, as `format` writes them; JSON is a list of tables.
pub fn render_tables(tables: &[Table], format: Format, terminal: &terminal::Style) -> Result<String> {
    let blocks: Vec<String> = match format {
        Format::Json => return json::pretty(&tables),
        Format::Csv => tables.iter().map(csv::table).collect::<Result<_>>()?,
        Format::Md => tables.iter().map(markdown::section).collect(),
        Format::Table => tables.iter().map(|table| terminal::section(table, terminal)).collect(),
    };
    Ok(blocks.join("\n"))
}

/// The aggregates as a table.
pub fn aggregate_table(aggregates: &[Aggregate]) -> Table {
    let columns = [
        "name",
        "unit",
        "n",
        "mean",
        "standard_error",
        "ci95_low",
        "ci95_high",
        "min",
        "median",
        "max",
    ];
    let mut table = Table::new("aggregates", columns.into_iter().map(Column::text).collect());
    for aggregate in aggregates {
        let why = aggregate.reason.as_deref().unwrap_or("fewer than 2 samples");
        let cell = |value: Option<f64>| value.map_or_else(|| Cell::missing(why), Cell::from);
        table.rows.push(vec![
            aggregate.name.as_str().into(),
            aggregate.unit.as_str().into(),
            aggregate.n.into(),
            cell(aggregate.mean),
            cell(aggregate.standard_error),
            cell(aggregate.ci95.map(|[low, _]| low)),
            cell(aggregate.ci95.map(|[_, high]| high)),
            cell(aggregate.min),
            cell(aggregate.median),
            cell(aggregate.max),
        ]);
    }
    table
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report with every kind of value, used by the tests of the exporters.
    pub(crate) fn example() -> Report {
        let config = serde_json::json!({"model": "demo", "top_k": 2048});
        let Value::Object(config) = config else { unreachable!() };
        let mut report = Report::new(
            "infer",
            vec!["tokselect".into(), "infer".into()],
            config,
            Manifest::begin(2),
        );
        report.aggregates = vec![
            Aggregate::of("ttft_s", "s", &[1.0, 2.0, 3.0]),
            Aggregate::missing("tpot_s", "s", "not run: --max-new-tokens 1"),
        ];
        let mut table = Table::new("speed", vec![Column::text("policy"), Column::new("ttft_s", "s")]);
        table.push(vec!["tokselect".into(), 0.123_456.into()]).unwrap();
        table
            .push(vec!["full|dense".into(), Cell::missing(OUT_OF_MEMORY)])
            .unwrap();
        report.tables.push(table);
        report
    }

    #[test]
    fn a_report_survives_json() {
        let report = example();
        let text = json::report(&report).unwrap();
        let back: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(json::report(&back).unwrap(), text);
        assert_eq!(back.config_hash, report.config_hash);
    }

    #[test]
    fn an_aggregate_without_samples_is_null_with_its_reason_not_zero() {
        let none = Aggregate::of("x", "", &[]);
        assert_eq!((none.mean, none.reason.as_deref()), (None, Some("no samples")));
        let broken = Aggregate::of("x", "", &[1.0, f64::NAN]);
        assert_eq!((broken.n, broken.mean), (2, None));
        assert_eq!(broken.reason.as_deref(), Some("1 of 2 values are not finite"));
    }
}
