//! The prompt templates against the benchmarks' own configuration files.

mod common;

use serde_json::{Map, Value, json};
use std::path::Path;
use tokselect::eval::{Request, Task, WhitespaceTokens, infinite_bench, long_bench};
use tokselect::hub::HubOptions;

fn read(path: &Path) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn prompt(task: &dyn Task) -> String {
    let request = Request {
        index: 0,
        length: None,
        depth: None,
        seed: 0,
        tokens: &WhitespaceTokens,
    };
    task.example(&request).unwrap().prompt
}

/// A data folder with one example, the template filled by plain replacement.
fn expected(template: &Value, values: &[(&str, &str)]) -> String {
    values
        .iter()
        .fold(template.as_str().unwrap().to_owned(), |text, (name, value)| {
            text.replace(&format!("{{{name}}}"), value)
        })
}

#[test]
fn infinite_bench_asks_as_its_configuration_files_say() {
    let (Some(prompts), Some(lengths)) = (
        common::shared("data/infinitebench/dataset2prompt.json"),
        common::shared("data/infinitebench/dataset2maxlen.json"),
    ) else {
        return;
    };
    let (prompts, lengths) = (read(&prompts), read(&lengths));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    for subtask in infinite_bench::Subtask::ALL {
        let name = subtask.name();
        let input = match name {
            "kv_retrieval" => "Key: \"k\"\n",
            "math_find" => "The median number of the list is:",
            "code_run" => "func_1(-2)",
            _ => "IN",
        };
        let line = json!({"context": "CTX", "input": input, "answer": "b", "options": ["a", "b", "c", "d"]});
        std::fs::write(folder.path().join(format!("{name}.jsonl")), line.to_string()).unwrap();
        let prefix = "What is the median number in the following list?";
        let values = [
            ("context", "CTX"),
            ("input", input),
            ("question", input),
            ("key", "\"k\""),
            ("prefix", prefix),
            ("func", "func_1"),
            ("func_call", "func_1(-2)"),
            ("OPTION_A", "a"),
            ("OPTION_B", "b"),
            ("OPTION_C", "c"),
            ("OPTION_D", "d"),
        ];
        let set = infinite_bench::PromptSet::InfLlm;
        let task = infinite_bench::load(data, subtask, set, &HubOptions::default()).unwrap();
        assert_eq!(prompt(&task), expected(&prompts[name], &values), "{name}");
        assert_eq!(task.max_new_tokens() as u64, lengths[name].as_u64().unwrap(), "{name}");
    }
}

#[test]
fn long_bench_asks_as_its_configuration_files_say() {
    let (Some(prompts), Some(lengths)) = (
        common::shared("data/longbench/dataset2prompt.json"),
        common::shared("data/longbench/dataset2maxlen.json"),
    ) else {
        return;
    };
    let (prompts, lengths) = (read(&prompts), read(&lengths));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let line = json!({"context": "CTX", "input": "IN", "answers": ["Paragraph 1"], "all_classes": ["x"]});
    for subtask in long_bench::Subtask::ALL {
        let name = subtask.name();
        std::fs::write(folder.path().join(format!("{name}.jsonl")), line.to_string()).unwrap();
        let set = long_bench::PromptSet::Official;
        let task = long_bench::load(data, subtask, set, &HubOptions::default()).unwrap();
        assert_eq!(
            prompt(&task),
            expected(&prompts[name], &[("context", "CTX"), ("input", "IN")]),
            "{name}"
        );
        assert_eq!(task.max_new_tokens() as u64, lengths[name].as_u64().unwrap(), "{name}");
    }
}
