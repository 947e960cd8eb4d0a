//! One model call: streamed to the watchers, gathered, saved as a step.

use std::collections::BTreeMap;

use futures::StreamExt;
use longhaul_shared::domain::{
    asked::{ClientTool, ToolChoice},
    event::EventData,
    ids::Seq,
    replay::ModelMessage,
    retry::Backoff,
    run::{Ending, RunError, Usage},
    step::{FinishReason, OutputPart, Step},
    tool::{CallState, Effect, ToolCall, ToolSpec, call_id, idempotency_key},
    transition::Reason,
};
use longhaul_shared::{
    failpoint::{Point, hit},
    jitter::jitter,
    telemetry::metrics::{self, StepRetry},
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

use super::{
    attempt::Attempt,
    decide::{Next, State, next},
    interrupt::Exit,
    repetition::{Detector, Repetition, Thresholds},
};
use crate::{
    provider::{CallDelta, ModelError, ModelEvent, ModelOptions, ModelRequest},
    recorder::{Delta, DeltaKind, Write},
};

/// How often a step is done over whose stream broke off.
const RESTARTS: u32 = 3;
const RESTART_WAIT: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// A whole answer of a model.
#[derive(Default)]
struct Answer {
    calls: BTreeMap<u32, PlannedCall>,
    usage: Usage,
    finish_reason: Option<FinishReason>,
}

#[derive(Default)]
struct PlannedCall {
    name: String,
    arguments: String,
}

enum Failure {
    Exit(Exit),
    Model(ModelError),
}

impl From<Exit> for Failure {
    fn from(exit: Exit) -> Self {
        Self::Exit(exit)
    }
}

impl Attempt<'_> {
    /// Calls the model and saves the step. A stream that breaks off is done over.
    pub(super) async fn call_model(&mut self, step: u32) -> Result<(), Exit> {
        tracing::Span::current().record("step", step);
        let mut attempt = 1;
        if let Some(open) = self.replay.open() {
            let first_seq = open.first_seq;
            attempt = open.attempt + 1;
            metrics::step_retried(StepRetry::Takeover);
            self.restart(step, attempt, first_seq, "the worker before was lost").await;
        }
        let mut restarts = 0;
        loop {
            let error = match self.stream(step, attempt).await {
                Ok(answer) => {
                    hit(Point::AfterModelBeforePersist);
                    return self.save(step, attempt, answer).await;
                }
                Err(Failure::Exit(exit)) => return Err(exit),
                Err(Failure::Model(error)) => error,
            };
            let may_restart = error.is_torn() && restarts < RESTARTS;
            if !may_restart || !self.interrupts.race(self.agent.model.may_repeat()).await? {
                return Err(Exit::Finish(Ending::failed(reason_of(&error), (&error).into())));
            }
            restarts += 1;
            attempt += 1;
            tracing::warn!(%error, step, attempt, "the step is done over");
            metrics::step_retried(StepRetry::Torn);
            let position = self.log.position().await?;
            self.restart(step, attempt, position.step_started, &error.to_string()).await;
            let wait = RESTART_WAIT.wait(restarts, jitter()) + error.retry_after().unwrap_or_default();
            self.interrupts.race(sleep(wait)).await?;
        }
    }

    /// Tells watchers to drop what they saw of the step.
    async fn restart(&mut self, step: u32, attempt: u32, drop_from: Seq, why: &str) {
        let event = EventData::StepRestarted { drop_from, why: why.to_owned() }.of_step(step, attempt);
        self.note(&event);
        self.log.append(Write::events([event])).await;
    }

    async fn stream(&mut self, step: u32, attempt: u32) -> Result<Answer, Failure> {
        let started = EventData::StepStarted { model: self.agent.model_name.clone() }.of_step(step, attempt);
        self.note(&started);
        self.log.append(Write::events([started])).await;

        let request = ModelRequest {
            model: self.agent.model_name.clone(),
            messages: self.conversation_so_far(),
            tools: self.tools_on_offer(),
            client_tools: self.client_tools_on_offer().cloned().collect(),
            options: self.options(step),
            run_id: self.run.id,
            step,
            attempt,
        };
        hit(Point::BeforeModelCall);
        let interrupt = self.interrupts.clone().wait();
        tokio::pin!(interrupt);
        // A worker that was frozen until now has perhaps been replaced.
        tokio::select! {
            biased;
            exit = &mut interrupt => return Err(exit.into()),
            () = self.interrupts.orders.validity.held() => {}
        }
        let mut stream = tokio::select! {
            biased;
            exit = &mut interrupt => return Err(exit.into()),
            stream = self.agent.model.stream(request) => stream.map_err(Failure::Model)?,
        };
        let mut answer = Answer::default();
        let mut detector = self.detector();
        loop {
            let item = tokio::select! {
                biased;
                exit = &mut interrupt => return Err(exit.into()),
                item = stream.next() => item,
            };
            match item.unwrap_or(Err(ModelError::Truncated)).map_err(Failure::Model)? {
                ModelEvent::Text(text) => {
                    self.replay.extend_open(OutputPart::Text { text: text.clone() });
                    let repetition = detector.push(&text);
                    self.log.delta(Delta { kind: DeltaKind::Text, step, attempt, text }).await;
                    must_go_on(repetition)?;
                }
                ModelEvent::Reasoning(text) => {
                    self.replay.extend_open(OutputPart::Reasoning { text: text.clone() });
                    let repetition = detector.push(&text);
                    self.log.delta(Delta { kind: DeltaKind::Reasoning, step, attempt, text }).await;
                    must_go_on(repetition)?;
                }
                ModelEvent::ToolCall(delta) => {
                    answer.add(&delta, self.cx.limits.max_calls_per_step as usize)?;
                }
                ModelEvent::Usage(usage) => answer.usage = usage,
                ModelEvent::Finish(finish_reason) => {
                    answer.finish_reason = Some(finish_reason);
                    // Read to its end, the connection can be used again; the next call does not wait for that.
                    tokio::spawn(async move { while stream.next().await.is_some() {} });
                    return Ok(answer);
                }
            }
        }
    }

    /// The agent's own tools, as long as the client allows more calls of them.
    fn tools_on_offer(&self) -> Vec<ToolSpec> {
        if self.may_call(self.replay.call_count()) {
            let is_own = |spec: &&ToolSpec| !self.is_clients(&spec.name) && self.asked.allows(&spec.name);
            self.agent.tools.specs().filter(is_own).cloned().collect()
        } else {
            vec![]
        }
    }

    fn client_tools_on_offer(&self) -> impl Iterator<Item = &ClientTool> {
        self.asked.tools.iter().filter(|tool| self.asked.allows(&tool.name))
    }

    /// Whether a tool of the agent may be called that was called so often before.
    pub(super) fn may_call(&self, before: usize) -> bool {
        self.asked.max_tool_calls.is_none_or(|most| before < most as usize)
    }

    fn is_clients(&self, tool: &str) -> bool {
        self.client_tools_on_offer().any(|own| own.name == tool)
    }

    fn options(&self, step: u32) -> ModelOptions {
        let limits = [self.run.limits.max_output_tokens, self.output_left()];
        ModelOptions {
            temperature: self.asked.temperature.map(|asked| asked as f32).or(self.agent.temperature),
            top_p: self.asked.top_p.map(|asked| asked as f32),
            max_output_tokens: limits.into_iter().flatten().min(),
            reasoning_effort: self.asked.reasoning_effort.clone(),
            verbosity: self.asked.verbosity.clone(),
            format: self.asked.format.clone(),
            tool_choice: self
                .asked
                .tool_choice
                .clone()
                .filter(|choice| step == 1 || *choice == ToolChoice::None),
            parallel_tool_calls: self.asked.parallel_tool_calls,
        }
    }

    fn detector(&self) -> Detector {
        let limits = &self.cx.limits;
        Detector::new(Thresholds {
            lines: limits.loop_lines as usize,
            blocks: limits.loop_blocks as usize,
            characters: limits.loop_characters as usize,
        })
    }

    /// What the model is given. Only the steps since the last call are added: all of them again for each of a thousand
    /// steps would cost more than everything else.
    fn conversation_so_far(&mut self) -> Arc<Vec<ModelMessage>> {
        // The call before is over, so nobody else holds it and nothing is copied.
        let conversation = Arc::make_mut(&mut self.conversation);
        conversation.extend(self.replay.for_model_after(self.steps_in_conversation));
        self.steps_in_conversation =
            self.replay.last_step().map_or(self.steps_in_conversation, |(step, _)| step);
        Arc::clone(&self.conversation)
    }

    /// Saves output and planned calls together; the end of the run too, if there is nothing more to do.
    async fn save(&mut self, step: u32, attempt: u32, answer: Answer) -> Result<(), Exit> {
        let finish_reason = answer.finish_reason.unwrap_or(FinishReason::Other);
        let (mut events, mut calls) = (vec![], vec![]);
        let mut output = self.replay.open().map(|open| open.output.clone()).unwrap_or_default();
        let own = answer.calls.values().filter(|call| !self.is_clients(&call.name)).count() as u32;
        let mut client_numbers = own + 1..;
        for call in answer.calls.into_values() {
            if !self.is_clients(&call.name) {
                let call = self.plan(step, calls.len() as u32 + 1, call);
                events.push(planned_event(&call).of_step(step, attempt));
                calls.push(call);
            } else if finish_reason != FinishReason::Length || is_whole(&call.arguments) {
                let number = client_numbers.next().unwrap_or_default();
                let call_id = call_id(self.run.id, step, number);
                let PlannedCall { name, arguments } = call;
                output.push(OutputPart::Call {
                    call_id: call_id.clone(),
                    name: name.clone(),
                    arguments: arguments.clone(),
                });
                let requested = EventData::ToolRequested { call_id, name, arguments };
                events.push(requested.of_step(step, attempt));
            }
        }
        let tool_calls = events.len() as u32;
        let finished = EventData::StepFinished { finish_reason, usage: answer.usage, tool_calls };
        events.push(finished.of_step(step, attempt));
        let row = Step {
            run_id: self.run.id,
            step,
            attempt,
            epoch: self.epoch,
            model: self.agent.model_name.clone(),
            output,
            finish_reason,
            usage: answer.usage,
            first_seq: 0,
            last_seq: 0,
            started_at: 0,
            finished_at: 0,
        };
        for event in &events {
            self.note(event);
        }
        let before = self.usage;
        self.usage = before.plus(answer.usage);
        let mut write = Write { events, steps: vec![row], calls, ending: None };
        let after = next(State {
            replay: &self.replay,
            max_steps: self.run.limits.max_steps,
            max_same_calls: 0,
            output_left: self.output_left(),
            stop: None,
            is_past_deadline: false,
            is_draining: false,
        });
        if let Next::Finish(ending) = after {
            let end = self.ending(ending);
            write.events.extend(end.events);
            write.ending = end.ending;
        }
        let is_end = write.ending.is_some();
        if let Err(error) = self.log.write(write).await {
            self.usage = before;
            return Err(error.into());
        }
        self.is_over = is_end;
        Ok(())
    }

    fn plan(&self, step: u32, number: u32, call: PlannedCall) -> ToolCall {
        let effect = self.agent.tools.get(&call.name).map_or(Effect::Once, |tool| tool.spec().effect);
        ToolCall {
            run_id: self.run.id,
            step,
            call: number,
            call_id: call_id(self.run.id, step, number),
            name: call.name,
            arguments: call.arguments,
            effect,
            state: CallState::Planned,
            idempotency_key: idempotency_key(self.run.id, step, number),
            epoch: self.epoch,
            output: None,
            error: None,
            planned_at: None,
            dispatched_at: None,
            settled_at: None,
            late: None,
        }
    }
}

/// Whether the output limit has left these arguments as they were meant.
fn is_whole(arguments: &str) -> bool {
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(arguments).is_ok()
}

/// Why a run ends whose model call failed for good: a limit of ours, or the provider.
fn reason_of(error: &ModelError) -> Reason {
    match error {
        ModelError::OutputTooLarge { .. } => Reason::OutputLimit,
        ModelError::TooManyCalls { .. } => Reason::CallLimit,
        _ => Reason::Provider,
    }
}

/// What was streamed is kept; there is no use in more of it.
fn must_go_on(repetition: Option<Repetition>) -> Result<(), Failure> {
    let Some(Repetition { excerpt, times, .. }) = repetition else { return Ok(()) };
    let told = format!("the model went round in circles: it wrote {excerpt:?} {times} times in a row");
    Err(Exit::Finish(Ending::failed(Reason::Loop, RunError::new("loop", told))).into())
}

fn planned_event(call: &ToolCall) -> EventData {
    EventData::ToolPlanned {
        call: call.call,
        call_id: call.call_id.clone(),
        name: call.name.clone(),
        arguments: call.arguments.clone(),
        effect: call.effect,
    }
}

impl Answer {
    fn add(&mut self, delta: &CallDelta, most: usize) -> Result<(), Failure> {
        if !self.calls.contains_key(&delta.index) && self.calls.len() == most {
            return Err(Failure::Model(ModelError::TooManyCalls { limit: most }));
        }
        let call = self.calls.entry(delta.index).or_default();
        call.name.push_str(delta.name.as_deref().unwrap_or_default());
        call.arguments.push_str(&delta.arguments);
        Ok(())
    }
}
