//! One schedule from its first event to rest: the loop that moves time, delivers what is on its way, and steps every
//! process in turn.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
};

use fastrand::Rng;
use futures::FutureExt;
use longhaul_shared::{
    domain::ids::{ChatId, RunId, WorkerId},
    store::{Chats, IfBusy, Jobs, NewChat, Workspaces, memory::State},
};

use crate::{
    client::{AGENT, FIRST_EPILOGUE, Message, Op, Progress, Want},
    coverage::Coverage,
    database::READING,
    process::{LEASE, Process},
    schedule::{Schedule, What, hash},
    world::{self, World, with},
};

/// Virtual milliseconds after which a schedule counts as one that never ends.
const FOREVER: u64 = 180_000;

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What a schedule came to.
pub struct Outcome {
    pub violation: Option<String>,
    pub coverage: Coverage,
    /// Virtual milliseconds until rest.
    pub lasted: u64,
    pub trace: Vec<String>,
}

/// Panics of this process's threads become violations instead of noise.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANIC.with(|seen| {
            if let Ok(mut seen) = seen.try_borrow_mut() {
                seen.get_or_insert_with(|| format!("a panic: {panic}"));
            }
        });
    }));
}

/// Plays the schedule on this thread.
pub fn simulate(schedule: &Schedule, is_traced: bool) -> Outcome {
    simulate_and(schedule, is_traced, |_| {})
}

/// The same, with somebody who changes rows behind everybody's back once all runs of the schedule are over.
pub fn simulate_and(schedule: &Schedule, is_traced: bool, meddle: fn(&mut State)) -> Outcome {
    fastrand::seed(hash(&[schedule.seed, 7]));
    PANIC.set(None);
    world::install(World::new(schedule.clone(), is_traced));
    // What panics is told by the hook.
    let _ = catch_unwind(AssertUnwindSafe(|| Simulation::new(schedule).play(meddle)));
    let mut world = world::take();
    if let Some(panic) = PANIC.take() {
        world.violate(panic);
    }
    Outcome {
        violation: world.violation,
        coverage: world.coverage,
        lasted: world.now,
        trace: world.trace.unwrap_or_default(),
    }
}

struct Simulation {
    processes: Vec<Option<Process>>,
    incarnations: u64,
    rng: Rng,
    next_event: usize,
    is_healed: bool,
    has_epilogue: bool,
    /// Workers that another one is about to find dead.
    seen_dead: Vec<WorkerId>,
}

impl Simulation {
    fn new(schedule: &Schedule) -> Self {
        let store = with(|world| world.store.clone());
        let at_once = "the store in memory waits for nothing";
        let workspace = store.ensure_workspace("sim").now_or_never().expect(at_once).expect("it is open");
        let chats: Vec<ChatId> = (0..schedule.chats)
            .map(|_| {
                let new = NewChat { agent: Some(AGENT.to_owned()), ..NewChat::default() };
                store
                    .create_chat(workspace, new)
                    .now_or_never()
                    .expect(at_once)
                    .expect("the workspace is there")
                    .id
            })
            .collect();
        with(|world| (world.workspace, world.chats) = (workspace, chats));
        let mut simulation = Self {
            processes: vec![],
            incarnations: 0,
            rng: Rng::with_seed(hash(&[schedule.seed, 8])),
            next_event: 0,
            is_healed: false,
            has_epilogue: false,
            seen_dead: vec![],
        };
        simulation.processes = (0..=schedule.workers).map(|number| Some(simulation.start(number))).collect();
        simulation
    }

    fn start(&mut self, number: usize) -> Process {
        self.incarnations += 1;
        with(|world| world.note(|| format!("p{number} starts")));
        Process::start(number, self.incarnations)
    }

    fn play(&mut self, meddle: fn(&mut State)) {
        loop {
            let now = with(|world| world.now);
            self.happen(now);
            with(World::end_outages);
            serve_requests();
            with(World::deliver_hints);
            self.serve_clients();
            self.look_after_dead(now);
            let until = now + self.pace();
            for number in 0..self.processes.len() {
                self.step(number, now, until);
            }
            with(|world| world.move_to(until));
            if has_violation() {
                break;
            }
            if self.is_healed && self.next_event == with(|world| world.schedule.events.len()) && is_at_rest()
            {
                if self.has_epilogue {
                    with(World::check_at_rest);
                    reconcile();
                    break;
                }
                self.has_epilogue = true;
                with(|world| world.store.rows(meddle));
                epilogue();
            }
            if until > FOREVER {
                with(|world| {
                    let why = unfinished(world);
                    world.violate(format!("it never comes to rest: {why}"));
                });
                break;
            }
        }
        self.processes.clear();
    }

    /// What is due by the schedule.
    fn happen(&mut self, now: u64) {
        loop {
            let event = with(|world| {
                let event =
                    world.schedule.events.get(self.next_event).filter(|event| event.at <= now)?.clone();
                world.note(|| format!("#{} {:?}", event.id, event.what));
                Some(event)
            });
            let Some(event) = event else { break };
            self.next_event += 1;
            match event.what {
                What::Crash { process, is_seen } => self.crash(process, is_seen),
                What::Freeze { process, ms } => self.freeze(process, now + ms, ms),
                What::Drain { process } => {
                    with(|world| world.coverage.drains += 1);
                    self.processes[process].iter().for_each(Process::drain);
                }
                What::Disconnect => with(disconnect),
                what => with(|world| begin(world, event.id, &what)),
            }
        }
        if !self.is_healed && now >= with(|world| world.schedule.heals_at) {
            self.heal(now);
        }
    }

    fn crash(&mut self, number: usize, is_seen: bool) {
        with(|world| world.coverage.crashes += 1);
        if self.processes[number].take().is_none() {
            return;
        }
        with(|world| {
            world.processes[number].bus = None;
            world.orphan_requests(number, true);
            if number == 0 {
                forget_answers(world);
            }
            if is_seen {
                let own = world.leases.iter().filter(|(_, process)| **process == number);
                let is_held = |worker: &WorkerId| world.store.rows(|rows| rows.is_alive(*worker));
                self.seen_dead.extend(own.map(|(worker, _)| *worker).filter(is_held));
            }
        });
    }

    /// The first worker that can look finds the processes that are gone.
    fn look_after_dead(&mut self, now: u64) {
        let awake =
            self.processes.iter().flatten().find(|process| process.is_worker() && !process.is_frozen(now));
        if let Some(process) = awake.filter(|process| process.frozen_until.is_none()) {
            self.seen_dead.drain(..).for_each(|worker| process.look_after(worker));
        }
    }

    fn freeze(&mut self, number: usize, until: u64, ms: u64) {
        with(|world| {
            world.coverage.freezes += 1;
            world.coverage.freezes_beyond_the_lease +=
                u64::from(number > 0 && u128::from(ms) > LEASE.as_millis());
        });
        with(|world| world.orphan_requests(number, false));
        if let Some(process) = &mut self.processes[number] {
            process.frozen_until = Some(until);
        }
    }

    /// No faults from here on: everybody is back and everything arrives.
    fn heal(&mut self, now: u64) {
        self.is_healed = true;
        with(|world| {
            world.note(|| "the faults end".to_owned());
            world.is_healed = true;
            world.database_away_until = world.database_away_until.min(now);
            if world.hints_away_until > now {
                world.hints_away_until = now;
                world.resync_all();
            }
        });
        for process in self.processes.iter_mut().flatten().filter(|process| process.frozen_until.is_some()) {
            process.frozen_until = Some(now);
        }
    }

    fn step(&mut self, number: usize, now: u64, until: u64) {
        // A supervisor starts what has crashed, after a while.
        if self.processes[number].is_none() && (self.is_healed || self.rng.u8(0..8) == 0) {
            self.processes[number] = Some(self.start(number));
        }
        let Some(process) = &mut self.processes[number] else { return };
        if process.is_frozen(now) {
            return;
        }
        with(|world| world.current = number);
        if process.frozen_until.is_some() {
            with(|world| world.note(|| format!("p{number} goes on")));
            process.thaw(now);
        }
        process.step(until);
        if process.has_ended() {
            self.processes[number] = None;
            with(|world| {
                world.processes[number].bus = None;
                world.note(|| format!("p{number} has ended"));
            });
        }
    }

    /// How far time moves: not far while there is something to disturb.
    fn pace(&mut self) -> u64 {
        let is_quiet = with(|world| std::mem::take(&mut world.activity) == 0);
        match (self.is_healed, is_quiet) {
            (false, _) => self.rng.u64(3..=25),
            (true, false) => 20,
            (true, true) => 60,
        }
    }

    fn serve_clients(&mut self) {
        let Some(api) = &self.processes[0] else { return };
        let open = with(|world| {
            let mut open = vec![];
            for (place, op) in world.ops.iter_mut().enumerate() {
                if op.state == Progress::Open {
                    op.state = Progress::UnderWay;
                    open.push(place);
                }
            }
            open
        });
        for place in open {
            api.serve(place);
        }
    }
}

fn has_violation() -> bool {
    PANIC.with_borrow(Option::is_some) || with(|world| world.violation.is_some())
}

fn serve_requests() {
    let store = with(|world| world.store.clone());
    while let Some(request) = with(World::arrived) {
        let (process, name, is_orphan) = (request.process, request.name, request.is_orphan);
        (request.apply)(&store);
        if !READING.contains(&name) {
            with(|world| world.check_now(process, name, is_orphan));
        }
    }
}

/// A client begins what the event says, or a cable is cut.
fn begin(world: &mut World, id: u32, what: &What) {
    let newest = |world: &World, chat: usize| {
        let chat = world.chats[chat];
        world
            .store
            .rows(|rows| rows.runs.values().rev().find(|row| row.run.chat_id == chat).map(|row| row.run.id))
    };
    let want = match *what {
        What::Submit { chat, key, message_id, if_busy, delay } => {
            let chat = chat.map(|chat| world.chats[chat]);
            world.coverage.submissions_interrupting += u64::from(if_busy == IfBusy::Interrupt);
            Want::Submit(Message { chat, key, message_id, if_busy, delay })
        }
        What::Stop { chat } => match newest(world, chat) {
            Some(run) => Want::Stop { run },
            None => return,
        },
        What::Watch { chat } => match newest(world, chat) {
            Some(run) => {
                world.coverage.tails += 1;
                Want::Watch { run, after: 0, seen: vec![], from: 0 }
            }
            None => return,
        },
        What::StopKey { key } => Want::StopKey { key },
        What::Delete { chat } => Want::Delete { chat: world.chats[chat] },
        What::DatabaseOutage { ms } => {
            world.coverage.database_outages += 1;
            world.database_away_until = world.now + ms;
            return;
        }
        What::HintOutage { ms } => {
            world.coverage.hint_outages += 1;
            world.hints_away_until = world.now + ms;
            return;
        }
        What::Crash { .. } | What::Freeze { .. } | What::Drain { .. } | What::Disconnect => return,
    };
    world.ops.push(Op { id, want, state: Progress::Open, told: None });
}

/// The process that served the clients is gone: who may, asks again.
fn forget_answers(world: &mut World) {
    for op in world.ops.iter_mut().filter(|op| op.state == Progress::UnderWay) {
        op.state = if op.is_repeatable() { Progress::Open } else { Progress::Done };
        world.coverage.submissions_unanswered += u64::from(matches!(op.want, Want::Submit(_)));
        world.coverage.tails_reset += u64::from(matches!(op.want, Want::Watch { .. }));
    }
}

/// A watcher's connection breaks. What it gets from then on goes nowhere, and it comes back with its cursor.
fn disconnect(world: &mut World) {
    let watching = world.ops.iter().position(|op| {
        op.state == Progress::UnderWay && matches!(&op.want, Want::Watch { seen, .. } if !seen.is_empty())
    });
    let Some(place) = watching else { return };
    let Want::Watch { run, after, .. } = world.ops[place].want else { return };
    let (id, want) = (world.ops[place].id, Want::Watch { run, after, seen: vec![], from: after });
    world.ops.push(Op { id, want, state: Progress::Open, told: None });
}

fn is_at_rest() -> bool {
    with(|world| world.ops.iter().all(|op| op.state == Progress::Done) && unfinished(world).is_empty())
}

/// The runs that are not over, and the clients that still wait.
fn unfinished(world: &World) -> String {
    let mut left: Vec<String> = world.store.rows(|rows| {
        let runs = rows.runs.values().enumerate().filter(|(_, row)| !row.run.status.is_terminal());
        runs.map(|(place, row)| format!("run{place} is {}", row.run.status)).collect()
    });
    let ops = world.ops.iter().filter(|op| op.state != Progress::Done);
    left.extend(ops.map(|op| format!("#{} is {:?}", op.id, op.state)));
    left.join(", ")
}

/// A next message in every chat works.
fn epilogue() {
    with(|world| {
        let chats = world.chats.clone();
        let is_live =
            |chat: &ChatId| world.store.rows(|rows| rows.chats.get(chat).is_some_and(|row| !row.is_deleted));
        let live: Vec<ChatId> = chats.into_iter().filter(is_live).collect();
        for (id, chat) in (FIRST_EPILOGUE..).zip(live) {
            let message = Message {
                chat: Some(chat),
                key: Some(id),
                message_id: None,
                if_busy: IfBusy::Reject,
                delay: None,
            };
            world.ops.push(Op { id, want: Want::Submit(message), state: Progress::Open, told: None });
        }
    });
}

/// The last look for what nobody should have left behind.
fn reconcile() {
    let store = with(|world| world.store.clone());
    let repaired = store.reconcile().now_or_never().expect("the store in memory waits for nothing");
    with(|world| {
        if !matches!(repaired, Ok(0)) {
            world.violate(format!("there was something to reconcile: {repaired:?}"));
        }
        let refused: Vec<RunId> =
            world.ops.iter().filter(|op| op.id >= FIRST_EPILOGUE).filter_map(|op| op.told).collect();
        for run in refused {
            let status = world.store.rows(|rows| rows.runs.get(&run).map(|row| row.run.status));
            if status.is_none_or(|status| status != longhaul_shared::domain::transition::RunStatus::Succeeded)
            {
                world.violate(format!("the next message of a chat came to {status:?}"));
            }
        }
    });
}
