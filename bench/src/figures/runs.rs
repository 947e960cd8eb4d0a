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
    let mut floor_of_many = 0.0;
    for connections in floor::CONNECTIONS {
        let rate = floor::runs(connections, effort.floor_time(), false).await?.per_second;
        figures.push(Figure::new(
            format!("one-step runs, SQL alone, {connections} connections"),
            rate,
            "runs/s",
        ));
        floor_of_many = rate;
    }
    let in_one = floor::runs(floor::MANY, effort.floor_time(), true).await?.per_second;
    figures.push(Figure::new("one-step runs, SQL alone, step and end in one commit", in_one, "runs/s"));

    let script = json!([{ "text": "Done.", "rate_per_second": 0 }]);
    let world = World::start(SLOTS, &[Agent::Scripted { name: "one", script }]).await?;
    world.submit_many("one", 200, floor::MANY).await?;
    world.until_all_over(PATIENCE).await?;
    let runs = effort.of(6_000, 600);
    let begun = Instant::now();
    world.submit_many("one", runs, floor::MANY).await?;
    let submitted = runs as f64 / begun.elapsed().as_secs_f64();
    world.until_all_over(PATIENCE).await?;
    let finished = runs as f64 / begun.elapsed().as_secs_f64();
    figures.push(Figure::new("submissions, while runs are worked on", submitted, "runs/s"));
    figures.push(
        Figure::new("one-step runs, end to end", finished, "runs/s")
            .over(floor_of_many)
            .aim(Aim::TimesFloorOrMore(0.55)),
    );
    Ok(figures)
}
