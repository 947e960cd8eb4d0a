//! What a request says about its conversation: which one it is, how far it got, and whether a strict API would take it.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

const KEY_MARKER: &str = "[key:";

/// Names a conversation, the same for each attempt of each of its calls: the run's id where a header or the `user`
/// field gives one, `[key:…]` in the last user message, or else a hash of everything up to that message.
pub(super) fn key(run_header: Option<&str>, request: &Value, messages: &[Value]) -> String {
    let last_user = last_user(messages);
    let marked = last_user.and_then(|at| {
        let text = messages[at]["content"].to_string();
        let (_, after) = text.split_once(KEY_MARKER)?;
        Some(after.split_once(']')?.0.to_owned())
    });
    let named = run_header.or_else(|| request["user"].as_str()).map(str::to_owned);
    named.or(marked).unwrap_or_else(|| {
        let mut hasher = DefaultHasher::new();
        // System messages may carry the time of day, so they do not name anything.
        let said = messages[..last_user.map_or(messages.len(), |at| at + 1)].iter();
        said.filter(|message| !is_system(message)).for_each(|message| message.to_string().hash(&mut hasher));
        format!("{:016x}", hasher.finish())
    })
}

/// Which model call this is, from 1: one more than there are answers, in all or since the last user message.
pub(super) fn turn(messages: &[Value], whole_conversation: bool) -> usize {
    let from = if whole_conversation { 0 } else { last_user(messages).unwrap_or(0) };
    1 + messages[from..].iter().filter(|message| message["role"] == "assistant").count()
}

/// A digest of each message but the system's, which may carry the time of day.
pub(super) fn digests(messages: &[Value]) -> Vec<u64> {
    let digest = |message: &Value| {
        let mut hasher = DefaultHasher::new();
        message.to_string().hash(&mut hasher);
        hasher.finish()
    };
    messages.iter().filter(|message| !is_system(message)).map(digest).collect()
}

fn last_user(messages: &[Value]) -> Option<usize> {
    messages.iter().rposition(|message| message["role"] == "user")
}

fn is_system(message: &Value) -> bool {
    message["role"] == "system" || message["role"] == "developer"
}

/// What a strict provider would refuse, in words; empty for a well-formed conversation.
pub(super) fn violations(messages: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    let mut unanswered: HashSet<&str> = HashSet::new();
    let mut before = "";
    for (at, message) in messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        if role != "tool" && !unanswered.is_empty() {
            found.push(format!("message {at}: {role} before the calls {unanswered:?} were answered"));
            unanswered.clear();
        }
        match role {
            "system" | "developer" => {}
            "user" => {
                if message["content"].is_null() {
                    found.push(format!("message {at}: user without content"));
                }
            }
            "assistant" => {
                if before == "assistant" {
                    found.push(format!("message {at}: two assistant messages in a row"));
                }
                let calls = message["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default();
                if calls.is_empty() && message["content"].is_null() {
                    found.push(format!("message {at}: assistant with neither content nor calls"));
                }
                for call in calls {
                    match call["id"].as_str() {
                        Some(id) if unanswered.insert(id) => {}
                        Some(id) => found.push(format!("message {at}: the call id {id} is used twice")),
                        None => found.push(format!("message {at}: a call without id")),
                    }
                    if !call["function"]["name"].is_string() || !call["function"]["arguments"].is_string() {
                        found.push(format!("message {at}: a call whose name or arguments are not text"));
                    }
                }
            }
            "tool" => {
                let id = message["tool_call_id"].as_str().unwrap_or_default();
                if !unanswered.remove(id) {
                    found.push(format!("message {at}: a result for {id:?}, which is not an open call"));
                }
            }
            other => found.push(format!("message {at}: unknown role {other:?}")),
        }
        if !is_system(message) {
            before = role;
        }
    }
    if !unanswered.is_empty() {
        found.push(format!("the calls {unanswered:?} were not answered"));
    }
    if !matches!(before, "user" | "tool") {
        found.push(format!("there is nothing to answer: the last message is {before:?}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{key, turn, violations};

    fn user(text: &str) -> Value {
        json!({"role": "user", "content": text})
    }

    fn calling(ids: &[&str]) -> Value {
        let calls = ids.iter().map(|id| json!({"id": id, "function": {"name": "f", "arguments": "{}"}}));
        json!({"role": "assistant", "content": null, "tool_calls": calls.collect::<Vec<_>>()})
    }

    fn result(id: &str) -> Value {
        json!({"role": "tool", "tool_call_id": id, "content": "1"})
    }

    #[test]
    fn calls_answered_once_each_in_any_order_are_well_formed() {
        let messages = [user("x"), calling(&["a", "b"]), result("b"), result("a"), user("y")];
        assert_eq!(violations(&messages), Vec::<String>::new());
    }

    #[test]
    fn missing_repeated_and_foreign_results_are_violations() {
        assert_eq!(violations(&[user("x"), calling(&["a"])]).len(), 2);
        assert_eq!(violations(&[user("x"), calling(&["a"]), user("y")]).len(), 1);
        assert_eq!(violations(&[user("x"), calling(&["a"]), result("a"), result("a")]).len(), 1);
        assert_eq!(violations(&[user("x"), result("z")]).len(), 1);
    }

    #[test]
    fn the_key_is_the_same_for_each_call_of_a_turn_and_another_for_the_next_user_message() {
        let first = [user("x")];
        let second = [user("x"), calling(&["a"]), result("a")];
        let next = [user("x"), json!({"role": "assistant", "content": "ok"}), user("x")];
        let key = |messages: &[Value]| key(None, &Value::Null, messages);
        assert_eq!(key(&first), key(&second));
        assert_ne!(key(&first), key(&next));
        assert_eq!((turn(&first, false), turn(&second, false), turn(&next, false)), (1, 2, 1));
        assert_eq!(turn(&next, true), 2);
    }

    #[test]
    fn a_marker_names_the_conversation() {
        assert_eq!(key(None, &Value::Null, &[user("hello [key:k7] there")]), "k7");
        assert_eq!(key(Some("run"), &Value::Null, &[user("[key:k7]")]), "run");
    }
}
