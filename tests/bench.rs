//! `tokselect bench end-to-end` as a whole program, on a tiny shape: what it measures, checks, keeps and refuses.
#![allow(clippy::print_stderr, reason = "a skipped test says why")]
#![allow(
    clippy::float_cmp,
    reason = "a cell must be the quotient of two others to the last bit"
)]

use assert_cmd::Command;
use serde_json::{Value, json};
use std::path::Path;

const SHORT: [&str; 20] = [
    "bench",
    "end-to-end",
    "--shape",
    "tiny",
    "--prefill-tokens",
    "96",
    "--decode-at",
    "40,300",
    "--prefill-repetitions",
    "2",
    "--decode-repetitions",
    "3",
    "--prefill-chunk",
    "32",
    "--n-init",
    "4",
    "--n-local",
    "16",
    "--top-k",
    "32",
];

fn tokselect(more: &[&str]) -> Command {
    let mut command = Command::cargo_bin("tokselect").expect("built");
    command.args(SHORT).args(["--threads", "1"]).args(more);
    command
}

fn report(more: &[&str]) -> Value {
    let output = tokselect(more).args(["--format", "json"]).assert().success();
    serde_json::from_slice(&output.get_output().stdout).expect("JSON")
}

/// Rows of a table as objects.
fn rows(report: &Value, name: &str) -> Vec<Value> {
    let table = report["tables"]
        .as_array()
        .expect("tables")
        .iter()
        .find(|table| table["name"] == name)
        .unwrap_or_else(|| panic!("table {name}"));
    let columns = table["columns"].as_array().expect("columns");
    let objects = table["rows"].as_array().expect("rows").iter().map(|row| {
        let cells = columns.iter().zip(row.as_array().expect("row"));
        Value::Object(
            cells
                .map(|(column, cell)| (column["key"].as_str().expect("key").to_owned(), cell.clone()))
                .collect(),
        )
    });
    objects.collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("text: {value}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("number: {value}"))
}

fn samples(directory: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(directory.join("samples.jsonl")).expect("samples");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn median(values: &Value) -> f64 {
    let mut values: Vec<f64> = values.as_array().expect("list").iter().map(number).collect();
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}

#[test]
fn every_cell_is_there_and_ratios_are_those_of_the_medians() {
    let directory = tempfile::tempdir().expect("folder");
    let output = directory.path().to_str().expect("UTF-8");
    let report = report(&["--output", output]);
    assert_eq!(report["interrupted"], false);

    let checks = rows(&report, "checks");
    assert_eq!(checks.len(), 2);
    assert!(checks.iter().all(|check| check["passed"] == true), "{checks:?}");
    assert_eq!(checks[1]["max_abs_difference"], 0.0);

    let prefill = rows(&report, "prefill");
    let names: Vec<_> = prefill.iter().map(|row| text(&row["policy"])).collect();
    assert_eq!(names, ["dense", "token-select", "streaming-llm"]);
    for row in &prefill {
        assert_eq!((&row["prompt_tokens"], &row["n"]), (&json!(96), &json!(2)));
        let speed = number(&row["prefill_tokens_per_s"]) * number(&row["prefill_s"]);
        assert!((speed - 96.0).abs() < 1e-9, "{row}");
        assert!(number(&row["attention_s"]) < number(&row["prefill_s"]), "{row}");
    }

    let decode = rows(&report, "decode");
    assert_eq!(decode.len(), 2 * 5);
    // Every token fits the budget of 52 at 40 tokens; at 300 one of five variants never misses.
    let fits = decode
        .iter()
        .find(|r| r["stored_tokens"] == 40 && r["policy"] == "token-select");
    let reason = &fits.expect("row")["hit_rate"]["reason"];
    assert!(text(reason).contains("within the budget of 52"), "{reason}");
    let hit = decode
        .iter()
        .find(|r| r["stored_tokens"] == 300 && r["policy"] == "token-select hit");
    assert_eq!(hit.expect("row")["hit_rate"], 1.0);

    let ratios = rows(&report, "ratios");
    assert_eq!(ratios.len(), 2 * 2 + 2 * 2 * 4);
    let lines = samples(directory.path());
    let steps = lines
        .iter()
        .find(|line| line["task"] == "decode" && line["id"] == "300")
        .expect("sample");
    let variants = steps["data"]["variants"].as_array().expect("variants");
    let step = |name: &str| median(&variants.iter().find(|v| v["name"] == name).expect("variant")["step_s"]);
    for name in ["token-select miss", "token-select hit", "token-select", "streaming-llm"] {
        let ratio = ratios.iter().find(|row| {
            row["phase"] == "decode" && row["tokens"] == 300 && row["part"] == "whole" && row["denominator"] == name
        });
        let ratio = ratio.expect("row");
        assert_eq!(ratio["numerator"], "dense");
        assert_eq!(number(&ratio["ratio"]), step("dense") / step(name), "{ratio}");
        assert!(number(&ratio["paired_ratio_min"]) <= number(&ratio["paired_ratio_max"]));
    }

    let memory = rows(&report, "memory");
    assert_eq!(memory.len(), 2);
    for row in &memory {
        assert_eq!(row["context_tokens"], 301);
        assert!(number(&row["planned_bytes"]) > 0.0);
        if cfg!(target_os = "linux") {
            let ratio = number(&row["peak_rss_bytes"]) / number(&row["planned_bytes"]);
            assert_eq!(number(&row["measured_over_planned"]), ratio);
        }
    }
}

#[test]
fn a_run_goes_on_where_it_was_stopped_and_refuses_other_settings() {
    let directory = tempfile::tempdir().expect("folder");
    let output = directory.path().to_str().expect("UTF-8");
    report(&["--output", output]);
    let all = samples(directory.path());
    // As after an interrupt: memory, checks and the first prefill only.
    let kept: Vec<String> = all[..5].iter().map(Value::to_string).collect();
    std::fs::write(directory.path().join("samples.jsonl"), kept.join("\n") + "\n").expect("written");
    let resumed = report(&["--output", output]);
    assert_eq!(resumed["samples"]["resumed_count"], 5);
    assert_eq!(samples(directory.path())[..5], all[..5]);
    let ids = |lines: &[Value]| {
        lines
            .iter()
            .map(|l| format!("{} {}", l["task"], l["id"]))
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&samples(directory.path())), ids(&all));

    let output = tokselect(&["--output", output, "--seed", "1"]).assert().code(2);
    let stderr = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(stderr.contains("settings.seed: 0 there, 1 now"), "{stderr}");
}

#[test]
fn another_program_stands_beside_when_its_setting_is_ours() {
    let directory = tempfile::tempdir().expect("folder");
    let path = directory.path().join("transformers.json");
    let path = path.to_str().expect("UTF-8");
    let ours = report(&["--parts", "decode", "--policies", "dense"]);
    let mut file = json!({
        "config": {
            "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": true, "max_position_embeddings": 131_072, "use_sliding_window": false,
        },
        "dtype": "float32", "attention": "sdpa", "threads": 1, "cpu": ours["config"]["cpu"].as_str().unwrap_or("?"),
        "torch": "1.2.3", "transformers": "4.5.6", "python": "3.12",
        "prefill": [{"n_tokens": 96, "repetitions_s": [1.0, 3.0]}],
        "decode": [{"n_stored_tokens": 300, "repetitions_s": [4.0, 2.0, 3.0]}],
    });
    std::fs::write(path, file.to_string()).expect("written");
    let report = report(&["--compare", path, "--parts", "prefill,decode"]);
    let decode = rows(&report, "decode");
    let theirs: Vec<_> = decode.iter().filter(|row| row["policy"] == "transformers").collect();
    assert_eq!(theirs.len(), 1);
    assert_eq!(
        (&theirs[0]["stored_tokens"], &theirs[0]["step_s"]),
        (&json!(300), &json!(3.0))
    );
    assert_eq!(
        theirs[0]["measured_by"],
        "torch 1.2.3, transformers 4.5.6, sdpa, float32"
    );
    let ratios = rows(&report, "ratios");
    let dense = decode
        .iter()
        .find(|r| r["stored_tokens"] == 300 && r["policy"] == "dense");
    let ratio = ratios
        .iter()
        .find(|r| r["phase"] == "decode" && r["numerator"] == "transformers" && r["denominator"] == "dense");
    assert_eq!(
        number(&ratio.expect("row")["ratio"]),
        3.0 / number(&dense.expect("row")["step_s"])
    );

    file["threads"] = 64.into();
    std::fs::write(path, file.to_string()).expect("written");
    let output = tokselect(&["--compare", path]).assert().code(2);
    let stderr = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(stderr.contains("`threads` is 64 there and 1 here"), "{stderr}");
}

#[test]
fn wrong_input_is_refused_before_anything_runs() {
    for (more, expected) in [
        (&["--policy", "token-select"][..], "pass `--policies`"),
        (&["--prefill-tokens", "0"], "pass tokens, 1 or more"),
        (&["--max-context", "100"], "less than the 301 tokens"),
        (&["--max-memory", "1MiB"], "smaller `--prefill-tokens`"),
        (&["--model", "x"], "cannot be used with"),
    ] {
        let mut command = Command::cargo_bin("tokselect").expect("built");
        let overridden = |flag: &&str| more.contains(flag);
        let mut kept = Vec::new();
        let mut pairs = SHORT[2..].chunks_exact(2);
        for pair in pairs.by_ref().filter(|pair| !overridden(&pair[0])) {
            kept.extend_from_slice(pair);
        }
        let output = command.args(&SHORT[..2]).args(kept).args(more).assert().failure();
        let stderr = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        assert!(stderr.contains(expected), "{more:?}: {stderr}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_keeps_what_is_finished_and_says_so() {
    let directory = tempfile::tempdir().expect("folder");
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("tokselect"))
        .args(&SHORT[..8])
        .args([
            "--prefill-repetitions",
            "1",
            "--decode-repetitions",
            "100000000",
            "--output",
        ])
        .arg(directory.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("started");
    // Two memory samples, two checks, three prefills; the decode part would take hours.
    let lines = || std::fs::read_to_string(directory.path().join("samples.jsonl")).map_or(0, |t| t.lines().count());
    let started = std::time::Instant::now();
    while lines() < 7 && started.elapsed().as_secs() < 120 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let killed = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(killed.expect("kill").success());
    assert_eq!(child.wait().expect("ended").code(), Some(130));
    let report = std::fs::read_to_string(directory.path().join("report.json")).expect("report");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(
        (&report["interrupted"], &report["samples"]["count"]),
        (&json!(true), &json!(7))
    );
    assert_eq!(rows(&report, "prefill").len(), 3);
}

#[test]
fn benches_of_a_gpu_say_in_one_line_what_is_missing() {
    let run = |arguments: &[&str]| {
        let mut command = Command::cargo_bin("tokselect").expect("built");
        command.arg("bench").args(arguments).assert()
    };
    for bench in ["attention", "kernels"] {
        let output = run(&[bench]).code(2).get_output().stderr.clone();
        let text = String::from_utf8(output).expect("UTF-8");
        assert!(
            text.contains(&format!("`bench {bench}`")) && text.contains("`--gpu` is missing"),
            "{text}"
        );
        // The plan needs no GPU.
        let output = run(&[bench, "--gpu", "--dry-run", "--shapes", "tiny", "--lengths", "8k"]).success();
        let text = String::from_utf8(output.get_output().stdout.clone()).expect("UTF-8");
        assert!(text.contains("token-select miss, 8-bit keys"), "{text}");
    }
    run(&["attention", "--gpu", "--policies", "quest", "--dry-run"]).code(2);
    if tokselect::kernels::cuda::driver::device_count().is_ok_and(|count| count > 0) {
        eprintln!("skipped: this machine has a GPU");
        return;
    }
    for bench in [
        &["attention", "--gpu"][..],
        &["kernels", "--gpu"],
        &["end-to-end", "--gpu", "--shape", "tiny"],
    ] {
        let output = run(bench).code(3).get_output().stderr.clone();
        let text = String::from_utf8(output).expect("UTF-8");
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert!(text.contains("help: run it on a machine with an NVIDIA GPU"), "{text}");
    }
}
