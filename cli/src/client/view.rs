//! What the server says, as far as this client reads it. Unknown fields are kept for JSON output and ignored else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::error::ClientError;

/// An answer as it came, and what this client reads in it.
#[derive(Clone, Debug)]
pub(crate) struct Seen<T> {
    pub(crate) raw: Value,
    pub(crate) item: T,
}

impl<T: DeserializeOwned> Seen<T> {
    pub(crate) fn new(raw: Value) -> Result<Self, ClientError> {
        let item = T::deserialize(&raw).map_err(|error| ClientError::Nonsense(error.to_string()))?;
        Ok(Self { raw, item })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listed {
    pub(crate) data: Vec<Value>,
    #[serde(default)]
    pub(crate) next_cursor: Option<String>,
}

/// The answer to a submission.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Submitted {
    pub(crate) run_id: String,
    #[serde(default)]
    pub(crate) chat_id: String,
    #[serde(default)]
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) position: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Run {
    #[serde(rename = "runId")]
    pub(crate) id: String,
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) chat_id: String,
    #[serde(default)]
    pub(crate) agent: String,
    #[serde(default)]
    pub(crate) stopping: bool,
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    pub(crate) error: Option<RunError>,
    #[serde(default)]
    pub(crate) usage: Usage,
    #[serde(default)]
    pub(crate) step_count: u32,
    #[serde(default)]
    pub(crate) attempts: u32,
    #[serde(default)]
    pub(crate) blocked_by: Option<Value>,
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    #[serde(default)]
    pub(crate) created_at: Option<Instant>,
    #[serde(default)]
    pub(crate) started_at: Option<Instant>,
    #[serde(default)]
    pub(crate) finished_at: Option<Instant>,
}

impl Run {
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "succeeded" | "failed" | "aborted")
    }

    /// The status in the word that people see.
    pub(crate) fn shown_status(&self) -> &str {
        if self.stopping && !self.is_over() { "stopping" } else { &self.status }
    }

    pub(crate) fn took(&self) -> Option<String> {
        took(self.started_at.as_ref(), self.finished_at.as_ref())
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RunError {
    #[serde(default)]
    pub(crate) code: String,
    #[serde(default)]
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Usage {
    pub(crate) input_tokens: i64,
    pub(crate) output_tokens: i64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Step {
    #[serde(rename = "step")]
    pub(crate) number: u32,
    #[serde(default)]
    pub(crate) attempt: u32,
    #[serde(default)]
    pub(crate) model: String,
    #[serde(default)]
    pub(crate) finish_reason: String,
    #[serde(default)]
    pub(crate) usage: Usage,
    #[serde(default)]
    pub(crate) tool_calls: Vec<ToolCall>,
    #[serde(default)]
    pub(crate) started_at: Option<Instant>,
    #[serde(default)]
    pub(crate) finished_at: Option<Instant>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ToolCall {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) state: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Chat {
    #[serde(rename = "chatId", alias = "id")]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) title: Option<String>,
    #[serde(default)]
    pub(crate) agent: Option<String>,
    #[serde(default)]
    pub(crate) created_at: Option<Instant>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Message {
    pub(crate) role: String,
    #[serde(default)]
    pub(crate) status: Option<String>,
    #[serde(default)]
    pub(crate) run_id: Option<String>,
    #[serde(default)]
    pub(crate) parts: Vec<Part>,
    #[serde(default)]
    pub(crate) created_at: Option<Instant>,
}

/// A piece of a message. Which fields are there depends on its type.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Part {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) text: String,
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) state: String,
}

/// A time, RFC 3339 or Unix milliseconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Instant {
    Text(String),
    Millis(u64),
}

impl Instant {
    fn system(&self) -> Option<SystemTime> {
        match self {
            Self::Text(text) => humantime::parse_rfc3339(text).ok(),
            Self::Millis(ms) => UNIX_EPOCH.checked_add(Duration::from_millis(*ms)),
        }
    }

    /// To the second, in UTC.
    pub(crate) fn shown(&self) -> String {
        match (self.system(), self) {
            (Some(at), _) => humantime::format_rfc3339_seconds(at).to_string(),
            (None, Self::Text(text)) => text.clone(),
            (None, Self::Millis(ms)) => ms.to_string(),
        }
    }
}

/// The time between two instants, as far as both are known.
pub(crate) fn took(from: Option<&Instant>, to: Option<&Instant>) -> Option<String> {
    let span = to?.system()?.duration_since(from?.system()?).ok()?;
    Some(format!("{:.1}s", span.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_of_a_newer_server_is_still_read() {
        let raw = json!({"runId": "r", "status": "running", "stopping": true, "moon": {"phase": 1},
            "createdAt": "2026-11-20T10:00:00.123Z", "error": null, "blockedBy": null});
        let run: Seen<Run> = Seen::new(raw).unwrap();
        assert_eq!((run.item.shown_status(), run.raw["moon"]["phase"].as_i64()), ("stopping", Some(1)));
        assert!(Seen::<Run>::new(json!({"status": "running"})).is_err());
    }

    #[test]
    fn times_are_text_or_milliseconds() {
        let read = |value| serde_json::from_value::<Instant>(value).unwrap();
        let (from, to) = (read(json!("2026-11-20T10:00:00.500Z")), read(json!(1_795_168_802_000_u64)));
        assert_eq!(from.shown(), "2026-11-20T10:00:00Z");
        assert_eq!(took(Some(&from), Some(&to)).as_deref(), Some("1.5s"));
        assert_eq!(took(Some(&to), Some(&from)), None);
        assert_eq!(read(json!("later")).shown(), "later");
    }
}
