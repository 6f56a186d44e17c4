//! Places that cannot be written to, and readers that go away.

use crate::common::program::{assert_refused, contents, finished, infer, refuses, report, run, succeeds, tokselect};
use crate::common::tiny_model::{TinyModel, WEIGHTS};
use std::process::Stdio;

#[test]
fn an_output_that_is_no_directory() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").expect("writable");
    refuses(
        infer(&model).args(["--prompt", "x", "-o"]).arg(&file),
        2,
        &[file.to_str().expect("UTF-8"), "is a file, not a directory", "--output"],
    );
    let inside = file.join("run");
    refuses(
        infer(&model).args(["--prompt", "x", "-o"]).arg(&inside),
        2,
        &[inside.to_str().expect("UTF-8"), "cannot create", "--output"],
    );
    assert_eq!(std::fs::read(&file).expect("there"), b"precious");
}

#[test]
fn an_output_that_holds_something_else() {
    let model = TinyModel::llama().build();
    let before = contents(model.path());
    let place = model.path().to_str().expect("UTF-8");
    refuses(
        infer(&model).args(["--prompt", "x", "-o"]).arg(model.path()),
        2,
        &[place, "config.json", "not written by a run"],
    );
    assert_eq!(contents(model.path()), before);
}

#[test]
fn a_dump_that_cannot_be_written() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    for place in [folder.path().join("absent/dump.json"), folder.path().to_owned()] {
        refuses(
            infer(&model).args(["--prompt", "x", "--dump-logits"]).arg(&place),
            2,
            &["cannot write", place.to_str().expect("UTF-8")],
        );
    }
    let prompts = folder.path().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n").expect("writable");
    let dump = folder.path().join("dump.json");
    refuses(
        infer(&model)
            .arg("--prompts")
            .arg(&prompts)
            .arg("--dump-logits")
            .arg(&dump),
        2,
        &["--dump-logits", "one prompt, not 2"],
    );
    // A run that fails later leaves no empty dump, and an earlier dump as it was.
    model.edit_tensors(WEIGHTS, |tensors| {
        tensors.get_mut("model.norm.weight").expect("there").set(0, f32::NAN);
    });
    refuses(
        infer(&model).args(["--prompt", "x", "--dump-logits"]).arg(&dump),
        2,
        &["NaN"],
    );
    assert!(!dump.exists());
    std::fs::write(&dump, "earlier").expect("writable");
    refuses(
        infer(&model).args(["--prompt", "x", "--dump-logits"]).arg(&dump),
        2,
        &["NaN"],
    );
    assert_eq!(std::fs::read(&dump).expect("there"), b"earlier");
}

#[test]
fn a_dump_of_an_answer_that_is_already_there() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let (output, dump) = (folder.path().join("run"), folder.path().join("dump.json"));
    let flags = ["--prompt", "x", "-n", "2", "-o"];
    succeeds(infer(&model).args(flags).arg(&output));
    let finished = run(infer(&model).args(flags).arg(&output).arg("--dump-logits").arg(&dump));
    assert_refused(&finished, 2, &["--dump-logits", "already there"]);
    assert!(!dump.exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .expect("Linux has it")
    };
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");

    let dumped = run(infer(&model).args(["--prompt", "x", "-n", "2", "--dump-logits", "/dev/full"]));
    assert_refused(&dumped, 3, &["/dev/full", "No space left", "free some space"]);

    let command = &mut infer(&model);
    command
        .args(["--prompt", "x", "-n", "20", "--ignore-eos"])
        .stdout(full());
    let streamed = finished(command.output().expect("starts"));
    assert_refused(&streamed, 3, &["standard output", "No space left"]);

    // Rows are kept before they are printed: the one that could not be printed is not computed again.
    let prompts = folder.path().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n").expect("writable");
    let output = folder.path().join("run");
    let mut command = infer(&model);
    command
        .arg("--prompts")
        .arg(&prompts)
        .args(["-n", "2", "-o"])
        .arg(&output);
    let cut = finished(command.stdout(full()).output().expect("starts"));
    assert_refused(&cut, 3, &["standard output", "No space left"]);
    let kept = contents(&output);
    let samples = &kept.iter().find(|(name, _)| name == "samples.jsonl").expect("there").1;
    assert_eq!(
        samples.split(|b| *b == b'\n').filter(|line| !line.is_empty()).count(),
        1
    );
    let resumed = succeeds(command.stdout(Stdio::piped()));
    assert_eq!(resumed.json_lines().len(), 1);
    assert_eq!(report(&output)["samples"]["count"], 2);

    let completions = finished(
        tokselect()
            .args(["completions", "bash"])
            .stdout(full())
            .output()
            .expect("starts"),
    );
    assert_refused(&completions, 3, &["standard output"]);
}

/// `| head -c 1`: nobody is left to serve, which is no failure; the report says that the answer is not whole.
#[test]
fn a_reader_that_goes_away() {
    use std::io::Read;
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let mut command = infer(&model);
    command
        .args(["--prompt", "x", "-n", "100000", "--ignore-eos", "-o"])
        .arg(&output);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut [0]).expect("a byte");
    drop(stdout);
    let ended = finished(child.wait_with_output().expect("ends"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("error"), "{ended:?}");
    assert_eq!(report(&output)["interrupted"], true);
}
