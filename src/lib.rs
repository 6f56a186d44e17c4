//! `tokselect`: three papers about keys and queries, real, runnable and measured.

pub mod config;
pub mod error;
