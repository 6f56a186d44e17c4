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

/// Whether the ids `yes` are more likely together than the ids `no`; `None` if the logits do not say.
fn prefers(logits: &[f32], yes: &[u32], no: &[u32]) -> Option<bool> {
    // Of each set its largest logit and the rest beside it, so that no set vanishes beside a far larger logit.
    let log_mass = |ids: &[u32]| {
        let of = |&id: &u32| f64::from(logits[id as usize]);
        let most = ids.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        most + ids.iter().map(|id| (of(id) - most).exp()).sum::<f64>().ln()
    };
    let (yes, no) = (log_mass(yes), log_mass(no));
    (yes.is_finite() && no.is_finite()).then_some(yes > no)
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
        let correct = prefers(&logits, &self.yes, &self.no).ok_or_else(|| {
            Error::environment(format!(
                "the model gives no numbers when it is asked whether `{answer}` is right: its logits of yes and no are not \
                 finite"
            ))
            .help("check the model's weights, or pass `--judge list` or `--judge-command`")
        })?;
        Ok(Verdict {
            correct,
            member: question.find(answer).map(|at| question.answers[at].clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likelier_word_wins_over_all_its_spellings() {
        // Two spellings of yes at 1.0 together weigh 2e, one of no at 1.5 weighs 1.65e.
        assert_eq!(prefers(&[1.0, 1.0, 1.5], &[0, 1], &[2]), Some(true));
        assert_eq!(prefers(&[1.0, 0.9, 1.9], &[0], &[2]), Some(false));
        // Equal is not yes.
        assert_eq!(prefers(&[2.0, 2.0], &[0], &[1]), Some(false));
        // Far below another token, where a plain exponential would be 0 for both.
        assert_eq!(prefers(&[5000.0, -10.0, -11.0], &[1], &[2]), Some(true));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(prefers(&[bad, 1.0], &[0], &[1]), None, "{bad}");
        }
        // One spelling that cannot come does not matter.
        assert_eq!(prefers(&[f32::NEG_INFINITY, 3.0, 1.0], &[0, 1], &[2]), Some(true));
    }
}
