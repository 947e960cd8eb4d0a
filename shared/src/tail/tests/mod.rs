//! Tails over a log in memory and a bus that misbehaves on request: following and replaying.

mod cost;
mod trouble;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use futures::{StreamExt, future::join_all};
use rand::RngExt;
use tokio::{sync::broadcast, time::timeout};

use super::*;
use crate::{
    bus::{Signal, in_process::InProcessBus},
    domain::{
        event::EventData,
        ids::{RunId, WorkspaceId},
        run::Usage,
        transition::{Reason, RunStatus},
    },
};

pub(super) const SOON: Duration = Duration::from_secs(20);
pub(super) const TEST_PATIENCE: Duration = Duration::from_secs(1);

type Tail = Pin<Box<dyn Stream<Item = Result<Slice, TailError>> + Send>>;

/// A log in memory, which counts its reads and can fail.
#[derive(Default)]
pub(super) struct FakeLog {
    runs: Mutex<HashMap<RunId, Vec<Segment>>>,
    pub(super) asked: AtomicUsize,
    pub(super) reads: AtomicUsize,
    pub(super) rows: AtomicUsize,
    pub(super) is_down: AtomicBool,
    pub(super) corrupt: Mutex<Option<RunId>>,
}

impl FakeLog {
    fn select(&self, cursors: &[LogCursor], limit: u32, alone: bool) -> Result<Vec<Segment>, StoreError> {
        self.reads.fetch_add(1, SeqCst);
        if self.is_down.load(SeqCst) {
            return Err(StoreError::from(sqlx::Error::PoolTimedOut));
        }
        let corrupt = *self.corrupt.lock().unwrap();
        if let Some(run) = corrupt.filter(|run| cursors.iter().any(|cursor| cursor.run_id == *run)) {
            let (table, column, detail) = ("run_events", "events", "not JSON".to_owned());
            return Err(StoreError::Corrupt { table, column, id: run.to_string(), detail });
        }
        // As the databases answer: no run far beyond its cursor when several are asked for, nearest first.
        let limit = limit as usize;
        let share = if alone { limit } else { (limit / cursors.len()).max(64) } as Seq;
        let runs = self.runs.lock().unwrap();
        let mut rows: Vec<(Seq, &Segment)> = Vec::new();
        for cursor in cursors {
            let log = runs.get(&cursor.run_id).map(Vec::as_slice).unwrap_or_default();
            let behind = log[log.partition_point(|segment| segment.last <= cursor.after)..].iter();
            let distant = behind.map(|segment| (segment.first - cursor.after, segment));
            rows.extend(distant.take_while(|(distance, _)| alone || *distance <= share));
        }
        rows.sort_by_key(|(distance, _)| *distance);
        let rows: Vec<_> = rows.into_iter().take(limit).map(|(_, segment)| segment.clone()).collect();
        self.rows.fetch_add(rows.len(), SeqCst);
        Ok(rows)
    }
}

#[async_trait::async_trait]
impl LogReader for FakeLog {
    async fn read_log(&self, cursor: LogCursor, limit: u32) -> Result<Vec<Segment>, StoreError> {
        self.asked.fetch_add(1, SeqCst);
        tokio::task::yield_now().await;
        self.select(&[cursor], limit, true)
    }

    async fn read_logs(&self, cursors: &[LogCursor], limit: u32) -> Result<Vec<Segment>, StoreError> {
        self.asked.fetch_add(1, SeqCst);
        tokio::task::yield_now().await;
        self.select(cursors, limit, false)
    }
}

/// The in-process bus with a switch, and with a filter before what is published.
pub(super) struct FaultyBus {
    inner: InProcessBus,
    pub(super) is_connected: AtomicBool,
    pub(super) subscribed: AtomicUsize,
    published: AtomicUsize,
    passes: fn(usize) -> bool,
}

#[async_trait::async_trait]
impl Bus for FaultyBus {
    fn publish(&self, segment: Arc<Segment>) {
        let n = self.published.fetch_add(1, SeqCst);
        if self.is_connected() && (self.passes)(n) {
            self.inner.publish(segment);
        }
    }

    async fn subscribe(&self, run: RunId) -> Subscription {
        self.subscribed.fetch_add(1, SeqCst);
        tokio::task::yield_now().await;
        self.inner.subscribe(run).await
    }

    fn deliver(&self, run: RunId, live: Live) {
        self.inner.deliver(run, live);
    }

    fn signal(&self, signal: Signal) {
        self.inner.signal(signal);
    }

    fn signals(&self) -> broadcast::Receiver<Signal> {
        self.inner.signals()
    }

    fn is_connected(&self) -> bool {
        self.is_connected.load(SeqCst)
    }
}

pub(super) struct World {
    workspace: WorkspaceId,
    pub(super) log: Arc<FakeLog>,
    pub(super) bus: Arc<FaultyBus>,
    pub(super) tails: Tails,
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Self::losing(|_| true)
    }

    pub(super) fn losing(passes: fn(usize) -> bool) -> Arc<Self> {
        let log = Arc::new(FakeLog::default());
        let bus = Arc::new(FaultyBus {
            inner: InProcessBus::new(),
            is_connected: AtomicBool::new(true),
            subscribed: AtomicUsize::new(0),
            published: AtomicUsize::new(0),
            passes,
        });
        let tails = Tails::with_patience(Arc::clone(&log) as _, Arc::clone(&bus) as _, TEST_PATIENCE);
        Arc::new(Self { workspace: WorkspaceId::generate(), log, bus, tails })
    }

    pub(super) fn last(&self, run: RunId) -> Seq {
        self.log.runs.lock().unwrap().get(&run).and_then(|log| log.last()).map_or(0, |segment| segment.last)
    }

    pub(super) fn commit(&self, run_id: RunId, events: Vec<Event>) -> Arc<Segment> {
        let mut runs = self.log.runs.lock().unwrap();
        let log = runs.entry(run_id).or_default();
        let first = log.last().map_or(1, |segment| segment.last + 1);
        let segment = Segment { run_id, first, last: first + events.len() as Seq - 1, at: first, events };
        log.push(segment.clone());
        Arc::new(segment)
    }

    /// Commits one segment of a few tokens, then publishes it.
    pub(super) fn tokens(&self, run: RunId) -> Arc<Segment> {
        let first = self.last(run) + 1;
        let count = 1 + first % 3;
        let token = |n| EventData::TextDelta { text: format!("token {n} ") }.of_step(1, 1);
        let segment = self.commit(run, (first..first + count).map(token).collect());
        self.bus.publish(Arc::clone(&segment));
        segment
    }

    pub(super) fn commit_end(&self, run: RunId) -> Arc<Segment> {
        let end = EventData::RunFinished {
            status: RunStatus::Succeeded,
            reason: Reason::Done,
            error: None,
            usage: Usage::default(),
            step_count: 1,
        };
        self.commit(run, vec![end.of_run()])
    }

    pub(super) fn end(&self, run: RunId) {
        self.bus.publish(self.commit_end(run));
    }

    pub(super) fn cursor(&self, run_id: RunId, after: Seq) -> LogCursor {
        LogCursor { workspace_id: self.workspace, run_id, after }
    }

    pub(super) fn follow(&self, run: RunId, after: Seq) -> Tail {
        Box::pin(self.tails.follow(self.cursor(run, after)))
    }

    /// Reads a tail to its end and compares it with the log, event by event.
    pub(super) async fn expect_rest(&self, run: RunId, mut after: Seq, mut tail: Tail) {
        while let Some(slice) = timeout(SOON, tail.next()).await.expect("the tail stands still") {
            after = check(run, after, &slice.unwrap());
        }
        assert_eq!(after, self.last(run), "the tail ended before the run");
    }

    pub(super) async fn write(&self, run: RunId, segments: usize, pause: Duration) {
        for _ in 0..segments {
            self.tokens(run);
            sleep(pause).await;
        }
        self.end(run);
    }
}

/// Each event once, in order, with the text that belongs to its number. Returns the new position.
pub(super) fn check(run: RunId, mut after: Seq, slice: &Slice) -> Seq {
    assert_eq!((slice.segment.run_id, slice.after), (run, after));
    for (number, event) in slice.events() {
        after += 1;
        assert_eq!(number, after);
        if event.kind == "text.delta" {
            assert_eq!(event.data.get(), format!("{{\"text\":\"token {number} \"}}"));
        }
    }
    assert_eq!(after, slice.last());
    after
}

#[tokio::test]
async fn a_finished_run_is_replayed_gapless_from_any_cursor() {
    let (world, run) = (World::new(), RunId::generate());
    for _ in 0..250 {
        world.tokens(run);
    }
    world.end(run);
    for after in 0..world.last(run) {
        world.expect_rest(run, after, world.follow(run, after)).await;
        let replay = Box::pin(world.tails.replay(world.cursor(run, after)));
        world.expect_rest(run, after, replay).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tails_attached_at_a_thousand_random_instants_of_a_fast_run_see_the_log() {
    let (world, run) = (World::new(), RunId::generate());
    world.tokens(run);
    let writing = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.write(run, 800, Duration::from_micros(300)).await }
    });
    let attaching = (0..1000).map(|_| {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            let wait = rand::rng().random_range(0..900_000);
            sleep(Duration::from_micros(wait)).await;
            let after = rand::rng().random_range(0..=world.last(run) - 1);
            world.expect_rest(run, after, world.follow(run, after)).await;
        })
    });
    for tail in join_all(attaching).await {
        tail.unwrap();
    }
    writing.await.unwrap();
    assert_eq!(world.tails.following(), 0);
}

#[tokio::test]
async fn a_segment_that_overlaps_the_cursor_is_shown_from_the_cursor_on() {
    let (world, run) = (World::new(), RunId::generate());
    let events = (1..=9).map(|n| EventData::TextDelta { text: format!("token {n} ") }.of_step(1, 1));
    world.commit(run, events.collect());
    world.end(run);
    let slice = world.follow(run, 4).next().await.unwrap().unwrap();
    assert_eq!(slice.events().map(|(n, _)| n).collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
}

#[tokio::test]
async fn long_logs_are_caught_up_with_though_one_query_cannot_hold_them() {
    let world = World::new();
    let runs: Vec<_> = (0..100).map(|_| RunId::generate()).collect();
    for run in &runs {
        for _ in 0..150 {
            world.tokens(*run);
        }
        world.end(*run);
    }
    let attached = Instant::now();
    join_all(runs.iter().map(|run| world.expect_rest(*run, 0, world.follow(*run, 0)))).await;
    assert!(attached.elapsed() < Duration::from_secs(1), "the poll had to help");
    let replays = runs.iter().map(|run| (*run, world.tails.replay(world.cursor(*run, 0))));
    join_all(replays.map(|(run, tail)| world.expect_rest(run, 0, Box::pin(tail)))).await;
}

#[tokio::test]
async fn a_tail_that_is_far_behind_without_a_message_reads_for_itself() {
    let (world, run) = (World::losing(|_| false), RunId::generate());
    let mut tail = world.follow(run, 0);
    let mut others: Vec<_> = (0..100).map(|_| world.follow(RunId::generate(), 0)).collect();
    assert!(timeout(Duration::from_millis(20), tail.next()).await.is_err());
    assert!(
        timeout(Duration::from_millis(20), join_all(others.iter_mut().map(StreamExt::next))).await.is_err()
    );
    for _ in 0..40 {
        let first = world.last(run) + 1;
        let token = |n| EventData::TextDelta { text: format!("token {n} ") }.of_step(1, 1);
        world.commit(run, (first..first + 20).map(token).collect());
    }
    world.commit_end(run);
    timeout(Duration::from_secs(2), world.expect_rest(run, 0, tail)).await.expect("it crawls");
}
