//! A small HTTP client of the API for tests. It knows the wire, not the product's types: fields are written down here
//! as a client would read them in the documentation.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, header::HeaderMap};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::story::Event;
use crate::{PATIENCE, http_client};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One API process as one caller sees it.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// Null where the body is not JSON.
    pub body: Value,
}

/// What a submission is answered with.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Submitted {
    pub run_id: String,
    pub chat_id: String,
    pub message_id: String,
    pub assistant_message_id: String,
    pub status: String,
    pub position: Option<u32>,
    pub events_url: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    pub run_id: String,
    pub chat_id: String,
    pub status: String,
    pub stopping: bool,
    pub reason: Option<String>,
    pub blocked_by: Option<Value>,
    pub error: Option<RunError>,
    pub attempts: u32,
    pub step_count: u32,
    pub usage: Usage,
    pub last_seq: i64,
}

impl Run {
    pub fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "succeeded" | "failed" | "aborted")
    }

    /// Status and reason in one word pair, such as `aborted stop`.
    pub fn outcome(&self) -> String {
        format!("{} {}", self.status, self.reason.as_deref().unwrap_or("-"))
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct RunError {
    pub code: String,
    pub message: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    pub input_tokens: i64,
    pub output_tokens: i64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    pub step: u32,
    pub attempt: u32,
    pub output: Vec<Value>,
    pub finish_reason: String,
    pub usage: Usage,
    pub tool_calls: Vec<ToolCall>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolCall {
    pub call: u32,
    pub name: String,
    pub state: String,
    pub idempotency_key: String,
    pub output: Option<String>,
    pub error: Option<String>,
    pub late: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    pub message_id: String,
    pub role: String,
    pub status: String,
    pub run_id: Option<String>,
    pub parts: Vec<Value>,
    pub last_seq: Option<i64>,
}

impl Message {
    /// All text of it, without reasoning and tools.
    pub fn text(&self) -> String {
        let texts = self.parts.iter().filter(|part| part["type"] == "text");
        texts.filter_map(|part| part["text"].as_str()).collect()
    }
}

#[derive(Debug, Deserialize)]
struct Listed<T> {
    data: Vec<T>,
}

/// A page of a log.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventPage {
    pub data: Vec<Event>,
    pub next_cursor: i64,
    pub done: bool,
}

impl Answer {
    /// The body of an answer with this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{:#}", self.body);
        self.body
    }

    #[track_caller]
    pub fn read<T: DeserializeOwned>(self, status: u16) -> T {
        let body = self.expect(status);
        serde_json::from_value(body.clone()).unwrap_or_else(|error| panic!("{error}: {body:#}"))
    }

    #[track_caller]
    pub fn submitted(self) -> Submitted {
        let location = self.headers.get("location").cloned();
        let submitted: Submitted = self.read(202);
        let expected = format!("/v1/runs/{}", submitted.run_id);
        assert_eq!(location.expect("a submission is answered with a Location"), expected.as_str());
        submitted
    }

    /// The problem document of a refusal.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Value {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{:#}", self.body);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        self.body
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Client {
    pub fn new(base: String, key: Option<String>) -> Self {
        Self { http: http_client(), base, key }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request that was made by [`request`](Self::request).
    pub async fn send(&self, request: RequestBuilder) -> reqwest::Result<Answer> {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = serde_json::from_slice(&response.bytes().await?).unwrap_or_default();
        Ok(Answer { status, headers, body })
    }

    async fn must(&self, request: RequestBuilder) -> Answer {
        self.send(request).await.unwrap_or_else(|error| panic!("{} did not answer: {error:?}", self.base))
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.must(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.must(self.request(Method::POST, path).json(body)).await
    }

    pub async fn post_with_key(&self, path: &str, key: &str, body: &Value) -> Answer {
        self.must(self.request(Method::POST, path).header("Idempotency-Key", key).json(body)).await
    }

    /// Posts as a client does that wants to be sure: whatever happens to the answer, the same call goes again under the
    /// same key, to the next of the servers, until one says yes. The first one is this client's own.
    pub async fn insist(&self, others: &[Self], path: &str, key: &str, body: &Value) -> Submitted {
        let begin = Instant::now();
        for server in std::iter::once(self).chain(others).cycle() {
            let request = server.request(Method::POST, path).header("Idempotency-Key", key).json(body);
            match server.send(request.timeout(PATIENCE)).await {
                Ok(answer) if answer.status == 202 => return answer.submitted(),
                Ok(answer) => assert!(answer.body["retryable"] == true, "{answer:?}"),
                Err(_) => {}
            }
            assert!(begin.elapsed() < PATIENCE, "nobody accepted {key} within {PATIENCE:?}");
            sleep(LOOK_EVERY).await;
        }
        unreachable!("the cycle of at least one server has no end")
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.must(self.request(Method::DELETE, path)).await
    }

    /// Submits into a new chat.
    pub async fn submit(&self, agent: &str, input: &str) -> Submitted {
        self.post("/v1/runs", &json!({"agent": agent, "input": input})).await.submitted()
    }

    /// Submits into a chat that exists.
    pub async fn say(&self, chat: &str, agent: &str, input: &str) -> Answer {
        self.post(&format!("/v1/chats/{chat}/messages"), &json!({"agent": agent, "input": input})).await
    }

    pub async fn new_chat(&self) -> String {
        let chat = self.post("/v1/chats", &json!({})).await.expect(201);
        chat["chatId"].as_str().expect("a chat has an id").to_owned()
    }

    pub async fn run(&self, run: &str) -> Run {
        self.get(&format!("/v1/runs/{run}")).await.read(200)
    }

    pub async fn steps(&self, run: &str) -> Vec<Step> {
        let listed: Listed<Step> = self.get(&format!("/v1/runs/{run}/steps")).await.read(200);
        listed.data
    }

    pub async fn events_page(&self, run: &str, after: i64, limit: u32) -> EventPage {
        self.get(&format!("/v1/runs/{run}/events?after={after}&limit={limit}")).await.read(200)
    }

    /// The whole log, page by page, of a run that is over.
    pub async fn events(&self, run: &str, limit: u32) -> Vec<Event> {
        let (mut events, mut after) = (Vec::new(), 0);
        loop {
            let page = self.events_page(run, after, limit).await;
            assert!(page.done || page.next_cursor > after, "a page leads nowhere: {page:?}");
            after = page.next_cursor;
            events.extend(page.data);
            if page.done {
                return events;
            }
        }
    }

    pub async fn messages(&self, chat: &str) -> Vec<Message> {
        let listed: Listed<Message> =
            self.get(&format!("/v1/chats/{chat}/messages?limit=200")).await.read(200);
        listed.data
    }

    pub async fn stop(&self, run: &str, wait_seconds: u32) -> Answer {
        let path = format!("/v1/runs/{run}/stop?wait={wait_seconds}");
        self.must(self.request(Method::POST, &path)).await
    }

    /// Waits until the run looks as it should.
    pub async fn until(&self, run: &str, what: &str, holds: impl Fn(&Run) -> bool) -> Run {
        let begin = Instant::now();
        loop {
            let now = self.run(run).await;
            if holds(&now) {
                return now;
            }
            assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}; the run was {now:#?}");
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits for the end of the run.
    pub async fn ended(&self, run: &str) -> Run {
        self.until(run, "the run is over", Run::is_over).await
    }
}
