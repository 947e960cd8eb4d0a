//! The AI SDK's UI message stream, version 1: a run's log as chunks, and as the message that a page makes of them.
//!
//! Chunks are numbered from 0 in their run. [`Encoder`] is a pure function of the log, so that every replay has the
//! same chunks under the same numbers, and [`UiMessage`] a pure function of the chunks, so that what is stored is what
//! was seen. But for approvals, which version 5 does not have, only forms are used that versions 5 to 7 of the SDK
//! accept. A run that waits for an approval ends the answer for the page; when it goes on, so does that message.
//!
//! A change of what is made of an event changes the replays of all runs: it needs a renderer of its own, chosen by the
//! version that the run has (`runs.renderer`), as the one that drops the text of a step that is done over, which version
//! 7 alone understands.

mod chunk;
mod message;

use std::collections::{BTreeMap, BTreeSet};

use longhaul_shared::domain::{
    event::{Event, EventData, Wait},
    ids::{MessageId, RunId},
    step::FinishReason,
    tool::CallState,
    transition::RunStatus,
};
use serde_json::{Map, Value};

pub(crate) use chunk::{Chunk, ChunkFinish, Metadata};
pub(crate) use message::UiMessage;

/// The renderer whose chunks all versions of the SDK accept: the text of a step that is done over stays.
pub(crate) const PORTABLE: i32 = 1;
/// The renderer that takes it back.
pub(crate) const RESETTING: i32 = 2;

/// What a stream says behind its last chunk.
pub(crate) const DONE: &str = "data: [DONE]\n\n";

/// What goes on being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Reasoning,
}

/// Turns the events of one log, from the first one on, into chunks.
#[derive(Debug)]
pub(crate) struct Encoder {
    run_id: RunId,
    message_id: MessageId,
    takes_back: bool,
    is_started: bool,
    /// The part that is being written, and its id.
    part: Option<(Kind, String)>,
    /// How many parts have been begun.
    parts: u32,
    /// A `start-step` without its `finish-step`.
    is_step_open: bool,
    /// The step under way is saved: it is finished with the last of its calls.
    is_step_saved: bool,
    /// The calls that have no outcome yet, by step and number.
    open_calls: BTreeMap<(u32, u32), String>,
    /// Those of them that the page is asked about.
    asked: BTreeSet<(u32, u32)>,
    /// The answer has ended for the page, and the run waits for it.
    is_paused: bool,
    last_reason: Option<FinishReason>,
    /// A call is left to the page.
    asks_page: bool,
}

impl Encoder {
    /// The answer of that run, in the message that it is written into.
    pub(crate) fn new(run_id: RunId, message_id: MessageId, renderer: i32) -> Self {
        Self {
            run_id,
            message_id,
            takes_back: renderer == RESETTING,
            is_started: false,
            part: None,
            parts: 0,
            is_step_open: false,
            is_step_saved: false,
            open_calls: BTreeMap::new(),
            asked: BTreeSet::new(),
            is_paused: false,
            last_reason: None,
            asks_page: false,
        }
    }

    /// What the next event of the log adds.
    pub(crate) fn push(&mut self, event: &Event, out: &mut Vec<Chunk>) {
        if !self.is_started {
            self.is_started = true;
            self.start(out);
        }
        let step = event.step.unwrap_or(0);
        match event.data() {
            Some(EventData::StepStarted { .. }) => {
                self.finish_step(out);
                out.push(Chunk::StartStep);
                (self.is_step_open, self.is_step_saved) = (true, false);
            }
            Some(EventData::StepRestarted { .. }) if self.takes_back => {
                self.part = None;
                if std::mem::take(&mut self.is_step_open) {
                    out.push(Chunk::ResetStep);
                }
            }
            Some(EventData::StepRestarted { .. }) => self.finish_step(out),
            Some(EventData::TextDelta { text }) => self.write(Kind::Text, text, out),
            Some(EventData::ReasoningDelta { text }) => self.write(Kind::Reasoning, text, out),
            Some(EventData::ToolPlanned { call, call_id, name, arguments, .. }) => {
                self.asked.remove(&(step, call));
                self.plan((step, call), call_id, name, arguments, out);
            }
            Some(EventData::WaitCreated {
                wait_id,
                wait: Wait::Approval { call, call_id, name, arguments, .. },
            }) => {
                self.plan((step, call), call_id.clone(), name, arguments, out);
                self.asked.insert((step, call));
                out.push(Chunk::ToolApprovalRequest {
                    approval_id: wait_id.to_string(),
                    tool_call_id: call_id,
                });
            }
            // Whatever else it waits for is no concern of the page.
            Some(EventData::RunWaiting { usage }) if !self.asked.is_empty() => {
                self.is_paused = true;
                self.finish_step(out);
                let message_metadata = Some(Metadata::of_pause(usage));
                out.push(Chunk::Finish { finish_reason: ChunkFinish::ToolCalls, message_metadata });
            }
            Some(EventData::RunResumed {}) => self.go_on(out),
            Some(EventData::ToolRequested { call_id, name, arguments }) => {
                self.end_part(out);
                self.asks_page = true;
                out.push(tool_input(call_id, name, arguments, false));
            }
            Some(EventData::StepFinished { finish_reason, .. }) => {
                self.end_part(out);
                self.last_reason = Some(finish_reason);
                self.is_step_saved = true;
                self.finish_step_if_settled(out);
            }
            Some(EventData::ToolFinished { call, call_id, state, output, error }) => {
                self.go_on(out);
                let was_asked = self.asked.remove(&(step, call));
                if self.open_calls.remove(&(step, call)).is_some() {
                    out.push(if was_asked && state == CallState::Denied {
                        Chunk::ToolOutputDenied { tool_call_id: call_id }
                    } else {
                        outcome(call_id, state, output, error)
                    });
                }
                self.finish_step_if_settled(out);
            }
            Some(EventData::RunFinished { status, reason, error, usage, .. }) => {
                self.go_on(out);
                self.finish_step(out);
                let metadata = Metadata::of_end(status, reason, usage);
                let mut message_metadata = Some(metadata.clone());
                let finish_reason = match (status, reason) {
                    (RunStatus::Aborted, _) => {
                        out.push(Chunk::Abort);
                        ChunkFinish::Other
                    }
                    (RunStatus::Failed, reason) if !reason.is_limit() => {
                        let error_text = error.map_or_else(|| reason.to_string(), |error| error.message);
                        // Pages read nothing behind the error.
                        message_metadata = None;
                        out.push(Chunk::MessageMetadata { message_metadata: metadata });
                        out.push(Chunk::Error { error_text });
                        ChunkFinish::Error
                    }
                    (RunStatus::Failed, _) => ChunkFinish::Length,
                    _ => match self.last_reason {
                        Some(FinishReason::Length) => ChunkFinish::Length,
                        Some(FinishReason::ContentFilter) => ChunkFinish::ContentFilter,
                        _ if self.asks_page => ChunkFinish::ToolCalls,
                        _ => ChunkFinish::Stop,
                    },
                };
                out.push(Chunk::Finish { finish_reason, message_metadata });
            }
            Some(
                EventData::RunQueued { .. }
                | EventData::RunClaimed { .. }
                | EventData::RunReleased { .. }
                | EventData::RunWaiting { .. }
                | EventData::RunStopping { .. }
                | EventData::ToolStarted { .. },
            )
            | None => {}
        }
    }

    fn start(&self, out: &mut Vec<Chunk>) {
        let message_metadata = Metadata::of_run(self.run_id);
        out.push(Chunk::Start { message_id: self.message_id.to_string(), message_metadata });
    }

    /// Behind a pause the message goes on from its beginning.
    fn go_on(&mut self, out: &mut Vec<Chunk>) {
        if std::mem::take(&mut self.is_paused) {
            self.start(out);
        }
    }

    /// Shows a call, unless the page was asked about it before.
    fn plan(
        &mut self,
        place: (u32, u32),
        call_id: String,
        name: String,
        arguments: String,
        out: &mut Vec<Chunk>,
    ) {
        if self.open_calls.insert(place, call_id.clone()).is_none() {
            self.end_part(out);
            out.push(tool_input(call_id, name, arguments, true));
        }
    }

    fn write(&mut self, kind: Kind, delta: String, out: &mut Vec<Chunk>) {
        if self.part.as_ref().is_none_or(|(open, _)| *open != kind) {
            self.end_part(out);
            self.parts += 1;
            let id = format!("{}{}", if kind == Kind::Text { "t" } else { "r" }, self.parts);
            out.push(match kind {
                Kind::Text => Chunk::TextStart { id: id.clone() },
                Kind::Reasoning => Chunk::ReasoningStart { id: id.clone() },
            });
            self.part = Some((kind, id));
        }
        if let Some((_, id)) = &self.part {
            let id = id.clone();
            out.push(match kind {
                Kind::Text => Chunk::TextDelta { id, delta },
                Kind::Reasoning => Chunk::ReasoningDelta { id, delta },
            });
        }
    }

    fn end_part(&mut self, out: &mut Vec<Chunk>) {
        if let Some((kind, id)) = self.part.take() {
            out.push(match kind {
                Kind::Text => Chunk::TextEnd { id },
                Kind::Reasoning => Chunk::ReasoningEnd { id },
            });
        }
    }

    fn finish_step(&mut self, out: &mut Vec<Chunk>) {
        self.end_part(out);
        if std::mem::take(&mut self.is_step_open) {
            out.push(Chunk::FinishStep);
        }
    }

    fn finish_step_if_settled(&mut self, out: &mut Vec<Chunk>) {
        if self.is_step_saved && self.open_calls.is_empty() {
            self.finish_step(out);
        }
    }
}

fn outcome(tool_call_id: String, state: CallState, output: Option<String>, error: Option<String>) -> Chunk {
    if state == CallState::Succeeded {
        return Chunk::tool_output(tool_call_id, Value::String(output.unwrap_or_default()));
    }
    let error_text = error.unwrap_or_else(|| without_reason(state).to_owned());
    Chunk::tool_error(tool_call_id, error_text)
}

/// Arguments that are no object are shown as the text that they are. Decided here, by the letter: what a later version
/// makes of arguments must not change what is shown of an old run.
fn tool_input(call_id: String, name: String, arguments: String, is_ours: bool) -> Chunk {
    let (input, why) = match serde_json::from_str::<Map<String, Value>>(&arguments) {
        Ok(input) => (Value::Object(input), None),
        Err(_) if arguments.trim().is_empty() => (Value::Object(Map::new()), None),
        Err(_) => (Value::String(arguments), Some("The arguments are not a JSON object.".to_owned())),
    };
    Chunk::tool_input(call_id, name, input, why, is_ours)
}

fn without_reason(state: CallState) -> &'static str {
    match state {
        CallState::Unknown => "It was sent and no answer was seen. It may or may not have taken effect.",
        CallState::Cancelled => "It was cancelled.",
        CallState::Denied => "It was denied. It was not executed.",
        _ => "The tool gave no reason.",
    }
}

#[cfg(test)]
mod tests;
