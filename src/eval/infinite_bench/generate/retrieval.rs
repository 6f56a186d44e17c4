//! Retrieve.PassKey, Retrieve.Number and Retrieve.KV.

use std::collections::BTreeSet;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{Fields, needle_place};
use crate::error::Result;
use crate::eval::ruler::fit::{Draft, Frame};
use crate::eval::ruler::haystack::{NOISE, noise_lines};
use crate::eval::ruler::place::Place;
use crate::eval::ruler::words::{fresh, uuid};

/// Five digits, to be found in noise.
pub(super) fn passkey(
    place: &Place<'_>,
    depth: Option<f64>,
    fit: &Frame<'_>,
    put: impl Fn(Fields) -> Draft,
) -> Result<Draft> {
    let mut rng = place.rng("needle");
    let key: String = (0..5).map(|_| digit(&mut rng)).collect();
    let needle = format!("The pass key is {key}. Remember it. {key} is the pass key.\n");
    in_noise(&needle, "What is the pass key?", &key, &mut rng, depth, fit, put)
}

/// Ten digits, five of them doubled where they stand, to be found in noise.
pub(super) fn number_string(
    place: &Place<'_>,
    depth: Option<f64>,
    fit: &Frame<'_>,
    put: impl Fn(Fields) -> Draft,
) -> Result<Draft> {
    let mut rng = place.rng("needle");
    let mut digits: Vec<char> = (0..5).map(|_| digit(&mut rng)).collect();
    while digits.len() < 10 {
        let at = rng.random_range(0..digits.len());
        digits.insert(at, digits[at]);
    }
    let key: String = digits.into_iter().collect();
    let needle = format!("The sequence of digits is {key}. Remember it. {key} is the sequence of digits.\n");
    in_noise(
        &needle,
        "What is the sequence of digits?",
        &key,
        &mut rng,
        depth,
        fit,
        put,
    )
}

fn digit(rng: &mut ChaCha8Rng) -> char {
    char::from(b'0' + rng.random_range(0..10_u8))
}

fn in_noise(
    needle: &str,
    question: &str,
    answer: &str,
    rng: &mut ChaCha8Rng,
    depth: Option<f64>,
    fit: &Frame<'_>,
    put: impl Fn(Fields) -> Draft,
) -> Result<Draft> {
    let drawn = rng.random::<f64>();
    let line = format!("{}\n", NOISE.join(" "));
    fit.fit(0..=usize::MAX / 2, NOISE.len() - 1, |lines, filler| {
        let (before, depth) = needle_place(depth, drawn, lines);
        let mut context = format!("{}{needle}{}", line.repeat(before), line.repeat(lines - before));
        for part in noise_lines(filler) {
            context.push_str(&part);
            context.push('\n');
        }
        Ok(put(Fields {
            context,
            input: question.to_owned(),
            answers: vec![answer.to_owned()],
            depth: Some(depth),
            ..Fields::default()
        }))
    })
}

/// The value of one of many UUID pairs of a JSON object.
pub(super) fn key_value(
    place: &Place<'_>,
    depth: Option<f64>,
    fit: &Frame<'_>,
    put: impl Fn(Fields) -> Draft,
) -> Result<Draft> {
    /// Characters of a UUID.
    const UUID: usize = 36;
    let mut needle_rng = place.rng("needle");
    let mut rng = place.rng("pairs");
    let mut seen = BTreeSet::new();
    let mut pair = |rng: &mut ChaCha8Rng| -> Result<[String; 2]> {
        Ok([fresh(&mut seen, || uuid(rng))?, fresh(&mut seen, || uuid(rng))?])
    };
    let [key, value] = pair(&mut needle_rng)?;
    let drawn = needle_rng.random::<f64>();
    let mut pairs: Vec<[String; 2]> = Vec::new();
    let write = |key: &str, value: &str| format!("\"{key}\": \"{value}\"");
    fit.fit(0..=usize::MAX / 2, 2 * UUID - 1, |others, letters| {
        while pairs.len() <= others {
            pairs.push(pair(&mut rng)?);
        }
        let (at, depth) = needle_place(depth, drawn, others);
        let mut written: Vec<String> = pairs[..others].iter().map(|[k, v]| write(k, v)).collect();
        written.insert(at, write(&key, &value));
        if letters > 0 {
            let [last_key, last_value] = &pairs[others];
            let kept = letters.min(UUID);
            written.push(write(&last_key[..kept], &last_value[..letters - kept]));
        }
        Ok(put(Fields {
            context: format!("JSON data:\n{{{}}}", written.join(", ")),
            input: format!("Key: \"{key}\"\nThe value associated with the specified key is: "),
            answers: vec![value.clone()],
            depth: Some(depth),
            key: format!("\"{key}\""),
            ..Fields::default()
        }))
    })
}
