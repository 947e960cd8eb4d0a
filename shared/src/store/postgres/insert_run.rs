//! A new run in one statement: run, messages, job and the first event.

use sqlx::{Transaction, types::Json};
use uuid::Uuid;

use super::{
    Db,
    sql::{
        admission::{Inserted, RunRow},
        rows::get,
    },
};
use crate::store::Result;

/// Inserts the run, unless the chat's slot is taken: then nothing is inserted and the answer is `None`.
pub(super) async fn insert_run(
    tx: &mut Transaction<'static, Db>,
    row: &RunRow<'_>,
) -> Result<Option<Inserted>> {
    let new = row.new;
    let inserted = sqlx::query(
        "with run as (
            insert into runs (workspace_id, id, chat_id, turn, agent, status, trigger, created_by, user_message_id,
                assistant_message_id, queue, priority, limits, tags, metadata, traceparent, run_at,
                request, previous_run_id, fingerprint, renderer)
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $22, $23, $24, $26)
            on conflict (chat_id) where status in ('pending', 'running', 'waiting') do nothing
            returning workspace_id, id, chat_id, turn, created_at
        ), message as (
            insert into messages (workspace_id, id, chat_id, turn, position, role, status, client_id, in_reply_to,
                replaces_turn, run_id, parts)
            select workspace_id, $9, chat_id, turn, 0, 'user', 'completed', $18, null::uuid, $25, id, $19::jsonb from run
            union all
            select workspace_id, $10, chat_id, turn, 1, 'assistant', 'streaming', null, $9, null, id, '[]' from run
        ), job as (
            insert into jobs (workspace_id, id, kind, run_id, queue, priority, run_at)
            select workspace_id, $20, 'run', id, $11, $12, created_at from run where $6 = 'pending'
        ), event as (
            insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events)
            select workspace_id, id, 1, 1, 0, $21 from run
            returning created_at
        )
        select run.created_at, event.created_at as event_at from run, event",
    )
    .bind(new.workspace_id.0)
    .bind(row.id.0)
    .bind(row.chat_id.0)
    .bind(row.turn)
    .bind(&new.agent)
    .bind(row.status.as_str())
    .bind(new.trigger.as_str())
    .bind(&new.created_by)
    .bind(row.user_message_id.0)
    .bind(row.assistant_message_id.0)
    .bind(&new.queue)
    .bind(new.priority)
    .bind(Json(&new.limits))
    .bind(Json(&new.tags))
    .bind(Json(&new.metadata))
    .bind(&new.traceparent)
    .bind(row.run_at)
    .bind(&new.client_message_id)
    .bind(Json(&new.input))
    .bind(Uuid::now_v7())
    .bind(&row.events)
    .bind(new.request.as_ref().map(|request| Json(&request.asked)))
    .bind(new.request.as_ref().and_then(|request| request.previous_run_id).map(|id| id.0))
    .bind(new.request.as_ref().map(|request| &request.fingerprint))
    .bind(row.replaces_turn)
    .bind(new.renderer)
    .fetch_optional(&mut **tx)
    .await?;
    inserted
        .map(|row| Ok(Inserted { created_at: get(&row, "created_at")?, event_at: get(&row, "event_at")? }))
        .transpose()
}
