//! How a run is brought to its end, whoever ends it: its worker, a stop, the reaper.
//!
//! The stages of a stop come first, if it is one that ends the run, or right before the end if the stop was met only at
//! the commit. What was streamed of an unfinished step is kept as
//! an interrupted step, every open tool call gets its one outcome, and `run.finished` comes last.

use super::{
    event::{Event, EventData, StopStage},
    ids::{Epoch, Millis, RunId},
    replay::Replay,
    run::{Ending, Usage},
    step::{FinishReason, Step},
    tool::{CallState, Effect, ToolCall},
    transition::Reason,
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

/// Lets the run end by this stop instead of as it was going to. Everything else that `events` tell stays true.
pub fn end_by_stop(events: &mut Vec<Event>, reason: Reason, stop: Stop) -> Ending {
    let ending = Ending { reason, error: None };
    let last = events.pop();
    let Some(EventData::RunFinished { usage, step_count, .. }) = last.as_ref().and_then(Event::data) else {
        unreachable!("a run's end is its last event")
    };
    events.extend(stop.stages());
    let (status, error) = (ending.status(), None);
    events.push(EventData::RunFinished { status, reason, error, usage, step_count }.of_run());
    ending
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{replay::ModelMessage, run::RunError, step::OutputPart, transition::RunStatus};

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
    fn a_stop_takes_the_place_of_another_end_and_of_nothing_else() {
        let replay = replay_of(&[
            EventData::StepStarted { model: "m".into() }.of_step(1, 1),
            EventData::TextDelta { text: "half".into() }.of_step(1, 1),
        ]);
        let usage = Usage { input_tokens: 3, ..Usage::default() };
        let stop = Stop { requested_at: 5, is_delivered: true };
        let end = |ending: &Ending, stop| settle(RunId::generate(), &replay, usage, ending, stop, 2).0;
        let failed = Ending::failed(Reason::Provider, RunError::new("provider", "gone"));
        let mut events = end(&failed, None);
        assert_eq!(end_by_stop(&mut events, Reason::Superseded, stop).status(), RunStatus::Aborted);
        let mut expected = end(&Ending { reason: Reason::Superseded, error: None }, Some(stop));
        let told = |events: &[Event]| events.iter().map(Event::data).collect::<Vec<_>>();
        // What was torn is told before the stop here, as it was before anybody knew of it.
        expected[..3].rotate_right(1);
        assert_eq!(told(&events), told(&expected));
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
