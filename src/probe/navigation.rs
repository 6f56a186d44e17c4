//! In-context navigation, and what it is compared with: ways to ask a model for many different answers.
//!
//! ICN lists what was found in the prompt and asks for the next item: the new query should have small products with the
//! keys that were explored. Only the first token of an answer comes from that prompt; the rest continues the prompt without
//! a list, so that listed answers cannot leak into it (arXiv 2410.02284, released code).

use super::clusters::Clustering;
use super::completion::{Choose, Completer, Completion, DiverseBeam, Greedy, Reading, Sampled, TokenTexts};
use super::key_space::Rows;
use super::lists::Question;
use super::prompts::ListPrompts;
use super::repulsion;
use crate::error::{Error, Result};
use crate::kernels::Backend;
use crate::model::sampling::SamplingConfig;
use crate::model::tokenizer::Tokenizer;
use std::collections::HashSet;

/// How answers are explored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Found answers are listed, first tokens come from that prompt, the rest from the prompt without a list
    Icn,
    /// The same, and the rest continues the prompt with the list
    IcnContinued,
    /// The same as icn with a list of unrelated things, as many as icn would list
    IcnPlacebo,
    /// The best first tokens of the prompt without a list
    Top,
    /// Answers sampled at a temperature
    Temperature,
    /// Answers sampled from the likeliest tokens
    TopP,
    /// Diverse beam search with groups of one beam (arXiv 1610.02424)
    DiverseBeam,
    /// First tokens in rounds; clusters of explored ones cost logits
    ClusterPenalty,
    /// First tokens in rounds; explored keys are projected out of the query
    KeyProjection,
}

impl Method {
    /// Every method, in the order of the tables.
    pub const ALL: [Self; 9] = [
        Self::Icn,
        Self::IcnContinued,
        Self::IcnPlacebo,
        Self::Top,
        Self::Temperature,
        Self::TopP,
        Self::DiverseBeam,
        Self::ClusterPenalty,
        Self::KeyProjection,
    ];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Icn => "icn",
            Self::IcnContinued => "icn-continued",
            Self::IcnPlacebo => "icn-placebo",
            Self::Top => "top",
            Self::Temperature => "temperature",
            Self::TopP => "top-p",
            Self::DiverseBeam => "diverse-beam",
            Self::ClusterPenalty => "cluster-penalty",
            Self::KeyProjection => "key-projection",
        }
    }

    /// Whether its answers hang on the seed.
    pub fn is_random(self) -> bool {
        matches!(self, Self::Temperature | Self::TopP | Self::IcnPlacebo)
    }
}

/// Sizes and strengths.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Settings {
    /// Queries; after each, what was found counts as explored.
    pub rounds: usize,
    /// Answers of a round.
    pub step: usize,
    /// Tokens that an answer may take.
    pub max_new_tokens: usize,
    /// Of [`Method::Temperature`].
    pub temperature: f32,
    /// Of [`Method::TopP`], at temperature 1.
    pub top_p: f32,
    /// Of [`Method::DiverseBeam`].
    pub beam_penalty: f32,
    /// Logits that each explored token takes from the others of its cluster.
    pub cluster_penalty: f32,
    /// Share of the query's part in the span of explored keys that is taken away.
    pub projection: f32,
}

impl Settings {
    /// N: answers of an exploration.
    pub fn answers(&self) -> usize {
        self.rounds * self.step
    }
}

/// One answer, not judged yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Round, from 0; 0 for methods without rounds.
    pub round: usize,
    /// First token.
    pub first: u32,
    /// The answer; `None` if its quote was never closed.
    pub text: Option<String>,
    /// Generated tokens, the first and the closing one included.
    pub tokens: usize,
}

/// A round of a method that navigates, before its answers are completed.
pub struct Round<'a> {
    /// Its number, from 0.
    pub number: usize,
    /// What the prompt of this round left in the model.
    pub navigated: &'a Reading,
    /// First tokens of the earlier rounds.
    pub explored: &'a [u32],
    /// Answers in the prompt.
    pub listed: usize,
    /// Answers that did not fit into it.
    pub dropped: usize,
}

/// Is shown every round; may read prompts of its own with the engine.
pub type Observe<'o, 'm, B> = dyn FnMut(&mut Completer<'m, B>, &Round<'_>) -> Result<()> + 'o;

/// What exploring needs besides the engine.
pub struct Explorer<'a> {
    /// Writes prompts.
    pub prompts: ListPrompts<'a>,
    /// Of the model.
    pub tokenizer: &'a Tokenizer,
    /// For [`Method::ClusterPenalty`].
    pub clusters: Option<&'a Clustering>,
    /// For [`Method::KeyProjection`].
    pub keys: Option<&'a Rows>,
    /// Sizes.
    pub settings: Settings,
}

/// Chooses first tokens and remembers which texts they had: a text is probed once.
struct Firsts<'a> {
    texts: &'a TokenTexts,
    probed: HashSet<String>,
    /// In the order of their choice.
    tokens: Vec<u32>,
}

impl Firsts<'_> {
    fn new(texts: &TokenTexts) -> Firsts<'_> {
        Firsts {
            texts,
            probed: HashSet::new(),
            tokens: Vec::new(),
        }
    }

    /// The `count` best by `logits` whose texts were not chosen before; fewer if the vocabulary ends.
    fn take(&mut self, logits: &[f32], count: usize) -> Vec<u32> {
        let mut taken = Vec::with_capacity(count);
        for id in self.texts.ranked(logits) {
            if taken.len() == count {
                break;
            }
            let text = self.texts.get(id).unwrap_or_default();
            if self.probed.insert(text.to_owned()) {
                taken.push(id);
            }
        }
        self.tokens.extend(&taken);
        taken
    }
}

impl Explorer<'_> {
    /// Asks `question` by `method`. `unrelated` are things to list for [`Method::IcnPlacebo`], at least one per answer.
    pub fn explore<'m, B: Backend>(
        &self,
        completer: &mut Completer<'m, B>,
        method: Method,
        question: &Question,
        unrelated: &[String],
        seed: u64,
        observe: &mut Observe<'_, 'm, B>,
    ) -> Result<Vec<Found>> {
        let start = self.prompts.with_list(&question.instruction, &[])?.ids;
        let settings = &self.settings;
        match method {
            Method::Top => {
                let logits = completer.read(&start)?.logits;
                let firsts = Firsts::new(completer.texts()).take(&logits, settings.answers());
                self.complete(completer, &start, &firsts, 0, &mut Greedy::new()?)
            }
            Method::Temperature | Method::TopP => {
                let config = SamplingConfig {
                    temperature: if method == Method::TopP {
                        1.0
                    } else {
                        settings.temperature
                    },
                    top_p: (method == Method::TopP).then_some(settings.top_p),
                    seed,
                    ..SamplingConfig::default()
                };
                let name = format!("navigate/{}/{}", question.id, method.name());
                let mut sampled = Sampled::new(&config, &name, settings.answers())?;
                self.all_at_once(completer, &start, &mut sampled)
            }
            Method::DiverseBeam => {
                let mut beams = DiverseBeam {
                    penalty: settings.beam_penalty,
                };
                self.all_at_once(completer, &start, &mut beams)
            }
            Method::Icn | Method::IcnContinued | Method::IcnPlacebo => {
                self.navigate(completer, method, question, &start, unrelated, observe)
            }
            Method::ClusterPenalty | Method::KeyProjection => self.repelled(completer, method, &start),
        }
    }

    /// All answers from one prompt; `choose` takes the first tokens, too.
    fn all_at_once<B: Backend>(
        &self,
        completer: &mut Completer<'_, B>,
        start: &[u32],
        choose: &mut dyn Choose,
    ) -> Result<Vec<Found>> {
        let mut logits = completer.read(start)?.logits;
        let texts = completer.texts();
        for (id, logit) in (0..).zip(&mut logits) {
            if texts.get(id).is_none() {
                *logit = f32::NEG_INFINITY;
            }
        }
        let branches: Vec<usize> = (0..self.settings.answers()).collect();
        let firsts = choose.choose(&branches, &mut logits.repeat(branches.len()))?;
        self.complete(completer, start, &firsts, 0, choose)
    }

    fn complete<B: Backend>(
        &self,
        completer: &mut Completer<'_, B>,
        prompt: &[u32],
        firsts: &[u32],
        round: usize,
        choose: &mut dyn Choose,
    ) -> Result<Vec<Found>> {
        let form = self.prompts.form;
        let completions = completer.complete(prompt, firsts, &form.rule(), self.settings.max_new_tokens, choose)?;
        let found = |completion: &Completion| {
            let text = self.tokenizer.decode(&completion.ids, true)?;
            Ok(Found {
                round,
                first: completion.ids[0],
                text: form.item(&text, completion.finish).map(str::to_owned),
                tokens: completion.ids.len(),
            })
        };
        completions.iter().map(found).collect()
    }

    fn navigate<'m, B: Backend>(
        &self,
        completer: &mut Completer<'m, B>,
        method: Method,
        question: &Question,
        start: &[u32],
        unrelated: &[String],
        observe: &mut Observe<'_, 'm, B>,
    ) -> Result<Vec<Found>> {
        let mut firsts = Firsts::new(completer.texts());
        let mut all: Vec<Found> = Vec::new();
        for number in 0..self.settings.rounds {
            let closed = all.iter().filter_map(|found| found.text.clone());
            let listed: Vec<String> = match method {
                Method::IcnPlacebo => closed.zip(unrelated).map(|(_, other)| other.clone()).collect(),
                _ => closed.collect(),
            };
            let prompt = self.prompts.with_list(&question.instruction, &listed)?;
            let navigated = completer.read(&prompt.ids)?;
            observe(
                completer,
                &Round {
                    number,
                    navigated: &navigated,
                    explored: &firsts.tokens,
                    listed: listed.len() - prompt.dropped,
                    dropped: prompt.dropped,
                },
            )?;
            let taken = firsts.take(&navigated.logits, self.settings.step);
            let from = if method == Method::IcnContinued {
                &prompt.ids
            } else {
                start
            };
            all.extend(self.complete(completer, from, &taken, number, &mut Greedy::new()?)?);
        }
        Ok(all)
    }

    /// Rounds without a list: explored tokens change the logits of the one prompt.
    fn repelled<B: Backend>(
        &self,
        completer: &mut Completer<'_, B>,
        method: Method,
        start: &[u32],
    ) -> Result<Vec<Found>> {
        let reading = completer.read(start)?;
        let mut firsts = Firsts::new(completer.texts());
        let mut all = Vec::new();
        for number in 0..self.settings.rounds {
            let logits = if method == Method::ClusterPenalty {
                let clusters = self
                    .clusters
                    .ok_or_else(|| Error::bug("a cluster penalty without clusters"))?;
                repulsion::penalised(&reading.logits, clusters, &firsts.tokens, self.settings.cluster_penalty)
            } else {
                let keys = self.keys.ok_or_else(|| Error::bug("a projection without keys"))?;
                repulsion::projected(&reading, keys, &firsts.tokens, self.settings.projection)
            };
            let taken = firsts.take(&logits, self.settings.step);
            all.extend(self.complete(completer, start, &taken, number, &mut Greedy::new()?)?);
        }
        Ok(all)
    }
}
