//! The model: a plan for each run, told piece by piece, and what must be true of each request to it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use longhaul_shared::domain::{
    ids::RunId,
    replay::{ModelMessage, Replay},
    run::Usage,
    step::FinishReason,
    tool::ToolCall,
};
use longhaul_worker::provider::{CallDelta, Model, ModelError, ModelEvent, ModelRequest, ModelStream};
use tokio::time::sleep;

use crate::{
    client::{FIRST_EPILOGUE, op_of},
    effects::TOOLS,
    world::{World, with},
};

/// How often each step was asked for, and broke off.
#[derive(Default)]
pub struct Calls {
    steps: BTreeMap<(RunId, u32), (u64, u64)>,
    number: u64,
}

pub struct SimModel;

type Piece = (u64, Result<ModelEvent, ModelError>);

#[async_trait]
impl Model for SimModel {
    async fn stream(&self, request: ModelRequest) -> Result<ModelStream, ModelError> {
        let pieces = with(|world| world.answer(&request));
        Ok(stream::iter(pieces)
            .then(async |(after, piece): Piece| {
                sleep(Duration::from_millis(after)).await;
                with(|world| world.activity += 1);
                piece
            })
            .boxed())
    }
}

impl World {
    fn answer(&mut self, request: &ModelRequest) -> Vec<Piece> {
        self.check_request(request);
        self.coverage.model_calls += 1;
        self.activity += 1;
        self.calls.number += 1;
        let number = self.calls.number;
        let (times, torn_before) = {
            let asked = self.calls.steps.entry((request.run_id, request.step)).or_default();
            asked.0 += 1;
            *asked
        };
        let op = op_of(&self.store, request.run_id);
        let mut rng = self.rng_of(&[1, u64::from(op), u64::from(request.step), times]);
        let calls = self.plan(op, request.step);
        let mut pieces: Vec<Piece> = (0..rng.u64(1..=3))
            .map(|piece| {
                let text = format!("m{number}:{piece} ");
                let is_thought = piece == 0 && rng.u8(0..4) == 0;
                (
                    rng.u64(1..25),
                    Ok(if is_thought { ModelEvent::Reasoning(text) } else { ModelEvent::Text(text) }),
                )
            })
            .collect();
        let is_torn = !self.is_healed && rng.u16(0..1_000) < self.schedule.weather.torn;
        if is_torn {
            pieces.truncate(rng.usize(0..=pieces.len()));
            let error =
                [ModelError::Truncated, ModelError::Broken, ModelError::Silence(Duration::from_secs(1))]
                    [rng.usize(0..3)]
                .clone();
            pieces.push((rng.u64(1..25), Err(error)));
            self.coverage.streams_torn += 1;
            if let Some(asked) = self.calls.steps.get_mut(&(request.run_id, request.step)) {
                asked.1 += 1;
            }
        } else {
            for (index, tool) in (0..).zip(&calls) {
                let arguments = format!("{{\"of\":\"{}\"}}", request.step);
                let name = Some(TOOLS[*tool].0.to_owned());
                pieces.push((1, Ok(ModelEvent::ToolCall(CallDelta { index, id: None, name, arguments }))));
            }
            let usage = Usage { input_tokens: 10, output_tokens: number as i64, ..Usage::default() };
            pieces.push((0, Ok(ModelEvent::Usage(usage))));
            let reason = if calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls };
            pieces.push((0, Ok(ModelEvent::Finish(reason))));
        }
        let (process, name) = (self.current, self.name_of(request.run_id));
        self.note(|| {
            format!(
                "p{process} asks the model for step {} of {name}, m{number}, torn: {is_torn}",
                request.step
            )
        });
        let claims = self.store.rows(|rows| rows.runs.get(&request.run_id).map_or(0, |row| row.run.attempts));
        if times > u64::from(claims) + torn_before {
            self.violate(format!(
                "step {} of {name} was asked for {times} times, with {claims} claims and {torn_before} torn streams",
                request.step
            ));
        }
        pieces
    }

    /// The tools that the step calls: none in the last one.
    fn plan(&self, op: u32, step: u32) -> Vec<usize> {
        if op >= FIRST_EPILOGUE {
            return vec![];
        }
        let mut rng = self.rng_of(&[2, u64::from(op)]);
        let steps = [1, 1, 2, 2, 3, 4][rng.usize(0..6)];
        if step >= steps {
            return vec![];
        }
        let mut rng = self.rng_of(&[3, u64::from(op), u64::from(step)]);
        (0..rng.usize(1..=3)).map(|_| rng.usize(0..TOOLS.len())).collect()
    }

    fn check_request(&mut self, request: &ModelRequest) {
        let messages: &Arc<Vec<ModelMessage>> = &request.messages;
        if let Some(why) = malformed(messages) {
            self.violate(format!("a request to the model is malformed: {why}"));
        }
        let (run_id, step) = (request.run_id, request.step);
        let (said, saved, holder) = self.store.rows(|rows| {
            let steps: Vec<_> = rows.steps.get(&run_id).into_iter().flatten().cloned().collect();
            let saved = steps.len() as u32;
            let calls = rows.calls.get(&run_id).into_iter().flat_map(|calls| calls.values().cloned());
            let before = steps.into_iter().filter(|saved| saved.step < step);
            // A late answer is told to those who load the run behind it.
            let calls = calls.filter(|call| call.step < step).map(|call| ToolCall { late: None, ..call });
            let said = Replay::from_rows(run_id, before, calls).for_model();
            (said, saved, rows.jobs.get(&run_id).and_then(|job| job.worker_id))
        });
        if !without_late_answers(messages).ends_with(&said) {
            let name = self.name_of(run_id);
            self.violate(format!(
                "the model is asked for step {step} of {name} without what was saved before"
            ));
        }
        if saved + 1 < step {
            let name = self.name_of(run_id);
            self.violate(format!("the model is asked for step {step} of {name}, {saved} are saved"));
        }
        let is_holder = holder.and_then(|worker| self.leases.get(&worker)) == Some(&self.current);
        if is_holder && saved + 1 != step {
            let name = self.name_of(run_id);
            self.violate(format!("the holder of {name} asks for step {step} again, {saved} are saved"));
        }
    }
}

fn without_late_answers(messages: &[ModelMessage]) -> Vec<ModelMessage> {
    let cut = |message: &ModelMessage| match message {
        ModelMessage::ToolResult { call_id, content } => {
            let at_the_end = content.split(" Its answer came later: ").next().unwrap_or_default();
            ModelMessage::ToolResult { call_id: call_id.clone(), content: at_the_end.to_owned() }
        }
        other => other.clone(),
    };
    messages.iter().map(cut).collect()
}

/// Each planned call is followed by exactly one result, in order.
fn malformed(messages: &[ModelMessage]) -> Option<String> {
    let mut waiting: Vec<&str> = vec![];
    for message in messages {
        match message {
            ModelMessage::ToolResult { call_id, content } => {
                if waiting.first() != Some(&call_id.as_str()) {
                    return Some(format!("a result of {call_id}, {waiting:?} were due"));
                }
                if content == "This call has no result yet." {
                    return Some(format!("{call_id} has no result"));
                }
                waiting.remove(0);
            }
            _ if !waiting.is_empty() => return Some(format!("no results of {waiting:?}")),
            ModelMessage::Assistant { calls, .. } => {
                waiting = calls.iter().map(|call| call.call_id.as_str()).collect();
            }
            ModelMessage::System(_) | ModelMessage::User(_) => {}
        }
    }
    (!waiting.is_empty()).then(|| format!("no results of {waiting:?}"))
}
