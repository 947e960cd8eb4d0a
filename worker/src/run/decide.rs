//! What an attempt does next, as a pure function of what is known.

use longhaul_shared::domain::{
    replay::Replay,
    run::{Ending, RunError},
    step::FinishReason,
    text::one_line,
    tool::ToolCall,
    transition::Reason,
};
use serde_json::Value;

/// What the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    pub replay: &'a Replay,
    pub max_steps: u32,
    /// Tokens that the model may still write, if the client has set a limit for the run.
    pub output_left: Option<u32>,
    /// The same call with the same result, step after step, so often is a loop; 0 is never.
    pub max_same_calls: u32,
    /// The run is to end for this reason.
    pub stop: Option<Reason>,
    pub is_past_deadline: bool,
    /// The worker shuts down.
    pub is_draining: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    CallModel { step: u32 },
    RunTools { step: u32 },
    Finish(Ending),
    HandBack,
}

/// The next action.
pub fn next(state: State<'_>) -> Next {
    if let Some(reason) = state.stop {
        return Next::Finish(Ending { reason, error: None });
    }
    let last = state.replay.last_step();
    if let Some((step, finish_reason)) = last
        && is_answered(state.replay, step)
    {
        return Next::Finish(ending_of(finish_reason));
    }
    if state.is_past_deadline {
        return Next::Finish(past_deadline());
    }
    if state.is_draining {
        return Next::HandBack;
    }
    match last {
        Some((step, _)) if state.replay.calls_of(step).any(|call| !call.state.is_settled()) => {
            Next::RunTools { step }
        }
        Some((step, _)) if step >= state.max_steps => {
            let error =
                RunError::new("step_limit", format!("the run used all of its {} steps", state.max_steps));
            Next::Finish(Ending::failed(Reason::StepLimit, error))
        }
        Some(_) if state.output_left == Some(0) => {
            let error = RunError::new("output_limit", "the run used all of its output tokens");
            Next::Finish(Ending::failed(Reason::OutputLimit, error))
        }
        Some((step, _)) => match same_call(state.replay, step, state.max_same_calls) {
            Some(call) => {
                let told = format!(
                    "the model went round in circles: it called `{}` {} times in a row with the same arguments and \
                     got the same result each time",
                    one_line(&call.name, 64),
                    state.max_same_calls
                );
                Next::Finish(Ending::failed(Reason::Loop, RunError::new("loop", told)))
            }
            None => Next::CallModel { step: step + 1 },
        },
        None => Next::CallModel { step: 1 },
    }
}

/// Whether nothing is left to do behind this step: it has no calls, or the client is to answer some of them.
fn is_answered(replay: &Replay, step: u32) -> bool {
    let mut calls = replay.calls_of(step).peekable();
    calls.peek().is_none() || (replay.asks_client(step) && calls.all(|call| call.state.is_settled()))
}

/// The call that each of the last `times` steps consists of, if it and its result are the same in all of them.
fn same_call(replay: &Replay, last: u32, times: u32) -> Option<&ToolCall> {
    let only_call = |step: u32| {
        let mut calls = replay.calls_of(step);
        calls.next().filter(|_| calls.next().is_none())
    };
    if times == 0 || last < times {
        return None;
    }
    let call = only_call(last)?;
    let is_same = |other: &ToolCall| {
        (&other.name, other.state, &other.output, &other.error)
            == (&call.name, call.state, &call.output, &call.error)
            && are_same_arguments(&other.arguments, &call.arguments)
    };
    (last - times + 1..last).all(|step| only_call(step).is_some_and(is_same)).then_some(call)
}

/// As JSON, if both are.
fn are_same_arguments(one: &str, other: &str) -> bool {
    let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
    one == other || parse(one).is_some_and(|one| Some(one) == parse(other))
}

/// How a run ends whose model has planned no more calls.
fn ending_of(finish_reason: FinishReason) -> Ending {
    match finish_reason {
        FinishReason::ContentFilter => Ending::failed(
            Reason::Provider,
            RunError::new("content_filter", "the provider's content filter stopped the answer"),
        ),
        FinishReason::Stop
        | FinishReason::Length
        | FinishReason::ToolCalls
        | FinishReason::Interrupted
        | FinishReason::Other => Ending::done(),
    }
}

pub fn past_deadline() -> Ending {
    Ending::failed(Reason::Deadline, RunError::new("deadline", "the run took longer than it was given"))
}

#[cfg(test)]
mod tests {
    use longhaul_shared::domain::{
        event::EventData,
        ids::RunId,
        run::Usage,
        tool::{CallState, Effect},
    };

    use super::*;

    fn replay(steps: &[(FinishReason, &[CallState])]) -> Replay {
        let mut events = vec![];
        for (step, (finish_reason, calls)) in (1..).zip(steps) {
            for (call, state) in (1..).zip(*calls) {
                let (call_id, name) = (format!("c{call}"), "t".to_owned());
                let planned = EventData::ToolPlanned {
                    call,
                    call_id: call_id.clone(),
                    name,
                    arguments: "{}".into(),
                    effect: Effect::Read,
                };
                events.push(planned.of_step(step, 1));
                if *state != CallState::Planned {
                    let finished =
                        EventData::ToolFinished { call, call_id, state: *state, output: None, error: None };
                    events.push(finished.of_step(step, 1));
                }
            }
            let (finish_reason, usage) = (*finish_reason, Usage::default());
            events.push(EventData::StepFinished { finish_reason, usage, tool_calls: 0 }.of_step(step, 1));
        }
        let mut replay = Replay::new(RunId::generate());
        for (seq, event) in (1..).zip(&events) {
            replay.apply(seq, 0, event);
        }
        replay
    }

    fn state(replay: &Replay) -> State<'_> {
        State {
            replay,
            max_steps: 3,
            max_same_calls: 0,
            output_left: None,
            stop: None,
            is_past_deadline: false,
            is_draining: false,
        }
    }

    const CALLS: (FinishReason, &[CallState]) = (FinishReason::ToolCalls, &[CallState::Succeeded]);
    const ANSWER: (FinishReason, &[CallState]) = (FinishReason::Stop, &[]);

    #[test]
    fn a_run_goes_from_model_to_tools_to_model_to_its_end() {
        assert_eq!(next(state(&replay(&[]))), Next::CallModel { step: 1 });
        let open = (FinishReason::ToolCalls, &[CallState::Succeeded, CallState::Planned][..]);
        assert_eq!(next(state(&replay(&[open]))), Next::RunTools { step: 1 });
        assert_eq!(next(state(&replay(&[CALLS]))), Next::CallModel { step: 2 });
        assert_eq!(next(state(&replay(&[CALLS, ANSWER]))), Next::Finish(Ending::done()));
    }

    #[test]
    fn the_step_limit_holds_at_the_limit() {
        assert_eq!(next(state(&replay(&[CALLS, CALLS]))), Next::CallModel { step: 3 });
        let Next::Finish(ending) = next(state(&replay(&[CALLS, CALLS, CALLS]))) else { panic!("finish") };
        assert_eq!(ending.reason, Reason::StepLimit);
        assert_eq!(next(state(&replay(&[CALLS, CALLS, ANSWER]))), Next::Finish(Ending::done()));
    }

    #[test]
    fn a_stop_comes_before_everything_and_an_answer_before_the_deadline() {
        let answered = replay(&[ANSWER]);
        let stopped = State { stop: Some(Reason::ChatDeleted), is_draining: true, ..state(&answered) };
        assert_eq!(next(stopped), Next::Finish(Ending { reason: Reason::ChatDeleted, error: None }));
        let late = State { is_past_deadline: true, is_draining: true, ..state(&answered) };
        assert_eq!(next(late), Next::Finish(Ending::done()));
        let calling = replay(&[CALLS]);
        let late = State { is_past_deadline: true, ..state(&calling) };
        assert_eq!(next(late), Next::Finish(past_deadline()));
        assert_eq!(next(State { is_draining: true, ..state(&calling) }), Next::HandBack);
    }

    /// Steps with one call each, by name, arguments and output.
    fn called(steps: &[(&str, &str, &str)]) -> Replay {
        let mut events = vec![];
        for (step, (name, arguments, output)) in (1..).zip(steps) {
            let (call, call_id) = (1, "c".to_owned());
            let planned = EventData::ToolPlanned {
                call,
                call_id: call_id.clone(),
                name: (*name).into(),
                arguments: (*arguments).into(),
                effect: Effect::Read,
            };
            let (finish_reason, usage) = (FinishReason::ToolCalls, Usage::default());
            let (state, output) = (CallState::Succeeded, Some((*output).into()));
            let finished = EventData::ToolFinished { call, call_id, state, output, error: None };
            events.push(planned.of_step(step, 1));
            events.push(EventData::StepFinished { finish_reason, usage, tool_calls: 1 }.of_step(step, 1));
            events.push(finished.of_step(step, 1));
        }
        let mut replay = Replay::new(RunId::generate());
        for (seq, event) in (1..).zip(&events) {
            replay.apply(seq, 0, event);
        }
        replay
    }

    #[test]
    fn the_same_call_with_the_same_result_so_often_in_a_row_is_a_loop() {
        let one = ("look", r#"{"a": 1, "b": 2}"#, "nothing");
        let reordered = ("look", r#"{"b":2,"a":1}"#, "nothing");
        for (steps, is_loop) in [
            (&[one, one, reordered][..], true),
            (&[("other", "{}", ""), one, one, one], true),
            (&[one, one], false),
            (&[one, one, ("look", r#"{"a": 2, "b": 2}"#, "nothing")], false),
            (&[one, one, ("look", one.1, "something")], false),
            (&[one, ("other", one.1, one.2), one], false),
            (&[one, one, one, ("other", one.1, one.2)], false),
        ] {
            let replay = called(steps);
            let state = State { max_steps: 9, max_same_calls: 3, ..state(&replay) };
            let reason = match next(state) {
                Next::Finish(ending) => Some(ending.reason),
                _ => None,
            };
            assert_eq!(reason, is_loop.then_some(Reason::Loop), "{steps:?}");
            assert!(matches!(next(State { max_same_calls: 0, ..state }), Next::CallModel { .. }), "off");
        }
    }

    #[test]
    fn a_client_is_asked_when_the_calls_beside_its_own_are_settled() {
        let with = |state: CallState| {
            let mut replay = Replay::new(RunId::generate());
            let (call_id, name, arguments) = ("c1".to_owned(), "t".to_owned(), "{}".to_owned());
            let (own_id, effect) = ("c2".to_owned(), Effect::Read);
            let mut events = vec![
                EventData::StepStarted { model: "m".into() },
                EventData::ToolPlanned {
                    call: 2,
                    call_id: own_id.clone(),
                    name: name.clone(),
                    arguments: arguments.clone(),
                    effect,
                },
                EventData::ToolRequested { call_id, name, arguments },
                EventData::StepFinished {
                    finish_reason: FinishReason::ToolCalls,
                    usage: Usage::default(),
                    tool_calls: 2,
                },
            ];
            if state.is_settled() {
                events.push(EventData::ToolFinished {
                    call: 2,
                    call_id: own_id,
                    state,
                    output: None,
                    error: None,
                });
            }
            for (seq, event) in (1..).zip(&events) {
                replay.apply(seq, 0, &event.of_step(1, 1));
            }
            replay
        };
        assert_eq!(next(state(&with(CallState::Planned))), Next::RunTools { step: 1 });
        assert_eq!(next(state(&with(CallState::Succeeded))), Next::Finish(Ending::done()));
    }

    #[test]
    fn a_run_without_a_token_left_ends_instead_of_asking_the_model_again() {
        let calling = replay(&[CALLS]);
        let reason = |output_left| match next(State { output_left, ..state(&calling) }) {
            Next::Finish(ending) => Some(ending.reason),
            _ => None,
        };
        assert_eq!([Some(0), Some(1), None].map(reason), [Some(Reason::OutputLimit), None, None]);
    }

    #[test]
    fn several_calls_in_a_step_are_no_loop() {
        let both: &[CallState] = &[CallState::Succeeded, CallState::Succeeded];
        let replay = replay(&[(FinishReason::ToolCalls, both); 3]);
        let state = State { max_steps: 9, max_same_calls: 3, ..state(&replay) };
        assert!(matches!(next(state), Next::CallModel { step: 4 }));
    }
}
