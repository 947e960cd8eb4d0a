//! What a process counts is there for Prometheus, and it is what happened.

use longhaul_tests::process::free_port;
use longhaul_tests::world::Store;
use longhaul_tests::{Program, Setup, World, http_client};

use crate::on_both;

on_both!(runs_are_counted_by_whoever_ended_them);

async fn runs_are_counted_by_whoever_ended_them(setup: Setup) {
    let is_dev = setup.store == Store::Sqlite;
    let mut world = World::start(setup.workers(0)).await;
    let port = free_port();
    let listen = |program: Program| program.env("LONGHAUL_METRICS_LISTEN", format!("127.0.0.1:{port}"));
    if is_dev {
        world.apis[0].change(listen);
        world.apis[0].restart().await;
    } else {
        world.start_worker_with(listen).await;
    }
    for _ in 0..3 {
        let run = world.client().submit("quick", "Hello.").await.run_id;
        assert_eq!(world.client().ended(&run).await.outcome(), "succeeded done");
    }
    let answer = http_client().get(format!("http://127.0.0.1:{port}/metrics")).send().await.unwrap();
    let text = answer.text().await.unwrap();
    for line in [
        "longhaul_runs_finished_total{status=\"succeeded\",reason=\"done\"} 3",
        "longhaul_reconciled_total 0",
        "longhaul_takeovers_total{proof=\"presence\"} 0",
        "longhaul_worker_slots 64",
        "longhaul_worker_slots_used 0",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line:?} in {text}");
    }
    world.finish().await;
}
