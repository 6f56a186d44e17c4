//! The accuracy benches as whole programs, on a tiny model: what they measure, keep, resume and refuse.
#![cfg(unix)]

mod common;

use common::program::{Finished, assert_refused, finished, refuses, report, succeeds, tokselect};
use common::tables::{column, rows, table, timeless};
use common::tiny_model::{CHAT_TEMPLATE, ModelDir, TinyModel};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SELECTING: &str = "token-select:top-k=16,n-init=4,n-local=32";

/// `tokselect bench NAME -m MODEL`.
fn bench(name: &str, model: &ModelDir) -> Command {
    let mut command = tokselect();
    command.args(["bench", name, "-m"]).arg(model.path());
    command
}

/// A passkey run of two policies on short texts.
fn passkey(model: &ModelDir) -> Command {
    let mut command = bench("passkey", model);
    command.args(["--lengths", "448,512", "--depths", "0,1", "--samples", "2"]);
    command.args(["--policies", "dense", "--policies", SELECTING, "--prefill-chunk", "64"]);
    command
}

#[test]
fn a_passkey_run_has_a_row_per_sample_and_tables_over_them() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let run = succeeds(passkey(&model).arg("-o").arg(&output));
    for part in ["accuracy", "by_depth", "timing", SELECTING] {
        assert!(run.text().contains(part), "{part}: {}", run.text());
    }
    let rows = rows(&output);
    // 2 lengths x 2 depths x 2 samples x 2 policies.
    assert_eq!(rows.len(), 16);
    for row in &rows {
        let data = &row["data"];
        let length = data["length_tokens"].as_u64().expect("a length");
        let tokens = data["prompt_tokens"].as_u64().expect("prompt tokens");
        // BOS, prompt and 16 answer tokens; a sentence of noise has at most 22 tokens of this tokenizer.
        assert!(tokens + 16 <= length && tokens + 16 + 22 > length, "{data}");
        assert_eq!(data["answers"][0].as_str().map(str::len), Some(5));
        assert!(
            data["scores"]["exact_key"].is_number() && data["answer"].is_string(),
            "{data}"
        );
        for key in ["wall_s", "prefill_s", "ttft_s", "tpot_s"] {
            assert!(data[key].as_f64().is_some_and(|s| s > 0.0), "{key}: {data}");
        }
    }
    let prompts = |variant: &str| -> Vec<Value> {
        let own = rows.iter().filter(|row| row["data"]["variant"] == variant);
        own.map(|row| row["data"]["prompt_sha256"].clone()).collect()
    };
    assert_eq!(
        prompts("dense"),
        prompts(SELECTING),
        "all policies read the same prompts"
    );
    assert_eq!(
        prompts("dense")
            .iter()
            .map(Value::to_string)
            .collect::<BTreeSet<_>>()
            .len(),
        8
    );

    let report = report(&output);
    let accuracy = table(&report, "accuracy");
    assert_eq!(column(accuracy, "n"), [4; 4]);
    assert_eq!(column(accuracy, "pairs")[1], 4);
    assert_eq!(column(table(&report, "by_depth"), "n"), [2; 8]);
    assert_eq!(report["details"]["reference"], "dense");
    assert_eq!(report["details"]["timing"]["rows"].as_array().map(Vec::len), Some(4));
    for figure in ["figure.svg", "heatmap-passkey.svg"] {
        let svg = std::fs::read_to_string(output.join(figure)).expect("a figure");
        assert!(svg.contains("dense") && svg.contains(SELECTING), "{figure}");
    }
    let validator = jsonschema::validator_for(&tokselect::report::schema::report_schema()).expect("a schema");
    assert!(validator.is_valid(&report));
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_does_not() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let run = |name: &str, seed: &str| {
        let output = folder.path().join(name);
        succeeds(passkey(&model).args(["--seed", seed, "-o"]).arg(&output));
        output
    };
    let (first, second, other) = (run("a", "1"), run("b", "1"), run("c", "2"));
    assert_eq!(timeless(&first), timeless(&second));
    let keys = |output: &Path| -> Vec<Value> { rows(output).iter().map(|r| r["data"]["answers"].clone()).collect() };
    assert_ne!(keys(&first), keys(&other));
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.matches('\n').count())
}

fn wait_for_some(child: &mut Child, samples: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while lines(samples) < 3 {
        assert!(child.try_wait().expect("known").is_none(), "it ended too early");
        assert!(Instant::now() < deadline, "no answer in a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status();
    assert!(sent.expect("kill is there").success());
}

fn start(command: &mut Command, output: &Path) -> Child {
    command
        .arg("-o")
        .arg(output)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("starts")
}

fn ended(child: Child) -> Finished {
    finished(child.wait_with_output().expect("ends"))
}

/// Enough samples to be stopped midway.
fn long_passkey(model: &ModelDir) -> Command {
    let mut command = passkey(model);
    command.args(["--limit", "40"]);
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut longer = tokselect();
    let at = arguments.iter().position(|a| a == "--samples").expect("there") + 1;
    longer.args(&arguments[..at]).arg("20").args(&arguments[at + 1..]);
    longer
}

#[test]
fn killed_and_interrupted_runs_resume_to_the_tables_of_an_unbroken_one() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("whole");
    succeeds(long_passkey(&model).arg("-o").arg(&whole));
    for (name, code) in [("-KILL", None), ("-INT", Some(130))] {
        let output = folder.path().join(name);
        let samples = output.join("samples.jsonl");
        let mut child = start(&mut long_passkey(&model), &output);
        wait_for_some(&mut child, &samples);
        signal(&child, name);
        let stopped = ended(child);
        assert_eq!(stopped.code, code, "{stopped:?}");
        let kept = lines(&samples);
        assert!((3..80).contains(&kept), "{kept}");
        if code.is_some() {
            assert_refused(
                &stopped,
                130,
                &[&format!("{kept} finished samples"), "same command again"],
            );
            assert_eq!(report(&output)["interrupted"], true);
        }
        let resumed = succeeds(long_passkey(&model).arg("-o").arg(&output));
        assert!(
            resumed
                .stderr
                .contains(&format!("{kept} of 80 samples are already there"))
        );
        assert_eq!(timeless(&output), timeless(&whole), "after {name}");
        assert_eq!(report(&output)["samples"]["resumed_count"], kept);
    }
}

#[test]
fn a_finished_run_is_not_run_again_and_another_configuration_is_refused() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    succeeds(passkey(&model).arg("-o").arg(&output));
    let before = rows(&output);
    let again = succeeds(passkey(&model).arg("-o").arg(&output));
    assert!(
        again.stderr.contains("16 of 16 samples are already there"),
        "{}",
        again.stderr
    );
    assert_eq!(rows(&output), before);
    let mut other = passkey(&model);
    other.args(["--policies", "streaming-llm", "-o"]).arg(&output);
    refuses(&mut other, 2, &["different configuration", "policies"]);
}

#[test]
fn a_question_that_does_not_fit_is_a_row_with_its_reason_and_nothing_is_cut_off() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let mut command = passkey(&model);
    command.args(["--max-context", "470", "-o"]).arg(&output);
    succeeds(&mut command);
    let refused: Vec<Value> = rows(&output)
        .into_iter()
        .map(|row| row["data"].clone())
        .filter(|data| data["length_tokens"] == 512)
        .collect();
    assert_eq!(refused.len(), 8);
    for data in refused {
        assert_eq!((&data["answer"], &data["scores"]), (&Value::Null, &Value::Null));
        let reason = data["reason"].as_str().expect("a reason");
        assert!(reason.contains("more than the context of 470"), "{reason}");
    }
    let report = report(&output);
    let accuracy = table(&report, "accuracy");
    assert_eq!(column(accuracy, "n"), [4, 4, 0, 0]);
    assert_eq!(column(accuracy, "not_asked"), [0, 0, 4, 4]);
    assert_eq!(column(accuracy, "mean")[2]["reason"], "no answer");
}

#[test]
fn a_chat_template_is_applied_and_its_tokens_count() {
    let model = TinyModel::llama().chat_template(CHAT_TEMPLATE).build();
    let plan = |more: &[&str]| succeeds(passkey(&model).args(["--dry-run", "--format", "json"]).args(more)).json();
    // `<|user|>user: `, the newline and `<|assistant|>` against BOS alone.
    assert_eq!(plan(&[])["overhead_tokens"]["templated"], 9);
    assert_eq!(plan(&["--chat-template", "none"])["overhead_tokens"]["templated"], 1);
    assert_eq!(plan(&[])["samples"], 16);
    assert_eq!(plan(&["--limit", "3"])["samples"], 6);
    let report = succeeds(passkey(&model).args(["--format", "json"])).json();
    assert!(report["manifest"]["chat_template_sha256"]["value"].is_string());
}

#[test]
fn examples_are_exported_without_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("examples");
    let export = || {
        let mut command = tokselect();
        command.args([
            "bench",
            "passkey",
            "--count",
            "words",
            "--lengths",
            "1k",
            "--depths",
            "0.5",
        ]);
        command.args(["--samples", "3", "--export"]).arg(&output);
        command
    };
    succeeds(&mut export());
    let text = std::fs::read_to_string(output.join("1024/passkey.jsonl")).expect("examples");
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(lines.len(), 3);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line["index"], index);
        let length = line["length"].as_u64().expect("a length");
        assert!((1013..=1024).contains(&length), "{length}");
        let key = line["outputs"][0].as_str().expect("an answer");
        assert!(line["input"].as_str().expect("a prompt").contains(key));
    }
    refuses(&mut export(), 2, &["1024/passkey.jsonl", "never overwritten"]);
}

#[test]
fn wrong_input_is_one_error_before_anything_is_computed() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "x").expect("writable");
    let file = file.to_str().expect("UTF-8");
    for (flags, parts) in [
        (&["--tasks", "niah"][..], &["`--tasks niah`", "passkey"][..]),
        (&["--lengths", "0"], &["--lengths", "0"]),
        (&["--lengths", "4q"], &["4q", "4k"]),
        (&["--lengths", "64"], &["no room", "--lengths"]),
        (&["--samples", "0"], &["--samples", "0"]),
        (&["--limit", "0"], &["--limit", "0"]),
        (&["--limit", "-1"], &["--limit", "-1"]),
        (&["--depths", "2"], &["--depths", "from 0 to 1"]),
        (&["--policies", "token-select:topk=3"], &["`topk` is no knob", "top-k"]),
        (&["--policies", "sparse"], &["'sparse'", "token-select"]),
        (&["--policies", SELECTING], &["is the same policy as", SELECTING]),
        (&["--reference", "nobody"], &["--reference nobody", "dense"]),
        (&["--chat-template", "absent.jinja"], &["absent.jinja"]),
        (&["-o", file], &["is a file, not a directory"]),
        (&["--max-memory", "64KiB"], &["64.0 KiB are available"]),
    ] {
        let mut command = passkey(&model);
        // A flag given twice is refused by itself.
        if let Some(at) = command
            .get_args()
            .position(|a| a == flags[0])
            .filter(|_| flags[0] != "--policies")
        {
            let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            command = tokselect();
            command.args(&arguments[..at]).args(&arguments[at + 2..]);
        }
        let code = if flags[0] == "--max-memory" { 3 } else { 2 };
        refuses(command.args(flags), code, parts);
    }
}

#[test]
fn ruler_tasks_run_and_are_exported_in_their_own_field_names() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let ruler = || {
        let mut command = bench("ruler", &model);
        command.args(["--tasks", "vt,niah_single_1", "--lengths", "2k", "--samples", "1"]);
        command
    };
    let report = succeeds(ruler().args(["--policies", SELECTING, "--format", "json"])).json();
    let accuracy = table(&report, "accuracy");
    // In the suite's order, whatever the order on the command line.
    assert_eq!(column(accuracy, "task"), ["niah_single_1", "vt"]);
    assert_eq!(column(accuracy, "metric"), ["string_match_all"; 2]);
    assert_eq!(column(accuracy, "difference")[0]["reason"], "no reference");
    let output = folder.path().join("examples");
    succeeds(ruler().arg("--export").arg(&output));
    let text = std::fs::read_to_string(output.join("2048/niah_single_1.jsonl")).expect("examples");
    let line: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    for key in [
        "index",
        "input",
        "outputs",
        "length",
        "answer_prefix",
        "token_position_answer",
    ] {
        assert!(!line[key].is_null(), "{key}: {line}");
    }
    refuses(ruler().args(["--essay", "absent.txt"]), 2, &["absent.txt"]);
    refuses(ruler().args(["--depths", "0.5"]), 2, &["`vt` has no needle"]);
}
