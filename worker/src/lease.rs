//! The lease: this worker's row, kept alive by a heartbeat that depends on nothing else in the process.
//!
//! [`Lease::keep`] is meant for a thread, a runtime and connections of its own: a process that is starved or blocked
//! keeps its lease as long as it gets any time at all, and whatever uses up the other connections delays no heartbeat.
//! One that hangs on a dead connection is overtaken by the next one on another connection.
//!
//! A worker that cannot confirm its row in time takes its runs for lost before anybody else may take them: it counts
//! from the start of the last heartbeat that was answered, by its own clock, which goes on while the machine is
//! suspended. A lost lease is never revived: the worker registers anew and begins with empty hands.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use longhaul_shared::{
    admission::announce,
    bus::{Bus, Signal},
    domain::{ids::WorkerId, retry::Backoff},
    failpoint::{Point, hit},
    jitter::jitter,
    queue::{Holdings, Moment},
    store::{HeldRun, NewWorker, SharedStore, StoreError, Workers, bounded},
    telemetry::metrics::{self, LeaseLoss},
};
use tokio::{
    sync::broadcast::error::RecvError,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::presence::Listener;

const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
/// How soon a stop is noticed whose signal was lost.
const STOP_POLL: Duration = Duration::from_millis(500);
const RETIRE_LIMIT: Duration = Duration::from_secs(5);
/// Heartbeats under way at the same time: one that hangs, and one that may overtake it.
const BEATS: usize = 2;

/// What keeps one worker's lease.
pub struct Lease {
    pub store: Arc<dyn Workers>,
    pub holdings: Arc<Holdings>,
    /// Says who this process is, if there are others to ask.
    pub listener: Option<Arc<Listener>>,
    pub slots: u32,
    pub lease: Duration,
    pub heartbeat: Duration,
    /// No more claims: told to the others by the worker's row.
    pub drain: CancellationToken,
    /// Everything is handed back: the lease may end.
    pub done: CancellationToken,
}

/// Why a lease ended.
enum End {
    Done,
    Lost(LeaseLoss),
}

/// A heartbeat that came to its end, and when it was sent.
type Beat = (Moment, Result<(), StoreError>);

impl Lease {
    /// Holds a lease, and after a loss the next one, until told that all is done.
    pub async fn keep(self) {
        loop {
            let Some((worker_id, since)) = self.register().await else { return };
            self.holdings.confirm(self.valid_until(since));
            self.holdings.begin(worker_id);
            let end = self.hold(worker_id, since).await;
            self.holdings.lose_all();
            self.retire(worker_id).await;
            match end {
                End::Done => return,
                End::Lost(loss) => {
                    metrics::lease_lost(loss);
                    let reason = loss.as_str();
                    tracing::error!(worker.id = %worker_id, reason, "the lease is lost; all attempts are stopped");
                }
            }
        }
    }

    /// What is left of a lease is the reaper's, without waiting for it to run out. A database that does not answer
    /// keeps nobody from registering anew.
    async fn retire(&self, worker_id: WorkerId) {
        let store = Arc::clone(&self.store);
        let retiring = async move { store.retire_worker(worker_id).await };
        if let Err(error) = bounded(RETIRE_LIMIT, retiring).await {
            tracing::warn!(%error, "cannot retire the lease; it runs out by itself");
        }
    }

    async fn register(&self) -> Option<(WorkerId, Moment)> {
        let mut failures = 0;
        loop {
            if self.done.is_cancelled() {
                return None;
            }
            let id = WorkerId::generate();
            // Before the row is there: whoever reads it must find it true.
            if let Some(listener) = &self.listener {
                listener.announce(id);
            }
            let worker = NewWorker {
                id,
                host: host(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                slots: self.slots,
                lease_ms: self.lease.as_millis() as i64,
                // As often, plus what a heartbeat may take.
                renewal_ms: (self.heartbeat.mul_f64(1.25) + Duration::from_millis(250)).as_millis() as i64,
                presence: self.listener.as_ref().map(|listener| listener.presence().clone()),
            };
            let since = Moment::now();
            let store = Arc::clone(&self.store);
            let registering = async move { store.register_worker(&worker).await };
            match bounded(self.lease, registering).await {
                Ok(()) => {
                    tracing::info!(worker.id = %id, slots = self.slots, "the worker holds a lease");
                    return Some((id, since));
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "cannot register");
                    sleep(RETRY.wait(failures, jitter())).await;
                }
            }
        }
    }

    /// How long the lease surely holds by a heartbeat that was sent at `confirmed`.
    fn valid_until(&self, confirmed: Moment) -> Moment {
        confirmed + self.lease.saturating_sub(Duration::from_secs(3)).max(self.lease * 4 / 5)
    }

    /// Renews the lease until it is done or lost. `confirmed` is when the last answered heartbeat was sent.
    async fn hold(&self, worker_id: WorkerId, confirmed: Moment) -> End {
        let mut beats = JoinSet::new();
        let end = self.beat(worker_id, confirmed, &mut beats).await;
        // A heartbeat on its way is neither dropped in mid-flight nor waited for.
        beats.detach_all();
        end
    }

    async fn beat(&self, worker_id: WorkerId, mut confirmed: Moment, beats: &mut JoinSet<Beat>) -> End {
        let mut failures = 0;
        let mut next = (confirmed + self.heartbeat).instant();
        loop {
            let fence = self.valid_until(confirmed).instant();
            tokio::select! {
                biased;
                () = self.done.cancelled() => return End::Done,
                Some(beat) = beats.join_next() => match beat {
                    Ok((sent, Ok(()))) => {
                        // An earlier one may be answered later.
                        confirmed = confirmed.max(sent);
                        self.holdings.confirm(self.valid_until(confirmed));
                        failures = 0;
                        next = (confirmed + self.heartbeat).instant();
                    }
                    Ok((_, Err(StoreError::LeaseLost))) => return End::Lost(LeaseLoss::Refused),
                    Ok((_, Err(error))) => {
                        failures += 1;
                        tracing::warn!(%error, "a heartbeat failed");
                        next = Instant::now() + RETRY.wait(failures, jitter());
                    }
                    Err(panic) => {
                        tracing::error!(%panic, "a heartbeat broke");
                        return End::Lost(LeaseLoss::Unconfirmed);
                    }
                },
                () = sleep_until(fence) => return End::Lost(LeaseLoss::Unconfirmed),
                () = sleep_until(next), if beats.len() < BEATS => {
                    hit(Point::BeforeHeartbeat);
                    let sent = Moment::now();
                    let (store, lease_ms, draining) =
                        (Arc::clone(&self.store), self.lease.as_millis() as i64, self.drain.is_cancelled());
                    beats.spawn(async move { (sent, store.heartbeat(worker_id, lease_ms, draining).await) });
                    next = (sent + self.heartbeat / 2).instant();
                }
            }
        }
    }
}

/// Gives back runs that the database says this worker holds and that it does not know of: the answer to their claim
/// was lost. Seen twice, so that claims on their way are left alone. Apart from the heartbeat, which waits for nothing.
pub async fn disown_strangers(
    store: SharedStore,
    bus: Arc<dyn Bus>,
    holdings: Arc<Holdings>,
    period: Duration,
    done: CancellationToken,
) {
    let mut seen = BTreeSet::new();
    loop {
        tokio::select! {
            biased;
            () = done.cancelled() => return,
            () = sleep(period) => {}
        }
        let Some(worker_id) = holdings.worker_id() else { continue };
        let known = holdings.held();
        let asked = Arc::clone(&store);
        let held = async move { asked.held_by(worker_id).await };
        let held = match bounded(store.patience(), held).await {
            Ok(held) => held,
            Err(error) => {
                tracing::warn!(%error, "cannot list what this worker holds");
                continue;
            }
        };
        // Ended or taken while this process stood still: an attempt that has nothing to write does not notice.
        let is_held = |(run_id, epoch)| held.iter().any(|held| (held.run_id, held.epoch) == (run_id, epoch));
        for (run_id, epoch) in known.into_iter().filter(|known| !is_held(*known)) {
            holdings.lose(run_id, epoch);
        }
        let is_stranger = |held: &HeldRun| !holdings.holds_by(held.run_id, held.epoch);
        let strangers: BTreeSet<HeldRun> = held.into_iter().filter(is_stranger).collect();
        for stranger in strangers.intersection(&seen).copied() {
            let (run_id, disowning) = (stranger.run_id, Arc::clone(&store));
            let disowned = async move { disowning.disown(worker_id, stranger).await };
            match bounded(store.patience(), disowned).await {
                Ok(Some(released)) => {
                    tracing::warn!(run.id = %run_id, "gives back a run whose claim it never heard of");
                    announce(&*bus, released.segments, released.wake);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, run.id = %run_id, "cannot give a run back"),
            }
        }
        seen = strangers;
    }
}

/// Passes requested stops on to their attempts: at once when signalled, else at the next look.
pub async fn deliver_stops(
    store: SharedStore,
    bus: Arc<dyn Bus>,
    holdings: Arc<Holdings>,
    done: CancellationToken,
) {
    let mut signals = bus.signals();
    loop {
        tokio::select! {
            biased;
            () = done.cancelled() => return,
            () = sleep(STOP_POLL) => {}
            () = signalled(&mut signals, &holdings) => {}
        }
        let Some(worker_id) = holdings.worker_id().filter(|_| !holdings.is_empty()) else { continue };
        let asked = Arc::clone(&store);
        match bounded(store.patience(), async move { asked.stop_requests(worker_id).await }).await {
            Ok(stops) => holdings.deliver_stops(&stops),
            Err(error) => tracing::warn!(%error, "cannot look for stops"),
        }
    }
}

async fn signalled(signals: &mut tokio::sync::broadcast::Receiver<Signal>, holdings: &Holdings) {
    loop {
        match signals.recv().await {
            Ok(Signal::Stop { run_id }) if holdings.holds(run_id) => return,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn host() -> String {
    // What containers and shells set; it is for people who read a list of workers.
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests;
