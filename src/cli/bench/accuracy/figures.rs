//! Figures of a run: accuracy over length, and a heat map of length and depth per task.

use crate::error::Result;
use crate::eval::runner::{Heat, Lines};
use crate::report::svg::{Axes, HeatMap, Line, heat_maps, lines, short_tokens};

/// File names and contents.
pub(super) fn figures(over_length: &[Lines], heats: &[Heat]) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut lengths: Vec<usize> = over_length
        .iter()
        .flat_map(|line| line.points.iter().map(|(length, ..)| *length))
        .collect();
    lengths.sort_unstable();
    lengths.dedup();
    if !lengths.is_empty() {
        let place = |length: usize| lengths.iter().position(|&l| l == length).unwrap_or(0);
        let drawn: Vec<Line> = over_length
            .iter()
            .map(|line| Line {
                name: line.variant.clone(),
                points: line
                    .points
                    .iter()
                    .map(|&(length, mean, error)| (place(length), mean, error))
                    .collect(),
            })
            .collect();
        let axes = Axes {
            title: "Mean score by length",
            x: "length in tokens",
            y: "mean score, with standard error",
        };
        let labels: Vec<String> = lengths.iter().map(|&length| short_tokens(length)).collect();
        files.push(("figure.svg".to_owned(), lines(axes, &labels, &drawn)?));
    }
    for task in heats.chunk_by(|a, b| a.task == b.task) {
        let maps: Vec<HeatMap> = task
            .iter()
            .map(|heat| HeatMap {
                title: heat.variant.clone(),
                columns: heat.lengths.iter().map(|&length| short_tokens(length)).collect(),
                rows: heat.depths.iter().map(f64::to_string).collect(),
                values: heat.scores.clone(),
            })
            .collect();
        let name = &task[0].task;
        let axes = Axes {
            title: &format!("{name}: mean score by length and depth"),
            x: "length in tokens",
            y: "depth",
        };
        files.push((format!("heatmap-{name}.svg"), heat_maps(axes, &maps)?));
    }
    Ok(files)
}
