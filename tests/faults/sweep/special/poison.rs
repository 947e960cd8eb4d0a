//! Runs that break whoever takes them up: they are given up, and nobody else is.

use longhaul_tests::{Setup, Store, World};
use serde_json::json;

use super::super::trial::struck;
use super::{at_rest, executor, world_that};

/// A run with this tag, and good ones beside it.
async fn with_good_ones(world: &World, tag: &str) -> (String, Vec<String>) {
    let client = world.client();
    let mut good = Vec::new();
    for _ in 0..5 {
        good.push(client.submit("quick", "Good.").await.run_id);
    }
    let poison = json!({"agent": "quick", "input": "Poison.", "tags": [tag]});
    let poison = client.post("/v1/runs", &poison).await.submitted().run_id;
    // Where the API dies with it, nobody is there to ask for more.
    if world.store() == Store::Postgres {
        good.push(client.submit("quick", "Good too.").await.run_id);
    }
    (poison, good)
}

async fn only_the_poison_failed(world: &World, poison: &str, good: &[String]) -> Vec<String> {
    let client = world.client();
    let mut flaws = Vec::new();
    let outcome = client.ended(poison).await.outcome();
    if outcome != "failed crash_limit" {
        flaws.push(format!("the poison ended {outcome}"));
    }
    for run in good {
        let outcome = client.ended(run).await.outcome();
        if outcome != "succeeded done" {
            flaws.push(format!("a good run ended {outcome}"));
        }
    }
    flaws
}

pub(super) async fn poison_abort(setup: Setup) -> Vec<String> {
    let mut world = world_that(setup, "abort_if_tag=abort:*").await;
    let (poison, good) = with_good_ones(&world, "abort").await;
    for _ in 1..=3 {
        struck(world.workers.last_mut().unwrap_or(&mut world.apis[0]), "abort_if_tag").await;
        match world.store() {
            Store::Postgres => world.start_worker_that("abort_if_tag=abort:*").await,
            Store::Sqlite => world.apis[0].restart().await,
        }
    }
    let mut flaws = only_the_poison_failed(&world, &poison, &good).await;
    flaws.extend(at_rest(&mut world).await);
    flaws
}

pub(super) async fn poison_panic(setup: Setup) -> Vec<String> {
    let mut world = world_that(setup, "panic_if_tag=panic:*").await;
    let (poison, good) = with_good_ones(&world, "panic").await;
    let mut flaws = only_the_poison_failed(&world, &poison, &good).await;
    if !executor(&mut world).is_alive() {
        flaws.push("the process died of one run's panic".to_owned());
    }
    flaws.extend(at_rest(&mut world).await);
    flaws
}
