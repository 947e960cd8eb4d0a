//! Runs as readers see them.

use async_trait::async_trait;

use super::{KeyName, KeyStop, Listed, Page, Result, StopOutcome};
use crate::domain::{
    asked::Asked,
    event::Segment,
    ids::{ChatId, Millis, RunId, WorkspaceId},
    message::Part,
    replay::Replay,
    run::{BlockedBy, Run},
    step::Step,
    tool::ToolCall,
    transition::RunStatus,
};

#[derive(Clone, Debug, Default)]
pub struct RunFilter {
    pub status: Vec<RunStatus>,
    pub chat_id: Option<ChatId>,
    pub agent: Option<String>,
    pub tag: Option<String>,
    pub created_after: Option<Millis>,
    pub created_before: Option<Millis>,
}

/// What a run was given.
#[derive(Clone, Debug, PartialEq)]
pub struct RunInput {
    /// The user's message.
    pub parts: Vec<Part>,
    pub asked: Option<Asked>,
    pub previous_run_id: Option<RunId>,
    /// The first turn of its chat that the run stands in for, up to its own.
    pub replaces_turn: Option<i64>,
}

/// How young a run is to be. Both in milliseconds, by the database's clock.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    /// Made within this time,
    pub made_within_ms: Millis,
    /// and not over, or over for no longer than this.
    pub over_within_ms: Millis,
}

/// What an idempotency key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedRun {
    pub run_id: RunId,
    pub fingerprint: Vec<u8>,
}

/// A turn of the conversation that a run goes on with.
#[derive(Clone, Debug, PartialEq)]
pub struct Ancestor {
    pub run_id: RunId,
    pub chat_id: ChatId,
    pub turn: i64,
    pub status: RunStatus,
    pub previous_run_id: Option<RunId>,
    /// The user's message.
    pub parts: Vec<Part>,
}

/// All that the reconstruction of one run's answer needs.
#[derive(Clone, Debug)]
pub struct RunRecord {
    pub run_id: RunId,
    pub steps: Vec<Step>,
    pub calls: Vec<ToolCall>,
    /// The log behind the last saved step.
    pub tail: Vec<Segment>,
}

impl RunRecord {
    /// The state of the run's answer, as far as its rows and log tell it.
    pub fn replay(self) -> Replay {
        let mut replay = Replay::from_rows(self.run_id, self.steps, self.calls);
        for segment in &self.tail {
            replay.apply_segment(segment);
        }
        replay
    }
}

/// Runs as readers see them. Deleted ones are as good as unknown.
#[async_trait]
pub trait Runs: Send + Sync {
    async fn run(&self, workspace: WorkspaceId, run: RunId) -> Result<Run>;
    async fn input(&self, workspace: WorkspaceId, run: RunId) -> Result<RunInput>;
    /// The run itself and those before it, by [`Request::previous_run_id`], newest first and at most `limit`. Deleted
    /// ones are among them: what goes on with them knows them.
    async fn ancestors(&self, workspace: WorkspaceId, run: RunId, limit: u32) -> Result<Vec<Ancestor>>;
    /// The newest run with that [`Request::fingerprint`], if it is fresh.
    async fn run_of_request(
        &self,
        workspace: WorkspaceId,
        fingerprint: &[u8],
        fresh: Fresh,
    ) -> Result<Option<Run>>;
    /// The run that was submitted with this key.
    async fn run_of_key(&self, workspace: WorkspaceId, key: KeyName<'_>) -> Result<Option<KeyedRun>>;
    /// Makes it unknown to readers. It goes on, unless it is stopped. Again is `NotFound`.
    async fn delete_run(&self, workspace: WorkspaceId, run: RunId) -> Result<()>;
    /// Newest first, by id.
    async fn list_runs(
        &self,
        workspace: WorkspaceId,
        filter: &RunFilter,
        page: Page<RunId>,
    ) -> Result<Listed<Run, RunId>>;
    /// The run of the chat's newest turn that began, else of its newest turn: what a reconnecting page asks for.
    async fn latest_run(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Option<Run>>;
    /// Why a run that is not over is not moving.
    async fn blocked_by(&self, run: &Run) -> Result<Option<BlockedBy>>;
    /// Steps, ledger and the log behind the steps, for several runs at once, in the order asked for.
    async fn records(&self, workspace: WorkspaceId, runs: &[RunId]) -> Result<Vec<RunRecord>>;
    /// Records the wish to stop, and ends the run at once if no live worker holds it, or if its holder has not followed
    /// an earlier wish within [`STOP_GRACE_MS`].
    async fn stop_run(&self, workspace: WorkspaceId, run: RunId) -> Result<StopOutcome>;
    /// The same for the run that was submitted with this key, or that will be.
    async fn stop_by_key(&self, workspace: WorkspaceId, key: KeyName<'_>) -> Result<KeyStop>;
    /// Makes way in the run's chat, if it is still the one that holds the slot: in one transaction every run that waits
    /// there ends with the reason `superseded`, and this one is stopped for it like by [`stop_run`](Self::stop_run).
    /// Empty when another run holds the slot by now, or none.
    async fn supersede(&self, workspace: WorkspaceId, run: RunId) -> Result<Vec<StopOutcome>>;
}
