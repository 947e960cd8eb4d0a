//! The words of admission: what a new run brings, and how it is answered.

use async_trait::async_trait;
use serde_json::Value;

use crate::domain::{
    asked::Asked,
    event::Segment,
    ids::{ChatId, MessageId, Millis, RunId, WorkspaceId},
    message::Part,
    run::{Limits, Run, Trigger},
    transition::RunStatus,
};

use super::StoreError;

/// What to do when another run holds the chat's slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IfBusy {
    #[default]
    Reject,
    Enqueue,
    /// Admitted like `Reject`; whoever asks makes way by [`Runs::supersede`](super::Runs::supersede).
    Interrupt,
}

/// When a run is to start, if not at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// Unix time in milliseconds.
    At(Millis),
    /// Milliseconds from now, by the database's clock.
    In(i64),
}

/// Where an idempotency key counts.
#[derive(Clone, Copy, Debug)]
pub struct KeyName<'a> {
    pub key: &'a str,
    /// Who calls, so that two callers' keys do not meet.
    pub caller: &'a str,
    pub route: &'a str,
}

/// Makes a repeated call answer like the first.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    pub key: String,
    /// Who calls, so that two callers' keys do not meet.
    pub caller: String,
    pub route: &'static str,
    /// SHA-256 of the canonical body.
    pub fingerprint: Vec<u8>,
}

/// What a run brings along beside its input, if its creator asks for more than its agent says.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub asked: Asked,
    /// The run whose conversation it goes on with from a chat of its own. It is over.
    pub previous_run_id: Option<RunId>,
    /// SHA-256 of caller and request, by which [`Runs::run_of_request`](super::Runs::run_of_request) finds it.
    pub fingerprint: Vec<u8>,
}

/// A run to be admitted. Everything in it has been checked and sanitised.
#[derive(Clone, Debug)]
pub struct NewRun {
    pub workspace_id: WorkspaceId,
    /// Absent: a chat is made in the same transaction, unless the client names one that there is.
    pub chat_id: Option<ChatId>,
    /// The client's own name for the chat. Not together with `chat_id`.
    pub client_chat_id: Option<String>,
    /// The client's name for the message; a repeat inside the chat gets the first one's run.
    pub client_message_id: Option<String>,
    /// If there is a message of that name or id and its run is over, this one stands in for it and for all turns since.
    pub replaces: bool,
    pub agent: String,
    pub input: Vec<Part>,
    pub if_busy: IfBusy,
    pub start: Option<StartAt>,
    pub trigger: Trigger,
    pub created_by: Option<String>,
    pub limits: Limits,
    pub tags: Vec<String>,
    pub metadata: Value,
    pub traceparent: Option<String>,
    /// Which version of the views is to show its log, for ever.
    pub renderer: i32,
    pub queue: String,
    pub priority: i32,
    pub idempotency: Option<IdempotencyKey>,
    pub request: Option<Request>,
}

/// A run that will reach exactly one end.
#[derive(Clone, Debug)]
pub struct Admitted {
    pub run: Run,
    /// How the first call was answered; the run may have gone on since.
    pub status: RunStatus,
    /// The client's name for the user's message, else its id.
    pub message_id: String,
    pub assistant_message_id: MessageId,
    /// Place among the chat's waiting runs, from 1, for a queued run.
    pub position: Option<u32>,
    /// A repeat of an earlier call: nothing was made.
    pub replayed: bool,
    /// To be published; empty for a repeat.
    pub segments: Vec<Segment>,
    /// The queue in which a job became ready.
    pub wake: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// The partial unique index `runs_one_active_per_chat` refused, and nothing was stored.
    #[error("a run is already active in this chat")]
    RunAlreadyActive { active_run_id: Option<RunId> },
    #[error("no such chat")]
    ChatNotFound,
    /// The key was used for another body.
    #[error("the idempotency key was used for a different request")]
    KeyReused,
    /// The first call with this key has not been decided yet.
    #[error("a request with this idempotency key is in flight")]
    KeyInFlight,
    /// The message id was used in this chat for another text.
    #[error("the message id was used for a different message")]
    MessageIdReused,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The one way in for a run.
#[async_trait]
pub trait Admission: Send + Sync {
    /// One transaction: idempotency → chat → run → messages → job → `run.queued`. See [`NewRun`].
    async fn admit(&self, new: NewRun) -> std::result::Result<Admitted, AdmitError>;
}
