//! A thousand runs streaming at reading speed in one worker: what a token costs, what a run holds, who is late.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sqlx::Row;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::Effort;
use crate::{
    sampled::Sampled,
    spent,
    table::{Aim, Figure},
    world::{Agent, World},
};

const RATE: f64 = 20.0;
const PATIENCE: Duration = Duration::from_mins(3);
/// A stream that ends this much after its time is late.
const LATE_MS: f64 = 250.0;
/// So many streams are looked at token by token.
const LOOKED_AT: i64 = 50;

pub(super) async fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let runs: usize = effort.of(1_000, 200);
    let tokens: u32 = effort.of(500, 160);
    let script = json!([{ "tokens": tokens, "rate_per_second": RATE }]);
    let short = json!([{ "tokens": 5, "rate_per_second": RATE }]);
    let world = World::start(
        runs as u32 + 100,
        &[Agent::Scripted { name: "stream", script }, Agent::Scripted { name: "short", script: short }],
    )
    .await?;
    // Connections, caches and the allocator are warm before the memory of a run is counted.
    world.submit_many("short", 50, 8).await?;
    world.until_all_over(PATIENCE).await?;
    let pid = world.worker.id();
    let (idle_kib, idle_cpu) = (spent::resident_kib(pid)?, spent::cpu(pid)?);

    world.submit_many("stream", runs, 32).await?;
    timeout(PATIENCE, world.until_running(runs, PATIENCE)).await.context("not all runs begin")??;
    let mut busy_kib = 0.0_f64;
    for _ in 0..effort.of(20, 6) {
        sleep(Duration::from_millis(500)).await;
        busy_kib = busy_kib.max(spent::resident_kib(pid)?);
    }
    world.until_all_over(PATIENCE).await?;
    let cpu = spent::cpu(pid)?.saturating_sub(idle_cpu);
    let thousands = runs as f64 * f64::from(tokens) / 1000.0;
    let late = late_by(&world, tokens).await?;
    let on_time = late.iter().filter(|ms| **ms <= LATE_MS).count();
    let per_token = lateness_of_tokens(&world).await?;

    Ok(vec![
        Figure::new(format!("streams on time, of {runs} at 20 tokens/s"), on_time as f64, "streams")
            .aim(Aim::OrMore(runs as f64)),
        Figure::new("a token behind its time, p50", per_token.p50(), "ms"),
        Figure::new("a token behind its time, p99", per_token.p99(), "ms"),
        Figure::new("CPU of the worker per 1,000 tokens", cpu.as_secs_f64() * 1e3 / thousands, "ms")
            .aim(Aim::OrLess(60.0)),
        Figure::new("memory per run", (busy_kib - idle_kib) / runs as f64, "KiB").aim(Aim::OrLess(64.0)),
    ])
}

/// How much longer than its tokens need each stream took, in milliseconds.
async fn late_by(world: &World, tokens: u32) -> Result<Vec<f64>> {
    let due = f64::from(tokens - 1) * 1000.0 / RATE;
    // The first two events are those of the queue; a stream begins with its first step.
    let rows = sqlx::query(
        "select (max(e.created_at) - min(e.created_at))::float8 as took from run_events e \
         join runs r on r.id = e.run_id where e.first_seq > 2 and r.agent = 'stream' group by e.run_id",
    )
    .fetch_all(&world.pool)
    .await?;
    rows.iter().map(|row| Ok(row.try_get::<f64, _>("took")? - due)).collect()
}

/// How long after its time each token became visible; its time follows from the promptest token of its stream.
async fn lateness_of_tokens(world: &World) -> Result<Sampled> {
    let rows = sqlx::query(
        "select run_id, created_at, events from run_events where run_id in \
         (select id from runs where agent = 'stream' order by id limit $1) and events like '%text.delta%'",
    )
    .bind(LOOKED_AT)
    .fetch_all(&world.pool)
    .await?;
    let mut streams: HashMap<Uuid, Vec<f64>> = HashMap::new();
    for row in rows {
        let at = row.try_get::<i64, _>("created_at")? as f64;
        let events: Vec<Value> = serde_json::from_str(row.try_get("events")?)?;
        let texts = events.iter().filter_map(|event| event["data"]["text"].as_str());
        // A token's last part is its number.
        let numbers = texts
            .flat_map(str::split_whitespace)
            .filter_map(|token| token.rsplit_once('.')?.1.parse::<f64>().ok());
        let stream = streams.entry(row.try_get("run_id")?).or_default();
        stream.extend(numbers.map(|number| at - number * 1000.0 / RATE));
    }
    let mut sampled = Sampled::default();
    for stream in streams.values() {
        let promptest = stream.iter().copied().fold(f64::INFINITY, f64::min);
        for at in stream {
            sampled.push_ms(at - promptest);
        }
    }
    Ok(sampled)
}
