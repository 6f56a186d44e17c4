//! From documents to rows of token ids, each row filled with whole documents.

use super::document::{Document, Weight};
use super::{Corpus, Kind, SPECIAL_TOKENS};
use crate::error::{Error, Result};
use crate::model::tokenizer::Tokenizer;
use crate::random::stream_rng;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// A document as ids, each with the weight of predicting it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u16>,
    /// [`Weight`] of each token.
    pub weights: Vec<u8>,
}

impl Encoded {
    fn extend(&mut self, other: &Self) {
        self.ids.extend_from_slice(&other.ids);
        self.weights.extend_from_slice(&other.weights);
    }

    fn push(&mut self, id: u16, weight: Weight) {
        self.ids.push(id);
        self.weights.push(weight as u8);
    }
}

/// Encodes documents with a tokenizer whose ids fit 16 bits.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokenizer: Tokenizer,
    end_of_text: u16,
}

impl Encoder {
    /// Checks that the tokenizer is one of the demo model's kind.
    pub fn new(tokenizer: Tokenizer) -> Result<Self> {
        let most = usize::from(u16::MAX) + 1;
        if tokenizer.vocab_size() > most {
            return Err(Error::user(format!(
                "the tokenizer has {} ids, but shards hold at most {most}",
                tokenizer.vocab_size()
            ))
            .help("pass the demo model's, `models/demo/tokenizer.json`"));
        }
        if let Some(missing) = SPECIAL_TOKENS
            .iter()
            .find(|token| tokenizer.token_to_id(token).is_none())
        {
            return Err(Error::user(format!("the tokenizer has no token `{missing}`"))
                .help("pass the demo model's, `models/demo/tokenizer.json`"));
        }
        let end_of_text = tokenizer.token_to_id(SPECIAL_TOKENS[0]).unwrap_or_default() as u16;
        Ok(Self { tokenizer, end_of_text })
    }

    /// Encodes a document. An answer is encoded apart from what precedes it, as it is when a model continues a prompt;
    /// a token that lies in two stretches has the weight of the first.
    pub fn encode(&self, document: &Document) -> Result<Encoded> {
        let mut encoded = Encoded::default();
        let mut start = 0;
        let mut part: Vec<(usize, Weight)> = Vec::new();
        let ends = document.ends();
        for (index, &(end, weight)) in ends.iter().enumerate() {
            part.push((end - start, weight));
            let answer_next = ends.get(index + 1).is_some_and(|(_, next)| *next == Weight::Answer);
            if answer_next || index + 1 == ends.len() {
                self.encode_part(&document.text()[start..end], &part, &mut encoded)?;
                part.clear();
                start = end;
            }
        }
        Ok(encoded)
    }

    fn encode_part(&self, text: &str, stretches: &[(usize, Weight)], encoded: &mut Encoded) -> Result<()> {
        let mut stretches = stretches.iter().peekable();
        for (id, begin) in self.tokenizer.encode_with_starts(text)? {
            while stretches.next_if(|(end, _)| *end <= begin).is_some() {}
            let weight = stretches.peek().map_or(Weight::Unpredictable, |(_, weight)| *weight);
            encoded.push(id as u16, weight);
        }
        Ok(())
    }
}

/// Rows of equal length, one after the other.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// Ids and weights of all rows.
    pub tokens: Encoded,
    /// Number of rows.
    pub rows: usize,
    /// Documents that were longer than a row and are left out.
    pub left_out: usize,
    /// Tokens of documents, without what fills up rows.
    pub used: usize,
}

impl Rows {
    /// The bytes of a shard: all ids as little-endian `u16`, then all weights as `u8`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = bytemuck::cast_slice::<u16, u8>(&self.tokens.ids).to_vec();
        if cfg!(target_endian = "big") {
            for pair in bytes.as_chunks_mut::<2>().0 {
                pair.swap(0, 1);
            }
        }
        bytes.extend_from_slice(&self.tokens.weights);
        bytes
    }
}

/// Encodes the documents of `range` on all threads and packs them into rows of `window` tokens.
pub fn shard(corpus: &Corpus, encoder: &Encoder, range: std::ops::Range<usize>, window: usize) -> Result<Rows> {
    let name = format!("demo-corpus/rows/{}", range.start);
    let documents: Vec<Encoded> = range
        .into_par_iter()
        // A tokenizer's cache is shared by those who use it; a thread with its own does not wait.
        .map_init(
            || encoder.clone(),
            |encoder, index| encoder.encode(&corpus.document(index)),
        )
        .collect::<Result<_>>()?;
    let mut rng = stream_rng(corpus.seed, &name);
    let (mut packed, left_out) = best_fit(&documents, window);
    packed.shuffle(&mut rng);
    let mut rows = Rows {
        rows: packed.len(),
        left_out,
        ..Rows::default()
    };
    for mut row in packed {
        row.shuffle(&mut rng);
        for &index in &row {
            rows.tokens.extend(&documents[index]);
            rows.tokens.push(encoder.end_of_text, Weight::Language);
            rows.used += documents[index].ids.len() + 1;
        }
        fill_up(&mut rows, window, encoder);
    }
    Ok(rows)
}

/// Questions of one kind and length, one per row; those that do not fit are left out.
pub fn evaluation(corpus: &Corpus, encoder: &Encoder, kind: Kind, tokens: usize, count: usize) -> Result<Rows> {
    let mut rows = Rows::default();
    for index in 0..count {
        // Wording takes more tokens in some settings than the estimate says.
        let document = encoder.encode(&corpus.question(kind, tokens * 23 / 25, index))?;
        if document.ids.len() > tokens {
            rows.left_out += 1;
            continue;
        }
        rows.rows += 1;
        rows.used += document.ids.len();
        rows.tokens.extend(&document);
        fill_up(&mut rows, tokens, encoder);
    }
    Ok(rows)
}

fn fill_up(rows: &mut Rows, window: usize, encoder: &Encoder) {
    while !rows.tokens.ids.len().is_multiple_of(window) {
        rows.tokens.push(encoder.end_of_text, Weight::Unpredictable);
    }
}

/// Which documents share a row: the longest first, each into the fullest row that still takes it with one token behind
/// it. Also the number of those too long for any.
fn best_fit(documents: &[Encoded], window: usize) -> (Vec<Vec<usize>>, usize) {
    let mut order: Vec<usize> = (0..documents.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(documents[index].ids.len()));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut left_out = 0;
    for index in order {
        let need = documents[index].ids.len() + 1;
        if need > window {
            left_out += 1;
            continue;
        }
        let room = by_room.range(need..).next().map(|(&room, _)| room);
        let (room, row) = if let Some(room) = room {
            let list = by_room.get_mut(&room).expect("the room was found");
            let row = list.pop().expect("no list is empty");
            if list.is_empty() {
                by_room.remove(&room);
            }
            (room, row)
        } else {
            rows.push(Vec::new());
            (window, rows.len() - 1)
        };
        rows[row].push(index);
        by_room.entry(room - need).or_default().push(row);
    }
    (rows, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_hold_every_document_once_and_no_row_overflows() {
        let documents: Vec<Encoded> = (0..200)
            .map(|n| Encoded {
                ids: vec![0; n * 37 % 130],
                weights: vec![0; n * 37 % 130],
            })
            .collect();
        let (rows, left_out) = best_fit(&documents, 100);
        let mut placed: Vec<usize> = rows.iter().flatten().copied().collect();
        placed.sort_unstable();
        let fitting: Vec<usize> = (0..200).filter(|&n| documents[n].ids.len() < 100).collect();
        assert_eq!(placed, fitting);
        assert_eq!(left_out, 200 - fitting.len());
        let used = |row: &Vec<usize>| row.iter().map(|&n| documents[n].ids.len() + 1).sum::<usize>();
        assert!(rows.iter().all(|row| used(row) <= 100));
        assert!(
            rows.iter().map(used).sum::<usize>() * 100 > rows.len() * 100 * 90,
            "rows are filled"
        );
    }
}
