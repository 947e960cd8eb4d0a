//! What a client's message says, as the model is to read it, and every call with its one result.
//!
//! Providers refuse a conversation in which a call is not followed by its result, or a result has no call. A client may
//! forget one, or bring along a history of its own, so that this holds by construction and not by trust.

use std::collections::HashMap;

use longhaul_shared::domain::{
    message::{Part, Speaker},
    replay::{CallForModel, ModelMessage},
};

/// The parts of a user's message in their order. The pieces of one text are one message, and so is what an assistant said
/// without a break, since providers want the two sides to take turns.
pub(super) fn messages_of(parts: &[Part]) -> Vec<ModelMessage> {
    let mut messages: Vec<ModelMessage> = vec![];
    for part in parts {
        match part {
            Part::Text { text } => match messages.last_mut() {
                Some(ModelMessage::User(said)) => said.push_str(text),
                _ => messages.push(ModelMessage::User(text.clone())),
            },
            Part::Said { by, text } => say(&mut messages, *by, text),
            Part::Call { call_id, name, arguments } => {
                let (call_id, name, arguments) = (call_id.clone(), name.clone(), arguments.clone());
                let call = CallForModel { call_id, name, arguments };
                match messages.last_mut() {
                    Some(ModelMessage::Assistant { calls, .. }) => calls.push(call),
                    _ => messages.push(ModelMessage::Assistant { text: String::new(), calls: vec![call] }),
                }
            }
            Part::CallResult { call_id, output } => {
                let (call_id, content) = (call_id.clone(), output.clone());
                messages.push(ModelMessage::ToolResult { call_id, content });
            }
            // A model wrote these, never a client.
            Part::Step { .. } | Part::Reasoning { .. } | Part::Tool { .. } => {}
        }
    }
    messages
}

fn say(messages: &mut Vec<ModelMessage>, by: Speaker, text: &str) {
    match (by, messages.last_mut()) {
        (Speaker::Assistant, Some(ModelMessage::Assistant { text: said, calls })) if calls.is_empty() => {
            said.push_str("\n\n");
            said.push_str(text);
        }
        (Speaker::Assistant, _) => {
            messages.push(ModelMessage::Assistant { text: text.to_owned(), calls: vec![] });
        }
        (Speaker::User, _) => messages.push(ModelMessage::User(text.to_owned())),
        (Speaker::System, _) => messages.push(ModelMessage::System(text.to_owned())),
    }
}

/// Moves every result right behind its call, in the order of the calls. A call without one gets one that says so; a
/// result without a call is left out. Where a name is used again, a result belongs to the last call before it.
pub(super) fn pair(messages: Vec<ModelMessage>) -> Vec<ModelMessage> {
    let mut paired: Vec<ModelMessage> = vec![];
    // Where the result of each call is to stand that has none yet.
    let mut open: HashMap<String, usize> = HashMap::new();
    for message in messages {
        match message {
            ModelMessage::ToolResult { call_id, content } => {
                if let Some(place) = open.remove(&call_id) {
                    paired[place] = ModelMessage::ToolResult { call_id, content };
                }
            }
            ModelMessage::Assistant { text, calls } => {
                let ids: Vec<String> = calls.iter().map(|call| call.call_id.clone()).collect();
                paired.push(ModelMessage::Assistant { text, calls });
                for call_id in ids {
                    open.insert(call_id.clone(), paired.len());
                    let content = "There is no result of this call.".to_owned();
                    paired.push(ModelMessage::ToolResult { call_id, content });
                }
            }
            other => paired.push(other),
        }
    }
    paired
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(by: Speaker, text: &str) -> Part {
        Part::Said { by, text: text.into() }
    }

    fn call(id: &str) -> Part {
        Part::Call { call_id: id.into(), name: "look".into(), arguments: "{}".into() }
    }

    fn result(id: &str, output: &str) -> Part {
        Part::CallResult { call_id: id.into(), output: output.into() }
    }

    /// `u:` user, `s:` system, `a:` assistant with its calls, `r:` result.
    fn brief(messages: &[ModelMessage]) -> Vec<String> {
        let brief = |message: &ModelMessage| match message {
            ModelMessage::User(text) => format!("u:{text}"),
            ModelMessage::System(text) => format!("s:{text}"),
            ModelMessage::Assistant { text, calls } => {
                let calls: Vec<_> = calls.iter().map(|call| call.call_id.as_str()).collect();
                format!("a:{text}[{}]", calls.join(","))
            }
            ModelMessage::ToolResult { call_id, content } => format!("r:{call_id}={content}"),
        };
        messages.iter().map(brief).collect()
    }

    #[test]
    fn a_history_keeps_its_speakers_and_texts_of_one_message_are_one() {
        let text = |text: &str| Part::Text { text: text.into() };
        let parts = [text("a"), text("b")];
        assert_eq!(brief(&messages_of(&parts)), ["u:ab"]);
        let parts = [
            said(Speaker::System, "rule"),
            said(Speaker::User, "one"),
            said(Speaker::User, "two"),
            said(Speaker::Assistant, "let me"),
            said(Speaker::Assistant, "see"),
            call("1"),
            call("2"),
            result("1", "x"),
            result("2", "y"),
            said(Speaker::User, "three"),
        ];
        assert_eq!(
            brief(&messages_of(&parts)),
            ["s:rule", "u:one", "u:two", "a:let me\n\nsee[1,2]", "r:1=x", "r:2=y", "u:three"]
        );
    }

    #[test]
    fn every_call_has_its_one_result_right_behind_it() {
        let parts = [
            said(Speaker::User, "go"),
            call("1"),
            call("2"),
            said(Speaker::User, "and?"),
            result("2", "y"),
            result("stray", "?"),
            call("3"),
        ];
        assert_eq!(
            brief(&pair(messages_of(&parts))),
            [
                "u:go",
                "a:[1,2]",
                "r:1=There is no result of this call.",
                "r:2=y",
                "u:and?",
                "a:[3]",
                "r:3=There is no result of this call.",
            ]
        );
    }

    #[test]
    fn a_name_that_is_used_again_does_not_mix_results_up() {
        let parts = [
            call("1"),
            result("1", "first"),
            result("1", "forged"),
            said(Speaker::User, "again"),
            call("1"),
            said(Speaker::User, "well?"),
            result("1", "second"),
        ];
        assert_eq!(
            brief(&pair(messages_of(&parts))),
            ["a:[1]", "r:1=first", "u:again", "a:[1]", "r:1=second", "u:well?"]
        );
    }
}
