//! The tables. Keys are in the order in which ids were made, so that every walk over them is repeatable.

use std::collections::BTreeMap;

use crate::{
    domain::{
        chat::Chat,
        event::{Event, EventData, Segment},
        ids::{ChatId, Epoch, JobId, KeyId, MessageId, Millis, RunId, Seq, WorkerId, WorkspaceId},
        message::Message,
        run::Run,
        step::Step,
        tool::ToolCall,
        transition::RunStatus,
    },
    store::{ApiKey, Presence, Request, Result, StoreError},
};

/// Everything there is.
#[derive(Debug, Default)]
pub struct State {
    /// The time of the transaction under way.
    pub now: Millis,
    pub is_closed: bool,
    /// How long the holder of a run has to follow a stop.
    pub stop_grace_ms: Millis,
    pub workspaces: BTreeMap<WorkspaceId, String>,
    pub keys: BTreeMap<KeyId, ApiKey>,
    pub chats: BTreeMap<ChatId, ChatRow>,
    pub runs: BTreeMap<RunId, RunRow>,
    pub messages: BTreeMap<MessageId, Message>,
    /// Of the kind `run`: there are no others yet.
    pub jobs: BTreeMap<RunId, JobRow>,
    pub log: BTreeMap<RunId, Vec<LogRow>>,
    pub steps: BTreeMap<RunId, Vec<Step>>,
    pub calls: BTreeMap<RunId, BTreeMap<(u32, u32), ToolCall>>,
    /// The claim under which a call was last sent.
    pub dispatched: BTreeMap<(RunId, u32, u32), Epoch>,
    pub workers: BTreeMap<WorkerId, LeaseRow>,
    /// By workspace, caller, route and key.
    pub idempotency: BTreeMap<(WorkspaceId, String, String, String), KeyRow>,
}

#[derive(Clone, Debug)]
pub struct ChatRow {
    pub chat: Chat,
    pub last_turn: i64,
    pub is_deleted: bool,
}

/// A run, without what other tables say about it: its holder and the length of its log.
#[derive(Clone, Debug)]
pub struct RunRow {
    pub run: Run,
    pub queue: String,
    pub priority: i32,
    pub request: Option<Request>,
    pub is_deleted: bool,
}

#[derive(Clone, Debug)]
pub struct JobRow {
    pub id: JobId,
    pub queue: String,
    pub priority: i32,
    pub run_at: Millis,
    pub epoch: Epoch,
    pub worker_id: Option<WorkerId>,
    pub attempts: u32,
    pub crashes: i32,
    /// The run's steps when a crash was last counted.
    pub crash_step: u32,
    pub claimed_at: Option<Millis>,
}

#[derive(Clone, Debug)]
pub struct LogRow {
    pub segment: Segment,
    pub epoch: Epoch,
}

#[derive(Clone, Debug)]
pub struct LeaseRow {
    pub host: String,
    pub version: String,
    pub slots: u32,
    pub draining: bool,
    pub started_at: Millis,
    pub expires_at: Millis,
    /// When it would have run out without any heartbeat.
    pub first_expires_at: Millis,
    pub renewed_at: Millis,
    pub renewal_ms: Millis,
    pub presence: Option<Presence>,
}

#[derive(Clone, Debug)]
pub struct KeyRow {
    pub fingerprint: Vec<u8>,
    /// None while nobody has submitted with the key.
    pub answer: Option<Answer>,
    /// Whoever submits with the key gets a run that is over.
    pub stop_requested_at: Option<Millis>,
    pub expires_at: Millis,
}

/// What the first call with a key was told.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub run_id: RunId,
    pub status: RunStatus,
    pub position: Option<u32>,
}

impl State {
    /// The run as a reader sees it.
    pub fn run(&self, workspace: WorkspaceId, run_id: RunId) -> Result<Run> {
        let row = self.runs.get(&run_id).filter(|row| row.run.workspace_id == workspace);
        Ok(self.as_read(row.ok_or(StoreError::NotFound)?))
    }

    pub(super) fn as_read(&self, row: &RunRow) -> Run {
        Run {
            worker_id: self.jobs.get(&row.run.id).and_then(|job| job.worker_id),
            last_seq: self.last_seq(row.run.id),
            ..row.run.clone()
        }
    }

    pub(super) fn run_row(&mut self, run_id: RunId) -> Result<&mut RunRow> {
        self.runs.get_mut(&run_id).ok_or(StoreError::NotFound)
    }

    /// The chat, if it is the workspace's and not deleted.
    pub(super) fn live_chat(&self, workspace: WorkspaceId, chat_id: ChatId) -> Result<&ChatRow> {
        let row = self.chats.get(&chat_id);
        row.filter(|row| row.chat.workspace_id == workspace && !row.is_deleted).ok_or(StoreError::NotFound)
    }

    /// The run that holds the chat's slot.
    pub(super) fn slot_holder(&self, chat_id: ChatId) -> Option<RunId> {
        self.runs_of(chat_id).find(|row| row.run.status.holds_slot()).map(|row| row.run.id)
    }

    pub(super) fn runs_of(&self, chat_id: ChatId) -> impl Iterator<Item = &RunRow> {
        self.runs.values().filter(move |row| row.run.chat_id == chat_id)
    }

    pub fn last_seq(&self, run_id: RunId) -> Seq {
        self.log.get(&run_id).and_then(|rows| rows.last()).map_or(0, |row| row.segment.last)
    }

    /// Whether the worker's lease holds at the time of the last transaction.
    pub fn is_alive(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|lease| lease.expires_at > self.now)
    }

    /// A job for the run, due now.
    pub(super) fn insert_job(&mut self, run_id: RunId, queue: String, priority: i32) {
        let job = JobRow {
            id: JobId::generate(),
            queue,
            priority,
            run_at: self.now,
            epoch: 0,
            worker_id: None,
            attempts: 0,
            crashes: 0,
            crash_step: 0,
            claimed_at: None,
        };
        self.jobs.insert(run_id, job);
    }

    /// Appends behind the last event there is.
    pub(super) fn append(&mut self, run_id: RunId, epoch: Epoch, events: Vec<Event>) -> Segment {
        let first = self.last_seq(run_id) + 1;
        let last = first + events.len() as Seq - 1;
        let segment = Segment { run_id, first, last, at: self.now, events };
        self.log.entry(run_id).or_default().push(LogRow { segment: segment.clone(), epoch });
        segment
    }

    pub(super) fn append_one(&mut self, run_id: RunId, epoch: Epoch, event: &EventData) -> Segment {
        self.append(run_id, epoch, vec![event.of_run()])
    }
}
