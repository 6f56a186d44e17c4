//! Words, numbers and identifiers that needles and lists are made of.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rand::Rng;
use rand::seq::IndexedRandom;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, io_error};

const NOUNS: &str = include_str!("../../../datasets/words/nouns.txt");
const ADJECTIVES: &str = include_str!("../../../datasets/words/adjectives.txt");
const VERBS: &str = include_str!("../../../datasets/words/verbs.txt");

/// Files with one word per line; an absent one leaves the embedded list in place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WordFiles {
    /// Nouns: the second half of a needle's key, and list words.
    pub nouns: Option<PathBuf>,
    /// Adjectives: the first half of a needle's key, and list words.
    pub adjectives: Option<PathBuf>,
    /// Verbs: list words.
    pub verbs: Option<PathBuf>,
}

/// The word lists that random words are drawn from.
///
/// RULER uses those of `wonderwords`; the embedded ones are shorter and ours. To repeat RULER's vocabulary, load its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordLists {
    nouns: Vec<String>,
    adjectives: Vec<String>,
    verbs: Vec<String>,
}

impl WordLists {
    /// The lists in `datasets/words`.
    pub fn embedded() -> Self {
        Self {
            nouns: words_of(NOUNS),
            adjectives: words_of(ADJECTIVES),
            verbs: words_of(VERBS),
        }
    }

    /// The embedded lists with those of `files` in their place; an error names a file that is unreadable or too short.
    pub fn load(files: &WordFiles) -> Result<Self> {
        let mut lists = Self::embedded();
        for (path, list) in [
            (&files.nouns, &mut lists.nouns),
            (&files.adjectives, &mut lists.adjectives),
            (&files.verbs, &mut lists.verbs),
        ] {
            if let Some(path) = path {
                *list = read_words(path)?;
            }
        }
        Ok(lists)
    }

    /// Nouns, each once, in order.
    pub fn nouns(&self) -> &[String] {
        &self.nouns
    }

    /// Adjectives, each once, in order.
    pub fn adjectives(&self) -> &[String] {
        &self.adjectives
    }

    /// Verbs, each once, in order.
    pub fn verbs(&self) -> &[String] {
        &self.verbs
    }

    /// Every word of the three lists once, in order.
    pub fn all(&self) -> Vec<&str> {
        let all: BTreeSet<&str> = [&self.nouns, &self.adjectives, &self.verbs]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        all.into_iter().collect()
    }

    /// Names the lists' content, for the settings of a task.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for list in [&self.nouns, &self.adjectives, &self.verbs] {
            hash.update(list.join("\n"));
            hash.update([0]);
        }
        format!("{:x}", hash.finalize())
    }

    /// Two words such as `brisk-lantern`.
    pub(crate) fn pair(&self, rng: &mut impl Rng) -> String {
        format!("{}-{}", pick(&self.adjectives, rng), pick(&self.nouns, rng))
    }
}

/// One of `items`, which must not be empty.
pub(super) fn pick<'a>(items: &'a [String], rng: &mut impl Rng) -> &'a str {
    items.choose(rng).map_or("", String::as_str)
}

fn words_of(text: &str) -> Vec<String> {
    let words: BTreeSet<&str> = text.lines().map(str::trim).filter(|w| !w.is_empty()).collect();
    words.into_iter().map(str::to_owned).collect()
}

fn read_words(path: &Path) -> Result<Vec<String>> {
    const FEWEST: usize = 50;
    let text = std::fs::read_to_string(path).map_err(|e| io_error("read", path, &e))?;
    let words = words_of(&text);
    if words.len() < FEWEST {
        return Err(Error::user(format!(
            "`{}` has {} different words, at least {FEWEST} are needed",
            path.display(),
            words.len()
        ))
        .help("give a text file with one word per line"));
    }
    Ok(words)
}

/// Seven digits, the first not 0.
pub(crate) fn number(rng: &mut impl Rng) -> String {
    rng.random_range(1_000_000..10_000_000_u32).to_string()
}

/// A version 4 UUID (RFC 9562, section 5.4).
pub(crate) fn uuid(rng: &mut impl Rng) -> String {
    let bits = rng.random::<u128>();
    let bits = bits & !(0xf << 76) | (0x4 << 76);
    let bits = bits & !(0x3 << 62) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// `length` letters of the 26 from `first` (`a` or `A`) on.
pub(crate) fn letters(first: u8, length: usize, rng: &mut impl Rng) -> String {
    (0..length)
        .map(|_| char::from(first + rng.random_range(0..26_u8)))
        .collect()
}

/// Draws until the value is new, remembers it and returns it; an error where new ones have become too rare.
pub(crate) fn fresh(seen: &mut BTreeSet<String>, mut draw: impl FnMut() -> String) -> Result<String> {
    const MOST_DRAWS: usize = 1000;
    for _ in 0..MOST_DRAWS {
        let value = draw();
        if seen.insert(value.clone()) {
            return Ok(value);
        }
    }
    Err(Error::user(format!(
        "there are no more different values to draw: {} are in use",
        seen.len()
    ))
    .help("give longer word lists, ask for a shorter length, or lower the number of needles or variables"))
}

/// A word that no list has: consonants and vowels in turn, four syllables.
pub(super) fn coined_word(rng: &mut impl Rng) -> String {
    const CONSONANTS: &[u8] = b"bdfgklmnprstvz";
    const VOWELS: &[u8] = b"aeiou";
    (0..8)
        .map(|i| {
            let letters = if i % 2 == 0 { CONSONANTS } else { VOWELS };
            char::from(letters[rng.random_range(0..letters.len())])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream_rng;

    #[test]
    fn embedded_lists_are_long_lower_case_and_distinct() {
        let lists = WordLists::embedded();
        for (list, text, fewest) in [
            (lists.nouns(), NOUNS, 600),
            (lists.adjectives(), ADJECTIVES, 400),
            (lists.verbs(), VERBS, 300),
        ] {
            assert!(list.len() >= fewest, "{} words", list.len());
            assert_eq!(list.len(), text.lines().count(), "a word is there twice");
            assert!(list.iter().all(|w| w.bytes().all(|b| b.is_ascii_lowercase())));
        }
    }

    #[test]
    fn a_uuid_has_its_version_and_variant() {
        let mut rng = stream_rng(1, "uuid");
        for _ in 0..100 {
            let id = uuid(&mut rng);
            let groups: Vec<usize> = id.split('-').map(str::len).collect();
            assert_eq!(groups, [8, 4, 4, 4, 12]);
            assert_eq!(&id[14..15], "4");
            assert!("89ab".contains(&id[19..20]), "{id}");
        }
    }

    #[test]
    fn numbers_have_seven_digits() {
        let mut rng = stream_rng(1, "number");
        assert!((0..1000).all(|_| number(&mut rng).len() == 7));
    }

    #[test]
    fn a_short_word_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nouns.txt");
        std::fs::write(&path, "cat\ndog\ncat\n").unwrap();
        let files = WordFiles {
            nouns: Some(path),
            ..WordFiles::default()
        };
        let message = WordLists::load(&files).unwrap_err().to_string();
        assert!(message.contains("nouns.txt` has 2 different words"), "{message}");
    }
}
