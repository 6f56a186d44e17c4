//! `tokselect icn-probe` as a whole program, on the demo model and on tiny random ones.

mod common;

use common::icn_probe::{SMALL, probe};
use common::program::{contents, refuses, succeeds};
use common::tables::{column, rows as samples, table};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tokselect::probe::answers::gsm8k_gold;
use tokselect::probe::problems::{Gold, ProblemSet, Problems};

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("a text")
}

fn rows(table: &Value) -> &[Value] {
    table["rows"].as_array().expect("rows")
}

#[test]
fn the_demo_model_answers_under_every_method_and_repeats_itself() {
    let report = succeeds(&mut probe("navigate", &SMALL)).json();
    let methods = table(&report, "methods");
    assert_eq!(rows(methods).len(), 9);
    let precision = column(methods, "precision");
    // Six of the twelve tokens of the first round begin months and fruits; sampling hardly ever errs.
    let of = |name: &str| {
        let names = column(methods, "method");
        let at = names.iter().position(|method| *method == name).expect("the method");
        precision[at].as_f64().expect("a number")
    };
    assert!(of("icn") > 0.5 && of("top") > 0.5, "{precision:?}");
    assert!(of("top-p") > 0.9, "{precision:?}");
    assert_eq!(rows(table(&report, "differences")).len(), 8 * 6);
    // Round 1, eight measures.
    assert_eq!(rows(table(&report, "geometry")).len(), 8);
    let again = succeeds(&mut probe("navigate", &SMALL)).json();
    assert_eq!(again["tables"], report["tables"]);
}

#[test]
fn a_sweep_is_one_table_and_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out");
    let sweep = || {
        let flags = [
            "--categories",
            "months,fruits",
            "--rounds",
            "1,2",
            "--step",
            "3,6",
            "--k",
            "32,64",
            "--max-new-tokens",
            "12",
            "--methods",
            "icn,cluster-penalty",
            "--format",
            "json",
            "-o",
        ];
        let mut command = probe("navigate", &flags);
        command.arg(&output);
        command
    };
    let report = succeeds(&mut sweep()).json();
    let table_of_it = table(&report, "sweep");
    // Four sizes; icn once, the penalty for each number of clusters.
    assert_eq!(rows(table_of_it).len(), 4 * 3);
    assert_eq!(
        column(table_of_it, "method")[..3],
        ["icn", "cluster-penalty k=32", "cluster-penalty k=64"]
    );
    assert_eq!(column(table_of_it, "answers")[..4], [3, 3, 3, 6]);
    // The same size alone gives the same numbers.
    let alone = [
        "--categories",
        "months,fruits",
        "--rounds",
        "2",
        "--step",
        "3",
        "--max-new-tokens",
        "12",
        "--methods",
        "icn",
        "--format",
        "json",
    ];
    let alone = succeeds(&mut probe("navigate", &alone)).json();
    assert_eq!(
        column(table(&alone, "methods"), "precision")[0],
        column(table_of_it, "precision")[6]
    );
    let whole = samples(&output);
    let lines = std::fs::read_to_string(output.join("samples.jsonl")).expect("samples");
    let kept: String = lines.split_inclusive('\n').take(whole.len() / 2).collect();
    std::fs::write(output.join("samples.jsonl"), kept).expect("a writable folder");
    let again = succeeds(&mut sweep()).json();
    assert_eq!(again["tables"], report["tables"]);
    for (command, flags) in [
        ("generate", &["--rounds", "1,2"][..]),
        ("correlate", &["--k", "32,64"]),
        ("navigate", &["--k", "32,64", "--methods", "icn"]),
    ] {
        refuses(&mut probe(command, flags), 2, &["several numbers"]);
    }
}

#[test]
fn paths_that_do_not_fit_leave_the_prompt_and_none_is_lost() {
    // 1024 tokens hold a question and the paths of some rounds, not of twelve.
    let flags = [
        "--limit",
        "2",
        "--levels",
        "5",
        "--methods",
        "icn",
        "--paths",
        "12",
        "--format",
        "json",
    ];
    let report = succeeds(&mut probe("reason", &flags)).json();
    let methods = table(&report, "methods");
    assert_eq!(column(methods, "n"), [2]);
    assert!(
        column(methods, "distinct_paths")[0].as_f64().expect("a share") > 0.9,
        "{methods}"
    );
    refuses(&mut probe("reason", &["--temperature", "0"]), 2, &["`--temperature 0`"]);
    succeeds(&mut probe(
        "reason",
        &["--temperature", "0", "--methods", "top", "--limit", "1"],
    ));
}

#[test]
fn a_clustering_is_saved_shown_again_and_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let saved = folder.path().join("clusters.safetensors");
    let clusters = |flags: &[&str]| {
        let mut command = probe("clusters", &["--format", "json"]);
        command.args(flags);
        command
    };
    let made = succeeds(clusters(&["--k", "32", "--seed", "3", "-o"]).arg(folder.path())).json();
    let shown = succeeds(clusters(&["--import"]).arg(&saved)).json();
    assert_eq!(made["details"]["ids_sha256"], shown["details"]["ids_sha256"]);
    assert_eq!(rows(table(&made, "clusters")), rows(table(&shown, "clusters")));
    let again = succeeds(&mut clusters(&["--k", "32", "--seed", "3"])).json();
    assert_eq!(again["details"]["ids_sha256"], made["details"]["ids_sha256"]);
    for flags in [
        &["--distance", "cosine"][..],
        &["--whiten"],
        &["--centre", "--distance", "cosine"],
    ] {
        let other = succeeds(clusters(&["--k", "32", "--seed", "3"]).args(flags)).json();
        assert_ne!(
            other["details"]["ids_sha256"], made["details"]["ids_sha256"],
            "{flags:?}"
        );
    }
    let mut navigate = probe("navigate", &SMALL);
    navigate
        .args(["--methods", "cluster-penalty", "--clusters"])
        .arg(&saved);
    succeeds(&mut navigate);
    // In the plan already, before any weight is read.
    for command in ["clusters", "correlate"] {
        refuses(
            &mut probe(command, &["--k", "5000", "--dry-run"]),
            2,
            &["`--k 5000`", "pass 1 to 2304"],
        );
    }
    let penalty = ["--methods", "cluster-penalty", "--k", "64,5000", "--dry-run"];
    refuses(&mut probe("navigate", &penalty), 2, &["`--k 5000`"]);
    let plan = succeeds(clusters(&["--k", "7", "--dry-run"]).arg("-q")).json();
    assert_eq!(plan["clusters"], 7);
    let mut both = probe("correlate", &["--seeds", "2", "--clusters"]);
    refuses(both.arg(&saved), 2, &["`--seeds 2`", "`--clusters`"]);
    refuses(clusters(&["--max-memory", "1MiB"]).arg("--dry-run"), 3, &["1.0 MiB"]);
}

#[test]
fn correlation_has_its_controls() {
    let flags = [
        "--categories",
        "countries,fruits,months",
        "--top",
        "60",
        "--shuffles",
        "50",
        "--seeds",
        "2",
    ];
    let report = succeeds(probe("correlate", &flags).args(["--format", "json"])).json();
    let groups = table(&report, "groups");
    assert_eq!(column(groups, "group")[0], "winners");
    // All ten winners of countries and fruits; of the months, whose names begin with eight tokens, those eight.
    let precision = column(groups, "precision")[0].as_f64().expect("a share");
    assert!((precision - 2.8 / 3.0).abs() < 1e-12, "{precision}");
    let differences = table(&report, "differences");
    assert_eq!(rows(differences).len(), 3);
    let p = column(differences, "p_against_shuffles")[2].as_f64().expect("a share");
    assert!(p > 0.0 && p <= 1.0);
    assert_eq!(rows(table(&report, "questions")).len(), 3);
    // Ranks 11 to 60 in bins of ten.
    let by_rank = table(&report, "by_rank");
    assert_eq!(column(by_rank, "ranks")[0], "11 to 20");
    assert_eq!(rows(by_rank).len(), 5);
    refuses(&mut probe("correlate", &["--top", "10"]), 2, &["`--winners 10`"]);
}

#[test]
fn texts_are_generated_and_judged() {
    let flags = [
        "--rounds",
        "2",
        "--step",
        "4",
        "--max-new-tokens",
        "24",
        "--chat-template",
        "auto",
        "--format",
        "json",
    ];
    let report = succeeds(&mut probe("generate", &flags)).json();
    let sentences = table(&report, "sentences");
    let methods = column(sentences, "method");
    assert_eq!(methods.len(), 7);
    // The demo model has been taught to tell something, and nothing of positive sentences.
    let top = methods.iter().position(|method| *method == "top").expect("top");
    assert!(column(sentences, "validity")[top].as_f64().expect("a share") > 0.5);
    for score in ["distinct_2", "self_bleu", "hidden_distance"] {
        let value = column(sentences, score)[top].as_f64().expect(score);
        assert!((0.0..=2.0).contains(&value), "{score}: {value}");
    }
    refuses(
        &mut probe("generate", &["--methods", "key-projection"]),
        2,
        &["key-projection"],
    );
    let one = [
        "--instruction",
        "Please show me some fruits.",
        "--rounds",
        "1",
        "--step",
        "3",
        "--judge",
        "model",
    ];
    succeeds(probe("generate", &one).args(["--methods", "top", "--format", "json"]));
}

#[test]
fn the_demo_model_reasons_about_what_it_was_taught() {
    let flags = ["--limit", "8", "--path-tokens", "120", "--format", "json"];
    let report = succeeds(&mut probe("reason", &flags)).json();
    let methods = table(&report, "methods");
    assert_eq!(column(methods, "method"), ["icn", "top", "sampling", "greedy"]);
    assert_eq!(column(methods, "n"), [8; 4]);
    for score in column(methods, "closed") {
        assert!(score.as_f64().expect("a share") > 0.5, "{methods}");
    }
    // Two problems of each of the first four levels.
    let levels = table(&report, "levels");
    assert_eq!(column(levels, "level")[..5], ["1", "1", "1", "1", "2"]);
    assert_eq!(column(levels, "n"), [2; 16]);
    refuses(&mut probe("reason", &["--levels", "6"]), 2, &["levels 1 to 5"]);
    refuses(
        &mut probe("reason", &["--set-name", "aqua", "--levels", "1"]),
        2,
        &["--levels"],
    );
    refuses(&mut probe("reason", &["--set-name", "gsm8k"]), 2, &["--data"]);
    refuses(&mut probe("reason", &["--data", "x.jsonl"]), 2, &["--set-name"]);
}

#[test]
fn a_batch_says_what_one_by_one_decoding_says() {
    let flags = ["--completions", "30", "--max-new-tokens", "24", "--format", "json"];
    let report = succeeds(&mut probe("speed", &flags)).json();
    let speed = table(&report, "speed");
    assert_eq!(column(speed, "same_as_one_by_one"), ["30 of 30"; 3]);
    assert_eq!(column(speed, "tokens"), [30 * 24; 3]);
}

#[test]
fn a_dry_run_loads_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    for command in ["clusters", "navigate", "correlate", "generate", "reason", "speed"] {
        succeeds(probe(command, &["--dry-run", "-o"]).arg(folder.path().join(command)));
    }
    assert!(contents(folder.path()).is_empty());
}

/// Unpacks a file of the development data.
fn unpacked(path: &Path, folder: &Path) -> std::path::PathBuf {
    let output = Command::new("gzip").arg("-dc").arg(path).output().expect("gzip");
    let file = folder.join(path.file_stem().expect("a name"));
    std::fs::write(&file, output.stdout).expect("a writable folder");
    file
}

#[test]
fn official_solutions_give_their_official_answers() {
    let (Some(gsm8k), Some(svamp), Some(aqua)) = (
        common::shared("data/gsm8k/test.jsonl.gz"),
        common::shared("data/svamp/SVAMP.json.gz"),
        common::shared("data/aqua/test.json"),
    ) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = unpacked(&gsm8k, folder.path());
    let problems = Problems::read(ProblemSet::Gsm8k, &file).expect("reads").all;
    assert_eq!(problems.len(), 1319);
    let lines = std::fs::read_to_string(&file).expect("text");
    let mut with_commas = 0;
    for (line, problem) in lines.lines().zip(&problems) {
        let row: Value = serde_json::from_str(line).expect("a row");
        let solution = text(&row, "answer");
        // By another road than a pattern: what stands behind the last hashes, commas taken out.
        let last = solution.rsplit("####").next().expect("an end").trim();
        assert_eq!(gsm8k_gold(solution), Some(last.replace(',', "")));
        let Gold::Number(written, value) = &problem.gold else {
            panic!("{problem:?}")
        };
        assert_eq!(written, last);
        // The corrected parser reads the gold as it is written; the released one fails where there is a comma or a sign.
        assert!(problem.read(last).correct, "{last}");
        assert!(problem.read(&format!("${last} dollars")).correct, "{last}");
        let plain = last.chars().all(|c| c.is_ascii_digit());
        assert_eq!(problem.read_as_released(last).correct, plain, "{last} {value}");
        with_commas += usize::from(last.contains(','));
    }
    assert!(with_commas > 0);
    let svamp = Problems::read(ProblemSet::Svamp, &unpacked(&svamp, folder.path()))
        .expect("reads")
        .all;
    assert_eq!(svamp.len(), 1000);
    let aqua = Problems::read(ProblemSet::Aqua, &aqua).expect("reads").all;
    assert_eq!(aqua.len(), 254);
    for problem in svamp.iter().chain(&aqua) {
        let written = match &problem.gold {
            Gold::Number(written, _) => written.clone(),
            Gold::Choice(letter) => format!("({letter})"),
        };
        assert!(problem.read(&written).correct, "{problem:?}");
    }
}
