//! The items of a response's output.

use serde::Serialize;

/// One item as it is at the moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Item {
    Message {
        id: String,
        role: &'static str,
        status: ItemStatus,
        content: Vec<Content>,
        #[serde(skip_serializing_if = "Option::is_none")]
        phase: Option<Phase>,
    },
    Reasoning {
        id: String,
        status: ItemStatus,
        summary: Vec<Content>,
    },
    /// A call of a tool that the client runs.
    FunctionCall {
        id: String,
        call_id: String,
        name: String,
        arguments: String,
        status: ItemStatus,
        #[serde(skip)]
        step: u32,
    },
    /// Whether such a call may be made, for the client to answer.
    McpApprovalRequest {
        id: String,
        server_label: &'static str,
        name: String,
        arguments: String,
    },
    /// A call of a tool that the worker runs.
    McpCall {
        id: String,
        server_label: &'static str,
        name: String,
        arguments: String,
        output: Option<String>,
        error: Option<CallError>,
        status: ItemStatus,
        approval_request_id: Option<String>,
        #[serde(skip)]
        step: u32,
        /// What the model read as its result.
        #[serde(skip)]
        told: String,
    },
}

/// Why a call failed. Some clients read the content, some the message.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename = "mcp_tool_execution_error")]
pub(crate) struct CallError {
    pub(crate) message: String,
    content: [ErrorText; 1],
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename = "text")]
struct ErrorText {
    text: String,
}

impl From<String> for CallError {
    fn from(message: String) -> Self {
        Self { content: [ErrorText { text: message.clone() }], message }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ItemStatus {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

/// What a text is for. Clients that parse the answer leave commentary alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Commentary,
    FinalAnswer,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Content {
    OutputText { text: String, annotations: [(); 0], logprobs: [(); 0] },
    SummaryText { text: String },
}

impl Content {
    pub(crate) fn text(text: String) -> Self {
        Self::OutputText { text, annotations: [], logprobs: [] }
    }

    pub(crate) fn as_text(&self) -> &str {
        let (Self::OutputText { text, .. } | Self::SummaryText { text }) = self;
        text
    }

    pub(crate) fn push(&mut self, delta: &str) {
        let (Self::OutputText { text, .. } | Self::SummaryText { text }) = self;
        text.push_str(delta);
    }
}

impl Item {
    pub(crate) fn id(&self) -> &str {
        let (Self::Message { id, .. }
        | Self::Reasoning { id, .. }
        | Self::FunctionCall { id, .. }
        | Self::McpApprovalRequest { id, .. }
        | Self::McpCall { id, .. }) = self;
        id
    }

    pub(crate) fn set_status(&mut self, new: ItemStatus) {
        match self {
            Self::Message { status, .. }
            | Self::Reasoning { status, .. }
            | Self::FunctionCall { status, .. }
            | Self::McpCall { status, .. } => *status = new,
            Self::McpApprovalRequest { .. } => {}
        }
    }

    /// The one piece of text that it is made of.
    pub(super) fn content(&self) -> Option<&Content> {
        match self {
            Self::Message { content, .. } => content.first(),
            Self::Reasoning { summary, .. } => summary.first(),
            Self::FunctionCall { .. } | Self::McpApprovalRequest { .. } | Self::McpCall { .. } => None,
        }
    }

    pub(super) fn content_mut(&mut self) -> Option<&mut Content> {
        match self {
            Self::Message { content, .. } => content.first_mut(),
            Self::Reasoning { summary, .. } => summary.first_mut(),
            Self::FunctionCall { .. } | Self::McpApprovalRequest { .. } | Self::McpCall { .. } => None,
        }
    }

    pub(super) fn begin_content(&mut self) {
        match self {
            Self::Message { content, .. } => content.push(Content::text(String::new())),
            Self::Reasoning { summary, .. } => summary.push(Content::SummaryText { text: String::new() }),
            Self::FunctionCall { .. } | Self::McpApprovalRequest { .. } | Self::McpCall { .. } => {}
        }
    }

    /// Of a call.
    pub(super) fn arguments(&self) -> Option<&str> {
        match self {
            Self::FunctionCall { arguments, .. } | Self::McpCall { arguments, .. } => Some(arguments),
            Self::Message { .. } | Self::Reasoning { .. } | Self::McpApprovalRequest { .. } => None,
        }
    }

    pub(super) fn set_arguments(&mut self, written: String) {
        if let Self::FunctionCall { arguments, .. } | Self::McpCall { arguments, .. } = self {
            *arguments = written;
        }
    }

    /// Of a call: that of its tool.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::FunctionCall { name, .. } | Self::McpCall { name, .. } => Some(name),
            Self::Message { .. } | Self::Reasoning { .. } | Self::McpApprovalRequest { .. } => None,
        }
    }
}
