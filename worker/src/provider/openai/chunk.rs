//! Chunks of a Chat Completions stream, read leniently.
//!
//! Providers leave fields out, add their own, write `null` for empty and numbers as text. A field that makes
//! no sense counts as absent; only a chunk that is not a JSON object at all is an error.

use std::{borrow::Cow, fmt, time::Duration};

use longhaul_shared::domain::{run::Usage, step::FinishReason};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Chunk {
    #[serde(deserialize_with = "nullable")]
    pub(super) choices: Vec<Choice>,
    #[serde(deserialize_with = "counted")]
    pub(super) usage: Option<Usage>,
    pub(super) error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Choice {
    #[serde(deserialize_with = "number")]
    pub(super) index: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub(super) delta: Delta,
    pub(super) finish_reason: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Delta {
    pub(super) content: Text,
    pub(super) reasoning_content: Text,
    pub(super) reasoning: Text,
    pub(super) refusal: Text,
    #[serde(deserialize_with = "nullable")]
    pub(super) tool_calls: Vec<CallChunk>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CallChunk {
    #[serde(deserialize_with = "number")]
    pub(super) index: Option<u32>,
    pub(super) id: Text,
    #[serde(deserialize_with = "nullable")]
    pub(super) function: FunctionChunk,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FunctionChunk {
    pub(super) name: Text,
    pub(super) arguments: Arguments,
}

/// Reads one chunk. Unpaired surrogate escapes, which JSON parsers refuse, are replaced first.
pub(super) fn parse(data: &str) -> serde_json::Result<Chunk> {
    serde_json::from_str(&without_lone_surrogates(data))
}

/// A string; also the text of a list of parts. Empty for anything else.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Text(pub(super) String);

/// The arguments' JSON text; also an object, written out.
#[derive(Debug, Default)]
pub(super) struct Arguments(pub(super) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Text, E> {
        Ok(Text(text))
    }

    fn visit_unit<E>(self) -> Result<Text, E> {
        Ok(Text::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
        Ok(Text::default())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Text, E> {
        Ok(Text(number.to_string()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Text, E> {
        Ok(Text(number.to_string()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
        Ok(Text::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Text, A::Error> {
        let mut text = Text::default();
        while let Some(part) = parts.next_element::<Text>()? {
            text.0.push_str(&part.0);
        }
        Ok(text)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Text, A::Error> {
        let mut text = Text::default();
        while let Some(name) = fields.next_key::<Cow<'_, str>>()? {
            if name == "text" {
                text = fields.next_value()?;
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(text)
    }
}

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            Value::Null => String::new(),
            other => other.to_string(),
        }))
    }
}

/// `null` as the default.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let value = Option::<Value>::deserialize(deserializer)?;
    Ok(value.as_ref().and_then(count).and_then(|number| u32::try_from(number).ok()))
}

/// More tokens than any model has ever counted; sums of it stay within a 64-bit number.
const MAX_TOKENS: i64 = 1_000_000_000_000;

/// A count that is a whole number, a fraction or text; never negative, and as large as fits at most.
fn count(value: &Value) -> Option<i64> {
    let number = match value {
        Value::Number(number) => match number.as_i64() {
            Some(number) => number,
            None => number.as_f64()? as i64,
        },
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    Some(number.max(0))
}

fn counted<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Usage>, D::Error> {
    let value = Option::<Value>::deserialize(deserializer)?.unwrap_or_default();
    let at = |path: &str| value.pointer(path).and_then(count).unwrap_or(0).min(MAX_TOKENS);
    Ok(value.is_object().then(|| Usage {
        input_tokens: at("/prompt_tokens"),
        output_tokens: at("/completion_tokens"),
        reasoning_tokens: at("/completion_tokens_details/reasoning_tokens"),
        cached_input_tokens: at("/prompt_tokens_details/cached_tokens"),
    }))
}

/// The domain's word for a provider's. `None` for an empty one, which some write into every chunk.
pub(super) fn finish_reason(word: &str) -> Option<FinishReason> {
    Some(match word.trim().to_ascii_lowercase().as_str() {
        "" | "null" => return None,
        "stop" | "end_turn" | "stop_sequence" | "eos" | "eos_token" | "end" | "complete" | "completed" => {
            FinishReason::Stop
        }
        "tool_calls" | "tool_call" | "tool_use" | "function_call" => FinishReason::ToolCalls,
        "length" | "max_tokens" | "max_output_tokens" | "model_length" => FinishReason::Length,
        "content_filter" | "safety" | "refusal" | "recitation" => FinishReason::ContentFilter,
        _ => FinishReason::Other,
    })
}

/// The status that an error object stands for, and its text. Unknown ones are the provider's own trouble.
pub(super) fn error_status(error: &Value) -> (u16, String) {
    let inner = error.get("error").unwrap_or(error);
    let written = ["status", "status_code", "code", "http_status"]
        .iter()
        .filter_map(|field| inner.get(field).and_then(count))
        .find_map(|number| u16::try_from(number).ok().filter(|status| (400..600).contains(status)));
    let word: String = ["type", "code", "status"]
        .iter()
        .filter_map(|field| inner.get(field).and_then(Value::as_str))
        .collect::<Vec<_>>()
        .join(" ")
        .to_ascii_lowercase();
    let status = written.unwrap_or_else(|| {
        let any = |words: &[&str]| words.iter().any(|needle| word.contains(needle));
        if any(&["rate_limit", "too_many", "quota", "exhausted"]) {
            429
        } else if any(&["overloaded", "unavailable"]) {
            503
        } else if any(&["authentication", "invalid_api_key", "unauthorized"]) {
            401
        } else if any(&["permission", "forbidden"]) {
            403
        } else if any(&["not_found"]) {
            404
        } else if any(&["invalid_request", "context_length", "bad_request", "invalid_argument"]) {
            400
        } else {
            500
        }
    });
    let message = inner.get("message").and_then(Value::as_str).or_else(|| inner.as_str());
    (status, message.map_or_else(|| inner.to_string(), str::to_owned))
}

/// How long an error object asks to be left alone: there is no header in the middle of a stream.
pub(super) fn retry_after(error: &Value) -> Option<Duration> {
    let inner = error.get("error").unwrap_or(error);
    [("retry_after_ms", 0.001), ("retry_after_seconds", 1.0), ("retry_after", 1.0)].iter().find_map(
        |(field, scale)| {
            let value = inner.get(field)?;
            let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
            Duration::try_from_secs_f64(number * scale).ok()
        },
    )
}

/// The JSON text with `\ud800`…`\udfff` escapes that have no partner turned into `\ufffd`.
fn without_lone_surrogates(json: &str) -> Cow<'_, str> {
    if !json.contains("\\ud") && !json.contains("\\uD") {
        return Cow::Borrowed(json);
    }
    let bytes = json.as_bytes();
    let unit = |at: usize| {
        let escape = bytes.get(at..at + 6).filter(|escape| escape.starts_with(b"\\u"))?;
        u16::from_str_radix(std::str::from_utf8(&escape[2..]).ok()?, 16).ok()
    };
    let mut fixed = String::with_capacity(json.len());
    let (mut at, mut copied) = (0, 0);
    while let Some(found) = json[at..].find('\\') {
        at += found;
        match unit(at) {
            Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => at += 12,
            Some(0xd800..=0xdfff) => {
                fixed.push_str(&json[copied..at]);
                fixed.push_str("\\ufffd");
                at += 6;
                copied = at;
            }
            Some(_) => at += 6,
            // Another escape: the character behind the backslash belongs to it.
            None => at += 1 + json[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    fixed.push_str(&json[copied..]);
    Cow::Owned(fixed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn delta(json: &Value) -> Delta {
        let chunk = parse(&json!({"choices": [{"delta": json}]}).to_string()).unwrap();
        chunk.choices.into_iter().next().unwrap().delta
    }

    #[test]
    fn fields_that_are_absent_null_or_odd_do_not_fail_a_chunk() {
        for chunk in [
            json!({}),
            json!({"choices": null, "usage": null, "error": null}),
            json!({"choices": [{"delta": null, "finish_reason": null, "index": null}]}),
            json!({"choices": [{"index": 0.0, "logprobs": {"x": []}, "created": 1.5, "delta": {"role": "assistant"}}]}),
            json!({"choices": [{"delta": {"content": false, "tool_calls": null, "reasoning": {"effort": 1}}}]}),
            json!({"choices": [{"delta": {"tool_calls": [{"index": "x", "function": null}]}}]}),
        ] {
            assert!(parse(&chunk.to_string()).is_ok(), "{chunk}");
        }
        assert!(parse("{\"choices\": [").is_err());
        assert!(parse("[1]").is_err() || parse("[1]").unwrap().choices.is_empty());
    }

    #[test]
    fn text_is_read_from_strings_and_from_parts() {
        assert_eq!(delta(&json!({"content": "a"})).content.0, "a");
        let parts =
            json!({"content": [{"type": "text", "text": "a"}, {"type": "image", "url": "x"}, {"text": "b"}]});
        assert_eq!(delta(&parts).content.0, "ab");
    }

    #[test]
    fn arguments_may_be_text_or_an_object_and_an_id_may_be_a_number() {
        let calls = delta(&json!({"tool_calls": [
            {"index": "1", "id": 7, "function": {"name": "f", "arguments": {"a": 1}}},
            {"function": {"arguments": "{\"a\""}},
        ]}))
        .tool_calls;
        assert_eq!((calls[0].index, calls[0].id.0.as_str()), (Some(1), "7"));
        assert_eq!(calls[0].function.arguments.0, "{\"a\":1}");
        assert_eq!((calls[1].index, calls[1].function.arguments.0.as_str()), (None, "{\"a\""));
    }

    #[test]
    fn absurd_usage_is_clamped() {
        let usage = |value: Value| parse(&json!({"usage": value}).to_string()).unwrap().usage;
        let read = usage(json!({
            "prompt_tokens": 9_223_372_036_854_775_808_u64,
            "completion_tokens": -5,
            "completion_tokens_details": {"reasoning_tokens": "12"},
            "prompt_tokens_details": {"cached_tokens": 3.9},
        }));
        let expected = Usage {
            input_tokens: MAX_TOKENS,
            output_tokens: 0,
            reasoning_tokens: 12,
            cached_input_tokens: 3,
        };
        assert_eq!(read, Some(expected));
        assert_eq!(usage(json!("lots")), None);
        assert_eq!(usage(json!({"completion_tokens": null})), Some(Usage::default()));
    }

    #[test]
    fn lone_surrogates_are_replaced_and_pairs_are_kept() {
        let text = |escaped: &str| {
            let data = format!("{{\"choices\":[{{\"delta\":{{\"content\":\"{escaped}\"}}}}]}}");
            parse(&data).unwrap().choices.remove(0).delta.content.0
        };
        assert_eq!(text(r"a\ud83d\ude00b"), "a😀b");
        assert_eq!(text(r"a\ud83db\uDE00"), "a\u{fffd}b\u{fffd}");
        assert_eq!(text(r"\ud83d\ud83d\ude00\\ud83dé"), "\u{fffd}😀\\ud83dé");
        assert_eq!(text(r"\u0041\n\uDFFF"), "A\n\u{fffd}");
    }

    #[test]
    fn error_objects_stand_for_a_status() {
        for (error, status) in [
            (json!({"message": "slow down", "type": "rate_limit_error"}), 429),
            (json!({"message": "x", "code": 503}), 503),
            (json!({"message": "x", "code": "invalid_api_key", "type": "invalid_request_error"}), 401),
            (
                json!({"message": "x", "type": "invalid_request_error", "code": "context_length_exceeded"}),
                400,
            ),
            (json!({"error": {"message": "x", "type": "overloaded_error"}}), 503),
            (json!("it broke"), 500),
        ] {
            assert_eq!(error_status(&error).0, status, "{error}");
        }
        assert_eq!(error_status(&json!("it broke")).1, "it broke");
        assert_eq!(error_status(&json!({"message": "slow"})).1, "slow");
    }

    #[test]
    fn an_error_object_may_ask_for_patience() {
        let asked = |error: Value| retry_after(&error).map(|wait| wait.as_millis());
        assert_eq!(asked(json!({"message": "slow down", "retry_after": 2})), Some(2000));
        assert_eq!(asked(json!({"error": {"retry_after": "1.5"}})), Some(1500));
        assert_eq!(asked(json!({"retry_after_ms": 250, "retry_after": 9})), Some(250));
        for odd in [json!("later"), json!({}), json!({"retry_after": -1}), json!({"retry_after": 1e300})] {
            assert_eq!(asked(odd), None);
        }
    }

    #[test]
    fn foreign_finish_reasons_have_a_meaning() {
        assert_eq!(finish_reason("end_turn"), Some(FinishReason::Stop));
        assert_eq!(finish_reason("tool_use"), Some(FinishReason::ToolCalls));
        assert_eq!(finish_reason("vibes"), Some(FinishReason::Other));
        assert_eq!(finish_reason(""), None);
    }
}
