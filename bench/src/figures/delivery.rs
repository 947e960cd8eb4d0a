//! How old a token is when a tail shows it, although it was made durable in between.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::time::timeout;

use super::Effort;
use crate::{
    client::Client,
    provider::{Provider, ages},
    sampled::Sampled,
    table::{Aim, Figure},
    world::{Agent, World},
};

const PATIENCE: Duration = Duration::from_mins(1);

pub(super) async fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let mut figures = vec![];
    for pause_ms in [50, 20] {
        let tokens = effort.of(10_000, 2_000) / pause_ms;
        let model = format!("text-{tokens}-{pause_ms}ms");
        let direct = direct(&model).await?;
        let world = World::start(64, &[Agent::Asking { name: "pacing", model }]).await?;
        let delivered = delivered(&world).await?;
        let rate = 1000 / pause_ms;
        let name = |what: &str| format!("token delivery at {rate} tokens/s, {what}");
        let p50 = Figure::new(name("p50"), delivered.p50(), "ms").over(direct.p50());
        // The aim is for the rate at which people read; faster streams are gathered on purpose.
        figures.push(if pause_ms == 50 { p50.aim(Aim::OrLess(2.0)) } else { p50 });
        figures.push(Figure::new(name("p99"), delivered.p99(), "ms").over(direct.p99()));
    }
    Ok(figures)
}

async fn direct(model: &str) -> Result<Sampled> {
    let provider = Provider::start().await?;
    let mut events = Client::new(provider.url()).complete(model).await?;
    let mut sampled = Sampled::default();
    while let Some(event) = events.next().await? {
        let chunk: Value = serde_json::from_str(&event.data).unwrap_or_default();
        for age in ages(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default()) {
            sampled.push(age);
        }
    }
    Ok(sampled)
}

/// The first token of the run is left out: it comes while the tail is still being opened.
async fn delivered(world: &World) -> Result<Sampled> {
    let run_id = world.client.submit("pacing").await?;
    let mut tail = world.client.tail(run_id).await?;
    let mut sampled = Sampled::default();
    let mut is_first = true;
    while let Some(event) = timeout(PATIENCE, tail.next()).await.context("no event came")?? {
        if event.kind != "text.delta" {
            continue;
        }
        let envelope: Value = serde_json::from_str(&event.data)?;
        for age in ages(envelope["data"]["text"].as_str().unwrap_or_default()) {
            if !std::mem::take(&mut is_first) {
                sampled.push(age);
            }
        }
    }
    anyhow::ensure!(sampled.len() > 0, "no token was shown");
    Ok(sampled)
}
