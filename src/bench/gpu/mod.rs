//! Benches on a GPU: attention of one layer, whole models, and every kernel by itself.
//!
//! [`kernels`] holds every kernel against the chip's own ceilings ([`products`] are those outside attention). [`attention`] and [`whole_model`] run through the same context as a model does. [`timing`] replays recorded graphs between events, over buffers that no cache holds. [`mod@reference`] computes on the host
//! in f32 what a timed kernel must have found; a measurement carries its [`Check`]s. [`paper`] sets the printed speeds
//! beside ours.

pub mod attention;
pub mod kernels;
pub mod paper;
pub mod products;
pub mod reference;
pub mod timing;
pub mod whole_model;

use crate::error::{Error, Result};
use crate::report::speed::{SpeedKey, SpeedRow};
use crate::report::{Cell, Column, Measured, Sample, Table};
use serde::{Deserialize, Serialize};

/// Who follows a bench and may stop it.
pub struct Watch<'a> {
    /// Asked between measurements.
    pub stopped: &'a dyn Fn() -> bool,
    /// Told what is going on.
    pub status: &'a dyn Fn(&str),
}

/// One check of what was timed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was compared with the f32 reference.
    pub name: String,
    /// What came out.
    pub value: Measured<f64>,
    /// What it is held against.
    pub bound: f64,
    /// `value` must be at least the bound; else at most.
    pub at_least: bool,
    /// Whether it is within the bound; `None` if it was not run.
    pub passed: Option<bool>,
}

impl Check {
    /// `value` may be at most `bound`; NaN is not.
    pub fn at_most(name: &str, value: f64, bound: f64) -> Self {
        Self {
            name: name.to_owned(),
            value: value.into(),
            bound,
            at_least: false,
            passed: Some(value <= bound),
        }
    }

    /// `value` must be at least `bound`; NaN is not.
    pub fn at_least(name: &str, value: f64, bound: f64) -> Self {
        Self {
            at_least: true,
            passed: Some(value >= bound),
            ..Self::at_most(name, value, bound)
        }
    }
}

/// One measurement: all repetitions, and whether what was timed is right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeedSample {
    /// What, how, and the times.
    #[serde(flatten)]
    pub row: SpeedRow,
    /// Buffer sets that the calls took in turn.
    pub buffer_sets: usize,
    /// Bytes that a call must move through device memory at least.
    pub bytes: Option<u64>,
    /// Floating-point operations that it must do at least.
    pub flops: Option<u64>,
    /// Comparisons with the reference.
    pub checks: Vec<Check>,
}

impl SpeedSample {
    /// A measurement that could not be made.
    pub fn missing(key: SpeedKey, method: &str, reason: impl Into<String>) -> Self {
        Self {
            row: SpeedRow::missing(key, method, reason),
            buffer_sets: 0,
            bytes: None,
            flops: None,
            checks: Vec::new(),
        }
    }
}

/// The data of the samples of `task`.
pub fn samples_of<T: serde::de::DeserializeOwned>(samples: &[Sample], task: &str) -> Result<Vec<T>> {
    super::end_to_end::samples_of(samples, task)
}

/// All checks, a row each.
pub fn check_table(samples: &[SpeedSample]) -> Result<Table> {
    let keys = [
        "kind", "shape", "tokens", "rows", "method", "check", "passed", "value", "must_be", "bound",
    ];
    let mut table = Table::new("checks", keys.map(Column::text).into());
    for SpeedSample { row, checks, .. } in samples {
        for check in checks {
            let why = check.value.reason().unwrap_or("not run");
            table.push(vec![
                row.key.kind.as_str().into(),
                row.key.shape.as_str().into(),
                row.key.tokens.into(),
                row.key.rows.into(),
                row.method.as_str().into(),
                check.name.as_str().into(),
                check.passed.map_or_else(|| Cell::missing(why), Cell::from),
                check.value.clone().into(),
                if check.at_least { "at least" } else { "at most" }.into(),
                check.bound.into(),
            ])?;
        }
    }
    Ok(table)
}

/// The failed checks as one error.
pub fn verdict(samples: &[SpeedSample]) -> Result<()> {
    let mut failed = Vec::new();
    for SpeedSample { row, checks, .. } in samples {
        for check in checks.iter().filter(|check| check.passed == Some(false)) {
            let value = match &check.value {
                Measured::Value(value) => format!("{value:.3e}"),
                Measured::Missing(reason) => reason.clone(),
            };
            failed.push(format!(
                "{} of {} with {} tokens, {} ({}): {value}, must be at {} {:.1e}",
                row.key.kind,
                row.key.shape,
                row.key.tokens,
                row.method,
                check.name,
                if check.at_least { "least" } else { "most" },
                check.bound
            ));
        }
    }
    let Some((first, rest)) = failed.split_first() else {
        return Ok(());
    };
    let mut error = Error::acceptance(format!("{} checks failed; the first: {first}", failed.len()));
    for line in rest.iter().take(4) {
        error = error.note(line);
    }
    Err(error.note("times of wrong results mean nothing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::speed::tests::key;

    fn sample(checks: Vec<Check>) -> SpeedSample {
        SpeedSample {
            checks,
            ..SpeedSample::missing(key("decode", 8192, 1), "dense", "")
        }
    }

    #[test]
    fn a_failed_check_is_an_error_that_names_it_and_nan_never_passes() {
        let good = [sample(vec![
            Check::at_most("error", 1e-3, 3e-3),
            Check::at_least("recall", 1.0, 0.99),
        ])];
        verdict(&good).unwrap();
        assert_eq!(check_table(&good).unwrap().rows.len(), 2);
        for bad in [
            Check::at_most("error", 4e-3, 3e-3),
            Check::at_most("error", f64::NAN, 3e-3),
            Check::at_least("recall", 0.5, 0.99),
            Check::at_least("recall", f64::NAN, 0.99),
        ] {
            let error = verdict(&[sample(vec![bad])]).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(
                error.message().contains("decode of qwen2-7b with 8192 tokens, dense"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_sample_survives_json() {
        let before = sample(vec![Check::at_most("error", f64::NAN, 3e-3)]);
        let text = serde_json::to_string(&before).unwrap();
        let after: SpeedSample = serde_json::from_str(&text).unwrap();
        assert_eq!(after.checks[0].passed, Some(false));
        assert_eq!(after.row, before.row);
    }
}
