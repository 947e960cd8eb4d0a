//! One connection that does what the product does to its database, and nothing else: no HTTP, no bus, no recorder.
//!
//! A lane calls the store's own functions one after the other, so the floor is the same SQL in the same round trips.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use longhaul_shared::{
    domain::{
        event::{Event, EventData},
        ids::{WorkerId, WorkspaceId},
        message::Part,
        run::{Claim, Ending, Limits, Trigger, Usage},
        step::{FinishReason, OutputPart, Step},
        tool::{CallState, Effect, ToolCall, call_id, idempotency_key},
    },
    store::{Append, IfBusy, NewRun, NewWorker, SharedStore},
};
use serde_json::json;

use crate::provider::SENTENCE;

const QUEUE: &str = "default";
/// Longer than any measurement.
const LEASE: Duration = Duration::from_hours(1);
/// What the clock answers, in length.
const TIME: &str = r#"{"time":"2026-01-01T00:00:00.000Z","timezone":"UTC"}"#;

pub(crate) struct Lane {
    store: SharedStore,
    workspace_id: WorkspaceId,
    worker_id: WorkerId,
}

impl Lane {
    pub(crate) async fn new(store: SharedStore, workspace_id: WorkspaceId) -> Result<Self> {
        let id = WorkerId::generate();
        let worker = NewWorker {
            id,
            host: "bench".to_owned(),
            version: "0".to_owned(),
            slots: 1,
            lease_ms: LEASE.as_millis() as i64,
            renewal_ms: LEASE.as_millis() as i64,
            presence: None,
        };
        store.register_worker(&worker).await?;
        Ok(Self { store, workspace_id, worker_id: id })
    }

    /// The submit transaction, and how long it took.
    pub(crate) async fn admit(&self) -> Result<Duration> {
        let new = NewRun {
            workspace_id: self.workspace_id,
            chat_id: None,
            client_chat_id: None,
            client_message_id: None,
            replaces: false,
            agent: "floor".to_owned(),
            input: vec![Part::Text { text: "go".to_owned() }],
            if_busy: IfBusy::Reject,
            start: None,
            trigger: Trigger::Api,
            created_by: Some("bench".to_owned()),
            limits: Limits::default(),
            tags: vec![],
            metadata: json!({}),
            traceparent: None,
            renderer: 1,
            queue: QUEUE.to_owned(),
            priority: 0,
            idempotency: None,
            request: None,
        };
        let begun = Instant::now();
        self.store.admit(new).await?;
        Ok(begun.elapsed())
    }

    /// Any run that is there. Another lane may have taken ours and left us its own a moment later.
    pub(crate) async fn claim(&self) -> Result<Claim> {
        loop {
            let mut claims = self.store.claim(self.worker_id, &[QUEUE.to_owned()], 1).await?;
            if let Some((claim, _)) = claims.pop() {
                return Ok(claim);
            }
        }
    }

    async fn commit(&self, append: Append) -> Result<()> {
        let mut results = self.store.commit(std::slice::from_ref(&append)).await;
        results.pop().context("a commit answers for each append")??;
        Ok(())
    }

    /// The rest of a run with one step: the step write, then the finalize; or both in one, as the product does where
    /// it can.
    pub(crate) async fn finish(&self, claim: &Claim, in_one: bool) -> Result<()> {
        let mut log = Writing::new(claim);
        let ending = Ending::done();
        let finished = EventData::RunFinished {
            status: ending.status(),
            reason: ending.reason,
            error: None,
            usage: Usage::default(),
            step_count: 1,
        };
        let mut append = log.step(1, FinishReason::Stop);
        if !in_one {
            self.commit(append).await?;
            append = log.append(vec![]);
        }
        append.events.push(finished.of_run());
        append.ending = Some(ending);
        self.commit(append).await
    }

    /// So many appends after each other, one for each step, until the time is over; answers with the number of steps.
    pub(crate) async fn steps(&self, until: Instant, calls: Calls) -> Result<usize> {
        self.admit().await?;
        let claim = self.claim().await?;
        let mut log = Writing::new(&claim);
        let mut steps = 0;
        while Instant::now() < until {
            steps += 1;
            self.step(&mut log, steps, calls).await?;
        }
        Ok(steps as usize)
    }

    /// One step of a long run.
    pub(crate) async fn step(&self, log: &mut Writing<'_>, step: u32, calls: Calls) -> Result<()> {
        let mut append = log.step(step, FinishReason::ToolCalls);
        let call = log.call(step);
        let planned = EventData::ToolPlanned {
            call: 1,
            call_id: call.call_id.clone(),
            name: call.name.clone(),
            arguments: call.arguments.clone(),
            effect: call.effect,
        };
        if calls == Calls::None {
            return self.commit(append).await;
        }
        append.events.insert(append.events.len() - 1, planned.of_step(step, 1));
        append.calls.push(call.clone());
        log.next += 1;
        self.commit(append).await?;

        let started = EventData::ToolStarted { call: 1, call_id: call.call_id.clone() };
        let mut append = log.append(vec![started.of_step(step, 1)]);
        append.calls.push(ToolCall { state: CallState::Dispatched, ..call.clone() });
        self.commit(append).await?;

        let finished = EventData::ToolFinished {
            call: 1,
            call_id: call.call_id.clone(),
            state: CallState::Succeeded,
            output: Some(TIME.to_owned()),
            error: None,
        };
        let mut append = log.append(vec![finished.of_step(step, 1)]);
        append.calls.push(ToolCall { state: CallState::Succeeded, output: Some(TIME.to_owned()), ..call });
        self.commit(append).await
    }
}

/// What a step of the floor has besides its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// One append.
    None,
    /// A tool call, saved before it is sent, when it is sent, and when its result is there: three appends.
    One,
}

/// What has been written of a run.
pub(crate) struct Writing<'a> {
    claim: &'a Claim,
    next: i64,
}

impl<'a> Writing<'a> {
    pub(crate) fn new(claim: &'a Claim) -> Self {
        Self { claim, next: claim.last_seq + 1 }
    }

    fn append(&mut self, events: Vec<Event>) -> Append {
        let claim = self.claim;
        let append = Append {
            workspace_id: claim.run.workspace_id,
            chat_id: claim.run.chat_id,
            run_id: claim.run.id,
            assistant_message_id: claim.run.assistant_message_id,
            epoch: claim.epoch,
            first_seq: self.next,
            events,
            steps: vec![],
            calls: vec![],
            ending: None,
            stop_requested_at: None,
        };
        self.next += append.events.len() as i64;
        append
    }

    /// The step write: the model's output as it was shown, and the row that keeps it.
    fn step(&mut self, step: u32, finish_reason: FinishReason) -> Append {
        let usage = Usage { input_tokens: 10, output_tokens: 10, ..Usage::default() };
        let first_seq = self.next;
        let mut append = self.append(vec![
            EventData::StepStarted { model: "script".to_owned() }.of_step(step, 1),
            EventData::TextDelta { text: SENTENCE.to_owned() }.of_step(step, 1),
            EventData::StepFinished { finish_reason, usage, tool_calls: 1 }.of_step(step, 1),
        ]);
        append.steps.push(Step {
            run_id: append.run_id,
            step,
            attempt: 1,
            epoch: append.epoch,
            model: "script".to_owned(),
            output: vec![OutputPart::Text { text: SENTENCE.to_owned() }],
            finish_reason,
            usage,
            first_seq,
            last_seq: append.last_seq(),
            started_at: 0,
            finished_at: 0,
        });
        append
    }

    fn call(&self, step: u32) -> ToolCall {
        let run_id = self.claim.run.id;
        ToolCall {
            run_id,
            step,
            call: 1,
            call_id: call_id(run_id, step, 1),
            name: "clock".to_owned(),
            arguments: "{}".to_owned(),
            effect: Effect::Read,
            state: CallState::Planned,
            idempotency_key: idempotency_key(run_id, step, 1),
            epoch: self.claim.epoch,
            output: None,
            error: None,
            planned_at: None,
            dispatched_at: None,
            settled_at: None,
            late: None,
        }
    }
}
