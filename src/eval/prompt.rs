//! Prompts from a benchmark's template, and their cut to a length.

use super::CountTokens;
use crate::error::{Error, Result};

/// A prompt but for its context, which stands between the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Up to the context.
    before: String,
    /// From the context on: the question, as a rule.
    after: String,
}

/// Fills `{name}` places of `template`; what is filled in is not looked at again. The template has one `{context}`.
pub(crate) fn frame(template: &str, values: &[(&str, &str)]) -> Result<Frame> {
    let faulty = |what: &str| Error::bug(format!("the prompt template {template:?} {what}"));
    let mut before = None;
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((plain, place)) = rest.split_once('{') {
        text.push_str(plain);
        let (name, after) = place.split_once('}').ok_or_else(|| faulty("has an open place"))?;
        rest = after;
        if name == "context" {
            if before.replace(std::mem::take(&mut text)).is_some() {
                return Err(faulty("has two contexts"));
            }
            continue;
        }
        let value = values.iter().find(|(known, _)| *known == name);
        let (_, value) = value.ok_or_else(|| faulty(&format!("has an unknown place `{name}`")))?;
        text.push_str(value);
    }
    text.push_str(rest);
    Ok(Frame {
        before: before.ok_or_else(|| faulty("has no context"))?,
        after: text,
    })
}

/// The template with the blank lines taken out, which is how the `TokenSelect` repository has all of them.
pub(crate) fn without_blank_lines(template: &str) -> String {
    template.replace("\n\n ", "\n").replace("\n\n", "\n")
}

impl Frame {
    /// The whole prompt.
    pub(crate) fn prompt(&self, context: &str) -> String {
        [&self.before, context, &self.after].concat()
    }

    /// The prompt cut in the middle of its context, so that it and `max_new_tokens` take at most `length` tokens: half of
    /// the budget from the start of the prompt and half from its end, as both benchmarks cut. The instruction before the
    /// context and the question after it stay whole; what one half cannot use, the other gets.
    pub(crate) fn fitted(
        &self,
        context: &str,
        length: Option<usize>,
        max_new_tokens: usize,
        tokens: &dyn CountTokens,
    ) -> Result<String> {
        let whole = self.prompt(context);
        let Some(length) = length else {
            return Ok(whole);
        };
        let budget = length.saturating_sub(max_new_tokens);
        if tokens.count(&whole)? <= budget {
            return Ok(whole);
        }
        let (before, after) = (tokens.count(&self.before)?, tokens.count(&self.after)?);
        let mut room = budget.saturating_sub(before + after);
        while room > 0 {
            // When the instruction or the question is longer than its half, its side of the context pays for it.
            let tail = (budget / 2).saturating_sub(after).min(room);
            let head = room - tail;
            let kept = [start(context, head, tokens)?, end(context, tail, tokens)?].concat();
            let prompt = self.prompt(&kept);
            let count = tokens.count(&prompt)?;
            if count <= budget {
                return Ok(prompt);
            }
            // Tokens merge and split where the parts meet, so the sum can be a few off.
            room = room.saturating_sub(count - budget);
        }
        Err(
            Error::user(format!("a length of {length} tokens leaves no room for the context"))
                .note(format!(
                    "instruction and question take {} tokens, the answer {max_new_tokens}",
                    before + after
                ))
                .help("ask for a longer length, or leave the task out"),
        )
    }
}

/// The longest start of `text` with at most `most` tokens.
fn start<'a>(text: &'a str, most: usize, tokens: &dyn CountTokens) -> Result<&'a str> {
    longest(text.len(), most, tokens, |mut bytes| {
        while !text.is_char_boundary(bytes) {
            bytes -= 1;
        }
        &text[..bytes]
    })
}

/// The longest end of `text` with at most `most` tokens.
fn end<'a>(text: &'a str, most: usize, tokens: &dyn CountTokens) -> Result<&'a str> {
    longest(text.len(), most, tokens, |bytes| {
        let mut from = text.len() - bytes;
        while !text.is_char_boundary(from) {
            from += 1;
        }
        &text[from..]
    })
}

/// The longest piece, of at most `size` bytes, with at most `most` tokens. A tokenizer reads megabytes in a second, so
/// this guesses from the bytes per token seen so far and rarely needs more than a few counts.
fn longest<'a>(
    size: usize,
    most: usize,
    tokens: &dyn CountTokens,
    piece: impl Fn(usize) -> &'a str,
) -> Result<&'a str> {
    if most == 0 {
        return Ok(piece(0));
    }
    // `low` bytes fit; `high` do not.
    let (mut low, mut high) = (0, size + 1);
    let mut guess = most.saturating_mul(4).min(size);
    while high - low > 1 {
        let guessed = guess.clamp(low + 1, high - 1);
        let count = tokens.count(piece(guessed))?;
        if count <= most {
            low = guessed;
        } else {
            high = guessed;
        }
        if count == most && high - low <= 16 {
            break;
        }
        let per_token = (guessed as f64 / count.max(1) as f64).max(1.0);
        let next = guessed as f64 + (most as f64 - count as f64) * per_token;
        // A guess that does not move ends in a bisection.
        guess = if next > low as f64 + 1.0 && next < high as f64 - 1.0 && (next as usize) != guessed {
            next as usize
        } else {
            low + (high - low) / 2
        };
    }
    Ok(piece(low))
}

#[cfg(test)]
mod tests {
    use super::super::WhitespaceTokens;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn places_are_filled_once() {
        let made = frame("Q {a}\n{context}\n{b}!", &[("a", "{b}"), ("b", "2")]).unwrap();
        assert_eq!(made.prompt("{a}"), "Q {b}\n{a}\n2!");
        for template in ["no context", "{context}{context}", "{context}{x}", "{context"] {
            assert!(frame(template, &[]).is_err(), "{template}");
        }
    }

    #[test]
    fn the_middle_of_the_context_goes_and_the_question_stays() {
        let made = frame("read this {context} what is it", &[]).unwrap();
        let context: Vec<String> = (0..100).map(|n| format!("w{n}")).collect();
        let context = context.join(" ");
        let fit = |length| made.fitted(&context, Some(length), 5, &WhitespaceTokens);
        let prompt = fit(25).unwrap();
        assert!(prompt.starts_with("read this w0 w1 w2 w3 w4 w5 w6 w7"), "{prompt}");
        assert!(prompt.ends_with("w98 w99 what is it"), "{prompt}");
        assert!(!prompt.contains("w50"));
        assert_eq!(fit(110).unwrap(), made.prompt(&context));
        assert_eq!(
            made.fitted(&context, None, 5, &WhitespaceTokens).unwrap(),
            made.prompt(&context)
        );
        let error = fit(10).unwrap_err();
        assert!(error.to_string().contains("take 5 tokens, the answer 5"), "{error}");
    }

    proptest! {
        #[test]
        fn it_fits_and_uses_what_it_may(words in prop::collection::vec("[aé中]{1,9}", 40..80), length in 14_usize..60) {
            let made = frame("a b {context} c d e", &[]).unwrap();
            let context = words.join(" ");
            let prompt = made.fitted(&context, Some(length), 3, &WhitespaceTokens).unwrap();
            let count = WhitespaceTokens.count(&prompt).unwrap();
            prop_assert!(count <= length - 3);
            // The two ends may meet inside a word.
            prop_assert!(count + 3 >= (length - 3).min(words.len() + 5), "{} of {}", count, length - 3);
            prop_assert!(prompt.starts_with("a b ") && prompt.ends_with(" c d e"));
        }
    }
}
