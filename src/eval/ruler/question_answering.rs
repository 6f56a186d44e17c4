//! Question answering among distracting documents (RULER, section 3.4).

use rand::seq::{SliceRandom, index};
use serde_json::json;

use super::fit::{Draft, Frame};
use super::knowledge;
use super::material::Material;
use super::place::Place;
use super::qa_data::QuestionSet;
use super::template::{DOCUMENT, QUESTION_ANSWERING, fill};
use crate::error::Result;
use crate::eval::Request;

/// Which questions are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QaDataset {
    /// One document holds the answer.
    Squad,
    /// The answer follows from two documents.
    HotpotQa,
}

/// Settings of question answering; field names are RULER's.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct QaSettings {
    /// The kind of question.
    pub dataset: QaDataset,
    /// Tokens that the answer may take.
    pub tokens_to_generate: usize,
}

impl QaSettings {
    /// RULER's settings for a data set.
    pub fn new(dataset: QaDataset) -> Self {
        Self {
            dataset,
            tokens_to_generate: QUESTION_ANSWERING.tokens_to_generate,
        }
    }
}

/// A question with what is needed to answer it.
pub(super) struct Asked {
    pub query: String,
    pub answers: Vec<String>,
    /// The documents that hold the answer.
    pub gold: Vec<String>,
}

impl QaSettings {
    pub(super) fn draft(&self, place: &Place<'_>, request: &Request<'_>, material: &Material) -> Result<Draft> {
        let frame = place.frame(request, self.tokens_to_generate);
        match material.questions(self.dataset) {
            Some(set) => written(set, place, request, &frame),
            None => self.invented(place, request, &frame),
        }
    }

    fn invented(&self, place: &Place<'_>, request: &Request<'_>, frame: &Frame<'_>) -> Result<Draft> {
        let mut world = knowledge::World::new(place.rng("world"));
        let asked = world.question(self.dataset);
        let mut others: Vec<String> = Vec::new();
        assemble(&asked, place, request, frame, |n| {
            while others.len() < n {
                others.push(world.document());
            }
            others[..n].to_vec()
        })
    }

    pub(super) fn record(&self, material: &Material) -> serde_json::Value {
        let mut record = json!(self);
        record["source"] = match material.questions(self.dataset) {
            Some(set) => json!({ "sha256": set.sha256 }),
            None => "synthetic".into(),
        };
        record
    }
}

/// The question of the example's index, or the next that fits, in steps that lead past the neighbours.
fn written(set: &QuestionSet, place: &Place<'_>, request: &Request<'_>, frame: &Frame<'_>) -> Result<Draft> {
    /// Prime, so that any number of questions is gone through.
    const STEP: usize = 7919;
    const TRIES: usize = 100;
    let mut rng = place.rng("distractors");
    let mut last = None;
    for attempt in 0..TRIES.min(set.questions.len()) {
        let question = &set.questions[(place.index() + attempt * STEP) % set.questions.len()];
        let asked = Asked {
            query: question.query.clone(),
            answers: question.answers.clone(),
            gold: question.gold.iter().map(|&i| set.documents[i].clone()).collect(),
        };
        let alone = show(&asked, &asked.gold, None);
        if !frame.holds(&alone)? {
            last = Some(asked);
            continue;
        }
        // First the documents next to the gold one, as in RULER, then any others; all again where they run out.
        let mut related = question.related.clone();
        related.shuffle(&mut rng);
        let mut others = Vec::with_capacity(set.documents.len());
        others.extend(&related);
        others.extend(
            index::sample(&mut rng, set.documents.len(), set.documents.len())
                .into_iter()
                .filter(|i| !question.gold.contains(i) && !related.contains(i)),
        );
        return assemble(&asked, place, request, frame, |n| {
            others
                .iter()
                .cycle()
                .take(n)
                .map(|&i| set.documents[i].clone())
                .collect()
        });
    }
    match last {
        Some(asked) => frame.fit(0..=0, 0, |_, _| Ok(show(&asked, &asked.gold, None))),
        None => Err(crate::error::Error::bug("a set of questions is empty")),
    }
}

/// Fits gold and distracting documents. Where whole documents would leave more than 1 % empty, one more is shortened.
fn assemble(
    asked: &Asked,
    place: &Place<'_>,
    request: &Request<'_>,
    frame: &Frame<'_>,
    mut others: impl FnMut(usize) -> Vec<String>,
) -> Result<Draft> {
    /// More words than a document has.
    const MOST_WORDS: usize = 2000;
    let order = place.rng("order");
    frame.fit(0..=usize::MAX / 2, MOST_WORDS, |whole, words| {
        let mut rest = others(whole + usize::from(words > 0));
        if words > 0
            && let Some(short) = rest.last_mut()
        {
            *short = first_words(short, words);
        }
        let mut order = order.clone();
        rest.shuffle(&mut order);
        let gold = asked.gold.len();
        let at: Vec<usize> = if let Some(depth) = request.depth {
            vec![(depth.clamp(0.0, 1.0) * rest.len() as f64).round() as usize; gold]
        } else {
            let mut places = index::sample(&mut order, rest.len() + gold, gold).into_vec();
            places.sort_unstable();
            // Places among all documents, as places among the others.
            places.iter().enumerate().map(|(before, at)| at - before).collect()
        };
        let mut documents = Vec::with_capacity(rest.len() + gold);
        let mut taken = 0;
        for i in 0..=rest.len() {
            while taken < gold && at[taken] == i {
                documents.push(asked.gold[taken].clone());
                taken += 1;
            }
            documents.extend(rest.get(i).cloned());
        }
        let depth = (gold == 1 || request.depth.is_some()).then(|| match rest.len() {
            0 => 0.0,
            others => at[0] as f64 / others as f64,
        });
        Ok(show(asked, &documents, depth))
    })
}

fn show(asked: &Asked, documents: &[String], depth: Option<f64>) -> Draft {
    let shown: Vec<String> = documents
        .iter()
        .enumerate()
        .map(|(i, document)| fill(DOCUMENT, &[("i", &(i + 1).to_string()), ("document", document)]))
        .collect();
    Draft {
        prompt: fill(
            QUESTION_ANSWERING.prompt,
            &[("context", &shown.join("\n\n")), ("query", &asked.query)],
        ),
        answer_prefix: QUESTION_ANSWERING.answer_prefix.to_owned(),
        answers: asked.answers.clone(),
        depth,
    }
}

/// The text up to the end of its word number `count`.
fn first_words(text: &str, count: usize) -> String {
    let end = text
        .char_indices()
        .zip(text.chars().skip(1))
        .filter(|((_, c), next)| !c.is_whitespace() && next.is_whitespace())
        .map(|((at, c), _)| at + c.len_utf8())
        .nth(count - 1)
        .unwrap_or(text.len());
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::first_words;

    #[test]
    fn a_document_is_cut_between_words() {
        let text = "Title\nOne twö  three.";
        assert_eq!(first_words(text, 1), "Title");
        assert_eq!(first_words(text, 3), "Title\nOne twö");
        assert_eq!(first_words(text, 9), text);
    }
}
