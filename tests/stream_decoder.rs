//! Streaming decoding gives exactly the text of decoding all ids at once, for any ids.

mod common;

use std::fs;
use std::path::Path;

use common::{REFERENCE_MODELS, reference_model, shared};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tokselect::model::tokenizer::{Tokenizer, TokenizerFiles};

fn load(dir: &Path) -> Tokenizer {
    Tokenizer::load(TokenizerFiles {
        tokenizer: &dir.join("tokenizer.json"),
        tokenizer_config: None,
    })
    .unwrap()
}

fn from_json(json: &Value) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    load(dir.path())
}

/// The texts of all pushes and of the end.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut decoder = tokenizer.stream();
    let mut texts: Vec<String> = ids.iter().filter_map(|&id| decoder.push(id).unwrap()).collect();
    texts.extend(decoder.finish().unwrap());
    assert_eq!(decoder.finish().unwrap(), None, "nothing is left after the end");
    texts
}

/// The six reference tokenizers and the trained one.
fn tokenizers() -> Option<Vec<(String, Tokenizer)>> {
    let mut all = Vec::new();
    for name in REFERENCE_MODELS {
        all.push((name.to_owned(), load(&reference_model(name)?)));
    }
    all.push(("stories260K".into(), load(&shared("data/stories260K/hf")?)));
    Some(all)
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    })
}

/// Random ids are mostly broken UTF-8 here: 256 of some 600 tokens are single bytes.
fn check_random_ids(name: &str, tokenizer: &Tokenizer) {
    let beyond = tokenizer.vocab_size() as u32 + 40;
    runner(400)
        .run(&prop::collection::vec(0..beyond, 0..120), |ids| {
            let streamed = stream(tokenizer, &ids);
            prop_assert!(streamed.iter().all(|text| !text.is_empty()));
            prop_assert_eq!(streamed.concat(), tokenizer.decode(&ids, true).unwrap(), "{}", name);
            Ok(())
        })
        .unwrap();
}

#[test]
fn random_ids() {
    let Some(all) = tokenizers() else { return };
    for (name, tokenizer) in &all {
        check_random_ids(name, tokenizer);
    }
}

/// Text of many scripts, joined emoji and combining marks among them.
fn multi_byte_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("👩\u{200d}👩\u{200d}👧\u{200d}👦".to_owned()),
        Just("🏳\u{fe0f}\u{200d}🌈".to_owned()),
        Just("e\u{301}\u{327}".to_owned()),
        Just("हिन्दी".to_owned()),
        Just(" ".to_owned()),
        Just("\r\n\t".to_owned()),
        "[a-z ]{1,6}",
        "\\p{Han}{1,3}",
        "\\p{Hangul}{1,3}",
        "\\p{Arabic}{1,3}",
        "\\p{So}{1,3}",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(part, 0..16).prop_map(|parts| parts.concat())
}

#[test]
fn multi_byte_text_comes_without_replacement_characters() {
    let Some(all) = tokenizers() else { return };
    for (name, tokenizer) in &all {
        runner(200)
            .run(&multi_byte_text(), |text| {
                prop_assume!(!text.contains('\u{fffd}'));
                let ids = tokenizer.encode(&text, true).unwrap();
                let streamed = stream(tokenizer, &ids).concat();
                prop_assert!(!streamed.contains('\u{fffd}'), "{}: {:?}", name, streamed);
                prop_assert_eq!(streamed, tokenizer.decode(&ids, true).unwrap(), "{}", name);
                Ok(())
            })
            .unwrap();
    }
}

/// Text with holes: ids of real text of which some were lost.
#[test]
fn text_with_missing_ids() {
    let Some(all) = tokenizers() else { return };
    for (name, tokenizer) in &all {
        runner(200)
            .run(&(multi_byte_text(), any::<u64>()), |(text, mask)| {
                let ids = tokenizer.encode(&text, false).unwrap();
                let kept: Vec<u32> = (0..)
                    .zip(&ids)
                    .filter(|(at, _)| mask >> (at % 64) & 1 == 1)
                    .map(|(_, &id)| id)
                    .collect();
                prop_assert_eq!(
                    stream(tokenizer, &kept).concat(),
                    tokenizer.decode(&kept, true).unwrap(),
                    "{}",
                    name
                );
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn text_is_emitted_as_soon_as_it_is_certain() {
    let Some(dir) = reference_model("qwen2-f32-single") else {
        return;
    };
    let tokenizer = load(&dir);
    let ids = tokenizer.encode("a🙂b", false).unwrap();
    let mut decoder = tokenizer.stream();
    let pushed: Vec<_> = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(pushed, [some("a"), None, None, None, some("🙂"), some("b")]);
    assert_eq!(decoder.finish().unwrap(), None);
}

#[test]
fn the_end_of_an_unfinished_character_is_one_replacement_character() {
    let Some(dir) = reference_model("qwen2-f32-single") else {
        return;
    };
    let tokenizer = load(&dir);
    let mut ids = tokenizer.encode("🙂", false).unwrap();
    ids.pop();
    assert_eq!(stream(&tokenizer, &ids), ["\u{fffd}"]);
}

/// A run of byte tokens is text only if all of it is: the newline may still turn into U+FFFD, and must wait.
#[test]
fn byte_fallback_runs_wait_for_their_end() {
    let Some(dir) = reference_model("llama2-mha-f16") else {
        return;
    };
    let tokenizer = load(&dir);
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    let (newline, bad, a) = (id("<0x0A>"), id("<0xFF>"), id("a"));
    let mut decoder = tokenizer.stream();
    assert_eq!(decoder.push(a).unwrap().as_deref(), Some("a"));
    assert_eq!(decoder.push(newline).unwrap(), None);
    assert_eq!(decoder.push(bad).unwrap(), None);
    assert_eq!(decoder.push(a).unwrap().as_deref(), Some("\u{fffd}\u{fffd}a"));
}

/// A small vocabulary with a decoder of one's choice: words with the sentencepiece marker, bytes, a special token.
fn with_decoder(decoder: &Value, model: &str) -> Tokenizer {
    let mut tokens = vec![
        "<unk>".to_owned(),
        "<s>".into(),
        "▁".into(),
        "▁▁a".into(),
        "b▁c".into(),
        "##d".into(),
    ];
    tokens.extend(["x", ".", "<0x4g>", "<0x+1>", "é", "##,", "n't"].map(String::from));
    tokens.extend([0x20, 0x41, 0xc3, 0xa9, 0xff, 0xe2, 0x96, 0x81].map(|byte: u8| format!("<0x{byte:02X}>")));
    let vocab: Value = (0..)
        .zip(&tokens)
        .map(|(id, token): (u32, _)| (token.clone(), json!(id)))
        .collect();
    let special = json!({"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    let model = match model {
        "BPE" => json!({"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}),
        _ => json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}),
    };
    from_json(
        &json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [special],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": decoder, "model": model}),
    )
}

#[test]
fn other_decoders_that_are_followed_or_held_until_the_end() {
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let fallback = json!({"type": "ByteFallback"});
    let fuse = json!({"type": "Fuse"});
    let strip = |start: u32| json!({"type": "Strip", "content": " ", "start": start, "stop": 0});
    let sequence = |steps: &[&Value]| json!({"type": "Sequence", "decoders": steps});
    let metaspace =
        |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let decoders = [
        sequence(&[&replace, &fallback, &fuse]),
        sequence(&[&replace, &fallback, &fuse, &strip(1)]),
        sequence(&[&replace, &fallback, &fuse, &strip(3)]),
        sequence(&[&fallback, &replace, &fuse]),
        sequence(&[&replace, &strip(1)]),
        sequence(&[&replace]),
        metaspace("always"),
        metaspace("first"),
        metaspace("never"),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        Value::Null,
    ];
    for decoder in &decoders {
        for model in ["BPE", "WordLevel"] {
            check_random_ids(&format!("{decoder}"), &with_decoder(decoder, model));
        }
    }
}
