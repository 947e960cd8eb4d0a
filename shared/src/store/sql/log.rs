//! The group commit as the recorder sees it: one answer for each append.

use async_trait::async_trait;
use sqlx::Transaction;
use uuid::Uuid;

use super::{
    super::commit::commit_together,
    Db, SqlStore,
    rows::{get, next_seq},
};
use crate::{
    domain::{
        event::{EventData, Segment},
        ids::{Epoch, Millis, RunId, Seq, WorkspaceId},
        tool::{LateResult, ToolCall},
    },
    failpoint::{Point, hit},
    mutant::{self, Mutant},
    store::{Append, Committed, Locks, Log, Result, StopRequest, StoreError},
};

/// How many shares of a batch are tried in vain before the rest is left for later. Each may have waited for a lock.
const MOST_LOCKED: u32 = 8;

/// What one append of a batch led to.
pub(crate) struct Outcome {
    pub(crate) run_id: Uuid,
    pub(crate) at: Millis,
    /// Segments of the chat's next run, which took over the slot.
    pub(crate) caused: Vec<Segment>,
    pub(crate) wake: Vec<String>,
    /// It was not written: this stop comes before the end in it.
    pub(crate) stop: Option<StopRequest>,
}

#[async_trait]
impl Log for SqlStore {
    async fn commit(&self, appends: &[Append]) -> Vec<Result<Committed>> {
        commit(self, appends, Locks::Await).await
    }

    async fn commit_at_once(&self, appends: &[Append]) -> Vec<Result<Committed>> {
        commit(self, appends, Locks::Refuse).await
    }

    async fn record_late(&self, workspace: WorkspaceId, call: &ToolCall, late: &LateResult) -> Result<bool> {
        super::late::record_late(self, workspace, call, late).await
    }
}

/// What is part of the commit itself, in all but one mutant.
async fn delete_jobs_of_ended<'a>(
    store: &SqlStore,
    written: impl Iterator<Item = (&'a Append, &'a Result<Committed>)>,
) {
    for (append, _) in written.filter(|(append, result)| append.ending.is_some() && result.is_ok()) {
        hit(Point::BetweenEndAndJob);
        let delete = sqlx::query("delete from jobs where run_id = $1").bind(append.run_id.0);
        if let Err(error) = delete.execute(store.writer()).await {
            tracing::warn!(%error, "a job is left behind");
        }
    }
}

async fn commit(store: &SqlStore, appends: &[Append], locks: Locks) -> Vec<Result<Committed>> {
    let batch: Vec<&Append> = appends.iter().collect();
    let mut results = match commit_together(store, &batch, locks).await {
        Ok(outcomes) => spread(&batch, outcomes),
        Err(error) if batch.len() == 1 || (error.is_transient() && !error.is_about_locks()) => {
            vec![Err(error); batch.len()]
        }
        // One chat that somebody has locked must not fail the others.
        Err(error) if error.is_about_locks() => endings_apart(store, batch, locks).await,
        // Neither must one bad share.
        Err(_) => one_by_one(store, &batch, locks).await,
    };
    if mutant::is(Mutant::FinalizeAndJobApart) {
        delete_jobs_of_ended(store, appends.iter().zip(&results)).await;
    }
    for (append, result) in appends.iter().zip(&mut results) {
        if matches!(result, Err(StoreError::LeaseLost)) {
            match committed_before(store, append).await {
                Ok(None) => {}
                Ok(Some(committed)) => *result = Ok(committed),
                Err(error) => *result = Err(error),
            }
        }
    }
    results
}

/// Together what locks no chat, then the others one by one.
async fn endings_apart(store: &SqlStore, batch: Vec<&Append>, locks: Locks) -> Vec<Result<Committed>> {
    let (endings, others): (Vec<_>, Vec<_>) =
        batch.iter().copied().partition(|append| append.ending.is_some());
    let mut of_others = match commit_together(store, &others, locks).await {
        Ok(outcomes) => spread(&others, outcomes),
        Err(_) => one_by_one(store, &others, locks).await,
    }
    .into_iter();
    let mut of_endings = one_by_one(store, &endings, locks).await.into_iter();
    let in_turn = batch.iter().map(|append| match append.ending {
        Some(_) => of_endings.next(),
        None => of_others.next(),
    });
    in_turn.map(|result| result.unwrap_or(Err(StoreError::LeaseLost))).collect()
}

async fn one_by_one(store: &SqlStore, batch: &[&Append], locks: Locks) -> Vec<Result<Committed>> {
    let mut results: Vec<Result<Committed>> = Vec::with_capacity(batch.len());
    let mut locked = 0;
    for append in batch {
        // Where everything is locked, nothing is gained by finding that out for each, and the caller waits.
        if locked == MOST_LOCKED {
            results.push(results[results.len() - 1].clone());
            continue;
        }
        match commit_together(store, &[append], locks).await {
            Ok(outcomes) => results.extend(spread(&[append], outcomes)),
            Err(error) => {
                locked += u32::from(error.is_about_locks());
                results.push(Err(error));
            }
        }
    }
    results
}

/// The position is taken: by this very append, if the answer to its first commit was lost. Nobody else writes with its
/// epoch. What it caused then is found by those who look for it.
async fn committed_before(store: &SqlStore, append: &Append) -> Result<Option<Committed>> {
    let row = sqlx::query(
        "select created_at from run_events where workspace_id = $1 and run_id = $2 and first_seq = $3 \
         and last_seq = $4 and epoch = $5 and events = $6",
    )
    .bind(append.workspace_id.0)
    .bind(append.run_id.0)
    .bind(append.first_seq)
    .bind(append.last_seq())
    .bind(append.epoch)
    .bind(serde_json::to_string(&append.events).expect("events are plain JSON"))
    .fetch_optional(store.reserved())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let segment = segment_of(append, get(&row, "created_at")?);
    Ok(Some(Committed { segment, caused: vec![], wake: vec![] }))
}

fn segment_of(append: &Append, at: Millis) -> Segment {
    let (first, last) = (append.first_seq, append.last_seq());
    Segment { run_id: append.run_id, first, last, at, events: append.events.clone() }
}

/// The outcomes in the order of the appends; one that is missing lost its lease.
pub(crate) fn spread(batch: &[&Append], mut outcomes: Vec<Outcome>) -> Vec<Result<Committed>> {
    batch
        .iter()
        .map(|append| {
            let place = outcomes.iter().position(|outcome| outcome.run_id == append.run_id.0);
            let outcome = outcomes.swap_remove(place.ok_or(StoreError::LeaseLost)?);
            if let Some(stop) = outcome.stop {
                return Err(StoreError::Stopping(stop));
            }
            Ok(Committed {
                segment: segment_of(append, outcome.at),
                caused: outcome.caused,
                wake: outcome.wake,
            })
        })
        .collect()
}

/// Appends one event behind the last one there is. `LeaseLost` when somebody else takes that position.
pub(super) async fn append_one(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    run_id: RunId,
    epoch: Epoch,
    event: &EventData,
) -> Result<Segment> {
    let events = vec![event.of_run()];
    let row = sqlx::query(concat!(
        "insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events) \
         select $1, $2, next.seq, next.seq, $3, $4 from (select ",
        next_seq!("$2"),
        " as seq) as next where true on conflict (run_id, first_seq) do nothing returning first_seq, created_at"
    ))
    .bind(workspace.0)
    .bind(run_id.0)
    .bind(epoch)
    .bind(serde_json::to_string(&events).expect("events are plain JSON"))
    .fetch_optional(&mut **tx)
    .await?;
    let row = row.ok_or(StoreError::LeaseLost)?;
    let first: Seq = get(&row, "first_seq")?;
    Ok(Segment { run_id, first, last: first, at: get(&row, "created_at")?, events })
}
