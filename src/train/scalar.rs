//! The two number types that training is written for: f32 to train, f64 so that tests can compare gradients to 1e-9.

use crate::kernels::cpu::math;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

/// A matrix where it lies: `rows x cols`, rows `stride` elements apart; `transposed` reads it the other way round.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T> {
    /// The elements; the last row may end with its last column.
    pub data: &'a [T],
    /// Rows as stored.
    pub rows: usize,
    /// Columns as stored.
    pub cols: usize,
    /// Distance of stored rows.
    pub stride: usize,
    /// Whether the product takes the transpose.
    pub transposed: bool,
}

impl<'a, T> View<'a, T> {
    /// Rows that follow each other without gaps.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self {
            data,
            rows,
            cols,
            stride: cols,
            transposed: false,
        }
    }

    /// The transpose.
    #[must_use]
    pub fn t(mut self) -> Self {
        self.transposed = !self.transposed;
        self
    }

    /// The stored columns `first..first + count`.
    #[must_use]
    pub fn columns(mut self, first: usize, count: usize) -> Self {
        self.data = &self.data[first..];
        self.cols = count;
        self
    }
}

/// A number type of training.
pub trait Scalar:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + MulAssign
    + Div<Output = Self>
    + Neg<Output = Self>
    + Sum
    + bytemuck::Pod
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Below every score.
    const LOWEST: Self;
    /// The nearest number to `value`.
    fn of(value: f64) -> Self;
    /// As f64.
    fn f64(self) -> f64;
    /// `self * factor + addend`, rounded once.
    #[must_use]
    fn fused(self, factor: Self, addend: Self) -> Self;
    /// e to this power, for arguments that are not above 0 by much. Branch-free, so that loops become SIMD code.
    #[must_use]
    fn exp(self) -> Self;
    /// Square root.
    #[must_use]
    fn sqrt(self) -> Self;
    /// Natural logarithm.
    #[must_use]
    fn ln(self) -> Self;
    /// Whether it is neither infinite nor NaN.
    fn is_finite(self) -> bool;
    /// `out = left right`, or `out += left right`, on the calling thread. `out` is row-major without gaps.
    fn product(out: &mut [Self], left: &View<'_, Self>, right: &View<'_, Self>, accumulate: bool);
}

/// The view as a matrix of faer.
fn matrix<'a, T>(view: &View<'a, T>) -> MatRef<'a, T> {
    let matrix = if view.stride == view.cols {
        MatRef::from_row_major_slice(&view.data[..view.rows * view.cols], view.rows, view.cols)
    } else {
        MatRef::from_row_major_slice_with_stride(view.data, view.rows, view.cols, view.stride)
    };
    if view.transposed { matrix.transpose() } else { matrix }
}

macro_rules! scalar {
    ($type:ty, $exp:expr) => {
        impl Scalar for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const LOWEST: Self = Self::MIN;

            #[inline(always)]
            fn of(value: f64) -> Self {
                value as Self
            }
            #[inline(always)]
            fn f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn fused(self, factor: Self, addend: Self) -> Self {
                self.mul_add(factor, addend)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                self.is_finite()
            }

            fn product(out: &mut [Self], left: &View<'_, Self>, right: &View<'_, Self>, accumulate: bool) {
                let (left, right) = (matrix(left), matrix(right));
                let out = MatMut::from_row_major_slice_mut(out, left.nrows(), right.ncols());
                let mode = if accumulate { Accum::Add } else { Accum::Replace };
                matmul(out, mode, left, right, 1.0, Par::Seq);
            }
        }
    };
}

scalar!(f32, math::exp);
scalar!(f64, f64::exp);
