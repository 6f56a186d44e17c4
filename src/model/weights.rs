//! Weights: which tensors a decoder has, and where they come from (a safetensors checkpoint or a seed).

use super::checkpoint::Checkpoint;
use super::config::{Family, ModelConfig};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::random::stream_rng;
use rand::RngCore;
use std::sync::Mutex;

/// Name and shape of one tensor, as in the checkpoint. Vectors have `cols` elements and one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Full name, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Shape on disk.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    fn new(name: String, shape: &[usize]) -> Self {
        Self {
            name,
            shape: shape.to_vec(),
        }
    }

    /// Elements of one row.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// Rows; 1 for a vector.
    pub fn rows(&self) -> usize {
        if self.shape.len() == 2 { self.shape[0] } else { 1 }
    }
}

/// Reads row `index` of one tensor as f32.
pub type RowReader<'a> = Box<dyn Fn(usize, &mut [f32]) + Sync + 'a>;

/// One opened tensor. It owns the mapping; readers borrow it and may be used from several threads.
pub trait TensorData {
    /// Reads rows.
    fn rows(&self) -> RowReader<'_>;
}

/// Where tensors come from.
pub trait TensorSource {
    /// Opens one tensor; its shape was checked before.
    fn open(&self, spec: &TensorSpec) -> Result<Box<dyn TensorData>>;
    /// Names the place of a tensor in errors, such as its file.
    fn place(&self, name: &str) -> String;
}

/// Tensors made from a seed: matrices uniform with the config's standard deviation, norms 1, biases small.
pub struct RandomWeights {
    /// Seed of every stream; each row of each tensor has its own.
    pub seed: u64,
    /// Standard deviation of matrices.
    pub standard_deviation: f32,
}

struct RandomTensor {
    name: String,
    seed: u64,
    /// Width of the uniform distribution.
    width: f32,
}

impl TensorData for RandomTensor {
    fn rows(&self) -> RowReader<'_> {
        if self.name.ends_with("norm.weight") {
            return Box::new(|_, out| out.fill(1.0));
        }
        Box::new(|row, out| {
            let mut rng = stream_rng(self.seed, &format!("{}/{row}", self.name));
            for value in out {
                *value = (rng.next_u32() as f32 / u32::MAX as f32 - 0.5) * self.width;
            }
        })
    }
}

impl TensorSource for RandomWeights {
    fn open(&self, spec: &TensorSpec) -> Result<Box<dyn TensorData>> {
        // A uniform distribution of width sqrt(12) has standard deviation 1.
        let width = self.standard_deviation * 12f32.sqrt();
        Ok(Box::new(RandomTensor {
            name: spec.name.clone(),
            seed: self.seed,
            width,
        }))
    }

    fn place(&self, _name: &str) -> String {
        format!("random weights of seed {}", self.seed)
    }
}

impl TensorSource for Checkpoint {
    fn open(&self, spec: &TensorSpec) -> Result<Box<dyn TensorData>> {
        Ok(Box::new(self.map(spec)?))
    }

    fn place(&self, name: &str) -> String {
        self.file_of(name)
            .map_or_else(String::new, |file| format!("`{}`", file.display()))
    }
}

/// One decoder layer. Query, key and value projections are one matrix, gate and up projections another.
pub struct LayerWeights<B: Device> {
    /// RMS norm before attention, `[hidden]`.
    pub attention_norm: B::Buffer,
    /// `[(H + 2 Hkv) D, hidden]`.
    pub qkv: B::Matrix,
    /// `[(H + 2 Hkv) D]`.
    pub qkv_bias: Option<B::Buffer>,
    /// RMS norms of query and key heads, `[D]` each (Qwen3).
    pub head_norms: Option<(B::Buffer, B::Buffer)>,
    /// `[hidden, H D]`.
    pub output: B::Matrix,
    /// `[hidden]`.
    pub output_bias: Option<B::Buffer>,
    /// RMS norm before the feed-forward layer, `[hidden]`.
    pub mlp_norm: B::Buffer,
    /// `[2 intermediate, hidden]`.
    pub gate_up: B::Matrix,
    /// `[2 intermediate]`.
    pub gate_up_bias: Option<B::Buffer>,
    /// `[hidden, intermediate]`.
    pub down: B::Matrix,
    /// `[hidden]`.
    pub down_bias: Option<B::Buffer>,
}

/// All weights of a decoder.
pub struct ModelWeights<B: Device> {
    /// `[V, hidden]`.
    pub embedding: B::Matrix,
    /// Layers in order.
    pub layers: Vec<LayerWeights<B>>,
    /// RMS norm before the unembedding, `[hidden]`.
    pub final_norm: B::Buffer,
    /// `[V, hidden]`; `None` if the embedding serves.
    pub unembedding: Option<B::Matrix>,
}

/// Every tensor that `config` calls for, in the order of the checkpoint.
pub fn tensor_specs(config: &ModelConfig) -> Vec<TensorSpec> {
    let mut specs = vec![embedding_spec(config)];
    for layer in 0..config.layers {
        let specs_of = LayerSpecs::new(config, layer);
        specs.extend(specs_of.vectors());
        specs.extend(specs_of.qkv);
        specs.push(specs_of.output);
        specs.extend(specs_of.gate_up);
        specs.push(specs_of.down);
    }
    specs.push(final_norm_spec(config));
    specs.extend(unembedding_spec(config));
    specs
}

/// The tensor whose rows are the keys of the vocabulary: the unembedding, or the embedding that serves as one.
pub fn key_tensor(config: &ModelConfig) -> TensorSpec {
    unembedding_spec(config).unwrap_or_else(|| embedding_spec(config))
}

fn embedding_spec(config: &ModelConfig) -> TensorSpec {
    TensorSpec::new(
        "model.embed_tokens.weight".into(),
        &[config.vocab_size, config.hidden_size],
    )
}

fn final_norm_spec(config: &ModelConfig) -> TensorSpec {
    TensorSpec::new("model.norm.weight".into(), &[config.hidden_size])
}

fn unembedding_spec(config: &ModelConfig) -> Option<TensorSpec> {
    (!config.tied_embeddings)
        .then(|| TensorSpec::new("lm_head.weight".into(), &[config.vocab_size, config.hidden_size]))
}

struct LayerSpecs {
    attention_norm: TensorSpec,
    mlp_norm: TensorSpec,
    qkv: Vec<TensorSpec>,
    qkv_bias: Vec<TensorSpec>,
    head_norms: Vec<TensorSpec>,
    output: TensorSpec,
    output_bias: Vec<TensorSpec>,
    gate_up: Vec<TensorSpec>,
    gate_up_bias: Vec<TensorSpec>,
    down: TensorSpec,
    down_bias: Vec<TensorSpec>,
}

impl LayerSpecs {
    fn new(config: &ModelConfig, layer: usize) -> Self {
        let hidden = config.hidden_size;
        let wide = config.intermediate_size;
        let (queries, keys) = (config.attention.query_width(), config.attention.kv_width());
        let spec = |name: &str, shape: &[usize]| TensorSpec::new(format!("model.layers.{layer}.{name}"), shape);
        let when = |wanted: bool, specs: Vec<TensorSpec>| if wanted { specs } else { Vec::new() };
        let qkv = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)];
        let gate_up = ["gate_proj", "up_proj"];
        Self {
            attention_norm: spec("input_layernorm.weight", &[hidden]),
            mlp_norm: spec("post_attention_layernorm.weight", &[hidden]),
            qkv: qkv
                .iter()
                .map(|(n, rows)| spec(&format!("self_attn.{n}.weight"), &[*rows, hidden]))
                .collect(),
            qkv_bias: when(
                config.qkv_bias,
                qkv.iter()
                    .map(|(n, rows)| spec(&format!("self_attn.{n}.bias"), &[*rows]))
                    .collect(),
            ),
            head_norms: when(
                config.family == Family::Qwen3,
                ["q_norm", "k_norm"]
                    .map(|n| spec(&format!("self_attn.{n}.weight"), &[config.attention.head_dim]))
                    .to_vec(),
            ),
            output: spec("self_attn.o_proj.weight", &[hidden, queries]),
            output_bias: when(config.output_bias, vec![spec("self_attn.o_proj.bias", &[hidden])]),
            gate_up: gate_up
                .map(|n| spec(&format!("mlp.{n}.weight"), &[wide, hidden]))
                .to_vec(),
            gate_up_bias: when(
                config.mlp_bias,
                gate_up.map(|n| spec(&format!("mlp.{n}.bias"), &[wide])).to_vec(),
            ),
            down: spec("mlp.down_proj.weight", &[hidden, wide]),
            down_bias: when(config.mlp_bias, vec![spec("mlp.down_proj.bias", &[hidden])]),
        }
    }

    fn vectors(&self) -> Vec<TensorSpec> {
        let mut specs = vec![self.attention_norm.clone(), self.mlp_norm.clone()];
        for group in [
            &self.qkv_bias,
            &self.head_norms,
            &self.output_bias,
            &self.gate_up_bias,
            &self.down_bias,
        ] {
            specs.extend(group.iter().cloned());
        }
        specs
    }
}

/// Bytes that the weights of `config` take on `backend`.
pub fn weight_bytes<B: Device>(backend: &B, config: &ModelConfig) -> usize {
    let matrix = |specs: &[TensorSpec]| {
        backend.matrix_bytes(
            specs.iter().map(TensorSpec::rows).sum(),
            specs.first().map_or(0, TensorSpec::cols),
        )
    };
    let mut total = matrix(&[embedding_spec(config)]) + config.hidden_size * 4;
    total += unembedding_spec(config).map_or(0, |spec| matrix(&[spec]));
    for layer in 0..config.layers {
        let specs = LayerSpecs::new(config, layer);
        total += matrix(&specs.qkv) + matrix(&specs.gate_up);
        total += matrix(std::slice::from_ref(&specs.output)) + matrix(std::slice::from_ref(&specs.down));
        total += specs.vectors().iter().map(|s| s.cols() * 4).sum::<usize>();
    }
    total
}

/// Whether no element is NaN or infinite: the largest exponent of the row, without a branch per element.
fn all_finite(row: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    row.iter().fold(0, |largest, v| largest.max(v.to_bits() & EXPONENT)) != EXPONENT
}

struct Loader<'a, B: Device> {
    backend: &'a B,
    source: &'a dyn TensorSource,
    loaded: &'a mut dyn FnMut(u64),
}

impl<B: Device> Loader<'_, B> {
    /// One matrix of the stacked rows of `specs`.
    fn matrix(&mut self, specs: &[TensorSpec]) -> Result<B::Matrix> {
        let opened = specs
            .iter()
            .map(|spec| self.source.open(spec))
            .collect::<Result<Vec<_>>>()?;
        let readers: Vec<RowReader<'_>> = opened.iter().map(|tensor| tensor.rows()).collect();
        let rows: usize = specs.iter().map(TensorSpec::rows).sum();
        let cols = specs[0].cols();
        let first_bad: Mutex<Option<(usize, usize, f32)>> = Mutex::new(None);
        let fill = |row: usize, out: &mut [f32]| {
            let (mut part, mut local) = (0, row);
            while local >= specs[part].rows() {
                local -= specs[part].rows();
                part += 1;
            }
            readers[part](local, out);
            if !all_finite(out)
                && let Some(column) = out.iter().position(|v| !v.is_finite())
            {
                let mut slot = first_bad.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if slot.is_none_or(|(r, _, _)| row < r) {
                    *slot = Some((row, column, out[column]));
                }
            }
        };
        let matrix = self.backend.matrix(rows, cols, &fill);
        if let Some((row, column, value)) = first_bad
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            let (mut part, mut local) = (0, row);
            while local >= specs[part].rows() {
                local -= specs[part].rows();
                part += 1;
            }
            let name = &specs[part].name;
            return Err(Error::user(format!(
                "{}: tensor `{name}` holds {value} at [{local}, {column}]; a model with such weights answers nothing",
                self.source.place(name)
            ))
            .help("the file is damaged or the training diverged; download or save the checkpoint again"));
        }
        (self.loaded)(specs.iter().map(|s| (s.rows() * s.cols()) as u64).sum());
        Ok(matrix)
    }

    fn vector(&mut self, specs: &[TensorSpec]) -> Result<B::Buffer> {
        let mut data = Vec::new();
        for spec in specs {
            let opened = self.source.open(spec)?;
            let start = data.len();
            data.resize(start + spec.cols(), 0.0);
            opened.rows()(0, &mut data[start..]);
            if let Some(at) = data[start..].iter().position(|v| !v.is_finite()) {
                return Err(Error::user(format!(
                    "{}: tensor `{}` holds {} at [{at}]; a model with such weights answers nothing",
                    self.source.place(&spec.name),
                    spec.name,
                    data[start + at]
                ))
                .help("the file is damaged or the training diverged; download or save the checkpoint again"));
            }
        }
        Ok(self.backend.upload(&data))
    }

    fn optional(&mut self, specs: &[TensorSpec]) -> Result<Option<B::Buffer>> {
        if specs.is_empty() {
            Ok(None)
        } else {
            self.vector(specs).map(Some)
        }
    }
}

impl<B: Device> ModelWeights<B> {
    /// Loads every tensor of `config` from `source`; `loaded` is told the elements done, for a progress bar.
    pub fn load(
        backend: &B,
        config: &ModelConfig,
        source: &dyn TensorSource,
        loaded: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let mut loader = Loader {
            backend,
            source,
            loaded,
        };
        let embedding = loader.matrix(&[embedding_spec(config)])?;
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let specs = LayerSpecs::new(config, layer);
            layers.push(LayerWeights {
                attention_norm: loader.vector(std::slice::from_ref(&specs.attention_norm))?,
                qkv: loader.matrix(&specs.qkv)?,
                qkv_bias: loader.optional(&specs.qkv_bias)?,
                head_norms: match specs.head_norms.as_slice() {
                    [query, key] => Some((
                        loader.vector(std::slice::from_ref(query))?,
                        loader.vector(std::slice::from_ref(key))?,
                    )),
                    _ => None,
                },
                output: loader.matrix(std::slice::from_ref(&specs.output))?,
                output_bias: loader.optional(&specs.output_bias)?,
                mlp_norm: loader.vector(std::slice::from_ref(&specs.mlp_norm))?,
                gate_up: loader.matrix(&specs.gate_up)?,
                gate_up_bias: loader.optional(&specs.gate_up_bias)?,
                down: loader.matrix(std::slice::from_ref(&specs.down))?,
                down_bias: loader.optional(&specs.down_bias)?,
            });
        }
        Ok(Self {
            embedding,
            layers,
            final_norm: loader.vector(&[final_norm_spec(config)])?,
            unembedding: unembedding_spec(config)
                .map(|spec| loader.matrix(&[spec]))
                .transpose()?,
        })
    }
}
