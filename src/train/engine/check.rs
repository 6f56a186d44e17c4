//! Gradients of an engine against those of the CPU's layers in f64, which finite differences and `PyTorch` vouch for.

use super::{Engine, EngineConfig, Gradient, Group, Place, Reading};
use crate::error::Result;
use crate::kernels::cuda::training::Precision;
use crate::random::stream_rng;
use crate::train::attention::core::Keep;
use crate::train::cross_entropy::Outcome;
use crate::train::dropout::Dropout;
use crate::train::hidden_units::Watch;
use crate::train::model_config::ModelConfig;
use crate::train::parameters::Layout;
use crate::train::pool::Pool;
use crate::train::text::Streams;
use crate::train::transformer_xl::{Memory, Pass, Segment, TransformerXl};
use rand::Rng;
use std::cell::RefCell;
use std::ops::Range;

/// Times that a text is read until memory is full: on a GPU the pass over full memory then has been run launch by launch,
/// been recorded as a graph, and been run again from the recording.
const ROUNDS: usize = 3;

/// What counts as agreement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Of an error, in every segment. In f32 sums of some thousand terms in another order: measured up to 1e-6, and 4e-5
    /// where the rows of a model nearly repeat. In bf16, whose numbers have eight bits, the roundings of every activation on
    /// the way: up to 1.1e-2 on an H200 (`results/rcmha/gradients-h200-*`).
    pub error: f64,
    /// Of the input of a hidden unit that is on there and off here: rounding alone may part the two. Measured up to 5e-7 in
    /// f32 and 1.5e-2 in bf16.
    pub switched_input: f64,
}

impl Bounds {
    /// Those of `place`.
    pub fn new(place: &Place) -> Self {
        match place {
            Place::Cpu | Place::Cuda(_, Precision::F32) => Self {
                error: 1e-4,
                switched_input: 1e-5,
            },
            Place::Cuda(_, Precision::Bf16) => Self {
                error: 2e-2,
                switched_input: 5e-2,
            },
        }
    }
}

/// What a comparison found.
///
/// Errors of tensors are norms of differences, relative to the norm of the tensor's gradient, or to that of an average
/// tensor of its size where its own is smaller (the bias of keys has none: softmax does not see it). Each is the largest
/// over all segments. The gradient in f64 is that of the engine's hidden units (see [`crate::train::hidden_units`]): those
/// that are off in f64 and on there count as on, and the other way round.
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
    /// Hidden units that are on there and off in f64, or the other way round, over all segments.
    pub switched_units: usize,
    /// Largest input of such a unit in f64, relative to the root mean square of the inputs of its layer.
    pub switched_input: f64,
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
        let errors = [self.loss_error, self.norm_error, self.worst().1];
        errors.into_iter().all(|error| error <= bounds.error) && self.switched_input <= bounds.switched_input
    }
}

/// The larger error; a NaN is worse than anything.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Errors of one segment: of the loss, of the gradient's norm, of every tensor.
fn segment_errors(layout: &Layout, expected: &[f64], got: &[f32], outcome: Outcome, found: &Gradient) -> Vec<f64> {
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
    let (mut errors, mut correct) = (vec![0.0; 2 + specs.len()], [0, 0]);
    let (mut switched_units, mut switched_input) = (0, 0.0);
    engine.watch();
    for number in 0..ROUNDS * segments {
        if number % segments == 0 {
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
        let found = engine.gradients(&groups)?;
        for ((group, memory), units) in groups.iter().zip(&mut memories).zip(engine.hidden_units()) {
            let watch = RefCell::new(Watch::forcing(units.clone()));
            let pass = Pass {
                keep: Keep::Statistics,
                scale: 1.0 / (config.batch * model.config.segment) as f64,
                dropout: group.dropout.clone(),
                watch: Some(&watch),
            };
            outcome.add(model.train(&wide, &mut expected, group.segment, memory, &pass, &mut pool));
            let watch = watch.into_inner();
            switched_units += watch.switched;
            switched_input = worse(switched_input, watch.furthest);
        }
        correct = [correct[0] + found.outcome.correct, correct[1] + outcome.correct];
        let here = segment_errors(&model.layout, &expected, &engine.last_gradients()?, outcome, &found);
        for (largest, error) in errors.iter_mut().zip(here) {
            *largest = worse(*largest, error);
        }
    }
    let tensors = specs.iter().zip(&errors[2..]);
    Ok(Check {
        loss_error: errors[0],
        norm_error: errors[1],
        tensors: tensors.map(|(spec, &error)| (spec.name.clone(), error)).collect(),
        correct,
        switched_units,
        switched_input,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::attention::{AttentionKind, Convolution, TableSize};
    use crate::train::engine::{CpuEngine, State};
    use crate::train::hidden_units::HiddenUnits;
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
            // Rounding of f32 sums of some hundred terms.
            assert!(check.worst().1 < 1e-5, "{attention:?}: {:?}", check.worst());
            assert!(
                check.loss_error < 1e-6 && check.norm_error < 1e-5 && check.switched_input < 1e-5,
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

        fn watch(&mut self) {
            self.inner.watch();
        }

        fn hidden_units(&self) -> &[HiddenUnits] {
            self.inner.hidden_units()
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
                !check.is_within(&Bounds::new(&Place::Cpu)),
                "{good} {length}: {check:?}"
            );
        }
    }

    /// Gradients of the first segment in f32 and in f64, and which hidden units are on.
    fn both(model: &TransformerXl, data: &[f32], forced: bool) -> (Vec<f64>, Vec<f32>, Watch, HiddenUnits) {
        let streams = streams(100);
        let (inputs, targets) = streams.segment(0, 0..4);
        let segment = Segment {
            inputs: &inputs,
            targets: &targets,
            batch: 4,
        };
        let config = EngineConfig {
            accumulate: 1,
            dropout: 0.0,
            ..CONFIG
        };
        let mut engine = CpuEngine::new(model, config, data.to_vec());
        engine.watch();
        let group = Group {
            segment,
            dropout: Dropout::none(),
        };
        engine.gradients(&[group]).unwrap();
        let units = engine.hidden_units()[0].clone();
        let watch = RefCell::new(if forced {
            Watch::forcing(units.clone())
        } else {
            Watch::default()
        });
        let pass = Pass {
            keep: Keep::Statistics,
            scale: 1.0 / 24.0,
            dropout: Dropout::none(),
            watch: Some(&watch),
        };
        let wide: Vec<f64> = data.iter().map(|&value| f64::from(value)).collect();
        let (mut memory, mut expected) = (Memory::empty(2), model.layout.zeros::<f64>());
        model.train(&wide, &mut expected, segment, &mut memory, &pass, &mut Pool::default());
        (expected, engine.last_gradients().unwrap(), watch.into_inner(), units)
    }

    /// Biases of the second layer's units are moved until rounding alone decides about each unit in its own row: there are
    /// enough of them that some are decided otherwise in f32.
    #[test]
    fn a_hidden_unit_within_rounding_of_0_is_no_error() {
        let model = TransformerXl::new(model(AttentionKind::RopeConv)).unwrap();
        let mut data = parameters(&model, 3);
        let specs = model.layout.specs().iter();
        let bias = specs
            .clone()
            .find(|spec| spec.name == "layers.1.ffn.expand.bias")
            .unwrap()
            .range();
        // Bisection of all biases at once, for the unit of row b mod 24: a larger bias switches it on.
        let units = bias.len();
        let (mut off, mut on) = (vec![-50.0f32; units], vec![50.0f32; units]);
        for _ in 0..60 {
            let middle: Vec<f32> = off.iter().zip(&on).map(|(a, b)| f32::midpoint(*a, *b)).collect();
            data[bias.clone()].copy_from_slice(&middle);
            let (_, _, watch, _) = both(&model, &data, false);
            for unit in 0..units {
                let is_on = watch.seen[1][(unit % 24) * units + unit];
                if is_on {
                    on[unit] = middle[unit];
                } else {
                    off[unit] = middle[unit];
                }
            }
        }
        data[bias].copy_from_slice(&on);
        let error = |forced: bool| {
            let (expected, got, watch, units) = both(&model, &data, forced);
            let pairs = expected.iter().zip(&got);
            let difference: f64 = pairs.map(|(x, &y)| (x - f64::from(y)).powi(2)).sum();
            let whole: f64 = expected.iter().map(|x| x * x).sum();
            let differing = watch.seen.iter().flatten().zip(units.iter().flatten());
            let differing = differing.filter(|(there, here)| there != here).count();
            assert!(
                !forced || (watch.switched == differing && watch.furthest < 1e-6),
                "{watch:?}"
            );
            (differing, (difference / whole).sqrt())
        };
        let (switched, jump) = error(false);
        assert!(switched > 0 && jump > 1e-3, "{switched} {jump}");
        let (again, rest) = error(true);
        assert!(again == switched && rest < 1e-6, "{again} {rest}");
    }
}
