//! `tokselect report` as a whole program.

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

fn report(arguments: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("tokselect")
        .expect("the program")
        .arg("report")
        .args(arguments)
        .assert()
}

#[test]
fn a_papers_table_is_printed_in_every_form() {
    report(&["paper", "tokenselect", "--table", "5"])
        .success()
        .stdout(contains("tokenselect table 5: Number of selected tokens"))
        .stdout(contains("k = 16K"))
        .stdout(contains("table 1").not());
    report(&["paper", "tokenselect", "--table", "5", "--format", "csv"])
        .success()
        .stdout(contains(
            "Qwen2-7B-Instruct,k = 128,21.23,10.46,41.48,18.0,100.0,13.4\n",
        ));
    report(&["paper", "tokenselect", "--table", "5", "--format", "md"])
        .success()
        .stdout(contains("| model | method | En.Sum |"));
    let output = report(&["paper", "tokenselect", "--format", "json"])
        .success()
        .get_output()
        .stdout
        .clone();
    let tables: Value = serde_json::from_slice(&output).expect("JSON");
    assert_eq!(tables.as_array().map(Vec::len), Some(9));
}

#[test]
fn wrong_names_are_answered_with_the_right_ones() {
    report(&["paper", "other"]).code(2).stderr(contains("tokenselect"));
    report(&["paper", "tokenselect", "--table", "8"])
        .code(2)
        .stderr(contains("1, 2, 3, 4, 5, 6, 7, 9, 12"));
    report(&["compare"]).code(2);
    report(&["compare", "no/such/run"])
        .code(2)
        .stderr(contains("no/such/run"));
}

#[test]
fn recorded_runs_are_set_beside_each_other() {
    let runs = ["votes", "top-k"].map(|run| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/results/tokenselect/demo-accuracy");
        format!("{folder}/{run}")
    });
    report(&["compare", &runs[0], &runs[1]])
        .success()
        .stdout(contains("settings that differ"))
        .stdout(contains("aggregates"));
}
