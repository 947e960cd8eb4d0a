//! Rows to domain values. A row that makes no sense is its own error.

use std::{fmt::Display, str::FromStr};

use serde::de::DeserializeOwned;
use sqlx::{ColumnIndex, Decode, Row, Type, types::Json};
use uuid::Uuid;

use super::Db;
use crate::{
    domain::{
        chat::Chat,
        event::{Event, Segment},
        ids::RunId,
        message::Message,
        run::{Run, RunError, Usage},
        step::Step,
        tool::{LateResult, ToolCall},
        transition::Reason,
    },
    store::{Result, StopRequest, StoreError},
};

pub(crate) type DbRow = <Db as sqlx::Database>::Row;

/// A column that must decode.
pub(crate) fn get<'r, T>(row: &'r DbRow, column: &'static str) -> Result<T>
where
    T: Decode<'r, Db> + Type<Db>,
    &'static str: ColumnIndex<DbRow>,
{
    Ok(row.try_get(column)?)
}

/// The wish that the run ends, if there is one.
pub(crate) fn stop_request(row: &DbRow, run_id: RunId) -> Result<Option<StopRequest>> {
    let Some(requested_at) = get(row, "stop_requested_at")? else { return Ok(None) };
    let reason = word_or_null(row, "runs", "stop_reason")?.unwrap_or(Reason::Stop);
    Ok(Some(StopRequest { run_id, reason, requested_at }))
}

/// A column that holds one of our stored words.
pub(crate) fn word<T>(row: &DbRow, table: &'static str, column: &'static str) -> Result<T>
where
    T: FromStr,
    T::Err: Display,
{
    let text: String = get(row, column)?;
    text.parse().map_err(|error: T::Err| corrupt(row, table, column, &error))
}

/// The same, where null is allowed.
pub(crate) fn word_or_null<T>(row: &DbRow, table: &'static str, column: &'static str) -> Result<Option<T>>
where
    T: FromStr,
    T::Err: Display,
{
    let text: Option<String> = get(row, column)?;
    text.map(|text| text.parse().map_err(|error: T::Err| corrupt(row, table, column, &error))).transpose()
}

pub(crate) fn json_or_null<T>(row: &DbRow, table: &'static str, column: &'static str) -> Result<Option<T>>
where
    T: DeserializeOwned + 'static,
{
    match row.try_get::<Option<Json<T>>, _>(column) {
        Ok(value) => Ok(value.map(|Json(value)| value)),
        Err(error) => Err(corrupt(row, table, column, &error)),
    }
}

/// A JSON column of a known shape.
pub(crate) fn json<T>(row: &DbRow, table: &'static str, column: &'static str) -> Result<T>
where
    T: DeserializeOwned + 'static,
{
    match row.try_get::<Json<T>, _>(column) {
        Ok(Json(value)) => Ok(value),
        Err(error) => Err(corrupt(row, table, column, &error)),
    }
}

fn corrupt(row: &DbRow, table: &'static str, column: &'static str, detail: &dyn Display) -> StoreError {
    let id = row.try_get::<Uuid, _>("id").or_else(|_| row.try_get::<Uuid, _>("run_id"));
    StoreError::Corrupt {
        table,
        column,
        id: id.map_or_else(|_| "?".to_owned(), |id| id.to_string()),
        detail: detail.to_string(),
    }
}

/// The columns that [`chat`] reads, of `chats`: also what a change of it returns.
macro_rules! chat_columns {
    () => {
        "workspace_id, id, client_id, title, agent, context_ref, metadata, created_by, created_at, updated_at, \
         (select r.id from runs r where r.chat_id = chats.id and r.workspace_id = chats.workspace_id \
          and r.status in ('pending', 'running', 'waiting')) as active_run_id"
    };
}
pub(crate) use chat_columns;

pub(crate) fn chat(row: &DbRow) -> Result<Chat> {
    Ok(Chat {
        id: get::<Uuid>(row, "id")?.into(),
        workspace_id: get::<Uuid>(row, "workspace_id")?.into(),
        client_id: get(row, "client_id")?,
        title: get(row, "title")?,
        agent: get(row, "agent")?,
        context_ref: get(row, "context_ref")?,
        metadata: json(row, "chats", "metadata")?,
        created_by: get(row, "created_by")?,
        created_at: get(row, "created_at")?,
        updated_at: get(row, "updated_at")?,
        active_run_id: get::<Option<Uuid>>(row, "active_run_id")?.map(Into::into),
    })
}

/// The columns that [`run`] reads, of `runs r`.
macro_rules! run_columns {
    () => {
        "r.workspace_id, r.id, r.chat_id, r.turn, r.agent, r.status, r.reason, r.trigger, r.created_by, \
         r.user_message_id, r.assistant_message_id, r.limits, r.step_count, r.input_tokens, r.output_tokens, \
         r.reasoning_tokens, r.cached_input_tokens, r.error_code, r.error_message, r.tags, r.metadata, r.traceparent, \
         r.renderer, r.attempts, r.run_at, r.stop_requested_at, r.stop_reason, r.created_at, r.started_at, r.finished_at"
    };
}
pub(crate) use run_columns;

/// The columns that [`run`] reads beside those: who holds it and how long its log is.
macro_rules! run_place {
    () => {
        "(select j.worker_id from jobs j where j.run_id = r.id and j.kind = 'run') as worker_id, \
         coalesce((select e.last_seq from run_events e where e.run_id = r.id order by e.first_seq desc limit 1), 0) \
         as last_seq"
    };
}
pub(crate) use run_place;

/// The position behind the last event of that run.
macro_rules! next_seq {
    ($run:literal) => {
        concat!(
            "(1 + coalesce((select last_seq from run_events where run_id = ",
            $run,
            " order by first_seq desc limit 1), 0))"
        )
    };
}
pub(crate) use next_seq;

pub(crate) fn run(row: &DbRow) -> Result<Run> {
    const TABLE: &str = "runs";
    let error_code: Option<String> = get(row, "error_code")?;
    let error_message: Option<String> = get(row, "error_message")?;
    Ok(Run {
        id: get::<Uuid>(row, "id")?.into(),
        workspace_id: get::<Uuid>(row, "workspace_id")?.into(),
        chat_id: get::<Uuid>(row, "chat_id")?.into(),
        turn: get(row, "turn")?,
        agent: get(row, "agent")?,
        status: word(row, TABLE, "status")?,
        reason: word_or_null(row, TABLE, "reason")?,
        trigger: word(row, TABLE, "trigger")?,
        created_by: get(row, "created_by")?,
        user_message_id: get::<Uuid>(row, "user_message_id")?.into(),
        assistant_message_id: get::<Uuid>(row, "assistant_message_id")?.into(),
        limits: json(row, TABLE, "limits")?,
        usage: usage(row)?,
        step_count: get::<i32>(row, "step_count")? as u32,
        error: error_code.map(|code| RunError { code, message: error_message.unwrap_or_default() }),
        tags: json(row, TABLE, "tags")?,
        metadata: json(row, TABLE, "metadata")?,
        traceparent: get(row, "traceparent")?,
        renderer: get(row, "renderer")?,
        run_at: get(row, "run_at")?,
        stop_requested_at: get(row, "stop_requested_at")?,
        stop_reason: word_or_null(row, TABLE, "stop_reason")?,
        created_at: get(row, "created_at")?,
        started_at: get(row, "started_at")?,
        finished_at: get(row, "finished_at")?,
        attempts: get::<i32>(row, "attempts")? as u32,
        worker_id: get::<Option<Uuid>>(row, "worker_id")?.map(Into::into),
        last_seq: get(row, "last_seq")?,
    })
}

pub(crate) fn usage(row: &DbRow) -> Result<Usage> {
    Ok(Usage {
        input_tokens: get(row, "input_tokens")?,
        output_tokens: get(row, "output_tokens")?,
        reasoning_tokens: get(row, "reasoning_tokens")?,
        cached_input_tokens: get(row, "cached_input_tokens")?,
    })
}

/// The columns that [`message`] reads, of `messages m`.
macro_rules! message_columns {
    () => {
        "m.workspace_id, m.id, m.chat_id, m.turn, m.position, m.role, m.status, m.client_id, m.in_reply_to, \
         m.replaces_turn, m.run_id, m.parts, m.created_at, m.updated_at"
    };
}
pub(crate) use message_columns;

pub(crate) fn message(row: &DbRow) -> Result<Message> {
    const TABLE: &str = "messages";
    Ok(Message {
        id: get::<Uuid>(row, "id")?.into(),
        workspace_id: get::<Uuid>(row, "workspace_id")?.into(),
        chat_id: get::<Uuid>(row, "chat_id")?.into(),
        turn: get(row, "turn")?,
        position: get(row, "position")?,
        role: word(row, TABLE, "role")?,
        status: word_or_null(row, TABLE, "status")?,
        client_id: get(row, "client_id")?,
        in_reply_to: get::<Option<Uuid>>(row, "in_reply_to")?.map(Into::into),
        replaces_turn: get(row, "replaces_turn")?,
        run_id: get::<Option<Uuid>>(row, "run_id")?.map(Into::into),
        parts: json(row, TABLE, "parts")?,
        created_at: get(row, "created_at")?,
        updated_at: get(row, "updated_at")?,
    })
}

/// The columns that [`step`] reads, of `steps`. Named, as everywhere: a prepared `select *` fails for good on its
/// connection once a migration adds a column.
macro_rules! step_columns {
    () => {
        "run_id, step, attempt, epoch, model, output, finish_reason, input_tokens, output_tokens, reasoning_tokens, \
         cached_input_tokens, first_seq, last_seq, started_at, finished_at"
    };
}
pub(crate) use step_columns;

pub(crate) fn step(row: &DbRow) -> Result<Step> {
    const TABLE: &str = "steps";
    Ok(Step {
        run_id: get::<Uuid>(row, "run_id")?.into(),
        step: get::<i32>(row, "step")? as u32,
        attempt: get::<i32>(row, "attempt")? as u32,
        epoch: get(row, "epoch")?,
        model: get(row, "model")?,
        output: json(row, TABLE, "output")?,
        finish_reason: word(row, TABLE, "finish_reason")?,
        usage: usage(row)?,
        first_seq: get(row, "first_seq")?,
        last_seq: get(row, "last_seq")?,
        started_at: get(row, "started_at")?,
        finished_at: get(row, "finished_at")?,
    })
}

/// The columns that [`tool_call`] reads, of `tool_calls`.
macro_rules! tool_call_columns {
    () => {
        "run_id, step, call, call_id, name, arguments, effect, state, idempotency_key, epoch, output, error, \
         planned_at, dispatched_at, settled_at, late_state, late_output, late_error, late_at"
    };
}
pub(crate) use tool_call_columns;

pub(crate) fn tool_call(row: &DbRow) -> Result<ToolCall> {
    const TABLE: &str = "tool_calls";
    Ok(ToolCall {
        run_id: get::<Uuid>(row, "run_id")?.into(),
        step: get::<i32>(row, "step")? as u32,
        call: get::<i32>(row, "call")? as u32,
        call_id: get(row, "call_id")?,
        name: get(row, "name")?,
        arguments: get(row, "arguments")?,
        effect: word(row, TABLE, "effect")?,
        state: word(row, TABLE, "state")?,
        idempotency_key: get(row, "idempotency_key")?,
        epoch: get(row, "epoch")?,
        output: get(row, "output")?,
        error: get(row, "error")?,
        planned_at: get(row, "planned_at")?,
        dispatched_at: get(row, "dispatched_at")?,
        settled_at: get(row, "settled_at")?,
        late: late_result(row)?,
    })
}

fn late_result(row: &DbRow) -> Result<Option<LateResult>> {
    let Some(state) = word_or_null(row, "tool_calls", "late_state")? else { return Ok(None) };
    let (output, error) = (get(row, "late_output")?, get(row, "late_error")?);
    Ok(Some(LateResult { state, output, error, at: get(row, "late_at")? }))
}

pub(crate) fn segment(row: &DbRow) -> Result<Segment> {
    let events: String = get(row, "events")?;
    let events: Vec<Event> =
        serde_json::from_str(&events).map_err(|error| corrupt(row, "run_events", "events", &error))?;
    Ok(Segment {
        run_id: get::<Uuid>(row, "run_id")?.into(),
        first: get(row, "first_seq")?,
        last: get(row, "last_seq")?,
        at: get(row, "created_at")?,
        events,
    })
}
