//! The store as one process sees it: across a network, with delays, lost requests and lost answers.
//!
//! A request travels, is applied when it arrives, and is answered. A process that dies in between leaves its request on
//! the way: it may still be applied, and nobody hears of it.

use async_trait::async_trait;
use futures::FutureExt;
use longhaul_shared::{
    domain::{
        chat::Chat,
        event::{ReleaseReason, Segment},
        ids::{ChatId, KeyId, MessageId, Millis, RunId, Seq, WorkerId, WorkspaceId},
        message::{Message, Part},
        retry::LAST_CHANCE,
        run::{BlockedBy, Claim, Run},
        tool::{LateResult, ToolCall},
    },
    mutant::{self, Mutant},
    store::{
        Admission, AdmitError, Admitted, Ancestor, ApiKey, Append, ChatPatch, Chats, Committed, Evidence,
        Fresh, HeldRun, Jobs, KeyName, KeyStop, KeyedRun, Listed, Log, LogCursor, LogReader, NewChat, NewKey,
        NewRun, NewWorker, Page, Peer, Released, Result, RunFilter, RunInput, RunRecord, Runs, StopOutcome,
        StopRequest, StoreError, WorkerRow, Workers, Workspaces,
        memory::{MemoryStore, unavailable},
    },
};
use std::time::Duration;
use tokio::{sync::oneshot, time::sleep};

use crate::world::{Request, World, with};

/// The database at the end of one process's connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    pub process: usize,
    /// Which start of the process this is.
    pub incarnation: u64,
}

/// Calls that a worker makes whether or not there is anything to do.
const BACKGROUND: &[&str] = &[
    "claim",
    "heartbeat",
    "stop_requests",
    "held_by",
    "reap",
    "carry_out_stops",
    "promote_due",
    "reconcile",
    "prune",
    "read_logs",
];

/// Calls that change no row and no lease, so that there is nothing to check behind them.
pub const READING: &[&str] = &[
    "chat",
    "list_chats",
    "messages",
    "message",
    "run",
    "latest_run",
    "records",
    "read_log",
    "read_logs",
    "held_by",
    "stop_requests",
];

/// What becomes of a call.
struct Fate {
    /// Milliseconds to the database; `None`: it never gets there.
    there: Option<u64>,
    back: u64,
    /// What the caller is told instead of the answer.
    error: Option<StoreError>,
}

impl Fate {
    fn of(world: &mut World, process: usize, name: &str) -> Self {
        if world.now < world.database_away_until {
            return Self {
                there: None,
                back: world.processes[process].rng.u64(1..30),
                error: Some(unavailable()),
            };
        }
        let weather = world.schedule.weather;
        let mut fate = if world.is_healed {
            Self { there: Some(1), back: 0, error: None }
        } else {
            let rng = &mut world.processes[process].rng;
            Self { there: Some(rng.u64(0..12)), back: rng.u64(0..20).saturating_sub(12), error: None }
        };
        if world.strikes(process, weather.unavailable) {
            world.coverage.store_unavailable += 1;
            return Self { there: None, error: Some(unavailable()), ..fate };
        }
        // There are few of these, and what matters is that they are repeated.
        let often = if name == "record_late" { 6 } else { 1 };
        if world.strikes(process, weather.lost_answer * often) {
            world.coverage.store_answers_lost += 1;
            let error =
                if world.processes[process].rng.bool() { StoreError::TimedOut } else { unavailable() };
            fate = Self { error: Some(error), ..fate };
        }
        if world.strikes(process, weather.slow) {
            world.coverage.store_calls_slow += 1;
            let rng = &mut world.processes[process].rng;
            let (there, back) = if rng.bool() { (rng.u64(100..900), 0) } else { (1, rng.u64(100..900)) };
            fate = Self { there: Some(there), back, ..fate };
        }
        fate
    }
}

impl Connection {
    async fn call<T: Send + 'static>(
        self,
        name: &'static str,
        apply: impl FnOnce(&MemoryStore) -> T + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let fate = with(|world| {
            world.coverage.store_calls += 1;
            if !BACKGROUND.contains(&name) {
                world.activity += 1;
            }
            let fate = Fate::of(world, self.process, name);
            if let Some(there) = fate.there {
                let apply = Box::new(move |store: &MemoryStore| {
                    // Fails when the caller is gone.
                    let _ = reply.send(apply(store));
                });
                world.send(there, Request { process: self.process, name, is_orphan: false, apply });
            }
            if let Some(error) = &fate.error {
                let (process, is_applied) = (self.process, fate.there.is_some());
                world.note(|| format!("p{process} {name} fails ({error}), applied: {is_applied}"));
            }
            fate
        });
        let answer = if fate.there.is_some() { answer.await.ok() } else { None };
        sleep(Duration::from_millis(fate.back)).await;
        match (fate.error, answer) {
            (None, Some(answer)) => Ok(answer),
            (error, _) => Err(error.unwrap_or(StoreError::TimedOut)),
        }
    }
}

/// The memory store answers at once.
fn at_once<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("the store in memory waits for nothing")
}

/// A call whose arguments are owned or copied.
macro_rules! remote {
    ($self:ident, $name:ident($($arg:ident),*)) => {
        $self.call(stringify!($name), move |store| at_once(store.$name($($arg),*))).await?
    };
}

/// A call that the simulation has no use for.
macro_rules! local {
    ($name:ident($($arg:expr),*)) => {
        at_once(with(|world| world.store.clone()).$name($($arg),*))
    };
}

#[async_trait]
impl Workspaces for Connection {
    async fn migrate(&self) -> Result<()> {
        local!(migrate())
    }
    async fn migrations(&self) -> Result<Vec<(i64, String, bool)>> {
        local!(migrations())
    }
    async fn now(&self) -> Result<Millis> {
        local!(now())
    }
    async fn is_writable(&self) -> Result<bool> {
        local!(is_writable())
    }
    async fn server_version(&self) -> Result<String> {
        local!(server_version())
    }
    fn kind(&self) -> &'static str {
        "simulated"
    }
    async fn close(&self) {}
    async fn ensure_workspace(&self, name: &str) -> Result<WorkspaceId> {
        local!(ensure_workspace(name))
    }
    async fn workspace(&self, name: &str) -> Result<Option<WorkspaceId>> {
        local!(workspace(name))
    }
    async fn create_key(&self, key: NewKey<'_>) -> Result<ApiKey> {
        local!(create_key(key))
    }
    async fn find_key(&self, prefix: &str) -> Result<Option<ApiKey>> {
        local!(find_key(prefix))
    }
    async fn list_keys(&self, workspace: WorkspaceId) -> Result<Vec<ApiKey>> {
        local!(list_keys(workspace))
    }
    async fn revoke_key(&self, workspace: WorkspaceId, key: KeyId) -> Result<()> {
        local!(revoke_key(workspace, key))
    }
}

#[async_trait]
impl Chats for Connection {
    async fn create_chat(&self, workspace: WorkspaceId, chat: NewChat) -> Result<Chat> {
        remote!(self, create_chat(workspace, chat))
    }
    async fn chat(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Chat> {
        remote!(self, chat(workspace, chat))
    }
    async fn chat_of_client(&self, workspace: WorkspaceId, client_id: &str) -> Result<Chat> {
        local!(chat_of_client(workspace, client_id))
    }
    async fn list_chats(&self, workspace: WorkspaceId, page: Page<ChatId>) -> Result<Listed<Chat, ChatId>> {
        remote!(self, list_chats(workspace, page))
    }
    async fn update_chat(&self, workspace: WorkspaceId, chat: ChatId, patch: ChatPatch) -> Result<Chat> {
        remote!(self, update_chat(workspace, chat, patch))
    }
    async fn delete_chat(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Vec<StopOutcome>> {
        remote!(self, delete_chat(workspace, chat))
    }
    async fn messages(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        page: Page<(i64, i32)>,
    ) -> Result<Listed<Message, (i64, i32)>> {
        remote!(self, messages(workspace, chat, page))
    }
    async fn message(&self, workspace: WorkspaceId, message: MessageId) -> Result<Message> {
        remote!(self, message(workspace, message))
    }
    async fn messages_back(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        before: i64,
        limit: u32,
    ) -> Result<Vec<Message>> {
        remote!(self, messages_back(workspace, chat, before, limit))
    }
    async fn import_message(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        parts: Vec<Part>,
    ) -> Result<Message> {
        remote!(self, import_message(workspace, chat, parts))
    }
}

#[async_trait]
impl Runs for Connection {
    async fn run(&self, workspace: WorkspaceId, run: RunId) -> Result<Run> {
        self.call("run", move |store| at_once(Runs::run(store, workspace, run))).await?
    }
    async fn input(&self, workspace: WorkspaceId, run: RunId) -> Result<RunInput> {
        remote!(self, input(workspace, run))
    }
    async fn ancestors(&self, workspace: WorkspaceId, run: RunId, limit: u32) -> Result<Vec<Ancestor>> {
        remote!(self, ancestors(workspace, run, limit))
    }
    async fn run_of_request(
        &self,
        workspace: WorkspaceId,
        fingerprint: &[u8],
        fresh: Fresh,
    ) -> Result<Option<Run>> {
        local!(run_of_request(workspace, fingerprint, fresh))
    }
    async fn run_of_key(&self, workspace: WorkspaceId, key: KeyName<'_>) -> Result<Option<KeyedRun>> {
        local!(run_of_key(workspace, key))
    }
    async fn delete_run(&self, workspace: WorkspaceId, run: RunId) -> Result<()> {
        remote!(self, delete_run(workspace, run))
    }
    async fn list_runs(
        &self,
        workspace: WorkspaceId,
        filter: &RunFilter,
        page: Page<RunId>,
    ) -> Result<Listed<Run, RunId>> {
        local!(list_runs(workspace, filter, page))
    }
    async fn latest_run(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Option<Run>> {
        remote!(self, latest_run(workspace, chat))
    }
    async fn blocked_by(&self, run: &Run) -> Result<Option<BlockedBy>> {
        local!(blocked_by(run))
    }
    async fn records(&self, workspace: WorkspaceId, runs: &[RunId]) -> Result<Vec<RunRecord>> {
        let runs = runs.to_vec();
        self.call("records", move |store| at_once(store.records(workspace, &runs))).await?
    }
    async fn stop_run(&self, workspace: WorkspaceId, run: RunId) -> Result<StopOutcome> {
        remote!(self, stop_run(workspace, run))
    }
    async fn stop_by_key(&self, workspace: WorkspaceId, key: KeyName<'_>) -> Result<KeyStop> {
        let [name, caller, route] = [key.key, key.caller, key.route].map(ToOwned::to_owned);
        self.call("stop_by_key", move |store| {
            at_once(store.stop_by_key(workspace, KeyName { key: &name, caller: &caller, route: &route }))
        })
        .await?
    }
    async fn supersede(&self, workspace: WorkspaceId, run: RunId) -> Result<Vec<StopOutcome>> {
        remote!(self, supersede(workspace, run))
    }
}

#[async_trait]
impl Admission for Connection {
    async fn admit(&self, mut new: NewRun) -> std::result::Result<Admitted, AdmitError> {
        if let Some(key) = new.idempotency.as_mut().filter(|_| mutant::is(Mutant::IdempotencyPerProcess)) {
            key.caller = format!("{} of {} {}", key.caller, self.process, self.incarnation);
        }
        self.call("admit", move |store| at_once(store.admit(new))).await?
    }
}

#[async_trait]
impl Log for Connection {
    async fn commit(&self, appends: &[Append]) -> Vec<Result<Committed>> {
        let (count, appends) = (appends.len(), appends.to_vec());
        let answers = self.call("commit", move |store| {
            let logged =
                |append: &Append| store.rows(|rows| rows.last_seq(append.run_id)) >= append.first_seq;
            let before: Vec<bool> = appends.iter().map(logged).collect();
            let answers = at_once(store.commit(&appends));
            with(|world| {
                for (was_logged, answer) in before.into_iter().zip(&answers) {
                    match answer {
                        Err(StoreError::LeaseLost) => world.coverage.fenced_writes += 1,
                        Err(StoreError::Stopping(_)) => world.coverage.ends_after_a_stop += 1,
                        Ok(_) if was_logged => world.coverage.commits_confirmed += 1,
                        _ => {}
                    }
                }
            });
            answers
        });
        answers.await.unwrap_or_else(|error| vec![Err(error); count])
    }
    async fn record_late(&self, workspace: WorkspaceId, call: &ToolCall, late: &LateResult) -> Result<bool> {
        let (call, late) = (call.clone(), late.clone());
        self.call("record_late", move |store| {
            let recorded = at_once(store.record_late(workspace, &call, &late));
            with(|world| match recorded {
                Ok(true) => {
                    world.coverage.late_answers += 1;
                    let place = (call.run_id, call.step, call.call);
                    if world.late.insert(place, late.state).is_some() {
                        world.violate(format!("a second late answer to {}:{}", call.step, call.call));
                    }
                }
                _ => world.coverage.late_answers_refused += 1,
            });
            recorded
        })
        .await?
    }
}

#[async_trait]
impl LogReader for Connection {
    async fn read_log(&self, cursor: LogCursor, limit: u32) -> Result<Vec<Segment>> {
        remote!(self, read_log(cursor, limit))
    }
    async fn read_logs(&self, cursors: &[LogCursor], limit: u32) -> Result<Vec<Segment>> {
        let cursors = cursors.to_vec();
        self.call("read_logs", move |store| at_once(store.read_logs(&cursors, limit))).await?
    }
}

#[async_trait]
impl Jobs for Connection {
    async fn claim(&self, worker: WorkerId, queues: &[String], limit: u32) -> Result<Vec<(Claim, Segment)>> {
        let queues = queues.to_vec();
        self.call("claim", move |store| {
            let claims = at_once(store.claim(worker, &queues, limit));
            let is_full = claims.as_ref().map_or(0, Vec::len) == limit as usize;
            let (taken, left) = store.rows(|rows| {
                let suspects = || rows.jobs.iter().filter(|(_, job)| job.crashes >= LAST_CHANCE);
                let is_taken = |run: &RunId| claims.iter().flatten().any(|(claim, _)| claim.run.id == *run);
                let taken = suspects().filter(|(run, _)| is_taken(run)).count();
                let due = suspects().filter(|(_, job)| job.worker_id.is_none() && job.run_at <= rows.now);
                (taken, if is_full || !rows.is_alive(worker) { 0 } else { due.count() })
            });
            with(|world| {
                world.coverage.suspects_claimed += taken as u64;
                world.coverage.suspects_left_waiting += left as u64;
            });
            claims
        })
        .await?
    }
    async fn hand_back(
        &self,
        claim: &Claim,
        last_seq: Seq,
        reason: ReleaseReason,
        delay_ms: i64,
    ) -> Result<Released> {
        let claim = claim.clone();
        self.call("hand_back", move |store| at_once(store.hand_back(&claim, last_seq, reason, delay_ms)))
            .await?
    }
    async fn reap(&self, max_crashes: i32, limit: u32) -> Result<Vec<Released>> {
        remote!(self, reap(max_crashes, limit))
    }
    async fn carry_out_stops(&self, limit: u32) -> Result<Vec<Released>> {
        remote!(self, carry_out_stops(limit))
    }
    async fn promote_due(&self, limit: u32) -> Result<Vec<Released>> {
        remote!(self, promote_due(limit))
    }
    async fn held_by(&self, worker: WorkerId) -> Result<Vec<HeldRun>> {
        remote!(self, held_by(worker))
    }
    async fn disown(&self, worker: WorkerId, held: HeldRun) -> Result<Option<Released>> {
        self.call("disown", move |store| {
            let released = at_once(store.disown(worker, held));
            with(|world| world.coverage.disowned += u64::from(matches!(released, Ok(Some(_)))));
            released
        })
        .await?
    }
    async fn reconcile(&self) -> Result<u64> {
        self.call("reconcile", move |store| {
            let repaired = at_once(store.reconcile());
            if !matches!(repaired, Ok(0)) {
                with(|world| world.violate(format!("there was something to reconcile: {repaired:?}")));
            }
            repaired
        })
        .await?
    }
    async fn prune(&self) -> Result<u64> {
        remote!(self, prune())
    }
}

#[async_trait]
impl Workers for Connection {
    async fn register_worker(&self, worker: &NewWorker) -> Result<()> {
        let worker = worker.clone();
        with(|world| {
            let earlier = world.leases.values().filter(|process| **process == self.process).count();
            world.coverage.workers_registered_again += u64::from(earlier > 0);
            world.leases.insert(worker.id, self.process);
        });
        self.call("register_worker", move |store| at_once(store.register_worker(&worker))).await?
    }
    async fn heartbeat(&self, worker: WorkerId, lease_ms: i64, draining: bool) -> Result<()> {
        remote!(self, heartbeat(worker, lease_ms, draining))
    }
    async fn stop_requests(&self, worker: WorkerId) -> Result<Vec<StopRequest>> {
        remote!(self, stop_requests(worker))
    }
    async fn retire_worker(&self, worker: WorkerId) -> Result<()> {
        remote!(self, retire_worker(worker))
    }
    async fn expire_worker(&self, worker: WorkerId, evidence: Evidence) -> Result<bool> {
        self.call("expire_worker", move |store| {
            let is_news = at_once(store.expire_worker(worker, evidence));
            with(|world| {
                world.coverage.deaths_proven += u64::from(matches!(is_news, Ok(true)));
                if evidence == Evidence::Proof || matches!(is_news, Ok(true)) {
                    world.proven_dead.push(worker);
                }
            });
            is_news
        })
        .await?
    }
    async fn live_peers(&self) -> Result<Vec<Peer>> {
        local!(live_peers())
    }
    async fn retire_all_workers(&self) -> Result<u64> {
        local!(retire_all_workers())
    }
    async fn list_workers(&self) -> Result<Vec<WorkerRow>> {
        local!(list_workers())
    }
}
