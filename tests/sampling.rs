//! The logits processors against those of transformers 5.23.
//!
//! Expected numbers: `RepetitionPenaltyLogitsProcessor`, `TemperatureLogitsWarper`, `TopKLogitsWarper`,
//! `TopPLogitsWarper` and `MinPLogitsWarper` in this order on `LOGITS` and `HISTORY`, then softmax; six decimals.

use tokselect::model::sampling::{Sampler, SamplingConfig};

const LOGITS: [f32; 10] = [1.5, -0.5, 0.25, 3.0, 2.0, -2.0, 2.0, 0.0, 1.0, 2.75];
const HISTORY: [u32; 5] = [3, 9, 3, 5, 0];

fn at(temperature: f32) -> SamplingConfig {
    SamplingConfig {
        temperature,
        ..SamplingConfig::default()
    }
}

fn check(config: &SamplingConfig, expected: &[(u32, f64)]) {
    let mut sampler = Sampler::new(config.clone()).unwrap();
    let got = sampler.distribution(&mut LOGITS.clone(), &HISTORY).unwrap();
    let ids = |list: &[(u32, f64)]| list.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!(ids(&got), ids(expected), "{config:?}");
    for ((id, p), (_, wanted)) in got.iter().zip(expected) {
        // Half a unit of the sixth decimal, and f32 rounding on their side.
        assert!(
            (p - wanted).abs() < 1e-6,
            "{config:?}: token {id}: {p} against {wanted}"
        );
    }
}

#[test]
fn temperature() {
    check(
        &at(1.0),
        &[
            (0, 0.073_794),
            (1, 0.009_987),
            (2, 0.021_142),
            (3, 0.330_723),
            (4, 0.121_666),
            (5, 0.002_228),
            (6, 0.121_666),
            (7, 0.016_466),
            (8, 0.044_759),
            (9, 0.257_568),
        ],
    );
    check(
        &at(0.5),
        &[
            (0, 0.025_495),
            (1, 0.000_467),
            (2, 0.002_093),
            (3, 0.512_078),
            (4, 0.069_302),
            (5, 0.000_023),
            (6, 0.069_302),
            (7, 0.001_269),
            (8, 0.009_379),
            (9, 0.310_591),
        ],
    );
}

#[test]
fn repetition_penalty_counts_each_token_once_and_follows_the_sign() {
    check(
        &SamplingConfig {
            repetition_penalty: Some(1.3),
            ..at(1.7)
        },
        &[
            (0, 0.095_074),
            (1, 0.035_938),
            (2, 0.055_867),
            (3, 0.187_426),
            (4, 0.156_396),
            (5, 0.010_449),
            (6, 0.156_396),
            (7, 0.048_227),
            (8, 0.086_848),
            (9, 0.167_379),
        ],
    );
    check(
        &SamplingConfig {
            repetition_penalty: Some(0.8),
            ..at(1.0)
        },
        &[
            (0, 0.064_729),
            (1, 0.006_021),
            (2, 0.012_746),
            (3, 0.422_088),
            (4, 0.073_348),
            (5, 0.002_004),
            (6, 0.073_348),
            (7, 0.009_927),
            (8, 0.026_983),
            (9, 0.308_806),
        ],
    );
}

/// Tokens 4 and 6 tie for the third place, and both stay.
const TOP_THREE: [(u32, f64); 4] = [(3, 0.397_684), (4, 0.146_300), (6, 0.146_300), (9, 0.309_717)];

#[test]
fn top_k() {
    let top_k = |k, temperature| SamplingConfig {
        top_k: Some(k),
        ..at(temperature)
    };
    check(&top_k(3, 1.0), &TOP_THREE);
    check(&top_k(1, 0.7), &[(3, 1.0)]);
    for off in [0, 10, 11] {
        let all = Sampler::new(at(1.0))
            .unwrap()
            .distribution(&mut LOGITS.clone(), &[])
            .unwrap();
        check(&top_k(off, 1.0), &all);
    }
}

#[test]
fn top_p() {
    let top_p = |p, temperature| SamplingConfig {
        top_p: Some(p),
        ..at(temperature)
    };
    check(&top_p(0.75, 1.0), &TOP_THREE);
    check(&top_p(0.3, 1.0), &[(3, 1.0)]);
    check(
        &top_p(0.95, 1.3),
        &[
            (0, 0.090_069),
            (2, 0.034_434),
            (3, 0.285_551),
            (4, 0.132_316),
            (6, 0.132_316),
            (7, 0.028_410),
            (8, 0.061_311),
            (9, 0.235_595),
        ],
    );
}

#[test]
fn min_p() {
    let min_p = |p, temperature| SamplingConfig {
        min_p: Some(p),
        ..at(temperature)
    };
    check(
        &min_p(0.2, 1.0),
        &[
            (0, 0.081_503),
            (3, 0.365_271),
            (4, 0.134_376),
            (6, 0.134_376),
            (9, 0.284_474),
        ],
    );
    check(
        &min_p(0.5, 2.0),
        &[(3, 0.323_044), (4, 0.195_936), (6, 0.195_936), (9, 0.285_085)],
    );
}

#[test]
fn all_together_in_their_order() {
    check(
        &SamplingConfig {
            temperature: 0.8,
            top_k: Some(6),
            top_p: Some(0.9),
            min_p: Some(0.1),
            repetition_penalty: Some(1.2),
            seed: 0,
        },
        &[
            (0, 0.068_706),
            (3, 0.327_776),
            (4, 0.175_446),
            (6, 0.175_446),
            (9, 0.252_627),
        ],
    );
}

/// The shortcut that skips negligible tokens must not change which tokens top-p keeps.
#[test]
fn top_p_of_a_large_vocabulary_is_that_of_a_full_sort() {
    let mut logits: Vec<f32> = (0..50_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 12) as f32 / 1e5)
        .collect();
    let (temperature, top_p) = (0.9, 0.92);
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let mut weights: Vec<(u32, f64)> = (0..)
        .zip(&logits)
        .map(|(id, l)| (id, (f64::from(l - max) / f64::from(temperature)).exp()))
        .collect();
    weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let total: f64 = weights.iter().map(|(_, w)| w).sum();
    let mut mass = 0.0;
    let mut wanted: Vec<u32> = Vec::new();
    for (id, weight) in weights {
        if mass >= f64::from(top_p) * total {
            break;
        }
        mass += weight;
        wanted.push(id);
    }
    wanted.sort_unstable();
    let config = SamplingConfig {
        top_p: Some(top_p),
        ..at(temperature)
    };
    let got = Sampler::new(config).unwrap().distribution(&mut logits, &[]).unwrap();
    let got: Vec<u32> = got.into_iter().map(|(id, _)| id).collect();
    assert_eq!(got, wanted);
    assert!(got.len() > 100 && got.len() < 49_000, "{}", got.len());
}

/// The temperature 0 of a chat with repetitions: greedy after the penalty, without a draw.
#[test]
fn greedy_after_the_penalty() {
    let config = SamplingConfig {
        repetition_penalty: Some(1.6),
        ..SamplingConfig::default()
    };
    // 3.0 / 1.6 and 2.75 / 1.6 fall below the tie of tokens 4 and 6.
    let mut sampler = Sampler::new(config).unwrap();
    assert_eq!(sampler.sample(&mut LOGITS.clone(), &HISTORY).unwrap(), 4);
    // Ids beyond the logits (a padded history) are no reason to fail.
    assert_eq!(sampler.sample(&mut LOGITS.clone(), &[10, u32::MAX]).unwrap(), 3);
}
