//! `tokselect infer` from the command line to the report, offline, on a tiny random model.

mod common;

use common::program::{answers, assert_refused, infer, refuses, report, run, run_with_input, succeeds, tokselect};
use common::tiny_model::{BOS, CHAT_TEMPLATE, EOS, ModelDir, TinyModel, VOCABULARY};
use serde_json::{Value, json};
use std::path::Path;

const PROMPT: &str = "In the beginning was the word, and the word was split into tokens.";

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

/// The ids that a run generates.
fn ids(model: &ModelDir, flags: &[&str]) -> Vec<u64> {
    let folder = tempfile::tempdir().expect("a folder");
    let dump = folder.path().join("dump.json");
    succeeds(
        infer(model)
            .args(["--prompt", PROMPT, "--ignore-eos", "--dump-logits"])
            .arg(&dump)
            .args(flags),
    );
    let ids = json_of(&dump)["generated_ids"].clone();
    ids.as_array()
        .expect("a list")
        .iter()
        .map(|id| id.as_u64().expect("an id"))
        .collect()
}

fn logits(dump: &Value) -> Vec<f64> {
    let list = dump["last_logits"].as_array().expect("a list");
    list.iter().map(|l| l.as_f64().expect("a finite number")).collect()
}

/// A long text, so that a small budget must choose.
fn long_prompt() -> String {
    let sentences: Vec<String> = (0..60).map(|n| format!("Sentence {n} of the long text. ")).collect();
    sentences.concat()
}

fn schema_validates(report: &Value) {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/report.schema.json");
    let validator = jsonschema::validator_for(&json_of(&schema)).expect("a schema");
    let errors: Vec<String> = validator.iter_errors(report).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn the_streamed_text_is_the_text_of_the_report() {
    for model in [TinyModel::llama().build(), TinyModel::qwen2().shards(3).build()] {
        let folder = tempfile::tempdir().expect("a folder");
        let output = folder.path().join("run");
        let flags = [
            "--prompt",
            PROMPT,
            "-n",
            "40",
            "--ignore-eos",
            "--temperature",
            "1.5",
            "-o",
        ];
        let run = succeeds(infer(&model).args(flags).arg(&output));
        let answers = answers(&output);
        let (text, ids) = &answers["prompt"];
        assert_eq!(run.text(), format!("{text}\n"));
        assert_eq!(ids.as_array().expect("ids").len(), 40);
        let report = report(&output);
        schema_validates(&report);
        assert_eq!(report["interrupted"], false);
        assert_eq!(report["samples"]["count"], 1);
        for name in ["config.json", "samples.jsonl", "table.csv", "table.md", "report.json"] {
            assert!(output.join(name).is_file(), "{name}");
        }
    }
}

#[test]
fn every_source_of_the_same_prompt_gives_the_same_answer() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, PROMPT).expect("writable");
    let flags = ["-n", "12", "--ignore-eos"];
    let argument = succeeds(infer(&model).args(flags).args(["--prompt", PROMPT]));
    let from_file = succeeds(infer(&model).args(flags).arg("--prompt-file").arg(&file));
    let from_stdin = run_with_input(infer(&model).args(flags), PROMPT);
    let from_dash = run_with_input(infer(&model).args(flags).args(["--prompt-file", "-"]), PROMPT);
    assert!(!argument.text().is_empty());
    for other in [&from_file, &from_stdin, &from_dash] {
        assert_eq!((other.code, other.text()), (Some(0), argument.text()), "{other:?}");
    }
    let printed = succeeds(tokselect().args(["tokenize", "--text", PROMPT, "-m"]).arg(model.path()));
    let ids = printed.text().trim();
    assert!(ids.starts_with(&format!("[{BOS},")), "{ids}");
    let list = folder.path().join("ids.txt");
    std::fs::write(&list, ids).expect("writable");
    let bare = ids.trim_matches(['[', ']']);
    let from_ids = succeeds(infer(&model).args(flags).args(["--token-ids", bare]));
    let from_id_file = succeeds(infer(&model).args(flags).arg("--token-ids").arg(&list));
    assert_eq!(
        (from_ids.text(), from_id_file.text()),
        (argument.text(), argument.text())
    );
}

#[test]
fn a_jsonl_file_gives_one_line_per_row_and_a_valid_report() {
    let model = TinyModel::llama().chat_template(CHAT_TEMPLATE).build();
    let folder = tempfile::tempdir().expect("a folder");
    let prompts = folder.path().join("prompts.jsonl");
    let rows = [
        json!({"id": "a", "prompt": "one"}),
        json!({"id": 7, "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}),
        json!({"token_ids": [BOS, 65, 66]}),
    ];
    std::fs::write(&prompts, rows.map(|row| row.to_string()).join("\n\n")).expect("writable");
    let output = folder.path().join("run");
    let run = succeeds(
        infer(&model)
            .arg("--prompts")
            .arg(&prompts)
            .args(["-n", "5", "-o"])
            .arg(&output),
    );
    let lines = run.json_lines();
    let names: Vec<&str> = lines.iter().filter_map(|line| line["id"].as_str()).collect();
    assert_eq!(names, ["a", "7", "line-5"]);
    let kept = answers(&output);
    for line in &lines {
        assert_eq!(line["text"], kept[line["id"].as_str().expect("an id")].0);
        assert!(line["finish"].is_string());
    }
    let report = report(&output);
    schema_validates(&report);
    assert_eq!(report["samples"]["count"], 3);
    let again = succeeds(
        infer(&model)
            .arg("--prompts")
            .arg(&prompts)
            .args(["-n", "5", "-o"])
            .arg(&output),
    );
    assert!(
        again.stdout.is_empty() && again.stderr.contains("3 of 3 answers are already there"),
        "{again:?}"
    );
}

#[test]
fn the_report_can_be_printed_in_every_form() {
    let model = TinyModel::qwen2().build();
    let print = |format: &str| succeeds(infer(&model).args(["--prompt", PROMPT, "-n", "4", "--format", format]));
    let json = print("json").json();
    schema_validates(&json);
    assert_eq!(json["command"], "infer");
    let csv = print("csv");
    let mut rows = csv.text().lines();
    let width = rows.next().expect("a header").split(',').count();
    assert!(
        rows.clone().count() > 3 && rows.all(|row| row.split(',').count() >= width),
        "{}",
        csv.text()
    );
    assert!(print("md").text().contains("| ttft_s |"));
    assert!(print("table").text().contains("ttft_s"));
}

#[test]
fn a_dry_run_plans_and_computes_nothing() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    let flags = ["--prompt", PROMPT, "-n", "1000", "--dry-run", "-o"];
    let table = succeeds(infer(&model).args(flags).arg(&output));
    assert!(
        table.text().contains("kv cache") && table.text().contains("total"),
        "{table:?}"
    );
    let plan = succeeds(infer(&model).args(flags).arg(&output).args(["--format", "json"])).json();
    let tokens = plan["max_context_tokens"].as_u64().expect("a count");
    assert_eq!(tokens, plan["longest_prompt_tokens"].as_u64().expect("a count") + 1000);
    let parts: u64 = plan["memory_plan"]
        .as_object()
        .expect("parts")
        .values()
        .filter_map(Value::as_u64)
        .sum();
    assert_eq!(plan["memory_plan_total_bytes"], parts);
    assert!(!output.exists());
}

#[test]
fn a_seed_repeats_an_answer_and_another_changes_it() {
    let model = TinyModel::llama().build();
    let of = |seed: &str| ids(&model, &["-n", "24", "--temperature", "1", "--seed", seed]);
    assert_eq!(of("1"), of("1"));
    assert_ne!(of("1"), of("2"));
    let greedy = |seed: &str| ids(&model, &["-n", "24", "--seed", seed]);
    assert_eq!(greedy("1"), greedy("2"));
}

#[test]
fn the_chat_template_is_used_unless_told_otherwise() {
    let chat = TinyModel::llama().chat_template(CHAT_TEMPLATE).build();
    let plain = TinyModel::llama().build();
    let prompt_tokens = |command: &mut std::process::Command| {
        let report = succeeds(command.args(["--prompt", "hi", "-n", "1", "--format", "json"])).json();
        let aggregates = report["aggregates"].as_array().expect("a list").clone();
        let found = aggregates
            .iter()
            .find(|a| a["name"] == "prompt_tokens")
            .expect("measured");
        found["mean"].as_f64().expect("a number") as usize
    };
    // <s>hi; <|user|>user: hi\n<|assistant|>; the same with a system line before it.
    let template = 1 + "user: hi\n".len() + 1;
    assert_eq!(prompt_tokens(&mut infer(&plain)), 3);
    assert_eq!(prompt_tokens(infer(&chat).args(["--chat-template", "none"])), 3);
    assert_eq!(prompt_tokens(&mut infer(&chat)), template);
    let system = prompt_tokens(infer(&chat).args(["--system", "be"]));
    assert_eq!(system, template + 1 + "system: be\n".len());
    chat.write("other.jinja", "{{ messages[0].content }}!");
    let file = chat.file("other.jinja");
    assert_eq!(prompt_tokens(infer(&chat).arg("--chat-template").arg(file)), 3);
}

#[test]
fn dumped_logits_are_those_of_any_chunking() {
    let model = TinyModel::qwen2().build();
    let folder = tempfile::tempdir().expect("a folder");
    let dump = |chunk: &str| {
        let path = folder.path().join(format!("{chunk}.json"));
        let flags = ["--prompt", PROMPT, "-n", "0", "--prefill-chunk", chunk, "--dump-logits"];
        let run = succeeds(infer(&model).args(flags).arg(&path));
        assert_eq!(run.text().trim(), "");
        json_of(&path)
    };
    let whole = dump("512");
    let tokens = whole["input_ids"].as_array().expect("ids").len();
    assert_eq!(
        tokens,
        PROMPT.len() - 2 * PROMPT.matches("the ").count() - PROMPT.matches(" the").count()
    );
    assert_eq!(logits(&whole).len(), VOCABULARY);
    assert_eq!(
        (&whole["generated_ids"], &whole["decode_steps"]),
        (&json!([]), &json!([]))
    );
    for chunk in ["1", "7", "64"] {
        let difference = logits(&dump(chunk))
            .iter()
            .zip(logits(&whole))
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        // f32 sums in another order; logits are around 1.
        assert!(difference < 1e-4, "chunk {chunk}: {difference}");
    }
}

#[test]
fn a_small_budget_selects_and_its_cache_is_counted() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let dump = folder.path().join("dump.json");
    let prompt = long_prompt();
    let flags = [
        "--policy",
        "token-select",
        "--n-init",
        "4",
        "--n-local",
        "16",
        "--top-k",
        "8",
        "--prefill-chunk",
        "64",
    ];
    let report = succeeds(
        infer(&model)
            .args(flags)
            .args([
                "--prompt",
                &prompt,
                "-n",
                "12",
                "--ignore-eos",
                "--diagnose",
                "--format",
                "json",
                "--dump-logits",
            ])
            .arg(&dump),
    )
    .json();
    let table = &report["tables"][0];
    assert_eq!(table["name"], "selection");
    let text = table.to_string();
    assert!(text.contains("cache_hits") && text.contains("recall_at_k"), "{text}");
    let dumped = json_of(&dump);
    let steps = dumped["decode_steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 11);
    let stored = dumped["input_ids"].as_array().expect("ids").len();
    for (number, step) in steps.iter().enumerate() {
        assert_eq!(step["n_stored"], stored + number + 1);
        let layers = step["selected"].as_array().expect("layers");
        assert_eq!(layers.len(), common::tiny_model::LAYERS);
        for (selected, fate) in layers.iter().zip(step["cache"].as_array().expect("layers")) {
            let chosen: Vec<u64> = selected
                .as_array()
                .expect("a selection")
                .iter()
                .filter_map(Value::as_u64)
                .collect();
            assert_eq!(chosen.len(), 8);
            assert!(chosen.is_sorted_by(|a, b| a < b) && chosen[0] >= 4, "{chosen:?}");
            assert!(fate == "hit" || fate == "miss", "{fate}");
        }
    }
}

#[test]
fn a_budget_of_everything_is_dense() {
    let model = TinyModel::llama().build();
    let sampled = ["-n", "30", "--temperature", "0.8"];
    let dense = ids(&model, &sampled);
    let select = ids(
        &model,
        &[&sampled[..], &["--policy", "token-select", "--top-k", "4096"]].concat(),
    );
    assert_eq!(dense, select);
    let streaming = ids(
        &model,
        &[&sampled[..], &["--policy", "streaming-llm", "--n-local", "4096"]].concat(),
    );
    assert_eq!(dense, streaming);
    for policy in ["ntk", "yarn", "self-extend"] {
        assert_eq!(
            dense,
            ids(&model, &[&sampled[..], &["--policy", policy]].concat()),
            "{policy}"
        );
    }
    let roomy = ["--n-local", "4096", "--top-k", "4096", "--quest-dense-layers", "0"];
    for policy in ["inf-llm", "quest", "snap-kv", "h2o"] {
        let flags = [&sampled[..], &roomy[..], &["--policy", policy]].concat();
        assert_eq!(dense, ids(&model, &flags), "{policy}");
    }
}

#[test]
fn every_policy_states_its_settings() {
    let model = TinyModel::llama().build();
    let prompt = long_prompt();
    let budget = [
        "--n-init",
        "4",
        "--n-local",
        "16",
        "--top-k",
        "32",
        "--prefill-chunk",
        "64",
    ];
    let run = |policy: &str, flags: &[&str]| {
        let mut command = infer(&model);
        command.args([
            "-q",
            "--prompt",
            &prompt,
            "-n",
            "12",
            "--ignore-eos",
            "--format",
            "json",
        ]);
        command.args(["--policy", policy]).args(flags);
        let report = succeeds(&mut command).json();
        schema_validates(&report);
        report["config"]["policy"].clone()
    };
    let ntk = run("ntk", &["--max-context", "8192"]);
    // What `auto` came to, for whoever reads the report.
    assert!(ntk["rope_factor"].as_f64().is_some_and(|factor| factor > 1.0), "{ntk}");
    let extended = run("self-extend", &["--self-extend-group", "5"]);
    assert_eq!(extended, json!({"name": "self-extend", "group": 5, "window": 128}));
    for (policy, own, value) in [
        (
            "inf-llm",
            ["--inf-llm-block-size", "16"],
            json!({"block_size": 16, "representatives": 4}),
        ),
        (
            "quest",
            ["--quest-page-size", "8"],
            json!({"page_size": 8, "dense_layers": 2, "positions": "original"}),
        ),
        (
            "snap-kv",
            ["--snap-kv-pooling", "max"],
            json!({"observation_window": 32, "kernel": 5, "pooling": "max"}),
        ),
        (
            "h2o",
            ["--h2o-prefill", "evict"],
            json!({"prefill": "evict", "positions": "original"}),
        ),
    ] {
        let config = run(policy, &[&budget[..], &own[..]].concat());
        assert_eq!(config["name"], policy);
        assert_eq!(
            (&config["n_init"], &config["n_local"], &config["top_k"]),
            (&json!(4), &json!(16), &json!(32))
        );
        for (key, value) in value.as_object().expect("settings") {
            assert_eq!(&config[key], value, "{policy}: {key}");
        }
    }
}

/// Sampled tokens are mostly single bytes, so the text is full of characters that never become whole.
#[test]
fn text_is_cut_at_a_stop_string_and_never_inside_a_character() {
    let model = TinyModel::llama().build();
    let flags = [
        "--prompt",
        PROMPT,
        "-n",
        "60",
        "--ignore-eos",
        "--temperature",
        "2",
        "--seed",
        "3",
    ];
    let whole = succeeds(infer(&model).args(flags));
    let whole = whole.text().trim_end_matches('\n').to_owned();
    let middle: String = whole.chars().skip(whole.chars().count() / 2).take(2).collect();
    let stopped = succeeds(infer(&model).args(flags).args(["--stop", &middle]));
    let expected = whole.split(&middle).next().expect("a first part");
    assert_eq!(stopped.text(), format!("{expected}\n"));
}

#[test]
fn generation_ends_for_the_reason_it_states() {
    let model = TinyModel::llama().build();
    let finish = |flags: &[&str]| {
        let folder = tempfile::tempdir().expect("a folder");
        let output = folder.path().join("run");
        succeeds(
            infer(&model)
                .args(["--token-ids", "256,65,66,67", "-o"])
                .arg(&output)
                .args(flags),
        );
        let line = std::fs::read_to_string(output.join("samples.jsonl")).expect("samples");
        let sample: Value = serde_json::from_str(&line).expect("one sample");
        let data = &sample["data"];
        (
            data["finish"].as_str().expect("a reason").to_owned(),
            data["generated_tokens"].as_u64().expect("a count"),
        )
    };
    assert_eq!(finish(&["-n", "3", "--ignore-eos"]), ("length".into(), 3));
    assert_eq!(finish(&["-n", "0"]), ("length".into(), 0));
    // The prompt fills the context: its last token still has an answer, which is not stored.
    assert_eq!(
        finish(&["-n", "9", "--max-context", "4", "--ignore-eos"]),
        ("context_full".into(), 1)
    );
    assert_eq!(
        finish(&["-n", "9", "--max-context", "6", "--ignore-eos"]),
        ("context_full".into(), 3)
    );
    // Whatever comes first is made the end of text.
    let first = ids(&model, &["-n", "1"])[0];
    model.edit_json("generation_config.json", |config| {
        config["eos_token_id"] = json!([EOS, first]);
    });
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("run");
    succeeds(infer(&model).args(["--prompt", PROMPT, "-n", "9", "-o"]).arg(&output));
    assert!(
        std::fs::read_to_string(output.join("samples.jsonl"))
            .expect("samples")
            .contains("end_of_text")
    );
}

#[test]
fn a_model_without_tokenizer_answers_ids_in_ids() {
    let model = TinyModel::llama().build();
    model.remove("tokenizer.json");
    model.remove("tokenizer_config.json");
    let run = run(infer(&model).args(["--token-ids", "1,2,3", "-n", "4", "--ignore-eos"]));
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(
        run.text()
            .split_whitespace()
            .filter(|id| id.parse::<u32>().is_ok())
            .count(),
        4,
        "{run:?}"
    );
    refuses(infer(&model).args(["--prompt", "text"]), 2, &["tokenizer.json"]);
}

#[test]
fn random_weights_need_a_config_only() {
    let model = TinyModel::llama().build();
    model.remove("model.safetensors");
    let flags = ["--prompt", "x", "-n", "8", "--ignore-eos", "--random-weights"];
    let of = |seed: &str| succeeds(infer(&model).args(flags).arg(seed)).text().to_owned();
    assert_eq!(of("1"), of("1"));
    let finished = run(infer(&model).args(["--prompt", "x"]));
    assert_refused(&finished, 2, &["model.safetensors"]);
}
