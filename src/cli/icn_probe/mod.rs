//! `tokselect icn-probe`: one subcommand per thing that can be asked of the key space.

mod clusters;
mod correlate;
mod engine;
mod generate;
mod navigate;
mod navigation_arguments;
mod reason;
mod run;
mod speed;
mod sweep;

use super::Context;
use crate::error::Result;
use crate::exit::Outcome;
use clap::{Args, Subcommand};

/// Arguments of `tokselect icn-probe`.
#[derive(Debug, Args)]
pub struct IcnProbeArgs {
    #[command(subcommand)]
    command: IcnProbeCommand,
}

#[derive(Debug, Subcommand)]
enum IcnProbeCommand {
    /// Cluster the vocabulary keys by k-means
    Clusters(Box<clusters::ClustersArgs>),
    /// Ask whether tokens near the winners' keys are over-ranked: precision by rank, inside and outside their clusters
    Correlate(Box<correlate::CorrelateArgs>),
    /// Ask for many answers to list questions: in-context navigation against other ways, at equal cost
    Navigate(Box<navigate::NavigateArgs>),
    /// Ask for sets of texts, and measure how diverse and how valid they are
    Generate(Box<generate::GenerateArgs>),
    /// Ask for several paths of thought to word problems, and vote
    Reason(Box<reason::ReasonArgs>),
    /// Time the engine: completions in a batch, one by one, and re-encoded for every token
    Speed(Box<speed::SpeedArgs>),
}

pub(super) fn run(args: &IcnProbeArgs, context: &Context) -> Result<Outcome> {
    match &args.command {
        IcnProbeCommand::Clusters(args) => clusters::run(args, context),
        IcnProbeCommand::Correlate(args) => correlate::run(args, context),
        IcnProbeCommand::Navigate(args) => navigate::run(args, context),
        IcnProbeCommand::Generate(args) => generate::run(args, context),
        IcnProbeCommand::Reason(args) => reason::run(args, context),
        IcnProbeCommand::Speed(args) => speed::run(args, context),
    }
}
