//! The kernels of a model outside attention: products of one row and of many, norms, activations, sampling.

mod sampling;

use super::attention::Settings;
use super::kernels::{TASK, output_check};
use super::reference::relative_error;
use super::timing::{buffer_sets, replays};
use super::{Check, SpeedSample, Watch};
use crate::bench::end_to_end::{Ended, append};
use crate::bench::shapes::Shape;
use crate::error::Result;
use crate::kernels::cuda::{Cuda, CudaBuffer, CudaMatrix};
use crate::kernels::{Device, Norm};
use crate::model::config::ModelConfig;
use crate::report::SampleSink;
use crate::report::speed::{SpeedKey, SpeedRow};
use rayon::prelude::*;

/// Rows of a chunk of a prompt, and of a block of chunks.
const FEWER: usize = 512;
/// See [`FEWER`].
const MANY: usize = 8192;
/// Rows and columns of a product of many rows that are computed again.
const CHECKED: usize = 48;
const WEIGHT_DEVIATION: f32 = 0.02;
const SPARE_BYTES: usize = 2 << 30;

/// One measurement, for all kernels alike.
struct Kernels<'a, 'w> {
    device: &'a Cuda,
    shape: Shape,
    config: ModelConfig,
    settings: &'a Settings,
    watch: &'a Watch<'w>,
    seed: u64,
}

/// How one kernel is called and checked.
struct Call<'c> {
    method: String,
    rows: usize,
    sets: usize,
    bytes: usize,
    flops: usize,
    /// Queues it on one buffer set.
    run: Box<dyn FnMut(usize) -> Result<()> + 'c>,
}

/// Products of one row, and of many: name, and whether they add to what is there. In the order of a layer.
const ONE_ROW: [(Row, &str); 5] = [
    (Row::Norm, "norm_linear qkv"),
    (Row::Add, "linear_add output"),
    (Row::NormSiluMul, "norm_linear_silu_mul gate, up"),
    (Row::Add, "linear_add down"),
    (Row::Logits, "norm_logits"),
];
const MANY_ROWS: [(&str, bool); 4] = [
    ("cublasLt qkv", false),
    ("cublasLt output", true),
    ("cublasLt gate, up", false),
    ("cublasLt down", true),
];

/// Name and rows of everything that [`run`] measures.
pub fn names() -> Vec<(&'static str, usize)> {
    let many = [FEWER, MANY]
        .into_iter()
        .flat_map(|rows| MANY_ROWS.iter().map(move |(name, _)| (*name, rows)));
    ONE_ROW
        .iter()
        .map(|(_, name)| (*name, 1))
        .chain(many)
        .chain([("rms_norm_rows", MANY), ("silu_mul_rows", MANY)])
        .chain(sampling::cases().map(|(name, _)| (name, 1)))
        .collect()
}

/// Measures what `sink` does not have yet.
pub fn run(
    device: &Cuda,
    shape: Shape,
    settings: &Settings,
    watch: &Watch<'_>,
    sink: &mut dyn SampleSink,
) -> Result<Ended> {
    let kernels = Kernels {
        device,
        shape,
        config: ModelConfig::from_json(&shape.config(), shape.name())?,
        settings,
        watch,
        seed: settings.seed,
    };
    let (hidden, wide) = (kernels.config.hidden_size, kernels.config.intermediate_size);
    let (qkv, query) = (
        kernels.config.attention.qkv_width(),
        kernels.config.attention.query_width(),
    );
    let vocab = kernels.config.vocab_size;
    let sizes = [
        (qkv, hidden),
        (hidden, query),
        (2 * wide, hidden),
        (hidden, wide),
        (vocab, hidden),
    ];
    for ((kind, name), (outputs, inputs)) in ONE_ROW.into_iter().zip(sizes) {
        if kernels.row_product(kind, name, outputs, inputs, sink)? == Ended::Interrupted {
            return Ok(Ended::Interrupted);
        }
    }
    for rows in [FEWER, MANY] {
        for ((name, adds), (outputs, inputs)) in MANY_ROWS.into_iter().zip(sizes) {
            if kernels.product(name, rows, outputs, inputs, adds, sink)? == Ended::Interrupted {
                return Ok(Ended::Interrupted);
            }
        }
    }
    if kernels.pointwise(sink)? == Ended::Interrupted {
        return Ok(Ended::Interrupted);
    }
    kernels.sampling(sink)
}

/// Products of one row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    Norm,
    NormSiluMul,
    Add,
    Logits,
}

fn dot(a: &[f32], b: impl Iterator<Item = f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
}

/// `x / rms(x)`, all weights 1, rounded as the kernels hand it on.
fn normed(x: &[f32], eps: f32) -> Vec<f32> {
    let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (squares + f64::from(eps)).sqrt();
    x.iter().map(|x| (f64::from(*x) * scale) as f32).collect()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

impl Kernels<'_, '_> {
    fn id(&self, method: &str, rows: usize) -> String {
        format!("{}/{rows}/{method}", self.shape.name())
    }

    /// Times a call and keeps it with its checks; `None` in `sets` means no memory.
    fn keep(
        &self,
        mut call: Call<'_>,
        checks: &mut dyn FnMut() -> Result<Vec<Check>>,
        sink: &mut dyn SampleSink,
    ) -> Result<Ended> {
        let times = replays(self.device.gpu(), self.settings.rounds, call.sets, self.watch, |set| {
            (call.run)(set)
        })?;
        drop(call.run);
        let Some(times) = times else {
            return Ok(Ended::Interrupted);
        };
        let checks = if self.settings.checks { checks()? } else { Vec::new() };
        let mut row = SpeedRow::of(self.key(call.rows), &call.method, &times);
        row.relative_error = checks.first().and_then(|check| check.value.get().copied());
        let sample = SpeedSample {
            row,
            buffer_sets: call.sets,
            bytes: Some(call.bytes as u64),
            flops: Some(call.flops as u64),
            checks,
        };
        append(sink, TASK, &self.id(&call.method, call.rows), &sample)?;
        Ok(Ended::Finished)
    }

    fn key(&self, rows: usize) -> SpeedKey {
        SpeedKey {
            kind: "kernel".into(),
            shape: self.shape.name().into(),
            tokens: 0,
            rows,
        }
    }

    /// Whether to go on with a kernel; tells what is going on.
    fn begin(&self, method: &str, rows: usize, sink: &dyn SampleSink) -> Option<Ended> {
        if sink.is_done(TASK, &self.id(method, rows)) {
            return Some(Ended::Finished);
        }
        if (self.watch.stopped)() {
            return Some(Ended::Interrupted);
        }
        (self.watch.status)(&format!("{method} of {}, {rows} rows", self.shape.name()));
        None
    }

    /// Buffer sets of `bytes`; a sample that says OOM where there is no room for one.
    fn sets(&self, method: &str, rows: usize, bytes: usize, sink: &mut dyn SampleSink) -> Result<Option<usize>> {
        let free = self.device.gpu().memory()?.0.saturating_sub(SPARE_BYTES);
        let sets = buffer_sets(bytes, free);
        if sets.is_none() {
            append(
                sink,
                TASK,
                &self.id(method, rows),
                &SpeedSample::missing(self.key(rows), method, "OOM"),
            )?;
        }
        Ok(sets)
    }

    fn matrices(&self, sets: usize, rows: usize, cols: usize) -> Vec<CudaMatrix> {
        let make = |set| {
            self.device
                .random_matrix(rows, cols, self.seed + 17 + set as u64, WEIGHT_DEVIATION)
        };
        (0..sets).map(make).collect()
    }

    /// Normal numbers in single precision, the same on both sides.
    fn single(&self, len: usize) -> (CudaBuffer, Vec<f32>) {
        let elements = self.device.random(len, self.seed + 7, 1.0);
        let values = self.device.download(&elements).into_owned();
        (self.device.upload(&values), values)
    }

    fn row_product(
        &self,
        kind: Row,
        method: &str,
        outputs: usize,
        inputs: usize,
        sink: &mut dyn SampleSink,
    ) -> Result<Ended> {
        if let Some(ended) = self.begin(method, 1, sink) {
            return Ok(ended);
        }
        let (device, eps) = (self.device, self.config.rms_norm_eps);
        let bytes = outputs * inputs * device.element_bytes();
        let Some(sets) = self.sets(method, 1, bytes, sink)? else {
            return Ok(Ended::Finished);
        };
        let weights = self.matrices(sets, outputs, inputs);
        let (x, x_values) = self.single(inputs);
        let x_elements = device.random(inputs, self.seed + 7, 1.0);
        let ones = device.upload(&vec![1.0; inputs]);
        let norm = Norm { weight: &ones, eps };
        let halves = if kind == Row::NormSiluMul { 2 } else { 1 };
        let single = matches!(kind, Row::Add | Row::Logits);
        let mut out = if single {
            device.zeros_f32(outputs)
        } else {
            device.zeros(outputs / halves)
        };
        let (mut room, mut gate_up) = (device.zeros(inputs), device.zeros(outputs));
        device.status()?;
        let mut launch = |set: usize, out: &mut CudaBuffer| match kind {
            Row::Norm => device.norm_linear(&x, &norm, 1, &weights[set], None, &mut room, out),
            Row::Add => device.linear(&x_elements, 1, &weights[set], None, true, out),
            Row::NormSiluMul => {
                let width = outputs / 2;
                device.norm_linear_silu_mul(&x, &norm, 1, &weights[set], None, width, &mut room, &mut gate_up, out);
            }
            Row::Logits => device.norm_logits(&x, &norm, 0..1, &weights[set], &mut room, out),
        };
        let call = Call {
            method: method.to_owned(),
            rows: 1,
            sets,
            bytes,
            flops: 2 * outputs * inputs,
            run: Box::new(|set| {
                launch(set, &mut out);
                Ok(())
            }),
        };
        let mut checks = || -> Result<Vec<Check>> {
            let mut fresh = if single {
                device.zeros_f32(outputs)
            } else {
                device.zeros(outputs / halves)
            };
            let (mut room, mut gate_up) = (device.zeros(inputs), device.zeros(outputs));
            match kind {
                Row::Norm => device.norm_linear(&x, &norm, 1, &weights[0], None, &mut room, &mut fresh),
                Row::Add => device.linear(&x_elements, 1, &weights[0], None, true, &mut fresh),
                Row::NormSiluMul => {
                    let width = outputs / 2;
                    let w = &weights[0];
                    device.norm_linear_silu_mul(&x, &norm, 1, w, None, width, &mut room, &mut gate_up, &mut fresh);
                }
                Row::Logits => device.norm_logits(&x, &norm, 0..1, &weights[0], &mut room, &mut fresh),
            }
            let found = device.download(&fresh).into_owned();
            let bits = device.matrix_bits(&weights[0])?;
            let input = if kind == Row::Add {
                x_values.clone()
            } else {
                normed(&x_values, eps)
            };
            let element = device.element();
            let product: Vec<f64> = bits
                .par_chunks_exact(inputs)
                .map(|row| dot(&input, row.iter().map(|&bits| element.value(bits))))
                .collect();
            let expected: Vec<f32> = if kind == Row::NormSiluMul {
                let (gate, up) = product.split_at(outputs / 2);
                gate.iter().zip(up).map(|(g, u)| (silu(*g) * u) as f32).collect()
            } else {
                product.iter().map(|x| *x as f32).collect()
            };
            Ok(vec![output_check(relative_error(&found, &expected))])
        };
        self.keep(call, &mut checks, sink)
    }

    fn product(
        &self,
        name: &str,
        rows: usize,
        outputs: usize,
        inputs: usize,
        adds: bool,
        sink: &mut dyn SampleSink,
    ) -> Result<Ended> {
        if let Some(ended) = self.begin(name, rows, sink) {
            return Ok(ended);
        }
        let (device, element) = (self.device, self.device.element());
        let out_bytes = rows * outputs * if adds { 8 } else { device.element_bytes() };
        let bytes = (outputs * inputs + rows * inputs) * device.element_bytes() + out_bytes;
        let Some(sets) = self.sets(name, rows, outputs * inputs * device.element_bytes(), sink)? else {
            return Ok(Ended::Finished);
        };
        let weights = self.matrices(sets, outputs, inputs);
        let x = device.random(rows * inputs, self.seed + 7, 1.0);
        let make = || {
            if adds {
                device.zeros_f32(rows * outputs)
            } else {
                device.zeros(rows * outputs)
            }
        };
        let mut out = make();
        device.status()?;
        let call = Call {
            method: name.to_owned(),
            rows,
            sets,
            bytes,
            flops: 2 * rows * outputs * inputs,
            run: Box::new(|set| {
                device.linear(&x, rows, &weights[set], None, adds, &mut out);
                Ok(())
            }),
        };
        let mut checks = || -> Result<Vec<Check>> {
            let mut fresh = make();
            device.linear(&x, rows, &weights[0], None, adds, &mut fresh);
            let (found, x) = (device.download(&fresh), device.download(&x));
            let bits = device.matrix_bits(&weights[0])?;
            // Spread over all rows and columns, the last included.
            let place = |i: usize, count: usize| i * (count - 1) / (CHECKED - 1);
            let (mut some, mut expected) = (Vec::new(), Vec::new());
            for i in 0..CHECKED {
                let row = place(i, rows);
                for j in 0..CHECKED {
                    let column = place(j, outputs);
                    some.push(found[row * outputs + column]);
                    let weight = bits[column * inputs..][..inputs]
                        .iter()
                        .map(|&bits| element.value(bits));
                    expected.push(dot(&x[row * inputs..][..inputs], weight) as f32);
                }
            }
            Ok(vec![output_check(relative_error(&some, &expected))])
        };
        self.keep(call, &mut checks, sink)
    }

    fn pointwise(&self, sink: &mut dyn SampleSink) -> Result<Ended> {
        let (device, hidden, wide) = (self.device, self.config.hidden_size, self.config.intermediate_size);
        let (rows, element) = (MANY, self.device.element_bytes());
        let eps = self.config.rms_norm_eps;
        if let Some(Ended::Interrupted) = self.begin("rms_norm_rows", rows, sink) {
            return Ok(Ended::Interrupted);
        }
        if !sink.is_done(TASK, &self.id("rms_norm_rows", rows)) {
            let (x, values) = self.single(rows * hidden);
            let ones = device.upload(&vec![1.0; hidden]);
            let sets = 4;
            let mut outs: Vec<CudaBuffer> = (0..sets).map(|_| device.zeros(rows * hidden)).collect();
            device.status()?;
            let call = Call {
                method: "rms_norm_rows".into(),
                rows,
                sets,
                bytes: rows * hidden * (4 + element),
                flops: 0,
                run: Box::new(|set| {
                    device.rms_norm(&x, &ones, eps, 0..rows, &mut outs[set]);
                    Ok(())
                }),
            };
            let mut checks = || -> Result<Vec<Check>> {
                let mut fresh = device.zeros(rows * hidden);
                device.rms_norm(&x, &ones, eps, 0..rows, &mut fresh);
                let found = device.download(&fresh);
                device.status()?;
                let expected: Vec<f32> = values
                    .par_chunks_exact(hidden)
                    .flat_map_iter(|row| normed(row, eps))
                    .collect();
                Ok(vec![output_check(relative_error(&found, &expected))])
            };
            if self.keep(call, &mut checks, sink)? == Ended::Interrupted {
                return Ok(Ended::Interrupted);
            }
        }
        if let Some(ended) = self.begin("silu_mul_rows", rows, sink) {
            return Ok(ended);
        }
        let sets = 2;
        let x: Vec<CudaBuffer> = (0..sets)
            .map(|set| device.random(rows * 2 * wide, self.seed + 7 + set as u64, 1.0))
            .collect();
        let mut out = device.zeros(rows * wide);
        device.status()?;
        let call = Call {
            method: "silu_mul_rows".into(),
            rows,
            sets,
            bytes: rows * 3 * wide * element,
            flops: 0,
            run: Box::new(|set| {
                device.silu_mul(&x[set], rows, wide, &mut out);
                Ok(())
            }),
        };
        let mut checks = || -> Result<Vec<Check>> {
            let mut fresh = device.zeros(rows * wide);
            device.silu_mul(&x[0], rows, wide, &mut fresh);
            let (found, x) = (device.download(&fresh), device.download(&x[0]));
            device.status()?;
            let expected: Vec<f32> = x
                .par_chunks_exact(2 * wide)
                .flat_map_iter(|row| {
                    let (gate, up) = row.split_at(wide);
                    gate.iter()
                        .zip(up)
                        .map(|(g, u)| (silu(f64::from(*g)) * f64::from(*u)) as f32)
                })
                .collect();
            Ok(vec![output_check(relative_error(&found, &expected))])
        };
        self.keep(call, &mut checks, sink)
    }
}
