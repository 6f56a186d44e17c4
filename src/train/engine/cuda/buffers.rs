//! Device memory of a training run: parameters and their moments, constants, and what a pass writes.

use super::PLACES;
use super::training::update::Pieces;
use super::training::{Precision, Span, Training};
use crate::kernels::cuda::Gpu;
use crate::kernels::cuda::driver::Memory;
use crate::kernels::cuda::training::attention::Sizes;
use crate::train::adam::Adam;
use crate::train::attention::Positions;
use crate::train::attention::heads::Rotary;
use crate::train::parameters::{Id, Layout};
use crate::train::transformer_xl::TransformerXl;

/// The flat buffers, laid out as on the host.
pub struct Parameters {
    pub data: Memory,
    pub grads: Memory,
    pub first: Memory,
    pub second: Memory,
    /// The parameters as products read them, unless that is f32.
    copy: Option<Memory>,
    precision: Precision,
    /// Elements.
    pub len: usize,
}

impl Parameters {
    pub fn new(gpu: &Gpu, precision: Precision, parameters: &[f32]) -> Self {
        let len = parameters.len();
        let zeros = || gpu.allocate(4 * len);
        Self {
            data: gpu.upload_new(bytemuck::cast_slice(parameters)),
            grads: zeros(),
            first: zeros(),
            second: zeros(),
            copy: (precision != Precision::F32).then(|| gpu.allocate(precision.bytes() * len)),
            precision,
            len,
        }
    }

    /// Makes the copy follow the parameters.
    pub fn refresh(&self, ops: &Training) {
        if let Some(copy) = &self.copy {
            ops.copy((&self.data).into(), copy.into(), self.len);
        }
    }

    pub fn update(&self, ops: &Training, pieces: &Pieces, adam: &Adam, at: (u64, f64, f64)) {
        let buffers = [&self.data, &self.grads, &self.first, &self.second].map(Span::from);
        ops.adam(buffers, self.copy.as_ref().map(Span::from), pieces, adam, at);
    }

    /// A tensor in f32.
    pub fn single(&self, layout: &Layout, id: Id) -> Span<'_> {
        Span::from(&self.data).after(4 * layout.spec(id).range().start)
    }

    /// Its gradient.
    pub fn gradient(&self, layout: &Layout, id: Id) -> Span<'_> {
        Span::from(&self.grads).after(4 * layout.spec(id).range().start)
    }

    /// A tensor as products read it.
    pub fn stored(&self, layout: &Layout, id: Id) -> Span<'_> {
        let memory = self.copy.as_ref().unwrap_or(&self.data);
        Span::from(memory).after(self.precision.bytes() * layout.spec(id).range().start)
    }

    pub fn copy_bytes(&self) -> u64 {
        self.copy.as_ref().map_or(0, |copy| copy.bytes() as u64)
    }
}

/// What follows from the sizes alone.
pub struct Constants {
    /// f32 `[memory + segment, d]`.
    pub sinusoids: Option<Memory>,
    /// Cosines and sines, f32 `[memory + segment, dk / 2]`.
    pub angles: Option<[Memory; 2]>,
}

impl Constants {
    pub fn new(gpu: &Gpu, model: &TransformerXl) -> Self {
        let config = &model.config;
        let sinusoids = model.sinusoids.as_ref().map(|sinusoids| {
            let table: Vec<f32> = sinusoids.table().iter().map(|&value| value as f32).collect();
            gpu.upload_new(bytemuck::cast_slice(&table))
        });
        let rotary = config.attention.parts().positions == Positions::Rotary;
        let angles = rotary.then(|| {
            let rotary = Rotary::<f32>::new(config.memory + config.segment, config.d_model / config.heads);
            [rotary.cos, rotary.sin].map(|table| gpu.upload_new(bytemuck::cast_slice(&table)))
        });
        Self { sinusoids, angles }
    }
}

/// What the backward pass needs of a layer. R rows of the segment, A with those of the memory, times streams.
pub struct Tape {
    /// f32 `[A, 2]`.
    pub statistics: Memory,
    /// Stored `[A, d]`.
    pub normal: Memory,
    /// Projections before the convolution, stored; empty without one.
    pub before: [Memory; 3],
    /// Queries, keys, values, stored.
    pub heads: [Memory; 3],
    /// Stored `[R, d]`.
    pub out: Memory,
    /// f32 `[H, R]`.
    pub log_sums: Memory,
    /// f32 `[R, d]`.
    pub middle: Memory,
    /// f32 `[R, 2]`.
    pub middle_statistics: Memory,
    /// Stored `[R, d]`.
    pub middle_normal: Memory,
    /// Stored `[R, d_ffn]`.
    pub hidden: Memory,
}

/// Memory of the backward pass, used by one layer after the other.
pub struct Backward {
    /// Stored `[R, vocabulary]`.
    pub d_logits: Memory,
    /// Gradient of the residual stream, f32 `[R, d]`.
    pub dx: Memory,
    /// Of a branch, stored `[R, d]`.
    pub branch: Memory,
    /// Stored `[R, d_ffn]`.
    pub hidden: Memory,
    /// f32 `[A, d]`.
    pub normal: Memory,
    /// Of the result of attention, stored `[R, d]`.
    pub out: Memory,
    /// Of queries, keys, values, stored.
    pub heads: [Memory; 3],
    /// Of one projection before its convolution, stored `[A, d]`.
    pub before: Memory,
    /// f32 `[H, R]`.
    pub delta: Memory,
    /// Partial sums of the relative table.
    pub table: Memory,
}

/// What one pass over a group of streams writes.
pub struct Buffers {
    /// Streams.
    pub batch: usize,
    /// Ids, targets, dropout keys.
    pub inputs: Memory,
    /// Inputs of every layer and the last one's result, f32 `[layers + 1, R, d]`.
    pub x: Memory,
    /// One per layer; a pass without gradients uses one for all.
    pub tapes: Vec<Tape>,
    /// Results of a branch before bias and dropout, stored `[R, d]`.
    pub branch: Memory,
    /// f32 `[R, 2]`.
    pub statistics: Memory,
    /// Stored `[R, d]`.
    pub normal: Memory,
    /// f32 `[R, vocabulary]`.
    pub logits: Memory,
    /// f32 `[R]`.
    pub losses: Memory,
    /// int `[R]`.
    pub correct: Memory,
    /// Only for training.
    pub backward: Option<Backward>,
    /// Partial sums of gradients.
    pub partial: Memory,
}

impl Buffers {
    pub fn new(ops: &Training, model: &TransformerXl, batch: usize, training: bool) -> Self {
        let (gpu, value) = (ops.gpu(), ops.value_bytes());
        let config = &model.config;
        let (d, ffn, heads) = (config.d_model, config.d_ffn, config.heads);
        let rows = config.segment * batch;
        let all = (model.stored_rows() + config.segment) * batch;
        let single = |len: usize| gpu.allocate(4 * len);
        let stored = |len: usize| gpu.allocate(value * len);
        let tape = |block: usize| {
            let projections = model.blocks[block].attention.projections();
            let before = projections.map(|projection| projection.kernel.map_or(0, |_| all * d));
            Tape {
                statistics: single(2 * all),
                normal: stored(all * d),
                before: before.map(stored),
                heads: [rows, all, all].map(|rows| stored(rows * d)),
                out: stored(rows * d),
                log_sums: single(heads * rows),
                middle: single(rows * d),
                middle_statistics: single(2 * rows),
                middle_normal: stored(rows * d),
                hidden: stored(rows * ffn),
            }
        };
        let sizes = Sizes {
            batch,
            heads,
            head_dim: d / heads,
            memory: config.memory,
            segment: config.segment,
        };
        let relative = config.attention.parts().positions == Positions::Relative;
        let table = if relative { most_table_bytes(ops, &sizes) } else { 0 };
        Self {
            batch,
            inputs: gpu.allocate(8 * rows + 8 * PLACES.len() * config.layers),
            x: single((config.layers + 1) * rows * d),
            tapes: (0..if training { config.layers } else { 1 }).map(tape).collect(),
            branch: stored(rows * d),
            statistics: single(2 * rows),
            normal: stored(rows * d),
            logits: single(rows * config.vocab),
            losses: single(rows),
            correct: single(rows),
            backward: training.then(|| Backward {
                d_logits: stored(rows * config.vocab),
                dx: single(rows * d),
                branch: stored(rows * d),
                hidden: stored(rows * ffn),
                normal: single(all * d),
                out: stored(rows * d),
                heads: [rows, all, all].map(|rows| stored(rows * d)),
                before: stored(all * d),
                delta: single(heads * rows),
                table: gpu.allocate(table),
            }),
            partial: gpu.allocate(0),
        }
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> usize {
        let tape = |tape: &Tape| {
            let rest = [
                &tape.statistics,
                &tape.normal,
                &tape.out,
                &tape.log_sums,
                &tape.middle,
                &tape.middle_statistics,
                &tape.middle_normal,
                &tape.hidden,
            ];
            tape.before
                .iter()
                .chain(&tape.heads)
                .chain(rest)
                .map(Memory::bytes)
                .sum::<usize>()
        };
        let backward = |backward: &Backward| {
            let rest = [
                &backward.d_logits,
                &backward.dx,
                &backward.branch,
                &backward.hidden,
                &backward.normal,
                &backward.out,
                &backward.before,
                &backward.delta,
                &backward.table,
            ];
            backward.heads.iter().chain(rest).map(Memory::bytes).sum::<usize>()
        };
        let own = [
            &self.inputs,
            &self.x,
            &self.branch,
            &self.statistics,
            &self.normal,
            &self.logits,
            &self.losses,
            &self.correct,
            &self.partial,
        ];
        own.into_iter().map(Memory::bytes).sum::<usize>()
            + self.tapes.iter().map(tape).sum::<usize>()
            + self.backward.as_ref().map_or(0, backward)
    }
}

/// Partial sums of the table over all lengths of memory that a run comes by: it grows by segments, and fewer diagonals have
/// more shares.
fn most_table_bytes(ops: &Training, sizes: &Sizes) -> usize {
    let lengths = (0..=sizes.memory).step_by(sizes.segment).chain([sizes.memory]);
    let bytes = lengths.map(|memory| ops.table_scratch_bytes(&Sizes { memory, ..*sizes }));
    bytes.max().unwrap_or(0)
}
