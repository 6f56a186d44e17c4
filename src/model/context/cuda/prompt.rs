//! Attention of a prompt's rows, launch by launch; benches run one launch by itself.

use super::{CudaContext, PassArray, Selecting};
use crate::error::{Error, Result};
use crate::kernels::cuda::attention::{Keys, QueryChunks};
use crate::kernels::cuda::select::SelectInput;
use crate::kernels::cuda::{Argument, CudaBuffer};

/// One of the launches that a prompt's attention consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Keys and values of the pass into the store.
    Append,
    /// The lists of all chunks.
    Select,
    /// Their keys and values, gathered.
    Pack,
    /// Attention over the gathered lists.
    Attend,
}

impl CudaContext {
    /// All launches of a forward pass.
    pub(super) fn attend_prompt(&self, layer: usize, qkv: &CudaBuffer, rows: usize, out: &CudaBuffer) -> Result<()> {
        self.append(layer, qkv, rows);
        let (store, before) = (&self.layers[layer], self.pass_array(PassArray::Before));
        self.kernels
            .quantize(store, before, self.pass_array(PassArray::Count), self.capacity);
        let Some(selecting) = &self.selecting else {
            let keys = Keys::Stored(store, self.capacity);
            let stored = self.pass_array(PassArray::Stored);
            return self.attend_chunks(layer, qkv, [1, rows], stored, &keys, out);
        };
        self.select(selecting, layer, qkv, rows);
        self.pack(selecting, layer, rows);
        self.attend_packed(selecting, layer, qkv, rows, out)
    }

    /// One stage of a forward pass of a policy that selects, again: all of them must have run for this pass before.
    pub(crate) fn stage(
        &self,
        stage: Stage,
        layer: usize,
        qkv: &CudaBuffer,
        rows: usize,
        out: &CudaBuffer,
    ) -> Result<()> {
        let Some(selecting) = &self.selecting else {
            return Err(Error::bug("stages of a policy that does not select"));
        };
        match stage {
            Stage::Append => self.append(layer, qkv, rows),
            Stage::Select => self.select(selecting, layer, qkv, rows),
            Stage::Pack => self.pack(selecting, layer, rows),
            Stage::Attend => self.attend_packed(selecting, layer, qkv, rows, out)?,
        }
        Ok(())
    }

    fn append(&self, layer: usize, qkv: &CudaBuffer, rows: usize) {
        let (store, before) = (&self.layers[layer], self.pass_array(PassArray::Before));
        self.kernels
            .append(qkv, rows, before, &self.rope, self.selecting.is_none(), store);
    }

    fn select(&self, selecting: &Selecting, layer: usize, qkv: &CudaBuffer, rows: usize) {
        let input = SelectInput {
            qkv,
            keys: &self.layers[layer].keys,
            chunks: rows.div_ceil(self.chunk_rows),
            rows: self.chunk_rows,
            stored: self.pass_array(PassArray::Stored),
            rows_of: self.pass_array(PassArray::Rows),
        };
        selecting
            .select_kernels
            .select(&input, &selecting.select, &self.rope, &selecting.scratch);
    }

    fn pack(&self, selecting: &Selecting, layer: usize, rows: usize) {
        let (store, scratch) = (&self.layers[layer], &selecting.scratch);
        self.kernels.pack(
            store,
            &scratch.lists,
            scratch.stride,
            scratch.lengths.start(),
            rows.div_ceil(self.chunk_rows),
            &self.rope,
            &selecting.packed,
        );
    }

    fn attend_packed(
        &self,
        selecting: &Selecting,
        layer: usize,
        qkv: &CudaBuffer,
        rows: usize,
        out: &CudaBuffer,
    ) -> Result<()> {
        let sizes = [rows.div_ceil(self.chunk_rows), self.chunk_rows];
        let keys = Keys::Packed(&selecting.packed);
        self.attend_chunks(layer, qkv, sizes, selecting.scratch.lengths.start(), &keys, out)
    }

    /// Attention of `chunks` chunks of up to `rows` rows over `lengths` of `keys`.
    fn attend_chunks(
        &self,
        layer: usize,
        qkv: &CudaBuffer,
        [chunks, rows]: [usize; 2],
        lengths: Argument,
        keys: &Keys<'_>,
        out: &CudaBuffer,
    ) -> Result<()> {
        let chunks = QueryChunks {
            qkv,
            rotated: &self.rotated,
            first_positions: self.pass_array(PassArray::FirstPosition),
            rope: &self.rope,
            chunks,
            rows,
            rows_of: self.pass_array(PassArray::Rows),
            lengths,
            window: self.windows[layer],
        };
        self.kernels.attend_chunks(&chunks, keys, out)
    }
}
