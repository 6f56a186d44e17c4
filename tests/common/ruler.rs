//! Tokenizers and checks for generated tasks.

use std::path::{Path, PathBuf};
use std::process::Command;

use tokselect::error::Result;
use tokselect::eval::{CountTokens, Example, Request, Task, WhitespaceTokens};
use tokselect::model::tokenizer::{Tokenizer, TokenizerFiles};

use super::{reference_model, shared};

/// A way to count tokens, with its name.
pub struct Counter {
    pub name: String,
    pub tokens: Box<dyn CountTokens>,
}

struct Tokens(Tokenizer);

impl CountTokens for Tokens {
    fn count(&self, text: &str) -> Result<usize> {
        Ok(self.0.encode(text, false)?.len())
    }
}

/// White space always; GPT-2, Qwen2 and a reference model where the development data is.
pub fn counters() -> Vec<Counter> {
    let mut counters = vec![Counter {
        name: "white space".to_owned(),
        tokens: Box::new(WhitespaceTokens),
    }];
    let mut add = |name: &str, path: &Path| {
        let files = TokenizerFiles {
            tokenizer: path,
            tokenizer_config: None,
        };
        counters.push(Counter {
            name: name.to_owned(),
            tokens: Box::new(Tokens(Tokenizer::load(files).unwrap())),
        });
    };
    let dir = tempfile::tempdir().unwrap();
    for name in ["gpt2", "qwen2"] {
        let Some(packed) = shared(&format!("data/tokenizers/{name}/tokenizer.json.gz")) else {
            continue;
        };
        let path = dir.path().join(format!("{name}.json"));
        let unpacked = Command::new("gzip")
            .arg("-dc")
            .arg(&packed)
            .output()
            .expect("`gzip` runs");
        assert!(unpacked.status.success(), "{}", packed.display());
        std::fs::write(&path, unpacked.stdout).unwrap();
        add(name, &path);
    }
    if let Some(model) = reference_model("qwen2-f32-single") {
        add("reference model", &model.join("tokenizer.json"));
    }
    counters
}

/// The tokens of the built-in model, which need no development data.
pub fn demo_counter() -> Counter {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let files = TokenizerFiles {
        tokenizer: &folder.join("tokenizer.json"),
        tokenizer_config: Some(&folder.join("tokenizer_config.json")),
    };
    Counter {
        name: "demo model".to_owned(),
        tokens: Box::new(Tokens(Tokenizer::load(files).unwrap())),
    }
}

/// Writes the text of a gzip file into `dir`.
pub fn unpack(packed: &Path, dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let unpacked = Command::new("gzip")
        .arg("-dc")
        .arg(packed)
        .output()
        .expect("`gzip` runs");
    assert!(unpacked.status.success(), "{}", packed.display());
    std::fs::write(&path, unpacked.stdout).unwrap();
    path
}

/// Within 1 % of the length asked for and never above it.
pub fn check_length(tokenizer: &str, task: &dyn Task, example: &Example, request: &Request<'_>) {
    let text = format!("{}{}", example.prompt, example.answer_prefix);
    let taken = request.tokens.count(&text).unwrap() + task.max_new_tokens();
    let length = request.length.unwrap();
    assert!(
        taken <= length && length - taken <= length / 100,
        "{} with {tokenizer}: {taken} tokens instead of {length}",
        task.name()
    );
}
