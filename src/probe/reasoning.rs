//! Several paths of thought to one problem, and the answer that most of them give.
//!
//! As in navigation, earlier paths in the prompt choose a new first token, and the path itself is decoded as the first one
//! (arXiv 2410.02284, released code for GSM8K, SVAMP and `AQuA`).

use super::completion::{Choose, Completer, Completion, Cost, Greedy, Sampled, StopRule};
use super::problems::{Gold, Parsed, Problem};
use super::prompts::too_long;
use crate::error::{Error, Result};
use crate::eval::demo_corpus::{FINAL_ANSWER, HEADER, INSTRUCTION};
use crate::kernels::Backend;
use crate::model::prompt::PromptEncoder;
use crate::model::sampling::SamplingConfig;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What precedes the letter of a choice.
const FINAL_CHOICE: &str = "**Final Answer (select from A, B, C, D, E):**";
/// First tokens are taken from so many of the ranking.
const POOL: usize = 100;

/// How paths are explored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PathMethod {
    /// Earlier paths are listed; the new first token comes from that prompt, the path from the one without
    Icn,
    /// The best first tokens of the prompt without a list
    Top,
    /// Paths sampled at a temperature: self-consistency (arXiv 2203.11171)
    Sampling,
    /// The one greedy path
    Greedy,
}

impl PathMethod {
    /// Every method, in the order of the tables.
    pub const ALL: [Self; 4] = [Self::Icn, Self::Top, Self::Sampling, Self::Greedy];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Icn => "icn",
            Self::Top => "top",
            Self::Sampling => "sampling",
            Self::Greedy => "greedy",
        }
    }
}

/// How the text around paths is spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wording {
    /// As in the paper's released code: single line breaks, the final answer after an opened quote
    Released,
    /// As in the demo model's training text: blank lines, no quote
    Taught,
}

/// Sizes of an exploration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PathSettings {
    /// Paths of every method but greedy.
    pub paths: usize,
    /// Tokens that a path may take.
    pub path_tokens: usize,
    /// Tokens that the final answer may take.
    pub answer_tokens: usize,
    /// Of [`PathMethod::Sampling`].
    pub temperature: f32,
    /// Of the text.
    pub wording: Wording,
}

/// One path and the answers read at its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// Text of the first token.
    pub first: String,
    /// What it says.
    pub text: String,
    /// Whether it came to its end within its tokens.
    pub closed: bool,
    /// Generated tokens, those of the answer left out.
    pub tokens: usize,
    /// What follows "Final Answer".
    pub answer: String,
    /// By the released parser.
    pub released: Parsed,
    /// By the corrected parser.
    pub corrected: Parsed,
}

/// A problem under one method: what a sample holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reasoned {
    /// Which problem.
    pub problem: String,
    /// Name of the method.
    pub method: String,
    /// Seed of its draws.
    pub seed: u64,
    /// The paths in their order.
    pub paths: Vec<Path>,
    /// Whether the most frequent answer is right, by the released parser.
    pub majority_released: bool,
    /// The same by the corrected parser.
    pub majority_corrected: bool,
    /// Tokens read and generated.
    pub cost: Cost,
    /// Seconds.
    pub wall_s: f64,
}

/// The most frequent value, the earliest of equally frequent ones. Paths without a value vote for nothing if `skip_none`, else
/// for having none, as in the released code.
pub fn majority(values: &[Option<&str>], skip_none: bool) -> Option<usize> {
    let mut best: Option<(usize, usize)> = None;
    for (at, value) in values.iter().enumerate() {
        if skip_none && value.is_none() {
            continue;
        }
        let votes = values.iter().filter(|other| *other == value).count();
        if best.is_none_or(|(_, most)| votes > most) {
            best = Some((at, votes));
        }
    }
    best.map(|(at, _)| at)
}

/// Asks problems.
pub struct Reasoner<'a> {
    /// Writes prompts.
    pub encoder: PromptEncoder<'a>,
    /// Sizes.
    pub settings: PathSettings,
    /// Tokens that prompt and completion may have together.
    pub context_tokens: usize,
}

impl Reasoner<'_> {
    /// Refuses a problem that leaves no room for a path and its answer.
    pub fn check(&self, problem: &Problem) -> Result<()> {
        let PathSettings {
            path_tokens,
            answer_tokens,
            ..
        } = self.settings;
        self.prompt(problem, &[])?;
        let asked = self.final_prompt(problem, "")?.len();
        let most = self.context_tokens.saturating_sub(path_tokens + answer_tokens);
        if asked > most {
            return Err(too_long(&problem.question, asked, most));
        }
        Ok(())
    }

    fn gap(&self) -> &'static str {
        match self.settings.wording {
            Wording::Released => "\n",
            Wording::Taught => "\n\n",
        }
    }

    fn encode(&self, question: &str, answer: &str) -> Result<Vec<u32>> {
        let asked = format!("{question}\n\n{INSTRUCTION}");
        let encoded = match self.encoder.template {
            Some(_) => self.encoder.question(&asked, answer, true)?,
            None => self.encoder.plain(&format!("{asked}\n\n{answer}"))?,
        };
        Ok(encoded.ids)
    }

    /// The prompt with earlier paths, up to where the next one begins. Where they are too many, the earliest are left out and
    /// the rest numbered from 1.
    fn prompt(&self, problem: &Problem, paths: &[Path]) -> Result<Vec<u32>> {
        let most = self.context_tokens.saturating_sub(self.settings.path_tokens);
        let mut dropped = 0;
        loop {
            let ids = self.prompt_of(problem, &paths[dropped..])?;
            if ids.len() <= most {
                return Ok(ids);
            }
            if dropped == paths.len() {
                return Err(too_long(&problem.question, ids.len(), most));
            }
            dropped += 1;
        }
    }

    fn prompt_of(&self, problem: &Problem, paths: &[Path]) -> Result<Vec<u32>> {
        let gap = self.gap();
        let listed = (1..)
            .zip(paths)
            .map(|(number, path)| format!("### Way {number}:\n{}{gap}", path.text));
        let next = format!("### Way {}:\n{STEP}", paths.len() + 1);
        let answer: String = std::iter::once(format!("{HEADER}{gap}"))
            .chain(listed)
            .chain([next])
            .collect();
        self.encode(&problem.question, &answer)
    }

    /// The prompt that asks for the answer at the end of a path.
    fn final_prompt(&self, problem: &Problem, path: &str) -> Result<Vec<u32>> {
        let label = match problem.gold {
            Gold::Number(..) => FINAL_ANSWER,
            Gold::Choice(_) => FINAL_CHOICE,
        };
        let answer = match self.settings.wording {
            Wording::Released => format!("{HEADER}\n{path}\n{label} \""),
            Wording::Taught => format!("{HEADER}\n\n### Way 1:\n{path}\n\n{label} "),
        };
        self.encode(&problem.question, &answer)
    }

    /// Explores paths and reads their answers.
    pub fn reason<B: Backend>(
        &self,
        completer: &mut Completer<'_, B>,
        method: PathMethod,
        problem: &Problem,
        seed: u64,
    ) -> Result<Reasoned> {
        // What the method before has left is no merit of this one.
        completer.forget();
        let started = std::time::Instant::now();
        let before = completer.cost();
        let start = self.prompt(problem, &[])?;
        let paths = match method {
            PathMethod::Icn => self.navigated(completer, problem, &start)?,
            PathMethod::Top | PathMethod::Greedy => {
                let logits = completer.read(&start)?.logits;
                let count = if method == PathMethod::Greedy {
                    1
                } else {
                    self.settings.paths
                };
                let mut probed = HashSet::new();
                let mut firsts = Vec::new();
                while let (true, Some(first)) = (firsts.len() < count, next_first(completer, &logits, &mut probed)) {
                    firsts.push(first);
                }
                self.paths(completer, problem, &start, &firsts, &mut Greedy::new()?)?
            }
            PathMethod::Sampling => {
                let config = SamplingConfig {
                    temperature: self.settings.temperature,
                    seed,
                    ..SamplingConfig::default()
                };
                let name = format!("reason/{}", problem.id);
                let mut sampled = Sampled::new(&config, &name, self.settings.paths)?;
                let mut logits = completer.read(&start)?.logits;
                completer.texts().forbid_padding(&mut logits);
                let branches: Vec<usize> = (0..self.settings.paths).collect();
                let firsts = sampled.choose(&branches, &mut logits.repeat(branches.len()))?;
                self.paths(completer, problem, &start, &firsts, &mut sampled)?
            }
        };
        let released: Vec<Option<&str>> = paths.iter().map(|p| p.released.value.as_deref()).collect();
        let corrected: Vec<Option<&str>> = paths.iter().map(|p| p.corrected.value.as_deref()).collect();
        Ok(Reasoned {
            problem: problem.id.clone(),
            method: method.name().to_owned(),
            seed,
            majority_released: majority(&released, false).is_some_and(|at| paths[at].released.correct),
            majority_corrected: majority(&corrected, true).is_some_and(|at| paths[at].corrected.correct),
            cost: completer.cost().since(before),
            wall_s: started.elapsed().as_secs_f64(),
            paths,
        })
    }

    fn navigated<B: Backend>(
        &self,
        completer: &mut Completer<'_, B>,
        problem: &Problem,
        start: &[u32],
    ) -> Result<Vec<Path>> {
        let mut probed = HashSet::new();
        let mut paths: Vec<Path> = Vec::new();
        for _ in 0..self.settings.paths {
            let logits = completer.read(&self.prompt(problem, &paths)?)?.logits;
            let Some(first) = next_first(completer, &logits, &mut probed) else {
                break;
            };
            paths.extend(self.paths(completer, problem, start, &[first], &mut Greedy::new()?)?);
        }
        Ok(paths)
    }

    fn paths<B: Backend>(
        &self,
        completer: &mut Completer<'_, B>,
        problem: &Problem,
        start: &[u32],
        firsts: &[u32],
        choose: &mut dyn Choose,
    ) -> Result<Vec<Path>> {
        let rule = StopRule {
            within_token: &['#'],
            end_of_text: true,
        };
        let completions = completer.complete(start, firsts, &rule, self.settings.path_tokens, choose)?;
        completions
            .iter()
            .map(|completion| self.path(completer, problem, completion))
            .collect()
    }

    /// Cuts a path out of its completion and asks for its answer.
    fn path<B: Backend>(
        &self,
        completer: &mut Completer<'_, B>,
        problem: &Problem,
        completion: &Completion,
    ) -> Result<Path> {
        let said = self.encoder.tokenizer.decode(&completion.ids, true)?;
        // A model that knows no second way goes on to its final answer.
        let end = ["#", "**Final Answer"].iter().filter_map(|mark| said.find(mark)).min();
        let text = format!("{STEP}{}", &said[..end.unwrap_or(said.len())])
            .trim_end()
            .to_owned();
        let rule = StopRule {
            within_token: match self.settings.wording {
                Wording::Released => &['"'],
                Wording::Taught => &['\n'],
            },
            end_of_text: true,
        };
        let prompt = self.final_prompt(problem, &text)?;
        let mut logits = completer.read(&prompt)?.logits;
        completer.texts().forbid_padding(&mut logits);
        let first = Greedy::new()?.choose(&[0], &mut logits)?;
        let answers = completer.complete(&prompt, &first, &rule, self.settings.answer_tokens, &mut Greedy::new()?)?;
        let answer = answers
            .first()
            .ok_or_else(|| Error::bug("one first token gave no completion"))?;
        let answer = self.encoder.tokenizer.decode(&answer.ids, true)?;
        let answer = match answer.find(rule.within_token) {
            Some(at) => answer[..at].to_owned(),
            None => answer,
        };
        Ok(Path {
            first: completer.texts().get(completion.ids[0]).unwrap_or_default().to_owned(),
            closed: end.is_some() || completion.finish != crate::model::generate::Finish::Length,
            tokens: completion.ids.len(),
            text,
            released: problem.read_as_released(&answer),
            corrected: problem.read(&answer),
            answer,
        })
    }
}

/// How every path begins.
const STEP: &str = "* **Step 1:**\n";

/// The best of the first [`POOL`] ranks whose text was not used before.
fn next_first<B: Backend>(completer: &Completer<'_, B>, logits: &[f32], probed: &mut HashSet<String>) -> Option<u32> {
    let texts = completer.texts();
    let ranked = texts.ranked(logits).into_iter().take(POOL);
    let mut fresh = ranked.filter_map(|id| texts.get(id).map(|text| (id, text)));
    let found = fresh.find(|(_, text)| !probed.contains(*text));
    found.map(|(id, text)| {
        probed.insert(text.to_owned());
        id
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_of_equally_frequent_answers_wins() {
        assert_eq!(majority(&[Some("3"), Some("5"), Some("5"), Some("3")], true), Some(0));
        assert_eq!(majority(&[Some("3"), Some("5"), Some("5"), None], true), Some(1));
        // Two paths without a number outvote one with: only by the released count.
        assert_eq!(majority(&[None, Some("5"), None], false), Some(0));
        assert_eq!(majority(&[None, Some("5"), None], true), Some(1));
        assert_eq!(majority(&[None, None], true), None);
        assert_eq!(majority(&[], false), None);
    }
}
