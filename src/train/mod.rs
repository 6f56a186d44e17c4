//! Training: a Transformer-XL whose attention is MHA, MDHA, RMHA or RCMHA (arXiv 2308.03429), on the CPU or a GPU.
//!
//! In reading order: [`text`], one of the [`known_texts`] or a file, becomes ids in parallel streams. [`transformer_xl`] is the model; its [`attention`] is
//! the only part that differs between the compared ones. All tensors lie in one flat buffer that [`parameters`] knows
//! the places of. There is no general tape: the model is fixed, so each layer ([`linear`], [`layer_norm`],
//! [`cross_entropy`], the attention) has its forward and backward pass written out and fused, and tests compare them
//! with finite differences and with `PyTorch`. [`adam`] and [`schedule`] update. [`engine`] is where all that is
//! computed: on the CPU, or on a GPU with the same passes in kernels of its own; [`memory_forecast`] says what it will
//! take. [`trainer`] is one run step by step,
//! [`checkpoint`] makes it go on bit by bit, [`metrics`] writes it down, [`run`] drives it, [`generate`] samples,
//! [`comparison`] makes tables and tests of many runs.
//!
//! Sums are cut into pieces of fixed size, so results do not depend on the number of threads.

pub mod adam;
pub mod attention;
pub mod block_product;
pub mod checkpoint;
pub mod comparison;
pub mod cross_entropy;
pub mod dropout;
pub mod engine;
pub mod generate;
pub mod hidden_units;
pub mod known_texts;
pub mod layer_norm;
pub mod linear;
pub mod memory_forecast;
pub mod metrics;
pub mod model_config;
pub mod parameters;
pub mod pool;
pub mod positions;
pub mod run;
pub mod scalar;
pub mod schedule;
pub mod text;
pub mod trainer;
pub mod transformer_xl;

#[cfg(test)]
mod gradient_tests;
