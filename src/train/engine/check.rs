//! Gradients of an engine against those of the CPU's layers in f64, which finite differences and `PyTorch` vouch for.

use super::{Engine, EngineConfig, Gradient, Group, Place, Reading};
use crate::error::Result;
use crate::kernels::cuda::training::Precision;
use crate::random::stream_rng;
use crate::train::attention::core::Keep;
use crate::train::cross_entropy::Outcome;
use crate::train::dropout::Dropout;
use crate::train::model_config::ModelConfig;
use crate::train::parameters::Layout;
use crate::train::pool::Pool;
use crate::train::text::Streams;
use crate::train::transformer_xl::{Memory, Pass, Segment, TransformerXl};
use rand::Rng;
use std::ops::Range;

/// Times that a text is read until memory is full: on a GPU the pass over full memory then has been run launch by launch,
/// been recorded as a graph, and been run again from the recording.
const ROUNDS: usize = 3;

/// What counts as agreement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Of an error. In f32 sums of some thousand terms in another order; in bf16, whose numbers have eight bits, the
    /// roundings of every activation on the way, which a convolution's few weights and the scores of attention add up most.
    pub usual: f64,
    /// Of an error that one round has and another has not. A hidden unit within rounding of 0 may be on here and off there,
    /// which changes the gradient by about the share of one row; of what is out of place, such as a recording that reads
    /// old ids, the error is about 1.
    pub single: f64,
}

impl Bounds {
    /// Those of `place` for steps over `rows` positions.
    pub fn new(place: &Place, rows: usize) -> Self {
        let usual = match place {
            Place::Cpu | Place::Cuda(_, Precision::F32) => 1e-4,
            Place::Cuda(_, Precision::Bf16) => 5e-2,
        };
        Self {
            usual,
            single: usual + 2.0 / (rows as f64).sqrt(),
        }
    }
}

/// What a comparison found.
///
/// Errors of tensors are norms of differences, relative to the norm of the tensor's gradient, or to that of an average
/// tensor of its size where its own is smaller (the bias of keys has none: softmax does not see it). Each is the largest
/// over all amounts of memory of the least of the rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Error of a segment's loss, relative.
    pub loss_error: f64,
    /// Predictions that are right there and here.
    pub correct: [u64; 2],
    /// Error of the gradient's norm, relative.
    pub norm_error: f64,
    /// Name and error of every tensor.
    pub tensors: Vec<(String, f64)>,
    /// Largest error of any kind in any round.
    pub single_error: f64,
}

impl Check {
    /// The tensor with the largest error.
    pub fn worst(&self) -> (&str, f64) {
        let mut worst = ("none", 0.0);
        for (name, error) in &self.tensors {
            if worse(worst.1, *error) > worst.1 || error.is_nan() {
                worst = (name, *error);
            }
        }
        worst
    }

    /// Whether all errors are within `bounds`.
    pub fn is_within(&self, bounds: &Bounds) -> bool {
        let usual = [self.loss_error, self.norm_error, self.worst().1];
        usual.into_iter().all(|error| error <= bounds.usual) && self.single_error <= bounds.single
    }
}

/// The larger error; a NaN is worse than anything.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Errors of one segment: of the loss, of the gradient's norm, of every tensor.
fn errors(layout: &Layout, expected: &[f64], got: &[f32], outcome: Outcome, found: &Gradient) -> Vec<f64> {
    let whole = expected.iter().map(|x| x * x).sum::<f64>();
    let average = whole / layout.count() as f64;
    let tensor = |range: Range<usize>| {
        let pairs = expected[range.clone()].iter().zip(&got[range.clone()]);
        let difference = pairs.map(|(x, &y)| (x - f64::from(y)).powi(2)).sum::<f64>();
        let own = expected[range.clone()].iter().map(|x| x * x).sum::<f64>();
        (difference / own.max(average * range.len() as f64)).sqrt()
    };
    let loss = (found.outcome.loss - outcome.loss).abs() / outcome.loss;
    let norm = (found.norm - whole.sqrt()).abs() / whole.sqrt();
    let tensors = layout.specs().iter().map(|spec| tensor(spec.range()));
    [loss, norm].into_iter().chain(tensors).collect()
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

/// Compares the gradients of `model` on `place` over the beginning of `streams`: segment by segment until memory is full, in
/// several rounds. A text that ends before is read again.
pub fn check(model: ModelConfig, config: EngineConfig, streams: &Streams, seed: u64, place: &Place) -> Result<Check> {
    let model = TransformerXl::new(model)?;
    let data = parameters(&model, seed);
    let mut engine = place.engine(&model, config, data.clone())?;
    compare(&model, config, streams, seed, &data, engine.as_mut())
}

fn compare(
    model: &TransformerXl,
    config: EngineConfig,
    streams: &Streams,
    seed: u64,
    data: &[f32],
    engine: &mut dyn Engine,
) -> Result<Check> {
    let wide: Vec<f64> = data.iter().map(|&value| f64::from(value)).collect();
    let (mut pool, mut expected) = (Pool::default(), model.layout.zeros::<f64>());
    let mut memories = vec![Memory::<f64>::empty(model.config.layers); config.accumulate];
    let (specs, group) = (model.layout.specs(), config.group());
    // The last one finds memory full.
    let segments = model.stored_rows().div_ceil(model.config.segment) + 1;
    let mut least = vec![vec![f64::INFINITY; 2 + specs.len()]; segments];
    let (mut single_error, mut correct) = (0.0, [0, 0]);
    for number in 0..ROUNDS * segments {
        let at = number % segments;
        if at == 0 {
            engine.forget(Reading::Training);
            memories.fill(Memory::empty(model.config.layers));
        }
        expected.fill(0.0);
        let mut outcome = Outcome::default();
        let place = number % streams.segments();
        let ids = (0..config.accumulate).map(|at| streams.segment(place, at * group..(at + 1) * group));
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
        let found = engine.gradients(&groups)?;
        correct = [correct[0] + found.outcome.correct, correct[1] + outcome.correct];
        let errors = errors(&model.layout, &expected, &engine.last_gradients()?, outcome, &found);
        for (least, error) in least[at].iter_mut().zip(errors) {
            single_error = worse(single_error, error);
            *least = least.min(error);
        }
    }
    let usual = |which: usize| least.iter().map(|segment| segment[which]).fold(0.0, worse);
    let tensors = specs.iter().enumerate();
    Ok(Check {
        loss_error: usual(0),
        norm_error: usual(1),
        tensors: tensors.map(|(at, spec)| (spec.name.clone(), usual(2 + at))).collect(),
        correct,
        single_error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::attention::{AttentionKind, Convolution, TableSize};
    use crate::train::engine::{CpuEngine, State};
    use crate::train::trainer::MemoryUse;
    use clap::ValueEnum;

    const CONFIG: EngineConfig = EngineConfig {
        batch: 4,
        accumulate: 2,
        recompute: true,
        dropout: 0.2,
    };

    fn model(attention: AttentionKind) -> ModelConfig {
        ModelConfig {
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
        }
    }

    fn streams(length: usize) -> Streams {
        let ids: Vec<u32> = (0..4 * length as u32).map(|i| (i * i + i / 7) % 11).collect();
        Streams::new(&ids, 4, 6, "training").unwrap()
    }

    #[test]
    fn the_cpu_engine_passes_for_every_attention() {
        for &attention in AttentionKind::value_variants() {
            let check = check(model(attention), CONFIG, &streams(100), 3, &Place::Cpu).unwrap();
            // Rounding of f32 sums of some hundred terms; no hidden unit of so few is near 0.
            assert!(check.worst().1 < 1e-5, "{attention:?}: {:?}", check.worst());
            assert!(
                check.loss_error < 1e-6 && check.norm_error < 1e-5 && check.single_error < 1e-5,
                "{check:?}"
            );
            assert_eq!(check.correct[0], check.correct[1]);
        }
    }

    /// An engine whose passes over a memory of one length are wrong from the `good`-th on, as if a recording were.
    struct Replaying {
        inner: CpuEngine,
        good: usize,
        full: usize,
    }

    impl Engine for Replaying {
        fn gradients(&mut self, groups: &[Group<'_>]) -> Result<Gradient> {
            let stored = self.inner.state()?.memories[0].layers[0].len();
            let gradient = self.inner.gradients(groups)?;
            // The same length before and after: memory is full.
            self.full += usize::from(self.inner.state()?.memories[0].layers[0].len() == stored);
            Ok(gradient)
        }

        fn last_gradients(&self) -> Result<Vec<f32>> {
            let mut gradients = self.inner.last_gradients()?;
            if self.full > self.good {
                gradients[0] += 1.0;
            }
            Ok(gradients)
        }

        fn update(&mut self, t: u64, rate: f64, factor: f64) -> Result<()> {
            self.inner.update(t, rate, factor)
        }

        fn evaluate(&mut self, segment: Segment<'_>, reading: Reading) -> Result<Outcome> {
            self.inner.evaluate(segment, reading)
        }

        fn forget(&mut self, reading: Reading) {
            self.inner.forget(reading);
        }

        fn state(&self) -> Result<State> {
            self.inner.state()
        }

        fn load(&mut self, state: State) -> Result<()> {
            self.inner.load(state)
        }

        fn memory_use(&self) -> MemoryUse {
            self.inner.memory_use()
        }
    }

    #[test]
    fn a_wrong_replay_is_found_even_in_a_short_text() {
        let model = TransformerXl::new(model(AttentionKind::Rcmha)).unwrap();
        let data = parameters(&model, 3);
        // One pass launch by launch, one recorded, one run again; a text of 16 segments, and one of 2.
        for (good, length) in [(0, 100), (1, 100), (2, 100), (2, 14)] {
            let mut engine = Replaying {
                inner: CpuEngine::new(&model, CONFIG, data.clone()),
                good,
                full: 0,
            };
            let check = compare(&model, CONFIG, &streams(length), 3, &data, &mut engine).unwrap();
            assert!(
                !check.is_within(&Bounds::new(&Place::Cpu, 24)),
                "{good} {length}: {check:?}"
            );
            // What is wrong in every round counts against the tighter bound.
            assert_eq!(check.worst().1 > 0.1, good == 0, "{good} {length}: {:?}", check.worst());
        }
    }
}
