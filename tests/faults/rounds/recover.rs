//! How long a takeover after a SIGKILL, a hand-over after a SIGTERM, and a stop take, with the default lease.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use longhaul_tests::{Bus, End, Script, Setup, Turn, World};
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use super::{bring_back, owner, written};
use crate::Verdict;
use crate::clock::{Clock, now_ms};
use crate::percentiles::{Percentiles, Sampled};

/// Within this time workers have heard each other. The death of one that nobody has heard is found by its lease.
const ACQUAINTED: Duration = Duration::from_millis(1_500);

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Rounds; each kills one worker and drains one
    #[arg(long, default_value_t = 100)]
    kills: usize,
    #[arg(long, value_enum, default_value_t = Redis::On)]
    redis: Redis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "camelCase")]
enum Redis {
    On,
    Off,
}

/// Milliseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    rounds: usize,
    redis: Redis,
    /// From the SIGKILL of the owner to the next claim.
    takeover: Percentiles,
    /// From the owner's release at a saved point to the next claim.
    hand_over: Percentiles,
    /// From the SIGTERM to the next claim: what is left of the step comes first.
    hand_over_from_signal: Percentiles,
    stop_to_upstream_closed: Percentiles,
    stop_to_run_finished: Percentiles,
    flaws: Vec<String>,
}

impl Verdict for Report {
    fn flaws(&self) -> &[String] {
        &self.flaws
    }
}

#[derive(Default)]
struct Seen {
    takeover: Sampled,
    hand_over: Sampled,
    hand_over_from_signal: Sampled,
    upstream_closed: Sampled,
    run_finished: Sampled,
}

pub(crate) async fn run(options: &Options) -> Result<Report> {
    let bus = if options.redis == Redis::On { Bus::Own } else { Bus::Absent };
    let setup = Setup::postgres().bus(bus).workers(2).agent("streams", "tokens-4000-30ms");
    let mut world = World::start(setup.agent("steps", "steps")).await;
    let step = Turn::marked(4).delay(Duration::from_millis(30)).and_call("look", &json!({"op": "again"}));
    world.provider.script("steps", Script::new([step]).repeat_last());
    let mut seen = Seen::default();
    sleep(ACQUAINTED).await;
    for round in 1..=options.kills {
        kill_and_stop(&mut world, &mut seen).await?;
        drain(&mut world, &mut seen).await?;
        if round % 10 == 0 {
            eprintln!("{round} of {} rounds", options.kills);
        }
    }
    let lease = world.lease();
    world.finish().await;
    let report = Report {
        rounds: options.kills,
        redis: options.redis,
        takeover: seen.takeover.percentiles(),
        hand_over: seen.hand_over.percentiles(),
        hand_over_from_signal: seen.hand_over_from_signal.percentiles(),
        stop_to_upstream_closed: seen.upstream_closed.percentiles(),
        stop_to_run_finished: seen.run_finished.percentiles(),
        flaws: Vec::new(),
    };
    let flaws = report.judged(lease);
    Ok(Report { flaws, ..report })
}

impl Report {
    /// What is missing, and what took longer than is promised.
    fn judged(&self, lease: Duration) -> Vec<String> {
        let all = [
            ("takeover", &self.takeover, Some(3_000.0), lease.as_millis() as f64 + 2_000.0),
            ("hand-over", &self.hand_over, None, 2_000.0),
            ("stop to the end of the upstream", &self.stop_to_upstream_closed, None, 1_000.0),
        ];
        let mut flaws = Vec::new();
        for (what, seen, p50, p99) in all {
            if seen.count != self.rounds {
                flaws.push(format!("{what}: {} samples of {} rounds", seen.count, self.rounds));
            }
            flaws.extend(seen.slower_than(what, p50, p99));
        }
        flaws
    }
}

/// The owner of a stream dies; the next one is told to stop.
async fn kill_and_stop(world: &mut World, seen: &mut Seen) -> Result<()> {
    let client = world.client();
    let run = client.submit("streams", "Talk.").await.run_id;
    streams(world, &run, 1).await;
    let owner = owner(world, &run).await?;
    let killed = now_ms();
    world.workers[owner].kill();
    seen.takeover.push((written(world, &run, "run.claimed", 2).await - killed) as f64);

    streams(world, &run, 2).await;
    let asked = now_ms();
    client.stop(&run, 0).await;
    world.provider.until("the stream ends", |calls| calls.iter().all(|call| call.end.is_some())).await;
    let ended = client.ended(&run).await;
    anyhow::ensure!(ended.outcome() == "aborted stop", "{run} ended as {}", ended.outcome());
    let clock = Clock::read();
    let closed = world.provider.calls_to("tokens-4000-30ms").pop().and_then(|call| call.end);
    if let Some((at, End::ClientGone)) = closed {
        seen.upstream_closed.push((clock.ms(at) - asked) as f64);
    }
    let id = world.rows.id(&run);
    let finished = world.rows.number(&format!("select finished_at from runs where id = {id}")).await;
    seen.run_finished.push((finished - asked) as f64);
    bring_back(world, owner).await;
    sleep(ACQUAINTED).await;
    Ok(())
}

/// The owner of a run of many steps is asked to end.
async fn drain(world: &mut World, seen: &mut Seen) -> Result<()> {
    let client = world.client();
    let run = client.submit("steps", "Look.").await.run_id;
    client.until(&run, "two steps are saved", |run| run.step_count >= 2).await;
    let owner = owner(world, &run).await?;
    let asked = now_ms();
    world.workers[owner].terminate();
    let claimed = written(world, &run, "run.claimed", 2).await;
    let released = written(world, &run, "run.released", 1).await;
    seen.hand_over.push((claimed - released) as f64);
    seen.hand_over_from_signal.push((claimed - asked) as f64);
    world.workers[owner].ended().await;
    bring_back(world, owner).await;
    sleep(ACQUAINTED).await;
    client.stop(&run, 10).await;
    Ok(())
}

/// Waits until the run's stream of that attempt is under way.
async fn streams(world: &World, run: &str, attempt: u32) {
    let under_way = |call: &longhaul_tests::fake_provider::Call| {
        call.key == run && call.attempt == attempt && call.pieces > 2
    };
    world.provider.until("it streams", |calls| calls.iter().any(under_way)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(ms: &[f64]) -> Percentiles {
        ms.iter().copied().collect::<Sampled>().percentiles()
    }

    #[test]
    fn what_is_slow_or_missing_is_a_flaw() {
        let good = Report {
            rounds: 2,
            redis: Redis::On,
            takeover: seen(&[1_000.0, 16_000.0]),
            hand_over: seen(&[10.0, 1_900.0]),
            hand_over_from_signal: seen(&[9_000.0, 9_000.0]),
            stop_to_upstream_closed: seen(&[10.0, 900.0]),
            stop_to_run_finished: seen(&[]),
            flaws: Vec::new(),
        };
        let lease = Duration::from_secs(15);
        assert_eq!(good.judged(lease), Vec::<String>::new());
        let late = Report {
            takeover: seen(&[3_100.0, 17_100.0]),
            hand_over: seen(&[2_100.0]),
            stop_to_upstream_closed: seen(&[10.0, 1_100.0]),
            ..good
        };
        let flaws = late.judged(lease).join("\n");
        for word in
            ["takeover: p50", "takeover: p99", "hand-over: 1 samples", "hand-over: p99", "upstream: p99"]
        {
            assert!(flaws.contains(word), "{word}: {flaws}");
        }
    }
}
