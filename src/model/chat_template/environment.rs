//! The Jinja environment of transformers, rebuilt on minijinja.

use std::fmt;

use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, escape_formatter};
use minijinja_contrib::pycompat;
use time::OffsetDateTime;

use super::{python_json, strftime};

/// The name errors know the template by; without a suffix that would switch HTML escaping on.
pub(super) const NAME: &str = "chat_template";

/// An environment with the settings, filters and functions that chat templates rely on.
pub(super) fn new(now: Option<OffsetDateTime>) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(pycompat::unknown_method_callback);
    // Printed by Python these constants are capitalised.
    env.set_formatter(
        |out, state, value| match (value.is_none(), bool::try_from(value.clone())) {
            (true, _) => out.write_str("None").map_err(Error::from),
            (_, Ok(true)) => out.write_str("True").map_err(Error::from),
            (_, Ok(false)) => out.write_str("False").map_err(Error::from),
            _ => escape_formatter(out, state, value),
        },
    );
    env.add_filter("tojson", to_json);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_function("strftime_now", move |format: &str| -> Result<String, Error> {
        // Where the local offset cannot be known, UTC is the only honest clock.
        let now = now.unwrap_or_else(|| OffsetDateTime::now_local().unwrap_or_else(|_| OffsetDateTime::now_utc()));
        strftime::format(format, now).map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
    });
    env
}

/// What a template passed to `raise_exception`, as opposed to a failure of the template itself.
pub(super) fn raised_message(error: &Error) -> Option<&str> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return Some(message);
        }
        source = cause.source();
    }
    None
}

#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, without HTML escapes.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands arguments over by value")]
fn to_json(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let argument = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        let value = match positional.get(at) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = argument(1, "indent")?.map(usize::try_from).transpose()?;
    let separators = match argument(2, "separators")? {
        None => None,
        Some(pair) => {
            let pair: Option<Vec<String>> = pair.try_iter()?.map(|v| v.as_str().map(str::to_owned)).collect();
            let pair: Option<[String; 2]> = pair.and_then(|pair| pair.try_into().ok());
            Some(pair.ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidOperation,
                    "tojson: `separators` must be a pair of strings",
                )
            })?)
        }
    };
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|v| v.is_true());
    named.assert_all_used()?;

    let json = serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, "tojson: the value has no JSON form").with_source(e))?;
    let style = python_json::Style::new(ensure_ascii, indent, separators, sort_keys);
    Ok(Value::from_safe_string(style.write(&json)))
}

/// Turns `{% generation %}` .. `{% endgeneration %}` into a scope. transformers uses these tags to mark the
/// assistant's tokens for training, which does not change the text; minijinja has no way to add tags.
pub(super) fn replace_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open + 2);
        out.push_str(before);
        rest = tag;
        let Some(close) = tag.find("%}") else { break };
        let inside = &tag[..close];
        for (name, scope) in [("generation", "with"), ("endgeneration", "endwith")] {
            if inside.trim_matches(['-', '+']).trim() == name {
                // Only the word changes: line numbers and whitespace control stay.
                out.push_str(&inside.replace(name, scope));
                rest = &tag[close..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::replace_generation_tags;

    #[test]
    fn only_generation_tags_change() {
        let text = "{%- generation -%}\n{{ generation }}{% if generation %}{% endif %}{%+ endgeneration\n%}{% x";
        let wanted = "{%- with -%}\n{{ generation }}{% if generation %}{% endif %}{%+ endwith\n%}{% x";
        assert_eq!(replace_generation_tags(text), wanted);
    }
}
