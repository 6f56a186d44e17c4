//! Plain text or a conversation: the same question in both forms.

use super::Wish;
use super::document::{Document, Weight};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// The special tokens, in the order of their ids: end of text and padding, start and end of a message.
pub const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// How question and answer are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Prompt, then answer.
    Completion,
    /// A user's message and the assistant's, as the chat template writes them.
    Chat,
}

impl Form {
    /// One of both; an evaluation without a form of its own gets the plain one.
    pub(super) fn of(wish: Wish, rng: &mut ChaCha8Rng) -> Self {
        if !wish.single_question && rng.random_ratio(1, 3) {
            Self::Chat
        } else {
            Self::Completion
        }
    }

    pub(super) fn is_chat(self) -> bool {
        self == Self::Chat
    }

    /// Begins the first question.
    pub(super) fn open(self, document: &mut Document) {
        if self.is_chat() {
            document.push("<|im_start|>user\n", Weight::Wording);
        }
    }

    /// Ends a question and begins its answer.
    pub(super) fn answer(self, document: &mut Document) {
        if self.is_chat() {
            document.push("<|im_end|>\n<|im_start|>assistant\n", Weight::Wording);
        }
    }

    /// Ends an answer and begins another question.
    pub(super) fn next_question(self, document: &mut Document) {
        if self.is_chat() {
            self.close(document);
            document.push("\n<|im_start|>user\n", Weight::Wording);
        } else {
            document.push("\n", Weight::Wording);
        }
    }

    /// Ends the last answer.
    pub(super) fn close(self, document: &mut Document) {
        if self.is_chat() {
            document.push("<|im_end|>", Weight::Language);
        }
    }
}
