//! The one forward pass: a decoder of any supported family, on any backend, under any selection policy.

use super::config::ModelConfig;
use super::rope;
use super::weights::{LayerWeights, ModelWeights};
use crate::attention::{self, Diagnosis};
use crate::error::{Error, Result};
use crate::kernels::{AttendRows, Backend, QkvPart, RopeTable};
use crate::kv_cache::KvCache;
use crate::selection::{
    CacheOutcome, Phase, PolicyConfig, QueryView, RopeExtension, RotatedQueries, Selection, SelectionPolicy,
};
use std::ops::Range;
use std::time::Instant;

/// A model ready to run.
pub struct Decoder<B: Backend> {
    /// Shape and constants.
    pub config: ModelConfig,
    /// Weights.
    pub weights: ModelWeights<B>,
    /// Where it runs.
    pub backend: B,
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

/// One text in progress: KV cache, policy, and the buffers of a forward pass.
pub struct Session<'m, B: Backend> {
    decoder: &'m Decoder<B>,
    cache: KvCache<B>,
    policy: Box<dyn SelectionPolicy<B>>,
    rope: RopeTable,
    rope_extension: Option<RopeExtension>,
    limits: SessionLimits,
    hidden: B::Buffer,
    normed: B::Buffer,
    qkv: B::Buffer,
    attended: B::Buffer,
    gate_up: B::Buffer,
    activated: B::Buffer,
    logits: B::Buffer,
    logits_rows: usize,
    rotated: RotatedQueries<B>,
    selection: Selection,
    times: [ForwardTimes; 2],
    diagnosis: Diagnosis,
    trace: Option<Vec<LayerTrace>>,
}

/// Bytes of the buffers of a [`Session`] for chunks of `rows` rows, without KV cache, policy and rotary table.
pub fn activation_bytes(config: &ModelConfig, rows: usize) -> usize {
    let per_row = 2 * config.hidden_size
        + config.attention.qkv_width()
        + 2 * config.attention.query_width()
        + 3 * config.intermediate_size;
    (rows * per_row + config.vocab_size) * size_of::<f32>()
}

/// The rotary table of a session under `policy`.
fn extended_table<B: Backend>(
    config: &ModelConfig,
    policy: &dyn SelectionPolicy<B>,
    limits: SessionLimits,
) -> RopeTable {
    let extended = rope::extended(config, policy.rope_extension(), limits.max_context);
    rope::table(&extended, limits.positions(policy))
}

impl<'m, B: Backend> Session<'m, B> {
    /// An empty text under `policy`.
    pub fn new(decoder: &'m Decoder<B>, policy: &PolicyConfig, limits: SessionLimits) -> Self {
        let (config, backend) = (&decoder.config, &decoder.backend);
        let rows = limits.prefill_chunk.min(limits.max_context).max(1);
        let built = policy.build(config.layers);
        let shape = config.attention;
        Self {
            cache: KvCache::new(config.layers, shape, limits.max_context),
            rope: extended_table(config, built.as_ref(), limits),
            rope_extension: built.rope_extension(),
            policy: built,
            limits,
            hidden: backend.zeros(rows * config.hidden_size),
            normed: backend.zeros(rows * config.hidden_size),
            qkv: backend.zeros(rows * shape.qkv_width()),
            attended: backend.zeros(rows * shape.query_width()),
            gate_up: backend.zeros(rows * 2 * config.intermediate_size),
            activated: backend.zeros(rows * config.intermediate_size),
            logits: backend.zeros(config.vocab_size),
            logits_rows: 1,
            rotated: RotatedQueries::new(backend, rows, &shape),
            selection: Selection::default(),
            times: [ForwardTimes::default(); 2],
            diagnosis: Diagnosis::default(),
            trace: None,
            decoder,
        }
    }

    /// The model it runs.
    pub fn decoder(&self) -> &'m Decoder<B> {
        self.decoder
    }

    /// N: tokens stored so far.
    pub fn stored(&self) -> usize {
        self.cache.len()
    }

    /// Tokens the context may hold.
    pub fn max_context(&self) -> usize {
        self.limits.max_context
    }

    /// The policy's counts over the current text.
    pub fn policy(&self) -> &dyn SelectionPolicy<B> {
        self.policy.as_ref()
    }

    /// Recall and attention mass collected so far; empty unless the limits ask for it.
    pub fn diagnosis(&self) -> &Diagnosis {
        &self.diagnosis
    }

    /// Seconds spent in `phase`, summed over calls.
    pub fn times(&self, phase: Phase) -> ForwardTimes {
        self.times[phase as usize]
    }

    /// Keeps what every layer selects, for [`Session::take_trace`].
    pub fn keep_trace(&mut self) {
        self.trace = Some(Vec::new());
    }

    /// What each layer selected in the last forward pass; `None` unless [`Session::keep_trace`] was called.
    pub fn take_trace(&mut self) -> Option<Vec<LayerTrace>> {
        self.trace.as_mut().map(std::mem::take)
    }

    /// Forgets the text; memory is kept.
    pub fn reset(&mut self) {
        self.cache.truncate(0);
        self.policy.reset();
        self.times = [ForwardTimes::default(); 2];
        self.diagnosis = Diagnosis::default();
    }

    /// Goes back to the first `len` tokens. The policy keeps its memory: for benches that repeat one step.
    pub fn truncate(&mut self, len: usize) {
        self.cache.truncate(len);
    }

    /// Goes on under `policy`, which brings its own memory; the stored text stays, and the earlier policy takes the place
    /// of `policy`. For benches that take turns on one text.
    pub fn swap_policy(&mut self, policy: &mut Box<dyn SelectionPolicy<B>>) {
        std::mem::swap(&mut self.policy, policy);
        let extension = self.policy.rope_extension();
        if extension != self.rope_extension || self.limits.positions(self.policy.as_ref()) > self.rope.positions() {
            self.rope = extended_table(&self.decoder.config, self.policy.as_ref(), self.limits);
            self.rope_extension = extension;
        }
    }

    /// Continues the text to `len` tokens with keys and values that no forward pass made; see [`KvCache::fill_random`].
    /// For benches: a step takes as long as after a real text, but what it answers means nothing.
    pub fn fill_random(&mut self, len: usize, seed: u64) -> Result<()> {
        self.cache.fill_random(&self.decoder.backend, len, seed)
    }

    /// How a prompt of `len` tokens is cut: chunks of the prefill size, the last token by itself if the policy wants it.
    pub fn chunks(&self, len: usize) -> Vec<Range<usize>> {
        let alone = self.policy.last_token_alone() && len > 1;
        let cut = if alone { len - 1 } else { len };
        let size = self.limits.prefill_chunk.max(1);
        let mut chunks: Vec<Range<usize>> = (0..cut).step_by(size).map(|at| at..(at + size).min(cut)).collect();
        if alone {
            chunks.push(cut..len);
        }
        chunks
    }

    /// Runs `ids` (one chunk) through all layers and stores their keys and values.
    pub fn forward(&mut self, ids: &[u32], phase: Phase) -> Result<()> {
        self.forward_rows(ids, phase, None)
    }

    /// Runs one more token of several texts that share stored tokens: row `i` is token `ids[i]` of the text whose stored
    /// tokens are `lists[i]`, in order; its own is appended to the list. At most as many rows as a prefill chunk has.
    /// The policy is not asked: every row attends to its whole list.
    pub fn forward_branches(&mut self, ids: &[u32], lists: &mut [Vec<u32>]) -> Result<()> {
        if ids.len() != lists.len() || ids.len() > self.limits.prefill_chunk {
            return Err(Error::bug(format!(
                "{} branches with {} lists in a session of {} rows",
                ids.len(),
                lists.len(),
                self.limits.prefill_chunk
            )));
        }
        for (place, list) in (self.cache.len() as u32..).zip(lists.iter_mut()) {
            list.push(place);
        }
        self.forward_rows(ids, Phase::Decode, Some(lists))
    }

    fn forward_rows(&mut self, ids: &[u32], phase: Phase, branches: Option<&[Vec<u32>]>) -> Result<()> {
        let started = Instant::now();
        let config = &self.decoder.config;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab_size) {
            return Err(Error::user(format!(
                "token id {id} is outside the model's vocabulary of {} ids",
                config.vocab_size
            ))
            .help("use the tokenizer that belongs to the model"));
        }
        if let Some(trace) = &mut self.trace {
            trace.clear();
        }
        self.cache.extend(&self.decoder.backend, ids.len())?;
        self.decoder
            .backend
            .embed(&self.decoder.weights.embedding, ids, &mut self.hidden);
        for (layer, weights) in self.decoder.weights.layers.iter().enumerate() {
            self.attention_block(layer, weights, ids.len(), phase, branches)?;
            self.feed_forward_block(weights, ids.len());
        }
        self.times[phase as usize].total_s += started.elapsed().as_secs_f64();
        Ok(())
    }

    /// `hidden += output(attend(norm(hidden)))`.
    fn attention_block(
        &mut self,
        layer: usize,
        w: &LayerWeights<B>,
        rows: usize,
        phase: Phase,
        branches: Option<&[Vec<u32>]>,
    ) -> Result<()> {
        let (config, backend) = (&self.decoder.config, &self.decoder.backend);
        let (shape, eps) = (config.attention, config.rms_norm_eps);
        backend.rms_norm(&self.hidden, &w.attention_norm, eps, 0..rows, &mut self.normed);
        backend.linear(&self.normed, rows, &w.qkv, w.qkv_bias.as_ref(), false, &mut self.qkv);
        if let Some((query_norm, key_norm)) = &w.head_norms {
            backend.norm_heads(&mut self.qkv, rows, &shape, QkvPart::Queries, query_norm, eps);
            backend.norm_heads(&mut self.qkv, rows, &shape, QkvPart::Keys, key_norm, eps);
        }
        self.cache.store(backend, layer, &self.qkv, rows);
        match branches {
            Some(lists) => {
                let attend_started = Instant::now();
                let args = AttendRows {
                    shape,
                    qkv: &self.qkv,
                    lists,
                    keys: self.cache.keys(layer),
                    values: self.cache.values(layer),
                    window: config.windows[layer],
                    rope: &self.rope,
                };
                backend.attend_rows(&args, &mut self.attended);
                self.times[phase as usize].attend_s += attend_started.elapsed().as_secs_f64();
            }
            None => self.select_and_attend(layer, rows, phase)?,
        }
        backend.linear(
            &self.attended,
            rows,
            &w.output,
            w.output_bias.as_ref(),
            true,
            &mut self.hidden,
        );
        Ok(())
    }

    /// What the policy selects for the chunk, and attention over it.
    fn select_and_attend(&mut self, layer: usize, rows: usize, phase: Phase) -> Result<()> {
        let (config, backend) = (&self.decoder.config, &self.decoder.backend);
        let shape = config.attention;
        let query = QueryView {
            qkv: &self.qkv,
            rows,
            phase,
            shape,
            window: config.windows[layer],
            rope: &self.rope,
        };

        let select_started = Instant::now();
        self.selection.clear();
        self.policy
            .select(backend, layer, &query, &self.cache, &mut self.selection)?;
        let attend_started = Instant::now();
        attention::attend(
            backend,
            layer,
            &query,
            &self.cache,
            &self.selection,
            &mut self.rotated,
            &mut self.attended,
        );
        let times = &mut self.times[phase as usize];
        times.select_s += (attend_started - select_started).as_secs_f64();
        times.attend_s += attend_started.elapsed().as_secs_f64();

        // A chunk's mean query answers for no single row; single rows (decode, last prompt token) can be judged.
        if self.limits.diagnose && rows == 1 {
            let measured = attention::measure(
                backend,
                layer,
                &query,
                &self.cache,
                &self.selection,
                self.policy.n_init(),
            );
            if let Some(quality) = measured {
                self.diagnosis.add(layer, quality);
            }
        }
        if let Some(trace) = &mut self.trace {
            trace.push(LayerTrace {
                selected: self.selection.selected.take(),
                cache: self.selection.cache,
            });
        }
        Ok(())
    }

    /// `hidden += down(silu(gate(norm(hidden))) * up(norm(hidden)))`.
    fn feed_forward_block(&mut self, w: &LayerWeights<B>, rows: usize) {
        let (config, backend) = (&self.decoder.config, &self.decoder.backend);
        backend.rms_norm(
            &self.hidden,
            &w.mlp_norm,
            config.rms_norm_eps,
            0..rows,
            &mut self.normed,
        );
        backend.linear(
            &self.normed,
            rows,
            &w.gate_up,
            w.gate_up_bias.as_ref(),
            false,
            &mut self.gate_up,
        );
        backend.silu_mul(&self.gate_up, rows, config.intermediate_size, &mut self.activated);
        backend.linear(
            &self.activated,
            rows,
            &w.down,
            w.down_bias.as_ref(),
            true,
            &mut self.hidden,
        );
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

    /// Logits `[V]` after row `row` of the last forward pass.
    pub fn logits(&mut self, row: usize) -> Vec<f32> {
        self.logits_of_rows(row..row + 1)
    }

    /// Logits `[rows, V]` after several rows of the last forward pass. V is large: ask for a block of rows at a time.
    pub fn logits_of_rows(&mut self, rows: Range<usize>) -> Vec<f32> {
        let (config, backend, w) = (&self.decoder.config, &self.decoder.backend, &self.decoder.weights);
        let count = rows.len();
        if count > self.logits_rows {
            self.logits = backend.zeros(count * config.vocab_size);
            self.logits_rows = count;
        }
        backend.rms_norm(&self.hidden, &w.final_norm, config.rms_norm_eps, rows, &mut self.normed);
        let unembedding = w.unembedding.as_ref().unwrap_or(&w.embedding);
        backend.linear(&self.normed, count, unembedding, None, false, &mut self.logits);
        let mut logits = backend.download(&self.logits).into_owned();
        logits.truncate(count * config.vocab_size);
        logits
    }
}
