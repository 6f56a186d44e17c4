//! `config.json` of a Hugging Face checkpoint: which decoder, of which shape.
//!
//! Dispatch is on `model_type`, never on a name. Both generations are read: `rope_theta` / `rope_scaling` /
//! `torch_dtype`, and `rope_parameters` / `dtype` of transformers 5.

use crate::error::{Error, Result, io_error};
use crate::kernels::AttentionShape;
use serde_json::Value;
use std::path::Path;

/// What distinguishes the supported families in the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 2, 3, 3.1, 3.2; Yi.
    Llama,
    /// Qwen2, Qwen2.5: biases on q, k, v.
    Qwen2,
    /// Qwen3: RMS norm on every query and key head.
    Qwen3,
    /// Mistral: sliding window, or none.
    Mistral,
}

impl Family {
    const ALL: [(&'static str, Self); 4] = [
        ("llama", Self::Llama),
        ("qwen2", Self::Qwen2),
        ("qwen3", Self::Qwen3),
        ("mistral", Self::Mistral),
    ];
}

/// How rotary frequencies are stretched beyond the trained window.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// Stretch.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Stretch.
        factor: f32,
        /// Below this many turns over the original window: stretched.
        low_freq_factor: f32,
        /// Above this many turns: kept.
        high_freq_factor: f32,
        /// Trained window.
        original_positions: usize,
    },
    /// `YaRN` (arXiv 2309.00071).
    Yarn {
        /// Stretch.
        factor: f32,
        /// Turns over the original window above which a frequency is kept.
        beta_fast: f32,
        /// Turns below which it is interpolated.
        beta_slow: f32,
        /// Multiplies cosines and sines.
        attention_factor: f32,
        /// Trained window.
        original_positions: usize,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
}

/// A decoder's shape and constants.
#[expect(clippy::struct_excessive_bools, reason = "config.json states them one by one")]
#[derive(Debug, Clone, serde::Serialize)]
pub struct ModelConfig {
    /// Family by `model_type`.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// L.
    pub layers: usize,
    /// H, Hkv, D.
    pub attention: AttentionShape,
    /// V: rows of the embedding.
    pub vocab_size: usize,
    /// Added to the mean square in RMS norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretch of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Trained (or stated) window in tokens.
    pub max_position_embeddings: usize,
    /// Whether the unembedding is the embedding.
    pub tied_embeddings: bool,
    /// Biases on q, k, v.
    pub qkv_bias: bool,
    /// Bias on the attention output.
    pub output_bias: bool,
    /// Biases in the feed-forward layer.
    pub mlp_bias: bool,
    /// Sliding window of each layer in tokens; `None`: full attention.
    pub windows: Vec<Option<usize>>,
    /// Standard deviation of randomly made weights.
    pub initializer_range: f32,
    /// Weight type on disk, as stated.
    pub dtype: Option<String>,
}

/// The largest count that is taken for meant: beyond every model, and small enough that no size in bytes overflows.
fn largest_count(key: &str) -> u64 {
    match key {
        "num_hidden_layers" => 1 << 14,
        "hidden_size" | "num_attention_heads" | "num_key_value_heads" | "head_dim" => LARGEST_WIDTH as u64,
        "intermediate_size" => 1 << 22,
        "vocab_size" => 1 << 28,
        _ => u64::from(u32::MAX),
    }
}

/// Of the residual stream and of all heads together.
const LARGEST_WIDTH: usize = 1 << 20;

/// A JSON object with the path it came from, for errors that name file and key.
struct Keys<'a> {
    object: &'a serde_json::Map<String, Value>,
    place: String,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        match self.get(key) {
            None => Error::user(format!("{}: key `{key}` is missing; expected {expected}", self.place)),
            Some(v) => Error::user(format!("{}: key `{key}` is `{v}`; expected {expected}", self.place)),
        }
        .help("use the `config.json` that was published with the weights")
    }

    fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        let largest = largest_count(key);
        self.get(key)
            .map(|v| {
                v.as_u64()
                    .filter(|&n| n > 0 && n <= largest)
                    .map(|n| n as usize)
                    .ok_or_else(|| self.wrong(key, &format!("a positive whole number up to {largest}")))
            })
            .transpose()
    }

    fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)?
            .ok_or_else(|| self.wrong(key, "a positive whole number"))
    }

    fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
            .map(|v| {
                v.as_f64()
                    .filter(|n| n.is_finite() && *n > 0.0)
                    .ok_or_else(|| self.wrong(key, "a positive number"))
            })
            .transpose()
    }

    fn number(&self, key: &str) -> Result<f64> {
        self.optional_number(key)?
            .ok_or_else(|| self.wrong(key, "a positive number"))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |v| {
            v.as_bool().ok_or_else(|| self.wrong(key, "true or false"))
        })
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

impl ModelConfig {
    /// Reads and validates `path`.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| io_error("read", path, &e))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| {
            Error::user(format!("`{}` is not valid JSON: {e}", path.display()))
                .help("the file may be cut off; copy or download it again")
        })?;
        Self::from_json(&value, &format!("`{}`", path.display()))
    }

    /// Reads and validates a parsed `config.json`; `place` names it in errors.
    pub fn from_json(value: &Value, place: &str) -> Result<Self> {
        let Some(object) = value.as_object() else {
            return Err(Error::user(format!("{place} is not a JSON object"))
                .help("use the `config.json` that was published with the weights"));
        };
        let keys = Keys {
            object,
            place: place.to_owned(),
        };
        let supported = Family::ALL.map(|(name, _)| name).join(", ");
        let model_type = keys
            .text("model_type")
            .ok_or_else(|| keys.wrong("model_type", &format!("one of {supported}")))?;
        let family = Family::ALL
            .iter()
            .find(|(name, _)| *name == model_type)
            .map(|(_, family)| *family)
            .ok_or_else(|| {
                Error::user(format!("{place}: model_type `{model_type}` is not supported"))
                    .help(format!("supported: {supported}"))
            })?;
        if let Some(act) = keys.text("hidden_act").filter(|act| !matches!(*act, "silu" | "swish")) {
            return Err(Error::user(format!("{place}: hidden_act `{act}` is not supported")).help("supported: silu"));
        }
        let hidden_size = keys.count("hidden_size")?;
        let query_heads = keys.count("num_attention_heads")?;
        let kv_heads = keys.optional_count("num_key_value_heads")?.unwrap_or(query_heads);
        if query_heads % kv_heads != 0 {
            return Err(keys.wrong(
                "num_key_value_heads",
                &format!("a divisor of num_attention_heads, {query_heads}"),
            ));
        }
        let head_dim = match keys.optional_count("head_dim")? {
            Some(d) => d,
            None if hidden_size % query_heads == 0 => hidden_size / query_heads,
            None => {
                return Err(keys.wrong(
                    "head_dim",
                    "a number, as num_attention_heads does not divide hidden_size",
                ));
            }
        };
        if head_dim % 2 != 0 {
            return Err(keys.wrong("head_dim", "an even number (rotary embedding works on pairs)"));
        }
        if query_heads * head_dim > LARGEST_WIDTH {
            let most = LARGEST_WIDTH / query_heads;
            return Err(keys.wrong("head_dim", &format!("at most {most} with {query_heads} heads")));
        }
        let layers = keys.count("num_hidden_layers")?;
        let max_position_embeddings = keys.count("max_position_embeddings")?;
        let (rope_theta, rope_scaling) = rope(&keys, max_position_embeddings)?;
        let attention_bias = keys.flag("attention_bias", false)?;
        Ok(Self {
            family,
            hidden_size,
            intermediate_size: keys.count("intermediate_size")?,
            layers,
            attention: AttentionShape {
                query_heads,
                kv_heads,
                head_dim,
            },
            vocab_size: keys.count("vocab_size")?,
            rms_norm_eps: keys.number("rms_norm_eps")? as f32,
            rope_theta,
            rope_scaling,
            max_position_embeddings,
            tied_embeddings: keys.flag("tie_word_embeddings", false)?,
            qkv_bias: family == Family::Qwen2 || (family != Family::Mistral && attention_bias),
            output_bias: matches!(family, Family::Llama | Family::Qwen3) && attention_bias,
            mlp_bias: family == Family::Llama && keys.flag("mlp_bias", false)?,
            windows: windows(&keys, family, layers)?,
            initializer_range: keys.optional_number("initializer_range")?.unwrap_or(0.02) as f32,
            dtype: keys
                .text("dtype")
                .or_else(|| keys.text("torch_dtype"))
                .map(str::to_owned),
        })
    }

    /// Cached bytes per token on a backend with `element_bytes` per element.
    pub fn kv_bytes_per_token(&self, element_bytes: usize) -> usize {
        self.layers * 2 * self.attention.kv_width() * element_bytes
    }
}

fn rope(keys: &Keys<'_>, max_positions: usize) -> Result<(f64, RopeScaling)> {
    // transformers 5 keeps theta and scaling in one object; the older form keeps them apart.
    let new = keys.get("rope_parameters");
    let old = keys.get("rope_scaling");
    let name = if new.is_some() {
        "rope_parameters"
    } else {
        "rope_scaling"
    };
    let Some(value) = new.or(old) else {
        return Ok((
            keys.optional_number("rope_theta")?.unwrap_or(10_000.0),
            RopeScaling::None,
        ));
    };
    let Some(object) = value.as_object() else {
        return Err(keys.wrong(name, "an object or null"));
    };
    let rope = Keys {
        object,
        place: format!("{} `{name}`", keys.place),
    };
    let theta = match rope.optional_number("rope_theta")? {
        Some(theta) => theta,
        None => keys.optional_number("rope_theta")?.unwrap_or(10_000.0),
    };
    for place in [keys, &rope] {
        if let Some(part) = place
            .optional_number("partial_rotary_factor")?
            .filter(|part| (part - 1.0).abs() > 1e-9)
        {
            return Err(Error::user(format!(
                "{}: partial_rotary_factor {part} is not supported",
                place.place
            ))
            .help("supported: whole heads (1.0)"));
        }
    }
    let kind = rope
        .text("rope_type")
        .or_else(|| rope.text("type"))
        .unwrap_or("default");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: rope.number("factor")? as f32,
        },
        "llama3" => {
            let (low, high) = (
                rope.number("low_freq_factor")? as f32,
                rope.number("high_freq_factor")? as f32,
            );
            if low >= high {
                return Err(rope.wrong("high_freq_factor", &format!("more than low_freq_factor, {low}")));
            }
            RopeScaling::Llama3 {
                factor: rope.number("factor")? as f32,
                low_freq_factor: low,
                high_freq_factor: high,
                original_positions: rope.count("original_max_position_embeddings")?,
            }
        }
        "yarn" => yarn(keys, &rope, max_positions)?,
        other => {
            return Err(
                Error::user(format!("{}: rope_type `{other}` is not supported", rope.place))
                    .help("supported: default, linear, llama3, yarn"),
            );
        }
    };
    Ok((theta, scaling))
}

/// Constants of `yarn`; what `rope` leaves out is looked for in the whole config, then in the defaults.
fn yarn(keys: &Keys<'_>, rope: &Keys<'_>, max_positions: usize) -> Result<RopeScaling> {
    let original_positions = match rope.optional_count("original_max_position_embeddings")? {
        Some(n) => n,
        None => keys
            .optional_count("original_max_position_embeddings")?
            .unwrap_or(max_positions),
    };
    let factor = match rope.optional_number("factor")? {
        Some(factor) => factor,
        None => max_positions as f64 / original_positions as f64,
    };
    let scale = |mscale: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * mscale * factor.ln() + 1.0
        }
    };
    let (mscale, all) = (rope.optional_number("mscale")?, rope.optional_number("mscale_all_dim")?);
    let attention_factor = match (rope.optional_number("attention_factor")?, mscale, all) {
        (Some(stated), _, _) => stated,
        (None, Some(mscale), Some(all)) => scale(mscale) / scale(all),
        _ => scale(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor: factor as f32,
        beta_fast: rope.optional_number("beta_fast")?.unwrap_or(32.0) as f32,
        beta_slow: rope.optional_number("beta_slow")?.unwrap_or(1.0) as f32,
        attention_factor: attention_factor as f32,
        original_positions,
        truncate: rope.flag("truncate", true)?,
    })
}

fn windows(keys: &Keys<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
    // transformers gives a Mistral config without the key its default; null means full attention.
    let window = match keys.object.get("sliding_window") {
        None if family == Family::Mistral => Some(4096),
        _ => keys.optional_count("sliding_window")?,
    };
    let uses = match family {
        Family::Llama => false,
        Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => keys.flag("use_sliding_window", false)?,
    };
    let Some(window) = window.filter(|_| uses) else {
        return Ok(vec![None; layers]);
    };
    if family == Family::Mistral {
        return Ok(vec![Some(window); layers]);
    }
    if let Some(types) = keys.get("layer_types") {
        let types = types
            .as_array()
            .filter(|types| types.len() == layers)
            .ok_or_else(|| keys.wrong("layer_types", &format!("a list of {layers} names")))?;
        return types
            .iter()
            .map(|t| match t.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(Some(window)),
                _ => Err(keys.wrong("layer_types", "full_attention or sliding_attention for each layer")),
            })
            .collect();
    }
    let first = keys
        .get("max_window_layers")
        .and_then(Value::as_u64)
        .map_or(28, |n| n as usize);
    Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn base() -> Value {
        json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 100, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 512})
    }

    fn with(changes: &Value) -> Result<ModelConfig> {
        let mut value = base();
        for (key, new) in changes.as_object().expect("object") {
            value[key] = new.clone();
        }
        ModelConfig::from_json(&value, "`config.json`")
    }

    #[test]
    fn both_generations_give_the_same_rope() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64});
        let old = with(&json!({"rope_theta": 5e5, "rope_scaling": scaling})).expect("old");
        let mut parameters = scaling;
        parameters["rope_theta"] = json!(5e5);
        let new = with(&json!({"rope_parameters": parameters})).expect("new");
        assert_eq!(old.rope_scaling, new.rope_scaling);
        assert!((old.rope_theta - new.rope_theta).abs() < 1e-9);
    }

    #[test]
    fn head_dim_may_differ_from_hidden_over_heads() {
        assert_eq!(with(&json!({})).expect("default").attention.head_dim, 16);
        assert_eq!(with(&json!({"head_dim": 32})).expect("explicit").attention.head_dim, 32);
        assert_eq!(
            with(&json!({"num_key_value_heads": null}))
                .expect("mha")
                .attention
                .kv_heads,
            4
        );
    }

    #[test]
    fn windows_follow_the_family() {
        let mistral = with(&json!({"model_type": "mistral", "sliding_window": 24})).expect("mistral");
        assert_eq!(mistral.windows, vec![Some(24); 3]);
        let none = with(&json!({"model_type": "mistral", "sliding_window": null})).expect("mistral v0.2");
        assert_eq!(none.windows, vec![None; 3]);
        let off = json!({"model_type": "qwen2", "sliding_window": 24, "use_sliding_window": false});
        assert_eq!(with(&off).expect("qwen2").windows, vec![None; 3]);
        let late =
            json!({"model_type": "qwen2", "sliding_window": 24, "use_sliding_window": true, "max_window_layers": 2});
        assert_eq!(with(&late).expect("qwen2").windows, vec![None, None, Some(24)]);
    }

    #[test]
    fn errors_name_key_and_value() {
        for (change, expected) in [
            (json!({"model_type": "gpt2"}), "model_type `gpt2` is not supported"),
            (json!({"model_type": null}), "key `model_type` is missing"),
            (json!({"hidden_size": 0}), "key `hidden_size` is `0`"),
            (json!({"num_hidden_layers": 4_000_000_000_u64}), "up to 16384"),
            (json!({"vocab_size": 1_u64 << 31}), "key `vocab_size` is `2147483648`"),
            (json!({"head_dim": 1 << 19}), "at most 262144 with 4 heads"),
            (json!({"hidden_size": "64"}), "key `hidden_size` is `\"64\"`"),
            (json!({"num_key_value_heads": 3}), "key `num_key_value_heads` is `3`"),
            (
                json!({"rope_scaling": {"type": "longrope"}}),
                "rope_type `longrope` is not supported",
            ),
            (json!({"rope_scaling": 3}), "key `rope_scaling` is `3`"),
            (json!({"rope_scaling": {"type": "linear"}}), "key `factor` is missing"),
            (json!({"hidden_act": "gelu"}), "hidden_act `gelu`"),
            (json!({"head_dim": 15}), "key `head_dim` is `15`"),
        ] {
            let error = with(&change).expect_err(expected);
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
