//! Stops that name their run by the key of its submission, before, while and after that comes.

use tokio::sync::Barrier;

use super::{
    fixtures::{finishing, new_run},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        ids::{ChatId, WorkspaceId},
        run::Ending,
        transition::{MessageStatus, Reason, RunStatus},
    },
    store::{
        AdmitError, IfBusy, KeyName, KeyStop, NewRun, StopOutcome,
        admission::{IdempotencyKey, StartAt},
    },
};

upheld! {
    a_key_that_is_known_stops_its_run,
    a_submission_behind_the_stop_of_its_key_is_over_when_it_is_admitted,
    a_stopped_submission_takes_no_slot_and_leaves_the_queue_alone,
    a_stopped_submission_is_not_scheduled,
    a_stop_by_key_may_be_repeated_and_expires_with_its_key,
    keys_of_other_callers_routes_and_workspaces_are_not_stopped,
    a_refused_submission_leaves_the_note,
    a_stop_by_key_and_its_submission_at_once_end_the_run,
}

const KEY: KeyName<'static> = KeyName { key: "k", caller: "caller", route: "create_run" };

fn keyed(workspace: WorkspaceId, chat: Option<ChatId>, key: &str) -> NewRun {
    let idempotency = IdempotencyKey {
        key: key.to_owned(),
        caller: KEY.caller.to_owned(),
        route: KEY.route,
        fingerprint: vec![1; 32],
    };
    NewRun { idempotency: Some(idempotency), ..new_run(workspace, chat) }
}

async fn note(db: &Database, workspace: WorkspaceId, key: KeyName<'_>) -> i64 {
    match db.store.stop_by_key(workspace, key).await.unwrap() {
        KeyStop::Noted { requested_at, expires_at } => {
            assert!(expires_at >= requested_at + 24 * 3_600_000);
            requested_at
        }
        KeyStop::Known(outcome) => panic!("{outcome:?}"),
    }
}

/// The time of all keys is over, and their stops are as old as can be.
async fn expire_keys(db: &Database) {
    let sql = "update idempotency set expires_at = 1, \
               stop_requested_at = case when stop_requested_at is not null then 1 end";
    db.edit(sql, |rows| {
        for key in rows.idempotency.values_mut() {
            (key.expires_at, key.stop_requested_at) = (1, key.stop_requested_at.map(|_| 1));
        }
    })
    .await;
}

async fn a_key_that_is_known_stops_its_run(db: Database) {
    let acme = db.workspace("acme").await;
    let run = db.store.admit(keyed(acme, None, "k")).await.unwrap().run;
    let KeyStop::Known(StopOutcome::Ended { run: ended, .. }) =
        db.store.stop_by_key(acme, KEY).await.unwrap()
    else {
        panic!("nobody held it")
    };
    assert_eq!((ended.id, ended.reason), (run.id, Some(Reason::Stop)));
    let again = db.store.stop_by_key(acme, KEY).await.unwrap();
    assert!(matches!(again, KeyStop::Known(StopOutcome::AlreadyOver(_))), "{again:?}");
    let replayed = db.store.admit(keyed(acme, None, "k")).await.unwrap();
    assert_eq!((replayed.replayed, replayed.status), (true, RunStatus::Pending), "as it was answered");
}

async fn a_submission_behind_the_stop_of_its_key_is_over_when_it_is_admitted(db: Database) {
    let acme = db.workspace("acme").await;
    let requested_at = note(&db, acme, KEY).await;
    let admitted = db.store.admit(keyed(acme, None, "k")).await.unwrap();
    let run = &admitted.run;
    assert_eq!((admitted.status, admitted.wake.as_ref()), (RunStatus::Aborted, None));
    assert_eq!((run.status, run.reason), (RunStatus::Aborted, Some(Reason::Stop)));
    assert_eq!((run.stop_requested_at, run.attempts), (Some(requested_at), 0));
    let told: Vec<_> = admitted.segments.iter().flat_map(|segment| &segment.events).collect();
    let told: Vec<_> = told.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(told, ["run.queued", "run.stopping", "run.finished"]);
    assert_eq!(db.kinds(run).await, told);
    let answer = db.store.message(acme, run.assistant_message_id).await.unwrap();
    assert_eq!(answer.status, Some(MessageStatus::Aborted));
    let jobs = db.look("select queue from jobs", |rows| rows.jobs.keys().copied().collect()).await;
    assert!(jobs.is_empty(), "there is nothing to claim");

    let before = db.everything().await;
    let again = db.store.admit(keyed(acme, None, "k")).await.unwrap();
    assert_eq!((again.replayed, again.status, again.run.id), (true, RunStatus::Aborted, run.id));
    assert_eq!(db.everything().await, before);
    db.submit(acme, run.chat_id).await;

    note(&db, acme, KeyName { key: "named", ..KEY }).await;
    let id = Some("m".to_owned());
    let named = NewRun { client_message_id: id, ..keyed(acme, Some(run.chat_id), "named") };
    db.store.admit(named.clone()).await.unwrap();
    let again = db.store.admit(NewRun { idempotency: None, ..named }).await.unwrap();
    assert_eq!((again.replayed, again.status, again.position), (true, RunStatus::Aborted, None));
}

async fn a_stopped_submission_takes_no_slot_and_leaves_the_queue_alone(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let (active, queued) = (db.submit(acme, chat).await.run, db.submit(acme, chat).await.run);
    for (key, if_busy) in [("k1", IfBusy::Reject), ("k2", IfBusy::Enqueue)] {
        note(&db, acme, KeyName { key, ..KEY }).await;
        let stopped = db.store.admit(NewRun { if_busy, ..keyed(acme, Some(chat), key) }).await.unwrap();
        assert_eq!((stopped.run.status, stopped.position), (RunStatus::Aborted, None));
        assert_eq!(stopped.segments.len(), 2, "nobody else is promoted");
    }
    assert_eq!(db.now(&active).await.status, RunStatus::Pending);
    assert_eq!(db.now(&queued).await.status, RunStatus::Queued);
    let claim = db.claim(db.worker(1).await).await;
    db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
    assert_eq!(db.claim(db.worker(1).await).await.run.id, queued.id);
}

async fn a_stopped_submission_is_not_scheduled(db: Database) {
    let acme = db.workspace("acme").await;
    note(&db, acme, KEY).await;
    let later = NewRun { start: Some(StartAt::In(60_000)), ..keyed(acme, None, "k") };
    assert_eq!(db.store.admit(later).await.unwrap().run.status, RunStatus::Aborted);
    assert!(db.store.promote_due(9).await.unwrap().is_empty());
}

async fn a_stop_by_key_may_be_repeated_and_expires_with_its_key(db: Database) {
    let acme = db.workspace("acme").await;
    let first = note(&db, acme, KEY).await;
    assert_eq!(note(&db, acme, KEY).await, first, "the first wish counts");
    expire_keys(&db).await;
    let admitted = db.store.admit(keyed(acme, None, "k")).await.unwrap();
    assert_eq!(admitted.run.status, RunStatus::Pending, "nobody remembers");
    expire_keys(&db).await;
    assert!(note(&db, acme, KEY).await > 1, "the run of an expired key is nobody's");
    assert_eq!(db.now(&admitted.run).await.status, RunStatus::Pending);
    assert_eq!(db.store.admit(keyed(acme, None, "k")).await.unwrap().run.status, RunStatus::Aborted);
}

async fn keys_of_other_callers_routes_and_workspaces_are_not_stopped(db: Database) {
    let (acme, other) = (db.workspace("acme").await, db.workspace("other").await);
    note(&db, other, KEY).await;
    for name in [
        KeyName { caller: "another", ..KEY },
        KeyName { route: "send_message", ..KEY },
        KeyName { key: "another", ..KEY },
    ] {
        note(&db, acme, name).await;
    }
    assert_eq!(db.store.admit(keyed(acme, None, "k")).await.unwrap().run.status, RunStatus::Pending);
}

async fn a_refused_submission_leaves_the_note(db: Database) {
    let acme = db.workspace("acme").await;
    note(&db, acme, KEY).await;
    let before = db.everything().await;
    let refused = db.store.admit(keyed(acme, Some(ChatId::generate()), "k")).await;
    assert!(matches!(refused, Err(AdmitError::ChatNotFound)), "{refused:?}");
    assert_eq!(db.everything().await, before);
    assert_eq!(db.store.admit(keyed(acme, None, "k")).await.unwrap().run.status, RunStatus::Aborted);
}

async fn a_stop_by_key_and_its_submission_at_once_end_the_run(db: Database) {
    let acme = db.workspace("acme").await;
    let (mut noted, mut known) = (0, 0);
    for round in 0..if db.is_postgres() { 200 } else { 40 } {
        let key = format!("k{round}");
        let barrier = Barrier::new(2);
        let pause = |is_late: bool| {
            let micros = if is_late { 3_000 } else { 0 };
            tokio::time::sleep(std::time::Duration::from_micros(micros))
        };
        let submit = async {
            barrier.wait().await;
            pause(round % 4 == 0).await;
            db.store.admit(keyed(acme, None, &key)).await.unwrap()
        };
        let stop = async {
            barrier.wait().await;
            pause(round % 4 == 2).await;
            db.second.stop_by_key(acme, KeyName { key: &key, ..KEY }).await.unwrap()
        };
        let (admitted, stopped) = tokio::join!(submit, stop);
        match stopped {
            KeyStop::Noted { .. } => {
                noted += 1;
                assert_eq!(admitted.status, RunStatus::Aborted, "round {round}");
            }
            KeyStop::Known(_) => known += 1,
        }
        let run = db.now(&admitted.run).await;
        assert_eq!((run.status, run.reason), (RunStatus::Aborted, Some(Reason::Stop)), "round {round}");
        assert_eq!(run.attempts, 0);
    }
    assert!(noted > 0 && known > 0, "{noted} stops came first, {known} submissions did");
}
