//! What benches ask of a text on a GPU: what is stored, and what was selected.

use super::CudaContext;
use crate::error::Result;
use crate::kernels::AttentionShape;
use crate::kernels::cuda::{Cuda, Memory};

impl CudaContext {
    /// Keys and values of the first `tokens` tokens of `layer`, `[tokens][Hkv][D]` elements each.
    pub(crate) fn stored_bits(
        &self,
        device: &Cuda,
        layer: usize,
        tokens: usize,
        shape: &AttentionShape,
    ) -> Result<[Vec<u16>; 2]> {
        let store = &self.layers[layer];
        let elements = tokens * shape.kv_width();
        let read = |memory: &Memory| -> Result<Vec<u16>> {
            let mut bits = vec![0u16; elements];
            device.gpu().download(memory, 0, bytemuck::cast_slice_mut(&mut bits))?;
            Ok(bits)
        };
        Ok([read(&store.keys)?, read(&store.values)?])
    }

    /// The packed list of `chunk` of the last layer that ran of a prompt; empty for policies that do not select.
    pub(crate) fn prompt_list(&self, device: &Cuda, chunk: usize) -> Result<Vec<u32>> {
        let Some(selecting) = &self.selecting else {
            return Ok(Vec::new());
        };
        let scratch = &selecting.scratch;
        let mut length = [0u32];
        let word = size_of::<u32>();
        device
            .gpu()
            .download(&scratch.lengths, chunk * word, bytemuck::cast_slice_mut(&mut length))?;
        // A broken length must not read beyond the list.
        let mut list = vec![0u32; (length[0] as usize).min(scratch.stride)];
        device.gpu().download(
            &scratch.lists,
            chunk * scratch.stride * word,
            bytemuck::cast_slice_mut(&mut list),
        )?;
        Ok(list)
    }

    /// The queries `[H, D]` that chose the list of `chunk`, as stored; empty for policies that do not select.
    pub(crate) fn prompt_query(&self, device: &Cuda, chunk: usize, shape: &AttentionShape) -> Result<Vec<f32>> {
        let Some(selecting) = &self.selecting else {
            return Ok(Vec::new());
        };
        let mut bits = vec![0u16; shape.query_width()];
        let offset = chunk * bits.len() * size_of::<u16>();
        let memory = selecting.scratch.queries();
        device
            .gpu()
            .download(memory, offset, bytemuck::cast_slice_mut(&mut bits))?;
        Ok(bits.into_iter().map(|bits| device.element().value(bits)).collect())
    }

    /// The query `[H, D]` that made the last selection of a step of `layer`, as it is scored; empty for policies that do not
    /// select.
    pub(crate) fn step_query(&self, device: &Cuda, layer: usize, shape: &AttentionShape) -> Result<Vec<f32>> {
        let Some(selecting) = &self.selecting else {
            return Ok(Vec::new());
        };
        let element = device.element();
        let query = selecting.step_state.query(layer, shape.query_width())?;
        Ok(query.into_iter().map(|x| element.value(element.bits(x))).collect())
    }

    /// The packed list of the last step of `layer`; empty for policies that do not select. Tokens that a hit keeps beyond
    /// the window are not told.
    pub(crate) fn step_list(&self, layer: usize) -> Result<Vec<u32>> {
        let Some(selecting) = &self.selecting else {
            return Ok(Vec::new());
        };
        let select = &selecting.select;
        if self.stored <= select.n_init + select.top_k + select.n_local {
            return Ok((0..self.stored as u32).collect());
        }
        let local_start = self.stored.saturating_sub(select.window(1)).max(select.n_init);
        let chosen = selecting.step_state.selected(layer, select.top_k)?;
        let chosen = chosen.into_iter().take(local_start - select.n_init);
        Ok((0..select.n_init as u32)
            .chain(chosen.map(|token| token.max(0) as u32))
            .chain(local_start as u32..self.stored as u32)
            .collect())
    }
}
