//! `tokselect bench kernels`: arguments, plan, run.

use super::attention::{MeasureArgs, settings};
use super::{Found, GpuArgs, Run};
use crate::bench::gpu::attention::{Case, TASK as ATTENTION, kernel_cases};
use crate::bench::gpu::kernels::{TASK, run as measure, tables};
use crate::bench::gpu::{SpeedSample, products, samples_of};
use crate::cli::Context;
use crate::cli::arguments::{Dtype, OutputArgs, PolicyArgs};
use crate::error::Result;
use crate::exit::Outcome;
use crate::report::{Cell, Column, Table};
use clap::Args;

const COMMAND: &str = "bench kernels";

/// Arguments of `tokselect bench kernels`.
#[derive(Debug, Args)]
#[command(
    mut_arg("policy", |arg| arg.hide(true)),
    mut_arg("lengths", |arg| arg.default_value("128k")),
    mut_arg("shapes", |arg| arg.default_value("qwen2-7b")),
    mut_arg("policies", |arg| arg.hide(true)),
    mut_arg("parts", |arg| arg.hide(true)),
    mut_arg("longest_causal", |arg| arg.hide(true))
)]
pub struct KernelsArgs {
    #[command(flatten)]
    gpu: GpuArgs,
    /// Check every kernel against f32 on the host; a failed check is exit 1
    #[arg(long, help_heading = "GPU")]
    refcheck: bool,
    /// Where to compute: cuda or cuda:N
    #[arg(long, default_value = "cuda", value_name = "DEVICE", help_heading = "GPU")]
    device: String,
    /// Type of weights and activations: bf16 or f16
    #[arg(long, value_enum, default_value = "auto", help_heading = "GPU")]
    dtype: Dtype,
    #[command(flatten)]
    measure: MeasureArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(in crate::cli::bench) fn run(args: &KernelsArgs, context: &Context) -> Result<Outcome> {
    args.gpu.require(COMMAND)?;
    let mut settings = settings(&args.measure, &args.policy)?;
    settings.checks = args.refcheck;
    if args.output.dry_run {
        let mut table = Table::new(
            "plan",
            ["kind", "shape", "tokens", "rows", "kernel"].map(Column::text).into(),
        );
        for shape in &settings.shapes {
            for (name, rows) in products::names() {
                let tokens = Cell::missing("none");
                table.push(vec![
                    "kernel".into(),
                    shape.name().into(),
                    tokens,
                    rows.into(),
                    name.into(),
                ])?;
            }
        }
        for Case { key, method, .. } in kernel_cases(&settings) {
            table.push(vec![
                key.kind.into(),
                key.shape.into(),
                key.tokens.into(),
                key.rows.into(),
                method.into(),
            ])?;
        }
        return context.printer.table(&table);
    }
    let run = Run {
        peers: args.gpu.load_peers()?,
        ..Run::of_layer(COMMAND, &settings, &args.output, context)
    };
    run.measure(&args.device, args.dtype, &settings, measure, &|samples| {
        let mut speeds: Vec<SpeedSample> = samples_of(samples, TASK)?;
        speeds.extend(samples_of(samples, ATTENTION)?);
        Ok(Found {
            tables: tables(samples, &speeds)?,
            speeds,
            rivals: false,
        })
    })
}
