//! Keys on the GPU, and the steps of k-means over them (`kmeans.cu`, products by cuBLASLt in f32).

use super::compile::Source;
use super::driver::{Argument, Gpu, Kernel, Launch, Memory};
use super::gemm::{Gemm, Operands, Output, Product};
use crate::bytes::human_bytes;
use crate::error::{Error, Result};
use rayon::prelude::*;

const NEAREST_WARPS: usize = 8;
const DISTANCE_WARPS: usize = 8;
const MOVE_THREADS: u32 = 128;
const SUM_THREADS: usize = 128;
/// Elements that a thread takes at once; rows are padded to a multiple.
const VECTOR: usize = 4;
/// Centres are padded to a multiple of this, so that few shapes of products have to be planned.
const CENTRES: usize = 32;
/// Products held at a time: 128 MiB.
const PRODUCTS: usize = 1 << 25;
/// Bytes of keys that are padded and sent at a time.
const UPLOAD_BYTES: usize = 64 << 20;

/// Sizes of a run.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// N: keys.
    count: usize,
    /// Elements of a key.
    dim: usize,
    /// W: the same in device memory.
    width: usize,
    /// K with padding.
    stride: usize,
    /// Keys of one product.
    block: usize,
}

impl Sizes {
    fn new(count: usize, dim: usize, clusters: usize) -> Self {
        let stride = clusters.next_multiple_of(CENTRES);
        Self {
            count,
            dim,
            width: dim.next_multiple_of(VECTOR),
            stride,
            // A multiple of 64 rows keeps every block at an address that cuBLASLt may assume.
            block: (PRODUCTS / stride / 64 * 64).clamp(64, count.next_multiple_of(64)),
        }
    }

    fn bytes(&self) -> usize {
        let singles =
            self.count * (self.width + 4) + self.stride * (self.width + 2) + self.block.min(self.count) * self.stride;
        let doubles = self.count + self.stride * (self.width + 1);
        4 * singles + 8 * doubles
    }
}

/// Keys in device memory with room for the steps of k-means over them.
///
/// Nearest centres follow from products in f32, as on the CPU, summed in another order: keys between two centres may go the
/// other way. New centres are those of the CPU to the last bit where the labels are.
pub struct KMeansOnGpu {
    gpu: Gpu,
    gemm: Gemm,
    nearest: Kernel,
    sum: Kernel,
    advance: Kernel,
    distances: Kernel,
    sizes: Sizes,
    /// `[N, W]`.
    keys: Memory,
    /// `[N]`: squared lengths.
    key_norms: Memory,
    /// `[stride, W]`; the first `clusters` count.
    centres: Memory,
    centre_norms: Memory,
    /// How many centres are set.
    clusters: usize,
    /// `[block, stride]`.
    products: Memory,
    /// `[N]`, u32.
    labels: Memory,
    /// `[N]`, f32.
    nearest_distances: Memory,
    /// `[N]`, u32: keys by cluster.
    members: Memory,
    /// `[stride + 1]`, u32.
    starts: Memory,
    /// `[stride, W]`, f64.
    sums: Memory,
    /// `[stride]`, f64.
    moved: Memory,
    /// `[N]`, f64.
    distance_sums: Memory,
}

impl KMeansOnGpu {
    /// Bytes of device memory for `count` keys of `dim` elements in at most `clusters` clusters.
    pub fn needed_bytes(count: usize, dim: usize, clusters: usize) -> usize {
        Sizes::new(count, dim, clusters).bytes()
    }

    /// Copies `keys` `[N, dim]` with their squared lengths to the device. `clusters`: most centres at a time.
    pub fn new(gpu: &Gpu, keys: &[f32], key_norms: &[f32], dim: usize, clusters: usize) -> Result<Self> {
        let sizes = Sizes::new(key_norms.len(), dim, clusters);
        if i32::try_from(sizes.count.max(sizes.stride)).is_err() {
            return Err(
                Error::user(format!("{} keys are more than a GPU is given", sizes.count)).help("pass `--device cpu`"),
            );
        }
        let free = gpu.memory()?.0;
        if sizes.bytes() > free {
            return Err(Error::environment(format!(
                "clustering {} keys of {dim} elements on the GPU needs {}, but {} are free there",
                sizes.count,
                human_bytes(sizes.bytes()),
                human_bytes(free)
            ))
            .help("free memory of the GPU, pass a smaller `--k`, or pass `--device cpu`"));
        }
        let module = gpu.module(Source::KMeans, &[])?;
        let singles = |len: usize| gpu.allocate(len * size_of::<f32>());
        let doubles = |len: usize| gpu.allocate(len * size_of::<f64>());
        let keys_there = singles(sizes.count * sizes.width);
        let held = Self {
            nearest: module.kernel("nearest_centres")?,
            sum: module.kernel("sum_clusters")?,
            advance: module.kernel("move_centres")?,
            distances: module.kernel("key_distances")?,
            key_norms: gpu.upload_new(bytemuck::cast_slice(key_norms)),
            centres: singles(sizes.stride * sizes.width),
            centre_norms: singles(sizes.stride),
            clusters: 0,
            products: singles(sizes.block.min(sizes.count) * sizes.stride),
            labels: singles(sizes.count),
            nearest_distances: singles(sizes.count),
            members: singles(sizes.count),
            starts: singles(sizes.stride + 1),
            sums: doubles(sizes.stride * sizes.width),
            moved: doubles(sizes.stride),
            distance_sums: doubles(sizes.count),
            keys: keys_there,
            gemm: Gemm::new(gpu)?,
            gpu: gpu.clone(),
            sizes,
        };
        held.upload_rows(keys, &held.keys);
        gpu.status()?;
        Ok(held)
    }

    /// Sends rows `[n, dim]`, padded to `[n, W]`.
    fn upload_rows(&self, rows: &[f32], to: &Memory) {
        let Sizes { dim, width, .. } = self.sizes;
        if dim == width {
            return self.gpu.upload(to, 0, bytemuck::cast_slice(rows));
        }
        let at_once = (UPLOAD_BYTES / (width * size_of::<f32>())).max(1);
        let mut padded = Vec::new();
        for (part, rows) in rows.chunks(at_once * dim).enumerate() {
            padded.clear();
            padded.resize(rows.len() / dim * width, 0.0f32);
            padded
                .par_chunks_exact_mut(width)
                .zip(rows.par_chunks_exact(dim))
                .for_each(|(out, row)| out[..dim].copy_from_slice(row));
            let offset = part * at_once * width * size_of::<f32>();
            self.gpu.upload(to, offset, bytemuck::cast_slice(&padded));
        }
    }

    /// Sets the centres `[clusters, dim]` with their squared lengths.
    ///
    /// # Panics
    /// If there is no room for so many.
    pub fn set_centres(&mut self, centres: &[f32], norms: &[f32]) -> Result<()> {
        assert!(norms.len() <= self.sizes.stride, "more centres than there is room for");
        self.clusters = norms.len();
        self.upload_rows(centres, &self.centres);
        self.gpu.upload(&self.centre_norms, 0, bytemuck::cast_slice(norms));
        self.gpu.status()
    }

    /// The nearest centre of every key, the lowest of equally near ones, and the squared distance to it.
    pub fn assign(&mut self) -> Result<(Vec<u32>, Vec<f32>)> {
        let Sizes {
            count, width, block, ..
        } = self.sizes;
        // As many columns as centres are set: few while the first ones are drawn.
        let columns = self.clusters.next_multiple_of(CENTRES);
        for first in (0..count).step_by(block) {
            let rows = block.min(count - first);
            let product = Product {
                x: self.keys.at(first * width * size_of::<f32>()),
                rows,
                w: &self.centres,
                inputs: width,
                outputs: columns,
                operands: Operands::Single,
                bias: None,
                out: self.products.start(),
                output: Output::F32,
            };
            // SAFETY: `rows` keys lie behind `first`, `columns` centres and as many products have room by `Sizes`.
            unsafe { self.gemm.multiply(&product) };
            let offset = first * size_of::<f32>();
            let arguments: [Argument; 8] = [
                self.products.start(),
                rows.into(),
                self.clusters.into(),
                columns.into(),
                self.centre_norms.start(),
                self.key_norms.at(offset),
                self.labels.at(offset),
                self.nearest_distances.at(offset),
            ];
            let launch = Launch::new(rows.div_ceil(NEAREST_WARPS), 32 * NEAREST_WARPS as u32);
            // SAFETY: `rows` keys and their products, `columns` norms, as above.
            unsafe { self.gpu.launch(&self.nearest, launch, &arguments) };
        }
        let (mut labels, mut distances) = (vec![0u32; count], vec![0.0f32; count]);
        self.gpu
            .download(&self.labels, 0, bytemuck::cast_slice_mut(&mut labels))?;
        self.gpu
            .download(&self.nearest_distances, 0, bytemuck::cast_slice_mut(&mut distances))?;
        Ok((labels, distances))
    }

    /// Moves every centre to the mean of its keys, of unit length if `unit`; a cluster without keys keeps its centre.
    /// Returns the squared way of each.
    ///
    /// # Panics
    /// If there are not as many lists as centres, or not as many keys in them as there are keys.
    pub fn move_centres(&mut self, members: &[Vec<u32>], unit: bool) -> Result<Vec<f64>> {
        assert_eq!(members.len(), self.clusters, "lists of keys");
        let Sizes { count, width, .. } = self.sizes;
        let keys: Vec<u32> = members.iter().flatten().copied().collect();
        assert!(
            keys.len() == count && keys.iter().all(|&key| (key as usize) < count),
            "keys of the clusters"
        );
        let mut starts = vec![0u32];
        let mut end = 0;
        starts.extend(members.iter().map(|keys| {
            end += keys.len() as u32;
            end
        }));
        self.gpu.upload(&self.members, 0, bytemuck::cast_slice(&keys));
        self.gpu.upload(&self.starts, 0, bytemuck::cast_slice(&starts));
        let columns = width.div_ceil(VECTOR * SUM_THREADS);
        let arguments = [
            self.keys.start(),
            width.into(),
            self.members.start(),
            self.starts.start(),
            self.sums.start(),
        ];
        let launch = Launch::new((self.clusters, columns), SUM_THREADS as u32);
        // SAFETY: the lists name keys that are there, the sums have a row per centre.
        unsafe { self.gpu.launch(&self.sum, launch, &arguments) };
        let arguments = [
            self.sums.start(),
            self.starts.start(),
            usize::from(unit).into(),
            width.into(),
            self.centres.start(),
            self.centre_norms.start(),
            self.moved.start(),
        ];
        // SAFETY: sums, centres, norms and ways have an entry per centre.
        unsafe {
            self.gpu
                .launch(&self.advance, Launch::new(self.clusters, MOVE_THREADS), &arguments);
        }
        let mut moved = vec![0.0f64; self.clusters];
        self.gpu
            .download(&self.moved, 0, bytemuck::cast_slice_mut(&mut moved))?;
        Ok(moved)
    }

    /// Of every key the squared distance to the centre of its label, or 1 - cosine if `unit`, from the keys themselves.
    ///
    /// # Panics
    /// If there are not as many labels as keys, or one names no centre.
    pub fn distances(&mut self, labels: &[u32], unit: bool) -> Result<Vec<f64>> {
        let Sizes { count, width, .. } = self.sizes;
        assert!(
            labels.len() == count && labels.iter().all(|&label| (label as usize) < self.clusters),
            "labels of the keys"
        );
        self.gpu.upload(&self.labels, 0, bytemuck::cast_slice(labels));
        let arguments = [
            self.keys.start(),
            count.into(),
            width.into(),
            self.labels.start(),
            self.centres.start(),
            usize::from(unit).into(),
            self.distance_sums.start(),
        ];
        let launch = Launch::new(count.div_ceil(DISTANCE_WARPS), 32 * DISTANCE_WARPS as u32);
        // SAFETY: keys and labels have an entry per key, labels name centres.
        unsafe { self.gpu.launch(&self.distances, launch, &arguments) };
        let mut distances = vec![0.0f64; count];
        self.gpu
            .download(&self.distance_sums, 0, bytemuck::cast_slice_mut(&mut distances))?;
        Ok(distances)
    }

    /// The centres `[clusters, dim]`.
    pub fn centres(&self) -> Result<Vec<f32>> {
        let Sizes { dim, width, .. } = self.sizes;
        let mut padded = vec![0.0f32; self.clusters * width];
        self.gpu
            .download(&self.centres, 0, bytemuck::cast_slice_mut(&mut padded))?;
        if dim == width {
            return Ok(padded);
        }
        Ok(padded
            .chunks_exact(width)
            .flat_map(|row| &row[..dim])
            .copied()
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_their_room_and_the_keys_of_llama_3_a_small_gpu() {
        let sizes = Sizes::new(128_256, 4096, 1024);
        assert_eq!((sizes.block, sizes.width, sizes.stride), (32_768, 4096, 1024));
        assert!(sizes.bytes() < 3 << 30, "{}", sizes.bytes());
        for (count, clusters) in [(1, 1), (7, 3), (100, 33), (70_000, 65_000), (1 << 20, 2)] {
            let sizes = Sizes::new(count, 3, clusters);
            assert!(sizes.block >= 64 && sizes.block.is_multiple_of(64), "{sizes:?}");
            assert!(sizes.width == 4 && sizes.stride >= clusters, "{sizes:?}");
        }
    }
}
