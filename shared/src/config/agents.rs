//! `[agents.<name>]`: who answers: model, instructions, tools and limits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::run::Limits;

use super::{
    LimitsConfig,
    report::{Report, is_name},
    span,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    #[serde(default)]
    pub description: String,
    pub provider: String,
    pub model: String,
    #[serde(default)]
    pub instructions: String,
    #[serde(default)]
    pub tools: Vec<String>,
    #[serde(default)]
    pub temperature: Option<f64>,
    #[serde(default)]
    pub limits: AgentLimits,
}

/// What is absent is taken from `[limits]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentLimits {
    pub max_steps: Option<u32>,
    #[serde(with = "span::option")]
    pub deadline: Option<Duration>,
    #[serde(with = "span::option")]
    pub tool_timeout: Option<Duration>,
    pub max_output_tokens: Option<u32>,
}

impl AgentConfig {
    /// What a run of this agent may use when its request says nothing.
    pub fn run_limits(&self, common: &LimitsConfig) -> Limits {
        let ms = |own: Option<Duration>, common: Duration| {
            i64::try_from(own.unwrap_or(common).as_millis()).unwrap_or(i64::MAX)
        };
        Limits {
            max_steps: self.limits.max_steps.unwrap_or(common.max_steps),
            deadline_ms: ms(self.limits.deadline, common.deadline),
            tool_timeout_ms: ms(self.limits.tool_timeout, common.tool_timeout),
            max_output_tokens: self.limits.max_output_tokens,
        }
    }

    pub(super) fn check(&self, name: &str, report: &mut Report) {
        let key = |field: &str| format!("agents.{name}.{field}");
        report.require(is_name(name), format!("agents.{name}"), || {
            "an agent's name must be 1 to 64 letters, digits, `_` or `-`".to_owned()
        });
        report.require(!self.model.trim().is_empty(), key("model"), || "must not be empty".to_owned());
        if let Some(temperature) = self.temperature {
            report.require((0.0..=2.0).contains(&temperature), key("temperature"), || {
                format!("must be between 0 and 2, not {temperature}")
            });
        }
        let limits = &self.limits;
        report.above_zero(key("limits.max_steps"), limits.max_steps);
        report.above_zero(key("limits.max_output_tokens"), limits.max_output_tokens);
        report.positive(key("limits.deadline"), limits.deadline);
        report.positive(key("limits.tool_timeout"), limits.tool_timeout);
    }
}
