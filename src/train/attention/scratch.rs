//! Buffers of one thread of the attention kernels, and the transposes between them.

use super::core::Shape;
use crate::train::scalar::Scalar;

/// Query rows of a block: large enough to use every key often, small enough that a block of scores stays in cache.
pub const BLOCK: usize = 32;
/// Elements of a cache line of f32; rows of scratch are whole lines, and one apart from a power of two.
pub const LINE: usize = 16;

/// Buffers of one thread. Nothing in them survives a task.
#[derive(Debug)]
pub struct Scratch<T> {
    /// Keys transposed, `[dk, stride]`.
    pub key_t: Buffer<T>,
    /// Values transposed, `[dk, stride]`.
    pub value_t: Buffer<T>,
    /// Gradients of keys, `[dk, stride]`.
    pub key_sum: Buffer<T>,
    /// Gradients of values, `[dk, stride]`.
    pub value_sum: Buffer<T>,
    /// Scores, weights, then gradients of scores of a block, `[BLOCK, stride]`.
    pub scores: Buffer<T>,
    /// Products with the table, or gradients of weights, `[BLOCK, stride]`.
    pub other: Buffer<T>,
    /// Masked weights, or gradients back through the shift, `[BLOCK, stride]`.
    pub gradient: Buffer<T>,
    /// Scaled queries of a block, `[BLOCK, dk]`.
    pub query: Vec<T>,
    /// The same with the bias v.
    pub positioned: Vec<T>,
    /// Whatever of a block a product needs transposed, `[dk, BLOCK]`.
    pub transposed: Vec<T>,
    /// A product on its way into a sum, `[BLOCK, dk]`.
    pub partial: Vec<T>,
}

/// Elements that begin at a cache line.
#[derive(Debug)]
pub struct Buffer<T> {
    data: Vec<T>,
    offset: usize,
}

impl<T: Scalar> Buffer<T> {
    fn new(len: usize) -> Self {
        let data = vec![T::ZERO; len + 64 / size_of::<T>()];
        // An offset that cannot be computed costs speed, not correctness.
        let offset = Some(data.as_ptr().align_offset(64)).filter(|&o| o <= 64 / size_of::<T>());
        Self {
            data,
            offset: offset.unwrap_or(0),
        }
    }

    /// The elements.
    #[inline(always)]
    pub fn get(&mut self) -> &mut [T] {
        &mut self.data[self.offset..]
    }
}

impl<T: Scalar> Scratch<T> {
    /// Buffers for calls of this shape; `backward` adds what only gradients need.
    pub fn new(shape: &Shape, backward: bool) -> Self {
        let (d, stride) = (shape.head_dim, shape.stride());
        let rows = BLOCK.min(shape.segment);
        let only = |len: usize| Buffer::new(if backward { len } else { 0 });
        Self {
            key_t: Buffer::new(d * stride),
            value_t: only(d * stride),
            key_sum: only(d * stride),
            value_sum: only(d * stride),
            scores: Buffer::new(rows * stride),
            other: Buffer::new(rows * stride),
            gradient: only(rows * stride),
            query: vec![T::ZERO; rows * d],
            positioned: vec![T::ZERO; rows * d],
            transposed: vec![T::ZERO; BLOCK * d],
            partial: vec![T::ZERO; rows * d],
        }
    }

    /// Bytes of the buffers.
    pub fn bytes(&self) -> usize {
        let lines = [&self.key_t, &self.value_t, &self.key_sum, &self.value_sum];
        let blocks = [&self.scores, &self.other, &self.gradient];
        let aligned: usize = lines.into_iter().chain(blocks).map(|buffer| buffer.data.len()).sum();
        (aligned + 4 * self.query.len()) * size_of::<T>()
    }
}

/// `[rows, cols]` to `[cols, stride]`.
#[inline(always)]
pub fn transpose<T: Scalar>(x: &[T], cols: usize, stride: usize, out: &mut [T]) {
    for (r, row) in x.chunks_exact(cols).enumerate() {
        for (c, &value) in row.iter().enumerate() {
            out[c * stride + r] = value;
        }
    }
}

/// `[cols, stride]` back to `[rows, cols]`.
#[inline(always)]
pub fn transpose_back<T: Scalar>(x: &[T], cols: usize, stride: usize, out: &mut [T]) {
    for (r, row) in out.chunks_exact_mut(cols).enumerate() {
        for (c, value) in row.iter_mut().enumerate() {
            *value = x[c * stride + r];
        }
    }
}
