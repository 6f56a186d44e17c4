//! What may go wrong in `tokselect icn-probe`: interruptions, judges, vocabularies and prompts that do not fit.

mod common;

use common::icn_probe::{SMALL, probe};
use common::program::{refuses, report, run, succeeds};
use common::tables::{column, rows as samples, table};
use common::tiny_model::{TinyModel, VOCABULARY};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("a text")
}

#[test]
fn a_stopped_navigation_goes_on_and_another_one_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out");
    let navigate = |flags: &[&str]| {
        let mut command = probe("navigate", &SMALL);
        command
            .args(["--methods", "icn,temperature", "--seeds", "2", "-o"])
            .arg(&output)
            .args(flags);
        command
    };
    succeeds(&mut navigate(&[]));
    let whole = samples(&output);
    // icn once, two seeds of temperature, two questions.
    assert_eq!(whole.len(), 6);
    let lines = std::fs::read_to_string(output.join("samples.jsonl")).expect("samples");
    let kept: String = lines.split_inclusive('\n').take(4).collect();
    std::fs::write(output.join("samples.jsonl"), kept).expect("a writable folder");
    succeeds(&mut navigate(&[]));
    let timeless = |mut rows: Vec<Value>| {
        for row in &mut rows {
            row["data"]["wall_s"] = Value::Null;
        }
        rows
    };
    assert_eq!(timeless(samples(&output)), timeless(whole));
    assert_eq!(report(&output)["samples"]["resumed_count"], 4);
    refuses(&mut navigate(&["--temperature", "0.5"]), 2, &["temperature"]);
}

#[test]
fn a_judge_that_fails_keeps_its_verdicts_and_the_run_goes_on_with_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let (script, mark, output) = ("judge.sh", folder.path().join("mended"), folder.path().join("out"));
    // Says yes to what has an `a`; breaks down at the fifth question until it is mended. Counts what it is asked.
    let judge = format!(
        r#"n=0; while read -r line; do n=$((n+1)); echo x >>asked
        if [ $n -ge 5 ] && [ ! -e {} ]; then echo 'no more' >&2; exit 7; fi
        answer=${{line##*answer}}
        case "$answer" in *a*) echo '{{"correct": true}}';; *) echo '{{"correct": false}}';; esac; done"#,
        mark.display()
    );
    std::fs::write(folder.path().join(script), judge).expect("a writable folder");
    let navigate = || {
        let mut command = probe("navigate", &SMALL);
        command.current_dir(folder.path());
        command
            .args(["--methods", "top", "--judge-command", "sh judge.sh", "-o"])
            .arg(&output);
        command
    };
    refuses(
        &mut navigate(),
        3,
        &["the judge `sh judge.sh`", "no more", "asked: ", "same command again"],
    );
    assert_eq!(samples(&output).len(), 4, "four verdicts are kept");
    std::fs::write(&mark, "").expect("a writable folder");
    succeeds(&mut navigate());
    let rows = samples(&output);
    let verdicts = rows.iter().filter(|row| row["task"] == "verdict").count();
    assert_eq!(rows.len(), verdicts + 2);
    let asked = std::fs::read_to_string(folder.path().join("asked")).expect("the count");
    // The one that broke it was asked twice, no other.
    assert_eq!(asked.lines().count(), verdicts + 1);
    let answer = &rows.iter().find(|row| row["task"] == "months").expect("a row")["data"]["answers"][0];
    assert_eq!(answer[4], answer[5].as_str().expect("a text").contains('a'));
}

#[test]
fn the_model_judges_each_answer_once_and_a_stopped_run_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out");
    let navigate = || {
        let mut command = probe("navigate", &SMALL);
        command
            .args(["--methods", "top,temperature", "--judge", "model", "-o"])
            .arg(&output);
        command
    };
    succeeds(&mut navigate());
    let whole = samples(&output);
    let verdicts: Vec<&Value> = whole.iter().filter(|row| row["task"] == "verdict").collect();
    let said = |question: &str, answer: &str| {
        let of = |row: &&&Value| row["data"]["question"] == question && row["data"]["answer"] == answer;
        let found: Vec<&&Value> = verdicts.iter().filter(of).collect();
        assert_eq!(found.len(), 1, "{question} {answer}: one verdict");
        found[0]["data"]["verdict"]["correct"].clone()
    };
    let mut judged = 0;
    for row in whole.iter().filter(|row| row["task"] != "verdict") {
        for answer in row["data"]["answers"].as_array().expect("answers") {
            // Malformed answers, which never came to their closing quote, are judged by nobody.
            match answer[5].as_str() {
                Some(text_of_it) => {
                    assert_eq!(answer[4], said(text(row, "task"), text_of_it));
                    judged += 1;
                }
                None => assert_eq!(answer[4], false, "{answer}"),
            }
        }
    }
    assert!(judged >= verdicts.len() && verdicts.len() > 10, "{judged}");
    // Cut off in the middle of the verdicts of the second question, and in the middle of a line.
    let lines = std::fs::read_to_string(output.join("samples.jsonl")).expect("samples");
    let kept: String = lines.split_inclusive('\n').take(whole.len() * 2 / 3).collect();
    std::fs::write(output.join("samples.jsonl"), &kept[..kept.len() - 9]).expect("a writable folder");
    succeeds(&mut navigate());
    let key = |row: &Value| {
        let mut row = row.clone();
        row["data"]["wall_s"] = Value::Null;
        row.to_string()
    };
    let (mut again, mut before): (Vec<String>, Vec<String>) = (
        samples(&output).iter().map(key).collect(),
        whole.iter().map(key).collect(),
    );
    again.sort();
    before.sort();
    assert_eq!(again, before);
}

#[test]
fn what_runs_on_the_cpu_alone_refuses_a_gpu() {
    for command in ["navigate", "correlate", "generate", "reason", "speed"] {
        refuses(
            probe(command, &["--device", "cuda"]).arg("--dry-run"),
            3,
            &["`--device cuda`", "on the CPU only"],
        );
    }
    refuses(
        &mut probe("clusters", &["--dtype", "bf16"]),
        2,
        &["`--dtype bf16`", "f32"],
    );
}

#[test]
fn judges_that_cannot_be_are_refused() {
    for (flags, parts) in [
        (&["--judge", "command"][..], &["needs the command"][..]),
        (&["--judge", "list", "--judge-command", "true"], &["another judge"]),
        (
            &["--judge-command", "true", "--judge-timeout", "0"],
            &["--judge-timeout"],
        ),
        (&["--categories", "nothing"], &["`--categories nothing`", "countries"]),
        (&["--lists", "no/such/file.json"], &["no/such/file.json"]),
        (&["--max-new-tokens", "2000"], &["a context of 1024 tokens"]),
        (&["--temperature", "0"], &["`--temperature 0`"]),
        (&["--cluster-penalty", "-1"], &["`--cluster-penalty -1`"]),
    ] {
        refuses(&mut probe("navigate", flags), 2, parts);
    }
    let model = TinyModel::llama().build();
    let mut other = probe(
        "navigate",
        &[
            "--limit",
            "1",
            "--methods",
            "cluster-penalty",
            "--clusters",
            "ids.json",
            "-m",
        ],
    );
    other.arg(model.path()).current_dir(model.path());
    model.write("ids.json", "[0, 1]");
    refuses(&mut other, 2, &["clusters 2 ids", "300"]);
    model.write("empty.json", r#"{"id": "a", "category": "b", "answers": []}"#);
    let mut empty = probe("correlate", &["--lists", "empty.json", "-m"]);
    refuses(empty.arg(model.path()).current_dir(model.path()), 2, &["`a` is empty"]);
}

#[test]
fn what_leaves_no_room_for_an_answer_is_refused_before_the_model_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let long = "very ".repeat(2000);
    let write = |name: &str, value: &Value| {
        std::fs::write(folder.path().join(name), value.to_string()).expect("a writable folder");
    };
    write("list.json", &json!({"id": "a", "instruction": long, "answers": ["b"]}));
    write("problem.json", &json!([{"question": long, "answer": "#### 1"}]));
    write("task.json", &json!({"id": "a", "instruction": long}));
    let parts = ["the prompt of `very very", "tokens, but", "`--max-context`"];
    for (command, flags) in [
        ("navigate", &["--lists", "list.json"][..]),
        ("correlate", &["--lists", "list.json"]),
        ("generate", &["--task-file", "task.json"]),
        ("reason", &["--set-name", "gsm8k", "--data", "problem.json"]),
        ("speed", &["--instruction", &long]),
    ] {
        let mut command = probe(command, flags);
        refuses(command.arg("--dry-run").current_dir(folder.path()), 2, &parts);
    }
}

#[test]
fn a_list_may_be_named_as_the_kept_verdicts_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let list = json!({"id": "verdict", "category": "fruits", "answers": ["apple"]});
    std::fs::write(folder.path().join("list.json"), list.to_string()).expect("a writable folder");
    let flags = [
        "--lists",
        "list.json",
        "--methods",
        "top",
        "--rounds",
        "1",
        "--step",
        "3",
        "--format",
        "json",
        "-o",
        "out",
    ];
    for judge in [&[][..], &["--judge", "model"]] {
        let output = folder.path().join("out");
        let _ = std::fs::remove_dir_all(&output);
        let report = succeeds(probe("navigate", &flags).args(judge).current_dir(folder.path())).json();
        assert_eq!(column(table(&report, "methods"), "n"), [1], "{judge:?}");
    }
}

#[test]
fn memory_for_keys_clusters_and_the_judge_is_planned() {
    let plan = |flags: &[&str]| {
        let mut command = probe("navigate", &["--dry-run", "--format", "json", "--methods"]);
        succeeds(command.args(flags)).json()
    };
    let bytes = |plan: &Value| plan["besides_bytes"].as_u64().expect("bytes");
    let (top, icn) = (plan(&["top"]), plan(&["icn"]));
    // 2304 keys of 192 elements of 4 bytes.
    assert_eq!((bytes(&top), bytes(&icn)), (0, 2304 * 192 * 4));
    assert!(bytes(&plan(&["cluster-penalty"])) > 2 * bytes(&icn));
    let judged = plan(&["top", "--judge", "model"]);
    let parts = &judged["memory_plan"];
    let session =
        parts["kv_cache_bytes"].as_u64().expect("bytes") + parts["prefill_scratch_bytes"].as_u64().expect("bytes");
    assert_eq!(bytes(&judged), session);
    // Room for the model and its session, none for the judge's.
    let room = top["memory_plan_total_bytes"].as_u64().expect("bytes") + session / 2;
    let mut full = probe(
        "navigate",
        &["--methods", "top", "--judge", "model", "--dry-run", "--max-memory"],
    );
    refuses(full.arg(format!("{room}")), 3, &["keys, clusters and judge"]);
}

/// Starts `command`, waits until `output` holds samples, and sends the signal of Ctrl-C.
#[cfg(unix)]
fn interrupted(command: &mut Command, output: &Path) -> std::process::Output {
    let child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let started = std::time::Instant::now();
    while std::fs::read_to_string(output.join("samples.jsonl")).map_or(0, |text| text.lines().count()) < 3 {
        assert!(started.elapsed().as_secs() < 120, "no samples");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill is there").success());
    child.wait_with_output().expect("ends")
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_done_and_the_same_command_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = [
        "--categories",
        "months,fruits",
        "--rounds",
        "2",
        "--step",
        "10",
        "--max-new-tokens",
        "12",
    ];
    for (number, (command, flags)) in [
        ("navigate", &["--methods", "top,temperature", "--seeds", "40"][..]),
        // Interrupted while it waits for a verdict, too.
        (
            "navigate",
            &[
                "--methods",
                "top",
                "--judge-command",
                "while read -r l; do sleep 0.1; echo '{\"correct\": true}'; done",
            ],
        ),
        ("reason", &["--limit", "40"]),
    ]
    .into_iter()
    .enumerate()
    {
        let output = folder.path().join(number.to_string());
        let start = || {
            let mut program = probe(command, flags);
            if command == "navigate" {
                program.args(small);
            }
            program.args(["--format", "json", "-o"]).arg(&output);
            program
        };
        let stopped = interrupted(&mut start(), &output);
        let said = String::from_utf8_lossy(&stopped.stderr);
        assert_eq!(stopped.status.code(), Some(130), "{said}");
        assert!(said.contains("run the same command again to go on"), "{said}");
        assert_eq!(
            said.contains("verdicts of the judge"),
            flags.contains(&"--judge-command"),
            "{said}"
        );
        assert_eq!(report(&output)["interrupted"], true);
        let kept = samples(&output);
        let finished = succeeds(&mut start()).json();
        assert_eq!(finished["interrupted"], false);
        let all = samples(&output);
        assert!(
            all.len() > kept.len() && all[..kept.len()] == kept,
            "{} of {}",
            kept.len(),
            all.len()
        );
    }
}

#[test]
fn padding_rows_are_never_probed_and_a_missing_template_is_said() {
    let model = TinyModel::qwen2().build();
    let mut command = probe(
        "navigate",
        &[
            "--limit",
            "1",
            "--rounds",
            "2",
            "--step",
            "20",
            "--max-new-tokens",
            "3",
            "--chat-template",
            "auto",
            "-m",
        ],
    );
    let folder = tempfile::tempdir().expect("a folder");
    let finished = run(command.arg(model.path()).arg("-o").arg(folder.path()));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(
        finished.stderr.contains("warning: ") && finished.stderr.contains("no chat template"),
        "{finished:?}"
    );
    for row in samples(folder.path()) {
        let answers = row["data"]["answers"].as_array().expect("answers");
        assert_eq!(answers.len(), 40);
        for answer in answers {
            let first = answer[1].as_u64().expect("an id");
            // 256 bytes, four special tokens, three merges; rows beyond have no token.
            assert!(first < 263 && !(256..260).contains(&first), "{first}");
        }
    }
    // Nor do completions go on in such a row, which a random model likes as well as any other.
    for command in ["navigate", "speed"] {
        let flags: &[&str] = match command {
            "navigate" => &[
                "--limit",
                "1",
                "--rounds",
                "1",
                "--step",
                "20",
                "--methods",
                "temperature,diverse-beam",
            ],
            _ => &["--completions", "20", "--max-new-tokens", "12"],
        };
        let mut command = probe(command, flags);
        let report = succeeds(command.args(["--format", "json", "-m"]).arg(model.path())).json();
        for ids in report["details"]["ids"].as_array().into_iter().flatten() {
            let ids = ids.as_array().expect("ids");
            assert!(ids.iter().all(|id| id.as_u64().expect("an id") < 263), "{ids:?}");
        }
    }
    let report = succeeds(probe("clusters", &["--k", "8", "--format", "json", "-m"]).arg(model.path())).json();
    let summary = table(&report, "summary");
    assert_eq!(column(summary, "value")[0], VOCABULARY);
    assert_eq!(column(summary, "value")[1], VOCABULARY - 263);
}
