//! Trouble that only Postgres has: transactions that lose against others, tables that change under prepared statements
//! or that somebody keeps, and rows that are updated all the time.

use std::time::Duration;

use sqlx::{ConnectOptions, PgPool, postgres::PgPoolOptions};
use tokio::time::sleep;

use super::{
    fixtures::{append, deltas, new_run, planned, saving},
    harness::Database,
    on_postgres,
};
use crate::{
    domain::{
        ids::{RunId, WorkspaceId},
        transition::RunStatus,
    },
    store::{
        AdmitError, SharedStore, StopOutcome, StoreError, Workspaces,
        postgres::{Options, SqlStore, pool::Pool},
    },
};

on_postgres! {
    a_transaction_that_the_database_rolls_back_is_done_again,
    a_stop_that_is_a_deadlocks_victim_is_done_again,
    a_submission_that_is_a_deadlocks_victim_is_done_again,
    prepared_statements_outlive_what_a_later_version_adds,
    a_migration_keeps_trying_for_a_table_that_somebody_keeps,
    a_batch_of_which_everything_is_locked_is_given_up_in_time,
    renewed_leases_leave_no_bloat,
    a_database_that_lets_nobody_in_may_do_so_later,
    connections_that_are_all_silent_are_left_to_themselves,
}

/// A store with one connection for requests, so that each call meets the statements that the last one prepared.
fn narrow(db: &Database) -> (PgPool, SharedStore) {
    db.on_postgres(|options| options.max_connections = 1).expect("these tests run on Postgres only")
}

/// From now on the first `times` changes of a run fail like that.
async fn fail(pool: &PgPool, code: &str, times: u32) {
    let sql = format!(
        "create sequence if not exists failures; alter sequence failures restart; \
         create or replace function fail() returns trigger language plpgsql as $$ begin \
         if nextval('failures') <= {times} then raise exception 'lost' using errcode = '{code}'; end if; \
         return new; end $$; \
         create or replace trigger fail before insert or update on runs for each row execute function fail()"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(pool).await.unwrap();
}

async fn a_transaction_that_the_database_rolls_back_is_done_again(db: Database) {
    let (pool, store) = narrow(&db);
    let acme = db.workspace("acme").await;
    for code in ["40001", "40P01"] {
        let claim = db.held_run(acme).await;
        let (pending, other) =
            (db.submit(acme, db.chat(acme, "a").await.id).await.run, db.chat(acme, "b").await);
        let doomed = db.submit(acme, other.id).await.run;
        fail(&pool, code, 3).await;
        let admitted = store.admit(new_run(acme, None)).await.unwrap();
        assert_eq!(db.now(&admitted.run).await.status, RunStatus::Pending);
        fail(&pool, code, 3).await;
        assert!(matches!(store.stop_run(acme, claim.run.id).await.unwrap(), StopOutcome::Requested(_)));
        fail(&pool, code, 3).await;
        assert!(matches!(store.stop_run(acme, pending.id).await.unwrap(), StopOutcome::Ended { .. }));
        fail(&pool, code, 3).await;
        assert_eq!(store.delete_chat(acme, other.id).await.unwrap().len(), 1);
        assert!(db.now(&doomed).await.status.is_terminal());
        let busy = db.submit(acme, db.chat(acme, "c").await.id).await.run;
        fail(&pool, code, 3).await;
        assert_eq!(store.supersede(acme, busy.id).await.unwrap().len(), 1);
        // Trouble without an end is told as trouble that may pass.
        fail(&pool, code, 1_000).await;
        let refused = store.admit(new_run(acme, None)).await;
        assert!(matches!(&refused, Err(AdmitError::Store(error)) if error.is_transient()), "{refused:?}");
        fail(&pool, code, 0).await;
        for run in [admitted.run.id, claim.run.id] {
            db.store.stop_run(acme, run).await.unwrap();
        }
        db.execute("update workers set expires_at = 1").await.unwrap();
        db.store.reap(3, 100).await.unwrap();
    }
    store.close().await;
}

/// Holds `mine`, waits until somebody waits for it, then asks for `theirs` and lets go of everything. The other side is
/// the one that the database gives up, perhaps twice: it has less patience.
async fn cross(pool: &PgPool, mine: String, theirs: String) -> tokio::task::JoinHandle<()> {
    let mut rogue = pool.begin().await.unwrap();
    sqlx::query("set local deadlock_timeout = '1min'").execute(&mut *rogue).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(mine)).execute(&mut *rogue).await.unwrap();
    let pool = pool.clone();
    tokio::spawn(async move {
        let waits = "select count(*) from pg_stat_activity where datname = current_database() \
                     and application_name = 'longhaul' and wait_event_type = 'Lock'";
        while sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.unwrap() == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        sqlx::raw_sql(sqlx::AssertSqlSafe(theirs)).execute(&mut *rogue).await.unwrap();
        rogue.rollback().await.unwrap();
    })
}

/// How often a deadlock was found in this database. Sessions tell that when they have been idle for a second.
async fn deadlocks(db: &Database) -> String {
    let sql = "select deadlocks::text from pg_stat_database where datname = current_database()";
    for _ in 0..50 {
        if db.texts(sql).await != ["0"] {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    db.texts(sql).await.remove(0)
}

async fn a_stop_that_is_a_deadlocks_victim_is_done_again(db: Database) {
    let (pool, store) = narrow(&db);
    let acme = db.workspace("acme").await;
    let run = db.submit(acme, db.chat(acme, "one").await.id).await.run;
    let (id, chat) = (db.id(run.id.0), db.id(run.chat_id.0));
    let rogue = cross(
        &pool,
        format!("select from jobs where run_id = {id} for update"),
        format!("select from chats where id = {chat} for update"),
    );
    let rogue = rogue.await;
    let outcome = store.stop_run(acme, run.id).await.unwrap();
    assert!(matches!(outcome, StopOutcome::Ended { .. }), "{outcome:?}");
    rogue.await.unwrap();
    store.close().await;
    assert_ne!(deadlocks(&db).await, "0", "there was none to survive");
}

async fn a_submission_that_is_a_deadlocks_victim_is_done_again(db: Database) {
    let (pool, store) = narrow(&db);
    let acme = db.workspace("acme").await;
    let before = db.submit(acme, db.chat(acme, "one").await.id).await.run;
    db.store.stop_run(acme, before.id).await.unwrap();
    let (id, chat) = (db.id(before.id.0), db.id(before.chat_id.0));
    // A copy of the run that takes the chat's slot and is never committed.
    let rogue = cross(
        &pool,
        format!(
            "insert into runs (workspace_id, id, chat_id, turn, agent, status, trigger, user_message_id, \
             assistant_message_id, queue, priority, limits) select workspace_id, gen_random_uuid(), chat_id, 99, agent, \
             'pending', trigger, user_message_id, assistant_message_id, queue, priority, limits from runs \
             where id = {id}"
        ),
        format!("select from chats where id = {chat} for update"),
    );
    let rogue = rogue.await;
    let admitted = store.admit(new_run(acme, Some(before.chat_id))).await.unwrap();
    assert_eq!((admitted.run.turn, admitted.status), (2, RunStatus::Pending));
    rogue.await.unwrap();
    store.close().await;
    assert_ne!(deadlocks(&db).await, "0", "there was none to survive");
}

/// Everything that reads or writes rows, once, with the run's steps and calls among them.
async fn use_everything(db: &Database, store: &SharedStore, acme: WorkspaceId) -> RunId {
    let claim = db.held_run(acme).await;
    let (run, chat) = (claim.run.id, claim.run.chat_id);
    let mut step = saving(&claim, claim.last_seq + 1, 1);
    step.calls = vec![planned(&claim, 1, 1)];
    db.commit(step).await;
    store.run(acme, run).await.unwrap();
    store.records(acme, &[run]).await.unwrap();
    store.chat(acme, chat).await.unwrap();
    store.latest_run(acme, chat).await.unwrap();
    store.messages(acme, chat, super::fixtures::first(10)).await.unwrap();
    store.list_runs(acme, &crate::store::RunFilter::default(), super::fixtures::first(10)).await.unwrap();
    store.list_chats(acme, super::fixtures::first(10)).await.unwrap();
    store.list_workers().await.unwrap();
    store.read_log(super::fixtures::cursor(&claim.run, 0), 10).await.unwrap();
    store.admit(new_run(acme, Some(chat))).await.unwrap();
    store.stop_run(acme, run).await.unwrap();
    db.expire(claim.worker_id).await;
    // Its end settles the call, for which steps, calls and log are read.
    let outcome = store.stop_run(acme, run).await.unwrap();
    assert!(matches!(outcome, StopOutcome::Ended { .. }), "{outcome:?}");
    assert_eq!(store.delete_chat(acme, chat).await.unwrap().len(), 1);
    run
}

async fn prepared_statements_outlive_what_a_later_version_adds(db: Database) {
    let (pool, store) = narrow(&db);
    let acme = db.workspace("acme").await;
    use_everything(&db, &store, acme).await;
    let tables: Vec<String> =
        sqlx::query_scalar("select tablename::text from pg_tables where schemaname = 'public'")
            .fetch_all(&pool)
            .await
            .unwrap();
    assert!(tables.len() > 8, "{tables:?}");
    for table in tables {
        db.execute(&format!("alter table {table} add column of_a_later_version text")).await.unwrap();
    }
    use_everything(&db, &store, acme).await;
    // On the connections for commits and claims too.
    let claim = db.held_run(acme).await;
    db.commit(append(&claim, claim.last_seq + 1, deltas(1, 1))).await;
    store.close().await;
}

async fn a_migration_keeps_trying_for_a_table_that_somebody_keeps(db: Database) {
    let (pool, store) = narrow(&db);
    let mut rogue = pool.begin().await.unwrap();
    sqlx::query("lock table _sqlx_migrations in access exclusive mode").execute(&mut *rogue).await.unwrap();
    let migrating = tokio::spawn({
        let store = store.clone();
        async move { store.migrate().await }
    });
    // It never waits for long: whoever comes behind it would wait as well.
    let waits = "select coalesce(max(extract(epoch from clock_timestamp() - query_start)), 0)::float8 \
                 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let mut longest: f64 = 0.0;
    for _ in 0..60 {
        longest = longest.max(sqlx::query_scalar(waits).fetch_one(&pool).await.unwrap());
        sleep(Duration::from_millis(100)).await;
    }
    assert!(!migrating.is_finished(), "it has not given up");
    assert!(longest > 0.1 && longest < 3.0, "it waited {longest} s at a time");
    rogue.rollback().await.unwrap();
    migrating.await.unwrap().unwrap();
    store.close().await;
}

async fn a_batch_of_which_everything_is_locked_is_given_up_in_time(db: Database) {
    let (pool, store) = narrow(&db);
    let acme = db.workspace("acme").await;
    let mut batch = vec![];
    for _ in 0..16 {
        let claim = db.held_run(acme).await;
        batch.push(append(&claim, claim.last_seq + 1, deltas(1, 1)));
    }
    let mut rogue = pool.begin().await.unwrap();
    sqlx::query("lock table run_events in exclusive mode").execute(&mut *rogue).await.unwrap();
    let begin = std::time::Instant::now();
    let results = store.commit(&batch).await;
    assert!(begin.elapsed() < Duration::from_secs(14), "it took {:?}", begin.elapsed());
    assert!(results.iter().all(|result| result.as_ref().is_err_and(StoreError::is_transient)));
    rogue.rollback().await.unwrap();
    assert!(store.commit(&batch).await.iter().all(Result::is_ok));
    store.close().await;
}

async fn renewed_leases_leave_no_bloat(db: Database) {
    const BEATS: i64 = 3_000;
    let (pool, store) = narrow(&db);
    let workers = [db.worker(8).await, db.worker(8).await];
    for beat in 0..BEATS {
        store.heartbeat(workers[beat as usize % 2], 60_000, false).await.unwrap();
    }
    store.close().await;
    let (mut updates, mut hot) = (0, 0);
    for _ in 0..50 {
        let sql = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'workers'";
        (updates, hot) = sqlx::query_as::<_, (i64, i64)>(sql).fetch_one(&pool).await.unwrap();
        if updates >= BEATS {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!(updates >= BEATS && hot * 10 >= updates * 9, "{hot} of {updates} were made in place");
    let pages: i64 =
        sqlx::query_scalar("select pg_relation_size('workers') / 8192").fetch_one(&pool).await.unwrap();
    // Without pruning they would lie on more than forty.
    assert!(pages <= 16, "two rows lie on {pages} pages");
}

async fn a_database_that_lets_nobody_in_may_do_so_later(db: Database) {
    let (pool, store) = narrow(&db);
    store.close().await;
    let nowhere = (*pool.connect_options()).clone().database("not_there").to_url_lossy().to_string();
    let store = SqlStore::open(&Options::new(nowhere)).unwrap();
    let error = store.now().await.unwrap_err();
    assert!(error.is_transient() && error.is_about_access() && !error.is_about_locks(), "{error:?}");
    store.close().await;
}

async fn connections_that_are_all_silent_are_left_to_themselves(db: Database) {
    const PATIENCE: Duration = Duration::from_millis(200);
    let (admin, store) = narrow(&db);
    store.close().await;
    let options = PgPoolOptions::new().max_connections(2).acquire_timeout(PATIENCE);
    let pool = Pool::open(options, (*admin.connect_options()).clone(), PATIENCE * 10);
    let asked = async || sqlx::query("select 1").execute(pool.get()).await;
    let lane = pool.get();
    let one = lane.0.acquire().await.unwrap();
    sleep(PATIENCE * 11).await;
    asked().await.expect("one that answers is enough");
    let other = lane.0.acquire().await.unwrap();
    asked().await.expect_err("they may yet come back");
    drop(other);
    asked().await.expect("one came back");
    let other = lane.0.acquire().await.unwrap();
    let mut tries = 0;
    while asked().await.is_err() {
        tries += 1;
        assert!(tries < 100, "nobody gets another connection");
    }
    // What belongs to the old ones ends with them.
    assert!(lane.0.is_closed() && !pool.get().0.is_closed());
    drop((one, other));
    pool.close().await;
    asked().await.expect_err("it is closed, not silent");
}
