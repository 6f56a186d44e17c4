//! Runs the program as a user does and judges what it prints.

use super::tiny_model::ModelDir;
use serde_json::Value;
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// `tokselect`, deaf to the settings of whoever runs the tests.
pub fn tokselect() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tokselect"));
    for variable in [
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_TOKEN",
        "RUST_BACKTRACE",
        "RUST_LOG",
        "NO_COLOR",
    ] {
        command.env_remove(variable);
    }
    // Whole-program tests run side by side; the models are too small to gain by threads.
    command.env("RAYON_NUM_THREADS", "1").env("HF_HUB_OFFLINE", "1");
    command.stdin(Stdio::null());
    command
}

/// `tokselect infer -m MODEL`.
pub fn infer(model: &ModelDir) -> Command {
    let mut command = tokselect();
    command.args(["infer", "-m"]).arg(model.path());
    command
}

/// What a run left behind.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Finished {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("stdout is UTF-8")
    }

    /// stdout as one JSON value.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| panic!("stdout is not JSON: {e}\n{self:?}"))
    }

    /// stdout as JSON lines.
    pub fn json_lines(&self) -> Vec<Value> {
        self.text()
            .lines()
            .map(|line| serde_json::from_str(line).expect("a JSON line"))
            .collect()
    }
}

/// Runs to the end.
pub fn run(command: &mut Command) -> Finished {
    finished(command.output().expect("the program starts"))
}

/// Runs to the end with `input` on stdin.
pub fn run_with_input(command: &mut Command, input: impl AsRef<[u8]>) -> Finished {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    // The program may end before it has read everything.
    let _ = child.stdin.take().expect("piped").write_all(input.as_ref());
    finished(child.wait_with_output().expect("the program ends"))
}

/// From the standard library's form.
pub fn finished(output: std::process::Output) -> Finished {
    Finished {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    }
}

/// Exit code 0 and nothing on stderr that has not to be there.
pub fn succeeds(command: &mut Command) -> Finished {
    let finished = run(command);
    assert_eq!(finished.code, Some(0), "{command:?}\n{finished:?}");
    assert!(!finished.stderr.contains("error:"), "{command:?}\n{finished:?}");
    finished
}

/// Exit code `code`, nothing on stdout, and on stderr exactly one error with a remedy, which says all of `parts`.
#[track_caller]
pub fn refuses(command: &mut Command, code: i32, parts: &[&str]) -> String {
    let finished = run(command);
    assert_refused(&finished, code, parts);
    assert!(finished.stdout.is_empty(), "{command:?}\n{finished:?}");
    finished.stderr
}

/// As [`refuses`], whatever is on stdout.
#[track_caller]
pub fn assert_refused(finished: &Finished, code: i32, parts: &[&str]) {
    let stderr = &finished.stderr;
    assert_eq!(finished.code, Some(code), "stderr: {stderr}");
    // `error:`, indented facts, `help:`; before it at most warnings.
    let lines: Vec<&str> = stderr
        .lines()
        .skip_while(|line| line.starts_with("warning: "))
        .collect();
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else {
        panic!("nothing on stderr");
    };
    assert!(first.starts_with("error: "), "{stderr}");
    assert!(lines.len() >= 2 && last.starts_with("help: "), "no remedy: {stderr}");
    for note in &lines[1..lines.len() - 1] {
        assert!(note.starts_with("  "), "not a note: `{note}` in {stderr}");
    }
    for unwanted in ["panicked", "bug in tokselect", "RUST_BACKTRACE", "stack backtrace"] {
        assert!(!stderr.contains(unwanted), "{stderr}");
    }
    assert_eq!(
        stderr
            .lines()
            .filter(|line| line.trim_start().starts_with("error:"))
            .count(),
        1,
        "{stderr}"
    );
    for part in parts {
        assert!(stderr.contains(part), "`{part}` is not said: {stderr}");
    }
}

/// Every file below `folder` with its content, to see that nothing has changed.
pub fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .unwrap_or_else(|| OsStr::new(""))
                .to_string_lossy()
                .into_owned();
            (name, std::fs::read(path).expect("a file"))
        })
        .collect();
    all.sort();
    all
}

/// The samples of a run directory by id, as (text, ids).
pub fn answers(output: &Path) -> std::collections::BTreeMap<String, (String, Value)> {
    let text = std::fs::read_to_string(output.join("samples.jsonl")).expect("samples");
    text.lines()
        .map(|line| {
            let sample: Value = serde_json::from_str(line).expect("a sample");
            let data = &sample["data"];
            let text = data["text"].as_str().expect("a text").to_owned();
            (
                sample["id"].as_str().expect("an id").to_owned(),
                (text, data["generated_ids"].clone()),
            )
        })
        .collect()
}

/// `report.json` of a run directory.
pub fn report(output: &Path) -> Value {
    let bytes = std::fs::read(output.join("report.json")).expect("a report");
    serde_json::from_slice(&bytes).expect("JSON")
}
