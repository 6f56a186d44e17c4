//! Words, keys, numbers and uuids.

pub(super) use crate::eval::ruler::words::uuid;

use crate::eval::ruler::WordLists;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::sync::LazyLock;

/// The lexicon of the story generator: words by role.
pub(super) static LEXICON: LazyLock<HashMap<&'static str, Vec<&'static str>>> = LazyLock::new(|| {
    include_str!("../../../datasets/prose/lexicon.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(':'))
        .map(|(role, words)| (role, words.split(',').map(str::trim).collect()))
        .collect()
});

/// A word of a role.
pub(super) fn word(role: &str, rng: &mut ChaCha8Rng) -> &'static str {
    LEXICON[role].choose(rng).expect("no role is empty")
}

/// The word lists of RULER's keys and essays.
pub(super) static LISTS: LazyLock<WordLists> = LazyLock::new(WordLists::embedded);

/// A key as RULER makes it: adjective and noun joined by a hyphen. One in three has made-up words, so that looking keys
/// up does not hang on a vocabulary.
pub(super) fn key(rng: &mut ChaCha8Rng) -> String {
    if rng.random_ratio(1, 3) {
        return format!("{}-{}", made_up_word(rng), made_up_word(rng));
    }
    LISTS.pair(rng)
}

/// A word of two to four random syllables.
pub(super) fn made_up_word(rng: &mut ChaCha8Rng) -> String {
    const ONSETS: &[u8] = b"bcdfghjklmnprstvwz";
    const VOWELS: &[u8] = b"aeiou";
    const CODAS: &[u8] = b"lmnrst";
    let mut word = String::new();
    for _ in 0..rng.random_range(2..=3) {
        word.push(letter(ONSETS, rng));
        word.push(letter(VOWELS, rng));
        if rng.random_ratio(1, 3) {
            word.push(letter(CODAS, rng));
        }
    }
    word
}

fn letter(of: &[u8], rng: &mut ChaCha8Rng) -> char {
    char::from(of[rng.random_range(0..of.len())])
}

/// A number of exactly `digits` digits.
pub(super) fn number(digits: u32, rng: &mut ChaCha8Rng) -> String {
    let first = 10_u64.pow(digits - 1);
    rng.random_range(first..first * 10).to_string()
}

/// `count` values that differ from each other.
pub(super) fn distinct(count: usize, mut make: impl FnMut() -> String) -> Vec<String> {
    let mut seen = std::collections::HashSet::with_capacity(count);
    let mut values = Vec::with_capacity(count);
    while values.len() < count {
        let value = make();
        if seen.insert(value.clone()) {
            values.push(value);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream_rng;

    #[test]
    fn numbers_have_their_digits() {
        let mut rng = stream_rng(0, "test");
        for digits in 1..=10 {
            assert_eq!(number(digits, &mut rng).len(), digits as usize);
        }
    }
}
