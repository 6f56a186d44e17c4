//! A task read from the official data.

use super::Subtask;
use super::prompts::template;
use crate::error::{Error, Result};
use crate::eval::jsonl::JsonLines;
use crate::eval::loaded::{Asked, row};
use crate::eval::prompt::{frame, without_blank_lines};
use crate::eval::scorers::paragraph;
use crate::eval::{Example, Metric, Request, Task};
use crate::hub::{DataFile, HubOptions, SourceRecord, resolve_data};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Whose templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PromptSet {
    /// `LongBench`'s.
    #[default]
    Official,
    /// The same without blank lines, as the `TokenSelect` repository has them.
    TokenSelect,
}

impl PromptSet {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Official, Self::TokenSelect];

    /// Name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Official => "official",
            Self::TokenSelect => "token-select",
        }
    }

    fn template(self, subtask: Subtask) -> Cow<'static, str> {
        match self {
            Self::Official => template(subtask).into(),
            Self::TokenSelect => without_blank_lines(template(subtask)).into(),
        }
    }
}

impl fmt::Display for PromptSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PromptSet {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name).ok_or_else(|| {
            Error::user(format!("`{name}` is no prompt set of LongBench"))
                .help(format!("pass one of {}", Self::ALL.map(Self::name).join(", ")))
        })
    }
}

/// What to know when a file is not found.
pub(crate) const PACKED: &str = "LongBench's own repository holds its files in `data.zip`; unpack it first";

/// A task with the examples of its data file: objects with `input`, `context`, `answers` and `all_classes`.
#[derive(Debug)]
pub struct LongBench {
    subtask: Subtask,
    prompts: PromptSet,
    lines: JsonLines,
    source: SourceRecord,
}

/// Loads `subtask` from `data`: its file, a directory with it (or with `data/`, as the archive unpacks), or a data set of
/// the hub that holds it unpacked.
pub fn load(data: &str, subtask: Subtask, prompts: PromptSet, options: &HubOptions) -> Result<LongBench> {
    let names = subtask.data_files();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let file = resolve_data(data, &names, options).map_err(|error| error.note(PACKED))?;
    LongBench::open(file, subtask, prompts)
}

impl LongBench {
    /// Reads where the examples of a data file are.
    pub fn open(file: DataFile, subtask: Subtask, prompts: PromptSet) -> Result<Self> {
        Ok(Self {
            subtask,
            prompts,
            lines: JsonLines::open(&file.path)?,
            source: file.source,
        })
    }

    /// Where the data came from.
    pub fn source(&self) -> &SourceRecord {
        &self.source
    }
}

impl Task for LongBench {
    fn name(&self) -> &str {
        self.subtask.name()
    }

    fn suite(&self) -> &'static str {
        "long_bench"
    }

    fn max_new_tokens(&self) -> usize {
        self.subtask.max_new_tokens()
    }

    fn metrics(&self) -> &'static [Metric] {
        self.subtask.metrics()
    }

    fn len(&self) -> Option<usize> {
        Some(self.lines.count())
    }

    fn uses_chat_template(&self) -> bool {
        self.subtask.uses_chat_template()
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::json!({"prompts": self.prompts.name()})
    }

    fn data_sha256(&self) -> Option<&str> {
        Some(self.lines.sha256())
    }

    fn example(&self, request: &Request<'_>) -> Result<Example> {
        let record = row(self.name(), &self.lines, request)?;
        let template = self.prompts.template(self.subtask);
        let input = if template.contains("{input}") {
            record.text("input")?
        } else {
            ""
        };
        let answers = record.texts("answers")?;
        if answers.is_empty() {
            return Err(record.fault("answers", "is empty"));
        }
        if self.subtask == Subtask::PassageRetrievalEn && answers.iter().any(|answer| paragraph(answer).is_none()) {
            return Err(record.fault("answers", "names no `Paragraph N`"));
        }
        let options = record.optional_texts("all_classes")?;
        if self.subtask == Subtask::Trec && options.is_empty() {
            return Err(record.fault("all_classes", "is missing or empty"));
        }
        let asked = Asked {
            frame: frame(&template, &[("input", input)])?,
            context: record.text("context")?,
            answers,
            options,
        };
        asked.example(&record, request, self.max_new_tokens())
    }

    fn score(&self, example: &Example, answer: &str) -> Vec<f64> {
        vec![self.subtask.score(answer, &example.answers, &example.options)]
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "0, 1 and simple fractions are exact")]
mod tests {
    use super::*;
    use crate::eval::WhitespaceTokens;

    fn task(subtask: Subtask, prompts: PromptSet, lines: &str) -> (tempfile::TempDir, LongBench) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        std::fs::write(folder.path().join(format!("data/{subtask}.jsonl")), lines).unwrap();
        let data = folder.path().to_str().unwrap().to_owned();
        let task = load(&data, subtask, prompts, &HubOptions::default()).unwrap();
        (folder, task)
    }

    fn request(index: usize, length: Option<usize>) -> Request<'static> {
        Request {
            index,
            length,
            depth: None,
            seed: 0,
            tokens: &WhitespaceTokens,
        }
    }

    #[test]
    fn an_example_is_asked_and_scored_the_official_way() {
        let line = concat!(
            r#"{"input": "Type: ", "context": "Question: where?\nType: City", "answers": ["State"], "length": 5, "#,
            r#""dataset": "trec", "language": "en", "all_classes": ["City", "State"], "_id": "00ff"}"#
        );
        let (_folder, task) = task(Subtask::Trec, PromptSet::Official, line);
        let example = task.example(&request(0, None)).unwrap();
        assert_eq!(
            example.prompt,
            "Please determine the type of the question below. Here are some examples of questions.\n\nQuestion: \
             where?\nType: City\nType: "
        );
        assert_eq!((example.id.as_str(), example.options.len()), ("0000", 2));
        assert_eq!(task.score(&example, "State\nCity"), [1.0]);
        assert!(!task.uses_chat_template());
        assert_eq!((task.len(), task.max_new_tokens()), (Some(1), 64));
    }

    #[test]
    fn both_template_sets_take_every_example() {
        let line = r#"{"input": "i", "context": "c c c", "answers": ["Paragraph 3"], "all_classes": ["Paragraph 3"]}"#;
        for subtask in Subtask::ALL {
            for set in PromptSet::ALL {
                let (_folder, task) = task(subtask, set, line);
                let example = task.example(&request(0, None)).unwrap();
                assert_eq!(example.prompt.contains("\n\n"), set.template(subtask).contains("\n\n"));
                let scores = task.score(&example, "Paragraph 3");
                assert!(
                    scores[0] > 0.99 || subtask == Subtask::PassageCount,
                    "{subtask}: {scores:?}"
                );
                assert_eq!(set.name().parse::<PromptSet>().unwrap(), set);
            }
        }
    }

    #[test]
    fn faults_of_the_data_name_file_line_and_key() {
        for (subtask, line, expected) in [
            (
                Subtask::Qasper,
                r#"{"context": "c", "answers": ["a"]}"#,
                "`input` is missing",
            ),
            (
                Subtask::Lcc,
                r#"{"context": ["c"], "answers": ["a"]}"#,
                "`context` is a list, not a text",
            ),
            (
                Subtask::Lcc,
                r#"{"context": "c", "answers": {"a": 1}}"#,
                "`answers` holds an object",
            ),
            (Subtask::Lcc, r#"{"context": "c", "answers": []}"#, "`answers` is empty"),
            (
                Subtask::PassageRetrievalEn,
                r#"{"input": "i", "context": "c", "answers": ["3"]}"#,
                "`answers` names no",
            ),
            (
                Subtask::Trec,
                r#"{"input": "i", "context": "c", "answers": ["a"], "all_classes": null}"#,
                "`all_classes` is missing",
            ),
        ] {
            let (_folder, task) = task(subtask, PromptSet::Official, line);
            let error = task.example(&request(0, None)).unwrap_err();
            assert!(
                error
                    .message()
                    .contains(&format!("{subtask}.jsonl` line 1: {expected}")),
                "{error}"
            );
        }
        let error = load(
            "no/such/place",
            Subtask::Lcc,
            PromptSet::Official,
            &HubOptions::default(),
        )
        .unwrap_err();
        assert!(error.to_string().contains("data.zip"), "{error}");
    }
}
