//! The sanitiser that everything stored has passed, whoever wrote it: client, model, tool or hook.
//!
//! Postgres refuses NUL in text, and JSON that one side writes the other may be unable to read. One set of
//! limits at every entry keeps what is stored readable.

use serde_json::{Map, Value};

/// The deepest nesting of JSON that is accepted.
pub const MAX_DEPTH: usize = 64;

/// Why a value cannot be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unstorable {
    #[error("JSON is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("a number is out of range")]
    NumberOutOfRange,
    #[error("the text is longer than {limit} bytes")]
    TooLong { limit: usize },
}

/// The text with NUL replaced by U+FFFD; everything else in a Rust string can be stored.
pub fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// [`clean`], without a copy where nothing is to be cleaned.
pub fn clean_owned(text: String) -> String {
    if text.contains('\0') { clean(&text) } else { text }
}

/// The text cleaned and cut to at most `limit` bytes at a character's border, with a mark where it was cut.
pub fn clean_and_cut(text: &str, limit: usize) -> String {
    const MARK: &str = "… [cut]";
    if text.len() <= limit {
        return clean(text);
    }
    let mut end = limit.saturating_sub(MARK.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    clean(&text[..end]) + MARK
}

/// The first `limit` characters on one line, for error messages.
pub fn one_line(text: &str, limit: usize) -> String {
    let mut line = String::new();
    let mut count = 0;
    for word in text.split_whitespace() {
        for c in (count > 0).then_some(' ').into_iter().chain(word.chars()) {
            if count == limit {
                line.push('…');
                return line;
            }
            line.push(if c.is_control() { '\u{fffd}' } else { c });
            count += 1;
        }
    }
    line
}

/// The value with its strings and keys cleaned, or why it cannot be stored.
pub fn clean_json(value: Value) -> Result<Value, Unstorable> {
    clean_at(value, 0)
}

fn clean_at(value: Value, depth: usize) -> Result<Value, Unstorable> {
    if depth > MAX_DEPTH {
        return Err(Unstorable::TooDeep);
    }
    Ok(match value {
        Value::String(text) => Value::String(clean_owned(text)),
        Value::Array(items) => {
            Value::Array(items.into_iter().map(|item| clean_at(item, depth + 1)).collect::<Result<_, _>>()?)
        }
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(key, item)| Ok((clean_owned(key), clean_at(item, depth + 1)?)))
                .collect::<Result<Map<_, _>, _>>()?,
        ),
        Value::Number(number) => {
            if number.as_f64().is_none_or(|n| !n.is_finite()) {
                return Err(Unstorable::NumberOutOfRange);
            }
            Value::Number(number)
        }
        Value::Null | Value::Bool(_) => value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nul_is_replaced_in_strings_and_keys() {
        assert_eq!(clean("a\0b"), "a\u{fffd}b");
        let cleaned = clean_json(json!({"k\0": ["v\0", 1, null]})).unwrap();
        assert_eq!(cleaned, json!({"k\u{fffd}": ["v\u{fffd}", 1, null]}));
    }

    #[test]
    fn depth_is_accepted_at_the_limit_and_refused_above_it() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        assert!(clean_json(nested(MAX_DEPTH)).is_ok());
        assert_eq!(clean_json(nested(MAX_DEPTH + 1)), Err(Unstorable::TooDeep));
    }

    #[test]
    fn cutting_respects_the_limit_and_characters() {
        assert_eq!(clean_and_cut("short", 5), "short");
        let cut = clean_and_cut(&"é".repeat(100), 51);
        assert!(cut.len() <= 51 && cut.ends_with("[cut]"), "{cut}");
    }

    #[test]
    fn an_error_text_is_one_line_of_bounded_length() {
        assert_eq!(one_line("a\n\n b\tc", 10), "a b c");
        assert_eq!(one_line("abcdef", 3), "abc…");
        assert_eq!(one_line("abc", 3), "abc");
    }
}
