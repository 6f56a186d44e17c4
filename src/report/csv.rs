//! Tables as comma-separated values: every digit, keys as headings, the reason in place of a missing value.

use super::{Cell, Report, Table};
use crate::error::{Error, Result};

/// One table.
pub fn table(table: &Table) -> Result<String> {
    let broken = |reason: String| Error::bug(format!("table `{}` is not CSV: {reason}", table.name));
    let mut writer = csv::Writer::from_writer(Vec::new());
    let headings = table.columns.iter().map(|column| column.key.as_str());
    writer
        .write_record(headings)
        .map_err(|error| broken(error.to_string()))?;
    for row in &table.rows {
        writer
            .write_record(row.iter().map(Cell::exact))
            .map_err(|error| broken(error.to_string()))?;
    }
    let bytes = writer.into_inner().map_err(|error| broken(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| broken(error.to_string()))
}

/// All tables, one blank line between them; the aggregates when there is no table.
pub fn report(report: &Report) -> Result<String> {
    let tables: Result<Vec<_>> = report.tables_or_aggregates().iter().map(table).collect();
    Ok(tables?.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::super::{Column, tests::example};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_missing_value_is_its_reason_and_numbers_keep_their_digits() {
        insta::assert_snapshot!(report(&example()).unwrap(), @r"
        policy,ttft_s
        tokselect,0.123456
        full|dense,OOM
        ");
    }

    proptest! {
        #[test]
        fn any_text_is_read_back(rows in prop::collection::vec((any::<String>(), any::<String>()), 0..5)) {
            let mut built = Table::new("t", vec![Column::text("a,\"b\""), Column::text("b")]);
            for (left, right) in &rows {
                built.push(vec![left.as_str().into(), right.as_str().into()]).unwrap();
            }
            let text = table(&built).unwrap();
            let mut reader = csv::Reader::from_reader(text.as_bytes());
            prop_assert_eq!(reader.headers().unwrap().get(0), Some("a,\"b\""));
            let back: Vec<(String, String)> = reader.deserialize().map(|row| row.unwrap()).collect();
            prop_assert_eq!(back, rows);
        }
    }
}
