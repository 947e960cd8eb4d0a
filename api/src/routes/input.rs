//! What the user says, as it comes in: text, which is all that is taken so far.

use longhaul_shared::{admission::Input, domain::message::Part};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::ApiError;

/// What the user says.
#[derive(ToSchema)]
#[schema(as = Input)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "describes `input`, which is read by hand so that a flaw is reported with its place"
)]
pub(crate) enum InputSchema {
    Plain(String),
    Text { text: String },
    Parts(Vec<InputPart>),
}

#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(dead_code, reason = "describes a part of `input`")]
pub(crate) enum InputPart {
    Text { text: String },
}

/// Text, or text in an object, or parts of which only text is known so far.
pub(super) fn read(input: Value) -> Result<Input, ApiError> {
    match input {
        Value::String(text) => Ok(Input::Text(text)),
        Value::Object(fields) => text_field(fields, "/input", &["text"]).map(Input::Text),
        Value::Array(items) => {
            let parts = items.into_iter().enumerate().map(|(index, item)| read_part(item, index));
            parts.collect::<Result<_, _>>().map(Input::Parts)
        }
        _ => Err(ApiError::body("/input", "must be text, an object with a text, or a list of parts")),
    }
}

fn read_part(item: Value, index: usize) -> Result<Part, ApiError> {
    let pointer = format!("/input/{index}");
    let Value::Object(fields) = item else {
        return Err(ApiError::body(pointer, "must be an object such as {\"type\":\"text\",\"text\":\"…\"}"));
    };
    if fields.get("type").and_then(Value::as_str) != Some("text") {
        return Err(ApiError::body(pointer + "/type", "must be \"text\""));
    }
    text_field(fields, &pointer, &["type", "text"]).map(|text| Part::Text { text })
}

/// The field `text` of an object that has no others than the known ones.
fn text_field(mut fields: Map<String, Value>, pointer: &str, known: &[&str]) -> Result<String, ApiError> {
    if let Some(unknown) = fields.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(ApiError::body(format!("{pointer}/{unknown}"), "is not known here"));
    }
    match fields.remove("text") {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(ApiError::body(format!("{pointer}/text"), "must be text")),
        None => Err(ApiError::body(format!("{pointer}/text"), "is required")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused_at(result: Result<Input, ApiError>) -> String {
        let Err(error) = result else { panic!("was accepted") };
        error.flaws[0].pointer.clone().unwrap()
    }

    #[test]
    fn input_is_text_in_one_of_three_forms() {
        assert!(matches!(read(json!("hi")), Ok(Input::Text(text)) if text == "hi"));
        assert!(matches!(read(json!({"text": "hi"})), Ok(Input::Text(text)) if text == "hi"));
        let parts = read(json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]));
        assert!(matches!(parts, Ok(Input::Parts(parts)) if parts.len() == 2));

        let refused = [
            (json!(null), "/input"),
            (json!(7), "/input"),
            (json!({}), "/input/text"),
            (json!({"text": 7}), "/input/text"),
            (json!({"text": "a", "more": 1}), "/input/more"),
            (json!(["a"]), "/input/0"),
            (json!([{"type": "image", "text": "a"}]), "/input/0/type"),
            (json!([{"type": "text", "text": "a"}, {"type": "text"}]), "/input/1/text"),
            (json!([{"type": "text", "text": "a", "x": 1}]), "/input/0/x"),
        ];
        for (input, pointer) in refused {
            assert_eq!(refused_at(read(input)), pointer);
        }
    }
}
