//! A look at the examples before any is asked: whether they can be made, and how long they are.

use crate::cli::Context;
use crate::error::{Error, Result};
use crate::eval::CountTokens;
use crate::eval::runner::{Cell, Grid};
use crate::model::prompt::PromptEncoder;
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room beyond the longest length: tokens of prompt and template may join differently than each by itself.
pub(super) const JOIN_TOKENS: usize = 16;

/// Makes examples of the shortest length, so that a length without room is told before weights are loaded: one of every
/// generated task, and all that are asked for of a loaded one, where any row may be malformed.
pub(super) fn check_examples(grid: &Grid, tokens: &dyn CountTokens, context: &Context) -> Result<()> {
    let mut samples = Vec::new();
    for task in 0..grid.tasks.len() {
        let cells = || grid.cells.iter().filter(move |cell| cell.task == task);
        let Some(shortest) = cells().min_by_key(|cell| cell.length) else {
            continue;
        };
        let rows = match grid.tasks[task].len() {
            Some(_) => cells().map(|cell| cell.samples).max().unwrap_or(0),
            None => 1,
        };
        samples.extend((0..rows).map(|index| (shortest, index)));
    }
    let checked = of_each(&samples, "checking examples", context, |cell, index| {
        grid.tasks[cell.task].example(&grid.request(cell, index, tokens))?;
        Ok(())
    });
    checked.map(drop)
}

/// Tokens that the longest question and its answer take.
pub(super) fn longest(grid: &Grid, encoder: &PromptEncoder<'_>, context: &Context) -> Result<usize> {
    if let Some(length) = grid.cells.iter().filter_map(|cell| cell.length).max() {
        return Ok(length + JOIN_TOKENS);
    }
    // Loaded examples are as long as they are; reading them all is little beside answering them.
    let cells = grid.cells.iter();
    let samples: Vec<(&Cell, usize)> = cells
        .flat_map(|cell| (0..cell.samples).map(move |index| (cell, index)))
        .collect();
    let taken = of_each(&samples, "counting tokens", context, |cell, index| {
        let task = &grid.tasks[cell.task];
        let example = task.example(&grid.request(cell, index, encoder.tokenizer))?;
        let question = encoder.question(&example.prompt, &example.answer_prefix, task.uses_chat_template())?;
        Ok(question.ids.len() + task.max_new_tokens())
    })?;
    Ok(taken.into_iter().max().unwrap_or(0))
}

/// What `work` makes of each sample, on all threads; of several errors, that of the first sample.
fn of_each<T: Send>(
    samples: &[(&Cell, usize)],
    what: &str,
    context: &Context,
    work: impl Fn(&Cell, usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let bar = context.printer.progress(samples.len() as u64, what);
    // Samples behind a faulty one are not worth their time; those before it may be faulty, too.
    let first_fault = AtomicUsize::new(usize::MAX);
    let one = |(at, &(cell, index)): (usize, &(&Cell, usize))| {
        if at > first_fault.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let made = if context.interrupt.is_raised() {
            Err(Error::interrupted("interrupted before the first answer")
                .help("pass `--limit N` to ask fewer samples of every task"))
        } else {
            work(cell, index)
        };
        bar.advance(1);
        made.map(Some).inspect_err(|_| {
            first_fault.fetch_min(at, Ordering::Relaxed);
        })
    };
    let made: Vec<Result<Option<T>>> = samples.par_iter().enumerate().map(one).collect();
    made.into_iter().filter_map(Result::transpose).collect()
}
