//! The directory of one run: opened before computing, resumed when the configuration is the same.

use super::run_config::RunConfig;
use super::samples::{self, Sample, SampleKey, SampleSink, SampleWriter, Storage};
use super::{Report, SampleFile, csv, json, markdown};
use crate::error::{Error, Result, io_error};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

const SAMPLES: &str = "samples.jsonl";
const CONFIG: &str = "config.json";
const REPORT: &str = "report.json";

/// The directory that `--output` names; see the [module above](super) for its files.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    run: RunConfig,
    /// Also holds the lock: the operating system frees it with the file, however the process ends.
    writer: SampleWriter<File>,
    done: HashSet<SampleKey>,
    resumed_count: u64,
    notices: Vec<String>,
}

impl RunDirectory {
    /// Opens `output` for results of `command` under `config`, creating it if need be.
    ///
    /// `config` holds every option that bears on the results and no other (not `--output`, not `--format`).
    /// Samples of an earlier run with the same configuration are kept and count as done; a different configuration is
    /// refused with the keys that differ. A directory where nothing was finished may be taken over.
    pub fn open_or_resume(output: &Path, command: &str, config: &Map<String, Value>) -> Result<Self> {
        create_directory(output)?;
        let wanted = RunConfig::new(command, config);
        // Before anything is created in it: the directory may hold something else, such as a model.
        let earlier = RunConfig::load(&output.join(CONFIG))?;
        if earlier.is_none() && output.join(REPORT).exists() {
            return Err(
                Error::user(format!("`{}` holds a report without its {CONFIG}", output.display()))
                    .note("whether this run would continue it cannot be told")
                    .help("choose another `--output` directory"),
            );
        }

        let mut notices = Vec::new();
        let samples_path = output.join(SAMPLES);
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(&samples_path)
            .map_err(|error| io_error("write", &samples_path, &error))?;
        lock(&file, output, &mut notices)?;
        // Again under the lock: another run may have begun between the two.
        let earlier = RunConfig::load(&output.join(CONFIG))?;

        let empty = file.metadata().is_ok_and(|metadata| metadata.len() == 0) && !output.join(REPORT).exists();
        if let Some(earlier) = earlier.as_ref().filter(|earlier| !earlier.same_experiment(&wanted))
            && !empty
        {
            return Err(earlier.refusal(&wanted, output));
        }
        let loaded = samples::read(&file, &samples_path, &wanted.config_hash, &mut |_| Ok(()))?;
        if loaded.torn_bytes > 0 {
            file.cut(loaded.complete_bytes)
                .map_err(|error| io_error("shorten", &samples_path, &error))?;
            notices.push(format!(
                "the last line of `{}` was cut short ({} bytes); its sample is computed again",
                samples_path.display(),
                loaded.torn_bytes
            ));
        }
        let resumed_count = loaded.lines.len() as u64;
        match earlier {
            Some(earlier) if resumed_count > 0 => {
                if earlier.build != wanted.build {
                    notices.push(format!(
                        "the {resumed_count} samples in `{}` were made by another build: {} there, {} now",
                        output.display(),
                        earlier.build,
                        wanted.build
                    ));
                }
            }
            _ => replace_file(&output.join(CONFIG), json::pretty(&wanted)?.as_bytes())?,
        }
        Ok(Self {
            path: output.to_owned(),
            done: loaded.lines.into_keys().collect(),
            writer: SampleWriter::new(file, samples_path, loaded.complete_bytes, resumed_count),
            run: wanted,
            resumed_count,
            notices,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hash of the configuration.
    pub fn config_hash(&self) -> &str {
        &self.run.config_hash
    }

    /// How many samples an earlier run had made.
    pub fn resumed_count(&self) -> u64 {
        self.resumed_count
    }

    /// What the user should be warned of after opening: a line cut short, samples of another build.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Writes another file of the run, such as a figure, by renaming a finished one.
    pub fn write_file(&self, name: &str, contents: &[u8]) -> Result<()> {
        replace_file(&self.path.join(name), contents)
    }

    /// Writes the tables, then `report.json`, each by renaming a finished file; fills in `report.samples`.
    pub fn write_report(&self, report: &mut Report) -> Result<()> {
        if report.command != self.run.command || report.config_hash != self.run.config_hash {
            return Err(Error::bug(format!(
                "the report of `{}` has another configuration than its run directory",
                report.command
            )));
        }
        report.samples = SampleFile {
            file: Some(SAMPLES.into()),
            count: self.writer.count(),
            resumed_count: self.resumed_count,
        };
        let mut written = Vec::new();
        for (index, table) in report.tables_or_aggregates().iter().enumerate() {
            let mut name = match index {
                0 => "table.csv".into(),
                _ => format!("table.{}.csv", file_stem(&table.name, index)),
            };
            // Names that users give to what they measure may meet each other's file, or that of a table of ours.
            if written.contains(&name) {
                name = format!("table.{}-{index}.csv", file_stem(&table.name, index));
            }
            written.push(name.clone());
            replace_file(&self.path.join(name), csv::table(table)?.as_bytes())?;
        }
        replace_file(&self.path.join("table.md"), markdown::report(report).as_bytes())?;
        replace_file(&self.path.join(REPORT), json::report(report)?.as_bytes())
    }
}

impl SampleSink for RunDirectory {
    fn is_done(&self, task: &str, id: &str) -> bool {
        self.done.contains(&SampleKey::new(task, id))
    }

    fn append(&mut self, task: &str, id: &str, data: Value) -> Result<()> {
        let key = SampleKey::new(task, id);
        if self.done.contains(&key) {
            return Err(Error::bug(format!("sample `{id}` of task `{task}` was made twice")));
        }
        self.writer.append(&Sample {
            task: task.into(),
            id: id.into(),
            config_hash: self.run.config_hash.clone(),
            data,
        })?;
        self.done.insert(key);
        Ok(())
    }

    fn for_each(&self, visit: &mut dyn FnMut(Sample) -> Result<()>) -> Result<()> {
        let path = self.path.join(SAMPLES);
        samples::read(self.writer.storage(), &path, self.config_hash(), visit).map(drop)
    }
}

fn create_directory(output: &Path) -> Result<()> {
    if output.exists() && !output.is_dir() {
        return Err(
            Error::user(format!("`{}` is a file, not a directory", output.display()))
                .help("choose another `--output` directory"),
        );
    }
    fs::create_dir_all(output).map_err(|error| {
        io_error("create directory", output, &error).help("choose an `--output` directory that can be written to")
    })
}

fn lock(file: &File, output: &Path, notices: &mut Vec<String>) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Error::user(format!(
            "another run is writing to `{}` right now",
            output.display()
        ))
        .help("wait for it to end, or choose another `--output` directory")),
        // Some network file systems have no locks; refusing to work there would help nobody.
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
            notices.push(format!(
                "the file system of `{}` has no locks; start only one run there at a time",
                output.display()
            ));
            Ok(())
        }
        Err(TryLockError::Error(error)) => Err(io_error("lock", &output.join(SAMPLES), &error)),
    }
}

/// Writes a file beside `path` and renames it: a reader never sees a half-written one, and a full disk loses nothing.
pub(crate) fn replace_file(path: &Path, contents: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| {
        // Nothing more can be done if removing fails too; the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
        io_error("write", path, &error)
    })
}

/// A table's name as part of a file name.
fn file_stem(name: &str, index: usize) -> String {
    let stem: String = name
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .collect();
    if stem.chars().all(|letter| letter == '-') {
        index.to_string()
    } else {
        stem
    }
}

#[cfg(test)]
#[path = "run_directory_tests.rs"]
mod tests;
