//! Frequent words extraction: the three commonest of coded words with zeta-distributed counts (RULER, section 3.3).

use std::collections::BTreeSet;

use rand::seq::SliceRandom;

use super::fit::Draft;
use super::place::Place;
use super::template::{FREQUENT_WORDS, fill};
use super::words::{fresh, letters};
use crate::error::{Error, Result};
use crate::eval::Request;

/// Settings of frequent words extraction; field names are RULER's.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct FrequentWordsSettings {
    /// Exponent of the zeta distribution, above 1: the word of rank k makes up k^-alpha / zeta(alpha) of the text.
    pub alpha: f64,
    /// Letters of a coded word.
    pub coded_wordlen: usize,
    /// Different coded words; `None` is RULER's choice, one per 50 tokens of the length.
    pub vocab_size: Option<usize>,
    /// Tokens that the answer may take.
    pub tokens_to_generate: usize,
}

impl Default for FrequentWordsSettings {
    fn default() -> Self {
        Self {
            alpha: 2.0,
            coded_wordlen: 6,
            vocab_size: None,
            tokens_to_generate: FREQUENT_WORDS.tokens_to_generate,
        }
    }
}

/// The commonest "word" is noise, the next three are the answer, and one more must be rarer than they.
const FEWEST_WORDS: usize = 5;
const ANSWERS: std::ops::Range<usize> = 1..4;
/// The commonest "word". The question calls it `....`; this is what RULER's generator writes.
const DOTS: &str = "...";
/// Most dots that are added where whole counts would leave more than 1 % of a short length empty.
const MOST_DOTS: usize = 40;

impl FrequentWordsSettings {
    pub(super) fn check(&self, task: &str) -> Result<()> {
        if !(self.alpha > 1.0 && self.alpha <= 10.0) {
            return Err(Error::user(format!("`{task}`: `alpha` is {}", self.alpha))
                .help("set it above 1 and to at most 10; RULER uses 2.0, 2.5 and 3.5"));
        }
        if !(3..=64).contains(&self.coded_wordlen) {
            return Err(
                Error::user(format!("`{task}`: `coded_wordlen` is {}", self.coded_wordlen))
                    .help("set it to between 3 and 64"),
            );
        }
        Ok(())
    }

    pub(super) fn draft(&self, place: &Place<'_>, request: &Request<'_>) -> Result<Draft> {
        let size = self.vocab_size.unwrap_or(place.length() / 50).max(FEWEST_WORDS);
        let mut rng = place.rng("words");
        let mut seen = BTreeSet::new();
        let mut vocabulary = (0..size)
            .map(|_| fresh(&mut seen, || letters(b'a', self.coded_wordlen, &mut rng)))
            .collect::<Result<Vec<String>>>()?;
        DOTS.clone_into(&mut vocabulary[0]);
        let answers = vocabulary[ANSWERS].to_vec();
        let order = place.rng("order");
        let total = zeta(self.alpha);
        let share = |rank: usize| (rank as f64).powf(-self.alpha) / total;
        // From here on the third answer is in the text more often than the word after it.
        let fewest = (1.0 / (share(ANSWERS.end) - share(ANSWERS.end + 1))).ceil() as usize;
        place
            .frame(request, self.tokens_to_generate)
            .fit(fewest..=usize::MAX / 2, MOST_DOTS, |words, dots| {
                let mut text: Vec<&str> = vocabulary
                    .iter()
                    .enumerate()
                    .flat_map(|(i, word)| std::iter::repeat_n(word.as_str(), (words as f64 * share(i + 1)) as usize))
                    .collect();
                text.extend(std::iter::repeat_n(DOTS, dots));
                text.shuffle(&mut order.clone());
                Ok(Draft {
                    prompt: fill(FREQUENT_WORDS.prompt, &[("context", &text.join(" "))]),
                    answer_prefix: FREQUENT_WORDS.answer_prefix.to_owned(),
                    answers: answers.clone(),
                    depth: None,
                })
            })
    }
}

/// Riemann's zeta for `s` > 1: the first terms, and the rest by the Euler-Maclaurin formula.
fn zeta(s: f64) -> f64 {
    const TERMS: u32 = 20;
    let n = f64::from(TERMS);
    let head: f64 = (1..TERMS).map(|k| f64::from(k).powf(-s)).sum();
    let tail = n.powf(1.0 - s) / (s - 1.0) + n.powf(-s) / 2.0 + s * n.powf(-s - 1.0) / 12.0;
    head + tail - s * (s + 1.0) * (s + 2.0) * n.powf(-s - 3.0) / 720.0
}

#[cfg(test)]
mod tests {
    use super::zeta;

    #[test]
    fn zeta_has_its_known_values() {
        let pi = std::f64::consts::PI;
        for (s, value) in [
            (2.0, pi * pi / 6.0),
            (4.0, pi.powi(4) / 90.0),
            (1.5, 2.612_375_348_685_488),
        ] {
            assert!((zeta(s) - value).abs() < 1e-9, "zeta({s}) = {}", zeta(s));
        }
    }
}
