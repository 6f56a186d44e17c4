//! `tokselect`: three papers about keys and queries, real, runnable and measured.

pub mod error;
pub mod hub;
pub mod kernels;
pub mod model;
pub mod random;
