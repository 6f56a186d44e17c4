//! A model that answers questions under several policies.

use super::{Answer, Answerer, Cost, Question, Reply};
use crate::bench::peak_memory::{memory_use, reset_peak};
use crate::bench::statistics::mean;
use crate::error::{Error, Result};
use crate::kernels::Backend;
use crate::manifest::sha256;
use crate::model::decoder::{Decoder, Session, SessionLimits};
use crate::model::generate::{Finish, Observer, Request, generate};
use crate::model::prompt::PromptEncoder;
use crate::model::sampling::{Sampler, SamplingConfig};
use crate::selection::PolicyConfig;
use serde_json::json;
use std::time::Instant;

/// One way to run the model.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Variant {
    /// Its name in reports: what the user wrote.
    pub name: String,
    /// The policy with all settings.
    pub policy: PolicyConfig,
    /// Prompt tokens per forward pass.
    pub prefill_chunk: usize,
}

/// Asks a model, greedily. One session at a time is alive, and it is used again as long as the policy stays.
pub struct ModelAnswerer<'m, B: Backend> {
    decoder: &'m Decoder<B>,
    encoder: PromptEncoder<'m>,
    eos: &'m [u32],
    variants: &'m [Variant],
    max_context: usize,
    stopped: &'m dyn Fn() -> bool,
    session: Option<(PolicyConfig, usize, Session<'m, B>)>,
}

impl<'m, B: Backend> ModelAnswerer<'m, B> {
    /// Asks `decoder` under `variants`, with at most `max_context` tokens of prompt and answer.
    pub fn new(
        decoder: &'m Decoder<B>,
        encoder: PromptEncoder<'m>,
        eos: &'m [u32],
        variants: &'m [Variant],
        max_context: usize,
        stopped: &'m dyn Fn() -> bool,
    ) -> Self {
        Self {
            decoder,
            encoder,
            eos,
            variants,
            max_context,
            stopped,
            session: None,
        }
    }

    /// An empty session for a text of `tokens` tokens, answer included.
    fn session(&mut self, variant: usize, tokens: usize) -> Result<&mut Session<'m, B>> {
        let variant = &self.variants[variant];
        // What stretches rotary frequencies goes by the length of the text, not by the longest of the run.
        let trained = self.decoder.config.max_position_embeddings;
        let policy = variant.policy.clone().for_context(trained, tokens);
        let prefill_chunk = variant.prefill_chunk;
        let fits = |(held, chunk, _): &(PolicyConfig, usize, _)| *held == policy && *chunk == prefill_chunk;
        if !self.session.as_ref().is_some_and(fits) {
            // The earlier KV cache is freed before the next one grows.
            self.session = None;
            let limits = SessionLimits {
                max_context: self.max_context,
                prefill_chunk,
                diagnose: false,
            };
            let session = Session::new(self.decoder, &policy, limits)?;
            self.session = Some((policy, prefill_chunk, session));
        }
        let session = self.session.as_mut().map(|(_, _, session)| session);
        let session = session.ok_or_else(|| Error::bug("the session of a variant was not kept"))?;
        session.reset();
        Ok(session)
    }
}

struct Stopping<'a>(&'a dyn Fn() -> bool);

impl Observer for Stopping<'_> {
    fn stopped(&self) -> bool {
        (self.0)()
    }
}

impl<B: Backend> Answerer for ModelAnswerer<'_, B> {
    fn answer(&mut self, variant: usize, question: &Question<'_>) -> Result<Reply> {
        let started = Instant::now();
        let example = question.example;
        let prompt = self
            .encoder
            .question(&example.prompt, &example.answer_prefix, question.templated)?;
        if prompt.ids.is_empty() {
            return Ok(Reply::Refused("the prompt has no token".into()));
        }
        let needed = prompt.ids.len() + question.max_new_tokens;
        if needed > self.max_context {
            return Ok(Reply::Refused(format!(
                "{} prompt tokens and {} answer tokens are more than the context of {}",
                prompt.ids.len(),
                question.max_new_tokens,
                self.max_context
            )));
        }
        // Where the peak cannot be reset it covers the process so far, which is still no less than the truth.
        let _ = reset_peak();
        let (eos, tokenizer, stopping) = (self.eos, self.encoder.tokenizer, Stopping(self.stopped));
        let session = self.session(variant, needed)?;
        let mut stopping = stopping;
        let request = Request {
            ids: &prompt.ids,
            max_new_tokens: question.max_new_tokens,
            eos,
            stop: &[],
            tokenizer: Some(tokenizer),
        };
        let mut greedy = Sampler::new(SamplingConfig::default())?;
        let generation = generate(session, &request, &mut greedy, &mut stopping)?;
        if generation.finish == Finish::Interrupted {
            return Ok(Reply::Interrupted);
        }
        Ok(Reply::Answer(Box::new(Answer {
            finish: json!(generation.finish),
            prompt_sha256: sha256(&prompt.text),
            prompt_tokens: prompt.ids.len(),
            generated_tokens: generation.ids.len(),
            cost: Cost {
                wall_s: Some(started.elapsed().as_secs_f64()),
                prefill_s: Some(generation.prefill_s),
                ttft_s: generation.ttft_s,
                tpot_s: mean(&generation.decode_s),
                peak_rss_bytes: memory_use().peak_rss_bytes.get().copied(),
            },
            cache_hit_rate: session.statistics().hit_rate(),
            text: generation.text,
        })))
    }
}
