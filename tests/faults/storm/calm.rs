//! After the storm: everything comes to its end, each chat goes on, nothing is left to repair, and all of it can be read.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt;
use longhaul_tests::rows::Rows;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use super::install::Installation;
use super::load::Load;

/// How long after the storm everything has to be over.
pub(crate) const REST: Duration = Duration::from_mins(3);
const PROBES: usize = 200;
const READERS: usize = 4;

/// What did not come to rest, in words.
pub(crate) async fn calm(world: &Installation, load: &Arc<Load>, seed: u64) -> Result<Vec<String>> {
    let rows = Rows::Postgres(PgPool::connect(&world.database_url).await?);
    let mut flaws = at_rest(&rows).await;
    world.ready().await;
    let mut chats = load.idle_chats();
    chats.sort();
    let chats: Vec<String> = chats.sample(&mut StdRng::seed_from_u64(seed), PROBES).cloned().collect();
    flaws.extend(load.probe(chats).await.err());
    flaws.extend(at_rest(&rows).await);
    Ok(flaws)
}

/// Waits until nothing is to be done any more.
async fn at_rest(rows: &Rows) -> Vec<String> {
    const MOVING: &[(&str, &str)] = &[
        (
            "runs that are not over",
            "select count(*) from runs where status not in ('succeeded', 'failed', 'aborted')",
        ),
        ("jobs in the queue", "select count(*) from jobs where kind = 'run'"),
        (
            "sessions more than five processes may have",
            "select greatest(count(*) - 60, 0) from pg_stat_activity where backend_type = 'client backend'",
        ),
        (
            "sessions idle in a transaction",
            "select count(*) from pg_stat_activity where state like 'idle in transaction%'",
        ),
    ];
    let begin = Instant::now();
    let mut left = Vec::new();
    for (what, query) in MOVING {
        let mut count = rows.number(query).await;
        while count > 0 && begin.elapsed() < REST {
            sleep(Duration::from_millis(200)).await;
            count = rows.number(query).await;
        }
        if count > 0 {
            left.push(format!("{count} {what}, {} s after the storm", REST.as_secs()));
        }
    }
    left
}

/// Waits until each worker has looked for rows to repair, which it does when it starts; whatever it finds is in its output.
/// A worker's row of long ago shows that it did: it is pruned right after that look.
pub(crate) async fn reconcile(world: &Installation) -> Result<Vec<String>> {
    let pool = PgPool::connect(&world.database_url).await?;
    let rows = Rows::Postgres(pool.clone());
    let mut flaws = Vec::new();
    for slot in world.workers() {
        let mut process = slot.process.lock().await;
        if !slot.drain(&mut process).await {
            flaws.push(format!("{} does not end although there is nothing to do", slot.name));
        }
        sqlx::query(
            "insert into workers (id, host, version, slots, expires_at) values (gen_random_uuid(), '', '', 1, 0)",
        )
        .execute(&pool)
        .await?;
        slot.start_again(&mut process);
        rows.until(
            "the worker looked for rows to repair",
            "select count(*) from workers where expires_at = 0",
            |n| n == 0,
        )
        .await;
    }
    Ok(flaws)
}

/// Every run, its steps and its chat, as clients read them. `strangers` are runs of others, of which they hear nothing.
pub(crate) async fn read_everything(
    load: &Load,
    rows: &Rows,
    strangers: &HashSet<String>,
) -> (usize, Vec<String>) {
    let found = rows.texts("select id_text(id) || ' ' || id_text(chat_id) from runs order by id").await;
    let mut paths = Vec::new();
    for (run, chat) in found.iter().filter_map(|ids| ids.split_once(' ')) {
        let is_ours = !strangers.contains(run);
        let wanted = if is_ours { "200" } else { "404" };
        paths.extend([
            (format!("/v1/runs/{run}"), wanted),
            (format!("/v1/runs/{run}/steps"), wanted),
            (format!("/v1/chats/{chat}/messages?limit=200"), wanted),
        ]);
    }
    paths.sort();
    paths.dedup();
    let count = paths.len();
    let answers = futures::stream::iter(paths).map(async |(path, wanted)| {
        let (answer, body) = load.get(&path).await;
        let is_good = answer.starts_with(wanted) && body.is_object();
        (!is_good).then(|| format!("{path} was answered with {answer}: {body}"))
    });
    let broken = answers.buffer_unordered(READERS).filter_map(std::future::ready).collect().await;
    (count, broken)
}
