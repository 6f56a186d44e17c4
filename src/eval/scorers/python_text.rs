//! Text as Python's `str` and `re` see it, where Rust's own view differs.

use regex::Regex;
use std::sync::LazyLock;

/// Python's letters and numbers (general categories L and N) and the underscore. Rust's `is_alphanumeric` also takes
/// combining vowel signs and circled letters.
static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^[\p{L}\p{N}_]$").expect("a valid pattern"));
static DECIMAL: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\p{Nd}$").expect("a valid pattern"));

/// `str.isspace` of one character: Unicode's white space and the four separators U+001C to U+001F.
pub(crate) fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// `\w` of one character.
pub(crate) fn is_word(letter: char) -> bool {
    if letter.is_ascii() {
        letter.is_ascii_alphanumeric() || letter == '_'
    } else {
        WORD.is_match(letter.encode_utf8(&mut [0; 4]))
    }
}

/// `str.split()`.
pub(crate) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// `str.strip()`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `text` with each of `parts` replaced by a space, one after the other.
pub(crate) fn blank_out(text: &str, parts: &[&str]) -> String {
    parts.iter().fold(text.to_owned(), |text, part| text.replace(part, " "))
}

/// `text` with every run of blanks (U+0020 alone) made one.
pub(crate) fn single_blanks(text: &str) -> String {
    let mut single = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter != ' ' || !single.ends_with(' ') {
            single.push(letter);
        }
    }
    single
}

/// The value of a decimal digit of any script (`\d`).
pub(crate) fn digit(letter: char) -> Option<u8> {
    if letter.is_ascii() {
        return letter.to_digit(10).map(|value| value as u8);
    }
    let is_decimal = |letter: char| DECIMAL.is_match(letter.encode_utf8(&mut [0; 4]));
    if !is_decimal(letter) {
        return None;
    }
    // Unicode keeps each script's digits 0 to 9 together and in order; neighbouring sets are whole ones.
    let before = (1..=u32::from(letter))
        .take_while(|&back| char::from_u32(u32::from(letter) - back).is_some_and(is_decimal))
        .count();
    Some((before % 10) as u8)
}

/// The runs of decimal digits (`re.findall(r"\d+")`), as they are written.
pub(crate) fn digit_runs(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter| digit(letter).is_none())
        .filter(|run| !run.is_empty())
}

/// The number that `int(text)` makes, without leading zeros; `None` where it raises.
pub(crate) fn integer(text: &str) -> Option<String> {
    let text = strip(text);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut value = String::new();
    let mut after_digit = false;
    for letter in digits.chars() {
        if letter == '_' && after_digit {
            after_digit = false;
        } else {
            value.push(char::from(b'0' + digit(letter)?));
            after_digit = true;
        }
    }
    if !after_digit {
        return None;
    }
    let value = value.trim_start_matches('0');
    Some(match (value, negative) {
        ("", _) => "0".to_owned(),
        (value, true) => format!("-{value}"),
        (value, false) => value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_blanks_are_pythons() {
        assert!(is_word('é') && is_word('中') && is_word('²') && is_word('_'));
        // A combining accent, a vowel sign and a circled letter: alphabetic for Rust, no word for Python.
        assert!(!is_word('\u{301}') && !is_word('\u{93e}') && !is_word('\u{24b6}'));
        assert_eq!(
            split(" a\u{1c}b\u{a0}c\u{200b}").collect::<Vec<_>>(),
            ["a", "b", "c\u{200b}"]
        );
        assert_eq!(single_blanks("a   b \t c"), "a b \t c");
    }

    #[test]
    fn integers_are_those_that_python_reads() {
        for (text, value) in [
            ("007", "7"),
            ("-0", "0"),
            ("+1_000", "1000"),
            ("٣٤", "34"),
            ("-12", "-12"),
            ("𝟗", "9"),
        ] {
            assert_eq!(integer(text).as_deref(), Some(value), "{text}");
        }
        for text in ["", "-", "1__0", "_1", "1_", "1.0", "--1", "²"] {
            assert_eq!(integer(text), None, "{text}");
        }
    }
}
