//! k-means++ (Arthur and Vassilvitskii 2007) whose distances come in matrix products.
//!
//! The next centre is drawn with probability proportional to the squared distance D^2 to the nearest centre so far, which
//! looks like one pass over all keys per centre. Drawing by the D^2 of some centres ago and keeping a candidate with
//! probability (D^2 now) / (D^2 then) is the same distribution (rejection sampling: D^2 never grows), and needs the
//! candidate's distance to the centres since then only. So centres are drawn a batch at a time, and one product of all keys
//! with the batch brings D^2 up to date.

use super::{KMeansConfig, Steps, Watch, interrupted};
use crate::error::Result;
use crate::probe::key_space::Rows;
use crate::random::stream_rng;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Centres per product.
const BATCH: usize = 32;
/// Draws per batch at most: where most are refused, D^2 has changed and should be brought up to date.
const DRAWS: usize = 4 * BATCH;

/// Keys that draw their times together.
const RACE_BLOCK: usize = 8192;

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum()
}

/// A key drawn with probability proportional to its weight: each waits for an exponential time of that rate, and the first
/// wins. So a rounding error in the weights, which differ between devices, decides only where two keys come within it; in a
/// running sum over all keys it would shift every key behind.
fn race(weights: &[f32], rng: &mut ChaCha8Rng) -> usize {
    let start = rng.get_word_pos();
    let part = |(at, weights): (usize, &[f32])| {
        let first = at * RACE_BLOCK;
        let mut rng = rng.clone();
        rng.set_word_pos(start + 2 * first as u128);
        let mut best = (f64::INFINITY, first);
        for (key, &weight) in (first..).zip(weights) {
            // Drawn for every key, so that all find the same numbers whatever the weights.
            let share: f64 = rng.random();
            let weight = f64::from(weight);
            // -ln(1 - x) is at least x: most keys need no logarithm.
            if weight > 0.0 && share / weight < best.0 {
                let wait = -(-share).ln_1p() / weight;
                if wait < best.0 {
                    best = (wait, key);
                }
            }
        }
        best
    };
    let parts: Vec<(f64, usize)> = weights.par_chunks(RACE_BLOCK).enumerate().map(part).collect();
    rng.set_word_pos(start + 2 * weights.len() as u128);
    let earlier = |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    parts.into_iter().min_by(earlier).map_or(0, |(_, key)| key)
}

/// Rows that serve as first centres, in the order of their drawing.
pub(super) fn plus_plus(
    keys: &mut dyn Steps,
    rows: &Rows,
    config: &KMeansConfig,
    restart: usize,
    watch: &mut Watch<'_>,
) -> Result<Vec<usize>> {
    let clusters = config.clusters;
    let mut rng = stream_rng(config.seed, &format!("kmeans/{restart}"));
    let count = rows.count();
    // u32, because usize would draw other numbers on other machines.
    let mut chosen = vec![rng.random_range(0..count as u32) as usize];
    let mut pending = chosen.clone();
    let mut nearest = vec![f32::INFINITY; count];
    loop {
        keys.set_centres(rows.pick(&pending))?;
        let distances = keys.assign()?.distances;
        nearest.iter_mut().zip(&distances).for_each(|(n, d)| *n = n.min(*d));
        // A centre is at distance 0, whatever the product's rounding says.
        for &row in &chosen {
            nearest[row] = 0.0;
        }
        if chosen.len() == clusters {
            return Ok(chosen);
        }
        if !watch(0, nearest.iter().map(|&d| f64::from(d)).sum()) {
            return Err(interrupted());
        }
        pending.clear();
        if nearest.iter().all(|&d| d <= 0.0) {
            // Every key lies on a centre: fewer distinct keys than clusters. The rest are the lowest ids left.
            let rest: Vec<usize> = (0..count).filter(|row| !chosen.contains(row)).collect();
            chosen.extend(&rest[..clusters - chosen.len()]);
            return Ok(chosen);
        }
        for _ in 0..DRAWS {
            let row = race(&nearest, &mut rng);
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
    use crate::probe::kmeans::{Distance, Place, squared_norms};

    fn config(clusters: usize, seed: u64) -> KMeansConfig {
        KMeansConfig {
            clusters,
            distance: Distance::Euclidean,
            max_iterations: 1,
            tolerance: 0.0,
            restarts: 1,
            seed,
        }
    }

    fn drawn(rows: &Rows, clusters: usize, seed: u64) -> Vec<usize> {
        let norms = squared_norms(&rows.data, rows.dim);
        let mut keys = Cpu.hold(rows, &norms, clusters).expect("room");
        plus_plus(keys.as_mut(), rows, &config(clusters, seed), 0, &mut |_, _| true).expect("draws")
    }

    #[test]
    fn drawing_can_be_stopped() {
        let rows = Rows {
            data: (0..200u8).map(f32::from).collect(),
            dim: 1,
        };
        let norms = squared_norms(&rows.data, rows.dim);
        let mut keys = Cpu.hold(&rows, &norms, 100).expect("room");
        let mut asked = 0;
        let stopped = plus_plus(keys.as_mut(), &rows, &config(100, 0), 0, &mut |iteration, _| {
            asked += 1;
            assert_eq!(iteration, 0);
            asked < 3
        });
        assert_eq!(stopped.expect_err("stopped").exit_code(), 130);
        assert_eq!(asked, 3);
    }

    #[test]
    fn batches_draw_as_one_centre_at_a_time_would() {
        // Rows at 0, 1, 3 and 10 on a line; two centres. First uniform, then by D^2, worked out by hand below.
        let places = [0.0f32, 1.0, 3.0, 10.0];
        let rows = Rows {
            data: places.to_vec(),
            dim: 1,
        };
        let mut pairs = [[0.0f64; 4]; 4];
        let trials = 8000;
        for seed in 0..trials {
            let chosen = drawn(&rows, 2, seed);
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
        let (mut all, mut ones) = (0.0, 0.0);
        for seed in 0..20_000 {
            let chosen = drawn(&rows, 3, seed);
            if chosen[..2] == [0, 3] {
                all += 1.0;
                ones += f64::from(u8::from(chosen[2] == 1));
            }
        }
        assert!(all > 3000.0 && (ones / all - 0.1).abs() < 0.025, "{ones} of {all}");
    }

    #[test]
    fn a_race_is_won_in_proportion_to_the_weights_across_blocks() {
        // Four keys with weights 1 to 4 in three blocks, the others 0.
        let places = [0, 5, RACE_BLOCK + 1, 2 * RACE_BLOCK + 7];
        let mut weights = vec![0.0f32; 2 * RACE_BLOCK + 9];
        for (weight, &place) in (1u8..).zip(&places) {
            weights[place] = f32::from(weight);
        }
        let mut rng = stream_rng(0, "race");
        let mut wins = [0.0; 4];
        for _ in 0..4000 {
            let winner = race(&weights, &mut rng);
            let place = places.iter().position(|&p| p == winner).expect("a key with a weight");
            wins[place] += 1.0 / 4000.0;
        }
        for (weight, share) in (1u8..).zip(wins) {
            // Four standard errors.
            assert!((share - f64::from(weight) / 10.0).abs() < 0.032, "{wins:?}");
        }
        // A change in the last digit of all weights changes no draw.
        let near: Vec<f32> = weights.iter().map(|w| w * 1.000_000_1).collect();
        let draws = |weights: &[f32]| -> Vec<usize> {
            let mut rng = stream_rng(1, "race");
            (0..50).map(|_| race(weights, &mut rng)).collect()
        };
        assert_eq!(draws(&weights), draws(&near));
    }

    #[test]
    fn fewer_distinct_keys_than_clusters_end() {
        let rows = Rows {
            data: vec![2.0; 6],
            dim: 1,
        };
        let chosen = drawn(&rows, 4, 0);
        let mut sorted = chosen.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 4, "{chosen:?}");
    }
}
