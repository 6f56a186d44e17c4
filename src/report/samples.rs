//! Samples: one JSON line each, appended with one write and flushed, so that a killed run loses at most one.
//!
//! The newline is the commit mark. Whatever follows the last newline is a line whose writing was cut short; it is
//! removed on resume and its sample counts as not done.

use crate::error::{Error, Result, io_error};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};

/// One line of `samples.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// The task it belongs to.
    pub task: String,
    /// Its name within the task.
    pub id: String,
    /// Hash of the configuration that made it.
    pub config_hash: String,
    /// What was measured; keys carry SI units, a missing value is null with its reason.
    pub data: Value,
}

/// Names a sample among those of its run in 16 bytes, so that a run of many samples remembers few bytes of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SampleKey([u8; 16]);

impl SampleKey {
    /// The key of sample `id` of `task`: half of a SHA-256, so that two samples do not meet in any run of this world.
    pub(super) fn new(task: &str, id: &str) -> Self {
        let digest = Sha256::new()
            .chain_update((task.len() as u64).to_le_bytes())
            .chain_update(task)
            .chain_update(id)
            .finalize();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self(half)
    }
}

/// Where an experiment puts its samples.
pub trait SampleSink {
    /// Whether this sample is already there, so that computing it again can be skipped.
    fn is_done(&self, task: &str, id: &str) -> bool;
    /// Adds one sample and makes it safe before returning.
    fn append(&mut self, task: &str, id: &str, data: Value) -> Result<()>;
    /// Shows all samples one by one, earlier runs' included, in the order of their making.
    fn for_each(&self, visit: &mut dyn FnMut(Sample) -> Result<()>) -> Result<()>;
    /// All samples at once; for runs of few.
    fn samples(&self) -> Result<Vec<Sample>> {
        let mut all = Vec::new();
        self.for_each(&mut |sample| {
            all.push(sample);
            Ok(())
        })?;
        Ok(all)
    }
}

/// Keeps samples in memory: the sink of a run without `--output`.
#[derive(Debug, Default)]
pub struct MemorySink {
    config_hash: String,
    samples: Vec<Sample>,
    done: HashSet<SampleKey>,
}

impl MemorySink {
    /// An empty sink for samples of one configuration.
    pub fn new(config_hash: impl Into<String>) -> Self {
        Self {
            config_hash: config_hash.into(),
            ..Self::default()
        }
    }
}

impl SampleSink for MemorySink {
    fn is_done(&self, task: &str, id: &str) -> bool {
        self.done.contains(&SampleKey::new(task, id))
    }

    fn append(&mut self, task: &str, id: &str, data: Value) -> Result<()> {
        self.done.insert(SampleKey::new(task, id));
        self.samples.push(Sample {
            task: task.into(),
            id: id.into(),
            config_hash: self.config_hash.clone(),
            data,
        });
        Ok(())
    }

    fn for_each(&self, visit: &mut dyn FnMut(Sample) -> Result<()>) -> Result<()> {
        self.samples.iter().cloned().try_for_each(visit)
    }
}

/// Keeps which samples are done and nothing else: the sink without `--output` of a run of many samples whose
/// statistics are gathered on the way.
#[derive(Debug, Default)]
pub struct KeySink {
    done: HashSet<SampleKey>,
}

impl SampleSink for KeySink {
    fn is_done(&self, task: &str, id: &str) -> bool {
        self.done.contains(&SampleKey::new(task, id))
    }

    fn append(&mut self, task: &str, id: &str, _data: Value) -> Result<()> {
        self.done.insert(SampleKey::new(task, id));
        Ok(())
    }

    fn for_each(&self, _visit: &mut dyn FnMut(Sample) -> Result<()>) -> Result<()> {
        Ok(())
    }
}

/// What a sample file holds.
pub(super) struct Loaded {
    /// Keys of the complete samples, with their line numbers.
    pub lines: HashMap<SampleKey, usize>,
    /// Length of the complete lines.
    pub complete_bytes: u64,
    /// Length of the line that was cut short after them; 0 if none was.
    pub torn_bytes: u64,
}

/// Reads a sample file line by line and shows every complete sample to `visit`; a broken line before the last newline is
/// an error that names it.
///
/// It reads through the file that holds the lock, because some systems refuse any other.
pub(super) fn read(
    mut file: &File,
    path: &Path,
    config_hash: &str,
    visit: &mut dyn FnMut(Sample) -> Result<()>,
) -> Result<Loaded> {
    file.rewind().map_err(|error| io_error("read", path, &error))?;
    let mut reader = BufReader::new(file);
    let mut loaded = Loaded {
        lines: HashMap::new(),
        complete_bytes: 0,
        torn_bytes: 0,
    };
    let mut line = Vec::new();
    for number in 1_usize.. {
        line.clear();
        let length = reader
            .read_until(b'\n', &mut line)
            .map_err(|error| io_error("read", path, &error))?;
        if line.last() != Some(&b'\n') {
            loaded.torn_bytes = length as u64;
            break;
        }
        let sample: Sample = serde_json::from_slice(&line).map_err(|error| broken_line(path, number, &error))?;
        if sample.config_hash != config_hash {
            return Err(Error::user(format!(
                "line {number} of `{}` belongs to another configuration",
                path.display()
            ))
            .note(format!("its config hash is {}", sample.config_hash))
            .note(format!("this run's config hash is {config_hash}"))
            .help("choose another `--output` directory"));
        }
        let key = SampleKey::new(&sample.task, &sample.id);
        if let Some(first) = loaded.lines.insert(key, number) {
            return Err(Error::user(format!(
                "line {number} of `{}` repeats the sample of line {first}",
                path.display()
            ))
            .note(format!("task `{}`, sample `{}`", sample.task, sample.id))
            .help("delete one of the two lines, then run again"));
        }
        loaded.complete_bytes += length as u64;
        visit(sample)?;
    }
    Ok(loaded)
}

fn broken_line(path: &Path, number: usize, error: &serde_json::Error) -> Error {
    // serde_json counts lines within the slice it was given, which is this one line; only its column means something.
    let reason = error.to_string();
    let reason = reason.split(" at line ").next().unwrap_or_default();
    Error::user(format!("line {number} of `{}` is not a sample", path.display()))
        .note(format!("{reason} (column {})", error.column()))
        .help("delete that line to have its sample computed again, or choose another `--output` directory")
}

/// A file that can be shortened after a failed write.
pub(super) trait Storage: Write {
    /// Sets the length.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

impl Storage for File {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

/// Appends samples to a file opened for appending.
#[derive(Debug)]
pub(super) struct SampleWriter<S> {
    storage: S,
    path: PathBuf,
    length: u64,
    count: u64,
    torn: bool,
}

impl<S: Storage> SampleWriter<S> {
    /// Continues a file of `length` bytes with `count` complete samples.
    pub(super) fn new(storage: S, path: PathBuf, length: u64, count: u64) -> Self {
        Self {
            storage,
            path,
            length,
            count,
            torn: false,
        }
    }

    /// The file, for reading it back.
    pub(super) fn storage(&self) -> &S {
        &self.storage
    }

    /// Number of complete samples in the file.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Writes one line; after a failure the file is as before.
    pub(super) fn append(&mut self, sample: &Sample) -> Result<()> {
        if self.torn {
            // An earlier failure could not be undone then; a second line must not be glued to its remains.
            self.storage.cut(self.length).map_err(|error| self.failure(&error))?;
            self.torn = false;
        }
        let mut line = serde_json::to_vec(sample)
            .map_err(|error| Error::bug(format!("sample `{}` is not JSON: {error}", sample.id)))?;
        line.push(b'\n');
        let written = self.storage.write_all(&line).and_then(|()| self.storage.flush());
        if let Err(error) = written {
            self.torn = self.storage.cut(self.length).is_err();
            return Err(self.failure(&error));
        }
        self.length += line.len() as u64;
        self.count += 1;
        Ok(())
    }

    fn failure(&self, error: &io::Error) -> Error {
        let kept = match self.count {
            1 => "the 1 sample written before is kept".into(),
            n => format!("the {n} samples written before are kept"),
        };
        let base = io_error("append a sample to", &self.path, error).note(kept);
        if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
            base.help("free some space, then run the same command again: it resumes")
        } else {
            base.help("run the same command again: it resumes")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(id: &str) -> Sample {
        Sample {
            task: "passkey".into(),
            id: id.into(),
            config_hash: "c".into(),
            data: serde_json::json!({"score": 1}),
        }
    }

    /// Holds `room` bytes, then is full; a write that does not fit leaves a part, as a real disk does.
    struct SmallDisk {
        bytes: Vec<u8>,
        room: usize,
        can_cut: bool,
    }

    impl Write for SmallDisk {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            let free = self.room - self.bytes.len();
            if free == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let part = buffer.len().min(free);
            self.bytes.extend_from_slice(&buffer[..part]);
            Ok(part)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Storage for SmallDisk {
        fn cut(&mut self, length: u64) -> io::Result<()> {
            if !self.can_cut {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.bytes.truncate(length as usize);
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_keeps_what_was_written_before_and_goes_on_after_space_is_made() {
        let line = serde_json::to_vec(&sample("0")).unwrap().len() + 1;
        let disk = SmallDisk {
            bytes: vec![],
            room: 2 * line + 7,
            can_cut: true,
        };
        let mut writer = SampleWriter::new(disk, "samples.jsonl".into(), 0, 0);
        writer.append(&sample("0")).unwrap();
        writer.append(&sample("1")).unwrap();
        let error = writer.append(&sample("2")).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        insta::assert_snapshot!(error, @r"
        cannot append a sample to `samples.jsonl`: no storage space
          the 2 samples written before are kept
        help: free some space, then run the same command again: it resumes
        ");
        assert_eq!(writer.storage.bytes.len(), 2 * line);
        writer.storage.room = 10 * line;
        writer.append(&sample("2")).unwrap();
        assert_eq!(writer.storage.bytes.len(), 3 * line);
    }

    #[test]
    fn no_line_is_glued_to_the_remains_of_a_failed_one() {
        let disk = SmallDisk {
            bytes: vec![],
            room: 5,
            can_cut: false,
        };
        let mut writer = SampleWriter::new(disk, "samples.jsonl".into(), 0, 0);
        writer.append(&sample("0")).unwrap_err();
        writer.storage.room = 1000;
        writer.append(&sample("1")).unwrap_err();
        assert_eq!(writer.storage.bytes.len(), 5);
        writer.storage.can_cut = true;
        writer.append(&sample("2")).unwrap();
        assert!(writer.storage.bytes.starts_with(b"{\"task\""));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_full_device_of_the_kernel_gives_the_same_error() {
        let full = std::fs::OpenOptions::new().append(true).open("/dev/full").unwrap();
        let error = SampleWriter::new(full, "samples.jsonl".into(), 0, 0)
            .append(&sample("0"))
            .unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.message().contains("No space left"), "{error}");
    }
}
