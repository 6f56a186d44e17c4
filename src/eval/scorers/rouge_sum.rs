//! Rouge-L-Sum of Google's `rouge_score` 0.1.2 without stemmer, which `InfiniteBench` uses through `evaluate`.

use super::lcs::{Tie, lcs};
use std::collections::{BTreeSet, HashMap};

/// Rouge-L-Sum F of `prediction` against `label`: lines are sentences, tokens are runs of a-z and 0-9 after lower case.
///
/// A label line's hits are the union of its longest common subsequences with every line of the prediction, each token
/// counted at most as often as both texts have it. `evaluate` passes no stemmer by default, and neither official script
/// asks for one.
pub fn rouge_l_sum(prediction: &str, label: &str) -> f64 {
    let (prediction, label) = (prediction.to_lowercase(), label.to_lowercase());
    let (made, expected) = (lines(&prediction), lines(&label));
    let total = |lines: &[Vec<&str>]| lines.iter().map(Vec::len).sum::<usize>();
    let (in_prediction, in_label) = (total(&made), total(&expected));
    if in_prediction == 0 || in_label == 0 {
        return 0.0;
    }
    let (mut left_made, mut left_expected) = (counts(&made), counts(&expected));
    let mut hits = 0_usize;
    for line in &expected {
        let union: BTreeSet<usize> = made.iter().flat_map(|other| lcs(line, other, Tie::First)).collect();
        for at in union {
            let (Some(made), Some(expected)) = (left_made.get_mut(line[at]), left_expected.get_mut(line[at])) else {
                continue;
            };
            if *made > 0 && *expected > 0 {
                *made -= 1;
                *expected -= 1;
                hits += 1;
            }
        }
    }
    let recall = hits as f64 / in_label as f64;
    let precision = hits as f64 / in_prediction as f64;
    if precision + recall > 0.0 {
        2.0 * precision * recall / (precision + recall)
    } else {
        0.0
    }
}

/// The tokens of each line of a text in lower case.
fn lines(text: &str) -> Vec<Vec<&str>> {
    let token = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    text.split('\n')
        .map(|line| {
            line.split(|letter| !token(letter))
                .filter(|token| !token.is_empty())
                .collect()
        })
        .collect()
}

fn counts<'a>(lines: &[Vec<&'a str>]) -> HashMap<&'a str, usize> {
    let mut counts = HashMap::new();
    for token in lines.iter().flatten() {
        *counts.entry(*token).or_default() += 1;
    }
    counts
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "0, 1 and simple fractions are exact")]
mod tests {
    use super::*;

    #[test]
    fn the_union_over_lines_counts_no_token_twice() {
        // The example of the ROUGE paper, section 3.2: the union of both lines is w1 w2 w3 w5.
        let score = rouge_l_sum("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5");
        assert!((score - 2.0 * 0.4 * 0.8 / 1.2).abs() < 1e-12, "{score}");
        assert!((rouge_l_sum("x x", "x") - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(rouge_l_sum("", "x"), 0.0);
        assert_eq!(rouge_l_sum("é", "é"), 0.0);
    }
}
