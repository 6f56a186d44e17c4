//! A tiny random model in the Hugging Face layout, made in a temporary folder: the offline model of whole-program
//! tests, and, with a part of it spoiled, their bad input.
//!
//! ```ignore
//! let model = TinyModel::llama().build();
//! model.edit_config(|config| config["hidden_size"] = json!(0));
//! ```

use rand::RngCore;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tokselect::random::stream_rng;

pub const HIDDEN: usize = 32;
pub const LAYERS: usize = 2;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = HIDDEN / HEADS;
pub const INTERMEDIATE: usize = 48;
/// Rows of the embedding; the tokenizer has fewer tokens, as published ones do.
pub const VOCABULARY: usize = 300;
/// Ids of the special tokens `<s>`, `</s>`, `<|user|>` and `<|assistant|>`; before them one id per byte.
pub const BOS: u32 = 256;
pub const EOS: u32 = 257;
const SPECIALS: [&str; 4] = ["<s>", "</s>", "<|user|>", "<|assistant|>"];
const MERGES: [(&str, &str); 3] = [("t", "h"), ("th", "e"), ("Ġ", "the")];

pub const CONFIG: &str = "config.json";
pub const WEIGHTS: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
pub const TOKENIZER: &str = "tokenizer.json";
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// A template that writes one line per message.
pub const CHAT_TEMPLATE: &str = "{% for m in messages %}<|user|>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

/// How a model is made.
#[derive(Debug, Clone)]
pub struct TinyModel {
    family: &'static str,
    seed: u64,
    bos: bool,
    shards: usize,
    chat_template: Option<String>,
}

impl TinyModel {
    /// Llama: no biases, separate unembedding, BOS before every text.
    pub fn llama() -> Self {
        Self {
            family: "llama",
            seed: 7,
            bos: true,
            shards: 1,
            chat_template: None,
        }
    }

    /// Qwen2: biases on q, k and v, tied embeddings, no BOS.
    pub fn qwen2() -> Self {
        Self {
            family: "qwen2",
            bos: false,
            ..Self::llama()
        }
    }

    /// Other weights.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Weights in this many shards with an index; 1 is a single file.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// A chat template in `tokenizer_config.json`.
    pub fn chat_template(mut self, template: &str) -> Self {
        self.chat_template = Some(template.to_owned());
        self
    }

    /// Writes it to a temporary folder.
    pub fn build(&self) -> ModelDir {
        let model = ModelDir {
            dir: tempfile::tempdir().expect("a temporary folder"),
        };
        model.write_json(CONFIG, &self.config());
        model.write_json(
            "generation_config.json",
            &json!({"eos_token_id": [EOS], "bos_token_id": BOS}),
        );
        model.write_json(TOKENIZER, &tokenizer(self.bos));
        let mut tokenizer_config = json!({"bos_token": SPECIALS[0], "eos_token": SPECIALS[1]});
        if let Some(template) = &self.chat_template {
            tokenizer_config["chat_template"] = json!(template);
        }
        model.write_json(TOKENIZER_CONFIG, &tokenizer_config);
        let tensors = self.tensors();
        if self.shards == 1 {
            write_safetensors(&model.file(WEIGHTS), &tensors);
        } else {
            self.write_shards(&model, tensors);
        }
        model
    }

    fn config(&self) -> Value {
        json!({
            "architectures": [if self.family == "llama" { "LlamaForCausalLM" } else { "Qwen2ForCausalLM" }],
            "model_type": self.family,
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": self.family == "qwen2",
            "torch_dtype": "float32",
        })
    }

    fn tensors(&self) -> Tensors {
        let (queries, keys) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        let mut shapes: Vec<(String, Vec<usize>)> = vec![
            ("model.embed_tokens.weight".into(), vec![VOCABULARY, HIDDEN]),
            ("model.norm.weight".into(), vec![HIDDEN]),
        ];
        if self.family == "llama" {
            shapes.push(("lm_head.weight".into(), vec![VOCABULARY, HIDDEN]));
        }
        for layer in 0..LAYERS {
            let mut add = |name: &str, shape: Vec<usize>| shapes.push((format!("model.layers.{layer}.{name}"), shape));
            add("input_layernorm.weight", vec![HIDDEN]);
            add("post_attention_layernorm.weight", vec![HIDDEN]);
            for (name, rows) in [("q", queries), ("k", keys), ("v", keys)] {
                add(&format!("self_attn.{name}_proj.weight"), vec![rows, HIDDEN]);
                if self.family == "qwen2" {
                    add(&format!("self_attn.{name}_proj.bias"), vec![rows]);
                }
            }
            add("self_attn.o_proj.weight", vec![HIDDEN, queries]);
            add("mlp.gate_proj.weight", vec![INTERMEDIATE, HIDDEN]);
            add("mlp.up_proj.weight", vec![INTERMEDIATE, HIDDEN]);
            add("mlp.down_proj.weight", vec![HIDDEN, INTERMEDIATE]);
        }
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let values = self.values(&name, shape.iter().product());
            (name, Tensor::f32(&shape, &values))
        };
        shapes.into_iter().map(tensor).collect()
    }

    /// Wide enough that the model's answers differ from prompt to prompt; norms around 1.
    fn values(&self, name: &str, count: usize) -> Vec<f32> {
        let mut rng = stream_rng(self.seed, name);
        let (centre, width) = if name.ends_with("norm.weight") {
            (1.0, 0.2)
        } else {
            (0.0, 1.0)
        };
        (0..count)
            .map(|_| centre + (rng.next_u32() as f32 / u32::MAX as f32 - 0.5) * width)
            .collect()
    }

    fn write_shards(&self, model: &ModelDir, tensors: Tensors) {
        let mut parts = vec![Tensors::new(); self.shards];
        let mut weight_map = Map::new();
        for (number, (name, tensor)) in tensors.into_iter().enumerate() {
            let shard = number % self.shards;
            weight_map.insert(name.clone(), json!(shard_name(shard, self.shards)));
            parts[shard].insert(name, tensor);
        }
        for (shard, tensors) in parts.iter().enumerate() {
            write_safetensors(&model.file(&shard_name(shard, self.shards)), tensors);
        }
        model.write_json(INDEX, &json!({"metadata": {}, "weight_map": weight_map}));
    }
}

/// The file of shard `number`, counted from 0.
pub fn shard_name(number: usize, of: usize) -> String {
    format!("model-{:05}-of-{of:05}.safetensors", number + 1)
}

/// One tensor on disk.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// By name.
pub type Tensors = BTreeMap<String, Tensor>;

impl Tensor {
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    /// Overwrites one element of an f32 tensor.
    pub fn set(&mut self, element: usize, value: f32) {
        self.bytes[element * 4..][..4].copy_from_slice(&value.to_le_bytes());
    }
}

/// Writes a safetensors file.
pub fn write_safetensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).expect("a consistent tensor");
        (name.as_str(), view)
    });
    let bytes = safetensors::serialize(views, None).expect("serializable");
    std::fs::write(path, bytes).expect("a writable folder");
}

/// Writes a safetensors file with a header of its own, however wrong.
pub fn write_raw_safetensors(path: &Path, header: &str, data: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    std::fs::write(path, bytes).expect("a writable folder");
}

/// A model on disk; it goes away when dropped.
#[derive(Debug)]
pub struct ModelDir {
    dir: TempDir,
}

impl ModelDir {
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).expect("a file of the model");
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), contents).expect("a writable folder");
    }

    pub fn write_json(&self, name: &str, value: &Value) {
        self.write(name, serde_json::to_string_pretty(value).expect("JSON"));
    }

    /// Changes a JSON file.
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let text = std::fs::read(self.file(name)).expect("a file of the model");
        let mut value = serde_json::from_slice(&text).expect("JSON");
        edit(&mut value);
        self.write_json(name, &value);
    }

    /// Changes `config.json`.
    pub fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        self.edit_json(CONFIG, edit);
    }

    /// Changes the tensors of one weight file.
    pub fn edit_tensors(&self, file: &str, edit: impl FnOnce(&mut Tensors)) {
        let bytes = std::fs::read(self.file(file)).expect("a file of the model");
        let read = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let mut tensors: Tensors = read
            .iter()
            .map(|(name, view)| {
                let tensor = Tensor {
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    bytes: view.data().to_vec(),
                };
                (name.to_owned(), tensor)
            })
            .collect();
        edit(&mut tensors);
        write_safetensors(&self.file(file), &tensors);
    }

    /// Keeps the first `length` bytes of a file.
    pub fn truncate(&self, name: &str, length: u64) {
        let file = std::fs::File::options()
            .write(true)
            .open(self.file(name))
            .expect("a file of the model");
        file.set_len(length).expect("a writable file");
    }

    pub fn size(&self, name: &str) -> u64 {
        std::fs::metadata(self.file(name)).expect("a file of the model").len()
    }
}

/// A byte-level BPE tokenizer: 256 bytes, the special tokens, three merges.
fn tokenizer(bos: bool) -> Value {
    let mut vocabulary = Map::new();
    for byte in 0..=255u8 {
        vocabulary.insert(byte_letter(byte).to_string(), json!(byte));
    }
    // In the vocabulary too, as Llama has them: the library numbers other added tokens after it.
    for (number, text) in SPECIALS.iter().enumerate() {
        vocabulary.insert((*text).to_owned(), json!(256 + number));
    }
    for (number, (left, right)) in MERGES.iter().enumerate() {
        vocabulary.insert(format!("{left}{right}"), json!(256 + SPECIALS.len() + number));
    }
    let added: Vec<Value> = SPECIALS
        .iter()
        .enumerate()
        .map(|(number, text)| {
            json!({"id": 256 + number, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    let start = json!({"SpecialToken": {"id": SPECIALS[0], "type_id": 0}});
    let post_processor = if bos {
        json!({"type": "TemplateProcessing", "single": [start, sequence], "pair": [start, sequence, sequence],
            "special_tokens": {SPECIALS[0]: {"id": SPECIALS[0], "ids": [BOS], "tokens": [SPECIALS[0]]}}})
    } else {
        byte_level.clone()
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": post_processor,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": MERGES.map(|(left, right)| format!("{left} {right}")),
        },
    })
}

/// The letter that stands for a byte in GPT-2's vocabulary: itself where it can be seen, else one from U+0100 on.
fn byte_letter(byte: u8) -> char {
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !visible(b)).count() as u32;
    char::from_u32(256 + before).expect("below the surrogates")
}
