//! The same SQL by itself: what the database gives to plain loops, on a database of its own.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    lane::{Calls, Lane},
    sampled::Sampled,
    world::{new_database, open},
};

/// How many connections work at the same time.
pub(crate) const FEW: [usize; 2] = [1, 8];
/// The number that aims are set against.
pub(crate) const MANY: usize = 32;

/// What loops over whole runs gave.
pub(crate) struct Runs {
    pub(crate) per_second: f64,
    /// The submit transaction.
    pub(crate) submit: Sampled,
}

/// Runs of one step: submit, claim, step write, finalize.
pub(crate) async fn runs(connections: usize, time: Duration, in_one: bool) -> Result<Runs> {
    let loops = |lane: Lane, until: Instant| async move {
        let (mut done, mut submit) = (0_usize, Sampled::default());
        while Instant::now() < until {
            submit.push(lane.admit().await?);
            let claim = lane.claim().await?;
            lane.finish(&claim, in_one).await?;
            done += 1;
        }
        Ok((done, submit))
    };
    let (seconds, results) = race(connections, time, loops).await?;
    let mut runs = Runs { per_second: 0.0, submit: Sampled::default() };
    for (done, submit) in results {
        runs.per_second += done as f64 / seconds;
        runs.submit.append(submit);
    }
    Ok(runs)
}

/// Steps per second of long runs, one run for each connection.
pub(crate) async fn steps(connections: usize, time: Duration, calls: Calls) -> Result<f64> {
    let loops = |lane: Lane, until: Instant| async move { lane.steps(until, calls).await };
    let (seconds, steps) = race(connections, time, loops).await?;
    Ok(steps.into_iter().sum::<usize>() as f64 / seconds)
}

/// What the disk and the server take for the smallest commit there is: latencies are counted in these.
pub(crate) async fn commits(count: usize) -> Result<Sampled> {
    let (database, store, _) = new_database(1).await?;
    store.close().await;
    let pool = database.connect().await?;
    let mut sampled = Sampled::default();
    for _ in 0..count {
        let begun = Instant::now();
        sqlx::query("select pg_logical_emit_message(true, 'bench', 'commit')").execute(&pool).await?;
        sampled.push(begun.elapsed());
    }
    Ok(sampled)
}

/// Lets so many lanes loop at once for that time; answers with the time that it took.
async fn race<T, F>(
    connections: usize,
    time: Duration,
    loops: impl Fn(Lane, Instant) -> F,
) -> Result<(f64, Vec<T>)>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let (database, store, workspace_id) = new_database(1).await?;
    store.close().await;
    let mut lanes = vec![];
    for _ in 0..connections {
        let lane = Lane::new(open(&database, 1)?, workspace_id).await?;
        // Connected and prepared before the clock runs.
        lane.admit().await?;
        let claim = lane.claim().await?;
        lane.finish(&claim, false).await?;
        lanes.push(lane);
    }
    let begun = Instant::now();
    let tasks: Vec<_> = lanes.into_iter().map(|lane| tokio::spawn(loops(lane, begun + time))).collect();
    let mut results = vec![];
    for task in tasks {
        results.push(task.await??);
    }
    Ok((begun.elapsed().as_secs_f64(), results))
}
