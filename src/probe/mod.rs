//! What the vocabulary keys do to decoding (arXiv 2410.02284), and in-context navigation away from explored ones.
//!
//! [`key_space`] reads the keys (rows of the unembedding) and [`kmeans`] clusters them; [`clusters`] keeps, reloads and
//! imports a clustering. [`completion`] is the engine: one prompt's keys and values shared by many completions.
//! [`lists`] are the questions with their closed answers, [`judge`] says which answers are right. [`correlation`] measures
//! whether tokens near the winners are over-ranked; [`navigation`] runs ICN and what it is compared with, [`geometry`]
//! says what a navigated prompt does to the query. [`diversity`] scores sets of texts; [`answers`] and [`reasoning`]
//! turn several paths of thought into one answer.

pub mod answers;
pub mod clusters;
pub mod comparison;
pub mod completion;
pub mod correlation;
pub mod correlation_report;
pub mod diversity;
pub mod generation;
pub mod geometry;
pub mod judge;
pub mod key_space;
pub mod kmeans;
pub mod lists;
pub mod navigation;
pub mod navigation_report;
pub mod problems;
pub mod prompts;
pub mod reasoning;
pub mod repulsion;
pub mod scores;
