//! Reads which shards `model.safetensors.index.json` names.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde_json::Value;

use crate::error::{Error, Result, io_error};

/// The shards that the index at `path` names, each once, in the order of their names (as transformers loads them; the
/// order of the tensors in the index is that of their names, which says nothing about the shards).
pub(super) fn shards(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read(path).map_err(|source| io_error("read", path, &source))?;
    let broken = |what: String| {
        Error::user(format!("the weight index `{}` is broken: {what}", path.display()))
            .help("download the model again, or restore the index from where it came")
    };
    let index: Value = serde_json::from_slice(&text).map_err(|source| broken(format!("not JSON: {source}")))?;
    let weight_map = match index.get("weight_map") {
        Some(Value::Object(weight_map)) if !weight_map.is_empty() => weight_map,
        Some(Value::Object(_)) => return Err(broken("its `weight_map` is empty".to_owned())),
        Some(_) => return Err(broken("its `weight_map` is not an object".to_owned())),
        None => return Err(broken("it has no `weight_map`".to_owned())),
    };
    let mut shards = BTreeSet::new();
    for (tensor, shard) in weight_map {
        let Value::String(shard) = shard else {
            return Err(broken(format!(
                "tensor `{tensor}` has {shard} in place of a shard name"
            )));
        };
        if shards.contains(shard) {
            continue;
        }
        if let Some(fault) = shard_fault(shard) {
            return Err(broken(format!(
                "tensor `{tensor}` is in shard `{}`, {fault}",
                shard.escape_debug()
            )));
        }
        shards.insert(shard.clone());
    }
    Ok(shards.into_iter().collect())
}

/// A shard comes from a downloaded file and becomes a path and a URL, so it must stay inside the model's folder.
fn shard_fault(shard: &str) -> Option<&'static str> {
    let inside = Path::new(shard)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if shard.is_empty() {
        Some("an empty name")
    } else if !inside || shard.contains(['\\', ':']) || shard.contains("//") || shard.chars().any(char::is_control) {
        Some("which is not a plain path inside the model's folder")
    } else if !shard.ends_with(".safetensors") {
        Some("but only safetensors can be read")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors.index.json");
        std::fs::write(&path, text).unwrap();
        shards(&path)
    }

    #[test]
    fn shards_are_distinct_and_in_the_order_of_their_names() {
        let text = r#"{"metadata": {"total_size": 3}, "weight_map": {
            "lm_head.weight": "model-00002-of-00002.safetensors",
            "model.norm.weight": "model-00002-of-00002.safetensors",
            "model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}"#;
        let expected = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn broken_indices_say_what_is_wrong() {
        for (text, part) in [
            ("", "not JSON"),
            ("\u{FEFF}{", "not JSON"),
            ("[1]", "no `weight_map`"),
            ("{}", "no `weight_map`"),
            (r#"{"weight_map": {}}"#, "is empty"),
            (r#"{"weight_map": ["a"]}"#, "not an object"),
            (r#"{"weight_map": {"norm": 3}}"#, "`norm` has 3"),
            (r#"{"weight_map": {"norm": "../x.safetensors"}}"#, "`../x.safetensors`"),
            (r#"{"weight_map": {"norm": "/etc/x.safetensors"}}"#, "not a plain path"),
            (
                r#"{"weight_map": {"norm": "a/../../x.safetensors"}}"#,
                "not a plain path",
            ),
            (
                r#"{"weight_map": {"norm": "a\\..\\x.safetensors"}}"#,
                "not a plain path",
            ),
            (r#"{"weight_map": {"norm": "a\u0000.safetensors"}}"#, "not a plain path"),
            (r#"{"weight_map": {"norm": ""}}"#, "an empty name"),
            (r#"{"weight_map": {"norm": "pytorch_model.bin"}}"#, "only safetensors"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.message().contains(part), "{text}: {error}");
            assert!(error.message().contains("model.safetensors.index.json"), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
