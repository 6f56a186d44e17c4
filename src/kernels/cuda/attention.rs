//! Launches of everything between the fused projection and the output projection of a layer, for one attention shape.
//!
//! Keys and values of a layer lie token-major, `[capacity][Hkv][D]`. What changes from step to step (stored tokens, rows,
//! lengths, first positions) is read by the kernels from device memory, so that a recorded step stays valid.

use super::compile::Source;
use super::driver::{Argument, Carveout, Gpu, Kernel, Launch, Memory, TensorLayout};
use super::{Cuda, CudaBuffer, ELEMENT_BYTES, Element, defines};
use crate::error::Result;
use crate::kernels::{AttentionShape, RopeTable};

/// Cosines and sines on the device.
pub struct DeviceRope {
    pub(super) cos: Memory,
    pub(super) sin: Memory,
    /// Rows of the tables.
    pub positions: usize,
}

impl DeviceRope {
    /// Copies a table.
    pub fn new(gpu: &Gpu, table: &RopeTable) -> Self {
        Self {
            cos: gpu.upload_new(bytemuck::cast_slice(&table.cos)),
            sin: gpu.upload_new(bytemuck::cast_slice(&table.sin)),
            positions: table.positions(),
        }
    }
}

/// Keys and values of one layer.
pub struct LayerStore {
    /// `[capacity][Hkv][D]`.
    pub keys: Memory,
    /// `[capacity][Hkv][D]`.
    pub values: Memory,
    /// The keys once more in 8 bits, for scoring.
    pub keys8: Option<Keys8>,
}

/// Keys rounded to 8 bits.
pub struct Keys8 {
    /// `[capacity][Hkv][D]` signed bytes.
    pub keys: Memory,
    /// `[capacity][Hkv]` f32: what the largest byte stands for, over 127.
    pub scales: Memory,
}

impl LayerStore {
    /// Room for `capacity` tokens.
    pub fn new(gpu: &Gpu, shape: &AttentionShape, capacity: usize, int8_keys: bool) -> Self {
        let elements = capacity * shape.kv_width();
        Self {
            keys: gpu.allocate(elements * ELEMENT_BYTES),
            values: gpu.allocate(elements * ELEMENT_BYTES),
            keys8: int8_keys.then(|| Keys8 {
                keys: gpu.allocate(elements),
                scales: gpu.allocate(capacity * shape.kv_heads * size_of::<f32>()),
            }),
        }
    }

    /// Bytes of [`LayerStore::new`].
    pub fn bytes(shape: &AttentionShape, capacity: usize, int8_keys: bool) -> usize {
        let copy = if int8_keys {
            shape.kv_width() + shape.kv_heads * size_of::<f32>()
        } else {
            0
        };
        capacity.saturating_mul(2 * shape.kv_width() * ELEMENT_BYTES + copy)
    }
}

/// Keys and values of the lists of a block's chunks, gathered: `[chunks][Hkv][longest][D]` each, keys rotated.
pub struct PackedLists {
    keys: Memory,
    values: Memory,
    chunks: usize,
    longest: usize,
}

impl PackedLists {
    /// Room for `chunks` lists of at most `longest` tokens.
    pub fn new(gpu: &Gpu, shape: &AttentionShape, chunks: usize, longest: usize) -> Self {
        let bytes = Self::bytes(shape, chunks, longest) / 2;
        Self {
            keys: gpu.allocate(bytes),
            values: gpu.allocate(bytes),
            chunks,
            longest,
        }
    }

    /// Bytes of both.
    pub fn bytes(shape: &AttentionShape, chunks: usize, longest: usize) -> usize {
        2 * chunks * longest * shape.kv_width() * ELEMENT_BYTES
    }
}

/// What the chunks of a forward pass attend to.
pub enum Keys<'a> {
    /// One chunk, every stored token of the layer; its keys are stored rotated.
    Stored(&'a LayerStore, usize),
    /// A gathered list for each chunk.
    Packed(&'a PackedLists),
}

/// Query rows of a forward pass, cut into chunks.
pub struct QueryChunks<'a> {
    /// Fused rows, `[chunks * rows]` of them allocated; their queries come first.
    pub qkv: &'a CudaBuffer,
    /// Room for `[chunks * rows][H][D]`, where the kernel does not rotate on its way.
    pub rotated: &'a Memory,
    /// Device: position of each chunk's first row.
    pub first_positions: Argument,
    /// Rotation angles.
    pub rope: &'a DeviceRope,
    /// How many.
    pub chunks: usize,
    /// Rows of a chunk; the last may have fewer.
    pub rows: usize,
    /// Device: rows of each chunk.
    pub rows_of: Argument,
    /// Device: keys that each chunk attends to.
    pub lengths: Argument,
    /// Keys further behind than this are hidden; 0 for none.
    pub window: usize,
}

/// Kernels of one attention shape, loaded.
pub struct AttentionKernels {
    gpu: Gpu,
    shape: AttentionShape,
    element: Element,
    pack_chunks: Kernel,
    rotate_queries: Kernel,
    append: Kernel,
    quantize: Kernel,
    dense_step: Kernel,
    prefill: PrefillKernel,
}

enum PrefillKernel {
    /// Hopper's asynchronous products; tiles by the tensor copy engine.
    Wgmma(Kernel),
    /// Products of one warp, on any chip.
    Mma(Kernel),
}

/// Threads of a block in `pack.cu`.
const PACK_THREADS: usize = 256;
/// Rows and keys of a tile, and tiles in flight, in `attend_prefill.cu`.
const PREFILL_TILE: usize = 128;
const PREFILL_STAGES: usize = 2;
/// Rows of a block of the kernel for any chip.
const MMA_ROWS: usize = 64;

/// Warps of a block in `attend_dense_decode.cu`: enough bytes in flight with the registers of one head's sums.
fn dense_warps(shape: &AttentionShape) -> usize {
    if shape.head_dim == 128 { 8 } else { 12 }
}

impl AttentionKernels {
    /// Compiles or loads the kernels of `shape`.
    pub fn new(device: &Cuda, shape: &AttentionShape) -> Result<Self> {
        let (gpu, element) = (device.gpu(), device.element());
        let defines = defines(element, shape);
        let pack = gpu.module(Source::Pack, &defines)?;
        let mut dense_defines = defines.clone();
        dense_defines.push(("WARPS", dense_warps(shape).to_string()));
        let dense = gpu.module(Source::AttendDenseDecode, &dense_defines)?;
        let prefill = gpu.module(Source::AttendPrefill, &defines)?;
        let hopper = gpu.properties().compute_capability == 90 && matches!(shape.head_dim, 64 | 128);
        let prefill = if hopper {
            PrefillKernel::Wgmma(prefill.kernel("attend_prefill_wgmma")?)
        } else {
            PrefillKernel::Mma(prefill.kernel("attend_prefill_mma")?)
        };
        let kernels = Self {
            gpu: gpu.clone(),
            shape: *shape,
            element,
            pack_chunks: pack.kernel("pack_chunks")?,
            rotate_queries: pack.kernel("rotate_queries")?,
            append: pack.kernel("append")?,
            quantize: gpu.module(Source::QuantizeKeys, &defines)?.kernel("quantize_keys")?,
            dense_step: dense.kernel("attend_dense_decode")?,
            prefill,
        };
        match &kernels.prefill {
            PrefillKernel::Wgmma(kernel) => kernel.allow_shared(gpu, kernels.wgmma_shared()),
            PrefillKernel::Mma(kernel) => kernel.allow_shared(gpu, kernels.mma_shared()),
        }
        kernels.dense_step.allow_shared(gpu, kernels.dense_shared());
        kernels.dense_step.prefer(gpu, Carveout::MostL1);
        gpu.status()?;
        Ok(kernels)
    }

    fn wgmma_shared(&self) -> u32 {
        let row = self.shape.head_dim * ELEMENT_BYTES;
        (1024 + 2 * PREFILL_TILE * row + PREFILL_STAGES * 2 * PREFILL_TILE * row) as u32
    }

    fn mma_shared(&self) -> u32 {
        let padded = self.shape.head_dim.next_multiple_of(16);
        (3 * MMA_ROWS * (padded + 8) * ELEMENT_BYTES) as u32
    }

    /// Threads that share one row of heads in `pack.cu`.
    fn pack_lanes(&self) -> usize {
        let half = self.shape.head_dim / 2;
        half / if half.is_multiple_of(8) { 8 } else { 4 }
    }

    fn pack_blocks(&self, rows: usize) -> usize {
        (rows * self.pack_lanes()).div_ceil(PACK_THREADS)
    }

    /// Stores keys and values of `rows` fused rows from token `first` (device) on; keys rotated at their place in the text
    /// if `rotated`.
    pub fn append(
        &self,
        qkv: &CudaBuffer,
        rows: usize,
        first: Argument,
        rope: &DeviceRope,
        rotated: bool,
        store: &LayerStore,
    ) {
        let arguments = [
            qkv.memory.start(),
            first,
            rope.cos.start(),
            rope.sin.start(),
            store.keys.start(),
            store.values.start(),
            rows.into(),
            Argument::I32(rotated.into()),
        ];
        let launch = Launch::new(self.pack_blocks(rows), PACK_THREADS as u32).overlapping();
        // SAFETY: the rows lie inside the fused buffer and, by the context's count, inside the layer's store.
        unsafe { self.gpu.launch(&self.append, launch, &arguments) };
    }

    /// Brings the 8-bit copy of the keys up to date, if there is one: `count` tokens (device) from `first` (device) on.
    pub fn quantize(&self, store: &LayerStore, first: Argument, count: Argument, capacity: usize) {
        let Some(copy) = &store.keys8 else { return };
        let arguments = [
            store.keys.start(),
            copy.keys.start(),
            copy.scales.start(),
            first,
            count,
            capacity.into(),
        ];
        let blocks = 4 * self.gpu.properties().multiprocessors as usize;
        // SAFETY: the kernel leaves out rows past the capacity that all three were made for.
        unsafe {
            self.gpu
                .launch(&self.quantize, Launch::new(blocks, 256).overlapping(), &arguments);
        }
    }

    /// Rotates the queries of fused rows into room of their own.
    fn rotate_queries(&self, chunks: &QueryChunks<'_>) {
        let rows = chunks.chunks * chunks.rows;
        let arguments = [
            chunks.qkv.memory.start(),
            chunks.first_positions,
            chunks.rope.cos.start(),
            chunks.rope.sin.start(),
            chunks.rotated.start(),
            rows.into(),
            chunks.rows.into(),
        ];
        let grid = (self.pack_blocks(rows), self.shape.kv_heads);
        let launch = Launch::new(grid, PACK_THREADS as u32).overlapping();
        // SAFETY: both buffers have the rows of a forward pass; positions lie inside the table by its plan.
        unsafe { self.gpu.launch(&self.rotate_queries, launch, &arguments) };
    }

    /// Gathers the listed keys, rotated at their place in the list, and values: `lists[chunks][stride]` (device).
    ///
    /// # Panics
    /// If `packed` was made for fewer chunks, or `rope` for shorter lists.
    pub fn pack(
        &self,
        store: &LayerStore,
        lists: &Memory,
        stride: usize,
        lengths: Argument,
        chunks: usize,
        rope: &DeviceRope,
        packed: &PackedLists,
    ) {
        assert!(
            chunks <= packed.chunks && packed.longest <= rope.positions,
            "lists beyond their plan"
        );
        let arguments = [
            store.keys.start(),
            store.values.start(),
            lists.start(),
            stride.into(),
            lengths,
            rope.cos.start(),
            rope.sin.start(),
            packed.keys.start(),
            packed.values.start(),
            packed.longest.into(),
        ];
        let grid = (self.pack_blocks(packed.longest), chunks);
        let launch = Launch::new(grid, PACK_THREADS as u32).overlapping();
        // SAFETY: listed tokens are stored ones; lengths are cut to the room.
        unsafe { self.gpu.launch(&self.pack_chunks, launch, &arguments) };
    }

    /// Attention of query chunks, causal inside each; out `[chunks * rows][H][D]`.
    pub fn attend_chunks(&self, chunks: &QueryChunks<'_>, keys: &Keys<'_>, out: &CudaBuffer) -> Result<()> {
        let (h, kv, d) = (self.shape.query_heads, self.shape.kv_heads, self.shape.head_dim);
        let (key_memory, value_memory, tokens, token_stride, head_stride, chunk_stride) = match keys {
            Keys::Stored(store, capacity) => (&store.keys, &store.values, *capacity, kv * d, d, capacity * kv * d),
            Keys::Packed(packed) => {
                let n = packed.longest;
                (&packed.keys, &packed.values, n, d, n * d, kv * n * d)
            }
        };
        let scale = 1.0 / (d as f32).sqrt();
        match &self.prefill {
            PrefillKernel::Wgmma(kernel) => {
                let layout = |rows, row_stride, heads, head_stride, chunk_stride| TensorLayout {
                    width: d,
                    rows,
                    row_stride,
                    heads,
                    head_stride,
                    chunks: chunks.chunks,
                    chunk_stride,
                    box_rows: PREFILL_TILE,
                };
                let fused = self.shape.qkv_width();
                let queries = layout(chunks.rows, fused, h, d, chunks.rows * fused);
                let stored = layout(tokens, token_stride, kv, head_stride, chunk_stride);
                let map = |memory, layout| self.gpu.tensor_map(memory, self.element, layout);
                let arguments = [
                    map(&chunks.qkv.memory, &queries)?,
                    map(key_memory, &stored)?,
                    map(value_memory, &stored)?,
                    chunks.lengths,
                    chunks.rows_of,
                    chunks.first_positions,
                    chunks.rope.cos.start(),
                    chunks.rope.sin.start(),
                    out.memory.start(),
                    chunks.chunks.into(),
                    chunks.rows.into(),
                    chunks.window.into(),
                    scale.into(),
                ];
                let works = chunks.rows.div_ceil(PREFILL_TILE) * h * chunks.chunks;
                let blocks = works.min(self.gpu.properties().multiprocessors as usize);
                let launch = Launch::new(blocks, 384).shared(self.wgmma_shared()).overlapping();
                // SAFETY: the maps describe live memory; lengths and rows stay inside them by the context's plan.
                unsafe { self.gpu.launch(kernel, launch, &arguments) };
            }
            PrefillKernel::Mma(kernel) => {
                self.rotate_queries(chunks);
                let arguments = [
                    chunks.rotated.start(),
                    Argument::I64((h * d) as i64),
                    Argument::I64((chunks.rows * h * d) as i64),
                    key_memory.start(),
                    value_memory.start(),
                    Argument::I64(token_stride as i64),
                    Argument::I64(head_stride as i64),
                    Argument::I64(chunk_stride as i64),
                    chunks.lengths,
                    chunks.rows_of,
                    out.memory.start(),
                    chunks.rows.into(),
                    chunks.window.into(),
                    scale.into(),
                ];
                let grid = (chunks.rows.div_ceil(MMA_ROWS), h, chunks.chunks);
                let launch = Launch::new(grid, 128).shared(self.mma_shared()).overlapping();
                // SAFETY: as above.
                unsafe { self.gpu.launch(kernel, launch, &arguments) };
            }
        }
        Ok(())
    }

    /// How many blocks share the text of one KV head in [`AttentionKernels::dense_step`].
    fn dense_splits(&self) -> usize {
        (self.gpu.properties().multiprocessors as usize / self.shape.kv_heads).clamp(1, 192)
    }

    fn dense_shared(&self) -> u32 {
        let d = self.shape.head_dim;
        if matches!(d, 64 | 128) {
            let group = self.shape.group();
            ((dense_warps(&self.shape) * 8 * group.div_ceil(8) * (d + 2) + self.dense_splits() * group) * 4) as u32
        } else {
            0
        }
    }

    /// Attention of one row over every stored token, the last of which is the row's own; keys are stored rotated.
    pub fn dense_step(
        &self,
        qkv: &CudaBuffer,
        store: &LayerStore,
        stored: Argument,
        rope: &DeviceRope,
        window: usize,
        scratch: &DenseScratch,
        out: &CudaBuffer,
    ) {
        let arguments = [
            qkv.memory.start(),
            store.keys.start(),
            store.values.start(),
            stored,
            rope.cos.start(),
            rope.sin.start(),
            scratch.partial.start(),
            scratch.counters.start(),
            out.memory.start(),
            window.into(),
            (1.0 / (self.shape.head_dim as f32).sqrt()).into(),
        ];
        let launch = Launch::new(
            (self.dense_splits(), self.shape.kv_heads),
            32 * dense_warps(&self.shape) as u32,
        )
        .shared(self.dense_shared())
        .overlapping();
        // SAFETY: `stored` tokens are in the store; the scratch was made for this grid.
        unsafe { self.gpu.launch(&self.dense_step, launch, &arguments) };
    }
}

/// Room of [`AttentionKernels::dense_step`], shared by all layers.
pub struct DenseScratch {
    partial: Memory,
    /// Two per KV head; back at zero after every launch.
    counters: Memory,
}

impl DenseScratch {
    /// Room for the splits of `kernels`.
    pub fn new(kernels: &AttentionKernels) -> Self {
        let (shape, group) = (&kernels.shape, kernels.shape.group());
        // A slot is a multiple of 16 bytes.
        let slot = (group * shape.head_dim + 2 * group).next_multiple_of(4);
        let partial = shape.kv_heads * kernels.dense_splits() * slot;
        Self {
            partial: kernels.gpu.allocate(partial * size_of::<f32>()),
            counters: kernels.gpu.allocate(2 * shape.kv_heads * size_of::<u32>()),
        }
    }
}
