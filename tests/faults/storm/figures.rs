//! How long recovery, hand-over and stops took in the midst of it: one sample for each thing that happened, and those apart
//! in which something was away that it needs.

use std::collections::{BTreeMap, HashMap, HashSet};

use longhaul_tests::End;
use longhaul_tests::fake_provider::Call;
use serde::Serialize;

use super::history::{Change, History, Run};
use super::install::LEASE;
use super::journal::{Journal, Stop};
use super::outages::Outages;
use super::weather::Incident;
use crate::clock::Clock;
use crate::percentiles::{Percentiles, Sampled};
use crate::workers::identities;

const ENOUGH_MINUTES: f64 = 5.0;
/// Fewer have no percentiles to speak of.
const ENOUGH_SAMPLES: usize = 5;

/// In milliseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Figures {
    /// From the SIGKILL of a worker to the claim of the last of its runs that had never lost a worker before.
    pub(crate) recovery: Figure,
    /// The same for runs that had: they wait longer by design, and one at a time on each worker.
    pub(crate) recovery_of_suspects: Figure,
    /// From a draining worker's release of a run to its next claim, the slowest of its runs that had never lost a worker.
    pub(crate) hand_over: Figure,
    /// From the first stop of a run to the end of the provider's stream that was open then.
    pub(crate) stop_to_upstream_closed: Figure,
    pub(crate) stop_to_run_finished: Figure,
    /// From a live event's time to its arrival at the last of the tails that were there.
    pub(crate) tail_lag: Figure,
}

/// One duration.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Figure {
    /// Everything that was seen.
    all: Percentiles,
    /// Of that, what overlapped an outage.
    excluded: usize,
    pub(crate) beyond_outages: Percentiles,
    /// All of it again, less the time in which nobody could do anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    less_down_time: Option<Percentiles>,
}

/// What was seen, and whether it overlapped an outage.
#[derive(Default)]
pub(crate) struct Seen {
    all: Sampled,
    beyond: Sampled,
    excluded: usize,
    less_down_time: Option<Sampled>,
}

impl Seen {
    fn push(&mut self, ms: i64, is_excluded: bool) {
        self.all.push(ms as f64);
        if is_excluded {
            self.excluded += 1;
        } else {
            self.beyond.push(ms as f64);
        }
    }

    pub(crate) fn figure(self) -> Figure {
        let (all, beyond_outages) = (self.all.percentiles(), self.beyond.percentiles());
        let less_down_time = self.less_down_time.map(Sampled::percentiles);
        Figure { all, excluded: self.excluded, beyond_outages, less_down_time }
    }

    fn push_less_down_time(&mut self, ms: i64) {
        self.less_down_time.get_or_insert_default().push(ms as f64);
    }
}

impl Figures {
    /// What took longer than is promised although everything was there, and what was never seen.
    pub(crate) fn flaws(&self, minutes: f64) -> Vec<String> {
        let lease = LEASE.as_millis() as f64;
        let bounds = [
            ("recovery after a SIGKILL", &self.recovery, Some(3_000.0), lease + 2_000.0),
            ("hand-over", &self.hand_over, Some(2_000.0), lease + 2_000.0),
            ("stop to the end of the upstream", &self.stop_to_upstream_closed, Some(1_000.0), 2_500.0),
        ];
        let mut flaws = Vec::new();
        for (what, figure, p50, p99) in bounds {
            // There are few drains in a short storm, and all of them may fall into outages.
            if figure.beyond_outages.count == 0 && minutes >= ENOUGH_MINUTES {
                flaws.push(format!("{what} was never seen beyond outages"));
            }
            if figure.beyond_outages.count >= ENOUGH_SAMPLES {
                flaws.extend(figure.beyond_outages.slower_than(what, p50, p99));
            }
        }
        let less = self.recovery.less_down_time.iter();
        flaws.extend(
            less.flat_map(|seen| seen.slower_than("recovery less down time", Some(3_000.0), lease + 2_000.0)),
        );
        flaws
    }
}

/// Which worker each process was, from when on: by the name of its slot.
pub(crate) struct Identities(BTreeMap<String, Vec<(i64, String)>>);

impl Identities {
    pub(crate) fn read<'a>(outputs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let outputs = outputs.into_iter().map(|(slot, output)| (slot.to_owned(), identities(output)));
        Self(outputs.filter(|(_, identities)| !identities.is_empty()).collect())
    }

    fn of(&self, incident: &Incident) -> Option<&str> {
        let registered = self.0.get(incident.slot.as_ref()?)?;
        let (_, worker) = registered.iter().rev().find(|(at, _)| *at < incident.from)?;
        Some(worker)
    }

    /// Since when and where this worker was.
    pub(crate) fn origin(&self, worker: &str) -> Option<(i64, &str)> {
        self.0.iter().find_map(|(slot, registered)| {
            let (at, _) = registered.iter().find(|(_, id)| id == worker)?;
            Some((*at, slot.as_str()))
        })
    }

    /// The same incidents, those that cost a worker its lease lasting until there is a lease at that place again: how long a
    /// process takes to start is a matter of the machine.
    pub(crate) fn until_registered(&self, incidents: &[Incident]) -> Vec<Incident> {
        let extended = incidents.iter().cloned().map(|mut incident| {
            let is_loss = incident.fault.starts_with("worker_") && incident.fault != "worker_naps";
            let registered = incident.slot.as_ref().and_then(|slot| self.0.get(slot));
            let over = incident.turned.unwrap_or(incident.until);
            let next = registered.and_then(|all| all.iter().map(|(at, _)| *at).find(|at| *at >= over));
            if let Some(next) = next.filter(|_| is_loss) {
                incident.until = incident.until.max(next);
                incident.turned = incident.turned.map(|turned| turned.max(next));
            }
            incident
        });
        extended.collect()
    }

    /// The slots of workers, but for one.
    fn others<'a>(&'a self, slot: Option<&'a str>) -> impl Iterator<Item = &'a str> {
        self.0.keys().map(String::as_str).filter(move |other| Some(*other) != slot)
    }
}

/// Of runs on their first loss, and of those that had lost a worker before.
pub(crate) fn recovery(history: &History, incidents: &[Incident], identities: &Identities) -> (Seen, Seen) {
    let (mut first, mut later) = (Seen::default(), Seen::default());
    for kill in incidents.iter().filter(|incident| incident.fault == "worker_kills") {
        let Some(worker) = identities.of(kill) else { continue };
        let of_kind = |is_first: bool| {
            let runs = history.runs.values().filter(|run| run.owner_at(kill.from) == Some(worker));
            let runs = runs.filter(|run| (run.takeovers_before(kill.from) == 0) == is_first);
            runs.filter_map(|run| run.claimed_after(kill.from)).max()
        };
        for (seen, claimed) in [(&mut first, of_kind(true)), (&mut later, of_kind(false))] {
            let Some(claimed) = claimed else { continue };
            let others: Vec<&str> = identities.others(kill.slot.as_deref()).collect();
            let outages = Outages::of(incidents);
            let is_excluded = outages.everybody(others.iter().copied(), kill.from, claimed);
            seen.push(claimed - kill.from, is_excluded);
            let down = outages.down_time(&others, kill.from, claimed);
            seen.push_less_down_time(claimed - kill.from - down);
        }
    }
    (first, later)
}

pub(crate) fn hand_over(history: &History, incidents: &[Incident], identities: &Identities) -> Seen {
    let mut seen = Seen::default();
    for drain in incidents.iter().filter(|incident| incident.fault.starts_with("worker_drains")) {
        let Some(worker) = identities.of(drain) else { continue };
        let handed_over = |run: &Run| {
            let released = run.changes.iter().find(|(at, change)| {
                *at >= drain.from && matches!(change, Change::Released { reason } if reason == "hand_back")
            });
            let (at, _) = released?;
            Some((run.claimed_after(*at)? - at, *at))
        };
        let runs = history.runs.values().filter(|run| run.owner_at(drain.from) == Some(worker));
        // One that had lost a worker before waits for its turn among those.
        let runs = runs.filter(|run| run.takeovers_before(drain.from) == 0);
        let Some((ms, released)) = runs.filter_map(handed_over).max() else { continue };
        let others = identities.others(drain.slot.as_deref());
        seen.push(ms, Outages::of(incidents).everybody(others, released, released + ms));
    }
    seen
}

/// To the end of the upstream, and to the end of the run.
pub(crate) fn stops(
    history: &History,
    calls: &[Call],
    stops: &[Stop],
    incidents: &[Incident],
    clock: &Clock,
) -> (Seen, Seen) {
    let mut of_run: HashMap<&str, Vec<&Call>> = HashMap::new();
    for call in calls {
        of_run.entry(&call.key).or_default().push(call);
    }
    let outages = Outages::of(incidents);
    let (mut upstream, mut finished) = (Seen::default(), Seen::default());
    let mut in_order: Vec<&Stop> = stops.iter().collect();
    in_order.sort_by_key(|stop| stop.at);
    let mut counted = HashSet::new();
    for stop in in_order.into_iter().filter(|stop| counted.insert(&stop.run)) {
        let is_open = |call: &&&Call| {
            let end = call.end.map_or(i64::MAX, |(at, _)| clock.ms(at));
            clock.ms(call.begin) <= stop.at && stop.at <= end
        };
        let open = of_run.get(stop.run.as_str()).into_iter().flatten().filter(is_open);
        let last = open.max_by_key(|call| call.end.map(|(at, _)| at));
        let slot = last.and_then(|call| call.by.as_deref());
        let is_excluded = |end: i64| {
            let of_worker = slot.is_none_or(|slot| {
                outages.process(slot, stop.at, end) || outages.link(slot, "provider", stop.at, end)
            });
            let of_apis = ["api1", "api2"].iter().any(|api| outages.process(api, stop.at, end));
            of_worker || of_apis || outages.postgres(stop.at, end) || outages.redis(stop.at, end)
        };
        if let Some((end, End::ClientGone)) = last.and_then(|call| call.end) {
            let end = clock.ms(end);
            upstream.push(end - stop.at, is_excluded(end));
        }
        let end = history.runs.get(&stop.run).and_then(|run| run.finished_at);
        if let Some(end) = end.filter(|end| *end >= stop.at) {
            finished.push(end - stop.at, is_excluded(end));
        }
    }
    (upstream, finished)
}

pub(crate) fn tail_lag(journal: &Journal, incidents: &[Incident]) -> Seen {
    let mut slowest: HashMap<(&str, usize), (i64, i64, bool)> = HashMap::new();
    let outages = Outages::of(incidents);
    for tail in &journal.tails {
        for arrival in &tail.arrivals {
            let (from, until) = (arrival.at, arrival.at + arrival.lag);
            let worst = slowest.entry((&tail.run, arrival.seq)).or_insert((from, -1, false));
            if arrival.lag > worst.1 {
                let api = format!("api{}", arrival.api + 1);
                let is_cut_off = ["postgres", "redis"].iter().any(|to| outages.link(&api, to, from, until));
                *worst = (from, arrival.lag, is_cut_off);
            }
        }
    }
    let mut seen = Seen::default();
    // What overlaps an outage is looked for once for each moment.
    let mut away: HashMap<(i64, i64), bool> = HashMap::new();
    for (at, lag, is_cut_off) in slowest.into_values() {
        let is_away = || outages.postgres(at, at + lag) || outages.redis(at, at + lag);
        let is_away = is_cut_off || *away.entry((at / 100, lag / 100)).or_insert_with(is_away);
        seen.push(lag, is_away);
    }
    seen
}
