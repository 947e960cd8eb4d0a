//! A new message takes the place of a run that is under way, and a stop meets an end: one of them wins, never both.

use std::time::{Duration, Instant};

use futures::future::join_all;
use longhaul_tests::client::Run;
use longhaul_tests::story::marks_of;
use longhaul_tests::{At, Client, End, Script, Setup, Turn, World};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::sleep;

use crate::{on_both, on_postgres};

on_both!(
    an_interruption_ends_the_active_run_and_takes_its_place,
    an_interruption_ends_what_waits_in_the_chat_too,
    an_interruption_may_name_the_only_run_that_it_is_for,
    stops_race_ends_three_hundred_times_and_each_has_one_outcome,
);
on_postgres!(
    racing_interruptions_leave_one_run_active_at_a_time,
    an_interruption_does_not_wait_for_a_dead_worker_longer_than_for_its_lease,
    an_interruption_of_a_run_that_does_not_end_is_given_up,
);

fn interrupt(agent: &str, input: &str) -> Value {
    json!({"agent": agent, "input": input, "ifBusy": "interrupt"})
}

fn messages_of(chat: &str) -> String {
    format!("/v1/chats/{chat}/messages")
}

async fn an_interruption_ends_the_active_run_and_takes_its_place(setup: Setup) {
    let world = World::start(setup).await;
    let called = Turn::marked(2).and_call("put", &json!({"op": "first"}));
    world.provider.script("helper", Script::new([called, Turn::marked(20)]));
    let gate = world.provider.gate_on_turn("helper", 2, At::Token(5));
    let client = world.client();
    let old = client.submit("helper", "Talk.").await;
    gate.reached().await;
    let tail = world.tail(&old.run_id);
    tail.hears("a1.s2.4 ").await;

    let path = messages_of(&old.chat_id);
    let new = client.post_with_key(&path, "now", &interrupt("quick", "Rather this.")).await.submitted();
    assert_eq!(new.status, "pending");
    assert_eq!(client.run(&old.run_id).await.outcome(), "aborted superseded");
    let again = client.post_with_key(&path, "now", &interrupt("quick", "Rather this.")).await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.submitted(), new, "a repeat interrupts nothing");
    assert_eq!(client.ended(&new.run_id).await.outcome(), "succeeded done");
    world.provider.until("the connection is closed", |calls| calls[1].ended() == Some(End::ClientGone)).await;
    tail.ended().await;
    assert_eq!(tail.story().end, Some(("aborted".to_owned(), "superseded".to_owned())));

    // Its finished step is kept, what was said of the second one too, and the next run was told of both.
    let steps = client.steps(&old.run_id).await;
    assert_eq!(steps[0].tool_calls[0].state, "succeeded");
    let messages = client.messages(&old.chat_id).await;
    let statuses: Vec<_> = messages.iter().map(|message| message.status.as_str()).collect();
    assert_eq!(statuses, ["completed", "aborted", "completed", "completed"]);
    assert_eq!(marks_of(&tail.story().steps[&2].text(), 2, 5), Some(1));
    let told = world.provider.calls_to("tokens-2")[0].messages().to_vec();
    assert!(told.iter().any(|message| message["role"] == "tool"), "{told:#?}");
    // Nobody is active: then it is an ordinary submission.
    let free = client.post(&path, &interrupt("quick", "And this.")).await.submitted();
    assert_eq!(client.ended(&free.run_id).await.outcome(), "succeeded done");
    world.finish().await;
}

async fn an_interruption_ends_what_waits_in_the_chat_too(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let client = world.client();
    let active = client.submit("helper", "Talk.").await;
    gate.reached().await;
    let path = messages_of(&active.chat_id);
    let mut waiting = Vec::new();
    for number in 0..3 {
        let body = json!({"agent": "helper", "input": format!("Later {number}"), "ifBusy": "enqueue"});
        waiting.push(client.post(&path, &body).await.submitted());
    }
    let later = json!({"agent": "quick", "input": "Much later", "delay": "1h"});
    let later = client.post(&path, &later).await.submitted();
    let new = client.post(&path, &interrupt("quick", "Now!")).await.submitted();
    assert_eq!(client.ended(&new.run_id).await.outcome(), "succeeded done");
    for one in waiting.iter().chain([&active]) {
        assert_eq!(client.ended(&one.run_id).await.outcome(), "aborted superseded");
    }
    assert_eq!(world.provider.calls_to("helper").len(), 1, "what waited cost nothing");
    assert_eq!(client.run(&later.run_id).await.status, "scheduled", "what is not due is left alone");
    client.stop(&later.run_id, 5).await.expect(200);
    world.finish().await;
}

async fn an_interruption_may_name_the_only_run_that_it_is_for(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let client = world.client();
    let elsewhere = client.submit("quick", "Elsewhere.").await;
    let over = client.submit("quick", "Over.").await;
    client.ended(&over.run_id).await;
    client.ended(&elsewhere.run_id).await;
    let path = messages_of(&over.chat_id);
    let active = client.say(&over.chat_id, "helper", "Talk.").await.submitted();
    gate.reached().await;
    let expecting = |run: &str| {
        let mut body = interrupt("quick", "Rather this.");
        body["expectRunId"] = run.into();
        body
    };
    let stored = "select count(*) from messages";
    let before = world.rows.number(stored).await;
    for strange in [elsewhere.run_id.as_str(), &uuid::Uuid::now_v7().to_string(), "no id"] {
        let problem = client.post(&path, &expecting(strange)).await.refused(400, "SUPERSEDE_INVALID");
        assert_eq!(problem["errors"][0]["pointer"], "/expectRunId");
    }
    client.post("/v1/runs", &expecting(&active.run_id)).await.refused(400, "SUPERSEDE_INVALID");
    let problem =
        client.post(&path, &expecting(&over.run_id)).await.refused(409, "SUPERSEDE_TARGET_MISMATCH");
    assert_eq!(problem["activeRunId"], active.run_id.as_str());
    let mut patient = expecting(&active.run_id);
    patient["ifBusy"] = "enqueue".into();
    client.post(&path, &patient).await.refused(400, "INVALID_REQUEST");
    assert_eq!(world.rows.number(stored).await, before, "what is refused is not stored");
    assert!(!client.run(&active.run_id).await.stopping, "and touches nobody");

    let new = client.post(&path, &expecting(&active.run_id)).await.submitted();
    assert_eq!(client.ended(&new.run_id).await.outcome(), "succeeded done");
    assert_eq!(client.run(&active.run_id).await.outcome(), "aborted superseded");
    // The expected one is over and the chat is free: nothing is in the way.
    let free = client.post(&path, &expecting(&active.run_id)).await.submitted();
    assert_eq!(client.ended(&free.run_id).await.outcome(), "succeeded done");
    world.finish().await;
}

async fn racing_interruptions_leave_one_run_active_at_a_time(setup: Setup) {
    const RACERS: usize = 8;
    let world = World::start(setup.apis(2).workers(2).agent("steady", "tokens-40-20ms")).await;
    let first = world.client().submit("steady", "Talk.").await;
    let path = messages_of(&first.chat_id);
    let racers = (0..RACERS).map(|number| {
        let (client, path) = (world.client_of(number % 2), path.clone());
        let body = interrupt("steady", &format!("Racer {number}"));
        tokio::spawn(async move { client.post(&path, &body).await })
    });
    let answers: Vec<_> = join_all(racers).await.into_iter().map(|answer| answer.unwrap()).collect();
    let mut won = 0;
    for answer in answers {
        if answer.status != 202 {
            answer.refused(409, "SUPERSEDE_TIMEOUT");
            continue;
        }
        let run = world.client().ended(&answer.submitted().run_id).await;
        won += usize::from(run.outcome() == "succeeded done");
        assert!(["succeeded done", "aborted superseded"].contains(&run.outcome().as_str()), "{run:#?}");
    }
    assert_eq!(won, 1, "the last one is interrupted by nobody");
    let mut calls = world.provider.calls();
    calls.sort_by_key(|call| call.begin);
    for pair in calls.windows(2) {
        // The provider sees a connection close a moment after the run has ended.
        let overlap = pair[0].end.unwrap().0.saturating_duration_since(pair[1].begin);
        assert!(overlap < Duration::from_secs(1), "two runs of one chat at once for {overlap:?}");
    }
    world.finish().await;
}

async fn an_interruption_does_not_wait_for_a_dead_worker_longer_than_for_its_lease(setup: Setup) {
    let mut world = World::start(setup.short_lease()).await;
    world.provider.script("helper", Script::new([Turn::marked(20)]));
    let gate = world.provider.gate("helper", At::Token(5));
    let client = world.client();
    let old = client.submit("helper", "Talk.").await;
    let tail = world.tail(&old.run_id);
    gate.reached().await;
    tail.hears("a1.s1.4 ").await;
    world.start_worker().await;
    world.workers[0].kill();
    let killed = Instant::now();
    let new = client.post(&messages_of(&old.chat_id), &interrupt("quick", "Now!")).await.submitted();
    let took = killed.elapsed();
    assert!(took < world.lease() + Duration::from_secs(5), "it took {took:?}");
    assert_eq!(client.run(&old.run_id).await.outcome(), "aborted superseded");
    tail.ended().await;
    assert_eq!(client.ended(&new.run_id).await.outcome(), "succeeded done");
    assert_eq!(world.provider.calls_to("helper").len(), 1, "nobody took it up again only to stop it");
    world.finish().await;
}

async fn an_interruption_of_a_run_that_does_not_end_is_given_up(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let client = world.client();
    let old = client.submit("helper", "Talk.").await;
    gate.reached().await;
    let mut rogue = PgConnection::connect(&world.database_url()).await.unwrap();
    // Whoever ends it, the database has no room for that now.
    let no_room = "create function no_room() returns trigger language plpgsql as $$ begin \
                   raise exception 'no room' using errcode = '53100'; end $$; \
                   create trigger no_room before update on runs for each row when (new.status = 'aborted') \
                   execute function no_room()";
    rogue.execute(sqlx::raw_sql(no_room)).await.unwrap();
    let path = messages_of(&old.chat_id);
    let problem = client.post(&path, &interrupt("quick", "Now!")).await.refused(409, "SUPERSEDE_TIMEOUT");
    assert_eq!((&problem["activeRunId"], &problem["retryable"]), (&json!(old.run_id), &json!(true)));
    assert_eq!(world.rows.number("select count(*) from messages").await, 2, "nothing of it is stored");
    rogue.execute("drop trigger no_room on runs").await.unwrap();
    assert_eq!(client.ended(&old.run_id).await.outcome(), "aborted superseded", "its end is not forgotten");
    let new = client.post(&path, &interrupt("quick", "Now!")).await.submitted();
    assert_eq!(client.ended(&new.run_id).await.outcome(), "succeeded done");
    world.finish().await;
}

async fn stops_race_ends_three_hundred_times_and_each_has_one_outcome(setup: Setup) {
    const LANES: usize = 10;
    const ROUNDS: usize = 30;
    let world = World::start(setup.agent("brief", "tokens-20-2ms")).await;
    let lanes = (0..LANES).map(|lane| {
        let client = world.client();
        tokio::spawn(async move { race(&client, lane, ROUNDS).await })
    });
    let ended: Vec<(usize, usize)> = join_all(lanes).await.into_iter().map(Result::unwrap).collect();
    let (stopped, taken) = ended.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!("{stopped} of {} stops came in time", LANES * ROUNDS);
    assert!(stopped > 0 && stopped < LANES * ROUNDS, "{stopped}: both outcomes must occur");
    assert!(taken > 0, "no stop was answered before the end");
    assert_eq!(world.rows.number("select count(*) from runs").await, (LANES * ROUNDS) as i64);
    world.finish().await;
}

/// How many of the stops came in time, and how many of those were answered before the end. Each lane finds out by itself when an end is near.
async fn race(client: &Client, lane: usize, rounds: usize) -> (usize, usize) {
    let (mut stopped, mut taken, mut patience) = (0, 0, Duration::from_millis(20));
    for round in 0..rounds {
        let submitted = client.submit("brief", &format!("Round {round} of lane {lane}")).await;
        sleep(patience).await;
        let waits = round % 2 == 0;
        let answer = client.stop(&submitted.run_id, if waits { 10 } else { 0 }).await;
        let status = answer.status;
        let was_taken = status == 202;
        assert!(was_taken || status == 200, "{answer:?}");
        let told: Run = answer.read(status);
        let run = client.ended(&submitted.run_id).await;
        if was_taken {
            taken += 1;
            assert!(!waits && run.outcome() == "aborted stop", "what was taken is followed: {run:#?}");
        } else {
            assert_eq!(told.outcome(), run.outcome(), "the answer tells the real end");
        }
        assert!(["succeeded done", "aborted stop"].contains(&run.outcome().as_str()), "{run:#?}");
        if run.status == "aborted" {
            stopped += 1;
            patience = patience * 5 / 4 + Duration::from_millis(1);
        } else {
            patience = patience * 4 / 5;
        }
    }
    (stopped, taken)
}
