//! The tool port, and the registry that decides whether a call may be made at all.
//!
//! A tool tells one of three outcomes, and [`ToolOutcome::Unknown`] is an honest one: the request left and nobody
//! heard back. What a model wrote is checked before anything is dispatched, by the one parser whose result is also
//! what is executed.

pub mod clock;
mod departure;
pub mod http;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use jsonschema::{Draft, PatternOptions, Validator};
use longhaul_shared::domain::{
    arguments,
    ids::{RunId, WorkspaceId},
    text::one_line,
    tool::ToolSpec,
};
use serde_json::Value;

pub use departure::{Barred, Departure};

/// Which call this is, and for how long it may run.
#[derive(Clone, Debug)]
pub struct ToolContext {
    pub workspace_id: WorkspaceId,
    pub run_id: RunId,
    pub step: u32,
    pub call: u32,
    /// The same on every repeat of this call.
    pub idempotency_key: String,
    pub traceparent: Option<String>,
    pub timeout: Duration,
    /// Asked right before a request leaves. A call that never asked counts as not sent when its run is interrupted.
    pub departure: Departure,
}

/// What became of a call. The text is for the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolOutcome {
    Succeeded(String),
    /// It had no effect, or repeating it has none.
    Failed(String),
    /// It was sent and no answer was seen: the effect may have happened.
    Unknown(String),
}

/// Something that a model may call. Dropping the future of a call gives the call up.
#[async_trait]
pub trait Tool: Send + Sync {
    fn spec(&self) -> &ToolSpec;

    async fn call(&self, arguments: &Value, cx: &ToolContext) -> ToolOutcome;

    /// Whether the tool can tell what became of a call.
    fn can_reconcile(&self) -> bool {
        false
    }

    /// What became of a call that was sent and whose answer was not seen. Never sends the call.
    async fn reconcile(&self, _arguments: &Value, _cx: &ToolContext) -> ToolOutcome {
        ToolOutcome::Unknown("the tool cannot tell what became of this call".to_owned())
    }
}

/// Why a tool cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum BadTool {
    #[error("two tools are named {0}")]
    Twice(String),
    #[error("the parameters of tool {name} are not a usable JSON Schema: {why}")]
    Schema { name: String, why: String },
    #[error("there is no tool named {0}")]
    Missing(String),
}

/// Tools by name, each with the compiled schema of its arguments. Cheap to clone.
#[derive(Clone, Default)]
pub struct Registry {
    tools: BTreeMap<String, Entry>,
}

#[derive(Clone)]
struct Entry {
    tool: Arc<dyn Tool>,
    schema: Arc<Validator>,
}

/// How many violations the model is told of at once.
const MAX_VIOLATIONS: usize = 3;

impl Registry {
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers a tool. Schemas that refer to other documents are refused: nothing is fetched to check a call.
    pub fn add(&mut self, tool: Arc<dyn Tool>) -> Result<(), BadTool> {
        let ToolSpec { name, parameters, .. } = tool.spec();
        if self.tools.contains_key(name) {
            return Err(BadTool::Twice(name.clone()));
        }
        let schema = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .offline()
            // Linear in its input, whatever the pattern.
            .with_pattern_options(PatternOptions::regex())
            .build(parameters)
            .map_err(|error| BadTool::Schema {
                name: name.clone(),
                why: one_line(&error.to_string(), 300),
            })?;
        self.tools.insert(name.clone(), Entry { tool, schema: Arc::new(schema) });
        Ok(())
    }

    /// A registry of these tools only: what an agent is given.
    pub fn only<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Self, BadTool> {
        let tools = names
            .into_iter()
            .map(|name| {
                let entry = self.tools.get(name).ok_or_else(|| BadTool::Missing(name.to_owned()))?;
                Ok((name.to_owned(), entry.clone()))
            })
            .collect::<Result<_, BadTool>>()?;
        Ok(Self { tools })
    }

    pub fn get(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        self.tools.get(name).map(|entry| &entry.tool)
    }

    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    pub fn specs(&self) -> impl Iterator<Item = &ToolSpec> {
        self.tools.values().map(|entry| entry.tool.spec())
    }

    /// The arguments to execute, or what is wrong with the call, in words for the model.
    pub fn check(&self, name: &str, arguments: &str) -> Result<Value, String> {
        let Some(entry) = self.tools.get(name) else {
            let known: Vec<_> = self.tools.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(format!("there is no tool named {:?}; the tools are: {known}", one_line(name, 64)));
        };
        let value = arguments::parse(arguments)?;
        let mut violations = entry.schema.iter_errors(&value).map(|error| {
            let place = error.instance_path().to_string();
            let place = if place.is_empty() { "the arguments" } else { &place };
            format!("{}: {}", one_line(place, 100), one_line(&error.to_string(), 200))
        });
        let told: Vec<_> = violations.by_ref().take(MAX_VIOLATIONS).collect();
        if told.is_empty() {
            drop(violations);
            return Ok(value);
        }
        let rest = violations.count();
        let more = if rest > 0 { format!("; and {rest} more") } else { String::new() };
        Err(format!("the arguments do not fit the tool's schema: {}{more}", told.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use longhaul_shared::domain::tool::Effect;
    use serde_json::json;

    use super::*;

    struct Fake(ToolSpec);

    #[async_trait]
    impl Tool for Fake {
        fn spec(&self) -> &ToolSpec {
            &self.0
        }

        async fn call(&self, _: &Value, _: &ToolContext) -> ToolOutcome {
            ToolOutcome::Succeeded(String::new())
        }
    }

    fn fake(name: &str, parameters: Value) -> Arc<dyn Tool> {
        let description = String::new();
        Arc::new(Fake(ToolSpec { name: name.into(), description, parameters, effect: Effect::Read }))
    }

    fn registry() -> Registry {
        let mut registry = Registry::new();
        let charge = json!({
            "type": "object",
            "properties": {"op": {"type": "string", "pattern": "^[a-z]+$"}, "n": {"type": "integer"}},
            "required": ["op"],
            "additionalProperties": false,
        });
        registry.add(fake("charge", charge)).unwrap();
        registry.add(fake("clock", json!({"type": "object"}))).unwrap();
        registry
    }

    #[test]
    fn a_call_that_fits_its_schema_passes() {
        assert_eq!(registry().check("charge", r#"{"op":"a","n":2}"#), Ok(json!({"op": "a", "n": 2})));
        assert_eq!(registry().check("clock", ""), Ok(json!({})));
    }

    #[test]
    fn what_is_wrong_with_a_call_is_told_in_a_few_words() {
        let registry = registry();
        for (name, arguments, words) in [
            ("charg", "{}", "no tool named \"charg\"; the tools are: charge, clock"),
            ("charge", "{}", "\"op\" is a required property"),
            ("charge", r#"{"op": 1}"#, "/op: 1 is not of type"),
            ("charge", r#"{"op": "A"}"#, "/op"),
            ("charge", r#"{"op": "a", "x": 1}"#, "x"),
            ("charge", r#"{"op": "a""#, "not valid JSON"),
            ("charge", r#"{"op": "a", "op": "b"}"#, "twice"),
        ] {
            let told = registry.check(name, arguments).unwrap_err();
            assert!(told.contains(words), "{told}");
        }
        let long = format!(r#"{{"op": "{}"}}"#, "A".repeat(100_000));
        assert!(registry.check("charge", &long).unwrap_err().len() < 1000);
    }

    #[test]
    fn an_agent_can_call_only_its_own_tools() {
        let own = registry().only(["clock"]).unwrap();
        assert!(own.check("charge", r#"{"op":"a"}"#).unwrap_err().contains("the tools are: clock"));
        assert_eq!(own.specs().count(), 1);
        assert!(matches!(registry().only(["nothing"]), Err(BadTool::Missing(_))));
    }

    #[test]
    fn unusable_tools_are_refused_when_they_are_added() {
        let mut registry = registry();
        assert!(matches!(registry.add(fake("clock", json!({}))), Err(BadTool::Twice(_))));
        for schema in [
            json!({"type": "objekt"}),
            json!({"$ref": "http://127.0.0.1:1/schema.json"}),
            json!({"$ref": "file:///etc/passwd"}),
            json!({"properties": {"a": {"type": "string", "pattern": "(?=lookahead)"}}}),
        ] {
            assert!(
                matches!(registry.add(fake("new", schema.clone())), Err(BadTool::Schema { .. })),
                "{schema}"
            );
        }
    }
}
