//! Runs of one step per second, from submission over HTTP to their end.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::Effort;
use crate::{
    floor,
    table::{Aim, Figure},
    world::{Agent, World},
};

const PATIENCE: Duration = Duration::from_mins(3);
const SLOTS: u32 = 256;

pub(super) async fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let mut figures = vec![];
    let alone = |connections: usize| format!("one-step runs, SQL alone, {connections} connections");
    for connections in floor::FEW {
        let rate = floor::runs(connections, effort.floor_time(), false).await?.per_second;
        figures.push(Figure::new(alone(connections), rate, "runs/s"));
    }
    let in_one = floor::runs(floor::MANY, effort.floor_time(), true).await?.per_second;

    // In turns, and the best of each: what else the machine does in between then spoils neither side alone.
    let (mut best_floor, mut best) = (0.0_f64, 0.0_f64);
    for _ in 0..effort.rounds() {
        best_floor = best_floor.max(floor::runs(floor::MANY, effort.floor_time(), false).await?.per_second);
        best = best.max(end_to_end(effort.of(4_000, 600)).await?);
    }
    figures.push(Figure::new(alone(floor::MANY), best_floor, "runs/s"));
    figures.push(Figure::new("the same, step and end in one commit", in_one, "runs/s"));
    figures.push(
        Figure::new("one-step runs, end to end", best, "runs/s")
            .over(best_floor)
            .aim(Aim::TimesFloorOrMore(0.55)),
    );
    Ok(figures)
}

async fn end_to_end(runs: usize) -> Result<f64> {
    let script = json!([{ "text": "Done.", "rate_per_second": 0 }]);
    let world = World::start(SLOTS, &[Agent::Scripted { name: "one", script }]).await?;
    world.submit_many("one", 200, floor::MANY).await?;
    world.until_all_over(PATIENCE).await?;
    let begun = Instant::now();
    world.submit_many("one", runs, floor::MANY).await?;
    world.until_all_over(PATIENCE).await?;
    Ok(runs as f64 / begun.elapsed().as_secs_f64())
}
