//! What the release and the end of a run must know of it: nothing that could keep an unreadable run from ending.

use sqlx::Transaction;
use uuid::Uuid;

use super::{
    Db,
    rows::{get, run_place, usage, word_or_null},
};
use crate::{
    domain::{
        ids::{ChatId, MessageId, Millis, RunId, Seq, WorkspaceId},
        run::{Run, Usage},
        transition::Reason,
    },
    store::Result,
};

/// A few columns of a run's row, and how long its log is.
pub(crate) struct RunFacts {
    pub(crate) workspace_id: WorkspaceId,
    pub(crate) id: RunId,
    pub(crate) chat_id: ChatId,
    pub(crate) assistant_message_id: MessageId,
    pub(crate) usage: Usage,
    pub(crate) step_count: u32,
    pub(crate) stop_requested_at: Option<Millis>,
    pub(crate) stop_reason: Option<Reason>,
    pub(crate) last_seq: Seq,
}

impl RunFacts {
    /// Why it is to end, if that was requested.
    pub(crate) fn stop(&self) -> Option<Reason> {
        self.stop_requested_at?;
        Some(self.stop_reason.unwrap_or(Reason::Stop))
    }
}

impl From<&Run> for RunFacts {
    fn from(run: &Run) -> Self {
        Self {
            workspace_id: run.workspace_id,
            id: run.id,
            chat_id: run.chat_id,
            assistant_message_id: run.assistant_message_id,
            usage: run.usage,
            step_count: run.step_count,
            stop_requested_at: run.stop_requested_at,
            stop_reason: run.stop_reason,
            last_seq: run.last_seq,
        }
    }
}

pub(super) async fn read_facts(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    run_id: RunId,
) -> Result<RunFacts> {
    let row = sqlx::query(concat!(
        "select r.id, r.chat_id, r.assistant_message_id, r.step_count, r.stop_requested_at, r.stop_reason, \
         r.input_tokens, r.output_tokens, r.reasoning_tokens, r.cached_input_tokens, ",
        run_place!(),
        " from runs r where r.workspace_id = $1 and r.id = $2"
    ))
    .bind(workspace.0)
    .bind(run_id.0)
    .fetch_one(&mut **tx)
    .await?;
    Ok(RunFacts {
        workspace_id: workspace,
        id: run_id,
        chat_id: get::<Uuid>(&row, "chat_id")?.into(),
        assistant_message_id: get::<Uuid>(&row, "assistant_message_id")?.into(),
        usage: usage(&row)?,
        step_count: get::<i32>(&row, "step_count")? as u32,
        stop_requested_at: get(&row, "stop_requested_at")?,
        stop_reason: word_or_null(&row, "runs", "stop_reason")?,
        last_seq: get(&row, "last_seq")?,
    })
}
