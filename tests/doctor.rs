//! `tokselect doctor` as a program.

use assert_cmd::Command;
use serde_json::Value;
use std::path::Path;

/// The program with an environment of its own, so that the machine's settings do not decide.
fn doctor(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tokselect"));
    command.arg("doctor").env("HF_HOME", home);
    for name in [
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "LD_LIBRARY_PATH",
        "RAYON_NUM_THREADS",
    ] {
        command.env_remove(name);
    }
    command
}

fn json(command: &mut Command) -> Value {
    let output = command.arg("--json").output().expect("runs");
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("stdout is one JSON object")
}

#[test]
fn json_has_its_keys() {
    let home = tempfile::tempdir().unwrap();
    let found = json(&mut doctor(home.path()));
    let keys: Vec<_> = found.as_object().expect("object").keys().map(String::as_str).collect();
    let expected = [
        "schema_version",
        "ok",
        "build",
        "device",
        "compute",
        "memory",
        "cache",
        "demo_model",
        "hub",
        "nvidia_libraries",
        "gpu",
        "terminal",
        "problems",
    ];
    assert_eq!(keys, expected);
    for (pointer, kind) in [
        ("/build/version", "string"),
        ("/device/cpu", "object"),
        ("/compute/simd", "string"),
        ("/compute/threads", "number"),
        ("/compute/cpu_limit/value", "any"),
        ("/compute/kernels_agree", "boolean"),
        ("/memory/total_bytes/value", "any"),
        ("/memory/available_bytes/value", "any"),
        ("/memory/limit_bytes/value", "any"),
        ("/cache/path", "string"),
        ("/cache/exists", "boolean"),
        ("/cache/writable", "boolean"),
        ("/cache/free_bytes/value", "any"),
        ("/cache/models", "number"),
        ("/hub/offline", "boolean"),
        ("/hub/token_present", "boolean"),
        ("/nvidia_libraries/0/name", "string"),
        ("/nvidia_libraries/2/path/value", "any"),
        ("/terminal/width_columns/value", "any"),
    ] {
        let value = found
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{pointer} is absent: {found:#}"));
        let right = match kind {
            "string" => value.is_string(),
            "number" => value.is_u64(),
            "boolean" => value.is_boolean(),
            "object" => value.is_object(),
            _ => true,
        };
        assert!(right, "{pointer} is no {kind}: {value}");
    }
    assert_eq!(found["schema_version"], 1);
    assert_eq!(found["ok"], true);
    assert_eq!(found["compute"]["device"], "cpu");
}

#[test]
fn the_environment_is_reflected_and_a_token_is_never_shown() {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(json(&mut doctor(home.path()))["hub"]["offline"], false);
    let offline = json(doctor(home.path()).env("HF_HUB_OFFLINE", "1"));
    assert_eq!(offline["hub"]["offline"], true);
    assert_eq!(offline["hub"]["token_present"], false);
    let problem = &offline["problems"].as_array().unwrap().last().expect("an empty cache")["item"];
    assert_eq!(problem, "hub");

    let output = doctor(home.path()).env("HF_TOKEN", "hf_secret").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("token present") && !text.contains("hf_secret"), "{text}");
}

#[test]
fn the_cache_folder_is_described() {
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join("hub");
    let absent = json(&mut doctor(home.path()));
    assert_eq!(absent["cache"]["path"], cache.display().to_string());
    assert_eq!(absent["cache"]["exists"], false);
    assert!(!cache.exists(), "looking must not make it");
    std::fs::create_dir_all(cache.join("models--a--b")).unwrap();
    let present = json(&mut doctor(home.path()));
    assert_eq!(present["cache"]["exists"], true);
    assert_eq!(present["cache"]["models"], 1);
}

#[test]
fn the_list_is_aligned_and_a_failing_item_shows_its_remedy() {
    let home = tempfile::tempdir().unwrap();
    // A file where the folder should be: nothing can be written there, whoever asks.
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = doctor(home.path())
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HUB_CACHE", file.join("hub"))
        .args(["--threads", "1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "a warning is no failure");
    let text = String::from_utf8(output.stdout).unwrap();
    let item = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.get(6..).is_some_and(|l| l.starts_with(name)));
        line.unwrap_or_else(|| panic!("no item {name}:\n{text}"))
    };
    assert_eq!(item("threads").get(20..), Some("1"));
    assert!(item("cache folder").starts_with("warn"), "{text}");
    assert!(text.contains("help: set HF_HUB_CACHE"), "{text}");
    assert!(item("hub").starts_with("warn"), "{text}");
    assert!(text.contains("help: unset HF_HUB_OFFLINE"), "{text}");
    for name in ["version", "cpu", "memory", "cache folder", "libcuda.so.1", "terminal"] {
        assert_eq!(item(name).as_bytes()[19], b' ', "{name}");
    }
}
