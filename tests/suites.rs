//! `bench infinite-bench` and `bench long-bench` as whole programs: generated and loaded tasks, cuts, exports, refusals.

mod common;

use common::program::{assert_refused, refuses, report, run, succeeds, tokselect};
use common::tables::{column, rows, table};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;
use tokselect::eval::{infinite_bench, long_bench};

/// `tokselect bench NAME` on the built-in model, densely.
fn bench(name: &str) -> Command {
    let mut command = tokselect();
    command.args(["bench", name, "--policies", "dense"]);
    command
}

fn write(folder: &TempDir, name: &str, lines: &[Value]) {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(folder.path().join(name), lines.join("\n")).expect("writable");
}

/// A row of the official data of `InfiniteBench`, of any of its tasks.
fn infinite_row(task: infinite_bench::Subtask) -> Value {
    use infinite_bench::Subtask as S;
    let (input, answer) = match task {
        S::Passkey => ("What is the pass key?", json!("71432")),
        S::NumberString => ("What is the sequence of digits?", json!("7711443322")),
        S::KvRetrieval => (
            "Key: \"k\"\nThe value associated with the specified key is: ",
            json!("v"),
        ),
        S::MathFind => ("The largest number of the list is: ", json!(3)),
        S::MathCalc => ("", json!([3, 6])),
        S::CodeRun => (
            "Please give me the exact number of the return value of func_1(2).",
            json!(3),
        ),
        S::LongbookQaChn => ("谁来了？", json!(["王五"])),
        S::LongbookChoiceEng | S::CodeDebug => ("Which?", json!(["two"])),
        S::LongbookSumEng | S::LongbookQaEng | S::LongdialogueQaEng => ("Who came?", json!(["Ann"])),
    };
    let options = if task.has_options() {
        json!(["one", "two", "three", "four"])
    } else {
        json!([])
    };
    json!({"id": 0, "context": "The pass key is 71432. Remember it.", "input": input, "answer": answer, "options": options})
}

fn infinite_data(rows: usize) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for task in infinite_bench::Subtask::ALL {
        write(&folder, &format!("{task}.jsonl"), &vec![infinite_row(task); rows]);
    }
    folder
}

fn long_row() -> Value {
    json!({"input": "Who came?", "context": "Paragraph 1: Ann came.", "answers": ["Paragraph 1"], "length": 4,
        "dataset": "x", "language": "en", "all_classes": ["Paragraph 1", "Paragraph 2"], "_id": "0"})
}

fn long_data(tasks: &[long_bench::Subtask]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("data")).expect("a folder");
    for task in tasks {
        write(&folder, &format!("data/{task}.jsonl"), &[long_row()]);
    }
    folder
}

/// A passkey row whose context is far longer than what it is cut to.
fn long_passkey() -> Value {
    let noise = "The grass is green. The sky is blue. ".repeat(400);
    json!({"context": format!("The pass key is 71432. {noise}"), "input": "What is the pass key?", "answer": ["71432"]})
}

fn data_of(output: &Path) -> Vec<Value> {
    rows(output).iter().map(|row| row["data"].clone()).collect()
}

#[test]
fn six_tasks_are_generated_and_scored_by_both_scripts() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    succeeds(
        bench("infinite-bench")
            .args(["--lengths", "1k", "--samples", "1", "-o"])
            .arg(&output),
    );
    let report = report(&output);
    assert_eq!(report["command"], "bench infinite-bench");
    let accuracy = table(&report, "accuracy");
    let metrics = column(accuracy, "metric");
    assert_eq!(metrics.len(), 12);
    assert!(metrics.chunks(2).all(|pair| pair == ["official", "token_select"]));
    let names: Vec<Value> = column(accuracy, "task").into_iter().step_by(2).collect();
    assert_eq!(names, infinite_bench::GENERATED.map(infinite_bench::Subtask::name));
    for data in data_of(&output) {
        let taken = data["prompt_tokens"].as_u64().expect("tokens");
        assert!(taken < 1024 && data["scores"]["token_select"].is_number(), "{data}");
    }
    // A quarter of the length is the answer's, so that Math.Calc fits into a short one.
    let config = &report["config"]["tasks"];
    assert_eq!(config["math_calc"]["max_new_tokens"], 256);
    assert_eq!(config["math_calc"]["data_sha256"], Value::Null);
    let csv = std::fs::read_to_string(output.join("table.csv")).expect("a table");
    assert!(
        csv.contains("passkey,1024,dense,official,1,") && csv.contains(",token_select,"),
        "{csv}"
    );
}

#[test]
fn depths_give_a_heat_map_of_each_task() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let mut command = bench("infinite-bench");
    command.args([
        "--tasks",
        "passkey,kv_retrieval",
        "--lengths",
        "512,768",
        "--depths",
        "0,1",
    ]);
    succeeds(command.args(["--samples", "1", "-o"]).arg(&output));
    for figure in ["figure.svg", "heatmap-passkey.svg", "heatmap-kv_retrieval.svg"] {
        assert!(output.join(figure).is_file(), "{figure}");
    }
}

#[test]
fn all_twelve_tasks_are_read_from_their_files() {
    let folder = infinite_data(2);
    let output = folder.path().join("run");
    let mut command = bench("infinite-bench");
    command
        .args(["--limit", "1", "--math-calc-tokens", "32", "--data"])
        .arg(folder.path());
    let finished = succeeds(command.arg("-o").arg(&output));
    assert!(!finished.stderr.contains("left out"), "{}", finished.stderr);
    let report = report(&output);
    let accuracy = table(&report, "accuracy");
    let names: Vec<Value> = column(accuracy, "task").into_iter().step_by(2).collect();
    assert_eq!(names, infinite_bench::Subtask::ALL.map(infinite_bench::Subtask::name));
    assert_eq!(column(accuracy, "n"), [1; 24], "the limit is one of each task");
    assert!(
        column(accuracy, "length_tokens")
            .iter()
            .all(|cell| cell["reason"] == "as loaded")
    );
    assert!(report["manifest"]["data_sha256"]["value"].is_string());
    assert_eq!(report["config"]["tasks"]["math_calc"]["max_new_tokens"], 32);
    assert_eq!(
        report["config"]["tasks"]["longbook_choice_eng"]["settings"]["prompts"],
        "token-select"
    );
    let choice = data_of(&output)
        .into_iter()
        .find(|data| data["answers"] == json!(["two", "B"]));
    assert!(choice.is_some(), "a choice has its letter");
}

#[test]
fn a_long_context_is_cut_in_its_middle_to_the_lengths_or_to_the_stated_context() {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder, "passkey.jsonl", &[long_passkey()]);
    let loaded = || {
        let mut command = bench("infinite-bench");
        command.arg("--data").arg(folder.path().join("passkey.jsonl"));
        command
    };
    let lengths = folder.path().join("lengths");
    succeeds(loaded().args(["--lengths", "256,512", "-o"]).arg(&lengths));
    let context = folder.path().join("context");
    succeeds(loaded().args(["--max-context", "300", "-o"]).arg(&context));
    let mut seen = data_of(&lengths);
    seen.extend(data_of(&context));
    let asked: Vec<&Value> = seen.iter().map(|data| &data["length_tokens"]).collect();
    assert_eq!(asked, [256, 512, 300]);
    for data in &seen {
        let length = data["length_tokens"].as_u64().expect("a length");
        // The answer gets 32 tokens.
        let taken = data["prompt_tokens"].as_u64().expect("not refused") + 32;
        assert!(taken <= length && taken + 8 >= length, "{data}");
    }
    let export = folder.path().join("examples");
    succeeds(loaded().args(["--lengths", "256", "--export"]).arg(&export));
    let text = std::fs::read_to_string(export.join("256/passkey.jsonl")).expect("examples");
    let line: Value = serde_json::from_str(&text).expect("one line of JSON");
    let prompt = line["input"].as_str().expect("a prompt");
    assert!(prompt.starts_with("There is an important info") && prompt.ends_with("What is the pass key?"));
    assert!(
        prompt.contains("The pass key is 71432."),
        "the start of the context is kept"
    );
    assert_eq!(line["outputs"], json!(["71432"]));
    let error = refuses(
        loaded().args(["--lengths", "64"]),
        2,
        &["leaves no room", "passkey.jsonl` line 1"],
    );
    assert!(error.contains("longer length"), "{error}");
}

#[test]
fn a_run_on_other_data_is_another_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let mut row = long_passkey();
    row["context"] = "The pass key is 71432.".into();
    write(&folder, "passkey.jsonl", &[row.clone(), row.clone()]);
    let start = || {
        let mut command = bench("infinite-bench");
        command.arg("--data").arg(folder.path()).arg("-o").arg(&output);
        command
    };
    succeeds(&mut start());
    let again = succeeds(&mut start());
    assert!(
        again.stderr.contains("2 of 2 samples are already there"),
        "{}",
        again.stderr
    );
    row["answer"] = json!(["1"]);
    write(&folder, "passkey.jsonl", &[row.clone(), row]);
    let finished = run(&mut start());
    assert_refused(&finished, 2, &["different configuration", "tasks.passkey.data_sha256"]);
}

#[test]
fn long_bench_runs_its_sixteen_tasks_with_their_own_metrics() {
    let folder = long_data(&long_bench::Subtask::ALL);
    let report = succeeds(
        bench("long-bench")
            .arg("--data")
            .arg(folder.path())
            .args(["--format", "json"]),
    )
    .json();
    assert_eq!(report["command"], "bench long-bench");
    let accuracy = table(&report, "accuracy");
    assert_eq!(
        column(accuracy, "task"),
        long_bench::Subtask::ALL.map(long_bench::Subtask::name)
    );
    let metrics: Vec<&str> = long_bench::Subtask::ALL
        .iter()
        .map(|task| task.metrics()[0].name)
        .collect();
    assert_eq!(column(accuracy, "metric"), metrics);
    assert_eq!(column(accuracy, "n"), [1; 16]);
    assert_eq!(report["config"]["tasks"]["lcc"]["settings"]["prompts"], "official");
    let output = folder.path().join("examples");
    let mut export = bench("long-bench");
    export
        .args(["--tasks", "trec", "--prompts", "token-select", "--data"])
        .arg(folder.path());
    succeeds(export.arg("--export").arg(&output));
    let text = std::fs::read_to_string(output.join("trec.jsonl")).expect("examples");
    let line: Value = serde_json::from_str(&text).expect("one line of JSON");
    assert_eq!(line["outputs"], json!(["Paragraph 1"]));
    assert!(!line["input"].as_str().expect("a prompt").contains("\n\n"));
}

#[test]
fn absent_files_are_left_out_of_all_and_named_together_when_asked_for() {
    use long_bench::Subtask as S;
    let folder = long_data(&[S::Trec, S::Lcc]);
    let start = || {
        let mut command = bench("long-bench");
        command.arg("--data").arg(folder.path());
        command
    };
    let finished = succeeds(start().args(["--format", "json"]));
    assert!(
        finished.stderr.contains("has no file of narrativeqa, qasper"),
        "{}",
        finished.stderr
    );
    let report = finished.json();
    assert_eq!(column(table(&report, "accuracy"), "task"), ["trec", "lcc"]);
    refuses(
        start().args(["--tasks", "qasper,lcc,musique"]),
        2,
        &["has no `qasper.jsonl`, `musique.jsonl`", "data.zip"],
    );
    let empty = tempfile::tempdir().expect("a folder");
    refuses(
        bench("long-bench").arg("--data").arg(empty.path()),
        2,
        &["has no `narrativeqa.jsonl`", "`repobench-p.jsonl`", "data.zip"],
    );
    // One file is the task that it is called after, or the one that is named.
    let renamed = folder.path().join("mine.jsonl");
    std::fs::copy(folder.path().join("data/trec.jsonl"), &renamed).expect("copied");
    let one = |path: &Path, more: &[&str]| {
        let mut command = bench("long-bench");
        command
            .arg("--data")
            .arg(path)
            .args(["--dry-run", "--format", "json"])
            .args(more);
        command
    };
    let named = succeeds(&mut one(&folder.path().join("data/lcc.jsonl"), &[])).json();
    assert_eq!(named["tasks"], json!(["lcc"]));
    assert_eq!(
        succeeds(&mut one(&renamed, &["--tasks", "trec"])).json()["tasks"],
        json!(["trec"])
    );
    refuses(
        &mut one(&renamed, &[]),
        2,
        &["mine.jsonl` is one file, and 16 are asked for", "--tasks"],
    );
}

#[test]
fn a_cached_data_set_of_the_hub_is_read_offline() {
    const COMMIT: &str = "1111111111111111111111111111111111111111";
    let cache = tempfile::tempdir().expect("a folder");
    let repository = cache.path().join("datasets--Org--Name");
    let snapshot = repository.join("snapshots").join(COMMIT);
    for folder in [&snapshot, &repository.join("refs")] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    std::fs::write(repository.join("refs/main"), COMMIT).expect("writable");
    let row = infinite_row(infinite_bench::Subtask::Passkey).to_string();
    std::fs::write(snapshot.join("passkey.jsonl"), row).expect("writable");
    let start = |data: &str, tasks: &str| {
        let mut command = bench("infinite-bench");
        command.env_remove("HF_HUB_OFFLINE").env("HF_HUB_CACHE", cache.path());
        command.args(["--offline", "--data", data, "--tasks", tasks, "--format", "json"]);
        command
    };
    let report = succeeds(&mut start("Org/Name@main", "passkey")).json();
    assert_eq!(column(table(&report, "accuracy"), "n"), [1; 2]);
    refuses(
        &mut start("Org/Name", "passkey,code_debug,math_find"),
        3,
        &[
            "offline, but `code_debug.jsonl`, `math_find.jsonl` of the data set `Org/Name` (revision `main`) are not in the cache",
            "the benchmark's own files are in the hub data set `xinrongzhang2022/InfiniteBench`",
            "--offline",
        ],
    );
    refuses(&mut start("Org/Other", "passkey"), 3, &["offline", "`Org/Other`"]);
}

#[test]
fn malformed_data_is_one_error_with_file_and_line_before_anything_is_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = infinite_row(infinite_bench::Subtask::Passkey).to_string();
    let path = folder.path().join("passkey.jsonl");
    let output = folder.path().join("out");
    for (second, parts) in [
        ("{\"context\": \"c", &["passkey.jsonl` line 2: not JSON"][..]),
        ("[1]", &["passkey.jsonl` line 2: a list, not an object"]),
        (
            "{\"context\": \"c\", \"input\": \"i\"}",
            &["passkey.jsonl` line 2: `answer` is missing"],
        ),
        (
            "{\"context\": 1, \"input\": \"i\", \"answer\": 1}",
            &["line 2: `context` is a number, not a text"],
        ),
    ] {
        std::fs::write(&path, format!("{good}\n{second}\n")).expect("writable");
        for flag in ["-o", "--export"] {
            for more in [&[][..], &["--lengths", "512"]] {
                let mut command = bench("infinite-bench");
                command.arg("--data").arg(&path).args(more).arg(flag).arg(&output);
                refuses(&mut command, 2, parts);
                assert!(!output.exists(), "{flag} has left something behind");
            }
        }
        // Rows that are not asked for are not looked at.
        succeeds(
            bench("infinite-bench")
                .arg("--data")
                .arg(&path)
                .args(["--limit", "1", "--dry-run"]),
        );
    }
    // Rows are read by several threads, and of two faults the first is told.
    std::fs::write(&path, format!("{good}\n{good}\n[3]\n{good}\n[5]\n")).expect("writable");
    for _ in 0..5 {
        let mut command = bench("infinite-bench");
        command.env("RAYON_NUM_THREADS", "4").arg("--data").arg(&path);
        refuses(&mut command, 2, &["passkey.jsonl` line 3"]);
    }
    for content in ["", "\n \n"] {
        std::fs::write(&path, content).expect("writable");
        let mut command = bench("infinite-bench");
        refuses(
            command.arg("--data").arg(&path),
            2,
            &["passkey.jsonl` holds no examples"],
        );
    }
    write(
        &folder,
        "trec.jsonl",
        &[json!({"input": "i", "context": "c", "answers": ["a"], "all_classes": null})],
    );
    let mut command = bench("long-bench");
    command.args(["--tasks", "trec", "--data"]).arg(folder.path());
    refuses(
        &mut command,
        2,
        &["trec.jsonl` line 1: `all_classes` is missing or empty"],
    );
}

#[test]
fn wrong_flags_are_one_error_with_a_remedy() {
    let folder = infinite_data(1);
    let data = folder.path().to_str().expect("UTF-8");
    for (flags, parts) in [
        (
            &["--tasks", "niah"][..],
            &["`--tasks niah`", "passkey", "longbook_qa_eng"][..],
        ),
        (
            &["--tasks", "passkey,longbook_qa_eng"],
            &["`--tasks longbook_qa_eng` cannot be generated", "pass `--data`"],
        ),
        (
            &["--tasks", "niah", "--data", data],
            &["`--tasks niah`", "longbook_qa_eng"],
        ),
        // A slip is told before data is looked for.
        (&["--policies", "sparse", "--data", "no/such/place"], &["'sparse'"]),
        (
            &["--data", "no/such/place"],
            &["`no/such/place` does not exist", "xinrongzhang2022/InfiniteBench"],
        ),
        (&["--data", ""], &["data reference is empty"]),
        (
            &["--data", data, "--depths", "0.5"],
            &["is loaded", "leave the depths out"],
        ),
        (&["--depths", "0.5"], &["`math_calc` has no needle"]),
        (
            &["--lengths", "100", "--tasks", "passkey"],
            &["`passkey` does not fit into", "at least"],
        ),
        (&["--prompts", "mine"], &["--prompts", "token-select", "official-chat"]),
        (&["--math-calc-tokens", "0"], &["--math-calc-tokens"]),
        (
            &["--math-calc-tokens", "2000", "--lengths", "1k", "--tasks", "math_calc"],
            &["answer 2000 tokens"],
        ),
    ] {
        refuses(bench("infinite-bench").args(flags), 2, parts);
    }
    refuses(&mut bench("long-bench"), 2, &["--data"]);
    let mut unknown = bench("long-bench");
    refuses(
        unknown.args(["--tasks", "lsht", "--data", data]),
        2,
        &["`--tasks lsht`", "narrativeqa", "lcc"],
    );
}
