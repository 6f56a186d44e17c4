//! `config.json`: which command and configuration a run directory belongs to, written before anything is computed.

use crate::error::{Error, Result, io_error};
use crate::manifest::{Build, config_hash};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Marks the file as ours: model directories hold a `config.json` too.
const FORMAT: &str = "tokselect run";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RunConfig {
    format: String,
    pub command: String,
    pub config_hash: String,
    pub config: Map<String, Value>,
    pub build: Build,
}

impl RunConfig {
    pub(super) fn new(command: &str, config: &Map<String, Value>) -> Self {
        Self {
            format: FORMAT.into(),
            command: command.into(),
            config_hash: config_hash(&Value::Object(config.clone())),
            config: config.clone(),
            build: Build::current(),
        }
    }

    /// Reads the file; `None` when there is none.
    pub(super) fn load(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", path, &error)),
        };
        let mut found: Self = serde_json::from_slice(&text)
            .ok()
            .filter(|found: &Self| found.format == FORMAT)
            .ok_or_else(|| {
                Error::user(format!("`{}` was not written by a run of tokselect", path.display()))
                    .note("results are kept apart from other files")
                    .help("choose another `--output` directory")
            })?;
        // The configuration itself is the authority; a hash that does not belong to it would let two be mixed.
        found.config_hash = config_hash(&Value::Object(found.config.clone()));
        Ok(Some(found))
    }

    pub(super) fn same_experiment(&self, other: &Self) -> bool {
        self.command == other.command && self.config_hash == other.config_hash
    }

    /// The refusal to mix two experiments: each key that differs, with both values.
    pub(super) fn refusal(&self, wanted: &Self, directory: &Path) -> Error {
        let mut error = Error::user(format!(
            "`{}` holds results of a different configuration",
            directory.display()
        ));
        if self.command != wanted.command {
            error = error.note(format!("command: {} there, {} now", self.command, wanted.command));
        }
        for (key, there, now) in differences(&self.config, &wanted.config) {
            error = error.note(format!("{key}: {there} there, {now} now"));
        }
        error.help("choose another `--output` directory, or repeat the command with the values from there")
    }
}

/// Keys whose values differ, nested ones joined by dots, in alphabetical order.
fn differences(there: &Map<String, Value>, now: &Map<String, Value>) -> Vec<(String, String, String)> {
    let (there, now) = (flatten(there), flatten(now));
    let keys: std::collections::BTreeSet<_> = there.keys().chain(now.keys()).collect();
    let text = |value: Option<&Value>| value.map_or_else(|| "not set".to_owned(), Value::to_string);
    keys.into_iter()
        .filter(|key| there.get(*key) != now.get(*key))
        .map(|key| (key.clone(), text(there.get(key)), text(now.get(key))))
        .collect()
}

fn flatten(object: &Map<String, Value>) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    for (key, value) in object {
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                flat.extend(
                    flatten(inner)
                        .into_iter()
                        .map(|(rest, value)| (format!("{key}.{rest}"), value)),
                );
            }
            _ => {
                flat.insert(key.clone(), value.clone());
            }
        }
    }
    flat
}
