//! Turns a model reference into files on disk; the only module that touches the network.
//!
//! A reference is one of
//!
//! | typed | meaning |
//! |---|---|
//! | `path/to/model` | a directory with `config.json`, `tokenizer.json` and safetensors weights |
//! | `path/to/x.safetensors` | one weight file, with `config.json` and the others beside it |
//! | `path/to/config.json` | a configuration alone: no weights, the caller makes random ones |
//! | `Org/Name`, `Org/Name@revision` | a repository of the Hugging Face hub |
//! | `demo` | the model that is part of the program (a directory of that name is `./demo`) |
//!
//! and an existing local path wins over a hub id. The steps: `embedded` lays the files of `demo` out in a folder of their
//! own; `reference` decides which of the others it is; `directory`
//! (with `index`) looks what a folder holds and what it lacks; for a hub id, `repository` makes sure that the snapshot in
//! the `cache` lacks nothing: `client` asks the hub, `download` fetches one file. A cached snapshot is a folder like any
//! other, so both ways end in the same survey and the same [`ModelFiles`].
//!
//! Data of a benchmark is named the same way ([`resolve_data`]): a file, a directory, or a data set of the hub, of which
//! only the files that are wanted are downloaded.
//!
//! The cache is the standard one of the Hugging Face libraries (`models--Org--Name/{blobs,refs,snapshots,.no_exist}`):
//! what Python has downloaded is found here, and the other way round. It is asked first; a revision that is complete
//! there costs no network access. A file enters the cache only after its size and, for a file in large file storage, its
//! SHA-256 have been checked; until then it is `<hash>.incomplete`, and an interrupted download continues from there.
//!
//! # Environment
//!
//! | variable | effect | default |
//! |---|---|---|
//! | `HF_HUB_CACHE` | the cache folder | `$HF_HOME/hub` |
//! | `HF_HOME` | folder of the cache and of the login token | `$XDG_CACHE_HOME/huggingface` |
//! | `XDG_CACHE_HOME` | folder of all caches; `tokselect` in it holds the files of `demo` | `~/.cache` |
//! | `HF_TOKEN` | access token for gated and private models | content of the token file |
//! | `HF_TOKEN_PATH` | the token file, as `huggingface-cli login` writes it | `$HF_HOME/token` |
//! | `HF_ENDPOINT` | address of the hub or of a mirror | `https://huggingface.co` |
//! | `HF_HUB_OFFLINE` | `1`, `true`, `yes` or `on`: never touch the network, like `--offline` | off |
//! | `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY` | the proxy, as everywhere | none |
//!
//! An empty variable counts as unset. [`HubEnvironment`] holds them; tests and embedders fill it by hand and call
//! [`resolve_with`], so nothing here reads or changes process-wide state behind their back.

mod cache;
mod client;
mod data;
mod directory;
mod download;
mod embedded;
mod environment;
mod index;
mod reference;
mod repository;

use std::path::PathBuf;

use crate::error::{Error, Result};

pub use data::{DataFile, FoundData, find_data, find_data_with, resolve_data, resolve_data_with};
pub use embedded::{DEMO, demo_folder, demo_sha256, is_laid_out, temporary_demo_folder};
pub use environment::{HubEnvironment, cache_dir};
use reference::Reference;

/// What the command line says about the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// Branch, tag or commit of a hub repository (`--revision`); `main` if absent.
    pub revision: Option<String>,
    /// Never touch the network (`--offline`).
    pub offline: bool,
    /// Draw a progress bar on stderr while downloading; it stays hidden when stderr is not a terminal.
    pub progress: bool,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            revision: None,
            offline: false,
            progress: true,
        }
    }
}

/// Which files of a model the caller wants. `config.json` belongs to every choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// `config.json` and, if present, `generation_config.json`.
    ConfigOnly,
    /// The configuration and the tokenizer, which must exist.
    ConfigAndTokenizer,
    /// The configuration and the weights, which must exist; no tokenizer (synthetic token ids).
    ConfigAndWeights,
    /// Configuration, tokenizer and weights; all must exist.
    All,
}

impl Need {
    fn tokenizer(self) -> bool {
        matches!(self, Self::ConfigAndTokenizer | Self::All)
    }

    fn weights(self) -> bool {
        matches!(self, Self::ConfigAndWeights | Self::All)
    }
}

/// Where the files of a model came from, for the report.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SourceRecord {
    /// A local directory.
    Directory {
        /// Its path, as typed.
        path: PathBuf,
    },
    /// A local weight or configuration file.
    File {
        /// Its path, as typed.
        path: PathBuf,
    },
    /// A repository of the hub.
    Hub {
        /// `Org/Name`.
        repository: String,
        /// The branch, tag or commit asked for.
        revision: String,
        /// The commit that the revision stood for.
        commit: String,
    },
    /// A model that is part of the program.
    Embedded {
        /// Its name on the command line.
        name: String,
        /// SHA-256 over all of its files.
        sha256: String,
    },
}

/// The files of one model on disk. What [`Need`] does not cover is `None` or empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The reference as typed.
    pub reference: String,
    /// Where the files came from.
    pub source: SourceRecord,
    /// `config.json`, or the `.json` file that was named.
    pub config: PathBuf,
    /// `generation_config.json`.
    pub generation_config: Option<PathBuf>,
    /// `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<PathBuf>,
    /// `chat_template.jinja`, else `chat_template.json`.
    pub chat_template: Option<PathBuf>,
    /// `model.safetensors.index.json`, if the weights are sharded.
    pub weights_index: Option<PathBuf>,
    /// The weight files; shards in the order of their names.
    pub weights: Vec<PathBuf>,
}

/// Finds, and if need be downloads, the files of the model that `reference` names.
pub fn resolve(reference: &str, need: Need, options: &HubOptions) -> Result<ModelFiles> {
    resolve_with(&HubEnvironment::from_env(), reference, need, options)
}

/// [`resolve`] with the environment given instead of read from the process.
pub fn resolve_with(
    environment: &HubEnvironment,
    reference: &str,
    need: Need,
    options: &HubOptions,
) -> Result<ModelFiles> {
    // Before the look at the disk: what the name means must not depend on the current directory.
    if reference == DEMO {
        if let Some(revision) = &options.revision {
            return Err(Error::user(format!(
                "`--revision {revision}` is given, but `{DEMO}` is part of the program and has no other"
            ))
            .help("drop `--revision`, or name a hub model with `-m Org/Name`"));
        }
        let folder = embedded::lay_out(&environment.own_cache_dir)?;
        let source = SourceRecord::Embedded {
            name: DEMO.to_owned(),
            sha256: demo_sha256().to_owned(),
        };
        return directory::directory(&folder, need)?.into_files(reference, source);
    }
    let (survey, source) = match reference::parse(reference, options.revision.as_deref())? {
        Reference::Directory(path) => (directory::directory(&path, need)?, SourceRecord::Directory { path }),
        Reference::File(path) => (directory::file(&path, need)?, SourceRecord::File { path }),
        Reference::Hub(repository) => {
            let environment = HubEnvironment {
                offline: environment.offline || options.offline,
                ..environment.clone()
            };
            let (survey, commit) = repository::resolve(&environment, &repository, need, options.progress)?;
            let source = SourceRecord::Hub {
                repository: repository.id,
                revision: repository.revision,
                commit,
            };
            (survey, source)
        }
    };
    survey.into_files(reference, source)
}
