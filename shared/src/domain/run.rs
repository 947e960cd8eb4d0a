//! A run: its limits, why it ended, why it is not moving.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    ids::{ChatId, Epoch, MessageId, Millis, RunId, Seq, WorkerId, WorkspaceId},
    transition::{Reason, RunStatus, stored_words},
};
use std::{fmt, str::FromStr};

/// Who asked for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    User,
    Api,
    Schedule,
    Hook,
    Continue,
    Parent,
}

stored_words!(Trigger, "trigger", {
    User => "user",
    Api => "api",
    Schedule => "schedule",
    Hook => "hook",
    Continue => "continue",
    Parent => "parent",
});

/// Bounds of one run. Durations are in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    pub max_steps: u32,
    /// From the first claim to the end.
    pub deadline_ms: i64,
    pub tool_timeout_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_steps: 50, deadline_ms: 3_600_000, tool_timeout_ms: 120_000, max_output_tokens: None }
    }
}

/// Tokens of one step or of a whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Usage {
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub reasoning_tokens: i64,
    pub cached_input_tokens: i64,
}

impl Usage {
    /// The sum, which stops at the largest number instead of wrapping round.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            reasoning_tokens: self.reasoning_tokens.saturating_add(other.reasoning_tokens),
            cached_input_tokens: self.cached_input_tokens.saturating_add(other.cached_input_tokens),
        }
    }
}

/// Why a run failed, in words for the person who started it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunError {
    /// A stable word, such as `provider_status` or `deadline`.
    pub code: String,
    pub message: String,
}

impl RunError {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

/// Why a run that is not over is not moving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum BlockedBy {
    /// Another run holds the chat's slot.
    Run {
        run_id: RunId,
    },
    /// It is due later.
    RunAt {
        run_at: Millis,
    },
    /// No live worker takes from its queue.
    NoWorker,
    /// Every live worker is busy.
    Workers,
    PausedQueue,
    WorkspaceLimit,
    Wait,
}

/// A run as readers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub id: RunId,
    pub workspace_id: WorkspaceId,
    pub chat_id: ChatId,
    /// The user's message and the answer to it are one turn of the chat, from 1.
    pub turn: i64,
    pub agent: String,
    pub status: RunStatus,
    pub reason: Option<Reason>,
    pub trigger: Trigger,
    pub created_by: Option<String>,
    pub user_message_id: MessageId,
    pub assistant_message_id: MessageId,
    pub limits: Limits,
    pub usage: Usage,
    pub step_count: u32,
    pub error: Option<RunError>,
    pub tags: Vec<String>,
    pub metadata: Value,
    pub traceparent: Option<String>,
    /// Which version of the views shows its log.
    pub renderer: i32,
    pub run_at: Option<Millis>,
    pub stop_requested_at: Option<Millis>,
    /// The reason that a requested stop ends the run with.
    pub stop_reason: Option<Reason>,
    pub created_at: Millis,
    pub started_at: Option<Millis>,
    pub finished_at: Option<Millis>,
    /// How often a worker took it up.
    pub attempts: u32,
    pub worker_id: Option<WorkerId>,
    pub last_seq: Seq,
}

impl Run {
    /// A stop is on its way: shown as `stopping`.
    pub fn is_stopping(&self) -> bool {
        self.stop_requested_at.is_some() && !self.status.is_terminal()
    }
}

/// How a run ends: its reason decides its status and its message's.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    pub reason: Reason,
    pub error: Option<RunError>,
}

impl Ending {
    pub fn done() -> Self {
        Self { reason: Reason::Done, error: None }
    }

    pub fn stopped() -> Self {
        Self { reason: Reason::Stop, error: None }
    }

    pub fn failed(reason: Reason, error: RunError) -> Self {
        Self { reason, error: Some(error) }
    }

    pub fn status(&self) -> RunStatus {
        self.reason.status()
    }
}

/// Who holds a run: what a worker gets from a claim.
#[derive(Clone, Debug)]
pub struct Claim {
    pub run: Run,
    pub epoch: Epoch,
    pub worker_id: WorkerId,
    /// The number of the claim's own event: the holder's next append goes behind it.
    pub last_seq: Seq,
    /// Unix time by the database's clock at the claim, to turn stored instants into durations.
    pub now: Millis,
}
