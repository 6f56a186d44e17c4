//! Flags that take a number or `auto`.

use super::arguments::MOST_TOKENS;
use std::ops::RangeInclusive;

/// A value, or what the model and the text make of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct OrAuto<T>(pub Option<T>);

/// The value that a flag states; `None` where it is left out or `auto`.
pub(super) fn stated<T: Copy>(flag: Option<OrAuto<T>>) -> Option<T> {
    flag.and_then(|value| value.0)
}

/// Reads a factor or `auto`.
pub(super) fn factor(text: &str) -> Result<OrAuto<f32>, String> {
    match text {
        "auto" => Ok(OrAuto(None)),
        _ => text
            .parse()
            .map(|factor| OrAuto(Some(factor)))
            .map_err(|_| "pass a number such as 16, or `auto`".to_owned()),
    }
}

/// Reads a number of tokens or `auto`.
pub(super) fn tokens(text: &str) -> Result<OrAuto<usize>, String> {
    in_range(text, 0..=MOST_TOKENS)
}

/// Reads a number of tokens above 0 or `auto`.
pub(super) fn at_least_one(text: &str) -> Result<OrAuto<usize>, String> {
    in_range(text, 1..=MOST_TOKENS)
}

fn in_range(text: &str, range: RangeInclusive<u64>) -> Result<OrAuto<usize>, String> {
    if text == "auto" {
        return Ok(OrAuto(None));
    }
    let tokens: Option<u64> = text.parse().ok();
    tokens
        .filter(|tokens| range.contains(tokens))
        .map(|tokens| OrAuto(Some(tokens as usize)))
        .ok_or_else(|| format!("pass a number in {}..={}, or `auto`", range.start(), range.end()))
}
