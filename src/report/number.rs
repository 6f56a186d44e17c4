//! Numbers as they are in JSON, which has finite ones only: the others are written as their names, `inf`, `-inf` and
//! `NaN`. For fields: `#[serde(with = "number")]`.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Finite(f64),
    Named(String),
    /// A number that is not finite, of a time when its name was not kept.
    Nameless(()),
}

/// The number, or its name.
// serde hands a field over by reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() {
        serializer.serialize_f64(*value)
    } else {
        serializer.collect_str(value)
    }
}

/// The number back; null is NaN.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    match Written::deserialize(deserializer)? {
        Written::Finite(value) => Ok(value),
        Written::Named(name) => name.parse().map_err(D::Error::custom),
        Written::Nameless(()) => Ok(f64::NAN),
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct Row(#[serde(with = "super")] f64);

    #[test]
    fn every_number_comes_back() {
        for value in [
            0.1 + 0.2,
            3.0,
            -0.0,
            f64::MAX,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ] {
            let text = serde_json::to_string(&Row(value)).unwrap();
            let Row(back) = serde_json::from_str(&text).unwrap();
            assert!(
                back.to_bits() == value.to_bits() || back.is_nan() && value.is_nan(),
                "{text}"
            );
            let Row(back) = serde_json::from_value(serde_json::to_value(Row(value)).unwrap()).unwrap();
            assert!(
                back.to_bits() == value.to_bits() || back.is_nan() && value.is_nan(),
                "{text}"
            );
        }
        let Row(lost) = serde_json::from_str("null").unwrap();
        assert!(lost.is_nan());
        assert!(serde_json::from_str::<Row>("\"many\"").is_err());
    }
}
