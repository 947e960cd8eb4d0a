//! The model's side neither answers nor fails: it is silent, or it never comes to an end.

use std::time::{Duration, Instant};

use longhaul_tests::story::marks_of;
use longhaul_tests::{At, End, Fault, Script, Setup, Turn, World};
use serde_json::json;
use tokio::time::sleep;

use crate::{on_postgres, on_sqlite};

on_sqlite!(
    a_provider_that_goes_silent_is_left_and_asked_again,
    an_answer_beyond_its_limits_ends_the_run_and_what_it_said_is_kept,
    a_storm_of_faults_is_not_answered_with_a_storm_of_requests,
);
on_postgres!(a_run_is_kept_while_its_provider_asks_for_more_patience_than_a_lease_lasts);

async fn a_provider_that_goes_silent_is_left_and_asked_again(setup: Setup) {
    let world = World::start(setup.limit("provider_silence", "1s").limit("first_byte", "1s")).await;
    let turn = Turn::marked(6)
        .fault(Fault::Hang(At::BeforeHead), 1)
        .fault(Fault::Hang(At::Token(3)), 1)
        .fault(Fault::CommentsForever { after: 2 }, 1);
    world.provider.script("helper", Script::new([turn]));
    let client = world.client();
    let submitted = client.submit("helper", "Hello").await;
    let tail = world.tail(&submitted.run_id);
    let events = tail.ended().await;
    let run = client.ended(&submitted.run_id).await;
    assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1));
    assert_eq!(marks_of(&tail.story().text(), 1, 6), Some(4));
    let restarts = events.iter().filter(|event| event.kind == "step.restarted").count();
    assert_eq!(restarts, 2, "of the first one nobody had seen anything");
    let calls = world.provider.calls_to("helper");
    assert_eq!(calls.len(), 4);
    assert!(calls[..3].iter().all(|call| call.ended() == Some(End::ClientGone)), "none is left hanging");
    world.finish().await;
}

async fn an_answer_beyond_its_limits_ends_the_run_and_what_it_said_is_kept(setup: Setup) {
    let setup = setup.limit("max_output_bytes", "1KiB").limit("max_calls_per_step", 3);
    let world = World::start(setup.agent("caller", "caller")).await;
    world.provider.script("helper", Script::new([Turn::marked(1000)]));
    let calls =
        (0..4).fold(Turn::marked(2), |turn, n| turn.and_call("charge", &json!({"op": format!("{n}")})));
    world.provider.script("caller", Script::new([calls]));
    let client = world.client();
    for (agent, most, reason, words) in [
        ("helper", 1024, "output_limit", "larger than"),
        ("caller", 100, "call_limit", "more than 3 tool calls"),
    ] {
        let submitted = client.submit(agent, "Hello").await;
        let tail = world.tail(&submitted.run_id);
        tail.ended().await;
        let run = client.ended(&submitted.run_id).await;
        assert_eq!(run.outcome(), format!("failed {reason}"));
        let error = run.error.expect("a failed run says why");
        assert!(error.message.contains(words), "{error:?}");
        let messages = client.messages(&submitted.chat_id).await;
        assert_eq!((messages[1].status.as_str(), messages[1].text()), ("error", tail.story().text()));
        assert!(messages[1].text().starts_with("a1.s1.0 a1.s1.1 ") && messages[1].text().len() <= most);
        let next = client.say(&submitted.chat_id, "quick", "And now?").await.submitted();
        assert_eq!(client.ended(&next.run_id).await.outcome(), "succeeded done");
    }
    assert_eq!((world.provider.calls_to("helper").len(), world.provider.calls_to("caller").len()), (1, 1));
    assert!(world.tools.ledger().is_empty(), "none of too many calls is made");
    world.finish().await;
}

async fn a_run_is_kept_while_its_provider_asks_for_more_patience_than_a_lease_lasts(setup: Setup) {
    let setup = setup.short_lease().workers(2).max_retry_delay(Duration::from_secs(10));
    let world = World::start(setup).await;
    let turn = Turn::marked(5).fault(Fault::status_retry_after(429, "5"), 1);
    world.provider.script("helper", Script::new([turn]));
    let client = world.client();
    let begin = Instant::now();
    let submitted = client.submit("helper", "Hello").await;
    world.tail(&submitted.run_id).ended().await;
    assert!(begin.elapsed() >= Duration::from_secs(5), "longer than the lease of {:?}", world.lease());
    let run = client.ended(&submitted.run_id).await;
    assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1));
    assert_eq!(world.provider.calls_to("helper").len(), 2);
    world.finish().await;
}

async fn a_storm_of_faults_is_not_answered_with_a_storm_of_requests(setup: Setup) {
    const RUNS: usize = 100;
    let setup = setup.limit("provider_silence", "1s").limit("first_byte", "1s");
    let world = World::start(setup.max_retry_delay(Duration::from_secs(1))).await;
    let turns = [Turn::marked(5).and_call("look", &json!({"op": "prices"})), Turn::marked(5)];
    world.provider.script(
        "helper",
        Script::new(turns).weather([
            (0.30, Fault::status(429)),
            (0.10, Fault::status(500)),
            (0.05, Fault::Reset(At::Token(1))),
            (0.05, Fault::Hang(At::Token(1))),
        ]),
    );
    let client = world.client();
    let mut runs = Vec::new();
    for number in 0..RUNS {
        runs.push(client.submit("helper", &format!("Run {number}")).await.run_id);
    }
    let mut succeeded = 0;
    for run in &runs {
        // However long they wait for their ration.
        while !client.run(run).await.is_over() {
            sleep(Duration::from_millis(100)).await;
        }
        match client.ended(run).await.outcome().as_str() {
            "succeeded done" => succeeded += 1,
            outcome => assert_eq!(outcome, "failed provider"),
        }
    }
    let calls = world.provider.calls_to("helper");
    let needed = calls.iter().filter(|call| call.attempt == 1).count();
    println!("{succeeded} of {RUNS} runs succeeded; {} requests for {needed} needed ones", calls.len());
    assert!(calls.len() * 2 <= needed * 3, "{} requests for {needed} needed ones", calls.len());
    assert!(succeeded * 3 >= RUNS, "{succeeded} of {RUNS}");
    world.finish().await;
}
