//! One text in progress: its keys and values, and how a chunk of queries attends to them under a policy.
//!
//! Everything of a decoder layer between the fused projection and the output projection, in two forms: [`HostContext`]
//! runs any policy of [`crate::selection`] step by step on host memory, [`CudaContext`] keeps the text on a GPU and makes
//! selection and attention there, without the host in between.

mod cuda;
mod host;

pub use cuda::CudaContext;
pub(crate) use cuda::Stage;
pub use host::HostContext;

use super::config::ModelConfig;
use super::decoder::{ForwardTimes, LayerTrace, SessionLimits};
use crate::attention::Diagnosis;
use crate::error::Result;
use crate::kernels::cuda::Cuda;
use crate::kernels::{Backend, Device};
use crate::selection::{Phase, PolicyConfig, SelectionStatistics};

/// A device together with its form of a text in progress.
pub trait Engine: Device {
    /// Keys, values, selection and attention.
    type Context: AttentionContext<Self>;
}

impl<B: Backend> Engine for B {
    type Context = HostContext<B>;
}

impl Engine for Cuda {
    type Context = CudaContext;
}

/// The rows of one layer after the fused projection.
pub struct Chunk<'a, D: Device> {
    /// `[rows, (H + 2 Hkv) D]`, un-rotated.
    pub qkv: &'a D::Buffer,
    /// C.
    pub rows: usize,
    /// Prompt or generated.
    pub phase: Phase,
}

/// Bytes of a context, for the memory plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContextBytes {
    /// Keys and values of all tokens.
    pub kv_cache: usize,
    /// Scores, votes, lists.
    pub selection: usize,
    /// Rotation angles, attention tiles.
    pub attention: usize,
}

/// Keys and values of one text, and how queries attend to them.
pub trait AttentionContext<D: Device>: Sized + Send {
    /// An empty text under `policy`.
    fn new(device: &D, config: &ModelConfig, policy: &PolicyConfig, limits: SessionLimits) -> Result<Self>;
    /// What [`AttentionContext::new`] and its use will allocate.
    fn bytes(device: &D, config: &ModelConfig, policy: &PolicyConfig, limits: SessionLimits) -> ContextBytes;
    /// Prompt tokens of one forward pass at most.
    fn rows_at_once(limits: SessionLimits) -> usize;
    /// Whether the last prompt token must be a forward pass of its own.
    fn last_token_apart(&self) -> bool;
    /// N: tokens stored so far, those of the forward pass in progress included.
    fn stored(&self) -> usize;
    /// Counts the next `rows` tokens as stored and makes room for them; [`AttentionContext::attend`] stores them.
    fn extend(&mut self, device: &D, rows: usize, phase: Phase) -> Result<()>;
    /// Queued at the start of a recorded decode step, where the host does not come by again.
    fn begin_step(&self, _device: &D, _ids: &D::Ids) {}
    /// Stores keys and values of the chunk in `layer`, selects, attends; out `[C, H, D]`.
    fn attend(
        &mut self,
        device: &D,
        layer: usize,
        chunk: &Chunk<'_, D>,
        times: &mut ForwardTimes,
        out: &mut D::Buffer,
    ) -> Result<()>;
    /// Forgets the text; memory is kept.
    fn reset(&mut self);
    /// Goes back to the first `len` tokens; what a policy remembers stays.
    fn truncate(&mut self, len: usize);
    /// The policy's counts over the current text.
    fn statistics(&self) -> SelectionStatistics;
    /// Recall and attention mass collected so far, where the context compares selections with exact attention.
    fn diagnosis(&self) -> Option<&Diagnosis> {
        None
    }
    /// Keeps what every layer selects from now on.
    fn keep_trace(&mut self) {}
    /// What each layer selected in the last forward pass; `None` unless [`AttentionContext::keep_trace`] was called on a
    /// context that can tell.
    fn take_trace(&mut self) -> Option<Vec<LayerTrace>> {
        None
    }
}
