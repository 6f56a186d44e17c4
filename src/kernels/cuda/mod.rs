//! The GPU: CUDA kernels of our own, compiled at first use, and cuBLASLt for the products of many rows.
//!
//! [`driver`] owns device, memory and launches, [`compile`] turns the `.cu` files beside it into loaded kernels,
//! `gemm` calls cuBLASLt by `cublas_lt`. `dense_ops` launches everything of a decoder layer but attention, and with it [`Cuda`] is a
//! [`Device`]. `LADDER.md` tells what was tried in each kernel and what each step gained.
//!
//! Activations, weights, keys and values are bfloat16 or half; the residual stream, norms, sums and logits are f32.

#![expect(unsafe_code, reason = "kernels are launched and drivers called through raw pointers")]

pub mod attention;
pub mod bandwidth;
pub mod compile;
mod cublas_lt;
mod dense_ops;
pub mod driver;
mod gemm;
pub mod kmeans;
mod sample;
pub mod select;
pub mod step;
pub mod training;

pub use driver::{Argument, Gpu, Memory};
pub use gemm::Element;
pub use sample::SampleRoom;

use super::{AttentionShape, Choice, Chosen, Device, Norm, QkvPart, RowSource};
use crate::error::Result;
use dense_ops::{DenseOps, NormRow};
use driver::Graph;
use gemm::{Gemm, Operands, Output, Product};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// One GPU, and the type that it stores.
#[derive(Clone)]
pub struct Cuda {
    gpu: Gpu,
    element: Element,
    gemm: Arc<Gemm>,
    operations: Arc<DenseOps>,
}

/// Activations or a vector on the GPU.
pub struct CudaBuffer {
    pub(super) memory: Memory,
    single: bool,
    len: usize,
    /// The same in elements; vectors have both.
    elements: Option<Memory>,
}

/// A row-major weight matrix `[rows, cols]` on the GPU.
pub struct CudaMatrix {
    memory: Memory,
    rows: usize,
    cols: usize,
}

/// Bytes of one element.
pub const ELEMENT_BYTES: usize = 2;

/// Rows of a matrix are converted and sent in parts of this size.
const UPLOAD_BYTES: usize = 64 << 20;

impl Element {
    /// What kernels are compiled with for this type.
    pub(super) fn defines(self) -> Vec<(&'static str, String)> {
        match self {
            Self::Bf16 => Vec::new(),
            Self::F16 => vec![("ELEM_F16", "1".to_owned())],
        }
    }

    /// Rounds to nearest even.
    pub fn bits(self, x: f32) -> u16 {
        match self {
            Self::Bf16 => half::bf16::from_f32(x).to_bits(),
            Self::F16 => half::f16::from_f32(x).to_bits(),
        }
    }

    /// The number that `bits` stand for.
    pub fn value(self, bits: u16) -> f32 {
        match self {
            Self::Bf16 => half::bf16::from_bits(bits).to_f32(),
            Self::F16 => half::f16::from_bits(bits).to_f32(),
        }
    }

    /// Name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    fn to_bytes(self, values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|&x| self.bits(x).to_le_bytes()).collect()
    }
}

/// What the kernels of one attention shape are compiled with.
pub fn defines(element: Element, shape: &AttentionShape) -> Vec<(&'static str, String)> {
    let mut defines = element.defines();
    defines.extend([
        ("HEAD_DIM", shape.head_dim.to_string()),
        ("GROUP", shape.group().to_string()),
        ("KV_HEADS", shape.kv_heads.to_string()),
    ]);
    defines
}

impl Cuda {
    /// Opens device `ordinal` with weights and activations of type `element`. Compiled kernels are kept in
    /// `kernel_cache`; `None`: nowhere.
    pub fn open(ordinal: usize, element: Element, kernel_cache: Option<PathBuf>) -> Result<Self> {
        let gpu = Gpu::open(ordinal, kernel_cache)?;
        let operations = Arc::new(DenseOps::new(&gpu, element)?);
        Ok(Self {
            gemm: Arc::new(Gemm::new(&gpu)?),
            gpu,
            element,
            operations,
        })
    }

    /// The device itself.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What it stores.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Starts a decode step on the device; see `advance.cu`.
    pub fn advance(&self, ids: &Memory, counters: &Memory, count: usize, stride: usize) {
        self.operations.advance(&self.gpu, ids, counters, count, stride);
    }

    /// Queues what [`Device::choose`] does, without reading the id; false where that is left to the host.
    pub fn queue_choice(
        &self,
        room: &mut Option<SampleRoom>,
        logits: &CudaBuffer,
        vocabulary: usize,
        choice: &Choice<'_>,
    ) -> bool {
        let sample = &self.operations.sample;
        sample.queue(&self.gpu, room, &logits.memory, vocabulary, choice)
    }

    /// Fills `to` with normal numbers of standard deviation `deviation`; the same for the same seed.
    pub fn fill_random(&self, to: &Memory, seed: u64, deviation: f32) {
        let elements = to.bytes() / ELEMENT_BYTES;
        self.operations.fill_random(&self.gpu, to, elements, seed, deviation);
    }

    /// Activations that are normal numbers; see [`Cuda::fill_random`].
    pub fn random(&self, len: usize, seed: u64, deviation: f32) -> CudaBuffer {
        let buffer = self.zeros(len);
        self.fill_random(&buffer.memory, seed, deviation);
        buffer
    }

    /// A weight matrix of normal numbers; see [`Cuda::fill_random`].
    pub fn random_matrix(&self, rows: usize, cols: usize, seed: u64, deviation: f32) -> CudaMatrix {
        let memory = self.element_memory(rows * cols);
        self.fill_random(&memory, seed, deviation);
        CudaMatrix { memory, rows, cols }
    }

    /// The elements of a weight matrix as bits.
    pub fn matrix_bits(&self, matrix: &CudaMatrix) -> Result<Vec<u16>> {
        let mut bits = vec![0u16; matrix.rows * matrix.cols];
        self.gpu
            .download(&matrix.memory, 0, bytemuck::cast_slice_mut(&mut bits))?;
        Ok(bits)
    }

    /// Room for `len` elements.
    pub(super) fn element_memory(&self, len: usize) -> Memory {
        self.gpu.allocate(len * ELEMENT_BYTES)
    }
}

impl Device for Cuda {
    type Buffer = CudaBuffer;
    type Matrix = CudaMatrix;
    type Ids = Memory;
    type Recording = Option<Graph>;
    type ChoiceRoom = Option<SampleRoom>;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn status(&self) -> Result<()> {
        self.gpu.status()
    }

    fn element_bytes(&self) -> usize {
        ELEMENT_BYTES
    }

    fn zeros(&self, len: usize) -> CudaBuffer {
        CudaBuffer {
            memory: self.element_memory(len),
            single: false,
            len,
            elements: None,
        }
    }

    fn zeros_f32(&self, len: usize) -> CudaBuffer {
        CudaBuffer {
            memory: self.gpu.allocate(len * size_of::<f32>()),
            single: true,
            len,
            elements: None,
        }
    }

    fn upload(&self, data: &[f32]) -> CudaBuffer {
        CudaBuffer {
            memory: self.gpu.upload_new(bytemuck::cast_slice(data)),
            single: true,
            len: data.len(),
            elements: Some(self.gpu.upload_new(&self.element.to_bytes(data))),
        }
    }

    fn download<'a>(&self, buffer: &'a CudaBuffer) -> Cow<'a, [f32]> {
        let mut values = vec![0.0f32; buffer.len];
        // A failure is kept for `status`, which every reader of logits asks.
        if buffer.single {
            let _ = self
                .gpu
                .download(&buffer.memory, 0, bytemuck::cast_slice_mut(&mut values));
        } else {
            let mut bits = vec![0u16; buffer.len];
            let _ = self
                .gpu
                .download(&buffer.memory, 0, bytemuck::cast_slice_mut(&mut bits));
            for (value, &bits) in values.iter_mut().zip(&bits) {
                *value = self.element.value(bits);
            }
        }
        Cow::Owned(values)
    }

    fn matrix(&self, rows: usize, cols: usize, source: &RowSource<'_>) -> CudaMatrix {
        let memory = self.element_memory(rows * cols);
        let row_bytes = cols * ELEMENT_BYTES;
        let rows_at_once = (UPLOAD_BYTES / row_bytes.max(1)).clamp(1, rows.max(1));
        let mut bits = vec![0u16; rows_at_once * cols];
        for first in (0..rows).step_by(rows_at_once) {
            let count = rows_at_once.min(rows - first);
            bits[..count * cols]
                .par_chunks_exact_mut(cols)
                .enumerate()
                .for_each_init(
                    || vec![0.0f32; cols],
                    |row, (i, out)| {
                        source(first + i, row);
                        for (out, &x) in out.iter_mut().zip(row.iter()) {
                            *out = self.element.bits(x);
                        }
                    },
                );
            self.gpu
                .upload(&memory, first * row_bytes, bytemuck::cast_slice(&bits[..count * cols]));
        }
        CudaMatrix { memory, rows, cols }
    }

    fn matrix_bytes(&self, rows: usize, cols: usize) -> usize {
        rows * cols * ELEMENT_BYTES
    }

    fn working_bytes(&self, _rows: usize, _width: usize, _shape: &AttentionShape) -> usize {
        cublas_lt::WORKSPACE_BYTES
    }

    fn ids(&self, len: usize) -> Memory {
        self.gpu.allocate(len * size_of::<u32>())
    }

    fn set_ids(&self, ids: &[u32], out: &mut Memory) {
        self.gpu.upload(out, 0, bytemuck::cast_slice(ids));
        if let [id] = ids {
            self.operations.sample.set_next_id(&self.gpu, *id);
        }
    }

    fn recorded(&self, recording: &mut Option<Graph>, body: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        if recording.is_none() {
            let mut outcome = Ok(());
            let graph = self.gpu.record(|| outcome = body());
            // A part of a step is not kept: the next one would replay it.
            outcome?;
            *recording = graph;
        }
        if let Some(graph) = recording {
            graph.launch();
        }
        self.gpu.status()
    }

    fn embed(&self, table: &CudaMatrix, ids: &Memory, rows: usize, out: &mut CudaBuffer) {
        self.operations.embed(&self.gpu, table, ids, rows, out);
    }

    fn linear(
        &self,
        x: &CudaBuffer,
        rows: usize,
        w: &CudaMatrix,
        bias: Option<&CudaBuffer>,
        accumulate: bool,
        out: &mut CudaBuffer,
    ) {
        let bias = bias.and_then(|bias| bias.elements.as_ref());
        if rows == 1 && accumulate && dense_ops::takes_row(w.cols) {
            return self.operations.linear_add(&self.gpu, x, w, bias, out);
        }
        let output = match (out.single, accumulate) {
            (false, _) => Output::Elements,
            (true, true) => Output::AddF32,
            (true, false) => Output::F32,
        };
        let product = Product {
            x: x.memory.start(),
            rows,
            w: &w.memory,
            inputs: w.cols,
            outputs: w.rows,
            operands: Operands::Stored(self.element),
            bias: bias.filter(|_| output == Output::Elements),
            out: out.memory.start(),
            output,
        };
        // SAFETY: buffers and matrix hold the stated shapes by construction of the decoder.
        unsafe { self.gemm.multiply(&product) };
        if let Some(bias) = bias.filter(|_| output != Output::Elements) {
            self.operations.add_bias(&self.gpu, bias, rows, w.rows, out);
        }
    }

    fn rms_norm(&self, x: &CudaBuffer, weight: &CudaBuffer, eps: f32, rows: Range<usize>, out: &mut CudaBuffer) {
        self.operations.rms_norm(&self.gpu, x, weight, eps, rows, out);
    }

    fn norm_heads(
        &self,
        qkv: &mut CudaBuffer,
        rows: usize,
        shape: &AttentionShape,
        part: QkvPart,
        weight: &CudaBuffer,
        eps: f32,
    ) {
        self.operations
            .norm_heads(&self.gpu, qkv, rows, shape, part, weight, eps);
    }

    fn silu_mul(&self, gate_up: &CudaBuffer, rows: usize, width: usize, out: &mut CudaBuffer) {
        self.operations.silu_mul(&self.gpu, gate_up, rows, width, out);
    }

    fn norm_linear(
        &self,
        x: &CudaBuffer,
        norm: &Norm<'_, Self>,
        rows: usize,
        w: &CudaMatrix,
        bias: Option<&CudaBuffer>,
        normed: &mut CudaBuffer,
        out: &mut CudaBuffer,
    ) {
        if rows == 1 && dense_ops::takes_normed_row(w.cols) {
            let product = NormRow::Linear;
            return self.operations.norm_row(&self.gpu, product, x, norm, w, bias, out);
        }
        self.rms_norm(x, norm.weight, norm.eps, 0..rows, normed);
        self.linear(normed, rows, w, bias, false, out);
    }

    fn norm_linear_silu_mul(
        &self,
        x: &CudaBuffer,
        norm: &Norm<'_, Self>,
        rows: usize,
        w: &CudaMatrix,
        bias: Option<&CudaBuffer>,
        width: usize,
        normed: &mut CudaBuffer,
        gate_up: &mut CudaBuffer,
        out: &mut CudaBuffer,
    ) {
        if rows == 1 && dense_ops::takes_normed_row(w.cols) {
            let product = NormRow::LinearSiluMul;
            return self.operations.norm_row(&self.gpu, product, x, norm, w, bias, out);
        }
        self.norm_linear(x, norm, rows, w, bias, normed, gate_up);
        self.silu_mul(gate_up, rows, width, out);
    }

    fn choose(
        &self,
        room: &mut Option<SampleRoom>,
        logits: &mut CudaBuffer,
        vocabulary: usize,
        choice: &Choice<'_>,
    ) -> Chosen {
        let queued = self.queue_choice(room, logits, vocabulary, choice);
        Chosen {
            id: queued.then(|| self.operations.sample.read(&self.gpu)).flatten(),
            logits_changed: queued && choice.penalizes(),
        }
    }

    fn norm_logits(
        &self,
        x: &CudaBuffer,
        norm: &Norm<'_, Self>,
        rows: Range<usize>,
        w: &CudaMatrix,
        normed: &mut CudaBuffer,
        out: &mut CudaBuffer,
    ) {
        if rows.len() == 1 && dense_ops::takes_normed_row(w.cols) {
            return self.operations.norm_logits(&self.gpu, x, norm, rows.start, w, out);
        }
        self.operations.sample.forget_best();
        let count = rows.len();
        self.rms_norm(x, norm.weight, norm.eps, rows, normed);
        self.linear(normed, count, w, None, false, out);
    }
}
