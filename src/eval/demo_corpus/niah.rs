//! Needles in a haystack as `bench ruler` asks for them: the templates are those of [`ruler`](crate::eval::ruler).

use super::chat::Form;
use super::document::{Document, Weight};
use super::haystack::{Filler, Item, filler, hide, item_tokens, tear, write};
use super::wording::mark;
use super::{Kind, Wish, words};
use crate::eval::ruler::NeedlePart;
use crate::eval::ruler::niah::{list, wording};
use crate::eval::ruler::template::{NEEDLE, fill};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

fn make_part(part: NeedlePart, rng: &mut ChaCha8Rng) -> String {
    match part {
        NeedlePart::Words => words::key(rng),
        NeedlePart::Numbers => words::number(7, rng),
        NeedlePart::Uuids => words::uuid(rng),
    }
}

/// One setting of RULER's `niah`.
struct Setting {
    /// `None` for a haystack of needles.
    filler: Option<Filler>,
    keys: NeedlePart,
    values: NeedlePart,
    hidden: usize,
    values_per_key: usize,
    asked: usize,
}

impl Setting {
    fn of(kind: Kind, rng: &mut ChaCha8Rng) -> Self {
        let numbers = Self {
            filler: Some(Filler::Essay),
            keys: NeedlePart::Words,
            values: NeedlePart::Numbers,
            hidden: 1,
            values_per_key: 1,
            asked: 1,
        };
        match kind {
            Kind::NiahMultikey => match rng.random_range(0..6) {
                // Only needles: numbers, or uuids on both sides.
                0 | 1 => Self {
                    filler: None,
                    ..numbers
                },
                2 => Self {
                    filler: None,
                    keys: NeedlePart::Uuids,
                    values: NeedlePart::Uuids,
                    ..numbers
                },
                _ => Self {
                    filler: Some(Filler::any(rng)),
                    hidden: rng.random_range(2..=6),
                    ..numbers
                },
            },
            Kind::NiahMultivalue => Self {
                // The benchmark's own number most often.
                values_per_key: *[2, 3, 4, 4].choose(rng).unwrap_or(&4),
                hidden: rng.random_range(1..=2),
                ..numbers
            },
            Kind::NiahMultiquery => {
                let asked = rng.random_range(2..=4);
                Self {
                    hidden: asked + rng.random_range(0..=2),
                    asked,
                    ..numbers
                }
            }
            _ => Self {
                filler: Some(Filler::any(rng)),
                values: if rng.random_ratio(1, 3) {
                    NeedlePart::Uuids
                } else {
                    NeedlePart::Numbers
                },
                ..numbers
            },
        }
    }

    /// Whether one value is asked for, in the singular.
    fn one(&self) -> bool {
        self.asked * self.values_per_key == 1
    }
}

fn needle(values: NeedlePart, key: &str, value: &str) -> Item {
    let text = fill(
        NEEDLE,
        &[("type_needle_v", values.plural()), ("key", key), ("value", value)],
    );
    mark(&text, &[(key, Weight::Unpredictable), (value, Weight::Unpredictable)])
}

/// RULER's `niah` in all its settings. Beyond the official question, a training document goes on asking about other
/// needles, in the same words.
pub(super) fn niah(kind: Kind, wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let setting = Setting::of(kind, rng);
    let mut pairs: Vec<(String, Vec<String>)> = Vec::new();
    let mut needles = Vec::new();
    let mut budget = wish.tokens.saturating_sub(90);
    let sample = needle(setting.values, "small-boat", &make_part(setting.values, rng));
    let question_cost = 24 + 2 * item_tokens(&sample);
    let mut add = |rng: &mut ChaCha8Rng, budget: &mut usize| {
        let key = make_part(setting.keys, rng);
        let values = words::distinct(setting.values_per_key, || make_part(setting.values, rng));
        for value in &values {
            let item = needle(setting.values, &key, value);
            *budget = budget.saturating_sub(item_tokens(&item));
            needles.push(item);
        }
        pairs.push((key, values));
    };
    for _ in 0..setting.hidden {
        add(rng, &mut budget);
    }
    let more = if wish.single_question {
        0
    } else {
        rng.random_range(0..4).min(budget / question_cost / 2)
    };
    budget = budget.saturating_sub(more * question_cost);
    if setting.filler.is_none() {
        while budget > 40 {
            add(rng, &mut budget);
            if setting.keys == NeedlePart::Uuids && budget < 90 {
                break;
            }
        }
    }
    // Values of one key must stay in the order in which they are answered; the order of keys is free.
    if setting.values_per_key == 1 {
        needles.shuffle(rng);
    }
    let kind_of_filler = setting.filler.unwrap_or(Filler::Noise);
    let mut items = match setting.filler {
        Some(kind) => hide(filler(kind, budget, rng), needles, rng),
        None => needles,
    };
    if wish.torn {
        tear(&mut items, rng);
    }

    let mut document = Document::new(kind);
    let form = Form::of(wish, rng);
    form.open(&mut document);
    let [prompt, answer_prefix] = wording(setting.values, setting.one());
    let (instruction, question) = prompt.split_once("{context}").unwrap_or((&prompt, ""));
    document.push(instruction, Weight::Wording);
    write(&items, kind_of_filler.joiner(), &mut document);
    pairs.shuffle(rng);
    let mut asked = pairs.chunks_exact(setting.asked);
    for turn in 0..=more {
        let Some(pairs) = asked.next() else { break };
        let question = if turn > 0 {
            form.next_question(&mut document);
            question.trim_start()
        } else {
            question
        };
        ask(&mut document, form, pairs, question, &answer_prefix);
    }
    form.close(&mut document);
    document
}

/// Question, answer prefix and answer.
fn ask(document: &mut Document, form: Form, pairs: &[(String, Vec<String>)], question: &str, answer_prefix: &str) {
    let keys: Vec<&str> = pairs.iter().map(|(key, _)| key.as_str()).collect();
    let query = list(&keys);
    document.push_all(&mark(
        &fill(question, &[("query", &query)]),
        &[(&query, Weight::Unpredictable)],
    ));
    form.answer(document);
    document.push_all(&mark(
        &fill(answer_prefix, &[("query", &query)]),
        &[(&query, Weight::Repeated)],
    ));
    let values: Vec<&String> = pairs.iter().flat_map(|(_, values)| values).collect();
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            let last = index + 1 == values.len();
            document.push(if last { ", and" } else { "," }, Weight::Language);
        }
        document.push(&format!(" {value}"), Weight::Answer);
    }
    document.push(".", Weight::Language);
}
