//! Leases: a worker's row is its lease on everything it holds.

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    SqlStore,
    rows::{get, stop_request, word},
};
use crate::{
    domain::ids::WorkerId,
    store::{Evidence, NewWorker, Peer, Presence, Result, StopRequest, StoreError, WorkerRow, Workers},
};

#[async_trait]
impl Workers for SqlStore {
    async fn register_worker(&self, worker: &NewWorker) -> Result<()> {
        sqlx::query(concat!(
            "insert into workers (id, host, version, slots, presence_address, presence_place, renewal_ms, renewed_at, \
             expires_at) values ($1, $2, $3, $4, $6, $7, $8, ",
            now!(),
            ", ",
            now!(),
            " + $5)"
        ))
        .bind(worker.id.0)
        .bind(&worker.host)
        .bind(&worker.version)
        .bind(worker.slots as i32)
        .bind(worker.lease_ms)
        .bind(worker.presence.as_ref().map(|presence| presence.address.to_string()))
        .bind(worker.presence.as_ref().and_then(|presence| presence.place.as_deref()))
        .bind(worker.renewal_ms)
        .execute(self.reserved())
        .await?;
        Ok(())
    }

    async fn heartbeat(&self, worker: WorkerId, lease_ms: i64, draining: bool) -> Result<()> {
        let done = sqlx::query(concat!(
            "update workers set expires_at = ",
            now!(),
            " + $2, renewed_at = ",
            now!(),
            ", draining = $3 where id = $1 and expires_at > ",
            now!()
        ))
        .bind(worker.0)
        .bind(lease_ms)
        .bind(draining)
        .execute(self.reserved())
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::LeaseLost);
        }
        Ok(())
    }

    async fn stop_requests(&self, worker: WorkerId) -> Result<Vec<StopRequest>> {
        let rows = sqlx::query(
            "select r.id, r.stop_reason, r.stop_requested_at from jobs j join runs r on r.workspace_id = j.workspace_id and r.id = j.run_id \
             where j.worker_id = $1 and r.stop_requested_at is not null",
        )
        .bind(worker.0)
        .fetch_all(self.reserved())
        .await?;
        rows.iter()
            .filter_map(|row| get::<Uuid>(row, "id").and_then(|id| stop_request(row, id.into())).transpose())
            .collect()
    }

    async fn retire_worker(&self, worker: WorkerId) -> Result<()> {
        self.expire_worker(worker, Evidence::Proof).await.map(drop)
    }

    async fn expire_worker(&self, worker: WorkerId, evidence: Evidence) -> Result<bool> {
        let done = sqlx::query(concat!(
            "update workers set draining = $2, expires_at = ",
            now!(),
            " where id = $1 and expires_at > ",
            now!(),
            " and ($3 or renewed_at + renewal_ms < ",
            now!(),
            ")"
        ))
        .bind(worker.0)
        .bind(true)
        .bind(evidence == Evidence::Proof)
        .execute(self.reserved())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn live_peers(&self) -> Result<Vec<Peer>> {
        let rows = sqlx::query(concat!(
            "select id, presence_address, presence_place from workers \
             where presence_address is not null and expires_at > ",
            now!(),
            " order by id"
        ))
        .fetch_all(self.reserved())
        .await?;
        // One whose address makes no sense here cannot be asked; its lease decides.
        let peer = |row| {
            let address = word(row, "workers", "presence_address").ok()?;
            let presence = Presence { address, place: get(row, "presence_place").ok()? };
            Some(Peer { id: get::<Uuid>(row, "id").ok()?.into(), presence })
        };
        Ok(rows.iter().filter_map(peer).collect())
    }

    async fn retire_all_workers(&self) -> Result<u64> {
        let done =
            sqlx::query(concat!("update workers set expires_at = ", now!(), " where expires_at > ", now!()))
                .execute(self.reserved())
                .await?;
        Ok(done.rows_affected())
    }

    async fn list_workers(&self) -> Result<Vec<WorkerRow>> {
        let rows = sqlx::query(concat!(
            "select id, host, version, slots, draining, expires_at, started_at, expires_at > ",
            now!(),
            " as is_alive, (select count(*) from jobs j where j.worker_id = w.id) as held \
             from workers w order by id desc limit 1000"
        ))
        .fetch_all(self.reader())
        .await?;
        rows.iter()
            .map(|row| {
                Ok(WorkerRow {
                    id: get::<Uuid>(row, "id")?.into(),
                    host: get(row, "host")?,
                    version: get(row, "version")?,
                    slots: get::<i32>(row, "slots")? as u32,
                    draining: get(row, "draining")?,
                    expires_at: get(row, "expires_at")?,
                    started_at: get(row, "started_at")?,
                    is_alive: get(row, "is_alive")?,
                    held: get::<i64>(row, "held")? as u32,
                })
            })
            .collect()
    }
}
