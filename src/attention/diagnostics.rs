//! How good a selection is: recall and attention mass against exact attention.
//!
//! Exact attention is the model's own over every stored token at its original position. Per query head its weights sum
//! to one; the mass kept is the share on attended tokens, averaged over heads, and recall@k is the share of the k
//! tokens with the largest head-summed weight, among the candidates of the selection, that were chosen
//! (paper, Fig. 1 and 2).

use crate::kernels::{Backend, PAGE_TOKENS};
use crate::kv_cache::KvCache;
use crate::selection::{QueryView, Selection};
use rayon::prelude::*;

/// Quality of one selection of one layer, for the last row of the chunk.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct LayerQuality {
    /// Chosen tokens among the exact top-k of the candidates.
    pub recall: f64,
    /// Exact attention weight on attended tokens, mean over heads.
    pub mass: f64,
}

/// Sums of one layer over a text.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    n: usize,
    recall: f64,
    mass: f64,
    lowest_mass: f64,
}

/// Means of one layer over a text.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LayerDiagnosis {
    /// Layer number.
    pub layer: usize,
    /// Selections measured.
    pub n: usize,
    /// Mean recall@k; `None` for no selection.
    pub recall_at_k: Option<f64>,
    /// Mean attention mass kept.
    pub attention_mass: Option<f64>,
    /// Smallest attention mass kept.
    pub attention_mass_min: Option<f64>,
}

/// Collects [`LayerQuality`] per layer over a text.
#[derive(Debug, Clone, Default)]
pub struct Diagnosis {
    layers: Vec<Sums>,
}

impl Diagnosis {
    /// Adds one measurement.
    pub fn add(&mut self, layer: usize, quality: LayerQuality) {
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, Sums::default());
        }
        let sums = &mut self.layers[layer];
        sums.lowest_mass = if sums.n == 0 {
            quality.mass
        } else {
            sums.lowest_mass.min(quality.mass)
        };
        sums.n += 1;
        sums.recall += quality.recall;
        sums.mass += quality.mass;
    }

    /// Adds all measurements of another text.
    pub fn merge(&mut self, other: &Self) {
        if self.layers.len() < other.layers.len() {
            self.layers.resize(other.layers.len(), Sums::default());
        }
        for (mine, theirs) in self
            .layers
            .iter_mut()
            .zip(&other.layers)
            .filter(|(_, theirs)| theirs.n > 0)
        {
            mine.lowest_mass = if mine.n == 0 {
                theirs.lowest_mass
            } else {
                mine.lowest_mass.min(theirs.lowest_mass)
            };
            mine.n += theirs.n;
            mine.recall += theirs.recall;
            mine.mass += theirs.mass;
        }
    }

    /// Means per layer.
    pub fn layers(&self) -> Vec<LayerDiagnosis> {
        let row = |(layer, s): (usize, &Sums)| LayerDiagnosis {
            layer,
            n: s.n,
            recall_at_k: (s.n > 0).then(|| s.recall / s.n as f64),
            attention_mass: (s.n > 0).then(|| s.mass / s.n as f64),
            attention_mass_min: (s.n > 0).then_some(s.lowest_mass),
        };
        self.layers.iter().enumerate().map(row).collect()
    }
}

/// Exact attention weights of the last row of the chunk, `[H][N]`.
fn exact_weights<B: Backend>(backend: &B, layer: usize, query: &QueryView<'_, B>, cache: &KvCache<B>) -> Vec<Vec<f32>> {
    let shape = query.shape;
    let (d, stored) = (shape.head_dim, cache.len());
    let position = stored - 1;
    let mut rotated = backend.zeros(shape.query_width());
    let last = query.rows - 1;
    backend.rotate_queries(
        query.qkv,
        last..last + 1,
        &shape,
        query.rope,
        position - last,
        &mut rotated,
    );
    let rotated = backend.download(&rotated);
    let keys = cache.keys(layer);
    let pages: Vec<_> = keys.pages.iter().map(|page| backend.download(page)).collect();
    let first = query.window.map_or(0, |w| stored.saturating_sub(w));
    (0..shape.query_heads)
        .into_par_iter()
        .map(|h| {
            let (low, high) = rotated[h * d..][..d].split_at(d / 2);
            let mut weights = vec![0.0f32; stored];
            for (t, weight) in weights.iter_mut().enumerate().skip(first) {
                let slot = keys.table.slot(t);
                let at = (h / shape.group() * PAGE_TOKENS + slot % PAGE_TOKENS) * d;
                let (key_low, key_high) = pages[slot / PAGE_TOKENS][at..at + d].split_at(d / 2);
                let (cos, sin) = query.rope.row(t);
                let score: f32 = (0..d / 2)
                    .map(|i| {
                        low[i] * (key_low[i] * cos[i] - key_high[i] * sin[i])
                            + high[i] * (key_high[i] * cos[i] + key_low[i] * sin[i])
                    })
                    .sum();
                *weight = score / (d as f32).sqrt();
            }
            let max = weights[first..].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            weights[first..].iter_mut().for_each(|w| *w = (*w - max).exp());
            let sum: f32 = weights[first..].iter().sum();
            weights[first..].iter_mut().for_each(|w| *w /= sum);
            weights
        })
        .collect()
}

/// Recall and mass of `selection`; `None` where nothing was chosen. The query's angles cover every stored position.
pub(crate) fn measure<B: Backend>(
    backend: &B,
    layer: usize,
    query: &QueryView<'_, B>,
    cache: &KvCache<B>,
    selection: &Selection,
    n_init: usize,
) -> Option<LayerQuality> {
    let selected = selection.selected.as_ref().filter(|s| !s.is_empty())?;
    let weights = exact_weights(backend, layer, query, cache);
    // One list for all heads, or one for the query heads of each KV head.
    let lists = selection.heads;
    let (mut mass, mut recall) = (0.0, 0.0);
    for ((weights, tokens), selected) in weights
        .chunks(weights.len() / lists)
        .zip(selection.tokens.chunks(selection.tokens.len() / lists))
        .zip(selected.chunks(selected.len() / lists))
    {
        mass += tokens
            .iter()
            .map(|&t| weights.iter().map(|w| f64::from(w[t as usize])).sum::<f64>())
            .sum::<f64>();
        recall += recall_of(backend, weights, tokens, selected, n_init);
    }
    Some(LayerQuality {
        recall: recall / lists as f64,
        mass: mass / weights.len() as f64,
    })
}

/// Share of the best candidates that `selected` has, by the weights `[heads][N]` of the heads that share the list.
fn recall_of<B: Backend>(backend: &B, weights: &[Vec<f32>], tokens: &[u32], selected: &[u32], n_init: usize) -> f64 {
    // The local window is the run of consecutive tokens at the end of the list; candidates lie before it.
    let mut local_start = weights.first().map_or(0, Vec::len);
    for &t in tokens.iter().rev() {
        if t as usize + 1 != local_start || selected.binary_search(&t).is_ok() {
            break;
        }
        local_start = t as usize;
    }
    let summed: Vec<f32> = (n_init..local_start)
        .map(|t| weights.iter().map(|w| w[t]).sum())
        .collect();
    let mut best = Vec::new();
    backend.top_k(&summed, selected.len(), &mut best);
    let found = best
        .iter()
        .filter(|&&t| selected.binary_search(&(t + n_init as u32)).is_ok())
        .count();
    found as f64 / best.len().max(1) as f64
}
