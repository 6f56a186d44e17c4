//! One pass of the model on a GPU, launch by launch: [`crate::train::transformer_xl`] and its layers, in the same order.

use super::PLACES;
use super::buffers::{Backward, Buffers, Constants, Parameters, Tape};
use crate::kernels::cuda::driver::Memory;
use crate::kernels::cuda::training::attention::{Gradients, Operands, Relative, RelativeGradients, Sizes};
use crate::kernels::cuda::training::products::{Form, Shape};
use crate::kernels::cuda::training::rows::{Branch, CHUNK, Convolved, Norm};
use crate::kernels::cuda::training::update::{Jobs, Pieces, Total};
use crate::kernels::cuda::training::{Masks, Span, Training};
use crate::train::attention::Positions;
use crate::train::attention::heads::Split;
use crate::train::dropout::Dropout;
use crate::train::parameters::Id;
use crate::train::transformer_xl::{Block, TransformerXl};
use std::cell::{Cell, RefCell};

/// Symbols up to which the gradient of the embedding is summed in shares.
const SHARED_VOCABULARY: usize = 1024;
/// Those shares.
const EMBEDDING_CHUNKS: usize = 16;
/// Places of dropout keys of a layer, as [`PLACES`] orders them.
const WEIGHTS: usize = 0;
const ATTENTION: usize = 1;
const HIDDEN: usize = 2;
const FFN: usize = 3;

/// What a pass works on.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    pub ops: &'a Training,
    pub model: &'a TransformerXl,
    pub parameters: &'a Parameters,
    pub constants: &'a Constants,
    pub buffers: &'a Buffers,
    /// f32 `[layers, stored rows, B, d]`, the last `stored` rows of which are there.
    pub memory: &'a Memory,
    pub stored: usize,
    /// Probability.
    pub dropout: f64,
    /// Factor on the summed loss.
    pub scale: f64,
    /// Where loss and correct rows go, and the sum of squared gradients.
    pub outcome: &'a Memory,
    /// Whether outcome and gradients are added to those that are there.
    pub accumulate: bool,
    /// What the norm is taken over after the pass.
    pub squares: Option<&'a Pieces>,
}

/// The launches of a pass. Partial sums take their place in the arena one after the other, so that two runs over the same
/// shapes find the same places.
pub struct Sequence<'a> {
    pass: Pass<'a>,
    totals: RefCell<Vec<Total<'a>>>,
    used: Cell<usize>,
}

impl<'a> Sequence<'a> {
    pub fn new(pass: Pass<'a>) -> Self {
        Self {
            pass,
            totals: RefCell::default(),
            used: Cell::new(0),
        }
    }

    /// All launches but the sum of the partial sums; the totals to sum, and the bytes of the arena.
    pub fn run(self) -> (Vec<Total<'a>>, usize) {
        self.forward();
        if let Some(backward) = &self.pass.buffers.backward {
            self.backward(backward);
        }
        (self.totals.take(), self.used.get())
    }

    /// The whole pass, with the table of its totals.
    pub fn run_all(self, jobs: &Jobs) {
        let pass = self.pass;
        let training = pass.buffers.backward.is_some();
        self.run();
        if training {
            pass.ops.reduce(jobs);
        }
        if let Some(pieces) = pass.squares {
            let squares = Span::from(pass.outcome).after(16);
            pass.ops.sum_squares((&pass.parameters.grads).into(), pieces, squares);
        }
        let config = &pass.model.config;
        let row = pass.buffers.batch * config.d_model;
        let sizes = [config.layers, pass.model.stored_rows() * row, config.segment * row];
        pass.ops.remember(pass.memory.into(), (&pass.buffers.x).into(), sizes);
    }

    // ---- places ----------------------------------------------------------------------------------------------------

    fn d(&self) -> usize {
        self.pass.model.config.d_model
    }

    fn batch(&self) -> usize {
        self.pass.buffers.batch
    }

    /// Rows of the segment, times streams.
    fn rows(&self) -> usize {
        self.pass.model.config.segment * self.batch()
    }

    /// Rows of the memory, times streams.
    fn remembered(&self) -> usize {
        self.pass.stored * self.batch()
    }

    fn x(&self, layer: usize) -> Span<'a> {
        Span::from(&self.pass.buffers.x).after(4 * layer * self.rows() * self.d())
    }

    fn tape(&self, layer: usize) -> &'a Tape {
        &self.pass.buffers.tapes[layer % self.pass.buffers.tapes.len()]
    }

    fn memory_rows(&self, layer: usize) -> Span<'a> {
        let stored = self.pass.model.stored_rows();
        let first = (layer * stored + stored - self.pass.stored) * self.batch() * self.d();
        Span::from(self.pass.memory).after(4 * first)
    }

    /// Stored rows from row `first` (times streams) on.
    fn stored_rows(&self, memory: &'a Memory, first: usize) -> Span<'a> {
        Span::from(memory).after(self.pass.ops.value_bytes() * first * self.d())
    }

    fn single(&self, id: Id) -> Span<'a> {
        self.pass.parameters.single(&self.pass.model.layout, id)
    }

    fn gradient(&self, id: Id) -> Span<'a> {
        self.pass.parameters.gradient(&self.pass.model.layout, id)
    }

    fn weight(&self, id: Id) -> Span<'a> {
        self.pass.parameters.stored(&self.pass.model.layout, id)
    }

    fn norm_of(&self, (gain, bias): (Id, Id)) -> Norm<'a> {
        Norm {
            gain: self.single(gain),
            bias: self.single(bias),
        }
    }

    fn masks(&self) -> Masks<'a> {
        let dropout = Dropout::new(self.pass.dropout, 0, String::new());
        Masks {
            keys: Span::from(&self.pass.buffers.inputs).after(8 * self.rows()),
            threshold: dropout.threshold(),
            keep: dropout.keep() as f32,
        }
    }

    /// Encodings from the place of the segment, or of the memory's first row, on.
    fn sinusoid(&self, of_memory: bool) -> Option<Span<'a>> {
        let before = if of_memory { self.pass.stored } else { 0 };
        let first = self.pass.model.config.memory.saturating_sub(before);
        let sinusoids = self.pass.constants.sinusoids.as_ref()?;
        Some(Span::from(sinusoids).after(4 * first * self.d()))
    }

    /// Partial sums of `len` f32.
    fn partial(&self, len: usize) -> Span<'a> {
        let first = self.used.get();
        self.used.set(first + (4 * len).next_multiple_of(256));
        Span::from(&self.pass.buffers.partial).after(first)
    }

    /// Sums chunks of `columns` neighbouring f32, `chunk_stride` apart, into the gradient of `id`.
    fn total(&self, from: Span<'a>, chunks: usize, chunk_stride: usize, id: Id) {
        let columns = self.pass.model.layout.spec(id).len();
        self.totals.borrow_mut().push(Total {
            from,
            to: self.gradient(id),
            chunks,
            chunk_stride,
            columns,
            folds: 1,
            to_stride: 1,
            accumulate: self.pass.accumulate,
        });
    }

    fn product(
        &self,
        form: Form,
        [rows, inputs, outputs]: [usize; 3],
        single: bool,
        add: bool,
        left: Span<'_>,
        right: Span<'_>,
        out: Span<'_>,
    ) {
        let shape = Shape {
            form,
            rows,
            inputs,
            outputs,
            single,
            add,
        };
        self.pass.ops.product(shape, left, right, None, out);
    }

    /// `dW` of an affine map, from its stored input and gradient.
    fn weight_gradient(&self, id: Id, sizes: [usize; 3], x: Span<'_>, dy: Span<'_>) {
        let accumulate = self.pass.accumulate;
        self.product(Form::WeightGradient, sizes, true, accumulate, x, dy, self.gradient(id));
    }

    // ---- forward ---------------------------------------------------------------------------------------------------

    fn forward(&self) {
        let Pass {
            ops, model, buffers, ..
        } = self.pass;
        let (rows, d, config) = (self.rows(), self.d(), &model.config);
        let ids = Span::from(&buffers.inputs);
        ops.embed(ids, self.single(model.embedding), self.x(0), [rows, config.vocab, d]);
        self.normalise(0, None);
        for (l, block) in model.blocks.iter().enumerate() {
            self.block_forward(l, block);
        }
        let sizes = [rows, d, config.vocab];
        let (weight, bias) = (self.weight(model.output.0), self.single(model.output.1));
        let logits = Span::from(&buffers.logits);
        self.product(
            Form::Forward,
            sizes,
            true,
            false,
            (&buffers.normal).into(),
            weight,
            logits,
        );
        let (losses, correct) = ((&buffers.losses).into(), (&buffers.correct).into());
        ops.cross_entropy(
            logits,
            bias,
            ids.after(4 * rows),
            buffers.backward.as_ref().map(|backward| (&backward.d_logits).into()),
            losses,
            correct,
            [rows, config.vocab],
            self.pass.scale,
        );
        ops.outcome(losses, correct, self.pass.outcome.into(), rows, self.pass.accumulate);
    }

    /// The norm at the entry of layer `l`, or the last one, of the residual stream: of what is there, or of what a branch
    /// makes of the middle of the layer before.
    fn normalise(&self, l: usize, branch: Option<Branch<'a>>) {
        let Pass {
            ops, model, buffers, ..
        } = self.pass;
        let sizes = [self.rows(), self.d(), self.batch()];
        let residual = if branch.is_some() {
            Span::from(&self.tape(l - 1).middle)
        } else {
            self.x(l)
        };
        let (norm, sinusoid, normal, statistics) = if let Some(block) = model.blocks.get(l) {
            let tape = self.tape(l);
            (
                block.norm_attention,
                self.sinusoid(false),
                self.stored_rows(&tape.normal, self.remembered()),
                Span::from(&tape.statistics).after(8 * self.remembered()),
            )
        } else {
            (model.norm, None, (&buffers.normal).into(), (&buffers.statistics).into())
        };
        let norm = self.norm_of(norm);
        ops.norm(
            residual,
            branch,
            &self.masks(),
            &norm,
            sinusoid,
            normal,
            statistics,
            sizes,
        );
    }

    fn splits(&self, block: &Block) -> [Split; 3] {
        let segment = self.pass.model.config.segment;
        block.attention.splits(self.batch(), self.pass.stored, segment)
    }

    /// First row, times streams, of a projection's input.
    fn first_row(&self, split: &Split) -> usize {
        self.remembered() + self.rows() - (split.skip + split.len) * self.batch()
    }

    fn convolved(&self, (weight, bias): (Id, Id), split: &Split) -> Convolved<'a> {
        Convolved {
            weight: self.single(weight),
            bias: self.single(bias),
            channels: self.pass.model.layout.spec(bias).len(),
            skip: split.skip,
            batch: self.batch(),
        }
    }

    /// Angles of the rows of a projection, if it is turned: the last key is the last query; values are not.
    fn angles(&self, which: usize, split: &Split) -> Option<[Span<'a>; 2]> {
        let angles = self.pass.constants.angles.as_ref().filter(|_| which < 2)?;
        let config = &self.pass.model.config;
        let keys = self.pass.stored.min(config.memory) + config.segment;
        let first = (keys - split.len) * (self.d() / config.heads / 2);
        Some([&angles[0], &angles[1]].map(|table| Span::from(table).after(4 * first)))
    }

    fn operands(&self, l: usize, block: &Block) -> Operands<'a> {
        let (config, tape) = (&self.pass.model.config, self.tape(l));
        let relative = block.attention.relative.map(|ids| Relative {
            table: self.weight(ids.table),
            bias: self.single(ids.bias),
            query_bias: self.single(ids.query_bias),
            zero: ids.zero,
        });
        debug_assert_eq!(
            relative.is_some(),
            config.attention.parts().positions == Positions::Relative
        );
        Operands {
            sizes: Sizes {
                batch: self.batch(),
                heads: config.heads,
                head_dim: self.d() / config.heads,
                memory: self.pass.stored.min(config.memory),
                segment: config.segment,
            },
            query: (&tape.heads[0]).into(),
            key: (&tape.heads[1]).into(),
            value: (&tape.heads[2]).into(),
            relative,
            masks: self.masks(),
            place: PLACES.len() * l + WEIGHTS,
        }
    }

    fn block_forward(&self, l: usize, block: &Block) {
        let Pass {
            ops, model, buffers, ..
        } = self.pass;
        let (rows, d, batch, ffn) = (self.rows(), self.d(), self.batch(), model.config.d_ffn);
        let head_dim = d / model.config.heads;
        let (tape, masks) = (self.tape(l), self.masks());
        if self.pass.stored > 0 {
            ops.norm(
                self.memory_rows(l),
                None,
                &masks,
                &self.norm_of(block.norm_attention),
                self.sinusoid(true),
                (&tape.normal).into(),
                (&tape.statistics).into(),
                [self.remembered(), d, batch],
            );
        }
        for (at, (projection, split)) in block.attention.projections().iter().zip(self.splits(block)).enumerate() {
            let len = (split.skip + split.len) * batch;
            let heads = Span::from(&tape.heads[at]);
            let shape = Shape {
                form: Form::Forward,
                rows: len,
                inputs: d,
                outputs: d,
                single: false,
                add: false,
            };
            let x = self.stored_rows(&tape.normal, self.first_row(&split));
            let out = projection.kernel.map_or(heads, |_| Span::from(&tape.before[at]));
            let bias = projection.bias.map(|id| self.weight(id));
            ops.product(shape, x, self.weight(projection.weight), bias, out);
            if let Some(kernel) = projection.kernel {
                ops.convolve(out, &self.convolved(kernel, &split), heads, [split.len * batch, d]);
            }
            if let Some(angles) = self.angles(at, &split) {
                ops.rotate(heads, angles, false, [split.len * batch, batch, d, head_dim]);
            }
        }
        let out = Span::from(&tape.out);
        ops.attend(&self.operands(l, block), out, (&tape.log_sums).into());

        let branch = Span::from(&buffers.branch);
        let (weight, bias) = block.attention.output;
        self.product(
            Form::Forward,
            [rows, d, d],
            false,
            false,
            out,
            self.weight(weight),
            branch,
        );
        let attended = Branch {
            values: branch,
            bias: self.single(bias),
            place: PLACES.len() * l + ATTENTION,
            sum: (&tape.middle).into(),
        };
        let normal = Span::from(&tape.middle_normal);
        ops.norm(
            self.x(l),
            Some(attended),
            &masks,
            &self.norm_of(block.norm_ffn),
            None,
            normal,
            (&tape.middle_statistics).into(),
            [rows, d, batch],
        );
        let hidden = Span::from(&tape.hidden);
        let (weight, bias) = block.expand;
        let sizes = [rows, d, ffn];
        self.product(Form::Forward, sizes, false, false, normal, self.weight(weight), hidden);
        let place = PLACES.len() * l + HIDDEN;
        ops.relu(hidden, self.single(bias), &masks, place, [rows, ffn]);
        let (weight, bias) = block.contract;
        let sizes = [rows, ffn, d];
        self.product(Form::Forward, sizes, false, false, hidden, self.weight(weight), branch);
        let fed = Branch {
            values: branch,
            bias: self.single(bias),
            place: PLACES.len() * l + FFN,
            sum: self.x(l + 1),
        };
        self.normalise(l + 1, Some(fed));
    }

    // ---- backward --------------------------------------------------------------------------------------------------

    fn backward(&self, to: &'a Backward) {
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
