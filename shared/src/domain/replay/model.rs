//! The answer as a model is given it, when the conversation goes on.

use super::Replay;
use crate::domain::step::{OutputPart, output_text};

/// One message of the conversation that a model is given.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelMessage {
    System(String),
    User(String),
    Assistant { text: String, calls: Vec<CallForModel> },
    ToolResult { call_id: String, content: String },
}

#[derive(Clone, Debug, PartialEq)]
pub struct CallForModel {
    pub call_id: String,
    pub name: String,
    pub arguments: String,
}

impl Replay {
    /// Whether the step asks for tools that the client runs.
    pub fn asks_client(&self, step: u32) -> bool {
        self.steps.get(&step).is_some_and(|saved| client_calls(&saved.output).next().is_some())
    }

    /// What the last step asks the client for.
    pub fn open_client_calls(&self) -> Vec<CallForModel> {
        let last = self.steps.last_key_value().map(|(_, step)| client_calls(&step.output).collect());
        last.unwrap_or_default()
    }

    /// The answer as the model is given it: each call is followed by exactly one result, but for the client's calls, whose
    /// results come with the next message.
    pub fn for_model(&self) -> Vec<ModelMessage> {
        self.for_model_after(0)
    }

    /// The part of it that belongs to the steps behind `step`.
    pub fn for_model_after(&self, step: u32) -> Vec<ModelMessage> {
        let mut messages = vec![];
        for (number, step) in self.steps.range(step.saturating_add(1)..) {
            let text = output_text(&step.output);
            let calls: Vec<_> = self.calls_of(*number).collect();
            let own = calls.iter().map(|call| CallForModel {
                call_id: call.call_id.clone(),
                name: call.name.clone(),
                arguments: call.arguments.clone(),
            });
            let all: Vec<_> = own.chain(client_calls(&step.output)).collect();
            if text.is_empty() && all.is_empty() {
                continue;
            }
            messages.push(ModelMessage::Assistant { text, calls: all });
            messages.extend(calls.iter().map(|call| ModelMessage::ToolResult {
                call_id: call.call_id.clone(),
                content: call.result_for_model(),
            }));
        }
        messages
    }
}

fn client_calls(output: &[OutputPart]) -> impl Iterator<Item = CallForModel> {
    output.iter().filter_map(|part| match part {
        OutputPart::Call { call_id, name, arguments } => {
            Some(CallForModel { call_id: call_id.clone(), name: name.clone(), arguments: arguments.clone() })
        }
        OutputPart::Text { .. } | OutputPart::Reasoning { .. } => None,
    })
}
