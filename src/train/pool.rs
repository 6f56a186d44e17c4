//! Buffers that are used again, and the count of what is in use: the activation memory of a step.

use super::scalar::Scalar;
use std::collections::HashMap;

/// Hands out buffers and takes them back.
///
/// A step needs the same lengths as the one before. Fresh memory of these sizes would cost a page fault per 4 KiB, which
/// is dearer than most of the element-wise work.
#[derive(Debug, Default)]
pub struct Pool<T> {
    free: HashMap<usize, Vec<Vec<T>>>,
    in_use: usize,
    peak: usize,
}

impl<T: Scalar> Pool<T> {
    /// A buffer of `len` elements with unspecified contents.
    pub fn take(&mut self, len: usize) -> Vec<T> {
        self.in_use += len;
        self.peak = self.peak.max(self.in_use);
        let kept = self.free.get_mut(&len).and_then(Vec::pop);
        kept.unwrap_or_else(|| vec![T::ZERO; len])
    }

    /// A buffer of `len` zeros.
    pub fn zeros(&mut self, len: usize) -> Vec<T> {
        let mut buffer = self.take(len);
        buffer.fill(T::ZERO);
        buffer
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Vec<T>) {
        self.in_use -= buffer.len();
        self.free.entry(buffer.len()).or_default().push(buffer);
    }

    /// Frees what is not in use: after a change of shape the old lengths would never be asked for again.
    pub fn trim(&mut self) {
        self.free.clear();
    }

    /// Most bytes in use at one time since [`Pool::reset_peak`].
    pub fn peak_bytes(&self) -> usize {
        self.peak * size_of::<T>()
    }

    /// Counts the peak from the present use on.
    pub fn reset_peak(&mut self) {
        self.peak = self.in_use;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_counts_what_is_out_at_the_same_time() {
        let mut pool = Pool::<f32>::default();
        let a = pool.take(10);
        let b = pool.take(20);
        pool.give(a);
        let c = pool.zeros(10);
        assert_eq!(pool.peak_bytes(), 120);
        pool.give(b);
        pool.give(c);
        pool.reset_peak();
        assert_eq!(pool.peak_bytes(), 0);
    }
}
