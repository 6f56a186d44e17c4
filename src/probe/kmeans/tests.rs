//! k-means against scikit-learn (`scripts/reference_kmeans.py`) and by hand.

use super::*;
use crate::kernels::cpu::Cpu;
use crate::kernels::reference::Reference;
use serde_json::Value;

const FIXTURE: &str = include_str!("../../../tests/fixtures/kmeans.json");

fn numbers(value: &Value) -> Vec<f32> {
    let list = value.as_array().expect("a list");
    list.iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

fn config(clusters: usize) -> KMeansConfig {
    KMeansConfig {
        clusters,
        distance: Distance::Euclidean,
        max_iterations: 300,
        tolerance: 0.0,
        restarts: 1,
        seed: 0,
    }
}

fn each_case(check: impl Fn(&Value, Rows, usize)) {
    let fixture: Value = serde_json::from_str(FIXTURE).expect("JSON");
    for case in fixture["cases"].as_array().expect("cases") {
        let rows = Rows {
            data: numbers(&case["rows"]),
            dim: case["dim"].as_u64().expect("a dimension") as usize,
        };
        check(case, rows, case["clusters"].as_u64().expect("K") as usize);
    }
}

#[test]
fn the_same_start_gives_the_labels_of_scikit_learn() {
    each_case(|case, rows, clusters| {
        let name = &case["name"];
        let labels: Vec<u32> = numbers(&case["labels"]).into_iter().map(|l| l as u32).collect();
        let inertia = case["inertia"].as_f64().expect("inertia");
        let start = numbers(&case["start"]);
        let cpu = fit_from(
            &Cpu,
            &mut rows.clone(),
            start.clone(),
            &config(clusters),
            &mut |_, _| true,
        );
        let plain = fit_from(&Reference, &mut rows.clone(), start, &config(clusters), &mut |_, _| {
            true
        });
        for found in [cpu.expect("runs"), plain.expect("runs")] {
            assert_eq!(found.labels, labels, "{name}");
            assert!(
                (found.inertia / inertia - 1.0).abs() < 1e-5,
                "{name}: {}",
                found.inertia
            );
            assert!(found.converged, "{name}");
            for (found, wanted) in found.centres.iter().zip(numbers(&case["centres"])) {
                assert!((found - wanted).abs() < 1e-4, "{name}: {found}, not {wanted}");
            }
        }
    });
}

#[test]
fn own_seeding_comes_within_a_hundredth_of_scikit_learn() {
    each_case(|case, rows, clusters| {
        let settings = KMeansConfig {
            restarts: 20,
            ..config(clusters)
        };
        let found = fit(&Cpu, &mut rows.clone(), &settings, &mut |_, _| true).expect("runs");
        let best = case["best_inertia"].as_f64().expect("inertia");
        assert!(
            found.inertia <= best * 1.01,
            "{}: {} against {best}",
            case["name"],
            found.inertia
        );
    });
}

#[test]
fn equal_distances_go_to_the_lower_cluster_and_equal_seeds_to_equal_bytes() {
    let mut line = Rows {
        data: vec![-1.0, 0.0, 1.0],
        dim: 1,
    };
    let start = vec![-1.0, 1.0];
    let one = KMeansConfig {
        max_iterations: 1,
        ..config(2)
    };
    let norms = squared_norms(&line.data, 1);
    let mut keys = Cpu.hold(&line, &norms, 2).expect("room");
    keys.set_centres(start.clone()).expect("fit");
    assert_eq!(keys.assign().expect("runs").labels, [0, 0, 1]);
    drop(keys);
    let found = fit_from(&Cpu, &mut line, start, &one, &mut |_, _| true).expect("runs");
    assert_eq!((found.iterations, found.converged), (1, false));
    each_case(|_, rows, clusters| {
        let run = || fit(&Cpu, &mut rows.clone(), &config(clusters), &mut |_, _| true).expect("runs");
        assert_eq!(run(), run());
    });
}

#[test]
fn an_empty_cluster_gets_the_farthest_key_of_a_cluster_that_keeps_another() {
    // Distances of the keys to their centres; key 3 is alone in its cluster and stays.
    let mut labels = [0, 0, 0, 1];
    assert_eq!(repair(&mut labels, &[0.5, 2.0, 2.0, 9.0], 4), 2);
    assert_eq!(labels, [0, 2, 3, 1]);
    let mut same = [0, 0];
    assert_eq!(repair(&mut same, &[0.0, 0.0], 2), 0);
}

#[test]
fn cosines_do_not_see_lengths() {
    // Two directions, lengths from 1 to 100, and a padding row of zeros.
    let mut data = Vec::new();
    for length in [1.0f32, 10.0, 100.0] {
        data.extend([length, 0.01 * length, 0.02 * length, length]);
    }
    data.extend([0.0, 0.0]);
    let mut rows = Rows { data, dim: 2 };
    let settings = KMeansConfig {
        distance: Distance::Cosine,
        restarts: 4,
        ..config(2)
    };
    let found = fit(&Cpu, &mut rows, &settings, &mut |_, _| true).expect("runs");
    let [a, b] = [found.labels[0], found.labels[1]];
    assert_ne!(a, b);
    assert_eq!(found.labels[..6], [a, b, a, b, a, b]);
    for centre in found.centres.chunks_exact(2) {
        assert!((centre[0].hypot(centre[1]) - 1.0).abs() < 1e-6);
    }
    // The padding row is at cosine 0 from everything: distance 1. The six others lie on their centres.
    assert!((found.inertia - 1.0).abs() < 1e-6, "{}", found.inertia);
}

#[test]
fn start_centres_are_brought_to_unit_length_for_cosines() {
    // The long centre is at 45 degrees from the key, the short one on it.
    let mut rows = Rows {
        data: vec![1.0, 0.0, 0.9, 0.1, 0.0, 1.0],
        dim: 2,
    };
    let settings = KMeansConfig {
        distance: Distance::Cosine,
        max_iterations: 0,
        ..config(2)
    };
    let found = fit_from(&Cpu, &mut rows, vec![9.0, 9.0, 0.1, 0.0], &settings, &mut |_, _| true).expect("runs");
    assert_eq!(found.labels, [1, 1, 0]);
    assert!(found.inertia < 0.4, "{}", found.inertia);
}

#[test]
fn more_clusters_than_keys_are_refused() {
    let mut rows = Rows {
        data: vec![0.0; 4],
        dim: 2,
    };
    let error = fit(&Cpu, &mut rows, &config(3), &mut |_, _| true).expect_err("two keys");
    assert!(error.to_string().contains("--k 3"), "{error}");
}
