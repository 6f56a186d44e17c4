//! k-means over keys: k-means++ seeding, Lloyd's iteration by matrix products, repair of empty clusters.
//!
//! Own on purpose: V x K products dominate, and those run on whatever the decoder's products run on. All choices are
//! fixed: a key that is equally near to several centres belongs to the lowest of them, sums run in the order of the ids,
//! and every draw comes from the seed's stream `kmeans`.
//!
//! [`Place`] is where it runs: any backend of the host, or a GPU. Both are given the same draws and sum the same way; only the
//! f32 products differ, by the order of their sums, so that a key may go the other way where two centres are equally
//! near to within that rounding, some 1e-6 of |x| |c|.

mod gpu;
mod host;
mod seeding;

use super::key_space::{BLOCK, Rows};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// How far apart two keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Distance {
    /// Squared Euclidean distance
    Euclidean,
    /// 1 - cosine; centres are unit vectors (spherical k-means)
    Cosine,
}

/// Settings of a run.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct KMeansConfig {
    /// K: clusters.
    pub clusters: usize,
    /// What is minimised.
    pub distance: Distance,
    /// Iterations at most.
    pub max_iterations: usize,
    /// Stop once the centres' squared movement is at most this share of the keys' mean variance; 0: until no key changes.
    pub tolerance: f64,
    /// Runs from fresh seeds; the one with the smallest inertia counts.
    pub restarts: usize,
    /// Seed of all draws.
    pub seed: u64,
}

/// A clustering and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct KMeans {
    /// Cluster of every key.
    pub labels: Vec<u32>,
    /// `[K, dim]`, in the space that was clustered.
    pub centres: Vec<f32>,
    /// Sum of the distances of all keys to their centres.
    pub inertia: f64,
    /// Iterations made.
    pub iterations: usize,
    /// Whether it stopped by itself.
    pub converged: bool,
    /// Empty clusters that were given a far key.
    pub repaired: usize,
}

/// Follows a run: iteration (0 while the first centres are drawn) and sum of distances so far; false stops it.
pub type Watch<'a> = dyn FnMut(usize, f64) -> bool + 'a;

/// Where k-means runs.
pub trait Place {
    /// Brings keys there, with room for `most` centres. `norms`: squared lengths of `rows`.
    fn hold<'r>(&'r self, rows: &'r Rows, norms: &'r [f32], most: usize) -> Result<Box<dyn Steps + 'r>>;
}

/// Keys where they are clustered, the centres of now, and what is done with both.
pub trait Steps {
    /// Sets the centres `[K, dim]`.
    fn set_centres(&mut self, centres: Vec<f32>) -> Result<()>;
    /// The nearest centre of every key, the lowest of equally near ones.
    fn assign(&mut self) -> Result<Assignment>;
    /// Moves every centre to the mean of the keys with its label (of unit length for cosines); one without keys stays.
    /// Returns the sum of the squared ways.
    fn move_centres(&mut self, labels: &[u32], distance: Distance) -> Result<f64>;
    /// Sum of the distances of all keys to the centres of their labels, from differences, in f64.
    fn inertia(&mut self, labels: &[u32], distance: Distance) -> Result<f64>;
    /// The centres `[K, dim]`.
    fn centres(&mut self) -> Result<Vec<f32>>;
}

/// Nearest centres.
pub struct Assignment {
    /// Centre of every key.
    pub labels: Vec<u32>,
    /// Squared distance of every key to it, at least 0.
    pub distances: Vec<f32>,
}

/// Clusters `rows`, which are centred (or, for cosines, normalised) in place on the way.
pub fn fit(place: &dyn Place, rows: &mut Rows, config: &KMeansConfig, watch: &mut Watch<'_>) -> Result<KMeans> {
    check_clusters(config.clusters, rows.count())?;
    let offset = ready(rows, config.distance);
    let norms = squared_norms(&rows.data, rows.dim);
    let mut keys = place.hold(rows, &norms, config.clusters)?;
    let mut best: Option<KMeans> = None;
    for restart in 0..config.restarts.max(1) {
        let chosen = seeding::plus_plus(keys.as_mut(), rows, config, restart, watch)?;
        keys.set_centres(rows.pick(&chosen))?;
        let found = lloyd(keys.as_mut(), bound(rows, &norms, config), config, watch)?;
        if best.as_ref().is_none_or(|best| found.inertia < best.inertia) {
            best = Some(found);
        }
    }
    let best = best.ok_or_else(|| Error::bug("k-means without a run"))?;
    Ok(moved_back(best, &offset))
}

/// The same from given centres `[K, dim]`, brought to unit length for cosines.
pub fn fit_from(
    place: &dyn Place,
    rows: &mut Rows,
    centres: Vec<f32>,
    config: &KMeansConfig,
    watch: &mut Watch<'_>,
) -> Result<KMeans> {
    check_clusters(config.clusters, rows.count())?;
    if centres.len() != config.clusters * rows.dim {
        return Err(Error::bug("start centres of another shape than the keys"));
    }
    let offset = ready(rows, config.distance);
    let mut start = Rows {
        data: centres,
        dim: rows.dim,
    };
    match config.distance {
        Distance::Euclidean => start.subtract(&offset),
        Distance::Cosine => start.normalise(),
    }
    let norms = squared_norms(&rows.data, rows.dim);
    let mut keys = place.hold(rows, &norms, config.clusters)?;
    keys.set_centres(start.data)?;
    let found = lloyd(keys.as_mut(), bound(rows, &norms, config), config, watch)?;
    Ok(moved_back(found, &offset))
}

/// Refuses more clusters than there are keys, and none.
pub fn check_clusters(clusters: usize, keys: usize) -> Result<()> {
    if clusters == 0 || clusters > keys {
        return Err(
            Error::user(format!("`--k {clusters}`: {keys} keys cannot make that many clusters"))
                .help(format!("pass 1 to {keys}")),
        );
    }
    Ok(())
}

/// Bytes of host memory for V keys of `dim` elements in K clusters: the keys, a block of products, centres with their copies.
pub fn needed_bytes(keys: usize, dim: usize, clusters: usize) -> usize {
    4 * (keys * (dim + 4) + BLOCK * (clusters + 2 * dim) + clusters * dim * 6)
}

/// Brings rows into the form that products are exact in: unit length for cosines; around 0 for Euclidean distances, which
/// |x|^2 - 2 x c + |c|^2 would otherwise lose digits of. Returns what was subtracted.
fn ready(rows: &mut Rows, distance: Distance) -> Vec<f32> {
    match distance {
        Distance::Euclidean => rows.subtract_mean(),
        Distance::Cosine => {
            rows.normalise();
            vec![0.0; rows.dim]
        }
    }
}

fn moved_back(mut found: KMeans, offset: &[f32]) -> KMeans {
    for centre in found.centres.chunks_exact_mut(offset.len()) {
        centre.iter_mut().zip(offset).for_each(|(x, m)| *x += m);
    }
    found
}

/// Squared lengths of vectors of `dim` elements, summed in f64.
fn squared_norms(vectors: &[f32], dim: usize) -> Vec<f32> {
    vectors
        .par_chunks_exact(dim)
        .map(|row| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() as f32)
        .collect()
}

/// The squared way of all centres at which a run has converged.
fn bound(rows: &Rows, norms: &[f32], config: &KMeansConfig) -> f64 {
    config.tolerance * norms.iter().map(|&n| f64::from(n)).sum::<f64>() / rows.data.len() as f64
}

/// Keys of every cluster, ascending.
pub fn members(labels: &[u32], clusters: usize) -> Vec<Vec<u32>> {
    let mut members = vec![Vec::new(); clusters];
    for (key, &label) in (0..).zip(labels) {
        members[label as usize].push(key);
    }
    members
}

/// Gives every empty cluster the key that lies farthest from its centre, the lowest id among equals, out of clusters that
/// keep another. Returns how many were filled: keys that all lie on their centres fill none.
fn repair(labels: &mut [u32], distances: &[f32], clusters: usize) -> usize {
    let mut sizes = vec![0usize; clusters];
    for &label in labels.iter() {
        sizes[label as usize] += 1;
    }
    let empty: Vec<usize> = (0..clusters).filter(|&c| sizes[c] == 0).collect();
    if empty.is_empty() {
        return 0;
    }
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.sort_by(|&a, &b| distances[b].total_cmp(&distances[a]).then(a.cmp(&b)));
    let mut far = order.into_iter();
    let mut filled = 0;
    for cluster in empty {
        let Some(key) = far.find(|&key| distances[key] > 0.0 && sizes[labels[key] as usize] > 1) else {
            break;
        };
        sizes[labels[key] as usize] -= 1;
        sizes[cluster] = 1;
        labels[key] = cluster as u32;
        filled += 1;
    }
    filled
}

fn interrupted() -> Error {
    Error::interrupted("interrupted; no clustering was kept")
}

fn lloyd(keys: &mut dyn Steps, bound: f64, config: &KMeansConfig, watch: &mut Watch<'_>) -> Result<KMeans> {
    let mut labels: Vec<u32> = Vec::new();
    let (mut repaired, mut iterations, mut converged, mut settled) = (0, 0, false, false);
    while iterations < config.max_iterations {
        iterations += 1;
        let mut found = keys.assign()?;
        repaired += repair(&mut found.labels, &found.distances, config.clusters);
        let sum: f64 = found.distances.iter().map(|&x| f64::from(x)).sum();
        if !watch(iterations, sum) {
            return Err(interrupted());
        }
        let moved = keys.move_centres(&found.labels, config.distance)?;
        settled = found.labels == labels;
        labels = found.labels;
        if settled || moved <= bound && config.tolerance > 0.0 {
            converged = true;
            break;
        }
    }
    if !settled {
        // The centres have moved since: the last word is theirs. A cluster that empties now stays as repaired.
        let mut found = keys.assign()?;
        repaired += repair(&mut found.labels, &found.distances, config.clusters);
        labels = found.labels;
    }
    Ok(KMeans {
        inertia: keys.inertia(&labels, config.distance)?,
        centres: keys.centres()?,
        labels,
        iterations,
        converged,
        repaired,
    })
}

#[cfg(test)]
mod tests;
