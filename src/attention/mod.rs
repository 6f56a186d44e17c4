//! Attention of one chunk over what a policy selected, and its comparison with exact attention.

mod diagnostics;

pub(crate) use diagnostics::measure;
pub use diagnostics::{Diagnosis, LayerDiagnosis, LayerQuality};

use crate::kernels::Backend;
use crate::kv_cache::KvCache;
use crate::selection::{QueryView, RotatedQueries, Selection};

/// Attention of the chunk in `query` over `selection`; out `[C, H, D]`.
pub fn attend<B: Backend>(
    backend: &B,
    layer: usize,
    query: &QueryView<'_, B>,
    cache: &KvCache<B>,
    selection: &Selection,
    scratch: &mut RotatedQueries<B>,
    out: &mut B::Buffer,
) {
    backend.attend(&scratch.operands(backend, layer, query, cache, selection), out);
}
