//! Endings that no worker makes: the stop of a run that nobody holds, the deletion of its chat, the reaper's verdict.

use super::{
    admission::IDEMPOTENCY_KEPT_MS,
    state::{KeyRow, State},
};
use crate::{
    domain::{
        ids::{ChatId, Epoch, RunId, WorkspaceId},
        replay::Replay,
        run::{Ending, Run},
        settle::{Stop, settle},
        transition::{Reason, RunStatus},
    },
    mutant::{self, Mutant},
    store::{Append, Committed, KeyName, KeyStop, LogCursor, Result, StopOutcome, StoreError},
};

impl State {
    pub(super) fn stop(
        &mut self,
        workspace: WorkspaceId,
        run_id: RunId,
        reason: Reason,
    ) -> Result<StopOutcome> {
        let run = self.run(workspace, run_id)?;
        if run.status.is_terminal() && !mutant::is(Mutant::NoStatusCondition) {
            return Ok(StopOutcome::AlreadyOver(run));
        }
        let now = self.now;
        let is_overdue = run.stop_requested_at.is_some_and(|at| at <= now - self.stop_grace_ms);
        if run.worker_id.is_some_and(|worker| self.is_alive(worker)) && !is_overdue {
            let row = self.run_row(run_id)?;
            if row.run.stop_requested_at.is_none() {
                (row.run.stop_requested_at, row.run.stop_reason) = (Some(now), Some(reason));
            }
            return Ok(StopOutcome::Requested(self.run(workspace, run_id)?));
        }
        let epoch = self.jobs.get(&run_id).map_or(0, |job| job.epoch + 1);
        // The first wish gave the reason, even if its addressee died before it could follow.
        let ending = Ending { reason: run.stop_reason.unwrap_or(reason), error: None };
        let stop = Stop { requested_at: run.stop_requested_at.unwrap_or(now), is_delivered: false };
        let ended = self.end_run(&run, &ending, Some(stop), epoch)?;
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

    /// Makes way in the chat of the run, if that is the one that holds the slot.
    pub(super) fn supersede(&mut self, workspace: WorkspaceId, run_id: RunId) -> Result<Vec<StopOutcome>> {
        let chat_id = self.run(workspace, run_id)?.chat_id;
        if self.slot_holder(chat_id) != Some(run_id) {
            return Ok(vec![]);
        }
        let waiting = self.runs_of(chat_id).filter(|row| row.run.status == RunStatus::Queued);
        let mut waiting: Vec<_> = waiting.map(|row| (row.run.turn, row.run.id)).collect();
        waiting.sort_unstable();
        // Those that wait for the slot first: the end of its holder would promote them.
        let all = waiting.into_iter().map(|(_, id)| id).chain([run_id]);
        all.map(|id| self.stop(workspace, id, Reason::Superseded)).collect()
    }

    /// Stops the run that was submitted with this key, or leaves a note for it.
    pub(super) fn stop_by_key(&mut self, workspace: WorkspaceId, key: KeyName<'_>) -> Result<KeyStop> {
        let (now, expires_at) = (self.now, self.now + IDEMPOTENCY_KEPT_MS);
        let place = (workspace, key.caller.to_owned(), key.route.to_owned(), key.key.to_owned());
        let anew = || KeyRow { fingerprint: vec![], answer: None, stop_requested_at: Some(now), expires_at };
        let known = self.idempotency.entry(place).or_insert_with(anew);
        if known.expires_at <= now {
            *known = anew();
        }
        let requested_at = *known.stop_requested_at.get_or_insert(now);
        match known.answer {
            Some(answer) => self.stop(workspace, answer.run_id, Reason::Stop).map(KeyStop::Known),
            None => Ok(KeyStop::Noted { requested_at, expires_at: known.expires_at }),
        }
    }

    /// Ends a run. Should a live worker hold it, it finds its next position taken.
    pub(super) fn end_run(
        &mut self,
        run: &Run,
        ending: &Ending,
        stop: Option<Stop>,
        epoch: Epoch,
    ) -> Result<Committed> {
        let replay = self.replay(run);
        let (events, settlement) = settle(run.id, &replay, run.usage, ending, stop, epoch);
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
            stop_requested_at: stop.map(|stop| stop.requested_at),
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
