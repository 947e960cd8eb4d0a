//! The group commit: the shares of many runs in one transaction, statement by statement.

use sqlx::{SqliteConnection, types::Json};
use uuid::Uuid;

use super::{
    SqlStore,
    sql::{
        log::Outcome,
        rows::{get, next_seq, segment, stop_request},
    },
};
use crate::{
    domain::{
        ids::Millis,
        run::{Ending, Usage},
        step::Step,
        tool::ToolCall,
    },
    mutant,
    store::{Append, Locks, Result, StopRequest, StoreError},
};

/// Commits the batch, or nothing of it. Appends whose position was taken are missing from the answer. The one writer
/// knows no locked chats.
pub(super) async fn commit_together(store: &SqlStore, batch: &[&Append], _: Locks) -> Result<Vec<Outcome>> {
    let mut tx = store.begin().await?;
    let outcomes = write(&mut tx, batch).await?;
    tx.commit().await?;
    Ok(outcomes)
}

pub(super) async fn write(tx: &mut SqliteConnection, batch: &[&Append]) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::with_capacity(batch.len());
    for append in batch {
        outcomes.extend(write_share(tx, append).await?);
    }
    Ok(outcomes)
}

async fn write_share(tx: &mut SqliteConnection, append: &Append) -> Result<Option<Outcome>> {
    let run_id = append.run_id.0;
    let stop = if append.yields_to_stop() { stop_of(tx, append).await? } else { None };
    if stop.is_some() {
        return Ok(Some(Outcome { run_id, at: 0, caused: vec![], wake: vec![], stop }));
    }
    // The fence: an append goes right behind the last event there is. The one writer sees what is committed.
    let appended = sqlx::query(mutant::sql(
        "insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events) \
         select $1, $2, $3, $4, $5, $6 \
         where $3 = 1 + (select last_seq from run_events where run_id = $2 order by first_seq desc limit 1) \
         returning created_at",
    ))
    .bind(append.workspace_id.0)
    .bind(append.run_id.0)
    .bind(append.first_seq)
    .bind(append.last_seq())
    .bind(append.epoch)
    .bind(serde_json::to_string(&append.events).expect("events are plain JSON"))
    .fetch_optional(&mut *tx)
    .await?;
    let Some(appended) = appended else { return Ok(None) };
    let at: Millis = get(&appended, "created_at")?;
    let mut outcome = Outcome { run_id, at, caused: vec![], wake: vec![], stop: None };

    if !append.steps.is_empty() || append.ending.is_some() {
        update_run(tx, append, at).await?;
        update_message(tx, append, at).await?;
    }
    for step in &append.steps {
        insert_step(tx, append, step, at).await?;
    }
    for call in &append.calls {
        write_call(tx, append, call, at).await?;
    }
    if append.ending.is_some() {
        sqlx::query(mutant::sql("delete from jobs where run_id = $1 and kind = 'run'"))
            .bind(append.run_id.0)
            .execute(&mut *tx)
            .await?;
        promote_next(tx, append, &mut outcome).await?;
    }
    Ok(Some(outcome))
}

/// The stop that was requested before the run came to the end in the append: who asked was told that it will come.
async fn stop_of(tx: &mut SqliteConnection, append: &Append) -> Result<Option<StopRequest>> {
    let row = sqlx::query(
        "select stop_requested_at, stop_reason from runs where workspace_id = $1 and id = $2 \
         and stop_requested_at is not null and status not in ('succeeded', 'failed', 'aborted')",
    )
    .bind(append.workspace_id.0)
    .bind(append.run_id.0)
    .fetch_optional(tx)
    .await?;
    row.map_or(Ok(None), |row| stop_request(&row, append.run_id))
}

async fn update_run(tx: &mut SqliteConnection, append: &Append, at: Millis) -> Result<()> {
    let usage = append.steps.iter().fold(Usage::default(), |sum, step| sum.plus(step.usage));
    let ending = append.ending.as_ref();
    let error = ending.and_then(|ending| ending.error.as_ref());
    let done = sqlx::query(mutant::sql(
        "update runs set step_count = step_count + $3, input_tokens = input_tokens + $4, \
             output_tokens = output_tokens + $5, reasoning_tokens = reasoning_tokens + $6, \
             cached_input_tokens = cached_input_tokens + $7, status = coalesce($8, status), reason = $9, \
             error_code = $10, error_message = $11, finished_at = case when $8 is null then null else $12 end, \
             stop_requested_at = coalesce(stop_requested_at, $13), \
             stop_reason = coalesce(stop_reason, case when $13 is not null then $9 end), updated_at = $12 \
         where workspace_id = $1 and id = $2 and status not in ('succeeded', 'failed', 'aborted')",
    ))
    .bind(append.workspace_id.0)
    .bind(append.run_id.0)
    .bind(append.steps.len() as i64)
    .bind(usage.input_tokens)
    .bind(usage.output_tokens)
    .bind(usage.reasoning_tokens)
    .bind(usage.cached_input_tokens)
    .bind(ending.map(|ending| ending.status().as_str()))
    .bind(ending.map(|ending| ending.reason.as_str()))
    .bind(error.map(|error| &error.code))
    .bind(error.map(|error| &error.message))
    .bind(at)
    .bind(append.stop_requested_at)
    .execute(tx)
    .await?;
    holds(done.rows_affected())
}

/// A late writer finds the message no longer streaming and changes nothing.
async fn update_message(tx: &mut SqliteConnection, append: &Append, at: Millis) -> Result<()> {
    let done = sqlx::query(mutant::sql(
        "update messages set status = coalesce($3, status), updated_at = $4 \
         where workspace_id = $1 and id = $2 and status = 'streaming'",
    ))
    .bind(append.workspace_id.0)
    .bind(append.assistant_message_id.0)
    .bind(append.ending.as_ref().map(|ending: &Ending| ending.status().message_status().as_str()))
    .bind(at)
    .execute(tx)
    .await?;
    holds(done.rows_affected())
}

async fn insert_step(tx: &mut SqliteConnection, append: &Append, step: &Step, at: Millis) -> Result<()> {
    sqlx::query(
        "insert into steps (workspace_id, run_id, step, attempt, epoch, model, output, finish_reason, \
             input_tokens, output_tokens, reasoning_tokens, cached_input_tokens, first_seq, last_seq, started_at, \
             finished_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
    )
    .bind(append.workspace_id.0)
    .bind(step.run_id.0)
    .bind(step.step)
    .bind(step.attempt)
    .bind(step.epoch)
    .bind(&step.model)
    .bind(Json(&step.output))
    .bind(step.finish_reason.as_str())
    .bind(step.usage.input_tokens)
    .bind(step.usage.output_tokens)
    .bind(step.usage.reasoning_tokens)
    .bind(step.usage.cached_input_tokens)
    .bind(step.first_seq)
    .bind(step.last_seq)
    // A step that begins in this very append has its time.
    .bind(if step.started_at > 0 { step.started_at } else { at })
    .bind(at)
    .execute(tx)
    .await?;
    Ok(())
}

async fn write_call(tx: &mut SqliteConnection, append: &Append, call: &ToolCall, at: Millis) -> Result<()> {
    let done = sqlx::query(
        "insert into tool_calls as known (workspace_id, run_id, step, call, call_id, name, arguments, effect, state, \
             idempotency_key, epoch, output, error, dispatched_at, dispatched_epoch, settled_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, \
             case when $9 = 'dispatched' then $14 end, \
             case when $9 = 'dispatched' then $11 end, \
             case when $9 not in ('awaiting_approval', 'planned', 'dispatched') then $14 end) \
         on conflict (run_id, step, call) do update \
         set state = excluded.state, epoch = excluded.epoch, output = excluded.output, error = excluded.error, \
             dispatched_at = coalesce(excluded.dispatched_at, known.dispatched_at, \
             case when excluded.state = 'succeeded' then excluded.settled_at end), \
             dispatched_epoch = coalesce(excluded.dispatched_epoch, known.dispatched_epoch), \
             settled_at = excluded.settled_at \
         where known.state in ('awaiting_approval', 'planned', 'dispatched')",
    )
    .bind(append.workspace_id.0)
    .bind(call.run_id.0)
    .bind(call.step)
    .bind(call.call)
    .bind(&call.call_id)
    .bind(&call.name)
    .bind(&call.arguments)
    .bind(call.effect.as_str())
    .bind(call.state.as_str())
    .bind(&call.idempotency_key)
    .bind(call.epoch)
    .bind(&call.output)
    .bind(&call.error)
    .bind(at)
    .execute(tx)
    .await?;
    holds(done.rows_affected())
}

/// The chat's next queued run takes the slot if it has become free: a run that only waited for it leaves it to its
/// holder.
async fn promote_next(tx: &mut SqliteConnection, append: &Append, outcome: &mut Outcome) -> Result<()> {
    let promoted = sqlx::query(concat!(
        "update runs set status = 'pending', updated_at = ",
        now!(),
        " where workspace_id = $1 and id = (select id from runs where chat_id = $2 and status = 'queued' \
          order by turn limit 1) and status = 'queued' and not exists (select 1 from runs a where a.chat_id = $2 \
          and a.status in ('pending', 'running', 'waiting')) returning id, queue, priority"
    ))
    .bind(append.workspace_id.0)
    .bind(append.chat_id.0)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(promoted) = promoted else { return Ok(()) };
    let (id, queue): (Uuid, String) = (get(&promoted, "id")?, get(&promoted, "queue")?);
    sqlx::query(concat!(
        "insert into jobs (workspace_id, id, kind, run_id, queue, priority, run_at) \
         values ($1, $2, 'run', $3, $4, $5, ",
        now!(),
        ")"
    ))
    .bind(append.workspace_id.0)
    .bind(Uuid::now_v7())
    .bind(id)
    .bind(&queue)
    .bind(get::<i32>(&promoted, "priority")?)
    .execute(&mut *tx)
    .await?;
    let caused = sqlx::query(concat!(
        "insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events) \
         select $1, $2, next.seq, next.seq, 0, '[{\"type\":\"run.queued\",\"data\":{\"status\":\"pending\"}}]' from (select ",
        next_seq!("$2"),
        " as seq) as next returning run_id, first_seq, last_seq, events, created_at"
    ))
    .bind(append.workspace_id.0)
    .bind(id)
    .fetch_one(tx)
    .await?;
    outcome.caused.push(segment(&caused)?);
    outcome.wake.push(queue);
    Ok(())
}

/// What the log let through must be written in full.
fn holds(rows: u64) -> Result<()> {
    if rows == 1 { Ok(()) } else { Err(StoreError::LeaseLost) }
}
