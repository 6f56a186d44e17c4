//! What the paper prints about speed, with what was measured beside it and a verdict for each cell.

use crate::bench::statistics::Summary;
use crate::error::{Error, Result};
use crate::report::compare::Verdict;
use crate::report::speed::{Peers, SpeedRow};
use crate::report::{Cell, Column, Table};
use serde::Deserialize;

const PRINTED: &str = include_str!("../../../configs/papers/tokenselect-speed.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    series: Vec<Series>,
}

/// One method at several lengths.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Series {
    place: String,
    what: String,
    hardware: String,
    unit: Unit,
    kind: String,
    shape: String,
    /// Query rows, where the kind does not settle them.
    rows: Option<usize>,
    /// What stands above the line of a ratio.
    numerator: Option<String>,
    method: String,
    decimals: u32,
    note: Option<String>,
    /// Why this program never measures it.
    never: Option<String>,
    cells: Vec<Printed>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Unit {
    Ratio,
    S,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Printed {
    tokens: Option<usize>,
    paper: f64,
}

/// Median, smallest and largest of what was measured, and the verdict over it.
struct Judged {
    measured: Option<[f64; 3]>,
    verdict: Verdict,
    reason: String,
}

/// All printed cells of `kinds` with verdicts; `device` is the GPU that measured `ours`.
pub fn paper_table(kinds: &[&str], device: &str, ours: &[SpeedRow], peers: Option<&Peers>) -> Result<Table> {
    let file: File = toml::from_str(PRINTED)
        .map_err(|error| Error::bug(format!("configs/papers/tokenselect-speed.toml: {error}")))?;
    let keys = [
        "place", "what", "shape", "tokens", "unit", "paper", "measured", "low", "high", "verdict", "reason",
    ];
    let mut table = Table::new("paper", keys.map(Column::text).into());
    for series in file
        .series
        .iter()
        .filter(|series| kinds.contains(&series.kind.as_str()))
    {
        for cell in &series.cells {
            let judged = series.judge(cell, device, ours, peers);
            let value = |at: usize| {
                judged
                    .measured
                    .map_or_else(|| Cell::missing(judged.verdict.to_string()), |values| values[at].into())
            };
            table.push(vec![
                series.place.as_str().into(),
                series.what.as_str().into(),
                series.shape.as_str().into(),
                cell.tokens.map_or_else(|| Cell::missing("not stated"), Cell::from),
                if series.unit == Unit::S { "s" } else { "" }.into(),
                cell.paper.into(),
                value(0),
                value(1),
                value(2),
                judged.verdict.to_string().into(),
                judged.reason.into(),
            ])?;
        }
    }
    Ok(table)
}

impl Series {
    fn is_here(&self, row: &SpeedRow, tokens: usize) -> bool {
        let least = tokens - tokens / 40;
        row.key.kind == self.kind
            && row.key.shape == self.shape
            && self.rows.is_none_or(|rows| rows == row.key.rows)
            && (least..=tokens).contains(&row.key.tokens)
    }

    /// The longest measured row of `method` that belongs to `tokens`, in seconds.
    fn find(&self, rows: &[SpeedRow], tokens: usize, method: &str) -> Option<[f64; 3]> {
        rows.iter()
            .filter(|row| row.method == method && self.is_here(row, tokens))
            .filter_map(|row| Some((row.key.tokens, Summary::of(&row.repetitions_us)?)))
            .max_by_key(|(tokens, _)| *tokens)
            .map(|(_, s)| [s.median, s.min, s.max].map(|us| us * 1e-6))
    }

    fn judge(&self, cell: &Printed, device: &str, ours: &[SpeedRow], peers: Option<&Peers>) -> Judged {
        let not_run = |reason: String| Judged {
            measured: None,
            reason: reason.clone(),
            verdict: Verdict::NotRun(reason),
        };
        if let Some(never) = &self.never {
            return not_run(never.clone());
        }
        let Some(below) = cell.tokens.and_then(|tokens| self.find(ours, tokens, &self.method)) else {
            return not_run(format!("no row of `{}` at this length", self.method));
        };
        let tokens = cell.tokens.unwrap_or_default();
        let other_hardware = !device.contains(&self.hardware);
        let Some(numerator) = &self.numerator else {
            return if other_hardware {
                let reason = format!("seconds on {device}, the paper's on an {}", self.hardware);
                Judged {
                    measured: Some(below),
                    reason: reason.clone(),
                    verdict: Verdict::NotComparable(reason),
                }
            } else {
                self.against(cell.paper, below, String::new())
            };
        };
        let rivals = peers.map_or(&[][..], |peers| &peers.rows);
        let above = self
            .find(ours, tokens, numerator)
            .or_else(|| self.find(rivals, tokens, numerator));
        let Some(above) = above else {
            return not_run(match peers {
                Some(_) => format!("no row of `{numerator}` at this length"),
                None => format!("no row of `{numerator}`: no --peers file"),
            });
        };
        let ratio = [above[0] / below[0], above[1] / below[2], above[2] / below[1]];
        let mut reason = Vec::new();
        if other_hardware {
            reason.push(format!("a ratio on {device}, the paper's on an {}", self.hardware));
        }
        reason.extend(self.note.clone());
        self.against(cell.paper, ratio, reason.join("; "))
    }

    /// The printed number against the range of the repetitions, widened by its last digit.
    fn against(&self, printed: f64, measured: [f64; 3], reason: String) -> Judged {
        let rounding = 0.1_f64.powi(self.decimals as i32);
        let [_, low, high] = measured;
        let verdict = if high + rounding < printed {
            Verdict::Below
        } else if low - rounding > printed {
            Verdict::Above
        } else {
            Verdict::Within
        };
        Judged {
            measured: Some(measured),
            verdict,
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::speed::SpeedKey;
    use crate::report::speed::tests::{key, peers_file};

    const H200: &str = "NVIDIA H200";

    fn verdict(table: &Table, what: &str, tokens: usize) -> [String; 3] {
        let row = table
            .rows
            .iter()
            .find(|row| row[1].short().contains(what) && row[3] == tokens.into())
            .unwrap();
        [row[6].short(), row[9].short(), row[10].short()]
    }

    #[test]
    fn the_printed_cells_are_whole() {
        let file: File = toml::from_str(PRINTED).unwrap();
        assert_eq!(file.series.iter().map(|series| series.cells.len()).sum::<usize>(), 27);
        let seconds = |method: &str| {
            let mut all = file.series.iter().filter(|series| series.unit == Unit::S);
            &all.find(|series| series.method == method).unwrap().cells
        };
        // The quotients are those of the printed seconds.
        let quotients = &file.series.last().unwrap().cells;
        for (cell, (dense, ours)) in quotients
            .iter()
            .zip(seconds("dense").iter().zip(seconds("token-select")))
        {
            assert_eq!(cell.tokens, dense.tokens);
            assert_eq!(cell.tokens, ours.tokens);
            assert!((cell.paper - dense.paper / ours.paper).abs() < 0.006, "{}", cell.paper);
        }
    }

    #[test]
    fn a_ratio_is_judged_against_flashinfer_of_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let peers = Peers::load(&peers_file(folder.path())).unwrap();
        let ours = |us: f64| {
            let key = key("chunk", 131_072, 512);
            [SpeedRow::of(key, "token-select chunk", &[us * 1e-6, us * 1.01e-6])]
        };
        let table = |us: f64, peers| paper_table(&["chunk"], H200, &ours(us), peers).unwrap();
        let what = "attention of one chunk";
        let [measured, word, reason] = verdict(&table(156.2, Some(&peers)), what, 131_072);
        assert_eq!((measured.as_str(), word.as_str()), ("19.90", "above"));
        assert!(
            reason.contains("a ratio on NVIDIA H200, the paper's on an A100"),
            "{reason}"
        );
        assert_eq!(verdict(&table(3124.0 / 6.09, Some(&peers)), what, 131_072)[1], "within");
        assert_eq!(verdict(&table(1000.0, Some(&peers)), what, 131_072)[1], "below");
        assert_eq!(verdict(&table(1000.0, None), what, 131_072)[1], "not run");
        assert_eq!(verdict(&table(1000.0, Some(&peers)), what, 1_048_576)[1], "not run");
    }

    #[test]
    fn seconds_on_another_gpu_are_not_comparable_but_their_quotient_is() {
        let row = |method: &str, tokens: usize, seconds: f64| {
            let key = SpeedKey {
                kind: "model-prefill".into(),
                shape: "llama-3-8b".into(),
                tokens,
                rows: tokens,
            };
            SpeedRow::of(key, method, &[seconds, seconds])
        };
        // 128 000 tokens are the paper's 128K as well.
        let ours = [row("dense", 128_000, 10.5), row("token-select", 128_000, 4.2)];
        let table = paper_table(&["model-prefill"], H200, &ours, None).unwrap();
        let [measured, word, _] = verdict(&table, ": TokenSelect", 131_072);
        assert_eq!((measured.as_str(), word.as_str()), ("4.200", "not comparable"));
        let [measured, word, _] = verdict(&table, "quotient", 131_072);
        assert_eq!((measured.as_str(), word.as_str()), ("2.500", "above"));
        assert_eq!(verdict(&table, "MInference", 131_072)[1], "not run");
        let there = paper_table(&["model-prefill"], "NVIDIA A100-SXM4-80GB", &ours, None).unwrap();
        assert_eq!(verdict(&there, ": TokenSelect", 131_072)[1], "below");
    }
}
