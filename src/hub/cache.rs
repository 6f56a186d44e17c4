//! One repository's folder in the cache, in the layout that all Hugging Face libraries share.
//!
//! ```text
//! models--Org--Name/refs/main                        the commit that a branch stood for
//! models--Org--Name/snapshots/<commit>/config.json   link to the blob
//! models--Org--Name/blobs/<hash>                     the content
//! models--Org--Name/.no_exist/<commit>/<name>        the hub was asked; there is no such file
//! .locks/models--Org--Name/<hash>.lock               held while a blob is written
//! ```
//!
//! A data set's folder is `datasets--Org--Name`.

use std::fs::File;
use std::io::{ErrorKind, Result as IoResult};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo};

use super::reference::Repository;
use crate::error::{Error, Result};

/// One repository's folder in the cache.
pub(super) struct RepositoryCache {
    cache: CacheRepo,
    folder: PathBuf,
    locks: PathBuf,
    revision: String,
}

impl RepositoryCache {
    pub(super) fn new(cache_dir: &Path, repository: &Repository) -> Self {
        let repo = Repo::with_revision(
            repository.id.clone(),
            repository.kind.repo_type(),
            repository.revision.clone(),
        );
        let name = repo.folder_name();
        Self {
            folder: cache_dir.join(&name),
            locks: cache_dir.join(".locks").join(&name),
            cache: Cache::new(cache_dir.to_owned()).repo(repo),
            revision: repository.revision.clone(),
        }
    }

    /// The commit that the revision stood for when it was last downloaded.
    pub(super) fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let commit = std::fs::read_to_string(self.folder.join("refs").join(&self.revision)).ok()?;
        // The content becomes part of a path, so anything but a hash counts as no reference.
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers what the revision stands for. A commit needs no reference, it stands for itself.
    pub(super) fn set_commit(&self, commit: &str) -> Result<()> {
        if commit == self.revision {
            return Ok(());
        }
        let path = self.folder.join("refs").join(&self.revision);
        self.cache
            .create_ref(commit)
            .map_err(|source| cache_error("write", &path, &source))
    }

    /// The folder of the files of one commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.pointer_path(commit)
    }

    /// Where the content with this hash is, or will be.
    pub(super) fn blob(&self, hash: &str) -> PathBuf {
        self.cache.blob_path(hash)
    }

    fn absence_marker(&self, commit: &str, name: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit).join(name)
    }

    /// Whether the hub has said that the commit has no such file.
    pub(super) fn known_absent(&self, commit: &str, name: &str) -> bool {
        self.absence_marker(commit, name).exists()
    }

    /// Remembers that the commit has no such file. A failure only costs a question next time.
    pub(super) fn mark_absent(&self, commit: &str, name: &str) {
        let path = self.absence_marker(commit, name);
        if let Err(source) = create_parent(&path).and_then(|()| File::create(&path).map(drop)) {
            tracing::debug!("cannot write {}: {source}", path.display());
        }
    }

    /// Waits until no other process writes the blob; the lock ends with the returned file.
    pub(super) fn lock(&self, hash: &str) -> Result<File> {
        let path = self.locks.join(format!("{hash}.lock"));
        let file = create_parent(&path)
            .and_then(|()| File::options().create(true).append(true).open(&path))
            .map_err(|source| cache_error("create", &path, &source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                tracing::info!("another process downloads the same file; waiting for it");
                file.lock().map_err(|source| cache_error("lock", &path, &source))?;
            }
            // Some network file systems cannot lock. Two writers at once would then be caught by the hash.
            Err(std::fs::TryLockError::Error(source)) => tracing::debug!("cannot lock {}: {source}", path.display()),
        }
        Ok(file)
    }

    /// Makes `name` of the commit point to the blob.
    pub(super) fn link(&self, commit: &str, name: &str, hash: &str) -> Result<()> {
        let blob = self.blob(hash);
        let pointer = self.snapshot(commit).join(name);
        // Relative, so that the cache can be moved: up from `snapshots/<commit>/`, then down beside it.
        let target = format!("{}blobs/{hash}", "../".repeat(2 + name.matches('/').count()));
        // Made aside and renamed: a copy straight to a pointer that links to the blob would truncate the blob.
        let aside = pointer.with_extension(format!("{}.link", std::process::id()));
        let linked = create_parent(&pointer)
            .and_then(|()| {
                let _ = std::fs::remove_file(&aside);
                symlink(Path::new(&target), &aside)
                    .or_else(|_| std::fs::hard_link(&blob, &aside))
                    .or_else(|_| std::fs::copy(&blob, &aside).map(drop))
            })
            .and_then(|()| std::fs::rename(&aside, &pointer));
        // Renaming one hard link over another of the same file leaves both.
        let _ = std::fs::remove_file(&aside);
        linked.map_err(|source| cache_error("create", &pointer, &source))
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> IoResult<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> IoResult<()> {
    // Links need a privilege there; the caller falls back to a hard link.
    Err(ErrorKind::Unsupported.into())
}

pub(super) fn create_parent(path: &Path) -> IoResult<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)
}

/// Whether `text` is a full commit hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// An I/O failure in the cache, which is the machine's fault, not the user's.
pub(super) fn cache_error(action: &str, path: &Path, source: &std::io::Error) -> Error {
    let error = Error::environment(format!("cannot {action} `{}`: {source}", path.display()));
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            error.help("free some space, or set `HF_HUB_CACHE` to a folder on a larger disk")
        }
        _ => error.help("set `HF_HUB_CACHE` to a folder that can be written"),
    }
}
