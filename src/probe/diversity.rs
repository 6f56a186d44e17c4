//! How different the texts of a set are.

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// Words of a text: runs of letters and digits, lower case, and every other visible sign by itself.
pub fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut open = false;
    for letter in text.chars() {
        if letter.is_alphanumeric() {
            match words.last_mut().filter(|_| open) {
                Some(word) => word.extend(letter.to_lowercase()),
                None => words.push(letter.to_lowercase().collect()),
            }
            open = true;
        } else {
            open = false;
            if !letter.is_whitespace() {
                words.push(letter.to_string());
            }
        }
    }
    words
}

fn grams(words: &[String], n: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for gram in words.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

/// Distinct n-grams over all n-grams of the set (Li et al. 2016); `None` where no text has n words.
pub fn distinct_n(texts: &[Vec<String>], n: usize) -> Option<f64> {
    let mut all = 0;
    let mut distinct = HashSet::new();
    for text in texts {
        for gram in text.windows(n) {
            all += 1;
            distinct.insert(gram);
        }
    }
    (all > 0).then(|| distinct.len() as f64 / f64::from(all))
}

/// BLEU-4 of `candidate` against `references`, with brevity penalty; a precision without a match counts as 0.1 over the
/// number of n-grams (method 1 of Chen and Cherry 2014, as nltk has it).
fn bleu(candidate: &[String], references: &[&[String]]) -> f64 {
    let mut log_sum = 0.0;
    for n in 1..=4 {
        let mut best: HashMap<&[String], usize> = HashMap::new();
        for reference in references {
            for (gram, count) in grams(reference, n) {
                let most = best.entry(gram).or_default();
                *most = (*most).max(count);
            }
        }
        let own = grams(candidate, n);
        let matched: usize = own
            .iter()
            .map(|(gram, &count)| count.min(best.get(gram).copied().unwrap_or(0)))
            .sum();
        let total = candidate.len().saturating_sub(n - 1).max(1) as f64;
        if n == 1 && matched == 0 {
            return 0.0;
        }
        log_sum += (if matched == 0 { 0.1 } else { matched as f64 } / total).ln() / 4.0;
    }
    let length = candidate.len();
    let closest = references
        .iter()
        .map(|r| r.len())
        .min_by_key(|&r| (r.abs_diff(length), r));
    let closest = closest.unwrap_or(0);
    let penalty = if length > closest {
        0.0
    } else {
        1.0 - closest as f64 / length.max(1) as f64
    };
    (penalty + log_sum).exp()
}

/// Mean BLEU-4 of every text against all others (Zhu et al. 2018): 1 for equal texts, lower for different ones. `None` below
/// two texts. Texts without a word count as 0.
pub fn self_bleu(texts: &[Vec<String>]) -> Option<f64> {
    if texts.len() < 2 {
        return None;
    }
    let one = |at: usize| {
        let references: Vec<&[String]> = (0..texts.len()).filter(|&i| i != at).map(|i| &texts[i][..]).collect();
        if texts[at].is_empty() {
            0.0
        } else {
            bleu(&texts[at], &references)
        }
    };
    Some((0..texts.len()).map(one).sum::<f64>() / texts.len() as f64)
}

/// Mean of 1 - cosine over all pairs; `None` below two vectors.
pub fn mean_pairwise_distance(vectors: &[Vec<f32>]) -> Option<f64> {
    if vectors.len() < 2 {
        return None;
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let mut sum = 0.0;
    for (at, a) in vectors.iter().enumerate() {
        for b in &vectors[..at] {
            let lengths = (dot(a, a) * dot(b, b)).sqrt();
            sum += if lengths > 0.0 { 1.0 - dot(a, b) / lengths } else { 1.0 };
        }
    }
    let n = vectors.len() as f64;
    Some(sum / (n * (n - 1.0) / 2.0))
}

/// Diversity of one set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Diversity {
    /// Texts that no earlier one equals, over all.
    pub unique: f64,
    /// Distinct words over all words.
    pub distinct_1: Option<f64>,
    /// Distinct pairs of words.
    pub distinct_2: Option<f64>,
    /// Distinct triples of words.
    pub distinct_3: Option<f64>,
    /// Lower is more diverse.
    pub self_bleu: Option<f64>,
    /// Mean of 1 - cosine over pairs, of the model's own hidden states. They share a large part, so compare, do not read.
    pub hidden_distance: Option<f64>,
    /// Mean number of words.
    pub mean_words: f64,
}

impl Diversity {
    /// Of `texts`, with an embedding of each.
    pub fn of(texts: &[String], embeddings: &[Vec<f32>]) -> Self {
        let cut: Vec<Vec<String>> = texts.iter().map(|text| words(text)).collect();
        let n = texts.len().max(1) as f64;
        let distinct: HashSet<&Vec<String>> = cut.iter().collect();
        Self {
            unique: distinct.len() as f64 / n,
            distinct_1: distinct_n(&cut, 1),
            distinct_2: distinct_n(&cut, 2),
            distinct_3: distinct_n(&cut, 3),
            self_bleu: self_bleu(&cut),
            hidden_distance: mean_pairwise_distance(embeddings),
            mean_words: cut.iter().map(Vec::len).sum::<usize>() as f64 / n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(texts: &[&str]) -> Vec<Vec<String>> {
        texts.iter().map(|text| words(text)).collect()
    }

    #[test]
    fn words_are_lower_case_runs_and_signs() {
        assert_eq!(
            words("It's 3.5 O'Clock!"),
            ["it", "'", "s", "3", ".", "5", "o", "'", "clock", "!"]
        );
    }

    #[test]
    fn distinct_n_by_hand() {
        let texts = cut(&["a b a", "a b"]);
        assert_eq!(distinct_n(&texts, 1), Some(2.0 / 5.0));
        // a b, b a, a b.
        assert_eq!(distinct_n(&texts, 2), Some(2.0 / 3.0));
        assert_eq!(distinct_n(&texts, 4), None);
    }

    #[test]
    fn equal_texts_have_self_bleu_1_and_disjoint_ones_0() {
        assert!((self_bleu(&cut(&["a b c d e", "a b c d e"])).expect("two") - 1.0).abs() < 1e-12);
        assert!(self_bleu(&cut(&["a b c d", "e f g h"])).expect("two").abs() < 1e-12);
        assert_eq!(self_bleu(&cut(&["a"])), None);
        assert!(self_bleu(&cut(&["", "a"])).expect("two").abs() < 1e-12);
    }

    #[test]
    fn self_bleu_is_that_of_nltk() {
        // nltk 3.9: mean of sentence_bleu(others, text, smoothing_function=SmoothingFunction().method1).
        for (texts, wanted) in NLTK {
            let found = self_bleu(&cut(texts)).expect("several");
            assert!((found - wanted).abs() < 1e-9, "{texts:?}: {found}, not {wanted}");
        }
    }

    const NLTK: [(&[&str], f64); 3] = [
        (
            &[
                "the cat sat on the mat",
                "the cat lay on the mat",
                "a dog ran away from the cat",
            ],
            0.192_662_056_240_138_57,
        ),
        (&["a b c d e f", "a b c d", "a b x y z"], 0.466_851_822_624_256_45),
        (&["the the the the", "the cat"], 0.067_676_824_646_835_6),
    ];

    #[test]
    fn distances_by_hand() {
        let vectors = [vec![1.0, 0.0], vec![0.0, 2.0], vec![-1.0, 0.0]];
        // 1, 2, 1.
        assert!((mean_pairwise_distance(&vectors).expect("three") - 4.0 / 3.0).abs() < 1e-12);
        assert_eq!(mean_pairwise_distance(&vectors[..1]), None);
    }
}
