//! Frozen workers wake up: what they held is somebody else's, and they let go of it at once.

use std::time::{Duration, Instant};

use longhaul_tests::client::Submitted;
use longhaul_tests::story::marks_of;
use longhaul_tests::{At, End, Fault, PATIENCE, Script, Setup, Tail, Turn, World};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::on_postgres;

on_postgres!(
    a_worker_that_wakes_up_closes_its_stream_and_does_not_send_what_it_had_planned,
    a_worker_that_wakes_up_closes_its_stream_and_does_not_send_what_it_was_about_to_send,
);

/// What may pass until its stream is closed, and what a busy machine adds.
const AT_ONCE: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_secs(2);

async fn a_worker_that_wakes_up_closes_its_stream_and_does_not_send_what_it_had_planned(setup: Setup) {
    // Nobody has sent it yet: the next owner does, and only that one.
    wakes_up(setup, "before_tool_record", ["succeeded", "succeeded"], [1, 1]).await;
}

async fn a_worker_that_wakes_up_closes_its_stream_and_does_not_send_what_it_was_about_to_send(setup: Setup) {
    // Whether it was sent nobody can know.
    wakes_up(setup, "after_tool_record_before_send", ["unknown", "succeeded"], [0, 1]).await;
}

/// A worker freezes at `point` between the calls of one run while it streams another one. When it wakes up, the calls
/// have come to `states` by so many `requests`, and its stream is told anew by somebody else.
async fn wakes_up(setup: Setup, point: &str, states: [&str; 2], requests: [usize; 2]) {
    let mut world = World::start(setup.short_lease().workers(0).agent("caller", "caller")).await;
    world.start_worker_that(&format!("{point}=stop:2")).await;
    // Its stream stays open for as long as it listens.
    let talk = Turn::marked(20).fault(Fault::Hang(At::Token(8)), 1);
    world.provider.script("helper", Script::new([talk]));
    let again = world.provider.gate("helper", At::Token(15));
    let calls = Turn::call("charge", &json!({"op": "order 3"})).and_call("put", &json!({"op": "address"}));
    // A first call leaves it a connection on which the next ones could go out at once.
    let first = Turn::call("put", &json!({"op": "name"}));
    world.provider.script("caller", Script::new([first, calls, Turn::marked(3)]));
    let client = world.client();
    let (talking, talk) = submit(&world, "helper").await;
    talk.hears("a1.s1.7 ").await;
    let (calling, call) = submit(&world, "caller").await;
    let frozen = async {
        while !world.workers[0].is_frozen() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, frozen).await.expect("the worker freezes between its calls");

    world.start_worker().await;
    call.ended().await;
    again.reached().await;
    talk.hears("a2.s1.14 ").await;
    assert_eq!(world.provider.calls_to("helper")[0].ended(), None, "its stream is still open");
    let (known, log) = (rows_of(&world, &calling.run_id).await, world.rows.log(&talking.run_id).await);
    assert_eq!(states_of_calls(&world, &calling).await, states);

    let thawed = Instant::now();
    world.workers[0].thaw();
    let is_closed = |call: &longhaul_tests::fake_provider::Call| call.ended() == Some(End::ClientGone);
    world.provider.until("the stream is closed", |calls| calls.iter().any(is_closed)).await;
    let (closed, _) = world.provider.calls_to("helper")[0].end.expect("it was the first one's");
    let took = closed.saturating_duration_since(thawed);
    println!("the stream was closed {took:?} after the worker went on");
    assert!(took < AT_ONCE + SLACK, "it took {took:?}");
    world.workers[0].says("the lease is lost").await;

    assert_eq!(
        world.rows.log(&talking.run_id).await,
        log,
        "nothing of it reaches the log of a run under way"
    );
    again.open();
    talk.ended().await;
    assert_eq!(marks_of(&talk.story().text(), 1, 20), Some(2));
    // It works again, so it had every occasion to send what it had planned.
    world.workers[1].kill();
    let next = client.say(&calling.chat_id, "quick", "Awake?").await.submitted();
    assert_eq!(client.ended(&next.run_id).await.outcome(), "succeeded done");
    assert_eq!(rows_of(&world, &calling.run_id).await, known, "nothing of it reaches a run that is over");
    for (op, requests) in ["order 3", "address"].into_iter().zip(requests) {
        let sent = world.tools.ledger().into_iter().filter(|one| one.op == op).count();
        assert_eq!(sent, requests, "{op}");
    }
    for run in [&talking, &calling] {
        let run = client.ended(&run.run_id).await;
        assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 2));
    }
    assert_eq!((world.provider.calls_to("helper").len(), world.provider.calls_to("caller").len()), (2, 3));
    world.finish().await;
}

async fn submit(world: &World, agent: &str) -> (Submitted, Tail) {
    let submitted = world.client().submit(agent, "Go on.").await;
    let tail = world.tail(&submitted.run_id);
    (submitted, tail)
}

async fn states_of_calls(world: &World, run: &Submitted) -> Vec<String> {
    let steps = world.client().steps(&run.run_id).await;
    steps[1].tool_calls.iter().map(|call| call.state.clone()).collect()
}

/// All rows of a run, whole.
async fn rows_of(world: &World, run: &str) -> Vec<String> {
    let run = world.rows.id(run);
    let mut rows = Vec::new();
    let tables = ["messages", "steps", "tool_calls", "run_events"].map(|table| (table, "run_id"));
    for (table, id) in [("runs", "id")].into_iter().chain(tables) {
        let sql = format!("select cast(t as text) from {table} t where {id} = {run} order by 1");
        rows.extend(world.rows.texts(&sql).await);
    }
    rows
}
