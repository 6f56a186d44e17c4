//! Prompts from an argument, a file, stdin, token ids, or a JSONL file.

use crate::error::{Error, Result, io_error};
use crate::manifest::sha256;
use crate::model::chat_template::ChatMessage;
use serde::Deserialize;
use std::io::Read;
use std::path::Path;

/// What one prompt says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// Plain text; a chat template makes it the user's message.
    Text(String),
    /// A conversation; needs a chat template.
    Messages(Vec<ChatMessage>),
    /// Ids, taken as they are.
    Ids(Vec<u32>),
}

/// One prompt with the name of its sample.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prompt {
    pub id: String,
    pub content: Content,
    /// Where it came from, for errors.
    pub place: String,
}

/// All prompts of a run and a hash of what they say.
pub(super) struct Prompts {
    pub all: Vec<Prompt>,
    pub sha256: String,
    /// Whether they came as JSONL: then results are lines, too.
    pub many: bool,
}

/// How a file is named in messages.
pub(super) fn name(path: &Path) -> String {
    if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        format!("`{}`", path.display())
    }
}

/// Reads a UTF-8 text; `-` is stdin.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .map_err(|e| io_error("read", Path::new("standard input"), &e))?;
        bytes
    } else {
        std::fs::read(path).map_err(|e| io_error("read", path, &e))?
    };
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::user(format!(
            "{} is not UTF-8 text: byte {at} is 0x{:02x}",
            name(path),
            e.as_bytes()[at]
        ))
        .help("convert the file, for example with `iconv -t UTF-8`")
    })
}

const IDS_HELP: &str = "write ids as `1,5,7` or `[1, 5, 7]`, each from 0 to 4294967295, or name a file of them";

/// Parses `1,5,7` (spaces and brackets allowed), or reads a file that holds such a list.
pub(super) fn token_ids(argument: &str) -> Result<Vec<u32>> {
    let listed = |text: &str| -> Option<Vec<u32>> {
        let text = text.trim();
        let bare = match text.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']')?,
            None => text,
        };
        bare.split([',', ' ', '\n', '\t', '\r'])
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().ok())
            .collect()
    };
    if let Some(ids) = listed(argument) {
        return Ok(ids);
    }
    if !Path::new(argument).exists() {
        return Err(Error::user(format!(
            "`--token-ids {argument}` is neither a list of token ids nor an existing file"
        ))
        .help(IDS_HELP));
    }
    let text = read_text(Path::new(argument))?;
    listed(&text).ok_or_else(|| {
        Error::user(format!("`--token-ids {argument}`: the file is not a list of token ids")).help(IDS_HELP)
    })
}

/// One prompt given on the command line.
pub(super) fn single(content: Content, place: &str) -> Prompts {
    let bytes = match &content {
        Content::Text(text) => text.clone().into_bytes(),
        Content::Messages(messages) => messages.iter().flat_map(|m| m.content.clone().into_bytes()).collect(),
        Content::Ids(ids) => ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
    };
    let prompt = Prompt {
        id: "prompt".into(),
        content,
        place: place.into(),
    };
    Prompts {
        all: vec![prompt],
        sha256: sha256(bytes),
        many: false,
    }
}

const LINE_HELP: &str = r#"write one object per line, such as {"id": "a", "prompt": "Once upon a time"}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Option<serde_json::Value>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    token_ids: Option<Vec<u32>>,
}

// What a template would not be shown is refused rather than dropped.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: String,
    content: String,
}

/// Reads JSONL: one object per line with `prompt`, `messages` or `token_ids`, and an optional `id`.
pub(super) fn jsonl(path: &Path) -> Result<Prompts> {
    let text = read_text(path)?;
    let mut all: Vec<Prompt> = Vec::new();
    let mut seen = std::collections::HashMap::new();
    for (number, line) in text
        .lines()
        .enumerate()
        .map(|(n, line)| (n + 1, line))
        .filter(|(_, l)| !l.trim().is_empty())
    {
        let place = format!("{} line {number}", name(path));
        if !line.trim_start().starts_with('{') {
            return Err(Error::user(format!("{place} is not a JSON object")).help(LINE_HELP));
        }
        let parsed: Line = serde_json::from_str(line).map_err(|e| {
            // serde_json counts lines within this one.
            let reason = e.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            Error::user(format!("{place}: {reason} (column {})", e.column())).help(LINE_HELP)
        })?;
        let content = match (parsed.prompt, parsed.messages, parsed.token_ids) {
            (Some(text), None, None) => Content::Text(text),
            (None, Some(messages), None) if messages.is_empty() => {
                return Err(Error::user(format!("{place}: `messages` is empty")).help("give it at least one message"));
            }
            (None, Some(messages), None) => Content::Messages(
                messages
                    .into_iter()
                    .map(|m| ChatMessage::new(m.role, m.content))
                    .collect(),
            ),
            (None, None, Some(ids)) => Content::Ids(ids),
            _ => {
                return Err(Error::user(format!(
                    "{place}: needs exactly one of `prompt`, `messages` and `token_ids`"
                ))
                .help(LINE_HELP));
            }
        };
        let id = match parsed.id {
            None => format!("line-{number}"),
            Some(serde_json::Value::String(id)) => id,
            Some(other) => other.to_string(),
        };
        if let Some(first) = seen.insert(id.clone(), number) {
            return Err(
                Error::user(format!("{place}: id `{id}` was already used in line {first}"))
                    .help("give every line an id of its own; results are kept by id"),
            );
        }
        all.push(Prompt { id, content, place });
    }
    if all.is_empty() {
        return Err(Error::user(format!("{} holds no prompt", name(path))).help(LINE_HELP));
    }
    Ok(Prompts {
        all,
        sha256: sha256(text),
        many: true,
    })
}
