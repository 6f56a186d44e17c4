//! Launches of everything in a decoder layer but attention (`linear_row.cu`, `pointwise.cu`, `sample.cu`).

use super::compile::Source;
use super::driver::{Argument, Carveout, Gpu, Kernel, Launch, Memory, Properties};
use super::gemm::Element;
use super::sample::SampleKernels;
use super::{AttentionShape, Cuda, CudaBuffer, CudaMatrix, ELEMENT_BYTES, Norm, QkvPart};
use crate::error::Result;
use std::ops::Range;

/// Threads of a block of the pointwise kernels.
const POINTWISE_THREADS: u32 = 256;
/// Elements that a thread of the pointwise kernels takes at once.
const POINTWISE_ELEMENTS: usize = 8;
/// Warps of a block of the row products that multiply; one more feeds them.
const ROW_WARPS: usize = 8;
/// 16-byte vectors of the activation row that a lane keeps, at most: after a norm, and without one.
const NORM_VECTORS: usize = 4;
const ADD_VECTORS: usize = 10;
/// Bytes of weights that are copied at a time, and copies in flight.
const TILE_BYTES: usize = 28 << 10;
const MAX_SLOTS: usize = 3;

/// The kernels, loaded.
pub(super) struct DenseOps {
    advance: Kernel,
    embed: Kernel,
    rms_norm_rows: Kernel,
    norm_heads: Kernel,
    silu_mul_rows: Kernel,
    add_bias_rows: Kernel,
    fill_random: Kernel,
    norm_linear: Kernel,
    norm_linear_silu_mul: Kernel,
    linear_add: Kernel,
    norm_logits: Kernel,
    /// Choosing the next token.
    pub(super) sample: SampleKernels,
}

/// Whether the row products take a normed row of `inputs`, and one as it is; wider ones go through cuBLASLt.
pub(super) fn takes_normed_row(inputs: usize) -> bool {
    inputs <= ROW_WARPS * NORM_VECTORS * 256
}

/// See [`takes_normed_row`].
pub(super) fn takes_row(inputs: usize) -> bool {
    inputs <= ROW_WARPS * ADD_VECTORS * 256
}

/// What a product of a normed row makes.
#[derive(Clone, Copy)]
pub(super) enum NormRow {
    /// Its outputs.
    Linear,
    /// The gated product of its two halves.
    LinearSiluMul,
}

/// How one row product is cut.
struct RowShape {
    blocks: usize,
    tile_rows: usize,
    column_warps: usize,
    slots: usize,
    shared_bytes: usize,
}

impl RowShape {
    /// `segments` outputs are made together: gate and up. `vectors`: what a lane keeps of the activation row.
    fn new(properties: &Properties, inputs: usize, outputs: usize, segments: usize, vectors: usize) -> Self {
        let multiprocessors = properties.multiprocessors as usize;
        let aligned = inputs.is_multiple_of(8);
        // As few warps across the row as can hold it.
        let fits =
            |warps: &usize| ROW_WARPS.is_multiple_of(*warps) && (inputs / 8).div_ceil(*warps).div_ceil(32) <= vectors;
        let column_warps = if aligned {
            (1..=ROW_WARPS).find(fits).unwrap_or(ROW_WARPS)
        } else {
            1
        };
        let row_warps = ROW_WARPS / column_warps;
        let round = (TILE_BYTES + inputs * row_warps) / (2 * inputs * row_warps);
        let wanted = row_warps * round.max(1);
        let tile_rows = wanted
            .min(row_warps * (outputs / (multiprocessors * row_warps)))
            .max(row_warps);
        let tiles = outputs.div_ceil(tile_rows);
        let blocks = multiprocessors.min(tiles);
        let shared = |slots: usize| {
            let words = segments * tiles.div_ceil(blocks) * tile_rows * column_warps;
            let copies = if aligned {
                slots * tile_rows * inputs * ELEMENT_BYTES
            } else {
                0
            };
            384 + 128 * words.div_ceil(32) + copies
        };
        let most = properties.shared_bytes_per_block as usize;
        let slots = (1..=MAX_SLOTS).rev().find(|&slots| shared(slots) <= most).unwrap_or(1);
        Self {
            blocks,
            tile_rows,
            column_warps,
            slots,
            shared_bytes: shared(slots),
        }
    }

    /// With more than half of a multiprocessor's shared memory, so that no multiprocessor gets two blocks while another gets
    /// none. The products rely on one block each (see `linear_row.cu`), which the product after attention would not keep:
    /// its blocks start where those of the attention have just ended, and every later kernel of the step follows its pattern.
    fn one_per_multiprocessor(self, properties: &Properties) -> Self {
        let half = properties.shared_bytes_per_multiprocessor as usize / 2;
        Self {
            shared_bytes: self
                .shared_bytes
                .max(half.min(properties.shared_bytes_per_block as usize)),
            ..self
        }
    }

    fn arguments(&self) -> [Argument; 3] {
        [self.tile_rows.into(), self.column_warps.into(), self.slots.into()]
    }

    fn launch(&self) -> Launch {
        Launch::new(self.blocks, 32 * (ROW_WARPS as u32 + 1))
            .shared(self.shared_bytes as u32)
            .overlapping()
    }
}

impl DenseOps {
    pub(super) fn new(gpu: &Gpu, element: Element) -> Result<Self> {
        let mut defines = element.defines();
        let pointwise = gpu.module(Source::Pointwise, &defines)?;
        let sample = SampleKernels::new(gpu, &defines)?;
        defines.extend([
            ("CONSUMERS", ROW_WARPS.to_string()),
            ("NORM_VECTORS", NORM_VECTORS.to_string()),
            ("ADD_VECTORS", ADD_VECTORS.to_string()),
        ]);
        let row = gpu.module(Source::LinearRow, &defines)?;
        let most_shared = gpu.properties().shared_bytes_per_block;
        let large = |name| -> Result<Kernel> {
            let kernel = row.kernel(name)?;
            kernel.allow_shared(gpu, most_shared);
            kernel.prefer(gpu, Carveout::MostShared);
            Ok(kernel)
        };
        let operations = Self {
            advance: gpu.module(Source::Advance, &defines)?.kernel("advance")?,
            embed: pointwise.kernel("embed")?,
            rms_norm_rows: pointwise.kernel("rms_norm_rows")?,
            norm_heads: pointwise.kernel("norm_heads")?,
            silu_mul_rows: pointwise.kernel("silu_mul_rows")?,
            add_bias_rows: pointwise.kernel("add_bias_rows")?,
            fill_random: pointwise.kernel("fill_random")?,
            norm_linear: large("norm_linear")?,
            norm_linear_silu_mul: large("norm_linear_silu_mul")?,
            linear_add: large("linear_add")?,
            norm_logits: large("norm_logits")?,
            sample,
        };
        gpu.status()?;
        Ok(operations)
    }

    fn run(gpu: &Gpu, kernel: &Kernel, launch: Launch, arguments: &[Argument]) {
        // SAFETY: every caller below passes buffers whose sizes the decoder made from the same shapes.
        unsafe { gpu.launch(kernel, launch, arguments) };
    }

    /// The id that was chosen last becomes `ids[0]`; `count` counters, `stride` integers apart, go up by one.
    pub(super) fn advance(&self, gpu: &Gpu, ids: &Memory, counters: &Memory, count: usize, stride: usize) {
        let arguments = [
            ids.start(),
            self.sample.next_id(),
            counters.start(),
            count.into(),
            stride.into(),
        ];
        Self::run(gpu, &self.advance, Launch::new(1, 32).overlapping(), &arguments);
    }

    pub(super) fn embed(&self, gpu: &Gpu, table: &CudaMatrix, ids: &Memory, rows: usize, out: &mut CudaBuffer) {
        let arguments = [
            ids.start(),
            table.memory.start(),
            out.memory.start(),
            table.cols.into(),
            table.rows.into(),
        ];
        let launch = Launch::new(rows, POINTWISE_THREADS).overlapping();
        Self::run(gpu, &self.embed, launch, &arguments);
    }

    pub(super) fn rms_norm(
        &self,
        gpu: &Gpu,
        x: &CudaBuffer,
        weight: &CudaBuffer,
        eps: f32,
        rows: Range<usize>,
        out: &mut CudaBuffer,
    ) {
        let width = weight.len;
        let arguments = [
            x.memory.at(rows.start * width * size_of::<f32>()),
            weight.memory.start(),
            Argument::I32(1),
            out.memory.start(),
            width.into(),
            eps.into(),
        ];
        let launch = Launch::new(rows.len(), POINTWISE_THREADS).overlapping();
        Self::run(gpu, &self.rms_norm_rows, launch, &arguments);
    }

    pub(super) fn norm_heads(
        &self,
        gpu: &Gpu,
        qkv: &mut CudaBuffer,
        rows: usize,
        shape: &AttentionShape,
        part: QkvPart,
        weight: &CudaBuffer,
        eps: f32,
    ) {
        let (offset, heads) = match part {
            QkvPart::Queries => (0, shape.query_heads),
            QkvPart::Keys => (shape.key_offset(), shape.kv_heads),
        };
        let d = shape.head_dim;
        // Lanes that share a head: the least power of two that covers it, 8 elements each.
        let vectors = d / POINTWISE_ELEMENTS;
        let lanes = if d.is_multiple_of(POINTWISE_ELEMENTS) && vectors <= 32 {
            vectors.next_power_of_two()
        } else {
            32
        };
        let arguments = [
            qkv.memory.start(),
            rows.into(),
            shape.qkv_width().into(),
            offset.into(),
            heads.into(),
            d.into(),
            weight.memory.start(),
            Argument::I32(1),
            eps.into(),
        ];
        let blocks = (rows * heads * lanes).div_ceil(POINTWISE_THREADS as usize);
        let launch = Launch::new(blocks, POINTWISE_THREADS).overlapping();
        Self::run(gpu, &self.norm_heads, launch, &arguments);
    }

    pub(super) fn silu_mul(&self, gpu: &Gpu, gate_up: &CudaBuffer, rows: usize, width: usize, out: &mut CudaBuffer) {
        let arguments = [gate_up.memory.start(), out.memory.start(), width.into()];
        Self::run(gpu, &self.silu_mul_rows, rows_of_width(rows, width), &arguments);
    }

    pub(super) fn add_bias(&self, gpu: &Gpu, bias: &Memory, rows: usize, width: usize, out: &mut CudaBuffer) {
        let arguments = [out.memory.start(), bias.start(), width.into()];
        Self::run(gpu, &self.add_bias_rows, rows_of_width(rows, width), &arguments);
    }

    /// Normal numbers of `deviation` into elements.
    pub(super) fn fill_random(&self, gpu: &Gpu, to: &Memory, elements: usize, seed: u64, deviation: f32) {
        let arguments = [
            to.start(),
            Argument::I64(elements as i64),
            Argument::I64(seed as i64),
            deviation.into(),
            0.0.into(),
        ];
        let blocks = gpu.properties().multiprocessors as usize * 32;
        Self::run(
            gpu,
            &self.fill_random,
            Launch::new(blocks, POINTWISE_THREADS),
            &arguments,
        );
    }

    fn normed_row(
        gpu: &Gpu,
        kernel: &Kernel,
        x: Argument,
        norm: &Norm<'_, Cuda>,
        w: &CudaMatrix,
        bias: Option<&Memory>,
        outputs: &[Argument],
        segments: usize,
    ) {
        let shape = RowShape::new(gpu.properties(), w.cols, w.rows / segments, segments, NORM_VECTORS);
        let mut arguments = vec![
            w.memory.start(),
            bias.map_or(Argument::NULL, Memory::start),
            x,
            norm.weight.memory.start(),
        ];
        arguments.extend_from_slice(outputs);
        arguments.extend([
            w.cols.into(),
            (w.rows / segments).into(),
            Argument::I32(1),
            norm.eps.into(),
        ]);
        arguments.extend(shape.arguments());
        Self::run(gpu, kernel, shape.launch(), &arguments);
    }

    /// A product of the norm of one row.
    pub(super) fn norm_row(
        &self,
        gpu: &Gpu,
        product: NormRow,
        x: &CudaBuffer,
        norm: &Norm<'_, Cuda>,
        w: &CudaMatrix,
        bias: Option<&CudaBuffer>,
        out: &mut CudaBuffer,
    ) {
        let (kernel, segments) = match product {
            NormRow::Linear => (&self.norm_linear, 1),
            NormRow::LinearSiluMul => (&self.norm_linear_silu_mul, 2),
        };
        let bias = bias.and_then(|bias| bias.elements.as_ref());
        let (x, outputs) = (x.memory.start(), [out.memory.start()]);
        Self::normed_row(gpu, kernel, x, norm, w, bias, &outputs, segments);
    }

    /// Logits of row `row`, and the id of the largest.
    pub(super) fn norm_logits(
        &self,
        gpu: &Gpu,
        x: &CudaBuffer,
        norm: &Norm<'_, Cuda>,
        row: usize,
        w: &CudaMatrix,
        out: &mut CudaBuffer,
    ) {
        let x = x.memory.at(row * w.cols * size_of::<f32>());
        let [best, bad] = self.sample.of_logits();
        let outputs = [out.memory.start(), best, bad];
        Self::normed_row(gpu, &self.norm_logits, x, norm, w, None, &outputs, 1);
        self.sample.greedy(
            gpu,
            RowShape::new(gpu.properties(), w.cols, w.rows, 1, NORM_VECTORS).blocks,
        );
    }

    pub(super) fn linear_add(
        &self,
        gpu: &Gpu,
        x: &CudaBuffer,
        w: &CudaMatrix,
        bias: Option<&Memory>,
        out: &mut CudaBuffer,
    ) {
        let shape =
            RowShape::new(gpu.properties(), w.cols, w.rows, 1, ADD_VECTORS).one_per_multiprocessor(gpu.properties());
        let mut arguments = vec![
            w.memory.start(),
            bias.map_or(Argument::NULL, Memory::start),
            x.memory.start(),
            out.memory.start(),
            w.cols.into(),
            w.rows.into(),
        ];
        arguments.extend(shape.arguments());
        Self::run(gpu, &self.linear_add, shape.launch(), &arguments);
    }
}

/// Blocks for `rows` rows of `width`, a few of them a row.
fn rows_of_width(rows: usize, width: usize) -> Launch {
    let per_block = POINTWISE_THREADS as usize * POINTWISE_ELEMENTS;
    Launch::new((width.div_ceil(per_block), rows), POINTWISE_THREADS).overlapping()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h200() -> Properties {
        Properties {
            name: "H200".to_owned(),
            compute_capability: 90,
            multiprocessors: 132,
            shared_bytes_per_block: 227 << 10,
            shared_bytes_per_multiprocessor: 228 << 10,
            l2_bytes: 50 << 20,
            memory_bytes: 140 << 30,
            driver_version: 13000,
        }
    }

    /// Blocks of the product that adds never share a multiprocessor, but one does with one of the next product: the
    /// pattern that keeps every multiprocessor busy. The system takes 1 KB of each block.
    #[test]
    fn a_multiprocessor_holds_one_adding_block_and_one_of_the_next_product() {
        let (device, system) = (h200(), 1024);
        let room = device.shared_bytes_per_multiprocessor as usize;
        // Hidden and intermediate sizes of Qwen2-0.5B, Qwen2-7B, Llama-3-8B and Qwen2-72B.
        for (hidden, intermediate) in [(896, 4864), (3584, 18944), (4096, 14336), (8192, 29568)] {
            let next = RowShape::new(&device, hidden, intermediate, 2, NORM_VECTORS);
            for inputs in [hidden, intermediate] {
                if !takes_row(inputs) {
                    continue;
                }
                let adds = RowShape::new(&device, inputs, hidden, 1, ADD_VECTORS).one_per_multiprocessor(&device);
                assert!(2 * (adds.shared_bytes + system) > room, "{inputs}: two fit");
                assert!(
                    adds.shared_bytes <= device.shared_bytes_per_block as usize,
                    "{inputs}: none fits"
                );
                let both = adds.shared_bytes + next.shared_bytes + 2 * system;
                assert!(both <= room, "{inputs}, then {hidden} to {intermediate}: {both} bytes");
            }
        }
    }
}
