//! Looks at the queue all the time: nothing that is due waits for long while a worker is there to take it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::install::{Installation, LEASE};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a job may wait that nothing has gone wrong with yet. A claim that hangs on a dead connection takes its time.
const BOUND: Duration = Duration::from_secs(15);

#[derive(Default)]
pub(crate) struct Waits {
    overdue: Mutex<BTreeSet<String>>,
}

impl Waits {
    pub(crate) fn broken(&self) -> Vec<String> {
        let overdue = self.overdue.lock().unwrap_or_else(PoisonError::into_inner);
        overdue
            .iter()
            .map(|run| format!("a run was due for {BOUND:?} beside an idle worker: {run}"))
            .collect()
    }

    /// Never returns.
    pub(crate) async fn watch(&self, world: &Installation) -> ! {
        loop {
            // Postgres is away at times.
            if let Ok(Ok(session)) = timeout(LOOK_EVERY * 4, PgConnection::connect(&world.database_url)).await
            {
                let _ = self.look(session).await;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, mut session: PgConnection) -> sqlx::Result<()> {
        let mut there: HashMap<String, Instant> = HashMap::new();
        let (bound, fresh) = (BOUND.as_millis() as i64, LEASE.as_millis() as i64 - 2_500);
        loop {
            let beating: Vec<String> = sqlx::query_scalar(
                "select id::text from workers w where not draining and expires_at > now_ms() + $1
                 and slots > (select count(*) from jobs where worker_id = w.id)",
            )
            .bind(fresh)
            .fetch_all(&mut session)
            .await?;
            there.retain(|worker, _| beating.contains(worker));
            for worker in beating {
                there.entry(worker).or_insert_with(Instant::now);
            }
            if there.values().any(|since| since.elapsed() > BOUND) {
                let due: Vec<String> = sqlx::query_scalar(
                    "select run_id::text from jobs where worker_id is null and kind = 'run' and crashes = 0
                     and greatest(run_at, created_at) <= now_ms() - $1
                     and not exists (select from run_events e where e.run_id = jobs.run_id
                     and e.created_at > now_ms() - $1)",
                )
                .bind(bound)
                .fetch_all(&mut session)
                .await?;
                self.overdue.lock().unwrap_or_else(PoisonError::into_inner).extend(due);
            }
            sleep(LOOK_EVERY).await;
        }
    }
}
