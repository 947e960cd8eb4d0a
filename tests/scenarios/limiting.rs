//! Limits end a run with the reason that says which, and its chat goes on.

use longhaul_tests::{Answer, Script, Setup, Turn, World};
use serde_json::json;

use crate::{on_both, on_sqlite};

on_both!(a_model_that_writes_in_circles_is_ended_and_what_it_wrote_is_kept,);
on_sqlite!(
    a_model_that_calls_in_circles_is_ended,
    an_answer_beyond_the_output_limit_ends_the_run,
    more_calls_than_a_step_may_have_end_the_run,
);

fn joined(count: usize, piece: impl Fn(usize) -> String) -> String {
    (0..count).map(piece).collect()
}

/// Runs the script to its end, which must be this failure, and shows that the chat goes on.
async fn fails(world: &World, script: Script, reason: &str) -> (String, String) {
    world.provider.script("helper", script);
    let client = world.client();
    let submitted = client.submit("helper", "Go.").await;
    let run = client.ended(&submitted.run_id).await;
    assert_eq!(run.outcome(), format!("failed {reason}"), "{:?}", run.error);
    let next = client.say(&submitted.chat_id, "quick", "And now?").await.submitted();
    assert_eq!(client.ended(&next.run_id).await.outcome(), "succeeded done");
    (submitted.run_id, run.error.expect("a failure has words").message)
}

async fn a_model_that_writes_in_circles_is_ended_and_what_it_wrote_is_kept(setup: Setup) {
    let world = World::start(setup).await;
    let circles = (0..5_000).map(|n| if n == 0 { "Let me think.\n" } else { "I will try again.\n" });
    let (run, told) = fails(&world, Script::new([Turn::text(circles)]), "loop").await;
    assert!(told.contains("\"I will try again.\""), "{told}");
    let [step] = &world.client().steps(&run).await[..] else { panic!("one step") };
    assert_eq!(step.finish_reason, "interrupted");
    let text = step.output[0]["text"].as_str().unwrap();
    assert!(text.starts_with("Let me think.\nI will try again.\n") && text.len() < 20_000, "{}", text.len());
    world.finish().await;
}

async fn a_model_that_calls_in_circles_is_ended(setup: Setup) {
    let world = World::start(setup).await;
    world.tools.behave("look", Answer::Json(json!({"found": 0})));
    let script = Script::new([Turn::call("look", &json!({"op": "the same"}))]).repeat_last();
    let (run, told) = fails(&world, script, "loop").await;
    assert!(told.contains("`look` 10 times in a row"), "{told}");
    assert_eq!(world.client().steps(&run).await.len(), 10);
    world.finish().await;
}

async fn an_answer_beyond_the_output_limit_ends_the_run(setup: Setup) {
    let world = World::start(setup).await;
    // Five megabytes in which nothing repeats.
    let words = (0..80).map(|n| joined(10_000, |m| format!("{} ", n * 10_000 + m)));
    let (run, told) = fails(&world, Script::new([Turn::text(words)]), "output_limit").await;
    assert!(told.contains("larger than 4194304 bytes"), "{told}");
    assert_eq!(world.client().steps(&run).await[0].finish_reason, "interrupted");
    world.finish().await;
}

async fn more_calls_than_a_step_may_have_end_the_run(setup: Setup) {
    let world = World::start(setup).await;
    let calls = (0..65).fold(Turn::default(), |turn, n| turn.and_call("look", &json!({"op": n.to_string()})));
    let (_, told) = fails(&world, Script::new([calls]), "call_limit").await;
    assert!(told.contains("more than 64 tool calls"), "{told}");
    assert!(world.tools.ledger().is_empty(), "none of them was sent");
    world.finish().await;
}
