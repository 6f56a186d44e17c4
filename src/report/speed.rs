//! Times of one operation at one shape and length, whoever measured them: ours, and those of `scripts/peers.py`.

use super::{Cell, Column, Table};
use crate::bench::statistics::Summary;
use crate::error::{Error, Result, io_error};
use crate::manifest::sha256;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Name of the table of times in a report.
pub const SPEED: &str = "speed";

/// What marks a file of `scripts/peers.py`.
const PEERS: &str = "tokselect peers";

/// What was done: rows of one key are rivals.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SpeedKey {
    /// `decode`, `chunk` and `causal` are attention of one layer; `model-decode` and `model-prefill` all layers.
    pub kind: String,
    /// Model shape.
    pub shape: String,
    /// N: stored tokens, those of the query rows included.
    pub tokens: usize,
    /// C: query rows.
    pub rows: usize,
}

/// The times of one method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeedRow {
    /// What was done.
    #[serde(flatten)]
    pub key: SpeedKey,
    /// How: a policy and the fate of its cache, or a library.
    pub method: String,
    /// Median of the repetitions; `None` with a note.
    pub median_us: Option<f64>,
    /// All repetitions.
    pub repetitions_us: Vec<f64>,
    /// Distance from f32, as norm of the difference over norm; `None` where it was not compared.
    pub relative_error: Option<f64>,
    /// What a reader must know.
    pub note: String,
}

/// A file of `scripts/peers.py`.
#[derive(Debug, Clone, PartialEq)]
pub struct Peers {
    /// The GPU that it measured on.
    pub device: String,
    /// Version of the library behind most rows.
    pub label: String,
    /// Everything but the rows, for reports.
    pub provenance: Map<String, Value>,
    /// Its rows.
    pub rows: Vec<SpeedRow>,
}

#[derive(Deserialize)]
struct File {
    format: String,
    version: u32,
    device: Device,
    versions: Map<String, Value>,
    command: Vec<String>,
    rows: Vec<SpeedRow>,
}

#[derive(Deserialize, Serialize)]
struct Device {
    name: String,
    #[serde(flatten)]
    more: Map<String, Value>,
}

impl Peers {
    /// Whether `value` is such a file.
    pub fn is(value: &Value) -> bool {
        value["format"] == PEERS
    }

    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| io_error("read", path, &error))?;
        let refuse = |reason: String| {
            Error::user(format!(
                "`{}` is not a file of scripts/peers.py: {reason}",
                path.display()
            ))
            .help("make it with `scripts/peers.py --out FILE` on the same GPU")
        };
        let file: File = serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
        if file.format != PEERS || file.version != 1 {
            return Err(refuse(format!("it is `{}`, version {}", file.format, file.version)));
        }
        let version = |key: &str| file.versions.get(key).map_or_else(|| "?".to_owned(), plain);
        let label = format!("torch {}, cuDNN {}", version("torch"), version("cudnn"));
        let provenance = json!({
            "file_sha256": sha256(&bytes),
            "device": file.device,
            "versions": file.versions,
            "command": file.command,
        });
        Ok(Self {
            device: file.device.name,
            label,
            provenance: provenance.as_object().cloned().unwrap_or_default(),
            rows: file.rows,
        })
    }

    /// Refuses times of another GPU.
    pub fn check_device(&self, name: &str) -> Result<()> {
        if self.device == name {
            return Ok(());
        }
        Err(Error::user(format!(
            "`--peers` cannot be compared: its device is {}, and this is {name}",
            self.device
        ))
        .help("run scripts/peers.py on this machine, or leave `--peers` out"))
    }

    /// The fastest dense row of `key`.
    pub fn best(&self, key: &SpeedKey) -> Option<&SpeedRow> {
        fastest(self.rows.iter().filter(|row| row.key == *key))
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn fastest<'a>(rows: impl Iterator<Item = &'a SpeedRow>) -> Option<&'a SpeedRow> {
    rows.filter(|row| row.median_us.is_some()).min_by(|a, b| {
        a.median_us
            .unwrap_or(f64::MAX)
            .total_cmp(&b.median_us.unwrap_or(f64::MAX))
    })
}

impl SpeedRow {
    /// A row of repetitions in seconds.
    pub fn of(key: SpeedKey, method: &str, repetitions_s: &[f64]) -> Self {
        let repetitions_us: Vec<f64> = repetitions_s.iter().map(|seconds| seconds * 1e6).collect();
        Self {
            key,
            method: method.to_owned(),
            median_us: Summary::of(&repetitions_us).map(|summary| summary.median),
            repetitions_us,
            relative_error: None,
            note: String::new(),
        }
    }

    /// A row without times.
    pub fn missing(key: SpeedKey, method: &str, reason: impl Into<String>) -> Self {
        Self {
            note: reason.into(),
            ..Self::of(key, method, &[])
        }
    }

    fn why(&self) -> &str {
        if self.note.is_empty() { "not run" } else { &self.note }
    }
}

/// Times with the fastest dense peer beside each: `ours` first, then the peers' rows that have the same keys.
pub fn speed_table(ours: &[SpeedRow], measured_by: &str, peers: Option<&Peers>) -> Result<Table> {
    let us = |key: &str| Column::new(key, "us");
    let mut table = Table::new(
        SPEED,
        vec![
            Column::text("kind"),
            Column::text("shape"),
            Column::text("tokens"),
            Column::text("rows"),
            Column::text("method"),
            Column::text("n"),
            us("median_us"),
            us("min_us"),
            us("max_us"),
            Column::text("relative_error"),
            Column::text("best_dense_peer"),
            us("best_dense_us"),
            Column::text("best_dense_over_this"),
            Column::text("measured_by"),
            Column::text("note"),
        ],
    );
    let mut keys: Vec<&SpeedKey> = Vec::new();
    for row in ours {
        if !keys.contains(&&row.key) {
            keys.push(&row.key);
        }
    }
    for key in keys {
        let best = peers.and_then(|peers| peers.best(key));
        for row in ours.iter().filter(|row| row.key == *key) {
            table.push(cells(row, measured_by, peers.is_some(), best))?;
        }
        let rivals = peers.map_or(&[][..], |peers| &peers.rows);
        for row in rivals.iter().filter(|row| row.key == *key) {
            let label = peers.map_or("", |peers| &peers.label);
            table.push(cells(row, label, true, best))?;
        }
    }
    Ok(table)
}

fn cells(row: &SpeedRow, measured_by: &str, has_peers: bool, best: Option<&SpeedRow>) -> Vec<Cell> {
    let mut cells: Vec<Cell> = vec![
        row.key.kind.as_str().into(),
        row.key.shape.as_str().into(),
        row.key.tokens.into(),
        row.key.rows.into(),
        row.method.as_str().into(),
    ];
    match Summary::of(&row.repetitions_us) {
        Some(s) => cells.extend([s.n.into(), s.median.into(), s.min.into(), s.max.into()]),
        None => cells.extend((0..4).map(|_| Cell::missing(row.why()))),
    }
    cells.push(
        row.relative_error
            .map_or_else(|| Cell::missing("not compared"), Cell::from),
    );
    let absent = if has_peers {
        "no dense peer has it"
    } else {
        "no --peers file"
    };
    match best.and_then(|best| Some((best, best.median_us?))) {
        Some((best, us)) => cells.extend([
            best.method.as_str().into(),
            us.into(),
            row.median_us
                .map_or_else(|| Cell::missing(row.why()), |own| (us / own).into()),
        ]),
        None => cells.extend((0..3).map(|_| Cell::missing(absent))),
    }
    cells.extend([measured_by.into(), row.note.as_str().into()]);
    cells
}

/// Reads back the rows that [`speed_table`] was made of, without repetitions; those of other programs are left out, since
/// their own file has them.
pub(super) fn read_table(table: &Table) -> Vec<SpeedRow> {
    let number = |row: &[Cell], key: &str| table.cell(row, key)?.number();
    let text = |row: &[Cell], key: &str| table.cell(row, key)?.text().map(str::to_owned);
    let read = |row: &Vec<Cell>| {
        let ours = text(row, "measured_by")?.starts_with("tokselect");
        let found = SpeedRow {
            key: SpeedKey {
                kind: text(row, "kind")?,
                shape: text(row, "shape")?,
                tokens: number(row, "tokens")? as usize,
                rows: number(row, "rows")? as usize,
            },
            method: text(row, "method")?,
            median_us: number(row, "median_us"),
            repetitions_us: Vec::new(),
            relative_error: number(row, "relative_error"),
            note: text(row, "note").unwrap_or_default(),
        };
        ours.then_some(found)
    };
    table.rows.iter().filter_map(read).collect()
}

/// Rows of several sources, by what was done, the fastest first.
pub(super) fn side_by_side(sources: &[(&str, &[SpeedRow])]) -> Result<Option<Table>> {
    let mut keys: Vec<&SpeedKey> = Vec::new();
    for row in sources.iter().flat_map(|(_, rows)| rows.iter()) {
        if !keys.contains(&&row.key) {
            keys.push(&row.key);
        }
    }
    if keys.is_empty() {
        return Ok(None);
    }
    let mut columns: Vec<Column> = ["kind", "shape", "tokens", "rows", "method", "run"]
        .map(Column::text)
        .into();
    columns.push(Column::new("median_us", "us"));
    columns.extend(["over_fastest", "relative_error", "note"].map(Column::text));
    let mut table = Table::new(SPEED, columns);
    for key in keys {
        let mut rows: Vec<(&str, &SpeedRow)> = sources
            .iter()
            .flat_map(|(name, rows)| rows.iter().map(move |row| (*name, row)))
            .filter(|(_, row)| row.key == *key)
            .collect();
        rows.sort_by(|(_, a), (_, b)| {
            a.median_us
                .unwrap_or(f64::MAX)
                .total_cmp(&b.median_us.unwrap_or(f64::MAX))
        });
        let fastest = rows.first().and_then(|(_, row)| row.median_us);
        for (name, row) in rows {
            let over = row.median_us.zip(fastest).map(|(own, best)| own / best);
            let or_why = |value: Option<f64>| value.map_or_else(|| Cell::missing(row.why()), Cell::from);
            table.push(vec![
                key.kind.as_str().into(),
                key.shape.as_str().into(),
                key.tokens.into(),
                key.rows.into(),
                row.method.as_str().into(),
                name.into(),
                or_why(row.median_us),
                or_why(over),
                row.relative_error
                    .map_or_else(|| Cell::missing("not compared"), Cell::from),
                row.note.as_str().into(),
            ])?;
        }
    }
    Ok(Some(table))
}

#[cfg(test)]
#[path = "speed_tests.rs"]
pub(crate) mod tests;
