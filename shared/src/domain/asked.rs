//! What the creator of a run asks of its model calls, on top of what its agent is configured for.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Fixed when the run is admitted. What is absent is the agent's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Asked {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// Behind the agent's own instructions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// A word of the provider's, such as `low`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<String>,
    /// A word of the provider's, such as `low`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verbosity: Option<String>,
    /// Tokens of all model calls of the run together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
    /// Calls of the agent's own tools in the whole run. More are not executed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tool_calls: Option<u32>,
    /// Tools that the client runs. One that is called like a tool of the agent takes its place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<ClientTool>,
    /// For the first step: a tool that is forced on every step would never let the run end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// The tools that the model is told of, the agent's own included. Absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_tools: Option<Vec<String>>,
    /// The run fails when the conversation is too long to be given whole, instead of going on without its beginning.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub whole_history: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<OutputFormat>,
    /// Fields that a view of the creator's protocol repeats, by their names there. Nothing else reads them.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub echo: Map<String, Value>,
}

impl Asked {
    /// Whether the model may be told of that tool.
    pub fn allows(&self, tool: &str) -> bool {
        self.allowed_tools.as_ref().is_none_or(|allowed| allowed.iter().any(|name| name == tool))
    }
}

/// A model by the name that its provider has in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelName {
    pub provider: String,
    pub name: String,
}

/// A function that the model may ask for and that only the client can execute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientTool {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema of the arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// Whether the model is to call tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    Auto,
    None,
    /// At least one.
    Required,
    /// This one.
    Function(String),
}

/// The form of the answer's text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputFormat {
    JsonObject,
    JsonSchema {
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        description: Option<String>,
        schema: Value,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        strict: Option<bool>,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_stored_says_only_what_was_asked_and_is_read_back() {
        assert_eq!(serde_json::to_value(Asked::default()).unwrap(), json!({}));
        let asked = Asked {
            model: Some(ModelName { provider: "p".into(), name: "m".into() }),
            tool_choice: Some(ToolChoice::Function("f".into())),
            format: Some(OutputFormat::JsonObject),
            tools: vec![ClientTool { name: "f".into(), description: None, parameters: None, strict: None }],
            ..Asked::default()
        };
        let stored = json!({
            "model": {"provider": "p", "name": "m"},
            "toolChoice": {"function": "f"},
            "format": {"type": "json_object"},
            "tools": [{"name": "f"}],
        });
        assert_eq!(serde_json::to_value(&asked).unwrap(), stored);
        assert_eq!(serde_json::from_value::<Asked>(stored).unwrap(), asked);
        assert_eq!(serde_json::from_value::<Asked>(json!({"ofTomorrow": 1})).unwrap(), Asked::default());
    }
}
