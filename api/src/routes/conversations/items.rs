//! `/v1/conversations/{id}/items`: what was said, turn by turn. A turn is part of it when its run is over.

use axum::{Json, extract::State};
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

use super::{ConversationId, ItemId, conversation, read_parts};
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

const MESSAGES_AT_ONCE: u32 = 40;

pub(super) async fn list(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    ConversationId(id): ConversationId,
    Params(query): Params<ListItems>,
) -> Result<Json<Value>, ApiError> {
    let unknown = || ApiError::parameter("after", "names no item of this conversation");
    let limit = query.limit()?;
    let chat = conversation(&state, caller.workspace_id, id).await?;
    let mut from = match &query.after {
        None => None,
        Some(after) => Some(turn_of(&state, &chat, after).await?.ok_or_else(unknown)?),
    };
    let mut seen = query.after;
    let mut items = vec![];
    while items.len() <= limit {
        let turns = turns(&state, &chat, query.order, from).await?;
        let Some(last) = turns.last() else { break };
        from = Some(last.next(query.order));
        for turn in turns.into_iter().filter(Turn::is_over) {
            let mut more = turn.items(&state).await?;
            if query.order == Order::Desc {
                more.reverse();
            }
            if let Some(after) = seen.take() {
                let last = more.iter().position(|item| item["id"] == *after).ok_or_else(unknown)?;
                more.drain(..=last);
            }
            items.extend(more);
            if items.len() > limit {
                break;
            }
        }
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    Ok(page(&items, has_more))
}

pub(super) async fn retrieve(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    ConversationId(id): ConversationId,
    ItemId(item): ItemId,
) -> Result<Json<Value>, ApiError> {
    let unknown = || ApiError::new(Code::NotFound, "there is no such item in this conversation");
    let chat = conversation(&state, caller.workspace_id, id).await?;
    let number = turn_of(&state, &chat, &item).await?.ok_or_else(unknown)?;
    let turns = turns(&state, &chat, Order::Desc, Some(number)).await?;
    let turn = turns.into_iter().find(|turn| turn.question.turn == number).ok_or_else(unknown)?;
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
    let chat = conversation(&state, caller.workspace_id, id).await?;
    if chat.active_run_id.is_some() {
        // Behind what the response says, those who page through the items would not find it.
        let told = "a response is being made in this conversation: add items when it is over";
        let active_run_id = chat.active_run_id;
        return Err(ApiError { active_run_id, ..ApiError::new(Code::RunAlreadyActive, told) });
    }
    let message = state.store.import_message(caller.workspace_id, id, parts).await?;
    Ok(page(&input_items(message.id, &message.parts), false))
}

/// What was said, and the answer to it.
struct Turn {
    question: Message,
    answer: Option<Message>,
}

impl Turn {
    /// Where a list that has this turn goes on.
    fn next(&self, order: Order) -> i64 {
        match order {
            Order::Asc => self.question.turn + 1,
            Order::Desc => self.question.turn - 1,
        }
    }

    fn is_over(&self) -> bool {
        match &self.answer {
            Some(answer) => answer.status != Some(MessageStatus::Streaming),
            None => self.question.run_id.is_none(),
        }
    }

    async fn items(&self, state: &AppState) -> Result<Vec<Value>, ApiError> {
        let mut items = input_items(self.question.id, &self.question.parts);
        if let Some(run_id) = self.answer.as_ref().and_then(|answer| answer.run_id) {
            let output = outputs_of(state, self.question.workspace_id, run_id).await?;
            items.extend(output.iter().map(|item| json!(item)));
        }
        Ok(items)
    }
}

/// The turn of this conversation that may have that item.
async fn turn_of(state: &AppState, chat: &Chat, item_id: &str) -> Result<Option<i64>, ApiError> {
    if let Some(message) = message_of_item(item_id) {
        let message = found(state.store.message(chat.workspace_id, message).await)?;
        return Ok(message.filter(|message| message.chat_id == chat.id).map(|message| message.turn));
    }
    let Some(run_id) = run_of_item(item_id) else { return Ok(None) };
    // The run itself may be deleted.
    let run = state.store.ancestors(chat.workspace_id, run_id, 1).await?.pop();
    Ok(run.filter(|run| run.chat_id == chat.id).map(|run| run.turn))
}

/// The next few turns from that one on, in that order.
async fn turns(
    state: &AppState,
    chat: &Chat,
    order: Order,
    from: Option<i64>,
) -> Result<Vec<Turn>, ApiError> {
    let (workspace, limit) = (chat.workspace_id, MESSAGES_AT_ONCE);
    let mut rows = match order {
        Order::Asc => {
            let after = from.map(|turn| (turn, -1));
            state.store.messages(workspace, chat.id, Page { limit, after }).await?.items
        }
        Order::Desc => {
            let before = from.map_or(i64::MAX, |turn| turn + 1);
            let mut rows = state.store.messages_back(workspace, chat.id, before, limit).await?;
            rows.reverse();
            rows
        }
    };
    // A page may end within a turn, whose other half comes with the next one.
    if order == Order::Asc
        && rows.len() == limit as usize
        && rows.last().is_some_and(|row| row.role == Role::User)
    {
        rows.pop();
    }
    let mut turns: Vec<Turn> = vec![];
    for row in rows {
        match (row.role, turns.last_mut()) {
            (Role::User, _) => turns.push(Turn { question: row, answer: None }),
            (Role::Assistant, Some(turn)) if turn.question.turn == row.turn => turn.answer = Some(row),
            (Role::Assistant, _) => {}
        }
    }
    if order == Order::Desc {
        turns.reverse();
    }
    Ok(turns)
}
