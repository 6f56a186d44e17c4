//! Stories and small essays from sentence patterns: simple English without end.

use super::words::{LEXICON, word};
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
    fn sentences_have_all_sections() {
        let mut names: Vec<_> = SENTENCES.keys().copied().collect();
        names.sort_unstable();
        assert_eq!(names, ["closing", "essay", "fact", "middle", "opening"]);
    }
}
