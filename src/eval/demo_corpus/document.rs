//! A training document: text whose stretches say how much predicting them should count.

use super::Kind;

/// How much the loss counts for the tokens of a stretch, in sixteenths; what the shards store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Weight {
    /// Cannot be predicted: numbers, uuids and keys where they first occur, choices made at random.
    Unpredictable = 0,
    /// Fixed wording around the material.
    Wording = 1,
    /// Prose, lists and solutions.
    Language = 8,
    /// Known from training alone: the members of a category.
    Fact = 17,
    /// Known from the text above: the second pass of a repetition.
    Repeated = 24,
    /// An answer that the text above contains; evaluation counts exactly these.
    Answer = 64,
}

/// Text with the weight of each stretch.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// What kind of document it is.
    pub kind: Kind,
    text: String,
    /// End (in bytes) and weight of each stretch, ascending; neighbours differ in weight.
    stretches: Vec<(usize, Weight)>,
}

impl Document {
    /// An empty document.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            text: String::new(),
            stretches: Vec::new(),
        }
    }

    /// Appends a stretch.
    pub fn push(&mut self, text: &str, weight: Weight) {
        if text.is_empty() {
            return;
        }
        self.text.push_str(text);
        match self.stretches.last_mut() {
            Some((end, last)) if *last == weight => *end = self.text.len(),
            _ => self.stretches.push((self.text.len(), weight)),
        }
    }

    /// Appends stretches.
    pub(super) fn push_all(&mut self, item: &[(String, Weight)]) {
        for (text, weight) in item {
            self.push(text, *weight);
        }
    }

    /// Appends another document, stretch by stretch.
    pub fn append(&mut self, other: &Self) {
        for (text, weight) in other.stretches() {
            self.push(text, weight);
        }
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The stretches in order.
    pub fn stretches(&self) -> impl Iterator<Item = (&str, Weight)> {
        let mut start = 0;
        self.stretches.iter().map(move |&(end, weight)| {
            let text = &self.text[start..end];
            start = end;
            (text, weight)
        })
    }

    /// End of each stretch in bytes, with its weight.
    pub fn ends(&self) -> &[(usize, Weight)] {
        &self.stretches
    }
}

/// About how many tokens the demo tokenizer makes of `text`: digits, signs, runs of capitals and the letters of uuids one
/// each, a word one for every five letters begun. Documents are cut to length by this, so that making them needs no
/// tokenizer.
pub fn estimated_tokens(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digit_at = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let (mut tokens, mut at) = (0, 0);
    let mut after_space = false;
    while at < bytes.len() {
        let run = bytes[at..].iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
        let capitals = bytes[at..at + run.min(2)]
            .iter()
            .filter(|byte| byte.is_ascii_uppercase())
            .count();
        // A space before a word or a sign belongs to its token; before what stands alone it is one itself.
        let space = usize::from(after_space);
        after_space = false;
        match bytes[at] {
            b' ' => after_space = true,
            _ if run == 0 => tokens += 1 + if digit_at(at) { space } else { 0 },
            _ if capitals > 1 || digit_at(at + run) || at > 0 && digit_at(at - 1) => tokens += run + space,
            _ => tokens += run.div_ceil(5),
        }
        at += run.max(1);
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_weight_merge_and_empty_stretches_vanish() {
        let mut document = Document::new(Kind::Needle);
        document.push("a", Weight::Wording);
        document.push("", Weight::Answer);
        document.push("b", Weight::Wording);
        document.push("c", Weight::Answer);
        let stretches: Vec<_> = document.stretches().collect();
        assert_eq!(stretches, [("ab", Weight::Wording), ("c", Weight::Answer)]);
    }

    #[test]
    fn estimates_count_digits_and_words() {
        assert_eq!(estimated_tokens("The cat is 42."), 3 + 1 + 2 + 1);
        assert_eq!(estimated_tokens("a VAR ABC b"), 1 + 4 + 4 + 1);
        assert_eq!(estimated_tokens("12ab-ab34"), 4 + 1 + 4);
        assert_eq!(estimated_tokens(""), 0);
    }
}
