//! Several methods on the same questions: means with intervals over questions, and paired differences to one of them.

use crate::error::Result;
use crate::eval::statistics::{Estimate, paired};
use crate::report::{Aggregate, Cell, Column, Table};

/// One number of one method on one question under one seed.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Which question.
    pub question: String,
    /// Name of the method.
    pub method: String,
    /// The number.
    pub value: f64,
}

/// Numbers of one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Name of the column.
    pub name: &'static str,
    /// All of them, in the order of the samples.
    pub values: Vec<Value>,
}

impl Metric {
    /// Means over seeds, one for each question that `method` was asked, in the order of the questions.
    fn by_question(&self, method: &str, questions: &[String]) -> Vec<Option<f64>> {
        let mean = |question: &String| {
            let here = self
                .values
                .iter()
                .filter(|v| v.method == method && v.question == *question);
            let values: Vec<f64> = here.map(|v| v.value).collect();
            crate::bench::statistics::mean(&values)
        };
        questions.iter().map(mean).collect()
    }
}

fn questions(metrics: &[Metric]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for value in metrics.iter().flat_map(|metric| &metric.values) {
        if !all.contains(&value.question) {
            all.push(value.question.clone());
        }
    }
    all
}

fn number(value: Option<f64>, why: &str) -> Cell {
    value.map_or_else(|| Cell::missing(why), Cell::from)
}

const FEW: &str = "fewer than 2 questions";

/// Method by method the mean of every metric over questions (of the means over seeds) with its 95 % bootstrap interval.
pub fn means(name: &str, methods: &[String], metrics: &[Metric], seed: u64) -> Result<Table> {
    let mut columns = vec![Column::text("method"), Column::text("n")];
    for metric in metrics {
        columns.extend(["", "_low", "_high"].map(|end| Column::text(format!("{}{end}", metric.name))));
    }
    let questions = questions(metrics);
    let mut table = Table::new(name, columns);
    for method in methods {
        let mut row: Vec<Cell> = vec![method.as_str().into()];
        for (at, metric) in metrics.iter().enumerate() {
            let values: Vec<f64> = metric.by_question(method, &questions).into_iter().flatten().collect();
            if at == 0 {
                row.push(values.len().into());
            }
            let estimate = Estimate::of(&values, seed, &format!("{name}/{method}/{}", metric.name));
            let interval = estimate.and_then(|e| e.ci95);
            row.push(number(estimate.map(|e| e.mean), "not asked"));
            row.push(number(interval.map(|ci| ci[0]), FEW));
            row.push(number(interval.map(|ci| ci[1]), FEW));
        }
        table.push(row)?;
    }
    Ok(table)
}

/// `reference` minus every other method on the same questions: mean with its 95 % interval, and on how many it is higher
/// and lower.
pub fn differences(name: &str, reference: &str, methods: &[String], metrics: &[Metric], seed: u64) -> Result<Table> {
    let columns = [
        "reference",
        "method",
        "metric",
        "n",
        "difference",
        "low",
        "high",
        "higher",
        "lower",
    ];
    let questions = questions(metrics);
    let mut table = Table::new(name, columns.map(Column::text).into());
    for method in methods.iter().filter(|method| *method != reference) {
        for metric in metrics {
            let ours = metric.by_question(reference, &questions);
            let theirs = metric.by_question(method, &questions);
            let pairs: Vec<(f64, f64)> = ours
                .into_iter()
                .zip(theirs)
                .filter_map(|(a, b)| Some((a?, b?)))
                .collect();
            let estimate = paired(&pairs, seed, &format!("{name}/{method}/{}", metric.name));
            let interval = estimate.and_then(|e| e.ci95);
            table.push(vec![
                reference.into(),
                method.as_str().into(),
                metric.name.into(),
                pairs.len().into(),
                number(estimate.map(|e| e.mean), "no question in common"),
                number(interval.map(|ci| ci[0]), FEW),
                number(interval.map(|ci| ci[1]), FEW),
                pairs.iter().filter(|(a, b)| a > b).count().into(),
                pairs.iter().filter(|(a, b)| a < b).count().into(),
            ])?;
        }
    }
    Ok(table)
}

/// The same means as aggregates.
pub fn aggregates(methods: &[String], metrics: &[Metric], seed: u64) -> Vec<Aggregate> {
    let questions = questions(metrics);
    let mut all = Vec::new();
    for metric in metrics {
        for method in methods {
            let values: Vec<f64> = metric.by_question(method, &questions).into_iter().flatten().collect();
            let name = format!("{}/{method}", metric.name);
            let mut aggregate = Aggregate::of(&name, "", &values);
            aggregate.ci95 = Estimate::of(&values, seed, &name).and_then(|e| e.ci95);
            all.push(aggregate);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(rows: &[(&str, &str, f64)]) -> Metric {
        let value = |&(question, method, value): &(&str, &str, f64)| Value {
            question: question.into(),
            method: method.into(),
            value,
        };
        Metric {
            name: "recall",
            values: rows.iter().map(value).collect(),
        }
    }

    #[test]
    fn seeds_are_averaged_before_questions() {
        // Question a: two seeds of `b`, mean 0.5; question c: 1. The mean over questions is 0.75, not 2/3.
        let metric = metric(&[
            ("a", "b", 0.0),
            ("a", "b", 1.0),
            ("c", "b", 1.0),
            ("a", "x", 0.25),
            ("c", "x", 1.0),
        ]);
        let methods = ["b".to_owned(), "x".to_owned()];
        let table = means("methods", &methods, std::slice::from_ref(&metric), 0).expect("a table");
        assert_eq!(table.rows[0][1..3], [Cell::from(2usize), Cell::from(0.75)]);
        let table = differences("d", "b", &methods, &[metric], 0).expect("a table");
        assert_eq!(table.rows.len(), 1);
        // 0.5 - 0.25 and 1 - 1.
        assert_eq!(table.rows[0][4], Cell::from(0.125));
        assert_eq!(table.rows[0][7..], [Cell::from(1usize), Cell::from(0usize)]);
    }
}
