//! Text that hides needles: filler of a chosen length with items put between its sentences, whole or with holes.

use super::document::{Document, Weight, estimated_tokens};
use super::prose::Prose;
use super::words::LISTS;
use crate::eval::ruler::haystack::{NOISE as SENTENCES, sentence};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::sync::LazyLock;

/// One line of RULER's noise; InfiniteBench repeats the same words.
pub(super) static NOISE: LazyLock<String> = LazyLock::new(|| SENTENCES.join(" "));

/// A sentence or a needle: stretches with their weights.
pub(super) type Item = Vec<(String, Weight)>;

/// What lies between the needles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filler {
    /// [`NOISE`], line by line.
    Noise,
    /// Sentences of prose.
    Essay,
    /// Both by turns.
    Mixed,
}

impl Filler {
    /// One of the three.
    pub(super) fn any(rng: &mut ChaCha8Rng) -> Self {
        match rng.random_range(0..5) {
            0 | 1 => Self::Noise,
            2 | 3 => Self::Essay,
            _ => Self::Mixed,
        }
    }

    /// What RULER puts between the pieces of this filler.
    pub(super) fn joiner(self) -> &'static str {
        if self == Self::Essay { " " } else { "\n" }
    }
}

/// About how many tokens an item takes, with what separates it from the next.
pub(super) fn item_tokens(item: &Item) -> usize {
    item.iter().map(|(text, _)| estimated_tokens(text)).sum::<usize>() + 1
}

/// Filler of about `tokens` tokens.
pub(super) fn filler(kind: Filler, tokens: usize, rng: &mut ChaCha8Rng) -> Vec<Item> {
    let mut prose = Prose::new(rng);
    // Half of the essays are made as `bench ruler` makes its own.
    let ruler = rng.random_bool(0.5);
    let mut items = Vec::new();
    let mut total = 0;
    while total < tokens {
        let noise = match kind {
            Filler::Noise => true,
            Filler::Essay => false,
            Filler::Mixed => rng.random_ratio(1, 4),
        };
        let item = if noise {
            (NOISE.clone(), Weight::Wording)
        } else {
            let text = if ruler {
                sentence(&LISTS, rng)
            } else {
                prose.sentence(rng)
            };
            (text, Weight::Language)
        };
        items.push(vec![item]);
        total += items.last().map_or(0, item_tokens);
    }
    items
}

/// Puts `needles` between `filler` at random places, keeping their order.
pub(super) fn hide(filler: Vec<Item>, needles: Vec<Item>, rng: &mut ChaCha8Rng) -> Vec<Item> {
    let mut places: Vec<usize> = needles.iter().map(|_| rng.random_range(0..=filler.len())).collect();
    places.sort_unstable();
    let mut needles = needles.into_iter().zip(places).peekable();
    let mut items = Vec::new();
    for (index, item) in filler.into_iter().enumerate() {
        while let Some((needle, _)) = needles.next_if(|(_, place)| *place <= index) {
            items.push(needle);
        }
        items.push(item);
    }
    items.extend(needles.map(|(needle, _)| needle));
    items
}

/// Tears holes into a haystack, as a selection of scattered tokens does: sentences lose their head, tail or middle or
/// vanish, and needles may lose the first words of their fixed wording, never a key or a value.
pub(super) fn tear(items: &mut Vec<Item>, rng: &mut ChaCha8Rng) {
    let lost = rng.random_range(0.2..0.9);
    items.retain_mut(|item| {
        if !rng.random_bool(lost) {
            return true;
        }
        let needle = item.len() > 1;
        let (text, weight) = &mut item[0];
        *weight = (*weight).min(Weight::Wording);
        if needle {
            // The last word before the key or the value stays, as it says what follows.
            let starts: Vec<usize> = text.match_indices(' ').map(|(at, _)| at + 1).collect();
            if starts.len() > 1 {
                let cut = starts[rng.random_range(0..starts.len() - 1)];
                text.replace_range(..cut, "");
            }
            return true;
        }
        let (a, b) = (rng.random_range(0..=text.len()), rng.random_range(0..=text.len()));
        let (from, to) = (a.min(b), a.max(b));
        match rng.random_range(0..4) {
            0 => text.replace_range(..from, ""),
            1 => text.truncate(to),
            2 => text.replace_range(from..to, ""),
            _ => text.clear(),
        }
        !text.trim().is_empty()
    });
}

/// Writes items with `joiner` between them.
pub(super) fn write(items: &[Item], joiner: &str, document: &mut Document) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            document.push(joiner, Weight::Wording);
        }
        document.push_all(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::demo_corpus::Kind;
    use crate::random::stream_rng;

    #[test]
    fn needles_keep_their_order_and_holes_keep_keys_and_values() {
        let mut rng = stream_rng(1, "test");
        for _ in 0..200 {
            let needles = (0..3)
                .map(|n| {
                    vec![
                        ("The code of".to_owned(), Weight::Wording),
                        (format!(" key{n}"), Weight::Unpredictable),
                        (" is value.".to_owned(), Weight::Wording),
                    ]
                })
                .collect();
            let mut items = hide(filler(Filler::Mixed, 200, &mut rng), needles, &mut rng);
            tear(&mut items, &mut rng);
            let mut document = Document::new(Kind::Needle);
            write(&items, "\n", &mut document);
            let at: Vec<_> = (0..3)
                .map(|n| document.text().find(&format!("key{n} is value.")))
                .collect();
            assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{}", document.text());
        }
    }

    #[test]
    fn filler_is_about_as_long_as_asked() {
        let mut rng = stream_rng(1, "test");
        for kind in [Filler::Noise, Filler::Essay, Filler::Mixed] {
            let mut document = Document::new(Kind::Needle);
            write(&filler(kind, 500, &mut rng), " ", &mut document);
            let tokens = estimated_tokens(document.text());
            assert!((480..560).contains(&tokens), "{kind:?}: {tokens}");
        }
    }
}
