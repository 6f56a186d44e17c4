//! A task read from the official data.

use super::score::letter_of;
use super::{METRICS, PromptSet, Subtask, score};
use crate::error::Result;
use crate::eval::jsonl::{JsonLines, Record};
use crate::eval::loaded::{Asked, row};
use crate::eval::prompt::{Frame, frame};
use crate::eval::{Example, Metric, Request, Task};
use crate::hub::{DataFile, HubOptions, SourceRecord, resolve_data};
use regex::Regex;
use std::sync::LazyLock;

/// The call to be evaluated: `func_12(-3)`.
static CALL: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(func_[0-9]+)\(-?[0-9]+\)").expect("a valid pattern"));
/// What number is asked for, as the `TokenSelect` repository finds it: up to the last "of" of a line.
static NUMBER_OF: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(The .+) of").expect("a valid pattern"));
/// The same by `InfiniteBench`.
static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(The \w+ number)").expect("a valid pattern"));

/// A task with the examples of its data file, `<name>.jsonl`: objects with `context` (or `content`), `input`, `answer` and
/// `options`.
#[derive(Debug)]
pub struct InfiniteBench {
    subtask: Subtask,
    prompts: PromptSet,
    math_calc_tokens: Option<usize>,
    lines: JsonLines,
    source: SourceRecord,
}

/// Loads `subtask` from `data`: its file, a directory with it, or a data set of the hub such as
/// `xinrongzhang2022/InfiniteBench`.
pub fn load(data: &str, subtask: Subtask, prompts: PromptSet, options: &HubOptions) -> Result<InfiniteBench> {
    let names = subtask.data_files();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    InfiniteBench::open(resolve_data(data, &names, options)?, subtask, prompts)
}

impl InfiniteBench {
    /// Reads where the examples of a data file are.
    pub fn open(file: DataFile, subtask: Subtask, prompts: PromptSet) -> Result<Self> {
        Ok(Self {
            subtask,
            prompts,
            math_calc_tokens: None,
            lines: JsonLines::open(&file.path)?,
            source: file.source,
        })
    }

    /// The same with another answer length for Math.Calc: the prompt sets' is 30000 and more.
    #[must_use]
    pub fn with_math_calc_tokens(self, tokens: Option<usize>) -> Self {
        Self {
            math_calc_tokens: tokens,
            ..self
        }
    }

    /// Where the data came from.
    pub fn source(&self) -> &SourceRecord {
        &self.source
    }

    /// The prompt around the context.
    fn frame(&self, record: &Record<'_>, options: &[String]) -> Result<Frame> {
        let template = self.prompts.template(self.subtask);
        let input = if template.contains("{input}") || template.contains("{question}") || self.parses_input() {
            record.text("input")?
        } else {
            ""
        };
        let (mut prefix, mut key, mut func, mut call) = (String::new(), "", "", "");
        match self.subtask {
            Subtask::MathFind => prefix = self.number_asked_for(record, input)?,
            Subtask::KvRetrieval if template.contains("{key}") => key = quoted_key(record, input)?,
            Subtask::CodeRun => {
                let found = CALL
                    .captures(input)
                    .ok_or_else(|| record.fault("input", "calls no function `func_N(X)`"))?;
                call = found.get(0).map_or("", |whole| whole.as_str());
                func = found.get(1).map_or("", |name| name.as_str());
            }
            _ => {}
        }
        let option = |place: usize| options.get(place).map_or("", String::as_str);
        let values = [
            ("input", input),
            ("question", input),
            ("prefix", &prefix),
            ("key", key),
            ("func", func),
            ("func_call", call),
            ("OPTION_A", option(0)),
            ("OPTION_B", option(1)),
            ("OPTION_C", option(2)),
            ("OPTION_D", option(3)),
        ];
        frame(&template, &values)
    }

    fn parses_input(&self) -> bool {
        matches!(self.subtask, Subtask::MathFind | Subtask::CodeRun)
    }

    /// `What is the largest number in the following list?`
    fn number_asked_for(&self, record: &Record<'_>, input: &str) -> Result<String> {
        let pattern = match self.prompts {
            PromptSet::TokenSelect | PromptSet::InfLlm => &NUMBER_OF,
            PromptSet::OfficialChat | PromptSet::OfficialBase => &NUMBER,
        };
        let found = pattern
            .captures(input)
            .and_then(|found| found.get(1))
            .ok_or_else(|| record.fault("input", "does not say which number is asked for (`The ... number of`)"))?;
        Ok(format!(
            "What is {} in the following list?",
            found.as_str().to_lowercase()
        ))
    }

    /// The answers, and for a multiple-choice question the letter after the text.
    fn answers(&self, record: &Record<'_>, options: &[String]) -> Result<Vec<String>> {
        let mut answers = record.texts("answer")?;
        if answers.is_empty() {
            return Err(record.fault("answer", "is empty"));
        }
        if !self.subtask.has_options() {
            return Ok(answers);
        }
        if options.len() != 4 {
            return Err(record.fault("options", &format!("has {} entries instead of 4", options.len())));
        }
        if answers.len() == 1 {
            let letter = options
                .iter()
                .position(|option| *option == answers[0])
                .and_then(letter_of)
                .ok_or_else(|| record.fault("answer", "is none of `options`"))?;
            answers.push(letter.to_string());
        } else if answers.len() != 2 || !matches!(answers[1].as_str(), "A" | "B" | "C" | "D") {
            return Err(record.fault("answer", "is neither one of `options` nor an option and its letter"));
        }
        Ok(answers)
    }
}

/// The key of `Key: "..."` with its quotes, as the templates show it.
fn quoted_key<'a>(record: &Record<'_>, input: &'a str) -> Result<&'a str> {
    input
        .strip_prefix("Key: \"")
        .and_then(|rest| rest.find('"'))
        .map(|end| &input["Key: ".len()..="Key: \"".len() + end])
        .ok_or_else(|| record.fault("input", "does not begin with `Key: \"...\"`"))
}

impl Task for InfiniteBench {
    fn name(&self) -> &str {
        self.subtask.name()
    }

    fn suite(&self) -> &'static str {
        "infinite_bench"
    }

    fn max_new_tokens(&self) -> usize {
        match (self.subtask, self.math_calc_tokens) {
            (Subtask::MathCalc, Some(tokens)) => tokens,
            _ => self.prompts.max_new_tokens(self.subtask),
        }
    }

    fn metrics(&self) -> &'static [Metric] {
        &METRICS
    }

    fn len(&self) -> Option<usize> {
        Some(self.lines.count())
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::json!({"prompts": self.prompts.name()})
    }

    fn data_sha256(&self) -> Option<&str> {
        Some(self.lines.sha256())
    }

    fn example(&self, request: &Request<'_>) -> Result<Example> {
        let record = row(self.name(), &self.lines, request)?;
        let context = record
            .text("context")
            .or_else(|error| record.text("content").map_err(|_| error))?;
        let options = record.optional_texts("options")?;
        let asked = Asked {
            answers: self.answers(&record, &options)?,
            frame: self.frame(&record, &options)?,
            context,
            options,
        };
        asked.example(&record, request, self.max_new_tokens())
    }

    fn score(&self, example: &Example, answer: &str) -> Vec<f64> {
        let scores = score(self.subtask, answer, &example.answers, &example.options);
        vec![scores.official, scores.token_select]
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "0, 1 and simple fractions are exact")]
mod tests {
    use super::*;
    use crate::eval::WhitespaceTokens;

    fn task(subtask: Subtask, prompts: PromptSet, lines: &str) -> (tempfile::TempDir, InfiniteBench) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(format!("{subtask}.jsonl")), lines).unwrap();
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

    fn prompt(subtask: Subtask, prompts: PromptSet, line: &str) -> String {
        task(subtask, prompts, line)
            .1
            .example(&request(0, None))
            .unwrap()
            .prompt
    }

    #[test]
    fn every_field_finds_its_place() {
        let line = r#"{"id": 3, "context": "{A}", "input": "Key: \"k-1\"\nThe value is: ", "answer": "v"}"#;
        assert_eq!(
            prompt(Subtask::KvRetrieval, PromptSet::TokenSelect, line),
            "Extract the value corresponding to the specified key \"k-1\" in the JSON object below.\n{A}\nKey: \"k-1\"\nThe \
             value is: "
        );
        let line = r#"{"content": "1 2", "input": "The largest number of the list is: ", "answer": [2]}"#;
        for (set, expected) in [
            (
                PromptSet::InfLlm,
                "What is the largest number in the following list?\n\n1 2\n\nThe largest",
            ),
            (
                PromptSet::TokenSelect,
                "What is the largest number in the following list?\n1 2\nThe largest",
            ),
            (
                PromptSet::OfficialBase,
                "What is the largest number in the following list?\n\n1 2\n\nThe largest",
            ),
        ] {
            assert!(prompt(Subtask::MathFind, set, line).starts_with(expected), "{set}");
        }
        let line = r#"{"context": "def", "input": "What is func_7(-3) + 1?", "answer": -4}"#;
        let made = prompt(Subtask::CodeRun, PromptSet::OfficialBase, line);
        assert!(made.starts_with("There is a function called func_7 in") && made.contains("value of func_7(-3). The"));
        let line = r#"{"context": "a book", "answer": ["short"]}"#;
        assert!(prompt(Subtask::LongbookSumEng, PromptSet::OfficialBase, line).ends_with("a book\n\nSummary:"));
    }

    #[test]
    fn a_choice_gets_its_letter_and_is_scored_by_it() {
        let line =
            r#"{"context": "c", "input": "who?", "answer": ["two"], "options": ["one", "two", "three", "four"]}"#;
        let (_folder, task) = task(Subtask::LongbookChoiceEng, PromptSet::TokenSelect, line);
        let example = task.example(&request(0, None)).unwrap();
        assert_eq!(example.answers, ["two", "B"]);
        assert!(example.prompt.ends_with("A. one\nB. two\nC. three\nD. four"));
        assert_eq!(task.score(&example, "B"), [1.0, 1.0]);
        assert_eq!(task.score(&example, "C"), [0.0, 0.0]);
        assert_eq!((task.len(), task.metrics().len()), (Some(1), 2));
        assert_eq!(task.data_sha256().map(str::len), Some(64));
    }

    #[test]
    fn the_context_is_cut_and_the_question_is_not() {
        let context = "word ".repeat(500);
        let line = format!(r#"{{"context": "{context}", "input": "What is the pass key?", "answer": "1"}}"#);
        let (_folder, task) = task(Subtask::Passkey, PromptSet::OfficialChat, &line);
        let cut = task.example(&request(0, Some(100))).unwrap().prompt;
        assert_eq!(cut.split_whitespace().count(), 100 - task.max_new_tokens());
        assert!(cut.starts_with("There is an important") && cut.ends_with("What is the pass key?"));
        let error = task.example(&request(0, Some(20))).unwrap_err();
        assert!(error.message().contains("20 tokens leaves no room"), "{error}");
    }

    #[test]
    fn faults_of_the_data_name_file_line_and_key() {
        let cases = [
            (
                Subtask::Passkey,
                r#"{"input": "i", "answer": "1"}"#,
                "`context` is missing",
            ),
            (
                Subtask::Passkey,
                r#"{"context": "c", "answer": "1"}"#,
                "`input` is missing",
            ),
            (
                Subtask::Passkey,
                r#"{"context": "c", "input": 3, "answer": "1"}"#,
                "`input` is a number",
            ),
            (
                Subtask::Passkey,
                r#"{"context": "c", "input": "i", "answer": true}"#,
                "`answer` holds a boolean",
            ),
            (
                Subtask::Passkey,
                r#"{"context": "c", "input": "i", "answer": []}"#,
                "`answer` is empty",
            ),
            (Subtask::Passkey, r#"{"context": "c", "input": "i"#, "not JSON"),
            (
                Subtask::CodeDebug,
                r#"{"context": "c", "input": "i", "answer": "x", "options": ["a", "b", "c", "d"]}"#,
                "`answer` is none of `options`",
            ),
            (
                Subtask::CodeDebug,
                r#"{"context": "c", "input": "i", "answer": "a", "options": ["a"]}"#,
                "`options` has 1 entries",
            ),
            (
                Subtask::KvRetrieval,
                r#"{"context": "c", "input": "no key", "answer": "a"}"#,
                "`input` does not begin with",
            ),
            (
                Subtask::MathFind,
                r#"{"context": "c", "input": "which?", "answer": 1}"#,
                "`input` does not say which number",
            ),
            (
                Subtask::CodeRun,
                r#"{"context": "c", "input": "f(1)", "answer": 1}"#,
                "`input` calls no function",
            ),
        ];
        for (subtask, line, expected) in cases {
            let (_folder, task) = task(subtask, PromptSet::TokenSelect, line);
            let error = task.example(&request(0, None)).unwrap_err();
            let message = error.message();
            assert!(
                message.contains(&format!("{subtask}.jsonl` line 1: {expected}")),
                "{message}"
            );
        }
        let (_folder, task) = task(Subtask::Passkey, PromptSet::TokenSelect, "{}");
        let error = task.example(&request(1, None)).unwrap_err();
        assert!(error.message().contains("no example 1"), "{error}");
        let depth = Request {
            depth: Some(0.5),
            ..request(0, None)
        };
        assert!(task.example(&depth).unwrap_err().message().contains("needles"));
    }
}
