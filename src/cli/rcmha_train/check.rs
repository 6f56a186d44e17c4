//! `--check-gradients`: the device against the CPU in f64.

use super::{Plan, RcmhaTrainArgs};
use crate::cli::Context;
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::report::{Column, Format, Table};
use crate::train::engine::check::{Bounds, check};
use crate::train::text::Streams;

/// Compares every attention of the plan; exit code 1 if one disagrees.
pub(super) fn run(plan: &Plan, args: &RcmhaTrainArgs, context: &Context) -> Result<Outcome> {
    let columns = [
        "attention",
        "device",
        "dtype",
        "loss_error",
        "correct",
        "correct_f64",
        "norm_error",
        "worst_tensor",
        "worst_error",
        "bound",
        "switched_units",
        "switched_input",
        "input_bound",
    ];
    let mut table = Table::new("gradients", columns.into_iter().map(Column::text).collect());
    let mut failed = Vec::new();
    for run in plan.runs.iter().filter(|run| run.training.seed == args.seed) {
        let training = &run.training;
        let config = training.engine()?;
        let streams = Streams::new(&plan.text.train, config.batch, run.model.segment, "training")?;
        let found = check(run.model, config, &streams, training.seed, &plan.place)?;
        let (worst, error) = found.worst();
        let name = run.model.attention.name();
        for (tensor, error) in &found.tensors {
            context.printer.detail(&format!("{name} {tensor}: {error:.2e}"));
        }
        let bounds = Bounds::new(&plan.place);
        if !found.is_within(&bounds) {
            failed.push(name);
        }
        table.push(vec![
            name.into(),
            plan.place.device().into(),
            plan.place.dtype().into(),
            found.loss_error.into(),
            found.correct[0].into(),
            found.correct[1].into(),
            found.norm_error.into(),
            worst.into(),
            error.into(),
            bounds.error.into(),
            found.switched_units.into(),
            found.switched_input.into(),
            bounds.switched_input.into(),
        ])?;
    }
    if args.output.output.format == Some(Format::Json) {
        let text = serde_json::to_string_pretty(&table).map_err(|e| Error::bug(format!("a table as JSON: {e}")))?;
        context.printer.line(&text)?;
    } else {
        context.printer.table(&table)?;
    }
    if failed.is_empty() {
        return Ok(Outcome::Done);
    }
    Err(Error::acceptance(format!(
        "gradients of {} on {} in {} are further from those in f64 than their bounds",
        failed.join(", "),
        plan.place.device(),
        plan.place.dtype()
    ))
    .help("pass `-v` for every tensor's error"))
}
