//! The kernels over all heads and streams, in parallel pieces of fixed size.

use super::core::{self, Gradients, Kept, Operands, Relative, RelativeGradients, Shape};
use super::layer::Tape;
use super::scratch::Scratch;
use crate::train::dropout::Dropout;
use crate::train::scalar::Scalar;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// The relative parameters in the order of the kernels, by head.
pub(super) struct Table<T> {
    /// `[H, N, dk]`.
    pub rows: Vec<T>,
    /// `[H, dk, stride]`.
    pub transposed: Vec<T>,
    /// `[H, N]`.
    pub bias: Vec<T>,
}

/// One call of the kernels over all tasks.
pub(super) struct Call<'a, T> {
    pub shape: Shape,
    pub query: &'a [T],
    pub key: &'a [T],
    pub value: &'a [T],
    /// Relative parameters, and v.
    pub table: Option<(&'a Table<T>, &'a [T])>,
    pub dropout: &'a Dropout,
    /// Tasks of a piece.
    pub unit: usize,
}

impl<'a, T: Scalar> Call<'a, T> {
    fn operands(&self, task: usize) -> Operands<'a, T> {
        let shape = &self.shape;
        let head = task / shape.batch;
        let (d, keys) = (shape.head_dim, shape.keys());
        let relative = self.table.map(|(table, query_bias)| Relative {
            table: &table.rows[head * keys * d..][..keys * d],
            table_t: &table.transposed[head * d * shape.stride()..][..d * shape.stride()],
            bias: &table.bias[head * keys..][..keys],
            query_bias: &query_bias[head * d..][..d],
        });
        Operands {
            query: &self.query[task * shape.query_len()..][..shape.query_len()],
            key: &self.key[task * shape.key_len()..][..shape.key_len()],
            value: &self.value[task * shape.key_len()..][..shape.key_len()],
            relative,
            dropout: self.dropout,
            task,
        }
    }

    /// Fills `out`, and `statistics` and `weights` unless they are empty.
    pub fn forward(&self, out: &mut [T], statistics: &mut [T], weights: &mut [T]) {
        let shape = &self.shape;
        let (unit, arch) = (self.unit, Arch::new());
        let rows = unit * shape.segment;
        // `par_chunks_mut` of an empty slice has no pieces; these are then cut by hand.
        let mut statistics: Vec<Option<&mut [T]>> = optional_pieces(statistics, 2 * rows, shape.tasks() / unit);
        let mut weights: Vec<Option<&mut [T]>> = optional_pieces(weights, rows * shape.keys(), shape.tasks() / unit);
        let pieces = out
            .par_chunks_mut(unit * shape.query_len())
            .zip(&mut statistics)
            .zip(&mut weights);
        pieces.enumerate().for_each_init(
            || Scratch::new(shape, false),
            |scratch, (number, ((out, statistics), weights))| {
                arch.dispatch(ForwardUnit {
                    call: self,
                    first: number * unit,
                    out,
                    statistics: statistics.as_deref_mut(),
                    weights: weights.as_deref_mut(),
                    scratch,
                });
            },
        );
    }

    /// Gradients of queries, keys and values, and by piece those of the relative parameters.
    pub fn backward(&self, tape: &Tape<T>, d_out: &[T], d_heads: &mut [Vec<T>; 3]) -> Vec<RelativeGradients<T>> {
        let shape = &self.shape;
        let (unit, arch) = (self.unit, Arch::new());
        let [query, key, value] = d_heads;
        let pieces = query.par_chunks_mut(unit * shape.query_len());
        let pieces = pieces.zip(key.par_chunks_mut(unit * shape.key_len()));
        let pieces = pieces.zip(value.par_chunks_mut(unit * shape.key_len()));
        let sums = pieces.enumerate().map_init(
            || Scratch::new(shape, true),
            |scratch, (number, ((query, key), value))| {
                arch.dispatch(BackwardUnit {
                    call: self,
                    tape,
                    first: number * unit,
                    d_out,
                    gradients: Gradients { query, key, value },
                    scratch,
                })
            },
        );
        sums.collect::<Vec<_>>().into_iter().flatten().collect()
    }
}

fn optional_pieces<T>(data: &mut [T], len: usize, count: usize) -> Vec<Option<&mut [T]>> {
    if data.is_empty() {
        (0..count).map(|_| None).collect()
    } else {
        data.chunks_mut(len).map(Some).collect()
    }
}

/// Some tasks forward. (A struct and not a closure: closures of this size are not inlined into the dispatched code.)
struct ForwardUnit<'a, 'b, T> {
    call: &'a Call<'b, T>,
    first: usize,
    out: &'a mut [T],
    statistics: Option<&'a mut [T]>,
    weights: Option<&'a mut [T]>,
    scratch: &'a mut Scratch<T>,
}

impl<T: Scalar> WithSimd for ForwardUnit<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) {
        let shape = &self.call.shape;
        let (rows, keys) = (shape.segment, shape.keys());
        for (at, out) in self.out.chunks_exact_mut(shape.query_len()).enumerate() {
            let operands = self.call.operands(self.first + at);
            let statistics = self
                .statistics
                .as_deref_mut()
                .map(|all| &mut all[at * 2 * rows..][..2 * rows]);
            let weights = self
                .weights
                .as_deref_mut()
                .map(|all| &mut all[at * rows * keys..][..rows * keys]);
            core::forward(shape, &operands, out, statistics, weights, self.scratch);
        }
    }
}

/// Some tasks of one head backward.
struct BackwardUnit<'a, 'b, T> {
    call: &'a Call<'b, T>,
    tape: &'a Tape<T>,
    first: usize,
    d_out: &'a [T],
    gradients: Gradients<'a, T>,
    scratch: &'a mut Scratch<T>,
}

impl<T: Scalar> WithSimd for BackwardUnit<'_, '_, T> {
    type Output = Option<RelativeGradients<T>>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let shape = &self.call.shape;
        let (rows, keys) = (shape.segment, shape.keys());
        let mut sums = self.call.table.is_some().then(|| RelativeGradients::zeros(shape));
        let queries = self.gradients.query.chunks_exact_mut(shape.query_len());
        let keys_values = self.gradients.key.chunks_exact_mut(shape.key_len());
        let keys_values = keys_values.zip(self.gradients.value.chunks_exact_mut(shape.key_len()));
        for (at, (query, (key, value))) in queries.zip(keys_values).enumerate() {
            let task = self.first + at;
            let weights = Some(&self.tape.weights).filter(|weights| !weights.is_empty());
            let kept = Kept {
                out: &self.tape.out_heads[task * shape.query_len()..][..shape.query_len()],
                statistics: &self.tape.statistics[task * 2 * rows..][..2 * rows],
                weights: weights.map(|weights| &weights[task * rows * keys..][..rows * keys]),
            };
            let d_out = &self.d_out[task * shape.query_len()..][..shape.query_len()];
            let mut gradients = Gradients { query, key, value };
            let operands = self.call.operands(task);
            core::backward(
                shape,
                &operands,
                &kept,
                d_out,
                &mut gradients,
                sums.as_mut(),
                self.scratch,
            );
        }
        sums
    }
}
