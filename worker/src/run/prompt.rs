//! What the model is given: instructions, the conversation so far, the user's message, the run's own steps.

use longhaul_shared::{
    domain::{
        ids::{MessageId, RunId},
        message::{Message, Role, text_of},
        replay::{ModelMessage, Replay},
        run::Run,
    },
    store::{Page, RunRecord, Store, StoreError},
};

/// The newest turns that are given to the model. Older ones are left out.
const TURNS: usize = 200;
const PAGE: u32 = 200;

/// Everything before the run's own steps, which does not change while it runs.
pub(super) async fn conversation(
    store: &dyn Store,
    run: &Run,
    instructions: &str,
) -> Result<Vec<ModelMessage>, StoreError> {
    let mut messages = vec![];
    if !instructions.is_empty() {
        messages.push(ModelMessage::System(instructions.to_owned()));
    }
    if run.turn > 1 {
        messages.extend(earlier_turns(store, run).await?);
    }
    let question = store.message(run.workspace_id, run.user_message_id).await?;
    messages.push(ModelMessage::User(text_of(&question.parts)));
    Ok(messages)
}

async fn earlier_turns(store: &dyn Store, run: &Run) -> Result<Vec<ModelMessage>, StoreError> {
    let first = (run.turn - TURNS as i64).max(1);
    let mut rows: Vec<Message> = vec![];
    let mut after = Some((first, -1));
    while let Some(from) = after {
        let page = Page { limit: PAGE, after: Some(from) };
        let listed = store.messages(run.workspace_id, run.chat_id, page).await?;
        after = listed.next.filter(|(turn, _)| *turn < run.turn);
        rows.extend(listed.items.into_iter().filter(|message| message.turn < run.turn));
    }
    // A turn that is scheduled for later or still waits is no part of the conversation yet.
    let is_over = |question: MessageId| {
        rows.iter().any(|answer| {
            answer.in_reply_to == Some(question)
                && answer.status.is_none_or(|status| {
                    status != longhaul_shared::domain::transition::MessageStatus::Streaming
                })
        })
    };
    let runs: Vec<RunId> =
        rows.iter().filter(|row| row.role == Role::Assistant).filter_map(|row| row.run_id).collect();
    let records = store.records(run.workspace_id, &runs).await?;
    let mut messages = vec![];
    for row in &rows {
        match row.role {
            Role::User if is_over(row.id) => messages.push(ModelMessage::User(text_of(&row.parts))),
            Role::Assistant if row.in_reply_to.is_some_and(is_over) => {
                let record = records.iter().find(|record| Some(record.run_id) == row.run_id);
                messages.extend(record.map(replay_of).map(|replay| replay.for_model()).unwrap_or_default());
            }
            Role::User | Role::Assistant => {}
        }
    }
    Ok(messages)
}

/// The state of a run's answer by its record.
pub(super) fn replay_of(record: &RunRecord) -> Replay {
    let mut replay = Replay::from_rows(record.run_id, record.steps.clone(), record.calls.clone());
    for segment in &record.tail {
        replay.apply_segment(segment);
    }
    replay
}
