//! Runs tasks x lengths x depths x variants x samples, one sample row after the other.
//!
//! Only keys and a small [`Record`] per sample stay in memory; rows go to the sink as they end. Which samples there are
//! follows from the [`Grid`] alone, and every example from its coordinates, so a run that was stopped anywhere goes on
//! to the same rows, and statistics over [`Records`] depend on neither the order of their making nor on time.

mod answerer;
mod records;
mod tables;

pub use answerer::{ModelAnswerer, Variant};
pub use records::{Cost, Record, Records};
pub use tables::{Heat, Lines, Statistics};

use super::task::{CountTokens, Example, Request, Task};
use crate::error::Result;
use crate::model::tokenizer::Tokenizer;
use crate::report::SampleSink;
use serde_json::{Map, Value, json};

impl CountTokens for Tokenizer {
    fn count(&self, text: &str) -> Result<usize> {
        Ok(self.encode(text, false)?.len())
    }
}

/// Samples that share everything but their index and variant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    /// Which of the grid's tasks.
    pub task: usize,
    /// Tokens that prompt and answer may take; `None` for a loaded example as it is.
    pub length: Option<usize>,
    /// Where the needle should lie; `None` leaves it to the seed.
    pub depth: Option<f64>,
    /// Samples of each variant.
    pub samples: usize,
}

/// Tokens around a question.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Overhead {
    /// Of tasks that go through the chat template, if the model has one.
    pub templated: usize,
    /// Of tasks that do not.
    pub plain: usize,
}

/// Everything there is to ask.
pub struct Grid {
    /// The tasks.
    pub tasks: Vec<Box<dyn Task>>,
    /// The cells, in the order of their running.
    pub cells: Vec<Cell>,
    /// Names of the variants; each answers every sample of every cell.
    pub variants: Vec<String>,
    /// Seed of the examples.
    pub seed: u64,
    /// Tokens that template and special tokens add, taken off every length.
    pub overhead_tokens: Overhead,
}

impl Grid {
    /// Tasks x lengths x depths, `samples` each where the task has that many, `limit` of each task.
    pub fn cells(
        tasks: &[Box<dyn Task>],
        lengths: &[Option<usize>],
        depths: &[Option<f64>],
        samples: usize,
        limit: Option<usize>,
    ) -> Vec<Cell> {
        let mut cells = Vec::new();
        for (task, asked) in tasks.iter().enumerate() {
            let mut left = limit.unwrap_or(usize::MAX);
            for &length in lengths {
                for &depth in depths {
                    let samples = samples.min(asked.len().unwrap_or(usize::MAX)).min(left);
                    if samples > 0 {
                        left -= samples;
                        cells.push(Cell {
                            task,
                            length,
                            depth,
                            samples,
                        });
                    }
                }
            }
        }
        cells
    }

    /// Samples of all cells and variants.
    pub fn samples(&self) -> usize {
        self.variants.len() * self.cells.iter().map(|cell| cell.samples).sum::<usize>()
    }

    /// Which example `index` of `cell` is.
    pub fn request<'a>(&self, cell: &Cell, index: usize, tokens: &'a dyn CountTokens) -> Request<'a> {
        let overhead = if self.tasks[cell.task].uses_chat_template() {
            self.overhead_tokens.templated
        } else {
            self.overhead_tokens.plain
        };
        Request {
            index,
            length: cell.length.map(|length| length.saturating_sub(overhead)),
            depth: cell.depth,
            seed: self.seed,
            tokens,
        }
    }

    /// Name of a sample within its task.
    fn sample_id(&self, cell: &Cell, index: usize, variant: usize) -> String {
        use std::fmt::Write;
        let mut id = cell
            .length
            .map_or_else(|| "whole".to_owned(), |length| length.to_string());
        if let Some(depth) = cell.depth {
            // Writing to a String cannot fail.
            let _ = write!(id, "/depth {depth}");
        }
        let _ = write!(id, "/{index:04}/{}", self.variants[variant]);
        id
    }
}

/// One question for a variant.
pub struct Question<'a> {
    /// What to ask.
    pub example: &'a Example,
    /// Tokens that the answer may take.
    pub max_new_tokens: usize,
    /// Whether it goes through the chat template, if the model has one.
    pub templated: bool,
}

/// What a variant said.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Why it ended, such as `length` or `end_of_text`.
    pub finish: Value,
    /// SHA-256 of the text that was read, template included.
    pub prompt_sha256: String,
    /// Tokens read.
    pub prompt_tokens: usize,
    /// Tokens answered.
    pub generated_tokens: usize,
    /// What it took.
    pub cost: Cost,
    /// Share of decode steps and layers that reused a selection; `None` where the cache was never asked.
    pub cache_hit_rate: Option<f64>,
}

/// How asking ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// With an answer.
    Answer(Box<Answer>),
    /// The question cannot be asked, for this reason; nothing was cut off to make it fit.
    Refused(String),
    /// The user asked to stop.
    Interrupted,
}

/// Answers questions under several variants.
pub trait Answerer {
    /// Asks variant number `variant`.
    fn answer(&mut self, variant: usize, question: &Question<'_>) -> Result<Reply>;
}

/// How a run reports back and is stopped.
pub trait Watch {
    /// One sample is done, or was found done.
    fn done(&self) {}
    /// Asked between samples.
    fn stopped(&self) -> bool {
        false
    }
}

/// Answers whatever the sink does not hold yet. The flag is true if it was stopped before the end.
pub fn run(
    grid: &Grid,
    tokens: &dyn CountTokens,
    answerer: &mut dyn Answerer,
    sink: &mut dyn SampleSink,
    watch: &dyn Watch,
) -> Result<(Records, bool)> {
    let mut records = Records::resumed(grid, sink)?;
    for (at, cell) in grid.cells.iter().enumerate() {
        let task = grid.tasks[cell.task].as_ref();
        for variant in 0..grid.variants.len() {
            for index in 0..cell.samples {
                let id = grid.sample_id(cell, index, variant);
                if sink.is_done(task.name(), &id) {
                    watch.done();
                    continue;
                }
                if watch.stopped() {
                    return Ok((records, true));
                }
                let example = task.example(&grid.request(cell, index, tokens))?;
                let question = Question {
                    example: &example,
                    max_new_tokens: task.max_new_tokens(),
                    templated: task.uses_chat_template(),
                };
                let reply = answerer.answer(variant, &question)?;
                if reply == Reply::Interrupted {
                    return Ok((records, true));
                }
                let place = Place {
                    grid,
                    at,
                    index,
                    variant,
                };
                let (row, record) = place.row(&example, &reply);
                sink.append(task.name(), &id, row)?;
                records.push(record);
                watch.done();
            }
        }
    }
    Ok((records, false))
}

/// Where a sample lies in the grid.
struct Place<'a> {
    grid: &'a Grid,
    at: usize,
    index: usize,
    variant: usize,
}

impl Place<'_> {
    /// The row of samples.jsonl and what is remembered of it.
    fn row(&self, example: &Example, reply: &Reply) -> (Value, Record) {
        let cell = &self.grid.cells[self.at];
        let task = self.grid.tasks[cell.task].as_ref();
        let mut row = json!({
            "sample": example.id,
            "variant": self.grid.variants[self.variant],
            "length_tokens": cell.length,
            "cell_depth": cell.depth,
            "depth": example.depth,
            "index": self.index,
            "seed": self.grid.seed,
            "answers": example.answers,
        });
        let mut record = Record {
            cell: self.at as u32,
            variant: self.variant as u32,
            index: self.index as u32,
            scores: None,
            empty: false,
            cost: Cost::default(),
        };
        let rest = match reply {
            Reply::Answer(answer) => {
                let scores = task.score(example, &answer.text);
                let named: Map<String, Value> = task
                    .metrics()
                    .iter()
                    .zip(&scores)
                    .map(|(metric, score)| (metric.name.to_owned(), json!(score)))
                    .collect();
                record.scores = Some(scores.into_boxed_slice());
                record.empty = answer.text.trim().is_empty();
                record.cost = answer.cost;
                json!({
                    "answer": answer.text,
                    "scores": named,
                    "empty": record.empty,
                    "finish": answer.finish,
                    "prompt_sha256": answer.prompt_sha256,
                    "prompt_tokens": answer.prompt_tokens,
                    "generated_tokens": answer.generated_tokens,
                    "wall_s": answer.cost.wall_s,
                    "prefill_s": answer.cost.prefill_s,
                    "ttft_s": answer.cost.ttft_s,
                    "tpot_s": answer.cost.tpot_s,
                    "cache_hit_rate": answer.cache_hit_rate,
                    "peak_rss_bytes": answer.cost.peak_rss_bytes,
                })
            }
            Reply::Refused(reason) => json!({"answer": null, "scores": null, "reason": reason}),
            Reply::Interrupted => Value::Null,
        };
        if let (Value::Object(row), Value::Object(rest)) = (&mut row, rest) {
            row.extend(rest);
        }
        (row, record)
    }
}

#[cfg(test)]
mod tests;
