//! What tails cost: subscriptions, reads, rows and memory.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use futures::{StreamExt, future::join_all};
use tokio::time::{sleep, timeout};

use super::{SOON, World};
use crate::{
    bus::{Bus, Live},
    domain::{
        event::{EventData, StopStage},
        ids::RunId,
    },
};

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
async fn a_tail_is_small() {
    let world = World::new();
    let tail = world.tails.follow(world.cursor(RunId::generate(), 0));
    let size = size_of_val(&tail);
    assert!(size <= 1024, "{size} bytes");
}
