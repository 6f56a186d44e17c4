//! `tokselect bench`: one subcommand per thing that can be measured.

mod accuracy;
mod end_to_end;

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
    /// Find a five-digit key in repeated sentences, by length, depth and policy
    Passkey(Box<accuracy::AccuracyArgs>),
}

pub(super) fn run(args: &BenchArgs, context: &Context) -> Result<Outcome> {
    match &args.command {
        BenchCommand::EndToEnd(args) => end_to_end::run(args, context),
        BenchCommand::Passkey(args) => accuracy::run(accuracy::passkey(), args, context),
    }
}
