//! Flags of `tokselect rcmha-train`, and what they make of a text.

use crate::cli::arguments::{Dtype, at_least_one, between};
use crate::cli::device::training_place;
use crate::error::{Error, Result};
use crate::train::attention::{AttentionKind, Convolution, TableSize};
use crate::train::engine::Place;
use crate::train::schedule::Schedule;
use crate::train::text::Unit;
use crate::train::trainer::TrainConfig;
use crate::train::transformer_xl::ModelConfig;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Positions of the relative table in the paper's code.
const PAPER_POSITIONS: usize = 4096;
/// Runs of one matrix; more would be a typing error.
const MOST_SEEDS: u64 = 1000;
/// What no model comes near; below them, the forecast of memory decides.
const MOST_LAYERS: u64 = 1 << 12;
const MOST_WIDTH: u64 = 1 << 20;
const MOST_POSITIONS: u64 = 1 << 24;
const MOST_KERNEL: u64 = 1 << 10;
const MOST_STEPS: u64 = 1 << 40;

/// Arguments of `tokselect rcmha-train`.
#[derive(Debug, Args)]
// `--steps -1` is a wrong value, not an unknown flag `-1`.
#[command(allow_negative_numbers = true)]
pub struct RcmhaTrainArgs {
    /// Attentions to train, one after the other with every seed
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["mha", "mdha", "rmha", "rcmha"])]
    pub attention: Vec<AttentionKind>,
    /// Number of seeds; run k of them has seed `--seed` + k
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = between(1, MOST_SEEDS))]
    pub seeds: usize,
    /// First seed
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Attention that the others are compared with, seed by seed [default: rmha if it is trained, else the first]
    #[arg(long, value_enum)]
    pub reference: Option<AttentionKind>,
    /// The setting of the paper's released code: segment 2, memory 32, batch 32, 6 layers, d 128, 8 heads, feed-forward 256,
    /// 10 epochs, Noam with 2000 steps of warm-up, clip 1, table of 4096 positions; other flags still override it
    #[arg(long)]
    pub paper: bool,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub model: SizeArgs,
    #[command(flatten)]
    pub training: TrainingArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
    #[command(flatten)]
    pub output: RunArgs,
}

/// Where it is computed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Device")]
pub struct ComputeArgs {
    /// Where to compute: auto (the first GPU, if there is one), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// Type of activations and of the weights that products read: auto (f32), f32, or on a GPU bf16; parameters, optimiser
    /// and sums are f32 in any case
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: Dtype,
    /// Instead of training, compare the gradients on the device with those of the CPU in f64, for every attention; with
    /// `--dropout`, under the same masks
    #[arg(long)]
    pub check_gradients: bool,
}

impl ComputeArgs {
    /// The device, opened.
    pub fn place(&self) -> Result<Place> {
        training_place(&self.device, self.dtype)
    }
}

/// Which text.
#[derive(Debug, Args)]
#[command(next_help_heading = "Text")]
pub struct DataArgs {
    /// A UTF-8 file, `-` for stdin, a directory or a hub data set with `train.txt` and `valid.txt` (or `input.txt`), or the
    /// name of a text on the hub: tiny-shakespeare, wikitext-2, wikitext-103, wikitext-2-raw, wikitext-103-raw
    /// [default: stories that are part of the program]
    #[arg(long, value_name = "FILE|DIR|ID|NAME")]
    pub data: Option<String>,
    /// The held-out text, if it is a file of its own [default: the last tenth]
    #[arg(long, value_name = "FILE", requires = "data")]
    pub valid: Option<PathBuf>,
    /// What a symbol is: char, byte, or bpe:N for N byte-pair tokens learned from the text
    #[arg(long, default_value = "char", value_name = "UNIT")]
    pub unit: Unit,
    /// Branch, tag or commit on the hub
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
}

/// Sizes of the model. Defaults are in two sets; see `--paper`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct SizeArgs {
    /// Layers [default: 2]
    #[arg(long, value_name = "N", value_parser = between(1, MOST_LAYERS))]
    pub layers: Option<usize>,
    /// Elements of a hidden state [default: 64]
    #[arg(long, value_name = "N", value_parser = between(1, MOST_WIDTH))]
    pub d_model: Option<usize>,
    /// Attention heads [default: 4]
    #[arg(long, value_name = "N", value_parser = between(1, MOST_WIDTH))]
    pub heads: Option<usize>,
    /// Hidden elements of the feed-forward part [default: twice d-model]
    #[arg(long, value_name = "N", value_parser = between(1, MOST_WIDTH))]
    pub d_ffn: Option<usize>,
    /// Symbols of a segment [default: 64]
    #[arg(long, value_name = "N", value_parser = between(1, MOST_POSITIONS))]
    pub segment: Option<usize>,
    /// Positions of memory per layer [default: the segment]
    #[arg(long, value_name = "N", value_parser = between(0, MOST_POSITIONS))]
    pub memory: Option<usize>,
    /// Width of the depth-wise convolution along time
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = between(1, MOST_KERNEL))]
    pub kernel: usize,
    /// Projections that are convolved: any of q, k and v
    #[arg(long, value_name = "QKV", default_value = "qkv", value_parser = parse_projections)]
    pub convolve: Projections,
    /// A convolution of its own for every head, as in Primer, instead of one that the heads share
    #[arg(long)]
    pub per_head: bool,
    /// Rows of the relative table: clipped (what is read), or positions P for 2 P rows [default: clipped]
    #[arg(long, value_name = "P|clipped", value_parser = parse_table)]
    pub relative_table: Option<TableSize>,
}

/// How it is trained.
#[derive(Debug, Args)]
#[command(next_help_heading = "Training")]
pub struct TrainingArgs {
    /// Parallel streams of a step [default: 16]
    #[arg(long, value_name = "N", value_parser = between(1, MOST_WIDTH))]
    pub batch: Option<usize>,
    /// Groups that a step's streams are computed in, for less memory; divides the batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = between(1, MOST_WIDTH))]
    pub accumulate: usize,
    /// Optimiser steps [default: 600, or those of `--epochs`]
    #[arg(long, value_name = "N", conflicts_with = "epochs", value_parser = clap::value_parser!(u64).range(1..=MOST_STEPS))]
    pub steps: Option<u64>,
    /// Passes over the training text
    #[arg(long, value_name = "X", value_parser = parse_positive)]
    pub epochs: Option<f64>,
    /// How the learning rate moves [default: cosine]
    #[arg(long, value_enum)]
    pub schedule: Option<ScheduleName>,
    /// Peak rate of cosine [default: 0.003], factor of noam [default: 1]
    #[arg(long, value_name = "X", value_parser = parse_positive)]
    pub rate: Option<f64>,
    /// Steps of warm-up [default: a twentieth of the steps; noam: 2000]
    #[arg(long, value_name = "STEPS")]
    pub warmup: Option<u64>,
    /// Longest gradient; 0 for no clipping
    #[arg(long, value_name = "NORM", default_value_t = 1.0, value_parser = parse_not_negative)]
    pub clip: f64,
    /// Probability of dropout on attention weights, activations and both branches
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = parse_probability)]
    pub dropout: f64,
    /// How attention weights reach the backward pass: recompute (memory linear in the segment) or keep (quadratic, as
    /// autograd does; a GPU recomputes)
    #[arg(long, value_enum, default_value = "recompute")]
    pub attention_weights: WeightsName,
    /// A step whose loss is above the smoothed loss times this is not taken; 0 for no guard
    #[arg(long, value_name = "X", default_value_t = 3.0, value_parser = parse_not_negative)]
    pub spike_factor: f64,
    /// Train on the first batch only: the loss must fall below a tenth of its beginning, or the run fails
    #[arg(long)]
    pub overfit_batch: bool,
    /// Steps between evaluations [default: a tenth of the steps]
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub eval_every: Option<u64>,
    /// Parts of the held-out text; each evaluation reads the next one [default: 1, all of it]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub eval_parts: Option<usize>,
}

/// What comes out.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct RunArgs {
    /// Steps between checkpoints, in `--output`/ATTENTION-seed-N [default: a tenth of the steps]
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: Option<u64>,
    /// Checkpoints that are kept of a run, besides the best one
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_one())]
    pub keep_checkpoints: usize,
    /// Steps between lines of metrics [default: a two-hundredth of the steps]
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub log_every: Option<u64>,
    /// Symbols to generate at the end of every run; 0 for none
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = between(0, MOST_POSITIONS))]
    pub generate: usize,
    /// What generated text begins with [default: the first line break or symbol of the text]
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Divisor of the logits when generating; 0 takes the likeliest symbol
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    pub temperature: f32,
    #[command(flatten)]
    pub output: crate::cli::arguments::OutputArgs,
}

/// Names of learning rate schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScheduleName {
    /// Rises linearly, falls with the root of the step (Vaswani et al. 2017)
    Noam,
    /// Rises linearly, falls by half a cosine to a tenth
    Cosine,
}

/// What happens to attention weights between the passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightsName {
    /// Two numbers of a row are kept, its weights computed again
    Recompute,
    /// All weights are kept
    Keep,
}

/// Which projections are convolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Projections {
    query: bool,
    key: bool,
    value: bool,
}

fn parse_projections(text: &str) -> Result<Projections, String> {
    let known = !text.is_empty() && text.chars().all(|letter| "qkv".contains(letter));
    let has = |letter: char| text.contains(letter);
    known
        .then(|| Projections {
            query: has('q'),
            key: has('k'),
            value: has('v'),
        })
        .ok_or_else(|| "pass letters of q, k and v, such as kv".to_owned())
}

fn parse_table(text: &str) -> Result<TableSize, String> {
    if text == "clipped" {
        return Ok(TableSize::Clipped);
    }
    let positions = text.parse().ok().filter(|p| (1..=1 << 24).contains(p));
    positions
        .map(TableSize::Full)
        .ok_or_else(|| "pass clipped, or positions such as 4096".to_owned())
}

fn number(text: &str, good: fn(f64) -> bool, wanted: &str) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|&x: &f64| x.is_finite() && good(x));
    parsed.ok_or_else(|| format!("pass {wanted}"))
}

fn parse_positive(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0, "a number above 0")
}

fn parse_not_negative(text: &str) -> Result<f64, String> {
    number(text, |x| x >= 0.0, "a number of 0 or more")
}

fn parse_probability(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..1.0).contains(&x), "a number from 0 to below 1")
}

impl RcmhaTrainArgs {
    /// The model with `attention` over `vocab` symbols.
    pub fn model(&self, attention: AttentionKind, vocab: usize) -> ModelConfig {
        let size = &self.model;
        // Paper, else own defaults, which train in a minute.
        let or = |flag: Option<usize>, paper: usize, own: usize| flag.unwrap_or(if self.paper { paper } else { own });
        let d_model = or(size.d_model, 128, 64);
        let segment = or(size.segment, 2, 64);
        let table = if self.paper {
            TableSize::Full(PAPER_POSITIONS)
        } else {
            TableSize::Clipped
        };
        ModelConfig {
            attention,
            vocab,
            layers: or(size.layers, 6, 2),
            d_model,
            heads: or(size.heads, 8, 4),
            d_ffn: or(size.d_ffn, 256, 2 * d_model),
            memory: or(size.memory, 32, segment),
            segment,
            convolution: Convolution {
                kernel: size.kernel,
                query: size.convolve.query,
                key: size.convolve.key,
                value: size.convolve.value,
                per_head: size.per_head,
            },
            table: size.relative_table.unwrap_or(table),
        }
    }

    /// Parallel streams of a step.
    pub fn batch(&self) -> usize {
        self.training.batch.unwrap_or(if self.paper { 32 } else { 16 })
    }

    /// How the first run is trained, whose text has `steps_per_epoch` segments.
    pub fn training(&self, model: &ModelConfig, steps_per_epoch: u64) -> Result<TrainConfig> {
        let training = &self.training;
        let epochs = training.epochs.or(self.paper.then_some(10.0));
        let steps = match (training.steps, epochs) {
            (Some(steps), _) => steps,
            (None, Some(epochs)) => (epochs * steps_per_epoch as f64).round() as u64,
            (None, None) => 600,
        };
        if steps == 0 {
            return Err(Error::user("`--epochs` is less than one step").help("pass more epochs, or `--steps`"));
        }
        if steps > MOST_STEPS {
            return Err(
                Error::user(format!("`--epochs` makes {steps} steps, and {MOST_STEPS} are the most"))
                    .help("pass fewer epochs, or `--steps`"),
            );
        }
        let noam = match training.schedule {
            Some(name) => name == ScheduleName::Noam,
            None => self.paper,
        };
        let schedule = if noam {
            Schedule::Noam {
                factor: training.rate.unwrap_or(1.0),
                warmup: training.warmup.unwrap_or(2000),
                d_model: model.d_model,
            }
        } else {
            Schedule::Cosine {
                peak: training.rate.unwrap_or(3e-3),
                warmup: training.warmup.unwrap_or(steps.div_ceil(20)),
                steps,
            }
        };
        // The paper's code alternates 25 times an epoch between a part of the training and of the held-out text.
        let eval_parts = training.eval_parts.unwrap_or(if self.paper { 25 } else { 1 });
        let eval_every = if self.paper {
            steps_per_epoch.div_ceil(25)
        } else {
            steps.div_ceil(10)
        };
        Ok(TrainConfig {
            batch: self.batch(),
            accumulate: training.accumulate,
            steps,
            schedule,
            clip: training.clip,
            dropout: training.dropout,
            recompute: training.attention_weights == WeightsName::Recompute,
            eval_every: training.eval_every.unwrap_or(eval_every),
            eval_parts,
            spike_factor: training.spike_factor,
            overfit_batch: training.overfit_batch,
            seed: self.seed,
        })
    }
}
