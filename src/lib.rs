//! `tokselect`: three papers about keys and queries, real, runnable and measured.

pub mod bench;
pub mod config;
pub mod error;
pub mod exit;
pub mod hub;
pub mod interrupt;
pub mod kernels;
pub mod manifest;
pub mod model;
pub mod printer;
pub mod random;
pub mod report;
