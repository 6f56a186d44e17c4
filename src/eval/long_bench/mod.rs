//! `LongBench` (arXiv 2308.14508): the sixteen English tasks of the `TokenSelect` paper's Table 12.
//!
//! [`load`] reads a task's official data file, `<name>.jsonl`; the benchmark's hub repository holds them in one archive,
//! `data.zip`. Prompts, answer lengths, metrics and the cut of answers to their first line are the official ones.

mod loaded;
mod prompts;
mod subtask;

pub(crate) use loaded::PACKED;
pub use loaded::{LongBench, PromptSet, load};
pub use subtask::Subtask;
