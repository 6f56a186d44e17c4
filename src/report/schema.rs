//! JSON Schema of the report and of the sample line, committed under `schemas/`.

use super::{Report, Sample};
use schemars::generate::SchemaSettings;
use serde_json::Value;

/// Schema of `report.json`.
pub fn report_schema() -> Value {
    generate::<Report>()
}

/// Schema of one line of `samples.jsonl`.
pub fn sample_schema() -> Value {
    generate::<Sample>()
}

fn generate<T: schemars::JsonSchema>() -> Value {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}

#[cfg(test)]
mod tests {
    use super::super::{json, tests::example};
    use super::*;
    use std::path::Path;

    fn check_drift(name: &str, schema: &Value) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(name);
        let text = json::pretty(schema).unwrap();
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
        assert!(
            committed == text,
            "schemas/{name} is not what the types say; regenerate it with `UPDATE_SCHEMAS=1 cargo test --release schema`, \
             and raise SCHEMA_VERSION if an old reader would misread the new format"
        );
    }

    #[test]
    fn the_committed_schemas_are_those_of_the_types() {
        check_drift("report.schema.json", &report_schema());
        check_drift("sample.schema.json", &sample_schema());
    }

    #[test]
    fn a_report_validates_against_its_schema_and_a_broken_one_does_not() {
        let validator = jsonschema::validator_for(&report_schema()).unwrap();
        let mut value = serde_json::to_value(example()).unwrap();
        let errors: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
        value["aggregates"][0]["n"] = "three".into();
        assert!(!validator.is_valid(&value));
    }

    #[test]
    fn a_sample_validates_against_its_schema() {
        let validator = jsonschema::validator_for(&sample_schema()).unwrap();
        let line = r#"{"task":"t","id":"0","config_hash":"c","data":{"score":null,"reason":"OOM"}}"#;
        assert!(validator.is_valid(&serde_json::from_str(line).unwrap()));
        assert!(!validator.is_valid(&serde_json::json!({"task": "t"})));
    }
}
