//! The queue: who holds what, what is due, and what no path should have left behind.

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    super::claim::claim, SqlStore, admission::slot_holder, facts::read_facts, log::append_one, release,
    rows::get, settle::lock_chat,
};
use crate::{
    domain::{
        event::{EventData, ReleaseReason, Segment},
        ids::{RunId, Seq, WorkerId, WorkspaceId},
        run::Claim,
        transition::RunStatus,
    },
    failpoint::{Point, hit_if},
    store::{HeldRun, Jobs, Released, Result, STOP_GRACE_MS, StoreError},
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
        release::hand_back(self, claim, last_seq, reason, delay_ms).await
    }

    async fn reap(&self, max_crashes: i32, limit: u32) -> Result<Vec<Released>> {
        let mut orphans = vec![];
        for row in sqlx::query(DEAD_OWNERS).fetch_all(self.reserved()).await? {
            let held = sqlx::query(
                "select j.workspace_id, j.run_id from jobs j where j.worker_id = $1 and j.kind = 'run' and (select r.status \
                 from runs r where r.workspace_id = j.workspace_id and r.id = j.run_id) = 'running' limit $2",
            )
            .bind(get::<Uuid>(&row, "id")?)
            .bind(i64::from(limit) - orphans.len() as i64);
            orphans.extend(held.fetch_all(self.reserved()).await?);
        }
        hit_if(Point::ReaperAfterScan, || !orphans.is_empty());
        let mut round = Round::default();
        for row in &orphans {
            let (workspace, run_id) = (get::<Uuid>(row, "workspace_id")?, get::<Uuid>(row, "run_id")?);
            round.add(release::reap(self, workspace.into(), run_id.into(), max_crashes).await);
        }
        round.result()
    }

    async fn carry_out_stops(&self, limit: u32) -> Result<Vec<Released>> {
        let unfollowed = sqlx::query(concat!(
            "select workspace_id, id from runs where status = 'running' and stop_requested_at <= ",
            now!(),
            " - $1 order by stop_requested_at limit $2"
        ))
        .bind(STOP_GRACE_MS)
        .bind(i64::from(limit))
        .fetch_all(self.reserved())
        .await?;
        let mut round = Round::default();
        for row in &unfollowed {
            let (workspace, run_id) = (get::<Uuid>(row, "workspace_id")?, get::<Uuid>(row, "id")?);
            round.add(release::carry_out_stop(self, workspace.into(), run_id.into()).await);
        }
        round.result()
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
        let mut round = Round::default();
        for row in &due {
            let (workspace, run_id) = (get::<Uuid>(row, "workspace_id")?, get::<Uuid>(row, "id")?);
            round.add(promote(self, workspace.into(), run_id.into()).await);
        }
        round.result()
    }

    async fn held_by(&self, worker: WorkerId) -> Result<Vec<HeldRun>> {
        let sql = "select workspace_id, run_id, epoch from jobs where worker_id = $1 and kind = 'run'";
        let rows = sqlx::query(sql).bind(worker.0).fetch_all(self.reserved()).await?;
        rows.iter()
            .map(|row| {
                let workspace_id = get::<Uuid>(row, "workspace_id")?.into();
                let run_id = get::<Uuid>(row, "run_id")?.into();
                Ok(HeldRun { workspace_id, run_id, epoch: get(row, "epoch")? })
            })
            .collect()
    }

    async fn disown(&self, worker: WorkerId, held: HeldRun) -> Result<Option<Released>> {
        release::disown(self, worker, held).await
    }

    async fn reconcile(&self) -> Result<u64> {
        self.execute_all(RECONCILE).await
    }

    async fn prune(&self) -> Result<u64> {
        self.execute_all(PRUNE).await
    }
}

impl SqlStore {
    /// One transaction; the number of rows that it changed.
    async fn execute_all(&self, statements: &[&'static str]) -> Result<u64> {
        let mut tx = self.begin_reserved().await?;
        let mut changed = 0;
        for statement in statements {
            changed += sqlx::query(*statement).execute(&mut *tx).await?.rows_affected();
        }
        tx.commit().await?;
        Ok(changed)
    }
}

/// The owners of jobs that have no lease, or not even a row. The index of held jobs is walked from owner to owner, so that
/// this costs as much as there are workers, however much they hold.
const DEAD_OWNERS: &str = concat!(
    "with recursive owner(id) as (
        select (select worker_id from jobs where worker_id is not null order by worker_id limit 1)
        union all
        select (select j.worker_id from jobs j where j.worker_id > owner.id order by j.worker_id limit 1)
        from owner where owner.id is not null
    )
    select id from owner
    where id is not null and not exists (select 1 from workers w where w.id = owner.id and w.expires_at > ",
    now!(),
    ")"
);

const PRUNE: &[&str] = &[
    concat!("delete from idempotency where expires_at <= ", now!()),
    concat!("delete from api_keys where run_id is not null and expires_at <= ", now!()),
    concat!(
        "delete from workers where expires_at <= ",
        now!(),
        " - 86400000 and not exists (select 1 from jobs j where j.worker_id = workers.id)"
    ),
];

/// One row each is a bug; all of them are harmless on a healthy database. They begin at what is active and look its run
/// up, so that the runs that are over cost nothing, however many there are.
const RECONCILE: &[&str] = &[
    // An active run without a job: the reaper takes a job of nobody's from there.
    concat!(
        "insert into jobs (workspace_id, id, kind, run_id, queue, priority, run_at, attempts, epoch, worker_id) \
         select workspace_id, id, 'run', id, queue, priority, ",
        now!(),
        ", attempts, coalesce((select max(e.epoch) from run_events e where e.run_id = r.id), 0), \
         case when status = 'running' then id end from runs r where status in ('pending', 'running') \
         and not exists (select 1 from jobs j where j.run_id = r.id and j.kind = 'run') \
         on conflict do nothing"
    ),
    // A run whose holder is nowhere written down: the same.
    "update jobs set worker_id = run_id where kind = 'run' and worker_id is null and (select r.status from runs r \
         where r.workspace_id = jobs.workspace_id and r.id = jobs.run_id) = 'running'",
    // A run that waits for a worker and has one: whoever it is, the next claim fences it off.
    "update jobs set worker_id = null where kind = 'run' and worker_id is not null and (select r.status from runs r \
         where r.workspace_id = jobs.workspace_id and r.id = jobs.run_id) = 'pending'",
    "delete from jobs where kind = 'run' and (select r.status from runs r \
         where r.workspace_id = jobs.workspace_id and r.id = jobs.run_id) not in ('pending', 'running', 'waiting')",
    "update messages set status = (select case r.status when 'succeeded' then 'completed' \
         when 'failed' then 'error' else 'aborted' end from runs r \
         where r.workspace_id = messages.workspace_id and r.id = messages.run_id) \
     where status = 'streaming' and (select r.status from runs r where r.workspace_id = messages.workspace_id \
         and r.id = messages.run_id) in ('succeeded', 'failed', 'aborted')",
];

/// What one round over several runs came to. A run that cannot be changed now keeps nobody waiting, and what was done
/// for the others is told even so.
#[derive(Default)]
struct Round {
    released: Vec<Released>,
    error: Option<StoreError>,
}

impl Round {
    fn add(&mut self, result: Result<Option<Released>>) {
        match result {
            Ok(released) => self.released.extend(released),
            // Somebody appended meanwhile: the next round reads behind it.
            Err(StoreError::LeaseLost) => {}
            Err(error) => self.error = self.error.take().or(Some(error)),
        }
    }

    fn result(self) -> Result<Vec<Released>> {
        match self.error {
            Some(error) if self.released.is_empty() => Err(error),
            _ => Ok(self.released),
        }
    }
}

/// A scheduled run that is due takes the slot or queues up for it.
async fn promote(store: &SqlStore, workspace: WorkspaceId, run_id: RunId) -> Result<Option<Released>> {
    let mut tx = store.begin_reserved().await?;
    let chat_id = read_facts(&mut tx, workspace, run_id).await?.chat_id;
    lock_chat(&mut tx, workspace, chat_id).await?;
    let status = match slot_holder(&mut *tx, workspace, chat_id).await? {
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
    let Some(row) = row else {
        // Somebody else promoted or stopped it.
        tx.rollback().await?;
        return Ok(None);
    };
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
    let segment = append_one(&mut tx, workspace, run_id, 0, &event).await?;
    tx.commit().await?;
    let wake = if status == RunStatus::Pending { vec![queue] } else { vec![] };
    Ok(Some(Released { run_id, workspace_id: workspace, segments: vec![segment], wake, ended: false }))
}
