//! The passkey task: a five-digit key somewhere in repeated sentences (Mohtashami and Jaggi, arXiv 2305.16300, §4.2).
//!
//! The layout is the published one: instruction, noise, the sentence with the key, noise, question. The noise is five short
//! sentences in turns; the text is as long in tokens as asked for, to within one sentence.

use super::task::{CountTokens, Example, Metric, Request, Task};
use crate::error::{Error, Result};
use crate::random::stream_rng;
use rand::Rng;
use serde_json::json;

const INSTRUCTION: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. \
                           I will quiz you about the important information there.";
/// Literally as published, because its repetition is what makes the task.
const NOISE: [&str; 5] = [
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
];
const QUESTION: &str = "What is the pass key?";
pub(crate) const ANSWER_PREFIX: &str = "The pass key is";
/// Between question and answer prefix.
pub(crate) const PROMPT_END: &str = "\n";

const METRICS: &[Metric] = &[Metric {
    name: "exact_key",
    source: "the first run of digits of the answer is the key",
}];

/// Finds a five-digit key in repeated sentences.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passkey;

impl Passkey {
    pub(crate) fn prompt(key: &str, before: usize, after: usize) -> String {
        let noise = |sentences: usize| {
            NOISE
                .iter()
                .cycle()
                .take(sentences)
                .copied()
                .collect::<Vec<_>>()
                .join(" ")
        };
        let needle = format!("The pass key is {key}. Remember it. {key} is the pass key.");
        [INSTRUCTION, &noise(before), &needle, &noise(after), QUESTION]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn tokens(tokens: &dyn CountTokens, prompt: &str) -> Result<usize> {
        tokens.count(&[prompt, PROMPT_END, ANSWER_PREFIX].concat())
    }

    /// Sentences of noise so that prompt and answer prefix take at most `room` tokens, and as many as that allows.
    fn sentences(key: &str, room: usize, depth: f64, tokens: &dyn CountTokens) -> Result<usize> {
        const SAMPLE: usize = 16 * NOISE.len();
        let cost = |sentences: usize| {
            let before = sentences_before(sentences, depth);
            Self::tokens(tokens, &Self::prompt(key, before, sentences - before))
        };
        let bare = cost(0)?;
        if bare > room {
            return Err(Error::user(format!(
                "a passkey text of {room} tokens has no room for instruction and question, which take {bare}"
            ))
            .help("pass longer `--lengths`, such as 512 or 4k"));
        }
        // Cost grows by nearly the same for every sentence, so a few secant steps land within one or two.
        let each = (cost(SAMPLE)?.saturating_sub(bare) as f64 / SAMPLE as f64).max(1.0);
        let mut sentences = ((room - bare) as f64 / each) as usize;
        for _ in 0..3 {
            let miss = room as f64 - cost(sentences)? as f64;
            let step = (miss / each).floor() as isize;
            if step == 0 {
                break;
            }
            sentences = sentences.saturating_add_signed(step);
        }
        while sentences > 0 && cost(sentences)? > room {
            sentences -= 1;
        }
        while cost(sentences + 1)? <= room {
            sentences += 1;
        }
        Ok(sentences)
    }
}

fn sentences_before(sentences: usize, depth: f64) -> usize {
    ((sentences as f64 * depth).round() as usize).min(sentences)
}

impl Task for Passkey {
    fn name(&self) -> &'static str {
        "passkey"
    }

    fn suite(&self) -> &'static str {
        "passkey"
    }

    fn max_new_tokens(&self) -> usize {
        16
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn settings(&self) -> serde_json::Value {
        json!({"max_new_tokens": self.max_new_tokens()})
    }

    fn example(&self, request: &Request<'_>) -> Result<Example> {
        let length = request
            .length
            .ok_or_else(|| Error::user("the passkey task needs a length").help("pass `--lengths`, such as 4k"))?;
        let mut rng = stream_rng(request.seed, &format!("passkey/{length}/{}", request.index));
        let key = rng.random_range(10_000..100_000_u32).to_string();
        let drawn = rng.random_range(0.0..=1.0);
        let depth = request.depth.unwrap_or(drawn);
        let room = length.saturating_sub(self.max_new_tokens());
        let sentences = Self::sentences(&key, room, depth, request.tokens)?;
        let before = sentences_before(sentences, depth);
        Ok(Example {
            id: format!("{:04}", request.index),
            prompt: Self::prompt(&key, before, sentences - before) + PROMPT_END,
            answer_prefix: ANSWER_PREFIX.to_owned(),
            answers: vec![key],
            options: Vec::new(),
            depth: Some(depth),
        })
    }

    fn score(&self, example: &Example, answer: &str) -> Vec<f64> {
        let digits: String = answer
            .chars()
            .skip_while(|letter| !letter.is_ascii_digit())
            .take_while(char::is_ascii_digit)
            .collect();
        vec![f64::from(example.answers.first() == Some(&digits))]
    }
}

#[cfg(test)]
mod tests {
    use super::super::task::WhitespaceTokens;
    use super::*;
    use proptest::prelude::*;

    fn request(index: usize, length: usize, depth: Option<f64>) -> Request<'static> {
        Request {
            index,
            length: Some(length),
            depth,
            seed: 7,
            tokens: &WhitespaceTokens,
        }
    }

    /// Four bytes per token: another tokenizer than words.
    struct Bytes;

    impl CountTokens for Bytes {
        fn count(&self, text: &str) -> Result<usize> {
            Ok(text.len().div_ceil(4))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_text_is_as_long_as_asked_for_and_holds_the_key_where_asked(
            length in 600usize..20_000, depth in 0.0f64..=1.0, index in 0usize..1000, words in any::<bool>(),
        ) {
            let tokens: &dyn CountTokens = if words { &WhitespaceTokens } else { &Bytes };
            let request = Request { tokens, ..request(index, length, Some(depth)) };
            let example = Passkey.example(&request).unwrap();
            let taken = tokens.count(&[example.prompt.as_str(), ANSWER_PREFIX].concat()).unwrap() + Passkey.max_new_tokens();
            prop_assert!(taken <= length && taken as f64 >= 0.99 * length as f64, "{taken} of {length}");
            let key = &example.answers[0];
            prop_assert_eq!(example.prompt.matches(key.as_str()).count(), 2);
            let place = example.prompt.find(key.as_str()).unwrap() as f64 / example.prompt.len() as f64;
            prop_assert!((place - depth).abs() < 0.12, "{place} for {depth}");
            prop_assert_eq!(Passkey.example(&request).unwrap(), example);
        }
    }

    #[test]
    fn examples_differ_by_index_and_not_by_depth() {
        let of = |index, depth| Passkey.example(&request(index, 500, depth)).unwrap();
        assert_ne!(of(0, None).answers, of(1, None).answers);
        assert_eq!(of(3, Some(0.0)).answers, of(3, Some(1.0)).answers);
        assert!((0.0..=1.0).contains(&of(3, None).depth.unwrap()));
    }

    #[test]
    fn a_length_without_room_is_refused_with_the_tokens_it_takes() {
        let error = Passkey.example(&request(0, 20, None)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.message().contains("of 4 tokens has no room"), "{error}");
    }

    #[test]
    fn the_first_number_of_the_answer_counts() {
        let example = Passkey.example(&request(0, 500, None)).unwrap();
        let key = &example.answers[0];
        for (answer, score) in [
            (format!(" {key}."), 1.0),
            (format!("{key}, not 11111"), 1.0),
            (format!("1{key}"), 0.0),
            (format!("{key}1"), 0.0),
            (format!("11111 {key}"), 0.0),
            (String::new(), 0.0),
        ] {
            assert_eq!(Passkey.score(&example, &answer), [score], "{answer}");
        }
    }
}
