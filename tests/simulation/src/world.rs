//! Everything outside the processes: the database, the two networks, the clients, and what is known of what happened.
//!
//! A schedule runs on one thread, and its world is that thread's: model, tools, store and bus reach it from inside the
//! processes by [`with`].

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use fastrand::Rng;
use longhaul_shared::{
    bus::{Bus, Live, Signal, in_process::InProcessBus},
    domain::{
        event::Segment,
        ids::{ChatId, RunId, WorkerId, WorkspaceId},
        tool::CallState,
    },
    store::memory::MemoryStore,
};

use crate::{
    check::Checker,
    client::Op,
    coverage::Coverage,
    effects::Ledger,
    model::Calls,
    schedule::{Schedule, hash},
};

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Looks at this thread's world, or changes it. Not from within another look.
pub fn with<T>(look: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(|world| look(world.as_mut().expect("a schedule is under way on this thread")))
}

pub fn install(world: World) {
    WORLD.set(Some(world));
}

pub fn take() -> World {
    WORLD.take().expect("a schedule is under way on this thread")
}

/// Where every schedule's clock begins: an ordinary day.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// Less than a lease: a holder that is frozen may miss it and be back before it is taken for dead.
const STOP_GRACE_MS: i64 = 300;

/// The name of a request to a tool.
pub const TOOL_CALL: &str = "a tool call";

/// A request on its way to the database, or to a tool.
pub struct Request {
    pub process: usize,
    pub name: &'static str,
    /// The process that sent it is gone.
    pub is_orphan: bool,
    pub apply: Box<dyn FnOnce(&MemoryStore)>,
}

enum Hint {
    Segment(Arc<Segment>),
    Signal(Signal),
    Resync,
}

/// The outside of one process.
pub struct Process {
    pub rng: Rng,
    pub bus: Option<Arc<InProcessBus>>,
}

pub struct World {
    pub schedule: Schedule,
    /// Nothing goes wrong in the schedule.
    pub is_calm: bool,
    pub now: u64,
    clock: Arc<AtomicI64>,
    pub store: MemoryStore,
    pub workspace: WorkspaceId,
    pub chats: Vec<ChatId>,
    pub processes: Vec<Process>,
    /// The process that is being stepped.
    pub current: usize,
    requests: BTreeMap<(u64, u64), Request>,
    hints: BTreeMap<(u64, u64), (usize, Hint)>,
    tickets: u64,
    pub is_healed: bool,
    pub database_away_until: u64,
    pub hints_away_until: u64,
    /// What attempts and clients did since the last look; the background's polling does not count.
    pub activity: u64,
    pub ops: Vec<Op>,
    pub ledger: Ledger,
    pub calls: Calls,
    pub checker: Checker,
    /// Which process registered which worker.
    pub leases: BTreeMap<WorkerId, usize>,
    /// Keys whose stop was there before their submission.
    pub noted: Vec<u32>,
    /// What late answers were taken.
    pub late: BTreeMap<(RunId, u32, u32), CallState>,
    /// Workers whose death was proven.
    pub proven_dead: Vec<WorkerId>,
    pub coverage: Coverage,
    pub violation: Option<String>,
    pub trace: Option<Vec<String>>,
}

impl World {
    pub fn new(schedule: Schedule, is_traced: bool) -> Self {
        let clock = Arc::new(AtomicI64::new(EPOCH_MS));
        let time = Arc::clone(&clock);
        let store = MemoryStore::new(move || time.load(Ordering::Relaxed));
        store.rows(|rows| rows.stop_grace_ms = STOP_GRACE_MS);
        let processes =
            (0..=schedule.workers).map(|_| Process { rng: Rng::with_seed(0), bus: None }).collect();
        Self {
            is_calm: schedule.is_calm(),
            now: 0,
            clock,
            store,
            workspace: WorkspaceId::generate(),
            chats: vec![],
            processes,
            current: 0,
            requests: BTreeMap::new(),
            hints: BTreeMap::new(),
            tickets: 0,
            is_healed: false,
            database_away_until: 0,
            hints_away_until: 0,
            activity: 0,
            ops: vec![],
            ledger: Ledger::default(),
            calls: Calls::default(),
            checker: Checker::default(),
            leases: BTreeMap::new(),
            noted: vec![],
            late: BTreeMap::new(),
            proven_dead: vec![],
            coverage: Coverage::default(),
            violation: None,
            trace: is_traced.then(Vec::new),
            schedule,
        }
    }

    /// The first violation counts; what follows may be its consequence.
    pub fn violate(&mut self, what: impl Display) {
        if self.violation.is_none() {
            self.note(|| format!("VIOLATION: {what}"));
            self.violation = Some(what.to_string());
        }
    }

    /// A line of the trace, made only if somebody reads it.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>6}  {}", self.now, line()));
        }
    }

    pub fn move_to(&mut self, now: u64) {
        self.now = now;
        self.clock.store(EPOCH_MS + now as i64, Ordering::Relaxed);
    }

    /// Whether something happens that goes wrong so many times in a thousand.
    pub fn strikes(&mut self, process: usize, thousandths: u16) -> bool {
        !self.is_healed && thousandths > 0 && self.processes[process].rng.u16(0..1_000) < thousandths
    }

    /// A source of chance for what is named, whatever happened before.
    pub fn rng_of(&self, name: &[u64]) -> Rng {
        Rng::with_seed(hash(&[&[self.schedule.seed], name].concat()))
    }

    /// What people call the run: by its place among all runs.
    pub fn name_of(&self, run_id: RunId) -> String {
        let place = self.store.rows(|rows| rows.runs.keys().position(|known| *known == run_id));
        place.map_or_else(|| "no run".to_owned(), |place| format!("run{place}"))
    }

    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    pub fn send(&mut self, after_ms: u64, request: Request) {
        let place = (self.now + after_ms, self.ticket());
        self.requests.insert(place, request);
    }

    /// The next request that has reached the database.
    pub fn arrived(&mut self) -> Option<Request> {
        let entry = self.requests.first_entry().filter(|entry| entry.key().0 <= self.now)?;
        Some(entry.remove())
    }

    /// What the process has sent when it stops is lost on the way, or stuck there for a while, and arrives although
    /// nobody waits for the answer any more.
    pub fn orphan_requests(&mut self, process: usize, is_dead: bool) {
        for (place, mut request) in std::mem::take(&mut self.requests) {
            if request.process != process || request.is_orphan {
                self.requests.insert(place, request);
                continue;
            }
            let rng = &mut self.processes[process].rng;
            // One for a tool has far to go.
            let is_far = request.name == TOOL_CALL;
            if is_dead && !is_far && rng.bool() {
                continue;
            }
            request.is_orphan = is_dead;
            let stuck = if is_far || rng.bool() { rng.u64(0..3_000) } else { 0 };
            self.requests.insert((place.0 + stuck, place.1), request);
        }
    }

    pub fn publish(&mut self, from: usize, segment: &Arc<Segment>) {
        for to in 0..self.processes.len() {
            self.send_hint(from, to, || Hint::Segment(Arc::clone(segment)));
        }
    }

    pub fn signal(&mut self, from: usize, signal: &Signal) {
        for to in 0..self.processes.len() {
            self.send_hint(from, to, || Hint::Signal(signal.clone()));
        }
    }

    fn send_hint(&mut self, from: usize, to: usize, hint: impl Fn() -> Hint) {
        let is_lost = self.now < self.hints_away_until || self.strikes(from, self.schedule.weather.lost_hint);
        if is_lost {
            self.coverage.hints_lost += 1;
            return;
        }
        let copies = if self.strikes(from, self.schedule.weather.repeated_hint) {
            self.coverage.hints_repeated += 1;
            2
        } else {
            1
        };
        for _ in 0..copies {
            let late = if self.is_healed { 1 } else { self.processes[from].rng.u64(0..40) };
            let place = (self.now + late, self.ticket());
            self.hints.insert(place, (to, hint()));
        }
    }

    /// An outage of the hints that is over.
    pub fn end_outages(&mut self) {
        if self.hints_away_until > 0 && self.now >= self.hints_away_until {
            self.hints_away_until = 0;
            self.resync_all();
        }
    }

    /// The feed was interrupted: whoever listens is told so, as by a client of Redis that has connected again.
    pub fn resync_all(&mut self) {
        for to in 0..self.processes.len() {
            let place = (self.now, self.ticket());
            self.hints.insert(place, (to, Hint::Resync));
        }
    }

    pub fn deliver_hints(&mut self) {
        while let Some(entry) = self.hints.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (to, hint) = entry.remove();
            let Some(bus) = &self.processes[to].bus else { continue };
            match hint {
                Hint::Segment(segment) => bus.deliver(segment.run_id, Live::Segment(segment)),
                Hint::Signal(signal) => bus.signal(signal),
                Hint::Resync => {
                    let runs: Vec<RunId> = self.store.rows(|rows| rows.runs.keys().copied().collect());
                    for run in runs {
                        bus.deliver(run, Live::Resync);
                    }
                }
            }
        }
    }
}
