//! `GET /api/chat/{id}`: what a page shows when it opens: the messages, as a page that watched has them.
//!
//! The answer that is under way is left out: a page that resumes gets all of it, and would have it twice.

use axum::{
    Json,
    extract::{Path, State},
};
use futures::StreamExt;
use longhaul_shared::{
    domain::{
        ids::{ChatId, RunId, WorkspaceId},
        message::{Message, Part, Role},
        transition::MessageStatus,
    },
    store::{LogCursor, Page},
};
use serde::Serialize;

use super::{Named, named};
use crate::{
    auth::Viewer,
    error::ApiError,
    state::AppState,
    views::ui::{Encoder, UiMessage},
};

const PAGE: u32 = 200;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LoadedChat {
    id: String,
    messages: Vec<UiMessage>,
    active_run_id: Option<RunId>,
}

pub(super) async fn load(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    Path(id): Path<String>,
) -> Result<Json<LoadedChat>, ApiError> {
    let Named::Chat(chat) = named(&state, caller.workspace_id, &id).await? else {
        // A page makes the name of its chat before it has said anything.
        return Ok(Json(LoadedChat { id, messages: vec![], active_run_id: None }));
    };
    let mut messages = vec![];
    for message in stored(&state, caller.workspace_id, chat.id).await? {
        match (message.role, message.run_id) {
            (Role::User, _) => messages.push(said(message)),
            (Role::Assistant, Some(run_id)) if message.status != Some(MessageStatus::Streaming) => {
                messages.push(answered(&state, &message, run_id).await?);
            }
            (Role::Assistant, _) => {}
        }
    }
    Ok(Json(LoadedChat { id, messages, active_run_id: chat.active_run_id }))
}

async fn stored(state: &AppState, workspace: WorkspaceId, chat: ChatId) -> Result<Vec<Message>, ApiError> {
    let mut messages = vec![];
    let mut after = None;
    loop {
        let listed = state.store.messages(workspace, chat, Page { limit: PAGE, after }).await?;
        messages.extend(listed.items);
        after = listed.next;
        if after.is_none() {
            return Ok(messages);
        }
    }
}

fn said(message: Message) -> UiMessage {
    let id = message.public_id();
    let texts = message.parts.into_iter().filter_map(|part| match part {
        Part::Text { text } => Some(text),
        _ => None,
    });
    UiMessage::of_user(id, texts)
}

/// The answer out of the same chunks that its watchers got.
async fn answered(state: &AppState, message: &Message, run_id: RunId) -> Result<UiMessage, ApiError> {
    let cursor = LogCursor { workspace_id: message.workspace_id, run_id, after: 0 };
    let mut log = Box::pin(state.tails.replay(cursor));
    let mut encoder = Encoder::new(run_id, message.id);
    let mut answer = UiMessage::answer(message.id.to_string());
    let mut chunks = vec![];
    while let Some(slice) = log.next().await {
        for (_, event) in slice?.events() {
            encoder.push(event, &mut chunks);
        }
        for chunk in chunks.drain(..) {
            answer.apply(&chunk);
        }
    }
    Ok(answer)
}
