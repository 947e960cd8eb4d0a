//! A worker that lost its lease without knowing, at the moment in which it wakes up.

use std::time::{Duration, Instant};

use longhaul_tests::World;
use longhaul_tests::fake_provider::Call;

use crate::clock::{Clock, now_ms};

/// How soon it has closed what it may not have any more.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);

pub(super) struct Zombie {
    /// Its process.
    name: String,
    run: String,
    /// The claim that it held the run by.
    epoch: i64,
    woke: Instant,
    woke_ms: i64,
}

impl Zombie {
    /// Just before it does.
    pub(super) fn wakes(name: String, run: &str, epoch: i64) -> Self {
        Self { name, run: run.to_owned(), epoch, woke: Instant::now(), woke_ms: now_ms() }
    }

    fn is_its(&self, call: &Call) -> bool {
        call.by.as_deref() == Some(self.name.as_str()) && call.key == self.run
    }

    /// Waits until no stream of its is open.
    pub(super) async fn is_silent(&self, world: &World) {
        let closed = |calls: &[Call]| calls.iter().all(|call| !self.is_its(call) || call.end.is_some());
        world.provider.until("the zombie closes its stream", closed).await;
    }

    /// What it did for the run after it had woken up, in words.
    pub(super) async fn flaws(&self, world: &World) -> Vec<String> {
        let mut flaws = Vec::new();
        for call in world.provider.calls().iter().filter(|call| self.is_its(call)) {
            let open = call.end.map_or(Duration::MAX, |(at, _)| at.saturating_duration_since(self.woke));
            // A call may be made again just as it wakes up, before it hears of its loss.
            if open > CLOSED_WITHIN {
                flaws.push(format!("the zombie's stream was open for {open:?} after it woke"));
            }
        }
        for entry in world.tools.ledger() {
            let is_its = entry.by.as_deref() == Some(self.name.as_str())
                && entry.header("x-longhaul-run-id") == Some(self.run.as_str());
            if is_its && entry.arrived > self.woke {
                let late = Clock::read().ms(entry.arrived) - self.woke_ms;
                flaws.push(format!("the zombie sent {} {late} ms after it woke", entry.op));
            }
        }
        let (run, epoch, woke) = (world.rows.id(&self.run), self.epoch, self.woke_ms);
        for (what, rows) in [
            ("log", format!("run_events where run_id = {run} and epoch = {epoch} and created_at > {woke}")),
            ("steps", format!("steps where run_id = {run} and epoch = {epoch} and finished_at > {woke}")),
            (
                "calls",
                format!(
                    "tool_calls where run_id = {run} and epoch = {epoch}
                     and greatest(planned_at, dispatched_at, settled_at) > {woke}"
                ),
            ),
        ] {
            let count = world.rows.number(&format!("select count(*) from {rows}")).await;
            if count > 0 {
                flaws.push(format!("the zombie wrote {count} rows of the {what} after it woke"));
            }
        }
        flaws
    }
}
