//! A message as callers read it. An answer's parts come out of the one reconstruction, live ones included.

use longhaul_shared::{
    domain::{
        ids::{ChatId, RunId},
        message::{Message, Part, Role, Speaker},
        tool::CallState,
        transition::MessageStatus,
    },
    store::RunRecord,
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{time::Timestamp, words};

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Message)]
pub(crate) struct MessageView {
    /// The name that the client gave it, else its id.
    message_id: String,
    #[schema(value_type = uuid::Uuid)]
    chat_id: ChatId,
    turn: i64,
    #[schema(schema_with = words::role)]
    role: Role,
    #[schema(schema_with = words::message_status)]
    status: MessageStatus,
    /// With an answer: the message that it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_reply_to: Option<String>,
    /// With a user's message: the first turn that it stands in for, up to its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces_turn: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    run_id: Option<RunId>,
    parts: Vec<PartView>,
    /// With an answer: the last event of its run that is contained in its parts. To go on live, follow the run's
    /// events after this number.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seq: Option<i64>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// A piece of a message.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = Part)]
pub(crate) enum PartView {
    /// Where a model call begins.
    Step {
        step: u32,
    },
    Text {
        text: String,
    },
    Reasoning {
        text: String,
    },
    Tool {
        #[serde(rename = "callId")]
        call_id: String,
        name: String,
        /// JSON if it parses, else the text as the model wrote it.
        arguments: Value,
        #[schema(schema_with = words::call_state)]
        state: CallState,
        #[serde(skip_serializing_if = "Option::is_none")]
        output: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A call of a tool that the client runs.
    Call {
        #[serde(rename = "callId")]
        call_id: String,
        name: String,
        /// As the model wrote them.
        arguments: String,
    },
    /// What the client's tool came to.
    CallResult {
        #[serde(rename = "callId")]
        call_id: String,
        output: String,
    },
    /// Something that was said before, as the client tells it.
    Said {
        #[schema(schema_with = words::speaker)]
        by: Speaker,
        text: String,
    },
}

impl MessageView {
    /// The message; `record` is that of its run and is needed for an answer, `in_reply_to` the public id of the
    /// message that it answers.
    pub(crate) fn new(message: Message, record: Option<RunRecord>, in_reply_to: Option<String>) -> Self {
        let message_id = message.public_id();
        let (parts, last_seq) = match (message.role, record) {
            (Role::Assistant, Some(record)) => {
                let replay = record.replay();
                (replay.parts(), Some(replay.position()))
            }
            _ => (message.parts, None),
        };
        Self {
            message_id,
            chat_id: message.chat_id,
            turn: message.turn,
            role: message.role,
            status: message.status.unwrap_or(MessageStatus::Completed),
            in_reply_to,
            replaces_turn: message.replaces_turn,
            run_id: message.run_id,
            parts: parts.into_iter().map(Into::into).collect(),
            last_seq,
            created_at: Timestamp(message.created_at),
            updated_at: Timestamp(message.updated_at),
        }
    }
}

impl From<Part> for PartView {
    fn from(part: Part) -> Self {
        match part {
            Part::Step { step } => Self::Step { step },
            Part::Text { text } => Self::Text { text },
            Part::Reasoning { text } => Self::Reasoning { text },
            Part::Tool { call_id, name, arguments, state, output, error } => {
                Self::Tool { call_id, name, arguments, state, output, error }
            }
            Part::Call { call_id, name, arguments } => Self::Call { call_id, name, arguments },
            Part::CallResult { call_id, output } => Self::CallResult { call_id, output },
            Part::Said { by, text } => Self::Said { by, text },
        }
    }
}

#[cfg(test)]
mod tests {
    use longhaul_shared::domain::{
        event::{EventData, Segment},
        ids::MessageId,
    };

    use super::*;

    #[test]
    fn a_live_answer_shows_what_its_log_tells_so_far() {
        let run_id = RunId::generate();
        let events = [
            EventData::StepStarted { model: "m".into() },
            EventData::TextDelta { text: "Hel".into() },
            EventData::TextDelta { text: "lo".into() },
        ];
        let tail = vec![Segment {
            run_id,
            first: 3,
            last: 5,
            at: 0,
            events: events.iter().map(|event| event.of_step(1, 1)).collect(),
        }];
        let message = Message {
            id: MessageId::generate(),
            workspace_id: uuid::Uuid::nil().into(),
            chat_id: ChatId::generate(),
            turn: 1,
            position: 1,
            role: Role::Assistant,
            status: Some(MessageStatus::Streaming),
            client_id: None,
            in_reply_to: Some(MessageId::generate()),
            replaces_turn: None,
            run_id: Some(run_id),
            parts: vec![],
            created_at: 0,
            updated_at: 0,
        };
        let record = RunRecord { run_id, steps: vec![], calls: vec![], tail };
        let json = serde_json::to_value(MessageView::new(message, Some(record), Some("m-1".into()))).unwrap();
        assert_eq!(
            json["parts"],
            serde_json::json!([{"type": "step", "step": 1}, {"type": "text", "text": "Hello"}])
        );
        assert_eq!(json["lastSeq"], 5);
        assert_eq!(json["status"], "streaming");
        assert_eq!(json["inReplyTo"], "m-1");
    }
}
