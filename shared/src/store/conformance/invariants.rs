//! What no path may leave behind, asked of the database itself.

use super::harness::Database;

/// Each query counts the rows that must not be.
const FORBIDDEN: &[(&str, &str)] = &[
    (
        "an active run without a job",
        "select 1 from runs r where r.status in ('pending', 'running') \
         and not exists (select 1 from jobs j where j.run_id = r.id and j.kind = 'run')",
    ),
    (
        "a job of a run that waits for no worker",
        "select 1 from jobs j join runs r on r.id = j.run_id where j.kind = 'run' \
         and (r.status not in ('pending', 'running') or (j.worker_id is null) <> (r.status = 'pending'))",
    ),
    (
        "two active runs in a chat",
        "select 1 from runs where status in ('pending', 'running', 'waiting') group by chat_id having count(*) > 1",
    ),
    (
        "a run queued for a slot that is free",
        "select 1 from runs q where q.status = 'queued' and not exists (select 1 from runs a \
         where a.chat_id = q.chat_id and a.status in ('pending', 'running', 'waiting'))",
    ),
    (
        "an answer that is not where its run is",
        "select 1 from runs r join messages m on m.id = r.assistant_message_id where m.status <> case r.status \
         when 'succeeded' then 'completed' when 'failed' then 'error' when 'aborted' then 'aborted' \
         else 'streaming' end",
    ),
    (
        "a run without its two messages",
        "select 1 from runs r where (select count(*) from messages m where m.run_id = r.id and m.turn = r.turn \
         and m.chat_id = r.chat_id) <> 2",
    ),
    (
        "a log that is not dense from 1",
        "select 1 from (select first_seq, 1 + coalesce(lag(last_seq) over (partition by run_id order by first_seq), 0) \
         as expected from run_events) as log where first_seq <> expected",
    ),
    (
        "a run that is over without one end, or one with an end that is not over",
        "select 1 from runs r where (select count(*) from run_events e where e.run_id = r.id \
         and e.events like '%{\"type\":\"run.finished\"%') \
         <> case when r.status in ('succeeded', 'failed', 'aborted') then 1 else 0 end",
    ),
    (
        "an event behind the end",
        "select 1 from run_events e where e.events like '%{\"type\":\"run.finished\"%' and exists \
         (select 1 from run_events later where later.run_id = e.run_id and later.first_seq > e.first_seq)",
    ),
    (
        "a run that does not begin with its admission",
        "select 1 from runs r where not exists (select 1 from run_events e where e.run_id = r.id and e.first_seq = 1 \
         and e.events like '[{\"type\":\"run.queued\"%')",
    ),
    (
        "an attempt that is not in the log",
        "select 1 from runs r where r.attempts <> (select count(*) from run_events e where e.run_id = r.id \
         and e.events like '[{\"type\":\"run.claimed\"%')",
    ),
    ("steps that are not dense", "select 1 from steps group by run_id having max(step) <> count(*)"),
    (
        "counters that are not those of the steps",
        "select 1 from runs r where r.step_count <> (select count(*) from steps s where s.run_id = r.id) \
         or r.input_tokens <> (select coalesce(sum(s.input_tokens), 0) from steps s where s.run_id = r.id) \
         or r.output_tokens <> (select coalesce(sum(s.output_tokens), 0) from steps s where s.run_id = r.id)",
    ),
    (
        "a step that is not in the log",
        "select 1 from steps s where not exists \
         (select 1 from run_events e where e.run_id = s.run_id and e.last_seq >= s.last_seq)",
    ),
    (
        "an open call of a run that is over",
        "select 1 from tool_calls c join runs r on r.id = c.run_id where r.status in ('succeeded', 'failed', 'aborted') \
         and c.state in ('awaiting_approval', 'planned', 'dispatched')",
    ),
    (
        "a call whose times do not fit its state",
        "select 1 from tool_calls where (settled_at is null) <> (state in ('awaiting_approval', 'planned', 'dispatched')) \
         or (state in ('dispatched', 'succeeded', 'unknown') and dispatched_at is null)",
    ),
    (
        "an end without its time, or a time without an end",
        "select 1 from runs where (finished_at is null) = (status in ('succeeded', 'failed', 'aborted'))",
    ),
    (
        "a late result of a call that was answered in time or never sent",
        "select 1 from tool_calls where (late_at is null) <> (late_state is null) \
         or (late_at is not null and (state not in ('unknown', 'cancelled') or dispatched_at is null))",
    ),
    (
        "an idempotency key without its answer",
        "select 1 from idempotency where (run_id is null or answer is null) \
         and (stop_requested_at is null or run_id is not null or answer is not null)",
    ),
];

impl Database {
    /// Panics with the name of everything forbidden that the database holds.
    pub(super) async fn assert_invariants(&self) {
        if let Some(store) = self.in_memory() {
            let found = store.rows(|rows| rows.forbidden());
            return assert!(found.is_empty(), "{found:#?}");
        }
        let mut found = vec![];
        for (name, sql) in FORBIDDEN {
            let count = self.texts(&format!("select cast(count(*) as text) from ({sql}) as found")).await;
            if count != ["0"] {
                found.push(format!("{name}: {}", count.concat()));
            }
        }
        let length =
            if self.is_postgres() { "json_array_length(events::json)" } else { "json_array_length(events)" };
        let sql = format!(
            "select cast(count(*) as text) from run_events where {length} <> last_seq - first_seq + 1"
        );
        assert_eq!(self.texts(&sql).await, ["0"], "segments hold as many events as they have numbers");
        assert!(found.is_empty(), "{found:#?}");
    }

    /// Every row of every table that a run has a part in, in an order of its own: what must be equal when nothing was
    /// changed.
    pub(super) async fn everything(&self) -> Vec<String> {
        if let Some(store) = self.in_memory() {
            return store.rows(|rows| rows.everything());
        }
        let mut rows = vec![];
        for table in ["chats", "runs", "messages", "jobs", "run_events", "steps", "tool_calls", "idempotency"]
        {
            let row = if self.is_postgres() {
                format!("row_to_json({table})::text")
            } else {
                let sql = format!(
                    "select 'quote(\"' || group_concat(name, '\") || '','' || quote(\"') || '\")' \
                     from pragma_table_info('{table}')"
                );
                self.texts(&sql).await.concat()
            };
            let sql = format!("select '{table}: ' || {row} as row from {table} order by 1");
            rows.extend(self.texts(&sql).await);
        }
        rows
    }
}
