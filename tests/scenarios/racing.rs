//! Many at once want one chat: exactly one gets it, and the others cost nothing and leave nothing.

use std::sync::Arc;

use futures::future::join_all;
use longhaul_tests::client::Submitted;
use longhaul_tests::{Client, Setup, World};
use serde_json::json;
use tokio::sync::Barrier;

use crate::{on_both, on_postgres, on_sqlite};

on_postgres!(fifty_submits_race_for_one_chat_over_two_api_processes_two_hundred_times);
on_sqlite!(fifty_submits_race_for_one_chat_two_hundred_times);
on_both!(racing_submits_that_may_wait_run_one_after_another_in_one_order);

const RACERS: usize = 50;

async fn fifty_submits_race_for_one_chat_over_two_api_processes_two_hundred_times(setup: Setup) {
    let world = World::start(setup.apis(2)).await;
    race(&world, 200).await;
    world.finish().await;
}

async fn fifty_submits_race_for_one_chat_two_hundred_times(setup: Setup) {
    let world = World::start(setup).await;
    race(&world, 200).await;
    world.finish().await;
}

async fn race(world: &World, rounds: usize) {
    let clients: Vec<Client> = (0..world.apis.len()).map(|api| world.client_of(api)).collect();
    // The winner must still be at it when the last one comes.
    world.provider.script("helper", longhaul_tests::Script::new([longhaul_tests::Turn::marked(1)]));
    for round in 0..rounds {
        let gate = world.provider.gate("helper", longhaul_tests::At::BeforeHead);
        let chat = clients[0].new_chat().await;
        let barrier = Arc::new(Barrier::new(RACERS));
        let racers = (0..RACERS).map(|racer| {
            let (client, chat, barrier) =
                (clients[racer % clients.len()].clone(), chat.clone(), barrier.clone());
            tokio::spawn(async move {
                barrier.wait().await;
                client.say(&chat, "helper", &format!("Racer {racer} of round {round}")).await
            })
        });
        let answers: Vec<_> = join_all(racers).await.into_iter().map(|answer| answer.unwrap()).collect();
        let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 202);
        assert_eq!((won.len(), lost.len()), (1, RACERS - 1), "{lost:?}");
        let winner: Submitted = won.into_iter().next().unwrap().submitted();
        for answer in lost {
            let problem = answer.refused(409, "A_RUN_ALREADY_ACTIVE");
            assert_eq!(problem["activeRunId"], winner.run_id.as_str());
        }
        gate.open();
        assert_eq!(clients[0].ended(&winner.run_id).await.outcome(), "succeeded done");
        let messages = clients[0].messages(&chat).await;
        assert_eq!(messages.len(), 2, "what the losers said is not stored");
        assert_eq!(world.provider.calls().len(), round + 1, "losers cost nothing");
    }
}

async fn racing_submits_that_may_wait_run_one_after_another_in_one_order(setup: Setup) {
    const RUNS: usize = 20;
    let world = World::start(setup).await;
    let client = world.client();
    let chat = client.new_chat().await;
    let path = format!("/v1/chats/{chat}/messages");
    let submits = (0..RUNS).map(|number| {
        let (client, path) = (client.clone(), path.clone());
        let body = json!({"agent": "quick", "input": format!("Number {number}"), "ifBusy": "enqueue"});
        tokio::spawn(async move { client.post(&path, &body).await.submitted() })
    });
    let submitted: Vec<_> = join_all(submits).await.into_iter().map(|submitted| submitted.unwrap()).collect();
    for one in &submitted {
        assert_eq!(client.ended(&one.run_id).await.outcome(), "succeeded done");
    }
    let calls = world.provider.calls();
    assert_eq!(calls.len(), RUNS);
    for pair in calls.windows(2) {
        assert!(pair[0].end.unwrap().0 <= pair[1].begin, "two runs of one chat at once");
        // Each knows what was said before it: a question and an answer more.
        assert_eq!(pair[0].messages().len() + 2, pair[1].messages().len());
    }
    let messages = client.messages(&chat).await;
    let roles: Vec<_> = messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant"].repeat(RUNS));
    world.finish().await;
}
