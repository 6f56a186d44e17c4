//! `tokselect`: three papers about keys and queries, real, runnable and measured.

pub mod bench;
pub mod config;
pub mod error;
pub mod exit;
pub mod interrupt;
pub mod manifest;
pub mod printer;
pub mod report;
