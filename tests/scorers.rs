//! The scorers against what the Python packages and the official scripts gave for the same texts.
//!
//! The fixture is written by `scripts/check_scorers.py`, which also runs this test on thousands of other cases through
//! `TOKSELECT_SCORER_CASES`.
#![allow(clippy::print_stderr, reason = "the script reads the largest difference")]

use serde::Deserialize;
use std::path::PathBuf;
use tokselect::eval::infinite_bench;
use tokselect::eval::scorers;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    metric: String,
    prediction: String,
    labels: Vec<String>,
    options: Vec<String>,
    expected: Vec<f64>,
}

impl Case {
    fn scores(&self) -> Vec<f64> {
        let (prediction, label) = (self.prediction.as_str(), self.labels[0].as_str());
        if let Some(task) = self.metric.strip_prefix("infinite_bench:") {
            let scores = infinite_bench::score(task.parse().unwrap(), prediction, &self.labels, &self.options);
            return vec![scores.official, scores.token_select];
        }
        vec![match self.metric.as_str() {
            "qa_f1" => scorers::qa_f1(prediction, label),
            "rouge_l" => scorers::rouge_l(prediction, label),
            "rouge_l_sum" => scorers::rouge_l_sum(prediction, label),
            "fuzz_ratio" => f64::from(scorers::fuzz_ratio(prediction, label)) / 100.0,
            "code_similarity" => scorers::code_similarity(prediction, label),
            "classification" => scorers::classification(prediction, label, &self.options),
            "retrieval" => scorers::retrieval(prediction, label),
            "count" => scorers::count(prediction, label),
            other => panic!("no metric {other}"),
        }]
    }
}

#[test]
fn every_score_is_that_of_the_official_scripts() {
    let given = std::env::var_os("TOKSELECT_SCORER_CASES").map(PathBuf::from);
    let path =
        given.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/scorers.json")));
    let Cases { cases } = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(cases.len() >= 200, "only {} cases", cases.len());
    let (mut largest, mut wrong, mut scored) = (0.0_f64, 0, 0);
    for case in &cases {
        let scores = case.scores();
        assert_eq!(scores.len(), case.expected.len());
        scored += usize::from(case.expected.iter().any(|&score| score > 0.0));
        for (made, expected) in scores.iter().zip(&case.expected) {
            let difference = (made - expected).abs();
            // The scripts are followed operation by operation, so only the last bits may differ.
            if difference.is_nan() || difference > 1e-9 {
                wrong += 1;
                if wrong <= 10 {
                    let Case {
                        metric,
                        prediction,
                        labels,
                        options,
                        ..
                    } = case;
                    eprintln!("{metric}: {made} for {expected}: {prediction:?} {labels:?} {options:?}");
                }
            }
            largest = largest.max(difference);
        }
    }
    eprintln!(
        "{} cases, {scored} above 0, largest difference {largest:e}",
        cases.len()
    );
    assert_eq!(wrong, 0, "scores that differ");
    // Cases that all score 0 would prove nothing.
    assert!(scored * 3 > cases.len());
}
