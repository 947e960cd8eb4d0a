//! A run that kills its worker each time: it is given up, and nobody else is.

use std::time::Duration;

use longhaul_tests::story::marks_of;
use longhaul_tests::{At, Script, Setup, Turn, World};

use crate::on_sqlite;

on_sqlite!(a_run_that_kills_its_worker_takes_none_of_its_neighbours_with_it);

async fn a_run_that_kills_its_worker_takes_none_of_its_neighbours_with_it(setup: Setup) {
    const NEIGHBOURS: usize = 20;
    let setup = setup.agent("poison", "poison").poll(Duration::from_millis(100));
    let mut world = World::start(setup).await;
    // Longer than the poison leaves them, as long as it is among them.
    world.provider.script("helper", Script::new([Turn::marked(10).delay(Duration::from_millis(40))]));
    world.provider.script("poison", Script::new([Turn::marked(5)]));
    let gate = world.provider.gate("poison", At::Token(1));
    let client = world.client();
    let poison = client.submit("poison", "Poison.").await;
    let tail = world.tail(&poison.run_id);
    let mut neighbours = Vec::new();
    for number in 0..NEIGHBOURS {
        let submitted = client.submit("helper", &format!("Run {number}")).await;
        neighbours.push(world.tail(&submitted.run_id));
    }
    for crash in 1..=4 {
        gate.reached_by(crash).await;
        world.apis[0].restart().await;
    }
    tail.ended().await;
    assert_eq!(tail.story().end, Some(("failed".to_owned(), "crash_limit".to_owned())));
    let mut hit = 0;
    for tail in &neighbours {
        tail.ended().await;
        let story = tail.story();
        assert_eq!(story.end, Some(("succeeded".to_owned(), "done".to_owned())));
        let attempt = marks_of(&story.text(), 1, 10).expect("one whole answer");
        hit += usize::from(attempt > 2);
    }
    assert!(hit > 0, "nobody was ever near it when it struck twice");
    gate.open();
    world.finish().await;
}
