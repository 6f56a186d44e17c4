//! The key space: rows of the unembedding, one per vocabulary id, and what may be done to them before clustering.

use crate::error::{Error, Result};
use crate::kernels::Backend;
use crate::model::config::ModelConfig;
use crate::model::weights::{TensorSource, key_tensor};
use rayon::prelude::*;

/// Rows that one matrix product takes at a time.
pub(super) const BLOCK: usize = 2048;

/// Vectors of one length, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// `[count, dim]`.
    pub data: Vec<f32>,
    /// Elements of a row.
    pub dim: usize,
}

/// What is done to the keys before they are clustered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Preparation {
    /// Subtract the mean key. Euclidean distances do not change by it, cosines do.
    pub centre: bool,
    /// Subtract the mean and scale so that the covariance is the identity: Euclidean distances become Mahalanobis ones.
    pub whiten: bool,
}

impl Rows {
    /// Reads the keys of a model: `lm_head`, or the embedding where it serves as such. V x d x 4 bytes.
    pub fn load(config: &ModelConfig, source: &dyn TensorSource) -> Result<Self> {
        let spec = key_tensor(config);
        let tensor = source.open(&spec)?;
        let (read, dim) = (tensor.rows(), spec.cols());
        let mut data = vec![0.0; spec.rows() * dim];
        data.par_chunks_exact_mut(dim)
            .enumerate()
            .for_each(|(row, out)| read(row, out));
        if let Some(at) = data.iter().position(|value| !value.is_finite()) {
            return Err(Error::user(format!(
                "{}: key {} of `{}` holds {}",
                source.place(&spec.name),
                at / dim,
                spec.name,
                data[at]
            ))
            .help("the file is damaged; download or save the checkpoint again"));
        }
        Ok(Self { data, dim })
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.data.len().checked_div(self.dim).unwrap_or(0)
    }

    /// Row `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.dim..][..self.dim]
    }

    /// The rows of the given indices, one after the other.
    pub fn pick(&self, indices: &[usize]) -> Vec<f32> {
        indices.iter().flat_map(|&index| self.row(index)).copied().collect()
    }

    /// Applies `preparation` in place.
    pub fn prepare<B: Backend>(&mut self, backend: &B, preparation: Preparation) -> Result<()> {
        if preparation.centre || preparation.whiten {
            self.subtract_mean();
        }
        if preparation.whiten {
            self.whiten(backend)?;
        }
        Ok(())
    }

    /// The mean row.
    pub fn mean(&self) -> Vec<f32> {
        let n = self.count().max(1) as f64;
        let blocks: Vec<Vec<f64>> = self
            .data
            .par_chunks(BLOCK * self.dim)
            .map(|block| {
                let mut sum = vec![0.0; self.dim];
                for row in block.chunks_exact(self.dim) {
                    sum.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x));
                }
                sum
            })
            .collect();
        (0..self.dim)
            .map(|j| (blocks.iter().map(|block| block[j]).sum::<f64>() / n) as f32)
            .collect()
    }

    /// Moves the mean to 0; returns what it was.
    pub(super) fn subtract_mean(&mut self) -> Vec<f32> {
        let mean = self.mean();
        self.subtract(&mean);
        mean
    }

    /// Subtracts `offset` from every row.
    pub(super) fn subtract(&mut self, offset: &[f32]) {
        self.data
            .par_chunks_exact_mut(self.dim)
            .for_each(|row| row.iter_mut().zip(offset).for_each(|(x, m)| *x -= m));
    }

    /// Scales every row to length 1; a row of zeros stays.
    pub fn normalise(&mut self) {
        self.data.par_chunks_exact_mut(self.dim).for_each(|row| {
            let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            if norm > 0.0 {
                for x in row {
                    *x = (f64::from(*x) / norm) as f32;
                }
            }
        });
    }

    /// `x -> L^-1 x` with covariance `L L^T` (Cholesky). Distances are those after any other whitening, which differs by a
    /// rotation only.
    fn whiten<B: Backend>(&mut self, backend: &B) -> Result<()> {
        let d = self.dim;
        let mut lower = covariance(backend, self);
        // Directions without spread (a padded hidden size) would be divided by 0.
        let ridge = 1e-6 * (0..d).map(|i| lower[i * d + i]).sum::<f64>() / d as f64;
        (0..d).for_each(|i| lower[i * d + i] += ridge);
        cholesky(&mut lower, d)
            .and_then(|()| invert_lower(&mut lower, d))
            .ok_or_else(|| Error::user("the keys cannot be whitened: they do not vary").help("leave out `--whiten`"))?;
        let inverse = backend.matrix(d, d, &|row, out: &mut [f32]| {
            for (o, x) in out.iter_mut().zip(&lower[row * d..(row + 1) * d]) {
                *o = *x as f32;
            }
        });
        let mut out = backend.zeros(BLOCK * d);
        for block in self.data.chunks_mut(BLOCK * d) {
            backend.linear(&backend.upload(block), block.len() / d, &inverse, None, false, &mut out);
            block.copy_from_slice(&backend.download(&out)[..block.len()]);
        }
        Ok(())
    }
}

/// `X^T X / n` of centred rows, `[d, d]`, by matrix products over blocks of rows, summed in f64.
fn covariance<B: Backend>(backend: &B, rows: &Rows) -> Vec<f64> {
    let d = rows.dim;
    let n = rows.count().max(1) as f64;
    let mut sum = vec![0.0; d * d];
    let mut out = backend.zeros(d * d);
    for block in rows.data.chunks(BLOCK * d) {
        let count = block.len() / d;
        let mut columns = vec![0.0; block.len()];
        columns.par_chunks_exact_mut(count).enumerate().for_each(|(j, column)| {
            for (x, row) in column.iter_mut().zip(block.chunks_exact(d)) {
                *x = row[j];
            }
        });
        let matrix = backend.matrix(d, count, &|row, out: &mut [f32]| {
            out.copy_from_slice(&columns[row * count..(row + 1) * count]);
        });
        backend.linear(&backend.upload(&columns), d, &matrix, None, false, &mut out);
        sum.par_iter_mut()
            .zip(&backend.download(&out)[..])
            .for_each(|(s, &x)| *s += f64::from(x));
    }
    sum.par_iter_mut().for_each(|s| *s /= n);
    sum
}

/// Replaces a symmetric positive matrix by its lower Cholesky factor; `None` if it is not positive.
fn cholesky(a: &mut [f64], n: usize) -> Option<()> {
    for j in 0..n {
        let (above, below) = a.split_at_mut((j + 1) * n);
        let pivot_row = &mut above[j * n..];
        let square = pivot_row[j] - dot(&pivot_row[..j], &pivot_row[..j]);
        if square.is_nan() || square <= 0.0 {
            return None;
        }
        let pivot = square.sqrt();
        pivot_row[j] = pivot;
        pivot_row[j + 1..].fill(0.0);
        let pivot_row = &pivot_row[..j];
        below.par_chunks_exact_mut(n).for_each(|row| {
            row[j] = (row[j] - dot(&row[..j], pivot_row)) / pivot;
        });
    }
    Some(())
}

/// Replaces a lower triangular matrix by its inverse.
fn invert_lower(l: &mut [f64], n: usize) -> Option<()> {
    // Columns of the inverse as rows, so that the sums run along memory.
    let columns: Vec<Vec<f64>> = (0..n)
        .into_par_iter()
        .map(|j| {
            let mut x = vec![0.0; n];
            x[j] = 1.0 / l[j * n + j];
            for i in j + 1..n {
                x[i] = -dot(&l[i * n + j..i * n + i], &x[j..i]) / l[i * n + i];
            }
            x
        })
        .collect();
    for (i, row) in l.chunks_exact_mut(n).enumerate() {
        for (j, value) in row.iter_mut().enumerate() {
            *value = columns[j][i];
        }
    }
    l.iter().all(|x| x.is_finite()).then_some(())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::Cpu;
    use crate::random::stream_rng;
    use rand::Rng;

    fn stretched(count: usize) -> Rows {
        let mut rng = stream_rng(1, "whiten");
        let mut data = Vec::new();
        for _ in 0..count {
            let (a, b, c): (f32, f32, f32) = (rng.random(), rng.random(), rng.random());
            data.extend([5.0 + 9.0 * a, 2.0 * a + b, 0.1 * c - b]);
        }
        Rows { data, dim: 3 }
    }

    #[test]
    fn whitened_keys_have_mean_0_and_covariance_1() {
        let mut rows = stretched(5000);
        rows.prepare(
            &Cpu,
            Preparation {
                centre: false,
                whiten: true,
            },
        )
        .expect("the rows vary");
        assert!(rows.mean().iter().all(|m| m.abs() < 1e-3), "{:?}", rows.mean());
        let covariance = covariance(&Cpu, &rows);
        for (at, value) in covariance.iter().enumerate() {
            let wanted = if at % 4 == 0 { 1.0 } else { 0.0 };
            // The ridge of 1e-6 of the mean variance takes that much off the thinnest direction, here below 1e-2.
            assert!((value - wanted).abs() < 1e-2, "{covariance:?}");
        }
    }

    #[test]
    fn equal_keys_cannot_be_whitened() {
        let mut rows = Rows {
            data: vec![1.5; 30],
            dim: 3,
        };
        let whiten = Preparation {
            centre: false,
            whiten: true,
        };
        let error = rows.prepare(&Cpu, whiten).expect_err("no variance");
        assert!(error.to_string().contains("--whiten"), "{error}");
    }

    #[test]
    fn a_zero_row_survives_normalising() {
        let mut rows = Rows {
            data: vec![3.0, 4.0, 0.0, 0.0],
            dim: 2,
        };
        rows.normalise();
        assert_eq!(rows.data, [0.6, 0.8, 0.0, 0.0]);
    }
}
