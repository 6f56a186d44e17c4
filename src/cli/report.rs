//! `tokselect report`: what papers print, and runs beside it.

use super::Context;
use crate::error::Result;
use crate::exit::Outcome;
use crate::report::compare::{Run, beside_each_other, beside_paper};
use crate::report::paper_table::{names, paper};
use crate::report::{Format, Table, render_tables};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Arguments of `tokselect report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the accuracy tables of a paper
    Paper(PaperArgs),
    /// Set run directories beside each other and beside a paper's tables
    Compare(CompareArgs),
}

#[derive(Debug, Args)]
struct PaperArgs {
    /// Which paper
    #[arg(value_parser = PossibleValuesParser::new(names()))]
    paper: String,
    /// One table only
    #[arg(long, value_name = "NUMBER")]
    table: Option<u32>,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// Directories that `--output` of other commands wrote, their report.json, or a file of scripts/peers.py
    #[arg(required = true, value_name = "DIR")]
    runs: Vec<PathBuf>,
    /// The paper whose cells stand beside the scores
    #[arg(long, default_value = "tokenselect", value_parser = PossibleValuesParser::new(names()))]
    paper: String,
    /// One table of the paper only [default: those that the runs touch]
    #[arg(long, value_name = "NUMBER")]
    table: Option<u32>,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(super) fn run(args: &ReportArgs, context: &Context) -> Result<Outcome> {
    let (tables, format) = match &args.what {
        What::Paper(args) => (printed(args)?, args.format),
        What::Compare(args) => (compared(args, context)?, args.format),
    };
    let text = render_tables(&tables, format, &context.printer.stdout_style())?;
    context.printer.write_result(&text)
}

fn printed(args: &PaperArgs) -> Result<Vec<Table>> {
    let paper = paper(&args.paper)?;
    let tables = paper.select(args.table)?;
    tables.into_iter().map(|table| table.as_table(&paper)).collect()
}

fn compared(args: &CompareArgs, context: &Context) -> Result<Vec<Table>> {
    let paper = paper(&args.paper)?;
    let chosen = paper.select(args.table)?;
    let runs: Vec<Run> = args.runs.iter().map(|path| Run::load(path)).collect::<Result<_>>()?;
    for run in runs.iter().filter(|run| run.interrupted) {
        context
            .printer
            .warning(&format!("`{}` was interrupted: its results are partial", run.name));
    }
    let mut tables = beside_each_other(&runs)?;
    let before = tables.len();
    for printed in chosen {
        tables.extend(beside_paper(&paper, printed, &runs)?);
    }
    if tables.len() == before {
        let text = "no run asked what the paper's tables are about";
        if args.table.is_some() {
            context.printer.warning(text);
        } else {
            context.printer.detail(text);
        }
    }
    Ok(tables)
}
