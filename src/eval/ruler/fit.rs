//! Fitting a prompt to a length: how many units of haystack, counted in the model's tokens.

use std::ops::RangeInclusive;

use crate::error::{Error, Result};
use crate::eval::{CountTokens, Example};

/// A prompt under construction.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Draft {
    pub prompt: String,
    pub answer_prefix: String,
    pub answers: Vec<String>,
    pub depth: Option<f64>,
}

impl Draft {
    /// The finished example.
    pub fn example(self, id: String) -> Example {
        Example {
            id,
            prompt: self.prompt,
            answer_prefix: self.answer_prefix,
            answers: self.answers,
            options: Vec::new(),
            depth: self.depth,
        }
    }
}

/// What a prompt must fit into.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// Name of the task, for errors.
    pub task: &'a str,
    /// Tokens of prompt, answer prefix and answer.
    pub length: usize,
    /// Tokens kept for the answer.
    pub max_new_tokens: usize,
    pub tokens: &'a dyn CountTokens,
}

/// Share of the length that may stay empty: 1 / 100.
const TOLERANCE: usize = 100;

impl Frame<'_> {
    /// Tokens that prompt and answer prefix may take.
    fn room(&self) -> usize {
        self.length.saturating_sub(self.max_new_tokens)
    }

    fn count(&self, draft: &Draft) -> Result<usize> {
        self.tokens.count(&format!("{}{}", draft.prompt, draft.answer_prefix))
    }

    /// True if the draft is not longer than the room for it.
    pub fn holds(&self, draft: &Draft) -> Result<bool> {
        Ok(self.count(draft)? <= self.room())
    }

    /// Builds the longest draft that fits.
    ///
    /// `build(units, fill)` makes a draft of that many units of haystack and of that many pieces of finer filler. First
    /// the units are fitted without filler. Only where whole units would leave more than 1 % of the length empty, filler
    /// follows: long prompts keep the structure of the benchmark to the letter. Every count is of the whole text, since
    /// tokens of joined pieces do not add up; the number of units comes from the slope between two counts, so that a few
    /// counts do even for long prompts.
    pub fn fit(
        &self,
        units: RangeInclusive<usize>,
        most_fill: usize,
        mut build: impl FnMut(usize, usize) -> Result<Draft>,
    ) -> Result<Draft> {
        let fitted = self.most(units, self.length / 4 / TOLERANCE, |n| build(n, 0))?;
        if most_fill == 0 || self.room() - fitted.tokens <= self.length / TOLERANCE {
            return Ok(fitted.draft);
        }
        let filled = self.most(0..=most_fill, self.length / 2 / TOLERANCE, |f| build(fitted.units, f))?;
        Ok(filled.draft)
    }

    /// The most units that fit; fewer if they leave at most `enough` tokens empty.
    fn most(
        &self,
        units: RangeInclusive<usize>,
        enough: usize,
        mut build: impl FnMut(usize) -> Result<Draft>,
    ) -> Result<Fitted> {
        /// Units of the first step, from which tokens per unit are learnt.
        const FIRST_STEP: usize = 8;
        let room = self.room();
        let (first, last) = (*units.start(), *units.end());
        let draft = build(first)?;
        let mut best = Fitted {
            units: first,
            tokens: self.count(&draft)?,
            draft,
        };
        if best.tokens > room {
            return Err(self.too_short(best.tokens));
        }
        let mut too_many = last.saturating_add(1);
        let mut next = first.saturating_add(FIRST_STEP);
        // Learning the slope on an eighth of the text costs an eighth of a count and saves a whole one.
        let mut targets = [room / 8, room.saturating_sub(enough / 2)].into_iter();
        let mut target = targets.next().unwrap_or(room);
        while best.units + 1 < too_many {
            next = next.clamp(best.units + 1, too_many - 1);
            let draft = build(next)?;
            let tokens = self.count(&draft)?;
            let per_unit = ((tokens as f64 - best.tokens as f64) / (next - best.units) as f64).max(1e-3);
            if tokens <= room {
                best = Fitted {
                    units: next,
                    tokens,
                    draft,
                };
                if room - tokens <= enough || ((room - tokens) as f64) < 0.9 * per_unit {
                    break;
                }
            } else {
                too_many = next;
            }
            while best.tokens >= target {
                let Some(later) = targets.next() else { break };
                target = later;
            }
            let ahead = target.saturating_sub(best.tokens) as f64 / per_unit;
            next = best.units.saturating_add((ahead as usize).max(1));
            if next >= too_many {
                // The slope points at what is known not to fit: halve the interval.
                next = best.units + (too_many - best.units) / 2;
            }
        }
        Ok(best)
    }

    fn too_short(&self, tokens: usize) -> Error {
        let needed = tokens + self.max_new_tokens;
        Error::user(format!(
            "`{}` does not fit into {} tokens: its shortest example takes {needed}",
            self.task, self.length
        ))
        .note(format!(
            "prompt {tokens} tokens · answer {} tokens, with this tokenizer",
            self.max_new_tokens
        ))
        .help(format!("ask for a length of at least {}", needed + needed / 50))
    }
}

struct Fitted {
    units: usize,
    tokens: usize,
    draft: Draft,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::WhitespaceTokens;
    use proptest::prelude::*;

    fn draft(words: usize) -> Draft {
        Draft {
            prompt: "a ".repeat(words),
            answer_prefix: String::new(),
            answers: Vec::new(),
            depth: None,
        }
    }

    fn frame(length: usize) -> Frame<'static> {
        Frame {
            task: "t",
            length,
            max_new_tokens: 10,
            tokens: &WhitespaceTokens,
        }
    }

    proptest! {
        #[test]
        fn fits_within_one_percent(length in 200_usize..20_000, unit in 1_usize..120, fixed in 0_usize..80) {
            let text = frame(length).fit(1..=usize::MAX / 2, 500, |n, f| Ok(draft(fixed + n * unit + f))).unwrap();
            let tokens = text.prompt.split_whitespace().count() + 10;
            prop_assert!(tokens <= length && length - tokens <= length / 100, "{tokens} of {length}");
        }
    }

    #[test]
    fn a_long_prompt_takes_few_counts() {
        struct Counting(std::sync::atomic::AtomicUsize);
        impl CountTokens for Counting {
            fn count(&self, text: &str) -> Result<usize> {
                self.0.fetch_add(text.len(), std::sync::atomic::Ordering::Relaxed);
                Ok(text.split_whitespace().count())
            }
        }
        let tokens = Counting(0.into());
        let frame = Frame {
            tokens: &tokens,
            ..frame(100_000)
        };
        let text = frame.fit(1..=usize::MAX / 2, 0, |n, _| Ok(draft(n * 5))).unwrap();
        let counted = tokens.0.into_inner() as f64 / text.prompt.len() as f64;
        assert!(counted < 2.5, "counted {counted} times the text");
    }

    #[test]
    fn a_short_length_says_what_is_needed() {
        let message = frame(50)
            .fit(1..=100, 0, |n, _| Ok(draft(60 * n)))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("`t` does not fit into 50 tokens: its shortest example takes 70"),
            "{message}"
        );
        assert!(message.contains("at least 71"), "{message}");
    }

    #[test]
    fn the_largest_number_of_units_is_reached() {
        let text = frame(1000).fit(0..=7, 0, |n, _| Ok(draft(n))).unwrap();
        assert_eq!(text.prompt.split_whitespace().count(), 7);
    }
}
