//! `[tools.<name>]`: what agents may call besides the built-in tools.

use std::{collections::BTreeMap, time::Duration};

use reqwest::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::domain::tool::Effect;

use super::{
    report::{Report, is_name},
    secret::Secret,
    span,
    values::{ByteSize, HttpUrl},
};

/// Tools that every installation has; their names cannot be declared again.
pub const BUILT_IN_TOOLS: &[&str] = &["clock"];

/// Headers that the worker writes itself: a second copy would break what the receiver relies on.
const OWN_HEADERS: [&str; 8] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "idempotency-key",
    "x-longhaul-run-id",
    "x-longhaul-workspace",
    "traceparent",
];

const METHODS: [&str; 4] = ["POST", "PUT", "PATCH", "DELETE"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolKind {
    Http,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolConfig {
    pub kind: ToolKind,
    pub description: String,
    pub url: HttpUrl,
    #[serde(default = "default_method")]
    pub method: String,
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// The JSON Schema of the arguments object.
    #[serde(default = "no_parameters")]
    pub parameters: Value,
    #[serde(default = "safest_effect")]
    pub effect: Effect,
    /// Absent is the run's own limit.
    #[serde(default, with = "span::option")]
    pub timeout: Option<Duration>,
    #[serde(default = "default_max_bytes")]
    pub max_bytes: ByteSize,
    /// Where to ask what became of a call that was not answered.
    #[serde(default)]
    pub reconcile_url: Option<HttpUrl>,
}

/// A tool that says nothing about itself is never called twice.
fn safest_effect() -> Effect {
    Effect::Once
}

fn default_method() -> String {
    "POST".to_owned()
}

fn no_parameters() -> Value {
    json!({ "type": "object", "properties": {} })
}

fn default_max_bytes() -> ByteSize {
    ByteSize::bytes(200_000)
}

impl ToolConfig {
    pub(super) fn check(&self, name: &str, report: &mut Report) {
        let key = |field: &str| format!("tools.{name}.{field}");
        report.require(is_name(name), format!("tools.{name}"), || {
            "a tool's name must be 1 to 64 letters, digits, `_` or `-`".to_owned()
        });
        report.require(!BUILT_IN_TOOLS.contains(&name), format!("tools.{name}"), || {
            format!("`{name}` is built in and cannot be declared")
        });
        report.require(!self.description.trim().is_empty(), key("description"), || {
            "must not be empty: the model chooses tools by it".to_owned()
        });
        report.require(METHODS.contains(&self.method.as_str()), key("method"), || {
            format!(
                "must be one of {}, not `{}`: the arguments travel in the body",
                METHODS.join(", "),
                self.method
            )
        });
        report.require(self.parameters.get("type") == Some(&json!("object")), key("parameters"), || {
            "must be a JSON Schema with type = \"object\"".to_owned()
        });
        for (header, value) in &self.headers {
            report.require(HeaderName::from_bytes(header.as_bytes()).is_ok(), key("headers"), || {
                format!("`{header}` is not a header name")
            });
            report.require(HeaderValue::from_str(value.expose()).is_ok(), key("headers"), || {
                format!("the value of `{header}` cannot be sent in a header")
            });
            let own = OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(header));
            report.require(!own, key("headers"), || format!("`{header}` is set by the worker itself"));
        }
        report.require(
            self.reconcile_url.is_none() || self.effect == Effect::Once,
            key("reconcile_url"),
            || "goes with effect = \"once\": every other call is simply made again".to_owned(),
        );
        report.positive(key("timeout"), self.timeout);
        report.require(self.max_bytes.as_u64() > 0, key("max_bytes"), || "must be above 0".to_owned());
    }
}
