//! A step: one model call and the tool calls that it planned. The unit that is saved.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    ids::{Epoch, Millis, RunId, Seq},
    run::Usage,
    transition::stored_words,
};

/// Why the model stopped writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    Stop,
    ToolCalls,
    /// The provider's or our own output limit.
    Length,
    ContentFilter,
    /// The run ended in the middle of this step; what was streamed until then is kept.
    Interrupted,
    Other,
}

stored_words!(FinishReason, "finish reason", {
    Stop => "stop",
    ToolCalls => "tool_calls",
    Length => "length",
    ContentFilter => "content_filter",
    Interrupted => "interrupted",
    Other => "other",
});

/// A stretch of model output, in the order in which it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputPart {
    Text {
        text: String,
    },
    Reasoning {
        text: String,
    },
    /// A call of a tool that the client runs.
    Call {
        call_id: String,
        name: String,
        arguments: String,
    },
}

/// Adds a delta to the output, which goes on with the last part while the kind stays the same.
pub fn push_output(output: &mut Vec<OutputPart>, delta: OutputPart) {
    match (output.last_mut(), delta) {
        (Some(OutputPart::Text { text }), OutputPart::Text { text: more })
        | (Some(OutputPart::Reasoning { text }), OutputPart::Reasoning { text: more }) => {
            text.push_str(&more);
        }
        (_, delta) => output.push(delta),
    }
}

/// The text of the output without its reasoning.
pub fn output_text(output: &[OutputPart]) -> String {
    output
        .iter()
        .filter_map(|part| match part {
            OutputPart::Text { text } => Some(text.as_str()),
            OutputPart::Reasoning { .. } | OutputPart::Call { .. } => None,
        })
        .collect()
}

/// One saved step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    #[serde(skip)]
    pub run_id: RunId,
    /// From 1, dense.
    pub step: u32,
    /// Which try this was, from 1.
    pub attempt: u32,
    #[serde(skip)]
    pub epoch: Epoch,
    pub model: String,
    pub output: Vec<OutputPart>,
    pub finish_reason: FinishReason,
    pub usage: Usage,
    pub first_seq: Seq,
    pub last_seq: Seq,
    pub started_at: Millis,
    pub finished_at: Millis,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_of_one_kind_become_one_part() {
        let mut output = vec![];
        for (reasoning, text) in [(true, "a"), (true, "b"), (false, "c"), (false, "d"), (true, "e")] {
            let text = text.to_owned();
            push_output(
                &mut output,
                if reasoning { OutputPart::Reasoning { text } } else { OutputPart::Text { text } },
            );
        }
        assert_eq!(output.len(), 3);
        assert_eq!(output_text(&output), "cd");
    }
}
