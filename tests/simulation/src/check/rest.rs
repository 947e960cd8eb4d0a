//! What must hold when everything has come to rest: each run by itself, and what its clients and tools know of it.

use std::collections::BTreeMap;

use longhaul_shared::{
    domain::{
        event::{Event, EventData, StopStage},
        ids::RunId,
        replay::Replay,
        retry::MAX_CRASHES,
        run::Run,
        step::{FinishReason, Step, output_text},
        tool::{CallState, Effect, ToolCall},
        transition::{Reason, RunStatus},
    },
    store::memory::State,
};

use crate::{
    client::{Progress, Want},
    coverage::Coverage,
    world::World,
};

impl World {
    /// Nothing is under way any more: what is left must be whole.
    pub fn check_at_rest(&mut self) {
        let mut found = self.store.rows(|rows| self.checker.changed(rows));
        found.extend(self.store.rows(|rows| rows.forbidden()));
        let ids: Vec<RunId> = self.store.rows(|rows| rows.runs.keys().copied().collect());
        let mut origins: BTreeMap<u32, Vec<RunId>> = BTreeMap::new();
        for (place, run_id) in ids.into_iter().enumerate() {
            let (run, steps, calls, events) = self.store.rows(|rows| read(rows, run_id));
            origins.entry(crate::client::op_of(&self.store, run_id)).or_default().push(run_id);
            let mut say = |why: String| found.push(format!("run{place}: {why}"));
            check_log(&run, &events, &mut say);
            check_story(&run, &steps, &calls, &events, &mut say);
            check_reason(&run, &events, &mut say);
            check_stop(&run, &events, &mut say);
            for step in &steps {
                check_text(step, &mut say);
            }
            for call in &calls {
                let done = self.ledger.0.get(&(run_id, call.step, call.call));
                let times = done.map_or(0, |done| done.times);
                check_outcome(call, times, &events, &mut say);
                let taken = self.late.get(&(run_id, call.step, call.call)).copied();
                check_late(call, taken, times, &mut say);
            }
            count(&run, &calls, &events, &mut self.coverage);
        }
        for key in &self.noted {
            let runs = origins.get(key).into_iter().flatten();
            for run in runs.filter_map(|id| self.store.rows(|rows| rows.runs.get(id).cloned())) {
                if run.run.reason != Some(Reason::Stop) || run.run.attempts > 0 {
                    found.push(format!("op{key} came behind its stop and was begun"));
                }
            }
        }
        for op in &self.ops {
            match &op.want {
                Want::Submit(message) if message.key.or(message.message_id).is_some() => {
                    let runs = origins.get(&op.origin()).map_or(&[][..], |runs| &runs[..]);
                    if runs.len() > 1 {
                        found.push(format!("op{} became {} runs", op.origin(), runs.len()));
                    }
                    if op.told.is_some_and(|told| !runs.contains(&told)) {
                        found.push(format!("op{} was told a run that there is not", op.id));
                    }
                }
                Want::Submit(_)
                    if op.told.is_some_and(|told| !origins.values().flatten().any(|run| *run == told)) =>
                {
                    found.push(format!("op{} was accepted and is lost", op.id));
                }
                Want::Watch { run, seen, from, .. } if op.state == Progress::Done => {
                    let (.., events) = self.store.rows(|rows| read(rows, *run));
                    let log: Vec<_> = (1..).zip(&events).filter(|(seq, _)| seq > from).collect();
                    let same = log.len() == seen.len()
                        && log
                            .iter()
                            .zip(seen)
                            .all(|((seq, event), (n, kind))| seq == n && event.kind == *kind);
                    if !same {
                        found.push(format!("a watcher saw {} events of {}", seen.len(), log.len()));
                    }
                }
                _ => {}
            }
        }
        for why in found {
            self.violate(why);
        }
    }
}

fn read(rows: &State, run_id: RunId) -> (Run, Vec<Step>, Vec<ToolCall>, Vec<Event>) {
    let run = rows.runs[&run_id].run.clone();
    let steps = rows.steps.get(&run_id).into_iter().flatten().cloned().collect();
    let calls = rows.calls.get(&run_id).into_iter().flat_map(|calls| calls.values().cloned()).collect();
    let log = rows.log.get(&run_id).into_iter().flatten();
    let events = log.flat_map(|row| row.segment.events.iter().cloned()).collect();
    (run, steps, calls, events)
}

fn check_log(run: &Run, events: &[Event], say: &mut impl FnMut(String)) {
    if !run.status.is_terminal() {
        say(format!("it never ended: {}", run.status));
    }
    let mut ends = 0;
    for event in events {
        match event.data() {
            Some(EventData::RunFinished { status, reason, step_count, .. }) => {
                ends += 1;
                if status != run.status || Some(reason) != run.reason || step_count != run.step_count {
                    say(format!(
                        "its end says {status} for {reason} after {step_count} steps, its row does not"
                    ));
                }
            }
            None => say(format!("an event that nobody can read: {}", event.kind)),
            _ => {}
        }
    }
    if ends != 1 {
        say(format!("it has {ends} ends"));
    }
}

/// Log and rows tell the same story.
fn check_story(
    run: &Run,
    steps: &[Step],
    calls: &[ToolCall],
    events: &[Event],
    say: &mut impl FnMut(String),
) {
    let mut replay = Replay::new(run.id);
    for (seq, event) in (1..).zip(events) {
        replay.apply(seq, 0, event);
    }
    // What came behind the end is in the ledger alone.
    let calls = calls.iter().map(|call| ToolCall { late: None, ..call.clone() });
    let mut rows = Replay::from_rows(run.id, steps.to_vec(), calls);
    for (seq, event) in (1..).zip(events) {
        rows.apply(seq, 0, event);
    }
    if replay.parts() != rows.parts() {
        say(format!("its log says {:?}, its rows say {:?}", replay.parts(), rows.parts()));
    }
    if replay.for_model() != rows.for_model() {
        say("a model would read its log and its rows differently".to_owned());
    }
}

/// An end has its cause.
fn check_reason(run: &Run, events: &[Event], say: &mut impl FnMut(String)) {
    let count = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
    let is_due = match run.reason {
        Some(Reason::Done) => true,
        Some(Reason::Stop | Reason::ChatDeleted | Reason::Superseded) => run.status == RunStatus::Aborted,
        Some(Reason::Provider) => count("step.restarted") >= 3,
        // The last one is the end itself.
        Some(Reason::CrashLimit) => count("run.released") + 1 >= MAX_CRASHES as usize,
        _ => false,
    };
    if !is_due {
        say(format!("it ended for {:?}: {:?}", run.reason, run.error));
    }
}

/// The stages of a stop stand in front of the end that they lead to, and nowhere else.
fn check_stop(run: &Run, events: &[Event], say: &mut impl FnMut(String)) {
    let stopping = events.iter().filter(|event| event.kind == "run.stopping");
    let stages = stopping.filter_map(|event| match event.data() {
        Some(EventData::RunStopping { stage, requested_at }) => Some((stage, requested_at)),
        _ => None,
    });
    let stages: Vec<_> = stages.collect();
    let requested = (StopStage::Requested, run.stop_requested_at);
    let is_right = if run.reason.is_some_and(Reason::is_ordered) {
        stages == [requested] || stages == [requested, (StopStage::Delivered, None)]
    } else {
        stages.is_empty() && run.stop_requested_at.is_none()
    };
    if !is_right || (run.reason.is_some_and(Reason::is_ordered) && run.stop_requested_at.is_none()) {
        say(format!("it ended for {:?}, and of its stop the log says {stages:?}", run.reason));
    }
}

/// Everything that a saved step says was said by one attempt.
fn check_text(step: &Step, say: &mut impl FnMut(String)) {
    let thoughts = step.output.iter().filter_map(|part| match part {
        longhaul_shared::domain::step::OutputPart::Reasoning { text } => Some(text.as_str()),
        _ => None,
    });
    let text = thoughts.collect::<String>() + &output_text(&step.output);
    let pieces: Vec<_> = text.split_whitespace().filter_map(|piece| piece.split_once(':')).collect();
    let is_one = pieces.iter().all(|(answer, _)| *answer == pieces[0].0);
    let in_order = pieces.iter().enumerate().all(|(n, (_, piece))| piece.parse() == Ok(n));
    if !is_one || !in_order || (pieces.is_empty() && step.finish_reason != FinishReason::Interrupted) {
        say(format!("step {} says {text:?}", step.step));
    }
}

fn check_outcome(call: &ToolCall, times: u64, events: &[Event], say: &mut impl FnMut(String)) {
    let name = format!("call {}:{} ({}, {})", call.step, call.call, call.effect, call.state);
    let outcomes = events.iter().filter(|event| {
        event.kind == "tool.finished"
            && matches!(event.data(), Some(EventData::ToolFinished { call_id, .. }) if call_id == call.call_id)
    });
    let outcomes = outcomes.count();
    if outcomes != 1 {
        say(format!("{name} has {outcomes} outcomes"));
    }
    let was_sent = call.dispatched_at.is_some();
    if times > 0 && !was_sent && call.effect != Effect::Read {
        say(format!("{name} had an effect and was never sent"));
    }
    if call.state == CallState::Succeeded && times == 0 {
        say(format!("{name} had no effect"));
    }
    if call.state == CallState::Failed && call.effect == Effect::Once && times > 0 {
        say(format!("{name} had an effect: {:?}", call.error));
    }
}

/// A late answer stands beside a state without one, is the first that was taken, and is true.
fn check_late(call: &ToolCall, taken: Option<CallState>, times: u64, say: &mut impl FnMut(String)) {
    let late = call.late.as_ref().map(|late| late.state);
    let is_true = match late {
        None => true,
        Some(CallState::Succeeded) => times > 0,
        Some(_) => times == 0 || call.effect != Effect::Once,
    };
    let fits = late.is_none() || matches!(call.state, CallState::Unknown | CallState::Cancelled);
    if late != taken || !is_true || !fits {
        say(format!(
            "call {}:{} ({}) was answered late: {late:?}, {taken:?}",
            call.step, call.call, call.state
        ));
    }
}

fn count(run: &Run, calls: &[ToolCall], events: &[Event], coverage: &mut Coverage) {
    coverage.runs += 1;
    match run.reason {
        Some(Reason::Done) => coverage.ended_done += 1,
        Some(Reason::Stop) => coverage.ended_stop += 1,
        Some(Reason::Superseded) => coverage.ended_superseded += 1,
        Some(Reason::ChatDeleted) => coverage.ended_chat_deleted += 1,
        Some(Reason::Provider) => coverage.ended_provider += 1,
        Some(Reason::CrashLimit) => coverage.ended_crash_limit += 1,
        _ => {}
    }
    for event in events {
        coverage.stops_delivered += u64::from(
            event.kind == "run.stopping"
                && matches!(event.data(), Some(EventData::RunStopping { stage: StopStage::Delivered, .. })),
        );
        coverage.steps_restarted += u64::from(event.kind == "step.restarted");
        coverage.steps_interrupted += u64::from(
            event.kind == "step.finished"
                && matches!(
                    event.data(),
                    Some(EventData::StepFinished { finish_reason: FinishReason::Interrupted, .. })
                ),
        );
    }
    for call in calls {
        match call.state {
            CallState::Unknown => coverage.calls_unknown += 1,
            CallState::Cancelled => coverage.calls_cancelled += 1,
            CallState::Failed => coverage.calls_failed += 1,
            _ => {}
        }
    }
}
