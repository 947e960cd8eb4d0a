//! The API through [`router`], on a database of its own for each test.

mod auth;
mod chats;
mod events;
mod isolation;
mod responses;
mod runs;
mod serving;
mod system;
mod tokens;
mod ui;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use longhaul_shared::{
    admission::Agents,
    api_key::{Key, KeyKind},
    bus::in_process::InProcessBus,
    config::Config,
    domain::{
        event::EventData,
        ids::WorkerId,
        run::{Claim, Ending, Usage},
        step::{FinishReason, OutputPart, Step},
    },
    store::{Append, KeyRole, NewKey, NewWorker, SharedStore, sqlite},
    tail::Tails,
};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{AppState, Parts, Settings, router};

pub(super) struct Api {
    pub(super) state: AppState,
    pub(super) store: SharedStore,
    router: Router,
    /// An operator of the workspace `default`.
    pub(super) key: String,
    _dir: tempfile::TempDir,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).to_str().unwrap()
    }

    /// Asserts a problem of that status and code.
    #[track_caller]
    pub(super) fn refused(&self, status: u16, code: &str) -> Value {
        let problem = self.json();
        assert_eq!((self.status.as_u16(), problem["code"].as_str()), (status, Some(code)), "{problem}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(problem["requestId"], self.header("x-request-id"));
        problem
    }

    #[track_caller]
    pub(super) fn ok(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self.json()
    }
}

impl Api {
    pub(super) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Started with settings of its own.
    pub(super) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.limits.requests_per_minute = 0;
        let helper = serde_json::from_value(json!({"provider": "p", "model": "m"})).unwrap();
        config.agents.insert("helper".to_owned(), helper);
        change(&mut config);

        let dir = tempfile::tempdir().unwrap();
        let store = sqlite::SqlStore::open(&sqlite::Options::new(dir.path().join("test.db"))).unwrap();
        let store: Arc<sqlite::SqlStore> = Arc::new(store);
        let shared: SharedStore = store.clone();
        shared.migrate().await.unwrap();
        let bus = Arc::new(InProcessBus::new());
        let state = AppState::new(Parts {
            store: shared.clone(),
            bus: bus.clone(),
            tails: Tails::new(store, bus),
            agents: Arc::new(Agents::of(&config)),
            settings: Settings::of(&config, "test"),
        });
        let mut api =
            Self { router: router(state.clone()), state, store: shared, key: String::new(), _dir: dir };
        api.key = api.key("default", KeyRole::Operator).await;
        api
    }

    /// A fresh key.
    pub(super) async fn key(&self, workspace: &str, role: KeyRole) -> String {
        let workspace_id = self.store.ensure_workspace(workspace).await.unwrap();
        let key = Key::generate(KeyKind::Live);
        let new = NewKey {
            workspace_id,
            name: "tester",
            role,
            prefix: key.prefix(),
            digest: &key.digest(),
            last_four: key.last_four(),
            expires_at: None,
            scope: None,
        };
        self.store.create_key(new).await.unwrap();
        key.reveal().to_owned()
    }

    /// The answer, whose body may go on for long.
    pub(super) async fn respond(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.respond(request).await;
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(super) async fn call(&self, key: &str, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {key}"));
        let body = match body {
            None => Body::empty(),
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
        };
        self.send(request.body(body).unwrap()).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.call(&self.key, Method::GET, path, None).await
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(&self.key, Method::POST, path, Some(body)).await
    }

    /// A call with headers of its own.
    pub(super) async fn call_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    /// The ids of a submitted run and its chat.
    pub(super) async fn submit(&self, text: &str) -> (String, String) {
        let answer = self.post("/v1/runs", json!({"agent": "helper", "input": text})).await.ok(202);
        (answer["runId"].as_str().unwrap().to_owned(), answer["chatId"].as_str().unwrap().to_owned())
    }

    /// The one run that waits for a worker, taken by one.
    pub(super) async fn claim(&self) -> Claim {
        self.try_claim().await.expect("a run waits")
    }

    /// The same for one that is being submitted.
    pub(super) async fn claim_soon(&self) -> Claim {
        for _ in 0..1000 {
            if let Some(claim) = self.try_claim().await {
                return claim;
            }
        }
        panic!("no run comes");
    }

    async fn try_claim(&self) -> Option<Claim> {
        let id = WorkerId::generate();
        let worker = NewWorker {
            id,
            host: "test".into(),
            version: "0".into(),
            slots: 8,
            lease_ms: 60_000,
            renewal_ms: 60_000,
            presence: None,
        };
        self.store.register_worker(&worker).await.unwrap();
        let mut claims = self.store.claim(id, &["default".to_owned()], 1).await.unwrap();
        claims.pop().map(|(claim, _)| claim)
    }

    /// The holder says this much.
    pub(super) async fn say(&self, claim: &mut Claim, events: &[EventData]) {
        let events = events.iter().map(|event| event.of_step(1, 1)).collect();
        self.commit(Append { events, ..append(claim) }, claim).await;
    }

    /// The holder saves `text`, which it has said, as its one step, and the run is done.
    pub(super) async fn finish(&self, claim: &mut Claim, first_seq: i64, text: &str) {
        self.finish_as(Ending::done(), claim, first_seq, text).await;
    }

    /// The same with another end.
    pub(super) async fn finish_as(&self, ending: Ending, claim: &mut Claim, first_seq: i64, text: &str) {
        let usage = Usage { input_tokens: 3, output_tokens: 2, ..Usage::default() };
        let step = Step {
            run_id: claim.run.id,
            step: 1,
            attempt: 1,
            epoch: claim.epoch,
            model: "m".into(),
            output: vec![OutputPart::Text { text: text.into() }],
            finish_reason: FinishReason::Stop,
            usage,
            first_seq,
            last_seq: claim.last_seq + 1,
            started_at: claim.now,
            finished_at: claim.now,
        };
        let finished =
            EventData::StepFinished { finish_reason: FinishReason::Stop, usage, tool_calls: 0 }.of_step(1, 1);
        let end = EventData::RunFinished {
            status: ending.status(),
            reason: ending.reason,
            error: None,
            usage,
            step_count: 1,
        };
        let append = Append {
            events: vec![finished, end.of_run()],
            steps: vec![step],
            ending: Some(ending),
            ..append(claim)
        };
        self.commit(append, claim).await;
    }

    async fn commit(&self, append: Append, claim: &mut Claim) {
        claim.last_seq = append.last_seq();
        let committed = self.store.commit(&[append]).await.remove(0).unwrap();
        self.state.bus.publish(Arc::new(committed.segment));
    }

    /// A run that has said "Hello" and is over.
    pub(super) async fn finished_run(&self) -> (String, String) {
        let ids = self.submit("hi").await;
        let mut claim = self.claim().await;
        self.say(&mut claim, &hello()).await;
        self.finish(&mut claim, 3, "Hello").await;
        ids
    }
}

/// A step that says "Hello".
pub(super) fn hello() -> [EventData; 3] {
    [
        EventData::StepStarted { model: "m".into() },
        EventData::TextDelta { text: "Hel".into() },
        EventData::TextDelta { text: "lo".into() },
    ]
}

fn append(claim: &Claim) -> Append {
    Append {
        workspace_id: claim.run.workspace_id,
        chat_id: claim.run.chat_id,
        run_id: claim.run.id,
        assistant_message_id: claim.run.assistant_message_id,
        epoch: claim.epoch,
        first_seq: claim.last_seq + 1,
        events: vec![],
        steps: vec![],
        calls: vec![],
        ending: None,
        stop_requested_at: None,
    }
}
