//! Conversations: reading, listing, changing.

use serde_json::json;

use super::{
    conformance,
    fixtures::{behind, first},
    harness::Database,
};
use crate::{
    domain::ids::{ChatId, MessageId},
    store::{ChatPatch, NewChat, StoreError},
};

conformance! {
    a_chat_reads_as_it_was_made,
    a_chat_made_without_anything_is_empty,
    a_patch_changes_what_it_names_and_keeps_the_rest,
    patches_of_different_fields_at_once_both_hold,
    chats_are_listed_newest_first_in_pages_that_end,
    a_cursor_holds_while_chats_are_added,
    a_deleted_chat_is_as_good_as_unknown,
    an_unknown_chat_or_message_is_not_found,
}

async fn a_chat_reads_as_it_was_made(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "Größe \u{1f600} 'x' -- \"y\"").await;
    assert_eq!(db.store.chat(acme, chat.id).await.unwrap(), chat);
    assert_eq!(chat.title.as_deref(), Some("Größe \u{1f600} 'x' -- \"y\""));
    assert_eq!((chat.workspace_id, chat.active_run_id), (acme, None));
    assert_eq!((chat.agent.as_deref(), chat.created_by.as_deref()), (Some("helper"), Some("tester")));
    assert_eq!(chat.created_at, chat.updated_at);
}

async fn a_chat_made_without_anything_is_empty(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.store.create_chat(acme, NewChat::default()).await.unwrap();
    assert_eq!((chat.title, chat.agent, chat.context_ref, chat.created_by), (None, None, None, None));
    assert_eq!(chat.metadata, json!({}));
}

async fn a_patch_changes_what_it_names_and_keeps_the_rest(db: Database) {
    let acme = db.workspace("acme").await;
    let before = db.chat(acme, "one").await;
    let patch = |patch: ChatPatch| db.store.update_chat(acme, before.id, patch);

    let chat = patch(ChatPatch { title: Some(Some("two".into())), ..Default::default() }).await.unwrap();
    assert_eq!((chat.title.as_deref(), chat.agent.as_deref()), (Some("two"), Some("helper")));
    assert_eq!(chat.metadata, before.metadata);
    assert!(chat.updated_at >= before.updated_at);

    let clear =
        ChatPatch { title: Some(None), metadata: Some(json!({"a": [1, null]})), ..Default::default() };
    let chat = patch(clear).await.unwrap();
    assert_eq!((chat.title, chat.metadata), (None, json!({"a": [1, null]})));

    let chat = patch(ChatPatch {
        agent: Some(None),
        context_ref: Some(Some("ticket:7".into())),
        ..Default::default()
    });
    let chat = chat.await.unwrap();
    assert_eq!((chat.agent, chat.context_ref.as_deref()), (None, Some("ticket:7")));

    let untouched = patch(ChatPatch::default()).await.unwrap();
    assert_eq!(untouched.context_ref.as_deref(), Some("ticket:7"));
    assert_eq!(db.store.chat(acme, before.id).await.unwrap(), untouched);
}

async fn patches_of_different_fields_at_once_both_hold(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await;
    for round in 0..10 {
        let word = format!("round {round}");
        let title = ChatPatch { title: Some(Some(word.clone())), ..Default::default() };
        let context = ChatPatch { context_ref: Some(Some(word.clone())), ..Default::default() };
        let (a, b) = tokio::join!(
            db.store.update_chat(acme, chat.id, title),
            db.store.update_chat(acme, chat.id, context)
        );
        a.unwrap();
        b.unwrap();
        let now = db.store.chat(acme, chat.id).await.unwrap();
        assert_eq!((now.title.as_ref(), now.context_ref.as_ref()), (Some(&word), Some(&word)));
    }
}

async fn chats_are_listed_newest_first_in_pages_that_end(db: Database) {
    let acme = db.workspace("acme").await;
    assert!(db.store.list_chats(acme, first(5)).await.unwrap().items.is_empty());
    let mut made = vec![];
    for n in 0..4 {
        made.insert(0, db.chat(acme, &format!("chat {n}")).await.id);
    }
    for (limit, sizes) in
        [(1, vec![1, 1, 1, 1]), (3, vec![3, 1]), (4, vec![4]), (5, vec![4]), (2, vec![2, 2])]
    {
        let (mut seen, mut pages, mut page) = (vec![], vec![], first(limit));
        loop {
            let listed = db.store.list_chats(acme, page).await.unwrap();
            pages.push(listed.items.len());
            seen.extend(listed.items.iter().map(|chat| chat.id));
            let Some(next) = listed.next else { break };
            page = behind(next, limit);
        }
        assert_eq!((seen, pages), (made.clone(), sizes), "limit {limit}");
    }
}

async fn a_cursor_holds_while_chats_are_added(db: Database) {
    let acme = db.workspace("acme").await;
    let old: Vec<ChatId> =
        [db.chat(acme, "a").await.id, db.chat(acme, "b").await.id, db.chat(acme, "c").await.id].into();
    let page = db.store.list_chats(acme, first(2)).await.unwrap();
    assert_eq!(page.items.iter().map(|chat| chat.id).collect::<Vec<_>>(), [old[2], old[1]]);
    db.chat(acme, "d").await;
    let page = db.store.list_chats(acme, behind(page.next.unwrap(), 2)).await.unwrap();
    assert_eq!(page.items.iter().map(|chat| chat.id).collect::<Vec<_>>(), [old[0]]);
    assert_eq!(page.next, None);
}

async fn a_deleted_chat_is_as_good_as_unknown(db: Database) {
    let acme = db.workspace("acme").await;
    let (kept, gone) = (db.chat(acme, "kept").await.id, db.chat(acme, "gone").await.id);
    let sql = format!("update chats set deleted_at = 1 where id = {}", db.id(gone.0));
    db.edit(&sql, |rows| rows.chats.get_mut(&gone).unwrap().is_deleted = true).await;
    let listed = db.store.list_chats(acme, first(10)).await.unwrap();
    assert_eq!(listed.items.iter().map(|chat| chat.id).collect::<Vec<_>>(), [kept]);
    assert!(matches!(db.store.chat(acme, gone).await, Err(StoreError::NotFound)));
    let patched = db.store.update_chat(acme, gone, ChatPatch::default()).await;
    assert!(matches!(patched, Err(StoreError::NotFound)));
    assert!(matches!(db.store.messages(acme, gone, first(10)).await, Err(StoreError::NotFound)));
    assert!(matches!(db.store.latest_run(acme, gone).await, Err(StoreError::NotFound)));
}

async fn an_unknown_chat_or_message_is_not_found(db: Database) {
    let acme = db.workspace("acme").await;
    let nowhere = ChatId::generate();
    assert!(matches!(db.store.chat(acme, nowhere).await, Err(StoreError::NotFound)));
    assert!(matches!(db.store.messages(acme, nowhere, first(10)).await, Err(StoreError::NotFound)));
    assert!(matches!(db.store.message(acme, MessageId::generate()).await, Err(StoreError::NotFound)));
}
