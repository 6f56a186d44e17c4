//! Loss over steps, as a figure and as a line of text.

use crate::error::Result;
use crate::report::svg::{Axes, Curve, curves as draw};
use crate::train::attention::AttentionKind;
use crate::train::run::RunResult;

/// Blocks of rising height.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns of a curve on the terminal.
const COLUMNS: usize = 40;

/// Mean training and validation loss over seeds; `None` without points.
pub fn curves(runs: &[RunResult], kinds: &[AttentionKind]) -> Result<Option<String>> {
    let mut all = Vec::new();
    for &kind in kinds {
        let of: Vec<&RunResult> = runs.iter().filter(|run| run.attention == kind).collect();
        for (part, dashed) in [("train", true), ("valid", false)] {
            let points = |run: &'_ RunResult| {
                let curve = if dashed { &run.train_curve } else { &run.valid_curve };
                curve
                    .iter()
                    .map(|&(step, loss)| (step as f64, loss))
                    .collect::<Vec<_>>()
            };
            let points = mean(&of.iter().map(|run| points(run)).collect::<Vec<_>>());
            if !points.is_empty() {
                all.push(Curve {
                    name: format!("{} ({part})", kind.name()),
                    points,
                    colour: kinds.iter().position(|other| *other == kind).unwrap_or(0),
                    thin: dashed,
                });
            }
        }
    }
    if all.is_empty() {
        return Ok(None);
    }
    let axes = Axes {
        title: "loss (mean over seeds)",
        x: "steps",
        y: "nats per symbol",
    };
    draw(axes, &all).map(Some)
}

/// Mean of curves over the same steps; of curves that differ, the first alone.
fn mean(curves: &[Vec<(f64, f64)>]) -> Vec<(f64, f64)> {
    let Some(first) = curves.first() else { return Vec::new() };
    let same: Vec<&Vec<(f64, f64)>> = curves.iter().filter(|curve| curve.len() == first.len()).collect();
    let at = |index: usize| same.iter().map(|curve| curve[index].1).sum::<f64>() / same.len() as f64;
    first
        .iter()
        .enumerate()
        .map(|(index, &(step, _))| (step, at(index)))
        .collect()
}

/// The training loss of every run as blocks, from its first value to its last.
pub fn terminal_curve(runs: &[RunResult]) -> Option<String> {
    let losses = || runs.iter().flat_map(|run| run.train_curve.iter().map(|point| point.1));
    let (low, high) = (
        losses().fold(f64::INFINITY, f64::min),
        losses().fold(f64::NEG_INFINITY, f64::max),
    );
    if high.is_nan() || high <= low {
        return None;
    }
    let line = |run: &RunResult| {
        let curve = &run.train_curve;
        let columns = COLUMNS.min(curve.len());
        let block = |column: usize| {
            let loss = curve[column * (curve.len() - 1) / columns.saturating_sub(1).max(1)].1;
            BLOCKS[((loss - low) / (high - low) * 7.0).round() as usize]
        };
        let blocks: String = (0..columns).map(block).collect();
        format!(
            "{:>12} seed {:<3} {blocks} {:.3} -> {:.3}",
            run.attention.name(),
            run.seed,
            run.first_loss,
            run.train_loss
        )
    };
    let lines: Vec<String> = runs
        .iter()
        .filter(|run| !run.train_curve.is_empty())
        .map(line)
        .collect();
    Some(format!("training loss\n{}\n", lines.join("\n")))
}
