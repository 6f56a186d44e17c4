//! Whether what will be timed is right: the fast backend against the plain one, selection of everything against dense.

use super::{Bench, Ended, append, samples_of};
use crate::bytes::human_bytes;
use crate::error::{Error, Result};
use crate::kernels::Backend;
use crate::kernels::reference::Reference;
use crate::model::decoder::{Decoder, Session};
use crate::model::weights::{ModelWeights, TensorSource, weight_bytes};
use crate::report::{Measured, Sample, SampleSink};
use crate::selection::{Phase, PolicyConfig, TokenSelectConfig};
use serde::{Deserialize, Serialize};

/// Name of the part in sample files.
pub const TASK: &str = "check";

/// Largest difference of logits between backends, relative to the largest logit. Both sum in f32 and in different
/// orders; 24 to 32 layers let that grow to about 1e-5, and a wrong kernel gives 1e-1 or more.
pub const BOUND: f64 = 1e-3;

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckSample {
    /// What was compared.
    pub check: String,
    /// Largest absolute difference of two logits.
    pub max_abs_difference: Measured<f64>,
    /// Largest absolute logit.
    pub logit_scale: Measured<f64>,
    /// The first over the second.
    pub relative_difference: Measured<f64>,
    /// `relative_difference` may be at most this.
    pub bound: f64,
    /// Logits compared.
    pub logits: usize,
    /// Whether it is within the bound; `None` if it was not run.
    pub passed: Option<bool>,
}

/// Runs the checks that `sink` does not have yet. `spare_bytes` is the memory that a second copy of the weights may
/// take, if known.
pub fn run<B: Backend>(
    bench: &Bench<'_, B>,
    source: &dyn TensorSource,
    spare_bytes: Option<usize>,
    sink: &mut dyn SampleSink,
) -> Result<Ended> {
    let backend = bench.decoder.backend.name();
    let name = format!("{backend} backend against reference");
    if !sink.is_done(TASK, "reference") {
        bench.status(&format!("checking the {backend} backend"));
        let Some(sample) = against_reference(bench, name, source, spare_bytes)? else {
            return Ok(Ended::Interrupted);
        };
        append(sink, TASK, "reference", &sample)?;
    }
    if !sink.is_done(TASK, "whole-budget") {
        let Some(sample) = whole_budget(bench)? else {
            return Ok(Ended::Interrupted);
        };
        append(sink, TASK, "whole-budget", &sample)?;
    }
    Ok(Ended::Finished)
}

/// The first check that failed, as an error.
pub fn verdict(samples: &[Sample]) -> Result<()> {
    let failed = samples_of::<CheckSample>(samples, TASK)?
        .into_iter()
        .find(|check| check.passed == Some(false));
    let Some(check) = failed else { return Ok(()) };
    let show = |value: &Measured<f64>| {
        value.get().map_or_else(
            || value.reason().unwrap_or_default().to_owned(),
            |value| format!("{value:.3e}"),
        )
    };
    Err(Error::acceptance(format!(
        "check `{}` failed: logits differ by {} of their scale, the bound is {:.1e}",
        check.check,
        show(&check.relative_difference),
        check.bound
    ))
    .note(format!(
        "largest difference {}, largest logit {}, {} logits compared",
        show(&check.max_abs_difference),
        show(&check.logit_scale),
        check.logits
    ))
    .note("times of wrong results mean nothing"))
}

/// Logits after the prompt and after one decode step; `None` if stopped. The prompt is cut as the session itself cuts it.
fn logits<B: Backend>(
    session: &mut Session<'_, B>,
    ids: &[u32],
    cuts: &[std::ops::Range<usize>],
    stopped: &dyn Fn() -> bool,
) -> Result<Option<Vec<f32>>> {
    let mut last = 0;
    for range in cuts {
        if stopped() {
            return Ok(None);
        }
        last = range.len() - 1;
        session.forward(&ids[range.clone()], Phase::Prefill)?;
    }
    let mut all = session.logits(last)?;
    session.forward(&ids[..1], Phase::Decode)?;
    all.extend(session.logits(0)?);
    Ok(Some(all))
}

fn against_reference<B: Backend>(
    bench: &Bench<'_, B>,
    name: String,
    source: &dyn TensorSource,
    spare_bytes: Option<usize>,
) -> Result<Option<CheckSample>> {
    let config = &bench.decoder.config;
    let needed = weight_bytes(&Reference, config);
    if let Some(spare) = spare_bytes.filter(|&spare| spare < needed) {
        let reason = format!(
            "not run: a second copy of the weights needs {}, {} are available",
            human_bytes(needed),
            human_bytes(spare)
        );
        return Ok(Some(CheckSample {
            check: name,
            max_abs_difference: Measured::missing(reason.as_str()),
            logit_scale: Measured::missing(reason.as_str()),
            relative_difference: Measured::missing(reason),
            bound: BOUND,
            logits: 0,
            passed: None,
        }));
    }
    let ids = bench.ids(bench.settings.check_tokens);
    let limits = bench.settings.limits(ids.len() + 1);
    let stopped = || bench.stopped();
    let mut fast = Session::new(bench.decoder, &PolicyConfig::Dense, limits)?;
    let cuts = fast.chunks(ids.len());
    let Some(found) = logits(&mut fast, &ids, &cuts, &stopped)? else {
        return Ok(None);
    };
    let plain = Decoder {
        config: config.clone(),
        weights: ModelWeights::load(&Reference, config, source, &mut |_| {})?,
        backend: Reference,
    };
    let mut plain = Session::new(&plain, &PolicyConfig::Dense, limits)?;
    let expected = logits(&mut plain, &ids, &cuts, &stopped)?;
    Ok(expected.map(|expected| compare(name, &found, &expected, BOUND)))
}

/// Token-select with room for every token takes the dense path: not one bit may differ.
fn whole_budget<B: Backend>(bench: &Bench<'_, B>) -> Result<Option<CheckSample>> {
    let configured = bench.settings.policies.iter().find_map(|policy| match policy {
        PolicyConfig::TokenSelect(config) => Some(config.clone()),
        _ => None,
    });
    let configured = configured.unwrap_or_default();
    let ids = bench.ids(bench.settings.check_tokens);
    let roomy = TokenSelectConfig {
        top_k: configured.top_k.max(ids.len() + 1),
        ..configured
    };
    let limits = bench.settings.limits(ids.len() + 1);
    let stopped = || bench.stopped();
    let mut selecting = Session::new(bench.decoder, &PolicyConfig::TokenSelect(roomy), limits)?;
    let cuts = selecting.chunks(ids.len());
    let mut dense = Session::new(bench.decoder, &PolicyConfig::Dense, limits)?;
    let (Some(found), Some(expected)) = (
        logits(&mut selecting, &ids, &cuts, &stopped)?,
        logits(&mut dense, &ids, &cuts, &stopped)?,
    ) else {
        return Ok(None);
    };
    let name = "token-select with a budget of all tokens against dense".to_owned();
    let mut sample = compare(name, &found, &expected, 0.0);
    sample.passed = Some(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
    Ok(Some(sample))
}

fn compare(check: String, found: &[f32], expected: &[f32], bound: f64) -> CheckSample {
    let largest = |values: &mut dyn Iterator<Item = f32>| {
        // A NaN must not pass for a small number, as `max` would have it.
        f64::from(values.fold(
            0.0f32,
            |most, value| if most.is_nan() || value <= most { most } else { value },
        ))
    };
    let difference = largest(&mut found.iter().zip(expected).map(|(a, b)| (a - b).abs()));
    let scale = largest(&mut expected.iter().map(|value| value.abs()));
    let relative = if difference == 0.0 { 0.0 } else { difference / scale };
    CheckSample {
        check,
        max_abs_difference: difference.into(),
        logit_scale: scale.into(),
        relative_difference: relative.into(),
        bound,
        logits: expected.len(),
        passed: Some(relative <= bound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_relative_to_the_largest_logit() {
        let sample = compare("x".into(), &[1.0, -8.0], &[1.5, -8.0], 0.1);
        assert_eq!(sample.relative_difference, Measured::Value(0.0625));
        assert_eq!(sample.passed, Some(true));
        assert_eq!(compare("x".into(), &[1.0], &[1.5], 0.1).passed, Some(false));
        assert_eq!(compare("x".into(), &[0.0], &[0.0], 0.0).passed, Some(true));
    }

    #[test]
    fn not_a_number_fails_and_is_named() {
        for (found, expected) in [([f32::NAN, 1.0], [1.0, 1.0]), ([1.0, 1.0], [f32::NAN, 1.0])] {
            let sample = compare("x".into(), &found, &expected, 1.0);
            assert_eq!(sample.passed, Some(false), "{sample:?}");
        }
    }

    #[test]
    fn a_failed_check_is_an_acceptance_error() {
        let sample = |found: f32| Sample {
            task: TASK.into(),
            id: "reference".into(),
            config_hash: "c".into(),
            data: serde_json::to_value(compare("fast".into(), &[found], &[1.0], BOUND)).unwrap(),
        };
        assert!(verdict(&[sample(1.0)]).is_ok());
        let error = verdict(&[sample(1.5)]).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        insta::assert_snapshot!(error, @r"
        check `fast` failed: logits differ by 5.000e-1 of their scale, the bound is 1.0e-3
          largest difference 5.000e-1, largest logit 1.000e0, 1 logits compared
          times of wrong results mean nothing
        ");
    }
}
