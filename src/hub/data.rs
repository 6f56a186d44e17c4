//! Finds one data file: by itself, in a directory, or in a data set of the hub.

use std::path::{Path, PathBuf};

use super::cache::RepositoryCache;
use super::client::Client;
use super::download::{Downloader, progress_bar};
use super::environment::HubEnvironment;
use super::reference::{Reference, Repository, parse_data};
use super::{HubOptions, SourceRecord};
use crate::error::{Error, Result};

/// A data file on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Where it is.
    pub path: PathBuf,
    /// Where it came from.
    pub source: SourceRecord,
}

/// Finds, and if need be downloads, the first of `names` that `reference` holds.
///
/// `reference` is a file (taken as it is, whatever its name), a directory, or a data set `Org/Name[@REVISION]`. A data
/// set that is cached with one of the names costs no network access.
pub fn resolve_data(reference: &str, names: &[&str], options: &HubOptions) -> Result<DataFile> {
    resolve_data_with(&HubEnvironment::from_env(), reference, names, options)
}

/// [`resolve_data`] with the environment given instead of read from the process.
pub fn resolve_data_with(
    environment: &HubEnvironment,
    reference: &str,
    names: &[&str],
    options: &HubOptions,
) -> Result<DataFile> {
    match parse_data(reference, options.revision.as_deref())? {
        Reference::File(path) => Ok(DataFile {
            source: SourceRecord::File { path: path.clone() },
            path,
        }),
        Reference::Directory(path) => match present(&path, names) {
            Some(found) => Ok(DataFile {
                path: found,
                source: SourceRecord::Directory { path },
            }),
            None => Err(missing(&format!("`{}`", path.display()), names)),
        },
        Reference::Hub(repository) => {
            let offline = environment.offline || options.offline;
            let (path, commit) = from_hub(environment, &repository, names, offline, options.progress)?;
            Ok(DataFile {
                path,
                source: SourceRecord::Hub {
                    repository: repository.id,
                    revision: repository.revision,
                    commit,
                },
            })
        }
    }
}

fn present(folder: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

fn quoted(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(" or ")
}

fn missing(place: &str, names: &[&str]) -> Error {
    Error::user(format!("{place} has no {}", quoted(names)))
        .help("name the file itself, or a directory or a hub data set that holds it under that name")
}

/// The file in the cache and the commit it belongs to.
fn from_hub(
    environment: &HubEnvironment,
    repository: &Repository,
    names: &[&str],
    offline: bool,
    progress: bool,
) -> Result<(PathBuf, String)> {
    let Repository { id, revision, .. } = repository;
    let cache = RepositoryCache::new(&environment.cache_dir, repository);
    if let Some(commit) = cache.commit()
        && let Some(path) = present(&cache.snapshot(&commit), names)
    {
        return Ok((path, commit));
    }
    if offline {
        return Err(Error::environment(format!(
            "offline, but {} of the data set `{id}` (revision `{revision}`) is not in the cache",
            quoted(names)
        ))
        .note(format!("cache: `{}`", environment.cache_dir.display()))
        .help("run once without `--offline` and `HF_HUB_OFFLINE`, or set `HF_HUB_CACHE` to the cache that has it"));
    }
    let client = Client::new(environment, repository)?;
    // The commit that other files of the data set came from, so that one benchmark is not mixed from two versions.
    let listing = client.list(cache.commit().as_deref().unwrap_or(revision))?;
    let Some(name) = names.iter().find(|name| listing.contains(name)) else {
        let mut held = listing.names();
        held.sort();
        held.truncate(20);
        return Err(
            missing(&format!("the hub data set `{id}` (revision `{revision}`)"), names)
                .note(format!("it holds {}", held.join(", "))),
        );
    };
    let downloader = Downloader {
        client: &client,
        cache: &cache,
        commit: &listing.commit,
        bar: progress_bar(progress),
    };
    let fetched = client
        .describe(&listing, name)
        .and_then(|file| downloader.fetch_all(&[file]));
    downloader.bar.finish_and_clear();
    fetched?;
    cache.set_commit(&listing.commit)?;
    Ok((cache.snapshot(&listing.commit).join(name), listing.commit))
}
