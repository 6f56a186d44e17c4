//! `InfiniteBench` (arXiv 2402.13718): twelve tasks with contexts beyond 100K tokens.
//!
//! [`Subtask`] names them, [`score`] judges an answer by the benchmark's own script and by the one that the `TokenSelect`
//! repository ships, which is looser and behind its Tables 1 and 3 to 9.

mod score;
mod subtask;

pub use score::{Scores, score};
pub use subtask::Subtask;
