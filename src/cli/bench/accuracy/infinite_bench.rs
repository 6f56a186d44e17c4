//! `tokselect bench infinite-bench`.

use super::benchmark_data::Benchmark;
use super::{AccuracyArgs, Suite, TaskArgs, chosen, positive, run as run_suite};
use crate::cli::Context;
use crate::error::{Error, Result};
use crate::eval::Task;
use crate::eval::infinite_bench::{GENERATED, GenerateSettings, InfiniteBench, PromptSet, Subtask, generate};
use crate::exit::Outcome;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

const COMMAND: &str = "bench infinite-bench";
/// What the answer to a generated Math.Calc may take at most; see [`GenerateSettings`].
const MOST_MATH_CALC_TOKENS: usize = 1024;

/// Arguments of `tokselect bench infinite-bench`.
#[derive(Debug, Args)]
pub struct InfiniteBenchArgs {
    #[command(flatten)]
    accuracy: AccuracyArgs,
    #[command(flatten)]
    benchmark: BenchmarkArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Benchmark")]
struct BenchmarkArgs {
    /// The benchmark's own data: a JSONL file, a directory with the files, or a hub data set such as
    /// `xinrongzhang2022/InfiniteBench`; all rows are asked, whole, or cut in the middle to each of `--lengths`, else to
    /// `--max-context` [default: examples of six tasks are generated]
    #[arg(long, value_name = "FILE|DIR|ORG/NAME[@REVISION]")]
    data: Option<String>,
    /// Whose prompts and answer lengths
    #[arg(long, value_parser = prompt_sets(), default_value = "token-select")]
    prompts: PromptSet,
    /// Tokens that the answer to `math_calc` may take [default: generated, a quarter of the shortest length, at most 1024;
    /// with `--data` the prompts' own, 30000 or more]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    math_calc_tokens: Option<usize>,
}

fn prompt_sets() -> impl TypedValueParser<Value = PromptSet> {
    PossibleValuesParser::new(PromptSet::ALL.map(PromptSet::name)).try_map(|name| name.parse::<PromptSet>())
}

pub(in crate::cli::bench) fn run(args: &InfiniteBenchArgs, context: &Context) -> Result<Outcome> {
    let InfiniteBenchArgs { accuracy, benchmark } = args;
    let suite = || match &benchmark.data {
        None => generated(&accuracy.task, benchmark),
        Some(data) => {
            let files = Benchmark {
                command: COMMAND,
                all: &Subtask::ALL,
                name: Subtask::name,
                files: Subtask::data_files,
                absent_note: Some("the benchmark's own files are in the hub data set `xinrongzhang2022/InfiniteBench`"),
            };
            files.load(data, accuracy, context, |subtask, file| {
                let task = InfiniteBench::open(file, subtask, benchmark.prompts)?;
                Ok(Box::new(task.with_math_calc_tokens(benchmark.math_calc_tokens)))
            })
        }
    };
    run_suite(suite, accuracy, context)
}

/// The tasks that need no data.
fn generated(args: &TaskArgs, benchmark: &BenchmarkArgs) -> Result<Suite> {
    let names = |subtasks: &[Subtask]| -> Vec<&str> { subtasks.iter().map(|subtask| subtask.name()).collect() };
    let (all, known) = (names(&Subtask::ALL), names(&GENERATED));
    // All twelve are known by name, so that one which needs the data says so.
    chosen(&all, &args.tasks)?;
    let loaded = args
        .tasks
        .iter()
        .find(|name| *name != "all" && !known.contains(&name.as_str()));
    if let Some(name) = loaded {
        return Err(Error::user(format!(
            "`--tasks {name}` cannot be generated: it needs the benchmark's data"
        ))
        .note(format!("generated are {}", known.join(", ")))
        .help("pass `--data` with its files, such as `--data xinrongzhang2022/InfiniteBench`"));
    }
    let lengths = vec![4096, 8192, 16384];
    let shortest = args.lengths.as_ref().unwrap_or(&lengths).iter().min();
    let share = shortest.map_or(MOST_MATH_CALC_TOKENS, |shortest| shortest / 4);
    let settings = GenerateSettings {
        prompts: benchmark.prompts,
        math_calc_tokens: benchmark
            .math_calc_tokens
            .unwrap_or(share.clamp(1, MOST_MATH_CALC_TOKENS)),
    };
    let tasks: Result<Vec<Box<dyn Task>>> = chosen(&known, &args.tasks)?
        .into_iter()
        .map(|at| generate(GENERATED[at], settings))
        .collect();
    Ok(Suite {
        command: COMMAND,
        tasks: tasks?,
        lengths,
        samples: 5,
        depths: Vec::new(),
        cut_to_context: false,
    })
}
