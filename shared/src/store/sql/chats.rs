//! Conversations and their messages.

use async_trait::async_trait;
use serde_json::{Map, Value};
use sqlx::{Transaction, types::Json};
use uuid::Uuid;

use super::{
    Db, SqlStore,
    admission::NEXT_TURN,
    rows::{self, chat_columns, get, message_columns},
    to_its_end,
};
use crate::{
    domain::{
        chat::Chat,
        ids::{ChatId, MessageId, WorkspaceId},
        message::{Message, Part},
    },
    store::{ChatPatch, Chats, Listed, NewChat, Page, Result, StopOutcome, StoreError},
};

/// Above every key that is given out: where a list that goes downwards begins.
pub(super) const BEHIND_ALL: Uuid = Uuid::max();

const MESSAGE: &str = concat!(
    "select ",
    message_columns!(),
    " from messages m join chats c on c.workspace_id = m.workspace_id and c.id = m.chat_id \
     where m.workspace_id = $1 and m.id = $2 and c.deleted_at is null"
);

#[async_trait]
impl Chats for SqlStore {
    async fn create_chat(&self, workspace: WorkspaceId, chat: NewChat) -> Result<Chat> {
        const SQL: &str = concat!(
            "insert into chats (workspace_id, id, title, agent, context_ref, metadata, created_by) \
             values ($1, $2, $3, $4, $5, $6, $7) returning ",
            chat_columns!()
        );
        let store = self.clone();
        to_its_end(async move {
            let mut tx = store.begin().await?;
            let row = sqlx::query::<Db>(SQL)
                .bind(workspace.0)
                .bind(ChatId::generate().0)
                .bind(chat.title)
                .bind(chat.agent)
                .bind(chat.context_ref)
                .bind(Json(object(chat.metadata)))
                .bind(chat.created_by)
                .fetch_one(&mut *tx)
                .await?;
            let made = rows::chat(&row)?;
            if !chat.imported.is_empty() {
                import(&mut tx, workspace, made.id, &chat.imported).await?;
            }
            tx.commit().await?;
            Ok(made)
        })
        .await
    }

    async fn chat(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Chat> {
        const SQL: &str = concat!(
            "select ",
            chat_columns!(),
            " from chats where workspace_id = $1 and id = $2 and deleted_at is null"
        );
        rows::chat(&sqlx::query::<Db>(SQL).bind(workspace.0).bind(chat.0).fetch_one(self.reader()).await?)
    }

    async fn chat_of_client(&self, workspace: WorkspaceId, client_id: &str) -> Result<Chat> {
        const SQL: &str = concat!(
            "select ",
            chat_columns!(),
            " from chats where workspace_id = $1 and client_id = $2 and deleted_at is null"
        );
        rows::chat(&sqlx::query::<Db>(SQL).bind(workspace.0).bind(client_id).fetch_one(self.reader()).await?)
    }

    async fn list_chats(&self, workspace: WorkspaceId, page: Page<ChatId>) -> Result<Listed<Chat, ChatId>> {
        const SQL: &str = concat!(
            "select ",
            chat_columns!(),
            " from chats where workspace_id = $1 and id < $2 and deleted_at is null order by id desc limit $3"
        );
        let rows = sqlx::query::<Db>(SQL)
            .bind(workspace.0)
            .bind(page.after.map_or(BEHIND_ALL, |id| id.0))
            .bind(page.fetch())
            .fetch_all(self.reader())
            .await?;
        let chats = rows.iter().map(rows::chat).collect::<Result<Vec<_>>>()?;
        Ok(Listed::cut(chats, &page, |chat| chat.id))
    }

    async fn update_chat(&self, workspace: WorkspaceId, chat: ChatId, patch: ChatPatch) -> Result<Chat> {
        // One statement, so that two patches of different fields both hold.
        const SQL: &str = concat!(
            "update chats set title = case when $3 then $4 else title end, \
             agent = case when $5 then $6 else agent end, \
             context_ref = case when $7 then $8 else context_ref end, \
             metadata = coalesce($9, metadata), updated_at = ",
            now!(),
            " where workspace_id = $1 and id = $2 and deleted_at is null returning ",
            chat_columns!()
        );
        let row = sqlx::query::<Db>(SQL)
            .bind(workspace.0)
            .bind(chat.0)
            .bind(patch.title.is_some())
            .bind(patch.title.flatten())
            .bind(patch.agent.is_some())
            .bind(patch.agent.flatten())
            .bind(patch.context_ref.is_some())
            .bind(patch.context_ref.flatten())
            .bind(patch.metadata.map(|metadata| Json(object(metadata))))
            .fetch_one(self.writer())
            .await?;
        rows::chat(&row)
    }

    async fn delete_chat(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Vec<StopOutcome>> {
        super::settle::delete_chat(self, workspace, chat).await
    }

    async fn messages(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        page: Page<(i64, i32)>,
    ) -> Result<Listed<Message, (i64, i32)>> {
        const SQL: &str = concat!(
            "select ",
            message_columns!(),
            " from messages m where m.workspace_id = $1 and m.chat_id = $2 and (m.turn, m.position) > ($3, $4) \
             order by m.turn, m.position limit $5"
        );
        require_chat(self, workspace, chat).await?;
        let (turn, position) = page.after.unwrap_or((i64::MIN, 0));
        let rows = sqlx::query::<Db>(SQL)
            .bind(workspace.0)
            .bind(chat.0)
            .bind(turn)
            .bind(position)
            .bind(page.fetch())
            .fetch_all(self.reader())
            .await?;
        let messages = rows.iter().map(rows::message).collect::<Result<Vec<_>>>()?;
        Ok(Listed::cut(messages, &page, |message| (message.turn, message.position)))
    }

    async fn messages_back(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        before: i64,
        limit: u32,
    ) -> Result<Vec<Message>> {
        const SQL: &str = concat!(
            "select ",
            message_columns!(),
            " from messages m where m.workspace_id = $1 and m.chat_id = $2 and m.turn < $3 \
             order by m.turn desc, m.position desc limit $4"
        );
        let rows = sqlx::query::<Db>(SQL)
            .bind(workspace.0)
            .bind(chat.0)
            .bind(before)
            .bind(i64::from(limit))
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(rows::message).collect()
    }

    async fn message(&self, workspace: WorkspaceId, message: MessageId) -> Result<Message> {
        let row =
            sqlx::query::<Db>(MESSAGE).bind(workspace.0).bind(message.0).fetch_one(self.reader()).await?;
        rows::message(&row)
    }

    async fn import_message(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        parts: Vec<Part>,
    ) -> Result<Message> {
        let store = self.clone();
        to_its_end(async move {
            let mut tx = store.begin().await?;
            let message = import(&mut tx, workspace, chat, &parts).await?;
            tx.commit().await?;
            Ok(message)
        })
        .await
    }
}

/// The chat's next turn, which is a message alone.
async fn import(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    chat: ChatId,
    parts: &[Part],
) -> Result<Message> {
    let row = sqlx::query(NEXT_TURN).bind(workspace.0).bind(chat.0).fetch_one(&mut **tx).await?;
    let turn: i64 = get(&row, "last_turn")?;
    let id = MessageId::generate();
    sqlx::query(
        "insert into messages (workspace_id, id, chat_id, turn, position, role, parts) \
         values ($1, $2, $3, $4, 0, 'user', $5)",
    )
    .bind(workspace.0)
    .bind(id.0)
    .bind(chat.0)
    .bind(turn)
    .bind(Json(parts))
    .execute(&mut **tx)
    .await?;
    rows::message(&sqlx::query(MESSAGE).bind(workspace.0).bind(id.0).fetch_one(&mut **tx).await?)
}

/// `NotFound` unless the workspace has that chat and it is not deleted.
pub(super) async fn require_chat(store: &SqlStore, workspace: WorkspaceId, chat: ChatId) -> Result<()> {
    const SQL: &str = "select id from chats where workspace_id = $1 and id = $2 and deleted_at is null";
    let row = sqlx::query::<Db>(SQL).bind(workspace.0).bind(chat.0).fetch_optional(store.reader()).await?;
    row.map(drop).ok_or(StoreError::NotFound)
}

/// Metadata is an object; none is an empty one.
fn object(metadata: Value) -> Value {
    if metadata.is_null() { Value::Object(Map::new()) } else { metadata }
}
