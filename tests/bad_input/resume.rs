//! Runs that are killed, interrupted, doubled or continued differently.

use crate::common::program::{
    Finished, answers, assert_refused, contents, finished, infer, refuses, report, run, succeeds,
};
use crate::common::tiny_model::{ModelDir, TinyModel};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROWS: usize = 120;

/// A model, a file of many prompts, and a run directory: long enough to be stopped midway, by work rather than sleep.
struct World {
    model: ModelDir,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let rows: Vec<String> = (0..ROWS)
            .map(|n| format!("{{\"id\": \"row {n}\", \"prompt\": \"Tell me about {n}.\"}}\n"))
            .collect();
        std::fs::write(folder.path().join("prompts.jsonl"), rows.concat()).expect("writable");
        Self {
            model: TinyModel::llama().build(),
            folder,
        }
    }

    fn output(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Sampled, so that a resumed run must also resume the random stream of each row.
    fn command(&self, name: &str) -> Command {
        let mut command = infer(&self.model);
        command.arg("--prompts").arg(self.folder.path().join("prompts.jsonl"));
        command.args(["-n", "100", "--ignore-eos", "--temperature", "1", "--seed", "5", "-o"]);
        command
            .arg(self.output(name))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn samples(&self, name: &str) -> PathBuf {
        self.output(name).join("samples.jsonl")
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.matches('\n').count())
}

/// Waits until some answers are there, and makes sure that not all are.
fn wait_for_some(child: &mut Child, samples: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while lines(samples) < 3 {
        assert!(child.try_wait().expect("known").is_none(), "it ended too early");
        assert!(Instant::now() < deadline, "no answer in half a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status();
    assert!(sent.expect("kill is there").success());
}

fn ended(child: Child) -> Finished {
    finished(child.wait_with_output().expect("ends"))
}

#[test]
fn a_killed_run_resumes_to_the_answers_of_an_unbroken_one() {
    let world = World::new();
    succeeds(&mut world.command("whole"));
    let whole = answers(&world.output("whole"));
    assert_eq!(whole.len(), ROWS);

    let samples = world.samples("killed");
    let mut child = world.command("killed").spawn().expect("starts");
    wait_for_some(&mut child, &samples);
    signal(&child, "-KILL");
    assert_eq!(ended(child).code, None);
    let kept = std::fs::read(&samples).expect("samples");
    let finished_rows = lines(&samples);
    assert!((3..ROWS).contains(&finished_rows), "{finished_rows}");
    assert!(!world.output("killed").join("report.json").exists());

    // As if the last write had been cut in the middle of its line.
    let torn = [&kept[..], br#"{"task":"infer","id":"row 119","config_h"#].concat();
    std::fs::write(&samples, &torn).expect("writable");
    let resumed = succeeds(&mut world.command("killed"));
    assert!(resumed.stderr.contains("cut short"), "{}", resumed.stderr);
    assert!(
        resumed
            .stderr
            .contains(&format!("{finished_rows} of {ROWS} answers are already there"))
    );
    assert_eq!(resumed.json_lines().len(), ROWS - finished_rows);
    assert!(std::fs::read(&samples).expect("samples").starts_with(&kept));
    assert_eq!(answers(&world.output("killed")), whole);
    let report = report(&world.output("killed"));
    assert_eq!(report["samples"]["resumed_count"], finished_rows);
    assert_eq!(report["interrupted"], false);
}

#[test]
fn ctrl_c_keeps_finished_answers_and_the_same_command_goes_on() {
    let world = World::new();
    for (name, signal_name) in [("int", "-INT"), ("term", "-TERM")] {
        let samples = world.samples(name);
        let mut child = world.command(name).spawn().expect("starts");
        wait_for_some(&mut child, &samples);
        signal(&child, signal_name);
        let stopped = ended(child);
        let finished_rows = lines(&samples);
        assert_refused(
            &stopped,
            130,
            &[
                "interrupted",
                &format!("{finished_rows} finished answers"),
                "same command again",
            ],
        );
        assert!(finished_rows < ROWS);
        assert_eq!(stopped.json_lines().len(), finished_rows);
        let partial = report(&world.output(name));
        assert_eq!(
            (&partial["interrupted"], &partial["samples"]["count"]),
            (&true.into(), &finished_rows.into())
        );
        let resumed = succeeds(&mut world.command(name));
        assert_eq!(resumed.json_lines().len(), ROWS - finished_rows);
        assert_eq!(report(&world.output(name))["interrupted"], false);
    }
    assert_eq!(answers(&world.output("int")), answers(&world.output("term")));
}

#[test]
fn an_interrupted_single_answer_is_kept_as_far_as_it_went() {
    use std::io::Read;
    let world = World::new();
    let output = world.output("single");
    let mut command = infer(&world.model);
    command
        .args(["--prompt", "x", "-n", "100000", "--ignore-eos", "-o"])
        .arg(&output);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    child
        .stdout
        .as_mut()
        .expect("piped")
        .read_exact(&mut [0; 2])
        .expect("two bytes");
    signal(&child, "-INT");
    let stopped = ended(child);
    assert_refused(&stopped, 130, &["interrupted", "0 finished answers"]);
    let report = report(&output);
    assert_eq!(report["interrupted"], true);
    let text = report["details"]["partial"]["text"]
        .as_str()
        .expect("the beginning of an answer");
    // The first two bytes were read above; the newline ends what was streamed, whole or not.
    let rest = stopped.stdout.strip_suffix(b"\n").expect("an ended line");
    assert_eq!(rest, &text.as_bytes()[2..]);
    assert_eq!(lines(&output.join("samples.jsonl")), 0);
}

#[test]
fn a_run_of_another_configuration_is_refused_with_the_keys_that_differ() {
    let world = World::new();
    let output = world.output("run");
    let run_with = |flags: &[&str]| {
        let mut command = infer(&world.model);
        command
            .args(["--prompt", "x", "-n", "2", "-o"])
            .arg(&output)
            .args(flags);
        command
    };
    succeeds(&mut run_with(&[]));
    let before = contents(&output);
    let place = output.to_str().expect("UTF-8");
    world.model.write("own.jinja", "{{ messages[0].content }}");
    let template = world.model.file("own.jinja").display().to_string();
    let select = ["--policy", "token-select", "--top-k", "8"];
    for (flags, keys) in [
        (&["--seed", "3"][..], &["sampling.seed: 0 there, 3 now"][..]),
        (
            &["--stop", "x", "--temperature", "0.5"],
            &["stop: ", "sampling.temperature: "],
        ),
        (
            &select,
            &["policy.name: \"dense\" there, \"token-select\" now", "policy.top_k"],
        ),
        (&["--prefill-chunk", "7"], &["prefill_chunk: 64 there, 7 now"]),
        (
            &["--system", "x", "--chat-template", &template],
            &["chat_template_sha256", "system"],
        ),
    ] {
        let parts = [&[place, "different configuration"], keys].concat();
        refuses(&mut run_with(flags), 2, &parts);
        assert_eq!(contents(&output), before);
    }
    let mut other_prompt = infer(&world.model);
    other_prompt.args(["--prompt", "y", "-n", "2", "-o"]).arg(&output);
    refuses(&mut other_prompt, 2, &["prompts_sha256"]);
    assert_eq!(contents(&output), before);
}

#[test]
fn a_damaged_run_directory_is_named_and_left_alone() {
    let world = World::new();
    let output = world.output("run");
    let again = || {
        let mut command = infer(&world.model);
        command.args(["--prompt", "x", "-n", "2", "-o"]).arg(&output);
        command
    };
    succeeds(&mut again());
    let samples = output.join("samples.jsonl");
    let whole = std::fs::read(&samples).expect("samples");
    std::fs::write(&samples, [b"not a sample\n", &whole[..]].concat()).expect("writable");
    let before = contents(&output);
    refuses(&mut again(), 2, &["line 1 of", "samples.jsonl", "not a sample"]);
    std::fs::write(&samples, [&whole[..], &whole[..]].concat()).expect("writable");
    refuses(&mut again(), 2, &["line 2 of", "repeats the sample of line 1"]);
    std::fs::write(&samples, &whole).expect("writable");
    std::fs::write(output.join("config.json"), "{").expect("writable");
    refuses(&mut again(), 2, &["config.json"]);
    std::fs::remove_file(output.join("config.json")).expect("there");
    refuses(&mut again(), 2, &["a report without its config.json"]);
    assert_eq!(contents(&output).len(), before.len() - 1);
}

#[test]
fn two_runs_do_not_share_a_directory() {
    let world = World::new();
    let mut child = world.command("shared").spawn().expect("starts");
    wait_for_some(&mut child, &world.samples("shared"));
    let second = run(&mut world.command("shared"));
    assert_refused(&second, 2, &["another run is writing", "shared"]);
    let first = ended(child);
    assert_eq!(first.code, Some(0), "{first:?}");
    assert_eq!(answers(&world.output("shared")).len(), ROWS);
}
