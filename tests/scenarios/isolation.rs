//! Two tenants on one installation: what is not yours does not exist.

use std::collections::BTreeSet;

use longhaul_tests::{At, Client, Script, Setup, Turn, World};
use reqwest::Method;
use serde_json::{Value, json};

use crate::on_both;

on_both!(every_route_with_an_id_answers_for_a_foreign_one_as_for_none, a_key_that_is_unknown_opens_nothing);

/// A route as the API document describes it.
struct Route {
    method: Method,
    path: String,
    has_body: bool,
}

async fn routes(client: &Client) -> Vec<Route> {
    let document = client.get("/openapi.json").await.expect(200);
    let paths = document["paths"].as_object().expect("a document has paths");
    let routes = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().expect("a path has methods");
        methods.iter().filter_map(|(method, described)| {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).ok()?;
            Some(Route { method, path: path.clone(), has_body: described.get("requestBody").is_some() })
        })
    });
    routes.collect()
}

/// Status and body, without what names this very request.
async fn ask(client: &Client, route: &Route, path: &str, accept: &str) -> (u16, Value) {
    let mut request = client.request(route.method.clone(), path).header("accept", accept);
    if route.has_body {
        let body = if route.method == Method::PATCH {
            json!({"title": "Mine now"})
        } else {
            json!({"agent": "quick", "input": "Hello"})
        };
        request = request.json(&body);
    }
    let mut answer = client.send(request).await.unwrap();
    if let Some(problem) = answer.body.as_object_mut() {
        problem.remove("requestId");
        problem.remove("instance");
    }
    (answer.status, answer.body)
}

async fn every_route_with_an_id_answers_for_a_foreign_one_as_for_none(setup: Setup) {
    let world = World::start(setup.with_keys()).await;
    world.provider.script("helper", Script::new([Turn::marked(5)]));
    let gate = world.provider.gate("helper", At::Token(2));
    let (ours, theirs) = (world.client(), world.client_with(&world.new_key("other", "admin").await));
    let done = ours.submit("quick", "The canary sings.").await;
    ours.ended(&done.run_id).await;
    let live = ours.submit("helper", "The canary is singing.").await;
    gate.reached().await;

    let routes = routes(&ours).await;
    let mut asked = BTreeSet::new();
    for route in routes.iter().filter(|route| route.path.contains('{')) {
        let (from, to) = (route.path.find('{').unwrap(), route.path.find('}').unwrap());
        assert_eq!(route.path.matches('{').count(), 1, "one id a route so far: {}", route.path);
        let at = |id: &str| format!("{}{id}{}", &route.path[..from], &route.path[to + 1..]);
        let foreign = match &route.path[from + 1..to] {
            "runId" => [&done.run_id, &live.run_id],
            "chatId" => [&done.chat_id, &live.chat_id],
            other => panic!("the parameter {other} is new: say here what is foreign of it"),
        };
        for accept in ["application/json", "text/event-stream"] {
            let unknown = ask(&theirs, route, &at(&uuid::Uuid::now_v7().to_string()), accept).await;
            assert_eq!(unknown.0, 404, "{} {}", route.method, route.path);
            for id in foreign {
                assert_eq!(
                    ask(&theirs, route, &at(id), accept).await,
                    unknown,
                    "{} {}",
                    route.method,
                    route.path
                );
            }
        }
        asked.insert(format!("{} {}", route.method, route.path));
    }
    assert!(asked.len() >= 9, "too few routes to mean anything: {asked:?}");
    // Ids in bodies and filters.
    let into_foreign = json!({"agent": "quick", "input": "x", "chatId": done.chat_id});
    theirs.post("/v1/runs", &into_foreign).await.refused(404, "NOT_FOUND");
    for list in ["/v1/runs", "/v1/chats"] {
        assert_eq!(theirs.get(list).await.expect(200)["data"], json!([]), "{list}");
    }
    let filtered = theirs.get(&format!("/v1/runs?chatId={}", done.chat_id)).await;
    assert_eq!(filtered.expect(200)["data"], json!([]));

    // None of that did anything.
    assert!(!ours.run(&live.run_id).await.stopping);
    gate.open();
    assert_eq!(ours.ended(&live.run_id).await.outcome(), "succeeded done");
    assert_eq!(ours.messages(&live.chat_id).await.len(), 2);
    world.finish().await;
}

async fn a_key_that_is_unknown_opens_nothing(setup: Setup) {
    let world = World::start(setup.with_keys()).await;
    let ours = world.client();
    let submitted = ours.submit("quick", "Hello").await;
    ours.ended(&submitted.run_id).await;
    let known = world.key.clone().unwrap();
    let typo = format!("{}{}", &known[..known.len() - 1], if known.ends_with('a') { 'b' } else { 'a' });
    let strangers = [
        world.client_with(&typo),
        world.client_with("lh_live_nonsense"),
        Client::new(world.apis[0].url(), None),
    ];
    for route in routes(&ours).await.iter().filter(|route| route.path.starts_with("/v1/")) {
        let path = route.path.replace("{runId}", &submitted.run_id).replace("{chatId}", &submitted.chat_id);
        for stranger in &strangers {
            let (status, problem) = ask(stranger, route, &path, "application/json").await;
            assert_eq!(
                (status, &problem["code"]),
                (401, &json!("UNAUTHENTICATED")),
                "{} {path}",
                route.method
            );
        }
    }
    let viewer = world.client_with(&world.new_key("default", "viewer").await);
    viewer.run(&submitted.run_id).await;
    viewer.stop(&submitted.run_id, 0).await.refused(403, "FORBIDDEN");
    viewer.post("/v1/runs", &json!({"agent": "quick", "input": "x"})).await.refused(403, "FORBIDDEN");
    world.finish().await;
}
