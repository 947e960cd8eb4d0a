//! Who is dead, and who only looks like it: a killed owner is found out in seconds, a living one is never robbed.

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use longhaul_tests::client::Submitted;
use longhaul_tests::{At, Bus, Gate, Rows, Script, Setup, Tail, Turn, Way, World};
use tokio::time::sleep;

use crate::on_postgres;

on_postgres!(
    a_killed_owner_is_found_dead_long_before_its_lease_ends,
    a_killed_owner_is_found_dead_just_as_soon_without_redis,
    owners_that_are_killed_together_are_all_found_dead,
    a_frozen_owner_keeps_its_run_until_its_lease_ends,
    an_owner_whose_database_is_out_of_reach_for_a_while_keeps_its_run,
    an_owner_whose_database_sessions_are_all_ended_keeps_its_run,
    an_address_that_answers_as_something_else_proves_nothing,
    an_address_that_answers_as_another_worker_proves_the_death,
);

/// What a takeover takes on a busy machine at most; the lease alone would make it more than twice that.
const LONG_BEFORE_THE_LEASE: Duration = Duration::from_secs(8);
const PROVEN: &str = "a worker's process is gone";
const BY_LEASE: &str = "\"proof\":\"lease\"";

/// A run that stands in the middle of its answer.
struct Standing {
    submitted: Submitted,
    tail: Tail,
    gate: Gate,
}

impl Standing {
    /// The agent and its model are `a{number}`.
    async fn start(world: &World, number: usize) -> Self {
        let name = format!("a{number}");
        world.provider.script(&name, Script::new([Turn::marked(20)]));
        let gate = world.provider.gate(&name, At::Token(8));
        let submitted = world.client().submit(&name, "Talk.").await;
        let tail = world.tail(&submitted.run_id);
        gate.reached().await;
        tail.hears("a1.s1.7 ").await;
        Self { submitted, tail, gate }
    }

    /// Which of the worker processes has it.
    async fn owner(&self, world: &World) -> usize {
        let log = world.rows.log(&self.submitted.run_id).await;
        let claim = log.iter().rfind(|event| event.kind == "run.claimed").unwrap();
        let id = claim.data["workerId"].as_str().unwrap();
        let is_owner = |line: &str| line.contains("the worker holds a lease") && line.contains(id);
        world.workers.iter().position(|worker| worker.output().lines().any(is_owner)).unwrap()
    }

    async fn is_claimed_again(&self) {
        let claims = |kinds: &[longhaul_tests::story::Event]| {
            kinds.iter().filter(|event| event.kind == "run.claimed").count() == 2
        };
        self.tail.until("another worker has it", claims).await;
    }

    async fn ends_well_after(&self, world: &World, attempts: u32) {
        self.gate.open();
        self.tail.ended().await;
        let run = world.client().ended(&self.submitted.run_id).await;
        assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", attempts));
    }
}

/// Says when a worker has heard another one, from when on it may take it for dead.
const TALKATIVE: &str = "info,longhaul_worker=debug";

/// The id under which the process holds its lease.
fn worker_id(output: &str) -> Option<&str> {
    let line = output.lines().rfind(|line| line.contains("the worker holds a lease"))?;
    let (_, id) = line.split_once("\"worker.id\":\"")?;
    id.split('"').next()
}

/// Waits until each worker process has heard all others.
async fn all_are_heard(world: &World) {
    let begun = Instant::now();
    loop {
        let outputs: Vec<_> = world.workers.iter().map(longhaul_tests::world::Server::output).collect();
        let ids: Vec<_> = outputs.iter().filter_map(|output| worker_id(output)).collect();
        let has_heard = |output: &str, id: &str| {
            let heard = |line: &str| line.contains("heard another worker") && line.contains(id);
            worker_id(output) == Some(id) || output.lines().any(heard)
        };
        if outputs.iter().all(|output| ids.iter().all(|id| has_heard(output, id))) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", world.outputs());
        sleep(Duration::from_millis(50)).await;
    }
}

fn with_agents(setup: Setup, count: usize) -> Setup {
    let setup = setup.env("LONGHAUL_LOG_LEVEL", TALKATIVE);
    (0..count).fold(setup, |setup, n| setup.agent(&format!("a{n}"), &format!("a{n}")))
}

/// Kills one owner after the other and tells how long each time nobody had its run.
async fn kill_owners(setup: Setup, times: usize) {
    let mut world = World::start(with_agents(setup, times).workers(3)).await;
    let mut took = Vec::new();
    for number in 0..times {
        let run = Standing::start(&world, number).await;
        let owner = run.owner(&world).await;
        all_are_heard(&world).await;
        world.workers[owner].kill();
        let killed = Instant::now();
        run.is_claimed_again().await;
        took.push(killed.elapsed());
        run.ends_well_after(&world, 2).await;
        world.workers[owner].restart().await;
    }
    took.sort();
    let at = |share: usize| took[(took.len() * share).div_ceil(100).max(1) - 1];
    println!(
        "{times} owners killed, lease {:?}: taken over after p50 {:?}, p90 {:?}, p99 {:?}",
        world.lease(),
        at(50),
        at(90),
        at(99)
    );
    assert!(at(100) < LONG_BEFORE_THE_LEASE, "{took:?}");
    world.finish().await;
}

async fn a_killed_owner_is_found_dead_long_before_its_lease_ends(setup: Setup) {
    kill_owners(setup, 10).await;
}

async fn a_killed_owner_is_found_dead_just_as_soon_without_redis(setup: Setup) {
    kill_owners(setup.bus(Bus::Absent), 5).await;
}

async fn owners_that_are_killed_together_are_all_found_dead(setup: Setup) {
    const RUNS: usize = 12;
    // As few slots as make everybody an owner.
    let mut world = World::start(with_agents(setup, RUNS).workers(5).slots(3)).await;
    let mut runs = Vec::new();
    for number in 0..RUNS {
        runs.push(Standing::start(&world, number).await);
    }
    for _ in 0..3 {
        world.start_worker().await;
    }
    let mut orphans = Vec::new();
    for run in &runs {
        if run.owner(&world).await < 4 {
            orphans.push(run);
        }
    }
    all_are_heard(&world).await;
    assert!(orphans.len() >= 9, "four of five hold at least nine of twelve runs");
    world.workers[..4].iter_mut().for_each(longhaul_tests::world::Server::kill);
    let killed = Instant::now();
    for run in &orphans {
        run.is_claimed_again().await;
    }
    println!("{} runs of four workers taken over after {:?}", orphans.len(), killed.elapsed());
    assert!(killed.elapsed() < LONG_BEFORE_THE_LEASE, "{:?}", killed.elapsed());
    for run in &runs {
        run.gate.open();
    }
    world.finish().await;
}

async fn a_frozen_owner_keeps_its_run_until_its_lease_ends(setup: Setup) {
    let mut world = World::start(with_agents(setup.short_lease(), 1)).await;
    let run = Standing::start(&world, 0).await;
    world.start_worker().await;
    all_are_heard(&world).await;
    world.workers[0].freeze();
    run.is_claimed_again().await;
    let other = world.workers[1].output();
    assert!(!other.contains(PROVEN) && other.contains(BY_LEASE), "{other}");
    // Whoever ends a lease before its time says so in the row.
    assert_eq!(world.rows.number("select count(*) from workers where draining").await, 0);
    world.workers[0].thaw();
    run.ends_well_after(&world, 2).await;
    world.finish().await;
}

/// Nobody began anew, and nobody was taken for dead.
async fn nobody_lost_a_lease(world: &World, workers: i64) {
    assert_eq!(world.rows.number("select count(*) from workers").await, workers);
    for worker in &world.workers {
        let output = worker.output();
        assert!(!output.contains(PROVEN) && !output.contains("the lease is lost"), "{output}");
    }
}

async fn an_owner_whose_database_is_out_of_reach_for_a_while_keeps_its_run(setup: Setup) {
    const WHILE: Duration = Duration::from_secs(5);
    let mut world = World::start(with_agents(setup, 1).workers(0)).await;
    let cable = world.start_worker_on_a_cable().await;
    let run = Standing::start(&world, 0).await;
    world.start_worker().await;
    cable.freeze(Way::Both);
    sleep(WHILE).await;
    cable.pass();
    cable.down();
    sleep(WHILE).await;
    cable.pass();
    run.ends_well_after(&world, 1).await;
    nobody_lost_a_lease(&world, 2).await;
    world.finish().await;
}

async fn an_owner_whose_database_sessions_are_all_ended_keeps_its_run(setup: Setup) {
    let mut world = World::start(with_agents(setup, 1)).await;
    let run = Standing::start(&world, 0).await;
    world.start_worker().await;
    let Rows::Postgres(pool) = &world.rows else { unreachable!("this is about Postgres") };
    // As a restart of the database would, again and again for more than two heartbeats.
    for _ in 0..24 {
        let ended: i64 = sqlx::query_scalar(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where datname = current_database() and application_name = 'longhaul'",
        )
        .fetch_one(pool)
        .await
        .unwrap();
        assert!(ended >= 0);
        sleep(Duration::from_millis(500)).await;
    }
    run.ends_well_after(&world, 1).await;
    nobody_lost_a_lease(&world, 2).await;
    world.finish().await;
}

/// Kills the first worker, and has this answered at its address before anybody looks.
async fn answer_in_its_place(world: &mut World, line: &'static str) {
    world.workers[1].freeze();
    let address = "select presence_address from workers order by id limit 1";
    let address = world.rows.texts(address).await.remove(0);
    world.workers[0].kill();
    let socket = TcpListener::bind(address).unwrap();
    // Ends with the test's process, and as long as that it answers.
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = socket.accept() {
            let _ = stream.write_all(line.as_bytes());
        }
    });
    world.workers[1].thaw();
}

async fn an_address_that_answers_as_something_else_proves_nothing(setup: Setup) {
    let mut world = World::start(with_agents(setup.short_lease(), 1)).await;
    let run = Standing::start(&world, 0).await;
    world.start_worker().await;
    all_are_heard(&world).await;
    answer_in_its_place(&mut world, "HTTP/1.1 400 Bad Request\r\n\r\n").await;
    run.is_claimed_again().await;
    let other = world.workers[1].output();
    assert!(!other.contains(PROVEN) && other.contains(BY_LEASE), "{other}");
    run.ends_well_after(&world, 2).await;
    world.finish().await;
}

async fn an_address_that_answers_as_another_worker_proves_the_death(setup: Setup) {
    let mut world = World::start(with_agents(setup, 1)).await;
    let run = Standing::start(&world, 0).await;
    world.start_worker().await;
    all_are_heard(&world).await;
    answer_in_its_place(&mut world, "longhaul-worker 01a1f8d6-ef47-739c-99ba-84126cceb7fb\n").await;
    let killed = Instant::now();
    run.is_claimed_again().await;
    assert!(killed.elapsed() < LONG_BEFORE_THE_LEASE, "{:?}", killed.elapsed());
    assert!(world.workers[1].output().contains(PROVEN));
    run.ends_well_after(&world, 2).await;
    world.finish().await;
}
