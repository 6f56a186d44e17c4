//! `tokselect bench demo-corpus`: the demo model's training text, to read or to train on.

use crate::cli::Context;
use crate::error::{Error, Result, io_error};
use crate::eval::demo_corpus::pack::{self, Encoder, Rows};
use crate::eval::demo_corpus::{Corpus, Document, Kind, Mix};
use crate::exit::Outcome;
use crate::model::tokenizer::{Tokenizer, TokenizerFiles};
use clap::Args;
use rayon::prelude::*;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Documents of one shard: about three million tokens in rows of 1024.
const SHARD_DOCUMENTS: usize = 8192;
/// Lengths of evaluation rows, as far as they fit the window.
const EVALUATION_TOKENS: [usize; 4] = [256, 512, 1024, 2048];
/// Questions of each kind and length.
const EVALUATION_QUESTIONS: usize = 64;

/// Arguments of `tokselect bench demo-corpus`.
#[derive(Debug, Args)]
pub struct DemoCorpusArgs {
    /// Folder to write to; it is made
    #[arg(long, value_name = "DIR")]
    export: PathBuf,
    /// Documents to make
    #[arg(long, value_name = "N", default_value_t = 8192)]
    documents: usize,
    /// Number of the first document; with it, parts of one corpus can be made apart
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: usize,
    /// Seed of the corpus
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tokens in a row of a shard, and about the most in a document
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..=65_536))]
    window: u32,
    /// Kinds of documents with their shares, such as `needle=2,prose=1` [default: the recipe of the demo model]
    #[arg(long, value_name = "KIND=N,..")]
    mix: Option<String>,
    /// Write shards of token ids and weights for training, not text: a `tokenizer.json`
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

pub(super) fn run(args: &DemoCorpusArgs, context: &Context) -> Result<Outcome> {
    let corpus = Corpus {
        seed: args.seed,
        mix: args.mix.as_deref().map_or_else(|| Ok(Mix::default()), str::parse)?,
        window: args.window as usize,
    };
    let Some(end) = args.first.checked_add(args.documents) else {
        return Err(Error::user(format!("`--first {}` is too large", args.first)).help("pass a smaller number"));
    };
    std::fs::create_dir_all(&args.export).map_err(|e| io_error("make", &args.export, &e))?;
    match &args.tokenizer {
        None => text(args, &corpus, args.first..end, context),
        Some(tokenizer) => shards(args, &corpus, tokenizer, args.first..end, context),
    }
}

fn text(args: &DemoCorpusArgs, corpus: &Corpus, range: std::ops::Range<usize>, context: &Context) -> Result<Outcome> {
    let path = args.export.join("documents.jsonl");
    let file = std::fs::File::create(&path).map_err(|e| io_error("write", &path, &e))?;
    let mut file = std::io::BufWriter::new(file);
    let bar = context.printer.progress(range.len() as u64, "making documents");
    for start in range.clone().step_by(SHARD_DOCUMENTS) {
        if context.interrupt.is_raised() {
            return Err(Error::interrupted(format!("`{}` is not complete", path.display())));
        }
        let part = start..range.end.min(start + SHARD_DOCUMENTS);
        let lines: Vec<String> = part
            .clone()
            .into_par_iter()
            .map(|index| line(&corpus.document(index), index))
            .collect();
        file.write_all(lines.concat().as_bytes())
            .map_err(|e| io_error("write", &path, &e))?;
        bar.advance(part.len() as u64);
    }
    file.flush().map_err(|e| io_error("write", &path, &e))?;
    drop(bar);
    context
        .printer
        .line(&format!("{} documents in {}", range.len(), path.display()))
}

fn line(document: &Document, index: usize) -> String {
    let stretches: Vec<_> = document
        .ends()
        .iter()
        .map(|&(end, weight)| (end, weight as u8))
        .collect();
    format!(
        "{}\n",
        json!({"index": index, "kind": document.kind, "text": document.text(), "stretches": stretches})
    )
}

fn shards(
    args: &DemoCorpusArgs,
    corpus: &Corpus,
    tokenizer: &Path,
    range: std::ops::Range<usize>,
    context: &Context,
) -> Result<Outcome> {
    let tokenizer = Tokenizer::load(TokenizerFiles {
        tokenizer,
        tokenizer_config: None,
    })?;
    let about = json!({
        "seed": args.seed, "window": corpus.window, "documents": range.len(), "first": range.start, "mix": corpus.mix,
        "tokenizer_sha256": tokenizer.hash(), "vocab_size": tokenizer.vocab_size(),
        "layout": "rows x window u16 ids, then rows x window u8 weights",
    });
    let encoder = Encoder::new(tokenizer)?;
    write_whole(&args.export.join("corpus.json"), format!("{about:#}\n").as_bytes())?;
    evaluations(args, corpus, &encoder)?;
    let started = Instant::now();
    let bar = context.printer.progress(range.len() as u64, "making shards");
    let (mut tokens, mut left_out, mut slots) = (0, 0, 0);
    for start in range.clone().step_by(SHARD_DOCUMENTS) {
        if context.interrupt.is_raised() {
            return Err(Error::interrupted(format!(
                "whole shards are kept in `{}`",
                args.export.display()
            )));
        }
        let part = start..range.end.min(start + SHARD_DOCUMENTS);
        let length = part.len() as u64;
        let rows = pack::shard(corpus, &encoder, part, corpus.window)?;
        write_whole(&args.export.join(format!("rows-{start:09}.bin")), &rows.to_bytes())?;
        tokens += rows.used;
        left_out += rows.left_out;
        slots += rows.tokens.ids.len();
        bar.advance(length);
    }
    drop(bar);
    let seconds = started.elapsed().as_secs_f64();
    context.printer.line(&format!(
        "{tokens} tokens of {} documents in {}, rows {:.1} % full, {left_out} documents too long, {:.2} M tokens a second",
        range.len(),
        args.export.display(),
        100.0 * tokens as f64 / slots.max(1) as f64,
        tokens as f64 / 1e6 / seconds.max(1e-9)
    ))
}

/// One file for every kind and length that is asked for in training.
fn evaluations(args: &DemoCorpusArgs, corpus: &Corpus, encoder: &Encoder) -> Result<()> {
    let folder = args.export.join("evaluation");
    std::fs::create_dir_all(&folder).map_err(|e| io_error("make", &folder, &e))?;
    for tokens in EVALUATION_TOKENS.into_iter().filter(|&tokens| tokens <= corpus.window) {
        for kind in Kind::EVALUATED {
            let rows: Rows = pack::evaluation(corpus, encoder, kind, tokens, EVALUATION_QUESTIONS)?;
            if rows.rows > 0 {
                write_whole(&folder.join(format!("{}-{tokens}.bin", kind.name())), &rows.to_bytes())?;
            }
        }
    }
    Ok(())
}

/// Writes beside the place and renames, so that a reader never sees half a file.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, bytes).map_err(|e| io_error("write", &partial, &e))?;
    std::fs::rename(&partial, path).map_err(|e| io_error("rename", &partial, &e))
}
