//! The model's own way of writing a conversation as text: a Jinja template, rendered as transformers renders it.

mod environment;
mod python_json;
mod strftime;

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::json_file::JsonFile;
use super::tokenizer::hex;
use crate::error::{Error, Result, io_error};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

impl ChatMessage {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// What `--chat-template` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ChatTemplateChoice {
    /// The model's template, if it has one.
    #[default]
    Auto,
    /// Plain text.
    None,
    /// The template in this file.
    File(PathBuf),
}

impl FromStr for ChatTemplateChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "auto" => Self::Auto,
            "none" => Self::None,
            file => Self::File(file.into()),
        })
    }
}

impl fmt::Display for ChatTemplateChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Where a model's template may lie; `None` for a file the model does not have.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatTemplateFiles<'a> {
    /// `chat_template.jinja`; wins over the others.
    pub jinja: Option<&'a Path>,
    /// `tokenizer_config.json`, under `chat_template`.
    pub tokenizer_config: Option<&'a Path>,
    /// `chat_template.json`, under `chat_template`: written for multi-modal models by older transformers, and read
    /// last because text-only loading never read it.
    pub json: Option<&'a Path>,
}

/// What a template sees beside the messages.
#[derive(Debug, Clone, Default)]
pub struct ChatContext {
    /// Text of the BOS token; a template that writes it finds nothing where it is `None`.
    pub bos_token: Option<String>,
    /// Text of the EOS token.
    pub eos_token: Option<String>,
    /// Further variables, such as `enable_thinking`, `tools` or `date_string`.
    pub extra: Map<String, Value>,
    /// What `strftime_now` takes for now; `None` is the clock, in local time.
    pub now: Option<OffsetDateTime>,
}

/// A chat template and where it came from.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    origin: PathBuf,
    /// As minijinja can read it.
    source: String,
    hash: String,
}

impl ChatTemplate {
    /// The template that `choice` asks for, out of the model's `files`.
    pub fn choose(choice: &ChatTemplateChoice, files: ChatTemplateFiles<'_>) -> Result<Option<Self>> {
        match choice {
            ChatTemplateChoice::Auto => Self::load(files),
            ChatTemplateChoice::None => Ok(None),
            ChatTemplateChoice::File(path) => Self::from_file(path).map(Some),
        }
    }

    /// The model's template, if it has one.
    pub fn load(files: ChatTemplateFiles<'_>) -> Result<Option<Self>> {
        if let Some(path) = files.jinja {
            return Self::from_file(path).map(Some);
        }
        for path in [files.tokenizer_config, files.json].into_iter().flatten() {
            if let Some(source) = template_in(&JsonFile::read(path)?)? {
                return Self::new(path, source).map(Some);
            }
        }
        Ok(None)
    }

    /// A template file of the user: Jinja text, or a `.json` file with `chat_template` in it.
    pub fn from_file(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
            let source = template_in(&JsonFile::read(path)?)?.ok_or_else(|| {
                Error::user(format!("`{}` has no `chat_template`", path.display()))
                    .help("pass a file with the Jinja template itself, or `--chat-template none`")
            })?;
            return Self::new(path, source);
        }
        let source = std::fs::read_to_string(path).map_err(|e| {
            io_error("read the chat template", path, &e)
                .help("`--chat-template` takes `auto`, `none` or the path of a template file")
        })?;
        Self::new(path, source)
    }

    /// A template from its text; `origin` is what errors call it. Syntax errors are found here.
    pub fn new(origin: &Path, source: impl Into<String>) -> Result<Self> {
        let source = source.into();
        let template = Self {
            origin: origin.to_owned(),
            source: environment::replace_generation_tags(&source),
            hash: hex(&Sha256::digest(source.as_bytes())),
        };
        environment::new(None)
            .template_from_named_str(environment::NAME, &template.source)
            .map_err(|e| template.explain(&e))?;
        Ok(template)
    }

    /// The conversation as text, special tokens written out: encode it with `add_special_tokens` false, or BOS may
    /// come twice. With `add_generation_prompt` it ends where the assistant's answer begins.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        context: &ChatContext,
    ) -> Result<String> {
        let mut variables: Map<String, Value> = Map::new();
        // transformers passes these two always; templates test them with `is not none`.
        variables.insert("tools".into(), Value::Null);
        variables.insert("documents".into(), Value::Null);
        for (name, token) in [("bos_token", &context.bos_token), ("eos_token", &context.eos_token)] {
            if let Some(text) = token {
                variables.insert(name.into(), Value::from(text.as_str()));
            }
        }
        variables.extend(context.extra.clone());
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        let messages = messages
            .iter()
            .map(|m| serde_json::json!({"role": m.role, "content": m.content}));
        variables.insert("messages".into(), messages.collect());

        let environment = environment::new(context.now);
        environment
            .template_from_named_str(environment::NAME, &self.source)
            .and_then(|template| template.render(&variables))
            .map_err(|e| self.explain(&e))
    }

    /// The file the template came from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// SHA-256 of the template's text, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    fn explain(&self, error: &minijinja::Error) -> Error {
        let origin = self.origin.display();
        // Counted from the start of the template, which inside a JSON file is not a line of that file.
        let line = error
            .line()
            .map_or(String::new(), |line| format!(" in its line {line}"));
        if let Some(message) = environment::raised_message(error) {
            return Error::user(format!("the chat template refuses these messages: {message}"))
                .note(format!("the template of `{origin}` says so{line}"))
                .help("change the messages, or pass `--chat-template none` to send plain text");
        }
        let what = error.detail().map_or_else(
            || error.kind().to_string(),
            |detail| format!("{}: {detail}", error.kind()),
        );
        Error::user(format!("the chat template of `{origin}` fails{line}: {what}"))
            .help("pass another template with `--chat-template FILE`, or `--chat-template none` to send plain text")
    }
}

/// `chat_template` as a string, or as a list of named templates of which `default` (or the only one) is meant.
fn template_in(file: &JsonFile) -> Result<Option<String>> {
    const KEY: &str = "chat_template";
    let wrong = || file.wrong(KEY, "a string or a list of {name, template}");
    let list = match file.get(KEY) {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text.clone())),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong()),
    };
    let named = list
        .iter()
        .map(|entry| Some((entry["name"].as_str()?, entry["template"].as_str()?)))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(wrong)?;
    let default = named.iter().find(|(name, _)| *name == "default");
    match (default, named.as_slice()) {
        (Some((_, text)), _) | (None, [(_, text)]) => Ok(Some((*text).to_owned())),
        (None, []) => Ok(None),
        (None, _) => {
            let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
            Err(Error::user(format!(
                "`{}` has several chat templates and none is called `default`",
                file.path().display()
            ))
            .note(format!("they are called {}", names.join(", ")))
            .help("save the one you want to a file and pass it with `--chat-template FILE`"))
        }
    }
}
