//! Training on a GPU: the passes of [`pass`] over the buffers of [`buffers`], recorded as graphs.
//!
//! The work of a step depends on shapes alone, and those on how much memory there is. Memory grows at the beginning of a
//! text only, so those passes are run launch by launch. A pass over full memory has one recorded graph for each group of
//! streams; the first is run launch by launch as well, because kernels are loaded then, and the second recorded. What changes from step to step (ids, dropout keys) lies in device memory; the learning
//! rate goes to the optimiser, which is launched by itself once the host has seen loss and norm.

mod buffers;
mod pass;

use super::{Engine, EngineConfig, Gradient, Group, Reading, State};
use crate::error::{Error, Result};
use crate::kernels::cuda::driver::{Graph, Memory as DeviceMemory};
use crate::kernels::cuda::training::rows::CHUNK;
use crate::kernels::cuda::training::update::{Jobs, Pieces};
use crate::kernels::cuda::training::{Compiled, Precision, Training};
use crate::kernels::cuda::{Gpu, training};
use crate::train::adam::Adam;
use crate::train::attention::Positions;
use crate::train::cross_entropy::Outcome;
use crate::train::dropout::Dropout;
use crate::train::hidden_units::HiddenUnits;
use crate::train::model_config::ModelConfig;
use crate::train::trainer::MemoryUse;
use crate::train::transformer_xl::{Memory, Segment, TransformerXl};
use buffers::{Buffers, Constants, Parameters};
use pass::Sequence;
use std::collections::HashMap;

/// Blocks that a grid may have in its second and third direction.
const MOST_BLOCKS: usize = 65_535;
/// Places of dropout in a layer, in the order of their keys.
const PLACES: [&str; 4] = ["weights", "attention", "hidden", "ffn"];

/// A memory on the device: `[layers, stored rows, B, d]` f32, of which the last `rows` in time are there.
struct Remembered {
    memory: DeviceMemory,
    rows: usize,
    batch: usize,
}

/// What is known of the pass over a full memory.
struct Plan {
    jobs: Jobs,
    graph: Option<Graph>,
}

/// A GPU that trains one model.
pub struct CudaEngine {
    ops: Training,
    model: TransformerXl,
    config: EngineConfig,
    precision: Precision,
    parameters: Parameters,
    constants: Constants,
    pieces: Pieces,
    train: Buffers,
    eval: Buffers,
    /// Of training by group, then part by part, then in one go.
    memories: Vec<Remembered>,
    /// By place of the memory; as many as there are lengths of a growing one would not fit.
    plans: HashMap<usize, Plan>,
    /// Loss, correct rows, sum of squared gradients.
    outcome: DeviceMemory,
    watched: bool,
    hidden_units: Vec<HiddenUnits>,
}

impl CudaEngine {
    /// Begins with `parameters`, laid out as those of `model`.
    pub fn new(
        gpu: &Gpu,
        precision: Precision,
        model: &TransformerXl,
        config: EngineConfig,
        parameters: &[f32],
    ) -> Result<Self> {
        let sizes = &model.config;
        check_launches(sizes, config.batch, model.stored_rows())?;
        let ops = Training::new(
            gpu,
            Compiled {
                precision,
                head_dim: sizes.d_model / sizes.heads,
                relative: sizes.attention.parts().positions == Positions::Relative,
                kernel: sizes.convolution.kernel,
            },
        )
        .map_err(out_of_memory)?;
        let stored = model.stored_rows();
        let remembered = |batch: usize| Remembered {
            memory: gpu.allocate(4 * sizes.layers * stored * batch * sizes.d_model),
            rows: 0,
            batch,
        };
        let mut memories: Vec<_> = (0..config.accumulate).map(|_| remembered(config.group())).collect();
        memories.extend([remembered(config.batch), remembered(config.batch)]);
        let mut engine = Self {
            parameters: Parameters::new(gpu, precision, parameters),
            constants: Constants::new(gpu, model),
            pieces: ops.pieces(&model.layout.reached()),
            train: Buffers::new(&ops, model, config.group(), true),
            eval: Buffers::new(&ops, model, config.batch, false),
            memories,
            plans: HashMap::new(),
            outcome: gpu.allocate(24),
            watched: false,
            hidden_units: Vec::new(),
            model: model.clone(),
            ops,
            config,
            precision,
        };
        engine.parameters.refresh(&engine.ops);
        // The partial sums of full memory are the most.
        let (_, bytes) = engine.ops.rehearse(|| engine.sequence(0, stored).run());
        engine.train.partial = gpu.allocate(bytes);
        gpu.synchronize().map_err(out_of_memory)?;
        Ok(engine)
    }

    fn gpu(&self) -> &Gpu {
        self.ops.gpu()
    }

    fn place(&self, reading: Reading) -> usize {
        match reading {
            Reading::Training => 0,
            Reading::Part => self.config.accumulate,
            Reading::Whole => self.config.accumulate + 1,
        }
    }

    /// The pass over memory `place` when it has `rows` rows.
    fn sequence(&self, place: usize, rows: usize) -> Sequence<'_> {
        let training = place < self.config.accumulate;
        Sequence::new(pass::Pass {
            ops: &self.ops,
            model: &self.model,
            parameters: &self.parameters,
            constants: &self.constants,
            buffers: if training { &self.train } else { &self.eval },
            memory: &self.memories[place].memory,
            stored: rows,
            dropout: if training { self.config.dropout } else { 0.0 },
            scale: 1.0 / (self.config.batch * self.model.config.segment) as f64,
            outcome: &self.outcome,
            accumulate: training && place > 0,
            squares: (place + 1 == self.config.accumulate).then_some(&self.pieces),
        })
    }

    /// Queues the pass of a segment over memory `place`.
    fn pass(&mut self, place: usize, segment: Segment<'_>, dropout: &Dropout) {
        let training = place < self.config.accumulate;
        let buffers = if training { &self.train } else { &self.eval };
        self.gpu().upload(&buffers.inputs, 0, &self.inputs(segment, dropout));
        let (rows, most) = (self.memories[place].rows, self.model.stored_rows());
        if rows < most {
            self.sequence(place, rows).run_all(&self.jobs(place, rows));
        } else {
            self.pass_over_full(place);
        }
        let memory = &mut self.memories[place];
        memory.rows = (memory.rows + self.model.config.segment).min(most);
    }

    /// The table of the totals of a pass.
    fn jobs(&self, place: usize, rows: usize) -> Jobs {
        let (totals, _) = self.ops.rehearse(|| self.sequence(place, rows).run());
        self.ops.jobs(&totals)
    }

    fn pass_over_full(&mut self, place: usize) {
        let rows = self.model.stored_rows();
        let Some(plan) = self.plans.get(&place) else {
            let jobs = self.jobs(place, rows);
            self.sequence(place, rows).run_all(&jobs);
            self.plans.insert(place, Plan { jobs, graph: None });
            return;
        };
        if let Some(graph) = &plan.graph {
            graph.launch();
            return;
        }
        let recorded = self.gpu().record(|| self.sequence(place, rows).run_all(&plan.jobs));
        if let Some(graph) = &recorded {
            graph.launch();
        }
        if let Some(plan) = self.plans.get_mut(&place) {
            plan.graph = recorded;
        }
    }

    /// Ids, targets and dropout keys as the kernels read them.
    fn inputs(&self, segment: Segment<'_>, dropout: &Dropout) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 * segment.inputs.len() + 32 * self.model.config.layers);
        bytes.extend_from_slice(bytemuck::cast_slice(segment.inputs));
        bytes.extend_from_slice(bytemuck::cast_slice(segment.targets));
        if dropout.is_active() {
            for l in 0..self.model.config.layers {
                let layer = dropout.at(&l.to_string());
                for place in PLACES {
                    bytes.extend_from_slice(&layer.at(place).key().to_ne_bytes());
                }
            }
        }
        bytes
    }

    /// Loss, correct rows and sum of squares of the passes so far.
    fn read_outcome(&self, count: usize) -> Result<(Outcome, f64)> {
        let mut numbers = [0.0f64; 3];
        self.gpu()
            .download(&self.outcome, 0, bytemuck::cast_slice_mut(&mut numbers))
            .map_err(out_of_memory)?;
        let outcome = Outcome {
            loss: numbers[0],
            correct: numbers[1] as u64,
            count: count as u64,
        };
        Ok((outcome, numbers[2]))
    }

    fn download(&self, memory: &DeviceMemory, offset: usize, len: usize) -> Result<Vec<f32>> {
        let mut out = vec![0.0f32; len];
        if len > 0 {
            self.gpu()
                .download(memory, 4 * offset, bytemuck::cast_slice_mut(&mut out))?;
        }
        Ok(out)
    }

    /// Which hidden units the last pass of training had on.
    fn hidden_to_host(&self) -> Result<HiddenUnits> {
        let count = self.model.config.segment * self.config.group() * self.model.config.d_ffn;
        let layers = self.train.tapes.iter().map(|tape| {
            let mut bytes = vec![0u8; self.precision.bytes() * count];
            self.gpu().download(&tape.hidden, 0, &mut bytes)?;
            // Of either type, the last byte has the sign, and all bytes of 0 are 0.
            let on = |value: &[u8]| value.iter().any(|&byte| byte != 0) && value[value.len() - 1] < 0x80;
            Ok(bytes.chunks_exact(self.precision.bytes()).map(on).collect())
        });
        layers.collect()
    }

    fn memory_to_host(&self, place: usize) -> Result<Memory<f32>> {
        let remembered = &self.memories[place];
        let width = remembered.batch * self.model.config.d_model;
        let (stored, rows) = (self.model.stored_rows(), remembered.rows);
        let layers = (0..self.model.config.layers).map(|l| {
            let first = (l * stored + stored - rows) * width;
            self.download(&remembered.memory, first, rows * width)
        });
        Ok(Memory {
            layers: layers.collect::<Result<_>>()?,
        })
    }

    fn memory_to_device(&mut self, place: usize, memory: &Memory<f32>) -> Result<()> {
        let width = self.memories[place].batch * self.model.config.d_model;
        let stored = self.model.stored_rows();
        let rows = memory.layers.first().map_or(0, Vec::len) / width;
        for (l, layer) in memory.layers.iter().enumerate() {
            if layer.len() != rows * width || rows > stored {
                return Err(Error::user("the memory in a checkpoint has another size")
                    .help("choose another `--output` directory"));
            }
            let first = (l * stored + stored - rows) * width;
            self.gpu()
                .upload(&self.memories[place].memory, 4 * first, bytemuck::cast_slice(layer));
        }
        self.memories[place].rows = rows;
        Ok(())
    }
}

/// Refuses what kernels cannot count: blocks in the second and third direction of a grid, and elements, which they take as
/// `int`.
fn check_launches(sizes: &ModelConfig, batch: usize, stored: usize) -> Result<()> {
    let rows = (stored + sizes.segment).saturating_mul(batch);
    let widest = sizes.d_model.max(sizes.d_ffn).max(sizes.vocab);
    let counts = [
        ("heads of all streams", sizes.heads.saturating_mul(batch), MOST_BLOCKS),
        ("blocks of rows", rows.div_ceil(CHUNK), MOST_BLOCKS),
        ("elements of a layer", rows.saturating_mul(widest), i32::MAX as usize),
    ];
    match counts.into_iter().find(|(_, count, most)| count > most) {
        None => Ok(()),
        Some((what, count, most)) => Err(Error::user(format!(
            "`--batch {batch}` with `--heads {}`, `--segment {}` and `--memory {}` makes {count} {what}, and a GPU kernel counts \
             to {most}",
            sizes.heads, sizes.segment, sizes.memory
        ))
        .help("pass a smaller `--batch`, or `--device cpu`")),
    }
}

fn out_of_memory(error: Error) -> Error {
    if error.message().starts_with("OOM") {
        return error.help("pass a smaller `--batch`, a shorter `--segment`, more `--accumulate`, or `--device cpu`");
    }
    error
}

impl Engine for CudaEngine {
    fn gradients(&mut self, groups: &[Group<'_>]) -> Result<Gradient> {
        let mut count = 0;
        self.hidden_units.clear();
        for (place, group) in groups.iter().enumerate() {
            count += group.segment.inputs.len();
            self.pass(place, group.segment, &group.dropout);
            if self.watched {
                self.hidden_units.push(self.hidden_to_host()?);
            }
        }
        let (outcome, squares) = self.read_outcome(count)?;
        Ok(Gradient {
            outcome,
            norm: squares.sqrt(),
        })
    }

    fn update(&mut self, t: u64, rate: f64, factor: f64) -> Result<()> {
        self.parameters
            .update(&self.ops, &self.pieces, &Adam::default(), (t, rate, factor));
        self.gpu().status()
    }

    fn evaluate(&mut self, segment: Segment<'_>, reading: Reading) -> Result<Outcome> {
        let place = self.place(reading);
        self.pass(place, segment, &Dropout::none());
        Ok(self.read_outcome(segment.inputs.len())?.0)
    }

    fn forget(&mut self, reading: Reading) {
        let first = self.place(reading);
        let last = if reading == Reading::Training {
            self.config.accumulate
        } else {
            first + 1
        };
        for memory in &mut self.memories[first..last] {
            memory.rows = 0;
        }
    }

    fn state(&self) -> Result<State> {
        let len = self.parameters.len;
        Ok(State {
            parameters: self.download(&self.parameters.data, 0, len)?,
            first: self.download(&self.parameters.first, 0, len)?,
            second: self.download(&self.parameters.second, 0, len)?,
            memories: (0..self.config.accumulate)
                .map(|place| self.memory_to_host(place))
                .collect::<Result<_>>()?,
            part_memory: self.memory_to_host(self.place(Reading::Part))?,
        })
    }

    fn load(&mut self, state: State) -> Result<()> {
        for (memory, data) in [
            (&self.parameters.data, &state.parameters),
            (&self.parameters.first, &state.first),
            (&self.parameters.second, &state.second),
        ] {
            self.gpu().upload(memory, 0, bytemuck::cast_slice(data));
        }
        self.parameters.refresh(&self.ops);
        for (place, memory) in state.memories.iter().enumerate() {
            self.memory_to_device(place, memory)?;
        }
        self.memory_to_device(self.place(Reading::Part), &state.part_memory)?;
        self.gpu().synchronize()
    }

    fn last_gradients(&self) -> Result<Vec<f32>> {
        self.download(&self.parameters.grads, 0, self.parameters.len)
    }

    fn watch(&mut self) {
        self.watched = true;
    }

    fn hidden_units(&self) -> &[HiddenUnits] {
        &self.hidden_units
    }

    fn memory_use(&self) -> MemoryUse {
        let single = 4 * self.parameters.len as u64;
        let memories: usize = self.memories.iter().map(|memory| memory.memory.bytes()).sum();
        MemoryUse {
            weights_bytes: single + self.parameters.copy_bytes(),
            gradients_bytes: single,
            optimizer_bytes: 2 * single,
            activations_peak_bytes: (self.train.bytes() + self.eval.bytes() + memories) as u64,
        }
    }
}

impl std::fmt::Debug for CudaEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaEngine")
            .field("precision", &self.precision)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::attention::{AttentionKind, Convolution, TableSize};

    #[test]
    fn what_a_grid_cannot_hold_is_refused_by_its_flags() {
        let sizes = ModelConfig {
            attention: AttentionKind::Rcmha,
            vocab: 65,
            layers: 1,
            d_model: 64,
            heads: 8,
            d_ffn: 128,
            memory: 64,
            segment: 64,
            convolution: Convolution::default(),
            table: TableSize::Clipped,
        };
        assert!(check_launches(&sizes, 8191, 64).is_ok());
        let error = check_launches(&sizes, 8192, 64).unwrap_err();
        assert!(error.message().contains("`--batch 8192` with `--heads 8`"), "{error}");
        assert!(error.message().contains("65536 heads of all streams"), "{error}");
        let long = ModelConfig {
            segment: 1 << 20,
            ..sizes
        };
        assert!(check_launches(&long, 1, 64).is_ok());
        assert!(check_launches(&long, 16, 64).is_err());
    }
}
