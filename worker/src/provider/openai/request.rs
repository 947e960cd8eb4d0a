//! A conversation and its tools as a Chat Completions request.

use async_openai::types::chat::{
    ChatCompletionMessageToolCall, ChatCompletionMessageToolCalls, ChatCompletionRequestAssistantMessage,
    ChatCompletionRequestMessage, ChatCompletionRequestSystemMessage, ChatCompletionRequestToolMessage,
    ChatCompletionRequestUserMessage, ChatCompletionStreamOptions, ChatCompletionTool, ChatCompletionTools,
    CreateChatCompletionRequest, FunctionCall, FunctionObject,
};
use bytes::Bytes;
use longhaul_shared::domain::{
    replay::{CallForModel, ModelMessage},
    tool::ToolSpec,
};

use crate::provider::{ModelError, ModelRequest};

/// The body, made once and sent as often as it takes.
pub(super) fn body(request: ModelRequest) -> Result<Bytes, ModelError> {
    let tools: Vec<_> = request.tools.into_iter().map(tool).collect();
    let request = CreateChatCompletionRequest {
        model: request.model,
        messages: request.messages.iter().cloned().map(message).collect(),
        tools: (!tools.is_empty()).then_some(tools),
        temperature: request.temperature,
        max_completion_tokens: request.max_output_tokens,
        stream: Some(true),
        stream_options: Some(ChatCompletionStreamOptions {
            include_usage: Some(true),
            include_obfuscation: None,
        }),
        ..CreateChatCompletionRequest::default()
    };
    serde_json::to_vec(&request)
        .map(Bytes::from)
        .map_err(|error| ModelError::NotConfigured(format!("the request cannot be written as JSON: {error}")))
}

fn message(message: ModelMessage) -> ChatCompletionRequestMessage {
    match message {
        ModelMessage::System(text) => ChatCompletionRequestSystemMessage::from(text).into(),
        ModelMessage::User(text) => ChatCompletionRequestUserMessage::from(text).into(),
        ModelMessage::Assistant { text, calls } => assistant(text, calls).into(),
        ModelMessage::ToolResult { call_id, content } => {
            ChatCompletionRequestToolMessage { content: content.into(), tool_call_id: call_id }.into()
        }
    }
}

fn assistant(text: String, calls: Vec<CallForModel>) -> ChatCompletionRequestAssistantMessage {
    let calls: Vec<_> = calls
        .into_iter()
        .map(|call| {
            ChatCompletionMessageToolCalls::Function(ChatCompletionMessageToolCall {
                id: call.call_id,
                function: FunctionCall { name: name(&call.name), arguments: arguments(call.arguments) },
            })
        })
        .collect();
    ChatCompletionRequestAssistantMessage {
        // Providers want text or calls, and some refuse an empty text beside calls.
        content: (!text.is_empty() || calls.is_empty()).then(|| text.into()),
        tool_calls: (!calls.is_empty()).then_some(calls),
        ..ChatCompletionRequestAssistantMessage::default()
    }
}

/// A name that the model made up may break the providers' rule for names, and with it every later request.
fn name(written: &str) -> String {
    let name: String = written
        .chars()
        .take(64)
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' })
        .collect();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// Some providers parse the arguments of earlier calls and refuse the whole conversation if they cannot.
fn arguments(written: String) -> String {
    match serde_json::from_str::<serde_json::Value>(&written) {
        Ok(serde_json::Value::Object(_)) => written,
        _ => serde_json::json!({ "malformed": written }).to_string(),
    }
}

fn tool(spec: ToolSpec) -> ChatCompletionTools {
    ChatCompletionTools::Function(ChatCompletionTool {
        function: FunctionObject {
            name: spec.name,
            description: Some(spec.description),
            parameters: Some(spec.parameters),
            strict: None,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use longhaul_shared::domain::{ids::RunId, tool::Effect};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_made_up_tool_name_is_made_acceptable() {
        assert_eq!(name("get.the time\u{fffd}"), "get_the_time_");
        assert_eq!(name(""), "unnamed");
        assert_eq!(name(&"x".repeat(100)).len(), 64);
    }

    #[test]
    fn a_conversation_with_calls_becomes_the_documented_json() {
        let call = |arguments: &str| CallForModel {
            call_id: "c1".into(),
            name: "clock".into(),
            arguments: arguments.into(),
        };
        let written = body(ModelRequest {
            model: "m".into(),
            messages: Arc::new(vec![
                ModelMessage::System("be brief".into()),
                ModelMessage::User("time?".into()),
                ModelMessage::Assistant {
                    text: String::new(),
                    calls: vec![call("{\"a\":1}"), call("{\"a\"")],
                },
                ModelMessage::ToolResult { call_id: "c1".into(), content: "noon".into() },
                ModelMessage::Assistant { text: "noon".into(), calls: vec![] },
            ]),
            tools: vec![ToolSpec {
                name: "clock".into(),
                description: "Tells the time.".into(),
                parameters: json!({"type": "object"}),
                effect: Effect::Read,
            }],
            temperature: Some(0.5),
            max_output_tokens: Some(100),
            run_id: RunId::generate(),
            step: 1,
            attempt: 1,
        })
        .unwrap();
        let sent = |arguments: &str| {
            json!({"type": "function", "id": "c1",
                "function": {"name": "clock", "arguments": arguments}})
        };
        assert_eq!(
            serde_json::from_slice::<Value>(&written).unwrap(),
            json!({
                "model": "m",
                "messages": [
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "time?"},
                    {"role": "assistant", "tool_calls": [sent("{\"a\":1}"), sent("{\"malformed\":\"{\\\"a\\\"\"}")]},
                    {"role": "tool", "content": "noon", "tool_call_id": "c1"},
                    {"role": "assistant", "content": "noon"},
                ],
                "tools": [{"type": "function", "function":
                    {"name": "clock", "description": "Tells the time.", "parameters": {"type": "object"}}}],
                "temperature": 0.5,
                "max_completion_tokens": 100,
                "stream": true,
                "stream_options": {"include_usage": true},
            })
        );
    }
}
