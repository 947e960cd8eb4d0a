//! OpenAI's Responses: a run's log as the events of its stream, and as the object that they lead to.
//!
//! Events are numbered from 0 in their response. [`Encoder`] is a pure function of the log and of what was asked at the
//! creation, so that every replay has the same bytes under the same numbers, and the stored object is the one that the
//! last event carries. Only event and item types are used that the SDKs know.

mod input_item;
mod item;
mod response;

use std::collections::BTreeMap;

use longhaul_shared::domain::{
    event::{Event, EventData},
    ids::Millis,
    run::RunError,
    step::FinishReason,
    tool::CallState,
    transition::{Reason, RunStatus},
};
use serde_json::{Value, json};

pub(crate) use input_item::{input_items, message_of_item};
pub(crate) use item::{Content, Item, run_of_item};
use item::{ItemStatus, Phase, item_id};
pub(crate) use response::{Head, Outcome, Status, chat_of, conversation_id, response_id, run_of, seconds};

/// What a stream says behind its last event.
pub(crate) const DONE: &str = "data: [DONE]\n\n";
/// Whose tools the worker's are.
const SERVER_LABEL: &str = "longhaul";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Reasoning,
}

/// Turns the events of one log, from the first one on, into the events of a stream.
#[derive(Debug)]
pub(crate) struct Encoder {
    head: Head,
    /// The number of the next event.
    next: u64,
    status: Status,
    outcome: Outcome,
    /// All items by `output_index`.
    items: Vec<Item>,
    /// Where the items of the step under way begin.
    step_begins: usize,
    /// Items of attempts that broke off: closed, and no part of the output.
    torn: Vec<bool>,
    /// The item that is being written.
    open: Option<(Kind, usize)>,
    /// The calls that have no outcome yet, by step and number.
    calls: BTreeMap<(u32, u32), usize>,
    last_reason: Option<FinishReason>,
}

impl Encoder {
    pub(crate) fn new(head: Head) -> Self {
        Self {
            head,
            next: 0,
            status: Status::Queued,
            outcome: Outcome::default(),
            items: vec![],
            step_begins: 0,
            torn: vec![],
            open: None,
            calls: BTreeMap::new(),
            last_reason: None,
        }
    }

    /// The object as the log has it so far.
    pub(crate) fn response(&self) -> Value {
        let is_over = !matches!(self.status, Status::Queued | Status::InProgress);
        // What is under way has no output yet: its readers put it together from the events.
        let output: Vec<&Item> = if is_over { self.output().collect() } else { vec![] };
        self.head.response(self.status, &output, &self.outcome)
    }

    /// The items that count, in order.
    pub(crate) fn output(&self) -> impl Iterator<Item = &Item> {
        self.items().filter(|(_, is_torn)| !is_torn).map(|(item, _)| item)
    }

    /// All items, and whether each is of an attempt that broke off.
    pub(crate) fn items(&self) -> impl Iterator<Item = (&Item, bool)> {
        self.items.iter().zip(self.torn.iter().copied())
    }

    /// What the next event of the log adds to the stream.
    pub(crate) fn push(&mut self, at: Millis, event: &Event, out: &mut Vec<Value>) {
        let step = event.step.unwrap_or(0);
        match event.data() {
            Some(EventData::RunQueued { .. }) if self.next == 0 => {
                self.lifecycle("response.created", out);
                self.lifecycle("response.queued", out);
            }
            Some(EventData::RunClaimed { .. }) if self.status == Status::Queued => {
                self.status = Status::InProgress;
                self.lifecycle("response.in_progress", out);
            }
            Some(EventData::StepStarted { .. }) => self.step_begins = self.items.len(),
            Some(EventData::StepRestarted { .. }) => {
                self.close(ItemStatus::Incomplete, out);
                self.torn[self.step_begins..].fill(true);
            }
            Some(EventData::TextDelta { text }) => self.write(Kind::Text, &text, out),
            Some(EventData::ReasoningDelta { text }) => self.write(Kind::Reasoning, &text, out),
            Some(EventData::StepFinished { finish_reason, .. }) => {
                let is_whole = finish_reason != FinishReason::Interrupted;
                if is_whole {
                    self.close_as(ItemStatus::Completed, Some(Phase::FinalAnswer), out);
                } else {
                    self.close(ItemStatus::Incomplete, out);
                }
                self.last_reason = Some(finish_reason);
            }
            Some(EventData::ToolPlanned { call, name, arguments, .. }) => {
                self.close_as(ItemStatus::Completed, Some(Phase::Commentary), out);
                let index = self.call(step, name, arguments, out);
                self.calls.insert((step, call), index);
            }
            Some(EventData::ToolRequested { call_id, name, arguments }) => {
                self.close_as(ItemStatus::Completed, Some(Phase::Commentary), out);
                self.request(step, call_id, name, arguments, out);
            }
            Some(EventData::ToolFinished { call, state, output, error, .. }) => {
                if let Some(index) = self.calls.remove(&(step, call)) {
                    self.settle(index, state, output, error, out);
                }
            }
            Some(EventData::RunFinished { status, reason, error, usage, .. }) => {
                self.close(ItemStatus::Incomplete, out);
                self.outcome.usage = Some(usage);
                self.finish(status, reason, error, at, out);
            }
            Some(
                EventData::RunQueued { .. }
                | EventData::RunClaimed { .. }
                | EventData::RunReleased { .. }
                | EventData::RunStopping { .. }
                | EventData::ToolStarted { .. },
            )
            | None => {}
        }
    }

    fn say(&mut self, kind: &str, mut fields: Value, out: &mut Vec<Value>) {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.next.into();
        self.next += 1;
        out.push(fields);
    }

    fn lifecycle(&mut self, kind: &str, out: &mut Vec<Value>) {
        let response = self.response();
        self.say(kind, json!({"response": response}), out);
    }

    /// The place of an item, as each of its events has it.
    fn place(&self, index: usize) -> Value {
        json!({"item_id": self.items[index].id(), "output_index": index})
    }

    fn next_id(&self, prefix: &str) -> String {
        item_id(prefix, self.head.run_id, self.items.len())
    }

    fn add(&mut self, item: Item, out: &mut Vec<Value>) -> usize {
        let index = self.items.len();
        self.say("response.output_item.added", json!({"output_index": index, "item": item}), out);
        self.items.push(item);
        self.torn.push(false);
        index
    }

    fn done(&mut self, index: usize, out: &mut Vec<Value>) {
        let fields = json!({"output_index": index, "item": self.items[index]});
        self.say("response.output_item.done", fields, out);
    }

    fn write(&mut self, kind: Kind, delta: &str, out: &mut Vec<Value>) {
        let index = match self.open {
            Some((open, index)) if open == kind => index,
            _ => {
                self.close(ItemStatus::Completed, out);
                self.begin(kind, out)
            }
        };
        if let Some(content) = self.items[index].content() {
            content.push(delta);
        }
        let mut fields = self.place(index);
        fields["delta"] = delta.into();
        match kind {
            Kind::Text => {
                fields["content_index"] = 0.into();
                fields["logprobs"] = json!([]);
                self.say("response.output_text.delta", fields, out);
            }
            Kind::Reasoning => {
                fields["summary_index"] = 0.into();
                self.say("response.reasoning_summary_text.delta", fields, out);
            }
        }
    }

    fn begin(&mut self, kind: Kind, out: &mut Vec<Value>) -> usize {
        let status = ItemStatus::InProgress;
        let index = match kind {
            Kind::Text => {
                let id = self.next_id("msg");
                self.add(Item::Message { id, role: "assistant", status, content: vec![], phase: None }, out)
            }
            Kind::Reasoning => {
                let id = self.next_id("rs");
                self.add(Item::Reasoning { id, status, summary: vec![] }, out)
            }
        };
        self.open = Some((kind, index));
        let mut fields = self.place(index);
        match &mut self.items[index] {
            Item::Message { content, .. } => {
                content.push(Content::text(String::new()));
                fields["content_index"] = 0.into();
                fields["part"] = json!(content[0]);
                self.say("response.content_part.added", fields, out);
            }
            Item::Reasoning { summary, .. } => {
                summary.push(Content::SummaryText { text: String::new() });
                fields["summary_index"] = 0.into();
                fields["part"] = json!(summary[0]);
                self.say("response.reasoning_summary_part.added", fields, out);
            }
            Item::FunctionCall { .. } | Item::McpCall { .. } => {}
        }
        index
    }

    fn close(&mut self, status: ItemStatus, out: &mut Vec<Value>) {
        self.close_as(status, None, out);
    }

    /// Closes the item that is being written.
    fn close_as(&mut self, status: ItemStatus, what_for: Option<Phase>, out: &mut Vec<Value>) {
        let Some((kind, index)) = self.open.take() else { return };
        let Some(content) = self.items[index].content().cloned() else { return };
        let mut text = self.place(index);
        text["text"] = content.as_text().into();
        let mut part = self.place(index);
        part["part"] = json!(content);
        match kind {
            Kind::Text => {
                (text["content_index"], part["content_index"]) = (0.into(), 0.into());
                text["logprobs"] = json!([]);
                self.say("response.output_text.done", text, out);
                self.say("response.content_part.done", part, out);
            }
            Kind::Reasoning => {
                (text["summary_index"], part["summary_index"]) = (0.into(), 0.into());
                self.say("response.reasoning_summary_text.done", text, out);
                self.say("response.reasoning_summary_part.done", part, out);
            }
        }
        self.items[index].set_status(status);
        if let Item::Message { phase, .. } = &mut self.items[index] {
            *phase = what_for;
        }
        self.done(index, out);
    }

    fn request(&mut self, step: u32, call_id: String, name: String, arguments: String, out: &mut Vec<Value>) {
        let item = Item::FunctionCall {
            id: self.next_id("fc"),
            call_id,
            name: name.clone(),
            arguments: String::new(),
            status: ItemStatus::InProgress,
            step,
        };
        let index = self.add(item, out);
        let (mut delta, mut done) = (self.place(index), self.place(index));
        delta["delta"] = arguments.as_str().into();
        (done["arguments"], done["name"]) = (arguments.as_str().into(), name.into());
        self.say("response.function_call_arguments.delta", delta, out);
        self.say("response.function_call_arguments.done", done, out);
        if let Item::FunctionCall { arguments: whole, .. } = &mut self.items[index] {
            *whole = arguments;
        }
        self.items[index].set_status(ItemStatus::Completed);
        self.done(index, out);
    }

    fn call(&mut self, step: u32, name: String, arguments: String, out: &mut Vec<Value>) -> usize {
        let item = Item::McpCall {
            id: self.next_id("mcp"),
            server_label: SERVER_LABEL,
            name,
            arguments: String::new(),
            output: None,
            error: None,
            status: ItemStatus::InProgress,
            approval_request_id: None,
            step,
        };
        let index = self.add(item, out);
        self.say("response.mcp_call.in_progress", self.place(index), out);
        let (mut delta, mut done) = (self.place(index), self.place(index));
        delta["delta"] = arguments.as_str().into();
        done["arguments"] = arguments.as_str().into();
        self.say("response.mcp_call_arguments.delta", delta, out);
        self.say("response.mcp_call_arguments.done", done, out);
        if let Item::McpCall { arguments: whole, .. } = &mut self.items[index] {
            *whole = arguments;
        }
        index
    }

    fn settle(
        &mut self,
        index: usize,
        state: CallState,
        result: Option<String>,
        why: Option<String>,
        out: &mut Vec<Value>,
    ) {
        let is_good = state == CallState::Succeeded;
        if let Item::McpCall { output, error, status, .. } = &mut self.items[index] {
            *status = if is_good { ItemStatus::Completed } else { ItemStatus::Failed };
            *output = result;
            *error = if is_good { None } else { Some(why.unwrap_or_else(|| state.to_string()).into()) };
        }
        let kind = if is_good { "response.mcp_call.completed" } else { "response.mcp_call.failed" };
        self.say(kind, self.place(index), out);
        self.done(index, out);
    }

    fn finish(
        &mut self,
        status: RunStatus,
        reason: Reason,
        error: Option<RunError>,
        at: Millis,
        out: &mut Vec<Value>,
    ) {
        let incomplete = |reason: &str| Some(json!({"reason": reason}));
        let kind = match (status, reason) {
            (RunStatus::Aborted, _) => {
                self.status = Status::Cancelled;
                self.outcome.incomplete_details = incomplete("cancelled");
                "response.incomplete"
            }
            (RunStatus::Failed, reason) if reason.is_limit() => {
                self.status = Status::Incomplete;
                self.outcome.incomplete_details = incomplete("max_output_tokens");
                "response.incomplete"
            }
            (RunStatus::Failed, reason) => {
                let error = error.unwrap_or_else(|| RunError::new("internal", reason.to_string()));
                self.status = Status::Failed;
                // Of the codes that clients know, the one that lets none of them start the run again: what could be
                // tried again has been.
                let told = json!({"code": "invalid_prompt", "type": error.code, "message": error.message});
                self.outcome.error = Some(told);
                "response.failed"
            }
            _ => match self.last_reason {
                Some(FinishReason::Length) => {
                    self.status = Status::Incomplete;
                    self.outcome.incomplete_details = incomplete("max_output_tokens");
                    "response.incomplete"
                }
                Some(FinishReason::ContentFilter) => {
                    self.status = Status::Incomplete;
                    self.outcome.incomplete_details = incomplete("content_filter");
                    "response.incomplete"
                }
                _ => {
                    self.status = Status::Completed;
                    self.outcome.completed_at = Some(at);
                    "response.completed"
                }
            },
        };
        self.lifecycle(kind, out);
    }
}

/// Appends it as a server-sent event.
pub(crate) fn write_frame(event: &Value, out: &mut String) {
    out.push_str("event: ");
    out.push_str(event["type"].as_str().unwrap_or_default());
    out.push_str("\ndata: ");
    out.push_str(&event.to_string());
    out.push_str("\n\n");
}

#[cfg(test)]
mod tests;
