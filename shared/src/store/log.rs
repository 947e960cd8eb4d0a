//! The log: what a group commit takes and gives, and how it is read.

use async_trait::async_trait;

use super::Result;
use crate::{
    domain::{
        event::{Event, Segment},
        ids::{ChatId, Epoch, MessageId, Millis, RunId, Seq, WorkspaceId},
        run::Ending,
        step::Step,
        tool::{LateResult, ToolCall},
    },
    mutant::{self, Mutant},
};

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
    /// When the stop that ends the run was wished; the row may not say so yet.
    pub stop_requested_at: Option<Millis>,
}

impl Append {
    pub fn last_seq(&self) -> Seq {
        self.first_seq + self.events.len() as Seq - 1
    }

    /// Whether it is an end that a stop comes before: any but the one by a stop.
    pub fn yields_to_stop(&self) -> bool {
        let is_by_stop = |ending: &Ending| self.stop_requested_at.is_some() || ending.reason.is_ordered();
        self.ending.as_ref().is_some_and(|ending| !is_by_stop(ending)) && !mutant::is(Mutant::EndAheadOfStop)
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
    /// disturb the others. `Stopping` for an end of another kind when a stop of the run has been recorded: nothing of the
    /// append is written, and the run is to end by that stop. At most one append for each run. An append that is committed
    /// already, because the answer was lost, is answered like the first time, without what it caused. The caller awaits it
    /// to its end.
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
