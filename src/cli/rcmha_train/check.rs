//! `--check-gradients`: the device against the CPU in f64.

use super::{Plan, RcmhaTrainArgs};
use crate::cli::Context;
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::report::{Column, Format, Table};
use crate::train::engine::EngineConfig;
use crate::train::engine::check::check;
use crate::train::text::Streams;

/// Largest error of a tensor's gradient that counts as agreement. In f32 sums of some thousand terms in another order; in
/// bf16, whose numbers have eight bits, the roundings of every activation on the way, which a convolution's few weights and
/// the scores of attention add up most.
fn tolerance(dtype: &str) -> f64 {
    if dtype == "f32" { 1e-4 } else { 5e-2 }
}

/// Compares every attention of the plan; exit code 1 if one disagrees.
pub(super) fn run(plan: &Plan, args: &RcmhaTrainArgs, context: &Context) -> Result<Outcome> {
    let tolerance = tolerance(plan.place.dtype());
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
        "tolerance",
    ];
    let mut table = Table::new("gradients", columns.into_iter().map(Column::text).collect());
    let mut failed = Vec::new();
    for run in plan.runs.iter().filter(|run| run.training.seed == args.seed) {
        let training = &run.training;
        let config = EngineConfig {
            batch: training.batch,
            accumulate: training.accumulate,
            recompute: training.recompute,
            dropout: training.dropout,
        };
        let streams = Streams::new(&plan.text.train, config.batch, run.model.segment, "training")?;
        let found = check(run.model, config, &streams, training.seed, &plan.place)?;
        let (worst, error) = found.worst();
        let name = run.model.attention.name();
        for (tensor, error) in &found.tensors {
            context.printer.detail(&format!("{name} {tensor}: {error:.2e}"));
        }
        let agrees = |error: f64| error <= tolerance;
        if ![error, found.loss_error, found.norm_error].into_iter().all(agrees) {
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
            tolerance.into(),
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
        "gradients of {} on {} in {} are further than {tolerance:e} from those in f64",
        failed.join(", "),
        plan.place.device(),
        plan.place.dtype()
    ))
    .help("pass `-v` for every tensor's error"))
}
