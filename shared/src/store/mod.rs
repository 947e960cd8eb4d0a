//! What must survive a crash, as small traits in domain words.
//!
//! Postgres and SQLite keep the same promises. Most SQL is one text for both (`sql/`, compiled once for each);
//! what only one of them can say well stands in `postgres/` and `sqlite/`. `conformance` holds both to these pages.
//!
//! Lock order, for every transaction that takes more than one: chat → job → worker → log → run → message; batches
//! sorted by id. Whoever takes or frees a chat's slot first locks the chat's row.

pub mod admission;
mod bounded;
mod error;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
mod page;
pub mod postgres;
pub mod sqlite;

#[cfg(test)]
mod conformance;

use std::{fmt, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::Value;

use crate::domain::{
    asked::Asked,
    chat::Chat,
    event::{Event, ReleaseReason, Segment},
    ids::{ChatId, Epoch, KeyId, MessageId, Millis, RunId, Seq, WorkerId, WorkspaceId},
    message::{Message, Part},
    replay::Replay,
    run::{BlockedBy, Claim, Ending, Run},
    step::Step,
    tool::{LateResult, ToolCall},
    transition::{Reason, RunStatus, stored_words},
};

pub use admission::{AdmitError, Admitted, IfBusy, KeyName, NewRun, Request};
pub use bounded::bounded;
pub use error::StoreError;
pub use page::{Listed, Page};

pub type Result<T> = std::result::Result<T, StoreError>;

/// The truth, chosen by configuration at start.
pub trait Store: Workspaces + Chats + Runs + Admission + Log + Jobs + Workers {}
impl<S: Workspaces + Chats + Runs + Admission + Log + Jobs + Workers> Store for S {}

/// How processes hold it.
pub type SharedStore = Arc<dyn Store>;

/// What the holder of a key may do; each includes the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyRole {
    Viewer,
    Operator,
    Admin,
}

stored_words!(KeyRole, "key role", { Viewer => "viewer", Operator => "operator", Admin => "admin" });

/// A stored API key. The key itself is not in it, nor anywhere.
#[derive(Clone, Debug)]
pub struct ApiKey {
    pub id: KeyId,
    pub workspace_id: WorkspaceId,
    pub name: String,
    pub role: KeyRole,
    /// The public part, by which the row is found.
    pub prefix: String,
    /// SHA-256 of the whole key.
    pub digest: Vec<u8>,
    pub last_four: String,
    pub created_at: Millis,
    pub expires_at: Option<Millis>,
    pub revoked_at: Option<Millis>,
    /// By the database's clock, when the row was read.
    pub is_expired: bool,
    /// Absent: a key of the whole workspace.
    pub scope: Option<RunScope>,
}

/// What a key for one run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunScope {
    pub run_id: RunId,
    /// The key that asked for it, without which it is worth nothing. Absent: a caller without a key.
    pub issued_by: Option<KeyId>,
}

pub struct NewKey<'a> {
    pub workspace_id: WorkspaceId,
    pub name: &'a str,
    pub role: KeyRole,
    pub prefix: &'a str,
    pub digest: &'a [u8],
    pub last_four: &'a str,
    pub expires_at: Option<Millis>,
    pub scope: Option<RunScope>,
}

/// Tenants and their keys, and the store as a whole.
#[async_trait]
pub trait Workspaces: Send + Sync {
    /// Applies the migrations that are missing. Safe to call from many processes at once.
    async fn migrate(&self) -> Result<()>;
    /// Versions and names of the migrations, and whether each is applied.
    async fn migrations(&self) -> Result<Vec<(i64, String, bool)>>;
    /// The database's clock.
    async fn now(&self) -> Result<Millis>;
    /// Whether the database takes writes; one that is read-only, as a replica is, cannot serve.
    async fn is_writable(&self) -> Result<bool>;
    /// The version of the database itself, such as `17.2`.
    async fn server_version(&self) -> Result<String>;
    /// `postgres` or `sqlite`.
    fn kind(&self) -> &'static str;
    /// For how long an answer is worth waiting for: longer than the database itself lets anything last.
    fn patience(&self) -> Duration {
        Duration::from_secs(12)
    }
    /// Waits a moment for what is under way and closes all connections.
    async fn close(&self);

    /// The workspace of that name, made if it is missing.
    async fn ensure_workspace(&self, name: &str) -> Result<WorkspaceId>;
    async fn workspace(&self, name: &str) -> Result<Option<WorkspaceId>>;
    async fn create_key(&self, key: NewKey<'_>) -> Result<ApiKey>;
    /// The key with that public part, revoked and expired ones included: the caller compares and decides. One whose
    /// issuer is revoked or expired is as good as unknown.
    async fn find_key(&self, prefix: &str) -> Result<Option<ApiKey>>;
    /// The keys of the workspace itself, not those for single runs.
    async fn list_keys(&self, workspace: WorkspaceId) -> Result<Vec<ApiKey>>;
    /// Revokes; again is fine. `NotFound` for a key of another workspace.
    async fn revoke_key(&self, workspace: WorkspaceId, key: KeyId) -> Result<()>;
}

#[derive(Clone, Debug, Default)]
pub struct NewChat {
    pub title: Option<String>,
    pub agent: Option<String>,
    pub context_ref: Option<String>,
    pub metadata: Value,
    pub created_by: Option<String>,
    /// What was said elsewhere before, as the first turn. Nothing: no turn.
    pub imported: Vec<Part>,
}

/// Absent: keep. `Some(None)`: clear.
#[derive(Clone, Debug, Default)]
pub struct ChatPatch {
    pub title: Option<Option<String>>,
    pub agent: Option<Option<String>>,
    pub context_ref: Option<Option<String>>,
    pub metadata: Option<Value>,
}

/// Conversations and their messages. Deleted chats are as good as unknown.
#[async_trait]
pub trait Chats: Send + Sync {
    async fn create_chat(&self, workspace: WorkspaceId, chat: NewChat) -> Result<Chat>;
    async fn chat(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Chat>;
    /// The chat that a client calls so.
    async fn chat_of_client(&self, workspace: WorkspaceId, client_id: &str) -> Result<Chat>;
    /// Newest first, by id.
    async fn list_chats(&self, workspace: WorkspaceId, page: Page<ChatId>) -> Result<Listed<Chat, ChatId>>;
    async fn update_chat(&self, workspace: WorkspaceId, chat: ChatId, patch: ChatPatch) -> Result<Chat>;
    /// Soft delete. In the same transaction every run of the chat that no live worker holds ends with the reason
    /// `chat_deleted`, and the stop of the one that is held is requested. Again is `NotFound`.
    async fn delete_chat(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Vec<StopOutcome>>;
    /// Oldest first, by turn and position. Answers come without parts: [`Runs::records`] has them.
    async fn messages(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        page: Page<(i64, i32)>,
    ) -> Result<Listed<Message, (i64, i32)>>;
    /// Newest first, those of turns below `before`. Of deleted chats too: what goes on with them knows them.
    async fn messages_back(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        before: i64,
        limit: u32,
    ) -> Result<Vec<Message>>;
    async fn message(&self, workspace: WorkspaceId, message: MessageId) -> Result<Message>;
    /// Adds something that was said elsewhere as the chat's next turn, which no run answers.
    async fn import_message(&self, workspace: WorkspaceId, chat: ChatId, parts: Vec<Part>)
    -> Result<Message>;
}

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

/// What became of a stop.
#[derive(Clone, Debug)]
pub enum StopOutcome {
    /// It was over already, with this status.
    AlreadyOver(Run),
    /// Nobody held it: it is over now. The segments are to be published; a run in `promoted` waits for a worker.
    Ended { run: Run, segments: Vec<Segment>, wake: Vec<String> },
    /// A live worker holds it and will end it.
    Requested(Run),
}

impl StopOutcome {
    pub fn run(&self) -> &Run {
        match self {
            Self::AlreadyOver(run) | Self::Ended { run, .. } | Self::Requested(run) => run,
        }
    }
}

/// What became of a stop that names its run by the idempotency key of its submission.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each call, and it is moved once")]
pub enum KeyStop {
    Known(StopOutcome),
    /// Nobody has submitted with this key. Whoever does so within the key's time gets a run that is over.
    Noted {
        requested_at: Millis,
        expires_at: Millis,
    },
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

/// The one way in for a run.
#[async_trait]
pub trait Admission: Send + Sync {
    /// One transaction: idempotency → chat → run → messages → job → `run.queued`. See [`NewRun`].
    async fn admit(&self, new: NewRun) -> std::result::Result<Admitted, AdmitError>;
}

/// One run's share of a group commit.
#[derive(Clone, Debug)]
pub struct Append {
    pub workspace_id: WorkspaceId,
    pub chat_id: ChatId,
    pub run_id: RunId,
    pub assistant_message_id: MessageId,
    pub epoch: Epoch,
    /// The position that the writer expects: one behind the last event it knows of.
    pub first_seq: Seq,
    /// Never empty.
    pub events: Vec<Event>,
    /// Steps to insert.
    pub steps: Vec<Step>,
    /// Ledger rows as they stand after this commit, one per call.
    pub calls: Vec<ToolCall>,
    pub ending: Option<Ending>,
    /// When the stop that ends the run was wished, for a row that does not say so yet.
    pub stop_requested_at: Option<Millis>,
}

impl Append {
    pub fn last_seq(&self) -> Seq {
        self.first_seq + self.events.len() as Seq - 1
    }
}

/// What a committed append made visible.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The append's own segment.
    pub segment: Segment,
    /// Segments of other runs that it caused: the chat's next run.
    pub caused: Vec<Segment>,
    /// Queues in which a job became ready.
    pub wake: Vec<String>,
}

/// A place in a run's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCursor {
    pub workspace_id: WorkspaceId,
    pub run_id: RunId,
    /// The last event that is known.
    pub after: Seq,
}

/// Whether a commit waits for what somebody has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locks {
    Await,
    Refuse,
}

/// The log: append with expected position. It is the fence.
#[async_trait]
pub trait Log: LogReader {
    /// Commits the appends of several runs together, each whole or not at all: events, steps, ledger, counters,
    /// message and ending. The answers stand in the order of the appends. `LeaseLost` for one whose position is
    /// not right behind the log's last event or whose message is no longer streaming; it changes nothing and does not
    /// disturb the others. At most one append for each run. An append that is committed already, because the answer
    /// was lost, is answered like the first time, without what it caused. The caller awaits it to its end.
    async fn commit(&self, appends: &[Append]) -> Vec<Result<Committed>>;
    /// The same without waiting for a chat that somebody has locked: the endings of runs in it are answered `Locked`.
    /// A store that knows no such locks need not tell the two apart.
    async fn commit_at_once(&self, appends: &[Append]) -> Vec<Result<Committed>> {
        self.commit(appends).await
    }
    /// Writes into the ledger what a call came to that was last dispatched under `call.epoch` and settled without an
    /// answer, by whomever. `false`, and nothing is changed, when it was settled otherwise, when another holder
    /// dispatched it since, or when something is known already.
    async fn record_late(&self, workspace: WorkspaceId, call: &ToolCall, late: &LateResult) -> Result<bool>;
}

#[async_trait]
pub trait LogReader: Send + Sync {
    /// Segments that hold events behind the cursor, ascending, at most `limit` of them: fewer mean that the log
    /// had no more.
    async fn read_log(&self, cursor: LogCursor, limit: u32) -> Result<Vec<Segment>>;
    /// The same for many runs with one query, about `limit` for all of them together: the nearest to each cursor
    /// first, so that a run with much to read does not keep the others waiting. Empty only when nothing is left.
    async fn read_logs(&self, cursors: &[LogCursor], limit: u32) -> Result<Vec<Segment>>;
}

/// A run, and the claim by which it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldRun {
    pub workspace_id: WorkspaceId,
    pub run_id: RunId,
    pub epoch: Epoch,
}

impl From<&Claim> for HeldRun {
    fn from(claim: &Claim) -> Self {
        Self { workspace_id: claim.run.workspace_id, run_id: claim.run.id, epoch: claim.epoch }
    }
}

/// A job that changed hands without its holder.
#[derive(Clone, Debug)]
pub struct Released {
    pub run_id: RunId,
    pub workspace_id: WorkspaceId,
    pub segments: Vec<Segment>,
    pub wake: Vec<String>,
    /// The run was given up instead of handed on.
    pub ended: bool,
}

/// The queue: claimable work. Rows are deleted when done.
#[async_trait]
pub trait Jobs: Send + Sync {
    /// Takes up to `limit` due jobs for a worker whose lease is alive: job to worker, epoch + 1, run to running,
    /// `run.claimed` appended. Highest priority first, then oldest. Of runs at their last chance it takes one, and none
    /// while it holds one that it took less than [`PROBATION_MS`] ago and that has saved no step.
    ///
    /// [`PROBATION_MS`]: crate::domain::retry::PROBATION_MS
    async fn claim(&self, worker: WorkerId, queues: &[String], limit: u32) -> Result<Vec<(Claim, Segment)>>;
    /// The holder gives a run back: it is pending again, due after `delay_ms`. Not counted as a crash unless
    /// `reason` is `broken`; too many of those end the run. `last_seq` is the last event that the holder appended. A run whose stop is requested ends
    /// instead.
    async fn hand_back(
        &self,
        claim: &Claim,
        last_seq: Seq,
        reason: ReleaseReason,
        delay_ms: i64,
    ) -> Result<Released>;
    /// Jobs whose worker's lease ran out go back to pending with `run.released` appended and their crash counted;
    /// with crash number `max_crashes` without progress the run fails with `crash_limit`. A run whose stop is requested
    /// ends. Up to `limit`; the expiry is checked again under the job's lock. A run that cannot be released now does not
    /// keep the others waiting: an error is told only when nothing was released.
    async fn reap(&self, max_crashes: i32, limit: u32) -> Result<Vec<Released>>;
    /// Runs whose holder, dead or alive, has not followed its stop within [`STOP_GRACE_MS`] end, the longest overdue
    /// first, up to `limit`. Errors are told like those of [`reap`](Self::reap).
    async fn carry_out_stops(&self, limit: u32) -> Result<Vec<Released>>;
    /// Scheduled runs that are due take the chat's slot or queue up for it.
    async fn promote_due(&self, limit: u32) -> Result<Vec<Released>>;
    /// The claims that the worker holds according to the database.
    async fn held_by(&self, worker: WorkerId) -> Result<Vec<HeldRun>>;
    /// Gives back a run that the worker holds by this claim without knowing it: the answer to the claim was lost. A run
    /// whose stop is requested ends instead.
    async fn disown(&self, worker: WorkerId, held: HeldRun) -> Result<Option<Released>>;
    /// Repairs what no path should produce: active runs without a job or held by nobody, waiting ones that are held,
    /// streaming messages of finished runs. The
    /// count is that of repaired rows; above zero is a bug.
    async fn reconcile(&self) -> Result<u64>;
    /// Forgets what nobody can ask for any more: idempotency keys that have expired, and workers that ended a day ago
    /// and hold nothing. The count is that of deleted rows.
    async fn prune(&self) -> Result<u64>;
}

#[derive(Clone, Debug)]
pub struct NewWorker {
    pub id: WorkerId,
    pub host: String,
    pub version: String,
    pub slots: u32,
    pub lease_ms: i64,
    /// While it lives, it renews its row at least as often as this.
    pub renewal_ms: i64,
    /// Where its peers may ask whether it lives.
    pub presence: Option<Presence>,
}

/// Where a worker's process can be asked whether it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    pub address: SocketAddr,
    /// The kernel and network namespace that it runs in, if they can be told: a loopback address means the same process
    /// only to those in the same place.
    pub place: Option<String>,
}

/// A worker whose lease is alive, and where to ask whether its process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub id: WorkerId,
    pub presence: Presence,
}

#[derive(Clone, Debug)]
pub struct WorkerRow {
    pub id: WorkerId,
    pub host: String,
    pub version: String,
    pub slots: u32,
    pub draining: bool,
    pub expires_at: Millis,
    pub started_at: Millis,
    pub is_alive: bool,
    pub held: u32,
}

/// The wish that a held run ends, and the reason it is to end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopRequest {
    pub run_id: RunId,
    pub reason: Reason,
    pub requested_at: Millis,
}

/// How long the holder of a run has to follow a stop. After that anybody carries it out.
pub const STOP_GRACE_MS: i64 = 2_000;

/// How sure it is that a worker's process is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It is.
    Proof,
    /// It looks like it, which a row that was renewed meanwhile refutes.
    Suspicion,
}

/// Leases: a worker's row is its lease on everything it holds.
#[async_trait]
pub trait Workers: Send + Sync {
    async fn register_worker(&self, worker: &NewWorker) -> Result<()>;
    /// Extends the lease. `LeaseLost` when it had run out: an expired lease is never revived. It reads and writes the
    /// worker's row and nothing else, so that no other trouble looks like a lost lease.
    async fn heartbeat(&self, worker: WorkerId, lease_ms: i64, draining: bool) -> Result<()>;
    /// Which of the worker's runs are to stop.
    async fn stop_requests(&self, worker: WorkerId) -> Result<Vec<StopRequest>>;
    /// Ends the lease at once. What the worker still holds is for the reaper.
    async fn retire_worker(&self, worker: WorkerId) -> Result<()>;
    /// Ends the lease of a worker whose process is gone. False when there was none any more, or when a suspicion is
    /// refuted by the row: it was renewed within [`NewWorker::renewal_ms`]. Then nothing changes.
    async fn expire_worker(&self, worker: WorkerId, evidence: Evidence) -> Result<bool>;
    /// Every worker with a lease that can be asked whether it lives, in the order of their ids.
    async fn live_peers(&self) -> Result<Vec<Peer>>;
    /// Ends all leases: for the one process that holds its database file for itself.
    async fn retire_all_workers(&self) -> Result<u64>;
    async fn list_workers(&self) -> Result<Vec<WorkerRow>>;
}
