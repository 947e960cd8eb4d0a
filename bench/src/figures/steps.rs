//! Steps per second of long runs, each step with a tool call that costs nothing.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::Effort;
use crate::{
    floor,
    lane::Calls,
    provider::SENTENCE,
    table::{Aim, Figure},
    world::{Agent, World},
};

const PATIENCE: Duration = Duration::from_mins(10);

pub(super) async fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let mut figures = vec![];
    let alone = |connections: usize| format!("steps with a call, SQL alone, {connections} connections");
    for connections in floor::FEW {
        let rate = floor::steps(connections, effort.floor_time(), Calls::One).await?;
        figures.push(Figure::new(alone(connections), rate, "steps/s"));
    }
    let bare = floor::steps(floor::MANY, effort.floor_time(), Calls::None).await?;

    let steps = effort.of(1_000, 100);
    let (mut best_floor, mut best) = (0.0_f64, 0.0_f64);
    for _ in 0..effort.rounds() {
        best_floor = best_floor.max(floor::steps(floor::MANY, effort.floor_time(), Calls::One).await?);
        best = best.max(end_to_end(steps).await?);
    }
    figures.push(Figure::new(alone(floor::MANY), best_floor, "steps/s"));
    figures.push(Figure::new("the same, steps without calls", bare, "steps/s"));
    figures.push(
        Figure::new(format!("steps with a call, end to end, 32 runs of {steps}"), best, "steps/s")
            .over(best_floor)
            .aim(Aim::TimesFloorOrMore(0.6)),
    );
    Ok(figures)
}

async fn end_to_end(steps: usize) -> Result<f64> {
    let script = json!([
        { "text": SENTENCE, "rate_per_second": 0, "repeat": steps - 1,
          // Given, because to count the words of a long conversation on each of its steps is no work of the product.
          "usage": { "inputTokens": 10, "outputTokens": 15 },
          "tool_calls": [{ "name": "clock", "arguments": {} }] },
        { "text": "Done.", "rate_per_second": 0 },
    ]);
    let world = World::start(2 * floor::MANY as u32, &[Agent::Scripted { name: "long", script }]).await?;
    let begun = Instant::now();
    world.submit_many("long", floor::MANY, floor::MANY).await?;
    world.until_all_over(PATIENCE).await?;
    Ok((floor::MANY * steps) as f64 / begun.elapsed().as_secs_f64())
}
