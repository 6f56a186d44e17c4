//! Accuracy: tasks that ask, score and say how sure the score is.
//!
//! A [`Task`] makes (or loads) examples and scores answers; it knows nothing of models. Example `index` depends on the
//! task's settings, the seed, the target length and `index` alone, so any example can be made again without those
//! before it: this is what makes a run resumable and its memory flat. Adding a task: one file, one line in the registry,
//! one README row.

pub mod demo_corpus;
pub mod infinite_bench;
pub mod jsonl;
mod loaded;
pub mod long_bench;
pub mod passkey;
pub mod perplexity;
mod prompt;
pub mod ruler;
pub mod runner;
pub mod scorers;
pub mod statistics;
mod task;

pub use task::{CountTokens, Example, Metric, Request, Task, WhitespaceTokens};
