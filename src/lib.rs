//! `tokselect`: three papers about keys and queries, real, runnable and measured.

pub mod bench;
pub mod config;
pub mod error;
pub mod manifest;
pub mod report;
