//! Heartbeats against a database that answers as the test says, in paused time.

use std::{
    collections::VecDeque,
    sync::{Mutex, atomic::AtomicUsize, atomic::Ordering},
};

use async_trait::async_trait;
use longhaul_shared::store::{Evidence, Peer, Result, StopRequest, WorkerRow};
use tokio::time::pause;

use super::*;
use crate::keep_in_thread;

const LEASE: Duration = Duration::from_secs(15);

/// How a heartbeat is answered.
#[derive(Clone, Copy)]
enum Answer {
    After(Duration),
    Never,
    Refused,
    Panic,
}

/// Answers heartbeats in this order, and the last way for ever.
struct Database {
    answers: Mutex<VecDeque<Answer>>,
    registered: AtomicUsize,
}

impl Database {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Arc<Self> {
        Arc::new(Self { answers: Mutex::new(answers.into_iter().collect()), registered: AtomicUsize::new(0) })
    }

    fn registered(&self) -> usize {
        self.registered.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Workers for Database {
    async fn register_worker(&self, _: &NewWorker) -> Result<()> {
        self.registered.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn heartbeat(&self, _: WorkerId, _: i64, _: bool) -> Result<()> {
        let answer = {
            let mut answers = self.answers.lock().unwrap();
            if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0] }
        };
        match answer {
            Answer::After(time) => {
                sleep(time).await;
                Ok(())
            }
            Answer::Never => std::future::pending().await,
            Answer::Refused => Err(StoreError::LeaseLost),
            Answer::Panic => panic!("on purpose"),
        }
    }

    async fn stop_requests(&self, _: WorkerId) -> Result<Vec<StopRequest>> {
        Ok(vec![])
    }

    async fn retire_worker(&self, _: WorkerId) -> Result<()> {
        Ok(())
    }

    async fn expire_worker(&self, _: WorkerId, _: Evidence) -> Result<bool> {
        Ok(true)
    }

    async fn live_peers(&self) -> Result<Vec<Peer>> {
        Ok(vec![])
    }

    async fn retire_all_workers(&self) -> Result<u64> {
        Ok(0)
    }

    async fn list_workers(&self) -> Result<Vec<WorkerRow>> {
        Ok(vec![])
    }
}

fn lease(store: &Arc<Database>) -> (Lease, CancellationToken) {
    let done = CancellationToken::new();
    let lease = Lease {
        store: Arc::clone(store) as Arc<dyn Workers>,
        holdings: Arc::new(Holdings::default()),
        listener: None,
        slots: 1,
        lease: LEASE,
        heartbeat: LEASE / 3,
        drain: CancellationToken::new(),
        done: done.clone(),
    };
    (lease, done)
}

/// For how many seconds the first lease was held.
async fn held_for(answers: impl IntoIterator<Item = Answer>) -> u64 {
    pause();
    let (lease, _) = lease(&Database::new(answers));
    let begin = Instant::now();
    match lease.hold(WorkerId::generate(), begin.into()).await {
        End::Lost(_) => begin.elapsed().as_secs(),
        End::Done => unreachable!("nobody said so"),
    }
}

const fn seconds(seconds: u64) -> Answer {
    Answer::After(Duration::from_secs(seconds))
}

#[tokio::test]
async fn a_heartbeat_that_hangs_is_overtaken_by_the_next() {
    pause();
    let database = Database::new([Answer::Never, seconds(0)]);
    let (lease, done) = lease(&database);
    let keeping = tokio::spawn(lease.keep());
    sleep(LEASE * 10).await;
    assert_eq!(database.registered(), 1, "the lease was never lost");
    done.cancel();
    keeping.await.unwrap();
}

#[tokio::test]
async fn a_lease_that_nobody_confirms_is_given_up_before_it_ends() {
    assert_eq!(held_for([Answer::Never]).await, 12);
}

#[tokio::test]
async fn a_late_answer_counts_from_when_it_was_asked_for() {
    // Sent after 5 s, answered after 11 s.
    assert_eq!(held_for([seconds(6), Answer::Never]).await, 5 + 12);
    // Always later than the next one is sent: slow, and no reason to lose anything.
    let database = Database::new([seconds(4)]);
    let (lease, done) = lease(&database);
    let keeping = tokio::spawn(lease.keep());
    sleep(LEASE * 10).await;
    assert_eq!(database.registered(), 1);
    done.cancel();
    keeping.await.unwrap();
}

#[tokio::test]
async fn a_refused_heartbeat_ends_the_lease_and_the_worker_begins_anew() {
    assert_eq!(held_for([seconds(0), Answer::Refused]).await, 10);
    let database = Database::new([Answer::Refused, seconds(0)]);
    let (lease, done) = lease(&database);
    let keeping = tokio::spawn(lease.keep());
    sleep(LEASE * 10).await;
    assert_eq!(database.registered(), 2);
    done.cancel();
    keeping.await.unwrap();
}

#[tokio::test]
async fn a_heartbeat_that_breaks_loses_the_lease() {
    assert_eq!(held_for([Answer::Panic]).await, 5);
}

#[tokio::test]
async fn on_its_own_thread_the_lease_ends_when_all_is_done() {
    let database = Database::new([seconds(0)]);
    let (lease, done) = lease(&database);
    let holdings = Arc::clone(&lease.holdings);
    let kept = keep_in_thread(lease).unwrap();
    holdings.lease_held().await;
    done.cancel();
    kept.await;
    assert!(holdings.worker_id().is_none());
}
