//! Memory whose first element begins a cache line.
//!
//! An allocation of the standard library begins 16 bytes into a line, so that every 64-byte vector load would touch two
//! lines: twice the traffic of the L1 cache, which bounds the matrix kernels.

use std::ops::{Deref, DerefMut};

/// One cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([f32; 16]);

/// A buffer of f32 that begins at a cache line.
#[derive(Clone, Default)]
pub struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

impl Aligned {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self {
            lines: vec![Line::default(); len.div_ceil(16)],
            len,
        }
    }

    /// Grows or shrinks; the contents are unspecified afterwards.
    pub fn reset(&mut self, len: usize) {
        self.lines.resize(len.div_ceil(16), Line::default());
        self.len = len;
    }
}

impl Deref for Aligned {
    type Target = [f32];

    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Aligned {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
