//! `tokselect`: three papers about keys and queries, real, runnable and measured.

pub mod error;
pub mod model;
pub mod random;
