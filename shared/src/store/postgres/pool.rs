//! Connections to a database that may vanish without a word.
//!
//! Whoever waits for an answer that never comes keeps a connection until the kernel gives up, a quarter of an hour later,
//! and soon everybody waits. So when all connections are taken and nothing has been heard from any of them for longer than
//! a statement may last, they are left to themselves, and whoever asks next gets others.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use futures::{future::BoxFuture, stream::BoxStream};
use sqlx::{
    Either, Execute, Executor, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::time::{Instant, timeout};

use super::Db;

/// How long the end waits for what is under way.
const CLOSING: Duration = Duration::from_secs(5);

/// A pool that is replaced when the other side has fallen silent.
#[derive(Debug)]
pub(in crate::store) struct Pool {
    current: RwLock<PgPool>,
    heard: Heard,
    silence: Duration,
}

/// When the database was last known to answer.
#[derive(Clone, Debug)]
struct Heard(Arc<Mutex<Instant>>);

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) {
        *self.lock() = Instant::now();
    }
}

impl Pool {
    /// Without connecting. `silence` is longer than any statement lasts that is still answered.
    pub(in crate::store) fn open(
        options: PgPoolOptions,
        connect: PgConnectOptions,
        silence: Duration,
    ) -> Self {
        let heard = Heard(Arc::new(Mutex::new(Instant::now())));
        let (connected, taken) = (heard.clone(), heard.clone());
        let options = options
            .after_connect(move |_, _| {
                connected.now();
                Box::pin(async { Ok(()) })
            })
            .before_acquire(move |_, _| {
                taken.now();
                Box::pin(async { Ok(true) })
            });
        Self { current: RwLock::new(options.connect_lazy_with(connect)), heard, silence }
    }

    /// The connections that are worth asking.
    pub(in crate::store) fn get(&self) -> Lane {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        Lane(if self.is_silent(&current) { self.replace() } else { current })
    }

    fn is_silent(&self, pool: &PgPool) -> bool {
        let is_taken = pool.size() >= pool.options().get_max_connections() && pool.num_idle() == 0;
        if !is_taken {
            // Nobody has to wait: silence begins when somebody does.
            self.heard.now();
        }
        is_taken && !pool.is_closed() && self.heard.lock().elapsed() > self.silence
    }

    fn replace(&self) -> PgPool {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have done so.
        if self.is_silent(&current) {
            tracing::warn!(
                connections = current.size(),
                "the database is silent; its connections are left to themselves"
            );
            let others = current.options().clone().connect_lazy_with((*current.connect_options()).clone());
            // Nobody gets a connection from it any more; those that come back after all are closed.
            drop(std::mem::replace(&mut *current, others).close());
            self.heard.now();
        }
        current.clone()
    }

    pub(in crate::store) async fn close(&self) {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        if timeout(CLOSING, current.close()).await.is_err() {
            tracing::warn!(
                connections = current.size(),
                "connections that are still in use are not waited for"
            );
        }
    }
}

/// The connections of one moment. Single statements take one for themselves.
#[derive(Clone, Debug)]
pub(in crate::store) struct Lane(pub(in crate::store) PgPool);

impl<'c> Executor<'c> for Lane {
    type Database = Db;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Db>,
    {
        (&self.0).fetch_many(query)
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Db>,
    {
        (&self.0).fetch_optional(query)
    }

    fn prepare_with<'e>(
        self,
        sql: sqlx::SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        (&self.0).prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: sqlx::SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Db>, sqlx::Error>>
    where
        'c: 'e,
    {
        (&self.0).describe(sql)
    }
}
