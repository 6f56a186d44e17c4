//! What a policy did over one text, in numbers.

/// Spread of a set of cosines.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CosineSummary {
    /// How many.
    pub n: usize,
    /// Mean; `None` for none.
    pub mean: Option<f64>,
    /// Smallest.
    pub min: Option<f64>,
    /// Median.
    pub median: Option<f64>,
    /// Largest.
    pub max: Option<f64>,
}

impl CosineSummary {
    /// Summary of `values`.
    pub fn of(values: &[f32]) -> Self {
        let mut sorted: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        Self {
            n,
            mean: (n > 0).then(|| sorted.iter().sum::<f64>() / n as f64),
            min: sorted.first().copied(),
            median: (n > 0).then(|| f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2])),
            max: sorted.last().copied(),
        }
    }
}

/// Counts of one layer over one text.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct LayerStatistics {
    /// Decode steps that reused a selection.
    pub cache_hits: usize,
    /// Decode steps that made a new one.
    pub cache_misses: usize,
    /// Query against the query of the last miss.
    pub cosine_to_last_miss: CosineSummary,
    /// Query against the query one decode step before (paper, Fig. 3a).
    pub cosine_to_previous: CosineSummary,
}

/// Counts per layer.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct SelectionStatistics {
    /// One entry per layer; empty for policies without a selection cache.
    pub layers: Vec<LayerStatistics>,
}

impl SelectionStatistics {
    /// Hits over hits and misses of all layers; `None` if the cache was never consulted.
    pub fn hit_rate(&self) -> Option<f64> {
        let hits: usize = self.layers.iter().map(|l| l.cache_hits).sum();
        let all: usize = self.layers.iter().map(|l| l.cache_hits + l.cache_misses).sum();
        (all > 0).then(|| hits as f64 / all as f64)
    }
}
