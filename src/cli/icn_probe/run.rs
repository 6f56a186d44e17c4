//! One run: its samples in a directory or in memory, verdicts that are kept as they come, its report.

use super::engine::Engine;
use crate::bytes::human_bytes;
use crate::cli::Context;
use crate::cli::arguments::OutputArgs;
use crate::cli::loading;
use crate::cli::run_output::RunOutput;
use crate::error::{Error, Kind, Result};
use crate::exit::Outcome;
use crate::manifest::Manifest;
use crate::probe::judge::{Judge, Verdict};
use crate::probe::lists::Question;
use crate::report::{Aggregate, Column, Format, Measured, Report, Sample, SampleSink, Table};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Task under which verdicts are kept.
const VERDICTS: &str = "verdict";

/// Whether a verdict is kept in `sample`. A list may be named as the verdicts are.
fn is_verdict(sample: &Sample) -> bool {
    sample.task == VERDICTS && sample.data.get("verdict").is_some()
}

/// What a run found, for its report.
#[derive(Default)]
pub(super) struct Findings {
    pub tables: Vec<Table>,
    /// Long tables, for the report's files alone.
    pub more: Vec<Table>,
    /// For people; under `details` in the report, because times differ from run to run.
    pub timing: Option<Table>,
    pub aggregates: Vec<Aggregate>,
    pub details: Map<String, Value>,
    /// File names and contents.
    pub files: Vec<(String, Vec<u8>)>,
}

/// A run in progress.
pub(super) struct Run<'a> {
    command: &'static str,
    config: Map<String, Value>,
    manifest: Manifest,
    output: RunOutput<'a>,
    context: &'a Context,
}

impl<'a> Run<'a> {
    /// Opens the output, resuming what is there.
    pub fn open(
        command: &'static str,
        config: Map<String, Value>,
        output: &'a OutputArgs,
        context: &'a Context,
    ) -> Result<Self> {
        let manifest = Manifest::begin(rayon::current_num_threads());
        Ok(Self {
            command,
            output: RunOutput::open(output, command, &config, context)?,
            config,
            manifest,
            context,
        })
    }

    pub fn sink(&mut self) -> &mut dyn SampleSink {
        self.output.sink()
    }

    /// All samples but verdicts.
    pub fn samples(&mut self) -> Result<Vec<Sample>> {
        let mut all = self.sink().samples()?;
        all.retain(|sample| !is_verdict(sample));
        Ok(all)
    }

    /// Writes the report. `outcome` is how the work ended: an interruption still gets its tables.
    pub fn finish(
        mut self,
        engine: &Engine,
        outcome: Result<()>,
        data_sha256: Measured<String>,
        seeds: &[(&str, u64)],
        findings: Findings,
    ) -> Result<Outcome> {
        let interrupted = match outcome {
            Err(error) if error.kind() == Kind::Interrupted => true,
            other => other.map(|()| false)?,
        };
        let count = self.samples()?.len();
        let kept = self.sink().samples()?.len();
        let mut manifest = self.manifest;
        loading::fill_manifest(
            &mut manifest,
            &engine.located,
            &engine.tokenizer,
            engine.template.as_ref(),
            self.output.directory.is_some(),
        )?;
        manifest.data_sha256 = data_sha256;
        for (name, seed) in seeds {
            manifest.seeds.insert((*name).to_owned(), *seed);
        }
        manifest.finish();
        let mut report = Report::new(self.command, self.context.command_line.clone(), self.config, manifest);
        let shown = findings.tables.len();
        report.tables = findings.tables;
        report.tables.extend(findings.more);
        report.aggregates = findings.aggregates;
        let mut details = findings.details;
        details.insert("memory_plan".into(), json!(engine.memory));
        details.insert("besides_bytes".into(), json!(engine.besides_bytes));
        details.insert("timing".into(), json!(findings.timing));
        report.details = Value::Object(details);
        report.samples.count = count as u64;
        report.interrupted = interrupted;
        if let Some(directory) = &self.output.directory {
            for (name, contents) in &findings.files {
                directory.write_file(name, contents)?;
            }
            directory.write_report(&mut report)?;
        }
        if let Some(format) = self.output.args.format {
            self.context.printer.report(&report, format)?;
        } else {
            report.aggregates = Vec::new();
            report.tables.truncate(shown);
            report.tables.extend(findings.timing);
            self.context.printer.report(&report, Format::Table)?;
        }
        if interrupted {
            let error = self.output.interruption(count);
            return Err(match (self.output.directory, kept - count) {
                (Some(_), verdicts @ 1..) => error.note(format!("and {verdicts} verdicts of the judge")),
                _ => error,
            });
        }
        Ok(Outcome::Done)
    }
}

/// Verdicts so far; a costly judge is asked once for each answer, over all runs in a directory.
pub(super) struct Verdicts<'m> {
    judge: Box<dyn Judge + 'm>,
    known: HashMap<(String, String), Verdict>,
}

impl<'m> Verdicts<'m> {
    /// Goes on with what `run` holds.
    pub fn new(judge: Box<dyn Judge + 'm>, run: &mut Run<'_>) -> Result<Self> {
        let mut known = HashMap::new();
        run.sink().for_each(&mut |sample| {
            if is_verdict(&sample) {
                let broken = || Error::user(format!("the verdict `{}` cannot be read", sample.id));
                let text = |key: &str| sample.data[key].as_str().map(str::to_owned).ok_or_else(broken);
                let verdict = serde_json::from_value(sample.data["verdict"].clone()).map_err(|_| broken())?;
                known.insert((text("question")?, text("answer")?), verdict);
            }
            Ok(())
        })?;
        Ok(Self { judge, known })
    }

    pub fn verdict(&mut self, run: &mut Run<'_>, question: &Question, answer: &str) -> Result<Verdict> {
        let key = (question.id.clone(), answer.to_owned());
        if let Some(verdict) = self.known.get(&key) {
            return Ok(verdict.clone());
        }
        let verdict = self.judge.verdict(question, answer)?;
        if self.judge.is_costly() {
            let id = format!("{}/{answer}", question.id);
            let data = json!({"question": question.id, "answer": answer, "verdict": verdict});
            run.sink().append(VERDICTS, &id, data)?;
        }
        self.known.insert(key, verdict.clone());
        Ok(verdict)
    }
}

/// `--dry-run`: the plan as a table, or as JSON.
pub(super) fn print_plan(
    engine: &Engine,
    config: &Map<String, Value>,
    rows: Vec<(&str, String)>,
    output: &OutputArgs,
    context: &Context,
) -> Result<Outcome> {
    if output.format == Some(Format::Json) {
        let value = json!({
            "config": config,
            "memory_plan": engine.memory,
            "besides_bytes": engine.besides_bytes,
            "memory_plan_total_bytes": engine.total_bytes(),
        });
        let text = serde_json::to_string_pretty(&value).map_err(|e| Error::bug(format!("plan as JSON: {e}")))?;
        return context.printer.line(&text);
    }
    let mut table = Table::new("plan", vec![Column::text("what"), Column::text("value")]);
    let memory = format!("{} ({})", human_bytes(engine.total_bytes()), engine.memory.parts());
    let besides = match engine.besides_bytes {
        0 => None,
        bytes => Some(("of it keys, clusters, judge", human_bytes(bytes))),
    };
    let all = [("model", engine.located.files.reference.clone())].into_iter();
    for (what, value) in all.chain(rows).chain([("memory", memory)]).chain(besides) {
        table.push(vec![what.into(), value.into()])?;
    }
    context.printer.table(&table)
}

/// Groups samples of one task name.
pub(super) fn parsed<T: serde::de::DeserializeOwned>(sample: &Sample) -> Result<T> {
    serde_json::from_value(sample.data.clone()).map_err(|e| {
        Error::user(format!(
            "sample `{}` of `{}` cannot be read: {e}",
            sample.id, sample.task
        ))
        .help("it was written by another version; choose another `--output` directory")
    })
}
