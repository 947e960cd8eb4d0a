//! How a run leaves its holder: handed back, disowned, or taken from a dead one. It waits for a worker again, unless
//! its stop was requested meanwhile or too many workers died on it: then it ends here.

use sqlx::Transaction;

use super::{
    Db, SqlStore,
    admission::read_run,
    facts::{RunFacts, read_facts},
    log::append_one,
    settle::{HeldJob, end_run, lock_chat, lock_job},
};
use crate::{
    domain::{
        event::{EventData, ReleaseReason},
        ids::{RunId, Seq, WorkerId, WorkspaceId},
        release::{Crashes, end_at_release},
        retry::{MAX_CRASHES, crash_delay_ms},
        run::{Claim, Ending},
        settle::Stop,
    },
    mutant::{self, Mutant},
    store::{HeldRun, Released, Result, STOP_GRACE_MS, StoreError},
};

/// The holder itself gives it back, `last_seq` being the last event that it appended.
pub(super) async fn hand_back(
    store: &SqlStore,
    claim: &Claim,
    last_seq: Seq,
    reason: ReleaseReason,
    delay_ms: i64,
) -> Result<Released> {
    let (workspace, run_id) = (claim.run.workspace_id, claim.run.id);
    let mut tx = store.begin_reserved().await?;
    lock_chat(&mut tx, workspace, claim.run.chat_id).await?;
    let job = lock_job(&mut tx, workspace, run_id).await?.ok_or(StoreError::LeaseLost)?;
    let run = read_facts(&mut tx, workspace, run_id).await?;
    let is_holder = job.worker_id == Some(claim.worker_id) && job.epoch == claim.epoch;
    if !is_holder || run.last_seq != last_seq {
        return Err(StoreError::LeaseLost);
    }
    let crashes = job.crashes_of(&run, reason == ReleaseReason::Broken, MAX_CRASHES);
    let released = release(&mut tx, &run, &job, reason, crashes, delay_ms).await?;
    tx.commit().await?;
    Ok(released)
}

/// The worker holds it without knowing it.
pub(super) async fn disown(store: &SqlStore, worker: WorkerId, held: HeldRun) -> Result<Option<Released>> {
    let HeldRun { workspace_id: workspace, run_id, epoch } = held;
    let mut tx = store.begin_reserved().await?;
    let chat_id = read_facts(&mut tx, workspace, run_id).await?.chat_id;
    lock_chat(&mut tx, workspace, chat_id).await?;
    let is_it = |job: &HeldJob| job.worker_id == Some(worker) && job.epoch == epoch;
    let Some(job) = lock_job(&mut tx, workspace, run_id).await?.filter(is_it) else {
        // At once: until then its locks would hide the job from claims.
        tx.rollback().await?;
        return Ok(None);
    };
    let run = read_facts(&mut tx, workspace, run_id).await?;
    // Heard of or not, a row that cannot be read is why nobody works on it: that counts.
    let is_unreadable = match read_run(&mut tx, workspace, run_id).await {
        Ok(_) => false,
        Err(StoreError::Corrupt { .. }) => true,
        Err(error) => return Err(error),
    };
    let crashes = job.crashes_of(&run, is_unreadable, MAX_CRASHES);
    let delay_ms = if is_unreadable { crash_delay_ms(crashes.now()) } else { 0 };
    let released = release(&mut tx, &run, &job, ReleaseReason::Broken, crashes, delay_ms).await?;
    tx.commit().await?;
    Ok(Some(released))
}

/// Its holder has not followed its stop in time, dead or alive. `None` when it has, or when it still may.
pub(super) async fn carry_out_stop(
    store: &SqlStore,
    workspace: WorkspaceId,
    run_id: RunId,
) -> Result<Option<Released>> {
    let mut tx = store.begin_reserved().await?;
    let chat_id = read_facts(&mut tx, workspace, run_id).await?.chat_id;
    lock_chat(&mut tx, workspace, chat_id).await?;
    let job = lock_job(&mut tx, workspace, run_id).await?.filter(|job| job.worker_id.is_some());
    let overdue = sqlx::query(concat!(
        "select 1 from runs where workspace_id = $1 and id = $2 and status = 'running' and stop_requested_at <= ",
        now!(),
        " - $3"
    ))
    .bind(workspace.0)
    .bind(run_id.0)
    .bind(STOP_GRACE_MS)
    .fetch_optional(&mut *tx)
    .await?;
    let run = read_facts(&mut tx, workspace, run_id).await?;
    let (Some(job), Some(_), Some(reason)) = (job, overdue, run.stop()) else {
        tx.rollback().await?;
        return Ok(None);
    };
    let released = end(&mut tx, &run, &job, &Ending { reason, error: None }).await?;
    tx.commit().await?;
    Ok(Some(released))
}

/// Its holder is dead. `None` when it turns out that it is not, or that somebody was here before.
pub(super) async fn reap(
    store: &SqlStore,
    workspace: WorkspaceId,
    run_id: RunId,
    max_crashes: i32,
) -> Result<Option<Released>> {
    let mut tx = store.begin_reserved().await?;
    let chat_id = read_facts(&mut tx, workspace, run_id).await?.chat_id;
    lock_chat(&mut tx, workspace, chat_id).await?;
    let is_orphan =
        |job: &HeldJob| (!job.is_held || mutant::is(Mutant::ReaperBlindToRenewal)) && job.worker_id.is_some();
    let job = lock_job(&mut tx, workspace, run_id).await?.filter(is_orphan);
    let Some(job) = job else {
        tx.rollback().await?;
        return Ok(None);
    };
    let run = read_facts(&mut tx, workspace, run_id).await?;
    let crashes = job.crashes_of(&run, true, max_crashes);
    let delay_ms = crash_delay_ms(crashes.now());
    let released = release(&mut tx, &run, &job, ReleaseReason::Expired, crashes, delay_ms).await?;
    tx.commit().await?;
    Ok(Some(released))
}

/// Ends it if it is not to be taken up again, else it waits for a worker.
async fn release(
    tx: &mut Transaction<'static, Db>,
    run: &RunFacts,
    job: &HeldJob,
    reason: ReleaseReason,
    crashes: Crashes,
    delay_ms: i64,
) -> Result<Released> {
    match end_at_release(run.stop(), crashes) {
        Some(ending) => end(tx, run, job, &ending).await,
        None => make_pending(tx, run, job, reason, crashes.now(), delay_ms).await,
    }
}

async fn end(
    tx: &mut Transaction<'static, Db>,
    run: &RunFacts,
    job: &HeldJob,
    ending: &Ending,
) -> Result<Released> {
    let stop = run.stop_requested_at.filter(|_| run.stop() == Some(ending.reason));
    let stop = stop.map(|requested_at| Stop { requested_at, is_delivered: false });
    let ended = end_run(tx, run, ending, stop, job.epoch + 1).await?;
    Ok(Released {
        run_id: run.id,
        workspace_id: run.workspace_id,
        segments: [vec![ended.segment], ended.caused].concat(),
        wake: ended.wake,
        ended: true,
    })
}

/// It waits for a worker again, with the crashes since its last saved step.
async fn make_pending(
    tx: &mut Transaction<'static, Db>,
    run: &RunFacts,
    job: &HeldJob,
    reason: ReleaseReason,
    crashes: i32,
    delay_ms: i64,
) -> Result<Released> {
    let event = EventData::RunReleased { reason, epoch: job.epoch };
    let segment = append_one(tx, run.workspace_id, run.id, job.epoch, &event).await?;
    if segment.first != run.last_seq + 1 {
        // Somebody appended since the run was read; whether that was a step decides about the crashes.
        return Err(StoreError::LeaseLost);
    }
    sqlx::query(concat!(
        "update jobs set worker_id = null, crashes = $2, crash_step = $3, run_at = ",
        now!(),
        " + $4 where id = $1"
    ))
    .bind(job.id)
    .bind(crashes)
    .bind(run.step_count as i32)
    .bind(delay_ms)
    .execute(&mut **tx)
    .await?;
    let done = sqlx::query(concat!(
        "update runs set status = 'pending', updated_at = ",
        now!(),
        " where workspace_id = $1 and id = $2 and status = 'running'"
    ))
    .bind(run.workspace_id.0)
    .bind(run.id.0)
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() != 1 {
        return Err(StoreError::LeaseLost);
    }
    Ok(Released {
        run_id: run.id,
        workspace_id: run.workspace_id,
        segments: vec![segment],
        wake: vec![job.queue.clone()],
        ended: false,
    })
}
