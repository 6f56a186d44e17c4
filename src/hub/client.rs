//! Asks the hub: what a repository holds, and for the bytes of one file.
//!
//! The requests go through hf-hub's client (addresses, token, TLS, proxy), but not through its `download`: that one puts
//! a file into the cache before anything is checked, appends a whole file to a part when a server ignores the range, never
//! gets past a part that is already complete, and waits for ever on a silent connection.

use std::io::Read;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo};
use serde::Deserialize;

use super::cache::is_commit;
use super::environment::HubEnvironment;
use super::reference::Repository;
use crate::error::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may stay silent. A download as a whole may take as long as it likes.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// No list of a repository's files comes near this.
const LISTING_LIMIT: u64 = 64 << 20;

/// The hub's view of one repository.
pub(super) struct Client {
    api: Api,
    repository: Repository,
    endpoint: String,
    has_token: bool,
}

/// A repository at one commit.
pub(super) struct Listing {
    pub(super) commit: String,
    siblings: Vec<Sibling>,
}

/// A file as the hub describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    pub(super) size: u64,
    /// Names the blob in the cache.
    pub(super) hash: String,
    /// `hash` is the SHA-256 of the content (large file storage), not git's SHA-1.
    pub(super) sha256: bool,
}

/// An answer whose body has not been read.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_range: Option<String>,
    pub(super) body: Box<dyn Read>,
    error_code: Option<String>,
    etag: Option<String>,
    size: Option<String>,
}

#[derive(Deserialize)]
struct Information {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    pub(super) fn names(&self) -> Vec<String> {
        self.siblings.iter().map(|sibling| sibling.rfilename.clone()).collect()
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.siblings.iter().any(|sibling| sibling.rfilename == name)
    }
}

impl Client {
    pub(super) fn new(environment: &HubEnvironment, repository: &Repository) -> Result<Self> {
        let api = ApiBuilder::from_cache(Cache::new(environment.cache_dir.clone()))
            .with_endpoint(environment.endpoint.clone())
            .with_token(environment.token.clone())
            .with_user_agent("tokselect", env!("CARGO_PKG_VERSION"))
            .with_progress(false)
            .build()
            .map_err(|source| unreachable(&environment.endpoint, &repository.id, &source.to_string()))?;
        Ok(Self {
            api,
            repository: repository.clone(),
            endpoint: environment.endpoint.clone(),
            has_token: environment.token.is_some(),
        })
    }

    fn at(&self, revision: &str) -> ApiRepo {
        let id = self.repository.id.clone();
        self.api.repo(Repo::with_revision(
            id,
            self.repository.kind.repo_type(),
            revision.to_owned(),
        ))
    }

    /// What the repository holds at `revision`.
    pub(super) fn list(&self, revision: &str) -> Result<Listing> {
        let answer = send(&self.at(revision), None, 0, true).map_err(|cause| self.unreachable(&cause))?;
        if answer.status != 200 {
            return Err(self.refused(&answer, revision, None));
        }
        let mut text = Vec::new();
        let mut body = answer.body.take(LISTING_LIMIT);
        body.read_to_end(&mut text)
            .map_err(|source| self.unreachable(&source.to_string()))?;
        let not_a_hub = |cause: &str| {
            Error::environment(format!("`{}` does not answer like a model hub: {cause}", self.endpoint))
                .help("check `HF_ENDPOINT`, and whether a proxy or a login page is in the way")
        };
        let information: Information =
            serde_json::from_slice(&text).map_err(|source| not_a_hub(&source.to_string()))?;
        if !is_commit(&information.sha) {
            return Err(not_a_hub("the commit is not a hash"));
        }
        Ok(Listing {
            commit: information.sha,
            siblings: information.siblings,
        })
    }

    /// Size and hash of a file of the listing.
    pub(super) fn describe(&self, listing: &Listing, name: &str) -> Result<RemoteFile> {
        let sibling = listing.siblings.iter().find(|sibling| sibling.rfilename == name);
        let described = sibling.and_then(|sibling| match &sibling.lfs {
            Some(large) => remote_file(name, large.sha256.as_deref()?, large.size?),
            None => remote_file(name, sibling.blob_id.as_deref()?, sibling.size?),
        });
        match described {
            Some(file) => Ok(file),
            None => self.describe_by_headers(&listing.commit, name),
        }
    }

    /// For mirrors whose listing gives names only. The headers are on the first answer, before the redirect to storage.
    fn describe_by_headers(&self, commit: &str, name: &str) -> Result<RemoteFile> {
        let repo = self.at(commit);
        let url = repo.url(&percent_encode(name));
        let answer = send(&repo, Some(&url), 0, false).map_err(|cause| self.unreachable(&cause))?;
        if answer.status >= 400 {
            return Err(self.refused(&answer, commit, Some(name)));
        }
        let etag = answer
            .etag
            .as_deref()
            .map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let size = answer.size.as_deref().and_then(|size| size.parse().ok());
        let described = etag.zip(size).and_then(|(etag, size)| remote_file(name, etag, size));
        described.ok_or_else(|| {
            Error::environment(format!("`{}` gives no size or hash for `{name}`", self.endpoint))
                .help("set `HF_ENDPOINT` to the hub itself, or download the files by hand and name their directory")
        })
    }

    /// The bytes of a file from `from` on. The inner error is a failure of the connection, worth another try.
    pub(super) fn open(&self, commit: &str, name: &str, from: u64) -> Result<Result<Answer, String>> {
        let repo = self.at(commit);
        let url = repo.url(&percent_encode(name));
        match send(&repo, Some(&url), from, true) {
            Ok(answer) if matches!(answer.status, 200 | 206 | 416) => Ok(Ok(answer)),
            Ok(answer) if answer.status == 429 || answer.status >= 500 => Ok(Err(format!("HTTP {}", answer.status))),
            Ok(answer) => Err(self.refused(&answer, commit, Some(name))),
            Err(cause) => Ok(Err(cause)),
        }
    }

    /// The error for a hub that cannot be reached.
    pub(super) fn unreachable(&self, cause: &str) -> Error {
        unreachable(&self.endpoint, &self.repository.id, cause)
    }

    /// The error for an answer that is a refusal.
    fn refused(&self, answer: &Answer, revision: &str, name: Option<&str>) -> Error {
        let id = &self.repository.id;
        let noun = self.repository.kind.noun();
        let page = format!("{}/{}{id}", self.endpoint, self.repository.kind.page());
        let code = answer.error_code.as_deref().unwrap_or_default();
        let token = if self.has_token {
            "the token in use has no access; set `HF_TOKEN` to one that has"
        } else {
            "set `HF_TOKEN` to an access token of an account that has access"
        };
        match (answer.status, code) {
            (401 | 403, "GatedRepo") => Error::user(format!("`{id}` is a gated {noun} and access was refused"))
                .note(format!("its terms are accepted at {page}"))
                .help(token),
            (401, _) => Error::user(format!("`{id}` does not exist, or is private or gated (HTTP 401)"))
                .help(format!("check the spelling; if it is right, {token}")),
            (403, _) => Error::user(format!("access to `{id}` was refused (HTTP 403)"))
                .note(format!("if it is a gated {noun}, its terms are accepted at {page}"))
                .help(token),
            (404, "RevisionNotFound") => Error::user(format!("`{id}` has no revision `{revision}`"))
                .help(format!("see {page}/tree/main for its branches and tags")),
            (404, _) => match name {
                Some(name) => Error::user(format!("`{id}` has no file `{name}` at revision `{revision}`")),
                None => Error::user(format!(
                    "the hub has no {noun} `{id}` with a revision `{revision}` (HTTP 404)"
                ))
                .note(format!("there is no local path `{id}` either"))
                .help("check the spelling, or name a local directory as `./...`"),
            },
            (429, _) => Error::environment(format!("`{}` asks for fewer requests (HTTP 429)", self.endpoint))
                .help("wait a few minutes; an access token in `HF_TOKEN` raises the limit"),
            (status, _) => Error::environment(format!("`{}` answered HTTP {status} for `{id}`", self.endpoint))
                .help("try again later, or check `HF_ENDPOINT` and the proxy"),
        }
    }
}

fn unreachable(endpoint: &str, id: &str, cause: &str) -> Error {
    Error::environment(format!("cannot reach `{endpoint}` for `{id}`: {cause}"))
        .help("check the network, the proxy and `HF_ENDPOINT`, or name a local directory")
}

/// `None` unless the hash is one: it becomes a file name.
fn remote_file(name: &str, hash: &str, size: u64) -> Option<RemoteFile> {
    let hexadecimal = hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    (hexadecimal && [32, 40, 64].contains(&hash.len())).then(|| RemoteFile {
        name: name.to_owned(),
        size,
        hash: hash.to_ascii_lowercase(),
        sha256: hash.len() == 64,
    })
}

/// One GET request: the repository's description, or `url` from byte `from` on.
fn send(repo: &ApiRepo, url: Option<&str>, from: u64, follow: bool) -> Result<Answer, String> {
    let request = match url {
        Some(url) => repo.info_request().uri(url),
        // Without `blobs` the list has names only.
        None => repo.info_request().query("blobs", "true"),
    };
    // A compressed body would make ranges and sizes those of the compressed form.
    let mut request = request.header("Accept-Encoding", "identity");
    if from > 0 {
        request = request.header("Range", format!("bytes={from}-"));
    }
    let response = request
        .config()
        .http_status_as_error(false)
        .max_redirects(if follow { 10 } else { 0 })
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .build()
        .call()
        .map_err(|source| source.to_string())?;
    let header = |name: &str| {
        let value = response.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    Ok(Answer {
        status: response.status().as_u16(),
        content_range: header("content-range"),
        error_code: header("x-error-code"),
        etag: header("x-linked-etag").or_else(|| header("etag")),
        size: header("x-linked-size").or_else(|| header("content-length")),
        body: Box::new(response.into_body().into_reader()),
    })
}

/// Escapes what has a meaning in a URL; the slashes stay.
fn percent_encode(name: &str) -> String {
    use std::fmt::Write;
    name.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_hash_becomes_a_blob_name() {
        assert!(remote_file("a", &"0a".repeat(32), 1).unwrap().sha256);
        assert!(!remote_file("a", &"0a".repeat(20), 1).unwrap().sha256);
        for hash in ["", "../../x", &"z".repeat(40), &"0".repeat(41)] {
            assert_eq!(remote_file("a", hash, 1), None, "{hash}");
        }
    }

    #[test]
    fn names_are_escaped_but_keep_their_slashes() {
        assert_eq!(percent_encode("a b/c#1?é.json"), "a%20b/c%231%3F%C3%A9.json");
    }
}
