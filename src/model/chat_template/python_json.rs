//! JSON as Python's `json.dumps` writes it: templates put it into prompts, where a missing space is another token.

use std::fmt::Write;

use serde_json::Value;

/// The options of `json.dumps`.
#[derive(Debug)]
pub(super) struct Style {
    ensure_ascii: bool,
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

impl Style {
    /// `separators` defaults to a space after each, or to none at the line ends where there is an indent.
    pub(super) fn new(
        ensure_ascii: bool,
        indent: Option<usize>,
        separators: Option<[String; 2]>,
        sort_keys: bool,
    ) -> Self {
        let item = if indent.is_some() { "," } else { ", " };
        let [item_separator, key_separator] = separators.unwrap_or_else(|| [item.to_owned(), ": ".to_owned()]);
        Self {
            ensure_ascii,
            indent,
            item_separator,
            key_separator,
            sort_keys,
        }
    }

    pub(super) fn write(&self, value: &Value) -> String {
        let mut out = String::new();
        self.value(value, 0, &mut out);
        out
    }

    fn value(&self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Array(items) => {
                let items = items.iter().map(|item| (None, item));
                self.container("[]", items.collect(), depth, out);
            }
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().map(|(key, item)| (Some(key.as_str()), item)).collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.container("{}", entries, depth, out);
            }
            Value::String(text) => self.string(text, out),
            Value::Number(number) if number.is_f64() => out.push_str(&float(number.as_f64().unwrap_or_default())),
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                let _ = write!(out, "{value}");
            }
        }
    }

    fn container(&self, brackets: &str, items: Vec<(Option<&str>, &Value)>, depth: usize, out: &mut String) {
        if items.is_empty() {
            out.push_str(brackets);
            return;
        }
        let (open, close) = brackets.split_at(1);
        out.push_str(open);
        for (at, (key, item)) in items.into_iter().enumerate() {
            if at > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(depth + 1, out);
            if let Some(key) = key {
                self.string(key, out);
                out.push_str(&self.key_separator);
            }
            self.value(item, depth + 1, out);
        }
        self.new_line(depth, out);
        out.push_str(close);
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        // serde_json escapes what Python escapes, apart from DEL and the non-ASCII characters.
        let quoted = Value::from(text).to_string();
        if !self.ensure_ascii {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() && c != '\x7f' {
                out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
}

/// A float as Python's `repr` writes it: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn float(x: f64) -> String {
    let scientific = format!("{x:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    format!("{x:?}")
}

#[cfg(test)]
mod tests {
    use super::{Style, float};
    use serde_json::json;

    /// Expected strings: `repr` of `CPython`.
    #[test]
    fn floats_read_like_python() {
        for (x, text) in [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
        ] {
            assert_eq!(float(x), text);
        }
    }

    /// Expected strings: `json.dumps` of `CPython`.
    #[test]
    fn styles_read_like_python() {
        let value = json!({"b": [1, "é<&>'\"\n\u{1f600}"], "a": {}, "n": null});
        let write = |ascii, indent, separators, sort| Style::new(ascii, indent, separators, sort).write(&value);
        assert_eq!(
            write(false, None, None, false),
            "{\"b\": [1, \"é<&>'\\\"\\n\u{1f600}\"], \"a\": {}, \"n\": null}"
        );
        assert_eq!(
            write(true, None, Some([",".into(), ":".into()]), true),
            r#"{"a":{},"b":[1,"\u00e9<&>'\"\n\ud83d\ude00"],"n":null}"#
        );
        assert_eq!(
            write(false, Some(2), None, false),
            "{\n  \"b\": [\n    1,\n    \"é<&>'\\\"\\n\u{1f600}\"\n  ],\n  \"a\": {},\n  \"n\": null\n}"
        );
    }
}
