//! Gradients of an engine against those of the CPU's layers in f64, which finite differences and `PyTorch` vouch for.

use super::{EngineConfig, Group, Place};
use crate::error::Result;
use crate::random::stream_rng;
use crate::train::attention::core::Keep;
use crate::train::cross_entropy::Outcome;
use crate::train::dropout::Dropout;
use crate::train::model_config::ModelConfig;
use crate::train::pool::Pool;
use crate::train::text::Streams;
use crate::train::transformer_xl::{Memory, Pass, Segment, TransformerXl};
use rand::Rng;

/// Segments that are read one after the other; the last is compared. Enough for a memory of up to two segments to be full
/// and to drop its oldest rows.
const SEGMENTS: usize = 4;

/// What a comparison found. Errors of tensors are norms of differences, relative to the norm of the tensor's gradient, or to
/// that of an average tensor of its size where its own is smaller (the bias of keys has none: softmax does not see it).
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Error of the last segment's loss, relative.
    pub loss_error: f64,
    /// Predictions of the last segment that are right there and here.
    pub correct: [u64; 2],
    /// Error of the gradient's norm, relative.
    pub norm_error: f64,
    /// Name and error of every tensor.
    pub tensors: Vec<(String, f64)>,
}

impl Check {
    /// The tensor with the largest error.
    pub fn worst(&self) -> (&str, f64) {
        let mut worst = ("none", 0.0);
        for (name, error) in &self.tensors {
            // A NaN is worse than anything.
            if *error > worst.1 || error.is_nan() {
                worst = (name, *error);
            }
        }
        worst
    }
}

/// The beginning of training with some noise on every tensor: tables that begin with zeros would hide mistakes.
fn parameters(model: &TransformerXl, seed: u64) -> Vec<f32> {
    let mut data = model.layout.initial::<f32>(seed);
    for spec in model.layout.specs() {
        let mut rng = stream_rng(seed, &format!("check/{}", spec.name));
        for value in &mut data[spec.range()] {
            *value += rng.random_range(-0.1..0.1);
        }
    }
    data
}

/// Compares the gradients of `model` on `place` over the beginning of `streams`.
pub fn check(model: ModelConfig, config: EngineConfig, streams: &Streams, seed: u64, place: &Place) -> Result<Check> {
    let model = TransformerXl::new(model)?;
    let data = parameters(&model, seed);
    let mut engine = place.engine(&model, config, data.clone())?;
    let wide: Vec<f64> = data.iter().map(|&value| f64::from(value)).collect();
    let layers = model.config.layers;
    let mut memories = vec![Memory::<f64>::empty(layers); config.accumulate];
    let (mut pool, mut expected) = (Pool::default(), model.layout.zeros::<f64>());
    let (mut outcome, mut found) = (Outcome::default(), None);
    let group = config.group();
    for number in 0..SEGMENTS.min(streams.segments()) {
        expected.fill(0.0);
        outcome = Outcome::default();
        let ids = (0..config.accumulate).map(|at| streams.segment(number, at * group..(at + 1) * group));
        let ids: Vec<_> = ids.collect();
        let groups: Vec<_> = ids
            .iter()
            .enumerate()
            .map(|(at, (inputs, targets))| Group {
                segment: Segment {
                    inputs,
                    targets,
                    batch: group,
                },
                dropout: Dropout::new(config.dropout, seed, format!("{number}/{at}")),
            })
            .collect();
        for (group, memory) in groups.iter().zip(&mut memories) {
            let pass = Pass {
                keep: Keep::Statistics,
                scale: 1.0 / (config.batch * model.config.segment) as f64,
                dropout: group.dropout.clone(),
            };
            outcome.add(model.train(&wide, &mut expected, group.segment, memory, &pass, &mut pool));
        }
        found = Some(engine.gradients(&groups)?);
    }
    let got = engine.last_gradients()?;
    let whole = expected.iter().map(|x| x * x).sum::<f64>();
    let average = whole / model.layout.count() as f64;
    let error = |range: std::ops::Range<usize>| {
        let pairs = expected[range.clone()].iter().zip(&got[range.clone()]);
        let difference = pairs.map(|(x, &y)| (x - f64::from(y)).powi(2)).sum::<f64>();
        let own = expected[range.clone()].iter().map(|x| x * x).sum::<f64>();
        (difference / own.max(average * range.len() as f64)).sqrt()
    };
    let tensors = model.layout.specs().iter();
    let tensors = tensors.map(|spec| (spec.name.clone(), error(spec.range()))).collect();
    let found = found.unwrap_or(super::Gradient {
        outcome: Outcome::default(),
        norm: f64::NAN,
    });
    Ok(Check {
        loss_error: (found.outcome.loss - outcome.loss).abs() / outcome.loss,
        correct: [found.outcome.correct, outcome.correct],
        norm_error: (found.norm - whole.sqrt()).abs() / whole.sqrt(),
        tensors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::attention::{AttentionKind, Convolution, TableSize};
    use clap::ValueEnum;

    #[test]
    fn the_cpu_engine_passes_for_every_attention() {
        let ids: Vec<u32> = (0..400).map(|i| (i * i + i / 7) % 11).collect();
        for &attention in AttentionKind::value_variants() {
            let model = ModelConfig {
                attention,
                vocab: 11,
                layers: 2,
                d_model: 16,
                heads: 2,
                d_ffn: 24,
                memory: 9,
                segment: 6,
                convolution: Convolution::default(),
                table: TableSize::Clipped,
            };
            let config = EngineConfig {
                batch: 4,
                accumulate: 2,
                recompute: true,
                dropout: 0.2,
            };
            let streams = Streams::new(&ids, 4, 6, "training").unwrap();
            let check = check(model, config, &streams, 3, &Place::Cpu).unwrap();
            // Rounding of f32 sums of some hundred terms.
            assert!(check.worst().1 < 1e-5, "{attention:?}: {:?}", check.worst());
            assert!(check.loss_error < 1e-6 && check.norm_error < 1e-5, "{check:?}");
            assert_eq!(check.correct[0], check.correct[1]);
        }
    }
}
