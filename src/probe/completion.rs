//! Many completions of one prompt: its keys and values are stored once, and all completions take their next token in one
//! forward pass.
//!
//! A completion is a branch: the prompt's stored tokens, then its own. Branches that have ended leave the batch. Prompts
//! that begin alike (a question, the same question with a longer list) share what they have in common.

use crate::error::{Error, Result};
use crate::kernels::Backend;
use crate::model::decoder::{Decoder, Session, SessionLimits};
use crate::model::generate::Finish;
use crate::model::sampling::{Sampler, SamplingConfig};
use crate::model::tokenizer::Tokenizer;
use crate::selection::{Phase, PolicyConfig};

/// What every id of the vocabulary decodes to by itself; `None` for special tokens and for rows without a token, which no
/// text can start with.
#[derive(Debug, Clone)]
pub struct TokenTexts {
    texts: Vec<Option<String>>,
    /// Rows without a token: a vocabulary is often padded to a round number.
    padding: Vec<u32>,
}

impl TokenTexts {
    /// Decodes every id of a vocabulary of `vocab_size` rows.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Self> {
        let text = |id: u32| match tokenizer.decodable_token(id) {
            Some(_) => tokenizer.decode(&[id], false).map(Some),
            None => Ok(None),
        };
        let ids = 0..vocab_size as u32;
        Ok(Self {
            texts: ids.clone().map(text).collect::<Result<_>>()?,
            padding: ids.filter(|&id| tokenizer.id_to_token(id).is_none()).collect(),
        })
    }

    /// Makes rows without a token impossible in `logits` `[rows, V]`: nothing can be read of them, so no text goes on there.
    pub fn forbid_padding(&self, logits: &mut [f32]) {
        for row in logits.chunks_exact_mut(self.texts.len().max(1)) {
            for &id in &self.padding {
                row[id as usize] = f32::NEG_INFINITY;
            }
        }
    }

    /// The text of `id`.
    pub fn get(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize)?.as_deref()
    }

    /// V: rows of the vocabulary, padding included.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// True for a vocabulary of no rows.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Ids that have a text, by logit down, then id up.
    pub fn ranked(&self, logits: &[f32]) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..self.len() as u32).filter(|&id| self.get(id).is_some()).collect();
        ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        ids
    }
}

/// When a completion ends, besides at its length.
#[derive(Debug, Clone, Copy, Default)]
pub struct StopRule {
    /// At a token whose text contains one of these.
    pub within_token: &'static [char],
    /// At an end-of-text id.
    pub end_of_text: bool,
}

/// What a prompt leaves in the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The query: the normed hidden state after the prompt, `[hidden]`.
    pub query: Vec<f32>,
    /// Its products with all keys, `[V]`.
    pub logits: Vec<f32>,
}

/// One completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Its tokens, the first and the one that ended it included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Tokens that went through the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cost {
    /// Of prompts, as far as they were not stored already.
    pub read_tokens: usize,
    /// Of completions, first tokens included.
    pub generated_tokens: usize,
}

impl Cost {
    /// What was spent since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            read_tokens: self.read_tokens - earlier.read_tokens,
            generated_tokens: self.generated_tokens - earlier.generated_tokens,
        }
    }
}

/// Chooses next tokens.
pub trait Choose {
    /// One id for each row of `logits` `[rows, V]`; `branches` says which completion a row belongs to.
    fn choose(&mut self, branches: &[usize], logits: &mut [f32]) -> Result<Vec<u32>>;

    /// Whether a choice depends on the other branches, so that all must be in one batch.
    fn is_joint(&self) -> bool {
        false
    }
}

/// The likeliest token, the lowest id among equals.
pub struct Greedy(Sampler);

impl Greedy {
    /// Greedy decoding.
    pub fn new() -> Result<Self> {
        Sampler::new(SamplingConfig::default()).map(Self)
    }
}

impl Choose for Greedy {
    fn choose(&mut self, branches: &[usize], logits: &mut [f32]) -> Result<Vec<u32>> {
        let width = logits.len() / branches.len().max(1);
        logits
            .chunks_exact_mut(width)
            .map(|row| self.0.sample(row, &[]))
            .collect()
    }
}

/// Ancestral sampling; every completion has a stream of its own, so what it says hangs on no other.
pub struct Sampled(Vec<Sampler>);

impl Sampled {
    /// `count` samplers under `config`, in streams named after `name`.
    pub fn new(config: &SamplingConfig, name: &str, count: usize) -> Result<Self> {
        let one = |branch: usize| Sampler::in_stream(config.clone(), &format!("{name}/{branch}"));
        (0..count).map(one).collect::<Result<_>>().map(Self)
    }
}

impl Choose for Sampled {
    fn choose(&mut self, branches: &[usize], logits: &mut [f32]) -> Result<Vec<u32>> {
        let width = logits.len() / branches.len().max(1);
        let rows = branches.iter().zip(logits.chunks_exact_mut(width));
        rows.map(|(&branch, row)| self.0[branch].sample(row, &[])).collect()
    }
}

/// Diverse beam search (Vijayakumar et al. 2016) with groups of one beam: at each step the groups choose one after the
/// other, and a token costs `penalty` for each earlier group that has chosen it at this step (Hamming diversity).
pub struct DiverseBeam {
    /// Logarithm of probability per earlier choice.
    pub penalty: f32,
}

impl Choose for DiverseBeam {
    fn choose(&mut self, branches: &[usize], logits: &mut [f32]) -> Result<Vec<u32>> {
        let width = logits.len() / branches.len().max(1);
        let mut greedy = Greedy::new()?;
        let mut chosen: Vec<u32> = Vec::with_capacity(branches.len());
        for (row, branch) in logits.chunks_exact_mut(width).zip(branches) {
            for &id in &chosen {
                row[id as usize] -= self.penalty;
            }
            chosen.extend(greedy.choose(&[*branch], row)?);
        }
        Ok(chosen)
    }

    fn is_joint(&self) -> bool {
        true
    }
}

/// How a single completion is decoded, for comparisons with the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Simple {
    /// With the prompt's stored keys and values, one token per forward pass.
    Cached,
    /// With nothing stored: the whole text is read again for every token, as in the paper's released code.
    Reencoded,
}

/// The engine.
pub struct Completer<'m, B: Backend> {
    session: Session<'m, B>,
    /// What the session has read.
    stored: Vec<u32>,
    last: Option<Reading>,
    /// Ids that end a text.
    eos: &'m [u32],
    texts: &'m TokenTexts,
    batch: usize,
    cost: Cost,
    stopped: &'m dyn Fn() -> bool,
}

/// Sizes of a [`Completer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct EngineLimits {
    /// Tokens that a prompt may have.
    pub prompt_tokens: usize,
    /// Tokens that a completion may have.
    pub completion_tokens: usize,
    /// Completions in one forward pass.
    pub batch: usize,
}

impl EngineLimits {
    /// The session that these need.
    pub fn session(self) -> SessionLimits {
        SessionLimits {
            max_context: self.prompt_tokens + self.batch * self.completion_tokens,
            prefill_chunk: self.batch.max(256),
            diagnose: false,
        }
    }
}

impl<'m, B: Backend> Completer<'m, B> {
    /// An engine over `decoder`; `stopped` is asked before every forward pass.
    pub fn new(
        decoder: &'m Decoder<B>,
        texts: &'m TokenTexts,
        eos: &'m [u32],
        limits: EngineLimits,
        stopped: &'m dyn Fn() -> bool,
    ) -> Result<Self> {
        Ok(Self {
            session: Session::new(decoder, &PolicyConfig::Dense, limits.session())?,
            stored: Vec::new(),
            last: None,
            eos,
            texts,
            batch: limits.batch.max(1),
            cost: Cost::default(),
            stopped,
        })
    }

    /// Tokens so far.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// The texts of the vocabulary.
    pub fn texts(&self) -> &'m TokenTexts {
        self.texts
    }

    fn check_stopped(&self) -> Result<()> {
        if (self.stopped)() {
            return Err(Error::interrupted("interrupted"));
        }
        Ok(())
    }

    /// Reads a prompt; what is stored of it already is not read again.
    pub fn read(&mut self, prompt: &[u32]) -> Result<Reading> {
        if let Some(reading) = self.last.as_ref().filter(|_| self.stored == prompt) {
            return Ok(reading.clone());
        }
        let rows = self.extend(prompt)?;
        let row = rows - 1..rows;
        let reading = Reading {
            query: self.session.final_hidden(row.clone()),
            logits: self.session.logits_of_rows(row)?,
        };
        self.last = Some(reading.clone());
        Ok(reading)
    }

    /// Brings the session to `prompt`; rows of the last forward pass, at least one.
    fn extend(&mut self, prompt: &[u32]) -> Result<usize> {
        if prompt.is_empty() {
            return Err(Error::user("the prompt is empty: there is no token to continue from"));
        }
        let shared = self.stored.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is always read: its hidden state is the query.
        let shared = shared.min(prompt.len() - 1);
        self.last = None;
        self.session.truncate(shared);
        self.stored.truncate(shared);
        let mut rows = 0;
        for chunk in prompt[shared..].chunks(self.batch.max(256)) {
            self.check_stopped()?;
            self.session.forward(chunk, Phase::Prefill)?;
            self.stored.extend(chunk);
            rows = chunk.len();
        }
        self.cost.read_tokens += prompt.len() - shared;
        Ok(rows)
    }

    /// Completes `prompt` one token at a time, each by a forward pass of `reading`; for comparisons. See [`Simple`].
    pub fn complete_simply(
        &mut self,
        prompt: &[u32],
        first: u32,
        rule: &StopRule,
        most: usize,
        simple: Simple,
    ) -> Result<Completion> {
        let mut greedy = Greedy::new()?;
        let mut completion = Completion {
            ids: vec![first],
            finish: Finish::Length,
        };
        if simple == Simple::Cached {
            self.read(prompt)?;
        }
        while !self.ends(&mut completion, rule, most) {
            self.check_stopped()?;
            let mut logits = match simple {
                Simple::Cached => {
                    let id = completion.ids.last().copied().unwrap_or(first);
                    self.session.forward(&[id], Phase::Decode)?;
                    self.session.logits(0)?
                }
                Simple::Reencoded => {
                    self.forget();
                    self.read(&[prompt, &completion.ids].concat())?.logits
                }
            };
            self.texts.forbid_padding(&mut logits);
            completion.ids.extend(greedy.choose(&[0], &mut logits)?);
        }
        match simple {
            Simple::Cached => self.session.truncate(self.stored.len()),
            Simple::Reencoded => self.forget(),
        }
        Ok(completion)
    }

    /// Completes `prompt` from each of `firsts`, each with at most `most` tokens.
    pub fn complete(
        &mut self,
        prompt: &[u32],
        firsts: &[u32],
        rule: &StopRule,
        most: usize,
        choose: &mut dyn Choose,
    ) -> Result<Vec<Completion>> {
        if choose.is_joint() && firsts.len() > self.batch {
            return Err(Error::bug("a joint choice over more branches than a batch holds"));
        }
        self.read(prompt)?;
        let mut all = Vec::with_capacity(firsts.len());
        for (number, firsts) in firsts.chunks(self.batch).enumerate() {
            let batch = self.complete_batch(number * self.batch, firsts, rule, most, choose);
            self.session.truncate(self.stored.len());
            all.extend(batch?);
        }
        Ok(all)
    }

    fn complete_batch(
        &mut self,
        base: usize,
        firsts: &[u32],
        rule: &StopRule,
        most: usize,
        choose: &mut dyn Choose,
    ) -> Result<Vec<Completion>> {
        let prefix: Vec<u32> = (0..self.stored.len() as u32).collect();
        let mut done: Vec<Completion> = firsts
            .iter()
            .map(|&first| Completion {
                ids: vec![first],
                finish: Finish::Length,
            })
            .collect();
        self.cost.generated_tokens += firsts.len();
        let mut lists: Vec<Vec<u32>> = Vec::new();
        let mut active: Vec<usize> = Vec::new();
        for (branch, completion) in done.iter_mut().enumerate() {
            if !self.ends(completion, rule, most) {
                active.push(branch);
                lists.push(prefix.clone());
            }
        }
        while !active.is_empty() {
            self.check_stopped()?;
            let ids: Vec<u32> = active.iter().filter_map(|&b| done[b].ids.last().copied()).collect();
            self.session.forward_branches(&ids, &mut lists)?;
            let mut logits = self.session.logits_of_rows(0..ids.len())?;
            self.texts.forbid_padding(&mut logits);
            let branches: Vec<usize> = active.iter().map(|branch| base + branch).collect();
            let chosen = choose.choose(&branches, &mut logits)?;
            self.cost.generated_tokens += chosen.len();
            let mut going = Vec::with_capacity(active.len());
            for (&branch, id) in active.iter().zip(chosen) {
                done[branch].ids.push(id);
                going.push(!self.ends(&mut done[branch], rule, most));
            }
            let mut keep = going.iter();
            active.retain(|_| keep.next() == Some(&true));
            let mut keep = going.iter();
            lists.retain(|_| keep.next() == Some(&true));
        }
        Ok(done)
    }

    /// Whether the completion ends with its last token; notes why.
    fn ends(&self, completion: &mut Completion, rule: &StopRule, most: usize) -> bool {
        let Some(&id) = completion.ids.last() else { return true };
        let text = self.texts.get(id).unwrap_or_default();
        completion.finish = if rule.end_of_text && self.eos.contains(&id) {
            Finish::EndOfText
        } else if text.contains(rule.within_token) {
            Finish::StopString
        } else if completion.ids.len() >= most {
            Finish::Length
        } else {
            return false;
        };
        true
    }

    /// The mean of the normed final hidden states over the tokens of a text by itself, `[hidden]`: its embedding by the
    /// model's own measure.
    pub fn embed(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let width = self.session.decoder().config.hidden_size;
        let mut sum = vec![0.0f64; width];
        self.forget();
        for chunk in ids.chunks(self.batch.max(256)) {
            self.check_stopped()?;
            self.session.forward(chunk, Phase::Prefill)?;
            for row in self.session.final_hidden(0..chunk.len()).chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x));
            }
        }
        self.cost.read_tokens += ids.len();
        self.forget();
        Ok(sum.iter().map(|s| (s / ids.len().max(1) as f64) as f32).collect())
    }

    /// Drops what is stored, so that the next prompt is read from its start.
    pub fn forget(&mut self) {
        self.session.truncate(0);
        self.stored.clear();
        self.last = None;
    }
}
