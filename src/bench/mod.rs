//! Measuring: statistics over repetitions, the memory a process really used, and the benches made of them.
//!
//! [`gpu`] has the benches that need one. [`end_to_end`] times whole models (prefill, decode steps, memory) under several policies; [`shapes`] are the models
//! that need no files; [`timing`] repeats things by turns, so that a slow minute of the machine hits all of them.

pub mod end_to_end;
pub mod gpu;
pub mod peak_memory;
pub mod shapes;
pub mod statistics;
pub mod timing;
