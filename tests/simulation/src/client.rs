//! The clients: what they ask for, again if they have to, and what they see.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use longhaul_shared::{
    admission::{self, Input, LimitOverrides, Submission, SubmitError},
    bus::Bus,
    domain::{
        ids::{ChatId, RunId, Seq},
        run::{Run, Trigger},
    },
    store::{
        IfBusy, KeyName, KeyStop, LogCursor, StoreError,
        admission::{IdempotencyKey, StartAt},
        memory::MemoryStore,
    },
    tail::Tails,
};
use serde_json::Value;
use tokio::time::sleep;

use crate::{
    database::Connection,
    world::{World, with},
};

/// What clients ask for after the faults has names from here on.
pub const FIRST_EPILOGUE: u32 = 1_000_000;

pub const AGENT: &str = "sim";
const CALLER: &str = "client";
const ROUTE: &str = "runs";

/// Something that a client wants done.
pub struct Op {
    /// The event that it comes from.
    pub id: u32,
    pub want: Want,
    pub state: Progress,
    /// The run that the client was told.
    pub told: Option<RunId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nobody works on it: it is new, or the process that did is gone.
    Open,
    UnderWay,
    Done,
}

#[derive(Clone, Debug)]
pub enum Want {
    Submit(Message),
    Stop { run: RunId },
    StopKey { key: u32 },
    Delete { chat: ChatId },
    Watch { run: RunId, after: Seq, seen: Vec<(Seq, String)>, from: Seq },
}

#[derive(Clone, Debug)]
pub struct Message {
    pub chat: Option<ChatId>,
    pub key: Option<u32>,
    pub message_id: Option<u32>,
    pub if_busy: IfBusy,
    pub delay: Option<u64>,
}

impl Op {
    /// Whether a client that got no answer may simply ask again.
    pub fn is_repeatable(&self) -> bool {
        match &self.want {
            Want::Submit(message) => {
                message.key.or(message.message_id).is_some() || self.id >= FIRST_EPILOGUE
            }
            Want::Stop { .. } | Want::StopKey { .. } | Want::Delete { .. } | Want::Watch { .. } => true,
        }
    }

    /// Repeats of one message have one origin.
    pub fn origin(&self) -> u32 {
        match &self.want {
            Want::Submit(message) => message.key.or(message.message_id).unwrap_or(self.id),
            _ => self.id,
        }
    }
}

/// The message that a run answers.
pub fn op_of(store: &MemoryStore, run_id: RunId) -> u32 {
    let tag = store.rows(|rows| rows.runs.get(&run_id).and_then(|row| row.run.tags.first().cloned()));
    tag.and_then(|tag| tag.strip_prefix("op").and_then(|number| number.parse().ok())).unwrap_or(u32::MAX)
}

/// The part of an API process that clients talk to.
pub struct Api {
    pub store: Arc<Connection>,
    pub bus: Arc<dyn Bus>,
    pub agents: admission::Agents,
    pub tails: Tails,
}

impl Api {
    /// Does what the client wants, for as long as this process lives.
    pub async fn perform(self: Arc<Self>, place: usize) {
        let want = with(|world| world.ops[place].want.clone());
        match want {
            Want::Submit(message) => self.submit(place, message).await,
            Want::Stop { run } => self.stop(place, run).await,
            Want::StopKey { key } => self.stop_by_key(place, key).await,
            Want::Delete { chat } => self.delete(place, chat).await,
            Want::Watch { run, after, .. } => self.watch(place, run, after).await,
        }
    }

    async fn submit(&self, place: usize, message: Message) {
        let (workspace_id, origin, is_repeatable) = with(|world| {
            let op = &world.ops[place];
            (world.workspace, op.origin(), op.is_repeatable())
        });
        loop {
            let submission = Submission {
                replaces: false,
                renderer: 1,
                request: None,
                workspace_id,
                chat_id: message.chat,
                client_chat_id: None,
                client_message_id: message.message_id.map(|id| format!("message {id}")),
                agent: Some(AGENT.to_owned()),
                input: Input::Text(format!("message {origin}")),
                expect_run_id: None,
                if_busy: message.if_busy,
                start: message.delay.map(|delay| StartAt::In(delay as i64)),
                trigger: Trigger::User,
                created_by: None,
                limits: LimitOverrides { tool_timeout_ms: Some(200), ..LimitOverrides::default() },
                tags: vec![format!("op{origin}")],
                metadata: Value::Null,
                traceparent: None,
                idempotency: message.key.map(|key| IdempotencyKey {
                    key: name_of_key(key),
                    caller: CALLER.to_owned(),
                    route: ROUTE,
                    fingerprint: key.to_be_bytes().to_vec(),
                }),
            };
            let answer = admission::submit(&*self.store, &*self.bus, &self.agents, submission).await;
            let is_done = match answer {
                Ok(admitted) => with(|world| {
                    world.coverage.submissions_repeated += u64::from(admitted.replayed);
                    world.coverage.submissions_over_at_once += u64::from(admitted.status.is_terminal());
                    world.coverage.submissions_queued += u64::from(admitted.position.is_some());
                    world.coverage.submissions_scheduled += u64::from(admitted.run.run_at.is_some());
                    let name = world.name_of(admitted.run.id);
                    world.note(|| format!("op{origin} is {name}, repeated: {}", admitted.replayed));
                    world.ops[place].told = Some(admitted.run.id);
                    true
                }),
                Err(SubmitError::RunAlreadyActive { .. }) => with(|world| {
                    world.coverage.submissions_refused_busy += 1;
                    world.note(|| format!("op{origin} is refused: busy"));
                    origin < FIRST_EPILOGUE
                }),
                Err(SubmitError::ChatNotFound) => with(|world| {
                    world.coverage.chats_deleted_meanwhile += 1;
                    true
                }),
                Err(SubmitError::BeginFailed(error)) if error.is_transient() => with(|world| {
                    world.coverage.submissions_unanswered += 1;
                    !is_repeatable
                }),
                Err(SubmitError::KeyInFlight) => false,
                Err(SubmitError::SupersedeTimeout { .. }) => !is_repeatable,
                Err(error) => with(|world| {
                    world.violate(format!("op{origin} is refused: {error}"));
                    true
                }),
            };
            if is_done {
                return finish(place);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop(&self, place: usize, run: RunId) {
        let workspace = with(|world| world.workspace);
        loop {
            match admission::stop(&*self.store, &*self.bus, workspace, run).await {
                Ok(run) => {
                    with(|world| world.stop_is_answered(run.run()));
                    return finish(place);
                }
                Err(error) if error.is_transient() => sleep(Duration::from_millis(20)).await,
                Err(error) => {
                    with(|world| world.violate(format!("a stop is refused: {error}")));
                    return finish(place);
                }
            }
        }
    }

    async fn stop_by_key(&self, place: usize, key: u32) {
        let (workspace, name) = (with(|world| world.workspace), name_of_key(key));
        let key_name = KeyName { key: &name, caller: CALLER, route: ROUTE };
        loop {
            match admission::stop_by_key(&*self.store, &*self.bus, workspace, key_name).await {
                Ok(KeyStop::Known(outcome)) => {
                    with(|world| {
                        world.coverage.stops_by_key_known += 1;
                        world.stop_is_answered(outcome.run());
                    });
                    return finish(place);
                }
                Ok(KeyStop::Noted { .. }) => {
                    with(|world| {
                        world.coverage.stops_by_key_noted += 1;
                        world.note(|| format!("the stop of op{key} is noted"));
                        world.noted.push(key);
                    });
                    return finish(place);
                }
                Err(error) if error.is_transient() => sleep(Duration::from_millis(20)).await,
                Err(error) => {
                    with(|world| world.violate(format!("a stop by key is refused: {error}")));
                    return finish(place);
                }
            }
        }
    }

    async fn delete(&self, place: usize, chat: ChatId) {
        let workspace = with(|world| world.workspace);
        loop {
            match admission::delete_chat(&*self.store, &*self.bus, workspace, chat).await {
                Ok(()) | Err(StoreError::NotFound) => return finish(place),
                Err(error) if error.is_transient() => sleep(Duration::from_millis(20)).await,
                Err(error) => {
                    with(|world| world.violate(format!("a deletion is refused: {error}")));
                    return finish(place);
                }
            }
        }
    }

    async fn watch(&self, place: usize, run_id: RunId, after: Seq) {
        let workspace_id = with(|world| {
            world.coverage.tails_resumed += u64::from(after > 0);
            world.workspace
        });
        let mut after = after;
        loop {
            let mut tail = Box::pin(self.tails.follow(LogCursor { workspace_id, run_id, after }));
            while let Some(slice) = tail.next().await {
                let Ok(slice) = slice else {
                    with(|world| world.coverage.tails_reset += 1);
                    break;
                };
                after = slice.last();
                let events: Vec<_> = slice.events().map(|(seq, event)| (seq, event.kind.clone())).collect();
                let is_end = slice.is_end();
                with(|world| world.see(place, run_id, events));
                if is_end {
                    // Nothing may come behind the end, and the stream must end by itself.
                    if tail.next().await.is_some() {
                        with(|world| world.violate("a tail goes on behind the end"));
                    }
                    return finish(place);
                }
            }
            with(|world| {
                if !matches!(&world.ops[place].want, Want::Watch { after: seen, .. } if *seen == after) {
                    world.violate("a tail lost its place");
                }
            });
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn finish(place: usize) {
    with(|world| {
        world.activity += 1;
        world.ops[place].state = Progress::Done;
    });
}

fn name_of_key(key: u32) -> String {
    format!("key {key}")
}

impl World {
    fn stop_is_answered(&mut self, run: &Run) {
        let name = self.name_of(run.id);
        self.note(|| format!("the stop of {name} is answered: {}", run.status));
        if !run.status.is_terminal() {
            self.coverage.stops_requested += 1;
            if run.stop_requested_at.is_none() {
                self.violate(format!("the stop of {name} is neither done nor requested"));
            }
        } else if run.started_at.is_none() {
            self.coverage.stops_of_idle_runs += 1;
        } else {
            self.coverage.stops_too_late += 1;
        }
    }

    /// A watcher sees these events. They must be in the log already, for what is seen can never be taken back.
    fn see(&mut self, place: usize, run_id: RunId, events: Vec<(Seq, String)>) {
        self.activity += 1;
        let last = self.store.rows(|rows| rows.last_seq(run_id));
        let Want::Watch { after, seen, .. } = &mut self.ops[place].want else { return };
        let mut why = None;
        for (seq, kind) in events {
            if seq != *after + 1 {
                why = Some(format!("sees {seq} behind {after}"));
            }
            if seq > last {
                why = Some(format!("sees {seq}, which is not in the log"));
            }
            *after = seq;
            seen.push((seq, kind));
        }
        if let Some(why) = why {
            let name = self.name_of(run_id);
            self.violate(format!("a watcher of {name} {why}"));
        }
    }
}
