//! k-means over keys: k-means++ seeding, Lloyd's iteration by matrix products, repair of empty clusters.
//!
//! Own on purpose: V x K products dominate, and those run on whatever the decoder's products run on. All choices are
//! fixed: a key that is equally near to several centres belongs to the lowest of them, sums run in the order of the ids,
//! and every draw comes from the seed's stream `kmeans`.

mod seeding;

use super::key_space::{BLOCK, Rows};
use crate::error::{Error, Result};
use crate::kernels::Backend;
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

/// Follows a run: iteration and sum of distances so far; false stops it.
pub type Watch<'a> = dyn FnMut(usize, f64) -> bool + 'a;

/// Clusters `rows`, which are centred (or, for cosines, normalised) in place on the way.
pub fn fit<B: Backend>(backend: &B, rows: &mut Rows, config: &KMeansConfig, watch: &mut Watch<'_>) -> Result<KMeans> {
    check(rows, config)?;
    let offset = ready(rows, config.distance);
    let norms = squared_norms(rows);
    let mut best: Option<KMeans> = None;
    for restart in 0..config.restarts.max(1) {
        let chosen = seeding::plus_plus(backend, rows, &norms, config.clusters, config.seed, restart);
        let centres = chosen.iter().flat_map(|&row| rows.row(row)).copied().collect();
        let found = lloyd(backend, rows, &norms, centres, config, watch)?;
        if best.as_ref().is_none_or(|best| found.inertia < best.inertia) {
            best = Some(found);
        }
    }
    let best = best.ok_or_else(|| Error::bug("k-means without a run"))?;
    Ok(moved_back(best, &offset))
}

/// The same from given centres `[K, dim]`.
pub fn fit_from<B: Backend>(
    backend: &B,
    rows: &mut Rows,
    mut centres: Vec<f32>,
    config: &KMeansConfig,
    watch: &mut Watch<'_>,
) -> Result<KMeans> {
    check(rows, config)?;
    if centres.len() != config.clusters * rows.dim {
        return Err(Error::bug("start centres of another shape than the keys"));
    }
    let offset = ready(rows, config.distance);
    for centre in centres.chunks_exact_mut(rows.dim) {
        centre.iter_mut().zip(&offset).for_each(|(x, m)| *x -= m);
    }
    let norms = squared_norms(rows);
    let found = lloyd(backend, rows, &norms, centres, config, watch)?;
    Ok(moved_back(found, &offset))
}

fn check(rows: &Rows, config: &KMeansConfig) -> Result<()> {
    if config.clusters == 0 || config.clusters > rows.count() {
        return Err(Error::user(format!(
            "`--k {}`: {} keys cannot make that many clusters",
            config.clusters,
            rows.count()
        ))
        .help(format!("pass 1 to {}", rows.count())));
    }
    Ok(())
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

fn squared_norms(rows: &Rows) -> Vec<f32> {
    rows.data
        .par_chunks_exact(rows.dim)
        .map(|row| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() as f32)
        .collect()
}

/// Nearest of `centres` for every row, with the squared distance; the lowest of equally near ones.
fn assign<B: Backend>(backend: &B, rows: &Rows, norms: &[f32], centres: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let (d, k) = (rows.dim, centres.len() / rows.dim);
    let centre_norms: Vec<f32> = centres
        .chunks_exact(d)
        .map(|c| c.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() as f32)
        .collect();
    let matrix = backend.matrix(k, d, &|row, out: &mut [f32]| {
        out.copy_from_slice(&centres[row * d..(row + 1) * d]);
    });
    let mut labels = vec![0; rows.count()];
    let mut distances = vec![0.0; rows.count()];
    let mut products = backend.zeros(BLOCK * k);
    let parts = labels.chunks_mut(BLOCK).zip(distances.chunks_mut(BLOCK));
    for ((block, norms), (labels, distances)) in rows.data.chunks(BLOCK * d).zip(norms.chunks(BLOCK)).zip(parts) {
        backend.linear(
            &backend.upload(block),
            labels.len(),
            &matrix,
            None,
            false,
            &mut products,
        );
        let products = backend.download(&products);
        labels
            .par_iter_mut()
            .zip(distances)
            .zip(products.par_chunks_exact(k).zip(norms))
            .for_each(|((label, distance), (products, norm))| {
                let mut best = (0, f32::INFINITY);
                for (cluster, (product, norm)) in products.iter().zip(&centre_norms).enumerate() {
                    let value = norm - 2.0 * product;
                    if value < best.1 {
                        best = (cluster, value);
                    }
                }
                *label = best.0 as u32;
                *distance = (norm + best.1).max(0.0);
            });
    }
    (labels, distances)
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

/// Means of the clusters (of unit length for cosines), summed in f64; an empty cluster keeps its centre.
fn means(rows: &Rows, labels: &[u32], distance: Distance, centres: &mut [f32]) {
    let d = rows.dim;
    let members = members(labels, centres.len() / d);
    centres
        .par_chunks_exact_mut(d)
        .zip(&members)
        .filter(|(_, members)| !members.is_empty())
        .for_each(|(centre, members)| {
            let mut sum = vec![0.0f64; d];
            for &key in members {
                let row = rows.row(key as usize);
                sum.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x));
            }
            let scale = match distance {
                Distance::Euclidean => members.len() as f64,
                Distance::Cosine => sum.iter().map(|x| x * x).sum::<f64>().sqrt(),
            };
            // Unit vectors that cancel out have no direction; their centre stays where it was.
            if scale > 0.0 {
                centre.iter_mut().zip(&sum).for_each(|(c, s)| *c = (s / scale) as f32);
            }
        });
}

fn lloyd<B: Backend>(
    backend: &B,
    rows: &Rows,
    norms: &[f32],
    mut centres: Vec<f32>,
    config: &KMeansConfig,
    watch: &mut Watch<'_>,
) -> Result<KMeans> {
    let bound = config.tolerance * norms.iter().map(|&n| f64::from(n)).sum::<f64>() / rows.data.len() as f64;
    let mut labels: Vec<u32> = Vec::new();
    let (mut repaired, mut iterations, mut converged, mut settled) = (0, 0, false, false);
    while iterations < config.max_iterations {
        iterations += 1;
        let (mut found, distances) = assign(backend, rows, norms, &centres);
        repaired += repair(&mut found, &distances, config.clusters);
        let sum: f64 = distances.iter().map(|&x| f64::from(x)).sum();
        if !watch(iterations, sum) {
            return Err(Error::interrupted("interrupted; no clustering was kept"));
        }
        let before = centres.clone();
        means(rows, &found, config.distance, &mut centres);
        settled = found == labels;
        labels = found;
        let moved: f64 = centres.iter().zip(&before).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        if settled || moved <= bound && config.tolerance > 0.0 {
            converged = true;
            break;
        }
    }
    if !settled {
        // The centres have moved since: the last word is theirs. A cluster that empties now stays as repaired.
        let (mut found, distances) = assign(backend, rows, norms, &centres);
        repaired += repair(&mut found, &distances, config.clusters);
        labels = found;
    }
    let inertia = inertia(rows, &labels, &centres, config.distance);
    Ok(KMeans {
        labels,
        centres,
        inertia,
        iterations,
        converged,
        repaired,
    })
}

/// Sum of the distances of all rows to their centres, from differences, in f64.
fn inertia(rows: &Rows, labels: &[u32], centres: &[f32], distance: Distance) -> f64 {
    let d = rows.dim;
    let parts: Vec<f64> = rows
        .data
        .par_chunks(BLOCK * d)
        .zip(labels.par_chunks(BLOCK))
        .map(|(block, labels)| {
            let rows = block.chunks_exact(d).zip(labels);
            rows.map(|(row, &label)| {
                let centre = &centres[label as usize * d..][..d];
                let pairs = row.iter().zip(centre);
                match distance {
                    Distance::Euclidean => pairs.map(|(x, c)| f64::from(x - c).powi(2)).sum::<f64>(),
                    Distance::Cosine => 1.0 - pairs.map(|(x, c)| f64::from(*x) * f64::from(*c)).sum::<f64>(),
                }
            })
            .sum()
        })
        .collect();
    parts.iter().sum()
}

#[cfg(test)]
mod tests;
