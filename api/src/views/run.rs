//! A run as callers read it.

use longhaul_shared::domain::{
    ids::{ChatId, MessageId, RunId},
    run::{BlockedBy, Limits, Run, RunError, Trigger, Usage},
    transition::{Reason, RunStatus},
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    time::{Timestamp, show_duration},
    words,
};

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Run)]
pub(crate) struct RunView {
    #[schema(value_type = uuid::Uuid)]
    run_id: RunId,
    #[schema(value_type = uuid::Uuid)]
    chat_id: ChatId,
    /// The user's message and the answer to it are one turn of the chat, from 1.
    turn: i64,
    agent: String,
    #[schema(schema_with = words::run_status)]
    status: RunStatus,
    /// A stop is under way.
    stopping: bool,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = words::reason)]
    reason: Option<Reason>,
    /// Why it is not moving.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_by: Option<BlockedByView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<RunErrorView>,
    #[schema(schema_with = words::trigger)]
    trigger: Trigger,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    #[schema(value_type = uuid::Uuid)]
    user_message_id: MessageId,
    #[schema(value_type = uuid::Uuid)]
    assistant_message_id: MessageId,
    /// How often a worker took it up.
    attempts: u32,
    step_count: u32,
    usage: UsageView,
    limits: LimitsView,
    tags: Vec<String>,
    metadata: Value,
    /// The number of its newest event.
    last_seq: i64,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_requested_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    /// From when it was due until a worker took it up.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_wait_ms: Option<i64>,
    /// From when a worker took it up until its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<i64>,
    events_url: String,
}

/// Why a run is not moving.
#[derive(Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[schema(as = BlockedBy)]
pub(crate) enum BlockedByView {
    /// Another run holds the chat's slot.
    Run {
        #[serde(rename = "runId")]
        #[schema(value_type = uuid::Uuid)]
        run_id: RunId,
    },
    /// It is due later.
    RunAt {
        #[serde(rename = "runAt")]
        run_at: Timestamp,
    },
    /// No live worker takes from its queue.
    NoWorker,
    /// Every live worker is busy.
    Workers,
    PausedQueue,
    WorkspaceLimit,
    /// It waits for a decision, a timer or a child run.
    Wait,
}

#[derive(Serialize, ToSchema)]
#[schema(as = RunError)]
pub(crate) struct RunErrorView {
    /// A stable word, such as `provider_status`.
    code: String,
    message: String,
}

/// Tokens.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Usage)]
#[expect(clippy::struct_field_names, reason = "the names that callers read")]
pub(crate) struct UsageView {
    input_tokens: i64,
    output_tokens: i64,
    reasoning_tokens: i64,
    cached_input_tokens: i64,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Limits)]
pub(crate) struct LimitsView {
    max_steps: u32,
    /// From the first claim to the end, such as "1h".
    deadline: String,
    tool_timeout: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u32>,
}

/// Where a run's events are.
pub(crate) fn events_url(run: RunId) -> String {
    format!("/v1/runs/{run}/events")
}

impl From<Run> for RunView {
    fn from(run: Run) -> Self {
        let due_at = run.run_at.map_or(run.created_at, |at| at.max(run.created_at));
        Self {
            stopping: run.is_stopping(),
            run_id: run.id,
            chat_id: run.chat_id,
            turn: run.turn,
            agent: run.agent,
            status: run.status,
            reason: run.reason,
            blocked_by: None,
            error: run.error.map(Into::into),
            trigger: run.trigger,
            created_by: run.created_by,
            user_message_id: run.user_message_id,
            assistant_message_id: run.assistant_message_id,
            attempts: run.attempts,
            step_count: run.step_count,
            usage: run.usage.into(),
            limits: run.limits.into(),
            tags: run.tags,
            metadata: run.metadata,
            last_seq: run.last_seq,
            created_at: Timestamp(run.created_at),
            run_at: run.run_at.map(Timestamp),
            stop_requested_at: run.stop_requested_at.map(Timestamp),
            started_at: run.started_at.map(Timestamp),
            finished_at: run.finished_at.map(Timestamp),
            queue_wait_ms: run.started_at.map(|started| (started - due_at).max(0)),
            duration_ms: run.started_at.zip(run.finished_at).map(|(from, to)| (to - from).max(0)),
            events_url: events_url(run.id),
        }
    }
}

impl RunView {
    pub(crate) fn blocked_by(self, blocked_by: Option<BlockedBy>) -> Self {
        Self { blocked_by: blocked_by.map(Into::into), ..self }
    }
}

impl From<BlockedBy> for BlockedByView {
    fn from(blocked: BlockedBy) -> Self {
        match blocked {
            BlockedBy::Run { run_id } => Self::Run { run_id },
            BlockedBy::RunAt { run_at } => Self::RunAt { run_at: Timestamp(run_at) },
            BlockedBy::NoWorker => Self::NoWorker,
            BlockedBy::Workers => Self::Workers,
            BlockedBy::PausedQueue => Self::PausedQueue,
            BlockedBy::WorkspaceLimit => Self::WorkspaceLimit,
            BlockedBy::Wait => Self::Wait,
        }
    }
}

impl From<RunError> for RunErrorView {
    fn from(error: RunError) -> Self {
        Self { code: error.code, message: error.message }
    }
}

impl From<Usage> for UsageView {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            reasoning_tokens: usage.reasoning_tokens,
            cached_input_tokens: usage.cached_input_tokens,
        }
    }
}

impl From<Limits> for LimitsView {
    fn from(limits: Limits) -> Self {
        Self {
            max_steps: limits.max_steps,
            deadline: show_duration(limits.deadline_ms),
            tool_timeout: show_duration(limits.tool_timeout_ms),
            max_output_tokens: limits.max_output_tokens,
        }
    }
}
