//! A run that kills its worker each time: it is given up, and nobody else is.

use std::time::Duration;

use longhaul_tests::story::marks_of;
use longhaul_tests::{At, Script, Setup, Turn, World};

use crate::on_sqlite;

on_sqlite!(a_run_that_kills_its_worker_takes_none_of_its_neighbours_with_it);

async fn a_run_that_kills_its_worker_takes_none_of_its_neighbours_with_it(setup: Setup) {
    const NEIGHBOURS: usize = 20;
    let setup = setup.agent("poison", "poison").poll(Duration::from_millis(50));
    let mut world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(10)]));
    let under_way = world.provider.gate("helper", At::Token(5));
    world.provider.script("poison", Script::new([Turn::marked(5)]));
    let gate = world.provider.gate("poison", At::Token(1));
    let client = world.client();
    let poison = client.submit("poison", "Poison.").await;
    let tail = world.tail(&poison.run_id);
    let mut neighbours = Vec::new();
    for number in 0..NEIGHBOURS {
        let submitted = client.submit("helper", &format!("Run {number}")).await;
        neighbours.push((world.tail(&submitted.run_id), submitted.run_id));
    }
    for crash in 1..=3 {
        gate.reached_by(crash).await;
        if crash <= 2 {
            let held = "select count(*) from jobs where worker_id is not null";
            world
                .rows
                .until("all are in one worker's hands", held, |held| held as usize == NEIGHBOURS + 1)
                .await;
        } else {
            under_way.open();
        }
        world.apis[0].restart().await;
    }
    tail.ended().await;
    assert_eq!(tail.story().end, Some(("failed".to_owned(), "crash_limit".to_owned())));
    for (tail, run) in &neighbours {
        tail.ended().await;
        assert!(marks_of(&tail.story().text(), 1, 10).is_some(), "one whole answer");
        let run = world.client().run(run).await;
        assert_eq!(run.outcome(), "succeeded done");
        assert!(run.attempts > 2, "the poison struck twice beside it");
    }
    gate.open();
    world.finish().await;
}
