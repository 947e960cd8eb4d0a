//! Group commit: the events and steps of all runs of this worker, in order, under their fence.
//!
//! Attempts hand what they have to say to a [`RunLog`]. One task gathers it: while a commit is under way, everything
//! else waits and goes into the next one, so that a busy worker writes many runs at the price of one, and an idle one
//! commits at once. Deltas are coalesced: the first of a step goes out at once, later ones wait up to [`Coalesce`].
//! A segment is published only after its commit. A run has at most one append under way, so its segments become
//! visible in order. An end that a stop came before becomes the end by that stop, with all that was said. No run waits
//! for another's trouble: an end whose chat somebody has locked waits for it in a commit of its own, and a write that
//! makes the store panic is found and refused.

mod pending;
mod run;
mod run_log;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use longhaul_shared::{
    admission::announce,
    bus::Bus,
    domain::{
        event::Segment,
        ids::{Epoch, RunId, Seq},
        retry::Backoff,
    },
    failpoint::{Point, hit, hit_if},
    jitter::jitter,
    mutant::{self, Mutant},
    store::{Append, Committed, Locks, Log, SharedStore, StoreError},
    telemetry::metrics,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use run::{InFlight, Run};
pub use run_log::{Delta, DeltaKind, RunLog, Write};

/// The most runs in one transaction.
const BATCH: usize = 512;
/// What attempts may have handed over and not seen taken: beyond it they wait.
const BACKLOG: usize = 8_192;
/// Longer than any statement may take at the server: beyond it the connection is dead.
const COMMIT_LIMIT: Duration = Duration::from_secs(15);
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
/// How many commits wait for a lock beside the others: each keeps one of the few reserved connections.
const MOST_ASIDE: usize = 1;

/// How long and how much deltas are gathered before they are committed.
#[derive(Clone, Copy, Debug)]
pub struct Coalesce {
    pub time: Duration,
    pub bytes: usize,
}

/// Why something was not recorded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RecordError {
    /// The run is somebody else's: the attempt ends at once.
    #[error("the lease is lost")]
    LeaseLost,
    /// The database refuses this very write for good.
    #[error("the log cannot be written: {0}")]
    Refused(StoreError),
}

/// Where a run's log stands after a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The last event.
    pub last: Seq,
    /// The event that began the latest attempt at a step; 0 if none did.
    pub step_started: Seq,
}

type Reply = oneshot::Sender<Result<Position, RecordError>>;

/// What attempts send.
enum Entry {
    Open { writer: Weak<Writer>, template: Box<Append>, lost: CancellationToken },
    Delta { key: Key, delta: Delta },
    Write { key: Key, write: Box<Write>, reply: Option<Reply> },
}

/// One attempt's right to write.
type Key = (RunId, Epoch);

/// Lives as long as the attempt does: once it is gone, nothing more comes.
struct Writer;

/// Cheap to clone; the task ends when the last clone and the last [`RunLog`] are dropped.
#[derive(Clone)]
pub struct Recorder {
    entries: mpsc::Sender<Entry>,
}

impl Recorder {
    /// The handle, and the one task that commits, which is to be spawned.
    pub fn new(
        store: SharedStore,
        bus: Arc<dyn Bus>,
        coalesce: Coalesce,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        Self::on(store, bus, coalesce)
    }

    fn on(
        store: Arc<dyn Log>,
        bus: Arc<dyn Bus>,
        coalesce: Coalesce,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (entries, receiver) = mpsc::channel(BACKLOG);
        let task = Task {
            store,
            bus,
            coalesce,
            runs: BTreeMap::new(),
            aside: FuturesUnordered::new(),
            failures: 0,
            held_back: None,
        };
        (Self { entries }, task.run(receiver))
    }
}

struct Task {
    store: Arc<dyn Log>,
    bus: Arc<dyn Bus>,
    coalesce: Coalesce,
    runs: BTreeMap<Key, Run>,
    /// Commits of one append each that wait for a lock.
    aside: FuturesUnordered<BoxFuture<'static, (InFlight, Result<Committed, StoreError>)>>,
    /// Commits that failed in a row for trouble that passes.
    failures: u32,
    /// Until when nothing is tried after such a failure.
    held_back: Option<Instant>,
}

impl Task {
    async fn run(mut self, mut entries: mpsc::Receiver<Entry>) {
        let mut is_open = true;
        while is_open || !self.runs.is_empty() {
            let due = self.next_due();
            tokio::select! {
                biased;
                entry = entries.recv(), if is_open => match entry {
                    Some(entry) => {
                        self.take(entry);
                        while let Ok(entry) = entries.try_recv() {
                            self.take(entry);
                        }
                    }
                    // What is left belongs to attempts that are gone, but it was said.
                    None => is_open = false,
                },
                Some((one, result)) = self.aside.next(), if !self.aside.is_empty() => self.end_aside(one, result),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            // However much there is to take.
            while let Some(Some((one, result))) = self.aside.next().now_or_never() {
                self.end_aside(one, result);
            }
            let now = Instant::now();
            if self.held_back.is_none_or(|until| until <= now) {
                self.commit_due(now).await;
            }
            self.runs.retain(|_, run| !run.is_over());
        }
    }

    /// When something is to be committed next.
    fn next_due(&self) -> Option<Instant> {
        let due = self.runs.values().filter_map(Run::due).min()?;
        Some(self.held_back.map_or(due, |until| due.max(until)))
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Open { writer, template, lost } => {
                let run = Run::new(writer, *template, lost);
                self.runs.insert(key_of(&run.template), run);
            }
            Entry::Delta { key, delta } => {
                if let Some(run) = self.runs.get_mut(&key) {
                    run.pending.push_delta(delta, self.coalesce);
                }
            }
            Entry::Write { key, write, reply } => match self.runs.get_mut(&key) {
                Some(run) => run.pending.push(*write, reply, self.coalesce),
                None => answer(reply, &Err(RecordError::LeaseLost)),
            },
        }
    }

    /// Commits what is due, together.
    async fn commit_due(&mut self, now: Instant) {
        // Those who have waited longest first: a batch may not have room for all.
        let mut due: Vec<&mut Run> = self.runs.values_mut().filter(|run| run.is_due(now)).collect();
        due.sort_by_key(|run| run.due());
        let (appends, waiting): (Vec<Append>, Vec<_>) = due
            .into_iter()
            .filter_map(Run::begin)
            .take(BATCH)
            .map(|one| (one.append, (one.step_started, one.replies, one.put_off)))
            .unzip();
        if appends.is_empty() {
            return;
        }
        let (appends, results) = self.commit(appends).await;
        let mut trouble = None;
        for ((append, (step_started, replies, put_off)), result) in
            appends.into_iter().zip(waiting).zip(results)
        {
            let one = InFlight { append, step_started, replies, since: now, put_off };
            trouble = self.conclude(one, result).or(trouble);
        }
        self.hold_back(trouble.as_ref());
    }

    /// What became of an append. The error, if there is no use in trying anything else at the moment.
    fn conclude(&mut self, mut one: InFlight, result: Result<Committed, StoreError>) -> Option<StoreError> {
        let (run_id, epoch) = (one.append.run_id, one.append.epoch);
        match result {
            Ok(committed) => self.succeed(one, committed),
            Err(error) if error.is_transient() => {
                let run = self.runs.get_mut(&key_of(&one.append)).filter(|run| !run.lost.is_cancelled());
                let Some(run) = run else {
                    self.fail(one, &RecordError::LeaseLost);
                    return None;
                };
                let is_about_locks = error.is_about_locks() && one.append.ending.is_some();
                if !is_about_locks {
                    run.unconfirmed = Some(one);
                    return Some(error);
                }
                if self.aside.len() < MOST_ASIDE {
                    run.is_aside = true;
                    tracing::debug!(run.id = %run_id, epoch, "the run's end waits for its chat");
                    self.aside.push(commit_aside(Arc::clone(&self.store), one).boxed());
                } else {
                    one.put_off += 1;
                    one.since = Instant::now() + RETRY.wait(one.put_off, jitter());
                    run.unconfirmed = Some(one);
                }
            }
            Err(StoreError::Stopping(wish)) => {
                one.end_by(wish);
                one.since = Instant::now();
                if let Some(run) = self.runs.get_mut(&key_of(&one.append)) {
                    run.next = one.append.last_seq() + 1;
                    run.unconfirmed = Some(one);
                }
            }
            Err(StoreError::LeaseLost) => {
                metrics::fenced_write();
                tracing::warn!(run.id = %run_id, epoch, "a write was fenced off: the run has changed hands");
                self.fail(one, &RecordError::LeaseLost);
            }
            Err(error) => {
                tracing::error!(run.id = %run_id, %error, "a write of the log was refused");
                self.fail(one, &RecordError::Refused(error));
            }
        }
        None
    }

    /// The next commit of all finds out whether the trouble is everybody's.
    fn end_aside(&mut self, one: InFlight, result: Result<Committed, StoreError>) {
        if let Some(run) = self.runs.get_mut(&key_of(&one.append)) {
            run.is_aside = false;
        }
        self.conclude(one, result);
    }

    async fn commit(&mut self, appends: Vec<Append>) -> (Vec<Append>, Vec<Result<Committed, StoreError>>) {
        let ends = || appends.iter().any(|append| append.ending.is_some());
        hit(Point::BeforeCommit);
        hit_if(Point::BeforeFinalize, ends);
        if mutant::is(Mutant::PublishBeforeCommit) {
            announce(&*self.bus, appends.iter().map(uncommitted).collect(), vec![]);
        }
        let appends = Arc::new(appends);
        let together = commit_bounded(&self.store, Arc::clone(&appends), Locks::Refuse).await;
        let appends = Arc::unwrap_or_clone(appends);
        if let Some(results) = together {
            return (appends, results);
        }
        // Whose fault it was shows when each goes alone.
        let mut results = Vec::with_capacity(appends.len());
        for append in &appends {
            let alone = commit_bounded(&self.store, Arc::new(vec![append.clone()]), Locks::Refuse).await;
            results.extend(alone.unwrap_or_else(|| vec![Err(StoreError::Panicked)]));
        }
        (appends, results)
    }

    fn hold_back(&mut self, trouble: Option<&StoreError>) {
        self.failures = if trouble.is_some() { self.failures + 1 } else { 0 };
        self.held_back = trouble.map(|error| {
            tracing::warn!(%error, failures = self.failures, "cannot commit; trying again");
            Instant::now() + RETRY.wait(self.failures, jitter())
        });
    }

    fn succeed(&mut self, one: InFlight, committed: Committed) {
        let position = Position { last: one.append.last_seq(), step_started: one.step_started };
        if let Some(run) = self.runs.get_mut(&key_of(&one.append)) {
            run.unconfirmed = None;
            if one.step_started >= one.append.first_seq {
                run.step_started_at = committed.segment.at;
            }
        }
        hit(Point::AfterPersistBeforePublish);
        hit_if(Point::AfterFinalizeBeforeAck, || one.append.ending.is_some());
        announce(
            &*self.bus,
            std::iter::once(committed.segment).chain(committed.caused).collect(),
            committed.wake,
        );
        for reply in one.replies {
            answer(Some(reply), &Ok(position));
        }
    }

    /// The append will never be written. After a lost lease nothing of this attempt is.
    fn fail(&mut self, one: InFlight, error: &RecordError) {
        let key = key_of(&one.append);
        let mut replies = one.replies;
        if let Some(run) = self.runs.get_mut(&key) {
            run.unconfirmed = None;
            // The numbers of what was not written are given out again.
            run.next = one.append.first_seq;
            if matches!(error, RecordError::LeaseLost) {
                run.lost.cancel();
                replies.extend(run.pending.abandon());
                self.runs.remove(&key);
            }
        }
        for reply in replies {
            answer(Some(reply), &Err(error.clone()));
        }
    }
}

/// Waits for the chat's lock for as long as the store does.
async fn commit_aside(store: Arc<dyn Log>, one: InFlight) -> (InFlight, Result<Committed, StoreError>) {
    let results = commit_bounded(&store, Arc::new(vec![one.append.clone()]), Locks::Await).await;
    let result = results.and_then(|mut results| results.pop()).unwrap_or(Err(StoreError::Panicked));
    (one, result)
}

/// Commits in a task of its own, so that a connection that never answers is given up without being dropped. What
/// became of that commit is found out when the same appends go again. `None`: it panicked.
async fn commit_bounded(
    store: &Arc<dyn Log>,
    appends: Arc<Vec<Append>>,
    locks: Locks,
) -> Option<Vec<Result<Committed, StoreError>>> {
    let (store, count) = (Arc::clone(store), appends.len());
    let commit = tokio::spawn(async move {
        match locks {
            Locks::Await => store.commit(&appends).await,
            Locks::Refuse => store.commit_at_once(&appends).await,
        }
    });
    match timeout(COMMIT_LIMIT, commit).await {
        Ok(Ok(results)) => Some(results),
        Ok(Err(error)) if error.is_panic() => None,
        Ok(Err(_)) | Err(_) => Some(vec![Err(StoreError::TimedOut); count]),
    }
}

fn key_of(append: &Append) -> Key {
    (append.run_id, append.epoch)
}

/// A segment as a mutant shows it that does not wait for the commit.
fn uncommitted(append: &Append) -> Segment {
    let (first, last) = (append.first_seq, append.last_seq());
    Segment { run_id: append.run_id, first, last, at: 0, events: append.events.clone() }
}

fn answer(reply: Option<Reply>, result: &Result<Position, RecordError>) {
    if let Some(reply) = reply {
        // An attempt that was cancelled no longer waits.
        let _ = reply.send(result.clone());
    }
}
