//! Training.
pub mod attention;
pub mod block_product;
pub mod cross_entropy;
pub mod dropout;
pub mod layer_norm;
pub mod linear;
pub mod parameters;
pub mod pool;
pub mod positions;
pub mod scalar;
pub mod transformer_xl;

#[cfg(test)]
mod gradient_tests;
