//! Who says whether an answer is right.

mod command;
mod model;

pub use command::CommandJudge;
pub use model::ModelJudge;

use super::lists::Question;
use crate::error::Result;

/// What a judge says of one answer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// Whether it is right.
    pub correct: bool,
    /// The entry of the closed list that it spells; `None` without a list.
    pub member: Option<String>,
}

/// Says whether answers are right.
pub trait Judge {
    /// Judges `answer` to the instruction of `question`.
    fn verdict(&mut self, question: &Question, answer: &str) -> Result<Verdict>;

    /// Whether a verdict costs so much that it should be kept at once.
    fn is_costly(&self) -> bool {
        true
    }
}

/// Right is what the list has.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClosedList;

impl Judge for ClosedList {
    fn verdict(&mut self, question: &Question, answer: &str) -> Result<Verdict> {
        let member = question.find(answer).map(|at| question.answers[at].clone());
        Ok(Verdict {
            correct: member.is_some(),
            member,
        })
    }

    fn is_costly(&self) -> bool {
        false
    }
}

/// The question that is put to a model as judge (the wording of the paper's released notebook).
pub fn wording(instruction: &str, answer: &str) -> String {
    format!("{instruction}\n\nIs \"{answer}\" considered as among the correct answers? Answer only \"Yes\" or \"No\".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_closed_list_knows_members_and_aliases() {
        let aliases = BTreeMap::from([("ax".to_owned(), "axe".to_owned())]);
        let tools = Question::new(
            "tools",
            "Tools?",
            vec!["axe".into(), "tape measure".into()],
            &aliases,
            false,
        );
        let tools = tools.expect("well formed");
        let said = |text: &str| ClosedList.verdict(&tools, text).expect("a verdict");
        assert_eq!(said("Tape-Measure").member.as_deref(), Some("tape measure"));
        assert_eq!(said("AX").member.as_deref(), Some("axe"));
        assert!(!said("tape").correct && !said("").correct);
    }
}
