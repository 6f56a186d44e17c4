//! `tokselect rcmha-train`: the model against `PyTorch`, and the program as a whole: killed, resumed, refused.

mod common;

use common::program::{assert_refused, finished, refuses, run, succeeds, tokselect};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokselect::train::attention::core::Keep;
use tokselect::train::attention::{AttentionKind, Convolution, TableSize};
use tokselect::train::checkpoint::Checkpoint;
use tokselect::train::dropout::Dropout;
use tokselect::train::pool::Pool;
use tokselect::train::scalar::Scalar;
use tokselect::train::transformer_xl::{Memory, ModelConfig, Pass, Segment, TransformerXl};

/// A number that `scripts/reference_rcmha.py` computes alike.
fn parameter(name: &str, at: usize) -> f64 {
    let seed = name.bytes().map(u64::from).sum::<u64>() % 101;
    let scale = if name.starts_with("embedding") { 2.4 } else { 0.6 };
    let n = (at + 1) as f64;
    scale * (n * n * 0.37 + 12.9898 * n + 7.233 * seed as f64).sin()
}

fn ids(count: usize, vocab: usize, shift: usize) -> Vec<u32> {
    (0..count)
        .map(|i| ((i * i + 3 * i * shift + shift) % vocab) as u32)
        .collect()
}

fn size(case: &Value, key: &str) -> usize {
    case[key].as_u64().unwrap() as usize
}

/// Losses of three segments, of which the last has a full memory, and the gradients of the last.
fn against_pytorch<T: Scalar>(case: &Value, keep: Keep, tolerance: f64) {
    let attention: AttentionKind = serde_json::from_value(case["attention"].clone()).unwrap();
    let (segment, batch, vocab) = (size(case, "segment"), size(case, "batch"), size(case, "vocab"));
    let model = TransformerXl::new(ModelConfig {
        attention,
        vocab,
        layers: size(case, "layers"),
        d_model: size(case, "d_model"),
        heads: size(case, "heads"),
        d_ffn: size(case, "d_ffn"),
        memory: size(case, "memory"),
        segment,
        convolution: Convolution::default(),
        table: TableSize::Clipped,
    })
    .unwrap();
    let mut data: Vec<T> = model.layout.zeros();
    for spec in model.layout.specs() {
        for (at, value) in data[spec.range()].iter_mut().enumerate() {
            *value = T::of(parameter(&spec.name, at));
        }
    }
    let close = |got: f64, expected: &Value, what: &str| {
        let expected = expected.as_f64().unwrap();
        let bound = tolerance * expected.abs().max(1.0);
        assert!(
            (got - expected).abs() < bound,
            "{attention:?} {what}: {got} and {expected}"
        );
    };
    let (mut pool, mut memory) = (Pool::default(), Memory::empty(model.config.layers));
    let mut grads: Vec<T> = model.layout.zeros();
    for step in 0..3 {
        let (inputs, targets) = (ids(segment * batch, vocab, step), ids(segment * batch, vocab, step + 5));
        let part = Segment {
            inputs: &inputs,
            targets: &targets,
            batch,
        };
        let pass = Pass {
            keep,
            scale: 1.0 / (segment * batch) as f64,
            dropout: Dropout::none(),
            watch: None,
        };
        grads.fill(T::ZERO);
        let outcome = model.train(&data, &mut grads, part, &mut memory, &pass, &mut pool);
        close(
            outcome.mean_loss(),
            &case["losses"][step],
            &format!("loss of segment {step}"),
        );
    }
    let expected = case["gradients"].as_object().unwrap();
    assert_eq!(expected.len(), model.layout.specs().len());
    for spec in model.layout.specs() {
        let g: Vec<f64> = grads[spec.range()].iter().map(|value| value.f64()).collect();
        let weighted = g.iter().enumerate().map(|(at, g)| g * (at as f64).cos()).sum();
        let got = [g.iter().sum(), weighted, g[0], g[g.len() / 2], g[g.len() - 1]];
        for (at, got) in got.into_iter().enumerate() {
            close(got, &expected[&spec.name][at], &format!("{} ({at})", spec.name));
        }
    }
}

#[test]
fn losses_and_gradients_of_every_attention_equal_pytorch() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/rcmha.json")).unwrap();
    for case in fixture["cases"].as_array().unwrap() {
        for keep in [Keep::Weights, Keep::Statistics] {
            against_pytorch::<f64>(case, keep, 1e-9);
            against_pytorch::<f32>(case, keep, 1e-5);
        }
    }
}

/// A short matrix on the built-in text.
fn small(output: &Path) -> Command {
    with(output, "--seeds 2 --dropout 0.1 --checkpoint-every 7")
}

/// The same with other options in place of seeds, dropout and checkpoints.
fn with(output: &Path, options: &str) -> Command {
    let mut command = tokselect();
    command.args("rcmha-train --layers 1 --d-model 16 --heads 2 --segment 16 --batch 4".split(' '));
    command.args("--steps 60 --log-every 1 --eval-every 20 --eval-parts 40".split(' '));
    command
        .args("--device cpu --attention rmha,rcmha -q -o".split(' '))
        .arg(output);
    command.args(options.split(' '));
    command
}

fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    folder
}

/// The lines of metrics without speed.
fn losses(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("tokens_per_s");
        line
    });
    lines.collect()
}

#[test]
fn a_matrix_has_tables_tests_and_a_figure() {
    let folder = scratch("rcmha-matrix");
    let finished = succeeds(&mut small(&folder));
    assert!(
        finished.text().contains("rcmha") && finished.text().contains("paired"),
        "{finished:?}"
    );
    let report: Value = serde_json::from_slice(&fs::read(folder.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["tables"][0]["rows"].as_array().unwrap().len(), 2);
    assert_eq!(report["tables"][1]["name"], "paired");
    assert_eq!(report["samples"]["count"], 4);
    assert!(
        fs::read_to_string(folder.join("figure.svg"))
            .unwrap()
            .contains("rcmha (valid)")
    );
    for name in ["rmha-seed-0", "rmha-seed-1", "rcmha-seed-0", "rcmha-seed-1"] {
        let run = folder.join(name);
        let losses = losses(&run);
        // 60 lines of training, 3 of parts of the held-out text, and the last of all of it.
        assert_eq!(losses.len(), 64, "{name}");
        let (first, last) = (
            losses[0]["loss"].as_f64().unwrap(),
            losses[61]["loss"].as_f64().unwrap(),
        );
        assert!(last < first - 0.5, "{name}: {first} to {last}");
        let csv = fs::read_to_string(run.join("metrics.csv")).unwrap();
        assert_eq!(csv.lines().count(), 65);
        let kept = fs::read_dir(&run).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_str().unwrap().starts_with("step-")
        });
        assert_eq!(kept.count(), 2);
        // The best one is of the evaluation with the lowest loss.
        let evaluations = losses.iter().filter(|line| line["part"] == "valid");
        let lowest = evaluations.map(|line| (line["loss"].as_f64().unwrap(), line["step"].as_u64().unwrap()));
        let (loss, step) = lowest.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        let best = Checkpoint::read(&run.join("best.safetensors")).unwrap().progress;
        assert_eq!((best.best_loss, best.step), (Some(loss), step), "{name}");
    }
    // A second call finds everything done.
    let again = succeeds(&mut small(&folder));
    assert_eq!(again.text(), finished.text());
}

/// Kill -9 between any two steps, then the same command: every later loss has the same bits.
#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_with_the_same_losses() {
    let whole = scratch("rcmha-whole");
    succeeds(&mut small(&whole));
    let folder = scratch("rcmha-killed");
    let mut kills = 0;
    for wait in [60, 90, 140, 220, 350, 500] {
        let mut child = small(&folder).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        if child.try_wait().unwrap().is_none() {
            kills += 1;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kills > 0, "the run was over before it could be killed");
    succeeds(&mut small(&folder));
    for name in ["rmha-seed-0", "rmha-seed-1", "rcmha-seed-0", "rcmha-seed-1"] {
        assert_eq!(losses(&whole.join(name)), losses(&folder.join(name)), "{name}");
    }
}

/// Ctrl-C within a run: its step is finished and kept, whether or not a checkpoint was due, and the same command goes on from
/// there with the same losses.
#[cfg(unix)]
#[test]
fn ctrl_c_keeps_the_step_and_the_same_command_goes_on() {
    // The signal is sent in the second of 24 runs: the ones behind it are a second in which it may arrive.
    let options = "--seeds 12 --dropout 0.1 --checkpoint-every 7";
    let whole = scratch("rcmha-uninterrupted");
    succeeds(&mut with(&whole, options));
    let folder = scratch("rcmha-interrupted");
    let stopped = folder.join("rcmha-seed-0");
    let mut command = with(&folder, options);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(stopped.join("metrics.jsonl")).map_or(0, |text| text.lines().count()) < 10 {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        assert!(Instant::now() < deadline, "no step in a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill is there").success());
    let ended = finished(child.wait_with_output().unwrap());
    assert_refused(
        &ended,
        130,
        &[
            "finished runs and the last checkpoint are kept in",
            "run the same command again to go on",
        ],
    );
    let report: Value = serde_json::from_slice(&fs::read(folder.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["interrupted"], true);
    // Of the run that was stopped, and of every one before it, the last step that has a line has a checkpoint.
    let runs: Vec<String> = (0..12)
        .flat_map(|seed| ["rmha", "rcmha"].map(|kind| format!("{kind}-seed-{seed}")))
        .collect();
    let begun: Vec<&String> = runs.iter().filter(|name| folder.join(name).exists()).collect();
    assert!(begun.len() < runs.len(), "{begun:?}");
    for name in begun {
        let run = folder.join(name);
        let last = losses(&run).last().map_or(0, |line| line["step"].as_u64().unwrap());
        assert!(
            run.join(format!("step-{last:09}.safetensors")).is_file(),
            "{name} {last}"
        );
    }
    succeeds(&mut with(&folder, options));
    for name in runs {
        assert_eq!(losses(&whole.join(&name)), losses(&folder.join(&name)), "{name}");
    }
    let report: Value = serde_json::from_slice(&fs::read(folder.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["interrupted"], false);
}

/// With parts, no line before the last one is about all of the held-out text; and a run that is stopped after its last step
/// does not lose that line, nor write it twice.
#[test]
fn the_last_line_of_metrics_is_all_of_the_held_out_text_once() {
    let folder = scratch("rcmha-last-line");
    let options = "--seed 3";
    succeeds(&mut with(&folder, options));
    let (run, samples) = (folder.join("rmha-seed-3"), folder.join("samples.jsonl"));
    let whole = losses(&run);
    let last = whole.last().unwrap();
    assert_eq!((&last["part"], &last["step"]), (&"whole".into(), &60.into()));
    assert_eq!(whole.iter().filter(|line| line["part"] == "whole").count(), 1);
    let text = fs::read_to_string(&samples).unwrap();
    let sample: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let found = |key: &str| {
        sample
            .pointer(&format!("/data/{key}"))
            .or(sample.get(key))
            .unwrap()
            .clone()
    };
    assert_eq!(
        (&found("valid_loss"), &found("valid_accuracy")),
        (&last["loss"], &last["accuracy"])
    );
    assert_eq!(
        found("valid_curve").as_array().unwrap().last().unwrap()[1],
        last["loss"]
    );
    // Stopped before the result, before the line, and within it.
    let metrics = run.join("metrics.jsonl");
    let lines = fs::read_to_string(&metrics).unwrap();
    let before = lines.trim_end().rfind('\n').unwrap() + 1;
    for kept in [lines.len(), before, before + 9] {
        fs::write(&metrics, &lines[..kept]).unwrap();
        fs::remove_file(&samples).unwrap();
        succeeds(&mut with(&folder, options));
        assert_eq!(losses(&run), whole, "{kept} bytes were there");
        let csv = fs::read_to_string(run.join("metrics.csv")).unwrap();
        assert!(
            csv.lines().count() == 65 && csv.lines().last().unwrap().starts_with("60,whole,"),
            "{csv}"
        );
    }
}

#[test]
fn a_checkpoint_that_was_cut_short_is_passed_over_for_the_one_before() {
    let options = "--checkpoint-every 7";
    let (whole, folder) = (scratch("rcmha-untorn"), scratch("rcmha-torn"));
    succeeds(&mut with(&whole, options));
    succeeds(&mut with(&folder, options));
    // As if the run had been killed at its end: checkpoints of steps 56 and 60 are there, and no result.
    fs::remove_file(folder.join("samples.jsonl")).unwrap();
    let run = folder.join("rmha-seed-0");
    let last = run.join("step-000000060.safetensors");
    let tensors = || {
        let mut tensors = Checkpoint::read(&last).unwrap().tensors;
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    };
    let expected = tensors();
    let bytes = fs::read(&last).unwrap();
    fs::write(&last, &bytes[..bytes.len() / 2]).unwrap();
    let before = fs::metadata(run.join("step-000000056.safetensors"))
        .unwrap()
        .modified()
        .unwrap();
    succeeds(&mut with(&folder, options));
    assert_eq!(losses(&whole.join("rmha-seed-0")), losses(&run));
    assert!(tensors() == expected);
    let after = fs::metadata(run.join("step-000000056.safetensors"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(before, after, "step 56 was taken again");
}

/// `/dev/full` has no room for anything.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_and_leaves_the_checkpoint_before() {
    let folder = scratch("rcmha-full");
    let run_folder = folder.join("rmha-seed-0");
    fs::create_dir_all(&run_folder).unwrap();
    let aside = run_folder.join("step-000000014.safetensors.tmp");
    std::os::unix::fs::symlink("/dev/full", aside).unwrap();
    let options = "--checkpoint-every 7";
    let full = run(&mut with(&folder, options));
    assert_refused(
        &full,
        3,
        &[
            "step-000000014.safetensors",
            "free some space",
            "the checkpoint before it is whole",
        ],
    );
    let kept = Checkpoint::read(&run_folder.join("step-000000007.safetensors")).unwrap();
    assert_eq!(kept.progress.step, 7);
    let whole = scratch("rcmha-roomy");
    succeeds(&mut with(&whole, options));
    succeeds(&mut with(&folder, options));
    assert_eq!(losses(&whole.join("rmha-seed-0")), losses(&run_folder));
}

#[test]
fn a_run_that_diverged_is_read_again() {
    let folder = scratch("rcmha-diverged");
    // The loss is a number; e to it is none.
    let options = "--rate 100 --warmup 1 --clip 0 --spike-factor 0 --seeds 2";
    let finished = succeeds(&mut with(&folder, options));
    assert!(finished.text().contains("not finite in seed 0"), "{finished:?}");
    assert_eq!(succeeds(&mut with(&folder, options)).text(), finished.text());
    let samples = fs::read_to_string(folder.join("samples.jsonl")).unwrap();
    assert!(samples.contains("\"valid_perplexity\":\"inf\""), "{samples}");
}

#[test]
fn another_configuration_is_refused_with_the_keys_that_differ() {
    let folder = scratch("rcmha-other");
    succeeds(&mut with(&folder, "--clip 1"));
    let stderr = refuses(&mut with(&folder, "--clip 0.5"), 2, &["different configuration"]);
    assert!(stderr.contains("training.clip"), "{stderr}");
}

#[test]
fn groups_of_a_batch_give_the_same_run_up_to_rounding() {
    let losses = |accumulate: &str| {
        let folder = scratch(&format!("rcmha-accumulate-{accumulate}"));
        succeeds(&mut with(&folder, &format!("--accumulate {accumulate}")));
        self::losses(&folder.join("rcmha-seed-0"))
    };
    let (one, two) = (losses("1"), losses("2"));
    for (a, b) in one.iter().zip(&two) {
        let (a, b) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
        // Rounding grows with the steps.
        assert!((a - b).abs() < 1e-3, "{a} and {b}");
    }
}

#[test]
fn one_batch_is_learned_by_heart() {
    let overfit = |steps: &str| {
        let mut command = tokselect();
        command.args(
            "rcmha-train --device cpu --attention rcmha --layers 2 --d-model 32 --heads 2 --segment 16".split(' '),
        );
        command.args([
            "--batch",
            "2",
            "--overfit-batch",
            "--rate",
            "0.01",
            "-q",
            "--steps",
            steps,
        ]);
        command
    };
    succeeds(&mut overfit("300"));
    assert_refused(&run(&mut overfit("2")), 1, &["has not learned one batch by heart"]);
}

#[test]
fn every_unit_and_option_trains_and_generates() {
    for options in [
        "--unit byte --attention rope-conv --kernel 5 --convolve kv --per-head",
        "--unit bpe:300 --attention rcmha-carry --relative-table 64 --schedule noam --warmup 5",
        "--attention mha,mdha --memory 0 --attention-weights keep --spike-factor 0",
    ] {
        let mut command = tokselect();
        command.args(
            "rcmha-train --device cpu --layers 1 --d-model 16 --heads 2 --segment 8 --batch 2 --steps 10".split(' '),
        );
        command
            .args("--generate 20 --eval-parts 500 -q --format json".split(' '))
            .args(options.split(' '));
        let report = succeeds(&mut command).json();
        assert!(report["tables"][0]["rows"][0][3].is_number(), "{options}: {report}");
    }
}

#[test]
fn wrong_input_is_refused_with_a_remedy() {
    let train = |arguments: &str| {
        let mut command = tokselect();
        command.arg("rcmha-train").args(arguments.split_whitespace());
        command
    };
    let folder = scratch("rcmha-texts");
    fs::create_dir_all(&folder).unwrap();
    let (empty, tiny, binary) = (folder.join("empty"), folder.join("tiny"), folder.join("binary"));
    fs::write(&empty, "").unwrap();
    fs::write(&tiny, "a few words").unwrap();
    fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
    refuses(train("--data").arg(&empty), 2, &["is empty"]);
    refuses(train("--data").arg(&tiny), 2, &["too few for 16 streams"]);
    refuses(train("--data").arg(&binary), 2, &["not UTF-8"]);
    refuses(
        train("--data").arg(&folder),
        2,
        &[
            "has no `train.txt`, `valid.txt`, `input.txt`",
            "`train.txt` and `valid.txt`, or `input.txt`",
        ],
    );
    let absent = refuses(
        &mut train("--data missing.txt"),
        2,
        &[
            "`missing.txt` does not exist",
            "texts that go by a name: tiny-shakespeare, wikitext-2",
            "name a file",
        ],
    );
    assert!(!absent.contains("InfiniteBench"), "{absent}");
    refuses(
        &mut train("--heads 3"),
        2,
        &["`--heads 3` does not divide `--d-model 64`"],
    );
    refuses(&mut train("--batch 6 --accumulate 4"), 2, &["does not divide"]);
    refuses(&mut train("--relative-table 8"), 2, &["too short"]);
    refuses(&mut train("--convolve qx"), 2, &["--convolve"]);
    refuses(&mut train("--unit bpe:3"), 2, &["bpe:N"]);
    refuses(
        &mut train("--attention rcmha --reference mha"),
        2,
        &["is not among the attentions"],
    );
    refuses(
        &mut train("--steps 3 --generate 3 --prompt €"),
        2,
        &["has characters that the text lacks"],
    );
    refuses(&mut train("--attention gru"), 2, &["gru"]);
    refuses(
        &mut train("--data wikitext"),
        2,
        &["does not exist", "tiny-shakespeare, wikitext-2"],
    );
    refuses(
        train("--data wikitext-2 --offline").env("HF_HUB_CACHE", &folder),
        3,
        &[
            "`wikitext-2-v1/train-00000-of-00001.parquet`",
            "are not in the cache",
            "run once without `--offline`",
        ],
    );
    // Sizes that would abort or run on for ever.
    refuses(
        &mut train("--seeds 4000000000"),
        2,
        &["--seeds", "4000000000", "1..=1000"],
    );
    refuses(&mut train("--epochs 1e300"), 2, &["`--epochs` makes"]);
    refuses(
        &mut train("--segment 16777216"),
        2,
        &["a segment of 16777216", "--segment"],
    );
    refuses(&mut train("--batch 1048576"), 2, &["1048576 streams", "--batch"]);
    for (sizes, flag) in [
        ("--memory 16777216 --batch 64", "--memory"),
        ("--layers 4096 --d-model 65536", "--layers"),
        ("--relative-table 16777216 --d-model 8192", "--relative-table"),
        ("--d-ffn 1048576 --d-model 65536 --dry-run", "--d-ffn"),
    ] {
        refuses(
            train(sizes).args(["--device", "cpu"]),
            3,
            &["training", "are available", flag],
        );
    }
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_leaves_the_checkpoint() {
    let folder = scratch("rcmha-nan");
    let options = "--rate 1e37 --warmup 40 --spike-factor 0 --clip 0 --checkpoint-every 1";
    let finished = run(&mut with(&folder, options));
    assert_refused(&finished, 2, &["the loss of step", "rmha-seed-0", "--rate"]);
    let kept = fs::read_dir(folder.join("rmha-seed-0")).unwrap();
    let last = kept
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains("step-"))
        .max();
    let checkpoint = Checkpoint::read(&last.expect("a checkpoint")).unwrap();
    assert!(checkpoint.progress.step >= 1);
}
