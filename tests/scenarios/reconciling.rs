//! Calls whose answer was not seen, of a tool that can tell what became of them.

use longhaul_tests::{Answer, Script, Setup, Turn, World};
use serde_json::{Value, json};

use crate::on_both;

on_both!(
    a_tool_is_asked_about_a_call_whose_worker_was_lost,
    a_tool_is_asked_about_a_call_whose_connection_broke,
);

/// The one call was sent once, and the run went on with its real result.
async fn it_is_known(world: World, run: &str, op: &str) {
    let client = world.client();
    assert_eq!(client.ended(run).await.outcome(), "succeeded done");
    let call = &client.steps(run).await[0].tool_calls[0];
    let output: Value = serde_json::from_str(call.output.as_ref().expect("the tool told")).unwrap();
    assert_eq!((call.state.as_str(), output), ("succeeded", json!({"ok": true, "op": op, "n": 1})));
    assert_eq!((world.tools.ledger().len(), world.tools.effects(op)), (1, 1), "it was never sent again");
    let questions = world.tools.questions();
    assert!(!questions.is_empty());
    for question in &questions {
        assert_eq!(question["idempotencyKey"], call.idempotency_key.as_str());
        assert_eq!((&question["tool"], &question["arguments"]), (&json!("pay"), &json!({"op": op})));
    }
    let calls = world.provider.calls_to("helper");
    let told: Vec<_> =
        calls[1].messages().iter().filter(|message| message["role"] == "tool").cloned().collect();
    assert_eq!(told.len(), 1);
    assert!(told[0]["content"].as_str().unwrap().contains("\"ok\":true"), "{told:?}");
    world.finish().await;
}

async fn a_tool_is_asked_about_a_call_whose_worker_was_lost(setup: Setup) {
    let mut world = World::start(setup.short_lease()).await;
    let call = Turn::call("pay", &json!({"op": "bill 1"}));
    world.provider.script("helper", Script::new([call, Turn::marked(3)]));
    let gate = world.tools.gate_after("pay");
    let submitted = world.client().submit("helper", "Pay the bill.").await;
    gate.reached().await;
    match world.workers.first_mut() {
        Some(worker) => {
            worker.kill();
            world.start_worker().await;
        }
        None => world.apis[0].restart().await,
    }
    it_is_known(world, &submitted.run_id, "bill 1").await;
}

async fn a_tool_is_asked_about_a_call_whose_connection_broke(setup: Setup) {
    let world = World::start(setup).await;
    let call = Turn::call("pay", &json!({"op": "bill 2"}));
    world.provider.script("helper", Script::new([call, Turn::marked(3)]));
    world.tools.behave("pay", Answer::Reset);
    let submitted = world.client().submit("helper", "Pay the bill.").await;
    it_is_known(world, &submitted.run_id, "bill 2").await;
}
