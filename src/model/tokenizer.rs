//! `tokenizer.json` with the special tokens of `tokenizer_config.json`, as transformers 5 reads the pair.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::{AddedToken, Model, ModelWrapper};

use super::json_file::{JsonFile, token_text};
use super::stream_decoder::{DecodeStyle, StreamDecoder};
use crate::error::{Error, Result, io_error};

/// Where a tokenizer lies.
#[derive(Debug, Clone, Copy)]
pub struct TokenizerFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a Path,
    /// `tokenizer_config.json`: names the special tokens. Without it there are no BOS and EOS texts.
    pub tokenizer_config: Option<&'a Path>,
}

/// Text to ids and back.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    hash: String,
    vocab_size: usize,
    bos: Option<String>,
    eos: Option<String>,
    clean_up: bool,
    style: DecodeStyle,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("hash", &self.hash)
            .field("vocab_size", &self.vocab_size)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the files.
    ///
    /// `add_bos_token` and `add_eos_token` of `tokenizer_config.json` are ignored, as transformers 5 ignores them where
    /// a `tokenizer.json` is present: its post-processor alone decides. So are its truncation and padding, which belong
    /// to the batches of whoever saved it.
    pub fn load(files: TokenizerFiles<'_>) -> Result<Self> {
        let path = files.tokenizer;
        let bytes = std::fs::read(path).map_err(|e| unreadable(path, &e))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| broken(path, &bytes, &e.to_string()))?;
        check_added_ids(&inner, path, &bytes)?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::bug(format!("`{}`: {e}", path.display())))?;

        let config = files.tokenizer_config.map(JsonFile::read).transpose()?;
        let (mut bos, mut eos, mut clean_up) = (None, None, false);
        if let Some(config) = &config {
            bos = config.token_text("bos_token")?;
            eos = config.token_text("eos_token")?;
            // Made for WordPiece; on BPE it would eat spaces of the text, and transformers 5 refuses it there too.
            clean_up = config.bool("clean_up_tokenization_spaces")?.unwrap_or(false)
                && !matches!(inner.get_model(), ModelWrapper::BPE(_));
            add_tokens(&mut inner, config, path)?;
        }

        let decoder = inner
            .get_decoder()
            .and_then(|d| serde_json::to_value(d).ok())
            .unwrap_or_default();
        if strips_the_end(&decoder) {
            return Err(Error::user(format!(
                "`{}` has a decoder that strips the end of a text (`Strip` with `stop` above 0), which is not supported",
                path.display()
            ))
            .help("set its `stop` to 0 if the text need not be stripped"));
        }
        let style = if clean_up {
            DecodeStyle::Whole
        } else {
            DecodeStyle::of(&decoder)
        };
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        Ok(Self {
            inner,
            path: path.to_owned(),
            hash: hex(&Sha256::digest(&bytes)),
            vocab_size,
            bos,
            eos,
            clean_up,
            style,
        })
    }

    /// The ids of `text`; with `add_special_tokens`, what the post-processor puts around it (such as BOS) too. Special
    /// tokens written out in `text` are recognised either way.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        // Without offsets, which nobody here asks for and which cost more than the ids on long documents.
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|e| Error::user(format!("`{}` cannot encode the text: {e}", self.path.display())))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of `text` without special tokens around it, each with the byte at which its token starts.
    pub fn encode_with_starts(&self, text: &str) -> Result<Vec<(u32, usize)>> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|e| Error::user(format!("`{}` cannot encode the text: {e}", self.path.display())))?;
        let starts = encoding.get_offsets().iter().map(|(start, _)| *start);
        Ok(encoding.get_ids().iter().copied().zip(starts).collect())
    }

    /// The text of `ids`. An id without a token is skipped: models have more embedding rows than tokens, and
    /// transformers gives such ids no text either.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let text = self
            .inner
            .decode(ids, skip_special_tokens)
            .map_err(|e| Error::user(format!("`{}` cannot decode the ids: {e}", self.path.display())))?;
        Ok(if self.clean_up { clean_up(&text) } else { text })
    }

    /// Decodes ids as they come, without special tokens.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// The highest id plus one, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token by its exact text in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token in the vocabulary (`Ġthe`, `▁the`), which is not what it decodes to.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The text of the token that starts a text.
    pub fn bos_token(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    /// The text of the token that ends a text.
    pub fn eos_token(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    /// The id of [`Self::bos_token`].
    pub fn bos_token_id(&self) -> Option<u32> {
        self.token_to_id(self.bos_token()?)
    }

    /// The id of [`Self::eos_token`].
    pub fn eos_token_id(&self) -> Option<u32> {
        self.token_to_id(self.eos_token()?)
    }

    /// SHA-256 of `tokenizer.json`, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Refuses a tokenizer that can emit ids without an embedding row. Fewer tokens than rows is normal.
    pub fn check_against_model_vocab(&self, model_vocab_size: usize) -> Result<()> {
        if self.vocab_size <= model_vocab_size {
            return Ok(());
        }
        Err(Error::user(format!(
            "`{}` does not fit the model: its ids go up to {}, but the model has {model_vocab_size} embedding rows",
            self.path.display(),
            self.vocab_size - 1,
        ))
        .note(format!(
            "tokenizer.json: {} ids; config.json: vocab_size {model_vocab_size}",
            self.vocab_size
        ))
        .help("take tokenizer.json, config.json and the weights from the same model and revision"))
    }

    pub(crate) fn decode_style(&self) -> &DecodeStyle {
        &self.style
    }

    /// The token of `id` as the decoder sees it; none where `decode(.., true)` would skip it.
    pub(crate) fn decodable_token(&self, id: u32) -> Option<String> {
        let added = self.inner.get_added_vocabulary();
        added
            .simple_id_to_token(id)
            .or_else(|| self.inner.get_model().id_to_token(id))
            .filter(|token| !added.is_special_token(token))
    }
}

/// Refuses added tokens whose stated ids the library would silently replace by the next free ones.
fn check_added_ids(inner: &tokenizers::Tokenizer, path: &Path, bytes: &[u8]) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Stated {
        #[serde(default)]
        added_tokens: Vec<StatedToken>,
    }
    #[derive(serde::Deserialize)]
    struct StatedToken {
        id: u32,
        content: String,
    }
    let stated: Stated = serde_json::from_slice(bytes).map_err(|e| broken(path, bytes, &e.to_string()))?;
    for StatedToken { id, content } in stated.added_tokens {
        let got = inner.token_to_id(&content);
        if got != Some(id) {
            let got = got.map_or("none".to_owned(), |got| got.to_string());
            return Err(Error::user(format!(
                "`{}` gives the added token `{content}` the id {id}, but the next free one is {got}",
                path.display()
            ))
            .note("ids of added tokens must follow the vocabulary without a gap")
            .help("take tokenizer.json from the model's publisher again"));
        }
    }
    Ok(())
}

/// Whether a decoder has such a step: `tokenizers` 0.23 panics in it on texts shorter than `stop`.
fn strips_the_end(decoder: &Value) -> bool {
    let own = decoder["type"] == "Strip" && decoder["stop"] != 0;
    own || decoder["decoders"]
        .as_array()
        .is_some_and(|steps| steps.iter().any(strips_the_end))
}

/// Adds the tokens that only `tokenizer_config.json` lists, and marks as special what it names so.
fn add_tokens(inner: &mut tokenizers::Tokenizer, config: &JsonFile, tokenizer: &Path) -> Result<()> {
    let add = |inner: &mut tokenizers::Tokenizer, token: AddedToken| {
        let text = token.content.clone();
        inner
            .add_tokens([token])
            .map_err(|e| Error::user(format!("`{}`: token `{text}`: {e}", config.path().display())))
    };
    for (id, token) in listed_tokens(config)? {
        let known = inner.get_added_vocabulary();
        if known.get_vocab().contains_key(&token.content) && (!token.special || known.is_special_token(&token.content))
        {
            continue;
        }
        let text = token.content.clone();
        add(inner, token)?;
        if inner.token_to_id(&text) != Some(id) {
            let got = inner.token_to_id(&text).map_or("none".to_owned(), |n| n.to_string());
            return Err(Error::user(format!(
                "`{}` gives token `{text}` the id {id}, `{}` gives it {got}",
                config.path().display(),
                tokenizer.display()
            ))
            .help("take both files from the same model and revision"));
        }
    }
    for text in named_special_tokens(config)? {
        // A name for a token the vocabulary lacks (a `[PAD]` never given a row) must not lengthen the vocabulary
        // beyond the model's embedding.
        if inner.token_to_id(&text).is_some() && !inner.get_added_vocabulary().is_special_token(&text) {
            add(inner, AddedToken::from(text, true).normalized(false))?;
        }
    }
    Ok(())
}

/// `added_tokens_decoder`: id to token, in the order of the ids.
fn listed_tokens(config: &JsonFile) -> Result<Vec<(u32, AddedToken)>> {
    const KEY: &str = "added_tokens_decoder";
    let wrong = || config.wrong(KEY, "an object of token id to token");
    let Some(value) = config.get(KEY) else {
        return Ok(Vec::new());
    };
    let mut tokens = Vec::new();
    for (id, token) in value.as_object().ok_or_else(wrong)? {
        let id: u32 = id.parse().map_err(|_| wrong())?;
        let text = token_text(token).ok_or_else(wrong)?;
        let flag = |key: &str| token.get(key).and_then(Value::as_bool).unwrap_or(false);
        let token = AddedToken::from(text, flag("special"))
            .single_word(flag("single_word"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"))
            .normalized(flag("normalized"));
        tokens.push((id, token));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}

fn named_special_tokens(config: &JsonFile) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for key in [
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
    ] {
        names.extend(config.token_text(key)?);
    }
    for key in ["additional_special_tokens", "extra_special_tokens"] {
        let texts = match config.get(key) {
            None => continue,
            Some(Value::Array(list)) => list.iter().map(token_text).collect::<Option<Vec<_>>>(),
            Some(Value::Object(map)) => map.values().map(token_text).collect(),
            Some(_) => None,
        };
        let texts = texts.ok_or_else(|| config.wrong(key, "a list of tokens"))?;
        names.extend(texts.into_iter().map(str::to_owned));
    }
    Ok(names)
}

/// What transformers calls `clean_up_tokenization`: the spaces that `WordPiece` puts before punctuation.
fn clean_up(text: &str) -> String {
    let mut text = text.to_owned();
    for (from, to) in [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// Other forms a tokenizer is published in.
const OTHER_FORMS: [&str; 6] = [
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "tiktoken.model",
    "qwen.tiktoken",
];

fn unreadable(path: &Path, source: &std::io::Error) -> Error {
    if source.kind() != std::io::ErrorKind::NotFound {
        return io_error("read", path, source);
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let present: Vec<&str> = OTHER_FORMS
        .into_iter()
        .filter(|name| folder.join(name).is_file())
        .collect();
    let error = Error::user(format!(
        "no `{}`: the tokenizer is read from tokenizer.json",
        path.display()
    ));
    if present.is_empty() {
        return error.help("check that the path is a model directory, or download the model again");
    }
    error
        .note(format!(
            "the folder has {}, which cannot be read directly",
            present.join(", ")
        ))
        .help("convert it with Python's transformers: `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`")
}

fn broken(path: &Path, bytes: &[u8], reason: &str) -> Error {
    // The format nests alternatives, so its parser may place a mere syntax error badly; plain JSON places it exactly.
    if let Err(syntax) = serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
        return Error::user(format!("`{}` is not valid JSON: {syntax}", path.display()))
            .note(format!("the file has {} bytes", bytes.len()))
            .help("the file is damaged or incomplete: download it again");
    }
    Error::user(format!("`{}` is not a tokenizer: {reason}", path.display()))
        .help("it must be a Hugging Face tokenizer.json; save it again with a current version of Python's transformers")
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
}
