//! Common words extraction: the ten words of a numbered list that are repeated most (RULER, section 3.3).

use std::collections::BTreeSet;

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::fit::Draft;
use super::material::Material;
use super::place::Place;
use super::template::{COMMON_WORDS, fill};
use super::words::{coined_word, fresh};
use crate::error::{Error, Result};
use crate::eval::Request;

/// Settings of common words extraction; field names are RULER's.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CommonWordsSettings {
    /// Times that a common word is in the list, from 4096 tokens on; 6 below, as in RULER.
    pub freq_cw: usize,
    /// Times that any other word is in the list, from 4096 tokens on; 1 below, as in RULER.
    pub freq_ucw: usize,
    /// Common words.
    pub num_cw: usize,
    /// Tokens that the answer may take.
    pub tokens_to_generate: usize,
}

impl Default for CommonWordsSettings {
    fn default() -> Self {
        Self {
            freq_cw: 30,
            freq_ucw: 3,
            num_cw: 10,
            tokens_to_generate: COMMON_WORDS.tokens_to_generate,
        }
    }
}

/// Words of a list and how often they are repeated.
#[derive(Clone, Copy)]
struct Shape {
    words: usize,
    common: usize,
    uncommon: usize,
    /// More words, there once each: they fill what whole repetitions leave empty of a short length.
    once: usize,
}

/// Below this length RULER repeats less.
const SHORT: usize = 4096;

impl CommonWordsSettings {
    pub(super) fn check(&self, task: &str) -> Result<()> {
        /// Words of the short worked example, which the common ones are taken from.
        const MOST: usize = 19;
        if !(1..=MOST).contains(&self.num_cw) {
            return Err(Error::user(format!("`{task}`: `num_cw` is {}", self.num_cw))
                .help(format!("set it to between 1 and {MOST}")));
        }
        if self.freq_ucw == 0 || self.freq_cw <= self.freq_ucw {
            return Err(Error::user(format!(
                "`{task}`: `freq_cw` is {} and `freq_ucw` is {}",
                self.freq_cw, self.freq_ucw
            ))
            .help("set `freq_ucw` to 1 or more and `freq_cw` above it"));
        }
        Ok(())
    }

    pub(super) fn draft(&self, place: &Place<'_>, request: &Request<'_>, material: &Material) -> Result<Draft> {
        let frame = place.frame(request, self.tokens_to_generate);
        let mut rng = place.rng("words");
        let mut vocabulary: Vec<String> = material.words.all().into_iter().map(str::to_owned).collect();
        let mut seen: BTreeSet<String> = vocabulary.iter().cloned().collect();
        vocabulary.shuffle(&mut rng);
        let order = place.rng("order");

        let fewest = self.num_cw + 1;
        let shape = |words, [common, uncommon]: [usize; 2]| Shape {
            words,
            common,
            uncommon,
            once: 0,
        };
        let long = self.worked_example(shape(40, [10, 3]), &vocabulary, place.rng("example"));
        let short = self.worked_example(shape(20, [3, 1]), &vocabulary, place.rng("example"));
        // RULER's two ways, and two more for less room. With common tokenizers the worked example goes below some 700 tokens,
        // and the repetitions below some 500.
        let all = [
            (long, [self.freq_cw, self.freq_ucw]),
            (short, [6, 1]),
            (String::new(), [6, 1]),
            (String::new(), [3, 1]),
        ];
        let mut ways = all.into_iter().skip(usize::from(place.length() < SHORT)).peekable();
        let (mut example, mut times) = ways.next().unwrap_or_default();
        while ways.peek().is_some() {
            let shortest = self.assemble(&example, &vocabulary, shape(fewest, times), order.clone());
            if frame.holds(&shortest)? {
                break;
            }
            (example, times) = ways.next().unwrap_or_default();
        }
        frame.fit(fewest..=usize::MAX / 2, 2 * times[1], |words, once| {
            while vocabulary.len() < words + once {
                vocabulary.push(fresh(&mut seen, || coined_word(&mut rng))?);
            }
            let shape = Shape {
                once,
                ..shape(words, times)
            };
            Ok(self.assemble(&example, &vocabulary, shape, order.clone()))
        })
    }

    /// A short list with its question and answer, as RULER puts it before the real one.
    fn worked_example(&self, shape: Shape, vocabulary: &[String], mut rng: ChaCha8Rng) -> String {
        let mut words = vocabulary.to_vec();
        words.shuffle(&mut rng);
        let draft = self.assemble("", &words, shape, rng);
        format!("{}{}{}\n", draft.prompt, draft.answer_prefix, numbered(&draft.answers))
    }

    fn assemble(&self, before: &str, vocabulary: &[String], shape: Shape, mut rng: ChaCha8Rng) -> Draft {
        let (common, uncommon) = vocabulary[..shape.words].split_at(self.num_cw);
        let times = |words: &[String], times| (0..times).flat_map(|_| words.to_vec()).collect::<Vec<String>>();
        let mut list = times(common, shape.common);
        list.extend(times(uncommon, shape.uncommon));
        list.extend_from_slice(&vocabulary[shape.words..shape.words + shape.once]);
        list.shuffle(&mut rng);
        let num_cw = self.num_cw.to_string();
        let values = [("context", &*numbered(&list)), ("num_cw", &*num_cw)];
        Draft {
            prompt: format!("{before}{}", fill(COMMON_WORDS.prompt, &values)),
            answer_prefix: fill(COMMON_WORDS.answer_prefix, &values),
            answers: common.to_vec(),
            depth: None,
        }
    }

    pub(super) fn record(&self, material: &Material) -> serde_json::Value {
        let mut record = json!(self);
        record["words_sha256"] = material.words.sha256().into();
        record
    }
}

/// `1. word 2. word`.
fn numbered(words: &[String]) -> String {
    let numbered: Vec<String> = words
        .iter()
        .enumerate()
        .map(|(i, w)| format!("{}. {w}", i + 1))
        .collect();
    numbered.join(" ")
}
