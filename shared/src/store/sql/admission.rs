//! The one transaction by which a run comes into being.
//!
//! The chat's row lock orders the submissions of a chat and gives out turns; whether the slot is free is decided by
//! the partial unique index alone, as the arbiter of `on conflict do nothing`.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sqlx::{Row, Transaction, types::Json};
use uuid::Uuid;

use super::{
    super::{insert_run::insert_run, is_lock_timeout, reset_lock_timeout, set_lock_timeout},
    Db, SqlStore,
    rows::{self, get, run_columns, run_place},
    to_its_end,
};
use crate::{
    domain::{
        event::{Event, EventData, Segment},
        ids::{ChatId, MessageId, Millis, RunId, WorkspaceId},
        run::{Run, Usage},
        transition::RunStatus,
    },
    store::{
        AdmitError, Admitted, IfBusy, NewRun, Result, StoreError,
        admission::{IdempotencyKey, StartAt},
    },
};

/// How long a repeat waits for the first call with its key before it is told that it is in flight.
const IN_FLIGHT_WAIT_MS: u32 = 1_000;
const IDEMPOTENCY_KEPT_MS: i64 = 24 * 3_600_000;

/// The row of a new run, with everything that its transaction has found out.
pub(crate) struct RunRow<'a> {
    pub(crate) new: &'a NewRun,
    pub(crate) id: RunId,
    pub(crate) chat_id: ChatId,
    pub(crate) turn: i64,
    pub(crate) user_message_id: MessageId,
    pub(crate) assistant_message_id: MessageId,
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

/// What the first call was told, for those who repeat it.
#[derive(Serialize, Deserialize)]
struct Answer {
    status: RunStatus,
    position: Option<u32>,
}

#[async_trait]
impl crate::store::Admission for SqlStore {
    async fn admit(&self, new: NewRun) -> std::result::Result<Admitted, AdmitError> {
        let store = self.clone();
        to_its_end(async move { store.admit_new(new).await }).await
    }
}

impl SqlStore {
    async fn admit_new(&self, new: NewRun) -> std::result::Result<Admitted, AdmitError> {
        let mut tx = self.begin().await?;
        if let Some(key) = &new.idempotency
            && let Some(admitted) = claim_key(&mut tx, &new, key).await?
        {
            return Ok(admitted);
        }
        let (chat_id, turn, now) = take_turn(&mut tx, &new).await?;
        if let (Some(_), Some(client_id)) = (new.chat_id, &new.client_message_id)
            && let Some(admitted) = repeated_message(&mut tx, &new, chat_id, client_id).await?
        {
            return Ok(admitted);
        }

        let run_at = match new.start {
            None => None,
            Some(StartAt::At(at)) => Some(at),
            Some(StartAt::In(delay)) => Some(now.saturating_add(delay)),
        }
        .filter(|at| *at > now);
        let mut row = RunRow {
            new: &new,
            id: RunId::generate(),
            chat_id,
            turn,
            user_message_id: MessageId::generate(),
            assistant_message_id: MessageId::generate(),
            status: if run_at.is_some() { RunStatus::Scheduled } else { RunStatus::Pending },
            run_at,
            events: String::new(),
        };
        let mut position = None;
        let mut event = queued_event(&row, position);
        row.events = encode(&event);
        let mut inserted = insert_run(&mut tx, &row).await?;
        if inserted.is_none() {
            if new.if_busy == IfBusy::Reject {
                let active_run_id = slot_holder(&mut tx, new.workspace_id, chat_id).await?;
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
        if let Some(key) = &new.idempotency {
            keep_answer(&mut tx, &new, key, &row, position).await?;
        }
        tx.commit().await.map_err(StoreError::from)?;
        let run = row.as_run(&inserted);
        let segment = Segment {
            run_id: run.id,
            first: 1,
            last: 1,
            at: inserted.event_at,
            events: vec![event.of_run()],
        };
        Ok(Admitted {
            message_id: new.client_message_id.unwrap_or_else(|| run.user_message_id.to_string()),
            assistant_message_id: run.assistant_message_id,
            status: run.status,
            wake: (run.status == RunStatus::Pending).then_some(new.queue),
            run,
            position,
            replayed: false,
            segments: vec![segment],
        })
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

/// Takes the idempotency key for this call, or answers as the holder of the key was answered.
async fn claim_key(
    tx: &mut Transaction<'static, Db>,
    new: &NewRun,
    key: &IdempotencyKey,
) -> std::result::Result<Option<Admitted>, AdmitError> {
    set_lock_timeout(tx, IN_FLIGHT_WAIT_MS).await?;
    // Expired keys are taken over in place. The wait here is for a first call that is not decided yet.
    let taken = sqlx::query(concat!(
        "insert into idempotency (workspace_id, caller, route, key, fingerprint, expires_at) \
         values ($1, $2, $3, $4, $5, ",
        now!(),
        " + $6) on conflict (workspace_id, caller, route, key) do update \
         set fingerprint = excluded.fingerprint, expires_at = excluded.expires_at, run_id = null, answer = null \
         where idempotency.expires_at <= ",
        now!()
    ))
    .bind(new.workspace_id.0)
    .bind(&key.caller)
    .bind(key.route)
    .bind(&key.key)
    .bind(&key.fingerprint)
    .bind(IDEMPOTENCY_KEPT_MS)
    .execute(&mut **tx)
    .await;
    let taken = match taken {
        Ok(done) => done.rows_affected() == 1,
        Err(error) if is_lock_timeout(&error) => return Err(AdmitError::KeyInFlight),
        Err(error) => return Err(StoreError::from(error).into()),
    };
    reset_lock_timeout(tx).await?;
    if taken {
        return Ok(None);
    }
    let row = sqlx::query(
        "select fingerprint, run_id, answer from idempotency \
         where workspace_id = $1 and caller = $2 and route = $3 and key = $4",
    )
    .bind(new.workspace_id.0)
    .bind(&key.caller)
    .bind(key.route)
    .bind(&key.key)
    .fetch_one(&mut **tx)
    .await
    .map_err(StoreError::from)?;
    if get::<Vec<u8>>(&row, "fingerprint")? != key.fingerprint {
        return Err(AdmitError::KeyReused);
    }
    let (Some(run_id), Some(Json(answer))) =
        (get::<Option<Uuid>>(&row, "run_id")?, get::<Option<Json<Answer>>>(&row, "answer")?)
    else {
        return Err(AdmitError::KeyInFlight);
    };
    replayed(tx, new.workspace_id, run_id.into(), answer).await.map(Some)
}

async fn keep_answer(
    tx: &mut Transaction<'static, Db>,
    new: &NewRun,
    key: &IdempotencyKey,
    row: &RunRow<'_>,
    position: Option<u32>,
) -> Result<()> {
    sqlx::query(
        "update idempotency set run_id = $5, answer = $6 \
         where workspace_id = $1 and caller = $2 and route = $3 and key = $4",
    )
    .bind(new.workspace_id.0)
    .bind(&key.caller)
    .bind(key.route)
    .bind(&key.key)
    .bind(row.id.0)
    .bind(Json(Answer { status: row.status, position }))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Locks the chat, or makes it, and takes its next turn. Also reads the clock.
async fn take_turn(
    tx: &mut Transaction<'static, Db>,
    new: &NewRun,
) -> std::result::Result<(ChatId, i64, Millis), AdmitError> {
    let (query, chat_id) = if let Some(chat_id) = new.chat_id {
        let query = sqlx::query(concat!(
            "update chats set last_turn = last_turn + 1, updated_at = ",
            now!(),
            " where workspace_id = $1 and id = $2 and deleted_at is null returning last_turn, updated_at"
        ));
        (query.bind(new.workspace_id.0).bind(chat_id.0), chat_id)
    } else {
        let chat_id = ChatId::generate();
        let query = sqlx::query(
            "insert into chats (workspace_id, id, agent, created_by, last_turn) values ($1, $2, $3, $4, 1) \
             returning last_turn, updated_at",
        );
        let query = query.bind(new.workspace_id.0).bind(chat_id.0).bind(&new.agent).bind(&new.created_by);
        (query, chat_id)
    };
    let row = query.fetch_optional(&mut **tx).await.map_err(StoreError::from)?;
    let row = row.ok_or(AdmitError::ChatNotFound)?;
    Ok((chat_id, get(&row, "last_turn")?, get(&row, "updated_at")?))
}

/// The run of a message that the client has sent before.
async fn repeated_message(
    tx: &mut Transaction<'static, Db>,
    new: &NewRun,
    chat_id: ChatId,
    client_id: &str,
) -> std::result::Result<Option<Admitted>, AdmitError> {
    let row = sqlx::query(
        "select run_id, parts from messages where workspace_id = $1 and chat_id = $2 and client_id = $3",
    )
    .bind(new.workspace_id.0)
    .bind(chat_id.0)
    .bind(client_id)
    .fetch_optional(&mut **tx)
    .await
    .map_err(StoreError::from)?;
    let Some(row) = row else { return Ok(None) };
    let same = rows::json::<Vec<crate::domain::message::Part>>(&row, "messages", "parts")? == new.input;
    let (true, Some(run_id)) = (same, get::<Option<Uuid>>(&row, "run_id")?) else {
        return Err(AdmitError::MessageIdReused);
    };
    let answer = first_answer(tx, new.workspace_id, run_id.into()).await?;
    replayed(tx, new.workspace_id, run_id.into(), answer).await.map(Some)
}

/// What the first call was told is also what the run's first event says.
async fn first_answer(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    run_id: RunId,
) -> Result<Answer> {
    let row = sqlx::query(
        "select run_id, first_seq, last_seq, events, created_at from run_events \
         where workspace_id = $1 and run_id = $2 and first_seq = 1",
    )
    .bind(workspace.0)
    .bind(run_id.0)
    .fetch_one(&mut **tx)
    .await?;
    match rows::segment(&row)?.events.first().and_then(Event::data) {
        Some(EventData::RunQueued { status, position, .. }) => Ok(Answer { status, position }),
        _ => Err(StoreError::Corrupt {
            table: "run_events",
            column: "events",
            id: run_id.to_string(),
            detail: "the first event is not `run.queued`".to_owned(),
        }),
    }
}

async fn replayed(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    run_id: RunId,
    answer: Answer,
) -> std::result::Result<Admitted, AdmitError> {
    let run = read_run(tx, workspace, run_id).await?;
    let client_id: Option<String> =
        sqlx::query("select client_id from messages where workspace_id = $1 and id = $2")
            .bind(workspace.0)
            .bind(run.user_message_id.0)
            .fetch_one(&mut **tx)
            .await
            .and_then(|row| row.try_get("client_id"))
            .map_err(StoreError::from)?;
    Ok(Admitted {
        message_id: client_id.unwrap_or_else(|| run.user_message_id.to_string()),
        assistant_message_id: run.assistant_message_id,
        run,
        status: answer.status,
        position: answer.position,
        replayed: true,
        segments: vec![],
        wake: None,
    })
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
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    chat_id: ChatId,
) -> Result<Option<RunId>> {
    let row = sqlx::query(
        "select id from runs where workspace_id = $1 and chat_id = $2 \
         and status in ('pending', 'running', 'waiting')",
    )
    .bind(workspace.0)
    .bind(chat_id.0)
    .fetch_optional(&mut **tx)
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
