//! What became of each run, read once from the database when everything is at rest.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use serde_json::Value;
use sqlx::PgPool;

use super::tails::Event;

/// Times are Unix milliseconds by the database's clock.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) agent: String,
    pub(crate) outcome: String,
    pub(crate) finished_at: Option<i64>,
    /// One for each event of its log.
    pub(crate) digests: Vec<u64>,
    pub(crate) changes: Vec<(i64, Change)>,
    /// How often each step was begun again.
    pub(crate) restarts: BTreeMap<usize, usize>,
    pub(crate) steps: BTreeMap<usize, Step>,
    pub(crate) calls: Vec<Call>,
}

/// Who had it from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Claimed { worker: String },
    Released { reason: String },
    Finished,
}

#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) text: String,
    pub(crate) finish_reason: String,
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) op: String,
    pub(crate) key: String,
    /// For the first time.
    pub(crate) dispatched_at: Option<i64>,
    pub(crate) settled_at: Option<i64>,
}

#[derive(Debug)]
pub(crate) struct History {
    pub(crate) runs: HashMap<String, Run>,
    /// The words of each question, by its run.
    pub(crate) questions: Vec<(String, String)>,
}

impl History {
    pub(crate) async fn read(pool: &PgPool) -> Result<Self> {
        let mut history = Self { runs: HashMap::new(), questions: Vec::new() };
        let mut rows = sqlx::query_as::<_, (String, String, String, Option<i64>)>(
            "select id::text, agent, status || ' ' || coalesce(reason, '-'), finished_at from runs",
        )
        .fetch(pool);
        while let Some((id, agent, outcome, finished_at)) = rows.try_next().await? {
            let run = Run {
                agent,
                outcome,
                finished_at,
                digests: Vec::new(),
                changes: Vec::new(),
                restarts: BTreeMap::new(),
                steps: BTreeMap::new(),
                calls: Vec::new(),
            };
            history.runs.insert(id, run);
        }
        history.read_logs(pool).await?;
        history.read_steps(pool).await?;
        history.read_calls(pool).await?;
        history.questions = sqlx::query_as(
            "select parts::text, run_id::text from messages where role = 'user' and run_id is not null",
        )
        .fetch_all(pool)
        .await?;
        Ok(history)
    }

    fn run(&mut self, id: &str) -> Result<&mut Run> {
        self.runs.get_mut(id).with_context(|| format!("rows of a run that does not exist: {id}"))
    }

    async fn read_logs(&mut self, pool: &PgPool) -> Result<()> {
        let mut rows = sqlx::query_as::<_, (String, String, i64)>(
            "select run_id::text, events, created_at from run_events order by run_id, first_seq",
        )
        .fetch(pool);
        while let Some((id, events, at)) = rows.try_next().await? {
            let run = self.run(&id)?;
            for event in serde_json::from_str::<Vec<Event>>(&events)? {
                run.digests.push(event.digest());
                run.take(&event, at);
            }
        }
        Ok(())
    }

    async fn read_steps(&mut self, pool: &PgPool) -> Result<()> {
        let mut rows = sqlx::query_as::<_, (String, i32, String, String)>(
            "select run_id::text, step, output::text, finish_reason from steps",
        )
        .fetch(pool);
        while let Some((id, number, output, finish_reason)) = rows.try_next().await? {
            let output: Vec<Value> = serde_json::from_str(&output)?;
            let text = output.iter().filter_map(|part| part["text"].as_str()).collect();
            self.run(&id)?.steps.insert(number as usize, Step { text, finish_reason });
        }
        Ok(())
    }

    async fn read_calls(&mut self, pool: &PgPool) -> Result<()> {
        type Row = (String, String, String, String, String, Option<i64>, Option<i64>);
        let mut rows = sqlx::query_as::<_, Row>(
            // A call that is repeated is dispatched again; what counts is the first time.
            "select c.run_id::text, name, state, arguments, idempotency_key, first.at, settled_at from tool_calls c
             left join (select new ->> 'idempotency_key' as key, min((new ->> 'dispatched_at')::bigint) as at
             from fault_audit where tab = 'tool_calls' group by 1) as first on first.key = idempotency_key",
        )
        .fetch(pool);
        while let Some((id, name, state, arguments, key, dispatched_at, settled_at)) = rows.try_next().await?
        {
            let arguments: Value = serde_json::from_str(&arguments).unwrap_or_default();
            let op = arguments["op"].as_str().unwrap_or_default().to_owned();
            let call = Call { name, state, op, key, dispatched_at, settled_at };
            self.run(&id)?.calls.push(call);
        }
        Ok(())
    }
}

impl Run {
    fn take(&mut self, event: &Event, at: i64) {
        let text = |name: &str| event.data[name].as_str().unwrap_or_default().to_owned();
        match event.kind.as_str() {
            "run.claimed" => self.changes.push((at, Change::Claimed { worker: text("workerId") })),
            "run.released" => self.changes.push((at, Change::Released { reason: text("reason") })),
            "run.finished" => self.changes.push((at, Change::Finished)),
            "step.restarted" => *self.restarts.entry(event.step.unwrap_or(0) as usize).or_default() += 1,
            _ => {}
        }
    }

    pub(crate) fn claims(&self) -> usize {
        self.changes.iter().filter(|(_, change)| matches!(change, Change::Claimed { .. })).count()
    }

    /// How often it was taken from somebody who did not give it.
    pub(crate) fn takeovers(&self) -> usize {
        self.takeovers_before(i64::MAX)
    }

    /// How often its attempt broke, or was taken from its worker.
    pub(crate) fn losses(&self) -> usize {
        let is_loss =
            |change: &Change| matches!(change, Change::Released { reason } if reason != "hand_back");
        self.changes.iter().filter(|(_, change)| is_loss(change)).count()
    }

    pub(crate) fn takeovers_before(&self, moment: i64) -> usize {
        let taken = |reason: &String| reason != "hand_back" && reason != "broken";
        let taken = |(at, change): &&(i64, Change)| {
            *at < moment && matches!(change, Change::Released { reason } if taken(reason))
        };
        self.changes.iter().filter(taken).count()
    }

    /// Whether somebody else, or nobody, had it at some moment from then to then.
    pub(crate) fn changed_hands(&self, from: i64, until: i64) -> bool {
        self.changes
            .iter()
            .any(|(at, change)| (from..=until).contains(at) && !matches!(change, Change::Finished))
    }

    /// Whose it was at that moment.
    pub(crate) fn owner_at(&self, moment: i64) -> Option<&str> {
        match self.changes.iter().rev().find(|(at, _)| *at < moment)? {
            (_, Change::Claimed { worker }) => Some(worker),
            _ => None,
        }
    }

    /// When it was claimed next after that moment.
    pub(crate) fn claimed_after(&self, moment: i64) -> Option<i64> {
        let claimed =
            |(at, change): &&(i64, Change)| *at >= moment && matches!(change, Change::Claimed { .. });
        self.changes.iter().find(claimed).map(|(at, _)| *at)
    }
}
