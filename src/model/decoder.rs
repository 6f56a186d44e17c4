//! The one forward pass: a decoder of any supported family, on any device, under any selection policy.

use super::config::ModelConfig;
use super::context::{AttentionContext, Chunk, Engine};
use super::weights::{LayerWeights, ModelWeights};
use crate::attention::Diagnosis;
use crate::error::{Error, Result};
use crate::kernels::cuda::Cuda;
use crate::kernels::{Backend, Choice, Device, Norm, QkvPart};
use crate::selection::{CacheOutcome, Phase, PolicyConfig, SelectionPolicy, SelectionStatistics};
use std::ops::Range;
use std::time::Instant;

/// A model ready to run.
pub struct Decoder<D: Device> {
    /// Shape and constants.
    pub config: ModelConfig,
    /// Weights.
    pub weights: ModelWeights<D>,
    /// Where it runs.
    pub backend: D,
}

/// Seconds spent in the parts of forward passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct ForwardTimes {
    /// Choosing tokens.
    pub select_s: f64,
    /// Attending to them.
    pub attend_s: f64,
    /// Everything, the two above included.
    pub total_s: f64,
}

/// What one layer did in one chunk; for parity checks.
#[derive(Debug, Clone)]
pub struct LayerTrace {
    /// Chosen logical tokens, ascending; `None` for a dense step.
    pub selected: Option<Vec<u32>>,
    /// Fate of the selection cache.
    pub cache: CacheOutcome,
}

/// Sizes that a session is planned with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SessionLimits {
    /// Tokens the KV cache may hold.
    pub max_context: usize,
    /// Prompt tokens per forward pass.
    pub prefill_chunk: usize,
    /// Compare every selection with exact attention.
    pub diagnose: bool,
}

impl SessionLimits {
    /// Rows of a prefill chunk: no more than the context holds.
    pub fn rows(&self) -> usize {
        self.prefill_chunk.min(self.max_context).max(1)
    }

    /// Positions that the rotary table must cover under `policy`.
    pub fn positions<B: Backend>(&self, policy: &dyn SelectionPolicy<B>) -> usize {
        let needed = policy.positions_needed(self.max_context, self.prefill_chunk);
        if self.diagnose {
            needed.max(self.max_context)
        } else {
            needed
        }
    }
}

/// One text in progress: its context, and the buffers of a forward pass.
pub struct Session<'m, E: Engine> {
    decoder: &'m Decoder<E>,
    context: E::Context,
    limits: SessionLimits,
    rows: usize,
    ids: E::Ids,
    hidden: E::Buffer,
    normed: E::Buffer,
    qkv: E::Buffer,
    attended: E::Buffer,
    gate_up: E::Buffer,
    activated: E::Buffer,
    logits: E::Buffer,
    logits_rows: usize,
    /// The rows whose logits `logits` holds.
    logits_of: Option<Range<usize>>,
    /// A decode step, from ids to logits.
    step: E::Recording,
    choice_room: E::ChoiceRoom,
    times: [ForwardTimes; 2],
}

/// Bytes of the buffers of a [`Session`] for forward passes of `rows` rows, without its context.
pub fn activation_bytes<D: Device>(device: &D, config: &ModelConfig, rows: usize) -> usize {
    let per_row = config.hidden_size
        + config.attention.qkv_width()
        + config.attention.query_width()
        + 3 * config.intermediate_size;
    rows * (per_row * device.element_bytes() + config.hidden_size * size_of::<f32>())
        + config.vocab_size * size_of::<f32>()
}

impl<'m, E: Engine> Session<'m, E> {
    /// An empty text under `policy`.
    pub fn new(decoder: &'m Decoder<E>, policy: &PolicyConfig, limits: SessionLimits) -> Result<Self> {
        let (config, device) = (&decoder.config, &decoder.backend);
        let rows = E::Context::rows_at_once(limits);
        let shape = config.attention;
        let session = Self {
            context: E::Context::new(device, config, policy, limits)?,
            limits,
            rows,
            ids: device.ids(rows),
            hidden: device.zeros_f32(rows * config.hidden_size),
            normed: device.zeros(rows * config.hidden_size),
            qkv: device.zeros(rows * shape.qkv_width()),
            attended: device.zeros(rows * shape.query_width()),
            gate_up: device.zeros(rows * 2 * config.intermediate_size),
            activated: device.zeros(rows * config.intermediate_size),
            logits: device.zeros_f32(config.vocab_size),
            logits_rows: 1,
            logits_of: None,
            step: E::Recording::default(),
            choice_room: E::ChoiceRoom::default(),
            times: [ForwardTimes::default(); 2],
            decoder,
        };
        device.status()?;
        Ok(session)
    }

    /// The model it runs.
    pub fn decoder(&self) -> &'m Decoder<E> {
        self.decoder
    }

    /// N: tokens stored so far.
    pub fn stored(&self) -> usize {
        self.context.stored()
    }

    /// Tokens the context may hold.
    pub fn max_context(&self) -> usize {
        self.limits.max_context
    }

    /// The policy's counts over the current text.
    pub fn statistics(&self) -> SelectionStatistics {
        self.context.statistics()
    }

    /// Seconds spent in `phase`, summed over calls. On a device that queues its work these are those of the host.
    pub fn times(&self, phase: Phase) -> ForwardTimes {
        self.times[phase as usize]
    }

    /// Recall and attention mass collected so far: empty unless the limits ask for it, `None` on a GPU.
    pub fn diagnosis(&self) -> Option<&Diagnosis> {
        self.context.diagnosis()
    }

    /// Keeps what every layer selects, for [`Session::take_trace`].
    pub fn keep_trace(&mut self) {
        self.context.keep_trace();
    }

    /// What each layer selected in the last forward pass; `None` unless [`Session::keep_trace`] was called.
    pub fn take_trace(&mut self) -> Option<Vec<LayerTrace>> {
        self.context.take_trace()
    }

    /// Forgets the text; memory is kept.
    pub fn reset(&mut self) {
        self.context.reset();
        self.choice_room = E::ChoiceRoom::default();
        self.times = [ForwardTimes::default(); 2];
    }

    /// Goes back to the first `len` tokens. The policy keeps its memory: for benches that repeat one step.
    pub fn truncate(&mut self, len: usize) {
        self.context.truncate(len);
        // Neither the logits nor the tokens that were marked as seen belong to the shorter text.
        self.choice_room = E::ChoiceRoom::default();
        self.logits_of = None;
    }

    /// How a prompt of `len` tokens is cut into forward passes; the last token is one by itself if the context wants it.
    pub fn chunks(&self, len: usize) -> Vec<Range<usize>> {
        let apart = self.context.last_token_apart() && len > 1;
        let cut = if apart { len - 1 } else { len };
        let mut chunks: Vec<Range<usize>> = (0..cut)
            .step_by(self.rows)
            .map(|at| at..(at + self.rows).min(cut))
            .collect();
        if apart {
            chunks.push(cut..len);
        }
        chunks
    }

    /// Runs `ids` (one chunk of [`Session::chunks`], or one generated token) through all layers and stores their keys and
    /// values. A generated token's logits are made in the same pass.
    pub fn forward(&mut self, ids: &[u32], phase: Phase) -> Result<()> {
        let started = Instant::now();
        let (config, device) = (&self.decoder.config, &self.decoder.backend);
        if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab_size) {
            return Err(Error::user(format!(
                "token id {id} is outside the model's vocabulary of {} ids",
                config.vocab_size
            ))
            .help("use the tokenizer that belongs to the model"));
        }
        self.logits_of = None;
        self.context.extend(device, ids.len(), phase)?;
        device.set_ids(ids, &mut self.ids);
        if phase == Phase::Decode && ids.len() == 1 {
            let mut step = std::mem::take(&mut self.step);
            let outcome = device.recorded(&mut step, &mut || {
                self.context.begin_step(device, &self.ids);
                self.layers(1, phase)?;
                self.unembed(0..1);
                Ok(())
            });
            self.step = step;
            outcome?;
            self.logits_of = Some(0..1);
        } else {
            self.layers(ids.len(), phase)?;
        }
        device.status()?;
        self.times[phase as usize].total_s += started.elapsed().as_secs_f64();
        Ok(())
    }

    fn layers(&mut self, rows: usize, phase: Phase) -> Result<()> {
        let (device, weights) = (&self.decoder.backend, &self.decoder.weights);
        device.embed(&weights.embedding, &self.ids, rows, &mut self.hidden);
        for (layer, weights) in weights.layers.iter().enumerate() {
            self.attention_block(layer, weights, rows, phase)?;
            self.feed_forward_block(weights, rows);
        }
        Ok(())
    }

    /// `hidden += output(attend(norm(hidden)))`.
    fn attention_block(&mut self, layer: usize, w: &LayerWeights<E>, rows: usize, phase: Phase) -> Result<()> {
        let (config, device) = (&self.decoder.config, &self.decoder.backend);
        let (shape, eps) = (config.attention, config.rms_norm_eps);
        let norm = Norm {
            weight: &w.attention_norm,
            eps,
        };
        let bias = w.qkv_bias.as_ref();
        device.norm_linear(&self.hidden, &norm, rows, &w.qkv, bias, &mut self.normed, &mut self.qkv);
        if let Some((query_norm, key_norm)) = &w.head_norms {
            device.norm_heads(&mut self.qkv, rows, &shape, QkvPart::Queries, query_norm, eps);
            device.norm_heads(&mut self.qkv, rows, &shape, QkvPart::Keys, key_norm, eps);
        }
        let chunk = Chunk {
            qkv: &self.qkv,
            rows,
            phase,
        };
        let times = &mut self.times[phase as usize];
        self.context.attend(device, layer, &chunk, times, &mut self.attended)?;
        let bias = w.output_bias.as_ref();
        device.linear(&self.attended, rows, &w.output, bias, true, &mut self.hidden);
        Ok(())
    }

    /// `hidden += down(silu(gate(norm(hidden))) * up(norm(hidden)))`.
    fn feed_forward_block(&mut self, w: &LayerWeights<E>, rows: usize) {
        let (config, device) = (&self.decoder.config, &self.decoder.backend);
        let norm = Norm {
            weight: &w.mlp_norm,
            eps: config.rms_norm_eps,
        };
        device.norm_linear_silu_mul(
            &self.hidden,
            &norm,
            rows,
            &w.gate_up,
            w.gate_up_bias.as_ref(),
            config.intermediate_size,
            &mut self.normed,
            &mut self.gate_up,
            &mut self.activated,
        );
        let bias = w.down_bias.as_ref();
        device.linear(&self.activated, rows, &w.down, bias, true, &mut self.hidden);
    }

    /// Final norm and unembedding of some rows of the last forward pass.
    fn unembed(&mut self, rows: Range<usize>) {
        let (config, device, w) = (&self.decoder.config, &self.decoder.backend, &self.decoder.weights);
        let norm = Norm {
            weight: &w.final_norm,
            eps: config.rms_norm_eps,
        };
        let unembedding = w.unembedding.as_ref().unwrap_or(&w.embedding);
        device.norm_logits(
            &self.hidden,
            &norm,
            rows,
            unembedding,
            &mut self.normed,
            &mut self.logits,
        );
    }

    /// Logits `[V]` after the last forward pass: of its row `row`.
    pub fn logits(&mut self, row: usize) -> Result<Vec<f32>> {
        self.logits_of_rows(row..row + 1)
    }

    /// Lets the device choose a token by the logits of the generated token that was run last; see [`Device::choose`].
    pub fn choose(&mut self, choice: &Choice<'_>) -> Option<u32> {
        if self.logits_of != Some(0..1) {
            return None;
        }
        let vocabulary = self.decoder.config.vocab_size;
        let device = &self.decoder.backend;
        let chosen = device.choose(&mut self.choice_room, &mut self.logits, vocabulary, choice);
        if chosen.logits_changed {
            // Whoever asks for them, the host above all that is to choose instead, wants the model's.
            self.logits_of = None;
        }
        chosen.id
    }

    /// Logits `[rows, V]` after several rows of the last forward pass. V is large: ask for a block of rows at a time.
    pub fn logits_of_rows(&mut self, rows: Range<usize>) -> Result<Vec<f32>> {
        let (device, count) = (&self.decoder.backend, rows.len());
        if count > self.logits_rows {
            // A recorded step writes where it did when it was recorded.
            self.step = E::Recording::default();
            self.logits = device.zeros_f32(count * self.decoder.config.vocab_size);
            self.logits_rows = count;
            self.logits_of = None;
        }
        if self.logits_of.as_ref() != Some(&rows) {
            self.unembed(rows.clone());
            self.logits_of = Some(rows);
        }
        let mut logits = device.download(&self.logits).into_owned();
        device.status()?;
        logits.truncate(count * self.decoder.config.vocab_size);
        Ok(logits)
    }
}

/// What only a text in host memory can show.
impl<B: Backend> Session<'_, B> {
    /// The policy in force.
    pub fn policy(&self) -> &dyn SelectionPolicy<B> {
        self.context.policy.as_ref()
    }

    /// Runs one more token of several texts that share stored tokens: row `i` is token `ids[i]` of the text whose stored
    /// tokens are `lists[i]`, in order; its own is appended to the list. At most as many rows as a prefill chunk has.
    /// The policy is not asked: every row attends to its whole list.
    pub fn forward_branches(&mut self, ids: &[u32], lists: &mut [Vec<u32>]) -> Result<()> {
        if ids.len() != lists.len() || ids.len() > self.rows {
            return Err(Error::bug(format!(
                "{} branches with {} lists in a session of {} rows",
                ids.len(),
                lists.len(),
                self.rows
            )));
        }
        for (place, list) in (self.context.stored() as u32..).zip(lists.iter_mut()) {
            list.push(place);
        }
        self.context.branches = Some(lists.to_vec());
        let outcome = self.forward(ids, Phase::Decode);
        self.context.branches = None;
        outcome
    }

    /// Final hidden states `[rows, hidden]`, normed, after several rows of the last forward pass: what the rows of the
    /// unembedding are multiplied with.
    pub fn final_hidden(&mut self, rows: Range<usize>) -> Vec<f32> {
        let (config, backend, w) = (&self.decoder.config, &self.decoder.backend, &self.decoder.weights);
        let count = rows.len();
        backend.rms_norm(&self.hidden, &w.final_norm, config.rms_norm_eps, rows, &mut self.normed);
        let mut hidden = backend.download(&self.normed).into_owned();
        hidden.truncate(count * config.hidden_size);
        hidden
    }

    /// Goes on under `policy`, which brings its own memory; the stored text stays, and the earlier policy takes the place
    /// of `policy`. For benches that take turns on one text.
    pub fn swap_policy(&mut self, policy: &mut Box<dyn SelectionPolicy<B>>) {
        self.context.swap_policy(policy);
    }

    /// Continues the text to `len` tokens with keys and values that no forward pass made; see [`KvCache::fill_random`].
    /// For benches: a step takes as long as after a real text, but what it answers means nothing.
    ///
    /// [`KvCache::fill_random`]: crate::kv_cache::KvCache::fill_random
    pub fn fill_random(&mut self, len: usize, seed: u64) -> Result<()> {
        self.context.cache.fill_random(&self.decoder.backend, len, seed)
    }
}

/// What only a text on a GPU can do.
impl Session<'_, Cuda> {
    /// Continues the text to `len` tokens with random keys and values. For benches: a step takes as long as after a real
    /// text, but what it answers means nothing.
    pub fn fill_random_keys(&mut self, len: usize, seed: u64) -> Result<()> {
        self.context.fill_random(&self.decoder.backend, len, seed)
    }

    /// Queues `count` more steps after at least one, each from the id that the last one chose; the host waits for none.
    pub fn queue_steps(&mut self, count: usize) -> Result<()> {
        let device = &self.decoder.backend;
        for _ in 0..count {
            self.context.count_step()?;
            device.recorded(&mut self.step, &mut || {
                Err(Error::bug("steps are queued before one was recorded"))
            })?;
        }
        self.logits_of = Some(0..1);
        Ok(())
    }
}
