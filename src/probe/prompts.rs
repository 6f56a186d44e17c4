//! The text around items. A list is `{instruction}`, a blank line, `Answer:`, then `1. "first"` and so on, the next quote
//! open.

use super::completion::StopRule;
use crate::error::{Error, Result};
use crate::model::generate::Finish;
use crate::model::prompt::PromptEncoder;

/// How items are set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Numbered and quoted, as in the paper's released code.
    #[default]
    List,
    /// Sentences, each a paragraph of its own.
    Paragraphs,
}

impl Form {
    /// Where an item ends.
    pub fn rule(self) -> StopRule {
        StopRule {
            within_token: match self {
                Self::List => &['"'],
                Self::Paragraphs => &['.', '?', '!'],
            },
            end_of_text: true,
        }
    }

    /// The item of a completion; `None` if it never came to its end.
    pub fn item(self, completion: &str, finish: Finish) -> Option<&str> {
        match self {
            Self::List => quoted(completion),
            Self::Paragraphs => (finish != Finish::Length).then_some(completion.trim()),
        }
    }
}

/// Writes list prompts for one model.
#[derive(Debug, Clone, Copy)]
pub struct ListPrompts<'a> {
    /// How items are set.
    pub form: Form,
    /// Through its chat template, if it has one, else as plain text.
    pub encoder: PromptEncoder<'a>,
    /// Tokens that a prompt may have.
    pub most_tokens: usize,
}

/// A prompt with a list, ready to be completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPrompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Items at the start of the list that had to be left out.
    pub dropped: usize,
}

impl ListPrompts<'_> {
    /// The prompt with `items` listed. Where they are too many, the earliest are left out and the rest numbered from 1; an
    /// instruction that is too long by itself is refused.
    pub fn with_list(&self, instruction: &str, items: &[String]) -> Result<ListPrompt> {
        let mut dropped = 0;
        loop {
            let ids = self.encode(instruction, &items[dropped..])?;
            if ids.len() <= self.most_tokens {
                return Ok(ListPrompt { ids, dropped });
            }
            if dropped == items.len() {
                return Err(too_long(instruction, ids.len(), self.most_tokens));
            }
            // At least one; then as many as the surplus is likely to need.
            let surplus = ids.len() - self.most_tokens;
            let per_item = (ids.len() / (items.len() - dropped + 1)).max(1);
            dropped = (dropped + surplus.div_ceil(per_item).max(1)).min(items.len());
        }
    }

    fn encode(&self, instruction: &str, items: &[String]) -> Result<Vec<u32>> {
        let answer: String = match self.form {
            Form::List => {
                let listed = (1..).zip(items).map(|(number, item)| format!("{number}. \"{item}\"\n"));
                let next = format!("{}. \"", items.len() + 1);
                std::iter::once("Answer:\n".to_owned())
                    .chain(listed)
                    .chain([next])
                    .collect()
            }
            Form::Paragraphs => items.iter().flat_map(|item| [item.as_str(), "\n\n"]).collect(),
        };
        let encoded = match self.encoder.template {
            Some(_) => self.encoder.question(instruction, &answer, true)?,
            None => self.encoder.plain(&format!("{instruction}\n\n{answer}"))?,
        };
        Ok(encoded.ids)
    }

    /// The first token of `item` where it follows `prompt`, the prompt of `instruction` without a list; `None` where the
    /// tokenizer joins it to the quote before it, so that no first token stands for it.
    pub fn first_token(&self, instruction: &str, prompt: &[u32], item: &str) -> Result<Option<u32>> {
        let text = format!("Answer:\n1. \"{item}");
        let encoded = match self.encoder.template {
            Some(_) => self.encoder.question(instruction, &text, true)?,
            None => self.encoder.plain(&format!("{instruction}\n\n{text}"))?,
        };
        let rest = encoded.ids.strip_prefix(prompt);
        Ok(rest.and_then(|rest| rest.first()).copied())
    }
}

/// The error of a prompt of `tokens` where `most` have room.
pub(super) fn too_long(asked: &str, tokens: usize, most: usize) -> Error {
    let start: String = asked.chars().take(60).collect();
    Error::user(format!(
        "the prompt of `{start}...` has {tokens} tokens, but {most} have room beside an answer"
    ))
    .help("pass a larger `--max-context`, allow answers fewer tokens, or ask in fewer words")
}

/// What stands before the first quote of a completion; `None` if the quote is never closed.
pub fn quoted(completion: &str) -> Option<&str> {
    completion.split_once('"').map(|(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_item_is_none() {
        assert_eq!(Form::List.item("a b", Finish::Length), None);
        assert_eq!(
            Form::Paragraphs.item(" It rained.", Finish::StopString),
            Some("It rained.")
        );
        assert_eq!(Form::Paragraphs.item("It rained", Finish::Length), None);
    }

    #[test]
    fn an_item_ends_at_the_first_quote() {
        assert_eq!(quoted("France\"\n2. \"Spain"), Some("France"));
        assert_eq!(quoted("\""), Some(""));
        assert_eq!(quoted("France"), None);
    }
}
