//! `--export DIR`: the examples as JSONL, for scripts that read the benchmark's own files.

use super::examples::check_examples;
use super::plan::grid;
use super::{AccuracyArgs, CountBy, Suite};
use crate::cli::Context;
use crate::cli::loading;
use crate::error::{Error, Result, io_error};
use crate::eval::runner::Overhead;
use crate::eval::{CountTokens, WhitespaceTokens};
use crate::exit::Outcome;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

pub(super) fn run(suite: Suite, args: &AccuracyArgs, folder: &Path, context: &Context) -> Result<Outcome> {
    let tokens: Box<dyn CountTokens> = match args.task.count {
        CountBy::Words => Box::new(WhitespaceTokens),
        CountBy::Model => {
            let located = loading::locate_tokenizer(&args.model, context)?;
            let language = loading::language(&located, &args.task.chat_template, false)?;
            Box::new(
                language
                    .tokenizer
                    .ok_or_else(|| Error::bug("a required tokenizer was not located"))?,
            )
        }
    };
    // The files hold bare prompts, so nothing is taken off for a template.
    let grid = grid(suite, &args.task, Vec::new(), Overhead::default());
    check_examples(&grid, tokens.as_ref(), context)?;
    let total: usize = grid.cells.iter().map(|cell| cell.samples).sum();
    let bar = context.printer.progress(total as u64, "making examples");
    // Cells of one task and length lie together, so that one file is open at a time.
    let mut open: Option<(String, BufWriter<File>)> = None;
    for cell in &grid.cells {
        let task = &grid.tasks[cell.task];
        let name = match cell.length {
            Some(length) => format!("{length}/{}.jsonl", task.name()),
            None => format!("{}.jsonl", task.name()),
        };
        let path = folder.join(&name);
        let failed = |error: &std::io::Error| io_error("write", &path, error);
        let same = open.as_ref().is_some_and(|(current, _)| *current == name);
        if !same {
            if let Some((_, mut file)) = open.take() {
                file.flush().map_err(|e| failed(&e))?;
            }
            open = Some((name, create(&path)?));
        }
        let Some((_, file)) = &mut open else {
            return Err(Error::bug("no file is open"));
        };
        for index in 0..cell.samples {
            if context.interrupt.is_raised() {
                return Err(
                    Error::interrupted(format!("interrupted; what was made is in `{}`", folder.display()))
                        .help("remove it and run the same command again"),
                );
            }
            let request = grid.request(cell, index, tokens.as_ref());
            let example = task.example(&request)?;
            let mut line = serde_json::to_vec(&task.exported(&request, &example)?)
                .map_err(|e| Error::bug(format!("an example as JSON: {e}")))?;
            line.push(b'\n');
            file.write_all(&line).map_err(|e| failed(&e))?;
            bar.advance(1);
        }
    }
    if let Some((name, mut file)) = open {
        file.flush().map_err(|e| io_error("write", &folder.join(name), &e))?;
    }
    drop(bar);
    context
        .printer
        .status("Exported", &format!("{total} examples to {}", folder.display()));
    Ok(Outcome::Done)
}

/// A new file; one that is there is never overwritten.
fn create(path: &Path) -> Result<BufWriter<File>> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| io_error("create directory", parent, &e))?;
    }
    let created = File::options().write(true).create_new(true).open(path);
    created.map(BufWriter::new).map_err(|error| {
        let exists = error.kind() == std::io::ErrorKind::AlreadyExists;
        let error = io_error("write", path, &error);
        if exists {
            error.help("choose another `--export` directory; files are never overwritten")
        } else {
            error
        }
    })
}
