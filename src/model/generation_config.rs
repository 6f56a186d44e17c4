//! How a model's authors want it to generate: `generation_config.json`, with `config.json` behind it.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::json_file::JsonFile;
use crate::error::Result;

/// The generation settings a model directory states; what it does not state is `None` (or empty).
///
/// Each key is taken from `generation_config.json`, else from `config.json`, where files written before
/// `generation_config.json` existed keep it. An id of `-1` means "none": published Llama conversions write it so.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GenerationConfig {
    /// Every id that ends generation, in file order.
    pub eos_token_ids: Vec<u32>,
    /// The id that starts a text.
    pub bos_token_id: Option<u32>,
    /// The id that fills batches.
    pub pad_token_id: Option<u32>,
    /// Whether to sample at all; `Some(false)` asks for greedy decoding whatever the other keys say.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f32>,
    /// How many of the largest logits stay; 0 is off.
    pub top_k: Option<usize>,
    /// Probability mass that stays.
    pub top_p: Option<f32>,
    /// Share of the largest probability below which a token goes.
    pub min_p: Option<f32>,
    /// Penalty on tokens already in the context.
    pub repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads both files; `generation_config` is `None` where the model has none.
    pub fn load(generation_config: Option<&Path>, config: &Path) -> Result<Self> {
        let mut files = Vec::with_capacity(2);
        if let Some(path) = generation_config {
            files.push(JsonFile::read(path)?);
        }
        files.push(JsonFile::read(config)?);

        let id = |key| -> Result<Option<u32>> { Ok(ids(&files, key)?.first().copied()) };
        Ok(Self {
            eos_token_ids: ids(&files, "eos_token_id")?,
            bos_token_id: id("bos_token_id")?,
            pad_token_id: id("pad_token_id")?,
            do_sample: first(&files, |f| f.bool("do_sample"))?,
            temperature: first(&files, |f| f.f32("temperature"))?,
            top_k: first(&files, |f| f.usize("top_k"))?,
            top_p: first(&files, |f| f.f32("top_p"))?,
            min_p: first(&files, |f| f.f32("min_p"))?,
            repetition_penalty: first(&files, |f| f.f32("repetition_penalty"))?,
        })
    }
}

/// The value of the first file that states it.
fn first<T>(files: &[JsonFile], read: impl Fn(&JsonFile) -> Result<Option<T>>) -> Result<Option<T>> {
    for file in files {
        let value = read(file)?;
        if value.is_some() {
            return Ok(value);
        }
    }
    Ok(None)
}

/// The ids under `key` of the first file that has it; a single id is a list of one.
fn ids(files: &[JsonFile], key: &str) -> Result<Vec<u32>> {
    for file in files {
        let values = match file.get(key) {
            None => continue,
            Some(Value::Array(list)) => list.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let mut out = Vec::with_capacity(values.len());
        for value in values {
            match value.as_i64() {
                Some(-1) => {}
                Some(n) => out.push(u32::try_from(n).map_err(|_| file.wrong(key, WANTED))?),
                None => return Err(file.wrong(key, WANTED)),
            }
        }
        return Ok(out);
    }
    Ok(Vec::new())
}

const WANTED: &str = "a token id or a list of token ids";

#[cfg(test)]
mod tests {
    use super::GenerationConfig;
    use std::fs;

    fn load(generation: Option<&str>, config: &str) -> Result<GenerationConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let config_path = dir.path().join("config.json");
        fs::write(&config_path, config).unwrap();
        let generation_path = dir.path().join("generation_config.json");
        if let Some(text) = generation {
            fs::write(&generation_path, text).unwrap();
        }
        GenerationConfig::load(generation.map(|_| generation_path.as_path()), &config_path).map_err(|e| e.to_string())
    }

    #[test]
    fn generation_config_wins_key_by_key() {
        let got = load(
            Some(r#"{"eos_token_id": [5, 6], "temperature": 1, "top_p": 0.8, "top_k": 20, "do_sample": true}"#),
            r#"{"eos_token_id": 9, "bos_token_id": 1, "temperature": 0.2, "pad_token_id": -1}"#,
        )
        .unwrap();
        assert_eq!(got.eos_token_ids, [5, 6]);
        assert_eq!((got.bos_token_id, got.pad_token_id), (Some(1), None));
        assert_eq!(
            (got.temperature, got.top_p, got.top_k),
            (Some(1.0), Some(0.8), Some(20))
        );
        assert_eq!(
            (got.do_sample, got.min_p, got.repetition_penalty),
            (Some(true), None, None)
        );
    }

    #[test]
    fn config_alone_is_enough_and_null_is_absent() {
        let got = load(None, r#"{"eos_token_id": 2}"#).unwrap();
        assert_eq!(got.eos_token_ids, [2]);
        let got = load(Some(r#"{"eos_token_id": null}"#), r#"{"eos_token_id": 2}"#).unwrap();
        assert_eq!(got.eos_token_ids, [2]);
        assert_eq!(load(None, "{}").unwrap(), GenerationConfig::default());
    }

    #[test]
    fn a_wrong_type_names_file_key_and_value() {
        for (text, key) in [
            (r#"{"eos_token_id": "</s>"}"#, "`eos_token_id` is `\"</s>\"`"),
            (r#"{"eos_token_id": [1, "x"]}"#, "`eos_token_id`"),
            (r#"{"bos_token_id": 4294967296}"#, "`bos_token_id` is `4294967296`"),
            (r#"{"bos_token_id": -2}"#, "`bos_token_id` is `-2`"),
            (r#"{"temperature": "hot"}"#, "`temperature`"),
            (r#"{"top_k": 1.5}"#, "`top_k`"),
            (r#"{"do_sample": 1}"#, "`do_sample`"),
        ] {
            let error = load(Some(text), "{}").unwrap_err();
            assert!(error.contains("generation_config.json"), "{error}");
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn broken_json_names_file_and_position() {
        let error = load(None, "{\n  \"eos_token_id\": \n}").unwrap_err();
        assert!(error.contains("config.json") && error.contains("line 3"), "{error}");
    }
}
