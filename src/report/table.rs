//! Tables of a report: named columns with units, rows of cells.

use super::measured::{Measured, not_finite};
use crate::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// One table of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Table {
    /// Name, also used in file names.
    pub name: String,
    /// The columns, left to right.
    pub columns: Vec<Column>,
    /// The rows; each has as many cells as there are columns.
    pub rows: Vec<Vec<Cell>>,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Column {
    /// Name with the SI unit as its last part: `ttft_s`, `peak_rss_bytes`.
    pub key: String,
    /// Unit; empty for names and plain numbers.
    pub unit: String,
}

/// One value of a table. In JSON a number, a text, a boolean, or `{"value": null, "reason": ...}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Cell {
    /// Yes or no.
    Boolean(bool),
    /// A count.
    Integer(i64),
    /// A measured number.
    Number(#[serde(serialize_with = "finite_number")] f64),
    /// A name or a sentence.
    Text(String),
    /// Nothing was measured; why.
    Missing(MissingCell),
}

/// The JSON form of a cell without value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MissingCell {
    /// Always null.
    pub value: (),
    /// Why there is no value.
    pub reason: String,
}

// serde hands a field over by reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn finite_number<S: Serializer>(value: &f64, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    if value.is_finite() {
        serializer.serialize_f64(*value)
    } else {
        MissingCell::because(not_finite(*value)).serialize(serializer)
    }
}

impl MissingCell {
    fn because(reason: impl Into<String>) -> Self {
        Self {
            value: (),
            reason: reason.into(),
        }
    }
}

impl Column {
    /// A column of measured numbers.
    pub fn new(key: impl Into<String>, unit: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            unit: unit.into(),
        }
    }

    /// A column of names or plain numbers.
    pub fn text(key: impl Into<String>) -> Self {
        Self::new(key, "")
    }

    /// The heading for people: the key, and the unit where the key does not already end in it.
    pub fn heading(&self) -> String {
        if self.unit.is_empty() || self.key.ends_with(&format!("_{}", self.unit)) {
            self.key.clone()
        } else {
            format!("{} [{}]", self.key, self.unit)
        }
    }
}

impl Table {
    /// An empty table.
    pub fn new(name: impl Into<String>, columns: Vec<Column>) -> Self {
        Self {
            name: name.into(),
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row; it must have one cell per column.
    pub fn push(&mut self, row: Vec<Cell>) -> Result<()> {
        if row.len() != self.columns.len() {
            return Err(Error::bug(format!(
                "a row of table `{}` has {} cells for {} columns",
                self.name,
                row.len(),
                self.columns.len()
            )));
        }
        self.rows.push(row);
        Ok(())
    }

    /// The cell of `row` in the column `key`; `None` where there is no such column.
    pub fn cell<'r>(&self, row: &'r [Cell], key: &str) -> Option<&'r Cell> {
        row.get(self.columns.iter().position(|column| column.key == key)?)
    }

    /// A row for people: four significant digits, and a reason that goes for several neighbours told once.
    pub fn short_row(row: &[Cell]) -> Vec<String> {
        let repeats = |index: usize| {
            let before = index.checked_sub(1).and_then(|before| row.get(before));
            matches!(row[index], Cell::Missing(_)) && before == Some(&row[index])
        };
        (0..row.len())
            .map(|index| if repeats(index) { "-".into() } else { row[index].short() })
            .collect()
    }
}

impl Cell {
    /// A cell without value.
    pub fn missing(reason: impl Into<String>) -> Self {
        Self::Missing(MissingCell::because(reason))
    }

    /// Its number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Number(value) => Some(*value),
            Self::Integer(value) => Some(*value as f64),
            _ => None,
        }
    }

    /// Its text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it is set to the right in a table for people.
    pub fn is_numeric(&self) -> bool {
        matches!(self, Self::Integer(_) | Self::Number(_))
    }

    /// The cell with every digit, for programs; a missing value is its reason.
    pub fn exact(&self) -> String {
        match self {
            Self::Number(value) if value.is_finite() => serde_json::json!(value).to_string(),
            _ => self.short(),
        }
    }

    /// The cell with four significant digits, for people; a missing value is its reason.
    pub fn short(&self) -> String {
        match self {
            Self::Boolean(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Number(value) if value.is_finite() => significant(*value),
            Self::Number(value) => not_finite(*value),
            Self::Text(text) => text.clone(),
            Self::Missing(missing) => missing.reason.clone(),
        }
    }
}

/// Four significant digits, but never fewer than the integer part has.
fn significant(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor() as i32;
    if !(-5..15).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    format!("{value:.*}", usize::try_from(3 - magnitude).unwrap_or(0))
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::Boolean(value)
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Self::from(Measured::from(value))
    }
}

impl From<usize> for Cell {
    fn from(value: usize) -> Self {
        Self::from(value as u64)
    }
}

impl From<u64> for Cell {
    fn from(value: u64) -> Self {
        i64::try_from(value).map_or(Self::Number(value as f64), Self::Integer)
    }
}

impl From<i64> for Cell {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<&str> for Cell {
    fn from(value: &str) -> Self {
        Self::Text(value.into())
    }
}

impl From<String> for Cell {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<Measured<f64>> for Cell {
    fn from(measured: Measured<f64>) -> Self {
        match measured {
            Measured::Value(value) => Self::Number(value),
            Measured::Missing(reason) => Self::missing(reason),
        }
    }
}

impl From<Measured<u64>> for Cell {
    fn from(measured: Measured<u64>) -> Self {
        match measured {
            Measured::Value(value) => Self::from(value),
            Measured::Missing(reason) => Self::missing(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_survive_json_and_no_number_becomes_null_without_reason() {
        let row: Vec<Cell> = vec![
            3_usize.into(),
            3.0.into(),
            "OOM?".into(),
            true.into(),
            Cell::missing("OOM"),
            f64::INFINITY.into(),
        ];
        let json = serde_json::to_string(&row).unwrap();
        assert_eq!(
            json,
            r#"[3,3.0,"OOM?",true,{"value":null,"reason":"OOM"},{"value":null,"reason":"not finite: inf"}]"#
        );
        assert_eq!(serde_json::from_str::<Vec<Cell>>(&json).unwrap(), row);
        let unguarded = serde_json::to_string(&Cell::Number(f64::NAN)).unwrap();
        assert_eq!(unguarded, r#"{"value":null,"reason":"not finite: NaN"}"#);
    }

    #[test]
    fn people_get_four_digits_and_programs_all_of_them() {
        for (value, short) in [
            (0.0, "0"),
            (1_234.567_8, "1235"),
            (123_456.7, "123457"),
            (0.001_234_56, "0.001235"),
            (-9.999_99, "-10.000"),
            (1e-9, "1.000e-9"),
        ] {
            assert_eq!(Cell::from(value).short(), short);
            assert_eq!(
                Cell::from(value).exact().parse::<f64>().unwrap().to_bits(),
                value.to_bits()
            );
        }
    }

    #[test]
    fn a_heading_names_the_unit_once() {
        assert_eq!(Column::new("ttft_s", "s").heading(), "ttft_s");
        assert_eq!(Column::new("accuracy", "%").heading(), "accuracy [%]");
    }

    #[test]
    fn a_row_of_the_wrong_width_is_refused() {
        let mut table = Table::new("t", vec![Column::text("a")]);
        assert_eq!(table.push(vec![]).unwrap_err().exit_code(), 70);
    }
}
