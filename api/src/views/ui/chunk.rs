//! The pieces of the stream, in the shapes that the SDK checks them against.

use longhaul_shared::domain::{
    ids::RunId,
    run::Usage,
    transition::{Reason, RunStatus},
};
use serde::Serialize;
use serde_json::Value;

/// One piece; `data:` and a line of JSON on the wire.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub(crate) enum Chunk {
    Start {
        message_id: String,
        message_metadata: Metadata,
    },
    StartStep,
    FinishStep,
    /// Everything since the last `start-step` is taken back.
    ResetStep,
    TextStart {
        id: String,
    },
    TextDelta {
        id: String,
        delta: String,
    },
    TextEnd {
        id: String,
    },
    ReasoningStart {
        id: String,
    },
    ReasoningDelta {
        id: String,
        delta: String,
    },
    ReasoningEnd {
        id: String,
    },
    ToolInputAvailable(ToolInput),
    ToolInputError(ToolInput),
    /// The page is to ask whether the call may be made. Not known to version 5.
    ToolApprovalRequest {
        approval_id: String,
        tool_call_id: String,
    },
    ToolOutputAvailable(ToolOutcome),
    ToolOutputError(ToolOutcome),
    /// What was asked for was denied.
    ToolOutputDenied {
        tool_call_id: String,
    },
    MessageMetadata {
        message_metadata: Metadata,
    },
    Error {
        error_text: String,
    },
    Abort,
    Finish {
        finish_reason: ChunkFinish,
        #[serde(skip_serializing_if = "Option::is_none")]
        message_metadata: Option<Metadata>,
    },
}

/// A call. Pages know no tool by its name before it is called.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ToolInput {
    pub(super) tool_call_id: String,
    pub(super) tool_name: String,
    /// The arguments, or the text that the model wrote for them.
    pub(super) input: Value,
    /// What is wrong with the arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error_text: Option<String>,
    dynamic: bool,
    /// Else it is for the page to execute.
    #[serde(skip_serializing_if = "is_false")]
    pub(super) provider_executed: bool,
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ToolOutcome {
    pub(super) tool_call_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error_text: Option<String>,
    dynamic: bool,
    provider_executed: bool,
}

/// Why the stream is over, in the SDK's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ChunkFinish {
    Stop,
    Length,
    ContentFilter,
    ToolCalls,
    Error,
    Other,
}

/// What the message says about its run. Pages merge what comes later into what came first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<RunId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<RunStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

impl Chunk {
    pub(super) fn tool_input(
        tool_call_id: String,
        tool_name: String,
        input: Value,
        error_text: Option<String>,
        provider_executed: bool,
    ) -> Self {
        let is_wrong = error_text.is_some();
        let input =
            ToolInput { tool_call_id, tool_name, input, error_text, dynamic: true, provider_executed };
        if is_wrong { Self::ToolInputError(input) } else { Self::ToolInputAvailable(input) }
    }

    pub(super) fn tool_output(tool_call_id: String, output: Value) -> Self {
        Self::ToolOutputAvailable(ToolOutcome {
            tool_call_id,
            output: Some(output),
            error_text: None,
            dynamic: true,
            provider_executed: true,
        })
    }

    pub(super) fn tool_error(tool_call_id: String, error_text: String) -> Self {
        Self::ToolOutputError(ToolOutcome {
            tool_call_id,
            output: None,
            error_text: Some(error_text),
            dynamic: true,
            provider_executed: true,
        })
    }

    /// Appends it as a server-sent event.
    pub(crate) fn write_frame(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut *out, self).expect("a chunk has string keys and finite numbers only");
        out.extend_from_slice(b"\n\n");
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(super) fn is_false(flag: &bool) -> bool {
    !flag
}

impl Metadata {
    pub(super) fn of_run(run_id: RunId) -> Self {
        Self { run_id: Some(run_id), ..Self::default() }
    }

    pub(super) fn of_pause(usage: Usage) -> Self {
        Self { status: Some(RunStatus::Waiting), usage: Some(usage), ..Self::default() }
    }

    pub(super) fn of_end(status: RunStatus, reason: Reason, usage: Usage) -> Self {
        Self { status: Some(status), reason: Some(reason), usage: Some(usage), ..Self::default() }
    }

    pub(super) fn merge(&mut self, later: &Self) {
        let Self { run_id, status, reason, usage } = later;
        self.run_id = run_id.or(self.run_id);
        self.status = status.or(self.status);
        self.reason = reason.or(self.reason);
        self.usage = usage.or(self.usage);
    }
}
