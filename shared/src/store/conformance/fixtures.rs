//! What many tests begin with.

use serde_json::json;

use super::harness::Database;
use crate::{
    domain::{
        chat::Chat,
        event::{Event, EventData, Segment},
        ids::{ChatId, Millis, WorkerId, WorkspaceId},
        message::Part,
        run::{Claim, Ending, Limits, Run, Trigger, Usage},
        step::{FinishReason, OutputPart, Step},
        tool::{CallState, Effect, ToolCall},
    },
    store::{
        Admitted, ApiKey, Append, IfBusy, KeyRole, LogCursor, NewChat, NewKey, NewRun, NewWorker, Page,
        StoreError,
    },
};

impl Database {
    /// A workspace of that name.
    pub(super) async fn workspace(&self, name: &str) -> WorkspaceId {
        self.store.ensure_workspace(name).await.unwrap()
    }

    /// A chat with nothing in it.
    pub(super) async fn chat(&self, workspace: WorkspaceId, title: &str) -> Chat {
        let chat = NewChat {
            title: Some(title.to_owned()),
            agent: Some("helper".to_owned()),
            context_ref: None,
            metadata: json!({ "of": title }),
            created_by: Some("tester".to_owned()),
            imported: vec![],
        };
        self.store.create_chat(workspace, chat).await.unwrap()
    }

    /// An operator's key with that public part.
    pub(super) async fn key(&self, workspace: WorkspaceId, prefix: &str) -> ApiKey {
        let key = NewKey {
            role: KeyRole::Operator,
            digest: &[7; 32],
            last_four: "abcd",
            ..new_key(workspace, prefix, None)
        };
        self.store.create_key(key).await.unwrap()
    }

    /// A run in that chat, behind the others if it is busy.
    pub(super) async fn submit(&self, workspace: WorkspaceId, chat: ChatId) -> Admitted {
        self.store.admit(new_run(workspace, Some(chat))).await.unwrap()
    }

    /// A worker with a lease of a minute.
    pub(super) async fn worker(&self, slots: u32) -> WorkerId {
        let id = WorkerId::generate();
        let worker = NewWorker {
            id,
            host: "test".to_owned(),
            version: "0".to_owned(),
            slots,
            lease_ms: 60_000,
            renewal_ms: 60_000,
            presence: None,
        };
        self.store.register_worker(&worker).await.unwrap();
        id
    }

    /// A run in a chat of its own, claimed by a worker of its own.
    pub(super) async fn held_run(&self, workspace: WorkspaceId) -> Claim {
        let run = self.store.admit(new_run(workspace, None)).await.unwrap().run;
        let claim = self.claim(self.worker(1).await).await;
        assert_eq!(claim.run.id, run.id, "nothing else was there to claim");
        claim
    }

    /// The worker's lease runs out now.
    pub(super) async fn expire(&self, worker: WorkerId) {
        let sql = format!("update workers set expires_at = 1 where id = {}", self.id(worker.0));
        self.edit(&sql, |rows| rows.workers.get_mut(&worker).unwrap().expires_at = 1).await;
    }

    /// What waits for later is due now.
    pub(super) async fn make_due(&self) {
        self.edit("update jobs set run_at = 0", |rows| rows.jobs.values_mut().for_each(|job| job.run_at = 0))
            .await;
    }

    /// The same, and no crash counts.
    pub(super) async fn forgive(&self) {
        self.edit("update jobs set run_at = 0, crashes = 0", |rows| {
            rows.jobs.values_mut().for_each(|job| (job.run_at, job.crashes) = (0, 0));
        })
        .await;
    }

    /// The run as it is now.
    pub(super) async fn now(&self, run: &Run) -> Run {
        self.store.run(run.workspace_id, run.id).await.unwrap()
    }

    /// The kinds of the run's events, in order.
    pub(super) async fn kinds(&self, run: &Run) -> Vec<String> {
        let log = self.store.read_log(cursor(run, 0), 1_000).await.unwrap();
        log.into_iter().flat_map(|segment| segment.events).map(|event| event.kind).collect()
    }

    /// Commits one append that must be refused for a lost lease.
    pub(super) async fn refused(&self, append: Append) {
        let result = self.store.commit(&[append]).await.remove(0);
        assert!(matches!(result, Err(StoreError::LeaseLost)), "{result:?}");
    }

    /// The one job that is there to claim, claimed.
    pub(super) async fn claim(&self, worker: WorkerId) -> Claim {
        let mut claims = self.store.claim(worker, &[QUEUE.to_owned()], 1).await.unwrap();
        assert_eq!(claims.len(), 1, "one job was to be claimed");
        claims.remove(0).0
    }

    /// Commits one append that must succeed.
    pub(super) async fn commit(&self, append: Append) -> Segment {
        self.store.commit(&[append]).await.remove(0).unwrap().segment
    }
}

/// The queue of every run here.
pub(super) const QUEUE: &str = "default";

/// A viewer's key.
pub(super) fn new_key(workspace: WorkspaceId, prefix: &str, expires_at: Option<Millis>) -> NewKey<'_> {
    NewKey {
        workspace_id: workspace,
        name: "a key",
        role: KeyRole::Viewer,
        prefix,
        digest: &[1; 32],
        last_four: "wxyz",
        expires_at,
        scope: None,
    }
}

/// A submission with nothing special about it, to be queued if the chat is busy.
pub(super) fn new_run(workspace: WorkspaceId, chat: Option<ChatId>) -> NewRun {
    NewRun {
        workspace_id: workspace,
        chat_id: chat,
        client_chat_id: None,
        client_message_id: None,
        replaces: false,
        agent: "helper".to_owned(),
        input: vec![Part::Text { text: "hello".to_owned() }],
        if_busy: IfBusy::Enqueue,
        start: None,
        trigger: Trigger::User,
        created_by: Some("tester".to_owned()),
        limits: Limits::default(),
        tags: vec![],
        metadata: json!({}),
        traceparent: None,
        renderer: 1,
        queue: QUEUE.to_owned(),
        priority: 0,
        idempotency: None,
        request: None,
    }
}

/// What the holder of that claim appends at `first_seq`: these events and nothing else.
pub(super) fn append(claim: &Claim, first_seq: i64, events: Vec<Event>) -> Append {
    Append {
        workspace_id: claim.run.workspace_id,
        chat_id: claim.run.chat_id,
        run_id: claim.run.id,
        assistant_message_id: claim.run.assistant_message_id,
        epoch: claim.epoch,
        first_seq,
        events,
        steps: vec![],
        calls: vec![],
        ending: None,
        stop_requested_at: None,
    }
}

/// The whole of that step in one append: two pieces of text and its end.
pub(super) fn saving(claim: &Claim, first_seq: i64, number: u32) -> Append {
    let mut append = append(claim, first_seq, deltas(number, 2));
    let usage = step(claim, number, 0, 0).usage;
    let finished = EventData::StepFinished { finish_reason: FinishReason::ToolCalls, usage, tool_calls: 0 };
    append.events.push(finished.of_step(number, 1));
    append.steps = vec![step(claim, number, first_seq, first_seq + 2)];
    append
}

/// The end of the run.
pub(super) fn finishing(claim: &Claim, first_seq: i64, ending: Ending) -> Append {
    let finished = EventData::RunFinished {
        status: ending.status(),
        reason: ending.reason,
        error: ending.error.clone(),
        usage: Usage::default(),
        step_count: 0,
    };
    Append { ending: Some(ending), ..append(claim, first_seq, vec![finished.of_run()]) }
}

/// So many pieces of text of that step.
pub(super) fn deltas(step: u32, count: usize) -> Vec<Event> {
    (0..count).map(|n| EventData::TextDelta { text: format!("{n} ") }.of_step(step, 1)).collect()
}

/// A step whose last event has the number `last_seq`.
pub(super) fn step(claim: &Claim, step: u32, first_seq: i64, last_seq: i64) -> Step {
    Step {
        run_id: claim.run.id,
        step,
        attempt: 1,
        epoch: claim.epoch,
        model: "a-model".to_owned(),
        output: vec![
            OutputPart::Reasoning { text: "hm".to_owned() },
            OutputPart::Text { text: format!("text of step {step}") },
        ],
        finish_reason: FinishReason::ToolCalls,
        usage: Usage { input_tokens: 1, output_tokens: 2, reasoning_tokens: 3, cached_input_tokens: 4 },
        first_seq,
        last_seq,
        started_at: claim.now,
        finished_at: claim.now,
    }
}

/// A call of that step which nobody has sent yet.
pub(super) fn planned(claim: &Claim, step: u32, call: u32) -> ToolCall {
    let id = format!("call_{step}_{call}");
    ToolCall {
        run_id: claim.run.id,
        step,
        call,
        call_id: id.clone(),
        name: "clock".to_owned(),
        arguments: "{\"zone\":\"UTC\"}".to_owned(),
        effect: Effect::Read,
        state: CallState::Planned,
        idempotency_key: id,
        epoch: claim.epoch,
        output: None,
        error: None,
        planned_at: None,
        dispatched_at: None,
        settled_at: None,
        late: None,
    }
}

/// The place behind that event of the run's log.
pub(super) fn cursor(run: &Run, after: i64) -> LogCursor {
    LogCursor { workspace_id: run.workspace_id, run_id: run.id, after }
}

/// First and last numbers of the segments.
pub(super) fn spans(segments: &[Segment]) -> Vec<(i64, i64)> {
    segments.iter().map(|segment| (segment.first, segment.last)).collect()
}

/// The first page, of that size.
pub(super) fn first<K>(limit: u32) -> Page<K> {
    Page { limit, after: None }
}

/// The page behind `after`, of that size.
pub(super) fn behind<K>(after: K, limit: u32) -> Page<K> {
    Page { limit, after: Some(after) }
}
