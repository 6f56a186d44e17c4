//! What a run remembers of a sample: where it lies, its scores, its times.

use super::Grid;
use crate::error::{Error, Result};
use crate::report::{Sample, SampleSink};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Time and memory of one answer; `None` for what did not happen or could not be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Everything, encoding included.
    pub wall_s: Option<f64>,
    /// Reading the prompt.
    pub prefill_s: Option<f64>,
    /// Time to first token.
    pub ttft_s: Option<f64>,
    /// Mean time per token after the first.
    pub tpot_s: Option<f64>,
    /// Largest resident set while answering, in bytes.
    pub peak_rss_bytes: Option<u64>,
}

/// What is remembered of one sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Which of the grid's cells.
    pub cell: u32,
    /// Which of the grid's variants.
    pub variant: u32,
    /// Which sample of the cell.
    pub index: u32,
    /// One score per metric of the task; `None` where the question could not be asked.
    pub scores: Option<Box<[f64]>>,
    /// Whether the answer was blank.
    pub empty: bool,
    /// What it took.
    pub cost: Cost,
}

/// The records of a run, in the order of the grid.
#[derive(Debug, Clone, Default)]
pub struct Records {
    records: Vec<Record>,
    sorted: bool,
}

/// The keys of a row that place it.
#[derive(Deserialize)]
struct Row {
    variant: String,
    length_tokens: Option<usize>,
    cell_depth: Option<f64>,
    index: u32,
    scores: Option<HashMap<String, f64>>,
    #[serde(default)]
    empty: bool,
    #[serde(flatten)]
    cost: Cost,
}

impl Records {
    /// The records of rows that an earlier run had made.
    pub fn resumed(grid: &Grid, sink: &dyn SampleSink) -> Result<Self> {
        let cells: HashMap<_, u32> = grid
            .cells
            .iter()
            .zip(0..)
            .map(|(cell, at)| {
                let task = grid.tasks[cell.task].name();
                ((task, cell.length, cell.depth.map(f64::to_bits)), at)
            })
            .collect();
        let mut records = Self::default();
        sink.for_each(&mut |sample: Sample| {
            let place = format!("sample `{}` of task `{}`", sample.id, sample.task);
            let wrong = |why: String| {
                Error::user(format!("{place} is not a row of this run: {why}"))
                    .help("choose another `--output` directory, or delete that line of samples.jsonl")
            };
            let row: Row = serde_json::from_value(sample.data).map_err(|error| wrong(error.to_string()))?;
            let key = (
                sample.task.as_str(),
                row.length_tokens,
                row.cell_depth.map(f64::to_bits),
            );
            let cell = *cells.get(&key).ok_or_else(|| wrong("no such length or depth".into()))?;
            let variant = grid.variants.iter().position(|name| *name == row.variant);
            let variant = variant.ok_or_else(|| wrong(format!("no variant `{}`", row.variant)))?;
            let metrics = grid.tasks[grid.cells[cell as usize].task].metrics();
            let scores = row
                .scores
                .map(|scores| {
                    let score = |name: &str| {
                        let found = scores.get(name).copied();
                        found.ok_or_else(|| wrong(format!("no score `{name}`")))
                    };
                    metrics.iter().map(|metric| score(metric.name)).collect::<Result<_>>()
                })
                .transpose()?;
            records.push(Record {
                cell,
                variant: variant as u32,
                index: row.index,
                scores,
                empty: row.empty,
                cost: row.cost,
            });
            Ok(())
        })?;
        Ok(records)
    }

    /// Adds one.
    pub fn push(&mut self, record: Record) {
        self.records.push(record);
        self.sorted = false;
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// All of them by cell, variant and index: the order of an unbroken run, whatever the order of their making.
    pub fn in_order(&mut self) -> &[Record] {
        if !self.sorted {
            self.records.sort_unstable_by_key(|r| (r.cell, r.variant, r.index));
            self.sorted = true;
        }
        &self.records
    }
}
