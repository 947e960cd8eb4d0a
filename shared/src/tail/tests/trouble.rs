//! Tails in trouble: messages that are lost or repeated, readers that are slow or leave, stores that fail.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use tokio::time::{Instant, sleep, timeout};

use super::{SOON, TEST_PATIENCE, World, check};
use crate::{
    bus::{
        Bus, Live,
        conformance::until,
        redis::{RedisBus, test_server::PrivateRedis},
    },
    domain::ids::RunId,
    tail::{TailError, Tails},
};

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
