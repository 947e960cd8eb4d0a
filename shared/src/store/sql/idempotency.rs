//! Repeated submissions: recognised by an idempotency key or by the client's name for the message, and answered like
//! the first one.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sqlx::{Row, Transaction, types::Json};
use uuid::Uuid;

use super::{
    super::{is_lock_timeout, reset_lock_timeout, set_lock_timeout},
    Db, SqlStore,
    admission::read_run,
    rows::{self, get},
};
use crate::{
    domain::{
        event::{Event, EventData},
        ids::{ChatId, Millis, RunId, WorkspaceId},
        message::Part,
        transition::RunStatus,
    },
    mutant::{self, Mutant},
    store::{AdmitError, Admitted, KeyName, KeyedRun, NewRun, Result, StoreError, admission::IdempotencyKey},
};

/// How long a repeat waits for the first call with its key before it is told that it is in flight.
const IN_FLIGHT_WAIT_MS: u32 = 1_000;
pub(super) const IDEMPOTENCY_KEPT_MS: i64 = 24 * 3_600_000;

const INSERT_KEY: &str = concat!(
    "insert into idempotency (workspace_id, caller, route, key, fingerprint, expires_at) \
     values ($1, $2, $3, $4, $5, ",
    now!(),
    " + $6) on conflict (workspace_id, caller, route, key) do nothing returning stop_requested_at"
);
/// An expired key is as good as none.
const TAKE_OVER_KEY: &str = concat!(
    "update idempotency set fingerprint = $5, expires_at = ",
    now!(),
    " + $6, run_id = null, answer = null, stop_requested_at = null \
     where workspace_id = $1 and caller = $2 and route = $3 and key = $4 and expires_at <= ",
    now!(),
    " returning stop_requested_at"
);
/// A key that only holds the wish to stop whatever comes with it.
const TAKE_NOTE: &str = concat!(
    "update idempotency set fingerprint = $5, expires_at = ",
    now!(),
    " + $6 where workspace_id = $1 and caller = $2 and route = $3 and key = $4 \
     and run_id is null and stop_requested_at is not null returning stop_requested_at"
);

/// What has been found at an idempotency key.
pub(super) enum KeyClaim {
    /// It is this call's own. `stop_requested_at` is set when the run is to end at once.
    Taken { stop_requested_at: Option<Millis> },
    /// The holder of the key was answered like this.
    Answered(Box<Admitted>),
}

/// What the first call was told, for those who repeat it.
#[derive(Serialize, Deserialize)]
struct Answer {
    status: RunStatus,
    position: Option<u32>,
}

/// The key as it is stored.
fn stored(key: &IdempotencyKey) -> Cow<'_, str> {
    if mutant::is(Mutant::IdempotencyPerProcess) {
        return format!("{} of process {}", key.key, std::process::id()).into();
    }
    Cow::Borrowed(&key.key)
}

/// Takes the idempotency key for this call, or answers as the holder of the key was answered.
pub(super) async fn claim_key(
    tx: &mut Transaction<'static, Db>,
    new: &NewRun,
    key: &IdempotencyKey,
) -> std::result::Result<KeyClaim, AdmitError> {
    set_lock_timeout(tx, IN_FLIGHT_WAIT_MS).await?;
    // The wait here is for a first call that is not decided yet. Repeats of one that is do not lock its row, so that
    // many of them do not wait for each other.
    let mut taken = None;
    for sql in [INSERT_KEY, TAKE_OVER_KEY, TAKE_NOTE] {
        let done = sqlx::query(sql)
            .bind(new.workspace_id.0)
            .bind(&key.caller)
            .bind(key.route)
            .bind(stored(key))
            .bind(&key.fingerprint)
            .bind(IDEMPOTENCY_KEPT_MS)
            .fetch_optional(&mut **tx)
            .await;
        match done {
            Ok(row) => taken = row.map(|row| get(&row, "stop_requested_at")).transpose()?,
            Err(error) if is_lock_timeout(&error) => return Err(AdmitError::KeyInFlight),
            Err(error) => return Err(StoreError::from(error).into()),
        }
        if taken.is_some() {
            break;
        }
    }
    reset_lock_timeout(tx).await?;
    if let Some(stop_requested_at) = taken {
        return Ok(KeyClaim::Taken { stop_requested_at });
    }
    let row = sqlx::query(
        "select fingerprint, run_id, answer from idempotency \
         where workspace_id = $1 and caller = $2 and route = $3 and key = $4",
    )
    .bind(new.workspace_id.0)
    .bind(&key.caller)
    .bind(key.route)
    .bind(stored(key))
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
    let admitted = replayed(tx, new.workspace_id, run_id.into(), answer).await?;
    Ok(KeyClaim::Answered(Box::new(admitted)))
}

/// The run that this key has made, for those who want to know before they submit.
pub(super) async fn run_of_key(
    store: &SqlStore,
    workspace: WorkspaceId,
    key: KeyName<'_>,
) -> Result<Option<KeyedRun>> {
    const SQL: &str = concat!(
        "select run_id, fingerprint from idempotency where workspace_id = $1 and caller = $2 and route = $3 \
         and key = $4 and run_id is not null and expires_at > ",
        now!()
    );
    let row = sqlx::query::<Db>(SQL)
        .bind(workspace.0)
        .bind(key.caller)
        .bind(key.route)
        .bind(key.key)
        .fetch_optional(store.reader())
        .await?;
    row.map(|row| {
        Ok(KeyedRun { run_id: get::<Uuid>(&row, "run_id")?.into(), fingerprint: get(&row, "fingerprint")? })
    })
    .transpose()
}

pub(super) async fn keep_answer(
    tx: &mut Transaction<'static, Db>,
    new: &NewRun,
    key: &IdempotencyKey,
    run_id: RunId,
    status: RunStatus,
    position: Option<u32>,
) -> Result<()> {
    sqlx::query(
        "update idempotency set run_id = $5, answer = $6 \
         where workspace_id = $1 and caller = $2 and route = $3 and key = $4",
    )
    .bind(new.workspace_id.0)
    .bind(&key.caller)
    .bind(key.route)
    .bind(stored(key))
    .bind(run_id.0)
    .bind(Json(Answer { status, position }))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The run of a message that the client has sent before.
pub(super) async fn repeated_message(
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
    let same = rows::json::<Vec<Part>>(&row, "messages", "parts")? == new.input;
    let (true, Some(run_id)) = (same, get::<Option<Uuid>>(&row, "run_id")?) else {
        return Err(AdmitError::MessageIdReused);
    };
    let answer = first_answer(tx, new.workspace_id, run_id.into()).await?;
    let mut admitted = replayed(tx, new.workspace_id, run_id.into(), answer).await?;
    if admitted.run.stop_requested_at.is_some_and(|requested_at| requested_at <= admitted.run.created_at) {
        // Its stop was there before it: it was over when the first call was answered.
        (admitted.status, admitted.position) = (admitted.run.status, None);
    }
    Ok(Some(admitted))
}

/// Takes its name from a message whose run is over, so that another one may have it. Answers with the first turn that the
/// other one stands in for; `None` if there is no such message, or its run is under way.
pub(super) async fn release_name(
    tx: &mut Transaction<'static, Db>,
    new: &NewRun,
    chat_id: ChatId,
    client_id: &str,
) -> Result<Option<i64>> {
    let row = sqlx::query(
        "update messages set client_id = null \
         where workspace_id = $1 and chat_id = $2 and position = 0 and (client_id = $3 or id = $4) and exists \
         (select 1 from runs r where r.id = messages.run_id and r.workspace_id = messages.workspace_id \
          and r.status in ('succeeded', 'failed', 'aborted')) returning coalesce(replaces_turn, turn) as first",
    )
    .bind(new.workspace_id.0)
    .bind(chat_id.0)
    .bind(client_id)
    .bind(Uuid::try_parse(client_id).unwrap_or_default())
    .fetch_optional(&mut **tx)
    .await?;
    row.map(|row| get(&row, "first")).transpose()
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
