//! Data sets of one JSON object per line, read one line at a time.

use crate::error::{Error, Result, io_error};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const BUFFER_BYTES: usize = 1 << 20;

/// A JSONL file: where its lines are, not what they hold. `InfiniteBench`'s are up to a gigabyte.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    lines: Vec<Line>,
    sha256: String,
}

/// Bytes `start` to `start + length` of the file; `number` counts from 1, blank lines too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    number: usize,
    start: u64,
    length: usize,
}

/// One line's object; its errors name file, line and key.
#[derive(Debug)]
pub struct Record<'a> {
    path: &'a Path,
    number: usize,
    fields: Map<String, Value>,
}

impl JsonLines {
    /// Reads the file once, for its lines and its SHA-256. Blank lines do not count.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| io_error("read", path, &error);
        let mut file = File::open(path).map_err(failed)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut hasher = Sha256::new();
        let mut index = Index::default();
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    index.read(&buffer[..count]);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        index.end_line(0);
        if index.lines.is_empty() {
            return Err(Error::user(format!("`{}` holds no examples", path.display()))
                .help("name a JSONL file with one object per line"));
        }
        Ok(Self {
            path: path.to_owned(),
            lines: index.lines,
            sha256: format!("{:x}", hasher.finalize()),
        })
    }

    /// Number of records.
    pub fn count(&self) -> usize {
        self.lines.len()
    }

    /// SHA-256 of the file's bytes.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Reads record `index`, from 0.
    pub fn record(&self, index: usize) -> Result<Record<'_>> {
        let path = &self.path;
        let line = self.lines.get(index).ok_or_else(|| {
            Error::user(format!("there is no example {index} in `{}`", path.display())).help(format!(
                "it holds {} examples, counted from 0; ask for fewer",
                self.count()
            ))
        })?;
        let mut bytes = vec![0; line.length];
        File::open(path)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(line.start))?;
                file.read_exact(&mut bytes)
            })
            .map_err(|error| io_error("read", path, &error))?;
        let refuse = |reason: String| {
            Error::user(format!("`{}` line {}: {reason}", path.display(), line.number))
                .help("each line must be one JSON object; download the file again if it was cut short")
        };
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(fields)) => Ok(Record {
                path,
                number: line.number,
                fields,
            }),
            Ok(other) => Err(refuse(format!("{}, not an object", kind(&other)))),
            Err(error) => Err(refuse(format!("not JSON: {error}"))),
        }
    }
}

/// Finds lines in a stream of bytes.
#[derive(Default)]
struct Index {
    lines: Vec<Line>,
    /// Line ends seen.
    ended: usize,
    /// Bytes before the current buffer.
    before: u64,
    start: u64,
    dirty: bool,
}

impl Index {
    fn read(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        let mut offset = 0;
        while let Some(at) = rest.iter().position(|&byte| byte == b'\n') {
            self.dirty |= rest[..at].iter().any(|byte| !byte.is_ascii_whitespace());
            self.end_line(offset + at);
            self.start = self.before + (offset + at + 1) as u64;
            offset += at + 1;
            rest = &rest[at + 1..];
        }
        self.dirty |= rest.iter().any(|byte| !byte.is_ascii_whitespace());
        self.before += bytes.len() as u64;
    }

    /// Ends the line at `at` bytes into the current buffer.
    fn end_line(&mut self, at: usize) {
        self.ended += 1;
        if std::mem::take(&mut self.dirty) {
            self.lines.push(Line {
                number: self.ended,
                start: self.start,
                length: (self.before + at as u64 - self.start) as usize,
            });
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl Record<'_> {
    /// File and line, for messages.
    pub fn place(&self) -> String {
        format!("`{}` line {}", self.path.display(), self.number)
    }

    /// An error about `key` of this line.
    pub fn fault(&self, key: &str, what: &str) -> Error {
        Error::user(format!("{}: `{key}` {what}", self.place()))
            .help("the file must have the benchmark's own fields; see its data card")
    }

    fn get(&self, key: &str) -> Result<&Value> {
        self.fields.get(key).ok_or_else(|| self.fault(key, "is missing"))
    }

    /// The text `key`.
    pub fn text(&self, key: &str) -> Result<&str> {
        match self.get(key)? {
            Value::String(text) => Ok(text),
            other => Err(self.fault(key, &format!("is {}, not a text", kind(other)))),
        }
    }

    /// A text, a number, or a list of them (also of lists), as texts; numbers as JSON writes them.
    pub fn texts(&self, key: &str) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        self.flatten(key, self.get(key)?, &mut texts)?;
        Ok(texts)
    }

    /// As [`Self::texts`]; nothing where the key is absent or null.
    pub fn optional_texts(&self, key: &str) -> Result<Vec<String>> {
        match self.fields.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(_) => self.texts(key),
        }
    }

    fn flatten(&self, key: &str, value: &Value, texts: &mut Vec<String>) -> Result<()> {
        match value {
            Value::String(text) => texts.push(text.clone()),
            Value::Number(number) => texts.push(number.to_string()),
            Value::Array(values) => values.iter().try_for_each(|value| self.flatten(key, value, texts))?,
            other => return Err(self.fault(key, &format!("holds {}, not a text or a number", kind(other)))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(content: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    #[test]
    fn fields_are_read_and_faults_name_file_line_and_key() {
        let (_folder, path) = file(concat!(
            "{\"a\": \"x\", \"b\": [1, 2.0, [\"y\"]], \"c\": null}\r\n",
            "\n",
            "{\"a\": 3, \"b\": {}}\n",
            "{\"a\": \"cut\n",
            "[1]",
        ));
        let lines = JsonLines::open(&path).unwrap();
        assert_eq!(lines.count(), 4);
        let record = lines.record(0).unwrap();
        assert_eq!(record.text("a").unwrap(), "x");
        assert_eq!(record.texts("b").unwrap(), ["1", "2.0", "y"]);
        assert!(record.optional_texts("c").unwrap().is_empty());
        let second = lines.record(1).unwrap();
        let faults = [
            record.text("z").unwrap_err(),
            second.text("a").unwrap_err(),
            second.texts("b").unwrap_err(),
            lines.record(2).unwrap_err(),
            lines.record(3).unwrap_err(),
            lines.record(4).unwrap_err(),
        ];
        let expected = [
            "line 1: `z` is missing",
            "line 3: `a` is a number, not a text",
            "line 3: `b` holds an object",
            "line 4: not JSON",
            "line 5: a list, not an object",
            "no example 4",
        ];
        for (fault, expected) in faults.iter().zip(expected) {
            assert!(fault.message().contains(expected), "{fault}");
            assert!(fault.message().contains("data.jsonl") && fault.remedy().is_some());
            assert_eq!(fault.exit_code(), 2);
        }
    }

    #[test]
    fn an_empty_file_is_refused() {
        let (_folder, path) = file(" \n\n");
        assert!(JsonLines::open(&path).unwrap_err().message().contains("no examples"));
    }

    proptest! {
        #[test]
        fn lines_are_found_whatever_the_buffers(content in "[ab \n]{0,60}", cuts in prop::collection::vec(1_usize..9, 1..20)) {
            let mut index = Index::default();
            let mut rest = content.as_bytes();
            for cut in cuts.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(cut.min(rest.len()));
                index.read(now);
                rest = later;
            }
            index.end_line(0);
            let found: Vec<(usize, &str)> = index
                .lines
                .iter()
                .map(|line| (line.number, &content[line.start as usize..][..line.length]))
                .collect();
            let expected: Vec<(usize, &str)> = content
                .split('\n')
                .enumerate()
                .filter(|(_, line)| !line.trim().is_empty())
                .map(|(number, line)| (number + 1, line))
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
