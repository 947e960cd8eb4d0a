//! Runs as readers see them.

use async_trait::async_trait;

use super::{
    MemoryStore,
    state::{RunRow, State},
};
use crate::{
    domain::{
        ids::{ChatId, RunId, WorkspaceId},
        run::{BlockedBy, Run},
        transition::{Reason, RunStatus},
    },
    store::{
        Ancestor, Fresh, KeyName, KeyStop, KeyedRun, Listed, LogCursor, Page, Result, RunFilter, RunInput,
        RunRecord, Runs, StopOutcome, StoreError,
    },
};

#[async_trait]
impl Runs for MemoryStore {
    async fn run(&self, workspace: WorkspaceId, run: RunId) -> Result<Run> {
        self.transact(|state| state.live_run(workspace, run).map(|row| state.as_read(row)))
    }

    async fn input(&self, workspace: WorkspaceId, run: RunId) -> Result<RunInput> {
        self.transact(|state| {
            let row = state.known_run(workspace, run)?;
            let question = state.messages.get(&row.run.user_message_id).ok_or(StoreError::NotFound)?;
            Ok(RunInput {
                parts: question.parts.clone(),
                asked: row.request.as_ref().map(|request| request.asked.clone()),
                previous_run_id: row.request.as_ref().and_then(|request| request.previous_run_id),
                replaces_turn: question.replaces_turn,
            })
        })
    }

    async fn ancestors(&self, workspace: WorkspaceId, run: RunId, limit: u32) -> Result<Vec<Ancestor>> {
        self.transact(|state| {
            let mut line = vec![];
            let mut next = Some(run);
            while let Some(run_id) = next.filter(|_| line.len() < limit as usize) {
                let Ok(row) = state.known_run(workspace, run_id) else { break };
                let question = state.messages.get(&row.run.user_message_id).ok_or(StoreError::NotFound)?;
                next = row.request.as_ref().and_then(|request| request.previous_run_id);
                line.push(Ancestor {
                    run_id,
                    chat_id: row.run.chat_id,
                    turn: row.run.turn,
                    status: row.run.status,
                    previous_run_id: next,
                    parts: question.parts.clone(),
                });
            }
            Ok(line)
        })
    }

    async fn run_of_request(
        &self,
        workspace: WorkspaceId,
        fingerprint: &[u8],
        fresh: Fresh,
    ) -> Result<Option<Run>> {
        self.transact(|state| {
            let newest = state.runs.values().rev().find(|row| {
                row.run.workspace_id == workspace
                    && !row.is_deleted
                    && row.request.as_ref().is_some_and(|request| request.fingerprint == fingerprint)
                    && row.run.created_at > state.now - fresh.made_within_ms
                    && row.run.finished_at.is_none_or(|at| at > state.now - fresh.over_within_ms)
            });
            Ok(newest.map(|row| state.as_read(row)))
        })
    }

    async fn run_of_key(&self, workspace: WorkspaceId, key: KeyName<'_>) -> Result<Option<KeyedRun>> {
        self.transact(|state| {
            let place = (workspace, key.caller.to_owned(), key.route.to_owned(), key.key.to_owned());
            let known = state.idempotency.get(&place).filter(|known| known.expires_at > state.now);
            Ok(known.and_then(|known| {
                let fingerprint = known.fingerprint.clone();
                known.answer.map(|answer| KeyedRun { run_id: answer.run_id, fingerprint })
            }))
        })
    }

    async fn delete_run(&self, workspace: WorkspaceId, run: RunId) -> Result<()> {
        self.transact(|state| {
            state.live_run(workspace, run)?;
            state.run_row(run)?.is_deleted = true;
            Ok(())
        })
    }

    async fn list_runs(
        &self,
        workspace: WorkspaceId,
        filter: &RunFilter,
        page: Page<RunId>,
    ) -> Result<Listed<Run, RunId>> {
        self.transact(|state| {
            let runs = state.runs.values().rev().filter(|row| {
                row.run.workspace_id == workspace
                    && !row.is_deleted
                    && page.after.is_none_or(|after| row.run.id < after)
                    && lets_through(filter, &row.run)
            });
            let runs = runs.take(page.fetch() as usize).map(|row| state.as_read(row)).collect();
            Ok(Listed::cut(runs, &page, |run| run.id))
        })
    }

    async fn latest_run(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Option<Run>> {
        self.transact(|state| {
            state.live_chat(workspace, chat)?;
            let known = || state.runs_of(chat).filter(|row| !row.is_deleted);
            let begun = known().filter(|row| row.run.status.holds_slot() || row.run.started_at.is_some());
            let begun = begun.max_by_key(|row| row.run.turn);
            let latest = begun.or_else(|| known().max_by_key(|row| row.run.turn));
            Ok(latest.map(|row| state.as_read(row)))
        })
    }

    async fn blocked_by(&self, run: &Run) -> Result<Option<BlockedBy>> {
        self.transact(|state| {
            Ok(match run.status {
                RunStatus::Scheduled => run.run_at.map(|run_at| BlockedBy::RunAt { run_at }),
                RunStatus::Queued => state.slot_holder(run.chat_id).map(|run_id| BlockedBy::Run { run_id }),
                RunStatus::Pending => state.blocked_job(run.id),
                RunStatus::Waiting => Some(BlockedBy::Wait),
                RunStatus::Running | RunStatus::Succeeded | RunStatus::Failed | RunStatus::Aborted => None,
            })
        })
    }

    async fn records(&self, workspace: WorkspaceId, runs: &[RunId]) -> Result<Vec<RunRecord>> {
        self.transact(|state| Ok(runs.iter().map(|id| state.record(workspace, *id)).collect()))
    }

    async fn stop_run(&self, workspace: WorkspaceId, run: RunId) -> Result<StopOutcome> {
        self.transact(|state| state.stop(workspace, run, Reason::Stop))
    }

    async fn stop_by_key(&self, workspace: WorkspaceId, key: KeyName<'_>) -> Result<KeyStop> {
        self.transact(|state| state.stop_by_key(workspace, key))
    }

    async fn supersede(&self, workspace: WorkspaceId, run: RunId) -> Result<Vec<StopOutcome>> {
        self.transact(|state| state.supersede(workspace, run))
    }
}

fn lets_through(filter: &RunFilter, run: &Run) -> bool {
    (filter.status.is_empty() || filter.status.contains(&run.status))
        && filter.chat_id.is_none_or(|chat| run.chat_id == chat)
        && filter.agent.as_ref().is_none_or(|agent| run.agent == *agent)
        && filter.tag.as_ref().is_none_or(|tag| run.tags.contains(tag))
        && filter.created_after.is_none_or(|after| run.created_at > after)
        && filter.created_before.is_none_or(|before| run.created_at < before)
}

impl State {
    fn known_run(&self, workspace: WorkspaceId, run_id: RunId) -> Result<&RunRow> {
        let row = self.runs.get(&run_id).filter(|row| row.run.workspace_id == workspace);
        row.ok_or(StoreError::NotFound)
    }

    fn live_run(&self, workspace: WorkspaceId, run_id: RunId) -> Result<&RunRow> {
        let row = self.known_run(workspace, run_id)?;
        if row.is_deleted { Err(StoreError::NotFound) } else { Ok(row) }
    }

    fn blocked_job(&self, run_id: RunId) -> Option<BlockedBy> {
        if let Some(job) = self.jobs.get(&run_id).filter(|job| job.run_at > self.now) {
            return Some(BlockedBy::RunAt { run_at: job.run_at });
        }
        let live = self.workers.iter().filter(|(_, lease)| !lease.draining && lease.expires_at > self.now);
        let live: Vec<_> = live.collect();
        let held = |id| self.jobs.values().filter(|job| job.worker_id == Some(id)).count();
        if live.is_empty() {
            Some(BlockedBy::NoWorker)
        } else if live.iter().all(|(id, lease)| held(**id) >= lease.slots as usize) {
            Some(BlockedBy::Workers)
        } else {
            None
        }
    }

    fn record(&self, workspace: WorkspaceId, run_id: RunId) -> RunRecord {
        let mut record = RunRecord { run_id, steps: vec![], calls: vec![], tail: vec![] };
        if self.runs.get(&run_id).is_none_or(|row| row.run.workspace_id != workspace) {
            return record;
        }
        record.steps.extend(self.steps.get(&run_id).into_iter().flatten().cloned());
        record.calls.extend(self.calls.get(&run_id).into_iter().flat_map(|calls| calls.values().cloned()));
        let after = record.steps.last().map_or(0, |step| step.last_seq);
        let cursor = LogCursor { workspace_id: workspace, run_id, after };
        record.tail.extend(self.behind(cursor).map(|row| row.segment.clone()));
        record
    }
}
