//! What examples are made of besides their settings: words, essays, questions.

use std::path::PathBuf;
use std::sync::Arc;

use super::haystack::Essay;
use super::qa_data::QuestionSet;
use super::question_answering::QaDataset;
use super::words::{WordFiles, WordLists};
use crate::error::Result;

/// Files in the place of what is embedded or generated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MaterialFiles {
    /// Word lists, such as those of `wonderwords` that RULER uses.
    pub words: WordFiles,
    /// Plain text for the essay haystack.
    pub essay: Option<PathBuf>,
    /// Questions of `qa_1`, in the format of `SQuAD`; without, they are about invented persons and towns.
    pub squad: Option<PathBuf>,
    /// Questions of `qa_2`, in the format of `HotpotQA`; without, they are about invented persons and towns.
    pub hotpot_qa: Option<PathBuf>,
}

/// Loaded once, used by all tasks.
#[derive(Debug, Clone)]
pub(super) struct Material {
    pub words: WordLists,
    pub essay: Essay,
    squad: Option<QuestionSet>,
    hotpot_qa: Option<QuestionSet>,
}

impl Material {
    pub fn load(files: &MaterialFiles) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            words: WordLists::load(&files.words)?,
            essay: files.essay.as_deref().map(Essay::load).transpose()?.unwrap_or_default(),
            squad: files.squad.as_deref().map(QuestionSet::load_squad).transpose()?,
            hotpot_qa: files
                .hotpot_qa
                .as_deref()
                .map(QuestionSet::load_hotpot_qa)
                .transpose()?,
        }))
    }

    /// The questions of a file; `None` if they are to be invented.
    pub fn questions(&self, dataset: QaDataset) -> Option<&QuestionSet> {
        match dataset {
            QaDataset::Squad => self.squad.as_ref(),
            QaDataset::HotpotQa => self.hotpot_qa.as_ref(),
        }
    }
}
