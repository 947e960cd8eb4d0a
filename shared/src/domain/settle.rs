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
    use crate::domain::{replay::ModelMessage, step::OutputPart, transition::Reason};

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

    #[test]
    fn whatever_a_run_ended_in_each_of_its_calls_has_exactly_one_result_for_the_model() {
        let states =
            CallState::ALL.iter().flat_map(|state| Effect::ALL.iter().map(move |effect| (*state, *effect)));
        let calls: Vec<_> = (1..).zip(states).collect();
        for torn in [false, true] {
            let mut events: Vec<_> =
                calls.iter().map(|(call, (_, effect))| planned(*call, *effect)).collect();
            let (finish_reason, usage) = (FinishReason::ToolCalls, Usage::default());
            events.push(EventData::StepFinished { finish_reason, usage, tool_calls: 0 }.of_step(1, 1));
            if torn {
                events.push(EventData::StepStarted { model: "m".into() }.of_step(2, 1));
                events.push(EventData::TextDelta { text: "half".into() }.of_step(2, 1));
            }
            let mut replay = replay_of(&events);
            for (call, (state, _)) in &calls {
                let finished = EventData::ToolFinished {
                    call: *call,
                    call_id: format!("c{call}"),
                    state: *state,
                    output: None,
                    error: None,
                };
                replay.apply(replay.position() + 1, 0, &finished.of_step(1, 1));
            }
            for ending in Reason::ALL.iter().map(|reason| Ending { reason: *reason, error: None }) {
                let stop = Stop { requested_at: 1, is_delivered: true };
                let stop = ending.reason.is_ordered().then_some(stop);
                let (events, _) = settle(RunId::generate(), &replay, Usage::default(), &ending, stop, 2);
                assert_eq!(events.last().unwrap().kind, "run.finished");
                let mut after = replay.clone();
                for event in &events {
                    after.apply(after.position() + 1, 0, event);
                }
                assert_eq!(after.unsettled().count(), 0);
                let messages = after.for_model();
                let [ModelMessage::Assistant { calls: told, .. }, rest @ ..] = &messages[..] else {
                    panic!("{messages:?}")
                };
                let told: Vec<_> = told.iter().map(|call| call.call_id.as_str()).collect();
                let results = rest.iter().take(told.len()).filter_map(|message| match message {
                    ModelMessage::ToolResult { call_id, content } => {
                        assert!(!content.contains("no result yet"), "{content}");
                        Some(call_id.as_str())
                    }
                    _ => None,
                });
                assert_eq!(
                    (results.collect::<Vec<_>>(), rest.len()),
                    (told.clone(), told.len() + usize::from(torn))
                );
            }
        }
    }
}
