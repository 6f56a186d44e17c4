//! Open-ended sets: instructions without a list of right answers.

use super::completion::Cost;
use super::diversity::{Diversity, words};
use super::prompts::Form;
use crate::error::{Error, Result, io_error};
use crate::manifest::sha256;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// An instruction and a coarse test of what answers it (see `datasets/generation`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationTask {
    /// Name in reports.
    pub id: String,
    /// What is asked.
    pub instruction: String,
    /// How items are set.
    #[serde(default)]
    pub form: Form,
    /// A valid text has one of these words; none: any text has.
    #[serde(default)]
    pub wanted: Vec<String>,
    /// A valid text has none of these words.
    #[serde(default)]
    pub unwanted: Vec<String>,
    /// A valid text has at least this many words.
    #[serde(default)]
    pub least_words: usize,
}

const BUILT_IN: [&str; 3] = [
    include_str!("../../datasets/generation/positive_sentences.json"),
    include_str!("../../datasets/generation/negative_sentences.json"),
    include_str!("../../datasets/generation/sentences.json"),
];

impl GenerationTask {
    /// The tasks of `datasets/generation`, which are part of the program.
    pub fn built_in() -> Result<Vec<Self>> {
        let read = |text: &&str| {
            serde_json::from_str(text).map_err(|e| Error::bug(format!("a task of datasets/generation: {e}")))
        };
        BUILT_IN.iter().map(read).collect()
    }

    /// Reads a file with one task or a list of tasks.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum File {
            One(GenerationTask),
            Many(Vec<GenerationTask>),
        }
        let text = std::fs::read_to_string(path).map_err(|e| io_error("read", path, &e))?;
        let tasks = match serde_json::from_str(&text) {
            Ok(File::One(task)) => vec![task],
            Ok(File::Many(tasks)) => tasks,
            Err(e) => {
                return Err(Error::user(format!("`{}` is no task: {e}", path.display()))
                    .help("write {\"id\": .., \"instruction\": ..} or a list of such; see datasets/generation"));
            }
        };
        if tasks.is_empty() {
            return Err(Error::user(format!("`{}` holds no task", path.display()))
                .help("write {\"id\": .., \"instruction\": ..} or a list of such"));
        }
        for (at, task) in tasks.iter().enumerate() {
            if tasks[..at].iter().any(|other| other.id == task.id) {
                return Err(
                    Error::user(format!("`{}` holds two tasks named `{}`", path.display(), task.id))
                        .help("give each an `id` of its own"),
                );
            }
        }
        Ok(tasks)
    }

    /// Hash of all that it says.
    pub fn hash(tasks: &[Self]) -> String {
        sha256(serde_json::to_string(tasks).unwrap_or_default())
    }

    /// Whether `text` passes the test of words.
    pub fn accepts(&self, text: &str) -> bool {
        let words = words(text);
        let has = |list: &[String]| list.iter().any(|word| words.contains(word));
        let visible = words
            .iter()
            .filter(|word| word.chars().any(char::is_alphanumeric))
            .count();
        visible >= self.least_words.max(1) && (self.wanted.is_empty() || has(&self.wanted)) && !has(&self.unwanted)
    }
}

/// A set of texts of one method: what a sample holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GeneratedSet {
    /// Which task.
    pub task: String,
    /// Name of the method.
    pub method: String,
    /// Seed of its draws.
    pub seed: u64,
    /// The texts; null for one that never came to its end.
    pub texts: Vec<Option<String>>,
    /// Whether each is valid.
    pub valid: Vec<bool>,
    /// Share of valid ones among all.
    pub validity: f64,
    /// Of the finished texts.
    pub diversity: Diversity,
    /// Valid texts that no earlier one equals, over all.
    pub unique_and_valid: f64,
    /// Tokens read and generated.
    pub cost: Cost,
    /// Seconds, judging and embedding left out.
    pub wall_s: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faulty_files_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tasks.json");
        for (text, wanted) in [
            (
                r#"[{"id": "a", "instruction": "x"}, {"id": "a", "instruction": "y"}]"#,
                "two tasks named `a`",
            ),
            ("[]", "holds no task"),
            ("{}", "is no task"),
        ] {
            std::fs::write(&path, text).expect("a writable folder");
            let error = GenerationTask::read(&path).expect_err(wanted).to_string();
            assert!(error.contains(wanted) && error.contains("help:"), "{error}");
        }
    }

    #[test]
    fn the_test_of_words_by_hand() {
        let tasks = GenerationTask::built_in().expect("well formed");
        let positive = &tasks[0];
        assert!(positive.accepts("The film was GREAT!"));
        assert!(!positive.accepts("The film was great but sad."));
        assert!(!positive.accepts("The film was long."));
        assert!(!positive.accepts("Great film"), "two words are too few");
        assert!(!positive.accepts(""));
        assert!(tasks[2].accepts("It rained all day."));
    }
}
