//! Finds one data file: by itself, in a directory, or in a data set of the hub.

use std::path::{Path, PathBuf};

use super::cache::RepositoryCache;
use super::client::Client;
use super::download::{Downloader, progress_bar};
use super::environment::HubEnvironment;
use super::reference::{Reference, Repository, parse_data};
use super::{HubOptions, SourceRecord};
use crate::error::{Error, Result};

/// Files of a data set that an error names.
const MOST_SHOWN: usize = 20;

/// A data file on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Where it is.
    pub path: PathBuf,
    /// Where it came from.
    pub source: SourceRecord,
}

/// What a place holds of the files that were asked for.
#[derive(Debug)]
pub struct FoundData {
    /// One per file asked for; `None` where the place does not have it.
    pub files: Vec<Option<DataFile>>,
    /// The names of those that it does not have.
    lacking: Vec<String>,
    /// The place in words.
    place: String,
    /// What a data set of the hub holds instead.
    held: Vec<String>,
}

impl FoundData {
    /// The refusal of a place that lacks something: one error that names every file.
    pub fn lacks(&self) -> Error {
        let error =
            Error::user(format!("{} has no {}", self.place, self.lacking.join(", "))).help(match self.lacking.len() {
                1 => "name the file itself, or a directory or a hub data set that holds it under that name",
                _ => "name a directory or a hub data set that holds them under these names",
            });
        if self.held.is_empty() {
            return error;
        }
        let shown = &self.held[..self.held.len().min(MOST_SHOWN)];
        error.note(match self.held.len() - shown.len() {
            0 => format!("it holds {}", shown.join(", ")),
            more => format!("it holds {} and {more} more", shown.join(", ")),
        })
    }

    /// Whether a data set of the hub that lacks something holds a file with this ending.
    pub fn holds(&self, ending: &str) -> bool {
        self.held.iter().any(|name| name.ends_with(ending))
    }
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
    let names = names.iter().map(|&name| name.to_owned()).collect();
    let mut found = find_data_with(environment, reference, &[names], options)?;
    found.files.pop().flatten().ok_or_else(|| found.lacks())
}

/// As [`resolve_data`] for several files of one place, each under the first of its names; what the place does not have
/// is no error here.
pub fn find_data(reference: &str, wanted: &[Vec<String>], options: &HubOptions) -> Result<FoundData> {
    find_data_with(&HubEnvironment::from_env(), reference, wanted, options)
}

/// [`find_data`] with the environment given instead of read from the process.
pub fn find_data_with(
    environment: &HubEnvironment,
    reference: &str,
    wanted: &[Vec<String>],
    options: &HubOptions,
) -> Result<FoundData> {
    match parse_data(reference, options.revision.as_deref())? {
        Reference::File(path) => {
            if wanted.len() != 1 {
                let asked: Vec<String> = wanted.iter().map(|names| label(names, wanted)).collect();
                return Err(Error::user(format!(
                    "`{}` is one file, and {} are asked for",
                    path.display(),
                    wanted.len()
                ))
                .note(format!("asked for {}", asked.join(", ")))
                .help("name its task alone with `--tasks`, or a directory that holds them all"));
            }
            let file = DataFile {
                source: SourceRecord::File { path: path.clone() },
                path,
            };
            Ok(FoundData {
                files: vec![Some(file)],
                lacking: Vec::new(),
                place: String::new(),
                held: Vec::new(),
            })
        }
        Reference::Directory(path) => {
            let file = |names: &Vec<String>| {
                present(&path, names).map(|found| DataFile {
                    path: found,
                    source: SourceRecord::Directory { path: path.clone() },
                })
            };
            let files: Vec<Option<DataFile>> = wanted.iter().map(file).collect();
            Ok(FoundData {
                lacking: lacking(wanted, &files),
                files,
                place: format!("`{}`", path.display()),
                held: Vec::new(),
            })
        }
        Reference::Hub(repository) => {
            let offline = environment.offline || options.offline;
            from_hub(environment, &repository, wanted, offline, options.progress)
        }
    }
}

fn lacking(wanted: &[Vec<String>], files: &[Option<DataFile>]) -> Vec<String> {
    let pairs = wanted.iter().zip(files).filter(|(_, file)| file.is_none());
    pairs.map(|(names, _)| label(names, wanted)).collect()
}

fn present(folder: &Path, names: &[String]) -> Option<PathBuf> {
    names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

fn quoted(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(" or ")
}

/// A file in a message: with its alternatives if it is the only one, else by its first name, as lists are long enough.
fn label(names: &[String], wanted: &[Vec<String>]) -> String {
    quoted(if wanted.len() == 1 {
        names
    } else {
        &names[..names.len().min(1)]
    })
}

/// The files in the cache, with the commit they belong to; what is not there is downloaded.
fn from_hub(
    environment: &HubEnvironment,
    repository: &Repository,
    wanted: &[Vec<String>],
    offline: bool,
    progress: bool,
) -> Result<FoundData> {
    let Repository { id, revision, .. } = repository;
    let cache = RepositoryCache::new(&environment.cache_dir, repository);
    let file = |path: PathBuf, commit: &str| DataFile {
        path,
        source: SourceRecord::Hub {
            repository: id.clone(),
            revision: revision.clone(),
            commit: commit.to_owned(),
        },
    };
    let cached = cache.commit();
    let in_cache = |names: &Vec<String>| {
        let commit = cached.as_deref()?;
        Some(file(present(&cache.snapshot(commit), names)?, commit))
    };
    let mut files: Vec<Option<DataFile>> = wanted.iter().map(in_cache).collect();
    let found = |files: Vec<Option<DataFile>>, held: Vec<String>| FoundData {
        lacking: lacking(wanted, &files),
        files,
        place: format!("the hub data set `{id}` (revision `{revision}`)"),
        held,
    };
    let uncached = lacking(wanted, &files);
    if uncached.is_empty() {
        return Ok(found(files, Vec::new()));
    }
    if offline {
        return Err(Error::environment(format!(
            "offline, but {} of the data set `{id}` (revision `{revision}`) {} not in the cache",
            uncached.join(", "),
            if uncached.len() == 1 { "is" } else { "are" }
        ))
        .note(format!("cache: `{}`", environment.cache_dir.display()))
        .help("run once without `--offline` and `HF_HUB_OFFLINE`, or set `HF_HUB_CACHE` to the cache that has it"));
    }
    let client = Client::new(environment, repository)?;
    // The commit that other files of the data set came from, so that one benchmark is not mixed from two versions.
    let listing = client.list(cached.as_deref().unwrap_or(revision))?;
    let downloader = Downloader {
        client: &client,
        cache: &cache,
        commit: &listing.commit,
        bar: progress_bar(progress),
    };
    for (slot, names) in files.iter_mut().zip(wanted).filter(|(slot, _)| slot.is_none()) {
        let Some(name) = names.iter().find(|name| listing.contains(name)) else {
            continue;
        };
        let fetched = client
            .describe(&listing, name)
            .and_then(|file| downloader.fetch_all(&[file]));
        if let Err(error) = fetched {
            downloader.bar.finish_and_clear();
            return Err(error);
        }
        cache.set_commit(&listing.commit)?;
        *slot = Some(file(cache.snapshot(&listing.commit).join(name), &listing.commit));
    }
    downloader.bar.finish_and_clear();
    let mut held = listing.names();
    held.sort();
    Ok(found(files, held))
}
