//! What must hold: after every request that the database served, and, in [`rest`], when everything has come to rest. What
//! is over stays as it was, as [`ended`] remembers it.

mod ended;
mod rest;

use std::collections::BTreeMap;

use longhaul_shared::{
    domain::{
        event::{EventData, ReleaseReason},
        ids::{ChatId, Epoch, RunId, Seq, WorkerId},
        retry::{LAST_CHANCE, PROBATION_MS},
        step::Step,
        tool::{CallState, Effect},
        transition::{Reason, RunStatus},
    },
    store::memory::{RunRow, State},
};

use self::ended::Rows;
use crate::{coverage::Coverage, world::World};

/// What was known of every run when it was looked at last.
#[derive(Default)]
pub struct Checker(BTreeMap<RunId, Known>);

struct Known {
    status: RunStatus,
    reason: Option<Reason>,
    rows: usize,
    last: Seq,
    epoch: Epoch,
    holder: Option<WorkerId>,
    steps: Vec<Step>,
    calls: BTreeMap<(u32, u32), CallState>,
    /// Everything there was of it when it ended.
    at_end: Option<Rows>,
}

impl Checker {
    /// The runs of which something changed behind their end.
    fn changed(&self, rows: &State) -> Vec<String> {
        let runs = rows.runs.values().enumerate();
        let changed = runs.filter_map(|(place, row)| {
            let then = self.0.get(&row.run.id)?.at_end.as_ref()?;
            then.difference(&Rows::of(rows, row)).map(|why| format!("run{place}: {why}"))
        });
        changed.collect()
    }
}

impl World {
    /// Compares the rows with what they were before the request that was just served.
    pub fn check_now(&mut self, process: usize, name: &'static str, is_orphan: bool) {
        let mut checker = std::mem::take(&mut self.checker);
        let (found, lines) = self.store.rows(|rows| {
            let (mut found, mut lines) = (vec![], vec![]);
            let mut active: Vec<ChatId> = vec![];
            for (place, row) in rows.runs.values().enumerate() {
                if row.run.status.holds_slot() {
                    if active.contains(&row.run.chat_id) {
                        found.push(format!("run{place} is active beside another one of its chat"));
                    }
                    active.push(row.run.chat_id);
                }
                let known = checker.0.entry(row.run.id).or_insert_with(|| Known {
                    status: row.run.status,
                    reason: None,
                    rows: 0,
                    last: 0,
                    epoch: 0,
                    holder: None,
                    steps: vec![],
                    calls: BTreeMap::new(),
                    at_end: None,
                });
                let line = known.compare(rows, row, name, self.is_calm, &mut found, &mut self.coverage);
                lines.extend(line.map(|line| format!("p{process} {name}: run{place} {line}")));
                for why in found.iter_mut().filter(|why| why.starts_with(": ")) {
                    *why = format!("run{place}{why} (by {name} of p{process})");
                }
            }
            check_last_chances(rows, &mut found);
            for worker in self.proven_dead.iter().filter(|worker| rows.is_alive(**worker)) {
                found.push(format!("the lease of {worker}, which was proven dead, is alive"));
            }
            (found, lines)
        });
        self.checker = checker;
        if is_orphan && !lines.is_empty() {
            self.coverage.late_writes += 1;
        }
        for line in lines {
            self.note(|| line);
        }
        for why in found {
            self.violate(why);
        }
    }
}

impl Known {
    /// What has changed, as a line of the trace. What must not have changed is `found`.
    fn compare(
        &mut self,
        rows: &State,
        row: &RunRow,
        by: &str,
        is_calm: bool,
        found: &mut Vec<String>,
        coverage: &mut Coverage,
    ) -> Option<String> {
        let run = &row.run;
        let log = rows.log.get(&run.id).map_or(&[][..], |log| &log[..]);
        let is_new = self.rows == 0;
        if !is_new && log.len() == self.rows && run.status == self.status {
            return None;
        }
        if !is_new && self.status.is_terminal() && (log.len() != self.rows || run.reason != self.reason) {
            found.push(format!(": it was over ({}) and changed", self.status));
        }
        if run.status != self.status && !self.status.may_become(run.status) {
            found.push(format!(": from {} to {}", self.status, run.status));
        }
        let epoch = self.epoch;
        let mut kinds = String::new();
        for new in &log[self.rows.min(log.len())..] {
            if new.segment.first != self.last + 1 || !new.segment.is_consistent() {
                found.push(format!(": {} behind {}", new.segment.first, self.last));
            }
            if new.epoch < self.epoch && new.epoch > 0 {
                found.push(format!(": an event of epoch {} behind epoch {}", new.epoch, self.epoch));
            }
            self.epoch = self.epoch.max(new.epoch);
            self.last = new.segment.last;
            for event in &new.segment.events {
                kinds.push(' ');
                kinds.push_str(&event.kind);
                if let Some(EventData::RunReleased { reason, .. }) =
                    (event.kind == "run.released").then(|| event.data()).flatten()
                {
                    match reason {
                        ReleaseReason::HandBack => coverage.hand_backs += 1,
                        ReleaseReason::Expired => {
                            coverage.takeovers += 1;
                            if self.holder.is_some_and(|holder| rows.is_alive(holder)) {
                                found.push(": it was taken from a worker that is alive".to_owned());
                            }
                        }
                        ReleaseReason::Broken => coverage.broken_attempts += 1,
                    }
                }
            }
        }
        let is_ended = run.status.is_terminal() && self.status == RunStatus::Running;
        let holder_lives = self.holder.is_some_and(|holder| rows.is_alive(holder));
        // Its holder ends it under its own epoch, or by giving it back.
        if is_ended && holder_lives && self.epoch > epoch && !matches!(by, "hand_back" | "disown") {
            coverage.stops_carried_out += 1;
            if run.stop_requested_at.is_none_or(|at| at > rows.now - rows.stop_grace_ms) {
                found.push(": it was ended over the head of a worker that is alive".to_owned());
            }
            if is_calm {
                found.push(": its holder did not follow its stop, and nothing kept it from that".to_owned());
            }
        }
        let steps = rows.steps.get(&run.id).map_or(&[][..], |steps| &steps[..]);
        if !steps.starts_with(&self.steps) {
            found.push(": a saved step changed".to_owned());
        }
        self.steps.extend_from_slice(&steps[self.steps.len().min(steps.len())..]);
        for (place, call) in rows.calls.get(&run.id).into_iter().flatten() {
            let before = self.calls.insert(*place, call.state);
            // One that only reads may be sent and answered in one commit.
            let is_legal = |before: CallState| {
                before == call.state
                    || before.may_become(call.state)
                    || (call.effect == Effect::Read
                        && before == CallState::Planned
                        && call.state.is_settled())
            };
            if before.is_some_and(|before| !is_legal(before)) {
                found.push(format!(": call {place:?} went from {before:?} to {}", call.state));
            }
        }
        let before = std::mem::replace(&mut self.status, run.status);
        self.rows = log.len();
        self.holder = rows.jobs.get(&run.id).and_then(|job| job.worker_id);
        self.reason = run.reason;
        if run.status.is_terminal() && self.at_end.is_none() {
            self.at_end = Some(Rows::of(rows, row));
        }
        Some(format!("{before} → {} @{} e{}:{kinds}", run.status, self.last, self.epoch))
    }
}

/// Of the runs at their last chance a worker begins one at a time.
fn check_last_chances(rows: &State, found: &mut Vec<String>) {
    let mut on_probation: BTreeMap<WorkerId, u32> = BTreeMap::new();
    for (run_id, job) in rows.jobs.iter().filter(|(_, job)| job.crashes >= LAST_CHANCE) {
        let has_no_step = rows.runs.get(run_id).is_some_and(|row| row.run.step_count == job.crash_step);
        let is_young = job.claimed_at.is_some_and(|at| at > rows.now - PROBATION_MS);
        if let Some(holder) = job.worker_id.filter(|_| has_no_step && is_young) {
            *on_probation.entry(holder).or_default() += 1;
        }
    }
    for (holder, _) in on_probation.iter().filter(|(_, runs)| **runs > 1) {
        found.push(format!("{holder} holds several runs that may have killed their workers"));
    }
}
