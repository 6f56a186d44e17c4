//! Choosing the next token on the device (`sample.cu`).

use super::compile::Source;
use super::driver::{Argument, Gpu, Kernel, Launch, Memory};
use crate::error::Result;
use crate::kernels::Choice;
use std::sync::atomic::{AtomicBool, Ordering};

/// Threads of a block of every kernel.
const THREADS: u32 = 256;
/// Most blocks of an unembedding that look for its largest logit.
const MAX_BLOCKS: usize = 4096;
/// Blocks of a draw at most: more wait longer for each other than they save.
const DRAW_BLOCKS: usize = 128;
/// Logits of one block of a draw at most: weights of more do not fit its bins.
const BLOCK_LOGITS: usize = 8192;
/// Ids that are marked as seen at a time.
const MARKED_IDS: usize = 16 << 10;

/// The kernels, and what the last step chose.
pub(super) struct SampleKernels {
    greedy: Kernel,
    block_best: Kernel,
    mark_seen: Kernel,
    sample: Kernel,
    scratch_bytes: usize,
    /// Best logit and its id of each block of the last unembedding.
    best: Memory,
    /// The id, then whether a logit was NaN or infinite.
    chosen: Memory,
    /// Whether the id is that of the largest logit of the last unembedding.
    best_known: AtomicBool,
}

/// What the draws of one text need.
pub struct SampleRoom {
    best: Memory,
    scratch: Memory,
    /// A bit for each token of the vocabulary.
    seen: Memory,
    ids: Memory,
    /// Tokens of the context whose bits are set.
    marked: usize,
}

impl SampleKernels {
    pub(super) fn new(gpu: &Gpu, defines: &[(&str, String)]) -> Result<Self> {
        let module = gpu.module(Source::Sample, defines)?;
        let [scratch_bytes] = module.integers("sample_scratch_bytes")?;
        Ok(Self {
            greedy: module.kernel("greedy")?,
            block_best: module.kernel("block_best")?,
            mark_seen: module.kernel("mark_seen")?,
            sample: module.kernel("sample")?,
            scratch_bytes: scratch_bytes as usize,
            best: gpu.allocate(MAX_BLOCKS * size_of::<u64>()),
            chosen: gpu.allocate(2 * size_of::<u32>()),
            best_known: AtomicBool::new(false),
        })
    }

    fn run(gpu: &Gpu, kernel: &Kernel, launch: Launch, arguments: &[Argument]) {
        // SAFETY: buffers are those of this file and logits of the given vocabulary.
        unsafe { gpu.launch(kernel, launch, arguments) };
    }

    /// Where the id lies that was chosen last, and where the next step finds it.
    pub(super) fn next_id(&self) -> Argument {
        self.chosen.start()
    }

    /// Tells the next step which id it starts from.
    pub(super) fn set_next_id(&self, gpu: &Gpu, id: u32) {
        gpu.upload(&self.chosen, 0, &id.to_le_bytes());
    }

    fn bad(&self) -> Argument {
        self.chosen.at(size_of::<u32>())
    }

    /// Where an unembedding writes the best of each block, and whether a logit was NaN or infinite.
    pub(super) fn of_logits(&self) -> [Argument; 2] {
        [self.best.start(), self.bad()]
    }

    /// Finds the id of the largest logit of the last unembedding, which `blocks` blocks made.
    pub(super) fn greedy(&self, gpu: &Gpu, blocks: usize) {
        self.best_known.store(true, Ordering::Relaxed);
        Self::run(
            gpu,
            &self.greedy,
            launch(1).overlapping(),
            &[self.best.start(), blocks.into(), self.next_id(), self.bad()],
        );
    }

    /// The last unembedding did not look for the largest logit.
    pub(super) fn forget_best(&self) {
        self.best_known.store(false, Ordering::Relaxed);
    }

    /// What was chosen last; `None` if a logit was NaN or infinite, or none finite. Waits for it.
    pub(super) fn read(&self, gpu: &Gpu) -> Option<u32> {
        let mut words = [0u32; 2];
        gpu.download(&self.chosen, 0, bytemuck::cast_slice_mut(&mut words))
            .ok()?;
        let [id, bad] = words;
        if bad != 0 {
            gpu.upload(&self.chosen, size_of::<u32>(), &0u32.to_le_bytes());
            return None;
        }
        Some(id)
    }

    /// Queues what chooses a token by `logits`; false where that is left to the host.
    pub(super) fn queue(
        &self,
        gpu: &Gpu,
        room: &mut Option<SampleRoom>,
        logits: &Memory,
        vocabulary: usize,
        choice: &Choice<'_>,
    ) -> bool {
        if choice.is_greedy() && self.best_known.load(Ordering::Relaxed) {
            // Done with the logits.
            return true;
        }
        let blocks = DRAW_BLOCKS.min(gpu.properties().multiprocessors as usize);
        if vocabulary.div_ceil(blocks) > BLOCK_LOGITS {
            return false;
        }
        let room = room.get_or_insert_with(|| SampleRoom {
            best: gpu.allocate(blocks * size_of::<u64>()),
            scratch: gpu.allocate(self.scratch_bytes),
            seen: gpu.allocate(vocabulary.div_ceil(32) * size_of::<u32>()),
            ids: gpu.allocate(MARKED_IDS * size_of::<u32>()),
            marked: 0,
        });
        let seen = if choice.penalizes() {
            self.mark(gpu, room, vocabulary, choice.history);
            room.seen.start()
        } else {
            Argument::NULL
        };
        Self::run(
            gpu,
            &self.block_best,
            launch(blocks),
            &[
                logits.start(),
                vocabulary.into(),
                room.best.start(),
                self.bad(),
                seen,
                choice.repetition_penalty.into(),
            ],
        );
        Self::run(
            gpu,
            &self.sample,
            launch(blocks).overlapping(),
            &[
                logits.start(),
                vocabulary.into(),
                room.best.start(),
                blocks.into(),
                parameters(choice),
                room.scratch.start(),
                self.next_id(),
                self.bad(),
            ],
        );
        true
    }

    /// Sets the bits of what came to the context since the last time.
    fn mark(&self, gpu: &Gpu, room: &mut SampleRoom, vocabulary: usize, history: &[u32]) {
        for ids in history[room.marked.min(history.len())..].chunks(MARKED_IDS) {
            gpu.upload(&room.ids, 0, bytemuck::cast_slice(ids));
            Self::run(
                gpu,
                &self.mark_seen,
                launch(ids.len().div_ceil(THREADS as usize)),
                &[room.ids.start(), ids.len().into(), vocabulary.into(), room.seen.start()],
            );
        }
        room.marked = history.len();
    }
}

/// Does not overlap with what was queued before it, which may be a graph or a copy.
fn launch(blocks: usize) -> Launch {
    Launch::new(blocks, THREADS)
}

/// `struct SampleParams`.
fn parameters(choice: &Choice<'_>) -> Argument {
    let two = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let top_k = u32::try_from(choice.top_k).unwrap_or(0);
    let mut words = [0u64; 20];
    words[0] = choice.scale.to_bits();
    words[1] = choice.bits;
    words[2] = two(choice.top_p.to_bits(), choice.min_p.to_bits());
    words[3] = two(top_k, 0);
    Argument::Structure(words)
}
