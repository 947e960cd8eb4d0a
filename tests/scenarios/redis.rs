//! Without Redis everything is slower and nothing is lost.

use std::time::Duration;

use longhaul_tests::story::marks_of;
use longhaul_tests::{At, Bus, Script, Setup, Turn, World};
use serde_json::json;

use crate::on_postgres;

on_postgres!(
    without_redis_from_the_start_runs_stream_stop_and_wait_their_turn,
    redis_that_dies_in_mid_run_and_comes_back_empty_leaves_no_gap,
    a_frozen_redis_holds_nobody_up,
    a_flushed_full_and_slow_redis_costs_nothing_that_was_said,
    an_api_process_that_redis_throws_out_for_being_slow_reads_what_it_missed,
);

async fn without_redis_from_the_start_runs_stream_stop_and_wait_their_turn(setup: Setup) {
    let world =
        World::start(setup.apis(2).workers(2).bus(Bus::Absent).agent("steady", "tokens-60-50ms")).await;
    let client = world.client();
    let submitted = client.submit("steady", "Slowly.").await;
    let tail = world.tail_from(&submitted.run_id, 0, 1);
    // Tokens flow while the run is under way, not only with its end.
    tail.hears("a1.s1.5 ").await;
    assert!(!client.run(&submitted.run_id).await.is_over(), "the tokens came with the end only");
    let next = json!({"agent": "quick", "input": "Next", "ifBusy": "enqueue"});
    let next = client.post(&format!("/v1/chats/{}/messages", submitted.chat_id), &next).await.submitted();
    tail.ended().await;
    assert_eq!(marks_of(&tail.story().text(), 1, 60), Some(1));
    assert_eq!(world.client_of(1).ended(&next.run_id).await.outcome(), "succeeded done");

    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let stopped = client.submit("helper", "Talk.").await;
    gate.reached().await;
    assert_eq!(world.client_of(1).stop(&stopped.run_id, 10).await.expect(200)["status"], "aborted");
    world.finish().await;
}

async fn redis_that_dies_in_mid_run_and_comes_back_empty_leaves_no_gap(setup: Setup) {
    let mut world =
        World::start(setup.apis(2).workers(2).bus(Bus::Own).agent("steady", "tokens-120-40ms")).await;
    let client = world.client();
    let mut tails = Vec::new();
    for number in 0..10 {
        let submitted = client.submit("steady", &format!("Run {number}")).await;
        tails.push(world.tail_from(&submitted.run_id, 0, number % 2));
    }
    for tail in &tails {
        tail.hears("a1.s1.5 ").await;
    }
    let redis = world.redis.as_mut().unwrap();
    redis.kill();
    for tail in &tails {
        tail.hears("a1.s1.40 ").await;
    }
    redis.restart().await.unwrap();
    for tail in &tails {
        tail.ended().await;
        assert_eq!(marks_of(&tail.story().text(), 1, 120), Some(1));
        assert_eq!(tail.connections(), 1, "no tail was cut because of it");
    }
    // What is submitted now is heard of again.
    let submitted = client.submit("quick", "Still there?").await;
    world.tail_from(&submitted.run_id, 0, 1).ended().await;
    world.finish().await;
}

async fn a_frozen_redis_holds_nobody_up(setup: Setup) {
    let mut world = World::start(setup.apis(2).bus(Bus::Own).agent("steady", "tokens-20-20ms")).await;
    world.redis.as_mut().unwrap().signal(longhaul_tests::Signal::Stop);
    let client = world.client();
    let begin = std::time::Instant::now();
    let submitted = client.submit("steady", "Slowly.").await;
    let tail = world.tail_from(&submitted.run_id, 0, 1);
    tail.ended().await;
    assert!(begin.elapsed() < Duration::from_secs(10), "it took {:?}", begin.elapsed());
    assert_eq!(marks_of(&tail.story().text(), 1, 20), Some(1));
    world.redis.as_mut().unwrap().signal(longhaul_tests::Signal::Cont);
    world.finish().await;
}

async fn a_flushed_full_and_slow_redis_costs_nothing_that_was_said(setup: Setup) {
    let world = World::start(setup.apis(2).bus(Bus::Own).agent("steady", "tokens-100-20ms")).await;
    let (redis, cable) = (world.redis.as_ref().unwrap(), world.redis_cable.as_ref().unwrap());
    let client = world.client();
    let mut tails = Vec::new();
    let begin = std::time::Instant::now();
    for number in 0..10 {
        let submitted = client.submit("steady", &format!("Run {number}")).await;
        tails.push((world.tail_from(&submitted.run_id, 0, number % 2), submitted.run_id));
    }
    for (tail, _) in &tails {
        tail.hears("a1.s1.5 ").await;
    }
    assert_eq!(redis.order("CONFIG SET maxmemory 1").await, "+OK");
    assert_eq!(redis.order("CONFIG SET maxmemory-policy noeviction").await, "+OK");
    assert!(redis.order("SET x y").await.starts_with("-OOM"), "it is full");
    assert_eq!(redis.order("FLUSHALL").await, "+OK");
    for (tail, _) in &tails {
        tail.hears("a1.s1.40 ").await;
    }
    cable.latency(Duration::from_millis(300));
    for (tail, run) in &tails {
        tail.ended().await;
        assert_eq!(marks_of(&tail.story().text(), 1, 100), Some(1));
        let run = client.ended(run).await;
        assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1));
    }
    println!("ten runs of two seconds took {:?}", begin.elapsed());
    // With a latency of 300 ms on each of 2 × 50 answers it would be half a minute.
    assert!(begin.elapsed() < Duration::from_secs(12), "it took {:?}", begin.elapsed());
    world.finish().await;
}

async fn an_api_process_that_redis_throws_out_for_being_slow_reads_what_it_missed(setup: Setup) {
    const TOKENS: usize = 80;
    let setup = setup.apis(2).bus(Bus::Own).limit("max_output_bytes", "64MiB");
    let mut world = World::start(setup).await;
    let redis = world.redis.as_ref().unwrap();
    let bounds = "CONFIG SET client-output-buffer-limit \"pubsub 64kb 32kb 1\"";
    assert_eq!(redis.order(bounds).await, "+OK");
    // More than the sockets on the way can hold for a reader that sleeps.
    let tokens = (0..TOKENS).map(|n| format!("{n:06}{}", "x".repeat(128 << 10)));
    world.provider.script("helper", Script::new([Turn::text(tokens)]));
    let gate = world.provider.gate("helper", At::Token(2));
    let end = world.provider.gate("helper", At::BeforeEnd);
    let submitted = world.client().submit("helper", "Talk.").await;
    let tail = world.tail_from(&submitted.run_id, 0, 1);
    let has_come = |number: usize| {
        let mark = format!("{number:06}");
        move |events: &[longhaul_tests::story::Event]| {
            let text = events.last().and_then(|event| event.data["text"].as_str());
            text.is_some_and(|text| text.contains(&mark))
        }
    };
    tail.until("the second piece", has_come(1)).await;
    world.apis[1].freeze();
    gate.open();
    end.reached().await;
    let other = world.tail_from(&submitted.run_id, 0, 0);
    other.until("the last piece", has_come(TOKENS - 1)).await;
    world.apis[1].thaw();
    world.apis[1].says("Redis is lost").await;
    end.open();
    tail.ended().await;
    assert_eq!(tail.connections(), 1, "the viewer noticed nothing");
    assert_eq!(tail.story().text().len(), TOKENS * ((128 << 10) + 6));
    other.ended().await;
    world.finish().await;
}
