//! What a task is.

use crate::error::Result;

/// Counts tokens; a task's lengths are in the tokens of the model that will read it.
pub trait CountTokens: Sync {
    /// Tokens of `text`, without special tokens.
    fn count(&self, text: &str) -> Result<usize>;
}

/// Counts whitespace-separated words; for tests and for exports without a model.
#[derive(Debug, Clone, Copy, Default)]
pub struct WhitespaceTokens;

impl CountTokens for WhitespaceTokens {
    fn count(&self, text: &str) -> Result<usize> {
        Ok(text.split_whitespace().count())
    }
}

/// Which example to make.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Which of the task's examples, from 0. A loaded task has [`Task::len`] of them.
    pub index: usize,
    /// Tokens that prompt, answer prefix and [`Task::max_new_tokens`] may take together; `None` for a loaded example as
    /// it is.
    pub length: Option<usize>,
    /// Where the needle should lie, 0 (start) to 1 (end); `None` leaves it to the seed.
    pub depth: Option<f64>,
    /// Seed of the whole run; the stream is named after task, length and index.
    pub seed: u64,
    /// Counts in the model's tokens.
    pub tokens: &'a dyn CountTokens,
}

/// One question with everything that is needed to ask and to score it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Example {
    /// Name within task and length, such as `0007`; stable for ever.
    pub id: String,
    /// What the model reads (the user message, where a chat template is used).
    pub prompt: String,
    /// How the answer begins: appended to the prompt, or, with a chat template, to the opened answer. May be empty.
    pub answer_prefix: String,
    /// Accepted answers, or all parts of the answer; the metric says which.
    pub answers: Vec<String>,
    /// Labels of a multiple-choice or classification question; empty elsewhere.
    pub options: Vec<String>,
    /// Where the needle lies, 0 to 1; `None` where there is no single place.
    pub depth: Option<f64>,
}

/// A score by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Metric {
    /// Such as `string_match_all` or `official`.
    pub name: &'static str,
    /// Where the definition comes from, for the report.
    pub source: &'static str,
}

/// A source of examples and the judge of their answers.
pub trait Task: Send + Sync {
    /// Name in reports and on the command line, such as `niah_single_1`.
    fn name(&self) -> &str;

    /// The benchmark it belongs to, such as `ruler`.
    fn suite(&self) -> &'static str;

    /// Tokens that an answer may take.
    fn max_new_tokens(&self) -> usize;

    /// What [`Task::score`] returns, in that order; the first is the one that tables show.
    fn metrics(&self) -> &'static [Metric];

    /// Number of examples of a loaded task; `None` for a generated one, which never ends.
    fn len(&self) -> Option<usize> {
        None
    }

    /// True for a loaded task without examples.
    fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Whether a chat model reads the prompt through its chat template. False for few-shot prompts and for code to be
    /// continued, which `LongBench` gives to every model as they are.
    fn uses_chat_template(&self) -> bool {
        true
    }

    /// Everything that changes examples or scores besides seed and length; part of the configuration hash.
    fn settings(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// SHA-256 of the data files behind a loaded task.
    fn data_sha256(&self) -> Option<&str> {
        None
    }

    /// Makes or loads one example.
    fn example(&self, request: &Request<'_>) -> Result<Example>;

    /// Scores an answer, each between 0 and 1, one per metric.
    fn score(&self, example: &Example, answer: &str) -> Vec<f64>;
}
