//! A history of the tables that the product does not know of: triggers copy each change, and rules look back at them.
//!
//! What holds at rest may have been broken a moment before; these rules would have seen it.

use anyhow::Result;
use longhaul_tests::rows::Rows;
use sqlx::{Executor, PgPool};

const INSTALL: &str = r"
create table fault_audit (
    id bigint generated always as identity primary key,
    at bigint not null default (extract(epoch from clock_timestamp()) * 1000)::bigint,
    tab text not null,
    op text not null,
    old jsonb,
    new jsonb,
    lease_until bigint
);
create index on fault_audit ((coalesce(new, old) ->> 'run_id'), id) where tab = 'jobs';
create function fault_audit() returns trigger language plpgsql as $$
declare
    before jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    after jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
    lease bigint;
begin
    -- What the lease was worth at the moment in which somebody lost a job.
    if tg_table_name = 'jobs' and before -> 'worker_id' is distinct from after -> 'worker_id' then
        select expires_at into lease from workers where id = (before ->> 'worker_id')::uuid;
    end if;
    insert into fault_audit (tab, op, old, new, lease_until) values (tg_table_name, tg_op, before, after, lease);
    return null;
end
$$;
create trigger fault_audit after insert or update or delete on runs for each row execute function fault_audit();
create trigger fault_audit after insert or update or delete on messages for each row execute function fault_audit();
create trigger fault_audit after insert or update or delete on steps for each row execute function fault_audit();
create trigger fault_audit after insert or update or delete on tool_calls for each row execute function fault_audit();
create trigger fault_audit after insert or update or delete on jobs for each row execute function fault_audit();
";

const RULES: &[(&str, &str)] = &[
    (
        "a run changed after its end",
        "select old ->> 'id' from fault_audit where tab = 'runs'
         and old ->> 'status' in ('succeeded', 'failed', 'aborted')
         and (op = 'DELETE' or old - 'updated_at' <> new - 'updated_at')",
    ),
    (
        "an answer changed after its end",
        "select old ->> 'id' from fault_audit where tab = 'messages' and old ->> 'role' = 'assistant'
         and old ->> 'status' in ('completed', 'error', 'aborted')
         and (op = 'DELETE' or old - 'updated_at' <> new - 'updated_at')",
    ),
    (
        "a question changed",
        "select old ->> 'id' from fault_audit where tab = 'messages' and old ->> 'role' = 'user'
         and (op = 'DELETE' or old - 'updated_at' <> new - 'updated_at')",
    ),
    (
        "a saved step changed",
        "select old ->> 'run_id' || ' step ' || (old ->> 'step') from fault_audit where tab = 'steps'
         and (op = 'DELETE' or (op = 'UPDATE' and old <> new))",
    ),
    (
        "a settled call was settled otherwise",
        "select old ->> 'idempotency_key' || ': ' || (old ->> 'state') || ' became ' || (new ->> 'state')
         from fault_audit where tab = 'tool_calls' and op = 'UPDATE'
         and old ->> 'state' in ('succeeded', 'failed', 'unknown', 'denied', 'cancelled')
         and (old -> 'state', old -> 'output', old -> 'error') is distinct from
             (new -> 'state', new -> 'output', new -> 'error')",
    ),
    (
        "the key of a call changed",
        "select old ->> 'idempotency_key' from fault_audit where tab = 'tool_calls' and op = 'UPDATE'
         and old -> 'idempotency_key' <> new -> 'idempotency_key'",
    ),
    (
        "a job whose epoch went back, or that changed hands without a new one",
        "select old ->> 'run_id' from fault_audit where tab = 'jobs' and op = 'UPDATE'
         and ((new ->> 'epoch')::bigint < (old ->> 'epoch')::bigint
         or (new ->> 'worker_id' is not null and new -> 'worker_id' <> old -> 'worker_id'
         and (new ->> 'epoch')::bigint <> (old ->> 'epoch')::bigint + 1))",
    ),
    (
        "a job that went from one worker to another without being released",
        "select old ->> 'run_id' from fault_audit where tab = 'jobs' and op = 'UPDATE'
         and old ->> 'worker_id' is not null and new ->> 'worker_id' is not null
         and old -> 'worker_id' <> new -> 'worker_id'",
    ),
    (
        "a run taken over while its worker's lease was good",
        // The holder's own release says so in the log, in the same transaction.
        "select a.old ->> 'run_id' || ' at ' || a.at || ', lease until ' || a.lease_until from fault_audit a
         where a.tab = 'jobs' and a.op = 'UPDATE' and a.old ->> 'worker_id' is not null
         and a.new ->> 'worker_id' is null and a.lease_until > a.at
         and exists (select from run_events e, json_array_elements(e.events::json) as event
         where e.run_id = (a.old ->> 'run_id')::uuid and e.epoch = (a.old ->> 'epoch')::bigint
         and event ->> 'type' = 'run.released'
         and event -> 'data' ->> 'reason' not in ('hand_back', 'broken'))",
    ),
    (
        "a row written under an epoch that was over",
        // What ends a run without its holder leaves the epochs of its calls as they were.
        "select a.tab || ' ' || (a.new ->> 'run_id') || ' at ' || a.at from fault_audit a
         where a.tab in ('steps', 'tool_calls')
         and (a.op = 'INSERT' or (a.op = 'UPDATE' and a.new ->> 'state' in ('dispatched', 'succeeded')
         and a.new -> 'state' <> a.old -> 'state'))
         and (a.new ->> 'epoch')::bigint < (select (coalesce(j.new, j.old) ->> 'epoch')::bigint from fault_audit j
         where j.tab = 'jobs' and coalesce(j.new, j.old) ->> 'run_id' = a.new ->> 'run_id' and j.id < a.id
         order by j.id desc limit 1)",
    ),
    (
        "two runs of a chat active at the same time",
        "with change as (
             select id, new ->> 'id' as run, new ->> 'chat_id' as chat, new ->> 'status' as status
             from fault_audit where tab = 'runs' and op <> 'DELETE'
         ), active as (
             select chat, run, min(id) filter (where status in ('pending', 'running', 'waiting')) as began,
             coalesce(min(id) filter (where status in ('succeeded', 'failed', 'aborted')), 9223372036854775807) as ended
             from change group by chat, run
         ), pair as (
             select chat, run, ended, lead(run) over at as next_run, lead(began) over at as next_began
             from active where began is not null window at as (partition by chat order by began)
         )
         select chat || ': ' || run || ' and ' || next_run from pair where next_began < ended",
    ),
];

/// Begins the history.
pub(crate) async fn install(pool: &PgPool) -> Result<()> {
    pool.execute(INSTALL).await?;
    Ok(())
}

/// What was broken at any moment since.
pub(crate) async fn broken(rows: &Rows) -> Vec<String> {
    let mut broken = Vec::new();
    for (rule, query) in RULES {
        broken.extend(rows.texts(query).await.into_iter().map(|row| format!("{rule}: {row}")));
    }
    broken
}

#[cfg(test)]
mod tests {
    use longhaul_tests::rows::Rows;
    use longhaul_tests::{Setup, World, quick};
    use sqlx::Executor;

    use super::{RULES, broken, install};

    /// What nobody may do, each as somebody would do it; together they break every rule.
    const CRIMES: &[&str] = &[
        "update runs set status = 'failed' where status = 'succeeded'",
        "update messages set parts = '[1]' where role = 'assistant' and status = 'completed'",
        "update messages set parts = '[1]' where role = 'user'",
        "update steps set finish_reason = 'length'",
        "update tool_calls set state = 'failed'",
        "update tool_calls set idempotency_key = 'another'",
        "insert into workers (id, host, version, slots, expires_at)
         values ('00000000-0000-0000-0000-000000000001', '', '', 1, now_ms() + 60000)",
        "insert into jobs (workspace_id, id, kind, run_id, queue, priority, run_at, epoch, worker_id)
         select workspace_id, '00000000-0000-0000-0000-000000000002', 'run', id, '', 0, now_ms() + 60000, 7,
         '00000000-0000-0000-0000-000000000001' from runs",
        "update jobs set worker_id = '00000000-0000-0000-0000-000000000003'",
        "update jobs set worker_id = '00000000-0000-0000-0000-000000000001', epoch = 8",
        "insert into run_events (workspace_id, run_id, first_seq, last_seq, epoch, events)
         select workspace_id, id, 1000, 1000, 8, '[{\"type\":\"run.released\",\"data\":{\"reason\":\"expired\"}}]'
         from runs",
        "update jobs set worker_id = null",
        "insert into fault_audit (tab, op, new) select 'steps', 'INSERT',
         jsonb_build_object('run_id', id, 'epoch', 1) from runs",
        "insert into fault_audit (tab, op, new) select 'runs', 'UPDATE',
         jsonb_build_object('id', n, 'chat_id', 'c', 'status', status)
         from (values (1, 'running'), (2, 'running'), (1, 'succeeded'), (2, 'succeeded')) as v (n, status)",
    ];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_rule_is_silent_about_an_honest_run_and_sees_what_it_forbids() {
        if quick() {
            return;
        }
        let world = World::start(Setup::postgres().agent("charges", "charges")).await;
        let Rows::Postgres(pool) = &world.rows else { unreachable!("it is a world on Postgres") };
        install(pool).await.unwrap();
        super::super::scripts::teach(&world.provider);
        let client = world.client();
        let run = client.submit("charges", "Charge it.").await;
        assert_eq!(client.ended(&run.run_id).await.outcome(), "succeeded done");
        assert_eq!(broken(&world.rows).await, Vec::<String>::new());

        for crime in CRIMES {
            pool.execute(*crime).await.unwrap_or_else(|error| panic!("{error}: {crime}"));
        }
        let found = broken(&world.rows).await;
        for (rule, _) in RULES {
            assert!(found.iter().any(|text| text.starts_with(rule)), "{rule} was not seen in {found:#?}");
        }
    }
}
