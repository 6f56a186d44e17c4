//! Code.Run.

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use super::Fields;
use crate::error::Result;
use crate::eval::ruler::fit::{Draft, Frame};
use crate::eval::ruler::haystack::noise_lines;
use crate::eval::ruler::place::Place;

/// A Python function that adds a constant to its argument or to what another function makes of it.
struct Function {
    name: String,
    calls: Option<String>,
    adds: i64,
}

impl Function {
    fn text(&self) -> String {
        let inner = self
            .calls
            .as_ref()
            .map_or_else(|| "x".to_owned(), |callee| format!("{callee}(x)"));
        let sign = if self.adds < 0 { '-' } else { '+' };
        format!("def {}(x):\n    return {inner} {sign} {}\n", self.name, self.adds.abs())
    }
}

/// The result of a function that calls others, 2 to 10 of them in a row, scattered over a file of such functions.
pub(super) fn run(place: &Place<'_>, fit: &Frame<'_>, put: impl Fn(Fields) -> Draft) -> Result<Draft> {
    const FEWEST_CALLS: usize = 2;
    const CALLS: usize = 9;
    let mut rng = place.rng("chain");
    let mut taken = BTreeSet::new();
    let mut numbers = 10_000;
    let mut name = |rng: &mut ChaCha8Rng| {
        loop {
            let number = rng.random_range(0..numbers);
            if taken.insert(number) {
                return format!("func_{number}");
            }
            // The names in use are no longer few.
            numbers += 100;
        }
    };
    let adds = |rng: &mut ChaCha8Rng| rng.random_range(-10..=10_i64);
    let mut chain: Vec<Function> = Vec::new();
    for _ in 0..=FEWEST_CALLS + place.index() % CALLS {
        chain.push(Function {
            name: name(&mut rng),
            calls: chain.last().map(|callee| callee.name.clone()),
            adds: adds(&mut rng),
        });
    }
    let argument = adds(&mut rng);
    let result = argument + chain.iter().map(|f| f.adds).sum::<i64>();
    let asked = chain[chain.len() - 1].name.clone();
    let call = format!("{asked}({argument})");

    let mut other_rng = place.rng("others");
    let mut others: Vec<Function> = Vec::new();
    let places = place.rng("places");
    fit.fit(0..=usize::MAX / 2, 20, |count, filler| {
        while others.len() < count {
            let calls = (!others.is_empty() && other_rng.random_bool(0.8))
                .then(|| others[other_rng.random_range(0..others.len())].name.clone());
            others.push(Function {
                name: name(&mut other_rng),
                calls,
                adds: adds(&mut other_rng),
            });
        }
        let all = count + chain.len();
        let mut at = vec![None; all];
        for (function, place) in index::sample(&mut places.clone(), all, chain.len()).iter().enumerate() {
            at[place] = Some(function);
        }
        let mut rest = others[..count].iter();
        let mut parts: Vec<String> = at
            .iter()
            .filter_map(|place| place.map(|i| &chain[i]).or_else(|| rest.next()))
            .map(Function::text)
            .collect();
        parts.extend(noise_lines(filler).iter().map(|line| format!("# {line}\n")));
        Ok(put(Fields {
            context: parts.join("\n"),
            input: format!("Please give me the exact number of the return value of {call}."),
            answers: vec![result.to_string()],
            func: asked.clone(),
            func_call: call.clone(),
            ..Fields::default()
        }))
    })
}
