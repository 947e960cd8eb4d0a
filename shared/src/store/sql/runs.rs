//! Runs as readers see them.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::{QueryBuilder, Row};
use uuid::Uuid;

use super::{
    Db, SqlStore,
    admission::slot_holder,
    chats::{BEHIND_ALL, require_chat},
    lists::{HAS_TAG, bind_ids},
    log_read::log_behind,
    rows::{self, get, run_columns, run_place, step_columns, tool_call_columns},
};
use crate::{
    domain::{
        ids::{ChatId, Millis, RunId, WorkspaceId},
        run::{BlockedBy, Run},
        transition::RunStatus,
    },
    store::{
        Ancestor, Fresh, KeyName, KeyStop, KeyedRun, Listed, LogCursor, Page, Result, RunFilter, RunInput,
        RunRecord, Runs, StopOutcome, StoreError,
    },
};

#[async_trait]
impl Runs for SqlStore {
    async fn run(&self, workspace: WorkspaceId, run: RunId) -> Result<Run> {
        const SQL: &str = concat!(
            "select ",
            run_columns!(),
            ", ",
            run_place!(),
            " from runs r where r.workspace_id = $1 and r.id = $2 and r.deleted_at is null"
        );
        rows::run(&sqlx::query::<Db>(SQL).bind(workspace.0).bind(run.0).fetch_one(self.reader()).await?)
    }

    async fn input(&self, workspace: WorkspaceId, run: RunId) -> Result<RunInput> {
        const SQL: &str = "select r.id, m.parts, m.replaces_turn, r.request, r.previous_run_id from runs r \
            join messages m on m.workspace_id = r.workspace_id and m.id = r.user_message_id \
            where r.workspace_id = $1 and r.id = $2";
        let row = sqlx::query::<Db>(SQL).bind(workspace.0).bind(run.0).fetch_one(self.reader()).await?;
        Ok(RunInput {
            parts: rows::json(&row, "messages", "parts")?,
            asked: rows::json_or_null(&row, "runs", "request")?,
            previous_run_id: get::<Option<Uuid>>(&row, "previous_run_id")?.map(RunId),
            replaces_turn: get(&row, "replaces_turn")?,
        })
    }

    async fn ancestors(&self, workspace: WorkspaceId, run: RunId, limit: u32) -> Result<Vec<Ancestor>> {
        const SQL: &str = "with recursive line (id, previous_run_id, depth) as ( \
            select id, previous_run_id, 1 from runs where workspace_id = $1 and id = $2 \
            union all \
            select r.id, r.previous_run_id, line.depth + 1 \
            from line join runs r on r.workspace_id = $1 and r.id = line.previous_run_id where line.depth < $3 \
            ) select r.id, r.chat_id, r.turn, r.status, r.previous_run_id, m.parts from line \
            join runs r on r.workspace_id = $1 and r.id = line.id \
            join messages m on m.workspace_id = $1 and m.id = r.user_message_id order by line.depth";
        let rows = sqlx::query::<Db>(SQL)
            .bind(workspace.0)
            .bind(run.0)
            .bind(i64::from(limit))
            .fetch_all(self.reader())
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Ancestor {
                    run_id: get::<Uuid>(row, "id")?.into(),
                    chat_id: get::<Uuid>(row, "chat_id")?.into(),
                    turn: get(row, "turn")?,
                    status: rows::word(row, "runs", "status")?,
                    previous_run_id: get::<Option<Uuid>>(row, "previous_run_id")?.map(RunId),
                    parts: rows::json(row, "messages", "parts")?,
                })
            })
            .collect()
    }

    async fn run_of_request(
        &self,
        workspace: WorkspaceId,
        fingerprint: &[u8],
        fresh: Fresh,
    ) -> Result<Option<Run>> {
        const SQL: &str = concat!(
            "select ",
            run_columns!(),
            ", ",
            run_place!(),
            " from runs r where r.workspace_id = $1 and r.fingerprint = $2 and r.deleted_at is null \
             and r.created_at > ",
            now!(),
            " - $3 and (r.finished_at is null or r.finished_at > ",
            now!(),
            " - $4) order by r.id desc limit 1"
        );
        let row = sqlx::query::<Db>(SQL)
            .bind(workspace.0)
            .bind(fingerprint)
            .bind(fresh.made_within_ms)
            .bind(fresh.over_within_ms)
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(rows::run).transpose()
    }

    async fn run_of_key(&self, workspace: WorkspaceId, key: KeyName<'_>) -> Result<Option<KeyedRun>> {
        super::idempotency::run_of_key(self, workspace, key).await
    }

    async fn delete_run(&self, workspace: WorkspaceId, run: RunId) -> Result<()> {
        const SQL: &str = concat!(
            "update runs set deleted_at = ",
            now!(),
            " where workspace_id = $1 and id = $2 and deleted_at is null"
        );
        let done = sqlx::query::<Db>(SQL).bind(workspace.0).bind(run.0).execute(self.writer()).await?;
        if done.rows_affected() == 0 { Err(StoreError::NotFound) } else { Ok(()) }
    }

    async fn list_runs(
        &self,
        workspace: WorkspaceId,
        filter: &RunFilter,
        page: Page<RunId>,
    ) -> Result<Listed<Run, RunId>> {
        let mut query = QueryBuilder::<Db>::new(concat!(
            "select ",
            run_columns!(),
            ", ",
            run_place!(),
            " from runs r where r.deleted_at is null and "
        ));
        query.push("r.workspace_id = ").push_bind(workspace.0);
        query.push(" and r.id < ").push_bind(page.after.map_or(BEHIND_ALL, |id| id.0));
        push_filter(&mut query, filter);
        query.push(" order by r.id desc limit ").push_bind(page.fetch());
        let rows = query.build().fetch_all(self.reader()).await?;
        let runs = rows.iter().map(rows::run).collect::<Result<Vec<_>>>()?;
        Ok(Listed::cut(runs, &page, |run| run.id))
    }

    async fn latest_run(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Option<Run>> {
        const BEGUN: &str = concat!(
            "select ",
            run_columns!(),
            ", ",
            run_place!(),
            " from runs r where r.workspace_id = $1 and r.chat_id = $2 \
             and r.deleted_at is null and (r.status in ('pending', 'running', 'waiting') or r.started_at is not null) \
             order by r.turn desc limit 1"
        );
        const ANY: &str = concat!(
            "select ",
            run_columns!(),
            ", ",
            run_place!(),
            " from runs r where r.workspace_id = $1 and r.chat_id = $2 and r.deleted_at is null \
             order by r.turn desc limit 1"
        );
        require_chat(self, workspace, chat).await?;
        for sql in [BEGUN, ANY] {
            let row =
                sqlx::query::<Db>(sql).bind(workspace.0).bind(chat.0).fetch_optional(self.reader()).await?;
            if let Some(row) = row {
                return rows::run(&row).map(Some);
            }
        }
        Ok(None)
    }

    async fn blocked_by(&self, run: &Run) -> Result<Option<BlockedBy>> {
        Ok(match run.status {
            RunStatus::Scheduled => run.run_at.map(|run_at| BlockedBy::RunAt { run_at }),
            RunStatus::Queued => slot_holder(self.reader(), run.workspace_id, run.chat_id)
                .await?
                .map(|run_id| BlockedBy::Run { run_id }),
            RunStatus::Pending => blocked_job(self, run).await?,
            RunStatus::Waiting => Some(BlockedBy::Wait),
            RunStatus::Running | RunStatus::Succeeded | RunStatus::Failed | RunStatus::Aborted => None,
        })
    }

    async fn records(&self, workspace: WorkspaceId, runs: &[RunId]) -> Result<Vec<RunRecord>> {
        const STEPS: &str = concat!(
            "select ",
            step_columns!(),
            " from steps where workspace_id = $1 and run_id in ",
            listed_ids!("2"),
            " order by run_id, step"
        );
        const CALLS: &str = concat!(
            "select ",
            tool_call_columns!(),
            " from tool_calls where workspace_id = $1 and run_id in ",
            listed_ids!("2"),
            " order by run_id, step, call"
        );
        let mut records: HashMap<RunId, RunRecord> = runs.iter().map(|id| (*id, empty_record(*id))).collect();
        let read = async |sql: &'static str| {
            bind_ids(sqlx::query::<Db>(sql).bind(workspace.0), runs).fetch_all(self.reader()).await
        };

        for row in &read(STEPS).await? {
            let step = rows::step(row)?;
            if let Some(record) = records.get_mut(&step.run_id) {
                record.steps.push(step);
            }
        }
        for row in &read(CALLS).await? {
            let call = rows::tool_call(row)?;
            if let Some(record) = records.get_mut(&call.run_id) {
                record.calls.push(call);
            }
        }
        // Last, and from the steps that were read: what was saved meanwhile comes as events, without a gap.
        let cursors: Vec<LogCursor> = records
            .values()
            .map(|record| LogCursor {
                workspace_id: workspace,
                run_id: record.run_id,
                after: record.steps.last().map_or(0, |step| step.last_seq),
            })
            .collect();
        for segment in log_behind(self, &cursors, i64::MAX, i64::MAX).await? {
            if let Some(record) = records.get_mut(&segment.run_id) {
                record.tail.push(segment);
            }
        }
        Ok(runs.iter().map(|id| records.get(id).cloned().unwrap_or_else(|| empty_record(*id))).collect())
    }

    async fn stop_run(&self, workspace: WorkspaceId, run: RunId) -> Result<StopOutcome> {
        super::settle::stop_run(self, workspace, run).await
    }

    async fn stop_by_key(&self, workspace: WorkspaceId, key: KeyName<'_>) -> Result<KeyStop> {
        super::stop_by_key::stop_by_key(self, workspace, key).await
    }

    async fn supersede(&self, workspace: WorkspaceId, run: RunId) -> Result<Vec<StopOutcome>> {
        super::supersede::supersede(self, workspace, run).await
    }
}

fn push_filter(query: &mut QueryBuilder<Db>, filter: &RunFilter) {
    if !filter.status.is_empty() {
        // As literals, which are ours: the planner can then use the partial index of what is not over.
        let words: Vec<_> = filter.status.iter().map(|status| format!("'{status}'")).collect();
        query.push(" and r.status in (").push(words.join(", ")).push(")");
    }
    if let Some(chat) = filter.chat_id {
        query.push(" and r.chat_id = ").push_bind(chat.0);
    }
    if let Some(agent) = &filter.agent {
        query.push(" and r.agent = ").push_bind(agent.as_str());
    }
    if let Some(tag) = &filter.tag {
        query.push(" and ").push(HAS_TAG[0]).push_bind(tag.as_str()).push(HAS_TAG[1]);
    }
    if let Some(after) = filter.created_after {
        query.push(" and r.created_at > ").push_bind(after);
    }
    if let Some(before) = filter.created_before {
        query.push(" and r.created_at < ").push_bind(before);
    }
}

fn empty_record(run_id: RunId) -> RunRecord {
    RunRecord { run_id, steps: vec![], calls: vec![], tail: vec![] }
}

/// Why nobody has claimed the run's job: it is due later, or there is no worker, or none with a free slot.
async fn blocked_job(store: &SqlStore, run: &Run) -> Result<Option<BlockedBy>> {
    const SQL: &str = concat!(
        "select (select j.run_at from jobs j where j.workspace_id = $1 and j.run_id = $2 and j.kind = 'run' \
         and j.run_at > ",
        now!(),
        ") as due, count(*) as live, count(*) filter (where w.slots > \
         (select count(*) from jobs h where h.worker_id = w.id)) as free \
         from workers w where not w.draining and w.expires_at > ",
        now!()
    );
    let row =
        sqlx::query::<Db>(SQL).bind(run.workspace_id.0).bind(run.id.0).fetch_one(store.reader()).await?;
    let due: Option<Millis> = row.try_get("due")?;
    let live: i64 = row.try_get("live")?;
    let free: i64 = row.try_get("free")?;
    Ok(match (due, live, free) {
        (Some(run_at), ..) => Some(BlockedBy::RunAt { run_at }),
        (None, 0, _) => Some(BlockedBy::NoWorker),
        (None, _, 0) => Some(BlockedBy::Workers),
        (None, ..) => None,
    })
}
