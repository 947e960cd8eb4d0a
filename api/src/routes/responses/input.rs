//! Input items as they come in: messages, calls with their results, and references to items that there are.

use longhaul_shared::domain::message::{Part, Speaker};
use serde_json::{Map, Value};

use crate::error::ApiError;

/// One item of an input.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sent {
    Part(Part),
    /// An item that the client has seen before, by its id.
    Reference(String),
}

/// Text, or a list of items. What a model need not read again is left out.
pub(crate) fn read_items(pointer: &str, input: Value) -> Result<Vec<Sent>, ApiError> {
    let items = match input {
        Value::String(text) => vec![Sent::Part(Part::Text { text })],
        Value::Array(items) => {
            let items = items.into_iter().enumerate();
            let read = items.map(|(index, item)| read_item(&format!("{pointer}/{index}"), item));
            read.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect()
        }
        _ => return Err(ApiError::body(pointer, "must be text or a list of items")),
    };
    let is_blank = |item: &Sent| matches!(item, Sent::Part(Part::Text { text }) if text.trim().is_empty());
    if items.iter().all(is_blank) {
        return Err(ApiError::body(pointer, "must not be empty"));
    }
    Ok(items)
}

fn read_item(pointer: &str, item: Value) -> Result<Vec<Sent>, ApiError> {
    let Value::Object(fields) = item else { return Err(ApiError::body(pointer, "must be an object")) };
    let kind = match fields.get("type") {
        None | Some(Value::Null) if fields.contains_key("role") => "message",
        None | Some(Value::Null)
            if fields.len() - usize::from(fields.contains_key("type")) == 1 && fields.contains_key("id") =>
        {
            "item_reference"
        }
        Some(Value::String(kind)) => kind.as_str(),
        _ => return Err(ApiError::body(format!("{pointer}/type"), "must name the kind of the item")),
    };
    let any_text = |name: &str| required_text(pointer, &fields, name);
    let text = |name: &str| match any_text(name)? {
        text if text.is_empty() => Err(ApiError::body(format!("{pointer}/{name}"), "must not be empty")),
        text => Ok(text),
    };
    Ok(match kind {
        "message" => read_message(pointer, &fields)?,
        "function_call" => {
            let (call_id, name, arguments) = (text("call_id")?, text("name")?, any_text("arguments")?);
            vec![Sent::Part(Part::Call { call_id, name, arguments })]
        }
        "function_call_output" => {
            let output = read_text(&format!("{pointer}/output"), fields.get("output"))?;
            vec![Sent::Part(Part::CallResult { call_id: text("call_id")?, output })]
        }
        "mcp_call" => {
            let call_id = text("id")?;
            let error = fields.get("error").filter(|error| !error.is_null());
            let output = match error {
                None => fields.get("output").and_then(Value::as_str).unwrap_or_default().to_owned(),
                Some(error) => {
                    let why = error.as_str().or_else(|| error["message"].as_str());
                    format!("Error: {}", why.unwrap_or("the tool gave no reason"))
                }
            };
            let call = Part::Call {
                call_id: call_id.clone(),
                name: text("name")?,
                arguments: any_text("arguments")?,
            };
            vec![Sent::Part(call), Sent::Part(Part::CallResult { call_id, output })]
        }
        "item_reference" => vec![Sent::Reference(text("id")?)],
        "reasoning" | "mcp_list_tools" => vec![],
        other => {
            let told = format!("items of the type `{other}` are not taken");
            return Err(ApiError::body(format!("{pointer}/type"), told));
        }
    })
}

fn read_message(pointer: &str, fields: &Map<String, Value>) -> Result<Vec<Sent>, ApiError> {
    let by = match fields.get("role").and_then(Value::as_str) {
        Some("user") => Speaker::User,
        Some("assistant") => Speaker::Assistant,
        Some("system" | "developer") => Speaker::System,
        _ => {
            let told = "must be `user`, `assistant`, `system` or `developer`";
            return Err(ApiError::body(format!("{pointer}/role"), told));
        }
    };
    let text = read_text(&format!("{pointer}/content"), fields.get("content"))?;
    // What says nothing is no message to a provider.
    Ok(if text.is_empty() { vec![] } else { vec![Sent::Part(Part::Said { by, text })] })
}

/// Text, or a list of pieces of text.
fn read_text(pointer: &str, content: Option<&Value>) -> Result<String, ApiError> {
    match content {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(pieces)) => {
            let mut text = String::new();
            for (index, piece) in pieces.iter().enumerate() {
                let name = match piece["type"].as_str() {
                    Some("input_text" | "output_text" | "text") => "text",
                    Some("refusal") => "refusal",
                    _ => return Err(ApiError::body(format!("{pointer}/{index}/type"), "only text is taken")),
                };
                let piece = piece[name].as_str();
                text.push_str(
                    piece
                        .ok_or_else(|| ApiError::body(format!("{pointer}/{index}/{name}"), "must be text"))?,
                );
            }
            Ok(text)
        }
        _ => Err(ApiError::body(pointer, "must be text or a list of pieces of text")),
    }
}

fn required_text(pointer: &str, fields: &Map<String, Value>, name: &str) -> Result<String, ApiError> {
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        _ => Err(ApiError::body(format!("{pointer}/{name}"), "must be text")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(by: Speaker, text: &str) -> Sent {
        Sent::Part(Part::Said { by, text: text.into() })
    }

    #[test]
    fn every_form_of_an_item_is_read() {
        assert_eq!(
            read_items("/input", json!("hi")).unwrap(),
            [Sent::Part(Part::Text { text: "hi".into() })]
        );
        let input = json!([
            {"role": "developer", "content": "rule"},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "c", "annotations": []}]},
            {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "d"}]},
            {"type": "mcp_call", "id": "mcp_1", "name": "look", "arguments": "{}", "output": null,
                "error": {"type": "mcp_tool_execution_error", "message": "no", "content": []}},
            {"type": "item_reference", "id": "msg_2"},
            {"id": "msg_3", "type": null},
            {"type": null, "role": "user", "content": "e"},
        ]);
        let call = |id: &str| {
            Sent::Part(Part::Call { call_id: id.into(), name: "look".into(), arguments: "{}".into() })
        };
        let result =
            |id: &str, out: &str| Sent::Part(Part::CallResult { call_id: id.into(), output: out.into() });
        assert_eq!(
            read_items("/input", input).unwrap(),
            [
                said(Speaker::System, "rule"),
                said(Speaker::User, "ab"),
                said(Speaker::Assistant, "c"),
                call("1"),
                result("1", "d"),
                call("mcp_1"),
                result("mcp_1", "Error: no"),
                Sent::Reference("msg_2".into()),
                Sent::Reference("msg_3".into()),
                said(Speaker::User, "e"),
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_its_place() {
        for (input, pointer) in [
            (json!(7), "/input"),
            (json!(""), "/input"),
            (json!([]), "/input"),
            (json!(["hi"]), "/input/0"),
            (json!([{"content": "x"}]), "/input/0/type"),
            (json!([{"role": "tool", "content": "x"}]), "/input/0/role"),
            (json!([{"role": "user"}]), "/input/0/content"),
            (json!([{"role": "user", "content": [{"type": "input_image"}]}]), "/input/0/content/0/type"),
            (json!([{"role": "user", "content": [{"type": "input_text"}]}]), "/input/0/content/0/text"),
            (json!([{"type": "function_call", "name": "x", "arguments": "{}"}]), "/input/0/call_id"),
            (json!([{"type": "function_call_output", "call_id": "x"}]), "/input/0/output"),
            (json!([{"type": "web_search_call"}]), "/input/0/type"),
        ] {
            let error = read_items("/input", input.clone()).unwrap_err();
            assert_eq!(error.flaws[0].pointer.as_deref(), Some(pointer), "{input}");
        }
    }
}
