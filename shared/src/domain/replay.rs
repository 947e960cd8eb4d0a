//! The one reconstruction: saved steps, ledger and log in; messages, parts and model history out.
//!
//! Every reader goes through [`Replay`]: the chat page, the model's history, a takeover, the tail's views.
//! Rows and events tell the same story, so it does not matter how much of it comes from which: what an event
//! says that a row already said changes nothing.

mod model;

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    arguments,
    event::{Event, EventData, Segment, Wait},
    ids::{Millis, RunId, Seq},
    message::Part,
    run::{RunError, Usage},
    step::{FinishReason, OutputPart, Step, push_output},
    tool::{CallState, Effect, ToolCall, idempotency_key},
    transition::{Reason, RunStatus},
};

pub use model::{CallForModel, ModelMessage};

/// A model call that has begun and is not saved.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenStep {
    pub step: u32,
    pub attempt: u32,
    pub model: String,
    pub started_at: Millis,
    /// The number of the event that began this attempt: a restart drops from here on.
    pub first_seq: Seq,
    pub output: Vec<OutputPart>,
}

/// How the run ended, by its last event.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub status: RunStatus,
    pub reason: Reason,
    pub error: Option<RunError>,
    pub usage: Usage,
}

#[derive(Clone, Debug, PartialEq)]
struct SavedStep {
    attempt: u32,
    output: Vec<OutputPart>,
    finish_reason: FinishReason,
}

/// The state of a run's answer at some position of its log.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    run_id: RunId,
    steps: BTreeMap<u32, SavedStep>,
    calls: BTreeMap<(u32, u32), ToolCall>,
    open: Option<OpenStep>,
    end: Option<End>,
    position: Seq,
}

impl Replay {
    /// From nothing: the whole log is to be applied.
    pub fn new(run_id: RunId) -> Self {
        Self::from_rows(run_id, [], [])
    }

    /// From saved rows: the events behind [`Replay::position`] are to be applied.
    pub fn from_rows(
        run_id: RunId,
        steps: impl IntoIterator<Item = Step>,
        calls: impl IntoIterator<Item = ToolCall>,
    ) -> Self {
        let mut position = 0;
        let steps = steps
            .into_iter()
            .map(|row| {
                position = position.max(row.last_seq);
                (
                    row.step,
                    SavedStep { attempt: row.attempt, output: row.output, finish_reason: row.finish_reason },
                )
            })
            .collect();
        let calls = calls.into_iter().map(|row| ((row.step, row.call), row)).collect();
        Self { run_id, steps, calls, open: None, end: None, position }
    }

    /// The number of the last event that is contained.
    pub fn position(&self) -> Seq {
        self.position
    }

    pub fn step_count(&self) -> u32 {
        self.steps.len() as u32
    }

    /// The last saved step and why it ended.
    pub fn last_step(&self) -> Option<(u32, FinishReason)> {
        self.steps.last_key_value().map(|(number, step)| (*number, step.finish_reason))
    }

    /// Which try of the step was saved.
    pub fn attempt_of(&self, step: u32) -> u32 {
        self.steps.get(&step).map_or(1, |saved| saved.attempt)
    }

    /// The step that was begun and not saved.
    pub fn open(&self) -> Option<&OpenStep> {
        self.open.as_ref()
    }

    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The calls of one step in their order.
    pub fn calls_of(&self, step: u32) -> impl Iterator<Item = &ToolCall> {
        self.calls.range((step, 0)..=(step, u32::MAX)).map(|(_, call)| call)
    }

    /// All calls of the agent's own tools.
    pub fn call_count(&self) -> usize {
        self.calls.len()
    }

    /// Those before that one.
    pub fn calls_before(&self, step: u32, call: u32) -> usize {
        self.calls.range(..(step, call)).count()
    }

    /// Calls that have no outcome yet.
    pub fn unsettled(&self) -> impl Iterator<Item = &ToolCall> {
        self.calls.values().filter(|call| !call.state.is_settled())
    }

    /// Takes in a piece of the log, which begins at most one event behind [`Replay::position`].
    pub fn apply_segment(&mut self, segment: &Segment) {
        for (seq, event) in segment.after(self.position) {
            self.apply(seq, segment.at, event);
        }
    }

    /// Takes in the event number `seq`. Events at or before [`Replay::position`] change nothing.
    pub fn apply(&mut self, seq: Seq, at: Millis, event: &Event) {
        if seq <= self.position {
            return;
        }
        self.position = seq;
        let (step, attempt) = (event.step.unwrap_or(0), event.attempt.unwrap_or(1));
        match event.data() {
            Some(EventData::StepStarted { model }) => {
                let output = vec![];
                self.open = Some(OpenStep { step, attempt, model, started_at: at, first_seq: seq, output });
            }
            Some(EventData::StepRestarted { .. }) => self.open = None,
            Some(EventData::TextDelta { text }) => self.extend_open(OutputPart::Text { text }),
            Some(EventData::ReasoningDelta { text }) => self.extend_open(OutputPart::Reasoning { text }),
            Some(EventData::StepFinished { finish_reason, .. }) => {
                let output = self.open.take().map(|open| open.output).unwrap_or_default();
                self.steps.entry(step).or_insert(SavedStep { attempt, output, finish_reason });
            }
            Some(EventData::ToolPlanned { call, call_id, name, arguments, effect }) => {
                let row = self.plan(step, call, call_id, name, arguments, effect);
                if row.state == CallState::AwaitingApproval {
                    row.state = CallState::Planned;
                }
            }
            Some(EventData::WaitCreated {
                wait: Wait::Approval { call, call_id, name, arguments, effect },
                ..
            }) => {
                let is_known = self.calls.contains_key(&(step, call));
                let row = self.plan(step, call, call_id, name, arguments, effect);
                if !is_known {
                    row.state = CallState::AwaitingApproval;
                }
            }
            Some(EventData::ToolRequested { call_id, name, arguments }) => {
                self.extend_open(OutputPart::Call { call_id, name, arguments });
            }
            Some(EventData::ToolStarted { call, .. }) => {
                self.settle(step, call, CallState::Dispatched, None, None);
                // Whether it was sent is what the model is told of a call that was cancelled.
                if let Some(row) = self.calls.get_mut(&(step, call)) {
                    row.dispatched_at.get_or_insert(at);
                }
            }
            Some(EventData::ToolFinished { call, state, output, error, .. }) => {
                self.settle(step, call, state, output, error);
            }
            Some(EventData::RunFinished { status, reason, error, usage, .. }) => {
                self.end = Some(End { status, reason, error, usage });
            }
            Some(
                EventData::RunQueued { .. }
                | EventData::RunClaimed { .. }
                | EventData::RunReleased { .. }
                | EventData::RunWaiting { .. }
                | EventData::RunResumed {}
                | EventData::RunStopping { .. },
            )
            | None => {}
        }
    }

    /// Takes in output of the open step before it has a number: only its writer knows it that early.
    pub fn extend_open(&mut self, delta: OutputPart) {
        if let Some(open) = &mut self.open {
            push_output(&mut open.output, delta);
        }
    }

    fn plan(
        &mut self,
        step: u32,
        call: u32,
        call_id: String,
        name: String,
        arguments: String,
        effect: Effect,
    ) -> &mut ToolCall {
        let run_id = self.run_id;
        self.calls.entry((step, call)).or_insert_with(|| ToolCall {
            run_id,
            step,
            call,
            call_id,
            name,
            arguments,
            effect,
            state: CallState::Planned,
            idempotency_key: idempotency_key(run_id, step, call),
            epoch: 0,
            output: None,
            error: None,
            planned_at: None,
            dispatched_at: None,
            settled_at: None,
            late: None,
        })
    }

    fn settle(
        &mut self,
        step: u32,
        call: u32,
        state: CallState,
        output: Option<String>,
        error: Option<String>,
    ) {
        if let Some(row) = self.calls.get_mut(&(step, call)).filter(|row| !row.state.is_settled()) {
            row.state = state;
            row.output = output;
            row.error = error;
        }
    }

    /// The answer as its watchers see it: text of a torn attempt is not in it.
    pub fn parts(&self) -> Vec<Part> {
        let mut parts = vec![];
        for (number, step) in &self.steps {
            parts.push(Part::Step { step: *number });
            parts.extend(step.output.iter().map(output_part));
            parts.extend(self.calls_of(*number).map(tool_part));
        }
        if let Some(open) = self.open.as_ref().filter(|open| !self.steps.contains_key(&open.step)) {
            parts.push(Part::Step { step: open.step });
            parts.extend(open.output.iter().map(output_part));
        }
        parts
    }
}

fn output_part(part: &OutputPart) -> Part {
    match part {
        OutputPart::Text { text } => Part::Text { text: text.clone() },
        OutputPart::Reasoning { text } => Part::Reasoning { text: text.clone() },
        OutputPart::Call { call_id, name, arguments } => {
            Part::Call { call_id: call_id.clone(), name: name.clone(), arguments: arguments.clone() }
        }
    }
}

fn tool_part(call: &ToolCall) -> Part {
    Part::Tool {
        call_id: call.call_id.clone(),
        name: call.name.clone(),
        arguments: arguments::parse(&call.arguments)
            .unwrap_or_else(|_| Value::String(call.arguments.clone())),
        state: call.state,
        output: call.output.clone(),
        error: call.error.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::WaitId;

    fn text(text: &str) -> EventData {
        EventData::TextDelta { text: text.into() }
    }

    fn started() -> EventData {
        EventData::StepStarted { model: "m".into() }
    }

    fn saved(tool_calls: u32) -> EventData {
        EventData::StepFinished { finish_reason: FinishReason::Stop, usage: Usage::default(), tool_calls }
    }

    /// A log with a restarted step, a tool and an unfinished second step.
    fn log() -> Vec<Event> {
        vec![
            started().of_step(1, 1),
            text("torn").of_step(1, 1),
            EventData::StepRestarted { drop_from: 1, why: "worker lost".into() }.of_step(1, 2),
            started().of_step(1, 2),
            text("Hel").of_step(1, 2),
            text("lo").of_step(1, 2),
            EventData::ToolPlanned {
                call: 1,
                call_id: "c1".into(),
                name: "clock".into(),
                arguments: "{}".into(),
                effect: Effect::Read,
            }
            .of_step(1, 2),
            saved(1).of_step(1, 2),
            EventData::ToolStarted { call: 1, call_id: "c1".into() }.of_step(1, 2),
            EventData::ToolFinished {
                call: 1,
                call_id: "c1".into(),
                state: CallState::Succeeded,
                output: Some("noon".into()),
                error: None,
            }
            .of_step(1, 2),
            started().of_step(2, 1),
            text("It is").of_step(2, 1),
        ]
    }

    fn whole() -> Replay {
        let mut replay = Replay::new(RunId::generate());
        for (seq, event) in (1..).zip(&log()) {
            replay.apply(seq, 0, event);
        }
        replay
    }

    #[test]
    fn torn_text_is_dropped_and_live_text_is_shown() {
        let texts: Vec<_> = whole()
            .parts()
            .into_iter()
            .filter_map(|part| if let Part::Text { text } = part { Some(text) } else { None })
            .collect();
        assert_eq!(texts, ["Hello", "It is"]);
    }

    #[test]
    fn the_model_sees_each_call_with_one_result_and_no_unfinished_step() {
        let messages = whole().for_model();
        assert_eq!(messages.len(), 2);
        assert!(
            matches!(&messages[0], ModelMessage::Assistant { text, calls } if text == "Hello" && calls.len() == 1)
        );
        assert!(matches!(&messages[1], ModelMessage::ToolResult { content, .. } if content == "noon"));
        assert_eq!(whole().for_model_after(0), messages);
        assert_eq!(whole().for_model_after(1), []);
    }

    #[test]
    fn the_log_alone_tells_whether_a_cancelled_call_was_sent() {
        let planned = EventData::ToolPlanned {
            call: 1,
            call_id: "c1".into(),
            name: "clock".into(),
            arguments: "{}".into(),
            effect: Effect::Idempotent,
        };
        let sent = EventData::ToolStarted { call: 1, call_id: "c1".into() };
        let (state, output, error) = (CallState::Cancelled, None, None);
        let cancelled = EventData::ToolFinished { call: 1, call_id: "c1".into(), state, output, error };
        let result = |events: &[&EventData]| {
            let mut replay = Replay::new(RunId::generate());
            for (seq, event) in (1..).zip(events) {
                replay.apply(seq, 0, &event.of_step(1, 1));
            }
            replay.calls_of(1).next().unwrap().result_for_model()
        };
        assert!(result(&[&planned, &cancelled]).contains("before it was sent"));
        assert!(result(&[&planned, &sent, &cancelled]).contains("after it was sent"));
    }

    #[test]
    fn a_call_that_needs_approval_is_planned_when_it_has_it() {
        let wait = Wait::Approval {
            call: 1,
            call_id: "c1".into(),
            name: "pay".into(),
            arguments: "{}".into(),
            effect: Effect::Once,
        };
        let asked = EventData::WaitCreated { wait_id: WaitId::generate(), wait }.of_step(1, 1);
        let planned = EventData::ToolPlanned {
            call: 1,
            call_id: "c1".into(),
            name: "pay".into(),
            arguments: "{}".into(),
            effect: Effect::Once,
        };
        let denied = EventData::ToolFinished {
            call: 1,
            call_id: "c1".into(),
            state: CallState::Denied,
            output: None,
            error: None,
        };
        let state = |replay: &Replay| replay.calls_of(1).next().unwrap().state;
        let mut replay = Replay::new(RunId::generate());
        replay.apply(1, 0, &asked);
        assert_eq!((state(&replay), replay.unsettled().count()), (CallState::AwaitingApproval, 1));
        let mut approved = replay.clone();
        approved.apply(2, 0, &planned.of_step(1, 1));
        assert_eq!(state(&approved), CallState::Planned);
        // Its row was read before the event.
        approved.apply(3, 0, &asked);
        assert_eq!(state(&approved), CallState::Planned);
        replay.apply(2, 0, &denied.of_step(1, 1));
        assert_eq!((state(&replay), replay.unsettled().count()), (CallState::Denied, 0));
    }

    #[test]
    fn applying_the_log_twice_changes_nothing() {
        let mut replay = whole();
        let before = replay.clone();
        for (seq, event) in (1..).zip(&log()) {
            replay.apply(seq, 0, event);
        }
        assert_eq!(replay, before);
    }

    #[test]
    fn rows_and_the_log_behind_them_give_what_the_whole_log_gives() {
        let events = log();
        let run_id = RunId::generate();
        let step = Step {
            run_id,
            step: 1,
            attempt: 2,
            epoch: 1,
            model: "m".into(),
            output: vec![OutputPart::Text { text: "Hello".into() }],
            finish_reason: FinishReason::Stop,
            usage: Usage::default(),
            first_seq: 4,
            last_seq: 8,
            started_at: 0,
            finished_at: 0,
        };
        // The ledger was read late: it already knows the result that the log behind the step tells again.
        for state in [CallState::Planned, CallState::Dispatched, CallState::Succeeded] {
            let call = ToolCall {
                run_id,
                step: 1,
                call: 1,
                call_id: "c1".into(),
                name: "clock".into(),
                arguments: "{}".into(),
                effect: Effect::Read,
                state,
                idempotency_key: String::new(),
                epoch: 1,
                output: state.is_settled().then(|| "noon".into()),
                error: None,
                planned_at: None,
                dispatched_at: None,
                settled_at: None,
                late: None,
            };
            let mut replay = Replay::from_rows(run_id, [step.clone()], [call]);
            for (seq, event) in (1..).zip(&events) {
                replay.apply(seq, 0, event);
            }
            assert_eq!(replay.parts(), whole().parts());
        }
    }
}
