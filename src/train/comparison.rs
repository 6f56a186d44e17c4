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

/// Mean and standard error as cells.
fn mean_cells(values: &[f64]) -> [Cell; 2] {
    let summary = Summary::of(values);
    let missing = || Cell::missing("no finite value");
    [
        summary.map_or_else(missing, |summary| summary.mean.into()),
        summary
            .and_then(|summary| summary.standard_error)
            .map_or_else(|| Cell::missing("one seed"), Cell::from),
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
        let values = |measure: fn(&RunResult) -> f64| runs.iter().map(|run| measure(run)).collect::<Vec<_>>();
        let [loss, loss_se] = mean_cells(&values(|run| run.valid_loss));
        let [perplexity, _] = mean_cells(&values(|run| run.valid_perplexity));
        let [accuracy, accuracy_se] = mean_cells(&values(|run| run.valid_accuracy));
        let [train, _] = mean_cells(&values(|run| run.train_loss));
        let [coded, coded_se] = mean_cells(&values(|run| run.coded_accuracy));
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
        let [speed, _] = mean_cells(&speeds);
        let steps: Vec<f64> = runs.iter().filter_map(|run| run.median_step_s).collect();
        let [step, _] = mean_cells(&steps);
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
            let pair = |run: &&RunResult| {
                let other = references.iter().find(|other| other.seed == run.seed)?;
                Some(measure(run) - measure(other))
            };
            let differences: Vec<f64> = of(runs, kind).iter().filter_map(pair).collect();
            let Some(summary) = Summary::of(&differences).filter(|summary| summary.n > 1) else {
                continue;
            };
            let why = "one seed";
            let bound = |at: usize| summary.ci95.map_or_else(|| Cell::missing(why), |ci| ci[at].into());
            table.push(vec![
                kind.name().into(),
                reference.name().into(),
                name.into(),
                summary.n.into(),
                summary.mean.into(),
                summary.standard_error.map_or_else(|| Cell::missing(why), Cell::from),
                bound(0),
                bound(1),
                sign_flip_p(&differences)
                    .map_or_else(|| Cell::missing(format!("more than {MOST_EXACT} seeds")), Cell::from),
            ])?;
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
