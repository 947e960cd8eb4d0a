//! The group commit: each share whole or not at all.

use async_trait::async_trait;

use super::{
    MemoryStore,
    state::{LogRow, State},
};
use crate::{
    domain::{
        event::{EventData, Segment},
        ids::{ChatId, WorkspaceId},
        run::Usage,
        step::Step,
        tool::{CallState, LateResult, ToolCall},
        transition::{MessageStatus, RunStatus},
    },
    mutant::{self, Mutant},
    store::{Append, Committed, Log, Result, StopRequest, StoreError},
};

#[async_trait]
impl Log for MemoryStore {
    async fn commit(&self, appends: &[Append]) -> Vec<Result<Committed>> {
        appends.iter().map(|append| self.transact(|state| state.commit(append))).collect()
    }

    async fn record_late(&self, workspace: WorkspaceId, call: &ToolCall, late: &LateResult) -> Result<bool> {
        self.transact(|state| Ok(state.record_late(workspace, call, late)))
    }
}

impl State {
    /// The share of one run, or the answer that it was given before.
    pub(super) fn commit(&mut self, append: &Append) -> Result<Committed> {
        match self.commit_once(append) {
            Err(StoreError::LeaseLost) => self.committed_before(append).ok_or(StoreError::LeaseLost),
            result => result,
        }
    }

    pub(super) fn commit_once(&mut self, append: &Append) -> Result<Committed> {
        self.check(append)?;
        let segment = self.append(append.run_id, append.epoch, append.events.clone());
        if !append.steps.is_empty() || append.ending.is_some() {
            self.update_run(append)?;
        }
        let now = self.now;
        let steps = self.steps.entry(append.run_id).or_default();
        steps.extend(append.steps.iter().map(|step| Step {
            // A step that begins in this very append has its time.
            started_at: if step.started_at > 0 { step.started_at } else { now },
            finished_at: now,
            ..step.clone()
        }));
        for call in &append.calls {
            self.write_call(call);
        }
        let mut committed = Committed { segment, caused: vec![], wake: vec![] };
        if append.ending.is_some() && !mutant::is(Mutant::FinalizeAndJobApart) {
            self.jobs.remove(&append.run_id);
            self.promote_next(append.chat_id, &mut committed);
        }
        Ok(committed)
    }

    /// Everything that the append expects. Nothing is written before.
    fn check(&self, append: &Append) -> Result<()> {
        let row = self.runs.get(&append.run_id).filter(|row| row.run.workspace_id == append.workspace_id);
        let row = row.ok_or(StoreError::LeaseLost)?;
        if let Some(stop) = StopRequest::of(&row.run).filter(|_| !row.run.status.is_terminal())
            && append.yields_to_stop()
        {
            return Err(StoreError::Stopping(stop));
        }
        // The fence: an append goes right behind the last event there is.
        if append.first_seq != self.last_seq(append.run_id) + 1 && !mutant::is(Mutant::NoExpectedPosition) {
            return Err(StoreError::LeaseLost);
        }
        if (!append.steps.is_empty() || append.ending.is_some()) && !mutant::is(Mutant::NoStatusCondition) {
            let message = self.messages.get(&append.assistant_message_id);
            let is_streaming =
                message.is_some_and(|message| message.status == Some(MessageStatus::Streaming));
            if row.run.status.is_terminal() || !is_streaming {
                return Err(StoreError::LeaseLost);
            }
        }
        let known_steps = self.steps.get(&append.run_id);
        let is_saved =
            |step: &Step| known_steps.is_some_and(|known| known.iter().any(|k| k.step == step.step));
        if append.steps.iter().any(is_saved) {
            return Err(StoreError::Conflict("steps_pkey".to_owned()));
        }
        let known_calls = self.calls.get(&append.run_id);
        let is_settled = |call: &ToolCall| {
            let known = known_calls.and_then(|calls| calls.get(&(call.step, call.call)));
            known.is_some_and(|known| known.state.is_settled())
        };
        if append.calls.iter().any(is_settled) {
            return Err(StoreError::LeaseLost);
        }
        let has_step = |call: &ToolCall| {
            append.steps.iter().chain(known_steps.into_iter().flatten()).any(|s| s.step == call.step)
        };
        if !append.calls.iter().all(has_step) {
            return Err(StoreError::Conflict("tool_calls_workspace_id_run_id_step_fkey".to_owned()));
        }
        Ok(())
    }

    fn update_run(&mut self, append: &Append) -> Result<()> {
        let now = self.now;
        let usage = append.steps.iter().fold(Usage::default(), |sum, step| sum.plus(step.usage));
        let run = &mut self.run_row(append.run_id)?.run;
        run.step_count += append.steps.len() as u32;
        run.usage = run.usage.plus(usage);
        if let Some(ending) = &append.ending {
            run.status = ending.status();
            run.reason = Some(ending.reason);
            run.error.clone_from(&ending.error);
            run.finished_at = Some(now);
            if let Some(requested_at) = append.stop_requested_at {
                run.stop_requested_at.get_or_insert(requested_at);
                run.stop_reason.get_or_insert(ending.reason);
            }
        }
        let message = self.messages.get_mut(&append.assistant_message_id).ok_or(StoreError::LeaseLost)?;
        message.updated_at = now;
        if let Some(ending) = &append.ending {
            message.status = Some(ending.status().message_status());
        }
        Ok(())
    }

    fn write_call(&mut self, call: &ToolCall) {
        let now = self.now;
        if call.state == CallState::Dispatched {
            self.dispatched.insert((call.run_id, call.step, call.call), call.epoch);
        }
        let calls = self.calls.entry(call.run_id).or_default();
        let known = calls.get(&(call.step, call.call));
        let row = ToolCall {
            planned_at: Some(known.and_then(|known| known.planned_at).unwrap_or(now)),
            dispatched_at: match (call.state, known.and_then(|known| known.dispatched_at)) {
                (CallState::Dispatched, _) | (CallState::Succeeded, None) => Some(now),
                (_, known) => known,
            },
            settled_at: call.state.is_settled().then_some(now),
            ..call.clone()
        };
        // What a call is never changes; only how far it came.
        let row = match known {
            Some(known) => ToolCall {
                call_id: known.call_id.clone(),
                name: known.name.clone(),
                arguments: known.arguments.clone(),
                effect: known.effect,
                idempotency_key: known.idempotency_key.clone(),
                ..row
            },
            None => row,
        };
        calls.insert((call.step, call.call), row);
    }

    fn record_late(&mut self, workspace: WorkspaceId, call: &ToolCall, late: &LateResult) -> bool {
        let now = self.now;
        if self.run(workspace, call.run_id).is_err() {
            return false;
        }
        let is_sender = self
            .dispatched
            .get(&(call.run_id, call.step, call.call))
            .is_some_and(|epoch| *epoch == call.epoch);
        let row = self.calls.get_mut(&call.run_id).and_then(|calls| calls.get_mut(&(call.step, call.call)));
        let Some(row) = row.filter(|row| {
            is_sender && matches!(row.state, CallState::Unknown | CallState::Cancelled) && row.late.is_none()
        }) else {
            return false;
        };
        row.late = Some(LateResult { at: now, ..late.clone() });
        true
    }

    /// The chat's next queued run takes the slot if it has become free.
    fn promote_next(&mut self, chat_id: ChatId, committed: &mut Committed) {
        if self.slot_holder(chat_id).is_some() {
            return;
        }
        let queued = self.runs_of(chat_id).filter(|row| row.run.status == RunStatus::Queued);
        let Some(next) = queued.min_by_key(|row| row.run.turn) else { return };
        let (run_id, queue, priority) = (next.run.id, next.queue.clone(), next.priority);
        if let Some(row) = self.runs.get_mut(&run_id) {
            row.run.status = RunStatus::Pending;
        }
        self.insert_job(run_id, queue.clone(), priority);
        let event = EventData::RunQueued { status: RunStatus::Pending, position: None, run_at: None };
        committed.caused.push(self.append_one(run_id, 0, &event));
        committed.wake.push(queue);
    }

    /// The position is taken: by this very append, if the answer to its first commit was lost.
    fn committed_before(&self, append: &Append) -> Option<Committed> {
        let rows = self.log.get(&append.run_id)?;
        let is_same = |row: &&LogRow| {
            row.epoch == append.epoch
                && row.segment.first == append.first_seq
                && row.segment.last == append.last_seq()
                && serde_json::to_string(&row.segment.events).ok()
                    == serde_json::to_string(&append.events).ok()
        };
        let row = rows.iter().rev().find(is_same)?;
        let segment: Segment = row.segment.clone();
        Some(Committed { segment, caused: vec![], wake: vec![] })
    }
}
