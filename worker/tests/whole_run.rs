//! A worker as a whole, on SQLite and the in-process bus, with scripted models.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use futures::StreamExt;
use longhaul_shared::{
    admission::{Agents, Input, LimitOverrides, Submission, stop, submit},
    bus::{Bus, in_process::InProcessBus},
    config::{Config, Overrides},
    domain::{
        event::EventData,
        ids::{RunId, WorkspaceId},
        replay::Replay,
        run::Trigger,
        transition::{Reason, RunStatus},
    },
    shutdown::Shutdown,
    store::{Admitted, IfBusy, LogCursor, SharedStore, sqlite},
    tail::Tails,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};

const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    store: SharedStore,
    bus: Arc<dyn Bus>,
    config: Arc<Config>,
    workspace: WorkspaceId,
    tails: Tails,
    _dir: TempDir,
}

impl World {
    async fn new(script: &Value) -> Self {
        // Only the first of several tests in this process can install it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), script);
        let store: SharedStore =
            Arc::new(sqlite::SqlStore::open(&sqlite::Options::new(dir.path().join("test.db"))).unwrap());
        store.migrate().await.unwrap();
        let workspace = store.ensure_workspace("default").await.unwrap();
        let bus: Arc<dyn Bus> = Arc::new(InProcessBus::new());
        let tails = Tails::new(Arc::clone(&store) as _, Arc::clone(&bus));
        Self { store, bus, config: Arc::new(config), workspace, tails, _dir: dir }
    }

    fn work(&self) -> (Shutdown, JoinHandle<()>) {
        let shutdown = Shutdown::new();
        let parts = longhaul_worker::Parts {
            store: Arc::clone(&self.store),
            bus: Arc::clone(&self.bus),
            config: Arc::clone(&self.config),
        };
        let worker = longhaul_worker::run(parts, shutdown.clone());
        (shutdown, tokio::spawn(async move { worker.await.unwrap() }))
    }

    async fn submit(&self, text: &str, limits: LimitOverrides) -> Admitted {
        let submission = Submission {
            workspace_id: self.workspace,
            chat_id: None,
            client_message_id: None,
            agent: Some("tester".into()),
            input: Input::Text(text.into()),
            if_busy: IfBusy::Reject,
            expect_run_id: None,
            start: None,
            trigger: Trigger::Api,
            created_by: None,
            limits,
            tags: vec![],
            metadata: Value::Null,
            traceparent: None,
            idempotency: None,
        };
        submit(&*self.store, &*self.bus, &Agents::of(&self.config), submission).await.unwrap()
    }

    /// Tails the run to its end; the numbers must be dense, and what a step's tools do belongs to its saved attempt.
    async fn watch(&self, run_id: RunId) -> (Vec<EventData>, Replay) {
        let cursor = LogCursor { workspace_id: self.workspace, run_id, after: 0 };
        let mut tail = Box::pin(self.tails.follow(cursor));
        let (mut events, mut replay, mut next) = (vec![], Replay::new(run_id), 1);
        let mut saved = HashMap::new();
        while let Some(slice) = timeout(PATIENCE, tail.next()).await.expect("the run goes on") {
            let slice = slice.unwrap();
            for (seq, event) in slice.events() {
                assert_eq!(seq, next, "dense numbers");
                next += 1;
                match event.kind.as_str() {
                    "step.finished" => drop(saved.insert(event.step, event.attempt)),
                    "tool.started" | "tool.finished" => assert_eq!(saved[&event.step], event.attempt),
                    _ => {}
                }
                events.extend(event.data());
            }
            replay.apply_segment(&slice.segment);
        }
        (events, replay)
    }

    async fn text_of(&self, run_id: RunId) -> String {
        let steps = &self.store.records(self.workspace, &[run_id]).await.unwrap()[0].steps;
        steps.iter().map(|step| longhaul_shared::domain::step::output_text(&step.output)).collect()
    }
}

fn config(dir: &Path, script: &Value) -> Config {
    let script_file = dir.join("script.json");
    std::fs::write(&script_file, script.to_string()).unwrap();
    let file = dir.join("longhaul.toml");
    let toml = format!(
        "[database]\nurl = \"sqlite:{}\"\n[providers.p]\nkind = \"scripted\"\nscript = \"{}\"\n\
         [agents.tester]\nprovider = \"p\"\nmodel = \"script\"\ntools = [\"clock\"]\n",
        dir.join("test.db").display(),
        script_file.display()
    );
    std::fs::write(&file, toml).unwrap();
    Config::load(Some(&file), Overrides::new()).unwrap()
}

fn kinds(events: &[EventData]) -> Vec<&'static str> {
    events
        .iter()
        .filter_map(|event| match event {
            EventData::StepStarted { .. } => Some("step.started"),
            EventData::StepRestarted { .. } => Some("step.restarted"),
            EventData::StepFinished { .. } => Some("step.finished"),
            EventData::ToolPlanned { .. } => Some("tool.planned"),
            EventData::ToolStarted { .. } => Some("tool.started"),
            EventData::ToolFinished { .. } => Some("tool.finished"),
            EventData::RunFinished { .. } => Some("run.finished"),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn a_run_with_a_tool_and_a_torn_step_is_watched_to_its_end() {
    let world = World::new(&json!({"steps": [
        {"text": "Let me look.", "fail_on_attempts": [1], "usage": {"inputTokens": 1}, "tool_calls": [{"name": "clock", "arguments": {}}]},
        {"text": "It is late.", "fail_on_attempts": [1], "usage": {"inputTokens": 5, "outputTokens": 7}},
    ]}))
    .await;
    let (shutdown, worker) = world.work();
    let admitted = world.submit("What time is it?", LimitOverrides::default()).await;
    let (events, replay) = world.watch(admitted.run.id).await;
    assert_eq!(
        kinds(&events),
        [
            "step.started",
            "step.restarted",
            "step.started",
            "tool.planned",
            "step.finished",
            "tool.started",
            "tool.finished",
            "step.started",
            "step.restarted",
            "step.started",
            "step.finished",
            "run.finished"
        ]
    );
    let run = world.store.run(world.workspace, admitted.run.id).await.unwrap();
    assert_eq!((run.status, run.reason), (RunStatus::Succeeded, Some(Reason::Done)));
    assert_eq!((run.step_count, run.usage.output_tokens), (2, 7));
    assert_eq!(world.text_of(run.id).await, "Let me look.It is late.");
    assert_eq!(replay.step_count(), 2);
    shutdown.soft.cancel();
    timeout(PATIENCE, worker).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stop_in_mid_stream_keeps_what_was_said() {
    let world = World::new(&json!({"steps": [{"tokens": 10_000, "rate_per_second": 100}]})).await;
    let (shutdown, worker) = world.work();
    let admitted = world.submit("Go on for ever.", LimitOverrides::default()).await;
    let run_id = admitted.run.id;
    let watching = world.watch(run_id);
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        stop(&*world.store, &*world.bus, world.workspace, run_id).await.unwrap()
    };
    let ((events, _), stopped) = tokio::join!(watching, stopping);
    assert!(stopped.is_stopping(), "{stopped:?}");
    assert_eq!(kinds(&events), ["step.started", "step.finished", "run.finished"]);
    let run = world.store.run(world.workspace, run_id).await.unwrap();
    assert_eq!((run.status, run.reason), (RunStatus::Aborted, Some(Reason::Stop)));
    let shown: String = events
        .iter()
        .filter_map(
            |event| if let EventData::TextDelta { text } = event { Some(text.as_str()) } else { None },
        )
        .collect();
    assert!(!shown.is_empty());
    assert_eq!(world.text_of(run_id).await, shown);
    shutdown.soft.cancel();
    timeout(PATIENCE, worker).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_drained_worker_hands_over_and_no_step_is_done_twice() {
    let step = json!({"text": "Tick.", "tokens": 0, "rate_per_second": 0, "first_token_ms": 100,
        "tool_calls": [{"name": "clock", "arguments": {}}]});
    let mut steps = vec![step; 9];
    steps.push(json!({"text": "Done."}));
    let world = World::new(&json!({ "steps": steps })).await;
    let (first, worker) = world.work();
    let admitted = world.submit("Tick ten times.", LimitOverrides::default()).await;
    let watching = world.watch(admitted.run.id);
    let restarting = async {
        tokio::time::sleep(Duration::from_millis(350)).await;
        first.soft.cancel();
        timeout(PATIENCE, worker).await.unwrap().unwrap();
        world.work()
    };
    let ((events, _), (second, worker)) = tokio::join!(watching, restarting);
    let started = kinds(&events).iter().filter(|kind| **kind == "step.started").count();
    assert_eq!(started, 10, "each step was begun once");
    let run = world.store.run(world.workspace, admitted.run.id).await.unwrap();
    assert_eq!((run.status, run.attempts), (RunStatus::Succeeded, 2));
    second.soft.cancel();
    timeout(PATIENCE, worker).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_run_ends_at_its_step_limit_and_at_its_deadline() {
    let world = World::new(&json!({"steps": [
        {"text": "Again.", "first_token_ms": 20, "tool_calls": [{"name": "clock", "arguments": {}}]},
    ]}))
    .await;
    let (shutdown, worker) = world.work();
    let limits = LimitOverrides { max_steps: Some(3), ..LimitOverrides::default() };
    let limited = world.submit("Loop.", limits).await.run.id;
    let limits = LimitOverrides { deadline_ms: Some(200), ..LimitOverrides::default() };
    let late = world.submit("Loop.", limits).await.run.id;
    for (run_id, reason) in [(limited, Reason::StepLimit), (late, Reason::Deadline)] {
        world.watch(run_id).await;
        let run = world.store.run(world.workspace, run_id).await.unwrap();
        assert_eq!((run.status, run.reason), (RunStatus::Failed, Some(reason)));
        assert!(run.error.is_some());
    }
    shutdown.soft.cancel();
    timeout(PATIENCE, worker).await.unwrap().unwrap();
}
