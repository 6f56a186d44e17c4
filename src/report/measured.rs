//! A number that was measured, or the reason why it is not there.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A measured value or the reason why there is none. A missing value is never 0 and never an estimate.
///
/// In JSON: `{"value": 1.5}` or `{"value": null, "reason": "OOM"}`.
/// Make floats with `Measured::from`, which turns NaN and infinities into a reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    from = "Record<T>",
    into = "Record<T>",
    bound(serialize = "T: Clone + Serialize", deserialize = "T: Deserialize<'de>")
)]
pub enum Measured<T = f64> {
    /// It was measured.
    Value(T),
    /// It was not, and this is why: `OOM`, `not run: ...`.
    Missing(String),
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Record<T> {
    /// The value, or null.
    value: Option<T>,
    /// Why the value is null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The word for a measurement that needed more memory than there is.
pub const OUT_OF_MEMORY: &str = "OOM";

const NO_REASON: &str = "no reason given";

impl<T> Measured<T> {
    /// A missing value and its reason.
    pub fn missing(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::Missing(if reason.is_empty() { NO_REASON.into() } else { reason })
    }

    /// A value that ran out of memory.
    pub fn out_of_memory() -> Self {
        Self::missing(OUT_OF_MEMORY)
    }

    /// The value, if there is one.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Missing(_) => None,
        }
    }

    /// Why there is no value.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Value(_) => None,
            Self::Missing(reason) => Some(reason),
        }
    }
}

impl From<f64> for Measured<f64> {
    fn from(value: f64) -> Self {
        if value.is_finite() {
            Self::Value(value)
        } else {
            Self::Missing(not_finite(value))
        }
    }
}

impl<T> From<Record<T>> for Measured<T> {
    fn from(record: Record<T>) -> Self {
        match record.value {
            Some(value) => Self::Value(value),
            None => Self::missing(record.reason.unwrap_or_default()),
        }
    }
}

impl<T> From<Measured<T>> for Record<T> {
    fn from(measured: Measured<T>) -> Self {
        match measured {
            Measured::Value(value) => Self {
                value: Some(value),
                reason: None,
            },
            Measured::Missing(reason) => Self {
                value: None,
                reason: Some(reason),
            },
        }
    }
}

/// The reason written for a number that JSON cannot hold.
pub(super) fn not_finite(value: f64) -> String {
    format!("not finite: {value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_value_is_null_with_its_reason_and_survives_json() {
        for (measured, json) in [
            (Measured::from(1.5), r#"{"value":1.5}"#),
            (Measured::out_of_memory(), r#"{"value":null,"reason":"OOM"}"#),
            (Measured::from(f64::NAN), r#"{"value":null,"reason":"not finite: NaN"}"#),
        ] {
            assert_eq!(serde_json::to_string(&measured).unwrap(), json);
            assert_eq!(serde_json::from_str::<Measured>(json).unwrap(), measured);
        }
    }
}
