//! Messages and the parts they are made of.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    ids::{ChatId, MessageId, Millis, RunId, WorkspaceId},
    tool::CallState,
    transition::{MessageStatus, stored_words},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    User,
    Assistant,
}

stored_words!(Role, "role", { User => "user", Assistant => "assistant" });

/// Who said something in a conversation that a client brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaker {
    User,
    Assistant,
    /// With the weight of instructions.
    System,
}

stored_words!(Speaker, "speaker", { User => "user", Assistant => "assistant", System => "system" });

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum Part {
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
        call_id: String,
        name: String,
        /// The arguments: the object that is executed, else the text as the model wrote it.
        arguments: Value,
        state: CallState,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A call of a tool that the client runs: what the model asked for, or what a client says that one asked for.
    Call {
        call_id: String,
        name: String,
        /// As the model wrote them.
        arguments: String,
    },
    /// In a user's message: what the client's tool came to.
    CallResult {
        call_id: String,
        output: String,
    },
    /// In a user's message: something that was said before.
    Said {
        by: Speaker,
        text: String,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub id: MessageId,
    pub workspace_id: WorkspaceId,
    pub chat_id: ChatId,
    pub turn: i64,
    /// 0 for the user's message, 1 for the answer.
    pub position: i32,
    pub role: Role,
    /// `None`: imported, read as completed.
    pub status: Option<MessageStatus>,
    /// The name that the client gave it, unique in its chat.
    pub client_id: Option<String>,
    pub in_reply_to: Option<MessageId>,
    /// With a user's message: the first turn that it stands in for, up to its own.
    pub replaces_turn: Option<i64>,
    pub run_id: Option<RunId>,
    /// A user's message; an answer's parts are rebuilt from its run.
    pub parts: Vec<Part>,
    pub created_at: Millis,
    pub updated_at: Millis,
}

impl Message {
    /// The name that clients know it by.
    pub fn public_id(&self) -> String {
        self.client_id.clone().unwrap_or_else(|| self.id.to_string())
    }
}

/// Tells, newest first, which turns of a chat have been replaced by later ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Replaced {
    /// The turns from here on, up to the last that was looked at, are.
    pub from: Option<i64>,
}

impl Replaced {
    /// Whether this user's message is, with its answer.
    pub fn hides(&mut self, question: &Message) -> bool {
        if self.from.is_some_and(|from| question.turn >= from) {
            return true;
        }
        self.from = question.replaces_turn.or(self.from);
        false
    }
}

/// The text of the parts, without reasoning and tools.
pub fn text_of(parts: &[Part]) -> String {
    parts
        .iter()
        .filter_map(|part| if let Part::Text { text } = part { Some(text.as_str()) } else { None })
        .collect()
}
