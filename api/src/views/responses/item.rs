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
    },
    Reasoning {
        id: String,
        status: ItemStatus,
        summary: Vec<Content>,
    },
    /// A call of a tool that the worker runs.
    McpCall {
        id: String,
        server_label: &'static str,
        name: String,
        arguments: String,
        output: Option<String>,
        error: Option<String>,
        status: ItemStatus,
        approval_request_id: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ItemStatus {
    InProgress,
    Completed,
    Incomplete,
    Failed,
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
        let (Self::Message { id, .. } | Self::Reasoning { id, .. } | Self::McpCall { id, .. }) = self;
        id
    }

    pub(crate) fn set_status(&mut self, new: ItemStatus) {
        let (Self::Message { status, .. } | Self::Reasoning { status, .. } | Self::McpCall { status, .. }) = self;
        *status = new;
    }

    /// The one piece of text that it is made of.
    pub(crate) fn content(&mut self) -> Option<&mut Content> {
        match self {
            Self::Message { content, .. } => content.first_mut(),
            Self::Reasoning { summary, .. } => summary.first_mut(),
            Self::McpCall { .. } => None,
        }
    }
}
