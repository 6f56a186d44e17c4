//! Options from files: `--config FILE` and `--set key=value`, expanded into flags before clap parses.
//!
//! Defaults < config file < `--set` < flags given explicitly. The keys are the long flags of the command, with `-` or
//! `_`; a file may hold tables named after commands, whose keys count more than those at its top:
//!
//! ```toml
//! seed = 7
//! policy = ["tokselect", "streaming"]   # an array repeats the flag
//!
//! [infer]
//! top_k = 2048
//! ```
//!
//! Since the result is an ordinary argument list, clap checks values from files exactly as it checks typed ones.

mod command_line;
mod toml_file;

use crate::error::{Error, Result};
use clap::{Arg, ArgAction, Command};
use command_line::CommandLine;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

/// Flags that mean something to the command line only.
const NOT_OPTIONS: [&str; 4] = ["config", "set", "help", "version"];

/// Replaces `--config` and `--set` in `arguments` (program name first) by the flags they stand for.
///
/// A flag that is also given explicitly is left out of the expansion, so that clap sees it once.
/// `command` must declare `--config` and `--set` only to show them in its help.
pub fn expand_arguments(arguments: Vec<OsString>, command: &Command) -> Result<Vec<OsString>> {
    let mut command = command.clone();
    // Gives subcommands the global flags and every flag its number of values.
    command.build();
    let line = CommandLine::scan(arguments, &command);
    // Help must come up even when the config file is broken; a missing subcommand is for clap to tell.
    if line.asks_for_help() || line.command().has_subcommands() {
        return Ok(line.kept);
    }

    let mut settings = Settings::new(line.command());
    for file in &line.config_files {
        settings.begin_layer();
        toml_file::read(Path::new(file), &line.chain, &mut settings)?;
    }
    settings.begin_layer();
    for text in &line.sets {
        let origin = format!("`--set {text}`");
        let Some((key, value)) = text.split_once('=') else {
            return Err(Error::user(format!("{origin} has no value")).help("write `--set key=value`"));
        };
        settings.add(key.trim(), vec![value.to_owned()], &origin, &line.chain)?;
    }

    let mut expanded = Vec::new();
    for setting in settings.by_flag.values() {
        if !line.explicit.contains(setting.arg.get_id()) {
            setting.expand(&mut expanded)?;
        }
    }
    let mut kept = line.kept;
    kept.splice(line.insert_at..line.insert_at, expanded);
    Ok(kept)
}

/// The options set so far; a later layer replaces an earlier one flag by flag.
struct Settings<'a> {
    command: &'a Command,
    layer: usize,
    by_flag: BTreeMap<String, Setting<'a>>,
}

struct Setting<'a> {
    arg: &'a Arg,
    values: Vec<String>,
    origin: String,
    layer: usize,
}

impl<'a> Settings<'a> {
    fn new(command: &'a Command) -> Self {
        Self {
            command,
            layer: 0,
            by_flag: BTreeMap::new(),
        }
    }

    fn begin_layer(&mut self) {
        self.layer += 1;
    }

    fn add(&mut self, key: &str, values: Vec<String>, origin: &str, chain: &[&Command]) -> Result<()> {
        let arg = find_option(self.command, key).ok_or_else(|| unknown(key, origin, chain))?;
        let setting = self.by_flag.entry(arg.get_id().to_string()).or_insert(Setting {
            arg,
            values: Vec::new(),
            origin: String::new(),
            layer: 0,
        });
        let accumulates = setting.layer == self.layer && matches!(arg.get_action(), ArgAction::Append);
        if !accumulates {
            setting.values.clear();
        }
        setting.values.extend(values);
        origin.clone_into(&mut setting.origin);
        setting.layer = self.layer;
        Ok(())
    }
}

impl Setting<'_> {
    /// The arguments that clap would have been given.
    fn expand(&self, expanded: &mut Vec<OsString>) -> Result<()> {
        let flag = format!("--{}", self.arg.get_long().unwrap_or_default());
        let refuse = |what: &str| {
            let given = self.values.join(", ");
            Err(
                Error::user(format!("{}: `{flag}` takes {what}, not `{given}`", self.origin))
                    .help(format!("give it {what}")),
            )
        };
        match (self.arg.get_action(), self.values.as_slice()) {
            (ArgAction::SetTrue | ArgAction::SetFalse, [value]) => match value.as_str() {
                "true" => expanded.push(flag.into()),
                "false" => {}
                _ => return refuse("true or false"),
            },
            (ArgAction::Count, [value]) => match value.as_str() {
                "true" => expanded.push(flag.into()),
                "false" => {}
                number => match number.parse::<u8>() {
                    Ok(times) => expanded.extend((0..times).map(|_| OsString::from(&flag))),
                    Err(_) => return refuse("a number from 0 to 255"),
                },
            },
            (ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count, _) => return refuse("one value"),
            (ArgAction::Append, values) | (_, values @ [_]) => {
                expanded.extend(values.iter().map(|value| format!("{flag}={value}").into()));
            }
            (_, []) => {}
            (_, values) => match self.arg.get_value_delimiter() {
                Some(delimiter) => {
                    let joined = values.join(&delimiter.to_string());
                    expanded.push(format!("{flag}={joined}").into());
                }
                None => return refuse("one value"),
            },
        }
        Ok(())
    }
}

/// The option with this long name, `_` standing for `-`.
fn find_option<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    let key = key.replace('_', "-");
    let named = |arg: &&Arg| {
        arg.get_long() == Some(&key)
            || arg
                .get_all_aliases()
                .is_some_and(|aliases| aliases.contains(&key.as_str()))
    };
    command
        .get_arguments()
        .filter(|arg| arg.get_long().is_some_and(|long| !NOT_OPTIONS.contains(&long)))
        .find(named)
}

fn unknown(key: &str, origin: &str, chain: &[&Command]) -> Error {
    let (Some(root), Some(command)) = (chain.first(), chain.last()) else {
        return Error::bug("a command line without command");
    };
    let error = Error::user(format!("{origin}: `{}` has no option `{key}`", command.get_name()));
    let names = command
        .get_arguments()
        .filter_map(Arg::get_long)
        .filter(|long| !NOT_OPTIONS.contains(long));
    if let Some(nearest) = nearest(&key.replace('_', "-"), names) {
        return error.help(format!("did you mean `{nearest}`?"));
    }
    if let Some(other) = root.get_subcommands().find(|other| find_option(other, key).is_some()) {
        let other = other.get_name();
        return error.help(format!("`{other}` has it: put it below `[{other}]` in a config file"));
    }
    let names: Vec<_> = chain.iter().map(|command| command.get_name()).collect();
    error.help(format!("`{} --help` lists the options", names.join(" ")))
}

/// The candidate that is fewest edits away, if that is near enough to be a slip.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (edits(word, candidate), candidate))
        .filter(|(edits, candidate)| *edits <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let substitute = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests;
