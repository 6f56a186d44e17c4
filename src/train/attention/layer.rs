//! One attention layer: projections, convolution, softmax over memory and segment, output projection.
//!
//! Rows are `[time, stream, d]`, so the segment's rows follow the memory's in one buffer.

use super::call::{Call, Table};
use super::core::{Keep, RelativeGradients, Shape};
use super::heads::{Kernel, Path, Rotary, Split, merge};
use super::scratch::Scratch;
use super::{AttentionKind, Convolution, Positions, TableSize};
use crate::error::Result;
use crate::train::dropout::Dropout;
use crate::train::linear::{self, Finish, add};
use crate::train::parameters::{Id, Init, Layout};
use crate::train::pool::Pool;
use crate::train::scalar::Scalar;

/// What a layer is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerConfig {
    /// Which attention.
    pub kind: AttentionKind,
    /// d.
    pub d_model: usize,
    /// H; divides d.
    pub heads: usize,
    /// Most memory rows that are attended to.
    pub memory: usize,
    /// Segment length of training.
    pub segment: usize,
    /// The convolution of kinds that have one.
    pub convolution: Convolution,
    /// Size of the relative table of kinds that have one.
    pub table: TableSize,
}

impl LayerConfig {
    /// Rows before the memory that are stored for the convolutions alone.
    pub fn carried(&self) -> usize {
        if self.kind.parts().carry {
            self.convolution.kernel - 1
        } else {
            0
        }
    }
}

/// A projection and, if it has one, its convolution.
#[derive(Debug, Clone, Copy)]
pub(in crate::train) struct Projection {
    pub weight: Id,
    pub bias: Option<Id>,
    pub kernel: Option<(Id, Id)>,
}

/// The learned relative parameters: R `[rows, H, dk]`, S `[rows, H]`, v `[H, dk]`.
#[derive(Debug, Clone, Copy)]
pub(in crate::train) struct RelativeIds {
    pub table: Id,
    pub bias: Id,
    pub query_bias: Id,
    /// Row of distance 0.
    pub zero: usize,
}

/// An attention layer's place in the parameters.
#[derive(Debug, Clone)]
pub struct AttentionLayer {
    config: LayerConfig,
    query: Projection,
    key: Projection,
    value: Projection,
    pub(in crate::train) output: (Id, Id),
    pub(in crate::train) relative: Option<RelativeIds>,
}

/// What the backward pass needs of a forward pass.
#[derive(Debug)]
pub struct Tape<T> {
    shape: Shape,
    /// Projected rows before the convolution; empty without one.
    before: [Vec<T>; 3],
    /// Queries, keys, values as heads.
    heads: [Vec<T>; 3],
    /// Result of the heads, `[H, B, T, dk]` and as rows.
    pub(super) out_heads: Vec<T>,
    out_rows: Vec<T>,
    pub(super) statistics: Vec<T>,
    /// Empty if they are computed again.
    pub(super) weights: Vec<T>,
    dropout: Dropout,
}

impl AttentionLayer {
    /// Adds the layer's tensors under `prefix`.
    pub fn new(layout: &mut Layout, prefix: &str, config: LayerConfig) -> Result<Self> {
        let (d, parts) = (config.d_model, config.kind.parts());
        let head_dim = d / config.heads;
        let bound = 1.0 / (d as f64).sqrt();
        let mut projection = |name: &str, bias: bool, convolved: bool| {
            let weight = layout.add(format!("{prefix}.{name}.weight"), &[d, d], Init::Uniform(bound));
            let bias = bias.then(|| layout.add(format!("{prefix}.{name}.bias"), &[d], Init::Uniform(bound)));
            let kernel = (parts.convolution && convolved).then(|| {
                let channels = if config.convolution.per_head { d } else { head_dim };
                let width = config.convolution.kernel;
                let bound = 1.0 / (width as f64).sqrt();
                let name = format!("{prefix}.{name}.convolution");
                let weight = layout.add(format!("{name}.weight"), &[channels, 1, width], Init::Uniform(bound));
                (
                    weight,
                    layout.add(format!("{name}.bias"), &[channels], Init::Uniform(bound)),
                )
            });
            Projection { weight, bias, kernel }
        };
        let query = projection("query", parts.query_key_bias, config.convolution.query);
        let key = projection("key", parts.query_key_bias, config.convolution.key);
        let value = projection("value", true, config.convolution.value);
        let output = (
            layout.add(format!("{prefix}.output.weight"), &[d, d], Init::Uniform(bound)),
            layout.add(format!("{prefix}.output.bias"), &[d], Init::Uniform(bound)),
        );
        let mut relative = None;
        if parts.positions == Positions::Relative {
            let (rows, zero) = config.table.rows(config.memory, config.segment)?;
            let reach = zero + 1 - (config.memory + config.segment);
            let mut table = |name: &str, shape: &[usize]| {
                let width: usize = shape[1..].iter().product();
                let reached = reach * width..(zero + 1) * width;
                layout.add_reached(format!("{prefix}.{name}"), shape, Init::Zeros, reached)
            };
            relative = Some(RelativeIds {
                table: table("relative.table", &[rows, config.heads, head_dim]),
                bias: table("relative.bias", &[rows, config.heads]),
                query_bias: layout.add(
                    format!("{prefix}.relative.query_bias"),
                    &[config.heads, head_dim],
                    Init::Zeros,
                ),
                zero,
            });
        }
        Ok(Self {
            config,
            query,
            key,
            value,
            output,
            relative,
        })
    }

    /// Bytes that a backward pass over full memory takes beside the buffers of the pool: scratch of every thread, the
    /// table in the order of the kernels, and its gradients by piece.
    pub fn working_bytes<T: Scalar>(&self, batch: usize, threads: usize) -> usize {
        let shape = self.shape(batch, self.config.memory, self.config.segment);
        let splits = self.splits(batch, self.config.memory, self.config.segment);
        let scratch = threads * Scratch::<T>::new(&shape, true).bytes();
        if self.relative.is_none() {
            return scratch;
        }
        let (d, keys) = (shape.head_dim, shape.keys());
        let table = shape.heads * (keys * d + d * shape.stride() + keys);
        let sums = shape.tasks() / splits[0].unit() * (d * shape.stride() + keys + d);
        scratch + (table + sums) * size_of::<T>()
    }

    pub(in crate::train) fn projections(&self) -> [Projection; 3] {
        [self.query, self.key, self.value]
    }

    fn shape(&self, batch: usize, memory: usize, segment: usize) -> Shape {
        Shape {
            batch,
            heads: self.config.heads,
            head_dim: self.config.d_model / self.config.heads,
            memory,
            segment,
        }
    }

    /// Rows of the input that each projection starts from, and how many come out, for `stored` memory rows.
    pub(in crate::train) fn splits(&self, batch: usize, stored: usize, segment: usize) -> [Split; 3] {
        let memory = stored.min(self.config.memory);
        let split = |projection: &Projection, before: usize, len: usize| Split {
            batch,
            heads: self.config.heads,
            head_dim: self.config.d_model / self.config.heads,
            // Rows before the first are for convolutions only.
            skip: if projection.kernel.is_some() { before } else { 0 },
            len,
        };
        [
            split(&self.query, self.config.carried().min(stored), segment),
            split(&self.key, stored - memory, memory + segment),
            split(&self.value, stored - memory, memory + segment),
        ]
    }

    fn kernel<'a, T: Scalar>(&self, layout: &Layout, data: &'a [T], projection: &Projection) -> Option<Kernel<'a, T>> {
        projection.kernel.map(|(weight, bias)| Kernel {
            width: self.config.convolution.kernel,
            weight: layout.get(data, weight),
            bias: layout.get(data, bias),
        })
    }

    fn rotary<T: Scalar>(&self, shape: &Shape) -> Option<Rotary<T>> {
        let rotary = self.config.kind.parts().positions == Positions::Rotary;
        rotary.then(|| Rotary::new(shape.keys(), shape.head_dim))
    }

    fn table<T: Scalar>(&self, layout: &Layout, data: &[T], shape: &Shape) -> Option<Table<T>> {
        let ids = self.relative?;
        let (keys, d, stride, heads) = (shape.keys(), shape.head_dim, shape.stride(), shape.heads);
        let first = ids.zero + 1 - keys;
        let (table, bias) = (layout.get(data, ids.table), layout.get(data, ids.bias));
        let mut out = Table {
            rows: vec![T::ZERO; heads * keys * d],
            transposed: vec![T::ZERO; heads * d * stride],
            bias: vec![T::ZERO; heads * keys],
        };
        for u in 0..keys {
            for h in 0..heads {
                let row = &table[((first + u) * heads + h) * d..][..d];
                out.rows[(h * keys + u) * d..][..d].copy_from_slice(row);
                for (c, &value) in row.iter().enumerate() {
                    out.transposed[(h * d + c) * stride + u] = value;
                }
                out.bias[h * keys + u] = bias[(first + u) * heads + h];
            }
        }
        Some(out)
    }

    /// Attention of the last `segment` rows of `input` `[stored + segment, B, d]`; the result, plus `residual`, goes to
    /// `out` `[segment, B, d]`.
    pub fn forward<T: Scalar>(
        &self,
        layout: &Layout,
        data: &[T],
        input: &[T],
        (batch, segment): (usize, usize),
        keep: Keep,
        dropout: &Dropout,
        residual: Option<&[T]>,
        out: &mut [T],
        pool: &mut Pool<T>,
    ) -> Tape<T> {
        let d = self.config.d_model;
        let stored = input.len() / (batch * d) - segment;
        let splits = self.splits(batch, stored, segment);
        let shape = self.shape(batch, stored.min(self.config.memory), segment);
        let rotary = self.rotary(&shape);
        let mut before = [Vec::new(), Vec::new(), Vec::new()];
        let mut heads = [Vec::new(), Vec::new(), Vec::new()];
        for (at, (projection, split)) in self.projections().iter().zip(&splits).enumerate() {
            let x = &input[input.len() - (split.skip + split.len) * batch * d..];
            let mut rows = pool.take(x.len());
            let bias = projection.bias.map(|id| layout.get(data, id));
            linear::forward(
                x,
                layout.get(data, projection.weight),
                bias,
                d,
                d,
                Finish::Plain,
                &mut rows,
            );
            heads[at] = pool.take(split.len * batch * d);
            let path = self.path(layout, data, at, *split, rotary.as_ref(), &shape);
            path.forward(&rows, &mut heads[at]);
            if path.kernel.is_some() && keep != Keep::Nothing {
                before[at] = rows;
            } else {
                pool.give(rows);
            }
        }
        let table = self.table(layout, data, &shape);
        let mut out_heads = pool.take(segment * batch * d);
        let kept = |wanted: bool, len: usize| if wanted { len } else { 0 };
        let mut statistics = pool.take(kept(keep != Keep::Nothing, 2 * shape.tasks() * segment));
        let weights_len = kept(keep == Keep::Weights, shape.tasks() * segment * shape.keys());
        let mut weights = pool.take(weights_len);
        let query_bias = self.relative.map(|ids| layout.get(data, ids.query_bias));
        let call = Call {
            shape,
            query: &heads[0],
            key: &heads[1],
            value: &heads[2],
            table: table.as_ref().zip(query_bias),
            dropout,
            unit: splits[0].unit(),
        };
        call.forward(&mut out_heads, &mut statistics, &mut weights);
        let mut out_rows = pool.take(segment * batch * d);
        merge(&splits[0], segment, &out_heads, &mut out_rows);
        let (weight, bias) = (layout.get(data, self.output.0), layout.get(data, self.output.1));
        let finish = residual.map_or(Finish::Plain, Finish::Add);
        linear::forward(&out_rows, weight, Some(bias), d, d, finish, out);
        Tape {
            shape,
            before,
            heads,
            out_heads,
            out_rows,
            statistics,
            weights,
            dropout: dropout.clone(),
        }
    }

    fn path<'a, T: Scalar>(
        &self,
        layout: &Layout,
        data: &'a [T],
        which: usize,
        split: Split,
        rotary: Option<&'a Rotary<T>>,
        shape: &Shape,
    ) -> Path<'a, T> {
        // The last key is the last query; values are not turned.
        let rotary = rotary
            .filter(|_| which < 2)
            .map(|rotary| (rotary, shape.keys() - split.len));
        Path {
            split,
            kernel: self.kernel(layout, data, &self.projections()[which]),
            rotary,
        }
    }

    /// Gradients of [`AttentionLayer::forward`], without those of `residual`: `d_input` is set, `grads` added to.
    pub fn backward<T: Scalar>(
        &self,
        layout: &Layout,
        data: &[T],
        input: &[T],
        tape: Tape<T>,
        d_out: &[T],
        d_input: &mut [T],
        grads: &mut [T],
        pool: &mut Pool<T>,
    ) {
        let d = self.config.d_model;
        let shape = tape.shape;
        let (batch, segment) = (shape.batch, shape.segment);
        let stored = input.len() / (batch * d) - segment;
        let splits = self.splits(batch, stored, segment);
        linear::backward_weight(&tape.out_rows, d_out, d, d, layout.get_mut(grads, self.output.0));
        linear::backward_bias(d_out, layout.get_mut(grads, self.output.1));
        let mut d_rows = pool.take(segment * batch * d);
        linear::backward_input(d_out, layout.get(data, self.output.0), d, d, false, &mut d_rows);
        let mut d_out_heads = pool.take(segment * batch * d);
        let plain = Path {
            split: Split { skip: 0, ..splits[0] },
            kernel: None,
            rotary: None,
        };
        plain.forward(&d_rows, &mut d_out_heads);
        pool.give(d_rows);

        let table = self.table(layout, data, &shape);
        let query_bias = self.relative.map(|ids| layout.get(data, ids.query_bias));
        let call = Call {
            shape,
            query: &tape.heads[0],
            key: &tape.heads[1],
            value: &tape.heads[2],
            table: table.as_ref().zip(query_bias),
            dropout: &tape.dropout,
            unit: splits[0].unit(),
        };
        let mut d_heads = [0, 1, 2].map(|at| pool.take(tape.heads[at].len()));
        let sums = call.backward(&tape, &d_out_heads, &mut d_heads);
        self.add_relative(layout, &shape, call.unit, &sums, grads);
        pool.give(d_out_heads);
        let Tape {
            before,
            heads,
            out_heads,
            out_rows,
            statistics,
            weights,
            ..
        } = tape;
        for buffer in heads {
            pool.give(buffer);
        }
        pool.give(weights);
        pool.give(out_rows);
        pool.give(out_heads);
        pool.give(statistics);

        d_input.fill(T::ZERO);
        let rotary = self.rotary(&shape);
        let projections = self.projections();
        for (at, (before, mut d_heads)) in before.into_iter().zip(d_heads).enumerate() {
            let (projection, split) = (&projections[at], splits[at]);
            let len = (split.skip + split.len) * batch * d;
            let mut d_pre = pool.take(len);
            let path = self.path(layout, data, at, split, rotary.as_ref(), &shape);
            let d_kernel = projection
                .kernel
                .map(|(weight, bias)| layout.pair_mut(grads, weight, bias));
            path.backward(&before, &mut d_heads, &mut d_pre, d_kernel);
            pool.give(d_heads);
            let mut d_rows = pool.take(len);
            merge(&split, split.skip + split.len, &d_pre, &mut d_rows);
            pool.give(d_pre);
            if !before.is_empty() {
                pool.give(before);
            }
            let first = input.len() - len;
            let weight = layout.get(data, projection.weight);
            linear::backward_weight(&input[first..], &d_rows, d, d, layout.get_mut(grads, projection.weight));
            if let Some(bias) = projection.bias {
                linear::backward_bias(&d_rows, layout.get_mut(grads, bias));
            }
            linear::backward_input(&d_rows, weight, d, d, true, &mut d_input[first..]);
            pool.give(d_rows);
        }
    }

    /// Adds the gradients of the relative parameters, pieces in order.
    fn add_relative<T: Scalar>(
        &self,
        layout: &Layout,
        shape: &Shape,
        unit: usize,
        sums: &[RelativeGradients<T>],
        grads: &mut [T],
    ) {
        let Some(ids) = self.relative else { return };
        let (keys, d, stride, heads) = (shape.keys(), shape.head_dim, shape.stride(), shape.heads);
        let first = ids.zero + 1 - keys;
        for (number, sum) in sums.iter().enumerate() {
            let h = number * unit / shape.batch;
            let table = layout.get_mut(grads, ids.table);
            for u in 0..keys {
                let row = &mut table[((first + u) * heads + h) * d..][..d];
                for (c, value) in row.iter_mut().enumerate() {
                    *value += sum.table_t[c * stride + u];
                }
            }
            let bias = layout.get_mut(grads, ids.bias);
            for u in 0..keys {
                bias[(first + u) * heads + h] += sum.bias[u];
            }
            add(
                &mut layout.get_mut(grads, ids.query_bias)[h * d..(h + 1) * d],
                &sum.query_bias,
            );
        }
    }
}

impl<T: Scalar> Tape<T> {
    /// Gives the buffers back without a backward pass.
    pub fn discard(self, pool: &mut Pool<T>) {
        let buffers = self.before.into_iter().filter(|buffer| !buffer.is_empty());
        let buffers = buffers.chain(self.heads);
        buffers.for_each(|buffer| pool.give(buffer));
        for buffer in [self.out_heads, self.out_rows, self.statistics, self.weights] {
            pool.give(buffer);
        }
    }
}
