//! How long recovery, hand-over and stops took in the midst of it.

use std::collections::{HashMap, HashSet};

use longhaul_tests::End;
use longhaul_tests::fake_provider::Call;
use serde::Serialize;

use super::history::{Change, History};
use super::journal::Stop;
use super::weather::Incident;
use crate::clock::Clock;
use crate::percentiles::{Percentiles, Sampled};
use crate::workers::identities;

/// In milliseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Figures {
    /// From the SIGKILL of a run's worker to the run's next claim, where the database was up all the time.
    pub(crate) recovery: Percentiles,
    /// From a draining worker's release of a run to the next claim.
    pub(crate) hand_over: Percentiles,
    /// From a stop to the end of the provider's stream that was open then.
    pub(crate) stop_to_upstream_closed: Percentiles,
    pub(crate) stop_to_run_finished: Percentiles,
    /// From a live event's time to its arrival at a tail.
    pub(crate) tail_lag: Percentiles,
}

/// Which worker each process was, from when on: by the name of its slot.
pub(crate) struct Identities(HashMap<String, Vec<(i64, String)>>);

impl Identities {
    pub(crate) fn read<'a>(outputs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let outputs = outputs.into_iter();
        Self(outputs.map(|(slot, output)| (slot.to_owned(), identities(output))).collect())
    }

    fn of(&self, incident: &Incident) -> Option<&str> {
        let registered = self.0.get(incident.slot.as_ref()?)?;
        let (_, worker) = registered.iter().rev().find(|(at, _)| *at < incident.from)?;
        Some(worker)
    }
}

pub(crate) fn recovery(history: &History, incidents: &[Incident], identities: &Identities) -> Sampled {
    let outages: Vec<_> = incidents.iter().filter(|incident| incident.fault == "postgres_crashes").collect();
    let mut seen = Sampled::default();
    for kill in incidents.iter().filter(|incident| incident.fault == "worker_kills") {
        let Some(worker) = identities.of(kill) else { continue };
        for run in history.runs.values().filter(|run| run.owner_at(kill.from) == Some(worker)) {
            let Some(claimed) = run.claimed_after(kill.from) else { continue };
            if !outages.iter().any(|outage| outage.from <= claimed && outage.until >= kill.from) {
                seen.push((claimed - kill.from) as f64);
            }
        }
    }
    seen
}

pub(crate) fn hand_over(history: &History, incidents: &[Incident], identities: &Identities) -> Sampled {
    let mut seen = Sampled::default();
    for drain in incidents.iter().filter(|incident| incident.fault.starts_with("worker_drains")) {
        let Some(worker) = identities.of(drain) else { continue };
        for run in history.runs.values().filter(|run| run.owner_at(drain.from) == Some(worker)) {
            let released = run.changes.iter().find(|(at, change)| {
                *at >= drain.from && matches!(change, Change::Released { reason } if reason == "hand_back")
            });
            let claimed = released.and_then(|(at, _)| Some(run.claimed_after(*at)? - at));
            if let Some(ms) = claimed {
                seen.push(ms as f64);
            }
        }
    }
    seen
}

/// To the end of the upstream, and to the end of the run.
pub(crate) fn stops(history: &History, calls: &[Call], stops: &[Stop], clock: &Clock) -> (Sampled, Sampled) {
    let mut of_run: HashMap<&str, Vec<&Call>> = HashMap::new();
    for call in calls {
        of_run.entry(&call.key).or_default().push(call);
    }
    let (mut upstream, mut finished) = (Sampled::default(), Sampled::default());
    let mut counted = HashSet::new();
    for stop in stops.iter().filter(|stop| counted.insert(&stop.run)) {
        for call in of_run.get(stop.run.as_str()).into_iter().flatten() {
            let Some((end, End::ClientGone)) = call.end else { continue };
            let (begin, end) = (clock.ms(call.begin), clock.ms(end));
            if begin <= stop.at && stop.at <= end {
                upstream.push((end - stop.at) as f64);
            }
        }
        let end = history.runs.get(&stop.run).and_then(|run| run.finished_at);
        if let Some(end) = end.filter(|end| *end >= stop.at) {
            finished.push((end - stop.at) as f64);
        }
    }
    (upstream, finished)
}
