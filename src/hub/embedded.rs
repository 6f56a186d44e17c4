//! The model that is part of the program: its files, laid out on disk once, because weights are mapped and not copied.

use sha2::{Digest, Sha256};
use std::io::{Result as IoResult, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// How the model is named on the command line.
pub const DEMO: &str = "demo";

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../models/demo/", $name)).as_slice())),*]
    };
}

const FILES: [(&str, &[u8]); 5] = files![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

static SHA256: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = Sha256::new();
    for (name, bytes) in FILES {
        hasher.update(name);
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    format!("{:x}", hasher.finalize())
});

/// SHA-256 over names, lengths and contents of all files.
pub fn demo_sha256() -> &'static str {
    &SHA256
}

/// Where the files are kept below `own_cache_dir`; named after their content, so that versions do not meet.
pub fn demo_folder(own_cache_dir: &Path) -> PathBuf {
    own_cache_dir.join(format!("{DEMO}-{}", &demo_sha256()[..16]))
}

/// Where they go when the other folder cannot be written.
pub fn temporary_demo_folder() -> PathBuf {
    demo_folder(&std::env::temp_dir().join("tokselect"))
}

/// Whether all files are in `folder` as they should be.
pub fn is_laid_out(folder: &Path) -> bool {
    FILES.iter().all(|(name, bytes)| holds(&folder.join(name), bytes))
}

/// A folder that holds the files, each compared with the program's own copy: in `own_cache_dir`, or among the temporary
/// files where that cannot be written.
pub(super) fn lay_out(own_cache_dir: &Path) -> Result<PathBuf> {
    let kept = demo_folder(own_cache_dir);
    // A relative folder is one that no home directory was found for; it would litter the current directory.
    let refused = if own_cache_dir.is_absolute() {
        match write_missing(&kept) {
            Ok(()) => return Ok(kept),
            Err(source) => source.to_string(),
        }
    } else {
        "no home directory is known".to_owned()
    };
    let temporary = temporary_demo_folder();
    tracing::debug!(
        "cannot write {}: {refused}; using {}",
        kept.display(),
        temporary.display()
    );
    write_missing(&temporary).map_err(|source| {
        Error::environment("the built-in model finds no folder for its files")
            .note(format!("`{}`: {refused}", kept.display()))
            .note(format!("`{}`: {source}", temporary.display()))
            .help("set XDG_CACHE_HOME or TMPDIR to a folder that can be written")
    })?;
    Ok(temporary)
}

fn write_missing(folder: &Path) -> IoResult<()> {
    for (name, bytes) in FILES {
        let path = folder.join(name);
        if !holds(&path, bytes) {
            std::fs::create_dir_all(folder)?;
            replace(&path, bytes)?;
        }
    }
    Ok(())
}

fn holds(path: &Path, bytes: &[u8]) -> bool {
    // The length first: a file of another size need not be read.
    std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == bytes.len() as u64)
        && std::fs::read(path).is_ok_and(|found| found == bytes)
}

/// Writes aside and renames, so that another process sees the whole file or none.
fn replace(path: &Path, bytes: &[u8]) -> IoResult<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let aside = path.with_extension(format!("{}-{number}.part", std::process::id()));
    let written = std::fs::File::create(&aside)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&aside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_written_once_and_mended_when_they_differ() {
        let cache = tempfile::tempdir().unwrap();
        let folder = lay_out(cache.path()).unwrap();
        assert!(folder.starts_with(cache.path()) && is_laid_out(&folder));
        assert_eq!(names(&folder), FILES.map(|(name, _)| name));
        let weights = folder.join("model.safetensors");
        let written = weights.metadata().unwrap().modified().unwrap();
        assert_eq!(lay_out(cache.path()).unwrap(), folder);
        assert_eq!(weights.metadata().unwrap().modified().unwrap(), written);

        // One byte flipped, one file cut off, one gone.
        let mut bytes = std::fs::read(&weights).unwrap();
        bytes[1_000_000] ^= 1;
        std::fs::write(&weights, bytes).unwrap();
        std::fs::write(folder.join("tokenizer.json"), "{").unwrap();
        std::fs::remove_file(folder.join("config.json")).unwrap();
        assert!(!is_laid_out(&folder));
        assert_eq!(lay_out(cache.path()).unwrap(), folder);
        assert!(is_laid_out(&folder));
        assert_eq!(names(&folder), FILES.map(|(name, _)| name));
    }

    #[test]
    fn writers_at_the_same_time_do_not_disturb_each_other() {
        let cache = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert!(is_laid_out(&lay_out(cache.path()).unwrap())));
            }
        });
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_passed_by() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for cache in [file.as_path(), Path::new("~/.cache/tokselect")] {
            let found = lay_out(cache).unwrap();
            assert!(
                found.starts_with(std::env::temp_dir()) && is_laid_out(&found),
                "{}",
                found.display()
            );
        }
        assert!(!Path::new("~").exists());
    }

    #[test]
    fn the_program_stays_small() {
        let total: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(total <= 10_000_000, "{total} bytes");
    }
}
