//! Final answers of word problems: the official extraction, the parsing of ICN's released code, and one without its faults.

use regex::Regex;
use std::sync::LazyLock;

fn regex(pattern: &str) -> Regex {
    // The patterns are constants, and every one runs in the tests.
    Regex::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"))
}

static GSM8K: LazyLock<Regex> = LazyLock::new(|| regex(r"#### (-?[0-9.,]+)"));
static DIGITS: LazyLock<Regex> = LazyLock::new(|| regex(r"[0-9]+"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    // Sign, perhaps a currency between it and the digits, digits with or without thousands separators, decimals.
    regex(r"([-\u{2212}]?)\s?[$\u{20ac}\u{a3}]?\s?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
});
static MARKED_CHOICE: LazyLock<Regex> = LazyLock::new(|| regex(r"\(([A-E])\)|\b([A-E])[).:]|\*\*([A-E])\*\*"));
static LONE_CHOICE: LazyLock<Regex> = LazyLock::new(|| regex(r"\b([B-E])\b|\b(A)\b(?:\s*$|\s*[,;\n])"));

/// The final answer of a GSM8K solution as its official script takes it: what follows `#### `, without commas. `None` is
/// the script's `[invalid]`.
pub fn gsm8k_gold(solution: &str) -> Option<String> {
    let found = GSM8K.captures(solution)?;
    Some(found[1].trim().replace(',', ""))
}

/// ICN's released parsing of a number: all groups of digits, run together (`3.5` is 35, `12 or 3` is 123). `None` if there
/// is no digit.
pub fn reference_number(text: &str) -> Option<String> {
    let digits: String = DIGITS.find_iter(text).map(|found| found.as_str()).collect();
    (!digits.is_empty()).then_some(digits)
}

/// ICN's released parsing of a choice: the first letter from A to E anywhere.
pub fn reference_choice(text: &str) -> Option<char> {
    text.chars().find(|letter| ('A'..='E').contains(letter))
}

/// The first number of `text`, or the first after the last equals sign: with sign, decimals and thousands separators, whatever
/// currency or unit stands by it.
pub fn number(text: &str) -> Option<f64> {
    let worked_out = text.rsplit_once('=').map(|(_, after)| after);
    worked_out.and_then(first_number).or_else(|| first_number(text))
}

fn first_number(text: &str) -> Option<f64> {
    let found = NUMBER.captures(text)?;
    let value: f64 = found[2].replace(',', "").parse().ok()?;
    // A hyphen that joins words or numbers (`covid-19`, `3-4`) is no sign.
    let sign = found.get(1).filter(|sign| !sign.as_str().is_empty());
    let is_sign = sign.is_some_and(|sign| {
        let before = text[..sign.start()].chars().next_back();
        !before.is_some_and(char::is_alphanumeric)
    });
    Some(if is_sign { -value } else { value })
}

/// Whether two answers are the same number.
pub fn same_number(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1.0)
}

/// The choice that `text` names: a letter marked as one (`(B)`, `B)`, `**B**`), else one that stands alone; an `A` that
/// more words follow is an article.
pub fn choice(text: &str) -> Option<char> {
    let found = MARKED_CHOICE.captures(text).or_else(|| LONE_CHOICE.captures(text))?;
    let letter = found.iter().skip(1).flatten().next()?;
    letter.as_str().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gsm8k_gold_is_what_follows_the_hashes() {
        for (solution, gold) in [
            ("so 9 * 2 = $<<9*2=18>>18.\n#### 18", Some("18")),
            ("#### 1,234,567", Some("1234567")),
            ("#### -5", Some("-5")),
            ("#### 2.50", Some("2.50")),
            ("#### 12 apples", Some("12")),
            ("####18", None),
            ("The answer is 18", None),
        ] {
            assert_eq!(gsm8k_gold(solution).as_deref(), gold, "{solution}");
        }
    }

    #[test]
    fn numbers_by_the_released_code_run_together() {
        for (text, found) in [
            ("12 or 3", Some("123")),
            ("3.5", Some("35")),
            ("-7", Some("7")),
            ("none", None),
        ] {
            assert_eq!(reference_number(text).as_deref(), found, "{text}");
        }
    }

    #[test]
    fn numbers_keep_signs_decimals_and_thousands() {
        for (text, found) in [
            ("12 or 3", Some(12.0)),
            ("3.5", Some(3.5)),
            ("-7", Some(-7.0)),
            ("\u{2212}7", Some(-7.0)),
            ("$1,234.50 in all", Some(1234.5)),
            ("-$5", Some(-5.0)),
            ("\u{20ac} 20", Some(20.0)),
            (" 15 apples", Some(15.0)),
            ("45%", Some(45.0)),
            (".5", Some(0.5)),
            ("12.", Some(12.0)),
            ("1,23", Some(1.0)),
            ("2 + 3 = 5", Some(5.0)),
            ("x = ", None),
            ("6 = six", Some(6.0)),
            ("3-4", Some(3.0)),
            ("day-2", Some(2.0)),
            ("10000", Some(10000.0)),
            ("no digit", None),
        ] {
            assert_eq!(number(text), found, "{text}");
        }
        assert!(same_number(18.0, 18.000_000_1) && !same_number(18.0, 18.1) && same_number(1e12, 1e12 + 1.0));
    }

    #[test]
    fn choices_by_both_parsers() {
        for (text, reference, corrected) in [
            ("(B)", Some('B'), Some('B')),
            ("C) 12", Some('C'), Some('C')),
            ("The answer is D", Some('D'), Some('D')),
            // The released code takes the A of the article and the E of an abbreviation.
            ("A car needs (C)", Some('A'), Some('C')),
            ("Each one: B", Some('E'), Some('B')),
            ("A", Some('A'), Some('A')),
            ("A, since", Some('A'), Some('A')),
            ("A man", Some('A'), None),
            ("**E**", Some('E'), Some('E')),
            ("none", None, None),
        ] {
            assert_eq!((reference_choice(text), choice(text)), (reference, corrected), "{text}");
        }
    }
}
