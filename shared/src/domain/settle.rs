//! How a run is brought to its end, whoever ends it: its worker, a stop, the reaper.
//!
//! The stages of a stop come first, if it is one that ends the run. What was streamed of an unfinished step is kept as
//! an interrupted step, every open tool call gets its one outcome, and `run.finished` comes last.

use super::{
    event::{Event, EventData, StopStage},
    ids::{Epoch, Millis, RunId},
    replay::Replay,
    run::{Ending, Usage},
    step::{FinishReason, Step},
    tool::{CallState, Effect, ToolCall},
};

/// What the ending appends and writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Settlement {
    pub steps: Vec<Step>,
    pub calls: Vec<ToolCall>,
}

/// The stop by which a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    pub requested_at: Millis,
    /// It is the holder that ends the run.
    pub is_delivered: bool,
}

impl Stop {
    fn stages(self) -> impl Iterator<Item = Event> {
        let requested =
            EventData::RunStopping { stage: StopStage::Requested, requested_at: Some(self.requested_at) };
        let delivered = EventData::RunStopping { stage: StopStage::Delivered, requested_at: None };
        [Some(requested), self.is_delivered.then_some(delivered)]
            .into_iter()
            .flatten()
            .map(|stage| stage.of_run())
    }
}

/// The events of the ending go behind `replay`, and from there the numbers count.
pub fn settle(
    run_id: RunId,
    replay: &Replay,
    usage: Usage,
    ending: &Ending,
    stop: Option<Stop>,
    epoch: Epoch,
) -> (Vec<Event>, Settlement) {
    let mut events: Vec<_> = stop.into_iter().flat_map(Stop::stages).collect();
    let mut settlement = Settlement { steps: vec![], calls: vec![] };
    if let Some(open) = replay.open().filter(|open| !open.output.is_empty()) {
        let finished = EventData::StepFinished {
            finish_reason: FinishReason::Interrupted,
            usage: Usage::default(),
            tool_calls: 0,
        };
        events.push(finished.of_step(open.step, open.attempt));
        settlement.steps.push(Step {
            run_id,
            step: open.step,
            attempt: open.attempt,
            epoch,
            model: open.model.clone(),
            output: open.output.clone(),
            finish_reason: FinishReason::Interrupted,
            usage: Usage::default(),
            first_seq: open.first_seq,
            last_seq: replay.position() + events.len() as i64,
            started_at: open.started_at,
            finished_at: 0,
        });
    }
    for call in replay.unsettled() {
        let state = match (call.state, call.effect) {
            (CallState::Dispatched, Effect::Once) => CallState::Unknown,
            _ => CallState::Cancelled,
        };
        let finished = EventData::ToolFinished {
            call: call.call,
            call_id: call.call_id.clone(),
            state,
            output: None,
            error: None,
        };
        events.push(finished.of_step(call.step, replay.attempt_of(call.step)));
        settlement.calls.push(ToolCall { state, epoch, ..call.clone() });
    }
    let step_count = replay.step_count() + settlement.steps.len() as u32;
    let finished = EventData::RunFinished {
        status: ending.status(),
        reason: ending.reason,
        error: ending.error.clone(),
        usage,
        step_count,
    };
    events.push(finished.of_run());
    (events, settlement)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::step::OutputPart;

    fn replay_of(events: &[Event]) -> Replay {
        let mut replay = Replay::new(RunId::generate());
        for (seq, event) in (1..).zip(events) {
            replay.apply(seq, 7, event);
        }
        replay
    }

    fn planned(call: u32, effect: Effect) -> Event {
        EventData::ToolPlanned {
            call,
            call_id: format!("c{call}"),
            name: "t".into(),
            arguments: "{}".into(),
            effect,
        }
        .of_step(1, 1)
    }

    #[test]
    fn torn_output_is_kept_as_an_interrupted_step() {
        let replay = replay_of(&[
            EventData::StepStarted { model: "m".into() }.of_step(1, 3),
            EventData::TextDelta { text: "half".into() }.of_step(1, 3),
        ]);
        let (events, settlement) =
            settle(RunId::generate(), &replay, Usage::default(), &Ending::stopped(), None, 2);
        let [step] = &settlement.steps[..] else { panic!("one step") };
        assert_eq!(step.output, [OutputPart::Text { text: "half".into() }]);
        assert_eq!((step.attempt, step.first_seq, step.last_seq, step.started_at), (3, 1, 3, 7));
        assert_eq!(
            events.iter().map(|e| e.kind.as_str()).collect::<Vec<_>>(),
            ["step.finished", "run.finished"]
        );
    }

    #[test]
    fn every_open_call_gets_its_one_outcome() {
        let started = |call| EventData::ToolStarted { call, call_id: format!("c{call}") }.of_step(1, 1);
        let replay = replay_of(&[
            planned(1, Effect::Once),
            planned(2, Effect::Once),
            planned(3, Effect::Read),
            started(1),
            started(3),
        ]);
        let (events, settlement) =
            settle(RunId::generate(), &replay, Usage::default(), &Ending::stopped(), None, 2);
        let states: Vec<_> = settlement.calls.iter().map(|call| call.state).collect();
        assert_eq!(states, [CallState::Unknown, CallState::Cancelled, CallState::Cancelled]);
        assert_eq!(events.len(), 4);
    }
}
