//! How runs leave their holders: handed back, reaped, disowned.

use super::{
    fixtures::{append, deltas, finishing, new_run, saving},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        event::{EventData, ReleaseReason},
        ids::{RunId, WorkerId},
        run::{Claim, Ending},
        transition::{Reason, RunStatus},
    },
    store::{NewRun, Released, StoreError, admission::StartAt},
};

upheld! {
    a_run_handed_back_waits_for_a_worker_again,
    only_the_holder_hands_back_and_only_behind_its_last_event,
    a_run_handed_back_after_its_stop_ends,
    the_runs_of_a_live_worker_are_not_reaped,
    the_run_of_a_dead_worker_goes_on_elsewhere,
    racing_reapers_release_a_run_once,
    a_run_that_loses_its_workers_ends_with_the_last_allowed_crash,
    a_saved_step_forgives_the_crashes_before_it,
    a_hand_back_in_good_order_is_no_crash,
    a_run_whose_attempts_keep_breaking_is_given_up,
    a_reaped_run_whose_stop_was_requested_ends_with_that_reason,
    a_run_that_is_held_unknowingly_is_given_back,
    a_crash_is_charged_once_to_each_run_of_the_worker_and_delays_them_more_and_more;
    sql:
    a_run_that_nobody_can_read_is_counted_until_it_is_given_up,
    an_orphan_that_cannot_be_reaped_keeps_nobody_waiting,
    runs_that_nobody_can_read_end_like_others_and_are_in_nobodys_way,
    the_reaper_looks_at_the_jobs_of_the_dead_alone,
}

async fn lose(db: &Database, claim: &Claim, max_crashes: i32) -> Released {
    db.expire(claim.worker_id).await;
    let mut released = db.store.reap(max_crashes, 9).await.unwrap();
    assert_eq!(released.len(), 1);
    db.edit("update jobs set run_at = 0", |rows| rows.jobs.values_mut().for_each(|job| job.run_at = 0)).await;
    released.remove(0)
}

async fn a_run_handed_back_waits_for_a_worker_again(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let last = db.commit(append(&claim, claim.last_seq + 1, deltas(1, 3))).await.last;
    let released = db.store.hand_back(&claim, last, ReleaseReason::HandBack, 0).await.unwrap();
    assert_eq!((released.ended, released.wake), (false, vec!["default".to_owned()]));
    let event = EventData::RunReleased { reason: ReleaseReason::HandBack, epoch: claim.epoch };
    assert_eq!(released.segments[0].events[0].data(), Some(event));
    assert_eq!((released.segments[0].first, released.segments.len()), (last + 1, 1));
    let run = db.now(&claim.run).await;
    assert_eq!((run.status, run.worker_id), (RunStatus::Pending, None));

    let again = db.claim(claim.worker_id).await;
    assert_eq!((again.epoch, again.last_seq), (claim.epoch + 1, last + 2));
    db.store.hand_back(&again, again.last_seq, ReleaseReason::HandBack, 3_600_000).await.unwrap();
    let early = db.store.claim(claim.worker_id, &["default".to_owned()], 1).await.unwrap();
    assert!(early.is_empty(), "it is due after its delay");
}

async fn only_the_holder_hands_back_and_only_behind_its_last_event(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let last = db.commit(append(&claim, claim.last_seq + 1, deltas(1, 3))).await.last;
    let before = db.everything().await;
    let others = [
        (Claim { worker_id: WorkerId::generate(), ..claim.clone() }, last),
        (Claim { epoch: claim.epoch - 1, ..claim.clone() }, last),
        (claim.clone(), last - 1),
        (claim.clone(), last + 1),
    ];
    for (holder, last_seq) in others {
        let refused = db.store.hand_back(&holder, last_seq, ReleaseReason::HandBack, 0).await;
        assert!(matches!(refused, Err(StoreError::LeaseLost)), "{refused:?}");
    }
    assert_eq!(db.everything().await, before);
    db.store.hand_back(&claim, last, ReleaseReason::HandBack, 0).await.unwrap();
    let again = db.store.hand_back(&claim, last, ReleaseReason::HandBack, 0).await;
    assert!(matches!(again, Err(StoreError::LeaseLost)), "{again:?}");
}

async fn a_run_handed_back_after_its_stop_ends(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    db.store.stop_run(acme, claim.run.id).await.unwrap();
    let released = db.store.hand_back(&claim, claim.last_seq, ReleaseReason::HandBack, 0).await.unwrap();
    assert!(released.ended && released.wake.is_empty());
    let run = db.now(&claim.run).await;
    assert_eq!((run.status, run.reason), (RunStatus::Aborted, Some(Reason::Stop)));
}

async fn the_runs_of_a_live_worker_are_not_reaped(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let before = db.everything().await;
    assert!(db.store.reap(0, 9).await.unwrap().is_empty());
    assert_eq!(db.everything().await, before);
    assert_eq!(db.now(&claim.run).await.worker_id, Some(claim.worker_id));
}

async fn the_run_of_a_dead_worker_goes_on_elsewhere(db: Database) {
    let acme = db.workspace("acme").await;
    for forgotten in [false, true] {
        let claim = db.held_run(acme).await;
        let last = db.commit(append(&claim, claim.last_seq + 1, deltas(1, 2))).await.last;
        db.expire(claim.worker_id).await;
        if forgotten {
            db.edit("delete from workers where expires_at = 1", |rows| {
                rows.workers.retain(|_, lease| lease.expires_at != 1);
            })
            .await;
        }
        let [released] = &db.store.reap(3, 9).await.unwrap()[..] else { panic!("one orphan") };
        assert_eq!((released.run_id, released.ended, released.wake.len()), (claim.run.id, false, 1));
        let event = EventData::RunReleased { reason: ReleaseReason::Expired, epoch: claim.epoch };
        assert_eq!(released.segments[0].events[0].data(), Some(event));
        let next = db.claim(db.worker(1).await).await;
        assert_eq!((next.run.id, next.epoch, next.last_seq), (claim.run.id, claim.epoch + 1, last + 2));
        db.commit(finishing(&next, next.last_seq + 1, Ending::done())).await;
        assert!(db.store.reap(3, 9).await.unwrap().is_empty());
    }
}

async fn racing_reapers_release_a_run_once(db: Database) {
    let acme = db.workspace("acme").await;
    for _ in 0..if db.is_postgres() { 60 } else { 10 } {
        let claims = [db.held_run(acme).await, db.held_run(acme).await, db.held_run(acme).await];
        db.store.retire_all_workers().await.unwrap();
        let (one, two, three) = tokio::join!(db.store.reap(3, 9), db.second.reap(3, 9), db.store.reap(3, 9));
        let released: usize = [one, two, three].into_iter().map(|result| result.unwrap().len()).sum();
        assert_eq!(released, claims.len());
        for claim in claims {
            assert_eq!(db.now(&claim.run).await.last_seq, claim.last_seq + 1);
            db.store.stop_run(acme, claim.run.id).await.unwrap();
        }
    }
}

async fn a_run_that_loses_its_workers_ends_with_the_last_allowed_crash(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let run = db.submit(acme, chat).await.run;
    let queued = db.submit(acme, chat).await.run;
    for crash in 1..=3 {
        let claim = db.claim(db.worker(1).await).await;
        db.commit(append(&claim, claim.last_seq + 1, deltas(1, 1))).await;
        let released = lose(&db, &claim, 3).await;
        assert_eq!(released.ended, crash == 3, "crash {crash}");
    }
    let ended = db.now(&run).await;
    assert_eq!((ended.status, ended.reason), (RunStatus::Failed, Some(Reason::CrashLimit)));
    assert_eq!(ended.error.unwrap().code, "crash_limit");
    assert_eq!(db.now(&queued).await.status, RunStatus::Pending, "the chat goes on");
}

async fn a_saved_step_forgives_the_crashes_before_it(db: Database) {
    let acme = db.workspace("acme").await;
    let mut claim = db.held_run(acme).await;
    for step in 1..=3 {
        for crash in 1..=2 {
            assert!(!lose(&db, &claim, 3).await.ended, "crash {crash} before step {step}");
            claim = db.claim(db.worker(1).await).await;
        }
        db.commit(saving(&claim, claim.last_seq + 1, step)).await;
    }
    for crash in 1..=3 {
        assert_eq!(lose(&db, &claim, 3).await.ended, crash == 3, "crash {crash} without a step");
        if crash < 3 {
            claim = db.claim(db.worker(1).await).await;
        }
    }
}

async fn a_hand_back_in_good_order_is_no_crash(db: Database) {
    let acme = db.workspace("acme").await;
    let mut claim = db.held_run(acme).await;
    for _ in 0..5 {
        db.store.hand_back(&claim, claim.last_seq, ReleaseReason::HandBack, 0).await.unwrap();
        claim = db.claim(claim.worker_id).await;
    }
    assert!(!lose(&db, &claim, 2).await.ended);
    // A broken attempt is one.
    claim = db.claim(db.worker(1).await).await;
    db.store.hand_back(&claim, claim.last_seq, ReleaseReason::Broken, 0).await.unwrap();
    claim = db.claim(claim.worker_id).await;
    assert!(lose(&db, &claim, 3).await.ended);
}

async fn a_run_whose_attempts_keep_breaking_is_given_up(db: Database) {
    let acme = db.workspace("acme").await;
    let mut claim = db.held_run(acme).await;
    for attempt in 1..=3 {
        let released = db.store.hand_back(&claim, claim.last_seq, ReleaseReason::Broken, 0).await.unwrap();
        assert_eq!(released.ended, attempt == 3, "attempt {attempt}");
        if attempt < 3 {
            claim = db.claim(claim.worker_id).await;
        }
    }
    assert_eq!(db.now(&claim.run).await.reason, Some(Reason::CrashLimit));
}

async fn a_reaped_run_whose_stop_was_requested_ends_with_that_reason(db: Database) {
    let acme = db.workspace("acme").await;
    let (stopped, deleted) = (db.held_run(acme).await, db.held_run(acme).await);
    db.store.stop_run(acme, stopped.run.id).await.unwrap();
    db.store.delete_chat(acme, deleted.run.chat_id).await.unwrap();
    db.store.retire_all_workers().await.unwrap();
    let released = db.store.reap(3, 9).await.unwrap();
    assert!(released.len() == 2 && released.iter().all(|one| one.ended && one.wake.is_empty()));
    for (claim, reason) in [(stopped, Reason::Stop), (deleted, Reason::ChatDeleted)] {
        let run = db.now(&claim.run).await;
        assert_eq!((run.status, run.reason), (RunStatus::Aborted, Some(reason)));
    }
}

async fn an_orphan_that_cannot_be_reaped_keeps_nobody_waiting(db: Database) {
    let acme = db.workspace("acme").await;
    let patience = std::time::Duration::from_millis(200);
    let Some((pool, store)) = db.on_postgres(|options| options.lock_timeout = patience) else { return };
    let (blocked, free) = (db.held_run(acme).await, db.held_run(acme).await);
    db.store.retire_all_workers().await.unwrap();
    let mut rogue = pool.begin().await.unwrap();
    sqlx::query("select id from chats where id = $1 for update")
        .bind(blocked.run.chat_id.0)
        .execute(&mut *rogue)
        .await
        .unwrap();
    let released: Vec<_> = store.reap(3, 9).await.unwrap().iter().map(|one| one.run_id).collect();
    assert_eq!(released, [free.run.id], "the older one is in nobody's way");
    let failed = store.reap(3, 9).await;
    assert!(matches!(failed, Err(StoreError::Unavailable(_))), "nothing but trouble is told: {failed:?}");
    rogue.rollback().await.unwrap();
    assert_eq!(store.reap(3, 9).await.unwrap()[0].run_id, blocked.run.id);
    store.close().await;
}

async fn runs_that_nobody_can_read_end_like_others_and_are_in_nobodys_way(db: Database) {
    let acme = db.workspace("acme").await;
    let spoil = async |run: RunId| {
        let sql = format!("update runs set limits = '[]' where id = {}", db.id(run.0));
        db.execute(&sql).await.unwrap();
    };
    let ends = async |run: RunId| {
        let sql =
            format!("select status || ' ' || coalesce(reason, '') from runs where id = {}", db.id(run.0));
        db.texts(&sql).await.remove(0)
    };
    // Older than the healthy ones, so that each round meets them first.
    let (orphan, deaf) = (db.held_run(acme).await, db.held_run(acme).await);
    let (healthy, stopped) = (db.held_run(acme).await, db.held_run(acme).await);
    for claim in [&deaf, &stopped] {
        db.store.stop_run(acme, claim.run.id).await.unwrap();
    }
    db.execute("update runs set stop_requested_at = 1 where stop_requested_at is not null").await.unwrap();
    for claim in [&orphan, &healthy] {
        db.expire(claim.worker_id).await;
    }
    let mut due = vec![];
    for _ in 0..2 {
        let start = Some(StartAt::In(3_600_000));
        due.push(db.store.admit(NewRun { start, ..new_run(acme, None) }).await.unwrap().run.id);
    }
    db.execute("update runs set run_at = 1 where status = 'scheduled'").await.unwrap();
    for run in [orphan.run.id, deaf.run.id, due[0]] {
        spoil(run).await;
    }
    assert_eq!(db.store.promote_due(9).await.unwrap().len(), 2);
    assert_eq!(db.store.carry_out_stops(9).await.unwrap().len(), 2);
    assert_eq!(db.store.reap(3, 9).await.unwrap().len(), 2);
    assert_eq!(ends(deaf.run.id).await, "aborted stop");
    assert_eq!(ends(stopped.run.id).await, "aborted stop");
    assert_eq!(ends(orphan.run.id).await, "pending ");
    assert_eq!(ends(healthy.run.id).await, "pending ");
    assert_eq!(ends(due[0]).await, "pending ");
}

async fn the_reaper_looks_at_the_jobs_of_the_dead_alone(db: Database) {
    let acme = db.workspace("acme").await;
    let mut held = vec![];
    for _ in 0..4 {
        held.push(db.held_run(acme).await);
    }
    // One dead with a row, one whose row is gone, and the first and last owner in the order of ids live.
    held.sort_by_key(|claim| claim.worker_id);
    db.expire(held[1].worker_id).await;
    db.execute(&format!("delete from workers where id = {}", db.id(held[2].worker_id.0))).await.unwrap();
    let released = db.store.reap(3, 9).await.unwrap();
    let mut found: Vec<_> = released.iter().map(|one| one.run_id).collect();
    found.sort_unstable();
    let mut dead = vec![held[1].run.id, held[2].run.id];
    dead.sort_unstable();
    assert_eq!(found, dead);
    assert!(db.store.reap(3, 9).await.unwrap().is_empty());
    for claim in [&held[0], &held[3]] {
        db.expire(claim.worker_id).await;
    }
    assert_eq!(db.store.reap(3, 1).await.unwrap().len(), 1);
    assert_eq!(db.store.reap(3, 9).await.unwrap().len(), 1);
}

async fn a_run_that_is_held_unknowingly_is_given_back(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let (worker, id) = (claim.worker_id, claim.run.id);
    assert!(db.store.disown(WorkerId::generate(), (&claim).into()).await.unwrap().is_none());
    let released = db.store.disown(worker, (&claim).into()).await.unwrap().unwrap();
    assert_eq!((released.ended, released.segments[0].first), (false, claim.last_seq + 1));
    assert!(db.store.held_by(worker).await.unwrap().is_empty());
    assert!(db.store.disown(worker, (&claim).into()).await.unwrap().is_none(), "again is fine");
    let next = db.claim(worker).await;
    assert_eq!(next.epoch, claim.epoch + 1);
    assert!(
        db.store.disown(worker, (&claim).into()).await.unwrap().is_none(),
        "the next claim is another one"
    );

    db.store.stop_run(acme, id).await.unwrap();
    assert!(db.store.disown(worker, (&next).into()).await.unwrap().unwrap().ended);
    assert!(db.store.disown(worker, (&next).into()).await.unwrap().is_none());
}

async fn a_run_that_nobody_can_read_is_counted_until_it_is_given_up(db: Database) {
    let acme = db.workspace("acme").await;
    let run = db.store.admit(new_run(acme, None)).await.unwrap().run;
    let healthy = db.store.admit(new_run(acme, None)).await.unwrap().run;
    let sql = format!("update runs set limits = '[]' where id = {}", db.id(run.id.0));
    db.execute(&sql).await.unwrap();
    let worker = db.worker(9).await;
    let claims = db.store.claim(worker, &["default".to_owned()], 9).await.unwrap();
    assert_eq!(claims.len(), 1, "the other one is claimed and known to nobody");
    assert_eq!(claims[0].0.run.id, healthy.id);
    for crash in 1..=3 {
        let unheard_of = db.store.held_by(worker).await.unwrap();
        let unheard_of = unheard_of.into_iter().find(|held| held.run_id == run.id).unwrap();
        let released = db.store.disown(worker, unheard_of).await.unwrap().unwrap();
        assert_eq!(released.ended, crash == 3, "crash {crash}");
        db.make_due().await;
        assert!(db.store.claim(worker, &["default".to_owned()], 9).await.unwrap().is_empty());
    }
    let end = format!("select status || ' ' || reason from runs where id = {}", db.id(run.id.0));
    assert_eq!(db.texts(&end).await, ["failed crash_limit"]);
}

async fn a_crash_is_charged_once_to_each_run_of_the_worker_and_delays_them_more_and_more(db: Database) {
    let acme = db.workspace("acme").await;
    let (poison, neighbour) = (
        db.store.admit(new_run(acme, None)).await.unwrap().run,
        db.store.admit(new_run(acme, None)).await.unwrap().run,
    );
    let charged = async |run: &crate::domain::run::Run| {
        let sql = format!("select cast(crashes as text) from jobs where run_id = {}", db.id(run.id.0));
        db.look(&sql, |rows| vec![rows.jobs[&run.id].crashes]).await.concat()
    };
    let mut delays = vec![];
    for crash in 1..=2 {
        let worker = db.worker(9).await;
        let claims = db.store.claim(worker, &["default".to_owned()], 9).await.unwrap();
        assert_eq!(claims.len(), 2);
        for (claim, _) in claims.iter().filter(|(claim, _)| claim.run.id == neighbour.id) {
            db.commit(saving(claim, claim.last_seq + 1, crash)).await;
        }
        db.expire(worker).await;
        let now = db.store.now().await.unwrap();
        let (one, other) = tokio::join!(db.store.reap(3, 9), db.second.reap(3, 9));
        assert_eq!(one.unwrap().len() + other.unwrap().len(), 2);
        assert_eq!((charged(&poison).await, charged(&neighbour).await), (crash.to_string(), "1".to_owned()));
        let sql =
            format!("select cast(run_at - {now} as text) from jobs where run_id = {}", db.id(poison.id.0));
        let delay = db.look(&sql, |rows| vec![rows.jobs[&poison.id].run_at - now]).await;
        delays.push(delay[0].parse::<i64>().unwrap());
        db.make_due().await;
    }
    assert!(delays[0] < 2_000 && delays[1] >= 2_000, "{delays:?}");
}
