//! Prompt in, tokens out: chunked prefill, then one token at a time, until something says stop.

use super::context::Engine;
use super::decoder::{LayerTrace, Session};
use super::sampling::Sampler;
use super::stop::StopStrings;
use super::stream_decoder::StreamDecoder;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::selection::{CacheOutcome, Phase};
use std::time::Instant;

/// What to generate.
pub struct Request<'a> {
    /// The prompt.
    pub ids: &'a [u32],
    /// At most this many tokens.
    pub max_new_tokens: usize,
    /// Ids that end the text; empty to ignore them.
    pub eos: &'a [u32],
    /// Texts that end the text.
    pub stop: &'a [String],
    /// Turns ids into text; without it only ids are made.
    pub tokenizer: Option<&'a Tokenizer>,
}

/// Follows a generation and may end it.
pub trait Observer {
    /// Prompt tokens done in one chunk.
    fn prefilled(&mut self, _tokens: usize) {}
    /// Text that can no longer change.
    fn text(&mut self, _text: &str) -> Result<()> {
        Ok(())
    }
    /// Asked between chunks and between tokens.
    fn stopped(&self) -> bool {
        false
    }
}

/// Follows nothing.
pub struct Unobserved;
impl Observer for Unobserved {}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// As many tokens as asked for.
    Length,
    /// The model ended its text.
    EndOfText,
    /// A stop string.
    StopString,
    /// The context is full.
    ContextFull,
    /// The observer.
    Interrupted,
}

/// One forward pass of a generation; for parity checks.
#[derive(Debug, Clone, serde::Serialize)]
pub struct StepRecord {
    /// N: stored tokens, this chunk included.
    pub n_stored: usize,
    /// C: tokens of the chunk.
    pub rows: usize,
    /// Chosen logical positions per layer; null for a dense step.
    pub selected: Vec<Option<Vec<u32>>>,
    /// `hit`, `miss` or null per layer.
    pub cache: Vec<Option<CacheOutcome>>,
}

impl StepRecord {
    fn new(n_stored: usize, rows: usize, trace: Vec<LayerTrace>) -> Self {
        let (selected, cache) = trace
            .into_iter()
            .map(|layer| {
                (
                    layer.selected,
                    (layer.cache != CacheOutcome::Unused).then_some(layer.cache),
                )
            })
            .unzip();
        Self {
            n_stored,
            rows,
            selected,
            cache,
        }
    }
}

/// What a generation made and how long it took.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Generated ids, an ending id included.
    pub ids: Vec<u32>,
    /// Their text, without special tokens and stop string.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Logits after the last prompt token; empty if interrupted before.
    pub prompt_logits: Vec<f32>,
    /// Seconds to the first token; `None` if there was none.
    pub ttft_s: Option<f64>,
    /// Seconds of prefill.
    pub prefill_s: f64,
    /// Seconds per token after the first.
    pub decode_s: Vec<f64>,
    /// Chunks of the prompt; empty unless the session keeps traces.
    pub prefill_steps: Vec<StepRecord>,
    /// One per generated token that was fed back; empty unless the session keeps traces.
    pub decode_steps: Vec<StepRecord>,
}

/// Turns ids into text that stop strings have passed.
struct TextOutput<'a> {
    stream: StreamDecoder<'a>,
    stop: StopStrings,
    text: String,
}

impl TextOutput<'_> {
    fn emit(&mut self, piece: Option<&str>, observer: &mut dyn Observer) -> Result<bool> {
        let Some(piece) = piece else { return Ok(false) };
        let outcome = self.stop.push(piece);
        self.write(&outcome.emit, observer)?;
        Ok(outcome.stopped.is_some())
    }

    fn write(&mut self, text: &str, observer: &mut dyn Observer) -> Result<()> {
        self.text.push_str(text);
        if text.is_empty() { Ok(()) } else { observer.text(text) }
    }

    /// True if a stop string is complete.
    fn push(&mut self, id: u32, observer: &mut dyn Observer) -> Result<bool> {
        let piece = self.stream.push(id)?;
        self.emit(piece.as_deref(), observer)
    }

    fn finish(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        let piece = self.stream.finish()?;
        if self.emit(piece.as_deref(), observer)? {
            return Ok(true);
        }
        let rest = self.stop.finish();
        self.write(&rest, observer)?;
        Ok(false)
    }
}

/// The next token: from `logits` if they are on the host, else from those of the last step where they are. What a device
/// leaves to the host is chosen here, of the same draw.
fn next_id<E: Engine>(
    session: &mut Session<'_, E>,
    sampler: &mut Sampler,
    logits: Option<Vec<f32>>,
    history: &[u32],
) -> Result<u32> {
    if logits.is_none()
        && let Some(id) = sampler.choose_on(history, |choice| session.choose(choice))
    {
        return Ok(id);
    }
    let mut logits = logits.map_or_else(|| session.logits(0), Ok)?;
    sampler.sample(&mut logits, history)
}

/// Generates after the prompt; the session must be empty.
pub fn generate<E: Engine>(
    session: &mut Session<'_, E>,
    request: &Request<'_>,
    sampler: &mut Sampler,
    observer: &mut dyn Observer,
) -> Result<Generation> {
    if request.ids.is_empty() {
        return Err(Error::user("the prompt is empty: there is no token to continue from")
            .help("pass a text with `--prompt`, or ids with `--token-ids`"));
    }
    let started = Instant::now();
    let mut out = Generation {
        ids: Vec::new(),
        text: String::new(),
        finish: Finish::Length,
        prompt_logits: Vec::new(),
        ttft_s: None,
        prefill_s: 0.0,
        decode_s: Vec::new(),
        prefill_steps: Vec::new(),
        decode_steps: Vec::new(),
    };
    let mut rows = 0;
    for range in session.chunks(request.ids.len()) {
        if observer.stopped() {
            out.finish = Finish::Interrupted;
            return Ok(out);
        }
        rows = range.len();
        session.forward(&request.ids[range], Phase::Prefill)?;
        out.prefill_steps.extend(
            session
                .take_trace()
                .map(|trace| StepRecord::new(session.stored(), rows, trace)),
        );
        observer.prefilled(rows);
    }
    out.prompt_logits = session.logits(rows - 1)?;
    out.prefill_s = started.elapsed().as_secs_f64();
    if request.max_new_tokens == 0 {
        return Ok(out);
    }

    let mut text = request
        .tokenizer
        .map(|tokenizer| {
            let stop = StopStrings::new(request.stop.iter().cloned())?;
            Ok::<_, Error>(TextOutput {
                stream: tokenizer.stream(),
                stop,
                text: String::new(),
            })
        })
        .transpose()?;
    let mut history = request.ids.to_vec();
    // The prompt's logits are read anyway; a step's only where the device cannot choose by itself.
    let mut logits = Some(out.prompt_logits.clone());
    let mut step_started = None::<Instant>;
    let mut ended = false;
    loop {
        let id = next_id(session, sampler, logits.take(), &history)?;
        history.push(id);
        out.ids.push(id);
        match step_started {
            None => out.ttft_s = Some(started.elapsed().as_secs_f64()),
            Some(step) => out.decode_s.push(step.elapsed().as_secs_f64()),
        }
        if request.eos.contains(&id) {
            out.finish = Finish::EndOfText;
            break;
        }
        if let Some(text) = &mut text
            && text.push(id, observer)?
        {
            (out.finish, ended) = (Finish::StopString, true);
            break;
        }
        if out.ids.len() == request.max_new_tokens {
            break;
        }
        if session.stored() == session.max_context() {
            out.finish = Finish::ContextFull;
            break;
        }
        if observer.stopped() {
            out.finish = Finish::Interrupted;
            break;
        }
        step_started = Some(Instant::now());
        session.forward(&[id], Phase::Decode)?;
        out.decode_steps.extend(
            session
                .take_trace()
                .map(|trace| StepRecord::new(session.stored(), 1, trace)),
        );
    }
    if let Some(mut text) = text {
        if !ended && text.finish(observer)? {
            out.finish = Finish::StopString;
        }
        out.text = text.text;
    }
    Ok(out)
}
