//! A text on a GPU: keys and values of every layer in one allocation each, selection and attention without the host.
//!
//! A prompt is read in forward passes of up to [`MAX_CHUNKS`] prefill chunks. All keys of a layer are stored before its
//! attention starts, so one pass over them scores the queries of every chunk: exact, since each chunk sees only the tokens
//! before its end. A generated token is one persistent kernel per layer, recorded with the rest of the step as one graph;
//! whether the selection cache hits is decided on the device.

mod inspect;
mod prompt;

pub(crate) use prompt::Stage;

use super::{AttentionContext, Chunk, ContextBytes};
use crate::error::{Error, Result};
use crate::kernels::cuda::attention::{AttentionKernels, DenseScratch, DeviceRope, LayerStore, PackedLists};
use crate::kernels::cuda::select::{MAX_CHUNKS, SelectKernels, SelectPlan, SelectScratch, SelectSettings};
use crate::kernels::cuda::step::{StepInput, StepKernels, StepSettings, StepState};
use crate::kernels::cuda::{Cuda, CudaBuffer, ELEMENT_BYTES, Memory};
use crate::kernels::{AttentionShape, Positions, ScoreDtype};
use crate::model::config::ModelConfig;
use crate::model::decoder::{ForwardTimes, LayerTrace, SessionLimits};
use crate::model::rope;
use crate::selection::{
    CacheOutcome, CacheThreshold, ChunkQuery, LayerStatistics, Phase, PolicyConfig, ScoreScale, SelectionStatistics,
    TokenSelectConfig, Vote,
};

/// Integers that describe a forward pass to the kernels: one array of each, `[MAX_CHUNKS]`.
#[derive(Clone, Copy)]
enum PassArray {
    /// Tokens stored up to the end of the chunk.
    Stored,
    /// Rows of the chunk.
    Rows,
    /// Position of the chunk's first row in its list.
    FirstPosition,
    /// Tokens stored before the forward pass (first entry).
    Before,
    /// Rows of the forward pass (first entry).
    Count,
}

const PASS_ARRAYS: usize = 5;

/// About that of keys made by random weights of a published model.
const RANDOM_DEVIATION: f32 = 1.2;

impl PassArray {
    fn offset(self) -> usize {
        self as usize * MAX_CHUNKS * size_of::<i32>()
    }
}

/// Kernels and room of a policy that selects.
struct Selecting {
    select: SelectSettings,
    step: StepSettings,
    last_token_apart: bool,
    select_kernels: SelectKernels,
    step_kernels: StepKernels,
    scratch: SelectScratch,
    packed: PackedLists,
    step_state: StepState,
}

/// Keys, values and selection state of one text on a GPU.
pub struct CudaContext {
    windows: Vec<usize>,
    layers: Vec<LayerStore>,
    kernels: AttentionKernels,
    rope: DeviceRope,
    /// Room for the rotated queries of a forward pass.
    rotated: Memory,
    /// `[PASS_ARRAYS][MAX_CHUNKS]`.
    pass: Memory,
    dense_scratch: DenseScratch,
    selecting: Option<Selecting>,
    chunk_rows: usize,
    capacity: usize,
    stored: usize,
    /// Whether selections are read back, and whether the last forward pass was a step.
    traced: bool,
    stepped: bool,
}

/// The settings of a policy that the GPU has kernels for.
fn settings(config: &ModelConfig, policy: &TokenSelectConfig) -> (SelectSettings, StepSettings) {
    let d = config.attention.head_dim as f32;
    let select = SelectSettings {
        n_init: policy.n_init,
        top_k: policy.top_k,
        n_local: policy.n_local,
        local_outside_chunk: policy.local_outside_chunk,
        head_map: policy.head_map,
        scale: match policy.score_scale {
            ScoreScale::None => 1.0,
            ScoreScale::SqrtD => 1.0 / d.sqrt(),
        },
        last_row_only: policy.chunk_query == ChunkQuery::Last,
    };
    let step = StepSettings {
        select,
        cache_threshold: match policy.cache_threshold {
            CacheThreshold::Off => None,
            CacheThreshold::Cosine(threshold) => Some(threshold),
        },
        gap_repair: policy.cache_gap_repair,
        int8_keys: policy.int8_keys,
    };
    (select, step)
}

fn chunk_rows(limits: SessionLimits) -> usize {
    limits.rows()
}

fn chunks_at_once(limits: SessionLimits) -> usize {
    limits.max_context.div_ceil(chunk_rows(limits)).clamp(1, MAX_CHUNKS)
}

fn plan<'a>(shape: &'a AttentionShape, settings: &'a SelectSettings, limits: SessionLimits) -> SelectPlan<'a> {
    SelectPlan {
        shape,
        settings,
        capacity: limits.max_context,
        chunks: chunks_at_once(limits),
        rows: chunk_rows(limits),
    }
}

/// Positions that angles are needed for.
fn positions(config: &ModelConfig, policy: &PolicyConfig, limits: SessionLimits) -> usize {
    match policy {
        PolicyConfig::TokenSelect(token_select) => {
            let (select, step) = settings(config, token_select);
            let rows = chunk_rows(limits);
            select
                .longest_list(rows)
                .max(step.longest_list(limits.max_context))
                .max(select.n_local + rows)
        }
        _ => limits.max_context,
    }
}

impl CudaContext {
    /// Whether a GPU can do this run; an error says what it cannot.
    pub fn runs(config: &ModelConfig, policy: &PolicyConfig, limits: SessionLimits) -> Result<()> {
        let refused = |what: String| {
            Err(Error::user(format!("{what} runs on the CPU only")).help("pass `--device cpu`, or leave it out"))
        };
        if limits.diagnose {
            return refused("`--diagnose`".into());
        }
        let shape = config.attention;
        if !shape.head_dim.is_multiple_of(8) || shape.head_dim > 256 || shape.group() > 16 {
            return refused(format!(
                "attention with {} query heads on {} KV heads of {}",
                shape.query_heads, shape.kv_heads, shape.head_dim
            ));
        }
        let token_select = match policy {
            PolicyConfig::Dense => return Ok(()),
            PolicyConfig::TokenSelect(token_select) => token_select,
            other => return refused(format!("`--policy {}`", other.name())),
        };
        let TokenSelectConfig {
            vote,
            smoothing,
            chunk_query,
            score_dtype,
            positions,
            ..
        } = token_select;
        if token_select.top_k == 0 || token_select.n_local == 0 {
            refused("`--top-k 0` or `--n-local 0`".into())
        } else if *vote != Vote::Soft {
            refused("`--vote head` or `logit`".into())
        } else if *smoothing > 1 {
            refused(format!("`--smoothing {smoothing}`"))
        } else if matches!(chunk_query, ChunkQuery::Subchunk(_)) {
            refused("`--chunk-query subchunk`".into())
        } else if *score_dtype != ScoreDtype::F32 {
            refused("`--score-dtype bf16`".into())
        } else if *positions != Positions::Packed {
            refused("`--positions original` with token-select".into())
        } else {
            Ok(())
        }
    }

    fn pass_array(&self, array: PassArray) -> crate::kernels::cuda::Argument {
        self.pass.at(array.offset())
    }

    fn room_for(&self, rows: usize) -> Result<usize> {
        let len = self.stored + rows;
        if len <= self.capacity {
            return Ok(len);
        }
        Err(Error::user(format!(
            "the text needs {len} tokens of KV cache, but the context holds {}",
            self.capacity
        ))
        .help(format!("pass `--max-context {len}` or more")))
    }

    /// Counts a step that was queued without the host.
    pub(in crate::model) fn count_step(&mut self) -> Result<()> {
        self.stored = self.room_for(1)?;
        Ok(())
    }

    /// Fills keys and values of the first `len` tokens with random numbers, for benches.
    pub(crate) fn fill_random(&mut self, device: &Cuda, len: usize, seed: u64) -> Result<()> {
        if len > self.capacity {
            self.room_for(len)?;
        }
        for (layer, store) in self.layers.iter().enumerate() {
            device.fill_random(&store.keys, seed + 2 * layer as u64, RANDOM_DEVIATION);
            device.fill_random(&store.values, seed + 2 * layer as u64 + 1, RANDOM_DEVIATION);
        }
        self.describe_pass(device, 0, len);
        for store in &self.layers {
            let (first, count) = (self.pass_array(PassArray::Before), self.pass_array(PassArray::Count));
            self.kernels.quantize(store, first, count, self.capacity);
        }
        self.stored = len;
        device.gpu().status()
    }

    /// Tells the kernels about the next decode step, which counts its own token first.
    fn describe_step(&self, device: &Cuda, before: usize) {
        let mut arrays = [[0i32; MAX_CHUNKS]; PASS_ARRAYS];
        arrays[PassArray::Stored as usize][0] = before as i32;
        arrays[PassArray::Before as usize][0] = before as i32 - 1;
        device.gpu().upload(&self.pass, 0, bytemuck::cast_slice(&arrays));
    }

    /// Tells the kernels about the next forward pass of a prompt.
    fn describe_pass(&self, device: &Cuda, before: usize, rows: usize) {
        let mut arrays = [[0i32; MAX_CHUNKS]; PASS_ARRAYS];
        arrays[PassArray::Before as usize][0] = before as i32;
        arrays[PassArray::Count as usize][0] = rows as i32;
        if self.selecting.is_none() {
            // One chunk: the whole pass against every stored token.
            arrays[PassArray::Stored as usize][0] = (before + rows) as i32;
            arrays[PassArray::Rows as usize][0] = rows as i32;
            arrays[PassArray::FirstPosition as usize][0] = before as i32;
        }
        if let Some(selecting) = &self.selecting {
            for (chunk, first) in (0..rows).step_by(self.chunk_rows).enumerate().take(MAX_CHUNKS) {
                let count = self.chunk_rows.min(rows - first);
                let stored = before + first + count;
                let length = selecting.select.list_len(stored, count);
                arrays[PassArray::Stored as usize][chunk] = stored as i32;
                arrays[PassArray::Rows as usize][chunk] = count as i32;
                arrays[PassArray::FirstPosition as usize][chunk] = (length - count) as i32;
            }
        }
        device.gpu().upload(&self.pass, 0, bytemuck::cast_slice(&arrays));
    }

    /// One generated token.
    fn attend_step(&self, layer: usize, qkv: &CudaBuffer, out: &CudaBuffer) {
        let (store, stored) = (&self.layers[layer], self.pass_array(PassArray::Stored));
        let window = self.windows[layer];
        if let Some(selecting) = &self.selecting {
            let input = StepInput {
                qkv,
                store,
                stored,
                rope: &self.rope,
                window,
                layer,
            };
            let (kernels, state) = (&selecting.step_kernels, &selecting.step_state);
            kernels.step(&input, &selecting.step, state, out);
        } else {
            let before = self.pass_array(PassArray::Before);
            self.kernels.append(qkv, 1, before, &self.rope, true, store);
            let scratch = &self.dense_scratch;
            self.kernels
                .dense_step(qkv, store, stored, &self.rope, window, scratch, out);
        }
    }
}

impl AttentionContext<Cuda> for CudaContext {
    fn new(device: &Cuda, config: &ModelConfig, policy: &PolicyConfig, limits: SessionLimits) -> Result<Self> {
        Self::runs(config, policy, limits)?;
        let (gpu, shape) = (device.gpu(), config.attention);
        let (chunks, rows, capacity) = (chunks_at_once(limits), chunk_rows(limits), limits.max_context);
        let kernels = AttentionKernels::new(device, &shape)?;
        let selecting = match policy {
            PolicyConfig::TokenSelect(token_select) => {
                let (select, step) = settings(config, token_select);
                let step_kernels = StepKernels::new(device, &shape, step.int8_keys)?;
                Some(Selecting {
                    select_kernels: SelectKernels::new(device, &shape)?,
                    scratch: SelectScratch::new(gpu, &plan(&shape, &select, limits)),
                    packed: PackedLists::new(gpu, &shape, chunks, select.longest_list(rows)),
                    step_state: StepState::new(&step_kernels, &step, capacity, config.layers),
                    step_kernels,
                    last_token_apart: token_select.last_token_alone,
                    select,
                    step,
                })
            }
            _ => None,
        };
        let int8_keys = selecting.as_ref().is_some_and(|s| s.step.int8_keys);
        let layers = (0..config.layers)
            .map(|_| LayerStore::new(gpu, &shape, capacity, int8_keys))
            .collect();
        let extended = rope::extended(config, policy.rope_extension(), capacity);
        let table = rope::table(&extended, positions(config, policy, limits));
        let context = Self {
            windows: config.windows.iter().map(|window| window.unwrap_or(0)).collect(),
            layers,
            rope: DeviceRope::new(gpu, &table),
            rotated: gpu.allocate(chunks * rows * shape.query_width() * ELEMENT_BYTES),
            pass: gpu.allocate(PASS_ARRAYS * MAX_CHUNKS * size_of::<i32>()),
            dense_scratch: DenseScratch::new(&kernels),
            kernels,
            selecting,
            chunk_rows: rows,
            capacity,
            stored: 0,
            traced: false,
            stepped: false,
        };
        gpu.status()?;
        Ok(context)
    }

    fn bytes(device: &Cuda, config: &ModelConfig, policy: &PolicyConfig, limits: SessionLimits) -> ContextBytes {
        let (gpu, shape) = (device.gpu(), config.attention);
        let (chunks, rows, capacity) = (chunks_at_once(limits), chunk_rows(limits), limits.max_context);
        let mut int8_keys = false;
        let selection = match policy {
            PolicyConfig::TokenSelect(token_select) => {
                let (select, step) = settings(config, token_select);
                int8_keys = step.int8_keys;
                plan(&shape, &select, limits).bytes(gpu)
                    + PackedLists::bytes(&shape, chunks, select.longest_list(rows))
                    // A kernel that does not compile is told when the text is made.
                    + StepKernels::new(device, &shape, int8_keys)
                        .map_or(0, |kernels| StepState::bytes(&kernels, &step, capacity, config.layers))
            }
            _ => 0,
        };
        ContextBytes {
            kv_cache: LayerStore::bytes(&shape, capacity, int8_keys).saturating_mul(config.layers),
            selection,
            attention: rope::table_bytes(config, positions(config, policy, limits))
                + chunks * rows * shape.query_width() * ELEMENT_BYTES,
        }
    }

    fn rows_at_once(limits: SessionLimits) -> usize {
        (chunks_at_once(limits) * chunk_rows(limits))
            .min(limits.max_context)
            .max(1)
    }

    fn last_token_apart(&self) -> bool {
        self.selecting
            .as_ref()
            .is_some_and(|selecting| selecting.last_token_apart)
    }

    fn stored(&self) -> usize {
        self.stored
    }

    fn extend(&mut self, device: &Cuda, rows: usize, phase: Phase) -> Result<()> {
        let len = self.room_for(rows)?;
        self.stepped = phase == Phase::Decode && rows == 1;
        if self.stepped {
            self.describe_step(device, self.stored);
        } else {
            self.describe_pass(device, self.stored, rows);
        }
        self.stored = len;
        Ok(())
    }

    fn begin_step(&self, device: &Cuda, ids: &Memory) {
        // Tokens stored, and tokens before the step's own.
        let (first, second) = (PassArray::Stored as usize, PassArray::Before as usize);
        device.advance(ids, &self.pass, 2, (second - first) * MAX_CHUNKS);
    }

    fn attend(
        &mut self,
        _device: &Cuda,
        layer: usize,
        chunk: &Chunk<'_, Cuda>,
        _times: &mut ForwardTimes,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        if chunk.phase == Phase::Decode && chunk.rows == 1 {
            self.attend_step(layer, chunk.qkv, out);
            Ok(())
        } else {
            self.attend_prompt(layer, chunk.qkv, chunk.rows, out)
        }
    }

    fn reset(&mut self) {
        self.stored = 0;
        if let Some(selecting) = &self.selecting {
            selecting.step_state.reset();
        }
    }

    fn truncate(&mut self, len: usize) {
        self.stored = self.stored.min(len);
    }

    fn statistics(&self) -> SelectionStatistics {
        // With the cache off every step selects, which is no miss of it.
        let caching = self.selecting.as_ref().filter(|s| s.step.cache_threshold.is_some());
        let layers = caching.map_or_else(Vec::new, |selecting| {
            let counts = selecting.step_state.counts(self.layers.len()).unwrap_or_default();
            counts
                .into_iter()
                .map(|(hits, misses)| LayerStatistics {
                    cache_hits: hits,
                    cache_misses: misses,
                    ..LayerStatistics::default()
                })
                .collect()
        });
        SelectionStatistics { layers }
    }

    fn keep_trace(&mut self) {
        self.traced = true;
    }

    /// Of steps; what a prompt's chunks selected is not kept. Whether the cache was hit is only counted on the device.
    fn take_trace(&mut self) -> Option<Vec<LayerTrace>> {
        let selecting = self.selecting.as_ref().filter(|_| self.traced && self.stepped)?;
        let select = &selecting.select;
        let dense = self.stored <= select.n_init + select.top_k + select.n_local;
        let layer = |layer| {
            let selected = if dense {
                None
            } else {
                let tokens = selecting.step_state.selected(layer, select.top_k).ok()?;
                Some(tokens.into_iter().map(|token| token.max(0) as u32).collect())
            };
            Some(LayerTrace {
                selected,
                cache: CacheOutcome::Unused,
            })
        };
        (0..self.layers.len()).map(layer).collect()
    }
}
