//! The one transaction by which a run comes into being.
//!
//! The chat's row lock orders the submissions of a chat and gives out turns; whether the slot is free is decided by
//! the partial unique index alone, as the arbiter of `on conflict do nothing`.

use async_trait::async_trait;
use sqlx::{Executor, Transaction};
use uuid::Uuid;

use super::{
    super::insert_run::insert_run,
    Db, SqlStore,
    again::{again, lost_admission},
    idempotency::{KeyClaim, claim_key, keep_answer, release_name, repeated_message},
    rows::{self, get, run_columns, run_place},
    settle::end_run,
    to_its_end,
};
use crate::{
    domain::{
        event::{EventData, Segment},
        ids::{ChatId, MessageId, Millis, RunId, WorkspaceId},
        run::{Ending, Run, Usage},
        settle::Stop,
        transition::RunStatus,
    },
    failpoint::{Point, hit},
    store::{AdmitError, Admitted, IfBusy, NewRun, Result, StoreError, admission::StartAt},
};

/// The row of a new run, with everything that its transaction has found out.
pub(crate) struct RunRow<'a> {
    pub(crate) new: &'a NewRun,
    pub(crate) id: RunId,
    pub(crate) chat_id: ChatId,
    pub(crate) turn: i64,
    pub(crate) user_message_id: MessageId,
    pub(crate) assistant_message_id: MessageId,
    pub(crate) replaces_turn: Option<i64>,
    pub(crate) status: RunStatus,
    pub(crate) run_at: Option<Millis>,
    /// The segment with `run.queued`, as stored.
    pub(crate) events: String,
}

/// When the database made the run and its first event.
pub(crate) struct Inserted {
    pub(crate) created_at: Millis,
    pub(crate) event_at: Millis,
}

#[async_trait]
impl crate::store::Admission for SqlStore {
    async fn admit(&self, new: NewRun) -> std::result::Result<Admitted, AdmitError> {
        let store = self.clone();
        to_its_end(async move { again(|| store.admit_new(&new), lost_admission).await }).await
    }
}

impl SqlStore {
    async fn admit_new(&self, new: &NewRun) -> std::result::Result<Admitted, AdmitError> {
        let mut tx = self.begin().await?;
        let mut stop_requested_at = None;
        if let Some(key) = &new.idempotency {
            match claim_key(&mut tx, new, key).await? {
                KeyClaim::Answered(admitted) => return Ok(*admitted),
                KeyClaim::Taken { stop_requested_at: noted } => stop_requested_at = noted,
            }
        }
        let (chat_id, turn, now) = take_turn(&mut tx, new).await?;
        let mut replaces_turn = None;
        if let Some(client_id) = new.client_message_id.as_deref().filter(|_| turn > 1) {
            if new.replaces {
                replaces_turn = release_name(&mut tx, new, chat_id, client_id).await?;
            }
            match repeated_message(&mut tx, new, chat_id, client_id).await {
                Ok(Some(admitted)) => return Ok(admitted),
                // It is being answered in the words that it had.
                Err(AdmitError::MessageIdReused) if new.replaces => {
                    let active_run_id = slot_holder(&mut *tx, new.workspace_id, chat_id).await?;
                    return Err(AdmitError::RunAlreadyActive { active_run_id });
                }
                answer => answer.map(drop)?,
            }
        }

        let run_at = match new.start {
            None => None,
            Some(StartAt::At(at)) => Some(at),
            Some(StartAt::In(delay)) => Some(now.saturating_add(delay)),
        }
        .filter(|at| *at > now);
        let mut row = RunRow {
            new,
            id: RunId::generate(),
            chat_id,
            turn,
            user_message_id: MessageId::generate(),
            assistant_message_id: MessageId::generate(),
            replaces_turn,
            status: match (stop_requested_at, run_at) {
                // It ends before it could want the slot.
                (Some(_), _) => RunStatus::Queued,
                (None, Some(_)) => RunStatus::Scheduled,
                (None, None) => RunStatus::Pending,
            },
            run_at,
            events: String::new(),
        };
        let mut position = None;
        let mut event = queued_event(&row, position);
        row.events = encode(&event);
        let mut inserted = insert_run(&mut tx, &row).await?;
        if inserted.is_none() {
            if new.if_busy != IfBusy::Enqueue {
                let active_run_id = slot_holder(&mut *tx, new.workspace_id, chat_id).await?;
                // At once: others wait for the chat.
                tx.rollback().await.map_err(StoreError::from)?;
                return Err(AdmitError::RunAlreadyActive { active_run_id });
            }
            position = Some(queued_in(&mut tx, chat_id).await? + 1);
            row.status = RunStatus::Queued;
            event = queued_event(&row, position);
            row.events = encode(&event);
            inserted = insert_run(&mut tx, &row).await?;
        }
        // A queued run is not in that index, so nothing but a bug gets here without a row.
        let inserted = inserted.ok_or_else(|| StoreError::Conflict("runs_one_active_per_chat".to_owned()))?;
        let mut run = row.as_run(&inserted);
        let mut segments = vec![Segment {
            run_id: run.id,
            first: 1,
            last: 1,
            at: inserted.event_at,
            events: vec![event.of_run()],
        }];
        if let Some(requested_at) = stop_requested_at {
            let stop = Stop { requested_at, is_delivered: false };
            let ended = end_run(&mut tx, &(&run).into(), &Ending::stopped(), Some(stop), 0).await?;
            segments.push(ended.segment);
            run = read_run(&mut tx, run.workspace_id, run.id).await?;
        }
        if let Some(key) = &new.idempotency {
            keep_answer(&mut tx, new, key, run.id, run.status, position).await?;
        }
        hit(Point::InAdmissionBeforeCommit);
        if let Err(error) = tx.commit().await.map_err(StoreError::from) {
            self.is_stored(new.workspace_id, run.id, error).await?;
        }
        hit(Point::AfterAdmissionBeforeAnswer);
        Ok(Admitted {
            message_id: new.client_message_id.clone().unwrap_or_else(|| run.user_message_id.to_string()),
            assistant_message_id: run.assistant_message_id,
            status: run.status,
            wake: (run.status == RunStatus::Pending).then(|| new.queue.clone()),
            run,
            position,
            replayed: false,
            segments,
        })
    }

    /// The commit of the run was not answered, so that it is looked for before anything is said about it. `TimedOut`
    /// when it is not there, because it may still come: the server may be about to read the commit.
    async fn is_stored(&self, workspace: WorkspaceId, run_id: RunId, error: StoreError) -> Result<()> {
        const SQL: &str = "select 1 from runs where workspace_id = $1 and id = $2";
        if !error.is_transient() || error.is_rolled_back() {
            return Err(error);
        }
        let found =
            sqlx::query::<Db>(SQL).bind(workspace.0).bind(run_id.0).fetch_optional(self.reader()).await;
        if let Ok(Some(_)) = found {
            return Ok(());
        }
        tracing::warn!(%error, run.id = %run_id, "nobody knows whether a run was admitted");
        Err(StoreError::TimedOut)
    }
}

impl RunRow<'_> {
    /// What a reader of the new row would see.
    fn as_run(&self, inserted: &Inserted) -> Run {
        let new = self.new;
        Run {
            id: self.id,
            workspace_id: new.workspace_id,
            chat_id: self.chat_id,
            turn: self.turn,
            agent: new.agent.clone(),
            status: self.status,
            reason: None,
            trigger: new.trigger,
            created_by: new.created_by.clone(),
            user_message_id: self.user_message_id,
            assistant_message_id: self.assistant_message_id,
            limits: new.limits,
            usage: Usage::default(),
            step_count: 0,
            error: None,
            tags: new.tags.clone(),
            metadata: new.metadata.clone(),
            traceparent: new.traceparent.clone(),
            renderer: new.renderer,
            run_at: self.run_at,
            stop_requested_at: None,
            stop_reason: None,
            created_at: inserted.created_at,
            started_at: None,
            finished_at: None,
            attempts: 0,
            worker_id: None,
            last_seq: 1,
        }
    }
}

fn queued_event(row: &RunRow<'_>, position: Option<u32>) -> EventData {
    EventData::RunQueued { status: row.status, position, run_at: row.run_at }
}

fn encode(event: &EventData) -> String {
    serde_json::to_string(&[event.of_run()]).expect("an event is plain JSON")
}

/// Locks the chat and takes its next turn.
pub(super) const NEXT_TURN: &str = concat!(
    "update chats set last_turn = last_turn + 1, updated_at = ",
    now!(),
    " where workspace_id = $1 and id = $2 and deleted_at is null returning id, last_turn, updated_at"
);

/// Locks the chat, or makes it, and takes its next turn. Also reads the clock. Of two who bring the same name for a new
/// chat, one makes it and the other waits and goes on with it.
async fn take_turn(
    tx: &mut Transaction<'static, Db>,
    new: &NewRun,
) -> std::result::Result<(ChatId, i64, Millis), AdmitError> {
    let query = if let Some(chat_id) = new.chat_id {
        sqlx::query(NEXT_TURN).bind(new.workspace_id.0).bind(chat_id.0)
    } else {
        let query = sqlx::query(concat!(
            "insert into chats (workspace_id, id, client_id, agent, created_by, last_turn) \
             values ($1, $2, $3, $4, $5, 1) \
             on conflict (workspace_id, client_id) where client_id is not null \
             do update set last_turn = chats.last_turn + 1, updated_at = ",
            now!(),
            " where chats.deleted_at is null returning id, last_turn, updated_at"
        ));
        query
            .bind(new.workspace_id.0)
            .bind(ChatId::generate().0)
            .bind(&new.client_chat_id)
            .bind(&new.agent)
            .bind(&new.created_by)
    };
    let row = query.fetch_optional(&mut **tx).await.map_err(StoreError::from)?;
    let row = row.ok_or(AdmitError::ChatNotFound)?;
    Ok((get::<Uuid>(&row, "id")?.into(), get(&row, "last_turn")?, get(&row, "updated_at")?))
}

pub(crate) async fn read_run(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    run_id: RunId,
) -> Result<Run> {
    let row = sqlx::query(concat!(
        "select ",
        run_columns!(),
        ", ",
        run_place!(),
        " from runs r where r.workspace_id = $1 and r.id = $2"
    ))
    .bind(workspace.0)
    .bind(run_id.0)
    .fetch_one(&mut **tx)
    .await?;
    rows::run(&row)
}

/// The run that holds the chat's slot.
pub(super) async fn slot_holder(
    executor: impl Executor<'_, Database = Db>,
    workspace: WorkspaceId,
    chat_id: ChatId,
) -> Result<Option<RunId>> {
    let row = sqlx::query(
        "select id from runs where workspace_id = $1 and chat_id = $2 \
         and status in ('pending', 'running', 'waiting')",
    )
    .bind(workspace.0)
    .bind(chat_id.0)
    .fetch_optional(executor)
    .await?;
    row.map(|row| get::<Uuid>(&row, "id").map(RunId)).transpose()
}

async fn queued_in(tx: &mut Transaction<'static, Db>, chat_id: ChatId) -> Result<u32> {
    let row = sqlx::query("select count(*) as n from runs where chat_id = $1 and status = 'queued'")
        .bind(chat_id.0)
        .fetch_one(&mut **tx)
        .await?;
    Ok(get::<i64>(&row, "n")? as u32)
}
