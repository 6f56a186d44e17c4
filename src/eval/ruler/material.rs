//! What examples are made of besides their settings: words, essays, questions.

use std::path::PathBuf;
use std::sync::Arc;

use super::haystack::Essay;
use super::words::{WordFiles, WordLists};
use crate::error::Result;

/// Files in the place of what is embedded or generated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MaterialFiles {
    /// Word lists, such as those of `wonderwords` that RULER uses.
    pub words: WordFiles,
    /// Plain text for the essay haystack.
    pub essay: Option<PathBuf>,
}

/// Loaded once, used by all tasks.
#[derive(Debug, Clone)]
pub(super) struct Material {
    pub words: WordLists,
    pub essay: Essay,
}

impl Material {
    pub fn load(files: &MaterialFiles) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            words: WordLists::load(&files.words)?,
            essay: files.essay.as_deref().map(Essay::load).transpose()?.unwrap_or_default(),
        }))
    }
}
