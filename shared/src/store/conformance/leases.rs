//! Leases: how long they last, what their holders are told, and who is believed to be dead.

use tokio::sync::Barrier;

use super::{
    fixtures::{QUEUE, new_run},
    harness::Database,
    queue::claimed,
    upheld,
};
use crate::{
    domain::{ids::WorkerId, transition::Reason},
    store::{Evidence, NewWorker, Peer, Presence, StoreError},
};

upheld! {
    a_heartbeat_extends_the_lease,
    a_worker_is_told_which_of_its_runs_are_to_stop,
    an_expired_lease_is_never_revived,
    a_retired_worker_holds_no_lease,
    a_worker_that_is_proven_dead_loses_its_lease_at_once_and_only_once,
    a_heartbeat_never_revives_a_worker_that_is_proven_dead,
    a_suspicion_ends_only_leases_that_were_not_renewed_in_time,
    a_suspicion_never_ends_the_lease_of_a_worker_that_renews_it,
    workers_are_listed_with_what_they_hold;
    sql:
    a_heartbeat_needs_nothing_but_the_workers_row,
    peers_are_the_live_workers_that_can_be_asked,
    a_heartbeat_and_a_reaper_never_both_win,
}

async fn a_heartbeat_extends_the_lease(db: Database) {
    let worker = db.worker(1).await;
    let now = db.store.now().await.unwrap();
    db.store.heartbeat(worker, 600_000, false).await.unwrap();
    assert!(db.store.list_workers().await.unwrap()[0].expires_at >= now + 600_000);
}

async fn a_heartbeat_needs_nothing_but_the_workers_row(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    db.store.stop_run(acme, claim.run.id).await.unwrap();
    db.execute("alter table runs rename to runs_out_of_reach").await.unwrap();
    db.store.stop_requests(claim.worker_id).await.unwrap_err();
    db.store.heartbeat(claim.worker_id, 60_000, false).await.unwrap();
    db.execute("alter table runs_out_of_reach rename to runs").await.unwrap();
}

async fn a_worker_is_told_which_of_its_runs_are_to_stop(db: Database) {
    let acme = db.workspace("acme").await;
    let (one, two) = (db.held_run(acme).await, db.held_run(acme).await);
    assert!(db.store.stop_requests(one.worker_id).await.unwrap().is_empty());
    db.store.stop_run(acme, one.run.id).await.unwrap();
    db.store.delete_chat(acme, two.run.chat_id).await.unwrap();
    for (claim, reason) in [(&one, Reason::Stop), (&two, Reason::ChatDeleted)] {
        let told = db.store.stop_requests(claim.worker_id).await.unwrap();
        let told: Vec<_> = told.iter().map(|request| (request.run_id, request.reason)).collect();
        assert_eq!(told, [(claim.run.id, reason)]);
    }
}

async fn an_expired_lease_is_never_revived(db: Database) {
    let worker = db.worker(1).await;
    db.expire(worker).await;
    for worker in [worker, WorkerId::generate()] {
        let refused = db.store.heartbeat(worker, 60_000, false).await;
        assert!(matches!(refused, Err(StoreError::LeaseLost)), "{refused:?}");
    }
    assert!(!db.store.list_workers().await.unwrap()[0].is_alive);
}

async fn a_retired_worker_holds_no_lease(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    assert!(db.store.reap(3, 9).await.unwrap().is_empty());
    db.store.retire_worker(claim.worker_id).await.unwrap();
    let refused = db.store.heartbeat(claim.worker_id, 60_000, false).await;
    assert!(matches!(refused, Err(StoreError::LeaseLost)), "{refused:?}");
    assert_eq!(db.store.reap(3, 9).await.unwrap().len(), 1);

    let other = db.claim(db.worker(1).await).await;
    assert_eq!(db.store.retire_all_workers().await.unwrap(), 1, "the other one was retired before");
    assert_eq!(db.store.reap(3, 9).await.unwrap()[0].run_id, other.run.id);
}

async fn a_worker_that_is_proven_dead_loses_its_lease_at_once_and_only_once(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    assert!(db.store.expire_worker(claim.worker_id, Evidence::Proof).await.unwrap());
    let row = || async { db.store.list_workers().await.unwrap().remove(0) };
    let ended = row().await;
    assert!(ended.draining && ended.expires_at <= db.store.now().await.unwrap());
    assert!(claimed(&db, claim.worker_id, QUEUE, 5).await.is_empty());
    let released = db.store.reap(3, 9).await.unwrap();
    assert_eq!(released.iter().map(|one| one.run_id).collect::<Vec<_>>(), [claim.run.id]);
    // Its end stays what it was, whoever else finds it dead.
    db.expire(claim.worker_id).await;
    for worker in [claim.worker_id, WorkerId::generate()] {
        assert!(!db.store.expire_worker(worker, Evidence::Proof).await.unwrap());
    }
    assert_eq!(row().await.expires_at, 1);
}

async fn a_heartbeat_never_revives_a_worker_that_is_proven_dead(db: Database) {
    let acme = db.workspace("acme").await;
    db.store.admit(new_run(acme, None)).await.unwrap();
    let mut beats_before = 0;
    for round in 0..200 {
        let worker = db.worker(1).await;
        db.forgive().await;
        let claim = db.claim(worker).await;
        let barrier = Barrier::new(2);
        let beat = async {
            barrier.wait().await;
            db.store.heartbeat(worker, 60_000, false).await
        };
        let expire = async {
            barrier.wait().await;
            db.second.expire_worker(worker, Evidence::Proof).await
        };
        // Either may be polled first.
        let (beat, expired) = if round % 2 == 0 {
            tokio::join!(beat, expire)
        } else {
            let (expired, beat) = tokio::join!(expire, beat);
            (beat, expired)
        };
        assert!(expired.unwrap(), "round {round}: its lease was alive");
        match beat {
            Ok(()) => beats_before += 1,
            Err(StoreError::LeaseLost) => {}
            other => panic!("round {round}: {other:?}"),
        }
        let refused = db.store.heartbeat(worker, 60_000, false).await;
        assert!(matches!(refused, Err(StoreError::LeaseLost)), "round {round}: {refused:?}");
        assert!(db.store.list_workers().await.unwrap().iter().all(|row| !row.is_alive), "round {round}");
        let released = db.store.reap(1_000, 9).await.unwrap();
        assert_eq!(released.iter().map(|one| one.run_id).collect::<Vec<_>>(), [claim.run.id]);
        db.edit("delete from workers", |rows| rows.workers.clear()).await;
    }
    assert!((1..200).contains(&beats_before), "{beats_before} heartbeats came first");
}

/// A worker that promises to renew its row so often, and last did so as long ago.
async fn renewed(db: &Database, renewal_ms: i64, ago_ms: i64) -> WorkerId {
    let id = WorkerId::generate();
    let (host, version) = ("t".to_owned(), "0".to_owned());
    let worker = NewWorker { id, host, version, slots: 1, lease_ms: 60_000, renewal_ms, presence: None };
    db.store.register_worker(&worker).await.unwrap();
    let sql = format!("update workers set renewed_at = renewed_at - {ago_ms} where id = {}", db.id(id.0));
    db.edit(&sql, |rows| rows.workers.get_mut(&id).unwrap().renewed_at -= ago_ms).await;
    id
}

async fn a_suspicion_ends_only_leases_that_were_not_renewed_in_time(db: Database) {
    let acme = db.workspace("acme").await;
    for (renewal_ms, ago_ms, is_dead) in [(60_000, 0, false), (60_000, 30_000, false), (60_000, 60_001, true)]
    {
        let worker = renewed(&db, renewal_ms, ago_ms).await;
        assert_eq!(db.store.expire_worker(worker, Evidence::Suspicion).await.unwrap(), is_dead);
        let beat = db.store.heartbeat(worker, 60_000, false).await;
        assert_eq!(beat.is_err(), is_dead, "{ago_ms}: {beat:?}");
        // From a heartbeat on the time runs anew, and a proof needs no time.
        assert!(!db.store.expire_worker(worker, Evidence::Suspicion).await.unwrap());
        assert_eq!(db.store.expire_worker(worker, Evidence::Proof).await.unwrap(), !is_dead);
    }
    // What a dead one held goes on.
    db.store.admit(new_run(acme, None)).await.unwrap();
    let claim = db.claim(renewed(&db, 1_000, 1_001).await).await;
    assert!(db.store.expire_worker(claim.worker_id, Evidence::Suspicion).await.unwrap());
    assert_eq!(db.store.reap(3, 9).await.unwrap()[0].run_id, claim.run.id);
}

async fn a_suspicion_never_ends_the_lease_of_a_worker_that_renews_it(db: Database) {
    let (mut refuted, mut believed) = (0, 0);
    for round in 0..if db.is_postgres() { 400 } else { 100 } {
        // Overdue already: either the heartbeat comes first, or it comes too late.
        let worker = renewed(&db, 30_000, 30_001).await;
        let barrier = Barrier::new(2);
        let beat = async {
            barrier.wait().await;
            db.store.heartbeat(worker, 60_000, false).await
        };
        let suspect = async {
            barrier.wait().await;
            db.second.expire_worker(worker, Evidence::Suspicion).await
        };
        let (beat, expired) = if round % 2 == 0 {
            tokio::join!(beat, suspect)
        } else {
            let (expired, beat) = tokio::join!(suspect, beat);
            (beat, expired)
        };
        match (beat, expired.unwrap()) {
            (Ok(()), false) => refuted += 1,
            (Err(StoreError::LeaseLost), true) => believed += 1,
            other => panic!("round {round}: {other:?}"),
        }
    }
    assert!(refuted > 0 && believed > 0, "{refuted} refuted, {believed} believed");
}

async fn peers_are_the_live_workers_that_can_be_asked(db: Database) {
    let at = |address: &str, place: Option<&str>| {
        Some(Presence { address: address.parse().unwrap(), place: place.map(str::to_owned) })
    };
    let mut peers = vec![];
    for presence in
        [at("127.0.0.1:4690", Some("here")), None, at("[2001:db8::1]:80", None), at("192.0.2.1:1", None)]
    {
        let id = WorkerId::generate();
        let (host, version) = ("t".to_owned(), "0".to_owned());
        let worker = NewWorker {
            id,
            host,
            version,
            slots: 1,
            lease_ms: 60_000,
            renewal_ms: 60_000,
            presence: presence.clone(),
        };
        db.store.register_worker(&worker).await.unwrap();
        peers.extend(presence.map(|presence| Peer { id, presence }));
    }
    assert_eq!(db.store.live_peers().await.unwrap(), peers);
    db.expire(peers.remove(2).id).await;
    assert_eq!(db.store.live_peers().await.unwrap(), peers);
    // An address of another version is no reason to look after nobody.
    let sql =
        format!("update workers set presence_address = 'a moon' where id = {}", db.id(peers.remove(0).id.0));
    db.execute(&sql).await.unwrap();
    assert_eq!(db.store.live_peers().await.unwrap(), peers);
}

async fn a_heartbeat_and_a_reaper_never_both_win(db: Database) {
    let acme = db.workspace("acme").await;
    db.store.admit(new_run(acme, None)).await.unwrap();
    let rounds = if db.is_postgres() { 400 } else { 80 };
    let (mut renewed, mut reaped) = (0, 0);
    for round in 0..rounds {
        let worker = WorkerId::generate();
        let new = NewWorker {
            id: worker,
            host: "t".into(),
            version: "0".into(),
            slots: 1,
            lease_ms: 60_000,
            renewal_ms: 60_000,
            presence: None,
        };
        db.store.register_worker(&new).await.unwrap();
        db.forgive().await;
        let claim = db.claim(worker).await;
        // The lease runs out about when both of them look.
        let left = i64::from(round % 8);
        let until = db.store.now().await.unwrap() + left;
        let sql = format!("update workers set expires_at = {until} where id = {}", db.id(worker.0));
        db.edit(&sql, |rows| rows.workers.get_mut(&worker).unwrap().expires_at = until).await;
        let barrier = Barrier::new(2);
        let renew = async {
            barrier.wait().await;
            tokio::time::sleep(std::time::Duration::from_millis(left as u64 / 2)).await;
            db.store.heartbeat(worker, 60_000, false).await
        };
        let reap = async {
            barrier.wait().await;
            loop {
                let over = db.second.now().await.unwrap() > until + 5;
                let released = db.second.reap(1_000, 9).await.unwrap();
                if over || !released.is_empty() {
                    return released;
                }
            }
        };
        let (beat, taken) = tokio::join!(renew, reap);
        match (beat, taken.len()) {
            (Ok(()), 0) => {
                renewed += 1;
                assert_eq!(db.now(&claim.run).await.worker_id, Some(worker));
                db.expire(worker).await;
                assert_eq!(db.store.reap(1_000, 9).await.unwrap().len(), 1);
            }
            (Err(StoreError::LeaseLost), 1) => reaped += 1,
            other => panic!("round {round}: {other:?}"),
        }
        let rows = db.store.list_workers().await.unwrap();
        assert!(rows.iter().all(|row| !row.is_alive), "round {round}: a dead worker came back");
        db.edit("delete from workers", |rows| rows.workers.clear()).await;
    }
    assert!(renewed > 0 && reaped > 0, "{renewed} renewed, {reaped} reaped");
}

async fn workers_are_listed_with_what_they_hold(db: Database) {
    let acme = db.workspace("acme").await;
    let idle = db.worker(3).await;
    let claim = db.held_run(acme).await;
    db.expire(idle).await;
    let rows = db.store.list_workers().await.unwrap();
    let found: Vec<_> = rows.iter().map(|row| (row.id, row.held, row.slots, row.is_alive)).collect();
    assert_eq!(found, [(claim.worker_id, 1, 1, true), (idle, 0, 3, false)]);
}
