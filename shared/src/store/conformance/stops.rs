//! Stops: a run that nobody holds ends at once, a held one is asked to, and once is enough.

use std::time::Duration;

use super::{
    fixtures::{append, cursor, deltas, finishing, new_run, saving},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        event::{Event, EventData, ReleaseReason, StopStage},
        run::{Ending, Run, RunError},
        transition::{MessageStatus, Reason, RunStatus},
    },
    store::{Append, NewRun, STOP_GRACE_MS, StopOutcome, StoreError, admission::StartAt},
};

upheld! {
    a_run_that_nobody_holds_ends_when_it_is_stopped,
    a_stop_frees_the_slot_for_the_next_run,
    the_stop_of_a_held_run_is_a_request_that_counts_once,
    a_run_whose_owner_is_dead_ends_when_it_is_stopped,
    the_first_wish_gives_the_reason,
    a_run_that_is_over_is_not_stopped_again,
    many_stops_are_one_end,
    an_unknown_or_foreign_run_is_not_stopped,
    the_store_tells_that_a_stop_was_requested_and_not_that_it_was_delivered,
    a_stop_that_a_live_holder_does_not_follow_is_carried_out_after_the_grace,
    a_stop_that_is_repeated_after_the_grace_needs_no_reaper,
    a_holder_that_ends_the_run_while_its_grace_runs_out_makes_one_end_with_the_reaper,
    no_other_end_comes_before_a_stop,
    an_end_whose_answer_was_lost_stays_although_a_stop_came_since,
    a_stop_that_was_taken_is_followed_and_one_that_was_not_came_too_late,
}

async fn assert_stopped(db: &Database, run: &Run) {
    let over = db.now(run).await;
    assert_eq!((over.status, over.reason), (RunStatus::Aborted, Some(Reason::Stop)));
    let message = db.store.message(run.workspace_id, run.assistant_message_id).await.unwrap();
    assert_eq!(message.status, Some(MessageStatus::Aborted));
    assert_eq!(db.kinds(run).await.last().unwrap(), "run.finished");
}

async fn a_run_that_nobody_holds_ends_when_it_is_stopped(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let chat = db.chat(acme, "one").await.id;
    let pending = db.submit(acme, chat).await.run;
    let queued = db.submit(acme, chat).await.run;
    let later = NewRun { start: Some(StartAt::In(60_000)), ..new_run(acme, Some(chat)) };
    let scheduled = db.store.admit(later).await.unwrap().run;
    db.store.hand_back(&claim, claim.last_seq, ReleaseReason::HandBack, 0).await.unwrap();
    for run in [scheduled, queued, pending, claim.run] {
        let outcome = db.store.stop_run(acme, run.id).await.unwrap();
        let StopOutcome::Ended { run: ended, segments, wake } = outcome else { panic!("{outcome:?}") };
        assert_eq!((ended.id, ended.status), (run.id, RunStatus::Aborted));
        assert!(segments.len() == 1 && segments[0].is_end() && wake.is_empty());
        assert_stopped(&db, &run).await;
    }
    assert_eq!(db.look("select cast(count(*) as text) from jobs", |rows| vec![rows.jobs.len()]).await, ["0"]);
}

async fn a_stop_frees_the_slot_for_the_next_run(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let active = db.submit(acme, chat).await.run;
    let next = db.submit(acme, chat).await.run;
    let outcome = db.store.stop_run(acme, active.id).await.unwrap();
    let StopOutcome::Ended { segments, wake, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!((segments.len(), wake), (2, vec!["default".to_owned()]));
    assert_eq!((segments[1].run_id, segments[1].first), (next.id, 2));
    assert_eq!(db.claim(db.worker(1).await).await.run.id, next.id);
}

async fn the_stop_of_a_held_run_is_a_request_that_counts_once(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let mut first = None;
    for _ in 0..3 {
        let outcome = db.store.stop_run(acme, claim.run.id).await.unwrap();
        let StopOutcome::Requested(run) = outcome else { panic!("{outcome:?}") };
        assert!(run.is_stopping());
        assert_eq!(*first.get_or_insert(run.stop_requested_at), run.stop_requested_at);
    }
    assert_eq!(db.kinds(&claim.run).await.len(), 2, "only its holder writes into its log");
    db.commit(append(&claim, claim.last_seq + 1, deltas(1, 1))).await;
    db.commit(finishing(&claim, claim.last_seq + 2, Ending::stopped())).await;
    assert_stopped(&db, &claim.run).await;
}

async fn a_run_whose_owner_is_dead_ends_when_it_is_stopped(db: Database) {
    let acme = db.workspace("acme").await;
    for requested in [false, true] {
        let claim = db.held_run(acme).await;
        if requested {
            db.store.stop_run(acme, claim.run.id).await.unwrap();
        }
        db.expire(claim.worker_id).await;
        let outcome = db.store.stop_run(acme, claim.run.id).await.unwrap();
        assert!(matches!(outcome, StopOutcome::Ended { .. }), "{outcome:?}");
        assert_stopped(&db, &claim.run).await;
        db.refused(append(&claim, claim.last_seq + 1, deltas(1, 1))).await;
    }
}

async fn the_first_wish_gives_the_reason(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    db.store.delete_chat(acme, claim.run.chat_id).await.unwrap();
    db.expire(claim.worker_id).await;
    db.store.stop_run(acme, claim.run.id).await.unwrap();
    assert_eq!(db.now(&claim.run).await.reason, Some(Reason::ChatDeleted));
}

async fn a_run_that_is_over_is_not_stopped_again(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
    let before = db.everything().await;
    let outcome = db.store.stop_run(acme, claim.run.id).await.unwrap();
    let StopOutcome::AlreadyOver(run) = outcome else { panic!("{outcome:?}") };
    assert_eq!((run.status, run.stop_requested_at), (RunStatus::Succeeded, None));
    assert_eq!(db.everything().await, before);
}

async fn many_stops_are_one_end(db: Database) {
    let acme = db.workspace("acme").await;
    let run = db.store.admit(new_run(acme, None)).await.unwrap().run;
    let stops: Vec<_> = (0..100)
        .map(|n| {
            let store = if n % 2 == 0 { db.store.clone() } else { db.second.clone() };
            tokio::spawn(async move { store.stop_run(acme, run.id).await })
        })
        .collect();
    let mut ended = 0;
    for stop in stops {
        match stop.await.unwrap().unwrap() {
            StopOutcome::Ended { .. } => ended += 1,
            StopOutcome::AlreadyOver(run) => assert_eq!(run.status, RunStatus::Aborted),
            StopOutcome::Requested(run) => panic!("nobody holds it: {run:?}"),
        }
    }
    assert_eq!(ended, 1);
    assert_eq!(db.kinds(&run).await, ["run.queued", "run.stopping", "run.finished"]);
}

async fn an_unknown_or_foreign_run_is_not_stopped(db: Database) {
    let (acme, evil) = (db.workspace("acme").await, db.workspace("evil").await);
    let run = db.store.admit(new_run(acme, None)).await.unwrap().run;
    let refused = db.store.stop_run(evil, run.id).await;
    assert!(matches!(refused, Err(StoreError::NotFound)), "{refused:?}");
    let refused = db.store.delete_chat(evil, run.chat_id).await;
    assert!(matches!(refused, Err(StoreError::NotFound)), "{refused:?}");
    assert_eq!(db.now(&run).await.status, RunStatus::Pending);
}

/// The stages in the run's log.
async fn stages(db: &Database, run: &Run) -> Vec<EventData> {
    let log = db.store.read_log(cursor(run, 0), 1_000).await.unwrap();
    let events = log.iter().flat_map(|segment| &segment.events).filter_map(Event::data);
    events.filter(|data| matches!(data, EventData::RunStopping { .. })).collect()
}

async fn the_store_tells_that_a_stop_was_requested_and_not_that_it_was_delivered(db: Database) {
    let acme = db.workspace("acme").await;
    let pending = db.store.admit(new_run(acme, None)).await.unwrap().run;
    db.store.stop_run(acme, pending.id).await.unwrap();
    let (handed_back, reaped) = (db.held_run(acme).await, db.held_run(acme).await);
    for claim in [&handed_back, &reaped] {
        db.store.stop_run(acme, claim.run.id).await.unwrap();
    }
    let last = handed_back.last_seq;
    db.store.hand_back(&handed_back, last, ReleaseReason::HandBack, 0).await.unwrap();
    db.expire(reaped.worker_id).await;
    db.store.reap(3, 9).await.unwrap();
    for run in [&pending, &handed_back.run, &reaped.run] {
        let requested_at = db.now(run).await.stop_requested_at;
        assert!(requested_at.is_some());
        let requested = EventData::RunStopping { stage: StopStage::Requested, requested_at };
        assert_eq!(stages(&db, run).await, [requested]);
        assert_stopped(&db, run).await;
    }
}

/// The stop was requested longer ago than its grace.
async fn let_the_grace_run_out(db: &Database, run: &Run) {
    let sql = format!(
        "update runs set stop_requested_at = stop_requested_at - {STOP_GRACE_MS} where id = {}",
        db.id(run.id.0)
    );
    db.edit(&sql, |rows| {
        let row = rows.runs.get_mut(&run.id).unwrap();
        row.run.stop_requested_at = row.run.stop_requested_at.map(|at| at - STOP_GRACE_MS);
    })
    .await;
}

async fn a_stop_that_a_live_holder_does_not_follow_is_carried_out_after_the_grace(db: Database) {
    let acme = db.workspace("acme").await;
    let (claim, free) = (db.held_run(acme).await, db.held_run(acme).await);
    let said = db.commit(append(&claim, claim.last_seq + 1, deltas(1, 2))).await;
    db.store.stop_run(acme, claim.run.id).await.unwrap();
    assert!(db.store.carry_out_stops(9).await.unwrap().is_empty(), "its holder may still follow");
    assert_eq!(db.now(&claim.run).await.status, RunStatus::Running);

    let_the_grace_run_out(&db, &claim.run).await;
    assert!(db.store.reap(3, 9).await.unwrap().is_empty(), "its holder lives");
    let [released] = &db.store.carry_out_stops(9).await.unwrap()[..] else { panic!("one stop is overdue") };
    assert_eq!((released.run_id, released.ended), (claim.run.id, true));
    assert_stopped(&db, &claim.run).await;
    assert_eq!(stages(&db, &claim.run).await.len(), 1, "it was not delivered");
    let before = db.everything().await;
    db.refused(append(&claim, said.last + 1, deltas(1, 1))).await;
    db.refused(finishing(&claim, said.last + 1, Ending::done())).await;
    assert!(db.store.carry_out_stops(9).await.unwrap().is_empty());
    assert_eq!(db.everything().await, before, "it ended once, and its holder changes nothing");
    db.submit(acme, claim.run.chat_id).await;
    let workers = db.store.list_workers().await.unwrap();
    assert!(workers.iter().any(|worker| worker.id == claim.worker_id && worker.is_alive));
    assert_eq!(db.now(&free.run).await.status, RunStatus::Running);
}

async fn a_stop_that_is_repeated_after_the_grace_needs_no_reaper(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    db.store.stop_run(acme, claim.run.id).await.unwrap();
    let again = db.store.stop_run(acme, claim.run.id).await.unwrap();
    assert!(matches!(again, StopOutcome::Requested(_)), "{again:?}");
    let_the_grace_run_out(&db, &claim.run).await;
    let last = db.store.stop_run(acme, claim.run.id).await.unwrap();
    assert!(matches!(last, StopOutcome::Ended { .. }), "{last:?}");
    assert_stopped(&db, &claim.run).await;
    db.refused(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
}

async fn a_holder_that_ends_the_run_while_its_grace_runs_out_makes_one_end_with_the_reaper(db: Database) {
    let acme = db.workspace("acme").await;
    let (mut by_holder, mut by_reaper) = (0, 0);
    for round in 0..if db.is_postgres() { 200 } else { 40 } {
        let claim = db.held_run(acme).await;
        db.store.stop_run(acme, claim.run.id).await.unwrap();
        let_the_grace_run_out(&db, &claim.run).await;
        let barrier = tokio::sync::Barrier::new(2);
        let pause = |is_late: bool| {
            let micros = if is_late { 2_000 } else { 0 };
            tokio::time::sleep(Duration::from_micros(micros))
        };
        let end = finishing(&claim, claim.last_seq + 1, Ending::stopped());
        let finish = async {
            barrier.wait().await;
            pause(round % 4 == 0).await;
            db.store.commit(std::slice::from_ref(&end)).await.remove(0)
        };
        let carry_out = async {
            barrier.wait().await;
            pause(round % 4 == 2).await;
            db.second.carry_out_stops(9).await.unwrap()
        };
        let (finished, carried_out) = tokio::join!(finish, carry_out);
        match (finished, &carried_out[..]) {
            (Ok(_), []) => by_holder += 1,
            (Err(StoreError::LeaseLost), [_]) => by_reaper += 1,
            other => panic!("round {round}: {other:?}"),
        }
        assert_stopped(&db, &claim.run).await;
    }
    assert!(by_holder > 0 && by_reaper > 0, "{by_holder} by the holder, {by_reaper} by the reaper");
}

async fn no_other_end_comes_before_a_stop(db: Database) {
    let acme = db.workspace("acme").await;
    let failed = || Ending::failed(Reason::Provider, RunError::new("provider", "gone"));
    for (ending, reason) in [
        (Ending::done(), Reason::Stop),
        (failed(), Reason::Stop),
        (Ending { reason: Reason::StepLimit, error: None }, Reason::ChatDeleted),
    ] {
        let (claim, other) = (db.held_run(acme).await, db.held_run(acme).await);
        match reason {
            Reason::Stop => drop(db.store.stop_run(acme, claim.run.id).await.unwrap()),
            _ => drop(db.store.delete_chat(acme, claim.run.chat_id).await.unwrap()),
        }
        let saved = db.commit(saving(&claim, claim.last_seq + 1, 1)).await;
        let before = db.everything().await;
        let results = db.store.commit(&[finishing(&claim, saved.last + 1, ending.clone())]).await;
        assert_eq!(db.everything().await, before, "nothing of it is written");
        let [Err(StoreError::Stopping(wish))] = &results[..] else { panic!("{ending:?}: {results:?}") };
        let run = db.now(&claim.run).await;
        assert_eq!(
            (wish.run_id, wish.reason, Some(wish.requested_at)),
            (run.id, reason, run.stop_requested_at)
        );

        let both = [
            finishing(&claim, saved.last + 1, ending),
            finishing(&other, other.last_seq + 1, Ending::done()),
        ];
        let results = db.store.commit(&both).await;
        assert!(matches!(&results[..], [Err(StoreError::Stopping(_)), Ok(_)]), "{results:?}");
        let by_stop = finishing(&claim, saved.last + 1, Ending { reason, error: None });
        assert!(!by_stop.yields_to_stop());
        let expired = finishing(&claim, saved.last + 1, Ending { reason: Reason::Expired, error: None });
        assert!(!Append { stop_requested_at: Some(1), ..expired }.yields_to_stop(), "it names its stop");
        db.commit(by_stop).await;
        let over = db.now(&claim.run).await;
        assert_eq!((over.status, over.reason), (RunStatus::Aborted, Some(reason)));
        assert_eq!(db.now(&other.run).await.status, RunStatus::Succeeded);
    }
}

async fn an_end_whose_answer_was_lost_stays_although_a_stop_came_since(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let end = finishing(&claim, claim.last_seq + 1, Ending::done());
    db.commit(end.clone()).await;
    let outcome = db.store.stop_run(acme, claim.run.id).await.unwrap();
    assert!(matches!(outcome, StopOutcome::AlreadyOver(_)), "{outcome:?}");
    db.commit(end).await;
    assert_eq!(db.now(&claim.run).await.status, RunStatus::Succeeded);
}

async fn a_stop_that_was_taken_is_followed_and_one_that_was_not_came_too_late(db: Database) {
    let acme = db.workspace("acme").await;
    let beside = db.held_run(acme).await;
    let (mut taken, mut too_late, mut locked) = (0, 0, 0);
    for round in 0..if db.is_postgres() { 300 } else { 60 } {
        let claim = db.held_run(acme).await;
        let barrier = tokio::sync::Barrier::new(2);
        let end = finishing(&claim, claim.last_seq + 1, Ending::done());
        let next = beside.last_seq + 1 + round;
        let finish = async {
            barrier.wait().await;
            if round % 3 == 0 {
                tokio::time::sleep(Duration::from_micros(1_500)).await;
            }
            // As the recorder does it: at once beside others, and aside where the chat is locked.
            let both = [end.clone(), append(&beside, next, deltas(1, 1))];
            let mut results = db.store.commit_at_once(&both).await;
            assert!(results.pop().is_some_and(|result| result.is_ok()), "its neighbour is not disturbed");
            match results.remove(0) {
                Err(StoreError::Locked) => {
                    locked += 1;
                    db.store.commit(std::slice::from_ref(&end)).await.remove(0)
                }
                result => result,
            }
        };
        let stop = async {
            barrier.wait().await;
            if round % 3 == 1 {
                tokio::time::sleep(Duration::from_micros(1_500)).await;
            }
            db.second.stop_run(acme, claim.run.id).await.unwrap()
        };
        let (finished, stopped) = tokio::join!(finish, stop);
        match (&finished, &stopped) {
            (Err(StoreError::Stopping(wish)), StopOutcome::Requested(run)) => {
                taken += 1;
                assert_eq!(Some(wish.requested_at), run.stop_requested_at);
                db.commit(finishing(&claim, claim.last_seq + 1, Ending::stopped())).await;
                assert_stopped(&db, &claim.run).await;
            }
            (Ok(_), StopOutcome::AlreadyOver(run)) => {
                too_late += 1;
                assert_eq!((run.status, run.stop_requested_at), (RunStatus::Succeeded, None));
            }
            other => panic!("round {round}: {other:?}"),
        }
    }
    assert!(taken > 0 && too_late > 0, "{taken} taken, {too_late} too late");
    assert!(locked > 0 || !db.is_postgres(), "the two never met at the chat's lock");
}
