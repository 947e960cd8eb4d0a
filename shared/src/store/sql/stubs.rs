//! Stands in for the parts that are written elsewhere; goes when they come.

use async_trait::async_trait;

use super::SqlStore;
use crate::{
    domain::{
        event::{ReleaseReason, Segment},
        ids::{ChatId, Millis, RunId, Seq, WorkerId, WorkspaceId},
        run::Claim,
    },
    store::{
        Admission, AdmitError, Admitted, Append, Committed, Jobs, Log, NewRun, NewWorker, Released, Result,
        StopOutcome, StoreError, WorkerRow, Workers,
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
    async fn admit(&self, _: NewRun) -> std::result::Result<Admitted, AdmitError> {
        Ok(missing()?)
    }
}

#[async_trait]
impl Log for SqlStore {
    async fn commit(&self, appends: &[Append]) -> Vec<Result<Committed>> {
        appends.iter().map(|_| missing()).collect()
    }
}

#[async_trait]
impl Jobs for SqlStore {
    async fn claim(&self, _: WorkerId, _: &[String], _: u32) -> Result<Vec<(Claim, Segment)>> {
        missing()
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
    async fn register_worker(&self, _: &NewWorker) -> Result<()> {
        missing()
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
