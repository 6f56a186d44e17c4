//! Rows made of several keys: bounds and means.

use super::{Cpu, math};
use crate::kernels::{AttentionShape, PAGE_TOKENS, Pages, RopeTable};
use pulp::Arch;
use rayon::prelude::*;
use std::ops::Range;

/// The key of `token` in KV head `kv`.
#[inline(always)]
fn key(keys: Pages<'_, Cpu>, token: usize, kv: usize, d: usize) -> &[f32] {
    let slot = keys.table.slot(token);
    &keys.pages[slot / PAGE_TOKENS][(kv * PAGE_TOKENS + slot % PAGE_TOKENS) * d..][..d]
}

pub(super) fn key_bounds(
    keys: Pages<'_, Cpu>,
    shape: &AttentionShape,
    rope: &RopeTable,
    tokens: Range<usize>,
    group_tokens: usize,
    out: &mut [Vec<f32>],
) {
    let arch = Arch::new();
    let d = shape.head_dim;
    let groups = tokens.start / group_tokens..tokens.end / group_tokens;
    // One task per output page and KV head; in decode there is one group at most, and no task is started for nothing.
    out.par_iter_mut().enumerate().for_each(|(page, out)| {
        let first = groups.start.max(page * PAGE_TOKENS);
        let last = groups.end.min((page + 1) * PAGE_TOKENS);
        if first >= last {
            return;
        }
        out.par_chunks_exact_mut(PAGE_TOKENS * 2 * d)
            .enumerate()
            .for_each(|(kv, out)| {
                arch.dispatch(|| {
                    let mut rotated = vec![0.0; d];
                    for row in first..last {
                        let bounds = &mut out[row % PAGE_TOKENS * 2 * d..][..2 * d];
                        let (high, low) = bounds.split_at_mut(d);
                        high.fill(f32::NEG_INFINITY);
                        low.fill(f32::INFINITY);
                        for token in row * group_tokens..(row + 1) * group_tokens {
                            let (cos, sin) = rope.row(token);
                            math::rotate(key(keys, token, kv, d), cos, sin, &mut rotated);
                            for ((high, low), &k) in high.iter_mut().zip(low.iter_mut()).zip(&rotated) {
                                *high = if k > *high { k } else { *high };
                                *low = if k < *low { k } else { *low };
                            }
                        }
                    }
                });
            });
    });
}

pub(super) fn mean_keys(
    keys: Pages<'_, Cpu>,
    shape: &AttentionShape,
    members: &[u32],
    count: usize,
    row: usize,
    out: &mut [Vec<f32>],
) {
    let d = shape.head_dim;
    let page = &mut out[row / PAGE_TOKENS];
    for (h, members) in members.chunks_exact(count).enumerate() {
        let mean = &mut page[(h * PAGE_TOKENS + row % PAGE_TOKENS) * d..][..d];
        mean.fill(0.0);
        for &token in members {
            let key = key(keys, token as usize, h / shape.group(), d);
            mean.iter_mut().zip(key).for_each(|(m, k)| *m += k / count as f32);
        }
    }
}
