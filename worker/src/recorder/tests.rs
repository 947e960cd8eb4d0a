//! Trouble that is one run's own: a locked chat, a write that makes the store panic.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use longhaul_shared::{
    bus::in_process::InProcessBus,
    domain::{
        event::EventData,
        replay::Replay,
        run::{Claim, Ending, Usage},
        settle::settle,
        step::{FinishReason, OutputPart, Step},
        transition::{Reason, RunStatus},
    },
    store::{LogCursor, LogReader, SharedStore, StopOutcome, StopRequest},
};
use tempfile::TempDir;
use tokio::sync::{Semaphore, watch};

use super::*;
use crate::fixture::{database, new_run};

const PATIENCE: Duration = Duration::from_secs(20);
const POISON: &str = "poison";

/// A database in which chats can be locked, and which some text makes panic.
struct Troubled {
    store: SharedStore,
    /// Runs whose chats somebody has locked.
    locked: watch::Sender<BTreeSet<RunId>>,
    /// Commits begin one for each.
    permits: Semaphore,
    /// How many appends went together, commit by commit.
    batches: Mutex<Vec<usize>>,
    /// What every end that names no stop is answered with.
    stop: Mutex<Option<StopRequest>>,
    /// Ends that are written and not answered.
    answers_to_lose: AtomicUsize,
}

impl Troubled {
    async fn begin(&self, appends: &[Append]) {
        self.permits.acquire().await.unwrap().forget();
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).push(appends.len());
        let is_poison = |append: &Append| format!("{:?}", append.events).contains(POISON);
        assert!(!appends.iter().any(is_poison), "on purpose");
    }

    fn commits(&self) -> usize {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn answer(
        &self,
        append: &Append,
        result: Result<Committed, StoreError>,
    ) -> Result<Committed, StoreError> {
        let is_lost = append.ending.is_some()
            && result.is_ok()
            && self
                .answers_to_lose
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok();
        if is_lost { Err(StoreError::TimedOut) } else { result }
    }

    fn is_locked(&self, append: &Append) -> bool {
        append.ending.is_some() && self.locked.borrow().contains(&append.run_id)
    }
}

#[async_trait]
impl LogReader for Troubled {
    async fn read_log(&self, cursor: LogCursor, limit: u32) -> Result<Vec<Segment>, StoreError> {
        self.store.read_log(cursor, limit).await
    }

    async fn read_logs(&self, cursors: &[LogCursor], limit: u32) -> Result<Vec<Segment>, StoreError> {
        self.store.read_logs(cursors, limit).await
    }
}

#[async_trait]
impl Log for Troubled {
    async fn commit(&self, appends: &[Append]) -> Vec<Result<Committed, StoreError>> {
        self.begin(appends).await;
        let mut locked = self.locked.subscribe();
        let is_free = |locked: &BTreeSet<RunId>| !appends.iter().any(|one| locked.contains(&one.run_id));
        locked.wait_for(is_free).await.unwrap();
        self.store.commit(appends).await
    }

    async fn commit_at_once(&self, appends: &[Append]) -> Vec<Result<Committed, StoreError>> {
        self.begin(appends).await;
        let mut results = vec![];
        for append in appends {
            let stop = *self.stop.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(stop) = stop.filter(|_| append.ending.is_some() && append.stop_requested_at.is_none())
            {
                results.push(Err(StoreError::Stopping(stop)));
            } else if self.is_locked(append) {
                results.push(Err(StoreError::Locked));
            } else {
                let result = self.store.commit(std::slice::from_ref(append)).await.remove(0);
                results.push(self.answer(append, result));
            }
        }
        results
    }

    async fn record_late(
        &self,
        _: longhaul_shared::domain::ids::WorkspaceId,
        _: &longhaul_shared::domain::tool::ToolCall,
        _: &longhaul_shared::domain::tool::LateResult,
    ) -> Result<bool, StoreError> {
        Ok(false)
    }
}

/// A recorder on such a database, and as many runs.
async fn bench(runs: usize, permits: usize) -> (Arc<Troubled>, Vec<(Claim, RunLog)>, TempDir) {
    let (store, workspace, worker, dir) = database().await;
    for _ in 0..runs {
        store.admit(new_run(workspace, "a")).await.unwrap();
    }
    let claims = store.claim(worker, &["default".to_owned()], 9).await.unwrap();
    let (locked, _) = watch::channel(BTreeSet::new());
    let permits = Semaphore::new(permits);
    let troubled = Arc::new(Troubled {
        store,
        locked,
        permits,
        batches: Mutex::default(),
        stop: Mutex::default(),
        answers_to_lose: AtomicUsize::new(0),
    });
    let coalesce = Coalesce { time: Duration::ZERO, bytes: 1 };
    let (recorder, recording) = Recorder::on(troubled.clone(), Arc::new(InProcessBus::new()), coalesce);
    tokio::spawn(recording);
    let mut open = vec![];
    for (claim, _) in claims {
        let log = recorder.open(&claim, CancellationToken::new()).await;
        open.push((claim, log));
    }
    (troubled, open, dir)
}

fn says(text: &str) -> Write {
    Write::events([EventData::TextDelta { text: text.to_owned() }.of_step(1, 1)])
}

fn end_of(claim: &Claim) -> Write {
    let (ending, replay) = (Ending::done(), Replay::new(claim.run.id));
    let (events, _) = settle(claim.run.id, &replay, Usage::default(), &ending, None, claim.epoch);
    Write { events, ending: Some(ending), ..Write::default() }
}

async fn written(log: &RunLog, write: Write) -> Result<Position, RecordError> {
    timeout(PATIENCE, log.write(write)).await.expect("it is written")
}

#[tokio::test]
async fn an_end_whose_chat_is_locked_keeps_no_other_run_waiting() {
    let (troubled, mut open, _dir) = bench(3, 1_000).await;
    let (_, free) = open.pop().unwrap();
    troubled.locked.send_replace(open.iter().map(|(claim, _)| claim.run.id).collect());
    let ends: Vec<_> = open
        .into_iter()
        .map(|(claim, log)| tokio::spawn(async move { log.write(end_of(&claim)).await }))
        .collect();
    while troubled.locked.receiver_count() == 0 {
        tokio::task::yield_now().await;
    }
    for text in ["one", "two", "three"] {
        written(&free, says(text)).await.unwrap();
    }
    let (since, before) = (Instant::now(), troubled.commits());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (waited, tries) = (since.elapsed(), troubled.commits() - before);
    // 25 + 50 + 100 + 200 + 400 ms at least, then half a second each.
    assert!(tries as u128 <= 6 + waited.as_millis() / 500, "{tries} tries in {waited:?}");
    assert!(ends.iter().all(|end| !end.is_finished()), "the chats are still locked");
    troubled.locked.send_replace(BTreeSet::new());
    for end in ends {
        timeout(PATIENCE, end).await.expect("it is written").unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_write_that_makes_the_store_panic_is_refused_and_no_other_is() {
    let (troubled, mut open, _dir) = bench(3, 0).await;
    let (_, first) = open.pop().unwrap();
    let first = tokio::spawn(async move { first.write(says("first")).await });
    let [(_, bad), (_, good)] = &open[..] else { panic!("two are left") };
    let let_them = async {
        // Both are said while the first commit is under way, so that they share the next one.
        tokio::task::yield_now().await;
        troubled.permits.add_permits(1_000);
    };
    let (refused, fine, ()) = tokio::join!(written(bad, says(POISON)), written(good, says("fine")), let_them);
    assert!(matches!(refused, Err(RecordError::Refused(StoreError::Panicked))), "{refused:?}");
    fine.unwrap();
    first.await.unwrap().unwrap();
    assert!(troubled.batches.lock().unwrap().contains(&2), "they went together");
    written(bad, says("better")).await.unwrap();
}

/// A whole step and the end behind it.
fn step_and_end(claim: &Claim) -> Write {
    let (run_id, finish_reason) = (claim.run.id, FinishReason::Stop);
    let usage = Usage { input_tokens: 3, output_tokens: 2, ..Usage::default() };
    let step = Step {
        run_id,
        step: 1,
        attempt: 1,
        epoch: claim.epoch,
        model: "m".into(),
        output: vec![OutputPart::Text { text: "all of it".into() }],
        finish_reason,
        usage,
        first_seq: 0,
        last_seq: 0,
        started_at: 0,
        finished_at: 0,
    };
    let mut write = end_of(claim);
    write.events.insert(0, EventData::StepFinished { finish_reason, usage, tool_calls: 0 }.of_step(1, 1));
    Write { steps: vec![step], ..write }
}

#[tokio::test]
async fn an_end_that_a_stop_came_before_is_written_as_the_end_by_that_stop() {
    for trouble in ["none", "a locked chat", "a lost answer"] {
        let (troubled, mut open, _dir) = bench(2, 1_000).await;
        let (claim, log) = open.pop().unwrap();
        let (run, workspace) = (claim.run.id, claim.run.workspace_id);
        let StopOutcome::Requested(asked) = troubled.store.stop_run(workspace, run).await.unwrap() else {
            panic!("it is held")
        };
        log.append(Write::events([EventData::StepStarted { model: "m".into() }.of_step(1, 1)])).await;
        log.append(says("all of it")).await;
        match trouble {
            "a locked chat" => drop(troubled.locked.send_replace(BTreeSet::from([run]))),
            "a lost answer" => troubled.answers_to_lose.store(1, Ordering::Relaxed),
            _ => {}
        }
        let end = tokio::spawn(async move { (log.write(step_and_end(&claim)).await, log) });
        written(&open[0].1, says("beside it")).await.unwrap();
        troubled.locked.send_replace(BTreeSet::new());
        let (position, log) = timeout(PATIENCE, end).await.expect("it is written").unwrap();
        assert_eq!(troubled.answers_to_lose.load(Ordering::Relaxed), 0);

        let cursor = LogCursor { workspace_id: workspace, run_id: run, after: 0 };
        let segments = troubled.store.read_log(cursor, 100).await.unwrap();
        let events: Vec<_> = segments.iter().flat_map(|segment| &segment.events).collect();
        let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).skip(2).collect();
        let stopping = "run.stopping";
        let expected = ["step.started", "text.delta", "step.finished", stopping, stopping, "run.finished"];
        assert_eq!(kinds, expected, "{trouble}");
        let last = events.len() as i64;
        assert_eq!((position.unwrap().last, log.position().await.unwrap().last), (last, last));
        let over = troubled.store.run(workspace, run).await.unwrap();
        assert_eq!((over.status, over.reason), (RunStatus::Aborted, Some(Reason::Stop)));
        assert_eq!(over.stop_requested_at, asked.stop_requested_at);
        assert_eq!((over.step_count, over.usage.output_tokens), (1, 2), "what was whole is kept");
        let [step] = &troubled.store.records(workspace, &[run]).await.unwrap().remove(0).steps[..] else {
            panic!("one step")
        };
        assert_eq!((step.finish_reason, step.first_seq, step.last_seq), (FinishReason::Stop, 3, 5));
    }
}

#[tokio::test]
async fn an_end_by_a_stop_names_it_so_that_no_stop_comes_before_it() {
    let (troubled, mut open, _dir) = bench(1, 1_000).await;
    let (claim, log) = open.pop().unwrap();
    let (run_id, reason) = (claim.run.id, Reason::Expired);
    *troubled.stop.lock().unwrap() = Some(StopRequest { run_id, reason, requested_at: 7 });
    written(&log, end_of(&claim)).await.unwrap();
    let over = troubled.store.run(claim.run.workspace_id, run_id).await.unwrap();
    assert_eq!((over.status, over.reason), (RunStatus::Aborted, Some(reason)));
    assert_eq!(over.stop_requested_at, Some(7));
}
