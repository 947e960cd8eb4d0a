//! The first thing that anybody sees: the demo agent, the command line, and a server that is killed in mid-sentence.

use longhaul_tests::process::{free_port, longhaul_binary};
use longhaul_tests::rows::Rows;
use longhaul_tests::{Client, Program, invariants};

use crate::on_sqlite;

on_sqlite!(the_demo_is_followed_through_a_kill_of_its_server);

async fn the_demo_is_followed_through_a_kill_of_its_server(_: longhaul_tests::Setup) {
    let dir = tempfile::tempdir().unwrap();
    let (port, file) = (free_port(), dir.path().join("dev.db"));
    let dev = Program::dev("dev", dir.path(), port, &file);
    let mut server = dev.start().unwrap();
    server.ready().await;
    let client = Client::new(server.url(), None);
    let follow = Program::other(longhaul_binary(), "follow", dir.path());
    let mut follow =
        follow.args(["--url", &server.url(), "run", "demo", "hello", "--follow"]).start().unwrap();

    // It has saved a step and is in the middle of the next.
    let rows = Rows::of_file(&file).await.unwrap();
    rows.until("a step is saved", "select count(*) from steps", |count| count > 0).await;
    let run = rows.texts("select lower(hex(id)) from runs").await.remove(0);
    let run = uuid::Uuid::parse_str(&run).unwrap().to_string();
    let saved = client.steps(&run).await;
    let position = client.run(&run).await.last_seq;
    client.until(&run, "it goes on", |run| run.last_seq > position + 2).await;
    server.kill();
    server = dev.start().unwrap();
    server.ready().await;

    let ended = client.ended(&run).await;
    let status = follow.ended().await;
    assert_eq!(status.code(), Some(0), "{status}: {}", follow.output());
    assert_eq!(ended.outcome(), "succeeded done");
    assert_eq!(ended.attempts, 2);
    let steps = client.steps(&run).await;
    assert!(steps.len() > saved.len());
    for (before, after) in saved.iter().zip(&steps) {
        // Its tool calls may have gone on since.
        assert_eq!(
            (after.attempt, &after.output),
            (before.attempt, &before.output),
            "a finished step ran twice"
        );
    }
    let last = steps.last().unwrap().output.last().unwrap()["text"].as_str().unwrap().to_owned();
    let (printed, end) = (follow.output(), last.lines().last().unwrap());
    assert!(printed.contains(end), "the answer's end {end:?} is not in {printed}");
    assert_eq!(invariants::broken(&rows).await, Vec::<String>::new());
}
