//! Admission: one transaction, one slot, a queue behind it, and runs that are due later.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::Barrier;

use super::{
    fixtures::{finishing, first, new_run},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        chat::Chat,
        event::EventData,
        ids::{ChatId, RunId},
        message::Role,
        run::Ending,
        transition::{MessageStatus, RunStatus},
    },
    store::{AdmitError, IfBusy, NewRun, StoreError, admission::StartAt},
};

upheld! {
    a_submission_is_a_run_with_two_messages_a_job_and_its_first_event,
    a_submission_without_a_chat_makes_one,
    a_chat_that_is_unknown_foreign_or_deleted_takes_nothing,
    a_chat_that_clients_name_is_made_by_the_first_of_those_who_race_for_it,
    a_name_of_a_chat_means_nothing_elsewhere_and_is_given_once,
    the_loser_is_told_the_active_run_and_nothing_is_stored,
    fifty_submissions_race_for_one_slot_and_one_wins,
    queued_runs_are_told_their_place_and_begin_in_order,
    a_scheduled_run_holds_no_slot_and_no_job,
    a_delay_counts_by_the_databases_clock,
    a_due_run_takes_the_free_slot,
    a_due_run_queues_up_for_a_slot_that_is_taken,
    racing_promoters_promote_a_due_run_once;
    sql:
    only_the_slots_index_says_that_a_run_is_active,
    a_caller_that_goes_away_leaves_no_transaction_behind,
}

async fn a_submission_is_a_run_with_two_messages_a_job_and_its_first_event(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let admitted = db.submit(acme, chat).await;
    assert_eq!((admitted.status, admitted.position, admitted.replayed), (RunStatus::Pending, None, false));
    assert_eq!(admitted.wake.as_deref(), Some("default"));
    assert_eq!(admitted.message_id, admitted.run.user_message_id.to_string());

    let messages = db.store.messages(acme, chat, first(9)).await.unwrap().items;
    let found: Vec<_> = messages.iter().map(|m| (m.id, m.role, m.status, m.run_id)).collect();
    let run = &admitted.run;
    assert_eq!(
        found,
        [
            (run.user_message_id, Role::User, Some(MessageStatus::Completed), Some(run.id)),
            (run.assistant_message_id, Role::Assistant, Some(MessageStatus::Streaming), Some(run.id)),
        ]
    );
    let [segment] = &admitted.segments[..] else { panic!("one segment is published") };
    let queued = EventData::RunQueued { status: RunStatus::Pending, position: None, run_at: None };
    assert_eq!(segment.events[0].data(), Some(queued));
    let stored = db.store.read_log(super::fixtures::cursor(run, 0), 9).await.unwrap();
    assert_eq!((stored[0].first, stored[0].at), (1, segment.at));
    assert_eq!(serde_json::to_string(&stored).unwrap(), serde_json::to_string(&admitted.segments).unwrap());
}

async fn a_submission_without_a_chat_makes_one(db: Database) {
    let acme = db.workspace("acme").await;
    let run = db.store.admit(new_run(acme, None)).await.unwrap().run;
    let Chat { agent, created_by, active_run_id, .. } = db.store.chat(acme, run.chat_id).await.unwrap();
    assert_eq!((agent.as_deref(), created_by.as_deref()), (Some("helper"), Some("tester")));
    assert_eq!((active_run_id, run.turn), (Some(run.id), 1));
}

async fn a_chat_that_is_unknown_foreign_or_deleted_takes_nothing(db: Database) {
    let (acme, evil) = (db.workspace("acme").await, db.workspace("evil").await);
    let (chat, deleted) = (db.chat(acme, "one").await.id, db.chat(acme, "two").await.id);
    db.store.delete_chat(acme, deleted).await.unwrap();
    let before = db.everything().await;
    for (workspace, chat) in [(acme, ChatId::generate()), (evil, chat), (acme, deleted)] {
        let refused = db.store.admit(new_run(workspace, Some(chat))).await;
        assert!(matches!(refused, Err(AdmitError::ChatNotFound)), "{refused:?}");
    }
    assert_eq!(db.everything().await, before);
}

async fn the_loser_is_told_the_active_run_and_nothing_is_stored(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let active = db.submit(acme, chat).await.run;
    let worker = db.worker(1).await;
    for claimed in [false, true] {
        if claimed {
            db.claim(worker).await;
        }
        let before = db.everything().await;
        let refused = db.store.admit(NewRun { if_busy: IfBusy::Reject, ..new_run(acme, Some(chat)) }).await;
        let Err(AdmitError::RunAlreadyActive { active_run_id }) = refused else { panic!("{refused:?}") };
        assert_eq!(active_run_id, Some(active.id));
        assert_eq!(db.everything().await, before);
    }
}

async fn a_chat_that_clients_name_is_made_by_the_first_of_those_who_race_for_it(db: Database) {
    const RACERS: usize = 8;
    let rounds = if db.is_postgres() { 100 } else { 10 };
    let acme = db.workspace("acme").await;
    for round in 0..rounds {
        let barrier = Arc::new(Barrier::new(RACERS));
        let racers = (0..RACERS).map(|n| {
            let store = if n % 2 == 0 { db.store.clone() } else { db.second.clone() };
            let barrier = barrier.clone();
            // Each message twice.
            let (chat, message) = (Some(format!("chat {round}")), Some(format!("message {}", n / 2)));
            let new = NewRun { client_chat_id: chat, client_message_id: message, ..new_run(acme, None) };
            tokio::spawn(async move {
                barrier.wait().await;
                store.admit(NewRun { if_busy: IfBusy::Enqueue, ..new }).await.unwrap()
            })
        });
        let admitted = futures::future::join_all(racers).await.into_iter().map(Result::unwrap);
        let (made, joined): (Vec<_>, Vec<_>) = admitted.partition(|admitted| !admitted.replayed);
        let turns: BTreeSet<_> = made.iter().map(|admitted| admitted.run.turn).collect();
        assert_eq!((turns.len(), joined.len()), (RACERS / 2, RACERS / 2), "round {round}: {turns:?}");
        let chat = db.store.chat_of_client(acme, &format!("chat {round}")).await.unwrap().id;
        assert!(made.iter().chain(&joined).all(|admitted| admitted.run.chat_id == chat), "round {round}");
    }
}

async fn a_name_of_a_chat_means_nothing_elsewhere_and_is_given_once(db: Database) {
    let (acme, other) = (db.workspace("acme").await, db.workspace("other").await);
    let named = |workspace| NewRun { client_chat_id: Some("c".to_owned()), ..new_run(workspace, None) };
    let own = db.store.admit(named(acme)).await.unwrap().run;
    let unknown = db.store.chat_of_client(other, "c").await;
    assert!(matches!(unknown, Err(StoreError::NotFound)), "{unknown:?}");
    let foreign = db.store.admit(named(other)).await.unwrap().run;
    assert_ne!(own.chat_id, foreign.chat_id);
    assert_eq!(db.store.chat(acme, own.chat_id).await.unwrap().client_id.as_deref(), Some("c"));

    db.store.delete_chat(acme, own.chat_id).await.unwrap();
    let deleted = db.store.admit(named(acme)).await;
    assert!(matches!(deleted, Err(AdmitError::ChatNotFound)), "{deleted:?}");
    assert!(matches!(db.store.chat_of_client(acme, "c").await, Err(StoreError::NotFound)));
}

async fn fifty_submissions_race_for_one_slot_and_one_wins(db: Database) {
    const RACERS: usize = 50;
    let rounds = if db.is_postgres() { 200 } else { 20 };
    let acme = db.workspace("acme").await;
    for round in 0..rounds {
        let chat = db.chat(acme, "contested").await.id;
        let barrier = Arc::new(Barrier::new(RACERS));
        let racers: Vec<_> = (0..RACERS)
            .map(|n| {
                let store = if n % 2 == 0 { db.store.clone() } else { db.second.clone() };
                let barrier = barrier.clone();
                tokio::spawn(async move {
                    barrier.wait().await;
                    store.admit(NewRun { if_busy: IfBusy::Reject, ..new_run(acme, Some(chat)) }).await
                })
            })
            .collect();
        let (mut winners, mut told) = (vec![], vec![]);
        for racer in racers {
            match racer.await.unwrap() {
                Ok(admitted) => winners.push(admitted.run.id),
                Err(AdmitError::RunAlreadyActive { active_run_id }) => told.push(active_run_id.unwrap()),
                Err(error) => panic!("round {round}: {error:?}"),
            }
        }
        assert_eq!((winners.len(), told.len()), (1, RACERS - 1), "round {round}");
        assert!(told.iter().all(|id| *id == winners[0]), "round {round}");
    }
    let stored = db.look("select cast(count(*) as text) from runs", |rows| vec![rows.runs.len()]).await;
    let messages =
        db.look("select cast(count(*) as text) from messages", |rows| vec![rows.messages.len()]).await;
    assert_eq!((stored, messages), (vec![rounds.to_string()], vec![(rounds * 2).to_string()]));
    let turns = db
        .look("select cast(max(last_turn) as text) from chats", |rows| {
            rows.chats.values().map(|row| row.last_turn).max().into_iter().collect()
        })
        .await;
    assert_eq!(turns, ["1"], "losers take no turn");
}

async fn only_the_slots_index_says_that_a_run_is_active(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
    // The next turn has been given out before.
    db.execute("update chats set last_turn = 0").await.unwrap();
    let refused =
        db.store.admit(NewRun { if_busy: IfBusy::Reject, ..new_run(acme, Some(claim.run.chat_id)) }).await;
    assert!(matches!(&refused, Err(AdmitError::Store(StoreError::Conflict(_)))), "{refused:?}");
}

async fn queued_runs_are_told_their_place_and_begin_in_order(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let mut runs = vec![db.submit(acme, chat).await.run.id];
    for place in 1..=3 {
        let admitted = db.submit(acme, chat).await;
        assert_eq!((admitted.status, admitted.position), (RunStatus::Queued, Some(place)));
        assert_eq!(admitted.wake, None);
        runs.push(admitted.run.id);
    }
    let worker = db.worker(1).await;
    for id in runs {
        let claim = db.claim(worker).await;
        assert_eq!(claim.run.id, id);
        db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
    }
    assert!(db.store.claim(worker, &["default".to_owned()], 9).await.unwrap().is_empty());
}

async fn a_scheduled_run_holds_no_slot_and_no_job(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let at = db.store.now().await.unwrap() + 3_600_000;
    let later = NewRun { start: Some(StartAt::At(at)), if_busy: IfBusy::Reject, ..new_run(acme, Some(chat)) };
    for _ in 0..2 {
        let admitted = db.store.admit(later.clone()).await.unwrap();
        assert_eq!((admitted.status, admitted.run.run_at), (RunStatus::Scheduled, Some(at)));
        assert_eq!(admitted.wake, None);
    }
    assert_eq!(db.submit(acme, chat).await.status, RunStatus::Pending, "the slot is free");
    assert!(db.store.promote_due(9).await.unwrap().is_empty(), "neither is due");
}

async fn a_delay_counts_by_the_databases_clock(db: Database) {
    let acme = db.workspace("acme").await;
    let admit =
        async |start| db.store.admit(NewRun { start: Some(start), ..new_run(acme, None) }).await.unwrap();
    let before = db.store.now().await.unwrap();
    let run_at = admit(StartAt::In(60_000)).await.run.run_at.unwrap();
    let after = db.store.now().await.unwrap();
    assert!((before + 60_000..=after + 60_000).contains(&run_at));
    for start in [StartAt::In(0), StartAt::In(-5), StartAt::At(before - 1), StartAt::At(0)] {
        let admitted = admit(start).await;
        assert_eq!((admitted.status, admitted.run.run_at), (RunStatus::Pending, None), "{start:?}");
    }
    assert_eq!(admit(StartAt::In(i64::MAX)).await.run.run_at, Some(i64::MAX));
}

/// A run of that chat that has just become due.
async fn due(db: &Database, chat: &Chat) -> RunId {
    let later = NewRun { start: Some(StartAt::In(60_000)), ..new_run(chat.workspace_id, Some(chat.id)) };
    let id = db.store.admit(later).await.unwrap().run.id;
    let sql = format!("update runs set run_at = 1 where id = {}", db.id(id.0));
    db.edit(&sql, |rows| rows.runs.get_mut(&id).unwrap().run.run_at = Some(1)).await;
    id
}

async fn a_due_run_takes_the_free_slot(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await;
    let id = due(&db, &chat).await;
    let [released] = &db.store.promote_due(9).await.unwrap()[..] else { panic!("one is due") };
    assert_eq!((released.run_id, released.ended, &released.wake), (id, false, &vec!["default".to_owned()]));
    let claim = db.claim(db.worker(1).await).await;
    assert_eq!((claim.run.id, claim.last_seq), (id, 3));
    assert_eq!(db.kinds(&claim.run).await, ["run.queued", "run.queued", "run.claimed"]);
    assert!(db.store.promote_due(9).await.unwrap().is_empty());
}

async fn a_due_run_queues_up_for_a_slot_that_is_taken(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await;
    let (first, second) = (due(&db, &chat).await, due(&db, &chat).await);
    let promoted = db.store.promote_due(9).await.unwrap();
    let wakes: Vec<_> = promoted.iter().map(|released| released.wake.len()).collect();
    assert_eq!((promoted.len(), wakes), (2, vec![1, 0]));

    let worker = db.worker(1).await;
    for id in [first, second] {
        let claim = db.claim(worker).await;
        assert_eq!(claim.run.id, id);
        db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
    }
}

async fn racing_promoters_promote_a_due_run_once(db: Database) {
    let acme = db.workspace("acme").await;
    for _ in 0..30 {
        let chat = db.chat(acme, "one").await;
        due(&db, &chat).await;
        due(&db, &chat).await;
        let (one, other) = tokio::join!(db.store.promote_due(9), db.second.promote_due(9));
        assert_eq!(one.unwrap().len() + other.unwrap().len(), 2);
    }
    let admissions = db
        .look("select cast(count(*) as text) from run_events where events like '%\"run.queued\"%'", |rows| {
            let events = rows.log.values().flatten().flat_map(|row| &row.segment.events);
            vec![events.filter(|event| event.kind == "run.queued").count()]
        })
        .await;
    assert_eq!(admissions, ["120"], "one event each at admission and at promotion");
}

async fn a_caller_that_goes_away_leaves_no_transaction_behind(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    for round in 0..if db.is_postgres() { 400 } else { 100 } {
        let call = db.store.admit(NewRun { if_busy: IfBusy::Enqueue, ..new_run(acme, Some(chat)) });
        // Finer than a timer of the runtime: the moment at which a transaction begins is a short one.
        let patience = std::time::Duration::from_micros(round * 5);
        let leaves = tokio::task::spawn_blocking(move || std::thread::sleep(patience));
        drop(futures::future::select(std::pin::pin!(call), leaves).await);
        // A connection inside a forgotten transaction would take this write and not commit it.
        let written = db.chat(acme, "written").await.id;
        let seen = db.texts(&format!("select title from chats where id = {}", db.id(written.0))).await;
        assert_eq!(seen, ["written"], "round {round}");
    }
}
