//! Workers that come back: one that is started again at once is another worker, and a backlog is worked off in its order,
//! not by a herd.

use futures::future::join_all;
use longhaul_tests::story::marks_of;
use longhaul_tests::{At, Script, Setup, Turn, World};

use crate::on_postgres;

on_postgres!(
    a_worker_that_is_restarted_at_once_does_not_hold_what_its_predecessor_held,
    a_backlog_is_worked_off_in_its_order_and_within_the_slots,
);

async fn a_worker_that_is_restarted_at_once_does_not_hold_what_its_predecessor_held(setup: Setup) {
    let mut world = World::start(setup.short_lease()).await;
    world.provider.script("helper", Script::new([Turn::marked(12)]));
    let gate = world.provider.gate("helper", At::Token(5));
    let submitted = world.client().submit("helper", "Talk.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    tail.hears("a1.s1.4 ").await;
    world.workers[0].restart().await;
    world.rows.until("it registered anew", "select count(*) from workers", |count| count == 2).await;
    assert_eq!(world.rows.number("select count(distinct host) from workers").await, 1, "by the same name");
    gate.open();
    tail.ended().await;
    let run = world.client().ended(&submitted.run_id).await;
    assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 2));
    assert_eq!(marks_of(&tail.story().text(), 1, 12), Some(2));
    // It was taken from the dead one, and by somebody else.
    let events = tail.events();
    let holders: Vec<_> = events
        .iter()
        .filter(|event| event.kind == "run.claimed")
        .map(|event| &event.data["workerId"])
        .collect();
    assert_eq!(holders.len(), 2);
    assert_ne!(holders[0], holders[1]);
    let released: Vec<_> = events.iter().filter(|event| event.kind == "run.released").collect();
    assert_eq!((released.len(), released[0].data["reason"].as_str()), (1, Some("expired")));
    world.finish().await;
}

async fn a_backlog_is_worked_off_in_its_order_and_within_the_slots(setup: Setup) {
    const RUNS: usize = 240;
    const LANES: usize = 12;
    const SLOTS: usize = 8;
    let setup = setup.short_lease().workers(0).slots(SLOTS as u32).agent("steady", "tokens-4-20ms");
    let mut world = World::start(setup).await;
    let lanes = (0..LANES).map(|lane| {
        let client = world.client();
        tokio::spawn(async move {
            for number in 0..RUNS / LANES {
                client.submit("steady", &format!("Run {number} of lane {lane}")).await;
            }
        })
    });
    for lane in join_all(lanes).await {
        lane.unwrap();
    }
    world.start_worker().await;
    world.start_worker().await;
    let over = "select count(*) from runs where status = 'succeeded'";
    world.rows.until("a third is done", over, |count| count > RUNS as i64 / 3).await;
    // All of them go at once, and come back to what is left.
    world.workers[0].kill();
    world.workers[1].kill();
    world.workers[0].restart().await;
    world.workers[1].restart().await;
    world.rows.until("all is done", over, |count| count == RUNS as i64).await;

    let mut steps: Vec<(std::time::Instant, i32)> = Vec::new();
    for call in world.provider.calls() {
        steps.extend([(call.begin, 1), (call.end.unwrap().0, -1)]);
    }
    steps.sort();
    let mut at_once = 0;
    let most = steps
        .iter()
        .map(|(_, step)| {
            at_once += step;
            at_once
        })
        .max()
        .unwrap();
    assert!(most <= 2 * SLOTS as i32, "{most} at once on {SLOTS} slots each");
    let in_order = |column: &str| format!("select id_text(id) from runs order by {column}, id");
    let submitted = world.rows.texts(&in_order("created_at")).await;
    let begun = world.rows.texts(&in_order("started_at")).await;
    let behind = begun
        .iter()
        .enumerate()
        .map(|(place, run)| place.abs_diff(submitted.iter().position(|other| other == run).unwrap()));
    let furthest = behind.max().unwrap();
    assert!(furthest <= 6 * SLOTS, "one run was begun {furthest} places from its own");
    println!("{most} at once at most, {furthest} places from its own at most");
    world.finish().await;
}
