//! The steps of k-means in host memory, products by whatever the decoder's products run on.

use super::{Assignment, Distance, Place, Steps, members, squared_norms};
use crate::error::Result;
use crate::kernels::Backend;
use crate::probe::key_space::{BLOCK, Rows};
use rayon::prelude::*;

impl<B: Backend> Place for B {
    fn hold<'r>(&'r self, rows: &'r Rows, norms: &'r [f32], _most: usize) -> Result<Box<dyn Steps + 'r>> {
        Ok(Box::new(OnHost {
            backend: self,
            rows,
            norms,
            centres: Vec::new(),
        }))
    }
}

/// Keys, and the centres of now.
struct OnHost<'r, B: Backend> {
    backend: &'r B,
    rows: &'r Rows,
    /// `[N]`: squared lengths.
    norms: &'r [f32],
    /// `[K, dim]`.
    centres: Vec<f32>,
}

impl<B: Backend> Steps for OnHost<'_, B> {
    fn set_centres(&mut self, centres: Vec<f32>) -> Result<()> {
        self.centres = centres;
        Ok(())
    }

    fn assign(&mut self) -> Result<Assignment> {
        let (d, k) = (self.rows.dim, self.centres.len() / self.rows.dim);
        let centre_norms = squared_norms(&self.centres, d);
        let matrix = self.backend.matrix(k, d, &|row, out: &mut [f32]| {
            out.copy_from_slice(&self.centres[row * d..(row + 1) * d]);
        });
        let mut labels = vec![0; self.rows.count()];
        let mut distances = vec![0.0; self.rows.count()];
        let mut products = self.backend.zeros(BLOCK * k);
        let blocks = self.rows.data.chunks(BLOCK * d).zip(self.norms.chunks(BLOCK));
        let parts = labels.chunks_mut(BLOCK).zip(distances.chunks_mut(BLOCK));
        for ((block, norms), (labels, distances)) in blocks.zip(parts) {
            let keys = self.backend.upload(block);
            self.backend
                .linear(&keys, labels.len(), &matrix, None, false, &mut products);
            let products = self.backend.download(&products);
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
        Ok(Assignment { labels, distances })
    }

    fn move_centres(&mut self, labels: &[u32], distance: Distance) -> Result<f64> {
        let rows = self.rows;
        let members = members(labels, self.centres.len() / rows.dim);
        let moved: Vec<f64> = self
            .centres
            .par_chunks_exact_mut(rows.dim)
            .zip(&members)
            .map(|(centre, members)| move_centre(rows, members, distance, centre))
            .collect();
        Ok(moved.iter().sum())
    }

    fn inertia(&mut self, labels: &[u32], distance: Distance) -> Result<f64> {
        let d = self.rows.dim;
        let parts: Vec<f64> = self
            .rows
            .data
            .par_chunks(BLOCK * d)
            .zip(labels.par_chunks(BLOCK))
            .map(|(block, labels)| {
                let rows = block.chunks_exact(d).zip(labels);
                rows.map(|(row, &label)| {
                    let centre = &self.centres[label as usize * d..][..d];
                    let pairs = row.iter().zip(centre);
                    match distance {
                        Distance::Euclidean => pairs.map(|(x, c)| f64::from(x - c).powi(2)).sum::<f64>(),
                        Distance::Cosine => 1.0 - pairs.map(|(x, c)| f64::from(*x) * f64::from(*c)).sum::<f64>(),
                    }
                })
                .sum()
            })
            .collect();
        Ok(parts.iter().sum())
    }

    fn centres(&mut self) -> Result<Vec<f32>> {
        Ok(self.centres.clone())
    }
}

/// Moves `centre` to the mean of `members` (of unit length for cosines), summed in f64; returns the squared way. Without
/// members it stays.
fn move_centre(rows: &Rows, members: &[u32], distance: Distance, centre: &mut [f32]) -> f64 {
    let mut sum = vec![0.0f64; rows.dim];
    for &key in members {
        let row = rows.row(key as usize);
        sum.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x));
    }
    let scale = match distance {
        Distance::Euclidean => members.len() as f64,
        Distance::Cosine => sum.iter().map(|x| x * x).sum::<f64>().sqrt(),
    };
    // Unit vectors that cancel out have no direction; their centre stays where it was.
    if scale <= 0.0 {
        return 0.0;
    }
    let mut moved = 0.0;
    for (c, s) in centre.iter_mut().zip(&sum) {
        let new = (s / scale) as f32;
        moved += f64::from(new - *c).powi(2);
        *c = new;
    }
    moved
}
