//! How well a text is predicted under each variant, and how far each strays from a reference variant on it.
//!
//! A text is cut into windows. In each, every token after the prefix is predicted from all before it (teacher forcing):
//! its negative log-likelihood in nats, and per predicted token the KL divergence of the reference's distribution from
//! the variant's, and whether both have the same likeliest token. All variants read a window side by side, chunk by
//! chunk, so that logits are compared as they come and never stored.
//!
//! Under a selection policy the chunk decides what is measured: with whole prefill chunks, the chunk's query selects for
//! all its tokens; with a step of 1 every token after the prefix selects for itself, as in decoding.

mod windows;

pub use windows::{WindowRecord, tables};

use super::ruler::Essay;
use super::task::CountTokens;
use crate::error::Result;
use crate::model::context::Engine;
use crate::model::decoder::Session;
use crate::random::stream_rng;
use crate::selection::Phase;
use std::ops::Range;
use std::time::Instant;

/// Made-up English sentences of at least `tokens` tokens, for a run without a text of its own; the same for one seed.
pub fn generated_text(tokens: usize, seed: u64, count: &dyn CountTokens) -> Result<String> {
    const SENTENCES: usize = 64;
    let essay = Essay::default();
    let mut sentences = essay.text(stream_rng(seed, "perplexity/text"));
    let mut text = String::new();
    let mut made = 0;
    while made < tokens {
        let block = sentences.sentences(SENTENCES).join(" ") + "\n";
        // Blocks may join to fewer tokens than they have by themselves; the newline keeps that to one.
        made += count.count(&block)?.saturating_sub(1);
        text.push_str(&block);
    }
    Ok(text)
}

/// Floats of logits held per variant at a time: 16 MiB.
const BLOCK_FLOATS: usize = 1 << 22;

/// What one variant scored in one window; sums over predicted tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WindowScore {
    /// Tokens predicted.
    pub tokens: usize,
    /// Negative log-likelihood, in nats.
    pub nll_sum: f64,
    /// KL(reference || variant), in nats; `None` without a reference.
    pub kl_sum: Option<f64>,
    /// Tokens at which variant and reference have the same likeliest token; `None` without a reference.
    pub agreements: Option<usize>,
    /// Seconds in the forward passes of this variant.
    pub forward_s: f64,
}

/// How a window is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Reading {
    /// First tokens, which are read in prefill chunks and not predicted; at least the very first is not.
    pub prefix: usize,
    /// Tokens per forward pass in the prefix.
    pub prefill_chunk: usize,
    /// Tokens per forward pass after it; passes of one token are decode steps.
    pub step: usize,
}

impl Reading {
    /// The chunks of a window of `len` tokens with their phases; the last token is only predicted, never read.
    fn chunks(&self, len: usize) -> Vec<(Range<usize>, Phase)> {
        let end = len.saturating_sub(1);
        let prefix = self.prefix.min(end);
        let cut = |from: usize, to: usize, step: usize| {
            (from..to)
                .step_by(step.max(1))
                .map(move |at| at..(at + step.max(1)).min(to))
        };
        let phase = if self.step == 1 { Phase::Decode } else { Phase::Prefill };
        cut(0, prefix, self.prefill_chunk)
            .map(|chunk| (chunk, Phase::Prefill))
            .chain(cut(prefix, end, self.step).map(|chunk| (chunk, phase)))
            .collect()
    }
}

/// Reads one window under all sessions side by side; `None` if it was stopped.
pub fn score_window<B: Engine>(
    sessions: &mut [Session<'_, B>],
    reference: Option<usize>,
    ids: &[u32],
    reading: &Reading,
    stopped: &dyn Fn() -> bool,
) -> Result<Option<Vec<WindowScore>>> {
    let none = WindowScore {
        kl_sum: reference.map(|_| 0.0),
        agreements: reference.map(|_| 0),
        ..WindowScore::default()
    };
    let mut scores = vec![none; sessions.len()];
    sessions.iter_mut().for_each(Session::reset);
    for (chunk, phase) in reading.chunks(ids.len()) {
        if stopped() {
            return Ok(None);
        }
        for (session, score) in sessions.iter_mut().zip(&mut scores) {
            let started = Instant::now();
            session.forward(&ids[chunk.clone()], phase)?;
            score.forward_s += started.elapsed().as_secs_f64();
        }
        // Row r predicts token r + 1, which counts from the prefix on.
        let first = chunk.start.max(reading.prefix.saturating_sub(1));
        if first < chunk.end {
            score_rows(sessions, reference, ids, &chunk, first, &mut scores)?;
        }
    }
    Ok(Some(scores))
}

/// Scores what the rows `first..chunk.end` of the chunk just read predict.
fn score_rows<B: Engine>(
    sessions: &mut [Session<'_, B>],
    reference: Option<usize>,
    ids: &[u32],
    chunk: &Range<usize>,
    first: usize,
    scores: &mut [WindowScore],
) -> Result<()> {
    let vocabulary = sessions.first().map_or(1, |s| s.decoder().config.vocab_size);
    let block = (BLOCK_FLOATS / vocabulary.max(1)).max(1);
    for from in (first..chunk.end).step_by(block) {
        let to = (from + block).min(chunk.end);
        let rows = from - chunk.start..to - chunk.start;
        let expected = reference
            .map(|at| sessions[at].logits_of_rows(rows.clone()))
            .transpose()?;
        for (at, (session, score)) in sessions.iter_mut().zip(scores.iter_mut()).enumerate() {
            let own;
            let logits = match &expected {
                Some(logits) if reference == Some(at) => logits,
                _ => {
                    own = session.logits_of_rows(rows.clone())?;
                    &own
                }
            };
            for (row, predicted) in logits.chunks_exact(vocabulary).zip(from + 1..) {
                let log_sum = log_sum_exp(row);
                score.tokens += 1;
                score.nll_sum += log_sum - f64::from(row[ids[predicted] as usize]);
            }
            let Some(expected) = &expected else { continue };
            for (row, expected) in logits.chunks_exact(vocabulary).zip(expected.chunks_exact(vocabulary)) {
                score.kl_sum = score.kl_sum.map(|sum| sum + kl_divergence(expected, row));
                let same = likeliest(expected) == likeliest(row);
                score.agreements = score.agreements.map(|count| count + usize::from(same));
            }
        }
    }
    Ok(())
}

/// log of the sum of exponentials, in f64.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - f64::from(most)).exp()).sum();
    f64::from(most) + sum.ln()
}

/// KL(p || q) in nats of the distributions that two rows of logits stand for.
fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p_sum, q_sum) = (log_sum_exp(p), log_sum_exp(q));
    p.iter()
        .zip(q)
        .map(|(&p, &q)| {
            let (log_p, log_q) = (f64::from(p) - p_sum, f64::from(q) - q_sum);
            log_p.exp() * (log_p - log_q)
        })
        .sum()
}

/// The likeliest token, the first of equals.
fn likeliest(logits: &[f32]) -> usize {
    let best = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
    (0..logits.len()).fold(0, best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_of_known_distributions() {
        let logits = |p: [f32; 2]| p.map(f32::ln);
        let (fair, skewed) = (logits([0.5, 0.5]), logits([0.25, 0.75]));
        // 0.5 ln(0.5/0.25) + 0.5 ln(0.5/0.75) = 0.5 ln(4/3).
        assert!((kl_divergence(&fair, &skewed) - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-7);
        assert_eq!(kl_divergence(&skewed, &skewed).to_bits(), 0.0f64.to_bits());
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2f64.ln())).abs() < 1e-9);
        assert_eq!(
            (likeliest(&[1.0, 3.0, 3.0]), likeliest(&[f32::NEG_INFINITY; 2])),
            (1, 0)
        );
    }

    #[test]
    fn every_token_but_the_last_is_read_once() {
        for (len, prefix, chunk, step) in [(10, 0, 4, 4), (10, 3, 2, 1), (10, 9, 4, 1), (2, 1, 1, 1), (10, 5, 3, 2)] {
            let reading = Reading {
                prefix,
                prefill_chunk: chunk,
                step,
            };
            let chunks = reading.chunks(len);
            let read: Vec<usize> = chunks.iter().flat_map(|(range, _)| range.clone()).collect();
            assert_eq!(read, (0..len - 1).collect::<Vec<_>>());
            let decoded = chunks.iter().filter(|(_, phase)| *phase == Phase::Decode).count();
            assert_eq!(decoded, if step == 1 { len - 1 - prefix } else { 0 });
        }
    }
}
