//! `/v1/conversations/{id}/items`: what was said, turn by turn. A turn is part of it when its run is over.

use axum::{
    Json,
    extract::{Path, State},
};
use longhaul_shared::{
    domain::{
        chat::Chat,
        message::{Message, Role},
        transition::MessageStatus,
    },
    store::Page,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ConversationId, conversation, read_parts};
use crate::{
    auth::{Operator, Viewer},
    error::{ApiError, Code},
    extract::{JsonBody, Params},
    routes::{
        found,
        responses::{ListItems, Order, list as page, outputs_of},
    },
    state::AppState,
    views::responses::{input_items, message_of_item, run_of_item},
};

const MESSAGES_AT_ONCE: u32 = 200;

pub(super) async fn list(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    ConversationId(id): ConversationId,
    Params(query): Params<ListItems>,
) -> Result<Json<Value>, ApiError> {
    let limit = query.limit()?;
    let chat = conversation(&state, caller.workspace_id, id).await?;
    let mut turns = turns(&state, &chat).await?;
    if query.order == Order::Desc {
        turns.reverse();
    }
    if let Some(after) = &query.after {
        let seen = turns.iter().position(|turn| turn.has(after));
        let seen = seen.ok_or_else(|| ApiError::parameter("after", "names no item of this conversation"))?;
        turns.drain(..seen);
    }
    let mut seen = query.after;
    let mut items = vec![];
    for turn in turns {
        let mut more = turn.items(&state).await?;
        if query.order == Order::Desc {
            more.reverse();
        }
        if let Some(after) = seen.take() {
            let last = more.iter().position(|item| item["id"] == *after);
            let last =
                last.ok_or_else(|| ApiError::parameter("after", "names no item of this conversation"))?;
            more.drain(..=last);
        }
        items.extend(more);
        if items.len() > limit {
            break;
        }
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    Ok(page(&items, has_more))
}

pub(super) async fn retrieve(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    Path((_, item)): Path<(String, String)>,
    ConversationId(id): ConversationId,
) -> Result<Json<Value>, ApiError> {
    let unknown = || ApiError::new(Code::NotFound, "there is no such item in this conversation");
    let chat = conversation(&state, caller.workspace_id, id).await?;
    let turns = turns(&state, &chat).await?;
    let turn = turns.iter().find(|turn| turn.has(&item)).ok_or_else(unknown)?;
    let items = turn.items(&state).await?;
    items.into_iter().find(|known| known["id"] == *item).map(Json).ok_or_else(unknown)
}

#[derive(Debug, Deserialize)]
pub(super) struct NewItems {
    items: Value,
}

pub(super) async fn create(
    State(state): State<AppState>,
    Operator(caller): Operator,
    ConversationId(id): ConversationId,
    JsonBody { value: new, .. }: JsonBody<NewItems>,
) -> Result<Json<Value>, ApiError> {
    let parts = read_parts(new.items)?;
    conversation(&state, caller.workspace_id, id).await?;
    let message = state.store.import_message(caller.workspace_id, id, parts).await?;
    Ok(page(&input_items(message.id, &message.parts), false))
}

/// What was said, and the answer to it.
struct Turn {
    question: Message,
    answer: Option<Message>,
}

impl Turn {
    fn has(&self, item_id: &str) -> bool {
        message_of_item(item_id) == Some(self.question.id)
            || run_of_item(item_id).is_some_and(|(run, _)| self.question.run_id == Some(run))
    }

    async fn items(&self, state: &AppState) -> Result<Vec<Value>, ApiError> {
        let mut items = input_items(self.question.id, &self.question.parts);
        let Some(run_id) = self.answer.as_ref().and_then(|answer| answer.run_id) else { return Ok(items) };
        // Of a response that was deleted only the question is left.
        if let Some(run) = found(state.store.run(self.question.workspace_id, run_id).await)? {
            let output = outputs_of(state, &run).await?;
            items.extend(output.iter().map(|item| json!(item)));
        }
        Ok(items)
    }
}

/// Those that are over, oldest first.
async fn turns(state: &AppState, chat: &Chat) -> Result<Vec<Turn>, ApiError> {
    let mut turns: Vec<Turn> = vec![];
    let mut after = None;
    loop {
        let page = Page { limit: MESSAGES_AT_ONCE, after };
        let listed = state.store.messages(chat.workspace_id, chat.id, page).await?;
        for message in listed.items {
            match message.role {
                Role::User => turns.push(Turn { question: message, answer: None }),
                Role::Assistant => {
                    let question = turns.last_mut().filter(|turn| turn.question.turn == message.turn);
                    if let Some(turn) = question {
                        turn.answer = Some(message);
                    }
                }
            }
        }
        after = listed.next;
        if after.is_none() {
            break;
        }
    }
    let is_over = |turn: &Turn| {
        turn.answer.as_ref().is_none_or(|answer| answer.status != Some(MessageStatus::Streaming))
            && (turn.answer.is_some() || turn.question.run_id.is_none())
    };
    turns.retain(is_over);
    Ok(turns)
}
