//! Products of many keys with few queries (decode attention, token scores): the keys stay as they lie.
//!
//! Eight queries share a register of 16 lanes, two lanes each: a pair of neighbouring elements of a key is broadcast at
//! once (as one f64) and meets the same pair of all eight queries. That halves both the broadcasts and the
//! multiply-adds of one element at a time, where a group has at most eight heads.

use super::aligned::Aligned;
use pulp::Simd;

/// Queries of one panel.
pub const QUERIES: usize = 8;
/// Keys of one micro kernel call.
pub const KEYS: usize = 8;
/// Lanes of one panel line.
const LINE: usize = 2 * QUERIES;

/// Scores of [`KEYS`] keys for the queries of one panel.
pub type Tile = [[f32; KEYS]; QUERIES];

/// Panels of `count` queries of `d` elements: `[ceil(count / 8)][D / 2][8][2]`. `query` gives element `k` of query `r`;
/// missing queries are zero.
pub fn panels(count: usize, d: usize, query: impl Fn(usize, usize) -> f32) -> Aligned {
    let mut panels = Aligned::zeros(count.div_ceil(QUERIES) * QUERIES * d);
    for r in 0..count {
        let panel = &mut panels[r / QUERIES * QUERIES * d..][..QUERIES * d];
        for k in 0..d {
            panel[k / 2 * LINE + r % QUERIES * 2 + k % 2] = query(r, k);
        }
    }
    panels
}

/// `acc[r] = keys[r] * panel`, lanes still in pairs.
#[inline(always)]
fn paired_kernel<S: Simd, const NV: usize>(
    simd: S,
    mut keys: [&[[f32; 2]]; KEYS],
    panel: &[f32],
) -> [[S::f32s; NV]; KEYS] {
    let depth = keys[0].len();
    // One length for all slices, known to bound i, lets the compiler drop every bounds check of the loop.
    for key in &mut keys {
        *key = &key[..depth];
    }
    let mut acc = [[simd.splat_f32s(0.0); NV]; KEYS];
    for (i, line) in (0..depth).zip(panel.chunks_exact(LINE)) {
        let (line, _) = S::as_simd_f32s(line);
        let mut b = [simd.splat_f32s(0.0); NV];
        b.copy_from_slice(&line[..NV]);
        for r in 0..KEYS {
            for v in 0..NV {
                let x = if S::F32_LANES == 2 * S::F64_LANES {
                    bytemuck::cast(simd.splat_f64s(bytemuck::cast(keys[r][i])))
                } else {
                    // One lane: register v holds element v % 2 of a pair.
                    simd.splat_f32s(keys[r][i][v % 2])
                };
                acc[r][v] = simd.mul_add_f32s(x, b[v], acc[r][v]);
            }
        }
    }
    acc
}

#[inline(always)]
fn blocks<S: Simd, const NV: usize>(
    simd: S,
    keys: &[f32],
    d: usize,
    panel: &[f32],
    mut body: impl FnMut(usize, usize, &Tile),
) {
    let (pairs, _) = keys.as_chunks::<2>();
    let n = keys.len() / d;
    for first in (0..n).step_by(KEYS) {
        let count = KEYS.min(n - first);
        let mut rows = [&pairs[..0]; KEYS];
        for (r, row) in rows.iter_mut().enumerate() {
            // Missing keys repeat the last one; their scores are not used.
            *row = &pairs[(first + r.min(count - 1)) * (d / 2)..][..d / 2];
        }
        let acc = paired_kernel::<S, NV>(simd, rows, panel);
        let mut lines = [[0.0; LINE]; KEYS];
        for (line, acc) in lines.iter_mut().zip(&acc) {
            S::as_mut_simd_f32s(line).0.copy_from_slice(acc);
        }
        let mut tile: Tile = [[0.0; KEYS]; QUERIES];
        for query in 0..QUERIES {
            for key in 0..KEYS {
                tile[query][key] = lines[key][2 * query] + lines[key][2 * query + 1];
            }
        }
        body(first, count, &tile);
    }
}

/// Calls `body(first key, number of keys, scores)` for every [`KEYS`] of the keys `[n, D]` and one panel; D is even.
#[inline(always)]
pub fn scores<S: Simd>(simd: S, keys: &[f32], d: usize, panel: &[f32], body: impl FnMut(usize, usize, &Tile)) {
    match S::F32_LANES {
        16 => blocks::<S, 1>(simd, keys, d, panel, body),
        8 => blocks::<S, 2>(simd, keys, d, panel, body),
        4 => blocks::<S, 4>(simd, keys, d, panel, body),
        _ => blocks::<S, LINE>(simd, keys, d, panel, body),
    }
}
