//! The command line: arguments to a validated plan, plan to a run. One file per command.

pub mod arguments;
mod baseline_arguments;
mod bench;
mod device;
mod doctor;
mod icn_probe;
mod infer;
mod loading;
mod or_auto;
mod prompts;
mod rcmha_train;
mod report;
mod run_output;
mod tokenize;

use crate::config::expand_arguments;
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::interrupt::Interrupt;
use crate::printer::{Printer, PrinterOptions};
use arguments::GlobalArgs;
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;

/// Long-context inference with token-level KV cache selection, measured.
#[derive(Debug, Parser)]
#[command(name = "tokselect", version, about, max_term_width = 110, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 a stated bound failed, 2 wrong input, 3 the machine cannot do it, 70 a \
                        bug, 130 interrupted with partial results kept."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: GlobalArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Continue a prompt, dense or with a selection policy
    #[command(visible_alias = "select-infer")]
    Infer(Box<infer::InferArgs>),
    /// Measure speed and memory on this machine
    Bench(Box<bench::BenchArgs>),
    /// Probe the vocabulary keys: clusters, spurious neighbours, in-context navigation (arXiv 2410.02284)
    IcnProbe(Box<icn_probe::IcnProbeArgs>),
    /// Train language models that differ in their attention (MHA, MDHA, RMHA, RCMHA), and compare them
    RcmhaTrain(Box<rcmha_train::RcmhaTrainArgs>),
    /// Set results of runs beside each other, and beside what a paper prints
    Report(report::ReportArgs),
    /// Print the token ids of a text as JSON
    Tokenize(tokenize::TokenizeArgs),
    /// Show what this machine offers: device, threads, memory, cache folders, libraries
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What every command gets.
pub(crate) struct Context {
    pub printer: Printer,
    pub interrupt: Interrupt,
    /// Arguments as typed, for the report.
    pub command_line: Vec<String>,
}

/// Each thread takes a stack; a slip of the keyboard must not start a million of them.
const MOST_THREADS: usize = 4096;

/// Parses `arguments` (program name first) and runs the command.
pub fn main(arguments: Vec<OsString>) -> Result<Outcome> {
    let command_line = arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let arguments = expand_arguments(arguments, &Cli::command())?;
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return Printer::new(PrinterOptions::default()).clap(&error),
    };
    let options = cli.global.printer_options();
    if let Some(threads) = cli.global.threads {
        if threads == 0 {
            return Err(Error::user("`--threads 0` runs nothing").help("pass 1 or more, or leave the flag out"));
        }
        if threads > MOST_THREADS {
            return Err(
                Error::user(format!("`--threads {threads}` is more than any machine has cores")).help(format!(
                    "pass at most {MOST_THREADS}, or leave the flag out for all cores"
                )),
            );
        }
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .map_err(|e| {
                Error::environment(format!("cannot start {threads} threads: {e}")).help("pass fewer with `--threads`")
            })?;
    }
    let notices = Printer::new(options);
    let interrupt = Interrupt::install_with(move || {
        notices.warning("stopping; what is done is kept. Press Ctrl-C again to stop at once");
    })?;
    let context = Context {
        printer: Printer::new(options),
        interrupt,
        command_line,
    };
    // On a thread of the pool, parallel steps need no hand-over from outside; a decode step has over a hundred of them.
    rayon::scope(|_| run(cli.command, &context))
}

fn run(command: Command, context: &Context) -> Result<Outcome> {
    match command {
        Command::Infer(args) => infer::run(&args, context),
        Command::Bench(args) => bench::run(&args, context),
        Command::IcnProbe(args) => icn_probe::run(&args, context),
        Command::RcmhaTrain(args) => rcmha_train::run(&args, context),
        Command::Report(args) => report::run(&args, context),
        Command::Tokenize(args) => tokenize::run(&args, context),
        Command::Doctor(args) => doctor::run(&args, context),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tokselect", &mut script);
            context.printer.write_result(&String::from_utf8_lossy(&script))
        }
    }
}
