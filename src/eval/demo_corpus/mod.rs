//! The text that the demo model is trained on, made document by document from a seed.
//!
//! Document `i` depends on the seed and on `i` alone, so that any part can be made anywhere, in any order, on any number
//! of threads. Each document is of one [`Kind`] and says, stretch by stretch, how much predicting it counts
//! ([`Weight`]): random material cannot be predicted and counts nothing, answers count most. A share of the haystacks
//! has holes, as the context that a selection policy leaves has them.
//!
//! [`pack`] turns documents into rows of token ids for training.

mod arithmetic;
mod chat;
mod document;
mod haystack;
mod infinite_bench;
mod lists;
mod needle_stream;
mod niah;
pub mod pack;
mod prose;
mod repetition;
mod variable_tracking;
mod wording;
mod words;

pub use arithmetic::{FINAL_ANSWER, HEADER, INSTRUCTION, Level, word_problem};
pub use chat::SPECIAL_TOKENS;
pub use document::{Document, Weight, estimated_tokens};
pub use lists::{CATEGORIES, Category, normalised};

use crate::error::{Error, Result};
use crate::random::stream_rng;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// What a document is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Random material that comes again.
    Repetition,
    /// Needles and questions mixed through a text, in several wordings.
    Needle,
    /// RULER `niah` with one needle.
    NiahSingle,
    /// RULER `niah` with needles that distract.
    NiahMultikey,
    /// RULER `niah` with several values under one key.
    NiahMultivalue,
    /// RULER `niah` that asks for several keys.
    NiahMultiquery,
    /// RULER `vt`.
    VariableTracking,
    /// `InfiniteBench`'s `passkey`.
    Passkey,
    /// `InfiniteBench`'s `number_string`.
    NumberString,
    /// `InfiniteBench`'s `kv_retrieval`.
    KeyValue,
    /// Stories, essays, facts.
    Prose,
    /// Members of a category.
    List,
    /// Word problems solved in several ways.
    Arithmetic,
    /// Sums without words.
    Drill,
}

impl Kind {
    /// Every kind with its name on the command line and its share of the documents.
    pub const ALL: [(Self, &'static str, u32); 14] = [
        (Self::Repetition, "repetition", 6),
        (Self::Needle, "needle", 14),
        (Self::NiahSingle, "niah-single", 10),
        (Self::NiahMultikey, "niah-multikey", 14),
        (Self::NiahMultivalue, "niah-multivalue", 8),
        (Self::NiahMultiquery, "niah-multiquery", 5),
        (Self::VariableTracking, "variable-tracking", 12),
        (Self::Passkey, "passkey", 3),
        (Self::NumberString, "number-string", 3),
        (Self::KeyValue, "key-value", 6),
        (Self::Prose, "prose", 14),
        (Self::List, "list", 16),
        (Self::Arithmetic, "arithmetic", 14),
        (Self::Drill, "drill", 4),
    ];

    /// What evaluation during training asks for: kinds whose answers stand in the text.
    pub const EVALUATED: [Self; 8] = [
        Self::NiahSingle,
        Self::NiahMultikey,
        Self::NiahMultivalue,
        Self::NiahMultiquery,
        Self::VariableTracking,
        Self::Passkey,
        Self::NumberString,
        Self::KeyValue,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(kind, _, _)| *kind == self)
            .map_or("", |(_, name, _)| name)
    }
}

/// What is wanted of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// About how many tokens.
    pub tokens: usize,
    /// The official question alone, in plain form, at its official settings; else questions go on and forms vary.
    pub single_question: bool,
    /// Haystacks have holes.
    pub torn: bool,
}

/// Kinds with their shares.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Mix(Vec<(Kind, u32)>);

impl Default for Mix {
    fn default() -> Self {
        Self(Kind::ALL.iter().map(|&(kind, _, share)| (kind, share)).collect())
    }
}

impl std::str::FromStr for Mix {
    type Err = Error;

    /// Reads `kind=share,kind=share`; kinds that are not named have no share.
    fn from_str(text: &str) -> Result<Self> {
        let names = Kind::ALL.map(|(_, name, _)| name).join(", ");
        let parse = |part: &str| {
            let (name, share) = part.split_once('=')?;
            let (kind, _, _) = Kind::ALL.iter().find(|(_, known, _)| *known == name)?;
            Some((*kind, share.parse().ok().filter(|&share| share <= 1_000_000)?))
        };
        let shares: Vec<(Kind, u32)> = text
            .split(',')
            .map(|part| {
                parse(part).ok_or_else(|| {
                    Error::user(format!("`--mix`: `{part}` is not a kind with its share"))
                        .help(format!("write such as `needle=2,prose=1`, with kinds among {names}"))
                })
            })
            .collect::<Result<_>>()?;
        if shares.iter().all(|(_, share)| *share == 0) {
            return Err(Error::user(format!("`--mix {text}` gives every kind a share of 0"))
                .help("give at least one kind a share of 1 or more"));
        }
        Ok(Self(shares))
    }
}

impl Mix {
    fn draw(&self, rng: &mut ChaCha8Rng) -> Kind {
        let total: u32 = self.0.iter().map(|(_, share)| share).sum();
        let mut ticket = rng.random_range(0..total);
        for &(kind, share) in &self.0 {
            if ticket < share {
                return kind;
            }
            ticket -= share;
        }
        self.0[0].0
    }
}

/// An endless row of documents.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// Seed of the whole corpus.
    pub seed: u64,
    /// Kinds with their shares.
    pub mix: Mix,
    /// Tokens that a training row holds; documents are at most about that long.
    pub window: usize,
}

impl Corpus {
    /// Document `index`.
    pub fn document(&self, index: usize) -> Document {
        let mut rng = stream_rng(self.seed, &format!("demo-corpus/{index}"));
        let kind = self.mix.draw(&mut rng);
        let largest = self.window as f64 * 0.94;
        let tokens = match rng.random_range(0..4) {
            0 => largest,
            1 => 48.0 * (largest / 48.0).max(1.0).powf(rng.random_range(0.0..1.0)),
            _ => largest * rng.random_range(0.1..1.0),
        };
        let wish = Wish {
            tokens: tokens as usize,
            single_question: false,
            torn: rng.random_ratio(1, 3),
        };
        make(kind, wish, &mut rng)
    }

    /// Question `index` of an evaluation: official wording, one question, about `tokens` long.
    pub fn question(&self, kind: Kind, tokens: usize, index: usize) -> Document {
        let stream = format!("demo-corpus/evaluation/{}/{tokens}/{index}", kind.name());
        let wish = Wish {
            tokens,
            single_question: true,
            torn: false,
        };
        make(kind, wish, &mut stream_rng(self.seed, &stream))
    }
}

fn make(kind: Kind, wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    match kind {
        Kind::Repetition => repetition::repetition(wish, rng),
        Kind::Needle => needle_stream::needle_stream(wish, rng),
        Kind::NiahSingle | Kind::NiahMultikey | Kind::NiahMultivalue | Kind::NiahMultiquery => {
            niah::niah(kind, wish, rng)
        }
        Kind::VariableTracking => variable_tracking::variable_tracking(wish, rng),
        Kind::Passkey | Kind::NumberString => infinite_bench::passkey(kind, wish, rng),
        Kind::KeyValue => infinite_bench::key_value(wish, rng),
        Kind::Prose => prose::story(wish, rng),
        Kind::List => lists::list(wish, rng),
        Kind::Arithmetic => arithmetic::problem(wish, rng),
        Kind::Drill => arithmetic::drill(wish, rng),
    }
}
