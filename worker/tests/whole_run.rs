//! A worker as a whole, on SQLite and the in-process bus, with scripted models.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt;
use longhaul_shared::{
    admission::{Agents, Input, LimitOverrides, Submission, stop, submit},
    backends::Processes,
    bus::{Bus, in_process::InProcessBus},
    config::{Config, Overrides},
    domain::{
        event::EventData,
        ids::{RunId, WorkspaceId},
        replay::{ModelMessage, Replay},
        run::Trigger,
        step::FinishReason,
        tool::{CallState, Effect, ToolSpec},
        transition::{Reason, RunStatus},
    },
    shutdown::Shutdown,
    store::{Admitted, IfBusy, LogCursor, SharedStore, sqlite},
    tail::Tails,
};
use longhaul_worker::{
    agents::Agent,
    provider::{CallDelta, Model, ModelError, ModelEvent, ModelRequest, ModelStream, scripted::Scripted},
    tools::{Registry, Tool, ToolContext, ToolOutcome},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};

const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    store: SharedStore,
    leases: SharedStore,
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
        let open = || -> SharedStore {
            Arc::new(sqlite::SqlStore::open(&sqlite::Options::new(dir.path().join("test.db"))).unwrap())
        };
        let (store, leases) = (open(), open());
        store.migrate().await.unwrap();
        let workspace = store.ensure_workspace("default").await.unwrap();
        let bus: Arc<dyn Bus> = Arc::new(InProcessBus::new());
        let tails = Tails::new(Arc::clone(&store) as _, Arc::clone(&bus));
        Self { store, leases, bus, config: Arc::new(config), workspace, tails, _dir: dir }
    }

    fn work(&self) -> (Shutdown, JoinHandle<()>) {
        self.work_as(longhaul_worker::agents::Agents::from_config(&self.config).unwrap())
    }

    fn work_as(&self, agents: longhaul_worker::agents::Agents) -> (Shutdown, JoinHandle<()>) {
        let shutdown = Shutdown::new();
        let parts = longhaul_worker::Parts {
            store: Arc::clone(&self.store),
            leases: Arc::clone(&self.leases),
            processes: Processes::One,
            bus: Arc::clone(&self.bus),
            config: Arc::clone(&self.config),
        };
        let worker = longhaul_worker::run_as(agents, parts, shutdown.clone());
        (shutdown, tokio::spawn(async move { worker.await.unwrap() }))
    }

    async fn submit(&self, text: &str, limits: LimitOverrides) -> Admitted {
        self.submit_to("tester", text, limits).await
    }

    async fn submit_to(&self, agent: &str, text: &str, limits: LimitOverrides) -> Admitted {
        let submission = Submission {
            workspace_id: self.workspace,
            chat_id: None,
            client_chat_id: None,
            client_message_id: None,
            agent: Some(agent.into()),
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
            replaces: false,
            renderer: 1,
            request: None,
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
         [agents.tester]\nprovider = \"p\"\nmodel = \"script\"\ntools = [\"clock\"]\n\
         [agents.other]\nprovider = \"p\"\nmodel = \"script\"\n",
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
    assert!(stopped.run().is_stopping(), "{stopped:?}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_threads_are_all_blocked_keeps_its_lease() {
    const LEASE: Duration = Duration::from_millis(900);
    let mut world = World::new(&json!({"steps": [{"text": "Late.", "first_token_ms": 2_500}]})).await;
    let config = Arc::get_mut(&mut world.config).unwrap();
    (config.worker.lease, config.worker.heartbeat) = (LEASE, LEASE / 3);
    let (shutdown, worker) = world.work();
    let run_id = world.submit("Take your time.", LimitOverrides::default()).await.run.id;
    while world.store.run(world.workspace, run_id).await.unwrap().status != RunStatus::Running {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for _ in 0..2 {
        tokio::spawn(async { std::thread::sleep(2 * LEASE) });
    }
    world.watch(run_id).await;
    let run = world.store.run(world.workspace, run_id).await.unwrap();
    assert_eq!((run.status, run.attempts), (RunStatus::Succeeded, 1));
    assert_eq!(world.store.list_workers().await.unwrap().len(), 1, "it never had to begin anew");
    shutdown.soft.cancel();
    timeout(PATIENCE, worker).await.unwrap().unwrap();
}

/// An agent of the test's own making.
fn agent(name: &str, model: Arc<dyn Model>, tools: Registry) -> Agent {
    Agent {
        name: name.to_owned(),
        model,
        model_name: "m".to_owned(),
        instructions: String::new(),
        temperature: None,
        tools,
    }
}

/// Says a word and panics.
struct Bomb;

#[async_trait]
impl Model for Bomb {
    async fn stream(&self, _: ModelRequest) -> Result<ModelStream, ModelError> {
        let tick = futures::stream::once(async { Ok(ModelEvent::Text("tick ".to_owned())) });
        Ok(tick.chain(futures::stream::once(async { panic!("a model panics, as this test wants") })).boxed())
    }
}

#[tokio::test]
async fn a_panic_in_one_run_breaks_only_that_run() {
    let world = World::new(&json!({"steps": [{"tokens": 250, "rate_per_second": 50}]})).await;
    let script = world.config.providers["p"].script.clone().unwrap();
    let steady: Arc<dyn Model> = Arc::new(Scripted::from_file(&script).unwrap());
    let agents = [agent("tester", steady, Registry::new()), agent("other", Arc::new(Bomb), Registry::new())];
    let (shutdown, worker) = world.work_as(agents.into_iter().collect());
    let steady = world.submit("Go on.", LimitOverrides::default()).await.run.id;
    let bomb = world.submit_to("other", "Blow up.", LimitOverrides::default()).await.run.id;
    let ((events, _), _) = tokio::join!(world.watch(bomb), world.watch(steady));
    let run = world.store.run(world.workspace, bomb).await.unwrap();
    assert_eq!((run.status, run.reason, run.attempts), (RunStatus::Failed, Some(Reason::CrashLimit), 3));
    let restarts = kinds(&events).iter().filter(|kind| **kind == "step.restarted").count();
    assert_eq!(restarts, 2, "each new attempt takes back what the broken one said");
    let run = world.store.run(world.workspace, steady).await.unwrap();
    assert_eq!((run.status, run.attempts), (RunStatus::Succeeded, 1));
    assert!(!worker.is_finished());
    shutdown.soft.cancel();
    timeout(PATIENCE, worker).await.unwrap().unwrap();
}

/// Plans a call, is cut off at its output limit, and then says what it was told.
#[derive(Default)]
struct CutOff(Mutex<Vec<Arc<Vec<ModelMessage>>>>);

#[async_trait]
impl Model for CutOff {
    async fn stream(&self, request: ModelRequest) -> Result<ModelStream, ModelError> {
        let is_first = request.step == 1;
        self.0.lock().unwrap().push(request.messages);
        let events = if is_first {
            let (name, arguments) = (Some("charge".to_owned()), r#"{"op":"order 7"}"#.to_owned());
            let call = CallDelta { index: 0, id: None, name, arguments };
            vec![ModelEvent::ToolCall(call), ModelEvent::Finish(FinishReason::Length)]
        } else {
            vec![ModelEvent::Text("Not charged.".to_owned()), ModelEvent::Finish(FinishReason::Stop)]
        };
        Ok(futures::stream::iter(events.into_iter().map(Ok)).boxed())
    }
}

/// Counts its calls.
struct Charge(ToolSpec, AtomicUsize);

#[async_trait]
impl Tool for Charge {
    fn spec(&self) -> &ToolSpec {
        &self.0
    }

    async fn call(&self, _: &Value, cx: &ToolContext) -> ToolOutcome {
        cx.departure.depart().await.unwrap();
        self.1.fetch_add(1, Ordering::SeqCst);
        ToolOutcome::Succeeded("charged".to_owned())
    }
}

#[tokio::test]
async fn the_calls_of_an_answer_that_was_cut_off_are_not_made() {
    let world = World::new(&json!({"steps": [{}]})).await;
    let (name, description) = ("charge".to_owned(), "Charges.".to_owned());
    let spec = ToolSpec { name, description, parameters: json!({"type": "object"}), effect: Effect::Once };
    let (model, charge) = (Arc::new(CutOff::default()), Arc::new(Charge(spec, AtomicUsize::new(0))));
    let mut tools = Registry::new();
    tools.add(charge.clone()).unwrap();
    let (shutdown, worker) = world.work_as([agent("tester", model.clone(), tools)].into_iter().collect());
    let run_id = world.submit("Charge order 7.", LimitOverrides::default()).await.run.id;
    world.watch(run_id).await;
    let run = world.store.run(world.workspace, run_id).await.unwrap();
    assert_eq!((run.status, run.step_count), (RunStatus::Succeeded, 2));
    let record = world.store.records(world.workspace, &[run_id]).await.unwrap().remove(0);
    let [call] = &record.calls[..] else { panic!("one call: {:?}", record.calls) };
    assert_eq!((call.state, call.dispatched_at), (CallState::Failed, None));
    assert_eq!(
        charge.1.load(Ordering::SeqCst),
        0,
        "its arguments may be only the first half of what was meant"
    );
    let asked = model.0.lock().unwrap().clone();
    let results = asked[1].iter().filter_map(|message| match message {
        ModelMessage::ToolResult { content, .. } => Some(content.as_str()),
        _ => None,
    });
    let [result] = results.collect::<Vec<_>>()[..] else { panic!("one result: {asked:?}") };
    assert!(result.contains("cut this answer off"), "{result}");
    shutdown.soft.cancel();
    timeout(PATIENCE, worker).await.unwrap().unwrap();
}
