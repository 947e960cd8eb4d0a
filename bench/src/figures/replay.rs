//! What it takes to show a finished run of a thousand steps in each view, beside reading the rows of its log.

use std::time::{Duration, Instant};

use anyhow::Result;
use longhaul_shared::{
    domain::ids::RunId,
    store::{LogCursor, SharedStore},
};
use serde_json::json;

use super::Effort;
use crate::{
    client::View,
    provider::SENTENCE,
    sampled::Sampled,
    table::{Aim, Figure},
    world::{Agent, World},
};

const PATIENCE: Duration = Duration::from_mins(5);
/// Rows of one read, as a tail reads them.
const PAGE: u32 = 100;

pub(super) async fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let steps = effort.of(1_000, 100);
    let script = json!([
        { "text": SENTENCE, "rate_per_second": 0, "repeat": steps - 1,
          "usage": { "inputTokens": 10, "outputTokens": 15 },
          "tool_calls": [{ "name": "clock", "arguments": {} }] },
        { "text": "Done.", "rate_per_second": 0 },
    ]);
    let world = World::start(1, &[Agent::Scripted { name: "long", script }]).await?;
    let run_id = world.client.submit("long").await?;
    world.until_all_over(PATIENCE).await?;
    let store = world.store()?;
    let workspace_id = store.ensure_workspace(longhaul_api::DEFAULT_WORKSPACE).await?;
    let start = LogCursor { workspace_id, run_id, after: 0 };

    let views = [("native", View::Native), ("UI messages", View::Ui), ("responses", View::Responses)];
    let mut rows = Sampled::default();
    let mut shown = views.map(|_| Sampled::default());
    // The first round warms the caches.
    for round in 0..=effort.of(30, 5) {
        let read = read(&store, start).await?;
        if round > 0 {
            rows.push(read);
        }
        for ((_, view), sampled) in views.iter().zip(&mut shown) {
            let time = replay(&world, run_id, *view).await?;
            if round > 0 {
                sampled.push(time);
            }
        }
    }
    let figures = views.iter().zip(&shown).map(|((name, _), sampled)| {
        Figure::new(format!("replay of {steps} steps as {name}, p50"), sampled.p50(), "ms")
            .over(rows.p50())
            .aim(Aim::TimesFloorOrLess(2.0))
    });
    Ok(figures.collect())
}

/// The rows alone, as the store gives them.
async fn read(store: &SharedStore, mut cursor: LogCursor) -> Result<Duration> {
    let begun = Instant::now();
    loop {
        let segments = store.read_log(cursor, PAGE).await?;
        let Some(last) = segments.last() else { return Ok(begun.elapsed()) };
        cursor.after = last.last;
    }
}

async fn replay(world: &World, run_id: RunId, view: View) -> Result<Duration> {
    let begun = Instant::now();
    world.client.watch(run_id, view).await?.swallow().await?;
    Ok(begun.elapsed())
}
