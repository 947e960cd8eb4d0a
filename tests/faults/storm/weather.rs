//! Carries the plan out, keeps processes running that ended by themselves, and heals everything in the end.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use longhaul_tests::{Process, Signal, Way};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::{Connection, PgConnection};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::install::{Installation, Slot};
use super::load::Load;
use super::plan::{Fault, Planned, Weather};
use crate::clock::now_ms;
use crate::workers::identities;

/// How long a thawed worker is left alone, so that what it still has to say comes out.
const AWAKE: Duration = Duration::from_millis(1_500);

/// Less than what a lease is sure to last when it has been renewed just now.
const NAP: Duration = Duration::from_millis(3_700);
/// How long a nap waits for a worker with runs that are worth stopping.
const FIND_SLEEPER: Duration = Duration::from_secs(15);
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// How long a fuse has to burn before it is taken out again.
const FUSE: Duration = Duration::from_secs(5);

/// The fault that nobody did.
pub(crate) const EXIT: &str = "exits_of_their_own";

/// A fault that was done. Times are Unix milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Incident {
    pub(crate) fault: &'static str,
    pub(crate) from: i64,
    pub(crate) until: i64,
    /// When its process was surely dead, or went on after a sleep.
    pub(crate) turned: Option<i64>,
    /// The process, or the one at whose link it was.
    pub(crate) slot: Option<String>,
    pub(crate) link: Option<&'static str>,
}

#[derive(Default)]
pub(crate) struct Incidents(Mutex<Vec<Incident>>);

impl Incidents {
    pub(crate) fn all(&self) -> Vec<Incident> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for incident in self.all() {
            *counts.entry(incident.fault).or_default() += 1;
        }
        counts
    }

    fn add(&self, incident: Incident) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(incident);
    }
}

/// The whole storm. Returns when everything is whole again.
pub(crate) async fn blow(
    world: &Installation,
    load: &Load,
    incidents: &Incidents,
    plan: Vec<Planned>,
    length: Duration,
) {
    let begin = Instant::now();
    let strikes = plan.into_iter().map(async |planned| {
        sleep_until(begin + planned.at).await;
        incidents.add(strike(world, load, planned).await);
    });
    join_all(strikes).await;
    sleep_until(begin + length).await;
    for slot in &world.slots {
        slot.links.iter().for_each(|link| link.relay.pass());
    }
}

/// Starts again whatever ended by itself. Never returns.
pub(crate) async fn supervise(world: &Installation, incidents: &Incidents) -> ! {
    loop {
        for slot in &world.slots {
            // Whoever holds the lock ended it on purpose.
            let Ok(mut process) = slot.process.try_lock() else { continue };
            if process.has_ended() {
                let at = now_ms();
                let (slot_name, link) = (Some(slot.name.clone()), None);
                let turned = Some(at);
                incidents.add(Incident { fault: EXIT, from: at, until: at, turned, slot: slot_name, link });
                slot.start_again(&mut process);
            }
        }
        sleep(Duration::from_millis(300)).await;
    }
}

async fn strike(world: &Installation, load: &Load, planned: Planned) -> Incident {
    let Planned { fault, pick, .. } = planned;
    let mut incident =
        Incident { fault: fault.name(), from: now_ms(), until: 0, turned: None, slot: None, link: None };
    match fault {
        Fault::KillWorker { down } => {
            kill(world.workers(), pick, down, &mut incident).await;
        }
        Fault::KillApi { down } => {
            kill(world.apis(), pick, down, &mut incident).await;
        }
        Fault::FreezeWorker { asleep } => {
            let (slot, mut process) = one_of(world.workers(), pick).await;
            incident.begins_at(slot);
            process.signal(Signal::Stop);
            sleep(asleep).await;
            process.signal(Signal::Cont);
            incident.turned = Some(now_ms());
            sleep(AWAKE).await;
        }
        Fault::NapWorker => nap(world, load, pick, &mut incident).await,
        Fault::StrandWorker { lasting } => {
            let (slot, _undisturbed) = one_of(world.workers(), pick).await;
            incident.begins_at(slot);
            let cable = &slot.link_to("postgres").relay;
            incident.link = Some("postgres");
            cable.freeze(Way::Up);
            sleep(lasting).await;
            cable.pass();
            incident.turned = Some(now_ms());
            sleep(AWAKE).await;
        }
        Fault::DrainWorker => {
            let (slot, mut process) = one_of(world.workers(), pick).await;
            incident.begins_at(slot);
            if !slot.drain(&mut process).await {
                incident.fault = "worker_drains_overrun";
            }
            incident.turned = Some(now_ms());
            slot.start_again(&mut process);
        }
        Fault::CrashPostgres => {
            let mut cluster = world.cluster.lock().await;
            incident.from = now_ms();
            cluster.crash().await.expect("Postgres starts again");
        }
        // A server that is down just now has no sessions to end.
        Fault::EndSession => {
            let _ = timeout(Duration::from_secs(2), end_session(&world.database_url, pick)).await;
        }
        Fault::KillRedis { down } => {
            let mut redis = world.redis.lock().await;
            incident.from = now_ms();
            redis.kill();
            sleep(down).await;
            redis.restart().await.expect("Redis starts again");
        }
        Fault::FlushRedis => tell_redis(world, "FLUSHALL\r\n").await,
        Fault::DropRedisClients => {
            tell_redis(world, "CLIENT KILL TYPE pubsub\r\nCLIENT KILL TYPE normal SKIPME yes\r\n").await;
        }
        Fault::Link(weather) => {
            let (slot, link) = world.link(pick);
            (incident.slot, incident.link) = (Some(slot.name.clone()), Some(link.to));
            match weather {
                Weather::Cut => link.relay.cut(),
                Weather::Freeze { way, lasting } => {
                    link.relay.freeze(way);
                    sleep(lasting).await;
                    link.relay.pass();
                }
                Weather::Latency { latency, lasting } => {
                    link.relay.latency(latency);
                    sleep(lasting).await;
                    link.relay.pass();
                }
                Weather::Fuse { way, bytes } => {
                    link.relay.cut_after_bytes(way, bytes);
                    sleep(FUSE).await;
                    link.relay.pass();
                }
            }
        }
    }
    incident.until = now_ms();
    incident
}

impl Incident {
    pub(crate) fn overlaps(&self, from: i64, until: i64) -> bool {
        self.from <= until && self.until >= from
    }

    fn begins_at(&mut self, slot: &Slot) {
        (self.from, self.slot) = (now_ms(), Some(slot.name.clone()));
    }
}

async fn kill(slots: &[Slot], pick: usize, down: Duration, incident: &mut Incident) {
    let (slot, mut process) = one_of(slots, pick).await;
    incident.begins_at(slot);
    process.kill();
    incident.turned = Some(now_ms());
    sleep(down).await;
    slot.start_again(&mut process);
}

/// Puts a worker to sleep that has a long way to go, while somebody stops its runs. They are ended without it after the
/// stop's grace; it wakes up then, before its lease is over, and does not know.
async fn nap(world: &Installation, load: &Load, pick: usize, incident: &mut Incident) {
    let begin = Instant::now();
    loop {
        let (slot, mut process) = one_of(world.workers(), pick).await;
        if let Ok(Ok(Some((runs, mut session)))) = timeout(LOOK_LIMIT, sleeper(world, &process)).await {
            incident.begins_at(slot);
            process.signal(Signal::Stop);
            let mut random = StdRng::seed_from_u64(pick as u64);
            let asleep = Instant::now();
            let stops = join_all(runs.iter().map(|run| {
                let random = StdRng::seed_from_u64(random.random());
                async move { load.stop(run, pick, random).await }
            }));
            let over = async {
                while !matches!(any_over(&mut session, &runs).await, Ok(true) | Err(_)) {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            // A stop that finds no API is as good as none.
            let _ = timeout_at(asleep + NAP, async { tokio::join!(stops, over) }).await;
            process.signal(Signal::Cont);
            incident.turned = Some(now_ms());
            sleep(AWAKE).await;
            return;
        }
        drop(process);
        if begin.elapsed() > FIND_SLEEPER {
            incident.fault = "worker_naps_without_runs";
            return;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Runs of this worker that will go on for a while, a moment after its lease was renewed.
async fn sleeper(
    world: &Installation,
    process: &Process,
) -> sqlx::Result<Option<(Vec<String>, PgConnection)>> {
    let Some((_, worker)) = identities(&process.output()).pop() else { return Ok(None) };
    let mut session = PgConnection::connect(&world.database_url).await?;
    let Some(before) = lease_of(&worker, &mut session).await? else { return Ok(None) };
    let begin = Instant::now();
    while lease_of(&worker, &mut session).await?.is_none_or(|now| now <= before) {
        if begin.elapsed() > Duration::from_secs(2) {
            return Ok(None);
        }
        sleep(Duration::from_millis(5)).await;
    }
    let runs: Vec<String> = sqlx::query_scalar(
        "select r.id::text from jobs j join runs r on r.id = j.run_id join workspaces w on w.id = r.workspace_id
         where j.worker_id = $1::uuid and w.name = 'default'
         and r.agent in ('long', 'longer') and r.stop_requested_at is null
         and r.started_at > now_ms() - 9000 order by r.started_at desc limit 3",
    )
    .bind(&worker)
    .fetch_all(&mut session)
    .await?;
    Ok((!runs.is_empty()).then_some((runs, session)))
}

async fn lease_of(worker: &str, session: &mut PgConnection) -> sqlx::Result<Option<i64>> {
    let lease = "select expires_at from workers where id = $1::uuid and not draining";
    sqlx::query_scalar(lease).bind(worker).fetch_optional(session).await
}

async fn any_over(session: &mut PgConnection, runs: &[String]) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select from runs where id::text = any($1) and finished_at is not null)",
    )
    .bind(runs)
    .fetch_one(session)
    .await
}

/// One to which nothing else is done just now; the picked one, if it can be had.
async fn one_of(slots: &[Slot], pick: usize) -> (&Slot, MutexGuard<'_, Process>) {
    for nth in 0..slots.len() {
        let slot = &slots[(pick + nth) % slots.len()];
        if let Ok(process) = slot.process.try_lock() {
            return (slot, process);
        }
    }
    let slot = &slots[pick % slots.len()];
    (slot, slot.process.lock().await)
}

async fn end_session(database_url: &str, pick: usize) -> sqlx::Result<()> {
    let mut session = PgConnection::connect(database_url).await?;
    let pids: Vec<i32> = sqlx::query_scalar(
        "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() order by pid",
    )
    .fetch_all(&mut session)
    .await?;
    if !pids.is_empty() {
        let pid = pids[pick % pids.len()];
        sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(&mut session).await?;
    }
    session.close().await
}

/// Says something to Redis, if it is there.
async fn tell_redis(world: &Installation, words: &str) {
    if let Ok(mut stream) = TcpStream::connect(world.redis_addr).await {
        let _ = stream.write_all(words.as_bytes()).await;
        // The answer is not of interest, but Redis should have read the words before we hang up.
        sleep(Duration::from_millis(50)).await;
    }
}
