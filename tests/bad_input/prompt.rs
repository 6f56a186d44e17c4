//! Prompts that cannot be answered.

use crate::common::program::{assert_refused, infer, refuses, run_with_input, succeeds, tokselect};
use crate::common::tiny_model::{CHAT_TEMPLATE, TinyModel};
use std::path::Path;

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_prompt_longer_than_the_context() {
    let model = TinyModel::llama().build();
    let text = "x".repeat(40);
    for limit in ["40", "1", "0"] {
        refuses(
            infer(&model).args(["--prompt", &text, "--max-context", limit]),
            2,
            &[
                "the prompt has 41 tokens",
                &format!("--max-context {limit}"),
                "--max-context 41",
            ],
        );
    }
    succeeds(infer(&model).args(["--prompt", &text, "--max-context", "41", "-n", "1"]));
}

#[test]
fn a_prompt_without_any_token() {
    let model = TinyModel::qwen2().chat_template(CHAT_TEMPLATE).build();
    refuses(
        infer(&model).args(["--prompt", "", "--chat-template", "none"]),
        2,
        &["the prompt is empty", "at least one character"],
    );
    refuses(infer(&model).args(["--token-ids", ""]), 2, &["`--token-ids` is empty"]);
    // A template, or BOS, gives even an empty prompt a token.
    succeeds(infer(&model).args(["--prompt", "", "-n", "1"]));
    succeeds(infer(&TinyModel::llama().build()).args(["--prompt", "", "-n", "1"]));
}

#[test]
fn no_prompt_at_all() {
    let model = TinyModel::llama().build();
    refuses(
        &mut infer(&model),
        2,
        &["no prompt is given", "standard input is empty", "--prompt-file"],
    );
    assert_refused(&run_with_input(&mut infer(&model), ""), 2, &["no prompt is given"]);
}

#[test]
fn two_prompts_at_once() {
    let model = TinyModel::llama().build();
    refuses(
        infer(&model).args(["--prompt", "a", "--token-ids", "1"]),
        2,
        &["--prompt", "--token-ids", "cannot be used with"],
    );
    refuses(
        infer(&model).args(["--prompt-file", "a", "--prompts", "b"]),
        2,
        &["--prompt-file", "--prompts", "cannot be used with"],
    );
}

#[test]
fn a_prompt_file_that_cannot_be_read() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompt.txt");
    for flag in ["--prompt-file", "--prompts"] {
        refuses(infer(&model).arg(flag).arg(&file), 2, &[path(&file), "No such file"]);
        refuses(
            infer(&model).arg(flag).arg(folder.path()),
            2,
            &[path(folder.path()), "irectory"],
        );
    }
    std::fs::write(&file, b"good until here: \xff\xfe").expect("writable");
    for flag in ["--prompt-file", "--prompts"] {
        refuses(
            infer(&model).arg(flag).arg(&file),
            2,
            &[path(&file), "byte 17 is 0xff", "UTF-8"],
        );
    }
    let piped = run_with_input(&mut infer(&model), b"ab\xc3");
    assert_refused(&piped, 2, &["standard input is not UTF-8", "byte 2 is 0xc3"]);
    refuses(
        tokselect()
            .args(["tokenize", "-m"])
            .arg(model.path())
            .arg("--file")
            .arg(&file),
        2,
        &[path(&file), "byte 17"],
    );
}

#[test]
fn token_ids_that_are_none() {
    let model = TinyModel::llama().build();
    for ids in ["abc", "1,x,3", "1;2", "1,-2", "1,4294967296", "[1,2", "1.5"] {
        refuses(
            infer(&model).args(["--token-ids", ids]),
            2,
            &["--token-ids", ids, "1,5,7"],
        );
    }
    for (ids, bad) in [("1,300", "300"), ("4294967295", "4294967295")] {
        refuses(
            infer(&model).args(["--token-ids", ids]),
            2,
            &["--token-ids", &format!("token id {bad}"), "300 ids"],
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ids.txt");
    std::fs::write(&file, "one, two").expect("writable");
    refuses(
        infer(&model).arg("--token-ids").arg(&file),
        2,
        &[path(&file), "not a list of token ids"],
    );
}

#[test]
fn jsonl_with_a_line_that_is_no_prompt() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompts.jsonl");
    let output = folder.path().join("run");
    for (line, part) in [
        (r#"{"id": 1, "prompt": "a""#, "EOF while parsing"),
        ("plain text", "not a JSON object"),
        ("[1]", "not a JSON object"),
        (r#"{"id": "a", "prompt": "again"}"#, "id `a` was already used in line 1"),
        (r#"{"id": "b"}"#, "exactly one of `prompt`, `messages` and `token_ids`"),
        (r#"{"id": "b", "prompt": "x", "token_ids": [1]}"#, "exactly one of"),
        (
            r#"{"id": "b", "prompt": "x", "max_tokens": 3}"#,
            "unknown field `max_tokens`",
        ),
        (r#"{"id": "b", "prompt": 3}"#, "expected a string"),
        (r#"{"id": "b", "token_ids": [1, -1]}"#, "`-1`"),
        (r#"{"id": "b", "token_ids": []}"#, "is empty"),
        (r#"{"id": "b", "token_ids": [300]}"#, "token id 300"),
        (r#"{"id": "b", "messages": []}"#, "`messages` is empty"),
        (
            r#"{"id": "b", "messages": [{"role": "user"}]}"#,
            "missing field `content`",
        ),
        (
            r#"{"id": "b", "messages": [{"role": "user", "content": "x", "tool_calls": []}]}"#,
            "`tool_calls`",
        ),
        (
            r#"{"id": "b", "messages": [{"role": "user", "content": "x"}]}"#,
            "messages need a chat template",
        ),
    ] {
        std::fs::write(&file, format!("{{\"id\": \"a\", \"prompt\": \"fine\"}}\n\n{line}\n")).expect("writable");
        refuses(
            infer(&model).arg("--prompts").arg(&file).arg("-o").arg(&output),
            2,
            &[path(&file), "line 3", part],
        );
        // The first line was fine, but nothing is begun that cannot be ended.
        assert!(!output.exists());
    }
    for empty in ["", "\n\n"] {
        std::fs::write(&file, empty).expect("writable");
        refuses(
            infer(&model).arg("--prompts").arg(&file),
            2,
            &[path(&file), "holds no prompt"],
        );
    }
}

#[test]
fn a_system_message_without_a_template() {
    let model = TinyModel::llama().build();
    refuses(
        infer(&model).args(["--prompt", "x", "--system", "y"]),
        2,
        &["`--system`", "--chat-template FILE"],
    );
}

#[test]
fn the_shortest_and_the_odd_still_work() {
    let model = TinyModel::llama().build();
    succeeds(infer(&model).args(["--token-ids", "[ 5 ]", "-n", "3"]));
    succeeds(infer(&model).args(["--prompt", "x", "-n", "0"]));
    succeeds(infer(&model).args(["--prompt", "-5 degrees", "-n", "1"]));
    let odd = run_with_input(infer(&model).args(["-n", "1"]), "\u{0}\u{feff}🜚");
    assert_eq!(odd.code, Some(0), "{odd:?}");
    let policy = [
        "--policy",
        "token-select",
        "--n-init",
        "0",
        "--n-local",
        "1",
        "--top-k",
        "1",
    ];
    succeeds(
        infer(&model)
            .args(policy)
            .args(["--token-ids", "5", "-n", "9", "--prefill-chunk", "1"]),
    );
}
