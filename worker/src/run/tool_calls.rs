//! The tool calls of a step: each one planned, dispatched, then settled, and each of that on disk before the next.
//!
//! A call that was dispatched by an earlier owner goes out again only if repeating it is harmless; else its tool is asked
//! what became of it, or its outcome is unknown and the model is told so. What a repetition does is what the ledger says
//! of the call, not what the configuration says by now.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use longhaul_shared::{
    domain::{
        arguments,
        event::{Event, EventData},
        step::FinishReason,
        tool::{CallState, Effect, ToolCall},
    },
    failpoint::{Point, hit},
    mutant::{self, Mutant},
};
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{attempt::Attempt, interrupt::Exit};
use crate::{
    recorder::Write,
    tools::{Departure, Tool, ToolContext, ToolOutcome},
};

/// What a tool gets on top of its time limit to report that it has run out.
const GRACE: Duration = Duration::from_secs(2);

/// A call that is to be executed.
struct Ready {
    call: ToolCall,
    tool: Arc<dyn Tool>,
    arguments: Value,
    /// It was sent by an earlier owner: the tool is only asked what became of it.
    was_sent: bool,
}

/// A call under way. It comes to the call as it is to be settled.
pub(super) struct Sent {
    call: ToolCall,
    /// Its tool is only asked what became of it.
    is_question: bool,
    departure: Departure,
    work: BoxFuture<'static, ToolCall>,
}

impl Sent {
    fn new(ready: Ready, cx: ToolContext) -> Self {
        Self {
            call: ready.call.clone(),
            is_question: ready.was_sent,
            departure: cx.departure.clone(),
            work: execute(ready, cx).boxed(),
        }
    }
}

impl Future for Sent {
    type Output = ToolCall;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<ToolCall> {
        self.work.as_mut().poll(cx)
    }
}

/// What is to be done about an open call.
#[derive(Clone, Debug, PartialEq)]
enum Way {
    Send,
    Ask,
    Settle(CallState, &'static str),
}

/// `now` is the effect that the tool has today, if it is still there.
fn way_of(call: &ToolCall, now: Option<Effect>, can_be_asked: bool) -> Way {
    let is_as_planned = now == Some(call.effect);
    match (call.state, call.effect) {
        (CallState::AwaitingApproval, _) => {
            Way::Settle(CallState::Failed, "nobody approved this call; it was not sent")
        }
        (CallState::Dispatched, Effect::Once) if can_be_asked => Way::Ask,
        (CallState::Dispatched, Effect::Once) => {
            Way::Settle(CallState::Unknown, "its worker was lost before an answer came")
        }
        (CallState::Dispatched, Effect::Idempotent) if !is_as_planned => {
            Way::Settle(CallState::Unknown, "the tool was changed or removed before an answer came")
        }
        (CallState::Dispatched, Effect::Read) if !is_as_planned => {
            Way::Settle(CallState::Failed, "the tool was changed or removed before an answer came")
        }
        // One that is not there was never there for this call, or it is told so in words of its own.
        _ if is_as_planned || now.is_none() => Way::Send,
        _ => Way::Settle(
            CallState::Failed,
            "the tool was changed since this call was planned; it was not sent",
        ),
    }
}

impl Attempt<'_> {
    /// Settles every open call of the step.
    pub(super) async fn run_tools(&mut self, step: u32) -> Result<(), Exit> {
        let open: Vec<ToolCall> =
            self.replay.calls_of(step).filter(|call| !call.state.is_settled()).cloned().collect();
        let attempt = self.replay.attempt_of(step);
        let mut ready = vec![];
        let mut write = Write::default();
        for call in open {
            match self.prepare(call) {
                Ok(one) => {
                    if !one.was_sent {
                        let started =
                            EventData::ToolStarted { call: one.call.call, call_id: one.call.call_id.clone() };
                        write.events.push(started.of_step(step, attempt));
                        write.calls.push(one.call.clone());
                    }
                    ready.push(one);
                }
                Err(settled) => {
                    write.events.push(finished_event(&settled, attempt));
                    write.calls.push(*settled);
                }
            }
        }
        // From here on they count as sent: noted before the write, so that a stop in between settles them so.
        self.note_all(&write);
        // Calls that only read need no mark of having been sent before they are: nothing is to be found out about them.
        hit(Point::BeforeToolRecord);
        let only_reads = ready.iter().all(|one| one.call.effect == Effect::Read) && !ready.is_empty();
        if only_reads || mutant::is(Mutant::DispatchBeforeRecord) {
            self.log.append(write).await;
        } else {
            self.log.write(write).await?;
        }

        hit(Point::AfterToolRecordBeforeSend);
        // However this ends, nothing leaves afterwards.
        let over = CancellationToken::new();
        let _over = over.clone().drop_guard();
        let mut under_way: FuturesUnordered<Sent> =
            ready.into_iter().map(|one| Sent::new(one, self.context_of(step, &over))).collect();
        let interrupt = self.interrupts.clone().wait();
        tokio::pin!(interrupt);
        while !under_way.is_empty() {
            let settled = tokio::select! {
                biased;
                exit = &mut interrupt => return Err(self.leave_off(under_way, attempt, exit).await),
                Some(settled) = under_way.next() => settled,
            };
            hit(Point::AfterToolAnswerBeforeRecord);
            let write = Write {
                events: vec![finished_event(&settled, attempt)],
                calls: vec![settled],
                ..Write::default()
            };
            self.note_all(&write);
            if let Err(error) = self.log.write(write).await {
                return Err(self.leave_off(under_way, attempt, error.into()).await);
            }
            hit(Point::AfterToolResult);
        }
        Ok(())
    }

    /// Calls whose attempt ends before they do. One that has left may still be answered; one that has not is settled here
    /// and never leaves.
    async fn leave_off(&mut self, calls: FuturesUnordered<Sent>, attempt: u32, exit: Exit) -> Exit {
        let (sent, unsent): (Vec<Sent>, Vec<Sent>) =
            calls.into_iter().filter(|one| !one.is_question).partition(|one| one.departure.close());
        let (state, why) = match &exit {
            Exit::Lost => return exit,
            Exit::Finish(_) | Exit::Refused => {
                self.unanswered = sent.into_iter().filter(|one| one.call.effect != Effect::Read).collect();
                (CallState::Cancelled, "the run ended before this call was sent")
            }
            Exit::HandBack => (CallState::Failed, "its worker shut down before this call was sent"),
        };
        // Whoever takes the run over sends the others.
        let is_over = |one: &Sent| exit != Exit::HandBack || one.call.effect == Effect::Once;
        let mut write = Write::default();
        for one in unsent.into_iter().filter(is_over) {
            let settled = settled(one.call, state, why.to_owned());
            write.events.push(finished_event(&settled, attempt));
            write.calls.push(*settled);
        }
        if !write.calls.is_empty() {
            self.note_all(&write);
            self.log.append(write).await;
        }
        exit
    }

    /// The call as it is to be dispatched, or as it is settled without being sent.
    fn prepare(&self, call: ToolCall) -> Result<Ready, Box<ToolCall>> {
        let call = ToolCall { epoch: self.epoch, ..call };
        let tool = self.agent.tools.get(&call.name);
        let effect = tool.map(|tool| tool.spec().effect);
        let can_be_asked = tool.is_some_and(|tool| tool.can_reconcile());
        match (way_of(&call, effect, can_be_asked), tool) {
            (Way::Settle(state, why), _) => Err(settled(call, state, why.to_owned())),
            (Way::Ask, Some(tool)) => {
                let arguments = arguments::parse(&call.arguments)
                    .unwrap_or_else(|_| Value::String(call.arguments.clone()));
                Ok(Ready { tool: Arc::clone(tool), arguments, was_sent: true, call })
            }
            (_, tool) => match (self.check(&call), tool) {
                (Ok(arguments), Some(tool)) => {
                    let call = ToolCall { state: CallState::Dispatched, ..call };
                    Ok(Ready { tool: Arc::clone(tool), arguments, was_sent: false, call })
                }
                (Ok(_), None) => Err(settled(call, CallState::Failed, "there is no such tool".to_owned())),
                // It fitted when it was sent.
                (Err(why), _) if call.state == CallState::Dispatched && call.effect != Effect::Read => {
                    Err(settled(call, CallState::Unknown, why))
                }
                (Err(why), _) => Err(settled(call, CallState::Failed, why)),
            },
        }
    }

    fn check(&self, call: &ToolCall) -> Result<Value, String> {
        if self.replay.last_step().is_some_and(|(_, reason)| reason == FinishReason::Length) {
            return Err(
                "the output limit cut this answer off, so its calls may be incomplete; none was executed"
                    .to_owned(),
            );
        }
        if !self.may_call(self.replay.calls_before(call.step, call.call)) {
            return Err("the client allows no more tool calls in this run; it was not executed".to_owned());
        }
        if !self.asked.allows(&call.name) {
            return Err("the client does not allow this tool; it was not executed".to_owned());
        }
        self.agent.tools.check(&call.name, &call.arguments)
    }

    fn note_all(&mut self, write: &Write) {
        for event in &write.events {
            self.note(event);
        }
    }

    fn context_of(&self, step: u32, over: &CancellationToken) -> ToolContext {
        ToolContext {
            workspace_id: self.run.workspace_id,
            run_id: self.run.id,
            step,
            call: 0,
            idempotency_key: String::new(),
            traceparent: self.run.traceparent.clone(),
            timeout: Duration::from_millis(self.run.limits.tool_timeout_ms.max(1) as u64),
            departure: Departure::new(Arc::clone(&self.interrupts.orders), over.clone()),
        }
    }
}

/// Sends the call, unless that was done, and tells what became of it.
async fn execute(ready: Ready, cx: ToolContext) -> ToolCall {
    let Ready { call, tool, arguments, was_sent } = ready;
    let cx = ToolContext { call: call.call, idempotency_key: call.idempotency_key.clone(), ..cx };
    let limit = cx.timeout + GRACE;
    let sent = if was_sent {
        ToolOutcome::Unknown("the worker that sent this call was lost before an answer came".to_owned())
    } else {
        timeout(limit, tool.call(&arguments, &cx)).await.unwrap_or_else(|_| {
            let text = format!("the tool did not answer within {} s", cx.timeout.as_secs());
            let may_have_happened = cx.departure.close() && call.effect == Effect::Once;
            if may_have_happened { ToolOutcome::Unknown(text) } else { ToolOutcome::Failed(text) }
        })
    };
    let outcome = match sent {
        ToolOutcome::Unknown(why) if tool.can_reconcile() => {
            let cx = ToolContext { departure: cx.departure.anew(), ..cx };
            timeout(limit, tool.reconcile(&arguments, &cx)).await.unwrap_or(ToolOutcome::Unknown(why))
        }
        sent => sent,
    };
    match outcome {
        ToolOutcome::Succeeded(output) => {
            ToolCall { state: CallState::Succeeded, output: Some(output), error: None, ..call }
        }
        ToolOutcome::Failed(why) => *settled(call, CallState::Failed, why),
        ToolOutcome::Unknown(why) => *settled(call, CallState::Unknown, why),
    }
}

fn settled(call: ToolCall, state: CallState, why: String) -> Box<ToolCall> {
    Box::new(ToolCall { state, error: Some(why), ..call })
}

fn finished_event(call: &ToolCall, attempt: u32) -> Event {
    EventData::ToolFinished {
        call: call.call,
        call_id: call.call_id.clone(),
        state: call.state,
        output: call.output.clone(),
        error: call.error.clone(),
    }
    .of_step(call.step, attempt)
}

#[cfg(test)]
mod tests {
    use longhaul_shared::domain::ids::RunId;

    use super::*;

    fn call(state: CallState, effect: Effect) -> ToolCall {
        ToolCall {
            run_id: RunId::generate(),
            step: 1,
            call: 1,
            call_id: "c".into(),
            name: "t".into(),
            arguments: "{}".into(),
            effect,
            state,
            idempotency_key: "k".into(),
            epoch: 1,
            output: None,
            error: None,
            planned_at: None,
            dispatched_at: None,
            settled_at: None,
            late: None,
        }
    }

    fn way(state: CallState, effect: Effect, now: Option<Effect>) -> Way {
        way_of(&call(state, effect), now, false)
    }

    #[test]
    fn what_was_sent_goes_out_again_only_where_the_ledger_and_the_tool_both_allow_it() {
        use Effect::{Idempotent, Once, Read};
        let every = [None, Some(Read), Some(Idempotent), Some(Once)];
        for (effect, now) in [Read, Idempotent, Once].into_iter().flat_map(|e| every.map(|now| (e, now))) {
            let again = way(CallState::Dispatched, effect, now) == Way::Send;
            assert_eq!(again, effect != Once && now == Some(effect), "{effect} {now:?}");
            if let Way::Settle(state, _) = way(CallState::Dispatched, effect, now) {
                assert_eq!(state == CallState::Failed, effect == Read, "nobody knows what {effect} did");
            }
            assert_eq!(way_of(&call(CallState::Dispatched, effect), now, true) == Way::Ask, effect == Once);
        }
    }

    #[test]
    fn a_planned_call_is_not_sent_to_a_tool_that_has_become_another() {
        for (effect, now, sent) in [
            (Effect::Read, Some(Effect::Read), true),
            (Effect::Read, Some(Effect::Once), false),
            (Effect::Once, Some(Effect::Read), false),
        ] {
            assert_eq!(way(CallState::Planned, effect, now) == Way::Send, sent, "{effect} {now:?}");
        }
    }

    #[test]
    fn nothing_is_sent_without_the_approval_it_waits_for() {
        for effect in Effect::ALL {
            let way = way(CallState::AwaitingApproval, *effect, Some(*effect));
            assert!(matches!(way, Way::Settle(CallState::Failed, _)), "{way:?}");
        }
    }
}
