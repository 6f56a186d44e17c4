use super::super::{Cell, Column, Table, tests::example};
use super::*;
use proptest::prelude::*;
use serde_json::json;

fn config(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn plain() -> Map<String, Value> {
    config(json!({"model": "demo", "seed": 7, "policy": {"name": "tokselect", "top_k": 2048}}))
}

fn open(path: &Path) -> Result<RunDirectory> {
    RunDirectory::open_or_resume(path, "infer", &plain())
}

fn text(error: &Error, directory: &Path) -> String {
    error.to_string().replace(&directory.display().to_string(), "DIR")
}

#[test]
fn a_second_run_resumes_and_the_report_counts_both() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("deep/run");
    let mut run = open(&path).unwrap();
    run.append("passkey", "0", json!({"score": 1})).unwrap();
    drop(run);

    let mut run = open(&path).unwrap();
    assert!(run.is_done("passkey", "0") && !run.is_done("passkey", "1") && !run.is_done("other", "0"));
    run.append("passkey", "1", json!({"score": 0})).unwrap();
    assert_eq!(run.append("passkey", "1", json!({})).unwrap_err().exit_code(), 70);
    let mut report = example();
    report.config = plain();
    report.config_hash = run.config_hash().into();
    for name in ["per task/length", "per_task_length"] {
        report.tables.push(Table::new(name, vec![Column::text("task")]));
    }
    run.write_report(&mut report).unwrap();
    assert_eq!((report.samples.count, report.samples.resumed_count), (2, 1));
    assert_eq!(run.samples().unwrap().len(), 2);
    let mut names: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "config.json",
            "report.json",
            "samples.jsonl",
            "table.csv",
            "table.md",
            "table.per-task-length-2.csv",
            "table.per-task-length.csv"
        ]
    );
}

#[test]
fn another_configuration_is_refused_with_the_keys_that_differ() {
    let temporary = tempfile::tempdir().unwrap();
    let mut run = open(temporary.path()).unwrap();
    run.append("t", "0", json!(null)).unwrap();
    drop(run);
    let other = config(json!({"model": "demo", "policy": {"name": "tokselect", "top_k": 512}, "dtype": "f32"}));
    let error = RunDirectory::open_or_resume(temporary.path(), "eval", &other).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    insta::assert_snapshot!(text(&error, temporary.path()), @r#"
    `DIR` holds results of a different configuration
      command: infer there, eval now
      dtype: not set there, "f32" now
      policy.top_k: 2048 there, 512 now
      seed: 7 there, not set now
    help: choose another `--output` directory, or repeat the command with the values from there
    "#);
    assert!(
        open(temporary.path()).is_ok(),
        "a refused run must leave the directory as it was"
    );
}

#[test]
fn a_directory_where_nothing_was_finished_may_be_taken_over() {
    let temporary = tempfile::tempdir().unwrap();
    drop(open(temporary.path()).unwrap());
    let other = config(json!({"model": "other"}));
    drop(RunDirectory::open_or_resume(temporary.path(), "infer", &other).unwrap());
    let mut run = RunDirectory::open_or_resume(temporary.path(), "infer", &other).unwrap();
    run.append("t", "0", json!(null)).unwrap();
    drop(run);
    assert!(
        open(temporary.path()).is_err(),
        "the configuration on record must be the second one"
    );
}

#[test]
fn the_order_of_keys_is_no_difference() {
    let temporary = tempfile::tempdir().unwrap();
    let mut run = open(temporary.path()).unwrap();
    run.append("t", "0", json!(null)).unwrap();
    drop(run);
    let swapped = config(json!({"policy": {"top_k": 2048, "name": "tokselect"}, "seed": 7, "model": "demo"}));
    let run = RunDirectory::open_or_resume(temporary.path(), "infer", &swapped).unwrap();
    assert_eq!(run.resumed_count(), 1);
}

#[test]
fn two_runs_at_once_do_not_mix() {
    let temporary = tempfile::tempdir().unwrap();
    let first = open(temporary.path()).unwrap();
    let error = open(temporary.path()).unwrap_err();
    insta::assert_snapshot!(text(&error, temporary.path()), @r"
    another run is writing to `DIR` right now
    help: wait for it to end, or choose another `--output` directory
    ");
    drop(first);
    open(temporary.path()).unwrap();
}

#[test]
fn a_file_a_model_directory_and_a_foreign_report_are_refused_untouched() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("file");
    fs::write(&file, "x").unwrap();
    insta::assert_snapshot!(text(&open(&file).unwrap_err(), temporary.path()), @r"
    `DIR/file` is a file, not a directory
    help: choose another `--output` directory
    ");

    let model = temporary.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), r#"{"model_type": "qwen2"}"#).unwrap();
    assert!(open(&model).unwrap_err().message().contains("was not written by"));
    assert!(!model.join("samples.jsonl").exists());

    let foreign = temporary.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("report.json"), "{}").unwrap();
    assert!(open(&foreign).is_err() && !foreign.join("samples.jsonl").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_cannot_be_made_is_one_error_before_computing() {
    let error = open(Path::new("/proc/tokselect/run")).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(
        error
            .message()
            .starts_with("cannot create directory `/proc/tokselect/run`"),
        "{error}"
    );
}

#[test]
fn a_broken_line_in_the_middle_names_file_and_line() {
    let temporary = tempfile::tempdir().unwrap();
    let samples = temporary.path().join(SAMPLES);
    let mut run = open(temporary.path()).unwrap();
    for id in ["0", "1", "2"] {
        run.append("t", id, json!({"score": 1})).unwrap();
    }
    drop(run);
    let whole = fs::read_to_string(&samples).unwrap();
    fs::write(&samples, whole.replacen("\"id\":\"1\"", "\"id\":\"1", 1)).unwrap();
    insta::assert_snapshot!(text(&open(temporary.path()).unwrap_err(), temporary.path()), @r"
    line 2 of `DIR/samples.jsonl` is not a sample
      expected `,` or `}` (column 22)
    help: delete that line to have its sample computed again, or choose another `--output` directory
    ");

    fs::write(&samples, whole.replacen("\"id\":\"1\"", "\"id\":\"0\"", 1)).unwrap();
    insta::assert_snapshot!(text(&open(temporary.path()).unwrap_err(), temporary.path()), @r"
    line 2 of `DIR/samples.jsonl` repeats the sample of line 1
      task `t`, sample `0`
    help: delete one of the two lines, then run again
    ");

    fs::write(&samples, whole.replacen("\"config_hash\":\"", "\"config_hash\":\"0", 1)).unwrap();
    let error = open(temporary.path()).unwrap_err();
    assert!(error.message().contains("line 1") && error.message().contains("another configuration"));
}

/// Kills a run at every byte of its sample file, resumes it, and compares with the run that was never killed.
#[test]
fn a_run_killed_at_any_byte_resumes_to_the_same_file() {
    let whole = tempfile::tempdir().unwrap();
    let ids = ["0", "ü\n\"", "2"];
    let data = |id: &str| json!({"text": format!("naïve {id}\r\n"), "ttft_s": 0.1});
    let mut run = open(whole.path()).unwrap();
    for id in ids {
        run.append("t", id, data(id)).unwrap();
    }
    drop(run);
    let bytes = fs::read(whole.path().join(SAMPLES)).unwrap();
    for length in 0..=bytes.len() {
        let killed = tempfile::tempdir().unwrap();
        fs::copy(whole.path().join(CONFIG), killed.path().join(CONFIG)).unwrap();
        fs::write(killed.path().join(SAMPLES), &bytes[..length]).unwrap();
        let mut run = open(killed.path()).unwrap();
        let complete = bytes[..length].split(|byte| *byte == b'\n').count() - 1;
        assert_eq!(run.resumed_count(), complete as u64);
        let torn = length > 0 && bytes[length - 1] != b'\n';
        assert_eq!(run.notices().len(), usize::from(torn));
        for (index, id) in ids.into_iter().enumerate() {
            assert_eq!(run.is_done("t", id), index < complete);
            if index >= complete {
                run.append("t", id, data(id)).unwrap();
            }
        }
        drop(run);
        assert_eq!(
            fs::read(killed.path().join(SAMPLES)).unwrap(),
            bytes,
            "killed after {length} bytes"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_text_in_any_order_of_interruptions_is_read_back(
        texts in prop::collection::vec(any::<String>(), 1..6),
        cut in 0usize..40,
    ) {
        let temporary = tempfile::tempdir().unwrap();
        let samples = temporary.path().join(SAMPLES);
        for (index, text) in texts.iter().enumerate() {
            let mut run = open(temporary.path()).unwrap();
            prop_assert_eq!(run.resumed_count(), index as u64);
            run.append("t", &format!("{index}"), json!(text)).unwrap();
            drop(run);
            // A write that was killed: the beginning of a next line.
            let mut file = File::options().append(true).open(&samples).unwrap();
            file.write_all(&vec![b'{'; cut]).unwrap();
        }
        let run = open(temporary.path()).unwrap();
        let back: Vec<_> = run.samples().unwrap().into_iter().map(|sample| sample.data).collect();
        prop_assert_eq!(back, texts.into_iter().map(Value::from).collect::<Vec<_>>());
    }
}

#[test]
fn a_report_of_another_configuration_is_not_written() {
    let temporary = tempfile::tempdir().unwrap();
    let run = open(temporary.path()).unwrap();
    let mut report = example();
    report.tables[0].push(vec![Cell::missing("x"), 1_usize.into()]).unwrap();
    assert_eq!(run.write_report(&mut report).unwrap_err().exit_code(), 70);
    assert!(!temporary.path().join(REPORT).exists());
}
