//! Provenance: which program, files and machine made a result.

mod device;

pub use device::{Accelerator, Device};

use crate::error::{Result, io_error};
use crate::report::Measured;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::time::Instant;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Everything outside the configuration that bears on a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// The program.
    pub build: Build,
    /// Model files.
    pub model_files: Vec<FileRecord>,
    /// SHA-256 of the tokenizer.
    pub tokenizer_sha256: Measured<String>,
    /// SHA-256 of the chat template.
    pub chat_template_sha256: Measured<String>,
    /// SHA-256 of the data.
    pub data_sha256: Measured<String>,
    /// SHA-256 of the GPU kernels' source.
    pub kernels_sha256: Measured<String>,
    /// The machine.
    pub device: Device,
    /// Threads computing on the CPU.
    pub threads: u64,
    /// Seeds by the name of their stream.
    pub seeds: BTreeMap<String, u64>,
    /// Start in UTC, RFC 3339.
    pub started_at: String,
    /// From start to report.
    pub duration_s: Measured,
    #[serde(skip)]
    clock: Option<Instant>,
}

/// The program that made a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Build {
    /// Version.
    pub version: String,
    /// Commit it was built from.
    pub git_commit: Measured<String>,
    /// Whether the sources differed from that commit.
    pub git_dirty: Measured<bool>,
    /// Target it was built for.
    pub target: String,
    /// Whether it was built with optimisation; timings without it mean nothing.
    pub optimised: bool,
}

/// A file by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileRecord {
    /// Path as given.
    pub path: String,
    /// Size.
    pub size_bytes: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: Measured<String>,
}

impl Manifest {
    /// Starts the clock and describes program and machine; the command fills in its files and seeds.
    pub fn begin(threads: usize) -> Self {
        Self {
            build: Build::current(),
            model_files: Vec::new(),
            tokenizer_sha256: Measured::missing("not used"),
            chat_template_sha256: Measured::missing("not used"),
            data_sha256: Measured::missing("not used"),
            kernels_sha256: Measured::missing("not used"),
            device: Device::current(),
            threads: threads as u64,
            seeds: BTreeMap::new(),
            started_at: OffsetDateTime::now_utc()
                .replace_nanosecond(0)
                .unwrap_or(OffsetDateTime::UNIX_EPOCH)
                .format(&Rfc3339)
                .unwrap_or_default(),
            duration_s: Measured::missing("not finished"),
            clock: Some(Instant::now()),
        }
    }

    /// Stops the clock.
    pub fn finish(&mut self) {
        if let Some(clock) = self.clock {
            self.duration_s = clock.elapsed().as_secs_f64().into();
        }
    }
}

impl Build {
    /// This program.
    pub fn current() -> Self {
        let no_git = "built outside its git repository";
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            git_commit: option_env!("TOKSELECT_GIT_COMMIT")
                .map_or_else(|| Measured::missing(no_git), |commit| Measured::Value(commit.into())),
            git_dirty: option_env!("TOKSELECT_GIT_DIRTY")
                .map_or_else(|| Measured::missing(no_git), |dirty| Measured::Value(dirty == "true")),
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            optimised: !cfg!(debug_assertions),
        }
    }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tokselect {}", self.version)?;
        if let Some(commit) = self.git_commit.get() {
            write!(f, " ({}", commit.get(..12).unwrap_or(commit))?;
            if self.git_dirty.get() == Some(&true) {
                write!(f, ", modified")?;
            }
            write!(f, ")")?;
        }
        Ok(())
    }
}

impl FileRecord {
    /// Reads the whole file for its hash; for a large model do it when the report is written, not before computing.
    pub fn of(path: &Path) -> Result<Self> {
        let mut record = Self::without_hash(path)?;
        record.sha256 = Measured::Value(sha256_file(path)?);
        Ok(record)
    }

    /// Size only, for when reading the file again is too much.
    pub fn without_hash(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| io_error("read", path, &error))?;
        Ok(Self {
            path: path.display().to_string(),
            size_bytes: metadata.len(),
            sha256: Measured::missing("not computed"),
        })
    }
}

/// SHA-256 of a file in hexadecimal, read in pieces.
pub fn sha256_file(path: &Path) -> Result<String> {
    let fail = |error: std::io::Error| io_error("read", path, &error);
    let mut file = std::fs::File::open(path).map_err(fail)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hexadecimal(&hasher.finalize())),
            Ok(length) => hasher.update(&piece[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fail(error)),
        }
    }
}

/// SHA-256 of bytes in hexadecimal.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// Hash of a configuration: SHA-256 of its JSON without white space and with sorted keys.
pub fn config_hash(config: &Value) -> String {
    sha256(canonical(config).to_string())
}

fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let sorted: BTreeMap<_, _> = object.iter().map(|(key, value)| (key, canonical(value))).collect();
            Value::Object(sorted.into_iter().map(|(key, value)| (key.clone(), value)).collect())
        }
        Value::Array(array) => Value::Array(array.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_hash_ignores_the_order_of_keys_at_every_depth_and_nothing_else() {
        let hash = config_hash(&json!({"a": 1, "b": {"c": [{"x": 1, "y": 2}], "d": null}}));
        assert_eq!(
            hash,
            config_hash(&json!({"b": {"d": null, "c": [{"y": 2, "x": 1}]}, "a": 1}))
        );
        assert_ne!(
            hash,
            config_hash(&json!({"a": 1, "b": {"c": [{"x": 2, "y": 1}], "d": null}}))
        );
        // `printf '{"a":1,"b":2}' | sha256sum`
        assert_eq!(
            config_hash(&json!({"b": 2, "a": 1})),
            "43258cff783fe7036d8a43033f830adfc60ec037382473548ac742b888292777"
        );
    }

    #[test]
    fn a_file_is_hashed_across_pieces_and_only_on_demand() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        let bytes = vec![7_u8; (2 << 20) + 3];
        std::fs::write(&path, &bytes).unwrap();
        let record = FileRecord::of(&path).unwrap();
        assert_eq!(record.sha256, Measured::Value(sha256(&bytes)));
        assert_eq!(record.size_bytes, bytes.len() as u64);
        assert_eq!(
            FileRecord::without_hash(&path).unwrap().sha256.reason(),
            Some("not computed")
        );
        assert_eq!(FileRecord::of(Path::new("no-such-file")).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_commit_is_whole_or_missing_with_its_reason() {
        let build = Build::current();
        match build.git_commit.get() {
            Some(commit) => assert!(commit.len() == 40 && build.git_dirty.get().is_some()),
            None => assert!(build.git_commit.reason().is_some() && build.git_dirty.reason().is_some()),
        }
    }

    #[test]
    fn the_start_is_utc_and_the_duration_is_missing_until_finished() {
        let mut manifest = Manifest::begin(1);
        assert!(
            manifest.started_at.ends_with('Z') && manifest.started_at.len() == 20,
            "{}",
            manifest.started_at
        );
        assert_eq!(manifest.duration_s.reason(), Some("not finished"));
        manifest.finish();
        assert!(*manifest.duration_s.get().unwrap() >= 0.0);
    }
}
