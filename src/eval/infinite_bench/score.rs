//! Both scripts' judgement of an answer.

use super::Subtask;
use crate::eval::scorers::python_text::{blank_out, digit, integer, is_word, single_blanks, split, strip};
use crate::eval::scorers::{best_of, qa_f1, qa_f1_chinese, rouge_l_sum};

/// What the two scripts say, each 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// `compute_scores.py` of `InfiniteBench` (its newest version, which reads answers in lists).
    pub official: f64,
    /// `infinitebench_eval.py` of the `TokenSelect` repository.
    pub token_select: f64,
}

impl Scores {
    fn same(score: f64) -> Self {
        Self {
            official: score,
            token_select: score,
        }
    }

    fn of(official: bool, token_select: bool) -> Self {
        Self {
            official: f64::from(u8::from(official)),
            token_select: f64::from(u8::from(token_select)),
        }
    }
}

/// Scores `prediction`, the model's answer as it came.
///
/// `labels` are the data set's `answer`s as texts (a number as JSON writes it: `7` is an integer, `7.0` is not). With
/// `options` the first label is one of them and its letter follows from its place; a second label, where there is one, is
/// the letter. No label, or an answer on which a script stops with an exception, scores 0.
pub fn score(task: Subtask, prediction: &str, labels: &[String], options: &[String]) -> Scores {
    let Some(label) = labels.first() else {
        return Scores::same(0.0);
    };
    let exact = |right: bool| Scores::of(right, right);
    match task {
        Subtask::Passkey | Subtask::NumberString => exact(first_integer(prediction) == label),
        Subtask::KvRetrieval => exact(retrieval_words(prediction).iter().any(|word| word == label)),
        Subtask::LongbookSumEng => Scores::same(best_of(prediction, labels, rouge_l_sum)),
        Subtask::LongbookQaEng => Scores::same(best_of(prediction, labels, qa_f1)),
        Subtask::LongbookQaChn => Scores::same(best_of(prediction, labels, qa_f1_chinese)),
        Subtask::LongbookChoiceEng => {
            let labels = with_letter(labels, options);
            let official = choice(strip(prediction), &labels);
            let last = last_lone_letter(strip(prediction), 'D');
            let named = last.is_some_and(|letter| is_label(&labels, letter));
            Scores::of(official, named || official)
        }
        Subtask::LongdialogueQaEng => {
            let said = prediction.to_uppercase();
            let words = retrieval_words(strip(prediction));
            Scores::of(
                words.iter().any(|word| word.to_uppercase() == *label),
                labels.iter().any(|name| said.contains(&name.to_uppercase())),
            )
        }
        Subtask::MathFind => exact(number_found(prediction, label)),
        Subtask::MathCalc => Scores::same(leading_values(prediction, labels)),
        Subtask::CodeRun => exact(last_integer(prediction).is_some_and(|value| Some(value) == integer(label))),
        Subtask::CodeDebug => code_debug(strip(prediction), &with_letter(labels, options)),
    }
}

/// The first run of ASCII digits; empty without one.
fn first_integer(prediction: &str) -> &str {
    prediction
        .split(|letter: char| !letter.is_ascii_digit())
        .find(|run| !run.is_empty())
        .unwrap_or_default()
}

fn retrieval_words(prediction: &str) -> Vec<String> {
    let bare = blank_out(prediction, &["\n", ":", "\"", "'", ".", ",", "?", "!", "{", "}"]);
    split(&bare).map(str::to_owned).collect()
}

/// The labels of a multiple-choice question: the option's text and its letter.
fn with_letter(labels: &[String], options: &[String]) -> Vec<String> {
    let mut labels = labels.to_vec();
    if let [label] = labels.as_slice()
        && let Some(letter) = options.iter().position(|option| option == label).and_then(letter_of)
    {
        labels.push(letter.to_string());
    }
    labels
}

/// A for 0, B for 1, ...
pub(super) fn letter_of(place: usize) -> Option<char> {
    ('A'..='Z').nth(place)
}

fn is_label(labels: &[String], letter: char) -> bool {
    labels.iter().any(|label| label.chars().eq([letter]))
}

/// The last stand-alone letter A to `highest` of the first line that has one: `\b[A-J]\b(?!.*\b[A-J]\b)`, whose dot ends
/// with the line.
fn last_lone_letter(prediction: &str, highest: char) -> Option<char> {
    prediction.split('\n').find_map(|line| {
        let letters: Vec<char> = line.chars().collect();
        let lone = |at: usize| {
            let joined = |other: Option<usize>| other.and_then(|at| letters.get(at)).is_some_and(|&c| is_word(c));
            ('A'..=highest).contains(&letters[at]) && !joined(at.checked_sub(1)) && !joined(Some(at + 1))
        };
        (0..letters.len()).rev().find(|&at| lone(at)).map(|at| letters[at])
    })
}

/// What follows the first of `prefixes` that occurs, one character skipped; empty where nothing follows.
fn after_prefix<'a>(text: &'a str, prefixes: &[&str]) -> Option<&'a str> {
    let rest = prefixes
        .iter()
        .find_map(|prefix| text.split_once(prefix).map(|(_, rest)| rest))?;
    let mut letters = rest.chars();
    letters.next();
    Some(letters.as_str())
}

fn starts_with_label(text: &str, labels: &[String]) -> bool {
    labels.iter().any(|label| text.starts_with(label.as_str()))
}

/// En.MC: the first letter, or what follows an "answer is", or the first word made of A to D.
fn choice(prediction: &str, labels: &[String]) -> bool {
    match prediction.chars().next() {
        None => return false,
        Some(letter) if ('A'..='D').contains(&letter) => return is_label(labels, letter),
        Some(_) => {}
    }
    if labels.iter().any(|label| label == prediction) {
        return true;
    }
    let bare = single_blanks(&blank_out(prediction, &["\n", "\"", "'", ".", ",", "?", "!", "{", "}"]));
    if let Some(rest) = after_prefix(&bare, &["answer is:", "answer:", "answer is", "option is"]) {
        return starts_with_label(rest, labels);
    }
    // A part of "ABCD", as the scripts ask for it: "BC" ends the search, and is no label.
    let word = split(&bare).find(|word| "ABCD".contains(word));
    word.is_some_and(|word| labels.iter().any(|label| label == word))
}

fn code_debug(prediction: &str, labels: &[String]) -> Scores {
    let [function, letter, ..] = labels else {
        return Scores::same(0.0);
    };
    let bare = single_blanks(&blank_out(
        prediction,
        &["\n", "`", "'", "\"", "-", "*", "Option", "option"],
    ));
    let named = after_prefix(&bare, &["answer is:", "is:", "answer:", "correct option is:"])
        .is_some_and(|rest| rest.starts_with(letter.as_str()) || rest.starts_with(function.as_str()));
    let opens = prediction
        .strip_prefix(letter.as_str())
        .is_some_and(|rest| rest.starts_with(['.', ':']));
    let lone = last_lone_letter(prediction, 'J').is_some_and(|last| letter.chars().eq([last]));
    let begins = bare.starts_with(letter.as_str()) || bare.starts_with(function.as_str());
    Scores::of(opens || named, lone || begins || named)
}

/// Math.Find: the first number of the answer is the label. For an integer label a decimal fraction in the answer stops
/// the scripts, so it scores 0.
fn number_found(prediction: &str, label: &str) -> bool {
    let Some(found) = first_number(prediction) else {
        return false;
    };
    match integer(label) {
        Some(label) => integer(&found).is_some_and(|value| value == label),
        None => match (found.parse::<f64>(), label.parse::<f64>()) {
            (Ok(found), Ok(label)) => found.total_cmp(&label).is_eq(),
            _ => false,
        },
    }
}

/// The first match of `\d+\.\d+|\d+`, in ASCII digits.
fn first_number(text: &str) -> Option<String> {
    let mut letters = text.chars().skip_while(|&letter| digit(letter).is_none()).peekable();
    let mut number = String::new();
    let mut digits = |number: &mut String| {
        let before = number.len();
        while let Some(value) = letters.peek().copied().and_then(digit) {
            number.push(char::from(b'0' + value));
            letters.next();
        }
        (number.len() > before, letters.next_if_eq(&'.').is_some())
    };
    let (found, point) = digits(&mut number);
    if found && point {
        let whole = number.len();
        number.push('.');
        if !digits(&mut number).0 {
            number.truncate(whole);
        }
    }
    found.then_some(number)
}

/// Code.Run: the last word as an integer.
fn last_integer(prediction: &str) -> Option<String> {
    let bare = blank_out(strip(prediction), &["\n", ".", "`", "'", "\"", ":"]);
    integer(split(&bare).last()?)
}

/// Math.Calc: the share of values that are right before the first wrong one. Signs are lost on the way, as in the
/// scripts, so a negative value counts as wrong.
fn leading_values(prediction: &str, labels: &[String]) -> f64 {
    let values = prediction
        .split(|letter: char| !letter.is_ascii_digit())
        .filter(|run| !run.is_empty())
        .map(integer);
    let right = labels
        .iter()
        .map(|label| integer(label))
        .zip(values)
        .take_while(|(label, value)| label == value)
        .count();
    right as f64 / labels.len() as f64
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "0, 1 and simple fractions are exact")]
mod tests {
    use super::*;

    fn check(task: Subtask, prediction: &str, labels: &[&str], options: &[&str], expected: (f64, f64)) {
        let own = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let scores = score(task, prediction, &own(labels), &own(options));
        assert_eq!(
            (scores.official, scores.token_select),
            expected,
            "{task}: {prediction:?}"
        );
    }

    #[test]
    fn retrieval_and_numbers() {
        check(Subtask::Passkey, "The pass key is 71432.", &["71432"], &[], (1.0, 1.0));
        check(Subtask::Passkey, "071432", &["71432"], &[], (0.0, 0.0));
        check(Subtask::KvRetrieval, "{\"v\"}.", &["v"], &[], (1.0, 1.0));
        check(Subtask::CodeRun, "it is: -7.", &["-7"], &[], (1.0, 1.0));
        check(Subtask::MathFind, "07 or 8", &["7"], &[], (1.0, 1.0));
        check(Subtask::MathFind, "7.0", &["7"], &[], (0.0, 0.0));
        check(Subtask::MathFind, "7", &["7.0"], &[], (1.0, 1.0));
        check(Subtask::MathFind, "7.", &["7"], &[], (1.0, 1.0));
        check(Subtask::MathCalc, "[1, 2, 4]", &["1", "2", "3", "4"], &[], (0.5, 0.5));
        check(Subtask::MathCalc, "-3", &["-3"], &[], (0.0, 0.0));
        check(Subtask::Passkey, "1", &[], &[], (0.0, 0.0));
    }

    #[test]
    fn the_looser_script_takes_a_letter_anywhere() {
        let options = ["f", "g", "h", "i"];
        check(Subtask::CodeDebug, "B.", &["g"], &options, (1.0, 1.0));
        check(Subtask::CodeDebug, "So B, I think", &["g"], &options, (0.0, 0.0));
        check(Subtask::CodeDebug, "It must be B", &["g"], &options, (0.0, 1.0));
        check(Subtask::CodeDebug, "B", &["g", "B"], &[], (0.0, 1.0));
        check(Subtask::CodeDebug, "The answer is: g", &["g"], &options, (1.0, 1.0));
        check(Subtask::LongbookChoiceEng, "C, not B", &["g"], &options, (0.0, 1.0));
        check(
            Subtask::LongbookChoiceEng,
            "Surely B and C",
            &["g"],
            &options,
            (1.0, 1.0),
        );
        check(Subtask::LongdialogueQaEng, "it is JOHN's", &["JOHN"], &[], (1.0, 1.0));
        check(Subtask::LongdialogueQaEng, "JOHNSON", &["JOHN"], &[], (0.0, 1.0));
    }
}
