//! Makes sure that a hub repository's snapshot in the cache lacks nothing that is needed.

use super::Need;
use super::cache::RepositoryCache;
use super::client::{Client, Listing, RemoteFile};
use super::directory::{
    CHAT_TEMPLATE, CHAT_TEMPLATE_JSON, CONFIG, GENERATION_CONFIG, Survey, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS,
    WEIGHTS_INDEX, incomplete,
};
use super::download::{Downloader, progress_bar};
use super::environment::HubEnvironment;
use super::index;
use super::reference::Repository;
use crate::error::{Error, Result};

/// The survey of the repository's complete snapshot, and the commit.
pub(super) fn resolve(
    environment: &HubEnvironment,
    repository: &Repository,
    need: Need,
    progress: bool,
) -> Result<(Survey, String)> {
    let cache = RepositoryCache::new(&environment.cache_dir, repository);
    let mut cached = None;
    if let Some(commit) = cache.commit() {
        let survey = Survey::of(&cache.snapshot(&commit), need)?;
        let complete = survey.missing.is_empty();
        if complete && (environment.offline || nothing_unknown(&cache, &commit, need)) {
            return Ok((survey, commit));
        }
        cached = Some((survey, commit));
    }
    if environment.offline {
        return Err(offline(environment, repository, cached, need));
    }
    let client = Client::new(environment, repository)?;
    let download = Download {
        client: &client,
        cache: &cache,
        repository,
        need,
        progress,
    };
    match cached {
        // Only optional files are unknown. Ask about this very commit, and live without an answer.
        Some((survey, commit)) if survey.missing.is_empty() => match download.run(&commit) {
            Ok(found) => Ok(found),
            Err(error) => {
                tracing::debug!("using the cached files only: {error}");
                Ok((survey, commit))
            }
        },
        _ => download.run(&repository.revision),
    }
}

/// The files that may be absent, by need. The chat template is either of two; the first wins.
fn optional(need: Need) -> &'static [&'static str] {
    if need.tokenizer() {
        &[GENERATION_CONFIG, TOKENIZER_CONFIG, CHAT_TEMPLATE, CHAT_TEMPLATE_JSON]
    } else {
        &[GENERATION_CONFIG]
    }
}

/// Whether each optional file is either cached or known not to exist.
fn nothing_unknown(cache: &RepositoryCache, commit: &str, need: Need) -> bool {
    let snapshot = cache.snapshot(commit);
    let cached = |name: &str| snapshot.join(name).is_file();
    let settled = |name: &str| cached(name) || cache.known_absent(commit, name);
    optional(need)
        .iter()
        .all(|name| settled(name) || (*name == CHAT_TEMPLATE_JSON && cached(CHAT_TEMPLATE)))
}

/// The error that lists all that offline mode would have to download.
fn offline(
    environment: &HubEnvironment,
    repository: &Repository,
    cached: Option<(Survey, String)>,
    need: Need,
) -> Error {
    let missing = match cached {
        Some((survey, _)) => survey.missing,
        None => [(true, CONFIG), (need.tokenizer(), TOKENIZER), (need.weights(), WEIGHTS)]
            .into_iter()
            .filter(|(needed, _)| *needed)
            .map(|(_, name)| name.to_owned())
            .collect(),
    };
    let Repository { id, revision, .. } = repository;
    let count = match missing.len() {
        1 => "1 file that is".to_owned(),
        count => format!("{count} files that are"),
    };
    let message = format!("offline, but `{id}` (revision `{revision}`) needs {count} not in the cache");
    let mut error = Error::environment(message);
    for name in missing {
        error = error.note(match name.as_str() {
            WEIGHTS => format!("missing: `{WEIGHTS}` (or `{WEIGHTS_INDEX}` and its shards)"),
            _ => format!("missing: `{name}`"),
        });
    }
    error
        .note(format!("cache: `{}`", environment.cache_dir.display()))
        .help("run once without `--offline` and `HF_HUB_OFFLINE`, or set `HF_HUB_CACHE` to the cache that has it")
}

struct Download<'a> {
    client: &'a Client,
    cache: &'a RepositoryCache,
    repository: &'a Repository,
    need: Need,
    progress: bool,
}

impl Download<'_> {
    /// Asks what `revision` holds and downloads what the snapshot of its commit lacks.
    fn run(&self, revision: &str) -> Result<(Survey, String)> {
        let listing = self.client.list(revision)?;
        let small = self.small_files(&listing)?;
        let downloader = Downloader {
            client: self.client,
            cache: self.cache,
            commit: &listing.commit,
            bar: progress_bar(self.progress),
        };
        let fetched = downloader
            .fetch_all(&small)
            .and_then(|()| downloader.fetch_all(&self.shards(&listing)?));
        downloader.bar.finish_and_clear();
        fetched?;
        let snapshot = self.cache.snapshot(&listing.commit);
        let survey = Survey::of(&snapshot, self.need)?;
        if let Some(name) = survey.missing.first() {
            let path = snapshot.join(name);
            return Err(
                Error::environment(format!("`{}` disappeared from the cache", path.display()))
                    .help("do not clear the cache while a model is being loaded"),
            );
        }
        // Last, so that offline mode finds the old commit whole until the new one is.
        if revision == self.repository.revision {
            self.cache.set_commit(&listing.commit)?;
        }
        Ok((survey, listing.commit))
    }

    /// All but the shards, which only the index names.
    fn small_files(&self, listing: &Listing) -> Result<Vec<RemoteFile>> {
        let mut wanted = Vec::new();
        let mut missing = Vec::new();
        let mut require = |name: &'static str| {
            let found = listing.contains(name);
            if found {
                wanted.push(name);
            } else {
                missing.push(name.to_owned());
            }
        };
        require(CONFIG);
        if self.need.tokenizer() {
            require(TOKENIZER);
        }
        if self.need.weights() {
            let sharded = !listing.contains(WEIGHTS) && listing.contains(WEIGHTS_INDEX);
            require(if sharded { WEIGHTS_INDEX } else { WEIGHTS });
        }
        if !missing.is_empty() {
            return Err(incomplete(&self.place(), &missing, false, &listing.names()));
        }
        for name in optional(self.need) {
            if !listing.contains(name) {
                self.cache.mark_absent(&listing.commit, name);
            } else if *name != CHAT_TEMPLATE_JSON || !listing.contains(CHAT_TEMPLATE) {
                wanted.push(name);
            }
        }
        wanted
            .into_iter()
            .map(|name| self.client.describe(listing, name))
            .collect()
    }

    fn shards(&self, listing: &Listing) -> Result<Vec<RemoteFile>> {
        let index = self.cache.snapshot(&listing.commit).join(WEIGHTS_INDEX);
        if !self.need.weights() || listing.contains(WEIGHTS) {
            return Ok(Vec::new());
        }
        let shards = index::shards(&index)?;
        let missing: Vec<String> = shards
            .iter()
            .filter(|shard| !listing.contains(shard))
            .cloned()
            .collect();
        if !missing.is_empty() {
            return Err(incomplete(&self.place(), &missing, true, &listing.names()));
        }
        shards
            .iter()
            .map(|shard| self.client.describe(listing, shard))
            .collect()
    }

    fn place(&self) -> String {
        let Repository { id, revision, .. } = self.repository;
        format!("the hub repository `{id}` (revision `{revision}`)")
    }
}
