//! Token ids to text, one id at a time, without ever taking text back.
//!
//! Decoding is not a map over tokens: a character may be spread over several byte tokens, sentencepiece tokenizers
//! drop the first space of a text, and byte-fallback tokenizers replace a whole run of byte tokens if any of it is
//! invalid. The usual trick of decoding a sliding window twice and comparing gives wrong text where the window cuts
//! such a run, so the decoders that language models use are followed exactly instead, on a state of a few bytes.

use serde_json::Value;

use super::tokenizer::Tokenizer;
use crate::error::Result;

/// How a tokenizer's `decoder` turns tokens into text, as far as it can be followed token by token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DecodeStyle {
    /// Byte-level BPE (GPT-2, Llama 3, Qwen): tokens spell bytes, the text is the bytes read as UTF-8.
    Bytes,
    /// Sentencepiece-like (Llama 2, Mistral, Gemma): tokens are text, apart from byte tokens.
    Pieces(PieceStyle),
    /// Anything else: nothing is certain before the end.
    Whole,
}

/// The steps of a sentencepiece-like decoder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PieceStyle {
    replace: Vec<(String, String)>,
    byte_fallback: bool,
    /// Up to this many of this character are dropped from the start of the text.
    strip: Option<(char, usize)>,
    /// This character is a space, except in the first token, where it is nothing.
    metaspace: Option<char>,
}

impl DecodeStyle {
    /// Recognises the `decoder` value of a `tokenizer.json`.
    pub(crate) fn of(decoder: &Value) -> Self {
        match decoder["type"].as_str() {
            Some("ByteLevel") => Self::Bytes,
            Some("Metaspace") => pieces(std::slice::from_ref(decoder)),
            Some("Sequence") => match decoder["decoders"].as_array().map(Vec::as_slice) {
                Some([only]) if only["type"] == "ByteLevel" => Self::Bytes,
                Some(steps) => pieces(steps),
                None => Self::Whole,
            },
            _ => Self::Whole,
        }
    }
}

/// Recognises `Replace* ByteFallback? Fuse? Strip?` and a lone `Metaspace`; another order means another text.
fn pieces(steps: &[Value]) -> DecodeStyle {
    let mut style = PieceStyle::default();
    let mut last = 0;
    for step in steps {
        let rank = match step["type"].as_str() {
            Some("Replace") => {
                let (Some(pattern), Some(content)) = (step["pattern"]["String"].as_str(), step["content"].as_str())
                else {
                    return DecodeStyle::Whole;
                };
                if pattern.is_empty() {
                    return DecodeStyle::Whole;
                }
                style.replace.push((pattern.to_owned(), content.to_owned()));
                1
            }
            Some("Metaspace") if steps.len() == 1 => {
                let marker = step["replacement"].as_str().and_then(|s| s.chars().next());
                let Some(marker) = marker else {
                    return DecodeStyle::Whole;
                };
                if step["prepend_scheme"] == "never" {
                    style.replace.push((marker.to_string(), " ".to_owned()));
                } else {
                    style.metaspace = Some(marker);
                }
                1
            }
            Some("ByteFallback") if last < 2 => {
                style.byte_fallback = true;
                2
            }
            Some("Fuse") => 3,
            // Before a Fuse it would strip every token.
            Some("Strip") if last == 3 => {
                let content = step["content"].as_str().and_then(|s| s.chars().next());
                let (Some(content), Some(start)) = (content, step["start"].as_u64()) else {
                    return DecodeStyle::Whole;
                };
                style.strip = Some((content, start as usize));
                4
            }
            _ => return DecodeStyle::Whole,
        };
        if rank < last {
            return DecodeStyle::Whole;
        }
        last = rank;
    }
    DecodeStyle::Pieces(style)
}

/// Turns ids into text as they come. Special tokens are skipped, and so are ids without a token.
///
/// The pushed texts and the last one together are exactly `decode(ids, true)` of all ids, and no text is emitted that
/// a later id could change. What that holds back: the bytes of an unfinished character; with byte fallback a run of
/// byte tokens until an ordinary token ends it, because one bad byte turns the whole run into U+FFFD; and everything
/// for a `decoder` this module does not know. Time per id is that of one token, whatever came before.
#[derive(Debug, Clone)]
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Bytes { pending: Vec<u8> },
    Pieces(PieceState),
    Whole { ids: Vec<u32> },
}

#[derive(Debug, Clone)]
struct PieceState {
    style: PieceStyle,
    /// The byte tokens since the last ordinary token.
    run: Vec<u8>,
    first: bool,
}

impl<'t> StreamDecoder<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer) -> Self {
        let state = match tokenizer.decode_style() {
            DecodeStyle::Bytes => State::Bytes { pending: Vec::new() },
            DecodeStyle::Pieces(style) => State::Pieces(PieceState {
                style: style.clone(),
                run: Vec::new(),
                first: true,
            }),
            DecodeStyle::Whole => State::Whole { ids: Vec::new() },
        };
        Self { tokenizer, state }
    }

    /// Takes the next id; the text that is now certain, if any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        if let State::Whole { ids } = &mut self.state {
            ids.push(id);
            return Ok(None);
        }
        let Some(token) = self.tokenizer.decodable_token(id) else {
            return Ok(None);
        };
        let mut out = String::new();
        match &mut self.state {
            State::Bytes { pending } => {
                push_token_bytes(&token, pending);
                drain_utf8(pending, &mut out);
            }
            State::Pieces(state) => state.push(token, &mut out),
            State::Whole { .. } => {}
        }
        Ok(some_text(out))
    }

    /// The end of the ids: the text that was still held back.
    pub fn finish(&mut self) -> Result<Option<String>> {
        let mut out = String::new();
        match &mut self.state {
            State::Bytes { pending } => out.push_str(&String::from_utf8_lossy(&std::mem::take(pending))),
            State::Pieces(state) => state.end_run(&mut out),
            State::Whole { ids } => out = self.tokenizer.decode(&std::mem::take(ids), true)?,
        }
        Ok(some_text(out))
    }
}

fn some_text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl PieceState {
    fn push(&mut self, token: String, out: &mut String) {
        let mut text = token;
        for (from, to) in &self.style.replace {
            text = text.replace(from.as_str(), to);
        }
        if let Some(marker) = self.style.metaspace {
            text = text.replace(marker, if self.first { "" } else { " " });
            self.first = false;
        }
        if let Some(byte) = byte_token(&text).filter(|_| self.style.byte_fallback) {
            self.run.push(byte);
        } else {
            self.end_run(out);
            self.emit(&text, out);
        }
    }

    /// A run is text if all of it is, and otherwise one U+FFFD per byte.
    fn end_run(&mut self, out: &mut String) {
        let run = std::mem::take(&mut self.run);
        let text = String::from_utf8(run).unwrap_or_else(|e| "\u{fffd}".repeat(e.as_bytes().len()));
        self.emit(&text, out);
    }

    fn emit(&mut self, mut text: &str, out: &mut String) {
        while let Some((content, left)) = self.style.strip.as_mut().filter(|_| !text.is_empty()) {
            match text.strip_prefix(*content).filter(|_| *left > 0) {
                Some(rest) => {
                    text = rest;
                    *left -= 1;
                }
                None => self.style.strip = None,
            }
        }
        out.push_str(text);
    }
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// Appends the bytes that a byte-level token spells. A token with a character outside that alphabet is an added token
/// and stands for its own text.
fn push_token_bytes(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for c in token.chars() {
        if let Some(byte) = spelled_byte(c) {
            bytes.push(byte);
        } else {
            bytes.truncate(start);
            bytes.extend_from_slice(token.as_bytes());
            return;
        }
    }
}

/// The byte-level alphabet: the printable Latin-1 characters stand for themselves, and the other 68 bytes, in order,
/// for the characters from U+0100 on.
fn spelled_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Moves all that is certain from `pending` to `out`, and leaves the beginning of an unfinished character.
fn drain_utf8(pending: &mut Vec<u8>, out: &mut String) {
    let keep_from = match pending.utf8_chunks().last() {
        // An invalid end that is the beginning of some character has no known length yet.
        Some(last) if std::str::from_utf8(last.invalid()).is_err_and(|e| e.error_len().is_none()) => {
            pending.len() - last.invalid().len()
        }
        _ => pending.len(),
    };
    out.push_str(&String::from_utf8_lossy(&pending[..keep_from]));
    pending.drain(..keep_from);
}

#[cfg(test)]
mod tests {
    use super::{DecodeStyle, drain_utf8, spelled_byte};
    use serde_json::json;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let mut found: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(spelled_byte).collect();
        found.sort_unstable();
        assert_eq!(found, (0..=255).collect::<Vec<u8>>());
        assert_eq!((spelled_byte('Ġ'), spelled_byte('Ċ')), (Some(b' '), Some(b'\n')));
    }

    #[test]
    fn unknown_decoders_wait_for_the_end() {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        for decoder in [
            json!(null),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            json!({"type": "Sequence", "decoders": [replace, strip]}),
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, replace]}),
            json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"Regex": "x"}, "content": ""}]}),
            json!({"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Fuse"}]}),
        ] {
            assert_eq!(DecodeStyle::of(&decoder), DecodeStyle::Whole, "{decoder}");
        }
    }

    #[test]
    fn bad_bytes_leave_at_once_and_good_beginnings_wait() {
        let mut pending = vec![0xff, 0xf0, 0x9f];
        let mut out = String::new();
        drain_utf8(&mut pending, &mut out);
        assert_eq!((out.as_str(), pending.as_slice()), ("\u{fffd}", &[0xf0, 0x9f][..]));
        pending.push(b'A');
        drain_utf8(&mut pending, &mut out);
        assert_eq!((out.as_str(), pending.len()), ("\u{fffd}\u{fffd}A", 0));
    }
}
