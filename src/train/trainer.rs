//! One training run: model, optimiser and streams, step by step.

use super::checkpoint::Checkpoint;
use super::cross_entropy::Outcome;
use super::dropout::Dropout;
use super::engine::{Engine, EngineConfig, Gradient, Group, Place, Reading};
use super::schedule::Schedule;
use super::text::{Streams, Text};
use super::transformer_xl::{ModelConfig, Segment, TransformerXl};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::time::Instant;

/// Steps before the guard against loss spikes begins.
const GUARD_AFTER: u64 = 100;
/// Share of the old value in the smoothed loss that a spike is measured against.
const SMOOTHING: f64 = 0.98;
/// Skipped steps in a row that mean divergence.
const MOST_SKIPPED: u64 = 50;

/// How a model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// B, parallel streams of a step.
    pub batch: usize,
    /// Groups that the streams of a step are computed in, one after the other; their gradients are summed.
    pub accumulate: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Learning rate.
    pub schedule: Schedule,
    /// Largest norm of a gradient; a longer one is shortened.
    pub clip: f64,
    /// Probability of dropout.
    pub dropout: f64,
    /// Whether attention weights are computed again in the backward pass instead of kept; a GPU always does.
    pub recompute: bool,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// An evaluation reads the next of this many parts of the held-out text, going on where the last stopped; 1: all.
    pub eval_parts: usize,
    /// A step whose loss is above the smoothed loss times this is not taken; 0: no guard.
    pub spike_factor: f64,
    /// Every step trains on the first segment.
    pub overfit_batch: bool,
    /// Seed of parameters and dropout.
    pub seed: u64,
}

impl TrainConfig {
    /// What an engine is made for; refuses groups that do not divide the batch.
    pub fn engine(&self) -> Result<EngineConfig> {
        if self.batch == 0 || self.accumulate == 0 || !self.batch.is_multiple_of(self.accumulate) {
            return Err(Error::user(format!(
                "`--accumulate {}` does not divide `--batch {}`",
                self.accumulate, self.batch
            ))
            .help("pass numbers above 0 that divide"));
        }
        Ok(EngineConfig {
            batch: self.batch,
            accumulate: self.accumulate,
            recompute: self.recompute,
            dropout: self.dropout,
        })
    }
}

/// Counters of a run; with them, the tensors and the configuration, everything that follows is determined.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Correct symbols of all training and validation batches so far, as the paper's code counts them.
    pub coded_correct: u64,
    /// All symbols of the same.
    pub coded_count: u64,
    /// Smoothed training loss; 0 before the first step.
    pub smoothed_loss: f64,
    /// Steps not taken because of a loss spike.
    pub skipped: u64,
    /// The same in a row.
    pub skipped_in_row: u64,
    /// Next part of the held-out text.
    pub eval_part: usize,
    /// Lowest validation loss so far.
    pub best_loss: Option<f64>,
    /// Training steps since the last line of metrics: loss, correct, count.
    pub since_line: (f64, u64, u64),
    /// Time in training steps; not part of what is determined.
    pub train_s: f64,
    /// Symbols trained on.
    pub tokens: u64,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Loss of the batch before the step.
    pub outcome: Outcome,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub rate: f64,
    /// Whether it was not taken because of a loss spike.
    pub skipped: bool,
}

/// Bytes by component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// Parameters.
    pub weights_bytes: u64,
    /// Gradients.
    pub gradients_bytes: u64,
    /// Both moments of Adam.
    pub optimizer_bytes: u64,
    /// Buffers of a step at their peak, with the scratch of the kernels.
    pub activations_peak_bytes: u64,
}

/// A run in progress.
pub struct Trainer {
    /// The model.
    pub model: TransformerXl,
    /// How it is trained.
    pub config: TrainConfig,
    /// Counters.
    pub progress: Progress,
    engine: Box<dyn Engine>,
    train: Streams,
    valid: Streams,
    /// Of this process, in seconds.
    step_times: Vec<f64>,
}

impl Trainer {
    /// A run at its beginning, computed on `place`.
    pub fn new(model: ModelConfig, config: TrainConfig, text: &Text, place: &Place) -> Result<Self> {
        let model = TransformerXl::new(model)?;
        let segment = model.config.segment;
        let engine = config.engine()?;
        Ok(Self {
            train: Streams::new(&text.train, config.batch, segment, "training")?,
            valid: Streams::new(&text.valid, config.batch, segment, "held-out")?,
            engine: place.engine(&model, engine, model.layout.initial(config.seed))?,
            progress: Progress::default(),
            step_times: Vec::new(),
            model,
            config,
        })
    }

    /// Steps of one pass over the training text.
    pub fn steps_per_epoch(&self) -> u64 {
        self.train.segments() as u64
    }

    /// Median time of a step since the process began, in seconds: unlike the mean, it leaves out the first steps, in which
    /// a GPU loads its kernels.
    pub fn median_step_s(&self) -> Option<f64> {
        let mut times = self.step_times.clone();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied()
    }

    /// A copy of the parameters.
    pub fn parameters(&self) -> Result<Vec<f32>> {
        Ok(self.engine.state()?.parameters)
    }

    /// One optimiser step.
    pub fn step(&mut self) -> Result<Step> {
        let clock = Instant::now();
        let group = self.config.batch / self.config.accumulate;
        let number = if self.config.overfit_batch {
            0
        } else {
            (self.progress.step % self.steps_per_epoch()) as usize
        };
        if number == 0 {
            // The text begins again: what came before it is not its past.
            self.engine.forget(Reading::Training);
        }
        let ids = |at: usize| self.train.segment(number, at * group..(at + 1) * group);
        let ids: Vec<_> = (0..self.config.accumulate).map(ids).collect();
        let groups = ids.iter().enumerate().map(|(at, (inputs, targets))| Group {
            segment: Segment {
                inputs,
                targets,
                batch: group,
            },
            dropout: Dropout::new(
                self.config.dropout,
                self.config.seed,
                format!("{}/{at}", self.progress.step),
            ),
        });
        let gradient = self.engine.gradients(&groups.collect::<Vec<_>>())?;
        let step = self.update(gradient)?;
        self.count(&step);
        let seconds = clock.elapsed().as_secs_f64();
        self.progress.train_s += seconds;
        self.step_times.push(seconds);
        Ok(step)
    }

    fn update(&mut self, gradient: Gradient) -> Result<Step> {
        let Gradient {
            outcome,
            norm: gradient_norm,
        } = gradient;
        let t = self.progress.step + 1;
        let (loss, rate) = (outcome.mean_loss(), self.config.schedule.rate(t));
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(Error::user(format!(
                "the loss of step {t} is {loss} and the norm of its gradient {gradient_norm}"
            ))
            .note(format!(
                "learning rate {rate:.3e}; checkpoints written before are whole"
            ))
            .help("pass a lower `--rate`, a longer `--warmup`, or a smaller `--clip`"));
        }
        let smoothed = self.progress.smoothed_loss;
        let guarded = self.config.spike_factor > 0.0 && self.progress.step >= GUARD_AFTER;
        let skipped = guarded && loss > self.config.spike_factor * smoothed;
        if skipped {
            self.progress.skipped += 1;
            self.progress.skipped_in_row += 1;
            if self.progress.skipped_in_row > MOST_SKIPPED {
                return Err(Error::user(format!(
                    "the loss has stayed above {} times {smoothed:.4} for {MOST_SKIPPED} steps, until step {t}",
                    self.config.spike_factor
                ))
                .note("checkpoints written before are whole")
                .help("pass a lower `--rate`, or `--spike-factor 0` to train on regardless"));
            }
        } else {
            self.progress.skipped_in_row = 0;
            let old = if self.progress.step == 0 { loss } else { smoothed };
            self.progress.smoothed_loss = SMOOTHING * old + (1.0 - SMOOTHING) * loss;
            let clip = self.config.clip;
            let factor = if clip > 0.0 && gradient_norm > clip {
                clip / gradient_norm
            } else {
                1.0
            };
            self.engine.update(t, rate, factor)?;
        }
        Ok(Step {
            outcome,
            gradient_norm,
            rate,
            skipped,
        })
    }

    fn count(&mut self, step: &Step) {
        let progress = &mut self.progress;
        progress.step += 1;
        progress.tokens += step.outcome.count;
        progress.coded_correct += step.outcome.correct;
        progress.coded_count += step.outcome.count;
        progress.since_line.0 += step.outcome.loss;
        progress.since_line.1 += step.outcome.correct;
        progress.since_line.2 += step.outcome.count;
    }

    /// The next part of the held-out text; counts in the coded metric, as in the paper's code.
    pub fn evaluate_part(&mut self) -> Result<Outcome> {
        let segments = self.valid.segments();
        // A part without a segment would have no loss.
        let parts = self.config.eval_parts.clamp(1, segments);
        let part = self.progress.eval_part % parts;
        if part == 0 {
            self.engine.forget(Reading::Part);
        }
        let range = segments * part / parts..segments * (part + 1) / parts;
        let outcome = self.evaluate_range(range, Reading::Part)?;
        self.progress.eval_part = (part + 1) % parts;
        self.progress.coded_correct += outcome.correct;
        self.progress.coded_count += outcome.count;
        Ok(outcome)
    }

    /// All of the held-out text from its beginning; counts nowhere.
    pub fn evaluate_all(&mut self) -> Result<Outcome> {
        self.engine.forget(Reading::Whole);
        self.evaluate_range(0..self.valid.segments(), Reading::Whole)
    }

    fn evaluate_range(&mut self, range: Range<usize>, reading: Reading) -> Result<Outcome> {
        let mut all = Outcome::default();
        for number in range {
            let (inputs, targets) = self.valid.segment(number, 0..self.valid.batch());
            let segment = Segment {
                inputs: &inputs,
                targets: &targets,
                batch: self.valid.batch(),
            };
            all.add(self.engine.evaluate(segment, reading)?);
        }
        if !all.loss.is_finite() {
            return Err(Error::user(format!(
                "the held-out loss after step {} is {}",
                self.progress.step,
                all.mean_loss()
            ))
            .note("checkpoints written before are whole")
            .help("pass a lower `--rate`, a longer `--warmup`, or a smaller `--clip`"));
        }
        Ok(all)
    }

    /// Accuracy as the paper's code logs it: correct symbols since the first step over training and validation batches
    /// mixed.
    pub fn coded_accuracy(&self) -> f64 {
        self.progress.coded_correct as f64 / self.progress.coded_count as f64
    }

    /// Symbols trained on in a second, without evaluations.
    pub fn tokens_per_s(&self) -> f64 {
        self.progress.tokens as f64 / self.progress.train_s.max(1e-9)
    }

    /// Bytes by component so far.
    pub fn memory_use(&self) -> MemoryUse {
        self.engine.memory_use()
    }

    /// Everything that is needed to go on.
    pub fn checkpoint(&self, config_hash: &str) -> Result<Checkpoint> {
        let state = self.engine.state()?;
        let mut tensors = Vec::new();
        for (prefix, data) in [
            ("parameters", &state.parameters),
            ("first_moment", &state.first),
            ("second_moment", &state.second),
        ] {
            for spec in self.model.layout.specs() {
                let name = format!("{prefix}.{}", spec.name);
                tensors.push((name, spec.shape.clone(), data[spec.range()].to_vec()));
            }
        }
        let memories = state.memories.into_iter().enumerate();
        let memories = memories.map(|(at, memory)| (format!("memory.{at}"), memory));
        for (prefix, memory) in memories.chain([("eval_memory".to_owned(), state.part_memory)]) {
            for (l, rows) in memory.layers.into_iter().enumerate() {
                tensors.push((format!("{prefix}.{l}"), vec![rows.len()], rows));
            }
        }
        Ok(Checkpoint {
            tensors,
            progress: self.progress.clone(),
            config_hash: config_hash.to_owned(),
        })
    }

    /// Takes over the state of a checkpoint of the same configuration.
    pub fn restore(&mut self, mut checkpoint: Checkpoint) -> Result<()> {
        let mut state = self.engine.state()?;
        for (prefix, data) in [
            ("parameters", &mut state.parameters),
            ("first_moment", &mut state.first),
            ("second_moment", &mut state.second),
        ] {
            for spec in self.model.layout.specs() {
                let tensor = checkpoint.take(&format!("{prefix}.{}", spec.name))?;
                if tensor.len() != spec.len() {
                    return Err(
                        Error::user(format!("tensor `{}` of a checkpoint has another size", spec.name))
                            .help("choose another `--output` directory"),
                    );
                }
                data[spec.range()].copy_from_slice(&tensor);
            }
        }
        for (at, memory) in state.memories.iter_mut().enumerate() {
            for (l, rows) in memory.layers.iter_mut().enumerate() {
                *rows = checkpoint.take(&format!("memory.{at}.{l}"))?;
            }
        }
        for (l, rows) in state.part_memory.layers.iter_mut().enumerate() {
            *rows = checkpoint.take(&format!("eval_memory.{l}"))?;
        }
        self.engine.load(state)?;
        self.progress = checkpoint.progress;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::attention::{AttentionKind, Convolution, TableSize};
    use crate::train::text::Unit;

    fn trainer(clip: f64) -> Trainer {
        let text = Text::split(Unit::Char, &"a line to learn by heart\n".repeat(20)).unwrap();
        let model = ModelConfig {
            attention: AttentionKind::Rcmha,
            vocab: text.codec.vocab(),
            layers: 1,
            d_model: 8,
            heads: 2,
            d_ffn: 8,
            memory: 4,
            segment: 4,
            convolution: Convolution::default(),
            table: TableSize::Clipped,
        };
        let config = TrainConfig {
            batch: 2,
            accumulate: 1,
            steps: 1000,
            schedule: Schedule::Noam {
                factor: 1.0,
                warmup: 10,
                d_model: 8,
            },
            clip,
            dropout: 0.0,
            recompute: true,
            eval_every: 100,
            eval_parts: 1,
            spike_factor: 3.0,
            overfit_batch: false,
            seed: 1,
        };
        Trainer::new(model, config, &text, &Place::Cpu).unwrap()
    }

    /// A gradient of this norm after a batch of this mean loss.
    fn gradient(loss: f64, norm: f64) -> Gradient {
        let outcome = Outcome {
            loss: 8.0 * loss,
            correct: 1,
            count: 8,
        };
        Gradient { outcome, norm }
    }

    #[test]
    fn a_spike_of_the_loss_is_skipped_and_many_in_a_row_end_the_run() {
        let mut trainer = trainer(1.0);
        trainer.step().unwrap();
        trainer.progress.smoothed_loss = 1.0;
        // Before the guard begins, any finite loss is learned from.
        assert!(!trainer.update(gradient(9.0, 1.0)).unwrap().skipped);
        (trainer.progress.step, trainer.progress.smoothed_loss) = (GUARD_AFTER, 1.0);
        let before = trainer.parameters().unwrap();
        assert!(trainer.update(gradient(3.1, 1.0)).unwrap().skipped);
        assert_eq!(trainer.parameters().unwrap(), before);
        assert_eq!((trainer.progress.skipped, trainer.progress.smoothed_loss), (1, 1.0));
        assert!(!trainer.update(gradient(2.9, 1.0)).unwrap().skipped);
        assert_ne!(trainer.parameters().unwrap(), before);
        assert_eq!(trainer.progress.skipped_in_row, 0);
        for _ in 0..MOST_SKIPPED {
            assert!(trainer.update(gradient(99.0, 1.0)).unwrap().skipped);
        }
        let error = trainer.update(gradient(99.0, 1.0)).unwrap_err();
        assert!(
            error.exit_code() == 2 && error.to_string().contains("--spike-factor 0"),
            "{error}"
        );
        trainer.config.spike_factor = 0.0;
        assert!(!trainer.update(gradient(99.0, 1.0)).unwrap().skipped);
        for (loss, norm) in [(f64::NAN, 1.0), (1.0, f64::INFINITY)] {
            let error = trainer.update(gradient(loss, norm)).unwrap_err();
            assert!(error.to_string().contains("--rate"), "{error}");
        }
    }

    /// Adam's moments show what the optimiser was given: after one step the first is a tenth of it.
    #[test]
    fn a_long_gradient_is_shortened_to_the_clip_and_a_short_one_is_not() {
        let given = |clip: f64| {
            let mut trainer = trainer(clip);
            let norm = trainer.step().unwrap().gradient_norm;
            let first = trainer.engine.state().unwrap().first;
            let squares: f64 = first.iter().map(|&x| f64::from(x).powi(2)).sum();
            (norm, 10.0 * squares.sqrt())
        };
        let (norm, whole) = given(0.0);
        assert!(norm > 0.02 && (whole / norm - 1.0).abs() < 1e-5, "{norm} {whole}");
        assert!((given(0.01).1 / 0.01 - 1.0).abs() < 1e-5);
        assert!((given(2.0 * norm).1 / norm - 1.0).abs() < 1e-5);
    }
}
