//! The database restarts, loses its connections, falls silent and is migrated: what was accepted is kept, what was
//! begun goes on where it was, and nobody takes over from a worker that lives.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use longhaul_tests::client::Submitted;
use longhaul_tests::story::marks_of;
use longhaul_tests::{At, Client, Script, Setup, Tail, Turn, Way, World};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use crate::on_postgres;

on_postgres!(
    a_database_that_restarts_in_mid_run_costs_nothing_that_was_accepted,
    sessions_that_are_ended_at_random_cost_no_run_its_worker,
    an_api_whose_database_is_silent_says_so_and_recovers,
    a_locked_row_delays_its_own_run_only,
    migrations_under_load_disturb_nobody,
);

/// How soon a call is answered although the database says nothing: the wait for a connection, and slack.
const BOUND: Duration = Duration::from_secs(12);

/// Runs that are under way, each with a tail, spread over the API processes.
async fn busy(world: &World, agent: &str, count: usize) -> Vec<(Submitted, Tail)> {
    let mut runs = Vec::new();
    for number in 0..count {
        let api = number % world.apis.len();
        let submitted = world.client_of(api).submit(agent, &format!("Run {number}")).await;
        let tail = world.tail_from(&submitted.run_id, 0, api);
        runs.push((submitted, tail));
    }
    for (_, tail) in &runs {
        tail.hears("a1.s1.2 ").await;
    }
    runs
}

/// Each ended well in its first attempt, was told whole, and was asked for once.
async fn undisturbed(world: &World, runs: &[(Submitted, Tail)], tokens: usize) {
    for (submitted, tail) in runs {
        tail.ended().await;
        let run = world.client().ended(&submitted.run_id).await;
        assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1), "{run:#?}");
        assert_eq!(marks_of(&tail.story().text(), 1, tokens), Some(1));
    }
}

/// Submits one after another, each until it is accepted, until told to end.
fn keep_submitting(world: &World, name: &str) -> (tokio::sync::oneshot::Sender<()>, Submitting) {
    let clients: Vec<Client> = (0..world.apis.len()).map(|api| world.client_of(api)).collect();
    let (end, mut ends) = tokio::sync::oneshot::channel();
    let name = name.to_owned();
    let submitting = tokio::spawn(async move {
        let mut accepted = Vec::new();
        while ends.try_recv().is_err() {
            let key = format!("{name}-{}", accepted.len());
            let body = json!({"agent": "quick", "input": key});
            accepted.push(clients[0].insist(&clients[1..], "/v1/runs", &key, &body).await);
            sleep(Duration::from_millis(20)).await;
        }
        accepted
    });
    (end, submitting)
}

type Submitting = tokio::task::JoinHandle<Vec<Submitted>>;

async fn a_database_that_restarts_in_mid_run_costs_nothing_that_was_accepted(setup: Setup) {
    const TOKENS: usize = 130;
    let agent = format!("tokens-{TOKENS}-50ms");
    let mut world = World::start(setup.own_server().apis(2).workers(2).agent("steady", &agent)).await;
    let runs = busy(&world, "steady", 8).await;
    let submitters = [keep_submitting(&world, "first"), keep_submitting(&world, "second")];
    for (restart, mark) in ["a1.s1.10 ", "a1.s1.40 ", "a1.s1.70 ", "a1.s1.100 "].into_iter().enumerate() {
        for (_, tail) in &runs {
            tail.hears(mark).await;
        }
        let cluster = world.cluster.as_mut().unwrap();
        if restart % 2 == 0 { cluster.crash().await.unwrap() } else { cluster.restart().await.unwrap() }
    }
    undisturbed(&world, &runs, TOKENS).await;
    let mut accepted = Vec::new();
    for (end, submitting) in submitters {
        end.send(()).unwrap();
        accepted.extend(submitting.await.unwrap());
    }
    assert!(accepted.len() >= 20, "too few submissions to mean anything: {}", accepted.len());
    let ids: BTreeSet<&str> = accepted.iter().map(|one| one.run_id.as_str()).collect();
    assert_eq!(ids.len(), accepted.len(), "a run for each key");
    for one in &accepted {
        assert_eq!(world.client().ended(&one.run_id).await.outcome(), "succeeded done");
    }
    let count = world.rows.number("select count(*) from runs").await;
    assert_eq!(count, (runs.len() + accepted.len()) as i64, "nothing was stored that nobody was told of");
    for api in 0..2 {
        assert_eq!(world.client_of(api).get("/readyz").await.status, 200);
    }
    println!("{} submissions were accepted over four restarts", accepted.len());
    world.finish().await;
}

async fn sessions_that_are_ended_at_random_cost_no_run_its_worker(setup: Setup) {
    const TOKENS: usize = 100;
    let agent = format!("tokens-{TOKENS}-50ms");
    let world = World::start(setup.apis(2).workers(2).agent("steady", &agent)).await;
    let runs = busy(&world, "steady", 8).await;
    let (end, submitting) = keep_submitting(&world, "only");
    let mut rogue = PgConnection::connect(&world.database_url()).await.unwrap();
    let mut killed = 0;
    while runs.iter().any(|(_, tail)| tail.story().end.is_none()) {
        // One at a time, whatever it does; only the product's own in this world's database.
        killed += sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() \
             and application_name = 'longhaul' order by random() limit 1",
        )
        .execute(&mut rogue)
        .await
        .unwrap()
        .rows_affected();
        sleep(Duration::from_millis(200)).await;
    }
    undisturbed(&world, &runs, TOKENS).await;
    end.send(()).unwrap();
    let accepted = submitting.await.unwrap();
    for one in &accepted {
        assert_eq!(world.client().ended(&one.run_id).await.outcome(), "succeeded done");
    }
    let count = world.rows.number("select count(*) from runs").await;
    assert_eq!(count, (runs.len() + accepted.len()) as i64);
    assert!(killed >= 15, "{killed} are too few to mean anything");
    println!("{killed} sessions were ended, {} submissions accepted meanwhile", accepted.len());
    world.finish().await;
}

/// A refusal that says when to come back, in good time.
async fn unavailable(client: &Client, method: reqwest::Method, path: &str, body: Option<&Value>, code: &str) {
    let begin = Instant::now();
    let request = client.request(method, path);
    let request = body.into_iter().fold(request, reqwest::RequestBuilder::json);
    let answer = client.send(request).await.unwrap();
    assert!(begin.elapsed() < BOUND, "{path} took {:?}", begin.elapsed());
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert_eq!(answer.refused(503, code)["retryable"], true);
}

async fn an_api_whose_database_is_silent_says_so_and_recovers(setup: Setup) {
    let mut world = World::start(setup.apis(1)).await;
    let cable = world.start_api_on_a_cable().await;
    world.provider.script("helper", Script::new([Turn::marked(30)]));
    let gate = world.provider.gate("helper", At::Token(5));
    let client = world.client_of(1);
    let submitted = client.submit("helper", "Talk.").await;
    let (begun_here, elsewhere) =
        (world.tail_from(&submitted.run_id, 0, 1), world.tail_from(&submitted.run_id, 0, 0));
    gate.reached().await;
    begun_here.hears("a1.s1.4 ").await;

    cable.freeze(Way::Both);
    let body = json!({"agent": "quick", "input": "Anybody there?"});
    let run = format!("/v1/runs/{}", submitted.run_id);
    let (get, post) = (reqwest::Method::GET, reqwest::Method::POST);
    tokio::join!(
        unavailable(&client, get.clone(), &run, None, "UNAVAILABLE"),
        unavailable(&client, get.clone(), "/v1/runs", None, "UNAVAILABLE"),
        unavailable(&client, post, "/v1/runs", Some(&body), "A_RUN_BEGIN_FAILED"),
        async {
            let begin = Instant::now();
            let readiness = client.get("/readyz").await.expect(503);
            assert!(begin.elapsed() < BOUND, "it took {:?}", begin.elapsed());
            assert_eq!(readiness["checks"][0]["ok"], false);
        },
    );
    // Others do not mind, and what goes through Redis still comes here.
    gate.open();
    elsewhere.ended().await;
    assert_eq!(client.get("/livez").await.status, 200);

    cable.pass();
    let begin = Instant::now();
    let next = client.insist(&[], "/v1/runs", "after", &body).await;
    assert!(begin.elapsed() < BOUND, "it took {:?}", begin.elapsed());
    world.client().ended(&next.run_id).await;
    begun_here.ended().await;
    assert_eq!(client.get("/readyz").await.status, 200);
    let all = join_all((0..30).map(|_| client.run(&submitted.run_id))).await;
    assert!(all.iter().all(|run| run.outcome() == "succeeded done"), "the pool is whole again");
    assert_eq!(world.rows.number("select count(*) from runs").await, 2, "what was refused was not stored");
    world.finish().await;
}

async fn a_locked_row_delays_its_own_run_only(setup: Setup) {
    let world = World::start(setup.agent("steady", "tokens-30-30ms")).await;
    world.provider.script("helper", Script::new([Turn::marked(12)]));
    let gate = world.provider.gate("helper", At::BeforeEnd);
    let client = world.client();
    let locked = client.submit("helper", "Wait for it.").await;
    let tail = world.tail(&locked.run_id);
    gate.reached().await;
    tail.hears("a1.s1.11 ").await;

    let mut rogue = PgConnection::connect(&world.database_url()).await.unwrap();
    let id = world.rows.id(&locked.run_id);
    rogue.execute("begin").await.unwrap();
    rogue.execute(AssertSqlSafe(format!("select from runs where id = {id} for update"))).await.unwrap();
    let begin = Instant::now();
    gate.open();
    // Two runs are begun and ended behind it.
    for text in ["First", "Second"] {
        let neighbour = client.submit("steady", text).await;
        world.tail(&neighbour.run_id).ended().await;
        assert_eq!(client.ended(&neighbour.run_id).await.outcome(), "succeeded done");
    }
    let neighbours_took = begin.elapsed();
    sleep(Duration::from_secs(10).saturating_sub(neighbours_took)).await;
    assert!(!client.run(&locked.run_id).await.is_over());
    rogue.execute("rollback").await.unwrap();
    tail.ended().await;
    let run = client.ended(&locked.run_id).await;
    assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1));
    assert_eq!(world.provider.calls_to("helper").len(), 1);
    println!("two neighbours of a locked run took {neighbours_took:?}");
    assert!(neighbours_took < Duration::from_secs(10), "they took {neighbours_took:?}");
    world.finish().await;
}

async fn migrations_under_load_disturb_nobody(setup: Setup) {
    const TOKENS: usize = 80;
    let agent = format!("tokens-{TOKENS}-50ms");
    let world = World::start(setup.apis(2).workers(2).agent("steady", &agent)).await;
    let runs = busy(&world, "steady", 6).await;
    let (end, submitting) = keep_submitting(&world, "only");
    // Everything is up to date, and this finds it so, several times at once.
    let migrate = || async { world.command("migrate").args(["migrate", "up"]).run().await.unwrap() };
    tokio::join!(migrate(), migrate());
    // What the next version would add, while this one runs on prepared statements.
    let mut later = PgConnection::connect(&world.database_url()).await.unwrap();
    later.execute("set lock_timeout = '1s'").await.unwrap();
    for table in
        ["chats", "runs", "messages", "jobs", "workers", "run_events", "steps", "tool_calls", "idempotency"]
    {
        let expand = format!("alter table {table} add column of_a_later_version text");
        let added = async {
            while later.execute(AssertSqlSafe(expand.as_str())).await.is_err() {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(Duration::from_secs(10), added).await.unwrap_or_else(|_| panic!("{table} is never free"));
    }
    migrate().await;
    let stopped = world.client().submit("steady", "Stop me.").await;
    world.tail(&stopped.run_id).hears("a1.s1.2 ").await;
    assert_eq!(world.client_of(1).stop(&stopped.run_id, 10).await.expect(200)["status"], "aborted");
    undisturbed(&world, &runs, TOKENS).await;
    end.send(()).unwrap();
    for one in submitting.await.unwrap() {
        assert_eq!(world.client().ended(&one.run_id).await.outcome(), "succeeded done");
    }
    world.finish().await;
}
