//! `tokselect bench`: one subcommand per thing that can be measured.

mod accuracy;
mod demo_corpus;
mod end_to_end;
mod gpu;
mod perplexity;
mod variants;

use super::Context;
use crate::error::Result;
use crate::exit::Outcome;
use clap::{Args, Subcommand};

/// Arguments of `tokselect bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Time prefill and decode steps of a whole model under several policies, with checks and memory
    EndToEnd(Box<end_to_end::EndToEndArgs>),
    /// Time attention of one layer on a GPU, dense and selecting, each checked against f32
    Attention(Box<gpu::attention::AttentionArgs>),
    /// Time every kernel of the GPU engine by itself, against the chip's own limits and against f32
    Kernels(Box<gpu::kernels::KernelsArgs>),
    /// Make the text that the demo model is trained on
    DemoCorpus(demo_corpus::DemoCorpusArgs),
    /// Find a five-digit key in repeated sentences, by length, depth and policy
    Passkey(Box<accuracy::AccuracyArgs>),
    /// The thirteen RULER tasks at any length (arXiv 2404.06654)
    Ruler(Box<accuracy::RulerArgs>),
    /// `InfiniteBench`: six tasks generated at any length, or all twelve from its data (arXiv 2402.13718)
    InfiniteBench(Box<accuracy::InfiniteBenchArgs>),
    /// The sixteen English tasks of `LongBench`, from its data (arXiv 2308.14508)
    LongBench(Box<accuracy::LongBenchArgs>),
    /// Perplexity of a long text under several policies, and their distance from dense on it
    Perplexity(Box<perplexity::PerplexityArgs>),
}

pub(super) fn run(args: &BenchArgs, context: &Context) -> Result<Outcome> {
    match &args.command {
        BenchCommand::EndToEnd(args) => end_to_end::run(args, context),
        BenchCommand::Attention(args) => gpu::attention::run(args, context),
        BenchCommand::Kernels(args) => gpu::kernels::run(args, context),
        BenchCommand::DemoCorpus(args) => demo_corpus::run(args, context),
        BenchCommand::Passkey(args) => accuracy::run_passkey(args, context),
        BenchCommand::Ruler(args) => accuracy::run_ruler(args, context),
        BenchCommand::InfiniteBench(args) => accuracy::run_infinite_bench(args, context),
        BenchCommand::LongBench(args) => accuracy::run_long_bench(args, context),
        BenchCommand::Perplexity(args) => perplexity::run(args, context),
    }
}

fn positive(text: &str) -> std::result::Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&n| n > 0)
        .ok_or_else(|| "pass whole numbers of 1 or more".to_owned())
}

/// Reads `4096`, `4k` (4096) or `1m` (1048576).
fn parse_length(text: &str) -> std::result::Result<usize, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, factor) = match (lower.strip_suffix('k'), lower.strip_suffix('m')) {
        (Some(digits), _) => (digits, 1 << 10),
        (_, Some(digits)) => (digits, 1 << 20),
        _ => (lower.as_str(), 1),
    };
    // Far beyond any context, and small enough that no size in bytes overflows.
    let most = 1 << 32;
    digits
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|length| (1..=most).contains(length))
        .ok_or_else(|| "pass tokens, 1 or more, such as 4096, 4k or 1m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read() {
        assert_eq!(parse_length("4096"), Ok(4096));
        assert_eq!(parse_length("4k"), Ok(4096));
        assert_eq!(parse_length("1M"), Ok(1 << 20));
        for wrong in ["0", "0k", "-1", "4.5k", "k", "99999999m"] {
            assert!(parse_length(wrong).is_err(), "{wrong}");
        }
    }
}
