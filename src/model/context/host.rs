//! A text in host memory under any policy.

use super::{AttentionContext, Chunk, ContextBytes};
use crate::attention::{self, Diagnosis};
use crate::error::Result;
use crate::kernels::{AttendRows, Backend, RopeTable};
use crate::kv_cache::KvCache;
use crate::model::config::ModelConfig;
use crate::model::decoder::{ForwardTimes, LayerTrace, SessionLimits};
use crate::model::rope;
use crate::selection::{
    Phase, PolicyConfig, QueryView, RopeExtension, RotatedQueries, Selection, SelectionPolicy, SelectionStatistics,
};
use std::time::Instant;

/// Paged keys and values, the policy, and the buffers of one layer's attention.
pub struct HostContext<B: Backend> {
    config: ModelConfig,
    pub(in crate::model) cache: KvCache<B>,
    pub(in crate::model) policy: Box<dyn SelectionPolicy<B>>,
    rope: RopeTable,
    rope_extension: Option<RopeExtension>,
    limits: SessionLimits,
    rotated: RotatedQueries<B>,
    selection: Selection,
    diagnosis: Diagnosis,
    trace: Option<Vec<LayerTrace>>,
    /// The stored tokens of each row's own text, where the rows of a forward pass belong to several.
    pub(in crate::model) branches: Option<Vec<Vec<u32>>>,
}

/// The rotary table of a text under `policy`.
fn extended_table<B: Backend>(
    config: &ModelConfig,
    policy: &dyn SelectionPolicy<B>,
    limits: SessionLimits,
) -> RopeTable {
    let extended = rope::extended(config, policy.rope_extension(), limits.max_context);
    rope::table(&extended, limits.positions(policy))
}

impl<B: Backend> HostContext<B> {
    /// Goes on under `policy`; the earlier policy takes its place.
    pub(in crate::model) fn swap_policy(&mut self, policy: &mut Box<dyn SelectionPolicy<B>>) {
        std::mem::swap(&mut self.policy, policy);
        let extension = self.policy.rope_extension();
        if extension != self.rope_extension || self.limits.positions(self.policy.as_ref()) > self.rope.positions() {
            self.rope = extended_table(&self.config, self.policy.as_ref(), self.limits);
            self.rope_extension = extension;
        }
    }
}

impl<B: Backend> AttentionContext<B> for HostContext<B> {
    fn new(backend: &B, config: &ModelConfig, policy: &PolicyConfig, limits: SessionLimits) -> Result<Self> {
        policy.check_host()?;
        let built = policy.build(config.layers);
        let shape = config.attention;
        Ok(Self {
            cache: KvCache::new(config.layers, shape, limits.max_context),
            rope: extended_table(config, built.as_ref(), limits),
            rope_extension: built.rope_extension(),
            policy: built,
            limits,
            rotated: RotatedQueries::new(backend, limits.rows(), &shape),
            selection: Selection::default(),
            diagnosis: Diagnosis::default(),
            trace: None,
            branches: None,
            config: config.clone(),
        })
    }

    fn bytes(_backend: &B, config: &ModelConfig, policy: &PolicyConfig, limits: SessionLimits) -> ContextBytes {
        let built = policy.build::<B>(config.layers);
        ContextBytes {
            kv_cache: KvCache::<B>::bytes(config.layers, &config.attention, limits.max_context),
            selection: built.scratch_bytes(&config.attention, limits.max_context, limits.rows()),
            attention: rope::table_bytes(config, limits.positions(built.as_ref()))
                + limits.rows() * config.attention.query_width() * size_of::<f32>(),
        }
    }

    fn rows_at_once(limits: SessionLimits) -> usize {
        limits.rows()
    }

    fn last_token_apart(&self) -> bool {
        self.policy.last_token_alone()
    }

    fn stored(&self) -> usize {
        self.cache.len()
    }

    fn extend(&mut self, backend: &B, rows: usize, _phase: Phase) -> Result<()> {
        if let Some(trace) = &mut self.trace {
            trace.clear();
        }
        self.cache.extend(backend, rows)
    }

    fn attend(
        &mut self,
        backend: &B,
        layer: usize,
        chunk: &Chunk<'_, B>,
        times: &mut ForwardTimes,
        out: &mut B::Buffer,
    ) -> Result<()> {
        self.cache.store(backend, layer, chunk.qkv, chunk.rows);
        if let Some(lists) = &self.branches {
            let started = Instant::now();
            let args = AttendRows {
                shape: self.config.attention,
                qkv: chunk.qkv,
                lists,
                keys: self.cache.keys(layer),
                values: self.cache.values(layer),
                window: self.config.windows[layer],
                rope: &self.rope,
            };
            backend.attend_rows(&args, out);
            times.attend_s += started.elapsed().as_secs_f64();
            return Ok(());
        }
        let query = QueryView {
            qkv: chunk.qkv,
            rows: chunk.rows,
            phase: chunk.phase,
            shape: self.config.attention,
            window: self.config.windows[layer],
            rope: &self.rope,
        };
        let select_started = Instant::now();
        self.selection.clear();
        self.policy
            .select(backend, layer, &query, &self.cache, &mut self.selection)?;
        let attend_started = Instant::now();
        let (cache, selection) = (&self.cache, &self.selection);
        attention::attend(backend, layer, &query, cache, selection, &mut self.rotated, out);
        times.select_s += (attend_started - select_started).as_secs_f64();
        times.attend_s += attend_started.elapsed().as_secs_f64();

        // A chunk's mean query answers for no single row; single rows (decode, last prompt token) can be judged.
        if self.limits.diagnose && chunk.rows == 1 {
            let n_init = self.policy.n_init();
            let measured = attention::measure(backend, layer, &query, &self.cache, &self.selection, n_init);
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

    fn reset(&mut self) {
        self.cache.truncate(0);
        self.policy.reset();
        self.diagnosis = Diagnosis::default();
    }

    fn truncate(&mut self, len: usize) {
        self.cache.truncate(len);
    }

    fn statistics(&self) -> SelectionStatistics {
        self.policy.statistics()
    }

    fn diagnosis(&self) -> Option<&Diagnosis> {
        Some(&self.diagnosis)
    }

    fn keep_trace(&mut self) {
        self.trace = Some(Vec::new());
    }

    fn take_trace(&mut self) -> Option<Vec<LayerTrace>> {
        self.trace.as_mut().map(std::mem::take)
    }
}
