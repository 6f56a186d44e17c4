//! The text that `--data` names.

use super::arguments::DataArgs;
use crate::cli::prompts::read_text;
use crate::error::{Error, Result};
use crate::hub::{FoundData, HubEnvironment, HubOptions, find_data};
use crate::train::known_texts::{known_names, known_text, names_from};
use crate::train::text::Text;
use std::path::{Path, PathBuf};

/// Stories from the program's own generator; see `datasets/stories/README.md`.
const STORIES: &str = include_str!("../../../datasets/stories/stories.txt");

/// A text, and what to call it.
pub struct Named {
    /// The text.
    pub text: Text,
    /// As it was named.
    pub name: String,
}

/// Names of a training part, a held-out part, and a whole text, in the order of preference.
fn wanted() -> Vec<Vec<String>> {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    vec![
        names(&["train.txt", "wiki.train.tokens", "wiki.train.raw"]),
        names(&["valid.txt", "validation.txt", "wiki.valid.tokens", "wiki.valid.raw"]),
        names(&["input.txt", "tiny_shakespeare.txt", "tinyshakespeare.txt"]),
    ]
}

/// Reads the text.
pub fn load(args: &DataArgs) -> Result<Named> {
    let Some(reference) = &args.data else {
        return named(Text::split(args.unit, STORIES), "built-in stories");
    };
    let path = Path::new(reference);
    if reference == "-" || path.is_file() {
        let text = read(path)?;
        return match &args.valid {
            Some(valid) => named(Text::new(args.unit, &text, &read(valid)?), reference),
            None => named(Text::split(args.unit, &text), reference),
        };
    }
    if let Some(valid) = &args.valid {
        return Err(Error::user(format!(
            "`--valid {}` goes with a training text that is a file",
            valid.display()
        ))
        .help("leave it out: a directory or data set has its own `valid.txt`"));
    }
    let options = HubOptions {
        revision: args.revision.clone(),
        offline: args.offline,
        ..HubOptions::default()
    };
    if let Some(known) = known_text(reference).filter(|_| !path.exists()) {
        let [train, valid] = known.read(&HubEnvironment::from_env(), &options)?;
        return named(Text::new(args.unit, &train, &valid), reference);
    }
    let wanted = wanted();
    let found = match find_data(reference, &wanted, &options) {
        Ok(found) => found,
        Err(error) => {
            // Without the hub, what a data set lacks cannot be told from what is not in the cache: a text that is there will do.
            return match cached(reference, &wanted, &options).as_deref() {
                Some([train, valid]) => named(Text::new(args.unit, &read(train)?, &read(valid)?), reference),
                Some([whole]) => named(Text::split(args.unit, &read(whole)?), reference),
                _ => Err(error.note(match names_from(reference) {
                    Some(names) => format!("{names}: texts from this data set"),
                    None => format!("texts that go by a name: {}", known_names()),
                })),
            };
        }
    };
    let [train, valid, whole] = [0, 1, 2].map(|at| found.files[at].as_ref().map(|file| file.path.as_path()));
    match (train, valid, whole) {
        (Some(train), Some(valid), _) => named(Text::new(args.unit, &read(train)?, &read(valid)?), reference),
        (Some(whole), None, _) | (None, _, Some(whole)) => named(Text::split(args.unit, &read(whole)?), reference),
        (None, _, None) => Err(no_text(reference, &found)),
    }
}

/// Both parts of a text, or all of it, if the cache has them.
fn cached(reference: &str, wanted: &[Vec<String>], options: &HubOptions) -> Option<Vec<PathBuf>> {
    let offline = HubOptions {
        offline: true,
        ..options.clone()
    };
    [&wanted[..2], &wanted[2..]].into_iter().find_map(|names| {
        let found = find_data(reference, names, &offline).ok()?;
        found.files.into_iter().map(|file| Some(file?.path)).collect()
    })
}

/// The refusal of a place without a text file, which names the texts that come from it by their names, if there are any.
fn no_text(reference: &str, found: &FoundData) -> Error {
    let mut error = found.lacks();
    if found.holds(".parquet") {
        error = error.note("Parquet is read only of texts that go by a name");
    }
    match names_from(reference) {
        Some(names) => error.help(format!("pass {names}, which are read from this data set")),
        None => error.note(format!("texts that go by a name: {}", known_names())).help(
            "name a text file, or a directory or a hub data set with `train.txt` and `valid.txt`, or `input.txt`",
        ),
    }
}

fn named(text: Result<Text>, name: &str) -> Result<Named> {
    Ok(Named {
        text: text?,
        name: name.to_owned(),
    })
}

fn read(path: &Path) -> Result<String> {
    let text = read_text(path)?;
    if text.is_empty() {
        return Err(Error::user(format!("`{}` is empty", path.display())).help("name a text to learn"));
    }
    Ok(text)
}
