//! Downloads one file into the cache: continues what was interrupted, checks size and hash, then puts it in place.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sha2::{Digest, Sha256};

use super::cache::{RepositoryCache, cache_error, create_parent};
use super::client::{Answer, Client, RemoteFile};
use crate::error::{Error, Result};

/// Attempts without a single new byte before giving up.
const FRUITLESS_ATTEMPTS: u32 = 4;
const FIRST_DELAY: Duration = Duration::from_millis(250);
const BUFFER_BYTES: usize = 256 * 1024;

/// Downloads files of one commit, with one progress bar for all of them.
pub(super) struct Downloader<'a> {
    pub(super) client: &'a Client,
    pub(super) cache: &'a RepositoryCache,
    pub(super) commit: &'a str,
    pub(super) bar: ProgressBar,
}

/// The progress bar on stderr; indicatif hides it when stderr is not a terminal.
pub(super) fn progress_bar(visible: bool) -> ProgressBar {
    if !visible {
        return ProgressBar::hidden();
    }
    let template = "{wide_msg} {bytes:>10} / {total_bytes:10} [{bar:30}] {bytes_per_sec:>12} {eta:>4}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style.progress_chars("=> "))
}

impl Downloader<'_> {
    /// Makes sure that the snapshot has these files, whole and as the hub describes them.
    pub(super) fn fetch_all(&self, files: &[RemoteFile]) -> Result<()> {
        self.bar
            .inc_length(files.iter().fold(0, |total: u64, file| total.saturating_add(file.size)));
        files.iter().try_for_each(|file| self.fetch(file))
    }

    fn fetch(&self, file: &RemoteFile) -> Result<()> {
        self.bar.set_message(file.name.clone());
        let pointer = self.cache.snapshot(self.commit).join(&file.name);
        if has_size(&pointer, file.size) {
            self.bar.inc(file.size);
            return Ok(());
        }
        let _lock = self.cache.lock(&file.hash)?;
        let blob = self.cache.blob(&file.hash);
        // Another commit may have the same content, or another process may have fetched it while this one waited.
        if has_size(&blob, file.size) {
            self.bar.inc(file.size);
        } else {
            let part = blob.with_extension("incomplete");
            self.download(file, &part)?;
            std::fs::rename(&part, &blob).map_err(|source| cache_error("create", &blob, &source))?;
        }
        self.cache.link(self.commit, &file.name, &file.hash)
    }

    /// Leaves the whole and checked content in `part`.
    fn download(&self, file: &RemoteFile, part: &Path) -> Result<()> {
        let failed = |source: std::io::Error| cache_error("write", part, &source);
        create_parent(part).map_err(failed)?;
        let opened = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(part);
        let mut target = Target::new(opened.map_err(failed)?, &self.bar);
        // Only a SHA-256 can prove that an old part belongs to the file; the others are small.
        if file.sha256 {
            target.adopt(file.size).map_err(failed)?;
        } else {
            target.restart().map_err(failed)?;
        }
        let mut attempt = 0;
        while target.written < file.size {
            let before = target.written;
            let cause = match self.client.open(self.commit, &file.name, before)? {
                Ok(answer) => match target.receive(answer, file.size).map_err(failed)? {
                    Received::All => break,
                    Received::Cut(cause) => cause,
                },
                Err(cause) => cause,
            };
            attempt = if target.written > before { 1 } else { attempt + 1 };
            if attempt >= FRUITLESS_ATTEMPTS {
                return Err(self.interrupted(file, target.written, &cause));
            }
            tracing::debug!("{}: {cause}; continuing at byte {}", file.name, target.written);
            std::thread::sleep(FIRST_DELAY * 2_u32.pow(attempt - 1));
        }
        target.check(file).map_err(failed)?.map_or(Ok(()), |mismatch| {
            // Nothing of it can be trusted, and a later run must not continue from it.
            let _ = std::fs::remove_file(part);
            Err(
                Error::environment(format!("`{}` arrived damaged: {mismatch}", file.name))
                    .note("the file was removed from the cache")
                    .help("run the command again; if it happens twice, check the proxy and `HF_ENDPOINT`"),
            )
        })
    }

    fn interrupted(&self, file: &RemoteFile, written: u64, cause: &str) -> Error {
        let error = self.client.unreachable(cause);
        let error = error.note(format!("`{}` stopped at byte {written} of {}", file.name, file.size));
        if file.sha256 {
            error.note("what has arrived is kept; the next run continues from there")
        } else {
            error
        }
    }
}

fn has_size(path: &Path, size: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

enum Received {
    All,
    Cut(String),
}

/// The partial file, hashed as it grows.
struct Target<'a> {
    file: File,
    hasher: Sha256,
    written: u64,
    bar: &'a ProgressBar,
}

impl<'a> Target<'a> {
    fn new(file: File, bar: &'a ProgressBar) -> Self {
        Self {
            file,
            hasher: Sha256::new(),
            written: 0,
            bar,
        }
    }

    /// Takes over what an earlier run has left.
    fn adopt(&mut self, size: u64) -> std::io::Result<()> {
        if self.file.metadata()?.len() > size {
            return self.restart();
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = match self.file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(source) if source.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(source),
            };
            self.hasher.update(&buffer[..count]);
            self.advance(count as u64);
        }
    }

    fn restart(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher = Sha256::new();
        self.bar.set_position(self.bar.position().saturating_sub(self.written));
        self.written = 0;
        Ok(())
    }

    fn advance(&mut self, count: u64) {
        self.written += count;
        self.bar.inc(count);
    }

    /// Appends the answer's body. The error is one of the disk; one of the connection is `Received::Cut`.
    fn receive(&mut self, mut answer: Answer, size: u64) -> std::io::Result<Received> {
        let continues = answer.status == 206 && range_start(answer.content_range.as_deref()) == Some(self.written);
        if !continues && self.written > 0 {
            self.restart()?;
            if answer.status != 200 {
                return Ok(Received::Cut(format!(
                    "HTTP {} did not continue the file",
                    answer.status
                )));
            }
        } else if answer.status == 416 {
            return Ok(Received::Cut("HTTP 416 for a whole file".to_owned()));
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = match answer.body.read(&mut buffer) {
                Ok(0) if self.written < size => return Ok(Received::Cut("the connection ended early".to_owned())),
                Ok(0) => return Ok(Received::All),
                Ok(count) => count,
                Err(source) if source.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Ok(Received::Cut(source.to_string())),
            };
            self.file.write_all(&buffer[..count])?;
            self.hasher.update(&buffer[..count]);
            self.advance(count as u64);
            if self.written > size {
                return Ok(Received::All); // The check will say so.
            }
        }
    }

    /// What distinguishes the content from the description, if anything does.
    fn check(self, file: &RemoteFile) -> std::io::Result<Option<String>> {
        if self.written != file.size {
            let (got, size) = (self.written, file.size);
            return Ok(Some(format!("the hub announces {size} bytes and sent at least {got}")));
        }
        let hash = format!("{:x}", self.hasher.finalize());
        if file.sha256 && hash != file.hash {
            return Ok(Some(format!("its SHA-256 is {hash}, the hub says {}", file.hash)));
        }
        self.file.sync_all()?;
        Ok(None)
    }
}

/// The first byte of `bytes 100-199/200`.
fn range_start(content_range: Option<&str>) -> Option<u64> {
    content_range?
        .trim()
        .strip_prefix("bytes ")?
        .split_once('-')?
        .0
        .trim()
        .parse()
        .ok()
}
