//! Text from a trained model, symbol by symbol through its memory.

use super::pool::Pool;
use super::transformer_xl::{Memory, Segment, TransformerXl};
use crate::error::Result;
use crate::model::sampling::{Sampler, SamplingConfig};

/// Continues `prompt` (at least one symbol) by `count` symbols.
pub fn generate(
    model: &TransformerXl,
    data: &[f32],
    prompt: &[u32],
    count: usize,
    sampling: &SamplingConfig,
) -> Result<Vec<u32>> {
    let mut sampler = Sampler::new(sampling.clone())?;
    let (mut pool, mut memory) = (Pool::default(), Memory::empty(model.config.layers));
    let mut ids = prompt.to_vec();
    for at in 0..prompt.len() + count - 1 {
        let segment = Segment {
            inputs: &[ids[at]],
            targets: &[],
            batch: 1,
        };
        let mut logits = model.logits(data, segment, &mut memory, &mut pool);
        if at + 1 >= prompt.len() {
            let next = sampler.sample(&mut logits, &ids)?;
            ids.push(next);
        }
        pool.give(logits);
    }
    Ok(ids.split_off(prompt.len()))
}
