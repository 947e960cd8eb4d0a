//! One case of the grid: a run reaches its place, the fault strikes, somebody else takes over, everything heals, and
//! what must hold is looked at.

use std::time::Duration;

use longhaul_tests::client::Submitted;
use longhaul_tests::{At, FAILPOINTS, Gate, PATIENCE, Relay, Setup, Store, World};
use tokio::time::{Instant, sleep};

use super::case::{Fault, Place};
use super::script::{PIECES, Script};
use super::zombie::Zombie;

const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(crate) struct Trial {
    pub(crate) script: Script,
    pub(crate) place: Place,
    pub(crate) fault: Fault,
    /// Tells the trials of one world apart.
    pub(crate) id: usize,
}

/// A world in which trials follow one another. SQLite's dies with its server, so it is for one.
pub(crate) async fn world(setup: Setup, trial: &Trial) -> World {
    match setup.store {
        Store::Postgres => World::start(setup.short_lease().apis(2).workers(0)).await,
        // It goes on without waiting for a lease to run out, which is short only where the heart has to beat.
        Store::Sqlite => {
            let beats = trial.place == Place::Failpoint("before_heartbeat");
            let setup = if beats { setup.short_lease() } else { setup };
            World::start(setup.env(FAILPOINTS, &trial.failpoints())).await
        }
    }
}

impl Trial {
    fn failpoints(&self) -> String {
        match self.place {
            Place::Failpoint(name) => {
                let action = if self.fault == Fault::Kill { "kill" } else { "stop" };
                format!("{name}={action}:{}", self.script.hit_of(name))
            }
            _ => String::new(),
        }
    }

    /// What was broken, in words.
    pub(crate) async fn run(&self, world: &mut World) -> Vec<String> {
        world.provider.script("helper", self.script.script(self.id));
        let gate = self.gate(world);
        let (submitted, tail, late, lost, zombie) = match world.store() {
            Store::Postgres => {
                world.workers.iter_mut().for_each(longhaul_tests::world::Server::kill);
                let cable = world.start_victim(&self.failpoints()).await;
                let submitted = world.client().submit("helper", "Go.").await;
                let tail = world.tail(&submitted.run_id);
                let (late, lost, zombie) = self.strike_worker(world, &cable, gate, &submitted).await;
                (submitted, tail, late, lost, zombie)
            }
            Store::Sqlite => {
                let submitted = world.client().submit("helper", "Go.").await;
                let tail = world.tail(&submitted.run_id);
                self.reached(gate.as_ref(), &mut world.apis[0]).await;
                world.apis[0].kill();
                if let Some(gate) = gate {
                    gate.open();
                }
                world.apis[0].restart_unharmed().await;
                let late = world.tail(&submitted.run_id);
                (submitted, tail, late, 0, None)
            }
        };
        tail.ended().await;
        late.ended().await;
        let lost = lost + losses(world.workers.last().unwrap_or(&world.apis[0]));
        let mut flaws = self.script.flaws(world, self.id, lost, &submitted, &tail).await;
        let next = world.client().say(&submitted.chat_id, "quick", "And now?").await.submitted();
        let next = world.client().ended(&next.run_id).await;
        if next.outcome() != "succeeded done" {
            flaws.push(format!("the next message of the chat ended {}", next.outcome()));
        }
        if let Some(zombie) = zombie {
            flaws.extend(zombie.flaws(world).await);
        }
        world.reconciled().await;
        flaws.extend(world.settled().await);
        flaws
    }

    /// The fault and its healing; a late joiner's tail, how many leases were lost before it struck, and who woke up.
    async fn strike_worker(
        &self,
        world: &mut World,
        cable: &Relay,
        gate: Option<Gate>,
        submitted: &Submitted,
    ) -> (longhaul_tests::Tail, usize, Option<Zombie>) {
        let victim = world.workers.len() - 1;
        self.reached(gate.as_ref(), &mut world.workers[victim]).await;
        let lost = losses(&world.workers[victim]);
        let epoch = world.rows.epoch(&submitted.run_id).await;
        match self.fault {
            Fault::Kill => world.workers[victim].kill(),
            Fault::Stop => world.workers[victim].freeze(),
            Fault::Link(way) => {
                cable.freeze(way);
                world.workers[victim].thaw();
            }
        }
        // What a zombie has open stays open until it wakes up.
        let stays_open = self.fault == Fault::Stop && matches!(self.place, Place::Model(_));
        match &gate {
            Some(gate) if stays_open => gate.open_to_others(),
            Some(gate) => gate.open(),
            None => {}
        }
        world.start_worker().await;
        let late = world.tail_from(&submitted.run_id, 0, 1);
        let is_taken = taken_over_or_over(world, &submitted.run_id, epoch).await;
        let zombie = Zombie::wakes(world.workers[victim].to_string(), &submitted.run_id, epoch);
        match self.fault {
            Fault::Kill => {}
            Fault::Stop => world.workers[victim].thaw(),
            Fault::Link(_) => cable.pass(),
        }
        let is_zombie = self.fault != Fault::Kill && is_taken;
        if is_zombie {
            // What it still had to say was refused by now.
            world.workers[victim].says("the lease is lost").await;
        }
        if stays_open && is_zombie {
            zombie.is_silent(world).await;
        }
        if let Some(gate) = gate {
            gate.open();
        }
        (late, lost, is_zombie.then_some(zombie))
    }

    /// A gate where the run waits, for places that are reached by waiting.
    fn gate(&self, world: &World) -> Option<Gate> {
        let turn = self.script.gated_turn();
        match self.place {
            Place::Model(at) => Some(world.provider.gate_on_turn("helper", turn, at)),
            Place::BeforeEffect(tool) => Some(world.tools.gate_before(tool)),
            Place::AfterEffect(tool) => Some(world.tools.gate_after(tool)),
            // They come in the middle of an answer.
            Place::Failpoint("before_heartbeat" | "before_commit" | "after_persist_before_publish") => {
                Some(world.provider.gate_on_turn("helper", 1, At::Token(PIECES / 2)))
            }
            Place::Failpoint(_) => None,
        }
    }

    async fn reached(&self, gate: Option<&Gate>, process: &mut longhaul_tests::world::Server) {
        match (self.place, gate) {
            (Place::Failpoint(name), _) => struck(process, name).await,
            (_, Some(gate)) => gate.reached().await,
            (_, None) => unreachable!("each other place is a gate"),
        }
    }
}

/// The leases that a process has lost.
fn losses(process: &longhaul_tests::world::Server) -> usize {
    process.output().matches("the lease is lost").count()
}

/// Waits until the process has died or frozen at its failpoint.
pub(crate) async fn struck(process: &mut longhaul_tests::world::Server, failpoint: &str) {
    let begin = Instant::now();
    while process.is_alive() && !process.is_frozen() {
        assert!(begin.elapsed() < PATIENCE, "the failpoint {failpoint} was never reached");
        sleep(LOOK_EVERY).await;
    }
}

/// Waits until somebody else has the run, or until it is over; `true`: somebody else has or had it.
pub(crate) async fn taken_over_or_over(world: &World, run: &str, epoch: i64) -> bool {
    let begin = Instant::now();
    loop {
        if world.rows.epoch(run).await > epoch {
            return true;
        }
        if world.client().run(run).await.is_over() {
            return world.rows.epoch(run).await > epoch;
        }
        assert!(begin.elapsed() < PATIENCE, "nobody took the run over");
        sleep(LOOK_EVERY).await;
    }
}
