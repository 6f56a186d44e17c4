//! What papers print, cell by cell, from `configs/papers/*.toml`.

use super::{Cell, Column, Table};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The papers by name with their files.
const PAPERS: [(&str, &str); 1] = [("tokenselect", include_str!("../../configs/papers/tokenselect.toml"))];

/// A paper's tables.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paper {
    /// The paper itself.
    pub paper: About,
    /// Its tables, by number.
    #[serde(rename = "table")]
    pub tables: Vec<PaperTable>,
}

/// What a paper is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Name on the command line.
    pub name: String,
    /// Its title.
    pub title: String,
    /// Where it was published.
    pub source: String,
    /// Prompt set that loaded tasks must be asked with to be compared.
    pub prompts: String,
    /// The names of repositories that hold the models, by the paper's name for them.
    pub models: BTreeMap<String, Vec<String>>,
}

/// A table as printed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperTable {
    /// Its number.
    pub number: u32,
    /// What it is about.
    pub title: String,
    /// The benchmark, as [`Task::suite`](crate::eval::Task::suite) names it.
    pub suite: String,
    /// Digits after the point.
    #[serde(default = "two")]
    pub decimals: u32,
    /// What a reader must know.
    #[serde(default)]
    pub note: Option<String>,
    /// Columns of numbers.
    pub columns: Vec<PaperColumn>,
    /// Rows.
    pub rows: Vec<PaperRow>,
}

/// A column of numbers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperColumn {
    /// Heading.
    pub name: String,
    /// The one task that it is about.
    #[serde(default)]
    pub task: Option<String>,
    /// Or the number of tasks that it averages over: all of the suite.
    #[serde(default)]
    pub tasks: Option<usize>,
    /// Length of the contexts, where they are made to a length.
    #[serde(default)]
    pub length_tokens: Option<u64>,
    /// The metric in the paper's words.
    pub metric: String,
    /// The metric of this program that is the same.
    #[serde(default)]
    pub scorer: Option<String>,
    /// Percent, or `s`.
    #[serde(default = "percent")]
    pub unit: String,
}

/// A row of numbers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperRow {
    /// The model in the paper's words.
    pub model: String,
    /// The method in the paper's words, with its budget.
    pub method: String,
    /// The policy of this program that is the method.
    #[serde(default)]
    pub policy: Option<String>,
    /// Settings of the policy that the paper states.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// One number per column.
    pub cells: Vec<f64>,
    /// The printed average.
    #[serde(default)]
    pub average: Option<f64>,
    /// What a reader must know.
    #[serde(default)]
    pub note: Option<String>,
}

fn two() -> u32 {
    2
}

fn percent() -> String {
    "percent".into()
}

/// Names of the papers.
pub fn names() -> Vec<&'static str> {
    PAPERS.iter().map(|(name, _)| *name).collect()
}

/// A paper by name.
pub fn paper(name: &str) -> Result<Paper> {
    let (_, text) = PAPERS.iter().find(|(known, _)| *known == name).ok_or_else(|| {
        Error::user(format!("no tables of a paper `{name}` are recorded"))
            .help(format!("pass one of {}", names().join(", ")))
    })?;
    toml::from_str(text).map_err(|error| Error::bug(format!("configs/papers/{name}.toml: {error}")))
}

impl Paper {
    /// The table with `number`, or all of them.
    pub fn select(&self, number: Option<u32>) -> Result<Vec<&PaperTable>> {
        let chosen: Vec<&PaperTable> = self
            .tables
            .iter()
            .filter(|table| number.is_none_or(|number| table.number == number))
            .collect();
        if chosen.is_empty() {
            let known: Vec<String> = self.tables.iter().map(|table| table.number.to_string()).collect();
            return Err(Error::user(format!(
                "`--table {}`: that table of {} is not recorded",
                number.unwrap_or_default(),
                self.paper.name
            ))
            .help(format!("its accuracy tables are {}", known.join(", "))));
        }
        Ok(chosen)
    }

    /// Whether a repository, directory or file that holds a model is the one that the paper calls `model`.
    pub fn is_model(&self, model: &str, reference: &str) -> bool {
        let reference = reference.split('@').next().unwrap_or_default();
        let name = reference.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let known = self.paper.models.get(model);
        known.is_some_and(|names| names.iter().any(|known| known.eq_ignore_ascii_case(name)))
    }
}

impl PaperTable {
    /// Heading of the table.
    pub fn heading(&self, paper: &Paper) -> String {
        format!("{} table {}: {}", paper.paper.name, self.number, self.title)
    }

    /// The table as printed.
    pub fn as_table(&self, paper: &Paper) -> Result<Table> {
        let averaged = self.rows.iter().any(|row| row.average.is_some());
        let noted = self.rows.iter().any(|row| row.note.is_some());
        let mut columns = vec![Column::text("model"), Column::text("method")];
        columns.extend(self.columns.iter().map(|column| {
            let unit = if column.unit == "percent" { "" } else { &column.unit };
            Column::new(&column.name, unit)
        }));
        columns.extend(averaged.then(|| Column::text("Avg")));
        columns.extend(noted.then(|| Column::text("note")));
        let mut table = Table::new(self.heading(paper), columns);
        for row in &self.rows {
            let mut cells: Vec<Cell> = vec![row.model.as_str().into(), row.method.as_str().into()];
            cells.extend(row.cells.iter().map(|&cell| Cell::from(cell)));
            if averaged {
                cells.push(row.average.map_or_else(|| Cell::missing("not printed"), Cell::from));
            }
            if noted {
                cells.push(row.note.as_deref().unwrap_or_default().into());
            }
            table.push(cells)?;
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{infinite_bench, long_bench};

    #[test]
    fn every_table_is_whole_and_names_known_tasks() {
        let paper = paper("tokenselect").unwrap();
        let numbers: Vec<u32> = paper.tables.iter().map(|table| table.number).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 9, 12]);
        for table in &paper.tables {
            for column in &table.columns {
                assert!(column.task.is_some() != column.tasks.is_some(), "{}", column.name);
                let Some(task) = &column.task else { continue };
                if table.suite == "infinite_bench" {
                    let known = infinite_bench::Subtask::ALL.map(infinite_bench::Subtask::name);
                    assert!(known.contains(&task.as_str()), "{task}");
                } else {
                    let subtask: long_bench::Subtask = task.parse().unwrap();
                    assert_eq!(column.scorer.as_deref(), Some(subtask.metrics()[0].name), "{task}");
                }
            }
            for row in &table.rows {
                assert_eq!(
                    row.cells.len(),
                    table.columns.len(),
                    "table {}: {}",
                    table.number,
                    row.method
                );
                assert!(paper.paper.models.contains_key(&row.model), "{}", row.model);
                assert!(row.policy.is_some() || row.settings.is_empty(), "{}", row.method);
            }
            table.as_table(&paper).unwrap();
        }
        assert_eq!(
            paper
                .tables
                .iter()
                .map(|t| t.rows.len() * t.columns.len())
                .sum::<usize>(),
            795
        );
    }

    #[test]
    fn row_means_are_the_printed_averages_but_for_two() {
        let paper = paper("tokenselect").unwrap();
        let mut others = Vec::new();
        for table in &paper.tables {
            // Some averages are cut off, not rounded.
            let unit = 0.1_f64.powi(table.decimals as i32);
            for row in &table.rows {
                let mean = row.cells.iter().sum::<f64>() / row.cells.len() as f64;
                if row.average.is_some_and(|average| (average - mean).abs() > unit) {
                    assert!(row.note.is_some());
                    others.push((table.number, row.model.as_str(), row.method.as_str()));
                }
            }
        }
        let known = [
            (1, "Llama-3-8B-Instruct", "TokenSelect 2K+512"),
            (9, "Qwen2-7B-Instruct", "theta = 0.95"),
        ];
        assert_eq!(others, known);
    }

    #[test]
    fn models_are_known_by_any_form_of_reference() {
        let paper = paper("tokenselect").unwrap();
        let llama = "Llama-3-8B-Instruct";
        assert!(paper.is_model(llama, "meta-llama/Meta-Llama-3-8B-Instruct@main"));
        assert!(paper.is_model(llama, "/models/meta-llama-3-8b-instruct/"));
        assert!(!paper.is_model(llama, "meta-llama/Meta-Llama-3-8B"));
        let error = paper.select(Some(8)).unwrap_err();
        assert!(error.remedy().unwrap().contains("7, 9, 12"), "{error}");
    }
}
