//! One round over what dead and deaf holders have left behind, on the store in memory.

use longhaul_shared::{
    bus::in_process::InProcessBus,
    domain::{
        ids::{RunId, WorkerId, WorkspaceId},
        run::{Limits, Trigger},
        transition::RunStatus,
    },
    store::{IfBusy, NewRun, NewWorker, STOP_GRACE_MS, memory::MemoryStore},
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use serde_json::Value;

use super::*;

const QUEUE: &str = "default";

struct World {
    memory: MemoryStore,
    store: SharedStore,
    workspace: WorkspaceId,
    recorder: PrometheusRecorder,
}

impl World {
    async fn new() -> Self {
        let memory = MemoryStore::new(|| 1_000_000);
        let store: SharedStore = Arc::new(memory.clone());
        let workspace = store.ensure_workspace("default").await.unwrap();
        Self { memory, store, workspace, recorder: PrometheusBuilder::new().build_recorder() }
    }

    /// A run in the hands of a worker of its own.
    async fn held(&self) -> (RunId, WorkerId) {
        let new = NewRun {
            workspace_id: self.workspace,
            chat_id: None,
            client_chat_id: None,
            client_message_id: None,
            replaces: false,
            agent: "helper".to_owned(),
            input: vec![],
            if_busy: IfBusy::Reject,
            start: None,
            trigger: Trigger::Api,
            created_by: None,
            limits: Limits::default(),
            tags: vec![],
            metadata: Value::Null,
            traceparent: None,
            renderer: 1,
            queue: QUEUE.to_owned(),
            priority: 0,
            idempotency: None,
            request: None,
        };
        let run = self.store.admit(new).await.unwrap().run.id;
        let id = WorkerId::generate();
        let (host, version) = ("test".to_owned(), "0".to_owned());
        let worker =
            NewWorker { id, host, version, slots: 1, lease_ms: 60_000, renewal_ms: 60_000, presence: None };
        self.store.register_worker(&worker).await.unwrap();
        let claims = self.store.claim(id, &[QUEUE.to_owned()], 9).await.unwrap();
        assert_eq!(claims.iter().map(|(claim, _)| claim.run.id).collect::<Vec<_>>(), [run]);
        (run, id)
    }

    /// One whose worker is dead.
    async fn orphan(&self) -> RunId {
        let (run, worker) = self.held().await;
        self.store.retire_worker(worker).await.unwrap();
        run
    }

    /// One whose worker lives and does not follow its stop.
    async fn unfollowed(&self) -> RunId {
        let (run, _) = self.held().await;
        self.store.stop_run(self.workspace, run).await.unwrap();
        self.memory.rows(|rows| {
            let row = rows.runs.get_mut(&run).unwrap();
            row.run.stop_requested_at = row.run.stop_requested_at.map(|at| at - STOP_GRACE_MS);
        });
        run
    }

    /// From now on the run cannot end: what its end would close is not there.
    fn spoil(&self, run: RunId) {
        self.memory.rows(|rows| {
            rows.messages.remove(&rows.runs[&run].run.assistant_message_id);
            rows.jobs.get_mut(&run).unwrap().crashes = MAX_CRASHES;
        });
    }

    async fn round(&self) {
        let _counting = ::metrics::set_default_local_recorder(&self.recorder);
        round(&self.store, &InProcessBus::new()).await;
    }

    async fn status(&self, run: RunId) -> RunStatus {
        self.store.run(self.workspace, run).await.unwrap().status
    }

    fn assert_counted(&self, line: &str) {
        let text = self.recorder.handle().render();
        assert!(text.lines().any(|counted| counted == line), "no {line:?} in {text}");
    }
}

#[tokio::test]
async fn a_round_counts_what_it_takes_over_apart_from_the_stops_that_it_carries_out() {
    let world = World::new().await;
    let orphans = [world.orphan().await, world.orphan().await, world.orphan().await];
    let unfollowed = [world.unfollowed().await, world.unfollowed().await];
    let (held, _) = world.held().await;
    world.round().await;
    for orphan in orphans {
        assert_eq!(world.status(orphan).await, RunStatus::Pending);
    }
    for unfollowed in unfollowed {
        assert_eq!(world.status(unfollowed).await, RunStatus::Aborted);
    }
    assert_eq!(world.status(held).await, RunStatus::Running);
    for _ in 0..2 {
        world.assert_counted("longhaul_takeovers_total{proof=\"lease\"} 3");
        world.assert_counted("longhaul_stops_carried_out_total 2");
        // Another one finds nothing to count.
        world.round().await;
    }
}

#[tokio::test]
async fn an_orphan_that_cannot_be_taken_keeps_no_stop_from_being_carried_out() {
    let world = World::new().await;
    let (orphan, unfollowed) = (world.orphan().await, world.unfollowed().await);
    world.spoil(orphan);
    world.store.reap(MAX_CRASHES, BATCH).await.unwrap_err();
    world.round().await;
    assert_eq!(world.status(unfollowed).await, RunStatus::Aborted);
    world.assert_counted("longhaul_stops_carried_out_total 1");
}

#[tokio::test]
async fn a_stop_that_cannot_be_carried_out_keeps_no_orphan_waiting() {
    let world = World::new().await;
    let (orphan, unfollowed) = (world.orphan().await, world.unfollowed().await);
    world.spoil(unfollowed);
    world.store.carry_out_stops(BATCH).await.unwrap_err();
    world.round().await;
    assert_eq!(world.status(orphan).await, RunStatus::Pending);
    world.assert_counted("longhaul_takeovers_total{proof=\"lease\"} 1");
}
