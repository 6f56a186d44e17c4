//! One pass of the model on a GPU, launch by launch: [`crate::train::transformer_xl`] and its layers, in the same order. Here are
//! the places of all operands and the forward half.

mod backward;

use super::PLACES;
use super::buffers::{Buffers, Constants, Parameters, Tape};
use crate::kernels::cuda::driver::Memory;
use crate::kernels::cuda::training::attention::{Operands, Relative, Sizes};
use crate::kernels::cuda::training::products::{Form, Shape};
use crate::kernels::cuda::training::rows::{Branch, Convolved, Norm};
use crate::kernels::cuda::training::update::{Jobs, Pieces, Total};
use crate::kernels::cuda::training::{Masks, Span, Training};
use crate::train::attention::Positions;
use crate::train::attention::heads::Split;
use crate::train::dropout::Dropout;
use crate::train::parameters::Id;
use crate::train::transformer_xl::{Block, TransformerXl};
use std::cell::{Cell, RefCell};

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
}
