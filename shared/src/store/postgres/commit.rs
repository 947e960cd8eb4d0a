//! The group commit: the shares of many runs in one statement.
//!
//! Appending to the log leaves out whoever's position is taken, and an end that a stop comes before; everything else
//! joins with what was appended, so a run's share is written whole or not at all and a lost lease disturbs nobody. Only
//! a batch with an ending needs a transaction around it: the chats that become free are locked before the snapshot is
//! taken in which their next run, and a stop that was requested, are looked for.

use sqlx::{AssertSqlSafe, Connection, PgConnection, types::Json};
use uuid::Uuid;

use super::{
    Db, SqlStore, is_lock_timeout,
    sql::{
        log::Outcome,
        rows::{get, next_seq, segment, stop_request},
    },
};
use crate::{
    mutant,
    store::{Append, Locks, Result, StoreError},
};

/// The expected position: right behind the last event that the statement's snapshot shows. Together with the primary
/// key, which decides between writers that see the same, it keeps the log dense.
macro_rules! is_next {
    () => {
        "share.first_seq = 1 + (select e.last_seq from run_events e where e.run_id = share.run_id \
         order by e.first_seq desc limit 1)"
    };
}

const LOG_ONLY: &str = concat!(
    "insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events)
    select share.* from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[])
        as share (workspace_id, run_id, first_seq, last_seq, epoch, events)
    where ",
    is_next!(),
    "
    on conflict (run_id, first_seq) do nothing
    returning run_id, created_at"
);

const FULL: &str = concat!(
    "with given as (
    select * from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[],
        $7::uuid[], $8::int[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[],
        $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $47::bool[])
    as given (workspace_id, run_id, first_seq, last_seq, epoch, events,
        message_id, steps, input_tokens, output_tokens, reasoning_tokens, cached_input_tokens,
        end_status, end_reason, end_message_status, error_code, error_message, yields_to_stop)
), stopping as (
    -- A stop that was accepted comes before any other end. Its request and this commit both lock the chat, so that the
    -- later one sees the earlier.
    select r.id as run_id, r.stop_requested_at, r.stop_reason
    from given join runs r on r.workspace_id = given.workspace_id and r.id = given.run_id
    where given.yields_to_stop and r.stop_requested_at is not null
      and r.status not in ('succeeded', 'failed', 'aborted')
), share as (
    select * from given where run_id not in (select run_id from stopping)
), log as (
    -- The fence: a position is taken once.
    insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events)
    select workspace_id, run_id, first_seq, last_seq, epoch, events from share where ",
    is_next!(),
    "
    on conflict (run_id, first_seq) do nothing
    returning run_id, created_at
), held as (
    select share.*, log.created_at as at, stop.requested_at from share join log using (run_id)
    join unnest($2::uuid[], $46::bigint[]) as stop (run_id, requested_at) using (run_id)
), changed as (
    select * from held where steps > 0 or end_status is not null
), run as (
    update runs r
    set step_count = r.step_count + c.steps,
        input_tokens = r.input_tokens + c.input_tokens,
        output_tokens = r.output_tokens + c.output_tokens,
        reasoning_tokens = r.reasoning_tokens + c.reasoning_tokens,
        cached_input_tokens = r.cached_input_tokens + c.cached_input_tokens,
        status = coalesce(c.end_status, r.status),
        reason = c.end_reason,
        stop_requested_at = coalesce(r.stop_requested_at, c.requested_at),
        stop_reason = coalesce(r.stop_reason, case when c.requested_at is not null then c.end_reason end),
        error_code = c.error_code,
        error_message = c.error_message,
        finished_at = case when c.end_status is null then null else c.at end,
        updated_at = c.at
    from changed c
    where r.workspace_id = c.workspace_id and r.id = c.run_id
      and r.status not in ('succeeded', 'failed', 'aborted')
    returning r.workspace_id, r.id, r.chat_id, c.message_id, c.end_status, c.end_message_status, c.at
), message as (
    -- A late writer finds the message no longer streaming and changes nothing.
    update messages m
    set status = coalesce(run.end_message_status, m.status), updated_at = run.at
    from run
    where m.workspace_id = run.workspace_id and m.id = run.message_id and m.status = 'streaming'
    returning m.id
), step as (
    insert into steps (workspace_id, run_id, step, attempt, epoch, model, output, finish_reason,
        input_tokens, output_tokens, reasoning_tokens, cached_input_tokens, first_seq, last_seq, started_at,
        finished_at)
    -- A step that begins in this very append has its time.
    select new.workspace_id, new.run_id, new.step, new.attempt, new.epoch, new.model, new.output, new.finish_reason,
        new.input_tokens, new.output_tokens, new.reasoning_tokens, new.cached_input_tokens, new.first_seq,
        new.last_seq, case when new.started_at > 0 then new.started_at else run.at end, run.at
    from unnest($18::uuid[], $19::uuid[], $20::int[], $21::int[], $22::bigint[], $23::text[],
        $24::jsonb[], $25::text[], $26::bigint[], $27::bigint[], $28::bigint[], $29::bigint[],
        $30::bigint[], $31::bigint[], $32::bigint[])
      as new (workspace_id, run_id, step, attempt, epoch, model, output, finish_reason,
        input_tokens, output_tokens, reasoning_tokens, cached_input_tokens, first_seq, last_seq, started_at)
    join run on run.id = new.run_id
), call as (
    insert into tool_calls as known (workspace_id, run_id, step, call, call_id, name, arguments, effect, state,
        idempotency_key, epoch, output, error, dispatched_at, dispatched_epoch, settled_at)
    select new.*,
        case when new.state = 'dispatched' then held.at end,
        case when new.state = 'dispatched' then new.epoch end,
        case when new.state not in ('awaiting_approval', 'planned', 'dispatched') then held.at end
    from unnest($33::uuid[], $34::uuid[], $35::int[], $36::int[], $37::text[], $38::text[], $39::text[],
        $40::text[], $41::text[], $42::text[], $43::bigint[], $44::text[], $45::text[])
      as new (workspace_id, run_id, step, call, call_id, name, arguments, effect, state,
        idempotency_key, epoch, output, error)
    join held using (run_id)
    on conflict (run_id, step, call) do update
    set state = excluded.state, epoch = excluded.epoch, output = excluded.output, error = excluded.error,
        dispatched_at = coalesce(excluded.dispatched_at, known.dispatched_at,
        case when excluded.state = 'succeeded' then excluded.settled_at end),
        dispatched_epoch = coalesce(excluded.dispatched_epoch, known.dispatched_epoch),
        settled_at = excluded.settled_at
    where known.state in ('awaiting_approval', 'planned', 'dispatched')
    returning known.run_id
), done as (
    delete from jobs j using run where j.run_id = run.id and j.kind = 'run' and run.end_status is not null
), next as (
    select distinct on (q.chat_id) q.workspace_id, q.id, q.queue, q.priority
    from run join runs q on q.chat_id = run.chat_id and q.status = 'queued' and q.id <> run.id
    -- A run that only waited for the slot leaves it to whoever holds it.
    where run.end_status is not null and not exists (select from runs a where a.chat_id = run.chat_id
        and a.status in ('pending', 'running', 'waiting') and a.id <> run.id)
    order by q.chat_id, q.turn
), promoted as (
    update runs r set status = 'pending', updated_at = now_ms() from next
    where r.workspace_id = next.workspace_id and r.id = next.id and r.status = 'queued'
    returning r.workspace_id, r.id, r.queue, r.priority
), job as (
    insert into jobs (workspace_id, id, kind, run_id, queue, priority, run_at)
    select workspace_id, gen_random_uuid(), 'run', id, queue, priority, now_ms() from promoted
), caused as (
    insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events)
    select p.workspace_id, p.id, e.seq, e.seq, 0, '[{\"type\":\"run.queued\",\"data\":{\"status\":\"pending\"}}]'
    from promoted p,
        lateral (select ",
    next_seq!("p.id"),
    " as seq) e
    returning run_id, first_seq, last_seq, events, created_at
)
select log.run_id, 0::bigint as first_seq, 0::bigint as last_seq, '' as events, log.created_at,
    null::uuid as cause, null::text as queue, null::bigint as stop_requested_at, null::text as stop_reason
from log
-- What was appended must have been written in full, or nothing of this statement is.
where fence((select count(*) from changed) = (select count(*) from run)
    and (select count(*) from run) = (select count(*) from message)
    and (select count(*) from call) = (select count(*) from unnest($34::uuid[]) c (run_id) join log using (run_id)))
union all
select run_id, 0, 0, '', 0, null, null, stop_requested_at, stop_reason from stopping
union all
select caused.run_id, caused.first_seq, caused.last_seq, caused.events, caused.created_at, run.id, promoted.queue,
    null, null
from caused
join promoted on promoted.id = caused.run_id
join runs q on q.workspace_id = promoted.workspace_id and q.id = promoted.id
join run on run.chat_id = q.chat_id"
);

/// Commits the batch, or nothing of it. Appends whose position was taken are missing from the answer.
pub(super) async fn commit_together(
    store: &SqlStore,
    batch: &[&Append],
    locks: Locks,
) -> Result<Vec<Outcome>> {
    let mut connection = store.reserved().0.acquire().await?;
    if batch.iter().all(|append| append.ending.is_none()) {
        return write(&mut connection, batch).await;
    }
    let failure = match connection.begin_with(AssertSqlSafe(lock_chats_and_jobs(batch, locks))).await {
        Ok(mut tx) => {
            let outcomes = write(&mut tx, batch).await?;
            tx.commit().await?;
            return Ok(outcomes);
        }
        Err(error) => error,
    };
    // The driver counts a transaction as begun when all of that has succeeded. Where a lock could not be had there is
    // one that it does not know of.
    let answered = failure.as_database_error().is_some();
    if !answered || sqlx::raw_sql("rollback").execute(&mut *connection).await.is_err() {
        connection.close_on_drop();
    }
    let is_locked = locks == Locks::Refuse && is_lock_timeout(&failure);
    Err(if is_locked { StoreError::Locked } else { failure.into() })
}

/// `begin` and the locks of the first two places of the lock order, in one round trip.
fn lock_chats_and_jobs(batch: &[&Append], locks: Locks) -> String {
    let list = |ids: Vec<Uuid>| ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(",");
    let ending = || batch.iter().filter(|append| append.ending.is_some());
    let nowait = match locks {
        Locks::Await => "",
        Locks::Refuse => " nowait",
    };
    format!(
        "begin; \
         select from chats where (workspace_id, id) in ({}) order by id for no key update{nowait}; \
         select from jobs where run_id in ({}) and kind = 'run' order by run_id for update{nowait}",
        ending()
            .map(|append| format!("('{}','{}')", append.workspace_id, append.chat_id))
            .collect::<Vec<_>>()
            .join(","),
        list(ending().map(|append| append.run_id.0).collect()),
    )
}

/// Writes the batch in one statement. Runs whose position was taken are missing from the answer.
pub(super) async fn write(connection: &mut PgConnection, batch: &[&Append]) -> Result<Vec<Outcome>> {
    // One order for all writers, so that two batches cannot wait for each other.
    let mut batch = batch.to_vec();
    batch.sort_by_key(|append| append.run_id);
    let plain = batch.iter().all(|a| a.steps.is_empty() && a.calls.is_empty() && a.ending.is_none());
    let column = |of: fn(&Append) -> i64| batch.iter().map(|append| of(append)).collect::<Vec<_>>();
    let uuids = |of: fn(&Append) -> Uuid| batch.iter().map(|append| of(append)).collect::<Vec<_>>();
    let events: Vec<String> = batch
        .iter()
        .map(|append| serde_json::to_string(&append.events).expect("events are plain JSON"))
        .collect();

    let query = sqlx::query::<Db>(mutant::sql(if plain { LOG_ONLY } else { FULL }))
        .bind(uuids(|a| a.workspace_id.0))
        .bind(uuids(|a| a.run_id.0))
        .bind(column(|a| a.first_seq))
        .bind(column(Append::last_seq))
        .bind(column(|a| a.epoch))
        .bind(events);
    if plain {
        let rows = query.fetch_all(connection).await?;
        return rows
            .iter()
            .map(|row| {
                let (run_id, at) = (get(row, "run_id")?, get(row, "created_at")?);
                Ok(Outcome { run_id, at, caused: vec![], wake: vec![], stop: None })
            })
            .collect();
    }

    let usage = |of: fn(&crate::domain::run::Usage) -> i64| {
        batch.iter().map(|a| a.steps.iter().map(|s| of(&s.usage)).sum()).collect::<Vec<i64>>()
    };
    let ending = |of: fn(&crate::domain::run::Ending) -> Option<String>| {
        batch.iter().map(|a| a.ending.as_ref().and_then(of)).collect::<Vec<_>>()
    };
    let steps: Vec<_> = batch.iter().flat_map(|a| a.steps.iter().map(|s| (a.workspace_id.0, s))).collect();
    let calls: Vec<_> = batch.iter().flat_map(|a| a.calls.iter().map(|c| (a.workspace_id.0, c))).collect();
    let query = query
        .bind(uuids(|a| a.assistant_message_id.0))
        .bind(batch.iter().map(|a| a.steps.len() as i32).collect::<Vec<_>>())
        .bind(usage(|u| u.input_tokens))
        .bind(usage(|u| u.output_tokens))
        .bind(usage(|u| u.reasoning_tokens))
        .bind(usage(|u| u.cached_input_tokens))
        .bind(ending(|e| Some(e.status().to_string())))
        .bind(ending(|e| Some(e.reason.to_string())))
        .bind(ending(|e| Some(e.status().message_status().to_string())))
        .bind(ending(|e| e.error.as_ref().map(|error| error.code.clone())))
        .bind(ending(|e| e.error.as_ref().map(|error| error.message.clone())))
        .bind(steps.iter().map(|(w, _)| *w).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.run_id.0).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.step as i32).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.attempt as i32).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.epoch).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.model.clone()).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| Json(&s.output)).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.finish_reason.to_string()).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.usage.input_tokens).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.usage.output_tokens).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.usage.reasoning_tokens).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.usage.cached_input_tokens).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.first_seq).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.last_seq).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, s)| s.started_at).collect::<Vec<_>>())
        .bind(calls.iter().map(|(w, _)| *w).collect::<Vec<_>>())
        .bind(calls.iter().map(|(_, c)| c.run_id.0).collect::<Vec<_>>())
        .bind(calls.iter().map(|(_, c)| c.step as i32).collect::<Vec<_>>())
        .bind(calls.iter().map(|(_, c)| c.call as i32).collect::<Vec<_>>())
        .bind(calls.iter().map(|(_, c)| c.call_id.clone()).collect::<Vec<_>>())
        .bind(calls.iter().map(|(_, c)| c.name.clone()).collect::<Vec<_>>())
        .bind(calls.iter().map(|(_, c)| c.arguments.clone()).collect::<Vec<_>>())
        .bind(calls.iter().map(|(_, c)| c.effect.to_string()).collect::<Vec<_>>())
        .bind(calls.iter().map(|(_, c)| c.state.to_string()).collect::<Vec<_>>())
        .bind(calls.iter().map(|(_, c)| c.idempotency_key.clone()).collect::<Vec<_>>())
        .bind(calls.iter().map(|(_, c)| c.epoch).collect::<Vec<_>>())
        .bind(calls.iter().map(|(_, c)| c.output.clone()).collect::<Vec<_>>())
        .bind(calls.iter().map(|(_, c)| c.error.clone()).collect::<Vec<_>>())
        .bind(batch.iter().map(|append| append.stop_requested_at).collect::<Vec<_>>())
        .bind(batch.iter().map(|append| append.yields_to_stop()).collect::<Vec<_>>());

    let mut outcomes: Vec<Outcome> = vec![];
    for row in &query.fetch_all(connection).await? {
        let cause: Option<Uuid> = get(row, "cause")?;
        match cause.and_then(|run_id| outcomes.iter_mut().find(|outcome| outcome.run_id == run_id)) {
            None => outcomes.push(Outcome {
                run_id: get(row, "run_id")?,
                at: get(row, "created_at")?,
                caused: vec![],
                wake: vec![],
                stop: stop_request(row, get::<Uuid>(row, "run_id")?.into())?,
            }),
            Some(outcome) => {
                outcome.caused.push(segment(row)?);
                outcome.wake.push(get(row, "queue")?);
            }
        }
    }
    Ok(outcomes)
}
