//! What tasks that are read from official data files share.

use super::jsonl::{JsonLines, Record};
use super::prompt::Frame;
use super::{Example, Request};
use crate::error::{Error, Result};

/// The row that `request` asks for; a depth is refused, since its needles lie where they lie.
pub(super) fn row<'l>(task: &str, lines: &'l JsonLines, request: &Request<'_>) -> Result<Record<'l>> {
    if request.depth.is_some() {
        let error = Error::user(format!("`{task}` is loaded: its needles lie where they lie"));
        return Err(error.help("leave the depths out"));
    }
    lines.record(request.index)
}

/// What a row holds, made ready to be asked.
pub(super) struct Asked<'r> {
    pub frame: Frame,
    pub context: &'r str,
    pub answers: Vec<String>,
    pub options: Vec<String>,
}

impl Asked<'_> {
    /// The example of `record`, its context cut to what `request` and the answer leave of the length.
    pub fn example(self, record: &Record<'_>, request: &Request<'_>, max_new_tokens: usize) -> Result<Example> {
        let prompt = self
            .frame
            .fitted(self.context, request.length, max_new_tokens, request.tokens)
            .map_err(|error| error.note(record.place()))?;
        Ok(Example {
            id: format!("{:04}", request.index),
            prompt,
            answer_prefix: String::new(),
            answers: self.answers,
            options: self.options,
            depth: None,
        })
    }
}
