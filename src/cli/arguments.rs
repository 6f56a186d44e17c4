//! Groups of arguments that commands share, spelled the same everywhere.

use super::baseline_arguments::BaselineArgs;
use super::or_auto::{self, OrAuto};
use crate::bytes::parse_bytes;
use crate::error::{Error, Result};
use crate::hub::DEMO;
use crate::kernels::{HeadMap, Positions, ScoreDtype};
use crate::printer::PrinterOptions;
use crate::report::Format;
use crate::selection::{Budget, CacheThreshold, ChunkQuery, PolicyConfig, ScoreScale, TokenSelectConfig, Vote};
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Far beyond any text, and small enough that no size in bytes overflows.
pub(super) const MOST_TOKENS: u64 = 1 << 32;

/// Reads a number of tokens.
pub(super) fn tokens() -> RangedU64ValueParser<usize> {
    between(0, MOST_TOKENS)
}

/// Reads a number of tokens above 0.
pub(super) fn at_least_one() -> RangedU64ValueParser<usize> {
    between(1, MOST_TOKENS)
}

/// Reads a number from `least` to `most`.
pub(super) fn between(least: u64, most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=most)
}

/// Flags of every command.
#[derive(Debug, Args)]
pub struct GlobalArgs {
    /// Read flags from a TOML file; its keys are the long flags
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one flag, over the file and under explicit flags
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Threads to compute on [default: all cores]
    #[arg(
        long,
        global = true,
        value_name = "N",
        env = "RAYON_NUM_THREADS",
        hide_env_values = true
    )]
    pub threads: Option<usize>,
    /// Nothing on stderr but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// More on stderr
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// No progress bars
    #[arg(long, global = true)]
    pub no_progress: bool,
}

impl GlobalArgs {
    pub(super) fn printer_options(&self) -> PrinterOptions {
        PrinterOptions {
            quiet: self.quiet,
            verbose: self.verbose,
            no_progress: self.no_progress,
        }
    }
}

/// Type in which weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// What the device computes in
    Auto,
    /// Single precision
    F32,
    /// Half precision
    F16,
    /// bfloat16
    Bf16,
}

/// Which model, from where, on what.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Model: a directory, a `.safetensors` or `config.json` file, a hub id `Org/Name[@REVISION]`, or `demo`, the one built
    /// in [default: demo; `bench end-to-end`: a shape]
    #[arg(short, long, value_name = "ID|DIR|FILE")]
    pub model: Option<String>,
    /// Branch, tag or commit on the hub
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// Never touch the network; list what is missing
    #[arg(long)]
    pub offline: bool,
    /// Make weights from a seed instead of reading them; needs a config only
    #[arg(long, value_name = "SEED")]
    pub random_weights: Option<u64>,
    /// Type of the weights in memory: f32 on the CPU, bf16 or f16 on a GPU (`auto`: bf16, for the built-in model f16)
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: Dtype,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// Tokens the KV cache may hold [default: what the run needs]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    pub max_context: Option<usize>,
    /// Refuse to use more memory than this, such as 24GiB [default: what is available]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_memory: Option<usize>,
}

impl ModelArgs {
    /// The model reference: what was named, else the built-in model.
    pub fn reference(&self) -> &str {
        self.model.as_deref().unwrap_or(DEMO)
    }
}

/// A switch that says its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

impl Switch {
    fn is_on(self) -> bool {
        self == Self::On
    }
}

/// Policies by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    /// Attend to every stored token
    Dense,
    /// Attend to the tokens that the query heads vote for (arXiv 2411.02886)
    TokenSelect,
    /// Attend to the first tokens and a sliding window (arXiv 2309.17453)
    StreamingLlm,
    /// Dense, NTK-aware rotary base
    Ntk,
    /// Dense, `YaRN` (arXiv 2309.00071)
    Yarn,
    /// Dense, far distances in groups (arXiv 2401.01325)
    SelfExtend,
    /// A window, and blocks looked up by representative keys (arXiv 2402.04617)
    InfLlm,
    /// In decode, pages by bounds of their keys (arXiv 2406.10774)
    Quest,
    /// In decode, what the end of the prompt looks at (arXiv 2404.14469)
    SnapKv,
    /// Heavy hitters and recent tokens (arXiv 2306.14048)
    H2o,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VoteName {
    /// Softmax per head, summed over heads
    Soft,
    /// Each head votes for its own top-k
    Head,
    /// Sum of raw scores
    Logit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HeadMapName {
    /// h / group: the model's own map
    Grouped,
    /// h mod Hkv: what the published code does
    Modulo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScoreScaleName {
    /// As published
    None,
    /// Divide by the square root of the head dimension
    SqrtD,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScoreDtypeName {
    /// Single precision
    F32,
    /// bfloat16 scores, probabilities and votes
    Bf16,
    /// Single precision, but in decode from an 8-bit copy of the keys (GPU only)
    Int8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PositionsName {
    /// Contiguous from 0, always inside the trained window
    Packed,
    /// As in the text
    Original,
}

fn parse_threshold(text: &str) -> std::result::Result<CacheThreshold, String> {
    if text == "off" {
        return Ok(CacheThreshold::Off);
    }
    text.parse()
        .map(CacheThreshold::Cosine)
        .map_err(|_| "pass a cosine such as 0.9, or `off`".to_owned())
}

fn parse_chunk_query(text: &str) -> std::result::Result<ChunkQuery, String> {
    match text {
        "mean" => Ok(ChunkQuery::Mean),
        "last" => Ok(ChunkQuery::Last),
        _ => text
            .strip_prefix("subchunk:")
            .and_then(|rows| rows.parse().ok())
            .filter(|&rows| rows as u64 <= MOST_TOKENS)
            .map(ChunkQuery::Subchunk)
            .ok_or_else(|| "pass mean, last, or subchunk:S with S rows".to_owned()),
    }
}

/// The policy and its knobs. Flags left out take the preset's value.
#[derive(Debug, Args)]
#[command(next_help_heading = "Selection policy")]
pub struct PolicyArgs {
    /// Which cached tokens a query may see
    #[arg(long, value_enum, default_value = "dense")]
    pub policy: PolicyName,
    /// Set the published code's exact behaviour; other flags still override it
    #[arg(long)]
    pub paper: bool,
    /// First tokens always kept; auto is 128, halved together with n-local, top-k and prefill-chunk until the four fit the
    /// trained window [default: auto]
    #[arg(long, value_name = "TOKENS|auto", value_parser = or_auto::tokens)]
    n_init: Option<OrAuto<usize>>,
    /// Most recent tokens always kept; auto is 512, halved as n-init is [default: auto]
    #[arg(long, value_name = "TOKENS|auto", value_parser = or_auto::tokens)]
    n_local: Option<OrAuto<usize>>,
    /// Tokens chosen in between; auto is 2048, halved as n-init is [default: auto]
    #[arg(long, value_name = "TOKENS|auto", value_parser = or_auto::tokens)]
    top_k: Option<OrAuto<usize>>,
    /// Prompt tokens per forward pass; auto is 512, halved as n-init is [default: auto]
    #[arg(long, value_name = "TOKENS|auto", value_parser = or_auto::tokens)]
    prefill_chunk: Option<OrAuto<usize>>,
    /// Reuse a selection in decode at this cosine or above, or off [default: 0.9]
    #[arg(long, value_name = "COSINE|off", value_parser = parse_threshold, allow_hyphen_values = true)]
    cache_threshold: Option<CacheThreshold>,
    /// How head scores become one vote per token [default: soft]
    #[arg(long, value_enum)]
    vote: Option<VoteName>,
    /// Which KV head a query head is scored against [default: grouped]
    #[arg(long, value_enum)]
    head_map: Option<HeadMapName>,
    /// Factor on the scores [default: none]
    #[arg(long, value_enum)]
    score_scale: Option<ScoreScaleName>,
    /// Max-pool kernel over the votes, 0 for none [default: 0]
    #[arg(long, value_name = "K", value_parser = tokens())]
    smoothing: Option<usize>,
    /// Queries of a chunk that select: mean, last, or subchunk:S [default: mean]
    #[arg(long, value_parser = parse_chunk_query, value_name = "QUERY")]
    chunk_query: Option<ChunkQuery>,
    /// The last prompt token selects for itself [default: on]
    #[arg(long, value_enum)]
    last_token_alone: Option<Switch>,
    /// On a cache hit, tokens that left the window since the miss stay visible [default: on]
    #[arg(long, value_enum)]
    cache_gap_repair: Option<Switch>,
    /// Precision of scores and votes [default: f32]
    #[arg(long, value_enum)]
    score_dtype: Option<ScoreDtypeName>,
    /// Keep n-local tokens before the chunk, not including it [default: on]
    #[arg(long, value_enum)]
    local_outside_chunk: Option<Switch>,
    /// Where selected keys are placed; quest, snap-kv and h2o take original [default: packed]
    #[arg(long, value_enum)]
    positions: Option<PositionsName>,
    #[command(flatten)]
    baselines: BaselineArgs,
}

impl PolicyArgs {
    /// The policy that the flags describe, for a model of this trained window; `None`: with the published sizes.
    pub fn policy(&self, trained: Option<usize>) -> Result<PolicyConfig> {
        self.named(self.policy, trained)
    }

    /// Prompt tokens per forward pass, for a model of this trained window.
    pub fn prefill_chunk(&self, trained: Option<usize>) -> usize {
        or_auto::stated(self.prefill_chunk).unwrap_or(self.budget(trained).prefill_chunk)
    }

    fn budget(&self, trained: Option<usize>) -> Budget {
        match trained {
            Some(trained) if !self.paper => Budget::for_window(trained),
            _ => Budget::PUBLISHED,
        }
    }

    /// The policy `name` with the settings that the flags describe.
    pub fn named(&self, name: PolicyName, trained: Option<usize>) -> Result<PolicyConfig> {
        if self.prefill_chunk(trained) == 0 {
            return Err(Error::user("`--prefill-chunk 0` processes nothing").help("pass 1 or more, such as 512"));
        }
        let preset = if self.paper {
            TokenSelectConfig::paper()
        } else {
            TokenSelectConfig::default()
        };
        let budget = self.budget(trained);
        let config = TokenSelectConfig {
            n_init: or_auto::stated(self.n_init).unwrap_or(budget.n_init),
            n_local: or_auto::stated(self.n_local).unwrap_or(budget.n_local),
            top_k: or_auto::stated(self.top_k).unwrap_or(budget.top_k),
            cache_threshold: self.cache_threshold.unwrap_or(preset.cache_threshold),
            vote: self.vote.map_or(preset.vote, |vote| match vote {
                VoteName::Soft => Vote::Soft,
                VoteName::Head => Vote::Head,
                VoteName::Logit => Vote::Logit,
            }),
            head_map: self.head_map.map_or(preset.head_map, |map| match map {
                HeadMapName::Grouped => HeadMap::Grouped,
                HeadMapName::Modulo => HeadMap::Modulo,
            }),
            score_scale: self.score_scale.map_or(preset.score_scale, |scale| match scale {
                ScoreScaleName::None => ScoreScale::None,
                ScoreScaleName::SqrtD => ScoreScale::SqrtD,
            }),
            smoothing: self.smoothing.unwrap_or(preset.smoothing),
            chunk_query: self.chunk_query.unwrap_or(preset.chunk_query),
            last_token_alone: self.last_token_alone.map_or(preset.last_token_alone, Switch::is_on),
            cache_gap_repair: self.cache_gap_repair.map_or(preset.cache_gap_repair, Switch::is_on),
            score_dtype: self.score_dtype.map_or(preset.score_dtype, |dtype| match dtype {
                ScoreDtypeName::F32 | ScoreDtypeName::Int8 => ScoreDtype::F32,
                ScoreDtypeName::Bf16 => ScoreDtype::Bf16,
            }),
            int8_keys: self.score_dtype == Some(ScoreDtypeName::Int8),
            local_outside_chunk: self
                .local_outside_chunk
                .map_or(preset.local_outside_chunk, Switch::is_on),
            positions: self.placed().unwrap_or(preset.positions),
        };
        let policy = match name {
            PolicyName::Dense => PolicyConfig::Dense,
            PolicyName::TokenSelect => PolicyConfig::TokenSelect(config.clone()),
            PolicyName::StreamingLlm => PolicyConfig::StreamingLlm {
                n_init: config.n_init,
                n_local: config.n_local,
                positions: config.positions,
            },
            PolicyName::Ntk => self.baselines.ntk(),
            PolicyName::Yarn => self.baselines.yarn(),
            PolicyName::SelfExtend => self.baselines.self_extend(),
            PolicyName::InfLlm => self.baselines.inf_llm(&config),
            PolicyName::Quest => self.baselines.quest(&config, self.placed()),
            PolicyName::SnapKv => self.baselines.snap_kv(&config, self.placed()),
            PolicyName::H2o => self.baselines.h2o(&config, self.placed()),
        };
        // A knob that the policy does not read must still make sense: it is there by mistake or for later.
        PolicyConfig::TokenSelect(config).validate()?;
        self.baselines.ntk().validate()?;
        policy.validate()?;
        Ok(policy)
    }

    fn placed(&self) -> Option<Positions> {
        self.positions.map(|positions| match positions {
            PositionsName::Packed => Positions::Packed,
            PositionsName::Original => Positions::Original,
        })
    }

    /// Flags that are given but that the chosen policy does not read.
    pub fn unread(&self) -> Vec<&'static str> {
        use PolicyName::{H2o, InfLlm, Quest, SnapKv, StreamingLlm, TokenSelect};
        let selecting: &[PolicyName] = &[TokenSelect, InfLlm, Quest, SnapKv, H2o];
        let placing: &[PolicyName] = &[TokenSelect, StreamingLlm, Quest, SnapKv, H2o];
        let keeping: &[PolicyName] = &[TokenSelect, StreamingLlm, InfLlm, Quest, SnapKv, H2o];
        let mut flags = vec![
            ("--n-init", self.n_init.is_some(), keeping),
            ("--n-local", self.n_local.is_some(), keeping),
            ("--positions", self.positions.is_some(), placing),
            ("--top-k", self.top_k.is_some(), selecting),
            ("--paper", self.paper, &[TokenSelect]),
            ("--cache-threshold", self.cache_threshold.is_some(), &[TokenSelect]),
            ("--vote", self.vote.is_some(), &[TokenSelect]),
            ("--head-map", self.head_map.is_some(), &[TokenSelect]),
            ("--score-scale", self.score_scale.is_some(), &[TokenSelect]),
            ("--smoothing", self.smoothing.is_some(), &[TokenSelect]),
            ("--chunk-query", self.chunk_query.is_some(), &[TokenSelect]),
            ("--last-token-alone", self.last_token_alone.is_some(), &[TokenSelect]),
            ("--cache-gap-repair", self.cache_gap_repair.is_some(), &[TokenSelect]),
            ("--score-dtype", self.score_dtype.is_some(), &[TokenSelect]),
            (
                "--local-outside-chunk",
                self.local_outside_chunk.is_some(),
                &[TokenSelect],
            ),
        ];
        flags.extend(self.baselines.given());
        let unread = flags
            .iter()
            .filter(|(_, given, readers)| *given && !readers.contains(&self.policy));
        unread.map(|(flag, _, _)| *flag).collect()
    }

    /// Refuses a window or sinks that the stated context can never hold. (Presets are larger than many texts; such a
    /// text is simply attended to whole.)
    pub fn check_context(&self, max_context: usize) -> Result<()> {
        for (flag, value) in [("--n-init", self.n_init), ("--n-local", self.n_local)] {
            if let Some(value) = or_auto::stated(value).filter(|&value| value > max_context) {
                return Err(Error::user(format!(
                    "`{flag} {value}` is more than the context, `--max-context {max_context}`"
                ))
                .help(format!("pass a smaller `{flag}` or a larger `--max-context`")));
            }
        }
        Ok(())
    }
}

/// Where results go.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Write report.json, samples.jsonl, table.csv and table.md to this directory; resumes a run that was stopped
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Print the report in this form at the end
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Show the plan (tokens, memory) and stop
    #[arg(long)]
    pub dry_run: bool,
}
