//! The memory that a run will take, before anything of it is allocated.

use super::engine::{EngineConfig, Place};
use super::model_config::ModelConfig;
use super::transformer_xl::TransformerXl;
use crate::bytes::human_bytes;
use crate::error::{Error, Result};
use crate::model::memory_plan::available_bytes;

/// Bytes by part. Sizes may be absurd: they are added up as floating-point numbers and end at the largest integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryForecast {
    /// Parameters of the model.
    pub parameters: usize,
    /// Parameters, gradients and both moments of Adam.
    pub state_bytes: usize,
    /// Buffers of a step over full memory; what threads and kernels take for themselves is not counted.
    pub activations_bytes: usize,
    /// What the layers remember: for training, and for both ways of reading the held-out text.
    pub memories_bytes: usize,
}

impl MemoryForecast {
    /// Of a run of `model` with activations of `value_bytes` each; refuses sizes that do not fit together.
    pub fn new(model: &ModelConfig, config: &EngineConfig, value_bytes: usize) -> Result<Self> {
        let small = |layers: usize| {
            let model = TransformerXl::tensors(ModelConfig { layers, ..*model })?;
            Ok::<_, Error>((model.layout.count(), model.stored_rows()))
        };
        let ((one, stored), (two, _)) = (small(1)?, small(2)?);
        let float = |x: usize| x as f64;
        let layers = float(model.layers);
        let parameters = float(one) + (layers - 1.0) * float(two - one);
        let (d, stored, segment) = (float(model.d_model), float(stored), float(model.segment));
        let [group, batch] = [config.group(), config.batch].map(float);
        let (rows, all) = (segment * group, (stored + segment) * group);
        let parts = model.attention.parts();
        let convolution = model.convolution;
        let convolved = |yes: bool, rows: f64| if parts.convolution && yes { rows * d } else { 0.0 };
        let before =
            convolved(convolution.query, rows) + convolved(convolution.key, all) + convolved(convolution.value, all);
        let weights = if config.recompute {
            0.0
        } else {
            float(model.heads) * rows * (float(model.memory) + segment)
        };
        // Inputs, normalised ones, keys and values; queries, results by head and by row, the middle and its norm.
        let tape = 4.0 * all * d + 5.0 * rows * d + before + weights + rows * float(model.d_ffn);
        let activations = layers * tape + 2.0 * rows * float(model.vocab) + 2.0 * (all + rows) * d;
        Ok(Self {
            parameters: parameters as usize,
            state_bytes: (16.0 * parameters) as usize,
            activations_bytes: (float(value_bytes) * activations) as usize,
            memories_bytes: (4.0 * 3.0 * layers * stored * batch * d) as usize,
        })
    }

    /// All of it.
    pub fn total_bytes(&self) -> usize {
        let parts = [self.state_bytes, self.activations_bytes, self.memories_bytes];
        parts.into_iter().fold(0, usize::saturating_add)
    }

    /// Refuses a run that needs more than `available` bytes, naming the flags that it comes from.
    pub fn check(&self, model: &ModelConfig, config: &EngineConfig, available: usize) -> Result<()> {
        if self.total_bytes() <= available {
            return Ok(());
        }
        Err(Error::environment(format!(
            "training {} needs {}, but {} are available",
            model.attention.name(),
            human_bytes(self.total_bytes()),
            human_bytes(available)
        ))
        .note(format!(
            "parameters, gradients, optimiser {} · activations {} · memories {}",
            human_bytes(self.state_bytes),
            human_bytes(self.activations_bytes),
            human_bytes(self.memories_bytes)
        ))
        .note(format!(
            "`--layers {} --d-model {} --d-ffn {} --segment {} --memory {} --batch {} --accumulate {}`",
            model.layers, model.d_model, model.d_ffn, model.segment, model.memory, config.batch, config.accumulate
        ))
        .help(if self.state_bytes > available {
            "pass fewer `--layers`, a smaller `--d-model` or `--d-ffn`, or a smaller `--relative-table`"
        } else {
            "pass a smaller `--batch`, `--segment` or `--memory`, or more `--accumulate`"
        }))
    }
}

impl Place {
    /// Bytes that a run may take here; `None` where the system does not say.
    pub fn available_bytes(&self) -> Result<Option<usize>> {
        Ok(match self {
            Self::Cpu => available_bytes(),
            Self::Cuda(gpu, _) => Some(gpu.memory()?.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::attention::{AttentionKind, Convolution, TableSize};
    use crate::train::cross_entropy::Outcome;
    use crate::train::dropout::Dropout;
    use crate::train::engine::{CpuEngine, Engine, Group};
    use crate::train::transformer_xl::Segment;
    use clap::ValueEnum;

    fn model(attention: AttentionKind) -> ModelConfig {
        ModelConfig {
            attention,
            vocab: 40,
            layers: 3,
            d_model: 32,
            heads: 4,
            d_ffn: 64,
            memory: 48,
            segment: 24,
            convolution: Convolution::default(),
            table: TableSize::Clipped,
        }
    }

    #[test]
    fn the_forecast_is_near_what_a_run_takes() {
        for &attention in AttentionKind::value_variants() {
            for (recompute, accumulate) in [(true, 1), (false, 1), (true, 4)] {
                let config = EngineConfig {
                    batch: 8,
                    accumulate,
                    recompute,
                    dropout: 0.0,
                };
                let model = model(attention);
                let forecast = MemoryForecast::new(&model, &config, 4).unwrap();
                let built = TransformerXl::new(model).unwrap();
                assert_eq!(forecast.parameters, built.layout.count(), "{attention:?}");
                let mut engine = CpuEngine::new(&built, config, built.layout.initial(1));
                let ids = vec![3; model.segment * config.group()];
                let group = Group {
                    segment: Segment {
                        inputs: &ids,
                        targets: &ids,
                        batch: config.group(),
                    },
                    dropout: Dropout::none(),
                };
                let mut outcome = Outcome::default();
                for _ in 0..4 {
                    outcome.add(engine.gradients(&vec![group.clone(); accumulate]).unwrap().outcome);
                }
                assert!(outcome.loss.is_finite());
                let taken = engine.pool_peak_bytes() as f64;
                let ratio = taken / forecast.activations_bytes as f64;
                assert!((0.8..1.25).contains(&ratio), "{attention:?} {config:?}: {ratio}");
            }
        }
    }

    #[test]
    fn absurd_sizes_are_refused_by_their_flags_before_anything_is_allocated() {
        let config = EngineConfig {
            batch: 16,
            accumulate: 1,
            recompute: true,
            dropout: 0.0,
        };
        let refused = |model: ModelConfig| {
            let forecast = MemoryForecast::new(&model, &config, 4).unwrap();
            let error = forecast.check(&model, &config, 16 << 30).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            error.to_string()
        };
        let mha = model(AttentionKind::Mha);
        let text = refused(ModelConfig { memory: 1 << 24, ..mha });
        assert!(
            text.contains("--memory 16777216") && text.contains("pass a smaller `--batch`"),
            "{text}"
        );
        let text = refused(ModelConfig {
            layers: 1 << 12,
            d_model: 1 << 20,
            ..mha
        });
        assert!(
            text.contains("--layers 4096") && text.contains("pass fewer `--layers`"),
            "{text}"
        );
        let forecast = MemoryForecast::new(&mha, &config, 4).unwrap();
        forecast.check(&mha, &config, forecast.total_bytes()).unwrap();
    }
}
