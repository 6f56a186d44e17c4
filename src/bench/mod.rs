//! Measuring: statistics over repetitions and the memory a process really used.

pub mod peak_memory;
pub mod statistics;
