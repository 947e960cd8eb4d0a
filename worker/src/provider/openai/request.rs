//! A conversation and its tools as a Chat Completions request.

use async_openai::types::chat::{
    ChatCompletionMessageToolCall, ChatCompletionMessageToolCalls, ChatCompletionNamedToolChoice,
    ChatCompletionRequestAssistantMessage, ChatCompletionRequestMessage, ChatCompletionRequestSystemMessage,
    ChatCompletionRequestToolMessage, ChatCompletionRequestUserMessage, ChatCompletionStreamOptions,
    ChatCompletionTool, ChatCompletionToolChoiceOption, ChatCompletionTools, CreateChatCompletionRequest,
    FunctionCall, FunctionObject, ResponseFormat, ResponseFormatJsonSchema, ToolChoiceOptions,
};
use bytes::Bytes;
use longhaul_shared::domain::{
    asked::{ClientTool, OutputFormat, ToolChoice},
    replay::{CallForModel, ModelMessage},
    tool::ToolSpec,
};

use serde::de::DeserializeOwned;

use crate::provider::{ModelError, ModelRequest};

/// The body, made once and sent as often as it takes.
pub(super) fn body(request: ModelRequest) -> Result<Bytes, ModelError> {
    let own = request.tools.into_iter().map(tool);
    let tools: Vec<_> = own.chain(request.client_tools.into_iter().map(client_tool)).collect();
    // Providers refuse words about tools where there are none.
    let has_tools = !tools.is_empty();
    let options = request.options;
    let request = CreateChatCompletionRequest {
        model: request.model,
        messages: request.messages.iter().cloned().map(message).collect(),
        tools: (!tools.is_empty()).then_some(tools),
        tool_choice: options.tool_choice.filter(|_| has_tools).map(tool_choice),
        parallel_tool_calls: options.parallel_tool_calls.filter(|_| has_tools),
        temperature: options.temperature,
        top_p: options.top_p,
        max_completion_tokens: options.max_output_tokens,
        reasoning_effort: options.reasoning_effort.and_then(word),
        verbosity: options.verbosity.and_then(word),
        response_format: options.format.map(response_format),
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

/// A word that the provider's types know.
fn word<T: DeserializeOwned>(word: String) -> Option<T> {
    serde_json::from_value(word.into()).ok()
}

fn tool_choice(choice: ToolChoice) -> ChatCompletionToolChoiceOption {
    match choice {
        ToolChoice::Auto => ChatCompletionToolChoiceOption::Mode(ToolChoiceOptions::Auto),
        ToolChoice::None => ChatCompletionToolChoiceOption::Mode(ToolChoiceOptions::None),
        ToolChoice::Required => ChatCompletionToolChoiceOption::Mode(ToolChoiceOptions::Required),
        ToolChoice::Function(name) => {
            ChatCompletionToolChoiceOption::Function(ChatCompletionNamedToolChoice { function: name.into() })
        }
    }
}

fn response_format(format: OutputFormat) -> ResponseFormat {
    match format {
        OutputFormat::JsonObject => ResponseFormat::JsonObject,
        OutputFormat::JsonSchema { name, description, schema, strict } => ResponseFormat::JsonSchema {
            json_schema: ResponseFormatJsonSchema { name, description, schema, strict },
        },
    }
}

fn client_tool(tool: ClientTool) -> ChatCompletionTools {
    let ClientTool { name, description, parameters, strict } = tool;
    ChatCompletionTools::Function(ChatCompletionTool {
        function: FunctionObject { name, description, parameters, strict },
    })
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
    use crate::provider::ModelOptions;

    #[test]
    fn what_the_client_asks_becomes_the_documented_json() {
        let asked = |options: ModelOptions, client_tools: Vec<ClientTool>| -> Value {
            let request = ModelRequest {
                model: "m".into(),
                messages: Arc::new(vec![]),
                tools: vec![],
                client_tools,
                options,
                run_id: RunId::generate(),
                step: 1,
                attempt: 1,
            };
            serde_json::from_slice(&body(request).unwrap()).unwrap()
        };
        let look = ClientTool {
            name: "look".into(),
            description: Some("Looks.".into()),
            parameters: Some(json!({"type": "object"})),
            strict: Some(true),
        };
        let options = ModelOptions {
            top_p: Some(0.5),
            reasoning_effort: Some("low".into()),
            verbosity: Some("high".into()),
            format: Some(OutputFormat::JsonSchema {
                name: "answer".into(),
                description: None,
                schema: json!({"type": "object"}),
                strict: Some(true),
            }),
            tool_choice: Some(ToolChoice::Function("look".into())),
            parallel_tool_calls: Some(false),
            ..ModelOptions::default()
        };
        let sent = asked(options.clone(), vec![look.clone()]);
        let expected = json!({
            "top_p": 0.5,
            "reasoning_effort": "low",
            "verbosity": "high",
            "response_format": {"type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": true}},
            "tool_choice": {"type": "function", "function": {"name": "look"}},
            "parallel_tool_calls": false,
            "tools": [{"type": "function", "function":
                {"name": "look", "description": "Looks.", "parameters": {"type": "object"}, "strict": true}}],
        });
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(sent[name], *value, "{name}");
        }
        let without = asked(options, vec![]);
        assert_eq!((without.get("tool_choice"), without.get("parallel_tool_calls")), (None, None));
        for (choice, word) in [(ToolChoice::Required, "required"), (ToolChoice::None, "none")] {
            let options = ModelOptions { tool_choice: Some(choice), ..ModelOptions::default() };
            assert_eq!(asked(options, vec![look.clone()])["tool_choice"], word);
        }
    }

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
            client_tools: vec![],
            options: ModelOptions {
                temperature: Some(0.5),
                max_output_tokens: Some(100),
                ..ModelOptions::default()
            },
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
