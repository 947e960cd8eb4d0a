//! The `apalis` backend over the `jobs` table.
//!
//! Polling it costs no query and cannot fail: claiming goes on in a task of its own, however seldom the worker polls,
//! so that a database that is away for a while ends no worker and drops no attempt.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use apalis_core::{
    backend::{Backend, BackendConfig, finalize::Ephemeral},
    task::{Task, builder::TaskBuilder, task_id::TaskId},
    worker::context::WorkerContext,
};
use tokio::task::JoinHandle;
use tower_layer::Identity;
use uuid::Uuid;

use super::{
    Leased,
    claim::{Claimer, Ready},
};

/// Hands over what the claim loop has claimed.
pub struct LeasedBackend {
    ready: Arc<Ready>,
    claiming: JoinHandle<()>,
    config: (),
}

/// Claims that were made and not begun, to be given back after the last attempt has ended.
pub struct Unbegun(Arc<Ready>);

impl Unbegun {
    pub fn pop(&self) -> Option<Leased> {
        self.0.pop()
    }
}

impl LeasedBackend {
    /// Starts claiming; ends when the claimer is told to stop.
    pub fn start(claimer: Claimer) -> (Self, Unbegun) {
        let ready = Arc::new(Ready::default());
        // A claim loop that panics stops the worker: it would never get another job.
        let stop = claimer.stop.clone().drop_guard();
        let work = claimer.run(Arc::clone(&ready));
        let claiming = tokio::spawn(async move {
            let _stop = stop;
            work.await;
        });
        let unbegun = Unbegun(Arc::clone(&ready));
        (Self { ready, claiming, config: () }, unbegun)
    }

    /// The next claim to work on.
    pub fn poll_leased(&self, cx: &Context<'_>) -> Poll<Leased> {
        self.ready.waker.register(cx.waker());
        self.ready.pop().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Backend for LeasedBackend {
    type Task = Task<Leased>;
    type Error = Infallible;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Option<Result<Self::Task, Infallible>>> {
        self.poll_leased(cx).map(|leased| {
            let id = TaskId::from_uuid(leased.claim.run.id.0);
            Some(Ok(TaskBuilder::new(leased).task_id(id).build()))
        })
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        if self.claiming.is_finished() {
            return Poll::Ready(Ok(()));
        }
        // A panic of the claim loop was logged where it happened; there is nothing left to wait for.
        Pin::new(&mut self.claiming).poll(cx).map(|_| Ok(()))
    }
}

impl BackendConfig for LeasedBackend {
    type Args = Leased;
    type Id = Uuid;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &() {
        &self.config
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Identity {
        Identity::new()
    }
}
