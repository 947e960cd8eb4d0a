//! Runs whose next crash is their last: one at a time in a worker's hands, so that a poison takes nobody with it.

use super::{
    fixtures::{finishing, new_run, saving},
    harness::Database,
    upheld,
};
use crate::domain::{
    event::ReleaseReason,
    ids::{RunId, WorkerId, WorkspaceId},
    retry::{LAST_CHANCE, MAX_CRASHES, PROBATION_MS},
    run::{Claim, Ending},
    transition::{Reason, RunStatus},
};

upheld! {
    a_worker_begins_one_run_at_its_last_chance_at_a_time,
    a_poison_is_given_up_and_takes_nobody_with_it,
}

/// So many runs whose next crash is their last, due now.
async fn at_last_chance(db: &Database, workspace: WorkspaceId, count: usize) -> Vec<RunId> {
    let mut runs = vec![];
    for _ in 0..count {
        let run = db.store.admit(new_run(workspace, None)).await.unwrap().run.id;
        let sql = format!("update jobs set crashes = {LAST_CHANCE} where run_id = {}", db.id(run.0));
        db.edit(&sql, |rows| rows.jobs.get_mut(&run).unwrap().crashes = LAST_CHANCE).await;
        runs.push(run);
    }
    runs
}

async fn claims(db: &Database, worker: WorkerId) -> Vec<Claim> {
    let claims = db.store.claim(worker, &["default".to_owned()], 99).await.unwrap();
    claims.into_iter().map(|(claim, _)| claim).collect()
}

async fn a_worker_begins_one_run_at_its_last_chance_at_a_time(db: Database) {
    let acme = db.workspace("acme").await;
    let line = at_last_chance(&db, acme, 6).await;
    // Others are in nobody's way, and nobody in theirs.
    let fresh = db.store.admit(new_run(acme, None)).await.unwrap().run.id;
    let ids = |claims: &[Claim]| claims.iter().map(|claim| claim.run.id).collect::<Vec<_>>();
    let (one, two) = (db.worker(99).await, db.worker(99).await);
    let held = claims(&db, one).await;
    assert_eq!(ids(&held), [line[0], fresh]);
    assert!(claims(&db, one).await.is_empty());
    assert_eq!(ids(&claims(&db, two).await), [line[1]], "each worker has its own");

    // With a step saved it is no suspect any more, neither in these hands nor in the next.
    let first = &held[0];
    let last = db.commit(saving(first, first.last_seq + 1, 1)).await.last;
    let next = claims(&db, one).await;
    assert_eq!(ids(&next), [line[2]]);
    db.store.hand_back(first, last, ReleaseReason::HandBack, 0).await.unwrap();
    assert_eq!(ids(&claims(&db, one).await), [line[0]]);

    // One that lives for a while leaves room too.
    let old = format!(
        "update jobs set claimed_at = claimed_at - {PROBATION_MS} where run_id = {}",
        db.id(line[2].0)
    );
    db.edit(&old, |rows| {
        let claimed_at = &mut rows.jobs.get_mut(&line[2]).unwrap().claimed_at;
        *claimed_at = claimed_at.map(|at| at - PROBATION_MS);
    })
    .await;
    let next = claims(&db, one).await;
    assert_eq!(ids(&next), [line[3]]);

    // A planned restart changes nothing about it, and the first that comes may have it.
    db.store.hand_back(&next[0], next[0].last_seq, ReleaseReason::HandBack, 0).await.unwrap();
    assert!(claims(&db, two).await.is_empty(), "it has its own already");
    assert_eq!(claims(&db, one).await.len(), 1);
}

async fn a_poison_is_given_up_and_takes_nobody_with_it(db: Database) {
    const INNOCENTS: usize = 30;
    let acme = db.workspace("acme").await;
    let mut runs = vec![];
    for _ in 0..=INNOCENTS {
        runs.push(db.store.admit(new_run(acme, None)).await.unwrap().run);
    }
    let poison = runs.swap_remove(INNOCENTS / 2);
    let mut deaths = 0;
    while !db.now(&poison).await.status.is_terminal() {
        let worker = db.worker(99).await;
        let claims = claims(&db, worker).await;
        if claims.iter().any(|claim| claim.run.id == poison.id) {
            deaths += 1;
            assert!(deaths < MAX_CRASHES || claims.len() == 1, "nobody else is there at the last one");
        } else {
            assert!(!claims.is_empty());
            for claim in claims {
                db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
            }
        }
        db.expire(worker).await;
        db.store.reap(MAX_CRASHES, 99).await.unwrap();
        db.make_due().await;
    }
    assert_eq!((deaths, db.now(&poison).await.reason), (MAX_CRASHES, Some(Reason::CrashLimit)));
    // Each wants a worker that has just come: nobody here lives long enough to leave room for the next.
    for _ in 0..INNOCENTS {
        let worker = db.worker(99).await;
        for claim in claims(&db, worker).await {
            db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
        }
    }
    for run in runs {
        assert_eq!(db.now(&run).await.status, RunStatus::Succeeded);
    }
}
