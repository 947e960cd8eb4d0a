//! What a run is asked beside its input: kept as given, found again for a client that repeats itself, and a line of runs
//! that go on with each other from chats of their own.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::json;
use tokio::sync::Barrier;

use super::{
    fixtures::{first, new_run},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        asked::{Asked, ClientTool, ToolChoice},
        ids::{ChatId, RunId, WorkspaceId},
        message::{Part, Speaker},
        run::Run,
        transition::RunStatus,
    },
    store::{
        Fresh, KeyName, KeyedRun, NewChat, NewRun, Request, RunFilter, RunInput, StoreError,
        admission::IdempotencyKey,
    },
};

upheld! {
    a_request_reads_as_it_was_made,
    a_line_of_runs_is_read_newest_first,
    a_repeated_request_finds_its_run_while_it_is_fresh,
    a_deleted_run_is_as_good_as_unknown,
    a_key_names_its_run_to_those_who_ask,
    messages_are_read_back_from_any_turn_of_any_chat,
    an_imported_message_takes_a_turn_of_its_own,
    racing_imports_and_runs_take_different_turns,
}

fn asking(workspace: WorkspaceId, previous_run_id: Option<RunId>, fingerprint: u8) -> NewRun {
    let asked = Asked {
        instructions: Some("be 'brief' \u{1f600}".into()),
        temperature: Some(0.25),
        tools: vec![ClientTool {
            name: "look".into(),
            description: None,
            parameters: Some(json!({"type": "object"})),
            strict: Some(true),
        }],
        tool_choice: Some(ToolChoice::Required),
        ..Asked::default()
    };
    let request = Request { asked, previous_run_id, fingerprint: vec![fingerprint; 32] };
    let input = vec![
        Part::Said { by: Speaker::System, text: "before".into() },
        Part::CallResult { call_id: "c".into(), output: "noon".into() },
    ];
    NewRun { request: Some(request), input, ..new_run(workspace, None) }
}

async fn admit(db: &Database, new: NewRun) -> Run {
    db.store.admit(new).await.unwrap().run
}

async fn a_request_reads_as_it_was_made(db: Database) {
    let (acme, evil) = (db.workspace("acme").await, db.workspace("evil").await);
    let parent = admit(&db, new_run(acme, None)).await;
    let new = asking(acme, Some(parent.id), 1);
    let run = admit(&db, new.clone()).await;
    let read = db.store.input(acme, run.id).await.unwrap();
    let asked = new.request.map(|request| request.asked);
    assert_eq!(
        read,
        RunInput { parts: new.input, asked, previous_run_id: Some(parent.id), replaces_turn: None }
    );

    let plain = db.store.input(acme, parent.id).await.unwrap();
    assert_eq!((plain.asked, plain.previous_run_id), (None, None));
    assert!(matches!(db.store.input(evil, run.id).await, Err(StoreError::NotFound)));
}

async fn a_line_of_runs_is_read_newest_first(db: Database) {
    let (acme, evil) = (db.workspace("acme").await, db.workspace("evil").await);
    let mut line = vec![admit(&db, new_run(acme, None)).await];
    for _ in 0..4 {
        line.insert(0, admit(&db, asking(acme, Some(line[0].id), 1)).await);
    }
    // A branch that the line does not see.
    admit(&db, asking(acme, Some(line[2].id), 1)).await;
    for limit in [1, 3, 5, 100] {
        let read = db.store.ancestors(acme, line[0].id, limit).await.unwrap();
        let ids: Vec<RunId> = read.iter().map(|ancestor| ancestor.run_id).collect();
        let expected: Vec<RunId> = line.iter().map(|run| run.id).take(limit as usize).collect();
        assert_eq!(ids, expected);
        assert_eq!((read[0].chat_id, read[0].turn, read[0].parts.len()), (line[0].chat_id, 1, 2));
        assert_eq!((read[0].status, read[0].previous_run_id), (RunStatus::Pending, Some(line[1].id)));
    }
    assert_eq!(db.store.ancestors(evil, line[0].id, 9).await.unwrap(), []);
}

async fn a_repeated_request_finds_its_run_while_it_is_fresh(db: Database) {
    let (acme, evil) = (db.workspace("acme").await, db.workspace("evil").await);
    let found_fresh = async |workspace, fingerprint: u8, made_within_ms, over_within_ms| {
        let fresh = Fresh { made_within_ms, over_within_ms };
        let found = db.store.run_of_request(workspace, &[fingerprint; 32], fresh).await.unwrap();
        found.map(|run| run.id)
    };
    let found = async |workspace, fingerprint, over_within_ms| {
        found_fresh(workspace, fingerprint, 60_000, over_within_ms).await
    };
    let older = admit(&db, asking(acme, None, 1)).await;
    let newer = admit(&db, asking(acme, None, 1)).await;
    admit(&db, asking(acme, None, 2)).await;
    assert_eq!(found(acme, 1, 0).await, Some(newer.id), "it is not over");
    assert_eq!((found(evil, 1, 60_000).await, found(acme, 3, 60_000).await), (None, None));

    for run in [&newer, &older] {
        db.store.stop_run(acme, run.id).await.unwrap();
    }
    assert_eq!(found(acme, 1, 60_000).await, Some(newer.id));
    assert_eq!(found(acme, 1, -60_000).await, None, "it was over long ago");
    assert_eq!(found_fresh(acme, 1, -60_000, 60_000).await, None, "it was made long ago");
    db.store.delete_run(acme, newer.id).await.unwrap();
    assert_eq!(found(acme, 1, 60_000).await, Some(older.id));
}

async fn a_deleted_run_is_as_good_as_unknown(db: Database) {
    let (acme, evil) = (db.workspace("acme").await, db.workspace("evil").await);
    let run = admit(&db, asking(acme, None, 1)).await;
    let child = admit(&db, asking(acme, Some(run.id), 1)).await;
    assert!(matches!(db.store.delete_run(evil, run.id).await, Err(StoreError::NotFound)));
    db.store.delete_run(acme, run.id).await.unwrap();
    for gone in [db.store.run(acme, run.id).await.map(drop), db.store.delete_run(acme, run.id).await] {
        assert!(matches!(gone, Err(StoreError::NotFound)), "{gone:?}");
    }
    let listed = db.store.list_runs(acme, &RunFilter::default(), first(10)).await.unwrap().items;
    assert_eq!(listed.iter().map(|run| run.id).collect::<Vec<_>>(), [child.id]);
    assert!(db.store.latest_run(acme, run.chat_id).await.unwrap().is_none());
    assert_eq!(db.store.ancestors(acme, child.id, 9).await.unwrap().len(), 2, "its children know it");
}

async fn a_key_names_its_run_to_those_who_ask(db: Database) {
    let (acme, evil) = (db.workspace("acme").await, db.workspace("evil").await);
    let key = KeyName { key: "k", caller: "me", route: "r" };
    assert_eq!(db.store.run_of_key(acme, key).await.unwrap(), None);
    db.store.stop_by_key(acme, KeyName { key: "noted", ..key }).await.unwrap();
    assert_eq!(db.store.run_of_key(acme, KeyName { key: "noted", ..key }).await.unwrap(), None);
    let idempotency =
        IdempotencyKey { key: "k".to_owned(), caller: "me".to_owned(), route: "r", fingerprint: vec![7; 32] };
    let run = admit(&db, NewRun { idempotency: Some(idempotency), ..new_run(acme, None) }).await;
    let keyed = KeyedRun { run_id: run.id, fingerprint: vec![7; 32] };
    assert_eq!(db.store.run_of_key(acme, key).await.unwrap(), Some(keyed));
    for (workspace, key) in
        [(evil, key), (acme, KeyName { caller: "you", ..key }), (acme, KeyName { route: "s", ..key })]
    {
        assert_eq!(db.store.run_of_key(workspace, key).await.unwrap(), None);
    }
}

async fn messages_are_read_back_from_any_turn_of_any_chat(db: Database) {
    let (acme, evil) = (db.workspace("acme").await, db.workspace("evil").await);
    let chat = db.chat(acme, "one").await.id;
    for _ in 0..3 {
        db.submit(acme, chat).await;
    }
    db.store.delete_chat(acme, chat).await.unwrap();
    let places = async |workspace, before, limit| {
        let messages = db.store.messages_back(workspace, chat, before, limit).await.unwrap();
        messages.iter().map(|message| (message.turn, message.position)).collect::<Vec<_>>()
    };
    assert_eq!(places(acme, i64::MAX, 3).await, [(3, 1), (3, 0), (2, 1)]);
    assert_eq!(places(acme, 2, 10).await, [(1, 1), (1, 0)]);
    assert_eq!(places(evil, i64::MAX, 10).await, []);
}

async fn an_imported_message_takes_a_turn_of_its_own(db: Database) {
    let (acme, evil) = (db.workspace("acme").await, db.workspace("evil").await);
    let chat = db.chat(acme, "one").await;
    let parts = vec![Part::Said { by: Speaker::Assistant, text: "it was noon".into() }];
    let imported = db.store.import_message(acme, chat.id, parts.clone()).await.unwrap();
    assert_eq!((imported.turn, imported.status, imported.run_id), (1, None, None));
    assert_eq!(imported.parts, parts);
    assert_eq!(db.submit(acme, chat.id).await.run.turn, 2);
    let begun = NewChat { imported: parts.clone(), ..NewChat::default() };
    let begun = db.store.create_chat(acme, begun).await.unwrap();
    let first_turn = db.store.messages(acme, begun.id, first(10)).await.unwrap().items;
    assert_eq!((first_turn.len(), first_turn[0].turn, &first_turn[0].parts), (1, 1, &parts));
    assert_eq!(db.submit(acme, begun.id).await.run.turn, 2);
    let read = db.store.messages(acme, chat.id, first(10)).await.unwrap().items;
    assert_eq!((read.len(), &read[0]), (3, &imported));
    for (workspace, chat) in [(evil, chat.id), (acme, ChatId::generate())] {
        let refused = db.store.import_message(workspace, chat, vec![]).await;
        assert!(matches!(refused, Err(StoreError::NotFound)), "{refused:?}");
    }
}

async fn racing_imports_and_runs_take_different_turns(db: Database) {
    const EACH: usize = 20;
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let barrier = Arc::new(Barrier::new(2 * EACH));
    let calls = (0..2 * EACH).map(|n| {
        let (db, barrier) = (db.clone(), Arc::clone(&barrier));
        tokio::spawn(async move {
            barrier.wait().await;
            if n % 2 == 0 {
                db.submit(acme, chat).await.run.turn
            } else {
                db.store.import_message(acme, chat, vec![]).await.unwrap().turn
            }
        })
    });
    let turns = futures::future::join_all(calls.collect::<Vec<_>>()).await;
    let turns: BTreeSet<i64> = turns.into_iter().map(Result::unwrap).collect();
    assert_eq!(turns, (1..=2 * EACH as i64).collect());
}
