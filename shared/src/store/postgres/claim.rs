//! The claim in one statement.

use super::{
    SqlStore,
    sql::{
        readable,
        rows::{DbRow, get, next_seq, run, run_columns},
    },
};
use crate::{
    domain::{
        event::{EventData, Segment},
        ids::WorkerId,
        retry::{LAST_CHANCE, PROBATION_MS},
        run::Claim,
    },
    store::{Result, StoreError},
};

/// How often the statement is tried that read a position just before it was taken.
const TRIES: u32 = 5;

/// The rows to take are found in a materialised sub-query: inside the update it would be run again for each row and
/// take more than the limit. The run's status is looked up row by row, so that the index of pending jobs is walked in
/// its order and no further than the limit, whatever the planner believes about the size of the backlog. The one run at its
/// last chance that may be taken is looked for only when the walk meets such a run. They have an index of their own, whose
/// condition names the number.
const CLAIM: &str = concat!(
    "with due as materialized (
        select j.id from jobs j
        where j.worker_id is null and j.kind = 'run' and j.queue = any($2) and j.run_at <= now_ms()
          and (select r.status from runs r where r.workspace_id = j.workspace_id and r.id = j.run_id) = 'pending'
          and exists (select 1 from workers w where w.id = $1 and w.expires_at > now_ms() and not w.draining)
          and (j.crashes < 2 or j.id = (
            select l.id from jobs l
            where l.worker_id is null and l.crashes >= 2 and l.kind = 'run' and l.queue = any($2)
              and l.run_at <= now_ms()
              and (select r.status from runs r where r.workspace_id = l.workspace_id and r.id = l.run_id) = 'pending'
              and not exists (
                select 1 from jobs h join runs r on r.workspace_id = h.workspace_id and r.id = h.run_id
                where h.worker_id = $1 and h.crashes >= 2 and h.crash_step = r.step_count
                  and h.claimed_at > now_ms() - $4::bigint)
            order by l.priority desc, l.run_at, l.id limit 1))
        order by j.priority desc, j.run_at, j.id limit $3
        for no key update of j skip locked
    ), job as (
        update jobs j set worker_id = $1, epoch = j.epoch + 1, attempts = j.attempts + 1, claimed_at = now_ms() from due
        where j.id = due.id
        returning j.workspace_id, j.run_id, j.epoch, j.attempts
    ), log as (
        insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events)
        select job.workspace_id, job.run_id, e.seq, e.seq, job.epoch,
            '[{\"type\":\"run.claimed\",\"data\":{\"workerId\":\"' || $1::text || '\",\"epoch\":' || job.epoch || '}}]'
        from job, lateral (select ",
    next_seq!("job.run_id"),
    " as seq) e
        -- Taken when the job changed hands twice after this statement's snapshot: `fence` refuses, and it is tried again.
        on conflict (run_id, first_seq) do nothing
        returning run_id, first_seq, created_at
    ), run as (
        update runs r
        set status = 'running', attempts = job.attempts, started_at = coalesce(r.started_at, log.created_at),
            updated_at = log.created_at
        from job join log using (run_id)
        where r.workspace_id = job.workspace_id and r.id = job.run_id and r.status = 'pending'
        returning ",
    run_columns!(),
    ", job.epoch, log.first_seq as last_seq, log.created_at as claimed_at
    )
    select run.*, $1 as worker_id from run
    where fence((select count(*) from run) = (select count(*) from job))"
);

const _: () = assert!(LAST_CHANCE == 2, "the statement and the index name it");

pub(super) async fn claim(
    store: &SqlStore,
    worker: WorkerId,
    queues: &[String],
    limit: u32,
) -> Result<Vec<(Claim, Segment)>> {
    let mut tries = 0;
    let rows = loop {
        tries += 1;
        let query = sqlx::query(CLAIM).bind(worker.0).bind(queues).bind(i64::from(limit)).bind(PROBATION_MS);
        match query.fetch_all(store.reserved()).await.map_err(StoreError::from) {
            Err(StoreError::LeaseLost) if tries < TRIES => {}
            rows => break rows?,
        }
    };
    Ok(rows.iter().filter_map(|row| readable(claimed(row, worker))).collect())
}

fn claimed(row: &DbRow, worker: WorkerId) -> Result<(Claim, Segment)> {
    let run = run(row)?;
    let (epoch, at) = (get(row, "epoch")?, get(row, "claimed_at")?);
    let events = vec![EventData::RunClaimed { worker_id: worker, epoch }.of_run()];
    let segment = Segment { run_id: run.id, first: run.last_seq, last: run.last_seq, at, events };
    let last_seq = run.last_seq;
    Ok((Claim { run, epoch, worker_id: worker, last_seq, now: at }, segment))
}
