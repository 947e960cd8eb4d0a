//! Takes jobs and does them: the agent run, step by step.
//!
//! [`run`] starts the parts of one worker and ends them in order. [`lease`] keeps the right to hold runs,
//! [`run`](mod@run) works on them, [`recorder`] writes what they do, [`reaper`] and [`presence`] look after dead peers,
//! [`provider`] and [`tools`] are what runs talk to.

pub mod agents;
#[cfg(test)]
mod fixture;
pub mod lease;
pub mod presence;
pub mod provider;
pub mod reaper;
pub mod recorder;
pub mod redact;
pub mod run;
pub mod tools;

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use apalis::prelude::{BoxDynError, Data, Monitor, ParallelizeExt, WorkerBuilder};
use longhaul_shared::{
    admission::announce,
    backends::Processes,
    bus::Bus,
    config::Config,
    domain::event::ReleaseReason,
    queue::{
        Holdings, Leased,
        backend::{LeasedBackend, Unbegun},
        claim::Claimer,
    },
    shutdown::Shutdown,
    store::{SharedStore, StoreError, bounded},
    telemetry::metrics,
};
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    agents::{Agents, BadAgent},
    lease::Lease,
    presence::{Listener, watch::Watch},
    recorder::{Coalesce, Recorder},
    run::{attempt::Attempts, late::Late},
};

/// Runs handed back at the same time: fewer than the connections that are kept for commits and claims.
const HAND_BACKS: usize = 2;
/// What the recorder gets to write what was said last.
const LAST_COMMITS: Duration = Duration::from_secs(5);

/// What a worker is made of.
pub struct Parts {
    pub store: SharedStore,
    /// The same store for the lease alone, by connections that nothing else can use up.
    pub leases: SharedStore,
    /// Whether there may be other workers to watch, and to be watched by.
    pub processes: Processes,
    pub bus: Arc<dyn Bus>,
    pub config: Arc<Config>,
}

/// Why a worker cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Agent(#[from] BadAgent),
    #[error("cannot listen at worker.presence: {0}")]
    Presence(#[source] io::Error),
    #[error("cannot start the thread of the lease: {0}")]
    Thread(#[source] io::Error),
    #[error("the worker's {0} panicked")]
    Task(&'static str),
    #[error("the worker framework failed: {0}")]
    Framework(String),
}

/// Works until the soft stop, then hands back what does not come to a saved point within the drain time.
pub async fn run(parts: Parts, shutdown: Shutdown) -> Result<(), Error> {
    let agents = Agents::from_config(&parts.config)?;
    run_as(agents, parts, shutdown).await
}

/// [`run`] with agents that the caller made.
pub async fn run_as(agents: Agents, parts: Parts, shutdown: Shutdown) -> Result<(), Error> {
    let Parts { store, leases, processes, bus, config } = parts;
    // Held here, so that it is open longer than the lease is held, whatever ends that.
    let listener = match processes {
        Processes::One => None,
        Processes::Many => Some(Arc::new(listen(&config)?)),
    };
    let coalesce = Coalesce { time: config.stream.coalesce, bytes: config.stream.coalesce_bytes as usize };
    let (recorder, recording) = Recorder::new(Arc::clone(&store), Arc::clone(&bus), coalesce);
    let recording = guarded(&shutdown.soft, recording);
    let holdings = Arc::new(Holdings::default());
    let hard_stop = shutdown.hard.child_token();
    // After the last attempt: until then the lease is kept and stops are heard.
    let done = CancellationToken::new();

    metrics::slots(config.worker.slots);
    let lease = Lease {
        store: leases,
        holdings: Arc::clone(&holdings),
        listener: listener.clone(),
        slots: config.worker.slots,
        lease: config.worker.lease,
        heartbeat: config.worker.heartbeat,
        drain: shutdown.soft.clone(),
        done: done.clone(),
    };
    let stops =
        lease::deliver_stops(Arc::clone(&store), Arc::clone(&bus), Arc::clone(&holdings), done.clone());
    // A claim that was not answered in this time is disowned.
    let unheard_of = config.worker.lease / 3;
    let strangers = lease::disown_strangers(
        Arc::clone(&store),
        Arc::clone(&bus),
        Arc::clone(&holdings),
        unheard_of,
        done.clone(),
    );
    let watching = listener.as_ref().map(|listener| Watch {
        store: Arc::clone(&store),
        bus: Arc::clone(&bus),
        holdings: Arc::clone(&holdings),
        place: listener.presence().place.clone(),
        done: done.clone(),
    });
    let nobody_to_watch = done.clone();
    let watching = async move {
        match watching {
            Some(watch) => watch.run().await,
            None => nobody_to_watch.cancelled().await,
        }
    };
    let reaping = reaper::reap(Arc::clone(&store), Arc::clone(&bus), shutdown.soft.clone());
    let lease = keep_in_thread(lease).map_err(Error::Thread)?;
    let tasks = [
        ("recorder", recording),
        ("lease", guarded(&shutdown.soft, lease)),
        ("stops", guarded(&shutdown.soft, stops)),
        ("strangers", guarded(&shutdown.soft, strangers)),
        ("reaper", guarded(&shutdown.soft, reaping)),
        ("watch over the other workers", guarded(&shutdown.soft, watching)),
    ];
    let cutting = tokio::spawn(cut_drain(shutdown.clone(), config.worker.drain_timeout, hard_stop.clone()));

    let (backend, unbegun) = LeasedBackend::start(Claimer {
        store: Arc::clone(&store),
        bus: Arc::clone(&bus),
        holdings: Arc::clone(&holdings),
        queues: config.worker.queues.clone(),
        slots: config.worker.slots,
        poll: config.worker.poll,
        patience: unheard_of,
        stop: shutdown.soft.clone(),
    });
    let (late, late_stop) = (TaskTracker::new(), hard_stop.clone());
    let attempts = Arc::new(Attempts {
        store: Arc::clone(&store),
        bus: Arc::clone(&bus),
        recorder,
        agents,
        limits: config.limits.clone(),
        late: Late { store: Arc::clone(&store), tasks: late.clone(), hard_stop: hard_stop.clone() },
        hand_backs: Semaphore::new(HAND_BACKS),
        drain: shutdown.soft.clone(),
        hard_stop,
    });
    let worked = work(backend, attempts, shutdown.soft.clone()).await;

    // Also if the framework gave up by itself: without it nothing is worked on.
    shutdown.soft.cancel();
    hand_back_unbegun(&store, &*bus, &unbegun).await;
    late.close();
    tokio::select! {
        biased;
        () = late.wait() => {}
        () = async { late_stop.cancelled().await; sleep(LAST_COMMITS).await } => {}
    }
    cutting.abort();
    let [(_, recording), others @ ..] = tasks;
    let recorded = timeout(LAST_COMMITS, recording).await;
    done.cancel();
    let mut broken = match recorded {
        Ok(Ok(())) => None,
        Ok(Err(_)) => Some("recorder"),
        Err(_) => {
            tracing::error!("the last events could not be written; the next owner goes on from what was");
            None
        }
    };
    for (name, task) in others {
        broken = broken.or(task.await.err().map(|_| name));
    }
    match broken {
        Some(task) => Err(Error::Task(task)),
        None => worked,
    }
}

/// Starts a task that lasts as long as the worker. One that panics stops the worker: half of one only pretends to work.
fn guarded(soft: &CancellationToken, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let stop = soft.clone().drop_guard();
    tokio::spawn(async move {
        let _stop = stop;
        task.await;
    })
}

fn listen(config: &Config) -> Result<Listener, Error> {
    Listener::bind(config.worker.presence, config.worker.presence_advertise).map_err(Error::Presence)
}

/// Keeps the lease, and says that this process lives, on a thread with a runtime of its own: nothing that blocks or
/// starves the others reaches them. Panics when the thread did.
fn keep_in_thread(lease: Lease) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ended, end) = oneshot::channel();
    thread::Builder::new().name("longhaul-lease".to_owned()).spawn(move || {
        let _lost = LostAtLast(Arc::clone(&lease.holdings));
        let listener = lease.listener.clone();
        runtime.block_on(async move {
            let answering = async {
                match &listener {
                    Some(listener) => listener.answer().await.expect("a bound socket can be answered at"),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = lease.keep() => {}
                () = answering => {}
            }
        });
        // Nobody waits any more if the worker was dropped.
        let _ = ended.send(());
    })?;
    Ok(async move { end.await.expect("the lease's thread ends by itself") })
}

/// What nobody keeps a lease on is lost: also when the keeping panicked.
struct LostAtLast(Arc<Holdings>);

impl Drop for LostAtLast {
    fn drop(&mut self) {
        self.0.lose_all();
    }
}

/// Runs the attempts on the worker framework until the soft stop and the end of the last one.
async fn work(backend: LeasedBackend, attempts: Arc<Attempts>, stop: CancellationToken) -> Result<(), Error> {
    // The backend never fails, so the framework asks for it once.
    let backend = Mutex::new(Some(backend));
    Monitor::new()
        .register(move |_| {
            let backend = backend.lock().unwrap_or_else(PoisonError::into_inner).take();
            WorkerBuilder::new("longhaul")
                .backend(backend.expect("a backend that never fails is never restarted"))
                .data(Arc::clone(&attempts))
                .parallelize(tokio::spawn)
                .build(attempt)
        })
        .run_with_signal(async move {
            stop.cancelled().await;
            Ok(())
        })
        .await
        .map_err(|error| Error::Framework(error.to_string()))
}

async fn attempt(leased: Leased, attempts: Data<Arc<Attempts>>) -> Result<(), BoxDynError> {
    attempts.work(leased).await;
    Ok(())
}

/// Ends the drain when its time is over.
async fn cut_drain(shutdown: Shutdown, drain_timeout: Duration, hard_stop: CancellationToken) {
    shutdown.soft.cancelled().await;
    tokio::time::sleep(drain_timeout).await;
    tracing::warn!("the drain time is over; attempts are handed back where they are");
    hard_stop.cancel();
}

/// Claims that were made in the moment of the stop.
async fn hand_back_unbegun(store: &SharedStore, bus: &dyn Bus, unbegun: &Unbegun) {
    while let Some(leased) = unbegun.pop() {
        let (handing, claim) = (Arc::clone(store), leased.claim.clone());
        let (run_id, last_seq) = (claim.run.id, claim.last_seq);
        let hand_back = async move { handing.hand_back(&claim, last_seq, ReleaseReason::HandBack, 0).await };
        match bounded(LAST_COMMITS, hand_back).await {
            Ok(released) => announce(bus, released.segments, released.wake),
            Err(error @ StoreError::TimedOut) => {
                tracing::warn!(%error, "runs that were not begun are left to the reaper");
                return;
            }
            Err(error) => tracing::warn!(%error, run.id = %run_id, "cannot hand a run back"),
        }
    }
}
