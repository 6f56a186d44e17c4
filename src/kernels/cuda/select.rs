//! Selection for the chunks of one forward pass of a prompt (`prefill_select.cu`, `prefill_score*.cu`).

mod scratch;

pub use scratch::{SelectPlan, SelectScratch};

use super::attention::DeviceRope;
use super::compile::Source;
use super::driver::{Argument, Gpu, Kernel, Launch, Memory};
use super::{Cuda, CudaBuffer, ELEMENT_BYTES, defines};
use crate::error::Result;
use crate::kernels::{AttentionShape, HeadMap};
use scratch::{HISTOGRAM, MOST_SUM_BLOCKS, SEGMENT};

/// Candidates of the last digit that are kept in shared memory.
const STAGED: usize = 6144;
/// Rows of a chunk that are worth a block of their own when its query is made.
const SLICE_ROWS: usize = 64;
/// What kernels take of a block's shared memory beside what a launch gives them, at most.
const STATIC_SHARED: u32 = 256;
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

/// How many chunks share one pass over the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    One,
    Eight,
    Sixteen,
}

impl Sharing {
    const ALL: [Self; 3] = [Self::One, Self::Eight, Self::Sixteen];

    fn of(chunks: usize) -> Self {
        match chunks {
            0 | 1 => Self::One,
            2..=8 => Self::Eight,
            _ => Self::Sixteen,
        }
    }

    /// Most chunks.
    fn chunks(self) -> usize {
        match self {
            Self::One => 1,
            Self::Eight => 8,
            Self::Sixteen => MAX_CHUNKS,
        }
    }

    /// Tiles of 16 columns (head and chunk) of one KV head.
    fn tiles(self, group: usize) -> usize {
        match self {
            Self::One => 1,
            Self::Eight => group.div_ceil(2),
            Self::Sixteen => group,
        }
    }
}

/// Query heads that a block of `chunk_queries` takes.
fn query_heads_at_once(query_heads: usize) -> usize {
    if query_heads.is_multiple_of(4) {
        4
    } else {
        2 - query_heads % 2
    }
}

/// What a file of products says about its launches: `score_launches`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ScoreLaunches {
    sum_threads: u32,
    /// Blocks of the pass that sums on one multiprocessor.
    sum_blocks: usize,
    vote_threads: u32,
    /// Shared bytes of both passes by [`Sharing`]; one chunk alone keeps its scores and has no second pass.
    sum_shared: [u32; 3],
    vote_shared: [u32; 3],
}

impl ScoreLaunches {
    fn new(numbers: [i32; 8]) -> Self {
        let [
            sum_threads,
            sum_blocks,
            vote_threads,
            sums_1,
            sums_8,
            sums_16,
            votes_8,
            votes_16,
        ] = numbers.map(|number| number as u32);
        Self {
            sum_threads,
            // The scratch has no room for more.
            sum_blocks: (sum_blocks as usize).clamp(1, MOST_SUM_BLOCKS),
            vote_threads,
            sum_shared: [sums_1, sums_8, sums_16],
            vote_shared: [0, votes_8, votes_16],
        }
    }

    /// The most chunks that a pass can serve with `shared` bytes in a block.
    fn widest(&self, shared: u32) -> Sharing {
        let fits = |sharing: &Sharing| {
            let at = *sharing as usize;
            self.sum_shared[at].max(self.vote_shared[at]) + STATIC_SHARED <= shared
        };
        Sharing::ALL.into_iter().rev().find(fits).unwrap_or(Sharing::One)
    }
}

/// Kernels of one attention shape, loaded.
pub struct SelectKernels {
    gpu: Gpu,
    shape: AttentionShape,
    chunk_queries: Kernel,
    launches: ScoreLaunches,
    /// What this chip's shared memory allows; more chunks are served one batch after another.
    widest: Sharing,
    /// By [`Sharing`].
    score_sums: [Kernel; 3],
    /// For eight and sixteen chunks.
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
        let (gpu, defines) = (device.gpu(), defines(device.element(), shape));
        let properties = gpu.properties();
        let hopper = properties.compute_capability == 90 && shape.group() <= 8 && matches!(shape.head_dim, 64 | 128);
        let score = gpu.module(
            if hopper {
                Source::PrefillScoreWgmma
            } else {
                Source::PrefillScore
            },
            &defines,
        )?;
        let module = gpu.module(Source::PrefillSelect, &defines)?;
        let launches = ScoreLaunches::new(score.integers("score_launches")?);
        let widest = launches.widest(properties.shared_bytes_per_block);
        let scoring = |name, sharing: Sharing, shared: &[u32; 3]| -> Result<Kernel> {
            let kernel = score.kernel(name)?;
            if sharing.chunks() <= widest.chunks() {
                kernel.allow_shared(gpu, shared[sharing as usize]);
            }
            Ok(kernel)
        };
        let sums = |name, sharing| scoring(name, sharing, &launches.sum_shared);
        let votes = |name, sharing| scoring(name, sharing, &launches.vote_shared);
        let kernels = Self {
            gpu: gpu.clone(),
            shape: *shape,
            chunk_queries: module.kernel("chunk_queries")?,
            launches,
            widest,
            score_sums: [
                sums("score_sums_1", Sharing::One)?,
                sums("score_sums_8", Sharing::Eight)?,
                sums("score_sums_16", Sharing::Sixteen)?,
            ],
            score_votes: [
                votes("score_votes_8", Sharing::Eight)?,
                votes("score_votes_16", Sharing::Sixteen)?,
            ],
            fold_sums: module.kernel("fold_sums")?,
            votes_from_scores: module.kernel("votes_from_scores")?,
            vote_histogram: module.kernel("vote_histogram")?,
            gather_candidates: module.kernel("gather_candidates")?,
            finish_lists: module.kernel("finish_lists")?,
        };
        kernels
            .finish_lists
            .allow_shared(gpu, properties.shared_bytes_per_block - STATIC_SHARED);
        gpu.status()?;
        Ok(kernels)
    }

    /// Fills lists and lengths of `scratch` for every chunk of a forward pass.
    ///
    /// # Panics
    /// If `scratch` was made for fewer chunks.
    pub fn select(
        &self,
        input: &SelectInput<'_>,
        settings: &SelectSettings,
        rope: &DeviceRope,
        scratch: &SelectScratch,
    ) {
        assert!(
            input.chunks <= scratch.chunks && input.chunks <= MAX_CHUNKS,
            "more chunks than planned"
        );
        for first in (0..input.chunks).step_by(self.widest.chunks()) {
            let chunks = self.widest.chunks().min(input.chunks - first);
            let batch = Batch::new(self, input, settings, scratch, first, chunks);
            batch.queries(input, settings, rope);
            batch.votes(input);
            batch.lists();
        }
    }
}

/// Chunks that are served by the same launches.
struct Batch<'a> {
    kernels: &'a SelectKernels,
    scratch: &'a SelectScratch,
    first: usize,
    chunks: usize,
    sharing: Sharing,
    queries: Argument,
    /// The last arguments of most kernels: tokens stored, rows of each chunk, `struct Select`.
    common: [Argument; 3],
}

impl<'a> Batch<'a> {
    fn new(
        kernels: &'a SelectKernels,
        input: &SelectInput<'_>,
        settings: &SelectSettings,
        scratch: &'a SelectScratch,
        first: usize,
        chunks: usize,
    ) -> Self {
        let flags = u32::from(settings.local_outside_chunk) | u32::from(settings.head_map == HeadMap::Modulo) << 1;
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
        let mut select = [0u64; 20];
        bytemuck::cast_slice_mut(&mut select)[..words.len()].copy_from_slice(&words);
        let skipped = first * size_of::<i32>();
        Self {
            kernels,
            scratch,
            first,
            chunks,
            sharing: Sharing::of(chunks),
            queries: scratch.queries.at(first * kernels.shape.query_width() * ELEMENT_BYTES),
            common: [
                input.stored.after(skipped),
                input.rows_of.after(skipped),
                Argument::Structure(select),
            ],
        }
    }

    fn multiprocessors(&self) -> usize {
        self.kernels.gpu.properties().multiprocessors as usize
    }

    fn launch(&self, kernel: &Kernel, shape: Launch, arguments: &[Argument]) {
        // SAFETY: scratch was made for these chunks and this capacity; stored tokens are in the store.
        unsafe { self.kernels.gpu.launch(kernel, shape.overlapping(), arguments) };
    }

    /// A kernel that takes `own` arguments and the common ones.
    fn launch_select(&self, kernel: &Kernel, shape: Launch, own: &[Argument]) {
        self.launch(kernel, shape, &[own, &self.common].concat());
    }

    /// One query per chunk and head.
    fn queries(&self, input: &SelectInput<'_>, settings: &SelectSettings, rope: &DeviceRope) {
        let (shape, scratch) = (&self.kernels.shape, self.scratch);
        let groups = shape.query_heads / query_heads_at_once(shape.query_heads);
        let slices = (2 * self.multiprocessors() / (groups * self.chunks)).clamp(1, input.rows.div_ceil(SLICE_ROWS));
        let skipped = self.first * input.rows * shape.qkv_width() * ELEMENT_BYTES;
        self.launch(
            &self.kernels.chunk_queries,
            Launch::new((groups, self.chunks, slices), 256),
            &[
                self.queries,
                scratch.parts.start(),
                scratch.tickets.start(),
                input.qkv.memory.at(skipped),
                rope.cos.start(),
                rope.sin.start(),
                self.common[1],
                input.rows.into(),
                settings.n_local.into(),
                Argument::I32(settings.last_row_only.into()),
            ],
        );
    }

    /// Votes of every stored token.
    fn votes(&self, input: &SelectInput<'_>) {
        let (kernels, scratch, multiprocessors) = (self.kernels, self.scratch, self.multiprocessors());
        let (kv, mode, launches) = (kernels.shape.kv_heads, self.sharing as usize, &kernels.launches);
        let (keys, votes, weights) = (input.keys.start(), scratch.votes.start(), scratch.weights.start());
        let (scores, partial) = (scratch.scores.start(), scratch.partial.start());
        let blocks = (multiprocessors * launches.sum_blocks / kv).max(1);
        let columns = kv * self.sharing.tiles(kernels.shape.group()) * 16;
        self.launch_select(
            &kernels.score_sums[mode],
            Launch::new((blocks, kv), launches.sum_threads).shared(launches.sum_shared[mode]),
            &[partial, scores, self.queries, keys],
        );
        self.launch(
            &kernels.fold_sums,
            Launch::new(columns.div_ceil(8), 256),
            &[
                weights,
                scratch.histograms.start(),
                partial,
                blocks.into(),
                columns.into(),
                (self.chunks * HISTOGRAM).into(),
            ],
        );
        if self.sharing == Sharing::One {
            let grid = (4 * multiprocessors).min(scratch.vote_stride.div_ceil(1024));
            self.launch_select(
                &kernels.votes_from_scores,
                Launch::new(grid, 256),
                &[votes, scores, weights],
            );
        } else {
            self.launch_select(
                &kernels.score_votes[mode - 1],
                Launch::new(multiprocessors, launches.vote_threads).shared(launches.vote_shared[mode]),
                &[votes, self.queries, keys, weights],
            );
        }
    }

    /// Lists of the highest votes, what is always kept around them.
    fn lists(&self) {
        let (kernels, scratch, multiprocessors) = (self.kernels, self.scratch, self.multiprocessors());
        let (histograms, votes) = (scratch.histograms.start(), scratch.votes.start());
        let (found, counts) = (scratch.found.start(), scratch.counts.start());
        let segments = scratch.vote_stride / SEGMENT;
        let word = size_of::<i32>();
        self.launch_select(
            &kernels.vote_histogram,
            Launch::new(
                (
                    (4 * multiprocessors / self.chunks).clamp(1, multiprocessors),
                    self.chunks,
                ),
                256,
            ),
            &[histograms, votes],
        );
        self.launch_select(
            &kernels.gather_candidates,
            Launch::new((segments.div_ceil(8), self.chunks), 256),
            &[found, counts, histograms, votes],
        );
        self.launch_select(
            &kernels.finish_lists,
            Launch::new(self.chunks, 1024).shared((4096 + 8 * STAGED + 4 * (segments + 1)) as u32),
            &[
                scratch.lists.at(self.first * scratch.stride * word),
                scratch.lengths.at(self.first * word),
                found,
                counts,
                histograms,
                votes,
            ],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{ScoreLaunches, Sharing};

    #[test]
    fn as_many_chunks_share_a_pass_as_shared_memory_allows() {
        // 28 query heads on 4 KV heads of 128, `prefill_score.cu`: sixteen chunks where a block may have 227 KB, eight with
        // 99 KB.
        let launches = ScoreLaunches::new([128, 2, 256, 5120, 20480, 35840, 67584, 118_272]);
        assert_eq!(launches.widest(232_448), Sharing::Sixteen);
        assert_eq!(launches.widest(101_376), Sharing::Eight);
        // 128 heads on 8: the second pass over the keys has no room anywhere.
        let launches = ScoreLaunches::new([128, 2, 256, 5120, 40960, 81920, 270_336, 540_672]);
        assert_eq!(launches.widest(232_448), Sharing::One);
    }
}
