//! Launches of `train_rows.cu`. Rows lie as `[time, stream, width]`.

use super::{Compiled, Masks, Span, Structure, Training, source_kernel};
use crate::error::Result;
use crate::kernels::cuda::compile::Source;
use crate::kernels::cuda::driver::{Argument, Gpu, Grid, Kernel, Launch};

/// Rows of a partial sum.
pub const CHUNK: usize = 64;
pub(super) const THREADS: usize = 256;

pub(super) struct RowKernels {
    width: usize,
    embed: Kernel,
    embed_gradient: Kernel,
    norm: Kernel,
    norm_gradient: Kernel,
    relu: Kernel,
    branch_gradient: Kernel,
    relu_gradient: Kernel,
    column_sums: Kernel,
    convolve: Kernel,
    convolve_gradient: Kernel,
    rotate: Kernel,
    cross_entropy: Kernel,
    outcome: Kernel,
    pub(super) reduce: Kernel,
    remember: Kernel,
    pub(super) squares: Kernel,
    pub(super) sum_squares: Kernel,
    pub(super) adam: Kernel,
    pub(super) copy: Kernel,
}

/// What `train_rows.cu` is compiled with.
pub fn defines(compiled: &Compiled) -> Vec<(&'static str, String)> {
    let mut defines = compiled.precision.defines();
    defines.push(("CONV_WIDTH", compiled.kernel.to_string()));
    defines
}

impl RowKernels {
    pub(super) fn new(gpu: &Gpu, compiled: &Compiled) -> Result<Self> {
        let defines = defines(compiled);
        let kernel = |name| source_kernel(gpu, Source::TrainRows, &defines, name);
        Ok(Self {
            width: compiled.kernel,
            embed: kernel("train_embed")?,
            embed_gradient: kernel("train_embed_gradient")?,
            norm: kernel("train_norm")?,
            norm_gradient: kernel("train_norm_gradient")?,
            relu: kernel("train_relu")?,
            branch_gradient: kernel("train_branch_gradient")?,
            relu_gradient: kernel("train_relu_gradient")?,
            column_sums: kernel("train_column_sums")?,
            convolve: kernel("train_convolve")?,
            convolve_gradient: kernel("train_convolve_gradient")?,
            rotate: kernel("train_rotate")?,
            cross_entropy: kernel("train_cross_entropy")?,
            outcome: kernel("train_outcome")?,
            reduce: kernel("train_reduce")?,
            remember: kernel("train_remember")?,
            squares: kernel("train_squares")?,
            sum_squares: kernel("train_sum_squares")?,
            adam: kernel("train_adam")?,
            copy: kernel("train_copy")?,
        })
    }
}

/// A branch that is added to the residual stream: stored values, their f32 bias, and the place of their dropout.
#[derive(Clone, Copy)]
pub struct Branch<'a> {
    /// `[rows, d]`.
    pub values: Span<'a>,
    /// `[d]`.
    pub bias: Span<'a>,
    /// Index of the key.
    pub place: usize,
    /// Where the sum goes, f32 `[rows, d]`.
    pub sum: Span<'a>,
}

/// Parameters of a layer norm, f32 `[d]` each.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// Gain.
    pub gain: Span<'a>,
    /// Bias.
    pub bias: Span<'a>,
}

/// A convolution of rows `[skip + rows, B, d]`.
#[derive(Clone, Copy)]
pub struct Convolved<'a> {
    /// f32 `[channels, width]`.
    pub weight: Span<'a>,
    /// f32 `[channels]`.
    pub bias: Span<'a>,
    /// dk where heads share weights, else d.
    pub channels: usize,
    /// Rows in time that only feed it.
    pub skip: usize,
    /// Streams.
    pub batch: usize,
}

/// As many blocks as `grid` says.
pub(super) fn blocks(grid: impl Into<Grid>) -> Launch {
    Launch::new(grid, THREADS as u32)
}

/// A thread for each of `count` elements.
pub(super) fn elements(count: usize) -> Launch {
    blocks(count.div_ceil(THREADS))
}

/// Blocks that go down 32 columns of a chunk of rows.
fn columns(rows: usize, width: usize) -> Launch {
    blocks((width.div_ceil(32), rows.div_ceil(CHUNK)))
}

impl Training {
    /// Rows of an f32 table by id, to f32 `x`.
    pub fn embed(&self, ids: Span<'_>, table: Span<'_>, x: Span<'_>, [rows, vocabulary, d]: [usize; 3]) {
        let arguments = [ids.argument(), table.argument(), x.argument(), d.into()];
        // SAFETY: lengths as checked; ids are below the vocabulary, which the text vouches for.
        unsafe {
            self.launch(
                &self.rows.embed,
                blocks(rows),
                &arguments,
                &[(ids, 4 * rows), (table, 4 * vocabulary * d), (x, 4 * rows * d)],
            );
        }
    }

    /// Sums of the rows of f32 `dx` by id, in `chunks` shares `[chunks, vocabulary, d]`.
    pub fn embed_gradient(
        &self,
        ids: Span<'_>,
        dx: Span<'_>,
        to: Span<'_>,
        [rows, vocabulary, d, chunks]: [usize; 4],
        accumulate: bool,
    ) {
        let arguments = [
            ids.argument(),
            dx.argument(),
            to.argument(),
            rows.into(),
            d.into(),
            usize::from(accumulate).into(),
        ];
        let needs = [(ids, 4 * rows), (dx, 4 * rows * d), (to, 4 * chunks * vocabulary * d)];
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(
                &self.rows.embed_gradient,
                blocks((vocabulary, chunks)),
                &arguments,
                &needs,
            );
        }
    }

    /// Layer norm of `residual`, or of it plus a branch; `sinusoid`, f32, is that of the first row's time.
    pub fn norm(
        &self,
        residual: Span<'_>,
        branch: Option<Branch<'_>>,
        masks: &Masks<'_>,
        norm: &Norm<'_>,
        sinusoid: Option<Span<'_>>,
        normal: Span<'_>,
        statistics: Span<'_>,
        [rows, d, batch]: [usize; 3],
    ) {
        let optional = |span: Option<Span<'_>>| span.map_or(Argument::NULL, |span| span.argument());
        let arguments = [
            residual.argument(),
            optional(branch.map(|branch| branch.values)),
            optional(branch.map(|branch| branch.bias)),
            Structure::default().masks(masks).argument(),
            branch.map_or(0, |branch| branch.place).into(),
            norm.gain.argument(),
            norm.bias.argument(),
            optional(sinusoid),
            optional(branch.map(|branch| branch.sum)),
            normal.argument(),
            statistics.argument(),
            rows.into(),
            d.into(),
            batch.into(),
        ];
        let value = self.value_bytes();
        let mut needs = vec![
            (residual, 4 * rows * d),
            (normal, value * rows * d),
            (statistics, 8 * rows),
            (norm.gain, 4 * d),
            (norm.bias, 4 * d),
        ];
        if let Some(branch) = branch {
            needs.extend([
                (branch.values, value * rows * d),
                (branch.bias, 4 * d),
                (branch.sum, 4 * rows * d),
            ]);
        }
        if let Some(sinusoid) = sinusoid {
            needs.push((sinusoid, 4 * rows / batch * d));
        }
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(&self.rows.norm, blocks(rows.div_ceil(THREADS / 32)), &arguments, &needs);
        }
    }

    /// Gradient of a layer norm over the rows of `memory`, then of `x`, from f32 `dy`; added to `dx` of the latter, or
    /// set. Partial sums `[chunks, 2, d]`.
    pub fn norm_gradient(
        &self,
        memory: Option<Span<'_>>,
        x: Span<'_>,
        statistics: Span<'_>,
        gain: Span<'_>,
        dy: Span<'_>,
        dx: Span<'_>,
        partial: Span<'_>,
        [rows, remembered, d]: [usize; 3],
        replace: bool,
    ) {
        let arguments = [
            memory.map_or(Argument::NULL, |memory| memory.argument()),
            x.argument(),
            statistics.argument(),
            gain.argument(),
            dy.argument(),
            dx.argument(),
            partial.argument(),
            rows.into(),
            remembered.into(),
            d.into(),
            usize::from(replace).into(),
        ];
        let chunks = rows.div_ceil(CHUNK);
        let mut needs = vec![
            (x, 4 * (rows - remembered) * d),
            (statistics, 8 * rows),
            (gain, 4 * d),
            (dy, 4 * rows * d),
            (dx, 4 * (rows - remembered) * d),
            (partial, 8 * chunks * d),
        ];
        if let Some(memory) = memory {
            needs.push((memory, 4 * remembered * d));
        }
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(&self.rows.norm_gradient, blocks(chunks), &arguments, &needs);
        }
    }

    /// `h = dropout(relu(h + bias))`.
    pub fn relu(&self, h: Span<'_>, bias: Span<'_>, masks: &Masks<'_>, place: usize, [rows, width]: [usize; 2]) {
        let arguments = [
            h.argument(),
            bias.argument(),
            Structure::default().masks(masks).argument(),
            place.into(),
            (rows * width).into(),
            width.into(),
        ];
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(
                &self.rows.relu,
                elements(rows * width),
                &arguments,
                &[(h, self.value_bytes() * rows * width), (bias, 4 * width)],
            );
        }
    }

    /// Stored `out = dx * mask` and partial sums of its columns, `[chunks, width]`.
    pub fn branch_gradient(
        &self,
        dx: Span<'_>,
        out: Span<'_>,
        partial: Span<'_>,
        masks: &Masks<'_>,
        place: usize,
        [rows, width]: [usize; 2],
    ) {
        let arguments = [
            dx.argument(),
            out.argument(),
            partial.argument(),
            Structure::default().masks(masks).argument(),
            place.into(),
            rows.into(),
            width.into(),
        ];
        let needs = [
            (dx, 4 * rows * width),
            (out, self.value_bytes() * rows * width),
            (partial, 4 * rows.div_ceil(CHUNK) * width),
        ];
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(&self.rows.branch_gradient, columns(rows, width), &arguments, &needs);
        }
    }

    /// `dh` through [`Training::relu`], in place, and partial sums of its columns, `[chunks, width]`.
    pub fn relu_gradient(
        &self,
        h: Span<'_>,
        dh: Span<'_>,
        partial: Span<'_>,
        masks: &Masks<'_>,
        [rows, width]: [usize; 2],
    ) {
        let keep = if masks.threshold == 0 { 1.0 } else { masks.keep };
        let arguments = [
            h.argument(),
            dh.argument(),
            partial.argument(),
            keep.into(),
            rows.into(),
            width.into(),
        ];
        let values = self.value_bytes() * rows * width;
        let needs = [(h, values), (dh, values), (partial, 4 * rows.div_ceil(CHUNK) * width)];
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(&self.rows.relu_gradient, columns(rows, width), &arguments, &needs);
        }
    }

    /// Partial sums of columns of stored values, `[chunks, width]`.
    pub fn column_sums(&self, x: Span<'_>, partial: Span<'_>, [rows, width]: [usize; 2]) {
        let arguments = [x.argument(), partial.argument(), rows.into(), width.into()];
        let needs = [
            (x, self.value_bytes() * rows * width),
            (partial, 4 * rows.div_ceil(CHUNK) * width),
        ];
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(&self.rows.column_sums, columns(rows, width), &arguments, &needs);
        }
    }

    /// Convolves stored rows `[skip + rows / B, B, d]` to `y` `[rows, d]`.
    pub fn convolve(&self, x: Span<'_>, by: &Convolved<'_>, y: Span<'_>, [rows, d]: [usize; 2]) {
        let arguments = [
            x.argument(),
            by.weight.argument(),
            by.bias.argument(),
            y.argument(),
            rows.into(),
            by.skip.into(),
            by.batch.into(),
            d.into(),
            by.channels.into(),
        ];
        let value = self.value_bytes();
        let needs = [
            (x, value * (rows + by.skip * by.batch) * d),
            (by.weight, 4 * by.channels * self.rows.width),
            (by.bias, 4 * by.channels),
            (y, value * rows * d),
        ];
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(&self.rows.convolve, elements(rows * d), &arguments, &needs);
        }
    }

    /// Gradient of [`Training::convolve`]: `rows` counts those of `x` and `dx`, with the skipped ones. Partial sums
    /// `[chunks, width + 2, d]` of the weights, the bias and `dx`.
    pub fn convolve_gradient(
        &self,
        x: Span<'_>,
        dy: Span<'_>,
        by: &Convolved<'_>,
        dx: Span<'_>,
        partial: Span<'_>,
        [rows, d]: [usize; 2],
    ) {
        let arguments = [
            x.argument(),
            dy.argument(),
            by.weight.argument(),
            dx.argument(),
            partial.argument(),
            rows.into(),
            by.skip.into(),
            by.batch.into(),
            d.into(),
            by.channels.into(),
        ];
        let value = self.value_bytes();
        let needs = [
            (x, value * rows * d),
            (dy, value * (rows - by.skip * by.batch) * d),
            (by.weight, 4 * by.channels * self.rows.width),
            (dx, value * rows * d),
            (partial, 4 * rows.div_ceil(CHUNK) * (self.rows.width + 2) * d),
        ];
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(&self.rows.convolve_gradient, columns(rows, d), &arguments, &needs);
        }
    }

    /// Turns the pairs of every head by the angles of its time, f32 `[times, dk / 2]`, or back.
    pub fn rotate(
        &self,
        x: Span<'_>,
        [cosines, sines]: [Span<'_>; 2],
        back: bool,
        [rows, batch, d, head_dim]: [usize; 4],
    ) {
        let arguments = [
            x.argument(),
            cosines.argument(),
            sines.argument(),
            (if back { -1.0f32 } else { 1.0 }).into(),
            rows.into(),
            batch.into(),
            d.into(),
            head_dim.into(),
        ];
        let angles = 4 * rows / batch * (head_dim / 2);
        let needs = [(x, self.value_bytes() * rows * d), (cosines, angles), (sines, angles)];
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(&self.rows.rotate, elements(rows * d / 2), &arguments, &needs);
        }
    }

    /// Losses and correctness of f32 logits plus bias; `gradient`, stored, of `scale` times the summed loss.
    pub fn cross_entropy(
        &self,
        logits: Span<'_>,
        bias: Span<'_>,
        targets: Span<'_>,
        gradient: Option<Span<'_>>,
        losses: Span<'_>,
        correct: Span<'_>,
        [rows, vocabulary]: [usize; 2],
        scale: f64,
    ) {
        let arguments = [
            logits.argument(),
            bias.argument(),
            targets.argument(),
            gradient.map_or(Argument::NULL, |gradient| gradient.argument()),
            losses.argument(),
            correct.argument(),
            vocabulary.into(),
            Argument::F32(scale as f32),
        ];
        let mut needs = vec![
            (logits, 4 * rows * vocabulary),
            (bias, 4 * vocabulary),
            (targets, 4 * rows),
            (losses, 4 * rows),
            (correct, 4 * rows),
        ];
        if let Some(gradient) = gradient {
            needs.push((gradient, self.value_bytes() * rows * vocabulary));
        }
        // SAFETY: lengths as checked; targets are below the vocabulary, which the text vouches for.
        unsafe {
            self.launch(&self.rows.cross_entropy, Launch::new(rows, 128), &arguments, &needs);
        }
    }

    /// The sums of losses and of correct rows, as two f64.
    pub fn outcome(&self, losses: Span<'_>, correct: Span<'_>, out: Span<'_>, rows: usize, accumulate: bool) {
        let arguments = [
            losses.argument(),
            correct.argument(),
            out.argument(),
            rows.into(),
            usize::from(accumulate).into(),
        ];
        let needs = [(losses, 4 * rows), (correct, 4 * rows), (out, 16)];
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(&self.rows.outcome, blocks(1), &arguments, &needs);
        }
    }

    /// Moves every layer's f32 memory (`kept` elements) up by a segment (`segment` elements) and puts `x` behind it.
    pub fn remember(&self, memory: Span<'_>, x: Span<'_>, [layers, kept, segment]: [usize; 3]) {
        if kept == 0 {
            return;
        }
        let arguments = [
            memory.argument(),
            x.argument(),
            Argument::I64(kept as i64),
            Argument::I64(segment as i64),
        ];
        let needs = [(memory, 4 * layers * kept), (x, 4 * layers * segment)];
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(
                &self.rows.remember,
                blocks((segment.div_ceil(THREADS), layers)),
                &arguments,
                &needs,
            );
        }
    }
}
