//! The RULER tasks as a user of the library meets them: lengths, determinism, and plain solvers that find every answer.

mod common;

use std::path::Path;

use common::ruler::{Counter, check_length, counters, demo_counter};
use common::ruler_solvers::solve;
use tokselect::error::Result;
use tokselect::eval::ruler::{Kind, NiahSettings, Settings, official_record, tasks};
use tokselect::eval::{CountTokens, Example, Request, Task, WhitespaceTokens};

fn all() -> Vec<Box<dyn Task>> {
    tasks(&Settings::default()).unwrap()
}

fn named(name: &str) -> Box<dyn Task> {
    all().into_iter().find(|t| t.name() == name).unwrap()
}

fn request(tokens: &dyn CountTokens, index: usize, length: usize) -> Request<'_> {
    Request {
        index,
        length: Some(length),
        depth: None,
        seed: 42,
        tokens,
    }
}

fn example(task: &dyn Task, length: usize, index: usize) -> Example {
    task.example(&request(&WhitespaceTokens, index, length)).unwrap()
}

fn check_solved(task: &dyn Task, example: &Example) {
    let name = task.name();
    let mut solved = solve(name, example);
    let answer = solved.join(", ");
    assert!(
        (task.score(example, &answer)[0] - 1.0).abs() < 1e-12,
        "{name}: {answer}"
    );
    assert!(task.score(example, "no idea")[0].abs() < 1e-12, "{name}");
    let mut answers = example.answers.clone();
    solved.sort();
    answers.sort();
    assert_eq!(solved, answers, "{name}");
}

#[test]
fn every_answer_follows_from_the_prompt() {
    for task in all() {
        for index in 0..5 {
            check_solved(&*task, &example(&*task, 3000, index));
        }
    }
}

#[test]
fn lengths_are_met_within_one_percent() {
    for Counter { name, tokens } in counters() {
        for task in all() {
            for length in [512, 1024, 2048, 4096, 16384] {
                if name == "reference model" && length < 2048 {
                    // Its 597 tokens are little more than bytes: there a question alone is this long.
                    continue;
                }
                let request = request(&*tokens, 3, length);
                let example = task
                    .example(&request)
                    .unwrap_or_else(|e| panic!("{name}, {length}: {e}"));
                check_length(&name, &*task, &example, &request);
                check_solved(&*task, &example);
            }
        }
    }
}

#[test]
fn lengths_are_met_in_the_tokens_of_the_demo_model() {
    let Counter { name, tokens } = demo_counter();
    for length in [1024, 4096, 32_768] {
        for task in all() {
            for index in 0..3 {
                let request = request(&*tokens, index, length);
                let example = task
                    .example(&request)
                    .unwrap_or_else(|e| panic!("{}, {length}: {e}", task.name()));
                check_length(&name, &*task, &example, &request);
                check_solved(&*task, &example);
            }
        }
    }
}

#[test]
fn long_examples_are_made_in_seconds() {
    for Counter { name, tokens } in counters() {
        for task in all() {
            let request = request(&*tokens, 0, 131_072);
            let start = std::time::Instant::now();
            let example = task.example(&request).unwrap();
            // Unoptimised builds and a busy machine included; an optimised one takes about a second.
            assert!(
                start.elapsed().as_secs() < 60,
                "{} with {name}: {:?}",
                task.name(),
                start.elapsed()
            );
            check_length(&name, &*task, &example, &request);
            check_solved(&*task, &example);
        }
    }
}

#[test]
fn the_same_request_gives_the_same_bytes_and_others_do_not() {
    for task in all() {
        let first = example(&*task, 2000, 7);
        assert_eq!(first, example(&*task, 2000, 7), "{}", task.name());
        let again = tasks(&Settings::default())
            .unwrap()
            .into_iter()
            .find(|t| t.name() == task.name());
        assert_eq!(
            first,
            example(&*again.unwrap(), 2000, 7),
            "a new task object, other indices not made before"
        );
        assert_ne!(first.answers, example(&*task, 2000, 8).answers, "{}", task.name());
        let other_seed = Request {
            seed: 43,
            ..request(&WhitespaceTokens, 7, 2000)
        };
        assert_ne!(
            first.prompt,
            task.example(&other_seed).unwrap().prompt,
            "{}",
            task.name()
        );
    }
}

#[test]
fn needles_are_there_once() {
    for task in all().iter().filter(|t| t.name().starts_with("niah")) {
        for index in 0..10 {
            let example = example(&**task, 4096, index);
            for answer in &example.answers {
                assert_eq!(
                    example.prompt.matches(answer.as_str()).count(),
                    1,
                    "{}: {answer}",
                    task.name()
                );
            }
        }
    }
}

#[test]
fn a_needle_lies_where_it_was_asked_for() {
    for task in all().iter().filter(|t| t.name().starts_with("niah")) {
        for depth in [0.0, 0.25, 0.5, 0.9, 1.0] {
            let request = Request {
                depth: Some(depth),
                ..request(&WhitespaceTokens, 1, 8192)
            };
            let example = task.example(&request).unwrap();
            let found = example.depth.unwrap();
            assert!(
                (found - depth).abs() < 0.03,
                "{}: {found} instead of {depth}",
                task.name()
            );
            // Moving the needle changes neither keys nor values.
            assert_eq!(example.answers, self::example(&**task, 8192, 1).answers);
        }
    }
}

#[test]
fn an_answering_document_lies_where_it_was_asked_for() {
    for (depth, at) in [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)] {
        let request = Request {
            depth: Some(depth),
            ..request(&WhitespaceTokens, 4, 8192)
        };
        for name in ["qa_1", "qa_2"] {
            let task = named(name);
            let example = task.example(&request).unwrap();
            assert!(
                (example.depth.unwrap() - at).abs() < 0.01,
                "{name}: {:?}",
                example.depth
            );
            check_solved(&*task, &example);
        }
    }
}

#[test]
fn questions_of_a_file_are_asked_in_its_order() {
    let Some(packed) = common::shared("data/qa/xquad.en.json.gz") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = common::ruler::unpack(&packed, dir.path(), "xquad.json");
    let file: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let first = &file["data"][0]["paragraphs"][0];
    let mut settings = Settings::default();
    settings.files.squad = Some(path);
    let made = tasks(&settings).unwrap();
    let task = made.iter().find(|t| t.name() == "qa_1").unwrap();
    assert_ne!(task.settings(), named("qa_1").settings());
    for Counter { name, tokens } in counters() {
        for (index, length) in [(0, 1024), (1, 4096), (2, 16384), (700, 512), (0, 131_072)] {
            if name == "reference model" && length < 4096 {
                continue;
            }
            let request = request(&*tokens, index, length);
            let example = task.example(&request).unwrap();
            check_length(&name, &**task, &example, &request);
            let (documents, question) = example.prompt.rsplit_once("\n\nQuestion: ").unwrap();
            assert!(
                example.answers.iter().all(|a| documents.contains(a)),
                "{name}, {length}: the answer is not there"
            );
            if index == 0 {
                assert_eq!(question, first["qas"][0]["question"]);
                assert!(
                    documents.contains(first["context"].as_str().unwrap()),
                    "the gold document is whole"
                );
            }
        }
    }
}

#[test]
fn two_paragraph_questions_of_a_file_fit_short_and_long() {
    // Thirty questions, each with ten paragraphs of its own, two of which are needed.
    let questions: Vec<serde_json::Value> = (0..30)
        .map(|q| {
            let paragraph = |p: usize| {
                let fact = if p == 3 {
                    format!("The secret is value{q}.")
                } else {
                    "No more.".to_owned()
                };
                let padding = format!("Padding number {p} of question {q}. ").repeat(10);
                serde_json::json!([format!("Title {q}-{p}"), [padding, fact]])
            };
            serde_json::json!({
                "question": format!("What is secret {q}?"),
                "answer": format!("value{q}"),
                "supporting_facts": [[format!("Title {q}-3"), 1], [format!("Title {q}-7"), 0]],
                "context": (0..10).map(paragraph).collect::<Vec<_>>(),
            })
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hotpot.json");
    std::fs::write(&path, serde_json::to_vec(&questions).unwrap()).unwrap();
    let mut settings = Settings::default();
    settings.files.hotpot_qa = Some(path);
    let made = tasks(&settings).unwrap();
    let task = made.iter().find(|t| t.name() == "qa_2").unwrap();
    for (index, length) in [(0, 300), (1, 1000), (2, 5000), (33, 131_072)] {
        let request = request(&WhitespaceTokens, index, length);
        let example = task.example(&request).unwrap();
        check_length("white space", &**task, &example, &request);
        let q = index % 30;
        assert_eq!(example.answers, [format!("value{q}")]);
        assert!(example.prompt.ends_with(&format!("Question: What is secret {q}?")));
        for needed in [3, 7] {
            let title = format!(":\nTitle {q}-{needed}\n");
            assert_eq!(example.prompt.matches(&title).count(), 1, "{length}: needed once");
        }
        // The question's other paragraphs come before those of other questions.
        let own = (0..10)
            .filter(|p| example.prompt.contains(&format!("Title {q}-{p}\n")))
            .count();
        assert!(
            length < 1000 || own == 10,
            "{own} of its own paragraphs in {length} tokens"
        );
    }
}

#[test]
fn settings_change_the_task_and_wrong_ones_are_named() {
    let with = |settings| {
        tasks(&Settings {
            tasks: vec![("mine".to_owned(), Kind::Niah(settings))],
            ..Settings::default()
        })
    };
    let task = &with(NiahSettings {
        num_needle_k: 3,
        num_needle_v: 2,
        num_needle_q: 2,
        ..NiahSettings::default()
    })
    .unwrap()[0];
    let example = example(&**task, 1000, 0);
    assert_eq!(example.answers.len(), 4);
    assert_eq!(example.prompt.matches("One of the special magic numbers").count(), 6);
    assert_eq!(task.settings()["num_needle_v"], 2);

    let none = NiahSettings {
        num_needle_v: 0,
        ..NiahSettings::default()
    };
    let message = with(none).err().unwrap().to_string();
    assert!(message.contains("`mine`: `num_needle_v` is 0"), "{message}");
}

#[test]
fn a_length_that_cannot_hold_the_question_is_refused() {
    for task in all() {
        let message = task
            .example(&request(&WhitespaceTokens, 0, 40))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(&format!("`{}` does not fit into 40 tokens", task.name())),
            "{message}"
        );
        let without = Request {
            length: None,
            ..request(&WhitespaceTokens, 0, 1)
        };
        assert!(
            task.example(&without)
                .unwrap_err()
                .to_string()
                .contains("give a length")
        );
    }
}

#[test]
fn files_take_the_place_of_what_is_embedded() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut settings = Settings::default();
    settings.files.essay = Some(write("essay.txt", "A sentence of mine. "));
    let nouns: Vec<String> = (0..60).map(|i| format!("noun{i}")).collect();
    settings.files.words.nouns = Some(write("nouns.txt", &nouns.join("\n")));
    let made = tasks(&settings).unwrap();
    let essay = made.iter().find(|t| t.name() == "niah_single_2").unwrap();
    let example = example(&**essay, 1000, 0);
    assert!(example.prompt.contains("A sentence of mine. A sentence of mine."));
    assert!(example.prompt.contains("-noun"), "{}", example.prompt);
    assert_ne!(essay.settings(), named("niah_single_2").settings());

    settings.files.essay = Some(Path::new("/nowhere/essay.txt").to_owned());
    assert!(
        tasks(&settings)
            .err()
            .unwrap()
            .to_string()
            .contains("/nowhere/essay.txt")
    );
}

#[test]
fn the_record_has_the_fields_of_the_benchmark() -> Result<()> {
    let task = named("niah_single_1");
    let request = request(&WhitespaceTokens, 2, 1000);
    let example = task.example(&request)?;
    let record = official_record(&*task, &request, &example)?;
    assert_eq!(record["index"], 2);
    assert_eq!(record["input"], example.prompt);
    assert_eq!(record["outputs"][0], example.answers[0]);
    assert_eq!(record["answer_prefix"], example.answer_prefix);
    let length = record["length"].as_u64().unwrap();
    assert!((990..=1000).contains(&length), "{length}");
    assert_eq!(record["length_w_model_temp"], length);
    let before = record["token_position_answer"].as_u64().unwrap() as usize;
    let words: Vec<&str> = example.prompt.split_whitespace().collect();
    assert_eq!(words[before], format!("{}.", example.answers[0]));
    Ok(())
}

#[test]
fn templates_and_settings_are_those_of_the_benchmark() {
    let Some(path) = common::shared("data/ruler/tasks.json") else {
        return;
    };
    let official: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let official = official.as_object().unwrap();
    let names: Vec<&String> = official["tasks"].as_object().unwrap().keys().collect();
    let ours = all();
    assert_eq!(ours.iter().map(|t| t.name()).collect::<Vec<_>>(), names);
    for task in ours {
        let wanted = &official["tasks"][task.name()];
        let base = &official["base_tasks"][wanted["task"].as_str().unwrap()];
        assert_eq!(
            task.max_new_tokens(),
            base["tokens_to_generate"].as_u64().unwrap() as usize
        );
        assert_eq!(task.metrics()[0].name, base["metric"].as_str().unwrap());
        for (key, value) in wanted["args"].as_object().unwrap() {
            if key == "type_haystack" && task.name() == "vt" {
                continue;
            }
            assert_eq!(&task.settings()[key], value, "{}: {key}", task.name());
        }
        // Every text of the template between two placeholders is in the prompt, in that order.
        let example = example(&*task, 3000, 0);
        let one = task.name().starts_with("niah_single") || task.name().starts_with("niah_multikey");
        for (template, text) in [("template", &example.prompt), ("answer_prefix", &example.answer_prefix)] {
            let mut template = base[template].as_str().unwrap().to_owned();
            if one {
                template = template
                    .replace("Some", "A")
                    .replace("are all", "is")
                    .replace("are", "is");
                template = template.replace("{type_needle_v} ", "{type_needle_v}");
            }
            // A worked example may come first.
            let start = template.split('{').next().unwrap();
            let mut rest = &text[text.rfind(start).unwrap()..];
            for (i, piece) in template.split(['{', '}']).enumerate() {
                if i % 2 == 1 {
                    continue;
                }
                let piece = if i > 0 { piece.trim_start() } else { piece };
                let at = rest
                    .find(piece)
                    .unwrap_or_else(|| panic!("{}: `{piece}` is missing", task.name()));
                rest = &rest[at + piece.len()..];
            }
            if !template.ends_with('}') {
                assert_eq!(rest, "", "{}: nothing follows the template", task.name());
            }
        }
    }
}
