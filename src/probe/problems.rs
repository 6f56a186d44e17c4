//! Word problems: GSM8K, SVAMP and `AQuA` in their public files, and templated arithmetic from a seed.

use super::answers;
use super::answers::{gsm8k_gold, same_number};
use crate::error::{Error, Result, io_error};
use crate::eval::demo_corpus::{Level, word_problem};
use crate::manifest::sha256;
use crate::random::stream_rng;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::Path;

/// Where problems come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ProblemSet {
    /// Word problems made from the seed, of the kinds that the demo model has seen
    Templated,
    /// GSM8K (arXiv 2110.14168): JSONL with `question` and `answer`
    Gsm8k,
    /// SVAMP (arXiv 2103.07191): JSON with `Body`, `Question` and `Answer`
    Svamp,
    /// AQuA-RAT (arXiv 1705.04146): JSONL with `question`, `options` and `correct`
    Aqua,
}

/// The right answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Gold {
    /// A number, as the data write it and as a value.
    Number(String, f64),
    /// One of A to E.
    Choice(char),
}

/// One word problem.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Place in the data.
    pub id: String,
    /// The question, with its options if it has some.
    pub question: String,
    /// The right answer.
    pub gold: Gold,
    /// How hard it is, of problems made here.
    pub level: Option<Level>,
}

/// An answer as one of the two parsers reads it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Parsed {
    /// What was read; null if nothing.
    pub value: Option<String>,
    /// Whether it is right.
    pub correct: bool,
}

impl Problem {
    /// What ICN's released code reads in `text`, compared as it compares.
    pub fn read_as_released(&self, text: &str) -> Parsed {
        let (value, gold) = match &self.gold {
            Gold::Number(gold, _) => (answers::reference_number(text), gold.clone()),
            Gold::Choice(gold) => (answers::reference_choice(text).map(String::from), gold.to_string()),
        };
        Parsed {
            correct: value.as_deref() == Some(gold.as_str()),
            value,
        }
    }

    /// What the corrected parser reads in `text`, numbers compared as numbers.
    pub fn read(&self, text: &str) -> Parsed {
        match &self.gold {
            Gold::Number(_, gold) => {
                let value = answers::number(text);
                Parsed {
                    correct: value.is_some_and(|value| same_number(value, *gold)),
                    value: value.map(|value| value.to_string()),
                }
            }
            Gold::Choice(gold) => {
                let value = answers::choice(text);
                Parsed {
                    correct: value == Some(*gold),
                    value: value.map(String::from),
                }
            }
        }
    }
}

/// Problems and what they were read from.
#[derive(Debug, Clone)]
pub struct Problems {
    /// In their order.
    pub all: Vec<Problem>,
    /// SHA-256 of the file; `None` for made ones.
    pub sha256: Option<String>,
}

/// A row of a data file, for errors that name it.
struct Row<'a> {
    path: &'a Path,
    number: usize,
    fields: Map<String, Value>,
}

impl Row<'_> {
    fn fault(&self, key: &str, what: &str) -> Error {
        Error::user(format!(
            "`{}`, row {}: key `{key}` {what}",
            self.path.display(),
            self.number
        ))
        .help("name the data set's own file, and its name with `--set-name`")
    }

    fn text(&self, key: &str) -> Result<&str> {
        let value = self.fields.get(key).ok_or_else(|| self.fault(key, "is missing"))?;
        value.as_str().ok_or_else(|| self.fault(key, "is no text"))
    }

    fn problem(&self, set: ProblemSet) -> Result<Problem> {
        let (question, gold) = match set {
            ProblemSet::Gsm8k | ProblemSet::Templated => {
                let gold = gsm8k_gold(self.text("answer")?);
                let gold = gold.ok_or_else(|| self.fault("answer", "has no `#### ` with a number"))?;
                let value = gold.parse().map_err(|_| self.fault("answer", "ends in no number"))?;
                // As the data write it, commas and all: the released code compares that.
                let written = self
                    .text("answer")?
                    .rsplit("### ")
                    .next()
                    .unwrap_or(&gold)
                    .trim()
                    .to_owned();
                (self.text("question")?.to_owned(), Gold::Number(written, value))
            }
            ProblemSet::Svamp => {
                let value = self.fields.get("Answer").and_then(number_of);
                let value = value.ok_or_else(|| self.fault("Answer", "is no number"))?;
                let body = self.text("Body")?.trim();
                let stop = if body.ends_with(['.', '?', '!']) { "" } else { "." };
                let question = format!("{body}{stop} {}", self.text("Question")?.trim());
                (question, Gold::Number(value.to_string(), value))
            }
            ProblemSet::Aqua => {
                let options = self.fields.get("options").and_then(Value::as_array);
                let options = options.ok_or_else(|| self.fault("options", "is no list"))?;
                let options: Vec<String> = options
                    .iter()
                    .filter_map(Value::as_str)
                    // `A)5` is written `A. 5`, as in the released code.
                    .map(|option| match option.split_once(')') {
                        Some((letter, text)) if letter.len() == 1 => format!("{letter}. {text}"),
                        _ => option.to_owned(),
                    })
                    .collect();
                let correct = self.text("correct")?.trim();
                let gold = correct
                    .chars()
                    .next()
                    .filter(|c| ('A'..='E').contains(c) && correct.len() == 1);
                let gold = gold.ok_or_else(|| self.fault("correct", "is none of A to E"))?;
                let question = format!("Question: {}\n{}", self.text("question")?, options.join("\n"));
                (question, Gold::Choice(gold))
            }
        };
        Ok(Problem {
            id: format!("{:05}", self.number - 1),
            question,
            gold,
            level: None,
        })
    }
}

fn number_of(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())
}

impl Problems {
    /// `count` problems from the seed, of the given levels in turn.
    pub fn templated(count: usize, levels: &[Level], seed: u64) -> Self {
        let one = |(index, &level): (usize, &Level)| {
            let (question, answer) = word_problem(&mut stream_rng(seed, &format!("reason/{index}")), level);
            Problem {
                id: format!("{index:05}"),
                question,
                gold: Gold::Number(answer.to_string(), answer as f64),
                level: Some(level),
            }
        };
        let levels = levels.iter().cycle().take(count);
        Self {
            all: levels.enumerate().map(one).collect(),
            sha256: None,
        }
    }

    /// The levels there are, easiest first.
    pub fn levels(&self) -> Vec<Level> {
        let levels: BTreeSet<Level> = self.all.iter().filter_map(|problem| problem.level).collect();
        levels.into_iter().collect()
    }

    /// Reads a file of `set`: one JSON object a line, or one list of them.
    pub fn read(set: ProblemSet, path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| io_error("read", path, &e))?;
        let broken = |number: usize, what: &str| {
            Error::user(format!("`{}`, row {number}: {what}", path.display()))
                .help("name a file of JSON objects, one a line, or of one JSON list")
        };
        let rows: Vec<Value> = if text.trim_start().starts_with('[') {
            serde_json::from_str(&text).map_err(|e| broken(0, &e.to_string()))?
        } else {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let row =
                |(at, line): (usize, &str)| serde_json::from_str(line).map_err(|e| broken(at + 1, &e.to_string()));
            lines.map(row).collect::<Result<_>>()?
        };
        let mut all = Vec::with_capacity(rows.len());
        for (number, row) in (1..).zip(rows) {
            let Value::Object(fields) = row else {
                return Err(broken(number, "is no JSON object"));
            };
            all.push(Row { path, number, fields }.problem(set)?);
        }
        if all.is_empty() {
            return Err(Error::user(format!("`{}` holds no problems", path.display()))
                .help("name a file of JSON objects, one a line, or of one JSON list"));
        }
        Ok(Self {
            all,
            sha256: Some(sha256(text)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: ProblemSet, text: &str) -> Result<Problems> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("data.json");
        std::fs::write(&path, text).expect("a writable folder");
        Problems::read(set, &path)
    }

    #[test]
    fn each_set_is_read_in_its_public_form() {
        let gsm8k = r#"{"question": "How many?", "answer": "Much.\n#### 1,250"}"#;
        let gsm8k = read(ProblemSet::Gsm8k, gsm8k).expect("reads");
        assert_eq!(gsm8k.all[0].gold, Gold::Number("1,250".into(), 1250.0));
        let svamp = r#"[{"Body": "Dan had $ 3 left", "Question": "How much?", "Answer": 1.0}]"#;
        let svamp = read(ProblemSet::Svamp, svamp).expect("reads");
        assert_eq!(svamp.all[0].question, "Dan had $ 3 left. How much?");
        assert_eq!(svamp.all[0].gold, Gold::Number("1".into(), 1.0));
        let aqua = r#"{"question": "x?", "options": ["A)5", "B)6"], "correct": "B"}"#;
        let aqua = read(ProblemSet::Aqua, aqua).expect("reads");
        assert_eq!(aqua.all[0].question, "Question: x?\nA. 5\nB. 6");
        assert_eq!(aqua.all[0].gold, Gold::Choice('B'));
    }

    #[test]
    fn the_released_comparison_cannot_match_a_comma_and_the_corrected_one_can() {
        let problem = read(ProblemSet::Gsm8k, "{\"question\": \"?\", \"answer\": \"#### 1,250\"}").expect("reads");
        let problem = &problem.all[0];
        for text in ["1,250", "1250", "$1,250.00"] {
            assert!(
                !problem.read_as_released(text).correct && problem.read(text).correct,
                "{text}"
            );
        }
        let small = Problem {
            gold: Gold::Number("18".into(), 18.0),
            ..problem.clone()
        };
        assert!(small.read_as_released("18 dollars").correct && small.read("18 dollars").correct);
        // 18.0 runs together to 180.
        assert!(!small.read_as_released("18.0").correct && small.read("18.0").correct);
        assert!(!small.read_as_released("18 or 20").correct && small.read("18 or 20").correct);
    }

    #[test]
    fn faults_name_row_and_key() {
        for (set, text, wanted) in [
            (
                ProblemSet::Gsm8k,
                r#"{"question": "?"}"#,
                "row 1: key `answer` is missing",
            ),
            (ProblemSet::Gsm8k, r#"{"question": "?", "answer": "4"}"#, "`#### `"),
            (
                ProblemSet::Svamp,
                r#"[{"Body": "b", "Question": "q", "Answer": "x"}]"#,
                "`Answer` is no number",
            ),
            (
                ProblemSet::Aqua,
                r#"{"question": "?", "options": [], "correct": "F"}"#,
                "none of A to E",
            ),
            (ProblemSet::Aqua, "[1]", "no JSON object"),
            (ProblemSet::Aqua, "[]", "holds no problems"),
            (ProblemSet::Aqua, "nothing", "row 1"),
        ] {
            let error = read(set, text).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn made_problems_follow_the_seed() {
        let levels = [Level::TAUGHT, Level::LARGEST_NUMBERS];
        let made = |seed| Problems::templated(5, &levels, seed).all;
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
        let dealt: Vec<Option<Level>> = made(1).iter().map(|problem| problem.level).collect();
        assert_eq!(dealt[..2], levels.map(Some));
        assert_eq!(dealt[0], dealt[4]);
    }
}
