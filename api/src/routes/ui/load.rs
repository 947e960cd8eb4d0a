//! `GET /api/chat/{id}`: what a page shows when it opens: the newest messages, as a page that watched has them.
//!
//! The answer that is under way is left out: a page that resumes gets all of it, and would have it twice. So are the
//! questions that wait behind it: the page would show the answer below them.

use axum::{
    Json,
    extract::{Path, State},
};
use futures::StreamExt;
use longhaul_shared::{
    domain::{
        chat::Chat,
        ids::RunId,
        message::{Message, Part, Replaced, Role, Speaker},
        run::Run,
        transition::MessageStatus,
    },
    store::LogCursor,
};
use serde::{Deserialize, Serialize};

use super::{Named, named};
use crate::{
    auth::Viewer,
    error::ApiError,
    extract::Params,
    routes::found,
    state::AppState,
    views::ui::{Encoder, UiMessage},
};

/// Questions with their answers. An answer is put together from its whole log, so that nobody is given all of a long
/// chat at once.
const DEFAULT_TURNS: u32 = 50;
const MAX_TURNS: u32 = 100;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Load {
    turns: Option<u32>,
    /// Those before this turn.
    before: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LoadedChat {
    id: String,
    messages: Vec<UiMessage>,
    active_run_id: Option<RunId>,
    /// What to ask for as `before`, if there are older messages.
    before: Option<i64>,
}

pub(super) async fn load(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    Path(id): Path<String>,
    Params(query): Params<Load>,
) -> Result<Json<LoadedChat>, ApiError> {
    let turns = query.turns.unwrap_or(DEFAULT_TURNS);
    if !(1..=MAX_TURNS).contains(&turns) {
        return Err(ApiError::parameter("turns", format!("must be between 1 and {MAX_TURNS}")));
    }
    let chat = match named(&state, caller.workspace_id, id.clone()).await? {
        Named::Chat(chat) => *chat,
        Named::Run(run) => state.store.chat(caller.workspace_id, run.chat_id).await?,
        // A page makes the name of its chat before it has said anything.
        Named::Nothing => {
            return Ok(Json(LoadedChat { id, messages: vec![], active_run_id: None, before: None }));
        }
    };
    let end = query.before.unwrap_or(i64::MAX);
    let (chat, rows) = at_one_moment(&state, chat, end, 2 * turns).await?;
    let active = match chat.active_run_id {
        Some(run_id) => found(state.store.run(caller.workspace_id, run_id).await)?,
        None => None,
    };
    let mut replaced = Replaced::default();
    let (mut oldest, mut answer) = (1, None);
    let mut newest_first = vec![];
    for message in rows {
        match message.role {
            Role::Assistant => answer = Some(message),
            Role::User => {
                oldest = message.turn;
                let answer = answer.take().filter(|answer| answer.turn == message.turn);
                let is_waiting = answer.as_ref().is_some_and(|answer| {
                    let is_open = answer.status == Some(MessageStatus::Streaming);
                    is_open && active.as_ref().is_some_and(|active| answer.turn > active.turn)
                });
                if !replaced.hides(&message) && !is_waiting {
                    newest_first
                        .extend(answer.filter(|answer| answer.status != Some(MessageStatus::Streaming)));
                    newest_first.push(message);
                }
            }
        }
    }
    let mut messages = vec![];
    for message in newest_first.into_iter().rev() {
        match (message.role, message.run_id) {
            (Role::Assistant, Some(run_id)) => {
                // One that was deleted is not shown.
                if let Some(run) = found(state.store.run(caller.workspace_id, run_id).await)? {
                    messages.push(answered(&state, &run).await?);
                }
            }
            _ => messages.push(said(message)),
        }
    }
    // What has been replaced is not asked for either.
    let before = oldest.min(replaced.from.unwrap_or(oldest));
    let before = Some(before).filter(|before| *before > 1);
    Ok(Json(LoadedChat { id, messages, active_run_id: chat.active_run_id, before }))
}

/// The chat and its messages before a turn, newest first, with no run that began or ended between the two.
async fn at_one_moment(
    state: &AppState,
    mut chat: Chat,
    before: i64,
    limit: u32,
) -> Result<(Chat, Vec<Message>), ApiError> {
    loop {
        let rows = state.store.messages_back(chat.workspace_id, chat.id, before, limit).await?;
        let now = state.store.chat(chat.workspace_id, chat.id).await?;
        if now.active_run_id == chat.active_run_id {
            return Ok((now, rows));
        }
        chat = now;
    }
}

fn said(message: Message) -> UiMessage {
    let id = message.public_id();
    let texts = message.parts.into_iter().filter_map(|part| match part {
        Part::Text { text } | Part::Said { by: Speaker::User, text } => Some(text),
        _ => None,
    });
    UiMessage::of_user(id, texts)
}

/// The answer out of the same chunks that its watchers got.
async fn answered(state: &AppState, run: &Run) -> Result<UiMessage, ApiError> {
    let cursor = LogCursor { workspace_id: run.workspace_id, run_id: run.id, after: 0 };
    let mut log = Box::pin(state.tails.replay(cursor));
    let mut encoder = Encoder::new(run.id, run.assistant_message_id, run.renderer);
    let mut answer = UiMessage::answer(run.assistant_message_id.to_string());
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
