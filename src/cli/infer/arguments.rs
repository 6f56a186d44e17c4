//! Arguments of `tokselect infer`.

use crate::cli::arguments::{ModelArgs, OutputArgs, PolicyArgs, tokens};
use crate::error::Result;
use crate::model::chat_template::ChatTemplateChoice;
use crate::model::sampling::SamplingConfig;
use crate::printer::Printer;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `tokselect infer`.
#[derive(Debug, Args)]
// `--top-k -1` is a wrong value, not an unknown flag `-1`.
#[command(allow_negative_numbers = true)]
pub struct InferArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
    #[command(flatten)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    pub policy: PolicyArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    /// Compare every selection of a single token with exact attention: recall@k and attention mass kept
    #[arg(long)]
    pub diagnose: bool,
    /// Write ids, last logits and every selection (on a GPU: of decode steps) to this JSON file, for parity checks; one prompt only
    #[arg(long, value_name = "FILE")]
    pub dump_logits: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Prompt")]
pub struct PromptArgs {
    /// The prompt [default: stdin, if it is not a terminal]
    #[arg(short, long, allow_hyphen_values = true, value_name = "TEXT", group = "source")]
    pub prompt: Option<String>,
    /// Read the prompt from a UTF-8 file, `-` for stdin
    #[arg(long, value_name = "FILE", group = "source")]
    pub prompt_file: Option<PathBuf>,
    /// Answer every line of a JSONL file with `prompt`, `messages` or `token_ids`; `-` for stdin
    #[arg(long, value_name = "FILE", group = "source")]
    pub prompts: Option<PathBuf>,
    /// Start from token ids: `1,5,7`, or a file that holds such a list
    #[arg(long, value_name = "IDS|FILE", group = "source")]
    pub token_ids: Option<String>,
    /// System message, where a chat template is used
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Chat template: auto (the model's own, if any), none, or a Jinja file
    #[arg(long, default_value = "auto", value_name = "auto|none|FILE")]
    pub chat_template: ChatTemplateChoice,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Generation")]
pub struct GenerationArgs {
    /// Tokens to generate at most
    #[arg(short = 'n', long, default_value_t = 256, value_name = "TOKENS", value_parser = tokens())]
    pub max_new_tokens: usize,
    /// Go on after an end-of-text token
    #[arg(long)]
    pub ignore_eos: bool,
    /// End the text where this string appears; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Sampling temperature, 0 for greedy
    #[arg(long, default_value_t = 0.0, value_name = "T", allow_hyphen_values = true)]
    pub temperature: f32,
    /// Sample from this many of the likeliest tokens
    #[arg(long, value_name = "K")]
    pub sample_top_k: Option<usize>,
    /// Sample from the fewest tokens that reach this probability
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub top_p: Option<f32>,
    /// Sample from tokens with at least this share of the largest probability
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub min_p: Option<f32>,
    /// Make tokens already in the text less likely, 1 for off
    #[arg(long, value_name = "R", allow_hyphen_values = true)]
    pub repetition_penalty: Option<f32>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl GenerationArgs {
    /// How tokens are chosen; a warning where flags change nothing.
    pub fn sampling(&self, printer: &Printer) -> Result<SamplingConfig> {
        let config = SamplingConfig {
            temperature: self.temperature,
            top_k: self.sample_top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        config.validate()?;
        let unused = self.sample_top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        if self.temperature == 0.0 && unused {
            printer.warning("decoding is greedy at temperature 0: --sample-top-k, --top-p and --min-p change nothing");
        }
        Ok(config)
    }
}
