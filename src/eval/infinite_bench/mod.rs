//! `InfiniteBench` (arXiv 2402.13718): twelve tasks with contexts beyond 100K tokens.
//!
//! [`load`] reads a task's official data file, [`generate()`] makes the six synthetic ones at any length. [`Subtask`] names the
//! tasks, [`PromptSet`] whose templates ask, and [`score`] judges an answer by the benchmark's own script and by the one that
//! the `TokenSelect` repository ships, which is looser and behind its Tables 1 and 3 to 9.

mod generate;
mod loaded;
mod prompts;
mod score;
mod subtask;

pub use generate::{GENERATED, GenerateSettings, generate};
pub use loaded::{InfiniteBench, load};
pub use prompts::PromptSet;
pub use score::{Scores, score};
pub use subtask::Subtask;

use super::Metric;

/// The two scores, in the order in which [`Scores`] has them.
pub const METRICS: [Metric; 2] = [
    Metric {
        name: "official",
        source: "InfiniteBench, src/compute_scores.py",
    },
    Metric {
        name: "token_select",
        source: "TokenSelect, benchmark/infinitebench_eval.py",
    },
];
