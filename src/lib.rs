//! `tokselect`: three papers about keys and queries, real, runnable and measured.
//!
//! In reading order: [`kernels`] are the numerical primitives, a plain and a fast form of each. [`kv_cache`] stores
//! un-rotated keys in pages. [`selection`] decides which of them a query may see; [`attention`] attends to them and
//! compares with exact attention. [`model`] loads a checkpoint (found by [`hub`]) and runs the one decoder over it,
//! with tokenizer, chat template, sampling and memory plan. [`report`] is the one result format, with provenance from
//! [`manifest`]; [`bench`](mod@bench) measures speed, [`eval`] accuracy, [`probe`] what the vocabulary keys do;
//! [`train`] trains models that differ in their attention. `cli` turns arguments ([`config`] layers files under them) into a plan and runs
//! it; [`printer`] is the only place that prints, [`exit`] maps errors ([`error`]) to exit codes, [`interrupt`] listens
//! for Ctrl-C, [`random`] gives every consumer its own stream of one seed.

pub mod attention;
pub mod bench;
pub mod bytes;
pub mod cli;
pub mod config;
pub mod error;
pub mod eval;
pub mod exit;
pub mod hub;
pub mod interrupt;
pub mod kernels;
pub mod kv_cache;
pub mod manifest;
pub mod model;
pub mod printer;
pub mod probe;
pub mod random;
pub mod report;
pub mod selection;
pub mod train;
