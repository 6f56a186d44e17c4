//! From a selection to the operands of attention: the queries rotated where the selection places them.

use super::{QueryView, Selection};
use crate::kernels::{Attend, AttentionShape, Backend, Part, Positions};
use crate::kv_cache::KvCache;

/// The rotated queries of one chunk, `[C, H, D]`, once or, with grouped positions, twice.
pub struct RotatedQueries<B: Backend> {
    near: B::Buffer,
    far: Option<B::Buffer>,
    elements: usize,
    rows: usize,
}

impl<B: Backend> RotatedQueries<B> {
    /// For chunks of up to `rows` rows.
    pub fn new(backend: &B, rows: usize, shape: &AttentionShape) -> Self {
        let elements = rows * shape.query_width();
        Self {
            near: backend.zeros(elements),
            far: None,
            elements,
            rows,
        }
    }

    /// The longest chunk there is room for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of one of the two rotations.
    pub fn bytes(rows: usize, shape: &AttentionShape) -> usize {
        rows * shape.query_width() * size_of::<f32>()
    }

    /// Operands of attention of the chunk in `query` over `selection`. The second rotation is allocated when a key is far
    /// for the first time; policies that group positions plan for it.
    pub fn operands<'a>(
        &'a mut self,
        backend: &B,
        layer: usize,
        query: &QueryView<'a, B>,
        cache: &'a KvCache<B>,
        selection: &'a Selection,
    ) -> Attend<'a, B> {
        let (rows, stored) = (query.rows, cache.len());
        let first = match selection.positions {
            Positions::Packed => selection.list(stored).len() - rows,
            Positions::Original | Positions::Grouped { .. } => stored - rows,
        };
        backend.rotate_queries(query.qkv, 0..rows, &query.shape, query.rope, first, &mut self.near);
        match selection.positions {
            Positions::Grouped { window, .. } if stored > window => {
                let place = |i| selection.positions.of_query(Part::Far, first + i) as u32;
                let positions: Vec<u32> = (0..rows).map(place).collect();
                let far = self.far.get_or_insert_with(|| backend.zeros(self.elements));
                backend.rotate_queries_at(query.qkv, 0..rows, &query.shape, query.rope, &positions, far);
            }
            _ => {}
        }
        Attend {
            shape: query.shape,
            queries: &self.near,
            far_queries: self.far.as_ref(),
            rows,
            keys: cache.keys(layer),
            values: cache.values(layer),
            tokens: selection.list(stored),
            positions: selection.positions,
            first_query_position: first,
            window: query.window,
            rope: query.rope,
        }
    }
}

/// Bytes of the attention mass of a chunk over `listed` tokens: the result, and one part for every block of rows.
pub(super) fn mass_bytes(chunk: usize, listed: usize, shape: &AttentionShape) -> usize {
    // A task of the CPU kernel takes 768 query rows or a little more; then what is left over, and the sum.
    let parts = chunk * shape.group() / 768 + 2;
    parts * shape.query_heads * listed * size_of::<f32>()
}
