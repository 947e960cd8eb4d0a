//! Answers are lost: of a commit, of a submission, of a body half sent. Whoever asks again gets what was decided.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use longhaul_tests::story::marks_of;
use longhaul_tests::{At, Relay, Script, Setup, Turn, Way, World};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::{on_both, on_postgres};

on_both!(an_answer_that_is_lost_is_given_again, a_body_that_breaks_off_makes_no_run_and_a_whole_one_does,);
on_postgres!(
    a_step_or_an_end_whose_commit_is_not_answered_happens_once,
    a_submission_whose_commit_is_not_answered_makes_one_run,
    api_processes_that_are_killed_among_submissions_break_no_promise,
    calls_whose_clients_hang_up_leave_the_connections_whole,
);

/// Where a cable is cut: dense at first, where the small messages of the protocol are, then in growing steps.
fn places(count: u32, most: f64) -> impl Iterator<Item = usize> {
    (0..count).map(move |n| most.powf(f64::from(n) / f64::from(count - 1)) as usize)
}

async fn a_step_or_an_end_whose_commit_is_not_answered_happens_once(setup: Setup) {
    let mut world = World::start(setup.workers(0)).await;
    let cable = world.start_worker_on_a_cable().await;
    let looks = Turn::marked(3).and_call("look", &json!({"op": "prices"}));
    world.provider.script("helper", Script::new([looks, Turn::marked(2)]));
    let client = world.client();
    let mut rounds = 0;
    // The answer to the commit itself is a few bytes behind those to the statements before it.
    let asked = places(10, 9_000.0).map(|bytes| (Way::Up, bytes));
    for (way, bytes) in asked.chain((10..800).step_by(11).map(|bytes| (Way::Down, bytes))) {
        // The first step is saved behind the cut, or the run ended.
        let gate = world.provider.gate_on_turn("helper", 1 + rounds % 2, At::BeforeEnd);
        let submitted = client.submit("helper", &format!("Cut after {bytes} bytes {way:?}")).await;
        let tail = world.tail(&submitted.run_id);
        gate.reached().await;
        tail.hears("a1.s1.2 ").await;
        cable.cut_after_bytes(way, bytes);
        gate.open();
        tail.ended().await;
        cable.pass();
        let run = client.ended(&submitted.run_id).await;
        assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1), "{bytes} {way:?}");
        let story = tail.story();
        assert_eq!(marks_of(&story.steps[&1].text(), 1, 3), Some(1));
        assert_eq!(marks_of(&story.steps[&2].text(), 2, 2), Some(1));
        rounds += 1;
    }
    assert_eq!(world.provider.calls_to("helper").len(), 2 * rounds, "each was asked for once");
    assert!(cable.cuts() > rounds / 3, "{} cuts in {rounds} rounds are too few", cable.cuts());
    println!("{} cuts in {rounds} rounds", cable.cuts());
    world.finish().await;
}

async fn a_submission_whose_commit_is_not_answered_makes_one_run(setup: Setup) {
    let mut world = World::start(setup).await;
    let cable = world.start_api_on_a_cable().await;
    let (near, far) = (world.client_of(0), world.client_of(1));
    let mut rounds = 0;
    for way in [Way::Up, Way::Down] {
        for bytes in places(25, 7_000.0) {
            cable.cut_after_bytes(way, bytes);
            let key = format!("{way:?}-{rounds}");
            let body = json!({"agent": "quick", "input": key});
            // Repeated where the answer was lost and, every other time, somewhere else.
            let others = [near.clone()];
            let others = if rounds % 2 == 0 { &others[..] } else { &[] };
            let submitted = far.insist(others, "/v1/runs", &key, &body).await;
            cable.pass();
            let again = near.post_with_key("/v1/runs", &key, &body).await;
            assert_eq!(again.header("idempotent-replayed"), Some("true"));
            assert_eq!(again.submitted(), submitted);
            assert_eq!(near.ended(&submitted.run_id).await.outcome(), "succeeded done");
            rounds += 1;
        }
    }
    let count = world.rows.number("select count(*) from runs").await;
    assert_eq!((count, world.provider.calls().len() as i64), (rounds, rounds), "one run each, done once");
    assert!(cable.cuts() as i64 > rounds / 3, "{} cuts in {rounds} rounds are too few", cable.cuts());
    println!("{} cuts in {rounds} rounds", cable.cuts());
    world.finish().await;
}

async fn an_answer_that_is_lost_is_given_again(setup: Setup) {
    let world = World::start(setup).await;
    let (cable, url) = Relay::in_front_of(&world.apis[0].url()).await.unwrap();
    let through = longhaul_tests::Client::new(url, world.key.clone());
    let client = world.client();
    let mut lost = 0;
    for (round, bytes) in places(20, 700.0).enumerate() {
        let (key, body) = (format!("k-{round}"), json!({"agent": "quick", "input": "Once."}));
        cable.cut_after_bytes(Way::Down, bytes.saturating_sub(1));
        let request = through.request(reqwest::Method::POST, "/v1/runs").header("Idempotency-Key", &key);
        lost += usize::from(through.send(request.json(&body)).await.is_err());
        cable.pass();
        let first = through.insist(&[], "/v1/runs", &key, &body).await;
        let again = client.post_with_key("/v1/runs", &key, &body).await;
        assert_eq!(again.header("idempotent-replayed"), Some("true"));
        assert_eq!(again.submitted(), first);
        client.ended(&first.run_id).await;
    }
    assert!(lost >= 15, "{lost} lost answers are too few");
    assert_eq!(world.rows.number("select count(*) from runs").await, 20, "one run for each key");
    assert_eq!(world.provider.calls().len(), 20);
    world.finish().await;
}

async fn a_body_that_breaks_off_makes_no_run_and_a_whole_one_does(setup: Setup) {
    let world = World::start(setup).await;
    let key = world.key.as_ref().map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let body = json!({"agent": "quick", "input": "x".repeat(400)}).to_string();
    let head = format!(
        "POST /v1/runs HTTP/1.1\r\nhost: {}\r\n{key}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        world.apis[0].addr(),
        body.len()
    );
    for tenth in 0..10 {
        let mut socket = TcpStream::connect(world.apis[0].addr()).await.unwrap();
        let part = &body[..body.len() * tenth / 10];
        socket.write_all(format!("{head}{part}").as_bytes()).await.unwrap();
        if tenth % 2 == 0 {
            socket.set_zero_linger().unwrap();
        }
        drop(socket);
    }
    // Whole, and gone before the answer.
    let mut socket = TcpStream::connect(world.apis[0].addr()).await.unwrap();
    socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    drop(socket);
    world
        .rows
        .until("the whole one ran", "select count(*) from runs where status = 'succeeded'", |n| n == 1)
        .await;
    assert_eq!(world.rows.number("select count(*) from runs").await, 1);
    assert_eq!(world.rows.number("select count(*) from messages").await, 2);
    assert_eq!(world.provider.calls().len(), 1);
    world.finish().await;
}

async fn api_processes_that_are_killed_among_submissions_break_no_promise(setup: Setup) {
    const CLIENTS: usize = 8;
    const EACH: usize = 12;
    let mut world = World::start(setup.apis(2).workers(2)).await;
    let clients: Vec<_> = (0..2).map(|api| world.client_of(api)).collect();
    let submitting: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (one, other) = (clients[number % 2].clone(), clients[(number + 1) % 2].clone());
            tokio::spawn(async move {
                let mut accepted = Vec::new();
                for round in 0..EACH {
                    let key = format!("k-{number}-{round}");
                    let body = json!({"agent": "quick", "input": key});
                    accepted.push(one.insist(std::slice::from_ref(&other), "/v1/runs", &key, &body).await);
                }
                accepted
            })
        })
        .collect();
    let all = (CLIENTS * EACH) as i64;
    for kill in 1..=4_i64 {
        let enough = all * kill / 6;
        world.rows.until("some are in", "select count(*) from runs", |count| count >= enough).await;
        world.apis[kill as usize % 2].restart().await;
    }
    let accepted: Vec<_> = join_all(submitting).await.into_iter().flat_map(|some| some.unwrap()).collect();
    let ids: BTreeSet<&str> = accepted.iter().map(|one| one.run_id.as_str()).collect();
    assert_eq!(ids.len(), CLIENTS * EACH, "a run for each key");
    for one in &accepted {
        assert_eq!(world.client().ended(&one.run_id).await.outcome(), "succeeded done");
    }
    assert_eq!(world.rows.number("select count(*) from runs").await, all, "and no run that nobody asked for");
    assert_eq!(world.provider.calls().len() as i64, all);
    world.finish().await;
}

async fn calls_whose_clients_hang_up_leave_the_connections_whole(setup: Setup) {
    const CALLS: usize = 1_200;
    const AT_ONCE: usize = 50;
    let mut world = World::start(setup.workers(2)).await;
    let cable = world.start_api_on_a_cable().await;
    let client = world.client_of(1);
    let known = client.submit("quick", "Known.").await;
    client.ended(&known.run_id).await;
    cable.latency(Duration::from_millis(3));
    let (address, key) = (world.apis[1].addr(), world.key.clone().unwrap());
    let mut number = 0;
    while number < CALLS {
        let hang_ups = (number..number + AT_ONCE).map(|number| {
            let (key, run) = (key.clone(), known.run_id.clone());
            tokio::spawn(async move {
                let body = json!({"agent": "quick", "input": format!("Call {number}")}).to_string();
                let (line, body) = match number % 4 {
                    0 => ("POST /v1/runs".to_owned(), body),
                    1 => (format!("GET /v1/runs/{run}/steps"), String::new()),
                    2 => ("GET /v1/runs".to_owned(), String::new()),
                    _ => (format!("GET /v1/runs/{run}"), String::new()),
                };
                let request = format!(
                    "{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
                     content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let mut socket = TcpStream::connect(address).await.unwrap();
                socket.write_all(request.as_bytes()).await.unwrap();
                let patience = Duration::from_millis(rand::random_range(0..60));
                let _ = timeout(patience, socket.read(&mut [0; 64])).await;
                socket.set_zero_linger().unwrap();
            })
        });
        for hung_up in join_all(hang_ups).await {
            hung_up.unwrap();
        }
        number += AT_ONCE;
        // Connections are given out in turn: when this one is served, few of those are left, and none is turned away.
        client.get("/v1/runs").await.expect(200);
    }
    cable.latency(Duration::ZERO);
    // Everything that had arrived is done, and no session is left in the middle of something.
    let open = "select count(*) from pg_stat_activity where datname = current_database() \
                and application_name = 'longhaul' and state like 'idle in transaction%'";
    let unfinished = "select count(*) from runs where finished_at is null";
    world.rows.until("all runs are over", unfinished, |count| count == 0).await;
    for _ in 0..10 {
        world.rows.until("no session idles in a transaction", open, |count| count == 0).await;
        sleep(Duration::from_millis(50)).await;
    }
    let asked = join_all((0..60).map(|_| client.get("/v1/runs"))).await;
    let served = asked.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(
        served,
        asked.len(),
        "all connections serve: {:?}",
        asked.iter().find(|answer| answer.status != 200)
    );
    let stored = world.rows.number("select count(*) from runs").await;
    assert!(stored > 100, "{stored} submissions arrived: too few to mean anything");
    for server in world.apis.iter().chain(&world.workers) {
        assert!(!server.output().contains("25P02"), "{}", server.output());
    }
    println!("{stored} of {} hung-up submissions were admitted", CALLS / 4);
    world.finish().await;
}
