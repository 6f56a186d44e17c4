//! The language model that every attention is put into: a pre-norm Transformer-XL (Dai et al. 2019) over characters or
//! tokens, with the forward and backward pass written out.
//!
//! Rows are `[time, stream, d]`. A layer attends over its memory, the last inputs of the same layer, detached, and
//! normalised with the layer's present weights on use.

use super::attention::Positions;
use super::attention::core::Keep;
use super::attention::layer::{AttentionLayer, Tape as AttentionTape};
use super::cross_entropy::{self, Outcome};
use super::dropout::Dropout;
use super::hidden_units::Watch;
use super::layer_norm;
use super::linear::{self, Finish};
pub use super::model_config::ModelConfig;
use super::parameters::{Id, Init, Layout};
use super::pool::Pool;
use super::positions::Sinusoids;
use super::scalar::Scalar;
use crate::error::Result;
use std::cell::RefCell;

#[derive(Debug, Clone)]
pub(super) struct Block {
    pub norm_attention: (Id, Id),
    pub attention: AttentionLayer,
    pub norm_ffn: (Id, Id),
    pub expand: (Id, Id),
    pub contract: (Id, Id),
}

/// The model: where its tensors are, and how they are used.
#[derive(Debug, Clone)]
pub struct TransformerXl {
    /// Sizes and kinds.
    pub config: ModelConfig,
    /// The tensors.
    pub layout: Layout,
    pub(super) embedding: Id,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: (Id, Id),
    pub(super) output: (Id, Id),
    pub(super) sinusoids: Option<Sinusoids>,
}

/// What the layers remember of earlier segments: the last inputs of each, `[rows, B, d]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory<T> {
    /// One per layer; all of one length.
    pub layers: Vec<Vec<T>>,
}

impl<T: Scalar> Memory<T> {
    /// Nothing yet.
    pub fn empty(layers: usize) -> Self {
        Self {
            layers: vec![Vec::new(); layers],
        }
    }
}

/// Which positions a pass reads and predicts; ids are `[T, B]`, time first.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// What is read.
    pub inputs: &'a [u32],
    /// What comes next.
    pub targets: &'a [u32],
    /// B.
    pub batch: usize,
}

/// What a training pass needs besides parameters and data.
#[derive(Debug, Clone)]
pub struct Pass<'a> {
    /// What is kept of attention for the backward pass.
    pub keep: Keep,
    /// Factor on the summed loss of the segment: one over the positions of the whole step.
    pub scale: f64,
    /// Dropout at this step.
    pub dropout: Dropout,
    /// What looks at the hidden units, if anything does.
    pub watch: Option<&'a RefCell<Watch>>,
}

struct BlockTape<T> {
    input: Vec<T>,
    statistics: Vec<T>,
    normal: Vec<T>,
    attention: AttentionTape<T>,
    middle: Vec<T>,
    middle_statistics: Vec<T>,
    middle_normal: Vec<T>,
    hidden: Vec<T>,
}

impl TransformerXl {
    /// The model of `config`.
    pub fn new(config: ModelConfig) -> Result<Self> {
        let mut model = Self::tensors(config)?;
        model.sinusoids = (config.attention.parts().positions == Positions::Sinusoid)
            .then(|| Sinusoids::new(config.memory + config.segment, config.d_model));
        Ok(model)
    }

    /// What tensors the model of `config` has; nothing of their size is allocated, and nothing can be computed.
    pub(super) fn tensors(config: ModelConfig) -> Result<Self> {
        config.validate()?;
        let (d, mut layout) = (config.d_model, Layout::default());
        let norm = |layout: &mut Layout, name: &str| {
            let gain = layout.add(format!("{name}.weight"), &[d], Init::Ones);
            (gain, layout.add(format!("{name}.bias"), &[d], Init::Zeros))
        };
        let affine = |layout: &mut Layout, name: &str, inputs: usize, outputs: usize| {
            let init = Init::Uniform(1.0 / (inputs as f64).sqrt());
            let weight = layout.add(format!("{name}.weight"), &[inputs, outputs], init);
            (weight, layout.add(format!("{name}.bias"), &[outputs], init))
        };
        let embedding = layout.add("embedding.weight", &[config.vocab, d], Init::Normal);
        let mut blocks = Vec::with_capacity(config.layers);
        for l in 0..config.layers {
            blocks.push(Block {
                norm_attention: norm(&mut layout, &format!("layers.{l}.norm_attention")),
                attention: AttentionLayer::new(&mut layout, &format!("layers.{l}.attention"), config.layer())?,
                norm_ffn: norm(&mut layout, &format!("layers.{l}.norm_ffn")),
                expand: affine(&mut layout, &format!("layers.{l}.ffn.expand"), d, config.d_ffn),
                contract: affine(&mut layout, &format!("layers.{l}.ffn.contract"), config.d_ffn, d),
            });
        }
        Ok(Self {
            norm: norm(&mut layout, "norm"),
            output: affine(&mut layout, "output", d, config.vocab),
            sinusoids: None,
            config,
            layout,
            embedding,
            blocks,
        })
    }

    /// Rows of memory that are stored: those attended to, and those that only feed convolutions.
    pub fn stored_rows(&self) -> usize {
        self.config.memory + self.config.layer().carried()
    }

    /// Bytes that a training step over `batch` streams takes beside the buffers of the pool.
    pub fn working_bytes<T: Scalar>(&self, batch: usize, threads: usize) -> usize {
        let of = |block: &Block| block.attention.working_bytes::<T>(batch, threads);
        self.blocks.first().map_or(0, of)
    }

    fn affine<'a, T>(&self, data: &'a [T], (weight, bias): (Id, Id)) -> (&'a [T], &'a [T]) {
        (self.layout.get(data, weight), self.layout.get(data, bias))
    }

    /// Loss of a segment, its gradients added to `grads`; moves the memory on.
    pub fn train<T: Scalar>(
        &self,
        data: &[T],
        grads: &mut [T],
        segment: Segment<'_>,
        memory: &mut Memory<T>,
        pass: &Pass<'_>,
        pool: &mut Pool<T>,
    ) -> Outcome {
        let (d, vocab, rows) = (self.config.d_model, self.config.vocab, segment.inputs.len());
        let (x, tapes) = self.blocks_forward(data, segment, memory, pass, pool);
        let (gain, bias) = self.affine(data, self.norm);
        let (mut normal, mut statistics) = (pool.take(rows * d), pool.take(2 * rows));
        layer_norm::forward(&x, gain, bias, &mut normal, &mut statistics);
        let mut logits = pool.take(rows * vocab);
        let (weight, bias) = self.affine(data, self.output);
        linear::forward(&normal, weight, Some(bias), d, vocab, Finish::Plain, &mut logits);
        let outcome = cross_entropy::with_gradient(&mut logits, segment.targets, vocab, pass.scale);

        linear::backward_weight(&normal, &logits, d, vocab, self.layout.get_mut(grads, self.output.0));
        linear::backward_bias(&logits, self.layout.get_mut(grads, self.output.1));
        linear::backward_input(&logits, weight, d, vocab, false, &mut normal);
        pool.give(logits);
        let mut dx = pool.take(rows * d);
        let (d_gain, d_bias) = self.layout.pair_mut(grads, self.norm.0, self.norm.1);
        layer_norm::backward(&x, &statistics, gain, &normal, false, &mut dx, d_gain, d_bias);
        for buffer in [x, normal, statistics] {
            pool.give(buffer);
        }
        for (l, tape) in tapes.into_iter().enumerate().rev() {
            let dropout = pass.dropout.at(&l.to_string());
            self.block_backward(
                &self.blocks[l],
                data,
                tape,
                segment.batch,
                &dropout,
                &mut dx,
                grads,
                pool,
            );
        }
        let embedding = self.layout.get_mut(grads, self.embedding);
        for (row, &id) in dx.chunks_exact(d).zip(segment.inputs) {
            linear::add(&mut embedding[id as usize * d..][..d], row);
        }
        pool.give(dx);
        outcome
    }

    /// Loss of a segment; moves the memory on.
    pub fn evaluate<T: Scalar>(
        &self,
        data: &[T],
        segment: Segment<'_>,
        memory: &mut Memory<T>,
        pool: &mut Pool<T>,
    ) -> Outcome {
        let mut logits = self.logits(data, segment, memory, pool);
        let outcome = cross_entropy::with_gradient(&mut logits, segment.targets, self.config.vocab, 0.0);
        pool.give(logits);
        outcome
    }

    /// Logits `[T, B, vocab]` of a segment, no longer than that of training, whose targets are not read; moves the memory on. Give them back to the pool.
    pub fn logits<T: Scalar>(
        &self,
        data: &[T],
        segment: Segment<'_>,
        memory: &mut Memory<T>,
        pool: &mut Pool<T>,
    ) -> Vec<T> {
        let (d, vocab, rows) = (self.config.d_model, self.config.vocab, segment.inputs.len());
        let pass = Pass {
            keep: Keep::Nothing,
            scale: 0.0,
            dropout: Dropout::none(),
            watch: None,
        };
        let (x, tapes) = self.blocks_forward(data, segment, memory, &pass, pool);
        debug_assert!(tapes.is_empty());
        let (gain, bias) = self.affine(data, self.norm);
        let (mut normal, mut statistics) = (pool.take(rows * d), pool.take(2 * rows));
        layer_norm::forward(&x, gain, bias, &mut normal, &mut statistics);
        let mut logits = pool.take(rows * vocab);
        let (weight, bias) = self.affine(data, self.output);
        linear::forward(&normal, weight, Some(bias), d, vocab, Finish::Plain, &mut logits);
        for buffer in [x, normal, statistics] {
            pool.give(buffer);
        }
        logits
    }

    fn blocks_forward<T: Scalar>(
        &self,
        data: &[T],
        segment: Segment<'_>,
        memory: &mut Memory<T>,
        pass: &Pass<'_>,
        pool: &mut Pool<T>,
    ) -> (Vec<T>, Vec<BlockTape<T>>) {
        let (d, rows) = (self.config.d_model, segment.inputs.len());
        let embedding = self.layout.get(data, self.embedding);
        let mut x = pool.take(rows * d);
        for (row, &id) in x.chunks_exact_mut(d).zip(segment.inputs) {
            row.copy_from_slice(&embedding[id as usize * d..][..d]);
        }
        let mut tapes = Vec::new();
        for l in 0..self.blocks.len() {
            let remembered = &mut memory.layers[l];
            let mut input = pool.take(remembered.len() + rows * d);
            input[..remembered.len()].copy_from_slice(remembered);
            input[remembered.len()..].copy_from_slice(&x);
            let stored = input.len().min(self.stored_rows() * segment.batch * d);
            remembered.clear();
            remembered.extend_from_slice(&input[input.len() - stored..]);
            let tape = self.block_forward(l, data, input, segment.batch, pass, &mut x, pool);
            if pass.keep == Keep::Nothing {
                tape.discard(pool);
            } else {
                tapes.push(tape);
            }
        }
        (x, tapes)
    }

    fn block_forward<T: Scalar>(
        &self,
        l: usize,
        data: &[T],
        input: Vec<T>,
        batch: usize,
        pass: &Pass<'_>,
        x: &mut [T],
        pool: &mut Pool<T>,
    ) -> BlockTape<T> {
        let (d, hidden_size) = (self.config.d_model, self.config.d_ffn);
        let (block, dropout) = (&self.blocks[l], pass.dropout.at(&l.to_string()));
        let rows = x.len() / d;
        let (gain, bias) = self.affine(data, block.norm_attention);
        let (mut normal, mut statistics) = (pool.take(input.len()), pool.take(2 * input.len() / d));
        layer_norm::forward(&input, gain, bias, &mut normal, &mut statistics);
        if let Some(sinusoids) = &self.sinusoids {
            sinusoids.add_to(&mut normal, batch, self.config.memory + rows / batch);
        }
        let residual = &input[input.len() - x.len()..];
        let mut middle = pool.take(x.len());
        let attention = block.attention.forward(
            &self.layout,
            data,
            &normal,
            (batch, rows / batch),
            pass.keep,
            &dropout.at("weights"),
            Some(residual).filter(|_| !dropout.is_active()),
            &mut middle,
            pool,
        );
        if dropout.is_active() {
            dropout.at("attention").apply_all(&mut middle);
            linear::add_all(&mut middle, residual);
        }
        let (gain, bias) = self.affine(data, block.norm_ffn);
        let (mut middle_normal, mut middle_statistics) = (pool.take(x.len()), pool.take(2 * rows));
        layer_norm::forward(&middle, gain, bias, &mut middle_normal, &mut middle_statistics);
        let mut hidden = pool.take(rows * hidden_size);
        let (weight, bias) = self.affine(data, block.expand);
        linear::forward(
            &middle_normal,
            weight,
            Some(bias),
            d,
            hidden_size,
            Finish::Relu,
            &mut hidden,
        );
        dropout.at("hidden").apply_all(&mut hidden);
        if let Some(watch) = pass.watch {
            watch.borrow_mut().visit(l, &mut hidden, |inputs| {
                linear::forward(
                    &middle_normal,
                    weight,
                    Some(bias),
                    d,
                    hidden_size,
                    Finish::Plain,
                    inputs,
                );
            });
        }
        let (weight, bias) = self.affine(data, block.contract);
        if dropout.is_active() {
            linear::forward(&hidden, weight, Some(bias), hidden_size, d, Finish::Plain, x);
            dropout.at("ffn").apply_all(x);
            linear::add_all(x, &middle);
        } else {
            linear::forward(&hidden, weight, Some(bias), hidden_size, d, Finish::Add(&middle), x);
        }
        BlockTape {
            input,
            statistics,
            normal,
            attention,
            middle,
            middle_statistics,
            middle_normal,
            hidden,
        }
    }

    /// `dx`, the gradient of the block's result, becomes that of its input.
    fn block_backward<T: Scalar>(
        &self,
        block: &Block,
        data: &[T],
        tape: BlockTape<T>,
        batch: usize,
        dropout: &Dropout,
        dx: &mut [T],
        grads: &mut [T],
        pool: &mut Pool<T>,
    ) {
        let (d, hidden_size) = (self.config.d_model, self.config.d_ffn);
        let rows = dx.len() / d;
        let layout = &self.layout;
        // A copy with the mask on it, only where there is a mask.
        let mut masked = pool.take(if dropout.is_active() { dx.len() } else { 0 });
        let gradient = branch(dx, &mut masked, &dropout.at("ffn"));
        linear::backward_weight(
            &tape.hidden,
            gradient,
            hidden_size,
            d,
            layout.get_mut(grads, block.contract.0),
        );
        linear::backward_bias(gradient, layout.get_mut(grads, block.contract.1));
        let mut d_hidden = pool.take(rows * hidden_size);
        let (weight, _) = self.affine(data, block.contract);
        linear::backward_input(gradient, weight, hidden_size, d, false, &mut d_hidden);
        dropout.at("hidden").apply_all(&mut d_hidden);
        linear::backward_relu(&tape.hidden, &mut d_hidden);
        pool.give(tape.hidden);
        let expand = layout.get_mut(grads, block.expand.0);
        linear::backward_weight(&tape.middle_normal, &d_hidden, d, hidden_size, expand);
        linear::backward_bias(&d_hidden, layout.get_mut(grads, block.expand.1));
        let (weight, _) = self.affine(data, block.expand);
        let mut d_normal = tape.middle_normal;
        linear::backward_input(&d_hidden, weight, d, hidden_size, false, &mut d_normal);
        pool.give(d_hidden);
        let (gain, _) = self.affine(data, block.norm_ffn);
        let (d_gain, d_bias) = layout.pair_mut(grads, block.norm_ffn.0, block.norm_ffn.1);
        layer_norm::backward(
            &tape.middle,
            &tape.middle_statistics,
            gain,
            &d_normal,
            true,
            dx,
            d_gain,
            d_bias,
        );
        for buffer in [tape.middle, tape.middle_statistics, d_normal] {
            pool.give(buffer);
        }

        let gradient = branch(dx, &mut masked, &dropout.at("attention"));
        let mut d_normal = pool.take(tape.normal.len());
        block.attention.backward(
            layout,
            data,
            &tape.normal,
            tape.attention,
            gradient,
            &mut d_normal,
            grads,
            pool,
        );
        pool.give(masked);
        let (gain, _) = self.affine(data, block.norm_attention);
        let (d_gain, d_bias) = layout.pair_mut(grads, block.norm_attention.0, block.norm_attention.1);
        // The memory's rows are detached; their share in gain and bias counts, their own gradient is dropped.
        let mut d_input = tape.normal;
        layer_norm::backward(
            &tape.input,
            &tape.statistics,
            gain,
            &d_normal,
            false,
            &mut d_input,
            d_gain,
            d_bias,
        );
        linear::add_all(dx, &d_input[d_input.len() - rows * d..]);
        for buffer in [tape.input, tape.statistics, d_normal, d_input] {
            pool.give(buffer);
        }
        debug_assert_eq!(rows % batch, 0);
    }
}

/// The gradient that enters a branch behind dropout.
fn branch<'a, T: Scalar>(dx: &'a [T], masked: &'a mut [T], dropout: &Dropout) -> &'a [T] {
    if !dropout.is_active() {
        return dx;
    }
    masked.copy_from_slice(dx);
    dropout.apply_all(masked);
    masked
}

impl<T: Scalar> BlockTape<T> {
    fn discard(self, pool: &mut Pool<T>) {
        self.attention.discard(pool);
        for buffer in [
            self.input,
            self.statistics,
            self.normal,
            self.middle,
            self.middle_statistics,
            self.middle_normal,
            self.hidden,
        ] {
            pool.give(buffer);
        }
    }
}
