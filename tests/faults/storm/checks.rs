//! What must be true when everything is at rest, of everything that anybody wrote down: clients, provider, tools and
//! processes, each held against the rows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use longhaul_tests::End;
use longhaul_tests::fake_provider::Call;
use longhaul_tests::story::marks_of;
use longhaul_tests::tool_server::Entry;

use super::figures::Identities;
use super::history::{History, Run};
use super::install::{PROVIDER_RETRIES, SECRETS, TOOL_TIMEOUT};
use super::journal::{Journal, Outcome, Stop};
use super::outages::Outages;
use super::scripts::Kind;
use super::weather::{EXIT, Incident};
use crate::clock::Clock;
use crate::workers::said;

/// With so many losses of its worker in a row a run may be given up.
const CRASH_LIMIT: usize = 3;
/// How long after its end a run may still be spoken of by a worker that woke up and does not know yet.
const UNAWARE_MS: i64 = 10_000;
/// The database's milliseconds are cut off, not rounded.
const ROUNDING_MS: i64 = 2;
/// How soon a stream is closed by whoever may not have it any more.
const CLOSED_WITHIN_MS: i64 = 1_000;
/// How much later than it happened an end is noticed.
const NOTICED_MS: i64 = 400;

/// What clients were told, against what is so.
pub(crate) fn journal(journal: &Journal, history: &History) -> Vec<String> {
    let mut broken = journal.complaints.clone();
    let mut asked: HashMap<&str, Vec<&str>> = HashMap::new();
    for (parts, run) in &history.questions {
        let mark =
            parts.split(['"', ' ', '.']).find(|word| is_mark(word)).unwrap_or("a question of nobody's");
        asked.entry(mark).or_default().push(run);
    }
    let mut runs_of_keys = BTreeSet::new();
    for submission in &journal.submissions {
        let (mark, key) = (&submission.mark, &submission.key);
        let asked = asked.remove(mark.as_str()).unwrap_or_default();
        let was_refused = submission.answers.keys().any(|answer| answer.contains("A_RUN_ALREADY_ACTIVE"));
        if submission.runs.len() > 1 || (!submission.runs.is_empty() && was_refused) {
            broken
                .push(format!("one key, two answers: {key} {:?} {:?}", submission.runs, submission.answers));
        }
        match &submission.outcome {
            Outcome::Accepted { run, .. } => {
                if asked != [run] {
                    broken.push(format!("{run} was accepted for {mark}, which is the question of {asked:?}"));
                }
                if !history.runs.contains_key(run) {
                    broken.push(format!("an accepted run is not there: {run}"));
                }
                if !runs_of_keys.insert(run) {
                    broken.push(format!("two keys, one run: {run}"));
                }
            }
            Outcome::Refused if !asked.is_empty() => {
                broken.push(format!("what was refused was stored: {mark} as {asked:?}"));
            }
            Outcome::GivenUp if asked.len() > 1 => {
                broken.push(format!("asked once, stored as {asked:?}: {mark}"));
            }
            Outcome::Refused | Outcome::GivenUp => {}
        }
    }
    broken.extend(asked.into_iter().map(|(mark, runs)| format!("{mark} became {runs:?}, asked by nobody")));
    for (id, run) in &history.runs {
        let is_over = ["succeeded", "failed", "aborted"].iter().any(|status| run.outcome.starts_with(status));
        let is_reasonable = match run.outcome.as_str() {
            "succeeded done" => run.agent != "refused" && run.agent != "loops",
            "failed step_limit" => run.agent == "loops",
            "failed provider" => true,
            // The third loss is the end itself.
            "failed crash_limit" => run.losses() + 1 >= CRASH_LIMIT,
            "aborted stop" => journal.stops_asked.contains(id),
            _ => false,
        };
        if !is_over || !is_reasonable {
            broken.push(format!("a run of {} ended as {}: {id}", run.agent, run.outcome));
        }
    }
    broken
}

fn is_mark(word: &str) -> bool {
    word.starts_with("mark-") || word.starts_with("probe-")
}

/// What tails saw, against the log.
pub(crate) fn tails(journal: &Journal, history: &History) -> Vec<String> {
    let mut broken = Vec::new();
    for tail in &journal.tails {
        let run = &tail.run;
        broken.extend(tail.complaints.iter().map(|complaint| format!("a tail of {run}: {complaint}")));
        let Some(row) = history.runs.get(run) else {
            broken.push(format!("a tail of {run}, which is not there"));
            continue;
        };
        if tail.digests != row.digests && tail.complaints.is_empty() {
            let same = tail.digests.iter().zip(&row.digests).take_while(|(seen, is)| seen == is).count();
            broken.push(format!(
                "a tail of {run} saw {} events, of which {same} are the log's; the log has {}",
                tail.digests.len(),
                row.digests.len()
            ));
        }
        if tail.end.as_ref().is_some_and(|end| *end != row.outcome) {
            broken.push(format!("a tail of {run} ended with {:?}, the run with {}", tail.end, row.outcome));
        }
    }
    broken
}

/// What the provider was asked, against the saved steps.
pub(crate) fn provider(
    calls: &[Call],
    history: &History,
    incidents: &[Incident],
    clock: &Clock,
) -> Vec<String> {
    let mut broken = Vec::new();
    let mut by_run: HashMap<&str, BTreeMap<usize, Vec<&Call>>> = HashMap::new();
    for call in calls {
        by_run.entry(&call.key).or_default().entry(call.turn).or_default().push(call);
    }
    for (id, turns) in &by_run {
        let Some(run) = history.runs.get(*id) else {
            broken.push(format!("the provider was asked for {id}, which is not there"));
            continue;
        };
        broken.extend(histories(id, turns));
        for (turn, attempts) in turns {
            broken.extend(repetitions(id, run, *turn, attempts, incidents, clock));
        }
        let begins = turns.values().flatten().map(|call| clock.ms(call.begin));
        if let (Some(last), Some(end)) = (begins.max(), run.finished_at)
            && last > end + UNAWARE_MS
        {
            broken.push(format!("the provider was asked for {id} {} ms after its end", last - end));
        }
    }
    for (id, run) in &history.runs {
        let kind = Kind::named(&run.agent);
        for (number, step) in run.steps.iter().filter(|(_, step)| step.finish_reason != "interrupted") {
            let marks = kind.map_or(0, |kind| kind.marks_of_turn(*number));
            let attempt = marks_of(&step.text, *number, marks);
            let said = by_run.get(id.as_str()).and_then(|turns| turns.get(number)).into_iter().flatten();
            let is_whole = attempt.is_some_and(|attempt| {
                said.clone().any(|call| call.attempt == attempt && call.ended() == Some(End::Complete))
            });
            if !is_whole {
                broken.push(format!("step {number} of {id} is no whole answer: {:?}", step.text));
            }
        }
    }
    broken
}

/// What was sent once is sent again as it was, and more behind it.
fn histories(id: &str, turns: &BTreeMap<usize, Vec<&Call>>) -> Vec<String> {
    let mut broken = Vec::new();
    let mut before: &[u64] = &[];
    for (turn, attempts) in turns {
        let first = &attempts[0].history;
        if attempts.iter().any(|call| call.history != *first) {
            broken.push(format!("attempts at turn {turn} of {id} were asked different questions"));
        }
        if !first.starts_with(before) {
            broken.push(format!("turn {turn} of {id} is not behind the turn before it"));
        }
        before = first;
    }
    broken
}

/// A whole answer is bought again only when its first buyer was lost, or the wire to it.
fn repetitions(
    id: &str,
    run: &Run,
    turn: usize,
    attempts: &[&Call],
    incidents: &[Incident],
    clock: &Clock,
) -> Option<String> {
    let (from, until) = (clock.ms(attempts[0].begin), clock.ms(attempts[attempts.len() - 1].begin));
    let on_the_wire = incidents
        .iter()
        .filter(|incident| incident.link == Some("provider") && incident.overlaps(from, until))
        .count();
    let restarts = run.restarts.get(&turn).copied().unwrap_or(0);
    let complete = attempts.iter().filter(|call| call.ended() == Some(End::Complete)).count();
    let lives = 1 + restarts + run.claims();
    let is_bounded = attempts.len() <= lives * (1 + PROVIDER_RETRIES) && complete <= lives + on_the_wire;
    (!is_bounded).then(|| {
        format!(
            "turn {turn} of {id} was asked for {} times, answered {complete} times, with {restarts} restarts and {} claims",
            attempts.len(),
            run.claims()
        )
    })
}

/// What tools did, against what was recorded of it.
pub(crate) fn ledger(
    entries: &[Entry],
    history: &History,
    incidents: &[Incident],
    clock: &Clock,
) -> Vec<String> {
    let mut broken = Vec::new();
    let recorded =
        history.runs.iter().flat_map(|(id, run)| run.calls.iter().map(move |call| (id, run, call)));
    let by_key: HashMap<&str, _> = recorded.clone().map(|found| (found.2.key.as_str(), found)).collect();
    let mut keys: HashMap<&str, HashSet<&str>> = HashMap::new();
    let mut effects: HashMap<(&str, &str), usize> = HashMap::new();
    // What only reads needs no record, and has no effect.
    for entry in entries.iter().filter(|entry| entry.tool != "look") {
        let key = entry.key.as_deref().unwrap_or("no key");
        keys.entry(&entry.op).or_default().insert(key);
        *effects.entry((&entry.tool, &entry.op)).or_default() += usize::from(entry.nth.is_some());
        let arrived = clock.ms(entry.arrived);
        let dispatched = by_key.get(key).and_then(|(.., call)| call.dispatched_at);
        match dispatched {
            None => broken.push(format!("{} was done under {key}, of which nothing is recorded", entry.op)),
            Some(at) if at > arrived + ROUNDING_MS => {
                let early = at - arrived;
                broken.push(format!("{} was done {early} ms before that was recorded: {key}", entry.op));
            }
            Some(_) => {}
        }
    }
    for (op, keys) in keys.iter().filter(|(_, keys)| keys.len() > 1) {
        broken.push(format!("{op} was asked for under several keys: {keys:?}"));
    }
    for ((tool, op), count) in effects.iter().filter(|(_, count)| **count > 1) {
        broken.push(format!("{tool} was done {count} times: {op}"));
    }
    for (id, run, call) in recorded {
        let is_done = effects.get(&(call.name.as_str(), call.op.as_str())).is_some_and(|count| *count > 0);
        if call.name != "look" && call.state == "succeeded" && !is_done {
            broken.push(format!("a call succeeded and had no effect: {} {id}", call.op));
        }
        if call.state == "unknown" && !has_an_excuse(run, call, incidents) {
            broken.push(format!("nobody knows what became of {}, for no reason: {id}", call.op));
        }
    }
    broken
}

/// The outcome of a call may be lost with its worker, with the wire, or with the patience of somebody.
fn has_an_excuse(run: &Run, call: &super::history::Call, incidents: &[Incident]) -> bool {
    let (Some(sent), Some(settled)) = (call.dispatched_at, call.settled_at) else { return false };
    let is_over = matches!(run.outcome.as_str(), "aborted stop" | "failed crash_limit");
    let on_the_wire = incidents
        .iter()
        .any(|incident| incident.link == Some("tools") && incident.overlaps(sent - 100, settled));
    let in_vain = settled - sent >= TOOL_TIMEOUT.as_millis() as i64;
    run.changed_hands(sent, settled) || is_over || on_the_wire || in_vain
}

/// A stop that was accepted is how its run ends, however near another end was.
pub(crate) fn stops(journal: &Journal, history: &History) -> Vec<String> {
    let mut broken = Vec::new();
    for Stop { run: id, .. } in &journal.stops {
        match history.runs.get(id) {
            None => broken.push(format!("a stop of {id}, which is not there, was accepted")),
            Some(run) if run.finished_at.is_some() && run.outcome != "aborted stop" => {
                broken.push(format!("a stop was lost: {id} ended {}", run.outcome));
            }
            Some(_) => {}
        }
    }
    broken
}

/// A worker that slept through its lease does nothing more for the runs that it had.
pub(crate) fn zombies(
    calls: &[Call],
    ledger: &[Entry],
    history: &History,
    incidents: &[Incident],
    identities: &Identities,
    clock: &Clock,
) -> Vec<String> {
    let outages = Outages::of(incidents);
    let mut broken = Vec::new();
    for sleep in incidents.iter().filter(|incident| incident.fault == "worker_freezes") {
        let (Some(slot), Some(woke)) = (sleep.slot.as_deref(), sleep.turned) else { continue };
        // By the same process under a new lease.
        let has_anew = |run: &str, at: i64| {
            let owner = history.runs.get(run).and_then(|run| run.owner_at(at + ROUNDING_MS));
            let origin = owner.and_then(|worker| identities.origin(worker));
            origin.is_some_and(|(registered, of)| of == slot && registered >= woke - ROUNDING_MS)
        };
        let is_quiet = |server: &str| !outages.link(slot, server, woke, woke + CLOSED_WITHIN_MS);
        if is_quiet("provider") {
            for call in calls.iter().filter(|call| call.by.as_deref() == Some(slot)) {
                let begin = clock.ms(call.begin);
                let end = call.end.map_or(i64::MAX, |(at, _)| clock.ms(at));
                // A call may be made again just as it wakes up, before it hears of its loss.
                let is_of_old = begin < sleep.until && !has_anew(&call.key, begin);
                if is_of_old && end > woke + CLOSED_WITHIN_MS {
                    let late = end.saturating_sub(woke);
                    broken.push(format!("a zombie's stream was open {late} ms after it woke: {}", call.key));
                }
            }
        }
        if is_quiet("tools") {
            for entry in ledger.iter().filter(|entry| entry.by.as_deref() == Some(slot)) {
                let (arrived, run) = (clock.ms(entry.arrived), entry.header("x-longhaul-run-id"));
                let run = run.unwrap_or("no run");
                if (woke..sleep.until).contains(&arrived) && !has_anew(run, arrived) {
                    let late = arrived - woke;
                    broken.push(format!("a zombie sent {} {late} ms after it woke: {run}", entry.op));
                }
            }
        }
    }
    broken
}

/// Each proof of a death is of somebody dead: its process was gone, or had given that name up.
pub(crate) fn proofs(
    outputs: &[(String, String)],
    incidents: &[Incident],
    identities: &Identities,
) -> (usize, Vec<String>) {
    let lost: HashMap<String, i64> = outputs
        .iter()
        .flat_map(|(_, output)| said(output, "the lease is lost"))
        .map(|(at, worker)| (worker, at))
        .collect();
    let proofs = outputs.iter().flat_map(|(_, output)| said(output, "a worker's process is gone"));
    let (mut count, mut broken) = (0, Vec::new());
    for (at, worker) in proofs {
        count += 1;
        // One that died before it could say that it has a lease.
        let Some((registered, slot)) = identities.origin(&worker) else { continue };
        let deaths = incidents.iter().filter(|incident| {
            let is_end = incident.fault.starts_with("worker_drains") || incident.fault == "worker_kills";
            let is_end = is_end || incident.fault == EXIT;
            is_end && incident.slot.as_deref() == Some(slot) && incident.from >= registered
        });
        let deaths = deaths.map(|death| match death.fault {
            "worker_kills" => death.from,
            _ => death.turned.unwrap_or(death.until) - NOTICED_MS,
        });
        let given_up = lost.get(&worker).map(|at| at - ROUNDING_MS);
        if deaths.chain(given_up).min().is_none_or(|death| at < death) {
            broken.push(format!("a live worker was taken for dead: {worker} at {slot}, at {at}"));
        }
    }
    (count, broken)
}

/// How many of all runs ended as they were meant to.
pub(crate) fn as_meant(journal: &Journal, history: &History) -> usize {
    let is_meant = |(id, run): &(&String, &Run)| match run.outcome.as_str() {
        "aborted stop" => journal.stops_asked.contains(*id),
        outcome => outcome == meant(&run.agent),
    };
    history.runs.iter().filter(is_meant).count()
}

/// How a run of this kind ends if nobody stops it.
fn meant(agent: &str) -> &'static str {
    match agent {
        "refused" => "failed provider",
        "loops" => "failed step_limit",
        _ => "succeeded done",
    }
}

/// What no process may print.
pub(crate) fn output(name: &str, output: &str, keys: &[String]) -> Vec<String> {
    let keys = keys.iter().map(String::as_str);
    let unheard_of = SECRETS.into_iter().chain(keys).chain(["panicked", "repaired rows", "25P02"]);
    let unheard_of: Vec<&str> = unheard_of.collect();
    let bad = output.lines().filter(|line| unheard_of.iter().any(|word| line.contains(word)));
    bad.map(|line| format!("{name} says: {line}")).collect()
}

#[cfg(test)]
mod tests;
