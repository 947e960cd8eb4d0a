//! Everybody at once: submissions, claims, commits, stops, deaths and deletions in a few chats, for ten seconds.
//!
//! The lock order holds if no transaction is ever rolled back as a deadlock's victim; the rest is for the invariants.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::SmallRng};
use uuid::Uuid;

use super::{
    fixtures::{QUEUE, append, deltas, finishing, new_run, saving},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        event::ReleaseReason,
        ids::{ChatId, WorkspaceId},
        run::{Claim, Ending},
    },
    store::{AdmitError, Append, IfBusy, NewRun, SharedStore, StoreError, admission::IdempotencyKey},
};

upheld! {
    a_storm_ends_without_deadlocks_and_with_every_run_over,
}

const CHATS: usize = 6;

struct Storm {
    db: Database,
    workspace: WorkspaceId,
    chats: Mutex<Vec<ChatId>>,
    until: Instant,
    /// What should not have happened.
    faults: Mutex<Vec<String>>,
    /// Takeovers, fenced writes, refusals, ends, stops, ends that a stop came before: a storm without them proves nothing.
    counts: [AtomicU64; 6],
}

const TAKEN_OVER: usize = 0;
const FENCED: usize = 1;
const REFUSED: usize = 2;
const ENDED: usize = 3;
const STOPPED: usize = 4;
const OVERTAKEN: usize = 5;
const PATIENCE: Duration = Duration::from_secs(30);

impl Storm {
    /// For its time, and on a slow machine until each thing has happened.
    fn blows(&self) -> bool {
        let now = Instant::now();
        let is_calm = || self.counts.iter().any(|count| count.load(Ordering::Relaxed) == 0);
        now < self.until || now < self.until + PATIENCE && is_calm()
    }

    fn count(&self, what: usize, n: usize) {
        self.counts[what].fetch_add(n as u64, Ordering::Relaxed);
    }

    fn store(&self, random: &mut SmallRng) -> SharedStore {
        if random.random() { self.db.store.clone() } else { self.db.second.clone() }
    }

    fn chat(&self, random: &mut SmallRng) -> ChatId {
        self.chats.lock().unwrap()[random.random_range(0..CHATS)]
    }

    /// Notes every error but the loss of a lease and a row that is gone.
    fn check<T>(&self, who: &str, result: Result<T, StoreError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(StoreError::LeaseLost | StoreError::NotFound) => None,
            Err(error) => {
                self.faults.lock().unwrap().push(format!("{who}: {error:?}"));
                None
            }
        }
    }

    async fn submit(&self, mut random: SmallRng) {
        while self.blows() {
            let if_busy = if random.random() { IfBusy::Enqueue } else { IfBusy::Reject };
            let new = NewRun { if_busy, ..new_run(self.workspace, Some(self.chat(&mut random))) };
            let new = if random.random() { new } else { NewRun { idempotency: Some(brief_key()), ..new } };
            match self.store(&mut random).admit(new).await {
                Ok(_) | Err(AdmitError::ChatNotFound) => {}
                Err(AdmitError::RunAlreadyActive { .. }) => self.count(REFUSED, 1),
                Err(error) => self.faults.lock().unwrap().push(format!("submit: {error:?}")),
            }
            pause(&mut random, 8).await;
        }
    }

    /// A worker that commits what all of its runs have, in one batch, until it forgets to breathe.
    async fn work(&self, mut random: SmallRng) {
        while self.blows() {
            let worker = self.db.worker(4).await;
            let store = self.store(&mut random);
            let mut held: Vec<(Claim, i64, u32, Ending)> = vec![];
            let lives = random.random_range(3..20);
            for _ in 0..lives {
                let claims = store.claim(worker, &[QUEUE.to_owned()], 4 - held.len() as u32).await;
                for (claim, _) in self.check("claim", claims).unwrap_or_default() {
                    held.push((claim.clone(), claim.last_seq + 1, claim.run.step_count + 1, Ending::done()));
                }
                let shares: Vec<Append> = held
                    .iter()
                    .map(|(claim, next, step, ending)| match random.random_range(0..5) {
                        0 => saving(claim, *next, *step),
                        1 => finishing(claim, *next, ending.clone()),
                        _ => append(claim, *next, deltas(*step, 2)),
                    })
                    .collect();
                let results = store.commit(&shares).await;
                let mut kept = vec![];
                for (((claim, next, step, ending), share), result) in
                    held.into_iter().zip(shares).zip(results)
                {
                    if let Err(StoreError::Stopping(wish)) = result {
                        self.count(OVERTAKEN, 1);
                        kept.push((claim, next, step, Ending { reason: wish.reason, error: None }));
                        continue;
                    }
                    let committed = self.check("commit", result).is_some();
                    if committed && share.ending.is_none() {
                        kept.push((claim, share.last_seq() + 1, step + share.steps.len() as u32, ending));
                    } else if committed {
                        self.count(ENDED, 1);
                    }
                }
                held = kept;
                self.check("heartbeat", store.heartbeat(worker, 60_000, false).await);
                pause(&mut random, 4).await;
            }
            if random.random() {
                for (claim, next, ..) in held.drain(..) {
                    let back = store.hand_back(&claim, next - 1, ReleaseReason::HandBack, 0).await;
                    self.check("hand back", back);
                }
            }
            // Otherwise it freezes with all that it holds, loses its lease, and wakes up in mid-sentence.
            self.check("retire", store.retire_worker(worker).await);
            pause(&mut random, 40).await;
            let late: Vec<_> =
                held.iter().map(|(claim, next, step, _)| saving(claim, *next, *step)).collect();
            for result in store.commit(&late).await {
                if matches!(result, Err(StoreError::LeaseLost)) {
                    self.count(FENCED, 1);
                }
                self.check("late commit", result);
            }
        }
    }

    async fn stop(&self, mut random: SmallRng) {
        while self.blows() {
            let store = self.store(&mut random);
            let latest = store.latest_run(self.workspace, self.chat(&mut random)).await;
            if let Some(run) = self.check("latest", latest).flatten() {
                let stopped = if random.random() {
                    self.check("stop", store.stop_run(self.workspace, run.id).await).map(|_| 1)
                } else {
                    self.check("supersede", store.supersede(self.workspace, run.id).await)
                        .map(|all| all.len())
                };
                self.count(STOPPED, stopped.unwrap_or(0));
            }
            pause(&mut random, 30).await;
        }
    }

    async fn reap(&self, mut random: SmallRng) {
        while self.blows() {
            let store = self.store(&mut random);
            let reaped = self.check("reap", store.reap(3, 20).await).unwrap_or_default();
            self.count(TAKEN_OVER, reaped.len());
            self.check("carry out stops", store.carry_out_stops(20).await);
            self.check("promote", store.promote_due(20).await);
            self.check("prune", store.prune().await);
            let repaired = self.check("reconcile", store.reconcile().await);
            if repaired.is_some_and(|rows| rows > 0) {
                self.faults.lock().unwrap().push(format!("{repaired:?} rows needed repair"));
            }
            pause(&mut random, 15).await;
        }
    }

    async fn delete(&self, mut random: SmallRng) {
        while self.blows() {
            pause(&mut random, 400).await;
            let chat = self.db.chat(self.workspace, "next").await.id;
            let place = random.random_range(0..CHATS);
            let old = std::mem::replace(&mut self.chats.lock().unwrap()[place], chat);
            self.check("delete", self.store(&mut random).delete_chat(self.workspace, old).await);
        }
    }

    /// Ends what is left, as healthy workers would.
    async fn calm(&self) {
        self.db.store.retire_all_workers().await.unwrap();
        let worker = self.db.worker(100).await;
        for _ in 0..2_000 {
            self.db.store.reap(3, 100).await.unwrap();
            self.db.store.carry_out_stops(100).await.unwrap();
            self.db
                .edit("update jobs set run_at = 0 where worker_id is null", |rows| {
                    let free = rows.jobs.values_mut().filter(|job| job.worker_id.is_none());
                    free.for_each(|job| job.run_at = 0);
                })
                .await;
            let claims = self.db.store.claim(worker, &[QUEUE.to_owned()], 100).await.unwrap();
            if claims.is_empty() {
                return;
            }
            let ends: Vec<_> = claims
                .iter()
                .map(|(claim, _)| finishing(claim, claim.last_seq + 1, Ending::done()))
                .collect();
            for result in self.db.store.commit(&ends).await {
                result.unwrap();
            }
        }
        panic!("the backlog does not end");
    }
}

/// A key of its own, for submissions that `prune` may meet.
fn brief_key() -> IdempotencyKey {
    let key = Uuid::now_v7().to_string();
    IdempotencyKey { key, caller: "storm".to_owned(), route: "storm", fingerprint: vec![7] }
}

async fn pause(random: &mut SmallRng, up_to_ms: u64) {
    tokio::time::sleep(Duration::from_micros(random.random_range(0..up_to_ms * 1_000))).await;
}

async fn a_storm_ends_without_deadlocks_and_with_every_run_over(db: Database) {
    let workspace = db.workspace("acme").await;
    let mut chats = vec![];
    for _ in 0..CHATS {
        chats.push(db.chat(workspace, "one").await.id);
    }
    let lasts = Duration::from_secs(if db.is_postgres() { 10 } else { 3 });
    let storm = Storm {
        db: db.clone(),
        workspace,
        chats: Mutex::new(chats),
        until: Instant::now() + lasts,
        faults: Mutex::default(),
        counts: Default::default(),
    };
    let mut seeds = SmallRng::seed_from_u64(7);
    let mut seed = || SmallRng::seed_from_u64(seeds.next_u64());
    tokio::join!(
        storm.submit(seed()),
        storm.submit(seed()),
        storm.submit(seed()),
        storm.work(seed()),
        storm.work(seed()),
        storm.work(seed()),
        storm.stop(seed()),
        storm.stop(seed()),
        storm.reap(seed()),
        storm.reap(seed()),
        storm.delete(seed()),
    );
    storm.calm().await;
    if db.is_postgres() {
        // Those that were done again in silence count too. Sessions tell of them when they have been idle for a second.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let sql = "select deadlocks::text from pg_stat_database where datname = current_database()";
        assert_eq!(db.texts(sql).await, ["0"], "the lock order was broken");
    }
    let faults = std::mem::take(&mut *storm.faults.lock().unwrap());
    assert!(faults.is_empty(), "{} faults, such as {:#?}", faults.len(), &faults[..faults.len().min(5)]);
    let counts = storm.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
    assert!(counts.iter().all(|count| *count > 0), "too calm: {counts:?}");
    let open = "select status from runs where status not in ('succeeded', 'failed', 'aborted')";
    assert_eq!(
        db.look(open, |rows| {
            let runs = rows.runs.values().map(|row| row.run.status);
            runs.filter(|status| !status.is_terminal()).collect()
        })
        .await,
        Vec::<String>::new()
    );
}
