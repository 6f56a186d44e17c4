//! The twelve tasks by name.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A task of `InfiniteBench`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subtask {
    /// Find a five-digit number in filler text.
    Passkey,
    /// Find a ten-digit number with repeated digits in filler text.
    NumberString,
    /// Look up a key in a large JSON object.
    KvRetrieval,
    /// Summarise a novel.
    LongbookSumEng,
    /// Answer a question on a novel.
    LongbookQaEng,
    /// Answer a multiple-choice question on a novel.
    LongbookChoiceEng,
    /// Answer a question on a Chinese novel.
    LongbookQaChn,
    /// Name a masked speaker of a script.
    LongdialogueQaEng,
    /// Find the largest, smallest or median number of a list.
    MathFind,
    /// Compute all intermediate values of a long sum.
    MathCalc,
    /// Evaluate a chain of small functions.
    CodeRun,
    /// Find the broken function of a project.
    CodeDebug,
}

impl Subtask {
    /// All of them: the nine of the `TokenSelect` paper's Table 1 in its order, then the other three.
    pub const ALL: [Self; 12] = [
        Self::LongbookSumEng,
        Self::LongbookQaEng,
        Self::LongbookChoiceEng,
        Self::LongdialogueQaEng,
        Self::CodeDebug,
        Self::MathFind,
        Self::Passkey,
        Self::NumberString,
        Self::KvRetrieval,
        Self::LongbookQaChn,
        Self::CodeRun,
        Self::MathCalc,
    ];

    /// Name of the data file without `.jsonl`, and of the task on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passkey => "passkey",
            Self::NumberString => "number_string",
            Self::KvRetrieval => "kv_retrieval",
            Self::LongbookSumEng => "longbook_sum_eng",
            Self::LongbookQaEng => "longbook_qa_eng",
            Self::LongbookChoiceEng => "longbook_choice_eng",
            Self::LongbookQaChn => "longbook_qa_chn",
            Self::LongdialogueQaEng => "longdialogue_qa_eng",
            Self::MathFind => "math_find",
            Self::MathCalc => "math_calc",
            Self::CodeRun => "code_run",
            Self::CodeDebug => "code_debug",
        }
    }

    /// What the data file may be called in a directory or data set.
    pub fn data_files(self) -> Vec<String> {
        vec![format!("{self}.jsonl")]
    }

    /// Name in papers' tables, such as `R.PK`.
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Passkey => "R.PK",
            Self::NumberString => "R.Num",
            Self::KvRetrieval => "R.KV",
            Self::LongbookSumEng => "En.Sum",
            Self::LongbookQaEng => "En.QA",
            Self::LongbookChoiceEng => "En.MC",
            Self::LongbookQaChn => "Zh.QA",
            Self::LongdialogueQaEng => "En.Dia",
            Self::MathFind => "Math.F",
            Self::MathCalc => "Math.C",
            Self::CodeRun => "Code.R",
            Self::CodeDebug => "Code.D",
        }
    }

    /// Whether the question offers four options and the answer is a letter.
    pub fn has_options(self) -> bool {
        matches!(self, Self::LongbookChoiceEng | Self::CodeDebug)
    }
}

impl fmt::Display for Subtask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Subtask {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|subtask| subtask.name() == name || subtask.short_name().eq_ignore_ascii_case(name))
            .ok_or_else(|| {
                let names: Vec<&str> = Self::ALL.iter().map(|subtask| subtask.name()).collect();
                Error::user(format!("`{name}` is no task of InfiniteBench"))
                    .help(format!("pass one of {}", names.join(", ")))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for subtask in Subtask::ALL {
            assert_eq!(subtask.name().parse::<Subtask>().unwrap(), subtask);
            assert_eq!(subtask.short_name().to_lowercase().parse::<Subtask>().unwrap(), subtask);
        }
        assert!(
            "R.X"
                .parse::<Subtask>()
                .unwrap_err()
                .remedy()
                .unwrap()
                .contains("passkey")
        );
    }
}
