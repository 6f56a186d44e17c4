//! `--data`: the files of a benchmark's tasks, on disk or in a data set of the hub.

use super::{AccuracyArgs, Suite, chosen};
use crate::cli::Context;
use crate::error::{Error, Result};
use crate::eval::Task;
use crate::hub::{DataFile, HubOptions, find_data};
use std::path::Path;

/// The tasks of a benchmark that has data files.
pub(super) struct Benchmark<'a, S> {
    /// Name of the command in reports.
    pub command: &'static str,
    /// All tasks that can be read.
    pub all: &'a [S],
    /// A task's name.
    pub name: fn(S) -> &'static str,
    /// What its file may be called.
    pub files: fn(S) -> Vec<String>,
    /// What to know when a file is not found.
    pub absent_note: Option<&'static str>,
}

impl<S: Copy> Benchmark<'_, S> {
    /// The suite of the tasks that the command line names, read from `data` by `open`. All tasks means those whose file is
    /// there.
    pub(super) fn load(
        &self,
        data: &str,
        args: &AccuracyArgs,
        context: &Context,
        open: impl Fn(S, DataFile) -> Result<Box<dyn Task>>,
    ) -> Result<Suite> {
        let lengths = args.model.max_context.into_iter().collect();
        Ok(Suite {
            command: self.command,
            tasks: self
                .files(data, args, context)?
                .into_iter()
                .map(|(task, file)| open(task, file))
                .collect::<Result<_>>()?,
            cut_to_context: args.model.max_context.is_some() && args.task.lengths.is_none(),
            lengths,
            samples: usize::MAX,
            depths: Vec::new(),
        })
    }

    fn files(&self, data: &str, args: &AccuracyArgs, context: &Context) -> Result<Vec<(S, DataFile)>> {
        let known: Vec<&str> = self.all.iter().map(|&task| (self.name)(task)).collect();
        let named = &args.task.tasks;
        let mut places = chosen(&known, named)?;
        let all = named.iter().any(|name| name == "all");
        if all {
            // A file that is called after a task is that task's.
            places = file_of(data, &known).map_or(places, |at| vec![at]);
        }
        let wanted: Vec<Vec<String>> = places.iter().map(|&at| (self.files)(self.all[at])).collect();
        let options = HubOptions {
            revision: None,
            offline: args.model.offline,
            progress: context.printer.shows_progress(),
        };
        let noted = |error: Error| match self.absent_note {
            Some(note) => error.note(note),
            None => error,
        };
        let found = find_data(data, &wanted, &options).map_err(noted)?;
        let lacking = found.files.iter().filter(|file| file.is_none()).count();
        if lacking > 0 && (!all || lacking == found.files.len()) {
            return Err(noted(found.lacks()));
        }
        if lacking > 0 {
            let absent = places.iter().zip(&found.files).filter(|(_, file)| file.is_none());
            let absent: Vec<&str> = absent.map(|(&at, _)| known[at]).collect();
            context.printer.warning(&format!(
                "`--data {data}` has no file of {}; they are left out",
                absent.join(", ")
            ));
        }
        let tasks = places.into_iter().map(|at| self.all[at]);
        Ok(tasks
            .zip(found.files)
            .filter_map(|(task, file)| Some((task, file?)))
            .collect())
    }
}

/// The task that an existing file `data` is called after.
fn file_of(data: &str, known: &[&str]) -> Option<usize> {
    let path = Path::new(data);
    let stem = path.file_stem()?.to_str()?;
    path.is_file().then(|| known.iter().position(|name| *name == stem))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_name_only_if_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trec.jsonl");
        let name = path.to_str().unwrap().to_owned();
        assert_eq!(file_of(&name, &["lcc", "trec"]), None);
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(file_of(&name, &["lcc", "trec"]), Some(1));
        assert_eq!(file_of(&name, &["lcc"]), None);
    }
}
