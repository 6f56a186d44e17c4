//! What a list of answers is worth.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// An answer in a sample file, where there are very many: the fields of [`Answer`] in their order.
type Compact = (usize, u32, String, usize, bool, Option<String>, Option<String>);

/// One judged answer of an exploration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Compact", into = "Compact")]
pub struct Answer {
    /// Round in which it was asked for, from 0.
    pub round: usize,
    /// Id of its first token.
    pub first_id: u32,
    /// Text of it.
    pub first: String,
    /// Tokens that were generated for it.
    pub tokens: usize,
    /// Whether it is right.
    pub correct: bool,
    /// The answer; null if the quote was never closed.
    pub text: Option<String>,
    /// The entry of the list that it spells, where that is spelled otherwise.
    pub member: Option<String>,
}

impl From<Compact> for Answer {
    fn from((round, first_id, first, tokens, correct, text, member): Compact) -> Self {
        Self {
            round,
            first_id,
            first,
            tokens,
            correct,
            text,
            member,
        }
    }
}

impl From<Answer> for Compact {
    fn from(a: Answer) -> Self {
        (a.round, a.first_id, a.first, a.tokens, a.correct, a.text, a.member)
    }
}

/// Scores of one exploration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Share of right answers, repeated ones included.
    pub precision: f64,
    /// Share of the list that was found. Under another judge than the list: distinct right answers over its size.
    pub recall: f64,
    /// The same of what as many answers could find at most.
    pub recall_of_reachable: f64,
    /// Share of answers that name something no earlier one has named, right or wrong.
    pub distinct: f64,
    /// Share of answers that are right and name what no earlier one has named.
    pub new_and_right: f64,
    /// Mean of precision@1 to precision@10: what the released code calls MAP.
    pub map_at_10: f64,
    /// Share of answers whose quote was never closed.
    pub unclosed: f64,
}

/// Mean of precision@1..=k; fewer than `k` answers are counted as they are, with k lowered.
pub fn mean_precision(correct: &[bool], k: usize) -> f64 {
    let k = k.min(correct.len());
    if k == 0 {
        return 0.0;
    }
    let mut right = 0.0;
    let mut sum = 0.0;
    for (at, &correct) in correct[..k].iter().enumerate() {
        right += f64::from(u8::from(correct));
        sum += right / (at + 1) as f64;
    }
    sum / k as f64
}

/// How a name is compared with others: the list's spelling, else letters and digits.
fn identity(answer: &Answer) -> Option<String> {
    let text = answer.text.as_deref()?;
    Some(crate::eval::demo_corpus::normalised(
        answer.member.as_deref().unwrap_or(text),
    ))
}

/// The first of `answers`, as many as fit into `budget` tokens.
pub fn within(answers: &[Answer], budget: usize) -> &[Answer] {
    let mut spent = 0;
    let fitting = answers.iter().take_while(|answer| {
        spent += answer.tokens;
        spent <= budget
    });
    &answers[..fitting.count()]
}

impl Scores {
    /// Scores of `answers` to a list of `size` members.
    pub fn of(answers: &[Answer], size: usize) -> Self {
        let n = answers.len().max(1) as f64;
        let mut named = BTreeSet::new();
        let mut found = BTreeSet::new();
        for answer in answers {
            let name = identity(answer);
            if answer.correct {
                found.extend(name.clone());
            }
            named.extend(name);
        }
        let correct: Vec<bool> = answers.iter().map(|answer| answer.correct).collect();
        let count = |of: fn(&Answer) -> bool| answers.iter().filter(|a| of(a)).count() as f64;
        Self {
            precision: count(|a| a.correct) / n,
            recall: found.len() as f64 / size.max(1) as f64,
            recall_of_reachable: found.len() as f64 / size.min(answers.len()).max(1) as f64,
            distinct: named.len() as f64 / n,
            new_and_right: found.len() as f64 / n,
            map_at_10: mean_precision(&correct, 10),
            unclosed: count(|a| a.text.is_none()) / n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: Option<&str>, member: Option<&str>, tokens: usize) -> Answer {
        Answer {
            round: 0,
            first: String::new(),
            first_id: 0,
            text: text.map(str::to_owned),
            tokens,
            correct: member.is_some(),
            member: member.filter(|m| Some(*m) != text).map(str::to_owned),
        }
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "worked by hand in binary fractions")]
    fn five_answers_scored_by_hand() {
        let answers = [
            answer(Some("USA"), Some("United States"), 3),
            answer(Some("Atlantis"), None, 4),
            answer(Some("United States"), Some("United States"), 2),
            answer(None, None, 64),
            answer(Some("Peru"), Some("Peru"), 2),
            answer(Some("atlantis!"), None, 5),
            answer(Some("Chile"), Some("Chile"), 2),
            answer(Some("Chad"), Some("Chad"), 2),
        ];
        let scores = Scores::of(&answers, 16);
        assert_eq!(scores.precision, 0.625);
        assert_eq!(scores.recall, 0.25);
        assert_eq!(scores.recall_of_reachable, 0.5);
        // United States, Atlantis, Peru, Chile, Chad.
        assert_eq!(scores.distinct, 0.625);
        assert_eq!(scores.new_and_right, 0.5);
        assert_eq!(scores.unclosed, 0.125);
        // Tokens 3, 7, 9, 73, 75, ...: 74 buy the first four answers, one member of 16.
        for (budget, bought, recall, precision) in [
            (74, 4, 1.0 / 16.0, 0.5),
            (75, 5, 2.0 / 16.0, 0.6),
            (2, 0, 0.0, 0.0),
            (1000, 8, 0.25, 0.625),
        ] {
            let fitting = within(&answers, budget);
            let scores = Scores::of(fitting, 16);
            assert_eq!(
                (fitting.len(), scores.recall, scores.precision),
                (bought, recall, precision)
            );
        }
    }

    #[test]
    fn the_mean_of_precisions_by_hand() {
        // 1, 1/2, 2/3, 2/4: mean 2.6667 / 4.
        let value = mean_precision(&[true, false, true, false], 10);
        assert!((value - (1.0 + 0.5 + 2.0 / 3.0 + 0.5) / 4.0).abs() < 1e-12);
        assert!((mean_precision(&[true, false, true, false], 2) - 0.75).abs() < 1e-12);
        assert!(mean_precision(&[], 10).abs() < 1e-12);
    }
}
