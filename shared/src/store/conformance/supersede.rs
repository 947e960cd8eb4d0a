//! Superseding: the slot's holder is stopped for another run and what waits behind it ends, or nothing happens at all.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    fixtures::{append, deltas, finishing, new_run},
    harness::Database,
    upheld,
};
use crate::{
    admission::{Agents, Input, LimitOverrides, Submission, submit_to_the_end},
    bus::{Bus, in_process::InProcessBus},
    config::{Environment, Overrides, Profile, Sources},
    domain::{
        run::{Ending, Run, Trigger},
        transition::{Reason, RunStatus},
    },
    store::{AdmitError, IfBusy, NewRun, StopOutcome, StoreError, admission::StartAt},
};

upheld! {
    a_run_that_nobody_holds_makes_way_at_once_with_all_that_wait,
    a_held_run_is_asked_to_make_way,
    only_the_holder_of_the_slot_is_superseded,
    an_interrupting_run_is_refused_while_the_slot_is_taken,
    an_interruption_goes_on_without_its_sender,
}

async fn assert_superseded(db: &Database, run: &Run) {
    let over = db.now(run).await;
    assert_eq!((over.status, over.reason), (RunStatus::Aborted, Some(Reason::Superseded)));
}

async fn a_run_that_nobody_holds_makes_way_at_once_with_all_that_wait(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let active = db.submit(acme, chat).await.run;
    let waiting = [db.submit(acme, chat).await.run, db.submit(acme, chat).await.run];
    let later = NewRun { start: Some(StartAt::In(60_000)), ..new_run(acme, Some(chat)) };
    let later = db.store.admit(later).await.unwrap().run;
    let elsewhere = db.submit(acme, db.chat(acme, "two").await.id).await.run;

    let outcomes = db.store.supersede(acme, active.id).await.unwrap();
    assert_eq!(outcomes.len(), 3);
    for outcome in &outcomes {
        let StopOutcome::Ended { segments, wake, .. } = outcome else { panic!("{outcome:?}") };
        assert!(segments.len() == 1 && segments[0].is_end() && wake.is_empty(), "nobody is promoted");
    }
    for run in waiting.iter().chain([&active]) {
        assert_superseded(&db, run).await;
    }
    assert_eq!(db.now(&later).await.status, RunStatus::Scheduled);
    assert_eq!(db.now(&elsewhere).await.status, RunStatus::Pending);
    assert_eq!(db.submit(acme, chat).await.run.status, RunStatus::Pending, "the slot is free");
}

async fn a_held_run_is_asked_to_make_way(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let waiting = db.submit(acme, claim.run.chat_id).await.run;
    let outcomes = db.store.supersede(acme, claim.run.id).await.unwrap();
    assert!(matches!(outcomes[..], [StopOutcome::Ended { .. }, StopOutcome::Requested(_)]), "{outcomes:?}");
    assert_superseded(&db, &waiting).await;
    let requests = db.store.stop_requests(claim.worker_id).await.unwrap();
    assert_eq!((requests[0].run_id, requests[0].reason), (claim.run.id, Reason::Superseded));
    // It may still write until it hears of it.
    db.commit(append(&claim, claim.last_seq + 1, deltas(1, 1))).await;
    let ending = Ending { reason: Reason::Superseded, error: None };
    db.commit(finishing(&claim, claim.last_seq + 2, ending)).await;
    assert_superseded(&db, &claim.run).await;
}

async fn only_the_holder_of_the_slot_is_superseded(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let over = db.submit(acme, chat).await.run;
    db.store.stop_run(acme, over.id).await.unwrap();
    let active = db.submit(acme, chat).await.run;
    let waiting = db.submit(acme, chat).await.run;
    let before = db.everything().await;
    for run in [&over, &waiting] {
        assert!(db.store.supersede(acme, run.id).await.unwrap().is_empty());
    }
    let foreign = db.store.supersede(db.workspace("other").await, active.id).await;
    assert!(matches!(foreign, Err(StoreError::NotFound)), "{foreign:?}");
    assert_eq!(db.everything().await, before);
}

async fn an_interrupting_run_is_refused_while_the_slot_is_taken(db: Database) {
    let acme = db.workspace("acme").await;
    let active = db.submit(acme, db.chat(acme, "one").await.id).await.run;
    let new = NewRun { if_busy: IfBusy::Interrupt, ..new_run(acme, Some(active.chat_id)) };
    let before = db.everything().await;
    let refused = db.store.admit(new.clone()).await;
    assert!(
        matches!(refused, Err(AdmitError::RunAlreadyActive { active_run_id }) if active_run_id == Some(active.id)),
        "{refused:?}"
    );
    assert_eq!(db.everything().await, before, "nothing of it is stored");
    db.store.supersede(acme, active.id).await.unwrap();
    assert_eq!(db.store.admit(new).await.unwrap().status, RunStatus::Pending);
}

async fn an_interruption_goes_on_without_its_sender(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let file = Environment::from_iter([] as [(&str, &str); 0]);
    let config =
        Sources { profile: Profile::Dev, file: None, environment: file, overrides: Overrides::new() };
    let agents = Agents::of(&config.load().unwrap());
    let submission = Submission {
        workspace_id: acme,
        chat_id: Some(claim.run.chat_id),
        client_chat_id: None,
        client_message_id: None,
        agent: agents.names().next().map(str::to_owned),
        input: Input::Text("Rather this.".to_owned()),
        if_busy: IfBusy::Interrupt,
        expect_run_id: None,
        start: None,
        trigger: Trigger::Api,
        created_by: None,
        limits: LimitOverrides::default(),
        tags: vec![],
        metadata: serde_json::Value::Null,
        traceparent: None,
        idempotency: None,
        replaces: false,
        renderer: 1,
        request: None,
    };
    let (store, bus): (_, Arc<dyn Bus>) = (db.store.clone(), Arc::new(InProcessBus::new()));
    let sender = tokio::spawn(async move { submit_to_the_end(&store, &bus, &agents, submission).await });
    while db.store.stop_requests(claim.worker_id).await.unwrap().is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
    sender.abort();
    assert!(sender.await.is_err_and(|error| error.is_cancelled()), "its run has not ended yet");
    let ending = Ending { reason: Reason::Superseded, error: None };
    db.commit(finishing(&claim, claim.last_seq + 1, ending)).await;
    let next = loop {
        match db.store.chat(acme, claim.run.chat_id).await.unwrap().active_run_id {
            Some(next) => break next,
            None => sleep(Duration::from_millis(5)).await,
        }
    };
    assert_ne!(next, claim.run.id);
}
