//! Endings that no worker makes: the stop of a run that nobody holds, the deletion of its chat, the reaper's verdict.
//!
//! All of them lock the chat, then the job, and append at the position up to which they have read: a zombie that
//! still writes, or anybody else, makes the append fail and the transaction is tried again.

use sqlx::Transaction;
use uuid::Uuid;

use super::{
    super::commit::write,
    Db, SqlStore,
    admission::read_run,
    again::{again, lost_to_another},
    facts::RunFacts,
    log::spread,
    rows::{get, segment, step, step_columns, tool_call, tool_call_columns},
    to_its_end,
};
use crate::{
    domain::{
        event::Segment,
        ids::{ChatId, Epoch, Millis, RunId, WorkerId, WorkspaceId},
        release::Crashes,
        replay::Replay,
        run::Ending,
        settle::{Stop, settle},
        transition::Reason,
    },
    store::{Append, Committed, Result, STOP_GRACE_MS, StopOutcome, StoreError},
};

/// A run's job under its lock.
pub(crate) struct HeldJob {
    pub(crate) id: Uuid,
    pub(crate) epoch: Epoch,
    pub(crate) worker_id: Option<WorkerId>,
    crashes: i32,
    /// The run's steps when a crash was last counted.
    crash_step: i32,
    pub(crate) queue: String,
    /// A worker holds it whose lease has not run out.
    pub(crate) is_held: bool,
}

impl HeldJob {
    /// The crashes of a run since its last saved step.
    pub(crate) fn crashes_of(&self, run: &RunFacts, is_one_more: bool, limit: i32) -> Crashes {
        let before = if i64::from(run.step_count) > i64::from(self.crash_step) { 0 } else { self.crashes };
        Crashes { before, is_one_more, limit }
    }
}

pub(super) async fn stop_run(store: &SqlStore, workspace: WorkspaceId, run_id: RunId) -> Result<StopOutcome> {
    let store = store.clone();
    to_its_end(async move { again(|| try_stop(&store, workspace, run_id), lost_to_another).await }).await
}

async fn try_stop(store: &SqlStore, workspace: WorkspaceId, run_id: RunId) -> Result<StopOutcome> {
    let mut tx = store.begin().await?;
    let chat_id = read_run(&mut tx, workspace, run_id).await?.chat_id;
    lock_chat(&mut tx, workspace, chat_id).await?;
    let outcome = stop_in(&mut tx, workspace, run_id, Reason::Stop).await?;
    tx.commit().await?;
    Ok(outcome)
}

pub(super) async fn delete_chat(
    store: &SqlStore,
    workspace: WorkspaceId,
    chat_id: ChatId,
) -> Result<Vec<StopOutcome>> {
    let store = store.clone();
    to_its_end(async move { again(|| try_delete_chat(&store, workspace, chat_id), lost_to_another).await })
        .await
}

async fn try_delete_chat(
    store: &SqlStore,
    workspace: WorkspaceId,
    chat_id: ChatId,
) -> Result<Vec<StopOutcome>> {
    let mut tx = store.begin().await?;
    let deleted = sqlx::query(concat!(
        "update chats set deleted_at = ",
        now!(),
        " where workspace_id = $1 and id = $2 and deleted_at is null"
    ))
    .bind(workspace.0)
    .bind(chat_id.0)
    .execute(&mut *tx)
    .await?;
    if deleted.rows_affected() == 0 {
        return Err(StoreError::NotFound);
    }
    // Those that wait for the slot first: the end of its holder would promote them.
    let unfinished = sqlx::query(
        "select id from runs where workspace_id = $1 and chat_id = $2 \
         and status not in ('succeeded', 'failed', 'aborted') \
         order by status in ('pending', 'running', 'waiting'), turn",
    )
    .bind(workspace.0)
    .bind(chat_id.0)
    .fetch_all(&mut *tx)
    .await?;
    let mut outcomes = vec![];
    for row in &unfinished {
        let run_id = get::<Uuid>(row, "id")?.into();
        outcomes.push(stop_in(&mut tx, workspace, run_id, Reason::ChatDeleted).await?);
    }
    tx.commit().await?;
    Ok(outcomes)
}

/// Stops a run whose chat is locked.
pub(super) async fn stop_in(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    run_id: RunId,
    reason: Reason,
) -> Result<StopOutcome> {
    let job = lock_job(tx, workspace, run_id).await?;
    let run = read_run(tx, workspace, run_id).await?;
    if run.status.is_terminal() {
        return Ok(StopOutcome::AlreadyOver(run));
    }
    let now = now(tx).await?;
    let is_overdue = run.stop_requested_at.is_some_and(|at| at <= now - STOP_GRACE_MS);
    if job.as_ref().is_some_and(|job| job.is_held) && !is_overdue {
        sqlx::query(concat!(
            "update runs set stop_requested_at = ",
            now!(),
            ", stop_reason = $3 where workspace_id = $1 and id = $2 and stop_requested_at is null"
        ))
        .bind(workspace.0)
        .bind(run_id.0)
        .bind(reason.as_str())
        .execute(&mut **tx)
        .await?;
        return Ok(StopOutcome::Requested(read_run(tx, workspace, run_id).await?));
    }
    let epoch = job.map_or(0, |job| job.epoch + 1);
    // The first wish gave the reason, even if its addressee died before it could follow.
    let reason = run.stop_reason.unwrap_or(reason);
    let stop = Stop { requested_at: run.stop_requested_at.unwrap_or(now), is_delivered: false };
    let ended = end_run(tx, &(&run).into(), &Ending { reason, error: None }, Some(stop), epoch).await?;
    let mut segments = vec![ended.segment];
    segments.extend(ended.caused);
    Ok(StopOutcome::Ended { run: read_run(tx, workspace, run_id).await?, segments, wake: ended.wake })
}

/// Ends a run whose chat and job are locked. Should a live worker hold it, it finds its next position taken.
pub(crate) async fn end_run(
    tx: &mut Transaction<'static, Db>,
    run: &RunFacts,
    ending: &Ending,
    stop: Option<Stop>,
    epoch: Epoch,
) -> Result<Committed> {
    let replay = replay(tx, run).await?;
    let (events, settlement) = settle(run.id, &replay, run.usage, ending, stop, epoch);
    let append = Append {
        workspace_id: run.workspace_id,
        chat_id: run.chat_id,
        run_id: run.id,
        assistant_message_id: run.assistant_message_id,
        epoch,
        first_seq: replay.position() + 1,
        events,
        steps: settlement.steps,
        calls: settlement.calls,
        ending: Some(ending.clone()),
        stop_requested_at: stop.map(|stop| stop.requested_at),
    };
    let outcomes = write(tx, &[&append]).await?;
    spread(&[&append], outcomes).pop().unwrap_or(Err(StoreError::LeaseLost))
}

/// The database's clock.
async fn now(tx: &mut Transaction<'static, Db>) -> Result<Millis> {
    let row = sqlx::query(concat!("select ", now!(), " as at")).fetch_one(&mut **tx).await?;
    get(&row, "at")
}

pub(crate) async fn lock_chat(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    chat_id: ChatId,
) -> Result<()> {
    sqlx::query(concat!("select id from chats where workspace_id = $1 and id = $2", for_update!()))
        .bind(workspace.0)
        .bind(chat_id.0)
        .fetch_one(&mut **tx)
        .await?;
    Ok(())
}

/// Locks the run's job, if it has one. From here on nobody claims it.
pub(crate) async fn lock_job(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    run_id: RunId,
) -> Result<Option<HeldJob>> {
    let row = sqlx::query(concat!(
        "select id, epoch, worker_id, crashes, crash_step, queue from jobs \
         where workspace_id = $1 and run_id = $2 and kind = 'run'",
        for_update!()
    ))
    .bind(workspace.0)
    .bind(run_id.0)
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let worker_id: Option<Uuid> = get(&row, "worker_id")?;
    let is_held = match worker_id {
        None => false,
        Some(worker_id) => is_alive(tx, worker_id.into()).await?,
    };
    Ok(Some(HeldJob {
        id: get(&row, "id")?,
        epoch: get(&row, "epoch")?,
        worker_id: worker_id.map(Into::into),
        crashes: get(&row, "crashes")?,
        crash_step: get(&row, "crash_step")?,
        queue: get(&row, "queue")?,
        is_held,
    }))
}

/// Whether the worker's lease holds. The verdict that it does not is written: so a heartbeat under way is waited for,
/// and one that waits for this transaction looks again and finds the lease expired. A lock would not make it look.
async fn is_alive(tx: &mut Transaction<'static, Db>, worker: WorkerId) -> Result<bool> {
    let expired = sqlx::query(concat!(
        "update workers set expires_at = expires_at where id = $1 and expires_at <= ",
        now!()
    ))
    .bind(worker.0)
    .execute(&mut **tx)
    .await?;
    if expired.rows_affected() > 0 {
        return Ok(false);
    }
    let row =
        sqlx::query("select 1 from workers where id = $1").bind(worker.0).fetch_optional(&mut **tx).await?;
    Ok(row.is_some())
}

/// The run's answer up to the last event of its log.
async fn replay(tx: &mut Transaction<'static, Db>, run: &RunFacts) -> Result<Replay> {
    let steps = sqlx::query(concat!(
        "select ",
        step_columns!(),
        " from steps where workspace_id = $1 and run_id = $2 order by step"
    ))
    .bind(run.workspace_id.0)
    .bind(run.id.0)
    .fetch_all(&mut **tx)
    .await?;
    let steps = steps.iter().map(step).collect::<Result<Vec<_>>>()?;
    let calls = sqlx::query(concat!(
        "select ",
        tool_call_columns!(),
        " from tool_calls where workspace_id = $1 and run_id = $2 order by step, call"
    ))
    .bind(run.workspace_id.0)
    .bind(run.id.0)
    .fetch_all(&mut **tx)
    .await?;
    let calls = calls.iter().map(tool_call).collect::<Result<Vec<_>>>()?;
    let mut replay = Replay::from_rows(run.id, steps, calls);
    let segments = sqlx::query(
        "select run_id, first_seq, last_seq, events, created_at from run_events \
         where workspace_id = $1 and run_id = $2 and last_seq > $3 order by first_seq",
    )
    .bind(run.workspace_id.0)
    .bind(run.id.0)
    .bind(replay.position())
    .fetch_all(&mut **tx)
    .await?;
    for row in &segments {
        let segment: Segment = segment(row)?;
        replay.apply_segment(&segment);
    }
    Ok(replay)
}
