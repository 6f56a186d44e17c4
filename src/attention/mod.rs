//! Attention of one chunk over what a policy selected, and its comparison with exact attention.

mod diagnostics;

pub(crate) use diagnostics::measure;
pub use diagnostics::{Diagnosis, LayerDiagnosis, LayerQuality};

use crate::kernels::{Attend, Backend, Part, Positions};
use crate::kv_cache::KvCache;
use crate::selection::{QueryView, Selection};

/// Working memory of [`attend`]: the rotated queries of one chunk, `[C, H, D]`.
pub struct AttentionScratch<B: Backend> {
    queries: B::Buffer,
    /// The second rotation; made when a policy first places keys in groups, which accounts for it.
    far_queries: Option<B::Buffer>,
    elements: usize,
}

impl<B: Backend> AttentionScratch<B> {
    /// For chunks of up to `rows` rows of `query_width` elements.
    pub fn new(backend: &B, rows: usize, query_width: usize) -> Self {
        Self {
            queries: backend.zeros(rows * query_width),
            far_queries: None,
            elements: rows * query_width,
        }
    }
}

/// Position of the chunk's first query: at its place in the packed list, or in the text.
pub(crate) fn first_query_position(selection: &Selection, stored: usize, rows: usize) -> usize {
    match selection.positions {
        Positions::Packed => selection.list(stored).len() - rows,
        Positions::Original | Positions::Grouped { .. } => stored - rows,
    }
}

/// Attention of the chunk in `query` over `selection`; out `[C, H, D]`.
pub fn attend<B: Backend>(
    backend: &B,
    layer: usize,
    query: &QueryView<'_, B>,
    cache: &KvCache<B>,
    selection: &Selection,
    scratch: &mut AttentionScratch<B>,
    out: &mut B::Buffer,
) {
    let first = first_query_position(selection, cache.len(), query.rows);
    backend.rotate_queries(
        query.qkv,
        0..query.rows,
        &query.shape,
        query.rope,
        first,
        &mut scratch.queries,
    );
    if let Positions::Grouped { .. } = selection.positions {
        let places = first..first + query.rows;
        let positions: Vec<u32> = places
            .map(|p| selection.positions.of_query(Part::Far, p) as u32)
            .collect();
        // As long as the near one: the first chunk of a text need not be its longest.
        let far = scratch
            .far_queries
            .get_or_insert_with(|| backend.zeros(scratch.elements));
        backend.rotate_queries_at(query.qkv, 0..query.rows, &query.shape, query.rope, &positions, far);
    }
    let args = Attend {
        shape: query.shape,
        queries: &scratch.queries,
        far_queries: scratch.far_queries.as_ref(),
        rows: query.rows,
        keys: cache.keys(layer),
        values: cache.values(layer),
        tokens: selection.list(cache.len()),
        positions: selection.positions,
        first_query_position: first,
        window: query.window,
        rope: query.rope,
    };
    backend.attend(&args, out);
}
