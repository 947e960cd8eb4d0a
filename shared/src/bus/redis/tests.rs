//! The port's promises on a real Redis, and what only this back-end can get wrong: strangers on a shared
//! server, subscriptions that multiply or leak, and a server that is absent, frozen or killed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::aio::MultiplexedConnection;

use super::{
    RedisBus,
    test_server::{PrivateRedis, server_url},
};
use crate::{
    bus::{
        Bus, Live, Signal,
        conformance::{Pair, conforms, next, next_segment, segment, until},
    },
    domain::ids::RunId,
};

fn fresh_prefix() -> String {
    format!("test-{}", RunId::generate())
}

async fn connected(url: &str, prefix: &str) -> RedisBus {
    let bus = RedisBus::start(url, prefix).unwrap();
    until("the bus is connected", async || bus.is_connected()).await;
    bus
}

async fn pair() -> Option<Pair> {
    let url = server_url()?;
    let prefix = fresh_prefix();
    Some(Pair {
        here: Arc::new(connected(&url, &prefix).await),
        there: Arc::new(connected(&url, &prefix).await),
    })
}

conforms!(pair);

/// A plain connection, to look at the server or to misbehave on it.
async fn stranger(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn subscriptions(connection: &mut MultiplexedConnection, channel: &str) -> i64 {
    let (_, count): (String, i64) =
        redis::cmd("PUBSUB").arg("NUMSUB").arg(channel).query_async(connection).await.unwrap();
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_holds_one_subscription_per_run_until_its_last_subscriber_leaves() {
    let Some(url) = server_url() else { return };
    let prefix = fresh_prefix();
    let bus = connected(&url, &prefix).await;
    let mut redis = stranger(&url).await;
    let run = RunId::generate();
    let channel = format!("{prefix}:run:{run}");

    let mut viewers = Vec::new();
    for _ in 0..100 {
        viewers.push(bus.subscribe(run).await);
    }
    assert_eq!(subscriptions(&mut redis, &channel).await, 1);
    viewers.truncate(1);
    bus.publish(segment(run, 1));
    assert_eq!(next_segment(&mut viewers[0]).await, 1);
    drop(viewers);
    until("the channel is left", async || subscriptions(&mut redis, &channel).await == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_runs_are_followed_on_one_connection_and_left_again() {
    let Some(url) = server_url() else { return };
    let prefix = fresh_prefix();
    let bus = Arc::new(connected(&url, &prefix).await);
    let joining = (0..2000).map(|_| {
        let bus = Arc::clone(&bus);
        async move { bus.subscribe(RunId::generate()).await }
    });
    let subscriptions = futures::future::join_all(joining).await;
    let mut redis = stranger(&url).await;
    let pattern = format!("{prefix}:run:*");
    let mut channels = async || -> usize {
        let names: Vec<String> =
            redis::cmd("PUBSUB").arg("CHANNELS").arg(&pattern).query_async(&mut redis).await.unwrap();
        names.len()
    };
    assert_eq!(channels().await, 2000);
    assert!(bus.is_connected());
    drop(subscriptions);
    until("all channels are left", async || channels().await == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_strangers_publish_is_dropped() {
    let Some(url) = server_url() else { return };
    let prefix = fresh_prefix();
    let bus = connected(&url, &prefix).await;
    let run = RunId::generate();
    let mut subscription = bus.subscribe(run).await;
    let mut signals = bus.signals();
    let channel = format!("{prefix}:run:{run}");

    let foreign = serde_json::to_vec(&*segment(RunId::generate(), 1)).unwrap();
    let garbage: [&[u8]; 6] = [b"", b"\xff\xfe\x00", b"{}", b"null", &foreign, &vec![b'['; 10 << 20]];
    let mut redis = stranger(&url).await;
    for payload in garbage {
        for channel in [channel.clone(), format!("{prefix}:signal"), format!("{prefix}:run:nobody")] {
            let _: i64 =
                redis::cmd("PUBLISH").arg(channel).arg(payload).query_async(&mut redis).await.unwrap();
        }
    }
    bus.publish(segment(run, 7));
    bus.signal(Signal::Wake { queue: "q".into() });
    let Live::Segment(heard) = next(&mut subscription).await else { panic!("interrupted") };
    assert_eq!(heard.first, 7);
    assert_eq!(signals.recv().await.unwrap(), Signal::Wake { queue: "q".into() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_with_different_prefixes_do_not_hear_each_other() {
    let Some(url) = server_url() else { return };
    let (ours, theirs) = (connected(&url, &fresh_prefix()).await, connected(&url, &fresh_prefix()).await);
    let run = RunId::generate();
    let mut subscription = ours.subscribe(run).await;
    theirs.publish(segment(run, 1));
    theirs.close().await;
    ours.publish(segment(run, 2));
    assert_eq!(next_segment(&mut subscription).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_resyncs_every_subscriber_and_deliveries_resume_when_it_is_back() {
    let Some(mut redis) = PrivateRedis::absent() else { return };
    redis.start().await;
    let (here, there) = (connected(&redis.url(), "t").await, connected(&redis.url(), "t").await);
    let (run, other) = (RunId::generate(), RunId::generate());
    let mut before = there.subscribe(run).await;

    redis.kill();
    assert!(matches!(next(&mut before).await, Live::Resync));
    until("the loss is noticed", async || !there.is_connected() && !here.is_connected()).await;
    let asked = Instant::now();
    let mut meanwhile = there.subscribe(other).await;
    assert!(asked.elapsed() < Duration::from_millis(400), "subscribing must not wait for a dead server");
    here.publish(segment(run, 1));

    redis.start().await;
    assert!(matches!(next(&mut before).await, Live::Resync));
    assert!(matches!(next(&mut meanwhile).await, Live::Resync));
    // The publishing side comes back by itself as well, at the latest with what is published.
    for (run, subscription) in [(run, &mut before), (other, &mut meanwhile)] {
        let mut first = 100;
        until("live segments flow again", async || {
            first += 1;
            here.publish(segment(run, first));
            tokio::time::timeout(Duration::from_millis(200), next_segment(subscription)).await.is_ok()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_absent_at_the_start_is_used_once_it_is_there() {
    let Some(mut redis) = PrivateRedis::absent() else { return };
    let bus = RedisBus::start(&redis.url(), "t").unwrap();
    let run = RunId::generate();
    let mut subscription = bus.subscribe(run).await;
    bus.publish(segment(run, 1));
    assert!(!bus.is_connected());

    redis.start().await;
    assert!(matches!(next(&mut subscription).await, Live::Resync));
    let mut first = 1;
    until("live segments flow", async || {
        first += 1;
        bus.publish(segment(run, first));
        tokio::time::timeout(Duration::from_millis(200), next_segment(&mut subscription)).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn without_redis_a_process_still_hears_its_own_signals() {
    let bus = RedisBus::start("redis://127.0.0.1:1", "t").unwrap();
    let mut signals = bus.signals();
    let wake = Signal::Wake { queue: "default".to_owned() };
    bus.signal(wake.clone());
    assert_eq!(signals.try_recv().unwrap(), wake);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_again_and_again_come_back_with_a_resync() {
    let Some(mut redis) = PrivateRedis::absent() else { return };
    redis.start().await;
    let bus = connected(&redis.url(), "t").await;
    let mut killer = stranger(&redis.url()).await;
    let run = RunId::generate();
    let mut subscription = bus.subscribe(run).await;
    for round in 1..=5 {
        let _: i64 =
            redis::cmd("CLIENT").arg(&["KILL", "TYPE", "pubsub"]).query_async(&mut killer).await.unwrap();
        // Once for the loss, once for the return.
        assert!(matches!(next(&mut subscription).await, Live::Resync));
        assert!(matches!(next(&mut subscription).await, Live::Resync));
        bus.publish(segment(run, round));
        assert_eq!(next_segment(&mut subscription).await, round);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_redis_holds_up_neither_publishers_nor_subscribers_and_is_noticed() {
    let Some(mut redis) = PrivateRedis::absent() else { return };
    redis.start().await;
    let bus = connected(&redis.url(), "t").await;
    let run = RunId::generate();
    let mut subscription = bus.subscribe(run).await;

    redis.send("-STOP");
    let frozen = Instant::now();
    for first in 1..=20_000 {
        bus.publish(segment(run, first));
    }
    let _second = bus.subscribe(RunId::generate()).await;
    bus.signal(Signal::Stop { run_id: run });
    assert!(frozen.elapsed() < Duration::from_secs(2), "took {:?}", frozen.elapsed());
    until("the silence is noticed", async || !bus.is_connected()).await;
    assert!(matches!(next(&mut subscription).await, Live::Resync));

    redis.send("-CONT");
    let mut first = 100_000;
    until("live segments flow again", async || {
        first += 1;
        bus.publish(segment(run, first));
        tokio::time::timeout(Duration::from_millis(200), next_segment(&mut subscription)).await.is_ok()
    })
    .await;
}
