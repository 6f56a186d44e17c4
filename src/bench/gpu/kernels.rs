//! Every kernel by itself: its time against what the chip gave in the same run, its result against f32.

use super::attention::{self, ERROR_BOUND, kernel_cases};
use super::products;
use super::timing::replays;
use super::{SpeedSample, Watch, samples_of};
use crate::bench::end_to_end::{Ended, append};
use crate::bench::statistics::Summary;
use crate::bench::timing::Rounds;
use crate::error::Result;
use crate::kernels::Device;
use crate::kernels::cuda::Cuda;
use crate::kernels::cuda::bandwidth::Bandwidth;
use crate::report::speed::SpeedRow;
use crate::report::{Cell, Column, Sample, SampleSink, Table};
use serde::{Deserialize, Serialize};

/// Names of the parts in sample files.
pub const CEILINGS: &str = "ceilings";
/// Products, norms and the like.
pub const TASK: &str = "kernels";

/// Bytes of the buffers that bandwidth is measured on.
const BANDWIDTH_BYTES: usize = 1 << 30;
/// Rows, columns and depth of the product that the matrix rate is measured on.
const PRODUCT: usize = 4096;

/// What the chip gives, measured in the same run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CeilingSample {
    /// `read`, `copy` or `product`.
    pub name: String,
    /// Bytes moved (a copy's are counted twice), or operations.
    pub amount: u64,
    /// Seconds of each repetition.
    pub repetitions_s: Vec<f64>,
}

impl CeilingSample {
    /// Bytes or operations per second, at the median.
    pub fn rate(&self) -> Option<f64> {
        Summary::of(&self.repetitions_s).map(|s| self.amount as f64 / s.median)
    }
}

/// Measures what `sink` does not have yet: the ceilings, then every kernel.
pub fn run(
    device: &Cuda,
    settings: &attention::Settings,
    watch: &Watch<'_>,
    sink: &mut dyn SampleSink,
) -> Result<Ended> {
    if ceilings(device, settings.rounds, watch, sink)? == Ended::Interrupted {
        return Ok(Ended::Interrupted);
    }
    for &shape in &settings.shapes {
        if products::run(device, shape, settings, watch, sink)? == Ended::Interrupted {
            return Ok(Ended::Interrupted);
        }
    }
    attention::run_cases(device, settings, &kernel_cases(settings), watch, sink)
}

fn ceilings(device: &Cuda, rounds: Rounds, watch: &Watch<'_>, sink: &mut dyn SampleSink) -> Result<Ended> {
    let gpu = device.gpu();
    let todo = |sink: &dyn SampleSink, name: &str| !sink.is_done(CEILINGS, name);
    let keep = |sink: &mut dyn SampleSink, name: &str, amount: u64, times: Option<Vec<f64>>| -> Result<bool> {
        let Some(repetitions_s) = times else {
            return Ok(false);
        };
        let sample = CeilingSample {
            name: name.to_owned(),
            amount,
            repetitions_s,
        };
        append(sink, CEILINGS, name, &sample)?;
        Ok(true)
    };
    if todo(sink, "read") || todo(sink, "copy") {
        (watch.status)("what memory gives");
        let kernels = Bandwidth::new(gpu)?;
        let buffers: Vec<_> = (0..3).map(|_| gpu.allocate(BANDWIDTH_BYTES)).collect();
        for (seed, buffer) in buffers.iter().enumerate() {
            device.fill_random(buffer, seed as u64, 1.0);
        }
        gpu.status()?;
        if todo(sink, "read") {
            let times = replays(gpu, rounds, 2, watch, |set| {
                kernels.read(&buffers[set]);
                Ok(())
            })?;
            if !keep(sink, "read", BANDWIDTH_BYTES as u64, times)? {
                return Ok(Ended::Interrupted);
            }
        }
        if todo(sink, "copy") {
            let times = replays(gpu, rounds, 2, watch, |set| {
                kernels.copy(&buffers[set], &buffers[set + 1]);
                Ok(())
            })?;
            if !keep(sink, "copy", 2 * BANDWIDTH_BYTES as u64, times)? {
                return Ok(Ended::Interrupted);
            }
        }
    }
    if todo(sink, "product") {
        (watch.status)("what products give");
        let n = PRODUCT;
        let inputs = [device.random(n * n, 1, 1.0), device.random(n * n, 2, 1.0)];
        let weights = [device.random_matrix(n, n, 3, 1.0), device.random_matrix(n, n, 4, 1.0)];
        let mut out = device.zeros(n * n);
        let times = replays(gpu, rounds, 2, watch, |set| {
            device.linear(&inputs[set], n, &weights[set], None, false, &mut out);
            Ok(())
        })?;
        if !keep(sink, "product", 2 * (n as u64).pow(3), times)? {
            return Ok(Ended::Interrupted);
        }
    }
    Ok(Ended::Finished)
}

/// The ceilings of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes per second.
    pub read: Option<f64>,
    /// Bytes per second, reads and writes counted.
    pub copy: Option<f64>,
    /// Operations per second.
    pub product: Option<f64>,
}

impl Ceilings {
    /// Those among `samples`.
    pub fn of(samples: &[CeilingSample]) -> Self {
        let rate = |name: &str| samples.iter().find(|s| s.name == name).and_then(CeilingSample::rate);
        Self {
            read: rate("read"),
            copy: rate("copy"),
            product: rate("product"),
        }
    }

    /// The least seconds for this work, and what sets them. Memory is judged by the reads; kernels that write as much
    /// as they read can come near the copy rate only.
    pub fn floor(&self, bytes: Option<u64>, flops: Option<u64>, writes: bool) -> Option<(f64, &'static str)> {
        let (rate, name) = if writes {
            (self.copy, "copy")
        } else {
            (self.read, "read")
        };
        let memory = bytes.zip(rate).map(|(bytes, rate)| (bytes as f64 / rate, name));
        let matrix = flops
            .zip(self.product)
            .map(|(flops, rate)| (flops as f64 / rate, "product"));
        match (memory, matrix) {
            (Some(a), Some(b)) => Some(if a.0 >= b.0 { a } else { b }),
            (a, b) => a.or(b),
        }
    }
}

/// Kernels that write about as much as they read.
const WRITERS: [&str; 4] = ["append", "pack_chunks", "silu_mul_rows", "rms_norm_rows"];

/// The tables `ceilings` and `kernels`.
pub fn tables(samples: &[Sample], speeds: &[SpeedSample]) -> Result<Vec<Table>> {
    let measured: Vec<CeilingSample> = samples_of(samples, CEILINGS)?;
    let ceilings = Ceilings::of(&measured);
    let mut first = Table::new(
        CEILINGS,
        ["what", "n", "median_us", "per_second", "unit"]
            .map(Column::text)
            .into(),
    );
    for sample in &measured {
        let us = Summary::of(&sample.repetitions_s).map(|s| s.median * 1e6);
        first.push(vec![
            sample.name.as_str().into(),
            sample.repetitions_s.len().into(),
            us.map_or_else(|| Cell::missing("not finite"), Cell::from),
            sample
                .rate()
                .map_or_else(|| Cell::missing("not finite"), |rate| (rate * 1e-12).into()),
            if sample.name == "product" { "TFLOP/s" } else { "TB/s" }.into(),
        ])?;
    }
    let mut table = Table::new(
        TASK,
        vec![
            Column::text("kernel"),
            Column::text("shape"),
            Column::text("tokens"),
            Column::text("rows"),
            Column::text("n"),
            Column::new("median_us", "us"),
            Column::new("bytes", "B"),
            Column::text("flops"),
            Column::text("ceiling"),
            Column::text("share_of_ceiling"),
            Column::text("worst_check"),
            Column::text("value"),
            Column::text("bound"),
            Column::text("passed"),
            Column::text("note"),
        ],
    );
    for sample in speeds {
        table.push(row(sample, &ceilings))?;
    }
    Ok(vec![first, table])
}

fn row(sample: &SpeedSample, ceilings: &Ceilings) -> Vec<Cell> {
    let SpeedRow {
        key, method, median_us, ..
    } = &sample.row;
    let why = if sample.row.note.is_empty() {
        "not run"
    } else {
        &sample.row.note
    };
    let amount = |amount: Option<u64>| amount.map_or_else(|| Cell::missing("not counted"), Cell::from);
    let mut cells: Vec<Cell> = vec![
        method.as_str().into(),
        key.shape.as_str().into(),
        key.tokens.into(),
        key.rows.into(),
        sample.row.repetitions_us.len().into(),
        median_us.map_or_else(|| Cell::missing(why), Cell::from),
        amount(sample.bytes),
        amount(sample.flops),
    ];
    let writes = WRITERS.iter().any(|name| method.starts_with(name));
    match ceilings.floor(sample.bytes, sample.flops, writes) {
        Some((seconds, name)) => cells.extend([
            name.into(),
            median_us.map_or_else(|| Cell::missing(why), |us| (seconds * 1e6 / us).into()),
        ]),
        None => cells.extend([Cell::missing("not measured"), Cell::missing("not measured")]),
    }
    // The failed one, or the one nearest to its bound.
    let tightness = |check: &&super::Check| {
        let value = check.value.get().copied().unwrap_or(f64::INFINITY);
        let used = if check.at_least {
            check.bound / value
        } else {
            value / check.bound.max(f64::MIN_POSITIVE)
        };
        (check.passed == Some(false), used)
    };
    let worst = sample.checks.iter().max_by(|a, b| {
        let (a, b) = (tightness(a), tightness(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    match worst {
        Some(check) => cells.extend([
            check.name.as_str().into(),
            check.value.clone().into(),
            check.bound.into(),
            check.passed.map_or_else(|| Cell::missing("not run"), Cell::from),
        ]),
        None => cells.extend((0..4).map(|_| Cell::missing(why))),
    }
    cells.push(sample.row.note.as_str().into());
    cells
}

/// A check of an output against f32.
pub(super) fn output_check(error: f64) -> super::Check {
    super::Check::at_most("relative error of the output", error, ERROR_BOUND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::gpu::Check;
    use crate::report::speed::tests::key;

    const CEILING: Ceilings = Ceilings {
        read: Some(4e12),
        copy: Some(2e12),
        product: Some(8e14),
    };

    #[test]
    fn the_larger_of_two_floors_is_the_ceiling() {
        assert_eq!(CEILING.floor(Some(4_000_000), None, false), Some((1e-6, "read")));
        assert_eq!(CEILING.floor(Some(4_000_000), None, true), Some((2e-6, "copy")));
        assert_eq!(
            CEILING.floor(Some(4_000_000), Some(8_000_000_000), false),
            Some((1e-5, "product"))
        );
        assert_eq!(CEILING.floor(None, None, false), None);
    }

    #[test]
    fn a_row_shows_its_share_and_its_worst_check() {
        let sample = SpeedSample {
            row: SpeedRow::of(key("decode", 8192, 1), "dense", &[2e-6, 2e-6]),
            buffer_sets: 2,
            bytes: Some(4_000_000),
            flops: Some(1),
            checks: vec![
                Check::at_most("a", 1e-3, 3e-3),
                Check::at_least("b", 0.5, 0.99),
                Check::at_most("c", 2e-3, 3e-3),
            ],
        };
        let cells = row(&sample, &CEILING);
        let shown: Vec<String> = cells[8..14].iter().map(Cell::short).collect();
        assert_eq!(shown, ["read", "0.5000", "b", "0.5000", "0.9900", "false"]);
    }

    #[test]
    fn rates_come_from_the_median() {
        let sample = CeilingSample {
            name: "read".into(),
            amount: 8,
            repetitions_s: vec![1.0, 2.0, 100.0],
        };
        assert_eq!(sample.rate(), Some(4.0));
    }
}
