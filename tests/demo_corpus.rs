//! The text that the demo model is trained on: always the same, answerable from what it says, worded as the benchmarks word
//! their questions, and weighted at the bounds of tokens.

mod common;

use common::program::{succeeds, tokselect};
use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tokselect::eval::demo_corpus::pack::Encoder;
use tokselect::eval::demo_corpus::{Corpus, Document, Kind, Mix, Weight};
use tokselect::eval::passkey::Passkey;
use tokselect::eval::ruler::{Settings, tasks};
use tokselect::eval::{Example, Request, Task, WhitespaceTokens};
use tokselect::model::tokenizer::{Tokenizer, TokenizerFiles};

/// Kinds with answers that stand in the text.
const RETRIEVAL: &str = "needle=1,niah-single=1,niah-multikey=1,niah-multivalue=1,niah-multiquery=1,variable-tracking=1,\
                         passkey=1,number-string=1,key-value=1";

fn corpus(mix: Mix) -> Corpus {
    Corpus {
        seed: 7,
        mix,
        window: 1024,
    }
}

fn retrieval() -> Corpus {
    corpus(RETRIEVAL.parse().expect("kinds"))
}

fn tokenizer() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/tokenizer.json");
    let files = TokenizerFiles {
        tokenizer: &path,
        tokenizer_config: None,
    };
    Tokenizer::load(files).expect("the demo model's tokenizer")
}

#[test]
fn a_document_depends_on_its_number_and_the_seed_alone() {
    let one = corpus(Mix::default());
    let forward: Vec<Document> = (0..300).map(|index| one.document(index)).collect();
    let again = corpus(Mix::default());
    for index in (0..300).rev() {
        assert_eq!(again.document(index), forward[index], "document {index}");
    }
    let other = Corpus { seed: 8, ..again };
    let same = (0..300)
        .filter(|&index| other.document(index) == forward[index])
        .count();
    assert_eq!(same, 0, "another seed makes other documents");
    let texts: BTreeSet<&str> = forward.iter().map(Document::text).collect();
    assert_eq!(texts.len(), forward.len(), "no document comes twice");
}

#[test]
fn parts_that_are_exported_apart_make_up_the_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let export = |name: &str, flags: &[&str]| {
        let path = folder.path().join(name);
        let mut command = tokselect();
        command
            .args(["bench", "demo-corpus", "--seed", "3", "--export"])
            .arg(&path);
        succeeds(command.args(flags));
        std::fs::read_to_string(path.join("documents.jsonl")).expect("documents")
    };
    let whole = export("whole", &["--documents", "60"]);
    let parts = [
        export("one", &["--documents", "25", "--threads", "1"]),
        export("two", &["--documents", "35", "--first", "25"]),
    ];
    assert_eq!(parts.concat(), whole);
}

#[test]
fn every_kind_can_be_made_at_every_length() {
    let corpus = retrieval();
    let all = Kind::ALL.map(|(kind, _, _)| kind);
    for tokens in (48..1100).step_by(7) {
        for kind in all {
            let document = corpus.question(kind, tokens, tokens);
            assert!(!document.text().is_empty(), "{kind:?} of {tokens} tokens");
        }
    }
    // Training documents have lengths that evaluation does not ask for.
    for index in 0..3000 {
        corpus.document(index);
    }
}

/// What a reader of `before` alone would answer next; `answered` answers stand since the last question.
fn read(kind: Kind, before: &str, answered: usize) -> String {
    let last = |pattern: &str, group: usize| {
        let pattern = Regex::new(pattern).expect("a pattern");
        let found = pattern.captures_iter(before).last();
        found.unwrap_or_else(|| panic!("{kind:?}: `{pattern}` is not in\n{before}"))[group].to_owned()
    };
    match kind {
        Kind::Needle => read_needle(before),
        Kind::NiahSingle | Kind::NiahMultikey | Kind::NiahMultivalue | Kind::NiahMultiquery => {
            let query = last(
                r"What (is|are all) the special magic \w+ for ([^?]+) mentioned in the",
                2,
            );
            let needles = Regex::new(r"for (\S+) is: (\S+)\.").expect("a pattern");
            let query = query.replace(", and ", ", ");
            let values: Vec<String> = query
                .split(", ")
                .flat_map(|key| needles.captures_iter(before).filter(move |needle| &needle[1] == key))
                .map(|needle| needle[2].to_owned())
                .collect();
            values[answered].clone()
        }
        Kind::VariableTracking => {
            let start = before.rfind("Memorize and track").expect("an instruction");
            let value = last("are assigned the value ([0-9]+), they are", 1);
            let words: Vec<&str> = before[start..].split_whitespace().collect();
            let mut holders: Vec<&str> = Vec::new();
            for at in words.windows(5).filter(|at| at[0] == "VAR" && at[2] == "=") {
                let source = if at[3] == "VAR" { at[4] } else { at[3] };
                if source == value || holders.contains(&source) {
                    holders.push(at[1]);
                }
            }
            holders.join(" ")
        }
        Kind::Passkey | Kind::NumberString => last(r"is ([0-9]+)\. Remember it\. ", 1),
        Kind::KeyValue => {
            let (open, close) = (before.find('{').expect("JSON"), before.find('}').expect("JSON"));
            let pairs: BTreeMap<String, String> = serde_json::from_str(&before[open..=close]).expect("JSON");
            pairs[&last("Key: \"([^\"]+)\"", 1)].clone()
        }
        _ => panic!("{kind:?} has no answers in the text"),
    }
}

/// Statements and questions of a text with needles and questions mixed.
fn read_needle(before: &str) -> String {
    const FORMS: [(&str, &str); 8] = [
        (
            r"magic numbers for (\S+) is: (\S+)\.",
            r"number for (\S+) mentioned in the provided text is$",
        ),
        (r"The code of (\S+) is (\S+)\.", r"\? The code of (\S+) is$"),
        (
            r"Remember that (\S+) has the number (\S+)\.",
            r"The number of (\S+) is$",
        ),
        (r"(\S+): (\S+)\.", r"(\S+):$"),
        (r"(\S+) = (\S+)\.", r"The value of (\S+) is$"),
        (
            r"You should know that (\S+) goes with (\S+)\.",
            r"what goes with (\S+)\? Answer:$",
        ),
        (r"The secret of (\S+) is (\S+)\.", r"the secret of (\S+)\. It is$"),
        (r"Line (\S+) says (\S+)\.", r"line (\S+) say\? It says$"),
    ];
    let found = FORMS.iter().find_map(|(statement, question)| {
        let key = Regex::new(question).expect("a pattern").captures(before)?[1].to_owned();
        let statements = Regex::new(statement).expect("a pattern");
        let value = statements.captures_iter(before).find(|said| said[1] == key)?[2].to_owned();
        Some(value)
    });
    found.unwrap_or_else(|| panic!("nothing answers the end of\n{before}"))
}

/// Reads every answer of a document; how many there are.
fn check_answers(document: &Document) -> usize {
    let (mut before, mut answered, mut answers) = (String::new(), 0, 0);
    for (text, weight) in document.stretches() {
        if weight == Weight::Answer {
            assert_eq!(
                read(document.kind, &before, answered),
                text.trim(),
                "\n{}",
                document.text()
            );
            answered += 1;
            answers += 1;
        } else if !text.starts_with(',') {
            answered = 0;
        }
        before.push_str(text);
    }
    answers
}

#[test]
fn every_answer_stands_in_the_text_before_it() {
    let corpus = retrieval();
    let mut answers: BTreeMap<&str, usize> = BTreeMap::new();
    for index in 0..1500 {
        let document = corpus.document(index);
        *answers.entry(document.kind.name()).or_default() += check_answers(&document);
    }
    assert_eq!(answers.len(), 9, "{answers:?}");
    assert!(answers.values().all(|&count| count > 100), "{answers:?}");
    for kind in Kind::EVALUATED {
        for index in 0..20 {
            let answers = check_answers(&corpus.question(kind, 700, index));
            assert!(answers > 0, "{kind:?}");
        }
    }
}

#[test]
fn answers_begin_and_end_where_tokens_do_and_carry_their_weight() {
    let tokenizer = tokenizer();
    let encoder = Encoder::new(tokenizer.clone()).expect("the demo model's");
    let corpus = retrieval();
    for index in 0..400 {
        let document = corpus.document(index);
        let encoded = encoder.encode(&document).expect("encodes");
        assert_eq!(encoded.ids.len(), encoded.weights.len());
        let mut tokens = encoded.ids.iter().zip(&encoded.weights).peekable();
        for (stretch, weight) in document.stretches() {
            // What is not an answer may end within a token of the next stretch, but for the last before an answer.
            if weight != Weight::Answer {
                while tokens.next_if(|(_, found)| **found != Weight::Answer as u8).is_some() {}
                continue;
            }
            let mut text = String::new();
            while text.len() < stretch.len() {
                let (&id, &found) = tokens.next().expect("an answer has tokens");
                assert_eq!(found, Weight::Answer as u8, "`{stretch}` in\n{}", document.text());
                text += &tokenizer.decode(&[u32::from(id)], false).expect("decodes");
            }
            assert_eq!(text, stretch, "\n{}", document.text());
        }
        let ids: Vec<u32> = encoded.ids.iter().map(|&id| u32::from(id)).collect();
        assert_eq!(tokenizer.decode(&ids, false).expect("decodes"), document.text());
    }
}

#[test]
fn first_occurrences_of_keys_and_values_do_not_count() {
    let encoder = Encoder::new(tokenizer()).expect("the demo model's");
    for kind in Kind::EVALUATED {
        let document = retrieval().question(kind, 700, 0);
        let answers: Vec<&str> = document
            .stretches()
            .filter(|(_, weight)| *weight == Weight::Answer)
            .map(|(text, _)| text)
            .collect();
        let (mut at, mut free) = (0, Vec::new());
        for (text, weight) in document.stretches() {
            if weight == Weight::Unpredictable {
                free.push(at..at + text.len());
            }
            at += text.len();
        }
        for answer in answers.iter().flat_map(|answer| answer.split_whitespace()) {
            let first = document.text().find(answer).expect("the answer is in the text");
            let inside = free
                .iter()
                .any(|range| range.start <= first && first + answer.len() <= range.end);
            assert!(inside, "{kind:?}: `{answer}` in\n{}", document.text());
        }
        let weights = encoder.encode(&document).expect("encodes").weights;
        assert!(weights.contains(&(Weight::Unpredictable as u8)), "{kind:?}");
    }
}

/// Neighbouring words with the white space between them, keys, values and names masked: the form without the matter.
fn forms(text: &str) -> BTreeSet<String> {
    let masks = [
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
        (r"\b[a-z]+-[a-z]+\b", "KEY"),
        (r"\b[0-9]{5,}\b", "NUMBER"),
        (r"\b[A-Z]{5}\b", "NAME"),
        (r"\b[A-Z]{3}\b", "SHORT"),
    ];
    // The assignment's own word must not be taken for a name.
    let mut masked = text.replace("VAR ", "var ");
    for (pattern, mask) in masks {
        masked = Regex::new(pattern)
            .expect("a pattern")
            .replace_all(&masked, mask)
            .into_owned();
    }
    let word = Regex::new(r"\S+\s*").expect("a pattern");
    let words: Vec<&str> = word.find_iter(&masked).map(|found| found.as_str()).collect();
    // What follows the second word is seen with the next pair.
    let end = |word: &str| word.trim_end().trim_end_matches(['.', ',']).len();
    words
        .windows(2)
        .map(|pair| format!("{}{}", pair[0], &pair[1][..end(pair[1])]))
        .collect()
}

fn examples(task: &dyn Task) -> Vec<Example> {
    let request = |index| Request {
        index,
        length: Some(700),
        depth: None,
        seed: 42,
        tokens: &WhitespaceTokens,
    };
    (0..30)
        .map(|index| task.example(&request(index)).expect("an example"))
        .collect()
}

#[test]
fn benchmarks_ask_in_forms_that_training_has_shown() {
    let ruler = tasks(&Settings::default()).expect("tasks");
    let task = |name: &str| ruler.iter().find(|task| task.name() == name).expect("a task").as_ref();
    // Essays differ in every word, so of those tasks only the question is compared.
    let cases: [(&dyn Task, Kind, bool); 8] = [
        (task("niah_single_1"), Kind::NiahSingle, true),
        (task("niah_single_3"), Kind::NiahSingle, false),
        (task("niah_multikey_2"), Kind::NiahMultikey, true),
        (task("niah_multikey_3"), Kind::NiahMultikey, true),
        (task("niah_multivalue"), Kind::NiahMultivalue, false),
        (task("niah_multiquery"), Kind::NiahMultiquery, false),
        (task("vt"), Kind::VariableTracking, true),
        (&Passkey, Kind::Passkey, true),
    ];
    for (task, kind, whole) in cases {
        let corpus = corpus(format!("{}=1", kind.name()).parse().expect("a kind"));
        let trained: BTreeSet<String> = (0..600)
            .flat_map(|index| forms(corpus.document(index).text()))
            .collect();
        for example in examples(task) {
            let asked = [example.prompt.as_str(), &example.answer_prefix].concat();
            // In plain form the answer follows the prefix after one space, whosever it is.
            let asked = format!("{} {}", asked.trim_end(), example.answers[0]);
            let asked = if whole {
                &asked
            } else {
                &asked[asked.rfind("\nWhat").expect("a question") + 1..]
            };
            let unknown: Vec<String> = forms(asked).difference(&trained).cloned().collect();
            assert_eq!(unknown, [""; 0], "{}", task.name());
        }
    }
}
