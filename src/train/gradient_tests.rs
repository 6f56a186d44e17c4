//! The whole model against finite differences and against itself, for every attention and option.

use super::attention::core::Keep;
use super::attention::{AttentionKind, Convolution, TableSize};
use super::cross_entropy::Outcome;
use super::dropout::Dropout;
use super::pool::Pool;
use super::scalar::Scalar;
use super::transformer_xl::{Memory, ModelConfig, Pass, Segment, TransformerXl};
use crate::random::stream_rng;
use clap::ValueEnum;
use rand::Rng;

const BATCH: usize = 2;

fn config(attention: AttentionKind) -> ModelConfig {
    ModelConfig {
        attention,
        vocab: 7,
        layers: 2,
        d_model: 8,
        heads: 2,
        d_ffn: 12,
        memory: 5,
        segment: 4,
        convolution: Convolution::default(),
        table: TableSize::Clipped,
    }
}

fn no_dropout(keep: Keep) -> Pass<'static> {
    Pass {
        keep,
        scale: 0.125,
        dropout: Dropout::none(),
        watch: None,
    }
}

/// Random parameters everywhere: tables that begin with zeros would hide mistakes.
fn parameters(model: &TransformerXl) -> Vec<f64> {
    let mut rng = stream_rng(1, "parameters");
    let mut data = model.layout.initial::<f64>(1);
    for spec in model.layout.specs() {
        if !spec.name.starts_with("embedding") {
            data[spec.range()]
                .iter_mut()
                .for_each(|value| *value = rng.random_range(-0.7..0.7));
        }
    }
    data
}

fn ids(count: usize, vocab: usize, stream: &str) -> Vec<u32> {
    let mut rng = stream_rng(2, stream);
    (0..count).map(|_| rng.random_range(0..vocab as u32)).collect()
}

/// Inputs and targets of segment `step`.
fn text(model: &TransformerXl, step: usize) -> [Vec<u32>; 2] {
    let rows = model.config.segment * BATCH;
    ["in", "out"].map(|side| ids(rows, model.config.vocab, &format!("{side}{step}")))
}

fn segment([inputs, targets]: &[Vec<u32>; 2]) -> Segment<'_> {
    Segment {
        inputs,
        targets,
        batch: BATCH,
    }
}

/// Three segments, the gradient of the last: its memory is full and older rows have been dropped.
fn run<T: Scalar>(model: &TransformerXl, data: &[T], pass: &Pass<'_>) -> (Outcome, Vec<T>, Memory<T>) {
    let (mut pool, mut memory) = (Pool::default(), Memory::empty(model.config.layers));
    let mut grads = model.layout.zeros();
    let mut outcome = Outcome::default();
    for step in 0..3 {
        let text = text(model, step);
        grads.fill(T::ZERO);
        outcome = model.train(data, &mut grads, segment(&text), &mut memory, pass, &mut pool);
    }
    pool.reset_peak();
    assert_eq!(pool.peak_bytes(), 0, "a buffer was not given back");
    (outcome, grads, memory)
}

/// Loss of the last segment with memory made under `data`, which finite differences must not change.
fn last_loss(model: &TransformerXl, data: &[f64], memory: &Memory<f64>, pass: &Pass<'_>) -> f64 {
    let text = text(model, 2);
    let mut grads = model.layout.zeros();
    let mut memory = memory.clone();
    model
        .train(
            data,
            &mut grads,
            segment(&text),
            &mut memory,
            pass,
            &mut Pool::default(),
        )
        .loss
        * pass.scale
}

fn memory_before_last(model: &TransformerXl, data: &[f64], pass: &Pass<'_>) -> Memory<f64> {
    let (mut pool, mut memory) = (Pool::default(), Memory::empty(model.config.layers));
    let mut grads = model.layout.zeros();
    for step in 0..2 {
        let text = text(model, step);
        model.train(data, &mut grads, segment(&text), &mut memory, pass, &mut pool);
    }
    memory
}

fn check(config: ModelConfig, pass: &Pass<'_>) {
    let model = TransformerXl::new(config).unwrap();
    let mut data = parameters(&model);
    let (_, grads, _) = run(&model, &data, pass);
    let memory = memory_before_last(&model, &data, pass);
    let mut rng = stream_rng(3, "places");
    let (mut nonzero, mut checked) = (0, 0);
    for spec in model.layout.specs() {
        for _ in 0..6 {
            let at = spec.range().start + rng.random_range(0..spec.len());
            let kept = data[at];
            let mut difference = |step: f64| {
                data[at] = kept + step;
                let above = last_loss(&model, &data, &memory, pass);
                data[at] = kept - step;
                let below = last_loss(&model, &data, &memory, pass);
                data[at] = kept;
                (above - below) / (2.0 * step)
            };
            // Rounding of two losses over 2e-5 is about 1e-11; the third derivative adds about 1e-9. A ReLU that switches
            // between the two points is off by more; within the shorter step it hardly can.
            let close = |expected: f64, bound: f64| (grads[at] - expected).abs() < bound * expected.abs().max(1.0);
            let expected = difference(1e-5);
            if !close(expected, 1e-7) {
                let expected = difference(1e-7);
                assert!(
                    close(expected, 1e-6),
                    "{config:?}: {} at {at}: {} and {expected}",
                    spec.name,
                    grads[at]
                );
            }
            checked += 1;
            nonzero += usize::from(expected.abs() > 1e-9);
        }
    }
    assert!(nonzero * 2 > checked, "{nonzero} of {checked} gradients are not 0");
}

#[test]
fn gradients_of_every_attention_equal_finite_differences() {
    for &kind in AttentionKind::value_variants() {
        check(config(kind), &no_dropout(Keep::Weights));
    }
}

#[test]
fn gradients_with_every_option_equal_finite_differences() {
    let pass = no_dropout(Keep::Statistics);
    for (kernel, per_head, on) in [
        (1, false, 7),
        (5, true, 7),
        (3, false, 1),
        (2, true, 2),
        (3, false, 4),
        (3, false, 0),
    ] {
        for kind in [AttentionKind::Rcmha, AttentionKind::RcmhaCarry, AttentionKind::RopeConv] {
            let convolution = Convolution {
                kernel,
                query: on & 1 > 0,
                key: on & 2 > 0,
                value: on & 4 > 0,
                per_head,
            };
            check(
                ModelConfig {
                    convolution,
                    ..config(kind)
                },
                &pass,
            );
        }
    }
    let full = ModelConfig {
        table: TableSize::Full(16),
        ..config(AttentionKind::Rmha)
    };
    check(full, &pass);
    let none = ModelConfig {
        memory: 0,
        ..config(AttentionKind::RcmhaCarry)
    };
    check(none, &pass);
    let short = ModelConfig {
        segment: 1,
        ..config(AttentionKind::Rcmha)
    };
    check(short, &pass);
}

#[test]
fn gradients_with_dropout_equal_finite_differences_under_the_same_masks() {
    for keep in [Keep::Weights, Keep::Statistics] {
        let dropout = Dropout::new(0.3, 5, "1".into());
        check(
            config(AttentionKind::Rcmha),
            &Pass {
                keep,
                scale: 0.125,
                dropout,
                watch: None,
            },
        );
    }
}

/// More than one block of rows, and a head size with every kind of column tail.
#[test]
fn long_segments_cross_blocks_of_rows() {
    let long = ModelConfig {
        segment: 70,
        memory: 40,
        d_model: 26,
        layers: 1,
        ..config(AttentionKind::Rcmha)
    };
    check(long, &no_dropout(Keep::Statistics));
}

#[test]
fn weights_computed_again_give_the_same_bits() {
    for &kind in AttentionKind::value_variants() {
        let config = ModelConfig {
            segment: 40,
            ..config(kind)
        };
        let model = TransformerXl::new(config).unwrap();
        let data: Vec<f32> = parameters(&model).iter().map(|&v| v as f32).collect();
        let kept = run(&model, &data, &no_dropout(Keep::Weights));
        let again = run(&model, &data, &no_dropout(Keep::Statistics));
        assert_eq!(kept, again, "{kind:?}");
    }
}

#[test]
fn threads_do_not_change_the_bits() {
    let model = TransformerXl::new(ModelConfig {
        segment: 300,
        ..config(AttentionKind::Rcmha)
    })
    .unwrap();
    let data: Vec<f32> = parameters(&model).iter().map(|&v| v as f32).collect();
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&model, &data, &no_dropout(Keep::Weights)))
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn a_future_token_changes_nothing() {
    for &kind in AttentionKind::value_variants() {
        let model = TransformerXl::new(config(kind)).unwrap();
        let data = parameters(&model);
        let rows = model.config.segment * BATCH;
        let earlier = ids(rows, 7, "earlier");
        let logits = |inputs: &[u32]| {
            let (mut pool, mut memory) = (Pool::default(), Memory::empty(2));
            for ids in [&earlier, inputs] {
                let segment = Segment {
                    inputs: ids,
                    targets: &[],
                    batch: BATCH,
                };
                let out = model.logits(&data, segment, &mut memory, &mut pool);
                if ids.as_ptr() == inputs.as_ptr() {
                    return out;
                }
            }
            unreachable!()
        };
        let inputs = ids(rows, 7, "now");
        let before = logits(&inputs);
        for changed in 0..rows {
            let mut other = inputs.clone();
            other[changed] = (other[changed] + 1) % 7;
            let after = logits(&other);
            let (time, stream) = (changed / BATCH, changed % BATCH);
            for row in 0..rows {
                let same = before[row * 7..][..7] == after[row * 7..][..7];
                let sees = row % BATCH == stream && row / BATCH >= time;
                assert_eq!(same, !sees, "{kind:?}: row {row} after a change of row {changed}");
            }
        }
    }
}

/// A stream read in one segment or in pieces gives the same logits while the memory holds all of it, when nothing is
/// cut at the borders: no convolution, or one that carries on.
#[test]
fn memory_replaces_a_longer_segment() {
    for kind in [AttentionKind::Rmha, AttentionKind::RcmhaCarry] {
        let config = ModelConfig {
            segment: 8,
            memory: 8,
            layers: 1,
            ..config(kind)
        };
        let model = TransformerXl::new(config).unwrap();
        let data = parameters(&model);
        let ids = ids(8 * BATCH, 7, "text");
        let read = |piece: usize| {
            let (mut pool, mut memory) = (Pool::default(), Memory::empty(1));
            let mut all = Vec::new();
            for inputs in ids.chunks(piece * BATCH) {
                let segment = Segment {
                    inputs,
                    targets: &[],
                    batch: BATCH,
                };
                all.extend(model.logits(&data, segment, &mut memory, &mut pool));
            }
            all
        };
        let whole = read(8);
        for piece in [1, 2, 4] {
            for (a, b) in whole.iter().zip(read(piece)) {
                assert!((a - b).abs() < 1e-12, "{kind:?} in pieces of {piece}");
            }
        }
    }
}

#[test]
fn the_reference_model_has_the_published_codes_parameters() {
    let config = ModelConfig {
        attention: AttentionKind::Rmha,
        vocab: 65,
        layers: 6,
        d_model: 128,
        heads: 8,
        d_ffn: 256,
        memory: 32,
        segment: 2,
        convolution: Convolution::default(),
        table: TableSize::Full(4096),
    };
    let count = |attention| {
        TransformerXl::new(ModelConfig { attention, ..config })
            .unwrap()
            .layout
            .count()
    };
    assert_eq!(count(AttentionKind::Rmha), 7_495_745);
    assert_eq!(count(AttentionKind::Rcmha) - count(AttentionKind::Rmha), 1_152);
}
