//! Questions whose right answers are a list.

use crate::error::{Error, Result, io_error};
use crate::eval::demo_corpus::{CATEGORIES, Category, normalised};
use crate::manifest::sha256;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// A question and its answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Name in reports.
    pub id: String,
    /// What is asked, such as `Please show me some countries.`
    pub instruction: String,
    /// The answers in their usual spelling.
    pub answers: Vec<String>,
    /// Whether the list claims to be complete, so that what is not in it is wrong.
    pub complete: bool,
    /// Place in `answers` of every spelling, normalised.
    spellings: HashMap<String, usize>,
}

impl Question {
    /// A question from its parts; an empty list is refused.
    pub fn new(
        id: &str,
        instruction: &str,
        answers: Vec<String>,
        aliases: &BTreeMap<String, String>,
        complete: bool,
    ) -> Result<Self> {
        let fault = |what: String| Error::user(format!("the answer list `{id}` {what}"));
        let mut spellings = HashMap::new();
        for (at, answer) in answers.iter().enumerate() {
            let name = normalised(answer);
            if name.is_empty() {
                return Err(fault(format!("has an answer without letters and digits, `{answer}`"))
                    .help("take it out, or spell it in letters"));
            }
            spellings.entry(name).or_insert(at);
        }
        if answers.is_empty() {
            return Err(fault("is empty, so nothing could be right".into()).help("give it at least one answer"));
        }
        for (alias, answer) in aliases {
            let Some(&at) = spellings.get(&normalised(answer)) else {
                return Err(fault(format!(
                    "has the alias `{alias}` of `{answer}`, which is no answer of it"
                ))
                .help("add the answer, or name one that is there"));
            };
            spellings.entry(normalised(alias)).or_insert(at);
        }
        Ok(Self {
            id: id.to_owned(),
            instruction: instruction.to_owned(),
            answers,
            complete,
            spellings,
        })
    }

    /// A question without a list, for judges that need none.
    pub fn open(id: &str, instruction: &str) -> Self {
        Self {
            id: id.to_owned(),
            instruction: instruction.to_owned(),
            answers: Vec::new(),
            complete: false,
            spellings: HashMap::new(),
        }
    }

    /// Which answer `text` spells, whatever its case and punctuation.
    pub fn find(&self, text: &str) -> Option<usize> {
        let name = normalised(text);
        let without_article = name.strip_prefix("the").filter(|rest| !rest.is_empty());
        let found = self.spellings.get(&name);
        found.or_else(|| self.spellings.get(without_article?)).copied()
    }
}

/// Questions and what they were read from.
#[derive(Debug, Clone)]
pub struct Questions {
    /// The questions in their order.
    pub all: Vec<Question>,
    /// SHA-256 of all they say.
    pub sha256: String,
}

/// A question on disk: the form of `datasets/knowledge`, or one with its instruction written out.
#[derive(Debug, Deserialize)]
struct Record {
    id: String,
    #[serde(default)]
    category: Option<String>,
    #[serde(default)]
    instruction: Option<String>,
    answers: Vec<String>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    #[serde(default)]
    closed: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum File {
    One(Record),
    Many(Vec<Record>),
}

impl TryFrom<Record> for Question {
    type Error = Error;

    fn try_from(record: Record) -> Result<Self> {
        let instruction = match (&record.instruction, &record.category) {
            (Some(instruction), _) => instruction.clone(),
            (None, Some(category)) => format!("Please show me some {category}."),
            (None, None) => {
                return Err(Error::user(format!(
                    "the answer list `{}` has neither `instruction` nor `category`",
                    record.id
                ))
                .help("add one of them: a whole question, or what completes \"Please show me some ...\""));
            }
        };
        Self::new(&record.id, &instruction, record.answers, &record.aliases, record.closed)
    }
}

impl Questions {
    /// The lists of `datasets/knowledge`, which are part of the program.
    pub fn built_in() -> Result<Self> {
        let question = |category: &Category| {
            Question::new(
                &category.id,
                &category.instruction(),
                category.answers.clone(),
                &category.aliases,
                category.closed,
            )
        };
        Self::of(CATEGORIES.iter().map(question).collect::<Result<_>>()?)
    }

    /// Reads a JSON file (one list or several) or all `.json` files of a folder.
    pub fn read(path: &Path) -> Result<Self> {
        let mut files: Vec<PathBuf> = vec![path.to_owned()];
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|e| io_error("read", path, &e))?;
            files = entries
                .map(|entry| entry.map(|e| e.path()).map_err(|e| io_error("read", path, &e)))
                .collect::<Result<_>>()?;
            files.retain(|file| file.extension().is_some_and(|end| end == "json"));
            files.sort();
        }
        let mut all = Vec::new();
        for file in &files {
            let text = std::fs::read_to_string(file).map_err(|e| io_error("read", file, &e))?;
            let read: File = serde_json::from_str(&text).map_err(|e| {
                Error::user(format!("`{}` is no answer list: {e}", file.display())).help(
                    "write {\"id\": .., \"category\": \"fruits\", \"answers\": [..], \"aliases\": {..}} or a list of such",
                )
            })?;
            let records = match read {
                File::One(record) => vec![record],
                File::Many(records) => records,
            };
            for record in records {
                let question = Question::try_from(record).map_err(|e| e.note(format!("in `{}`", file.display())))?;
                all.push(question);
            }
        }
        if all.is_empty() {
            return Err(Error::user(format!("`{}` holds no answer list", path.display()))
                .help("name a JSON file with lists, or a folder of such files"));
        }
        Self::of(all)
    }

    fn of(all: Vec<Question>) -> Result<Self> {
        let mut seen = HashSet::new();
        for question in &all {
            if !seen.insert(&question.id) {
                return Err(Error::user(format!("two answer lists are named `{}`", question.id))
                    .help("give each an `id` of its own"));
            }
        }
        let say = |question: &Question| {
            // Debug quotes texts, so that no two sets of lists say the same.
            let mut spellings: Vec<_> = question.spellings.iter().collect();
            spellings.sort();
            format!("{:?} {:?} {spellings:?}\n", question.id, question.instruction)
        };
        let said: String = all.iter().map(say).collect();
        Ok(Self {
            sha256: sha256(said),
            all,
        })
    }

    /// Keeps the named ones, in the order of the lists; all for no names.
    pub fn choose(&mut self, names: &[String]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        if let Some(name) = names.iter().find(|name| self.all.iter().all(|q| q.id != **name)) {
            let known: Vec<&str> = self.all.iter().map(|q| q.id.as_str()).collect();
            return Err(Error::user(format!("`--categories {name}` is no answer list"))
                .help(format!("pass some of: {}", known.join(", "))));
        }
        self.all.retain(|question| names.contains(&question.id));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_lists_know_their_aliases() {
        let questions = Questions::built_in().expect("they are well formed");
        assert!(questions.all.len() >= 30);
        let countries = questions.all.iter().find(|q| q.id == "countries").expect("countries");
        assert!(countries.complete);
        let named = |text: &str| countries.find(text).map(|at| countries.answers[at].as_str());
        assert_eq!(named("the U.S.A."), Some("United States"));
        assert_eq!(named(" burma"), Some("Myanmar"));
        assert_eq!(named("Atlantis"), None);
        assert_eq!(named("the"), None);
    }

    #[test]
    fn lists_of_users_are_read_and_faults_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mine.json");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("a writable folder");
            Questions::read(&path)
        };
        let good =
            r#"[{"id": "a", "instruction": "Name a sea.", "answers": ["Red Sea"], "aliases": {"rs": "Red Sea"}}]"#;
        let questions = read(good).expect("reads");
        assert_eq!(
            (questions.all[0].find("RS"), questions.all[0].complete),
            (Some(0), false)
        );
        for (text, wanted) in [
            (r#"{"id": "a", "category": "x", "answers": []}"#, "is empty"),
            (
                r#"{"id": "a", "answers": ["x"]}"#,
                "neither `instruction` nor `category`",
            ),
            (
                r#"{"id": "a", "category": "x", "answers": ["x"], "aliases": {"y": "z"}}"#,
                "alias `y` of `z`",
            ),
            (r#"{"id": "a", "category": "x", "answers": ["!"]}"#, "without letters"),
            ("[]", "holds no answer list"),
            ("[1]", "is no answer list"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(wanted) && error.contains("help:"), "{error}");
        }
    }
}
