//! The Response object, as it was at some moment of its run.

use longhaul_shared::domain::{
    ids::{ChatId, Millis, RunId},
    run::Usage,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::item::Item;

/// What a response keeps from its creation to its deletion.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) run_id: RunId,
    /// The conversation that it is part of, if its creator named one.
    pub(crate) conversation: Option<ChatId>,
    pub(crate) model: String,
    pub(crate) created_at: Millis,
    /// What its creator asked, by the names that the Response object has for it.
    pub(crate) asked: Map<String, Value>,
}

/// Where a response stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Queued,
    InProgress,
    Completed,
    Failed,
    Cancelled,
    Incomplete,
}

/// How it ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) error: Option<Value>,
    pub(crate) incomplete_details: Option<Value>,
    pub(crate) usage: Option<Usage>,
    pub(crate) completed_at: Option<Millis>,
}

/// The id by which clients know a run as a response.
pub(crate) fn response_id(run_id: RunId) -> String {
    format!("resp_{}", run_id.0.simple())
}

/// The run that a client calls so.
pub(crate) fn run_of(response_id: &str) -> Option<RunId> {
    let digits = response_id.strip_prefix("resp_")?;
    let id = uuid::Uuid::try_parse(digits).ok()?;
    // One spelling only.
    (id.simple().to_string() == digits).then_some(RunId(id))
}

/// The id by which clients know a chat as a conversation.
pub(crate) fn conversation_id(chat_id: ChatId) -> String {
    format!("conv_{}", chat_id.0.simple())
}

#[derive(Serialize)]
struct Response<'a> {
    id: String,
    object: &'static str,
    created_at: i64,
    status: Status,
    error: &'a Option<Value>,
    incomplete_details: &'a Option<Value>,
    model: &'a str,
    output: &'a [&'a Item],
    usage: Option<Value>,
    completed_at: Option<i64>,
    conversation: Option<Value>,
    background: Value,
    instructions: Value,
    max_output_tokens: Value,
    max_tool_calls: Value,
    metadata: Value,
    parallel_tool_calls: Value,
    previous_response_id: Value,
    reasoning: Value,
    store: Value,
    temperature: Value,
    text: Value,
    tool_choice: Value,
    tools: Value,
    top_p: Value,
    truncation: Value,
    user: Value,
}

impl Head {
    pub(crate) fn response(&self, status: Status, output: &[&Item], outcome: &Outcome) -> Value {
        let asked = |name: &str, default: Value| self.asked.get(name).cloned().unwrap_or(default);
        let response = Response {
            id: response_id(self.run_id),
            object: "response",
            created_at: seconds(self.created_at),
            status,
            error: &outcome.error,
            incomplete_details: &outcome.incomplete_details,
            model: &self.model,
            output,
            usage: outcome.usage.map(usage),
            completed_at: outcome.completed_at.map(seconds),
            conversation: self.conversation.map(|chat| json!({"id": conversation_id(chat)})),
            background: asked("background", json!(false)),
            instructions: asked("instructions", Value::Null),
            max_output_tokens: asked("max_output_tokens", Value::Null),
            max_tool_calls: asked("max_tool_calls", Value::Null),
            metadata: asked("metadata", json!({})),
            parallel_tool_calls: asked("parallel_tool_calls", json!(true)),
            previous_response_id: asked("previous_response_id", Value::Null),
            reasoning: asked("reasoning", Value::Null),
            store: asked("store", json!(true)),
            temperature: asked("temperature", Value::Null),
            text: asked("text", json!({"format": {"type": "text"}})),
            tool_choice: asked("tool_choice", json!("auto")),
            tools: asked("tools", json!([])),
            top_p: asked("top_p", Value::Null),
            truncation: asked("truncation", json!("disabled")),
            user: asked("user", Value::Null),
        };
        serde_json::to_value(response).expect("a response has string keys and finite numbers only")
    }
}

fn seconds(at: Millis) -> i64 {
    at.div_euclid(1000)
}

fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_input_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens.saturating_add(usage.output_tokens),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_back_to_its_run_and_has_one_spelling() {
        let run = RunId::generate();
        let id = response_id(run);
        assert_eq!(run_of(&id), Some(run));
        for other in [&run.to_string(), &id.to_uppercase(), &format!("resp_{run}"), "resp_", "resp_x", ""] {
            assert_eq!(run_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_response_has_every_field_that_clients_read() {
        let asked = json!({"metadata": {"a": "b"}, "temperature": 0.5, "background": true});
        let Value::Object(asked) = asked else { unreachable!() };
        let head = Head {
            run_id: RunId(uuid::Uuid::from_u128(1)),
            conversation: Some(ChatId(uuid::Uuid::from_u128(2))),
            model: "demo".into(),
            created_at: 1_795_168_800_123,
            asked,
        };
        let fresh = head.response(Status::Queued, &[], &Outcome::default());
        assert_eq!(fresh["id"], "resp_00000000000000000000000000000001");
        assert_eq!(fresh["conversation"]["id"], "conv_00000000000000000000000000000002");
        assert_eq!((&fresh["created_at"], &fresh["status"]), (&json!(1_795_168_800), &json!("queued")));
        assert_eq!((&fresh["output"], &fresh["tools"], &fresh["tool_choice"]), (&json!([]), &json!([]), &json!("auto")));
        assert_eq!((&fresh["metadata"], &fresh["temperature"], &fresh["background"]), (&json!({"a": "b"}), &json!(0.5), &json!(true)));
        for name in ["error", "incomplete_details", "usage", "previous_response_id", "instructions", "top_p"] {
            assert!(fresh.get(name).is_some_and(Value::is_null), "{name}");
        }
    }
}
