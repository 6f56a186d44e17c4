//! Launches of everything that training on a GPU is made of: `train_rows.cu`, `train_attention.cu`, and products.
//!
//! [`crate::train::engine`] says what follows what; here is how each step is launched. Operands are [`Span`]s, which know
//! their bounds, so that a launch with too little memory is refused and not run.

pub mod attention;
pub mod products;
pub mod rows;
pub mod update;

use super::compile::Source;
use super::driver::{Argument, Gpu, Kernel, Launch, Memory};
use crate::error::{Error, Result};
use attention::AttentionKernels;
use products::{Products, Shape};
use rows::RowKernels;
use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

/// What activations, and the weights that products read, are stored as. Parameters, moments, gradients of parameters, the
/// residual stream and all sums are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Single precision, without shortcuts such as TF32.
    F32,
    /// bfloat16.
    Bf16,
}

impl Precision {
    /// Name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of a stored value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// What kernels are compiled with.
    pub fn defines(self) -> Vec<(&'static str, String)> {
        match self {
            Self::F32 => vec![("TRAIN_F32", "1".to_owned())],
            Self::Bf16 => Vec::new(),
        }
    }
}

/// Bytes of device memory.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    memory: &'a Memory,
    offset: usize,
    bytes: usize,
}

impl<'a> From<&'a Memory> for Span<'a> {
    fn from(memory: &'a Memory) -> Self {
        Self {
            memory,
            offset: 0,
            bytes: memory.bytes(),
        }
    }
}

impl Span<'_> {
    /// What lies from byte `offset` on; nothing past the end.
    #[must_use]
    pub fn after(self, offset: usize) -> Self {
        let offset = offset.min(self.bytes);
        Self {
            memory: self.memory,
            offset: self.offset + offset,
            bytes: self.bytes - offset,
        }
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Place on the device.
    pub fn address(&self) -> u64 {
        self.memory.address() + self.offset as u64
    }

    fn argument(&self) -> Argument {
        self.memory.at(self.offset)
    }
}

/// Dropout as kernels take it.
#[derive(Clone, Copy)]
pub struct Masks<'a> {
    /// A key of 8 bytes for every place.
    pub keys: Span<'a>,
    /// See [`crate::train::dropout::Dropout::threshold`]; 0: no dropout.
    pub threshold: u32,
    /// What is not dropped is multiplied by this.
    pub keep: f32,
}

/// Fields of a kernel's structure argument, in order, packed as C does.
#[derive(Default)]
struct Structure {
    words: [u64; 20],
    at: usize,
}

impl Structure {
    fn put(&mut self, value: u64, bytes: usize) {
        self.at = self.at.next_multiple_of(bytes);
        let shift = self.at % 8 * 8;
        self.words[self.at / 8] |= value << shift;
        self.at += bytes;
    }

    fn span(mut self, span: Option<Span<'_>>) -> Self {
        self.put(span.map_or(0, |span| span.address()), 8);
        self
    }

    fn int(mut self, value: usize) -> Self {
        self.put(value as u64 & 0xffff_ffff, 4);
        self
    }

    fn masks(self, masks: &Masks<'_>) -> Self {
        let mut this = self.span(Some(masks.keys));
        this.put(u64::from(masks.keep.to_bits()), 4);
        this.put(u64::from(masks.threshold), 4);
        this
    }

    fn argument(self) -> Argument {
        Argument::Structure(self.words)
    }
}

/// What kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compiled {
    /// Stored values.
    pub precision: Precision,
    /// dk.
    pub head_dim: usize,
    /// Whether attention has learned relative positions.
    pub relative: bool,
    /// Width of the convolution.
    pub kernel: usize,
}

/// The operations of training on one device.
pub struct Training {
    gpu: Gpu,
    precision: Precision,
    rows: RowKernels,
    attention: AttentionKernels,
    products: Mutex<Products>,
    /// Nothing is launched: see [`Training::rehearse`].
    rehearsing: Cell<bool>,
}

impl Training {
    /// Compiles, or loads, the kernels.
    pub fn new(gpu: &Gpu, compiled: Compiled) -> Result<Self> {
        Ok(Self {
            gpu: gpu.clone(),
            precision: compiled.precision,
            rows: RowKernels::new(gpu, &compiled)?,
            attention: AttentionKernels::new(gpu, &compiled)?,
            products: Mutex::new(Products::new(gpu, compiled.precision)?),
            rehearsing: Cell::new(false),
        })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Bytes of a stored value.
    pub fn value_bytes(&self) -> usize {
        self.precision.bytes()
    }

    /// Runs `body` with launches left out: what it plans comes out, nothing is computed.
    pub fn rehearse<T>(&self, body: impl FnOnce() -> T) -> T {
        self.rehearsing.set(true);
        let planned = body();
        self.rehearsing.set(false);
        planned
    }

    /// A product; see [`products::Form`] for its operands. `bias` of stored values goes with a forward one.
    pub fn product(&self, shape: Shape, left: Span<'_>, right: Span<'_>, bias: Option<Span<'_>>, out: Span<'_>) {
        if self.rehearsing.get() || shape.rows == 0 {
            return;
        }
        let value = self.value_bytes();
        let [x, w, y] = [
            shape.rows * shape.inputs,
            shape.inputs * shape.outputs,
            shape.rows * shape.outputs,
        ];
        let [left_len, right_len, out_len] = match shape.form {
            products::Form::Forward => [x, w, y],
            products::Form::InputGradient => [y, w, x],
            products::Form::WeightGradient => [x, y, w],
        };
        let out_bytes = if shape.single { 4 } else { value };
        let mut needs = vec![
            (left, left_len * value),
            (right, right_len * value),
            (out, out_len * out_bytes),
        ];
        needs.extend(bias.map(|bias| (bias, shape.outputs * value)));
        if !self.has(&needs, "a product") || self.gpu.status().is_err() {
            return;
        }
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the operands have what the shape needs.
        if let Err(error) = unsafe { products.multiply(&self.gpu, shape, left, right, bias, out) } {
            self.gpu.fail(error);
        }
    }

    /// Zeros in the first `bytes` of a span.
    pub fn zero(&self, span: Span<'_>, bytes: usize) {
        if !self.rehearsing.get() && self.has(&[(span, bytes)], "clearing memory") {
            self.gpu.clear(span.memory, span.offset, bytes);
        }
    }

    /// Whether every span has as many bytes; else the device is failed.
    fn has(&self, needs: &[(Span<'_>, usize)], what: &str) -> bool {
        let short = needs.iter().position(|(span, bytes)| span.bytes < *bytes);
        if let Some(at) = short {
            let (span, bytes) = needs[at];
            self.gpu.fail(Error::bug(format!(
                "operand {at} of {what} has {} of {bytes} bytes",
                span.bytes
            )));
        }
        short.is_none()
    }

    /// Queues a kernel after checking that its operands are as long as `needs` says.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, and with operands of these lengths it must stay inside them.
    unsafe fn launch(&self, kernel: &Kernel, launch: Launch, arguments: &[Argument], needs: &[(Span<'_>, usize)]) {
        if self.rehearsing.get() || launch.grid.0 == 0 {
            return;
        }
        if self.has(needs, kernel.name) {
            // SAFETY: passed on.
            unsafe { self.gpu.launch(kernel, launch, arguments) };
        }
    }
}

fn source_kernel(gpu: &Gpu, source: Source, defines: &[(&str, String)], name: &'static str) -> Result<Kernel> {
    gpu.module(source, defines)?.kernel(name)
}
