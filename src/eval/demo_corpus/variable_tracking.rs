//! Variable tracking as `bench ruler` asks for it: the pieces are those of [`ruler`](crate::eval::ruler).

use super::chat::Form;
use super::document::{Document, Weight, estimated_tokens};
use super::haystack::{Item, NOISE, hide, item_tokens, tear, write};
use super::wording::mark;
use super::{Kind, Wish, words};
use crate::eval::ruler::haystack::NOISE as SENTENCES;
use crate::eval::ruler::template::{VARIABLE_TRACKING, fill};
use crate::eval::ruler::variable_tracking::{EXAMPLE_END, assignments, noise_pieces};
use crate::eval::ruler::words::letters;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

struct Chain {
    letters: usize,
    hops: usize,
    tokens: usize,
    torn: bool,
}

/// A chain of assignments in noise, after a solved example of a shorter one.
pub(super) fn variable_tracking(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    /// Tokens that a chain in a little noise takes.
    const SHORTEST: usize = 200;
    let hops = if wish.single_question {
        4
    } else {
        rng.random_range(1..=4)
    };
    let mut document = Document::new(Kind::VariableTracking);
    let form = Form::of(wish, rng);
    form.open(&mut document);
    let mut rest = wish.tokens.saturating_sub(40);
    if rest >= 2 * SHORTEST && (wish.single_question || rng.random_bool(0.6)) {
        // The benchmark gives the example up to half of a short text.
        let tokens = if wish.single_question {
            rest / 2
        } else {
            rng.random_range(SHORTEST..=rest / 2)
        };
        rest -= tokens;
        let example = Chain {
            letters: 3,
            hops,
            tokens,
            torn: wish.torn,
        };
        // Its double space is the benchmark's: the answer prefix ends in one, and another is put before the answer.
        chain(&mut document, Form::Completion, &example, " ", rng);
        document.push(EXAMPLE_END, Weight::Wording);
    }
    let asked = Chain {
        letters: 5,
        hops,
        tokens: rest,
        torn: wish.torn,
    };
    chain(&mut document, form, &asked, "", rng);
    if form.is_chat() {
        form.close(&mut document);
    } else {
        document.push("\n", Weight::Language);
    }
    document
}

fn chain(document: &mut Document, form: Form, chain: &Chain, before_answer: &str, rng: &mut ChaCha8Rng) {
    const ASK_TOKENS: usize = 85;
    let names = words::distinct(chain.hops + 1, || letters(b'A', chain.letters, rng));
    let value = words::number(5, rng);
    let secrets: Vec<(&str, Weight)> = names
        .iter()
        .chain([&value])
        .map(|name| (name.as_str(), Weight::Unpredictable))
        .collect();
    let assignments: Vec<Item> = assignments(&names, &value)
        .iter()
        .map(|text| {
            let mut item = mark(text, &secrets);
            // Which variable comes next cannot be known, even where it is named for the second time.
            for (_, weight) in &mut item {
                *weight = (*weight).min(Weight::Wording);
            }
            item
        })
        .collect();
    let own = assignments.iter().map(item_tokens).sum::<usize>();
    let room = chain.tokens.saturating_sub(ASK_TOKENS + own);
    let lines = (room / (estimated_tokens(&NOISE) + 2)).max(1);
    let wording = |text: String| vec![(text, Weight::Wording)];
    let mut noise: Vec<Item> = noise_pieces(lines, names.len()).into_iter().map(wording).collect();
    if chain.torn {
        tear(&mut noise, rng);
    }
    let mut items = hide(noise, assignments, rng);
    // A text that is fitted to a length ends in single sentences.
    let sentences = rng.random_range(0..SENTENCES.len());
    items.extend(SENTENCES.iter().take(sentences).map(|&text| wording(text.to_owned())));

    let count = names.len().to_string();
    let values = [("query", value.as_str()), ("num_v", count.as_str())];
    let (instruction, question) = VARIABLE_TRACKING
        .prompt
        .split_once("{context}")
        .unwrap_or((VARIABLE_TRACKING.prompt, ""));
    document.push(instruction, Weight::Wording);
    write(&items, " ", document);
    let value = value.as_str();
    document.push_all(&mark(&fill(question, &values), &[(value, Weight::Unpredictable)]));
    form.answer(document);
    let answer_prefix = fill(VARIABLE_TRACKING.answer_prefix, &values);
    document.push_all(&mark(&answer_prefix, &[(value, Weight::Repeated)]));
    document.push(before_answer, Weight::Wording);
    document.push(&names.join(" "), Weight::Answer);
}
