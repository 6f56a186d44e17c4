//! What a list in the prompt does to the query: its products with explored keys, beside those of an unrelated list.

use super::completion::Reading;
use super::key_space::Rows;
use serde::{Deserialize, Serialize};

/// A query against the keys of some tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Against {
    /// Mean product of query and key (the logit), less the mean over the whole vocabulary: 0 is like any token.
    pub dot: f64,
    /// Mean cosine.
    pub cosine: f64,
    /// Sum of the probabilities.
    pub mass: f64,
}

/// One query.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct QueryGeometry {
    /// Length of the query.
    pub norm: f64,
    /// Cosine with the query of the prompt without a list.
    pub cosine_to_start: f64,
    /// Against first tokens of earlier rounds; null in the first.
    pub explored: Option<Against>,
    /// Against first tokens of answers that are right and not found yet; null if there are none.
    pub open: Option<Against>,
}

/// A round of navigation, the same tokens under three prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RoundGeometry {
    /// From 0.
    pub round: usize,
    /// Answers in the list.
    pub listed: usize,
    /// Distinct tokens explored.
    pub explored: usize,
    /// Distinct first tokens of right answers not found yet.
    pub open: usize,
    /// The prompt without a list.
    pub start: QueryGeometry,
    /// With what was found.
    pub navigated: QueryGeometry,
    /// With as many unrelated things.
    pub placebo: QueryGeometry,
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    // A padding key has no direction.
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

/// The query of `reading` against the keys of `tokens`; `None` for no tokens.
pub fn against(reading: &Reading, keys: &Rows, tokens: &[u32]) -> Option<Against> {
    if tokens.is_empty() {
        return None;
    }
    let n = tokens.len() as f64;
    let logits = &reading.logits;
    let mean: f64 = logits.iter().map(|&l| f64::from(l)).sum::<f64>() / logits.len() as f64;
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| f64::from(logit - most).exp();
    let total: f64 = logits.iter().map(|&l| weight(l)).sum();
    let of = |measure: &dyn Fn(u32) -> f64| tokens.iter().map(|&token| measure(token)).sum::<f64>();
    Some(Against {
        dot: of(&|token| f64::from(logits[token as usize])) / n - mean,
        cosine: of(&|token| cosine(&reading.query, keys.row(token as usize))) / n,
        mass: of(&|token| weight(logits[token as usize])) / total,
    })
}

/// A query beside that of the prompt without a list.
pub fn measure(reading: &Reading, start: &Reading, keys: &Rows, explored: &[u32], open: &[u32]) -> QueryGeometry {
    QueryGeometry {
        norm: dot(&reading.query, &reading.query).sqrt(),
        cosine_to_start: cosine(&reading.query, &start.query),
        explored: against(reading, keys, explored),
        open: against(reading, keys, open),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_cosines_and_mass_by_hand() {
        let keys = Rows {
            data: vec![1.0, 0.0, 0.0, 2.0, 0.0, 0.0],
            dim: 2,
        };
        let start = Reading {
            query: vec![3.0, 4.0],
            logits: vec![3.0, 8.0, 0.0],
        };
        let found = measure(&start, &start, &keys, &[0, 1], &[]);
        assert!((found.norm - 5.0).abs() < 1e-9 && (found.cosine_to_start - 1.0).abs() < 1e-9);
        assert_eq!(found.open, None);
        let explored = found.explored.expect("two tokens");
        // Mean logit 11/3, of the two tokens 11/2; cosines 3/5 and 4/5.
        assert!((explored.dot - 11.0 / 6.0).abs() < 1e-6, "{explored:?}");
        assert!((explored.cosine - 0.7).abs() < 1e-6);
        let padding = f64::exp(0.0) / (f64::exp(3.0) + f64::exp(8.0) + 1.0);
        assert!((explored.mass - (1.0 - padding)).abs() < 1e-9);
    }
}
