//! What five hundred pages of the AI SDK that watch one run cost their API process, beside as many native tails.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::Effort;
use crate::{
    client::View,
    spent,
    table::{Aim, Figure},
    world::{Agent, World},
};

const PATIENCE: Duration = Duration::from_mins(2);
const RATE: u64 = 20;

/// What the tails of one run used.
struct Used {
    /// Percent of a core, while tokens flow.
    cpu: f64,
    kib_per_tail: f64,
}

pub(super) async fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let tails = effort.of(500, 100);
    let native = watched(effort, tails, View::Native).await?;
    let ui = watched(effort, tails, View::Ui).await?;
    let responses = watched(effort, tails, View::Responses).await?;
    let mut figures = vec![];
    for (name, used, aim) in [("UI messages", ui, 2.0), ("responses", responses, 3.0)] {
        let name = |what: &str| format!("{tails} tails of one run at {RATE} tokens/s as {name}, {what}");
        figures.push(
            Figure::new(name("CPU of the API"), used.cpu, "% of a core")
                .over(native.cpu)
                .aim(Aim::TimesFloorOrLess(aim)),
        );
        let memory = Figure::new(name("memory per tail"), used.kib_per_tail, "KiB");
        figures.push(memory.over(native.kib_per_tail).aim(Aim::OrLess(20.0)));
    }
    Ok(figures)
}

async fn watched(effort: Effort, tails: usize, view: View) -> Result<Used> {
    let tokens = effort.of(1_000, 300);
    let script = json!([{ "tokens": tokens, "rate_per_second": RATE }]);
    let world = World::start(4, &[Agent::Scripted { name: "talking", script }]).await?;
    let pid = world.api.id();
    // What the first tails of a process bring into being is not of one tail.
    let warm = world.client.submit("talking").await?;
    for _ in 0..20 {
        drop(world.client.watch(warm, view).await?);
    }
    let run_id = world.client.submit("talking").await?;
    let before = spent::resident_kib(pid)?;
    let mut reading = vec![];
    for _ in 0..tails {
        let tail = world.client.watch(run_id, view).await?;
        reading.push(tokio::spawn(tail.swallow()));
    }
    sleep(Duration::from_secs(2)).await;
    let (begun, cpu_before) = (Instant::now(), spent::cpu(pid)?);
    let mut most = 0.0_f64;
    for _ in 0..effort.of(40, 8) {
        sleep(Duration::from_millis(500)).await;
        most = most.max(spent::resident_kib(pid)?);
    }
    let (time, cpu) = (begun.elapsed(), spent::cpu(pid)?.saturating_sub(cpu_before));
    for tail in reading {
        timeout(PATIENCE, tail).await.context("a tail does not end")???;
    }
    Ok(Used {
        cpu: 100.0 * cpu.as_secs_f64() / time.as_secs_f64(),
        kib_per_tail: (most - before) / tails as f64,
    })
}
