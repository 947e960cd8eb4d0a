//! What OpenAI's SDKs are answered, where their own suites do not get to.

use axum::http::Method;
use longhaul_shared::{
    domain::{event::EventData, message::Part},
    store::KeyRole,
};
use serde_json::{Value, json};

use super::{Api, hello};
use crate::views::responses::run_of;

/// Asked in the background.
fn ask(input: impl Into<Value>) -> Value {
    let input: Value = input.into();
    json!({"model": "helper", "input": input, "background": true})
}

fn reference(id: &str) -> Value {
    json!({"type": "item_reference", "id": id})
}

/// The id of the first item of a run's output.
fn first_item(run_id: &str) -> String {
    format!("msg_{}_0", run_id.replace('-', ""))
}

fn message(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// The parts of the message that a response was made with.
async fn input_of(api: &Api, response: &Value) -> Vec<Part> {
    let run = run_of(response["id"].as_str().unwrap()).unwrap();
    let workspace = api.store.workspace("default").await.unwrap().unwrap();
    api.store.input(workspace, run).await.unwrap().parts
}

#[tokio::test]
async fn an_input_refers_to_items_of_a_hundred_responses_and_of_no_more() {
    let api = Api::start().await;
    let mut items = vec![];
    for _ in 0..101 {
        items.push(reference(&first_item(&api.finished_run().await.0)));
    }
    let told = api.post("/v1/responses", ask(json!(items))).await.ok(400);
    assert!(told["error"]["message"].as_str().unwrap().contains("100 responses"), "{told}");
    items.pop();
    let response = api.post("/v1/responses", ask(json!(items))).await.ok(200);
    assert_eq!(input_of(&api, &response).await.len(), 100);
}

#[tokio::test]
async fn what_is_torn_says_nothing_and_what_is_not_over_cannot_be_referred_to() {
    let api = Api::start().await;
    let (run_id, _) = api.submit("hi").await;
    let mut claim = api.claim().await;
    api.say(&mut claim, &hello()).await;
    let input = json!([reference(&first_item(&run_id)), message("And?")]);
    api.post("/v1/responses", ask(input.clone())).await.ok(404);

    let again = EventData::StepRestarted { drop_from: 3, why: "lost".into() };
    api.say(&mut claim, &[again]).await;
    let first = claim.last_seq + 1;
    api.say(&mut claim, &hello()).await;
    api.finish(&mut claim, first, "Hello").await;
    let response = api.post("/v1/responses", ask(input)).await.ok(200);
    let parts = input_of(&api, &response).await;
    assert!(matches!(&parts[..], [Part::Said { text, .. }] if text == "And?"), "{parts:?}");
}

#[tokio::test]
async fn a_response_that_is_not_kept_is_found_by_those_who_read_its_stream_and_by_nobody_else() {
    let api = Api::start().await;
    let admin = api.key("default", KeyRole::Admin).await;
    let asked = json!({"model": "helper", "input": "hi", "store": false});
    let asking = async { api.post("/v1/responses", asked).await };
    let working = async {
        let mut claim = api.claim_soon().await;
        api.say(&mut claim, &hello()).await;
        api.finish(&mut claim, 3, "Hello").await;
    };
    let (answer, ()) = tokio::join!(asking, working);
    let response = answer.ok(200);
    let id = response["id"].as_str().unwrap();
    let path = format!("/v1/responses/{id}");
    let rest = api.get(&format!("{path}?stream=true&starting_after=3")).await;
    assert_eq!(rest.status, 200);
    assert!(rest.text().contains("response.completed") && !rest.text().contains("response.created"));
    api.get(&path).await.ok(404);
    api.call(&admin, Method::DELETE, &path, None).await.ok(404);
    let item = reference(response["output"][0]["id"].as_str().unwrap());
    api.post("/v1/responses", ask(json!([item, message("And?")]))).await.ok(404);
    let mut behind = ask("And?");
    behind["previous_response_id"] = json!(id);
    assert_eq!(
        api.post("/v1/responses", behind).await.ok(400)["error"]["code"],
        "previous_response_not_found"
    );
}

#[tokio::test]
async fn nothing_is_added_to_a_conversation_in_which_a_response_is_being_made() {
    let api = Api::start().await;
    let conversation = api.post("/v1/conversations", json!({})).await.ok(200)["id"].clone();
    let mut asked = ask("hi");
    asked["conversation"] = conversation.clone();
    api.post("/v1/responses", asked).await.ok(200);
    let path = format!("/v1/conversations/{}/items", conversation.as_str().unwrap());
    let refused = api.post(&path, json!({"items": [message("late")]})).await;
    assert_eq!((refused.status.as_u16(), refused.header("x-should-retry")), (409, "false"));
    let mut claim = api.claim().await;
    api.say(&mut claim, &hello()).await;
    api.finish(&mut claim, 3, "Hello").await;
    api.post(&path, json!({"items": [message("late")]})).await.ok(200);
    let listed = api.get(&format!("{path}?order=asc")).await.ok(200);
    assert_eq!(listed["data"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_page_that_went_on_with_a_response_keeps_its_chat() {
    let api = Api::start().await;
    let admin = api.key("default", KeyRole::Admin).await;
    let response = api.post("/v1/responses", ask("hi")).await.ok(200);
    let id = response["id"].as_str().unwrap();
    let mut claim = api.claim().await;
    api.say(&mut claim, &hello()).await;
    api.finish(&mut claim, 3, "Hello").await;
    let chat = format!("/v1/chats/{}", claim.run.chat_id);
    let more = json!({"agent": "helper", "input": "more"});
    api.post(&format!("{chat}/messages"), more).await.ok(202);
    api.call(&admin, Method::DELETE, &format!("/v1/responses/{id}"), None).await.ok(200);
    api.get(&format!("/v1/responses/{id}")).await.ok(404);
    api.get(&chat).await.ok(200);
}

#[tokio::test]
async fn unknown_calls_of_these_clients_are_refused_in_their_own_form() {
    let api = Api::start().await;
    let refused = api.get("/v1/models").await.ok(404);
    assert_eq!(refused["error"]["type"], "invalid_request_error", "{refused}");
}
