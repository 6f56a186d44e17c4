//! The tokenizer against ids and texts computed by transformers.

#![allow(clippy::print_stderr, reason = "a skipped test says why")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{REFERENCE_MODELS, reference_model, shared};
use serde_json::{Value, json};
use tokselect::model::tokenizer::{Tokenizer, TokenizerFiles};

fn load(dir: &Path) -> Tokenizer {
    try_load(dir).unwrap()
}

fn try_load(dir: &Path) -> tokselect::error::Result<Tokenizer> {
    let config = dir.join("tokenizer_config.json");
    Tokenizer::load(TokenizerFiles {
        tokenizer: &dir.join("tokenizer.json"),
        tokenizer_config: config.is_file().then_some(&config),
    })
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn every_case_of_every_reference_model() {
    let mut checked = 0;
    for name in REFERENCE_MODELS {
        let Some(dir) = reference_model(name) else { return };
        let tokenizer = load(&dir);
        let expected: Value = serde_json::from_slice(&fs::read(dir.join("expected.json")).unwrap()).unwrap();
        for case in expected["tokenizer_cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let (with, plain) = (ids(&case["ids"]), ids(&case["ids_plain"]));
            assert_eq!(tokenizer.encode(text, true).unwrap(), with, "{name}: {text:?}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), plain, "{name}: {text:?}");
            assert_eq!(
                tokenizer.decode(&plain, false).unwrap(),
                case["decoded"],
                "{name}: {text:?}"
            );
            checked += 1;
        }
    }
    assert_eq!(checked, 6 * 22);
}

#[test]
fn special_tokens_and_sizes() {
    let Some(dir) = reference_model("llama3-f32-sharded") else {
        return;
    };
    let llama = load(&dir);
    assert_eq!(
        (llama.bos_token(), llama.bos_token_id()),
        (Some("<|begin_of_text|>"), Some(595))
    );
    assert_eq!(
        (llama.eos_token(), llama.eos_token_id()),
        (Some("<|end_of_text|>"), Some(596))
    );
    assert_eq!(llama.vocab_size(), 600);
    assert_eq!(
        (llama.token_to_id("<|eot_id|>"), llama.id_to_token(600)),
        (Some(599), None)
    );
    assert_eq!(llama.hash().len(), 64);

    let Some(dir) = reference_model("qwen2-f32-single") else {
        return;
    };
    let qwen = load(&dir);
    assert_eq!((qwen.bos_token(), qwen.bos_token_id()), (None, None));
    // 640 embedding rows, 600 tokens: the padding of published Qwen models.
    qwen.check_against_model_vocab(640).unwrap();
    let error = qwen.check_against_model_vocab(599).unwrap_err();
    assert!(
        error.message().contains("go up to 599") && error.message().contains("599 embedding rows"),
        "{error}"
    );
}

/// transformers: `decode([1, 400, 9999, 401, 100000], skip_special_tokens=True)` and without skipping.
#[test]
fn ids_without_a_token_decode_to_nothing() {
    let Some(dir) = shared("data/stories260K/hf") else {
        return;
    };
    let tokenizer = load(&dir);
    assert_eq!(tokenizer.decode(&[1, 400, 9999, 401, 100_000], true).unwrap(), "do lo");
    assert_eq!(tokenizer.decode(&[1, 400, 401], false).unwrap(), "<s> do lo");
    assert_eq!(tokenizer.decode(&[u32::MAX], false).unwrap(), "");
}

/// A copy of the trained tiny model's tokenizer files with edits.
fn edited(edit: impl FnOnce(&mut Value, &mut Value)) -> Option<tempfile::TempDir> {
    let source = shared("data/stories260K/hf")?;
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(source.join(name)).unwrap()).unwrap() };
    let (mut tokenizer, mut config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    edit(&mut tokenizer, &mut config);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Some(dir)
}

/// Expected ids: transformers 5.23 on the same edited files. BOS never doubles, and without a post-processor
/// `add_bos_token` brings none.
#[test]
fn the_post_processor_alone_adds_special_tokens() {
    let ids_of_hi = |edit: fn(&mut Value, &mut Value)| {
        let dir = edited(edit)?;
        Some(load(dir.path()).encode("Hi", true).unwrap())
    };
    let Some(as_published) = ids_of_hi(|_, c| c["add_bos_token"] = json!(true)) else {
        return;
    };
    assert_eq!(as_published, [1, 320, 417]);
    assert_eq!(
        ids_of_hi(|_, c| c["add_eos_token"] = json!(true)).unwrap(),
        [1, 320, 417]
    );
    assert_eq!(
        ids_of_hi(|_, c| c["add_bos_token"] = json!(false)).unwrap(),
        [1, 320, 417]
    );
    assert_eq!(ids_of_hi(|t, _| t["post_processor"] = json!(null)).unwrap(), [320, 417]);
}

/// Expected: transformers 5.23. `er` is an ordinary token of the vocabulary until the config calls it EOS.
#[test]
fn tokenizer_config_makes_tokens_special() {
    let Some(dir) = edited(|_, c| c["eos_token"] = json!({"content": "er", "__type": "AddedToken"})) else {
        return;
    };
    let tokenizer = load(dir.path());
    assert_eq!(tokenizer.eos_token_id(), Some(285));
    let ids = tokenizer.encode("her Hi", true).unwrap();
    assert_eq!(ids, [1, 270, 285, 410, 320, 417]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "h  Hi");
}

#[test]
fn tokens_listed_only_in_tokenizer_config() {
    let listed = |id: &str| json!({id: {"content": "<tool>", "special": true}});
    let Some(dir) = edited(|_, c| c["added_tokens_decoder"] = listed("512")) else {
        return;
    };
    let tokenizer = load(dir.path());
    assert_eq!(tokenizer.vocab_size(), 513);
    assert_eq!(tokenizer.encode("<tool>", false).unwrap(), [512]);
    assert_eq!(tokenizer.decode(&[512], true).unwrap(), "");

    let dir = edited(|_, c| c["added_tokens_decoder"] = listed("700")).unwrap();
    let error = try_load(dir.path()).unwrap_err();
    assert!(
        error.message().contains("the id 700") && error.message().contains("gives it 512"),
        "{error}"
    );

    // A name without a token must not lengthen the vocabulary beyond the embedding.
    let dir = edited(|_, c| c["pad_token"] = json!("[PAD]")).unwrap();
    assert_eq!(load(dir.path()).vocab_size(), 512);
}

#[test]
fn truncation_and_padding_of_the_file_are_ignored() {
    let Some(dir) = edited(|t, _| {
        t["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        t["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
    }) else {
        return;
    };
    assert_eq!(load(dir.path()).encode("Hi", true).unwrap(), [1, 320, 417]);
}

fn write_tokenizer(content: &str, other: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    if !content.is_empty() {
        fs::write(dir.path().join("tokenizer.json"), content).unwrap();
    }
    if !other.is_empty() {
        fs::write(dir.path().join(other), "x").unwrap();
    }
    let path = dir.path().join("tokenizer.json");
    (dir, path)
}

#[test]
fn broken_and_missing_files_are_explained() {
    for (content, other, wanted) in [
        (
            "{\"version\": \"1.0\",\n  \"added",
            "",
            ["tokenizer.json", "line 2 column 8", "download it again"],
        ),
        (
            "{\"version\": \"1.0\"}",
            "",
            ["tokenizer.json", "is not a tokenizer", "line 1 column 18"],
        ),
        (
            "",
            "tokenizer.model",
            ["no `", "the folder has tokenizer.model", "save_pretrained"],
        ),
        (
            "",
            "vocab.json",
            ["no `", "the folder has vocab.json", "save_pretrained"],
        ),
        ("", "", ["no `", "tokenizer.json", "model directory"]),
    ] {
        let (dir, _) = write_tokenizer(content, other);
        let error = try_load(dir.path()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        for part in wanted {
            assert!(error.to_string().contains(part), "{part:?} not in: {error}");
        }
    }
}

#[test]
fn a_decoder_that_would_panic_is_refused() {
    let Some(dir) = edited(|t, _| t["decoder"]["decoders"][3]["stop"] = json!(1)) else {
        return;
    };
    let error = try_load(dir.path()).unwrap_err();
    assert!(error.message().contains("`Strip` with `stop` above 0"), "{error}");
}

#[test]
fn a_wrong_special_token_names_file_and_key() {
    let Some(dir) = edited(|_, c| c["bos_token"] = json!(1)) else {
        return;
    };
    let error = try_load(dir.path()).unwrap_err();
    assert!(
        error.message().contains("tokenizer_config.json`: `bos_token` is `1`"),
        "{error}"
    );
}

/// Ids: Python's `tokenizers` on the same files. These are real vocabularies (50 and 151 thousand tokens).
#[test]
fn published_vocabularies() {
    const TEXTS: [&str; 4] = [
        "Hello, world! It's 2024.",
        " 你好,世界 👩\u{200d}👩\u{200d}👧 naïve",
        "def f(x):\n\treturn x  # über\r\n\n",
        "<|endoftext|>e\u{301}",
    ];
    let gpt2: [&[u32]; 4] = [
        &[15496, 11, 995, 0, 632, 338, 48609, 13],
        &[
            220, 19526, 254, 25001, 121, 11, 10310, 244, 45911, 234, 50169, 102, 447, 235, 41840, 102, 447, 235, 41840,
            100, 41492,
        ],
        &[
            4299, 277, 7, 87, 2599, 198, 197, 7783, 2124, 220, 1303, 6184, 120, 527, 201, 628,
        ],
        &[50256, 68, 136, 223],
    ];
    let qwen2: [&[u32]; 4] = [
        &[9707, 11, 1879, 0, 1084, 594, 220, 17, 15, 17, 19, 13],
        &[
            220, 108_386, 11, 99489, 61804, 102, 378, 235, 145_233, 378, 235, 145_665, 94880, 586,
        ],
        &[750, 282, 2075, 982, 853, 856, 220, 671, 13785, 80823],
        &[151_643, 963],
    ];
    for (name, expected, size) in [("gpt2", gpt2, 50257), ("qwen2", qwen2, 151_646)] {
        let Some(path) = shared(&format!("data/tokenizers/{name}/tokenizer.json.gz")) else {
            return;
        };
        let Some(json) = gunzip(&path) else { return };
        let (dir, _) = write_tokenizer(&json, "");
        let tokenizer = load(dir.path());
        assert_eq!(tokenizer.vocab_size(), size);
        for (text, ids) in TEXTS.iter().zip(expected) {
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{name}: {text:?}");
            let mut stream = tokenizer.stream();
            let mut streamed = String::new();
            for &id in ids {
                streamed.extend(stream.push(id).unwrap());
                assert!(!streamed.contains('\u{fffd}'), "{name}: {streamed:?}");
            }
            streamed.extend(stream.finish().unwrap());
            assert_eq!(streamed, tokenizer.decode(ids, true).unwrap());
        }
    }
}

/// The text in a gzip file, by the `gzip` program: the crate itself has no use for that format.
fn gunzip(path: &Path) -> Option<String> {
    let child = Command::new("gzip").arg("-dc").arg(path).stdout(Stdio::piped()).spawn();
    let Ok(child) = child else {
        eprintln!("skipped: no `gzip` program");
        return None;
    };
    Some(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap())
}
