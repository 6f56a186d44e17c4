//! Random material that comes again: without it, copying from the context forms late or never.

use super::document::{Document, Weight, estimated_tokens};
use super::prose::any_word;
use super::{Kind, Wish, words};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// What the material consists of.
#[derive(Debug, Clone, Copy)]
enum Material {
    Words,
    MadeUpWords,
    Digits,
    Hexadecimal,
    Letters,
    Everything,
}

impl Material {
    fn any(rng: &mut ChaCha8Rng) -> Self {
        match rng.random_range(0..10) {
            0..3 => Self::Words,
            3 => Self::MadeUpWords,
            4 | 5 => Self::Digits,
            6 => Self::Hexadecimal,
            7 => Self::Letters,
            _ => Self::Everything,
        }
    }

    fn unit(self, rng: &mut ChaCha8Rng) -> String {
        match self {
            Self::Words => format!(" {}", any_word(rng)),
            Self::MadeUpWords => format!(" {}", words::made_up_word(rng)),
            Self::Digits => format!(" {}", words::number(rng.random_range(1..=9), rng)),
            Self::Hexadecimal => format!(" {}", words::uuid(rng)),
            Self::Letters => {
                let letters = rng.random_range(1..=6);
                let letters: String = (0..letters)
                    .map(|_| char::from(rng.random_range(b'A'..=b'Z')))
                    .collect();
                format!(" {letters}")
            }
            Self::Everything => match rng.random_range(0..7) {
                0 => ",".to_owned(),
                1 => "\n".to_owned(),
                2 => Self::Digits.unit(rng),
                3 => Self::MadeUpWords.unit(rng),
                4 => format!(" {}", words::key(rng)),
                5 => Self::Letters.unit(rng),
                _ => Self::Words.unit(rng),
            },
        }
    }
}

/// A random segment over and over, with a period drawn for this document (a fixed one is learned as a distance and
/// nothing transfers), or a stream in which stretches of what came before return.
pub(super) fn repetition(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    if rng.random_bool(0.6) {
        periodic(wish, rng)
    } else {
        returning(wish, rng)
    }
}

fn periodic(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let mut document = Document::new(Kind::Repetition);
    let material = Material::any(rng);
    let longest = (wish.tokens / 2).max(9) as f64;
    let period = (8.0 * (longest / 8.0).powf(rng.random_range(0.0..1.0))) as usize;
    let mut segment = String::new();
    let mut tokens = 0;
    while tokens < period {
        let unit = material.unit(rng);
        tokens += estimated_tokens(&unit);
        segment.push_str(&unit);
    }
    let passes = (wish.tokens / tokens).max(2);
    for pass in 0..passes {
        document.push(
            &segment,
            if pass == 0 {
                Weight::Unpredictable
            } else {
                Weight::Repeated
            },
        );
    }
    document
}

fn returning(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let mut document = Document::new(Kind::Repetition);
    let material = Material::any(rng);
    let mut units: Vec<String> = Vec::new();
    let mut tokens = 0;
    while tokens < wish.tokens {
        let stretch = rng.random_range(2..=20);
        if units.len() > 8 && rng.random_bool(0.6) {
            let from = rng.random_range(0..units.len() - 4);
            let again = units[from..(from + stretch).min(units.len())].to_vec();
            for (index, unit) in again.into_iter().enumerate() {
                tokens += estimated_tokens(&unit);
                // The first two do not say yet what comes again.
                document.push(
                    &unit,
                    if index < 2 {
                        Weight::Unpredictable
                    } else {
                        Weight::Repeated
                    },
                );
                units.push(unit);
            }
        } else {
            for _ in 0..stretch {
                let unit = material.unit(rng);
                tokens += estimated_tokens(&unit);
                document.push(&unit, Weight::Unpredictable);
                units.push(unit);
            }
        }
    }
    document
}
