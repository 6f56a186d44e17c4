//! The built-in model: it is there without network, home or flags, and computes what transformers computes.

mod common;

use common::program::{refuses, report, succeeds, tokselect};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokselect::hub::{DEMO, HubEnvironment, HubOptions, ModelFiles, Need, resolve_with};
use tokselect::kernels::cpu::Cpu;
use tokselect::manifest::{sha256, sha256_file};
use tokselect::model::checkpoint::Checkpoint;
use tokselect::model::config::ModelConfig;
use tokselect::model::decoder::{Decoder, Session, SessionLimits};
use tokselect::model::tokenizer::{Tokenizer, TokenizerFiles};
use tokselect::model::weights::ModelWeights;
use tokselect::selection::{Phase, PolicyConfig};

const FIXTURE: &str = include_str!("fixtures/demo_model.json");

fn files(folder: &Path) -> ModelFiles {
    let environment = HubEnvironment {
        endpoint: "http://127.0.0.1:9".into(),
        cache_dir: folder.join("hub"),
        own_cache_dir: folder.join("own"),
        token: None,
        offline: true,
    };
    resolve_with(&environment, DEMO, Need::All, &HubOptions::default()).expect("the built-in model")
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list");
    list.iter().map(|number| number.as_f64().expect("a number")).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|id| id as u32).collect()
}

#[test]
fn ids_logits_and_greedy_continuations_equal_transformers() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(folder.path());
    let fixture: Value = serde_json::from_str(FIXTURE).expect("JSON");
    assert_eq!(
        fixture["weights_sha256"],
        sha256_file(&files.weights[0]).expect("weights"),
        "the fixture is of other weights; run scripts/make_demo_fixture.py"
    );
    let tokenizer = Tokenizer::load(TokenizerFiles {
        tokenizer: files.tokenizer.as_deref().expect("a tokenizer"),
        tokenizer_config: files.tokenizer_config.as_deref(),
    })
    .expect("loads");
    let config = ModelConfig::load(&files.config).expect("a config");
    let checkpoint = Checkpoint::open(&files.weights, None).expect("weights");
    checkpoint.check(&config).expect("tensors match the config");
    let weights = ModelWeights::load(&Cpu, &config, &checkpoint, &mut |_| {}).expect("loads");
    let decoder = Decoder {
        config,
        weights,
        backend: Cpu,
    };
    let stride = fixture["logits_stride"].as_u64().expect("a stride") as usize;
    let cases = fixture["cases"].as_array().expect("cases");
    let mut compared = 0;
    for case in cases {
        let name = case["name"].as_str().expect("a name");
        let prompt = tokenizer
            .encode(case["prompt"].as_str().expect("a prompt"), true)
            .expect("encodes");
        assert_eq!(prompt, ids(&case["ids"]), "{name}");

        let limits = SessionLimits {
            max_context: 1024,
            prefill_chunk: 512,
            diagnose: false,
        };
        let mut session = Session::new(&decoder, &PolicyConfig::Dense, limits).expect("session");
        session.forward(&prompt, Phase::Prefill).expect("prefill");
        let mut logits = session.logits(prompt.len() - 1).expect("logits");
        let expected = numbers(&case["logits"]);
        let found = logits.iter().step_by(stride);
        assert_eq!(found.len(), expected.len(), "{name}");
        for (found, expected) in found.zip(&expected) {
            assert!(
                (f64::from(*found) - expected).abs() < 1e-3,
                "{name}: {found}, not {expected}"
            );
        }
        let greedy = ids(&case["greedy_ids"]);
        compared += greedy.len();
        for (step, expected) in greedy.into_iter().enumerate() {
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            assert_eq!(best, Some(expected as usize), "{name}, step {step}");
            session.forward(&[expected], Phase::Decode).expect("decode");
            logits = session.logits(0).expect("logits");
        }
    }
    assert!(compared >= 100, "only {compared} ids were compared");
}

/// The program in a home of its own.
fn at_home(home: &Path) -> Command {
    let mut command = tokselect();
    command.env("HOME", home);
    for name in ["XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"] {
        command.env_remove(name);
    }
    command
}

fn story(home: &Path) -> Command {
    let mut command = at_home(home);
    command.args(["infer", "--prompt", "Once upon a time", "--max-new-tokens", "60"]);
    command
}

fn folders_of_demo(caches: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(caches.join("tokselect")) else {
        return Vec::new();
    };
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn text_streams_in_an_empty_home_and_the_files_are_kept() {
    let home = tempfile::tempdir().expect("a folder");
    let first = succeeds(&mut story(home.path()));
    assert!(first.text().split_whitespace().count() > 20, "{first:?}");
    // In the form of a conversation too it goes on with the text, and does not answer it.
    assert!(first.text().trim_start().starts_with("there was a "), "{first:?}");
    let kept = folders_of_demo(&home.path().join(".cache"));
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(succeeds(&mut story(home.path())).stdout, first.stdout);
    let mut named = story(home.path());
    assert_eq!(succeeds(named.args(["-m", "demo"])).stdout, first.stdout);
}

#[test]
fn text_streams_where_the_home_cannot_be_written() {
    let temporary = tempfile::tempdir().expect("a folder");
    // Below a file no folder can be made, whoever asks.
    let mut command = story(Path::new("/dev/null"));
    let found = succeeds(command.env("TMPDIR", temporary.path()));
    assert!(found.text().split_whitespace().count() > 20, "{found:?}");
    assert_eq!(folders_of_demo(temporary.path()).len(), 1);

    let mut nowhere = story(Path::new("/dev/null"));
    nowhere.env("TMPDIR", "/dev/null");
    refuses(&mut nowhere, 3, &["finds no folder", "/dev/null", "XDG_CACHE_HOME"]);
}

#[test]
fn text_streams_without_any_home() {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut unset = story(Path::new(""));
    unset.env_remove("HOME");
    for mut command in [unset, story(Path::new(""))] {
        let found = succeeds(command.env("TMPDIR", temporary.path()).current_dir(temporary.path()));
        assert!(found.text().split_whitespace().count() > 20, "{found:?}");
    }
}

#[test]
fn it_is_in_the_package_and_measurements_are_not() {
    let listed = succeeds(
        Command::new(env!("CARGO"))
            .args(["package", "--list", "--allow-dirty", "--offline"])
            .current_dir(env!("CARGO_MANIFEST_DIR")),
    );
    let files: Vec<&str> = listed.text().lines().collect();
    for name in ["model.safetensors", "tokenizer.json", "config.json", "README.md"] {
        assert!(files.contains(&format!("models/demo/{name}").as_str()), "{name}");
    }
    assert!(!files.iter().any(|file| file.starts_with("results/")), "{files:?}");
    let size = |file: &&str| std::fs::metadata(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).map_or(0, |m| m.len());
    // A registry takes 10 MiB of compressed files; weights (5.1 MiB) hardly shrink, text to less than half.
    let rest: u64 = files
        .iter()
        .filter(|file| **file != "models/demo/model.safetensors")
        .map(size)
        .sum();
    assert!(rest < 8 << 20, "{rest} bytes beside the weights");
}

#[test]
fn doctor_and_help_say_that_it_is_there() {
    let home = tempfile::tempdir().expect("a folder");
    let found = succeeds(at_home(home.path()).arg("doctor"));
    assert!(found.text().contains("built in as `-m demo`"), "{found:?}");
    for command in [
        &["infer"][..],
        &["tokenize"],
        &["bench", "ruler"],
        &["bench", "passkey"],
        &["bench", "perplexity"],
    ] {
        let help = succeeds(at_home(home.path()).args(command).arg("--help"));
        let words: Vec<&str> = help.text().split_whitespace().collect();
        assert!(
            words.join(" ").contains("[default: demo"),
            "{command:?}: {}",
            help.text()
        );
    }
}

#[test]
fn every_command_takes_it_without_being_told() {
    let home = tempfile::tempdir().expect("a folder");
    let tokenized = succeeds(at_home(home.path()).args(["tokenize", "--text", "Once 42"]));
    assert_eq!(
        tokenized.text(),
        succeeds(at_home(home.path()).args(["tokenize", "-m", "demo", "--text", "Once 42"])).text()
    );
    for bench in [
        &["passkey", "--lengths", "512"][..],
        &["ruler", "--lengths", "512", "--tasks", "niah_single_1"],
    ] {
        let mut command = at_home(home.path());
        succeeds(command.arg("bench").args(bench).args(["--samples", "1", "--dry-run"]));
    }
    refuses(
        at_home(home.path()).args(["infer", "-p", "x", "--revision", "v1"]),
        2,
        &["`--revision v1`", "`demo`"],
    );
}

#[test]
fn a_report_names_it_and_its_hashes_and_no_place_of_this_machine() {
    let home = tempfile::tempdir().expect("a folder");
    let output = home.path().join("out");
    succeeds(story(home.path()).arg("-o").arg(&output));
    let report = report(&output);
    let source = &report["config"]["source"];
    assert_eq!(report["config"]["model"], "demo");
    assert_eq!((&source["kind"], &source["name"]), (&"embedded".into(), &"demo".into()));
    assert_eq!(source["sha256"].as_str().map(str::len), Some(64));
    let recorded = report["manifest"]["model_files"].as_array().expect("files");
    let weights = include_bytes!("../models/demo/model.safetensors");
    assert_eq!(recorded[0]["path"], "demo/model.safetensors");
    assert_eq!(recorded[0]["sha256"]["value"], sha256(weights));
    assert_eq!(recorded[1]["path"], "demo/config.json");
}
