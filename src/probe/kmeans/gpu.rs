//! The steps of k-means on a GPU. Draws, repair and the decision to stop stay on the host, in one form for both.

use super::{Assignment, Distance, Place, Steps, members, squared_norms};
use crate::error::Result;
use crate::kernels::cuda::Gpu;
use crate::kernels::cuda::kmeans::KMeansOnGpu;
use crate::probe::key_space::Rows;

impl Place for Gpu {
    fn hold<'r>(&'r self, rows: &'r Rows, norms: &'r [f32], most: usize) -> Result<Box<dyn Steps + 'r>> {
        Ok(Box::new(OnGpu {
            keys: KMeansOnGpu::new(self, &rows.data, norms, rows.dim, most)?,
            dim: rows.dim,
            clusters: 0,
        }))
    }
}

struct OnGpu {
    keys: KMeansOnGpu,
    dim: usize,
    clusters: usize,
}

impl Steps for OnGpu {
    fn set_centres(&mut self, centres: Vec<f32>) -> Result<()> {
        let norms = squared_norms(&centres, self.dim);
        self.clusters = norms.len();
        self.keys.set_centres(&centres, &norms)
    }

    fn assign(&mut self) -> Result<Assignment> {
        let (labels, distances) = self.keys.assign()?;
        Ok(Assignment { labels, distances })
    }

    fn move_centres(&mut self, labels: &[u32], distance: Distance) -> Result<f64> {
        let members = members(labels, self.clusters);
        let moved = self.keys.move_centres(&members, distance == Distance::Cosine)?;
        Ok(moved.iter().sum())
    }

    fn inertia(&mut self, labels: &[u32], distance: Distance) -> Result<f64> {
        let distances = self.keys.distances(labels, distance == Distance::Cosine)?;
        Ok(distances.iter().sum())
    }

    fn centres(&mut self) -> Result<Vec<f32>> {
        self.keys.centres()
    }
}
