//! Cases that do not fit the grid: the API's own crash points, the hand-back, the reaper, poison, Redis, and a run that
//! somebody ended behind the log's back.

use std::time::Duration;

use longhaul_tests::client::{Answer, Client};
use longhaul_tests::{At, Bus, FAILPOINTS, PATIENCE, Script, Setup, Store, Turn, World};
use reqwest::Method;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::trial::{struck, taken_over_or_over};

const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    /// A submission whose process dies before it is committed: nothing of it is there, and its repeat is the first.
    AdmissionLost,
    /// One that is committed and not answered: its repeat gets the same run.
    AdmissionUnanswered,
    /// One whose process freezes in the middle: its repeat elsewhere waits or is told to, and there is one run.
    AdmissionFrozen,
    /// One key at two API processes at once.
    OneKeyTwoApis,
    /// A worker that drains dies before it has given its run back.
    HandBackLost,
    /// It dies when it has, and nobody was told.
    HandBackUntold,
    /// It freezes, and goes on when somebody else has the run.
    HandBackFrozen,
    /// A reaper that froze after it looked takes nothing from those who have it now.
    ReaperLate,
    /// A reaper dies when it has taken runs, and nobody was told.
    ReaperUntold,
    /// A run that kills each of its workers is given up, and the others are not.
    PoisonAbort,
    /// A run that panics is given up, and its process lives.
    PoisonPanic,
    /// Redis dies before the end of a run, and its tails end.
    RedisGone,
    /// Somebody ended a run by hand: the worker that is still at it changes nothing.
    EndedByHand,
    /// Only for the mutant whose end is not one transaction: its process dies in between.
    JobLeftBehind,
}

impl Special {
    pub(crate) const ALL: &[Self] = &[
        Self::AdmissionLost,
        Self::AdmissionUnanswered,
        Self::AdmissionFrozen,
        Self::OneKeyTwoApis,
        Self::HandBackLost,
        Self::HandBackUntold,
        Self::HandBackFrozen,
        Self::ReaperLate,
        Self::ReaperUntold,
        Self::PoisonAbort,
        Self::PoisonPanic,
        Self::RedisGone,
        Self::EndedByHand,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AdmissionLost => "admission_lost",
            Self::AdmissionUnanswered => "admission_unanswered",
            Self::AdmissionFrozen => "admission_frozen",
            Self::OneKeyTwoApis => "one_key_two_apis",
            Self::HandBackLost => "hand_back_lost",
            Self::HandBackUntold => "hand_back_untold",
            Self::HandBackFrozen => "hand_back_frozen",
            Self::ReaperLate => "reaper_late",
            Self::ReaperUntold => "reaper_untold",
            Self::PoisonAbort => "poison_abort",
            Self::PoisonPanic => "poison_panic",
            Self::RedisGone => "redis_gone",
            Self::EndedByHand => "ended_by_hand",
            Self::JobLeftBehind => "job_left_behind",
        }
    }

    pub(crate) fn stores(self) -> &'static [Store] {
        match self {
            Self::AdmissionLost
            | Self::AdmissionUnanswered
            | Self::PoisonAbort
            | Self::PoisonPanic
            | Self::EndedByHand
            | Self::JobLeftBehind => &[Store::Postgres, Store::Sqlite],
            _ => &[Store::Postgres],
        }
    }

    /// The failpoints that it uses.
    pub(crate) fn failpoints(self) -> Vec<&'static str> {
        match self {
            Self::AdmissionLost | Self::AdmissionFrozen => vec!["in_admission_before_commit"],
            Self::AdmissionUnanswered => vec!["after_admission_before_answer"],
            Self::HandBackLost | Self::HandBackFrozen => vec!["before_hand_back"],
            Self::HandBackUntold => vec!["after_hand_back"],
            Self::ReaperLate => vec!["reaper_after_scan"],
            Self::ReaperUntold => vec!["after_reap"],
            Self::PoisonAbort => vec!["abort_if_tag"],
            Self::PoisonPanic => vec!["panic_if_tag"],
            Self::JobLeftBehind => vec!["between_end_and_job"],
            Self::OneKeyTwoApis | Self::RedisGone | Self::EndedByHand => vec![],
        }
    }

    /// What was broken, in words. The setup says which store it is on, and which mutant.
    pub(crate) async fn run(self, setup: Setup) -> Vec<String> {
        let setup = setup.short_lease();
        match self {
            Self::AdmissionLost => admission(setup, "in_admission_before_commit").await,
            Self::AdmissionUnanswered => admission(setup, "after_admission_before_answer").await,
            Self::AdmissionFrozen => admission_frozen(setup).await,
            Self::OneKeyTwoApis => one_key_two_apis(setup).await,
            Self::HandBackLost => hand_back(setup, "before_hand_back", "kill").await,
            Self::HandBackUntold => hand_back(setup, "after_hand_back", "kill").await,
            Self::HandBackFrozen => hand_back(setup, "before_hand_back", "stop").await,
            Self::ReaperLate => reaper_late(setup).await,
            Self::ReaperUntold => reaper_untold(setup).await,
            Self::PoisonAbort => poison_abort(setup).await,
            Self::PoisonPanic => poison_panic(setup).await,
            Self::RedisGone => redis_gone(setup).await,
            Self::EndedByHand => ended_by_hand(setup).await,
            Self::JobLeftBehind => job_left_behind(setup).await,
        }
    }
}

/// A world whose executing process fails at these points, which is the first API process or worker.
async fn world_that(setup: Setup, failpoints: &str) -> World {
    match setup.store {
        Store::Postgres => {
            let mut world = World::start(setup.workers(0)).await;
            world.start_worker_that(failpoints).await;
            world
        }
        Store::Sqlite => World::start(setup.env(FAILPOINTS, failpoints)).await,
    }
}

/// The process that executes runs.
fn executor(world: &mut World) -> &mut longhaul_tests::world::Server {
    world.workers.first_mut().unwrap_or(&mut world.apis[0])
}

/// Somebody who goes on in its place.
async fn successor(world: &mut World) {
    match world.store() {
        Store::Postgres => world.start_worker().await,
        Store::Sqlite => world.apis[0].restart_unharmed().await,
    }
}

async fn submit_with_key(client: &Client, key: &str) -> reqwest::Result<Answer> {
    let request = client.request(Method::POST, "/v1/runs").header("Idempotency-Key", key);
    client.send(request.json(&json!({"agent": "quick", "input": "Once."}))).await
}

/// Repeats a submission as a client does until it is accepted.
async fn accepted(client: &Client, key: &str) -> String {
    let begin = Instant::now();
    loop {
        match submit_with_key(client, key).await {
            Ok(answer) if answer.status == 202 => return answer.submitted().run_id,
            answer => assert!(begin.elapsed() < PATIENCE, "never accepted: {answer:?}"),
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The end of a case in which one run was to come into being under a key.
async fn there_is_one_run(world: &World, run: &str) -> Vec<String> {
    let mut flaws = Vec::new();
    if world.client().ended(run).await.outcome() != "succeeded done" {
        flaws.push("the run did not succeed".to_owned());
    }
    let runs = world.rows.number("select count(*) from runs").await;
    if runs != 1 {
        flaws.push(format!("one key made {runs} runs"));
    }
    flaws.extend(world.settled().await);
    flaws
}

async fn admission(setup: Setup, failpoint: &str) -> Vec<String> {
    let kill = format!("{failpoint}=kill");
    let mut world = match setup.store {
        Store::Postgres => {
            let mut world = World::start(setup).await;
            world.start_api_that(&kill).await;
            world
        }
        Store::Sqlite => World::start(setup.env(FAILPOINTS, &kill)).await,
    };
    let last = world.apis.len() - 1;
    let unanswered = submit_with_key(&world.client_of(last), "k").await;
    assert!(unanswered.is_err(), "a process that died answered {unanswered:?}");
    if world.store() == Store::Sqlite {
        world.apis[0].restart_unharmed().await;
    }
    let mut flaws = Vec::new();
    let runs = world.rows.number("select count(*) from runs").await;
    if runs != i64::from(failpoint == "after_admission_before_answer") {
        flaws.push(format!("{runs} runs behind a submission that died at {failpoint}"));
    }
    let run = accepted(&world.client(), "k").await;
    flaws.extend(there_is_one_run(&world, &run).await);
    flaws
}

async fn admission_frozen(setup: Setup) -> Vec<String> {
    let mut world = World::start(setup).await;
    world.start_api_that("in_admission_before_commit=stop").await;
    let frozen = world.client_of(1);
    let first = tokio::spawn(async move { submit_with_key(&frozen, "k").await });
    struck(&mut world.apis[1], "in_admission_before_commit").await;
    let mut flaws = Vec::new();
    let repeat = submit_with_key(&world.client(), "k").await.unwrap();
    // Nobody knows yet what becomes of the first.
    if repeat.status != 409 {
        flaws.push(format!("a repeat of what is under way was answered with {}", repeat.status));
    }
    world.apis[1].thaw();
    let first = first.await.unwrap().unwrap().submitted().run_id;
    let repeat = accepted(&world.client(), "k").await;
    if first != repeat {
        flaws.push("the repeat got another run".to_owned());
    }
    flaws.extend(there_is_one_run(&world, &first).await);
    flaws
}

async fn one_key_two_apis(setup: Setup) -> Vec<String> {
    let world = World::start(setup.apis(2)).await;
    let (here, there) = (world.client_of(0), world.client_of(1));
    let (first, second) = tokio::join!(accepted(&here, "k"), accepted(&there, "k"));
    let mut flaws = Vec::new();
    if first != second {
        flaws.push("one key got two runs".to_owned());
    }
    flaws.extend(there_is_one_run(&world, &first).await);
    flaws
}

async fn hand_back(setup: Setup, failpoint: &str, action: &str) -> Vec<String> {
    let mut world = world_that(setup, &format!("{failpoint}={action}")).await;
    let first = Turn::marked(5).and_call("charge", &json!({"op": "once"}));
    world.provider.script("helper", Script::new([first, Turn::marked(5)]));
    let gate = world.provider.gate_on_turn("helper", 1, At::Token(3));
    let submitted = world.client().submit("helper", "Go.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    world.workers[0].terminate();
    // The soft stop is heard before the step is over; then the run is given back behind it.
    world.workers[0].says("a second signal stops at once").await;
    gate.open();
    struck(&mut world.workers[0], failpoint).await;
    let epoch = world.rows.epoch(&submitted.run_id).await;
    world.start_worker().await;
    taken_over_or_over(&world, &submitted.run_id, epoch).await;
    world.workers[0].thaw();
    tail.ended().await;
    let mut flaws = Vec::new();
    let run = world.client().ended(&submitted.run_id).await;
    if (run.outcome().as_str(), run.attempts) != ("succeeded done", 2) {
        flaws.push(format!("the run ended {} after {} attempts", run.outcome(), run.attempts));
    }
    let turns: Vec<_> = world.provider.calls_to("helper").iter().map(|call| call.turn).collect();
    if turns != [1, 2] || world.tools.effects("once") != 1 {
        flaws.push(format!("a saved step was repeated: answers {turns:?}"));
    }
    flaws.extend(world.settled().await);
    flaws
}

async fn reaper_late(setup: Setup) -> Vec<String> {
    let mut world = World::start(setup.apis(1).workers(1)).await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let submitted = world.client().submit("helper", "Go.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    world.start_worker_that("reaper_after_scan=stop").await;
    world.workers[0].kill();
    struck(&mut world.workers[1], "reaper_after_scan").await;
    // It has seen the run as an orphan. Now somebody else takes it.
    world.start_worker().await;
    gate.reached_by(2).await;
    world.workers[1].thaw();
    // It goes on with what it saw, and renews its lease while it does.
    for _ in 0..2 {
        let leases = "select cast(sum(expires_at) as bigint) from workers";
        let before = world.rows.number(leases).await;
        world.rows.until("leases are renewed", leases, |now| now > before + 1_500).await;
    }
    gate.open();
    tail.ended().await;
    let run = world.client().ended(&submitted.run_id).await;
    let mut flaws = Vec::new();
    if (run.outcome().as_str(), run.attempts) != ("succeeded done", 2) {
        flaws.push(format!("one crash cost {} attempts; it ended {}", run.attempts, run.outcome()));
    }
    let asked = world.provider.calls_to("helper").len();
    if asked != 2 {
        flaws.push(format!("the model was asked {asked} times"));
    }
    flaws.extend(world.settled().await);
    flaws
}

async fn reaper_untold(setup: Setup) -> Vec<String> {
    let mut world = World::start(setup.workers(1)).await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let submitted = world.client().submit("helper", "Go.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    world.start_worker_that("after_reap=kill").await;
    world.workers[0].kill();
    gate.open();
    struck(&mut world.workers[1], "after_reap").await;
    world.start_worker().await;
    tail.ended().await;
    let run = world.client().ended(&submitted.run_id).await;
    let mut flaws = Vec::new();
    // Its own claim loop may have been quicker than its death.
    if run.outcome() != "succeeded done" || run.attempts > 3 {
        flaws.push(format!("the run ended {} after {} attempts", run.outcome(), run.attempts));
    }
    flaws.extend(world.settled().await);
    flaws
}

/// A run with this tag, and good ones beside it.
async fn with_good_ones(world: &World, tag: &str) -> (String, Vec<String>) {
    let client = world.client();
    let mut good = Vec::new();
    for _ in 0..5 {
        good.push(client.submit("quick", "Good.").await.run_id);
    }
    let poison = json!({"agent": "quick", "input": "Poison.", "tags": [tag]});
    let poison = client.post("/v1/runs", &poison).await.submitted().run_id;
    // Where the API dies with it, nobody is there to ask for more.
    if world.store() == Store::Postgres {
        good.push(client.submit("quick", "Good too.").await.run_id);
    }
    (poison, good)
}

async fn only_the_poison_failed(world: &World, poison: &str, good: &[String]) -> Vec<String> {
    let client = world.client();
    let mut flaws = Vec::new();
    let outcome = client.ended(poison).await.outcome();
    if outcome != "failed crash_limit" {
        flaws.push(format!("the poison ended {outcome}"));
    }
    for run in good {
        let outcome = client.ended(run).await.outcome();
        if outcome != "succeeded done" {
            flaws.push(format!("a good run ended {outcome}"));
        }
    }
    flaws.extend(world.settled().await);
    flaws
}

async fn poison_abort(setup: Setup) -> Vec<String> {
    let mut world = world_that(setup, "abort_if_tag=abort:*").await;
    let (poison, good) = with_good_ones(&world, "abort").await;
    for _ in 1..=4 {
        struck(world.workers.last_mut().unwrap_or(&mut world.apis[0]), "abort_if_tag").await;
        match world.store() {
            Store::Postgres => world.start_worker_that("abort_if_tag=abort:*").await,
            Store::Sqlite => world.apis[0].restart().await,
        }
    }
    only_the_poison_failed(&world, &poison, &good).await
}

async fn poison_panic(setup: Setup) -> Vec<String> {
    let mut world = world_that(setup, "panic_if_tag=panic:*").await;
    let (poison, good) = with_good_ones(&world, "panic").await;
    let mut flaws = only_the_poison_failed(&world, &poison, &good).await;
    if !executor(&mut world).is_alive() {
        flaws.push("the process died of one run's panic".to_owned());
    }
    flaws
}

async fn redis_gone(setup: Setup) -> Vec<String> {
    let mut world = World::start(setup.bus(Bus::Own).apis(2)).await;
    world.provider.script("helper", Script::new([Turn::marked(20)]));
    let gate = world.provider.gate("helper", At::Token(8));
    let submitted = world.client().submit("helper", "Go.").await;
    let tails = [world.tail(&submitted.run_id), world.tail_from(&submitted.run_id, 0, 1)];
    for tail in &tails {
        tail.hears("a1.s1.7 ").await;
    }
    gate.reached().await;
    world.redis.as_mut().unwrap().kill();
    gate.open();
    for tail in &tails {
        tail.ended().await;
    }
    world.settled().await
}

/// As an operator with a database shell, or a version of the product that knows no log, would.
async fn ended_by_hand(setup: Setup) -> Vec<String> {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let submitted = world.client().submit("helper", "Go.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    tail.hears("a1.s1.2 ").await;
    let run = world.rows.id(&submitted.run_id);
    world
        .rows
        .change(&format!(
            "update runs set status = 'aborted', reason = 'stop', finished_at = updated_at where id = {run}"
        ))
        .await;
    world
        .rows
        .change(&format!("update messages set status = 'aborted' where run_id = {run} and position = 1"))
        .await;
    gate.open();
    // Its answer is refused and so is its end: it gives the run up.
    let begin = Instant::now();
    let mut flaws = Vec::new();
    while flaws.is_empty() && begin.elapsed() < Duration::from_secs(3) {
        flaws = longhaul_tests::audit::found(&world.rows).await;
        sleep(LOOK_EVERY).await;
    }
    let now = world.client().run(&submitted.run_id).await;
    if (now.outcome().as_str(), now.step_count) != ("aborted stop", 0) {
        flaws.push(format!("it became {} with {} steps", now.outcome(), now.step_count));
    }
    flaws
}

async fn job_left_behind(setup: Setup) -> Vec<String> {
    let mut world = world_that(setup, "between_end_and_job=kill").await;
    let submitted = world.client().submit("quick", "Go.").await;
    struck(executor(&mut world), "between_end_and_job").await;
    successor(&mut world).await;
    world.client().ended(&submitted.run_id).await;
    world.settled().await
}
