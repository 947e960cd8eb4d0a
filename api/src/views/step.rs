//! A saved step with its tool calls as callers read it.

use longhaul_shared::{
    domain::{
        step::{FinishReason, OutputPart, Step},
        tool::{CallState, Effect, LateResult, ToolCall},
    },
    store::RunRecord,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{run::UsageView, time::Timestamp, words};

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Step)]
pub(crate) struct StepView {
    /// From 1, dense.
    step: u32,
    /// Which try this was, from 1.
    attempt: u32,
    model: String,
    output: Vec<OutputView>,
    #[schema(schema_with = words::finish_reason)]
    finish_reason: FinishReason,
    usage: UsageView,
    tool_calls: Vec<ToolCallView>,
    first_seq: i64,
    last_seq: i64,
    started_at: Timestamp,
    finished_at: Timestamp,
    duration_ms: i64,
}

/// A stretch of model output.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = StepOutput)]
pub(crate) enum OutputView {
    Text {
        text: String,
    },
    Reasoning {
        text: String,
    },
    /// A call of a tool that the client runs.
    Call {
        #[serde(rename = "callId")]
        call_id: String,
        name: String,
        /// As the model wrote them.
        arguments: String,
    },
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ToolCall)]
pub(crate) struct ToolCallView {
    /// Its place in the step, from 1.
    call: u32,
    call_id: String,
    name: String,
    /// As the model wrote them.
    arguments: String,
    #[schema(schema_with = words::effect)]
    effect: Effect,
    #[schema(schema_with = words::call_state)]
    state: CallState,
    /// The same on every repeat.
    idempotency_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    planned_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dispatched_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    settled_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    late: Option<LateResultView>,
}

/// What the call came to after its run was over. The state does not change by it.
#[derive(Serialize, ToSchema)]
#[schema(as = LateResult)]
pub(crate) struct LateResultView {
    /// `succeeded` or `failed`.
    #[schema(schema_with = words::call_state)]
    state: CallState,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    at: Timestamp,
}

/// The saved steps of a run, each with its calls.
pub(crate) fn steps(record: RunRecord) -> Vec<StepView> {
    let mut calls = record.calls;
    calls.sort_by_key(|call| (call.step, call.call));
    record
        .steps
        .into_iter()
        .map(|step| {
            let number = step.step;
            let own = calls.iter().filter(|call| call.step == number).cloned();
            StepView::new(step, own.map(Into::into).collect())
        })
        .collect()
}

impl StepView {
    fn new(step: Step, tool_calls: Vec<ToolCallView>) -> Self {
        Self {
            step: step.step,
            attempt: step.attempt,
            model: step.model,
            output: step.output.into_iter().map(Into::into).collect(),
            finish_reason: step.finish_reason,
            usage: step.usage.into(),
            tool_calls,
            first_seq: step.first_seq,
            last_seq: step.last_seq,
            started_at: Timestamp(step.started_at),
            finished_at: Timestamp(step.finished_at),
            duration_ms: (step.finished_at - step.started_at).max(0),
        }
    }
}

impl From<OutputPart> for OutputView {
    fn from(part: OutputPart) -> Self {
        match part {
            OutputPart::Text { text } => Self::Text { text },
            OutputPart::Reasoning { text } => Self::Reasoning { text },
            OutputPart::Call { call_id, name, arguments } => Self::Call { call_id, name, arguments },
        }
    }
}

impl From<ToolCall> for ToolCallView {
    fn from(call: ToolCall) -> Self {
        Self {
            call: call.call,
            call_id: call.call_id,
            name: call.name,
            arguments: call.arguments,
            effect: call.effect,
            state: call.state,
            idempotency_key: call.idempotency_key,
            output: call.output,
            error: call.error,
            planned_at: call.planned_at.map(Timestamp),
            dispatched_at: call.dispatched_at.map(Timestamp),
            settled_at: call.settled_at.map(Timestamp),
            late: call.late.map(Into::into),
        }
    }
}

impl From<LateResult> for LateResultView {
    fn from(late: LateResult) -> Self {
        Self { state: late.state, output: late.output, error: late.error, at: Timestamp(late.at) }
    }
}
