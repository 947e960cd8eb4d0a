//! Repeated calls: by idempotency key, and by the client's name for a message.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::Barrier;

use super::{
    fixtures::{finishing, new_key, new_run},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        ids::{ChatId, RunId, WorkspaceId},
        message::Part,
        run::Ending,
        transition::RunStatus,
    },
    store::{AdmitError, Admitted, IfBusy, NewKey, NewRun, RunScope, admission::IdempotencyKey},
};

upheld! {
    a_repeat_with_the_same_key_and_body_gets_the_first_answer,
    a_repeat_is_told_what_the_first_call_was_told,
    racing_calls_with_one_key_make_one_run,
    a_key_is_not_good_for_another_body,
    callers_routes_and_workspaces_have_keys_of_their_own,
    an_expired_key_is_free_again,
    only_expired_keys_and_workers_long_gone_are_pruned,
    a_refused_call_does_not_use_its_key_up,
    a_message_sent_again_gets_the_first_run,
    a_message_id_is_not_good_for_another_text,
    racing_repeats_of_a_message_make_one_run,
    a_message_id_counts_within_its_chat,
    a_message_that_is_answered_anew_stands_in_for_all_turns_since,
    racing_calls_for_another_answer_make_one_run;
    sql:
    a_key_whose_first_call_is_undecided_is_in_flight,
}

fn keyed(workspace: WorkspaceId, chat: Option<ChatId>, key: &str, body: u8) -> NewRun {
    let idempotency = IdempotencyKey {
        key: key.to_owned(),
        caller: "caller".to_owned(),
        route: "create_run",
        fingerprint: vec![body; 32],
    };
    NewRun { idempotency: Some(idempotency), ..new_run(workspace, chat) }
}

fn named(workspace: WorkspaceId, chat: ChatId, id: &str, text: &str) -> NewRun {
    NewRun {
        client_message_id: Some(id.to_owned()),
        input: vec![Part::Text { text: text.to_owned() }],
        ..new_run(workspace, Some(chat))
    }
}

/// The same call fifty times at once, through both stores.
async fn at_once(db: &Database, new: &NewRun) -> Vec<Result<Admitted, AdmitError>> {
    const CALLS: usize = 50;
    let barrier = Arc::new(Barrier::new(CALLS));
    let calls: Vec<_> = (0..CALLS)
        .map(|n| {
            let store = if n % 2 == 0 { db.store.clone() } else { db.second.clone() };
            let (barrier, new) = (barrier.clone(), new.clone());
            tokio::spawn(async move {
                barrier.wait().await;
                store.admit(new).await
            })
        })
        .collect();
    let mut answers = vec![];
    for call in calls {
        answers.push(call.await.unwrap());
    }
    answers
}

async fn a_repeat_with_the_same_key_and_body_gets_the_first_answer(db: Database) {
    let acme = db.workspace("acme").await;
    let first = db.store.admit(keyed(acme, None, "k", 1)).await.unwrap();
    let before = db.everything().await;
    let again = db.second.admit(keyed(acme, None, "k", 1)).await.unwrap();
    assert!(again.replayed && !first.replayed);
    assert_eq!((again.run, again.status, again.message_id), (first.run, first.status, first.message_id));
    assert_eq!((again.segments.len(), again.wake), (0, None));
    assert_eq!(db.everything().await, before);
}

async fn a_repeat_is_told_what_the_first_call_was_told(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let queued =
        NewRun { client_message_id: Some("mine".to_owned()), ..keyed(acme, Some(claim.run.chat_id), "k", 1) };
    let first = db.store.admit(queued.clone()).await.unwrap();
    assert_eq!((first.status, first.position), (RunStatus::Queued, Some(1)));
    db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;

    for new in [queued.clone(), NewRun { idempotency: None, ..queued }] {
        let again = db.store.admit(new).await.unwrap();
        assert_eq!((again.status, again.position), (RunStatus::Queued, Some(1)), "as it was answered");
        assert_eq!((again.run.id, again.run.status), (first.run.id, RunStatus::Pending), "as it is");
        assert_eq!((again.message_id.as_str(), again.replayed), ("mine", true));
    }
}

async fn racing_calls_with_one_key_make_one_run(db: Database) {
    let acme = db.workspace("acme").await;
    for round in 0..if db.is_postgres() { 20 } else { 5 } {
        let answers = at_once(&db, &keyed(acme, None, &format!("k{round}"), 1)).await;
        // On a machine that is busy enough, some may be told that the first call is still in flight.
        let told = |answer: Result<_, _>| match answer {
            Ok(admitted) => Some(admitted),
            Err(AdmitError::KeyInFlight) => None,
            Err(error) => panic!("round {round}: {error:?}"),
        };
        let answers: Vec<_> = answers.into_iter().filter_map(told).collect();
        let runs: BTreeSet<_> = answers.iter().map(|admitted| admitted.run.id).collect();
        assert_eq!(runs.len(), 1, "round {round}");
        assert_eq!(answers.iter().filter(|admitted| !admitted.replayed).count(), 1, "round {round}");
    }
}

async fn a_key_is_not_good_for_another_body(db: Database) {
    let acme = db.workspace("acme").await;
    db.store.admit(keyed(acme, None, "k", 1)).await.unwrap();
    let before = db.everything().await;
    let refused = db.store.admit(keyed(acme, None, "k", 2)).await;
    assert!(matches!(refused, Err(AdmitError::KeyReused)), "{refused:?}");
    assert_eq!(db.everything().await, before);
}

async fn callers_routes_and_workspaces_have_keys_of_their_own(db: Database) {
    let (acme, other) = (db.workspace("acme").await, db.workspace("other").await);
    let own = keyed(acme, None, "k", 1);
    let key = own.idempotency.clone().unwrap();
    let by = |key: IdempotencyKey| NewRun { idempotency: Some(key), ..own.clone() };
    let calls = [
        own.clone(),
        keyed(other, None, "k", 2),
        keyed(acme, None, "another", 1),
        by(IdempotencyKey { caller: "somebody else".to_owned(), fingerprint: vec![3], ..key.clone() }),
        by(IdempotencyKey { route: "send_message", ..key }),
    ];
    let mut runs = vec![];
    for replayed in [false, true] {
        for call in &calls {
            let admitted = db.store.admit(call.clone()).await.unwrap();
            assert_eq!(admitted.replayed, replayed);
            runs.push(admitted.run.id);
        }
    }
    assert_eq!(runs[..5].iter().collect::<BTreeSet<_>>().len(), 5);
    assert_eq!(runs[5..], runs[..5], "each repeat finds its own");
}

async fn an_expired_key_is_free_again(db: Database) {
    let acme = db.workspace("acme").await;
    let first = db.store.admit(keyed(acme, None, "k", 1)).await.unwrap();
    let left = db
        .look("select cast(expires_at - created_at as text) from idempotency", |rows| {
            rows.idempotency.values().map(|key| key.expires_at - first.run.created_at).collect()
        })
        .await;
    assert!(left[0].parse::<i64>().unwrap() >= 24 * 3_600_000, "kept for a day at least: {left:?}");
    db.edit("update idempotency set expires_at = 1", |rows| {
        rows.idempotency.values_mut().for_each(|key| key.expires_at = 1);
    })
    .await;
    let second = db.store.admit(keyed(acme, None, "k", 2)).await.unwrap();
    assert!(!second.replayed && second.run.id != first.run.id);
    let again = db.store.admit(keyed(acme, None, "k", 2)).await.unwrap();
    assert_eq!((again.replayed, again.run.id), (true, second.run.id));
}

async fn only_expired_keys_and_workers_long_gone_are_pruned(db: Database) {
    let acme = db.workspace("acme").await;
    for key in ["old", "new"] {
        db.store.admit(keyed(acme, None, key, 1)).await.unwrap();
    }
    let (holder, idle, _) = (db.worker(1).await, db.worker(1).await, db.worker(1).await);
    db.claim(holder).await;
    assert_eq!(db.store.prune().await.unwrap(), 0);
    db.edit("update idempotency set expires_at = 1 where key = 'old'", |rows| {
        let old = rows.idempotency.iter_mut().filter(|(place, _)| place.3 == "old");
        old.for_each(|(_, key)| key.expires_at = 1);
    })
    .await;
    db.expire(holder).await;
    db.expire(idle).await;
    for (prefix, run_id) in [("of_a_run", Some(RunId::generate())), ("own", None)] {
        let scope = run_id.map(|run_id| RunScope { run_id, issued_by: None });
        db.store.create_key(NewKey { scope, ..new_key(acme, prefix, Some(1)) }).await.unwrap();
    }
    let pruned = db.store.prune().await.unwrap();
    assert_eq!(pruned, 3, "the idempotency key, the worker that holds nothing, the run's token");
    assert!(db.store.find_key("own").await.unwrap().is_some(), "people look for the keys that they made");
    assert_eq!(
        db.look("select key from idempotency", |rows| rows
            .idempotency
            .keys()
            .map(|key| key.3.clone())
            .collect())
            .await,
        ["new"]
    );
    assert!(db.store.list_workers().await.unwrap().iter().any(|worker| worker.id == holder));
}

async fn a_refused_call_does_not_use_its_key_up(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let new = NewRun { if_busy: IfBusy::Reject, ..keyed(acme, Some(claim.run.chat_id), "k", 1) };
    let refused = db.store.admit(new.clone()).await;
    assert!(matches!(refused, Err(AdmitError::RunAlreadyActive { .. })), "{refused:?}");
    db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
    assert!(!db.store.admit(new).await.unwrap().replayed);
}

async fn a_key_whose_first_call_is_undecided_is_in_flight(db: Database) {
    let acme = db.workspace("acme").await;
    // Only several processes can have a call under way while another one comes in.
    let Some((pool, _)) = db.on_postgres(|_| ()) else { return };
    let mut undecided = pool.begin().await.unwrap();
    sqlx::query(
        "insert into idempotency (workspace_id, caller, route, key, fingerprint, expires_at) \
         values ($1, 'caller', 'create_run', 'k', '\\x01', now_ms() + 1000000)",
    )
    .bind(acme.0)
    .execute(&mut *undecided)
    .await
    .unwrap();
    // Sooner than the session's own bound of five seconds.
    let call = db.store.admit(keyed(acme, None, "k", 1));
    let refused = tokio::time::timeout(std::time::Duration::from_secs(4), call).await.unwrap();
    assert!(matches!(refused, Err(AdmitError::KeyInFlight)), "{refused:?}");
    undecided.rollback().await.unwrap();
    assert!(!db.store.admit(keyed(acme, None, "k", 1)).await.unwrap().replayed, "the first call failed");
}

async fn a_message_sent_again_gets_the_first_run(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let first = db.store.admit(named(acme, chat, "m1", "hello")).await.unwrap();
    assert_eq!((first.message_id.as_str(), first.replayed), ("m1", false));
    let before = db.everything().await;
    for if_busy in [IfBusy::Reject, IfBusy::Enqueue] {
        let again = db.store.admit(NewRun { if_busy, ..named(acme, chat, "m1", "hello") }).await.unwrap();
        assert_eq!((again.run.id, again.replayed), (first.run.id, true));
        assert_eq!((again.message_id, again.status), ("m1".to_owned(), RunStatus::Pending));
    }
    assert_eq!(db.everything().await, before);
}

async fn a_message_id_is_not_good_for_another_text(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    db.store.admit(named(acme, chat, "m1", "hello")).await.unwrap();
    let before = db.everything().await;
    let refused = db.store.admit(named(acme, chat, "m1", "goodbye")).await;
    assert!(matches!(refused, Err(AdmitError::MessageIdReused)), "{refused:?}");
    assert_eq!(db.everything().await, before);
}

async fn racing_repeats_of_a_message_make_one_run(db: Database) {
    let acme = db.workspace("acme").await;
    for round in 0..if db.is_postgres() { 20 } else { 5 } {
        let chat = db.chat(acme, "one").await.id;
        let answers = at_once(&db, &named(acme, chat, "m1", "hello")).await;
        let runs: BTreeSet<_> = answers.into_iter().map(|answer| answer.unwrap().run.id).collect();
        assert_eq!(runs.len(), 1, "round {round}");
    }
}

async fn a_message_id_counts_within_its_chat(db: Database) {
    let acme = db.workspace("acme").await;
    let (one, two) = (db.chat(acme, "one").await.id, db.chat(acme, "two").await.id);
    let first = db.store.admit(named(acme, one, "m1", "hello")).await.unwrap();
    let second = db.store.admit(named(acme, two, "m1", "goodbye")).await.unwrap();
    assert!(!second.replayed && first.run.id != second.run.id);
}

async fn a_message_that_is_answered_anew_stands_in_for_all_turns_since(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let say = async |id: &str, text: &str, replaces: bool| {
        let new = NewRun { replaces, if_busy: IfBusy::Reject, ..named(acme, chat, id, text) };
        let admitted = db.store.admit(new).await;
        let replaces_turn = match &admitted {
            Ok(admitted) => db.store.input(acme, admitted.run.id).await.unwrap().replaces_turn,
            Err(_) => None,
        };
        (admitted, replaces_turn)
    };
    let end = async |admitted: &Admitted| drop(db.store.stop_run(acme, admitted.run.id).await.unwrap());

    let (first, replaces_turn) = say("m1", "hello", true).await;
    let first = first.unwrap();
    assert_eq!((first.run.turn, replaces_turn), (1, None), "there was nothing to replace");
    let (again, _) = say("m1", "hello", true).await;
    assert_eq!(again.unwrap().run.id, first.run.id, "it is being answered");
    let (edited, _) = say("m1", "hullo", true).await;
    assert!(
        matches!(edited, Err(AdmitError::RunAlreadyActive { active_run_id: Some(id) }) if id == first.run.id)
    );
    end(&first).await;
    end(&say("m2", "more", false).await.0.unwrap()).await;

    let (third, replaces_turn) = say("m1", "hullo", true).await;
    let third = third.unwrap();
    assert_eq!((third.run.turn, replaces_turn, third.message_id.as_str()), (3, Some(1), "m1"));
    end(&third).await;
    let (fourth, replaces_turn) = say("m1", "hullo", true).await;
    assert_eq!(replaces_turn, Some(1), "what the third stood in for stays away");
    end(&fourth.unwrap()).await;
    let unnamed = db.submit(acme, chat).await;
    end(&unnamed).await;
    let (by_id, replaces_turn) = say(&unnamed.run.user_message_id.to_string(), "hello", true).await;
    assert_eq!((by_id.unwrap().run.turn, replaces_turn), (6, Some(5)));
    let (repeat, _) = say("m1", "hullo", false).await;
    assert_eq!(repeat.unwrap().run.turn, 4, "the name is the newest one's");
}

async fn racing_calls_for_another_answer_make_one_run(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let first = db.store.admit(named(acme, chat, "m1", "hello")).await.unwrap();
    db.store.stop_run(acme, first.run.id).await.unwrap();
    let new = NewRun { replaces: true, ..named(acme, chat, "m1", "hello") };
    let runs: BTreeSet<RunId> =
        at_once(&db, &new).await.into_iter().map(|admitted| admitted.unwrap().run.id).collect();
    assert_eq!(runs.len(), 1, "one made it, the others joined");
    assert!(!runs.contains(&first.run.id));
}
