//! The small matrix product inside attention: `[m, k] x [k, n]`, all row-major, on one thread, in registers.
//!
//! Attention multiplies blocks of a few dozen rows by one head's keys or values, thousands of times a step. A general
//! product would spend as long on packing them; here both operands are read where they lie.

use super::scalar::Scalar;
use pulp::{Arch, Simd, WithSimd};

/// The operands' places: distance of rows.
#[derive(Debug, Clone, Copy)]
pub struct Strides {
    /// Of the left matrix.
    pub left: usize,
    /// Of the right matrix.
    pub right: usize,
    /// Of the result.
    pub out: usize,
}

/// `out[m, n] = left[m, k] right[k, n]`, or `+=`.
///
/// It chooses its instructions itself, so that it is compiled once and not into every caller.
#[inline(never)]
pub fn block_product<T: Scalar, const ADD: bool>(
    out: &mut [T],
    left: &[T],
    right: &[T],
    size: (usize, usize, usize),
    strides: Strides,
) {
    Arch::new().dispatch(Product::<T, ADD> {
        out,
        left,
        right,
        size,
        strides,
    });
}

struct Product<'a, T, const ADD: bool> {
    out: &'a mut [T],
    left: &'a [T],
    right: &'a [T],
    size: (usize, usize, usize),
    strides: Strides,
}

impl<T: Scalar, const ADD: bool> WithSimd for Product<'_, T, ADD> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Product {
            out,
            left,
            right,
            size: (m, k, n),
            strides,
        } = self;
        let mut row = 0;
        while row < m {
            row += match m - row {
                1 => columns::<T, ADD, 1>(out, left, right, (row, k, n), strides),
                2..8 => columns::<T, ADD, 2>(out, left, right, (row, k, n), strides),
                _ => columns::<T, ADD, 8>(out, left, right, (row, k, n), strides),
            };
        }
    }
}

/// All columns of `MR` rows; returns `MR`.
#[inline(always)]
fn columns<T: Scalar, const ADD: bool, const MR: usize>(
    out: &mut [T],
    left: &[T],
    right: &[T],
    (row, k, n): (usize, usize, usize),
    strides: Strides,
) -> usize {
    let mut rows = [&left[..0]; MR];
    for (r, slice) in rows.iter_mut().enumerate() {
        *slice = &left[(row + r) * strides.left..][..k];
    }
    let mut column = 0;
    while n - column >= 32 {
        tile::<T, ADD, MR, 32>(out, &rows, right, row, column, strides);
        column += 32;
    }
    while n - column >= 16 {
        tile::<T, ADD, MR, 16>(out, &rows, right, row, column, strides);
        column += 16;
    }
    while column < n {
        tile::<T, ADD, MR, 1>(out, &rows, right, row, column, strides);
        column += 1;
    }
    MR
}

/// `MR x NR` results, which stay in registers while `k` goes by.
#[inline(always)]
fn tile<T: Scalar, const ADD: bool, const MR: usize, const NR: usize>(
    out: &mut [T],
    rows: &[&[T]; MR],
    right: &[T],
    row: usize,
    column: usize,
    strides: Strides,
) {
    let depth = rows[0].len();
    let mut rows = *rows;
    // One length for all slices, known to bound k, lets the compiler drop the bounds checks of the loop.
    for slice in &mut rows {
        *slice = &slice[..depth];
    }
    let mut sums = [[T::ZERO; NR]; MR];
    for k in 0..depth {
        let mut line = [T::ZERO; NR];
        line.copy_from_slice(&right[k * strides.right + column..][..NR]);
        for r in 0..MR {
            let x = rows[r][k];
            for c in 0..NR {
                sums[r][c] = x.fused(line[c], sums[r][c]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        let line = &mut out[(row + r) * strides.out + column..][..NR];
        for c in 0..NR {
            line[c] = if ADD { line[c] + sums[c] } else { sums[c] };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream_rng;
    use proptest::prelude::*;
    use rand::Rng;

    proptest! {
        #[test]
        fn any_shape_agrees_with_three_loops(m in 1usize..20, k in 1usize..20, n in 1usize..80, pad in 0usize..3) {
            let strides = Strides { left: k + pad, right: n + pad, out: n + 2 * pad };
            let mut rng = stream_rng(m as u64, "block");
            let mut random = |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f64>>();
            let (left, right) = (random(m * strides.left), random(k * strides.right));
            let mut out = random(m * strides.out);
            let mut expected = out.clone();
            for i in 0..m {
                for j in 0..n {
                    for c in 0..k {
                        expected[i * strides.out + j] += left[i * strides.left + c] * right[c * strides.right + j];
                    }
                }
            }
            block_product::<f64, true>(&mut out, &left, &right, (m, k, n), strides);
            for (a, b) in out.iter().zip(&expected) {
                prop_assert!((a - b).abs() < 1e-12);
            }
        }
    }
}
