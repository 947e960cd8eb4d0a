//! OpenAI's Responses: a run's log as the events of its stream, and as the object that they lead to.
//!
//! Events are numbered from 0 in their response. [`Encoder`] is a pure function of the log and of what was asked at the
//! creation, so that every replay has the same bytes under the same numbers, and the stored object is the one that the
//! last event carries. Only event and item types are used that the SDKs know.

mod frames;
mod ids;
mod input_item;
mod item;
mod response;

use std::collections::{BTreeMap, BTreeSet};

use longhaul_shared::domain::{
    event::{Event, EventData, Wait},
    ids::Millis,
    run::RunError,
    step::FinishReason,
    tool::{self, CallState},
    transition::{Reason, RunStatus},
};
use longhaul_shared::tail::Slice;
use serde_json::{Value, json};

use frames::Fields;
pub(crate) use frames::Frames;
use ids::item_id;
pub(crate) use ids::{chat_of, conversation_id, message_of_item, response_id, run_of, run_of_item};
pub(crate) use input_item::{input_items, part_of_item};
pub(crate) use item::{Content, Item};
use item::{ItemStatus, Phase};
pub(crate) use response::{Head, Outcome, Status, seconds};

/// What a stream says behind its last event.
pub(crate) const DONE: &str = "data: [DONE]\n\n";
/// Whose tools the worker's are.
const SERVER_LABEL: &str = "longhaul";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Reasoning,
}

impl Kind {
    /// The place of the one piece that its items have.
    fn place<'a>(self) -> Fields<'a> {
        match self {
            Self::Text => Fields { content_index: Some(0), ..Fields::default() },
            Self::Reasoning => Fields { summary_index: Some(0), ..Fields::default() },
        }
    }

    fn logprobs(self) -> Option<[(); 0]> {
        (self == Self::Text).then_some([])
    }
}

#[derive(Clone, Copy, Debug)]
struct OpenCall {
    index: usize,
    was_sent: bool,
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
    calls: BTreeMap<(u32, u32), OpenCall>,
    /// The calls that the client is asked about, likewise.
    asked: BTreeSet<(u32, u32)>,
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
            asked: BTreeSet::new(),
            last_reason: None,
        }
    }

    /// The object as the log has it so far.
    pub(crate) fn response(&self) -> Value {
        // What is under way has no output yet: its readers put it together from the events.
        let output: Vec<&Item> = if self.is_over() { self.output().collect() } else { vec![] };
        self.head.response(self.status, &output, &self.outcome)
    }

    fn is_over(&self) -> bool {
        !matches!(self.status, Status::Queued | Status::InProgress)
    }

    /// The items that count, in order.
    pub(crate) fn output(&self) -> impl Iterator<Item = &Item> {
        self.items().filter(|(_, is_torn)| !is_torn).map(|(item, _)| item)
    }

    /// All items, and whether each is of an attempt that broke off.
    pub(crate) fn items(&self) -> impl Iterator<Item = (&Item, bool)> {
        self.items.iter().zip(self.torn.iter().copied())
    }

    pub(crate) fn push_all(&mut self, slice: &Slice, out: &mut Frames) {
        for (_, event) in slice.events() {
            self.push(slice.segment.at, event, out);
        }
    }

    /// What the next event of the log adds to the stream.
    pub(crate) fn push(&mut self, at: Millis, event: &Event, out: &mut Frames) {
        // What a run does with the client's word belongs to the response in which it was given.
        if self.is_over() {
            return;
        }
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
                self.asked.remove(&(step, call));
                self.close_as(ItemStatus::Completed, Some(Phase::Commentary), out);
                let index = self.call(step, name, arguments, out);
                self.calls.insert((step, call), OpenCall { index, was_sent: false });
            }
            Some(EventData::WaitCreated { wait: Wait::Approval { call, name, arguments, .. }, .. }) => {
                self.close_as(ItemStatus::Completed, Some(Phase::Commentary), out);
                self.asked.insert((step, call));
                self.ask(name, arguments, out);
            }
            // Whatever else it waits for is no concern of the client.
            Some(EventData::RunWaiting { usage }) if !self.asked.is_empty() => {
                self.status = Status::Completed;
                self.outcome.usage = Some(usage);
                self.outcome.completed_at = Some(at);
                self.lifecycle("response.completed", out);
            }
            Some(EventData::ToolStarted { call, .. }) => {
                if let Some(open) = self.calls.get_mut(&(step, call)) {
                    open.was_sent = true;
                }
            }
            Some(EventData::ToolRequested { call_id, name, arguments }) => {
                self.close_as(ItemStatus::Completed, Some(Phase::Commentary), out);
                self.request(step, call_id, name, arguments, out);
            }
            Some(EventData::ToolFinished { call, state, output, error, .. }) => {
                self.asked.remove(&(step, call));
                if let Some(open) = self.calls.remove(&(step, call)) {
                    self.settle(open, state, output, error, out);
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
                | EventData::RunWaiting { .. }
                | EventData::RunResumed {}
                | EventData::RunStopping { .. },
            )
            | None => {}
        }
    }

    fn say(&mut self, kind: &'static str, fields: &Fields<'_>, out: &mut Frames) {
        out.add(kind, self.next, fields);
        self.next += 1;
    }

    fn lifecycle(&mut self, kind: &'static str, out: &mut Frames) {
        let response = self.response();
        self.say(kind, &Fields { response: Some(&response), ..Fields::default() }, out);
    }

    fn next_id(&self, prefix: &str) -> String {
        item_id(prefix, self.head.run_id, self.items.len())
    }

    fn add(&mut self, item: Item, out: &mut Frames) -> usize {
        let index = self.items.len();
        let fields = Fields { output_index: Some(index), item: Some(&item), ..Fields::default() };
        self.say("response.output_item.added", &fields, out);
        self.items.push(item);
        self.torn.push(false);
        index
    }

    /// Says something about an item; `fields` tells what, and where in the item.
    fn tell<'a>(
        &'a mut self,
        kind: &'static str,
        index: usize,
        out: &mut Frames,
        fields: impl FnOnce(&'a Item) -> Fields<'a>,
    ) {
        let item = &self.items[index];
        let fields = Fields { item_id: Some(item.id()), output_index: Some(index), ..fields(item) };
        out.add(kind, self.next, &fields);
        self.next += 1;
    }

    fn done(&mut self, index: usize, out: &mut Frames) {
        let item = Some(&self.items[index]);
        out.add(
            "response.output_item.done",
            self.next,
            &Fields { output_index: Some(index), item, ..Fields::default() },
        );
        self.next += 1;
    }

    fn write(&mut self, kind: Kind, delta: &str, out: &mut Frames) {
        let index = match self.open {
            Some((open, index)) if open == kind => index,
            _ => {
                self.close(ItemStatus::Completed, out);
                self.begin(kind, out)
            }
        };
        if let Some(content) = self.items[index].content_mut() {
            content.push(delta);
        }
        let fields = Fields { delta: Some(delta), ..kind.place() };
        let event = match kind {
            Kind::Text => "response.output_text.delta",
            Kind::Reasoning => "response.reasoning_summary_text.delta",
        };
        let logprobs = kind.logprobs();
        let item_id = Some(self.items[index].id());
        let fields = Fields { item_id, output_index: Some(index), logprobs, ..fields };
        out.add(event, self.next, &fields);
        self.next += 1;
    }

    fn begin(&mut self, kind: Kind, out: &mut Frames) -> usize {
        let status = ItemStatus::InProgress;
        let (item, event) = match kind {
            Kind::Text => {
                let id = self.next_id("msg");
                let item = Item::Message { id, role: "assistant", status, content: vec![], phase: None };
                (item, "response.content_part.added")
            }
            Kind::Reasoning => {
                let item = Item::Reasoning { id: self.next_id("rs"), status, summary: vec![] };
                (item, "response.reasoning_summary_part.added")
            }
        };
        let index = self.add(item, out);
        self.open = Some((kind, index));
        self.items[index].begin_content();
        self.tell(event, index, out, |item| Fields { part: item.content(), ..kind.place() });
        index
    }

    fn close(&mut self, status: ItemStatus, out: &mut Frames) {
        self.close_as(status, None, out);
    }

    /// Closes the item that is being written.
    fn close_as(&mut self, status: ItemStatus, what_for: Option<Phase>, out: &mut Frames) {
        let Some((kind, index)) = self.open.take() else { return };
        let (text_done, part_done) = match kind {
            Kind::Text => ("response.output_text.done", "response.content_part.done"),
            Kind::Reasoning => {
                ("response.reasoning_summary_text.done", "response.reasoning_summary_part.done")
            }
        };
        self.tell(text_done, index, out, |item| Fields {
            text: item.content().map(Content::as_text),
            logprobs: kind.logprobs(),
            ..kind.place()
        });
        self.tell(part_done, index, out, |item| Fields { part: item.content(), ..kind.place() });
        self.items[index].set_status(status);
        if let Item::Message { phase, .. } = &mut self.items[index] {
            *phase = what_for;
        }
        self.done(index, out);
    }

    fn request(&mut self, step: u32, call_id: String, name: String, arguments: String, out: &mut Frames) {
        let (id, status) = (self.next_id("fc"), ItemStatus::InProgress);
        let item = Item::FunctionCall { id, call_id, name, arguments: String::new(), status, step };
        let index = self.add(item, out);
        self.items[index].set_arguments(arguments);
        self.tell("response.function_call_arguments.delta", index, out, |item| Fields {
            delta: item.arguments(),
            ..Fields::default()
        });
        self.tell("response.function_call_arguments.done", index, out, |item| Fields {
            arguments: item.arguments(),
            name: item.name(),
            ..Fields::default()
        });
        self.items[index].set_status(ItemStatus::Completed);
        self.done(index, out);
    }

    fn ask(&mut self, name: String, arguments: String, out: &mut Frames) {
        let id = self.next_id("mcpr");
        let item = Item::McpApprovalRequest { id, server_label: SERVER_LABEL, name, arguments };
        let index = self.add(item, out);
        self.done(index, out);
    }

    fn call(&mut self, step: u32, name: String, arguments: String, out: &mut Frames) -> usize {
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
            told: String::new(),
        };
        let index = self.add(item, out);
        self.items[index].set_arguments(arguments);
        self.tell("response.mcp_call.in_progress", index, out, |_| Fields::default());
        self.tell("response.mcp_call_arguments.delta", index, out, |item| Fields {
            delta: item.arguments(),
            ..Fields::default()
        });
        self.tell("response.mcp_call_arguments.done", index, out, |item| Fields {
            arguments: item.arguments(),
            ..Fields::default()
        });
        index
    }

    fn settle(
        &mut self,
        OpenCall { index, was_sent }: OpenCall,
        state: CallState,
        result: Option<String>,
        why: Option<String>,
        out: &mut Frames,
    ) {
        let is_good = state == CallState::Succeeded;
        if let Item::McpCall { output, error, status, told, .. } = &mut self.items[index] {
            *told = tool::told(state, result.as_deref(), why.as_deref(), was_sent);
            *status = match state {
                CallState::Succeeded => ItemStatus::Completed,
                CallState::Cancelled => ItemStatus::Incomplete,
                _ => ItemStatus::Failed,
            };
            *output = result;
            *error = if is_good { None } else { Some(why.unwrap_or_else(|| state.to_string()).into()) };
        }
        let kind = if is_good { "response.mcp_call.completed" } else { "response.mcp_call.failed" };
        self.tell(kind, index, out, |_| Fields::default());
        self.done(index, out);
    }

    fn finish(
        &mut self,
        status: RunStatus,
        reason: Reason,
        error: Option<RunError>,
        at: Millis,
        out: &mut Frames,
    ) {
        let incomplete = |reason: &str| Some(json!({"reason": reason}));
        let kind = match (status, reason) {
            (RunStatus::Aborted, _) => {
                self.status = Status::Cancelled;
                self.outcome.incomplete_details = incomplete("cancelled");
                "response.incomplete"
            }
            (RunStatus::Failed, _) if self.last_reason == Some(FinishReason::ContentFilter) => {
                self.status = Status::Incomplete;
                self.outcome.incomplete_details = incomplete("content_filter");
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
            _ if self.last_reason == Some(FinishReason::Length) => {
                self.status = Status::Incomplete;
                self.outcome.incomplete_details = incomplete("max_output_tokens");
                "response.incomplete"
            }
            _ => {
                self.status = Status::Completed;
                self.outcome.completed_at = Some(at);
                "response.completed"
            }
        };
        self.lifecycle(kind, out);
    }
}

#[cfg(test)]
mod tests;
