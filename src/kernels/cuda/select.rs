//! Selection for the chunks of one forward pass of a prompt (`prefill_select.cu`).

use super::attention::DeviceRope;
use super::compile::Source;
use super::driver::{Argument, Gpu, Kernel, Launch, Memory};
use super::{Cuda, CudaBuffer, ELEMENT_BYTES, defines};
use crate::error::Result;
use crate::kernels::{AttentionShape, HeadMap};

/// Tokens that one warp compacts.
const SEGMENT: usize = 2048;
/// Bins of the first digit of a vote.
const BINS: usize = 4096;
/// Candidates of the last digit that are kept in shared memory.
const STAGED: usize = 6144;
/// Warps of a block, and blocks of a multiprocessor, in the pass that sums.
const SUM_WARPS: usize = 4;
const SUM_BLOCKS: usize = 2;
/// Warps of a block in the pass that votes.
const VOTE_WARPS: usize = 8;
/// Most chunks of one forward pass.
pub const MAX_CHUNKS: usize = 16;

/// What is selected, the same for all chunks and layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SelectSettings {
    /// First tokens always kept.
    pub n_init: usize,
    /// Chosen in between.
    pub top_k: usize,
    /// Most recent always kept.
    pub n_local: usize,
    /// The local window lies before the chunk.
    pub local_outside_chunk: bool,
    /// Query head to KV head, for scoring.
    pub head_map: HeadMap,
    /// Factor on scores.
    pub scale: f32,
    /// The last row of a chunk is its query, not the mean.
    pub last_row_only: bool,
}

impl SelectSettings {
    /// Recent tokens that a chunk of `rows` rows always sees, the chunk included.
    pub fn window(&self, rows: usize) -> usize {
        if self.local_outside_chunk {
            self.n_local + rows
        } else {
            self.n_local.max(rows)
        }
    }

    /// Tokens of the list of a chunk of `rows` rows with `stored` tokens, its own included.
    pub fn list_len(&self, stored: usize, rows: usize) -> usize {
        if stored <= self.n_init + self.top_k + self.n_local {
            return stored;
        }
        let local_start = stored.saturating_sub(self.window(rows)).max(self.n_init);
        self.n_init + self.top_k.min(local_start - self.n_init) + (stored - local_start)
    }

    /// The longest list of a chunk of `rows` rows.
    pub fn longest_list(&self, rows: usize) -> usize {
        self.n_init + self.top_k + self.window(rows)
    }
}

/// Room for the selection of one forward pass, used by all layers in turn.
pub struct SelectScratch {
    queries: Memory,
    partial: Memory,
    weights: Memory,
    histograms: Memory,
    votes: Memory,
    scores: Memory,
    found: Memory,
    counts: Memory,
    /// `[chunks][stride]`: the packed lists.
    pub lists: Memory,
    /// Device: `[chunks]` lengths of the lists.
    pub lengths: Memory,
    chunks: usize,
    /// Room of one list.
    pub stride: usize,
    vote_stride: usize,
}

/// How many chunks share one pass over the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shared {
    One,
    Eight,
    Sixteen,
}

impl Shared {
    fn of(chunks: usize) -> Self {
        match chunks {
            0 | 1 => Self::One,
            2..=8 => Self::Eight,
            _ => Self::Sixteen,
        }
    }

    /// Tiles of 16 columns (head and chunk) of one KV head.
    fn tiles(self, group: usize) -> usize {
        match self {
            Self::One => group.div_ceil(16),
            Self::Eight => group.div_ceil(2),
            Self::Sixteen => group,
        }
    }
}

/// Bytes of each part of a scratch: queries, partial, weights, histograms, votes, scores, found, counts, lists, lengths.
fn sizes(
    multiprocessors: usize,
    shape: &AttentionShape,
    settings: &SelectSettings,
    capacity: usize,
    chunks: usize,
    rows: usize,
) -> [usize; 10] {
    let (h, kv, group) = (shape.query_heads, shape.kv_heads, shape.group());
    let columns = kv * Shared::of(chunks).tiles(group).max(Shared::One.tiles(group)) * 16;
    let blocks = sum_blocks(multiprocessors, kv);
    let votes = capacity.next_multiple_of(SEGMENT);
    [
        chunks * h * shape.head_dim * ELEMENT_BYTES,
        blocks * columns * 8,
        columns * 8,
        chunks * BINS * 4,
        chunks * votes * 4,
        h * votes * 4,
        chunks * votes * 4,
        chunks * (votes / SEGMENT) * 4,
        chunks * settings.longest_list(rows) * 4,
        chunks * 4,
    ]
}

fn sum_blocks(multiprocessors: usize, kv_heads: usize) -> usize {
    (multiprocessors * SUM_BLOCKS / kv_heads).max(1)
}

impl SelectScratch {
    /// Room for `chunks` chunks of `rows` rows over at most `capacity` tokens.
    pub fn new(
        gpu: &Gpu,
        shape: &AttentionShape,
        settings: &SelectSettings,
        capacity: usize,
        chunks: usize,
        rows: usize,
    ) -> Self {
        let multiprocessors = gpu.properties().multiprocessors as usize;
        let [
            queries,
            partial,
            weights,
            histograms,
            votes,
            scores,
            found,
            counts,
            lists,
            lengths,
        ] = sizes(multiprocessors, shape, settings, capacity, chunks, rows).map(|bytes| gpu.allocate(bytes));
        Self {
            queries,
            partial,
            weights,
            histograms,
            votes,
            scores,
            found,
            counts,
            lists,
            lengths,
            chunks,
            stride: settings.longest_list(rows),
            vote_stride: capacity.next_multiple_of(SEGMENT),
        }
    }

    /// Bytes of all parts.
    pub fn bytes(
        gpu: &Gpu,
        shape: &AttentionShape,
        settings: &SelectSettings,
        capacity: usize,
        chunks: usize,
        rows: usize,
    ) -> usize {
        let multiprocessors = gpu.properties().multiprocessors as usize;
        sizes(multiprocessors, shape, settings, capacity, chunks, rows)
            .iter()
            .sum()
    }

    /// The selection queries `[chunks][H][D]`; for checks.
    pub fn queries(&self) -> &Memory {
        &self.queries
    }
}

/// Kernels of one attention shape, loaded.
pub struct SelectKernels {
    gpu: Gpu,
    shape: AttentionShape,
    chunk_queries: Kernel,
    /// For one, eight, sixteen chunks at once.
    score_sums: [Kernel; 3],
    score_votes: [Kernel; 2],
    fold_sums: Kernel,
    votes_from_scores: Kernel,
    vote_histogram: Kernel,
    gather_candidates: Kernel,
    finish_lists: Kernel,
}

/// What one selection reads.
pub struct SelectInput<'a> {
    /// Fused rows of the forward pass.
    pub qkv: &'a CudaBuffer,
    /// Un-rotated keys of the layer, those of the forward pass included.
    pub keys: &'a Memory,
    /// How many chunks.
    pub chunks: usize,
    /// Rows of a chunk; the last may have fewer.
    pub rows: usize,
    /// Device: tokens stored up to the end of each chunk.
    pub stored: Argument,
    /// Device: rows of each chunk.
    pub rows_of: Argument,
}

impl SelectKernels {
    /// Compiles or loads the kernels of `shape`.
    pub fn new(device: &Cuda, shape: &AttentionShape) -> Result<Self> {
        let gpu = device.gpu();
        let module = gpu.module(Source::PrefillSelect, &defines(device.element(), shape))?;
        let most_shared = gpu.properties().shared_bytes_per_block;
        let large = |name| -> Result<Kernel> {
            let kernel = module.kernel(name)?;
            kernel.allow_shared(gpu, most_shared.min(220 << 10));
            Ok(kernel)
        };
        let kernels = Self {
            gpu: gpu.clone(),
            shape: *shape,
            chunk_queries: module.kernel("chunk_queries")?,
            score_sums: [large("score_sums_1")?, large("score_sums_8")?, large("score_sums_16")?],
            score_votes: [large("score_votes_8")?, large("score_votes_16")?],
            fold_sums: module.kernel("fold_sums")?,
            votes_from_scores: module.kernel("votes_from_scores")?,
            vote_histogram: module.kernel("vote_histogram")?,
            gather_candidates: module.kernel("gather_candidates")?,
            finish_lists: large("finish_lists")?,
        };
        gpu.status()?;
        Ok(kernels)
    }

    /// Fills lists and lengths of `scratch` for every chunk of a forward pass.
    ///
    /// # Panics
    /// If `scratch` was made for fewer chunks.
    #[expect(clippy::too_many_lines, reason = "seven launches in order, each with its arguments")]
    pub fn select(
        &self,
        input: &SelectInput<'_>,
        settings: &SelectSettings,
        rope: &DeviceRope,
        scratch: &SelectScratch,
    ) {
        let AttentionShape {
            query_heads: h,
            kv_heads: kv,
            head_dim: d,
        } = self.shape;
        let (chunks, multiprocessors) = (input.chunks, self.gpu.properties().multiprocessors as usize);
        assert!(
            chunks <= scratch.chunks && chunks <= MAX_CHUNKS,
            "more chunks than planned"
        );
        let shared = Shared::of(chunks);
        let (tiles, pieces) = (shared.tiles(self.shape.group()), d.div_ceil(32));
        let columns = kv * tiles * 16;
        let blocks = sum_blocks(multiprocessors, kv);
        let segments = scratch.vote_stride / SEGMENT;
        let flags = u32::from(settings.local_outside_chunk) | u32::from(settings.head_map == HeadMap::Modulo) << 1;
        let mut select = [0u64; 20];
        let words = [
            chunks as u32,
            settings.n_init as u32,
            settings.top_k as u32,
            settings.n_local as u32,
            flags,
            scratch.stride as u32,
            scratch.vote_stride as u32,
            (settings.scale * std::f32::consts::LOG2_E).to_bits(),
        ];
        bytemuck::cast_slice_mut(&mut select)[..words.len()].copy_from_slice(&words);
        let select = Argument::Structure(select);
        let (stored, rows_of) = (input.stored, input.rows_of);
        let launch = |kernel: &Kernel, shape: Launch, arguments: &[Argument]| {
            // SAFETY: scratch was made for these chunks and this capacity; stored tokens are in the store.
            unsafe { self.gpu.launch(kernel, shape.overlapping(), arguments) };
        };

        let heads_at_once = if h % 2 == 0 { 2 } else { 1 };
        launch(
            &self.chunk_queries,
            Launch::new((h / heads_at_once, chunks), 512),
            &[
                scratch.queries.start(),
                input.qkv.memory.start(),
                rope.cos.start(),
                rope.sin.start(),
                rows_of,
                input.rows.into(),
                settings.n_local.into(),
                Argument::I32(settings.last_row_only.into()),
            ],
        );
        let scores = if shared == Shared::One {
            scratch.scores.start()
        } else {
            Argument::NULL
        };
        launch(
            &self.score_sums[shared as usize],
            Launch::new((blocks, kv), 32 * SUM_WARPS as u32)
                .shared((tiles * pieces * 1024 + SUM_WARPS * tiles * 256) as u32),
            &[
                scratch.partial.start(),
                scores,
                scratch.queries.start(),
                input.keys.start(),
                stored,
                rows_of,
                select,
            ],
        );
        launch(
            &self.fold_sums,
            Launch::new(columns.div_ceil(8), 256),
            &[
                scratch.weights.start(),
                scratch.histograms.start(),
                scratch.partial.start(),
                blocks.into(),
                columns.into(),
                (chunks * BINS).into(),
            ],
        );
        if shared == Shared::One {
            launch(
                &self.votes_from_scores,
                Launch::new((multiprocessors * 4).min(scratch.vote_stride.div_ceil(256)), 256),
                &[
                    scratch.votes.start(),
                    scratch.scores.start(),
                    scratch.weights.start(),
                    stored,
                    rows_of,
                    select,
                ],
            );
        } else {
            launch(
                &self.score_votes[shared as usize - 1],
                Launch::new(multiprocessors, 32 * VOTE_WARPS as u32)
                    .shared((kv * tiles * (pieces * 1024 + 128)) as u32),
                &[
                    scratch.votes.start(),
                    scratch.queries.start(),
                    input.keys.start(),
                    scratch.weights.start(),
                    stored,
                    rows_of,
                    select,
                ],
            );
        }
        launch(
            &self.vote_histogram,
            Launch::new(((multiprocessors * 4 / chunks).clamp(1, 132), chunks), 256),
            &[
                scratch.histograms.start(),
                scratch.votes.start(),
                stored,
                rows_of,
                select,
            ],
        );
        launch(
            &self.gather_candidates,
            Launch::new((segments.div_ceil(8), chunks), 256),
            &[
                scratch.found.start(),
                scratch.counts.start(),
                scratch.histograms.start(),
                scratch.votes.start(),
                stored,
                rows_of,
                select,
            ],
        );
        launch(
            &self.finish_lists,
            Launch::new(chunks, 1024).shared((4096 + 8 * STAGED + 4 * (segments + 1)) as u32),
            &[
                scratch.lists.start(),
                scratch.lengths.start(),
                scratch.found.start(),
                scratch.counts.start(),
                scratch.histograms.start(),
                scratch.votes.start(),
                stored,
                rows_of,
                select,
            ],
        );
    }
}
