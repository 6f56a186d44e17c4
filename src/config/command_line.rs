//! Reads an argument list just far enough to know the command, the flags given, and `--config` and `--set`.

use clap::{Arg, Command, Id};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};

/// An argument list taken apart.
pub(super) struct CommandLine<'a> {
    /// The program and its subcommands, outermost first; never empty.
    pub chain: Vec<&'a Command>,
    /// All arguments but `--config` and `--set`.
    pub kept: Vec<OsString>,
    /// Where in `kept` the flags of the innermost command begin.
    pub insert_at: usize,
    /// Flags that are given explicitly.
    pub explicit: HashSet<Id>,
    /// Values of `--config`.
    pub config_files: Vec<OsString>,
    /// Values of `--set`.
    pub sets: Vec<String>,
}

impl<'a> CommandLine<'a> {
    /// `root` must have been built.
    pub fn scan(arguments: Vec<OsString>, root: &'a Command) -> Self {
        let mut arguments = arguments.into_iter().peekable();
        let mut line = Self {
            chain: vec![root],
            kept: arguments.next().into_iter().collect(),
            insert_at: 1,
            explicit: HashSet::new(),
            config_files: Vec::new(),
            sets: Vec::new(),
        };
        line.insert_at = line.kept.len();
        while let Some(argument) = arguments.next() {
            let text = argument.to_string_lossy().into_owned();
            if text == "--" {
                line.kept.push(argument);
                line.kept.extend(arguments);
                break;
            }
            if let Some((name, inline)) = long_flag(&text) {
                if name == "config" || name == "set" {
                    match inline.map(OsString::from).or_else(|| arguments.next()) {
                        Some(value) if name == "config" => line.config_files.push(value),
                        Some(value) => line.sets.push(value.to_string_lossy().into_owned()),
                        // Without a value: clap knows how to say so.
                        None => line.kept.push(argument),
                    }
                    continue;
                }
                line.kept.push(argument);
                if let Some(arg) = line.command().get_arguments().find(|arg| has_long(arg, name)) {
                    line.explicit.insert(arg.get_id().clone());
                    if inline.is_none() {
                        line.keep_values(arg, &mut arguments);
                    }
                }
            } else if text.starts_with('-') && text.len() > 1 {
                line.kept.push(argument);
                line.short_flags(&text[1..], &mut arguments);
            } else {
                let subcommand = line.command().find_subcommand(&argument);
                line.kept.push(argument);
                if let Some(subcommand) = subcommand {
                    line.chain.push(subcommand);
                    line.insert_at = line.kept.len();
                }
            }
        }
        line
    }

    /// The innermost command.
    pub fn command(&self) -> &'a Command {
        self.chain[self.chain.len() - 1]
    }

    /// Whether help or the version is all that is wanted.
    pub fn asks_for_help(&self) -> bool {
        let flag = self.explicit.iter().any(|id| id == "help" || id == "version");
        flag || self.chain.get(1).is_some_and(|command| command.get_name() == "help")
    }

    /// `-qm demo`: flags without value up to one that takes the rest or the next argument.
    fn short_flags(&mut self, letters: &str, arguments: &mut Arguments) {
        for (index, letter) in letters.char_indices() {
            let Some(arg) = self.command().get_arguments().find(|arg| has_short(arg, letter)) else {
                return;
            };
            self.explicit.insert(arg.get_id().clone());
            if arg.get_action().takes_values() {
                if index + letter.len_utf8() == letters.len() {
                    self.keep_values(arg, arguments);
                }
                return;
            }
        }
    }

    /// Moves the values of a flag along, so that none of them is taken for a command or a flag.
    fn keep_values(&mut self, arg: &Arg, arguments: &mut Arguments) {
        if !arg.get_action().takes_values() || arg.is_require_equals_set() {
            return;
        }
        let (least, most) = arg
            .get_num_args()
            .map_or((1, 1), |range| (range.min_values(), range.max_values()));
        for index in 0..most {
            let optional = index >= least;
            let Some(value) = arguments.next_if(|next| !(optional && looks_like_flag(next))) else {
                return;
            };
            self.kept.push(value);
        }
    }
}

type Arguments = std::iter::Peekable<std::vec::IntoIter<OsString>>;

fn looks_like_flag(argument: &OsStr) -> bool {
    let bytes = argument.as_encoded_bytes();
    bytes.len() > 1 && bytes[0] == b'-'
}

fn long_flag(text: &str) -> Option<(&str, Option<&str>)> {
    let flag = text.strip_prefix("--")?;
    Some(
        flag.split_once('=')
            .map_or((flag, None), |(name, value)| (name, Some(value))),
    )
}

fn has_long(arg: &Arg, name: &str) -> bool {
    arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
}

fn has_short(arg: &Arg, letter: char) -> bool {
    arg.get_short() == Some(letter)
        || arg
            .get_all_short_aliases()
            .is_some_and(|aliases| aliases.contains(&letter))
}
