//! The body of a create, and what of it a run is asked.

use std::collections::BTreeSet;

use longhaul_shared::domain::asked::{Asked, ClientTool, ModelName, OutputFormat, ToolChoice};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::ApiError;

const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 64;
const MAX_PAIRS: usize = 16;
const MAX_PAIR_KEY: usize = 64;
const MAX_PAIR_VALUE: usize = 512;
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
const VERBOSITIES: [&str; 3] = ["low", "medium", "high"];
const TRUNCATIONS: [&str; 2] = ["auto", "disabled"];
/// The body as it comes. Fields that are not known are let through.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wish {
    pub(super) model: Option<String>,
    pub(super) input: Option<Value>,
    pub(super) background: Option<bool>,
    pub(super) conversation: Option<Value>,
    pub(super) metadata: Option<Map<String, Value>>,
    pub(super) previous_response_id: Option<String>,
    pub(super) store: Option<bool>,
    pub(super) stream: Option<bool>,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    max_tool_calls: Option<u32>,
    parallel_tool_calls: Option<bool>,
    prompt: Option<Value>,
    prompt_cache_key: Option<String>,
    reasoning: Option<Map<String, Value>>,
    safety_identifier: Option<String>,
    service_tier: Option<String>,
    temperature: Option<f64>,
    text: Option<Map<String, Value>>,
    tool_choice: Option<Value>,
    tools: Option<Vec<Value>>,
    top_p: Option<f64>,
    truncation: Option<String>,
    user: Option<String>,
}

impl Wish {
    /// What goes with each model call. `model` is the one that the agent is to use instead of its own.
    pub(super) fn asked(&self, model: Option<ModelName>) -> Result<Asked, ApiError> {
        if self.prompt.is_some() {
            return Err(ApiError::body("/prompt", "prompt templates are not known here"));
        }
        if self.background == Some(true) && self.store == Some(false) {
            return Err(ApiError::body("/store", "must not be false with background"));
        }
        within("/temperature", self.temperature, 2.0)?;
        within("/top_p", self.top_p, 1.0)?;
        if self.max_output_tokens == Some(0) {
            return Err(ApiError::body("/max_output_tokens", "must be above 0"));
        }
        if self.truncation.as_deref().is_some_and(|word| !TRUNCATIONS.contains(&word)) {
            return Err(ApiError::body("/truncation", "must be `auto` or `disabled`"));
        }
        let tools = self.tools.as_deref().unwrap_or_default();
        let (tool_choice, allowed_tools) = match &self.tool_choice {
            Some(choice) => read_tool_choice(choice)?,
            None => (None, None),
        };
        Ok(Asked {
            model,
            instructions: self.instructions.clone().filter(|text| !text.is_empty()),
            temperature: self.temperature,
            top_p: self.top_p,
            reasoning_effort: word("/reasoning/effort", self.reasoning.as_ref(), &EFFORTS)?,
            verbosity: word("/text/verbosity", self.text.as_ref(), &VERBOSITIES)?,
            max_output_tokens: self.max_output_tokens,
            max_tool_calls: self.max_tool_calls,
            tools: read_tools(tools)?,
            tool_choice,
            allowed_tools,
            whole_history: self.truncation.as_deref() == Some("disabled"),
            parallel_tool_calls: self.parallel_tool_calls,
            format: read_format(self.text.as_ref())?,
            echo: self.echo(),
        })
    }

    /// Fields that a response repeats as they were given.
    fn echo(&self) -> Map<String, Value> {
        let text = |value: &Option<String>| value.clone().map(Value::from);
        let fields = [
            ("background", self.background.map(Value::from)),
            ("conversation", self.conversation.as_ref().map(|_| Value::Bool(true))),
            ("model", text(&self.model)),
            ("previous_response_id", text(&self.previous_response_id)),
            ("prompt_cache_key", text(&self.prompt_cache_key)),
            ("reasoning", self.reasoning.as_ref().map(read_reasoning)),
            ("safety_identifier", text(&self.safety_identifier)),
            ("service_tier", text(&self.service_tier)),
            ("store", self.store.map(Value::from)),
            // Of the others the words are known.
            ("tool_choice", self.tool_choice.clone().filter(|choice| choice["type"] == "allowed_tools")),
            ("truncation", Some(Value::from(self.truncation.as_deref().unwrap_or("auto")))),
            ("user", text(&self.user)),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    pub(super) fn checked_metadata(&self) -> Result<Value, ApiError> {
        check_metadata(self.metadata.clone().unwrap_or_default())
    }
}

/// Pairs of text, as OpenAI bounds them.
pub(crate) fn check_metadata(pairs: Map<String, Value>) -> Result<Value, ApiError> {
    if pairs.len() > MAX_PAIRS {
        return Err(ApiError::body("/metadata", format!("must have at most {MAX_PAIRS} pairs")));
    }
    for (key, value) in &pairs {
        if key.chars().count() > MAX_PAIR_KEY {
            return Err(ApiError::body("/metadata", format!("a key has at most {MAX_PAIR_KEY} characters")));
        }
        let length = value.as_str().map(|text| text.chars().count());
        if length.is_none_or(|length| length > MAX_PAIR_VALUE) {
            let told = format!("must be text of at most {MAX_PAIR_VALUE} characters");
            return Err(ApiError::body(
                format!("/metadata/{}", key.replace('~', "~0").replace('/', "~1")),
                told,
            ));
        }
    }
    Ok(Value::Object(pairs))
}

fn within(pointer: &str, value: Option<f64>, most: f64) -> Result<(), ApiError> {
    if value.is_some_and(|value| !(0.0..=most).contains(&value)) {
        return Err(ApiError::body(pointer, format!("must be between 0 and {most}")));
    }
    Ok(())
}

/// The word at the pointer's last name.
fn word(
    pointer: &str,
    fields: Option<&Map<String, Value>>,
    known: &[&str],
) -> Result<Option<String>, ApiError> {
    let name = pointer.rsplit('/').next().unwrap_or_default();
    match fields.and_then(|fields| fields.get(name)) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) if known.contains(&word.as_str()) => Ok(Some(word.clone())),
        Some(_) => Err(ApiError::body(pointer, format!("must be one of {}", known.join(", ")))),
    }
}

fn read_reasoning(given: &Map<String, Value>) -> Value {
    let field = |name: &str| given.get(name).cloned().unwrap_or(Value::Null);
    serde_json::json!({"effort": field("effort"), "summary": field("summary")})
}

fn read_tools(tools: &[Value]) -> Result<Vec<ClientTool>, ApiError> {
    if tools.len() > MAX_TOOLS {
        return Err(ApiError::body("/tools", format!("must be at most {MAX_TOOLS}")));
    }
    let mut names = BTreeSet::new();
    let read = |(index, tool): (usize, &Value)| {
        let pointer = |name: &str| format!("/tools/{index}/{name}");
        if tool["type"] != "function" {
            let told = "must be `function`: other tools are those of the agent";
            return Err(ApiError::body(pointer("type"), told));
        }
        let name = tool["name"].as_str().filter(|name| is_tool_name(name));
        let name = name.ok_or_else(|| {
            ApiError::body(pointer("name"), format!("must be 1 to {MAX_NAME} letters, digits, `_` or `-`"))
        })?;
        if !names.insert(name.to_owned()) {
            return Err(ApiError::body(pointer("name"), "is given twice"));
        }
        let parameters = match &tool["parameters"] {
            Value::Null => None,
            schema @ Value::Object(_) => Some(schema.clone()),
            _ => return Err(ApiError::body(pointer("parameters"), "must be a JSON Schema")),
        };
        Ok(ClientTool {
            name: name.to_owned(),
            description: tool["description"].as_str().map(ToOwned::to_owned),
            parameters,
            strict: tool["strict"].as_bool(),
        })
    };
    tools.iter().enumerate().map(read).collect()
}

fn is_tool_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// What the model is to call, and the tools that it may, if not all.
fn read_tool_choice(choice: &Value) -> Result<(Option<ToolChoice>, Option<Vec<String>>), ApiError> {
    let chosen = match (choice.as_str(), choice["type"].as_str(), choice["name"].as_str()) {
        _ if choice.is_null() => None,
        (Some("auto"), ..) => Some(ToolChoice::Auto),
        (Some("none"), ..) => Some(ToolChoice::None),
        (Some("required"), ..) => Some(ToolChoice::Required),
        (None, Some("function"), Some(name)) => Some(ToolChoice::Function(name.to_owned())),
        (None, Some("allowed_tools"), _) => {
            let mode = match choice["mode"].as_str() {
                Some("auto") => ToolChoice::Auto,
                Some("required") => ToolChoice::Required,
                _ => return Err(ApiError::body("/tool_choice/mode", "must be `auto` or `required`")),
            };
            let name = |tool: &Value| match (tool["type"].as_str(), tool["name"].as_str()) {
                (Some("function"), Some(name)) => Some(name.to_owned()),
                _ => None,
            };
            let names: Option<Vec<String>> =
                choice["tools"].as_array().and_then(|tools| tools.iter().map(name).collect());
            let told = "must be a list of functions";
            return Ok((Some(mode), Some(names.ok_or_else(|| ApiError::body("/tool_choice/tools", told))?)));
        }
        _ => {
            let told = "must be `auto`, `none`, `required`, a function or allowed tools";
            return Err(ApiError::body("/tool_choice", told));
        }
    };
    Ok((chosen, None))
}

fn read_format(text: Option<&Map<String, Value>>) -> Result<Option<OutputFormat>, ApiError> {
    let Some(format) = text.and_then(|text| text.get("format")).filter(|format| !format.is_null()) else {
        return Ok(None);
    };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(OutputFormat::JsonObject)),
        Some("json_schema") => {
            let name = format["name"].as_str();
            let name = name.ok_or_else(|| ApiError::body("/text/format/name", "must be text"))?;
            if !format["schema"].is_object() {
                return Err(ApiError::body("/text/format/schema", "must be a JSON Schema"));
            }
            Ok(Some(OutputFormat::JsonSchema {
                name: name.to_owned(),
                description: format["description"].as_str().map(ToOwned::to_owned),
                schema: format["schema"].clone(),
                strict: format["strict"].as_bool(),
            }))
        }
        _ => Err(ApiError::body("/text/format/type", "must be `text`, `json_object` or `json_schema`")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(body: Value) -> Result<Asked, ApiError> {
        serde_json::from_value::<Wish>(body).unwrap().asked(None)
    }

    #[test]
    fn what_is_asked_is_kept_and_what_is_of_no_use_is_let_through() {
        let asked = asked(json!({
            "model": "helper",
            "instructions": "be brief",
            "temperature": 0.5,
            "reasoning": {"effort": "low", "summary": "auto"},
            "text": {"verbosity": "high", "format": {"type": "json_schema", "name": "n", "schema": {}, "strict": true}},
            "tools": [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": false}],
            "tool_choice": {"type": "function", "name": "look"},
            "store": true,
            "include": ["reasoning.encrypted_content"],
            "of_tomorrow": {"a": 1},
        }))
        .unwrap();
        assert_eq!((asked.instructions.as_deref(), asked.temperature), (Some("be brief"), Some(0.5)));
        assert_eq!(
            (asked.reasoning_effort.as_deref(), asked.verbosity.as_deref()),
            (Some("low"), Some("high"))
        );
        assert!(matches!(&asked.format, Some(OutputFormat::JsonSchema { name, .. }) if name == "n"));
        assert_eq!((asked.tools.len(), asked.tools[0].strict), (1, Some(false)));
        assert_eq!(asked.tool_choice, Some(ToolChoice::Function("look".into())));
        let echo = Value::Object(asked.echo);
        let reasoning = json!({"effort": "low", "summary": "auto"});
        let expected =
            json!({"model": "helper", "store": true, "reasoning": reasoning, "truncation": "auto"});
        assert_eq!(echo, expected);
        assert!(!asked.whole_history && asked.allowed_tools.is_none());
    }

    #[test]
    fn a_choice_may_allow_some_of_the_tools() {
        let look = json!({"type": "function", "name": "look"});
        for (mode, expected) in [("auto", ToolChoice::Auto), ("required", ToolChoice::Required)] {
            let choice = json!({"type": "allowed_tools", "mode": mode, "tools": [look]});
            let asked = asked(json!({"tool_choice": choice, "truncation": "disabled"})).unwrap();
            assert_eq!(asked.tool_choice, Some(expected));
            assert!(asked.allows("look") && !asked.allows("pay") && asked.whole_history);
            assert_eq!(
                (&asked.echo["tool_choice"], &asked.echo["truncation"]),
                (&choice, &json!("disabled"))
            );
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_its_place() {
        for (body, pointer) in [
            (json!({"prompt": {"id": "p"}}), "/prompt"),
            (json!({"background": true, "store": false}), "/store"),
            (json!({"temperature": 2.1}), "/temperature"),
            (json!({"top_p": -0.1}), "/top_p"),
            (json!({"max_output_tokens": 0}), "/max_output_tokens"),
            (json!({"reasoning": {"effort": "huge"}}), "/reasoning/effort"),
            (json!({"text": {"verbosity": 7}}), "/text/verbosity"),
            (json!({"text": {"format": {"type": "xml"}}}), "/text/format/type"),
            (json!({"text": {"format": {"type": "json_schema", "name": "n"}}}), "/text/format/schema"),
            (json!({"tools": [{"type": "web_search"}]}), "/tools/0/type"),
            (json!({"tools": [{"type": "function", "name": "a b"}]}), "/tools/0/name"),
            (json!({"tools": [{"type": "function", "name": "a", "parameters": 1}]}), "/tools/0/parameters"),
            (
                json!({"tools": [{"type": "function", "name": "a"}, {"type": "function", "name": "a"}]}),
                "/tools/1/name",
            ),
            (json!({"tool_choice": "always"}), "/tool_choice"),
            (json!({"tool_choice": {"type": "allowed_tools", "tools": []}}), "/tool_choice/mode"),
            (
                json!({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}}),
                "/tool_choice/tools",
            ),
            (json!({"truncation": "some"}), "/truncation"),
        ] {
            let error = asked(body.clone()).unwrap_err();
            assert_eq!(error.flaws[0].pointer.as_deref(), Some(pointer), "{body}");
        }
    }

    #[test]
    fn metadata_is_pairs_of_text_within_bounds() {
        let pairs = |count: usize| (0..count).map(|n| (n.to_string(), json!("v"))).collect();
        assert!(check_metadata(pairs(MAX_PAIRS)).is_ok());
        assert!(check_metadata(pairs(MAX_PAIRS + 1)).is_err());
        let one = |key: &str, value: Value| check_metadata(Map::from_iter([(key.to_owned(), value)]));
        assert!(one(&"k".repeat(MAX_PAIR_KEY), json!("v".repeat(MAX_PAIR_VALUE))).is_ok());
        assert!(one(&"k".repeat(MAX_PAIR_KEY + 1), json!("v")).is_err());
        assert!(one("k", json!("v".repeat(MAX_PAIR_VALUE + 1))).is_err());
        assert!(one("k", json!(7)).is_err());
    }
}
