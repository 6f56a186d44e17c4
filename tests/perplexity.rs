//! `tokselect bench perplexity` as a whole program: against transformers, against itself, resumed, and refused.

mod common;

use common::program::{refuses, succeeds, tokselect};
use common::tables::{column, rows, table, timeless};
use common::tiny_model::TinyModel;
use std::path::{Path, PathBuf};
use std::process::Command;

const SELECTING: &str = "token-select:top-k=16,n-init=4,n-local=32";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn perplexity(model: &Path) -> Command {
    let mut command = tokselect();
    command.args(["bench", "perplexity", "-m"]).arg(model);
    command.arg("--text").arg(fixture("story.txt"));
    command
}

#[test]
fn dense_against_dense_in_other_words_is_no_distance() {
    let model = TinyModel::llama().build();
    // A budget beyond every window selects everything.
    let wide = "token-select:top-k=4096";
    for step in [&[][..], &["--step", "1", "--prefix", "100"]] {
        let mut command = perplexity(model.path());
        command.args([
            "--lengths",
            "128,200",
            "--windows",
            "3",
            "--prefill-chunk",
            "32",
            "--format",
            "json",
        ]);
        command.args(["--policies", "dense", "--policies", wide, "--policies", SELECTING]);
        let report = succeeds(command.args(step)).json();
        let table = table(&report, "perplexity");
        let kl = column(table, "kl_mean");
        let agreement = column(table, "top1_agreement");
        for length in [0, 3] {
            assert_eq!(
                (kl[length].as_f64(), agreement[length].as_f64()),
                (Some(0.0), Some(1.0))
            );
            // The same attention; the kernel of a list may add in another order.
            assert!(kl[length + 1].as_f64().expect("a number").abs() < 1e-6, "{kl:?}");
            assert!(
                kl[length + 2].as_f64().expect("a number") > 1e-4,
                "a policy that drops tokens must show: {kl:?}"
            );
        }
        let tokens = if step.is_empty() { 127 } else { 28 };
        assert_eq!(column(table, "tokens")[0], 3 * tokens);
        assert_eq!(column(table, "windows"), [3; 6]);
    }
}

/// Token by token and in chunks, dense attention predicts the same.
#[test]
fn the_step_does_not_change_dense_perplexity() {
    let model = TinyModel::llama().build();
    let value = |more: &[&str]| {
        let mut command = perplexity(model.path());
        command.args([
            "--lengths",
            "150",
            "--windows",
            "2",
            "--prefix",
            "40",
            "--policies",
            "dense",
        ]);
        let report = succeeds(command.args(["--format", "json"]).args(more)).json();
        column(table(&report, "perplexity"), "nll_mean")[0]
            .as_f64()
            .expect("a number")
    };
    let chunked = value(&["--prefill-chunk", "37"]);
    assert!((chunked - value(&["--step", "1"])).abs() < 1e-5);
    assert!((chunked - value(&["--step", "7", "--prefill-chunk", "512"])).abs() < 1e-5);
}

/// `tests/fixtures/story.txt` in windows of BOS and text, scored by transformers 5 in f32 with eager attention.
#[test]
fn dense_perplexity_is_that_of_transformers() {
    let Some(model) = common::shared("data/stories260K/hf") else {
        return;
    };
    let mut command = perplexity(&model);
    command.args([
        "--lengths",
        "64,128",
        "--windows",
        "3",
        "--policies",
        "dense",
        "--format",
        "json",
    ]);
    let report = succeeds(&mut command).json();
    let found = column(table(&report, "perplexity"), "perplexity");
    for (found, expected) in found.iter().zip([5.693_280_814_072_024, 5.054_712_775_184_592]) {
        let found = found.as_f64().expect("a number");
        assert!((found / expected - 1.0).abs() < 1e-5, "{found} against {expected}");
    }
}

#[test]
fn a_perplexity_run_resumes_to_the_same_tables() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let run = |output: &Path| {
        let mut command = perplexity(model.path());
        command.args([
            "--lengths",
            "100",
            "--windows",
            "4",
            "--policies",
            "dense",
            "--policies",
            SELECTING,
            "-o",
        ]);
        succeeds(command.arg(output));
    };
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    run(&whole);
    run(&cut);
    // As if killed between the two rows of the second window.
    let samples = cut.join("samples.jsonl");
    let text = std::fs::read_to_string(&samples).expect("samples");
    let kept: Vec<&str> = text.split_inclusive('\n').take(3).collect();
    std::fs::write(&samples, kept.concat()).expect("writable");
    std::fs::remove_file(cut.join("report.json")).expect("there");
    run(&cut);
    assert_eq!(timeless(&cut), timeless(&whole));
    assert_eq!(rows(&cut).len(), 8);
}

#[test]
fn wrong_perplexity_input_is_one_error() {
    let model = TinyModel::llama().build();
    for (flags, parts) in [
        (
            &["--lengths", "100k"][..],
            &["fewer than one window of 102400", "story.txt"][..],
        ),
        (&["--lengths", "1"], &["predicts nothing"]),
        (
            &["--lengths", "64", "--prefix", "63"],
            &["prefix of 63", "predicts nothing"],
        ),
        (&["--lengths", "64", "--step", "0"], &["--step"]),
        (&["--lengths", "64", "--windows", "0"], &["--windows"]),
        (&["--lengths", "64", "--max-context", "32"], &["--max-context 32", "64"]),
        (
            &["--policies", "dense", "--policies", "streaming-llm:prefill-chunk=3"],
            &["prefill chunk of its own"],
        ),
    ] {
        refuses(perplexity(model.path()).args(flags), 2, parts);
    }
    let mut absent = tokselect();
    absent.args(["bench", "perplexity", "-m"]).arg(model.path());
    refuses(absent.args(["--text", "absent.txt"]), 2, &["absent.txt"]);
}

#[test]
fn without_a_text_sentences_are_made_from_the_seed() {
    let model = TinyModel::llama().build();
    let report = |seed: &str| {
        let mut command = tokselect();
        command.args(["bench", "perplexity", "-m"]).arg(model.path());
        command.args([
            "--lengths",
            "200",
            "--windows",
            "2",
            "--policies",
            "dense",
            "--seed",
            seed,
        ]);
        succeeds(command.args(["--format", "json"])).json()
    };
    let (first, again, other) = (report("1"), report("1"), report("2"));
    let text = |report: &serde_json::Value| report["config"]["text_sha256"].clone();
    assert_eq!(text(&first), text(&again));
    assert_ne!(text(&first), text(&other));
    assert_eq!(column(table(&first, "perplexity"), "windows"), [2]);
    assert_eq!(first["tables"], again["tables"]);
}
