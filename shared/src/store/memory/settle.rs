//! Endings that no worker makes: the stop of a run that nobody holds, the deletion of its chat, the reaper's verdict.

use super::state::State;
use crate::{
    domain::{
        ids::{ChatId, Epoch, RunId, WorkspaceId},
        replay::Replay,
        run::{Ending, Run},
        settle::settle,
        transition::Reason,
    },
    mutant,
    store::{Append, Committed, LogCursor, Result, StopOutcome, StoreError},
};

impl State {
    pub(super) fn stop(
        &mut self,
        workspace: WorkspaceId,
        run_id: RunId,
        reason: Reason,
    ) -> Result<StopOutcome> {
        let run = self.run(workspace, run_id)?;
        if run.status.is_terminal() && !mutant::is("no_status_condition") {
            return Ok(StopOutcome::AlreadyOver(run));
        }
        let now = self.now;
        if run.worker_id.is_some_and(|worker| self.is_alive(worker)) {
            let row = self.run_row(run_id)?;
            row.run.stop_requested_at.get_or_insert(now);
            row.run.stop_reason.get_or_insert(reason);
            return Ok(StopOutcome::Requested(self.run(workspace, run_id)?));
        }
        let epoch = self.jobs.get(&run_id).map_or(0, |job| job.epoch + 1);
        // The first wish gave the reason, even if its addressee died before it could follow.
        let ending = Ending { reason: run.stop_reason.unwrap_or(reason), error: None };
        let ended = self.end_run(&run, &ending, epoch)?;
        let segments = [vec![ended.segment], ended.caused].concat();
        Ok(StopOutcome::Ended { run: self.run(workspace, run_id)?, segments, wake: ended.wake })
    }

    pub(super) fn delete_chat(
        &mut self,
        workspace: WorkspaceId,
        chat_id: ChatId,
    ) -> Result<Vec<StopOutcome>> {
        self.live_chat(workspace, chat_id)?;
        // Those that wait for the slot first: the end of its holder would promote them.
        let unfinished = self.runs_of(chat_id).filter(|row| !row.run.status.is_terminal());
        let mut unfinished: Vec<_> =
            unfinished.map(|row| (row.run.status.holds_slot(), row.run.turn, row.run.id)).collect();
        unfinished.sort_unstable();
        self.chats.get_mut(&chat_id).ok_or(StoreError::NotFound)?.is_deleted = true;
        unfinished.into_iter().map(|(_, _, id)| self.stop(workspace, id, Reason::ChatDeleted)).collect()
    }

    /// Ends a run that no live worker holds.
    pub(super) fn end_run(&mut self, run: &Run, ending: &Ending, epoch: Epoch) -> Result<Committed> {
        let replay = self.replay(run);
        let (events, settlement) = settle(run.id, &replay, run.usage, ending, epoch);
        self.commit_once(&Append {
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
        })
    }

    /// The run's answer up to the last event of its log.
    fn replay(&self, run: &Run) -> Replay {
        let steps = self.steps.get(&run.id).into_iter().flatten().cloned();
        let calls = self.calls.get(&run.id).into_iter().flat_map(|calls| calls.values().cloned());
        let mut replay = Replay::from_rows(run.id, steps, calls);
        let cursor = LogCursor { workspace_id: run.workspace_id, run_id: run.id, after: replay.position() };
        for row in self.behind(cursor) {
            replay.apply_segment(&row.segment);
        }
        replay
    }
}
