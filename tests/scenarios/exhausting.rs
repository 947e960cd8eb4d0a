//! Connections, room and file descriptors run out: new work is refused with a word about when to come back, leases are
//! kept, and everything goes on when there is enough again.

use std::time::Duration;

use longhaul_tests::client::Submitted;
use longhaul_tests::story::marks_of;
use longhaul_tests::{Setup, Tail, World};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::time::{Instant, sleep};

use crate::on_postgres;

on_postgres!(
    runs_that_use_up_all_connections_cost_no_lease,
    submissions_that_find_no_free_connection_are_told_when_to_come_back,
    a_database_without_room_rights_or_connections_holds_everything_up_and_nothing_fails,
    processes_without_file_descriptors_keep_what_they_hold_and_recover,
);

/// How soon a refusal comes: the wait for a connection, the wait for a lock, and slack.
const BOUND: Duration = Duration::from_secs(15);

async fn runs_that_use_up_all_connections_cost_no_lease(setup: Setup) {
    const RUNS: usize = 100;
    let setup = setup.short_lease().connections(3).slots(128);
    let mut world = World::start(setup.workers(0)).await;
    let client = world.client();
    let mut runs = Vec::new();
    for number in 0..RUNS {
        runs.push(client.submit("quick", &format!("Run {number}")).await);
    }
    // Nobody can read a conversation, so every attempt holds or waits for a connection.
    let mut rogue = PgConnection::connect(&world.database_url()).await.unwrap();
    rogue.execute("begin").await.unwrap();
    rogue.execute("lock table messages in access exclusive mode").await.unwrap();
    world.start_worker().await;
    world.start_worker().await;
    let held = "select count(*) from jobs where worker_id is not null";
    world.rows.until("all runs are held", held, |count| count == RUNS as i64).await;
    let leases = "select count(*) from workers where expires_at > now_ms()";
    let until = Instant::now() + world.lease() * 3;
    while Instant::now() < until {
        assert_eq!(world.rows.number(leases).await, 2, "a lease ran out");
        sleep(Duration::from_millis(100)).await;
    }
    rogue.execute("rollback").await.unwrap();
    for one in &runs {
        let run = client.ended(&one.run_id).await;
        assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1), "{run:#?}");
    }
    assert_eq!(world.rows.number("select count(*) from workers").await, 2);
    assert_eq!(world.provider.calls().len(), RUNS);
    world.finish().await;
}

async fn submissions_that_find_no_free_connection_are_told_when_to_come_back(setup: Setup) {
    let world = World::start(setup.connections(3).agent("steady", "tokens-60-50ms")).await;
    let client = world.client();
    let running = client.submit("steady", "Talk.").await;
    let tail = world.tail(&running.run_id);
    tail.hears("a1.s1.2 ").await;
    let mut rogue = PgConnection::connect(&world.database_url()).await.unwrap();
    rogue.execute("begin").await.unwrap();
    rogue.execute("lock table chats in access exclusive mode").await.unwrap();
    let submits = (0..30).map(|number| {
        let client = client.clone();
        tokio::spawn(async move {
            let begin = Instant::now();
            let body = json!({"agent": "quick", "input": format!("Submission {number}")});
            (client.post("/v1/runs", &body).await, begin.elapsed())
        })
    });
    let mut refused = 0;
    for answer in futures::future::join_all(submits).await {
        let (answer, took) = answer.unwrap();
        assert!(took < BOUND, "a refusal took {took:?}");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
        answer.refused(503, "A_RUN_BEGIN_FAILED");
        refused += 1;
    }
    assert_eq!(refused, 30);
    // What needs no lock of a chat was not held up: the stream went on.
    tail.hears("a1.s1.50 ").await;
    rogue.execute("rollback").await.unwrap();
    tail.ended().await;
    assert_eq!(client.ended(&running.run_id).await.attempts, 1);
    let next = client.submit("quick", "Now?").await;
    assert_eq!(client.ended(&next.run_id).await.outcome(), "succeeded done");
    assert_eq!(world.rows.number("select count(*) from runs").await, 2, "what was refused is not stored");
    world.finish().await;
}

/// A run in the middle of its answer.
async fn in_mid_answer(world: &World) -> (Submitted, Tail) {
    let submitted = world.client().submit("steady", "Talk.").await;
    let tail = world.tail(&submitted.run_id);
    tail.hears("a1.s1.3 ").await;
    (submitted, tail)
}

/// While the trouble lasts: no submission gets in, each is told when to come back, and the probe is red if it can know.
async fn is_refused(world: &World, probe_is_red: bool) {
    let client = world.client();
    let begin = Instant::now();
    let mut refused = 0;
    while begin.elapsed() < Duration::from_millis(1_500) {
        let answer = client.post("/v1/runs", &json!({"agent": "quick", "input": "Hello"})).await;
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
        answer.refused(503, "A_RUN_BEGIN_FAILED");
        refused += 1;
        sleep(Duration::from_millis(100)).await;
    }
    if probe_is_red {
        assert_eq!(client.get("/readyz").await.expect(503)["checks"][0]["ok"], false);
    }
    assert!(refused > 0);
}

/// As if nothing had been.
async fn went_on(world: &World, (submitted, tail): (Submitted, Tail)) {
    tail.ended().await;
    let run = world.client().ended(&submitted.run_id).await;
    assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1), "{run:#?}");
    assert_eq!(marks_of(&tail.story().text(), 1, 60), Some(1));
    let (client, body) = (world.client(), json!({"agent": "quick", "input": "Now?"}));
    let next = client.insist(&[], "/v1/runs", &submitted.run_id, &body).await;
    client.ended(&next.run_id).await;
    assert_eq!(client.get("/readyz").await.status, 200);
}

async fn a_database_without_room_rights_or_connections_holds_everything_up_and_nothing_fails(setup: Setup) {
    // A refused connection is tried again for five seconds, twice here: no lease may depend on that.
    let mut setup = setup.own_server().agent("steady", "tokens-60-30ms");
    setup.lease = Duration::from_secs(30);
    let world = World::start(setup).await;
    let url = world.database_url();
    let server = world.cluster.as_ref().unwrap().url();
    let mut rogue = PgConnection::connect(&url).await.unwrap();

    // No room, or a deadlock each time: whatever is written is refused.
    let spoil = "create function spoil() returns trigger language plpgsql as $$ begin \
                 raise exception 'spoilt' using errcode = tg_argv[0]; end $$";
    rogue.execute(spoil).await.unwrap();
    for code in ["53100", "40P01"] {
        let run = in_mid_answer(&world).await;
        for table in ["runs", "run_events"] {
            let sql = format!(
                "create trigger spoil before insert or update on {table} for each row execute function spoil('{code}')"
            );
            rogue.execute(AssertSqlSafe(sql)).await.unwrap();
        }
        is_refused(&world, false).await;
        for table in ["runs", "run_events"] {
            rogue.execute(AssertSqlSafe(format!("drop trigger spoil on {table}"))).await.unwrap();
        }
        went_on(&world, run).await;
    }

    // Nobody may write. Settings of the server reach sessions that exist.
    let run = in_mid_answer(&world).await;
    rogue.execute("alter system set default_transaction_read_only = on").await.unwrap();
    rogue.execute("select pg_reload_conf()").await.unwrap();
    is_refused(&world, true).await;
    rogue.execute("set transaction_read_only = off").await.unwrap();
    rogue.execute("alter system reset default_transaction_read_only").await.unwrap();
    rogue.execute("select pg_reload_conf()").await.unwrap();
    went_on(&world, run).await;

    // Somebody else takes every connection that there is.
    let run = in_mid_answer(&world).await;
    let mut greedy = Vec::new();
    let mut fill = async || {
        while let Ok(connection) = PgConnection::connect(&server).await {
            greedy.push(connection);
        }
    };
    fill().await;
    rogue
        .execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'longhaul'")
        .await
        .unwrap();
    for _ in 0..5 {
        fill().await;
    }
    is_refused(&world, true).await;
    greedy.clear();
    went_on(&world, run).await;
    world.finish().await;
}

async fn processes_without_file_descriptors_keep_what_they_hold_and_recover(setup: Setup) {
    let world = World::start(setup.agent("steady", "tokens-60-50ms")).await;
    let client = world.client();
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(in_mid_answer(&world).await);
    }
    // Numbers are given out from below, and standard input and output have the first three.
    let (api, worker) = (world.apis[0].process(), world.workers[0].process());
    worker.limit_files(3);
    let waiting = client.submit("quick", "Is there room?").await;
    let held_too = "select count(*) from jobs where worker_id is not null";
    world.rows.until("it is held as well", held_too, |count| count == 6).await;
    api.limit_files(3);
    // Whoever comes now has to wait in front of the door.
    let late = {
        let (client, body) = (world.client(), json!({"agent": "quick", "input": "May I come in?"}));
        tokio::spawn(async move { client.insist(&[], "/v1/runs", "late", &body).await })
    };
    for (_, tail) in &held {
        tail.hears("a1.s1.40 ").await;
    }
    assert!(!late.is_finished(), "a process without descriptors accepted a connection");
    assert_eq!(world.provider.calls_to("tokens-2").len(), 0, "or made one");
    worker.limit_files(1_024);
    api.limit_files(1_024);
    for run in held {
        went_on(&world, run).await;
    }
    for run in [waiting, late.await.unwrap()] {
        let run = client.ended(&run.run_id).await;
        assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1));
    }
    assert_eq!(world.rows.number("select count(*) from workers").await, 1, "the lease was kept");
    world.finish().await;
}
