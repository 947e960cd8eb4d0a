//! The claim, statement by statement inside one transaction.

use uuid::Uuid;

use super::{
    SqlStore,
    sql::{
        admission::read_run,
        readable,
        rows::{get, next_seq},
    },
};
use crate::{
    domain::{
        event::{EventData, Segment},
        ids::{Millis, RunId, WorkerId},
        retry::PROBATION_MS,
        run::Claim,
    },
    store::{Result, StoreError},
};

pub(super) async fn claim(
    store: &SqlStore,
    worker: WorkerId,
    queues: &[String],
    limit: u32,
) -> Result<Vec<(Claim, Segment)>> {
    let mut tx = store.begin().await?;
    let due = sqlx::query(concat!(
        "select j.id, j.workspace_id, j.run_id from jobs j where j.worker_id is null and j.kind = 'run' and j.queue in (select value from json_each($2)) \
           and j.run_at <= ",
        now!(),
        " and (select r.status from runs r where r.workspace_id = j.workspace_id and r.id = j.run_id) = 'pending' \
          and exists (select 1 from workers w where w.id = $1 and w.expires_at > ",
        now!(),
        " and not w.draining) and (j.crashes < 2 or j.id = (\
             select l.id from jobs l where l.worker_id is null and l.crashes >= 2 and l.kind = 'run' \
               and l.queue in (select value from json_each($2)) and l.run_at <= ",
        now!(),
        " and (select r.status from runs r where r.workspace_id = l.workspace_id and r.id = l.run_id) = 'pending' \
               and not exists (select 1 from jobs h join runs r on r.workspace_id = h.workspace_id and r.id = h.run_id \
                 where h.worker_id = $1 and h.crashes >= 2 and h.crash_step = r.step_count and h.claimed_at > ",
        now!(),
        " - $4) order by l.priority desc, l.run_at, l.id limit 1)) order by j.priority desc, j.run_at, j.id limit $3"
    ))
    .bind(worker.0)
    .bind(serde_json::to_string(queues).expect("queue names are plain text"))
    .bind(limit)
    .bind(PROBATION_MS)
    .fetch_all(&mut *tx)
    .await?;
    let mut claims = Vec::with_capacity(due.len());
    for row in &due {
        let (workspace, run_id): (Uuid, Uuid) = (get(row, "workspace_id")?, get(row, "run_id")?);
        let job = sqlx::query(concat!(
            "update jobs set worker_id = $1, epoch = epoch + 1, attempts = attempts + 1, claimed_at = ",
            now!(),
            " where id = $2 and worker_id is null returning epoch, attempts"
        ))
        .bind(worker.0)
        .bind(get::<Uuid>(row, "id")?)
        .fetch_one(&mut *tx)
        .await?;
        let epoch = get(&job, "epoch")?;
        let events = vec![EventData::RunClaimed { worker_id: worker, epoch }.of_run()];
        let log = sqlx::query(concat!(
            "insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events) \
             select $1, $2, next.seq, next.seq, $3, $4 from (select ",
            next_seq!("$2"),
            " as seq) as next returning first_seq, created_at"
        ))
        .bind(workspace)
        .bind(run_id)
        .bind(epoch)
        .bind(serde_json::to_string(&events).expect("events are plain JSON"))
        .fetch_one(&mut *tx)
        .await?;
        let (first, at): (i64, Millis) = (get(&log, "first_seq")?, get(&log, "created_at")?);
        let started = sqlx::query(
            "update runs set status = 'running', attempts = $3, started_at = coalesce(started_at, $4), \
             updated_at = $4 where workspace_id = $1 and id = $2 and status = 'pending'",
        )
        .bind(workspace)
        .bind(run_id)
        .bind(get::<i64>(&job, "attempts")?)
        .bind(at)
        .execute(&mut *tx)
        .await?;
        if started.rows_affected() != 1 {
            return Err(StoreError::LeaseLost);
        }
        let Some(run) = readable(read_run(&mut tx, workspace.into(), run_id.into()).await) else { continue };
        let segment = Segment { run_id: RunId(run_id), first, last: first, at, events };
        claims.push((Claim { run, epoch, worker_id: worker, last_seq: first, now: at }, segment));
    }
    tx.commit().await?;
    Ok(claims)
}
