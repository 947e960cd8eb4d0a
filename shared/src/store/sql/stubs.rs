//! Stands in for the parts that are written elsewhere; goes when they come.

use async_trait::async_trait;

use sqlx::types::Json;
use uuid::Uuid;

use super::{Db, SqlStore, rows::get};
use crate::{
    domain::{
        event::{Event, EventData, ReleaseReason, Segment},
        ids::{ChatId, JobId, MessageId, Millis, RunId, Seq, WorkerId, WorkspaceId},
        run::Claim,
        transition::RunStatus,
    },
    store::{
        Admission, AdmitError, Admitted, Append, Chats, Committed, Jobs, Log, LogCursor, LogReader, NewChat,
        NewRun, NewWorker, Released, Result, Runs, StopOutcome, StoreError, WorkerRow, Workers,
        admission::StartAt,
    },
};

fn missing<T>() -> Result<T> {
    Err(StoreError::Conflict("not here yet".to_owned()))
}

pub(super) async fn delete_chat(_: &SqlStore, _: WorkspaceId, _: ChatId) -> Result<Vec<StopOutcome>> {
    missing()
}

pub(super) async fn stop_run(_: &SqlStore, _: WorkspaceId, _: RunId) -> Result<StopOutcome> {
    missing()
}

#[async_trait]
impl Admission for SqlStore {
    async fn admit(&self, new: NewRun) -> std::result::Result<Admitted, AdmitError> {
        let ws = new.workspace_id;
        let chat = match new.chat_id {
            Some(chat) => chat,
            None => self.create_chat(ws, NewChat::default()).await?.id,
        };
        let mut tx = self.begin().await?;
        let row = sqlx::query::<Db>(
            "update chats set last_turn = last_turn + 1 where workspace_id = $1 and id = $2 returning last_turn, \
             (select count(*) from runs r where r.chat_id = $2 and r.status in ('pending','running','waiting')) as busy",
        )
        .bind(ws.0)
        .bind(chat.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(StoreError::from)?
        .ok_or(AdmitError::ChatNotFound)?;
        let (turn, busy): (i64, i64) = (get(&row, "last_turn")?, get(&row, "busy")?);
        let (run, user, answer) = (RunId::generate(), MessageId::generate(), MessageId::generate());
        let run_at = match new.start {
            Some(StartAt::At(at)) => Some(at),
            _ => None,
        };
        let status = match (run_at, busy) {
            (Some(_), _) => RunStatus::Scheduled,
            (None, 0) => RunStatus::Pending,
            _ => RunStatus::Queued,
        };
        sqlx::query::<Db>(
            "insert into runs (workspace_id, id, chat_id, turn, agent, status, trigger, user_message_id, \
             assistant_message_id, queue, priority, limits, tags, metadata, run_at) \
             values ($1,$2,$3,$4,$5,$6,'user',$7,$8,$9,$10,$11,$12,$13,$14)",
        )
        .bind(ws.0)
        .bind(run.0)
        .bind(chat.0)
        .bind(turn)
        .bind(&new.agent)
        .bind(status.as_str())
        .bind(user.0)
        .bind(answer.0)
        .bind(&new.queue)
        .bind(new.priority)
        .bind(Json(new.limits))
        .bind(Json(&new.tags))
        .bind(Json(&new.metadata))
        .bind(run_at)
        .execute(&mut *tx)
        .await
        .map_err(StoreError::from)?;
        for (position, id, role, state, parts, reply) in [
            (0, user, "user", "completed", new.input.clone(), None),
            (1, answer, "assistant", "streaming", vec![], Some(user.0)),
        ] {
            sqlx::query::<Db>(
                "insert into messages (workspace_id, id, chat_id, turn, position, role, status, client_id, \
                 in_reply_to, run_id, parts) values ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11)",
            )
            .bind(ws.0)
            .bind(id.0)
            .bind(chat.0)
            .bind(turn)
            .bind(position)
            .bind(role)
            .bind(state)
            .bind(new.client_message_id.clone().filter(|_| position == 0))
            .bind(reply)
            .bind(run.0)
            .bind(Json(parts))
            .execute(&mut *tx)
            .await
            .map_err(StoreError::from)?;
        }
        if status == RunStatus::Pending {
            sqlx::query::<Db>(concat!(
                "insert into jobs (workspace_id, id, kind, run_id, queue, priority, run_at) values ($1,$2,'run',$3,$4,$5,",
                now!(),
                ")"
            ))
            .bind(ws.0)
            .bind(JobId::generate().0)
            .bind(run.0)
            .bind(&new.queue)
            .bind(new.priority)
            .execute(&mut *tx)
            .await
            .map_err(StoreError::from)?;
        }
        let event = EventData::RunQueued { status, position: None, run_at }.of_run();
        append(&mut tx, ws, run, 1, 0, &[event]).await?;
        tx.commit().await.map_err(StoreError::from)?;
        let segments = self.read_log(LogCursor { workspace_id: ws, run_id: run, after: 0 }, 10).await?;
        Ok(Admitted {
            run: self.run(ws, run).await?,
            message_id: user.to_string(),
            assistant_message_id: answer,
            position: None,
            replayed: false,
            segments,
            wake: None,
        })
    }
}

async fn append(
    tx: &mut sqlx::Transaction<'static, Db>,
    ws: WorkspaceId,
    run: RunId,
    first: Seq,
    epoch: i64,
    events: &[Event],
) -> Result<()> {
    sqlx::query::<Db>(
        "insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events) values ($1,$2,$3,$4,$5,$6)",
    )
    .bind(ws.0)
    .bind(run.0)
    .bind(first)
    .bind(first + events.len() as i64 - 1)
    .bind(epoch)
    .bind(serde_json::to_string(events).expect("events are JSON"))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn commit_one(store: &SqlStore, a: &Append) -> Result<Committed> {
    let mut tx = store.begin().await?;
    append(&mut tx, a.workspace_id, a.run_id, a.first_seq, a.epoch, &a.events).await?;
    for s in &a.steps {
        sqlx::query::<Db>(
            "insert into steps (workspace_id, run_id, step, attempt, epoch, model, output, finish_reason, \
             input_tokens, output_tokens, reasoning_tokens, cached_input_tokens, first_seq, last_seq, started_at) \
             values ($1,$2,$3,$4,$5,$6,$7,$8,1,2,3,4,$9,$10,0)",
        )
        .bind(a.workspace_id.0)
        .bind(a.run_id.0)
        .bind(s.step as i32)
        .bind(s.attempt as i32)
        .bind(a.epoch)
        .bind(&s.model)
        .bind(Json(&s.output))
        .bind(s.finish_reason.as_str())
        .bind(s.first_seq)
        .bind(s.last_seq)
        .execute(&mut *tx)
        .await?;
    }
    for c in &a.calls {
        sqlx::query::<Db>(
            "insert into tool_calls (workspace_id, run_id, step, call, call_id, name, arguments, effect, state, \
             idempotency_key, epoch) values ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11)",
        )
        .bind(a.workspace_id.0)
        .bind(a.run_id.0)
        .bind(c.step as i32)
        .bind(c.call as i32)
        .bind(&c.call_id)
        .bind(&c.name)
        .bind(&c.arguments)
        .bind(c.effect.as_str())
        .bind(c.state.as_str())
        .bind(&c.idempotency_key)
        .bind(a.epoch)
        .execute(&mut *tx)
        .await?;
    }
    if let Some(ending) = &a.ending {
        sqlx::query::<Db>(concat!(
            "update runs set status = $2, reason = $3, finished_at = ",
            now!(),
            " where id = $1"
        ))
        .bind(a.run_id.0)
        .bind(ending.status().as_str())
        .bind(ending.reason.as_str())
        .execute(&mut *tx)
        .await?;
        sqlx::query::<Db>("delete from jobs where run_id = $1").bind(a.run_id.0).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    let cursor = LogCursor { workspace_id: a.workspace_id, run_id: a.run_id, after: a.first_seq - 1 };
    let segment = store.read_log(cursor, 1).await?.remove(0);
    Ok(Committed { segment, caused: vec![], wake: vec![] })
}

#[async_trait]
impl Log for SqlStore {
    async fn commit(&self, appends: &[Append]) -> Vec<Result<Committed>> {
        let mut done = vec![];
        for a in appends {
            done.push(commit_one(self, a).await);
        }
        done
    }
}

#[async_trait]
impl Jobs for SqlStore {
    async fn claim(&self, worker: WorkerId, _: &[String], limit: u32) -> Result<Vec<(Claim, Segment)>> {
        let rows = sqlx::query::<Db>(concat!(
            "update jobs set worker_id = $1, epoch = epoch + 1 where id in (select id from jobs where worker_id is null \
             order by id limit $2) returning workspace_id, run_id, epoch, ", now!(), " as at"
        ))
        .bind(worker.0)
        .bind(i64::from(limit))
        .fetch_all(self.writer())
        .await?;
        let mut claims = vec![];
        for row in rows {
            let (ws, run_id, epoch): (WorkspaceId, RunId, i64) = (
                get::<Uuid>(&row, "workspace_id")?.into(),
                get::<Uuid>(&row, "run_id")?.into(),
                get(&row, "epoch")?,
            );
            let mut tx = self.begin().await?;
            sqlx::query::<Db>(concat!(
                "update runs set status = 'running', attempts = attempts + 1, started_at = ",
                now!(),
                " where id = $1"
            ))
            .bind(run_id.0)
            .execute(&mut *tx)
            .await?;
            let event = EventData::RunClaimed { worker_id: worker, epoch }.of_run();
            append(&mut tx, ws, run_id, 2, epoch, &[event]).await?;
            tx.commit().await?;
            let run = self.run(ws, run_id).await?;
            let cursor = LogCursor { workspace_id: ws, run_id, after: 1 };
            let segment = self.read_log(cursor, 1).await?.remove(0);
            claims
                .push((Claim { run, epoch, worker_id: worker, last_seq: 2, now: get(&row, "at")? }, segment));
        }
        Ok(claims)
    }
    async fn hand_back(&self, _: &Claim, _: Seq, _: ReleaseReason, _: i64) -> Result<Released> {
        missing()
    }
    async fn reap(&self, _: i32, _: u32) -> Result<Vec<Released>> {
        missing()
    }
    async fn promote_due(&self, _: u32) -> Result<Vec<Released>> {
        missing()
    }
    async fn next_due(&self, _: &[String]) -> Result<Option<Millis>> {
        missing()
    }
    async fn reconcile(&self) -> Result<u64> {
        missing()
    }
}

#[async_trait]
impl Workers for SqlStore {
    async fn register_worker(&self, worker: &NewWorker) -> Result<()> {
        sqlx::query::<Db>(concat!(
            "insert into workers (id, host, version, slots, expires_at) values ($1, $2, $3, $4, $5 + ",
            now!(),
            ")"
        ))
        .bind(worker.id.0)
        .bind(&worker.host)
        .bind(&worker.version)
        .bind(worker.slots as i32)
        .bind(worker.lease_ms)
        .execute(self.writer())
        .await?;
        Ok(())
    }
    async fn heartbeat(&self, _: WorkerId, _: i64, _: bool) -> Result<Vec<RunId>> {
        missing()
    }
    async fn stop_requests(&self, _: WorkerId) -> Result<Vec<RunId>> {
        missing()
    }
    async fn retire_worker(&self, _: WorkerId) -> Result<()> {
        missing()
    }
    async fn retire_all_workers(&self) -> Result<u64> {
        missing()
    }
    async fn list_workers(&self) -> Result<Vec<WorkerRow>> {
        missing()
    }
}
