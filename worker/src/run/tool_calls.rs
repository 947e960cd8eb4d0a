//! The tool calls of a step: each one planned, dispatched, then settled, and each of that on disk before the next.
//!
//! A call that was dispatched by an earlier owner goes out again only if repeating it is harmless; else its outcome is
//! unknown and the model is told so.

use futures::{StreamExt, stream::FuturesUnordered};
use longhaul_shared::{
    domain::{
        event::{Event, EventData},
        step::FinishReason,
        tool::{CallState, Effect, ToolCall},
    },
    mutant,
};
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

use super::{attempt::Attempt, interrupt::Exit};
use crate::{
    recorder::Write,
    tools::{Tool, ToolContext, ToolOutcome},
};

/// What a tool gets on top of its time limit to report that it has run out.
const GRACE: Duration = Duration::from_secs(2);

/// A call that may be sent.
struct Ready {
    call: ToolCall,
    tool: Arc<dyn Tool>,
    arguments: Value,
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
                    let started =
                        EventData::ToolStarted { call: one.call.call, call_id: one.call.call_id.clone() };
                    write.events.push(started.of_step(step, attempt));
                    write.calls.push(one.call.clone());
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
        let only_read = ready.iter().all(|one| one.call.effect == Effect::Read) && !ready.is_empty();
        if only_read || mutant::is("dispatch_before_record") {
            self.log.append(write).await;
        } else {
            self.log.write(write).await?;
        }

        let mut under_way: FuturesUnordered<_> =
            ready.into_iter().map(|one| execute(one, self.context_of(step))).collect();
        let interrupt = self.interrupts.clone().wait();
        tokio::pin!(interrupt);
        while !under_way.is_empty() {
            let settled = tokio::select! {
                biased;
                exit = &mut interrupt => return Err(exit),
                Some(settled) = under_way.next() => settled,
            };
            let write = Write {
                events: vec![finished_event(&settled, attempt)],
                calls: vec![settled],
                ..Write::default()
            };
            self.note_all(&write);
            self.log.write(write).await?;
        }
        Ok(())
    }

    /// The call as it is to be dispatched, or as it is settled without being sent.
    fn prepare(&self, call: ToolCall) -> Result<Ready, Box<ToolCall>> {
        let epoch = self.epoch;
        if call.state == CallState::Dispatched && call.effect == Effect::Once {
            return Err(Box::new(ToolCall { state: CallState::Unknown, epoch, ..call }));
        }
        let is_cut = self.replay.last_step().is_some_and(|(_, reason)| reason == FinishReason::Length);
        let checked = if is_cut {
            Err("the output limit cut this answer off, so its calls may be incomplete; none was executed"
                .to_owned())
        } else {
            self.agent.tools.check(&call.name, &call.arguments)
        };
        match (checked, self.agent.tools.get(&call.name)) {
            (Ok(arguments), Some(tool)) => {
                let call = ToolCall { state: CallState::Dispatched, epoch, ..call };
                Ok(Ready { call, tool: Arc::clone(tool), arguments })
            }
            (Ok(_), None) => Err(Box::new(failed(call, epoch, "there is no such tool".to_owned()))),
            (Err(why), _) => Err(Box::new(failed(call, epoch, why))),
        }
    }

    fn note_all(&mut self, write: &Write) {
        for event in &write.events {
            self.note(event);
        }
    }

    fn context_of(&self, step: u32) -> ToolContext {
        ToolContext {
            workspace_id: self.run.workspace_id,
            run_id: self.run.id,
            step,
            call: 0,
            idempotency_key: String::new(),
            traceparent: self.run.traceparent.clone(),
            timeout: Duration::from_millis(self.run.limits.tool_timeout_ms.max(1) as u64),
        }
    }
}

/// Sends the call and tells what became of it.
async fn execute(ready: Ready, cx: ToolContext) -> ToolCall {
    let Ready { call, tool, arguments } = ready;
    let cx = ToolContext { call: call.call, idempotency_key: call.idempotency_key.clone(), ..cx };
    let outcome = timeout(cx.timeout + GRACE, tool.call(&arguments, &cx)).await.unwrap_or_else(|_| {
        let text = format!("the tool did not answer within {} s", cx.timeout.as_secs());
        if call.effect == Effect::Once { ToolOutcome::Unknown(text) } else { ToolOutcome::Failed(text) }
    });
    match outcome {
        ToolOutcome::Succeeded(output) => {
            ToolCall { state: CallState::Succeeded, output: Some(output), error: None, ..call }
        }
        ToolOutcome::Failed(why) => {
            let epoch = call.epoch;
            failed(call, epoch, why)
        }
        ToolOutcome::Unknown(why) => ToolCall { state: CallState::Unknown, error: Some(why), ..call },
    }
}

fn failed(call: ToolCall, epoch: i64, why: String) -> ToolCall {
    ToolCall { state: CallState::Failed, epoch, error: Some(why), ..call }
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
