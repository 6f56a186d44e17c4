//! Training on a GPU against the CPU in f64. Without a GPU the test says so and passes; with `TOKSELECT_REQUIRE_GPU=1` it
//! fails.
//!
//! Gradients of every tensor over segments that fill the memory and move it on, under the same dropout masks; on the GPU
//! each full length runs launch by launch, is recorded, and is run again from its recording. The bounds are those of
//! `rcmha-train --check-gradients`, with their reasons in [`Bounds`].
#![allow(clippy::print_stderr, reason = "the test says what it compared")]

mod common;

use clap::ValueEnum;
use common::gpu;
use tokselect::kernels::cuda::training::Precision;
use tokselect::train::attention::{AttentionKind, Convolution, TableSize};
use tokselect::train::engine::check::{Bounds, check};
use tokselect::train::engine::{EngineConfig, Place};
use tokselect::train::model_config::ModelConfig;
use tokselect::train::text::Streams;

/// Sizes of a model and of its batch.
struct Shape {
    vocab: usize,
    d_model: usize,
    heads: usize,
    d_ffn: usize,
    segment: usize,
    memory: usize,
    batch: usize,
    accumulate: usize,
    kernel: usize,
    per_head: bool,
    dropout: f64,
}

/// One that is a multiple of no tile, and ends that others lack.
const SMALL: Shape = Shape {
    vocab: 11,
    d_model: 30,
    heads: 3,
    d_ffn: 41,
    segment: 17,
    memory: 5,
    batch: 3,
    accumulate: 3,
    kernel: 5,
    per_head: true,
    dropout: 0.2,
};

const SHAPES: [Shape; 5] = [
    SMALL,
    // Several tiles of rows and keys, of which the last are not full.
    Shape {
        vocab: 65,
        d_model: 128,
        heads: 8,
        d_ffn: 256,
        segment: 96,
        memory: 144,
        batch: 16,
        accumulate: 1,
        kernel: 3,
        per_head: false,
        dropout: 0.1,
    },
    // The paper's: a memory of many segments.
    Shape {
        vocab: 65,
        d_model: 128,
        heads: 8,
        d_ffn: 256,
        segment: 2,
        memory: 32,
        batch: 32,
        accumulate: 2,
        kernel: 3,
        per_head: false,
        dropout: 0.0,
    },
    // No memory, one head, a vocabulary whose gradient is summed in one share.
    Shape {
        vocab: 1100,
        d_model: 64,
        heads: 1,
        segment: 64,
        memory: 0,
        ..SMALL
    },
    // Heads of 4 elements, whose rows are shorter than a tile of the product.
    Shape {
        d_model: 16,
        heads: 4,
        segment: 33,
        memory: 31,
        dropout: 0.0,
        ..SMALL
    },
];

fn compare(attention: AttentionKind, shape: &Shape, place: &Place) {
    let model = ModelConfig {
        attention,
        vocab: shape.vocab,
        layers: 2,
        d_model: shape.d_model,
        heads: shape.heads,
        d_ffn: shape.d_ffn,
        memory: shape.memory,
        segment: shape.segment,
        convolution: Convolution {
            kernel: shape.kernel,
            per_head: shape.per_head,
            ..Convolution::default()
        },
        table: TableSize::Clipped,
    };
    let config = EngineConfig {
        batch: shape.batch,
        accumulate: shape.accumulate,
        recompute: true,
        dropout: shape.dropout,
    };
    let length = 8 * shape.segment + 1;
    let ids: Vec<u32> = (0..(shape.batch * length) as u64)
        .map(|i| ((i * i + i / 7) % shape.vocab as u64) as u32)
        .collect();
    let streams = Streams::new(&ids, shape.batch, shape.segment, "training").expect("long enough");
    let found = check(model, config, &streams, 3, place).expect("a comparison");
    let (tensor, error) = found.worst();
    let name = format!(
        "{} {} d {} heads {} segment {} memory {} batch {}",
        attention.name(),
        place.dtype(),
        shape.d_model,
        shape.heads,
        shape.segment,
        shape.memory,
        shape.batch
    );
    eprintln!(
        "{name}: {tensor} {error:.1e}, norm {:.1e}, loss {:.1e}, switched {} {:.1e}",
        found.norm_error, found.loss_error, found.switched_units, found.switched_input
    );
    let bounds = Bounds::new(place);
    assert!(found.is_within(&bounds), "{name}: {bounds:?} {found:?}");
}

fn compare_all(place: &Place) {
    for shape in &SHAPES {
        for &attention in AttentionKind::value_variants() {
            compare(attention, shape, place);
        }
    }
}

/// What the GPU is held to, where there is none as well.
#[test]
fn the_cpu_has_the_gradients_of_f64() {
    compare_all(&Place::Cpu);
}

#[test]
fn a_gpu_has_the_gradients_of_f64() {
    let Some(gpu) = gpu() else { return };
    for precision in [Precision::F32, Precision::Bf16] {
        compare_all(&Place::Cuda(gpu.clone(), precision));
    }
}
