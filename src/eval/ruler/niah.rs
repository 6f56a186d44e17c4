//! Needle in a haystack: magic numbers, words or UUIDs hidden in text (RULER, section 3.1).

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::{SliceRandom, index};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::haystack::{NOISE, noise_lines};
use super::material::Material;
use super::place::Place;
use super::template::{NEEDLE, NIAH, fill};
use super::words::{fresh, number, uuid};
use crate::error::{Error, Result};
use crate::eval::Request;
use crate::eval::ruler::fit::Draft;

/// What surrounds the needles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Haystack {
    /// Five sentences, again and again.
    Noise,
    /// Running English text.
    Essay,
    /// Needles with other keys.
    Needle,
}

/// What a needle's key or value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NeedlePart {
    /// An adjective and a noun with a hyphen between.
    Words,
    /// Seven digits.
    Numbers,
    /// A version 4 UUID.
    Uuids,
}

impl NeedlePart {
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Words => "words",
            Self::Numbers => "numbers",
            Self::Uuids => "uuids",
        }
    }
}

/// Settings of a needle task; field names are RULER's.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NiahSettings {
    /// The haystack.
    pub type_haystack: Haystack,
    /// What keys are.
    pub type_needle_k: NeedlePart,
    /// What values are.
    pub type_needle_v: NeedlePart,
    /// Keys in the text; at least `num_needle_q`.
    pub num_needle_k: usize,
    /// Values (needles) per key.
    pub num_needle_v: usize,
    /// Keys asked for.
    pub num_needle_q: usize,
    /// Tokens that the answer may take.
    pub tokens_to_generate: usize,
}

impl Default for NiahSettings {
    /// `niah_single_1`.
    fn default() -> Self {
        Self {
            type_haystack: Haystack::Noise,
            type_needle_k: NeedlePart::Words,
            type_needle_v: NeedlePart::Numbers,
            num_needle_k: 1,
            num_needle_v: 1,
            num_needle_q: 1,
            tokens_to_generate: NIAH.tokens_to_generate,
        }
    }
}

/// Depths, in percent, that RULER places needles of an essay at: 40 from 0 to 100, rounded.
fn depth_grid() -> [usize; 40] {
    std::array::from_fn(|i| (i as f64 * 100.0 / 39.0).round() as usize)
}

impl NiahSettings {
    pub(super) fn check(&self, task: &str) -> Result<()> {
        for (name, value) in [
            ("num_needle_k", self.num_needle_k),
            ("num_needle_v", self.num_needle_v),
            ("num_needle_q", self.num_needle_q),
        ] {
            if value == 0 {
                return Err(Error::user(format!("`{task}`: `{name}` is 0")).help("set it to 1 or more"));
            }
        }
        let needles = self.keys() * self.num_needle_v;
        let grid = depth_grid().len();
        if self.type_haystack == Haystack::Essay && needles > grid {
            return Err(Error::user(format!(
                "`{task}`: {needles} needles, but an essay has {grid} places for them"
            ))
            .help("lower `num_needle_k` or `num_needle_v`, or take another haystack"));
        }
        Ok(())
    }

    fn keys(&self) -> usize {
        self.num_needle_k.max(self.num_needle_q)
    }

    pub(super) fn draft(&self, place: &Place<'_>, request: &Request<'_>, material: &Material) -> Result<Draft> {
        let mut rng = place.rng("needles");
        let mut seen = BTreeSet::new();
        let mut draw = |part: NeedlePart, rng: &mut ChaCha8Rng| {
            fresh(&mut seen, || match part {
                NeedlePart::Words => material.words.pair(rng),
                NeedlePart::Numbers => number(rng),
                NeedlePart::Uuids => uuid(rng),
            })
        };
        let mut several = |part, count| {
            (0..count)
                .map(|_| draw(part, &mut rng))
                .collect::<Result<Vec<String>>>()
        };
        let keys = several(self.type_needle_k, self.keys())?;
        let values = keys
            .iter()
            .map(|_| several(self.type_needle_v, self.num_needle_v))
            .collect::<Result<Vec<_>>>()?;
        let queried = index::sample(&mut rng, keys.len(), self.num_needle_q).into_vec();
        let mut needles: Vec<Needle> = keys
            .iter()
            .zip(&values)
            .enumerate()
            .flat_map(|(k, (key, values))| values.iter().map(move |value| (k, key, value)))
            .map(|(k, key, value)| Needle {
                text: self.needle(key, value),
                queried: queried.contains(&k),
            })
            .collect();
        needles.shuffle(&mut rng);

        let places = place.rng("places");
        let mut essay = material.essay.text(place.rng("haystack"));
        let mut distractors = Vec::new();
        let mut distractor_rng = place.rng("haystack");
        let noise = NOISE.join(" ");
        let (fewest, most_fill) = match self.type_haystack {
            Haystack::Essay => (0, 0),
            Haystack::Noise => (needles.len(), NOISE.len() - 1),
            Haystack::Needle => (needles.len(), 40 * NOISE.len()),
        };
        place
            .frame(request, self.tokens_to_generate)
            .fit(fewest..=usize::MAX / 2, most_fill, |units, filler| {
                let (mut pieces, separator) = match self.type_haystack {
                    Haystack::Essay => (essay.sentences(units), " "),
                    Haystack::Noise => (vec![noise.clone(); units], "\n"),
                    Haystack::Needle => {
                        while distractors.len() < units {
                            let key = draw(self.type_needle_k, &mut distractor_rng)?;
                            let value = draw(self.type_needle_v, &mut distractor_rng)?;
                            distractors.push(self.needle(&key, &value));
                        }
                        (distractors[..units].to_vec(), "\n")
                    }
                };
                pieces.extend(noise_lines(filler));
                let at = self.places(&needles, pieces.len(), request.depth, places.clone());
                let context = hide(&pieces, &needles, &at, separator);
                let single = self.num_needle_v * self.num_needle_q == 1;
                let depth = if single || request.depth.is_some() {
                    depth_of(&context, &needles)
                } else {
                    None
                };
                let queries: Vec<&str> = queried.iter().map(|&k| keys[k].as_str()).collect();
                let query = list(&queries);
                let (prompt, answer_prefix) = self.ask(&context, &query);
                Ok(Draft {
                    prompt,
                    answer_prefix,
                    answers: queried.iter().flat_map(|&k| values[k].clone()).collect(),
                    depth,
                })
            })
    }

    fn needle(&self, key: &str, value: &str) -> String {
        let kind = self.type_needle_v.plural();
        fill(NEEDLE, &[("type_needle_v", kind), ("key", key), ("value", value)])
    }

    /// Before which piece each needle goes.
    fn places(&self, needles: &[Needle], pieces: usize, depth: Option<f64>, mut rng: ChaCha8Rng) -> Vec<usize> {
        let mut at = if self.type_haystack == Haystack::Essay {
            let grid = depth_grid();
            let drawn = index::sample(&mut rng, grid.len(), needles.len());
            drawn.iter().map(|i| pieces * grid[i] / 100).collect()
        } else if pieces >= needles.len() {
            index::sample(&mut rng, pieces, needles.len()).into_vec()
        } else {
            needles.iter().map(|_| rng.random_range(0..=pieces)).collect()
        };
        at.sort_unstable();
        if let Some(depth) = depth {
            for (at, needle) in at.iter_mut().zip(needles) {
                if needle.queried {
                    *at = (depth.clamp(0.0, 1.0) * pieces as f64).round() as usize;
                }
            }
        }
        at
    }

    /// Prompt and answer prefix, in the singular where one value is asked for.
    fn ask(&self, context: &str, query: &str) -> (String, String) {
        let one = self.num_needle_q * self.num_needle_v == 1;
        let values = [("context", context), ("query", query)];
        let [prompt, answer_prefix] = wording(self.type_needle_v, one);
        (fill(&prompt, &values), fill(&answer_prefix, &values))
    }

    pub(super) fn record(&self, material: &Material) -> serde_json::Value {
        let mut record = json!(self);
        if self.type_haystack == Haystack::Essay {
            record["essay"] = material.essay.describe();
        }
        if [self.type_needle_k, self.type_needle_v].contains(&NeedlePart::Words) {
            record["words_sha256"] = material.words.sha256().into();
        }
        record
    }
}

/// Prompt and answer prefix for values of a kind, with `{context}` and `{query}` still open; in the singular for `one`.
pub(crate) fn wording(values: NeedlePart, one: bool) -> [String; 2] {
    let plural = values.plural();
    let kind = if one { &plural[..plural.len() - 1] } else { plural };
    [NIAH.prompt, NIAH.answer_prefix].map(|template| {
        let template = fill(template, &[("type_needle_v", kind)]);
        if one {
            template
                .replace("Some", "A")
                .replace("are all", "is")
                .replace("are", "is")
        } else {
            template
        }
    })
}

struct Needle {
    text: String,
    queried: bool,
}

/// Joins the pieces with each needle before the piece that its place names.
fn hide(pieces: &[String], needles: &[Needle], at: &[usize], separator: &str) -> String {
    let mut order: Vec<usize> = (0..needles.len()).collect();
    order.sort_by_key(|&i| at[i]);
    let mut order = order.into_iter().peekable();
    let mut all: Vec<&str> = Vec::with_capacity(pieces.len() + needles.len());
    for place in 0..=pieces.len() {
        while let Some(i) = order.next_if(|&i| at[i] <= place) {
            all.push(&needles[i].text);
        }
        all.extend(pieces.get(place).map(String::as_str));
    }
    all.join(separator)
}

/// Where the first queried needle begins: 0 at the start, 1 if it comes last.
fn depth_of(context: &str, needles: &[Needle]) -> Option<f64> {
    needles
        .iter()
        .filter(|n| n.queried)
        .filter_map(|n| Some((context.find(&n.text)?, n.text.len())))
        .min()
        .map(|(start, length)| match context.len() - length {
            0 => 0.0,
            rest => start as f64 / rest as f64,
        })
}

/// `a`, `a, and b`, `a, b, and c`.
pub(crate) fn list(items: &[&str]) -> String {
    match items.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{}, and {last}", rest.join(", ")),
        Some((last, _)) => (*last).to_owned(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_is_that_of_numpy() {
        let grid = depth_grid();
        assert_eq!(&grid[..5], [0, 3, 5, 8, 10]);
        assert_eq!((grid[20], grid[38], grid[39]), (51, 97, 100));
    }

    #[test]
    fn lists_read_as_the_original_writes_them() {
        assert_eq!(list(&["a"]), "a");
        assert_eq!(list(&["a", "b"]), "a, and b");
        assert_eq!(list(&["a", "b", "c"]), "a, b, and c");
    }

    #[test]
    fn one_value_is_asked_for_in_the_singular() {
        let one = NiahSettings::default();
        assert_eq!(
            one.ask("TEXT", "dry-oak"),
            (
                "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you \
                 about the number afterwards.\nTEXT\nWhat is the special magic number for dry-oak mentioned in the \
                 provided text?"
                    .to_owned(),
                " The special magic number for dry-oak mentioned in the provided text is".to_owned()
            )
        );
        let many = NiahSettings { num_needle_v: 4, ..one };
        assert_eq!(
            many.ask("TEXT", "dry-oak").1,
            " The special magic numbers for dry-oak mentioned in the provided text are"
        );
    }

    #[test]
    fn needles_go_before_the_piece_their_place_names() {
        let pieces = ["0", "1", "2"].map(str::to_owned);
        let needles = ["a", "b", "c"].map(|t| Needle {
            text: t.to_owned(),
            queried: false,
        });
        assert_eq!(hide(&pieces, &needles, &[3, 0, 2], " "), "b 0 1 c 2 a");
    }
}
