//! A tenant sees its own: through every read, and by the schema itself.

use super::{
    conformance,
    fixtures::{cursor, first, new_run},
    harness::Database,
};
use crate::{
    domain::ids::{ChatId, MessageId, RunId},
    store::{ChatPatch, RunFilter, StoreError},
};

conformance! {
    another_workspace_sees_nothing,
    another_workspace_changes_nothing;
    sql:
    no_row_can_point_into_another_workspace,
}

async fn another_workspace_sees_nothing(db: Database) {
    let (acme, evil) = (db.workspace("acme").await, db.workspace("evil").await);
    let chat = db.chat(acme, "private").await.id;
    db.key(acme, "aaaa").await;
    let run = db.submit(acme, chat).await.run;

    assert!(matches!(db.store.chat(evil, chat).await, Err(StoreError::NotFound)));
    assert!(matches!(db.store.messages(evil, chat, first(9)).await, Err(StoreError::NotFound)));
    assert!(matches!(db.store.message(evil, run.user_message_id).await, Err(StoreError::NotFound)));
    assert!(matches!(db.store.run(evil, run.id).await, Err(StoreError::NotFound)));
    assert!(matches!(db.store.latest_run(evil, chat).await, Err(StoreError::NotFound)));
    assert!(db.store.list_keys(evil).await.unwrap().is_empty());
    assert!(db.store.list_chats(evil, first(9)).await.unwrap().items.is_empty());
    let mine = RunFilter { chat_id: Some(chat), ..Default::default() };
    for filter in [RunFilter::default(), mine] {
        assert!(db.store.list_runs(evil, &filter, first(9)).await.unwrap().items.is_empty());
    }
    let record = db.store.records(evil, &[run.id]).await.unwrap().remove(0);
    assert!(record.steps.is_empty() && record.calls.is_empty() && record.tail.is_empty());
    let mut foreign = cursor(&run, 0);
    foreign.workspace_id = evil;
    assert!(db.store.read_log(foreign, 9).await.unwrap().is_empty());
    let both = db.store.read_logs(&[foreign, cursor(&run, 0)], 9).await.unwrap();
    assert_eq!(both.len(), 1, "its own cursor reads, the foreign one does not");

    let own = db.store.list_runs(acme, &RunFilter::default(), first(9)).await.unwrap();
    assert_eq!(own.items.len(), 1);
}

async fn another_workspace_changes_nothing(db: Database) {
    let (acme, evil) = (db.workspace("acme").await, db.workspace("evil").await);
    let chat = db.chat(acme, "private").await;
    let key = db.key(acme, "aaaa").await;
    let patch = ChatPatch { title: Some(Some("mine now".to_owned())), ..Default::default() };
    assert!(matches!(db.store.update_chat(evil, chat.id, patch).await, Err(StoreError::NotFound)));
    assert!(matches!(db.store.revoke_key(evil, key.id).await, Err(StoreError::NotFound)));
    assert!(db.store.admit(new_run(evil, Some(chat.id))).await.is_err());
    assert_eq!(db.store.chat(acme, chat.id).await.unwrap(), chat);
    assert_eq!(db.store.find_key("aaaa").await.unwrap().unwrap().revoked_at, None);
}

async fn no_row_can_point_into_another_workspace(db: Database) {
    let (acme, evil) = (db.workspace("acme").await, db.workspace("evil").await);
    let chat = db.chat(acme, "private").await.id;
    let run = db.submit(acme, chat).await.run;
    let (ws, other, chat, run) = (db.id(acme.0), db.id(evil.0), db.id(chat.0), db.id(run.id.0));
    let (m1, m2) = (db.id(MessageId::generate().0), db.id(MessageId::generate().0));
    let fresh = || db.id(RunId::generate().0);
    let own_chat = db.id(ChatId::generate().0);
    db.execute(&format!("insert into chats (workspace_id, id) values ({other}, {own_chat})")).await.unwrap();

    // The same row is accepted under its own workspace, so it is the pointer that is refused.
    for (row, table, columns, values) in [
        (
            "a message in a foreign chat",
            "messages",
            "id, chat_id, turn, position, role",
            format!("{}, {chat}, 90, 0, 'user'", fresh()),
        ),
        (
            "the log of a foreign run",
            "run_events",
            "run_id, first_seq, last_seq, epoch, events",
            format!("{run}, 90, 90, 0, '[]'"),
        ),
        (
            "a step of a foreign run",
            "steps",
            "run_id, step, attempt, epoch, model, output, finish_reason, input_tokens, output_tokens, \
             reasoning_tokens, cached_input_tokens, first_seq, last_seq, started_at",
            format!("{run}, 1, 1, 1, 'm', '[]', 'stop', 0, 0, 0, 0, 1, 1, 1"),
        ),
        (
            "a tool call of a foreign run",
            "tool_calls",
            "run_id, step, call, call_id, name, arguments, effect, state, idempotency_key, epoch",
            format!("{run}, 1, 1, 'c', 'n', '{{}}', 'read', 'planned', 'k', 1"),
        ),
        (
            "a job of a foreign run",
            "jobs",
            "id, kind, run_id, queue, priority, run_at",
            format!("{}, 'title', {run}, 'q', 0, 0", fresh()),
        ),
        (
            "an answer about a foreign run",
            "idempotency",
            "caller, route, key, fingerprint, run_id, expires_at",
            format!("'c', 'r', 'k', {}, {run}, 0", if db.is_postgres() { "'\\x00'" } else { "x'00'" }),
        ),
    ] {
        let insert = |workspace: &str| {
            format!("insert into {table} (workspace_id, {columns}) values ({workspace}, {values})")
        };
        let refused = db.execute(&insert(&other)).await.map_err(StoreError::from);
        assert!(matches!(refused, Err(StoreError::Conflict(_))), "{row}: {refused:?}");
        let accepted = db.execute(&insert(&ws)).await;
        assert!(accepted.is_ok(), "{row}: {accepted:?}");
    }

    // A message of the own chat that names a foreign run, and a run of a foreign chat or of foreign messages.
    let message = format!(
        "insert into messages (workspace_id, id, chat_id, turn, position, role, run_id) \
         values ({other}, {}, {own_chat}, 1, 0, 'user', {run})",
        fresh()
    );
    let run_of = |chat: &str, user: &str, answer: &str| {
        format!(
            "insert into runs (workspace_id, id, chat_id, turn, agent, status, trigger, user_message_id, \
             assistant_message_id, queue, priority, limits) \
             values ({other}, {}, {chat}, 91, 'a', 'queued', 'user', {user}, {answer}, 'q', 0, '{{}}')",
            fresh()
        )
    };
    for (row, sql) in [
        ("a foreign run", message),
        ("a foreign chat", run_of(&chat, &m1, &m2)),
        ("messages that the workspace does not have", run_of(&own_chat, &m1, &m2)),
    ] {
        let refused = db.execute(&sql).await.map_err(StoreError::from);
        assert!(matches!(refused, Err(StoreError::Conflict(_))), "{row}: {refused:?}");
    }
}
