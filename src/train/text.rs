//! Text as ids: characters, bytes or byte-pair tokens; train and validation parts; parallel streams.

use crate::error::{Error, Result};
use crate::manifest::sha256;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerBuilder, TokenizerImpl,
};

/// What a symbol is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A Unicode character; the vocabulary is what occurs in the text.
    Char,
    /// A byte.
    Byte,
    /// A byte-pair token of a vocabulary of this size, learned from the training part.
    Bpe(usize),
}

impl FromStr for Unit {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "char" => Ok(Self::Char),
            "byte" => Ok(Self::Byte),
            _ => text
                .strip_prefix("bpe:")
                .and_then(|size| size.parse().ok())
                .filter(|size| (257..=65_536).contains(size))
                .map(Self::Bpe)
                .ok_or_else(|| "pass char, byte, or bpe:N with N in 257..=65536, such as bpe:2048".to_owned()),
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Char => f.write_str("char"),
            Self::Byte => f.write_str("byte"),
            Self::Bpe(size) => write!(f, "bpe:{size}"),
        }
    }
}

type Bpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Turns text into ids and back.
#[derive(Debug, Clone)]
pub enum Codec {
    /// Characters in the order of their code points.
    Char(Vec<char>),
    /// Bytes.
    Byte,
    /// Byte pairs.
    Bpe(Box<Bpe>),
}

/// A text to learn, in two parts.
#[derive(Debug, Clone)]
pub struct Text {
    /// How ids are read.
    pub codec: Codec,
    /// To learn from.
    pub train: Vec<u32>,
    /// Held out.
    pub valid: Vec<u32>,
    /// SHA-256 of both parts as text.
    pub sha256: String,
    /// Bytes of the held-out part.
    pub valid_bytes: usize,
}

impl Codec {
    /// The codec of these parts.
    fn new(unit: Unit, train: &str, valid: &str) -> Result<Self> {
        match unit {
            Unit::Char => {
                let letters: BTreeSet<char> = train.chars().chain(valid.chars()).collect();
                Ok(Self::Char(letters.into_iter().collect()))
            }
            Unit::Byte => Ok(Self::Byte),
            Unit::Bpe(size) => learn_bpe(size, train),
        }
    }

    /// Number of symbols.
    pub fn vocab(&self) -> usize {
        match self {
            Self::Char(letters) => letters.len(),
            Self::Byte => 256,
            Self::Bpe(bpe) => bpe.get_vocab_size(true),
        }
    }

    /// Ids of a text; `None` if it has a character that the vocabulary lacks.
    pub fn encode(&self, text: &str) -> Option<Vec<u32>> {
        match self {
            Self::Char(letters) => {
                let id = |letter: char| letters.binary_search(&letter).ok().map(|at| at as u32);
                text.chars().map(id).collect()
            }
            Self::Byte => Some(text.bytes().map(u32::from).collect()),
            Self::Bpe(bpe) => Some(bpe.encode(text, false).ok()?.get_ids().to_vec()),
        }
    }

    /// The text of ids; bytes that are no text become replacement characters.
    pub fn decode(&self, ids: &[u32]) -> String {
        match self {
            Self::Char(letters) => ids.iter().filter_map(|&id| letters.get(id as usize)).collect(),
            Self::Byte => {
                let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Self::Bpe(bpe) => bpe.decode(ids, false).unwrap_or_default(),
        }
    }
}

fn learn_bpe(size: usize, train: &str) -> Result<Codec> {
    let failed = |error: tokenizers::Error| Error::bug(format!("learning {size} byte-pair tokens: {error}"));
    let mut bpe: Bpe = TokenizerBuilder::default()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true).into()))
        .with_decoder(Some(ByteLevel::default().into()))
        .build()
        .map_err(failed)?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(size)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    bpe.train(&mut trainer, train.lines()).map_err(failed)?;
    Ok(Codec::Bpe(Box::new(bpe)))
}

impl Text {
    /// Two parts as they are.
    pub fn new(unit: Unit, train: &str, valid: &str) -> Result<Self> {
        let codec = Codec::new(unit, train, valid)?;
        let encode = |part: &str| {
            let ids = codec.encode(part);
            ids.ok_or_else(|| Error::bug("a text has symbols that its own vocabulary lacks"))
        };
        Ok(Self {
            train: encode(train)?,
            valid: encode(valid)?,
            sha256: sha256(format!("{}\n{train}{valid}", train.len())),
            valid_bytes: valid.len(),
            codec,
        })
    }

    /// One text: the first nine tenths of its characters to learn from, the rest held out.
    pub fn split(unit: Unit, text: &str) -> Result<Self> {
        let count = text.chars().count();
        let cut = text.char_indices().nth(count * 9 / 10).map_or(text.len(), |(at, _)| at);
        Self::new(unit, &text[..cut], &text[cut..])
    }
}

/// A text cut into parallel streams: stream b reads the b-th part from start to end.
#[derive(Debug, Clone)]
pub struct Streams {
    /// `[B][length]`, flattened.
    ids: Vec<u32>,
    length: usize,
    batch: usize,
    segment: usize,
}

impl Streams {
    /// Cuts `ids` into `batch` streams that are read in segments; refuses a text without a whole segment.
    pub fn new(ids: &[u32], batch: usize, segment: usize, part: &str) -> Result<Self> {
        let length = ids.len() / batch;
        if length < segment + 1 {
            return Err(Error::user(format!(
                "the {part} part of the text has {} symbols, too few for {batch} streams of a segment of {segment}",
                ids.len()
            ))
            .note(format!("{} symbols are needed", batch.saturating_mul(segment + 1)))
            .help("pass a longer text, a smaller `--batch`, or a smaller `--segment`"));
        }
        Ok(Self {
            ids: ids[..length * batch].to_vec(),
            length,
            batch,
            segment,
        })
    }

    /// Segments of a pass over the text; what is left at the end and is shorter is not read.
    pub fn segments(&self) -> usize {
        (self.length - 1) / self.segment
    }

    /// Inputs and targets `[T, B]`, time first, of streams `streams` in segment `number`.
    pub fn segment(&self, number: usize, streams: std::ops::Range<usize>) -> (Vec<u32>, Vec<u32>) {
        let first = number * self.segment;
        let column = |shift: usize| {
            let rows = (first + shift..first + shift + self.segment)
                .flat_map(|t| streams.clone().map(move |stream| (t, stream)));
            rows.map(|(t, stream)| self.ids[stream * self.length + t]).collect()
        };
        (column(0), column(1))
    }

    /// B.
    pub fn batch(&self) -> usize {
        self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_reads_back_what_it_wrote() {
        let text = "zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich\n".repeat(30);
        for unit in ["char", "byte", "bpe:300"] {
            let unit: Unit = unit.parse().unwrap();
            let split = Text::split(unit, &text).unwrap();
            let back = split.codec.decode(&split.train) + &split.codec.decode(&split.valid);
            assert_eq!(back, text, "{unit}");
            let most = split.train.iter().chain(&split.valid).max().unwrap();
            assert!((*most as usize) < split.codec.vocab());
        }
        assert_eq!(
            Text::split(Unit::Char, &text).unwrap().train.len(),
            text.chars().count() * 9 / 10
        );
        assert!("bpe:3".parse::<Unit>().is_err() && "word".parse::<Unit>().is_err());
    }

    #[test]
    fn streams_go_on_where_the_segment_before_ended() {
        let ids: Vec<u32> = (0..23).collect();
        let streams = Streams::new(&ids, 2, 3, "training").unwrap();
        // Two streams of 11: three whole segments with their targets.
        assert_eq!(streams.segments(), 3);
        assert_eq!(
            streams.segment(0, 0..2),
            (vec![0, 11, 1, 12, 2, 13], vec![1, 12, 2, 13, 3, 14])
        );
        assert_eq!(streams.segment(2, 1..2), (vec![17, 18, 19], vec![18, 19, 20]));
        assert_eq!(Streams::new(&ids, 8, 3, "training").unwrap_err().exit_code(), 2);
    }
}
