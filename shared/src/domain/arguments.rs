//! The one parser of tool arguments: what is shown, approved and checked is what is executed.
//!
//! Stricter than JSON where JSON leaves room for two readings: an object that has a key twice is refused, as is
//! what no store could keep. Numbers are handed on as 64-bit integers or doubles; an integer that is neither is
//! refused, so that a tool never gets another one than the log shows.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use super::text::{MAX_DEPTH, clean_json, one_line};

/// The longest arguments that are looked at.
pub const MAX_BYTES: usize = 256 * 1024;

/// The arguments as an object, sanitised; or what is wrong, in words for the model. No text stands for no
/// arguments.
pub fn parse(text: &str) -> Result<Value, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("the arguments are larger than {} KiB", MAX_BYTES / 1024));
    }
    if text.trim().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    if let Some(digits) = inexact_integer(text) {
        return Err(format!(
            "the number {} is too large to be passed on exactly; write it as a string",
            one_line(digits, 40)
        ));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let value = Strict { depth: 0 }
        .deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value))
        .map_err(|error| format!("the arguments are not valid JSON: {error}"))?;
    if !value.is_object() {
        return Err("the arguments are not a JSON object".to_owned());
    }
    clean_json(value).map_err(|error| format!("the arguments cannot be used: {error}"))
}

/// The first integer outside strings that a 64-bit one cannot hold.
fn inexact_integer(text: &str) -> Option<&str> {
    let mut rest = text;
    loop {
        rest = &rest[rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit())?..];
        if let Some(string) = rest.strip_prefix('"') {
            rest = behind_string(string)?;
            continue;
        }
        let end = rest.find(|c: char| !matches!(c, '-' | '+' | '.' | 'e' | 'E' | '0'..='9'));
        let number = &rest[..end.unwrap_or(rest.len())];
        let is_integer = number.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
        if is_integer && number.len() > 1 && number.parse::<i64>().is_err() && number.parse::<u64>().is_err()
        {
            return Some(number);
        }
        rest = &rest[number.len()..];
    }
}

/// What follows the string that has just begun.
fn behind_string(text: &str) -> Option<&str> {
    let mut escaped = false;
    let end = text.bytes().position(|byte| {
        let is_end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        is_end
    })?;
    Some(&text[end + 1..])
}

/// Any JSON, with each key once and no deeper than can be stored.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn inner<E: Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut list = vec![];
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut object = Map::new();
        while let Some(Key(key)) = fields.next_key()? {
            let value = fields.next_value_seed(inner)?;
            if object.contains_key(&key) {
                let key: String = key.chars().take(64).collect();
                return Err(A::Error::custom(format_args!("the key {key:?} is there twice")));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Key(String);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_passes_sanitised() {
        assert_eq!(
            parse(r#"{"a":[1,-2,0.5,null,true,"x\u0000"]}"#),
            Ok(json!({"a": [1, -2, 0.5, null, true, "x\u{fffd}"]}))
        );
        assert_eq!(parse(" \n"), Ok(json!({})));
        assert_eq!(parse("{\"n\":9007199254740993}").unwrap()["n"].as_i64(), Some(9_007_199_254_740_993));
    }

    #[test]
    fn what_has_two_readings_or_none_is_refused() {
        for (text, words) in [
            (r#"{"a":1"#, "not valid JSON"),
            (r#"{"a":1} x"#, "not valid JSON"),
            (r#"{"a":1}{"a":2}"#, "not valid JSON"),
            ("[1]", "not a JSON object"),
            ("\"{}\"", "not a JSON object"),
            (r#"{"a":1,"a":1}"#, "twice"),
            (r#"{"x":{"b":1,"\u0062":2}}"#, "twice"),
            (r#"{"a":1e131071}"#, "out of range"),
            (r#"{"a":18446744073709551616}"#, "18446744073709551616 is too large"),
            (r#"{"a":[-9223372036854775809]}"#, "-9223372036854775809 is too large"),
            (r#"{"a":"\ud800"}"#, "not valid JSON"),
        ] {
            let told = parse(text).unwrap_err();
            assert!(told.contains(words), "{text}: {told}");
        }
    }

    #[test]
    fn numbers_are_handed_on_as_they_are_or_not_at_all() {
        for (text, number) in [
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("9007199254740993", "9007199254740993"),
            ("1.10", "1.1"),
            ("-0", "-0.0"),
            ("1e20", "1e+20"),
            ("\"36893488147419103233\"", "\"36893488147419103233\""),
            ("\"\\\"99999999999999999999\"", "\"\\\"99999999999999999999\""),
        ] {
            assert_eq!(parse(&format!("{{\"n\":{text}}}")).unwrap()["n"].to_string(), number);
        }
        let bombs = |number: &str| format!("{{\"n\":[{}0]}}", format!("{number},").repeat(1000));
        for bomb in ["1e131071", &"9".repeat(200)] {
            assert!(parse(&bombs(bomb)).unwrap_err().len() < 200);
        }
        let small = bombs("1e308");
        assert!(parse(&small).unwrap().to_string().len() <= 2 * small.len(), "none of them unfolds");
    }

    #[test]
    fn depth_and_size_are_accepted_at_the_limit_and_refused_above_it() {
        let nested =
            |levels: usize| format!("{{\"a\":{}1{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert!(parse(&nested(MAX_DEPTH)).is_ok());
        assert!(parse(&nested(MAX_DEPTH + 1)).unwrap_err().contains("nested deeper"));
        assert!(parse(&nested(100_000)).unwrap_err().contains("nested deeper"));
        let sized = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
        assert!(parse(&sized(MAX_BYTES)).is_ok());
        assert!(parse(&sized(MAX_BYTES + 1)).unwrap_err().contains("256 KiB"));
    }
}
