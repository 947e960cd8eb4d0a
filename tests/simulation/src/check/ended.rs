//! What was when a run ended, row by row, and that it is still so. Only a late answer may come to a call behind the end.

use std::fmt::Debug;

use longhaul_shared::{
    domain::{message::Message, run::Run, step::Step, tool::ToolCall},
    store::memory::{LogRow, RunRow, State},
};

/// The rows of a run at one moment.
pub(super) struct Rows {
    run: RunRow,
    messages: Vec<Message>,
    steps: Vec<Step>,
    calls: Vec<ToolCall>,
    log: Vec<LogRow>,
    has_job: bool,
}

impl Rows {
    pub(super) fn of(rows: &State, row: &RunRow) -> Self {
        let run: &Run = &row.run;
        Self {
            run: row.clone(),
            messages: rows.messages.values().filter(|m| m.run_id == Some(run.id)).cloned().collect(),
            steps: rows.steps.get(&run.id).into_iter().flatten().cloned().collect(),
            calls: rows.calls.get(&run.id).into_iter().flat_map(|calls| calls.values()).cloned().collect(),
            log: rows.log.get(&run.id).into_iter().flatten().cloned().collect(),
            has_job: rows.jobs.contains_key(&run.id),
        }
    }

    /// The first row that is not now what it was then, with both.
    pub(super) fn difference(&self, now: &Self) -> Option<String> {
        let is_same_run = self.run.run == now.run.run
            && (&self.run.queue, self.run.priority) == (&now.run.queue, now.run.priority);
        (!is_same_run)
            .then(|| changed("run", &self.run, &now.run))
            .or_else(|| first("message", &self.messages, &now.messages, PartialEq::eq))
            .or_else(|| first("step", &self.steps, &now.steps, PartialEq::eq))
            .or_else(|| first("call", &self.calls, &now.calls, is_same_call))
            .or_else(|| first("log row", &self.log, &now.log, is_same_log))
            .or_else(|| (self.has_job != now.has_job).then(|| changed("job", &self.has_job, &now.has_job)))
    }
}

fn first<T: Debug>(table: &str, then: &[T], now: &[T], is_same: impl Fn(&T, &T) -> bool) -> Option<String> {
    let rows = 0..then.len().max(now.len());
    let mut pairs = rows.map(|place| (then.get(place), now.get(place)));
    let is_changed = |(then, now): &(Option<&T>, Option<&T>)| match (then, now) {
        (Some(then), Some(now)) => !is_same(then, now),
        _ => true,
    };
    pairs.find(is_changed).map(|(then, now)| changed(table, &then, &now))
}

fn changed(table: &str, then: &dyn Debug, now: &dyn Debug) -> String {
    format!("its {table} changed behind its end from {then:?} to {now:?}")
}

/// A late answer may have come since, once.
fn is_same_call(then: &ToolCall, now: &ToolCall) -> bool {
    if then.late.is_none() && now.late.is_some() {
        *then == ToolCall { late: None, ..now.clone() }
    } else {
        then == now
    }
}

fn is_same_log(then: &LogRow, now: &LogRow) -> bool {
    let head = |row: &LogRow| {
        let segment = &row.segment;
        (segment.run_id, segment.first, segment.last, segment.at, row.epoch, segment.events.len())
    };
    head(then) == head(now)
        && then.segment.events.iter().zip(&now.segment.events).all(|(then, now)| {
            (&then.kind, then.step, then.attempt, then.data.get())
                == (&now.kind, now.step, now.attempt, now.data.get())
        })
}
