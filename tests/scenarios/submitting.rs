//! Getting a run in: once, whatever is repeated; in order; and refused with a reason that a program can read.

use futures::future::join_all;
use longhaul_tests::{At, Script, Setup, Turn, World};
use serde_json::json;

use crate::{on_both, on_postgres};

on_both!(
    a_repeated_submit_with_the_same_key_gets_the_same_run,
    a_message_id_is_its_own_key_inside_its_chat,
    runs_that_wait_for_their_chat_come_in_the_order_of_their_submission,
    a_run_can_be_put_off,
    what_cannot_be_accepted_is_refused_with_a_code,
);
on_postgres!(
    parallel_repeats_over_two_api_processes_make_one_run,
    a_key_of_one_workspace_means_nothing_in_another,
);

async fn a_repeated_submit_with_the_same_key_gets_the_same_run(setup: Setup) {
    let world = World::start(setup).await;
    let client = world.client();
    let body = json!({"agent": "quick", "input": "Once, please."});
    let first = client.post_with_key("/v1/runs", "k-1", &body).await;
    assert_eq!(first.header("idempotent-replayed"), None);
    let again = client.post_with_key("/v1/runs", "k-1", &body).await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.body, first.body);
    let first = first.submitted();
    client.ended(&first.run_id).await;
    // After the end too, quoted or not.
    let after = client.post_with_key("/v1/runs", "\"k-1\"", &body).await;
    assert_eq!(after.header("idempotent-replayed"), Some("true"));
    assert_eq!(after.submitted(), first);

    let other = json!({"agent": "quick", "input": "Something else."});
    client.post_with_key("/v1/runs", "k-1", &other).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
    let second = client.post_with_key("/v1/runs", "k-2", &body).await.submitted();
    assert_ne!(second.run_id, first.run_id);
    // What was refused is not remembered.
    let wrong = json!({"agent": "nobody", "input": "Hello"});
    client.post_with_key("/v1/runs", "k-3", &wrong).await.refused(404, "AGENT_NOT_FOUND");
    client.post_with_key("/v1/runs", "k-3", &body).await.submitted();
    world.rows.until("three runs", "select count(*) from runs", |count| count == 3).await;
    world.finish().await;
}

async fn parallel_repeats_over_two_api_processes_make_one_run(setup: Setup) {
    let world = World::start(setup.apis(2)).await;
    let clients = [world.client_of(0), world.client_of(1)];
    for round in 0..20 {
        let (key, body) =
            (format!("k-{round}"), json!({"agent": "quick", "input": format!("Round {round}")}));
        let repeats = (0..20).map(|number| {
            let (client, key, body) = (clients[number % 2].clone(), key.clone(), body.clone());
            tokio::spawn(async move { client.post_with_key("/v1/runs", &key, &body).await })
        });
        let answers: Vec<_> = join_all(repeats).await.into_iter().map(|answer| answer.unwrap()).collect();
        let accepted: Vec<_> = answers.iter().filter(|answer| answer.status == 202).collect();
        for answer in answers.iter().filter(|answer| answer.status != 202) {
            answer.clone().refused(409, "IDEMPOTENCY_KEY_IN_FLIGHT");
        }
        assert!(accepted.iter().all(|answer| answer.body == accepted[0].body), "{accepted:#?}");
        let first = accepted.iter().filter(|answer| answer.header("idempotent-replayed").is_none());
        assert_eq!(first.count(), 1);
    }
    world.rows.until("one run each", "select count(*) from runs", |count| count == 20).await;
    world.finish().await;
}

async fn a_key_of_one_workspace_means_nothing_in_another(setup: Setup) {
    let world = World::start(setup).await;
    let (ours, theirs) = (world.client(), world.client_with(&world.new_key("other", "operator").await));
    let body = json!({"agent": "quick", "input": "Once, please."});
    let our = ours.post_with_key("/v1/runs", "k-1", &body).await.submitted();
    let their = theirs.post_with_key("/v1/runs", "k-1", &body).await;
    assert_eq!(their.header("idempotent-replayed"), None);
    let their = their.submitted();
    assert_ne!(our.run_id, their.run_id);
    theirs.ended(&their.run_id).await;
    world.finish().await;
}

async fn a_message_id_is_its_own_key_inside_its_chat(setup: Setup) {
    let world = World::start(setup).await;
    let client = world.client();
    let chat = client.new_chat().await;
    let path = format!("/v1/chats/{chat}/messages");
    let body = json!({"agent": "quick", "input": "Hello", "messageId": "m-1"});
    let first = client.post(&path, &body).await.submitted();
    assert_eq!(first.message_id, "m-1");
    let again = client.post(&path, &body).await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.submitted().run_id, first.run_id);
    let other = json!({"agent": "quick", "input": "Good bye", "messageId": "m-1"});
    client.post(&path, &other).await.refused(422, "MESSAGE_ID_REUSED");
    client.ended(&first.run_id).await;
    // Another chat has names of its own.
    let elsewhere =
        client.post(&format!("/v1/chats/{}/messages", client.new_chat().await), &body).await.submitted();
    assert_ne!(elsewhere.run_id, first.run_id);
    let messages = client.messages(&chat).await;
    assert_eq!((messages.len(), messages[0].message_id.as_str()), (2, "m-1"));
    world.finish().await;
}

async fn runs_that_wait_for_their_chat_come_in_the_order_of_their_submission(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(2)]));
    let gate = world.provider.gate("helper", At::BeforeHead);
    let client = world.client();
    let first = client.submit("helper", "Question 0").await;
    let path = format!("/v1/chats/{}/messages", first.chat_id);
    let mut waiting = Vec::new();
    for number in 1..=5 {
        let input = format!("Question {number}");
        let body = json!({"agent": "helper", "input": input, "ifBusy": "enqueue"});
        let submitted = client.post(&path, &body).await.submitted();
        assert_eq!((submitted.status.as_str(), submitted.position), ("queued", Some(number)));
        let run = client.run(&submitted.run_id).await;
        assert_eq!(run.blocked_by.unwrap()["kind"], "run");
        waiting.push(world.tail(&submitted.run_id));
    }
    client.say(&first.chat_id, "helper", "Me too").await.refused(409, "A_RUN_ALREADY_ACTIVE");
    gate.reached().await;
    gate.open();
    for tail in &waiting {
        tail.ended().await;
    }
    let asked: Vec<String> = world
        .provider
        .calls()
        .iter()
        .map(|call| call.messages().last().unwrap()["content"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(asked, (0..=5).map(|number| format!("Question {number}")).collect::<Vec<_>>());
    world.finish().await;
}

async fn a_run_can_be_put_off(setup: Setup) {
    let world = World::start(setup).await;
    let client = world.client();
    let soon = json!({"agent": "quick", "input": "Soon", "delay": "1500ms"});
    let soon = client.post("/v1/runs", &soon).await.submitted();
    assert_eq!(soon.status, "scheduled");
    let tail = world.tail(&soon.run_id);
    let run = client.run(&soon.run_id).await;
    assert_eq!(run.blocked_by.unwrap()["kind"], "run_at");
    let never = json!({"agent": "quick", "input": "Never", "runAt": "2099-01-01T00:00:00Z"});
    let never = client.post("/v1/runs", &never).await.submitted();
    assert_eq!(never.status, "scheduled");
    tail.ended().await;
    assert_eq!(client.ended(&soon.run_id).await.outcome(), "succeeded done");
    // Put off is not started: it can be stopped, and holds no chat meanwhile.
    let next = client.say(&never.chat_id, "quick", "Now").await.submitted();
    assert_eq!(client.ended(&next.run_id).await.outcome(), "succeeded done");
    assert_eq!(client.stop(&never.run_id, 5).await.expect(200)["status"], "aborted");
    assert_eq!(world.provider.calls().len(), 2);
    world.finish().await;
}

async fn what_cannot_be_accepted_is_refused_with_a_code(setup: Setup) {
    let world = World::start(setup).await;
    let client = world.client();
    let runs = "/v1/runs";
    let problem =
        client.post(runs, &json!({"agent": "nobody", "input": "x"})).await.refused(404, "AGENT_NOT_FOUND");
    assert!(problem["requestId"].is_string(), "{problem}");
    for (body, pointer) in [
        (json!({"agent": "quick"}), "/input"),
        (json!({"agent": "quick", "input": 7}), "/input"),
        (json!({"agent": "quick", "input": "x", "colour": "red"}), "/colour"),
        (json!({"agent": "quick", "input": "x", "ifBusy": "explode"}), "/ifBusy"),
        (json!({"agent": "quick", "input": "x", "delay": "soon"}), "/delay"),
        (json!({"agent": "quick", "input": "x", "limits": {"maxSteps": 0}}), "/limits/maxSteps"),
    ] {
        let problem = client.post(runs, &body).await.refused(400, "INVALID_REQUEST");
        let told = problem["errors"][0]["pointer"].as_str().unwrap_or_default();
        assert!(pointer.starts_with(told) || told == pointer, "{problem:#} for {body}");
    }
    let request = client.request(reqwest::Method::POST, runs).header("content-type", "application/json");
    client.send(request.body("{\"agent\":")).await.unwrap().refused(400, "MALFORMED_JSON");
    let big = json!({"agent": "quick", "input": "x".repeat(2 << 20)});
    client.post(runs, &big).await.refused(413, "PAYLOAD_TOO_LARGE");
    let nowhere = uuid::Uuid::now_v7();
    client.say(&nowhere.to_string(), "quick", "x").await.refused(404, "NOT_FOUND");
    assert_eq!(world.rows.number("select count(*) from messages").await, 0, "nothing of it is stored");
    world.finish().await;
}
