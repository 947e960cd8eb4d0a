//! The Response object, as it was at some moment of its run.

use longhaul_shared::domain::{
    asked::{Asked, ClientTool, OutputFormat, ToolChoice},
    ids::{ChatId, Millis, RunId},
    run::{Run, Usage},
};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    ids::{conversation_id, response_id},
    item::Item,
};

/// What a response keeps from its creation to its deletion.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) run_id: RunId,
    chat_id: ChatId,
    agent: String,
    created_at: Millis,
    metadata: Value,
    asked: Asked,
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

#[derive(Serialize)]
struct Response<'a> {
    id: String,
    object: &'static str,
    created_at: i64,
    status: Status,
    error: &'a Option<Value>,
    incomplete_details: &'a Option<Value>,
    model: Value,
    output: &'a [&'a Item],
    usage: Option<Value>,
    completed_at: Option<i64>,
    conversation: Option<Value>,
    background: Value,
    instructions: &'a Option<String>,
    max_output_tokens: Option<u32>,
    max_tool_calls: Option<u32>,
    metadata: &'a Value,
    parallel_tool_calls: bool,
    previous_response_id: Value,
    prompt_cache_key: Value,
    reasoning: Value,
    safety_identifier: Value,
    service_tier: Value,
    store: Value,
    temperature: Option<f64>,
    text: Value,
    tool_choice: Value,
    tools: Vec<Value>,
    top_p: Option<f64>,
    truncation: Value,
    user: Value,
}

impl Head {
    pub(crate) fn new(run: &Run, asked: Asked) -> Self {
        Self {
            run_id: run.id,
            chat_id: run.chat_id,
            agent: run.agent.clone(),
            created_at: run.created_at,
            metadata: run.metadata.clone(),
            asked,
        }
    }

    /// For those who want nothing but the items.
    pub(crate) fn bare(run_id: RunId) -> Self {
        Self {
            run_id,
            chat_id: ChatId(Uuid::nil()),
            agent: String::new(),
            created_at: 0,
            metadata: Value::Null,
            asked: Asked::default(),
        }
    }

    /// Whether its creator wants it to be found later.
    pub(crate) fn is_kept(&self) -> bool {
        self.asked.echo.get("store") != Some(&Value::Bool(false))
    }

    pub(crate) fn is_in_conversation(&self) -> bool {
        self.asked.echo.get("conversation") == Some(&Value::Bool(true))
    }

    pub(crate) fn response(&self, status: Status, output: &[&Item], outcome: &Outcome) -> Value {
        let asked = &self.asked;
        let said = |name: &str, default: Value| asked.echo.get(name).cloned().unwrap_or(default);
        let response = Response {
            id: response_id(self.run_id),
            object: "response",
            created_at: seconds(self.created_at),
            status,
            error: &outcome.error,
            incomplete_details: &outcome.incomplete_details,
            model: said("model", json!(self.agent)),
            output,
            usage: outcome.usage.map(usage),
            completed_at: outcome.completed_at.map(seconds),
            conversation: self.is_in_conversation().then(|| json!({"id": conversation_id(self.chat_id)})),
            background: said("background", json!(false)),
            instructions: &asked.instructions,
            max_output_tokens: asked.max_output_tokens,
            max_tool_calls: asked.max_tool_calls,
            metadata: &self.metadata,
            parallel_tool_calls: asked.parallel_tool_calls.unwrap_or(true),
            previous_response_id: said("previous_response_id", Value::Null),
            prompt_cache_key: said("prompt_cache_key", Value::Null),
            reasoning: said("reasoning", json!({"effort": null, "summary": null})),
            safety_identifier: said("safety_identifier", Value::Null),
            service_tier: said("service_tier", json!("default")),
            store: said("store", json!(true)),
            temperature: asked.temperature,
            text: text(asked),
            tool_choice: said("tool_choice", tool_choice(asked.tool_choice.as_ref())),
            tools: asked.tools.iter().map(tool).collect(),
            top_p: asked.top_p,
            truncation: said("truncation", json!("disabled")),
            user: said("user", Value::Null),
        };
        serde_json::to_value(response).expect("a response has string keys and finite numbers only")
    }
}

fn text(asked: &Asked) -> Value {
    let format = match &asked.format {
        None => json!({"type": "text"}),
        Some(OutputFormat::JsonObject) => json!({"type": "json_object"}),
        Some(OutputFormat::JsonSchema { name, description, schema, strict }) => json!({
            "type": "json_schema", "name": name, "description": description, "schema": schema, "strict": strict,
        }),
    };
    json!({"format": format, "verbosity": asked.verbosity})
}

fn tool_choice(choice: Option<&ToolChoice>) -> Value {
    match choice {
        None | Some(ToolChoice::Auto) => json!("auto"),
        Some(ToolChoice::None) => json!("none"),
        Some(ToolChoice::Required) => json!("required"),
        Some(ToolChoice::Function(name)) => json!({"type": "function", "name": name}),
    }
}

fn tool(tool: &ClientTool) -> Value {
    let ClientTool { name, description, parameters, strict } = tool;
    json!({
        "type": "function", "name": name, "description": description, "parameters": parameters, "strict": strict,
    })
}

pub(crate) fn seconds(at: Millis) -> i64 {
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
impl Head {
    pub(super) fn for_test(asked: Asked) -> Self {
        Self {
            run_id: RunId(Uuid::from_u128(1)),
            chat_id: ChatId(Uuid::from_u128(2)),
            agent: "demo".into(),
            created_at: 1_795_168_800_123,
            metadata: json!({"a": "b"}),
            asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_has_every_field_that_clients_read() {
        let Value::Object(echo) = json!({"background": true, "conversation": true, "model": "demo/m"}) else {
            unreachable!()
        };
        let look =
            ClientTool { name: "look".into(), description: None, parameters: None, strict: Some(true) };
        let asked = Asked {
            temperature: Some(0.5),
            tools: vec![look],
            tool_choice: Some(ToolChoice::Function("look".into())),
            echo,
            ..Asked::default()
        };
        let fresh = Head::for_test(asked).response(Status::Queued, &[], &Outcome::default());
        for (name, expected) in [
            ("id", json!("resp_00000000000000000000000000000001")),
            ("conversation", json!({"id": "conv_00000000000000000000000000000002"})),
            ("created_at", json!(1_795_168_800)),
            ("status", json!("queued")),
            ("model", json!("demo/m")),
            ("output", json!([])),
            ("metadata", json!({"a": "b"})),
            ("temperature", json!(0.5)),
            ("background", json!(true)),
            ("tool_choice", json!({"type": "function", "name": "look"})),
        ] {
            assert_eq!(fresh[name], expected, "{name}");
        }
        assert_eq!(
            (&fresh["tools"][0]["name"], &fresh["tools"][0]["strict"]),
            (&json!("look"), &json!(true))
        );
        for name in ["error", "incomplete_details", "usage", "previous_response_id", "instructions", "top_p"]
        {
            assert!(fresh.get(name).is_some_and(Value::is_null), "{name}");
        }
    }
}
