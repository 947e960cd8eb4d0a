//! What a step writes to the database's log, early and late in a long run.
//!
//! One run works alone. Each time it asks its model, which is once a step, the position of the WAL is read while it
//! waits for the answer. The median over some steps leaves out those on which a heartbeat or a checkpoint fell.

use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::{PgPool, Row};
use tokio::time::timeout;

use super::Effort;
use crate::{
    lane::{Calls, Lane, Writing},
    sampled::Sampled,
    table::{Aim, Figure},
    world::{Agent, World, new_database},
};

const PATIENCE: Duration = Duration::from_mins(1);
const EARLY: usize = 10;
/// So many steps on each side are looked at too.
const AROUND: usize = 8;

pub(super) async fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let late = effort.of(1_000, 100);
    let floor = alone(late).await?;
    let steps = product(late).await?;
    let (early_bytes, late_bytes) = (around(&steps, EARLY), around(&steps, late));
    let early = Figure::new(format!("WAL of step {EARLY}"), early_bytes, "bytes").over(around(&floor, EARLY));
    let last = Figure::new(format!("WAL of step {late}"), late_bytes, "bytes").over(around(&floor, late));
    let growth = Figure::new(format!("WAL of step {late} over step {EARLY}"), late_bytes / early_bytes, "×");
    Ok(vec![
        early.aim(Aim::TimesFloorOrLess(1.5)),
        last.aim(Aim::TimesFloorOrLess(1.5)),
        growth.aim(Aim::OrLess(1.1)),
    ])
}

/// The same appends by the store's own functions.
async fn alone(late: usize) -> Result<Vec<f64>> {
    let (database, store, workspace_id) = new_database(1).await?;
    let pool = database.connect().await?;
    let lane = Lane::new(store, workspace_id).await?;
    lane.admit().await?;
    let claim = lane.claim().await?;
    let mut writing = Writing::new(&claim);
    let mut positions = vec![];
    for step in 1..=(late + AROUND + 1) as u32 {
        positions.push(position(&pool).await?);
        lane.step(&mut writing, step, Calls::One).await?;
    }
    Ok(between(&positions))
}

async fn product(late: usize) -> Result<Vec<f64>> {
    let steps = late + AROUND + 1;
    let world = World::start(4, &[Agent::Asking { name: "long", model: format!("calls-{steps}") }]).await?;
    let mut asked = world.provider.watch();
    world.client.submit("long").await?;
    let mut positions = vec![];
    for expected in 1..=steps as u32 {
        let one = timeout(PATIENCE, asked.recv()).await.context("the run does not go on")?;
        let one = one.context("the provider is gone")?;
        anyhow::ensure!(one.step == expected, "step {} came instead of {expected}", one.step);
        // The step's own beginning is on its way to the log and belongs to it in full or not at all.
        tokio::time::sleep(Duration::from_millis(5)).await;
        positions.push(position(&world.pool).await?);
        drop(one.go);
    }
    world.until_all_over(PATIENCE).await?;
    Ok(between(&positions))
}

/// Where the WAL ends, in bytes.
async fn position(pool: &PgPool) -> Result<f64> {
    let query = "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8 as at";
    Ok(sqlx::query(query).fetch_one(pool).await?.try_get("at")?)
}

fn between(positions: &[f64]) -> Vec<f64> {
    positions.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

fn around(steps: &[f64], step: usize) -> f64 {
    let mut sampled = Sampled::default();
    for bytes in &steps[step.saturating_sub(AROUND + 1)..(step + AROUND).min(steps.len())] {
        sampled.push_ms(*bytes);
    }
    sampled.p50()
}
