//! Tails over a log in memory and a bus that misbehaves on request.

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
    bus::{
        Signal,
        conformance::until,
        in_process::InProcessBus,
        redis::{RedisBus, test_server::PrivateRedis},
    },
    domain::{
        event::{EventData, StopStage},
        ids::{RunId, WorkspaceId},
        run::Usage,
        transition::{Reason, RunStatus},
    },
};

const SOON: Duration = Duration::from_secs(20);
const TEST_PATIENCE: Duration = Duration::from_secs(1);

type Tail = Pin<Box<dyn Stream<Item = Result<Slice, TailError>> + Send>>;

/// A log in memory, which counts its reads and can fail.
#[derive(Default)]
struct FakeLog {
    runs: Mutex<HashMap<RunId, Vec<Segment>>>,
    asked: AtomicUsize,
    reads: AtomicUsize,
    rows: AtomicUsize,
    is_down: AtomicBool,
    corrupt: Mutex<Option<RunId>>,
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
struct FaultyBus {
    inner: InProcessBus,
    is_connected: AtomicBool,
    subscribed: AtomicUsize,
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

struct World {
    workspace: WorkspaceId,
    log: Arc<FakeLog>,
    bus: Arc<FaultyBus>,
    tails: Tails,
}

impl World {
    fn new() -> Arc<Self> {
        Self::losing(|_| true)
    }

    fn losing(passes: fn(usize) -> bool) -> Arc<Self> {
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

    fn last(&self, run: RunId) -> Seq {
        self.log.runs.lock().unwrap().get(&run).and_then(|log| log.last()).map_or(0, |segment| segment.last)
    }

    fn commit(&self, run_id: RunId, events: Vec<Event>) -> Arc<Segment> {
        let mut runs = self.log.runs.lock().unwrap();
        let log = runs.entry(run_id).or_default();
        let first = log.last().map_or(1, |segment| segment.last + 1);
        let segment = Segment { run_id, first, last: first + events.len() as Seq - 1, at: first, events };
        log.push(segment.clone());
        Arc::new(segment)
    }

    /// Commits one segment of a few tokens, then publishes it.
    fn tokens(&self, run: RunId) -> Arc<Segment> {
        let first = self.last(run) + 1;
        let count = 1 + first % 3;
        let token = |n| EventData::TextDelta { text: format!("token {n} ") }.of_step(1, 1);
        let segment = self.commit(run, (first..first + count).map(token).collect());
        self.bus.publish(Arc::clone(&segment));
        segment
    }

    fn commit_end(&self, run: RunId) -> Arc<Segment> {
        let end = EventData::RunFinished {
            status: RunStatus::Succeeded,
            reason: Reason::Done,
            error: None,
            usage: Usage::default(),
            step_count: 1,
        };
        self.commit(run, vec![end.of_run()])
    }

    fn end(&self, run: RunId) {
        self.bus.publish(self.commit_end(run));
    }

    fn cursor(&self, run_id: RunId, after: Seq) -> LogCursor {
        LogCursor { workspace_id: self.workspace, run_id, after }
    }

    fn follow(&self, run: RunId, after: Seq) -> Tail {
        Box::pin(self.tails.follow(self.cursor(run, after)))
    }

    /// Reads a tail to its end and compares it with the log, event by event.
    async fn expect_rest(&self, run: RunId, mut after: Seq, mut tail: Tail) {
        while let Some(slice) = timeout(SOON, tail.next()).await.expect("the tail stands still") {
            after = check(run, after, &slice.unwrap());
        }
        assert_eq!(after, self.last(run), "the tail ended before the run");
    }

    async fn write(&self, run: RunId, segments: usize, pause: Duration) {
        for _ in 0..segments {
            self.tokens(run);
            sleep(pause).await;
        }
        self.end(run);
    }
}

/// Each event once, in order, with the text that belongs to its number. Returns the new position.
fn check(run: RunId, mut after: Seq, slice: &Slice) -> Seq {
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

#[tokio::test]
async fn a_replay_subscribes_to_nothing_and_ends_even_behind_the_last_event() {
    let (world, run) = (World::new(), RunId::generate());
    world.write(run, 3, Duration::ZERO).await;
    for after in [0, world.last(run), world.last(run) + 1000] {
        let slices = world.tails.replay(world.cursor(run, after)).collect::<Vec<_>>().await;
        assert_eq!(slices.is_empty(), after > 0);
    }
    assert_eq!(world.bus.subscribed.load(SeqCst), 0);
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
async fn lost_messages_leave_no_gap() {
    let (world, run) = (World::losing(|n| n % 3 != 0), RunId::generate());
    let tails = (0..10).map(|_| world.expect_rest(run, 0, world.follow(run, 0)));
    tokio::join!(world.write(run, 300, Duration::from_millis(1)), join_all(tails));
}

#[tokio::test]
async fn the_end_arrives_within_two_seconds_though_its_message_is_lost() {
    let (world, run) = (World::new(), RunId::generate());
    let mut tails: Vec<_> = (0..3).map(|_| world.follow(run, 0)).collect();
    world.tokens(run);
    let after = world.last(run);
    for tail in &mut tails {
        check(run, 0, &tail.next().await.unwrap().unwrap());
    }
    world.commit_end(run);
    let rest = tails.into_iter().map(|tail| world.expect_rest(run, after, tail));
    timeout(Duration::from_secs(2), join_all(rest)).await.expect("the end is late");
}

#[tokio::test]
async fn repeated_reordered_and_stale_messages_are_dropped() {
    let (world, run) = (World::losing(|_| false), RunId::generate());
    let tail = world.expect_rest(run, 0, world.follow(run, 0));
    let noise = async {
        let mut sent = Vec::new();
        for round in 0..200 {
            sent.push(world.tokens(run));
            // The new one last, after repeats of older ones; every other time the newest is missing.
            let from = sent.len().saturating_sub(4);
            for segment in sent[from..].iter().rev().skip(round % 2) {
                world.bus.deliver(run, Live::Segment(Arc::clone(segment)));
            }
            world.bus.deliver(run, Live::Segment(Arc::clone(&sent[from])));
            sleep(Duration::from_millis(1)).await;
        }
        world.end(run);
    };
    tokio::join!(tail, noise);
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
async fn tokens_flow_without_a_bus() {
    let world = World::new();
    world.bus.is_connected.store(false, SeqCst);
    let runs: Vec<_> = (0..20).map(|_| RunId::generate()).collect();
    let mut tails: Vec<_> = runs.iter().map(|run| world.follow(*run, 0)).collect();
    let mut after = 0;
    for _ in 0..10 {
        for run in &runs {
            world.tokens(*run);
        }
        let read = join_all(tails.iter_mut().map(StreamExt::next));
        let slices = timeout(Duration::from_millis(900), read).await.expect("tokens are late");
        for (run, slice) in runs.iter().zip(slices) {
            check(*run, after, &slice.unwrap().unwrap());
        }
        after = world.last(runs[0]);
    }
}

#[tokio::test]
async fn the_poll_asks_once_for_all_runs_and_rests_when_nobody_follows() {
    let world = World::new();
    world.bus.is_connected.store(false, SeqCst);
    let runs: Vec<_> = (0..50).map(|_| RunId::generate()).collect();
    let mut tails: Vec<_> = runs.iter().map(|run| world.follow(*run, 0)).collect();
    let waiting = async {
        join_all(tails.iter_mut().map(StreamExt::next)).await;
    };
    assert!(timeout(Duration::from_millis(300), waiting).await.is_err());
    let before = world.log.reads.load(SeqCst);
    sleep(Duration::from_secs(1)).await;
    let looks = world.log.reads.load(SeqCst) - before;
    assert!((5..=12).contains(&looks), "{looks} looks in a second");

    drop(tails);
    assert_eq!(world.tails.following(), 0);
    sleep(Duration::from_millis(200)).await;
    let before = world.log.reads.load(SeqCst);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(world.log.reads.load(SeqCst), before);
}

#[tokio::test]
async fn a_slow_reader_costs_no_memory_and_loses_nothing() {
    let (world, run) = (World::new(), RunId::generate());
    let mut slow = world.follow(run, 0);
    world.bus.publish(world.tokens(run));
    let after = check(run, 0, &slow.next().await.unwrap().unwrap());

    let fast = world.expect_rest(run, 0, world.follow(run, 0));
    let mut published = Vec::new();
    let writing = async {
        for _ in 0..5000 {
            published.push(Arc::downgrade(&world.tokens(run)));
            tokio::task::yield_now().await;
        }
        world.end(run);
    };
    tokio::join!(fast, writing);
    let held = published.iter().filter(|segment| segment.strong_count() > 0).count();
    assert!(held <= 32, "{held} segments are held for a client that reads nothing");
    world.expect_rest(run, after, slow).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_not_looked_up_again_and_again() {
    let (world, run) = (World::new(), RunId::generate());
    world.bus.is_connected.store(false, SeqCst);
    let mut stalled = world.follow(run, 0);
    assert!(timeout(Duration::from_millis(50), stalled.next()).await.is_err());
    for _ in 0..10 {
        world.tokens(run);
    }
    sleep(Duration::from_millis(300)).await;
    let before = world.log.rows.load(SeqCst);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(world.log.rows.load(SeqCst), before);
    world.end(run);
    world.expect_rest(run, 0, stalled).await;
}

#[tokio::test]
async fn two_thousand_tails_that_lose_their_feed_at_once_are_served_by_a_few_queries() {
    let world = World::new();
    let runs: Vec<_> = (0..2000).map(|_| RunId::generate()).collect();
    let mut tails: Vec<_> = runs.iter().map(|run| world.follow(*run, 0)).collect();
    for run in &runs {
        world.tokens(*run);
    }
    join_all(tails.iter_mut().map(StreamExt::next)).await;
    for run in &runs {
        world.commit(
            *run,
            vec![EventData::RunStopping { stage: StopStage::Delivered, requested_at: None }.of_run()],
        );
        world.bus.deliver(*run, Live::Resync);
    }
    let before = world.log.reads.load(SeqCst);
    let slices = timeout(SOON, join_all(tails.iter_mut().map(StreamExt::next))).await.unwrap();
    assert!(slices.iter().all(|slice| slice.as_ref().unwrap().as_ref().unwrap().after == 2));
    let reads = world.log.reads.load(SeqCst) - before;
    assert!(reads <= 100, "{reads} queries");
}

#[tokio::test]
async fn the_viewers_of_one_run_share_a_read() {
    let (world, run) = (World::new(), RunId::generate());
    world.tokens(run);
    let mut tails: Vec<_> = (0..1000).map(|_| world.follow(run, 0)).collect();
    join_all(tails.iter_mut().map(StreamExt::next)).await;
    let reads = world.log.reads.load(SeqCst);
    assert!(reads <= 12, "{reads} queries");
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

#[tokio::test]
async fn a_store_that_fails_for_a_while_is_waited_for() {
    let (world, run) = (World::new(), RunId::generate());
    world.log.is_down.store(true, SeqCst);
    let outage = async {
        world.write(run, 20, Duration::from_millis(5)).await;
        sleep(Duration::from_millis(300)).await;
        world.log.is_down.store(false, SeqCst);
    };
    tokio::join!(world.expect_rest(run, 0, world.follow(run, 0)), outage);
}

#[tokio::test]
async fn a_store_that_keeps_failing_breaks_the_tail_off_with_an_error() {
    let (world, run) = (World::new(), RunId::generate());
    world.write(run, 1, Duration::ZERO).await;
    world.log.is_down.store(true, SeqCst);
    let started = Instant::now();
    let answer = timeout(SOON, world.follow(run, 0).next()).await.unwrap();
    assert!(matches!(answer, Some(Err(TailError::Unavailable(_)))));
    assert!(started.elapsed() >= TEST_PATIENCE);
}

#[tokio::test]
async fn a_log_that_cannot_be_read_breaks_off_its_own_tails_only() {
    let world = World::new();
    let runs: Vec<_> = (0..20).map(|_| RunId::generate()).collect();
    for run in &runs {
        world.tokens(*run);
    }
    *world.log.corrupt.lock().unwrap() = Some(runs[7]);
    let mut tails: Vec<_> = runs.iter().map(|run| world.follow(*run, 0)).collect();
    let answers = join_all(tails.iter_mut().map(StreamExt::next)).await;
    for (run, answer) in runs.iter().zip(answers) {
        match answer.unwrap() {
            Ok(_) => assert_ne!(*run, runs[7]),
            Err(error) => assert!(matches!(error, TailError::Unreadable(_)) && *run == runs[7]),
        }
    }
}

#[tokio::test]
async fn a_reader_that_gives_up_half_way_does_not_strand_the_others() {
    let world = World::new();
    let run = RunId::generate();
    world.write(run, 150, Duration::ZERO).await;
    for _ in 0..200 {
        let mut impatient: Vec<_> = (0..20).map(|after| world.follow(run, after)).collect();
        for tail in &mut impatient {
            // One poll, in which some of them have begun to read for all.
            let _ = futures::poll!(tail.next());
        }
        let patient = world.expect_rest(run, 3, world.follow(run, 3));
        drop(impatient);
        patient.await;
    }
    // Nothing that was asked of the store was dropped half-way, though its tail was.
    let answered = async {
        while world.log.asked.load(SeqCst) != world.log.reads.load(SeqCst) {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, answered).await.expect("a query was dropped half-way");
}

#[tokio::test]
async fn a_tail_is_small() {
    let world = World::new();
    let tail = world.tails.follow(world.cursor(RunId::generate(), 0));
    let size = size_of_val(&tail);
    assert!(size <= 1024, "{size} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_killed_again_and_again_leaves_no_gap_and_stops_no_tail() {
    let Some(mut redis) = PrivateRedis::absent() else { return };
    redis.start().await;
    // The writer's process and the viewers' process.
    let world = World::new();
    let publisher = RedisBus::start(&redis.url(), "t").unwrap();
    let bus = Arc::new(RedisBus::start(&redis.url(), "t").unwrap());
    until("the bus is connected", async || bus.is_connected()).await;
    let tails = Tails::new(Arc::clone(&world.log) as _, Arc::clone(&bus) as _);

    let runs: Vec<_> = (0..50).map(|_| RunId::generate()).collect();
    let watching =
        runs.iter().map(|run| world.expect_rest(*run, 0, Box::pin(tails.follow(world.cursor(*run, 0)))));
    let writing = async {
        for round in 0..300 {
            for run in &runs {
                publisher.publish(world.tokens(*run));
            }
            if round % 100 == 30 {
                redis.kill();
            }
            if round % 100 == 70 {
                redis.start().await;
            }
            sleep(Duration::from_millis(20)).await;
        }
        for run in &runs {
            publisher.publish(world.commit_end(*run));
        }
    };
    tokio::join!(join_all(watching), writing);
}
