//! JSON text to a value that can be stored.
//!
//! Clients cut strings in the middle of an emoji and send half of it as `\ud83d`, which is JSON by the letter and no
//! text. Such halves become U+FFFD, as NUL does; nesting and numbers have limits.

use std::borrow::Cow;

use longhaul_shared::domain::text::{MAX_DEPTH, clean_json};
use serde_json::Value;

use crate::error::{ApiError, Code};

/// Parses and sanitises.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let mended = mend_surrogates(bytes);
    let value: Value = serde_json::from_slice(&mended).map_err(|error| {
        let detail = error.to_string();
        if detail.starts_with("recursion limit") {
            ApiError::body("", format!("is nested deeper than {MAX_DEPTH} levels"))
        } else {
            ApiError::new(Code::MalformedJson, detail)
        }
    })?;
    clean_json(value).map_err(|why| ApiError::body("", why.to_string()))
}

/// Replaces every escaped surrogate that has no partner by an escaped U+FFFD.
fn mend_surrogates(json: &[u8]) -> Cow<'_, [u8]> {
    let mut mended: Option<Vec<u8>> = None;
    let mut at = 0;
    while at < json.len() {
        if json[at] != b'\\' {
            at += 1;
            continue;
        }
        match escaped_unit(&json[at..]) {
            Some(0xd800..=0xdbff)
                if matches!(json.get(at + 6..).and_then(escaped_unit), Some(0xdc00..=0xdfff)) =>
            {
                at += 12;
            }
            Some(0xd800..=0xdfff) => {
                mended.get_or_insert_with(|| json.to_vec())[at + 2..at + 6].copy_from_slice(b"fffd");
                at += 6;
            }
            // The backslash and what it escapes, so that `\\u` is not taken for an escape.
            _ => at += 2,
        }
    }
    mended.map_or(Cow::Borrowed(json), Cow::Owned)
}

/// The UTF-16 unit of an escape such as `\u00e9` at the beginning.
fn escaped_unit(json: &[u8]) -> Option<u16> {
    let digits = json.strip_prefix(b"\\u")?.get(..4)?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn half_an_emoji_becomes_a_replacement_character_and_a_whole_one_stays() {
        let cases = [
            (r#""a\ud83d""#, "a\u{fffd}"),
            (r#""\udc00b""#, "\u{fffd}b"),
            (r#""\ud83d\ude00""#, "😀"),
            (r#""\uD83D\uD83D\uDE00""#, "\u{fffd}😀"),
            (r#""\\ud83d""#, "\\ud83d"),
            (r#""\\\ud83d""#, "\\\u{fffd}"),
            (r#""a\u0000b""#, "a\u{fffd}b"),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text.as_bytes()).unwrap(), json!(expected), "{text}");
        }
    }

    #[test]
    fn text_that_is_not_json_is_refused() {
        for text in ["", "{", "{\"a\":}", "nul", "{\"a\":1}x", "1e999", "\"\\ud8\"", "'a'"] {
            assert_eq!(parse(text.as_bytes()).unwrap_err().code, Code::MalformedJson, "{text}");
        }
        assert_eq!(parse(b"\"\xff\"").unwrap_err().code, Code::MalformedJson);
    }

    #[test]
    fn nesting_is_accepted_at_the_limit_and_refused_above_it() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        for levels in [MAX_DEPTH + 2, 127, 128, 100_000] {
            assert_eq!(parse(nested(levels).as_bytes()).unwrap_err().code, Code::InvalidRequest, "{levels}");
        }
    }
}
