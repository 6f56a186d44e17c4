//! Numbers of a run while it goes on: `metrics.jsonl` and `metrics.csv`, one flushed line each per measurement.

use crate::error::{Error, Result, io_error};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Part of the text that a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Batches trained on since the line before.
    Train,
    /// Held-out text.
    Valid,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Steps done.
    pub step: u64,
    /// Part of the text.
    pub part: Part,
    /// Mean negative log-likelihood of a symbol in nats.
    pub loss: f64,
    /// Share of symbols whose likeliest prediction is right.
    pub accuracy: f64,
    /// Running accuracy over both parts since the first step, as in the paper's code.
    pub coded_accuracy: f64,
    /// Learning rate of the last step.
    pub rate: f64,
    /// Norm of the last step's gradient, before clipping.
    pub gradient_norm: f64,
    /// Training speed so far.
    pub tokens_per_s: f64,
}

/// The lines of a run, in memory and, if it has a folder, in its files.
#[derive(Debug, Default)]
pub struct Metrics {
    /// All lines.
    pub lines: Vec<Line>,
    files: Option<[(PathBuf, File); 2]>,
}

impl Metrics {
    /// Lines that are kept in memory only.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Opens the files of `folder`; lines after `step`, which a stopped run made beyond its checkpoint, are removed.
    pub fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(io_error("read", &path, &error)),
        };
        // A line that was cut short ends the file and is beyond the checkpoint.
        let lines = text.lines().map_while(|line| serde_json::from_str::<Line>(line).ok());
        let lines: Vec<Line> = lines.take_while(|line| line.step <= step).collect();
        let mut metrics = Self::in_memory();
        let csv = folder.join("metrics.csv");
        let mut files = [Self::begin(path)?, Self::begin(csv)?];
        let header = "step,part,loss,accuracy,coded_accuracy,rate,gradient_norm,tokens_per_s\n";
        write(&mut files[1], header)?;
        metrics.files = Some(files);
        for line in lines {
            metrics.push(line)?;
        }
        Ok(metrics)
    }

    fn begin(path: PathBuf) -> Result<(PathBuf, File)> {
        let file = File::create(&path).map_err(|error| io_error("write", &path, &error))?;
        Ok((path, file))
    }

    /// Adds a line and flushes it.
    pub fn push(&mut self, line: Line) -> Result<()> {
        if let Some(files) = &mut self.files {
            let json = serde_json::to_string(&line).map_err(|e| Error::bug(format!("a line of metrics: {e}")))?;
            write(&mut files[0], &format!("{json}\n"))?;
            let part = if line.part == Part::Train { "train" } else { "valid" };
            let row = format!(
                "{},{part},{},{},{},{},{},{}\n",
                line.step,
                line.loss,
                line.accuracy,
                line.coded_accuracy,
                line.rate,
                line.gradient_norm,
                line.tokens_per_s
            );
            write(&mut files[1], &row)?;
        }
        self.lines.push(line);
        Ok(())
    }
}

fn write((path, file): &mut (PathBuf, File), text: &str) -> Result<()> {
    let written = file.write_all(text.as_bytes()).and_then(|()| file.flush());
    written.map_err(|error| io_error("write", path, &error))
}
