//! Chat templates against what transformers renders, and the errors around them.
//!
//! `chat_templates/expected.json` is written by `chat_templates/render_expected.py` with transformers 5.23 and
//! jinja2 3.1.6; the templates are our own, in the shapes that published models use.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use time::macros::datetime;
use tokselect::model::chat_template::{ChatContext, ChatMessage, ChatTemplate, ChatTemplateChoice, ChatTemplateFiles};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat_templates")
}

fn user(text: &str) -> Vec<ChatMessage> {
    vec![ChatMessage::new("user", text)]
}

#[test]
fn renders_what_transformers_renders() {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(fixtures().join("expected.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 19);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let template = ChatTemplate::from_file(&fixtures().join(format!("{name}.jinja"))).unwrap();
        let messages: Vec<ChatMessage> = serde_json::from_value(case["messages"].clone()).unwrap();
        let mut extra: Map<String, Value> = case["variables"].as_object().unwrap().clone();
        let mut token = |name| extra.remove(name).map(|v| v.as_str().unwrap().to_owned());
        let context = ChatContext {
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            extra,
            now: Some(datetime!(2024-07-04 13:05:09 UTC)),
        };
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        match template.render(&messages, prompt, &context) {
            Ok(text) => assert_eq!(Some(text.as_str()), case["text"].as_str(), "{name}"),
            Err(error) => {
                let raised = case["raises"].as_str().unwrap_or_else(|| panic!("{name}: {error}"));
                assert_eq!(
                    error.message(),
                    format!("the chat template refuses these messages: {raised}")
                );
                assert!(
                    error
                        .to_string()
                        .contains(&format!("{name}.jinja` says so in its line ")),
                    "{error}"
                );
                assert_eq!(error.exit_code(), 2);
            }
        }
    }
}

#[test]
fn the_clock_is_local_time_where_no_time_is_given() {
    let template = ChatTemplate::new(Path::new("t"), "{{ strftime_now('%Y') }}").unwrap();
    let year: i32 = template
        .render(&[], false, &ChatContext::default())
        .unwrap()
        .parse()
        .unwrap();
    assert!(year >= 2024);
}

/// A model directory with these files in it.
fn model(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// The text of an empty conversation under the template found there, so a template's own text identifies it.
fn found(dir: &tempfile::TempDir) -> Result<Option<String>, String> {
    let path = |name: &str| Some(dir.path().join(name)).filter(|p| p.is_file());
    let (jinja, config, json) = (
        path("chat_template.jinja"),
        path("tokenizer_config.json"),
        path("chat_template.json"),
    );
    let files = ChatTemplateFiles {
        jinja: jinja.as_deref(),
        tokenizer_config: config.as_deref(),
        json: json.as_deref(),
    };
    let template = ChatTemplate::choose(&ChatTemplateChoice::Auto, files).map_err(|e| e.to_string())?;
    Ok(template.map(|t| t.render(&[], false, &ChatContext::default()).unwrap()))
}

#[test]
fn where_a_template_is_found() {
    let config = ("tokenizer_config.json", json!({"chat_template": "config"}));
    let jinja = ("chat_template.jinja", json!("jinja"));
    let legacy = ("chat_template.json", json!({"chat_template": "legacy"}));
    let found_in = |files: &[(&str, Value)]| found(&model(files)).unwrap();
    assert_eq!(
        found_in(&[config.clone(), jinja, legacy.clone()]).as_deref(),
        Some("jinja")
    );
    assert_eq!(found_in(&[config, legacy.clone()]).as_deref(), Some("config"));
    assert_eq!(
        found_in(&[("tokenizer_config.json", json!({})), legacy]).as_deref(),
        Some("legacy")
    );
    assert_eq!(
        found_in(&[("tokenizer_config.json", json!({"chat_template": null}))]),
        None
    );
    assert_eq!(found_in(&[]), None);
}

#[test]
fn a_list_of_templates_means_the_default_or_the_only_one() {
    let list = |names: &[&str]| {
        let list: Vec<Value> = names.iter().map(|n| json!({"name": n, "template": n})).collect();
        found(&model(&[("tokenizer_config.json", json!({"chat_template": list}))]))
    };
    assert_eq!(list(&["tool_use", "default"]).unwrap().as_deref(), Some("default"));
    assert_eq!(list(&["rag"]).unwrap().as_deref(), Some("rag"));
    assert_eq!(list(&[]).unwrap(), None);
    let error = list(&["rag", "tool_use"]).unwrap_err();
    assert!(
        error.contains("tokenizer_config.json") && error.contains("rag, tool_use"),
        "{error}"
    );
    let error = found(&model(&[("tokenizer_config.json", json!({"chat_template": 3}))])).unwrap_err();
    assert!(error.contains("`chat_template` is `3`"), "{error}");
}

#[test]
fn the_choice_on_the_command_line() {
    assert_eq!("auto".parse(), Ok(ChatTemplateChoice::Auto));
    assert_eq!("none".parse(), Ok(ChatTemplateChoice::None));
    assert_eq!("my.jinja".parse(), Ok(ChatTemplateChoice::File("my.jinja".into())));
    assert_eq!(ChatTemplateChoice::File("my.jinja".into()).to_string(), "my.jinja");

    let dir = model(&[
        ("a.jinja", json!("A{{ messages[0].content }}")),
        ("b.json", json!({"chat_template": "B"})),
    ]);
    let choose = |text: &str| ChatTemplate::choose(&text.parse().unwrap(), ChatTemplateFiles::default());
    assert!(choose("none").unwrap().is_none());
    for (file, text) in [("a.jinja", "Ahi"), ("b.json", "B")] {
        let template = choose(dir.path().join(file).to_str().unwrap()).unwrap().unwrap();
        assert_eq!(
            template.render(&user("hi"), true, &ChatContext::default()).unwrap(),
            text
        );
        assert_eq!((template.hash().len(), template.origin().ends_with(file)), (64, true));
    }
    let error = choose("absent.jinja").unwrap_err().to_string();
    assert!(
        error.contains("absent.jinja") && error.contains("`--chat-template` takes"),
        "{error}"
    );
}

#[test]
fn failures_name_file_and_line() {
    let error = ChatTemplate::new(Path::new("x.jinja"), "line one\n{% if %}")
        .unwrap_err()
        .to_string();
    assert!(error.contains("`x.jinja` fails in its line 2: syntax error"), "{error}");

    let fails = |source: &str| {
        let template = ChatTemplate::new(Path::new("x.jinja"), source).unwrap();
        template
            .render(&user("hi"), true, &ChatContext::default())
            .unwrap_err()
            .to_string()
    };
    for (source, reason) in [
        ("\n\n{{ messages[0].content.shout() }}", "shout"),
        ("\n\n{{ nothing.at.all }}", "undefined value"),
        ("\n\n{{ strftime_now('%Q') }}", "%Q"),
        ("\n\n{{ messages | tojson(separators='x') }}", "separators"),
    ] {
        let error = fails(source);
        assert!(
            error.contains("`x.jinja` fails in its line 3: ") && error.contains(reason),
            "{error}"
        );
    }
    // Through a macro, too, it is the template's own words that count.
    let error = fails("{% macro check() %}\n{{ raise_exception('no \\'hi\\' here') }}{% endmacro %}\n{{ check() }}");
    assert!(
        error.starts_with("the chat template refuses these messages: no 'hi' here\n"),
        "{error}"
    );
}

/// A generation tag changes what minijinja is given, not what the report calls the template.
#[test]
fn the_hash_is_of_the_published_text() {
    let hash = |source: &str| ChatTemplate::new(Path::new("t"), source).unwrap().hash().to_owned();
    assert_ne!(
        hash("{% generation %}{% endgeneration %}"),
        hash("{% with %}{% endwith %}")
    );
    assert_eq!(
        hash("abc"),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}
