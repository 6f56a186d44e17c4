//! Text metrics as the official scripts of `LongBench` and `InfiniteBench` compute them.
//!
//! The scripts are Python and lean on its packages, so "the same metric" means the same splitting, rounding and tie
//! rules, not the same name: Rouge-L alone has two unlike forms here. Every function is pure, scores one answer against
//! one label (or a list where the script itself takes one) and returns 0 to 1. Where a script would stop with an
//! exception, the answer scores 0. `scripts/check_scorers.py` compares all of them with the packages and the scripts.

mod code_similarity;
mod labels;
mod lcs;
mod overlap;
pub(crate) mod python_text;
mod rouge;
mod rouge_sum;
mod sequence_matcher;

pub use code_similarity::{code_similarity, fuzz_ratio};
pub(crate) use labels::paragraph;
pub use labels::{classification, count, retrieval};
pub use overlap::{qa_f1, qa_f1_chinese};
pub use rouge::rouge_l;
pub use rouge_sum::rouge_l_sum;

/// The best score of `prediction` against any of `labels`; 0 without labels.
pub fn best_of<L: AsRef<str>>(prediction: &str, labels: &[L], metric: impl Fn(&str, &str) -> f64) -> f64 {
    labels
        .iter()
        .map(|label| metric(prediction, label.as_ref()))
        .fold(0.0, f64::max)
}
