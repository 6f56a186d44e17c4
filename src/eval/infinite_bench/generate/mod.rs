//! The synthetic half of `InfiniteBench`, generated at any length.
//!
//! Passkey, number string and key-value retrieval follow the benchmark's own `construct_synthetic_dataset.py`. Of
//! Math.Find, Math.Calc and Code.Run only the data and their description (arXiv 2402.13718, section 3) are public, so here
//! their generators are ours, with the same questions, prompts and scores. What differs from the data set:
//!
//! - Examples have any length, met within 1 % (`kv_retrieval`: within 1 % or 8 tokens). Where whole lines would miss by
//!   more, noise sentences follow, a last key-value pair is shortened, or functions end with comments.
//! - Needles lie at a random depth, or at the one asked for, instead of on a grid of the index.
//! - Intermediate values of Math.Calc are never negative: the scores read no sign.
//! - The answer to Math.Calc gets 1024 tokens unless set otherwise, not 64000, so that it can be asked at short lengths. The
//!   score is the share of leading right values among all of them, so an answer that is cut cannot reach 1.

mod code;
mod math;
mod retrieval;

use serde_json::json;

use super::{METRICS, PromptSet, Subtask, score};
use crate::error::{Error, Result};
use crate::eval::ruler::fit::Draft;
use crate::eval::ruler::place::Place;
use crate::eval::ruler::template::fill;
use crate::eval::{Example, Metric, Request, Task};

/// The tasks that can be generated.
pub const GENERATED: [Subtask; 6] = [
    Subtask::Passkey,
    Subtask::NumberString,
    Subtask::KvRetrieval,
    Subtask::MathFind,
    Subtask::MathCalc,
    Subtask::CodeRun,
];

/// How to ask generated tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateSettings {
    /// Whose templates and answer lengths.
    pub prompts: PromptSet,
    /// Tokens that the answer to Math.Calc may take.
    pub math_calc_tokens: usize,
}

impl Default for GenerateSettings {
    fn default() -> Self {
        Self {
            prompts: PromptSet::default(),
            math_calc_tokens: 1024,
        }
    }
}

/// A generated task; an error if `subtask` needs the data set (books, dialogues, repositories).
pub fn generate(subtask: Subtask, settings: GenerateSettings) -> Result<Box<dyn Task>> {
    if !GENERATED.contains(&subtask) {
        return Err(
            Error::user(format!("`{subtask}` cannot be generated")).help("load it from the data of InfiniteBench")
        );
    }
    Ok(Box::new(Generated { subtask, settings }))
}

struct Generated {
    subtask: Subtask,
    settings: GenerateSettings,
}

/// An example before it is put into words: the fields of the data set, and what templates take out of `input`.
#[derive(Debug, Default)]
struct Fields {
    context: String,
    input: String,
    answers: Vec<String>,
    depth: Option<f64>,
    prefix: String,
    key: String,
    func: String,
    func_call: String,
}

impl Generated {
    fn put(&self, fields: Fields) -> Draft {
        let template = self.settings.prompts.template(self.subtask);
        let values = [
            ("context", fields.context.as_str()),
            ("input", &fields.input),
            ("prefix", &fields.prefix),
            ("key", &fields.key),
            ("func", &fields.func),
            ("func_call", &fields.func_call),
        ];
        Draft {
            prompt: fill(&template, &values),
            answer_prefix: String::new(),
            answers: fields.answers,
            depth: fields.depth,
        }
    }
}

impl Task for Generated {
    fn name(&self) -> &str {
        self.subtask.name()
    }

    fn suite(&self) -> &'static str {
        "infinite_bench"
    }

    fn max_new_tokens(&self) -> usize {
        match self.subtask {
            Subtask::MathCalc => self.settings.math_calc_tokens,
            subtask => self.settings.prompts.max_new_tokens(subtask),
        }
    }

    fn metrics(&self) -> &'static [Metric] {
        &METRICS
    }

    fn settings(&self) -> serde_json::Value {
        json!({
            "source": "generated",
            "prompts": self.settings.prompts.name(),
            "max_new_tokens": self.max_new_tokens(),
        })
    }

    fn example(&self, request: &Request<'_>) -> Result<Example> {
        let place = Place::new("infinite_bench", self.name(), request)?;
        if request.depth.is_some() && matches!(self.subtask, Subtask::MathCalc | Subtask::CodeRun) {
            return Err(Error::user(format!("`{}` has no needle to place", self.name())).help("leave the depths out"));
        }
        let fit = place.frame(request, self.max_new_tokens());
        let put = |fields| self.put(fields);
        let draft = match self.subtask {
            Subtask::NumberString => retrieval::number_string(&place, request.depth, &fit, put),
            Subtask::KvRetrieval => retrieval::key_value(&place, request.depth, &fit, put),
            Subtask::MathFind => math::find(&place, request.depth, &fit, put),
            Subtask::MathCalc => math::calculate(&place, &fit, put),
            Subtask::CodeRun => code::run(&place, &fit, put),
            _ => retrieval::passkey(&place, request.depth, &fit, put),
        }?;
        Ok(draft.example(place.id()))
    }

    fn score(&self, example: &Example, answer: &str) -> Vec<f64> {
        let scores = score(self.subtask, answer, &example.answers, &example.options);
        vec![scores.official, scores.token_select]
    }
}

/// The place of a needle among `pieces`, and how deep that is: the requested depth, or the drawn one.
fn needle_place(depth: Option<f64>, drawn: f64, pieces: usize) -> (usize, f64) {
    let at = (depth.unwrap_or(drawn).clamp(0.0, 1.0) * pieces as f64).round() as usize;
    (at, if pieces == 0 { 0.0 } else { at as f64 / pieces as f64 })
}
