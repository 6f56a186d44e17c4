//! The backward half of a pass: from the gradient of the logits to those of all parameters.

use super::super::PLACES;
use super::super::buffers::Backward;
use super::{ATTENTION, FFN, Pass, Sequence};
use crate::kernels::cuda::training::Span;
use crate::kernels::cuda::training::attention::{Gradients, RelativeGradients};
use crate::kernels::cuda::training::products::Form;
use crate::kernels::cuda::training::rows::CHUNK;
use crate::kernels::cuda::training::update::Total;
use crate::train::parameters::Id;
use crate::train::transformer_xl::Block;

/// Symbols up to which the gradient of the embedding is summed in shares.
const SHARED_VOCABULARY: usize = 1024;
/// Those shares.
const EMBEDDING_CHUNKS: usize = 16;

impl<'a> Sequence<'a> {
    /// All launches from the loss back to the embedding.
    pub(super) fn backward(&self, to: &'a Backward) {
        let Pass {
            ops, model, buffers, ..
        } = self.pass;
        let (rows, d, vocab) = (self.rows(), self.d(), model.config.vocab);
        let d_logits = Span::from(&to.d_logits);
        let chunks = rows.div_ceil(CHUNK);
        let partial = self.partial(chunks * vocab);
        ops.column_sums(d_logits, partial, [rows, vocab]);
        self.total(partial, chunks, vocab, model.output.1);
        let sizes = [rows, d, vocab];
        self.weight_gradient(model.output.0, sizes, (&buffers.normal).into(), d_logits);
        let weight = self.weight(model.output.0);
        let d_normal = Span::from(&to.normal);
        self.product(Form::InputGradient, sizes, true, false, d_logits, weight, d_normal);
        let last = model.blocks.len();
        self.norm_gradient(
            model.norm,
            None,
            self.x(last),
            (&buffers.statistics).into(),
            [rows, 0],
            true,
            to,
        );
        for (l, block) in model.blocks.iter().enumerate().rev() {
            self.ffn_backward(l, block, to);
            self.attention_backward(l, block, to);
        }
        let ids = Span::from(&buffers.inputs);
        let dx = Span::from(&to.dx);
        if vocab > SHARED_VOCABULARY {
            let table = self.gradient(model.embedding);
            ops.embed_gradient(ids, dx, table, [rows, vocab, d, 1], self.pass.accumulate);
        } else {
            let partial = self.partial(EMBEDDING_CHUNKS * vocab * d);
            ops.embed_gradient(ids, dx, partial, [rows, vocab, d, EMBEDDING_CHUNKS], false);
            self.total(partial, EMBEDDING_CHUNKS, vocab * d, model.embedding);
        }
    }

    /// Through a norm, from `to.normal` to `to.dx`; `rows` are all and those of memory.
    fn norm_gradient(
        &self,
        (gain, bias): (Id, Id),
        memory: Option<Span<'a>>,
        x: Span<'a>,
        statistics: Span<'a>,
        [rows, remembered]: [usize; 2],
        replace: bool,
        to: &'a Backward,
    ) {
        let d = self.d();
        let chunks = rows.div_ceil(CHUNK);
        let partial = self.partial(2 * chunks * d);
        self.pass.ops.norm_gradient(
            memory,
            x,
            statistics,
            self.single(gain),
            (&to.normal).into(),
            (&to.dx).into(),
            partial,
            [rows, remembered, d],
            replace,
        );
        self.total(partial, chunks, 2 * d, gain);
        self.total(partial.after(4 * d), chunks, 2 * d, bias);
    }

    /// The gradient that enters a branch behind dropout, and that of the branch's bias.
    fn branch_gradient(&self, place: usize, bias: Id, to: &'a Backward) -> Span<'a> {
        let (rows, d) = (self.rows(), self.d());
        let chunks = rows.div_ceil(CHUNK);
        let (partial, gradient) = (self.partial(chunks * d), Span::from(&to.branch));
        self.pass
            .ops
            .branch_gradient((&to.dx).into(), gradient, partial, &self.masks(), place, [rows, d]);
        self.total(partial, chunks, d, bias);
        gradient
    }

    fn ffn_backward(&self, l: usize, block: &Block, to: &'a Backward) {
        let (rows, d, ffn) = (self.rows(), self.d(), self.pass.model.config.d_ffn);
        let (tape, ops) = (self.tape(l), self.pass.ops);
        let gradient = self.branch_gradient(PLACES.len() * l + FFN, block.contract.1, to);
        let (hidden, d_hidden) = (Span::from(&tape.hidden), Span::from(&to.hidden));
        let sizes = [rows, ffn, d];
        self.weight_gradient(block.contract.0, sizes, hidden, gradient);
        let weight = self.weight(block.contract.0);
        self.product(Form::InputGradient, sizes, false, false, gradient, weight, d_hidden);
        let chunks = rows.div_ceil(CHUNK);
        let partial = self.partial(chunks * ffn);
        ops.relu_gradient(hidden, d_hidden, partial, &self.masks(), [rows, ffn]);
        self.total(partial, chunks, ffn, block.expand.1);
        let sizes = [rows, d, ffn];
        self.weight_gradient(block.expand.0, sizes, (&tape.middle_normal).into(), d_hidden);
        let weight = self.weight(block.expand.0);
        let d_normal = Span::from(&to.normal);
        self.product(Form::InputGradient, sizes, true, false, d_hidden, weight, d_normal);
        self.norm_gradient(
            block.norm_ffn,
            None,
            (&tape.middle).into(),
            (&tape.middle_statistics).into(),
            [rows, 0],
            false,
            to,
        );
    }

    fn attention_backward(&self, l: usize, block: &Block, to: &'a Backward) {
        let Pass { ops, model, .. } = self.pass;
        let (rows, d, batch) = (self.rows(), self.d(), self.batch());
        let tape = self.tape(l);
        let gradient = self.branch_gradient(PLACES.len() * l + ATTENTION, block.attention.output.1, to);
        let (weight, out) = (block.attention.output.0, Span::from(&tape.out));
        self.weight_gradient(weight, [rows, d, d], out, gradient);
        let (weight, d_out) = (self.weight(weight), Span::from(&to.out));
        self.product(Form::InputGradient, [rows, d, d], false, false, gradient, weight, d_out);
        let operands = self.operands(l, block);
        let heads = [0, 1, 2].map(|at| Span::from(&to.heads[at]));
        let gradients = Gradients {
            out,
            d_out,
            log_sums: (&tape.log_sums).into(),
            delta: (&to.delta).into(),
            d_query: heads[0],
            d_key: heads[1],
            d_value: heads[2],
        };
        let relative = block.attention.relative.map(|ids| {
            let chunks = ops.query_bias_chunks(&operands.sizes);
            let query_bias = self.partial(chunks * d);
            self.total(query_bias, chunks, d, ids.query_bias);
            RelativeGradients {
                query_bias,
                scratch: (&to.table).into(),
                table: self.gradient(ids.table),
                bias: self.gradient(ids.bias),
                reach: model.config.memory + model.config.segment,
                accumulate: self.pass.accumulate,
            }
        });
        ops.attend_gradients(&operands, &gradients, relative.as_ref());
        self.projections_backward(l, block, to);
        self.norm_gradient(
            block.norm_attention,
            Some(self.memory_rows(l)).filter(|_| self.pass.stored > 0),
            self.x(l),
            (&tape.statistics).into(),
            [self.remembered() + rows, self.remembered()],
            false,
            to,
        );
        debug_assert_eq!(rows % batch, 0);
    }

    /// From the gradients of queries, keys and values to that of the normalised rows, in `to.normal`.
    fn projections_backward(&self, l: usize, block: &Block, to: &'a Backward) {
        let Pass { ops, model, .. } = self.pass;
        let (d, batch, head_dim) = (self.d(), self.batch(), self.d() / model.config.heads);
        let tape = self.tape(l);
        let (splits, projections) = (self.splits(block), block.attention.projections());
        // The one that reaches furthest back comes first and sets what the others add to.
        let mut order = [0, 1, 2];
        order.sort_by_key(|&at| self.first_row(&splits[at]));
        let unreached = self.first_row(&splits[order[0]]);
        if unreached > 0 {
            ops.zero((&to.normal).into(), 4 * unreached * d);
        }
        for (nth, at) in order.into_iter().enumerate() {
            let (split, projection) = (&splits[at], &projections[at]);
            let len = (split.skip + split.len) * batch;
            let d_heads = Span::from(&to.heads[at]);
            if let Some(angles) = self.angles(at, split) {
                ops.rotate(d_heads, angles, true, [split.len * batch, batch, d, head_dim]);
            }
            let chunks = len.div_ceil(CHUNK);
            let gradient = if let Some(kernel) = projection.kernel {
                let (width, to) = (model.config.convolution.kernel, Span::from(&to.before));
                let by = self.convolved(kernel, split);
                let partial = self.partial(chunks * (width + 2) * d);
                let before = Span::from(&tape.before[at]);
                ops.convolve_gradient(before, d_heads, &by, to, partial, [len, d]);
                self.kernel_totals(partial, chunks, kernel, width);
                if let Some(bias) = projection.bias {
                    self.total(partial.after(4 * (width + 1) * d), chunks, (width + 2) * d, bias);
                }
                to
            } else {
                if let Some(bias) = projection.bias {
                    let partial = self.partial(chunks * d);
                    ops.column_sums(d_heads, partial, [len, d]);
                    self.total(partial, chunks, d, bias);
                }
                d_heads
            };
            let first = self.first_row(split);
            let x = self.stored_rows(&tape.normal, first);
            self.weight_gradient(projection.weight, [len, d, d], x, gradient);
            let d_normal = Span::from(&to.normal).after(4 * first * d);
            let weight = self.weight(projection.weight);
            self.product(
                Form::InputGradient,
                [len, d, d],
                true,
                nth > 0,
                gradient,
                weight,
                d_normal,
            );
        }
    }

    /// The totals of a convolution's weights, which lie `[channels, width]`, and its bias, over heads that share them.
    fn kernel_totals(&self, partial: Span<'a>, chunks: usize, (weight, bias): (Id, Id), width: usize) {
        let d = self.d();
        let channels = self.pass.model.layout.spec(bias).len();
        let (weight, bias) = (self.gradient(weight), self.gradient(bias));
        for j in 0..=width {
            let (to, to_stride) = if j < width {
                (weight.after(4 * j), width)
            } else {
                (bias, 1)
            };
            self.totals.borrow_mut().push(Total {
                from: partial.after(4 * j * d),
                to,
                chunks,
                chunk_stride: (width + 2) * d,
                columns: channels,
                folds: d / channels,
                to_stride,
                accumulate: self.pass.accumulate,
            });
        }
    }
}
