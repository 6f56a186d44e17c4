//! Times of another program: the JSON that `scripts/bench_transformers.py` writes.

use crate::error::{Error, Result, io_error};
use crate::manifest::sha256;
use crate::model::config::ModelConfig;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;

/// A file of times, checked to be comparable with ours.
#[derive(Debug, Clone)]
pub struct Baseline {
    /// Versions, attention implementation and type, for tables.
    pub label: String,
    /// Where it came from, for the report.
    pub provenance: Value,
    prefill: Vec<Prefill>,
    decode: Vec<Decode>,
}

#[derive(Debug, Clone, Deserialize)]
struct File {
    config: Value,
    dtype: String,
    attention: String,
    threads: usize,
    cpu: String,
    torch: String,
    transformers: String,
    python: String,
    #[serde(default)]
    load_average_before: Vec<f64>,
    #[serde(default)]
    load_average_after: Vec<f64>,
    prefill: Vec<Prefill>,
    decode: Vec<Decode>,
}

#[derive(Debug, Clone, Deserialize)]
struct Prefill {
    n_tokens: usize,
    repetitions_s: Vec<f64>,
}

#[derive(Debug, Clone, Deserialize)]
struct Decode {
    n_stored_tokens: usize,
    repetitions_s: Vec<f64>,
}

impl Baseline {
    /// Its name in tables.
    pub const NAME: &'static str = "transformers";

    /// Reads `path`; refuses times of another model shape, thread count or processor (where both are known).
    pub fn load(path: &Path, config: &ModelConfig, threads: usize, cpu: Option<&str>) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| io_error("read", path, &error))?;
        let file: File = serde_json::from_slice(&bytes).map_err(|error| {
            Error::user(format!(
                "`{}` is not a file of scripts/bench_transformers.py: {error}",
                path.display()
            ))
            .help("make it with `scripts/bench_transformers.py --out FILE`")
        })?;
        let there = ModelConfig::from_json(&file.config, &format!("`{}` key `config`", path.display()))?;
        let mut pairs = shape(&there, config);
        pairs.push(("threads", file.threads.into(), threads.into()));
        if let Some(cpu) = cpu {
            pairs.push(("cpu", file.cpu.as_str().into(), cpu.into()));
        }
        if let Some((key, there, here)) = pairs.into_iter().find(|(_, there, here)| there != here) {
            return Err(Error::user(format!(
                "`{}` cannot be compared: `{key}` is {there} there and {here} here",
                path.display()
            ))
            .help(format!(
                "run scripts/bench_transformers.py again with the same `{key}`, or leave `--compare` out"
            )));
        }
        Ok(Self {
            label: format!(
                "torch {}, transformers {}, {}, {}",
                file.torch, file.transformers, file.attention, file.dtype
            ),
            provenance: json!({
                "file_sha256": sha256(&bytes),
                "torch": file.torch,
                "transformers": file.transformers,
                "python": file.python,
                "attention": file.attention,
                "dtype": file.dtype,
                "threads": file.threads,
                "cpu": file.cpu,
                "load_average_before": file.load_average_before,
                "load_average_after": file.load_average_after,
            }),
            prefill: file.prefill,
            decode: file.decode,
        })
    }

    /// Seconds of each repetition of `phase` at `tokens` tokens, if the file has them.
    pub(super) fn repetitions(&self, phase: &str, tokens: usize) -> Option<&[f64]> {
        let found = if phase == super::prefill::TASK {
            self.prefill
                .iter()
                .find(|p| p.n_tokens == tokens)
                .map(|p| &p.repetitions_s)
        } else {
            let same = |d: &&Decode| d.n_stored_tokens == tokens;
            self.decode.iter().find(same).map(|d| &d.repetitions_s)
        };
        found.map(Vec::as_slice)
    }
}

/// What decides how much there is to compute, under the names of `config.json`: there, here.
fn shape(there: &ModelConfig, here: &ModelConfig) -> Vec<(&'static str, Value, Value)> {
    let value = |config: &ModelConfig| {
        let attention = config.attention;
        [
            ("model_type", json!(config.family)),
            ("hidden_size", config.hidden_size.into()),
            ("intermediate_size", config.intermediate_size.into()),
            ("num_hidden_layers", config.layers.into()),
            ("num_attention_heads", attention.query_heads.into()),
            ("num_key_value_heads", attention.kv_heads.into()),
            ("head_dim", attention.head_dim.into()),
            ("vocab_size", config.vocab_size.into()),
            ("sliding_window", json!(config.windows)),
        ]
    };
    value(there)
        .into_iter()
        .zip(value(here))
        .map(|((key, there), (_, here))| (key, there, here))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::Shape;

    fn file(directory: &Path, change: impl FnOnce(&mut Value)) -> std::path::PathBuf {
        let mut value = json!({
            "model": "tiny", "config": Shape::Tiny.config(), "dtype": "float32", "attention": "sdpa", "threads": 2,
            "cpu": "X", "torch": "2.0", "transformers": "5.0", "python": "3.12",
            "prefill": [{"n_tokens": 8, "median_s": 2.0, "repetitions_s": [1.0, 2.0, 3.0]}],
            "decode": [{"n_stored_tokens": 4, "median_s": 0.5, "repetitions_s": [0.5]}],
        });
        change(&mut value);
        let path = directory.join("transformers.json");
        std::fs::write(&path, value.to_string()).unwrap();
        path
    }

    #[test]
    fn times_of_the_same_shape_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let config = ModelConfig::from_json(&Shape::Tiny.config(), "tiny").unwrap();
        let baseline = Baseline::load(&file(directory.path(), |_| {}), &config, 2, Some("X")).unwrap();
        assert_eq!(baseline.repetitions("prefill", 8), Some(&[1.0, 2.0, 3.0][..]));
        assert_eq!(baseline.repetitions("decode", 4), Some(&[0.5][..]));
        assert_eq!(baseline.repetitions("decode", 8), None);
        assert_eq!(baseline.label, "torch 2.0, transformers 5.0, sdpa, float32");
    }

    #[test]
    fn a_mismatch_names_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let config = ModelConfig::from_json(&Shape::Tiny.config(), "tiny").unwrap();
        let load = |change: fn(&mut Value)| {
            let path = file(directory.path(), change);
            let error = Baseline::load(&path, &config, 2, Some("X")).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.message().replace(&path.display().to_string(), "FILE")
        };
        assert_eq!(
            load(|v| v["config"]["hidden_size"] = 128.into()),
            "`FILE` cannot be compared: `hidden_size` is 128 there and 64 here"
        );
        assert_eq!(
            load(|v| v["threads"] = 8.into()),
            "`FILE` cannot be compared: `threads` is 8 there and 2 here"
        );
        assert_eq!(
            load(|v| v["cpu"] = "Y".into()),
            "`FILE` cannot be compared: `cpu` is \"Y\" there and \"X\" here"
        );
        assert!(load(|v| v["torch"] = Value::Null).contains("is not a file of scripts/bench_transformers.py"));
    }
}
