//! Rouge-L of the Python package `rouge` 1.0.1, which `LongBench` uses.

use super::lcs::{Tie, lcs};
use super::python_text::split;
use std::collections::HashSet;

/// Rouge-L F of `prediction` against `label`: the `rouge` package's summary-level form.
///
/// Sentences end at every full stop, words at blanks, letters keep their case. The package works on sets: what counts is
/// how many different words lie on the longest common subsequence of any two sentences, over the number of different
/// words. F is 2PR / (P + R + 1e-8). A text without a sentence scores 0, as in `LongBench`, which catches the package's
/// exception. (The package recurses once per word and gives up at about a thousand words between two full stops; here
/// such texts are scored.)
pub fn rouge_l(prediction: &str, label: &str) -> f64 {
    let (prediction, label) = (sentences(prediction), sentences(label));
    if prediction.is_empty() || label.is_empty() {
        return 0.0;
    }
    let mut common: HashSet<&str> = HashSet::new();
    for expected in &label {
        for made in &prediction {
            common.extend(lcs(expected, made, Tie::Second).into_iter().map(|at| expected[at]));
        }
    }
    let different = |sentences: &[Vec<&str>]| sentences.iter().flatten().collect::<HashSet<_>>().len();
    let recall = common.len() as f64 / different(&label) as f64;
    let precision = common.len() as f64 / different(&prediction) as f64;
    2.0 * ((precision * recall) / (precision + recall + 1e-8))
}

/// The words of each sentence. One of blanks alone has a single empty word, as joining and splitting again gives.
fn sentences(text: &str) -> Vec<Vec<&str>> {
    text.split('.')
        .filter(|sentence| !sentence.is_empty())
        .map(|sentence| {
            let words: Vec<&str> = split(sentence).collect();
            if words.is_empty() { vec![""] } else { words }
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "0, 1 and simple fractions are exact")]
mod tests {
    use super::*;

    #[test]
    fn a_text_without_sentences_scores_nothing() {
        for (prediction, label) in [("", "a"), ("a", ""), ("...", "a"), ("", "")] {
            assert_eq!(rouge_l(prediction, label), 0.0);
        }
        // Two blank sentences share the empty word.
        assert!(rouge_l(" ", " .") > 0.999);
    }

    #[test]
    fn case_and_punctuation_count() {
        assert!((rouge_l("the cat sat", "the cat sat") - 1.0).abs() < 1e-7);
        assert_eq!(rouge_l("Cat,", "cat"), 0.0);
    }
}
