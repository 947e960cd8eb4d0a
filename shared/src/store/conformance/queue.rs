//! Claims and leases: who may take what, and for how long it is theirs.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::Barrier;

use super::{
    fixtures::{QUEUE, new_run},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        event::EventData,
        ids::{RunId, WorkerId},
        transition::{Reason, RunStatus},
    },
    store::{Evidence, NewRun, NewWorker, Peer, Presence, StoreError},
};

upheld! {
    a_claim_moves_the_job_the_run_and_the_log_together,
    the_highest_priority_goes_first_and_then_the_oldest,
    only_what_is_due_and_in_the_named_queues_is_claimed,
    a_worker_without_a_lease_takes_nothing,
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
    claimers_take_every_job_once_and_never_more_than_the_limit,
    a_claim_keeps_to_its_limit_under_any_plan,
    a_job_that_somebody_locks_keeps_no_claimer_waiting,
}

async fn claimed(db: &Database, worker: WorkerId, queue: &str, limit: u32) -> Vec<RunId> {
    let claims = db.store.claim(worker, &[queue.to_owned()], limit).await.unwrap();
    claims.into_iter().map(|(claim, _)| claim.run.id).collect()
}

async fn a_claim_moves_the_job_the_run_and_the_log_together(db: Database) {
    let acme = db.workspace("acme").await;
    let admitted = db.store.admit(new_run(acme, None)).await.unwrap().run;
    let worker = db.worker(1).await;
    let (claim, segment) = db.store.claim(worker, &[QUEUE.to_owned()], 5).await.unwrap().remove(0);
    assert_eq!((claim.epoch, claim.worker_id, claim.last_seq), (1, worker, 2));
    assert_eq!((claim.run.status, claim.run.attempts), (RunStatus::Running, 1));
    assert_eq!(claim.run.started_at, Some(claim.now));
    assert_eq!(db.now(&admitted).await, claim.run);

    let event = EventData::RunClaimed { worker_id: worker, epoch: 1 };
    assert_eq!(segment.events[0].data(), Some(event));
    let stored = db.store.read_log(super::fixtures::cursor(&claim.run, 1), 9).await.unwrap();
    assert_eq!(serde_json::to_string(&stored).unwrap(), serde_json::to_string(&[segment]).unwrap());
    assert_eq!(db.store.held_by(worker).await.unwrap(), [(&claim).into()]);

    // The second attempt counts, and the run began when it began.
    db.expire(worker).await;
    db.store.reap(3, 9).await.unwrap();
    let again = db.claim(db.worker(1).await).await;
    assert_eq!((again.epoch, again.run.attempts, again.last_seq), (2, 2, 4));
    assert_eq!(again.run.started_at, claim.run.started_at);
}

async fn the_highest_priority_goes_first_and_then_the_oldest(db: Database) {
    let acme = db.workspace("acme").await;
    let mut made = vec![];
    for priority in [0, 5, 0, 5, -1] {
        let run = db.store.admit(NewRun { priority, ..new_run(acme, None) }).await.unwrap().run;
        made.push(run.id);
    }
    let worker = db.worker(5).await;
    let mut order = vec![];
    for _ in 0..5 {
        order.extend(claimed(&db, worker, QUEUE, 1).await);
    }
    assert_eq!(order, [made[1], made[3], made[0], made[2], made[4]]);
}

async fn only_what_is_due_and_in_the_named_queues_is_claimed(db: Database) {
    let acme = db.workspace("acme").await;
    let other = NewRun { queue: "other".to_owned(), ..new_run(acme, None) };
    let other = db.store.admit(other).await.unwrap();
    assert_eq!(other.wake.as_deref(), Some("other"));
    let later = db.store.admit(new_run(acme, None)).await.unwrap().run;
    let sql = format!("update jobs set run_at = run_at + 3600000 where run_id = {}", db.id(later.id.0));
    db.edit(&sql, |rows| rows.jobs.get_mut(&later.id).unwrap().run_at += 3_600_000).await;
    let worker = db.worker(5).await;
    assert!(claimed(&db, worker, QUEUE, 5).await.is_empty());
    assert!(db.store.claim(worker, &[], 5).await.unwrap().is_empty());
    assert_eq!(claimed(&db, worker, "other", 0).await, []);
    assert_eq!(claimed(&db, worker, "other", 5).await, [other.run.id]);
}

async fn claimers_take_every_job_once_and_never_more_than_the_limit(db: Database) {
    const CLAIMERS: u32 = 8;
    let jobs = if db.is_postgres() { 3_000 } else { 400 };
    let acme = db.workspace("acme").await;
    let chat = db.submit(acme, db.chat(acme, "one").await.id).await.run;
    // Copies of one submission, which by themselves would take a minute.
    let (uuid, series) = if db.is_postgres() {
        ("gen_random_uuid()", format!("generate_series(2, {jobs}) as n"))
    } else {
        (
            "randomblob(16)",
            format!(
                "(with recursive s(n) as (select 2 union all select n + 1 from s where n < {jobs}) select n from s) as s"
            ),
        )
    };
    let copy = |table: &str, columns: &str, values: &str, from: &str| {
        format!("insert into {table} (workspace_id, {columns}) select t.workspace_id, {values} from {from}")
    };
    let steps = [
        copy("chats", "id, last_turn", &format!("{uuid}, n"), &format!("chats t, {series}")),
        "create table copies as select workspace_id, id as chat_id, last_turn as n, id as run_id, id as one, id as two \
         from chats where last_turn > 1"
            .to_owned(),
        format!("update copies set run_id = {uuid}, one = {uuid}, two = {uuid}"),
    ];
    for step in steps {
        db.execute(&step).await.unwrap();
    }
    let runs = "insert into runs (workspace_id, id, chat_id, turn, agent, status, trigger, user_message_id, \
                assistant_message_id, queue, priority, limits) select c.workspace_id, c.run_id, c.chat_id, 1, r.agent, \
                r.status, r.trigger, c.one, c.two, r.queue, r.priority, r.limits from copies c, \
                (select * from runs limit 1) r";
    let messages = |id: &str, position: u8, role: &str, status: &str| {
        format!(
            "insert into messages (workspace_id, id, chat_id, turn, position, role, status, run_id) \
             select workspace_id, {id}, chat_id, 1, {position}, '{role}', '{status}', run_id from copies"
        )
    };
    let fill = [
        runs.to_owned(),
        messages("one", 0, "user", "completed"),
        messages("two", 1, "assistant", "streaming"),
        format!(
            "insert into jobs (workspace_id, id, kind, run_id, queue, priority, run_at) \
             select workspace_id, {uuid}, 'run', run_id, '{QUEUE}', 0, n from copies"
        ),
        "insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events) \
         select workspace_id, run_id, 1, 1, 0, '[{\"type\":\"run.queued\",\"data\":{\"status\":\"pending\"}}]' from copies"
            .to_owned(),
    ];
    let fill = format!("begin; {}; commit", fill.join("; "));
    db.execute_script(&fill).await;

    let barrier = Arc::new(Barrier::new(CLAIMERS as usize));
    let mut claimers = vec![];
    for n in 1..=CLAIMERS {
        let (db, barrier, worker) = (db.clone(), barrier.clone(), db.worker(100).await);
        claimers.push(tokio::spawn(async move {
            let store = if n % 2 == 0 { db.store.clone() } else { db.second.clone() };
            barrier.wait().await;
            let mut taken = vec![];
            loop {
                let limit = 1 + (taken.len() as u32 * n) % 17;
                let claims = store.claim(worker, &[QUEUE.to_owned()], limit).await.unwrap();
                assert!(claims.len() <= limit as usize, "{} of {limit}", claims.len());
                if claims.is_empty() {
                    return taken;
                }
                taken.extend(claims.into_iter().map(|(claim, _)| claim.run.id));
            }
        }));
    }
    let mut taken = vec![];
    for claimer in claimers {
        taken.extend(claimer.await.unwrap());
    }
    assert_eq!(taken.len(), jobs);
    assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), jobs);
    assert!(taken.contains(&chat.id));
}

async fn a_claim_keeps_to_its_limit_under_any_plan(db: Database) {
    let acme = db.workspace("acme").await;
    for _ in 0..20 {
        db.store.admit(new_run(acme, None)).await.unwrap();
    }
    let worker = db.worker(20).await;
    if let Some((pool, store)) = db.on_postgres(|_| ()) {
        // What is left is the nested loop, which would look for jobs again and again.
        let name: String = sqlx::query_scalar("select current_database()").fetch_one(&pool).await.unwrap();
        for plan in ["hashjoin", "mergejoin", "material", "memoize", "hashagg", "sort", "bitmapscan"] {
            db.execute(&format!("alter database {name} set enable_{plan} = off")).await.unwrap();
        }
        for limit in [1, 2, 3] {
            let claims = store.claim(worker, &[QUEUE.to_owned()], limit).await.unwrap();
            assert_eq!(claims.len(), limit as usize);
        }
        // Nor does it take more runs at their last chance than it may, however many there are.
        db.execute("update jobs set crashes = 2 where worker_id is null").await.unwrap();
        for (limit, taken) in [(3, 1), (9, 0)] {
            let claims = store.claim(worker, &[QUEUE.to_owned()], limit).await.unwrap();
            assert_eq!(claims.len(), taken);
        }
        store.close().await;
    } else {
        assert_eq!(claimed(&db, worker, QUEUE, 7).await.len(), 7);
    }
    assert_eq!(db.store.held_by(worker).await.unwrap().len(), 7);
}

async fn a_job_that_somebody_locks_keeps_no_claimer_waiting(db: Database) {
    let acme = db.workspace("acme").await;
    let locked = db.store.admit(new_run(acme, None)).await.unwrap().run;
    let free = db.store.admit(new_run(acme, None)).await.unwrap().run;
    let worker = db.worker(9).await;
    if let Some((pool, _)) = db.on_postgres(|_| ()) {
        let mut other = pool.begin().await.unwrap();
        let sql = "select id from jobs where run_id = $1 for update";
        sqlx::query(sql).bind(locked.id.0).execute(&mut *other).await.unwrap();
        assert_eq!(claimed(&db, worker, QUEUE, 9).await, [free.id]);
        other.rollback().await.unwrap();
        assert_eq!(claimed(&db, worker, QUEUE, 9).await, [locked.id]);
    } else {
        assert_eq!(claimed(&db, worker, QUEUE, 9).await, [locked.id, free.id]);
    }
}

async fn a_worker_without_a_lease_takes_nothing(db: Database) {
    let acme = db.workspace("acme").await;
    let run = db.store.admit(new_run(acme, None)).await.unwrap().run;
    let (expired, draining, retired) = (db.worker(1).await, db.worker(1).await, db.worker(1).await);
    db.expire(expired).await;
    db.store.heartbeat(draining, 60_000, true).await.unwrap();
    db.store.retire_worker(retired).await.unwrap();
    for worker in [expired, draining, retired, WorkerId::generate()] {
        assert!(claimed(&db, worker, QUEUE, 5).await.is_empty());
    }
    assert_eq!(db.now(&run).await.status, RunStatus::Pending);
    db.store.heartbeat(draining, 60_000, false).await.unwrap();
    assert_eq!(claimed(&db, draining, QUEUE, 5).await, [run.id]);
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
