//! Keeping away from explored keys without a prompt: by their clusters, or by their directions.

use super::clusters::Clustering;
use super::completion::Reading;
use super::key_space::Rows;
use rayon::prelude::*;

/// Logits less `penalty` for each explored token of the same cluster.
pub fn penalised(logits: &[f32], clusters: &Clustering, explored: &[u32], penalty: f32) -> Vec<f32> {
    let mut counts = vec![0.0f32; clusters.clusters];
    for &token in explored {
        counts[clusters.ids[token as usize] as usize] += 1.0;
    }
    let of = |(logit, cluster): (&f32, &u32)| logit - penalty * counts[*cluster as usize];
    logits.iter().zip(&clusters.ids).map(of).collect()
}

/// Logits of the query without `strength` of its part in the span of the explored keys.
pub fn projected(reading: &Reading, keys: &Rows, explored: &[u32], strength: f32) -> Vec<f32> {
    let part = part_in_span(&reading.query, keys, explored);
    let part: Vec<f32> = part.iter().map(|x| *x as f32 * strength).collect();
    let product = |key: &[f32]| key.iter().zip(&part).map(|(k, p)| k * p).sum::<f32>();
    let rows = keys.data.par_chunks_exact(keys.dim);
    reading
        .logits
        .par_iter()
        .zip(rows)
        .map(|(logit, key)| logit - product(key))
        .collect()
}

/// The part of `query` in the span of the given keys.
fn part_in_span(query: &[f32], keys: &Rows, explored: &[u32]) -> Vec<f64> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for &token in explored {
        let key: Vec<f64> = keys.row(token as usize).iter().map(|&x| f64::from(x)).collect();
        let length = dot(&key, &key).sqrt();
        let mut rest = key;
        // Twice: one pass of Gram-Schmidt leaves rounding that grows with the number of keys.
        for _ in 0..2 {
            for direction in &basis {
                let along = dot(&rest, direction);
                rest.iter_mut().zip(direction).for_each(|(r, d)| *r -= along * d);
            }
        }
        let left = dot(&rest, &rest).sqrt();
        // A key that the others span already adds no direction, only noise.
        if left > 1e-6 * length {
            for r in &mut rest {
                *r /= left;
            }
            basis.push(rest);
        }
    }
    let query: Vec<f64> = query.iter().map(|&x| f64::from(x)).collect();
    let mut part = vec![0.0; query.len()];
    for direction in &basis {
        let along = dot(&query, direction);
        part.iter_mut().zip(direction).for_each(|(p, d)| *p += along * d);
    }
    part
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_explored_token_costs_its_cluster() {
        let clusters = Clustering::imported(vec![0, 1, 0, 2]);
        assert_eq!(
            penalised(&[5.0, 5.0, 5.0, 5.0], &clusters, &[0, 2, 3], 1.5),
            [2.0, 5.0, 2.0, 3.5]
        );
    }

    #[test]
    fn explored_keys_get_the_product_0_and_orthogonal_ones_keep_theirs() {
        let keys = Rows {
            data: vec![1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 3.0, 0.0],
            dim: 3,
        };
        let query = vec![3.0, 4.0, 5.0];
        let logits: Vec<f32> = (0..4)
            .map(|key| keys.row(key).iter().zip(&query).map(|(k, q)| k * q).sum())
            .collect();
        let reading = Reading { query, logits };
        // Keys 0 and 1 span the first two axes; exploring key 0 twice adds nothing.
        for (explored, strength, wanted) in [
            (&[0u32, 1, 0][..], 1.0, [0.0, 0.0, 10.0, 0.0]),
            (&[0], 1.0, [0.0, 4.0, 10.0, 12.0]),
            (&[0], 0.5, [1.5, 5.5, 10.0, 12.0]),
            (&[], 1.0, [3.0, 7.0, 10.0, 12.0]),
        ] {
            let found = projected(&reading, &keys, explored, strength);
            for (found, wanted) in found.iter().zip(wanted) {
                assert!((found - wanted).abs() < 1e-5, "{explored:?}: {found}, not {wanted}");
            }
        }
    }
}
