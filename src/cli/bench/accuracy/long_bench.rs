//! `tokselect bench long-bench`.

use super::benchmark_data::Benchmark;
use super::{AccuracyArgs, run as run_suite};
use crate::cli::Context;
use crate::error::Result;
use crate::eval::long_bench::{LongBench, PACKED, PromptSet, Subtask};
use crate::exit::Outcome;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

/// Arguments of `tokselect bench long-bench`.
#[derive(Debug, Args)]
pub struct LongBenchArgs {
    #[command(flatten)]
    accuracy: AccuracyArgs,
    #[command(flatten)]
    benchmark: BenchmarkArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Benchmark")]
struct BenchmarkArgs {
    /// The benchmark's own data: a JSONL file, a directory with the unpacked files, or a hub data set that holds them
    /// unpacked; all rows are asked, whole, or cut in the middle to each of `--lengths`, else to `--max-context`
    #[arg(long, value_name = "FILE|DIR|ORG/NAME[@REVISION]")]
    data: String,
    /// Whose prompts; token-select has no blank lines
    #[arg(long, value_parser = prompt_sets(), default_value = "official")]
    prompts: PromptSet,
}

fn prompt_sets() -> impl TypedValueParser<Value = PromptSet> {
    PossibleValuesParser::new(PromptSet::ALL.map(PromptSet::name)).try_map(|name| name.parse::<PromptSet>())
}

pub(in crate::cli::bench) fn run(args: &LongBenchArgs, context: &Context) -> Result<Outcome> {
    let LongBenchArgs { accuracy, benchmark } = args;
    let files = Benchmark {
        command: "bench long-bench",
        all: &Subtask::ALL,
        name: Subtask::name,
        files: Subtask::data_files,
        absent_note: Some(PACKED),
    };
    let suite = || {
        files.load(&benchmark.data, accuracy, context, |subtask, file| {
            Ok(Box::new(LongBench::open(file, subtask, benchmark.prompts)?))
        })
    };
    run_suite(suite, accuracy, context)
}
