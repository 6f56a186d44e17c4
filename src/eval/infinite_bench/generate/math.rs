//! Math.Find and Math.Calc.

use rand::seq::index;
use rand::{Rng, seq::SliceRandom};

use super::{Fields, needle_place};
use crate::error::Result;
use crate::eval::ruler::fit::{Draft, Frame};
use crate::eval::ruler::place::Place;

/// What Math.Find asks for; example `index` asks for number `index % 7`.
const ASKED: [&str; 7] = [
    "largest",
    "second largest",
    "third largest",
    "smallest",
    "second smallest",
    "third smallest",
    "median",
];

/// One of the three largest or smallest numbers of a list, or its median.
///
/// The extremes are there once each, so that the second largest is the same however it is counted.
pub(super) fn find(
    place: &Place<'_>,
    depth: Option<f64>,
    fit: &Frame<'_>,
    put: impl Fn(Fields) -> Draft,
) -> Result<Draft> {
    const SMALLEST: std::ops::Range<usize> = 0..10;
    const BODY: std::ops::Range<u32> = 10..990;
    const LARGEST: std::ops::Range<usize> = 990..1000;
    let asked = place.index() % ASKED.len();
    let mut rng = place.rng("extremes");
    let mut three = |range: std::ops::Range<usize>| -> Vec<u32> {
        let mut drawn: Vec<u32> = index::sample(&mut rng, range.len(), 3)
            .iter()
            .map(|i| (range.start + i) as u32)
            .collect();
        drawn.sort_unstable();
        drawn
    };
    let (small, mut large) = (three(SMALLEST), three(LARGEST));
    large.reverse();
    let needle = large.iter().chain(&small).copied().nth(asked);
    let mut rest: Vec<u32> = large
        .iter()
        .chain(&small)
        .copied()
        .filter(|&n| Some(n) != needle)
        .collect();
    let needle_at = rng.random::<f64>();
    rest.shuffle(&mut rng);
    let places: Vec<f64> = rest.iter().map(|_| rng.random()).collect();

    let mut body_rng = place.rng("numbers");
    let mut body: Vec<u32> = Vec::new();
    let what = ASKED[asked];
    fit.fit(0..=usize::MAX / 4, 0, |pairs, _| {
        // An odd count, so that the median is one of the numbers.
        let count = 2 * pairs + 1;
        while body.len() < count {
            body.push(body_rng.random_range(BODY));
        }
        let mut numbers = body[..count].to_vec();
        for (number, at) in rest.iter().zip(&places) {
            numbers.insert((at * numbers.len() as f64) as usize, *number);
        }
        let mut found = None;
        if let Some(needle) = needle {
            let (at, depth) = needle_place(depth, needle_at, numbers.len());
            numbers.insert(at, needle);
            found = Some(depth);
        }
        let answer = needle.unwrap_or_else(|| {
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            sorted[sorted.len() / 2]
        });
        let list: Vec<String> = numbers.iter().map(u32::to_string).collect();
        Ok(put(Fields {
            context: format!("[{}]", list.join(", ")),
            input: format!(
                "You should answer with only one number, no other words. The {what} number of the list is: "
            ),
            answers: vec![answer.to_string()],
            depth: found,
            prefix: format!("What is the {what} number in the following list?"),
            ..Fields::default()
        }))
    })
}

/// The values of a long sum after each of its operations.
pub(super) fn calculate(place: &Place<'_>, fit: &Frame<'_>, put: impl Fn(Fields) -> Draft) -> Result<Draft> {
    /// Above this, numbers are taken away again.
    const HIGH: u32 = 900;
    let mut rng = place.rng("numbers");
    let mut value = rng.random_range(0..100_u32);
    let first = value.to_string();
    let mut terms: Vec<String> = Vec::new();
    let mut values: Vec<String> = Vec::new();
    fit.fit(1..=usize::MAX / 2, 0, |operations, _| {
        while terms.len() < operations {
            let number = rng.random_range(1..100_u32);
            let minus = value >= number && (value > HIGH || rng.random_bool(0.5));
            value = if minus { value - number } else { value + number };
            terms.push(format!(" {} {number}", if minus { '-' } else { '+' }));
            values.push(value.to_string());
        }
        Ok(put(Fields {
            context: format!("{first}{}", terms[..operations].concat()),
            answers: values[..operations].to_vec(),
            ..Fields::default()
        }))
    })
}
