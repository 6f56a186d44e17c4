//! Where a run is computed: the seam between [`crate::train::trainer`], which decides what happens in which order, and
//! a device.
//!
//! An engine owns parameters, moments, gradients and memories. All engines are given the same parameters, streams and
//! dropout keys, so their runs can be compared number by number, and [`State`] goes from one to another.

pub mod check;
mod cpu;
mod cuda;

pub use cpu::CpuEngine;
pub use cuda::CudaEngine;

use super::cross_entropy::Outcome;
use super::dropout::Dropout;
use super::hidden_units::HiddenUnits;
use super::trainer::MemoryUse;
use super::transformer_xl::{Memory, Segment, TransformerXl};
use crate::error::Result;
use crate::kernels::cuda::Gpu;
use crate::kernels::cuda::training::Precision;

/// Where a run is computed.
#[derive(Debug, Clone)]
pub enum Place {
    /// All cores, f32.
    Cpu,
    /// A GPU.
    Cuda(Gpu, Precision),
}

impl Place {
    /// An engine for `model` that begins with `parameters`.
    pub fn engine(&self, model: &TransformerXl, config: EngineConfig, parameters: Vec<f32>) -> Result<Box<dyn Engine>> {
        Ok(match self {
            Self::Cpu => Box::new(CpuEngine::new(model, config, parameters)),
            Self::Cuda(gpu, precision) => Box::new(CudaEngine::new(gpu, *precision, model, config, &parameters)?),
        })
    }

    /// As reports record it.
    pub fn device(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(..) => "cuda",
        }
    }

    /// Bytes of an activation.
    pub fn value_bytes(&self) -> usize {
        match self {
            Self::Cpu => size_of::<f32>(),
            Self::Cuda(_, precision) => precision.bytes(),
        }
    }

    /// Type of activations and of the weights that products read, as reports record it.
    pub fn dtype(&self) -> &'static str {
        match self {
            Self::Cpu => "f32",
            Self::Cuda(_, precision) => precision.name(),
        }
    }
}

/// What an engine is made for, beside the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineConfig {
    /// B, streams of a step and of an evaluation.
    pub batch: usize,
    /// Groups that a step's streams are computed in; divides the batch.
    pub accumulate: usize,
    /// Whether attention weights are computed again in the backward pass instead of kept; a GPU always does.
    pub recompute: bool,
    /// Probability of dropout.
    pub dropout: f64,
}

impl EngineConfig {
    /// Streams of a group.
    pub fn group(&self) -> usize {
        self.batch / self.accumulate
    }
}

/// Which memory a pass reads and moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// The training text's; every group of streams has its own.
    Training,
    /// The held-out text's, part by part.
    Part,
    /// The held-out text's, in one go.
    Whole,
}

/// The streams of one group at one step.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    /// Ids, `[T, B / groups]`.
    pub segment: Segment<'a>,
    /// Dropout at this step and group.
    pub dropout: Dropout,
}

/// What the backward pass of a step found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gradient {
    /// Loss before the step.
    pub outcome: Outcome,
    /// Norm over all parameters.
    pub norm: f64,
}

/// Everything of an engine that a checkpoint holds, in f32, laid out as the model's parameters are.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The parameters.
    pub parameters: Vec<f32>,
    /// Mean of gradients.
    pub first: Vec<f32>,
    /// Mean of squared gradients.
    pub second: Vec<f32>,
    /// Of training, by group.
    pub memories: Vec<Memory<f32>>,
    /// Of the held-out text, part by part.
    pub part_memory: Memory<f32>,
}

/// A device that trains one model.
pub trait Engine {
    /// Loss and gradients of one step over all groups, in order; moves their memories on. The gradients are of the mean
    /// loss and replace those of the step before.
    fn gradients(&mut self, groups: &[Group<'_>]) -> Result<Gradient>;

    /// Adam's step `t` (from 1) at `rate` with the last gradients times `factor`.
    fn update(&mut self, t: u64, rate: f64, factor: f64) -> Result<()>;

    /// Loss of a segment of all streams; moves the memory of `reading` on.
    fn evaluate(&mut self, segment: Segment<'_>, reading: Reading) -> Result<Outcome>;

    /// Empties the memory of `reading`.
    fn forget(&mut self, reading: Reading);

    /// A copy of the state.
    fn state(&self) -> Result<State>;

    /// Takes over a state of the same model, batch and groups.
    fn load(&mut self, state: State) -> Result<()>;

    /// The last gradients, laid out as the parameters.
    fn last_gradients(&self) -> Result<Vec<f32>>;

    /// Keeps from the next step on which hidden units were on; steps become slower.
    fn watch(&mut self);

    /// The hidden units of the last step, by group; none if they are not watched.
    fn hidden_units(&self) -> &[HiddenUnits];

    /// Bytes by component so far.
    fn memory_use(&self) -> MemoryUse;
}
