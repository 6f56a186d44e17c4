//! Reads what a run directory holds.

use super::program::report;
use serde_json::{Value, json};
use std::path::Path;

/// The rows of samples.jsonl.
pub fn rows(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(output.join("samples.jsonl")).expect("samples");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect()
}

/// A table of a report.
pub fn table<'r>(report: &'r Value, name: &str) -> &'r Value {
    let tables = report["tables"].as_array().expect("tables");
    let found = tables.iter().find(|table| table["name"] == name);
    found.unwrap_or_else(|| panic!("no table {name}"))
}

/// One column of a table, by its key.
pub fn column(table: &Value, key: &str) -> Vec<Value> {
    let columns = table["columns"].as_array().expect("columns");
    let at = columns.iter().position(|column| column["key"] == key);
    let at = at.unwrap_or_else(|| panic!("no column {key}"));
    let rows = table["rows"].as_array().expect("rows").iter();
    rows.map(|row| row[at].clone()).collect()
}

/// What must be the same in every run of one configuration.
pub fn timeless(output: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(output)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "csv" || e == "md" || e == "svg"))
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("a file"))
        })
        .collect();
    files.sort();
    let report = report(output);
    let parts = json!([report["aggregates"], report["tables"], report["config_hash"]]);
    files.push(("report.json".into(), parts.to_string().into_bytes()));
    files
}
