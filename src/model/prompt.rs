//! A question as the model reads it: through its chat template, or as plain text.

use super::chat_template::{ChatContext, ChatMessage, ChatTemplate};
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// A prompt in both forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// The text that was encoded, special tokens of the template included.
    pub text: String,
    /// Its ids, with the special tokens that the tokenizer adds to plain text.
    pub ids: Vec<u32>,
}

/// Writes prompts for one model.
#[derive(Debug, Clone, Copy)]
pub struct PromptEncoder<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The chat template; `None` for plain text.
    pub template: Option<&'a ChatTemplate>,
}

impl PromptEncoder<'_> {
    /// Ids of a text as it is.
    pub fn plain(&self, text: &str) -> Result<EncodedPrompt> {
        Ok(EncodedPrompt {
            ids: self.tokenizer.encode(text, true)?,
            text: text.to_owned(),
        })
    }

    /// A conversation through `template`, up to where the model's turn begins, and `answer_prefix` after that.
    pub fn conversation(
        &self,
        template: &ChatTemplate,
        messages: &[ChatMessage],
        answer_prefix: &str,
    ) -> Result<EncodedPrompt> {
        let context = ChatContext {
            bos_token: self.tokenizer.bos_token().map(str::to_owned),
            eos_token: self.tokenizer.eos_token().map(str::to_owned),
            ..ChatContext::default()
        };
        let mut text = template.render(messages, true, &context)?;
        text.push_str(answer_prefix);
        // The template writes special tokens itself.
        Ok(EncodedPrompt {
            ids: self.tokenizer.encode(&text, false)?,
            text,
        })
    }

    /// One question whose answer begins with `answer_prefix`: the user's message where there is a template and it is
    /// `templated`, else text to continue.
    pub fn question(&self, prompt: &str, answer_prefix: &str, templated: bool) -> Result<EncodedPrompt> {
        match self.template.filter(|_| templated) {
            Some(template) => self.conversation(template, &[ChatMessage::new("user", prompt)], answer_prefix),
            None => self.plain(&[prompt, answer_prefix].concat()),
        }
    }

    /// Tokens that template and special tokens add to a question.
    pub fn overhead_tokens(&self, templated: bool) -> Result<usize> {
        // A letter, because templates may refuse or strip an empty message.
        const LETTER: &str = "a";
        let bare = self.tokenizer.encode(LETTER, false)?.len();
        Ok(self.question(LETTER, "", templated)?.ids.len().saturating_sub(bare))
    }
}
