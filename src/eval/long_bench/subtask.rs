//! The tasks by name, with answer length and metric.

use crate::error::{Error, Result};
use crate::eval::Metric;
use crate::eval::scorers;
use std::fmt;
use std::str::FromStr;

/// An English task of `LongBench`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subtask {
    /// Questions on stories and film scripts.
    NarrativeQa,
    /// Questions on scientific articles.
    Qasper,
    /// Questions on texts of several kinds.
    MultifieldQaEn,
    /// Questions over several articles.
    HotpotQa,
    /// Questions over two articles (`2WikiMultihopQA`).
    TwoWikiMqa,
    /// Questions over up to four articles.
    Musique,
    /// Summaries of government reports.
    GovReport,
    /// Summaries of meetings, by query.
    Qmsum,
    /// Summaries of several news articles.
    MultiNews,
    /// Classes of questions, few-shot.
    Trec,
    /// Questions with evidence, few-shot.
    TriviaQa,
    /// Summaries of dialogues, few-shot.
    Samsum,
    /// How many different paragraphs there are.
    PassageCount,
    /// Which paragraph an abstract is of.
    PassageRetrievalEn,
    /// The next line of a file.
    Lcc,
    /// The next line with other files of the repository.
    RepobenchP,
}

const QA_F1: &[Metric] = &[metric("qa_f1")];
const ROUGE_L: &[Metric] = &[metric("rouge_l")];
const CLASSIFICATION: &[Metric] = &[metric("classification")];
const COUNT: &[Metric] = &[metric("count")];
const RETRIEVAL: &[Metric] = &[metric("retrieval")];
const CODE_SIMILARITY: &[Metric] = &[metric("code_similarity")];

const fn metric(name: &'static str) -> Metric {
    Metric {
        name,
        source: "LongBench, metrics.py",
    }
}

impl Subtask {
    /// All of them, in the order of Table 12.
    pub const ALL: [Self; 16] = [
        Self::NarrativeQa,
        Self::Qasper,
        Self::MultifieldQaEn,
        Self::HotpotQa,
        Self::TwoWikiMqa,
        Self::Musique,
        Self::GovReport,
        Self::Qmsum,
        Self::MultiNews,
        Self::Trec,
        Self::TriviaQa,
        Self::Samsum,
        Self::PassageCount,
        Self::PassageRetrievalEn,
        Self::Lcc,
        Self::RepobenchP,
    ];

    /// Name of the data file without `.jsonl`, and of the task on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::NarrativeQa => "narrativeqa",
            Self::Qasper => "qasper",
            Self::MultifieldQaEn => "multifieldqa_en",
            Self::HotpotQa => "hotpotqa",
            Self::TwoWikiMqa => "2wikimqa",
            Self::Musique => "musique",
            Self::GovReport => "gov_report",
            Self::Qmsum => "qmsum",
            Self::MultiNews => "multi_news",
            Self::Trec => "trec",
            Self::TriviaQa => "triviaqa",
            Self::Samsum => "samsum",
            Self::PassageCount => "passage_count",
            Self::PassageRetrievalEn => "passage_retrieval_en",
            Self::Lcc => "lcc",
            Self::RepobenchP => "repobench-p",
        }
    }

    /// What the data file may be called in a directory or data set: by itself, or in `data/` as the archive unpacks.
    pub fn data_files(self) -> Vec<String> {
        vec![format!("{self}.jsonl"), format!("data/{self}.jsonl")]
    }

    /// Tokens that an answer may take (dataset2maxlen.json).
    pub fn max_new_tokens(self) -> usize {
        match self {
            Self::GovReport | Self::Qmsum | Self::MultiNews => 512,
            Self::NarrativeQa | Self::Qasper | Self::Samsum => 128,
            Self::MultifieldQaEn | Self::Trec | Self::Lcc | Self::RepobenchP => 64,
            Self::HotpotQa
            | Self::TwoWikiMqa
            | Self::Musique
            | Self::TriviaQa
            | Self::PassageCount
            | Self::PassageRetrievalEn => 32,
        }
    }

    /// Whether only the first line of an answer counts: few-shot models go on with the next example.
    pub fn first_line_only(self) -> bool {
        matches!(self, Self::Trec | Self::TriviaQa | Self::Samsum)
    }

    /// Whether chat models get the prompt through their chat template.
    pub fn uses_chat_template(self) -> bool {
        !self.first_line_only() && !matches!(self, Self::Lcc | Self::RepobenchP)
    }

    /// The one metric.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::NarrativeQa
            | Self::Qasper
            | Self::MultifieldQaEn
            | Self::HotpotQa
            | Self::TwoWikiMqa
            | Self::Musique
            | Self::TriviaQa => QA_F1,
            Self::GovReport | Self::Qmsum | Self::MultiNews | Self::Samsum => ROUGE_L,
            Self::Trec => CLASSIFICATION,
            Self::PassageCount => COUNT,
            Self::PassageRetrievalEn => RETRIEVAL,
            Self::Lcc | Self::RepobenchP => CODE_SIMILARITY,
        }
    }

    /// The best score of `prediction` against any of `labels` (`scorer` of eval.py), 0 to 1. `classes` are the data set's
    /// `all_classes`.
    pub fn score(self, prediction: &str, labels: &[String], classes: &[String]) -> f64 {
        let prediction = if self.first_line_only() {
            let rest = prediction.trim_start_matches('\n');
            rest.split('\n').next().unwrap_or_default()
        } else {
            prediction
        };
        match self.metrics()[0].name {
            "qa_f1" => scorers::best_of(prediction, labels, scorers::qa_f1),
            "rouge_l" => scorers::best_of(prediction, labels, scorers::rouge_l),
            "classification" => scorers::best_of(prediction, labels, |prediction, label| {
                scorers::classification(prediction, label, classes)
            }),
            "count" => scorers::best_of(prediction, labels, scorers::count),
            "retrieval" => scorers::best_of(prediction, labels, scorers::retrieval),
            _ => scorers::best_of(prediction, labels, scorers::code_similarity),
        }
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
            .find(|subtask| subtask.name() == name)
            .ok_or_else(|| {
                let names: Vec<&str> = Self::ALL.iter().map(|subtask| subtask.name()).collect();
                Error::user(format!("`{name}` is no English task of LongBench"))
                    .help(format!("pass one of {}", names.join(", ")))
            })
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "0, 1 and simple fractions are exact")]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for subtask in Subtask::ALL {
            assert_eq!(subtask.name().parse::<Subtask>().unwrap(), subtask);
        }
        assert!("lsht".parse::<Subtask>().is_err());
    }

    #[test]
    fn few_shot_answers_end_with_their_first_line() {
        let labels = ["Paris".to_owned(), "the city of Paris".to_owned()];
        assert_eq!(Subtask::TriviaQa.score("\n\nParis\nQuestion: next", &labels, &[]), 1.0);
        assert!(Subtask::HotpotQa.score("\n\nParis\nQuestion: next", &labels, &[]) < 1.0);
        let classes = ["City".to_owned(), "State".to_owned()];
        assert_eq!(Subtask::Trec.score("City\nState", &classes[..1], &classes), 1.0);
    }
}
