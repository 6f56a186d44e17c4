//! k-means++ (Arthur and Vassilvitskii 2007) whose distances come in matrix products.
//!
//! The next centre is drawn with probability proportional to the squared distance D^2 to the nearest centre so far, which
//! looks like one pass over all keys per centre. Drawing by the D^2 of some centres ago and keeping a candidate with
//! probability (D^2 now) / (D^2 then) is the same distribution (rejection sampling: D^2 never grows), and needs the
//! candidate's distance to the centres since then only. So centres are drawn a batch at a time, and one product of all keys
//! with the batch brings D^2 up to date.

use super::assign;
use crate::kernels::Backend;
use crate::probe::key_space::Rows;
use crate::random::stream_rng;
use rand::Rng;

/// Centres per product.
const BATCH: usize = 32;
/// Draws per batch at most: where most are refused, D^2 has changed and should be brought up to date.
const DRAWS: usize = 4 * BATCH;

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum()
}

/// Rows that serve as first centres, in the order of their drawing.
pub(super) fn plus_plus<B: Backend>(
    backend: &B,
    rows: &Rows,
    norms: &[f32],
    clusters: usize,
    seed: u64,
    restart: usize,
) -> Vec<usize> {
    let mut rng = stream_rng(seed, &format!("kmeans/{restart}"));
    let count = rows.count();
    // u32, because usize would draw other numbers on other machines.
    let mut chosen = vec![rng.random_range(0..count as u32) as usize];
    let mut pending = chosen.clone();
    let mut nearest = vec![f32::INFINITY; count];
    loop {
        let centres: Vec<f32> = pending.iter().flat_map(|&row| rows.row(row)).copied().collect();
        let (_, distances) = assign(backend, rows, norms, &centres);
        nearest.iter_mut().zip(&distances).for_each(|(n, d)| *n = n.min(*d));
        // A centre is at distance 0, whatever the product's rounding says.
        for &row in &chosen {
            nearest[row] = 0.0;
        }
        if chosen.len() == clusters {
            return chosen;
        }
        let mut total = 0.0;
        let cumulative: Vec<f64> = nearest
            .iter()
            .map(|&d| {
                total += f64::from(d);
                total
            })
            .collect();
        pending.clear();
        if total <= 0.0 {
            // Every key lies on a centre: fewer distinct keys than clusters. The rest are the lowest ids left.
            let rest: Vec<usize> = (0..count).filter(|row| !chosen.contains(row)).collect();
            chosen.extend(&rest[..clusters - chosen.len()]);
            return chosen;
        }
        for _ in 0..DRAWS {
            let target = rng.random::<f64>() * total;
            let row = cumulative.partition_point(|&sum| sum <= target).min(count - 1);
            let then = f64::from(nearest[row]);
            let since = pending
                .iter()
                .map(|&other| squared_distance(rows.row(row), rows.row(other)));
            let now = since.fold(then, f64::min);
            if now > 0.0 && rng.random::<f64>() * then < now {
                pending.push(row);
                if pending.len() == BATCH || chosen.len() + pending.len() == clusters {
                    break;
                }
            }
        }
        chosen.extend(&pending);
        if pending.is_empty() {
            // All draws were refused, which rounding alone can do: the farthest key is one of those that might have been.
            let farthest = (0..count).max_by(|&a, &b| nearest[a].total_cmp(&nearest[b]).then(b.cmp(&a)));
            pending.extend(farthest);
            chosen.extend(farthest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::Cpu;
    use crate::probe::kmeans::squared_norms;

    #[test]
    fn batches_draw_as_one_centre_at_a_time_would() {
        // Rows at 0, 1, 3 and 10 on a line; two centres. First uniform, then by D^2, worked out by hand below.
        let places = [0.0f32, 1.0, 3.0, 10.0];
        let rows = Rows {
            data: places.to_vec(),
            dim: 1,
        };
        let norms = squared_norms(&rows);
        let mut pairs = [[0.0f64; 4]; 4];
        let trials = 8000;
        for seed in 0..trials {
            let chosen = plus_plus(&Cpu, &rows, &norms, 2, seed, 0);
            pairs[chosen[0]][chosen[1]] += 1.0 / trials as f64;
        }
        for (first, row) in pairs.iter().enumerate() {
            let squares: Vec<f64> = places.iter().map(|&p| f64::from(p - places[first]).powi(2)).collect();
            let total: f64 = squares.iter().sum();
            for (second, share) in row.iter().enumerate() {
                let wanted = 0.25 * squares[second] / total;
                // Four standard errors of a share near 1/4.
                assert!((share - wanted).abs() < 0.02, "{first} {second}: {share}, not {wanted}");
            }
        }
    }

    #[test]
    fn three_centres_follow_the_shrunken_distances() {
        // After {0, 10} the third is 1 (D^2 = 1) or 3 (D^2 = 9); in a batch, 3 was drawn by D^2 = 9 of centre 0 alone.
        let rows = Rows {
            data: vec![0.0, 1.0, 3.0, 10.0],
            dim: 1,
        };
        let norms = squared_norms(&rows);
        let (mut all, mut ones) = (0.0, 0.0);
        for seed in 0..20_000 {
            let chosen = plus_plus(&Cpu, &rows, &norms, 3, seed, 0);
            if chosen[..2] == [0, 3] {
                all += 1.0;
                ones += f64::from(u8::from(chosen[2] == 1));
            }
        }
        assert!(all > 3000.0 && (ones / all - 0.1).abs() < 0.025, "{ones} of {all}");
    }

    #[test]
    fn fewer_distinct_keys_than_clusters_end() {
        let rows = Rows {
            data: vec![2.0; 6],
            dim: 1,
        };
        let chosen = plus_plus(&Cpu, &rows, &squared_norms(&rows), 4, 0, 0);
        let mut sorted = chosen.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 4, "{chosen:?}");
    }
}
