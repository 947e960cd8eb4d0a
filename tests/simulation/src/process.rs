//! The simulated processes: the engine's own parts, each process on a runtime and a clock of its own.
//!
//! A process is stepped for a little virtual time, left alone while it is frozen, and dropped in mid-air when it
//! crashes.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use fastrand::Rng;
use longhaul_shared::{
    admission,
    bus::{Bus, in_process::InProcessBus},
    config::{Config, LimitsConfig},
    domain::{event::ReleaseReason, ids::WorkerId},
    queue::{Holdings, backend::LeasedBackend, claim::Claimer},
    store::{Evidence, LogReader, SharedStore},
    tail::Tails,
    telemetry::metrics::Proof,
};
use longhaul_worker::{
    agents::{Agent, Agents},
    lease::{self, Lease},
    reaper,
    recorder::{Coalesce, Recorder},
    run::{attempt::Attempts, late::Late},
};
use serde_json::json;
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::{Instant, advance, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    client::{AGENT, Api},
    database::Connection,
    effects,
    hints::Hints,
    model::SimModel,
    schedule::hash,
    world::with,
};

/// The lease, and how often it is renewed. Beside them a step of the clock is short.
pub const LEASE: Duration = Duration::from_millis(600);
const HEARTBEAT: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(400);
const DRAIN: Duration = Duration::from_millis(150);
/// What the recorder gets to write what was said last.
const LAST_COMMITS: Duration = Duration::from_secs(5);

static AGENTS: LazyLock<Agents> = LazyLock::new(|| {
    Agents::from_iter([Agent {
        name: AGENT.to_owned(),
        model: Arc::new(SimModel),
        model_name: "sim-1".to_owned(),
        instructions: "Do as the plan says.".to_owned(),
        temperature: None,
        tools: effects::registry(),
    }])
});

static ADMITTED: LazyLock<admission::Agents> = LazyLock::new(|| {
    let config = json!({ "agents": { AGENT: { "provider": "sim", "model": "sim-1" } } });
    let config: Config = serde_json::from_value(config).expect("the agent's settings are right");
    admission::Agents::of(&config)
});

/// One process that is alive, though perhaps frozen.
pub struct Process {
    runtime: Runtime,
    /// The process's clock at its start, and the world's.
    begun: Instant,
    begun_at: u64,
    pub frozen_until: Option<u64>,
    role: Role,
}

enum Role {
    Api(Arc<Api>),
    Worker { stop: CancellationToken, work: JoinHandle<()>, store: SharedStore, bus: Arc<dyn Bus> },
}

impl Process {
    /// Starts the process of that number: the first serves clients, the others work.
    pub fn start(number: usize, incarnation: u64) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without input and output needs nothing");
        let here = Arc::new(InProcessBus::new());
        let (begun_at, slots) = with(|world| {
            let process = &mut world.processes[number];
            process.rng = Rng::with_seed(hash(&[world.schedule.seed, 9, number as u64, incarnation]));
            process.bus = Some(Arc::clone(&here));
            (world.now, world.schedule.slots)
        });
        let store = Arc::new(Connection { process: number, incarnation });
        let bus: Arc<dyn Bus> = Arc::new(Hints { process: number, here });
        let begun = runtime.block_on(async { Instant::now() });
        let role = if number == 0 {
            let log: Arc<dyn LogReader> = store.clone();
            let tails = Tails::new(log, Arc::clone(&bus));
            Role::Api(Arc::new(Api { store, bus, agents: ADMITTED.clone(), tails }))
        } else {
            let stop = CancellationToken::new();
            let work = runtime.spawn(work(store.clone(), Arc::clone(&bus), slots, stop.clone()));
            Role::Worker { stop, work, store, bus }
        };
        Self { runtime, begun, begun_at, frozen_until: None, role }
    }

    /// Lets the process live until the world's time is `until`.
    pub fn step(&mut self, until: u64) {
        let until = self.begun + Duration::from_millis(until - self.begun_at);
        self.runtime.block_on(async move { sleep_until(until).await });
    }

    /// The process goes on: its clock has gone on without it.
    pub fn thaw(&mut self, now: u64) {
        self.frozen_until = None;
        let now = self.begun + Duration::from_millis(now - self.begun_at);
        self.runtime.block_on(async move { advance(now.saturating_duration_since(Instant::now())).await });
    }

    pub fn is_frozen(&self, now: u64) -> bool {
        self.frozen_until.is_some_and(|until| now < until)
    }

    /// Has the process serve a client, if it is one that does.
    pub fn serve(&self, place: usize) {
        if let Role::Api(api) = &self.role {
            self.runtime.spawn(Arc::clone(api).perform(place));
        }
    }

    /// A worker has found that another one's process is gone, as `presence::watch` does.
    pub fn look_after(&self, dead: WorkerId) {
        let Role::Worker { store, bus, .. } = &self.role else { return };
        let (store, bus) = (Arc::clone(store), Arc::clone(bus));
        self.runtime.spawn(async move {
            if store.expire_worker(dead, Evidence::Proof).await.is_ok() {
                // One that fails leaves it to the reaper.
                let _ = reaper::take_over(&store, &*bus, Proof::Presence).await;
            }
        });
    }

    pub fn is_worker(&self) -> bool {
        matches!(self.role, Role::Worker { .. })
    }

    pub fn drain(&self) {
        if let Role::Worker { stop, .. } = &self.role {
            stop.cancel();
        }
    }

    /// It was asked to stop and has ended in good order.
    pub fn has_ended(&self) -> bool {
        matches!(&self.role, Role::Worker { work, .. } if work.is_finished())
    }
}

/// One worker from start to stop: `longhaul_worker::run` without the framework between the backend and the attempts.
async fn work(connection: Arc<Connection>, bus: Arc<dyn Bus>, slots: u32, soft: CancellationToken) {
    let store: SharedStore = connection.clone();
    let coalesce = Coalesce { time: Duration::from_millis(15), bytes: 64 };
    let (recorder, recording) = Recorder::new(Arc::clone(&store), Arc::clone(&bus), coalesce);
    let holdings = Arc::new(Holdings::default());
    let (hard_stop, done) = (CancellationToken::new(), CancellationToken::new());
    let lease = Lease {
        store: connection,
        holdings: Arc::clone(&holdings),
        listener: None,
        slots,
        lease: LEASE,
        heartbeat: HEARTBEAT,
        drain: soft.clone(),
        done: done.clone(),
    };
    let parts = || (Arc::clone(&store), Arc::clone(&bus), Arc::clone(&holdings));
    let recording = tokio::spawn(recording);
    let mut others = JoinSet::new();
    others.spawn(lease.keep());
    let (s, b, h) = parts();
    others.spawn(lease::deliver_stops(s, b, h, done.clone()));
    let (s, b, h) = parts();
    others.spawn(lease::disown_strangers(s, b, h, HEARTBEAT, done.clone()));
    others.spawn(reaper::reap(Arc::clone(&store), Arc::clone(&bus), soft.clone()));
    let (drain, cut) = (soft.clone(), hard_stop.clone());
    let cutting = tokio::spawn(async move {
        drain.cancelled().await;
        sleep(DRAIN).await;
        cut.cancel();
    });

    let (s, b, h) = parts();
    let (backend, unbegun) = LeasedBackend::start(Claimer {
        store: s,
        bus: b,
        holdings: h,
        queues: vec!["default".to_owned()],
        slots,
        poll: POLL,
        patience: HEARTBEAT,
        stop: soft.clone(),
    });
    let (late, late_stop) = (TaskTracker::new(), hard_stop.clone());
    let attempts = Arc::new(Attempts {
        store: Arc::clone(&store),
        bus: Arc::clone(&bus),
        recorder,
        agents: AGENTS.clone(),
        limits: LimitsConfig::default(),
        late: Late { store: Arc::clone(&store), tasks: late.clone(), hard_stop: hard_stop.clone() },
        hand_backs: Semaphore::new(2),
        drain: soft.clone(),
        hard_stop,
    });
    let mut under_way = JoinSet::new();
    loop {
        let leased = std::future::poll_fn(|cx| backend.poll_leased(cx));
        tokio::select! {
            biased;
            () = soft.cancelled() => break,
            leased = leased => {
                let attempts = Arc::clone(&attempts);
                under_way.spawn(async move { attempts.work(leased).await });
            }
        }
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
    drop(attempts);
    while let Some(leased) = unbegun.pop() {
        let claim = &leased.claim;
        if let Ok(released) = store.hand_back(claim, claim.last_seq, ReleaseReason::HandBack, 0).await {
            admission::announce(&*bus, released.segments, released.wake);
        }
    }
    late.close();
    tokio::select! {
        biased;
        () = late.wait() => {}
        () = async { late_stop.cancelled().await; sleep(LAST_COMMITS).await } => {}
    }
    cutting.abort();
    // A recorder that panicked has told the world by its panic.
    let _ = recording.await;
    done.cancel();
    while others.join_next().await.is_some() {}
}
