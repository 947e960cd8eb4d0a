//! The queue: who holds what, and what becomes of it when the holder is gone.

use async_trait::async_trait;
use sqlx::Transaction;
use uuid::Uuid;

use super::{
    super::claim::claim,
    Db, SqlStore,
    admission::{read_run, slot_holder},
    rows::get,
    settle::{end_run, lock_chat, lock_job},
};
use crate::{
    domain::{
        event::{EventData, ReleaseReason, Segment},
        ids::{Epoch, RunId, Seq, WorkerId, WorkspaceId},
        retry::crash_delay_ms,
        run::{Claim, Ending, RunError},
        transition::{Reason, RunStatus},
    },
    store::{Jobs, Released, Result, StoreError},
};

#[async_trait]
impl Jobs for SqlStore {
    async fn claim(&self, worker: WorkerId, queues: &[String], limit: u32) -> Result<Vec<(Claim, Segment)>> {
        claim(self, worker, queues, limit).await
    }

    async fn hand_back(
        &self,
        claim: &Claim,
        last_seq: Seq,
        reason: ReleaseReason,
        delay_ms: i64,
    ) -> Result<Released> {
        let (workspace, run_id) = (claim.run.workspace_id, claim.run.id);
        let mut tx = self.begin_reserved().await?;
        let job = lock_job(&mut tx, workspace, run_id).await?.ok_or(StoreError::LeaseLost)?;
        if job.worker_id != Some(claim.worker_id) || job.epoch != claim.epoch {
            return Err(StoreError::LeaseLost);
        }
        let event = EventData::RunReleased { reason, epoch: claim.epoch };
        let segment = append(&mut tx, workspace, run_id, claim.epoch, Some(last_seq), &event).await?;
        let crashes = job.crashes + i32::from(reason == ReleaseReason::Broken);
        make_pending(&mut tx, workspace, run_id, job.id, crashes, delay_ms).await?;
        tx.commit().await?;
        Ok(Released {
            run_id,
            workspace_id: workspace,
            segments: vec![segment],
            wake: vec![job.queue],
            ended: false,
        })
    }

    async fn reap(&self, max_crashes: i32, limit: u32) -> Result<Vec<Released>> {
        let orphans = sqlx::query(concat!(
            "select j.workspace_id, j.run_id from jobs j where j.worker_id is not null and j.kind = 'run' \
             and not exists (select 1 from workers w where w.id = j.worker_id and w.expires_at > ",
            now!(),
            ") order by j.run_id limit $1"
        ))
        .bind(i64::from(limit))
        .fetch_all(self.reserved())
        .await?;
        let mut released = vec![];
        for row in &orphans {
            let (workspace, run_id) =
                (get::<Uuid>(row, "workspace_id")?.into(), get::<Uuid>(row, "run_id")?.into());
            match reap_run(self, workspace, run_id, max_crashes).await {
                Ok(one) => released.extend(one),
                // A zombie's last append won the position: the next round reads behind it.
                Err(StoreError::LeaseLost) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(released)
    }

    async fn promote_due(&self, limit: u32) -> Result<Vec<Released>> {
        let due = sqlx::query(concat!(
            "select workspace_id, id from runs where status = 'scheduled' and run_at <= ",
            now!(),
            " order by run_at limit $1"
        ))
        .bind(i64::from(limit))
        .fetch_all(self.reserved())
        .await?;
        let mut promoted = vec![];
        for row in &due {
            let (workspace, run_id) =
                (get::<Uuid>(row, "workspace_id")?.into(), get::<Uuid>(row, "id")?.into());
            promoted.extend(promote(self, workspace, run_id).await?);
        }
        Ok(promoted)
    }

    async fn held_by(&self, worker: WorkerId) -> Result<Vec<(WorkspaceId, RunId)>> {
        let rows = sqlx::query("select workspace_id, run_id from jobs where worker_id = $1 and kind = 'run'")
            .bind(worker.0)
            .fetch_all(self.reserved())
            .await?;
        rows.iter()
            .map(|row| Ok((get::<Uuid>(row, "workspace_id")?.into(), get::<Uuid>(row, "run_id")?.into())))
            .collect()
    }

    async fn disown(
        &self,
        worker: WorkerId,
        workspace: WorkspaceId,
        run_id: RunId,
    ) -> Result<Option<Released>> {
        let mut tx = self.begin_reserved().await?;
        let Some(job) = lock_job(&mut tx, workspace, run_id).await? else { return Ok(None) };
        if job.worker_id != Some(worker) {
            return Ok(None);
        }
        let event = EventData::RunReleased { reason: ReleaseReason::Broken, epoch: job.epoch };
        let segment = append(&mut tx, workspace, run_id, job.epoch, None, &event).await?;
        make_pending(&mut tx, workspace, run_id, job.id, job.crashes, 0).await?;
        tx.commit().await?;
        let (segments, wake) = (vec![segment], vec![job.queue]);
        Ok(Some(Released { run_id, workspace_id: workspace, segments, wake, ended: false }))
    }

    async fn reconcile(&self) -> Result<u64> {
        let mut tx = self.begin_reserved().await?;
        let mut repaired = 0;
        for statement in RECONCILE {
            repaired += sqlx::query(*statement).execute(&mut *tx).await?.rows_affected();
        }
        tx.commit().await?;
        Ok(repaired)
    }
}

/// One row each is a bug; all of them are harmless on a healthy database.
const RECONCILE: &[&str] = &[
    // An active run without a job: the reaper takes a job of nobody's from there.
    concat!(
        "insert into jobs (workspace_id, id, kind, run_id, queue, priority, run_at, worker_id) \
         select workspace_id, id, 'run', id, queue, priority, ",
        now!(),
        ", case when status = 'running' then id end from runs r where status in ('pending', 'running') \
         and not exists (select 1 from jobs j where j.run_id = r.id and j.kind = 'run') \
         on conflict do nothing"
    ),
    "delete from jobs where kind = 'run' and exists (select 1 from runs r \
     where r.workspace_id = jobs.workspace_id and r.id = jobs.run_id \
     and r.status in ('scheduled', 'queued', 'succeeded', 'failed', 'aborted'))",
    "update messages set status = (select case r.status when 'succeeded' then 'completed' \
         when 'failed' then 'error' else 'aborted' end from runs r \
         where r.workspace_id = messages.workspace_id and r.id = messages.run_id) \
     where status = 'streaming' and exists (select 1 from runs r \
         where r.workspace_id = messages.workspace_id and r.id = messages.run_id \
         and r.status in ('succeeded', 'failed', 'aborted'))",
];

async fn reap_run(
    store: &SqlStore,
    workspace: WorkspaceId,
    run_id: RunId,
    max_crashes: i32,
) -> Result<Option<Released>> {
    let mut tx = store.begin_reserved().await?;
    let chat_id = read_run(&mut tx, workspace, run_id).await?.chat_id;
    lock_chat(&mut tx, workspace, chat_id).await?;
    let Some(job) = lock_job(&mut tx, workspace, run_id).await? else { return Ok(None) };
    if job.is_held || job.worker_id.is_none() {
        return Ok(None);
    }
    let run = read_run(&mut tx, workspace, run_id).await?;
    let crashes = job.crashes + 1;
    let ending = if run.stop_requested_at.is_some() {
        Some(Ending { reason: run.stop_reason.unwrap_or(Reason::Stop), error: None })
    } else if crashes > max_crashes {
        let error = RunError::new(
            "crash_limit",
            format!(
                "{crashes} workers were lost while working on this run without a saved step between them"
            ),
        );
        Some(Ending::failed(Reason::CrashLimit, error))
    } else {
        None
    };
    let (segments, wake) = if let Some(ending) = &ending {
        let ended = end_run(&mut tx, &run, ending, job.epoch + 1).await?;
        ([vec![ended.segment], ended.caused].concat(), ended.wake)
    } else {
        let event = EventData::RunReleased { reason: ReleaseReason::Expired, epoch: job.epoch };
        let segment = append(&mut tx, workspace, run_id, job.epoch, None, &event).await?;
        make_pending(&mut tx, workspace, run_id, job.id, crashes, crash_delay_ms(crashes)).await?;
        (vec![segment], vec![job.queue])
    };
    tx.commit().await?;
    Ok(Some(Released { run_id, workspace_id: workspace, segments, wake, ended: ending.is_some() }))
}

/// A scheduled run that is due takes the slot or queues up for it.
async fn promote(store: &SqlStore, workspace: WorkspaceId, run_id: RunId) -> Result<Option<Released>> {
    let mut tx = store.begin_reserved().await?;
    let chat_id = read_run(&mut tx, workspace, run_id).await?.chat_id;
    lock_chat(&mut tx, workspace, chat_id).await?;
    let status = match slot_holder(&mut tx, workspace, chat_id).await? {
        Some(_) => RunStatus::Queued,
        None => RunStatus::Pending,
    };
    let row = sqlx::query(concat!(
        "update runs set status = $3, updated_at = ",
        now!(),
        " where workspace_id = $1 and id = $2 and status = 'scheduled' returning queue, priority"
    ))
    .bind(workspace.0)
    .bind(run_id.0)
    .bind(status.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    // Somebody else promoted or stopped it.
    let Some(row) = row else { return Ok(None) };
    let queue: String = get(&row, "queue")?;
    if status == RunStatus::Pending {
        sqlx::query(concat!(
            "insert into jobs (workspace_id, id, kind, run_id, queue, priority, run_at) \
             values ($1, $2, 'run', $3, $4, $5, ",
            now!(),
            ")"
        ))
        .bind(workspace.0)
        .bind(Uuid::now_v7())
        .bind(run_id.0)
        .bind(&queue)
        .bind(get::<i32>(&row, "priority")?)
        .execute(&mut *tx)
        .await?;
    }
    let event = EventData::RunQueued { status, position: None, run_at: None };
    let segment = append(&mut tx, workspace, run_id, 0, None, &event).await?;
    tx.commit().await?;
    let wake = if status == RunStatus::Pending { vec![queue] } else { vec![] };
    Ok(Some(Released { run_id, workspace_id: workspace, segments: vec![segment], wake, ended: false }))
}

/// Appends one event behind `after`, or behind the last one there is. `LeaseLost` when the position is taken.
async fn append(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    run_id: RunId,
    epoch: Epoch,
    after: Option<Seq>,
    event: &EventData,
) -> Result<Segment> {
    let events = vec![event.of_run()];
    let row = sqlx::query(
        "insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events) \
         select $1, $2, next.seq, next.seq, $3, $5 from (\
             select coalesce($4, (select last_seq from run_events where run_id = $2 order by first_seq desc limit 1), 0) \
                 + 1 as seq) as next \
         where true on conflict (run_id, first_seq) do nothing returning first_seq, created_at",
    )
    .bind(workspace.0)
    .bind(run_id.0)
    .bind(epoch)
    .bind(after)
    .bind(serde_json::to_string(&events).expect("events are plain JSON"))
    .fetch_optional(&mut **tx)
    .await?;
    let row = row.ok_or(StoreError::LeaseLost)?;
    let first = get(&row, "first_seq")?;
    Ok(Segment { run_id, first, last: first, at: get(&row, "created_at")?, events })
}

/// The run waits for a worker again.
async fn make_pending(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    run_id: RunId,
    job_id: Uuid,
    crashes: i32,
    delay_ms: i64,
) -> Result<()> {
    sqlx::query(concat!(
        "update jobs set worker_id = null, crashes = $2, run_at = ",
        now!(),
        " + $3 where id = $1"
    ))
    .bind(job_id)
    .bind(crashes)
    .bind(delay_ms)
    .execute(&mut **tx)
    .await?;
    let done = sqlx::query(concat!(
        "update runs set status = 'pending', updated_at = ",
        now!(),
        " where workspace_id = $1 and id = $2 and status in ('pending', 'running')"
    ))
    .bind(workspace.0)
    .bind(run_id.0)
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::LeaseLost) }
}
