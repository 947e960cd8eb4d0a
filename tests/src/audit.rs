//! What must never happen in between, whatever the rows look like afterwards: triggers in the test's database write it
//! down, without any help from the product.

use sqlx::{AssertSqlSafe, Executor};

use crate::rows::Rows;

/// One change that is watched.
struct Watch {
    /// What it would be that was found, in words; the id of the run or chat follows.
    what: &'static str,
    /// Such as `update on runs`.
    change: &'static str,
    /// The column of the changed row that says where it was.
    id: &'static str,
    /// When a change is one that must not happen.
    broken: &'static str,
}

const OVER: &str = "old.status in ('succeeded', 'failed', 'aborted')";

const WATCHES: &[Watch] = &[
    Watch {
        what: "a run that was over and was changed",
        change: "update on runs",
        id: "id",
        broken: "OVER and (old.status, old.reason, old.error_code, old.finished_at, old.step_count, old.input_tokens,
            old.output_tokens) is distinct from (new.status, new.reason, new.error_code, new.finished_at,
            new.step_count, new.input_tokens, new.output_tokens)",
    },
    Watch { what: "a run that was over and was deleted", change: "delete on runs", id: "id", broken: "OVER" },
    Watch {
        what: "an answer that was whole and was changed",
        change: "update on messages",
        id: "run_id",
        broken: "old.status <> 'streaming' and old.status is distinct from new.status",
    },
    Watch {
        what: "a saved step that was changed",
        change: "update on steps",
        id: "run_id",
        broken: "(old.output, old.attempt, old.epoch, old.finish_reason, old.last_seq) is distinct from
            (new.output, new.attempt, new.epoch, new.finish_reason, new.last_seq)",
    },
    Watch {
        what: "a tool call whose outcome was changed",
        change: "update on tool_calls",
        id: "run_id",
        broken: "old.state not in ('awaiting_approval', 'planned', 'dispatched')
            and old.state is distinct from new.state",
    },
    Watch {
        what: "a job whose epoch went back",
        change: "update on jobs",
        id: "run_id",
        broken: "new.epoch < old.epoch",
    },
    Watch {
        what: "a job that changed hands without a new epoch",
        change: "update on jobs",
        id: "run_id",
        broken: "new.worker_id is not null and new.worker_id is distinct from old.worker_id
            and new.epoch <> old.epoch + 1",
    },
    Watch {
        what: "a job that was taken from one worker by another",
        change: "update on jobs",
        id: "run_id",
        broken: "old.worker_id is not null and new.worker_id is not null and new.worker_id <> old.worker_id",
    },
    Watch {
        what: "a run that was taken from a worker whose lease held",
        change: "update on jobs",
        id: "run_id",
        broken: "old.worker_id is not null and new.worker_id is null and exists
            (select 1 from workers w where w.id = old.worker_id and w.expires_at > NOW_MS)
            and (select e.events from run_events e where e.run_id = old.run_id order by e.first_seq desc limit 1)
            like '%\"expired\"%'",
    },
];

/// Begins to watch. The tables must be there.
pub async fn install(rows: &Rows) {
    execute(rows, "create table audit_found (what text not null)").await;
    for (number, watch) in WATCHES.iter().enumerate() {
        let (change, broken) = (watch.change, watch.broken.replace("OVER", OVER));
        let found = |id: &str, now: &str| {
            let broken = broken.replace("NOW_MS", now);
            format!("insert into audit_found select '{}: ' || {id} where {broken};", watch.what)
        };
        match rows {
            Rows::Postgres(_) => {
                let found = found(&format!("old.{}::text", watch.id), "now_ms()");
                let function = format!(
                    "create function audit_{number}() returns trigger language plpgsql as
                     $$ begin {found} return null; end $$"
                );
                execute(rows, &function).await;
                let trigger = format!(
                    "create trigger audit_{number} after {change} for each row execute function audit_{number}()"
                );
                execute(rows, &trigger).await;
            }
            Rows::Sqlite(_) => {
                let found =
                    found(&format!("hex(old.{})", watch.id), "cast(unixepoch('subsec') * 1000 as integer)");
                execute(rows, &format!("create trigger audit_{number} after {change} begin {found} end"))
                    .await;
            }
        }
    }
}

/// Everything that was found so far, in words.
pub async fn found(rows: &Rows) -> Vec<String> {
    rows.texts("select what from audit_found").await
}

async fn execute(rows: &Rows, sql: &str) {
    // Made of the words above alone.
    let statement = AssertSqlSafe(sql.to_owned());
    let done = match rows {
        Rows::Postgres(pool) => pool.execute(statement).await.map(drop),
        Rows::Sqlite(pool) => pool.execute(statement).await.map(drop),
    };
    done.unwrap_or_else(|error| panic!("{error}: {sql}"));
}
