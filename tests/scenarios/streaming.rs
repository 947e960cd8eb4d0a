//! Watching a run: everything arrives, once, in order, however often the line is cut.

use std::time::Duration;

use futures::StreamExt;
use longhaul_tests::story::{Story, marks_of};
use longhaul_tests::{At, Relay, Script, Setup, Tail, Turn, Way, World};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::on_both;

on_both!(
    a_run_with_reasoning_a_tool_and_usage_is_streamed_and_equals_its_rows,
    a_client_that_submits_and_leaves_finds_it_all_there,
    a_reconnect_that_has_seen_the_end_is_told_that_there_is_no_more,
    whoever_comes_late_sees_the_whole_run_and_the_live_message_in_its_chat,
    a_run_whose_last_viewer_leaves_goes_on_to_its_end,
    a_run_that_waits_its_turn_keeps_its_viewers_with_heartbeats,
    fifty_runs_tailed_over_a_line_that_is_cut_at_random_bytes_arrive_whole,
);

async fn a_run_with_reasoning_a_tool_and_usage_is_streamed_and_equals_its_rows(setup: Setup) {
    let world = World::start(setup).await;
    let thinks =
        Turn::marked(3).reasoning(["Let ", "me ", "look."]).and_call("look", &json!({"op": "weather"}));
    world.provider.script("helper", Script::new([thinks.usage(20, 9), Turn::marked(40).usage(50, 40)]));
    let client = world.client();
    let submitted = client.submit("helper", "What is the weather?").await;
    let tail = world.tail(&submitted.run_id);
    let events = tail.ended().await;
    let story = Story::of(&events);
    let run = client.ended(&submitted.run_id).await;
    assert_eq!(run.outcome(), "succeeded done");
    assert_eq!((run.usage.input_tokens, run.usage.output_tokens), (70, 49));
    assert_eq!(run.last_seq, events.last().unwrap().seq);
    assert_eq!(story.steps[&1].output()[0], ("reasoning", "Let me look.".to_owned()));
    assert_eq!(story.steps[&1].calls[&1], ("look".to_owned(), "succeeded".to_owned()));
    assert_eq!(marks_of(&story.steps[&1].text(), 1, 3), Some(1));
    assert_eq!(marks_of(&story.steps[&2].text(), 2, 40), Some(1));

    let steps = client.steps(&submitted.run_id).await;
    assert_eq!(steps.len(), 2);
    assert_eq!(steps[0].finish_reason, "tool_calls");
    assert_eq!(steps[0].tool_calls[0].state, "succeeded");
    assert!(steps[0].tool_calls[0].output.as_ref().unwrap().contains("weather"));
    assert_eq!((steps[1].usage.input_tokens, steps[1].usage.output_tokens), (50, 40));
    let messages = client.messages(&submitted.chat_id).await;
    assert_eq!(messages.iter().map(|m| m.role.as_str()).collect::<Vec<_>>(), ["user", "assistant"]);
    assert_eq!((messages[1].status.as_str(), messages[1].text()), ("completed", story.text()));
    for limit in [1000, 7] {
        assert_eq!(client.events(&submitted.run_id, limit).await, events);
    }
    world.finish().await;
}

async fn a_client_that_submits_and_leaves_finds_it_all_there(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(30)]));
    let gate = world.provider.gate("helper", At::Token(10));
    // It does not even wait for the answer.
    let body = json!({"agent": "helper", "input": "Go on without me."}).to_string();
    let authorization =
        world.key.as_ref().map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let address = world.apis[0].addr();
    let head = format!(
        "POST /v1/runs HTTP/1.1\r\nhost: {address}\r\n{authorization}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    drop(socket);

    gate.reached().await;
    gate.open();
    let client = world.client();
    let runs = client.get("/v1/runs").await.expect(200);
    let id = |name: &str| runs["data"][0][name].as_str().unwrap().to_owned();
    assert_eq!(client.ended(&id("runId")).await.outcome(), "succeeded done");
    let messages = client.messages(&id("chatId")).await;
    assert_eq!(marks_of(&messages[1].text(), 1, 30), Some(1));
    world.tail(&id("runId")).ended().await;
    world.finish().await;
}

async fn a_reconnect_that_has_seen_the_end_is_told_that_there_is_no_more(setup: Setup) {
    let world = World::start(setup).await;
    let client = world.client();
    let submitted = client.submit("quick", "Hello").await;
    let end = client.ended(&submitted.run_id).await.last_seq;
    let path = format!("/v1/runs/{}/events", submitted.run_id);
    for (position, status) in [(end, 204), (end + 5, 204), (end - 1, 200), (0, 200)] {
        let request = client.request(reqwest::Method::GET, &path).header("accept", "text/event-stream");
        let answer = client.send(request.header("last-event-id", position)).await.unwrap();
        assert_eq!(answer.status, status, "behind event {position} of {end}");
    }
    for position in ["-1", "x"] {
        let request = client.request(reqwest::Method::GET, &path).header("accept", "text/event-stream");
        client.send(request.header("last-event-id", position)).await.unwrap().refused(400, "INVALID_REQUEST");
    }
    // Each of these sees its part and the end.
    for after in 0..end {
        world.tail_from(&submitted.run_id, after, 0).ended().await;
    }
    world.finish().await;
}

async fn whoever_comes_late_sees_the_whole_run_and_the_live_message_in_its_chat(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(20)]));
    let gate = world.provider.gate("helper", At::Token(12));
    let client = world.client();
    let submitted = client.submit("helper", "Hello").await;
    gate.reached().await;
    let tail = world.tail(&submitted.run_id);
    tail.hears("a1.s1.11 ").await;

    let page = client.get(&format!("/v1/chats/{}/run", submitted.chat_id)).await.expect(200);
    assert_eq!(page["run"]["status"], "running");
    let messages = client.messages(&submitted.chat_id).await;
    let live = &messages[1];
    assert_eq!(live.status, "streaming");
    assert_eq!(marks_of(&live.text(), 1, 12), Some(1), "{}", live.text());
    // What the page shows and what follows behind it make up the whole.
    let rest = world.tail_from(&submitted.run_id, live.last_seq.unwrap(), 0);
    let late = world.tail(&submitted.run_id);
    gate.open();
    rest.ended().await;
    assert_eq!(marks_of(&(live.text() + &rest.story().text()), 1, 20), Some(1));
    assert_eq!(late.ended().await, tail.ended().await);
    world.finish().await;
}

async fn a_run_whose_last_viewer_leaves_goes_on_to_its_end(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(20)]));
    let gate = world.provider.gate("helper", At::Token(8));
    let submitted = world.client().submit("helper", "Talk.").await;
    let viewer = || Tail::start(vec![world.apis[0].url()], world.key.clone(), &submitted.run_id, 0);
    let viewers: Vec<_> = (0..20).map(|_| viewer()).collect();
    for viewer in &viewers {
        viewer.hears("a1.s1.7 ").await;
    }
    gate.reached().await;
    drop(viewers);
    gate.open();
    let run = world.client().ended(&submitted.run_id).await;
    assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1));
    assert_eq!(marks_of(&world.client().messages(&submitted.chat_id).await[1].text(), 1, 20), Some(1));
    assert_eq!(world.provider.calls_to("helper").len(), 1);
    world.finish().await;
}

async fn a_run_that_waits_its_turn_keeps_its_viewers_with_heartbeats(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(3)]));
    let gate = world.provider.gate("helper", At::Token(1));
    let client = world.client();
    let first = client.submit("helper", "First.").await;
    gate.reached().await;
    let second = json!({"agent": "quick", "input": "Second.", "ifBusy": "enqueue"});
    let second = client.post(&format!("/v1/chats/{}/messages", first.chat_id), &second).await.submitted();
    assert_eq!(second.status, "queued");
    let path = format!("/v1/runs/{}/events", second.run_id);
    let request = client.request(reqwest::Method::GET, &path).header("accept", "text/event-stream");
    let mut body = request.send().await.unwrap().bytes_stream();
    let mut text = String::new();
    let mut read = async |until: &str| {
        while !text.contains(until) {
            let bytes = timeout(longhaul_tests::PATIENCE, body.next()).await.expect("it goes on");
            text.push_str(std::str::from_utf8(&bytes.expect("it has not ended").unwrap()).unwrap());
        }
    };
    read("event: run.queued").await;
    read(": hb\n: hb\n: hb\n").await;
    assert_eq!(client.run(&second.run_id).await.status, "queued");
    gate.open();
    read("event: end").await;
    world.finish().await;
}

async fn fifty_runs_tailed_over_a_line_that_is_cut_at_random_bytes_arrive_whole(setup: Setup) {
    const RUNS: usize = 50;
    let world = World::start(setup.agent("steady", "tokens-60-40ms")).await;
    let gate = world.provider.gate("tokens-60-40ms", At::Token(2));
    let (relay, url) = Relay::in_front_of(&world.apis[0].url()).await.unwrap();
    let client = world.client();
    let mut tails = Vec::new();
    for number in 0..RUNS {
        let submitted = client.submit("steady", &format!("Run {number}")).await;
        tails.push((submitted.run_id.clone(), world.tail_at(vec![url.clone()], &submitted.run_id, 0)));
    }
    for (_, tail) in &tails {
        tail.hears("a1.s1.1 ").await;
    }
    gate.open();
    // Every cut takes all connections with it, wherever they are in a frame.
    let mut random_cuts = 0;
    while tails.iter().any(|(_, tail)| tail.story().end.is_none()) {
        let before = relay.cuts();
        relay.cut_after_bytes(Way::Down, rand::random_range(1..20_000));
        let cut = async {
            while relay.cuts() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // The last bytes of all may be too few for the fuse.
        if timeout(Duration::from_secs(1), cut).await.is_ok() {
            random_cuts += 1;
        }
    }
    relay.pass();
    for (_, tail) in &tails {
        tail.ended().await;
        assert_eq!(marks_of(&tail.story().text(), 1, 60), Some(1));
    }
    assert!(random_cuts >= 3, "{random_cuts} cuts are too few to mean anything");
    assert!(tails.iter().all(|(_, tail)| tail.connections() >= 2), "all were there when the first cut came");
    for (run, tail) in &tails {
        assert_eq!(client.events(run, 1000).await, tail.events());
    }
    world.finish().await;
}
