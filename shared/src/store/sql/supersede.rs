//! Makes way in a chat for a run that is not to wait: what waits there ends, and the run that holds the slot is stopped.

use uuid::Uuid;

use super::{
    SqlStore,
    admission::{read_run, slot_holder},
    again::{again, lost_to_another},
    rows::get,
    settle::{lock_chat, stop_in},
    to_its_end,
};
use crate::{
    domain::{
        ids::{RunId, WorkspaceId},
        transition::Reason,
    },
    store::{Result, StopOutcome},
};

pub(super) async fn supersede(
    store: &SqlStore,
    workspace: WorkspaceId,
    run_id: RunId,
) -> Result<Vec<StopOutcome>> {
    let store = store.clone();
    to_its_end(async move { again(|| try_supersede(&store, workspace, run_id), lost_to_another).await }).await
}

async fn try_supersede(store: &SqlStore, workspace: WorkspaceId, run_id: RunId) -> Result<Vec<StopOutcome>> {
    let mut tx = store.begin().await?;
    let chat_id = read_run(&mut tx, workspace, run_id).await?.chat_id;
    lock_chat(&mut tx, workspace, chat_id).await?;
    if slot_holder(&mut *tx, workspace, chat_id).await? != Some(run_id) {
        tx.rollback().await?;
        return Ok(vec![]);
    }
    // Those that wait for the slot first: the end of its holder would promote them.
    let waiting = sqlx::query(
        "select id from runs where workspace_id = $1 and chat_id = $2 and status = 'queued' order by turn",
    )
    .bind(workspace.0)
    .bind(chat_id.0)
    .fetch_all(&mut *tx)
    .await?;
    let mut outcomes = vec![];
    for row in &waiting {
        let run_id = get::<Uuid>(row, "id")?.into();
        outcomes.push(stop_in(&mut tx, workspace, run_id, Reason::Superseded).await?);
    }
    outcomes.push(stop_in(&mut tx, workspace, run_id, Reason::Superseded).await?);
    tx.commit().await?;
    Ok(outcomes)
}
