//! Model folders, configurations, weights, tokenizers and chat templates that cannot be used.

use crate::common::program::{infer, refuses, succeeds, tokselect};
use crate::common::tiny_model::{
    CONFIG, HIDDEN, INDEX, ModelDir, TOKENIZER, TOKENIZER_CONFIG, Tensor, TinyModel, VOCABULARY, WEIGHTS, shard_name,
    write_raw_safetensors,
};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

const EMBEDDING: &str = "model.embed_tokens.weight";
const UP: &str = "model.layers.1.mlp.up_proj.weight";

fn prompted(model: &ModelDir) -> std::process::Command {
    let mut command = infer(model);
    command.args(["--prompt", "hello", "-n", "2"]);
    command
}

/// Refuses `model` with exit code 2.
#[track_caller]
fn unusable(model: &ModelDir, parts: &[&str]) {
    refuses(&mut prompted(model), 2, parts);
}

#[test]
fn a_path_that_does_not_exist() {
    for path in ["./no/such/folder", "/no-such-folder", "missing.safetensors"] {
        refuses(
            tokselect().args(["infer", "-p", "x", "-m", path]),
            2,
            &[path, "does not exist"],
        );
    }
    refuses(
        tokselect().args(["infer", "-p", "x", "-m", "no-such-model"]),
        2,
        &["`no-such-model`", "Org/Name"],
    );
    refuses(
        tokselect().args(["infer", "-p", "x", "-m", ""]),
        2,
        &["model reference is empty"],
    );
}

#[test]
fn a_folder_that_is_no_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let command = || {
        let mut command = tokselect();
        command.args(["infer", "-p", "x", "-m"]).arg(folder.path());
        command
    };
    let place = folder.path().to_str().expect("UTF-8");
    refuses(&mut command(), 2, &[place, "no `config.json`", "nothing is there"]);
    for other in ["pytorch_model.bin", "model-Q4.gguf"] {
        let path = folder.path().join(other);
        std::fs::write(&path, "x").expect("writable");
        refuses(&mut command(), 2, &[place, other, "safetensors are needed"]);
        let mut named = tokselect();
        named.args(["infer", "-p", "x", "-m"]).arg(&path);
        refuses(&mut named, 2, &[other, "not a model file"]);
        std::fs::remove_file(&path).expect("there");
    }
}

#[test]
fn a_model_without_weights_or_with_a_configuration_alone() {
    let model = TinyModel::llama().build();
    refuses(
        tokselect().args(["infer", "-p", "x", "-m"]).arg(model.file(CONFIG)),
        2,
        &["config.json", "configuration without weights", "--random-weights"],
    );
    model.remove(WEIGHTS);
    unusable(&model, &[WEIGHTS, INDEX]);
    model.write("pytorch_model.bin", "x");
    unusable(&model, &["pytorch_model.bin", "safetensors are needed"]);
}

#[test]
fn a_configuration_that_is_not_json() {
    let model = TinyModel::llama().build();
    for (text, part) in [
        ("", "not valid JSON"),
        ("{\"hidden_size\": ", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "key `model_type` is missing"),
    ] {
        model.write(CONFIG, text);
        unusable(&model, &["config.json", part]);
    }
}

#[test]
fn a_configuration_with_a_wrong_or_missing_key() {
    let cases: [(&str, Value, &str); 17] = [
        ("hidden_size", Value::Null, "is missing"),
        ("hidden_size", json!("32"), "is `\"32\"`"),
        ("hidden_size", json!(0), "is `0`"),
        ("hidden_size", json!(32.5), "is `32.5`"),
        ("num_hidden_layers", json!(-1), "is `-1`"),
        ("num_hidden_layers", json!(4_000_000_000_u64), "up to 16384"),
        ("vocab_size", json!(1_u64 << 31), "is `2147483648`"),
        ("intermediate_size", json!(u32::MAX), "is `4294967295`"),
        ("head_dim", json!(0), "is `0`"),
        ("head_dim", json!(7), "even"),
        ("num_key_value_heads", json!(3), "divisor"),
        ("rms_norm_eps", json!("1e-5"), "positive number"),
        ("model_type", json!("gpt2"), "`gpt2` is not supported"),
        ("model_type", json!(3), "is `3`"),
        (
            "rope_scaling",
            json!({"type": "longrope", "factor": 2.0}),
            "`longrope` is not supported",
        ),
        ("tie_word_embeddings", json!("yes"), "true or false"),
        ("hidden_act", json!("gelu"), "`gelu` is not supported"),
    ];
    for (key, value, part) in cases {
        let model = TinyModel::llama().build();
        model.edit_config(|config| config[key] = value);
        unusable(&model, &["config.json", key, part]);
        // Without weights there is no tensor to stumble over: the configuration itself is refused, unallocated.
        refuses(
            prompted(&model).args(["--random-weights", "1"]),
            2,
            &["config.json", key, part],
        );
    }
}

#[test]
fn a_model_of_random_weights_that_no_machine_holds() {
    let model = TinyModel::llama().build();
    model.edit_config(|config| {
        config["hidden_size"] = json!(1 << 20);
        config["num_hidden_layers"] = json!(1 << 14);
        config["vocab_size"] = json!(1 << 28);
    });
    refuses(
        prompted(&model).args(["--random-weights", "1"]),
        3,
        &["TiB", "weights", "no context fits", "smaller model"],
    );
}

#[test]
fn weights_that_are_cut_off() {
    let model = TinyModel::llama().build();
    let size = model.size(WEIGHTS);
    let whole = std::fs::read(model.file(WEIGHTS)).expect("weights");
    for length in [0, 4, 8, 100, size / 2, size - 1] {
        model.write(WEIGHTS, &whole);
        model.truncate(WEIGHTS, length);
        unusable(&model, &[WEIGHTS, "truncated", &format!("{length} bytes")]);
    }
    model.write(WEIGHTS, [&whole[..], b"x"].concat());
    unusable(
        &model,
        &[WEIGHTS, "longer than its header says", &format!("{} bytes", size + 1)],
    );
}

#[test]
fn weights_whose_header_is_nonsense() {
    let model = TinyModel::llama().build();
    let whole = std::fs::read(model.file(WEIGHTS)).expect("weights");
    for (length, part) in [
        (u64::MAX, "not a safetensors file"),
        (1 << 63, "not a safetensors file"),
        (99_999_999, "truncated"),
        (0, "longer than its header says"),
    ] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        model.write(WEIGHTS, bytes);
        if length == 0 {
            unusable(&model, &[WEIGHTS, "header is not valid"]);
        } else {
            unusable(&model, &[WEIGHTS, part]);
        }
    }
    model.write(WEIGHTS, [b'x'; 1000]);
    unusable(&model, &[WEIGHTS, "not a safetensors file"]);
    let f32_at = |start: u64, end: u64| json!({"dtype": "F32", "shape": [4], "data_offsets": [start, end]});
    for header in [
        "{".to_owned(),
        "[]".to_owned(),
        json!({"a": f32_at(0, 16), "b": f32_at(8, 24)}).to_string(),
        json!({"a": f32_at(16, 0)}).to_string(),
        json!({"a": f32_at(u64::MAX - 16, u64::MAX)}).to_string(),
        json!({"a": f32_at(16, 32)}).to_string(),
        json!({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 16]}}).to_string(),
        json!({"a": {"dtype": "Q4", "shape": [4], "data_offsets": [0, 16]}}).to_string(),
        json!({"a": {"dtype": "F32", "shape": [1_u64 << 40, 1_u64 << 40], "data_offsets": [0, 16]}}).to_string(),
    ] {
        write_raw_safetensors(&model.file(WEIGHTS), &header, &[0; 32]);
        unusable(&model, &[WEIGHTS, "header is not valid"]);
    }
}

#[test]
fn shards_that_do_not_fit_their_index() {
    let sharded = || TinyModel::llama().shards(3).build();
    let second = shard_name(1, 3);

    let model = sharded();
    model.remove(&second);
    unusable(&model, &[&second, INDEX]);

    let model = sharded();
    model.truncate(&second, 60);
    unusable(&model, &[&second, "truncated"]);

    let model = sharded();
    for (text, part) in [
        ("{", "not JSON"),
        ("[1]", "no `weight_map`"),
        ("{\"weight_map\": {}}", "empty"),
    ] {
        model.write(INDEX, text);
        unusable(&model, &[INDEX, part]);
    }

    let model = sharded();
    model.edit_json(INDEX, |index| {
        let now = index["weight_map"][EMBEDDING].clone();
        let other = if now == second {
            shard_name(0, 3)
        } else {
            second.clone()
        };
        index["weight_map"][EMBEDDING] = json!(other);
    });
    unusable(&model, &[INDEX, EMBEDDING, "but it is in"]);

    let model = sharded();
    model.edit_json(INDEX, |index| index["weight_map"]["ghost"] = json!(second));
    unusable(&model, &[INDEX, "`ghost`", &second]);

    let model = sharded();
    model.edit_json(INDEX, |index| {
        index["weight_map"][EMBEDDING] = json!("../outside.safetensors");
    });
    unusable(&model, &[INDEX, EMBEDDING, "outside.safetensors"]);

    let model = sharded();
    std::fs::copy(model.file(&shard_name(0, 3)), model.file(&second)).expect("copied");
    unusable(&model, &[&second, &shard_name(0, 3), "again"]);

    let model = sharded();
    refuses(
        tokselect().args(["infer", "-p", "x", "-m"]).arg(model.file(&second)),
        2,
        &[&second, "one of 3 shards"],
    );
}

#[test]
fn tensors_that_the_configuration_does_not_call_for() {
    let spoiled = |edit: &dyn Fn(&mut crate::common::tiny_model::Tensors)| {
        let model = TinyModel::llama().build();
        model.edit_tensors(WEIGHTS, edit);
        model
    };
    let missing = spoiled(&|tensors| drop(tensors.remove(UP)));
    unusable(&missing, &[WEIGHTS, UP, "missing", "[48, 32]"]);

    let untied = spoiled(&|tensors| drop(tensors.remove("lm_head.weight")));
    unusable(&untied, &["lm_head.weight", "tie_word_embeddings"]);

    let extra = spoiled(&|tensors| drop(tensors.insert("model.layers.0.extra.bias".into(), Tensor::f32(&[1], &[0.0]))));
    unusable(&extra, &[WEIGHTS, "model.layers.0.extra.bias", "no place"]);

    let turned = spoiled(&|tensors| tensors.get_mut(UP).expect("there").shape.reverse());
    unusable(&turned, &[WEIGHTS, UP, "[32, 48]", "expected [48, 32]"]);

    for (dtype, bytes) in [(Dtype::I64, 8), (Dtype::F8_E4M3, 1), (Dtype::F64, 8)] {
        let typed = spoiled(&|tensors| {
            let tensor = tensors.get_mut(UP).expect("there");
            tensor.dtype = dtype;
            tensor.bytes = vec![0; tensor.bytes.len() / 4 * bytes];
        });
        unusable(
            &typed,
            &[WEIGHTS, UP, &format!("{dtype:?}"), "expected F32, F16 or BF16"],
        );
    }

    let more_layers = TinyModel::qwen2().build();
    more_layers.edit_config(|config| config["num_hidden_layers"] = json!(3));
    unusable(&more_layers, &["model.layers.2.", "missing"]);
}

#[test]
fn weights_that_are_not_numbers() {
    for (tensor, element, value, place) in [
        (UP, 3 * HIDDEN + 5, f32::NAN, "NaN at [3, 5]"),
        (EMBEDDING, 0, f32::INFINITY, "inf at [0, 0]"),
        (
            EMBEDDING,
            VOCABULARY * HIDDEN - 1,
            f32::NEG_INFINITY,
            "-inf at [299, 31]",
        ),
        ("model.norm.weight", 7, f32::NAN, "NaN at [7]"),
    ] {
        let model = TinyModel::llama().build();
        model.edit_tensors(WEIGHTS, |tensors| {
            tensors.get_mut(tensor).expect("there").set(element, value);
        });
        unusable(&model, &[WEIGHTS, tensor, place]);
    }
}

#[test]
fn a_tokenizer_that_is_missing_broken_or_of_another_model() {
    let model = TinyModel::llama().build();
    let whole = std::fs::read(model.file(TOKENIZER)).expect("tokenizer");
    for (text, part) in [
        ("", "not valid JSON"),
        ("{\"model\": ", "not valid JSON"),
        ("{}", "is not a tokenizer"),
        ("[]", "is not a tokenizer"),
    ] {
        model.write(TOKENIZER, text);
        unusable(&model, &[TOKENIZER, part]);
    }
    model.write(TOKENIZER, &whole);
    model.edit_json(TOKENIZER, |tokenizer| tokenizer["model"]["vocab"]["zz"] = json!(5000));
    unusable(&model, &[TOKENIZER, "up to 5000", "300"]);

    model.write(TOKENIZER, &whole);
    model.edit_json(TOKENIZER, |tokenizer| {
        let mut token = tokenizer["added_tokens"][0].clone();
        token["id"] = json!(5000);
        token["content"] = json!("<far>");
        tokenizer["added_tokens"].as_array_mut().expect("a list").push(token);
    });
    unusable(&model, &[TOKENIZER, "`<far>`", "5000"]);

    model.write(TOKENIZER, &whole);
    for (text, part) in [
        ("[]", "not a JSON object"),
        ("{", "not valid JSON"),
        ("{\"bos_token\": 3}", "`bos_token`"),
    ] {
        model.write(TOKENIZER_CONFIG, text);
        unusable(&model, &[TOKENIZER_CONFIG, part]);
    }
    model.write(TOKENIZER_CONFIG, "{}");
    model.write("generation_config.json", "{\"eos_token_id\": \"</s>\"}");
    unusable(&model, &["generation_config.json", "`eos_token_id`", "</s>"]);
    model.remove(TOKENIZER);
    model.write("tokenizer.model", "x");
    unusable(&model, &["no `tokenizer.json`", "tokenizer.model"]);
}

#[test]
fn a_chat_template_that_fails() {
    for (template, part) in [
        ("line one\n{% for m in messages %}", "line 2"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content.text }}", "undefined"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
    ] {
        let model = TinyModel::llama().chat_template(template).build();
        unusable(
            &model,
            &["chat template", TOKENIZER_CONFIG, part, "--chat-template none"],
        );
        succeeds(prompted(&model).args(["--chat-template", "none"]));
    }
    let model = TinyModel::llama().build();
    model.edit_json(TOKENIZER_CONFIG, |config| config["chat_template"] = json!(3));
    unusable(&model, &[TOKENIZER_CONFIG, "`chat_template` is `3`"]);
    refuses(
        prompted(&model).args(["--chat-template", "absent.jinja"]),
        2,
        &["`absent.jinja`", "--chat-template"],
    );
}

#[test]
fn a_hub_model_that_is_not_cached_while_offline() {
    let cache = tempfile::tempdir().expect("a folder");
    let stderr = refuses(
        tokselect()
            .env("HF_HUB_CACHE", cache.path())
            .args(["infer", "-p", "x", "-m", "Org/Name"]),
        3,
        &[
            "offline",
            "`Org/Name`",
            "`config.json`",
            "`tokenizer.json`",
            "`model.safetensors`",
        ],
    );
    assert!(stderr.contains(cache.path().to_str().expect("UTF-8")), "{stderr}");
    let model = TinyModel::llama().build();
    refuses(
        prompted(&model).args(["--revision", "main"]),
        2,
        &["--revision main", "local path"],
    );
}

#[test]
fn a_model_whose_numbers_overflow() {
    let model = TinyModel::llama().build();
    // Each weight is a number, but no product with it is.
    model.edit_tensors(WEIGHTS, |tensors| {
        for element in 0..HIDDEN {
            tensors
                .get_mut("model.norm.weight")
                .expect("there")
                .set(element, f32::MAX);
        }
    });
    unusable(&model, &["logit", "config.json"]);
}
