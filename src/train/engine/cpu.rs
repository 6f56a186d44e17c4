//! Training on all cores, in f32.

use super::{Engine, EngineConfig, Gradient, Group, Reading, State};
use crate::error::Result;
use crate::train::adam::{Adam, Moments, norm, pieces};
use crate::train::attention::core::Keep;
use crate::train::cross_entropy::Outcome;
use crate::train::hidden_units::{HiddenUnits, Watch};
use crate::train::pool::Pool;
use crate::train::trainer::MemoryUse;
use crate::train::transformer_xl::{Memory, Pass, Segment, TransformerXl};
use std::cell::RefCell;
use std::ops::Range;

/// The CPU.
#[derive(Debug)]
pub struct CpuEngine {
    model: TransformerXl,
    config: EngineConfig,
    data: Vec<f32>,
    grads: Vec<f32>,
    moments: Moments<f32>,
    pieces: Vec<Range<usize>>,
    memories: Vec<Memory<f32>>,
    part_memory: Memory<f32>,
    whole_memory: Memory<f32>,
    pool: Pool<f32>,
    /// Rows of memory that the buffers of the pool are for.
    pool_rows: usize,
    watched: bool,
    hidden_units: Vec<HiddenUnits>,
}

impl CpuEngine {
    /// Begins with `parameters`, laid out as those of `model`.
    pub fn new(model: &TransformerXl, config: EngineConfig, parameters: Vec<f32>) -> Self {
        let layers = model.config.layers;
        Self {
            data: parameters,
            grads: model.layout.zeros(),
            moments: Moments {
                first: model.layout.zeros(),
                second: model.layout.zeros(),
            },
            pieces: pieces(&model.layout.reached()),
            memories: vec![Memory::empty(layers); config.accumulate],
            part_memory: Memory::empty(layers),
            whole_memory: Memory::empty(layers),
            pool: Pool::default(),
            pool_rows: 0,
            watched: false,
            hidden_units: Vec::new(),
            model: model.clone(),
            config,
        }
    }

    /// Buffers of other lengths than those that this much memory asks for would only take room.
    fn fit_pool(&mut self, rows: usize) {
        if self.pool_rows != rows {
            self.pool.trim();
            self.pool_rows = rows;
        }
    }
}

#[cfg(test)]
impl CpuEngine {
    /// Most bytes of buffers of a step.
    pub(in crate::train) fn pool_peak_bytes(&self) -> usize {
        self.pool.peak_bytes()
    }
}

impl Engine for CpuEngine {
    fn gradients(&mut self, groups: &[Group<'_>]) -> Result<Gradient> {
        self.fit_pool(self.memories[0].layers[0].len());
        for piece in &self.pieces {
            self.grads[piece.clone()].fill(0.0);
        }
        let positions: usize = groups.iter().map(|group| group.segment.inputs.len()).sum();
        let mut outcome = Outcome::default();
        self.hidden_units.clear();
        for (group, memory) in groups.iter().zip(&mut self.memories) {
            let watch = RefCell::new(Watch::default());
            let pass = Pass {
                keep: if self.config.recompute {
                    Keep::Statistics
                } else {
                    Keep::Weights
                },
                scale: 1.0 / positions as f64,
                dropout: group.dropout.clone(),
                watch: self.watched.then_some(&watch),
            };
            let (data, grads) = (&self.data, &mut self.grads);
            outcome.add(
                self.model
                    .train(data, grads, group.segment, memory, &pass, &mut self.pool),
            );
            if self.watched {
                self.hidden_units.push(watch.into_inner().seen);
            }
        }
        Ok(Gradient {
            outcome,
            norm: norm(&self.grads, &self.pieces),
        })
    }

    fn update(&mut self, t: u64, rate: f64, factor: f64) -> Result<()> {
        let (data, moments) = (&mut self.data, &mut self.moments);
        Adam::default().step(t, rate, factor, data, &self.grads, moments, &self.pieces);
        Ok(())
    }

    fn evaluate(&mut self, segment: Segment<'_>, reading: Reading) -> Result<Outcome> {
        let memory = match reading {
            Reading::Training => &mut self.memories[0],
            Reading::Part => &mut self.part_memory,
            Reading::Whole => &mut self.whole_memory,
        };
        Ok(self.model.evaluate(&self.data, segment, memory, &mut self.pool))
    }

    fn forget(&mut self, reading: Reading) {
        let empty = Memory::empty(self.model.config.layers);
        match reading {
            Reading::Training => self.memories.fill(empty),
            Reading::Part => self.part_memory = empty,
            Reading::Whole => self.whole_memory = empty,
        }
    }

    fn state(&self) -> Result<State> {
        Ok(State {
            parameters: self.data.clone(),
            first: self.moments.first.clone(),
            second: self.moments.second.clone(),
            memories: self.memories.clone(),
            part_memory: self.part_memory.clone(),
        })
    }

    fn load(&mut self, state: State) -> Result<()> {
        self.data = state.parameters;
        self.moments = Moments {
            first: state.first,
            second: state.second,
        };
        self.memories = state.memories;
        self.part_memory = state.part_memory;
        Ok(())
    }

    fn last_gradients(&self) -> Result<Vec<f32>> {
        Ok(self.grads.clone())
    }

    fn watch(&mut self) {
        self.watched = true;
    }

    fn hidden_units(&self) -> &[HiddenUnits] {
        &self.hidden_units
    }

    fn memory_use(&self) -> MemoryUse {
        let weights = (self.model.layout.count() * size_of::<f32>()) as u64;
        let threads = rayon::current_num_threads();
        let working = self.model.working_bytes::<f32>(self.config.group(), threads);
        MemoryUse {
            weights_bytes: weights,
            gradients_bytes: weights,
            optimizer_bytes: 2 * weights,
            activations_peak_bytes: (self.pool.peak_bytes() + working) as u64,
        }
    }
}
