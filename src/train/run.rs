//! A training run from its beginning, or from its last checkpoint, to its result.

use super::attention::AttentionKind;
use super::checkpoint::{self, BEST, Checkpoint};
use super::cross_entropy::Outcome;
use super::generate::generate;
use super::metrics::{Line, Metrics, Part};
use super::text::Codec;
use super::trainer::{MemoryUse, Step, Trainer};
use crate::bench::peak_memory;
use crate::error::{Error, Result, io_error};
use crate::model::sampling::SamplingConfig;
use crate::report::{Measured, number};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Points of a curve in a result.
const CURVE_POINTS: usize = 200;

/// What does not bear on the numbers of a run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Where metrics and checkpoints go; without it neither is written.
    pub folder: Option<PathBuf>,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints of steps that are kept, besides the best one.
    pub keep: usize,
    /// Steps between lines of metrics.
    pub line_every: u64,
    /// Hash of everything that determines the run.
    pub config_hash: String,
    /// Text to generate at the end: prompt, symbols, temperature.
    pub sample: Option<(String, usize, f32)>,
}

/// Watches a run.
pub trait Observer {
    /// After every step.
    fn step(&mut self, trainer: &Trainer, step: &Step);
    /// After every line of metrics.
    fn line(&mut self, line: &Line);
    /// Something the user should know.
    fn notice(&mut self, text: &str);
    /// Whether to stop now.
    fn stopped(&self) -> bool;
}

/// What a run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Which attention.
    pub attention: AttentionKind,
    /// Seed.
    pub seed: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Symbols trained on.
    pub trained_tokens: u64,
    /// Parameters.
    pub parameters: u64,
    /// Loss on all of the held-out text after the last step, in nats per symbol.
    #[serde(with = "number")]
    pub valid_loss: f64,
    /// e to that; infinite in a run that has diverged.
    #[serde(with = "number")]
    pub valid_perplexity: f64,
    /// Accuracy on all of the held-out text after the last step.
    pub valid_accuracy: f64,
    /// Lowest loss of an evaluation on the way.
    pub best_valid_loss: Option<f64>,
    /// Loss of the last line of training metrics.
    #[serde(with = "number")]
    pub train_loss: f64,
    /// Running accuracy since the first step over training and validation batches mixed, as the paper's code logs it.
    pub coded_accuracy: f64,
    /// Loss of the first line of training metrics.
    #[serde(with = "number")]
    pub first_loss: f64,
    /// Training speed, without evaluations.
    pub tokens_per_s: f64,
    /// Median time of a step, in seconds; `None` if the process that ended the run made none.
    #[serde(default)]
    pub median_step_s: Option<f64>,
    /// Steps not taken because of a loss spike.
    pub skipped_steps: u64,
    /// Bytes by component.
    pub memory: MemoryUse,
    /// Most memory of the process during the run.
    pub peak_rss_bytes: Measured<u64>,
    /// (step, training loss).
    pub train_curve: Vec<(u64, f64)>,
    /// (step, validation loss).
    pub valid_curve: Vec<(u64, f64)>,
    /// Generated text.
    pub sample: Option<String>,
}

/// Trains to the last step. `None` if it was stopped; what was done is then in a checkpoint.
pub fn run(
    trainer: &mut Trainer,
    codec: &Codec,
    options: &RunOptions,
    observer: &mut dyn Observer,
) -> Result<Option<RunResult>> {
    let mut metrics = begin(trainer, options, observer)?;
    // Without it the peak is that of the whole process; the result says nothing else.
    let _ = peak_memory::reset_peak();
    let steps = trainer.config.steps;
    while trainer.progress.step < steps {
        if observer.stopped() {
            save(trainer, options)?;
            return Ok(None);
        }
        let step = trainer.step()?;
        let done = trainer.progress.step;
        if step.skipped {
            observer.notice(&format!(
                "step {done} was not taken: its loss {:.4} is a spike above {:.4}",
                step.outcome.mean_loss(),
                trainer.progress.smoothed_loss
            ));
        }
        observer.step(trainer, &step);
        if done.is_multiple_of(options.line_every) || done == steps {
            let (loss, correct, count) = std::mem::take(&mut trainer.progress.since_line);
            let outcome = Outcome { loss, correct, count };
            push(&mut metrics, trainer, Part::Train, outcome, &step, observer)?;
        }
        if done.is_multiple_of(trainer.config.eval_every) {
            let outcome = trainer.evaluate_part()?;
            push(&mut metrics, trainer, Part::Valid, outcome, &step, observer)?;
            let loss = outcome.mean_loss();
            if trainer.progress.best_loss.is_none_or(|best| loss < best) {
                trainer.progress.best_loss = Some(loss);
                if let Some(folder) = &options.folder {
                    trainer.checkpoint(&options.config_hash)?.write(&folder.join(BEST))?;
                }
            }
        }
        if done.is_multiple_of(options.checkpoint_every) || done == steps {
            save(trainer, options)?;
        }
    }
    let valid = trainer.evaluate_all()?;
    // It is there if the run was stopped between this line and its result.
    if metrics.lines.last().is_none_or(|line| line.part != Part::Whole) {
        let line = whole(trainer, valid, metrics.lines.last());
        observer.line(&line);
        metrics.push(line)?;
    }
    result(trainer, codec, options, &metrics, valid).map(Some)
}

/// The last line of a run. The last step, which a process that only measures has not made, is in the line `before`.
fn whole(trainer: &Trainer, outcome: Outcome, before: Option<&Line>) -> Line {
    Line {
        step: trainer.progress.step,
        part: Part::Whole,
        loss: outcome.mean_loss(),
        accuracy: outcome.accuracy(),
        coded_accuracy: trainer.coded_accuracy(),
        rate: trainer.config.schedule.rate(trainer.progress.step),
        gradient_norm: before.map_or(f64::NAN, |line| line.gradient_norm),
        tokens_per_s: trainer.tokens_per_s(),
    }
}

fn begin(trainer: &mut Trainer, options: &RunOptions, observer: &mut dyn Observer) -> Result<Metrics> {
    let Some(folder) = &options.folder else {
        return Ok(Metrics::in_memory());
    };
    std::fs::create_dir_all(folder).map_err(|error| io_error("create directory", folder, &error))?;
    let steps = checkpoint::steps(folder)?;
    for &step in steps.iter().rev() {
        let path = checkpoint::path(folder, step);
        match Checkpoint::read(&path) {
            Ok(found) if found.config_hash == options.config_hash => {
                trainer.restore(found)?;
                break;
            }
            Ok(_) => {
                return Err(
                    Error::user(format!("`{}` belongs to a different configuration", path.display()))
                        .help("choose another `--output` directory"),
                );
            }
            Err(error) => observer.notice(&format!("{}; going on from the one before", error.message())),
        }
    }
    Metrics::open(folder, trainer.progress.step)
}

fn save(trainer: &Trainer, options: &RunOptions) -> Result<()> {
    let Some(folder) = &options.folder else { return Ok(()) };
    let path = checkpoint::path(folder, trainer.progress.step);
    trainer.checkpoint(&options.config_hash)?.write(&path)?;
    checkpoint::prune(folder, options.keep)
}

fn push(
    metrics: &mut Metrics,
    trainer: &Trainer,
    part: Part,
    outcome: Outcome,
    step: &Step,
    observer: &mut dyn Observer,
) -> Result<()> {
    let line = Line {
        step: trainer.progress.step,
        part,
        loss: outcome.mean_loss(),
        accuracy: outcome.accuracy(),
        coded_accuracy: trainer.coded_accuracy(),
        rate: step.rate,
        gradient_norm: step.gradient_norm,
        tokens_per_s: trainer.tokens_per_s(),
    };
    observer.line(&line);
    metrics.push(line)
}

fn result(
    trainer: &Trainer,
    codec: &Codec,
    options: &RunOptions,
    metrics: &Metrics,
    valid: Outcome,
) -> Result<RunResult> {
    let curve = |part: Part| {
        let all: Vec<(u64, f64)> = metrics
            .lines
            .iter()
            .filter(|line| line.part == part)
            .map(|line| (line.step, line.loss))
            .collect();
        let stride = all.len().div_ceil(CURVE_POINTS).max(1);
        let last = all.len().saturating_sub(1);
        let kept = all.iter().enumerate().filter(|(at, _)| at % stride == 0 || *at == last);
        kept.map(|(_, point)| *point).collect::<Vec<_>>()
    };
    let (train_curve, mut valid_curve) = (curve(Part::Train), curve(Part::Valid));
    // A curve ends with the whole text, not with the part of it whose turn it was.
    valid_curve.retain(|point| point.0 < trainer.progress.step);
    valid_curve.extend(curve(Part::Whole));
    let sample = options.sample.as_ref().map(|(prompt, count, temperature)| {
        let ids = codec.encode(prompt).filter(|ids| !ids.is_empty()).ok_or_else(|| {
            Error::user(format!("the prompt `{prompt}` has characters that the text lacks"))
                .help("pass a `--prompt` made of characters of the text")
        })?;
        let sampling = SamplingConfig {
            temperature: *temperature,
            seed: trainer.config.seed,
            ..SamplingConfig::default()
        };
        let made = generate(&trainer.model, &trainer.parameters()?, &ids, *count, &sampling)?;
        Ok::<_, Error>(format!("{prompt}{}", codec.decode(&made)))
    });
    let progress = &trainer.progress;
    Ok(RunResult {
        attention: trainer.model.config.attention,
        seed: trainer.config.seed,
        steps: progress.step,
        trained_tokens: progress.tokens,
        parameters: trainer.model.layout.count() as u64,
        valid_loss: valid.mean_loss(),
        valid_perplexity: valid.mean_loss().exp(),
        valid_accuracy: valid.accuracy(),
        best_valid_loss: progress.best_loss,
        train_loss: train_curve.last().map_or(f64::NAN, |point| point.1),
        coded_accuracy: trainer.coded_accuracy(),
        first_loss: train_curve.first().map_or(f64::NAN, |point| point.1),
        tokens_per_s: trainer.tokens_per_s(),
        median_step_s: trainer.median_step_s(),
        skipped_steps: progress.skipped,
        memory: trainer.memory_use(),
        peak_rss_bytes: peak_memory::memory_use().peak_rss_bytes,
        train_curve,
        valid_curve,
        sample: sample.transpose()?,
    })
}
