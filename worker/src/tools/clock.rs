//! The built-in tool that tells the time.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, FixedOffset, SecondsFormat, Utc};
use longhaul_shared::domain::tool::{Effect, ToolSpec};
use serde_json::{Value, json};

use super::{Tool, ToolContext, ToolOutcome};

/// Where the time comes from.
pub type Now = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// `clock`: the current time as RFC 3339.
pub struct Clock {
    spec: ToolSpec,
    now: Now,
}

impl Clock {
    pub const NAME: &'static str = "clock";

    pub fn new(now: Now) -> Self {
        let spec = ToolSpec {
            name: Self::NAME.to_owned(),
            description: "Tells the current date and time, in UTC unless a timezone is given.".to_owned(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "timezone": {
                        "type": "string",
                        "description": "UTC, or an offset from it such as +02:00.",
                        "pattern": "^(UTC|Z|[+-][0-9]{2}:[0-9]{2})$",
                    },
                },
                "additionalProperties": false,
            }),
            effect: Effect::Read,
        };
        Self { spec, now }
    }
}

#[async_trait]
impl Tool for Clock {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, arguments: &Value, _: &ToolContext) -> ToolOutcome {
        let now = (self.now)();
        match arguments.get("timezone").and_then(Value::as_str) {
            None | Some("UTC" | "Z") => {
                ToolOutcome::Succeeded(now.to_rfc3339_opts(SecondsFormat::Millis, true))
            }
            Some(offset) => match offset.parse::<FixedOffset>() {
                Ok(offset) => ToolOutcome::Succeeded(
                    now.with_timezone(&offset).to_rfc3339_opts(SecondsFormat::Millis, false),
                ),
                Err(_) => ToolOutcome::Failed(format!("{offset} is not an offset from UTC")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use longhaul_shared::domain::ids::{RunId, WorkspaceId};

    use super::*;
    use crate::tools::Registry;

    #[tokio::test]
    async fn the_time_is_told_in_the_zone_that_was_asked_for() {
        let clock =
            Arc::new(Clock::new(Arc::new(|| DateTime::from_timestamp(1_700_000_000, 5_000_000).unwrap())));
        let mut registry = Registry::new();
        registry.add(clock.clone()).unwrap();
        let cx = ToolContext {
            workspace_id: WorkspaceId::generate(),
            run_id: RunId::generate(),
            step: 1,
            call: 1,
            idempotency_key: "k".into(),
            traceparent: None,
            timeout: Duration::from_secs(1),
            departure: crate::tools::Departure::new(
                Arc::default(),
                tokio_util::sync::CancellationToken::new(),
            ),
        };
        for (arguments, time) in [
            ("{}", "2023-11-14T22:13:20.005Z"),
            (r#"{"timezone":"UTC"}"#, "2023-11-14T22:13:20.005Z"),
            (r#"{"timezone":"+05:30"}"#, "2023-11-15T03:43:20.005+05:30"),
        ] {
            let arguments = registry.check("clock", arguments).unwrap();
            assert_eq!(clock.call(&arguments, &cx).await, ToolOutcome::Succeeded(time.into()));
        }
        assert!(registry.check("clock", r#"{"timezone":"Mars/Base"}"#).is_err());
        let arguments = registry.check("clock", r#"{"timezone":"+99:00"}"#).unwrap();
        assert!(matches!(clock.call(&arguments, &cx).await, ToolOutcome::Failed(_)));
    }
}
