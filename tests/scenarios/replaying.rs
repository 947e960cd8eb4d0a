//! A finished run through each view: the same bytes for ever, whichever process writes them.

use std::collections::BTreeMap;

use longhaul_tests::{Client, Script, Setup, Turn, World};
use serde_json::json;

const STEPS: usize = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_run_has_the_same_bytes_in_each_view_from_every_process_and_after_a_restart() {
    if longhaul_tests::quick() {
        return;
    }
    let mut world = World::start(Setup::postgres().apis(2).workers(1).limit("max_steps", 2_000)).await;
    let calling = (1..STEPS).map(|step| {
        Turn::marked(2)
            .reasoning(["Hm. "])
            .and_call("clock", &json!({"timezone": format!("+{:02}:{:02}", step / 60, step % 60)}))
    });
    world.provider.script("helper", Script::new(calling.chain([Turn::marked(20)])));
    let run = world.client().submit("helper", "Go a long way.").await.run_id;
    let run = world.client().ended(&run).await;
    assert_eq!((run.outcome().as_str(), run.step_count), ("succeeded done", STEPS as u32));

    let first = bytes_of_each_view(&world.client_of(0), &run.run_id).await;
    let ends = [("native", "event: end"), ("ui", "data: [DONE]"), ("responses", "data: [DONE]")];
    for (view, end) in ends {
        assert!(first[view].trim_end().contains(end), "{view} ends");
        assert_eq!(first[view].matches(&format!("a1.s{STEPS}.19 ")).count().min(1), 1, "{view} is whole");
    }
    assert_eq!(bytes_of_each_view(&world.client_of(1), &run.run_id).await, first);
    world.apis[0].restart().await;
    assert_eq!(bytes_of_each_view(&world.client_of(0), &run.run_id).await, first);
    world.finish().await;
}

/// All that the run is shown as, by the name of the view.
async fn bytes_of_each_view(client: &Client, run: &str) -> BTreeMap<&'static str, String> {
    let response = format!("resp_{}", run.replace('-', ""));
    let paths = [
        ("native", format!("/v1/runs/{run}/events")),
        ("ui", format!("/api/chat/{run}/stream?startIndex=0")),
        ("responses", format!("/v1/responses/{response}?stream=true")),
        ("response", format!("/v1/responses/{response}")),
    ];
    let mut views = BTreeMap::new();
    for (view, path) in paths {
        let request = client.request(reqwest::Method::GET, &path).header("accept", "text/event-stream");
        let answer = request.send().await.unwrap().error_for_status().unwrap();
        views.insert(view, answer.text().await.unwrap());
    }
    views
}
