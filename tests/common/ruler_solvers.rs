//! Solvers that read the answers of RULER's tasks out of the prompt, as a check that they are there.

use std::collections::BTreeMap;

use tokselect::eval::Example;

/// Answers by reading the prompt alone.
pub fn solve(task: &str, example: &Example) -> Vec<String> {
    let text = &example.prompt;
    if task.starts_with("niah") {
        solve_niah(text)
    } else {
        match task {
            "vt" => solve_vt(text),
            "cwe" => solve_cwe(text),
            "fwe" => solve_fwe(text),
            _ => vec![solve_qa(text)],
        }
    }
}

fn solve_niah(text: &str) -> Vec<String> {
    let (context, question) = text.rsplit_once('\n').unwrap();
    assert!(
        question.ends_with("mentioned in the provided text?"),
        "the question is cut: {question}"
    );
    let query = question
        .split(" for ")
        .nth(1)
        .unwrap()
        .split(" mentioned")
        .next()
        .unwrap();
    let query = query.replace(", and ", ", ");
    let mut found = BTreeMap::<&str, Vec<String>>::new();
    for needle in context.split("One of the special magic ").skip(1) {
        let (key, rest) = needle.split_once(" for ").unwrap().1.split_once(" is: ").unwrap();
        let value = rest.split('.').next().unwrap();
        found.entry(key).or_default().push(value.to_owned());
    }
    query.split(", ").flat_map(|key| found[key].clone()).collect()
}

fn solve_vt(text: &str) -> Vec<String> {
    let (context, question) = text
        .rsplit_once("\nQuestion: Find all variables that are assigned the value ")
        .unwrap();
    let value = question
        .strip_suffix(" in the text above.")
        .expect("the question is cut");
    let words: Vec<&str> = context.split_whitespace().collect();
    let mut holders: Vec<&str> = Vec::new();
    // An assignment stands after the one it reads from, so that one pass is enough.
    for at in words.windows(5).filter(|w| w[0] == "VAR" && w[2] == "=") {
        let source = if at[3] == "VAR" { at[4] } else { at[3] };
        if source == value || holders.contains(&source) {
            holders.push(at[1]);
        }
    }
    holders.into_iter().map(str::to_owned).collect()
}

/// Items from the most frequent on.
fn by_frequency<'a>(items: impl Iterator<Item = &'a str>) -> Vec<(usize, &'a str)> {
    let mut counts = BTreeMap::new();
    for item in items {
        *counts.entry(item).or_insert(0_usize) += 1;
    }
    let mut counts: Vec<(usize, &str)> = counts.into_iter().map(|(item, n)| (n, item)).collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts
}

fn solve_cwe(text: &str) -> Vec<String> {
    let (context, question) = text.rsplit_once("\nQuestion: ").unwrap();
    assert_eq!(question, "What are the 10 most common words in the above list?");
    let list = context.rsplit_once("the ones that appear most often.\n").unwrap().1;
    let words: Vec<&str> = list.split(' ').collect();
    for (i, pair) in words.chunks(2).enumerate() {
        assert_eq!(pair[0], format!("{}.", i + 1));
    }
    let counts = by_frequency(words.into_iter().skip(1).step_by(2));
    assert!(counts[9].0 > counts[10].0, "{counts:?}");
    counts[..10].iter().map(|c| c.1.to_owned()).collect()
}

fn solve_fwe(text: &str) -> Vec<String> {
    let (context, question) = text.rsplit_once("\nQuestion: ").unwrap();
    assert!(question.ends_with("in the above coded text?"), "the question is cut");
    let coded = context
        .rsplit_once("Find the three most frequently appeared coded words. ")
        .unwrap()
        .1;
    let counts = by_frequency(coded.split(' ').filter(|w| *w != "..."));
    assert!(counts[2].0 > counts[3].0, "{counts:?}");
    counts[..3].iter().map(|c| c.1.to_owned()).collect()
}

/// Questions about the invented world.
fn solve_qa(text: &str) -> String {
    let (documents, question) = text.rsplit_once("\n\nQuestion: ").unwrap();
    let question = question.strip_suffix('?').expect("the question is cut");
    let about = |subject: &str, before: &str| {
        let line = documents
            .lines()
            .find(|l| l.starts_with(&format!("{subject} ")) && l.contains(before));
        let line = line.unwrap_or_else(|| panic!("nothing about {subject}"));
        line.split(before)
            .nth(1)
            .unwrap()
            .split([' ', '.'])
            .next()
            .unwrap()
            .to_owned()
    };
    let born = |rest: &str| rest.strip_suffix(" born").unwrap().to_owned();
    if let Some(rest) = question.strip_prefix("In which town was ") {
        about(&born(rest), "the town of ")
    } else if let Some(rest) = question.strip_prefix("In which year was ") {
        about(&born(rest), "born in ")
    } else {
        let person = question.strip_prefix("On which river lies the town where ").unwrap();
        let town = about(person.strip_suffix(" was born").unwrap(), "the town of ");
        about(&town, "on the river ")
    }
}
