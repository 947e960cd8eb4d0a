//! One attempt's way to the log of its run.

use std::sync::Arc;

use longhaul_shared::{
    domain::{
        event::Event,
        run::{Claim, Ending},
        step::Step,
        tool::ToolCall,
    },
    store::Append,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Entry, Key, Position, RecordError, Recorder, Writer};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaKind {
    Text,
    Reasoning,
}

/// A piece of model output on its way to the watchers.
#[derive(Clone, Debug)]
pub struct Delta {
    pub kind: DeltaKind,
    pub step: u32,
    pub attempt: u32,
    pub text: String,
}

/// What is written together, whole or not at all.
#[derive(Clone, Debug, Default)]
pub struct Write {
    pub events: Vec<Event>,
    /// Their numbers in the log are filled in when they are known.
    pub steps: Vec<Step>,
    pub calls: Vec<ToolCall>,
    pub ending: Option<Ending>,
}

impl Write {
    pub fn events(events: impl IntoIterator<Item = Event>) -> Self {
        Self { events: events.into_iter().collect(), ..Self::default() }
    }
}

/// The attempt's exclusive way to write; others learn from the fence that it is not theirs.
pub struct RunLog {
    /// Dropped first: when the last sender goes, the recorder must not find a writer that is still there.
    _writer: Arc<Writer>,
    entries: mpsc::Sender<Entry>,
    key: Key,
}

impl Recorder {
    /// Opens the log of a claimed run behind the claim's own event. `lost` is cancelled when the fence refuses.
    pub async fn open(&self, claim: &Claim, lost: CancellationToken) -> RunLog {
        let template = Append {
            workspace_id: claim.run.workspace_id,
            chat_id: claim.run.chat_id,
            run_id: claim.run.id,
            assistant_message_id: claim.run.assistant_message_id,
            epoch: claim.epoch,
            first_seq: claim.last_seq + 1,
            events: vec![],
            steps: vec![],
            calls: vec![],
            ending: None,
            stop_requested_at: None,
        };
        let writer = Arc::new(Writer);
        let entry = Entry::Open { writer: Arc::downgrade(&writer), template: Box::new(template), lost };
        // If the recorder is gone, every write answers so.
        let _ = self.entries.send(entry).await;
        RunLog { entries: self.entries.clone(), key: (claim.run.id, claim.epoch), _writer: writer }
    }
}

impl RunLog {
    /// Shows a piece of output soon. Waits only if the recorder has fallen far behind.
    pub async fn delta(&self, delta: Delta) {
        let _ = self.entries.send(Entry::Delta { key: self.key, delta }).await;
    }

    /// Writes with what comes next, or soon, and does not wait for it.
    pub async fn append(&self, write: Write) {
        let _ = self.entries.send(Entry::Write { key: self.key, write: Box::new(write), reply: None }).await;
    }

    /// Waits until everything that was said is on disk, and tells where the log stands.
    pub async fn position(&self) -> Result<Position, RecordError> {
        self.write(Write::default()).await
    }

    /// Writes, and waits until it is on disk. Cancelling the wait does not cancel the write.
    pub async fn write(&self, write: Write) -> Result<Position, RecordError> {
        let (reply, answer) = oneshot::channel();
        let entry = Entry::Write { key: self.key, write: Box::new(write), reply: Some(reply) };
        self.entries.send(entry).await.map_err(|_| RecordError::LeaseLost)?;
        answer.await.unwrap_or(Err(RecordError::LeaseLost))
    }
}

#[cfg(test)]
impl Write {
    pub(super) fn step_finished_for_test() -> Self {
        use longhaul_shared::domain::{
            event::EventData,
            ids::RunId,
            run::Usage,
            step::{FinishReason, OutputPart},
        };
        let usage = Usage::default();
        let finish_reason = FinishReason::Stop;
        let step = Step {
            run_id: RunId::generate(),
            step: 1,
            attempt: 1,
            epoch: 1,
            model: "m".into(),
            output: vec![OutputPart::Text { text: "Hello".into() }],
            finish_reason,
            usage,
            first_seq: 0,
            last_seq: 0,
            started_at: 0,
            finished_at: 0,
        };
        let event = EventData::StepFinished { finish_reason, usage, tool_calls: 0 }.of_step(1, 1);
        Self { events: vec![event], steps: vec![step], ..Self::default() }
    }
}
