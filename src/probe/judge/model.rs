//! A model as judge: does it rather say yes or no?

use super::{Judge, Verdict, wording};
use crate::error::{Error, Result};
use crate::kernels::Backend;
use crate::model::prompt::PromptEncoder;
use crate::probe::completion::Completer;
use crate::probe::lists::Question;

/// Compares how likely the model's answer begins with yes and with no; no words need to be parsed.
pub struct ModelJudge<'m, B: Backend> {
    completer: Completer<'m, B>,
    encoder: PromptEncoder<'m>,
    yes: Vec<u32>,
    no: Vec<u32>,
}

/// Ids whose text begins `word` in any case, alone or as its start (`Y` of a tokenizer of letters counts for `Yes`).
fn beginning<B: Backend>(completer: &Completer<'_, B>, word: &str) -> Vec<u32> {
    let texts = completer.texts();
    let is_start = |text: &str| {
        let text = text.trim_start().to_lowercase();
        !text.is_empty() && (text == word || word.starts_with(&text))
    };
    (0..texts.len() as u32)
        .filter(|&id| texts.get(id).is_some_and(is_start))
        .collect()
}

impl<'m, B: Backend> ModelJudge<'m, B> {
    /// Judges by the model of `completer`, asked through the template of `encoder` if it has one.
    pub fn new(completer: Completer<'m, B>, encoder: PromptEncoder<'m>) -> Result<Self> {
        let (yes, no) = (beginning(&completer, "yes"), beginning(&completer, "no"));
        if yes.is_empty() || no.is_empty() {
            return Err(
                Error::user("the model cannot judge: its vocabulary has no token that begins yes or no")
                    .help("pass `--judge list` or `--judge-command`"),
            );
        }
        Ok(Self {
            completer,
            encoder,
            yes,
            no,
        })
    }
}

impl<B: Backend> Judge for ModelJudge<'_, B> {
    fn verdict(&mut self, question: &Question, answer: &str) -> Result<Verdict> {
        let asked = wording(&question.instruction, answer);
        let prompt = match self.encoder.template {
            Some(_) => self.encoder.question(&asked, "", true)?,
            None => self.encoder.plain(&format!("{asked}\n\nAnswer:"))?,
        };
        let logits = self.completer.read(&prompt.ids)?.logits;
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mass = |ids: &[u32]| -> f64 { ids.iter().map(|&id| f64::from(logits[id as usize] - most).exp()).sum() };
        Ok(Verdict {
            correct: mass(&self.yes) > mass(&self.no),
            member: question.find(answer).map(|at| question.answers[at].clone()),
        })
    }
}
