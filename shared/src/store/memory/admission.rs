//! The one transaction by which a run comes into being, and what a repeat of it is answered.

use async_trait::async_trait;

use super::{
    MemoryStore,
    state::{Answer, ChatRow, KeyRow, RunRow, State},
};
use crate::{
    domain::{
        event::{Event, EventData},
        ids::{ChatId, MessageId, Millis, RunId, WorkspaceId},
        message::{Message, Role},
        run::{Ending, Run, Usage},
        settle::Stop,
        transition::{MessageStatus, RunStatus},
    },
    store::{AdmitError, Admitted, IfBusy, NewChat, NewRun, StoreError, admission::StartAt},
};

pub(super) const IDEMPOTENCY_KEPT_MS: Millis = 24 * 3_600_000;

type Admission = std::result::Result<Admitted, AdmitError>;

#[async_trait]
impl crate::store::Admission for MemoryStore {
    async fn admit(&self, new: NewRun) -> Admission {
        self.transact(|state| state.admit(new))
    }
}

impl State {
    fn admit(&mut self, mut new: NewRun) -> Admission {
        let key = new
            .idempotency
            .as_ref()
            .map(|key| (new.workspace_id, key.caller.clone(), key.route.to_owned(), key.key.clone()));
        let mut noted = None;
        if let (Some(place), Some(key)) = (&key, &new.idempotency)
            && let Some(known) = self.idempotency.get(place).filter(|known| known.expires_at > self.now)
        {
            match known.answer {
                None => noted = known.stop_requested_at,
                Some(_) if known.fingerprint != key.fingerprint => return Err(AdmitError::KeyReused),
                Some(answer) => return self.replayed(new.workspace_id, answer),
            }
        }
        if let Some(name) = &new.client_chat_id {
            new.chat_id = new.chat_id.or(self.chat_named(new.workspace_id, name));
        }
        let mut replaces_turn = None;
        if let Some(chat_id) = new.chat_id {
            self.live_chat(new.workspace_id, chat_id).map_err(|_| AdmitError::ChatNotFound)?;
            if let Some(client_id) = new.client_message_id.clone() {
                if new.replaces {
                    replaces_turn = self.release_name(chat_id, &client_id);
                }
                match self.repeated_message(&new, chat_id, &client_id) {
                    Ok(Some(admitted)) => return Ok(admitted),
                    Err(AdmitError::MessageIdReused) if new.replaces => {
                        return Err(AdmitError::RunAlreadyActive {
                            active_run_id: self.slot_holder(chat_id),
                        });
                    }
                    answer => answer.map(drop)?,
                }
            }
        }
        let run_at = match new.start {
            None => None,
            Some(StartAt::At(at)) => Some(at),
            Some(StartAt::In(delay)) => Some(self.now.saturating_add(delay)),
        }
        .filter(|at| *at > self.now);
        let slot_holder = new.chat_id.and_then(|chat_id| self.slot_holder(chat_id));
        let (status, position) = match (run_at, slot_holder, new.if_busy) {
            // It ends before it could want the slot.
            _ if noted.is_some() => (RunStatus::Queued, None),
            (Some(_), ..) => (RunStatus::Scheduled, None),
            (None, None, _) => (RunStatus::Pending, None),
            (None, Some(_), IfBusy::Reject | IfBusy::Interrupt) => {
                return Err(AdmitError::RunAlreadyActive { active_run_id: slot_holder });
            }
            (None, Some(_), IfBusy::Enqueue) => {
                let queued = new.chat_id.into_iter().flat_map(|chat_id| self.runs_of(chat_id));
                let queued = queued.filter(|row| row.run.status == RunStatus::Queued).count();
                (RunStatus::Queued, Some(queued as u32 + 1))
            }
        };
        let (chat_id, turn) = self.take_turn(&new)?;
        let (run_id, queue) =
            (self.insert_run(&new, (chat_id, turn, replaces_turn), status, run_at), new.queue);
        let event = EventData::RunQueued { status, position, run_at };
        let mut segments = vec![self.append_one(run_id, 0, &event)];
        if status == RunStatus::Pending {
            self.insert_job(run_id, queue.clone(), new.priority);
        }
        if let Some(requested_at) = noted {
            let stop = Stop { requested_at, is_delivered: false };
            let run = self.run(new.workspace_id, run_id)?;
            segments.push(self.end_run(&run, &Ending::stopped(), Some(stop), 0)?.segment);
        }
        let run = self.run(new.workspace_id, run_id)?;
        let status = run.status;
        if let (Some(place), Some(key)) = (key, new.idempotency) {
            let row = KeyRow {
                fingerprint: key.fingerprint,
                answer: Some(Answer { run_id, status, position }),
                stop_requested_at: noted,
                expires_at: self.now + IDEMPOTENCY_KEPT_MS,
            };
            self.idempotency.insert(place, row);
        }
        Ok(Admitted {
            message_id: new.client_message_id.unwrap_or_else(|| run.user_message_id.to_string()),
            assistant_message_id: run.assistant_message_id,
            status,
            position,
            replayed: false,
            segments,
            wake: (status == RunStatus::Pending).then_some(queue),
            run,
        })
    }

    /// The chat's next turn; of a new chat if the run brings its own.
    fn take_turn(&mut self, new: &NewRun) -> Result<(ChatId, i64), StoreError> {
        let chat_id = if let Some(chat_id) = new.chat_id {
            chat_id
        } else {
            let chat = NewChat {
                agent: Some(new.agent.clone()),
                created_by: new.created_by.clone(),
                ..NewChat::default()
            };
            let id = self.insert_chat(new.workspace_id, chat)?.id;
            if let Some(row) = self.chats.get_mut(&id) {
                row.chat.client_id.clone_from(&new.client_chat_id);
            }
            id
        };
        let now = self.now;
        let ChatRow { chat, last_turn, .. } = self.chats.get_mut(&chat_id).ok_or(StoreError::NotFound)?;
        *last_turn += 1;
        chat.updated_at = now;
        Ok((chat_id, *last_turn))
    }

    fn insert_run(
        &mut self,
        new: &NewRun,
        (chat_id, turn, replaces_turn): (ChatId, i64, Option<i64>),
        status: RunStatus,
        run_at: Option<Millis>,
    ) -> RunId {
        let run = Run {
            id: RunId::generate(),
            workspace_id: new.workspace_id,
            chat_id,
            turn,
            agent: new.agent.clone(),
            status,
            reason: None,
            trigger: new.trigger,
            created_by: new.created_by.clone(),
            user_message_id: MessageId::generate(),
            assistant_message_id: MessageId::generate(),
            limits: new.limits,
            usage: Usage::default(),
            step_count: 0,
            error: None,
            tags: new.tags.clone(),
            metadata: new.metadata.clone(),
            traceparent: new.traceparent.clone(),
            renderer: new.renderer,
            run_at,
            stop_requested_at: None,
            stop_reason: None,
            created_at: self.now,
            started_at: None,
            finished_at: None,
            attempts: 0,
            worker_id: None,
            last_seq: 0,
        };
        let question = Message {
            id: run.user_message_id,
            workspace_id: new.workspace_id,
            chat_id,
            turn,
            position: 0,
            role: Role::User,
            status: Some(MessageStatus::Completed),
            client_id: new.client_message_id.clone(),
            in_reply_to: None,
            replaces_turn,
            run_id: Some(run.id),
            parts: new.input.clone(),
            created_at: self.now,
            updated_at: self.now,
        };
        let answer = Message {
            id: run.assistant_message_id,
            position: 1,
            role: Role::Assistant,
            status: Some(MessageStatus::Streaming),
            client_id: None,
            in_reply_to: Some(run.user_message_id),
            replaces_turn: None,
            parts: vec![],
            ..question.clone()
        };
        self.messages.insert(question.id, question);
        self.messages.insert(answer.id, answer);
        let run_id = run.id;
        self.runs.insert(
            run_id,
            RunRow {
                run,
                queue: new.queue.clone(),
                priority: new.priority,
                request: new.request.clone(),
                is_deleted: false,
            },
        );
        run_id
    }

    /// Takes its name from a message whose run is over, so that another one may have it.
    fn release_name(&mut self, chat_id: ChatId, client_id: &str) -> Option<i64> {
        let runs = &self.runs;
        let is_over = |message: &Message| {
            let run = message.run_id.and_then(|run_id| runs.get(&run_id));
            run.is_some_and(|row| row.run.status.is_terminal())
        };
        let named = self.messages.values_mut().find(|message| {
            message.chat_id == chat_id
                && message.position == 0
                && (message.client_id.as_deref() == Some(client_id) || message.id.to_string() == client_id)
                && is_over(message)
        })?;
        named.client_id = None;
        Some(named.replaces_turn.unwrap_or(named.turn))
    }

    /// The run of a message that the client has sent before.
    fn repeated_message(
        &self,
        new: &NewRun,
        chat_id: ChatId,
        client_id: &str,
    ) -> std::result::Result<Option<Admitted>, AdmitError> {
        let known = self
            .messages
            .values()
            .find(|message| message.chat_id == chat_id && message.client_id.as_deref() == Some(client_id));
        let Some(known) = known else { return Ok(None) };
        let (true, Some(run_id)) = (known.parts == new.input, known.run_id) else {
            return Err(AdmitError::MessageIdReused);
        };
        let first = self.log.get(&run_id).and_then(|rows| rows.first()?.segment.events.first());
        let Some(EventData::RunQueued { status, position, .. }) = first.and_then(Event::data) else {
            return Err(AdmitError::Store(StoreError::Corrupt {
                table: "run_events",
                column: "events",
                id: run_id.to_string(),
                detail: "the first event is not `run.queued`".to_owned(),
            }));
        };
        let mut admitted = self.replayed(new.workspace_id, Answer { run_id, status, position })?;
        if admitted.run.stop_requested_at.is_some_and(|requested_at| requested_at <= admitted.run.created_at)
        {
            // Its stop was there before it: it was over when the first call was answered.
            (admitted.status, admitted.position) = (admitted.run.status, None);
        }
        Ok(Some(admitted))
    }

    fn replayed(&self, workspace: WorkspaceId, answer: Answer) -> Admission {
        let run = self.run(workspace, answer.run_id)?;
        let message = self.messages.get(&run.user_message_id).ok_or(StoreError::NotFound)?;
        Ok(Admitted {
            message_id: message.public_id(),
            assistant_message_id: run.assistant_message_id,
            run,
            status: answer.status,
            position: answer.position,
            replayed: true,
            segments: vec![],
            wake: None,
        })
    }
}
