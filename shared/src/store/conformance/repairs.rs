//! The reconcile: active runs without a job, holders that contradict each other, what the end of a run left open.

use super::{
    fixtures::{finishing, new_run},
    harness::Database,
    upheld,
};
use crate::domain::{ids::WorkerId, run::Ending};

upheld! {
    reconcile_finds_nothing_in_a_healthy_database,
    reconcile_gives_active_runs_their_jobs_back,
    reconcile_frees_runs_whose_holder_is_contradictory;
    sql:
    reconcile_closes_what_the_end_of_a_run_left_open,
}

async fn reconcile_finds_nothing_in_a_healthy_database(db: Database) {
    let acme = db.workspace("acme").await;
    db.held_run(acme).await;
    let chat = db.chat(acme, "one").await.id;
    for _ in 0..3 {
        db.submit(acme, chat).await;
    }
    let claim = db.claim(db.worker(1).await).await;
    db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
    db.store.admit(new_run(acme, None)).await.unwrap();
    let before = db.everything().await;
    assert_eq!(db.store.reconcile().await.unwrap(), 0);
    assert_eq!(db.everything().await, before);
}

async fn reconcile_gives_active_runs_their_jobs_back(db: Database) {
    let acme = db.workspace("acme").await;
    let running = db.held_run(acme).await;
    let pending = db.store.admit(new_run(acme, None)).await.unwrap().run;
    db.edit("delete from jobs", |rows| rows.jobs.clear()).await;
    assert_eq!(db.store.reconcile().await.unwrap(), 2);
    assert_eq!(db.store.reconcile().await.unwrap(), 0);
    assert_eq!(db.claim(db.worker(1).await).await.run.id, pending.id);

    // Nobody knows who held the other one: it is an orphan, and its epoch goes on.
    let released = db.store.reap(3, 9).await.unwrap();
    assert_eq!((released.len(), released[0].run_id), (1, running.run.id));
    let next = db.claim(db.worker(1).await).await;
    assert_eq!((next.run.id, next.epoch, next.run.attempts), (running.run.id, running.epoch + 1, 2));
}

async fn reconcile_frees_runs_whose_holder_is_contradictory(db: Database) {
    let acme = db.workspace("acme").await;
    let nobody = WorkerId::generate();
    for _ in 0..3 {
        db.store.admit(new_run(acme, None)).await.unwrap();
    }
    db.edit(&format!("update jobs set worker_id = {}", db.id(nobody.0)), |rows| {
        rows.jobs.values_mut().for_each(|job| job.worker_id = Some(nobody));
    })
    .await;
    let orphan = db.held_run(acme).await;
    db.expire(orphan.worker_id).await;
    let released = db.store.reap(3, 2).await.unwrap();
    assert_eq!(released.len(), 1, "what cannot be reaped takes nobody's place");
    assert_eq!(released[0].run_id, orphan.run.id);

    let held = db.claim(db.worker(1).await).await;
    assert_eq!(held.run.id, orphan.run.id, "the others are not to be had yet");
    let id = held.run.id;
    db.edit(&format!("update jobs set worker_id = null where run_id = {}", db.id(id.0)), |rows| {
        rows.jobs.get_mut(&id).unwrap().worker_id = None;
    })
    .await;
    assert_eq!(db.store.reconcile().await.unwrap(), 4);
    assert_eq!(db.store.reconcile().await.unwrap(), 0);
    let released = db.store.reap(3, 9).await.unwrap();
    assert_eq!((released.len(), released[0].run_id), (1, held.run.id));
    db.forgive().await;
    let claims = db.store.claim(db.worker(9).await, &["default".to_owned()], 9).await.unwrap();
    assert_eq!(claims.len(), 4);
}

async fn reconcile_closes_what_the_end_of_a_run_left_open(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    db.commit(finishing(&claim, claim.last_seq + 1, Ending::stopped())).await;
    let (ws, id, job) = (db.id(acme.0), db.id(claim.run.id.0), db.id(WorkerId::generate().0));
    db.execute("update messages set status = 'streaming' where position = 1").await.unwrap();
    let sql = format!(
        "insert into jobs (workspace_id, id, kind, run_id, queue, priority, run_at) \
         values ({ws}, {job}, 'run', {id}, 'default', 0, 0)"
    );
    db.execute(&sql).await.unwrap();
    assert_eq!(db.store.reconcile().await.unwrap(), 2);
    assert_eq!(db.store.reconcile().await.unwrap(), 0);
}
