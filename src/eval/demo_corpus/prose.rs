//! Stories and small essays from sentence patterns: simple English without end.

use super::chat::Form;
use super::document::{Document, Weight, estimated_tokens};
use super::words::{LEXICON, word};
use super::{Kind, Wish};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::sync::LazyLock;

static SENTENCES: LazyLock<HashMap<&'static str, Vec<&'static str>>> = LazyLock::new(|| {
    let mut sections: HashMap<&str, Vec<&str>> = HashMap::new();
    let mut section = "";
    for line in include_str!("../../../datasets/prose/sentences.txt").lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else if !line.is_empty() && !line.starts_with('#') {
            sections.entry(section).or_default().push(line);
        }
    }
    sections
});

/// A source of sentences about the same people and things.
pub(super) struct Prose {
    bound: Vec<(&'static str, &'static str)>,
    style: Style,
    told: usize,
    /// Sentences until the story ends.
    length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Story,
    Essay,
    Facts,
}

impl Prose {
    /// A new story, essay or row of facts.
    pub(super) fn new(rng: &mut ChaCha8Rng) -> Self {
        let girl = rng.random_bool(0.5);
        let (name, pronouns) = if girl {
            ("girl", [("he", "she"), ("He", "She"), ("his", "her"), ("him", "her")])
        } else {
            ("boy", [("he", "he"), ("He", "He"), ("his", "his"), ("him", "him")])
        };
        let mut bound = vec![
            ("hero", word(name, rng)),
            ("friend", word(if girl { "boy" } else { "girl" }, rng)),
            ("pet", word("animal", rng)),
            ("home", word("place", rng)),
            ("goal", word("place", rng)),
            ("treasure", word("thing", rng)),
        ];
        bound.extend(pronouns);
        let style = match rng.random_range(0..10) {
            0..5 => Style::Story,
            5..8 => Style::Essay,
            _ => Style::Facts,
        };
        Self {
            bound,
            style,
            told: 0,
            length: rng.random_range(6..30),
        }
    }

    /// The next sentence; a story that has ended is followed by a new one.
    pub(super) fn sentence(&mut self, rng: &mut ChaCha8Rng) -> String {
        if self.told == self.length {
            *self = Self::new(rng);
        }
        self.told += 1;
        let section = match self.style {
            Style::Essay => "essay",
            Style::Facts => "fact",
            Style::Story if self.told == 1 => "opening",
            Style::Story if self.told == self.length => "closing",
            Style::Story => "middle",
        };
        let pattern = SENTENCES[section].choose(rng).expect("no section is empty");
        self.fill(pattern, rng)
    }

    /// Whether a paragraph may end here.
    pub(super) fn pauses(&self, rng: &mut ChaCha8Rng) -> bool {
        self.told == self.length || rng.random_ratio(1, 7)
    }

    fn fill(&self, pattern: &str, rng: &mut ChaCha8Rng) -> String {
        let mut text = String::with_capacity(pattern.len() + 40);
        let mut rest = pattern;
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let (slot, after) = after.split_once('}').unwrap_or((after, ""));
            let (article, role) = slot.strip_prefix("a:").map_or((false, slot), |role| (true, role));
            let bound = self.bound.iter().find(|(name, _)| *name == role);
            let word = bound.map_or_else(|| word(role, rng), |(_, word)| word);
            if article {
                text.push_str(if word.starts_with(['a', 'e', 'i', 'o', 'A', 'E', 'I', 'O']) {
                    "an "
                } else {
                    "a "
                });
            }
            text.push_str(word);
            rest = after;
        }
        text.push_str(rest);
        // A pattern may begin with a word that is small elsewhere.
        if let Some(first) = text.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        text
    }
}

/// Paragraphs of prose. Now and then a conversation asks for them, or begins the text that the answer goes on with.
pub(super) fn story(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let mut prose = Prose::new(rng);
    let mut document = Document::new(Kind::Prose);
    let mut first = prose.sentence(rng);
    let form = if rng.random_ratio(1, 4) {
        Form::Chat
    } else {
        Form::Completion
    };
    form.open(&mut document);
    if form.is_chat() {
        let spaces: Vec<usize> = first.match_indices(' ').map(|(at, _)| at).collect();
        match spaces.choose(rng) {
            Some(&space) if rng.random_ratio(3, 4) => {
                document.push(&first[..space], Weight::Language);
                first.drain(..=space);
            }
            _ => document.push("Please tell me something.", Weight::Wording),
        }
    }
    form.answer(&mut document);
    let mut sentence = first;
    let mut tokens = 0;
    loop {
        tokens += estimated_tokens(&sentence);
        document.push(&sentence, Weight::Language);
        if tokens >= wish.tokens {
            break;
        }
        document.push(if prose.pauses(rng) { "\n\n" } else { " " }, Weight::Language);
        sentence = prose.sentence(rng);
    }
    form.close(&mut document);
    document
}

/// Every word of the lexicon, for repetitions of words.
pub(super) fn any_word(rng: &mut ChaCha8Rng) -> &'static str {
    static ALL: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
        let mut words: Vec<_> = LEXICON.values().flatten().copied().collect();
        // The map has no order of its own.
        words.sort_unstable();
        words.dedup();
        words
    });
    ALL.choose(rng).expect("the lexicon has words")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream_rng;

    #[test]
    fn every_slot_of_every_sentence_is_filled() {
        let mut rng = stream_rng(0, "test");
        let prose = Prose::new(&mut rng);
        for pattern in SENTENCES.values().flatten() {
            let text = prose.fill(pattern, &mut rng);
            assert!(!text.contains(['{', '}']), "{text}");
            assert!(text.ends_with(['.', '"', '?']), "{text}");
        }
    }

    #[test]
    fn a_conversation_s_answer_goes_on_with_the_text_of_the_question() {
        let wish = Wish {
            tokens: 60,
            single_question: false,
            torn: false,
        };
        let mut continued = 0;
        for index in 0..200 {
            let document = story(wish, &mut stream_rng(index, "test"));
            let Some(chat) = document.text().strip_prefix("<|im_start|>user\n") else {
                continue;
            };
            let (question, answer) = chat
                .split_once("<|im_end|>\n<|im_start|>assistant\n")
                .expect("an answer follows");
            if question != "Please tell me something." {
                continued += 1;
                let text = format!("{question} {answer}");
                let first = text.split_inclusive(['.', '?']).next().unwrap_or_default();
                assert!(first.len() > question.len(), "{question} | {answer}");
            }
        }
        assert!(continued > 10, "{continued}");
    }

    #[test]
    fn sentences_have_all_sections() {
        let mut names: Vec<_> = SENTENCES.keys().copied().collect();
        names.sort_unstable();
        assert_eq!(names, ["closing", "essay", "fact", "middle", "opening"]);
    }
}
