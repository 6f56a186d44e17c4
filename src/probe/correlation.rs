//! Is the middle of the ranking filled by the winners' neighbours? The measurement of the paper's released notebook, with
//! controls that it lacks.
//!
//! The first tokens of a question's answer are ranked and each is completed and judged. Ranks beyond K whose token shares a
//! cluster with one of the first K are "in", the others "out". That alone confounds neighbourhood with rank (nearer tokens
//! rank higher), so each in-rank is also compared with out-ranks around it, clusters are shuffled at equal sizes, and giant
//! clusters, which make anything a neighbour, are set apart.

use super::scores::mean_precision;
use crate::bench::statistics::mean;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// One rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankedAnswer {
    /// Id of the first token.
    pub token: u32,
    /// Its text.
    pub text: String,
    /// The completed answer; null if its quote was never closed.
    pub answer: Option<String>,
    /// Whether it is right.
    pub correct: bool,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CorrelationSettings {
    /// K: ranks whose clusters are the winners'.
    pub winners: usize,
    /// Ranks at most this far apart are compared as equal.
    pub window: usize,
    /// A cluster with more than this many times the mean size is a giant.
    pub giant: f64,
    /// Shuffled clusterings.
    pub shuffles: usize,
}

/// Precision of one group of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Ranks.
    pub n: usize,
    /// Share of right answers; null for no ranks.
    pub precision: Option<f64>,
    /// Mean rank, from 1; null for no ranks.
    pub mean_rank: Option<f64>,
}

/// Ranks of a bin of the table by rank.
const BIN: usize = 10;

/// Neighbouring ranks beyond K; giants are in neither group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RankBin {
    /// First and last rank, from 1.
    pub ranks: [usize; 2],
    /// Those in a winner's cluster.
    pub inside: Group,
    /// Those in none.
    pub outside: Group,
}

/// A question's ranking under one clustering.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Correlation {
    /// The first K ranks.
    pub winners: Group,
    /// Later ranks in a winner's cluster that is no giant.
    pub inside: Group,
    /// Later ranks in a winner's giant cluster.
    pub giant: Group,
    /// Later ranks in no winner's cluster.
    pub outside: Group,
    /// The same two groups in bins of ten ranks.
    pub by_rank: Vec<RankBin>,
    /// Precision inside less outside; null where one of them is empty.
    pub difference: Option<f64>,
    /// The same with giants counted inside, as in the released notebook.
    pub difference_with_giants: Option<f64>,
    /// Mean over inside ranks of: right or not, less the precision of outside ranks around it.
    pub matched_difference: Option<f64>,
    /// Inside ranks that had outside ranks around them.
    pub matched: usize,
    /// `difference` under shuffled clusters of equal sizes; null where a shuffle leaves a group empty.
    pub shuffled: Vec<Option<f32>>,
    /// `matched_difference` under the same shuffles.
    pub shuffled_matched: Vec<Option<f32>>,
    /// Mean of precision@1 to precision@10.
    pub map_at_10: f64,
    /// Precision@1 to precision@K.
    pub precision_at: Vec<f64>,
}

/// Which group each rank beyond K belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Inside,
    Giant,
    Outside,
}

fn places(clusters: &[u32], winners: usize, is_giant: &dyn Fn(u32) -> bool) -> Vec<Place> {
    let winners = winners.min(clusters.len());
    let (main, rest) = clusters.split_at(winners);
    let place = |cluster: &u32| match (main.contains(cluster), is_giant(*cluster)) {
        (true, false) => Place::Inside,
        (true, true) => Place::Giant,
        (false, _) => Place::Outside,
    };
    rest.iter().map(place).collect()
}

fn group(ranks: impl Iterator<Item = usize>, correct: &[bool]) -> Group {
    let ranks: Vec<usize> = ranks.collect();
    let golds: Vec<f64> = ranks.iter().map(|&r| f64::from(u8::from(correct[r]))).collect();
    let places: Vec<f64> = ranks.iter().map(|&r| r as f64 + 1.0).collect();
    Group {
        n: ranks.len(),
        precision: mean(&golds),
        mean_rank: mean(&places),
    }
}

fn less(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? - b?)
}

/// Precision of the ranks in `wanted` less that of those outside.
fn gap(places: &[Place], correct: &[bool], wanted: &[Place]) -> Option<f64> {
    let of = |wanted: &[Place]| {
        let here = places.iter().zip(correct).filter(|(place, _)| wanted.contains(place));
        let golds: Vec<f64> = here.map(|(_, &c)| f64::from(u8::from(c))).collect();
        mean(&golds)
    };
    less(of(wanted), of(&[Place::Outside]))
}

/// Inside ranks against outside ranks at most `window` away: mean difference, and how many had a partner.
fn matched(places: &[Place], correct: &[bool], window: usize) -> (Option<f64>, usize) {
    let mut differences = Vec::new();
    for (rank, _) in places.iter().enumerate().filter(|(_, place)| **place == Place::Inside) {
        let near = rank.saturating_sub(window)..(rank + window + 1).min(places.len());
        let partners = near.filter(|&other| places[other] == Place::Outside);
        let golds: Vec<f64> = partners.map(|other| f64::from(u8::from(correct[other]))).collect();
        if let Some(expected) = mean(&golds) {
            differences.push(f64::from(u8::from(correct[rank])) - expected);
        }
    }
    (mean(&differences), differences.len())
}

/// Clusters of `count` distinct keys drawn at random: what a shuffle of all cluster ids gives the ranked tokens.
fn drawn(ids: &[u32], count: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    // rand's sampler draws without replacement without touching the whole vocabulary.
    let picked = rand::seq::index::sample(rng, ids.len(), count.min(ids.len()));
    picked.iter().map(|at| ids[at]).collect()
}

/// Compares the ranks of `answers`, best first. `ids` is the cluster of every key, `clusters` their number.
pub fn correlate(
    answers: &[RankedAnswer],
    ids: &[u32],
    clusters: usize,
    settings: &CorrelationSettings,
    rng: &mut ChaCha8Rng,
) -> Correlation {
    let mut sizes = vec![0usize; clusters];
    for &id in ids {
        sizes[id as usize] += 1;
    }
    let largest = settings.giant * ids.len() as f64 / clusters.max(1) as f64;
    let is_giant = |cluster: u32| sizes[cluster as usize] as f64 > largest;
    let correct: Vec<bool> = answers.iter().map(|answer| answer.correct).collect();
    let k = settings.winners.min(answers.len());
    let own: Vec<u32> = answers.iter().map(|answer| ids[answer.token as usize]).collect();
    let places = places(&own, k, &is_giant);
    let later = &correct[k..];
    let of = |wanted: Place| {
        let ranks = places.iter().enumerate().filter(move |(_, place)| **place == wanted);
        group(ranks.map(|(rank, _)| rank + k), &correct)
    };
    let bin = |number: usize| {
        let part = number * BIN..((number + 1) * BIN).min(places.len());
        let of = |wanted: Place| {
            let ranks = part.clone().filter(|&rank| places[rank] == wanted);
            group(ranks.map(|rank| rank + k), &correct)
        };
        RankBin {
            ranks: [part.start + k + 1, part.end + k],
            inside: of(Place::Inside),
            outside: of(Place::Outside),
        }
    };
    let (matched_difference, matched) = matched(&places, later, settings.window);
    let mut shuffled = Vec::with_capacity(settings.shuffles);
    let mut shuffled_matched = Vec::with_capacity(settings.shuffles);
    for _ in 0..settings.shuffles {
        let places = self::places(&drawn(ids, answers.len(), rng), k, &is_giant);
        shuffled.push(gap(&places, later, &[Place::Inside]).map(|gap| gap as f32));
        let (difference, _) = self::matched(&places, later, settings.window);
        shuffled_matched.push(difference.map(|difference| difference as f32));
    }
    let right_within = |n: usize| correct[..n].iter().filter(|&&c| c).count() as f64;
    Correlation {
        winners: group(0..k, &correct),
        inside: of(Place::Inside),
        giant: of(Place::Giant),
        outside: of(Place::Outside),
        by_rank: (0..places.len().div_ceil(BIN)).map(bin).collect(),
        difference: gap(&places, later, &[Place::Inside]),
        difference_with_giants: gap(&places, later, &[Place::Inside, Place::Giant]),
        matched_difference,
        matched,
        shuffled,
        shuffled_matched,
        map_at_10: mean_precision(&correct, 10),
        precision_at: (1..=k).map(|n| right_within(n) / n as f64).collect(),
    }
}

/// A difference of one question and the same under shuffles.
pub type WithShuffles<'a> = (Option<f64>, &'a [Option<f32>]);

/// The share of shuffles whose mean difference over questions is at least as far from that of all shuffles as the real one
/// is, the real one counted among them; with the mean of the shuffles. Only questions that have the real difference count.
pub fn against_shuffles(all: &[WithShuffles<'_>]) -> Option<(f64, f64)> {
    let real: Vec<(f64, &[Option<f32>])> = all
        .iter()
        .filter_map(|(own, shuffles)| Some(((*own)?, *shuffles)))
        .collect();
    let own = mean(&real.iter().map(|(own, _)| *own).collect::<Vec<_>>())?;
    let shuffles = real
        .iter()
        .map(|(_, shuffles)| shuffles.len())
        .min()
        .filter(|&n| n > 0)?;
    let one = |shuffle: usize| {
        let values: Vec<f64> = real.iter().filter_map(|(_, s)| s[shuffle].map(f64::from)).collect();
        mean(&values)
    };
    let means: Vec<f64> = (0..shuffles).filter_map(one).collect();
    let centre = mean(&means)?;
    let beyond = means
        .iter()
        .filter(|m| (**m - centre).abs() >= (own - centre).abs())
        .count();
    Some(((beyond + 1) as f64 / (means.len() + 1) as f64, centre))
}

/// A seed's generator for one question.
pub fn shuffle_rng(seed: u64, question: &str) -> ChaCha8Rng {
    let mut rng = crate::random::stream_rng(seed, &format!("correlate/{question}"));
    // One draw, so that the stream is not that of a namesake.
    let _: u32 = rng.random();
    rng
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream_rng;

    const SETTINGS: CorrelationSettings = CorrelationSettings {
        winners: 2,
        window: 1,
        giant: 2.0,
        shuffles: 400,
    };

    fn ranked(golds: &[bool]) -> Vec<RankedAnswer> {
        let answer = |(token, &correct): (u32, &bool)| RankedAnswer {
            token,
            text: String::new(),
            answer: None,
            correct,
        };
        (0..).zip(golds).map(answer).collect()
    }

    #[test]
    fn groups_by_hand() {
        // Ranks 1 and 2 win with clusters 0 and 1. Ranks 3 (0, wrong), 4 (2, right), 5 (1, wrong), 6 (3, right), 7 (0, right).
        let answers = ranked(&[true, true, false, true, false, true, true]);
        let ids = [0, 1, 0, 2, 1, 3, 0];
        let found = correlate(&answers, &ids, 4, &SETTINGS, &mut stream_rng(0, "t"));
        assert_eq!((found.inside.n, found.outside.n, found.giant.n), (3, 2, 0));
        assert!((found.inside.precision.expect("three ranks") - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(found.inside.mean_rank, Some(5.0));
        assert_eq!(
            found.outside,
            Group {
                n: 2,
                precision: Some(1.0),
                mean_rank: Some(5.0)
            }
        );
        assert!((found.difference.expect("both") + 2.0 / 3.0).abs() < 1e-12);
        // Each inside rank has an outside neighbour that is right: -1, -1, 0.
        assert_eq!(found.matched, 3);
        assert!((found.matched_difference.expect("matched") + 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(found.precision_at, [1.0, 1.0]);
        // One bin holds all later ranks.
        let all = RankBin {
            ranks: [3, 7],
            inside: found.inside,
            outside: found.outside,
        };
        assert_eq!(found.by_rank, [all]);
    }

    #[test]
    fn bins_of_ranks_by_hand() {
        // Two winners in cluster 0, then 14 ranks: even ones in cluster 0, odd ones in 1; right up to rank 12.
        let golds: Vec<bool> = (0..16).map(|rank| rank < 12).collect();
        let ids: Vec<u32> = (0..16).map(|rank| if rank < 2 { 0 } else { rank % 2 }).collect();
        let settings = CorrelationSettings { giant: 9.0, ..SETTINGS };
        let found = correlate(&ranked(&golds), &ids, 2, &settings, &mut stream_rng(0, "t"));
        let said: Vec<_> = found
            .by_rank
            .iter()
            .map(|bin| {
                (
                    bin.ranks,
                    bin.inside.n,
                    bin.inside.precision,
                    bin.outside.n,
                    bin.outside.precision,
                )
            })
            .collect();
        assert_eq!(
            said,
            [
                ([3, 12], 5, Some(1.0), 5, Some(1.0)),
                ([13, 16], 2, Some(0.0), 2, Some(0.0))
            ]
        );
    }

    #[test]
    fn a_giant_cluster_is_set_apart() {
        // Cluster 0 holds 6 of 8 keys in 4 clusters: mean 2, giant above 4.
        let answers = ranked(&[true, true, false, false, true]);
        let ids = [0, 1, 0, 1, 2, 0, 0, 0];
        let found = correlate(&answers, &ids, 4, &SETTINGS, &mut stream_rng(0, "t"));
        assert_eq!((found.giant.n, found.inside.n, found.outside.n), (1, 1, 1));
        let with = found.difference_with_giants.expect("both");
        assert!((with + 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_real_neighbourhood_stands_out_of_shuffles_and_a_random_one_does_not() {
        let mut rng = stream_rng(5, "clusters");
        // 40 ranks of 400 keys; the clusters decide who is right, or nothing does.
        let ids: Vec<u32> = (0..400).map(|key| key % 20).collect();
        let make = |follows: bool, rng: &mut ChaCha8Rng| {
            let mut answers = ranked(&[false; 40]);
            for answer in &mut answers {
                answer.correct = if follows {
                    answer.token % 20 > 9
                } else {
                    rng.random_bool(0.5)
                };
            }
            answers
        };
        let settings = CorrelationSettings {
            winners: 10,
            ..SETTINGS
        };
        let follows = correlate(&make(true, &mut rng), &ids, 20, &settings, &mut stream_rng(0, "a"));
        assert_eq!(follows.difference, Some(-1.0));
        let (p, centre) = against_shuffles(&[(follows.difference, &follows.shuffled)]).expect("shuffles");
        assert!(p < 0.01 && centre.abs() < 0.1, "{p} {centre}");
        let random: Vec<Correlation> = (0..30)
            .map(|_| correlate(&make(false, &mut rng), &ids, 20, &settings, &mut stream_rng(0, "a")))
            .collect();
        let random: Vec<WithShuffles<'_>> = random.iter().map(|c| (c.difference, &c.shuffled[..])).collect();
        let (p, _) = against_shuffles(&random).expect("shuffles");
        assert!(p > 0.01, "{p}");
    }

    #[test]
    fn few_ranks_leave_groups_empty_not_zero() {
        let found = correlate(&ranked(&[true]), &[0, 0], 1, &SETTINGS, &mut stream_rng(0, "t"));
        assert_eq!(
            (found.inside.precision, found.difference, found.matched_difference),
            (None, None, None)
        );
        assert_eq!(against_shuffles(&[(found.difference, &found.shuffled)]), None);
    }
}
