//! Reports as JSON: indented, one newline at the end; and reading them back.

use super::{Report, SCHEMA_VERSION};
use crate::error::{Error, Result, io_error};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// The report as text.
pub fn report(report: &Report) -> Result<String> {
    pretty(report)
}

pub(super) fn pretty(value: &impl Serialize) -> Result<String> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(|error| Error::bug(format!("a report is not JSON: {error}")))?;
    text.push('\n');
    Ok(text)
}

/// Reads a report from its file or from the directory that holds `report.json`.
pub fn load(path: &Path) -> Result<Report> {
    let path = if path.is_dir() {
        path.join("report.json")
    } else {
        path.to_owned()
    };
    let text = std::fs::read(&path).map_err(|error| io_error("read", &path, &error))?;
    let refuse = |reason: String| Error::user(format!("`{}` is not a report: {reason}", path.display()));
    let value: Value = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
    // The version is looked at first, because a later format need not fit these types.
    match value.get("schema_version").and_then(Value::as_u64) {
        None => return Err(refuse("it has no schema_version".into())),
        Some(version) if version != u64::from(SCHEMA_VERSION) => {
            return Err(Error::user(format!(
                "`{}` has report format {version}; this build reads format {SCHEMA_VERSION}",
                path.display()
            ))
            .help("use the version of tokselect that wrote it"));
        }
        Some(_) => {}
    }
    serde_json::from_value(value).map_err(|error| refuse(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote_and_names_what_is_wrong_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        let example = super::super::tests::example();
        std::fs::write(&path, report(&example).unwrap()).unwrap();
        assert_eq!(load(directory.path()).unwrap().aggregates, example.aggregates);
        for (text, expected) in [
            ("{", "is not a report"),
            ("{}", "no schema_version"),
            (r#"{"schema_version": 2}"#, "report format 2"),
            (r#"{"schema_version": 1}"#, "missing field"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = load(&path).unwrap_err();
            assert!(error.message().contains(expected) && error.exit_code() == 2, "{error}");
        }
    }
}
