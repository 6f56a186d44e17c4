//! Paged store of un-rotated keys and values.
//!
//! Keys are stored as projected, without rotary embedding: a policy decides at which position each is rotated when it is
//! attended to. A logical token `t` lives in slot `pages[t / PAGE_TOKENS] * PAGE_TOKENS + t % PAGE_TOKENS`; all layers
//! share one page table, and pages are allocated as the text grows and reused for the next one.

use crate::error::{Error, Result};
use crate::kernels::{AttentionShape, Backend, PAGE_TOKENS, PageTable, Pages};
use crate::random::stream_rng;
use rand::RngCore;

struct LayerPages<B: Backend> {
    keys: Vec<B::Buffer>,
    values: Vec<B::Buffer>,
}

/// Keys and values of every layer for one sequence.
pub struct KvCache<B: Backend> {
    shape: AttentionShape,
    layers: Vec<LayerPages<B>>,
    table: PageTable,
    free: Vec<u32>,
    len: usize,
    capacity: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache that will hold at most `capacity` tokens.
    pub fn new(layers: usize, shape: AttentionShape, capacity: usize) -> Self {
        let layers = (0..layers)
            .map(|_| LayerPages {
                keys: Vec::new(),
                values: Vec::new(),
            })
            .collect();
        Self {
            shape,
            layers,
            table: PageTable::default(),
            free: Vec::new(),
            len: 0,
            capacity,
        }
    }

    /// N: stored tokens, the chunk in progress included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens it may hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room for the next `rows` tokens in every layer and counts them as stored; their keys and values follow
    /// by [`KvCache::store`], layer by layer.
    pub fn extend(&mut self, backend: &B, rows: usize) -> Result<()> {
        let len = self.len + rows;
        if len > self.capacity {
            return Err(Error::user(format!(
                "the text needs {len} tokens of KV cache, but the context holds {}",
                self.capacity
            ))
            .help(format!("pass `--max-context {len}` or more")));
        }
        let page_elements = PAGE_TOKENS * self.shape.kv_width();
        while self.table.pages.len() * PAGE_TOKENS < len {
            let page = self.free.pop().unwrap_or_else(|| {
                for layer in &mut self.layers {
                    layer.keys.push(backend.zeros(page_elements));
                    layer.values.push(backend.zeros(page_elements));
                }
                self.layers.first().map_or(0, |layer| layer.keys.len() as u32 - 1)
            });
            self.table.pages.push(page);
        }
        self.len = len;
        Ok(())
    }

    /// Writes keys and values of the last `rows` tokens of `layer` from fused rows `[rows, (H + 2 Hkv) D]`.
    pub fn store(&mut self, backend: &B, layer: usize, qkv: &B::Buffer, rows: usize) {
        let LayerPages { keys, values } = &mut self.layers[layer];
        backend.store_kv(qkv, rows, &self.shape, &self.table, self.len - rows, keys, values);
    }

    /// Continues to `len` tokens whose keys and values no forward pass made, for benches.
    ///
    /// Token `t` takes those of token `t mod N` of the N stored ones, moved up to a quarter of the way towards (or away
    /// from) those of another: their scale is that of real ones, and no two are equal.
    pub fn fill_random(&mut self, backend: &B, len: usize, seed: u64) -> Result<()> {
        let stored = self.len;
        if len <= stored {
            return Ok(());
        }
        if stored == 0 {
            return Err(Error::bug("an empty KV cache has no token to make others from"));
        }
        self.extend(backend, len - stored)?;
        let (width, offset) = (self.shape.qkv_width(), self.shape.key_offset());
        let mut block = vec![0.0; PAGE_TOKENS * width];
        for layer in 0..self.layers.len() {
            // [N, 2 Hkv D]: keys, then values, as in the fused rows.
            let real = self.host_rows(backend, layer, stored);
            let row = |token: usize| &real[token * (width - offset)..][..width - offset];
            for first in (stored..len).step_by(PAGE_TOKENS) {
                let rows = PAGE_TOKENS.min(len - first);
                for (i, out) in block.chunks_exact_mut(width).take(rows).enumerate() {
                    let token = first + i;
                    let mut rng = stream_rng(seed, &format!("kv/{layer}/{token}"));
                    let other = row(rng.next_u32() as usize % stored);
                    let share = (rng.next_u32() as f32 / u32::MAX as f32 - 0.5) * 0.5;
                    for ((out, a), b) in out[offset..].iter_mut().zip(row(token % stored)).zip(other) {
                        *out = a + share * (b - a);
                    }
                }
                let qkv = backend.upload(&block[..rows * width]);
                let LayerPages { keys, values } = &mut self.layers[layer];
                backend.store_kv(&qkv, rows, &self.shape, &self.table, first, keys, values);
            }
        }
        Ok(())
    }

    /// Keys and values of the first `tokens` tokens of `layer`, `[tokens, 2 Hkv D]`.
    fn host_rows(&self, backend: &B, layer: usize, tokens: usize) -> Vec<f32> {
        let (d, kv_width) = (self.shape.head_dim, self.shape.kv_width());
        let mut rows = vec![0.0; tokens * 2 * kv_width];
        for (offset, pages) in [(0, &self.layers[layer].keys), (kv_width, &self.layers[layer].values)] {
            for (logical, &page) in self.table.pages.iter().take(tokens.div_ceil(PAGE_TOKENS)).enumerate() {
                let page = backend.download(&pages[page as usize]);
                let first = logical * PAGE_TOKENS;
                for token in first..tokens.min(first + PAGE_TOKENS) {
                    let out = &mut rows[token * 2 * kv_width + offset..][..kv_width];
                    for (kv, head) in out.chunks_exact_mut(d).enumerate() {
                        head.copy_from_slice(&page[(kv * PAGE_TOKENS + token - first) * d..][..d]);
                    }
                }
            }
        }
        rows
    }

    /// Keeps the first `len` tokens; the pages of the rest go back to the pool.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        let keep = self.len.div_ceil(PAGE_TOKENS);
        self.free.extend(self.table.pages.drain(keep..));
    }

    /// Un-rotated keys of `layer`.
    pub fn keys(&self, layer: usize) -> Pages<'_, B> {
        Pages {
            pages: &self.layers[layer].keys,
            table: &self.table,
        }
    }

    /// Values of `layer`.
    pub fn values(&self, layer: usize) -> Pages<'_, B> {
        Pages {
            pages: &self.layers[layer].values,
            table: &self.table,
        }
    }

    /// H, Hkv, D.
    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    /// Bytes for `tokens` tokens in whole pages.
    pub fn bytes(layers: usize, shape: &AttentionShape, tokens: usize) -> usize {
        let per_token = layers * 2 * shape.kv_width() * size_of::<f32>();
        (tokens.div_ceil(PAGE_TOKENS) * PAGE_TOKENS).saturating_mul(per_token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::Reference;

    const SHAPE: AttentionShape = AttentionShape {
        query_heads: 2,
        kv_heads: 1,
        head_dim: 2,
    };

    /// Fused rows whose key and value say which token they are.
    fn rows(tokens: std::ops::Range<usize>) -> Vec<f32> {
        tokens
            .flat_map(|t| [0.0, 0.0, 0.0, 0.0, t as f32, 0.5, -(t as f32), 0.25])
            .collect()
    }

    fn key(cache: &KvCache<Reference>, layer: usize, token: usize) -> f32 {
        let keys = cache.keys(layer);
        let slot = keys.table.slot(token);
        keys.pages[slot / PAGE_TOKENS][slot % PAGE_TOKENS * 2]
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "stored numbers come back untouched")]
    fn tokens_are_found_after_pages_were_reused_in_another_order() {
        let mut cache = KvCache::<Reference>::new(2, SHAPE, 2000);
        cache.extend(&Reference, 900).expect("room");
        cache.truncate(100);
        assert_eq!(cache.len(), 100);
        for start in [100usize, 400, 700] {
            cache.extend(&Reference, 300).expect("room");
            for layer in 0..2 {
                cache.store(&Reference, layer, &rows(start..start + 300), 300);
            }
        }
        for token in 100..1000 {
            assert_eq!(key(&cache, 0, token), token as f32);
            assert_eq!(key(&cache, 1, token), token as f32);
        }
        // Four pages serve 1000 tokens: none was leaked by the truncation.
        assert_eq!(cache.keys(0).pages.len(), 4);
    }

    #[test]
    fn made_up_tokens_resemble_the_stored_ones_and_follow_the_seed() {
        let fill = |seed| {
            let mut cache = KvCache::<Reference>::new(1, SHAPE, 600);
            cache.extend(&Reference, 300).expect("room");
            cache.store(&Reference, 0, &rows(0..300), 300);
            cache.fill_random(&Reference, 600, seed).expect("room");
            (0..600).map(|token| key(&cache, 0, token)).collect::<Vec<_>>()
        };
        let keys = fill(1);
        assert_eq!(keys, fill(1));
        assert_ne!(keys, fill(2));
        assert_eq!(keys[..300], (0..300).map(|token| token as f32).collect::<Vec<_>>());
        for token in 0..300 {
            let moved = keys[300 + token] - token as f32;
            assert!(moved.abs() <= 0.25 * 299.0, "{token}: {moved}");
        }
    }

    #[test]
    fn a_full_cache_is_one_error() {
        let mut cache = KvCache::<Reference>::new(1, SHAPE, 10);
        cache.extend(&Reference, 10).expect("room");
        let error = cache.extend(&Reference, 1).expect_err("full");
        assert!(error.to_string().contains("--max-context 11"), "{error}");
        assert_eq!(cache.len(), 10);
    }
}
