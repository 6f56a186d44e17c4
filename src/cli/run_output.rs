//! Where a run leaves its samples and its report.

use super::Context;
use super::arguments::OutputArgs;
use crate::error::{Error, Result};
use crate::manifest::config_hash;
use crate::report::{Format, MemorySink, Report, RunDirectory, SampleSink, Table};
use serde_json::{Map, Value};

/// The samples and the report of a run: in its directory or, without `--output`, in memory and on stdout alone.
pub(super) struct RunOutput<'a> {
    /// The flags it was opened with.
    pub args: &'a OutputArgs,
    context: &'a Context,
    /// The directory of `--output`.
    pub directory: Option<RunDirectory>,
    memory: Box<dyn SampleSink>,
}

impl<'a> RunOutput<'a> {
    /// Opens the directory, resuming what is there; an error where it holds another run.
    pub fn open(
        args: &'a OutputArgs,
        command: &str,
        config: &Map<String, Value>,
        context: &'a Context,
    ) -> Result<Self> {
        let memory = MemorySink::new(config_hash(&Value::Object(config.clone())));
        Self::open_or(Box::new(memory), args, command, config, context)
    }

    /// As [`Self::open`]; without a directory `memory` takes the samples.
    pub fn open_or(
        memory: Box<dyn SampleSink>,
        args: &'a OutputArgs,
        command: &str,
        config: &Map<String, Value>,
        context: &'a Context,
    ) -> Result<Self> {
        let open = |path| RunDirectory::open_or_resume(path, command, config);
        let directory = args.output.as_deref().map(open).transpose()?;
        for notice in directory.iter().flat_map(RunDirectory::notices) {
            context.printer.warning(notice);
        }
        Ok(Self {
            args,
            context,
            directory,
            memory,
        })
    }

    pub fn sink(&mut self) -> &mut dyn SampleSink {
        match &mut self.directory {
            Some(directory) => directory,
            None => &mut *self.memory,
        }
    }

    /// Writes the report and prints it in the form that was asked for, else as tables for people: `timing` below the others,
    /// because times differ from run to run, and without the aggregates, which repeat the tables.
    pub fn finish(&self, mut report: Report, timing: Option<Table>) -> Result<()> {
        if let Some(directory) = &self.directory {
            directory.write_report(&mut report)?;
        }
        if let Some(format) = self.args.format {
            return self.context.printer.report(&report, format).map(drop);
        }
        report.aggregates.clear();
        report.tables.extend(timing);
        self.context.printer.report(&report, Format::Table).map(drop)
    }

    /// The error of a run that was stopped with `finished` samples.
    pub fn interruption(&self, finished: usize) -> Error {
        match &self.args.output {
            Some(path) => Error::interrupted(format!(
                "interrupted; {finished} finished samples are kept in `{}`",
                path.display()
            ))
            .help("run the same command again to go on"),
            None => Error::interrupted(format!(
                "interrupted; the {finished} finished samples are in the tables"
            ))
            .help("pass `--output DIR` to keep finished samples and go on later"),
        }
    }
}
