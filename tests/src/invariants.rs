//! What must hold after any test, asked of the database. Each rule is a query for what breaks it: no row is good.
//!
//! The rules are about a world at rest or in motion alike; those that only hold once a run is over ask for runs that
//! are over.

use serde_json::Value;

use crate::rows::Rows;
use crate::story::{Event, Story};

/// What it is that must never be found, and the query that finds it.
const RULES: &[(&str, &str)] = &[
    (
        "an active run without a job",
        "select id_text(r.id) from runs r where r.status in ('pending', 'running')
         and not exists (select 1 from jobs j where j.run_id = r.id and j.kind = 'run')",
    ),
    (
        "a job of a run that is not active",
        "select id_text(j.run_id) from jobs j where j.kind = 'run' and not exists
         (select 1 from runs r where r.id = j.run_id and r.status in ('pending', 'running'))",
    ),
    (
        "two active runs in a chat",
        "select id_text(chat_id) from runs where status in ('pending', 'running', 'waiting')
         group by chat_id having count(*) > 1",
    ),
    (
        "a run that waits in a chat where none is active",
        "select id_text(r.id) from runs r where r.status = 'queued' and not exists
         (select 1 from runs a where a.chat_id = r.chat_id and a.status in ('pending', 'running', 'waiting'))",
    ),
    (
        "an answer whose status is not that of its run",
        "select id_text(r.id) || ' ' || r.status || ' ' || m.status from runs r
         join messages m on m.id = r.assistant_message_id
         where m.status <> case r.status when 'succeeded' then 'completed' when 'failed' then 'error'
         when 'aborted' then 'aborted' else 'streaming' end",
    ),
    (
        "a run without its two messages",
        "select id_text(r.id) from runs r where 2 <> (select count(*) from messages m
         where m.run_id = r.id and m.chat_id = r.chat_id and m.turn = r.turn
         and m.id in (r.user_message_id, r.assistant_message_id))",
    ),
    (
        "a chat whose turns are not dense, or not a question each, with an answer unless it was imported",
        "select id_text(chat_id) from messages group by chat_id
         having min(turn) <> 1 or count(*) filter (where position = 0) <> max(turn)
         or count(*) filter (where position = 1) <> count(*) filter (where position = 0 and run_id is not null)",
    ),
    (
        "an answer to something else than the question before it",
        "select id_text(a.id) from messages a where a.position = 1 and not exists
         (select 1 from messages q where q.id = a.in_reply_to and q.chat_id = a.chat_id and q.turn = a.turn
         and q.position = 0)",
    ),
    (
        "a log with a gap or an overlap",
        "select id_text(run_id) || ' at ' || cast(first_seq as text) from (select run_id, first_seq,
         coalesce(lag(last_seq) over (partition by run_id order by first_seq), 0) as before from run_events) as log
         where first_seq <> before + 1",
    ),
    (
        "a segment that does not hold as many events as it says",
        "select id_text(run_id) || ' at ' || cast(first_seq as text) from run_events
         where json_array_length(events_json) <> last_seq - first_seq + 1",
    ),
    (
        "a log whose epochs go back",
        "select id_text(run_id) || ' at ' || cast(first_seq as text) from (select run_id, first_seq, epoch,
         lag(epoch) over (partition by run_id order by first_seq) as before from run_events) as log
         where epoch < before",
    ),
    (
        "a step written under another epoch than its end in the log",
        "select id_text(s.run_id) || ' step ' || cast(s.step as text) from steps s where not exists
         (select 1 from run_events e where e.run_id = s.run_id and s.last_seq between e.first_seq and e.last_seq
         and e.epoch = s.epoch)",
    ),
    (
        "steps that are not dense",
        "select id_text(run_id) from steps group by run_id having min(step) <> 1 or max(step) <> count(*)",
    ),
    (
        "calls of a step that are not dense",
        "select id_text(run_id) from tool_calls group by run_id, step having min(call) <> 1 or max(call) <> count(*)",
    ),
    (
        "a run that miscounts its steps",
        "select id_text(r.id) from runs r
         where r.step_count <> (select count(*) from steps s where s.run_id = r.id)",
    ),
    (
        "a run whose usage is not the sum of its steps",
        "select id_text(r.id) from runs r left join (select run_id, sum(input_tokens) as input,
         sum(output_tokens) as output, sum(reasoning_tokens) as reasoning, sum(cached_input_tokens) as cached
         from steps group by run_id) as s on s.run_id = r.id
         where r.input_tokens <> coalesce(s.input, 0) or r.output_tokens <> coalesce(s.output, 0)
         or r.reasoning_tokens <> coalesce(s.reasoning, 0) or r.cached_input_tokens <> coalesce(s.cached, 0)",
    ),
    (
        "a run that was asked to stop and came to another end",
        "select id_text(id) || ' ' || reason from runs where status in ('succeeded', 'failed', 'aborted')
         and stop_requested_at is not null and (stop_reason is null or reason <> stop_reason)",
    ),
    (
        "a call without an outcome in a run that is over",
        "select id_text(r.id) || ' ' || c.name || ' ' || c.state from runs r join tool_calls c on c.run_id = r.id
         where r.status in ('succeeded', 'failed', 'aborted')
         and c.state in ('awaiting_approval', 'planned', 'dispatched')",
    ),
    (
        "two calls under one idempotency key",
        "select idempotency_key from tool_calls group by idempotency_key having count(*) > 1",
    ),
    (
        "a run whose times are out of order",
        "select id_text(id) from runs where started_at < created_at or finished_at < coalesce(started_at, created_at)
         or (finished_at is not null) <> (status in ('succeeded', 'failed', 'aborted'))",
    ),
    (
        "a step whose times are out of order",
        "select id_text(s.run_id) || ' step ' || cast(s.step as text) from steps s join runs r on r.id = s.run_id
         where s.finished_at < s.started_at or s.started_at < r.started_at or s.finished_at > r.finished_at",
    ),
    (
        "a call whose times are out of order",
        "select id_text(run_id) || ' ' || name from tool_calls
         where dispatched_at < planned_at or settled_at < coalesce(dispatched_at, planned_at)",
    ),
    (
        "a late result of a call that was answered in time or never sent",
        "select id_text(run_id) || ' ' || name from tool_calls where (late_at is null) <> (late_state is null)
         or (late_at is not null and (state not in ('unknown', 'cancelled') or dispatched_at is null))",
    ),
    (
        "an idempotency key with neither an answer nor the wish to stop, or with half of an answer",
        "select key from idempotency where (run_id is null) <> (answer is null)
         or (run_id is null and stop_requested_at is null)",
    ),
    (
        "a row in another workspace than its run",
        "select 'message ' || id_text(m.id) from messages m join runs r on r.id = m.run_id
         where m.workspace_id <> r.workspace_id
         union all select 'chat ' || id_text(c.id) from chats c join runs r on r.chat_id = c.id
         where c.workspace_id <> r.workspace_id
         union all select 'job ' || id_text(j.id) from jobs j join runs r on r.id = j.run_id
         where j.workspace_id <> r.workspace_id
         union all select 'log ' || id_text(e.run_id) from run_events e join runs r on r.id = e.run_id
         where e.workspace_id <> r.workspace_id
         union all select 'step ' || id_text(s.run_id) from steps s join runs r on r.id = s.run_id
         where s.workspace_id <> r.workspace_id
         union all select 'call ' || id_text(t.run_id) from tool_calls t join runs r on r.id = t.run_id
         where t.workspace_id <> r.workspace_id
         union all select 'key ' || i.key from idempotency i join runs r on r.id = i.run_id
         where i.workspace_id <> r.workspace_id",
    ),
];

/// Everything that is wrong in this database, in words.
pub async fn broken(rows: &Rows) -> Vec<String> {
    let mut broken = Vec::new();
    for (rule, query) in RULES {
        broken.extend(rows.texts(query).await.into_iter().map(|row| format!("{rule}: {row}")));
    }
    let over = "status in ('succeeded', 'failed', 'aborted')";
    for (is_over, which) in [(true, over.to_owned()), (false, format!("not {over}"))] {
        for run in rows.texts(&format!("select id_text(id) from runs where {which}")).await {
            broken
                .extend(flaws_of(rows, &run, is_over).await.into_iter().map(|flaw| format!("{flaw}: {run}")));
        }
    }
    broken
}

/// What is wrong with the log of one run, or between its log and its steps.
async fn flaws_of(rows: &Rows, run: &str, is_over: bool) -> Vec<String> {
    let mut flaws = Vec::new();
    let log = rows.log(run).await;
    if log.first().is_none_or(|event| event.kind != "run.queued") {
        flaws.push("a log that does not begin with run.queued".to_owned());
    }
    let ends = log.iter().filter(|event| event.kind == "run.finished").count();
    let is_last = log.last().is_some_and(|event| event.kind == "run.finished");
    if ends != usize::from(is_over) || is_last != is_over {
        flaws.push(format!(
            "a log with {ends} ends of a run that is {}over",
            if is_over { "" } else { "not " }
        ));
    }
    flaws.extend(flaws_of_stages(&log));
    let told = Story::of(&log).steps;
    let saved = rows.outputs(run).await;
    let told_saved: Vec<Vec<(&str, String)>> =
        told.values().filter(|step| step.is_saved).map(crate::story::Told::output).collect();
    let rows_saved: Vec<Vec<(&str, String)>> = saved.iter().map(stretches).collect();
    if told_saved != rows_saved {
        flaws.push(format!("a log that tells {told_saved:?} where the steps say {rows_saved:?}"));
    }
    flaws
}

/// A run that ends because somebody wished it says so first; the holder alone says that it has heard of it.
fn flaws_of_stages(log: &[Event]) -> Option<String> {
    let stages: Vec<_> = log
        .iter()
        .filter(|event| event.kind == "run.stopping")
        .map(|event| event.data["stage"].as_str().unwrap_or("none"))
        .collect();
    let reason = log.last().filter(|event| event.kind == "run.finished").map(|event| &event.data["reason"]);
    let is_stopped =
        reason.is_some_and(|reason| ["stop", "superseded", "chat_deleted"].iter().any(|word| reason == word));
    let expected: &[&[&str]] =
        if is_stopped { &[&["requested"], &["requested", "delivered"]] } else { &[&[]] };
    (!expected.contains(&&stages[..])).then(|| format!("a log with the stages {stages:?} of a stop"))
}

/// The output of a step row as kinds and texts, or ids of calls.
fn stretches(output: &Value) -> Vec<(&str, String)> {
    let parts = output.as_array().map(Vec::as_slice).unwrap_or_default();
    let word =
        |part: &Value| part["text"].as_str().or(part["call_id"].as_str()).unwrap_or_default().to_owned();
    parts.iter().map(|part| (part["type"].as_str().unwrap_or_default(), word(part))).collect()
}
