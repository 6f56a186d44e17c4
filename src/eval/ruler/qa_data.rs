//! Question files in the formats of `SQuAD` and `HotpotQA`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, io_error};

/// The questions of a file and every document once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QuestionSet {
    pub documents: Vec<String>,
    pub questions: Vec<Question>,
    pub sha256: String,
}

/// One question; documents are indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub query: String,
    pub answers: Vec<String>,
    /// Documents that hold the answer.
    pub gold: Vec<usize>,
    /// Documents that come first among the distractors: of the same article, or of the question's own context.
    pub related: Vec<usize>,
}

#[derive(Deserialize)]
struct SquadFile {
    data: Vec<SquadArticle>,
}

#[derive(Deserialize)]
struct SquadArticle {
    paragraphs: Vec<SquadParagraph>,
}

#[derive(Deserialize)]
struct SquadParagraph {
    context: String,
    qas: Vec<SquadQuestion>,
}

#[derive(Deserialize)]
struct SquadQuestion {
    question: String,
    #[serde(default)]
    answers: Vec<SquadAnswer>,
    /// Only in version 2 of the format.
    #[serde(default)]
    is_impossible: bool,
}

#[derive(Deserialize)]
struct SquadAnswer {
    text: String,
}

#[derive(Deserialize)]
struct HotpotQuestion {
    question: String,
    answer: String,
    /// Title and sentences.
    context: Vec<(String, Vec<String>)>,
    /// Title and sentence number; absent in the hidden test set.
    #[serde(default)]
    supporting_facts: Vec<(String, serde_json::Value)>,
}

/// Numbers the documents in the order of their text, as RULER does.
struct Documents(BTreeMap<String, usize>);

impl Documents {
    fn new(texts: impl Iterator<Item = String>) -> Self {
        let mut all: BTreeMap<String, usize> = texts.map(|text| (text, 0)).collect();
        for (number, value) in all.values_mut().enumerate() {
            *value = number;
        }
        Self(all)
    }
}

impl QuestionSet {
    /// Reads a file in the format of `SQuAD`, version 1.1 or 2.0.
    pub fn load_squad(path: &Path) -> Result<Self> {
        let (bytes, sha256) = read(path)?;
        let file: SquadFile = parse(
            path,
            &bytes,
            "SQuAD",
            "{\"data\": [{\"paragraphs\": [{\"context\", \"qas\"}]}]}",
        )?;
        let paragraphs = file.data.iter().flat_map(|article| &article.paragraphs);
        let documents = Documents::new(paragraphs.map(|p| p.context.clone()));
        let mut questions = Vec::new();
        for article in &file.data {
            let all: Vec<usize> = article.paragraphs.iter().map(|p| documents.0[&p.context]).collect();
            for (paragraph, &gold) in article.paragraphs.iter().zip(&all) {
                let related: Vec<usize> = all.iter().copied().filter(|&d| d != gold).collect();
                questions.extend(paragraph.qas.iter().filter(|q| !q.is_impossible).map(|q| Question {
                    query: q.question.clone(),
                    answers: q.answers.iter().map(|a| a.text.clone()).collect(),
                    gold: vec![gold],
                    related: related.clone(),
                }));
            }
        }
        Self::new(path, documents, questions, sha256)
    }

    /// Reads a file in the format of `HotpotQA`'s distractor setting.
    ///
    /// RULER always shows a question's ten paragraphs; here those with supporting facts, and the rest of them first among
    /// the distractors, so that short lengths can be asked for.
    pub fn load_hotpot_qa(path: &Path) -> Result<Self> {
        let (bytes, sha256) = read(path)?;
        let format = "[{\"question\", \"answer\", \"context\": [[title, [sentence]]], \"supporting_facts\"}]";
        let file: Vec<HotpotQuestion> = parse(path, &bytes, "HotpotQA", format)?;
        let text = |(title, sentences): &(String, Vec<String>)| format!("{title}\n{}", sentences.concat());
        let documents = Documents::new(file.iter().flat_map(|q| q.context.iter().map(text)));
        let questions = file
            .iter()
            .map(|q| {
                let needed = |title: &str| {
                    q.supporting_facts.is_empty() || q.supporting_facts.iter().any(|(needed, _)| needed == title)
                };
                let number = |paragraph| documents.0[&text(paragraph)];
                let (gold, related): (Vec<_>, Vec<_>) = q.context.iter().partition(|p| needed(&p.0));
                Question {
                    query: q.question.clone(),
                    answers: vec![q.answer.clone()],
                    gold: gold.into_iter().map(number).collect(),
                    related: related.into_iter().map(number).collect(),
                }
            })
            .collect();
        Self::new(path, documents, questions, sha256)
    }

    fn new(path: &Path, documents: Documents, mut questions: Vec<Question>, sha256: String) -> Result<Self> {
        // Without a document besides those that hold the answer, there is nothing to hide it among.
        questions.retain(|q| !q.answers.is_empty() && (1..documents.0.len()).contains(&q.gold.len()));
        if questions.is_empty() {
            return Err(Error::user(format!(
                "`{}` has {} answerable questions and {} documents",
                path.display(),
                questions.len(),
                documents.0.len()
            ))
            .help("give a file with an answerable question and a document that does not hold its answer"));
        }
        Ok(Self {
            documents: documents.0.into_keys().collect(),
            questions,
            sha256,
        })
    }
}

fn read(path: &Path) -> Result<(Vec<u8>, String)> {
    let bytes = std::fs::read(path).map_err(|e| io_error("read", path, &e))?;
    let sha256 = format!("{:x}", Sha256::digest(&bytes));
    Ok((bytes, sha256))
}

fn parse<'a, T: Deserialize<'a>>(path: &Path, bytes: &'a [u8], name: &str, format: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| {
        Error::user(format!("`{}` is not in the format of {name}: {e}", path.display()))
            .help(format!("give an unpacked JSON file: {format}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("questions.json");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn squad_knows_the_paragraphs_of_the_same_article() {
        let (_dir, path) = file(
            r#"{"data": [
                {"paragraphs": [
                    {"context": "C", "qas": [
                        {"question": "q1", "answers": [{"text": "a"}, {"text": "b"}]},
                        {"question": "q2", "answers": [], "is_impossible": true}]},
                    {"context": "A", "qas": []}]},
                {"paragraphs": [{"context": "B", "qas": []}, {"context": "C", "qas": []}]}]}"#,
        );
        let set = QuestionSet::load_squad(&path).unwrap();
        assert_eq!(set.documents, ["A", "B", "C"]);
        let only = Question {
            query: "q1".to_owned(),
            answers: vec!["a".to_owned(), "b".to_owned()],
            gold: vec![2],
            related: vec![0],
        };
        assert_eq!(set.questions, [only]);
    }

    #[test]
    fn hotpot_qa_separates_supporting_paragraphs() {
        let (_dir, path) = file(
            r#"[{"question": "q", "answer": "yes", "supporting_facts": [["T", 0]],
                "context": [["S", ["x."]], ["T", ["One. ", "Two."]]]}]"#,
        );
        let set = QuestionSet::load_hotpot_qa(&path).unwrap();
        assert_eq!(set.documents, ["S\nx.", "T\nOne. Two."]);
        assert_eq!(
            (&*set.questions[0].gold, &*set.questions[0].related),
            (&[1][..], &[0][..])
        );
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let (_dir, path) = file("[1, 2]");
        for error in [QuestionSet::load_squad(&path), QuestionSet::load_hotpot_qa(&path)] {
            let message = error.unwrap_err().to_string();
            assert!(message.contains("questions.json` is not in the format of"), "{message}");
        }
        let (_dir, path) = file(r#"[{"question": "q", "answer": "a", "context": [["T", ["x"]], ["U", ["y"]]]}]"#);
        let message = QuestionSet::load_hotpot_qa(&path).unwrap_err().to_string();
        assert!(message.contains("0 answerable questions and 2 documents"), "{message}");
        let (_dir, path) = file(r#"{"data": []}"#);
        let message = QuestionSet::load_squad(&path).unwrap_err().to_string();
        assert!(message.contains("0 answerable questions"), "{message}");
    }
}
