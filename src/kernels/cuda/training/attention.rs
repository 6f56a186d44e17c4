//! Launches of `train_attention.cu`.

use super::{Compiled, Masks, Precision, Span, Structure, Training, source_kernel};
use crate::bytes::human_bytes;
use crate::error::{Error, Result};
use crate::kernels::cuda::compile::Source;
use crate::kernels::cuda::driver::{Argument, Gpu, Kernel, Launch};

/// Blocks that the sums of the relative table are spread over, about.
const TABLE_BLOCKS: usize = 512;

/// How tiles lie in shared memory; the sizes are those of `train_attention.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tiles {
    compiled: Compiled,
    warps: usize,
}

impl Tiles {
    /// The largest tiles that fit.
    fn fitting(compiled: Compiled, most_bytes: usize) -> Option<Self> {
        let tiles = [4, 2, 1].map(|warps| Self { compiled, warps });
        tiles
            .into_iter()
            .find(|tiles| tiles.bytes().into_iter().max().is_some_and(|bytes| bytes <= most_bytes))
    }

    fn rows(&self) -> usize {
        16 * self.warps
    }

    /// Shared memory of the four kernels, in bytes.
    fn bytes(&self) -> [usize; 4] {
        let value = self.compiled.precision.bytes();
        let pad = if self.compiled.precision == Precision::F32 {
            4
        } else {
            8
        };
        let rows = self.rows();
        let head = rows * (self.compiled.head_dim.next_multiple_of(16) + pad) * value;
        let shifts = 4 * self.warps * 16 * (rows + 17);
        let sheared = self.warps * 16 * (rows + 16 + pad) * value;
        let weights = rows * (rows + pad) * value;
        let (relative, bias) = if self.compiled.relative {
            (1, 4 * 2 * rows)
        } else {
            (0, 0)
        };
        [
            (3 + 3 * relative) * head + bias + shifts,
            (4 + 3 * relative) * head + bias + shifts + sheared,
            (4 + 3 * relative) * head + 2 * weights + bias + relative * shifts,
            7 * head + rows * (2 * rows + pad) * value + bias + shifts,
        ]
    }
}

/// What `train_attention.cu` is compiled with, for tiles of `16 * warps` rows.
pub fn defines(compiled: &Compiled, warps: usize) -> Vec<(&'static str, String)> {
    let mut defines = compiled.precision.defines();
    defines.extend([
        ("HEAD_DIM", compiled.head_dim.to_string()),
        ("RELATIVE", u8::from(compiled.relative).to_string()),
        ("WARPS", warps.to_string()),
    ]);
    defines
}

pub(super) struct AttentionKernels {
    tiles: Tiles,
    attend: Kernel,
    query_gradient: Kernel,
    key_gradient: Kernel,
    /// Sums over a diagonal, and over diagonals.
    table: Option<(Kernel, Kernel)>,
}

impl AttentionKernels {
    pub(super) fn new(gpu: &Gpu, compiled: &Compiled) -> Result<Self> {
        let most = gpu.properties().shared_bytes_per_block as usize;
        let tiles = Tiles::fitting(*compiled, most).ok_or_else(|| {
            Error::user(format!(
                "heads of {} elements are too long for this GPU in {}: a block has {} of shared memory",
                compiled.head_dim,
                compiled.precision.name(),
                human_bytes(most)
            ))
            .help("pass more `--heads`, or `--device cpu`")
        })?;
        let defines = defines(compiled, tiles.warps);
        let bytes = tiles.bytes();
        let kernel = |name, at: usize| {
            let kernel = source_kernel(gpu, Source::TrainAttention, &defines, name)?;
            kernel.allow_shared(gpu, bytes[at] as u32);
            Ok::<_, Error>(kernel)
        };
        let table = if compiled.relative {
            let sum = source_kernel(gpu, Source::TrainAttention, &defines, "train_sum_table")?;
            Some((kernel("train_attend_table_gradient", 3)?, sum))
        } else {
            None
        };
        Ok(Self {
            attend: kernel("train_attend", 0)?,
            query_gradient: kernel("train_attend_query_gradient", 1)?,
            key_gradient: kernel("train_attend_key_gradient", 2)?,
            table,
            tiles,
        })
    }
}

/// Sizes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// B.
    pub batch: usize,
    /// H.
    pub heads: usize,
    /// dk.
    pub head_dim: usize,
    /// M.
    pub memory: usize,
    /// T.
    pub segment: usize,
}

impl Sizes {
    fn keys(&self) -> usize {
        self.memory + self.segment
    }

    /// Elements of a row.
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// The learned relative parameters.
#[derive(Clone, Copy)]
pub struct Relative<'a> {
    /// R, stored, `[rows, H, dk]`.
    pub table: Span<'a>,
    /// S, f32, `[rows, H]`.
    pub bias: Span<'a>,
    /// v, f32, `[H, dk]`.
    pub query_bias: Span<'a>,
    /// Row of distance 0.
    pub zero: usize,
}

/// What attention reads. Stored rows: queries `[T, B, d]`, keys and values `[N, B, d]`.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// Sizes.
    pub sizes: Sizes,
    /// Queries.
    pub query: Span<'a>,
    /// Keys.
    pub key: Span<'a>,
    /// Values.
    pub value: Span<'a>,
    /// Positions, of kernels compiled for them.
    pub relative: Option<Relative<'a>>,
    /// Dropout of the weights.
    pub masks: Masks<'a>,
    /// Index of its key.
    pub place: usize,
}

/// Where gradients come from and go to.
#[derive(Clone, Copy)]
pub struct Gradients<'a> {
    /// Stored result of the forward pass and its gradient, `[T, B, d]`.
    pub out: Span<'a>,
    /// See `out`.
    pub d_out: Span<'a>,
    /// f32 `[H B, T]`, of the forward pass.
    pub log_sums: Span<'a>,
    /// f32 `[H B, T]`, scratch.
    pub delta: Span<'a>,
    /// Stored, `[T, B, d]`.
    pub d_query: Span<'a>,
    /// Stored, `[N, B, d]`.
    pub d_key: Span<'a>,
    /// Stored, `[N, B, d]`.
    pub d_value: Span<'a>,
}

/// Where the gradients of relative parameters go.
#[derive(Clone, Copy)]
pub struct RelativeGradients<'a> {
    /// Partial sums of v, f32, `[Training::query_bias_chunks, d]`.
    pub query_bias: Span<'a>,
    /// Scratch of [`Training::table_scratch_bytes`].
    pub scratch: Span<'a>,
    /// R, f32, whole.
    pub table: Span<'a>,
    /// S, f32, whole.
    pub bias: Span<'a>,
    /// Rows of R that any call can reach.
    pub reach: usize,
    /// Whether what is there is kept and added to.
    pub accumulate: bool,
}

impl Training {
    fn tile_rows(&self) -> usize {
        self.attention.tiles.rows()
    }

    /// Partial sums of v's gradient.
    pub fn query_bias_chunks(&self, sizes: &Sizes) -> usize {
        sizes.batch * sizes.segment.div_ceil(self.tile_rows())
    }

    /// Diagonals of tiles that hold a visible pair, and the shares that the streams are cut into.
    fn diagonals(&self, sizes: &Sizes) -> (usize, usize) {
        let tile = self.tile_rows();
        let (rows, keys) = (sizes.segment.div_ceil(tile), sizes.keys().div_ceil(tile));
        let diagonals = rows + (keys - 1).min(sizes.memory.div_ceil(tile));
        let splits = (TABLE_BLOCKS / (diagonals * sizes.heads)).clamp(1, sizes.batch);
        (diagonals, splits)
    }

    /// Bytes of partial sums of R and S.
    pub fn table_scratch_bytes(&self, sizes: &Sizes) -> usize {
        let (diagonals, splits) = self.diagonals(sizes);
        4 * splits * diagonals * sizes.heads * 2 * self.tile_rows() * (sizes.head_dim + 1)
    }

    fn operands(x: &Operands<'_>) -> Argument {
        let sizes = &x.sizes;
        Structure::default()
            .span(Some(x.query))
            .span(Some(x.key))
            .span(Some(x.value))
            .span(x.relative.map(|relative| relative.table))
            .span(x.relative.map(|relative| relative.bias))
            .span(x.relative.map(|relative| relative.query_bias))
            .masks(&x.masks)
            .int(x.place)
            .int(sizes.batch)
            .int(sizes.heads)
            .int(sizes.segment)
            .int(sizes.memory)
            .int(x.relative.map_or(0, |relative| relative.zero))
            .argument()
    }

    fn needs<'a>(&self, x: &Operands<'a>) -> Vec<(Span<'a>, usize)> {
        let (sizes, value) = (&x.sizes, self.value_bytes());
        let row = value * sizes.batch * sizes.width();
        let mut needs = vec![
            (x.query, row * sizes.segment),
            (x.key, row * sizes.keys()),
            (x.value, row * sizes.keys()),
        ];
        if let Some(relative) = x.relative {
            needs.extend([
                (relative.table, value * (relative.zero + 1) * sizes.width()),
                (relative.bias, 4 * (relative.zero + 1) * sizes.heads),
                (relative.query_bias, 4 * sizes.width()),
            ]);
        }
        needs
    }

    fn attention_launch(&self, tiles: usize, sizes: &Sizes, which: usize) -> Launch {
        let layout = &self.attention.tiles;
        Launch::new((tiles, sizes.heads * sizes.batch), 32 * layout.warps as u32).shared(layout.bytes()[which] as u32)
    }

    /// Stored `out` `[T, B, d]`, and f32 `log_sums` `[H B, T]`.
    pub fn attend(&self, x: &Operands<'_>, out: Span<'_>, log_sums: Span<'_>) {
        let sizes = &x.sizes;
        let mut needs = self.needs(x);
        needs.extend([
            (out, self.value_bytes() * sizes.segment * sizes.batch * sizes.width()),
            (log_sums, 4 * sizes.heads * sizes.batch * sizes.segment),
        ]);
        let tiles = sizes.segment.div_ceil(self.tile_rows());
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(
                &self.attention.attend,
                self.attention_launch(tiles, sizes, 0),
                &[Self::operands(x), out.argument(), log_sums.argument()],
                &needs,
            );
        }
    }

    /// Gradients of [`Training::attend`]; `relative` with relative positions.
    pub fn attend_gradients(&self, x: &Operands<'_>, y: &Gradients<'_>, relative: Option<&RelativeGradients<'_>>) {
        let sizes = &x.sizes;
        let row = self.value_bytes() * sizes.batch * sizes.width();
        let sums = 4 * sizes.heads * sizes.batch * sizes.segment;
        let mut needs = self.needs(x);
        needs.extend([
            (y.out, row * sizes.segment),
            (y.d_out, row * sizes.segment),
            (y.log_sums, sums),
            (y.delta, sums),
            (y.d_query, row * sizes.segment),
            (y.d_key, row * sizes.keys()),
            (y.d_value, row * sizes.keys()),
        ]);
        if let Some(relative) = relative {
            needs.extend([
                (relative.query_bias, 4 * self.query_bias_chunks(sizes) * sizes.width()),
                (relative.scratch, self.table_scratch_bytes(sizes)),
            ]);
        }
        let operands = Self::operands(x);
        let backward = Structure::default()
            .span(Some(y.d_out))
            .span(Some(y.log_sums))
            .span(Some(y.delta))
            .argument();
        let query_bias = relative.map_or(Argument::NULL, |relative| relative.query_bias.argument());
        let tile = self.tile_rows();
        // SAFETY: lengths as checked.
        unsafe {
            self.launch(
                &self.attention.query_gradient,
                self.attention_launch(sizes.segment.div_ceil(tile), sizes, 1),
                &[operands, backward, y.out.argument(), y.d_query.argument(), query_bias],
                &needs,
            );
            self.launch(
                &self.attention.key_gradient,
                self.attention_launch(sizes.keys().div_ceil(tile), sizes, 2),
                &[operands, backward, y.d_key.argument(), y.d_value.argument()],
                &needs,
            );
        }
        let (Some(relative), Some((diagonal, sum)), Some(own)) = (relative, &self.attention.table, x.relative) else {
            return;
        };
        let (diagonals, splits) = self.diagonals(sizes);
        let places = splits * diagonals * sizes.heads * 2 * tile;
        let (of_table, of_bias) = (relative.scratch, relative.scratch.after(4 * places * sizes.head_dim));
        let layout = &self.attention.tiles;
        needs.extend([
            (relative.table, 4 * (own.zero + 1) * sizes.width()),
            (relative.bias, 4 * (own.zero + 1) * sizes.heads),
        ]);
        // SAFETY: lengths as checked; `reach` rows end with row `zero`.
        unsafe {
            self.launch(
                diagonal,
                Launch::new((diagonals, sizes.heads, splits), 32 * layout.warps as u32)
                    .shared(layout.bytes()[3] as u32),
                &[operands, backward, of_table.argument(), of_bias.argument()],
                &needs,
            );
            self.launch(
                sum,
                Launch::new(relative.reach.min(own.zero + 1), 256),
                &[
                    of_table.argument(),
                    of_bias.argument(),
                    relative.table.argument(),
                    relative.bias.argument(),
                    sizes.heads.into(),
                    sizes.segment.into(),
                    sizes.memory.into(),
                    own.zero.into(),
                    diagonals.into(),
                    splits.into(),
                    usize::from(relative.accumulate).into(),
                ],
                &needs,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_shrink_until_they_fit() {
        let compiled = |precision, head_dim| Compiled {
            precision,
            head_dim,
            relative: true,
            kernel: 3,
        };
        // 227 KiB of Hopper, 99 KiB of the consumer chips.
        let warps = |compiled, kib: usize| Tiles::fitting(compiled, kib << 10).map(|tiles| tiles.warps);
        assert_eq!(warps(compiled(Precision::F32, 64), 227), Some(4));
        assert_eq!(warps(compiled(Precision::F32, 128), 227), Some(2));
        assert_eq!(warps(compiled(Precision::Bf16, 128), 227), Some(4));
        assert_eq!(warps(compiled(Precision::F32, 64), 99), Some(2));
        assert_eq!(warps(compiled(Precision::F32, 4096), 99), None);
    }
}
