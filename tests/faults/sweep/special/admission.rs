//! Submissions whose API process dies or freezes, and one key at two of them.

use longhaul_tests::client::{Answer, Client};
use longhaul_tests::{FAILPOINTS, PATIENCE, Setup, Store, World};
use reqwest::Method;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::super::trial::struck;
use super::{LOOK_EVERY, at_rest};

async fn submit_with_key(client: &Client, key: &str) -> reqwest::Result<Answer> {
    let request = client.request(Method::POST, "/v1/runs").header("Idempotency-Key", key);
    client.send(request.json(&json!({"agent": "quick", "input": "Once."}))).await
}

/// Repeats a submission as a client does until it is accepted.
async fn accepted(client: &Client, key: &str) -> String {
    let begin = Instant::now();
    loop {
        match submit_with_key(client, key).await {
            Ok(answer) if answer.status == 202 => return answer.submitted().run_id,
            answer => assert!(begin.elapsed() < PATIENCE, "never accepted: {answer:?}"),
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The end of a case in which one run was to come into being under a key.
async fn there_is_one_run(world: &mut World, run: &str) -> Vec<String> {
    let mut flaws = Vec::new();
    if world.client().ended(run).await.outcome() != "succeeded done" {
        flaws.push("the run did not succeed".to_owned());
    }
    let runs = world.rows.number("select count(*) from runs").await;
    if runs != 1 {
        flaws.push(format!("one key made {runs} runs"));
    }
    flaws.extend(at_rest(world).await);
    flaws
}

pub(super) async fn admission(setup: Setup, failpoint: &str) -> Vec<String> {
    let kill = format!("{failpoint}=kill");
    let mut world = match setup.store {
        Store::Postgres => {
            let mut world = World::start(setup).await;
            world.start_api_that(&kill).await;
            world
        }
        Store::Sqlite => World::start(setup.env(FAILPOINTS, &kill)).await,
    };
    let last = world.apis.len() - 1;
    let unanswered = submit_with_key(&world.client_of(last), "k").await;
    assert!(unanswered.is_err(), "a process that died answered {unanswered:?}");
    if world.store() == Store::Sqlite {
        world.apis[0].restart_unharmed().await;
    }
    let mut flaws = Vec::new();
    let runs = world.rows.number("select count(*) from runs").await;
    if runs != i64::from(failpoint == "after_admission_before_answer") {
        flaws.push(format!("{runs} runs behind a submission that died at {failpoint}"));
    }
    let run = accepted(&world.client(), "k").await;
    flaws.extend(there_is_one_run(&mut world, &run).await);
    flaws
}

pub(super) async fn admission_frozen(setup: Setup) -> Vec<String> {
    let mut world = World::start(setup).await;
    world.start_api_that("in_admission_before_commit=stop").await;
    let frozen = world.client_of(1);
    let first = tokio::spawn(async move { submit_with_key(&frozen, "k").await });
    struck(&mut world.apis[1], "in_admission_before_commit").await;
    let mut flaws = Vec::new();
    let repeat = submit_with_key(&world.client(), "k").await.unwrap();
    // Nobody knows yet what becomes of the first.
    if repeat.status != 409 {
        flaws.push(format!("a repeat of what is under way was answered with {}", repeat.status));
    }
    world.apis[1].thaw();
    let first = first.await.unwrap().unwrap();
    let repeat = accepted(&world.client(), "k").await;
    match first.status {
        202 if first.clone().submitted().run_id != repeat => {
            flaws.push("the repeat got another run".to_owned());
        }
        // It may have slept for longer than it waits for its database.
        202 | 503 => {}
        status => flaws.push(format!("what was frozen was answered with {status}")),
    }
    flaws.extend(there_is_one_run(&mut world, &repeat).await);
    flaws
}

pub(super) async fn one_key_two_apis(setup: Setup) -> Vec<String> {
    let mut world = World::start(setup.apis(2)).await;
    let (here, there) = (world.client_of(0), world.client_of(1));
    let (first, second) = tokio::join!(accepted(&here, "k"), accepted(&there, "k"));
    let mut flaws = Vec::new();
    if first != second {
        flaws.push("one key got two runs".to_owned());
    }
    flaws.extend(there_is_one_run(&mut world, &first).await);
    flaws
}
