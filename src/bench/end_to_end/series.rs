//! One cell's repetitions, whoever measured them.

use super::baseline::Baseline;
use super::prefill::PrefillSample;
use super::{decode, prefill, samples_of};
use crate::error::Result;
use crate::report::{Measured, Sample};

/// The repetitions of one variant at one length.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    /// `prefill` or `decode`.
    pub phase: &'static str,
    /// Prompt tokens, or tokens stored before the step.
    pub tokens: usize,
    /// Policy and fate of its selection cache, or the other program.
    pub name: String,
    /// Seconds of the whole.
    pub total_s: Vec<f64>,
    /// Select and attend parts; `None` where they were not told apart.
    pub parts: Option<Parts>,
    /// Of the selection cache.
    pub hit_rate: Measured<f64>,
    /// Which program measured it.
    pub source: String,
}

/// Parts of each repetition.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Parts {
    pub select_s: Vec<f64>,
    pub attend_s: Vec<f64>,
}

impl Parts {
    /// Select and attend together.
    pub fn attention_s(&self) -> Vec<f64> {
        self.select_s.iter().zip(&self.attend_s).map(|(a, b)| a + b).collect()
    }
}

const OURS: &str = "tokselect";

/// Everything that was timed, by phase and length in the order of measuring, another program's times last.
pub(super) fn collect(samples: &[Sample], baseline: Option<&Baseline>) -> Result<Vec<Series>> {
    let mut all: Vec<Series> = Vec::new();
    for sample in in_rounds(samples_of(samples, prefill::TASK)?) {
        let same = |s: &&mut Series| s.tokens == sample.prompt_tokens && s.name == sample.policy;
        let series = if let Some(series) = all.iter_mut().find(same) {
            series
        } else {
            let at = all.len();
            all.push(Series {
                phase: prefill::TASK,
                tokens: sample.prompt_tokens,
                name: sample.policy.clone(),
                total_s: Vec::new(),
                parts: Some(Parts::default()),
                hit_rate: Measured::missing("the selection cache is not used in prefill"),
                source: OURS.to_owned(),
            });
            &mut all[at]
        };
        series.total_s.push(sample.total_s);
        if let Some(parts) = &mut series.parts {
            parts.select_s.push(sample.select_s);
            parts.attend_s.push(sample.attend_s);
        }
    }
    let mut steps: Vec<decode::DecodeSample> = samples_of(samples, decode::TASK)?;
    steps.sort_by_key(|sample| sample.stored_tokens);
    for sample in steps {
        let stored = sample.stored_tokens;
        all.extend(sample.variants.into_iter().map(|variant| Series {
            phase: decode::TASK,
            tokens: stored,
            name: variant.name,
            total_s: variant.step_s,
            parts: Some(Parts {
                select_s: variant.select_s,
                attend_s: variant.attend_s,
            }),
            hit_rate: variant.hit_rate,
            source: OURS.to_owned(),
        }));
    }
    Ok(match baseline {
        Some(baseline) => with_baseline(all, baseline),
        None => all,
    })
}

/// A resumed run may have made repetition 1 of one policy before repetition 0 of another: pairs go by number.
fn in_rounds(mut samples: Vec<PrefillSample>) -> Vec<PrefillSample> {
    let first_seen: Vec<(usize, String)> = samples
        .iter()
        .filter(|sample| sample.repetition == 0)
        .map(|sample| (sample.prompt_tokens, sample.policy.clone()))
        .collect();
    samples.sort_by_key(|sample| {
        let place = first_seen
            .iter()
            .position(|(tokens, policy)| *tokens == sample.prompt_tokens && *policy == sample.policy);
        (place.unwrap_or(usize::MAX), sample.repetition)
    });
    samples
}

/// Puts the other program's times behind ours of the same length.
fn with_baseline(ours: Vec<Series>, baseline: &Baseline) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::with_capacity(ours.len());
    let mut ours = ours.into_iter().peekable();
    while let Some(series) = ours.next() {
        let (phase, tokens) = (series.phase, series.tokens);
        all.push(series);
        let ends = ours
            .peek()
            .is_none_or(|next| (next.phase, next.tokens) != (phase, tokens));
        if ends && let Some(total_s) = baseline.repetitions(phase, tokens) {
            all.push(Series {
                phase,
                tokens,
                name: Baseline::NAME.to_owned(),
                total_s: total_s.to_vec(),
                parts: None,
                hit_rate: Measured::missing("no selection cache"),
                source: baseline.label.clone(),
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_paired_by_number_whatever_their_order() {
        let sample = |policy: &str, repetition: usize, total_s: f64| Sample {
            task: prefill::TASK.into(),
            id: format!("8/{policy}/{repetition}"),
            config_hash: "c".into(),
            data: serde_json::to_value(PrefillSample {
                policy: policy.into(),
                prompt_tokens: 8,
                repetition,
                total_s,
                select_s: 0.5,
                attend_s: 0.25,
            })
            .unwrap(),
        };
        let samples = [sample("dense", 1, 2.0), sample("dense", 0, 1.0), sample("x", 0, 3.0)];
        let found = collect(&samples, None).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].name.as_str(), found[0].total_s.as_slice()),
            ("dense", &[1.0, 2.0][..])
        );
        assert_eq!(found[0].parts.as_ref().unwrap().attention_s(), [0.75, 0.75]);
    }
}
