//! A JSON object on disk whose wrong values are reported by file and key.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result, io_error};

/// A JSON object and the path it came from. A key that is absent and a key that is `null` read the same.
#[derive(Debug)]
pub(crate) struct JsonFile {
    path: PathBuf,
    map: Map<String, Value>,
}

impl JsonFile {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| io_error("read", path, &e))?;
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(map)) => Ok(Self {
                path: path.to_owned(),
                map,
            }),
            Ok(_) => Err(Error::user(format!("`{}` is not a JSON object", path.display()))
                .help("use the file that was published with the model, or remove it if the model has none")),
            Err(e) => Err(Error::user(format!("`{}` is not valid JSON: {e}", path.display()))
                .help("download the file again, or correct it at that position")),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The error for a value of the wrong type.
    pub(crate) fn wrong(&self, key: &str, wanted: &str) -> Error {
        let found = self.get(key).map_or_else(|| "null".to_owned(), short);
        Error::user(format!(
            "`{}`: `{key}` is {found}, expected {wanted}",
            self.path.display()
        ))
        .help("correct the value or remove the key")
    }

    fn typed<T>(&self, key: &str, wanted: &str, read: impl FnOnce(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.wrong(key, wanted)),
        }
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a non-negative integer", |v| {
            v.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    pub(crate) fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a number", |v| v.as_f64().map(|x| x as f32))
    }

    /// A token: its text, or an object with the text under `content` (as older transformers wrote it).
    pub(crate) fn token_text(&self, key: &str) -> Result<Option<String>> {
        self.typed(key, "a string or an object with `content`", |v| {
            token_text(v).map(str::to_owned)
        })
    }
}

/// The text of a token written as a string or as an object with `content`.
pub(crate) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A value as an error message shows it: whole where it is small, cut where it is not.
fn short(value: &Value) -> String {
    const LIMIT: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= LIMIT {
        return format!("`{text}`");
    }
    let cut: String = text.chars().take(LIMIT).collect();
    format!("`{cut}…`")
}
