//! One measurement: a context filled with random keys and values, timed and counted.

use super::checks::OUTPUT;
use super::{BLOCK_CHUNKS, Call, Case, Settings};
use crate::bench::gpu::timing::{buffer_sets, repeat, replays};
use crate::bench::gpu::{SpeedSample, Watch};
use crate::bench::timing::Rounds;
use crate::bytes::human_bytes;
use crate::error::Result;
use crate::kernels::cuda::{Cuda, CudaBuffer};
use crate::kernels::{Device, RopeTable};
use crate::model::config::ModelConfig;
use crate::model::context::{AttentionContext, Chunk, CudaContext, Stage};
use crate::model::decoder::{ForwardTimes, SessionLimits};
use crate::model::rope;
use crate::report::speed::SpeedRow;
use crate::selection::{Phase, PolicyConfig};

/// Memory that a measurement leaves alone: kernels, and what the driver takes.
const SPARE_BYTES: usize = 2 << 30;
/// Of made-up queries.
const QUERY_DEVIATION: f32 = 1.0;

/// A context with buffer sets as its layers, filled, and what one call takes and gives.
pub(super) struct Bench<'a> {
    pub(super) device: &'a Cuda,
    pub(super) case: &'a Case,
    pub(super) config: ModelConfig,
    pub(super) context: CudaContext,
    pub(super) rope: RopeTable,
    /// Rows of one forward pass.
    pub(super) rows: usize,
    pub(super) prefill_chunk: usize,
    pub(super) qkv: CudaBuffer,
    pub(super) out: CudaBuffer,
    sets: usize,
}

/// Times a case and checks it; `None` if stopped.
pub(super) fn measure(
    device: &Cuda,
    settings: &Settings,
    case: &Case,
    watch: &Watch<'_>,
) -> Result<Option<SpeedSample>> {
    let mut bench = match Bench::new(device, settings, case)? {
        Ok(bench) => bench,
        Err(reason) => return Ok(Some(SpeedSample::missing(case.key.clone(), case.method, reason))),
    };
    let Some(times) = bench.time(settings.rounds, watch)? else {
        return Ok(None);
    };
    let checks = if settings.checks { bench.checks()? } else { Vec::new() };
    let mut row = SpeedRow::of(case.key.clone(), case.method, &times);
    row.relative_error = checks
        .iter()
        .find(|check| check.name.starts_with(OUTPUT))
        .and_then(|check| check.value.get().copied());
    let (bytes, flops) = bench.work();
    Ok(Some(SpeedSample {
        row,
        buffer_sets: bench.sets,
        bytes: Some(bytes),
        flops: Some(flops),
        checks,
    }))
}

impl<'a> Bench<'a> {
    /// The filled context; a reason where there is no room for it.
    fn new(device: &'a Cuda, settings: &Settings, case: &'a Case) -> Result<std::result::Result<Self, String>> {
        let tokens = case.key.tokens;
        let mut config = ModelConfig::from_json(&case.shape.config(), case.shape.name())?;
        let rows = match case.call {
            Call::Step => 1,
            Call::Chunks(count) => count * settings.prefill_chunk,
            Call::Stage(_) => BLOCK_CHUNKS * settings.prefill_chunk,
            Call::Causal => (BLOCK_CHUNKS * settings.prefill_chunk).min(tokens),
        };
        let limits = SessionLimits {
            max_context: tokens,
            prefill_chunk: settings.prefill_chunk,
            diagnose: false,
        };
        let policy = case.policy.clone();
        let free = device.gpu().memory()?.0.saturating_sub(SPARE_BYTES);
        let wanted = if case.call == Call::Causal {
            Some(1)
        } else {
            buffer_sets(case.set_bytes(&config), free)
        };
        let mut sets = wanted.unwrap_or(1);
        let needed = loop {
            config.layers = sets;
            config.windows = vec![None; sets];
            let bytes = CudaContext::bytes(device, &config, &policy, limits);
            let width = config.attention.qkv_width() + config.attention.query_width();
            let needed = bytes.kv_cache + bytes.selection + bytes.attention + rows * width * device.element_bytes();
            if needed <= free || sets == 1 {
                break needed;
            }
            sets -= 1;
        };
        if needed > free {
            return Ok(Err(format!(
                "OOM: {} are needed, {} are free",
                human_bytes(needed),
                human_bytes(free)
            )));
        }
        let mut context = CudaContext::new(device, &config, &policy, limits)?;
        context.fill_random(device, tokens, settings.seed)?;
        let positions = match &policy {
            PolicyConfig::TokenSelect(config) => config.token_budget() + config.n_local + 2 * rows,
            _ => tokens,
        };
        let extended = rope::extended(&config, policy.rope_extension(), tokens);
        Ok(Ok(Self {
            rope: rope::table(&extended, positions),
            qkv: device.random(
                rows * config.attention.qkv_width(),
                settings.seed + 1_000_003,
                QUERY_DEVIATION,
            ),
            out: device.zeros(rows * config.attention.query_width()),
            device,
            case,
            context,
            rows,
            prefill_chunk: settings.prefill_chunk,
            sets,
            config,
        }))
    }

    fn phase(&self) -> Phase {
        match self.case.call {
            Call::Step => Phase::Decode,
            Call::Chunks(_) | Call::Stage(_) | Call::Causal => Phase::Prefill,
        }
    }

    /// One call on one buffer set.
    pub(super) fn attend(&mut self, set: usize, rows: usize) -> Result<()> {
        let chunk = Chunk {
            qkv: &self.qkv,
            rows,
            phase: self.phase(),
        };
        let mut times = ForwardTimes::default();
        self.context.attend(self.device, set, &chunk, &mut times, &mut self.out)
    }

    /// Seconds per call: of a chunk, where several are made at once.
    fn time(&mut self, rounds: Rounds, watch: &Watch<'_>) -> Result<Option<Vec<f64>>> {
        let (device, tokens, rows, sets) = (self.device, self.case.key.tokens, self.rows, self.sets);
        match self.case.call {
            Call::Causal => repeat(device.gpu(), rounds, 1, watch, &mut || {
                self.context.truncate(0);
                for start in (0..tokens).step_by(rows) {
                    let count = rows.min(tokens - start);
                    self.context.extend(device, count, Phase::Prefill)?;
                    self.attend(0, count)?;
                }
                Ok(())
            }),
            Call::Step => {
                self.context.truncate(tokens - 1);
                self.context.extend(device, 1, Phase::Decode)?;
                // The counters as a step leaves them; the calls below are all of this one step.
                self.context.begin_step(device, &device.ids(1));
                replays(device.gpu(), rounds, sets, watch, |set| self.attend(set, rows))
            }
            Call::Stage(stage) => {
                self.context.truncate(tokens - rows);
                self.context.extend(device, rows, Phase::Prefill)?;
                (0..sets).try_for_each(|set| self.attend(set, rows))?;
                replays(device.gpu(), rounds, sets, watch, |set| {
                    self.context.stage(stage, set, &self.qkv, rows, &self.out)
                })
            }
            Call::Chunks(count) => {
                self.context.truncate(tokens - rows);
                self.context.extend(device, rows, Phase::Prefill)?;
                let times = replays(device.gpu(), rounds, sets, watch, |set| self.attend(set, rows))?;
                Ok(times.map(|times| times.iter().map(|seconds| seconds / count as f64).collect()))
            }
        }
    }

    /// Bytes and operations that a call cannot do without.
    fn work(&self) -> (u64, u64) {
        let shape = self.config.attention;
        let (n, rows) = (self.case.key.tokens as u64, self.case.key.rows as u64);
        let (kv, q) = (shape.kv_width() as u64, shape.query_width() as u64);
        let element = self.device.element_bytes() as u64;
        // Pairs of a query row and a key that it sees, when `keys` are there at the end.
        let pairs = |rows: u64, keys: u64| rows * keys - rows * rows.saturating_sub(1) / 2;
        let config = match &self.case.policy {
            PolicyConfig::TokenSelect(config) if self.case.key.tokens > config.token_budget() => config,
            _ => return (n * 2 * kv * element, 4 * pairs(rows, n) * q),
        };
        let list = |rows: u64| n.min(config.token_budget() as u64 + rows);
        let (chunk, chunks) = (self.prefill_chunk as u64, BLOCK_CHUNKS as u64);
        let (query_bytes, list_bytes) = (q * element, 2 * kv * element);
        let scored = match self.case.call {
            _ if self.case.method.ends_with("hit") => (0, 0),
            _ if config.int8_keys => (n * kv, 2 * n * q),
            Call::Chunks(count) => (n * kv * element / count as u64, 2 * n * q),
            _ => (n * kv * element, 2 * n * q),
        };
        match self.case.call {
            Call::Stage(Stage::Append) => (2 * rows * list_bytes, 0),
            Call::Stage(Stage::Select) => (scored.0, scored.1 * chunks),
            Call::Stage(Stage::Pack) => (2 * chunks * list(chunk) * list_bytes, 0),
            Call::Stage(Stage::Attend) => (
                chunks * list(chunk) * list_bytes + 2 * rows * query_bytes,
                4 * chunks * pairs(chunk, list(chunk)) * q,
            ),
            _ => (
                list(rows) * list_bytes + scored.0,
                4 * pairs(rows, list(rows)) * q + scored.1,
            ),
        }
    }
}
