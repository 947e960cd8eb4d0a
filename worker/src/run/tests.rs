//! Attempts on SQLite, with models and tools that a configuration cannot describe.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use longhaul_shared::{
    bus::{Bus, in_process::InProcessBus},
    config::LimitsConfig,
    domain::{
        event::EventData,
        ids::{RunId, WorkerId, WorkspaceId},
        run::{Run, Usage},
        step::FinishReason,
        tool::{CallState, Effect, LateResult, ToolCall, ToolSpec},
        transition::{Reason, RunStatus},
    },
    queue::{Holdings, Leased, Moment, Orders},
    store::{SharedStore, StopRequest},
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, SqliteConnection};
use tempfile::TempDir;
use tokio::{
    sync::{Notify, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{attempt::Attempts, late::Late};
use crate::{
    agents::{Agent, Agents},
    fixture::{database, new_run},
    provider::{CallDelta, Model, ModelError, ModelEvent, ModelRequest, ModelStream},
    recorder::{Coalesce, Recorder},
    tools::{Registry, Tool, ToolContext, ToolOutcome},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Says these events at every call.
struct Says(Vec<ModelEvent>);

#[async_trait]
impl Model for Says {
    async fn stream(&self, _: ModelRequest) -> Result<ModelStream, ModelError> {
        let events: Vec<_> = self.0.iter().cloned().map(Ok).collect();
        Ok(stream::iter(events).boxed())
    }
}

/// Puts the lease in doubt before it answers.
struct Doubts(Vec<ModelEvent>, Arc<Holdings>);

#[async_trait]
impl Model for Doubts {
    async fn stream(&self, request: ModelRequest) -> Result<ModelStream, ModelError> {
        self.1.confirm(Moment::now());
        Says(self.0.clone()).stream(request).await
    }
}

struct Panics;

#[async_trait]
impl Model for Panics {
    async fn stream(&self, _: ModelRequest) -> Result<ModelStream, ModelError> {
        panic!("on purpose")
    }
}

/// Answers when it is told to.
struct Slow {
    spec: ToolSpec,
    times: AtomicUsize,
    asked: Notify,
    answer: Notify,
}

impl Slow {
    fn new(effect: Effect) -> Arc<Self> {
        let (name, description) = (effect.as_str().to_owned(), String::new());
        let spec = ToolSpec { name, description, parameters: json!({"type": "object"}), effect };
        Arc::new(Self { spec, times: AtomicUsize::new(0), asked: Notify::new(), answer: Notify::new() })
    }
}

#[async_trait]
impl Tool for Slow {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, _: &Value, cx: &ToolContext) -> ToolOutcome {
        if let Err(barred) = cx.departure.depart().await {
            return ToolOutcome::Failed(barred.to_string());
        }
        self.times.fetch_add(1, Ordering::SeqCst);
        self.asked.notify_one();
        self.answer.notified().await;
        ToolOutcome::Succeeded("at last".to_owned())
    }
}

fn answer(text: &str) -> Vec<ModelEvent> {
    vec![ModelEvent::Text(text.to_owned()), ModelEvent::Finish(FinishReason::Stop)]
}

fn calls(names: &[&str]) -> Vec<ModelEvent> {
    let call = |(index, name): (u32, &&str)| {
        let (id, name) = (None, Some((*name).to_owned()));
        ModelEvent::ToolCall(CallDelta { index, id, name, arguments: "{}".to_owned() })
    };
    (0..).zip(names).map(call).chain([ModelEvent::Finish(FinishReason::ToolCalls)]).collect()
}

/// An agent's name, its model and its tools.
type Parts = (&'static str, Arc<dyn Model>, Vec<Arc<dyn Tool>>);

/// One worker's parts, without its tasks.
struct Bench {
    store: SharedStore,
    workspace: WorkspaceId,
    worker: WorkerId,
    holdings: Arc<Holdings>,
    attempts: Arc<Attempts>,
    dir: TempDir,
}

impl Bench {
    async fn new(agents: Vec<Parts>, limits: LimitsConfig) -> Self {
        Self::holding(Arc::default(), agents, limits).await
    }

    async fn holding(holdings: Arc<Holdings>, agents: Vec<Parts>, limits: LimitsConfig) -> Self {
        let (store, workspace, worker, dir) = database().await;
        holdings.begin(worker);
        holdings.confirm(Moment::now() + Duration::from_hours(1));
        let bus: Arc<dyn Bus> = Arc::new(InProcessBus::new());
        let coalesce = Coalesce { time: Duration::ZERO, bytes: 1 };
        let (recorder, recording) = Recorder::new(store.clone(), bus.clone(), coalesce);
        tokio::spawn(recording);
        let agents = agents.into_iter().map(|(name, model, tools)| {
            let mut registry = Registry::new();
            for tool in tools {
                registry.add(tool).unwrap();
            }
            Agent {
                name: name.to_owned(),
                model,
                model_name: "m".to_owned(),
                instructions: String::new(),
                temperature: None,
                tools: registry,
            }
        });
        let hard_stop = CancellationToken::new();
        let attempts = Arc::new(Attempts {
            store: store.clone(),
            bus,
            recorder,
            agents: Agents::of(agents),
            limits,
            late: Late { store: store.clone(), tasks: TaskTracker::new(), hard_stop: hard_stop.clone() },
            hand_backs: Semaphore::new(2),
            drain: CancellationToken::new(),
            hard_stop,
        });
        Self { store, workspace, worker, holdings, attempts, dir }
    }

    /// The database refuses events that contain this, for good.
    async fn refuse(&self, words: &str) {
        let path = self.dir.path().join("test.db");
        let mut connection = SqliteConnection::connect(path.to_str().unwrap()).await.unwrap();
        let trigger = format!(
            "create trigger refuses before insert on run_events when instr(new.events, '{words}') > 0 \
             begin select raise(abort, 'on purpose'); end"
        );
        connection.execute(AssertSqlSafe(trigger)).await.unwrap();
        connection.close().await.unwrap();
    }

    async fn submit(&self, agent: &str) -> Run {
        self.store.admit(new_run(self.workspace, agent)).await.unwrap().run
    }

    /// Everything that waits, taken by this worker.
    async fn claim(&self) -> Vec<Leased> {
        let slots = Arc::new(Semaphore::new(9));
        let claims = self.store.claim(self.worker, &["default".to_owned()], 9).await.unwrap();
        claims
            .into_iter()
            .map(|(claim, _)| self.holdings.add(claim, slots.clone().try_acquire_owned().unwrap()))
            .collect()
    }

    async fn work(&self, leased: Leased) {
        timeout(PATIENCE, self.attempts.work(leased)).await.expect("an attempt ends");
    }

    async fn now(&self, run: &Run) -> Run {
        self.store.run(self.workspace, run.id).await.unwrap()
    }

    async fn calls(&self, run: &Run) -> Vec<ToolCall> {
        self.store.records(self.workspace, &[run.id]).await.unwrap().remove(0).calls
    }
}

fn limits() -> LimitsConfig {
    LimitsConfig::default()
}

#[tokio::test]
async fn a_panic_ends_the_attempt_that_it_happens_in_and_no_other() {
    let bench = Bench::new(
        vec![("panics", Arc::new(Panics), vec![]), ("works", Arc::new(Says(answer("Hello"))), vec![])],
        limits(),
    )
    .await;
    let (bad, good) = (bench.submit("panics").await, bench.submit("works").await);
    futures::future::join_all(bench.claim().await.into_iter().map(|leased| bench.work(leased))).await;
    assert_eq!(bench.now(&good).await.status, RunStatus::Succeeded);
    let broken = bench.now(&bad).await;
    assert_eq!((broken.status, broken.worker_id), (RunStatus::Pending, None), "it is handed back");
    assert!(bench.holdings.is_empty(), "its slot is free");
}

#[tokio::test]
async fn what_was_sent_before_a_stop_is_followed_and_what_only_reads_is_dropped() {
    let (once, idempotent, read) =
        (Slow::new(Effect::Once), Slow::new(Effect::Idempotent), Slow::new(Effect::Read));
    let tools: Vec<Arc<dyn Tool>> = vec![once.clone(), idempotent.clone(), read.clone()];
    let model = Says(calls(&["once", "idempotent", "read"]));
    let bench = Bench::new(vec![("a", Arc::new(model), tools)], limits()).await;
    let run = bench.submit("a").await;
    let leased = bench.claim().await.remove(0);
    let orders = leased.orders.clone();
    let stop = async {
        for tool in [&once, &idempotent, &read] {
            timeout(PATIENCE, tool.asked.notified()).await.unwrap();
        }
        let wish = StopRequest { run_id: run.id, reason: Reason::Stop, requested_at: 1 };
        orders.request_stop(wish);
    };
    tokio::join!(bench.work(leased), stop);
    assert_eq!(bench.now(&run).await.reason, Some(Reason::Stop), "it did not wait for the tools");
    for tool in [&once, &idempotent, &read] {
        tool.answer.notify_one();
    }
    bench.attempts.late.tasks.close();
    timeout(PATIENCE, bench.attempts.late.tasks.wait()).await.unwrap();
    let calls = bench.calls(&run).await;
    let states: Vec<_> = calls.iter().map(|call| call.state).collect();
    assert_eq!(states, [CallState::Unknown, CallState::Cancelled, CallState::Cancelled]);
    let late: Vec<_> = calls.iter().map(|call| call.late.as_ref()).collect();
    let at_last = |late: &LateResult| late.output.as_deref() == Some("at last");
    assert!(late[0].is_some_and(at_last) && late[1].is_some_and(at_last) && late[2].is_none(), "{late:?}");
}

/// The calls of a run that is interrupted while they wait at the door for a lease in doubt; and how often they were sent,
/// then or later.
async fn interrupted_before_sending(interrupt: impl FnOnce(&Bench, &Orders)) -> (Run, Vec<ToolCall>, usize) {
    let tools = [Slow::new(Effect::Once), Slow::new(Effect::Idempotent), Slow::new(Effect::Read)];
    let holdings = Arc::new(Holdings::default());
    let model = Doubts(calls(&["once", "idempotent", "read"]), Arc::clone(&holdings));
    let shared = tools.iter().map(|tool| tool.clone() as Arc<dyn Tool>).collect();
    let bench = Bench::holding(holdings, vec![("a", Arc::new(model), shared)], limits()).await;
    let run = bench.submit("a").await;
    let leased = bench.claim().await.remove(0);
    let orders = leased.orders.clone();
    let stop = async {
        while !bench.calls(&run).await.iter().any(|call| call.state == CallState::Dispatched) {
            sleep(Duration::from_millis(1)).await;
        }
        interrupt(&bench, &orders);
    };
    tokio::join!(bench.work(leased), stop);
    bench.holdings.confirm(Moment::now() + Duration::from_hours(1));
    for tool in &tools {
        tool.answer.notify_one();
    }
    bench.attempts.late.tasks.close();
    timeout(PATIENCE, bench.attempts.late.tasks.wait()).await.unwrap();
    let sent = tools.iter().map(|tool| tool.times.load(Ordering::SeqCst)).sum();
    (bench.now(&run).await, bench.calls(&run).await, sent)
}

#[tokio::test]
async fn what_had_not_left_when_the_run_was_stopped_never_leaves_and_is_known_not_to_have() {
    let (run, calls, sent) = interrupted_before_sending(|_, orders| {
        orders.request_stop(StopRequest { run_id: RunId::generate(), reason: Reason::Stop, requested_at: 1 });
    })
    .await;
    assert_eq!((run.reason, sent), (Some(Reason::Stop), 0));
    for call in calls {
        assert_eq!((call.state, call.late.is_none()), (CallState::Cancelled, true));
        let told = "This call was cancelled: the run ended before this call was sent.";
        assert_eq!(call.result_for_model(), told);
    }
}

#[tokio::test]
async fn what_had_not_left_when_its_worker_shut_down_is_not_unknown_to_the_next_one() {
    let (run, calls, sent) = interrupted_before_sending(|bench, _| bench.attempts.hard_stop.cancel()).await;
    assert_eq!((run.status, sent), (RunStatus::Pending, 0));
    let states: Vec<_> = calls.iter().map(|call| call.state).collect();
    assert_eq!(states, [CallState::Failed, CallState::Dispatched, CallState::Dispatched]);
    assert!(calls[0].result_for_model().contains("before this call was sent"), "{:?}", calls[0]);
}

#[tokio::test]
async fn late_answers_are_given_up_when_the_drain_time_is_over() {
    let once = Slow::new(Effect::Once);
    let model = Says(calls(&["once"]));
    let bench = Bench::new(vec![("a", Arc::new(model), vec![once.clone()])], limits()).await;
    let run = bench.submit("a").await;
    let leased = bench.claim().await.remove(0);
    let orders = leased.orders.clone();
    let stop = async {
        timeout(PATIENCE, once.asked.notified()).await.unwrap();
        orders.request_stop(StopRequest { run_id: run.id, reason: Reason::Stop, requested_at: 1 });
    };
    tokio::join!(bench.work(leased), stop);
    let late = &bench.attempts.late;
    late.tasks.close();
    assert!(timeout(Duration::from_millis(50), late.tasks.wait()).await.is_err(), "a drain waits");
    late.hard_stop.cancel();
    timeout(PATIENCE, late.tasks.wait()).await.unwrap();
    assert!(bench.calls(&run).await[0].late.is_none());
}

#[tokio::test]
async fn a_run_whose_log_refuses_a_result_ends_behind_the_rest_and_its_other_calls_are_followed() {
    let (once, idempotent) = (Slow::new(Effect::Once), Slow::new(Effect::Idempotent));
    let model = Says(calls(&["once", "idempotent"]));
    let bench =
        Bench::new(vec![("a", Arc::new(model), vec![once.clone(), idempotent.clone()])], limits()).await;
    bench.refuse("at last").await;
    let run = bench.submit("a").await;
    let leased = bench.claim().await.remove(0);
    let answer = async {
        for tool in [&once, &idempotent] {
            timeout(PATIENCE, tool.asked.notified()).await.unwrap();
        }
        idempotent.answer.notify_one();
    };
    tokio::join!(bench.work(leased), answer);
    let ended = bench.now(&run).await;
    assert_eq!((ended.reason, ended.step_count), (Some(Reason::Internal), 1));
    once.answer.notify_one();
    bench.attempts.late.tasks.close();
    timeout(PATIENCE, bench.attempts.late.tasks.wait()).await.unwrap();
    let calls = bench.calls(&run).await;
    let states: Vec<_> = calls.iter().map(|call| call.state).collect();
    assert_eq!(states, [CallState::Unknown, CallState::Cancelled], "the ledger says what the log does");
    let late: Vec<_> = calls.iter().map(|call| call.late.is_some()).collect();
    assert_eq!(late, [true, false]);
}

#[tokio::test]
async fn a_run_whose_log_refuses_a_step_ends_without_it() {
    let usage = ModelEvent::Usage(Usage { output_tokens: 1, ..Usage::default() });
    let model = Says(vec![ModelEvent::Text("Hello".into()), usage, ModelEvent::Finish(FinishReason::Stop)]);
    let bench = Bench::new(vec![("a", Arc::new(model), vec![])], limits()).await;
    bench.refuse("\"finishReason\":\"stop\"").await;
    let run = bench.submit("a").await;
    bench.work(bench.claim().await.remove(0)).await;
    let record = bench.store.records(bench.workspace, &[run.id]).await.unwrap().remove(0);
    let end = record.tail.last().and_then(|segment| segment.events.last()?.data());
    let Some(EventData::RunFinished { reason, usage, step_count, .. }) = end else { panic!("{record:?}") };
    assert_eq!((reason, usage, step_count), (Reason::Internal, Usage::default(), 0));
}

#[tokio::test]
async fn each_limit_says_that_it_was_the_one() {
    let many = vec!["read"; 4];
    let endless = answer(&"I will try again. ".repeat(500));
    let limits = LimitsConfig { max_calls_per_step: 3, ..limits() };
    let agents: Vec<Parts> = vec![
        ("calls", Arc::new(Says(calls(&many))), vec![Slow::new(Effect::Read)]),
        ("loops", Arc::new(Says(endless)), vec![]),
        ("repeats", Arc::new(Says(calls(&["nobody"]))), vec![]),
    ];
    let bench = Bench::new(agents, limits).await;
    for (agent, reason, words, steps) in [
        ("calls", Reason::CallLimit, "more than 3 tool calls", 0),
        ("loops", Reason::Loop, "again", 1),
        ("repeats", Reason::Loop, "`nobody` 10 times in a row", 10),
    ] {
        let run = bench.submit(agent).await;
        bench.work(bench.claim().await.remove(0)).await;
        let ended = bench.now(&run).await;
        assert_eq!((ended.status, ended.reason, ended.step_count), (RunStatus::Failed, Some(reason), steps));
        let told = ended.error.unwrap().message;
        assert!(told.contains(words), "{agent}: {told}");
    }
}
