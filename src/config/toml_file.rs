//! Reads a config file into settings, with line numbers for everything that is wrong in it.

use super::{Settings, nearest};
use crate::error::{Error, Result, io_error};
use clap::Command;
use std::collections::HashMap;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

/// Adds the options in the file at `path` that concern the innermost command of `chain`.
pub(super) fn read(path: &Path, chain: &[&Command], settings: &mut Settings<'_>) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|error| io_error("read config file", path, &error))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = line_of(error.as_bytes(), error.utf8_error().valid_up_to());
        Error::user(format!("`{}` line {line}: not UTF-8 text", path.display()))
            .help("convert the file, for example with `iconv -t UTF-8`")
    })?;
    let file = File { path, text: &text };
    let table = DeTable::parse(&text).map_err(|error| {
        let place = file.at(error.span().map_or(0, |span| span.start));
        let mut lines = error.message().lines();
        let mut told = Error::user(format!("{place}: {}", lines.next().unwrap_or("not TOML")));
        for line in lines {
            told = told.note(line);
        }
        told.help("write `key = value`, with texts in quotes (https://toml.io)")
    })?;
    file.table(table.get_ref(), 0, chain, settings)
}

/// The line, counted from 1, that holds the byte at `offset`.
fn line_of(text: &[u8], offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or(text);
    before.split(|byte| *byte == b'\n').count()
}

impl File<'_> {
    fn at(&self, offset: usize) -> String {
        let line = line_of(self.text.as_bytes(), offset);
        format!("`{}` line {line}", self.path.display())
    }

    /// One table; `depth` tells which command of `chain` it is named after.
    fn table(&self, table: &DeTable<'_>, depth: usize, chain: &[&Command], settings: &mut Settings<'_>) -> Result<()> {
        let mut inner = None;
        let mut seen = HashMap::new();
        for (key, value) in table {
            let origin = self.at(key.span().start);
            let name = key.get_ref();
            if let DeValue::Table(below) = value.get_ref() {
                let subcommand = chain[depth]
                    .find_subcommand(name.as_ref())
                    .or_else(|| chain[depth].find_subcommand(name.replace('_', "-")))
                    .ok_or_else(|| no_command(name, &origin, chain[depth]))?;
                if chain
                    .get(depth + 1)
                    .is_some_and(|next| next.get_name() == subcommand.get_name())
                {
                    inner = Some(below);
                }
                continue;
            }
            if let Some(first) = seen.insert(name.replace('_', "-"), name.to_string()) {
                return Err(
                    Error::user(format!("{origin}: `{name}` and `{first}` are the same option"))
                        .help("keep one of the two"),
                );
            }
            let mut values = Vec::new();
            scalars(value, &mut values).map_err(|kind| {
                Error::user(format!("{origin}: `{name}` holds {kind}")).help("use a value or an array of values")
            })?;
            settings.add(name, values, &origin, chain)?;
        }
        if let Some(inner) = inner {
            // The table of a command counts more than the keys above it.
            settings.begin_layer();
            self.table(inner, depth + 1, chain, settings)?;
        }
        Ok(())
    }
}

fn no_command(name: &str, origin: &str, parent: &Command) -> Error {
    let commands: Vec<_> = parent
        .get_subcommands()
        .map(Command::get_name)
        .filter(|name| *name != "help")
        .collect();
    let error = Error::user(format!("{origin}: `[{name}]` is not named after a command"));
    match nearest(name, commands.iter().copied()) {
        Some(nearest) => error.help(format!("did you mean `[{nearest}]`?")),
        None if commands.is_empty() => error.help("put the options above it, at the top of the file"),
        None => error.help(format!("the commands are {}", commands.join(", "))),
    }
}

/// The texts that would have been typed; the error names what cannot be typed.
fn scalars(value: &Spanned<DeValue<'_>>, texts: &mut Vec<String>) -> Result<(), &'static str> {
    match value.get_ref() {
        DeValue::String(text) => texts.push(text.to_string()),
        DeValue::Integer(integer) => {
            // Decimal text goes through as it is, beyond 64 bits too; clap knows the range of the flag.
            let decimal = match integer.radix() {
                10 => integer.as_str().to_owned(),
                radix => i128::from_str_radix(integer.as_str(), radix)
                    .map_err(|_| "an integer that is too large")?
                    .to_string(),
            };
            texts.push(decimal);
        }
        DeValue::Float(float) => texts.push(float.as_str().to_owned()),
        DeValue::Boolean(boolean) => texts.push(boolean.to_string()),
        DeValue::Datetime(datetime) => texts.push(datetime.to_string()),
        DeValue::Array(array) => {
            for element in array {
                if element.get_ref().is_array() {
                    return Err("an array within an array");
                }
                scalars(element, texts)?;
            }
        }
        DeValue::Table(_) => return Err("a table"),
    }
    Ok(())
}
