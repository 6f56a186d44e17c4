//! Numbers of a run while it goes on: `metrics.jsonl` and `metrics.csv`, one flushed line each per measurement.

use crate::error::{Error, Result, io_error};
use crate::report::{number, replace_file};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

const CSV_HEADER: &str = "step,part,loss,accuracy,coded_accuracy,rate,gradient_norm,tokens_per_s\n";

/// Part of the text that a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Batches trained on since the line before.
    Train,
    /// Held-out text: all of it, or one of the parts of [`crate::train::trainer::TrainConfig::eval_parts`].
    Valid,
    /// All of the held-out text after the last step: the last line of a run, and what its result says.
    Whole,
}

impl Part {
    /// As it is in the files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Whole => "whole",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Steps done.
    pub step: u64,
    /// Part of the text.
    pub part: Part,
    /// Mean negative log-likelihood of a symbol in nats.
    #[serde(with = "number")]
    pub loss: f64,
    /// Share of symbols whose likeliest prediction is right.
    pub accuracy: f64,
    /// Running accuracy over both parts since the first step, as in the paper's code.
    pub coded_accuracy: f64,
    /// Learning rate of the last step.
    #[serde(with = "number")]
    pub rate: f64,
    /// Norm of the last step's gradient, before clipping.
    #[serde(with = "number")]
    pub gradient_norm: f64,
    /// Training speed so far.
    pub tokens_per_s: f64,
}

impl Line {
    /// As it is in `metrics.jsonl`, and in `metrics.csv`.
    fn texts(&self) -> Result<[String; 2]> {
        let json = serde_json::to_string(self).map_err(|e| Error::bug(format!("a line of metrics: {e}")))?;
        let part = self.part.name();
        let row = format!(
            "{},{part},{},{},{},{},{},{}\n",
            self.step, self.loss, self.accuracy, self.coded_accuracy, self.rate, self.gradient_norm, self.tokens_per_s
        );
        Ok([json + "\n", row])
    }
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
        let mut texts = [String::new(), CSV_HEADER.to_owned()];
        for line in &lines {
            let added = line.texts()?;
            texts
                .iter_mut()
                .zip(added)
                .for_each(|(text, added)| text.push_str(&added));
        }
        let paths = [path, folder.join("metrics.csv")];
        for (path, text) in paths.iter().zip(texts) {
            replace_file(path, text.as_bytes())?;
        }
        let [json, csv] = paths.map(|path| {
            let file = File::options().append(true).open(&path);
            file.map(|file| (path.clone(), file))
                .map_err(|error| io_error("write", &path, &error))
        });
        Ok(Self {
            lines,
            files: Some([json?, csv?]),
        })
    }

    /// Adds a line and flushes it.
    pub fn push(&mut self, line: Line) -> Result<()> {
        if let Some(files) = &mut self.files {
            for (file, text) in files.iter_mut().zip(line.texts()?) {
                write(file, &text)?;
            }
        }
        self.lines.push(line);
        Ok(())
    }
}

fn write((path, file): &mut (PathBuf, File), text: &str) -> Result<()> {
    let written = file.write_all(text.as_bytes()).and_then(|()| file.flush());
    written.map_err(|error| io_error("write", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> Line {
        Line {
            step,
            part: Part::Train,
            loss: 1.0 / step as f64,
            accuracy: 0.5,
            coded_accuracy: 0.5,
            rate: 1e-3,
            gradient_norm: f64::INFINITY,
            tokens_per_s: 100.0,
        }
    }

    #[test]
    fn lines_up_to_the_checkpoint_stay_whatever_came_after_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(folder.path(), 0).unwrap();
        for step in 1..=9 {
            metrics.push(line(step)).unwrap();
        }
        let path = folder.path().join("metrics.jsonl");
        // The write of the last line was cut short.
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 20]).unwrap();
        let metrics = Metrics::open(folder.path(), 7).unwrap();
        assert_eq!(metrics.lines, (1..=7).map(line).collect::<Vec<_>>());
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 7);
        let csv = fs::read_to_string(folder.path().join("metrics.csv")).unwrap();
        assert_eq!(csv.lines().count(), 8);
        assert!(
            csv.lines().nth(7).unwrap().starts_with("7,train,0.14285714285714285,"),
            "{csv}"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_with_the_file_and_loses_no_line() {
        let full = |name: &str| {
            (
                PathBuf::from(name),
                File::options().write(true).open("/dev/full").unwrap(),
            )
        };
        let mut metrics = Metrics {
            lines: vec![line(1)],
            files: Some([full("metrics.jsonl"), full("metrics.csv")]),
        };
        let error = metrics.push(line(2)).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.message().contains("`metrics.jsonl`"), "{error}");
        assert_eq!(metrics.lines, [line(1)]);
        // Rewriting on the way back: the files that are there are replaced when the new ones are whole, or not at all.
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(folder.path(), 0).unwrap();
        metrics.push(line(1)).unwrap();
        let json = fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        std::os::unix::fs::symlink("/dev/full", folder.path().join("metrics.jsonl.tmp")).unwrap();
        let error = Metrics::open(folder.path(), 1).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert_eq!(fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap(), json);
        assert_eq!(Metrics::open(folder.path(), 1).unwrap().lines, [line(1)]);
    }
}
