//! `tokselect tokenize`: the ids of a text, as JSON.

use super::Context;
use super::prompts::read_text;
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::hub::{DEMO, HubOptions, Need, resolve};
use crate::model::tokenizer::{Tokenizer, TokenizerFiles};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `tokselect tokenize`.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    #[command(flatten)]
    model: TokenizerModelArgs,
    /// The text
    #[arg(
        long,
        short,
        allow_hyphen_values = true,
        required_unless_present = "file",
        conflicts_with = "file"
    )]
    text: Option<String>,
    /// A UTF-8 file with the text, `-` for stdin
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Leave out special tokens such as BOS
    #[arg(long)]
    no_special_tokens: bool,
}

/// Which tokenizer.
#[derive(Debug, Args)]
struct TokenizerModelArgs {
    /// Model: a directory, a hub id `Org/Name[@REVISION]`, or `demo`, the one built in
    #[arg(short, long, value_name = "ID|DIR", default_value = DEMO)]
    model: String,
    /// Branch, tag or commit on the hub
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Never touch the network; list what is missing
    #[arg(long)]
    offline: bool,
}

pub(super) fn run(args: &TokenizeArgs, context: &Context) -> Result<Outcome> {
    let options = HubOptions {
        revision: args.model.revision.clone(),
        offline: args.model.offline,
        progress: context.printer.shows_progress(),
    };
    let files = resolve(&args.model.model, Need::ConfigAndTokenizer, &options)?;
    let path = files
        .tokenizer
        .as_deref()
        .ok_or_else(|| Error::bug("a required tokenizer was not located"))?;
    let tokenizer = Tokenizer::load(TokenizerFiles {
        tokenizer: path,
        tokenizer_config: files.tokenizer_config.as_deref(),
    })?;
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => read_text(file)?,
        (None, None) => return Err(Error::bug("clap let a missing text pass")),
    };
    let ids = tokenizer.encode(&text, !args.no_special_tokens)?;
    let json = serde_json::to_string(&ids).map_err(|e| Error::bug(format!("ids as JSON: {e}")))?;
    context.printer.line(&json)
}
