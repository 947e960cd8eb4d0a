//! A new run: run, messages, job and the first event, one statement each.

use sqlx::{Transaction, types::Json};
use uuid::Uuid;

use super::{
    Db,
    sql::{
        admission::{Inserted, RunRow},
        rows::get,
    },
};
use crate::{
    domain::{ids::Millis, transition::RunStatus},
    store::Result,
};

/// Inserts the run, unless the chat's slot is taken: then nothing is inserted and the answer is `None`.
pub(super) async fn insert_run(
    tx: &mut Transaction<'static, Db>,
    row: &RunRow<'_>,
) -> Result<Option<Inserted>> {
    let new = row.new;
    let inserted = sqlx::query(
        "insert into runs (workspace_id, id, chat_id, turn, agent, status, trigger, created_by, user_message_id,
             assistant_message_id, queue, priority, limits, tags, metadata, traceparent, run_at, request,
             previous_run_id, fingerprint, renderer)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)
         on conflict (chat_id) where status in ('pending', 'running', 'waiting') do nothing
         returning created_at",
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
    .bind(new.request.as_ref().map(|request| Json(&request.asked)))
    .bind(new.request.as_ref().and_then(|request| request.previous_run_id).map(|id| id.0))
    .bind(new.request.as_ref().map(|request| &request.fingerprint))
    .bind(new.renderer)
    .fetch_optional(&mut **tx)
    .await?;
    let Some(inserted) = inserted else { return Ok(None) };
    let created_at: Millis = get(&inserted, "created_at")?;

    sqlx::query(
        "insert into messages (workspace_id, id, chat_id, turn, position, role, status, client_id, in_reply_to, run_id, parts,
             replaces_turn)
         values ($1, $2, $3, $4, 0, 'user', 'completed', $5, null, $6, $7, $9),
                ($1, $8, $3, $4, 1, 'assistant', 'streaming', null, $2, $6, '[]', null)",
    )
    .bind(new.workspace_id.0)
    .bind(row.user_message_id.0)
    .bind(row.chat_id.0)
    .bind(row.turn)
    .bind(&new.client_message_id)
    .bind(row.id.0)
    .bind(Json(&new.input))
    .bind(row.assistant_message_id.0)
    .bind(row.replaces_turn)
    .execute(&mut **tx)
    .await?;
    if row.status == RunStatus::Pending {
        sqlx::query(
            "insert into jobs (workspace_id, id, kind, run_id, queue, priority, run_at) \
             values ($1, $2, 'run', $3, $4, $5, $6)",
        )
        .bind(new.workspace_id.0)
        .bind(Uuid::now_v7())
        .bind(row.id.0)
        .bind(&new.queue)
        .bind(new.priority)
        .bind(created_at)
        .execute(&mut **tx)
        .await?;
    }
    let event = sqlx::query(
        "insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events) \
         values ($1, $2, 1, 1, 0, $3) returning created_at",
    )
    .bind(new.workspace_id.0)
    .bind(row.id.0)
    .bind(&row.events)
    .fetch_one(&mut **tx)
    .await?;
    Ok(Some(Inserted { created_at, event_at: get(&event, "created_at")? }))
}
