//! Whole models, timed: prefill, decode steps and memory under several policies, in one process.
//!
//! The parts come in this order: [`memory`] (on a heap that nothing else has used), [`checks`] (is what will be timed
//! also right?), [`prefill`], [`decode`].
//! Each appends its samples one by one and skips those that are there, so that a stopped run can go on. [`tables`] turns
//! samples into cells, beside those of [`baseline`], a file of another program's times.

pub mod baseline;
pub mod checks;
pub mod decode;
pub mod memory;
pub mod prefill;
mod series;
pub mod tables;

use super::timing::Rounds;
use crate::error::{Error, Result};
use crate::kernels::Backend;
use crate::model::decoder::{Decoder, SessionLimits};
use crate::random::stream_rng;
use crate::report::{Sample, SampleSink};
use crate::selection::PolicyConfig;
use rand::RngCore;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What to measure.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// Policies with all their settings.
    pub policies: Vec<PolicyConfig>,
    /// Prompt lengths to prefill.
    pub prefill_tokens: Vec<usize>,
    /// Stored tokens at which decode steps are timed, ascending.
    pub decode_at: Vec<usize>,
    /// Prompt tokens per forward pass.
    pub prefill_chunk: usize,
    /// Repetitions of every prefill.
    pub prefill_rounds: Rounds,
    /// Repetitions of every decode step.
    pub decode_rounds: Rounds,
    /// Fill the KV cache of decode steps by a dense prefill instead of made-up keys and values.
    pub real_prefill: bool,
    /// Tokens of the prompt on which the fast backend is checked.
    pub check_tokens: usize,
    /// Context of the memory measurement.
    pub memory_context: usize,
    /// Seed of token ids and made-up keys and values.
    pub seed: u64,
}

/// The parts of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The fast backend against the plain one, and selection of everything against dense
    Checks,
    /// Seconds per prompt
    Prefill,
    /// Seconds per decode step
    Decode,
    /// Peak memory against the memory plan
    Memory,
}

/// How a part or the whole ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything was measured.
    Finished,
    /// Stopped in between; finished samples are kept.
    Interrupted,
}

/// Who follows the bench and may stop it.
pub struct Watch<'a> {
    /// Asked between forward passes.
    pub stopped: &'a dyn Fn() -> bool,
    /// Told what is going on.
    pub status: &'a dyn Fn(&str),
}

/// One model, what to measure about it, and who watches.
pub struct Bench<'a, B: Backend> {
    /// The model.
    pub decoder: &'a Decoder<B>,
    /// What to measure.
    pub settings: &'a Settings,
    /// Who watches.
    pub watch: Watch<'a>,
}

impl Settings {
    /// The longest text that any part stores.
    pub fn largest_context(&self) -> usize {
        let prefill = self.prefill_tokens.iter().copied().max();
        let decode = self.decode_at.iter().copied().max().map(|stored| stored + 1);
        prefill.max(decode).unwrap_or(0).max(self.check_tokens + 1)
    }

    /// Limits of a session of `max_context` tokens.
    pub fn limits(&self, max_context: usize) -> SessionLimits {
        SessionLimits {
            max_context,
            prefill_chunk: self.prefill_chunk,
            diagnose: false,
        }
    }
}

impl<B: Backend> Bench<'_, B> {
    /// The first `count` ids of the bench's random text.
    pub fn ids(&self, count: usize) -> Vec<u32> {
        let vocab = self.decoder.config.vocab_size as u32;
        let mut rng = stream_rng(self.settings.seed, "bench");
        (0..count).map(|_| rng.next_u32() % vocab).collect()
    }

    fn stopped(&self) -> bool {
        (self.watch.stopped)()
    }

    fn status(&self, what: &str) {
        (self.watch.status)(what);
    }
}

/// The data of the samples of `task`, with their ids.
pub(in crate::bench) fn samples_of<T: DeserializeOwned>(samples: &[Sample], task: &str) -> Result<Vec<T>> {
    samples
        .iter()
        .filter(|sample| sample.task == task)
        .map(|sample| {
            serde_json::from_value(sample.data.clone()).map_err(|error| {
                Error::user(format!(
                    "sample `{}` of task `{task}` cannot be read: {error}",
                    sample.id
                ))
                .help("choose another `--output` directory")
            })
        })
        .collect()
}

pub(in crate::bench) fn append<T: Serialize>(sink: &mut dyn SampleSink, task: &str, id: &str, data: &T) -> Result<()> {
    let data = serde_json::to_value(data).map_err(|error| Error::bug(format!("sample `{id}` as JSON: {error}")))?;
    sink.append(task, id, data)
}
