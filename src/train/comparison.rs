//! Runs of several attentions and seeds as one table, and tests of the differences between them.
//!
//! Runs of one seed share the text, its order and the beginning of every tensor that their models share, so
//! differences are taken seed by seed.

use super::attention::AttentionKind;
use super::run::RunResult;
use crate::bench::statistics::Summary;
use crate::error::Result;
use crate::report::{Cell, Column, Measured, Table};

/// Seeds up to which every way of flipping signs is tried.
const MOST_EXACT: usize = 20;

/// A measure of a run, by name.
type Measure = (&'static str, fn(&RunResult) -> f64);

const MEASURES: [Measure; 3] = [
    ("valid_loss", |run| run.valid_loss),
    ("valid_accuracy", |run| run.valid_accuracy),
    ("coded_accuracy", |run| run.coded_accuracy),
];

fn of(runs: &[RunResult], kind: AttentionKind) -> Vec<&RunResult> {
    let mut found: Vec<&RunResult> = runs.iter().filter(|run| run.attention == kind).collect();
    found.sort_by_key(|run| run.seed);
    found
}

/// Why numbers of runs have no mean, naming the seeds: a run that diverged is neither averaged nor left out in silence.
fn why_missing(runs: &[&RunResult], values: &[f64]) -> String {
    let broken = runs.iter().zip(values).filter(|(_, value)| !value.is_finite());
    let seeds: Vec<String> = broken.map(|(run, _)| run.seed.to_string()).collect();
    if seeds.is_empty() {
        "not measured".to_owned()
    } else {
        format!("not finite in seed {}", seeds.join(", "))
    }
}

/// Mean and standard error of numbers, one per run, as cells.
fn mean_cells(runs: &[&RunResult], values: &[f64]) -> [Cell; 2] {
    let Some(summary) = Summary::of(values) else {
        return [(); 2].map(|()| Cell::missing(why_missing(runs, values)));
    };
    let error = summary.standard_error;
    [
        summary.mean.into(),
        error.map_or_else(|| Cell::missing("one seed"), Cell::from),
    ]
}

/// One row per attention: losses, accuracies, speed, memory.
pub fn table(runs: &[RunResult], kinds: &[AttentionKind]) -> Result<Table> {
    let mut table = Table::new(
        "attentions",
        vec![
            Column::text("attention"),
            Column::text("seeds"),
            Column::text("parameters"),
            Column::new("valid_loss", "nats"),
            Column::text("valid_loss_se"),
            Column::text("valid_perplexity"),
            Column::text("valid_accuracy"),
            Column::text("valid_accuracy_se"),
            Column::new("train_loss", "nats"),
            Column::text("coded_accuracy"),
            Column::text("coded_accuracy_se"),
        ],
    );
    for &kind in kinds {
        let runs = of(runs, kind);
        let Some(first) = runs.first() else { continue };
        let mean = |measure: fn(&RunResult) -> f64| {
            let values: Vec<f64> = runs.iter().map(|run| measure(run)).collect();
            mean_cells(&runs, &values)
        };
        let [loss, loss_se] = mean(|run| run.valid_loss);
        let [perplexity, _] = mean(|run| run.valid_perplexity);
        let [accuracy, accuracy_se] = mean(|run| run.valid_accuracy);
        let [train, _] = mean(|run| run.train_loss);
        let [coded, coded_se] = mean(|run| run.coded_accuracy);
        table.push(vec![
            kind.name().into(),
            runs.len().into(),
            first.parameters.into(),
            loss,
            loss_se,
            perplexity,
            accuracy,
            accuracy_se,
            train,
            coded,
            coded_se,
        ])?;
    }
    Ok(table)
}

/// One row per attention: speed and memory by component. Not part of what is the same in every run.
pub fn cost_table(runs: &[RunResult], kinds: &[AttentionKind]) -> Result<Table> {
    let bytes = |name: &str| Column::new(format!("{name}_bytes"), "bytes");
    let mut table = Table::new(
        "cost",
        vec![
            Column::text("attention"),
            Column::text("tokens_per_s"),
            Column::new("median_step_s", "s"),
            bytes("weights"),
            bytes("gradients"),
            bytes("optimizer"),
            bytes("activations_peak"),
            bytes("process_peak"),
        ],
    );
    for &kind in kinds {
        let runs = of(runs, kind);
        let Some(first) = runs.first() else { continue };
        let speeds: Vec<f64> = runs.iter().map(|run| run.tokens_per_s).collect();
        let most = |bytes: fn(&RunResult) -> u64| runs.iter().map(|run| bytes(run)).max().unwrap_or(0);
        let process = runs.iter().filter_map(|run| run.peak_rss_bytes.get().copied()).max();
        let why = first.peak_rss_bytes.reason().unwrap_or("not measured").to_owned();
        let [speed, _] = mean_cells(&runs, &speeds);
        let steps: Vec<f64> = runs.iter().filter_map(|run| run.median_step_s).collect();
        let [step, _] = mean_cells(&runs, &steps);
        table.push(vec![
            kind.name().into(),
            speed,
            step,
            most(|run| run.memory.weights_bytes).into(),
            most(|run| run.memory.gradients_bytes).into(),
            most(|run| run.memory.optimizer_bytes).into(),
            most(|run| run.memory.activations_peak_bytes).into(),
            Cell::from(process.map_or(Measured::Missing(why), Measured::Value)),
        ])?;
    }
    Ok(table)
}

/// Differences of every attention to `reference`, seed by seed, with their tests; `None` below two shared seeds.
pub fn paired_table(runs: &[RunResult], kinds: &[AttentionKind], reference: AttentionKind) -> Result<Option<Table>> {
    let columns = [
        "attention",
        "against",
        "measure",
        "seeds",
        "difference",
        "standard_error",
        "ci95_low",
        "ci95_high",
        "p",
    ];
    let mut table = Table::new("paired", columns.into_iter().map(Column::text).collect());
    let references = of(runs, reference);
    for &kind in kinds.iter().filter(|kind| **kind != reference) {
        for (name, measure) in MEASURES {
            let pairs = of(runs, kind).into_iter().filter_map(|run| {
                let other = references.iter().find(|other| other.seed == run.seed)?;
                Some((run, measure(run) - measure(other)))
            });
            let (pairs, differences): (Vec<&RunResult>, Vec<f64>) = pairs.unzip();
            if pairs.len() < 2 {
                continue;
            }
            let mut row: Vec<Cell> = vec![
                kind.name().into(),
                reference.name().into(),
                name.into(),
                pairs.len().into(),
            ];
            let found = Summary::of(&differences).and_then(|summary| {
                let [low, high] = summary.ci95?;
                Some([summary.mean, summary.standard_error?, low, high])
            });
            if let Some(numbers) = found {
                row.extend(numbers.map(Cell::from));
                row.push(
                    sign_flip_p(&differences)
                        .map_or_else(|| Cell::missing(format!("more than {MOST_EXACT} seeds")), Cell::from),
                );
            } else {
                row.extend([(); 5].map(|()| Cell::missing(why_missing(&pairs, &differences))));
            }
            table.push(row)?;
        }
    }
    Ok((!table.rows.is_empty()).then_some(table))
}

/// Two-sided exact permutation test of paired differences: the share of all ways to flip their signs whose mean is at
/// least as far from 0. With n seeds it cannot be below 2 / 2^n.
fn sign_flip_p(differences: &[f64]) -> Option<f64> {
    let n = differences.len();
    if n > MOST_EXACT {
        return None;
    }
    let observed = differences.iter().sum::<f64>().abs();
    // Sums that are equal in exact arithmetic must count as equal.
    let tolerance = 1e-12 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let flipped = |signs: u32| {
        let signed = differences
            .iter()
            .enumerate()
            .map(|(at, d)| if signs >> at & 1 == 1 { -d } else { *d });
        signed.sum::<f64>().abs()
    };
    let far = (0..1u32 << n)
        .filter(|&signs| flipped(signs) >= observed - tolerance)
        .count();
    Some(far as f64 / f64::from(1u32 << n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::trainer::MemoryUse;

    fn result(attention: AttentionKind, seed: u64, valid_loss: f64) -> RunResult {
        RunResult {
            attention,
            seed,
            steps: 1,
            trained_tokens: 1,
            parameters: 1,
            valid_loss,
            valid_perplexity: valid_loss.exp(),
            valid_accuracy: 0.5,
            best_valid_loss: None,
            train_loss: valid_loss,
            coded_accuracy: 0.5,
            first_loss: 3.0,
            tokens_per_s: 1.0,
            median_step_s: None,
            skipped_steps: 0,
            memory: MemoryUse {
                weights_bytes: 1,
                gradients_bytes: 1,
                optimizer_bytes: 1,
                activations_peak_bytes: 1,
            },
            peak_rss_bytes: Measured::Value(1),
            train_curve: Vec::new(),
            valid_curve: Vec::new(),
            sample: None,
        }
    }

    #[test]
    fn a_seed_that_diverged_is_named_wherever_it_would_count() {
        use AttentionKind::{Rcmha, Rmha};
        // e^800 is infinite; the losses themselves are numbers.
        let mut runs: Vec<RunResult> = [1.5, 1.6, 800.0]
            .into_iter()
            .zip(0..)
            .flat_map(|(loss, seed)| [result(Rmha, seed, 1.4), result(Rcmha, seed, loss)])
            .collect();
        let read: Vec<RunResult> = serde_json::from_str(&serde_json::to_string(&runs).unwrap()).unwrap();
        assert_eq!(read, runs);
        let kinds = [Rmha, Rcmha];
        let rows = table(&runs, &kinds).unwrap().rows;
        assert_eq!(rows[1][5], Cell::missing("not finite in seed 2"));
        assert!(
            matches!(rows[1][3], Cell::Number(loss) if loss > 267.0),
            "{:?}",
            rows[1]
        );
        assert!(matches!(rows[0][5], Cell::Number(_)));
        // A loss that is no number has no differences either, and the row says so.
        runs[5].valid_loss = f64::INFINITY;
        let rows = paired_table(&runs, &kinds, Rmha).unwrap().unwrap().rows;
        assert_eq!(rows[0][3], Cell::Integer(3));
        assert!(
            rows[0][4..]
                .iter()
                .all(|cell| *cell == Cell::missing("not finite in seed 2"))
        );
        assert!(rows[1][4..].iter().all(|cell| matches!(cell, Cell::Number(_))));
        assert_eq!(
            cost_table(&runs, &kinds).unwrap().rows[0][2],
            Cell::missing("not measured")
        );
    }

    #[test]
    fn sign_flips_by_hand() {
        // All on one side: only the two uniform sign patterns of 2^5 are as far.
        assert_eq!(sign_flip_p(&[0.1, 0.2, 0.1, 0.3, 0.2]), Some(2.0 / 32.0));
        // 1 and -1 cancel; every pattern is at least as far as 0.
        assert_eq!(sign_flip_p(&[1.0, -1.0]), Some(1.0));
        // |3 - 1| = 2: of the four sums 2, 4, -4, -2 all are.
        assert_eq!(sign_flip_p(&[3.0, -1.0]), Some(1.0));
        assert_eq!(sign_flip_p(&[0.0; 21]), None);
    }
}
