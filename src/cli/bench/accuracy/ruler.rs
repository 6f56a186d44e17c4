//! `tokselect bench ruler`.

use super::{AccuracyArgs, Suite, chosen_tasks, run as run_suite};
use crate::cli::Context;
use crate::error::Result;
use crate::eval::ruler::{MaterialFiles, Settings, WordFiles, tasks};
use crate::exit::Outcome;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `tokselect bench ruler`.
#[derive(Debug, Args)]
pub struct RulerArgs {
    #[command(flatten)]
    accuracy: AccuracyArgs,
    #[command(flatten)]
    material: MaterialArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Material")]
struct MaterialArgs {
    /// Text of the essay haystack, a UTF-8 file [default: generated sentences]
    #[arg(long, value_name = "FILE")]
    essay: Option<PathBuf>,
    /// Questions of `qa_1` in the format of `SQuAD` [default: invented]
    #[arg(long, value_name = "FILE")]
    squad: Option<PathBuf>,
    /// Questions of `qa_2` in the format of `HotpotQA` [default: invented]
    #[arg(long, value_name = "FILE")]
    hotpot_qa: Option<PathBuf>,
    /// Nouns, one per line [default: embedded]
    #[arg(long, value_name = "FILE")]
    nouns: Option<PathBuf>,
    /// Adjectives, one per line [default: embedded]
    #[arg(long, value_name = "FILE")]
    adjectives: Option<PathBuf>,
    /// Verbs, one per line [default: embedded]
    #[arg(long, value_name = "FILE")]
    verbs: Option<PathBuf>,
}

pub(in crate::cli::bench) fn run(args: &RulerArgs, context: &Context) -> Result<Outcome> {
    let material = &args.material;
    let files = MaterialFiles {
        words: WordFiles {
            nouns: material.nouns.clone(),
            adjectives: material.adjectives.clone(),
            verbs: material.verbs.clone(),
        },
        essay: material.essay.clone(),
        squad: material.squad.clone(),
        hotpot_qa: material.hotpot_qa.clone(),
    };
    let suite = || {
        let tasks = tasks(&Settings {
            files,
            ..Settings::default()
        })?;
        Ok(Suite {
            command: "bench ruler",
            tasks: chosen_tasks(tasks, &args.accuracy.task.tasks)?,
            lengths: vec![4096, 8192, 16384, 32768],
            samples: 20,
            depths: Vec::new(),
            cut_to_context: false,
        })
    };
    run_suite(suite, &args.accuracy, context)
}
