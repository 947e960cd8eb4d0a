//! What a response was asked with, as the items that its creator sent or could have sent.

use longhaul_shared::domain::{
    ids::MessageId,
    message::{Message, Part, Speaker},
};
use serde_json::{Value, json};

use super::ids::input_item_id;

/// The items of a user's message. Their ids name the message and the item's place in it.
pub(crate) fn input_items(message_id: MessageId, parts: &[Part]) -> Vec<Value> {
    let mut items: Vec<Value> = vec![];
    let mut is_text = false;
    for part in parts {
        let number = items.len();
        let id = |prefix: &str| input_item_id(prefix, message_id, number);
        match part {
            Part::Text { text } if is_text => {
                if let Some(content) = items.last_mut().and_then(|item| item["content"].as_array_mut()) {
                    content.push(json!({"type": "input_text", "text": text}));
                }
            }
            Part::Text { text } => items.push(said(&id("msg"), Speaker::User, text)),
            Part::Said { by, text } => items.push(said(&id("msg"), *by, text)),
            Part::Call { call_id, name, arguments } => items.push(json!({
                "type": "function_call", "id": id("fc"), "call_id": call_id, "name": name, "arguments": arguments,
                "status": "completed",
            })),
            Part::CallResult { call_id, output } => items.push(json!({
                "type": "function_call_output", "id": id("fco"), "call_id": call_id, "output": output,
                "status": "completed",
            })),
            // A model wrote these, never a client.
            Part::Step { .. } | Part::Reasoning { .. } | Part::Tool { .. } => {}
        }
        is_text = matches!(part, Part::Text { .. });
    }
    items
}

/// What the item of that id says; all of it, if it is made of several pieces.
pub(crate) fn part_of_item(message: &Message, item_id: &str) -> Option<Part> {
    let mut items: Vec<Part> = vec![];
    let mut is_text = false;
    for part in &message.parts {
        match (part, items.last_mut()) {
            (Part::Text { text }, Some(Part::Text { text: whole })) if is_text => whole.push_str(text),
            _ => items.push(part.clone()),
        }
        is_text = matches!(part, Part::Text { .. });
    }
    let number: usize = item_id.rsplit_once("_i")?.1.parse().ok()?;
    items.into_iter().nth(number)
}

fn said(id: &str, by: Speaker, text: &str) -> Value {
    let content = match by {
        Speaker::Assistant => {
            json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
        }
        Speaker::User | Speaker::System => json!({"type": "input_text", "text": text}),
    };
    json!({"type": "message", "id": id, "role": by.as_str(), "status": "completed", "content": [content]})
}

#[cfg(test)]
mod tests {
    use super::{super::ids::message_of_item, *};

    #[test]
    fn every_part_is_an_item_with_an_id_that_leads_back() {
        let message = MessageId::generate();
        let text = |text: &str| Part::Text { text: text.into() };
        let items = input_items(
            message,
            &[
                text("a"),
                text("b"),
                Part::Said { by: Speaker::Assistant, text: "c".into() },
                Part::CallResult { call_id: "1".into(), output: "d".into() },
            ],
        );
        let types: Vec<_> = items.iter().map(|item| item["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["message", "message", "function_call_output"]);
        assert_eq!(items[0]["content"].as_array().unwrap().len(), 2);
        assert_eq!((&items[0]["role"], &items[1]["role"]), (&json!("user"), &json!("assistant")));
        assert_eq!(items[1]["content"][0]["type"], "output_text");
        let ids: std::collections::BTreeSet<_> = items.iter().map(|item| item["id"].as_str()).collect();
        assert_eq!(ids.len(), 3);
        assert!(items.iter().all(|item| message_of_item(item["id"].as_str().unwrap()) == Some(message)));
        assert_eq!(message_of_item("msg_1"), None);
    }
}
