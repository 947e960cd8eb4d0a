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
    let mut floor_of_many = 0.0;
    for connections in floor::CONNECTIONS {
        let rate = floor::steps(connections, effort.floor_time(), Calls::One).await?;
        figures.push(Figure::new(
            format!("steps with a call, SQL alone, {connections} connections"),
            rate,
            "steps/s",
        ));
        floor_of_many = rate;
    }
    let bare = floor::steps(floor::MANY, effort.floor_time(), Calls::None).await?;
    figures.push(Figure::new("steps without calls, SQL alone, 32 connections", bare, "steps/s"));

    let steps = effort.of(1_000, 100);
    let script = json!([
        { "text": SENTENCE, "rate_per_second": 0, "repeat": steps - 1,
          "tool_calls": [{ "name": "clock", "arguments": {} }] },
        { "text": "Done.", "rate_per_second": 0 },
    ]);
    let agent = Agent::Scripted { name: "long", script };
    let world = World::start(2 * floor::MANY as u32, &[agent]).await?;
    let begun = Instant::now();
    world.submit_many("long", floor::MANY, floor::MANY).await?;
    world.until_all_over(PATIENCE).await?;
    let rate = (floor::MANY * steps) as f64 / begun.elapsed().as_secs_f64();
    figures.push(
        Figure::new(format!("steps with a call, end to end, 32 runs of {steps}"), rate, "steps/s")
            .over(floor_of_many)
            .aim(Aim::TimesFloorOrMore(0.6)),
    );
    Ok(figures)
}
