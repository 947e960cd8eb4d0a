//! Claims: who may take what, in which order, and how much of it at once.

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
        transition::RunStatus,
    },
    store::NewRun,
};

upheld! {
    a_claim_moves_the_job_the_run_and_the_log_together,
    the_highest_priority_goes_first_and_then_the_oldest,
    only_what_is_due_and_in_the_named_queues_is_claimed,
    a_worker_without_a_lease_takes_nothing;
    sql:
    claimers_take_every_job_once_and_never_more_than_the_limit,
    a_claim_keeps_to_its_limit_under_any_plan,
    a_job_that_somebody_locks_keeps_no_claimer_waiting,
}

pub(super) async fn claimed(db: &Database, worker: WorkerId, queue: &str, limit: u32) -> Vec<RunId> {
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
