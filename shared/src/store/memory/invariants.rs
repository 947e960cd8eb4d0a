//! What no path may leave behind, asked of the rows themselves.

use std::fmt::Debug;

use super::state::{KeyRow, RunRow, State};
use crate::domain::{
    event::{Event, RUN_FINISHED},
    tool::{CallState, ToolCall},
    transition::RunStatus,
};

impl State {
    /// Every row of every table that a run has a part in: what must be equal when nothing was changed.
    pub fn everything(&self) -> Vec<String> {
        let mut rows = vec![];
        let mut add = |table: &str, row: &dyn Debug| rows.push(format!("{table}: {row:?}"));
        self.chats.values().for_each(|row| add("chats", row));
        self.runs.values().for_each(|row| add("runs", row));
        self.messages.values().for_each(|row| add("messages", row));
        self.jobs.iter().for_each(|row| add("jobs", &row));
        self.log.values().flatten().for_each(|row| add("run_events", row));
        self.steps.values().flatten().for_each(|row| add("steps", row));
        self.calls.values().flat_map(|calls| calls.values()).for_each(|row| add("tool_calls", row));
        self.idempotency.iter().for_each(|row| add("idempotency", &row));
        rows
    }

    /// The names of the forbidden states that the rows are in, with the run or chat that shows it.
    pub fn forbidden(&self) -> Vec<String> {
        let mut found = vec![];
        for row in self.runs.values() {
            found.extend(self.forbidden_of(row).into_iter().map(|name| format!("{name}: {}", row.run.id)));
        }
        for run_id in self.jobs.keys().filter(|run_id| !self.runs.contains_key(run_id)) {
            found.push(format!("a job of a run that waits for no worker: {run_id}"));
        }
        let is_empty = |row: &&KeyRow| row.answer.is_none() && row.stop_requested_at.is_none();
        for key in self.idempotency.values().filter(is_empty) {
            found.push(format!("an idempotency key without its answer: {key:?}"));
        }
        found
    }

    fn forbidden_of(&self, row: &RunRow) -> Vec<&'static str> {
        let run = &row.run;
        let job = self.jobs.get(&run.id);
        let waits_for_worker = matches!(run.status, RunStatus::Pending | RunStatus::Running);
        let others = || self.runs_of(run.chat_id).filter(|other| other.run.id != run.id);
        let is_over = run.status.is_terminal();
        let messages: Vec<_> = self.messages.values().filter(|m| m.run_id == Some(run.id)).collect();
        let log = self.log.get(&run.id).map_or(&[][..], |rows| &rows[..]);
        let events = || log.iter().flat_map(|row| &row.segment.events);
        let count = |kind: &str| events().filter(|event| event.kind == kind).count();
        let kind_of = |event: Option<&Event>, kind: &str| event.is_some_and(|event| event.kind == kind);
        let steps = self.steps.get(&run.id).map_or(&[][..], |steps| &steps[..]);
        let calls: Vec<&ToolCall> =
            self.calls.get(&run.id).into_iter().flat_map(|calls| calls.values()).collect();
        let usage =
            steps.iter().fold(<_>::default(), |sum: crate::domain::run::Usage, step| sum.plus(step.usage));
        let checks = [
            ("an active run without a job", waits_for_worker && job.is_none()),
            (
                "a job of a run that waits for no worker",
                job.is_some_and(|job| {
                    !waits_for_worker || job.worker_id.is_none() != (run.status == RunStatus::Pending)
                }),
            ),
            (
                "two active runs in a chat",
                run.status.holds_slot() && others().any(|other| other.run.status.holds_slot()),
            ),
            (
                "a run queued for a slot that is free",
                run.status == RunStatus::Queued && !others().any(|other| other.run.status.holds_slot()),
            ),
            (
                "an answer that is not where its run is",
                self.messages
                    .get(&run.assistant_message_id)
                    .is_none_or(|message| message.status != Some(run.status.message_status())),
            ),
            (
                "a run without its two messages",
                messages.iter().filter(|m| m.turn == run.turn && m.chat_id == run.chat_id).count() != 2,
            ),
            (
                "a log that is not dense from 1",
                log.iter()
                    .scan(0, |last, row| {
                        Some(std::mem::replace(last, row.segment.last) + 1 != row.segment.first)
                    })
                    .any(|gap| gap),
            ),
            (
                "a segment that does not hold as many events as it has numbers",
                log.iter().any(|row| !row.segment.is_consistent()),
            ),
            (
                "a run that is over without one end, or one with an end that is not over",
                count(RUN_FINISHED) != usize::from(is_over),
            ),
            ("an event behind the end", count(RUN_FINISHED) > 0 && !kind_of(events().last(), RUN_FINISHED)),
            ("a run that does not begin with its admission", !kind_of(events().next(), "run.queued")),
            ("an attempt that is not in the log", run.attempts as usize != count("run.claimed")),
            ("steps that are not dense", !(1..).zip(steps).all(|(number, step)| step.step == number)),
            (
                "counters that are not those of the steps",
                run.step_count as usize != steps.len() || run.usage != usage,
            ),
            ("a step that is not in the log", steps.iter().any(|step| step.last_seq > self.last_seq(run.id))),
            (
                "an open call of a run that is over",
                is_over && calls.iter().any(|call| !call.state.is_settled()),
            ),
            ("a call whose times do not fit its state", calls.iter().any(|call| !has_fitting_times(call))),
            (
                "a late result of a call that was answered in time or never sent",
                calls.iter().filter(|call| call.late.is_some()).any(|call| {
                    !matches!(call.state, CallState::Unknown | CallState::Cancelled)
                        || call.dispatched_at.is_none()
                }),
            ),
            ("an end without its time, or a time without an end", run.finished_at.is_some() != is_over),
        ];
        checks.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
    }
}

fn has_fitting_times(call: &ToolCall) -> bool {
    let was_dispatched =
        matches!(call.state, CallState::Dispatched | CallState::Succeeded | CallState::Unknown);
    call.settled_at.is_some() == call.state.is_settled() && (!was_dispatched || call.dispatched_at.is_some())
}
