//! How long one client waits, alone on an idle machine: for the answer to a submission, for the attempt, for the first
//! token.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sqlx::Row;
use tokio::time::timeout;

use super::Effort;
use crate::{
    client::Client,
    floor,
    provider::Provider,
    sampled::Sampled,
    table::{Aim, Figure},
    world::{Agent, World},
};

const PATIENCE: Duration = Duration::from_secs(20);
/// One token, then the end.
const MODEL: &str = "text-1";
const WARM_UP: usize = 20;

/// What one round after the other took.
#[derive(Default)]
struct Waits {
    submit: Sampled,
    /// From the answer to the submission until the provider is asked.
    start: Sampled,
    /// From before the submission until the first token is read.
    first_token: Sampled,
}

pub(super) async fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let floor = floor::runs(1, effort.floor_time(), true).await?.submit;
    let rounds = effort.of(400, 60);
    let commits = floor::commits(rounds).await?;
    let direct = direct(rounds).await?;

    let world = World::start(64, &[Agent::Asking { name: "asking", model: MODEL.to_owned() }]).await?;
    go(&world, WARM_UP).await?;
    let waits = go(&world, rounds).await?;
    // By the database's clock, whose milliseconds are cut off: right on average only.
    let claimed: f64 = sqlx::query(
        "select avg(claimed.created_at - queued.created_at)::float8 as ms from run_events queued \
         join run_events claimed on claimed.run_id = queued.run_id and claimed.first_seq = 2 \
         where queued.first_seq = 1",
    )
    .fetch_one(&world.pool)
    .await?
    .try_get("ms")?;

    Ok(vec![
        Figure::new("the smallest commit, p50", commits.p50(), "ms"),
        Figure::new("submit, p50", waits.submit.p50(), "ms")
            .over(floor.p50())
            .aim(Aim::TimesFloorOrLess(2.5)),
        Figure::new("submit, p99", waits.submit.p99(), "ms").over(floor.p99()),
        Figure::new("run.queued to run.claimed, mean", claimed, "ms"),
        Figure::new("answer to submit until the attempt asks its model, p50", waits.start.p50(), "ms")
            .aim(Aim::OrLess(2.0)),
        Figure::new("answer to submit until the attempt asks its model, p99", waits.start.p99(), "ms"),
        Figure::new("submit to first token, p50", waits.first_token.p50(), "ms")
            .over(direct.p50())
            .aim(Aim::TimesFloorOrLess(3.5))
            .aim(Aim::OrLess(3.5)),
        Figure::new("submit to first token, p99", waits.first_token.p99(), "ms").over(direct.p99()),
    ])
}

/// The first token from the provider itself, through the same HTTP client.
async fn direct(rounds: usize) -> Result<Sampled> {
    let provider = Provider::start().await?;
    let client = Client::new(provider.url());
    let mut sampled = Sampled::default();
    for round in 0..rounds + WARM_UP {
        let begun = Instant::now();
        let mut events = client.complete(MODEL).await?;
        events.until(|event| event.data.contains("\"@")).await?;
        if round >= WARM_UP {
            sampled.push(begun.elapsed());
        }
        events.drain().await?;
    }
    Ok(sampled)
}

async fn go(world: &World, rounds: usize) -> Result<Waits> {
    let mut waits = Waits::default();
    let mut asked = world.provider.watch();
    for _ in 0..rounds {
        let begun = Instant::now();
        let run_id = world.client.submit("asking").await?;
        let answered = Instant::now();
        // The call is let go as soon as it is noted, in a task that does not wait for the tail.
        let call = tokio::spawn(async move {
            let one = asked.recv().await;
            let at = one.map(|one| (one.at, one.run_id));
            (at, asked)
        });
        let mut tail = world.client.tail(run_id).await?;
        timeout(PATIENCE, tail.until(|event| event.kind == "text.delta"))
            .await
            .context("no token came")??;
        waits.first_token.push(begun.elapsed());
        waits.submit.push(answered - begun);
        let (at, receiver) = call.await?;
        asked = receiver;
        let (at, asker) = at.context("the provider is gone")?;
        anyhow::ensure!(asker == Some(run_id), "the provider was asked by another run");
        waits.start.push_ms(signed_ms(at, answered));
        timeout(PATIENCE, tail.drain()).await.context("the run does not end")??;
    }
    Ok(waits)
}

/// An attempt may begin before the answer to its submission is read.
fn signed_ms(later: Instant, earlier: Instant) -> f64 {
    match later.checked_duration_since(earlier) {
        Some(after) => after.as_secs_f64() * 1e3,
        None => -((earlier - later).as_secs_f64() * 1e3),
    }
}
