//! The generated tasks of `InfiniteBench`: lengths, determinism, and plain solvers that find every answer.

mod common;

use std::collections::BTreeMap;

use common::ruler::{Counter, check_length, counters, demo_counter};
use tokselect::eval::infinite_bench::{GENERATED, GenerateSettings, PromptSet, Subtask, generate};
use tokselect::eval::{CountTokens, Example, Request, Task, WhitespaceTokens};

fn all() -> Vec<(Subtask, Box<dyn Task>)> {
    let made = |subtask| (subtask, generate(subtask, GenerateSettings::default()).unwrap());
    GENERATED.into_iter().map(made).collect()
}

fn request(tokens: &dyn CountTokens, index: usize, length: usize) -> Request<'_> {
    Request {
        index,
        length: Some(length),
        depth: None,
        seed: 1,
        tokens,
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("no `{before}`")).1;
    rest.split_once(after).unwrap_or_else(|| panic!("no `{after}`")).0
}

/// Answers by reading the prompt alone.
fn solve(subtask: Subtask, text: &str) -> Vec<String> {
    match subtask {
        Subtask::Passkey => {
            assert!(text.ends_with("\nWhat is the pass key?"), "the question is cut");
            vec![between(text, "The pass key is ", ".").to_owned()]
        }
        Subtask::NumberString => {
            assert!(
                text.ends_with("\nWhat is the sequence of digits?"),
                "the question is cut"
            );
            vec![between(text, "The sequence of digits is ", ".").to_owned()]
        }
        Subtask::KvRetrieval => {
            assert!(
                text.ends_with("\nThe value associated with the specified key is: "),
                "the question is cut"
            );
            let pairs: BTreeMap<String, String> =
                serde_json::from_str(&format!("{{{}}}", between(text, "JSON data:\n{", "}"))).expect("JSON");
            let asked = between(text, "\nKey: \"", "\"");
            assert!(text.contains(&format!("specified key \"{asked}\" in")));
            vec![pairs[asked].clone()]
        }
        Subtask::MathFind => solve_find(text),
        Subtask::MathCalc => solve_calc(text),
        _ => solve_run(text),
    }
}

fn solve_find(text: &str) -> Vec<String> {
    let mut numbers: Vec<u32> = serde_json::from_str(&format!("[{}]", between(text, "[", "]"))).expect("a list");
    numbers.sort_unstable();
    let asked = between(text, "What is the ", " number in the following list?");
    assert!(
        text.ends_with(&format!("no other words. The {asked} number of the list is: ")),
        "the question is cut"
    );
    let (least, most) = (numbers[0], numbers[numbers.len() - 1]);
    assert_eq!(
        numbers.iter().filter(|&&n| n == least || n == most).count(),
        2,
        "the extremes are there once"
    );
    let (place, from_top) = match asked {
        "median" => (numbers.len() / 2, false),
        "largest" => (0, true),
        "second largest" => (1, true),
        "third largest" => (2, true),
        "smallest" => (0, false),
        "second smallest" => (1, false),
        _ => (2, false),
    };
    let at = if from_top { numbers.len() - 1 - place } else { place };
    vec![numbers[at].to_string()]
}

fn solve_calc(text: &str) -> Vec<String> {
    let (_, expression) = text.rsplit_once('\n').unwrap();
    let terms: Vec<&str> = expression.split(' ').collect();
    let mut value: i64 = terms[0].parse().unwrap();
    let mut values = Vec::new();
    for operation in terms[1..].chunks(2) {
        let number: i64 = operation[1].parse().unwrap();
        value += if operation[0] == "-" { -number } else { number };
        assert!((0..=1000).contains(&value));
        values.push(value.to_string());
    }
    values
}

fn solve_run(text: &str) -> Vec<String> {
    let call = between(text, "the return value of ", ". Be concise.");
    let (name, argument) = call.trim_end_matches(')').split_once('(').unwrap();
    let body = |name: &str| between(text, &format!("def {name}(x):\n    return "), "\n").to_owned();
    let mut value: i64 = argument.parse().unwrap();
    let (mut name, mut calls) = (name.to_owned(), 0);
    loop {
        let body = body(&name);
        let (inner, adds) = body.split_once(' ').unwrap();
        value += adds.replace(' ', "").parse::<i64>().unwrap();
        if inner == "x" {
            break;
        }
        inner.strip_suffix("(x)").unwrap().clone_into(&mut name);
        calls += 1;
    }
    assert!((2..=10).contains(&calls), "{calls} calls");
    vec![value.to_string()]
}

fn check_solved(subtask: Subtask, task: &dyn Task, example: &Example) {
    let solved = solve(subtask, &example.prompt);
    assert_eq!(solved, example.answers, "{subtask}");
    for score in task.score(example, &solved.join(", ")) {
        assert!((score - 1.0).abs() < 1e-12, "{subtask}: {score}");
    }
    assert!(
        task.score(example, "no idea").iter().all(|s| s.abs() < 1e-12),
        "{subtask}"
    );
}

#[test]
fn lengths_are_met_and_every_answer_follows_from_the_prompt() {
    for Counter { name, tokens } in counters() {
        for (subtask, task) in all() {
            for (index, length) in [(0, 512), (1, 1024), (2, 2048), (3, 4096), (6, 16384), (4, 131_072)] {
                let short = match subtask {
                    // The answer alone gets 1024 tokens.
                    Subtask::MathCalc => length < 2048,
                    // Within 8 tokens, which is more than 1 % of 512.
                    Subtask::KvRetrieval => length < 1024,
                    _ => false,
                };
                if short || (name == "reference model" && length < 4096) {
                    continue;
                }
                let request = request(&*tokens, index, length);
                let example = task
                    .example(&request)
                    .unwrap_or_else(|e| panic!("{name}, {length}: {e}"));
                check_length(&name, &*task, &example, &request);
                check_solved(subtask, &*task, &example);
            }
        }
    }
}

#[test]
fn lengths_are_met_in_the_tokens_of_the_demo_model() {
    let Counter { name, tokens } = demo_counter();
    for length in [1024, 4096, 32_768] {
        for subtask in GENERATED {
            let settings = GenerateSettings {
                math_calc_tokens: (length / 4).min(1024),
                ..GenerateSettings::default()
            };
            let task = generate(subtask, settings).unwrap();
            for index in 0..7 {
                let request = request(&*tokens, index, length);
                let example = task
                    .example(&request)
                    .unwrap_or_else(|e| panic!("{subtask}, {length}: {e}"));
                check_length(&name, &*task, &example, &request);
                check_solved(subtask, &*task, &example);
            }
        }
    }
}

#[test]
fn examples_depend_on_their_place_and_seed_alone() {
    for (subtask, task) in all() {
        let example = |request: &Request<'_>| task.example(request).unwrap();
        let first = example(&request(&WhitespaceTokens, 7, 3000));
        assert_eq!(first, example(&request(&WhitespaceTokens, 7, 3000)), "{subtask}");
        let other = Request {
            seed: 2,
            ..request(&WhitespaceTokens, 7, 3000)
        };
        assert_ne!(first.prompt, example(&other).prompt, "{subtask}");
        assert_ne!(
            first.prompt,
            example(&request(&WhitespaceTokens, 14, 3000)).prompt,
            "{subtask}"
        );
    }
}

#[test]
fn a_needle_lies_where_it_was_asked_for() {
    for (subtask, task) in all() {
        for depth in [0.0, 0.3, 1.0] {
            let request = Request {
                depth: Some(depth),
                ..request(&WhitespaceTokens, 0, 4096)
            };
            if matches!(subtask, Subtask::MathCalc | Subtask::CodeRun) {
                let message = task.example(&request).unwrap_err().to_string();
                assert!(message.contains("has no needle to place"), "{message}");
                continue;
            }
            let example = task.example(&request).unwrap();
            assert!(
                (example.depth.unwrap() - depth).abs() < 0.01,
                "{subtask}: {:?}",
                example.depth
            );
            let text = &example.prompt;
            let needle = match subtask {
                Subtask::Passkey => "The pass key is ".to_owned(),
                Subtask::NumberString => "The sequence of digits is ".to_owned(),
                _ => example.answers[0].clone(),
            };
            let found = text.find(&needle).unwrap() as f64 / text.len() as f64;
            assert!((found - depth).abs() < 0.06, "{subtask}: {found} instead of {depth}");
            assert_eq!(text.matches(&needle).count(), 1, "{subtask}");
            check_solved(subtask, &*task, &example);
        }
    }
}

#[test]
fn math_find_asks_for_seven_numbers_in_turn() {
    let task = generate(Subtask::MathFind, GenerateSettings::default()).unwrap();
    for index in 0..7 {
        let example = task.example(&request(&WhitespaceTokens, index, 700)).unwrap();
        check_solved(Subtask::MathFind, &*task, &example);
        assert_eq!(example.depth.is_none(), index == 6, "a median has no place");
    }
}

#[test]
fn every_prompt_set_can_ask() {
    for prompts in PromptSet::ALL {
        for subtask in GENERATED {
            let settings = GenerateSettings {
                prompts,
                ..GenerateSettings::default()
            };
            let task = generate(subtask, settings).unwrap();
            assert_eq!(task.settings()["prompts"], prompts.name());
            let example = task.example(&request(&WhitespaceTokens, 2, 2000)).unwrap();
            assert!(
                !example.prompt.contains("{context}") && !example.prompt.contains("{input}"),
                "{prompts}"
            );
        }
    }
}

#[test]
fn books_cannot_be_generated() {
    let message = generate(Subtask::LongbookQaEng, GenerateSettings::default())
        .err()
        .unwrap()
        .to_string();
    assert!(message.contains("`longbook_qa_eng` cannot be generated"), "{message}");
}
