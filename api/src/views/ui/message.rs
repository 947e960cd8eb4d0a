//! The message that a page puts together out of chunks: what a reload is given instead of them.

use serde::Serialize;
use serde_json::Value;

use super::{
    Chunk, Metadata,
    chunk::{ToolInput, ToolOutcome, is_false},
};

/// A message with the parts in the order in which a page has them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct UiMessage {
    pub(crate) id: String,
    pub(crate) role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<Metadata>,
    pub(crate) parts: Vec<UiPart>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(crate) enum UiPart {
    StepStart,
    Text { text: String, state: Writing },
    Reasoning { id: String, text: String, state: Writing },
    DynamicTool(ToolPart),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Writing {
    Streaming,
    Done,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ToolPart {
    tool_name: String,
    tool_call_id: String,
    state: &'static str,
    input: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_text: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    provider_executed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<Approval>,
}

/// What the page answers about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Approval {
    id: String,
    /// Absent: the page has not answered, or nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    approved: Option<bool>,
}

impl ToolPart {
    fn answered(&mut self, approved: bool) {
        if let Some(approval) = &mut self.approval {
            approval.approved = Some(approved);
        }
    }
}

impl UiMessage {
    /// What a user said.
    pub(crate) fn of_user(id: String, texts: impl IntoIterator<Item = String>) -> Self {
        let parts = texts.into_iter().map(|text| UiPart::Text { text, state: Writing::Done }).collect();
        Self { id, role: "user", metadata: None, parts }
    }

    /// An answer of which nothing has come yet.
    pub(crate) fn answer(id: String) -> Self {
        Self { id, role: "assistant", metadata: None, parts: vec![] }
    }

    pub(crate) fn apply(&mut self, chunk: &Chunk) {
        match chunk {
            Chunk::Start { message_id, message_metadata } => {
                self.id.clone_from(message_id);
                self.metadata.get_or_insert_default().merge(message_metadata);
            }
            Chunk::MessageMetadata { message_metadata }
            | Chunk::Finish { message_metadata: Some(message_metadata), .. } => {
                self.metadata.get_or_insert_default().merge(message_metadata);
            }
            Chunk::StartStep => self.parts.push(UiPart::StepStart),
            Chunk::ResetStep => {
                let begins = self.parts.iter().rposition(|part| matches!(part, UiPart::StepStart));
                self.parts.truncate(begins.map_or(0, |begins| begins + 1));
            }
            Chunk::TextStart { .. } => {
                self.parts.push(UiPart::Text { text: String::new(), state: Writing::Streaming });
            }
            Chunk::ReasoningStart { id } => {
                let (id, text) = (id.clone(), String::new());
                self.parts.push(UiPart::Reasoning { id, text, state: Writing::Streaming });
            }
            Chunk::TextDelta { delta, .. } | Chunk::ReasoningDelta { delta, .. } => {
                if let Some(UiPart::Text { text, .. } | UiPart::Reasoning { text, .. }) =
                    self.parts.last_mut()
                {
                    text.push_str(delta);
                }
            }
            Chunk::TextEnd { .. } | Chunk::ReasoningEnd { .. } => {
                if let Some(UiPart::Text { state, .. } | UiPart::Reasoning { state, .. }) =
                    self.parts.last_mut()
                {
                    *state = Writing::Done;
                }
            }
            Chunk::ToolInputAvailable(input) => self.parts.push(tool_part(input, "input-available")),
            Chunk::ToolInputError(input) => self.parts.push(tool_part(input, "output-error")),
            Chunk::ToolApprovalRequest { approval_id, tool_call_id } => {
                if let Some(call) = self.call(tool_call_id) {
                    call.state = "approval-requested";
                    call.approval = Some(Approval { id: approval_id.clone(), approved: None });
                }
            }
            Chunk::ToolOutputAvailable(outcome) => self.settle(outcome, "output-available"),
            Chunk::ToolOutputError(outcome) => self.settle(outcome, "output-error"),
            Chunk::ToolOutputDenied { tool_call_id } => {
                if let Some(call) = self.call(tool_call_id) {
                    call.state = "output-denied";
                    call.answered(false);
                }
            }
            Chunk::FinishStep
            | Chunk::Abort
            | Chunk::Error { .. }
            | Chunk::Finish { message_metadata: None, .. } => {}
        }
    }

    fn call(&mut self, id: &str) -> Option<&mut ToolPart> {
        self.parts.iter_mut().rev().find_map(|part| match part {
            UiPart::DynamicTool(call) if call.tool_call_id == id => Some(call),
            _ => None,
        })
    }

    fn settle(&mut self, outcome: &ToolOutcome, state: &'static str) {
        if let Some(call) = self.call(&outcome.tool_call_id) {
            call.state = state;
            call.output.clone_from(&outcome.output);
            call.error_text.clone_from(&outcome.error_text);
            if outcome.output.is_some() {
                call.answered(true);
            } else {
                // It may have failed when it was approved, or been cut off before.
                call.approval = None;
            }
        }
    }
}

fn tool_part(input: &ToolInput, state: &'static str) -> UiPart {
    UiPart::DynamicTool(ToolPart {
        tool_name: input.tool_name.clone(),
        tool_call_id: input.tool_call_id.clone(),
        state,
        input: input.input.clone(),
        output: None,
        error_text: input.error_text.clone(),
        provider_executed: input.provider_executed,
        approval: None,
    })
}
