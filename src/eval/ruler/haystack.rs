//! What needles are hidden in: a repeated sentence, running English text, or other needles.

use std::path::{Path, PathBuf};

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::words::{WordLists, pick};
use crate::error::{Error, Result, io_error};

/// The five sentences of RULER's noise.
pub(crate) const NOISE: [&str; 5] = [
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
];

/// Lines of noise that hold the first `sentences` of the endlessly repeated five.
pub(crate) fn noise_lines(sentences: usize) -> Vec<String> {
    let all: Vec<&str> = NOISE.iter().copied().cycle().take(sentences).collect();
    all.chunks(NOISE.len()).map(|line| line.join(" ")).collect()
}

/// Running text for essay haystacks.
///
/// RULER takes Paul Graham's essays, which are not free to pass on. Without a file, sentences are made from the embedded
/// word lists: grammatical, without digits, and different in every example.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Essay {
    /// Made sentence by sentence.
    #[default]
    Generated,
    /// The words of a file; the text begins anew where it ends.
    File {
        /// Where it was read from.
        path: PathBuf,
        /// Its words.
        words: Vec<String>,
        /// SHA-256 of the file.
        sha256: String,
    },
}

impl Essay {
    /// Reads a plain text file.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| io_error("read", path, &e))?;
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            Error::user(format!("`{}` is not UTF-8: {e}", path.display())).help("convert the essay file to UTF-8")
        })?;
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            return Err(Error::user(format!("`{}` has no words", path.display()))
                .help("give a plain text file, such as some essays one after another"));
        }
        Ok(Self::File {
            path: path.to_owned(),
            sha256: format!("{:x}", Sha256::digest(&bytes)),
            words,
        })
    }

    /// What the settings of a task say of it.
    pub(super) fn describe(&self) -> serde_json::Value {
        match self {
            Self::Generated => "generated".into(),
            Self::File { sha256, .. } => serde_json::json!({ "sha256": sha256 }),
        }
    }

    /// The endless text of one example.
    pub(crate) fn text(&self, rng: ChaCha8Rng) -> EssayText<'_> {
        EssayText {
            essay: self,
            rng,
            lists: WordLists::embedded(),
            words: Vec::new(),
        }
    }
}

/// The text of one example as far as it was needed.
pub(crate) struct EssayText<'a> {
    essay: &'a Essay,
    rng: ChaCha8Rng,
    lists: WordLists,
    words: Vec<String>,
}

impl EssayText<'_> {
    /// The sentences of the first `count` words; the last may be cut.
    pub fn sentences(&mut self, count: usize) -> Vec<String> {
        while self.words.len() < count {
            match self.essay {
                Essay::Generated => {
                    let sentence = sentence(&self.lists, &mut self.rng);
                    self.words.extend(sentence.split(' ').map(str::to_owned));
                }
                Essay::File { words, .. } => self.words.extend(words.iter().cloned()),
            }
        }
        split_sentences(&self.words[..count])
    }
}

/// Groups words into sentences.
///
/// RULER uses the trained splitter of NLTK; here a sentence ends at a word with `.`, `?` or `!` before its closing quotes,
/// unless it is a common abbreviation or an initial, or the next word begins in lower case.
fn split_sentences(words: &[String]) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for end in 1..=words.len() {
        if end == words.len() || (ends_sentence(&words[end - 1]) && !begins_lower(&words[end])) {
            sentences.push(words[start..end].join(" "));
            start = end;
        }
    }
    sentences
}

fn ends_sentence(word: &str) -> bool {
    const ABBREVIATIONS: [&str; 12] = [
        "mr", "mrs", "ms", "dr", "st", "vs", "etc", "e.g", "i.e", "prof", "jr", "no",
    ];
    let bare = word.trim_end_matches(['"', '\'', '”', '’', ')', ']']);
    if bare.ends_with(['?', '!']) {
        return true;
    }
    bare.strip_suffix('.').is_some_and(|stem| {
        let stem = stem.trim_start_matches(['"', '\'', '“', '‘', '(', '[']);
        let initial = stem.chars().count() == 1 && stem.chars().all(char::is_uppercase) && stem != "I";
        !initial && !ABBREVIATIONS.contains(&stem.to_lowercase().as_str())
    })
}

fn begins_lower(word: &str) -> bool {
    word.trim_start_matches(['"', '\'', '“', '‘', '(', '['])
        .starts_with(char::is_lowercase)
}

/// One English sentence. Verbs stand after a modal or `to`, so that their base form is right.
pub(crate) fn sentence(lists: &WordLists, rng: &mut ChaCha8Rng) -> String {
    const MODALS: [&str; 8] = [
        "could", "would", "should", "might", "must", "did not", "had to", "used to",
    ];
    const WHEN: [&str; 8] = [
        "Every morning",
        "After the rain",
        "In those days",
        "Long ago",
        "Before the journey",
        "Near the end of the year",
        "As far as anyone knew",
        "On most evenings",
    ];
    const LINKS: [&str; 6] = ["because", "although", "while", "so that", "even if", "until"];
    let noun = |rng: &mut ChaCha8Rng| pick(lists.nouns(), rng).to_owned();
    let thing = |rng: &mut ChaCha8Rng| {
        if rng.random_bool(0.5) {
            format!("the {} {}", pick(lists.adjectives(), rng), noun(rng))
        } else {
            format!("the {}", noun(rng))
        }
    };
    let does = |rng: &mut ChaCha8Rng| {
        format!(
            "{} {}",
            MODALS.choose(rng).unwrap_or(&"could"),
            pick(lists.verbs(), rng)
        )
    };
    let text = match rng.random_range(0..8) {
        0 => format!("{} {} with {}.", thing(rng), does(rng), thing(rng)),
        1 => format!(
            "{}, {} {} near {}.",
            WHEN.choose(rng).unwrap_or(&"Long ago"),
            thing(rng),
            does(rng),
            thing(rng)
        ),
        2 => format!(
            "{} {} {} {} {} alone.",
            thing(rng),
            does(rng),
            LINKS.choose(rng).unwrap_or(&"while"),
            thing(rng),
            does(rng)
        ),
        3 => format!("nobody asked why {} {} before {}.", thing(rng), does(rng), thing(rng)),
        4 => format!(
            "it was {} who wanted to {} for {}.",
            thing(rng),
            pick(lists.verbs(), rng),
            thing(rng)
        ),
        5 => format!(
            "what made {} so {} was {} of {}.",
            thing(rng),
            pick(lists.adjectives(), rng),
            thing(rng),
            thing(rng)
        ),
        6 => format!(
            "people said that {} {}, and that {} {}.",
            thing(rng),
            does(rng),
            thing(rng),
            does(rng)
        ),
        _ => format!(
            "was {} as {} as {}?",
            thing(rng),
            pick(lists.adjectives(), rng),
            thing(rng)
        ),
    };
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream_rng;

    fn split(text: &str) -> Vec<String> {
        split_sentences(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn sentences_end_where_a_reader_would_end_them() {
        assert_eq!(
            split("Mr. Smith met J. Brown. \"Really?\" he asked. So they did. Ye"),
            ["Mr. Smith met J. Brown.", "\"Really?\" he asked.", "So they did.", "Ye"]
        );
        assert_eq!(split("Dr. No said so"), ["Dr. No said so"]);
    }

    #[test]
    fn generated_text_is_endless_prose_without_digits() {
        let essay = Essay::Generated;
        let mut text = essay.text(stream_rng(3, "essay"));
        let long = text.sentences(5000);
        assert_eq!(long.join(" ").split(' ').count(), 5000);
        assert!(long.len() > 300, "{} sentences", long.len());
        assert!(long.iter().all(|s| s.starts_with(char::is_uppercase)));
        assert!(!long.join(" ").contains(|c: char| c.is_ascii_digit() || c == '-'));
        let short = text.sentences(100).join(" ");
        assert!(
            long.join(" ").starts_with(&short),
            "a shorter text is a prefix of a longer one"
        );
    }

    #[test]
    fn a_file_begins_anew_where_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("essay.txt");
        std::fs::write(&path, "One two.\n\nThree  four.").unwrap();
        let essay = Essay::load(&path).unwrap();
        let sentences = essay.text(stream_rng(0, "e")).sentences(7);
        assert_eq!(sentences, ["One two.", "Three four.", "One two.", "Three"]);
    }

    #[test]
    fn noise_ends_within_a_line() {
        assert_eq!(
            noise_lines(7),
            [NOISE.join(" "), "The grass is green. The sky is blue.".to_owned()]
        );
        assert!(noise_lines(0).is_empty());
    }
}
