//! One decode step of one layer under `TokenSelect`, one launch (`token_select_step/`).

use super::attention::{DeviceRope, LayerStore};
use super::compile::Source;
use super::driver::{Argument, Carveout, Gpu, Kernel, Launch, Memory};
use super::select::SelectSettings;
use super::{Cuda, CudaBuffer, defines};
use crate::error::{Error, Result};
use crate::kernels::{AttentionShape, HeadMap};

/// Threads of a block.
const THREADS: u32 = 512;
/// Integers of one layer's state.
const STATE_INTS: usize = 16;
/// Where in a layer's state the counts of hits and misses are.
const STATE_HITS: usize = 2;
const STATE_MISSES: usize = 3;
/// Tokens by which gap repair may lengthen a list; a step that would need more makes a new selection.
const MOST_GAP: usize = 4096;
/// With less shared memory than this a block holds fewer rows of keys and values at once.
const SHARED_FOR_MANY_ROWS: u32 = 130 << 10;
/// Shared memory that leaves enough L1 for loads in flight.
const SHARED_BESIDE_L1: u32 = 98 << 10;
/// Tokens of one tile of scores.
const TILE: usize = 16;

/// What a step does, the same for all layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSettings {
    /// What is selected.
    pub select: SelectSettings,
    /// Cosine from which on a selection is used again; `None`: never.
    pub cache_threshold: Option<f32>,
    /// On a hit, tokens that left the local window since the last miss stay visible.
    pub gap_repair: bool,
    /// Scores are made from an 8-bit copy of the keys.
    pub int8_keys: bool,
}

/// Bytes of scores that stay in shared memory and L2 beside the keys that pass through it.
const STORED_SCORE_BYTES: usize = 24 << 20;
/// Candidates for each token that is selected, from which on few tiles of keys are read twice. At least 16 are needed.
const CANDIDATES_PER_SELECTED: usize = 112;

impl StepSettings {
    /// Candidates up to which a step keeps all scores of `query_heads` heads; of more it keeps maxima only, and reads the keys
    /// again that these cannot rule out.
    fn stored_scores(&self, query_heads: usize) -> usize {
        if self.select.scale < 1.0 {
            // Scaled scores hardly differ: maxima would rule out next to nothing.
            return i32::MAX as usize;
        }
        let selected = CANDIDATES_PER_SELECTED * self.select.top_k;
        selected.max(STORED_SCORE_BYTES / (size_of::<f32>() * query_heads))
    }

    /// The longest list of a step in a text of `capacity` tokens.
    pub fn longest_list(&self, capacity: usize) -> usize {
        // One more: a dense step may be as long as the budget, whatever the window.
        let plain = self.select.longest_list(1) + 1;
        if self.gap_repair && self.cache_threshold.is_some() {
            capacity.min(plain + MOST_GAP).max(plain)
        } else {
            plain
        }
    }
}

/// Selection caches of all layers, and the room that they share.
pub struct StepState {
    /// `[layers][H * D]` f32: query of the last miss.
    queries: Memory,
    /// `[layers][top_k]`.
    selected: Memory,
    /// `[layers][STATE_INTS]`.
    state: Memory,
    scratch: Memory,
    scores: Memory,
    capacity: usize,
}

/// Bytes of [`StepState`]'s parts, in order.
fn sizes(kernels: &StepKernels, settings: &StepSettings, capacity: usize, layers: usize) -> [usize; 5] {
    let variant = &kernels.variant;
    let heads = kernels.shape.query_heads;
    let stored = if variant.has_bounds {
        settings.stored_scores(heads)
    } else {
        capacity
    };
    // Every block's run of tokens ends with a whole tile.
    let rounding = TILE * kernels.blocks;
    let rows = (stored.min(capacity) + rounding).max((capacity + rounding) / TILE);
    [
        layers * kernels.shape.query_width() * size_of::<f32>(),
        layers * settings.select.top_k.max(1) * size_of::<i32>(),
        layers * STATE_INTS * size_of::<i32>(),
        variant.scratch_bytes + variant.scratch_bytes_per_block * kernels.blocks,
        size_of::<f32>() * (capacity + rounding + heads * rows),
    ]
}

impl StepState {
    /// Empty caches for `layers` layers over at most `capacity` tokens.
    pub fn new(kernels: &StepKernels, settings: &StepSettings, capacity: usize, layers: usize) -> Self {
        let [queries, selected, state, scratch, scores] =
            sizes(kernels, settings, capacity, layers).map(|bytes| kernels.gpu.allocate(bytes));
        Self {
            queries,
            selected,
            state,
            scratch,
            scores,
            capacity,
        }
    }

    /// Bytes of all parts.
    pub fn bytes(kernels: &StepKernels, settings: &StepSettings, capacity: usize, layers: usize) -> usize {
        sizes(kernels, settings, capacity, layers).iter().sum()
    }

    /// Forgets every selection and count.
    pub fn reset(&self) {
        let zeros = vec![0u8; self.state.bytes()];
        self.state.gpu().upload(&self.state, 0, &zeros);
    }

    /// Hits and misses of each of `layers` layers. Waits for queued work.
    pub fn counts(&self, layers: usize) -> Result<Vec<(usize, usize)>> {
        let mut state = vec![0i32; layers * STATE_INTS];
        let gpu = self.state.gpu();
        gpu.download(&self.state, 0, bytemuck::cast_slice_mut(&mut state))?;
        let count = |layer: &[i32], at: usize| usize::try_from(layer[at]).unwrap_or(0);
        Ok(state
            .chunks_exact(STATE_INTS)
            .map(|layer| (count(layer, STATE_HITS), count(layer, STATE_MISSES)))
            .collect())
    }

    /// The query `[H * D]` of the last miss of `layer`, for checks. Waits for queued work.
    pub fn query(&self, layer: usize, width: usize) -> Result<Vec<f32>> {
        let mut query = vec![0.0f32; width];
        let (gpu, offset) = (self.state.gpu(), layer * width * size_of::<f32>());
        gpu.download(&self.queries, offset, bytemuck::cast_slice_mut(&mut query))?;
        Ok(query)
    }

    /// The last selection of `layer`, for checks. Waits for queued work.
    pub fn selected(&self, layer: usize, top_k: usize) -> Result<Vec<i32>> {
        let mut selected = vec![0i32; top_k];
        let (gpu, offset) = (self.state.gpu(), layer * top_k * size_of::<i32>());
        gpu.download(&self.selected, offset, bytemuck::cast_slice_mut(&mut selected))?;
        Ok(selected)
    }
}

/// One form of the step, loaded, and what its file says of it.
struct Variant {
    step: Kernel,
    shared_bytes: u32,
    scratch_bytes: usize,
    scratch_bytes_per_block: usize,
    /// Whether it can go without the scores of most tokens.
    has_bounds: bool,
}

impl Variant {
    fn new(device: &Cuda, defines: &[(&str, String)]) -> Result<Self> {
        let gpu = device.gpu();
        // One KB less: a block has some of its own beside what is asked for.
        let most = gpu.properties().shared_bytes_per_block - 1024;
        let mut defines = defines.to_vec();
        if most < SHARED_FOR_MANY_ROWS {
            defines.push(("ATTEND_ROWS", "64".to_owned()));
        }
        let module = gpu.module(Source::TokenSelectStep, &defines)?;
        let [least, fixed, per_block, takes_more, has_bounds] = module.integers::<5>("token_select_sizes")?;
        // More than the least holds scores; where keys are loaded through L1, it would take from those in flight.
        let least = least as u32;
        let shared_bytes = if takes_more == 0 {
            least.max(SHARED_BESIDE_L1)
        } else {
            most.max(least)
        };
        let step = module.kernel("token_select_step")?;
        let fits = shared_bytes <= gpu.properties().shared_bytes_per_block;
        if fits {
            step.allow_shared(gpu, shared_bytes);
            if takes_more == 0 {
                step.prefer(gpu, Carveout::MostL1);
            }
            gpu.status()?;
        }
        // Blocks wait for each other: all must be resident.
        if !fits || step.blocks_per_multiprocessor(gpu, THREADS, shared_bytes) == 0 {
            return Err(Error::environment(format!(
                "{} has too little shared memory for token-select with this model",
                gpu.properties().name
            ))
            .help("pass `--device cpu`"));
        }
        Ok(Self {
            step,
            shared_bytes,
            scratch_bytes: fixed as usize,
            scratch_bytes_per_block: per_block as usize,
            has_bounds: has_bounds != 0,
        })
    }
}

/// Kernels of one attention shape, loaded.
pub struct StepKernels {
    gpu: Gpu,
    shape: AttentionShape,
    variant: Variant,
    blocks: usize,
}

/// What one launch reads and writes.
pub struct StepInput<'a> {
    /// The fused row.
    pub qkv: &'a CudaBuffer,
    /// The layer's keys and values; the row's own are added.
    pub store: &'a LayerStore,
    /// Device: tokens stored, the row's own included.
    pub stored: Argument,
    /// Rotation angles.
    pub rope: &'a DeviceRope,
    /// Keys further behind than this in the list are hidden; 0 for none.
    pub window: usize,
    /// Which layer's selection cache.
    pub layer: usize,
}

impl StepKernels {
    /// Compiles or loads the kernel of `shape`, for keys as stored or for their 8-bit copy.
    pub fn new(device: &Cuda, shape: &AttentionShape, int8_keys: bool) -> Result<Self> {
        let mut defines = defines(device.element(), shape);
        if int8_keys {
            defines.push(("KEYS8", "1".to_owned()));
        }
        Ok(Self {
            gpu: device.gpu().clone(),
            shape: *shape,
            variant: Variant::new(device, &defines)?,
            blocks: device.gpu().properties().multiprocessors as usize,
        })
    }

    /// Stores the row's key and value, selects or reuses, attends; out `[H][D]`.
    pub fn step(&self, input: &StepInput<'_>, settings: &StepSettings, state: &StepState, out: &CudaBuffer) {
        let address = |argument: Argument| match argument {
            Argument::Pointer(address) => address,
            _ => 0,
        };
        let (select, variant) = (&settings.select, &self.variant);
        let layer = input.layer;
        let copy = input.store.keys8.as_ref();
        let words = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let flags = u32::from(select.head_map == HeadMap::Modulo)
            | u32::from(settings.gap_repair) << 1
            | u32::from(select.local_outside_chunk) << 2;
        // No cosine is above 1.
        let threshold = settings.cache_threshold.unwrap_or(2.0);
        let stored_scores = settings.stored_scores(self.shape.query_heads).min(i32::MAX as usize);
        let softmax_scale = 1.0 / (self.shape.head_dim as f32).sqrt();
        let arguments = Argument::Structure([
            address(input.qkv.memory.start()),
            address(input.store.keys.start()),
            address(input.store.values.start()),
            copy.map_or(0, |copy| address(copy.keys.start())),
            copy.map_or(0, |copy| address(copy.scales.start())),
            address(input.stored),
            address(input.rope.cos.start()),
            address(input.rope.sin.start()),
            address(state.queries.at(layer * self.shape.query_width() * size_of::<f32>())),
            address(state.selected.at(layer * select.top_k * size_of::<i32>())),
            address(state.state.at(layer * STATE_INTS * size_of::<i32>())),
            address(out.memory.start()),
            address(state.scratch.start()),
            address(state.scores.start()),
            words(select.scale.to_bits(), softmax_scale.to_bits()),
            words(threshold.to_bits(), select.n_init as u32),
            words(select.n_local as u32, select.top_k as u32),
            words(state.capacity as u32, input.window as u32),
            words(input.rope.positions as u32, flags),
            words(variant.shared_bytes, stored_scores as u32),
        ]);
        let launch = Launch::new(self.blocks, THREADS)
            .shared(variant.shared_bytes)
            .overlapping();
        // SAFETY: every part was made for this shape, capacity and number of layers; stored tokens are in the store.
        unsafe { self.gpu.launch(&variant.step, launch, &[arguments]) };
    }
}
