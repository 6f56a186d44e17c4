//! Scores of windows as rows, and tables over them.

use super::WindowScore;
use crate::bench::statistics::mean;
use crate::error::{Error, Result};
use crate::eval::statistics::{Estimate, paired};
use crate::report::{Aggregate, Cell, Column, Sample, Table};
use serde::{Deserialize, Serialize};

/// The row of one variant in one window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowRecord {
    /// Tokens of the window.
    pub length_tokens: usize,
    /// Which window of that length.
    pub window: usize,
    /// The variant.
    pub variant: String,
    /// Tokens predicted.
    pub tokens: usize,
    /// Bytes of the predicted text.
    pub bytes: usize,
    /// Negative log-likelihood of all of them, in nats.
    pub nll_sum: f64,
    /// exp of its mean.
    pub perplexity: f64,
    /// Its sum in bits, per byte.
    pub bits_per_byte: f64,
    /// KL(reference || variant) per token, in nats.
    pub kl_mean: Option<f64>,
    /// Share of tokens with the same likeliest token as the reference.
    pub top1_agreement: Option<f64>,
    /// Seconds in the forward passes of this variant.
    pub forward_s: f64,
}

impl WindowRecord {
    /// The row of `score`.
    pub fn new(length_tokens: usize, window: usize, variant: &str, bytes: usize, score: &WindowScore) -> Self {
        let tokens = score.tokens as f64;
        Self {
            length_tokens,
            window,
            variant: variant.to_owned(),
            tokens: score.tokens,
            bytes,
            nll_sum: score.nll_sum,
            perplexity: (score.nll_sum / tokens).exp(),
            bits_per_byte: score.nll_sum / std::f64::consts::LN_2 / bytes as f64,
            kl_mean: score.kl_sum.map(|sum| sum / tokens),
            top1_agreement: score.agreements.map(|count| count as f64 / tokens),
            forward_s: score.forward_s,
        }
    }

    /// Reads a row back.
    pub fn of(sample: Sample) -> Result<Self> {
        serde_json::from_value(sample.data).map_err(|error| {
            Error::user(format!("sample `{}` is not a row of this run: {error}", sample.id))
                .help("choose another `--output` directory, or delete that line of samples.jsonl")
        })
    }

    fn nll_mean(&self) -> f64 {
        self.nll_sum / self.tokens as f64
    }
}

/// The tables `perplexity` and `timing`, and one aggregate per variant. Windows are the samples of every error: tokens
/// of one window are not independent.
pub fn tables(
    records: &mut [WindowRecord],
    variants: &[String],
    reference: Option<usize>,
    seed: u64,
) -> Result<(Table, Table, Vec<Aggregate>)> {
    records.sort_by_key(|record| (record.length_tokens, record.window));
    let columns = [
        ("length_tokens", "tokens"),
        ("variant", ""),
        ("windows", ""),
        ("tokens", ""),
        ("perplexity", ""),
        ("nll_mean", "nats"),
        ("nll_standard_error", "nats"),
        ("nll_difference", "nats"),
        ("nll_difference_ci95_low", "nats"),
        ("nll_difference_ci95_high", "nats"),
        ("bits_per_byte", ""),
        ("kl_mean", "nats"),
        ("kl_standard_error", "nats"),
        ("top1_agreement", ""),
        ("top1_standard_error", ""),
    ];
    let mut table = Table::new("perplexity", columns.map(|(key, unit)| Column::new(key, unit)).into());
    let columns = [
        ("length_tokens", "tokens"),
        ("variant", ""),
        ("windows", ""),
        ("forward_mean_s", "s"),
    ];
    let mut timing = Table::new("timing", columns.map(|(key, unit)| Column::new(key, unit)).into());
    let mut lengths: Vec<usize> = records.iter().map(|record| record.length_tokens).collect();
    lengths.dedup();
    for length in lengths {
        let of = |variant: &str| -> Vec<&WindowRecord> {
            let here = |r: &&WindowRecord| r.length_tokens == length && r.variant == variant;
            records.iter().filter(here).collect()
        };
        for (at, variant) in variants.iter().enumerate() {
            let own = of(variant);
            if own.is_empty() {
                continue;
            }
            let compared = reference.map(|reference| (reference == at, of(&variants[reference])));
            table.push(row(length, variant, &own, compared.as_ref(), seed))?;
            let seconds: Vec<f64> = own.iter().map(|record| record.forward_s).collect();
            timing.push(vec![
                length.into(),
                variant.as_str().into(),
                own.len().into(),
                mean(&seconds).map_or_else(|| Cell::missing("no window"), Cell::from),
            ])?;
        }
    }
    let aggregates = variants.iter().map(|variant| {
        let own = records.iter().filter(|record| record.variant == *variant);
        let means: Vec<f64> = own.map(WindowRecord::nll_mean).collect();
        Aggregate::of(format!("nll/{variant}"), "nats", &means)
    });
    let aggregates = aggregates.collect();
    Ok((table, timing, aggregates))
}

fn row(
    length: usize,
    variant: &str,
    own: &[&WindowRecord],
    compared: Option<&(bool, Vec<&WindowRecord>)>,
    seed: u64,
) -> Vec<Cell> {
    let few = "fewer than 2 windows";
    let number = |value: Option<f64>, why: &str| value.map_or_else(|| Cell::missing(why), Cell::from);
    let estimate = |values: &[f64], what: &str| Estimate::of(values, seed, &format!("{what}/{length}/{variant}"));
    let tokens: usize = own.iter().map(|record| record.tokens).sum();
    let bytes: usize = own.iter().map(|record| record.bytes).sum();
    let nll: f64 = own.iter().map(|record| record.nll_sum).sum();
    let means: Vec<f64> = own.iter().map(|record| record.nll_mean()).collect();
    let (difference, why) = match compared {
        None => (None, "no reference"),
        Some((true, _)) => (None, "the reference"),
        Some((false, others)) => {
            let other = |record: &WindowRecord| others.iter().find(|o| o.window == record.window);
            let pairs: Vec<(f64, f64)> = own
                .iter()
                .filter_map(|record| Some((record.nll_mean(), other(record)?.nll_mean())))
                .collect();
            let stream = format!("difference/{length}/{variant}");
            (paired(&pairs, seed, &stream), "no window in common")
        }
    };
    let bound = |side: usize| match difference {
        None => Cell::missing(why),
        Some(difference) => number(difference.ci95.map(|ci| ci[side]), few),
    };
    // Windows of one length predict equally many tokens, so the mean over windows is the mean over tokens.
    let over_windows = |of: fn(&WindowRecord) -> Option<f64>, what: &str| {
        let values: Option<Vec<f64>> = own.iter().map(|record| of(record)).collect();
        let estimate = values.and_then(|values| estimate(&values, what));
        let missing = "no reference";
        [
            number(estimate.map(|e| e.mean), missing),
            estimate.map_or_else(|| Cell::missing(missing), |e| number(e.standard_error, few)),
        ]
    };
    let mut row: Vec<Cell> = vec![
        length.into(),
        variant.into(),
        own.len().into(),
        tokens.into(),
        (nll / tokens as f64).exp().into(),
        (nll / tokens as f64).into(),
        number(estimate(&means, "nll").and_then(|e| e.standard_error), few),
        number(difference.map(|d| d.mean), why),
        bound(0),
        bound(1),
        (nll / std::f64::consts::LN_2 / bytes as f64).into(),
    ];
    row.extend(over_windows(|record| record.kl_mean, "kl"));
    row.extend(over_windows(|record| record.top1_agreement, "top1"));
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(window: usize, variant: &str, nll_sum: f64) -> WindowRecord {
        let score = WindowScore {
            tokens: 4,
            nll_sum,
            kl_sum: Some(1.0),
            agreements: Some(3),
            forward_s: 0.5,
        };
        WindowRecord::new(5, window, variant, 8, &score)
    }

    #[test]
    fn tables_of_two_windows() {
        let mut records = vec![
            record(1, "b", 6.0),
            record(0, "a", 2.0),
            record(0, "b", 4.0),
            record(1, "a", 4.0),
        ];
        let variants = ["a".to_owned(), "b".to_owned()];
        let (table, timing, aggregates) = tables(&mut records, &variants, Some(0), 0).unwrap();
        assert_eq!((table.rows.len(), timing.rows.len(), aggregates.len()), (2, 2, 2));
        let cell = |row: usize, key: &str| {
            let at = table.columns.iter().position(|column| column.key == key).unwrap();
            table.rows[row][at].exact()
        };
        // 6 nats over 8 tokens; window means 0.5 and 1.
        assert_eq!(cell(0, "nll_mean"), "0.75");
        assert_eq!(cell(0, "nll_standard_error"), "0.25");
        assert_eq!(cell(0, "perplexity"), 0.75f64.exp().to_string());
        assert_eq!(cell(0, "nll_difference"), "the reference");
        assert_eq!(cell(1, "nll_difference"), "0.5");
        assert_eq!(cell(1, "nll_difference_ci95_low"), "0.5");
        assert_eq!(cell(1, "kl_mean"), "0.25");
        assert_eq!(cell(1, "top1_agreement"), "0.75");
        assert_eq!(cell(1, "bits_per_byte"), (10.0 / 2f64.ln() / 16.0).to_string());
    }
}
