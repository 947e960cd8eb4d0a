//! Signatures of parts that are merged from elsewhere. This file goes at the merge.

use std::{collections::BTreeMap, sync::Arc};

use futures::Stream;
use longhaul_shared::{
    domain::{
        event::{Event, Segment},
        ids::{ChatId, RunId, Seq, WorkspaceId},
        message::Part,
        run::{Run, Trigger},
    },
    store::{
        Admitted, IfBusy, Store, StoreError,
        admission::{IdempotencyKey, StartAt},
    },
};
use serde_json::Value;

#[derive(Clone, Default)]
pub struct Tails;

pub struct Slice {
    pub segment: Arc<Segment>,
    pub after: Seq,
}

impl Slice {
    pub fn events(&self) -> impl Iterator<Item = (Seq, &Event)> {
        self.segment.after(self.after)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the log cannot be read")]
pub struct TailError;

impl Tails {
    pub fn follow(
        &self,
        _workspace: WorkspaceId,
        _run: RunId,
        _after: Seq,
    ) -> impl Stream<Item = Result<Slice, TailError>> + Send + 'static {
        futures::stream::empty()
    }
}

pub trait Bus: Send + Sync + 'static {
    fn is_connected(&self) -> bool;
}

#[derive(Default)]
pub struct Agents(pub BTreeMap<String, ()>);

pub enum Input {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Default)]
pub struct LimitOverrides {
    pub max_steps: Option<u32>,
    pub deadline_ms: Option<i64>,
    pub tool_timeout_ms: Option<i64>,
    pub max_output_tokens: Option<u32>,
}

pub struct Submission {
    pub workspace_id: WorkspaceId,
    pub chat_id: Option<ChatId>,
    pub client_message_id: Option<String>,
    pub agent: Option<String>,
    pub input: Input,
    pub if_busy: IfBusy,
    pub start: Option<StartAt>,
    pub trigger: Trigger,
    pub created_by: Option<String>,
    pub limits: LimitOverrides,
    pub tags: Vec<String>,
    pub metadata: Value,
    pub traceparent: Option<String>,
    pub idempotency: Option<IdempotencyKey>,
}

#[derive(Debug)]
pub enum SubmitError {
    UnknownAgent { name: String },
    NoAgent,
    Invalid { pointer: String, detail: String },
    RunAlreadyActive { active_run_id: Option<RunId> },
    ChatNotFound,
    KeyReused,
    KeyInFlight,
    MessageIdReused,
    BeginFailed(StoreError),
}

pub async fn submit(_: &dyn Store, _: &dyn Bus, _: &Agents, _: Submission) -> Result<Admitted, SubmitError> {
    Err(SubmitError::NoAgent)
}

pub async fn stop(
    store: &dyn Store,
    _: &dyn Bus,
    workspace: WorkspaceId,
    run: RunId,
) -> Result<Run, StoreError> {
    store.run(workspace, run).await
}

pub async fn delete_chat(
    store: &dyn Store,
    _: &dyn Bus,
    workspace: WorkspaceId,
    chat: ChatId,
) -> Result<(), StoreError> {
    store.delete_chat(workspace, chat).await.map(drop)
}
