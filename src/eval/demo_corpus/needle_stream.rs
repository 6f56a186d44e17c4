//! Needles and questions mixed through a text, in short wordings of our own.

use super::document::{Document, Weight};
use super::haystack::{Filler, Item, filler, item_tokens, tear, write};
use super::wording::mark;
use super::{Kind, Wish, words};
use crate::eval::ruler::template::fill;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// A wording for hiding and asking: `{k}` the key, `{v}` the value, which ends the answer.
pub(super) const WORDINGS: [(&str, &str); 8] = [
    (
        "One of the special magic numbers for {k} is: {v}.",
        "What is the special magic number for {k} mentioned in the provided text? The special magic number for {k} mentioned in the provided text is {v}",
    ),
    (
        "The code of {k} is {v}.",
        "What is the code of {k}? The code of {k} is {v}",
    ),
    ("Remember that {k} has the number {v}.", "The number of {k} is {v}"),
    ("{k}: {v}.", "{k}: {v}"),
    ("{k} = {v}.", "The value of {k} is {v}"),
    (
        "You should know that {k} goes with {v}.",
        "Question: what goes with {k}? Answer: {v}",
    ),
    ("The secret of {k} is {v}.", "Tell me the secret of {k}. It is {v}"),
    ("Line {k} says {v}.", "What does line {k} say? It says {v}"),
];

#[derive(Debug, Clone, Copy)]
enum Look {
    Words,
    Numbers(u32),
    Uuids,
}

impl Look {
    fn make(self, rng: &mut ChaCha8Rng) -> String {
        match self {
            Self::Words => words::key(rng),
            Self::Numbers(digits) => words::number(digits, rng),
            Self::Uuids => words::uuid(rng),
        }
    }
}

/// Every question lies anywhere after its needle, several times over, in one of several wordings. The densest source of
/// retrieval, and the one without any fixed start or end.
pub(super) fn needle_stream(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let mut document = Document::new(Kind::Needle);
    let (hiding, asking) = WORDINGS[rng.random_range(0..WORDINGS.len())];
    let digits = rng.random_range(4..=8);
    let (keys, values) = match rng.random_range(0..6) {
        0 => (Look::Words, Look::Uuids),
        1 => (Look::Uuids, Look::Numbers(digits)),
        2 => (Look::Numbers(7), Look::Words),
        _ => (Look::Words, Look::Numbers(digits)),
    };
    let joiner = Filler::any(rng).joiner();
    let kind = Filler::any(rng);
    let density = rng.random_range(0.1..0.6);
    let say = |wording: &str, (key, value): &(String, String), last: Weight| -> Item {
        let text = fill(wording, &[("k", key), ("v", value)]);
        mark(&text, &[(key, Weight::Unpredictable), (value, last)])
    };
    let mut known: Vec<(String, String)> = Vec::new();
    let mut used = 0;
    while used < wish.tokens {
        let roll = rng.random_range(0.0..1.0);
        let items: Vec<Item> = if known.is_empty() || roll < density * 0.5 {
            let pair = (keys.make(rng), values.make(rng));
            let item = say(hiding, &pair, Weight::Unpredictable);
            known.push(pair);
            vec![item]
        } else if roll < density {
            let pair = known.choose(rng).expect("one is known");
            vec![say(asking, pair, Weight::Answer)]
        } else {
            let mut items = filler(kind, rng.random_range(1..40), rng);
            if wish.torn {
                tear(&mut items, rng);
            }
            items
        };
        used += items.iter().map(item_tokens).sum::<usize>();
        if !document.text().is_empty() && !items.is_empty() {
            document.push(joiner, Weight::Wording);
        }
        write(&items, joiner, &mut document);
    }
    document
}
