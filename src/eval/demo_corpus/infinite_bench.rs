//! Pass keys, number strings and JSON values: InfiniteBench's wording, and that of `bench passkey`.

use super::chat::Form;
use super::document::{Document, Weight, estimated_tokens};
use super::haystack::{Filler, NOISE, filler, hide, tear, write};
use super::wording::mark;
use super::{Kind, Wish, words};
use crate::eval::passkey::{ANSWER_PREFIX, PROMPT_END, Passkey};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

/// A pass key as `bench passkey` hides it or, like a number string, as InfiniteBench does.
pub(super) fn passkey(kind: Kind, wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    if kind == Kind::Passkey && !wish.torn && rng.random_bool(0.5) {
        return our_passkey(wish, rng);
    }
    let (start, name) = if kind == Kind::Passkey {
        ("Find it and memorize them.", "pass key")
    } else {
        ("Find it.", "sequence of digits")
    };
    let value = if kind == Kind::Passkey {
        words::number(rng.random_range(5..=6), rng)
    } else {
        number_string(rng)
    };
    let needle = mark(
        &format!("The {name} is {value}. Remember it. {value} is the {name}."),
        &[(&value, Weight::Unpredictable)],
    );
    let kind_of_filler = if rng.random_bool(0.7) {
        Filler::Noise
    } else {
        Filler::any(rng)
    };
    let budget = wish.tokens.saturating_sub(100);
    let mut items = hide(filler(kind_of_filler, budget, rng), vec![needle], rng);
    if wish.torn {
        tear(&mut items, rng);
    }
    let mut document = Document::new(kind);
    let form = Form::of(wish, rng);
    form.open(&mut document);
    let head = format!(
        "There is an important info hidden inside a lot of irrelevant text. {start} I will quiz you about the important \
         information there.\n\n"
    );
    document.push(&head, Weight::Wording);
    let joiner = ["\n", " "].choose(rng).expect("two joiners");
    write(&items, joiner, &mut document);
    document.push(&format!("\n\nWhat is the {name}?"), Weight::Wording);
    form.answer(&mut document);
    let prefix = if form.is_chat() {
        ["", "The pass key is"].choose(rng)
    } else {
        ["", "\n\nThe pass key is", "\nThe pass key is", " The pass key is"].choose(rng)
    };
    let prefix = prefix.expect("there are prefixes").replace("pass key", name);
    document.push(&prefix, Weight::Wording);
    // A chat answer begins at its line's start.
    let space = if form.is_chat() && prefix.is_empty() { "" } else { " " };
    document.push(&format!("{space}{value}"), Weight::Answer);
    document.push(".", Weight::Language);
    form.close(&mut document);
    document
}

/// Ten digits of which, mostly, each comes several times in a row.
fn number_string(rng: &mut ChaCha8Rng) -> String {
    if rng.random_bool(0.3) {
        return words::number(10, rng);
    }
    let run: usize = rng.random_range(1..=4);
    let distinct = words::number(10 / run as u32, rng);
    let digits = distinct.chars().flat_map(|digit| std::iter::repeat_n(digit, run));
    digits.take(10).collect()
}

fn our_passkey(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let value = words::number(5, rng);
    let sentences = wish.tokens.saturating_sub(100) * 5 / estimated_tokens(&NOISE);
    let before = rng.random_range(0..=sentences);
    let mut document = Document::new(Kind::Passkey);
    let form = Form::of(wish, rng);
    form.open(&mut document);
    let prompt = Passkey::prompt(&value, before, sentences - before);
    document.push_all(&mark(&prompt, &[(&value, Weight::Unpredictable)]));
    document.push(PROMPT_END, Weight::Wording);
    form.answer(&mut document);
    document.push(ANSWER_PREFIX, Weight::Wording);
    document.push(&format!(" {value}"), Weight::Answer);
    document.push(".", Weight::Language);
    form.close(&mut document);
    document
}

/// InfiniteBench's key-value retrieval: a JSON object of uuids.
pub(super) fn key_value(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    const PAIR_TOKENS: usize = 82;
    const QUESTION_TOKENS: usize = 170;
    let more = if wish.single_question {
        0
    } else {
        rng.random_range(0..3)
    };
    let pairs = (wish.tokens.saturating_sub(QUESTION_TOKENS + more * 60) / PAIR_TOKENS).max(2);
    let keys = words::distinct(pairs, || words::uuid(rng));
    let pairs: Vec<(String, String)> = keys.into_iter().map(|key| (key, words::uuid(rng))).collect();
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.shuffle(rng);

    let mut document = Document::new(Kind::KeyValue);
    let form = Form::of(wish, rng);
    form.open(&mut document);
    let (key, _) = &pairs[order[0]];
    document.push("Extract the value corresponding to the specified key", Weight::Wording);
    document.push(&format!(" {key}"), Weight::Unpredictable);
    document.push(" in the JSON object below.\n\nJSON data:\n{", Weight::Wording);
    for (index, (key, value)) in pairs.iter().enumerate() {
        document.push(if index == 0 { "\"" } else { ", \"" }, Weight::Wording);
        document.push(key, Weight::Unpredictable);
        document.push("\": \"", Weight::Wording);
        document.push(value, Weight::Unpredictable);
        document.push("\"", Weight::Wording);
    }
    document.push("}", Weight::Wording);
    for (turn, &asked) in order.iter().take(more + 1).enumerate() {
        let (key, value) = &pairs[asked];
        if turn == 0 {
            document.push("\n\n", Weight::Wording);
        } else {
            form.next_question(&mut document);
        }
        document.push("Key: \"", Weight::Wording);
        document.push(
            key,
            if turn == 0 {
                Weight::Repeated
            } else {
                Weight::Unpredictable
            },
        );
        document.push("\"\nThe value associated with the specified key is:", Weight::Wording);
        form.answer(&mut document);
        let quoted = rng.random_bool(0.5);
        // The official question ends in a space, which is then a token of its own before the answer.
        document.push(if form.is_chat() { "" } else { " " }, Weight::Wording);
        document.push(if quoted { "\"" } else { "" }, Weight::Unpredictable);
        document.push(value, Weight::Answer);
        document.push(if quoted { "\"" } else { "" }, Weight::Language);
    }
    form.close(&mut document);
    document
}
